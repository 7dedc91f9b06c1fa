//! The worker's calls of HTTP tools: the intent is committed, then the request is sent, then what came of it is committed.
//! Where that is not known, because the gateway or we went away in between, the call is uncertain, or sent again where a
//! repetition does no harm.

use super::Worker;
use crate::core::error::Error;
use crate::core::wire::{self, Frame, Reply, Request, Tag, ToolReply, ToolRequest};
use crate::pg::gateway::gone;
use crate::pg::jobs::{Job, MOST_ATTEMPTS, end, requeue};
use crate::pg::transaction::{lasting_transaction, transaction};
use crate::pg::{calling, tools};
use std::time::{Duration, Instant};

/// Calls under way at once, in all and of one workspace: a slow endpoint is nobody else's trouble.
const MOST: usize = 256;
const MOST_OF_ONE: usize = 16;

/// What the gateway says of a request that it was to send.
pub(super) fn reply_of(frame: &Frame) -> ToolReply {
    let error = match frame.tag {
        Tag::End => match wire::decode::<Reply>(&frame.body) {
            Ok(Reply::Tool(reply)) => return *reply,
            Ok(_) => calling::another(),
            Err(error) => error,
        },
        Tag::Error => wire::decode::<Error>(&frame.body).unwrap_or_else(|error| error),
        _ => calling::another(),
    };
    ToolReply::Failed { error, reached: true }
}

/// A call that was sent.
pub(super) struct Sent {
    pub job: Job,
    idempotent: bool,
}

impl Worker {
    /// Whether one more call of a workspace may be sent now.
    pub(super) fn can_send(&mut self, workspace: pgrx::Uuid) -> bool {
        let of_one = self.calls.values().filter(|sent| sent.job.workspace == workspace).count();
        self.calls.len() < MOST && of_one < MOST_OF_ONE && self.connected()
    }

    /// Sends a call whose intent is committed.
    pub(super) fn send_call(&mut self, job: &Job, request: ToolRequest) {
        let sent = Sent { job: job.clone(), idempotent: request.idempotent };
        match self.send(&Request::Tool(Box::new(request))) {
            Ok(Some(id)) => {
                self.calls.insert(id, sent);
            }
            Ok(None) => {
                self.call_lost(sent);
                self.lost();
            }
            Err(error) => self.call_ended(sent, ToolReply::Failed { error, reached: false }),
        }
    }

    pub(super) fn call_frame(&mut self, sent: Sent, frame: &Frame) {
        self.call_ended(sent, reply_of(frame));
        self.next_look = self.next_look.min(Instant::now());
    }

    fn call_ended(&mut self, sent: Sent, reply: ToolReply) {
        let job = &sent.job;
        let stored = lasting_transaction(|| {
            tools::ended(job.workspace, job.key, reply.clone())?;
            end(job, "succeeded", None)
        });
        if self.note(stored).is_none() {
            self.unstored_calls.push((sent, reply));
            self.next_look = self.next_look.min(Instant::now() + Duration::from_secs(1));
        }
    }

    /// Stores what could not be stored before, because of a lock say.
    pub(super) fn store_calls(&mut self) {
        for (sent, reply) in std::mem::take(&mut self.unstored_calls) {
            self.call_ended(sent, reply);
        }
    }

    /// The gateway went away.
    pub(super) fn calls_lost(&mut self) {
        for (_, sent) in std::mem::take(&mut self.calls) {
            self.call_lost(sent);
        }
    }

    fn call_lost(&mut self, sent: Sent) {
        let job = &sent.job;
        if sent.idempotent && job.attempts < MOST_ATTEMPTS {
            let again = transaction(|| {
                tools::back_to_queue(job.workspace, job.key)?;
                requeue(job, f64::from(job.attempts), true)
            });
            if self.note(again).is_some() {
                return;
            }
        }
        self.call_ended(sent, ToolReply::Failed { error: gone(), reached: true });
    }
}
