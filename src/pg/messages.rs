//! Messages of conversations: read for a prompt, written by the extension after a check.

use crate::core::chat::{Media, Part, Role};
use crate::core::error::{Error, Result};
use crate::core::prompt::summary;
use crate::pg::asking::Question;
use crate::pg::{identity, owner, spi};
use pgrx::JsonB;
use serde_json::{Value, json};

/// Earlier messages that are looked at for a prompt.
const MOST: i64 = 400;

/// Bytes of earlier attachments that are sent again, the latest first.
pub const AGAIN: i64 = 6 * 1024 * 1024;

/// A part of a document that a reply rests on.
pub struct Citation {
    pub number: i32,
    pub chunk: pgrx::Uuid,
    pub source: pgrx::Uuid,
    pub title: String,
    pub heading: String,
    pub start: u32,
    pub end: u32,
    pub quote: String,
    pub score: f64,
}

impl Citation {
    /// As replies show it.
    pub fn shown(&self) -> Value {
        json!({
            "number": self.number,
            "source_id": self.source.to_string(),
            "chunk_id": self.chunk.to_string(),
            "title": self.title,
            "heading": self.heading,
            "quote": self.quote,
            "start_offset": self.start,
            "end_offset": self.end,
            "score": (self.score * 1e4).round() / 1e4,
        })
    }
}

/// A whole reply.
pub struct Reply {
    pub text: String,
    /// Whether the documents answer; `None` where that cannot be told.
    pub grounded: Option<bool>,
    pub citations: Vec<Citation>,
    pub provider: String,
    pub model: String,
    pub usage: Value,
    /// Tools that were called, as replies show them.
    pub tool_calls: Value,
}

/// Where a question and its reply are stored.
#[derive(Clone, Copy)]
pub struct Stored {
    pub conversation: pgrx::Uuid,
    pub question: pgrx::Uuid,
    pub reply: pgrx::Uuid,
}

/// A turn of the conversation so far.
pub struct Turn {
    /// Its last message.
    pub last: pgrx::Uuid,
    pub said: Vec<(Role, String)>,
    /// What went with its question.
    pub attached: Vec<Part>,
}

/// What was said before the turns that are sent.
pub struct Summary {
    pub content: String,
    /// Of its frame: the same each time, so that what begins with it is found in the provider's cache.
    pub seal: String,
}

/// What was said before, and the summary of what was said before that.
#[derive(Default)]
pub struct History {
    pub summary: Option<Summary>,
    pub turns: Vec<Turn>,
}

/// Stores a question and the place of its reply, which has `status` for now.
pub fn begin(question: &Question, status: &str) -> Result<Stored> {
    let stored = take_turn(question, status == "pending")?;
    store(question, &stored, status)?;
    Ok(stored)
}

/// Takes the turn in the conversation, and says where question and reply will be stored: in a new one where none is given.
/// Another reply that is under way is waited for, or refused, as the question says; one that may wait queues behind it.
pub fn take_turn(question: &Question, may_queue: bool) -> Result<Stored> {
    let Some(conversation) = question.conversation else {
        return Ok(places(pgrx::Uuid::from_bytes(identity::new_id())));
    };
    let busy = match (question.waits, may_queue) {
        (false, _) => "refuse",
        (true, true) => "queue",
        (true, false) => "wait",
    };
    owner::as_owner(|| {
        spi::run("select helper._take_turn($1, $2, $3)", &[question.workspace.into(), conversation.into(), busy.into()])
    })?;
    // Not before: who waited comes after those who did not.
    Ok(places(conversation))
}

/// Where a question and its reply will be stored: in this order, and so are their ids.
fn places(conversation: pgrx::Uuid) -> Stored {
    let question = pgrx::Uuid::from_bytes(identity::new_id());
    let reply = pgrx::Uuid::from_bytes(identity::new_id());
    Stored { conversation, question, reply }
}

/// Stores a question and the place of its reply, whose turn it is.
pub fn store(question: &Question, stored: &Stored, status: &str) -> Result<()> {
    let title = Some(summary::title(&question.text)).filter(|title| !title.trim().is_empty());
    if question.conversation.is_none() {
        // As the caller, so that policies of the application's own are heard.
        spi::run(
            "insert into helper.conversations (workspace_id, id, user_id, title) values ($1, $2, $3, $4)",
            &[question.workspace.into(), stored.conversation.into(), question.user.into(), title.clone().into()],
        )?;
    }
    let provider = question.chosen.as_ref().map_or("local", |chosen| &chosen.routes[0].provider.name);
    let model = question.chosen.as_ref().map_or("extractive", |chosen| &chosen.routes[0].model);
    let rows = owner::as_owner(|| {
        spi::change(
            "with held as ( \
               update helper.conversations c set message_count = c.message_count + 2, \
                 title = case when c.message_count = 0 then coalesce(c.title, $12) else c.title end, \
                 last_message_at = case when $11 then c.last_message_at else clock_timestamp() end \
               where c.workspace_id = $1 and c.id = $2 and c.user_id = $3 returning 1 \
             ) \
             insert into helper.messages (workspace_id, conversation_id, id, role, content, status, completed_at, provider, model, mode) \
             select $1, $2, m.* from held cross join lateral (values \
               ($4, 'user', $5, 'done', clock_timestamp(), null, null, null), \
               ($6, 'assistant', '', $7, case when $7 = 'cancelled' then clock_timestamp() end, $8, $9, $10)) m \
             returning true",
            &[
                question.workspace.into(),
                stored.conversation.into(),
                question.user.into(),
                stored.question.into(),
                question.text.as_str().into(),
                stored.reply.into(),
                status.into(),
                provider.into(),
                model.into(),
                question.mode.name.as_str().into(),
                // What an index holds stays as it was inserted a moment ago.
                question.conversation.is_none().into(),
                title.into(),
            ],
            |row| row.get::<bool>(1),
        )
    })?;
    match rows.len() {
        2 => attach(question, stored),
        _ => Err(Error::unknown_object(format!("conversation \"{}\" does not exist", stored.conversation))),
    }
}

/// Keeps what goes with a question, for the questions to come.
fn attach(question: &Question, stored: &Stored) -> Result<()> {
    for (part, ordinal) in question.attachments.iter().zip(1_i32..) {
        let (Part::Image(media) | Part::Document { media, .. }) = part else { continue };
        let name = question.asked["options"]["attachments"][ordinal as usize - 1]["name"].as_str();
        owner::as_owner(|| {
            spi::run(
                "insert into helper.message_attachments (workspace_id, message_id, ordinal, name, mime_type, content) \
                 values ($1, $2, $3, $4, $5, $6)",
                &[
                    question.workspace.into(),
                    stored.question.into(),
                    ordinal.into(),
                    name.map(|name| name.chars().take(500).collect::<String>()).into(),
                    media.mime_type.as_str().into(),
                    media.data.as_slice().into(),
                ],
            )
        })?;
    }
    Ok(())
}

/// What went with questions, as far as it is not too much; as the owner. Not what a question had whose reply failed: where
/// the provider refused it, it would refuse every later question as well.
fn attached(
    workspace: pgrx::Uuid,
    conversation: pgrx::Uuid,
    questions: &[pgrx::Uuid],
) -> Result<Vec<(pgrx::Uuid, Part)>> {
    if questions.is_empty() {
        return Ok(Vec::new());
    }
    spi::change(
        "select a.message_id, a.name, a.mime_type, a.content from ( \
           select x.*, sum(octet_length(x.content)) over (order by x.message_id desc, x.ordinal) as upto \
           from helper.message_attachments x where x.workspace_id = $1 and x.message_id = any ($2) \
             and (select r.status from helper.messages r \
                  where r.workspace_id = $1 and r.conversation_id = $4 and r.id > x.message_id order by r.id limit 1) \
               in ('done', 'cancelled')) a \
         where a.upto <= $3 order by a.message_id, a.ordinal",
        &[workspace.into(), questions.to_vec().into(), AGAIN.into(), conversation.into()],
        |row| {
            let media = Media { mime_type: row.get(3)?, data: row.get(4)? };
            let part = if media.mime_type.starts_with("image/") {
                Part::Image(media)
            } else {
                Part::Document { name: row.opt::<String>(2)?.unwrap_or_else(|| "document".into()), media }
            };
            Ok((row.get::<pgrx::Uuid>(1)?, part))
        },
    )
}

/// Puts a whole reply into its place.
pub fn end(question: &Question, stored: &Stored, reply: &Reply, status: &str) -> Result<()> {
    owner::as_owner(|| {
        spi::run(
            "select helper._end_reply($1, $2, $3, $4, $5, $6, $7, $8, null, $9)",
            &[
                question.workspace.into(),
                stored.reply.into(),
                reply.text.as_str().into(),
                status.into(),
                reply.provider.as_str().into(),
                reply.model.as_str().into(),
                reply.grounded.into(),
                JsonB(reply.usage.clone()).into(),
                JsonB(reply.tool_calls.clone()).into(),
            ],
        )?;
        for citation in &reply.citations {
            spi::run(
                "select helper._append_citation($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                &[
                    question.workspace.into(),
                    stored.reply.into(),
                    question.user.into(),
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
        Ok(())
    })
}

/// A reply that did not come to its end: what was said so far, and why. Where nothing is known of what was said, what is
/// stored stays.
pub fn fail(
    workspace: pgrx::Uuid,
    reply: pgrx::Uuid,
    text: &str,
    status: &str,
    error: Option<Value>,
    tool_calls: Option<Value>,
) -> Result<()> {
    owner::as_owner(|| {
        spi::run(
            "select helper._end_reply($1, $2, $3, $4, null, null, null, null, $5, $6)",
            &[
                workspace.into(),
                reply.into(),
                Some(text).filter(|text| !text.is_empty()).into(),
                status.into(),
                error.map(JsonB).into(),
                tool_calls.map(JsonB).into(),
            ],
        )
    })
}

/// An error as tables show it.
pub fn facts(error: &Error) -> Value {
    json!({
        "sqlstate": error.kind.sqlstate(),
        "message": error.message,
        "detail": error.detail,
        "hint": error.hint,
    })
}

/// What was said in a conversation before a message.
pub fn history(workspace: pgrx::Uuid, conversation: pgrx::Uuid, before: pgrx::Uuid) -> Result<History> {
    owner::as_owner(|| {
        let summary = spi::change(
            "select s.content, s.covers_to, s.seal from helper.conversation_summaries s where s.workspace_id = $1 and s.conversation_id = $2",
            &[workspace.into(), conversation.into()],
            |row| Ok((Summary { content: row.get(1)?, seal: row.get(3)? }, row.get::<pgrx::Uuid>(2)?)),
        )?
        .pop();
        let covered = summary.as_ref().map_or(pgrx::Uuid::from_bytes([0; 16]), |(_, covered)| *covered);
        // With a snapshot of now: the turn before may have been waited for.
        let rows = spi::change(
            "select m.id, m.role = 'user', m.content from helper.messages m \
             where m.workspace_id = $1 and m.conversation_id = $2 and m.id < $3 and m.id > $4 \
               and m.role in ('user', 'assistant') and m.status in ('done', 'cancelled') and m.content <> '' \
             order by m.id desc limit $5",
            &[workspace.into(), conversation.into(), before.into(), covered.into(), MOST.into()],
            |row| Ok((row.get::<pgrx::Uuid>(1)?, row.get::<bool>(2)?, row.get::<String>(3)?)),
        )?;
        let questions: Vec<pgrx::Uuid> =
            rows.iter().filter(|(_, is_question, _)| *is_question).map(|(id, ..)| *id).collect();
        let mut attached = attached(workspace, conversation, &questions)?;
        let mut turns: Vec<Turn> = Vec::new();
        for (id, is_question, text) in rows.into_iter().rev() {
            let role = if is_question { Role::User } else { Role::Assistant };
            match turns.last_mut() {
                Some(turn) if !is_question => {
                    turn.last = id;
                    turn.said.push((role, text));
                }
                _ => {
                    let with = attached.extract_if(.., |(of, _)| *of == id).map(|(_, part)| part).collect();
                    turns.push(Turn { last: id, said: vec![(role, text)], attached: with });
                }
            }
        }
        Ok(History { summary: summary.map(|(summary, _)| summary), turns })
    })
}

/// Keeps the summary of a conversation up to a message.
pub fn summarised(
    workspace: pgrx::Uuid,
    conversation: pgrx::Uuid,
    summary: &Summary,
    covers_to: pgrx::Uuid,
    by: &str,
) -> Result<()> {
    let Summary { content, seal } = summary;
    owner::as_owner(|| {
        spi::run(
            "select helper._set_summary($1, $2, $3, $4, $5, $6)",
            &[
                workspace.into(),
                conversation.into(),
                content.as_str().into(),
                covers_to.into(),
                by.into(),
                seal.as_str().into(),
            ],
        )
    })
}
