//! Servers of the Model Context Protocol over Streamable HTTP: their tools listed, and called.
//!
//! Each call has a session of its own, ended with it: what a server keeps with a session never passes from one caller to
//! another.

use crate::core::error::{Error, Kind, Result};
use crate::core::wire::{Endpoint, McpServer, McpTool, ToolAnswer, ToolRequest};
use crate::gateway::http::fault::Fault;
use crate::gateway::http::tool::{Answer, CONNECT_MS, content_type, is_passing, put, put_together};
use crate::gateway::http::{Addressee, Providers, deadline, too_slow};
use crate::provider::mcp::{self, Message, Messages};
use reqwest::header::{ACCEPT, HeaderValue};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::time::{timeout, timeout_at};

/// Bytes of one reply at most, with all that the server says before its answer.
const MAX_REPLY: usize = 16 * 1024 * 1024;
/// Pages of tools that are asked for.
const MAX_PAGES: usize = 100;
/// Tools of one server at most.
const MAX_TOOLS: usize = 1000;
/// The longest that the end of a session may take.
const FAREWELL: Duration = Duration::from_secs(1);

const SESSION: &str = "mcp-session-id";
const REVISION: &str = "mcp-protocol-version";

impl Providers {
    /// Asks a server what it has to offer.
    pub async fn mcp_tools(&self, endpoint: Endpoint) -> Result<McpServer> {
        let to = Addressee::Mcp(&endpoint.name);
        let deadline = deadline(Instant::now(), endpoint.timeout_ms);
        let listed = timeout_at(deadline.into(), async {
            let (mut session, hello) = Session::open(self, &endpoint).await?;
            let tools = session.tools().await;
            session.close().await;
            let (name, version) = mcp::name(&hello);
            Ok(McpServer { protocol: session.revision.unwrap_or_default().to_owned(), name, version, tools: tools? })
        });
        match listed.await {
            Ok(listed) => listed.map_err(|fault: Fault| fault.error),
            Err(_) => Err(too_slow(to, endpoint.timeout_ms)),
        }
    }

    /// Calls a tool of a server.
    pub(super) async fn mcp_call(
        &self,
        request: &ToolRequest,
        tool: &str,
        arguments: &str,
        sent: &mut bool,
    ) -> std::result::Result<Answer, Fault> {
        let params = mcp::call(tool, arguments)?;
        let (mut session, _) = Session::open(self, &request.endpoint).await?;
        session.idempotency_key = Some(&request.idempotency_key);
        *sent = true;
        let answer = session.ask("tools/call", &params).await;
        session.close().await;
        let outcome = match answer? {
            Ok(result) => mcp::outcome(&result).ok_or_else(|| Fault { lost: true, ..session.nonsense().into() })?,
            Err(Refused { code, message }) => {
                mcp::Outcome { text: format!("error {code}: {message}"), is_json: false, is_error: true }
            }
        };
        let most = usize::try_from(request.endpoint.max_bytes).unwrap_or(usize::MAX);
        let end = outcome.text.floor_char_boundary(most);
        let answer = ToolAnswer {
            status: 200,
            is_error: outcome.is_error,
            unsure: false,
            content_type: if outcome.is_json { "application/json" } else { "text/plain" }.to_owned(),
            truncated: end < outcome.text.len(),
            body: outcome.text[..end].replace('\0', "\u{fffd}"),
        };
        Ok(Answer { answer, passing: false, retry_after: None })
    }
}

/// A request that the server refused in words of the protocol.
struct Refused {
    code: i64,
    message: String,
}

/// A server, after the handshake.
struct Session<'a> {
    providers: &'a Providers,
    endpoint: &'a Endpoint,
    id: Option<HeaderValue>,
    revision: Option<&'static str>,
    idempotency_key: Option<&'a str>,
    requests: u64,
}

impl<'a> Session<'a> {
    /// Shakes hands; the server's side of it is returned as well.
    async fn open(
        providers: &'a Providers,
        endpoint: &'a Endpoint,
    ) -> std::result::Result<(Session<'a>, Value), Fault> {
        let mut session = Session { providers, endpoint, id: None, revision: None, idempotency_key: None, requests: 0 };
        let hello = session.ask("initialize", &mcp::initialize()).await?;
        let hello = hello.map_err(|refused| session.refused("initialize", &refused))?;
        session.revision = mcp::revision(&hello);
        if session.revision.is_none() {
            let [newest, .., oldest] = mcp::REVISIONS;
            return Err(Error::new(
                Kind::Provider,
                format!("{} speaks another revision of the protocol", session.to()),
            )
            .detail(format!("Spoken are those from {oldest} to {newest}."))
            .into());
        }
        session.post(mcp::initialized()).await?;
        Ok((session, hello))
    }

    fn to(&self) -> Addressee<'a> {
        Addressee::Mcp(&self.endpoint.name)
    }

    async fn tools(&mut self) -> std::result::Result<Vec<McpTool>, Fault> {
        let (mut tools, mut cursor) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let params = cursor.map_or_else(|| json!({}), |cursor: String| json!({ "cursor": cursor }));
            let page = self.ask("tools/list", &params).await?;
            let page = page.map_err(|refused| self.refused("tools/list", &refused))?;
            let (more, next) = mcp::tools(&page).ok_or_else(|| self.nonsense())?;
            tools.extend(more);
            match next {
                Some(next) if tools.len() <= MAX_TOOLS => cursor = Some(next),
                None if tools.len() <= MAX_TOOLS => return Ok(tools),
                _ => break,
            }
        }
        Err(Error::new(Kind::OverLimit, format!("{} has too many tools", self.to()))
            .detail(format!("Allowed are {MAX_TOOLS}."))
            .into())
    }

    /// Asks, and waits for the answer; what else the server says meanwhile is passed over.
    async fn ask(
        &mut self,
        method: &str,
        params: &Value,
    ) -> std::result::Result<std::result::Result<Value, Refused>, Fault> {
        self.requests += 1;
        let id = self.requests;
        let mut response = self.post(mcp::request(id, method, params)).await?;
        if method == "initialize" {
            self.id = response.headers().get(SESSION).cloned();
        }
        let lost = |error: Error| Fault { lost: true, ..Fault::from(error) };
        let mut reader = Messages::of(&content_type(&response).0).ok_or_else(|| lost(self.nonsense()))?;
        let (mut messages, mut length) = (Vec::new(), 0);
        loop {
            let part = response.chunk().await.map_err(|error| Fault::of_client(&error, self.to(), true))?;
            let ended = part.is_none();
            match part {
                Some(part) => {
                    length += part.len();
                    if length > MAX_REPLY {
                        let error = Error::new(Kind::OverLimit, format!("reply of {} is too long", self.to()));
                        return Err(lost(error.detail(format!("Allowed are {MAX_REPLY} bytes."))));
                    }
                    reader.push(&part, &mut messages).map_err(lost)?;
                }
                None => std::mem::replace(&mut reader, Messages::Whole(Vec::new())).finish(&mut messages),
            }
            for message in messages.drain(..) {
                match mcp::message(message, id) {
                    Message::Result(result) => return Ok(Ok(result)),
                    Message::Error { code, message } => return Ok(Err(Refused { code, message })),
                    Message::Request { id, method } => {
                        // Whether it hears us or not, we go on listening.
                        let _ = self.post(mcp::answer(&id, &method)).await;
                    }
                    Message::Other => {}
                }
            }
            if ended {
                return Err(lost(self.nonsense()));
            }
        }
    }

    /// Sends a message.
    async fn post(&self, message: String) -> std::result::Result<Response, Fault> {
        let mut request = put_together(self.endpoint, self.to(), Method::POST, Some(message)).await?;
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        if let Some(id) = &self.id {
            headers.insert(SESSION, id.clone());
        }
        if let Some(revision) = self.revision {
            headers.insert(REVISION, HeaderValue::from_static(revision));
        }
        if let Some(key) = self.idempotency_key {
            put(headers, self.to(), "idempotency-key", key)?;
        }
        let response = self.providers.send(request, self.endpoint, self.to()).await?;
        let status = response.status().as_u16();
        if response.status().is_success() {
            return Ok(response);
        }
        let hint = match status {
            401 | 403 => "Check its credential.",
            _ => "Check its URL; it has to speak Streamable HTTP with a handshake, as revisions up to 2025-11-25 do.",
        };
        let error = Error::new(Kind::Provider, format!("{} refused a request", self.to()))
            .detail(format!("HTTP status {status}."))
            .hint(hint);
        Err(Fault { again: is_passing(status), lost: status >= 500, ..Fault::from(error) })
    }

    /// Ends the session, where the server keeps one. Nobody waits for that.
    async fn close(&self) {
        let Some(id) = &self.id else { return };
        let Ok(mut request) = put_together(self.endpoint, self.to(), Method::DELETE, None).await else { return };
        request.headers_mut().insert(SESSION, id.clone());
        if let Some(revision) = self.revision {
            request.headers_mut().insert(REVISION, HeaderValue::from_static(revision));
        }
        let Ok(ready) = self.providers.clients.ready(request, self.endpoint.allow_private, CONNECT_MS) else { return };
        // A server may keep its sessions for as long as it likes.
        tokio::spawn(async move { timeout(FAREWELL, ready.send(Addressee::Mcp(""))).await.is_ok() });
    }

    fn refused(&self, method: &str, refused: &Refused) -> Error {
        Error::new(Kind::Provider, format!("{} refused {method}", self.to()))
            .detail(format!("Its error code is {}.", refused.code))
    }

    fn nonsense(&self) -> Error {
        Error::new(Kind::Provider, format!("{} did not answer as the protocol says", self.to()))
            .hint("Check its URL; it has to speak Streamable HTTP.")
    }
}
