//! Settings of a background process's own session, and of its transactions that do what somebody asked for.

use crate::core::error::Result;
use crate::pg::spi;
use pgrx::prelude::*;
use std::ffi::{CStr, CString};

/// Settings of the session.
pub fn configure(name: &CStr) {
    set(c"search_path", c"pg_catalog, pg_temp");
    // Nobody's open transaction stops the work for all.
    set(c"lock_timeout", c"2s");
    // Plans that were made while the tables were small, those of foreign keys too, would read all of them for each row.
    set(c"enable_seqscan", c"off");
    // Where there is no other way than through a table, its cost would have the statement compiled.
    set(c"jit", c"off");
    set(c"application_name", name);
}

/// The worker's commits are not waited for: what a crash takes back is done again, which is cheaper than a flush for each
/// document.
pub fn relax() {
    set(c"synchronous_commit", c"off");
}

fn set(name: &CStr, value: &CStr) {
    // SAFETY: names and values are constants.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
        );
    }
}

/// Until the transaction ends: what was done for somebody and told to the world is not forgotten in a crash, and the
/// other ways of our session are not for what callers run.
pub fn durable() {
    flushed();
    for_callers();
}

/// The first of these alone.
pub fn flushed() {
    set_locally(c"synchronous_commit", c"on");
}

/// The second of these alone.
pub fn for_callers() {
    set_locally(c"enable_seqscan", c"on");
}

/// Sets something until the transaction, or the level of settings inside it, ends.
pub fn set_locally(name: &CStr, value: &CStr) {
    // SAFETY: a name and a value that the server knows; the texts are copied.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_LOCAL,
            true,
            0,
            false,
        );
    }
}

/// Which run of a workflow led to something, and how deep that is in.
#[derive(Clone, Copy)]
pub struct Led {
    /// -1: none did.
    pub depth: i32,
    pub run: Option<pgrx::Uuid>,
}

impl Led {
    /// Says so for what follows, until the transaction or the level of settings inside it ends.
    pub fn set(self) {
        let text = |value: String| CString::new(value).unwrap_or_default();
        set_locally(c"helper_ai.workflow_depth", &text(self.depth.to_string()));
        let run = self.run.map(|run| run.to_string()).unwrap_or_default();
        set_locally(c"helper_ai.workflow_run", &text(run));
    }

    /// Does something that the run led to.
    pub fn does<T>(self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        // SAFETY: plain getter; `Level` ends it on every way out.
        let _level = Level(unsafe { pg_sys::NewGUCNestLevel() });
        self.set();
        work()
    }
}

struct Level(i32);

impl Drop for Level {
    fn drop(&mut self) {
        // An error of Postgres ends the level with the transaction that it aborts.
        if !std::thread::panicking() {
            // SAFETY: the level that was begun, and whatever is left of those inside.
            unsafe { pg_sys::AtEOXact_GUC(false, self.0) };
        }
    }
}

/// What a caller's SQL left in the session is not for the next one to find, which may be another tenant's.
pub fn forget() -> Result<()> {
    ["close all", "discard temp", "discard sequences", "deallocate all", "select pg_catalog.pg_advisory_unlock_all()"]
        .into_iter()
        .try_for_each(|sql| spi::run(sql, &[]))
}
