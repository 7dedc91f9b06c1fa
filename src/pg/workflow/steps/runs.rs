//! Steps that run another workflow.

use super::{Stepping, failed, parsed, stored_failure, wrong};
use crate::core::error::{Error, Kind, Result};
use crate::core::workflow::machine::Event;
use crate::core::workflow::row::Place;
use crate::pg::{owner, spi};
use pgrx::Uuid;
use serde_json::{Value, json};

impl Stepping<'_> {
    /// Starts a run that the step waits for.
    pub(super) fn sub_run(&self, place: Place, attempt: u32, workflow: &str, input: &Value) -> Result<Event> {
        let item = place.item.map_or(-1, i64::from);
        let trigger = json!({ "kind": "workflow", "run": self.stored.id.to_string(), "name": self.stored.name });
        let key = format!("run:{}:{}:{item}:{attempt}", self.stored.id, place.step);
        let run = owner::as_owner(|| {
            spi::change(
                "select w.id is not null, d.deepest, \
                   case when $6 <= d.deepest then helper._start_run($1, w.id, $3::jsonb, $4::jsonb, $5, $6) end \
                 from (values (helper._deepest())) d (deepest) \
                 left join helper.workflows w on w.workspace_id = $1 and w.name = $2",
                &[
                    self.stored.workspace.into(),
                    workflow.into(),
                    trigger.to_string().into(),
                    input.to_string().into(),
                    key.into(),
                    (self.stored.depth + 1).into(),
                ],
                |row| Ok((row.get::<bool>(1)?, row.get::<i32>(2)?, row.opt::<Uuid>(3)?)),
            )
        })?;
        match run.first() {
            Some((_, deepest, _)) if self.stored.depth >= *deepest => {
                let error = Error::new(Kind::OverLimit, "workflows start one another too deep");
                let detail = format!("This run is the end of a chain of {deepest}, each started by the one before.");
                Ok(Event::Failed { error: error.detail(detail).into(), retryable: false })
            }
            Some((true, _, Some(run))) => self.waiting("run", *run, &Value::Null),
            Some((true, _, None)) => Ok(failed(Error::not_ready(format!("workflow \"{workflow}\" is paused")).into())),
            _ => Ok(failed(Error::unknown_object(format!("workflow \"{workflow}\" does not exist")).into())),
        }
    }

    /// What became of it; `None` while it goes on.
    pub(super) fn sub_run_ended(&self, run: Uuid) -> Result<Option<Event>> {
        let found = owner::as_owner(|| {
            spi::change(
                "select r.status, r.output::text, r.error::text from helper.workflow_runs r where r.workspace_id = $1 and r.id = $2",
                &[self.stored.workspace.into(), run.into()],
                |row| Ok((row.get::<String>(1)?, row.opt::<String>(2)?, row.opt::<String>(3)?)),
            )
        })?;
        let Some((status, output, error)) = found.into_iter().next() else {
            return Ok(Some(wrong("the run does not exist any more")));
        };
        Ok(match status.as_str() {
            "succeeded" => Some(Event::Succeeded { output: parsed(output).unwrap_or_default() }),
            "failed" | "timed_out" | "cancelled" => {
                let error = stored_failure(parsed(error), &format!("the run {}", status.replace('_', " ")));
                Some(Event::Failed { error, retryable: status != "cancelled" })
            }
            _ => None,
        })
    }
}
