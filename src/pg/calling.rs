//! A call of a language model: budgets first, then the gateway, then what it took. The gateway's record of it reaches
//! `usage_records` by the worker, whatever becomes of the caller's transaction.

use crate::core::chat::{Abilities, Chat, Event, Message, Output, Part, Role, Said, Stop, SystemPart, Usage};
use crate::core::error::{Error, Kind, Result};
use crate::core::prompt::window::{attached, estimate};
use crate::core::wire::{Asker, CallEnd, ChatCall, Item, Reply, Request};
use crate::pg::budget::{self, Reservation};
use crate::pg::routes::{self, Chosen};
use crate::pg::{gateway, identity};
use pgrx::pg_sys;
use serde_json::{Value, json};
use std::cell::RefCell;

/// Tokens of a reply where neither the call nor the model says how long it may be and a budget has to be kept.
const REPLY: u32 = 4096;

/// Whose call it is.
#[derive(Clone, Copy)]
pub struct Caller {
    pub workspace: pgrx::Uuid,
    pub user: Option<pgrx::Uuid>,
    pub conversation: Option<pgrx::Uuid>,
    pub message: Option<pgrx::Uuid>,
}

/// What a call may be told besides its question.
#[derive(Clone, Default)]
pub struct Tuning {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub max_tokens: Option<u32>,
    pub stop: Vec<String>,
    pub timeout_ms: Option<u64>,
}

impl Tuning {
    /// Names of its options, for messages.
    pub const NAMES: &'static str = "temperature, top_p, max_tokens, stop and timeout_ms";

    /// Takes one option; `false` where it is not one of these.
    pub fn take(&mut self, name: &str, value: &Value) -> Result<bool> {
        let wrong = || Error::bad_argument(format!("option \"{name}\" has the wrong type or range"));
        let number =
            |low: f64, high: f64| value.as_f64().filter(|number| (low..=high).contains(number)).ok_or_else(wrong);
        let whole = |high: u64| value.as_u64().filter(|number| (1..=high).contains(number)).ok_or_else(wrong);
        match name {
            "temperature" => self.temperature = Some(number(0.0, 2.0)? as f32),
            "top_p" => self.top_p = Some(number(0.0, 1.0)? as f32),
            "max_tokens" => self.max_tokens = Some(whole(10_000_000)? as u32),
            "timeout_ms" => self.timeout_ms = Some(whole(3_600_000)?),
            "stop" => {
                let texts = match value {
                    Value::String(text) => vec![text.clone()],
                    Value::Array(texts) if texts.len() <= 4 => texts
                        .iter()
                        .map(|text| text.as_str().map(str::to_owned).ok_or_else(wrong))
                        .collect::<Result<_>>()?,
                    _ => return Err(wrong()),
                };
                self.stop = texts;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Puts them into a question.
    pub fn apply(&self, chat: &mut Chat) {
        chat.temperature = self.temperature.or(chat.temperature);
        chat.top_p = self.top_p.or(chat.top_p);
        chat.max_output_tokens = self.max_tokens.or(chat.max_output_tokens);
        chat.stop.clone_from(&self.stop);
    }
}

/// Tokens of a question, about.
fn tokens_of(chat: &Chat) -> u64 {
    let part = |part: &Part| match part {
        Part::Text(text) => estimate(text),
        Part::ToolCall(call) => estimate(&call.arguments) + 16,
        Part::ToolResult { content, .. } => estimate(content) + 16,
        Part::Thinking { text, .. } => estimate(text),
        Part::Image(_) | Part::Document { .. } => attached(part),
    };
    let said: u64 = chat.messages.iter().flat_map(|message| &message.parts).map(|each| u64::from(part(each))).sum();
    let told: u32 = chat.system.iter().map(|system| estimate(&system.text)).sum();
    let tools: u32 = chat.tools.iter().map(|tool| estimate(&tool.parameters) + estimate(&tool.description) + 8).sum();
    let form = if let Output::Schema { schema, .. } = &chat.output { estimate(schema) } else { 0 };
    said + u64::from(told + tools + form) + 4 * chat.messages.len() as u64
}

/// Sets aside what a call may take and makes it ready to be sent.
pub fn prepare(
    caller: Caller,
    purpose: &str,
    chosen: &Chosen,
    mut chat: Chat,
    timeout_ms: Option<u64>,
) -> Result<(ChatCall, Reservation)> {
    let needs = Abilities::needed(!chat.tools.is_empty(), chat.messages.iter().flat_map(|message| &message.parts));
    let routes = routes::able(&chosen.routes, needs)?;
    let guessed_tokens = tokens_of(&chat);
    let all_text = chat.tools.is_empty()
        && !chat.messages.iter().flat_map(|message| &message.parts).any(|part| !matches!(part, Part::Text(_)));
    let output_limit = if chosen.output == 0 { REPLY } else { chosen.output };
    let output = chat.max_output_tokens.unwrap_or(output_limit.min(REPLY));
    let mut reservation = budget::reserve(caller.workspace, caller.user, |shared| {
        let most = routes.iter().filter(|route| !(shared && route.provider.own)).map(|route| {
            let input = route.corrected(guessed_tokens + guessed_tokens / 4);
            (input + u64::from(output), budget::most_cost(&route.prices, input, output.into()))
        });
        most.reduce(|one, other| (one.0.max(other.0), one.1.max(other.1)))
    })?;
    if reservation.is_bound() {
        // What was not set aside cannot be said.
        chat.max_output_tokens = Some(output);
        if let Some(route) = routes.first() {
            let whole_reply = if chat.stream { 0 } else { output.into() };
            reservation.takes(route.corrected(guessed_tokens), whole_reply, &routes);
        }
    }
    // SAFETY: set once when the process connects.
    let database = unsafe { pg_sys::MyDatabaseId.to_u32() };
    let bytes = |id: pgrx::Uuid| *id.as_bytes();
    let call = ChatCall {
        asker: Asker {
            id: identity::new_id(),
            database,
            workspace: bytes(caller.workspace),
            user: caller.user.map(bytes),
            conversation: caller.conversation.map(bytes),
            message: caller.message.map(bytes),
            purpose: purpose.to_owned(),
        },
        routes,
        chat,
        timeout_ms: timeout_ms.unwrap_or(chosen.timeout_ms),
        guessed_tokens,
        all_text,
        output_tokens: output.into(),
        once: false,
    };
    Ok((call, reservation))
}

/// Sends a call and hears it out; every step goes to `each`. A call that failed is an error.
pub fn run(
    call: ChatCall,
    reservation: Reservation,
    mut each: impl FnMut(&Event) -> Result<()>,
) -> Result<(Said, CallEnd)> {
    let mut said = Said::default();
    let reservation = RefCell::new(reservation);
    let reply = gateway::ask_telling(
        &Request::Chat(Box::new(call)),
        |sent| reservation.borrow_mut().set_sent(sent),
        |item| {
            let Item::Events(events) = item else { return Err(another()) };
            for event in events {
                said.add(&event);
                reservation.borrow_mut().heard(&event);
                each(&event)?;
            }
            Ok(())
        },
    )?;
    let Reply::Chat(end) = reply else { return Err(another()) };
    reservation.into_inner().settle(&end);
    match end.error {
        Some(error) => Err(error),
        None => Ok((said, *end)),
    }
}

/// Why what was said is no reply: the model declined, a filter ended it, or its first word did not fit. One that was cut
/// short is a reply.
pub fn refused(said: &Said, end: &CallEnd) -> Option<Error> {
    let (why, hint) = match said.stop? {
        Stop::Refusal => ("the model declined to answer", "Ask in other words, or ask another model."),
        Stop::Filtered => {
            ("the provider's filter ended the reply", "Ask in other words, or ask the model of another provider.")
        }
        Stop::Length if said.text().trim().is_empty() && said.tool_calls().next().is_none() => (
            "the reply reached the limit of tokens before its first word",
            "Allow it more with the option max_tokens: reasoning counts.",
        ),
        _ => return None,
    };
    let detail = format!("Provider \"{}\", model \"{}\".", end.provider, end.model);
    Some(Error::new(Kind::Provider, why).detail(detail).hint(hint))
}

/// A reply that does not belong to the question.
pub fn another() -> Error {
    Error::bug("the gateway answered another question")
}

/// What a call took, as replies show it.
pub fn usage(end: &CallEnd) -> Value {
    let Usage { input, cached, cache_written, output, .. } = end.usage;
    json!({
        "input_tokens": input,
        "cached_tokens": cached,
        "cache_written_tokens": cache_written,
        "output_tokens": output,
        "estimated": end.estimated,
        "cost": end.cost_nanos as f64 / 1e9,
        "latency_ms": end.latency_ms,
        "first_token_ms": end.first_token_ms,
    })
}

/// A question that is one text, with what the model is told first.
pub fn plain(system: Option<&str>, prompt: &str) -> Chat {
    Chat {
        system: system.into_iter().map(|text| SystemPart { text: text.to_owned(), cache: true }).collect(),
        messages: vec![Message::text(Role::User, prompt)],
        ..Chat::default()
    }
}

/// The error of a call that needs a language model where none is set.
pub fn no_model() -> Error {
    Error::new(Kind::NotReady, "no language model is configured")
        .hint("Set up a provider with helper.set_provider and choose a model with helper.set_default('chat', provider, model). The local provider answers questions from documents, but writes no text.")
}
