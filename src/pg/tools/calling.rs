//! Making calls: by `helper.call`, and by a model in a reply.

use super::registry::{self, Tool};
use super::running::{self, Mode};
use super::subtransaction::{self, Done, Fault};
use super::{Made, Outcome, confirming, content, remote};
use crate::core::error::{Error, Kind, Result};
use crate::core::tool;
use crate::core::wire::{Reply, Request, ToolReply};
use crate::pg::report::Reported;
use crate::pg::{identity, owner, searching, shared, spi};
use pgrx::prelude::*;
use pgrx::{AnyElement, JsonB, Uuid};
use serde_json::{Value, json};
use std::ffi::CStr;

/// Longest arguments, in bytes.
const LONGEST: usize = 1024 * 1024;

/// Where a call comes from.
#[derive(Default)]
struct Origin<'a> {
    conversation: Option<Uuid>,
    message: Option<Uuid>,
    tool_call_id: Option<&'a str>,
    idempotency_key: Option<&'a str>,
    in_queue: bool,
}

/// The text of a `jsonb`, with every digit of its numbers.
pub fn text_of(value: AnyElement) -> String {
    // SAFETY: the SQL declaration says that it is a jsonb; the text is copied.
    unsafe {
        pgrx::direct_function_call::<&CStr>(pg_sys::jsonb_out, &[Some(value.datum())])
            .map(|text| text.to_string_lossy().into_owned())
            .unwrap_or_default()
    }
}

/// Who calls.
pub fn caller() -> Result<Uuid> {
    identity::current_user().ok_or_else(|| Error::new(Kind::NotPermitted, "the caller has no identity"))
}

/// Records a call; `None` where its idempotency key is taken.
fn record(tool: &Tool, workspace: Uuid, arguments: &str, origin: &Origin) -> Result<Option<Uuid>> {
    let status = if tool.needs_confirmation {
        "awaiting_confirmation"
    } else if origin.in_queue {
        "queued"
    } else {
        "running"
    };
    let user = caller()?;
    owner::as_owner(|| {
        let id = spi::change(
            "insert into helper.function_calls as c \
               (workspace_id, function_id, function_name, function_version, user_id, principal_role, principal_claims, \
                conversation_id, message_id, tool_call_id, arguments, arguments_hash, status, in_queue, idempotency_key, \
                approver_role, self_approval, lapses_at, started_at) \
             select $1, f.id, f.function_name, f.updated_at, $3, helper.caller_role(), helper.caller_claims(), \
               $4, $5, $6, $7::jsonb, $8, $9, $10, $11, f.approver_role, f.self_approval, \
               case when f.requires_confirmation then clock_timestamp() + f.lapse end, \
               case $9 when 'running' then clock_timestamp() end \
             from helper.functions f where f.id = $2 \
             on conflict (idempotency_key, workspace_id) where idempotency_key is not null do nothing \
             returning c.id",
            &[
                workspace.into(),
                tool.id.into(),
                user.into(),
                origin.conversation.into(),
                origin.message.into(),
                origin.tool_call_id.into(),
                arguments.into(),
                tool::hash(&tool.name, arguments).as_slice().into(),
                status.into(),
                origin.in_queue.into(),
                origin.idempotency_key.into(),
            ],
            |row| row.get::<Uuid>(1),
        )?
        .pop();
        let Some(id) = id else { return Ok(None) };
        spi::run("select helper._count_call($1, $2, $3)", &[workspace.into(), tool.name.as_str().into(), user.into()])?;
        if status == "queued" {
            enqueue(workspace, id)?;
        }
        Ok(Some(id))
    })
}

/// Puts a call into the queue, for a runner or the worker, as the owner.
pub fn enqueue(workspace: Uuid, call: Uuid) -> Result<()> {
    spi::run(
        "select helper._enqueue($1, case f.kind when 'http' then 'send' else 'call' end, '{}', $2) \
         from helper.function_calls c join helper.functions f on f.id = c.function_id \
         where c.workspace_id = $1 and c.id = $2",
        &[workspace.into(), call.into()],
    )
}

/// Moves a call to another state; `false` where it is in none of those. `facts` is JSON.
pub fn move_call(workspace: Uuid, call: Uuid, from: &[&str], to: &str, facts: &str) -> Result<bool> {
    let from: Vec<String> = from.iter().map(|state| (*state).to_owned()).collect();
    owner::as_owner(|| {
        let moved = spi::change(
            "select helper._move_call($1, $2, $3, $4, $5::jsonb)",
            &[workspace.into(), call.into(), from.into(), to.into(), facts.into()],
            |row| row.get::<bool>(1),
        )?;
        Ok(moved.first() == Some(&true))
    })
}

/// Stores what came of a run that was begun.
pub fn ended(workspace: Uuid, call: Uuid, outcome: &running::Outcome) -> Result<()> {
    let (state, facts) = match outcome {
        Ok(result) => ("succeeded", format!("{{\"result\": {result}}}")),
        Err(fault) => ("failed", json!({ "error": fault.facts() }).to_string()),
    };
    if move_call(workspace, call, &["running"], state, &facts)? {
        Ok(())
    } else {
        Err(Error::bug("a call that was running has another state"))
    }
}

/// The call that has an idempotency key already, if it is the same one.
fn known(tool: &str, workspace: Uuid, arguments: &str, key: &str) -> Result<Option<Uuid>> {
    let user = caller()?;
    let found = owner::as_owner(|| {
        spi::change(
            "select c.id, c.user_id = $3 and c.arguments_hash = $4 from helper.function_calls c \
             where c.workspace_id = $1 and c.idempotency_key = $2",
            &[workspace.into(), key.into(), user.into(), tool::hash(tool, arguments).as_slice().into()],
            |row| Ok((row.get::<Uuid>(1)?, row.get::<bool>(2)?)),
        )
    })?;
    match found.first() {
        Some((id, true)) => Ok(Some(*id)),
        Some((_, false)) => Err(Error::bad_argument("idempotency_key belongs to another call")
            .detail("The same key means the same function with the same arguments by the same person.")),
        None => Ok(None),
    }
}

/// The one option of `helper.call`.
fn is_queued(options: Option<JsonB>) -> Result<bool> {
    let options = options.map_or_else(|| json!({}), |options| options.0);
    let Value::Object(options) = options else { return Err(Error::bad_argument("options is not a JSON object")) };
    let mut queue = false;
    for (name, value) in options {
        if name != "queue" {
            return Err(Error::bad_argument(format!("option \"{name}\" does not exist")).hint("The option is queue."));
        }
        queue = value.as_bool().ok_or_else(|| Error::bad_argument("option \"queue\" is not true or false"))?;
    }
    Ok(queue)
}

fn check_length(arguments: &str) -> Result<()> {
    if arguments.len() <= LONGEST {
        return Ok(());
    }
    Err(Error::bad_argument("arguments are too long")
        .detail(format!("They have {} bytes, {LONGEST} are allowed.", arguments.len())))
}

/// `helper.call`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn call_function(
    function: Option<&str>,
    arguments: Option<AnyElement>,
    workspace: Option<Uuid>,
    idempotency_key: Option<&str>,
    options: Option<JsonB>,
) -> Reported<Uuid> {
    owner::check_is_caller()?;
    let name = function.ok_or_else(|| Error::bad_argument("function is null"))?;
    let arguments = arguments.map(text_of).ok_or_else(|| Error::bad_argument("arguments is null"))?;
    check_length(&arguments)?;
    let queue = is_queued(options)?;
    if idempotency_key.is_some_and(|key| !(1..=200).contains(&key.chars().count())) {
        return Err(Error::bad_argument("idempotency_key has not between 1 and 200 characters").into());
    }
    if idempotency_key.is_some_and(|key| key.starts_with("run:")) && !running::is_stepping() {
        return Err(Error::bad_argument("an idempotency_key that begins with \"run:\" is a workflow's").into());
    }
    let workspace = searching::workspace(workspace)?;
    let tool = registry::find(workspace, name)?;
    if let Some(key) = idempotency_key
        && let Some(id) = known(name, workspace, &arguments, key)?
    {
        return Ok(id);
    }
    registry::check(&tool, &arguments)?;
    let in_queue = queue || tool.target.is_none();
    if in_queue {
        shared::check_preloaded()?;
    }
    let origin = Origin { idempotency_key, in_queue, ..Origin::default() };
    let id = match (record(&tool, workspace, &arguments, &origin)?, idempotency_key) {
        (Some(id), _) => id,
        // Somebody else was first by a moment.
        (None, Some(key)) => {
            let first = known(name, workspace, &arguments, key)?;
            return Ok(first.ok_or_else(|| Error::unknown_object(format!("function \"{name}\" does not exist")))?);
        }
        (None, None) => return Err(Error::unknown_object(format!("function \"{name}\" does not exist")).into()),
    };
    if !tool.needs_confirmation && !in_queue {
        let ran = running::run(&tool, &arguments, workspace, Mode::Keep)?;
        ended(workspace, id, &ran.outcome)?;
    }
    preview_for_approver(&tool, workspace, id, &arguments, false)?;
    Ok(id)
}

/// Who approves somebody else's call cannot run it as them to see what it would do.
fn preview_for_approver(tool: &Tool, workspace: Uuid, call: Uuid, arguments: &str, by_runner: bool) -> Result<()> {
    if !tool.needs_confirmation || tool.approver_role.is_none() || tool.target.is_none() {
        return Ok(());
    }
    if by_runner {
        return owner::as_owner(|| enqueue(workspace, call));
    }
    confirming::preview(tool, workspace, call, arguments).map(drop)
}

fn refused(fault: &Fault) -> Outcome {
    Outcome::Done { call: None, content: content::of_fault(fault), is_error: true }
}

/// See [`super::begin`].
pub fn begin(made: &Made) -> Result<Outcome> {
    owner::check_is_caller()?;
    if caller()? != made.user {
        return Err(Error::new(Kind::NotPermitted, "the caller is not who asked"));
    }
    let prepared = registry::find(made.workspace, made.name).and_then(|tool| {
        let arguments = read(made.arguments)?;
        registry::check(&tool, &arguments)?;
        Ok((tool, arguments))
    });
    let (tool, arguments) = match prepared {
        Ok(prepared) => prepared,
        Err(error) if is_for_model(error.kind) => return Ok(refused(&error.into())),
        Err(error) => return Err(error),
    };
    let origin = Origin {
        conversation: Some(made.conversation),
        message: Some(made.message),
        tool_call_id: Some(made.tool_call_id),
        in_queue: if tool.target.is_none() {
            tool.needs_confirmation
        } else {
            made.by_runner && !tool.needs_confirmation
        },
        ..Origin::default()
    };
    // The limit on calls is an error that the model may hear of.
    let recorded = subtransaction::attempt(None, || {
        Ok(Done { value: record(&tool, made.workspace, &arguments, &origin)?, keep: true })
    });
    let id = match recorded {
        Ok(Some(id)) => id,
        Ok(None) => return Ok(refused(&Error::unknown_object("the function does not exist any more").into())),
        Err(fault) => return Ok(refused(&fault)),
    };
    if tool.needs_confirmation {
        preview_for_approver(&tool, made.workspace, id, &arguments, made.by_runner)?;
        return Ok(Outcome::Awaiting { call: id });
    }
    if tool.target.is_none() {
        return send(made.workspace, id);
    }
    if made.by_runner {
        return Ok(Outcome::Queued { call: id });
    }
    let ran = running::run(&tool, &arguments, made.workspace, Mode::Keep)?;
    ended(made.workspace, id, &ran.outcome)?;
    Ok(match ran.outcome {
        Ok(result) => Outcome::Done { call: Some(id), content: result, is_error: false },
        Err(fault) => Outcome::Done { call: Some(id), content: content::of_fault(&fault), is_error: true },
    })
}

/// A call of an HTTP tool, to be sent; one that cannot be has failed.
fn send(workspace: Uuid, call: Uuid) -> Result<Outcome> {
    match owner::as_owner(|| remote::request(workspace, call)) {
        Ok(request) => Ok(Outcome::Send { call, request: Box::new(Request::Tool(Box::new(request))) }),
        Err(error) => {
            let fault = Fault::from(error);
            let content = content::of_fault(&fault);
            ended(workspace, call, &Err(fault))?;
            Ok(Outcome::Done { call: Some(call), content, is_error: true })
        }
    }
}

/// Whether a model may do something about an error.
fn is_for_model(kind: Kind) -> bool {
    matches!(kind, Kind::BadArgument | Kind::UnknownObject | Kind::NotPermitted | Kind::OverLimit)
}

/// What a model wrote, as `jsonb` writes it.
fn read(arguments: &str) -> Result<String> {
    let text = if arguments.trim().is_empty() { "{}" } else { arguments };
    check_length(text)?;
    let value: Value = serde_json::from_str(text).map_err(|error| {
        Error::bad_argument("the arguments are not JSON").detail(format!(
            "They end or break at line {} column {}.",
            error.line(),
            error.column()
        ))
    })?;
    if !value.is_object() {
        return Err(Error::bad_argument("the arguments are not a JSON object"));
    }
    // Postgres knows no character zero and no number beyond its own.
    subtransaction::attempt(None, || {
        let text =
            spi::first("select $1::pg_catalog.jsonb::pg_catalog.text", &[text.into()], |row| row.get::<String>(1))?;
        Ok(Done { value: text, keep: true })
    })
    .map_err(|fault| Error::bad_argument(fault.message))?
    .ok_or_else(|| Error::bug("no arguments"))
}

/// See [`super::finish`].
pub fn finish(workspace: Uuid, call: Uuid, reply: Result<Reply>) -> Result<Outcome> {
    let reply = match reply {
        Ok(Reply::Tool(reply)) => *reply,
        Ok(_) => return Err(crate::pg::calling::another()),
        Err(error) => ToolReply::Failed { error, reached: true },
    };
    owner::as_owner(|| remote::ended(workspace, call, reply))?;
    outcome(workspace, call)?.ok_or_else(|| Error::bug("a call that was answered has not ended"))
}

/// See [`super::take_up`].
pub fn take_up(workspace: Uuid, call: Uuid) -> Result<Outcome> {
    if let Some(outcome) = outcome(workspace, call)? {
        return Ok(outcome);
    }
    let found = owner::as_owner(|| {
        spi::first(
            "select c.status, coalesce(f.idempotent, false) from helper.function_calls c \
             left join helper.functions f on f.id = c.function_id where c.workspace_id = $1 and c.id = $2",
            &[workspace.into(), call.into()],
            |row| Ok((row.get::<String>(1)?, row.get::<bool>(2)?)),
        )
    })?;
    match found {
        Some((status, _)) if status == "queued" => return Ok(Outcome::Queued { call }),
        Some((_, true)) => return send(workspace, call),
        _ => {}
    }
    let error = Error::not_ready("the call was under way when the worker ended");
    finish(workspace, call, Ok(Reply::Tool(Box::new(ToolReply::Failed { error, reached: true }))))
}

/// See [`super::outcome`].
pub fn outcome(workspace: Uuid, call: Uuid) -> Result<Option<Outcome>> {
    let found = owner::as_owner(|| {
        spi::change(
            "select c.status, c.result::text, c.error, c.reason from helper.function_calls c where c.workspace_id = $1 and c.id = $2",
            &[workspace.into(), call.into()],
            |row| {
                let status: String = row.get(1)?;
                let done = |content: String, is_error: bool| Outcome::Done { call: Some(call), content, is_error };
                Ok(match status.as_str() {
                    "pending" | "awaiting_confirmation" | "queued" | "running" => None,
                    "succeeded" => Some(done(row.opt(2)?.unwrap_or_else(|| "null".into()), false)),
                    "failed" => {
                        let facts = row.opt::<JsonB>(3)?.map_or(Value::Null, |facts| facts.0);
                        Some(done(content::of_facts(&facts), true))
                    }
                    other => Some(done(content::of_status(other, row.opt::<String>(4)?.as_deref()), true)),
                })
            },
        )
    })?;
    found.into_iter().next().ok_or_else(|| Error::unknown_object(format!("call \"{call}\" does not exist")))
}
