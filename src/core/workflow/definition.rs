//! Definitions of workflows: JSON comes in, a graph of steps goes out, with every template and expression compiled.
//! What is wrong is refused by its place in the JSON.

use super::Span;
use super::row::Place;
use super::value::{Condition, Context, Template};
use crate::core::error::Result;
use serde_json::{Map, Value};

/// A definition that was read: it runs as it is.
#[derive(Debug)]
pub struct Definition {
    /// JSON Schema of the input, for the engine to check with.
    pub input: Option<Value>,
    /// Longest time of a run.
    pub timeout: Option<Span>,
    /// How many runs at a time.
    pub concurrency: Option<Concurrency>,
    /// How many runs in a time.
    pub rate: Option<Rate>,
    /// Higher ones first.
    pub priority: i32,
    /// In the order of the array.
    pub steps: Vec<Step>,
    pub(super) output: Option<Template>,
    /// Numbers of the steps, each after all that it needs.
    pub(super) order: Vec<usize>,
    /// Of each step, those that have to end before it.
    pub(super) before: Vec<Steps>,
}

/// Numbers of steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps([u64; super::MOST_STEPS.div_ceil(64)]);

impl Steps {
    /// Whether a step is among them.
    pub fn contains(self, step: usize) -> bool {
        self.0.get(step / 64).is_some_and(|bits| bits & (1 << (step % 64)) != 0)
    }

    pub(super) fn insert(&mut self, step: usize) {
        if let Some(bits) = self.0.get_mut(step / 64) {
            *bits |= 1 << (step % 64);
        }
    }

    pub(super) fn extend(&mut self, others: Steps) {
        self.0.iter_mut().zip(others.0).for_each(|(bits, more)| *bits |= more);
    }
}

/// How many runs of a workflow at a time.
#[derive(Debug)]
pub struct Concurrency {
    /// At most so many.
    pub limit: u32,
    pub(super) key: Option<Template>,
}

/// How many runs of a workflow begin in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At most so many.
    pub limit: u32,
    /// In this time.
    pub per: Span,
}

/// A step.
#[derive(Debug)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// What it does.
    pub kind: StepKind,
    /// Numbers of the steps that have to end before it, in ascending order, those that choose it included.
    pub needs: Vec<usize>,
    /// Numbers of the steps that choose it by a branch or a goto.
    pub(super) chosen_by: Vec<usize>,
    pub(super) when: Option<Condition>,
    pub(super) effort: Effort,
}

/// How hard a step is tried.
#[derive(Debug)]
pub struct Effort {
    /// When to try again.
    pub retry: Retry,
    /// Longest time of an attempt.
    pub timeout: Option<Span>,
    /// What follows its failure.
    pub on_error: OnError,
}

/// When a step that failed is tried again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// Attempts in all.
    pub attempts: u32,
    /// Longest pause after the first attempt.
    pub delay: Span,
    /// By which it grows with each attempt.
    pub factor: f64,
    /// Longest pause at all.
    pub most: Span,
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// The run fails, once the steps that do not come after this one have ended.
    Fail,
    /// The step counts as skipped.
    Skip,
    /// The step with this number is chosen.
    Goto(usize),
}

/// What a step does. Templates in it are rendered by the machine.
#[derive(Debug)]
pub enum StepKind {
    /// Calls a function of kind sql or any other.
    Tool {
        /// Its name.
        tool: String,
        /// An object.
        arguments: Template,
    },
    /// Calls a function of kind http.
    Http {
        /// Its name.
        tool: String,
        /// An object.
        arguments: Template,
    },
    /// Runs a statement.
    Sql {
        /// The statement; `$1` is the only parameter.
        sql: String,
        /// An object.
        parameters: Template,
    },
    /// Asks with sources.
    Ask {
        /// The question.
        question: Template,
        /// A mode's name.
        mode: Option<String>,
        /// Whether to search in knowledge.
        knowledge: Option<bool>,
        /// A model's name.
        model: Option<String>,
        /// An object.
        options: Map<String, Value>,
    },
    /// Asks a model, and nothing else.
    Complete {
        /// The prompt.
        prompt: Template,
        /// Instructions.
        system: Option<String>,
        /// Of the reply, for `complete_json`.
        schema: Option<Value>,
        /// A model's name.
        model: Option<String>,
        /// An object.
        options: Map<String, Value>,
    },
    /// Searches in knowledge.
    Search {
        /// What for.
        query: Template,
        /// How many results.
        k: Option<u32>,
        /// In sources of these types.
        source_types: Option<Vec<String>>,
        /// Of an object.
        filter: Option<Template>,
        /// hybrid, vector or text.
        method: Option<String>,
    },
    /// Chooses by an expression.
    Condition {
        /// The expression.
        test: Condition,
        /// Steps that follow where it holds.
        then: Vec<usize>,
        /// Steps that follow where it does not.
        otherwise: Vec<usize>,
    },
    /// Chooses by the first of several expressions that holds.
    Switch {
        /// Expressions and the steps that follow.
        cases: Vec<(Condition, Vec<usize>)>,
        /// Steps that follow where none holds.
        default: Vec<usize>,
    },
    /// Does a step for every element of an array.
    Map(Each),
    /// Waits.
    Wait(Until),
    /// Waits for somebody's decision.
    Approval {
        /// What is to be decided.
        title: Template,
        /// Any JSON.
        details: Option<Template>,
        /// Who may decide.
        approver_role: String,
        /// Whether the workflow's owner may.
        self_approval: bool,
        /// How long it waits.
        lapse: Span,
        /// What follows then.
        on_lapse: OnError,
    },
    /// Runs another workflow.
    Workflow {
        /// Its name.
        workflow: String,
        /// Its input.
        input: Template,
    },
    /// Ends the run.
    Stop {
        /// Whether it succeeded.
        succeeded: bool,
        /// The run's output.
        output: Option<Template>,
        /// The error's message.
        message: Option<Template>,
    },
}

/// A step for every element of an array.
#[derive(Debug)]
pub struct Each {
    pub(super) over: Template,
    pub(super) name: String,
    pub(super) inner: Box<StepKind>,
    pub(super) effort: Effort,
    pub(super) concurrency: u32,
    pub(super) most: u32,
}

/// What a `wait` waits for.
#[derive(Debug)]
pub enum Until {
    /// So long.
    For(Span),
    /// Until a time.
    Time(Template),
    /// An event by its name, with a payload that contains an object.
    Event {
        /// Its name.
        name: String,
        /// What the payload contains.
        matching: Option<Template>,
    },
}

impl Definition {
    /// Reads a definition.
    ///
    /// # Errors
    /// 22023 that names the place in the JSON: unknown fields, wrong types, intervals, templates and expressions that
    /// cannot be read, steps that do not exist or do not come before, names that are there twice, circles, sizes.
    pub fn read(definition: &Value) -> Result<Definition> {
        super::reader::read(definition)
    }

    /// Attempts of a step, or of an item of a `map`, in all.
    pub fn attempts(&self, place: Place) -> u32 {
        let Some(step) = self.steps.get(place.step) else { return 0 };
        match (&step.kind, place.item) {
            (StepKind::Map(each), Some(_)) => each.effort.retry.attempts,
            _ => step.effort.retry.attempts,
        }
    }

    /// The number of the step with a name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.steps.iter().position(|step| step.name == name)
    }

    /// Whether a step can only begin after another one.
    pub fn comes_after(&self, step: usize, other: usize) -> bool {
        self.before.get(step).is_some_and(|before| before.contains(other))
    }

    /// The key within which the runs are counted, empty where the definition has none.
    ///
    /// # Errors
    /// 22023 where the input or the trigger has not what the key is made of.
    pub fn concurrency_key(&self, input: &Value, trigger: &Value) -> Result<String> {
        match self.concurrency.as_ref().and_then(|concurrency| concurrency.key.as_ref()) {
            None => Ok(String::new()),
            Some(key) => key.render_text(&Context::new([("input", input.clone()), ("trigger", trigger.clone())])),
        }
    }
}

impl StepKind {
    /// The `type` in the definition.
    pub fn name(&self) -> &'static str {
        match self {
            StepKind::Tool { .. } => "tool",
            StepKind::Http { .. } => "http",
            StepKind::Sql { .. } => "sql",
            StepKind::Ask { .. } => "ask",
            StepKind::Complete { schema: None, .. } => "complete",
            StepKind::Complete { schema: Some(_), .. } => "complete_json",
            StepKind::Search { .. } => "search",
            StepKind::Condition { .. } => "condition",
            StepKind::Switch { .. } => "switch",
            StepKind::Map(_) => "map",
            StepKind::Wait(_) => "wait",
            StepKind::Approval { .. } => "approval",
            StepKind::Workflow { .. } => "workflow",
            StepKind::Stop { .. } => "stop",
        }
    }

    /// Of a `map`, what it does for each element.
    pub fn each(&self) -> Option<&StepKind> {
        match self {
            StepKind::Map(each) => Some(&each.inner),
            _ => None,
        }
    }

    /// Steps that it chooses among.
    pub(super) fn branches(&self) -> Vec<usize> {
        match self {
            StepKind::Condition { then, otherwise, .. } => then.iter().chain(otherwise).copied().collect(),
            StepKind::Switch { cases, default } => {
                cases.iter().flat_map(|(_, then)| then).chain(default).copied().collect()
            }
            StepKind::Approval { on_lapse: OnError::Goto(to), .. } => vec![*to],
            _ => Vec::new(),
        }
    }

    /// Its templates and expressions, for what they refer to; those of a `map`'s inner step are not among them.
    pub(super) fn references(&self) -> Vec<&super::path::Reference> {
        let (mut templates, mut conditions): (Vec<&Template>, Vec<&Condition>) = (Vec::new(), Vec::new());
        match self {
            StepKind::Tool { arguments, .. } | StepKind::Http { arguments, .. } => templates.push(arguments),
            StepKind::Sql { parameters, .. } => templates.push(parameters),
            StepKind::Ask { question, .. } => templates.push(question),
            StepKind::Complete { prompt, .. } => templates.push(prompt),
            StepKind::Search { query, filter, .. } => templates.extend([query].into_iter().chain(filter)),
            StepKind::Condition { test, .. } => conditions.push(test),
            StepKind::Switch { cases, .. } => conditions.extend(cases.iter().map(|(test, _)| test)),
            StepKind::Map(each) => templates.push(&each.over),
            StepKind::Wait(Until::Time(time)) => templates.push(time),
            StepKind::Wait(Until::Event { matching, .. }) => templates.extend(matching),
            StepKind::Wait(Until::For(_)) => {}
            StepKind::Approval { title, details, .. } => templates.extend([title].into_iter().chain(details)),
            StepKind::Workflow { input, .. } => templates.push(input),
            StepKind::Stop { output, message, .. } => templates.extend(output.iter().chain(message)),
        }
        let of_templates = templates.into_iter().flat_map(Template::references);
        of_templates.chain(conditions.into_iter().flat_map(Condition::references)).collect()
    }
}
