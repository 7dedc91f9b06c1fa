//! How the gateway finds the providers, for the view `provider_status`.

use crate::core::wire::{Reply, Request};
use crate::pg::report::Reported;
use crate::pg::{calling, gateway};
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
