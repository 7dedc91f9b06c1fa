//! Runners: processes that run what callers ask for in SQL, each one thing at a time, so that what takes long keeps neither
//! the worker nor other tenants waiting. A database has as many as there is work for, and at most `helper_ai.runners`.
//!
//! Whoever enqueues such work wakes an idle runner at commit ([`shared::want_runner`]), or has the launcher start one. A
//! runner that begins something while more is due does the same; one that has done something looks for more itself.
//!
//! What a caller wrote may take as long as it may. When all runners are held by such statements the launcher starts one more,
//! the reserve, which serves those alone who hold none: so that who has long statements waits for their own.

mod calls;
mod runs;

use crate::core::error::Result;
use crate::pg::jobs::{self, Job};
use crate::pg::report::{Notes, Reported};
use crate::pg::transaction::{extension_exists, transaction};
use crate::pg::workflow::Turn;
use crate::pg::{identity, session, settings, shared, spi, wait, wake};
use pgrx::Uuid;
use pgrx::bgworkers::{BackgroundWorker, SignalWakeFlags};
#[cfg(not(feature = "pg18"))]
use pgrx::pg_sys::pqsignal;
#[cfg(feature = "pg18")]
use pgrx::pg_sys::pqsignal_be as pqsignal;
use pgrx::prelude::*;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A runner that has had nothing to do for so long leaves.
const IDLE: Duration = Duration::from_secs(300);

unsafe extern "C-unwind" {
    fn die(signal: i32);
}

/// How long the reserve stays when not all the others are held any more, and does nothing for whoever held one.
const RESERVE_STAYS: Duration = Duration::from_secs(10);

/// How often the reserve looks for work: nobody wakes it, so that what is not for it wakes somebody else.
const RESERVE_LOOK: Duration = Duration::from_millis(200);

/// What became of a look for work.
enum Worked {
    /// Something was done; there may be more.
    Busy,
    /// There is nothing to do, and nothing before this time as far as is known.
    Idle { next_look: Option<Instant> },
}

/// What a runner does next.
enum Step {
    Work,
    Rest,
    Leave,
}

struct Runner {
    database: u32,
    pid: i32,
    /// By which its leases are known.
    id: Uuid,
    /// When it looks for work though nobody wakes it.
    next_look: Option<Instant>,
    /// When it last had something to do.
    worked_at: Instant,
    /// Workspace whose call was run last.
    call_turn: Uuid,
    /// Where it has got to with runs.
    run_turn: Turn,
    /// So many runs are taken one by one.
    careful: u32,
    /// When schedules and events are looked at next.
    starts_at: Instant,
    /// Jobs that could not be given back, because of a lock say.
    owed: Vec<Job>,
    /// What it keeps in mind where it is the reserve.
    reserve: Option<Reserve>,
    notes: Notes,
}

struct Reserve {
    /// When all the others were last held.
    held_at: Instant,
    /// Workspaces that have held one, and when.
    holders: HashMap<[u8; 16], Instant>,
}

/// Whether something is due that runners do; as the owner, inside a transaction.
pub fn is_due() -> Result<bool> {
    Ok(jobs::is_due("call")? || runs::is_due()?)
}

/// Says that there is work for this database's runners.
pub fn want_here() {
    shared::want_runner(wake::this_database());
}

/// `helper._runners`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn runner_ids() -> Reported<Vec<Uuid>> {
    if !shared::preloaded() {
        return Ok(Vec::new());
    }
    Ok(shared::runner_ids(wake::this_database()).into_iter().map(Uuid::from_bytes).collect())
}

/// A runner's main function; the argument is the database.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn helper_ai_runner_main(arg: pg_sys::Datum) {
    let database = arg.value() as u32;
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP);
    // SAFETY: the server's own handlers; called before anything can wait.
    let pid = unsafe {
        pqsignal(pg_sys::SIGTERM as i32, Some(die));
        pg_sys::MyProcPid
    };
    let mut runner = Runner::new(database, pid);
    if !runner.enter() {
        return;
    }
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(database.into()), None);
    session::configure(c"helper_ai runner");
    let may_have_work = runner.run();
    runner.leave(may_have_work);
}

impl Runner {
    fn new(database: u32, pid: i32) -> Self {
        Runner {
            database,
            pid,
            id: Uuid::from_bytes(identity::new_id()),
            next_look: None,
            worked_at: Instant::now(),
            call_turn: jobs::first(),
            run_turn: Turn::new(jobs::first()),
            careful: runs::CAREFUL,
            starts_at: Instant::now(),
            owed: Vec::new(),
            reserve: None,
            notes: Notes::of("runner"),
        }
    }

    /// Enters itself into the database's slot; `false` where it is one too many, or somebody needs the database.
    fn enter(&mut self) -> bool {
        let most = settings::RUNNERS.get() as usize;
        let pid = self.pid;
        let entered = shared::change(|state| {
            let slot = state.slot(self.database)?;
            if let Some(entry) = slot.runner(pid) {
                *entry = shared::Runner::default();
            }
            let is_reserve = slot.regular().count() >= most;
            let may =
                slot.held_by == 0 && (!is_reserve || slot.is_held(most) && slot.started().all(|one| !one.is_reserve));
            if may && let Some(entry) = slot.enter(pid) {
                let id = *self.id.as_bytes();
                *entry = shared::Runner { pid, id, busy: true, is_reserve, ..shared::Runner::default() };
                return Some(is_reserve);
            }
            slot.runner_wanted |= !is_reserve;
            None
        });
        if entered == Some(true) {
            self.reserve = Some(Reserve { held_at: Instant::now(), holders: HashMap::new() });
        }
        entered.is_some()
    }

    fn leave(&self, may_have_work: bool) {
        shared::change(|state| {
            if let Some(slot) = state.slot(self.database) {
                // If it has not done so for want of work.
                if let Some(entry) = slot.runner(self.pid) {
                    *entry = shared::Runner::default();
                    slot.runner_wanted |= may_have_work;
                }
                slot.runner_lost |= !self.owed.is_empty();
            }
        });
        shared::say_gone();
    }

    /// Works until it is not needed or asked to leave; says whether there may be work to come back to.
    fn run(&mut self) -> bool {
        // What a runner that is gone had claimed; the worker does so too, but may be busy.
        let released = transaction(|| spi::run("select helper._release_leases(null)", &[]));
        self.notes.note(released);
        // Whoever had it started has work for it.
        self.next_look = Some(Instant::now());
        loop {
            // SAFETY: a flag that the signal handler sets.
            if unsafe { (&raw const pg_sys::ProcDiePending).read_volatile() } != 0 {
                return true;
            }
            if BackgroundWorker::sighup_received() {
                // SAFETY: the server's own way to read its configuration again.
                unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
            }
            wait::attend();
            match self.step() {
                Step::Leave => return self.reserve.is_none(),
                Step::Work if !extension_exists() => return false,
                Step::Work => match self.work() {
                    Worked::Busy => {
                        self.worked_at = Instant::now();
                        self.next_look = Some(self.worked_at);
                    }
                    Worked::Idle { next_look } => self.next_look = next_look,
                },
                Step::Rest => self.rest(),
            }
        }
    }

    /// Takes the wish for a runner, or else says that this one is idle: in one look at the slot, so that whoever wishes
    /// meanwhile wakes this one.
    fn step(&mut self) -> Step {
        let now = Instant::now();
        if self.reserve.is_some() {
            return self.step_as_reserve(now);
        }
        let most = settings::RUNNERS.get() as usize;
        let is_due = self.next_look.is_some_and(|at| at <= now);
        let is_needed = self.worked_at.elapsed() < IDLE || self.next_look.is_some_and(|at| at <= now + IDLE);
        let (step, launcher) = shared::change(|state| {
            let launcher = state.launcher;
            let Some(slot) = state.slot(self.database) else { return (Step::Leave, 0) };
            if slot.held_by != 0 || slot.regular().count() > most {
                return (Step::Leave, 0);
            }
            let is_wanted = slot.runner_wanted;
            let others_rest = slot.regular().any(|other| other.pid != self.pid && !other.busy);
            let Some(entry) = slot.runner(self.pid) else { return (Step::Leave, 0) };
            entry.busy = is_due || is_wanted;
            if entry.busy {
                // Who works anyway leaves the wish to the one that it woke.
                slot.runner_wanted &= is_due && others_rest;
                let is_told = slot.is_watched || !slot.is_full(most);
                slot.is_watched |= !is_told;
                (Step::Work, if is_told { 0 } else { launcher })
            } else if is_needed {
                (Step::Rest, 0)
            } else {
                *entry = shared::Runner::default();
                (Step::Leave, 0)
            }
        });
        // Somebody has to see whether it comes to be held.
        shared::wake_process(launcher);
        step
    }

    /// Sees who holds the others.
    fn step_as_reserve(&mut self, now: Instant) -> Step {
        let most = settings::RUNNERS.get() as usize;
        let Some(reserve) = &mut self.reserve else { return Step::Leave };
        let is_there = shared::change(|state| {
            let slot = state.slot(self.database).filter(|slot| slot.held_by == 0)?;
            if slot.is_held(most) {
                reserve.held_at = now;
            }
            let held = slot.regular().filter(|runner| runner.is_held());
            reserve.holders.extend(held.map(|runner| (runner.workspace, now)));
            slot.runner(self.pid).map(|_| ())
        });
        reserve.holders.retain(|_, at| at.elapsed() < RESERVE_STAYS);
        if is_there.is_none() || most == 0 || reserve.held_at.elapsed() > RESERVE_STAYS {
            return Step::Leave;
        }
        if self.next_look.is_some_and(|at| at <= now) { Step::Work } else { Step::Rest }
    }

    /// Workspaces for which it does nothing.
    fn avoided(&self) -> Vec<Uuid> {
        self.reserve.iter().flat_map(|reserve| reserve.holders.keys()).map(|id| Uuid::from_bytes(*id)).collect()
    }

    /// Does a piece of work.
    fn work(&mut self) -> Worked {
        self.give_back();
        // What somebody most likely was woken for, and waits for, comes first.
        let (runs, calls) = (self.go_on_with_runs(), self.run_a_call());
        let starts_at = self.start_runs();
        let (Worked::Idle { next_look: call_at }, Worked::Idle { next_look: run_at }) = (calls, runs) else {
            return Worked::Busy;
        };
        let next_look = match &self.reserve {
            // What is due and not for it is no reason to look again at once.
            Some(_) => Some(Instant::now() + RESERVE_LOOK),
            None => [starts_at, call_at, run_at].into_iter().flatten().min(),
        };
        Worked::Idle { next_look }
    }

    fn rest(&self) {
        let idle = IDLE.saturating_sub(self.worked_at.elapsed());
        let next = self.next_look.map(|at| at.saturating_duration_since(Instant::now()));
        // Whole milliseconds, rounded up, or the last one would be waited for in many short waits.
        wait::wait(None, Some(next.map_or(idle, |next| next.min(idle.max(next))) + Duration::from_micros(999)));
    }

    /// Gives back what could not be given back before.
    fn give_back(&mut self) {
        for job in std::mem::take(&mut self.owed) {
            let given = transaction(|| jobs::requeue(&job, 5.0, true));
            if self.notes.note(given).is_none() {
                self.owed.push(job);
            }
        }
    }
}
