//! Servers behind TLS: an authority of the test's own, and the scripted provider with a certificate of it.

#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use crate::provider::{self, Answer, Seen, Server};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::server::TlsStream;

/// A certificate authority of the test's own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// How a server with a certificate for these names speaks, which offers these protocols.
    pub fn server(&self, change: impl FnOnce(&mut CertificateParams), protocols: &[&str]) -> TlsAcceptor {
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
}

/// The scripted provider behind TLS.
#[derive(Clone)]
pub struct Secure {
    pub server: Server,
    pub address: SocketAddr,
    pub connections: Arc<AtomicU8>,
    /// Streams that the client gave up, their connection left open.
    pub resets: Arc<AtomicU8>,
}

impl Secure {
    pub async fn start(acceptor: TlsAcceptor) -> Secure {
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
        let seen = Seen { method, path, version: format!("{:?}", head.version), headers, body, at: Instant::now() };
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
}
