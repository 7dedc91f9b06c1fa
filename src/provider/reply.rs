//! The decoder that all protocols share: it finds whole JSON values in the bytes and hands them to a protocol's reader.
//! No value is read before its last byte came, so no character is ever given by half.

use super::lines::Lines;
use super::{Cause, Decoder, Failure, sse};
use crate::core::chat::Event;
use serde_json::Value;

/// Longest reply that comes in one piece.
const LONGEST_BODY: usize = 64 << 20;

/// A protocol's understanding of its replies, one value after another.
pub(super) trait Reader: Send {
    /// Takes the next value of a stream.
    fn next(&mut self, value: &Value, events: &mut Vec<Event>) -> Result<(), Failure>;
    /// Takes a reply that came in one piece.
    fn whole(&mut self, value: &Value, events: &mut Vec<Event>) -> Result<(), Failure>;
    /// Whether the values so far are a whole reply.
    fn is_complete(&self) -> bool;
}

/// How values are laid out in a body.
enum Layout {
    Events(sse::Events),
    Lines(Lines),
    Whole(Vec<u8>),
    /// Events were asked for, but nothing besides white space came yet: some servers send one value all the same.
    Undecided(Vec<u8>),
}

/// A decoder for one reply.
pub(super) struct Reply {
    layout: Layout,
    reader: Box<dyn Reader>,
    failed: Option<Failure>,
}

impl Reply {
    /// Reads server-sent events.
    pub fn events(reader: Box<dyn Reader>) -> Box<Self> {
        Self::new(Layout::Undecided(Vec::new()), reader)
    }

    /// Reads a value on each line.
    pub fn lines(reader: Box<dyn Reader>) -> Box<Self> {
        Self::new(Layout::Lines(Lines::default()), reader)
    }

    /// Reads one value.
    pub fn whole(reader: Box<dyn Reader>) -> Box<Self> {
        Self::new(Layout::Whole(Vec::new()), reader)
    }

    fn new(layout: Layout, reader: Box<dyn Reader>) -> Box<Self> {
        Box::new(Reply { layout, reader, failed: None })
    }

    /// Adds the values that more bytes complete, as text.
    fn values(&mut self, bytes: &[u8], values: &mut Vec<Vec<u8>>) -> Result<(), Failure> {
        if let Layout::Undecided(space) = &mut self.layout {
            let start = bytes.iter().position(|byte| !byte.is_ascii_whitespace());
            space.extend_from_slice(&bytes[..start.unwrap_or(bytes.len())]);
            let Some(start) = start else {
                return if space.len() > LONGEST_BODY { Err(Failure::nonsense()) } else { Ok(()) };
            };
            self.layout = match bytes[start] {
                b'{' => Layout::Whole(Vec::new()),
                _ => Layout::Events(sse::Events::default()),
            };
            return self.values(&bytes[start..], values);
        }
        let done = match &mut self.layout {
            Layout::Events(events) => events.push(bytes, |data| values.push(data.to_vec())),
            Layout::Lines(lines) => lines.push(bytes, |line| {
                values.push(line.to_vec());
                Ok(())
            }),
            Layout::Whole(body) => {
                if body.len() + bytes.len() > LONGEST_BODY {
                    return Err(Failure::nonsense());
                }
                body.extend_from_slice(bytes);
                Ok(())
            }
            Layout::Undecided(_) => Ok(()),
        };
        done.map_err(|_| Failure::nonsense())
    }

    fn read(&mut self, text: &[u8], events: &mut Vec<Event>) -> Result<(), Failure> {
        // OpenAI's end of a stream is no JSON; it tells nothing that the values did not.
        if text.trim_ascii().is_empty() || text.trim_ascii() == b"[DONE]" {
            return Ok(());
        }
        self.reader.next(&parse(text)?, events)
    }

    fn finished(&mut self, events: &mut Vec<Event>) -> Result<(), Failure> {
        let mut rest = Vec::new();
        match &mut self.layout {
            Layout::Whole(body) => {
                let value = parse(&std::mem::take(body))?;
                self.reader.whole(&value, events)?;
            }
            Layout::Events(stream) => {
                stream.rest(|data| rest.push(data.to_vec())).map_err(|_| Failure::nonsense())?;
            }
            Layout::Lines(lines) => rest.push(lines.rest()),
            Layout::Undecided(_) => {}
        }
        for text in rest {
            // What was cut after the end of the reply (its usage) is no loss of the reply.
            if self.reader.is_complete() && serde_json::from_slice::<Value>(&text).is_err() {
                continue;
            }
            self.read(&text, events)?;
        }
        if self.reader.is_complete() { Ok(()) } else { Err(Failure::nonsense()) }
    }
}

impl Decoder for Reply {
    fn push(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), Failure> {
        if let Some(failure) = &self.failed {
            return Err(failure.clone());
        }
        let mut values = Vec::new();
        let taken = self.values(bytes, &mut values);
        let before = events.len();
        // What came before a line that is too long is given all the same.
        let read = values.iter().try_for_each(|value| self.read(value, events)).and(taken);
        events[before..].iter_mut().for_each(without_zeros);
        self.failed = read.clone().err();
        read
    }

    fn finish(&mut self, events: &mut Vec<Event>) -> Result<(), Failure> {
        if let Some(failure) = &self.failed {
            return Err(failure.clone());
        }
        let before = events.len();
        let finished = self.finished(events);
        events[before..].iter_mut().for_each(without_zeros);
        self.failed = Some(finished.clone().err().unwrap_or_else(Failure::nonsense));
        finished
    }
}

/// U+FFFD in place of each U+0000, which no text of Postgres can hold.
fn without_zeros(event: &mut Event) {
    let replace = |text: &mut String| {
        if text.contains('\0') {
            *text = text.replace('\0', "\u{fffd}");
        }
    };
    match event {
        Event::Id(text) | Event::Text(text) | Event::Thinking(text) | Event::Signature(text) => replace(text),
        Event::Arguments { fragment, .. } => replace(fragment),
        Event::ToolCall { id, name, signature, .. } => [id, name].into_iter().chain(signature).for_each(replace),
        Event::Usage(_) | Event::Stop(_) => {}
    }
}

impl Failure {
    /// A reply that is not what the protocol says.
    pub(super) fn nonsense() -> Failure {
        Failure { cause: Cause::Nonsense, status: 200, code: None, request_id: None, retry_after: None, retry: None }
    }
}

/// A value; bytes that are no UTF-8 stand for U+FFFD, as in any event stream.
fn parse(text: &[u8]) -> Result<Value, Failure> {
    let parsed = match std::str::from_utf8(text) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_str(&String::from_utf8_lossy(text)),
    };
    parsed.map_err(|_| Failure::nonsense())
}

/// A string in a value, if it is there and not empty.
pub(super) fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// A number of tokens in a value, if it is there.
pub(super) fn count(value: &Value, name: &str) -> Option<u64> {
    value.get(name).and_then(Value::as_u64)
}
