//! What comes of a call that goes well, and of one that does not.

use super::*;

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
        let error = end.error.as_ref().unwrap();
        assert!(error.detail.is_some() && error.hint.is_some(), "{name}");
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
    // Bound and not listening, so that nobody else is there.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed = socket.local_addr().unwrap();
    for kind in KINDS {
        let mut route = route(kind, &server);
        route.provider.base_url = format!("http://{closed}/v1");
        let (_, end) = chat(&room(), call(&[&route])).await;
        assert_eq!((end.attempts, sqlstate(&end), end.outcome), (2, "38000", Outcome::Failed), "{kind:?}");
        assert_eq!(end.error.unwrap().detail.as_deref(), Some("The connection was refused."), "{kind:?}");
    }
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
    assert!(end.error.as_ref().unwrap().hint.as_ref().unwrap().contains("timeout_ms"));
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
async fn a_dropped_call_ends_its_request_and_leaves_a_record() {
    let server = Server::start().await;
    let room = room();
    for answer in [Answer::Hang, broken(2, Break::Hang)] {
        let (gone, count) = (server.gone().len(), server.count());
        server.answer_by(move |_| answer.clone());
        let route = route(Kind::OpenAi, &server);
        let (asked, call) = (room.clone(), call(&[&route]));
        let (out, mut heard) = tokio::sync::mpsc::channel(8);
        let task = tokio::spawn(async move { asked.chat(call, &Sink::new(7, out)).await });
        until("the request", || server.count() > count).await;
        if count > 0 {
            // The second time words come; once some are through, the reply has begun.
            tokio::time::timeout(Duration::from_secs(10), heard.recv()).await.unwrap().unwrap();
        }
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
