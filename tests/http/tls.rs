//! Providers behind TLS: whose certificates are believed, and which version of HTTP is spoken.

use super::*;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use std::net::SocketAddr;
use std::path::PathBuf;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::server::TlsStream;

/// A certificate authority of the test's own.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// How a server with a certificate for these names speaks, which offers these protocols.
    fn server(&self, change: impl FnOnce(&mut CertificateParams), protocols: &[&str]) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["provider.test".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let mut config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// The gateway's room that trusts this authority, and finds every name on this machine.
    fn room(&self) -> Arc<Providers> {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let file: PathBuf = std::env::temp_dir().join(format!("helper-ca-{}-{number}.pem", std::process::id()));
        std::fs::write(&file, &self.pem).unwrap();
        let lookup: helper_ai::gateway::http::Lookup =
            Arc::new(|_| Box::pin(async { Ok(vec!["127.0.0.1".parse().unwrap()]) }));
        let settings = Settings { lookup, backoff: Duration::from_millis(2), ..Settings::default() };
        let settings = settings.trust(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        Providers::new(settings)
    }
}

/// The scripted provider behind TLS.
#[derive(Clone)]
struct Secure {
    server: Server,
    address: SocketAddr,
    connections: Arc<AtomicU8>,
    /// Streams that the client gave up, their connection left open.
    resets: Arc<AtomicU8>,
}

impl Secure {
    async fn start(acceptor: TlsAcceptor) -> Secure {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (server, address) = (Server::start().await, listener.local_addr().unwrap());
        let secure = Secure { server, address, connections: Arc::default(), resets: Arc::default() };
        let serving = secure.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (secure, acceptor) = (serving.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    secure.connections.fetch_add(1, Ordering::Relaxed);
                    match stream.get_ref().1.alpn_protocol() {
                        Some(b"h2") => secure.streams(stream).await,
                        _ => secure.server.connection(stream).await,
                    }
                });
            }
        });
        secure
    }

    /// Speaks HTTP/2.
    async fn streams(self, stream: TlsStream<TcpStream>) {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, respond))) = connection.accept().await {
            tokio::spawn(self.clone().stream(request, respond));
        }
    }

    async fn stream(self, request: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<bytes::Bytes>) {
        let (head, mut rest) = request.into_parts();
        let mut body = Vec::new();
        while let Some(Ok(part)) = rest.data().await {
            rest.flow_control().release_capacity(part.len()).unwrap();
            body.extend_from_slice(&part);
        }
        let headers = head.headers.iter();
        let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        let (method, path) = (head.method.to_string(), head.uri.path_and_query().unwrap().to_string());
        let seen =
            provider::Seen { method, path, version: format!("{:?}", head.version), headers, body, at: Instant::now() };
        let Answer::Say(say) = self.server.take(&seen) else {
            std::future::poll_fn(|context| respond.poll_reset(context)).await.unwrap();
            self.resets.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (content_type, pieces) = provider::pieces(&seen, &say).unwrap();
        let head = http::Response::builder().header("content-type", content_type).body(()).unwrap();
        let mut out = respond.send_response(head, false).unwrap();
        for piece in pieces {
            out.send_data(piece.into(), false).unwrap();
        }
        out.send_data(bytes::Bytes::new(), true).unwrap();
    }

    fn route(&self, kind: Kind, host: &str) -> Route {
        let mut route = route(kind, &self.server);
        let plain = self.server.url("");
        let own = format!("https://{host}:{}", self.address.port());
        route.provider.base_url = route.provider.base_url.replace(&plain, &own);
        route
    }
}

#[tokio::test]
async fn the_newest_version_of_http_that_the_server_offers_is_spoken() {
    let authority = Authority::new("ours");
    for (protocols, version) in
        [(&["h2", "http/1.1"][..], "HTTP/2.0"), (&["h2"], "HTTP/2.0"), (&["http/1.1"], "HTTP/1.1"), (&[], "HTTP/1.1")]
    {
        let secure = Secure::start(authority.server(|_| {}, protocols)).await;
        secure.server.answer_by(|_| Answer::say(WORDS));
        let room = authority.room();
        for kind in KINDS {
            for stream in [true, false] {
                let mut call = call(&[&secure.route(kind, "provider.test")]);
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
    let room = authority.room();
    let route = secure.route(Kind::OpenAi, "127.0.0.1");
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
        let (events, end) = chat(&authority.room(), call(&[&secure.route(Kind::OpenAi, host)])).await;
        assert_eq!((sqlstate(&end), end.attempts, end.outcome), ("38000", 1, Outcome::Failed), "{detail} {end:?}");
        let error = end.error.unwrap();
        assert_eq!(error.message, "certificate of provider \"acme\" is not valid");
        assert_eq!(error.detail.as_deref(), Some(detail));
        let hint = "Check its base URL, and the certificate authorities that the gateway trusts.";
        assert_eq!(error.hint.as_deref(), Some(hint));
        assert!(events.is_empty());
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
    let (_, end) = chat(&authority.room(), call(&[&route])).await;
    assert_eq!((sqlstate(&end), end.attempts, end.outcome), ("38000", 1, Outcome::Failed), "{end:?}");
    let error = end.error.unwrap();
    assert_eq!(error.message, "cannot connect to provider \"acme\"");
    assert_eq!(error.detail.as_deref(), Some("It does not speak TLS."));
    assert_eq!(error.hint.as_deref(), Some("Check its base URL."));
    // And the other way about.
    let secure = Secure::start(authority.server(|_| {}, &["h2", "http/1.1"])).await;
    let mut route = secure.route(Kind::OpenAi, "127.0.0.1");
    route.provider.base_url = route.provider.base_url.replace("https://", "http://");
    let (_, end) = chat(&authority.room(), call(&[&route])).await;
    assert_eq!((sqlstate(&end), end.outcome, secure.server.count()), ("38000", Outcome::Failed, 0), "{end:?}");
}
