//! Calls that the worker runs, as who made them.

use super::confirming::{self, COLUMNS, Stored, outdated};
use super::subtransaction::Fault;
use super::{calling, registry, remote};
use crate::core::error::{Error, Kind, Result};
use crate::core::wire::ToolRequest;
use crate::pg::{owner, spi};
use pgrx::Uuid;
use serde_json::json;

/// What became of a queued call.
pub enum Queued {
    /// It has ended.
    Ended,
    /// It is running; to be sent when the transaction is committed.
    Send(Box<ToolRequest>),
    /// It still waits, as nothing can be sent now.
    Later,
}

/// Runs a queued call, in a transaction of the worker that nothing else is in: what it does, what came of it and the end
/// of its job are one. Only outside of [`owner::as_owner`].
pub fn run_queued(workspace: Uuid, call: Uuid, can_send: bool) -> Result<Queued> {
    let found = owner::as_owner(|| {
        let found = spi::change(
            &format!(
                "select {COLUMNS}, c.principal_role::text, c.principal_claims::text, \
                   exists (select from helper.functions f where f.id = c.function_id and f.kind = 'http') from helper.function_calls c \
                 where c.workspace_id = $1 and c.id = $2 and c.status = 'queued' for update"
            ),
            &[workspace.into(), call.into()],
            |row| Ok((Stored::read(row)?, row.get::<String>(10)?, row.opt::<String>(11)?, row.get::<bool>(12)?)),
        )?
        .pop();
        Ok(found)
    })?;
    let Some((stored, role, claims, is_remote)) = found else { return Ok(Queued::Ended) };
    if is_remote && !can_send {
        return Ok(Queued::Later);
    }
    if !calling::move_call(workspace, call, &["queued"], "running", "{}")? {
        return Ok(Queued::Ended);
    }
    let mut may_be_sent = false;
    let done = owner::as_principal(&role, claims.as_deref(), || {
        if !stored.is_same {
            return calling::ended(workspace, call, &Err(outdated()));
        }
        match registry::find(workspace, &stored.name) {
            Ok(tool) if tool.target.is_none() => {
                may_be_sent = true;
                Ok(())
            }
            Ok(tool) => confirming::run(&stored, &tool),
            Err(error) => calling::ended(workspace, call, &Err(error.into())),
        }
    });
    match done {
        // The role is gone, say.
        Err(error) if error.kind == Kind::NotPermitted => {
            calling::ended(workspace, call, &Err(error.into()))?;
        }
        other => other?,
    }
    if !may_be_sent {
        return Ok(Queued::Ended);
    }
    match owner::as_owner(|| remote::request(workspace, call)) {
        Ok(request) => Ok(Queued::Send(Box::new(request))),
        Err(error) => calling::ended(workspace, call, &Err(error.into())).map(|()| Queued::Ended),
    }
}

/// Ends a queued call that could not be run, as the owner.
pub fn give_up(workspace: Uuid, call: Uuid, error: &Error) -> Result<()> {
    let fault = Fault::from(error.clone());
    let facts = json!({ "error": fault.facts() }).to_string();
    spi::run(
        "select helper._move_call($1, $2, array['queued'], 'failed', $3::jsonb)",
        &[workspace.into(), call.into(), facts.into()],
    )
}
