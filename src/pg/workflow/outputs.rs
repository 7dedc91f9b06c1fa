//! What may be stored of what steps come to.

use crate::core::error::{Error, Kind, Result};
use serde_json::Value;

/// Bytes that a run's outputs and its input take in memory, about, at most.
const MOST: i64 = 64 * 1024 * 1024;

/// What an output takes, about, where it can be stored beside what the run has. Errors: 22023 a text in it has a NUL,
/// which `jsonb` does not hold; 53400.
pub fn check(output: &Value, bytes: i64) -> Result<i64> {
    let weight = weight(output)
        .ok_or_else(|| Error::bad_argument("the output has the character \\u0000, which cannot be stored"))?;
    if bytes.saturating_add(weight) > MOST {
        let error = Error::new(Kind::OverLimit, "the outputs of the run's steps take too much");
        return Err(error.detail(format!("About {MOST} bytes are kept.")));
    }
    Ok(weight)
}

/// Bytes of JSON, about; `None` where a text in it has a NUL.
fn weight(value: &Value) -> Option<i64> {
    let text = |text: &str| (!text.contains('\0')).then_some(text.len() as i64 + 2);
    match value {
        Value::String(string) => text(string),
        Value::Array(array) => array.iter().try_fold(2, |sum, one| Some(sum + 1 + weight(one)?)),
        Value::Object(object) => {
            object.iter().try_fold(2, |sum, (name, one)| Some(sum + 2 + text(name)? + weight(one)?))
        }
        _ => Some(8),
    }
}
