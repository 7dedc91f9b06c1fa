//! Acting as the extension's owner for a moment, to read candidates and to write what was checked; or as the caller, to
//! see what they see.

use crate::core::error::{Error, Result};
use pgrx::prelude::*;
use std::cell::Cell;

thread_local! {
    static FACTS: Cell<Option<(pg_sys::Oid, pg_sys::Oid)>> = const { Cell::new(None) };
}

struct Restore {
    user: pg_sys::Oid,
    context: i32,
    level: i32,
}

impl Drop for Restore {
    fn drop(&mut self) {
        // SAFETY: gives back what GetUserIdAndSecContext said before, and the path that was set since the level began.
        // When an error is on its way out, the end of its transaction does the latter, and would find the level gone.
        unsafe {
            if !std::thread::panicking() {
                pg_sys::AtEOXact_GUC(false, self.level);
            }
            pg_sys::SetUserIdAndSecContext(self.user, self.context);
        }
    }
}

/// Owner of the extension; 42704 where it is not created in this database.
fn owner() -> Result<pg_sys::Oid> {
    // The extension can be dropped and created again by another role: its id tells.
    // SAFETY: a lookup by name in a transaction.
    let extension = unsafe { pg_sys::get_extension_oid(c"helper_ai".as_ptr(), true) };
    if extension == pg_sys::InvalidOid {
        return Err(Error::unknown_object("extension \"helper_ai\" does not exist in this database"));
    }
    if let Some((known, owner)) = FACTS.get()
        && known == extension
    {
        return Ok(owner);
    }
    let owner = super::spi::first(
        "select extowner from pg_catalog.pg_extension where extname operator(pg_catalog.=) 'helper_ai'",
        &[],
        |row| row.get::<pg_sys::Oid>(1),
    )?
    .ok_or_else(|| Error::bug("the extension has no owner"))?;
    FACTS.set(Some((extension, owner)));
    Ok(owner)
}

/// Does something as the extension's owner, with a search path on which nobody else can put anything. `set role` is
/// refused inside; an error or a panic gives the caller back.
pub fn as_owner<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    switched(owner()?, work)
}

fn switched<T>(to: pg_sys::Oid, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut user = pg_sys::InvalidOid;
    let mut context = 0;
    // SAFETY: plain getters and setters of the session's user; `Restore` undoes it on every way out.
    let _restore = unsafe {
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        let restore = Restore { user, context, level: pg_sys::NewGUCNestLevel() };
        pg_sys::SetUserIdAndSecContext(to, context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32);
        pg_sys::set_config_option(
            c"search_path".as_ptr(),
            c"pg_catalog, pg_temp".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
        restore
    };
    work()
}

/// Does something as the role that asks, also where a security definer function stands in between.
pub fn as_caller<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: a plain getter.
    let caller = unsafe { pg_sys::GetOuterUserId() };
    switched(caller, work)
}

/// Schema that pgvector is in, quoted for use in a statement.
pub fn vector_schema() -> Result<String> {
    super::spi::first(
        "select pg_catalog.quote_ident(n.nspname) from pg_catalog.pg_extension e \
         join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) e.extnamespace where e.extname operator(pg_catalog.=) 'vector'",
        &[],
        |row| row.get::<String>(1),
    )?
    .ok_or_else(|| Error::not_ready("extension \"vector\" is not installed in this database"))
}
