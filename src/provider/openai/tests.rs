#![allow(clippy::unwrap_used)]

use crate::core::chat::*;
use crate::core::error::Error;
use crate::provider::{self, tests::*};
use serde_json::{Value, json};

fn body(kind: Kind, options: Value, chat: &Chat) -> Value {
    let call = provider::chat(kind, &provider::dialect(kind, &options), "m", 0, chat).unwrap();
    assert_eq!((call.method, call.path.as_str()), ("POST", "/chat/completions"));
    serde_json::from_slice(&call.body).unwrap()
}

fn refused(chat: &Chat) -> Error {
    provider::chat(Kind::OpenAi, &provider::dialect(Kind::OpenAi, &Value::Null), "m", 0, chat).unwrap_err()
}

#[test]
fn a_conversation_becomes_messages() {
    assert_eq!(
        body(Kind::OpenAi, Value::Null, &conversation()),
        json!({
            "model": "m",
            "messages": [
                { "role": "system", "content": "Be brief.\n\nToday is Monday." },
                { "role": "user", "content": [
                    { "type": "text", "text": "What is this?" },
                    { "type": "image_url", "image_url": { "url": "data:image/png;base64,AQID" } },
                    { "type": "file", "file": { "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg==" } },
                ] },
                { "role": "assistant", "content": "Let me see.", "tool_calls": [
                    { "id": "a", "type": "function", "function": { "name": "search", "arguments": "{\"query\":\"x\"}" } },
                    { "id": "b", "type": "function", "function": { "name": "search", "arguments": "{oops" } },
                ] },
                { "role": "tool", "tool_call_id": "a", "content": "found" },
                { "role": "tool", "tool_call_id": "b", "content": "error: not JSON" },
                { "role": "user", "content": "Go on." },
            ],
            "tools": [{ "type": "function", "function": {
                "name": "search",
                "description": "Searches.",
                "parameters": { "type": "object", "properties": { "query": { "type": "string" } } },
            } }],
            "max_completion_tokens": 500,
            "temperature": 0.7,
            "top_p": 0.9,
            "stop": ["END"],
            "user": "u1",
            "stream": true,
            "stream_options": { "include_usage": true },
        })
    );
}

#[test]
fn servers_that_follow_the_protocol_less_are_asked_otherwise() {
    let mut chat = conversation();
    let body_of = |options: Value, chat: &Chat| body(Kind::OpenAiCompatible, options, chat);
    let body = body_of(Value::Null, &chat);
    assert_eq!((&body["max_tokens"], body.get("max_completion_tokens")), (&json!(500), None));
    assert_eq!(body["messages"][2]["reasoning_content"], "Look first.");
    let arguments = body["messages"][2]["tool_calls"][1]["function"]["arguments"].as_str().unwrap();
    assert_eq!(arguments, r#"{"INVALID_JSON":"{oops"}"#);
    let body = body_of(json!({ "max_tokens": false, "stream_usage": false }), &chat);
    assert_eq!((&body["max_completion_tokens"], body.get("stream_options")), (&json!(500), None));
    chat.output = Output::Schema { name: "verdict".into(), schema: r#"{"type":"object"}"#.into() };
    let body = body_of(json!({ "json_schema": false }), &chat);
    assert_eq!(body["response_format"], json!({ "type": "json_object" }));
    assert!(body["messages"][0]["content"].as_str().unwrap().ends_with(
        r#"describes:
{"type":"object"}"#
    ));
}

#[test]
fn a_schema_keeps_the_order_of_its_properties() {
    let schema = r#"{"type":"object","properties":{"reason":{"type":"string"},"answer":{"type":"string"}}}"#;
    let chat =
        Chat { output: Output::Schema { name: "verdict".into(), schema: schema.into() }, stream: false, ..question() };
    let call = provider::chat(Kind::OpenAi, &provider::dialect(Kind::OpenAi, &Value::Null), "m", 0, &chat).unwrap();
    let body = String::from_utf8(call.body).unwrap();
    assert!(body.contains(schema), "{body}");
    // Its object is open, which strict schemas must not be.
    assert!(body.contains(r#""strict":false"#) && !body.contains("stream_options"), "{body}");
    let closed = schema.replace(r#"}}}"#, r#"}},"required":["reason","answer"],"additionalProperties":false}"#);
    let chat = Chat { output: Output::Schema { name: "verdict".into(), schema: closed }, ..chat };
    let call = provider::chat(Kind::OpenAi, &provider::dialect(Kind::OpenAi, &Value::Null), "m", 0, &chat).unwrap();
    assert!(String::from_utf8(call.body).unwrap().contains(r#""strict":true"#));
}

#[test]
fn tools_are_chosen() {
    for (choice, expected) in [
        (ToolChoice::Auto, Value::Null),
        (ToolChoice::None, json!("none")),
        (ToolChoice::Required, json!("required")),
        (ToolChoice::Named("search".into()), json!({ "type": "function", "function": { "name": "search" } })),
    ] {
        let chat = Chat { tool_choice: choice, ..conversation() };
        assert_eq!(body(Kind::OpenAi, Value::Null, &chat)["tool_choice"], expected);
    }
}

#[test]
fn what_cannot_be_said_is_refused() {
    let media = Media { mime_type: "application/zip".into(), data: vec![1] };
    let document = Part::Document { name: "a".into(), media: media.clone() };
    let turn =
        |role, part| Chat { messages: vec![Message { role, parts: vec![part], cache: false }], ..Chat::default() };
    for (chat, message) in [
        (Chat::default(), "conversation has no messages"),
        (turn(Role::User, document), "model cannot read documents of type \"application/zip\""),
        (turn(Role::User, Part::Image(media)), "\"application/zip\" is not the type of an image"),
        (turn(Role::User, Part::ToolCall(ToolCall::default())), "a turn of the user holds a tool call or reasoning"),
        (Chat { tool_choice: ToolChoice::Required, ..question() }, "a tool is to be called, but none is given"),
        (
            Chat { tool_choice: ToolChoice::Named("x".into()), ..conversation() },
            "tool \"x\" is to be called, but not given",
        ),
        (Chat { temperature: Some(f32::NAN), ..question() }, "temperature and top_p must be finite"),
        (
            Chat { output: Output::Schema { name: "v".into(), schema: "[".into() }, ..question() },
            "schema of \"v\" is not a JSON object",
        ),
    ] {
        assert_eq!(refused(&chat).message, message);
    }
}
