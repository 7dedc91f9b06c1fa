//! Queued calls of SQL functions: each in a transaction with what came of it, so that a runner that is ended in the middle
//! has done either all of it or nothing.

use super::{Runner, Worked, want_here};
use crate::core::error::{Error, Result};
use crate::pg::jobs::{Job, MOST_ATTEMPTS, Wanted, claim, end, is_due, requeue};
use crate::pg::session::{durable, forget};
use crate::pg::tools::{self, Queued};
use crate::pg::transaction::{bare_transaction, transaction};
use crate::pg::{calling_off, owner, spi};
use pgrx::Uuid;
use std::time::{Duration, Instant};

/// Seconds until a call is looked at again over which somebody's open transaction decides.
const PAUSE: f64 = 0.25;

/// Workspaces that are looked at for a call that may be claimed.
const LOOKED_AT: usize = 256;

impl Runner {
    /// Runs one call, workspaces in turn.
    pub(super) fn run_a_call(&mut self) -> Worked {
        let claimed = transaction(|| self.claim_call());
        let Some(claimed) = self.notes.note(claimed) else {
            return Worked::Idle { next_look: Some(Instant::now() + Duration::from_secs(1)) };
        };
        let Some((job, is_more_due)) = claimed else {
            let next = transaction(next_call);
            return Worked::Idle { next_look: self.notes.note(next).flatten() };
        };
        if is_more_due {
            want_here();
        }
        self.call_turn = job.workspace;
        self.run_call(&job);
        Worked::Busy
    }

    /// Leases a call, and says whether more of them are due. The lease is committed before the call begins, so that one
    /// that ends the server each time is counted.
    fn claim_call(&self) -> Result<Option<(Job, bool)>> {
        // Who has a runner already comes last, so that one workspace has all of them only while nobody else waits.
        let mut without = spi::change(
            "select distinct l.workspace_id from helper.job_leases l where l.runner is not null",
            &[],
            |row| row.get::<Uuid>(1),
        )?;
        let avoided = self.avoided();
        without.extend(&avoided);
        let (after, runner) = (self.call_turn, Some(self.id));
        let wanted = Wanted { kind: "call", after, workspaces: LOOKED_AT, share: 1, without: &without, runner };
        let mut jobs = claim(&wanted)?;
        if jobs.is_empty() && without.len() > avoided.len() {
            jobs = claim(&Wanted { without: &avoided, ..wanted })?;
        }
        let Some(job) = jobs.pop() else { return Ok(None) };
        Ok(Some((job, is_due("call")?)))
    }

    fn run_call(&mut self, job: &Job) {
        let at = calling_off::at(job.workspace, job.key);
        let done = if job.attempts > MOST_ATTEMPTS { Err(never_ended()) } else { run(job) };
        drop(at);
        let Err(error) = done else { return };
        let forgotten = transaction(forget);
        self.notes.note(forgotten);
        let is_called_off = calling_off::was_called_off();
        if !is_called_off {
            self.notes.note::<()>(Err(error.clone()));
        }
        let ended = transaction(|| if is_called_off { tools::called_off(job) } else { tools::tried(job, &error) });
        if self.notes.note(ended).is_none() {
            self.owed.push(job.clone());
        }
    }
}

fn run(job: &Job) -> Result<()> {
    bare_transaction(|| {
        durable();
        let queued = tools::run_queued(job.workspace, job.key)?;
        if calling_off::was_called_off() {
            return Err(Error::not_ready("the call was called off"));
        }
        owner::as_owner(|| {
            match queued {
                Queued::Ended => end(job, "succeeded", None)?,
                Queued::Later => requeue(job, PAUSE, false)?,
            }
            forget()
        })
    })
}

fn never_ended() -> Error {
    Error::not_ready(format!("the call was begun {MOST_ATTEMPTS} times and never ended"))
        .detail("Each time the process that ran it was ended, or the whole server.")
}

/// When the next call is due; one that is and cannot be claimed now is looked at again in a moment.
fn next_call() -> Result<Option<Instant>> {
    let seconds = spi::change(
        "select extract(epoch from min(q.run_at) - clock_timestamp())::float8 from helper.job_queue q where q.kind = 'call'",
        &[],
        |row| row.opt::<f64>(1),
    )?;
    let seconds = seconds.into_iter().flatten().next();
    Ok(seconds.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds.clamp(0.5, 86_400.0))))
}
