//! `helper.complete` and `helper.complete_json`: a language model asked once, with no documents and no conversation.

use crate::core::chat::{Abilities, Chat, Media, Message, Output, Part, Role, Said};
use crate::core::error::{Error, Kind, Result};
use crate::core::prompt::json;
use crate::core::wire::{CallEnd, Problem, Reply, Request};
use crate::pg::calling::{self, Caller, Tuning};
use crate::pg::report::Reported;
use crate::pg::routes::{self, Chosen};
use crate::pg::{gateway, identity, searching};
use base64::Engine;
use base64::alphabet::STANDARD as STANDARD_ALPHABET;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use pgrx::JsonB;
use pgrx::prelude::*;
use serde_json::Value;

/// Times that a reply which does not fit its schema is sent back.
const REPAIRS: usize = 2;

/// Longest attachments of a question together, in bytes: about what providers take in one request.
const ATTACHED: usize = 32 * 1024 * 1024;

/// What helps where none fits.
const SIMPLER: &str = "Make the schema simpler or use a stronger model.";

/// Longest prompt, in bytes.
const LONGEST: usize = 16 * 1024 * 1024;

struct Completion {
    caller: Caller,
    chosen: Chosen,
    chat: Chat,
    tuning: Tuning,
}

fn read(
    prompt: Option<&str>,
    system: Option<&str>,
    model: Option<&str>,
    options: Option<JsonB>,
    workspace: Option<pgrx::Uuid>,
) -> Result<Completion> {
    let prompt = prompt.ok_or_else(|| Error::bad_argument("prompt is null"))?;
    if prompt.trim().is_empty() {
        return Err(Error::bad_argument("prompt is empty"));
    }
    if prompt.len() > LONGEST {
        return Err(Error::new(
            Kind::OverLimit,
            format!("prompt has {} bytes, at most {LONGEST} are allowed", prompt.len()),
        ));
    }
    let mut tuning = Tuning::default();
    let mut chat = calling::plain(system, prompt);
    if let Some(JsonB(options)) = options {
        let Value::Object(options) = options else { return Err(Error::bad_argument("options is not a JSON object")) };
        for (name, value) in &options {
            if name == "attachments" {
                let attached = attachments(value)?;
                if let Some(message) = chat.messages.first_mut() {
                    message.parts.splice(0..0, attached);
                }
            } else if !tuning.take(name, value)? {
                return Err(Error::bad_argument(format!("option \"{name}\" does not exist"))
                    .hint(format!("Options are attachments, {}.", Tuning::NAMES)));
            }
        }
    }
    let workspace = searching::workspace(workspace)?;
    let needs = Abilities::needed(false, chat.messages.iter().flat_map(|message| &message.parts));
    let chosen = routes::choose_able(workspace, "chat", model, needs)?.ok_or_else(calling::no_model)?;
    tuning.apply(&mut chat);
    let caller = Caller { workspace, user: identity::current_user(), conversation: None, message: None };
    Ok(Completion { caller, chosen, chat, tuning })
}

/// Pictures and documents that go with a question: objects with `mime_type`, `data` (base64) and perhaps `name`.
pub fn attachments(value: &Value) -> Result<Vec<Part>> {
    let wrong =
        || Error::bad_argument("option \"attachments\" is not a list of objects with mime_type and data in base64");
    let list = value.as_array().ok_or_else(wrong)?;
    let mut left = ATTACHED;
    list.iter()
        .map(|item| {
            let text = |name: &str| item.get(name).and_then(Value::as_str);
            let mime_type = text("mime_type").ok_or_else(wrong)?.to_owned();
            let data = text("data").and_then(base64).ok_or_else(wrong)?;
            if data.is_empty() {
                return Err(wrong());
            }
            left = left.checked_sub(data.len()).ok_or_else(|| {
                Error::new(Kind::OverLimit, "attachments are too large")
                    .detail(format!("All of a question together may have {ATTACHED} bytes."))
                    .hint("Attach less, or store documents with helper.add_file.")
            })?;
            let media = Media { mime_type, data };
            Ok(if media.mime_type.starts_with("image/") {
                Part::Image(media)
            } else {
                Part::Document { name: text("name").unwrap_or("document").to_owned(), media }
            })
        })
        .collect()
}

/// Bytes from base64 (RFC 4648, with or without padding; line breaks are skipped).
fn base64(text: &str) -> Option<Vec<u8>> {
    const ANY_PADDING: GeneralPurpose = GeneralPurpose::new(
        &STANDARD_ALPHABET,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    ANY_PADDING.decode(text).ok()
}

impl Completion {
    fn send(&self, chat: Chat, purpose: &str) -> Result<(Said, CallEnd)> {
        let (call, reservation) = calling::prepare(self.caller, purpose, &self.chosen, chat, self.tuning.timeout_ms)?;
        calling::run(call, reservation, |_| Ok(()))
    }
}

/// The words of a reply; one that was refused is an error.
fn words(said: &Said, end: &CallEnd) -> Result<String> {
    match calling::refused(said, end) {
        Some(error) => Err(error),
        None => Ok(said.text()),
    }
}

/// `helper.complete`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn complete_text(
    prompt: Option<&str>,
    system: Option<&str>,
    model: Option<&str>,
    options: Option<JsonB>,
    workspace: Option<pgrx::Uuid>,
) -> Reported<String> {
    let mut completion = read(prompt, system, model, options, workspace)?;
    let chat = std::mem::take(&mut completion.chat);
    let (said, end) = completion.send(chat, "complete")?;
    Ok(words(&said, &end)?)
}

/// `helper.complete_json`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn complete_value(
    prompt: Option<&str>,
    schema: Option<JsonB>,
    system: Option<&str>,
    model: Option<&str>,
    options: Option<JsonB>,
    workspace: Option<pgrx::Uuid>,
) -> Reported<JsonB> {
    let schema = schema.ok_or_else(|| Error::bad_argument("schema is null"))?.0;
    if !schema.is_object() {
        return Err(Error::bad_argument("schema is not a JSON object").into());
    }
    let mut completion = read(prompt, system, model, options, workspace)?;
    let mut chat = std::mem::take(&mut completion.chat);
    Ok(JsonB(fitting(&completion, &mut chat, &schema)?))
}

/// A value that fits the schema, or an error that says where it does not.
fn fitting(completion: &Completion, chat: &mut Chat, schema: &Value) -> Result<Value> {
    let schema = schema.to_string();
    // One that is no schema is refused before anything is paid for.
    check(&schema, "null")?;
    chat.output = Output::Schema { name: "reply".into(), schema: schema.clone() };
    // Said in words too: a server that does not know the form still knows what is wanted.
    if let Some(Part::Text(text)) = chat.messages.last_mut().and_then(|message| message.parts.last_mut()) {
        text.push_str(&format!(
            "\n\nReply with one JSON value that fits this JSON Schema, and nothing else:\n{schema}"
        ));
    }
    let mut problems = Vec::new();
    for _ in 0..=REPAIRS {
        let (said, end) = completion.send(chat.clone(), "complete_json")?;
        let text = words(&said, &end)?;
        let value = json::find(&text).and_then(|found| serde_json::from_str::<Value>(found).ok());
        problems = match &value {
            Some(value) => check(&schema, &value.to_string())?,
            None => vec![Problem { path: String::new(), message: "the reply is not JSON".into() }],
        };
        if let (Some(value), true) = (value, problems.is_empty()) {
            return Ok(value);
        }
        let list: String =
            problems.iter().map(|problem| format!("\n- at \"{}\": {}", problem.path, problem.message)).collect();
        chat.messages.push(Message::text(Role::Assistant, if text.is_empty() { "(nothing)".into() } else { text }));
        chat.messages.push(Message::text(
            Role::User,
            format!("That does not fit the schema:{list}\nReply with the corrected JSON value and nothing else."),
        ));
    }
    let problem = problems.into_iter().next();
    let (path, message) = problem.map(|problem| (problem.path, problem.message)).unwrap_or_default();
    Err(misfit(&format!("After {REPAIRS} repairs, at \"{path}\": {message}.")))
}

/// The JSON value in words that have to fit a schema.
pub fn value_of(words: &str) -> Result<&str> {
    json::find(words).ok_or_else(|| misfit("The reply is not JSON."))
}

/// The error of a value with such problems; `None` where it has none.
pub fn unfit(problems: &[Problem]) -> Option<Error> {
    problems.first().map(|problem| misfit(&format!("At \"{}\": {}.", problem.path, problem.message)))
}

fn misfit(detail: &str) -> Error {
    Error::new(Kind::Provider, "the reply does not fit the schema").detail(detail).hint(SIMPLER)
}

/// What is wrong with a value, by a schema.
pub fn check(schema: &str, value: &str) -> Result<Vec<Problem>> {
    checked(&Request::CheckJson { schema: schema.to_owned(), value: value.to_owned() })
}

/// The same of a question that is ready to be asked.
pub fn checked(question: &Request) -> Result<Vec<Problem>> {
    match gateway::ask_again(question)? {
        Reply::Checked(problems) => Ok(problems),
        _ => Err(calling::another()),
    }
}
