//! Tools: what a caller, or a model on their behalf, may have called, and calls from the first to the last state.
//!
//! A call comes in, is checked against the caller's role, switches and privileges, its schema and its limits, and recorded.
//! Then it waits for an approval, for the worker, or runs at once in a subtransaction. No caller's word about who they are,
//! what was approved or what came of a call is ever taken.

mod calling;
mod capture;
mod confirming;
pub mod content;
mod queued;
mod reading;
mod registry;
mod remote;
mod running;
pub mod subtransaction;

use crate::core::error::{Error, Result};
use crate::core::tool;
use crate::core::wire::{Reply, Request};
use crate::pg::{owner, spi};
use pgrx::Uuid;

pub use calling::text_of;
pub use confirming::APPROVAL;
pub use queued::{Queued, ToSend, called_off, cancel_queued, prepare_queued, run_queued, tried};
pub use remote::{back_to_queue, ended, endpoint};
pub use running::{guarded, is_inside_statement, stepping};
pub use subtransaction::{Done, Fault, attempt};

/// A tool that may be offered to a model.
pub struct Offered {
    pub name: String,
    pub description: String,
    /// JSON Schema of its arguments.
    pub parameters: String,
    /// Its request would be sent at once, and has an effect each time: nothing for a transaction that may be rolled back.
    pub sends_at_once: bool,
}

/// A call that a model made in a reply.
pub struct Made<'a> {
    pub workspace: Uuid,
    pub user: Uuid,
    pub conversation: Uuid,
    pub message: Uuid,
    /// The model's own id of it.
    pub tool_call_id: &'a str,
    /// The tool's name, as the model wrote it.
    pub name: &'a str,
    /// As the model wrote them.
    pub arguments: &'a str,
    /// A runner runs SQL functions, not this session.
    pub by_runner: bool,
}

/// Where a call stands.
pub enum Outcome {
    /// It has ended: its result, or why there is none, as text for the model.
    Done { call: Option<Uuid>, content: String, is_error: bool },
    /// Somebody has to approve it; the turn ends.
    Awaiting { call: Uuid },
    /// An HTTP endpoint's: send this to the gateway, then [`finish`].
    Send { call: Uuid, request: Box<Request> },
    /// A runner has taken or takes it; it wakes the worker when it has ended.
    Queued { call: Uuid },
}

/// What the caller may have called in a workspace; `asked` narrows it to names, `product:slug` and `tag:word`, and is
/// everything where it is empty.
///
/// Errors: 42704 one of `asked` is no tool that the caller may have called there.
pub fn offered(workspace: Uuid, asked: &[String]) -> Result<Vec<Offered>> {
    let all = owner::as_owner(|| {
        spi::change(
            "select f.function_name, f.product_slug, f.tags, f.description, f.parameters_schema::text, \
               f.kind = 'http' and not (f.requires_confirmation or f.read_only or f.idempotent) \
             from helper.functions f \
             where helper._is_switched_on(f, $1) \
               and not 'internal' = any (f.tags) \
               and helper._role_rank(f.minimum_role) <= helper._role_rank(helper.my_role($1)) \
               and (f.kind = 'http' or helper._may_execute(f.target)) \
             order by f.function_name",
            &[workspace.into()],
            |row| {
                let name: String = row.get(1)?;
                let (product, tags) = (row.opt::<String>(2)?, row.get::<Vec<String>>(3)?);
                let by: Vec<bool> = asked
                    .iter()
                    .map(|one| tool::is_chosen(std::slice::from_ref(one), &name, product.as_deref(), &tags))
                    .collect();
                let tool =
                    Offered { name, description: row.get(4)?, parameters: row.get(5)?, sends_at_once: row.get(6)? };
                Ok((tool, by))
            },
        )
    })?;
    for (at, one) in asked.iter().enumerate() {
        if !all.iter().any(|(_, by)| by[at]) {
            return Err(Error::unknown_object(format!("tool \"{one}\" does not exist"))
                .hint("helper.available_functions lists what the caller may have called in the workspace."));
        }
    }
    Ok(all.into_iter().filter(|(_, by)| by.is_empty() || by.contains(&true)).map(|(tool, _)| tool).collect())
}

/// Begins a call that a model made, as the caller and inside their transaction; what they may do is checked again. A call
/// that cannot be made is told to the model.
pub fn begin(made: &Made) -> Result<Outcome> {
    calling::begin(made)
}

/// Takes what came of a request that [`begin`] or [`outcome`] asked to be sent.
pub fn finish(workspace: Uuid, call: Uuid, reply: Result<Reply>) -> Result<Outcome> {
    calling::finish(workspace, call, reply)
}

/// A call of [`begin`] that somebody who is gone waited for: one that was to be sent is sent again where that does no harm,
/// else uncertain.
pub fn take_up(workspace: Uuid, call: Uuid) -> Result<Outcome> {
    calling::take_up(workspace, call)
}

/// What came of a call, for resuming a turn; `None` where it has not ended.
pub fn outcome(workspace: Uuid, call: Uuid) -> Result<Option<Outcome>> {
    calling::outcome(workspace, call)
}
