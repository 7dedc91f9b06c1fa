//! Something tried: in a subtransaction, so that an error of it is data and what it did before can be taken back.

use crate::core::error::{Error, Result};
use crate::pg::calling_off::{self, Open};
use crate::pg::report::Notes;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

/// Why something did not work, as it is told to callers and models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub sqlstate: String,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl Fault {
    /// As tables show it.
    pub fn facts(&self) -> Value {
        json!({ "sqlstate": self.sqlstate, "message": self.message, "detail": self.detail, "hint": self.hint })
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Fault { sqlstate: error.kind.sqlstate().into(), message: error.message, detail: error.detail, hint: error.hint }
    }
}

/// What something came to, and whether it is to stay.
pub struct Done<T> {
    pub value: T,
    pub keep: bool,
}

enum Caught {
    Ours(Error),
    Postgres(CaughtError),
}

/// Where the subtransaction is left to.
struct Place {
    memory: pg_sys::MemoryContext,
    owner: pg_sys::ResourceOwner,
}

impl Place {
    fn enter() -> Place {
        // SAFETY: what is current is kept before the subtransaction makes its own, as PL/pgSQL does.
        unsafe {
            let place = Place { memory: pg_sys::CurrentMemoryContext, owner: pg_sys::CurrentResourceOwner };
            pg_sys::BeginInternalSubTransaction(std::ptr::null());
            pg_sys::MemoryContextSwitchTo(place.memory);
            place
        }
    }

    fn leave(self, keep: bool) {
        // SAFETY: the subtransaction that `enter` began is the innermost one: whatever was begun inside has ended.
        unsafe {
            if keep {
                pg_sys::ReleaseCurrentSubTransaction();
            } else {
                pg_sys::RollbackAndReleaseCurrentSubTransaction();
            }
            pg_sys::MemoryContextSwitchTo(self.memory);
            pg_sys::CurrentResourceOwner = self.owner;
        }
    }
}

/// Tries something, in so much time. A cancel of the statement, a conflict that the whole transaction has to be repeated
/// for and the server's end go on as errors; any other error is returned, and all that was done is taken back; also where
/// somebody has called it off.
pub fn attempt<T>(time: Option<Duration>, work: impl FnOnce() -> Result<Done<T>>) -> std::result::Result<T, Fault> {
    let place = Place::enter();
    let codes = Codes::listen();
    let open = Open::enter();
    let timer = Timer::start(time);
    let outcome = PgTryBuilder::new(AssertUnwindSafe(|| work().map_err(Caught::Ours)))
        .catch_others(|caught| Err(Caught::Postgres(caught)))
        .execute();
    let is_late = timer.stop();
    let is_called_off = open.close();
    let code = codes.last();
    match outcome {
        // What ended just when its time was over has taken no more than it.
        Ok(done) => {
            place.leave(done.keep);
            Ok(done.value)
        }
        Err(Caught::Ours(error)) => {
            place.leave(false);
            Err(error.into())
        }
        Err(Caught::Postgres(caught)) => {
            place.leave(false);
            match fault(&caught, code, is_called_off, is_late.then_some(time).flatten()) {
                Some(fault) => Err(fault),
                None => caught.rethrow(),
            }
        }
    }
}

/// What is told of an error of Postgres; `None` where it is not for us to swallow.
fn fault(caught: &CaughtError, code: Option<i32>, is_called_off: bool, late: Option<Duration>) -> Option<Fault> {
    let (CaughtError::PostgresError(report)
    | CaughtError::ErrorReport(report)
    | CaughtError::RustPanic { ereport: report, .. }) = caught;
    let known = report.sql_error_code() as i32;
    let code = match caught {
        CaughtError::PostgresError(_) => code.unwrap_or(known),
        _ => known,
    };
    let sqlstate = unpacked(code);
    let class = &sqlstate[..2];
    if is_called_off && sqlstate == "57014" {
        calling_off::note();
        return Some(Fault { sqlstate, message: "the function was called off".into(), detail: None, hint: None });
    }
    if let (Some(time), "57014") = (late, sqlstate.as_str()) {
        return Some(Fault {
            sqlstate,
            message: format!("the function took longer than {} ms", time.as_millis()),
            detail: None,
            hint: None,
        });
    }
    match class {
        "40" | "57" => None,
        // Inner workings are for the server's log.
        "XX" => {
            let what = format!("a function failed: {}", report.message());
            NOTES.with_borrow_mut(|notes| notes.note::<()>(Err(Error::bug(what))));
            Some(Fault { sqlstate, message: "the function failed".into(), detail: None, hint: None })
        }
        _ => {
            // What the function's own author wrote, and what is about its arguments and rows.
            let tells = code != known
                || matches!(class, "22" | "23" | "38" | "53" | "55")
                || ["P", "425", "427"].iter().any(|begin| sqlstate.starts_with(begin));
            Some(Fault {
                sqlstate,
                message: report.message().to_owned(),
                detail: report.detail().filter(|_| tells).map(str::to_owned),
                hint: report.hint().filter(|_| tells).map(str::to_owned),
            })
        }
    }
}

/// The five characters of a code that Postgres has packed into a number, six bits each.
fn unpacked(code: i32) -> String {
    (0..5).map(|at| char::from((code >> (6 * at) & 0x3F) as u8 + b'0')).collect()
}

thread_local! {
    static NOTES: RefCell<Notes> = RefCell::new(Notes::of("tools"));
    static CODE: Cell<i32> = const { Cell::new(0) };
    static LATE: Cell<bool> = const { Cell::new(false) };
    static TIMER: Cell<Option<i32>> = const { Cell::new(None) };
    static UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

unsafe extern "C-unwind" {
    fn geterrcode() -> i32;
    fn RegisterTimeout(id: i32, handler: unsafe extern "C-unwind" fn()) -> i32;
    fn enable_timeout_after(id: i32, milliseconds: i32);
    fn disable_timeout(id: i32, keep_indicator: bool);
}

/// pgrx keeps an error's code only where it is one of Postgres' own; applications raise others. A callback that Postgres
/// makes for the context of each error sees them all.
struct Codes {
    callback: Box<pg_sys::ErrorContextCallback>,
}

unsafe extern "C-unwind" fn note_code(_arg: *mut std::ffi::c_void) {
    // SAFETY: meant to be called from here; it raises nothing while an error is being made.
    let code = unsafe { geterrcode() };
    // Classes 00, 01 and 02 are notices and warnings: of the packed twelve bits the first character's six are a zero.
    let is_error = code & 0x3F != 0 || code >> 6 & 0x3F > 2;
    if is_error {
        CODE.set(code);
    }
}

impl Codes {
    fn listen() -> Codes {
        CODE.set(0);
        // SAFETY: the callback stays where it is until it is taken off the stack again.
        unsafe {
            let mut callback = Box::new(pg_sys::ErrorContextCallback {
                previous: pg_sys::error_context_stack,
                callback: Some(note_code),
                arg: std::ptr::null_mut(),
            });
            pg_sys::error_context_stack = &raw mut *callback;
            Codes { callback }
        }
    }

    fn last(&self) -> Option<i32> {
        Some(CODE.get()).filter(|code| *code != 0)
    }
}

impl Drop for Codes {
    fn drop(&mut self) {
        // SAFETY: what was pushed after it is gone: an error that was caught has left its callbacks behind.
        unsafe { pg_sys::error_context_stack = self.callback.previous };
    }
}

unsafe extern "C-unwind" fn time_is_over() {
    LATE.set(true);
    // SAFETY: what the server's own handler of a cancel does; flags and a latch, safe in a signal handler.
    unsafe {
        (&raw mut pg_sys::QueryCancelPending).write_volatile(1);
        (&raw mut pg_sys::InterruptPending).write_volatile(1);
        pg_sys::SetLatch(pg_sys::MyLatch);
    }
}

/// Cancels the statement when the time is over; one inside another has no more time than that one.
struct Timer {
    outer: Option<Instant>,
    is_set: bool,
}

fn timer() -> i32 {
    /// The first of the server's timeouts that are for extensions, `USER_TIMEOUT`.
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    const USER: i32 = 12;
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    const USER: i32 = 13;
    TIMER.get().unwrap_or_else(|| {
        // SAFETY: registered once in a process, with a static function.
        let id = unsafe { RegisterTimeout(USER, time_is_over) };
        TIMER.set(Some(id));
        id
    })
}

fn set(until: Instant) {
    let left = until.saturating_duration_since(Instant::now()).as_millis().clamp(1, i32::MAX as u128) as i32;
    // SAFETY: the timeout is registered; it raises nothing.
    unsafe { enable_timeout_after(timer(), left) };
}

impl Timer {
    fn start(time: Option<Duration>) -> Timer {
        let outer = UNTIL.get();
        let Some(time) = time else { return Timer { outer, is_set: false } };
        let own = Instant::now() + time;
        let until = outer.map_or(own, |outer| outer.min(own));
        LATE.set(false);
        UNTIL.set(Some(until));
        set(until);
        Timer { outer, is_set: true }
    }

    /// Whether the time was over.
    fn stop(self) -> bool {
        if !self.is_set {
            return false;
        }
        // SAFETY: the timeout is registered; afterwards its handler is not called any more.
        unsafe { disable_timeout(timer(), false) };
        let is_late = LATE.replace(false);
        if is_late {
            // It may have come too late to be heard, and is not meant for what follows.
            // SAFETY: a plain flag.
            unsafe { (&raw mut pg_sys::QueryCancelPending).write_volatile(0) };
        }
        UNTIL.set(self.outer);
        if let Some(outer) = self.outer {
            set(outer);
        }
        is_late
    }
}
