//! What is done when a transaction ends: worker or runner is woken when something was enqueued, and not before; a database
//! that was held for a statement is given back.

use crate::pg::{calling_off, shared};
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};

thread_local! {
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    static PENDING: Cell<bool> = const { Cell::new(false) };
    /// The same for a runner.
    static RUNNER: Cell<bool> = const { Cell::new(false) };
    /// Runs and calls that nobody wants any more once this transaction has committed.
    static CALLED_OFF: RefCell<Vec<[u8; 16]>> = const { RefCell::new(Vec::new()) };
    /// Databases that no worker may enter until the transaction ends.
    static HELD: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    /// Databases that this transaction makes or alters.
    static MADE: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

pub fn this_database() -> u32 {
    // SAFETY: set once when the process connects.
    unsafe { pg_sys::MyDatabaseId.to_u32() }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_end(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    if event == pg_sys::XactEvent::XACT_EVENT_COMMIT {
        CALLED_OFF.take().into_iter().for_each(calling_off::now);
        // Somebody may wait for what it runs.
        if RUNNER.replace(false) {
            shared::want_runner(this_database());
        }
        if PENDING.replace(false) {
            worker_now();
        }
        MADE.take().into_iter().for_each(worker_in);
        release();
    } else if event == pg_sys::XactEvent::XACT_EVENT_ABORT || event == pg_sys::XactEvent::XACT_EVENT_PREPARE {
        // A prepared transaction may be committed by any session later: the worker's own rounds find its work.
        CALLED_OFF.take();
        PENDING.set(false);
        RUNNER.set(false);
        MADE.take();
        release();
    }
}

/// Lets workers into the databases that were held. Whether one is still there, and has the extension, is found out then.
fn release() {
    let held = HELD.take();
    if held.is_empty() {
        return;
    }
    // SAFETY: a plain number.
    let me = unsafe { pg_sys::MyProcPid };
    let launcher = shared::change(|state| {
        for database in held {
            if let Some(slot) = state.slot(database) {
                // Somebody else may have come to need it meanwhile.
                if slot.held_by == me {
                    slot.held_by = 0;
                }
                slot.wanted = true;
            }
        }
        state.launcher
    });
    shared::wake_process(launcher);
}

fn listen() {
    if !REGISTERED.replace(true) {
        // SAFETY: the callback is a static function and stays registered for the life of the process.
        unsafe { pg_sys::RegisterXactCallback(Some(at_end), std::ptr::null_mut()) };
    }
}

/// At commit: wakes this database's worker, or the launcher where it has none yet.
pub fn worker_at_commit() {
    if shared::preloaded() {
        listen();
        PENDING.set(true);
    }
}

/// At commit: wakes a runner of this database, or has the launcher start one.
pub fn runner_at_commit() {
    if shared::preloaded() {
        listen();
        RUNNER.set(true);
    }
}

/// At commit: breaks off what a runner does for a run or a call.
pub fn call_off_at_commit(what: [u8; 16]) {
    listen();
    CALLED_OFF.with_borrow_mut(|called_off| called_off.push(what));
}

/// Keeps worker and runners out of a database until this transaction ends, however it ends. Returns those that are in it.
pub fn hold(database: u32) -> Vec<i32> {
    listen();
    // SAFETY: a plain number.
    let me = unsafe { pg_sys::MyProcPid };
    HELD.with_borrow_mut(|held| held.push(database));
    shared::change(|state| {
        let Some(slot) = state.slot(database) else { return Vec::new() };
        slot.held_by = me;
        let runners = slot.started().map(|runner| runner.pid);
        runners.chain(std::iter::once(slot.worker)).filter(|pid| *pid != 0).collect()
    })
}

/// At commit: a worker looks into a database that this transaction makes or alters.
pub fn made_at_commit(database: u32) {
    listen();
    MADE.with_borrow_mut(|made| made.push(database));
}

/// Wakes this database's worker, or asks the launcher for one.
pub fn worker_now() {
    worker_in(this_database());
}

fn worker_in(database: u32) {
    let (worker, launcher) = shared::change(|state| {
        let launcher = state.launcher;
        let worker = state.slot_or_new(database).map_or(0, |slot| {
            slot.wanted = true;
            slot.worker
        });
        (worker, launcher)
    });
    // The launcher may not have been told of one that is gone.
    shared::wake_process(if shared::is_session(worker) { worker } else { launcher });
}

/// Trigger on the queue.
#[pg_trigger(sql = false)]
fn wake_worker<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, PgHeapTupleError> {
    worker_at_commit();
    Ok(trigger.new())
}

/// Trigger on whatever runners take their work from.
#[pg_trigger(sql = false)]
fn wake_runner<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, PgHeapTupleError> {
    runner_at_commit();
    Ok(trigger.new())
}

/// Called by the extension's script: this database has the extension from this commit on.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn start_worker() {
    worker_at_commit();
}
