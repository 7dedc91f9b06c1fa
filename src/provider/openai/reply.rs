//! Chat completions, whole or in chunks.

use crate::core::chat::{Event, Kind, Stop, Usage};
use crate::provider::reply::{Reader, count, text};
use crate::provider::{Cause, Failure, failure};
use serde_json::Value;

/// A reply being read.
pub struct Completion {
    kind: Kind,
    calls: Vec<Call>,
    id: bool,
    stop: Option<Stop>,
    refused: bool,
}

/// A tool call being read.
struct Call {
    /// As the server numbers it, if it does.
    index: Option<u64>,
    id: Option<String>,
    /// Its name came, and the call was given.
    named: bool,
    /// Arguments that came before the name.
    held: String,
}

impl Completion {
    /// A reply of which nothing came yet.
    pub fn new(kind: Kind) -> Self {
        Completion { kind, calls: Vec::new(), id: false, stop: None, refused: false }
    }

    /// A piece of a message, or a whole one: they have the same form.
    fn message(&mut self, message: &Value, events: &mut Vec<Event>) {
        let reasoning = text(message, "reasoning_content").or_else(|| text(message, "reasoning"));
        events.extend(reasoning.map(|words| Event::Thinking(words.to_owned())));
        match message.get("content") {
            Some(Value::String(words)) if !words.is_empty() => events.push(Event::Text(words.clone())),
            // Mistral's reasoning models give parts.
            Some(Value::Array(parts)) => parts.iter().for_each(|part| content(part, events)),
            _ => {}
        }
        if let Some(words) = text(message, "refusal") {
            self.refused = true;
            events.push(Event::Text(words.to_owned()));
        }
        for call in message.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            self.tool_call(call, events);
        }
    }

    fn tool_call(&mut self, value: &Value, events: &mut Vec<Event>) {
        let function = value.get("function").unwrap_or(&Value::Null);
        let (id, name) = (text(value, "id"), text(function, "name"));
        let at = self.place(count(value, "index"), id, name);
        let call = &mut self.calls[at];
        if call.id.is_none() {
            call.id = id.map(str::to_owned);
        }
        let more = match function.get("arguments") {
            Some(Value::String(more)) => more.clone(),
            Some(object @ Value::Object(_)) => object.to_string(),
            _ => String::new(),
        };
        call.held.push_str(&more);
        if !call.named {
            let Some(name) = name else { return };
            call.named = true;
            let id = call.id.clone().unwrap_or_else(|| format!("call_{at}"));
            events.push(Event::ToolCall { index: at as u32, id, name: name.to_owned(), signature: None });
        }
        if !call.held.is_empty() {
            events.push(Event::Arguments { index: at as u32, fragment: std::mem::take(&mut call.held) });
        }
    }

    /// Which call a piece belongs to. Servers leave out the index, the id or both, and some give every call the index 0.
    fn place(&mut self, index: Option<u64>, id: Option<&str>, name: Option<&str>) -> usize {
        let known = self.calls.iter().rposition(|call| match (index, id) {
            (Some(_), _) => call.index == index,
            (None, Some(_)) => call.id.as_deref() == id,
            (None, None) => true,
        });
        let other = |call: &Call| match (index, id, name) {
            (Some(_), Some(id), Some(_)) => call.named && call.id.as_deref().is_some_and(|known| known != id),
            (None, None, Some(_)) => call.named,
            _ => false,
        };
        match known {
            Some(at) if !other(&self.calls[at]) => at,
            _ => {
                self.calls.push(Call { index, id: None, named: false, held: String::new() });
                self.calls.len() - 1
            }
        }
    }

    fn value(&mut self, value: &Value, part: &str, events: &mut Vec<Event>) -> Result<(), Failure> {
        let is_error = value.get("object").and_then(Value::as_str) == Some("error");
        if is_error || value.get("error").is_some_and(|error| !error.is_null()) {
            return Err(failure::of_value(self.kind, 200, value));
        }
        if let Some(id) = text(value, "id").filter(|_| !self.id) {
            self.id = true;
            events.push(Event::Id(id.to_owned()));
        }
        let choices = value.get("choices").and_then(Value::as_array).into_iter().flatten();
        for choice in choices.filter(|choice| count(choice, "index").unwrap_or(0) == 0) {
            if choice.get("error").is_some_and(|error| !error.is_null()) {
                return Err(failure::of_value(self.kind, 200, choice));
            }
            if let Some(message) = choice.get(part) {
                self.message(message, events);
            }
            if let Some(reason) = text(choice, "finish_reason") {
                let stop = self.stopped(reason)?;
                self.stop = Some(stop);
                events.push(Event::Stop(stop));
            }
        }
        let groq = value.get("x_groq").and_then(|groq| groq.get("usage"));
        events.extend(value.get("usage").filter(|usage| usage.is_object()).or(groq).map(|u| Event::Usage(usage(u))));
        Ok(())
    }

    fn stopped(&self, reason: &str) -> Result<Stop, Failure> {
        Ok(match reason {
            "length" => Stop::Length,
            "content_filter" => Stop::Filtered,
            "error" => return Err(Failure { cause: Cause::Unavailable, ..Failure::nonsense() }),
            _ if self.refused => Stop::Refusal,
            // A tool that had to be called ends with `stop`, even at OpenAI.
            _ if !self.calls.is_empty() => Stop::ToolCalls,
            _ => Stop::End,
        })
    }
}

impl Reader for Completion {
    fn next(&mut self, value: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        self.value(value, "delta", events)
    }

    fn whole(&mut self, value: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        self.value(value, "message", events)
    }

    fn is_complete(&self) -> bool {
        self.stop.is_some() && self.calls.iter().all(|call| call.named)
    }
}

/// A part of a content that is a list.
fn content(part: &Value, events: &mut Vec<Event>) {
    match part.get("type").and_then(Value::as_str) {
        Some("text") => events.extend(text(part, "text").map(|words| Event::Text(words.to_owned()))),
        Some("thinking") => {
            let parts = part.get("thinking").and_then(Value::as_array).into_iter().flatten();
            events.extend(parts.filter_map(|part| text(part, "text")).map(|words| Event::Thinking(words.to_owned())));
        }
        _ => {}
    }
}

fn usage(value: &Value) -> Usage {
    let detail = |of: &str, name: &str| value.get(of).and_then(|details| count(details, name));
    Usage {
        input: count(value, "prompt_tokens").unwrap_or(0),
        cached: detail("prompt_tokens_details", "cached_tokens")
            .or_else(|| count(value, "prompt_cache_hit_tokens"))
            .unwrap_or(0),
        cache_written: 0,
        output: count(value, "completion_tokens").unwrap_or(0),
        reasoning: detail("completion_tokens_details", "reasoning_tokens").unwrap_or(0),
    }
}
