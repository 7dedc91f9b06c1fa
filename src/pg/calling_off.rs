//! Calling off what a runner is at: who cancels a run or a call does not wait until the statement in it has ended.
//!
//! A runner says in shared memory which run or call it is at. A signal breaks off what it does only while that is something
//! that callers wrote; whatever comes before is heard when that begins. What was done is taken back, as after any other error.

use crate::pg::report::Reported;
use crate::pg::{shared, wake};
use pgrx::Uuid;
use pgrx::prelude::*;
use std::cell::Cell;
use std::time::Instant;

thread_local! {
    /// This process is at a run or a call.
    static IS_AT: Cell<bool> = const { Cell::new(false) };
    static WAS_CALLED_OFF: Cell<bool> = const { Cell::new(false) };
}

/// While it is there, this runner is at a run or a call, which can be called off.
pub struct At(());

/// Says which run or call is gone on with, and whose it is.
pub fn at(workspace: Uuid, what: Uuid) -> At {
    with_own_entry(|entry| {
        entry.at = *what.as_bytes();
        entry.workspace = *workspace.as_bytes();
        entry.open_since = None;
        entry.is_called_off = false;
    });
    IS_AT.set(true);
    WAS_CALLED_OFF.set(false);
    At(())
}

impl Drop for At {
    fn drop(&mut self) {
        IS_AT.set(false);
        with_own_entry(|entry| entry.at = [0; 16]);
    }
}

/// Whether nobody wants any more what this runner is at.
pub fn is_called_off() -> bool {
    with_own_entry(|entry| entry.is_called_off) == Some(true)
}

/// Notes that something was broken off and taken back.
pub fn note() {
    WAS_CALLED_OFF.set(true);
}

/// Whether something under the last [`at`] was broken off, as nobody wants it any more.
pub fn was_called_off() -> bool {
    WAS_CALLED_OFF.get()
}

/// While it is there, a signal may end what this process does.
pub struct Open {
    is_open: bool,
}

impl Open {
    /// Lets what follows be broken off, where it belongs to a run or a call; what is tried inside of it is a part of it.
    pub fn enter() -> Self {
        let is_open = IS_AT.replace(false);
        if is_open {
            let is_called_off = with_own_entry(|entry| {
                entry.open_since = Some(Instant::now());
                entry.is_called_off
            });
            if is_called_off == Some(true) {
                // SAFETY: what the server's own handler of a cancel does.
                unsafe {
                    (&raw mut pg_sys::QueryCancelPending).write_volatile(1);
                    (&raw mut pg_sys::InterruptPending).write_volatile(1);
                }
            }
        }
        Open { is_open }
    }

    /// Ends it; says whether somebody has called it off, be it too late.
    pub fn close(mut self) -> bool {
        self.end()
    }

    fn end(&mut self) -> bool {
        if !std::mem::take(&mut self.is_open) {
            return false;
        }
        IS_AT.set(true);
        let is_called_off = with_own_entry(|entry| {
            entry.open_since = None;
            entry.is_called_off
        });
        if is_called_off != Some(true) {
            return false;
        }
        // SAFETY: plain flags. It may have come too late to be heard, and is not meant for what follows; a signal that is
        // still on its way arrives at the latest when a call of the system returns.
        unsafe {
            shared::is_alive(pg_sys::MyProcPid);
            (&raw mut pg_sys::QueryCancelPending).write_volatile(0);
        }
        true
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.end();
    }
}

fn with_own_entry<T>(change: impl FnOnce(&mut shared::Runner) -> T) -> Option<T> {
    // SAFETY: a plain number.
    let pid = unsafe { pg_sys::MyProcPid };
    shared::change(|state| state.slot(wake::this_database())?.runner(pid).map(change))
}

/// Breaks off what a runner of this database does for a run or a call, if one does.
pub fn now(what: [u8; 16]) {
    shared::change(|state| {
        let Some(slot) = state.slot(wake::this_database()) else { return };
        if let Some(runner) = slot.runners.iter_mut().find(|runner| runner.pid != 0 && runner.at == what) {
            runner.is_called_off = true;
            if runner.open_since.is_some() {
                // Under the lock, which the runner takes before it does anything else.
                shared::cancel(runner.pid);
            }
        }
    });
}

/// `helper._call_off`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn call_off(what: Option<Uuid>, at_commit: Option<bool>) -> Reported<()> {
    let Some(what) = what.map(|what| *what.as_bytes()).filter(|what| *what != [0; 16]) else { return Ok(()) };
    match at_commit {
        _ if !shared::preloaded() => {}
        Some(true) => wake::call_off_at_commit(what),
        _ => now(what),
    }
    Ok(())
}
