//! Gemini's replies: each value of a stream has the form of a whole reply.

use crate::core::chat::{Event, Kind, Stop, Usage};
use crate::provider::reply::{Reader, count, text};
use crate::provider::{Cause, Failure, failure};
use serde_json::Value;

/// A reply being read.
#[derive(Default)]
pub struct Generation {
    calls: u32,
    id: bool,
    usage: Option<Usage>,
    complete: bool,
}

impl Generation {
    fn part(&mut self, part: &Value, events: &mut Vec<Event>) {
        let signature = text(part, "thoughtSignature");
        if let Some(call) = part.get("functionCall") {
            let index = self.calls;
            self.calls += 1;
            events.push(Event::ToolCall {
                index,
                id: text(call, "id").map_or_else(|| format!("call_{index}"), str::to_owned),
                name: text(call, "name").unwrap_or_default().to_owned(),
                signature: signature.map(str::to_owned),
            });
            let fragment = call.get("args").filter(|args| args.is_object());
            let fragment = fragment.map_or_else(|| "{}".to_owned(), Value::to_string);
            events.push(Event::Arguments { index, fragment });
            return;
        }
        if let Some(words) = text(part, "text") {
            let is_thought = part.get("thought").and_then(Value::as_bool).unwrap_or(false);
            events.push(if is_thought { Event::Thinking(words.to_owned()) } else { Event::Text(words.to_owned()) });
        }
        events.extend(signature.map(|seal| Event::Signature(seal.to_owned())));
    }

    fn stop(&mut self, stop: Stop, events: &mut Vec<Event>) {
        self.complete = true;
        events.push(Event::Stop(stop));
    }

    fn stopped(&self, reason: &str) -> Result<Stop, Failure> {
        Ok(match reason {
            "MAX_TOKENS" => Stop::Length,
            "SAFETY"
            | "RECITATION"
            | "BLOCKLIST"
            | "PROHIBITED_CONTENT"
            | "SPII"
            | "LANGUAGE"
            | "OTHER"
            | "IMAGE_SAFETY"
            | "IMAGE_PROHIBITED_CONTENT"
            | "IMAGE_RECITATION"
            | "IMAGE_OTHER" => Stop::Filtered,
            "MALFORMED_FUNCTION_CALL"
            | "UNEXPECTED_TOOL_CALL"
            | "TOO_MANY_TOOL_CALLS"
            | "MALFORMED_RESPONSE"
            | "MISSING_THOUGHT_SIGNATURE"
            | "NO_IMAGE" => {
                return Err(Failure { cause: Cause::Nonsense, code: Some(reason.to_owned()), ..Failure::nonsense() });
            }
            _ if self.calls > 0 => Stop::ToolCalls,
            _ => Stop::End,
        })
    }
}

impl Reader for Generation {
    fn next(&mut self, value: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        if value.get("error").or_else(|| value.get(0)?.get("error")).is_some() {
            return Err(failure::of_value(Kind::Gemini, 200, value));
        }
        if let Some(id) = text(value, "responseId").filter(|_| !self.id) {
            self.id = true;
            events.push(Event::Id(id.to_owned()));
        }
        let candidate = value.get("candidates").and_then(|candidates| candidates.get(0)).unwrap_or(&Value::Null);
        let content = candidate.get("content").unwrap_or(&Value::Null);
        for part in content.get("parts").and_then(Value::as_array).into_iter().flatten() {
            self.part(part, events);
        }
        let usage = value.get("usageMetadata").map(usage);
        if usage.is_some() && usage != self.usage {
            self.usage = usage;
            events.extend(usage.map(Event::Usage));
        }
        if value.get("promptFeedback").and_then(|feedback| text(feedback, "blockReason")).is_some() {
            self.stop(Stop::Filtered, events);
        } else if let Some(reason) = text(candidate, "finishReason").filter(|r| *r != "FINISH_REASON_UNSPECIFIED") {
            let stop = self.stopped(reason)?;
            self.stop(stop, events);
        }
        Ok(())
    }

    fn whole(&mut self, value: &Value, events: &mut Vec<Event>) -> Result<(), Failure> {
        self.next(value, events)
    }

    fn is_complete(&self) -> bool {
        self.complete
    }
}

fn usage(value: &Value) -> Usage {
    let tokens = |name: &str| count(value, name).unwrap_or(0);
    Usage {
        input: tokens("promptTokenCount").saturating_add(tokens("toolUsePromptTokenCount")),
        cached: tokens("cachedContentTokenCount"),
        cache_written: 0,
        // Unlike elsewhere, tokens of reasoning are told besides those of the reply.
        output: tokens("candidatesTokenCount").saturating_add(tokens("thoughtsTokenCount")),
        reasoning: tokens("thoughtsTokenCount"),
    }
}
