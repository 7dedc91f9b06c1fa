//! Anthropic's replies, whole or in events.

use super::REDACTED;
use crate::core::chat::{Event, Kind, Stop, Usage};
use crate::provider::reply::{Reader, count, text};
use crate::provider::{Failure, failure};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A reply being read.
pub struct Answer {
    /// The tool whose input is the reply; its input is given as words.
    form: Option<String>,
    /// Words besides a reply that has a form; they are the reply if no such one comes.
    aside: String,
    formed: bool,
    blocks: BTreeMap<u64, Block>,
    calls: u32,
    usage: Counts,
    stopped: bool,
    complete: bool,
}

/// A block being read.
enum Block {
    Words,
    Thinking { signature: String },
    Call { index: u32, input: Option<String> },
    Form { input: Option<String> },
    Other,
}

/// Tokens as they are told: each number as it was told last.
#[derive(Default)]
struct Counts {
    input: u64,
    read: u64,
    written: u64,
    output: u64,
    reasoning: u64,
}

impl Answer {
    /// A reply of which nothing came yet.
    pub fn new(form: Option<&str>) -> Self {
        Answer {
            form: form.map(str::to_owned),
            aside: String::new(),
            formed: false,
            blocks: BTreeMap::new(),
            calls: 0,
            usage: Counts::default(),
            stopped: false,
            complete: false,
        }
    }

    fn words(&mut self, words: &str, events: &mut Vec<Event>) {
        match (words.is_empty(), &self.form) {
            (true, _) => {}
            (_, Some(_)) => self.aside.push_str(words),
            (_, None) => events.push(Event::Text(words.to_owned())),
        }
    }

    fn begin(&mut self, at: u64, block: &Value, events: &mut Vec<Event>) {
        // The input of a block that comes whole; a stream begins with an empty one.
        let input = block.get("input").filter(|input| input.as_object().is_some_and(|input| !input.is_empty()));
        let input = input.map(Value::to_string);
        let begun = match block.get("type").and_then(Value::as_str) {
            Some("text") => {
                self.words(text(block, "text").unwrap_or_default(), events);
                Block::Words
            }
            Some("thinking") => {
                events.extend(text(block, "thinking").map(|words| Event::Thinking(words.to_owned())));
                Block::Thinking { signature: text(block, "signature").unwrap_or_default().to_owned() }
            }
            Some("redacted_thinking") => {
                events.extend(text(block, "data").map(|data| Event::Signature(format!("{REDACTED}{data}"))));
                Block::Other
            }
            Some("tool_use") if self.form.is_some() && self.form.as_deref() == text(block, "name") => {
                self.formed = true;
                Block::Form { input }
            }
            Some("tool_use") => {
                let index = self.calls;
                self.calls += 1;
                events.push(Event::ToolCall {
                    index,
                    id: text(block, "id").map_or_else(|| format!("call_{index}"), str::to_owned),
                    name: text(block, "name").unwrap_or_default().to_owned(),
                    signature: None,
                });
                Block::Call { index, input }
            }
            _ => Block::Other,
        };
        self.blocks.insert(at, begun);
    }

    fn more(&mut self, at: u64, delta: &Value, events: &mut Vec<Event>) {
        let json = text(delta, "partial_json");
        match self.blocks.get_mut(&at) {
            Some(Block::Words) => self.words(text(delta, "text").unwrap_or_default(), events),
            Some(Block::Thinking { signature }) => {
                events.extend(text(delta, "thinking").map(|words| Event::Thinking(words.to_owned())));
                signature.push_str(text(delta, "signature").unwrap_or_default());
            }
            Some(Block::Call { index, input }) => {
                if let Some(json) = json {
                    *input = None;
                    events.push(Event::Arguments { index: *index, fragment: json.to_owned() });
                }
            }
            Some(Block::Form { input }) => {
                if let Some(json) = json {
                    *input = None;
                    events.push(Event::Text(json.to_owned()));
                }
            }
            Some(Block::Other) | None => {}
        }
    }

    fn end_block(&mut self, at: u64, events: &mut Vec<Event>) {
        match self.blocks.remove(&at) {
            Some(Block::Thinking { signature }) if !signature.is_empty() => events.push(Event::Signature(signature)),
            Some(Block::Call { index, input: Some(fragment) }) => events.push(Event::Arguments { index, fragment }),
            Some(Block::Form { input: Some(input) }) => events.push(Event::Text(input)),
            _ => {}
        }
    }

    fn count(&mut self, usage: Option<&Value>, events: &mut Vec<Event>) {
        let Some(usage) = usage.filter(|usage| usage.is_object()) else { return };
        let counts = &mut self.usage;
        counts.input = count(usage, "input_tokens").unwrap_or(counts.input);
        counts.read = count(usage, "cache_read_input_tokens").unwrap_or(counts.read);
        counts.written = count(usage, "cache_creation_input_tokens").unwrap_or(counts.written);
        counts.output = count(usage, "output_tokens").unwrap_or(counts.output);
        let details = usage.get("output_tokens_details");
        counts.reasoning = details.and_then(|d| count(d, "thinking_tokens")).unwrap_or(counts.reasoning);
        events.push(Event::Usage(Usage {
            // Tokens of the cache are told besides those of the prompt.
            input: counts.input.saturating_add(counts.read).saturating_add(counts.written),
            cached: counts.read,
            cache_written: counts.written,
            output: counts.output,
            reasoning: counts.reasoning,
        }));
    }

    fn stop(&mut self, reason: Option<&str>, events: &mut Vec<Event>) {
        let Some(reason) = reason else { return };
        if !self.formed && !self.aside.is_empty() {
            events.push(Event::Text(std::mem::take(&mut self.aside)));
        }
        self.stopped = true;
        events.push(Event::Stop(match reason {
            "max_tokens" | "model_context_window_exceeded" => Stop::Length,
            "tool_use" if self.calls > 0 => Stop::ToolCalls,
            "pause_turn" => Stop::Pause,
            "refusal" => Stop::Refusal,
            // That tool's input was the reply.
            _ => Stop::End,
        }));
    }
}

impl Reader for Answer {
    fn next(&mut self, value: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        let at = count(value, "index").unwrap_or(0);
        let part = |name: &str| value.get(name).unwrap_or(&Value::Null);
        match value.get("type").and_then(Value::as_str) {
            Some("message_start") => {
                events.extend(text(part("message"), "id").map(|id| Event::Id(id.to_owned())));
                self.count(part("message").get("usage"), events);
            }
            Some("content_block_start") => self.begin(at, part("content_block"), events),
            Some("content_block_delta") => self.more(at, part("delta"), events),
            Some("content_block_stop") => self.end_block(at, events),
            Some("message_delta") => {
                self.count(value.get("usage"), events);
                self.stop(text(part("delta"), "stop_reason"), events);
            }
            Some("message_stop") => self.complete = self.stopped,
            Some("error") => return Err(failure::of_value(Kind::Anthropic, 200, value)),
            // Pings, and what will be added to the protocol.
            _ => {}
        }
        Ok(())
    }

    fn whole(&mut self, value: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        if text(value, "type") == Some("error") {
            return Err(failure::of_value(Kind::Anthropic, 200, value));
        }
        self.next(&json!({ "type": "message_start", "message": { "id": value.get("id") } }), events)?;
        for (at, block) in value.get("content").and_then(Value::as_array).into_iter().flatten().enumerate() {
            self.begin(at as u64, block, events);
            self.end_block(at as u64, events);
        }
        self.count(value.get("usage"), events);
        self.stop(text(value, "stop_reason"), events);
        self.complete = self.stopped;
        Ok(())
    }

    fn is_complete(&self) -> bool {
        self.complete
    }
}
