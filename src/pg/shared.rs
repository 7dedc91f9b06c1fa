//! What the processes tell each other in shared memory: which databases have a worker and runners, and who is the launcher.

use crate::core::error::{Error, Result};
use crate::pg::settings;
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgLwLock, pg_shmem_init};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Databases that can have a worker at once.
pub const SLOTS: usize = 64;

static STATE: PgLwLock<Shared> = unsafe { PgLwLock::new(c"helper_ai") };
static PRELOADED: AtomicBool = AtomicBool::new(false);

/// Runners that a database can have at once, but for the reserve.
pub const RUNNERS: usize = 8;

/// A runner is held when it is at one statement for longer than this.
const LONG: Duration = Duration::from_millis(500);

/// A process that runs what callers ask for in SQL.
#[derive(Clone, Copy, Default)]
pub struct Runner {
    /// Its process id, or 0.
    pub pid: i32,
    /// By which its leases are known: unlike a process id it never comes again. Zeros while it starts.
    pub id: [u8; 16],
    /// It does something, and will look for more when that is done.
    pub busy: bool,
    /// The run or call that it is at; zeros while it is at none.
    pub at: [u8; 16],
    /// Whose that is.
    pub workspace: [u8; 16],
    /// Since when it does something for that which callers wrote, and which a signal may break off.
    pub open_since: Option<Instant>,
    /// Nobody wants that any more.
    pub is_called_off: bool,
    /// It is one more than there may be, while all the others are held, and for those alone who hold none.
    pub is_reserve: bool,
}

impl Runner {
    /// Whether what somebody wrote keeps it from everybody else.
    pub fn is_held(&self) -> bool {
        self.open_since.is_some_and(|since| since.elapsed() > LONG)
    }
}

/// A database, its worker and its runners.
#[derive(Clone, Copy, Default)]
pub struct Slot {
    /// Database, or 0 for a free slot.
    pub database: u32,
    /// Process id of its worker, or 0 while none runs.
    pub worker: i32,
    /// Somebody wants the worker started, or wants it to look whether it is still needed.
    pub wanted: bool,
    /// Process that is about to drop, rename or copy the database; no worker and no runner meanwhile.
    pub held_by: i32,
    /// Its runners.
    pub runners: [Runner; RUNNERS + 1],
    /// There may be work for a runner that none has looked for yet.
    pub runner_wanted: bool,
    /// The launcher looks whether all its runners are held.
    pub is_watched: bool,
    /// A runner ended in the middle of something; the worker gives its leases back.
    pub runner_lost: bool,
}

impl Slot {
    /// Its runners that were started and are not known to have ended.
    pub fn started(&self) -> impl Iterator<Item = &Runner> {
        self.runners.iter().filter(|runner| runner.pid != 0)
    }

    /// Those of them that count as one of `helper_ai.runners`.
    pub fn regular(&self) -> impl Iterator<Item = &Runner> {
        self.started().filter(|runner| !runner.is_reserve)
    }

    /// Whether all runners that there may be are held, so that nobody else is served.
    pub fn is_held(&self, most: usize) -> bool {
        most > 0 && self.regular().count() >= most && self.regular().all(Runner::is_held)
    }

    /// Whether all runners that there may be are at something, so that they may come to be held.
    pub fn is_full(&self, most: usize) -> bool {
        most > 0 && self.regular().count() >= most && self.regular().all(|runner| runner.busy)
    }

    /// The entry of a runner.
    pub fn runner(&mut self, pid: i32) -> Option<&mut Runner> {
        self.runners.iter_mut().find(|runner| runner.pid == pid)
    }

    /// Enters a runner, if it is not there yet; `None` where there is no room.
    pub fn enter(&mut self, pid: i32) -> Option<&mut Runner> {
        let at = self
            .runners
            .iter()
            .position(|runner| runner.pid == pid)
            .or_else(|| self.runners.iter().position(|runner| runner.pid == 0))?;
        let runner = &mut self.runners[at];
        runner.pid = pid;
        Some(runner)
    }
}

/// A short text.
#[derive(Clone, Copy)]
pub struct Note {
    length: usize,
    text: [u8; 240],
}

impl Default for Note {
    fn default() -> Self {
        Note { length: 0, text: [0; 240] }
    }
}

impl Note {
    /// A text, cut where it does not fit.
    pub fn new(text: &str) -> Self {
        let mut note = Note::default();
        let mut length = text.len().min(note.text.len());
        while !text.is_char_boundary(length) {
            length -= 1;
        }
        note.text[..length].copy_from_slice(&text.as_bytes()[..length]);
        note.length = length;
        note
    }

    /// The text; empty where there is none.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.text[..self.length]).unwrap_or_default()
    }
}

/// All that is shared.
#[derive(Clone, Copy)]
pub struct Shared {
    /// Process id of the launcher, or 0.
    pub launcher: i32,
    /// Process id of the gateway, or 0.
    pub gateway: i32,
    /// Times that the gateway was started.
    pub gateway_starts: u32,
    /// Why the gateway is not there, as a sentence.
    pub gateway_problem: Note,
    /// A slot for each database that has, or may have, the extension.
    pub slots: [Slot; SLOTS],
    /// Databases for which there was no slot, or 0; the launcher finds them one.
    pub turned_away: [u32; 8],
}

impl Default for Shared {
    fn default() -> Self {
        Shared {
            launcher: 0,
            gateway: 0,
            gateway_starts: 0,
            gateway_problem: Note::default(),
            slots: [Slot::default(); SLOTS],
            turned_away: [0; 8],
        }
    }
}

// SAFETY: plain numbers, no pointers. An `Instant` is the monotonic clock's, which is the same for all processes.
unsafe impl PGRXSharedMemory for Shared {}

/// Asks for the shared memory; only while the server preloads libraries.
pub fn request() {
    pg_shmem_init!(STATE);
    PRELOADED.store(true, Ordering::Relaxed);
}

/// Whether the library was preloaded.
pub fn preloaded() -> bool {
    PRELOADED.load(Ordering::Relaxed)
}

/// The error of a call that needs a process where none can be.
pub fn check_preloaded() -> Result<()> {
    if preloaded() {
        return Ok(());
    }
    Err(Error::not_ready("helper_ai is not preloaded")
        .hint("Add helper_ai to shared_preload_libraries in postgresql.conf and restart the server."))
}

/// Reads the state.
pub fn read<T>(look: impl FnOnce(&Shared) -> T) -> T {
    look(&STATE.share())
}

/// Changes the state.
pub fn change<T>(alter: impl FnOnce(&mut Shared) -> T) -> T {
    alter(&mut STATE.exclusive())
}

impl Shared {
    /// The slot of a database.
    pub fn slot(&mut self, database: u32) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.database == database)
    }

    /// The slot of a database, taken if it has none; `None` where all are taken, which the launcher is to be woken for.
    pub fn slot_or_new(&mut self, database: u32) -> Option<&mut Slot> {
        let at = self
            .slots
            .iter()
            .position(|slot| slot.database == database)
            .or_else(|| self.slots.iter().position(|slot| slot.database == 0));
        let Some(at) = at else {
            self.turn_away(database);
            return None;
        };
        let slot = &mut self.slots[at];
        slot.database = database;
        Some(slot)
    }

    /// Notes that there is no slot for a database. Should more have come than there is room for, they come again.
    fn turn_away(&mut self, database: u32) {
        if !self.turned_away.contains(&database)
            && let Some(free) = self.turned_away.iter_mut().find(|noted| **noted == 0)
        {
            *free = database;
        }
    }
}

/// Says that there is work for a database's runners, which is committed: wakes one that is idle, or else the launcher,
/// which starts one more where there may be more. Those that are busy look for it when they are done.
pub fn want_runner(database: u32) {
    let most = settings::RUNNERS.get() as usize;
    let pid = change(|state| {
        let launcher = state.launcher;
        let Some(slot) = state.slot_or_new(database) else { return launcher };
        slot.runner_wanted = true;
        let count = slot.regular().count();
        match slot.regular().find(|runner| !runner.busy) {
            Some(idle) if is_session(idle.pid) => idle.pid,
            // With none at all the launcher says why, and one that is gone it may not have been told of.
            None if count > 0 && count >= most && slot.regular().all(|runner| is_session(runner.pid)) => 0,
            _ => launcher,
        }
    });
    wake_process(pid);
}

/// Whether somebody wants a database's worker to look.
pub fn is_wanted(database: u32) -> bool {
    read(|state| state.slots.iter().any(|slot| slot.database == database && slot.wanted))
}

/// Has the launcher look after this process, which has left its slot. The launcher that started it is told by the postmaster,
/// once there is room for another one; only one that came later knows nothing of it.
pub fn say_gone() {
    // SAFETY: set for the life of a background worker.
    let told = unsafe { (*pg_sys::MyBgworkerEntry).bgw_notify_pid };
    let launcher = read(|state| state.launcher);
    if launcher != told {
        wake_process(launcher);
    }
}

/// Ids of a database's runners that are there. Whoever asks which leases are nobody's reads the leases first.
pub fn runner_ids(database: u32) -> Vec<[u8; 16]> {
    let slot = read(|state| state.slots.iter().find(|slot| slot.database == database).copied());
    let runners = slot.iter().flat_map(Slot::started).filter(|runner| runner.id != [0; 16] && is_alive(runner.pid));
    runners.map(|runner| runner.id).collect()
}

/// Sets the latch of a process, if it is still there.
pub fn wake_process(pid: i32) {
    if pid == 0 {
        return;
    }
    // SAFETY: the entry stays valid while the lock is held, which BackendPidGetProcWithLock needs.
    unsafe {
        let proc = pg_sys::BackendPidGetProc(pid);
        if !proc.is_null() {
            pg_sys::SetLatch(&raw mut (*proc).procLatch);
        }
    }
}

unsafe extern "C" {
    fn kill(pid: i32, signal: i32) -> i32;
}

/// Whether a process is there. The server's own table would not know one that has only just been forked.
pub fn is_alive(pid: i32) -> bool {
    // SAFETY: signal 0 is only a look.
    pid != 0 && unsafe { kill(pid, 0) } == 0
}

/// Whether a process is there that is connected to the server. Nobody else's process can be taken for it.
pub fn is_session(pid: i32) -> bool {
    // SAFETY: a look into the server's own table.
    pid != 0 && unsafe { !pg_sys::BackendPidGetProc(pid).is_null() }
}

/// Breaks off what a process of this server does, as `pg_cancel_backend` would.
pub fn cancel(pid: i32) {
    if is_session(pid) {
        // SAFETY: the process is one of this server's.
        unsafe { kill(pid, pg_sys::SIGINT as i32) };
    }
}

/// Asks a process of this server to end.
pub fn terminate(pid: i32) {
    // SAFETY: the caller has the process id from a slot, where only our own workers enter themselves.
    unsafe { kill(pid, pgrx::pg_sys::SIGTERM as i32) };
}
