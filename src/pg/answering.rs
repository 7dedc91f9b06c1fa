//! `helper.ask` and `helper.answer` with the local provider: retrieve, extract, store, reply.

use crate::core::answer::{self, Sentence};
use crate::core::error::{Error, Result};
use crate::core::rank::Method;
use crate::pg::report::Reported;
use crate::pg::searching::{self, Found, LONGEST, Query};
use crate::pg::{owner, spi};
use pgrx::JsonB;
use pgrx::prelude::*;
use serde_json::{Value, json};

/// Passages that the answer is taken from.
const PASSAGES: usize = 6;

const NO_ANSWER: &str = "The documents do not answer this question.";
const NEEDS_KNOWLEDGE: &str =
    "The local provider answers from documents only, and knowledge was switched off for this call.";

/// What a caller asked.
struct Question {
    text: String,
    conversation: Option<pgrx::Uuid>,
    knowledge: bool,
    workspace: pgrx::Uuid,
    k: usize,
    source_types: Option<Vec<String>>,
    filter: Option<Value>,
}

/// A part of a document that the answer quotes.
struct Citation {
    number: i32,
    chunk: pgrx::Uuid,
    source: pgrx::Uuid,
    title: String,
    heading: String,
    start: u32,
    end: u32,
    quote: String,
    score: f64,
}

/// The answer before it is stored.
struct Answer {
    text: String,
    grounded: bool,
    citations: Vec<Citation>,
}

#[allow(clippy::too_many_arguments)]
fn read(
    question: Option<&str>,
    conversation: Option<pgrx::Uuid>,
    mode: Option<&str>,
    knowledge: Option<bool>,
    model: Option<&str>,
    workspace: Option<pgrx::Uuid>,
    options: Option<JsonB>,
) -> Result<Question> {
    let text = question.ok_or_else(|| Error::bad_argument("question is null"))?.trim();
    if text.is_empty() {
        return Err(Error::bad_argument("question is empty"));
    }
    if text.chars().count() > LONGEST {
        return Err(Error::bad_argument(format!("question has more than {LONGEST} characters")));
    }
    let mode = mode.unwrap_or("chat");
    if mode != "chat" {
        return Err(Error::bad_argument(format!("mode \"{mode}\" does not exist"))
            .hint("The local provider has the mode chat."));
    }
    if let Some(model) = model.filter(|model| !matches!(*model, "local" | "auto" | "extractive")) {
        return Err(Error::unknown_object(format!("model \"{model}\" does not exist"))
            .hint("Leave model out to use the local provider."));
    }
    let mut k = PASSAGES;
    let mut source_types = None;
    let mut filter = None;
    let options = options.map_or_else(|| json!({}), |options| options.0);
    let Value::Object(options) = options else { return Err(Error::bad_argument("options is not a JSON object")) };
    for (name, value) in options {
        match (name.as_str(), value) {
            ("k", Value::Number(number)) => {
                k = number
                    .as_u64()
                    .filter(|k| (1..=50).contains(k))
                    .ok_or_else(|| Error::bad_argument("option \"k\" is not between 1 and 50"))?
                    as usize;
            }
            ("source_types", Value::Array(values)) => {
                source_types = Some(
                    values
                        .into_iter()
                        .map(|value| {
                            value
                                .as_str()
                                .map(str::to_owned)
                                .ok_or_else(|| Error::bad_argument("option \"source_types\" is not a list of strings"))
                        })
                        .collect::<Result<_>>()?,
                );
            }
            ("filter", value @ Value::Object(_)) => filter = Some(value),
            ("k" | "source_types" | "filter", _) => {
                return Err(Error::bad_argument(format!("option \"{name}\" has the wrong type")));
            }
            _ => {
                return Err(Error::bad_argument(format!("option \"{name}\" does not exist"))
                    .hint("The local provider has the options k, source_types and filter."));
            }
        }
    }
    let workspace = match conversation {
        Some(id) => conversation_workspace(id, workspace)?,
        None => searching::workspace(workspace)?,
    };
    Ok(Question {
        text: text.to_owned(),
        conversation,
        knowledge: knowledge.unwrap_or(true),
        workspace,
        k,
        source_types,
        filter,
    })
}

/// Workspace of a conversation that the caller may see and go on with.
fn conversation_workspace(id: pgrx::Uuid, workspace: Option<pgrx::Uuid>) -> Result<pgrx::Uuid> {
    let found = spi::first(
        "select c.workspace_id from helper.conversations c where c.id operator(pg_catalog.=) $1 \
         and c.user_id operator(pg_catalog.=) helper.current_user_id() and helper.is_member(c.workspace_id)",
        &[id.into()],
        |row| row.get::<pgrx::Uuid>(1),
    )?;
    match found {
        Some(found) if workspace.is_none_or(|workspace| workspace == found) => Ok(found),
        _ => Err(Error::unknown_object(format!("conversation \"{id}\" does not exist"))),
    }
}

fn compose(question: &Question) -> Result<Answer> {
    if !question.knowledge {
        return Ok(Answer { text: NEEDS_KNOWLEDGE.into(), grounded: false, citations: Vec::new() });
    }
    let found = searching::search(&Query {
        text: &question.text,
        workspace: question.workspace,
        k: question.k,
        source_types: question.source_types.clone(),
        filter: question.filter.clone(),
        method: Method::Hybrid,
    })?;
    let sentences = sentences(&found)?;
    if !answer::answers(&sentences) {
        return Ok(Answer { text: NO_ANSWER.into(), grounded: false, citations: Vec::new() });
    }
    let mut text = String::new();
    let mut citations = Vec::new();
    for (at, number) in answer::choose(&sentences).into_iter().zip(1..) {
        let sentence = &sentences[at];
        let passage = &found.passages[sentence.passage];
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&answer::one_line(&sentence.text));
        text.push_str(&format!(" [{number}]"));
        citations.push(Citation {
            number,
            chunk: passage.chunk_at(sentence.start),
            source: passage.source,
            title: passage.title.clone(),
            heading: passage.heading.clone(),
            start: sentence.start,
            end: sentence.end,
            quote: sentence.text.clone(),
            score: sentence.score(),
        });
    }
    Ok(Answer { grounded: !citations.is_empty(), text, citations })
}

/// The sentences of the passages, with how much of the question's words each has.
fn sentences(found: &Found) -> Result<Vec<Sentence>> {
    let mut sentences = Vec::new();
    for (at, passage) in found.passages.iter().enumerate() {
        // Characters once, so that each sentence is cut out without walking the passage again.
        let bytes: Vec<usize> =
            passage.content.char_indices().map(|(byte, _)| byte).chain([passage.content.len()]).collect();
        let byte = |offset: u32| bytes.get((i64::from(offset) - i64::from(passage.start)).max(0) as usize).copied();
        for scored in &passage.sentences {
            let (Some(start), Some(end)) = (byte(scored.start), byte(scored.end)) else { continue };
            let text = passage.content.get(start..end).unwrap_or_default();
            sentences.push(Sentence {
                passage: at,
                start: scored.start,
                end: scored.end,
                similarity: f64::from(scored.similarity),
                coverage: 0.0,
                passage_score: passage.score,
                text: text.to_owned(),
            });
        }
    }
    let all: f64 = found.weights.values().sum();
    if all > 0.0 {
        for config in &found.configs {
            let texts: Vec<String> = sentences.iter().map(|sentence| sentence.text.clone()).collect();
            let rows = spi::select(
                "select x.n::int, t.lexeme from pg_catalog.unnest($2) with ordinality x (text, n), \
                 pg_catalog.unnest(pg_catalog.to_tsvector($1::pg_catalog.regconfig, x.text)) t",
                &[config.as_str().into(), texts.into()],
                |row| Ok((row.get::<i32>(1)? as usize - 1, row.get::<String>(2)?)),
            )?;
            for (at, lexeme) in rows {
                sentences[at].coverage += found.weight(config, &lexeme) / all;
            }
        }
    }
    Ok(sentences)
}

/// Stores question and answer; everything was checked, so the owner writes it.
fn store(question: &Question, answer: &Answer) -> Result<(pgrx::Uuid, pgrx::Uuid)> {
    let user = spi::first("select helper.current_user_id()", &[], |row| row.opt::<pgrx::Uuid>(1))?
        .flatten()
        .ok_or_else(|| Error::new(crate::core::error::Kind::NotPermitted, "the caller has no identity"))?;
    let conversation = match question.conversation {
        Some(id) => id,
        None => {
            let title: String = answer::one_line(&question.text).chars().take(80).collect();
            spi::change(
                "select helper.create_conversation($1, $2)",
                &[title.into(), question.workspace.into()],
                |row| row.get::<pgrx::Uuid>(1),
            )?
            .into_iter()
            .next()
            .ok_or_else(|| Error::bug("no conversation was created"))?
        }
    };
    owner::as_owner(|| {
        let append = "select helper._append_message($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
        let none: Option<String> = None;
        spi::run(
            append,
            &[
                question.workspace.into(),
                conversation.into(),
                user.into(),
                "user".into(),
                question.text.as_str().into(),
                "done".into(),
                none.clone().into(),
                none.into(),
                Option::<bool>::None.into(),
                Option::<JsonB>::None.into(),
            ],
        )?;
        let message = spi::change(
            append,
            &[
                question.workspace.into(),
                conversation.into(),
                user.into(),
                "assistant".into(),
                answer.text.as_str().into(),
                "done".into(),
                "local".into(),
                "extractive".into(),
                answer.grounded.into(),
                JsonB(usage()).into(),
            ],
            |row| row.get::<pgrx::Uuid>(1),
        )?
        .into_iter()
        .next()
        .ok_or_else(|| Error::bug("no message was stored"))?;
        for citation in &answer.citations {
            spi::run(
                "select helper._append_citation($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                &[
                    question.workspace.into(),
                    message.into(),
                    user.into(),
                    citation.number.into(),
                    citation.source.into(),
                    citation.chunk.into(),
                    (citation.start as i32).into(),
                    (citation.end as i32).into(),
                    citation.quote.as_str().into(),
                    citation.title.as_str().into(),
                    (citation.score as f32).into(),
                ],
            )?;
        }
        Ok((conversation, message))
    })
}

/// The local provider reads no prompt and writes no tokens.
fn usage() -> Value {
    json!({ "input_tokens": 0, "output_tokens": 0, "cost": 0 })
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
    let question = read(question, conversation, mode, knowledge, model, workspace, options)?;
    let answer = compose(&question)?;
    store(&question, &answer)?;
    let mut text = answer.text;
    for (citation, gap) in answer.citations.iter().zip(std::iter::once("\n\n").chain(std::iter::repeat("\n"))) {
        let heading = if citation.heading.is_empty() { String::new() } else { format!(" › {}", citation.heading) };
        text.push_str(&format!("{gap}[{}] {}{heading}", citation.number, citation.title));
    }
    Ok(text)
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
    let question = read(question, conversation, mode, knowledge, model, workspace, options)?;
    let answer = compose(&question)?;
    let (conversation, message) = store(&question, &answer)?;
    let citations: Vec<Value> = answer
        .citations
        .iter()
        .map(|citation| {
            json!({
                "number": citation.number,
                "source_id": citation.source.to_string(),
                "chunk_id": citation.chunk.to_string(),
                "title": citation.title,
                "heading": citation.heading,
                "quote": citation.quote,
                "start_offset": citation.start,
                "end_offset": citation.end,
                "score": (citation.score * 1e4).round() / 1e4,
            })
        })
        .collect();
    let mut reply = PgHeapTuple::new_composite_type("helper.reply").map_err(|error| Error::bug(error.to_string()))?;
    let filled = reply
        .set_by_name("answer", answer.text)
        .and_then(|()| reply.set_by_name("citations", JsonB(Value::Array(citations))))
        .and_then(|()| reply.set_by_name("grounded", answer.grounded))
        .and_then(|()| reply.set_by_name("conversation_id", conversation))
        .and_then(|()| reply.set_by_name("message_id", message))
        .and_then(|()| reply.set_by_name("status", "done"))
        .and_then(|()| reply.set_by_name("provider", "local"))
        .and_then(|()| reply.set_by_name("model", "extractive"))
        .and_then(|()| reply.set_by_name("usage", JsonB(usage())))
        .and_then(|()| reply.set_by_name("tool_calls", JsonB(json!([]))));
    filled.map_err(|error| Error::bug(format!("cannot fill a reply: {error}")))?;
    Ok(reply)
}
