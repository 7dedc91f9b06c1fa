//! The items of a `map`: begun within its concurrency, tried one and all, joined to its output.

use super::definition::{Each, OnError, StepKind};
use super::machine::{Action, Progress, Work};
use super::row::{Failure, Place, Row, StepStatus};
use super::{MOST_RENDERED, Time};
use crate::core::error::{Error, Kind, Result};
use serde_json::{Value, json};

impl Progress<'_> {
    fn each(&self, step: usize) -> Option<&Each> {
        match &self.definition.steps.get(step)?.kind {
            StepKind::Map(each) => Some(each),
            _ => None,
        }
    }

    fn elements(&self, each: &Each) -> Result<Vec<Value>> {
        match each.over.render(&self.context)? {
            Value::Array(elements) if elements.len() > each.most as usize => Err(Error::new(
                Kind::OverLimit,
                format!("\"over\" has {} elements, expected {} at most", elements.len(), each.most),
            )),
            Value::Array(elements) => Ok(elements),
            _ => Err(Error::bad_argument("\"over\" did not become an array")),
        }
    }

    /// A `map` that begins: it waits for its items.
    pub(super) fn open_items(&mut self, step: usize) -> Result<()> {
        let Some(each) = self.definition.steps.get(step).and_then(|_| self.each(step)) else { return Ok(()) };
        let elements = self.elements(each)?;
        if let Some(row) = self.row_mut(Place { step, item: None }) {
            row.status = StepStatus::Waiting;
            row.waits_for = Some(json!({"items": elements.len()}));
        }
        self.slots[step].elements = Some(elements);
        Ok(())
    }

    /// Begins items of a `map` that is open, and closes it after the last one.
    pub(super) fn go_on_with_items(&mut self, step: usize, now: Time, begun: &mut Vec<Action>) {
        let place = Place { step, item: None };
        let definition = self.definition;
        let StepKind::Map(each) = &definition.steps[step].kind else { return };
        if self.slots[step].row.status != StepStatus::Waiting {
            return;
        }
        // After a load they are not at hand; what they are made of has ended, so they are the same.
        let elements = match self.slots[step].elements.take().map_or_else(|| self.elements(each), Ok) {
            Ok(elements) => elements,
            Err(error) => return self.fail(place, error.into(), false, now, 0.0),
        };
        // One that pauses before another attempt keeps its turn.
        let is_open = |row: &Row| match row.status {
            StepStatus::Ready => row.wake_at.is_some(),
            status => matches!(status, StepStatus::Running | StepStatus::Waiting),
        };
        let mut open = self.slots[step].items.values().filter(|(row, _)| is_open(row)).count();
        for (item, element) in (0u32..).zip(&elements) {
            let row = &self.slots[step].items.entry(item).or_insert_with(|| (new(step, item), false)).0;
            let has_turn = is_open(row);
            let is_due = match (row.status, row.wake_at) {
                (StepStatus::Ready, Some(at)) => at <= now,
                (StepStatus::Pending | StepStatus::Ready, _) => open < each.concurrency as usize,
                _ => false,
            };
            if is_due {
                let has_begun = self.begin_item(Place { step, item: Some(item) }, each, element, now, begun);
                open = open - usize::from(has_turn) + usize::from(has_begun);
            }
        }
        if self.slots[step].items.values().all(|(row, _)| row.status.is_end()) {
            match self.joined(step, each) {
                Ok(output) => self.succeed(place, output, now),
                Err(error) => self.fail(place, error, false, now, 0.0),
            }
        }
        self.slots[step].elements = Some(elements);
    }

    /// `false`: it has ended already.
    fn begin_item(&mut self, place: Place, each: &Each, element: &Value, now: Time, begun: &mut Vec<Action>) -> bool {
        self.start(place, now);
        self.context.set(&each.name, element.clone());
        self.context.set("index", json!(place.item));
        let work = Work::render(&each.inner, &self.context, now, each.effort.timeout);
        self.context.unset(&each.name);
        self.context.unset("index");
        let attempt = self.row(place).map_or(0, |row| row.attempt);
        match work {
            Ok(work) => begun.push(Action::Begin { place, attempt, work }),
            Err(error) => {
                self.fail(place, error.into(), false, now, 0.0);
                return false;
            }
        }
        true
    }

    /// The outputs in order, or the error of the first item that failed.
    fn joined(&self, step: usize, each: &Each) -> std::result::Result<Value, Failure> {
        let mut outputs = Vec::with_capacity(self.slots[step].items.len());
        let mut room = MOST_JOINED;
        for (item, (row, _)) in &self.slots[step].items {
            if row.status != StepStatus::Succeeded && each.effort.on_error != OnError::Skip {
                let unknown = || Failure::new(Kind::Bug.sqlstate(), "an item has no error");
                let error = row.error.clone().unwrap_or_else(unknown);
                return Err(Failure { item: Some(*item), retry_after: None, ..error });
            }
            let output = row.output.clone().unwrap_or(Value::Null);
            room = room.checked_sub(output.to_string().len()).ok_or_else(|| {
                let message = format!("the outputs of all items are larger than {MOST_JOINED} bytes");
                Failure::new(Kind::OverLimit.sqlstate(), message)
            })?;
            outputs.push(output);
        }
        Ok(Value::Array(outputs))
    }
}

/// Bytes of all outputs at most, written as JSON.
const MOST_JOINED: usize = 16 * MOST_RENDERED;

fn new(step: usize, item: u32) -> Row {
    Row::new(Place { step, item: Some(item) })
}
