//! Where the gateway will not connect to, and what it never tells.

use super::*;

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
