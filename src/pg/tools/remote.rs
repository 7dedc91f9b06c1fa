//! HTTP tools: the request of a call, with its endpoint's key; and servers of the Model Context Protocol, asked what they
//! have to offer.

use super::calling as calls;
use crate::core::error::{Error, Result};
use crate::core::template::{self, Arguments, Filled, Template};
use crate::core::tool::remote::{self, End};
use crate::core::wire::{Credential, Endpoint, Errand, Reply, Request, Signature, ToolReply, ToolRequest};
use crate::pg::report::Reported;
use crate::pg::{calling, gateway, owner, routes, spi};
use pgrx::prelude::*;
use pgrx::{JsonB, Uuid};
use serde_json::{Value, json};

/// Milliseconds in which a server has to say what it has to offer.
const LIST_MS: u64 = 30_000;
/// The header that a key goes into unless another is named.
const AUTHORIZATION: &str = "authorization";
/// The header of a signature unless another is named.
const SIGNATURE: &str = "x-signature";

/// The request of a call of an HTTP tool, with its key, which goes to the endpoint's host alone. As the owner.
///
/// Errors: 22023 an argument does not fit its place, 53400 the URL grows too long, 55000 the key or the tool is gone.
pub fn request(workspace: Uuid, call: Uuid) -> Result<ToolRequest> {
    // What was inserted a moment ago is seen too.
    let found = spi::change(
        "select f.function_name, f.http, coalesce(s.options operator(pg_catalog.||) pg_catalog.jsonb_build_object('url', s.url), f.http), \
           case when s.id is null then f.credential else s.credential end, f.timeout_ms, f.max_result_bytes, c.arguments::text, f.idempotent \
         from helper.function_calls c join helper.functions f on f.id = c.function_id \
         left join helper.mcp_servers s on s.name = f.http ->> 'server' \
         where c.workspace_id = $1 and c.id = $2 and f.kind = 'http'",
        &[workspace.into(), call.into()],
        |row| {
            let whole = |number: i32| u64::try_from(number).unwrap_or_default();
            let tool = Tool {
                name: row.get(1)?,
                http: row.get::<JsonB>(2)?.0,
                form: row.get::<JsonB>(3)?.0,
                credential: row.opt(4)?,
                limits: (whole(row.get(5)?), whole(row.get(6)?)),
            };
            Ok((tool, row.get::<String>(7)?, row.get::<bool>(8)?))
        },
    )?;
    let (tool, arguments, idempotent) =
        found.into_iter().next().ok_or_else(|| Error::not_ready("the function of the call does not exist any more"))?;
    let (endpoint, errand) = tool.asked(read(&arguments)?)?;
    Ok(ToolRequest { endpoint, errand, idempotency_key: call.to_string(), idempotent })
}

/// Arguments as they were approved, to the last digit.
fn read(arguments: &str) -> Result<Value> {
    let value: Value = serde_json::from_str(arguments).map_err(|_| Error::bug("arguments are not JSON"))?;
    let same = spi::first(
        "select $1::pg_catalog.jsonb operator(pg_catalog.=) $2::pg_catalog.jsonb",
        &[arguments.into(), value.to_string().into()],
        |row| row.get::<bool>(1),
    )?;
    match same {
        Some(true) => Ok(value),
        _ => Err(Error::bad_argument("an argument has a number with more digits than can be sent")
            .hint("Pass it as a text.")),
    }
}

/// Stores what came of a call that was sent, as the owner.
pub fn ended(workspace: Uuid, call: Uuid, reply: ToolReply) -> Result<()> {
    let idempotent = spi::change(
        "select f.idempotent from helper.function_calls c join helper.functions f on f.id = c.function_id \
         where c.workspace_id = $1 and c.id = $2",
        &[workspace.into(), call.into()],
        |row| row.get::<bool>(1),
    )?;
    let (state, name, facts) = match remote::end(reply, idempotent.first() == Some(&true)) {
        End::Succeeded(result) => ("succeeded", "result", result),
        End::Failed(error) => ("failed", "error", error),
        End::Uncertain(error) => ("uncertain", "error", error),
    };
    // Whoever settled the call meanwhile was first.
    calls::move_call(workspace, call, &["running"], state, &json!({ name: facts }).to_string()).map(drop)
}

/// Has a call that was sent, and may be sent again, wait for the worker once more; as the owner.
pub fn back_to_queue(workspace: Uuid, call: Uuid) -> Result<()> {
    calls::move_call(workspace, call, &["running"], "queued", "{}").map(drop)
}

/// An HTTP tool as it is registered.
struct Tool {
    name: String,
    http: Value,
    /// Its request, or its server's.
    form: Value,
    credential: Option<String>,
    limits: (u64, u64),
}

impl Tool {
    fn asked(&self, arguments: Value) -> Result<(Endpoint, Errand)> {
        let whose = format!("function \"{}\"", self.name);
        let key = secret(&whose, self.credential.as_deref())?;
        if let Some(tool) = text(&self.http, "tool") {
            let (endpoint, _) = endpoint(&self.name, &self.form, &Arguments::new(), key, self.limits)?;
            return Ok((endpoint, Errand::Mcp { tool: tool.to_owned(), arguments: arguments.to_string() }));
        }
        let Value::Object(arguments) = arguments else { return Err(Error::bug("arguments are not an object")) };
        let (endpoint, filled) = endpoint(&self.name, &self.form, &arguments, key, self.limits)?;
        let signature = match self.form.get("signature") {
            Some(signature) => Some(Signature {
                header: text(signature, "header").unwrap_or(SIGNATURE).to_owned(),
                secret: secret(&whose, text(signature, "secret"))?,
            }),
            None => None,
        };
        Ok((endpoint, Errand::Http { method: filled.method, body: filled.body, signature }))
    }
}

fn text<'a>(form: &'a Value, name: &str) -> Option<&'a str> {
    form.get(name).and_then(Value::as_str)
}

fn secret(whose: &str, reference: Option<&str>) -> Result<Credential> {
    reference.map_or(Ok(Credential::None), |reference| routes::secret(whose, reference))
}

/// Where a request goes and what goes with it, and the request itself.
pub fn endpoint(
    name: &str,
    form: &Value,
    arguments: &Arguments,
    credential: Credential,
    (timeout_ms, max_bytes): (u64, u64),
) -> Result<(Endpoint, Filled)> {
    let template = Template::read(form)?;
    let mut filled = template.fill(arguments)?;
    let header = text(form, "credential_header").unwrap_or(AUTHORIZATION);
    let usual = if header.eq_ignore_ascii_case(AUTHORIZATION) { "Bearer " } else { "" };
    let endpoint = Endpoint {
        name: name.to_owned(),
        origin: template.origin().to_owned(),
        url: std::mem::take(&mut filled.url),
        headers: std::mem::take(&mut filled.headers),
        credential,
        credential_header: header.to_owned(),
        credential_prefix: text(form, "credential_prefix").unwrap_or(usual).to_owned(),
        allow_private: form.get("allow_private") == Some(&Value::Bool(true)),
        timeout_ms,
        max_bytes,
    };
    Ok((endpoint, filled))
}

/// `helper._check_request`.
#[pg_extern(sql = false, stable, parallel_safe, strict)]
fn check_request(form: JsonB, schema: JsonB) -> Reported<()> {
    let form = form.0;
    for header in ["credential_header"].into_iter().filter_map(|name| text(&form, name)).chain(signature_header(&form))
    {
        template::check_header_name(header)?;
    }
    let template = Template::read(&form)?;
    if template.origin().starts_with("http:") && form.get("allow_private") != Some(&Value::Bool(true)) {
        return Err(Error::bad_argument("the request's URL is not https")
            .hint("Plain http is spoken only with option allow_private.")
            .into());
    }
    Ok(template.check(&schema.0)?)
}

fn signature_header(form: &Value) -> Option<&str> {
    text(form.get("signature")?, "header")
}

/// `helper._mcp_offer`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn mcp_offer(name: &str, form: JsonB, credential: Option<&str>) -> Reported<JsonB> {
    let key = owner::as_owner(|| secret(&format!("MCP server \"{name}\""), credential))?;
    let (endpoint, _) = endpoint(name, &form.0, &Arguments::new(), key, (LIST_MS, 0))?;
    let Reply::Mcp(offer) = gateway::ask(&Request::McpList(Box::new(endpoint)), |_| Ok(()))? else {
        return Err(calling::another().into());
    };
    let tools: Vec<Value> = offer
        .tools
        .into_iter()
        .map(|tool| {
            let schema: Value = serde_json::from_str(&tool.input_schema).unwrap_or_default();
            json!({
                "name": tool.name,
                "description": tool.description,
                "input_schema": schema,
                "read_only": tool.read_only,
                "idempotent": tool.idempotent,
            })
        })
        .collect();
    Ok(JsonB(json!({ "protocol": offer.protocol, "name": offer.name, "version": offer.version, "tools": tools })))
}
