//! Calls of tools over HTTP: sent once, and once more where that does no harm.
//!
//! Whether the server may have had the request is told with every failure: whoever keeps the call has to know that what
//! was asked may have been done.

use crate::core::error::{Error, Kind, Result};
use crate::core::signature::{hex, hmac_sha256};
use crate::core::wire::{Endpoint, Errand, Signature, ToolAnswer, ToolReply, ToolRequest};
use crate::gateway::http::exchange::jitter;
use crate::gateway::http::fault::Fault;
use crate::gateway::http::{Addressee, Providers, credential, deadline, egress, too_slow};
use encoding_rs::{Encoding, UTF_8};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Request, Response, Url};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::time::timeout_at;

/// Milliseconds to connect.
pub const CONNECT_MS: u32 = 5000;
/// Bytes of a request's body at most.
const MAX_REQUEST: usize = 4 * 1024 * 1024;

/// A server's answer, with what it says about asking again.
pub struct Answer {
    /// The answer.
    pub answer: ToolAnswer,
    /// The same request may go better later.
    pub passing: bool,
    /// How long it wants us to wait.
    pub retry_after: Option<Duration>,
}

impl Providers {
    /// Calls a tool; how it ended, also in an error, is returned.
    pub async fn tool(&self, request: ToolRequest) -> ToolReply {
        let to = addressee(&request);
        let deadline = deadline(Instant::now(), request.endpoint.timeout_ms);
        let mut reached = false;
        let mut again = request.idempotent;
        loop {
            let mut sent = false;
            let result = match timeout_at(deadline.into(), self.errand(&request, &mut sent)).await {
                Ok(result) => result,
                Err(_) => Err(Fault { lost: true, ..too_slow(to, request.endpoint.timeout_ms).into() }),
            };
            reached |= sent && result.as_ref().err().is_none_or(|fault| fault.lost);
            let (passing, retry_after) = match &result {
                Ok(answer) => (answer.passing, answer.retry_after),
                Err(fault) => (fault.again, fault.retry_after),
            };
            let pause = retry_after.unwrap_or_else(|| jitter(self.backoff, 0));
            let in_time = Instant::now().checked_add(pause).is_some_and(|then| then < deadline);
            if !(again && passing && in_time) {
                return match result {
                    Ok(answer) => ToolReply::Answered(answer.answer),
                    Err(fault) => ToolReply::Failed { error: fault.error, reached },
                };
            }
            again = false;
            tokio::time::sleep(pause).await;
        }
    }

    async fn errand(&self, request: &ToolRequest, sent: &mut bool) -> std::result::Result<Answer, Fault> {
        match &request.errand {
            Errand::Http { method, body, signature } => {
                let to = addressee(request);
                let endpoint = &request.endpoint;
                let method = Method::from_bytes(method.as_bytes()).map_err(|_| Error::bug("unknown HTTP method"))?;
                let mut ready = put_together(endpoint, to, method, body.clone()).await?;
                put(ready.headers_mut(), to, "idempotency-key", &request.idempotency_key)?;
                if let Some(signature) = signature {
                    let value = signed(signature, to, ready.method(), ready.url(), body.as_deref()).await?;
                    put(ready.headers_mut(), to, &signature.header, &value)?;
                }
                *sent = true;
                read(self.send(ready, endpoint, to).await?, to, endpoint.max_bytes).await
            }
            Errand::Mcp { tool, arguments } => self.mcp_call(request, tool, arguments, sent).await,
        }
    }

    /// Sends a request. An answer that would lead elsewhere is an error.
    pub(super) async fn send(
        &self,
        request: Request,
        endpoint: &Endpoint,
        to: Addressee<'_>,
    ) -> std::result::Result<Response, Fault> {
        let response = self.clients.ready(request, endpoint.allow_private, CONNECT_MS)?.send(to).await?;
        let status = response.status().as_u16();
        if !response.status().is_redirection() {
            return Ok(response);
        }
        let error = Error::new(Kind::Provider, format!("{to} sent us to another address"))
            .detail(format!("HTTP status {status}."))
            .hint(format!("Check its {}; redirects are not followed.", to.url()));
        // These two ask for the same request elsewhere; the others come also when it is done.
        Err(Fault { lost: !matches!(status, 307 | 308), ..Fault::from(error) })
    }
}

fn addressee(request: &ToolRequest) -> Addressee<'_> {
    match request.errand {
        Errand::Http { .. } => Addressee::Function(&request.endpoint.name),
        Errand::Mcp { .. } => Addressee::Mcp(&request.endpoint.name),
    }
}

/// A request with the endpoint's headers and its key, to that host and no other.
pub async fn put_together(
    endpoint: &Endpoint,
    to: Addressee<'_>,
    method: Method,
    body: Option<String>,
) -> Result<Request> {
    let url = egress::url(to, &endpoint.url, endpoint.allow_private)?;
    let bound = egress::url(to, &endpoint.origin, endpoint.allow_private)?;
    if url.origin() != bound.origin() {
        return Err(Error::new(Kind::NotPermitted, format!("{to} may not be sent to another host"))
            .detail("Its credential is bound to the host that it was registered with."));
    }
    let length = body.as_ref().map_or(0, String::len);
    if length > MAX_REQUEST {
        return Err(Error::new(Kind::OverLimit, format!("request of {to} is too large"))
            .detail(format!("It has {length} bytes, {MAX_REQUEST} are allowed.")));
    }
    let mut headers = HeaderMap::new();
    if body.is_some() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    for (name, value) in &endpoint.headers {
        put(&mut headers, to, name, value)?;
    }
    if let Some(key) = credential::header(to, &endpoint.credential, &endpoint.credential_prefix).await? {
        headers.insert(header_name(to, &endpoint.credential_header)?, key);
    }
    let mut request = Request::new(method, url);
    *request.headers_mut() = headers;
    *request.body_mut() = body.map(Into::into);
    Ok(request)
}

fn header_name(to: Addressee<'_>, name: &str) -> Result<HeaderName> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| Error::bad_argument(format!("request of {to} has a header whose name is not one")))
}

/// Sets a header.
pub fn put(headers: &mut HeaderMap, to: Addressee<'_>, name: &str, value: &str) -> Result<()> {
    let name = header_name(to, name)?;
    let value = HeaderValue::from_str(value).map_err(|_| {
        Error::bad_argument(format!("value of header \"{name}\" of {to} has characters that a header cannot hold"))
    })?;
    headers.insert(name, value);
    Ok(())
}

/// The value of a signature's header.
async fn signed(
    signature: &Signature,
    to: Addressee<'_>,
    method: &Method,
    url: &Url,
    body: Option<&str>,
) -> Result<String> {
    let secret = credential::key(to, &signature.secret)
        .await?
        .ok_or_else(|| Error::not_ready(format!("{to} has no key for its signature")))?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let target = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let text = format!("{seconds}\n{method}\n{target}\n{}", body.unwrap_or_default());
    Ok(format!("t={seconds},v1={}", hex(&hmac_sha256(secret.as_bytes(), &[text.as_bytes()])?)))
}

/// Whether another request may go better after this status.
pub fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// How long a server wants us to wait, where it says so in seconds.
fn retry_after(response: &Response) -> Option<Duration> {
    let seconds: u64 = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The media type of a reply, without parameters and in lower case, and its charset.
pub fn content_type(response: &Response) -> (String, Option<&'static Encoding>) {
    let value = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut parts = value.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
    let charset = parts.find_map(|part| {
        let (name, label) = part.split_once('=')?;
        name.eq_ignore_ascii_case("charset").then(|| Encoding::for_label(label.trim_matches('"').as_bytes()))?
    });
    (kind, charset)
}

async fn read(mut response: Response, to: Addressee<'_>, most: u64) -> std::result::Result<Answer, Fault> {
    let status = response.status().as_u16();
    let retry_after = retry_after(&response);
    let (content_type, charset) = content_type(&response);
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let (mut bytes, mut truncated) = (Vec::new(), false);
    while let Some(part) = response.chunk().await.map_err(|error| Fault::of_client(&error, to, true))? {
        let left = most - bytes.len();
        bytes.extend_from_slice(&part[..part.len().min(left)]);
        if part.len() > left {
            truncated = true;
            break;
        }
    }
    let answer = ToolAnswer {
        status,
        is_error: status >= 400,
        unsure: matches!(status, 502 | 504),
        body: text(&bytes, charset.unwrap_or(UTF_8), &content_type, truncated),
        content_type,
        truncated,
    };
    Ok(Answer { answer, passing: is_passing(status), retry_after })
}

/// A reply's text. What is none is named: a model can do nothing with it, and Postgres' texts cannot hold it.
fn text(bytes: &[u8], charset: &'static Encoding, content_type: &str, truncated: bool) -> String {
    let (text, _, _) = charset.decode(bytes);
    if text.contains('\0') {
        return format!("[{content_type}, {} bytes]", bytes.len());
    }
    // The last character may have been cut.
    let text = if truncated { text.trim_end_matches('\u{fffd}') } else { &text };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_text_or_named() {
        assert_eq!(text("grüße".as_bytes(), UTF_8, "text/plain", false), "grüße");
        assert_eq!(text(b"gr\xfc\xdfe", Encoding::for_label(b"latin1").unwrap(), "text/plain", false), "grüße");
        assert_eq!(text(&"aü".as_bytes()[..2], UTF_8, "text/plain", true), "a");
        assert_eq!(text(b"\x89PNG\0", UTF_8, "image/png", false), "[image/png, 5 bytes]");
    }
}
