//! Calls of providers and tools against a server that follows a script: faults, limits, fallback, records, and where the
//! gateway will not connect to.

#![allow(clippy::unwrap_used, clippy::panic)]

mod conversation;
mod egress;
mod embeddings;
mod faults;
mod limits;
mod mcp;
#[path = "../provider/mod.rs"]
mod provider;
#[path = "../secure/mod.rs"]
mod secure;
mod socket;
mod tls;
mod tools;

use helper_ai::core::chat::{Abilities, Chat, Event, Kind, Message, Purpose, Role, Usage};
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
            own: false,
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
        prices: Prices { input: 1_000_000, cached: 0, cache_written: 0, output: 2_000_000 },
        tokens_percent: 100,
        temperature: true,
        tool_effort: None,
        abilities: Abilities::default(),
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
    ChatCall {
        asker: asker(1),
        routes,
        chat,
        timeout_ms: 20_000,
        guessed_tokens: 11,
        all_text: true,
        output_tokens: 70,
        once: false,
    }
}

fn embed(route: &Route, inputs: &[&str]) -> EmbedCall {
    EmbedCall {
        asker: asker(1),
        route: route.clone(),
        inputs: inputs.iter().map(|text| text.to_string()).collect(),
        dimensions: None,
        purpose: Purpose::Document,
        patient: false,
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

fn broken(words: usize, how: Break) -> Answer {
    Answer::Say(Say { text: WORDS.into(), broken: Some((words, how)), ..Say::default() })
}
