//! Tools: the JSON Schema of their arguments, what an approval is for, what an effect and a server's answer come to.
//! Descriptions, rows and answers come in; nothing is run here.

pub mod effect;
pub mod remote;
pub mod schema;

use sha2::{Digest, Sha256};

/// What an approval is for: SHA-256 of the tool's name and its arguments.
///
/// The arguments are `jsonb` as Postgres writes it, which is one text for one value: members in one order and once each,
/// one way of writing a string, numbers with all their digits.
pub fn hash(name: &str, arguments: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(name.as_bytes());
    hash.update([0]);
    hash.update(arguments.as_bytes());
    hash.finalize().into()
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes that [`hex`] wrote.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let is_hex = text.len().is_multiple_of(2) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_hex.then(|| (0..text.len()).step_by(2).filter_map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect())
}

/// Whether a tool goes by one of these: its name, `product:slug` or `tag:word`.
pub fn is_chosen(chosen: &[String], name: &str, product: Option<&str>, tags: &[String]) -> bool {
    chosen.iter().any(|wanted| match wanted.split_once(':') {
        Some(("product", slug)) => product == Some(slug),
        Some(("tag", word)) => tags.iter().any(|tag| tag == word),
        _ => wanted == name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_tells_names_and_arguments_apart() {
        let all = [hash("a", "{}"), hash("b", "{}"), hash("a", "{\"x\": 1}"), hash("a{", "}")];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one));
        }
        assert_eq!(hash("a", "{}"), hash("a", "{}"));
        assert_eq!(hex(&[0, 255, 16]), "00ff10");
        assert_eq!(unhex("00ff10"), Some(vec![0, 255, 16]));
        for other in ["0", "0g", "éé", "FF", "+1"] {
            assert_eq!(unhex(other), None, "{other}");
        }
    }

    #[test]
    fn a_tool_goes_by_its_name_its_product_and_its_tags() {
        let chosen = |wanted: &str| is_chosen(&[wanted.into()], "send", Some("meta"), &["mail".into()]);
        assert!(chosen("send") && chosen("product:meta") && chosen("tag:mail"));
        assert!(!chosen("sen") && !chosen("product:send") && !chosen("tag:meta") && !chosen("name:send"));
        assert!(!is_chosen(&["product:".into()], "send", None, &[]));
    }
}
