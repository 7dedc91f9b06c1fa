//! Waiting: for the latch, a socket, the postmaster's end and the client's departure, all at once and never for one alone.

use pgrx::prelude::*;
use std::os::fd::RawFd;
use std::time::Duration;

/// Why a wait ended.
#[derive(Clone, Copy, Default)]
pub struct Woken {
    /// The socket can be read, written, or was closed.
    pub socket: bool,
}

struct EventSet(*mut pg_sys::WaitEventSet);

impl Drop for EventSet {
    fn drop(&mut self) {
        // SAFETY: made by CreateWaitEventSet and freed once; on the error path too, or its descriptor would leak.
        unsafe { pg_sys::FreeWaitEventSet(self.0) }
    }
}

#[cfg(any(feature = "pg15", feature = "pg16"))]
unsafe fn create(events: i32) -> *mut pg_sys::WaitEventSet {
    unsafe { pg_sys::CreateWaitEventSet(pg_sys::CurrentMemoryContext, events) }
}

#[cfg(any(feature = "pg17", feature = "pg18"))]
unsafe fn create(events: i32) -> *mut pg_sys::WaitEventSet {
    unsafe { pg_sys::CreateWaitEventSet(pg_sys::CurrentResourceOwner, events) }
}

/// Waits until the latch is set, the socket is ready, or the time is over; no time means for ever. Exits when the
/// postmaster is gone. A client that went away is noticed at once, not when something is next sent to it.
///
/// Interrupts are not looked at: a caller that may be interrupted calls [`interruptible`].
pub fn wait(socket: Option<(RawFd, bool)>, time: Option<Duration>) -> Woken {
    const CLIENT: usize = 7;
    const SOCKET: usize = 8;
    let mut woken = Woken::default();
    // SAFETY: the set lives for this function, all pointers given to it live as long as the process, and the events
    // are read only as far as WaitEventSetWait says.
    unsafe {
        let set = EventSet(create(4));
        pg_sys::AddWaitEventToSet(
            set.0,
            pg_sys::WL_LATCH_SET,
            pg_sys::PGINVALID_SOCKET,
            pg_sys::MyLatch,
            std::ptr::null_mut(),
        );
        pg_sys::AddWaitEventToSet(
            set.0,
            pg_sys::WL_EXIT_ON_PM_DEATH,
            pg_sys::PGINVALID_SOCKET,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        );
        if let Some((fd, write)) = socket {
            let events = pg_sys::WL_SOCKET_READABLE | if write { pg_sys::WL_SOCKET_WRITEABLE } else { 0 };
            pg_sys::AddWaitEventToSet(set.0, events, fd, std::ptr::null_mut(), SOCKET as *mut _);
        }
        if !pg_sys::MyProcPort.is_null() && pg_sys::WaitEventSetCanReportClosed() {
            pg_sys::AddWaitEventToSet(
                set.0,
                pg_sys::WL_SOCKET_CLOSED,
                // The bindings know the client's `Port` by name only; its first member is the socket (libpq-be.h).
                *pg_sys::MyProcPort.cast::<pg_sys::pgsocket>(),
                std::ptr::null_mut(),
                CLIENT as *mut _,
            );
        }
        let mut events: [pg_sys::WaitEvent; 4] = std::mem::zeroed();
        let timeout = time.map_or(-1, |time| time.as_millis().min(i32::MAX as u128) as std::ffi::c_long);
        let count = pg_sys::WaitEventSetWait(set.0, timeout, events.as_mut_ptr(), 4, pg_sys::PG_WAIT_EXTENSION);
        for event in &events[..count.max(0) as usize] {
            match event.user_data as usize {
                SOCKET => woken.socket = true,
                CLIENT => {
                    // What the server's own check does; the next look at interrupts ends the session.
                    (&raw mut pg_sys::ClientConnectionLost).write_volatile(1);
                    (&raw mut pg_sys::InterruptPending).write_volatile(1);
                }
                _ => pg_sys::ResetLatch(pg_sys::MyLatch),
            }
        }
    }
    woken
}

/// Does something while a background process is in no transaction, so that there is nothing that a cancel could end but the
/// process. One that comes before is forgotten; one that comes meanwhile is an error of the next transaction at most.
pub fn uncancelled<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: a flag and a counter of this process. An error of the server's sets the counter back.
    unsafe {
        (&raw mut pg_sys::QueryCancelPending).write_volatile(0);
        pg_sys::QueryCancelHoldoffCount += 1;
        let done = work();
        pg_sys::QueryCancelHoldoffCount -= 1;
        done
    }
}

/// Handles barriers and invalidations between two transactions of a background process. A termination that is one of the
/// interrupts raises here.
pub fn attend() {
    uncancelled(|| {
        pgrx::check_for_interrupts!();
    });
}

/// Waits, then honours a cancel, a timeout, a termination or the client's departure by raising it.
pub fn interruptible(socket: Option<(RawFd, bool)>, time: Option<Duration>) -> Woken {
    pgrx::check_for_interrupts!();
    let woken = wait(socket, time);
    pgrx::check_for_interrupts!();
    woken
}
