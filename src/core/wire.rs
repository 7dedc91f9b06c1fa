//! The frames between the database and the gateway: what each side may say, and how it is laid out in bytes.
//!
//! A frame is `length: u32 le` (of what follows), `tag: u8`, `id: u32 le`, then a body in postcard's format. Both sides
//! send [`Hello`] first; a gateway of another version answers with its own hello and closes. Many requests can be under
//! way on one connection; each ends with exactly one `End` or `Error`. Closing the connection cancels all of them.

use crate::core::chat::{Abilities, Chat, Event, Kind, Purpose, Usage};
use crate::core::error::{Error, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Raised by one whenever a frame's meaning changes.
pub const PROTOCOL: u32 = 5;

/// The longest frame either side accepts, in bytes: a file of the largest allowed size and its envelope.
pub const MAX_FRAME: usize = 272 * 1024 * 1024;

/// Bytes before a frame's body: length, tag and id.
pub const HEADER: usize = 9;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tag {
    /// First frame of either side; the body is a [`Hello`].
    Hello = 1,
    /// The body is a [`Request`].
    Request = 2,
    /// Ends the request with that id; no body.
    Cancel = 3,
    /// One part of a streamed reply; the body is an [`Item`].
    Item = 4,
    /// The last frame of a reply; the body is a [`Reply`].
    End = 5,
    /// The request failed; the body is an [`Error`].
    Error = 6,
}

impl TryFrom<u8> for Tag {
    type Error = Error;

    fn try_from(byte: u8) -> Result<Self> {
        Ok(match byte {
            1 => Tag::Hello,
            2 => Tag::Request,
            3 => Tag::Cancel,
            4 => Tag::Item,
            5 => Tag::End,
            6 => Tag::Error,
            _ => return Err(Error::bug(format!("unknown frame tag {byte}"))),
        })
    }
}

/// Who is speaking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`] of the speaker.
    pub protocol: u32,
    /// Package version of the speaker, for messages only.
    pub version: String,
}

/// What the database asks of the gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// How the gateway is; answered with [`Reply::Status`].
    Status,
    /// Embeds texts; answered with [`Item::Embeddings`] in order, then [`Reply::Done`].
    Embed {
        /// The local model's name, or empty for the configured one.
        model: String,
        /// Texts, each of at least one character.
        inputs: Vec<String>,
        /// A caller is waiting (true), or this is background work (false).
        interactive: bool,
    },
    /// Counts the model's tokens of each text, special tokens left out; answered with [`Reply::Counts`].
    CountTokens {
        /// The local model's name, or empty for the configured one.
        model: String,
        /// Texts.
        inputs: Vec<String>,
    },
    /// Reads documents and cuts them into chunks; answered with [`Reply::Prepared`].
    Prepare(Vec<Prepare>),
    /// Asks a language model; answered with [`Item::Events`] as they come, then [`Reply::Chat`], also where it failed.
    Chat(Box<ChatCall>),
    /// Embeds texts by a provider; answered with [`Item::Embeddings`] in order, then [`Reply::Call`].
    EmbedWith(Box<EmbedCall>),
    /// How the providers are; answered with [`Reply::Providers`].
    Providers,
    /// Asks for the record of every call of a database that ended, those that nobody has acknowledged first; answered
    /// with [`Item::Records`] for as long as the connection lasts.
    Ledger {
        /// The database.
        database: u32,
    },
    /// The records up to this number are stored; answered with [`Reply::Done`].
    Recorded {
        /// The database.
        database: u32,
        /// The last record's number.
        upto: u64,
    },
    /// Checks a JSON value against a JSON Schema; answered with [`Reply::Checked`].
    CheckJson {
        /// The schema, as JSON text.
        schema: String,
        /// The value, as JSON text.
        value: String,
    },
    /// Calls a tool over HTTP; answered with [`Reply::Tool`], also where it failed.
    Tool(Box<ToolRequest>),
    /// Asks a server of the Model Context Protocol for its tools; answered with [`Reply::Mcp`].
    McpList(Box<Endpoint>),
}

/// A secret, or where the gateway finds it. It is never shown.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Credential {
    /// The provider wants none.
    #[default]
    None,
    /// The secret itself.
    Key(String),
    /// The gateway's environment variable of this name.
    Env(String),
    /// The first line of this file.
    File(String),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential")
    }
}

/// A provider, with what a call of it may cost. Limits and health are kept by its id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provider {
    /// Its row.
    pub id: [u8; 16],
    /// It is a workspace's own, and not for all.
    pub own: bool,
    /// Its name, for messages.
    pub name: String,
    /// Its protocol.
    pub kind: Kind,
    /// Scheme, host, port and path, without a slash at the end.
    pub base_url: String,
    /// Its key, sent to that host alone.
    pub credential: Credential,
    /// Whether the host may have a private, loopback or link-local address, and be spoken to without TLS.
    pub allow_private: bool,
    /// Requests under way at once; 0 is no limit.
    pub max_concurrent: u32,
    /// Requests begun in a minute; 0 is no limit.
    pub requests_per_minute: u32,
    /// Tokens, of prompt and reply, in a minute; 0 is no limit.
    pub tokens_per_minute: u64,
    /// Milliseconds to connect.
    pub connect_timeout_ms: u32,
    /// Milliseconds from the request to the reply's first byte.
    pub first_byte_timeout_ms: u32,
    /// Milliseconds between two parts of a reply.
    pub idle_timeout_ms: u32,
    /// Times that a failed request is sent again before the reply's first word.
    pub max_retries: u32,
    /// Bytes of a reply at most.
    pub max_reply_bytes: u64,
    /// What sets its server apart; a JSON object.
    pub options: String,
}

/// Prices in millionths of a currency unit for a million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prices {
    /// Of the prompt.
    pub input: u64,
    /// Of the prompt where it comes from the provider's cache.
    pub cached: u64,
    /// Of the prompt where it is written to that cache.
    pub cache_written: u64,
    /// Of the reply.
    pub output: u64,
}

/// A provider's model that may answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// The provider.
    pub provider: Provider,
    /// The model, by the provider's name for it.
    pub model: String,
    /// The most tokens that it can say; 0 where unknown.
    pub output_limit: u32,
    /// What it costs.
    pub prices: Prices,
    /// Tokens of a prompt that its provider counts for a hundred that are guessed.
    pub tokens_percent: u32,
    /// Whether it may be told a temperature and top_p.
    pub temperature: bool,
    /// How much it is told to reason where it may call tools.
    pub tool_effort: Option<String>,
    /// What it can take, by which the database alone chooses.
    #[serde(skip)]
    pub abilities: Abilities,
}

impl Route {
    /// So many tokens as its provider counts them, about.
    pub fn corrected(&self, guessed: u64) -> u64 {
        guessed.saturating_mul(self.tokens_percent.into()) / 100
    }
}

/// Whose call it is, for the record and for fairness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asker {
    /// Id of the call's record, made by whoever asks.
    pub id: [u8; 16],
    /// The database.
    pub database: u32,
    /// The workspace; workspaces take turns at a provider's limits.
    pub workspace: [u8; 16],
    /// The person.
    pub user: Option<[u8; 16]>,
    /// The conversation.
    pub conversation: Option<[u8; 16]>,
    /// The reply's message.
    pub message: Option<[u8; 16]>,
    /// What for: `ask`, `complete`, `embed`, ...
    pub purpose: String,
}

/// A question to a language model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatCall {
    /// Whose call it is.
    pub asker: Asker,
    /// Who may answer: the first, or the next where it cannot, until the first word was said.
    pub routes: Vec<Route>,
    /// The question.
    pub chat: Chat,
    /// Milliseconds in all, waiting for a turn included.
    pub timeout_ms: u64,
    /// Tokens of the prompt at a guess; used, as the route corrects it, where the provider does not say.
    pub guessed_tokens: u64,
    /// The prompt is all text, so that the guess can be compared with what the provider says.
    pub all_text: bool,
    /// Tokens of the reply at most; counted where it was to come in one piece and the provider may have made it for nobody.
    pub output_tokens: u64,
    /// It is not sent again where a provider may be at it.
    pub once: bool,
}

/// Texts to be embedded by a provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EmbedCall {
    /// Whose call it is.
    pub asker: Asker,
    /// The provider and its model.
    pub route: Route,
    /// Texts, any number; they are sent in as many requests as the provider's limits need.
    pub inputs: Vec<String>,
    /// Numbers wanted in each embedding; the model's own where absent.
    pub dimensions: Option<u32>,
    /// What they are for.
    pub purpose: Purpose,
    /// Nobody waits for it: while the provider is left alone after failures, so does the call.
    pub patient: bool,
    /// Milliseconds in all.
    pub timeout_ms: u64,
}

/// A server of tools: where requests go, and what goes with each of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Name of the function, or of the server, for messages.
    pub name: String,
    /// Scheme, host and port; nothing is sent elsewhere, the credential least of all.
    pub origin: String,
    /// Where the request goes, percent-encoded.
    pub url: String,
    /// Headers of every request.
    pub headers: Vec<(String, String)>,
    /// Its key, sent to that host alone.
    pub credential: Credential,
    /// The header that the key goes into.
    pub credential_header: String,
    /// What stands before the key, such as `Bearer `.
    pub credential_prefix: String,
    /// Whether the host may have a private, loopback or link-local address, and be spoken to without TLS.
    pub allow_private: bool,
    /// Milliseconds in all.
    pub timeout_ms: u64,
    /// Bytes of a reply that are kept.
    pub max_bytes: u64,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolRequest {
    /// The server.
    pub endpoint: Endpoint,
    /// What it is asked.
    pub errand: Errand,
    /// Sent as `Idempotency-Key`, the same each time.
    pub idempotency_key: String,
    /// What was sent twice has the effect of once: a request that failed is sent once more.
    pub idempotent: bool,
}

/// What a server of tools is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Errand {
    /// One HTTP request.
    Http {
        /// Such as `POST`.
        method: String,
        /// JSON; `None` where the method has no body.
        body: Option<String>,
        /// How it is signed.
        signature: Option<Signature>,
    },
    /// A tool of a server of the Model Context Protocol.
    Mcp {
        /// The server's name for the tool.
        tool: String,
        /// A JSON object.
        arguments: String,
    },
}

/// How a request is signed: `t=SECONDS,v1=HEX` in a header, HEX the HMAC-SHA256 of seconds since 1970, method, path with
/// query, and body, with a line feed between two of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Signature {
    /// The header.
    pub header: String,
    /// The key.
    pub secret: Credential,
}

/// How a call of a tool ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToolReply {
    /// The server answered.
    Answered(ToolAnswer),
    /// It did not, or not so that it can be read.
    Failed {
        /// Why.
        error: Error,
        /// The server may have had the request, and done what was asked.
        reached: bool,
    },
}

/// What a server of tools answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolAnswer {
    /// HTTP status.
    pub status: u16,
    /// The answer is the server's own word that it failed.
    pub is_error: bool,
    /// It does not know itself whether what was asked is done: a proxy lost the server that does it.
    pub unsure: bool,
    /// Media type without parameters, in lower case; empty where the server told none.
    pub content_type: String,
    /// The answer's text.
    pub body: String,
    /// The answer was longer.
    pub truncated: bool,
}

/// What a server of the Model Context Protocol has to offer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct McpServer {
    /// Revision of the protocol that was agreed on.
    pub protocol: String,
    /// What it calls itself.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its tools, in its order.
    pub tools: Vec<McpTool>,
}

/// A tool of such a server. All of it is the server's word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct McpTool {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: String,
    /// JSON Schema of its arguments.
    pub input_schema: String,
    /// It says that it changes nothing.
    pub read_only: bool,
    /// It says that what is asked twice is done once.
    pub idempotent: bool,
}

/// A document to read and cut.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Prepare {
    /// Name of the file or title, for the choice of format when `mime_type` is absent.
    pub name: String,
    /// Media type, such as `text/html`.
    pub mime_type: Option<String>,
    /// The document's bytes.
    pub content: Vec<u8>,
    /// ISO 639-1 code when the caller knows it; detected otherwise.
    pub language: Option<String>,
    /// The local model whose tokens are counted, or empty for the configured one.
    pub model: String,
    /// Most tokens a chunk may have.
    pub max_tokens: u32,
    /// Tokens that a chunk repeats of the one before.
    pub overlap_tokens: u32,
}

/// One part of a streamed reply.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Item {
    /// The next embeddings, each normalised to length 1, one after another.
    Embeddings {
        /// Numbers in each embedding.
        dimensions: u32,
        /// `dimensions` numbers for each text.
        values: Vec<f32>,
    },
    /// The next steps of a language model's reply, in order.
    Events(Vec<Event>),
    /// Calls that ended.
    Records(Vec<Record>),
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Whole.
    Succeeded,
    /// With an error.
    Failed,
    /// The asker cancelled or went away.
    Cancelled,
    /// The provider broke off in the middle of its reply.
    Interrupted,
}

impl Outcome {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Succeeded => "succeeded",
            Outcome::Failed => "failed",
            Outcome::Cancelled => "cancelled",
            Outcome::Interrupted => "interrupted",
        }
    }
}

/// What a call was and cost: a row of `usage_records`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Its number, counted up by the gateway for [`Request::Recorded`].
    pub number: u64,
    /// Whose call it was.
    pub asker: Asker,
    /// How it ended.
    pub call: CallEnd,
    /// When it began, in milliseconds since 1970.
    pub began_ms: u64,
}

/// How a call to a provider ended, and what it cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallEnd {
    /// Row of the provider that answered, or was tried last.
    pub provider_id: [u8; 16],
    /// It is a workspace's own: budgets for all workspaces are not about it.
    pub own: bool,
    /// Its name.
    pub provider: String,
    /// The model.
    pub model: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Tokens.
    pub usage: Usage,
    /// Whether we counted them, because the provider did not say.
    pub estimated: bool,
    /// Tokens of the prompt as they were guessed; 0 where that says nothing.
    pub guessed_tokens: u64,
    /// Cost in thousand-millionths of a currency unit.
    pub cost_nanos: u64,
    /// Milliseconds in all.
    pub latency_ms: u64,
    /// Milliseconds until the first word.
    pub first_token_ms: Option<u64>,
    /// Requests that were sent.
    pub attempts: u32,
    /// A provider has one of them and may do it, though nobody hears of it.
    pub lost: bool,
    /// The provider's id of the reply or request.
    pub provider_request_id: Option<String>,
    /// Why it failed.
    pub error: Option<Error>,
}

impl CallEnd {
    /// Tokens in all.
    pub fn tokens(&self) -> u64 {
        self.usage.input.saturating_add(self.usage.output)
    }
}

/// How a provider is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProviderState {
    /// Its row.
    pub id: [u8; 16],
    /// `closed` (well), `open` (cooling down) or `half_open` (one request is trying).
    pub circuit: String,
    /// Requests under way.
    pub in_flight: u32,
    /// Requests waiting for their turn.
    pub waiting: u32,
    /// Requests since the gateway started.
    pub requests: u64,
    /// Of these, failed ones.
    pub errors: u64,
    /// The last error's message.
    pub last_error: Option<String>,
    /// Seconds until it is tried again, where it is cooling down.
    pub retry_seconds: Option<u64>,
    /// Latency of the last thousand requests: median, 95th and 99th percentile, in milliseconds.
    pub latency_ms: [u32; 3],
}

/// The end of a reply.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing more to say.
    Done {
        /// Tokens that went through the model.
        tokens: u64,
    },
    /// One count for each text.
    Counts(Vec<u32>),
    /// Documents, read and cut.
    Prepared {
        /// Each of them, or why it cannot be read.
        documents: Vec<Result<Prepared>>,
        /// Name of the local model.
        model: String,
    },
    /// How the gateway is.
    Status(Status),
    /// How a call to a language model ended.
    Chat(Box<CallEnd>),
    /// How a call for embeddings ended.
    Call(Box<CallEnd>),
    /// How the providers are that were called since the gateway started.
    Providers(Vec<ProviderState>),
    /// What is wrong with a JSON value; nothing where it is as its schema says.
    Checked(Vec<Problem>),
    /// How a call of a tool ended.
    Tool(Box<ToolReply>),
    /// What a server of tools has to offer.
    Mcp(Box<McpServer>),
}

/// Where a JSON value is not as its schema says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// JSON pointer to the part of the value; empty for the whole.
    pub path: String,
    /// What was expected there.
    pub message: String,
}

/// A document that was read and cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// The document's own title, where its format has one.
    pub title: Option<String>,
    /// All of the document's text; every offset counts its characters from 0.
    pub text: String,
    /// ISO 639-1 code, or `None` where it cannot be told.
    pub language: Option<String>,
    /// In order; together they cover all of the text that is not white space.
    pub chunks: Vec<Chunk>,
}

/// A part of a document that is found and cited as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Trail of headings above it, outermost first, joined with ` › `; empty where there is none.
    pub heading: String,
    /// First character in the document's text.
    pub start: u32,
    /// One past its last character.
    pub end: u32,
    /// The characters from `start` to `end`, verbatim.
    pub content: String,
    /// Tokens of `content`, special tokens left out.
    pub tokens: u32,
    /// Its sentences: first character and one past the last, counted from the document's start.
    pub sentences: Vec<(u32, u32)>,
}

/// How the gateway is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Package version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Connections from the database.
    pub connections: u32,
    /// Requests under way, this one left out.
    pub in_flight: u32,
    /// Texts waiting for the model.
    pub queued_texts: u32,
    /// Requests ended because the asker went away or cancelled.
    pub cancelled: u64,
    /// Name of the configured model.
    pub model: String,
    /// Numbers in each of its embeddings; 0 until it is first used.
    pub dimensions: u32,
    /// Tokens that went through the model since the start.
    pub tokens: u64,
}

/// Lays out a frame with a body.
pub fn encode<T: Serialize>(tag: Tag, id: u32, body: &T) -> Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    frame.push(tag as u8);
    frame.extend_from_slice(&id.to_le_bytes());
    let mut frame =
        postcard::to_extend(body, frame).map_err(|error| Error::bug(format!("cannot encode a frame: {error}")))?;
    let length = frame.len() - 4;
    if length > MAX_FRAME {
        return Err(Error::bad_argument("request is too large")
            .detail(format!("It has {length} bytes, {MAX_FRAME} are allowed.")));
    }
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

/// A frame's body, read.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    postcard::from_bytes(body).map_err(|_| Error::bug("a frame between the database and the gateway is damaged"))
}

/// A frame as it arrives: its tag, the request it belongs to, and its body still in bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub tag: Tag,
    /// The request it belongs to.
    pub id: u32,
    /// For [`decode`].
    pub body: Vec<u8>,
}

/// Puts frames together from bytes as they arrive.
#[derive(Default)]
pub struct Frames {
    buffer: Vec<u8>,
    start: usize,
}

impl Frames {
    /// Takes the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` while one is incomplete.
    #[allow(clippy::should_implement_trait, reason = "it can fail, and `None` is not the end")]
    pub fn next(&mut self) -> Result<Option<Frame>> {
        let pending = &self.buffer[self.start..];
        let Some(length) = pending.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes) as usize) else {
            return Ok(None);
        };
        if !(HEADER - 4..=MAX_FRAME).contains(&length) {
            return Err(Error::bug("a frame between the database and the gateway has an impossible length"));
        }
        let Some(frame) = pending.get(4..4 + length) else {
            return Ok(None);
        };
        let tag = Tag::try_from(frame[0])?;
        let id = u32::from_le_bytes([frame[1], frame[2], frame[3], frame[4]]);
        let body = frame[5..].to_vec();
        self.start += 4 + length;
        // Keeps the buffer from growing for ever on a connection that is never quite drained.
        if self.start > 1 << 20 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        Ok(Some(Frame { tag, id, body }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let request = Request::CountTokens { model: String::new(), inputs: vec!["one".into(), "zwei".into()] };
        let mut bytes = encode(Tag::Hello, 0, &Hello { protocol: PROTOCOL, version: "x".into() }).unwrap();
        bytes.extend(encode(Tag::Request, 7, &request).unwrap());
        bytes
    }

    #[test]
    fn frames_are_whole_however_the_bytes_are_cut() {
        let bytes = sample();
        for cut in 0..bytes.len() {
            let mut frames = Frames::default();
            let mut seen = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                frames.push(part);
                while let Some(frame) = frames.next().unwrap() {
                    seen.push((frame.tag, frame.id));
                }
            }
            assert_eq!(seen, [(Tag::Hello, 0), (Tag::Request, 7)], "cut at {cut}");
        }
    }

    #[test]
    fn an_impossible_length_is_refused() {
        for length in [0, 4, MAX_FRAME as u32 + 1, u32::MAX] {
            let mut frames = Frames::default();
            frames.push(&length.to_le_bytes());
            assert!(frames.next().is_err(), "{length}");
        }
    }

    #[test]
    fn a_body_of_another_type_is_refused() {
        assert!(decode::<Reply>(&[250, 1, 2]).is_err());
    }
}
