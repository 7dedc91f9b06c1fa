//! What came of a call of an HTTP tool: its end, as it is kept and told to a model.

use crate::core::error::{Error, Kind};
use crate::core::wire::{ToolAnswer, ToolReply};
use serde_json::{Value, json};

/// How a call ended.
#[derive(Debug, PartialEq)]
pub enum End {
    /// With a result.
    Succeeded(Value),
    /// With an error, in the form that tables show.
    Failed(Value),
    /// Sent, and nobody knows what came of it; the error says why.
    Uncertain(Value),
}

/// The end of a call. Where a repetition does no harm, what may not have been done counts as not done.
pub fn end(reply: ToolReply, idempotent: bool) -> End {
    match reply {
        ToolReply::Answered(answer) if !answer.is_error => End::Succeeded(value(&answer)),
        ToolReply::Answered(answer) => {
            let message = match answer.status {
                200..=299 => "the tool says that it failed".to_owned(),
                status => format!("the tool's server answered with HTTP status {status}"),
            };
            let mut error = facts(&Error::new(Kind::Provider, message));
            if !answer.body.is_empty() {
                error["answer"] = value(&answer);
            }
            if answer.unsure && !idempotent { End::Uncertain(error) } else { End::Failed(error) }
        }
        ToolReply::Failed { error, reached } if reached && !idempotent => uncertain(&error),
        ToolReply::Failed { error, .. } => End::Failed(facts(&error)),
    }
}

/// The end of a call of which no more was heard after it may have been sent.
pub fn uncertain(why: &Error) -> End {
    let hint = "Whether the tool has done it is not known: look there before it is called again.";
    End::Uncertain(facts(&why.clone().hint(hint)))
}

/// An error as tables show it.
pub fn facts(error: &Error) -> Value {
    json!({
        "sqlstate": error.kind.sqlstate(),
        "message": error.message,
        "detail": error.detail,
        "hint": error.hint,
    })
}

/// A server's answer as a JSON value: its own where it is JSON, else a text; marked where it was cut.
pub fn value(answer: &ToolAnswer) -> Value {
    if answer.truncated {
        return json!({ "truncated": true, "text": clean(&answer.body) });
    }
    let is_json = answer.content_type == "application/json" || answer.content_type.ends_with("+json");
    match serde_json::from_str(&answer.body) {
        Ok(value) if is_json => cleaned(value),
        _ => Value::String(clean(&answer.body)),
    }
}

/// Without the character that Postgres' texts cannot hold.
fn clean(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn cleaned(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(clean(&text)),
        Value::Array(elements) => elements.into_iter().map(cleaned).collect(),
        Value::Object(members) => {
            Value::Object(members.into_iter().map(|(name, member)| (clean(&name), cleaned(member))).collect())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, content_type: &str, body: &str) -> ToolAnswer {
        ToolAnswer {
            status,
            is_error: status >= 400,
            unsure: status == 502,
            content_type: content_type.into(),
            body: body.into(),
            truncated: false,
        }
    }

    #[test]
    fn json_is_a_value_and_all_else_a_text() {
        let of = |content_type: &str, body: &str| end(ToolReply::Answered(answer(200, content_type, body)), false);
        assert_eq!(of("application/json", "{\"a\": [1]}"), End::Succeeded(json!({"a": [1]})));
        assert_eq!(of("application/problem+json", "1"), End::Succeeded(json!(1)));
        assert_eq!(of("application/json", "{"), End::Succeeded(json!("{")));
        assert_eq!(of("text/plain", "{}"), End::Succeeded(json!("{}")));
        assert_eq!(of("", ""), End::Succeeded(json!("")));
        assert_eq!(
            of("application/json", "{\"a\\u0000\": [\"\\u0000\"]}"),
            End::Succeeded(json!({"a\u{fffd}": ["\u{fffd}"]}))
        );
        let cut = ToolAnswer { truncated: true, ..answer(200, "application/json", "{\"a\": 1") };
        let expected = json!({"truncated": true, "text": "{\"a\": 1"});
        assert_eq!(end(ToolReply::Answered(cut), false), End::Succeeded(expected));
    }

    #[test]
    fn an_error_holds_the_servers_answer() {
        let End::Failed(error) = end(ToolReply::Answered(answer(422, "application/json", "{\"a\": 1}")), false) else {
            panic!()
        };
        assert_eq!((&error["sqlstate"], &error["answer"]), (&json!("38000"), &json!({"a": 1})));
        assert_eq!(error["message"], "the tool's server answered with HTTP status 422");
        let said = ToolAnswer { is_error: true, ..answer(200, "text/plain", "disk is full") };
        let End::Failed(error) = end(ToolReply::Answered(said), false) else { panic!() };
        assert_eq!(
            (&error["message"], &error["answer"]),
            (&json!("the tool says that it failed"), &json!("disk is full"))
        );
    }

    #[test]
    fn what_may_have_been_done_is_uncertain_unless_a_repetition_does_no_harm() {
        let error = Error::new(Kind::Provider, "gone");
        let failed = |reached| ToolReply::Failed { error: error.clone(), reached };
        assert!(matches!(end(failed(true), false), End::Uncertain(_)));
        assert!(matches!(end(failed(true), true), End::Failed(_)));
        assert!(matches!(end(failed(false), false), End::Failed(_)));
        let unsure = || ToolReply::Answered(answer(502, "", ""));
        assert!(matches!(end(unsure(), false), End::Uncertain(_)));
        assert!(matches!(end(unsure(), true), End::Failed(_)));
    }
}
