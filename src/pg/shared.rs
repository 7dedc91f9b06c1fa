//! What the processes tell each other in shared memory: which databases have a worker, and who is the launcher.

use crate::core::error::{Error, Result};
use pgrx::prelude::*;
use pgrx::{PGRXSharedMemory, PgLwLock, pg_shmem_init};
use std::sync::atomic::{AtomicBool, Ordering};

/// Databases that can have a worker at once.
pub const SLOTS: usize = 64;

static STATE: PgLwLock<Shared> = unsafe { PgLwLock::new(c"helper_ai") };
static PRELOADED: AtomicBool = AtomicBool::new(false);

/// A database and its worker.
#[derive(Clone, Copy, Default)]
pub struct Slot {
    /// Database, or 0 for a free slot.
    pub database: u32,
    /// Process id of its worker, or 0 while none runs.
    pub worker: i32,
    /// Somebody wants the worker started, or wants it to look whether it is still needed.
    pub wanted: bool,
    /// Process that is about to drop, rename or copy the database; no worker meanwhile.
    pub held_by: i32,
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
}

impl Default for Shared {
    fn default() -> Self {
        Shared {
            launcher: 0,
            gateway: 0,
            gateway_starts: 0,
            gateway_problem: Note::default(),
            slots: [Slot::default(); SLOTS],
        }
    }
}

// SAFETY: plain numbers, no pointers.
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

    /// The slot of a database, taken if it has none; `None` where all are taken.
    pub fn slot_or_new(&mut self, database: u32) -> Option<&mut Slot> {
        let at = self
            .slots
            .iter()
            .position(|slot| slot.database == database)
            .or_else(|| self.slots.iter().position(|slot| slot.database == 0))?;
        let slot = &mut self.slots[at];
        slot.database = database;
        Some(slot)
    }
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

/// Whether a session is there that holds a database. Nobody else's process can be taken for it.
pub fn is_session(pid: i32) -> bool {
    // SAFETY: a look into the server's own table.
    pid != 0 && unsafe { !pg_sys::BackendPidGetProc(pid).is_null() }
}

/// Asks a process of this server to end.
pub fn terminate(pid: i32) {
    // SAFETY: the caller has the process id from a slot, where only our own workers enter themselves.
    unsafe { kill(pid, pgrx::pg_sys::SIGTERM as i32) };
}
