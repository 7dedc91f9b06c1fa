//! `helper.ask_stream`: each step of a reply is a row, sent to the client as soon as it is there.

use crate::core::chat::{Event, Said};
use crate::core::error::{Error, Kind, Result};
use crate::core::prompt::marks::MarkFilter;
use crate::core::wire::{CallEnd, Item, Reply as Told, Request};
use crate::pg::acting::Turns;
use crate::pg::answering::{caller, finish, look_up, passages_of, prompt};
use crate::pg::asking::{self, Arguments, Question};
use crate::pg::budget::Reservation;
use crate::pg::gateway::{Exchange, Step};
use crate::pg::messages::{self, Citation, Reply, Stored};
use crate::pg::report::Reported;
use crate::pg::searching::Passage;
use crate::pg::{calling, extracting, prompting};
use pgrx::JsonB;
use pgrx::prelude::*;
use serde_json::{Value, json};
use std::collections::VecDeque;

/// Status of a reply whose client stops listening: its row is written again only at the end.
const BEGUN: &str = "cancelled";

/// A reply on its way to the client.
struct Stream {
    question: Question,
    stored: Stored,
    /// Rows that are ready.
    ready: VecDeque<(&'static str, Value)>,
    /// What a language model said and called so far; `None` where the local provider answers.
    turns: Option<Turns>,
    /// Cleans the words of its turns.
    filter: Option<MarkFilter>,
    /// Calls whose end was told.
    told: usize,
    /// What is done next.
    step: Next,
}

enum Next {
    Hear(Box<UnderWay>),
    /// The tools that the model called are to be called.
    Act,
    Done,
}

/// A turn of the model.
struct UnderWay {
    exchange: Exchange,
    reservation: Reservation,
    said: Said,
}

/// What a client is told at first.
fn meta(question: &Question, stored: &Stored, passages: &[Passage]) -> Value {
    let chosen = question.chosen.as_ref().map(|chosen| &chosen.routes[0]);
    json!({
        "conversation_id": stored.conversation.to_string(),
        "question_id": stored.question.to_string(),
        "message_id": stored.reply.to_string(),
        "provider": chosen.map_or("local", |route| &route.provider.name),
        "model": chosen.map_or("extractive", |route| &route.model),
        "mode": question.mode.name,
        "knowledge": question.knowledge,
        "sources": passages.iter().zip(1..).map(|(passage, number)| json!({
            "number": number,
            "source_id": passage.source.to_string(),
            "chunk_id": passage.chunk.to_string(),
            "title": passage.title,
            "heading": passage.heading,
            "score": (passage.score * 1e4).round() / 1e4,
        })).collect::<Vec<_>>(),
    })
}

/// What a client is told at last.
fn done(stored: &Stored, status: &str, reply: Option<&Reply>) -> Value {
    json!({
        "message_id": stored.reply.to_string(),
        "status": status,
        "grounded": reply.map(|reply| reply.grounded),
        "citations": reply.map(|reply| reply.citations.iter().map(Citation::shown).collect::<Vec<_>>()),
        "provider": reply.map(|reply| &reply.provider),
        "model": reply.map(|reply| &reply.model),
        "usage": reply.map(|reply| &reply.usage),
        "tool_calls": reply.map(|reply| &reply.tool_calls),
    })
}

/// Asks the model for its next turn.
fn ask(question: &Question, stored: &Stored, turns: &Turns) -> Result<UnderWay> {
    let chosen = question.chosen.as_ref().ok_or_else(calling::no_model)?;
    let mut chat = turns.chat();
    chat.stream = true;
    let who = caller(question, stored);
    let (call, mut reservation) = calling::prepare(who, "ask", chosen, chat, question.tuning.timeout_ms)?;
    let exchange = Exchange::start(&Request::Chat(Box::new(call)))?;
    reservation.set_sent(true);
    Ok(UnderWay { exchange, reservation, said: Said::default() })
}

impl Stream {
    fn begin(arguments: Arguments) -> Result<Stream> {
        let mut question = asking::read(arguments)?;
        question.keep_tools_of_session()?;
        let found = look_up(&question, None)?;
        let stored = messages::take_turn(&question, false)?;
        let mut ready = VecDeque::new();
        if question.chosen.is_none() {
            ready.push_back(("meta", meta(&question, &stored, found.as_ref().map_or(&[], |found| &found.passages))));
            messages::store(&question, &stored, BEGUN)?;
            let reply = extracting::compose(&question, found.as_ref())?;
            messages::end(&question, &stored, &reply, "done")?;
            ready.push_back(("delta", json!({ "text": reply.text })));
            ready.push_back(("done", done(&stored, "done", Some(&reply))));
            return Ok(Stream { question, stored, ready, turns: None, filter: None, told: 0, step: Next::Done });
        }
        let turns = Turns::new(&question, prompt(&question, &stored, passages_of(found))?);
        ready.push_back(("meta", meta(&question, &stored, &turns.passages)));
        let filter = prompting::filter(&question, &turns.passages);
        let under_way = ask(&question, &stored, &turns)?;
        // While the provider thinks.
        messages::store(&question, &stored, BEGUN)?;
        Ok(Stream {
            question,
            stored,
            ready,
            turns: Some(turns),
            filter,
            told: 0,
            step: Next::Hear(Box::new(under_way)),
        })
    }

    fn next(&mut self) -> Result<Option<(&'static str, Value)>> {
        loop {
            if let Some(row) = self.ready.pop_front() {
                return Ok(Some(row));
            }
            match std::mem::replace(&mut self.step, Next::Done) {
                Next::Done => return Ok(None),
                Next::Act => {
                    flush();
                    self.act()?;
                }
                Next::Hear(mut call) => match hear_next(&mut call.exchange) {
                    Ok(Step::Item(Item::Events(events))) => {
                        self.hear(&mut call, events);
                        self.step = Next::Hear(call);
                    }
                    Ok(Step::End(Told::Chat(end))) => self.end(*call, *end)?,
                    Ok(_) => return Err(calling::another()),
                    Err(error) => self.fail(&call.said, None, &error)?,
                },
            }
        }
    }

    fn hear(&mut self, call: &mut UnderWay, events: Vec<Event>) {
        let mut text = String::new();
        for event in events {
            call.said.add(&event);
            call.reservation.heard(&event);
            if let Event::Text(more) = &event {
                match &mut self.filter {
                    Some(filter) => text.push_str(&filter.push(more)),
                    None => text.push_str(more),
                }
            }
        }
        self.say(text);
    }

    fn say(&mut self, text: String) {
        if !text.is_empty() {
            self.ready.push_back(("delta", json!({ "text": text })));
        }
    }

    fn end(&mut self, call: UnderWay, end: CallEnd) -> Result<()> {
        // What is said is said, whatever is to be written now.
        flush();
        let UnderWay { reservation, said, .. } = call;
        reservation.settle(&end);
        if let Some(error) = end.error.clone().or_else(|| calling::refused(&said, &end)) {
            return self.fail(&said, Some(end.provider), &error);
        }
        let provider = end.provider.clone();
        let Some(turns) = &mut self.turns else { return Ok(()) };
        let has_words = !said.text().trim().is_empty();
        if turns.heard(said, end) {
            // Told before they are made: some take their time.
            for call in turns.open() {
                let told =
                    json!({ "id": call.id, "function": call.name, "arguments": call.arguments, "status": "running" });
                self.ready.push_back(("tool_call", told));
            }
            if has_words {
                self.say("\n\n".into());
            }
            self.step = Next::Act;
            return Ok(());
        }
        match turns.fits(&self.question) {
            Ok(()) => self.close(),
            Err(error) if error.kind == Kind::Provider => self.fail(&Said::default(), Some(provider), &error),
            Err(error) => Err(error),
        }
    }

    fn act(&mut self) -> Result<()> {
        let Some(turns) = &mut self.turns else { return Ok(()) };
        let errands = turns.act(&self.question, &self.stored, false)?;
        turns.fetch(&self.question, &errands)?;
        for call in turns.tool_calls().as_array().into_iter().flatten().skip(self.told) {
            self.ready.push_back(("tool_call", call.clone()));
            self.told += 1;
        }
        if turns.is_awaiting() {
            return self.close();
        }
        self.step = Next::Hear(Box::new(ask(&self.question, &self.stored, turns)?));
        Ok(())
    }

    /// The model has nothing more to say for now.
    fn close(&mut self) -> Result<()> {
        let rest = self.filter.as_mut().map(|filter| filter.finish()).unwrap_or_default();
        self.say(rest);
        let Some(turns) = &self.turns else { return Ok(()) };
        let reply = turns.reply(&self.question)?;
        let status = finish(&self.question, &self.stored, turns, &reply)?;
        self.ready.push_back(("done", done(&self.stored, status, Some(&reply))));
        Ok(())
    }

    /// The error is a row too: what was said before it stays with the client and in the conversation.
    fn fail(&mut self, said: &Said, provider: Option<String>, error: &Error) -> Result<()> {
        let (words, calls) = match &self.turns {
            Some(turns) => (turns.words() + &said.text(), Some(turns.tool_calls())),
            None => (said.text(), None),
        };
        let mut facts = messages::facts(error);
        messages::fail(self.question.workspace, self.stored.reply, &words, "error", Some(facts.clone()), calls)?;
        facts["provider"] = provider.into();
        self.ready.push_back(("error", facts));
        self.ready.push_back(("done", done(&self.stored, "error", None)));
        Ok(())
    }
}

/// What the server talks to its client with (libpq.h); the bindings do not have it.
#[repr(C)]
struct ClientMethods {
    comm_reset: Option<unsafe extern "C" fn()>,
    flush: Option<unsafe extern "C" fn() -> i32>,
    flush_if_writable: Option<unsafe extern "C" fn() -> i32>,
}

unsafe extern "C" {
    static PqCommMethods: *const ClientMethods;
}

/// The model's next words. The client has all those before them when they have to be waited for; what comes together is
/// sent together.
fn hear_next(exchange: &mut Exchange) -> Result<Step> {
    match exchange.poll()? {
        Some(step) => Ok(step),
        None => {
            flush();
            exchange.next()
        }
    }
}

/// Sends the rows that were given out so far, as far as the client takes them. A row is in the server's buffer when the
/// next one is asked for.
fn flush() {
    // SAFETY: set once at the session's begin; the call neither blocks nor raises.
    unsafe {
        if pg_sys::whereToSendOutput == pg_sys::CommandDest::DestRemote
            && let Some(methods) = PqCommMethods.as_ref()
            && let Some(flush) = methods.flush_if_writable
        {
            flush();
        }
    }
}

/// `helper.ask_stream`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments)]
fn ask_streaming(
    question: Option<&str>,
    conversation: Option<pgrx::Uuid>,
    mode: Option<&str>,
    knowledge: Option<bool>,
    model: Option<&str>,
    workspace: Option<pgrx::Uuid>,
    options: Option<JsonB>,
) -> Reported<TableIterator<'static, (name!(event, String), name!(data, JsonB))>> {
    let mut stream = Stream::begin(Arguments { question, conversation, mode, knowledge, model, workspace, options })?;
    Ok(TableIterator::new(std::iter::from_fn(move || match stream.next() {
        Ok(row) => row.map(|(event, data)| (event.to_owned(), JsonB(data))),
        Err(error) => {
            pg_sys::panic::ErrorReport::from(error).report(PgLogLevel::ERROR);
            None
        }
    })))
}
