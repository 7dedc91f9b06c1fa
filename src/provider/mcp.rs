//! The Model Context Protocol as its client speaks it, in the revisions that begin with a handshake: JSON-RPC messages
//! out, and what the server's say. What a server tells of itself is its word alone, and bounded.

use super::sse;
use crate::core::error::{Error, Kind, Result};
use crate::core::wire::McpTool;
use serde_json::{Map, Value, json};

/// Revisions of the protocol that are spoken, the newest first.
pub const REVISIONS: [&str; 3] = ["2025-11-25", "2025-06-18", "2025-03-26"];

/// Characters of a server's own name and version, and of an error's message, that are kept.
const NAME: usize = 200;
/// Characters of a tool's description that are kept.
const DESCRIPTION: usize = 8 * 1024;
/// Bytes of a tool's schema at most.
const SCHEMA: usize = 256 * 1024;

/// A request.
pub fn request(id: u64, method: &str, params: &Value) -> String {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string()
}

/// What the first request says of us.
pub fn initialize() -> Value {
    json!({
        "protocolVersion": REVISIONS[0],
        "capabilities": {},
        "clientInfo": { "name": "helper_ai", "version": env!("CARGO_PKG_VERSION") },
    })
}

/// Says that the handshake is over.
pub fn initialized() -> String {
    json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }).to_string()
}

/// The answer to a request of the server's: we are there, and can do nothing for it.
pub fn answer(id: &Value, method: &str) -> String {
    match method {
        "ping" => json!({ "jsonrpc": "2.0", "id": id, "result": {} }),
        _ => json!({ "jsonrpc": "2.0", "id": id, "error": { "code": -32601, "message": "Method not found" } }),
    }
    .to_string()
}

/// A server's message, to whoever waits for the answer to one request.
#[derive(Debug, PartialEq)]
pub enum Message {
    /// The answer.
    Result(Value),
    /// The request failed.
    Error {
        /// JSON-RPC's code.
        code: i64,
        /// The server's words.
        message: String,
    },
    /// The server asks us something.
    Request {
        /// For the answer.
        id: Value,
        /// What it asks.
        method: String,
    },
    /// Nothing that matters to us.
    Other,
}

/// Reads a message; `id` is the request's that waits.
pub fn message(mut value: Value, id: u64) -> Message {
    if let Some(method) = value.get("method").and_then(Value::as_str) {
        return match value.get("id") {
            Some(id) if !id.is_null() => Message::Request { id: id.clone(), method: method.to_owned() },
            _ => Message::Other,
        };
    }
    if value.get("id") != Some(&json!(id)) {
        return Message::Other;
    }
    if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
        let code = error.get("code").and_then(Value::as_i64).unwrap_or_default();
        return Message::Error { code, message: text(error, "message", NAME) };
    }
    value.get_mut("result").map_or(Message::Other, |result| Message::Result(result.take()))
}

/// The revision that a server chose in its answer to [`initialize`], where it is one of ours.
pub fn revision(result: &Value) -> Option<&'static str> {
    let chosen = result.get("protocolVersion")?.as_str()?;
    REVISIONS.into_iter().find(|revision| *revision == chosen)
}

/// What a server calls itself in that answer, and its version.
pub fn name(result: &Value) -> (String, String) {
    let info = result.get("serverInfo").unwrap_or(&Value::Null);
    (text(info, "name", NAME), text(info, "version", NAME))
}

/// The tools of a page of `tools/list`, and where the next one begins. A tool that nobody could call is left out.
pub fn tools(result: &Value) -> Option<(Vec<McpTool>, Option<String>)> {
    let tools = result.get("tools")?.as_array()?.iter().filter_map(tool).collect();
    let cursor = result.get("nextCursor").and_then(Value::as_str).map(str::to_owned);
    Some((tools, cursor))
}

fn tool(tool: &Value) -> Option<McpTool> {
    let name = tool.get("name")?.as_str()?;
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let input_schema = tool.get("inputSchema").filter(|schema| schema.is_object())?.to_string();
    if !(1..=128).contains(&name.len()) || !name.chars().all(good) || input_schema.len() > SCHEMA {
        return None;
    }
    let hint = |name: &str| tool.get("annotations").and_then(|hints| hints.get(name)) == Some(&Value::Bool(true));
    let description = match text(tool, "description", DESCRIPTION) {
        none if none.is_empty() => text(tool, "title", DESCRIPTION),
        given => given,
    };
    Some(McpTool {
        name: name.to_owned(),
        description,
        input_schema,
        read_only: hint("readOnlyHint"),
        idempotent: hint("idempotentHint"),
    })
}

/// What `tools/call` is told. `arguments` is JSON text of an object.
pub fn call(tool: &str, arguments: &str) -> Result<Value> {
    let arguments: Map<String, Value> =
        serde_json::from_str(arguments).map_err(|_| Error::bug("a tool's arguments are not a JSON object"))?;
    Ok(json!({ "name": tool, "arguments": arguments }))
}

/// What a tool answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its text, or JSON.
    pub text: String,
    /// The text is JSON.
    pub is_json: bool,
    /// It says that it failed.
    pub is_error: bool,
}

/// Reads the answer to `tools/call`; `None` where it is none.
pub fn outcome(result: &Value) -> Option<Outcome> {
    let is_error = result.get("isError") == Some(&Value::Bool(true));
    if let Some(content) = result.get("structuredContent").filter(|content| !content.is_null()) {
        return Some(Outcome { text: content.to_string(), is_json: true, is_error });
    }
    let parts: Vec<String> = result.get("content")?.as_array()?.iter().map(part).collect();
    Some(Outcome { text: parts.join("\n"), is_json: false, is_error })
}

/// A part of an answer as text; what is none is named.
fn part(part: &Value) -> String {
    let member = |name: &str| part.get(name).and_then(Value::as_str).unwrap_or_default();
    match member("type") {
        "text" => member("text").to_owned(),
        "resource" => {
            let resource = part.get("resource").unwrap_or(&Value::Null);
            match resource.get("text").and_then(Value::as_str) {
                Some(text) => text.to_owned(),
                None => format!("[resource {}]", text(resource, "uri", NAME)),
            }
        }
        "resource_link" => format!("[resource {}]", member("uri")),
        kind => format!("[{} {}]", text(&json!({ "kind": kind }), "kind", NAME), text(part, "mimeType", NAME)),
    }
}

/// A member that is a text, bounded.
fn text(value: &Value, name: &str, most: usize) -> String {
    value.get(name).and_then(Value::as_str).unwrap_or_default().chars().take(most).collect()
}

/// Bytes of a reply in, messages out: one JSON text, or server-sent events.
pub enum Messages {
    /// A reply that is complete at its end.
    Whole(Vec<u8>),
    /// A stream.
    Stream(Box<Stream>),
}

/// A stream of messages.
pub struct Stream(sse::Events);

impl Messages {
    /// For a reply of this media type; `None` where the protocol has no such.
    pub fn of(content_type: &str) -> Option<Messages> {
        match content_type {
            "application/json" => Some(Messages::Whole(Vec::new())),
            "text/event-stream" => Some(Messages::Stream(Box::new(Stream(sse::Events::default())))),
            _ => None,
        }
    }

    /// Takes the next bytes, cut anywhere, and appends the messages that they complete.
    pub fn push(&mut self, bytes: &[u8], messages: &mut Vec<Value>) -> Result<()> {
        match self {
            Messages::Whole(whole) => whole.extend_from_slice(bytes),
            Messages::Stream(stream) => {
                let pushed = stream.0.push(bytes, |data| add(data, messages));
                pushed.map_err(|_| Error::new(Kind::OverLimit, "a message of an MCP server is too long"))?;
            }
        }
        Ok(())
    }

    /// The reply is over.
    pub fn finish(self, messages: &mut Vec<Value>) {
        match self {
            Messages::Whole(whole) => add(&whole, messages),
            Messages::Stream(mut stream) => {
                // What is too long to be read does not answer either.
                let _ = stream.0.rest(|data| add(data, messages));
            }
        }
    }
}

/// Adds a message, or the messages of a batch, as the oldest revision has them.
fn add(data: &[u8], messages: &mut Vec<Value>) {
    match serde_json::from_slice(data) {
        Ok(Value::Array(batch)) => messages.extend(batch),
        Ok(value) => messages.push(value),
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_the_answer_to_the_request_is_taken_for_it() {
        let read = |value: Value| message(value, 2);
        assert_eq!(read(json!({"id": 2, "result": {"a": 1}})), Message::Result(json!({"a": 1})));
        assert_eq!(read(json!({"id": 1, "result": {}})), Message::Other);
        assert_eq!(read(json!({"id": "2", "result": {}})), Message::Other);
        assert_eq!(read(json!({"id": 2})), Message::Other);
        assert_eq!(read(json!({"method": "notifications/progress", "params": {}})), Message::Other);
        let ping = Message::Request { id: json!("x"), method: "ping".into() };
        assert_eq!(read(json!({"id": "x", "method": "ping"})), ping);
        let error = Message::Error { code: -32602, message: "no such tool".into() };
        assert_eq!(read(json!({"id": 2, "error": {"code": -32602, "message": "no such tool"}})), error);
        assert_eq!(read(json!("text")), Message::Other);
    }

    #[test]
    fn messages_are_the_same_however_they_are_cut() {
        let stream = "id: 1\ndata:\n\n: ping\nevent: message\ndata: {\"a\":\ndata: 1}\n\ndata: no JSON\n\ndata: [{\"b\": 2}, {\"c\": 3}]";
        let whole = "[{\"a\": 1}, {\"b\": 2}, {\"c\": 3}]";
        for (kind, text) in [("text/event-stream", stream), ("application/json", whole)] {
            for length in 1..=text.len() {
                let mut read = Messages::of(kind).unwrap();
                let mut messages = Vec::new();
                for piece in text.as_bytes().chunks(length) {
                    read.push(piece, &mut messages).unwrap();
                }
                read.finish(&mut messages);
                assert_eq!(messages, [json!({"a": 1}), json!({"b": 2}), json!({"c": 3})], "{kind} {length}");
            }
        }
        assert!(Messages::of("text/html").is_none());
    }

    #[test]
    fn tools_that_nobody_could_call_are_left_out() {
        let schema = json!({"type": "object"});
        let (tools, cursor) = tools(&json!({"nextCursor": "c", "tools": [
            {"name": "files/read.all", "title": "Read", "inputSchema": schema, "annotations": {"readOnlyHint": true}},
            {"name": "", "inputSchema": schema},
            {"name": "a b", "inputSchema": schema},
            {"name": "x".repeat(129), "inputSchema": schema},
            {"name": "no_schema"},
            {"name": "wrong_schema", "inputSchema": true},
            {"name": "long", "inputSchema": {"description": "x".repeat(SCHEMA)}},
            {"name": "talks", "inputSchema": schema, "description": "x".repeat(DESCRIPTION + 1), "annotations": {"readOnlyHint": "true"}},
        ]}))
        .unwrap();
        assert_eq!(cursor.as_deref(), Some("c"));
        let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
        assert_eq!(names, ["files/read.all", "talks"]);
        assert_eq!((tools[0].description.as_str(), tools[0].read_only), ("Read", true));
        assert_eq!((tools[1].description.len(), tools[1].read_only), (DESCRIPTION, false));
        assert!(super::tools(&json!({"tools": {}})).is_none());
    }

    #[test]
    fn an_answer_is_read_as_text_or_json() {
        let content = json!([
            {"type": "text", "text": "one"},
            {"type": "image", "mimeType": "image/png", "data": "AAAA"},
            {"type": "resource", "resource": {"uri": "file:///x", "text": "two"}},
            {"type": "resource", "resource": {"uri": "file:///y", "blob": "AAAA"}},
            {"type": "resource_link", "uri": "file:///z"},
        ]);
        let read = outcome(&json!({ "content": content })).unwrap();
        let text = "one\n[image image/png]\ntwo\n[resource file:///y]\n[resource file:///z]";
        assert_eq!(read, Outcome { text: text.into(), is_json: false, is_error: false });
        let read = outcome(&json!({"content": [], "structuredContent": {"a": 1}, "isError": true})).unwrap();
        assert_eq!(read, Outcome { text: "{\"a\":1}".into(), is_json: true, is_error: true });
        assert_eq!(outcome(&json!({})), None);
    }

    #[test]
    fn a_revision_is_one_of_ours() {
        for revision in REVISIONS {
            assert_eq!(super::revision(&json!({ "protocolVersion": revision })), Some(revision));
        }
        assert_eq!(super::revision(&json!({"protocolVersion": "2024-11-05"})), None);
        assert_eq!(super::revision(&json!({})), None);
    }
}
