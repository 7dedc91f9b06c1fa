//! What is to do in a run. A definition and stored rows come in, then what happened; steps to begin and rows to store go
//! out. Times and random numbers are given; nothing is done here.

use super::Time;
use super::definition::Definition;
use super::row::{Failure, Place, Row, Run};
use crate::core::error::Result;
use serde_json::{Map, Value};

/// What a run was started with: the roots of its context beside `steps`.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `input`.
    pub input: Value,
    /// `trigger`.
    pub trigger: Value,
    /// `run`: what templates may know of the run, as `{"id": ..., "workflow": ..., "started_at": ...}`.
    pub run: Value,
    /// `vars`: the workflow's settings.
    pub vars: Value,
}

/// A run in progress.
#[derive(Debug)]
pub struct Progress<'d> {
    definition: &'d Definition,
    run: Run,
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

/// What to do in a step, with all values put in.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Call a function.
    Tool {
        /// Its name.
        tool: String,
        /// An object.
        arguments: Value,
        /// It has to be of kind http.
        is_http: bool,
    },
    /// Run a statement.
    Sql {
        /// The statement.
        sql: String,
        /// `$1`, an object.
        parameters: Value,
    },
    /// Ask with sources.
    Ask {
        /// The question.
        question: String,
        /// A mode's name.
        mode: Option<String>,
        /// Whether to search in knowledge.
        knowledge: Option<bool>,
        /// A model's name.
        model: Option<String>,
        /// An object.
        options: Map<String, Value>,
    },
    /// Ask a model.
    Complete {
        /// The prompt.
        prompt: String,
        /// Instructions.
        system: Option<String>,
        /// Of the reply: `complete_json`.
        schema: Option<Value>,
        /// A model's name.
        model: Option<String>,
        /// An object.
        options: Map<String, Value>,
    },
    /// Search in knowledge.
    Search {
        /// What for.
        query: String,
        /// How many results.
        k: Option<u32>,
        /// In sources of these types.
        source_types: Option<Vec<String>>,
        /// An object.
        filter: Option<Value>,
        /// How.
        method: Option<String>,
    },
    /// Wait for an event.
    Event {
        /// Its name.
        name: String,
        /// An object that the payload contains.
        matching: Value,
        /// When the step gives up.
        until: Option<Time>,
    },
    /// Ask somebody for a decision. Approved: succeeded. Rejected: failed, not retryable. The machine sees to the lapse.
    Approval {
        /// What is to be decided.
        title: String,
        /// Any JSON.
        details: Value,
        /// Who may decide.
        approver_role: String,
        /// Whether the workflow's owner may.
        self_approval: bool,
        /// When it lapses.
        lapses_at: Time,
    },
    /// Run another workflow.
    Workflow {
        /// Its name.
        workflow: String,
        /// Its input.
        input: Value,
    },
}

impl<'d> Progress<'d> {
    /// A run as it is stored. A row that says `running` is begun again under the same attempt: what has an effect
    /// outside of the transaction is stored as `waiting` before.
    ///
    /// # Errors
    /// XX000 where a row is not of this definition.
    pub fn load(definition: &'d Definition, _given: Given, run: Run, _rows: Vec<Row>) -> Result<Progress<'d>> {
        Ok(Progress { definition, run })
    }

    /// Goes on as far as it can: skips and cancels, chooses branches, ends waits and attempts whose time has come, ends
    /// the run; then says what to begin and what to call off. Empty: nothing until something happens or [`Progress::wake_at`].
    ///
    /// `random` is in [0, 1).
    pub fn next(&mut self, _now: Time, _random: &mut dyn FnMut() -> f64) -> Vec<Action> {
        todo!()
    }

    /// Notes what happened to an attempt. `false`: it is of another attempt, or of one that has ended: nothing changes.
    pub fn apply(&mut self, _place: Place, _attempt: u32, _event: Event, _now: Time, _random: f64) -> bool {
        todo!()
    }

    /// Cancels the run. [`Progress::next`] says afterwards what to call off. `false`: it has ended.
    pub fn cancel(&mut self, _now: Time) -> bool {
        todo!()
    }

    /// Begins nothing more until [`Progress::resume`]. What was begun goes on. `false`: it has ended or is paused.
    pub fn pause(&mut self, _now: Time) -> bool {
        todo!()
    }

    /// Goes on; the deadline moves by the time that it was paused. `false`: it is not paused.
    pub fn resume(&mut self, _now: Time) -> bool {
        todo!()
    }

    /// Another attempt of a step that failed, was cancelled or is uncertain; of a `map`, of those of its items. What was
    /// cancelled or skipped because of it goes on after it. The run has its whole time again.
    ///
    /// # Errors
    /// 22023 where the step has not failed, or where a step that comes after it has begun already.
    pub fn retry(&mut self, _step: &str, _now: Time) -> Result<()> {
        todo!()
    }

    /// What was handed to somebody else, for the engine to look what came of it.
    pub fn waiting(&self) -> impl Iterator<Item = &Row> {
        [].into_iter()
    }

    /// The run as it is now.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// When [`Progress::next`] has something to do though nothing happens.
    pub fn wake_at(&self) -> Option<Time> {
        todo!()
    }

    /// The definition.
    pub fn definition(&self) -> &'d Definition {
        self.definition
    }

    /// A row as it is now.
    pub fn row(&self, _place: Place) -> Option<&Row> {
        todo!()
    }

    /// The rows that changed since the last time, for the engine to store.
    pub fn take_changes(&mut self) -> Vec<Row> {
        todo!()
    }
}

/// The rows of a run that another run starts with which is replayed from a step: what ended and does not come after it.
///
/// # Errors
/// 42704 where there is no such step.
pub fn replayed(_definition: &Definition, _rows: Vec<Row>, _from: &str) -> Result<Vec<Row>> {
    todo!()
}
