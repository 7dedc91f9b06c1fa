//! The one error type. Whatever fails, in any room, fails with this; `pg/report.rs` turns it into a Postgres report.
//!
//! The message is lower case without a full stop, detail and hint are sentences. None of them ever holds a key, a
//! prompt, a document or a provider's raw body.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What went wrong, by what a client can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// An argument, or a document, that cannot be accepted.
    BadArgument,
    /// A named object that does not exist, or that the caller may not know of.
    UnknownObject,
    /// The caller may not do this.
    NotPermitted,
    /// Not preloaded, not configured, or the gateway is down.
    NotReady,
    /// A provider refused or replied with nonsense.
    Provider,
    /// A provider's rate limit, after retries.
    RateLimited,
    /// Our own quota, budget or size limit.
    OverLimit,
    /// Cancelled or timed out.
    Cancelled,
    /// Our bug.
    Bug,
}

impl Kind {
    /// The five-character SQLSTATE that stands for this kind.
    pub fn sqlstate(self) -> &'static str {
        match self {
            Kind::BadArgument => "22023",
            Kind::UnknownObject => "42704",
            Kind::NotPermitted => "42501",
            Kind::NotReady => "55000",
            Kind::Provider => "38000",
            Kind::RateLimited => "53000",
            Kind::OverLimit => "53400",
            Kind::Cancelled => "57014",
            Kind::Bug => "XX000",
        }
    }
}

/// An error with its kind, message, facts and advice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What a client branches on.
    pub kind: Kind,
    /// One clause: lower case, no full stop, identifiers in double quotes.
    pub message: String,
    /// Facts, as a sentence.
    pub detail: Option<String>,
    /// An action, as a sentence.
    pub hint: Option<String>,
}

/// A result with our error.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of a kind with a message.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), detail: None, hint: None }
    }

    /// An argument that cannot be accepted.
    pub fn bad_argument(message: impl Into<String>) -> Self {
        Self::new(Kind::BadArgument, message)
    }

    /// An object that does not exist.
    pub fn unknown_object(message: impl Into<String>) -> Self {
        Self::new(Kind::UnknownObject, message)
    }

    /// Something that is not configured or not running.
    pub fn not_ready(message: impl Into<String>) -> Self {
        Self::new(Kind::NotReady, message)
    }

    /// A fault of ours.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Kind::Bug, message)
    }

    /// Adds the facts.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds the advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_are_five_characters_and_distinct() {
        let kinds = [
            Kind::BadArgument,
            Kind::UnknownObject,
            Kind::NotPermitted,
            Kind::NotReady,
            Kind::Provider,
            Kind::RateLimited,
            Kind::OverLimit,
            Kind::Cancelled,
            Kind::Bug,
        ];
        let states: std::collections::BTreeSet<_> = kinds.iter().map(|kind| kind.sqlstate()).collect();
        assert_eq!(states.len(), kinds.len());
        assert!(states.iter().all(|state| state.len() == 5));
    }
}
