//! What is stored of a run and of its steps.

use super::{Span, Time};
use crate::core::error::{Error, Kind};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// State of a step, or of an item of a `map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// What it needs has not ended.
    Pending,
    /// It may begin: now, or when `wake_at` comes (the pause before another attempt).
    Ready,
    /// It is being done. Stored only by who dies over it: it is begun again under the same attempt.
    Running,
    /// It has an output.
    Succeeded,
    /// It has an error.
    Failed,
    /// It was not its turn: no branch chose it, its `when` is false, or all that it needs was skipped.
    Skipped,
    /// The run ended before it, or what it needs failed.
    Cancelled,
    /// Somebody else has to end it, or a time has to come.
    Waiting,
    /// Whether it had its effect is not known.
    Uncertain,
}

impl StepStatus {
    /// As it is stored.
    pub fn name(self) -> &'static str {
        match self {
            StepStatus::Pending => "pending",
            StepStatus::Ready => "ready",
            StepStatus::Running => "running",
            StepStatus::Succeeded => "succeeded",
            StepStatus::Failed => "failed",
            StepStatus::Skipped => "skipped",
            StepStatus::Cancelled => "cancelled",
            StepStatus::Waiting => "waiting",
            StepStatus::Uncertain => "uncertain",
        }
    }

    /// The state that is stored by this name.
    pub fn of_name(name: &str) -> Option<StepStatus> {
        use StepStatus::*;
        let all = [Pending, Ready, Running, Succeeded, Failed, Skipped, Cancelled, Waiting, Uncertain];
        all.into_iter().find(|status| status.name() == name)
    }

    /// Nothing more comes of it, unless somebody asks for another attempt.
    pub fn is_end(self) -> bool {
        use StepStatus::*;
        matches!(self, Succeeded | Failed | Skipped | Cancelled | Uncertain)
    }
}

/// State of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Nothing of it has begun.
    Queued,
    /// There is something to do now.
    Running,
    /// All that was begun waits for somebody else, or for a time.
    Waiting,
    /// Nothing more is begun until it is resumed.
    Paused,
    /// All steps ended and none failed, or a `stop` said so.
    Succeeded,
    /// A step failed, or a `stop` said so.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
    /// It took longer than its `timeout`.
    TimedOut,
}

impl RunStatus {
    /// As it is stored.
    pub fn name(self) -> &'static str {
        match self {
            RunStatus::Queued => "queued",
            RunStatus::Running => "running",
            RunStatus::Waiting => "waiting",
            RunStatus::Paused => "paused",
            RunStatus::Succeeded => "succeeded",
            RunStatus::Failed => "failed",
            RunStatus::Cancelled => "cancelled",
            RunStatus::TimedOut => "timed_out",
        }
    }

    /// The state that is stored by this name.
    pub fn of_name(name: &str) -> Option<RunStatus> {
        use RunStatus::*;
        let all = [Queued, Running, Waiting, Paused, Succeeded, Failed, Cancelled, TimedOut];
        all.into_iter().find(|status| status.name() == name)
    }

    /// Nothing more comes of it, unless somebody asks for another attempt of a step.
    pub fn is_end(self) -> bool {
        use RunStatus::*;
        matches!(self, Succeeded | Failed | Cancelled | TimedOut)
    }
}

/// Why a step failed where no error of its own says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It took longer than its `timeout`.
    Timeout,
    /// Nobody decided on the approval in time: `on_lapse` says what follows.
    Lapsed,
    /// A model was asked, and nobody heard what it said.
    Unanswered,
}

impl Reason {
    /// As it is stored.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Timeout => "timeout",
            Reason::Lapsed => "lapsed",
            Reason::Unanswered => "unanswered",
        }
    }
}

/// An error of a step or of a run, as it is stored and as templates see it (`steps.NAME.error.message`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Five characters.
    pub sqlstate: String,
    /// One clause.
    pub message: String,
    /// Facts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// An action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Where the workflow itself ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// The step that it comes from, in the error of a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// The item that it comes from, in the error of a `map`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<u32>,
    /// What the other end asks for before another attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Span>,
}

impl Failure {
    /// With a SQLSTATE and a message.
    pub fn new(sqlstate: &str, message: impl Into<String>) -> Failure {
        Failure {
            sqlstate: sqlstate.into(),
            message: message.into(),
            detail: None,
            hint: None,
            reason: None,
            step: None,
            item: None,
            retry_after: None,
        }
    }

    pub(super) fn timeout(reason: Reason, message: &str) -> Failure {
        Failure { reason: Some(reason), ..Failure::new(Kind::Cancelled.sqlstate(), message) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { detail: error.detail, hint: error.hint, ..Failure::new(error.kind.sqlstate(), error.message) }
    }
}

/// A step by its number in the definition, or one item of a `map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The step's number in [`super::definition::Definition::steps`].
    pub step: usize,
    /// `None` for the step itself (-1 in the table).
    pub item: Option<u32>,
}

/// What is stored of a step, or of an item. One that was never begun nor skipped has no row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Of what.
    pub place: Place,
    /// Its state.
    pub status: StepStatus,
    /// Counts from 1; 0 for one that never began.
    pub attempt: u32,
    /// Of one that succeeded.
    pub output: Option<Value>,
    /// Of one that failed, is uncertain, or is to be tried again.
    pub error: Option<Failure>,
    /// What the engine waits for, in its own words; of a `map`, `{"items": n}`.
    pub waits_for: Option<Value>,
    /// When to look at it at the latest: the end of a pause, of a wait, or what the engine gave.
    pub wake_at: Option<Time>,
    /// Start of this attempt.
    pub started_at: Option<Time>,
    /// End of the last attempt, once in an end state.
    pub finished_at: Option<Time>,
}

impl Row {
    /// One that has not begun.
    pub fn new(place: Place) -> Row {
        Row {
            place,
            status: StepStatus::Pending,
            attempt: 0,
            output: None,
            error: None,
            waits_for: None,
            wake_at: None,
            started_at: None,
            finished_at: None,
        }
    }
}

/// What is stored of a run, as far as the machine decides on it.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Its state.
    pub status: RunStatus,
    /// When it times out, if ever; set when it begins.
    pub deadline: Option<Time>,
    /// Since when it is paused: the deadline stands still.
    pub paused_at: Option<Time>,
    /// Once it succeeded, or as a `stop` said.
    pub output: Option<Value>,
    /// Once it failed, or while it is held.
    pub error: Option<Failure>,
}

impl Run {
    /// One that nobody has begun.
    pub fn queued() -> Run {
        Run { status: RunStatus::Queued, deadline: None, paused_at: None, output: None, error: None }
    }
}
