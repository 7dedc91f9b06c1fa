//! `helper.ask` and `helper.answer`: look documents up, have the local provider or a language model answer, store, reply.

use crate::core::chat::Event;
use crate::core::error::{Error, Result};
use crate::core::rank::Method;
use crate::pg::asking::{self, Arguments, Question};
use crate::pg::calling::{self, Caller};
use crate::pg::extracting;
use crate::pg::messages::{self, History, Reply, Stored};
use crate::pg::prompting::{self, Prompt};
use crate::pg::report::Reported;
use crate::pg::searching::{self, Found, Query};
use pgrx::JsonB;
use pgrx::prelude::*;
use serde_json::{Value, json};

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
pub fn prompt(question: &Question, stored: &Stored, found: Option<Found>) -> Result<Prompt> {
    let chosen = question.chosen.as_ref().ok_or_else(calling::no_model)?;
    let history = match question.conversation {
        Some(conversation) => messages::history(question.workspace, conversation, stored.question)?,
        None => History::default(),
    };
    let passages = found.map(|found| found.passages).unwrap_or_default();
    kept(question, stored, prompting::build(question, chosen, caller(question, stored), history, passages)?)
}

/// A prompt whose new summary, if it has one, is kept for the questions to come.
pub fn kept(question: &Question, stored: &Stored, prompt: Prompt) -> Result<Prompt> {
    if let Some((content, covers_to, by)) = &prompt.summary {
        messages::summarised(question.workspace, stored.conversation, content, *covers_to, by)?;
    }
    Ok(prompt)
}

fn respond(arguments: Arguments) -> Result<(Stored, Reply)> {
    let question = asking::read(arguments)?;
    let found = look_up(&question, None)?;
    let stored = messages::begin(&question, "streaming")?;
    let reply = match &question.chosen {
        None => extracting::compose(&question, found.as_ref())?,
        Some(chosen) => {
            let Prompt { chat, passages, .. } = prompt(&question, &stored, found)?;
            let who = caller(&question, &stored);
            let (call, reservation) = calling::prepare(who, "ask", chosen, chat, question.tuning.timeout_ms)?;
            let (said, end) = calling::run(call, reservation, |_: &Event| Ok(()))?;
            prompting::reply(&question, &said.text(), &passages, &end)
        }
    };
    messages::end(&question, &stored, &reply, "done")?;
    Ok((stored, reply))
}

/// The sources of a reply, one a line, below its text.
fn with_sources(reply: &Reply) -> String {
    let mut text = reply.text.clone();
    for (citation, gap) in reply.citations.iter().zip(std::iter::once("\n\n").chain(std::iter::repeat("\n"))) {
        let heading = if citation.heading.is_empty() { String::new() } else { format!(" › {}", citation.heading) };
        text.push_str(&format!("{gap}[{}] {}{heading}", citation.number, citation.title));
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
    let (_, reply) = respond(Arguments { question, conversation, mode, knowledge, model, workspace, options })?;
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
    let (stored, reply) = respond(Arguments { question, conversation, mode, knowledge, model, workspace, options })?;
    let citations = reply.citations.iter().map(messages::Citation::shown).collect();
    let mut row = PgHeapTuple::new_composite_type("helper.reply").map_err(|error| Error::bug(error.to_string()))?;
    let filled = row
        .set_by_name("answer", reply.text)
        .and_then(|()| row.set_by_name("citations", JsonB(Value::Array(citations))))
        .and_then(|()| row.set_by_name("grounded", reply.grounded))
        .and_then(|()| row.set_by_name("conversation_id", stored.conversation))
        .and_then(|()| row.set_by_name("message_id", stored.reply))
        .and_then(|()| row.set_by_name("status", "done"))
        .and_then(|()| row.set_by_name("provider", reply.provider))
        .and_then(|()| row.set_by_name("model", reply.model))
        .and_then(|()| row.set_by_name("usage", JsonB(reply.usage)))
        .and_then(|()| row.set_by_name("tool_calls", JsonB(json!([]))));
    filled.map_err(|error| Error::bug(format!("cannot fill a reply: {error}")))?;
    Ok(row)
}
