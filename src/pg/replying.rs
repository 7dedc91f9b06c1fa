//! A reply that somebody asked for and did not wait for: the worker takes it through the same steps as a session would,
//! as the person who asked, with no transaction open while it waits.

mod ended;
mod queued;

use crate::core::chat::{Event, Purpose, Said};
use crate::core::error::{Error, Result};
use crate::core::prompt::marks::MarkFilter;
use crate::core::wire::{CallEnd, ChatCall, Problem, Reply, Request};
use crate::pg::acting::{self, Errand, Turns};
use crate::pg::asking::{self, Arguments, Question};
use crate::pg::budget::Reservation;
use crate::pg::embedder::{Asking, Call, Embedder};
use crate::pg::jobs::Job;
use crate::pg::messages::{self, Stored};
use crate::pg::prompting::{self, Draft, FOLDING_MS, Sketch};
use crate::pg::session::Led;
use crate::pg::{answering, calling, embedding, extracting, owner, spi};
pub use ended::{Ended, give_up};
use pgrx::JsonB;
use serde_json::Value;
use std::time::{Duration, Instant};

/// A reply's row is written at most this often while it streams,
const OFTEN: Duration = Duration::from_millis(250);
/// or when so many characters came together.
const MANY: usize = 200;
/// Bytes of a reply; each time so many make the time between two writes longer.
const LONG: usize = 8192;

/// What is to be done next with a reply.
pub enum Next {
    /// Ask the gateway this.
    Ask(Box<Request>),
    /// Wait for these calls of tools: the gateway is to make its own, and runners take theirs.
    Fetch(Vec<Errand>),
    /// It is stored; the job is done.
    Done,
}

/// Who asked, and what led to it.
struct Asker {
    role: String,
    claims: Option<String>,
    led: Led,
}

impl Asker {
    /// Does something as they.
    fn does<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.led.does(|| owner::as_principal(&self.role, self.claims.as_deref(), work))
    }
}

/// A reply on its way.
pub struct Replying {
    pub job: Job,
    asker: Asker,
    payload: Value,
    /// Bytes of attachments: its question's, in base64, and those of earlier ones.
    weight: usize,
    text: String,
    question: Option<Question>,
    stored: Stored,
    /// The question on its way to the embedder, and what came of it.
    pub call: Call,
    /// The prompt, while its texts are counted.
    sketch: Option<Sketch>,
    /// The prompt, while the model sums up what falls out of its window.
    draft: Option<Draft>,
    /// What the model said and called so far.
    turns: Option<Turns>,
    /// What was set aside for the summary or the next turn.
    reservation: Option<Reservation>,
    filter: Option<MarkFilter>,
    said: Said,
    /// The end of the last turn, while the gateway is asked whether its value fits the schema; and what it said.
    to_check: Option<CallEnd>,
    problems: Option<Vec<Problem>>,
    /// How often the end of a turn could not be stored.
    stores: u32,
    /// A worker that is gone had written of it.
    pub was_begun: bool,
    /// What of it may be shown, and how many bytes of that are stored.
    shown: String,
    written: usize,
    written_at: Instant,
    /// Somebody held its row when it was last to be written.
    is_held: bool,
    /// A step of a workflow waits for it.
    is_once: bool,
    /// Requests of such a one that were sent and whose answers are not stored.
    asked: u32,
}

/// See [`Replying::check_free`].
fn check_free(workspace: pgrx::Uuid, reply: pgrx::Uuid) -> Result<()> {
    let sql = "select helper._is_free($1, $2)";
    let free = spi::change(sql, &[workspace.into(), reply.into()], |row| row.get::<bool>(1))?;
    if free == [true] { Ok(()) } else { Err(Error::not_ready("somebody's transaction holds the reply")) }
}

impl Replying {
    /// Loads a job's question, as the owner; `None` where the reply is not wanted any more.
    pub fn load(job: Job) -> Result<Option<Replying>> {
        let found = spi::change(
            "select j.principal_role::text, j.principal_claims::text, j.depth, j.run_id, j.payload, q.content, q.id, r.id, \
               r.conversation_id, j.asked_at is not null, \
               exists (select from helper.workflow_waits w where w.workspace_id = r.workspace_id and w.subject = r.id), \
               (select least(coalesce(sum(octet_length(a.content)), 0), $3) \
                from helper.messages m \
                join helper.message_attachments a on a.workspace_id = m.workspace_id and a.message_id = m.id \
                where m.workspace_id = r.workspace_id and m.conversation_id = r.conversation_id and m.id < q.id), \
               r.status = 'streaming' and not exists ( \
                 select from helper.reply_states s where s.workspace_id = r.workspace_id and s.message_id = r.id) \
             from helper.jobs j \
             join helper.messages q on q.workspace_id = j.workspace_id and q.id = (j.payload ->> 'question_id')::uuid \
             join helper.messages r on r.workspace_id = j.workspace_id and r.id = (j.payload ->> 'message_id')::uuid \
             where j.workspace_id = $1 and j.id = $2 and r.status in ('pending', 'streaming')",
            &[job.workspace.into(), job.id.into(), messages::AGAIN.into()],
            |row| {
                let led = Led { depth: row.get(3)?, run: row.opt(4)? };
                Ok((
                    Asker { role: row.get(1)?, claims: row.opt(2)?, led },
                    row.get::<JsonB>(5)?.0,
                    row.get::<String>(6)?,
                    Stored { question: row.get(7)?, reply: row.get(8)?, conversation: row.get(9)? },
                    (row.get::<bool>(10)?, row.get::<bool>(11)?),
                    row.opt::<i64>(12)?.unwrap_or_default() as usize,
                    row.get::<bool>(13)?,
                ))
            },
        )?
        .pop();
        if let Some((_, _, _, stored, ..)) = &found {
            check_free(job.workspace, stored.reply)?;
        }
        Ok(found.map(|(asker, payload, text, stored, (is_asked, is_once), again, was_begun)| Replying {
            job,
            was_begun,
            asker,
            weight: again + attached(&payload),
            payload,
            text,
            question: None,
            stored,
            call: Call::new(Embedder::local()),
            sketch: None,
            draft: None,
            turns: None,
            reservation: None,
            filter: None,
            said: Said::default(),
            to_check: None,
            problems: None,
            stores: 0,
            shown: String::new(),
            written: 0,
            written_at: Instant::now(),
            is_held: false,
            is_once: is_once || is_asked,
            asked: is_asked.into(),
        }))
    }

    /// The reply's message.
    pub fn message(&self) -> pgrx::Uuid {
        self.stored.reply
    }

    /// Bytes of attachments that it holds.
    pub fn weight(&self) -> usize {
        self.weight
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
        // What goes with the question is long, and held once.
        let options = self.payload.get_mut("options").map(Value::take).filter(Value::is_object);
        let text = |name: &str| self.payload.get(name).and_then(Value::as_str);
        let question = self.asker.does(|| {
            asking::read(Arguments {
                question: Some(&self.text),
                conversation: Some(self.stored.conversation),
                mode: text("mode"),
                knowledge: self.payload.get("knowledge").and_then(Value::as_bool),
                model: text("model"),
                workspace: Some(self.job.workspace),
                options: options.map(JsonB),
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

    /// Looks documents up and begins the prompt, as the person who asked; inside a transaction.
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
        let sketched = self.asker.does(|| {
            let found = answering::look_up(question, vector)?;
            if question.chosen.is_none() {
                let reply = extracting::compose(question, found.as_ref())?;
                messages::end(question, &stored, &reply, "done")?;
                return Ok(None);
            }
            let chosen = question.chosen.as_ref().ok_or_else(calling::no_model)?;
            let history = messages::history(question.workspace, stored.conversation, stored.question)?;
            let sketch = prompting::sketch(question, chosen, history, answering::passages_of(found));
            let counting = sketch.counting(chosen);
            Ok(Some((sketch, counting)))
        })?;
        match sketched {
            None => Ok(Next::Done),
            Some((sketch, None)) => self.plan(sketch, None),
            Some((sketch, Some(counting))) => {
                self.sketch = Some(sketch);
                Ok(Next::Ask(Box::new(counting)))
            }
        }
    }

    /// Takes the tokens of the prompt's texts; inside a transaction.
    pub fn counted(&mut self, counts: Vec<u32>) -> Result<Next> {
        let Some(sketch) = self.sketch.take() else { return Err(calling::another()) };
        self.plan(sketch, Some(counts))
    }

    /// Plans the prompt, as the person who asked.
    fn plan(&mut self, sketch: Sketch, counts: Option<Vec<u32>>) -> Result<Next> {
        let Some(question) = &self.question else { return Err(Error::bug("a reply has no question")) };
        let stored = self.stored;
        let (draft, folding) = self.asker.does(|| {
            let chosen = question.chosen.as_ref().ok_or_else(calling::no_model)?;
            let draft = sketch.plan(chosen, counts)?;
            // Where there is no budget for it, it is done without the model.
            let folding = draft.folding(chosen).and_then(|chat| {
                let who = answering::caller(question, &stored);
                let prepared = calling::prepare(who, "summary", chosen, chat, Some(FOLDING_MS)).ok();
                prepared.map(|(call, reservation)| (ChatCall { once: self.is_once, ..call }, reservation))
            });
            Ok((draft, folding))
        })?;
        let Some((call, reservation)) = folding else { return self.prompted(draft, None) };
        self.draft = Some(draft);
        self.reservation = Some(reservation);
        Ok(Next::Ask(Box::new(Request::Chat(Box::new(call)))))
    }

    /// Takes the end of the summary; what the model did not sum up is summed up without it. Inside a transaction.
    pub fn folded(&mut self, end: &CallEnd) -> Result<Next> {
        self.settle(end);
        let said = std::mem::take(&mut self.said);
        let Some(draft) = self.draft.take() else { return Err(Error::bug("a reply has no prompt")) };
        let told = end.error.is_none() && calling::refused(&said, end).is_none();
        self.prompted(draft, told.then(|| said.text()))
    }

    /// Finishes the prompt, as the person who asked.
    fn prompted(&mut self, draft: Draft, summary: Option<String>) -> Result<Next> {
        let Some(question) = &self.question else { return Err(Error::bug("a reply has no question")) };
        let stored = self.stored;
        let turns = self.asker.does(|| {
            let chosen = question.chosen.as_ref().ok_or_else(calling::no_model)?;
            let prompt = answering::kept(question, &stored, draft.finish(question, chosen, summary))?;
            Ok(Turns::new(question, prompt))
        })?;
        self.filter = prompting::filter(question, &turns.passages);
        let (next, reservation) = self.ask(&turns)?;
        self.turns = Some(turns);
        self.reservation = Some(reservation);
        Ok(next)
    }

    /// Asks the model for its next turn, as the person who asked.
    fn ask(&self, turns: &Turns) -> Result<(Next, Reservation)> {
        let Some(question) = &self.question else { return Err(Error::bug("a reply has no question")) };
        let mut chat = turns.chat();
        chat.stream = true;
        let (call, reservation) = self.asker.does(|| {
            let chosen = question.chosen.as_ref().ok_or_else(calling::no_model)?;
            let who = answering::caller(question, &self.stored);
            calling::prepare(who, "ask", chosen, chat, question.tuning.timeout_ms)
        })?;
        Ok((Next::Ask(Box::new(Request::Chat(Box::new(ChatCall { once: self.is_once, ..call })))), reservation))
    }

    /// Takes up a reply that has called tools before: the calls that were decided meanwhile, and those that a worker that is
    /// gone had begun.
    fn go_on(&mut self, state: &Value) -> Result<Next> {
        let Some(question) = &self.question else { return Err(Error::bug("a reply has no question")) };
        let stored = self.stored;
        let (turns, errands) = self.asker.does(|| {
            let chosen = question.chosen.as_ref().ok_or_else(calling::no_model)?;
            let history = messages::history(question.workspace, stored.conversation, stored.question)?;
            let draft = prompting::sketch(question, chosen, history, acting::passages(state)).plan(chosen, None)?;
            let prompt = answering::kept(question, &stored, draft.finish(question, chosen, None))?;
            let mut turns = Turns::new(question, prompt);
            turns.restore(state)?;
            let errands = turns.take_up(question.workspace)?;
            Ok((turns, errands))
        })?;
        self.filter = prompting::filter(question, &turns.passages);
        self.shown = turns.words();
        self.written = self.shown.len();
        let (next, reservation) = self.acted(&turns, errands)?;
        self.turns = Some(turns);
        self.reservation = reservation;
        Ok(next)
    }

    /// What is next once calls were begun: the gateway's, an end for now, or the model's next turn.
    fn acted(&self, turns: &Turns, errands: Vec<Errand>) -> Result<(Next, Option<Reservation>)> {
        let Some(question) = &self.question else { return Err(Error::bug("a reply has no question")) };
        if !errands.is_empty() {
            return Ok((Next::Fetch(errands), None));
        }
        if !turns.is_awaiting() {
            let (next, reservation) = self.ask(turns)?;
            return Ok((next, Some(reservation)));
        }
        let reply = turns.reply(question)?;
        answering::finish(question, &self.stored, turns, &reply)?;
        Ok((Next::Done, None))
    }

    /// Takes what the gateway said to an errand; inside a transaction.
    pub fn fetched(&mut self, errand: &Errand, reply: Result<Reply>) -> Result<()> {
        let (Some(question), Some(turns)) = (&self.question, &mut self.turns) else {
            return Err(Error::bug("a reply has no question"));
        };
        let stored = self.stored;
        self.asker.does(|| {
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
        self.asker.does(|| {
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
        let Some(turns) = &self.turns else { return Err(Error::bug("a reply has no question")) };
        let (next, reservation) = self.acted(turns, Vec::new())?;
        self.reservation = reservation;
        Ok(next)
    }

    /// Has the budgets know what a turn, or the summary, took, however often its end is stored.
    pub fn settle(&mut self, end: &CallEnd) {
        if let Some(reservation) = self.reservation.take() {
            reservation.settle(end);
        }
    }

    /// Gives back what was set aside, but for what it is held to have taken.
    pub fn give_back(&mut self) {
        self.reservation = None;
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

    /// When its row is to be written again; `None` where there is nothing new. All of it is written each time, so that the
    /// longer it is the more has to come, or the longer it takes: what is written in all is a few times its length.
    pub fn due(&self) -> Option<Instant> {
        let new = self.shown.get(self.written..).unwrap_or_default();
        let many = MANY.max(self.written / 4);
        let often = OFTEN * (1 + self.written / LONG) as u32;
        match new.chars().take(many).count() {
            0 => None,
            count if count == many && !self.is_held => Some(self.written_at),
            _ => Some(self.written_at + often),
        }
    }

    /// Writes what has come so far, as the owner; inside a transaction. `false` where somebody holds its row.
    pub fn write(&self) -> Result<bool> {
        let written = spi::change(
            "select helper._stream_reply($1, $2, $3, $4, $5)",
            &[
                self.job.workspace.into(),
                self.stored.conversation.into(),
                self.stored.reply.into(),
                self.shown.as_str().into(),
                self.shown[self.written..].into(),
            ],
            |row| row.get::<bool>(1),
        )?;
        Ok(written == [true])
    }

    /// It was written, or was to be.
    pub fn written(&mut self, is_written: bool) {
        if is_written {
            self.written = self.shown.len();
        }
        self.is_held = !is_written;
        self.written_at = Instant::now();
    }

    /// Whether nobody holds the row that its end is written to, whom the worker must not wait for: others' replies would too.
    /// As the owner, inside a transaction. Errors: 55000
    pub fn check_free(&self) -> Result<()> {
        check_free(self.job.workspace, self.stored.reply)
    }

    /// Whether the model is asked once at most, as a step of a workflow waits for it.
    pub fn is_once(&self) -> bool {
        self.is_once
    }

    /// Whether it may have been asked, and what it said is not stored.
    pub fn is_asked(&self) -> bool {
        self.asked > 0
    }

    /// Whether a request has to be noted before it is sent.
    pub fn notes(&self, request: &Request) -> bool {
        self.is_once && matches!(request, Request::Chat(_))
    }

    /// Notes that the model is asked now, or that what it said is stored; inside a transaction.
    pub fn note_asked(&self, is_asked: bool) -> Result<()> {
        owner::as_owner(|| {
            spi::run(
                "update helper.jobs j set asked_at = case when $3 then clock_timestamp() end \
                 where j.workspace_id = $1 and j.id = $2",
                &[self.job.workspace.into(), self.job.id.into(), is_asked.into()],
            )
        })
    }

    /// It was noted that the model is asked.
    pub fn asking(&mut self) {
        self.asked += 1;
    }

    /// The request never left.
    pub fn not_asked(&mut self) {
        self.asked = self.asked.saturating_sub(1);
    }
}

/// Bytes of what goes with a question, as it was given.
fn attached(payload: &Value) -> usize {
    let attachments = payload.pointer("/options/attachments").and_then(Value::as_array);
    let data =
        attachments.into_iter().flatten().filter_map(|attachment| attachment.get("data").and_then(Value::as_str));
    data.map(str::len).sum()
}
