//! Servers of the Model Context Protocol: the handshake, their tools, and calls of them.

use super::tools::{answered, call, endpoint, failed};
use super::*;
use helper_ai::core::error::Kind as ErrorKind;
use helper_ai::core::wire::{Endpoint, Errand, ToolRequest};
use provider::Seen;
use serde_json::{Value, json};

/// How a server speaks.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Manner {
    revision: &'static str,
    /// Answers as a stream, with other things said before.
    streams: bool,
    /// Keeps sessions.
    sessions: bool,
}

const PLAIN: Manner = Manner { revision: "2025-11-25", streams: false, sessions: true };

fn answer(manner: Manner, seen: &Seen, result: Value) -> Answer {
    let id = seen.json()["id"].clone();
    let mut headers = Vec::new();
    if manner.sessions && seen.json()["method"] == "initialize" {
        headers.push(("Mcp-Session-Id", "session-1"));
    }
    let mut message = json!({"jsonrpc": "2.0", "id": id});
    message.as_object_mut().unwrap().extend(result.as_object().unwrap().clone());
    if !manner.streams {
        headers.push(("content-type", "application/json"));
        return Answer::with_headers(200, &headers, &message.to_string());
    }
    headers.push(("content-type", "text/event-stream"));
    let progress = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {}});
    let ping = json!({"jsonrpc": "2.0", "id": "server-1", "method": "ping"});
    let another = json!({"jsonrpc": "2.0", "id": 99, "result": {}});
    let stream = format!(
        "id: 1\ndata:\n\n: hello\n\nevent: message\ndata: {progress}\n\ndata: {ping}\n\ndata: {another}\n\ndata: {message}\n\n"
    );
    Answer::with_headers(200, &headers, &stream)
}

/// Speaks the protocol, and insists on it.
fn speak(manner: Manner, seen: &Seen) -> Answer {
    let message = seen.json();
    assert_eq!(seen.header("authorization"), Some("Bearer sk-the-secret"));
    let first = message["method"] == "initialize";
    let session = (manner.sessions && !first).then_some("session-1");
    assert_eq!(seen.header("mcp-session-id"), session, "{message}");
    assert_eq!(seen.header("mcp-protocol-version"), (!first).then_some(manner.revision), "{message}");
    if seen.method == "DELETE" {
        return Answer::status(200, "");
    }
    assert_eq!(seen.header("accept"), Some("application/json, text/event-stream"));
    assert_eq!(message["jsonrpc"], "2.0");
    let page = |names: &[&str], next: Option<&str>| {
        let tool = |name: &&str| json!({"name": name, "description": format!("does {name}"), "inputSchema": {"type": "object"}});
        let tools: Vec<Value> = names.iter().map(tool).collect();
        let mut result = json!({"result": {"tools": tools}});
        if let Some(next) = next {
            result["result"]["nextCursor"] = next.into();
        }
        result
    };
    match message["method"].as_str() {
        Some("initialize") => {
            assert_eq!(message["params"]["protocolVersion"], "2025-11-25");
            assert_eq!(message["params"]["clientInfo"]["name"], "helper_ai");
            let info = json!({"name": "files", "version": "1.2"});
            answer(
                manner,
                seen,
                json!({"result": {"protocolVersion": manner.revision, "capabilities": {"tools": {}}, "serverInfo": info}}),
            )
        }
        Some("notifications/initialized") => Answer::status(202, ""),
        Some("tools/list") => match message["params"]["cursor"].as_str() {
            None => answer(manner, seen, page(&["read", "write"], Some("page 2"))),
            Some("page 2") => answer(manner, seen, page(&["delete"], None)),
            Some(other) => panic!("{other}"),
        },
        Some("tools/call") => match message["params"]["name"].as_str().unwrap() {
            "read" => {
                let text = format!("read {}", message["params"]["arguments"]["path"].as_str().unwrap());
                answer(manner, seen, json!({"result": {"content": [{"type": "text", "text": text}]}}))
            }
            "count" => answer(manner, seen, json!({"result": {"content": [], "structuredContent": {"files": 3}}})),
            "fail" => {
                let content = json!([{"type": "text", "text": "disk is full"}]);
                answer(manner, seen, json!({"result": {"content": content, "isError": true}}))
            }
            _ => answer(manner, seen, json!({"error": {"code": -32602, "message": "Unknown tool"}})),
        },
        None => {
            assert_eq!((&message["id"], &message["result"]), (&json!("server-1"), &json!({})));
            Answer::status(202, "")
        }
        Some(other) => panic!("{other}"),
    }
}

async fn start(manner: Manner) -> Server {
    let server = Server::start().await;
    server.answer_by(move |seen| speak(manner, seen));
    server
}

fn files(server: &Server) -> Endpoint {
    Endpoint { name: "files".into(), ..endpoint(server, "/mcp") }
}

fn use_tool(server: &Server, tool: &str) -> ToolRequest {
    ToolRequest {
        endpoint: files(server),
        errand: Errand::Mcp { tool: tool.into(), arguments: r#"{"path": "a.txt"}"#.into() },
        idempotency_key: "call-1".into(),
        idempotent: false,
    }
}

fn manners() -> impl Iterator<Item = Manner> {
    ["2025-11-25", "2025-06-18", "2025-03-26"].into_iter().flat_map(|revision| {
        [(true, true), (true, false), (false, true), (false, false)].map(|(streams, sessions)| Manner {
            revision,
            streams,
            sessions,
        })
    })
}

#[tokio::test]
async fn tools_are_listed_page_by_page_in_every_revision() {
    for manner in manners() {
        let server = start(manner).await;
        let offer = room().mcp_tools(files(&server)).await.unwrap();
        assert_eq!(
            (offer.protocol.as_str(), offer.name.as_str(), offer.version.as_str()),
            (manner.revision, "files", "1.2")
        );
        let names: Vec<&str> = offer.tools.iter().map(|tool| tool.name.as_str()).collect();
        assert_eq!(names, ["read", "write", "delete"], "{manner:?}");
        assert_eq!(
            (offer.tools[0].description.as_str(), offer.tools[0].input_schema.as_str()),
            ("does read", "{\"type\":\"object\"}")
        );
        if manner.sessions {
            until("the session is ended", || server.seen().iter().any(|seen| seen.method == "DELETE")).await;
        }
    }
}

#[tokio::test]
async fn tools_are_called_in_every_revision() {
    for manner in manners() {
        let server = start(manner).await;
        let room = room();
        let answer = answered(call(&room, use_tool(&server, "read")).await);
        assert_eq!(
            (answer.body.as_str(), answer.content_type.as_str(), answer.is_error),
            ("read a.txt", "text/plain", false)
        );
        let called = server.seen().into_iter().find(|seen| seen.json()["method"] == "tools/call").unwrap();
        assert_eq!(called.header("idempotency-key"), Some("call-1"));
        let answer = answered(call(&room, use_tool(&server, "count")).await);
        assert_eq!((answer.body.as_str(), answer.content_type.as_str()), ("{\"files\":3}", "application/json"));
        let answer = answered(call(&room, use_tool(&server, "fail")).await);
        assert_eq!((answer.body.as_str(), answer.is_error), ("disk is full", true));
        let answer = answered(call(&room, use_tool(&server, "nothing")).await);
        assert_eq!((answer.body.as_str(), answer.is_error), ("error -32602: Unknown tool", true));
    }
}

#[tokio::test]
async fn a_long_answer_is_cut() {
    let server = start(PLAIN).await;
    let mut request = use_tool(&server, "read");
    request.endpoint.max_bytes = 6;
    let answer = answered(call(&room(), request).await);
    assert_eq!((answer.body.as_str(), answer.truncated), ("read a", true));
}

/// A server that does well until the call of a tool, which it answers otherwise.
async fn start_but(answer: Answer) -> Server {
    let server = Server::start().await;
    server.answer_by(move |seen| match seen.json()["method"].as_str() {
        Some("tools/call" | "tools/list") => answer.clone(),
        _ => speak(PLAIN, seen),
    });
    server
}

#[tokio::test]
async fn a_call_that_comes_to_nothing_says_whether_the_server_had_it() {
    let stream = [("content-type", "text/event-stream")];
    for (name, answer, kind, reached) in [
        ("closed", Answer::Close, ErrorKind::Provider, true),
        ("a stream without an answer", Answer::with_headers(200, &stream, "data: {}\n\n"), ErrorKind::Provider, true),
        ("a page", Answer::with_headers(200, &[("content-type", "text/html")], "<html>"), ErrorKind::Provider, true),
        ("not JSON", Answer::status(200, "{"), ErrorKind::Provider, true),
        (
            "no result of a tool",
            Answer::status(200, r#"{"jsonrpc":"2.0","id":2,"result":{}}"#),
            ErrorKind::Provider,
            true,
        ),
        ("refused", Answer::status(403, "{}"), ErrorKind::Provider, false),
        ("broken down", Answer::status(500, "{}"), ErrorKind::Provider, true),
        ("redirect", Answer::with_headers(307, &[("location", "http://127.0.0.1:1/")], ""), ErrorKind::Provider, false),
        ("silent", Answer::Hang, ErrorKind::Cancelled, true),
        (
            "endless",
            Answer::Endless { content_type: "text/event-stream", part: ": hello\n\n".repeat(100_000).into() },
            ErrorKind::OverLimit,
            true,
        ),
    ] {
        let server = start_but(answer).await;
        let mut request = use_tool(&server, "read");
        if name == "silent" {
            request.endpoint.timeout_ms = 200;
        }
        let (error, was_reached) = failed(call(&room(), request).await);
        assert_eq!((error.kind, was_reached), (kind, reached), "{name} {error:?}");
        let calls = server.seen().iter().filter(|seen| seen.json()["method"] == "tools/call").count();
        assert_eq!(calls, 1, "{name}");
        let mut listed = files(&server);
        listed.timeout_ms = if name == "silent" { 200 } else { 20_000 };
        assert_eq!(room().mcp_tools(listed).await.unwrap_err().kind, kind, "{name}");
    }
}

#[tokio::test]
async fn a_call_goes_again_only_where_that_does_no_harm() {
    for (idempotent, calls) in [(false, 1), (true, 2)] {
        let server = start_but(Answer::status(503, "{}")).await;
        let request = ToolRequest { idempotent, ..use_tool(&server, "read") };
        assert!(failed(call(&room(), request).await).1);
        let seen = server.seen();
        assert_eq!(seen.iter().filter(|seen| seen.json()["method"] == "tools/call").count(), calls);
    }
}

#[tokio::test]
async fn a_handshake_that_fails_reaches_no_tool() {
    for (answer, detail) in [
        (Answer::status(401, "{}"), "HTTP status 401."),
        (Answer::status(400, "{}"), "HTTP status 400."),
        (
            Answer::status(200, r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32022,"message":"sk-the-secret"}}"#),
            "Its error code is -32022.",
        ),
        (
            Answer::status(200, r#"{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2024-11-05"}}"#),
            "Spoken are those from 2025-03-26 to 2025-11-25.",
        ),
    ] {
        let server = Server::start().await;
        server.answer_by(move |_| answer.clone());
        let (error, reached) = failed(call(&room(), use_tool(&server, "read")).await);
        assert_eq!((error.kind, error.detail.as_deref(), reached), (ErrorKind::Provider, Some(detail), false));
        assert_eq!(room().mcp_tools(files(&server)).await.unwrap_err().detail.as_deref(), Some(detail));
        assert_eq!(server.count(), 2);
    }
}

#[tokio::test]
async fn a_server_with_too_many_tools_is_refused() {
    let server = Server::start().await;
    server.answer_by(|seen| match seen.json()["method"].as_str() {
        Some("tools/list") => answer(PLAIN, seen, json!({"result": {"tools": [], "nextCursor": "again"}})),
        _ => speak(PLAIN, seen),
    });
    assert_eq!(room().mcp_tools(files(&server)).await.unwrap_err().kind, ErrorKind::OverLimit);
}

#[tokio::test]
async fn the_egress_rules_hold_for_these_servers_too() {
    let (server, other) = (start(PLAIN).await, Server::start().await);
    let mut elsewhere = use_tool(&server, "read");
    elsewhere.endpoint.url = other.url("/mcp");
    assert_eq!(failed(call(&room(), elsewhere).await).0.kind, ErrorKind::NotPermitted);
    let mut private = files(&server);
    private.allow_private = false;
    (private.origin, private.url) = (private.origin.replace("http:", "https:"), private.url.replace("http:", "https:"));
    assert_eq!(room().mcp_tools(private).await.unwrap_err().kind, ErrorKind::NotPermitted);
    assert_eq!((server.count(), other.count()), (0, 0));
}
