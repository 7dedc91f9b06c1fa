//! How attempts and runs end by themselves: times that have come, the last step, a `stop`; and what somebody asks of a
//! run: to cancel, pause, resume, try again or replay it.

use super::Time;
use super::definition::{Definition, OnError, Retry, StepKind, Until};
use super::machine::{Action, Event, Progress};
use super::row::{Failure, Place, Reason, Row, Run, RunStatus, StepStatus};
use crate::core::error::{Error, Result};
use serde_json::Value;

impl Retry {
    /// The pause after an attempt: any part of what grows with each of them ("full jitter").
    pub(super) fn pause(&self, attempt: u32, random: f64) -> i64 {
        let exponent = attempt.saturating_sub(1).min(1000) as i32;
        let longest = (self.delay as f64 * self.factor.powi(exponent)).min(self.most as f64);
        (longest * random.clamp(0.0, 1.0)) as i64
    }
}

impl Progress<'_> {
    /// When an attempt times out, or an approval lapses.
    pub fn times_out_at(&self, place: Place) -> Option<Time> {
        let row = self.row(place)?;
        let span = match &self.definition.steps.get(place.step)?.kind {
            StepKind::Approval { lapse, .. } => Some(*lapse),
            _ => self.effort(place).timeout,
        };
        Some(row.started_at?.saturating_add(span?))
    }

    /// When [`Progress::next`] has something to do though nothing happens.
    pub fn wake_at(&self) -> Option<Time> {
        if self.run.status.is_end() || self.run.status == RunStatus::Paused {
            return None;
        }
        let of_row = |row: &Row| match row.status {
            StepStatus::Ready => row.wake_at,
            StepStatus::Waiting => row.wake_at.into_iter().chain(self.times_out_at(row.place)).min(),
            _ => None,
        };
        self.rows().filter_map(of_row).chain(self.run.deadline).min()
    }

    /// Attempts whose time is over, with what they wait for: what is known to have come of that, [`Progress::apply`] is to
    /// be told before [`Progress::next`] ends them at the same time.
    pub fn expiring(&self, now: Time) -> Vec<Row> {
        if self.run.status.is_end() || self.run.status == RunStatus::Paused {
            return Vec::new();
        }
        let is_over = |row: &&Row| self.times_out_at(row.place).is_some_and(|at| at <= now);
        self.waiting().filter(is_over).cloned().collect()
    }

    /// An attempt that took too long.
    pub fn too_long() -> Failure {
        Failure::timeout(Reason::Timeout, "step timed out")
    }

    /// Notes what had come all the same of an attempt that was cancelled. A `map` is as uncertain as one of its items is,
    /// also where its own time was over, so that it is not tried again with others.
    pub fn settle(&mut self, place: Place, attempt: u32, event: Event, now: Time) {
        let is_cancelled = |row: &Row| row.status == StepStatus::Cancelled;
        if !self.row(place).is_some_and(|row| row.attempt == attempt && is_cancelled(row)) {
            return;
        }
        match event {
            Event::Succeeded { output } => self.succeed(place, output, now),
            Event::Uncertain { error } => {
                let map = Place { item: None, ..place };
                let is_lost = |row: &Row| matches!(row.status, StepStatus::Cancelled | StepStatus::Failed);
                if place.item.is_some() && self.row(map).is_some_and(is_lost) {
                    self.give_up(map, Failure { item: place.item, ..error.clone() }, now);
                }
                self.give_up(place, error, now);
            }
            Event::Failed { .. } | Event::Waiting { .. } => {}
        }
    }

    /// Ends waits and attempts whose time has come.
    pub(super) fn expire(&mut self, now: Time, random: &mut dyn FnMut() -> f64) {
        for place in self.places() {
            let Some(row) = self.row(place).filter(|row| row.status == StepStatus::Waiting) else { continue };
            if matches!(self.definition.steps[place.step].kind, StepKind::Wait(Until::For(_) | Until::Time(_))) {
                if row.wake_at.is_some_and(|at| at <= now) {
                    self.succeed(place, Value::Null, now);
                }
            } else if self.times_out_at(place).is_some_and(|at| at <= now) {
                self.call_off(place);
                self.time_out(place, now, random());
            }
        }
    }

    fn time_out(&mut self, place: Place, now: Time, random: f64) {
        let definition = self.definition;
        let kind = &definition.steps[place.step].kind;
        let kind = if place.item.is_some() { kind.each().unwrap_or(kind) } else { kind };
        let error = Self::too_long();
        match kind {
            StepKind::Approval { on_lapse, .. } => {
                let error = Failure::timeout(Reason::Lapsed, "nobody decided in time");
                match on_lapse {
                    OnError::Skip => {
                        if let Some(row) = self.row_mut(place) {
                            row.error = Some(error);
                        }
                        self.close(place, StepStatus::Skipped, now);
                    }
                    OnError::Fail | OnError::Goto(_) => self.fail(place, error, false, now, random),
                }
            }
            // It was handed over, could not be taken back, and whether it is done there is not known.
            StepKind::Tool { .. } | StepKind::Http { .. } => self.give_up(place, error, now),
            StepKind::Map(_) => {
                self.cancel_items(place.step, now);
                self.fail(place, error, false, now, random);
            }
            StepKind::Wait(_) | StepKind::Workflow { .. } => self.fail(place, error, false, now, random),
            _ => self.fail(place, error, true, now, random),
        }
    }

    /// Tells the engine that nobody asks any more for what an attempt waits for.
    fn call_off(&mut self, place: Place) {
        if self.is_own(place) {
            return;
        }
        let Some(row) = self.row(place).filter(|row| row.status == StepStatus::Waiting) else { return };
        if let Some(waits_for) = row.waits_for.clone() {
            let attempt = row.attempt;
            self.called_off.push(Action::CallOff { place, attempt, waits_for });
        }
    }

    fn cancel_row(&mut self, place: Place, now: Time) {
        // An item that never began is stored nowhere.
        let is_stored = |row: &Row| place.item.is_none() || row.status != StepStatus::Pending;
        if self.row(place).is_some_and(|row| !row.status.is_end() && is_stored(row)) {
            self.call_off(place);
            self.close(place, StepStatus::Cancelled, now);
        }
    }

    fn cancel_items(&mut self, step: usize, now: Time) {
        let items: Vec<u32> = self.slots[step].items.keys().copied().collect();
        items.into_iter().for_each(|item| self.cancel_row(Place { step, item: Some(item) }, now));
    }

    /// Ends the run, and with it all that has not ended.
    pub(super) fn end(&mut self, status: RunStatus, now: Time) {
        self.places().into_iter().for_each(|place| self.cancel_row(place, now));
        self.run.status = status;
        self.run.paused_at = None;
    }

    /// Ends the run where this step is a `stop` that was reached.
    pub(super) fn stopped(&mut self, step: usize, now: Time) -> bool {
        let Some(output) = self.stop(step).cloned() else { return false };
        let text = |name: &str| output.get(name).and_then(Value::as_str);
        self.run.output = output.get("output").filter(|output| !output.is_null()).cloned();
        let status = match text("status") {
            Some("succeeded") => RunStatus::Succeeded,
            _ => {
                let message = text("message").unwrap_or("workflow was stopped");
                let step = Some(self.definition.steps[step].name.clone());
                self.run.error = Some(Failure { step, ..Failure::new("P0001", message) });
                RunStatus::Failed
            }
        };
        self.end(status, now);
        true
    }

    /// What a `stop` that was reached says.
    fn stop(&self, step: usize) -> Option<&Value> {
        let row = &self.slots[step].row;
        let is_stop = matches!(self.definition.steps[step].kind, StepKind::Stop { .. });
        row.output.as_ref().filter(|_| is_stop && row.status == StepStatus::Succeeded)
    }

    pub(super) fn end_if_done(&mut self, now: Time) {
        if !self.slots.iter().all(|slot| slot.row.status.is_end()) {
            return;
        }
        let failed = (0..self.slots.len()).find(|step| self.has_failed(*step));
        let result = match failed {
            Some(step) => {
                let unknown = || Failure::new("XX000", "a step has no error");
                let error = self.slots[step].row.error.clone().unwrap_or_else(unknown);
                Err(Failure { step: Some(self.definition.steps[step].name.clone()), retry_after: None, ..error })
            }
            None => self.output().map_err(Failure::from),
        };
        match result {
            Ok(output) => {
                self.run.output = Some(output);
                self.end(RunStatus::Succeeded, now);
            }
            Err(error) => {
                self.run.error = Some(error);
                self.end(RunStatus::Failed, now);
            }
        }
    }

    /// As the definition says, else what the last step in the array gave.
    fn output(&self) -> Result<Value> {
        match &self.definition.output {
            Some(output) => output.render(&self.context),
            None => Ok(self.slots.last().and_then(|slot| slot.row.output.clone()).unwrap_or(Value::Null)),
        }
    }

    /// Cancels the run. [`Progress::next`] says afterwards what to call off. `false`: it has ended.
    pub fn cancel(&mut self, now: Time) -> bool {
        let is_open = !self.run.status.is_end();
        if is_open {
            self.end(RunStatus::Cancelled, now);
        }
        is_open
    }

    /// Begins nothing more until [`Progress::resume`]. What was begun goes on. `false`: it has ended or is paused.
    pub fn pause(&mut self, now: Time) -> bool {
        let is_open = !self.run.status.is_end() && self.run.status != RunStatus::Paused;
        if is_open {
            self.run.status = RunStatus::Paused;
            self.run.paused_at = Some(now);
        }
        is_open
    }

    /// Pauses the run because of an error, which it shows until it is resumed. `false`: it has ended.
    pub fn hold(&mut self, error: Failure, now: Time) -> bool {
        let is_open = !self.run.status.is_end();
        if is_open {
            self.pause(now);
            self.run.error = Some(error);
        }
        is_open
    }

    /// Goes on; the deadline moves by the time that it was paused. `false`: it is not paused.
    pub fn resume(&mut self, now: Time) -> bool {
        let is_paused = self.run.status == RunStatus::Paused;
        if is_paused {
            let paused = self.run.paused_at.take().map_or(0, |since| now.saturating_sub(since).max(0));
            self.run.deadline = self.run.deadline.map(|deadline| deadline.saturating_add(paused));
            self.run.status = RunStatus::Running;
            self.run.error = None;
        }
        is_paused
    }

    /// Another attempt of a step that failed, was cancelled or is uncertain; of a `map`, of those of its items. What was
    /// cancelled or skipped because of it goes on after it. A run that had ended has its whole time again.
    ///
    /// # Errors
    /// 42704 for no such step; 22023 where the step has not failed, where a step that comes after it has begun already,
    /// or where the run ended as it was meant to.
    pub fn retry(&mut self, step: &str, now: Time) -> Result<()> {
        let at = find(self.definition, step)?;
        let row = &self.slots[at].row;
        let is_cancelled = row.status == StepStatus::Cancelled && row.attempt > 0;
        if !is_cancelled && !matches!(row.status, StepStatus::Failed | StepStatus::Uncertain) {
            return Err(Error::bad_argument(format!("step \"{step}\" is {}, not failed", row.status.name())));
        }
        let refuse = |what: String| {
            Err(Error::bad_argument(what).hint(format!("Replay the run from \"{step}\" with helper.replay_run.")))
        };
        if self.run.status == RunStatus::Succeeded {
            return refuse("run has succeeded".into());
        }
        if let Some(stop) = (0..self.slots.len()).find(|step| self.stop(*step).is_some()) {
            return refuse(format!("run was ended by step \"{}\"", self.definition.steps[stop].name));
        }
        let after: Vec<usize> = (0..self.slots.len()).filter(|other| self.definition.comes_after(*other, at)).collect();
        let has_begun = |other: &&usize| {
            let row = &self.slots[**other].row;
            row.attempt > 0 && row.status != StepStatus::Cancelled
        };
        if let Some(other) = after.iter().find(has_begun) {
            return refuse(format!("step \"{}\", which comes after it, has begun", self.definition.steps[*other].name));
        }
        let was_ended = self.run.status.is_end();
        for other in 0..self.slots.len() {
            let is_open = was_ended && self.slots[other].row.status == StepStatus::Cancelled;
            if other == at {
                self.open_again(other, StepStatus::Ready);
            } else if is_open || after.contains(&other) {
                self.open_again(other, StepStatus::Pending);
            }
        }
        if was_ended {
            let deadline = self.definition.timeout.map(|span| now.saturating_add(span));
            self.run = Run { status: RunStatus::Running, deadline, ..Run::queued() };
        }
        Ok(())
    }

    /// Another attempt of all that a run failed or timed out by: of the steps that failed it, and of those that were
    /// cancelled with it. It has its whole time again. `false`: it ended otherwise, or as it was meant to.
    pub fn redrive(&mut self) -> bool {
        let is_lost = matches!(self.run.status, RunStatus::Failed | RunStatus::TimedOut);
        if !is_lost || (0..self.slots.len()).any(|step| self.stop(step).is_some()) {
            return false;
        }
        let failed: Vec<bool> = (0..self.slots.len()).map(|step| self.has_failed(step)).collect();
        for (step, has_failed) in failed.into_iter().enumerate() {
            match self.slots[step].row.status {
                StepStatus::Failed if has_failed => self.open_again(step, StepStatus::Ready),
                StepStatus::Cancelled => self.open_again(step, StepStatus::Pending),
                _ => {}
            }
        }
        self.run = Run { status: RunStatus::Running, ..Run::queued() };
        true
    }

    /// A step from its start; the items of a `map` that succeeded are kept.
    fn open_again(&mut self, step: usize, status: StepStatus) {
        let mut places = vec![Place { step, item: None }];
        let failed = self.slots[step].items.values().filter(|(row, _)| row.status != StepStatus::Succeeded);
        places.extend(failed.map(|(row, _)| row.place));
        for place in places {
            if let Some(row) = self.row_mut(place) {
                let status = if place.item.is_some() { StepStatus::Ready } else { status };
                let attempt = row.attempt;
                *row = Row { status, attempt, ..Row::new(place) };
            }
        }
        self.show(step);
    }
}

fn find(definition: &Definition, step: &str) -> Result<usize> {
    definition.find(step).ok_or_else(|| Error::unknown_object(format!("step \"{step}\" does not exist")))
}

/// The rows of a run that another run starts with which is replayed from a step: what ended well, or was skipped, and
/// does not come after it. A failure that the definition provides for is kept too.
///
/// # Errors
/// 42704 where there is no such step.
pub fn replayed(definition: &Definition, rows: Vec<Row>, from: &str) -> Result<Vec<Row>> {
    let from = find(definition, from)?;
    let is_kept = |row: &Row| {
        let step = row.place.step;
        let is_provided = |step: &super::definition::Step| match (&step.kind, &row.error) {
            (StepKind::Approval { on_lapse, .. }, Some(error)) if error.reason == Some(Reason::Lapsed) => {
                *on_lapse != OnError::Fail
            }
            _ => step.effort.on_error != OnError::Fail,
        };
        step != from
            && !definition.comes_after(step, from)
            && match row.status {
                StepStatus::Succeeded | StepStatus::Skipped => true,
                StepStatus::Failed | StepStatus::Uncertain => definition.steps.get(step).is_some_and(is_provided),
                _ => false,
            }
    };
    let steps: Vec<usize> =
        rows.iter().filter(|row| row.place.item.is_none() && is_kept(row)).map(|row| row.place.step).collect();
    Ok(rows.into_iter().filter(|row| steps.contains(&row.place.step)).collect())
}
