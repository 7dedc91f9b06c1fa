//! Counts tokens as OpenAI's models do, for providers that do not say what they used.

use crate::core::error::{Error, Result};
use tiktoken_rs::CoreBPE;

/// Bytes of letters, of white space or of other characters in a row, after which a text is cut: merging takes the
/// square of a piece's length. At such a cut the count may be too high by one.
const LONGEST_RUN: usize = 1024;
/// Bytes counted in one go.
const PIECE: usize = 64 * 1024;

/// A way to cut text into tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Of GPT-4o and later.
    O200k,
    /// Of GPT-4 and of the third generation of embedding models.
    Cl100k,
}

impl Encoding {
    /// The encoding that `count_tokens` calls so.
    pub fn named(model: &str) -> Option<Encoding> {
        match model.strip_prefix("tiktoken/")? {
            "o200k_base" => Some(Encoding::O200k),
            "cl100k_base" => Some(Encoding::Cl100k),
            _ => None,
        }
    }

    /// Its tables, read on first use, which takes a good part of a second.
    fn tables(self) -> &'static CoreBPE {
        match self {
            Encoding::O200k => tiktoken_rs::o200k_base_singleton(),
            Encoding::Cl100k => tiktoken_rs::cl100k_base_singleton(),
        }
    }

    fn count_now(self, text: &str) -> usize {
        let tables = self.tables();
        pieces(text).map(|piece| tables.encode_ordinary(piece).len()).sum()
    }
}

/// Counts each text's tokens, on a thread that may be busy.
pub async fn count(encoding: Encoding, inputs: Vec<String>) -> Result<Vec<u32>> {
    let count = move || inputs.iter().map(|text| encoding.count_now(text) as u32).collect();
    tokio::task::spawn_blocking(count).await.map_err(|_| Error::bug("counting tokens panicked"))
}

/// Tokens of a text, counted, or guessed where that fails.
pub fn count_or_guess(text: &str) -> u64 {
    if text.is_empty() {
        return 0;
    }
    let counted = std::panic::catch_unwind(|| Encoding::O200k.count_now(text) as u64);
    counted.unwrap_or_else(|_| guess(text))
}

/// About how many tokens a text has; more than that are rare in any language.
pub fn guess(text: &str) -> u64 {
    if text.is_empty() { 0 } else { text.len() as u64 / 3 + 1 }
}

/// Cuts a text where that changes no count, or hardly.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (mut run, mut class) = (0, 3);
        let end = rest.char_indices().find_map(|(at, character)| {
            let next = if character.is_alphanumeric() { 0 } else { 1 + u8::from(character.is_whitespace()) };
            // A word's token holds the space before it.
            if next == 2 && class != 2 && at > PIECE {
                return Some(at);
            }
            (run, class) =
                if next == class { (run + character.len_utf8(), class) } else { (character.len_utf8(), next) };
            (run > LONGEST_RUN && at > 0).then_some(at)
        });
        let (piece, more) = rest.split_at(end.unwrap_or(rest.len()));
        rest = more;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_texts_have_known_counts() {
        let encoding = Encoding::named("tiktoken/cl100k_base").unwrap();
        assert_eq!(encoding.count_now("tiktoken is great!"), 6);
        assert_eq!(Encoding::O200k.count_now("hello world"), 2);
        assert_eq!(Encoding::O200k.count_now(""), 0);
        assert_eq!(Encoding::named("tiktoken/other"), None);
        assert_eq!(Encoding::named("other"), None);
    }

    #[test]
    fn cutting_a_long_text_changes_no_count() {
        let text = "The quick brown fox jumps over the lazy dog, twice.\n\nÜber 42 Zeilen! ".repeat(2000);
        assert!(pieces(&text).count() > 1);
        assert_eq!(pieces(&text).collect::<String>(), text);
        assert_eq!(Encoding::O200k.count_now(&text), Encoding::O200k.tables().encode_ordinary(&text).len());
    }

    #[test]
    fn no_text_takes_long() {
        for unit in ["a", " ", "\n", "字", "=", "\u{301}", "🦀"] {
            let text = unit.repeat(200_000);
            assert_eq!(pieces(&text).map(str::len).sum::<usize>(), text.len());
            assert!(Encoding::O200k.count_now(&text) > 0, "{unit:?}");
        }
    }
}
