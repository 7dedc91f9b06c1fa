//! Waking the worker when a transaction that enqueued something commits, and not before.

use crate::pg::shared;
use pgrx::prelude::*;
use std::cell::Cell;

thread_local! {
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    static PENDING: Cell<bool> = const { Cell::new(false) };
}

fn this_database() -> u32 {
    // SAFETY: set once when the process connects.
    unsafe { pg_sys::MyDatabaseId.to_u32() }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_end(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    if event == pg_sys::XactEvent::XACT_EVENT_COMMIT {
        if PENDING.replace(false) {
            worker_now();
        }
    } else if event == pg_sys::XactEvent::XACT_EVENT_ABORT || event == pg_sys::XactEvent::XACT_EVENT_PREPARE {
        // A prepared transaction may be committed by any session later: the worker's own rounds find its work.
        PENDING.set(false);
    }
}

/// At commit: wakes this database's worker, or the launcher where it has none yet.
pub fn worker_at_commit() {
    if !shared::preloaded() {
        return;
    }
    if !REGISTERED.replace(true) {
        // SAFETY: the callback is a static function and stays registered for the life of the process.
        unsafe { pg_sys::RegisterXactCallback(Some(at_end), std::ptr::null_mut()) };
    }
    PENDING.set(true);
}

/// Wakes this database's worker, or asks the launcher for one.
pub fn worker_now() {
    let database = this_database();
    let (worker, launcher) = shared::change(|state| {
        let launcher = state.launcher;
        let worker = state.slot_or_new(database).map_or(0, |slot| {
            slot.wanted = true;
            slot.worker
        });
        (worker, launcher)
    });
    shared::wake_process(if worker == 0 { launcher } else { worker });
}

/// Trigger on the queue.
#[pg_trigger(sql = false)]
fn wake_worker<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, PgHeapTupleError> {
    worker_at_commit();
    Ok(trigger.new())
}

/// Called by the extension's script: this database has the extension from this commit on.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn start_worker() {
    worker_at_commit();
}
