//! Steps that call a function or ask for an approval.

use super::{Stepping, failed, parsed, stored_failure, wrong};
use crate::core::error::{Error, Result};
use crate::core::workflow::Time;
use crate::core::workflow::machine::Event;
use crate::core::workflow::row::{Failure, Place, Reason};
use crate::pg::tools::stepping;
use crate::pg::{identity, owner, spi};
use pgrx::Uuid;
use serde_json::Value;
use std::time::Duration;

impl Stepping<'_> {
    /// Calls a function, or asks for its approval.
    pub(super) fn call(
        &mut self,
        place: Place,
        attempt: u32,
        tool: &str,
        arguments: &Value,
        is_http: bool,
        time: Option<Duration>,
    ) -> Result<Event> {
        if is_http {
            let kind = owner::as_owner(|| {
                spi::first("select f.kind from helper.functions f where f.function_name = $1", &[tool.into()], |row| {
                    row.get::<String>(1)
                })
            })?;
            if kind.as_deref() != Some("http") {
                return Ok(wrong(format!("function \"{tool}\" is no HTTP endpoint")));
            }
        }
        self.is_used = true;
        let item = place.item.map_or(-1, i64::from);
        let key = format!("run:{}:{}:{item}:{attempt}", self.stored.id, place.step);
        let called = stepping(|| {
            self.text(
                time,
                "select helper.call($1, $2::jsonb, $3, $4)::text",
                &[tool.into(), arguments.to_string().into(), self.stored.workspace.into(), key.into()],
            )
        });
        let call = match called {
            Ok(call) => call.and_then(|call| identity::uuid(&call)).ok_or_else(|| Error::bug("a call has no id"))?,
            Err(fault) => return Ok(failed(fault)),
        };
        match self.call_ended(call)? {
            Some(event) => Ok(event),
            None => self.waiting("call", call, &Value::Null),
        }
    }

    /// Who decides on an approval, and until when.
    pub(super) fn hand_over(&self, call: Uuid, role: &str, self_approval: bool, lapses_at: Time) -> Result<()> {
        owner::as_owner(|| {
            spi::run(
                "update helper.function_calls c set approver_role = $3, self_approval = $4, lapses_at = helper._time($5) \
                 where c.workspace_id = $1 and c.id = $2",
                &[self.stored.workspace.into(), call.into(), role.into(), self_approval.into(), lapses_at.into()],
            )
        })
    }

    /// What became of a call; `None` while it goes on.
    pub(super) fn call_ended(&self, call: Uuid) -> Result<Option<Event>> {
        let found = owner::as_owner(|| {
            spi::change(
                "select c.status, c.result::text, c.error::text, c.reason from helper.function_calls c \
                 where c.workspace_id = $1 and c.id = $2",
                &[self.stored.workspace.into(), call.into()],
                |row| Ok((row.get::<String>(1)?, row.opt::<String>(2)?, row.opt::<String>(3)?, row.opt::<String>(4)?)),
            )
        })?;
        let Some((status, result, error, reason)) = found.into_iter().next() else {
            return Ok(Some(wrong("the call does not exist any more")));
        };
        let refused = |what: &str| {
            let mut error = Failure::new("42501", format!("the call was {what}"));
            error.detail = reason.clone();
            Some(Event::Failed { error, retryable: false })
        };
        Ok(match status.as_str() {
            "succeeded" => Some(Event::Succeeded { output: parsed(result).unwrap_or_default() }),
            "failed" => {
                let error = stored_failure(parsed(error), "the call failed");
                let retryable = !matches!(error.sqlstate.get(..2), Some("22" | "42"));
                Some(Event::Failed { error, retryable })
            }
            "uncertain" => {
                Some(Event::Uncertain { error: stored_failure(parsed(error), "what came of the call is not known") })
            }
            "rejected" => refused("rejected"),
            "expired" => {
                let mut error = Failure::new("57014", "the call was approved by nobody in time");
                error.reason = Some(Reason::Lapsed);
                Some(Event::Failed { error, retryable: false })
            }
            "cancelled" => refused("cancelled"),
            _ => None,
        })
    }

    /// Whether nothing will come of a call.
    pub(super) fn cancel_call(&self, call: Uuid) -> Result<bool> {
        let cancelled = owner::as_owner(|| {
            spi::change("select helper._cancel_call($1, $2)", &[self.stored.workspace.into(), call.into()], |row| {
                row.get::<bool>(1)
            })
        })?;
        Ok(cancelled == [true])
    }
}
