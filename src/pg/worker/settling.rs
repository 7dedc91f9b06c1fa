//! What an earlier worker left behind when it ended: what it had claimed, and calls and messages that it was sending. A
//! database has one worker, so that all which seems to be under way when one begins is that.

use super::Worker;
use crate::core::error::{Kind, Result};
use crate::pg::spi;
use crate::pg::transaction::{lasting_transaction, transaction};
use pgrx::Uuid;
use std::time::{Duration, Instant};

/// When it is tried again to settle what somebody held.
const AGAIN: Duration = Duration::from_secs(1);

/// Rows by their workspaces and ids.
type Rows = (Vec<Uuid>, Vec<Uuid>);

/// What is not settled yet.
pub(super) enum Inherited {
    /// Nobody has looked what there is.
    Unknown,
    Known {
        calls: Rows,
        messages: Rows,
        /// Whether there are leases.
        leases: bool,
        /// When it is tried again.
        at: Instant,
    },
    Settled,
}

impl Inherited {
    fn find() -> Result<Inherited> {
        let calls = rows("select c.workspace_id, c.id from helper.function_calls c where c.status = 'running'", None)?;
        let messages = rows(
            "select o.workspace_id, o.id from helper.wa_outbox o where o.status = 'sending' and o.by_worker",
            None,
        )?;
        Ok(Inherited::Known { calls, messages, leases: true, at: Instant::now() })
    }
}

fn rows(sql: &str, among: Option<Rows>) -> Result<Rows> {
    let read = |row: &spi::Row| Ok((row.get::<Uuid>(1)?, row.get::<Uuid>(2)?));
    let found = match among {
        Some((workspaces, ids)) => spi::change(sql, &[workspaces.into(), ids.into()], read)?,
        None => spi::change(sql, &[], read)?,
    };
    Ok(found.into_iter().unzip())
}

impl Worker {
    /// Settles what an earlier worker left behind. What somebody's open transaction holds is left for the next time, and
    /// stops nobody else's work. Says whether it is known what that is: nothing is begun before.
    pub(super) fn settle(&mut self) -> bool {
        if matches!(self.inherited, Inherited::Unknown) {
            let found = transaction(Inherited::find);
            if found.as_ref().is_err_and(|error| error.kind == Kind::NotReady) {
                self.note(found);
                return false;
            }
            self.inherited = self.note(found).unwrap_or(Inherited::Settled);
        }
        let Inherited::Known { at, .. } = self.inherited else { return true };
        if at > Instant::now() {
            self.next_look = self.next_look.min(at);
            return true;
        }
        let alive = self.alive();
        let Inherited::Known { calls, messages, leases, at } = &mut self.inherited else { return true };
        if *leases {
            let left = transaction(|| {
                spi::change("select helper._release_leases($1) > 0", &[alive.into()], |row| row.get::<bool>(1))
            });
            *leases = self.notes.note(left).is_none_or(|left| left != [false]);
        }
        if !calls.0.is_empty() {
            let sql = "select s.workspace_id, s.call from helper._settle_calls($1, $2) s";
            let left = transaction(|| rows(sql, Some(calls.clone())));
            *calls = self.notes.note(left).unwrap_or_else(|| std::mem::take(calls));
        }
        if !messages.0.is_empty() {
            let sql = "select s.workspace_id, s.message from helper._settle_whatsapp($1, $2) s";
            let left = lasting_transaction(|| rows(sql, Some(messages.clone())));
            *messages = self.notes.note(left).unwrap_or_else(|| std::mem::take(messages));
        }
        if *leases || !calls.0.is_empty() || !messages.0.is_empty() {
            *at = Instant::now() + AGAIN;
            self.next_look = self.next_look.min(*at);
        } else {
            self.inherited = Inherited::Settled;
        }
        true
    }
}
