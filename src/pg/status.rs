//! `helper.status` and `helper.wait_indexed`: how the processes are, and waiting for the worker.

use crate::core::error::{Error, Kind, Result};
use crate::core::wire::Reply;
use crate::pg::report::Reported;
use crate::pg::{gateway, owner, searching, shared, spi, wait, wake};
use pgrx::JsonB;
use pgrx::prelude::*;
use std::time::{Duration, Instant};

/// `helper.status`: never fails for want of a process, as it is there to say which one is missing.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn status() -> Reported<JsonB> {
    if !shared::preloaded() {
        return Ok(JsonB(serde_json::json!({ "library": env!("CARGO_PKG_VERSION"), "preloaded": false })));
    }
    // SAFETY: set once when the process connects.
    let database = unsafe { pg_sys::MyDatabaseId.to_u32() };
    let (launcher, gateway_pid, starts, slot) = shared::change(|state| {
        let slot = state.slot(database).map(|slot| *slot).unwrap_or_default();
        (state.launcher, state.gateway, state.gateway_starts, slot)
    });
    let runners: Vec<i32> = slot.started().map(|runner| runner.pid).collect();
    let (gateway, error) = match gateway::status() {
        Ok(Reply::Status(status)) => (
            serde_json::json!({
                "pid": status.pid,
                "version": status.version,
                "uptime_seconds": status.uptime_seconds,
                "connections": status.connections,
                "in_flight": status.in_flight,
                "queued_texts": status.queued_texts,
                "cancelled": status.cancelled,
                "model": status.model,
                "dimensions": status.dimensions,
                "tokens": status.tokens,
                "starts": starts,
            }),
            None,
        ),
        Ok(_) => (serde_json::json!({ "pid": gateway_pid }), None),
        Err(error) => (serde_json::json!({ "pid": gateway_pid, "starts": starts }), Some(error.message)),
    };
    Ok(JsonB(serde_json::json!({
        "library": env!("CARGO_PKG_VERSION"),
        "preloaded": true,
        "launcher_pid": launcher,
        "worker_pid": slot.worker,
        "runner_pids": runners,
        "gateway": gateway,
        "queues": owner::as_owner(queues)?,
        "error": error,
    })))
}

/// What waits in this database, of all workspaces.
fn queues() -> Result<serde_json::Value> {
    let queues = spi::first(
        "select pg_catalog.jsonb_build_object( \
           'jobs', (select count(*) from helper.job_queue), \
           'jobs_under_way', (select count(*) from helper.job_leases), \
           'runs_due', d.runs, \
           'runs_asleep', (select count(*) from helper.workflow_queue q where not q.is_due), \
           'oldest_due_seconds', round(extract(epoch from clock_timestamp() - d.since)), \
           'events', (select count(*) from helper.workflow_events)) \
         from (select count(*) as runs, min(q.run_at) as since from helper.workflow_queue q where q.is_due) d",
        &[],
        |row| row.get::<JsonB>(1),
    )?;
    Ok(queues.map(|JsonB(queues)| queues).unwrap_or_default())
}

/// How far the caller's documents are.
struct Progress {
    ready: i64,
    failed: i64,
    pending: i64,
    chunks: i64,
    own: bool,
    error: Option<String>,
}

fn progress(workspace: Option<pgrx::Uuid>) -> Result<Progress> {
    // Each look must see what was committed since the one before.
    // SAFETY: pushed and popped in pairs; an error in between ends the transaction, which pops it.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
    let progress = spi::first(
        "select ready, failed, pending, chunks, own, error from helper.workspace_progress($1)",
        &[workspace.into()],
        |row| {
            Ok(Progress {
                ready: row.get(1)?,
                failed: row.get(2)?,
                pending: row.get(3)?,
                chunks: row.get(4)?,
                own: row.get(5)?,
                error: row.opt(6)?,
            })
        },
    );
    // SAFETY: see above.
    unsafe { pg_sys::PopActiveSnapshot() };
    progress?.ok_or_else(|| Error::bug("no progress"))
}

/// Whoever waits looks at all documents each time, and takes a processor from what they wait for: so many times what a look
/// took passes before the next one,
const SHARE: u32 = 30;
/// but at least,
const SHORTEST: Duration = Duration::from_millis(100);
/// and at most this.
const LONGEST: Duration = Duration::from_secs(2);

/// `helper.wait_indexed`. Returns how many documents are searchable.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn wait_indexed(workspace: Option<pgrx::Uuid>, timeout: Option<Interval>) -> Reported<i64> {
    shared::check_preloaded()?;
    let workspace = workspace.map(|given| searching::workspace(Some(given))).transpose()?;
    let seconds = timeout.map_or(600.0, |timeout| timeout.as_micros() as f64 / 1e6);
    let begin = Instant::now();
    let mut told = Instant::now();
    let mut first = true;
    loop {
        let looked = Instant::now();
        let now = progress(workspace)?;
        let pause = (looked.elapsed() * SHARE).clamp(SHORTEST, LONGEST);
        if now.own {
            return Err(Error::not_ready("documents of this transaction are indexed only after it commits")
                .hint("Commit, then call helper.wait_indexed.")
                .into());
        }
        if now.pending == 0 {
            if now.failed > 0 {
                warning!(
                    "{} of {} documents could not be indexed; helper.knowledge_sources.error says why",
                    now.failed,
                    now.failed + now.ready
                );
            }
            return Ok(now.ready);
        }
        if first {
            wake::worker_now();
            first = false;
        }
        if told.elapsed() >= Duration::from_secs(5) {
            told = Instant::now();
            let waiting_for = now.error.map(|error| format!(", waiting: {error}")).unwrap_or_default();
            notice!(
                "{} of {} documents indexed, {} chunks, {} failed{waiting_for}",
                now.ready,
                now.ready + now.pending + now.failed,
                now.chunks,
                now.failed
            );
        }
        if begin.elapsed().as_secs_f64() >= seconds {
            return Err(Error::new(Kind::Cancelled, "documents were not indexed in time")
                .detail(format!("{} are indexed, {} wait, {} failed.", now.ready, now.pending, now.failed))
                .hint("Indexing goes on; the view helper.index_progress shows how far it is.")
                .into());
        }
        wait::interruptible(None, Some(pause));
    }
}

/// `helper.version`.
#[pg_extern(sql = false, immutable, parallel_safe)]
fn library_version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}
