//! Calls of providers: requests of the database in, replies of language models out, and a record of each.
//!
//! One client with pooled connections, one retry loop, one set of limits for each provider. A key is looked up here and
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
mod peer;
mod share;
pub mod tokens;
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

/// A call that took all the time it had.
fn too_slow(end: &str, timeout_ms: u64) -> Error {
    Error::new(crate::core::error::Kind::Cancelled, format!("call of provider \"{end}\" took too long"))
        .detail(format!("Allowed are {timeout_ms} ms, with the time to wait for a turn."))
}
