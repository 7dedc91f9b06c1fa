//! Gemini's `generateContent`: the requests.

mod reply;
#[cfg(test)]
mod tests;

pub(super) use reply::Generation;

use super::Call;
use super::request::{arguments, base64, in_path, number, output_schema, post, put, schema, turns};
use crate::core::chat::{Chat, Media, Output, Part, Role, ToolChoice};
use crate::core::error::Result;
use serde_json::{Map, Value, json};

/// The request of a chat.
pub(super) fn chat(model: &str, chat: &Chat) -> Result<Call> {
    let mut body = Map::new();
    let system: Vec<_> =
        chat.system.iter().filter(|part| !part.text.is_empty()).map(|part| json!({ "text": part.text })).collect();
    put(&mut body, "systemInstruction", (!system.is_empty()).then(|| json!({ "parts": system })));
    body.insert("contents".into(), contents(chat).into());
    if !chat.tools.is_empty() {
        let mut functions = Vec::new();
        for tool in &chat.tools {
            let parameters = schema(&tool.parameters, &tool.name)?;
            functions.push(json!({
                "name": tool.name,
                "description": tool.description,
                "parametersJsonSchema": parameters,
            }));
        }
        body.insert("tools".into(), json!([{ "functionDeclarations": functions }]));
        let choice = match &chat.tool_choice {
            ToolChoice::Auto => None,
            ToolChoice::None => Some(json!({ "mode": "NONE" })),
            ToolChoice::Required => Some(json!({ "mode": "ANY" })),
            ToolChoice::Named(name) => Some(json!({ "mode": "ANY", "allowedFunctionNames": [name] })),
        };
        put(&mut body, "toolConfig", choice.map(|choice| json!({ "functionCallingConfig": choice })));
    }
    let mut config = Map::new();
    put(&mut config, "maxOutputTokens", chat.max_output_tokens);
    put(&mut config, "temperature", number(chat.temperature));
    put(&mut config, "topP", number(chat.top_p));
    put(&mut config, "stopSequences", (!chat.stop.is_empty()).then(|| json!(chat.stop)));
    put(&mut config, "responseMimeType", (chat.output != Output::Text).then_some("application/json"));
    put(&mut config, "responseJsonSchema", output_schema(chat)?.map(|(_, schema)| schema));
    put(&mut body, "generationConfig", (!config.is_empty()).then_some(config));
    let verb = if chat.stream { "streamGenerateContent?alt=sse" } else { "generateContent" };
    Ok(post(format!("{}:{verb}", path(model)?), Vec::new(), &Value::Object(body)))
}

/// The path of a model; one that has been tuned has a collection of its own in its name.
pub(super) fn path(model: &str) -> Result<String> {
    Ok(format!("/v1beta/{}", resource(in_path(model)?)))
}

/// The full name of a model.
pub(super) fn resource(model: &str) -> String {
    if model.contains('/') { model.to_owned() } else { format!("models/{model}") }
}

fn contents(chat: &Chat) -> Vec<Value> {
    let contents = turns(&chat.messages).into_iter().filter_map(|turn| {
        let role = if turn.role == Role::User { "user" } else { "model" };
        let parts: Vec<_> = turn.parts.iter().filter_map(|(part, _)| self::part(part)).collect();
        (!parts.is_empty()).then(|| json!({ "role": role, "parts": parts }))
    });
    contents.collect()
}

fn part(part: &Part) -> Option<Value> {
    Some(match part {
        Part::Text(text) => json!({ "text": text }),
        Part::Image(media) | Part::Document { media, .. } => inline(media),
        Part::ToolCall(call) => {
            let function = with_id(&call.id, json!({ "name": call.name, "args": arguments(&call.arguments) }));
            let mut part = json!({ "functionCall": function });
            if let Some(signature) = &call.signature {
                part["thoughtSignature"] = signature.as_str().into();
            }
            part
        }
        Part::ToolResult { id, name, content, is_error } => {
            let key = if *is_error { "error" } else { "result" };
            json!({ "functionResponse": with_id(id, json!({ "name": name, "response": { key: content } })) })
        }
        // A summary of the reasoning is for people; only a seal is wanted back, on words that may be empty.
        Part::Thinking { signature, .. } if signature.is_empty() => return None,
        Part::Thinking { signature, .. } => json!({ "text": "", "thoughtSignature": signature }),
    })
}

/// Adds the id of a call, unless it is one that we made.
fn with_id(id: &str, mut function: Value) -> Value {
    let ours = id.strip_prefix("call_").is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
    if !ours && !id.is_empty() {
        function["id"] = id.into();
    }
    function
}

fn inline(media: &Media) -> Value {
    json!({ "inlineData": { "mimeType": media.mime_type, "data": base64(media) } })
}
