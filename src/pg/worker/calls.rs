//! The worker's calls of tools: of SQL functions one after the other between everything else, each in a transaction with
//! what came of it, so that a worker that is killed has done either all of it or nothing.

use super::transaction::{bare_transaction, transaction};
use super::{Wanted, Worker, claim, end, requeue};
use crate::core::error::{Kind, Result};
use crate::pg::indexing::Job;
use crate::pg::tools::{self, Queued};
use crate::pg::{owner, spi};
use std::ffi::CStr;
use std::time::{Duration, Instant};

/// A call is given up after it was tried this often.
pub(super) const MOST_ATTEMPTS: i32 = 5;

/// Seconds until a call that could not be sent is looked at again.
const PAUSE: f64 = 0.25;

/// How long calls are run before the worker looks after everything else.
const TURN: Duration = Duration::from_millis(100);

impl Worker {
    /// Runs calls, workspaces in turn, for as long as others may wait for the worker.
    pub(super) fn run_calls(&mut self) {
        if self.calls_again > Instant::now() {
            self.next_look = self.next_look.min(self.calls_again);
        }
        let until = Instant::now() + TURN;
        while Instant::now() < until {
            let wanted = Wanted { kind: "call", after: self.call_turn, workspaces: 8, share: 4, without: &[] };
            let jobs = transaction(|| claim(&wanted));
            let Some(jobs) = self.note(jobs).filter(|jobs| !jobs.is_empty()) else { return };
            for (at, job) in jobs.iter().enumerate() {
                if at > 0 && Instant::now() >= until {
                    // One of them took long; nobody else's worker is to wait for all of them.
                    self.give(job, 0.0, false);
                    continue;
                }
                self.call_turn = job.workspace;
                self.run_call(job);
            }
        }
        self.next_look = Instant::now();
    }

    fn run_call(&mut self, job: &Job) {
        let can_send = self.can_send(job.workspace);
        let done = bare_transaction(|| {
            durable();
            let queued = tools::run_queued(job.workspace, job.key, can_send)?;
            owner::as_owner(|| match queued {
                Queued::Ended => {
                    end(job, "succeeded", None)?;
                    forget()
                }
                Queued::Later => requeue(job, PAUSE, false),
                Queued::Send(_) => Ok(()),
            })?;
            Ok(queued)
        });
        let error = match done {
            Ok(Queued::Send(request)) => return self.send_call(job, *request),
            Ok(Queued::Later) => {
                self.calls_again = Instant::now() + Duration::from_secs_f64(PAUSE);
                return;
            }
            Ok(Queued::Ended) => return,
            Err(error) => error,
        };
        let forgotten = transaction(forget);
        self.note(forgotten);
        self.note::<()>(Err(error.clone()));
        if error.kind == Kind::NotReady && job.attempts < MOST_ATTEMPTS {
            let given = transaction(|| requeue(job, f64::from(job.attempts), true));
            if self.note(given).is_none() {
                self.owed.push(job.clone());
            }
            return;
        }
        let failed = transaction(|| {
            tools::give_up(job.workspace, job.key, &error)?;
            end(job, "failed", Some(&error))
        });
        if self.note(failed).is_none() {
            self.owed.push(job.clone());
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

/// What a call left in the session is not for the next one to find, which may be another tenant's.
pub(super) fn forget() -> Result<()> {
    ["discard temp", "discard sequences", "deallocate all", "select pg_catalog.pg_advisory_unlock_all()"]
        .into_iter()
        .try_for_each(|sql| spi::run(sql, &[]))
}

/// What was done for somebody and told to the world is not forgotten in a crash. The other ways of the worker's session
/// are not for what callers run.
pub(super) fn durable() {
    set(&[(c"synchronous_commit", c"on"), (c"enable_seqscan", c"on"), (c"lock_timeout", c"0")]);
}

/// The same for a reply whose model calls tools, which waits for no lock for long.
pub(super) fn durable_reply() {
    set(&[(c"synchronous_commit", c"on"), (c"enable_seqscan", c"on")]);
}

fn set(settings: &[(&CStr, &CStr)]) {
    for (name, value) in settings {
        // SAFETY: names and values are constants; what is set here ends with the transaction.
        unsafe {
            pgrx::pg_sys::set_config_option(
                name.as_ptr(),
                value.as_ptr(),
                pgrx::pg_sys::GucContext::PGC_SUSET,
                pgrx::pg_sys::GucSource::PGC_S_SESSION,
                pgrx::pg_sys::GucAction::GUC_ACTION_LOCAL,
                true,
                0,
                false,
            );
        }
    }
}
