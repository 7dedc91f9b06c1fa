//! The launcher: keeps the gateway running as its child, one worker in each database that has the extension, and runners
//! where there is work for them.
//!
//! It is connected to no database, so it is in nobody's way.

mod gateway;

use crate::pg::shared::{Note, Slot};
use crate::pg::{settings, shared, wait};
use gateway::{Wanted, start, wanted};
use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags};
use pgrx::prelude::*;
use std::collections::HashMap;
use std::ffi::CStr;
use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::{Duration, Instant};

/// Registers the launcher; only while the server preloads libraries.
pub fn register() {
    // SAFETY: a plain flag. Nothing may be written, nor connected to, while pg_upgrade is at work.
    if unsafe { pg_sys::IsBinaryUpgrade } {
        return;
    }
    BackgroundWorkerBuilder::new("helper_ai launcher")
        .set_type("helper_ai launcher")
        .set_library("helper_ai")
        .set_function("helper_ai_launcher_main")
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(1)))
        .enable_spi_access()
        .load();
}

/// When the launcher looks again though nothing happens.
const LATER: Duration = Duration::from_secs(10);

/// When it asks again for what it cannot have just now.
const AGAIN: Duration = Duration::from_secs(1);

/// How often it looks whether all runners of a database are held by what takes long, while all that there may be are busy,
const HELD_LOOK: Duration = Duration::from_millis(250);
/// and for how long afterwards.
const WATCHED: Duration = Duration::from_secs(1);

/// How long to wait before the next start of something that ends again and again.
#[derive(Clone, Copy)]
struct Backoff {
    started: Instant,
    delay: Duration,
}

impl Backoff {
    const SHORTEST: Duration = Duration::from_millis(50);
    /// For what was killed: it did start, and is missed.
    const KILLED: Duration = Duration::from_millis(250);
    /// For what does not start: the cause is removed by a person.
    const LONGEST: Duration = Duration::from_secs(5);

    fn first() -> Self {
        Backoff { started: Instant::now(), delay: Duration::ZERO }
    }

    fn due(&self) -> bool {
        self.started.elapsed() >= self.delay
    }

    fn left(&self) -> Duration {
        self.delay.saturating_sub(self.started.elapsed())
    }

    /// Notes that it ended: at once if it had lived a while, else later and later.
    fn ended(&mut self, longest: Duration) {
        let lived = self.started.elapsed() > Duration::from_secs(1);
        let next = if lived { Self::SHORTEST } else { (self.delay * 2).clamp(Self::SHORTEST, longest) };
        *self = Backoff { started: Instant::now(), delay: next };
    }
}

/// A trouble that was logged, so that it is not logged at every try.
#[derive(Default)]
struct Told(Option<(String, Instant)>);

impl Told {
    const AGAIN: Duration = Duration::from_secs(600);

    /// Whether to log it now.
    fn anew(&mut self, trouble: &str) -> bool {
        if self.0.as_ref().is_some_and(|(told, at)| told == trouble && at.elapsed() < Self::AGAIN) {
            return false;
        }
        self.0 = Some((trouble.to_owned(), Instant::now()));
        true
    }
}

struct Launcher {
    gateway: Option<(Child, Wanted)>,
    /// What the gateway that does not start was wanted like.
    refused: Option<Wanted>,
    gateway_told: Told,
    worker_told: Told,
    gateway_backoff: Backoff,
    runner_told: Told,
    slots_told: Told,
    workers: HashMap<u32, Backoff>,
    runners: HashMap<u32, Backoff>,
    /// When all of a database's runners were last seen busy.
    full_at: HashMap<u32, Instant>,
    /// Databases that nobody has looked into since the server started, or that found no slot; none at all until it is known
    /// which databases there are.
    unseen: Option<Vec<u32>>,
    /// When the last of them was given a slot, or was there first.
    seen_at: Instant,
}

/// The launcher's main function.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn helper_ai_launcher_main(_arg: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(
        SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM | SignalWakeFlags::SIGCHLD,
    );
    BackgroundWorker::connect_worker_to_spi(None, None);
    // SAFETY: a plain number.
    let me = unsafe { pg_sys::MyProcPid };
    shared::change(|state| state.launcher = me);
    let mut launcher = Launcher {
        gateway: None,
        refused: None,
        gateway_told: Told::default(),
        worker_told: Told::default(),
        runner_told: Told::default(),
        slots_told: Told::default(),
        gateway_backoff: Backoff::first(),
        workers: HashMap::new(),
        runners: HashMap::new(),
        full_at: HashMap::new(),
        unseen: None,
        seen_at: Instant::now(),
    };
    while !is_asked_to_end() {
        if BackgroundWorker::sighup_received() {
            // SAFETY: the server's own way to read its configuration again.
            unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
        }
        let next = launcher.round();
        wait::wait(None, Some(next));
        // `drop database` waits until every process has closed what it had open of it: that is done in here. A
        // termination is none of the interrupts, the handler only sets the flag above.
        wait::attend();
    }
    if let Some((mut child, _)) = launcher.gateway.take() {
        drop(child.stdin.take());
        let _ = child.kill();
        let _ = child.wait();
    }
    shared::change(|state| {
        state.launcher = 0;
        state.gateway = 0;
    });
    // Ending well would mean never to be started again; a server that stops starts nothing anyway.
    // SAFETY: the way in which every process of the server ends.
    unsafe { pg_sys::proc_exit(1) }
}

/// Whether SIGTERM has come: for good, however often one asks, unlike `BackgroundWorker::sigterm_received`, which forgets
/// it when it has said so.
fn is_asked_to_end() -> bool {
    // SAFETY: a flag that the signal handler sets.
    unsafe { (&raw const pg_sys::ShutdownRequestPending).read_volatile() != 0 }
}

impl Launcher {
    /// Does what is due and says when to look again.
    fn round(&mut self) -> Duration {
        let gateway = self.gateway_round();
        let workers = self.worker_round();
        gateway.min(workers)
    }

    fn gateway_round(&mut self) -> Duration {
        let settings = wanted();
        if let Some((child, running)) = &mut self.gateway {
            let changed = *running != settings;
            if changed {
                log!("helper_ai gateway is restarted with new settings");
                let _ = child.kill();
            }
            let ended = if changed { child.wait().map(Some) } else { child.try_wait() };
            let mut longest = Backoff::LONGEST;
            let mut problem = String::new();
            match ended {
                Ok(None) => return Duration::from_secs(10),
                Ok(Some(status)) if !changed => {
                    problem = format!("The gateway ended: {status}.");
                    if status.signal().is_some() {
                        longest = Backoff::KILLED;
                    }
                    if status.signal().is_some() || self.gateway_told.anew(&problem) {
                        log!("helper_ai gateway ended: {status}");
                    }
                }
                Ok(Some(_)) => self.gateway_backoff = Backoff::first(),
                Err(error) => log!("helper_ai gateway cannot be watched: {error}"),
            }
            self.gateway = None;
            if !changed {
                self.gateway_backoff.ended(longest);
                self.refused = Some(settings.clone());
            }
            shared::change(|state| {
                state.gateway = 0;
                state.gateway_problem = Note::new(&problem);
            });
        }
        if self.refused.as_ref().is_some_and(|refused| *refused != settings) {
            self.gateway_backoff = Backoff::first();
            self.refused = None;
        }
        if !self.gateway_backoff.due() {
            return self.gateway_backoff.left();
        }
        self.gateway_backoff.started = Instant::now();
        match start(&settings) {
            Ok(child) => {
                let pid = child.id() as i32;
                shared::change(|state| {
                    state.gateway = pid;
                    state.gateway_starts = state.gateway_starts.wrapping_add(1);
                });
                self.gateway = Some((child, settings));
                Duration::from_secs(10)
            }
            Err(error) => {
                let problem = format!("could not start helper_ai gateway \"{}\": {error}", settings.program.display());
                if self.gateway_told.anew(&problem) {
                    ereport!(
                        PgLogLevel::LOG,
                        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                        problem,
                        "Set helper_ai.gateway_path to the program, or install it next to the server's programs."
                    );
                }
                // Without the path, which is for administrators.
                let problem = format!("The program could not be started: {error}.");
                shared::change(|state| state.gateway_problem = Note::new(&problem));
                self.refused = Some(settings);
                self.gateway_backoff.ended(Backoff::LONGEST);
                self.gateway_backoff.left()
            }
        }
    }

    fn worker_round(&mut self) -> Duration {
        let mut next = self.see();
        let mut present = None;
        let slots = shared::read(|state| state.slots);
        for slot in slots.iter().filter(|slot| slot.database != 0) {
            next = next.min(self.keep(slot.database, &mut present));
        }
        next
    }

    /// Gives the databases that nobody has looked into their slots. One without the extension gives its slot back at once, so
    /// that any number of databases has its turn.
    fn see(&mut self) -> Duration {
        if self.unseen.is_none() {
            self.unseen = databases()
                .map(|all| all.into_iter().filter(|(_, template)| !template).map(|(database, _)| database).collect());
        }
        let Some(unseen) = &mut self.unseen else { return AGAIN };
        let before = unseen.len();
        shared::change(|state| {
            for database in std::mem::take(&mut state.turned_away) {
                if database != 0 && !unseen.contains(&database) {
                    unseen.push(database);
                }
            }
            while let Some(database) = unseen.last() {
                match state.slot_or_new(*database) {
                    Some(slot) => slot.wanted = true,
                    None => break,
                }
                unseen.pop();
            }
        });
        if unseen.is_empty() {
            return LATER;
        }
        if before == 0 || unseen.len() < before {
            self.seen_at = Instant::now();
        }
        if self.seen_at.elapsed() > LATER && self.slots_told.anew("no slot") {
            ereport!(
                PgLogLevel::LOG,
                PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                format!("helper_ai works in {} databases and in no more", shared::SLOTS),
                format!("Of the others {} wait. Drop the extension where it is not needed.", unseen.len())
            );
        }
        Duration::from_millis(500)
    }

    /// Starts what a database wants and has not. `present` are the databases that there are, once somebody had to know.
    fn keep(&mut self, database: u32, present: &mut Option<Vec<u32>>) -> Duration {
        let slot = self.bury(database);
        let worker = slot.wanted && slot.worker == 0;
        let most = settings::RUNNERS.get() as usize;
        let count = slot.regular().count();
        let runner = slot.runner_wanted && slot.regular().all(|runner| runner.busy) && (count < most || most == 0);
        // Nobody says that a statement has taken long: that is looked for, as long as they are all at something.
        let later = if self.watches(database, most) { HELD_LOOK } else { LATER };
        let reserve = slot.is_held(most) && slot.started().count() == count;
        if !worker && !runner && !reserve {
            return later;
        }
        if shared::is_session(slot.held_by) {
            // It wakes us when it is through.
            return AGAIN;
        }
        if present.is_none() {
            *present = databases().map(|all| all.into_iter().map(|(database, _)| database).collect());
        }
        let Some(present) = present else { return AGAIN };
        let gone = !present.contains(&database);
        let held_by = slot.held_by;
        shared::change(|state| {
            if let Some(slot) = state.slot(database) {
                if slot.held_by == held_by {
                    slot.held_by = 0;
                }
                if gone {
                    *slot = Slot::default();
                }
            }
        });
        if gone {
            self.workers.remove(&database);
            self.runners.remove(&database);
            self.full_at.remove(&database);
            return LATER;
        }
        let mut next = later;
        if worker {
            next = next.min(self.start_worker(database));
        }
        if runner || reserve {
            next = next.min(self.start_runner(database, most, reserve));
        }
        next
    }

    /// Whether it looks often whether all of a database's runners are held. The one that makes them full says so.
    fn watches(&mut self, database: u32, most: usize) -> bool {
        let now = Instant::now();
        let full_at = self.full_at.entry(database).or_insert(now);
        let watched = shared::change(|state| {
            let slot = state.slot(database)?;
            if slot.is_full(most) {
                *full_at = now;
                slot.is_watched = true;
            } else if full_at.elapsed() > WATCHED {
                slot.is_watched = false;
            }
            Some(slot.is_watched)
        });
        let watched = watched == Some(true);
        if !watched {
            self.full_at.remove(&database);
        }
        watched
    }

    /// Notes which of a database's processes ended without clearing their entry, by an error or a signal: they are started
    /// again, but not in a tight loop. Returns the slot as it is now.
    fn bury(&mut self, database: u32) -> Slot {
        let known = shared::change(|state| state.slot(database).copied()).unwrap_or_default();
        let dead = |pid: i32| pid != 0 && !shared::is_alive(pid);
        let worker = dead(known.worker);
        let runners: Vec<i32> = known.started().map(|runner| runner.pid).filter(|pid| dead(*pid)).collect();
        if !worker && runners.is_empty() {
            return known;
        }
        if worker {
            self.workers.entry(database).or_insert_with(Backoff::first).ended(Backoff::LONGEST);
        }
        if !runners.is_empty() {
            self.runners.entry(database).or_insert_with(Backoff::first).ended(Backoff::LONGEST);
        }
        let (slot, worker) = shared::change(|state| {
            let Some(slot) = state.slot(database) else { return (Slot::default(), 0) };
            if worker && slot.worker == known.worker {
                slot.worker = 0;
            }
            for pid in &runners {
                if let Some(runner) = slot.runner(*pid) {
                    *runner = Default::default();
                }
                slot.runner_lost = true;
                slot.runner_wanted = true;
            }
            slot.wanted = true;
            (*slot, slot.worker)
        });
        // It gives back what a runner had claimed.
        shared::wake_process(worker);
        slot
    }

    fn start_worker(&mut self, database: u32) -> Duration {
        let backoff = self.workers.entry(database).or_insert_with(Backoff::first);
        if !backoff.due() {
            return backoff.left();
        }
        backoff.started = Instant::now();
        match launch("worker", c"helper_ai_worker_main", database) {
            Start::Started(pid) => shared::change(|state| {
                if let Some(slot) = state.slot(database)
                    && slot.worker == 0
                    && slot.wanted
                    && shared::is_alive(pid)
                {
                    slot.worker = pid;
                }
            }),
            Start::Ended => {
                backoff.ended(Backoff::LONGEST);
                return backoff.left();
            }
            Start::NoRoom => {
                backoff.ended(Backoff::LONGEST);
                let left = backoff.left();
                if self.worker_told.anew("no room") {
                    ereport!(
                        PgLogLevel::LOG,
                        PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
                        "could not start a helper_ai worker",
                        "Raise max_worker_processes: one is needed for the launcher and one for each database with helper_ai, besides its runners."
                    );
                }
                return left;
            }
        }
        LATER
    }

    /// Starts one more runner.
    fn start_runner(&mut self, database: u32, most: usize, is_reserve: bool) -> Duration {
        if most == 0 && self.runner_told.anew("none") {
            ereport!(
                PgLogLevel::LOG,
                PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                "helper_ai runs no queued calls",
                "helper_ai.runners is 0: queued calls of SQL functions wait in all databases until it is raised."
            );
        }
        if most == 0 {
            return LATER;
        }
        let backoff = self.runners.entry(database).or_insert_with(Backoff::first);
        if !backoff.due() {
            return backoff.left();
        }
        backoff.started = Instant::now();
        match launch("runner", c"helper_ai_runner_main", database) {
            // One that has entered itself is as it says, and one that is gone has left.
            Start::Started(pid) => shared::change(|state| {
                if let Some(slot) = state.slot(database)
                    && shared::is_alive(pid)
                    && let Some(runner) = slot.enter(pid)
                    && runner.id == [0; 16]
                {
                    runner.is_reserve = is_reserve;
                }
            }),
            Start::Ended => {
                backoff.ended(Backoff::LONGEST);
                return backoff.left();
            }
            Start::NoRoom => {
                backoff.ended(Backoff::LONGEST);
                let left = backoff.left();
                if self.runner_told.anew("no room") {
                    ereport!(
                        PgLogLevel::LOG,
                        PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
                        "could not start a helper_ai runner",
                        "Raise max_worker_processes: at most helper_ai.runners and one are needed for each database in which calls are queued, besides the launcher and the workers. Until then queued calls wait for those that run."
                    );
                }
                return left;
            }
        }
        LATER
    }
}

/// What became of the start of a process.
enum Start {
    Started(i32),
    /// It has ended before anybody looked, or the server stops.
    Ended,
    NoRoom,
}

/// Starts a process of a database.
fn launch(kind: &str, function: &CStr, database: u32) -> Start {
    let started = BackgroundWorkerBuilder::new(&format!("helper_ai {kind} for database {database}"))
        .set_type(&format!("helper_ai {kind}"))
        .set_library("helper_ai")
        .set_function(&function.to_string_lossy())
        .set_argument(Some(pg_sys::Datum::from(database)))
        .set_notify_pid(unsafe { pg_sys::MyProcPid })
        .set_restart_time(None)
        .enable_spi_access()
        .load_dynamic();
    let Ok(started) = started else { return Start::NoRoom };
    let pid = wait::uncancelled(|| started.wait_for_startup());
    // That wait takes whatever came meanwhile from the one between two rounds.
    // SAFETY: our own latch.
    unsafe { pg_sys::SetLatch(pg_sys::MyLatch) };
    pid.map_or(Start::Ended, Start::Started)
}

/// Databases that can be connected to, and whether each is a template; `None` where somebody has locked the catalog, for
/// which the launcher cannot wait as it has more to look after.
fn databases() -> Option<Vec<(u32, bool)>> {
    // SAFETY: the server's own sequence for a transaction of a background worker.
    wait::uncancelled(|| unsafe {
        pg_sys::StartTransactionCommand();
        let is_free = pg_sys::ConditionalLockRelationOid(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let databases = is_free.then(scan_databases);
        pg_sys::CommitTransactionCommand();
        databases
    })
}

/// The same inside a transaction.
fn scan_databases() -> Vec<(u32, bool)> {
    // SAFETY: a scan of a shared catalog; the tuples are read before the scan ends.
    unsafe {
        let mut databases = Vec::new();
        pg_sys::GetTransactionSnapshot();
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::table_beginscan_catalog(relation, 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_database>();
            // A limit of -2 marks one whose `drop database` was interrupted.
            if (*form).datallowconn && (*form).datconnlimit != -2 {
                databases.push(((*form).oid.to_u32(), (*form).datistemplate));
            }
        }
        pg_sys::heap_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
        databases
    }
}
