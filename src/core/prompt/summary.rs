//! Summaries made without a model, in any language.

use crate::core::chat::Role;

/// Byte ranges of the most central sentences, in order, of at most `max_chars` characters together.
pub fn extract(text: &str, max_chars: usize) -> Vec<(usize, usize)> {
    let _ = (text, max_chars);
    Vec::new()
}

/// The rolling summary: the previous one and the turns that fell out of the window since, in at most `max_chars` characters.
pub fn fold(previous: Option<&str>, turns: &[(Role, &str)], max_chars: usize) -> String {
    let _ = turns;
    previous.unwrap_or_default().chars().take(max_chars).collect()
}

/// A conversation's title, from its first question: at most 60 characters, never empty for a text that is not blank.
pub fn title(question: &str) -> String {
    question.chars().take(60).collect()
}
