//! Translators between our words and the providers' protocols, pure: a request of ours becomes an HTTP request, bytes of
//! a reply become our events. No socket, no clock and no secret in here: the gateway adds the credential.
//!
//! One file for each protocol; what they share (server-sent events, lines) is in files of its own.

use crate::core::chat::{Chat, Event, Kind, Purpose};
use crate::core::error::Result;
use std::time::Duration;

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
    /// The server has `response_format: json_schema`.
    pub json_schema: bool,
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
