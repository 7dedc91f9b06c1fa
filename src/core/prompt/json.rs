//! The JSON value in a model's reply: models add fences, greetings and explanations even where they are told not to.

use serde_json::Value;

/// The JSON value: the whole reply, or what a fence holds, or the first object or array in prose; `None` without one.
///
/// What is found is valid JSON. A lone number in square brackets reads as a citation where there is anything else.
pub fn find(reply: &str) -> Option<&str> {
    let whole = reply.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
    if is_json(whole) {
        return Some(whole);
    }
    fenced(reply).or_else(|| in_prose(reply))
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok()
}

/// What the first fence with JSON holds.
fn fenced(reply: &str) -> Option<&str> {
    let mut rest = reply;
    while let Some(open) = rest.find("```") {
        let inside = rest[open + 3..].split_once('\n').map(|(_, inside)| inside)?;
        // A string of the value may hold a fence of its own: the last of the closing marks that leaves JSON counts.
        let mut ends = inside.match_indices("```").map(|(end, _)| end);
        let first = ends.next()?;
        if let Some(end) = std::iter::once(first).chain(ends.take(8)).find(|end| is_json(inside[..*end].trim())) {
            return Some(inside[..end].trim());
        }
        rest = &inside[first + 3..];
    }
    None
}

/// The first object or array that is whole.
fn in_prose(reply: &str) -> Option<&str> {
    let mut citation = None;
    let mut at = 0;
    // A value may be 128 deep, not more, so that a text of opening brackets is not read to its end for each of them.
    while let Some(open) = reply[at..].find(['{', '[']).map(|open| at + open) {
        let mut values = serde_json::Deserializer::from_str(&reply[open..]).into_iter::<Value>();
        let found = matches!(values.next(), Some(Ok(_))).then(|| &reply[open..open + values.byte_offset()]);
        match found {
            Some(value) if value[1..value.len() - 1].bytes().all(|byte| byte.is_ascii_digit()) && value.len() > 2 => {
                citation = citation.or(Some(value));
                at = open + value.len();
            }
            Some(value) => return Some(value),
            None => at = open + 1,
        }
    }
    citation
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_value_is_found_wherever_the_model_put_it() {
        for (reply, value) in [
            (" {\"a\": 1}\n", Some("{\"a\": 1}")),
            ("\"text\"", Some("\"text\"")),
            ("42", Some("42")),
            ("Sure!\n```json\n{\"a\": [1, 2]}\n```\nAnything else?", Some("{\"a\": [1, 2]}")),
            ("```\n[true]\n```", Some("[true]")),
            ("```sql\nselect 1\n```\nthen\n```json\n{}\n```", Some("{}")),
            ("```json\n{\"md\": \"```sql```\"}\n```", Some("{\"md\": \"```sql```\"}")),
            ("```json\n{\"cut\": 1}", Some("{\"cut\": 1}")),
            ("Here it is: {\"a\": \"}{ \\\" ]\"} as asked.", Some("{\"a\": \"}{ \\\" ]\"}")),
            ("By [1] it is {\"a\": 2}", Some("{\"a\": 2}")),
            ("It is [1].", Some("[1]")),
            ("Use {curly} braces: [\"x\"]", Some("[\"x\"]")),
            ("{\"a\": 1", None),
            ("no value", None),
            ("", None),
        ] {
            assert_eq!(find(reply), value, "{reply}");
        }
    }

    #[test]
    fn brackets_without_end_cost_little() {
        for piece in ["{", "[", "[1,", "{\"a\":", "[\"", "```\n[", "```"] {
            assert_eq!(find(&piece.repeat(100_000)), None);
        }
    }

    proptest! {
        #[test]
        fn what_is_found_is_json(reply in "(\\PC|[\\[\\]{}\",:0-9`\n]){0,60}") {
            if let Some(value) = find(&reply) {
                prop_assert!(is_json(value));
            }
        }

        #[test]
        fn an_object_in_prose_is_found(before in "[a-z .]{0,20}", text in "\\PC{0,20}", after in "[^{\\[]{0,20}") {
            let object = serde_json::json!({ "text": text }).to_string();
            let reply = format!("{before}{object}{after}");
            prop_assert_eq!(find(&reply), Some(object.as_str()));
        }
    }
}
