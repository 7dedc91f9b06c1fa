#![allow(clippy::unwrap_used)]

use crate::core::chat::*;
use crate::provider::{self, tests::*};
use serde_json::{Value, json};

fn call(model: &str, chat: &Chat) -> crate::core::error::Result<provider::Call> {
    provider::chat(Kind::Gemini, &provider::dialect(Kind::Gemini, &Value::Null), model, 0, chat)
}

fn body(chat: &Chat) -> Value {
    serde_json::from_slice(&call("m", chat).unwrap().body).unwrap()
}

#[test]
fn a_conversation_becomes_contents() {
    let parameters = json!({ "type": "object", "properties": { "query": { "type": "string" } } });
    assert_eq!(
        body(&conversation()),
        json!({
            "systemInstruction": { "parts": [{ "text": "Be brief." }, { "text": "Today is Monday." }] },
            "contents": [
                { "role": "user", "parts": [
                    { "text": "What is this?" },
                    { "inlineData": { "mimeType": "image/png", "data": "AQID" } },
                    { "inlineData": { "mimeType": "application/pdf", "data": "JVBERg==" } },
                ] },
                { "role": "model", "parts": [
                    { "text": "", "thoughtSignature": "c2ln" },
                    { "text": "Let me see." },
                    { "functionCall": { "name": "search", "args": { "query": "x" }, "id": "a" }, "thoughtSignature": "seal" },
                    { "functionCall": { "name": "search", "args": { "INVALID_JSON": "{oops" }, "id": "b" } },
                ] },
                { "role": "user", "parts": [
                    { "functionResponse": { "name": "search", "response": { "result": "found" }, "id": "a" } },
                    { "functionResponse": { "name": "search", "response": { "error": "not JSON" }, "id": "b" } },
                    { "text": "Go on." },
                ] },
            ],
            "tools": [{ "functionDeclarations": [
                { "name": "search", "description": "Searches.", "parametersJsonSchema": parameters },
            ] }],
            "generationConfig": { "maxOutputTokens": 500, "temperature": 0.7, "topP": 0.9, "stopSequences": ["END"] },
        })
    );
}

#[test]
fn a_stream_and_a_model_are_named_in_the_path() {
    assert_eq!(call("m-1.5", &question()).unwrap().path, "/v1beta/models/m-1.5:generateContent");
    let chat = Chat { stream: true, ..question() };
    assert_eq!(call("tunedModels/x", &chat).unwrap().path, "/v1beta/tunedModels/x:streamGenerateContent?alt=sse");
    for model in ["", "a?key=b", "../x", "a b", "a#"] {
        assert_eq!(call(model, &chat).unwrap_err().message, format!("\"{model}\" is not the name of a model"));
    }
}

#[test]
fn forms_and_choices_are_settings() {
    let schema = r#"{"type":"array","items":{"type":"string"}}"#;
    let asked = body(&Chat { output: Output::Schema { name: "v".into(), schema: schema.into() }, ..question() });
    assert_eq!(asked["generationConfig"]["responseMimeType"], "application/json");
    assert_eq!(asked["generationConfig"]["responseJsonSchema"], serde_json::from_str::<Value>(schema).unwrap());
    let asked = body(&Chat { tool_choice: ToolChoice::Named("search".into()), ..conversation() });
    assert_eq!(
        asked["toolConfig"]["functionCallingConfig"],
        json!({ "mode": "ANY", "allowedFunctionNames": ["search"] })
    );
}

#[test]
fn what_a_reply_says_can_be_sent_back() {
    let bytes = include_bytes!("../../../tests/cassettes/gemini/tools.sse");
    let said = read(Kind::Gemini, &Chat { stream: true, ..question() }, bytes).unwrap();
    let mut chat = question();
    chat.messages.push(Message { role: Role::Assistant, parts: said.parts, cache: false });
    let parts = body(&chat)["contents"][1]["parts"].clone();
    assert_eq!(parts[0]["thoughtSignature"], "CtABAVKhc7k=");
    // The id is one that we made.
    assert_eq!(parts[1], json!({ "functionCall": { "name": "now", "args": {} } }));
}
