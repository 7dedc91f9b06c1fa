//! Steps that ask a model: the reply is the worker's, and what came of it is looked at here.

use super::{Stepping, failed, parsed, stored_failure, wrong};
use crate::core::error::{Error, Result};
use crate::core::prompt::json as json_in;
use crate::core::workflow::definition::StepKind;
use crate::core::workflow::machine::Event;
use crate::core::workflow::row::{Failure, Place, Reason, Row};
use crate::pg::tools::{Done, attempt};
use crate::pg::{completing, identity, owner, spi};
use pgrx::Uuid;
use serde_json::{Value, json};

/// Times that a reply which does not fit its schema is sent back.
const REPAIRS: u64 = 2;

impl Stepping<'_> {
    /// Asks a model, for an attempt of a step.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn ask(
        &mut self,
        for_it: (Place, u32),
        conversation: Option<Uuid>,
        question: &str,
        mode: Option<String>,
        knowledge: bool,
        model: Option<String>,
        options: &Value,
        kind: Value,
    ) -> Result<Event> {
        let asked = self.text(
            None,
            "select helper.ask_async($1, $2, coalesce($3, 'chat'), $4, $5, $6, $7::jsonb)::text",
            &[
                question.into(),
                conversation.into(),
                mode.into(),
                knowledge.into(),
                model.into(),
                self.stored.workspace.into(),
                options.to_string().into(),
            ],
        );
        match asked {
            Ok(message) => {
                let message =
                    message.and_then(|id| identity::uuid(&id)).ok_or_else(|| Error::bug("a reply has no id"))?;
                self.asked(for_it, message)?;
                self.waiting("message", message, &kind)
            }
            Err(fault) => Ok(failed(fault)),
        }
    }

    /// Notes for whom a model was asked: what it costs is shown with the step.
    fn asked(&self, (place, attempt): (Place, u32), message: Uuid) -> Result<()> {
        owner::as_owner(|| {
            spi::run(
                "insert into helper.workflow_step_messages (workspace_id, run_id, step, item, attempt, message_id) \
                 values ($1, $2, $3, $4, $5, $6)",
                &[
                    self.stored.workspace.into(),
                    self.stored.id.into(),
                    self.definition.steps[place.step].name.as_str().into(),
                    place.item.map_or(-1, |item| item as i32).into(),
                    (attempt as i32).into(),
                    message.into(),
                ],
            )
        })
    }

    /// What became of a reply; `None` while it goes on.
    pub(super) fn reply_ended(&mut self, row: &Row, waits_for: &Value, message: Uuid) -> Result<Option<Event>> {
        let found = owner::as_owner(|| {
            spi::change(
                "select m.status, m.content, m.error::text, m.usage::text, m.conversation_id, m.provider, m.grounded \
                 from helper.messages m where m.workspace_id = $1 and m.id = $2",
                &[self.stored.workspace.into(), message.into()],
                |row| {
                    let texts =
                        (row.get::<String>(1)?, row.get::<String>(2)?, row.opt::<String>(3)?, row.opt::<String>(4)?);
                    Ok((texts, row.get::<Uuid>(5)?, row.opt::<String>(6)?, row.opt::<bool>(7)?))
                },
            )
        })?;
        let Some(((status, content, error, usage), conversation, provider, grounded)) = found.into_iter().next() else {
            return Ok(Some(wrong("the reply does not exist any more")));
        };
        match status.as_str() {
            "done" => {}
            "error" => {
                let error = stored_failure(parsed(error), "the reply failed");
                if error.reason == Some(Reason::Unanswered) && row.attempt >= self.definition.attempts(row.place) {
                    return Ok(Some(Event::Uncertain { error }));
                }
                let retryable = !matches!(error.sqlstate.get(..2), Some("22" | "42"));
                return Ok(Some(Event::Failed { error, retryable }));
            }
            "cancelled" => {
                let error = Failure::new("57014", "the reply was cancelled");
                return Ok(Some(Event::Failed { error, retryable: false }));
            }
            _ => return Ok(None),
        }
        let kind = waits_for.get("kind").and_then(Value::as_str).unwrap_or("ask");
        if kind != "ask" && provider.as_deref() == Some("local") {
            let error = Error::not_ready("no language model is configured")
                .hint("Set one with helper.set_provider and helper.set_default.");
            return Ok(Some(Event::Failed { error: error.into(), retryable: false }));
        }
        if kind == "complete_json" {
            return self.json_ended(row, waits_for, &content, conversation).map(Some);
        }
        let name = if kind == "ask" { "answer" } else { "text" };
        let mut output = json!({ name: content, "message_id": message.to_string(), "usage": parsed(usage) });
        if kind == "ask" {
            output["conversation_id"] = json!(conversation.to_string());
            output["grounded"] = json!(grounded);
        }
        Ok(Some(Event::Succeeded { output }))
    }

    /// The JSON of a reply, sent back where it does not fit.
    fn json_ended(&mut self, row: &Row, waits_for: &Value, content: &str, conversation: Uuid) -> Result<Event> {
        let (schema, model) = match self.kind(row.place) {
            Some(StepKind::Complete { schema: Some(schema), model, .. }) => (schema.to_string(), model.clone()),
            _ => return Err(Error::bug("a reply of a step that asks for none")),
        };
        let problem = match json_in::find(content) {
            None => "It holds no JSON.".to_owned(),
            Some(found) => {
                let checked = attempt(None, || Ok(Done { value: completing::check(&schema, found)?, keep: true }));
                match checked {
                    Ok(problems) => match problems.first() {
                        None => {
                            return Ok(Event::Succeeded { output: parsed(Some(found.to_owned())).unwrap_or_default() });
                        }
                        Some(problem) => format!("At \"{}\": {}.", problem.path, problem.message),
                    },
                    Err(fault) => return Ok(failed(fault)),
                }
            }
        };
        let repairs = waits_for.get("repairs").and_then(Value::as_u64).unwrap_or_default();
        if repairs >= REPAIRS {
            let mut error = Failure::new("38000", "the reply does not fit the schema");
            error.detail = Some(problem);
            return Ok(Event::Failed { error, retryable: true });
        }
        let again =
            format!("That reply does not fit the JSON Schema. {problem} Reply again, with the corrected JSON alone.");
        let kind = json!({ "kind": "complete_json", "repairs": repairs + 1 });
        self.ask((row.place, row.attempt), Some(conversation), &again, None, false, model, &json!({}), kind)
    }
}
