//! What the requests of all protocols share: turns merged, JSON checked, bytes as base64.

use super::Call;
use crate::core::chat::{Chat, Media, Message, Output, Part, Role, ToolChoice};
use crate::core::error::{Error, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

/// A request with a JSON body.
pub(super) fn post(path: impl Into<String>, headers: Vec<(&'static str, String)>, body: &Value) -> Call {
    Call { method: "POST", path: path.into(), headers, body: body.to_string().into_bytes() }
}

/// Parts of one speaker; a part is marked where the provider's cache may end.
pub(super) struct Turn<'a> {
    pub role: Role,
    pub parts: Vec<(&'a Part, bool)>,
}

/// The turns of a conversation, neighbours of one role merged, and results of tools first in each.
pub(super) fn turns(messages: &[Message]) -> Vec<Turn<'_>> {
    let mut turns: Vec<Turn<'_>> = Vec::new();
    for message in messages.iter().filter(|message| !message.parts.is_empty()) {
        let last = message.parts.iter().rposition(|part| !matches!(part, Part::Thinking { .. }));
        let parts = message.parts.iter().enumerate().map(|(at, part)| (part, message.cache && Some(at) == last));
        match turns.last_mut() {
            Some(turn) if turn.role == message.role => turn.parts.extend(parts),
            _ => turns.push(Turn { role: message.role, parts: parts.collect() }),
        }
    }
    for turn in &mut turns {
        turn.parts.sort_by_key(|(part, _)| !matches!(part, Part::ToolResult { .. }));
    }
    turns
}

/// Refuses what no protocol can express.
pub(super) fn check(chat: &Chat) -> Result<()> {
    if chat.messages.iter().all(|message| message.parts.is_empty()) {
        return Err(Error::bad_argument("conversation has no messages"));
    }
    for message in &chat.messages {
        for part in &message.parts {
            match (message.role, part) {
                (Role::User, Part::ToolCall(_) | Part::Thinking { .. }) => {
                    return Err(Error::bad_argument("a turn of the user holds a tool call or reasoning"));
                }
                (Role::Assistant, Part::ToolResult { .. } | Part::Image(_) | Part::Document { .. }) => {
                    return Err(Error::bad_argument("a turn of the model holds a tool result, an image or a document"));
                }
                (_, Part::Image(media)) if !media.mime_type.starts_with("image/") => {
                    return Err(Error::bad_argument(format!("\"{}\" is not the type of an image", media.mime_type)));
                }
                _ => {}
            }
        }
    }
    match &chat.tool_choice {
        ToolChoice::Named(name) if !chat.tools.iter().any(|tool| tool.name == *name) => {
            Err(Error::bad_argument(format!("tool \"{name}\" is to be called, but not given")))
        }
        ToolChoice::Required if chat.tools.is_empty() => {
            Err(Error::bad_argument("a tool is to be called, but none is given"))
        }
        _ if [chat.temperature, chat.top_p].into_iter().flatten().any(|number| !number.is_finite()) => {
            Err(Error::bad_argument("temperature and top_p must be finite"))
        }
        _ => Ok(()),
    }
}

/// A model's name that can stand in a path.
pub(super) fn in_path(model: &str) -> Result<&str> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/' | '@' | ':');
    match !model.is_empty() && model.chars().all(good) && !model.contains("..") {
        true => Ok(model),
        false => Err(Error::bad_argument(format!("\"{model}\" is not the name of a model"))),
    }
}

/// A JSON Schema from its text.
pub(super) fn schema(text: &str, owner: &str) -> Result<Value> {
    match serde_json::from_str(text) {
        Ok(schema @ Value::Object(_)) => Ok(schema),
        _ => Err(Error::bad_argument(format!("schema of \"{owner}\" is not a JSON object"))),
    }
}

/// The schema of the reply, if it has one.
pub(super) fn output_schema(chat: &Chat) -> Result<Option<(&str, Value)>> {
    match &chat.output {
        Output::Schema { name, schema: text } => Ok(Some((name, schema(text, name)?))),
        _ => Ok(None),
    }
}

/// A tool call's arguments for protocols that take them as an object. What the model wrote may be no object at all; it
/// goes back as Anthropic advises, so that the model sees its mistake.
pub(super) fn arguments(text: &str) -> Value {
    if text.trim().is_empty() {
        return json!({});
    }
    match serde_json::from_str(text) {
        Ok(object @ Value::Object(_)) => object,
        _ => json!({ "INVALID_JSON": text }),
    }
}

/// A result for protocols that have no mark for an error.
pub(super) fn result_text(content: &str, is_error: bool) -> String {
    if is_error { format!("error: {content}") } else { content.to_owned() }
}

/// Bytes as base64.
pub(super) fn base64(media: &Media) -> String {
    BASE64_STANDARD.encode(&media.data)
}

/// Bytes as a `data:` URL.
pub(super) fn data_url(media: &Media) -> String {
    format!("data:{};base64,{}", media.mime_type, base64(media))
}

/// Adds an entry where there is a value.
pub(super) fn put<T: Into<Value>>(object: &mut Map<String, Value>, name: &str, value: Option<T>) {
    if let Some(value) = value {
        object.insert(name.to_owned(), value.into());
    }
}

/// A setting as it was written: 0.7, and not the 0.699999988 that an `f32` becomes.
pub(super) fn number(value: Option<f32>) -> Option<Value> {
    value.and_then(|value| serde_json::from_str(&value.to_string()).ok())
}

/// The tools as OpenAI and Ollama take them.
pub(super) fn functions(chat: &Chat) -> Result<Vec<Value>> {
    let tools = chat.tools.iter().map(|tool| {
        let parameters = schema(&tool.parameters, &tool.name)?;
        let function = json!({ "name": tool.name, "description": tool.description, "parameters": parameters });
        Ok(json!({ "type": "function", "function": function }))
    });
    tools.collect()
}

/// The system prompt as one text.
pub(super) fn system(chat: &Chat) -> Option<String> {
    let parts: Vec<_> = chat.system.iter().map(|part| part.text.as_str()).filter(|text| !text.is_empty()).collect();
    (!parts.is_empty()).then(|| parts.join("\n\n"))
}
