//! Providers behind TLS: whose certificates are believed, and which version of HTTP is spoken.

use super::*;
use crate::secure::{Authority, Secure};
use rcgen::{CertificateParams, date_time_ymd};
use std::path::PathBuf;
use tokio::net::TcpListener;

/// The gateway's room that trusts an authority, and finds every name on this machine.
fn room_of(authority: &Authority) -> Arc<Providers> {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let file: PathBuf = std::env::temp_dir().join(format!("helper-ca-{}-{number}.pem", std::process::id()));
    std::fs::write(&file, &authority.pem).unwrap();
    let lookup: helper_ai::gateway::http::Lookup =
        Arc::new(|_| Box::pin(async { Ok(vec!["127.0.0.1".parse().unwrap()]) }));
    let settings = Settings { lookup, backoff: Duration::from_millis(2), ..Settings::default() };
    let settings = settings.trust(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    Providers::new(settings)
}

fn route_to(secure: &Secure, kind: Kind, host: &str) -> Route {
    let mut route = route(kind, &secure.server);
    let plain = secure.server.url("");
    let own = format!("https://{host}:{}", secure.address.port());
    route.provider.base_url = route.provider.base_url.replace(&plain, &own);
    route
}

#[tokio::test]
async fn the_newest_version_of_http_that_the_server_offers_is_spoken() {
    let authority = Authority::new("ours");
    for (protocols, version) in
        [(&["h2", "http/1.1"][..], "HTTP/2.0"), (&["h2"], "HTTP/2.0"), (&["http/1.1"], "HTTP/1.1"), (&[], "HTTP/1.1")]
    {
        let secure = Secure::start(authority.server(|_| {}, protocols)).await;
        secure.server.answer_by(|_| Answer::say(WORDS));
        let room = room_of(&authority);
        for kind in KINDS {
            for stream in [true, false] {
                let mut call = call(&[&route_to(&secure, kind, "provider.test")]);
                call.chat.stream = stream;
                let (events, end) = chat(&room, call).await;
                assert_eq!((text(&events).as_str(), end.outcome), (WORDS, Outcome::Succeeded), "{kind:?} {end:?}");
                assert_eq!(secure.server.seen().pop().unwrap().version, version, "{kind:?} {stream}");
            }
        }
        // They share it, as each lets the one before end.
        assert_eq!(secure.connections.load(Ordering::Relaxed), 1, "{protocols:?}");
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_ends_its_stream_and_not_those_beside_it() {
    let authority = Authority::new("ours");
    let secure = Secure::start(authority.server(|_| {}, &["h2"])).await;
    let room = room_of(&authority);
    let route = route_to(&secure, Kind::OpenAi, "127.0.0.1");
    secure.server.answer_by(|_| Answer::Hang);
    let ask = || {
        let (room, call) = (room.clone(), call(&[&route]));
        tokio::spawn(async move { chat(&room, call).await })
    };
    let dropped = ask();
    until("the first request", || secure.server.count() == 1).await;
    let kept = ask();
    until("the second request", || secure.server.count() == 2).await;
    dropped.abort();
    until("the stream ends", || secure.resets.load(Ordering::Relaxed) == 1).await;
    assert!(!kept.is_finished());
    secure.server.answer_by(|_| Answer::say(WORDS));
    assert_eq!(text(&chat(&room, call(&[&route])).await.0), WORDS);
    assert_eq!(secure.connections.load(Ordering::Relaxed), 1);
    kept.abort();
    until("the other ends", || secure.resets.load(Ordering::Relaxed) == 2).await;
}

#[tokio::test]
async fn a_certificate_that_is_not_right_is_refused_and_nothing_is_sent() {
    let (authority, other) = (Authority::new("ours"), Authority::new("theirs"));
    let false_one = Authority::new("ours");
    let expired = |params: &mut CertificateParams| params.not_after = date_time_ymd(2020, 1, 1);
    let early = |params: &mut CertificateParams| params.not_before = date_time_ymd(4000, 1, 1);
    for (acceptor, host, detail) in [
        (other.server(|_| {}, &["h2"]), "127.0.0.1", "It is of an authority that the gateway does not trust."),
        (false_one.server(|_| {}, &["h2"]), "127.0.0.1", "It is not signed by the authority that it names."),
        (authority.server(|_| {}, &["h2"]), "elsewhere.test", "It is for another name."),
        (authority.server(expired, &["h2"]), "127.0.0.1", "It has expired."),
        (authority.server(early, &["h2"]), "127.0.0.1", "It is not valid yet."),
    ] {
        let secure = Secure::start(acceptor).await;
        for kind in KINDS {
            let (events, end) = chat(&room_of(&authority), call(&[&route_to(&secure, kind, host)])).await;
            assert_eq!((sqlstate(&end), end.attempts, end.outcome), ("38000", 1, Outcome::Failed), "{kind:?} {end:?}");
            let error = end.error.unwrap();
            assert_eq!(error.message, "certificate of provider \"acme\" is not valid");
            assert_eq!(error.detail.as_deref(), Some(detail), "{kind:?}");
            let hint = "Check its base URL, and the certificate authorities that the gateway trusts.";
            assert_eq!(error.hint.as_deref(), Some(hint));
            assert!(events.is_empty());
        }
        assert_eq!(secure.server.count(), 0);
    }
}

#[tokio::test]
async fn a_server_without_tls_is_told_from_one_that_is_not_there() {
    let authority = Authority::new("ours");
    let server = Server::start().await;
    let mut route = route(Kind::OpenAi, &server);
    route.provider.base_url = route.provider.base_url.replace("http://", "https://");
    // It answers whatever it is sent, as most servers do.
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = plain.local_addr().unwrap();
    route.provider.base_url = route.provider.base_url.replace(&server.address.to_string(), &address.to_string());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            use tokio::io::AsyncWriteExt;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    });
    let (_, end) = chat(&room_of(&authority), call(&[&route])).await;
    assert_eq!((sqlstate(&end), end.attempts, end.outcome), ("38000", 1, Outcome::Failed), "{end:?}");
    let error = end.error.unwrap();
    assert_eq!(error.message, "cannot connect to provider \"acme\"");
    assert_eq!(error.detail.as_deref(), Some("It does not speak TLS."));
    assert_eq!(error.hint.as_deref(), Some("Check its base URL."));
    // And the other way about.
    let secure = Secure::start(authority.server(|_| {}, &["h2", "http/1.1"])).await;
    let mut route = route_to(&secure, Kind::OpenAi, "127.0.0.1");
    route.provider.base_url = route.provider.base_url.replace("https://", "http://");
    let (_, end) = chat(&room_of(&authority), call(&[&route])).await;
    assert_eq!((sqlstate(&end), end.outcome, secure.server.count()), ("38000", Outcome::Failed, 0), "{end:?}");
}
