//! The frames between the database and the gateway: what each side may say, and how it is laid out in bytes.
//!
//! A frame is `length: u32 le` (of what follows), `tag: u8`, `id: u32 le`, then a body in postcard's format. Both sides
//! send [`Hello`] first; a gateway of another version answers with its own hello and closes. Many requests can be under
//! way on one connection; each ends with exactly one `End` or `Error`. Closing the connection cancels all of them.

use crate::core::error::{Error, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Raised by one whenever a frame's meaning changes.
pub const PROTOCOL: u32 = 1;

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
    /// Reads a document and cuts it into chunks; answered with [`Reply::Prepared`].
    Prepare(Prepare),
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
    /// The document, read and cut.
    Prepared {
        /// The document.
        prepared: Prepared,
        /// Name of the model that will embed it.
        model: String,
    },
    /// How the gateway is.
    Status(Status),
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
