//! Translators between our words and the providers' protocols, pure: a request of ours becomes an HTTP request, bytes of
//! a reply become our events. No socket, no clock and no secret in here: the gateway adds the credential.
//!
//! One file for each protocol; what they share (server-sent events, lines) is in files of its own.

mod anthropic;
mod embedding;
mod failure;
mod gemini;
mod lines;
pub mod mcp;
mod ollama;
mod openai;
mod reply;
mod request;
mod sse;
#[cfg(test)]
mod tests;

use crate::core::chat::{Chat, Event, Kind, Purpose};
use crate::core::error::Result;
use reply::{Reader, Reply};
use serde_json::Value;
use std::time::Duration;

/// How a provider of this kind takes its credential. One that needs none, as Ollama, takes it where there is one.
pub fn auth(kind: Kind) -> Option<Auth> {
    let (header, prefix) = match kind {
        Kind::OpenAi | Kind::OpenAiCompatible | Kind::Ollama => ("authorization", "Bearer "),
        Kind::Anthropic => ("x-api-key", ""),
        Kind::Gemini => ("x-goog-api-key", ""),
    };
    Some(Auth { header, prefix })
}

/// Where a provider of this kind is found, unless told otherwise.
pub fn default_base_url(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::OpenAi => Some("https://api.openai.com/v1"),
        Kind::Anthropic => Some("https://api.anthropic.com"),
        Kind::Gemini => Some("https://generativelanguage.googleapis.com"),
        Kind::Ollama => Some("http://127.0.0.1:11434"),
        Kind::OpenAiCompatible => None,
    }
}

/// The dialect of a kind, with what the provider's options say about it; options of other names and types are ignored.
pub fn dialect(kind: Kind, options: &Value) -> Dialect {
    let option = |name: &str, default: bool| options.get(name).and_then(Value::as_bool).unwrap_or(default);
    Dialect {
        max_tokens: option("max_tokens", kind != Kind::OpenAi),
        stream_usage: option("stream_usage", true),
        // Only newer models of Anthropic have it; a tool that must be called does the same on all of them.
        json_schema: option("json_schema", kind != Kind::Anthropic),
        num_ctx: options.get("num_ctx").and_then(Value::as_u64).and_then(|tokens| u32::try_from(tokens).ok()),
    }
}

/// The request that asks a language model. `output_limit` is the model's own limit of a reply, 0 where it is not known.
///
/// What the protocol cannot express is an error; marks of users and caches, and reasoning that another provider sealed,
/// are left out where it has no place for them.
pub fn chat(kind: Kind, dialect: &Dialect, model: &str, output_limit: u32, chat: &Chat) -> Result<Call> {
    request::check(chat)?;
    match kind {
        Kind::OpenAi | Kind::OpenAiCompatible => openai::chat(kind, dialect, model, chat),
        Kind::Anthropic => anthropic::chat(dialect, model, output_limit, chat),
        Kind::Gemini => gemini::chat(model, chat),
        Kind::Ollama => ollama::chat(dialect, model, chat),
    }
}

/// Reads the reply to a request of [`chat`], a stream or not as that was asked for.
pub fn decoder(kind: Kind, chat: &Chat) -> Box<dyn Decoder> {
    let reader: Box<dyn Reader> = match kind {
        Kind::OpenAi | Kind::OpenAiCompatible => Box::new(openai::Completion::new(kind)),
        Kind::Anthropic => Box::new(anthropic::Answer::new(anthropic::output_tool(chat))),
        Kind::Gemini => Box::new(gemini::Generation::default()),
        Kind::Ollama => Box::new(ollama::Talk::default()),
    };
    match kind {
        _ if !chat.stream => Reply::whole(reader),
        Kind::Ollama => Reply::lines(reader),
        _ => Reply::events(reader),
    }
}

/// What a reply with an HTTP status other than 200 says. Names of headers may be in any case.
pub fn failure(kind: Kind, status: u16, headers: &[(String, String)], body: &[u8]) -> Failure {
    failure::of_reply(kind, status, headers, body)
}

/// The request that embeds texts, no more than [`batch`] allows.
pub fn embed(kind: Kind, model: &str, inputs: &[String], dimensions: Option<u32>, purpose: Purpose) -> Result<Call> {
    embedding::request(kind, model, inputs, dimensions, purpose)
}

/// Reads the reply to a request of [`embed`] with `expected` inputs.
pub fn embeddings(kind: Kind, body: &[u8], expected: usize) -> std::result::Result<Embedded, Failure> {
    embedding::reply(kind, body, expected)
}

/// Most that one request of [`embed`] may hold.
pub fn batch(kind: Kind) -> Batch {
    embedding::batch(kind)
}

/// An HTTP request but for host and credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `POST` or `GET`.
    pub method: &'static str,
    /// Appended to the provider's base URL; begins with `/`.
    pub path: String,
    /// Headers besides the credential and `content-type: application/json`.
    pub headers: Vec<(&'static str, String)>,
    /// JSON.
    pub body: Vec<u8>,
}

/// How a credential is sent: the header's name, and what stands before the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Auth {
    /// Name of the header.
    pub header: &'static str,
    /// Such as `Bearer `.
    pub prefix: &'static str,
}

/// What may differ between servers of one protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// Send `max_tokens` rather than `max_completion_tokens`.
    pub max_tokens: bool,
    /// Ask for usage at the end of a stream (`stream_options`).
    pub stream_usage: bool,
    /// The server has `response_format: json_schema`; Anthropic's models, `output_config`.
    pub json_schema: bool,
    /// Tokens of the window that Ollama shall load the model with.
    pub num_ctx: Option<u32>,
}

/// What a reply that is an error says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it is.
    pub cause: Cause,
    /// HTTP status; 200 where the error came within a stream.
    pub status: u16,
    /// The provider's own word for it (`insufficient_quota`, `overloaded_error`), letters, digits, `_`, `-` and `.` alone.
    pub code: Option<String>,
    /// The provider's id of the request.
    pub request_id: Option<String>,
    /// How long it wants us to wait.
    pub retry_after: Option<Duration>,
    /// Whether it says itself that the same request may be sent again.
    pub retry: Option<bool>,
}

/// Why a provider did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The request is not accepted as it is (400, 422).
    BadRequest,
    /// The key is not accepted (401).
    Authentication,
    /// The key may not do this (403).
    Permission,
    /// No such model or path (404).
    NotFound,
    /// The prompt is longer than the model's window, or the request too large (413, `context_length_exceeded`).
    TooLarge,
    /// Too many requests (429).
    RateLimited,
    /// The account is empty: never retried.
    Quota,
    /// Time out, conflict, or an error of the provider's own (408, 409, 5xx, 529).
    Unavailable,
    /// Not the protocol: HTML, a cut reply, an impossible value.
    Nonsense,
}

/// Bytes of a reply in, events out.
pub trait Decoder: Send {
    /// Takes the next bytes of the body, cut anywhere, and appends the events that they complete.
    fn push(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> std::result::Result<(), Failure>;
    /// The body is over; fails where the reply is not complete.
    fn finish(&mut self, events: &mut Vec<Event>) -> std::result::Result<(), Failure>;
}

/// Embeddings as they came.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// One for each input, in order, as the provider gave them.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens, if the provider told.
    pub tokens: Option<u64>,
}

/// Most that one embedding request may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Inputs.
    pub inputs: usize,
    /// Tokens of one input.
    pub tokens_each: usize,
    /// Tokens of all inputs.
    pub tokens: usize,
}
