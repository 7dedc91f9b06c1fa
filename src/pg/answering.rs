//! `helper.ask` and `helper.answer`: look documents up, have the local provider or a language model answer, store, reply.

use crate::core::chat::Event;
use crate::core::error::{Error, Result};
use crate::core::rank::Method;
use crate::pg::acting::Turns;
use crate::pg::asking::{self, Arguments, Question};
use crate::pg::calling::{self, Caller};
use crate::pg::messages::{self, History, Reply, Stored};
use crate::pg::prompting::{self, Prompt};
use crate::pg::report::Reported;
use crate::pg::searching::{self, Found, Passage, Query};
use crate::pg::{extracting, owner, spi};
use pgrx::JsonB;
use pgrx::prelude::*;
use serde_json::Value;

/// What the documents say about a question, where they are to be looked up.
pub fn look_up(question: &Question, vector: Option<(String, Vec<f32>)>) -> Result<Option<Found>> {
    if !question.knowledge {
        return Ok(None);
    }
    let text = question.query();
    let query = Query {
        text: &text,
        workspace: question.workspace,
        k: question.k,
        source_types: question.source_types.clone(),
        filter: question.filter.clone(),
        method: Method::Hybrid,
    };
    match vector {
        Some(vector) => searching::search_with(&query, Some(vector)),
        None => searching::search(&query),
    }
    .map(Some)
}

/// The passages of a search, if there was one.
pub fn passages_of(found: Option<Found>) -> Vec<Passage> {
    found.map(|found| found.passages).unwrap_or_default()
}

/// Whose call a question's is.
pub fn caller(question: &Question, stored: &Stored) -> Caller {
    Caller {
        workspace: question.workspace,
        user: Some(question.user),
        conversation: Some(stored.conversation),
        message: Some(stored.reply),
    }
}

/// The prompt of a stored question.
pub fn prompt(question: &Question, stored: &Stored, passages: Vec<Passage>) -> Result<Prompt> {
    let chosen = question.chosen.as_ref().ok_or_else(calling::no_model)?;
    let history = match question.conversation {
        Some(conversation) => messages::history(question.workspace, conversation, stored.question)?,
        None => History::default(),
    };
    kept(question, stored, prompting::build(question, chosen, caller(question, stored), history, passages)?)
}

/// A prompt whose new summary, if it has one, is kept for the questions to come.
pub fn kept(question: &Question, stored: &Stored, prompt: Prompt) -> Result<Prompt> {
    if let Some((summary, covers_to, by)) = &prompt.summary {
        messages::summarised(question.workspace, stored.conversation, summary, *covers_to, by)?;
    }
    Ok(prompt)
}

/// A stored question's reply, with how it stands.
fn respond(arguments: Arguments) -> Result<(Stored, Reply, &'static str)> {
    let mut question = asking::read(arguments)?;
    question.keep_tools_of_session()?;
    let found = look_up(&question, None)?;
    let stored = messages::begin(&question, "streaming")?;
    let Some(chosen) = &question.chosen else {
        let reply = extracting::compose(&question, found.as_ref())?;
        messages::end(&question, &stored, &reply, "done")?;
        return Ok((stored, reply, "done"));
    };
    let who = caller(&question, &stored);
    let mut turns = Turns::new(&question, prompt(&question, &stored, passages_of(found))?);
    loop {
        let (call, reservation) = calling::prepare(who, "ask", chosen, turns.chat(), question.tuning.timeout_ms)?;
        let (said, end) = calling::run(call, reservation, |_: &Event| Ok(()))?;
        if let Some(error) = calling::refused(&said, &end) {
            return Err(error);
        }
        if !turns.heard(said, end) {
            break;
        }
        let errands = turns.act(&question, &stored, false)?;
        turns.fetch(&question, &errands)?;
        if turns.is_awaiting() {
            break;
        }
    }
    turns.fits(&question)?;
    let reply = turns.reply(&question)?;
    let status = finish(&question, &stored, &turns, &reply)?;
    Ok((stored, reply, status))
}

/// Stores a reply whose model has nothing to say any more, or not before a call was approved; tells which.
pub fn finish(question: &Question, stored: &Stored, turns: &Turns, reply: &Reply) -> Result<&'static str> {
    let status = if turns.is_awaiting() { "awaiting_confirmation" } else { "done" };
    if turns.is_awaiting() {
        turns.keep(question, stored)?;
    }
    messages::end(question, stored, reply, status)?;
    if turns.is_awaiting() {
        // What it waits for may have been decided while it was still speaking.
        owner::as_owner(|| {
            spi::run("select helper._resume_reply($1, $2)", &[question.workspace.into(), stored.reply.into()])
        })?;
    }
    Ok(status)
}

/// The sources of a reply, one a line, below its text, and the calls that wait for a confirmation.
fn with_sources(reply: &Reply) -> String {
    let mut text = reply.text.clone();
    for (citation, gap) in reply.citations.iter().zip(std::iter::once("\n\n").chain(std::iter::repeat("\n"))) {
        let heading = if citation.heading.is_empty() { String::new() } else { format!(" › {}", citation.heading) };
        text.push_str(&format!("{gap}[{}] {}{heading}", citation.number, citation.title));
    }
    for call in reply.tool_calls.as_array().into_iter().flatten() {
        if call["status"] == "awaiting_confirmation" {
            let gap = if text.is_empty() { "" } else { "\n\n" };
            let word = |name: &str| call[name].as_str().unwrap_or_default();
            text.push_str(&format!(
                "{gap}{} waits for confirmation: select helper.confirm('{}');",
                word("function"),
                word("call")
            ));
        }
    }
    text
}

/// `helper.ask`: the answer and a list of its sources.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments)]
fn ask_question(
    question: Option<&str>,
    conversation: Option<pgrx::Uuid>,
    mode: Option<&str>,
    knowledge: Option<bool>,
    model: Option<&str>,
    workspace: Option<pgrx::Uuid>,
    options: Option<JsonB>,
) -> Reported<String> {
    let (_, reply, _) = respond(Arguments { question, conversation, mode, knowledge, model, workspace, options })?;
    Ok(with_sources(&reply))
}

/// `helper.answer`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments)]
fn answer_question(
    question: Option<&str>,
    conversation: Option<pgrx::Uuid>,
    mode: Option<&str>,
    knowledge: Option<bool>,
    model: Option<&str>,
    workspace: Option<pgrx::Uuid>,
    options: Option<JsonB>,
) -> Reported<pgrx::composite_type!('static, "helper.reply")> {
    let (stored, reply, status) =
        respond(Arguments { question, conversation, mode, knowledge, model, workspace, options })?;
    let citations = reply.citations.iter().map(messages::Citation::shown).collect();
    let mut row = PgHeapTuple::new_composite_type("helper.reply").map_err(|error| Error::bug(error.to_string()))?;
    let filled = row
        .set_by_name("answer", reply.text)
        .and_then(|()| row.set_by_name("citations", JsonB(Value::Array(citations))))
        .and_then(|()| row.set_by_name("grounded", reply.grounded))
        .and_then(|()| row.set_by_name("conversation_id", stored.conversation))
        .and_then(|()| row.set_by_name("message_id", stored.reply))
        .and_then(|()| row.set_by_name("status", status))
        .and_then(|()| row.set_by_name("provider", reply.provider))
        .and_then(|()| row.set_by_name("model", reply.model))
        .and_then(|()| row.set_by_name("usage", JsonB(reply.usage)))
        .and_then(|()| row.set_by_name("tool_calls", JsonB(reply.tool_calls)));
    filled.map_err(|error| Error::bug(format!("cannot fill a reply: {error}")))?;
    Ok(row)
}
