//! What runs came to, written for many at once.

use super::{Command, Stored};
use crate::core::error::Result;
use crate::core::workflow::Time;
use crate::core::workflow::machine::Progress;
use crate::core::workflow::row::{Failure, Place, Run, RunStatus};
use crate::pg::workflow::now;
use crate::pg::{identity, spi};
use pgrx::Uuid;
use serde_json::{Value, json};
use std::collections::HashMap;

/// What runs came to, to be stored together.
#[derive(Default)]
pub struct Changes {
    workspace: Option<Uuid>,
    runs: Vec<Uuid>,
    states: Vec<Option<String>>,
    outputs: Vec<Option<String>>,
    errors: Vec<Option<String>>,
    deadlines: Vec<Option<i64>>,
    pauses: Vec<Option<i64>>,
    starts: Vec<Option<i64>>,
    ends: Vec<Option<i64>>,
    bytes: Vec<i64>,
    holds: Vec<Option<String>>,
    steps: Steps,
    /// Of runs that have no rows of steps yet.
    first_steps: Steps,
    wakes: Vec<Uuid>,
    wake_commands: Vec<Option<String>>,
    wake_priorities: Vec<i32>,
    wake_times: Vec<Option<i64>>,
    /// Runs that waited for something, and what they wait for still.
    waiting: Vec<(Uuid, Vec<Uuid>)>,
    /// Workflows, and keys, of which a run may begin that waited for another.
    freed: Vec<(Uuid, String)>,
}

#[derive(Default)]
struct Steps {
    runs: Vec<Uuid>,
    names: Vec<String>,
    items: Vec<i32>,
    states: Vec<String>,
    attempts: Vec<i32>,
    inputs: Vec<Option<String>>,
    outputs: Vec<Option<String>>,
    errors: Vec<Option<String>>,
    waits: Vec<Option<String>>,
    wakes: Vec<Option<i64>>,
    starts: Vec<Option<i64>>,
    ends: Vec<Option<i64>>,
}

impl Changes {
    /// What a run came to; one that is not finished is gone on with at once.
    pub fn of(
        &mut self,
        stored: &Stored,
        progress: &mut Progress,
        mut inputs: HashMap<Place, String>,
        is_unfinished: bool,
    ) -> Result<()> {
        let names: Vec<&str> = progress.definition().steps.iter().map(|step| step.name.as_str()).collect();
        let changed = progress.take_changes();
        let mut has_waited = false;
        for row in changed {
            has_waited |= row.waits_for.is_some();
            let steps = if stored.has_steps { &mut self.steps } else { &mut self.first_steps };
            steps.runs.push(stored.id);
            steps.names.push(names[row.place.step].to_owned());
            steps.items.push(row.place.item.map_or(-1, |item| item as i32));
            steps.states.push(row.status.name().to_owned());
            steps.attempts.push(row.attempt as i32);
            steps.inputs.push(inputs.remove(&row.place));
            steps.outputs.push(row.output.map(|output| output.to_string()));
            steps.errors.push(row.error.as_ref().and_then(|error| serde_json::to_string(error).ok()));
            steps.waits.push(row.waits_for.map(|waits| waits.to_string()));
            steps.wakes.push(row.wake_at);
            steps.starts.push(row.started_at);
            steps.ends.push(row.finished_at);
        }
        if has_waited || stored.run.status == RunStatus::Waiting {
            let still = progress.waiting().filter_map(|row| wait_of(row.waits_for.as_ref()?)).collect();
            self.waiting.push((stored.id, still));
        }
        let run = progress.run();
        let is_over = run.status.is_end();
        if is_over {
            self.free(stored);
        } else if let Some(at) = if is_unfinished { Some(now()) } else { progress.wake_at() } {
            self.wake(stored, Some(at));
        }
        self.run(stored, run);
        Ok(())
    }

    fn run(&mut self, stored: &Stored, run: &Run) {
        self.workspace = Some(stored.workspace);
        self.runs.push(stored.id);
        self.states.push(Some(run.status.name().to_owned()));
        self.outputs.push(run.output.as_ref().map(Value::to_string));
        self.errors.push(run.error.as_ref().and_then(|error| serde_json::to_string(error).ok()));
        self.deadlines.push(run.deadline);
        self.pauses.push(run.paused_at);
        self.starts.push(stored.started_at);
        self.ends.push(run.status.is_end().then(now));
        self.bytes.push(stored.bytes);
        self.holds.push(stored.key.clone().filter(|_| !stored.is_new()));
    }

    fn wake(&mut self, stored: &Stored, at: Option<Time>) {
        self.wake_with(stored, at, None);
    }

    fn wake_with(&mut self, stored: &Stored, at: Option<Time>, command: Option<String>) {
        self.workspace = Some(stored.workspace);
        self.wakes.push(stored.id);
        self.wake_commands.push(command);
        self.wake_priorities.push(-stored.priority);
        self.wake_times.push(at);
    }

    /// Has a run that does not go on now looked at later.
    pub fn put_off(&mut self, stored: &Stored, at: Option<Time>) -> Result<()> {
        self.wake(stored, at);
        Ok(())
    }

    /// Has what is wanted of a run looked at later.
    pub fn put_back(&mut self, stored: &Stored, commands: &[Command], at: Time) {
        for command in commands {
            self.wake_with(stored, Some(at), Some(json!({ "do": command.wish, "step": command.step }).to_string()));
        }
        if commands.is_empty() {
            self.wake(stored, Some(at));
        }
    }

    /// Has a run whose turn it is begin in a transaction of its own: what its steps take long for, nobody waits for who asks
    /// whether it is their turn.
    pub fn admit(&mut self, stored: &Stored, run: &Run) -> Result<()> {
        self.run(stored, run);
        self.put_off(stored, Some(now()))
    }

    /// Has a run whose turn it is not yet wait for it, also one that was resumed just now.
    pub fn queue(&mut self, stored: &Stored, run: &Run, at: Option<Time>) -> Result<()> {
        if *run != stored.run {
            self.run(stored, &Run { status: RunStatus::Queued, ..run.clone() });
        }
        self.put_off(stored, at)
    }

    /// Ends a run that cannot begin or go on.
    pub fn fail(&mut self, stored: &Stored, error: Failure) -> Result<()> {
        let run = Run { status: RunStatus::Failed, paused_at: None, error: Some(error), ..stored.run.clone() };
        self.run(stored, &run);
        self.waiting.push((stored.id, Vec::new()));
        self.free(stored);
        Ok(())
    }

    fn free(&mut self, stored: &Stored) {
        if let Some(key) = &stored.key {
            self.freed.push((stored.workflow, key.clone()));
        }
    }

    /// Writes all of it.
    pub fn store(self) -> Result<()> {
        let Some(workspace) = self.workspace else { return Ok(()) };
        self.first_steps.store(workspace, "")?;
        self.steps.store(workspace, KNOWN_STEPS)?;
        if !self.runs.is_empty() {
            spi::run(
                "update helper.workflow_runs r \
                 set status = c.status, output = c.output::jsonb, error = c.error::jsonb, \
                   deadline = helper._time(c.deadline), paused_at = helper._time(c.paused_at), \
                   started_at = helper._time(c.started_at), finished_at = helper._time(c.finished_at), bytes = c.bytes, \
                   key = case when c.finished_at is null then r.key end, \
                   holds = case when c.finished_at is null then coalesce(r.holds, c.holds) end \
                 from unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::text[]) \
                   c (id, status, output, error, deadline, paused_at, started_at, finished_at, bytes, holds) \
                 cross join lateral (select o.ctid from helper.workflow_runs o where o.workspace_id = $1 and o.id = c.id offset 0) o \
                 where r.ctid = o.ctid",
                &[
                    workspace.into(),
                    self.runs.clone().into(),
                    self.states.clone().into(),
                    self.outputs.into(),
                    self.errors.into(),
                    self.deadlines.into(),
                    self.pauses.into(),
                    self.starts.into(),
                    self.ends.into(),
                    self.bytes.into(),
                    self.holds.into(),
                ],
            )?;
            spi::run(
                "select pg_catalog.pg_notify('helper_runs', c.id::text || ' ' || c.status) \
                 from unnest($1::uuid[], $2::text[]) c (id, status) \
                 where (select pg_catalog.pg_notification_queue_usage() < 0.5)",
                &[self.runs.into(), self.states.into()],
            )?;
        }
        for (run, still) in self.waiting {
            spi::run(
                "delete from helper.workflow_waits w where w.workspace_id = $1 and w.run_id = $2 and w.id <> all ($3)",
                &[workspace.into(), run.into(), still.into()],
            )?;
        }
        for (workflow, key) in self.freed {
            spi::run("select helper._next_of_key($1, $2, $3)", &[workspace.into(), workflow.into(), key.into()])?;
        }
        if self.wakes.is_empty() {
            return Ok(());
        }
        spi::run(
            "insert into helper.workflow_queue (workspace_id, run_id, priority, run_at, is_due, command) \
             select $1, c.run_id, c.priority, t.run_at, t.run_at <= clock_timestamp(), c.command::jsonb \
             from unnest($2::uuid[], $3::integer[], $4::bigint[], $5::text[]) c (run_id, priority, run_at, command) \
             cross join lateral (select coalesce(helper._time(c.run_at), 'infinity') as run_at) t",
            &[
                workspace.into(),
                self.wakes.into(),
                self.wake_priorities.into(),
                self.wake_times.into(),
                self.wake_commands.into(),
            ],
        )
    }
}

/// What is done with rows of steps that are there: only the runner that has a run's row writes them.
const KNOWN_STEPS: &str = "on conflict (workspace_id, run_id, step, item) do update \
     set status = excluded.status, attempt = excluded.attempt, input = coalesce(excluded.input, s.input), \
       output = excluded.output, error = excluded.error, waits_for = excluded.waits_for, wake_at = excluded.wake_at, \
       started_at = excluded.started_at, finished_at = excluded.finished_at";

impl Steps {
    /// Writes them; where there are none yet, without looking for them.
    fn store(self, workspace: Uuid, on_conflict: &str) -> Result<()> {
        if self.runs.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "insert into helper.workflow_steps as s \
               (workspace_id, run_id, step, item, status, attempt, input, output, error, waits_for, wake_at, started_at, finished_at) \
             select $1, c.run_id, c.step, c.item, c.status, c.attempt, c.input::jsonb, c.output::jsonb, c.error::jsonb, \
               c.waits_for::jsonb, helper._time(c.wake_at), helper._time(c.started_at), helper._time(c.finished_at) \
             from unnest($2::uuid[], $3::text[], $4::integer[], $5::text[], $6::integer[], $7::text[], $8::text[], $9::text[], \
               $10::text[], $11::bigint[], $12::bigint[], $13::bigint[]) \
               c (run_id, step, item, status, attempt, input, output, error, waits_for, wake_at, started_at, finished_at) \
             {on_conflict}"
        );
        spi::run(
            &sql,
            &[
                workspace.into(),
                self.runs.into(),
                self.names.into(),
                self.items.into(),
                self.states.into(),
                self.attempts.into(),
                self.inputs.into(),
                self.outputs.into(),
                self.errors.into(),
                self.waits.into(),
                self.wakes.into(),
                self.starts.into(),
                self.ends.into(),
            ],
        )
    }
}

/// The row of `workflow_waits` that a step's wait has.
fn wait_of(waits_for: &Value) -> Option<Uuid> {
    identity::uuid(waits_for.get("wait")?.as_str()?)
}
