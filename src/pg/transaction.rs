//! Transactions of the background processes: short, each ended on every way out, an error of Postgres told apart by whether it passes.

use crate::core::error::{Error, Kind, Result};
use crate::pg::{owner, session};
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;

/// Runs one short transaction as the extension's owner. An error rolls it back and is returned.
pub fn transaction<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    bare_transaction(|| owner::as_owner(work))
}

/// The same where a crash must not take it back. Said before the owner's own settings begin, as what is set among them is
/// given back before the commit.
pub fn lasting_transaction<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    bare_transaction(|| {
        session::flushed();
        owner::as_owner(work)
    })
}

/// Runs one short transaction that says itself as whom.
pub fn bare_transaction<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: inside a transaction; an error takes the snapshot back with it.
    ended(|| unsafe {
        // Whoever drops the extension takes this lock first, and then the tables one by one: with it taken here before
        // any table, neither can come to wait for the other in a circle.
        let extension = extension();
        if extension != pg_sys::InvalidOid {
            pg_sys::LockDatabaseObject(
                pg_sys::ExtensionRelationId,
                extension,
                0,
                pg_sys::AccessShareLock as pg_sys::LOCKMODE,
            );
        }
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let value = work()?;
        pg_sys::PopActiveSnapshot();
        Ok(value)
    })
}

/// The extension in this database; as everything, it may have to wait for a lock.
fn extension() -> pg_sys::Oid {
    // SAFETY: a lookup inside a transaction.
    unsafe { pg_sys::get_extension_oid(c"helper_ai".as_ptr(), true) }
}

/// Does something in a transaction that is ended on every way out.
fn ended<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: the server's own sequence for a transaction of a background worker.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        let outcome = PgTryBuilder::new(AssertUnwindSafe(|| {
            pg_sys::StartTransactionCommand();
            let value = work()?;
            pg_sys::CommitTransactionCommand();
            Ok(value)
        }))
        .catch_others(|caught| Err(from_postgres(&caught)))
        .execute();
        if outcome.is_err() {
            pg_sys::AbortCurrentTransaction();
        }
        pg_sys::pgstat_report_stat(false);
        outcome
    }
}

/// An error that Postgres raised in our transaction.
fn from_postgres(caught: &pg_sys::panic::CaughtError) -> Error {
    use pg_sys::panic::CaughtError;
    let (CaughtError::PostgresError(report)
    | CaughtError::ErrorReport(report)
    | CaughtError::RustPanic { ereport: report, .. }) = caught;
    // A lock that somebody holds, a conflict, a full disk, an administrator who cancels or makes the server read-only: none
    // of that is the document's fault, so later.
    let class = |code: PgSqlErrorCode| code as i32 & 0xFFF;
    let code = report.sql_error_code();
    let passing = code == PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION
        || [
            PgSqlErrorCode::ERRCODE_TRANSACTION_ROLLBACK,
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            PgSqlErrorCode::ERRCODE_OPERATOR_INTERVENTION,
            PgSqlErrorCode::ERRCODE_SYSTEM_ERROR,
        ]
        .into_iter()
        .any(|passing| class(passing) == class(code));
    Error::new(if passing { Kind::NotReady } else { Kind::Bug }, report.message().to_owned())
}

/// Whether this database has the extension; so it is said too where somebody's lock keeps that from being found out.
pub fn extension_exists() -> bool {
    ended(|| Ok(extension() != pg_sys::InvalidOid)).unwrap_or(true)
}
