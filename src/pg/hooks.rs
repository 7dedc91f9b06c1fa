//! Two hooks: whoever drops, renames, moves or copies a database gets our processes out of it first, whoever drops or
//! updates the extension its runners, which may be in the middle of something long; a dropped extension's worker leaves at
//! commit. And a statement that a user wrote for a workflow changes no settings.

use crate::pg::{shared, tools, wait, wake};
use pgrx::prelude::*;
use std::ffi::CStr;
use std::time::{Duration, Instant};

static mut PREVIOUS_UTILITY: pg_sys::ProcessUtility_hook_type = None;
static mut PREVIOUS_ACCESS: pg_sys::object_access_hook_type = None;

/// Installs both; only while the server preloads libraries.
pub fn install() {
    // SAFETY: no other thread exists, and the library is never unloaded.
    unsafe {
        PREVIOUS_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(utility);
        PREVIOUS_ACCESS = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(access);
    }
}

/// The database that a statement needs for itself, or 0.
unsafe fn needed_alone(statement: *mut pg_sys::Node) -> u32 {
    unsafe {
        if statement.is_null() {
            return 0;
        }
        let name = match (*statement).type_ {
            pg_sys::NodeTag::T_DropdbStmt => (*statement.cast::<pg_sys::DropdbStmt>()).dbname,
            pg_sys::NodeTag::T_AlterDatabaseStmt => {
                let alter = statement.cast::<pg_sys::AlterDatabaseStmt>();
                if !elements((*alter).options).any(|option| empties(option)) {
                    return 0;
                }
                (*alter).dbname
            }
            pg_sys::NodeTag::T_CreatedbStmt => template((*statement.cast::<pg_sys::CreatedbStmt>()).options),
            pg_sys::NodeTag::T_RenameStmt => {
                let rename = statement.cast::<pg_sys::RenameStmt>();
                if (*rename).renameType != pg_sys::ObjectType::OBJECT_DATABASE {
                    return 0;
                }
                (*rename).subname
            }
            _ => return 0,
        };
        if name.is_null() { 0 } else { pg_sys::get_database_oid(name, true).to_u32() }
    }
}

/// Whether a statement changes settings, role and claims among them.
unsafe fn sets_something(statement: *mut pg_sys::Node) -> bool {
    use pg_sys::NodeTag::{T_DiscardStmt, T_VariableSetStmt};
    unsafe { !statement.is_null() && matches!((*statement).type_, T_VariableSetStmt | T_DiscardStmt) }
}

/// Whoever could change the claims inside of a statement, and change them back, would be anybody meanwhile.
fn refuse_setting() -> ! {
    ereport!(
        PgLogLevel::ERROR,
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        "permission denied to change settings in a workflow's statement"
    );
    unreachable!()
}

/// Whether a function has an effect beyond the tables, on whoever comes next or at all: locks that everybody shares, large
/// objects, which have no policies, random numbers of the session, and the log that others decode.
fn reaches_out(function: u32) -> bool {
    use pg_sys::*;
    matches!(
        function,
        F_PG_ADVISORY_LOCK_INT8
            | F_PG_ADVISORY_LOCK_INT4_INT4
            | F_PG_ADVISORY_LOCK_SHARED_INT8
            | F_PG_ADVISORY_LOCK_SHARED_INT4_INT4
            | F_PG_ADVISORY_XACT_LOCK_INT8
            | F_PG_ADVISORY_XACT_LOCK_INT4_INT4
            | F_PG_ADVISORY_XACT_LOCK_SHARED_INT8
            | F_PG_ADVISORY_XACT_LOCK_SHARED_INT4_INT4
            | F_PG_TRY_ADVISORY_LOCK_INT8
            | F_PG_TRY_ADVISORY_LOCK_INT4_INT4
            | F_PG_TRY_ADVISORY_LOCK_SHARED_INT8
            | F_PG_TRY_ADVISORY_LOCK_SHARED_INT4_INT4
            | F_PG_TRY_ADVISORY_XACT_LOCK_INT8
            | F_PG_TRY_ADVISORY_XACT_LOCK_INT4_INT4
            | F_PG_TRY_ADVISORY_XACT_LOCK_SHARED_INT8
            | F_PG_TRY_ADVISORY_XACT_LOCK_SHARED_INT4_INT4
            | F_LO_CREAT
            | F_LO_CREATE
            | F_LO_FROM_BYTEA
            | F_LO_OPEN
            | F_LO_PUT
            | F_LO_UNLINK
            | F_SETSEED
            | F_PG_LOGICAL_EMIT_MESSAGE_BOOL_TEXT_TEXT
            | F_PG_LOGICAL_EMIT_MESSAGE_BOOL_TEXT_BYTEA
    )
}

/// What a function does that somebody else wrote to run with their own rights is theirs to answer for.
fn refuse_reaching_out() -> ! {
    ereport!(
        PgLogLevel::ERROR,
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        "permission denied for a function with effects outside of tables in a workflow's statement"
    );
    unreachable!()
}

/// What a list points to.
unsafe fn elements<T>(list: *mut pg_sys::List) -> impl Iterator<Item = *mut T> {
    unsafe {
        let length = if list.is_null() { 0 } else { (*list).length };
        (0..length as usize).map(move |at| (*(*list).elements.add(at)).ptr_value.cast::<T>())
    }
}

/// The template of `create database`.
unsafe fn template(options: *mut pg_sys::List) -> *mut std::ffi::c_char {
    unsafe {
        elements::<pg_sys::DefElem>(options)
            .find(|option| CStr::from_ptr((**option).defname) == c"template" && !(**option).arg.is_null())
            .map_or(c"template1".as_ptr().cast_mut(), |option| pg_sys::defGetString(option))
    }
}

/// Whether an option of `alter database` is for one that nobody is in: its files are moved, or nobody may connect any more.
unsafe fn empties(option: *mut pg_sys::DefElem) -> bool {
    unsafe {
        let name = CStr::from_ptr((*option).defname);
        name == c"tablespace" || name == c"allow_connections" && !pg_sys::defGetBoolean(option)
    }
}

/// The database that a statement has made or altered, or 0. A copy has the extension too, and so may one that nobody could
/// connect to, or that was a template.
unsafe fn made(statement: *mut pg_sys::Node) -> u32 {
    unsafe {
        let name = match (!statement.is_null()).then(|| (*statement).type_) {
            Some(pg_sys::NodeTag::T_CreatedbStmt) => (*statement.cast::<pg_sys::CreatedbStmt>()).dbname,
            Some(pg_sys::NodeTag::T_AlterDatabaseStmt) => (*statement.cast::<pg_sys::AlterDatabaseStmt>()).dbname,
            _ => return 0,
        };
        pg_sys::get_database_oid(name, true).to_u32()
    }
}

/// Gets worker and runners out of a database and keeps them out until the transaction ends.
fn vacate(database: u32) {
    end(wake::hold(database));
}

/// Ends processes of ours, but for the caller's own, and waits until they are gone.
fn end(mut processes: Vec<i32>) {
    let begin = Instant::now();
    // SAFETY: a plain number.
    let me = unsafe { pg_sys::MyProcPid };
    processes.retain(|pid| *pid != me);
    for pid in &processes {
        // It ends on SIGTERM, in a transaction or not.
        shared::terminate(*pid);
    }
    while processes.iter().any(|pid| shared::is_alive(*pid)) && begin.elapsed() < Duration::from_secs(5) {
        wait::interruptible(None, Some(Duration::from_millis(5)));
    }
}

/// Whether a statement needs the extension for itself, and whoever says it may have it: then it would wait for what runners
/// do until their tools have ended.
unsafe fn needs_extension(statement: *mut pg_sys::Node) -> bool {
    unsafe {
        let extension = match (!statement.is_null()).then(|| (*statement).type_) {
            Some(pg_sys::NodeTag::T_DropStmt) => {
                let drop = statement.cast::<pg_sys::DropStmt>();
                (*drop).removeType == pg_sys::ObjectType::OBJECT_EXTENSION
                    && ((*drop).behavior == pg_sys::DropBehavior::DROP_CASCADE || names_extension((*drop).objects))
            }
            Some(pg_sys::NodeTag::T_AlterExtensionStmt) => {
                CStr::from_ptr((*statement.cast::<pg_sys::AlterExtensionStmt>()).extname) == c"helper_ai"
            }
            _ => false,
        };
        if !extension {
            return false;
        }
        let extension = pg_sys::get_extension_oid(c"helper_ai".as_ptr(), true);
        extension != pg_sys::InvalidOid && (pg_sys::superuser() || owns_extension(extension, pg_sys::GetUserId()))
    }
}

/// Whether a list of names has the extension's.
unsafe fn names_extension(names: *mut pg_sys::List) -> bool {
    unsafe { elements::<pg_sys::String>(names).any(|name| CStr::from_ptr((*name).sval) == c"helper_ai") }
}

/// Gets the runners out of the extension's way. Those that are started meanwhile wait for the extension's lock behind
/// whoever asked for it first.
fn vacate_extension() {
    let runners: Vec<i32> = shared::change(|state| {
        let slot = state.slot(wake::this_database());
        slot.iter().flat_map(|slot| slot.started()).map(|runner| runner.pid).collect()
    });
    end(runners);
}

#[pg_guard]
#[allow(clippy::too_many_arguments)]
unsafe extern "C-unwind" fn utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const std::ffi::c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: called by the server with what its hook promises; passed on unchanged.
    unsafe {
        let node = (*statement).utilityStmt;
        if tools::is_inside_statement() && sets_something(node) {
            refuse_setting();
        }
        let database = needed_alone(node);
        // Privileges are checked by the statement itself: who may not drop a database only makes our worker restart.
        let vacated = database != 0 && (owns(database) || may_copy(node, database));
        if vacated {
            vacate(database);
        }
        if shared::preloaded() && needs_extension(node) {
            vacate_extension();
        }
        let next = PREVIOUS_UTILITY.unwrap_or(standard);
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            next(statement, query, read_only, context, params, environment, destination, completion)
        });
        if vacated && (*node).type_ == pg_sys::NodeTag::T_DropdbStmt {
            // Nobody need look for the extension in it.
            shared::change(|state| {
                if let Some(slot) = state.slot(database) {
                    *slot = shared::Slot::default();
                }
            });
        }
        let made = made(node);
        if made != 0 {
            wake::made_at_commit(made);
        }
    }
}

#[pg_guard]
#[allow(clippy::too_many_arguments)]
unsafe extern "C-unwind" fn standard(
    statement: *mut pg_sys::PlannedStmt,
    query: *const std::ffi::c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    unsafe {
        pg_sys::standard_ProcessUtility(
            statement,
            query,
            read_only,
            context,
            params,
            environment,
            destination,
            completion,
        )
    }
}

#[cfg(feature = "pg15")]
unsafe fn is_owner(database: pg_sys::Oid, user: pg_sys::Oid) -> bool {
    unsafe { pg_sys::pg_database_ownercheck(database, user) }
}

#[cfg(not(feature = "pg15"))]
unsafe fn is_owner(database: pg_sys::Oid, user: pg_sys::Oid) -> bool {
    unsafe { pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, user) }
}

#[cfg(feature = "pg15")]
unsafe fn owns_extension(extension: pg_sys::Oid, user: pg_sys::Oid) -> bool {
    unsafe { pg_sys::pg_extension_ownercheck(extension, user) }
}

#[cfg(not(feature = "pg15"))]
unsafe fn owns_extension(extension: pg_sys::Oid, user: pg_sys::Oid) -> bool {
    unsafe { pg_sys::object_ownercheck(pg_sys::ExtensionRelationId, extension, user) }
}

/// Whether the caller may do such things to the database, so that a stranger cannot keep our worker out of it.
unsafe fn owns(database: u32) -> bool {
    unsafe {
        let user = pg_sys::GetUserId();
        pg_sys::superuser() || is_owner(database.into(), user)
    }
}

/// Whether a statement copies a template, which need not be the caller's.
unsafe fn may_copy(statement: *mut pg_sys::Node, database: u32) -> bool {
    use pg_sys::SysCacheIdentifier::{AUTHOID, DATABASEOID};
    unsafe {
        (*statement).type_ == pg_sys::NodeTag::T_CreatedbStmt
            && is_so(DATABASEOID, database.into(), |row: &pg_sys::FormData_pg_database| row.datistemplate)
            && is_so(AUTHOID, pg_sys::GetUserId(), |row: &pg_sys::FormData_pg_authid| row.rolcreatedb)
    }
}

/// Whether something is so of an object, by its row in the catalog.
unsafe fn is_so<T>(
    cache: pg_sys::SysCacheIdentifier::Type,
    object: pg_sys::Oid,
    look: impl FnOnce(&T) -> bool,
) -> bool {
    // SAFETY: the caller names the cache of this kind of row; it is released after its last use.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(cache as i32, pg_sys::Datum::from(object));
        if tuple.is_null() {
            return false;
        }
        let is_so = look(&*pg_sys::GETSTRUCT(tuple).cast::<T>());
        pg_sys::ReleaseSysCache(tuple);
        is_so
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    part: i32,
    arg: *mut std::ffi::c_void,
) {
    // SAFETY: called by the server with what its hook promises; passed on unchanged.
    unsafe {
        if let Some(previous) = PREVIOUS_ACCESS {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous(access, class, object, part, arg));
        }
        if access == pg_sys::ObjectAccessType::OAT_FUNCTION_EXECUTE
            && class == pg_sys::ProcedureRelationId
            && tools::is_inside_statement()
        {
            if object.to_u32() == pg_sys::F_SET_CONFIG {
                refuse_setting();
            }
            if reaches_out(object.to_u32()) && pg_sys::GetUserId() == pg_sys::GetOuterUserId() {
                refuse_reaching_out();
            }
        }
        if access == pg_sys::ObjectAccessType::OAT_DROP
            && class == pg_sys::ExtensionRelationId
            && object == pg_sys::get_extension_oid(c"helper_ai".as_ptr(), true)
        {
            wake::worker_at_commit();
        }
    }
}
