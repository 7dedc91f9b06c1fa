//! Calls of tools over HTTP: what is sent, to whom, how often, and what is told of it.

use super::*;
use helper_ai::core::error::{Error, Kind as ErrorKind};
use helper_ai::core::template::Template;
use helper_ai::core::wire::{Endpoint, Errand, Signature, ToolAnswer, ToolReply, ToolRequest};
use hmac::{Hmac, Mac};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

pub fn endpoint(server: &Server, path: &str) -> Endpoint {
    Endpoint {
        name: "send_invoice".into(),
        origin: server.url(""),
        url: server.url(path),
        headers: vec![("x-tenant".into(), "7".into())],
        credential: Credential::Key(KEY.into()),
        credential_header: "authorization".into(),
        credential_prefix: "Bearer ".into(),
        allow_private: true,
        timeout_ms: 20_000,
        max_bytes: 64 * 1024,
    }
}

fn request(server: &Server, path: &str) -> ToolRequest {
    ToolRequest {
        endpoint: endpoint(server, path),
        errand: Errand::Http { method: "POST".into(), body: Some(r#"{"amount":5}"#.into()), signature: None },
        idempotency_key: "call-1".into(),
        idempotent: false,
    }
}

pub async fn call(room: &Arc<Providers>, request: ToolRequest) -> ToolReply {
    let reply = room.tool(request).await;
    assert!(!format!("{reply:?}").contains(KEY), "{reply:?}");
    reply
}

pub fn answered(reply: ToolReply) -> ToolAnswer {
    match reply {
        ToolReply::Answered(answer) => answer,
        ToolReply::Failed { .. } => panic!("{reply:?}"),
    }
}

/// Why a call failed, and whether the server may have had it.
pub fn failed(reply: ToolReply) -> (Error, bool) {
    match reply {
        ToolReply::Failed { error, reached } => (error, reached),
        ToolReply::Answered(_) => panic!("{reply:?}"),
    }
}

fn json(body: &str) -> Answer {
    Answer::with_headers(200, &[("content-type", "application/json; charset=utf-8")], body)
}

#[tokio::test]
async fn a_request_is_sent_as_it_was_asked_for() {
    let server = Server::start().await;
    server.next(json(r#"{"id": 1}"#));
    let answer = answered(call(&room(), request(&server, "/v1/invoices?draft=1")).await);
    assert_eq!((answer.status, answer.is_error, answer.truncated), (200, false, false));
    assert_eq!((answer.content_type.as_str(), answer.body.as_str()), ("application/json", r#"{"id": 1}"#));
    let seen = server.seen().pop().unwrap();
    assert_eq!((seen.method.as_str(), seen.path.as_str()), ("POST", "/v1/invoices?draft=1"));
    assert_eq!(seen.json(), json!({"amount": 5}));
    for (header, value) in [
        ("authorization", "Bearer sk-the-secret"),
        ("content-type", "application/json"),
        ("idempotency-key", "call-1"),
        ("x-tenant", "7"),
    ] {
        assert_eq!(seen.header(header), Some(value));
    }
    assert_eq!(seen.headers.iter().filter(|(_, value)| value.contains(KEY)).count(), 1);
}

#[tokio::test]
async fn the_servers_own_error_is_its_answer() {
    let server = Server::start().await;
    for (status, unsure) in [(400, false), (404, false), (500, false), (502, true), (504, true)] {
        server.next(Answer::with_headers(status, &[("content-type", "text/plain")], "no such invoice"));
        let answer = answered(call(&room(), request(&server, "/")).await);
        assert_eq!((answer.status, answer.is_error, answer.unsure), (status, true, unsure));
        assert_eq!(answer.body, "no such invoice");
    }
}

#[tokio::test]
async fn the_server_can_check_the_signature() {
    let server = Server::start().await;
    server.answer_by(|seen| {
        let header = seen.header("x-signature").unwrap();
        let (t, v1) = header.split_once(",v1=").unwrap();
        let seconds = t.strip_prefix("t=").unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(now.abs_diff(seconds.parse().unwrap()) < 60);
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(b"sk-signing-key").unwrap();
        mac.update([seconds, &seen.method, &seen.path, ""].join("\n").as_bytes());
        mac.update(&seen.body);
        let bytes: Vec<u8> =
            (0..v1.len()).step_by(2).map(|at| u8::from_str_radix(&v1[at..at + 2], 16).unwrap()).collect();
        Answer::status(if mac.verify_slice(&bytes).is_ok() { 200 } else { 401 }, "{}")
    });
    for (secret, path, method, status) in [
        ("sk-signing-key", "/pay?a=%20&b=1", "POST", 200),
        ("sk-signing-key", "/pay", "GET", 200),
        ("sk-another-key", "/pay", "POST", 401),
    ] {
        let mut request = request(&server, path);
        let body = (method == "POST").then(|| r#"{"amount": 5}"#.to_owned());
        let signature = Signature { header: "x-signature".into(), secret: Credential::Key(secret.into()) };
        request.errand = Errand::Http { method: method.into(), body, signature: Some(signature) };
        assert_eq!(answered(call(&room(), request).await).status, status, "{path}");
        let seen = server.seen().pop().unwrap();
        assert!(seen.headers.iter().all(|(_, value)| !value.contains(secret)));
    }
}

#[tokio::test]
async fn nothing_is_sent_to_another_host_than_the_credentials() {
    let (server, other) = (Server::start().await, Server::start().await);
    let bound = server.address;
    for url in [
        other.url("/"),
        format!("http://{bound}@{}/", other.address),
        format!("http://{bound}.example.com/"),
        format!("https://{bound}/"),
        format!("http://localhost:{}/", bound.port()),
        format!("http:\\\\{}/", other.address),
    ] {
        let mut request = request(&server, "/");
        request.endpoint.url = url.clone();
        let (error, reached) = failed(call(&room(), request).await);
        assert!(matches!(error.kind, ErrorKind::NotPermitted | ErrorKind::BadArgument), "{url} {error:?}");
        assert!(!reached);
    }
    assert_eq!((server.count(), other.count()), (0, 0));
}

#[tokio::test]
async fn private_addresses_are_refused_in_any_spelling() {
    let server = Server::start().await;
    let port = server.address.port();
    for host in
        ["127.0.0.1", "2130706433", "127.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "169.254.169.254", "0.0.0.0"]
    {
        for (scheme, kind) in [("https", ErrorKind::NotPermitted), ("http", ErrorKind::BadArgument)] {
            let mut request = request(&server, "/");
            request.endpoint.allow_private = false;
            request.endpoint.origin = format!("{scheme}://{host}:{port}");
            request.endpoint.url = format!("{scheme}://{host}:{port}/");
            let (error, reached) = failed(call(&room(), request).await);
            assert_eq!((error.kind, reached), (kind, false), "{host} {error:?}");
        }
    }
    let lookup: helper_ai::gateway::http::Lookup =
        Arc::new(|_| Box::pin(async { Ok(vec!["10.0.0.1".parse().unwrap(), "127.0.0.1".parse().unwrap()]) }));
    let room = Providers::new(Settings { lookup, ..Settings::default() });
    let mut request = request(&server, "/");
    request.endpoint.allow_private = false;
    request.endpoint.origin = format!("https://api.example.com:{port}");
    request.endpoint.url = format!("https://api.example.com:{port}/");
    let (error, reached) = failed(call(&room, request).await);
    assert_eq!((error.kind, reached), (ErrorKind::NotPermitted, false));
    assert_eq!(error.message, "function \"send_invoice\" has an address that is not public");
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (server, other) = (Server::start().await, Server::start().await);
    for (status, may_be_done) in [(301, true), (302, true), (303, true), (307, false), (308, false)] {
        server.next(Answer::with_headers(status, &[("location", &other.url("/"))], ""));
        let mut request = request(&server, "/");
        request.idempotent = true;
        let (error, reached) = failed(call(&room(), request).await);
        assert_eq!((error.kind, reached), (ErrorKind::Provider, may_be_done), "{status}");
    }
    assert_eq!((server.count(), other.count()), (5, 0));
}

#[tokio::test]
async fn a_reply_is_kept_as_far_as_it_may_go() {
    let server = Server::start().await;
    let mut short = request(&server, "/");
    short.endpoint.max_bytes = 1000;
    server.next(Answer::Endless { content_type: "text/plain", part: "ü".repeat(333).into() });
    let answer = answered(call(&room(), short.clone()).await);
    assert_eq!((answer.truncated, answer.body.as_str()), (true, "ü".repeat(500).as_str()));
    server.next(Answer::with_headers(200, &[], &"x".repeat(1001)));
    let answer = answered(call(&room(), short.clone()).await);
    assert_eq!((answer.truncated, answer.body.len()), (true, 1000));
    server.next(Answer::with_headers(200, &[], &"x".repeat(1000)));
    let answer = answered(call(&room(), short).await);
    assert_eq!((answer.truncated, answer.body.len()), (false, 1000));
}

#[tokio::test]
async fn a_slow_server_is_given_up_in_time() {
    let server = Server::start().await;
    for answer in [Answer::Hang, broken(1, Break::Hang)] {
        server.next(answer);
        let mut request = request(&server, "/v1/chat/completions");
        request.errand =
            Errand::Http { method: "POST".into(), body: Some(r#"{"stream": true}"#.into()), signature: None };
        request.endpoint.timeout_ms = 100;
        request.idempotent = true;
        let begun = Instant::now();
        let (error, reached) = failed(call(&room(), request).await);
        assert_eq!((error.kind, reached), (ErrorKind::Cancelled, true), "{error:?}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        assert_eq!(error.message, "call of function \"send_invoice\" took too long");
    }
    until("both are left alone", || server.gone().len() == 2).await;
}

#[tokio::test]
async fn what_was_never_sent_is_told_from_what_may_have_been() {
    let server = Server::start().await;
    let room = room();
    server.next(Answer::Close);
    let (error, reached) = failed(call(&room, request(&server, "/")).await);
    assert_eq!((error.kind, reached), (ErrorKind::Provider, true));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut nobody = request(&server, "/");
    (nobody.endpoint.origin, nobody.endpoint.url) = (format!("http://{closed}"), format!("http://{closed}/"));
    let (error, reached) = failed(call(&room, nobody).await);
    assert_eq!((error.message.as_str(), reached), ("cannot connect to function \"send_invoice\"", false));
    let mut no_key = request(&server, "/");
    no_key.endpoint.credential = Credential::Env("HELPER_TEST_NO_SUCH_KEY".into());
    let (error, reached) = failed(call(&room, no_key).await);
    assert_eq!((error.kind, reached), (ErrorKind::NotReady, false));
    let mut large = request(&server, "/");
    large.errand = Errand::Http { method: "POST".into(), body: Some("x".repeat(5 << 20)), signature: None };
    let (error, reached) = failed(call(&room, large).await);
    assert_eq!((error.kind, reached), (ErrorKind::OverLimit, false));
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn a_request_is_sent_once_more_where_that_does_no_harm_and_never_again() {
    let server = Server::start().await;
    let room = room();
    let passing = || [Answer::status(503, "{}"), Answer::status(429, "{}"), Answer::Close];
    for answer in passing() {
        let before = server.count();
        server.next(answer.clone());
        call(&room, request(&server, "/")).await;
        assert_eq!(server.count() - before, 1, "{answer:?}");
    }
    for answer in passing() {
        server.next(answer).next(json("{}"));
        let request = ToolRequest { idempotent: true, ..request(&server, "/") };
        assert_eq!(answered(call(&room, request).await).status, 200);
        let [.., first, second] = &server.seen()[..] else { panic!() };
        assert_eq!(first.header("idempotency-key"), second.header("idempotency-key"));
        assert_eq!(first.body, second.body);
    }
    for (answer, requests) in [
        (Answer::status(503, "{}"), 2),
        (Answer::Close, 2),
        (Answer::status(400, "{}"), 1),
        (Answer::with_headers(429, &[("retry-after", "3600")], "{}"), 1),
    ] {
        let before = server.count();
        server.answer_by(move |_| answer.clone());
        call(&room, ToolRequest { idempotent: true, ..request(&server, "/") }).await;
        assert_eq!(server.count() - before, requests);
    }
}

#[tokio::test]
async fn a_header_with_a_line_feed_is_refused_and_nothing_is_sent() {
    let server = Server::start().await;
    for (name, value) in
        [("x-a", "1\r\nx-admin: 1"), ("x-a", "1\n"), ("x-a", "\u{0}"), ("x-a: 1\r\nx-admin", "1"), ("", "1")]
    {
        let mut request = request(&server, "/");
        request.endpoint.headers = vec![(name.into(), value.into())];
        let (error, reached) = failed(call(&room(), request).await);
        assert_eq!((error.kind, reached), (ErrorKind::BadArgument, false));
    }
    let mut request = request(&server, "/");
    request.idempotency_key = "1\r\nx-admin: 1".into();
    assert_eq!(failed(call(&room(), request).await).0.kind, ErrorKind::BadArgument);
    assert_eq!(server.count(), 0);
}

/// The request that a template makes of arguments.
fn filled(server: &Server, form: Value, arguments: Value) -> helper_ai::core::error::Result<ToolRequest> {
    let filled = Template::read(&form)?.fill(arguments.as_object().unwrap())?;
    let mut request = request(server, "/");
    (request.endpoint.url, request.endpoint.headers) = (filled.url, filled.headers);
    request.errand = Errand::Http { method: filled.method, body: filled.body, signature: None };
    Ok(request)
}

#[tokio::test]
async fn hostile_arguments_stay_in_their_places() {
    let server = Server::start().await;
    server.answer_by(|_| Answer::status(200, "{}"));
    let form = json!({"method": "PUT", "url": format!("{}/items/{{id}}/name?q={{q}}", server.url("")),
        "headers": {"x-h": "{{h}}"}, "body": {"text": "{{text}}"}});
    let hostile = [
        "a/b",
        "a?admin=1",
        "a#b",
        "a&b=c",
        "a b",
        "%2e%2e%2fadmin",
        "@evil.example.com",
        "\r\nx-admin: 1",
        "ü\u{202e}🦉",
        "\"}{",
        ":80",
    ];
    for text in hostile {
        let request =
            filled(&server, form.clone(), json!({"id": text, "q": text, "h": "plain", "text": text})).unwrap();
        assert_eq!(answered(call(&room(), request).await).status, 200);
        let seen = server.seen().pop().unwrap();
        let (path, query) = seen.path.split_once('?').unwrap();
        let steps: Vec<&str> = path.split('/').collect();
        assert_eq!((steps.len(), steps[1], steps[3]), (4, "items", "name"), "{text:?} {}", seen.path);
        assert!(query.starts_with("q=") && !query.contains(['&', '#']), "{text:?} {query}");
        assert!(seen.header("x-admin").is_none() && seen.path.is_ascii());
        assert_eq!(seen.json(), json!({ "text": text }));
    }
    for text in ["..", "../../admin", "a\\..\\b", ""] {
        let error = filled(&server, form.clone(), json!({"id": text, "q": "", "h": "", "text": ""})).unwrap_err();
        assert_eq!(error.kind, ErrorKind::BadArgument, "{text:?}");
    }
    assert!(filled(&server, form, json!({"id": "1", "q": "", "h": "1\r\nx-admin: 1", "text": ""})).is_err());
    for url in ["https://{host}/", "https://api.{zone}.example.com/", "http://127.0.0.1:{port}/"] {
        let error =
            filled(&server, json!({ "url": url }), json!({"host": "evil", "zone": "evil", "port": "1"})).unwrap_err();
        assert!(error.message.contains("argument in its host"), "{error:?}");
    }
    assert_eq!(server.count(), hostile.len());
}
