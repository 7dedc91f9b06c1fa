//! A model's turns in one reply: it is asked, the tools that it calls are called as the person who asked, it is asked again
//! with what they gave, until it says its last words or a call waits for somebody's approval.

use crate::core::agent::{Agent, Limits, State};
use crate::core::chat::{Chat, Said, Stop, Tool, ToolCall, ToolChoice};
use crate::core::error::{Error, Result};
use crate::core::jsonb;
use crate::core::wire::{CallEnd, Reply as Told, Request, ToolReply};
use crate::pg::asking::Question;
use crate::pg::gateway::{Exchange, Step};
use crate::pg::messages::{Reply, Stored};
use crate::pg::prompting::{self, Prompt};
use crate::pg::searching::Passage;
use crate::pg::tools::{self, Outcome};
use crate::pg::{completing, owner, spi};
use pgrx::{JsonB, Uuid};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Where a reply may call tools, and how often, unless its options say otherwise.
pub const ROUNDS: u32 = 8;
pub const CALLS: u32 = 24;
pub const SECONDS: u64 = 300;

/// A call that a reply waits for.
pub struct Errand {
    at: usize,
    pub workspace: Uuid,
    pub call: Uuid,
    /// What to ask the gateway, of a call over HTTP; a runner has taken or takes any other one.
    pub request: Option<Box<Request>>,
}

impl Errand {
    /// Notes, as the owner, that nobody waits for it any more: whether a request was done is not known, and what a runner
    /// is to do is cancelled.
    pub fn lost(&self) -> Result<()> {
        if self.request.is_none() {
            return tools::cancel_queued(self.workspace, self.call);
        }
        let error = Error::not_ready("the reply that called it ended first");
        tools::ended(self.workspace, self.call, ToolReply::Failed { error, reached: true })
    }
}

/// A reply's turns so far.
#[derive(Clone)]
pub struct Turns {
    /// What the model is asked at first.
    chat: Chat,
    seal: String,
    /// Where it may call tools.
    agent: Option<Agent>,
    until: Instant,
    /// Characters of all results together.
    room: usize,
    pub passages: Vec<Passage>,
    /// Its last turn.
    said: Said,
    /// All turns' calls as one.
    total: Option<CallEnd>,
}

impl Turns {
    pub fn new(question: &Question, prompt: Prompt) -> Turns {
        let limits = question.limits;
        let agent = (!question.tools.is_empty())
            .then(|| Agent::new(Limits { rounds: limits.rounds, calls: limits.calls, cost_nanos: limits.cost_nanos }));
        let window = question.chosen.as_ref().map_or(0, |chosen| chosen.window as usize);
        Turns {
            chat: prompt.chat,
            seal: prompt.seal,
            agent,
            until: Instant::now() + Duration::from_secs(limits.seconds),
            // About a third of the window.
            room: window,
            passages: prompt.passages,
            said: Said::default(),
            total: None,
        }
    }

    /// What the model is asked next.
    pub fn chat(&self) -> Chat {
        let mut chat = self.chat.clone();
        if let Some(agent) = &self.agent {
            chat.messages.extend(agent.messages(&self.seal, self.room));
            if agent.must_end() || self.is_late() {
                chat.tool_choice = ToolChoice::None;
            }
        }
        chat
    }

    /// Takes a turn. `true`: the model called tools, see [`Turns::act`]; `false`: it was the last.
    pub fn heard(&mut self, said: Said, end: CallEnd) -> bool {
        let cost = end.cost_nanos;
        self.total = Some(match self.total.take() {
            None => end,
            Some(so_far) => together(so_far, end),
        });
        let late = self.is_late();
        let goes_on = self.agent.as_mut().is_some_and(|agent| !late && agent.hear(&said, cost));
        self.said = if goes_on { Said::default() } else { said };
        goes_on
    }

    /// Calls of the last turn that are to be made, for those who watch.
    pub fn open(&self) -> Vec<ToolCall> {
        self.agent.as_ref().map_or_else(Vec::new, |agent| agent.open().into_iter().map(|(_, call)| call).collect())
    }

    /// Makes the calls of the last turn, as the caller and inside their transaction; returns those that are made elsewhere:
    /// by the gateway, and with `by_runner` those of SQL functions. What a call comes to, an error too, is the model's to
    /// hear.
    pub fn act(&mut self, question: &Question, stored: &Stored, by_runner: bool) -> Result<Vec<Errand>> {
        let Some(agent) = &mut self.agent else { return Ok(Vec::new()) };
        let mut errands = Vec::new();
        for (at, call) in agent.open() {
            // Offered names alone: what a workspace's mode or the caller's question left out is no tool here.
            if !question.tools.iter().any(|tool| tool.name == call.name) {
                let content = format!("there is no tool \"{}\"", call.name);
                agent.give(at, None, State::Done { content, is_error: true });
                continue;
            }
            let outcome = tools::begin(&tools::Made {
                workspace: question.workspace,
                user: question.user,
                conversation: stored.conversation,
                message: stored.reply,
                tool_call_id: &call.id,
                name: &call.name,
                arguments: &call.arguments,
                by_runner,
            })?;
            note(agent, at, outcome, question.workspace, &mut errands);
        }
        Ok(errands)
    }

    /// Takes what the gateway said to an errand.
    pub fn fetched(&mut self, question: &Question, errand: &Errand, reply: Result<Told>) -> Result<()> {
        let outcome = tools::finish(question.workspace, errand.call, reply)?;
        if let Some(agent) = &mut self.agent {
            note(agent, errand.at, outcome, question.workspace, &mut Vec::new());
        }
        Ok(())
    }

    /// Takes what came of an errand that a runner had.
    pub fn called(&mut self, workspace: Uuid, errand: &Errand) -> Result<()> {
        let outcome = tools::outcome(workspace, errand.call)?;
        let outcome = outcome.ok_or_else(|| Error::bug("a call that was to have ended has not"))?;
        if let Some(agent) = &mut self.agent {
            note(agent, errand.at, outcome, workspace, &mut Vec::new());
        }
        Ok(())
    }

    /// Whether it has taken as long as it may, so that nothing more is called.
    pub fn is_late(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Runs errands from a session, all at once.
    pub fn fetch(&mut self, question: &Question, errands: &[Errand]) -> Result<()> {
        let start = |errand: &Errand| match &errand.request {
            Some(request) => Exchange::start(request),
            None => Err(Error::bug("a session waits for no runner")),
        };
        let under_way: Vec<Result<Exchange>> = errands.iter().map(start).collect();
        for (errand, exchange) in errands.iter().zip(under_way) {
            let reply = exchange.and_then(|mut exchange| {
                loop {
                    match exchange.next() {
                        Ok(Step::Item(_)) => {}
                        Ok(Step::End(reply)) => return Ok(reply),
                        Err(error) => return Err(error),
                    }
                }
            });
            self.fetched(question, errand, reply)?;
        }
        Ok(())
    }

    /// Takes up calls that were begun before: those that were decided, and those that have to be sent. As the caller.
    pub fn take_up(&mut self, workspace: Uuid) -> Result<Vec<Errand>> {
        let Some(agent) = &mut self.agent else { return Ok(Vec::new()) };
        let mut errands = Vec::new();
        for (at, record) in agent.begun() {
            let call = Uuid::from_bytes(record);
            let outcome = if agent.awaiting().iter().any(|(waiting, _)| *waiting == at) {
                tools::outcome(workspace, call)?
            } else {
                Some(tools::take_up(workspace, call)?)
            };
            if let Some(outcome) = outcome {
                note(agent, at, outcome, workspace, &mut errands);
            }
        }
        Ok(errands)
    }

    /// Whether a call waits for somebody's approval.
    pub fn is_awaiting(&self) -> bool {
        self.agent.as_ref().is_some_and(|agent| !agent.awaiting().is_empty())
    }

    /// Words of all turns, as far as they have come.
    pub fn words(&self) -> String {
        self.agent.as_ref().map(Agent::words).unwrap_or_default() + &self.said.text()
    }

    /// The tool calls, as replies show them.
    pub fn tool_calls(&self) -> Value {
        let made = self.agent.iter().flat_map(Agent::made);
        made.map(|made| {
            let (status, error) = match &made.state {
                State::Open => ("running", None),
                State::SameAs(_) | State::Done { is_error: false, .. } => ("done", None),
                State::Awaiting => ("awaiting_confirmation", None),
                State::Done { content, is_error: true } => ("error", Some(content)),
            };
            json!({
                "id": made.call.id,
                "function": made.call.name,
                "arguments": shown(&made.call.arguments),
                "status": status,
                "call": made.record.map(|record| Uuid::from_bytes(record).to_string()),
                "error": error,
            })
        })
        .collect()
    }

    /// The JSON value that it came to, where the mode wants one that fits its schema.
    fn value(&self, question: &Question) -> Result<Option<String>> {
        if question.mode.output_schema.is_none() || self.is_awaiting() {
            return Ok(None);
        }
        // Words before a call of a tool are none of it.
        completing::value_of(&self.said.text()).map(|value| Some(value.to_owned()))
    }

    /// What has to be asked of the gateway before the reply is one: whether its value fits.
    pub fn check(&self, question: &Question) -> Result<Option<Request>> {
        let (Some(value), Some(schema)) = (self.value(question)?, &question.mode.output_schema) else {
            return Ok(None);
        };
        Ok(Some(Request::CheckJson { schema: schema.to_string(), value }))
    }

    /// The same for a session, which waits for the answer.
    pub fn fits(&self, question: &Question) -> Result<()> {
        let Some(request) = self.check(question)? else { return Ok(()) };
        completing::checked(&request).and_then(|problems| completing::unfit(&problems).map_or(Ok(()), Err))
    }

    /// The reply as it stands.
    pub fn reply(&self, question: &Question) -> Result<Reply> {
        let end = self.total.as_ref().ok_or_else(|| Error::bug("a reply without a turn"))?;
        let value = self.value(question)?;
        let words = value.unwrap_or_else(|| self.words().trim_end().to_owned());
        let mut reply = prompting::reply(question, &words, &self.passages, end);
        let stop = if self.is_awaiting() { Some(Stop::ToolCalls) } else { self.said.stop };
        reply.usage["stop"] = stop.map(Stop::name).into();
        reply.tool_calls = self.tool_calls();
        Ok(reply)
    }

    /// Keeps where the reply stands, so that it goes on from there whatever ends in between.
    pub fn keep(&self, question: &Question, stored: &Stored) -> Result<()> {
        let state = json!({
            "agent": self.agent,
            "passages": self.passages.iter().map(Passage::kept).collect::<Vec<_>>(),
            "total": self.total,
        });
        let mut payload = question.asked.clone();
        payload["question_id"] = stored.question.to_string().into();
        payload["message_id"] = stored.reply.to_string().into();
        owner::as_owner(|| {
            spi::run(
                "select helper._keep_state($1, $2, $3, $4)",
                &[question.workspace.into(), stored.reply.into(), JsonB(payload).into(), JsonB(state).into()],
            )
        })
    }

    /// Goes on from what was kept; `prompt` was made anew with the passages that were kept.
    pub fn restore(&mut self, state: &Value) -> Result<()> {
        let wrong = |_| Error::bug("a reply's state cannot be read");
        let part = |name: &str| state.get(name).cloned().unwrap_or(Value::Null);
        self.agent = serde_json::from_value(part("agent")).map_err(wrong)?;
        self.total = serde_json::from_value(part("total")).map_err(wrong)?;
        Ok(())
    }
}

/// Passages of a reply that was kept.
pub fn passages(state: &Value) -> Vec<Passage> {
    let kept = state.get("passages").and_then(Value::as_array);
    kept.into_iter().flatten().filter_map(Passage::restored).collect()
}

/// Where a reply stands that was kept, as the owner.
pub fn kept(workspace: Uuid, message: Uuid) -> Result<Option<Value>> {
    let found = spi::change(
        "select s.state from helper.reply_states s where s.workspace_id = $1 and s.message_id = $2",
        &[workspace.into(), message.into()],
        |row| Ok(row.get::<JsonB>(1)?.0),
    )?;
    Ok(found.into_iter().next())
}

/// Tools as the model is told of them.
pub fn described(question: &Question) -> Vec<Tool> {
    let described = question.tools.iter().map(|tool| Tool {
        name: tool.name.clone(),
        description: tool.description.clone(),
        parameters: tool.parameters.clone(),
    });
    described.collect()
}

/// What a model gave a tool, as tables show it: as it wrote it where that is no JSON, or none that they can hold.
fn shown(arguments: &str) -> Value {
    let value = serde_json::from_str(arguments).ok().filter(|value| !jsonb::has_zero(value));
    value.unwrap_or_else(|| arguments.into())
}

fn note(agent: &mut Agent, at: usize, outcome: Outcome, workspace: Uuid, errands: &mut Vec<Errand>) {
    match outcome {
        Outcome::Done { call, content, is_error } => {
            agent.give(at, call.map(|call| *call.as_bytes()), State::Done { content, is_error });
        }
        Outcome::Awaiting { call } => agent.give(at, Some(*call.as_bytes()), State::Awaiting),
        Outcome::Send { call, request } => {
            agent.give(at, Some(*call.as_bytes()), State::Open);
            errands.push(Errand { at, workspace, call, request: Some(request) });
        }
        Outcome::Queued { call } => {
            agent.give(at, Some(*call.as_bytes()), State::Open);
            errands.push(Errand { at, workspace, call, request: None });
        }
    }
}

/// Two calls of a model as one: what they took together, and how the second ended.
fn together(first: CallEnd, second: CallEnd) -> CallEnd {
    let mut usage = second.usage;
    usage.input += first.usage.input;
    usage.cached += first.usage.cached;
    usage.cache_written += first.usage.cache_written;
    usage.output += first.usage.output;
    usage.reasoning += first.usage.reasoning;
    CallEnd {
        usage,
        estimated: first.estimated || second.estimated,
        cost_nanos: first.cost_nanos + second.cost_nanos,
        latency_ms: first.latency_ms + second.latency_ms,
        first_token_ms: first.first_token_ms.or(second.first_token_ms),
        attempts: first.attempts + second.attempts,
        ..second
    }
}

/// The error of a question that wants tools of somebody who cannot choose any.
pub fn no_tools() -> Error {
    Error::not_ready("the local provider cannot call tools")
        .detail("It extracts sentences from documents and is no language model.")
        .hint("Choose a language model with model => ... or helper.set_default('chat', provider, model), or leave out the option tools.")
}

/// A call's limits, as the option `limits` says: rounds, calls, seconds, cost.
pub fn limits(value: &Value) -> Result<Bounds> {
    let Value::Object(given) = value else { return Err(Error::bad_argument("option \"limits\" is not a JSON object")) };
    let mut bounds = Bounds::default();
    for (name, value) in given {
        let wrong = || Error::bad_argument(format!("limit \"{name}\" has the wrong type or range"));
        let whole = |most: u64| value.as_u64().filter(|number| (1..=most).contains(number)).ok_or_else(wrong);
        match name.as_str() {
            "rounds" => bounds.rounds = whole(64)? as u32,
            "calls" => bounds.calls = whole(256)? as u32,
            "seconds" => bounds.seconds = whole(3600)?,
            "cost" => {
                let cost = value.as_f64().filter(|cost| *cost > 0.0 && *cost <= 1e6).ok_or_else(wrong)?;
                bounds.cost_nanos = (cost * 1e9) as u64;
            }
            _ => {
                return Err(Error::bad_argument(format!("limit \"{name}\" does not exist"))
                    .hint("Limits are rounds, calls, seconds and cost."));
            }
        }
    }
    Ok(bounds)
}

/// How far the tools of a reply may go.
#[derive(Clone, Copy)]
pub struct Bounds {
    pub rounds: u32,
    pub calls: u32,
    pub seconds: u64,
    /// 0 where only budgets bind.
    pub cost_nanos: u64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { rounds: ROUNDS, calls: CALLS, seconds: SECONDS, cost_nanos: 0 }
    }
}
