//! The worker's ledger: the gateway's records of calls, stored whatever became of the transactions that made them.

use super::Worker;
use crate::core::wire::{self, Frame, Item, Record, Request};
use crate::pg::spi;
use crate::pg::transaction::transaction;
use pgrx::JsonB;
use pgrx::prelude::*;

impl Worker {
    /// Stores the records of calls, then tells the gateway that they are.
    pub(super) fn record(&mut self, frame: &Frame) {
        let Ok(Item::Records(records)) = wire::decode::<Item>(&frame.body) else { return };
        let Some(upto) = records.iter().map(|record| record.number).max() else { return };
        let rows: Vec<serde_json::Value> = records.iter().map(row_of).collect();
        let rows = serde_json::Value::Array(rows);
        let stored = transaction(|| spi::run("select helper._record($1)", &[JsonB(rows).into()]));
        if self.note(stored).is_none() {
            // Whatever is not acknowledged comes again with the next connection.
            return;
        }
        // SAFETY: set once when the process connects.
        let database = unsafe { pg_sys::MyDatabaseId.to_u32() };
        if let Some(link) = &mut self.link {
            let _ = link.request(&Request::Recorded { database, upto });
        }
    }
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
