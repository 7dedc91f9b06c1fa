//! The Model Context Protocol for whoever calls: a message comes in, what is said to it goes out. Everything is read and
//! done as the caller, so that row-level security, privileges and approvals are those of any other session. What goes
//! wrong is an error of the protocol and leaves nothing behind, but for what ends the statement, such as a cancel.
//!
//! The caller's search path is left alone, as the functions in an application's policies may need it; so the statements
//! name their operators with their schema.

use crate::core::error::{Error, Result};
use crate::core::mcp::call::{self, Own, Said, Waiting};
use crate::core::mcp::{self, Answer, Message, PAGE, Refusal, Request};
use crate::pg::report::Reported;
use crate::pg::tools::subtransaction::{self, Done, Fault};
use crate::pg::tools::{self, Outcome, content, text_of};
use crate::pg::{owner, searching, spi};
use pgrx::prelude::*;
use pgrx::{AnyElement, FromDatum, JsonB, Uuid};
use serde_json::{Map, Value, json};
use std::ffi::CString;

/// What is said to a request.
type Reply = std::result::Result<Answer, Refusal>;

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Refusal::of_sqlstate(&fault.sqlstate, fault.message, fault.detail, fault.hint)
    }
}

/// `helper.mcp`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn answer_mcp(
    request: Option<AnyElement>,
    workspace: Option<Uuid>,
    approvals: Option<bool>,
) -> Reported<Option<AnyElement>> {
    owner::check_is_caller()?;
    let text = request.map(text_of).ok_or_else(|| Error::bad_argument("request is null"))?;
    let message = serde_json::from_str(&text).map_err(|_| Error::bug("a jsonb cannot be read"))?;
    let response = match mcp::read(message) {
        Message::Silent => return Ok(None),
        Message::Refused(id, refusal) => mcp::error(id.as_ref(), &refusal),
        Message::Request(request) => match reply(&request, &text, workspace, approvals == Some(true)) {
            Ok(answer) => mcp::response(&request, &answer),
            Err(refusal) => mcp::error(Some(&request.id), &refusal),
        },
    };
    Ok(Some(jsonb(&response)?))
}

/// JSON text as `jsonb`, with every digit of its numbers.
fn jsonb(text: &str) -> Result<AnyElement> {
    let text = CString::new(text).map_err(|_| Error::bug("JSON holds a NUL"))?;
    // SAFETY: the text lives until the function has returned; what it returns is a jsonb.
    let value = unsafe {
        let datum = pgrx::direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(text.as_ptr().into())]);
        datum.and_then(|datum| AnyElement::from_polymorphic_datum(datum, false, pg_sys::JSONBOID))
    };
    value.ok_or_else(|| Error::bug("no jsonb"))
}

/// What is said to a request, whatever happens; an error takes back all that was done for it.
fn reply(request: &Request, text: &str, workspace: Option<Uuid>, approvals: bool) -> Reply {
    subtransaction::attempt(None, || {
        let reply = answer(request, text, workspace, approvals);
        Ok(Done { keep: reply.is_ok(), value: reply })
    })?
}

fn answer(request: &Request, text: &str, workspace: Option<Uuid>, approvals: bool) -> Reply {
    let params = &request.params;
    let here = || searching::workspace(workspace);
    match (request.method.as_str(), request.is_stateless) {
        ("initialize", false) => Ok(mcp::initialize(params)?.into()),
        ("ping", false) => Ok(json!({}).into()),
        ("logging/setLevel", false) => Ok(mcp::set_level(params)?.into()),
        ("server/discover", true) => Ok(mcp::discover().into()),
        ("tools/list", _) => list_tools(params, here()?, approvals),
        ("tools/call", _) => call_tool(request, text, here()?, approvals),
        ("resources/list", _) => list_documents(params, here()?),
        ("resources/templates/list", _) => Ok(mcp::templates().into()),
        ("resources/read", _) => read_document(request, here()?),
        ("prompts/list", _) => list_modes(params, here()?),
        ("prompts/get", _) => fill_mode(params, here()?),
        ("completion/complete", _) => Ok(mcp::complete(params)?.into()),
        (other, _) => Err(Refusal::new(-32601, format!("method \"{other}\" does not exist"))),
    }
}

/// One more than a page has, to see whether there are more.
const FETCHED: i64 = PAGE as i64 + 1;

fn list_tools(params: &Map<String, Value>, workspace: Uuid, approvals: bool) -> Reply {
    let after = mcp::cursor(params, mcp::is_name)?;
    let tools = spi::select(
        "select a.function_name, a.description, a.parameters_schema, a.requires_confirmation, a.read_only, \
           a.kind operator(pg_catalog.=) 'http' \
         from helper.available_functions($1) a \
         where a.function_name collate pg_catalog.\"C\" operator(pg_catalog.>) $2 \
           and a.function_name operator(pg_catalog.<>) all ($4) \
         order by a.function_name collate pg_catalog.\"C\" limit $3",
        &[workspace.into(), after.unwrap_or_default().into(), FETCHED.into(), Own::names().into()],
        |row| {
            let name: String = row.get(1)?;
            let schema = row.get::<JsonB>(3)?.0;
            let tool = call::tool(&name, &row.get::<String>(2)?, schema, row.get(4)?, row.get(5)?, row.get(6)?);
            Ok((name, tool))
        },
    )?;
    let ahead = if after.is_none() { Own::tools(approvals) } else { Vec::new() };
    Ok(mcp::page("tools", tools, ahead).into())
}

fn call_tool(request: &Request, text: &str, workspace: Uuid, approvals: bool) -> Reply {
    let params = &request.params;
    let name = mcp::text(params, "name")?;
    let none = Map::new();
    let arguments = match params.get("arguments") {
        None => &none,
        Some(Value::Object(arguments)) => arguments,
        Some(_) => return Err(Refusal::invalid_params("\"arguments\" is not an object")),
    };
    let unknown = || Refusal::invalid_params(format!("unknown tool: {name}"));
    if let Some(own) = Own::of_name(name) {
        if own.decides() && !approvals {
            return Err(unknown());
        }
        return match own.arguments(arguments) {
            Ok((id, more)) => decide(own, Uuid::from_bytes(*id.as_bytes()), more, approvals),
            Err(problem) => Ok(call::result(&problem, true)),
        };
    }
    if let Some((id, effect)) = call::asked_before(params)?.filter(|_| request.is_stateless) {
        return come_back(request, text, Uuid::from_bytes(*id.as_bytes()), effect, approvals);
    }
    let made = tried(
        "select helper.call($1, coalesce($2::pg_catalog.jsonb operator(pg_catalog.#>) '{params,arguments}', '{}'), $3)",
        &[name.into(), text.into(), workspace.into()],
    );
    match made {
        Ok(id) => told(id, request.can_ask, approvals),
        Err(fault) if fault.sqlstate == "42704" => Err(unknown()),
        Err(fault) => Ok(call::result(&content::of_fault(&fault), true)),
    }
}

/// Runs a statement that gives the id of a call; what it raises is told to the model.
fn tried(sql: &str, args: &[pgrx::datum::DatumWithOid]) -> std::result::Result<Uuid, Fault> {
    subtransaction::attempt(None, || {
        let id = spi::change(sql, args, |row| row.get::<Uuid>(1))?.pop();
        Ok(Done { value: id.ok_or_else(|| Error::bug("no call"))?, keep: true })
    })
}

/// Does what the caller decided about a call; `more` is the effect that they saw, or their reason.
fn decide(own: Own, id: Uuid, more: Option<&str>, approvals: bool) -> Reply {
    let decided = match own {
        Own::Status => {
            tried("select (helper.call_status($1) operator(pg_catalog.->>) 'id')::pg_catalog.uuid", &[id.into()])
        }
        Own::Confirm => tried(
            "select (helper.confirm($1, $2) operator(pg_catalog.->>) 'id')::pg_catalog.uuid",
            &[id.into(), more.into()],
        ),
        Own::Reject => tried(
            "select (helper.reject($1, $2) operator(pg_catalog.->>) 'id')::pg_catalog.uuid",
            &[id.into(), more.into()],
        ),
    };
    match decided {
        Ok(id) => told(id, false, approvals),
        Err(fault) => Ok(call::result(&content::of_fault(&fault), true)),
    }
}

/// A request that came back with what the client's user said. The id of the call is nobody's word for anything: it must be
/// a call of the caller's with the same tool and arguments, and whether they may approve it is asked again.
fn come_back(request: &Request, text: &str, id: Uuid, effect: Option<&str>, approvals: bool) -> Reply {
    let is_same = subtransaction::attempt(None, || {
        let same = spi::change(
            "select (s operator(pg_catalog.->) 'function') operator(pg_catalog.=) (r operator(pg_catalog.#>) '{params,name}') \
               and (s operator(pg_catalog.->) 'arguments') operator(pg_catalog.=) \
                 coalesce(r operator(pg_catalog.#>) '{params,arguments}', '{}') \
               and (s operator(pg_catalog.->>) 'user_id') operator(pg_catalog.=) helper.current_user_id()::pg_catalog.text \
             from helper.call_status($1) s \
             cross join (select $2::pg_catalog.jsonb) q (r)",
            &[id.into(), text.into()],
            |row| row.opt::<bool>(1),
        )?;
        Ok(Done { value: same == [Some(true)], keep: true })
    });
    if is_same != Ok(true) {
        return Err(call::unknown_state());
    }
    match call::said(&request.params) {
        Said::Yes => decide(Own::Confirm, id, effect, approvals),
        Said::No => decide(Own::Reject, id, Some("the user said no"), approvals),
        Said::Later => told(id, false, approvals),
        Said::Nothing => told(id, request.can_ask, approvals),
    }
}

/// Where a call stands, to a caller who may know of it.
fn told(id: Uuid, can_ask: bool, approvals: bool) -> Reply {
    let found = spi::change(
        "select (s operator(pg_catalog.->>) 'workspace_id')::pg_catalog.uuid, s operator(pg_catalog.->>) 'status', \
           s operator(pg_catalog.->>) 'function', s operator(pg_catalog.->>) 'arguments', \
           (s operator(pg_catalog.->>) 'may_approve')::pg_catalog.bool, s operator(pg_catalog.->>) 'approver_role', \
           s operator(pg_catalog.->>) 'lapses_at', s operator(pg_catalog.->>) 'reason', s operator(pg_catalog.->>) 'effect', \
           (select pg_catalog.string_agg(pg_catalog.format('%s: %s inserted, %s updated, %s deleted', t operator(pg_catalog.->>) 'table', \
               t operator(pg_catalog.->>) 'inserted', t operator(pg_catalog.->>) 'updated', t operator(pg_catalog.->>) 'deleted'), '; ') \
             from pg_catalog.jsonb_path_query(s, '$.preview.tables[*]') t) \
         from helper.call_status($1) s",
        &[id.into()],
        |row| {
            let (workspace, status): (Uuid, String) = (row.get(1)?, row.get(2)?);
            let (function, arguments): (String, String) = (row.get(3)?, row.get(4)?);
            let (role, lapses): (Option<String>, Option<String>) = (row.opt(6)?, row.opt(7)?);
            let (effect, changes): (Option<String>, Option<String>) = (row.opt(9)?, row.opt(10)?);
            if let Some(Outcome::Done { content, is_error, .. }) = tools::outcome(workspace, id)? {
                return Ok(call::result(&content, is_error));
            }
            if status == "expired" {
                return Ok(call::result(&content::of_status(&status, row.opt::<String>(8)?.as_deref()), true));
            }
            let waiting = Waiting {
                call: &id.to_string(),
                status: &status,
                function: &function,
                arguments: &arguments,
                may_approve: row.get(5)?,
                approver_role: role.as_deref(),
                lapses_at: lapses.as_deref(),
                effect: effect.as_deref(),
                changes: changes.as_deref(),
                approvals,
            };
            Ok(if can_ask && waiting.may_approve { waiting.asked() } else { waiting.told() })
        },
    )?;
    found.into_iter().next().ok_or_else(|| Error::bug("no call").into())
}

fn list_documents(params: &Map<String, Value>, workspace: Uuid) -> Reply {
    let after = mcp::cursor(params, |key| uuid::Uuid::try_parse(key).is_ok())?;
    let after = after.and_then(|key| uuid::Uuid::try_parse(key).ok()).unwrap_or_default();
    let documents = spi::select(
        "select s.id, s.title, s.file_name, s.mime_type, \
           pg_catalog.to_char(pg_catalog.timezone('UTC', s.updated_at), 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') \
         from helper.knowledge_sources s \
         where s.workspace_id operator(pg_catalog.=) $1 and s.id operator(pg_catalog.>) $2 and s.content is not null \
         order by s.id limit $3",
        &[workspace.into(), Uuid::from_bytes(*after.as_bytes()).into(), FETCHED.into()],
        |row| {
            let (id, title) = (row.get::<Uuid>(1)?.to_string(), row.get::<String>(2)?);
            let document = json!({
                "uri": mcp::uri(&id),
                "name": row.opt::<String>(3)?.unwrap_or_else(|| title.clone()),
                "title": title,
                "mimeType": mcp::text_type(row.opt::<String>(4)?.as_deref()),
                "annotations": { "lastModified": row.get::<String>(5)? },
            });
            Ok((id, document))
        },
    )?;
    Ok(mcp::page("resources", documents, Vec::new()).into())
}

fn read_document(request: &Request, workspace: Uuid) -> Reply {
    let uri = mcp::text(&request.params, "uri")?;
    let unknown = || mcp::no_resource(uri, request.is_stateless);
    let id = mcp::document(uri).ok_or_else(unknown)?;
    let found = spi::first(
        "select s.mime_type, s.content from helper.knowledge_sources s \
         where s.workspace_id operator(pg_catalog.=) $1 and s.id operator(pg_catalog.=) $2 and s.content is not null",
        &[workspace.into(), Uuid::from_bytes(*id.as_bytes()).into()],
        |row| {
            let mime_type = row.opt::<String>(1)?;
            Ok(json!({ "uri": uri, "mimeType": mcp::text_type(mime_type.as_deref()), "text": row.get::<String>(2)? }))
        },
    )?;
    Ok(json!({ "contents": [found.ok_or_else(unknown)?] }).into())
}

/// Of two modes by one name, the workspace's own comes first, as when a question is asked.
const MODES: &str = "select distinct on (m.name collate pg_catalog.\"C\") m.name, m.description, m.instructions \
     from helper.modes m \
     where (m.workspace_id operator(pg_catalog.=) $1 or m.workspace_id is null)";
const MODES_ORDER: &str = "order by m.name collate pg_catalog.\"C\", m.workspace_id nulls last, m.builtin";

fn list_modes(params: &Map<String, Value>, workspace: Uuid) -> Reply {
    let after = mcp::cursor(params, mcp::is_name)?.unwrap_or_default();
    let modes = spi::select(
        &format!("{MODES} and m.name collate pg_catalog.\"C\" operator(pg_catalog.>) $2 {MODES_ORDER} limit $3"),
        &[workspace.into(), after.into(), FETCHED.into()],
        |row| {
            let name: String = row.get(1)?;
            let prompt = mcp::prompt(&name, &row.get::<String>(2)?);
            Ok((name, prompt))
        },
    )?;
    Ok(mcp::page("prompts", modes, Vec::new()).into())
}

fn fill_mode(params: &Map<String, Value>, workspace: Uuid) -> Reply {
    let name = mcp::text(params, "name")?;
    let found = spi::first(
        &format!("{MODES} and m.name operator(pg_catalog.=) $2 {MODES_ORDER}"),
        &[workspace.into(), name.into()],
        |row| Ok((row.get::<String>(2)?, row.get::<String>(3)?)),
    )?;
    let (description, instructions) =
        found.ok_or_else(|| Refusal::invalid_params(format!("unknown prompt: {name}")))?;
    let question = match params.get("arguments") {
        Some(Value::Object(arguments)) => mcp::text(arguments, "question")?,
        _ => return Err(Refusal::invalid_params("\"question\" is missing or not a string")),
    };
    Ok(mcp::filled(&description, &instructions, question).into())
}
