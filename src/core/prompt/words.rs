//! The words of a text as keys that another text's words can be compared with.

use unicode_segmentation::UnicodeSegmentation;

/// A longer word counts by so many of its first characters, so that `refund` and `refunds` are one.
const STEM: usize = 6;

/// The words of a text, in lower case.
pub(super) fn keys(text: &str) -> impl Iterator<Item = String> + '_ {
    text.unicode_words().map(|word| {
        let lower = word.to_lowercase();
        if lower.chars().any(|c| c.is_numeric()) { lower } else { lower.chars().take(STEM).collect() }
    })
}

/// How much a word says by its length alone: short words of an alphabet are mostly grammar.
pub(super) fn weight(key: &str) -> f64 {
    let ideograph =
        |c: char| matches!(c, '\u{2e80}'..='\u{9fff}' | '\u{ac00}'..='\u{d7af}' | '\u{20000}'..='\u{3ffff}');
    if key.chars().any(|c| c.is_numeric() || ideograph(c)) {
        return 1.0;
    }
    match key.chars().count() {
        0..=2 => 0.1,
        3 => 0.3,
        4 => 0.7,
        _ => 1.0,
    }
}
