//! What a model is told of a call.

use super::subtransaction::Fault;
use serde_json::Value;

/// An error in words.
pub fn of_fault(fault: &Fault) -> String {
    let mut text = format!("Error {}: {}", fault.sqlstate, fault.message);
    for more in [&fault.detail, &fault.hint].into_iter().flatten() {
        text.push('\n');
        text.push_str(more);
    }
    text
}

/// An error as it was stored, in words.
pub fn of_facts(facts: &Value) -> String {
    let text = |name: &str| facts.get(name).and_then(Value::as_str).map(str::to_owned);
    let fault = of_fault(&Fault {
        sqlstate: text("sqlstate").unwrap_or_else(|| "XX000".into()),
        message: text("message").unwrap_or_else(|| "the function failed".into()),
        detail: text("detail"),
        hint: text("hint"),
    });
    match facts.get("answer") {
        Some(Value::String(answer)) => format!("{fault}\nAnswer: {answer}"),
        Some(answer) => format!("{fault}\nAnswer: {answer}"),
        None => fault,
    }
}

/// What became of a call that was never run to its end, in words.
pub fn of_status(status: &str, reason: Option<&str>) -> String {
    let said = match status {
        "rejected" => "The call was rejected and not carried out.",
        "expired" => "Nobody approved the call in time. It was not carried out.",
        "cancelled" => "The call was cancelled and not carried out.",
        _ => "The request was sent and the answer lost: it is not known whether it was carried out. Do not repeat it.",
    };
    match reason {
        Some(reason) => format!("{said} Reason: {reason}"),
        None => said.to_owned(),
    }
}
