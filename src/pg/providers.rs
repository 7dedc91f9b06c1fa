//! How the gateway finds the providers, for the view `provider_status`; and errors that keep what they are about to
//! themselves, for the view `provider_keys`.

use crate::core::wire::{Reply, Request};
use crate::pg::report::Reported;
use crate::pg::{calling, gateway};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// `helper._provider_states`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
#[allow(clippy::type_complexity)]
fn provider_states() -> Reported<
    TableIterator<
        'static,
        (
            name!(id, pgrx::Uuid),
            name!(circuit, String),
            name!(in_flight, i32),
            name!(waiting, i32),
            name!(requests, i64),
            name!(errors, i64),
            name!(last_error, Option<String>),
            name!(retry_seconds, Option<i64>),
            name!(latency_p50, i32),
            name!(latency_p95, i32),
            name!(latency_p99, i32),
        ),
    >,
> {
    let Reply::Providers(states) = gateway::ask(&Request::Providers, |_| Ok(()))? else {
        return Err(calling::another().into());
    };
    Ok(TableIterator::new(states.into_iter().map(|state| {
        let [p50, p95, p99] = state.latency_ms.map(|latency| latency as i32);
        (
            pgrx::Uuid::from_bytes(state.id),
            state.circuit,
            state.in_flight as i32,
            state.waiting as i32,
            state.requests as i64,
            state.errors as i64,
            state.last_error,
            state.retry_seconds.map(|seconds| seconds as i64),
            p50,
            p95,
            p99,
        )
    })))
}

/// `helper._refuse`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn refuse(sqlstate: Option<&str>, message: Option<&str>, detail: Option<&str>, hint: Option<&str>) -> Reported<()> {
    // Five characters of six bits, the first one lowest.
    let code = sqlstate
        .unwrap_or("XX000")
        .bytes()
        .rev()
        .fold(0, |code, byte| (code << 6) | (i32::from(byte).wrapping_sub(i32::from(b'0')) & 0x3f));
    // SAFETY: an error that is on its way to the session's loop or to a handler, which both set the stack anew; the
    // loop also sets the statement, as each one begins.
    unsafe {
        pg_sys::error_context_stack = std::ptr::null_mut();
        pg_sys::debug_query_string = std::ptr::null();
    }
    let mut report = ErrorReport::new(PgSqlErrorCode::from(code), message.unwrap_or_default().to_owned(), "helper_ai");
    if let Some(detail) = detail.filter(|detail| !detail.is_empty()) {
        report = report.set_detail(detail.to_owned());
    }
    if let Some(hint) = hint.filter(|hint| !hint.is_empty()) {
        report = report.set_hint(hint.to_owned());
    }
    Err(report)
}
