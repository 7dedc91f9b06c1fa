//! Steps of a run, as its owner: what can be done now is done, and what others do is begun and looked at again later.

mod calls;
mod replies;
mod runs;

use super::stored::Stored;
use super::{now, outputs, statement};
use crate::core::error::{Error, Result};
use crate::core::workflow::definition::{Definition, StepKind};
use crate::core::workflow::machine::{Event, Progress, Work};
use crate::core::workflow::row::{Failure, Place, Reason, Row};
use crate::core::workflow::{MOST_STATEMENT, Span, Time};
use crate::pg::session::Led;
use crate::pg::tools::{APPROVAL, Done, Fault, attempt};
use crate::pg::{identity, owner, session, settings, spi};
use pgrx::Uuid;
use pgrx::datum::DatumWithOid;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::ffi::CString;
use std::time::Duration;

/// Milliseconds that a statement or a search may take whose step has no `timeout`.
const TIME: Span = 30_000;

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

    fn kind(&self, place: Place) -> Option<&StepKind> {
        let kind = &self.definition.steps.get(place.step)?.kind;
        if place.item.is_some() { kind.each() } else { Some(kind) }
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
