//! Calls of providers and tools: requests of the database in, replies out, and a record of each call of a model.
//!
//! One client with pooled connections; for providers one retry loop, and one set of limits for each. A key is looked up here and
//! goes into one header; it never comes into an error or a log line. Whatever is dropped ends its request at once.

mod account;
mod chat;
mod circuit;
mod client;
mod credential;
mod egress;
mod embed;
mod exchange;
mod fault;
mod ledger;
mod mcp;
mod peer;
mod share;
pub mod tokens;
mod tool;
mod turns;

pub use client::Settings;
pub use egress::{Lookup, is_public};
pub use ledger::{Ledger, Subscription};

use crate::core::error::{Error, Result};
use crate::core::wire::{self, Item, ProviderState, Tag};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// The providers, as all connections share them.
pub struct Providers {
    clients: client::Clients,
    peers: peer::Peers,
    ledger: Arc<Ledger>,
    shares: Arc<share::Shares>,
    backoff: Duration,
}

impl Providers {
    /// No provider has been used yet.
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Providers {
            backoff: settings.backoff,
            clients: client::Clients::new(settings),
            peers: peer::Peers::default(),
            ledger: Arc::default(),
            shares: Arc::default(),
        })
    }

    /// How the providers are that were used.
    pub fn states(&self) -> Vec<ProviderState> {
        self.peers.states()
    }

    /// The records of the calls that ended.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }
}

/// Where the parts of a request's reply go.
pub struct Sink {
    id: u32,
    out: mpsc::Sender<Vec<u8>>,
}

impl Sink {
    /// Sends frames of the request with this id.
    pub fn new(id: u32, out: mpsc::Sender<Vec<u8>>) -> Sink {
        Sink { id, out }
    }

    /// Sends a part, waiting while the asker is slow to take them.
    pub async fn send(&self, item: &Item) -> Result<()> {
        // Where the asker is gone, so is this request, in a moment.
        let _ = self.out.send(wire::encode(Tag::Item, self.id, item)?).await;
        Ok(())
    }
}

/// When a call that may take so long has to be over.
fn deadline(began: Instant, timeout_ms: u64) -> Instant {
    const DAY: u64 = 24 * 60 * 60 * 1000;
    began + Duration::from_millis(timeout_ms.min(DAY))
}

/// Whom a request is sent to, as messages name it.
#[derive(Clone, Copy, Debug)]
pub enum Addressee<'a> {
    /// A provider of models.
    Provider(&'a str),
    /// The server of a function.
    Function(&'a str),
    /// A server of the Model Context Protocol.
    Mcp(&'a str),
}

impl Addressee<'_> {
    /// What its address is called where it is set.
    pub fn url(self) -> &'static str {
        match self {
            Addressee::Provider(_) => "base URL",
            Addressee::Function(_) | Addressee::Mcp(_) => "URL",
        }
    }
}

impl std::fmt::Display for Addressee<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Addressee::Provider(name) => write!(f, "provider \"{name}\""),
            Addressee::Function(name) => write!(f, "function \"{name}\""),
            Addressee::Mcp(name) => write!(f, "MCP server \"{name}\""),
        }
    }
}

/// A call that took all the time it had.
fn too_slow(to: Addressee<'_>, timeout_ms: u64) -> Error {
    let turn = if matches!(to, Addressee::Provider(_)) { ", with the time to wait for a turn" } else { "" };
    Error::new(crate::core::error::Kind::Cancelled, format!("call of {to} took too long"))
        .detail(format!("Allowed are {timeout_ms} ms{turn}."))
        .hint("Try again later, or allow it more time with timeout_ms.")
}
