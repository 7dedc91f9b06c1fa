//! Runs of workflows, and what starts them: schedules that are due and events in the outbox.

use super::{Runner, Worked, want_here};
use crate::core::error::{Error, Result};
use crate::pg::session::{self, flushed};
use crate::pg::transaction::{bare_transaction, transaction};
use crate::pg::workflow::{self, Turn, Wanted};
use crate::pg::{jobs, spi};
use std::time::{Duration, Instant};

/// A runner that begins does not know over what the last one ended: so many runs it takes alone, each marked before.
pub(super) const CAREFUL: u32 = 64;
/// How often schedules and events are looked at while there is other work.
const STARTS: Duration = Duration::from_millis(100);
/// A row of the queue over which a runner ended this often is given up.
const MOST_ATTEMPTS: i32 = jobs::MOST_ATTEMPTS;

impl Runner {
    /// Goes on with some runs.
    pub(super) fn go_on_with_runs(&mut self) -> Worked {
        self.run_turn.avoid(self.avoided());
        if self.careful > 0 || self.run_turn.is_full_due() {
            let woken = transaction(workflow::wake_sleepers);
            if self.notes.note(woken) == Some(true) {
                want_here();
            }
        }
        if self.careful > 0 {
            return self.go_on_with_one();
        }
        let turn = &mut self.run_turn;
        let done = bare_transaction(|| {
            flushed();
            workflow::go_on(&mut Wanted::Next(turn))
        });
        match done {
            Ok(true) => Worked::Busy,
            Ok(false) => self.idle(),
            Err(error) => {
                self.run_turn = Turn::new(self.run_turn.after());
                // One of them is to blame: each alone shows which. What it left in the session is not for the next to find.
                let forgotten = transaction(session::forget);
                self.notes.note(forgotten);
                self.notes.note::<()>(Err(error));
                self.careful = CAREFUL;
                Worked::Busy
            }
        }
    }

    fn go_on_with_one(&mut self) -> Worked {
        let marked = transaction(|| workflow::mark(&mut self.run_turn));
        let Some(marked) = self.notes.note(marked) else {
            return Worked::Idle { next_look: Some(Instant::now() + Duration::from_secs(1)) };
        };
        let Some(marked) = marked else { return self.idle() };
        self.careful -= 1;
        self.run_turn = Turn::new(marked.workspace);
        let done = if marked.tried > MOST_ATTEMPTS {
            Err(never_ended())
        } else {
            bare_transaction(|| {
                flushed();
                workflow::go_on(&mut Wanted::One { workspace: marked.workspace, row: marked.row })
            })
        };
        if let Err(error) = done {
            let forgotten = transaction(session::forget);
            self.notes.note(forgotten);
            let failed = transaction(|| workflow::failed(&marked, MOST_ATTEMPTS, &error));
            self.notes.note::<()>(Err(error));
            self.notes.note(failed);
        }
        Worked::Busy
    }

    fn idle(&mut self) -> Worked {
        if let Some(at) = self.run_turn.look_again_at() {
            return Worked::Idle { next_look: Some(at) };
        }
        let next = transaction(workflow::next_due);
        let next = self.notes.note(next).flatten();
        let next_look = next.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds.clamp(0.02, 86_400.0)));
        Worked::Idle { next_look }
    }

    /// Starts runs whose time or event has come; says when to look again.
    pub(super) fn start_runs(&mut self) -> Option<Instant> {
        if self.starts_at > Instant::now() {
            return Some(self.starts_at);
        }
        // Each on its own: trouble with one keeps the other from nothing.
        let event_at = self.start("select extract(epoch from helper._deliver_events() - clock_timestamp())::float8");
        let schedule_at = self.start("select extract(epoch from helper._fire_schedules() - clock_timestamp())::float8");
        self.starts_at = Instant::now() + STARTS;
        [event_at, schedule_at].into_iter().flatten().min()
    }

    /// Starts runs by a statement that returns in how many seconds to come again, if at all.
    fn start(&mut self, sql: &str) -> Option<Instant> {
        let next = transaction(|| spi::change(sql, &[], |row| row.opt::<f64>(1)));
        let seconds = match self.notes.note(next) {
            None => 1.0,
            Some(next) => next.into_iter().flatten().next()?.clamp(STARTS.as_secs_f64(), 86_400.0),
        };
        Some(Instant::now() + Duration::from_secs_f64(seconds))
    }
}

fn never_ended() -> Error {
    Error::not_ready(format!("the run was gone on with {MOST_ATTEMPTS} times and never got further"))
        .detail("Each time the runner was ended, or the whole server.")
}

/// Whether a run, a schedule or an event is due.
pub(super) fn is_due() -> Result<bool> {
    let due = spi::change(
        "select exists (select from helper.workflow_queue q where q.is_due) \
           or exists (select from helper.workflow_queue q where not q.is_due and q.run_at <= (select clock_timestamp())) \
           or exists (select from helper.workflow_schedules s where s.look_at <= (select clock_timestamp())) \
           or exists (select from helper.workflow_events e where e.attempts = 0) \
           or exists (select from helper.workflow_events e where e.attempts > 0 and e.deliver_at <= (select clock_timestamp()))",
        &[],
        |row| row.get::<bool>(1),
    )?;
    Ok(due.first() == Some(&true))
}
