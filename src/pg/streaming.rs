//! `helper.ask_stream`: each step of a reply is a row, sent to the client as soon as it is there.

use crate::core::chat::{Event, Said};
use crate::core::error::{Error, Result};
use crate::core::prompt::marks::MarkFilter;
use crate::core::wire::{CallEnd, Item, Reply as Told, Request};
use crate::pg::answering::{caller, look_up, prompt};
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
    /// What is under way; `None` once it has ended.
    call: Option<UnderWay>,
}

struct UnderWay {
    exchange: Exchange,
    reservation: Reservation,
    passages: Vec<Passage>,
    filter: Option<MarkFilter>,
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
    })
}

impl Stream {
    fn begin(arguments: Arguments) -> Result<Stream> {
        let question = asking::read(arguments)?;
        let found = look_up(&question, None)?;
        let stored = messages::take_turn(&question, false)?;
        let mut ready = VecDeque::new();
        let Some(chosen) = &question.chosen else {
            ready.push_back(("meta", meta(&question, &stored, found.as_ref().map_or(&[], |found| &found.passages))));
            messages::store(&question, &stored, BEGUN)?;
            let reply = extracting::compose(&question, found.as_ref())?;
            messages::end(&question, &stored, &reply, "done")?;
            ready.push_back(("delta", json!({ "text": reply.text })));
            ready.push_back(("done", done(&stored, "done", Some(&reply))));
            return Ok(Stream { question, stored, ready, call: None });
        };
        let mut prompt = prompt(&question, &stored, found)?;
        prompt.chat.stream = true;
        ready.push_back(("meta", meta(&question, &stored, &prompt.passages)));
        let who = caller(&question, &stored);
        let (call, mut reservation) = calling::prepare(who, "ask", chosen, prompt.chat, question.tuning.timeout_ms)?;
        let filter = prompting::filter(&question, &prompt.passages);
        let exchange = Exchange::start(&Request::Chat(Box::new(call)))?;
        reservation.set_sent(true);
        // While the provider thinks.
        messages::store(&question, &stored, BEGUN)?;
        let call = UnderWay { exchange, reservation, passages: prompt.passages, filter, said: Said::default() };
        Ok(Stream { question, stored, ready, call: Some(call) })
    }

    fn next(&mut self) -> Result<Option<(&'static str, Value)>> {
        loop {
            if let Some(row) = self.ready.pop_front() {
                return Ok(Some(row));
            }
            let Some(call) = &mut self.call else { return Ok(None) };
            match call.exchange.next() {
                Ok(Step::Item(Item::Events(events))) => {
                    let mut text = String::new();
                    for event in events {
                        call.said.add(&event);
                        call.reservation.heard(&event);
                        if let Event::Text(more) = &event {
                            match &mut call.filter {
                                Some(filter) => text.push_str(&filter.push(more)),
                                None => text.push_str(more),
                            }
                        }
                    }
                    if !text.is_empty() {
                        self.ready.push_back(("delta", json!({ "text": text })));
                    }
                }
                Ok(Step::End(Told::Chat(end))) => self.end(*end)?,
                Ok(_) => return Err(calling::another()),
                Err(error) => self.fail(None, &error)?,
            }
        }
    }

    fn end(&mut self, end: CallEnd) -> Result<()> {
        if let Some(error) = end.error.clone() {
            return self.fail(Some(end), &error);
        }
        let Some(call) = self.call.take() else { return Ok(()) };
        call.reservation.settle(end.usage.input + end.usage.output, end.cost_nanos);
        let rest = call.filter.map(|mut filter| filter.finish()).unwrap_or_default();
        if !rest.is_empty() {
            self.ready.push_back(("delta", json!({ "text": rest })));
        }
        let reply = prompting::reply(&self.question, &call.said.text(), &call.passages, &end);
        messages::end(&self.question, &self.stored, &reply, "done")?;
        self.ready.push_back(("done", done(&self.stored, "done", Some(&reply))));
        Ok(())
    }

    /// The error is a row too: what was said before it stays with the client and in the conversation.
    fn fail(&mut self, end: Option<CallEnd>, error: &Error) -> Result<()> {
        let Some(call) = self.call.take() else { return Ok(()) };
        if let Some(end) = &end {
            call.reservation.settle(end.usage.input + end.usage.output, end.cost_nanos);
        }
        messages::fail(self.question.workspace, self.stored.reply, &call.said.text(), "error", Some(error))?;
        let mut facts = messages::facts(error);
        facts["provider"] = end.map(|end| end.provider).into();
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

/// Sends the rows that were given out so far, as far as the client takes them.
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
    Ok(TableIterator::new(std::iter::from_fn(move || {
        // The row before this one is in the server's buffer by now.
        flush();
        match stream.next() {
            Ok(row) => row.map(|(event, data)| (event.to_owned(), JsonB(data))),
            Err(error) => {
                pg_sys::panic::ErrorReport::from(error).report(PgLogLevel::ERROR);
                None
            }
        }
    })))
}
