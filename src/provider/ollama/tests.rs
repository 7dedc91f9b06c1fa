#![allow(clippy::unwrap_used)]

use crate::core::chat::*;
use crate::core::error::Result;
use crate::provider::{self, tests::*};
use serde_json::{Value, json};

fn asked(options: Value, chat: &Chat) -> Result<Value> {
    let call = provider::chat(Kind::Ollama, &provider::dialect(Kind::Ollama, &options), "m", 0, chat)?;
    assert_eq!(call.path, "/api/chat");
    Ok(serde_json::from_slice(&call.body).unwrap())
}

#[test]
fn a_conversation_becomes_messages() {
    let mut chat = conversation();
    assert_eq!(asked(Value::Null, &chat).unwrap_err().message, "model cannot read documents");
    chat.messages[0].parts.pop();
    let parameters = json!({ "type": "object", "properties": { "query": { "type": "string" } } });
    assert_eq!(
        asked(json!({ "num_ctx": 8192 }), &chat).unwrap(),
        json!({
            "model": "m",
            "messages": [
                { "role": "system", "content": "Be brief.\n\nToday is Monday." },
                { "role": "user", "content": "What is this?", "images": ["AQID"] },
                { "role": "assistant", "content": "Let me see.", "thinking": "Look first.", "tool_calls": [
                    { "id": "a", "function": { "name": "search", "arguments": { "query": "x" } } },
                    { "id": "b", "function": { "name": "search", "arguments": { "INVALID_JSON": "{oops" } } },
                ] },
                { "role": "tool", "tool_name": "search", "tool_call_id": "a", "content": "found" },
                { "role": "tool", "tool_name": "search", "tool_call_id": "b", "content": "error: not JSON" },
                { "role": "user", "content": "Go on." },
            ],
            "tools": [{ "type": "function", "function": {
                "name": "search", "description": "Searches.", "parameters": parameters,
            } }],
            "options": { "num_ctx": 8192, "num_predict": 500, "temperature": 0.7, "top_p": 0.9, "stop": ["END"] },
            "stream": true,
        })
    );
}

#[test]
fn whether_it_streams_is_always_said() {
    let body = asked(Value::Null, &question()).unwrap();
    assert_eq!((&body["stream"], body.get("options")), (&json!(false), None));
}

#[test]
fn a_form_is_a_format() {
    let form = Output::Schema { name: "v".into(), schema: r#"{"type":"array"}"#.into() };
    let format = |output| asked(Value::Null, &Chat { output, ..question() }).unwrap()["format"].clone();
    assert_eq!([format(form), format(Output::Json)], [json!({ "type": "array" }), json!("json")]);
}

#[test]
fn a_tool_cannot_be_made_to_be_called() {
    let mut chat = conversation();
    chat.messages[0].parts.pop();
    chat.tool_choice = ToolChoice::None;
    assert_eq!(asked(Value::Null, &chat).unwrap().get("tools"), None);
    chat.tool_choice = ToolChoice::Required;
    assert_eq!(asked(Value::Null, &chat).unwrap_err().message, "model cannot be made to call a tool");
}
