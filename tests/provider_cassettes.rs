//! Replies of all providers as they come over the wire, replayed whole, cut at every byte and cut short at every byte.
//!
//! The files in `cassettes` are written after the providers' public specifications, byte for byte as a server sends them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use helper_ai::core::chat::{Chat, Event, Kind, Output, Part, Said, Stop, ToolCall, Usage};
use helper_ai::provider::{Cause, Failure, decoder};
use proptest::prelude::*;

/// A recorded reply, and what it says.
struct Cassette {
    name: &'static str,
    kind: Kind,
    bytes: &'static [u8],
    said: Said,
    /// Cause and code of the failure that it ends with.
    failure: Option<(Cause, Option<&'static str>)>,
}

impl Cassette {
    fn chat(&self) -> Chat {
        let form = Output::Schema { name: "verdict".into(), schema: r#"{"type":"object"}"#.into() };
        Chat {
            stream: !self.name.ends_with(".json"),
            output: if self.name.contains("form") { form } else { Output::Text },
            ..Chat::default()
        }
    }

    /// What comes of the pieces, and how it ended.
    fn replay<'a>(&self, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Said, Result<(), Failure>) {
        let mut decoder = decoder(self.kind, &self.chat());
        let mut events = Vec::new();
        let mut ended = Ok(());
        for piece in pieces {
            ended = decoder.push(piece, &mut events);
            if ended.is_err() {
                break;
            }
        }
        let ended = ended.and_then(|()| decoder.finish(&mut events));
        (said(&events), ended)
    }

    fn check(&self, (said, ended): (Said, Result<(), Failure>), how: &str) {
        assert_eq!(said, self.said, "{} {how}", self.name);
        let ended = ended.err().map(|failure| (failure.cause, failure.code));
        let expected = self.failure.map(|(cause, code)| (cause, code.map(str::to_owned)));
        assert_eq!(ended, expected, "{} {how}", self.name);
    }
}

fn said(events: &[Event]) -> Said {
    let mut said = Said::default();
    events.iter().for_each(|event| said.add(event));
    said
}

fn text(words: &str) -> Part {
    Part::Text(words.into())
}

fn thinking(words: &str, signature: &str) -> Part {
    Part::Thinking { text: words.into(), signature: signature.into() }
}

fn call(id: &str, name: &str, arguments: &str) -> Part {
    Part::ToolCall(ToolCall { id: id.into(), name: name.into(), arguments: arguments.into(), signature: None })
}

fn tokens(input: u64, cached: u64, cache_written: u64, output: u64, reasoning: u64) -> Option<Usage> {
    Some(Usage { input, cached, cache_written, output, reasoning })
}

macro_rules! cassettes {
    ($($kind:ident $file:literal { $($parts:expr),* } $stop:expr, $usage:expr, $id:expr $(, $cause:ident $code:expr)?;)*) => {
        vec![$(Cassette {
            name: $file,
            kind: Kind::$kind,
            bytes: include_bytes!(concat!("cassettes/", $file)),
            said: Said { parts: vec![$($parts),*], stop: $stop, usage: $usage, id: Option::<&str>::map($id, str::to_owned) },
            failure: None$(.or(Some((Cause::$cause, $code))))?,
        }),*]
    };
}

const NESTED: &str = r#"{"query":"Öl","filter":{"tags":["a",{"b":[1,2.5,null]}]}}"#;
const CHATCMPL: Option<&str> = Some("chatcmpl-C8xQm4");
const MSG: Option<&str> = Some("msg_01XFDUDYJgAACzvnptvVoYEL");
const GEMINI: Option<&str> = Some("uT3xaJqYKvG");

fn cassettes() -> Vec<Cassette> {
    let openai = tokens(1200, 1024, 0, 150, 64);
    let gemini = tokens(40, 8, 0, 42, 30);
    let ollama = tokens(26, 0, 0, 282, 0);
    let signed = Part::ToolCall(ToolCall {
        id: "call_0".into(),
        name: "search".into(),
        arguments: NESTED.into(),
        signature: Some("CtABAVKhc7k=".into()),
    });
    cassettes! {
        OpenAi "openai/text.sse" { text("Grüße aus Köln 🦉👩‍👩‍👧, 東京。\n\n\"done\"\\") } Some(Stop::End), openai, CHATCMPL;
        OpenAi "openai/tools.sse" {
            call("call_9aFz", "search", r#"{"query":"Öl 🛢","filter":{"tags":["a",{"b":[1,2.5,null]}]}}"#),
            call("call_7bQx", "weather", r#"{"city":"Köln"}"#)
        } Some(Stop::ToolCalls), openai, CHATCMPL;
        OpenAi "openai/refusal.sse" { text("I can't help with that.") } Some(Stop::Refusal), openai, CHATCMPL;
        OpenAi "openai/filtered.sse" { text("The first step") } Some(Stop::Filtered), openai, CHATCMPL;
        OpenAi "openai/error.sse" { text("Half of") } None, None, CHATCMPL, Unavailable Some("server_error");
        OpenAi "openai/whole.json" { text("Ja 🦉."), call("call_1x", "search", r#"{"query":["ä"]}"#) }
            Some(Stop::ToolCalls), openai, Some("chatcmpl-C8whole");
        OpenAiCompatible "compatible/crlf.sse" { thinking("Der Nutzer grüßt 🤔.", ""), text("Hallo Welt 🌍!") }
            Some(Stop::End), None, None;
        OpenAiCompatible "compatible/tools.sse" {
            thinking("Two at once.", ""),
            call("call_0", "search", r#"{"query":"é"}"#),
            call("call_1", "weather", r#"{"city":"Köln","days":[1,2]}"#)
        } Some(Stop::ToolCalls), tokens(9, 0, 0, 4, 0), None;
        OpenAiCompatible "compatible/same_index.sse" {
            call("fc_a", "search", r#"{"query":"a"}"#), call("fc_b", "search", r#"{"query":"b"}"#)
        } Some(Stop::ToolCalls), tokens(11, 3, 0, 7, 0), None;
        OpenAiCompatible "compatible/error.sse" { text("Ein") } None, None, None, RateLimited None;
        Anthropic "anthropic/text.sse" { text("Grüße 🦉 aus 東京") } Some(Stop::End), tokens(2125, 2000, 100, 15, 0), MSG;
        Anthropic "anthropic/tools.sse" {
            thinking("Erst suchen 🔎", "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxB"),
            thinking("", "redacted:EmwKAhgBEgy3va3p"),
            text("Ich suche."),
            call("toolu_01A", "search", r#"{"query": "Öl", "filter": {"tags": ["a", {"b": [1]}]}}"#),
            call("toolu_01B", "now", "")
        } Some(Stop::ToolCalls), tokens(2125, 2000, 100, 89, 40), MSG;
        Anthropic "anthropic/refusal.sse" { text("I can't") } Some(Stop::Refusal), tokens(2125, 2000, 100, 3, 0), MSG;
        Anthropic "anthropic/error.sse" { text("Half") } None, tokens(2125, 2000, 100, 1, 0), MSG,
            Unavailable Some("overloaded_error");
        Anthropic "anthropic/form.sse" { text(r#"{"good": true, "why": "schön 🦉"}"#) }
            Some(Stop::End), tokens(2125, 2000, 100, 20, 0), MSG;
        Anthropic "anthropic/whole.json" {
            thinking("Hm.", "c2ln"), text("Ja 🦉."), call("toolu_01W", "search", r#"{"query":["ä"]}"#)
        } Some(Stop::ToolCalls), tokens(2125, 2000, 100, 33, 0), Some("msg_01whole");
        Gemini "gemini/text.sse" { thinking("**Überlegen** 🤔", ""), text("Grüße 🦉 aus 東京"), thinking("", "CiQBVKhc7w==") }
            Some(Stop::End), gemini, GEMINI;
        Gemini "gemini/tools.sse" { signed, call("call_1", "now", "{}") } Some(Stop::ToolCalls), gemini, GEMINI;
        Gemini "gemini/blocked.sse" { } Some(Stop::Filtered), tokens(7, 0, 0, 0, 0), Some("b1");
        Gemini "gemini/safety.sse" { text("The first") } Some(Stop::Filtered), gemini, GEMINI;
        Gemini "gemini/malformed.sse" { text("So:") } None, gemini, GEMINI, Nonsense Some("MALFORMED_FUNCTION_CALL");
        Gemini "gemini/error.sse" { text("Half") } None, tokens(40, 0, 0, 0, 0), GEMINI, Unavailable Some("UNAVAILABLE");
        Gemini "gemini/whole.json" { text("Ja 🦉."), call("fn-1", "search", r#"{"query":["ä"]}"#) }
            Some(Stop::ToolCalls), gemini, GEMINI;
        Ollama "ollama/text.ndjson" { thinking("Überlegen 🤔", ""), text("Grüße 🦉 aus 東京\n") } Some(Stop::End), ollama, None;
        Ollama "ollama/tools.ndjson" {
            call("call_x1", "search", r#"{"query":"Öl","filter":{"tags":["a",{"b":[1]}]}}"#), call("call_1", "now", "{}")
        } Some(Stop::ToolCalls), ollama, None;
        Ollama "ollama/length.ndjson" { text("Ein lan") } Some(Stop::Length), ollama, None;
        Ollama "ollama/error.ndjson" { text("Half") } None, None, None, Unavailable None;
        Ollama "ollama/whole.json" { text("Ja 🦉."), call("call_0", "search", r#"{"query":["ä"]}"#) }
            Some(Stop::ToolCalls), ollama, None;
    }
}

#[test]
fn every_file_is_replayed() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cassettes");
    let mut files = Vec::new();
    for folder in std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap()).filter(|entry| entry.path().is_dir()) {
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            files.push(format!("{}/{name}", folder.file_name().into_string().unwrap()));
        }
    }
    let mut known: Vec<_> = cassettes().iter().map(|cassette| cassette.name.to_owned()).collect();
    files.sort();
    known.sort();
    assert_eq!(files, known);
}

#[test]
fn a_reply_says_what_was_recorded() {
    for cassette in cassettes() {
        cassette.check(cassette.replay([cassette.bytes]), "whole");
    }
}

#[test]
fn a_reply_says_the_same_however_it_is_cut() {
    for cassette in cassettes() {
        for at in 0..=cassette.bytes.len() {
            let (left, right) = cassette.bytes.split_at(at);
            cassette.check(cassette.replay([left, right]), &format!("cut at {at}"));
        }
        for length in 1..8 {
            cassette.check(cassette.replay(cassette.bytes.chunks(length)), &format!("in pieces of {length}"));
        }
    }
}

/// Whether the parts are the beginning of others.
fn begins(parts: &[Part], whole: &[Part]) -> bool {
    let Some((last, before)) = parts.split_last() else { return true };
    let Some(other) = whole.get(before.len()) else { return false };
    before == &whole[..before.len()]
        && match (last, other) {
            (Part::Text(last), Part::Text(other)) => other.starts_with(last.as_str()),
            (Part::Thinking { text: last, signature }, Part::Thinking { text: other, signature: seal }) => {
                other.starts_with(last.as_str()) && (signature.is_empty() || signature == seal)
            }
            (Part::ToolCall(last), Part::ToolCall(other)) => {
                last.name == other.name && last.id == other.id && other.arguments.starts_with(&last.arguments)
            }
            _ => false,
        }
}

#[test]
fn a_reply_cut_short_is_a_failure_and_never_says_more() {
    for cassette in cassettes() {
        let mut was_complete = false;
        for at in 0..cassette.bytes.len() {
            let (said, ended) = cassette.replay([&cassette.bytes[..at]]);
            let name = format!("{} cut short at {at}", cassette.name);
            assert!(begins(&said.parts, &cassette.said.parts), "{name}: {said:?}");
            match ended {
                Ok(()) => {
                    // Its usage may still be missing; nothing else.
                    assert_eq!((said.parts, said.stop), (cassette.said.parts.clone(), cassette.said.stop), "{name}");
                    assert!(cassette.failure.is_none(), "{name}");
                    was_complete = true;
                }
                Err(failure) => {
                    assert!(!was_complete, "{name} is complete no longer");
                    let known = cassette.failure.map(|(cause, _)| cause);
                    assert!(failure.cause == Cause::Nonsense || Some(failure.cause) == known, "{name}");
                }
            }
        }
        let (_, half) = cassette.replay([&cassette.bytes[..cassette.bytes.len() / 3]]);
        assert!(half.is_err(), "{}", cassette.name);
    }
}

#[test]
fn nothing_follows_a_failure() {
    for cassette in cassettes().into_iter().filter(|cassette| cassette.failure.is_some()) {
        let mut decoder = decoder(cassette.kind, &cassette.chat());
        let mut events = Vec::new();
        let failure = decoder.push(cassette.bytes, &mut events).and_then(|()| decoder.finish(&mut events)).unwrap_err();
        let before = events.len();
        assert_eq!(decoder.push(cassette.bytes, &mut events), Err(failure.clone()));
        assert_eq!(decoder.finish(&mut events), Err(failure.clone()));
        assert_eq!(events.len(), before);
        let error = failure.into_error("one", "m");
        assert!(!format!("{error:?}").contains("SECRET"));
    }
}

#[test]
fn a_page_instead_of_a_reply_is_nonsense() {
    let page = b"<!DOCTYPE html>\n<html><body>\n502 Bad Gateway\n</body></html>\n";
    for cassette in cassettes() {
        let (said, ended) = cassette.replay([&page[..]]);
        assert_eq!((said, ended.unwrap_err().cause), (Said::default(), Cause::Nonsense), "{}", cassette.name);
        let (said, ended) = cassette.replay([]);
        assert_eq!((said, ended.unwrap_err().cause), (Said::default(), Cause::Nonsense), "{}", cassette.name);
    }
}

#[test]
fn a_stream_may_be_answered_with_one_value() {
    for name in ["openai/whole.json", "anthropic/whole.json", "gemini/whole.json"] {
        let cassette = cassettes().into_iter().find(|cassette| cassette.name == name).unwrap();
        let mut decoder = decoder(cassette.kind, &Chat { stream: true, ..Chat::default() });
        let mut events = Vec::new();
        for piece in [b"\r\n ", cassette.bytes] {
            decoder.push(piece, &mut events).unwrap();
        }
        decoder.finish(&mut events).unwrap();
        assert_eq!(said(&events), cassette.said, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512), cut in 1usize..64) {
        for cassette in cassettes() {
            let _ = cassette.replay(bytes.chunks(cut));
        }
    }

    #[test]
    fn a_damaged_reply_never_panics_and_is_the_same_however_it_is_cut(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        bytes in prop::collection::vec(any::<u8>(), 0..8),
        cut in 1usize..64,
    ) {
        let mut all = cassettes();
        let mut cassette = all.swap_remove(which.index(all.len()));
        let at = at.index(cassette.bytes.len());
        let end = (at + bytes.len()).min(cassette.bytes.len());
        let mut damaged = cassette.bytes.to_vec();
        damaged.splice(at..end, bytes);
        cassette.bytes = &[];
        prop_assert_eq!(cassette.replay([&damaged[..]]), cassette.replay(damaged.chunks(cut)));
    }
}
