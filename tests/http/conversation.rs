//! One conversation with an image and tools, with each protocol and with servers that follow OpenAI's less: what reaches
//! the provider, and what comes back.

use super::*;
use helper_ai::core::chat::{Media, Part, Said, Stop, SystemPart, Tool};
use serde_json::{Value, json};

const QUERY: &str = r#"{"query":"Öl 🛢","tags":["a",{"b":1}]}"#;
const CITY: &str = r#"{"city":"Köln"}"#;

/// Who is talked to.
struct Peer {
    kind: Kind,
    options: &'static str,
    /// Leaves out what it can, see [`Say::bare`].
    bare: bool,
    /// Refuses a request that does not say `max_tokens`.
    wants_max_tokens: bool,
}

const PLAIN: Peer = Peer { kind: Kind::OpenAi, options: "{}", bare: false, wants_max_tokens: false };

fn asked() -> Chat {
    let tool = |name: &str| Tool {
        name: name.into(),
        description: "Looks it up.".into(),
        parameters: r#"{"type":"object"}"#.into(),
    };
    let image = Part::Image(Media { mime_type: "image/png".into(), data: vec![1, 2, 3] });
    let parts = vec![Part::Text("What is this?".into()), image];
    Chat {
        system: vec![SystemPart { text: "Be brief.".into(), cache: false }],
        messages: vec![Message { role: Role::User, parts, cache: false }],
        tools: vec![tool("search"), tool("weather")],
        max_output_tokens: Some(500),
        ..Chat::default()
    }
}

/// First two tools at once, then words.
fn answer(peer: &Peer, seen: &provider::Seen) -> Answer {
    let body = seen.json();
    if peer.wants_max_tokens && (body["max_tokens"] != 500 || !body["max_completion_tokens"].is_null()) {
        return Answer::status(400, r#"{"error":{"message":"unknown field","type":"invalid_request_error"}}"#);
    }
    let has_results = String::from_utf8_lossy(&seen.body).contains("no such city");
    let tools = [("search", QUERY), ("weather", CITY)].map(|(name, input)| (name.to_owned(), input.to_owned()));
    Answer::Say(match has_results {
        true => Say { text: WORDS.into(), bare: peer.bare, ..Say::default() },
        false => Say { text: "Let me look.".into(), bare: peer.bare, tools: tools.into(), ..Say::default() },
    })
}

/// What has reached the provider in the end, but for the tools and the settings.
fn expected(kind: Kind, ids: &[&str; 2]) -> Value {
    let [query, city] = [QUERY, CITY].map(|text| serde_json::from_str::<Value>(text).unwrap());
    match kind {
        Kind::OpenAi | Kind::OpenAiCompatible => json!({ "messages": [
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": [
                { "type": "text", "text": "What is this?" },
                { "type": "image_url", "image_url": { "url": "data:image/png;base64,AQID" } },
            ] },
            { "role": "assistant", "content": "Let me look.", "tool_calls": [
                { "id": ids[0], "type": "function", "function": { "name": "search", "arguments": QUERY } },
                { "id": ids[1], "type": "function", "function": { "name": "weather", "arguments": CITY } },
            ] },
            { "role": "tool", "tool_call_id": ids[0], "content": "found" },
            { "role": "tool", "tool_call_id": ids[1], "content": "error: no such city" },
        ] }),
        Kind::Anthropic => json!({ "system": [{ "type": "text", "text": "Be brief." }], "messages": [
            { "role": "user", "content": [
                { "type": "text", "text": "What is this?" },
                { "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": "AQID" } },
            ] },
            { "role": "assistant", "content": [
                { "type": "text", "text": "Let me look." },
                { "type": "tool_use", "id": ids[0], "name": "search", "input": query },
                { "type": "tool_use", "id": ids[1], "name": "weather", "input": city },
            ] },
            { "role": "user", "content": [
                { "type": "tool_result", "tool_use_id": ids[0], "content": "found" },
                { "type": "tool_result", "tool_use_id": ids[1], "content": "no such city", "is_error": true },
            ] },
        ] }),
        // The server gave no ids, so that none goes back.
        Kind::Gemini => json!({ "systemInstruction": { "parts": [{ "text": "Be brief." }] }, "contents": [
            { "role": "user", "parts": [
                { "text": "What is this?" },
                { "inlineData": { "mimeType": "image/png", "data": "AQID" } },
            ] },
            { "role": "model", "parts": [
                { "text": "Let me look." },
                { "functionCall": { "name": "search", "args": query } },
                { "functionCall": { "name": "weather", "args": city } },
            ] },
            { "role": "user", "parts": [
                { "functionResponse": { "name": "search", "response": { "result": "found" } } },
                { "functionResponse": { "name": "weather", "response": { "error": "no such city" } } },
            ] },
        ] }),
        Kind::Ollama => json!({ "messages": [
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": "What is this?", "images": ["AQID"] },
            { "role": "assistant", "content": "Let me look.", "tool_calls": [
                { "id": ids[0], "function": { "name": "search", "arguments": query } },
                { "id": ids[1], "function": { "name": "weather", "arguments": city } },
            ] },
            { "role": "tool", "tool_name": "search", "tool_call_id": ids[0], "content": "found" },
            { "role": "tool", "tool_name": "weather", "tool_call_id": ids[1], "content": "error: no such city" },
        ] }),
    }
}

/// Has the whole conversation.
async fn converse(peer: Peer, stream: bool) {
    let name = format!("{:?} {} {stream}", peer.kind, peer.options);
    let (kind, bare) = (peer.kind, peer.bare);
    let (server, room) = (Server::start().await, room());
    let mut route = route(kind, &server);
    route.provider.options = peer.options.into();
    server.answer_by(move |seen| answer(&peer, seen));
    let mut conversation = Chat { stream, ..asked() };
    let mut ids = Vec::new();
    for (words, calls, stop, output) in [("Let me look.", 2, Stop::ToolCalls, 3), (WORDS, 0, Stop::End, 5)] {
        let (events, end) = chat(&room, ChatCall { chat: conversation.clone(), ..call(&[&route]) }).await;
        assert_eq!((end.outcome, &end.error, end.attempts), (Outcome::Succeeded, &None, 1), "{name}");
        let mut said = Said::default();
        events.iter().for_each(|event| said.add(event));
        assert_eq!((said.text().as_str(), said.stop), (words, Some(stop)), "{name}");
        let called: Vec<_> = said.tool_calls().cloned().collect();
        assert_eq!(called.len(), calls, "{name} {said:?}");
        assert_eq!((end.estimated, said.usage.is_none()), (bare, bare), "{name}");
        assert!(end.usage.input > 0, "{name}");
        assert_eq!(if bare { output } else { end.usage.output }, output, "{name} {end:?}");
        if calls > 0 {
            for (call, (tool, arguments)) in called.iter().zip([("search", QUERY), ("weather", CITY)]) {
                assert_eq!((call.name.as_str(), call.arguments.as_str()), (tool, arguments), "{name}");
                ids.push(call.id.clone());
            }
            let result = |at: usize, content: &str, is_error| Part::ToolResult {
                id: called[at].id.clone(),
                name: called[at].name.clone(),
                content: content.into(),
                is_error,
            };
            let results = vec![result(0, "found", false), result(1, "no such city", true)];
            conversation.messages.push(Message { role: Role::Assistant, parts: said.parts, cache: false });
            conversation.messages.push(Message { role: Role::User, parts: results, cache: false });
        }
    }
    assert_ne!(ids[0], ids[1], "{name}");
    let seen = server.seen();
    assert_eq!(seen.len(), 2, "{name}");
    let (first, last) = (seen[0].json(), seen[1].json());
    for (part, value) in expected(kind, &[&ids[0], &ids[1]]).as_object().unwrap() {
        assert_eq!(&last[part], value, "{name}");
        // The first request is the beginning of the last.
        let begins = |part: &Value| part.as_array().is_none_or(|all| all.starts_with(first_of(&first)));
        assert!(part == "system" || begins(&last[part]), "{name} {part}");
    }
    let limits = ["/max_tokens", "/max_completion_tokens", "/generationConfig/maxOutputTokens", "/options/num_predict"];
    let limits: Vec<_> = limits.iter().filter_map(|limit| last.pointer(limit)).collect();
    assert_eq!(limits, [&json!(500)], "{name}");
}

/// The turns of a request.
fn first_of(body: &Value) -> &[Value] {
    body.get("messages").or(body.get("contents")).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[tokio::test]
async fn a_conversation_with_tools_and_images_goes_through_every_protocol() {
    for kind in KINDS {
        for stream in [true, false] {
            converse(Peer { kind, ..PLAIN }, stream).await;
        }
    }
}

#[tokio::test]
async fn a_server_may_leave_out_usage_index_id_and_the_end() {
    for stream in [true, false] {
        converse(Peer { kind: Kind::OpenAiCompatible, bare: true, ..PLAIN }, stream).await;
    }
}

#[tokio::test]
async fn a_server_may_want_max_tokens() {
    for stream in [true, false] {
        let wants = Peer { wants_max_tokens: true, ..PLAIN };
        converse(Peer { kind: Kind::OpenAiCompatible, ..wants }, stream).await;
        converse(Peer { options: r#"{"max_tokens":true}"#, ..wants }, stream).await;
    }
    let server = Server::start().await;
    let wants = Peer { wants_max_tokens: true, ..PLAIN };
    server.answer_by(move |seen| answer(&wants, seen));
    let (_, end) = chat(&room(), ChatCall { chat: asked(), ..call(&[&route(Kind::OpenAi, &server)]) }).await;
    assert_eq!((sqlstate(&end), end.attempts), ("38000", 1));
}
