//! Whatever a provider does wrong, through SQL: how often it is asked, what the caller is told, what is kept of the reply,
//! and what it is taken to have cost. Every fault of every kind of provider, each waited for, streamed and left to the worker.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod place;
mod provider;
mod secure;

use cluster::{Session, until};
use futures_util::future::join_all;
use place::{ANN, Place};
use provider::{Answer, Break, Say, Server};
use secure::{Authority, Secure};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpSocket;

const KINDS: [&str; 5] = ["openai", "anthropic", "gemini", "ollama", "openai_compatible"];
/// The second word has a character to be cut in.
const WORDS: &str = "Grüße für Öl über alles";
const HUNDRED_MB: usize = 100 << 20;
/// What a provider says beside its status; none of it is repeated to anybody.
const BODY: &str = r#"{"error": {"message": "sk-secret is no good", "type": "private", "code": null}}"#;

/// How a reply is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Whole,
    Streamed,
    Later,
}

/// Who is there to fail.
enum At {
    /// The scripted provider, which answers all requests so.
    Answer(Answer),
    /// Nobody.
    Nobody,
    /// A server whose certificate nobody knows.
    Stranger,
}

/// A fault, and what is to come of it.
struct Fault {
    name: &'static str,
    at: At,
    /// Options of the provider besides.
    options: Value,
    requests: u64,
    sqlstate: &'static str,
    /// What has to be in the detail.
    detail: &'static str,
    /// Status of the record.
    record: &'static str,
    /// The provider may have done the work.
    billed: bool,
}

fn fault(name: &'static str, answer: Answer, requests: u64) -> Fault {
    let (options, at) = (json!({}), At::Answer(answer));
    Fault { name, at, options, requests, sqlstate: "38000", detail: "", record: "failed", billed: false }
}

impl Fault {
    fn with(mut self, change: impl FnOnce(&mut Fault)) -> Fault {
        change(&mut self);
        self
    }

    fn billed(self) -> Fault {
        self.with(|fault| fault.billed = true)
    }

    fn is_refusal(&self) -> bool {
        self.detail.starts_with("HTTP")
    }
}

fn status(code: u16, detail: &'static str, requests: u64) -> Fault {
    fault(detail, Answer::status(code, BODY), requests).with(|fault| fault.detail = detail)
}

fn limited(name: &'static str, after: &[(&str, &str)], requests: u64) -> Fault {
    fault(name, Answer::with_headers(429, after, BODY), requests).with(|fault| {
        fault.sqlstate = "53000";
        fault.detail = "HTTP status 429";
    })
}

fn quota(kind: &str) -> Fault {
    let openai = r#"{"error": {"message": "sk-secret", "type": "insufficient_quota", "code": "insufficient_quota"}}"#;
    let anthropic = r#"{"type": "error", "error": {"type": "invalid_request_error", "message": "Your credit balance is too low to access the Anthropic API."}}"#;
    let (code, body, detail) = match kind {
        "openai" | "openai_compatible" => (429, openai, "HTTP status 429"),
        "anthropic" => (400, anthropic, "HTTP status 400"),
        _ => (402, BODY, "HTTP status 402"),
    };
    fault("quota", Answer::status(code, body), 1).with(|fault| fault.detail = detail)
}

/// Faults that are there before the first word.
fn refusals(kind: &str) -> Vec<Fault> {
    let page = Answer::with_headers(200, &[("content-type", "text/html")], "<html>sk-secret</html>");
    let lines = |status, told| Answer::Lines { status, length: HUNDRED_MB, told };
    let too_long = |fault: Fault| {
        fault.billed().with(|fault| {
            fault.sqlstate = "53400";
            fault.detail = "Allowed are 33554432 bytes";
        })
    };
    let impatient = json!({"connect_timeout_ms": 100, "first_byte_timeout_ms": 100, "idle_timeout_ms": 100});
    vec![
        fault("refused", Answer::Hang, 2).with(|fault| {
            fault.at = At::Nobody;
            fault.detail = "The connection was refused";
        }),
        fault("certificate", Answer::Hang, 1).with(|fault| {
            fault.at = At::Stranger;
            fault.detail = "It is of an authority that the gateway does not trust";
        }),
        fault("closed", Answer::Close, 2).billed(),
        fault("hang", Answer::Hang, 2).billed().with(|fault| fault.options = impatient),
        fault("out of time", Answer::Hang, 1).billed().with(|fault| {
            fault.options = json!({"timeout_ms": 300});
            fault.sqlstate = "57014";
            fault.detail = "Allowed are 300 ms";
        }),
        status(400, "HTTP status 400", 1),
        status(401, "HTTP status 401", 1),
        status(404, "HTTP status 404", 1),
        status(408, "HTTP status 408", 2),
        status(413, "HTTP status 413", 1),
        limited("limited", &[], 2),
        limited("limited for a second", &[("retry-after", "1")], 2),
        limited("limited for an hour", &[("retry-after", "3600")], 1),
        quota(kind),
        status(500, "HTTP status 500", 2),
        status(529, "HTTP status 529", 2),
        fault("page", page, 2).billed().with(|fault| fault.detail = "HTTP status 200"),
        too_long(fault("100 MB, told", lines(200, true), 1)),
        too_long(fault("100 MB, untold", lines(200, false), 1)),
        fault("100 MB of an error", lines(500, false), 2).with(|fault| fault.detail = "HTTP status 500"),
    ]
}

/// Faults in the midst of a stream, after its first word.
fn interruptions() -> Vec<Fault> {
    let broken = |name, how| {
        let say = Say { text: WORDS.into(), broken: Some((1, how)), ..Say::default() };
        fault(name, Answer::Say(say), 1).billed().with(|fault| fault.record = "interrupted")
    };
    vec![
        broken("hang in the middle", Break::Hang).with(|fault| fault.options = json!({"idle_timeout_ms": 1000})),
        broken("cut in a character", Break::Cut),
        broken("end in the middle", Break::End).with(|fault| fault.detail = "HTTP status 200"),
        broken("error in the middle", Break::Error).with(|fault| fault.detail = "HTTP status 200"),
    ]
}

/// What the caller was told, and what there is of the reply.
struct Told {
    sqlstate: String,
    detail: String,
    hint: String,
    everything: String,
    /// Status, text and error of the message, where there is one.
    kept: Option<(String, String, Value)>,
}

fn told_of(error: &Value, kept: (String, String, Value)) -> Told {
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    let (sqlstate, detail, hint) = (text("sqlstate"), text("detail"), text("hint"));
    Told { sqlstate, detail, hint, everything: error.to_string(), kept: Some(kept) }
}

async fn kept(session: &Session, message: &str) -> (String, String, Value) {
    let sql = format!("select status, content, error from helper.messages where id = '{message}'");
    let row = session.query_one(&sql, &[]).await.unwrap();
    (row.get(0), row.get(1), row.get::<_, Option<Value>>(2).unwrap_or_default())
}

async fn ask(session: &Session, way: Way, provider: &str) -> Told {
    let rest = format!("model => '{provider}/m', options => '{{\"max_tokens\": 50}}')");
    match way {
        Way::Whole => {
            let error = session.error(&format!("select helper.complete('Hello', {rest}")).await;
            let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
            Told {
                sqlstate: error.code().code().into(),
                detail: text(error.detail()),
                hint: text(error.hint()),
                everything: format!("{error:?}"),
                kept: None,
            }
        }
        Way::Streamed => {
            let sql = format!("select event, data from helper.ask_stream('Hello', knowledge => false, {rest}");
            let rows = session.query(&sql, &[]).await.unwrap();
            let events: Vec<(String, Value)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
            let [.., (error, facts), (done, end)] = &events[..] else { panic!("{provider}: {events:?}") };
            assert_eq!((error.as_str(), done.as_str()), ("error", "done"), "{provider}: {events:?}");
            assert_eq!(end["status"], "error", "{provider}");
            told_of(facts, kept(session, end["message_id"].as_str().unwrap()).await)
        }
        Way::Later => {
            let sql = format!("select helper.ask_async('Hello', knowledge => false, {rest}::text");
            let message: String = session.one(&sql, &[]).await;
            let kept = until("the reply's end", async || {
                let kept = kept(session, &message).await;
                (!["pending", "streaming"].contains(&kept.0.as_str())).then_some(kept)
            });
            let kept = kept.await;
            told_of(&kept.2.clone(), kept)
        }
    }
}

/// Sets a provider up that has the fault, and gives the server whose requests are counted.
struct Failing {
    server: Server,
    _nobody: Option<TcpSocket>,
}

async fn set_up(place: &Place, name: &str, kind: &str, fault: &Fault) -> Failing {
    let path = if kind.starts_with("openai") { "/v1" } else { "" };
    let server = Server::start().await;
    let mut failing = Failing { server: server.clone(), _nobody: None };
    let url = match &fault.at {
        At::Answer(answer) => {
            let answer = answer.clone();
            server.answer_by(move |_| answer.clone());
            server.url(path)
        }
        At::Nobody => {
            // Bound and not listening, so that nobody else comes there.
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let url = format!("http://{}{path}", socket.local_addr().unwrap());
            failing._nobody = Some(socket);
            url
        }
        At::Stranger => {
            let secure = Secure::start(Authority::new("unknown").server(|_| {}, &["h2", "http/1.1"])).await;
            failing.server = secure.server.clone();
            format!("https://{}{path}", secure.address)
        }
    };
    let mut options = fault.options.clone();
    options["allow_private"] = json!(true);
    options["max_retries"] = json!(1);
    let model = r#"{"context_window": 8000, "output_limit": 1000, "input_price": 1, "output_price": 2}"#;
    place
        .admin
        .run(&format!(
            "select helper.set_provider('{name}', '{kind}', '{url}', options => '{options}'); \
             select helper.set_model('{name}', 'm', options => '{model}'); \
             insert into helper.provider_keys (provider, key) values ('{name}', 'sk-secret-{name}')"
        ))
        .await;
    failing
}

fn check_told(name: &str, provider: &str, fault: &Fault, told: &Told) {
    let Told { sqlstate, detail, hint, everything, kept } = told;
    assert_eq!(sqlstate, fault.sqlstate, "{name}: {everything}");
    assert!(!detail.is_empty() && detail.contains(fault.detail), "{name}: {everything}");
    assert!(!hint.is_empty(), "{name}: {everything}");
    if fault.is_refusal() {
        for fact in [format!("\"{provider}\""), "\"m\"".into()] {
            assert!(detail.contains(&fact), "{name}: {everything}");
        }
    }
    assert!(!everything.contains("sk-secret") && !everything.contains("credit balance"), "{name}: {everything}");
    if let Some((status, content, error)) = kept {
        assert_eq!(status, "error", "{name}");
        assert_eq!(content.trim_end(), if fault.record == "interrupted" { "Grüße" } else { "" }, "{name}");
        let stored = ["sqlstate", "detail", "hint"].map(|fact| error[fact].as_str().unwrap_or_default());
        assert_eq!(stored, [sqlstate, detail, hint], "{name}");
    }
}

fn check_record(name: &str, way: Way, fault: &Fault, record: &Value) {
    assert_eq!(record["status"], fault.record, "{name}: {record}");
    assert_eq!(record["sqlstate"], fault.sqlstate, "{name}: {record}");
    assert_eq!(record["attempts"], fault.requests, "{name}: {record}");
    assert_eq!(record["estimated"], fault.billed, "{name}: {record}");
    let (input, output) = (record["input_tokens"].as_u64().unwrap(), record["output_tokens"].as_u64().unwrap());
    assert_eq!(input > 0, fault.billed, "{name}: {record}");
    // Of a reply in one piece nothing is heard before its end: all of it may have been made.
    match (fault.billed, way, fault.record) {
        (true, Way::Whole, _) => assert_eq!(output, 50, "{name}: {record}"),
        (true, _, "interrupted") => assert!((1..50).contains(&output), "{name}: {record}"),
        _ => assert_eq!(output, 0, "{name}: {record}"),
    }
    let cost = (input + 2 * output) as f64 / 1e6;
    assert!((record["cost"].as_f64().unwrap() - cost).abs() < 1e-9, "{name}: {record}");
}

/// One fault after the other, of one kind of provider.
async fn each(place: &Place, kind: &str, way: Way) {
    let session = place.cluster.user(ANN).await;
    let mut faults = refusals(kind);
    if way != Way::Whole {
        faults.extend(interruptions());
    }
    for (number, fault) in faults.iter().enumerate() {
        let provider = format!("{kind}-{way:?}-{number}").to_lowercase();
        let name = format!("{kind}, {way:?}: {}", fault.name);
        let failing = set_up(place, &provider, kind, fault).await;
        let told = ask(&session, way, &provider).await;
        check_told(&name, &provider, fault, &told);
        let is_heard = matches!(fault.at, At::Answer(_));
        assert_eq!(failing.server.count() as u64, if is_heard { fault.requests } else { 0 }, "{name}");
        if fault.name == "limited for a second" {
            let seen = failing.server.seen();
            assert!(seen[1].at - seen[0].at >= Duration::from_secs(1), "{name}: it did not wait");
        }
        let sql = format!("select to_jsonb(u) from helper.usage_records u where u.provider = '{provider}'");
        let records = until("the record", async || {
            let rows = place.admin.query(&sql, &[]).await.unwrap();
            (!rows.is_empty()).then_some(rows)
        });
        let records = records.await;
        assert_eq!(records.len(), 1, "{name}");
        check_record(&name, way, fault, &records[0].get(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_of_every_provider_is_told_kept_and_accounted_for() {
    let place = Place::new().await;
    let ways = [Way::Whole, Way::Streamed, Way::Later];
    let all = KINDS.iter().flat_map(|kind| ways.map(|way| each(&place, kind, way)));
    join_all(all).await;
}

#[tokio::test]
async fn a_provider_that_is_left_alone_is_said_to_be_and_not_asked() {
    let place = Place::new().await;
    for (name, (code, sqlstate)) in ["open", "claude", "gem", "llama", "other"].into_iter().zip([
        (500, "38000"),
        (429, "53000"),
        (529, "38000"),
        (503, "38000"),
        (429, "53000"),
    ]) {
        let before = place.server.count();
        place.server.answer_by(move |_| Answer::status(code, BODY));
        let call = format!("select helper.complete('Hello', model => '{name}/m')");
        for _ in 0..5 {
            assert_eq!(place.ann.error(&call).await.code().code(), sqlstate, "{name}");
        }
        let error = place.ann.error(&call).await;
        assert_eq!(error.code().code(), sqlstate, "{name}: {error:?}");
        assert_eq!(error.message(), format!("provider \"{name}\" is left alone after repeated failures"));
        assert!(error.detail().unwrap().starts_with("It is tried again in "), "{error:?}");
        assert!(error.hint().is_some(), "{error:?}");
        assert_eq!(place.server.count() - before, 5, "{name}");
    }
    let unsent =
        "select count(*) from helper.usage_records where attempts = 0 and status = 'failed' and input_tokens = 0";
    until("records of what was not sent", async || (place.admin.one::<i64>(unsent, &[]).await == 5).then_some(()))
        .await;
}

#[tokio::test]
async fn the_status_of_a_provider_shows_its_requests_errors_and_latency() {
    let place = Place::new().await;
    place.server.answer_by(|_| Answer::Say(Say { delay: Duration::from_millis(50), ..Say::default() }));
    let call = "select helper.complete('Hello')";
    let status = async || -> Value {
        place.admin.one("select to_jsonb(s) from helper.provider_status s where s.provider = 'open'", &[]).await
    };
    let figure = |status: &Value, name: &str| status[name].as_i64().unwrap();
    assert_eq!(status().await["state"], "unused");
    for _ in 0..3 {
        place.ann.one::<String>(call, &[]).await;
    }
    let seen = status().await;
    let counted = ["in_flight", "waiting", "requests", "errors"].map(|name| figure(&seen, name));
    assert_eq!((seen["state"].as_str(), counted, &seen["last_error"]), (Some("closed"), [0, 0, 3, 0], &Value::Null));
    let [p50, p95, p99] = ["latency_p50", "latency_p95", "latency_p99"].map(|name| figure(&seen, name));
    assert!(50 <= p50 && p50 <= p95 && p95 <= p99 && p99 < 30_000, "{seen}");
    // One that hangs is seen while it hangs.
    let other = place.cluster.user(ANN).await;
    place.server.next(Answer::Hang);
    let cancel = format!("select pg_cancel_backend({})", other.pid().await);
    let watch = async {
        until("the request", async || (figure(&status().await, "in_flight") == 1).then_some(())).await;
        place.admin.run(&cancel).await;
    };
    let (error, ()) = tokio::join!(other.error(call), watch);
    assert_eq!(error.code().code(), "57014");
    let seen = until("its end", async || Some(status().await).filter(|seen| figure(seen, "in_flight") == 0)).await;
    assert_eq!(
        ["requests", "errors"].map(|name| figure(&seen, name)),
        [4, 0],
        "whoever goes away says nothing of it: {seen}"
    );
    // What goes wrong is counted and named; again and again, and it is left alone.
    place.server.answer_by(|_| Answer::status(500, BODY));
    place.ann.error(call).await;
    let seen = status().await;
    assert_eq!(["requests", "errors"].map(|name| figure(&seen, name)), [5, 1], "{seen}");
    assert_eq!(
        (seen["state"].as_str(), seen["last_error"].as_str()),
        (Some("closed"), Some("provider \"open\" is not available"))
    );
    for _ in 0..4 {
        place.ann.error(call).await;
    }
    let seen = status().await;
    assert_eq!(seen["state"], "open", "{seen}");
    assert!((1..=5).contains(&figure(&seen, "retry_seconds")), "{seen}");
    // Who keeps no provider sees none.
    assert_eq!(place.ann.one::<i64>("select count(*) from helper.provider_status", &[]).await, 0);
}
