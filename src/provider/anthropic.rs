//! Anthropic's messages: the requests.

mod reply;
#[cfg(test)]
mod tests;

pub(super) use reply::Answer;

use super::request::{arguments, base64, number, output_schema, post, put, schema, turns};
use super::{Call, Dialect};
use crate::core::chat::{Chat, Media, Output, Part, Role, ToolChoice};
use crate::core::error::{Error, Result};
use serde_json::{Map, Value, json};

/// What marks a seal as that of reasoning which came encrypted as a whole; a seal of words is base64, without colons.
const REDACTED: &str = "redacted:";
/// Marks of a cache that a request may hold.
const MARKS: usize = 4;
/// Tokens of a reply where neither call nor model says: the protocol wants a number.
const DEFAULT_LIMIT: u32 = 4096;

/// The request of a chat.
pub(super) fn chat(dialect: &Dialect, model: &str, output_limit: u32, chat: &Chat) -> Result<Call> {
    let mut body = Map::new();
    let limit = chat.max_output_tokens.or((output_limit > 0).then_some(output_limit)).unwrap_or(DEFAULT_LIMIT);
    body.insert("model".into(), model.into());
    body.insert("max_tokens".into(), limit.into());
    let system = chat.system.iter().filter(|part| !part.text.is_empty()).map(|part| {
        let block = json!({ "type": "text", "text": part.text });
        if part.cache { marked(block) } else { block }
    });
    let system: Vec<_> = system.collect();
    put(&mut body, "system", (!system.is_empty()).then_some(system));
    body.insert("messages".into(), messages(chat)?.into());
    tools(dialect, chat, &mut body)?;
    if chat.temperature.is_some_and(|temperature| temperature > 1.0) {
        return Err(Error::bad_argument("temperature must not be above 1 for this provider"));
    }
    put(&mut body, "temperature", number(chat.temperature));
    put(&mut body, "top_p", number(chat.top_p));
    put(&mut body, "stop_sequences", (!chat.stop.is_empty()).then(|| json!(chat.stop)));
    put(&mut body, "metadata", chat.user.as_ref().map(|user| json!({ "user_id": user })));
    body.insert("stream".into(), chat.stream.into());
    bound_marks(&mut body);
    Ok(post("/v1/messages", vec![("anthropic-version", "2023-06-01".to_owned())], &Value::Object(body)))
}

/// Name of the tool that the model gives its reply to, where the reply has a form.
pub(super) fn output_tool(chat: &Chat) -> Option<&str> {
    match &chat.output {
        Output::Text => None,
        Output::Json => Some("json"),
        Output::Schema { name, .. } => Some(name),
    }
}

/// The tools, and the form of the reply: a tool of that form which must be called, or, where the models are known to
/// have it, a form of its own.
fn tools(dialect: &Dialect, chat: &Chat, body: &mut Map<String, Value>) -> Result<()> {
    let mut tools = Vec::new();
    for tool in &chat.tools {
        let input = schema(&tool.parameters, &tool.name)?;
        tools.push(json!({ "name": tool.name, "description": tool.description, "input_schema": input }));
    }
    let mut choice = match &chat.tool_choice {
        ToolChoice::Auto => None,
        ToolChoice::None => Some(json!({ "type": "none" })),
        ToolChoice::Required => Some(json!({ "type": "any" })),
        ToolChoice::Named(name) => Some(json!({ "type": "tool", "name": name })),
    };
    let form = output_schema(chat)?;
    match (form, output_tool(chat)) {
        (Some((_, schema)), _) if dialect.json_schema => {
            body.insert("output_config".into(), json!({ "format": { "type": "json_schema", "schema": schema } }));
        }
        (form, Some(name)) => {
            if chat.tools.iter().any(|tool| tool.name == name) {
                return Err(Error::bad_argument(format!("\"{name}\" names both a tool and the form of the reply")));
            }
            let schema = form.map_or_else(|| json!({ "type": "object" }), |(_, schema)| schema);
            if schema.get("type").and_then(Value::as_str) != Some("object") {
                return Err(Error::bad_argument(format!("schema \"{name}\" must be of an object for this provider")));
            }
            let description = "Gives the reply. Call it once, with the whole reply.";
            tools.push(json!({ "name": name, "description": description, "input_schema": schema }));
            choice = Some(match chat.tool_choice {
                // It may call the others first.
                ToolChoice::Auto | ToolChoice::Required if !chat.tools.is_empty() => json!({ "type": "any" }),
                ToolChoice::Named(_) => choice.unwrap_or_default(),
                _ => json!({ "type": "tool", "name": name }),
            });
        }
        (_, None) => {}
    }
    if !tools.is_empty() {
        body.insert("tools".into(), tools.into());
        put(body, "tool_choice", choice);
    }
    Ok(())
}

fn messages(chat: &Chat) -> Result<Vec<Value>> {
    let mut messages = Vec::new();
    for turn in turns(&chat.messages) {
        let mut content = Vec::new();
        for (part, cache) in turn.parts {
            let Some(block) = block(part)? else { continue };
            content.push(if cache { marked(block) } else { block });
        }
        let role = if turn.role == Role::User { "user" } else { "assistant" };
        if messages.is_empty() && turn.role != Role::User {
            return Err(Error::bad_argument("conversation does not begin with the user"));
        }
        if content.is_empty() {
            return Err(Error::bad_argument("conversation has an empty turn"));
        }
        messages.push(json!({ "role": role, "content": content }));
    }
    Ok(messages)
}

/// A part as a block; none for an empty text, which is refused there, and for reasoning that is not this provider's.
fn block(part: &Part) -> Result<Option<Value>> {
    Ok(Some(match part {
        Part::Text(text) if text.is_empty() => return Ok(None),
        Part::Text(text) => json!({ "type": "text", "text": text }),
        Part::Image(media) => json!({ "type": "image", "source": source(media) }),
        Part::Document { name, media } => {
            let source = match (media.mime_type.as_str(), std::str::from_utf8(&media.data)) {
                ("application/pdf", _) => source(media),
                ("text/plain", Ok(text)) => json!({ "type": "text", "media_type": "text/plain", "data": text }),
                (other, _) => {
                    let message = format!("model cannot read documents of type \"{other}\"");
                    return Err(Error::bad_argument(message).hint("Send a PDF, or the text of the document."));
                }
            };
            json!({ "type": "document", "source": source, "title": name })
        }
        Part::ToolCall(call) => json!({
            "type": "tool_use",
            "id": call.id,
            "name": call.name,
            "input": arguments(&call.arguments),
        }),
        Part::ToolResult { id, content, is_error, .. } => {
            let mut block = json!({ "type": "tool_result", "tool_use_id": id, "content": content });
            if *is_error {
                block["is_error"] = true.into();
            }
            block
        }
        Part::Thinking { signature, .. } if signature.is_empty() => return Ok(None),
        Part::Thinking { text, signature } => match signature.strip_prefix(REDACTED) {
            Some(data) => json!({ "type": "redacted_thinking", "data": data }),
            None => json!({ "type": "thinking", "thinking": text, "signature": signature }),
        },
    }))
}

fn source(media: &Media) -> Value {
    json!({ "type": "base64", "media_type": media.mime_type, "data": base64(media) })
}

fn marked(mut block: Value) -> Value {
    block["cache_control"] = json!({ "type": "ephemeral" });
    block
}

/// Leaves as many marks as are allowed: the first, which other conversations share, and the last ones.
fn bound_marks(body: &mut Map<String, Value>) {
    let mut blocks: Vec<&mut Map<String, Value>> = Vec::new();
    for (name, value) in body.iter_mut() {
        let Some(list) = value.as_array_mut() else { continue };
        match name.as_str() {
            "system" => blocks.extend(list.iter_mut().filter_map(Value::as_object_mut)),
            "messages" => {
                let contents = list.iter_mut().filter_map(|message| message["content"].as_array_mut());
                blocks.extend(contents.flatten().filter_map(Value::as_object_mut));
            }
            _ => {}
        }
    }
    blocks.retain(|block| block.contains_key("cache_control"));
    let extra = blocks.len().saturating_sub(MARKS);
    for block in blocks.into_iter().skip(1).take(extra) {
        block.remove("cache_control");
    }
}
