//! A reply that somebody asked for and did not wait for: the worker takes it through the same steps as a session would,
//! as the person who asked, with no transaction open while it waits.

use crate::core::chat::{Event, Purpose, Said};
use crate::core::error::{Error, Kind, Result};
use crate::core::prompt::marks::MarkFilter;
use crate::core::wire::{CallEnd, Outcome, Reply, Request};
use crate::pg::acting::{self, Errand, Turns};
use crate::pg::asking::{self, Arguments, Question};
use crate::pg::budget::Reservation;
use crate::pg::embedder::{Asking, Call, Embedder};
use crate::pg::jobs::Job;
use crate::pg::messages::{self, Stored};
use crate::pg::prompting::{self, Draft, FOLDING_MS};
use crate::pg::report::Reported;
use crate::pg::{answering, calling, embedding, extracting, owner, spi};
use pgrx::JsonB;
use pgrx::prelude::*;
use serde_json::Value;
use std::time::{Duration, Instant};

/// A reply's row is written at most this often while it streams,
const OFTEN: Duration = Duration::from_millis(250);
/// or when so many characters came together.
const MANY: usize = 200;

/// What is to be done next with a reply.
pub enum Next {
    /// Ask the gateway this.
    Ask(Box<Request>),
    /// Wait for these calls of tools: the gateway is to make its own, and runners take theirs.
    Fetch(Vec<Errand>),
    /// It is stored; the job is done.
    Done,
}

/// A reply on its way.
pub struct Replying {
    pub job: Job,
    role: String,
    claims: Option<String>,
    payload: Value,
    text: String,
    question: Option<Question>,
    stored: Stored,
    /// The question on its way to the embedder, and what came of it.
    pub call: Call,
    /// The prompt, while the model sums up what falls out of its window.
    draft: Option<Draft>,
    /// What the model said and called so far.
    turns: Option<Turns>,
    /// What was set aside for the summary or the next turn.
    reservation: Option<Reservation>,
    filter: Option<MarkFilter>,
    said: Said,
    /// What of it may be shown, and how many bytes of that are stored.
    shown: String,
    written: usize,
    written_at: Instant,
}

impl Replying {
    /// Loads a job's question, as the owner; `None` where the reply is not wanted any more.
    pub fn load(job: Job) -> Result<Option<Replying>> {
        let found = spi::change(
            "select j.principal_role::text, j.principal_claims::text, j.payload, q.content, q.id, r.id, r.conversation_id \
             from helper.jobs j \
             join helper.messages q on q.workspace_id = j.workspace_id and q.id = (j.payload ->> 'question_id')::uuid \
             join helper.messages r on r.workspace_id = j.workspace_id and r.id = (j.payload ->> 'message_id')::uuid \
             where j.workspace_id = $1 and j.id = $2 and r.status in ('pending', 'streaming')",
            &[job.workspace.into(), job.id.into()],
            |row| {
                Ok((
                    row.get::<String>(1)?,
                    row.opt::<String>(2)?,
                    row.get::<JsonB>(3)?.0,
                    row.get::<String>(4)?,
                    Stored { question: row.get(5)?, reply: row.get(6)?, conversation: row.get(7)? },
                ))
            },
        )?
        .pop();
        Ok(found.map(|(role, claims, payload, text, stored)| Replying {
            job,
            role,
            claims,
            payload,
            text,
            question: None,
            stored,
            call: Call::new(Embedder::local()),
            draft: None,
            turns: None,
            reservation: None,
            filter: None,
            said: Said::default(),
            shown: String::new(),
            written: 0,
            written_at: Instant::now(),
        }))
    }

    /// The reply's message.
    pub fn message(&self) -> pgrx::Uuid {
        self.stored.reply
    }

    /// Whether anything of the reply was said yet.
    pub fn has_begun(&self) -> bool {
        !self.is_folding() && !self.said.parts.is_empty()
    }

    /// Whether the model sums up what was said before, which comes before its reply.
    pub fn is_folding(&self) -> bool {
        self.draft.is_some()
    }

    /// Reads the question again, as the person who asked; inside a transaction.
    pub fn begin(&mut self) -> Result<Next> {
        let text = |name: &str| self.payload.get(name).and_then(Value::as_str);
        let question = owner::as_principal(&self.role, self.claims.as_deref(), || {
            asking::read(Arguments {
                question: Some(&self.text),
                conversation: Some(self.stored.conversation),
                mode: text("mode"),
                knowledge: self.payload.get("knowledge").and_then(Value::as_bool),
                model: text("model"),
                workspace: Some(self.job.workspace),
                options: self.payload.get("options").filter(|options| options.is_object()).cloned().map(JsonB),
            })
        })?;
        let workspace = question.workspace;
        if let Some(state) = owner::as_owner(|| acting::kept(workspace, self.stored.reply))? {
            self.question = Some(question);
            return self.go_on(&state);
        }
        let knowledge = question.knowledge;
        let asking = Asking {
            workspace: question.workspace,
            user: Some(question.user),
            why: "search",
            purpose: Purpose::Query,
            interactive: true,
            patient: false,
        };
        let inputs = vec![question.query()];
        self.question = Some(question);
        if !knowledge {
            return self.embedded();
        }
        self.call = Call::new(owner::as_owner(|| Embedder::current(asking.workspace))?);
        Ok(Next::Ask(Box::new(self.call.ask(&asking, inputs)?)))
    }

    /// Looks documents up and plans the prompt, as the person who asked; inside a transaction.
    pub fn embedded(&mut self) -> Result<Next> {
        let Some(question) = &self.question else { return Err(Error::bug("a reply has no question")) };
        let vector = if question.knowledge {
            if !self.call.embedder.is_remote() {
                self.call.embedder.is_named(&embedding::model_name()?)?;
            }
            let vector = self.call.embeddings().next().unwrap_or_default();
            Some((self.call.embedder.model.clone(), vector.to_vec()))
        } else {
            None
        };
        let stored = self.stored;
        let drafted = owner::as_principal(&self.role, self.claims.as_deref(), || {
            let found = answering::look_up(question, vector)?;
            if question.chosen.is_none() {
                let reply = extracting::compose(question, found.as_ref())?;
                messages::end(question, &stored, &reply, "done")?;
                return Ok(None);
            }
            let chosen = question.chosen.as_ref().ok_or_else(calling::no_model)?;
            let history = messages::history(question.workspace, stored.conversation, stored.question)?;
            let draft = prompting::draft(question, chosen, history, answering::passages_of(found), false)?;
            // Where there is no budget for it, it is done without the model.
            let folding = draft.folding(chosen).and_then(|chat| {
                let who = answering::caller(question, &stored);
                calling::prepare(who, "summary", chosen, chat, Some(FOLDING_MS)).ok()
            });
            Ok(Some((draft, folding)))
        })?;
        match drafted {
            None => Ok(Next::Done),
            Some((draft, None)) => self.prompted(draft, None),
            Some((draft, Some((call, reservation)))) => {
                self.draft = Some(draft);
                self.reservation = Some(reservation);
                Ok(Next::Ask(Box::new(Request::Chat(Box::new(call)))))
            }
        }
    }

    /// Takes the end of the summary; what the model did not sum up is summed up without it. Inside a transaction.
    pub fn folded(&mut self, end: &CallEnd) -> Result<Next> {
        self.settle(end);
        let said = std::mem::take(&mut self.said);
        let Some(draft) = self.draft.take() else { return Err(Error::bug("a reply has no prompt")) };
        self.prompted(draft, end.error.is_none().then(|| said.text()))
    }

    /// Finishes the prompt, as the person who asked.
    fn prompted(&mut self, draft: Draft, summary: Option<String>) -> Result<Next> {
        let Some(question) = &self.question else { return Err(Error::bug("a reply has no question")) };
        let stored = self.stored;
        let turns = owner::as_principal(&self.role, self.claims.as_deref(), || {
            let chosen = question.chosen.as_ref().ok_or_else(calling::no_model)?;
            let prompt = answering::kept(question, &stored, draft.finish(question, chosen, summary))?;
            Ok(Turns::new(question, prompt))
        })?;
        self.filter = prompting::filter(question, &turns.passages);
        self.turns = Some(turns);
        self.ask()
    }

    /// Asks the model for its next turn, as the person who asked.
    fn ask(&mut self) -> Result<Next> {
        let (Some(question), Some(turns)) = (&self.question, &self.turns) else {
            return Err(Error::bug("a reply has no question"));
        };
        let mut chat = turns.chat();
        chat.stream = true;
        let (call, reservation) = owner::as_principal(&self.role, self.claims.as_deref(), || {
            let chosen = question.chosen.as_ref().ok_or_else(calling::no_model)?;
            let who = answering::caller(question, &self.stored);
            calling::prepare(who, "ask", chosen, chat, question.tuning.timeout_ms)
        })?;
        self.reservation = Some(reservation);
        Ok(Next::Ask(Box::new(Request::Chat(Box::new(call)))))
    }

    /// Takes up a reply that has called tools before: the calls that were decided meanwhile, and those that a worker that is
    /// gone had begun.
    fn go_on(&mut self, state: &Value) -> Result<Next> {
        let Some(question) = &self.question else { return Err(Error::bug("a reply has no question")) };
        let stored = self.stored;
        let (turns, errands) = owner::as_principal(&self.role, self.claims.as_deref(), || {
            let chosen = question.chosen.as_ref().ok_or_else(calling::no_model)?;
            let history = messages::history(question.workspace, stored.conversation, stored.question)?;
            let draft = prompting::draft(question, chosen, history, acting::passages(state), false)?;
            let prompt = answering::kept(question, &stored, draft.finish(question, chosen, None))?;
            let mut turns = Turns::new(question, prompt);
            turns.restore(state)?;
            let errands = turns.take_up(question.workspace)?;
            Ok((turns, errands))
        })?;
        self.filter = prompting::filter(question, &turns.passages);
        self.shown = turns.words();
        self.written = self.shown.len();
        self.turns = Some(turns);
        self.acted(errands)
    }

    /// What is next once calls were begun: the gateway's, an end for now, or the model's next turn.
    fn acted(&mut self, errands: Vec<Errand>) -> Result<Next> {
        let (Some(question), Some(turns)) = (&self.question, &self.turns) else {
            return Err(Error::bug("a reply has no question"));
        };
        if !errands.is_empty() {
            return Ok(Next::Fetch(errands));
        }
        if !turns.is_awaiting() {
            return self.ask();
        }
        let reply = turns.reply(question)?;
        answering::finish(question, &self.stored, turns, &reply)?;
        Ok(Next::Done)
    }

    /// Takes what the gateway said to an errand; inside a transaction.
    pub fn fetched(&mut self, errand: &Errand, reply: Result<Reply>) -> Result<()> {
        let (Some(question), Some(turns)) = (&self.question, &mut self.turns) else {
            return Err(Error::bug("a reply has no question"));
        };
        let stored = self.stored;
        owner::as_principal(&self.role, self.claims.as_deref(), || {
            turns.fetched(question, errand, reply)?;
            turns.keep(question, &stored)
        })
    }

    /// Takes what came of an errand that a runner had; inside a transaction.
    pub fn called(&mut self, errand: &Errand) -> Result<()> {
        let (Some(question), Some(turns)) = (&self.question, &mut self.turns) else {
            return Err(Error::bug("a reply has no question"));
        };
        let stored = self.stored;
        owner::as_principal(&self.role, self.claims.as_deref(), || {
            turns.called(question.workspace, errand)?;
            turns.keep(question, &stored)
        })
    }

    /// Whether it has taken as long as it may.
    pub fn is_late(&self) -> bool {
        self.turns.as_ref().is_some_and(Turns::is_late)
    }

    /// All errands are done: what is next; inside a transaction.
    pub fn fetched_all(&mut self) -> Result<Next> {
        self.acted(Vec::new())
    }

    fn settle(&mut self, end: &CallEnd) {
        if let Some(reservation) = self.reservation.take() {
            reservation.settle(end.usage.input + end.usage.output, end.cost_nanos);
        }
    }

    /// What it asked for last is on its way.
    pub fn sent(&mut self) {
        self.call.sent();
        if let Some(reservation) = &mut self.reservation {
            reservation.set_sent(true);
        }
    }

    /// Takes the next steps.
    pub fn events(&mut self, events: &[Event]) {
        for event in events {
            self.said.add(event);
            if let Some(reservation) = &mut self.reservation {
                reservation.heard(event);
            }
            if let Event::Text(more) = event
                && self.draft.is_none()
            {
                match &mut self.filter {
                    Some(filter) => self.shown.push_str(&filter.push(more)),
                    None => self.shown.push_str(more),
                }
            }
        }
    }

    /// When its row is to be written again; `None` where there is nothing new.
    pub fn due(&self) -> Option<Instant> {
        let new = self.shown.get(self.written..).unwrap_or_default();
        match new.chars().take(MANY).count() {
            0 => None,
            MANY => Some(self.written_at),
            _ => Some(self.written_at + OFTEN),
        }
    }

    /// Writes what has come so far, as the owner; inside a transaction.
    pub fn write(&self) -> Result<()> {
        spi::run(
            "select helper._stream_reply($1, $2, $3, $4, $5)",
            &[
                self.job.workspace.into(),
                self.stored.conversation.into(),
                self.stored.reply.into(),
                self.shown.as_str().into(),
                self.shown[self.written..].into(),
            ],
        )
    }

    /// It was written.
    pub fn written(&mut self) {
        self.written = self.shown.len();
        self.written_at = Instant::now();
    }

    /// Takes the end of a turn, inside a transaction: calls the tools that the model called, or stores the whole reply. An
    /// error is the job's.
    pub fn ended(&mut self, end: &CallEnd) -> Result<Next> {
        self.settle(end);
        if let Some(error) = &end.error {
            return Err(error.clone());
        }
        if end.outcome == Outcome::Cancelled {
            return Err(Error::new(Kind::Cancelled, "the reply was cancelled"));
        }
        let (Some(question), Some(before)) = (&self.question, &self.turns) else {
            return Err(Error::bug("a reply has no question"));
        };
        // A transaction that fails is tried again with the turn as it was.
        let mut turns = before.clone();
        let stored = self.stored;
        let errands = owner::as_principal(&self.role, self.claims.as_deref(), || {
            if turns.heard(self.said.clone(), end.clone()) {
                let errands = turns.act(question, &stored, true)?;
                turns.keep(question, &stored)?;
                return Ok(Some(errands));
            }
            let reply = turns.reply(question)?;
            answering::finish(question, &stored, &turns, &reply)?;
            Ok(None)
        })?;
        self.turns = Some(turns);
        let Some(errands) = errands else { return Ok(Next::Done) };
        if !self.said.text().trim().is_empty() {
            self.shown.push_str("\n\n");
        }
        self.said = Said::default();
        self.acted(errands)
    }

    /// Stores why there is no reply, or no whole one, inside a transaction.
    pub fn fail(&self, status: &str, error: Option<&Error>) -> Result<()> {
        let calls = self.turns.as_ref().map(Turns::tool_calls);
        messages::fail(self.job.workspace, self.stored.reply, &self.shown, status, error, calls)
    }
}

/// `helper.ask_async`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments)]
fn ask_queued(
    question: Option<&str>,
    conversation: Option<pgrx::Uuid>,
    mode: Option<&str>,
    knowledge: Option<bool>,
    model: Option<&str>,
    workspace: Option<pgrx::Uuid>,
    options: Option<JsonB>,
) -> Reported<pgrx::Uuid> {
    crate::pg::shared::check_preloaded()?;
    let asked = asking::read(Arguments { question, conversation, mode, knowledge, model, workspace, options })?;
    let stored = messages::begin(&asked, "pending")?;
    let mut payload = asked.asked.clone();
    payload["question_id"] = stored.question.to_string().into();
    payload["message_id"] = stored.reply.to_string().into();
    owner::as_owner(|| {
        spi::run(
            "select helper._enqueue($1, 'reply', $2, $3)",
            &[asked.workspace.into(), JsonB(payload).into(), stored.conversation.into()],
        )
    })?;
    Ok(stored.reply)
}
