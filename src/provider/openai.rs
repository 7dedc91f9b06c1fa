//! OpenAI's chat completions, and the servers that follow them more or less: the requests.

mod reply;
#[cfg(test)]
mod tests;

pub(super) use reply::Completion;

use super::request::{arguments, data_url, functions, number, output_schema, post, put, result_text, system, turns};
use super::{Call, Dialect};
use crate::core::chat::{Chat, Kind, Output, Part, Role, ToolChoice};
use crate::core::error::{Error, Result};
use serde_json::{Map, Value, json};

/// Whether a schema keeps to what OpenAI enforces: every object closed, all its properties required. Others are sent as
/// a description alone, as strict ones that do not are refused.
fn is_strict(schema: &Value) -> bool {
    let closed = match schema.get("properties").and_then(Value::as_object) {
        Some(properties) => {
            let required: Vec<&str> =
                schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            schema["additionalProperties"] == false && properties.keys().all(|name| required.contains(&name.as_str()))
        }
        None => schema["type"] != "object",
    };
    let named = ["properties", "$defs", "definitions"].iter().filter_map(|name| schema[*name].as_object());
    let listed = ["anyOf", "oneOf", "allOf"].iter().filter_map(|name| schema[*name].as_array());
    closed
        && named.flat_map(serde_json::Map::values).all(is_strict)
        && listed.flatten().all(is_strict)
        && schema.get("items").is_none_or(is_strict)
}

/// The request of a chat.
pub(super) fn chat(kind: Kind, dialect: &Dialect, model: &str, chat: &Chat) -> Result<Call> {
    let mut body = Map::new();
    body.insert("model".into(), model.into());
    body.insert("messages".into(), messages(kind, dialect, chat)?.into());
    if !chat.tools.is_empty() {
        body.insert("tools".into(), functions(chat)?.into());
        let choice = match &chat.tool_choice {
            ToolChoice::Auto => None,
            ToolChoice::None => Some(json!("none")),
            ToolChoice::Required => Some(json!("required")),
            ToolChoice::Named(name) => Some(json!({ "type": "function", "function": { "name": name } })),
        };
        put(&mut body, "tool_choice", choice);
    }
    let format = match output_schema(chat)? {
        Some((name, schema)) if dialect.json_schema => Some(json!({
            "type": "json_schema",
            "json_schema": { "name": name, "strict": is_strict(&schema), "schema": schema },
        })),
        None if chat.output == Output::Text => None,
        _ => Some(json!({ "type": "json_object" })),
    };
    put(&mut body, "response_format", format);
    let limit = if dialect.max_tokens { "max_tokens" } else { "max_completion_tokens" };
    put(&mut body, limit, chat.max_output_tokens);
    put(&mut body, "temperature", number(chat.temperature));
    put(&mut body, "top_p", number(chat.top_p));
    put(&mut body, "reasoning_effort", chat.reasoning_effort.as_deref());
    put(&mut body, "stop", (!chat.stop.is_empty()).then(|| json!(chat.stop)));
    put(&mut body, "user", chat.user.as_deref());
    body.insert("stream".into(), chat.stream.into());
    if chat.stream && dialect.stream_usage {
        body.insert("stream_options".into(), json!({ "include_usage": true }));
    }
    Ok(post("/chat/completions", Vec::new(), &Value::Object(body)))
}

fn messages(kind: Kind, dialect: &Dialect, chat: &Chat) -> Result<Vec<Value>> {
    let mut messages = Vec::new();
    let told = match &chat.output {
        // The schema has no place of its own, so that the model has to be told.
        Output::Schema { schema, .. } if !dialect.json_schema => {
            Some(format!("Reply with JSON that this JSON Schema describes:\n{schema}"))
        }
        _ => None,
    };
    let system: Vec<_> = system(chat).into_iter().chain(told).collect();
    if !system.is_empty() {
        messages.push(json!({ "role": "system", "content": system.join("\n\n") }));
    }
    for turn in turns(&chat.messages) {
        match turn.role {
            Role::User => user(&turn.parts, &mut messages)?,
            Role::Assistant => messages.push(assistant(kind, &turn.parts)),
        }
    }
    Ok(messages)
}

/// A turn of the user; results of tools are messages of their own.
fn user(parts: &[(&Part, bool)], messages: &mut Vec<Value>) -> Result<()> {
    let mut content = Vec::new();
    for (part, _) in parts {
        match part {
            Part::ToolResult { id, content, is_error, .. } => messages.push(json!({
                "role": "tool",
                "tool_call_id": id,
                "content": result_text(content, *is_error),
            })),
            Part::Text(text) => content.push(json!({ "type": "text", "text": text })),
            Part::Image(media) => {
                content.push(json!({ "type": "image_url", "image_url": { "url": data_url(media) } }));
            }
            Part::Document { name, media } if media.mime_type == "application/pdf" => {
                content.push(json!({ "type": "file", "file": { "filename": name, "file_data": data_url(media) } }));
            }
            Part::Document { media, .. } => {
                return Err(Error::bad_argument(format!(
                    "model cannot read documents of type \"{}\"",
                    media.mime_type
                ))
                .hint("Send a PDF, or the text of the document."));
            }
            // Refused before.
            Part::ToolCall(_) | Part::Thinking { .. } => {}
        }
    }
    match content.as_slice() {
        [] => {}
        // Servers that follow the protocol less than wholly know text alone.
        [only] if only["type"] == "text" => messages.push(json!({ "role": "user", "content": only["text"] })),
        _ => messages.push(json!({ "role": "user", "content": content })),
    }
    Ok(())
}

fn assistant(kind: Kind, parts: &[(&Part, bool)]) -> Value {
    let mut words = String::new();
    let mut reasoning = String::new();
    let mut calls = Vec::new();
    for (part, _) in parts {
        match part {
            Part::Text(text) => words.push_str(text),
            Part::Thinking { text, signature } if signature.is_empty() => reasoning.push_str(text),
            Part::ToolCall(call) => {
                // A server's template may parse them; those of a call without any are an empty object.
                let text = if call.arguments.trim().is_empty() { "{}" } else { &call.arguments };
                let text = if kind == Kind::OpenAi { text.to_owned() } else { whole(text) };
                calls.push(json!({
                    "id": call.id,
                    "type": "function",
                    "function": { "name": call.name, "arguments": text },
                }));
            }
            _ => {}
        }
    }
    let mut message = Map::new();
    message.insert("role".into(), "assistant".into());
    message.insert("content".into(), if words.is_empty() && !calls.is_empty() { Value::Null } else { words.into() });
    if !calls.is_empty() {
        // Servers that show their reasoning want it back as long as tools are being called, and only then.
        if kind == Kind::OpenAiCompatible && !reasoning.is_empty() {
            message.insert("reasoning_content".into(), reasoning.into());
        }
        message.insert("tool_calls".into(), calls.into());
    }
    Value::Object(message)
}

/// Arguments that are JSON, as they were; others within an object that is.
fn whole(text: &str) -> String {
    match serde_json::from_str::<Map<String, Value>>(text) {
        Ok(_) => text.to_owned(),
        Err(_) => arguments(text).to_string(),
    }
}
