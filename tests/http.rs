//! Calls of providers against a provider that follows a script: faults, limits, fallback, records, and where the gateway
//! will not connect to.

#![allow(clippy::unwrap_used)]

mod provider;

use helper_ai::core::chat::{Chat, Event, Kind, Message, Purpose, Role, Usage};
use helper_ai::core::wire::{
    self, Asker, CallEnd, ChatCall, Credential, EmbedCall, Frames, Item, Outcome, Prices, Provider, Record, Route, Tag,
};
use helper_ai::gateway::http::{Providers, Settings, Sink};
use provider::{Answer, Break, Say, Server};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const KEY: &str = "sk-the-secret";
const KINDS: [Kind; 5] = [Kind::OpenAi, Kind::OpenAiCompatible, Kind::Anthropic, Kind::Gemini, Kind::Ollama];
const WORDS: &str = "Grüße für Öl über alles";

/// The gateway's room for providers, quick to repeat.
fn room() -> Arc<Providers> {
    Providers::new(Settings { backoff: Duration::from_millis(2), ..Settings::default() })
}

/// A provider of its own, with short timeouts.
fn route(kind: Kind, server: &Server) -> Route {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let path = if matches!(kind, Kind::OpenAi | Kind::OpenAiCompatible) { "/v1" } else { "" };
    Route {
        provider: Provider {
            id: [NEXT.fetch_add(1, Ordering::Relaxed); 16],
            name: "acme".into(),
            kind,
            base_url: server.url(path),
            credential: Credential::Key(KEY.into()),
            allow_private: true,
            max_concurrent: 0,
            requests_per_minute: 0,
            tokens_per_minute: 0,
            connect_timeout_ms: 5000,
            first_byte_timeout_ms: 5000,
            idle_timeout_ms: 5000,
            max_retries: 1,
            max_reply_bytes: 1 << 20,
            options: "{}".into(),
        },
        model: "model-1".into(),
        output_limit: 100,
        prices: Prices { input: 1_000_000, cached: 0, output: 2_000_000 },
    }
}

/// Runs out of patience where nothing comes.
fn impatient(mut route: Route) -> Route {
    (route.provider.connect_timeout_ms, route.provider.first_byte_timeout_ms) = (50, 50);
    route.provider.idle_timeout_ms = 100;
    route
}

fn asker(workspace: u8) -> Asker {
    Asker {
        id: [workspace; 16],
        database: 1,
        workspace: [workspace; 16],
        user: None,
        conversation: None,
        message: None,
        purpose: "ask".into(),
    }
}

fn call(routes: &[&Route]) -> ChatCall {
    let chat = Chat { messages: vec![Message::text(Role::User, "How are you?")], stream: true, ..Chat::default() };
    let routes = routes.iter().map(|route| (*route).clone()).collect();
    ChatCall { asker: asker(1), routes, chat, timeout_ms: 20_000, input_tokens: 11 }
}

fn embed(route: &Route, inputs: &[&str]) -> EmbedCall {
    EmbedCall {
        asker: asker(1),
        route: route.clone(),
        inputs: inputs.iter().map(|text| text.to_string()).collect(),
        dimensions: None,
        purpose: Purpose::Document,
        timeout_ms: 20_000,
    }
}

/// Takes the items of a request.
fn items() -> (Sink, tokio::task::JoinHandle<Vec<Item>>) {
    let (out, mut frames) = mpsc::channel::<Vec<u8>>(8);
    let take = tokio::spawn(async move {
        let mut items = Vec::new();
        let mut whole = Frames::default();
        while let Some(bytes) = frames.recv().await {
            whole.push(&bytes);
            while let Some(frame) = whole.next().unwrap() {
                assert_eq!((frame.tag, frame.id), (Tag::Item, 7));
                items.push(wire::decode(&frame.body).unwrap());
            }
        }
        items
    });
    (Sink::new(7, out), take)
}

async fn chat(room: &Arc<Providers>, call: ChatCall) -> (Vec<Event>, CallEnd) {
    let (sink, items) = items();
    let end = room.chat(call, &sink).await;
    drop(sink);
    let events = items.await.unwrap().into_iter().flat_map(|item| match item {
        Item::Events(events) => events,
        other => panic!("{other:?}"),
    });
    assert!(!format!("{end:?}").contains("secret"), "{end:?}");
    (events.collect(), end)
}

async fn embeddings(room: &Arc<Providers>, call: EmbedCall) -> (Vec<Vec<f32>>, CallEnd) {
    let (sink, items) = items();
    let end = room.embed(call, &sink).await;
    drop(sink);
    let mut all = Vec::new();
    for item in items.await.unwrap() {
        let Item::Embeddings { dimensions, values } = item else { panic!("{item:?}") };
        all.extend(values.chunks(dimensions as usize).map(<[f32]>::to_vec));
    }
    assert!(!format!("{end:?}").contains("secret"), "{end:?}");
    (all, end)
}

fn text(events: &[Event]) -> String {
    let words = events.iter().filter_map(|event| match event {
        Event::Text(words) => Some(words.as_str()),
        _ => None,
    });
    words.collect()
}

fn sqlstate(end: &CallEnd) -> &'static str {
    end.error.as_ref().map_or("00000", |error| error.kind.sqlstate())
}

async fn records(room: &Providers) -> Vec<Record> {
    let mut subscription = room.ledger().subscribe(1);
    tokio::time::timeout(Duration::from_secs(10), subscription.next()).await.unwrap().unwrap()
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn every_provider_streams_and_answers_whole() {
    let server = Server::start().await;
    server.answer_by(|_| Answer::say(WORDS));
    let room = room();
    for kind in KINDS {
        for stream in [true, false] {
            let route = route(kind, &server);
            let mut call = call(&[&route]);
            call.chat.stream = stream;
            let (events, end) = chat(&room, call).await;
            assert_eq!(text(&events), WORDS, "{kind:?}");
            assert_eq!((end.outcome, &end.error, end.attempts), (Outcome::Succeeded, &None, 1), "{kind:?}");
            assert!(end.usage.output > 0 && end.usage.input > 0 && !end.estimated, "{kind:?} {end:?}");
            let Usage { input, output, .. } = end.usage;
            assert_eq!(end.cost_nanos, (input + 2 * output) * 1000);
            assert!(end.provider_request_id.is_some() || kind == Kind::Ollama, "{kind:?}");
            let seen = server.seen().pop().unwrap();
            let keys: Vec<_> = seen.headers.iter().filter(|(_, value)| value.contains(KEY)).collect();
            assert_eq!(keys.len(), 1, "{kind:?}");
            assert!(!seen.path.contains(KEY) && !String::from_utf8_lossy(&seen.body).contains(KEY));
            let records = records(&room).await;
            assert_eq!(records.last().unwrap().call, end);
        }
    }
}

/// A fault, and what comes of it: requests, SQLSTATE, outcome.
type Fault = (&'static str, Answer, u32, &'static str, Outcome);

fn broken(words: usize, how: Break) -> Answer {
    Answer::Say(Say { text: WORDS.into(), broken: Some((words, how)), ..Say::default() })
}

fn faults(kind: Kind) -> Vec<Fault> {
    use Outcome::{Failed, Interrupted};
    let json = "{\"error\":{\"message\":\"sk-the-secret is no good\"}}";
    let quota = match kind {
        Kind::OpenAi | Kind::OpenAiCompatible => Answer::status(
            429,
            "{\"error\":{\"message\":\"\",\"type\":\"insufficient_quota\",\"code\":\"insufficient_quota\"}}",
        ),
        _ => Answer::status(402, json),
    };
    let html = |status| Answer::with_headers(status, &[("content-type", "text/html")], "<html>sk-the-secret</html>");
    let limited = |after: &'static str| Answer::with_headers(429, &[("retry-after", after)], json);
    let blank = if kind == Kind::Ollama { "\n" } else { ": ping\n\n" };
    vec![
        ("closed without an answer", Answer::Close, 2, "38000", Failed),
        ("hang before headers", Answer::Hang, 2, "38000", Failed),
        ("hang before the first word", broken(0, Break::Hang), 2, "38000", Failed),
        ("hang in the middle", broken(1, Break::Hang), 1, "38000", Interrupted),
        ("cut in the first character", broken(0, Break::Cut), 2, "38000", Failed),
        ("cut in a character", broken(1, Break::Cut), 1, "38000", Interrupted),
        ("end in the middle", broken(1, Break::End), 1, "38000", Interrupted),
        ("error event at the beginning", broken(0, Break::Error), 2, "38000", Failed),
        ("error event in the middle", broken(1, Break::Error), 1, "38000", Interrupted),
        ("400", Answer::status(400, json), 1, "38000", Failed),
        ("401", Answer::status(401, json), 1, "38000", Failed),
        ("403", Answer::status(403, json), 1, "38000", Failed),
        ("404", Answer::status(404, json), 1, "38000", Failed),
        ("408", Answer::status(408, json), 2, "38000", Failed),
        ("413", Answer::status(413, json), 1, "38000", Failed),
        ("429", Answer::status(429, json), 2, "53000", Failed),
        ("429, at once", limited("0"), 2, "53000", Failed),
        ("429, too late", limited("3600"), 1, "53000", Failed),
        ("quota", quota, 1, "38000", Failed),
        ("500", Answer::status(500, json), 2, "38000", Failed),
        ("529", Answer::status(529, json), 2, "38000", Failed),
        ("a page", html(200), 2, "38000", Failed),
        ("a page of a proxy", html(502), 2, "38000", Failed),
        ("redirect", Answer::with_headers(307, &[("location", "/elsewhere?sk-the-secret")], ""), 1, "38000", Failed),
        (
            "too long",
            Answer::Endless { content_type: "text/event-stream", part: blank.repeat(4096).into() },
            1,
            "53400",
            Failed,
        ),
    ]
}

async fn faults_of(kind: Kind) {
    let server = Server::start().await;
    let room = room();
    for (name, answer, requests, state, outcome) in faults(kind) {
        let hangs = name.contains("hang");
        let route = route(kind, &server);
        let route = if hangs { impatient(route) } else { route };
        let before = server.count();
        server.answer_by(move |_| answer.clone());
        let (events, end) = chat(&room, call(&[&route])).await;
        let name = format!("{kind:?}: {name}: {end:?}");
        assert_eq!(server.count() - before, requests as usize, "{name}");
        assert_eq!((end.attempts, sqlstate(&end), end.outcome), (requests, state, outcome), "{name}");
        assert_eq!(text(&events).is_empty(), outcome == Outcome::Failed, "{name}");
        if outcome == Outcome::Interrupted {
            assert_eq!(text(&events), "Grüße ", "{name}");
            assert!(end.estimated && end.usage.output > 0 && end.usage.input > 0, "{name}");
        }
        let last = records(&room).await.pop().unwrap();
        assert_eq!(last.call, end, "{name}");
        room.ledger().recorded(1, last.number);
    }
}

#[tokio::test]
async fn faults_of_openai() {
    faults_of(Kind::OpenAi).await;
}

#[tokio::test]
async fn faults_of_compatible_servers() {
    faults_of(Kind::OpenAiCompatible).await;
}

#[tokio::test]
async fn faults_of_anthropic() {
    faults_of(Kind::Anthropic).await;
}

#[tokio::test]
async fn faults_of_gemini() {
    faults_of(Kind::Gemini).await;
}

#[tokio::test]
async fn faults_of_ollama() {
    faults_of(Kind::Ollama).await;
}

#[tokio::test]
async fn a_refused_connection_is_tried_again_and_then_an_error() {
    let server = Server::start().await;
    let mut route = route(Kind::OpenAi, &server);
    let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    route.provider.base_url = format!("http://{free}/v1");
    let (_, end) = chat(&room(), call(&[&route])).await;
    assert_eq!((end.attempts, sqlstate(&end), end.outcome), (2, "38000", Outcome::Failed));
    let error = end.error.unwrap();
    assert_eq!(error.detail.as_deref(), Some("The connection was refused."));
}

#[tokio::test]
async fn a_reply_that_drips_ends_with_the_calls_time() {
    let server = Server::start().await;
    let drip = Say { text: "drip ".repeat(500), delay: Duration::from_millis(20), ..Say::default() };
    server.answer_by(move |_| Answer::Say(drip.clone()));
    let room = room();
    let route = route(Kind::OpenAi, &server);
    let (events, end) = chat(&room, ChatCall { timeout_ms: 300, ..call(&[&route]) }).await;
    assert!(!text(&events).is_empty());
    assert_eq!((sqlstate(&end), end.outcome), ("57014", Outcome::Interrupted));
    assert!(end.usage.output > 0 && end.estimated);
}

#[tokio::test]
async fn a_provider_that_does_not_tell_its_tokens_is_counted() {
    let server = Server::start().await;
    server.answer_by(|_| Answer::Say(Say { text: "hello world".into(), usage: false, ..Say::default() }));
    let route = route(Kind::OpenAi, &server);
    let (_, end) = chat(&room(), call(&[&route])).await;
    assert!(end.estimated);
    assert_eq!((end.usage.input, end.usage.output), (11, 2));
}

#[tokio::test]
async fn the_next_route_answers_before_the_first_word_and_not_after() {
    let (first, second) = (Server::start().await, Server::start().await);
    let room = room();
    second.answer_by(|_| Answer::say("second"));
    for fault in [Answer::status(500, "{}"), Answer::status(401, "{}"), Answer::Close, broken(0, Break::Error)] {
        first.answer_by(move |_| fault.clone());
        let routes = [route(Kind::OpenAi, &first), route(Kind::Anthropic, &second)];
        let (events, end) = chat(&room, call(&[&routes[0], &routes[1]])).await;
        assert_eq!(text(&events), "second");
        assert_eq!((end.outcome, end.provider_id), (Outcome::Succeeded, routes[1].provider.id));
    }
    let before = second.count();
    first.answer_by(|_| broken(2, Break::Error));
    let routes = [route(Kind::OpenAi, &first), route(Kind::Anthropic, &second)];
    let (events, end) = chat(&room, call(&[&routes[0], &routes[1]])).await;
    assert_eq!(text(&events), "Grüße für ");
    assert_eq!((end.outcome, end.provider_id, second.count()), (Outcome::Interrupted, routes[0].provider.id, before));
}

#[tokio::test]
async fn a_provider_that_keeps_failing_is_left_alone() {
    let (server, other) = (Server::start().await, Server::start().await);
    server.answer_by(|_| Answer::status(503, "{}"));
    let room = room();
    let mut route_1 = route(Kind::OpenAi, &server);
    route_1.provider.max_retries = 0;
    for _ in 0..5 {
        chat(&room, call(&[&route_1])).await;
    }
    assert_eq!(server.count(), 5);
    let (_, end) = chat(&room, call(&[&route_1])).await;
    assert_eq!((server.count(), end.attempts, sqlstate(&end)), (5, 0, "38000"));
    assert!(end.error.unwrap().detail.unwrap().contains("seconds"));
    let state = room.states().into_iter().find(|state| state.id == route_1.provider.id).unwrap();
    assert_eq!((state.circuit.as_str(), state.requests, state.errors), ("open", 5, 5));
    assert!(state.retry_seconds.is_some_and(|seconds| seconds <= 5) && state.last_error.is_some());
    let (_, end) = chat(&room, call(&[&route_1, &route(Kind::OpenAi, &other)])).await;
    assert_eq!((end.outcome, server.count(), other.count()), (Outcome::Succeeded, 5, 1));
    // What is our fault says nothing of the provider.
    server.answer_by(|_| Answer::status(400, "{}"));
    let route_2 = route(Kind::OpenAi, &server);
    for _ in 0..7 {
        chat(&room, call(&[&route_2])).await;
    }
    assert_eq!(server.count(), 12);
}

#[tokio::test]
async fn workspaces_take_turns_at_a_provider() {
    let server = Server::start().await;
    let slow = Say { delay: Duration::from_millis(5), ..Say::default() };
    server.answer_by(move |_| Answer::Say(slow.clone()));
    let room = room();
    let mut route = route(Kind::OpenAi, &server);
    route.provider.max_concurrent = 1;
    let mut tasks = Vec::new();
    for (workspace, count) in [(1, 6), (2, 2)] {
        for _ in 0..count {
            let mut call = call(&[&route]);
            call.asker = asker(workspace);
            call.chat.messages = vec![Message::text(Role::User, format!("workspace {workspace}"))];
            let asked = room.clone();
            tasks.push(tokio::spawn(async move { chat(&asked, call).await.1 }));
            let all = tasks.len() as u32;
            until("a call waits", || room.states().iter().any(|state| state.requests as u32 + state.waiting >= all))
                .await;
        }
    }
    for task in tasks {
        assert_eq!(task.await.unwrap().outcome, Outcome::Succeeded);
    }
    let order: Vec<bool> =
        server.seen().iter().map(|seen| String::from_utf8_lossy(&seen.body).contains("workspace 2")).collect();
    let last = order.iter().rposition(|second| *second).unwrap();
    assert!(last < 7, "the second workspace waits for all of the first: {order:?}");
}

#[tokio::test]
async fn a_turn_that_does_not_come_in_time_is_an_error_that_names_the_limit() {
    let server = Server::start().await;
    let room = room();
    let mut route = route(Kind::OpenAi, &server);
    route.provider.requests_per_minute = 1;
    assert_eq!(chat(&room, call(&[&route])).await.1.outcome, Outcome::Succeeded);
    let (_, end) = chat(&room, ChatCall { timeout_ms: 50, ..call(&[&route]) }).await;
    assert_eq!((sqlstate(&end), end.attempts, server.count()), ("53000", 0, 1));
    assert!(end.error.unwrap().detail.unwrap().contains("1 requests per minute"));
    assert_eq!(end.usage, Usage::default());
}

#[tokio::test]
async fn a_dropped_call_ends_its_request_and_leaves_a_record() {
    let server = Server::start().await;
    let room = room();
    for answer in [Answer::Hang, broken(2, Break::Hang)] {
        let (gone, count) = (server.gone().len(), server.count());
        server.answer_by(move |_| answer.clone());
        let route = route(Kind::OpenAi, &server);
        let (asked, call) = (room.clone(), call(&[&route]));
        let task = tokio::spawn(async move { chat(&asked, call).await });
        until("the request", || server.count() > count).await;
        // The words get through, where there are any.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let aborted = Instant::now();
        task.abort();
        until("the connection closes", || server.gone().len() > gone).await;
        assert!(server.gone()[gone].duration_since(aborted) < Duration::from_secs(1));
        let record = records(&room).await.pop().unwrap();
        assert_eq!((record.call.outcome, record.call.attempts), (Outcome::Cancelled, 1));
        assert_eq!(record.call.usage.input, if count == 0 { 11 } else { record.call.usage.input });
        assert!(record.call.estimated);
        assert_eq!(record.call.usage.output > 0, count > 0, "{record:?}");
        room.ledger().recorded(1, record.number);
        let state = room.states().into_iter().find(|state| state.id == route.provider.id).unwrap();
        assert_eq!((state.in_flight, state.waiting), (0, 0));
    }
}

#[tokio::test]
async fn texts_are_embedded_in_order_and_normalised() {
    let server = Server::start().await;
    let room = room();
    let inputs: Vec<String> = (0..5000).map(|number| format!("text number {number}")).collect();
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    for kind in [Kind::OpenAi, Kind::Gemini, Kind::Ollama] {
        let before = server.count();
        let (vectors, end) = embeddings(&room, embed(&route(kind, &server), &inputs)).await;
        assert_eq!((end.outcome, vectors.len()), (Outcome::Succeeded, inputs.len()), "{kind:?} {end:?}");
        assert!(server.count() - before > 1, "{kind:?}");
        assert_eq!(end.attempts as usize, server.count() - before);
        assert!(end.usage.input >= 15_000, "{kind:?} {end:?}");
        for (text, vector) in inputs.iter().zip(&vectors) {
            let expected = provider::embedding(text, 8);
            let length = expected.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!(vector.iter().zip(&expected).all(|(a, b)| (a - b / length).abs() < 1e-5), "{kind:?} {text}");
        }
        assert_eq!(records(&room).await.pop().unwrap().call, end);
    }
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_halved() {
    let server = Server::start().await;
    server.answer_by(|seen| match seen.json()["input"].as_array().map_or(1, Vec::len) {
        0..=3 => Answer::Say(Say::default()),
        _ => Answer::status(413, "{\"error\":{\"message\":\"too large\"}}"),
    });
    let inputs = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let room = room();
    let (vectors, end) = embeddings(&room, embed(&route(Kind::OpenAi, &server), &inputs)).await;
    assert_eq!((end.outcome, vectors.len()), (Outcome::Succeeded, 10), "{end:?}");
    for (text, vector) in inputs.iter().zip(&vectors) {
        assert!(vector[0].signum() == provider::embedding(text, 8)[0].signum());
    }
    server.answer_by(|_| Answer::status(413, "{\"error\":{\"message\":\"too large\"}}"));
    let (vectors, end) = embeddings(&room, embed(&route(Kind::OpenAi, &server), &["a", "b"])).await;
    assert_eq!((vectors.len(), sqlstate(&end), end.attempts), (0, "38000", 2 + u32::from(end.attempts > 2)));
    assert!(end.error.unwrap().detail.unwrap().contains("number 1 of 2"));
}

#[tokio::test]
async fn the_same_texts_asked_for_at_once_are_sent_once() {
    let server = Server::start().await;
    let slow = Say { delay: Duration::from_millis(100), ..Say::default() };
    server.answer_by(move |_| Answer::Say(slow.clone()));
    let room = room();
    let route = route(Kind::OpenAi, &server);
    let ask = |texts: &[&str], workspace| {
        let mut call = embed(&route, texts);
        call.asker = asker(workspace);
        let room = room.clone();
        tokio::spawn(async move { embeddings(&room, call).await })
    };
    let calls = [ask(&["one", "two"], 1), ask(&["one", "two"], 2), ask(&["one", "other"], 3)];
    let mut tokens = 0;
    let mut all = Vec::new();
    for call in calls {
        let (vectors, end) = call.await.unwrap();
        assert_eq!(end.outcome, Outcome::Succeeded);
        tokens += end.usage.input;
        all.push(vectors);
    }
    assert_eq!(all[0], all[1]);
    assert_ne!(all[0], all[2]);
    assert_eq!((server.count(), tokens), (2, 4));
    assert_eq!(records(&room).await.len(), 3);
    // The first of two goes away; the other is answered all the same.
    let (first, second) = (ask(&["three"], 1), ask(&["three"], 2));
    until("the request", || server.count() == 3).await;
    first.abort();
    assert_eq!(second.await.unwrap().1.outcome, Outcome::Succeeded);
    assert_eq!((server.count(), server.gone().len()), (3, 0));
    let outcomes: Vec<_> = records(&room).await.iter().skip(3).map(|record| record.call.outcome).collect();
    assert_eq!(outcomes, [Outcome::Cancelled, Outcome::Succeeded]);
}

#[tokio::test]
async fn addresses_that_are_not_public_are_refused_in_any_spelling() {
    let server = Server::start().await;
    let port = server.address.port();
    let room = room();
    for host in [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "017700000001",
        "127.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "localhost",
        "169.254.169.254",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "10.0.0.1",
        "0.0.0.0",
    ] {
        let mut route = route(Kind::OpenAi, &server);
        route.provider.allow_private = false;
        route.provider.base_url = format!("https://{host}:{port}/v1");
        let (_, end) = chat(&room, call(&[&route])).await;
        assert_eq!((sqlstate(&end), end.outcome), ("42501", Outcome::Failed), "{host} {end:?}");
        route.provider.base_url = format!("http://{host}:{port}/v1");
        let (_, end) = chat(&room, call(&[&route])).await;
        assert_eq!(sqlstate(&end), "22023", "{host} {end:?}");
    }
    assert_eq!(server.count(), 0);
    let mut route = route(Kind::OpenAi, &server);
    for url in ["http://user:sk-the-secret@127.0.0.1/v1", "http://127.0.0.1/v1?key=sk-the-secret", "sk-the-secret"] {
        route.provider.base_url = url.into();
        assert_eq!(sqlstate(&chat(&room, call(&[&route])).await.1), "22023");
    }
}

#[tokio::test]
async fn a_name_is_looked_up_once_and_its_private_addresses_are_not_used() {
    let server = Server::start().await;
    let asked = Arc::new(AtomicU8::new(0));
    let count = asked.clone();
    // The second answer would be a public one, and the third a private one again.
    let lookup: helper_ai::gateway::http::Lookup = Arc::new(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(vec!["10.0.0.1".parse().unwrap(), "127.0.0.1".parse().unwrap()]) })
    });
    let room = Providers::new(Settings { lookup, ..Settings::default() });
    let mut route = route(Kind::OpenAi, &server);
    route.provider.allow_private = false;
    route.provider.base_url = "https://api.example.com/v1".into();
    let (_, end) = chat(&room, call(&[&route])).await;
    assert_eq!((sqlstate(&end), end.attempts), ("42501", 1), "{end:?}");
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (server, other) = (Server::start().await, Server::start().await);
    let target = other.url("/v1/chat/completions");
    for status in [301, 302, 303, 307, 308] {
        server.next(Answer::with_headers(status, &[("location", &target)], ""));
        let (_, end) = chat(&room(), call(&[&route(Kind::OpenAi, &server)])).await;
        assert_eq!(sqlstate(&end), "38000");
        assert!(!format!("{end:?}").contains(&target));
    }
    assert_eq!(other.count(), 0);
}

#[tokio::test]
async fn a_missing_key_is_named_and_nothing_is_sent() {
    let server = Server::start().await;
    let mut route = route(Kind::OpenAi, &server);
    route.provider.credential = Credential::Env("HELPER_TEST_NO_SUCH_KEY".into());
    let (_, end) = chat(&room(), call(&[&route])).await;
    assert_eq!((sqlstate(&end), server.count()), ("55000", 0));
    assert!(end.error.unwrap().hint.unwrap().contains("HELPER_TEST_NO_SUCH_KEY"));
}
