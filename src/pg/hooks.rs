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
            pg_sys::NodeTag::T_AlterDatabaseStmt => (*statement.cast::<pg_sys::AlterDatabaseStmt>()).dbname,
            pg_sys::NodeTag::T_CreatedbStmt => {
                let named = template((*statement.cast::<pg_sys::CreatedbStmt>()).options);
                if named.is_null() { c"template1".as_ptr().cast_mut() } else { named }
            }
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

/// The template that `create database` names.
unsafe fn template(options: *mut pg_sys::List) -> *mut std::ffi::c_char {
    unsafe {
        if options.is_null() {
            return std::ptr::null_mut();
        }
        for at in 0..(*options).length {
            let option = (*(*options).elements.add(at as usize)).ptr_value.cast::<pg_sys::DefElem>();
            if CStr::from_ptr((*option).defname) == c"template" && !(*option).arg.is_null() {
                return pg_sys::defGetString(option);
            }
        }
        std::ptr::null_mut()
    }
}

/// Gets worker and runners out of a database and keeps them out until the transaction ends. Returns whether it may have
/// the extension.
fn vacate(database: u32) -> bool {
    let Some(processes) = wake::hold(database) else { return false };
    end(&processes);
    true
}

/// Ends processes of ours and waits until they are gone.
fn end(processes: &[i32]) {
    let begin = Instant::now();
    for pid in processes {
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
    unsafe {
        let length = if names.is_null() { 0 } else { (*names).length };
        (0..length as usize).any(|at| {
            let name = (*(*names).elements.add(at)).ptr_value;
            CStr::from_ptr((*name.cast::<pg_sys::String>()).sval) == c"helper_ai"
        })
    }
}

/// Gets the runners out of the extension's way. Those that are started meanwhile wait for the extension's lock behind
/// whoever asked for it first.
fn vacate_extension() {
    let runners: Vec<i32> = shared::change(|state| {
        let slot = state.slot(wake::this_database());
        slot.iter().flat_map(|slot| slot.started()).map(|runner| runner.pid).collect()
    });
    end(&runners);
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
        if tools::is_inside_statement() && sets_something((*statement).utilityStmt) {
            refuse_setting();
        }
        let database = needed_alone((*statement).utilityStmt);
        // Privileges are checked by the statement itself: who may not drop a database only makes our worker restart.
        let vacated = database != 0 && owns(database) && vacate(database);
        if shared::preloaded() && needs_extension((*statement).utilityStmt) {
            vacate_extension();
        }
        let next = PREVIOUS_UTILITY.unwrap_or(standard);
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            next(statement, query, read_only, context, params, environment, destination, completion)
        });
        let node = (*statement).utilityStmt;
        if vacated && (*node).type_ == pg_sys::NodeTag::T_DropdbStmt {
            // Nobody need look for the extension in it.
            shared::change(|state| {
                if let Some(slot) = state.slot(database) {
                    *slot = shared::Slot::default();
                }
            });
        }
        // A copy of a database has the extension too.
        if vacated && (*node).type_ == pg_sys::NodeTag::T_CreatedbStmt {
            let name = (*node.cast::<pg_sys::CreatedbStmt>()).dbname;
            wake::made_at_commit(pg_sys::get_database_oid(name, true).to_u32());
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
