//! A question as a caller puts it: its arguments and options read, its conversation, mode and model found.

use crate::core::chat::{Abilities, Part};
use crate::core::error::{Error, Kind, Result};
use crate::pg::acting::{self, Bounds};
use crate::pg::calling::Tuning;
use crate::pg::kept::Kept;
use crate::pg::routes::{self, Chosen};
use crate::pg::searching::{self, LONGEST};
use crate::pg::tools::{self, Offered};
use crate::pg::{completing, identity, owner, spi};
use pgrx::JsonB;
use serde_json::{Value, json};
use std::collections::HashSet;

/// A way of answering.
#[derive(Clone)]
pub struct Mode {
    pub name: String,
    pub instructions: String,
    pub temperature: Option<f32>,
    pub max_tokens: Option<u32>,
    pub output_schema: Option<Value>,
    /// Tools that it offers; `None`: those that are asked for.
    pub tools: Option<Vec<String>>,
}

/// What a caller asked.
pub struct Question {
    pub text: String,
    pub conversation: Option<pgrx::Uuid>,
    pub workspace: pgrx::Uuid,
    pub user: pgrx::Uuid,
    pub mode: Mode,
    pub knowledge: bool,
    pub k: usize,
    pub source_types: Option<Vec<String>>,
    pub filter: Option<Value>,
    pub tuning: Tuning,
    pub attachments: Vec<Part>,
    /// Wait for a reply that is under way in the conversation rather than being refused.
    pub waits: bool,
    /// Tools that a model is offered.
    pub tools: Vec<Offered>,
    /// How far they may go.
    pub limits: Bounds,
    /// Who answers; `None` is the local provider.
    pub chosen: Option<Chosen>,
    /// The arguments as they came, for who goes on with the reply later: mode, knowledge, model, options.
    pub asked: Value,
}

/// The arguments of `helper.ask` and its kin, as they came.
pub struct Arguments<'a> {
    pub question: Option<&'a str>,
    pub conversation: Option<pgrx::Uuid>,
    pub mode: Option<&'a str>,
    pub knowledge: Option<bool>,
    pub model: Option<&'a str>,
    pub workspace: Option<pgrx::Uuid>,
    pub options: Option<JsonB>,
}

/// Reads a question and checks that the caller may put it.
pub fn read(arguments: Arguments) -> Result<Question> {
    let text = arguments.question.ok_or_else(|| Error::bad_argument("question is null"))?.trim();
    if text.is_empty() {
        return Err(Error::bad_argument("question is empty"));
    }
    let workspace = match arguments.conversation {
        Some(id) => conversation_workspace(id, arguments.workspace)?,
        None => searching::workspace(arguments.workspace)?,
    };
    let user = identity::current_user().ok_or_else(|| Error::new(Kind::NotPermitted, "the caller has no identity"))?;
    let name = arguments.mode.unwrap_or("chat");
    let (mode, model, mode_knowledge, k) = mode(workspace, name)?;
    let options = arguments.options.map_or_else(|| json!({}), |options| options.0);
    let asked = json!({
        "mode": name,
        "knowledge": arguments.knowledge,
        "model": arguments.model,
        "options": options,
    });
    let mut question = Question {
        text: text.to_owned(),
        conversation: arguments.conversation,
        workspace,
        user,
        knowledge: arguments.knowledge.unwrap_or(true) && mode_knowledge,
        mode,
        k,
        source_types: None,
        filter: None,
        tuning: Tuning::default(),
        attachments: Vec::new(),
        waits: true,
        tools: Vec::new(),
        limits: Bounds::default(),
        asked,
        chosen: routes::choose(workspace, "chat", arguments.model.or(model.as_deref()))?,
    };
    let Value::Object(options) = options else { return Err(Error::bad_argument("options is not a JSON object")) };
    let wanted = options.get("tools").map(tools_of).transpose()?;
    for (name, value) in options {
        question.option(&name, value)?;
    }
    question.offer(wanted)?;
    if !question.tools.is_empty() || !question.attachments.is_empty() {
        let needs = Abilities::needed(!question.tools.is_empty(), &question.attachments);
        question.chosen = routes::choose_able(workspace, "chat", arguments.model.or(model.as_deref()), needs)?;
    }
    if question.chosen.is_none() {
        if !question.attachments.is_empty() {
            return Err(Error::bad_argument("the local provider reads no attachments")
                .hint("Store documents with helper.add_file, or choose a language model."));
        }
        if question.mode.output_schema.is_some() {
            return Err(Error::not_ready(format!("mode \"{}\" needs a language model", question.mode.name)));
        }
    }
    // Longer ones are read by models, but searched for by their beginning alone.
    let longest = if question.chosen.is_some() { 100_000 } else { LONGEST };
    if text.chars().count() > longest {
        return Err(Error::bad_argument(format!("question has more than {longest} characters")));
    }
    Ok(question)
}

impl Question {
    fn option(&mut self, name: &str, value: Value) -> Result<()> {
        let wrong = || Error::bad_argument(format!("option \"{name}\" has the wrong type"));
        match name {
            "k" => {
                self.k = value
                    .as_u64()
                    .filter(|k| (1..=50).contains(k))
                    .ok_or_else(|| Error::bad_argument("option \"k\" is not between 1 and 50"))?
                    as usize;
            }
            "source_types" => {
                let values = value.as_array().ok_or_else(wrong)?;
                let types = values.iter().map(|value| value.as_str().map(str::to_owned));
                self.source_types = Some(
                    types
                        .collect::<Option<_>>()
                        .ok_or_else(|| Error::bad_argument("option \"source_types\" is not a list of strings"))?,
                );
            }
            "filter" if value.is_object() => self.filter = Some(value),
            "filter" => return Err(wrong()),
            "attachments" => self.attachments = completing::attachments(&value)?,
            "tools" => {}
            "limits" => self.limits = acting::limits(&value)?,
            "busy" => match value.as_str() {
                Some("wait") => self.waits = true,
                Some("refuse") => self.waits = false,
                _ => return Err(Error::bad_argument("option \"busy\" is neither wait nor refuse")),
            },
            _ if self.tuning.take(name, &value)? => {}
            _ => {
                return Err(Error::bad_argument(format!("option \"{name}\" does not exist")).hint(format!(
                    "Options are k, source_types, filter, attachments, tools, limits, busy, {}.",
                    Tuning::NAMES
                )));
            }
        }
        Ok(())
    }

    /// Finds the tools that a model is offered: those that were asked for, as far as the mode has them, else the mode's.
    fn offer(&mut self, asked: Option<Vec<String>>) -> Result<()> {
        let of_mode = self.mode.tools.take();
        let Some(wanted) = asked.as_ref().or(of_mode.as_ref()).filter(|wanted| !wanted.is_empty()) else {
            return Ok(());
        };
        if self.chosen.is_none() {
            return Err(acting::no_tools());
        }
        self.tools = match &asked {
            Some(asked) if asked.iter().any(|one| one == "all") => tools::offered(self.workspace, &[])?,
            Some(asked) => tools::offered(self.workspace, asked)?,
            None => self.callable(wanted)?,
        };
        if let (Some(of_mode), Some(_)) = (&of_mode, &asked) {
            let names: HashSet<String> = self.callable(of_mode)?.into_iter().map(|tool| tool.name).collect();
            self.tools.retain(|tool| names.contains(&tool.name));
        }
        Ok(())
    }

    /// Leaves out tools whose requests a session's transaction could not take back: the worker sends those.
    pub fn keep_tools_of_session(&mut self) -> Result<()> {
        let had_any = !self.tools.is_empty();
        self.tools.retain(|tool| !tool.sends_at_once);
        if had_any && self.tools.is_empty() {
            return Err(Error::not_ready("these tools are called by the worker alone")
                .detail("Their requests have an effect each time, and could not be taken back with the caller's transaction.")
                .hint("Ask with helper.ask_async, or register them as needing a confirmation or as idempotent."));
        }
        Ok(())
    }

    /// Those of a mode's tools that the caller may call: a mode is for people with different rights.
    fn callable(&self, of_mode: &[String]) -> Result<Vec<Offered>> {
        let mut found: Vec<Offered> = Vec::new();
        for one in of_mode {
            match tools::offered(self.workspace, std::slice::from_ref(one)) {
                Ok(more) => found.extend(more),
                Err(error) if error.kind == Kind::UnknownObject => {}
                Err(error) => return Err(error),
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found.dedup_by(|a, b| a.name == b.name);
        Ok(found)
    }

    /// Whether marks in its reply stand for documents.
    pub fn cites(&self) -> bool {
        self.knowledge && self.mode.output_schema.is_none()
    }

    /// What is searched for.
    pub fn query(&self) -> String {
        self.text.chars().take(LONGEST).collect()
    }
}

/// The option `tools`: a list of names, `product:slug` and `tag:word`, or `all`.
fn tools_of(value: &Value) -> Result<Vec<String>> {
    let wrong = || Error::bad_argument("option \"tools\" is neither \"all\" nor a list of strings");
    match value {
        Value::String(all) if all == "all" => Ok(vec![all.clone()]),
        Value::Array(list) => list.iter().map(|one| one.as_str().map(str::to_owned).ok_or_else(wrong)).collect(),
        _ => Err(wrong()),
    }
}

/// A mode with its model, whether it looks documents up, and how many passages.
type Found = (Mode, Option<String>, bool, usize);

thread_local! {
    static MODES: Kept<([u8; 16], String), Option<Found>> = Kept::new();
}

/// A mode of the workspace or for all.
fn mode(workspace: pgrx::Uuid, name: &str) -> Result<Found> {
    let found =
        MODES.with(|modes| modes.get((*workspace.as_bytes(), name.to_owned()), || find_mode(workspace, name)))?;
    found.ok_or_else(|| {
        Error::unknown_object(format!("mode \"{name}\" does not exist"))
            .hint("Modes are chat, copy, summary and those that helper.set_mode has added.")
    })
}

fn find_mode(workspace: pgrx::Uuid, name: &str) -> Result<Option<Found>> {
    owner::as_owner(|| {
        spi::first(
            "select m.instructions, m.model, m.temperature, m.max_tokens, m.knowledge, m.k, m.output_schema, m.tools from helper.modes m \
             where m.name = $2 and (m.workspace_id = $1 or m.workspace_id is null) \
             order by m.workspace_id nulls last, m.builtin limit 1",
            &[workspace.into(), name.into()],
            |row| {
                Ok((
                    Mode {
                        name: name.to_owned(),
                        instructions: row.get(1)?,
                        temperature: row.opt(3)?,
                        max_tokens: row.opt::<i32>(4)?.and_then(|most| u32::try_from(most).ok()),
                        output_schema: row.opt::<JsonB>(7)?.map(|schema| schema.0),
                        tools: row.opt(8)?,
                    },
                    row.opt::<String>(2)?,
                    row.get::<bool>(5)?,
                    row.get::<i32>(6)? as usize,
                ))
            },
        )
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
