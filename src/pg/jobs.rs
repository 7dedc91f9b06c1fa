//! Jobs of the queue, as the worker and the runners take them: claimed in turn, ended, given back.

use crate::core::error::{Error, Result};
use crate::pg::{indexing, spi};
use pgrx::JsonB;

/// A job that is not its kind's own trouble is given up after it was tried this often.
pub const MOST_ATTEMPTS: i32 = 5;

/// Before every workspace.
pub fn first() -> pgrx::Uuid {
    pgrx::Uuid::from_bytes([0; 16])
}

/// A leased job.
#[derive(Clone)]
pub struct Job {
    pub workspace: pgrx::Uuid,
    pub id: pgrx::Uuid,
    /// The document, or whatever else the kind works on.
    pub key: pgrx::Uuid,
    pub attempts: i32,
    pub token: pgrx::Uuid,
}

/// Whether a job of a kind may be claimed, so that a look at an empty queue costs little.
pub fn is_due(kind: &str) -> Result<bool> {
    let due = spi::change(
        "select true from helper.job_queue q where q.kind = $1 and q.run_at <= (select clock_timestamp()) limit 1",
        &[kind.into()],
        |row| row.get::<bool>(1),
    )?;
    Ok(!due.is_empty())
}

/// Which jobs are wanted.
pub struct Wanted<'a> {
    pub kind: &'a str,
    /// The workspace that was served last: those after it come first.
    pub after: pgrx::Uuid,
    /// Of so many workspaces,
    pub workspaces: usize,
    /// so many of each,
    pub share: usize,
    /// and none of these.
    pub without: &'a [pgrx::Uuid],
    /// The runner that takes them; `None` for the worker.
    pub runner: Option<pgrx::Uuid>,
}

/// Leases waiting jobs of a kind from some workspaces, going round.
pub fn claim(wanted: &Wanted) -> Result<Vec<Job>> {
    if !is_due(wanted.kind)? {
        return Ok(Vec::new());
    }
    let mut jobs = claim_after(wanted)?;
    let served = jobs.chunk_by(|a, b| a.workspace == b.workspace).count();
    let enough = wanted.runner.is_some() && served > 0;
    if served < wanted.workspaces && !enough {
        jobs.extend(claim_after(&Wanted { after: first(), workspaces: wanted.workspaces - served, ..*wanted })?);
    }
    Ok(jobs)
}

fn claim_after(wanted: &Wanted) -> Result<Vec<Job>> {
    let mut jobs = spi::change(
        "select workspace_id, job_id, key, attempts, token from helper._claim($1, $2, $3, $4, $5, $6)",
        &[
            wanted.kind.into(),
            wanted.after.into(),
            (wanted.workspaces as i32).into(),
            (wanted.share as i32).into(),
            wanted.without.to_vec().into(),
            wanted.runner.into(),
        ],
        |row| {
            Ok(Job {
                workspace: row.get(1)?,
                id: row.get(2)?,
                key: row.get(3)?,
                attempts: row.get(4)?,
                token: row.get(5)?,
            })
        },
    )?;
    // In the order in which they were asked for; `returning` keeps none.
    jobs.sort_by_key(|job| (*job.workspace.as_bytes(), *job.id.as_bytes()));
    Ok(jobs)
}

/// Ends a leased job.
pub fn end(job: &Job, status: &str, error: Option<&Error>) -> Result<()> {
    spi::run(
        "select helper._finish($1, $2, $3, $4, $5)",
        &[
            job.workspace.into(),
            job.id.into(),
            job.token.into(),
            status.into(),
            error.map(|error| JsonB(indexing::facts(error))).into(),
        ],
    )
}

/// Gives a leased job back to the queue.
pub fn requeue(job: &Job, seconds: f64, count_attempt: bool) -> Result<()> {
    spi::run(
        "select helper._requeue($1, $2, $3, pg_catalog.make_interval(secs => $4), $5)",
        &[job.workspace.into(), job.id.into(), job.token.into(), seconds.into(), count_attempt.into()],
    )
}
