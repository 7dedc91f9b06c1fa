//! The worker's ledger: the gateway's records of calls, stored whatever became of the transactions that made them.

use super::Worker;
use crate::core::error::{Kind, Result};
use crate::core::wire::{self, Frame, Item, Record, Request};
use crate::pg::gateway::Link;
use crate::pg::spi;
use crate::pg::transaction::transaction;
use pgrx::JsonB;
use pgrx::prelude::*;
use std::time::{Duration, Instant};

/// How long nothing is recorded after records could not be stored, because of a lock say.
const AGAIN: Duration = Duration::from_secs(1);

impl Worker {
    /// Has the gateway bring the records of calls that nobody has acknowledged, and those that come.
    pub(super) fn read_ledger(&mut self) {
        // SAFETY: set once when the process connects.
        let database = unsafe { pg_sys::MyDatabaseId.to_u32() };
        if let Some(link) = &mut self.link {
            self.ledger = link.request(&Request::Ledger { database }).unwrap_or_default();
        }
    }

    /// Reads it again, where that was put off.
    pub(super) fn read_ledger_again(&mut self) {
        let is_greeted = self.link.as_ref().is_some_and(Link::greeted);
        if self.ledger != 0 || !is_greeted {
            return;
        }
        if self.ledger_again <= Instant::now() {
            self.read_ledger();
        } else {
            self.next_look = self.next_look.min(self.ledger_again);
        }
    }

    /// Stores the records of calls, then tells the gateway that they are. What cannot be stored now is read again later, and
    /// nothing that comes after it is acknowledged before; what can never be stored is given up.
    pub(super) fn record(&mut self, frame: &Frame) {
        let Ok(Item::Records(records)) = wire::decode::<Item>(&frame.body) else { return };
        let Some(upto) = records.iter().map(|record| record.number).max() else { return };
        let stored = store(&records).or_else(|error| match error.kind {
            Kind::NotReady => Err(error),
            // One of them is to blame.
            _ => records.iter().try_for_each(|record| match store(std::slice::from_ref(record)) {
                Err(error) if error.kind != Kind::NotReady => {
                    self.notes.note::<()>(Err(error));
                    Ok(())
                }
                stored => stored,
            }),
        });
        if self.note(stored).is_none() {
            self.no_more_of(self.ledger);
            self.ledger = 0;
            self.ledger_again = Instant::now() + AGAIN;
            self.next_look = self.next_look.min(self.ledger_again);
            return;
        }
        // SAFETY: set once when the process connects.
        let database = unsafe { pg_sys::MyDatabaseId.to_u32() };
        if let Some(link) = &mut self.link {
            let _ = link.request(&Request::Recorded { database, upto });
        }
    }
}

fn store(records: &[Record]) -> Result<()> {
    let rows = serde_json::Value::Array(records.iter().map(row_of).collect());
    transaction(|| spi::run("select helper._record($1)", &[JsonB(rows).into()]))
}

/// A record as `helper._record` takes it.
fn row_of(record: &Record) -> serde_json::Value {
    let id = |bytes: &[u8; 16]| pgrx::Uuid::from_bytes(*bytes).to_string();
    let (asker, call) = (&record.asker, &record.call);
    serde_json::json!({
        "workspace_id": id(&asker.workspace),
        "id": id(&asker.id),
        "user_id": asker.user.as_ref().map(id),
        "conversation_id": asker.conversation.as_ref().map(id),
        "message_id": asker.message.as_ref().map(id),
        "purpose": asker.purpose,
        "provider_id": id(&call.provider_id),
        "own_provider": call.own,
        "provider": call.provider,
        "model": call.model,
        "status": call.outcome.name(),
        "input_tokens": call.usage.input,
        "cached_tokens": call.usage.cached,
        "cache_written_tokens": call.usage.cache_written,
        "output_tokens": call.usage.output,
        "estimated": call.estimated,
        "guessed_tokens": call.guessed_tokens,
        "cost_nanos": call.cost_nanos,
        "latency_ms": call.latency_ms,
        "first_token_ms": call.first_token_ms,
        "attempts": call.attempts,
        "sqlstate": call.error.as_ref().map(|error| error.kind.sqlstate()),
        "error": call.error.as_ref().map(|error| &error.message),
        "request_id": call.provider_request_id,
        "began_ms": record.began_ms,
    })
}
