//! WhatsApp's outbox, as the worker sends it: what is due, the request of a row, with its number's token, and what became
//! of it. All as the owner.

use crate::core::error::{Error, Result};
use crate::core::template::Arguments;
use crate::core::tool::remote;
use crate::core::wire::{Credential, Errand, ToolReply, ToolRequest};
use crate::pg::{routes, spi, tools};
use pgrx::{JsonB, Uuid};
use serde_json::{Value, json};

/// Who is spoken to, in messages.
const NAME: &str = "whatsapp";
/// Milliseconds that WhatsApp has unless told otherwise.
const TIMEOUT_MS: u64 = 30_000;
/// Bytes of its reply that are read.
const MAX_REPLY: u64 = 64 * 1024;

/// A row that was claimed, and its request.
pub struct Message {
    pub workspace: Uuid,
    pub id: Uuid,
    method: String,
    path: String,
    body: String,
}

/// What waits in the outbox.
pub struct Waiting {
    /// Something is due.
    pub due: bool,
    /// Seconds until something else is.
    pub next: Option<f64>,
}

/// What waits for the worker; `None` where it does not send.
pub fn waiting() -> Result<Option<Waiting>> {
    let waiting = spi::change(
        "select exists (select from helper.wa_outbox o where o.status = 'queued' and o.send_at <= now()), \
           (select extract(epoch from min(o.send_at) - now())::float8 from helper.wa_outbox o \
            where o.status = 'queued' and o.send_at > now()) \
         from helper.wa_sender",
        &[],
        |row| Ok(Waiting { due: row.get(1)?, next: row.opt(2)? }),
    )?;
    Ok(waiting.into_iter().next())
}

/// Claims what is due, workspaces sharing alike: at most `share` of each, and nothing of those in `without`.
pub fn claim(most: usize, share: usize, without: Vec<Uuid>) -> Result<Vec<Message>> {
    spi::change(
        "select c.workspace_id, c.message_id, c.request ->> 'method', c.request ->> 'path', (c.request -> 'body')::text \
         from helper._claim_whatsapp($1, $2, $3, true) c",
        &[(most as i32).into(), (share as i32).into(), without.into()],
        |row| {
            Ok(Message {
                workspace: row.get(1)?,
                id: row.get(2)?,
                method: row.get(3)?,
                path: row.get(4)?,
                body: row.get(5)?,
            })
        },
    )
}

/// The request of a message, with the token that goes to the sender's host alone. Errors: 55000 it cannot be sent now.
pub fn request(message: &Message) -> Result<ToolRequest> {
    let found = spi::change(
        "select s.base_url, s.credential, s.options, s.problem from helper._whatsapp_sender($1, $2) s",
        &[message.workspace.into(), message.path.as_str().into()],
        |row| Ok((row.get::<String>(1)?, row.opt::<String>(2)?, row.get::<JsonB>(3)?.0, row.opt::<String>(4)?)),
    )?;
    let (base_url, reference, options, problem) =
        found.into_iter().next().ok_or_else(|| Error::not_ready("there is no WhatsApp sender any more"))?;
    if let Some(problem) = problem {
        return Err(Error::not_ready(problem));
    }
    let credential = match reference {
        Some(reference) => routes::secret("WhatsApp", &reference)?,
        None => Credential::None,
    };
    let form = json!({ "url": format!("{base_url}{}", message.path), "allow_private": options.get("allow_private") });
    let timeout = options.get("timeout_ms").and_then(Value::as_u64).unwrap_or(TIMEOUT_MS);
    let (endpoint, _) = tools::endpoint(NAME, &form, &Arguments::new(), credential, (timeout, MAX_REPLY))?;
    let errand = Errand::Http { method: message.method.clone(), body: Some(message.body.clone()), signature: None };
    Ok(ToolRequest { endpoint, errand, idempotency_key: message.id.to_string(), idempotent: false })
}

/// Stores what became of a message.
pub fn ended(message: &Message, reply: &ToolReply) -> Result<()> {
    let (workspace, id) = (message.workspace, message.id);
    match reply {
        ToolReply::Answered(answer) => spi::run(
            "select helper.finish_whatsapp($1, $2, $3, $4)",
            &[workspace.into(), id.into(), i32::from(answer.status).into(), JsonB(remote::value(answer)).into()],
        ),
        ToolReply::Failed { error, reached } => spi::run(
            "select helper._break_off_whatsapp($1, $2, $3, $4)",
            &[workspace.into(), id.into(), (*reached).into(), JsonB(remote::facts(error)).into()],
        ),
    }
}
