//! Steps of a run, as its owner: what can be done now is done, and what others do is begun and looked at again later.

use super::stored::Stored;
use super::{now, outputs, statement};
use crate::core::error::{Error, Kind, Result};
use crate::core::prompt::json as json_in;
use crate::core::workflow::definition::{Definition, StepKind};
use crate::core::workflow::machine::{Event, Progress, Work};
use crate::core::workflow::row::{Failure, Place, Reason, Row};
use crate::core::workflow::{MOST_STATEMENT, Span, Time};
use crate::pg::session::Led;
use crate::pg::tools::{APPROVAL, Done, Fault, attempt, stepping};
use crate::pg::{completing, identity, owner, session, settings, spi};
use pgrx::Uuid;
use pgrx::datum::DatumWithOid;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::ffi::CString;
use std::time::Duration;

/// Milliseconds that a statement or a search may take whose step has no `timeout`.
const TIME: Span = 30_000;
/// Times that a reply which does not fit its schema is sent back.
const REPAIRS: u64 = 2;

/// The steps of one run.
pub struct Stepping<'a> {
    stored: &'a Stored,
    definition: &'a Definition,
    /// What steps that were begun were given.
    pub inputs: HashMap<Place, String>,
    /// Something that callers wrote has run.
    pub is_used: bool,
    /// What the run's input and outputs take, about.
    pub bytes: i64,
}

type Tried<T> = std::result::Result<T, Fault>;

fn failure(fault: Fault) -> Failure {
    Failure { detail: fault.detail, hint: fault.hint, ..Failure::new(&fault.sqlstate, fault.message) }
}

/// Whether a call ended for want of a decision.
fn has_lapsed(event: &Event) -> bool {
    matches!(event, Event::Failed { error, .. } if error.reason == Some(Reason::Lapsed))
}

/// What a fault means: wrong arguments and missing rights stay so, anything else may pass.
fn failed(fault: Fault) -> Event {
    let retryable = !matches!(fault.sqlstate.get(..2), Some("22" | "42"));
    Event::Failed { error: failure(fault), retryable }
}

fn wrong(message: impl Into<String>) -> Event {
    failed(Error::bad_argument(message).into())
}

/// An error as it is stored with a call or a message.
fn stored_failure(error: Option<Value>, otherwise: &str) -> Failure {
    error.and_then(|error| serde_json::from_value(error).ok()).unwrap_or_else(|| Failure::new("38000", otherwise))
}

fn parsed(text: Option<String>) -> Option<Value> {
    text.and_then(|text| serde_json::from_str(&text).ok())
}

fn id_in(value: &Value, name: &str) -> Option<Uuid> {
    identity::uuid(value.get(name)?.as_str()?)
}

impl<'a> Stepping<'a> {
    /// Says for what follows in this transaction which workspace the run is in, and that it led to it.
    pub fn new(stored: &'a Stored, definition: &'a Definition) -> Result<Self> {
        Led { depth: stored.depth, run: Some(stored.id) }.set();
        let workspace = CString::new(stored.workspace.to_string()).map_err(|_| Error::bug("a setting holds a NUL"))?;
        session::set_locally(c"helper_ai.workspace", &workspace);
        Ok(Stepping { stored, definition, inputs: HashMap::new(), is_used: false, bytes: stored.bytes })
    }

    /// What a step came to, where it can be stored; otherwise it is the step's failure. What others did for it stands, so
    /// that it is not tried again.
    pub fn kept(&mut self, event: Event) -> Event {
        let Event::Succeeded { output } = &event else { return event };
        match outputs::check(output, self.bytes) {
            Ok(bytes) => {
                self.bytes += bytes;
                event
            }
            Err(error) => Event::Failed { error: error.into(), retryable: false },
        }
    }

    /// Begins an attempt, and ends it where it can be done at once.
    pub fn begin(&mut self, place: Place, attempt: u32, work: Work, time: Option<Span>) -> Result<Event> {
        let time = Some(Duration::from_millis(time.unwrap_or(TIME).clamp(1, MOST_STATEMENT) as u64));
        self.inputs.insert(place, input_of(&work).to_string());
        let for_it = (place, attempt);
        match work {
            Work::Sql { .. } if !settings::SQL_STEPS.get() => {
                Ok(failed(Error::not_ready("sql steps are switched off").into()))
            }
            Work::Sql { sql, parameters } => {
                self.is_used = true;
                Ok(match statement::rows(&sql, &parameters, self.bytes, time) {
                    Ok(output) => Event::Succeeded { output },
                    Err(fault) => failed(fault),
                })
            }
            Work::Search { query, k, source_types, filter, method } => {
                self.is_used = true;
                let found = self.text(
                    time,
                    "select coalesce(pg_catalog.jsonb_agg(pg_catalog.to_jsonb(s)), '[]')::text \
                     from helper.search($1, $2, coalesce($3, 8), $4, $5::jsonb, coalesce($6, 'hybrid')) s",
                    &[
                        query.into(),
                        self.stored.workspace.into(),
                        k.map(|k| k as i32).into(),
                        source_types.into(),
                        filter.map(|filter| filter.to_string()).into(),
                        method.into(),
                    ],
                );
                Ok(match found {
                    Ok(found) => Event::Succeeded { output: parsed(found).unwrap_or_default() },
                    Err(fault) => failed(fault),
                })
            }
            Work::Tool { tool, arguments, is_http } => self.call(place, attempt, &tool, &arguments, is_http, time),
            Work::Approval { title, details, approver_role, self_approval, lapses_at } => {
                let arguments = json!({ "title": title, "details": details });
                let event = self.call(place, attempt, APPROVAL, &arguments, false, time)?;
                if let Event::Waiting { waits_for, .. } = &event
                    && let Some(call) = id_in(waits_for, "call")
                {
                    self.hand_over(call, &approver_role, self_approval, lapses_at)?;
                }
                Ok(event)
            }
            Work::Ask { question, mode, knowledge, model, options } => {
                let options = Value::Object(options);
                let kind = json!({ "kind": "ask" });
                self.ask(for_it, None, &question, mode, knowledge.unwrap_or(true), model, &options, kind)
            }
            Work::Complete { prompt, system, schema, model, options } => {
                let mut text = String::new();
                if let Some(system) = system {
                    text.push_str(&system);
                    text.push_str("\n\n");
                }
                text.push_str(&prompt);
                let kind = match &schema {
                    Some(schema) => {
                        text.push_str("\n\nReply with JSON alone, without a code fence, that fits this JSON Schema:\n");
                        text.push_str(&schema.to_string());
                        json!({ "kind": "complete_json", "repairs": 0 })
                    }
                    None => json!({ "kind": "complete" }),
                };
                self.ask(for_it, None, &text, None, false, model, &Value::Object(options), kind)
            }
            Work::Workflow { workflow, input } => self.sub_run(place, attempt, &workflow, &input),
            Work::Event { name, matching, until } => {
                let wait = self.wait(None, Some((&name, &matching)))?;
                Ok(Event::Waiting { waits_for: json!({ "event": name, "wait": wait.to_string() }), wake_at: until })
            }
        }
    }

    /// One text that a statement returns, as the owner.
    fn text(&self, time: Option<Duration>, sql: &str, args: &[DatumWithOid]) -> Tried<Option<String>> {
        attempt(time, || {
            let rows = spi::change(sql, args, |row| row.opt::<String>(1))?;
            Ok(Done { value: rows.into_iter().flatten().next(), keep: true })
        })
    }

    /// Notes what is waited for, so that its end has the run looked at.
    fn wait(&self, subject: Option<Uuid>, event: Option<(&str, &Value)>) -> Result<Uuid> {
        let wait = owner::as_owner(|| {
            spi::change(
                "insert into helper.workflow_waits as w (workspace_id, run_id, subject, event, matching) \
                 values ($1, $2, $3, $4, $5::jsonb) returning w.id",
                &[
                    self.stored.workspace.into(),
                    self.stored.id.into(),
                    subject.into(),
                    event.map(|(name, _)| name).into(),
                    event.map(|(_, matching)| matching.to_string()).into(),
                ],
                |row| row.get::<Uuid>(1),
            )
        })?;
        wait.into_iter().next().ok_or_else(|| Error::bug("a row that was written has no id"))
    }

    /// Waits for a call, a message or a run.
    fn waiting(&self, name: &str, subject: Uuid, more: &Value) -> Result<Event> {
        let wait = self.wait(Some(subject), None)?;
        let mut waits_for = json!({ name: subject.to_string(), "wait": wait.to_string() });
        if let (Some(members), Some(more)) = (waits_for.as_object_mut(), more.as_object()) {
            members.extend(more.clone());
        }
        Ok(Event::Waiting { waits_for, wake_at: None })
    }

    fn call(
        &mut self,
        place: Place,
        attempt: u32,
        tool: &str,
        arguments: &Value,
        is_http: bool,
        time: Option<Duration>,
    ) -> Result<Event> {
        if is_http {
            let kind = owner::as_owner(|| {
                spi::first("select f.kind from helper.functions f where f.function_name = $1", &[tool.into()], |row| {
                    row.get::<String>(1)
                })
            })?;
            if kind.as_deref() != Some("http") {
                return Ok(wrong(format!("function \"{tool}\" is no HTTP endpoint")));
            }
        }
        self.is_used = true;
        let item = place.item.map_or(-1, i64::from);
        let key = format!("run:{}:{}:{item}:{attempt}", self.stored.id, place.step);
        let called = stepping(|| {
            self.text(
                time,
                "select helper.call($1, $2::jsonb, $3, $4)::text",
                &[tool.into(), arguments.to_string().into(), self.stored.workspace.into(), key.into()],
            )
        });
        let call = match called {
            Ok(call) => call.and_then(|call| identity::uuid(&call)).ok_or_else(|| Error::bug("a call has no id"))?,
            Err(fault) => return Ok(failed(fault)),
        };
        match self.call_ended(call)? {
            Some(event) => Ok(event),
            None => self.waiting("call", call, &Value::Null),
        }
    }

    /// Who decides on an approval, and until when.
    fn hand_over(&self, call: Uuid, role: &str, self_approval: bool, lapses_at: Time) -> Result<()> {
        owner::as_owner(|| {
            spi::run(
                "update helper.function_calls c set approver_role = $3, self_approval = $4, lapses_at = helper._time($5) \
                 where c.workspace_id = $1 and c.id = $2",
                &[self.stored.workspace.into(), call.into(), role.into(), self_approval.into(), lapses_at.into()],
            )
        })
    }

    /// What became of a call; `None` while it goes on.
    fn call_ended(&self, call: Uuid) -> Result<Option<Event>> {
        let found = owner::as_owner(|| {
            spi::change(
                "select c.status, c.result::text, c.error::text, c.reason from helper.function_calls c \
                 where c.workspace_id = $1 and c.id = $2",
                &[self.stored.workspace.into(), call.into()],
                |row| Ok((row.get::<String>(1)?, row.opt::<String>(2)?, row.opt::<String>(3)?, row.opt::<String>(4)?)),
            )
        })?;
        let Some((status, result, error, reason)) = found.into_iter().next() else {
            return Ok(Some(wrong("the call does not exist any more")));
        };
        let refused = |what: &str| {
            let mut error = Failure::new("42501", format!("the call was {what}"));
            error.detail = reason.clone();
            Some(Event::Failed { error, retryable: false })
        };
        Ok(match status.as_str() {
            "succeeded" => Some(Event::Succeeded { output: parsed(result).unwrap_or_default() }),
            "failed" => {
                let error = stored_failure(parsed(error), "the call failed");
                let retryable = !matches!(error.sqlstate.get(..2), Some("22" | "42"));
                Some(Event::Failed { error, retryable })
            }
            "uncertain" => {
                Some(Event::Uncertain { error: stored_failure(parsed(error), "what came of the call is not known") })
            }
            "rejected" => refused("rejected"),
            "expired" => {
                let mut error = Failure::new("57014", "the call was approved by nobody in time");
                error.reason = Some(Reason::Lapsed);
                Some(Event::Failed { error, retryable: false })
            }
            "cancelled" => refused("cancelled"),
            _ => None,
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn ask(
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
    fn reply_ended(&mut self, row: &Row, waits_for: &Value, message: Uuid) -> Result<Option<Event>> {
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

    fn kind(&self, place: Place) -> Option<&StepKind> {
        let kind = &self.definition.steps.get(place.step)?.kind;
        if place.item.is_some() { kind.each() } else { Some(kind) }
    }

    fn sub_run(&self, place: Place, attempt: u32, workflow: &str, input: &Value) -> Result<Event> {
        let item = place.item.map_or(-1, i64::from);
        let trigger = json!({ "kind": "workflow", "run": self.stored.id.to_string(), "name": self.stored.name });
        let key = format!("run:{}:{}:{item}:{attempt}", self.stored.id, place.step);
        let run = owner::as_owner(|| {
            spi::change(
                "select w.id is not null, d.deepest, \
                   case when $6 <= d.deepest then helper._start_run($1, w.id, $3::jsonb, $4::jsonb, $5, $6) end \
                 from (values (helper._deepest())) d (deepest) \
                 left join helper.workflows w on w.workspace_id = $1 and w.name = $2",
                &[
                    self.stored.workspace.into(),
                    workflow.into(),
                    trigger.to_string().into(),
                    input.to_string().into(),
                    key.into(),
                    (self.stored.depth + 1).into(),
                ],
                |row| Ok((row.get::<bool>(1)?, row.get::<i32>(2)?, row.opt::<Uuid>(3)?)),
            )
        })?;
        match run.first() {
            Some((_, deepest, _)) if self.stored.depth >= *deepest => {
                let error = Error::new(Kind::OverLimit, "workflows start one another too deep");
                let detail = format!("This run is the end of a chain of {deepest}, each started by the one before.");
                Ok(Event::Failed { error: error.detail(detail).into(), retryable: false })
            }
            Some((true, _, Some(run))) => self.waiting("run", *run, &Value::Null),
            Some((true, _, None)) => Ok(failed(Error::not_ready(format!("workflow \"{workflow}\" is paused")).into())),
            _ => Ok(failed(Error::unknown_object(format!("workflow \"{workflow}\" does not exist")).into())),
        }
    }

    fn sub_run_ended(&self, run: Uuid) -> Result<Option<Event>> {
        let found = owner::as_owner(|| {
            spi::change(
                "select r.status, r.output::text, r.error::text from helper.workflow_runs r where r.workspace_id = $1 and r.id = $2",
                &[self.stored.workspace.into(), run.into()],
                |row| Ok((row.get::<String>(1)?, row.opt::<String>(2)?, row.opt::<String>(3)?)),
            )
        })?;
        let Some((status, output, error)) = found.into_iter().next() else {
            return Ok(Some(wrong("the run does not exist any more")));
        };
        Ok(match status.as_str() {
            "succeeded" => Some(Event::Succeeded { output: parsed(output).unwrap_or_default() }),
            "failed" | "timed_out" | "cancelled" => {
                let error = stored_failure(parsed(error), &format!("the run {}", status.replace('_', " ")));
                Some(Event::Failed { error, retryable: status != "cancelled" })
            }
            _ => None,
        })
    }

    fn event_came(&self, wait: Uuid) -> Result<Option<Event>> {
        let payload = owner::as_owner(|| {
            spi::change(
                "select w.payload::text from helper.workflow_waits w where w.workspace_id = $1 and w.id = $2",
                &[self.stored.workspace.into(), wait.into()],
                |row| row.opt::<String>(1),
            )
        })?;
        let payload = payload.into_iter().flatten().next();
        Ok(payload.map(|payload| Event::Succeeded { output: parsed(Some(payload)).unwrap_or_default() }))
    }

    /// Looks what came of all that the run waits for.
    pub fn look(&mut self, progress: &mut Progress) -> Result<()> {
        let waiting: Vec<Row> = progress.waiting().cloned().collect();
        for row in waiting {
            let Some(waits_for) = row.waits_for.clone() else { continue };
            let event = if let Some(call) = id_in(&waits_for, "call") {
                // That nobody approved in time is the step's own to say, by the same clock: it knows what follows.
                let is_approval = matches!(self.kind(row.place), Some(StepKind::Approval { .. }));
                let event = self.call_ended(call)?;
                event.filter(|event| !(is_approval && has_lapsed(event)))
            } else if let Some(message) = id_in(&waits_for, "message") {
                self.reply_ended(&row, &waits_for, message)?
            } else if let Some(run) = id_in(&waits_for, "run") {
                self.sub_run_ended(run)?
            } else if let Some(wait) = id_in(&waits_for, "wait") {
                self.event_came(wait)?
            } else {
                None
            };
            if let Some(event) = event {
                let event = self.kept(event);
                progress.apply(row.place, row.attempt, event, now(), super::random());
            }
        }
        Ok(())
    }

    /// Takes back what has taken too long, as far as it can be: a call that nobody has begun has done nothing, and what came
    /// of one in its very last moment counts.
    pub fn expire(&mut self, progress: &mut Progress, now: Time) -> Result<()> {
        for row in progress.expiring(now) {
            let Some(call) = row.waits_for.as_ref().and_then(|waits_for| id_in(waits_for, "call")) else { continue };
            let is_approval = matches!(self.kind(row.place), Some(StepKind::Approval { .. }));
            let event = match self.cancel_call(call)? {
                true if is_approval => None,
                true => Some(Event::Failed { error: Progress::too_long(), retryable: true }),
                false => self.call_ended(call)?.filter(|event| !(is_approval && has_lapsed(event))),
            };
            if let Some(event) = event {
                let event = self.kept(event);
                progress.apply(row.place, row.attempt, event, now, super::random());
            }
        }
        Ok(())
    }

    /// Whether nothing will come of a call.
    fn cancel_call(&self, call: Uuid) -> Result<bool> {
        let cancelled = owner::as_owner(|| {
            spi::change("select helper._cancel_call($1, $2)", &[self.stored.workspace.into(), call.into()], |row| {
                row.get::<bool>(1)
            })
        })?;
        Ok(cancelled == [true])
    }

    /// Calls off what an attempt waited for that was cancelled; what had come of it, or may have, is noted.
    pub fn call_off(&mut self, progress: &mut Progress, place: Place, attempt: u32, waits_for: &Value) -> Result<()> {
        let event = match id_in(waits_for, "call") {
            None => return self.take_back(waits_for),
            Some(call) if self.cancel_call(call)? => return Ok(()),
            Some(call) => self.call_ended(call)?,
        };
        let event = event.unwrap_or_else(|| {
            let mut error = Failure::new("57014", "the call was under way when the step was cancelled");
            error.hint = Some("Look where it went whether it was done before it is tried again.".into());
            Event::Uncertain { error }
        });
        let event = self.kept(event);
        progress.settle(place, attempt, event, now());
        Ok(())
    }

    /// Calls off a reply or a run that nobody asks for any more.
    fn take_back(&self, waits_for: &Value) -> Result<()> {
        let workspace = self.stored.workspace;
        if let Some(message) = id_in(waits_for, "message") {
            return owner::as_owner(|| {
                spi::run(
                    "select helper._cancel_reply(m) from helper.messages m where m.workspace_id = $1 and m.id = $2",
                    &[workspace.into(), message.into()],
                )
            });
        }
        if let Some(run) = id_in(waits_for, "run") {
            return owner::as_owner(|| spi::run("select helper._cancel_run($1, $2)", &[workspace.into(), run.into()]));
        }
        Ok(())
    }
}

/// What a step is given, as it is shown.
fn input_of(work: &Work) -> Value {
    match work {
        Work::Tool { arguments, .. } => arguments.clone(),
        Work::Sql { parameters, .. } => parameters.clone(),
        Work::Ask { question, .. } => json!({ "question": question }),
        Work::Complete { prompt, .. } => json!({ "prompt": prompt }),
        Work::Search { query, filter, .. } => json!({ "query": query, "filter": filter }),
        Work::Event { name, matching, .. } => json!({ "event": name, "match": matching }),
        Work::Approval { title, details, .. } => json!({ "title": title, "details": details }),
        Work::Workflow { input, .. } => input.clone(),
    }
}
