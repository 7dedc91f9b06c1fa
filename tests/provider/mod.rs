//! A provider of language models at the other end of a socket: it speaks four protocols over HTTP/1.1, says what its
//! script tells it, well or badly, and remembers what it was asked.
//!
//! `Server::start()` answers everything with [`Say::default`]. `server.next(answer)` queues an answer for one request;
//! `server.answer_by(|seen| ...)` decides all others.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

mod protocol;

#[allow(unused_imports)]
pub use protocol::embedding;

use protocol::Protocol;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Such as `HTTP/1.1`.
    pub version: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub at: Instant,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

/// What the server does with a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Answers in the protocol of the path; embeddings are made of the texts.
    Say(Say),
    /// A whole reply of any kind.
    Reply { status: u16, headers: Vec<(String, String)>, body: Vec<u8> },
    /// The same, once the test lets it go.
    Held(Arc<Notify>, Box<Answer>),
    /// No answer, for as long as the client waits.
    Hang,
    /// The connection is closed without an answer.
    Close,
    /// Headers, and then the same bytes again and again.
    Endless { content_type: &'static str, part: Vec<u8> },
    /// A body of so many empty lines, which mean nothing in any protocol; how many is told before, or not.
    Lines { status: u16, length: usize, told: bool },
}

/// Words to say.
#[derive(Clone, Debug)]
pub struct Say {
    pub text: String,
    /// Before each word of a stream, and before a reply that is no stream.
    pub delay: Duration,
    /// Each word of a stream takes a permit of these, and waits for it.
    pub gate: Option<Arc<Semaphore>>,
    /// Whether the tokens are told.
    pub usage: bool,
    /// Tokens of the prompt that are told for each that there is.
    pub prompt_times: usize,
    /// Of these, told as written to the cache, where the protocol has that.
    pub cache_written: usize,
    /// Tools to call after the words: their names and their arguments in JSON.
    pub tools: Vec<(String, String)>,
    /// Speaks OpenAI's protocol as other servers may: no usage, index or id, CRLF, comments, no `[DONE]`.
    pub bare: bool,
    /// Numbers in an embedding, where the request does not say how many.
    pub dimensions: usize,
    /// Why it ends, in the protocol's own word, where that is not its usual one.
    pub stop: Option<&'static str>,
    /// How a stream ends early, after so many words.
    pub broken: Option<(usize, Break)>,
}

impl Default for Say {
    fn default() -> Self {
        let text = "Grüße from the provider.".into();
        Say {
            text,
            delay: Duration::ZERO,
            gate: None,
            usage: true,
            prompt_times: 1,
            cache_written: 0,
            tools: Vec::new(),
            bare: false,
            dimensions: 8,
            stop: None,
            broken: None,
        }
    }
}

/// How a stream ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// Nothing more comes.
    Hang,
    /// The connection closes in the middle of a character.
    Cut,
    /// The stream ends in good order, too early.
    End,
    /// An error of the protocol comes.
    Error,
}

impl Answer {
    pub fn say(text: &str) -> Answer {
        Answer::Say(Say { text: text.into(), ..Say::default() })
    }

    pub fn broken(words: usize, how: Break) -> Answer {
        Answer::Say(Say { broken: Some((words, how)), ..Say::default() })
    }

    pub fn status(status: u16, body: &str) -> Answer {
        Answer::with_headers(status, &[("content-type", "application/json")], body)
    }

    pub fn with_headers(status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Answer::Reply { status, headers, body: body.into() }
    }
}

type Script = Arc<dyn Fn(&Seen) -> Answer + Send + Sync>;

/// The server; it ends with the runtime.
#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    seen: Mutex<Vec<Seen>>,
    queue: Mutex<VecDeque<Answer>>,
    script: Mutex<Script>,
    gone: Mutex<Vec<Instant>>,
}

impl Server {
    pub async fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let script: Script = Arc::new(|_| Answer::Say(Say::default()));
        let inner = Inner {
            seen: Mutex::default(),
            queue: Mutex::default(),
            script: Mutex::new(script),
            gone: Mutex::default(),
        };
        let server = Server { address: listener.local_addr().unwrap(), inner: Arc::new(inner) };
        let serving = server.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let server = serving.clone();
                tokio::spawn(async move { server.connection(stream).await });
            }
        });
        server
    }

    /// The answer to the next request that has none yet.
    pub fn next(&self, answer: Answer) -> &Server {
        self.inner.queue.lock().unwrap().push_back(answer);
        self
    }

    /// The answer to every request without one in the queue.
    pub fn answer_by(&self, script: impl Fn(&Seen) -> Answer + Send + Sync + 'static) {
        *self.inner.script.lock().unwrap() = Arc::new(script);
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().unwrap().clone()
    }

    /// How many requests there were.
    pub fn count(&self) -> usize {
        self.inner.seen.lock().unwrap().len()
    }

    /// When clients closed a connection before their answer's end.
    pub fn gone(&self) -> Vec<Instant> {
        self.inner.gone.lock().unwrap().clone()
    }

    /// `http://127.0.0.1:port` and a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Remembers a request, and decides what is done with it.
    pub fn take(&self, seen: &Seen) -> Answer {
        self.inner.seen.lock().unwrap().push(seen.clone());
        let queued = self.inner.queue.lock().unwrap().pop_front();
        queued.unwrap_or_else(|| {
            let script = self.inner.script.lock().unwrap().clone();
            script(seen)
        })
    }

    /// Speaks HTTP/1.1 to a client, through whatever it came.
    pub async fn connection(&self, stream: impl AsyncRead + AsyncWrite) {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut pending = Vec::new();
        while let Some(seen) = read_request(&mut reader, &mut pending).await {
            let answer = self.take(&seen);
            let goes_on = tokio::select! {
                goes_on = give(&mut writer, &seen, answer) => goes_on,
                () = gone(&mut reader, &mut pending) => {
                    self.inner.gone.lock().unwrap().push(Instant::now());
                    false
                }
            };
            if !goes_on {
                return;
            }
        }
    }
}

/// Ends when the client has closed the connection.
async fn gone(reader: &mut (impl AsyncRead + Unpin), pending: &mut Vec<u8>) {
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        pending.extend_from_slice(&buffer[..count]);
    }
}

async fn read_request(reader: &mut (impl AsyncRead + Unpin), pending: &mut Vec<u8>) -> Option<Seen> {
    let mut buffer = vec![0; 64 * 1024];
    let head = loop {
        if let Some(end) = pending.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        match reader.read(&mut buffer).await {
            Ok(count @ 1..) => pending.extend_from_slice(&buffer[..count]),
            _ => return None,
        }
    };
    let text = String::from_utf8(pending[..head].to_vec()).ok()?;
    let mut lines = text.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let mut word = || first.next().map(str::to_owned);
    let (method, path, version) = (word()?, word()?, word()?);
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, l)| l.parse().unwrap());
    pending.drain(..head + 4);
    while pending.len() < length {
        match reader.read(&mut buffer).await {
            Ok(count @ 1..) => pending.extend_from_slice(&buffer[..count]),
            _ => return None,
        }
    }
    let body = pending.drain(..length).collect();
    Some(Seen { method, path, version, headers, body, at: Instant::now() })
}

/// Answers, and says whether the connection stays.
async fn give(writer: &mut (impl AsyncWrite + Unpin), seen: &Seen, answer: Answer) -> bool {
    match answer {
        Answer::Close => false,
        Answer::Hang => std::future::pending().await,
        Answer::Held(gate, answer) => {
            gate.notified().await;
            Box::pin(give(writer, seen, *answer)).await
        }
        Answer::Reply { status, headers, body } => {
            let mut head = format!("HTTP/1.1 {status} Scripted\r\ncontent-length: {}\r\n", body.len());
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str("\r\n");
            writer.write_all(&[head.as_bytes(), &body].concat()).await.is_ok()
        }
        Answer::Endless { content_type, part } => {
            if writer.write_all(stream_head(content_type).as_bytes()).await.is_err() {
                return false;
            }
            while write_chunk(writer, &part).await {}
            false
        }
        Answer::Lines { status, length, told } => {
            let how = if told { format!("content-length: {length}") } else { "transfer-encoding: chunked".into() };
            let head = format!("HTTP/1.1 {status} Scripted\r\ncontent-type: application/json\r\n{how}\r\n\r\n");
            if writer.write_all(head.as_bytes()).await.is_err() {
                return false;
            }
            let lines = [b'\n'; 64 * 1024];
            for _ in 0..length / lines.len() {
                let goes_on =
                    if told { writer.write_all(&lines).await.is_ok() } else { write_chunk(writer, &lines).await };
                if !goes_on {
                    return false;
                }
            }
            told || writer.write_all(b"0\r\n\r\n").await.is_ok()
        }
        Answer::Say(say) => {
            let Some(protocol) = Protocol::of(&seen.path) else {
                let body = r#"{"error":{"message":"no such path","type":"invalid_request_error"}}"#;
                return Box::pin(give(writer, seen, Answer::status(404, body))).await;
            };
            let request = seen.json();
            if !protocol.streams(&seen.path, &request) {
                if !say.delay.is_zero() {
                    tokio::time::sleep(say.delay).await;
                }
                let body = protocol.whole(&seen.path, &request, &say).to_string();
                return Box::pin(give(writer, seen, Answer::status(200, &body))).await;
            }
            stream(writer, protocol, &request, &say).await
        }
    }
}

/// The pieces in which words are told, with their type; none where the path is not known.
pub fn pieces(seen: &Seen, say: &Say) -> Option<(&'static str, Vec<Vec<u8>>)> {
    let (protocol, request) = (Protocol::of(&seen.path)?, seen.json());
    if !protocol.streams(&seen.path, &request) {
        let whole = protocol.whole(&seen.path, &request, say).to_string();
        return Some(("application/json", vec![whole.into_bytes()]));
    }
    let parts = protocol.stream(&request, say);
    let all = [vec![parts.before], parts.words, vec![parts.after]].concat();
    Some((protocol.content_type(), all))
}

fn stream_head(content_type: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n")
}

async fn write_chunk(writer: &mut (impl AsyncWrite + Unpin), part: &[u8]) -> bool {
    let head = format!("{:x}\r\n", part.len());
    writer.write_all(&[head.as_bytes(), part, b"\r\n"].concat()).await.is_ok()
}

async fn stream(
    writer: &mut (impl AsyncWrite + Unpin),
    protocol: Protocol,
    request: &serde_json::Value,
    say: &Say,
) -> bool {
    let parts = protocol.stream(request, say);
    if writer.write_all(stream_head(protocol.content_type()).as_bytes()).await.is_err() {
        return false;
    }
    if !parts.before.is_empty() && !write_chunk(writer, &parts.before).await {
        return false;
    }
    for (index, word) in parts.words.iter().enumerate() {
        match say.broken.filter(|(after, _)| *after == index) {
            Some((_, Break::Hang)) => std::future::pending().await,
            Some((_, Break::End)) => return writer.write_all(b"0\r\n\r\n").await.is_ok(),
            Some((_, Break::Error)) => {
                let error = protocol.error();
                return write_chunk(writer, &error).await && writer.write_all(b"0\r\n\r\n").await.is_ok();
            }
            Some((_, Break::Cut)) => {
                let at = word.iter().position(|byte| *byte >= 0x80).map_or(word.len() / 2, |at| at + 1);
                // The chunk says that more is to come, and then there is nothing.
                let head = format!("{:x}\r\n", word.len());
                let _ = writer.write_all(&[head.as_bytes(), &word[..at]].concat()).await;
                return false;
            }
            None => {}
        }
        if !say.delay.is_zero() {
            tokio::time::sleep(say.delay).await;
        }
        if let Some(gate) = &say.gate {
            gate.acquire().await.unwrap().forget();
        }
        if !write_chunk(writer, word).await {
            return false;
        }
    }
    write_chunk(writer, &parts.after).await && writer.write_all(b"0\r\n\r\n").await.is_ok()
}
