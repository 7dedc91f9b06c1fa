//! What a reply that is an error says: its cause, for us to decide on, and the few words of it that may be shown.
//!
//! A provider's message may hold the prompt, or the key. It is looked at, to tell causes apart, and goes no further.

use super::reply::text;
use super::{Cause, Failure};
use crate::core::chat::Kind;
use crate::core::error::{Error, Kind as ErrorKind};
use serde_json::Value;
use std::time::Duration;

/// Words by which servers say that a prompt is too long, where they have no code for it.
const TOO_LARGE: [&str; 11] = [
    "prompt is too long",
    "maximum context length",
    "context length exceeded",
    "exceeds the context",
    "exceed the context",
    "context window",
    "available context size",
    "maximum input length",
    "input token count",
    "maximum number of tokens",
    "too many tokens",
];

/// Reads a reply with a status other than 200; see [`super::failure`].
pub(super) fn of_reply(kind: Kind, status: u16, headers: &[(String, String)], body: &[u8]) -> Failure {
    let value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let mut failure = of_value(kind, status, &value);
    let header = |name: &str| headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim());
    let number = |name: &str| header(name).and_then(|value| value.parse::<f64>().ok());
    let waits = [number("retry-after-ms").map(|ms| ms / 1000.0), number("retry-after")];
    failure.retry_after = waits.into_iter().flatten().find_map(seconds).or(failure.retry_after);
    failure.retry = match header("x-should-retry") {
        Some("true") => Some(true),
        Some("false") => Some(false),
        _ => None,
    };
    let ids = ["x-request-id", "request-id"].into_iter().find_map(header);
    failure.request_id = ids.and_then(|id| plain(id, 128)).or(failure.request_id);
    failure
}

/// Reads the error in a value, which may also have come within a stream, with status 200.
pub(super) fn of_value(kind: Kind, status: u16, value: &Value) -> Failure {
    // Gemini puts the object into a list at times.
    let value = value.get(0).unwrap_or(value);
    let error = match value.get("error") {
        Some(error) if !error.is_null() => error,
        // vLLM's older form, and FastAPI's.
        _ => value,
    };
    let message = [error.as_str(), text(error, "message"), text(value, "message"), text(value, "detail")];
    let message = message.into_iter().flatten().next().unwrap_or_default().to_ascii_lowercase();
    let reason = error.get("details").and_then(Value::as_array).into_iter().flatten().find_map(|d| text(d, "reason"));
    let words = [text(error, "code"), reason, text(error, "status"), text(error, "type")];
    // Within a stream the status of the error, if told at all, is a number in its place.
    let told = error.get("code").or_else(|| error.get("status_code")).and_then(Value::as_u64);
    let told = told.and_then(|code| u16::try_from(code).ok()).filter(|code| (400..600).contains(code));
    let by_status = match (status, told) {
        (200..=299, Some(told)) => of_status(told),
        (200..=299, None) if words.contains(&Some("invalid_request_error")) => Cause::BadRequest,
        (200..=299, None) if words.contains(&Some("INVALID_ARGUMENT")) => Cause::BadRequest,
        (200..=299, None) if value.get("error").is_some() => Cause::Unavailable,
        _ => of_status(status),
    };
    let mut cause = words.iter().flatten().find_map(|word| of_word(word)).unwrap_or(by_status);
    // A status says more than a word that only says "error"; Groq calls a request that is too large a rate limit.
    if by_status == Cause::TooLarge || by_status == Cause::Quota {
        cause = by_status;
    }
    if matches!(cause, Cause::BadRequest | Cause::Unavailable) {
        if TOO_LARGE.iter().any(|words| message.contains(words)) {
            cause = Cause::TooLarge;
        } else if message.contains("credit balance is too low") {
            cause = Cause::Quota;
        } else if message.contains("api key not valid") {
            cause = Cause::Authentication;
        } else if kind == Kind::Ollama && message.contains("not found") {
            cause = Cause::NotFound;
        }
    }
    Failure {
        cause,
        status,
        code: words.into_iter().flatten().find_map(|word| plain(word, 64)),
        request_id: text(value, "request_id").and_then(|id| plain(id, 128)),
        retry_after: delay(error),
        retry: None,
    }
}

fn of_status(status: u16) -> Cause {
    match status {
        401 => Cause::Authentication,
        402 => Cause::Quota,
        403 => Cause::Permission,
        404 | 410 => Cause::NotFound,
        413 => Cause::TooLarge,
        429 => Cause::RateLimited,
        408 | 409 | 425 | 500.. => Cause::Unavailable,
        400..=499 => Cause::BadRequest,
        _ => Cause::Nonsense,
    }
}

/// The cause that a provider's word stands for. `INVALID_ARGUMENT` and the like say less than the status does.
fn of_word(word: &str) -> Option<Cause> {
    Some(match word {
        "insufficient_quota" | "billing_error" | "billing_hard_limit_reached" | "billing_not_active" => Cause::Quota,
        "context_length_exceeded" | "string_above_max_length" | "request_too_large" | "exceed_context_size_error" => {
            Cause::TooLarge
        }
        "invalid_api_key" | "authentication_error" | "UNAUTHENTICATED" | "API_KEY_INVALID" => Cause::Authentication,
        "permission_error" | "PERMISSION_DENIED" => Cause::Permission,
        "model_not_found" | "not_found_error" | "NOT_FOUND" => Cause::NotFound,
        "rate_limit_exceeded" | "rate_limit_error" | "RESOURCE_EXHAUSTED" => Cause::RateLimited,
        "overloaded_error" | "api_error" | "server_error" | "timeout_error" | "unavailable_error" | "UNAVAILABLE"
        | "INTERNAL" | "DEADLINE_EXCEEDED" | "ABORTED" | "CANCELLED" => Cause::Unavailable,
        _ => return None,
    })
}

/// Google's `RetryInfo`, as `34.07s`.
fn delay(error: &Value) -> Option<Duration> {
    let details = error.get("details")?.as_array()?;
    let delay = details.iter().find_map(|detail| text(detail, "retryDelay"))?;
    seconds(delay.strip_suffix('s')?.parse().ok()?)
}

/// A number of seconds that a duration can hold.
fn seconds(seconds: f64) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds).ok()
}

/// A word that may be shown: nothing else is kept of a reply. One with any other character is dropped whole.
fn plain(word: &str, longest: usize) -> Option<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (!word.is_empty() && word.len() <= longest && word.chars().all(good)).then(|| word.to_owned())
}

impl Failure {
    /// Whether the same request may succeed a little later. An empty account stays empty, whatever the provider says.
    pub fn is_passing(&self) -> bool {
        let passing = match self.cause {
            Cause::RateLimited | Cause::Unavailable => true,
            // A cut reply; a page of a proxy that redirects stays one.
            Cause::Nonsense => (200..=299).contains(&self.status),
            _ => false,
        };
        self.cause != Cause::Quota && self.retry.unwrap_or(passing)
    }

    /// The error that a client sees, after all retries.
    pub fn into_error(self, provider: &str, model: &str) -> Error {
        let (message, hint) = match self.cause {
            Cause::BadRequest => (
                format!("provider \"{provider}\" does not accept the request"),
                "Check that the model takes the parts, tools and settings of this call.".to_owned(),
            ),
            Cause::Authentication => (
                format!("provider \"{provider}\" does not accept the credential"),
                "Check the credential with helper.set_provider.".to_owned(),
            ),
            Cause::Permission => (
                format!("provider \"{provider}\" does not permit the request"),
                "Check with the provider what the credential may be used for.".to_owned(),
            ),
            Cause::NotFound => (
                format!("provider \"{provider}\" does not know model \"{model}\""),
                "Check the name of the model and the base URL of the provider.".to_owned(),
            ),
            Cause::TooLarge => (
                format!("request is too large for model \"{model}\""),
                "Shorten the prompt, or use a model with a larger window.".to_owned(),
            ),
            Cause::RateLimited => (
                format!("provider \"{provider}\" limits the rate of requests"),
                match self.retry_after {
                    Some(wait) => format!("Try again in {} seconds.", wait.as_secs_f64().ceil()),
                    None => "Try again later, or ask the provider for a higher limit.".to_owned(),
                },
            ),
            Cause::Quota => (
                format!("account at provider \"{provider}\" has no credit left"),
                "Check the account's plan and balance with the provider.".to_owned(),
            ),
            Cause::Unavailable => (
                format!("provider \"{provider}\" is not available"),
                "Try again later, or use another provider.".to_owned(),
            ),
            Cause::Nonsense => (
                format!("provider \"{provider}\" sent a reply that is not complete or not understood"),
                "Try again, and check the kind and the base URL of the provider.".to_owned(),
            ),
        };
        let kind = match self.cause {
            Cause::RateLimited => ErrorKind::RateLimited,
            _ => ErrorKind::Provider,
        };
        let mut detail = format!("Provider \"{provider}\", model \"{model}\", HTTP status {}", self.status);
        for (name, value) in [("code", self.code), ("request", self.request_id)] {
            if let Some(value) = value {
                detail.push_str(&format!(", {name} \"{value}\""));
            }
        }
        detail.push('.');
        Error::new(kind, message).detail(detail).hint(hint)
    }
}
