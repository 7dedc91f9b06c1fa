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
    parsed
        .ok()
        .or_else(|| serde_json::from_str(&without_lone_surrogates(&String::from_utf8_lossy(text))?).ok())
        .ok_or_else(Failure::nonsense)
}

/// JSON in which the escape of half a character (a surrogate without its other half) stands for U+FFFD, as servers write that
/// cut their words anywhere; `None` where there is none.
fn without_lone_surrogates(json: &str) -> Option<String> {
    let unit = |at: usize| {
        let digits = json.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let mut mended = String::with_capacity(json.len());
    let (mut from, mut at) = (0, 0);
    while let Some(escape) = json[at..].find('\\').map(|found| at + found) {
        at = match unit(escape) {
            Some(0xd800..=0xdbff) if matches!(unit(escape + 6), Some(0xdc00..=0xdfff)) => escape + 12,
            Some(0xd800..=0xdfff) => {
                mended.push_str(&json[from..escape]);
                mended.push('\u{fffd}');
                from = escape + 6;
                from
            }
            // Whatever is escaped is one character of ASCII; in JSON that is broken otherwise it may be any.
            _ => json[escape + 1..].chars().next().map_or(json.len(), |escaped| escape + 1 + escaped.len_utf8()),
        };
    }
    (from > 0).then(|| mended + &json[from..])
}

/// A string in a value, if it is there and not empty.
pub(super) fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// More tokens than any call has: whoever says more is believed so much.
pub(super) const MOST_TOKENS: u64 = 1_000_000_000;

/// A number of tokens in a value, if it is there.
pub(super) fn count(value: &Value, name: &str) -> Option<u64> {
    value.get(name).and_then(Value::as_u64).map(|tokens| tokens.min(MOST_TOKENS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn half_a_character_is_replaced_and_a_whole_one_stays() {
        for (written, read) in [
            (r#"{"a": "\ud83d\ude00 \ud800 b"}"#, "\u{1f600} \u{fffd} b"),
            (r#"{"a": "\ude00\ud83d"}"#, "\u{fffd}\u{fffd}"),
            (r#"{"a": "\\ud800 \udfff"}"#, "\\ud800 \u{fffd}"),
            (r#"{"a": "\ud800\u0041"}"#, "\u{fffd}A"),
        ] {
            assert_eq!(parse(written.as_bytes()).unwrap(), json!({ "a": read }), "{written}");
        }
        for broken in [r#"{"a": "\ud800"#, r#"{"a": "\ud8"#, "\\", r#"{"a": \é \ud800}"#] {
            assert!(parse(broken.as_bytes()).is_err(), "{broken}");
        }
    }

    #[test]
    fn no_call_has_more_tokens_than_can_be_counted() {
        let value = json!({ "tokens": u64::MAX, "few": 3 });
        assert_eq!((count(&value, "tokens"), count(&value, "few")), (Some(MOST_TOKENS), Some(3)));
    }
}
