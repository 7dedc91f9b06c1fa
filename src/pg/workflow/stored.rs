//! What is stored of runs: read and written for many at once, as the owner.

mod changes;

use super::turn::Due;
use super::{definitions, now};
use crate::core::error::{Error, Result};
use crate::core::workflow::Time;
use crate::core::workflow::definition::Definition;
use crate::core::workflow::machine::{Given, Progress};
use crate::core::workflow::row::{Failure, Place, Row, Run, RunStatus, StepStatus};
use crate::pg::{owner, spi};
pub use changes::Changes;
use pgrx::Uuid;
use serde_json::{Value, json};
use std::collections::HashMap;

/// What inputs and outputs of the runs that are loaded together take, but for the last one's.
const MOST_BYTES: i64 = 16 * 1024 * 1024;

/// What somebody wants of a run.
pub struct Command {
    wish: String,
    step: Option<String>,
}

impl Command {
    pub fn apply(&self, progress: &mut Progress, now: Time) -> Result<()> {
        match (self.wish.as_str(), &self.step) {
            ("cancel", _) => drop(progress.cancel(now)),
            ("pause", _) => drop(progress.pause(now)),
            ("resume", _) => drop(progress.resume(now)),
            // One that is not to be retried any more was retried by somebody else.
            ("redrive", _) => drop(progress.redrive()),
            ("retry", Some(step)) => drop(progress.retry(step, now)),
            _ => return Err(Error::bug("a command that nobody knows")),
        }
        Ok(())
    }
}

/// A run as it is stored.
pub struct Stored {
    pub workspace: Uuid,
    pub id: Uuid,
    pub workflow: Uuid,
    pub name: String,
    pub version: i32,
    pub uses_sql: bool,
    pub role: String,
    pub claims: Option<String>,
    pub run: Run,
    pub input: Value,
    pub trigger: Value,
    pub depth: i32,
    pub commands: Vec<Command>,
    priority: i32,
    settings: Value,
    started_at: Option<Time>,
    /// When it was taken from the queue.
    taken_at: Time,
    /// Whether all of it could be read: what it was given, or what a step came to, may be nested too deep.
    pub is_readable: bool,
    /// What it counts together with other runs by; known once it was its turn or waits for it.
    key: Option<String>,
    /// How many runs of its workspace go on at once, where that is limited.
    pub in_workspace: Option<i32>,
    /// Whether it has to wait for its turn.
    is_limited: bool,
    /// What its input and its steps' outputs take, about.
    pub bytes: i64,
    /// Whether rows of its steps are stored.
    has_steps: bool,
    steps: Vec<(String, i32, Row)>,
}

fn parsed(text: Option<String>) -> Result<Option<Value>> {
    text.map(|text| serde_json::from_str(&text).map_err(|_| Error::bug("what is stored is not JSON"))).transpose()
}

/// A run's settings: the owner's of its version, who may have changed them since.
const SETTINGS: &str = "case when w.user_id = v.user_id then w.settings else v.settings end::text";

/// The runs of rows of a workspace, in their order; not all of them where they take much memory.
pub fn load(workspace: Uuid, rows: &[Due]) -> Result<Vec<Stored>> {
    let ids: Vec<Uuid> = rows.iter().map(|row| row.run).collect();
    let sql = format!(
        "select r.workspace_id, r.id, r.workflow_id, w.name, r.version, v.principal_role::text, \
           v.principal_claims::text, r.status, r.input::text, r.trigger::text, r.depth, r.priority, {SETTINGS}, \
           (extract(epoch from r.deadline) * 1000)::bigint, (extract(epoch from r.paused_at) * 1000)::bigint, \
           (extract(epoch from r.started_at) * 1000)::bigint, coalesce(r.holds, r.key), r.output::text, r.error::text, r.bytes, \
           (select l.runs from helper.workflow_limits l where l.workspace_id = $1) \
         from ( \
           select c.n, o.*, sum(o.bytes) over (order by c.n) - o.bytes as before \
           from unnest($2) with ordinality c (id, n) \
           cross join lateral (select o.* from helper.workflow_runs o where o.workspace_id = $1 and o.id = c.id offset 0) o \
         ) r \
         join helper.workflows w on w.workspace_id = r.workspace_id and w.id = r.workflow_id \
         join helper.workflow_versions v \
           on v.workspace_id = r.workspace_id and v.workflow_id = r.workflow_id and v.version = r.version \
         where r.before < $3 \
         order by r.n"
    );
    let mut runs = spi::change(&sql, &[workspace.into(), ids.into(), MOST_BYTES.into()], |row| {
        let status: String = row.get(8)?;
        let error = parsed(row.opt(19)?)?.map(serde_json::from_value).transpose();
        let (input, settings) = (parsed(row.opt(9)?), parsed(row.opt(13)?));
        let run = Run {
            status: RunStatus::of_name(&status).ok_or_else(|| Error::bug("a run has a state that nobody knows"))?,
            deadline: row.opt(14)?,
            paused_at: row.opt(15)?,
            output: parsed(row.opt(18)?)?,
            error: error.map_err(|_| Error::bug("a run has an error that cannot be read"))?,
        };
        Ok(Stored {
            workspace: row.get(1)?,
            id: row.get(2)?,
            workflow: row.get(3)?,
            name: row.get(4)?,
            version: row.get(5)?,
            uses_sql: false,
            role: row.get(6)?,
            claims: row.opt(7)?,
            run,
            is_readable: input.is_ok() && settings.is_ok(),
            input: input.ok().flatten().unwrap_or_default(),
            trigger: parsed(row.opt(10)?)?.unwrap_or_default(),
            depth: row.get(11)?,
            commands: Vec::new(),
            priority: row.get(12)?,
            settings: settings.ok().flatten().unwrap_or_default(),
            started_at: row.opt(16)?,
            taken_at: now(),
            key: row.opt(17)?,
            in_workspace: row.opt(21)?,
            is_limited: false,
            bytes: row.get(20)?,
            has_steps: false,
            steps: Vec::new(),
        })
    })?;
    load_steps(&mut runs)?;
    for run in &mut runs {
        let definition = definitions::of(run.workspace, run.workflow, run.version)?;
        run.uses_sql = definitions::uses_sql(&definition);
        // One that another waits for has that one's place.
        run.in_workspace = run.in_workspace.filter(|_| run.trigger["kind"] != "workflow");
        run.is_limited = definition.concurrency.is_some() || definition.rate.is_some() || run.in_workspace.is_some();
    }
    Ok(runs)
}

fn load_steps(runs: &mut [Stored]) -> Result<()> {
    let Some(workspace) = runs.first().map(|run| run.workspace) else { return Ok(()) };
    let ids: Vec<Uuid> = runs.iter().map(|run| run.id).collect();
    let rows = spi::change(
        "select s.run_id, s.step, s.item, s.status, s.attempt, s.output::text, s.error::text, s.waits_for::text, \
           (extract(epoch from s.wake_at) * 1000)::bigint, (extract(epoch from s.started_at) * 1000)::bigint, \
           (extract(epoch from s.finished_at) * 1000)::bigint \
         from unnest($2) c (id) \
         cross join lateral (select s.* from helper.workflow_steps s where s.workspace_id = $1 and s.run_id = c.id offset 0) s",
        &[workspace.into(), ids.into()],
        |row| {
            let status: String = row.get(4)?;
            let error = parsed(row.opt(7)?)?.map(serde_json::from_value::<Failure>).transpose();
            let output = parsed(row.opt(6)?);
            let is_readable = output.is_ok();
            let step = Row {
                status: StepStatus::of_name(&status)
                    .ok_or_else(|| Error::bug("a step has a state that nobody knows"))?,
                attempt: row.get::<i32>(5)? as u32,
                output: output.ok().flatten(),
                error: error.map_err(|_| Error::bug("a step has an error that cannot be read"))?,
                waits_for: parsed(row.opt(8)?)?,
                wake_at: row.opt(9)?,
                started_at: row.opt(10)?,
                finished_at: row.opt(11)?,
                ..Row::new(Place { step: 0, item: None })
            };
            Ok((row.get::<Uuid>(1)?, row.get::<String>(2)?, row.get::<i32>(3)?, step, is_readable))
        },
    )?;
    let places: HashMap<[u8; 16], usize> = runs.iter().enumerate().map(|(at, run)| (*run.id.as_bytes(), at)).collect();
    for (run, step, item, row, is_readable) in rows {
        if let Some(at) = places.get(run.as_bytes()) {
            runs[*at].is_readable &= is_readable;
            runs[*at].has_steps = true;
            runs[*at].steps.push((step, item, row));
        }
    }
    Ok(())
}

/// Takes all rows of the queue that these runs have, and notes what is wanted of them. What comes later is looked at
/// later: nothing that the runs wait for was looked at before this.
pub fn take_rows(runs: &mut [Stored]) -> Result<()> {
    let ids: Vec<Uuid> = runs.iter().map(|run| run.id).collect();
    let mut taken = spi::change(
        "delete from helper.workflow_queue q where q.run_id = any ($1) \
         returning q.run_id, q.id, q.command ->> 'do', q.command ->> 'step'",
        &[ids.into()],
        |row| Ok((row.get::<Uuid>(1)?, row.get::<Uuid>(2)?, row.opt::<String>(3)?, row.opt::<String>(4)?)),
    )?;
    taken.sort_by_key(|(_, id, ..)| *id.as_bytes());
    for (run, _, wish, step) in taken {
        if let (Some(run), Some(wish)) = (runs.iter_mut().find(|stored| stored.id == run), wish) {
            run.commands.push(Command { wish, step });
        }
    }
    load_settings(runs)
}

/// Reads the settings again of runs of which something is wanted: they may have been changed for just that.
fn load_settings(runs: &mut [Stored]) -> Result<()> {
    let Some(workspace) = runs.first().map(|run| run.workspace) else { return Ok(()) };
    let ids: Vec<Uuid> = runs.iter().filter(|run| !run.commands.is_empty()).map(|run| run.id).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let sql = format!(
        "select r.id, {SETTINGS} \
         from helper.workflow_runs r \
         join helper.workflows w on w.workspace_id = r.workspace_id and w.id = r.workflow_id \
         join helper.workflow_versions v \
           on v.workspace_id = r.workspace_id and v.workflow_id = r.workflow_id and v.version = r.version \
         where r.workspace_id = $1 and r.id = any ($2)"
    );
    for (id, settings) in
        spi::change(&sql, &[workspace.into(), ids.into()], |row| Ok((row.get::<Uuid>(1)?, row.opt(2)?)))?
    {
        if let Some(run) = runs.iter_mut().find(|run| run.id == id) {
            let settings = parsed(settings);
            run.is_readable &= settings.is_ok();
            run.settings = settings.ok().flatten().unwrap_or_default();
        }
    }
    Ok(())
}

impl Stored {
    /// Nothing of it has begun.
    pub fn is_new(&self) -> bool {
        self.started_at.is_none()
    }

    /// It has not begun, and waits for its turn.
    pub fn is_in_line(&self) -> bool {
        self.is_limited && self.is_new()
    }

    /// It is its turn; where others had theirs meanwhile, since now.
    pub fn begin(&mut self) {
        self.started_at = Some(if self.is_in_line() { now() } else { self.taken_at });
    }

    /// It had ended, and goes on: others of its key wait for it again.
    pub fn hold_again(&mut self, definition: &Definition) {
        if definition.concurrency.is_some() {
            self.key = definition.concurrency_key(&self.input, &self.trigger).ok();
        }
    }

    /// Whether nobody at all is in its workspace, where it is ours to say who is.
    pub fn workspace_is_empty(&self) -> Result<bool> {
        let is_empty = owner::as_owner(|| {
            spi::change(
                "select not exists (select from helper.membership_source) \
                   and not exists (select from helper.workspace_members m where m.workspace_id = $1)",
                &[self.workspace.into()],
                |row| row.get::<bool>(1),
            )
        })?;
        Ok(is_empty == [true])
    }

    /// Pauses its workflow, whose owner may not run it any more; not where somebody else has written it anew.
    pub fn pause_workflow(&self, error: &Error) -> Result<()> {
        spi::run(
            "update helper.workflows w set enabled = false, problem = $3, updated_at = clock_timestamp() \
             where w.workspace_id = $1 and w.id = $2 and w.version = $4 and w.enabled",
            &[self.workspace.into(), self.workflow.into(), error.message.as_str().into(), self.version.into()],
        )
    }

    /// What its templates see beside its steps.
    pub fn given(&self) -> Given {
        Given {
            input: self.input.clone(),
            trigger: self.trigger.clone(),
            run: json!({
                "id": self.id.to_string(),
                "workspace_id": self.workspace.to_string(),
                "workflow": self.name,
                "started_at": self.started_at.unwrap_or(self.taken_at),
            }),
            vars: self.settings.clone(),
        }
    }

    /// Its rows of steps, by their places in the definition.
    pub fn rows(&mut self, definition: &Definition) -> Result<Vec<Row>> {
        let steps = std::mem::take(&mut self.steps);
        steps
            .into_iter()
            .map(|(name, item, row)| {
                let step =
                    definition.find(&name).ok_or_else(|| Error::bug("a row is of a step that the workflow has not"))?;
                Ok(Row { place: Place { step, item: u32::try_from(item).ok() }, ..row })
            })
            .collect()
    }
}
