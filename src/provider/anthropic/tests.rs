#![allow(clippy::unwrap_used)]

use crate::core::chat::*;
use crate::core::error::Result;
use crate::provider::{self, tests::*};
use serde_json::{Value, json};

fn asked(options: Value, limit: u32, chat: &Chat) -> Result<Value> {
    let call = provider::chat(Kind::Anthropic, &provider::dialect(Kind::Anthropic, &options), "m", limit, chat)?;
    assert_eq!(call.path, "/v1/messages");
    assert_eq!(call.headers, [("anthropic-version", "2023-06-01".to_owned())]);
    Ok(serde_json::from_slice(&call.body).unwrap())
}

fn body(chat: &Chat) -> Value {
    asked(Value::Null, 0, chat).unwrap()
}

#[test]
fn a_conversation_becomes_blocks() {
    let parameters = json!({ "type": "object", "properties": { "query": { "type": "string" } } });
    assert_eq!(
        body(&conversation()),
        json!({
            "model": "m",
            "max_tokens": 500,
            "system": [
                { "type": "text", "text": "Be brief.", "cache_control": { "type": "ephemeral" } },
                { "type": "text", "text": "Today is Monday." },
            ],
            "messages": [
                { "role": "user", "content": [
                    { "type": "text", "text": "What is this?" },
                    { "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "AQID" } },
                    {
                        "type": "document",
                        "source": { "type": "base64", "media_type": "application/pdf", "data": "JVBERg==" },
                        "title": "a.pdf",
                        "cache_control": { "type": "ephemeral" },
                    },
                ] },
                { "role": "assistant", "content": [
                    { "type": "thinking", "thinking": "Sealed.", "signature": "c2ln" },
                    { "type": "text", "text": "Let me see." },
                    { "type": "tool_use", "id": "a", "name": "search", "input": { "query": "x" } },
                    { "type": "tool_use", "id": "b", "name": "search", "input": { "INVALID_JSON": "{oops" } },
                ] },
                { "role": "user", "content": [
                    { "type": "tool_result", "tool_use_id": "a", "content": "found" },
                    { "type": "tool_result", "tool_use_id": "b", "content": "not JSON", "is_error": true },
                    { "type": "text", "text": "Go on." },
                ] },
            ],
            "tools": [{ "name": "search", "description": "Searches.", "input_schema": parameters }],
            "temperature": 0.7,
            "top_p": 0.9,
            "stop_sequences": ["END"],
            "metadata": { "user_id": "u1" },
            "stream": true,
        })
    );
}

#[test]
fn a_reply_always_has_a_limit() {
    let limit = |limit, own| {
        asked(Value::Null, limit, &Chat { max_output_tokens: own, ..question() }).unwrap()["max_tokens"].clone()
    };
    assert_eq!([limit(0, None), limit(8000, None), limit(8000, Some(9))], [json!(4096), json!(8000), json!(9)]);
}

#[test]
fn a_form_is_a_tool_that_must_be_called() {
    let form = Output::Schema { name: "verdict".into(), schema: r#"{"type":"object"}"#.into() };
    let alone = body(&Chat { output: form.clone(), ..question() });
    assert_eq!(alone["tool_choice"], json!({ "type": "tool", "name": "verdict" }));
    assert_eq!(alone["tools"][0]["input_schema"], json!({ "type": "object" }));
    let among = body(&Chat { output: form.clone(), ..conversation() });
    assert_eq!(among["tool_choice"], json!({ "type": "any" }));
    assert_eq!(among["tools"].as_array().unwrap().len(), 2);
    assert_eq!(body(&Chat { output: Output::Json, ..question() })["tools"][0]["name"], "json");
    let own = asked(json!({ "json_schema": true }), 0, &Chat { output: form, ..question() }).unwrap();
    assert_eq!(own["output_config"]["format"], json!({ "type": "json_schema", "schema": { "type": "object" } }));
    assert_eq!(own.get("tools"), None);
    let list = Output::Schema { name: "list".into(), schema: r#"{"type":"array"}"#.into() };
    let error = asked(Value::Null, 0, &Chat { output: list, ..question() }).unwrap_err();
    assert_eq!(error.message, "schema \"list\" must be of an object for this provider");
}

#[test]
fn a_form_is_read_from_words_where_the_model_declines() {
    let chat = Chat { output: Output::Json, ..question() };
    let reply = json!({ "id": "x", "content": [{ "type": "text", "text": "No." }], "stop_reason": "refusal" });
    let said = read(Kind::Anthropic, &chat, reply.to_string().as_bytes()).unwrap();
    assert_eq!((said.text().as_str(), said.stop), ("No.", Some(Stop::Refusal)));
    let content =
        json!([{ "type": "text", "text": "Here:" }, { "type": "tool_use", "name": "json", "input": { "a": 1 } }]);
    let reply = json!({ "id": "x", "content": content, "stop_reason": "tool_use" });
    let said = read(Kind::Anthropic, &chat, reply.to_string().as_bytes()).unwrap();
    assert_eq!((said.text().as_str(), said.stop), (r#"{"a":1}"#, Some(Stop::End)));
}

#[test]
fn the_model_does_not_begin() {
    let chat = Chat { messages: vec![Message::text(Role::Assistant, "Hello")], ..Chat::default() };
    assert_eq!(asked(Value::Null, 0, &chat).unwrap_err().message, "conversation does not begin with the user");
    let hot = Chat { temperature: Some(1.5), ..question() };
    assert_eq!(asked(Value::Null, 0, &hot).unwrap_err().message, "temperature must not be above 1 for this provider");
}

#[test]
fn the_first_and_the_last_marks_of_a_cache_are_kept() {
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    let messages = roles.take(7).map(|role| Message { cache: true, ..Message::text(role, "x") }).collect();
    let body = body(&Chat { messages, system: vec![SystemPart { text: "s".into(), cache: true }], ..Chat::default() });
    let marks = |blocks: &Value| blocks[0].get("cache_control").is_some();
    assert!(marks(&body["system"]));
    let messages: Vec<_> = body["messages"].as_array().unwrap().iter().map(|turn| marks(&turn["content"])).collect();
    assert_eq!(messages, [false, false, false, false, true, true, true]);
}

#[test]
fn what_a_reply_says_can_be_sent_back() {
    let bytes = include_bytes!("../../../tests/cassettes/anthropic/tools.sse");
    let said = read(Kind::Anthropic, &Chat { stream: true, ..question() }, bytes).unwrap();
    let mut chat = question();
    chat.messages.push(Message { role: Role::Assistant, parts: said.parts, cache: false });
    let content = body(&chat)["messages"][1]["content"].clone();
    assert_eq!(content[0]["signature"], "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxB");
    assert_eq!(content[1], json!({ "type": "redacted_thinking", "data": "EmwKAhgBEgy3va3p" }));
    assert_eq!(content[4]["input"], json!({}));
}

#[test]
fn a_stream_is_complete_with_its_last_event_alone() {
    let bytes = include_bytes!("../../../tests/cassettes/anthropic/text.sse");
    let last = bytes.windows(19).position(|part| part == b"event: message_stop").unwrap();
    let chat = Chat { stream: true, ..question() };
    assert!(read(Kind::Anthropic, &chat, bytes).is_ok());
    assert_eq!(read(Kind::Anthropic, &chat, &bytes[..last]).unwrap_err().cause, provider::Cause::Nonsense);
}
