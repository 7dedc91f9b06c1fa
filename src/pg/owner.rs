//! Acting as the extension's owner for a moment, to read candidates and to write what was checked; or as the caller, to
//! see what they see.

use crate::core::error::{Error, Result};
use pgrx::prelude::*;
use std::ffi::CStr;

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

/// Owner of the extension, who owns its tables; 42704 where it is not created in this database. Found in the server's cache
/// each time: the extension may be dropped and created again, or given to another role.
fn owner() -> Result<pg_sys::Oid> {
    // SAFETY: lookups by name and by id in a transaction; the tuple is released after its last use.
    let owner = unsafe {
        let schema = pg_sys::get_namespace_oid(c"helper".as_ptr(), true);
        let table = pg_sys::get_relname_relid(c"workspaces".as_ptr(), schema);
        let cache = pg_sys::SysCacheIdentifier::RELOID as i32;
        let tuple = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(table));
        if tuple.is_null() {
            None
        } else {
            let owner = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>()).relowner;
            pg_sys::ReleaseSysCache(tuple);
            Some(owner)
        }
    };
    owner.ok_or_else(|| Error::unknown_object("extension \"helper_ai\" does not exist in this database"))
}

/// Does something as the extension's owner, with a search path on which nobody else can put anything. `set role` is
/// refused inside; an error or a panic gives the caller back.
pub fn as_owner<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    switched(owner()?, PATH, work)
}

/// The search path on which nobody else can put anything.
const PATH: &CStr = c"pg_catalog, pg_temp";

fn switched<T>(to: pg_sys::Oid, path: &CStr, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut user = pg_sys::InvalidOid;
    let mut context = 0;
    // SAFETY: plain getters and setters of the session's user; `Restore` undoes it on every way out.
    let _restore = unsafe {
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        let restore = Restore { user, context, level: pg_sys::NewGUCNestLevel() };
        pg_sys::SetUserIdAndSecContext(to, context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32);
        pg_sys::set_config_option(
            c"search_path".as_ptr(),
            path.as_ptr(),
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
    switched(caller, PATH, work)
}

/// The same with a search path, for what is not ours. Settings that it changes are given back too.
pub fn as_caller_with<T>(path: &CStr, work: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: a plain getter.
    let caller = unsafe { pg_sys::GetOuterUserId() };
    switched(caller, path, work)
}

/// Refuses to act as the caller for whoever could not do so themselves: a security definer function of another role, an
/// index or a policy that somebody else's statement runs into.
pub fn check_is_caller() -> Result<()> {
    // SAFETY: plain getters.
    let may = unsafe {
        let (current, caller) = (pg_sys::GetUserId(), pg_sys::GetOuterUserId());
        !pg_sys::InSecurityRestrictedOperation() && (current == caller || pg_sys::has_privs_of_role(current, caller))
    };
    if may {
        return Ok(());
    }
    Err(Error::new(crate::core::error::Kind::NotPermitted, "permission denied to act as the caller")
        .detail("A security definer function may do so only if its owner is a member of the caller's role."))
}

struct Leave {
    user: pg_sys::Oid,
    context: i32,
    level: i32,
}

impl Drop for Leave {
    fn drop(&mut self) {
        // SAFETY: as for `Restore`, but the user first: the role that the end of the level gives back may be set only
        // outside of a restricted context.
        unsafe {
            pg_sys::SetUserIdAndSecContext(self.user, self.context);
            if !std::thread::panicking() {
                pg_sys::AtEOXact_GUC(false, self.level);
            }
        }
    }
}

/// Does something in a worker as the person who asked for it: their role, their claims, and no way back to ours. Only
/// outside of [`as_owner`].
pub fn as_principal<T>(role: &str, claims: Option<&str>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let gone = || {
        Error::new(crate::core::error::Kind::NotPermitted, format!("role \"{role}\" does not exist any more"))
            .detail("The work was asked for by that role and can be done by no other.")
    };
    let name = std::ffi::CString::new(role).map_err(|_| gone())?;
    let claims = std::ffi::CString::new(claims.unwrap_or_default()).map_err(|_| Error::bug("claims hold a NUL"))?;
    let mut user = pg_sys::InvalidOid;
    let mut context = 0;
    // SAFETY: plain getters and setters of the session's user; `Leave` undoes it on every way out.
    let _leave = unsafe {
        let oid = pg_sys::get_role_oid(name.as_ptr(), true);
        if oid == pg_sys::InvalidOid {
            return Err(gone());
        }
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        let leave = Leave { user, context, level: pg_sys::NewGUCNestLevel() };
        for (setting, value) in [(c"role", name.as_c_str()), (c"request.jwt.claims", claims.as_c_str())] {
            pg_sys::set_config_option(
                setting.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
        }
        pg_sys::SetUserIdAndSecContext(oid, pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32);
        leave
    };
    work()
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
