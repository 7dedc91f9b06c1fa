//! The worker as WhatsApp's sender, where an administrator named one: rows of the outbox are claimed, then the requests
//! are sent, then what came of each is committed. Where that is not known, because the gateway or we went away in between,
//! the row is uncertain: nothing is sent twice.

use super::Worker;
use super::sent::reply_of;
use crate::core::error::{Error, Kind};
use crate::core::wire::{Frame, Request, ToolAnswer, ToolReply};
use crate::pg::gateway::gone;
use crate::pg::transaction::{lasting_transaction, transaction};
use crate::pg::whatsapp::{self, Message, Waiting};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Messages under way at once, in all and of one workspace: nobody's broadcast keeps the others waiting.
const MOST: usize = 64;
const MOST_OF_ONE: usize = 16;

/// Messages of one workspace that are claimed at once.
const SHARE: usize = 4;

impl Worker {
    /// Sends what is due in the outbox as far as there is room. A row is claimed only when it can go out at once: what was
    /// claimed is uncertain if we end.
    pub(super) fn send_messages(&mut self) {
        let waiting = transaction(whatsapp::waiting);
        let Some(Some(Waiting { due, next })) = self.note(waiting) else { return };
        if let Some(seconds) = next {
            self.next_look = self.next_look.min(Instant::now() + Duration::from_secs_f64(seconds.clamp(0.001, 60.0)));
        }
        while due && self.messages.len() < MOST && self.connected() {
            let (room, full) = (MOST - self.messages.len(), self.full());
            let claimed = lasting_transaction(|| whatsapp::claim(room, SHARE, full));
            let Some(claimed) = self.note(claimed).filter(|claimed| !claimed.is_empty()) else { return };
            for message in claimed {
                self.send_message(message);
            }
        }
    }

    /// Workspaces that have no room for what may be claimed of one.
    fn full(&self) -> Vec<pgrx::Uuid> {
        let mut counts = HashMap::new();
        for message in self.messages.values() {
            *counts.entry(message.workspace).or_insert(0) += 1;
        }
        counts.into_iter().filter(|(_, count)| count + SHARE > MOST_OF_ONE).map(|(workspace, _)| workspace).collect()
    }

    /// Sends a message whose claim is committed.
    fn send_message(&mut self, message: Message) {
        // On its own: what is wrong with one workspace's token is not the others' trouble.
        let request = match transaction(|| whatsapp::request(&message)) {
            Ok(request) => request,
            Err(error) => {
                self.note::<()>(Err(error.clone()));
                return self.message_ended(message, ToolReply::Failed { error, reached: false });
            }
        };
        let linked = self.link.is_some();
        match self.send(&Request::Tool(Box::new(request))) {
            Ok(Some(id)) => {
                self.messages.insert(id, message);
            }
            Ok(None) => {
                self.message_ended(message, ToolReply::Failed { error: gone(), reached: linked });
                if linked {
                    self.lost();
                }
            }
            Err(error) => self.message_ended(message, ToolReply::Failed { error, reached: false }),
        }
    }

    pub(super) fn message_frame(&mut self, message: Message, frame: &Frame) {
        self.message_ended(message, reply_of(frame));
        self.next_look = self.next_look.min(Instant::now());
    }

    fn message_ended(&mut self, message: Message, reply: ToolReply) {
        let mut stored = lasting_transaction(|| whatsapp::ended(&message, &reply));
        if let (Err(Error { kind: Kind::Bug, .. }), ToolReply::Answered(answer)) = (&stored, &reply) {
            // What it says cannot be stored, as its id is another message's say; that it came can.
            let silent = ToolReply::Answered(ToolAnswer { body: String::new(), ..answer.clone() });
            stored = lasting_transaction(|| whatsapp::ended(&message, &silent));
        }
        if self.note(stored).is_none() {
            self.unstored_messages.push((message, reply));
            self.next_look = self.next_look.min(Instant::now() + Duration::from_secs(1));
        }
    }

    /// Stores what could not be stored before, because of a lock say.
    pub(super) fn store_messages(&mut self) {
        for (message, reply) in std::mem::take(&mut self.unstored_messages) {
            self.message_ended(message, reply);
        }
    }

    /// The gateway went away.
    pub(super) fn messages_lost(&mut self) {
        for (_, message) in std::mem::take(&mut self.messages) {
            self.message_ended(message, ToolReply::Failed { error: gone(), reached: true });
        }
    }
}
