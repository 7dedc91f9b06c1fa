//! What to do in a step, its templates rendered.

use super::definition::{StepKind, Until};
use super::value::{Context, Template};
use super::{Span, Time};
use crate::core::error::{Error, Result};
use serde_json::{Map, Value, json};

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

impl Work {
    /// What a step comes to in a context. Only for kinds that the engine does; any other is our bug.
    pub(super) fn render(kind: &StepKind, context: &Context, now: Time, timeout: Option<Span>) -> Result<Work> {
        Ok(match kind {
            StepKind::Tool { tool, arguments } | StepKind::Http { tool, arguments } => Work::Tool {
                tool: tool.clone(),
                arguments: object(arguments, context, "arguments")?,
                is_http: matches!(kind, StepKind::Http { .. }),
            },
            StepKind::Sql { sql, parameters } => {
                Work::Sql { sql: sql.clone(), parameters: object(parameters, context, "parameters")? }
            }
            StepKind::Ask { question, mode, knowledge, model, options } => Work::Ask {
                question: question.render_text(context)?,
                mode: mode.clone(),
                knowledge: *knowledge,
                model: model.clone(),
                options: options.clone(),
            },
            StepKind::Complete { prompt, system, schema, model, options } => Work::Complete {
                prompt: prompt.render_text(context)?,
                system: system.clone(),
                schema: schema.clone(),
                model: model.clone(),
                options: options.clone(),
            },
            StepKind::Search { query, k, source_types, filter, method } => Work::Search {
                query: query.render_text(context)?,
                k: *k,
                source_types: source_types.clone(),
                filter: filter.as_ref().map(|filter| object(filter, context, "filter")).transpose()?,
                method: method.clone(),
            },
            StepKind::Wait(Until::Event { name, matching }) => Work::Event {
                name: name.clone(),
                matching: matching.as_ref().map_or(Ok(json!({})), |matching| object(matching, context, "match"))?,
                until: timeout.map(|timeout| now.saturating_add(timeout)),
            },
            StepKind::Approval { title, details, approver_role, self_approval, lapse, .. } => Work::Approval {
                title: title.render_text(context)?,
                details: details.as_ref().map_or(Ok(Value::Null), |details| details.render(context))?,
                approver_role: approver_role.clone(),
                self_approval: *self_approval,
                lapses_at: now.saturating_add(*lapse),
            },
            StepKind::Workflow { workflow, input } => {
                Work::Workflow { workflow: workflow.clone(), input: object(input, context, "input")? }
            }
            StepKind::Condition { .. }
            | StepKind::Switch { .. }
            | StepKind::Map(_)
            | StepKind::Wait(_)
            | StepKind::Stop { .. } => {
                return Err(Error::bug(format!("a step of type {} is the machine's own", kind.name())));
            }
        })
    }
}

fn object(template: &Template, context: &Context, field: &str) -> Result<Value> {
    match template.render(context)? {
        value @ Value::Object(_) => Ok(value),
        _ => Err(Error::bad_argument(format!("\"{field}\" did not become an object"))),
    }
}
