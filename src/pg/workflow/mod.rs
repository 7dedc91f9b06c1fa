//! Runs of workflows: a runner takes some from the queue, goes on with them as their owners, and stores what came of it,
//! what is next and the end of their rows in the queue in one transaction. What a step has others do is looked at each time
//! anew, so that a wake which comes twice, late or after a crash does no harm.

mod definitions;
mod outputs;
mod statement;
mod steps;
mod stored;
mod turn;

use crate::core::error::{Error, Kind, Result};
use crate::core::workflow::definition::Definition;
use crate::core::workflow::machine::{Action, Progress};
use crate::core::workflow::row::Failure;
use crate::core::workflow::{Span, Time};
use crate::pg::{calling_off, identity, owner, session, shared, spi, wake};
use pgrx::Uuid;
use pgrx::prelude::*;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use steps::Stepping;
use stored::{Changes, Stored};
use turn::Due;
pub use turn::Turn;

/// How many runs are looked at together, where it is not known how long they take.
const TOGETHER: usize = 64;
/// How long one transaction goes on with runs, before what it did is committed.
const TURN: Duration = Duration::from_millis(50);

/// Bytes of a concurrency key.
const LONGEST_KEY: usize = 500;

/// When a run is looked at again in whose workspace there is nobody: a restore that is under way brings them.
const WORKSPACE_AGAIN: Span = 10_000;

/// Now, in milliseconds since 1970.
fn now() -> Time {
    // SAFETY: a plain getter; Postgres counts microseconds since 2000.
    unsafe { (pg_sys::GetCurrentTimestamp() + 946_684_800_000_000) / 1000 }
}

/// A number in [0, 1).
fn random() -> f64 {
    let mut bytes = [0_u8; 8];
    // SAFETY: the buffer is as long as it is said to be.
    unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) };
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1_u64 << 53) as f64
}

/// What a transaction is to go on with.
pub enum Wanted<'a> {
    /// Runs of the workspace whose turn it is, and of one owner.
    Next(&'a mut Turn),
    /// A row of the queue that was marked before, alone.
    One { workspace: Uuid, row: Uuid },
}

/// Goes on with runs that are due, in a transaction that nothing else is in. Says whether there was something to do. Only
/// outside of [`owner::as_owner`].
pub fn go_on(wanted: &mut Wanted) -> Result<bool> {
    let Some((workspace, mut rows)) = owner::as_owner(|| turn::wanted(wanted))? else { return Ok(false) };
    let until = Instant::now() + TURN;
    let (claimed, mut done) = (rows.len(), 0);
    let mut owned: Option<(String, Option<String>)> = None;
    let mut is_used = false;
    let mut checked = Checked::default();
    let (most, mut is_more_due) = match wanted {
        Wanted::Next(turn) => (turn.together(TOGETHER), turn.takes_at_most(claimed)),
        Wanted::One { .. } => (TOGETHER, false),
    };
    while !rows.is_empty() && (owned.is_none() || Instant::now() < until) {
        let together: Vec<Due> = rows.drain(..rows.len().min(most)).collect();
        done += together.len();
        let mut runs = owner::as_owner(|| stored::load(workspace, &together))?;
        let Some(first) = runs.first() else { break };
        // A transaction is one owner's: what one leaves in it, another does not find.
        let (role, claims) = owned.get_or_insert_with(|| (first.role.clone(), first.claims.clone()));
        let others = runs.iter().position(|run| run.role != *role || run.claims != *claims);
        // What was let in is committed before others may wait for it.
        let in_line = first.is_in_line();
        // Another runner takes some too; but two would only keep each other from letting runs in.
        if std::mem::take(&mut is_more_due) && !in_line {
            shared::want_runner(wake::this_database());
        }
        let others = others.or_else(|| runs.iter().position(|run| run.is_in_line() != in_line));
        if let Some(others) = others {
            runs.truncate(others);
        }
        if in_line || runs.len() < together.len() {
            rows.clear();
        }
        let Some(last) = runs.last().map(|run| run.id) else { break };
        if let Wanted::Next(turn) = wanted {
            turn.came_to(together.iter().rfind(|due| due.run == last));
        }
        let mut changes = Changes::default();
        owner::as_owner(|| stored::take_rows(&mut runs))?;
        let mut is_there = false;
        let went = owner::as_principal(role, claims.as_deref(), || {
            is_there = true;
            session::for_callers();
            for (at, run) in runs.iter_mut().enumerate() {
                // One of them took long: what it did is committed before the others.
                if at > 0 && run.commands.is_empty() && Instant::now() >= until {
                    changes.put_off(run, Some(now()))?;
                    done -= 1;
                } else {
                    is_used |= advance(run, None, until, &mut checked, &mut changes)?;
                    if is_used {
                        checked = Checked::default();
                    }
                }
            }
            Ok(())
        });
        owner::as_owner(|| {
            match went {
                Err(error) if !is_there => {
                    let mut each = |run| advance(run, Some(&error), until, &mut checked, &mut changes).map(drop);
                    runs.iter_mut().try_for_each(&mut each)?;
                }
                went => went?,
            }
            changes.store()
        })?;
    }
    if let Wanted::Next(turn) = wanted {
        turn.did(claimed, done);
    }
    if is_used {
        owner::as_owner(session::forget)?;
    }
    Ok(true)
}

/// Goes on with a run as far as it can until then, as its owner; not where the owner is gone, for the reason that is given.
/// Says whether something that callers wrote has run.
fn advance(
    stored: &mut Stored,
    gone: Option<&Error>,
    until: Instant,
    checked: &mut Checked,
    changes: &mut Changes,
) -> Result<bool> {
    let definition = definitions::of(stored.workspace, stored.workflow, stored.version)?;
    let rows = stored.rows(&definition)?;
    let mut progress = Progress::load(&definition, stored.given(), stored.run.clone(), rows)?;
    let was_over = progress.run().status.is_end();
    let now_then = now();
    let commands = std::mem::take(&mut stored.commands);
    for command in &commands {
        command.apply(&mut progress, now_then)?;
    }
    if was_over && progress.run().status.is_end() {
        return Ok(false);
    }
    if was_over {
        stored.hold_again(&definition);
    }
    if !stored.is_readable {
        let error = Error::new(Kind::OverLimit, "the run holds JSON that is nested too deep");
        return changes.fail(stored, error.detail("At most 127 levels are read.").into()).map(|()| false);
    }
    if let Some(error) = gone.cloned().or_else(|| checked.check(stored).err()) {
        if !progress.run().status.is_end() && stored.workspace_is_empty()? {
            changes.put_back(stored, &commands, now() + WORKSPACE_AGAIN);
            return Ok(false);
        }
        return owner::as_owner(|| hold(stored, &definition, &mut progress, &error, changes)).map(|()| false);
    }
    if stored.is_new() && !progress.run().status.is_end() && progress.run().paused_at.is_none() {
        let is_in_line = stored.is_in_line();
        match admit(stored, &definition)? {
            Admitted::Now => stored.begin(),
            Admitted::At(at) => return changes.queue(stored, progress.run(), at).map(|()| false),
            Admitted::Never(error) => return changes.fail(stored, error).map(|()| false),
        }
        if is_in_line {
            return changes.admit(stored, progress.run()).map(|()| false);
        }
    }
    let mut stepping = Stepping::new(stored, &definition)?;
    stepping.look(&mut progress)?;
    let at = calling_off::at(stored.workspace, stored.id);
    let is_unfinished = do_steps(stored, &mut progress, &mut stepping, until)?;
    drop(at);
    let Stepping { is_used, inputs, bytes, .. } = stepping;
    stored.bytes = bytes;
    changes.of(stored, &mut progress, inputs, is_unfinished)?;
    Ok(is_used)
}

/// Does what is to be done now, at least one step of it; says whether something is left, because the time is over or the
/// owner gone, or a step called off. A step that was begun and not done is begun again.
fn do_steps(stored: &Stored, progress: &mut Progress, stepping: &mut Stepping, until: Instant) -> Result<bool> {
    let mut is_first = true;
    loop {
        let at = now();
        stepping.expire(progress, at)?;
        let actions = progress.next(at, &mut random);
        if actions.is_empty() {
            return Ok(false);
        }
        for action in actions {
            match action {
                Action::Begin { .. } if !is_first && (Instant::now() >= until || check_owner(stored).is_err()) => {
                    return Ok(true);
                }
                // Looked at again, with what is wanted of the run now.
                Action::Begin { .. } if !is_first && calling_off::is_called_off() => return Ok(true),
                Action::Begin { place, attempt, work } => {
                    is_first = false;
                    let time = progress.times_out_at(place).map(|at| at.saturating_sub(now()));
                    let event = stepping.begin(place, attempt, work, time)?;
                    if calling_off::was_called_off() {
                        return Ok(true);
                    }
                    progress.apply(place, attempt, stepping.kept(event), now(), random());
                }
                Action::CallOff { place, attempt, waits_for } => {
                    stepping.call_off(progress, place, attempt, &waits_for)?;
                }
            }
        }
    }
}

/// What is done with a run whose owner may not have anything done. One that was cancelled is ended, with what it waits for:
/// that needs nobody's rights. Any other is paused, and its workflow too; what else was wanted of it is seen in its steps
/// and done once it goes on.
fn hold(
    stored: &Stored,
    definition: &Definition,
    progress: &mut Progress,
    error: &Error,
    changes: &mut Changes,
) -> Result<()> {
    if progress.hold(error.clone().into(), now()) {
        stored.pause_workflow(error)?;
    }
    let mut stepping = Stepping::new(stored, definition)?;
    for action in progress.next(now(), &mut random) {
        if let Action::CallOff { place, attempt, waits_for } = action {
            stepping.call_off(progress, place, attempt, &waits_for)?;
        }
    }
    changes.of(stored, progress, HashMap::new(), false)
}

/// What a transaction knows of its owner's rights in its workspace. Many short runs of one are looked at once together;
/// what a caller's statement may have changed is looked at anew.
#[derive(Default)]
struct Checked {
    as_member: bool,
    as_admin: bool,
}

impl Checked {
    fn check(&mut self, stored: &Stored) -> Result<()> {
        if !self.as_admin && (stored.uses_sql || !self.as_member) {
            check_owner(stored)?;
            self.as_member = true;
            self.as_admin |= stored.uses_sql;
        }
        Ok(())
    }
}

/// Whether the owner may still have it done: a member of the workspace, and an admin where statements are run.
fn check_owner(stored: &Stored) -> Result<()> {
    let least = if stored.uses_sql { "admin" } else { "member" };
    if identity::is_member_now(stored.workspace, least)? {
        return Ok(());
    }
    Err(Error::new(Kind::NotPermitted, "the workflow's owner may not run it any more")
        .detail(format!("That needs the role {least} in the workspace."))
        .hint("Give it back and call helper.resume_run, or create the workflow anew with helper.create_workflow for other runs."))
}

/// Whether a run may begin.
enum Admitted {
    Now,
    /// Not before; `None`: when another has ended.
    At(Option<Time>),
    Never(Failure),
}

fn admit(stored: &Stored, definition: &Definition) -> Result<Admitted> {
    match accept(stored, definition) {
        Admitted::Now => take_turn(stored, definition),
        other => Ok(other),
    }
}

/// Whether its input is one that the workflow takes; of a run that was asked for by hand, that was looked at then.
fn accept(stored: &Stored, definition: &Definition) -> Admitted {
    let Some(schema) = definition.input.as_ref().filter(|_| stored.trigger["kind"] != "manual") else {
        return Admitted::Now;
    };
    match definitions::check_fits(schema, &stored.input) {
        Ok(()) => Admitted::Now,
        // The gateway is back soon.
        Err(error) if error.kind == Kind::NotReady => Admitted::At(Some(now() + 1000)),
        Err(error) => Admitted::Never(error.into()),
    }
}

/// Whether it is its turn.
fn take_turn(stored: &Stored, definition: &Definition) -> Result<Admitted> {
    if !stored.is_in_line() {
        return Ok(Admitted::Now);
    }
    let key = match definition.concurrency_key(&stored.input, &stored.trigger) {
        Ok(key) => definition.concurrency.as_ref().map(|_| key),
        Err(error) => return Ok(Admitted::Never(error.into())),
    };
    if let Some(bytes) = key.as_ref().map(String::len).filter(|bytes| *bytes > LONGEST_KEY) {
        let error = Error::new(Kind::OverLimit, "the concurrency key is too long");
        let detail = format!("It has {bytes} bytes, expected at most {LONGEST_KEY}.");
        return Ok(Admitted::Never(error.detail(detail).into()));
    }
    let most = definition.concurrency.as_ref().map(|concurrency| concurrency.limit as i32);
    let rate = definition.rate.as_ref().map(|rate| (rate.limit as i32, rate.per));
    let at = owner::as_owner(|| {
        spi::change(
            "select a.at = 'infinity', (extract(epoch from nullif(a.at, 'infinity')) * 1000)::bigint \
             from helper._admit_run($1, $2, $3, $4, $5, $6, pg_catalog.make_interval(secs => $7), $8) a (at)",
            &[
                stored.workspace.into(),
                stored.workflow.into(),
                stored.id.into(),
                key.into(),
                most.into(),
                rate.map(|(limit, _)| limit).into(),
                rate.map(|(_, per)| seconds(per)).into(),
                stored.in_workspace.into(),
            ],
            |row| Ok((row.opt::<bool>(1)?, row.opt::<i64>(2)?)),
        )
    })?;
    Ok(match at.first() {
        Some((Some(true), _)) => Admitted::At(None),
        Some((Some(false), at)) => Admitted::At(*at),
        _ => Admitted::Now,
    })
}

fn seconds(span: Span) -> f64 {
    span as f64 / 1000.0
}

/// A row of the queue, and how often it was tried.
pub struct Marked {
    pub workspace: Uuid,
    pub row: Uuid,
    pub tried: i32,
}

/// A row of the queue that is due, marked as tried once more: for a runner that begins, and does not know over what the
/// last one ended.
pub fn mark(turn: &mut Turn) -> Result<Option<Marked>> {
    let Some(row) = turn.look(1)?.into_iter().next() else { return Ok(None) };
    // Whatever ends the server next finds others first, so that no run is blamed for what it has no part in.
    let tried = spi::change(
        "update helper.workflow_queue q \
         set attempts = q.attempts + 1, run_at = clock_timestamp() + pg_catalog.make_interval(secs => q.attempts), is_due = q.attempts = 0 \
         where q.workspace_id = $1 and q.id = $2 returning q.attempts",
        &[row.workspace.into(), row.id.into()],
        |row| row.get::<i32>(1),
    )?;
    // One that another runner has done meanwhile is not there any more; the next one may be.
    Ok(Some(Marked { workspace: row.workspace, row: row.id, tried: tried.first().copied().unwrap_or_default() }))
}

/// Puts off what a transaction failed over, or gives its run up.
pub fn failed(marked: &Marked, most: i32, error: &Error) -> Result<()> {
    let Marked { workspace, row, tried } = *marked;
    // Somebody's lock, a full disk: no try of it counts where that passes.
    let passes = error.kind == Kind::NotReady && tried <= most;
    if passes || tried < most {
        return spi::run(
            "update helper.workflow_queue q \
             set run_at = clock_timestamp() + pg_catalog.make_interval(secs => $3), is_due = false, attempts = q.attempts - $4 \
             where q.workspace_id = $1 and q.id = $2",
            &[workspace.into(), row.into(), f64::from(tried).into(), i32::from(passes).into()],
        );
    }
    let error = serde_json::to_string(&Failure::from(error.clone())).unwrap_or_default();
    spi::run(
        "with gone as ( \
           delete from helper.workflow_queue q where q.workspace_id = $1 and q.id = $2 returning q.workspace_id, q.run_id \
         ) \
         select helper._give_up_run(g.workspace_id, g.run_id, $3::jsonb) from gone g",
        &[workspace.into(), row.into(), error.into()],
    )
}

/// Has runs be due whose time has come, in a transaction of its own; says whether there were some.
pub fn wake_sleepers() -> Result<bool> {
    let woken = spi::change("select helper._wake_sleepers()", &[], |row| row.get::<bool>(1))?;
    Ok(woken == [true])
}

/// Seconds until the next run is due that waits for a time, if any does.
pub fn next_due() -> Result<Option<f64>> {
    let seconds = spi::change(
        "select extract(epoch from q.run_at - clock_timestamp())::float8 \
         from helper.workflow_queue q where not q.is_due and q.run_at < 'infinity' order by q.run_at limit 1",
        &[],
        |row| row.opt::<f64>(1),
    )?;
    Ok(seconds.into_iter().next().flatten())
}
