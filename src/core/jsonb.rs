//! What `jsonb` does not hold, though it is JSON.

use serde_json::Value;

/// Whether a text or a name in a value has the character U+0000.
pub fn has_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_zero),
        Value::Object(members) => members.iter().any(|(name, value)| name.contains('\0') || has_zero(value)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::has_zero;
    use serde_json::json;

    #[test]
    fn a_zero_is_found_wherever_it_is_and_its_escape_in_a_text_is_none() {
        for value in [json!("a\0"), json!([1, ["\0"]]), json!({ "a": { "b\0": 1 } })] {
            assert!(has_zero(&value), "{value}");
        }
        assert!(!has_zero(&json!({ "a": ["\\u0000", "0", 0, null, true, 1.5] })));
    }
}
