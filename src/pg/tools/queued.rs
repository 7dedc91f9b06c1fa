//! Calls that wait in the queue: those of SQL functions, which a runner runs as who made them, or tries for who is to
//! approve them; and those of HTTP endpoints, which the worker sends.

use super::confirming::{self, COLUMNS, Stored, outdated};
use super::registry::{self, Tool};
use super::subtransaction::Fault;
use super::{calling, remote};
use crate::core::error::{Error, Kind, Result};
use crate::core::wire::ToolRequest;
use crate::pg::jobs::{self, Job, MOST_ATTEMPTS};
use crate::pg::{calling_off, owner, session, spi};
use pgrx::Uuid;
use serde_json::json;
use std::ffi::CString;

/// What became of a queued call of a SQL function.
pub enum Queued {
    /// It has ended, or does not wait any more.
    Ended,
    /// Somebody's open transaction decides over it.
    Later,
}

/// What is to be done with a queued call of an HTTP endpoint.
pub enum ToSend {
    /// It has ended, or does not wait any more.
    Ended,
    /// It is running; to be sent when the transaction is committed.
    Now(Box<ToolRequest>),
    /// It still waits, as it cannot be sent now.
    Later,
}

/// Seconds until a call is looked at again that was called off.
const CALLED_OFF: f64 = 0.25;

/// A call and whose it is.
struct Waiting {
    stored: Stored,
    role: String,
    claims: Option<String>,
}

enum Found {
    Waiting(Box<Waiting>),
    /// Another transaction has it, or an earlier worker had.
    Taken,
    Gone,
}

/// Which calls `c` wait: to be run, or to be tried for who is to approve them.
const WAITS: &str = "(c.status = 'queued' or c.status = 'awaiting_confirmation' and c.effect_hash is null)";

/// The call, locked. Nobody waits for a lock here: who has it may take long.
fn find(workspace: Uuid, call: Uuid) -> Result<Found> {
    owner::as_owner(|| {
        let found = spi::change(
            &format!(
                "select {COLUMNS}, c.principal_role::text, c.principal_claims::text from helper.function_calls c \
                 where c.workspace_id = $1 and c.id = $2 and {WAITS} for update skip locked"
            ),
            &[workspace.into(), call.into()],
            |row| Ok(Waiting { stored: Stored::read(row)?, role: row.get(12)?, claims: row.opt(13)? }),
        )?
        .pop();
        if let Some(waiting) = found {
            return Ok(Found::Waiting(Box::new(waiting)));
        }
        let taken = spi::change(
            // One that runs while its job waits is an earlier worker's, and held: it waits once it is settled.
            &format!(
                "select true from helper.function_calls c \
                 where c.workspace_id = $1 and c.id = $2 and ({WAITS} or c.status = 'running')"
            ),
            &[workspace.into(), call.into()],
            |row| row.get::<bool>(1),
        )?;
        Ok(if taken.is_empty() { Found::Gone } else { Found::Taken })
    })
}

/// Moves a call to running and goes on as who made it, if it is still the tool that was called.
fn begin<T>(waiting: &Waiting, work: impl FnOnce(&Tool) -> Result<Option<T>>) -> Result<Option<T>> {
    let stored = &waiting.stored;
    let end = |fault: Fault| calling::ended(stored.workspace, stored.id, &Err(fault)).map(|()| None);
    if !calling::move_call(stored.workspace, stored.id, &["queued"], "running", "{}")? {
        return Ok(None);
    }
    let done = owner::as_principal(&waiting.role, waiting.claims.as_deref(), || {
        if !stored.is_same {
            return end(outdated());
        }
        match registry::find(stored.workspace, &stored.name) {
            Ok(tool) => work(&tool),
            Err(error) => end(error.into()),
        }
    });
    match done {
        // The role is gone, say.
        Err(error) if error.kind == Kind::NotPermitted => end(error.into()),
        other => other,
    }
}

/// Runs a queued call of a SQL function, in a transaction of a runner that nothing else is in: what it does, what came of
/// it and the end of its job are one. Only outside of [`owner::as_owner`].
pub fn run_queued(workspace: Uuid, call: Uuid) -> Result<Queued> {
    let waiting = match find(workspace, call)? {
        Found::Waiting(waiting) => waiting,
        Found::Taken => return Ok(Queued::Later),
        Found::Gone => return Ok(Queued::Ended),
    };
    if waiting.stored.status == "awaiting_confirmation" {
        show(&waiting)?;
        return Ok(Queued::Ended);
    }
    begin(&waiting, |tool| {
        bind_waits(tool)?;
        confirming::run(&waiting.stored, tool).map(Some)
    })?;
    Ok(Queued::Ended)
}

/// A tool's own time binds each wait for a lock, the tool's and those for what came of it. A second more: the tool is to be
/// told that its time is over, not that a lock was.
fn bind_waits(tool: &Tool) -> Result<()> {
    let time = CString::new(tool.timeout_ms.saturating_add(1000).to_string())
        .map_err(|_| Error::bug("a number holds a NUL"))?;
    session::set_locally(c"lock_timeout", &time);
    Ok(())
}

/// Keeps for who is to approve a call what it would do. One that cannot be tried is told when it is approved.
fn show(waiting: &Waiting) -> Result<()> {
    let stored = &waiting.stored;
    let shown = owner::as_principal(&waiting.role, waiting.claims.as_deref(), || {
        let tool = registry::find(stored.workspace, &stored.name)?;
        if stored.is_same && tool.target.is_some() {
            bind_waits(&tool)?;
            let preview = || confirming::preview(&tool, stored.workspace, stored.id, &stored.arguments);
            stored.led.does(preview)?;
        }
        Ok(())
    });
    match shown {
        Err(error) if matches!(error.kind, Kind::NotPermitted | Kind::UnknownObject) => Ok(()),
        other => other,
    }
}

/// Cancels a queued call, as the owner. Nobody waits for a runner that has begun it: that is told to break it off.
pub fn cancel_queued(workspace: Uuid, call: Uuid) -> Result<()> {
    calling_off::now(*call.as_bytes());
    cancel_unlocked(workspace, call, &["queued"])
}

/// Ends a call that somebody cancelled while this runner was at it, though they may have taken that back. Nobody waits for
/// them, who may still have it locked: it is looked at once more in a moment.
pub fn called_off(job: &Job) -> Result<()> {
    cancel_unlocked(job.workspace, job.key, &["queued", "awaiting_confirmation"])?;
    jobs::requeue(job, CALLED_OFF, false)
}

/// Cancels a call in one of some states that nobody has locked.
fn cancel_unlocked(workspace: Uuid, call: Uuid, states: &[&str]) -> Result<()> {
    let states: Vec<String> = states.iter().map(|state| (*state).to_owned()).collect();
    spi::run(
        "with open as materialized ( \
           select c.workspace_id, c.id from helper.function_calls c \
           where c.workspace_id = $1 and c.id = $2 and c.status = any ($3) for update skip locked) \
         select helper._move_call(o.workspace_id, o.id, $3, 'cancelled') from open o",
        &[workspace.into(), call.into(), states.into()],
    )
}

/// Makes a queued call of an HTTP endpoint ready to be sent, in a transaction of the worker. Only outside of
/// [`owner::as_owner`].
pub fn prepare_queued(workspace: Uuid, call: Uuid, can_send: bool) -> Result<ToSend> {
    let waiting = match find(workspace, call)? {
        Found::Waiting(waiting) if can_send => waiting,
        Found::Waiting(_) | Found::Taken => return Ok(ToSend::Later),
        Found::Gone => return Ok(ToSend::Ended),
    };
    if begin(&waiting, |_| Ok(Some(())))?.is_none() {
        return Ok(ToSend::Ended);
    }
    match owner::as_owner(|| remote::request(workspace, call)) {
        Ok(request) => Ok(ToSend::Now(Box::new(request))),
        Err(error) => calling::ended(workspace, call, &Err(error.into())).map(|()| ToSend::Ended),
    }
}

/// Has a queued call tried again after an error that may pass, or ends it, as the owner.
pub fn tried(job: &Job, error: &Error) -> Result<()> {
    if error.kind == Kind::NotReady && job.attempts < MOST_ATTEMPTS {
        return jobs::requeue(job, f64::from(job.attempts), true);
    }
    let facts = json!({ "error": Fault::from(error.clone()).facts() }).to_string();
    spi::run(
        "select helper._move_call($1, $2, array['queued'], 'failed', $3::jsonb)",
        &[job.workspace.into(), job.key.into(), facts.into()],
    )?;
    jobs::end(job, "failed", Some(error))
}
