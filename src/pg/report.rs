//! Turns our error into Postgres' report: the one place that knows both.

use crate::core::error::{Error, Kind, Result};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use std::time::Instant;

/// What a function that SQL sees returns.
pub type Reported<T> = std::result::Result<T, ErrorReport>;

impl From<Error> for ErrorReport {
    fn from(error: Error) -> Self {
        let code = match error.kind {
            Kind::BadArgument => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            Kind::UnknownObject => PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            Kind::NotPermitted => PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            Kind::NotReady => PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            Kind::Provider => PgSqlErrorCode::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
            Kind::RateLimited => PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
            Kind::OverLimit => PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            Kind::Cancelled => PgSqlErrorCode::ERRCODE_QUERY_CANCELED,
            Kind::Bug => PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        };
        let mut report = ErrorReport::new(code, error.message, "helper_ai");
        if let Some(detail) = error.detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = error.hint {
            report = report.set_hint(hint);
        }
        report
    }
}

/// A fault of SPI itself is ours; a failing statement raises on its own.
impl From<pgrx::spi::SpiError> for Error {
    fn from(error: pgrx::spi::SpiError) -> Self {
        Error::bug(format!("unexpected reply from SPI: {error}"))
    }
}

/// The troubles of a background process, which goes on with its work.
pub struct Notes {
    who: &'static str,
    /// What was logged last, and when.
    told: Option<(String, Instant)>,
    /// Since when what is logged is counted, and how much that was.
    since: Instant,
    count: u32,
}

/// Lines in a minute, however much each differs from the one before: what a function raises is whatever its author wants.
const MOST_NOTES: u32 = 20;

impl Notes {
    pub fn of(who: &'static str) -> Notes {
        Notes { who, told: None, since: Instant::now(), count: 0 }
    }

    /// Logs an error, the same one once a minute, and of others so many.
    pub fn note<T>(&mut self, outcome: Result<T>) -> Option<T> {
        let error = match outcome {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        if !self.told.as_ref().is_some_and(|(told, at)| *told == error.message && at.elapsed().as_secs() < 60) {
            if self.since.elapsed().as_secs() >= 60 {
                (self.since, self.count) = (Instant::now(), 0);
            }
            self.count = self.count.saturating_add(1);
            match self.count {
                ..MOST_NOTES => log!("helper_ai {}: {} ({})", self.who, error.message, error.kind.sqlstate()),
                MOST_NOTES => log!("helper_ai {}: more errors follow, which are not logged for a minute", self.who),
                _ => {}
            }
            self.told = Some((error.message, Instant::now()));
        }
        None
    }
}
