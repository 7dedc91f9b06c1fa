//! What is to do in a run. A definition and stored rows come in, then what happened; steps to begin and rows to store go
//! out. Times and random numbers are given; nothing is done here.

use super::definition::{Definition, Effort, OnError, Step, StepKind, Until};
use super::row::{Failure, Place, Reason, Row, Run, RunStatus, StepStatus};
use super::value::Context;
use super::{Span, Time};
use crate::core::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub use super::ending::replayed;
pub use super::work::Work;

/// Longest pause that another end can ask for.
const MOST_RETRY_AFTER: Span = 86_400_000;

/// What a run was started with: the roots of its context beside `steps`.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `input`.
    pub input: Value,
    /// `trigger`.
    pub trigger: Value,
    /// `run`: what templates may know of the run, as `{"id": ..., "workspace_id": ..., "workflow": ...,
    /// "started_at": ...}`.
    pub run: Value,
    /// `vars`: the workflow's settings.
    pub vars: Value,
}

/// What happened to an attempt of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It was done.
    Succeeded {
        /// Its output.
        output: Value,
    },
    /// It failed, without an effect or with one that may be made again.
    Failed {
        /// Its error; `retry_after` in it is heeded.
        error: Failure,
        /// Another attempt may succeed.
        retryable: bool,
    },
    /// It was handed to somebody else, or is still there.
    Waiting {
        /// What the engine needs to find it again.
        waits_for: Value,
        /// When to look at it at the latest.
        wake_at: Option<Time>,
    },
    /// Whether it had its effect is not known: it is never tried again unless somebody asks.
    Uncertain {
        /// Its error.
        error: Failure,
    },
}

/// What the engine has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Begin an attempt; its row is `running`. What comes of it goes to [`Progress::apply`].
    Begin {
        /// Of what.
        place: Place,
        /// Which attempt.
        attempt: u32,
        /// What to do.
        work: Work,
    },
    /// Call off what an attempt waits for: nobody asks for its result any more.
    CallOff {
        /// Of what.
        place: Place,
        /// Which attempt.
        attempt: u32,
        /// As the engine gave it.
        waits_for: Value,
    },
}

/// A step's row and its items', and which of them are not stored as they are.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) row: Row,
    is_changed: bool,
    pub(super) items: BTreeMap<u32, (Row, bool)>,
    /// The elements of a `map` that was begun.
    pub(super) elements: Option<Vec<Value>>,
}

/// A run in progress.
#[derive(Debug)]
pub struct Progress<'d> {
    pub(super) definition: &'d Definition,
    pub(super) run: Run,
    pub(super) context: Context,
    pub(super) slots: Vec<Slot>,
    /// What nobody asks for any more, until the engine is told.
    pub(super) called_off: Vec<Action>,
}

/// Whether it is a step's turn.
enum Turn {
    NotYet,
    Begin,
    Skip,
    /// What it needs failed.
    Cancel,
}

impl<'d> Progress<'d> {
    /// A run as it is stored. A row that says `running` is begun again under the same attempt: what has an effect
    /// outside of the transaction is stored as `waiting` before.
    ///
    /// # Errors
    /// XX000 where a row is not of this definition.
    pub fn load(definition: &'d Definition, given: Given, run: Run, rows: Vec<Row>) -> Result<Progress<'d>> {
        let Given { input, trigger, run: of_run, vars } = given;
        let context = Context::new([("input", input), ("trigger", trigger), ("run", of_run), ("vars", vars)]);
        let new = |step| Slot {
            row: Row::new(Place { step, item: None }),
            is_changed: false,
            items: BTreeMap::new(),
            elements: None,
        };
        let slots = (0..definition.steps.len()).map(new).collect();
        let mut progress = Progress { definition, run, context, slots, called_off: Vec::new() };
        for mut row in rows {
            if row.status == StepStatus::Running {
                row.status = StepStatus::Ready;
                row.attempt = row.attempt.saturating_sub(1);
            }
            let slot = progress.slots.get_mut(row.place.step);
            let slot = slot.ok_or_else(|| Error::bug("a row is of a step that the workflow has not"))?;
            match row.place.item {
                Some(item) => drop(slot.items.insert(item, (row, false))),
                None => slot.row = row,
            }
        }
        (0..progress.slots.len()).for_each(|step| progress.show(step));
        Ok(progress)
    }

    /// Goes on as far as it can: skips and cancels, chooses branches, ends waits and attempts whose time has come, ends
    /// the run; then says what to begin and what to call off. Empty: nothing until something happens or
    /// [`Progress::wake_at`].
    ///
    /// `random` gives numbers in [0, 1).
    pub fn next(&mut self, now: Time, random: &mut dyn FnMut() -> f64) -> Vec<Action> {
        let mut begun = Vec::new();
        if !self.run.status.is_end() && self.run.status != RunStatus::Paused {
            self.run.deadline = self.run.deadline.or(self.definition.timeout.map(|span| now.saturating_add(span)));
            if self.run.deadline.is_some_and(|deadline| deadline <= now) {
                self.run.error = Some(Failure::timeout(Reason::Timeout, "workflow run timed out"));
                self.end(RunStatus::TimedOut, now);
            } else {
                self.expire(now, random);
                self.advance(now, &mut begun);
            }
        }
        let mut actions = std::mem::take(&mut self.called_off);
        actions.append(&mut begun);
        actions
    }

    /// One pass is enough: a step depends on steps before it in this order only.
    fn advance(&mut self, now: Time, begun: &mut Vec<Action>) {
        for &step in &self.definition.order {
            match self.slots[step].row.status {
                StepStatus::Pending => match self.turn(step) {
                    Turn::NotYet => {}
                    Turn::Begin if self.is_wanted(step) => self.begin(step, now, begun),
                    Turn::Begin | Turn::Skip => self.finish(step, StepStatus::Skipped, now),
                    Turn::Cancel => self.finish(step, StepStatus::Cancelled, now),
                },
                StepStatus::Ready if self.slots[step].row.wake_at.is_none_or(|at| at <= now) => {
                    self.begin(step, now, begun);
                }
                StepStatus::Waiting => self.go_on_with_items(step, now, begun),
                _ => {}
            }
            if self.stopped(step, now) {
                // What was begun in this pass is over before it is done.
                begun.clear();
                return;
            }
        }
        self.end_if_done(now);
        if !self.run.status.is_end() {
            let is_waiting = begun.is_empty() && !self.rows().any(|row| row.status == StepStatus::Running);
            self.run.status = if is_waiting { RunStatus::Waiting } else { RunStatus::Running };
        }
    }

    fn step(&self, step: usize) -> &'d Step {
        &self.definition.steps[step]
    }

    fn turn(&self, step: usize) -> Turn {
        let step = (step, self.step(step));
        let row = |need: &usize| &self.slots[*need].row;
        if !step.1.needs.iter().all(|need| row(need).status.is_end()) {
            return Turn::NotYet;
        }
        let is_lost = |need: &usize| row(need).status == StepStatus::Cancelled || self.has_failed(*need);
        if step.1.needs.iter().any(is_lost) {
            return Turn::Cancel;
        }
        let goes_on = match step.1.chosen_by.is_empty() {
            true => {
                step.1.needs.is_empty() || step.1.needs.iter().any(|need| row(need).status == StepStatus::Succeeded)
            }
            false => step.1.chosen_by.iter().any(|by| self.chose(*by, step.0)),
        };
        if goes_on { Turn::Begin } else { Turn::Skip }
    }

    fn is_wanted(&self, step: usize) -> bool {
        self.step(step).when.as_ref().is_none_or(|when| when.holds(&self.context))
    }

    /// What follows from the failure that a step ended in.
    fn route(&self, step: usize) -> Option<OnError> {
        let row = &self.slots[step].row;
        let has_lapsed = row.error.as_ref().is_some_and(|error| error.reason == Some(Reason::Lapsed));
        match (&self.step(step).kind, row.status) {
            (StepKind::Approval { on_lapse, .. }, StepStatus::Failed) if has_lapsed => Some(*on_lapse),
            (_, StepStatus::Failed | StepStatus::Uncertain) => Some(self.step(step).effort.on_error),
            _ => None,
        }
    }

    /// The run fails by it.
    pub(super) fn has_failed(&self, step: usize) -> bool {
        self.route(step) == Some(OnError::Fail)
    }

    fn chose(&self, by: usize, step: usize) -> bool {
        if let Some(route) = self.route(by) {
            return route == OnError::Goto(step);
        }
        let row = &self.slots[by].row;
        let chosen = row.output.as_ref().and_then(|output| output.get("chosen")).and_then(Value::as_array);
        let is_branch = matches!(self.step(by).kind, StepKind::Condition { .. } | StepKind::Switch { .. });
        let name = &self.step(step).name;
        is_branch && chosen.is_some_and(|chosen| chosen.iter().any(|one| one.as_str() == Some(name)))
    }

    fn begin(&mut self, step: usize, now: Time, begun: &mut Vec<Action>) {
        let place = Place { step, item: None };
        self.start(place, now);
        let done = match &self.step(step).kind {
            StepKind::Condition { test, then, otherwise } => {
                let holds = test.holds(&self.context);
                Ok(Some(json!({"result": holds, "chosen": self.names(if holds { then } else { otherwise })})))
            }
            StepKind::Switch { cases, default } => {
                let case = cases.iter().position(|(test, _)| test.holds(&self.context));
                let chosen = case.map_or(default, |case| &cases[case].1);
                Ok(Some(json!({"case": case, "chosen": self.names(chosen)})))
            }
            StepKind::Stop { succeeded, output, message } => {
                let render = || -> Result<Value> {
                    let output = output.as_ref().map(|output| output.render(&self.context)).transpose()?;
                    let message = message.as_ref().map(|message| message.render_text(&self.context)).transpose()?;
                    let status = if *succeeded { RunStatus::Succeeded } else { RunStatus::Failed };
                    Ok(json!({"status": status.name(), "output": output, "message": message}))
                };
                render().map(Some)
            }
            StepKind::Wait(Until::For(span)) => Ok(self.wait_until(step, now.saturating_add(*span), now)),
            StepKind::Wait(Until::Time(time)) => time.render_text(&self.context).and_then(|text| {
                let time = super::time::timestamp(&text)
                    .ok_or_else(|| Error::bad_argument("\"until\" did not become a time with its zone"))?;
                Ok(self.wait_until(step, time, now))
            }),
            StepKind::Map(_) => self.open_items(step).map(|()| None),
            kind => Work::render(kind, &self.context, now, self.step(step).effort.timeout).map(|work| {
                let attempt = self.slots[step].row.attempt;
                begun.push(Action::Begin { place, attempt, work });
                None
            }),
        };
        match done {
            Ok(Some(output)) => self.succeed(place, output, now),
            Ok(None) => self.go_on_with_items(step, now, begun),
            Err(error) => self.fail(place, error.into(), false, now, 0.0),
        }
    }

    fn names(&self, steps: &[usize]) -> Vec<&'d str> {
        steps.iter().map(|step| self.step(*step).name.as_str()).collect()
    }

    /// An output where the time has come already.
    fn wait_until(&mut self, step: usize, time: Time, now: Time) -> Option<Value> {
        if time <= now {
            return Some(Value::Null);
        }
        let row = self.row_mut(Place { step, item: None })?;
        row.status = StepStatus::Waiting;
        row.wake_at = Some(time);
        None
    }

    /// A new attempt, `running`.
    pub(super) fn start(&mut self, place: Place, now: Time) {
        if let Some(row) = self.row_mut(place) {
            let attempt = row.attempt.saturating_add(1);
            *row = Row { status: StepStatus::Running, attempt, started_at: Some(now), ..Row::new(place) };
        }
    }

    pub(super) fn succeed(&mut self, place: Place, output: Value, now: Time) {
        if let Some(row) = self.row_mut(place) {
            row.output = Some(output);
            row.error = None;
        }
        self.close(place, StepStatus::Succeeded, now);
    }

    fn finish(&mut self, step: usize, status: StepStatus, now: Time) {
        self.close(Place { step, item: None }, status, now);
    }

    /// Ends a row. What was waited for stays in it, to be seen.
    pub(super) fn close(&mut self, place: Place, status: StepStatus, now: Time) {
        if let Some(row) = self.row_mut(place) {
            row.status = status;
            row.wake_at = None;
            row.finished_at = Some(now);
        }
        if place.item.is_none() {
            self.show(place.step);
        }
    }

    /// Ends a row with an error, or begins the pause before the next attempt.
    pub(super) fn fail(&mut self, place: Place, error: Failure, retryable: bool, now: Time, random: f64) {
        let retry = self.effort(place).retry;
        let Some(row) = self.row_mut(place) else { return };
        let pause = match error.retry_after {
            Some(span) => span.clamp(0, MOST_RETRY_AFTER),
            None => retry.pause(row.attempt, random),
        };
        row.error = Some(error);
        if retryable && row.attempt < retry.attempts {
            row.status = StepStatus::Ready;
            row.wake_at = Some(now.saturating_add(pause));
            row.waits_for = None;
        } else {
            self.close(place, StepStatus::Failed, now);
        }
    }

    /// Shows templates what a step came to.
    pub(super) fn show(&mut self, step: usize) {
        let row = &self.slots[step].row;
        let ended = row.status.is_end().then(|| {
            let mut ended = json!({"status": row.status.name()});
            if let Some(output) = &row.output {
                ended["output"] = output.clone();
            }
            if let Some(error) = row.error.as_ref().and_then(|error| serde_json::to_value(error).ok()) {
                ended["error"] = error;
            }
            ended
        });
        self.context.set_step(&self.definition.steps[step].name, ended);
    }

    pub(super) fn effort(&self, place: Place) -> &'d Effort {
        match (&self.step(place.step).kind, place.item) {
            (StepKind::Map(each), Some(_)) => &each.effort,
            _ => &self.step(place.step).effort,
        }
    }

    /// Notes what happened to an attempt. `false`: it is of another attempt, of one that has ended, or nothing new:
    /// nothing changes.
    pub fn apply(&mut self, place: Place, attempt: u32, event: Event, now: Time, random: f64) -> bool {
        let is_open = self.row(place).is_some_and(|row| {
            row.attempt == attempt && matches!(row.status, StepStatus::Running | StepStatus::Waiting)
        });
        if !is_open || self.is_own(place) || self.run.status.is_end() {
            return false;
        }
        match event {
            Event::Succeeded { output } => self.succeed(place, output, now),
            Event::Failed { error, retryable } => self.fail(place, error, retryable, now, random),
            Event::Uncertain { error } => self.give_up(place, error, now),
            Event::Waiting { waits_for, wake_at } => {
                let Some(row) = self.row_mut(place) else { return false };
                let before = (row.status, row.waits_for.replace(waits_for), row.wake_at);
                row.status = StepStatus::Waiting;
                row.wake_at = wake_at;
                return before != (row.status, row.waits_for.clone(), row.wake_at);
            }
        }
        true
    }

    pub(super) fn give_up(&mut self, place: Place, error: Failure, now: Time) {
        if let Some(row) = self.row_mut(place) {
            row.error = Some(error);
        }
        self.close(place, StepStatus::Uncertain, now);
    }

    /// What the machine ends by itself: nobody else has anything to say of it.
    pub(super) fn is_own(&self, place: Place) -> bool {
        let kind = &self.step(place.step).kind;
        let is_timed = matches!(kind, StepKind::Wait(Until::For(_) | Until::Time(_)));
        is_timed || place.item.is_none() && matches!(kind, StepKind::Map(_))
    }

    pub(super) fn row_mut(&mut self, place: Place) -> Option<&mut Row> {
        let slot = self.slots.get_mut(place.step)?;
        let (row, is_changed) = match place.item {
            Some(item) => slot.items.get_mut(&item).map(|(row, is_changed)| (row, is_changed))?,
            None => (&mut slot.row, &mut slot.is_changed),
        };
        *is_changed = true;
        Some(row)
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.slots.iter().flat_map(|slot| std::iter::once(&slot.row).chain(slot.items.values().map(|(row, _)| row)))
    }

    pub(super) fn places(&self) -> Vec<Place> {
        self.rows().map(|row| row.place).collect()
    }

    /// What was handed to somebody else, for the engine to look what came of it.
    pub fn waiting(&self) -> impl Iterator<Item = &Row> {
        self.rows().filter(|row| row.status == StepStatus::Waiting && !self.is_own(row.place))
    }

    /// The run as it is now.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// The definition.
    pub fn definition(&self) -> &'d Definition {
        self.definition
    }

    /// A row as it is now.
    pub fn row(&self, place: Place) -> Option<&Row> {
        let slot = self.slots.get(place.step)?;
        match place.item {
            Some(item) => slot.items.get(&item).map(|(row, _)| row),
            None => Some(&slot.row),
        }
    }

    /// The rows that changed since the last time, for the engine to store.
    pub fn take_changes(&mut self) -> Vec<Row> {
        let mut changed = Vec::new();
        for slot in &mut self.slots {
            if std::mem::take(&mut slot.is_changed) {
                changed.push(slot.row.clone());
            }
            for (row, is_changed) in slot.items.values_mut() {
                if std::mem::take(is_changed) {
                    changed.push(row.clone());
                }
            }
        }
        changed
    }
}
