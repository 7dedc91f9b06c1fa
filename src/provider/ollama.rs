//! Ollama's own `/api`: requests and replies.

#[cfg(test)]
mod tests;

use super::reply::{Reader, count, text};
use super::request::{arguments, base64, functions, number, output_schema, post, put, result_text, system, turns};
use super::{Call, Dialect, Failure, failure};
use crate::core::chat::{Chat, Event, Kind, Output, Part, Role, Stop, ToolChoice, Usage};
use crate::core::error::{Error, Result};
use serde_json::{Map, Value, json};

/// The request of a chat.
pub(super) fn chat(dialect: &Dialect, model: &str, chat: &Chat) -> Result<Call> {
    let mut body = Map::new();
    body.insert("model".into(), model.into());
    body.insert("messages".into(), messages(chat)?.into());
    match chat.tool_choice {
        // Without any tools it calls none.
        ToolChoice::None => {}
        ToolChoice::Auto if chat.tools.is_empty() => {}
        ToolChoice::Auto => {
            body.insert("tools".into(), functions(chat)?.into());
        }
        ToolChoice::Required | ToolChoice::Named(_) => {
            return Err(Error::bad_argument("model cannot be made to call a tool")
                .hint("Let it choose, or use a model of another provider."));
        }
    }
    let format = match output_schema(chat)? {
        Some((_, schema)) => Some(schema),
        None => (chat.output == Output::Json).then(|| json!("json")),
    };
    put(&mut body, "format", format);
    let mut options = Map::new();
    put(&mut options, "num_ctx", dialect.num_ctx);
    put(&mut options, "num_predict", chat.max_output_tokens);
    put(&mut options, "temperature", number(chat.temperature));
    put(&mut options, "top_p", number(chat.top_p));
    put(&mut options, "stop", (!chat.stop.is_empty()).then(|| json!(chat.stop)));
    put(&mut body, "options", (!options.is_empty()).then_some(options));
    // It streams unless told not to.
    body.insert("stream".into(), chat.stream.into());
    Ok(post("/api/chat", Vec::new(), &Value::Object(body)))
}

fn messages(chat: &Chat) -> Result<Vec<Value>> {
    let mut messages: Vec<_> =
        system(chat).into_iter().map(|text| json!({ "role": "system", "content": text })).collect();
    for turn in turns(&chat.messages) {
        let role = if turn.role == Role::User { "user" } else { "assistant" };
        let (mut words, mut thinking) = (Vec::new(), String::new());
        let (mut images, mut calls) = (Vec::new(), Vec::new());
        for (part, _) in &turn.parts {
            match part {
                Part::Text(text) => words.push(text.as_str()),
                Part::Image(media) => images.push(base64(media)),
                Part::Document { .. } => {
                    return Err(Error::bad_argument("model cannot read documents")
                        .hint("Send the text of the document, or use a model of another provider."));
                }
                Part::ToolCall(call) => {
                    calls.push(json!({
                        "id": call.id,
                        "function": { "name": call.name, "arguments": arguments(&call.arguments) },
                    }));
                }
                Part::ToolResult { id, name, content, is_error } => messages.push(json!({
                    "role": "tool",
                    "tool_name": name,
                    "tool_call_id": id,
                    "content": result_text(content, *is_error),
                })),
                Part::Thinking { text, signature } if signature.is_empty() => thinking.push_str(text),
                // Sealed by another provider.
                Part::Thinking { .. } => {}
            }
        }
        if words.is_empty() && thinking.is_empty() && images.is_empty() && calls.is_empty() {
            continue;
        }
        let mut message = Map::new();
        message.insert("role".into(), role.into());
        message.insert("content".into(), words.join(if turn.role == Role::User { "\n\n" } else { "" }).into());
        put(&mut message, "thinking", (!thinking.is_empty()).then_some(thinking));
        put(&mut message, "images", (!images.is_empty()).then_some(images));
        put(&mut message, "tool_calls", (!calls.is_empty()).then_some(calls));
        messages.push(Value::Object(message));
    }
    Ok(messages)
}

/// A reply being read: each value of a stream is a message, the last one is marked.
#[derive(Default)]
pub(super) struct Talk {
    calls: u32,
    complete: bool,
}

impl Reader for Talk {
    fn next(&mut self, value: &Value, events: &mut Vec<Event>) -> std::result::Result<(), Failure> {
        if value.get("error").is_some_and(|error| !error.is_null()) {
            return Err(failure::of_value(Kind::Ollama, 200, value));
        }
        let message = value.get("message").unwrap_or(&Value::Null);
        events.extend(text(message, "thinking").map(|words| Event::Thinking(words.to_owned())));
        events.extend(text(message, "content").map(|words| Event::Text(words.to_owned())));
        for call in message.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            let index = self.calls;
            self.calls += 1;
            let function = call.get("function").unwrap_or(&Value::Null);
            events.push(Event::ToolCall {
                index,
                id: text(call, "id").map_or_else(|| format!("call_{index}"), str::to_owned),
                name: text(function, "name").unwrap_or_default().to_owned(),
                signature: None,
            });
            let fragment = match function.get("arguments") {
                Some(Value::String(text)) => text.clone(),
                Some(object @ Value::Object(_)) => object.to_string(),
                _ => "{}".to_owned(),
            };
            events.push(Event::Arguments { index, fragment });
        }
        if value.get("done").and_then(Value::as_bool) == Some(true) {
            self.complete = true;
            let tokens = |name: &str| count(value, name).unwrap_or(0);
            if value.get("eval_count").or_else(|| value.get("prompt_eval_count")).is_some() {
                events.push(Event::Usage(Usage {
                    input: tokens("prompt_eval_count"),
                    output: tokens("eval_count"),
                    ..Usage::default()
                }));
            }
            events.push(Event::Stop(match text(value, "done_reason") {
                Some("length") => Stop::Length,
                _ if self.calls > 0 => Stop::ToolCalls,
                _ => Stop::End,
            }));
        }
        Ok(())
    }

    fn whole(&mut self, value: &Value, events: &mut Vec<Event>) -> std::result::Result<(), Failure> {
        self.next(value, events)
    }

    fn is_complete(&self) -> bool {
        self.complete
    }
}
