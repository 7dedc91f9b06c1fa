//! The worker's calls of tools: those of HTTP endpoints, which the gateway sends; and calls that nobody approved in time.
//! What callers ask for in SQL is run by the database's runners.

use super::Worker;
use crate::pg::jobs::{Job, Wanted, claim, end, requeue};
use crate::pg::session::durable;
use crate::pg::tools::{self, ToSend};
use crate::pg::transaction::{bare_transaction, transaction};
use crate::pg::{owner, runner, spi};
use std::time::{Duration, Instant};

/// Seconds until a call that could not be sent is looked at again.
const PAUSE: f64 = 0.25;

impl Worker {
    /// Sends queued calls, workspaces in turn, as far as there is room.
    pub(super) fn send_calls(&mut self) {
        if self.calls_again > Instant::now() {
            self.next_look = self.next_look.min(self.calls_again);
        }
        loop {
            let (after, share) = (self.call_turn, 4);
            let wanted = Wanted { kind: "send", after, workspaces: 8, share, without: &[], runner: None };
            let jobs = transaction(|| claim(&wanted));
            let Some(jobs) = self.note(jobs).filter(|jobs| !jobs.is_empty()) else { return };
            for job in &jobs {
                self.call_turn = job.workspace;
                self.send_queued(job);
            }
        }
    }

    fn send_queued(&mut self, job: &Job) {
        let can_send = self.can_send(job.workspace);
        let done = bare_transaction(|| {
            durable();
            let found = tools::prepare_queued(job.workspace, job.key, can_send)?;
            owner::as_owner(|| match found {
                ToSend::Ended => end(job, "succeeded", None),
                ToSend::Later => requeue(job, PAUSE, false),
                ToSend::Now(_) => Ok(()),
            })?;
            Ok(found)
        });
        let error = match done {
            Ok(ToSend::Now(request)) => return self.send_call(job, *request),
            Ok(ToSend::Later) => {
                self.calls_again = Instant::now() + Duration::from_secs_f64(PAUSE);
                self.next_look = self.next_look.min(self.calls_again);
                return;
            }
            Ok(ToSend::Ended) => return,
            Err(error) => error,
        };
        self.note::<()>(Err(error.clone()));
        let ended = transaction(|| tools::tried(job, &error));
        if self.note(ended).is_none() {
            self.owed.push(job.clone());
        }
    }

    /// Has a runner look, where what it does is due and its own wake may have been missed: after a start of the server,
    /// for what was put off, and for prepared transactions.
    pub(super) fn call_runners(&mut self) {
        let due = transaction(runner::is_due);
        if self.note(due) == Some(true) {
            runner::want_here();
        }
    }

    /// Ends calls that nobody approved in time.
    pub(super) fn expire_calls(&mut self) {
        let expired = transaction(|| {
            let next = spi::change(
                "select helper._expire_calls(), (select extract(epoch from min(c.lapses_at) - clock_timestamp())::float8 \
                   from helper.function_calls c where c.status = 'awaiting_confirmation')",
                &[],
                |row| row.opt::<f64>(2),
            )?;
            Ok(next.into_iter().flatten().next())
        });
        if let Some(Some(seconds)) = self.note(expired) {
            self.next_look = self.next_look.min(Instant::now() + Duration::from_secs_f64(seconds.clamp(0.01, 60.0)));
        }
    }
}
