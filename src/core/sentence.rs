//! Where sentences begin and end: a text comes in, byte ranges trimmed of white space go out, in order, covering every
//! character that is not white space. No model and no language is asked for; the repairs know English and Indonesian.

use std::ops::Range;
use unicode_segmentation::UnicodeSegmentation;

/// Longest sentence in characters; a longer one is cut at a semicolon, a comma or a space.
pub const MAX_CHARS: usize = 400;

/// A line of at least this many bytes was broken by its width, so that the sentence goes on in the next line.
const WRAPPED_LINE: usize = 40;

/// Abbreviations that never end a sentence, in lower case and without their full stop.
const ABBREVIATIONS: &[&str] = &[
    "a.n", "adm", "al", "approx", "art", "bpk", "capt", "cf", "ch", "cmdr", "col", "d.a", "dept", "dr", "dra", "drs",
    "e.g", "ed", "eds", "eq", "est", "fig", "figs", "gen", "gov", "hj", "hlm", "hon", "i.e", "ir", "jl", "jln", "kab",
    "kec", "kel", "kepmen", "lt", "mr", "mrs", "ms", "mt", "mx", "n.b", "ny", "p", "perpres", "pp", "pres", "prof",
    "prov", "ps", "r.a", "ref", "refs", "rep", "rev", "s.d", "sdr", "sdri", "sec", "sen", "sgt", "st", "tab", "tgl",
    "tn", "u.p", "viz", "vol", "vs", "yth",
];

/// Abbreviations that end no sentence when a number follows.
const BEFORE_NUMBER: &[&str] = &[
    "apr", "april", "aug", "dec", "feb", "jan", "jul", "jun", "mar", "no", "nos", "nov", "nr", "nomor", "oct", "okt",
    "ps", "rp", "sep", "sept", "ver", "v",
];

/// The sentences of running text.
pub fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut blank_line = false;
    for (start, part) in text.split_sentence_bound_indices() {
        let range = trimmed(text, start..start + part.len());
        if range.is_empty() {
            blank_line |= part.contains('\n');
            continue;
        }
        match found.last_mut() {
            Some(last) if !blank_line && joins(text, last, &range) => last.end = range.end,
            _ => found.push(range),
        }
        blank_line = false;
    }
    found.into_iter().flat_map(|range| bounded(text, range)).collect()
}

/// The sentences of running text, each with its first character and one past its last, where the text's own first
/// character is number `first`.
pub fn placed(text: &str, first: u32) -> Vec<(Range<usize>, (u32, u32))> {
    let (mut byte, mut at) = (0, first);
    let mut until = |to: usize| {
        at += text[byte..to].chars().count() as u32;
        byte = to;
        at
    };
    let place = |range: Range<usize>| {
        let (start, end) = (until(range.start), until(range.end));
        (range, (start, end))
    };
    sentences(text).into_iter().map(place).collect()
}

/// The lines of program text or a table.
pub fn lines(text: &str) -> Vec<Range<usize>> {
    let mut start = 0;
    let mut found = Vec::new();
    for line in text.split_inclusive('\n') {
        let range = trimmed(text, start..start + line.len());
        start += line.len();
        if !range.is_empty() {
            found.extend(bounded(text, range));
        }
    }
    found
}

/// A range without white space at its ends.
pub fn trimmed(text: &str, range: Range<usize>) -> Range<usize> {
    let part = &text[range.clone()];
    let end = range.start + part.trim_end().len();
    let start = range.start + (part.len() - part.trim_start().len());
    start.min(end)..end
}

/// Whether what the Unicode rules took for the next sentence still belongs to the last one.
fn joins(text: &str, last: &Range<usize>, next: &Range<usize>) -> bool {
    let before = &text[last.clone()];
    let after = &text[next.clone()];
    let Some(first) = after.chars().find(|c| !matches!(c, '"' | '\'' | '(' | '[' | '“' | '‘' | '«')) else {
        return true;
    };
    let ends = ends_sentence(before);
    let gap = &text[last.end..next.start];
    if gap.contains('\n') {
        // The last line of `before`, its end being the end of a line.
        let line = before.rfind('\n').map_or(before, |at| &before[at + 1..]);
        return if is_list_item(after) {
            false
        } else if ends {
            abbreviates(before, first)
        } else {
            line.len() >= WRAPPED_LINE || first.is_lowercase()
        };
    }
    // `"Why?" she said` and the tail of a range or an ellipsis.
    if first.is_lowercase() || (!after.chars().any(char::is_alphanumeric)) {
        return true;
    }
    abbreviates(before, first)
}

fn ends_sentence(text: &str) -> bool {
    text.trim_end_matches(['"', '\'', ')', ']', '”', '’', '»', '*', '_'])
        .ends_with(['.', '!', '?', '…', ':', '。', '！', '？'])
}

/// Whether a line opens an item of a list: a bullet, or a number with a full stop or a bracket.
fn is_list_item(line: &str) -> bool {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    if rest.len() < line.len() {
        return line.len() - rest.len() <= 3 && (rest.starts_with(". ") || rest.starts_with(") "));
    }
    ["- ", "* ", "+ ", "• ", "– ", "— "].iter().any(|bullet| line.starts_with(bullet))
}

/// Whether the full stop at the end of `before` is that of an abbreviation, an initial or a numbered item.
fn abbreviates(before: &str, next: char) -> bool {
    let Some(stem) = before.strip_suffix('.') else {
        return false;
    };
    let at = stem.rfind(|c: char| c.is_whitespace()).map_or(0, |at| at + 1);
    // Another white space character may be longer than one byte.
    let at = (at..stem.len()).find(|at| stem.is_char_boundary(*at)).unwrap_or(stem.len());
    let word = stem[at..].trim_start_matches(['(', '[', '"', '“', '\'', '-', '/']);
    if word.is_empty() {
        return false;
    }
    // `1.` or `a.` opens an item; nothing stands before it in its sentence.
    if at == 0 && word.chars().count() <= 2 && word.chars().all(char::is_alphanumeric) {
        return true;
    }
    if word.len() > 12 {
        return false;
    }
    let lower = word.to_lowercase();
    if ABBREVIATIONS.contains(&lower.as_str()) {
        return true;
    }
    if next.is_numeric() && BEFORE_NUMBER.contains(&lower.as_str()) {
        return true;
    }
    is_initial(word)
        && stem[..at]
            .split_whitespace()
            .next_back()
            .is_some_and(|name| name.ends_with('.') || name.starts_with(char::is_uppercase))
}

/// `J`, and `J.R` of `J.R.`.
fn is_initial(word: &str) -> bool {
    word.split('.').all(|part| {
        let mut chars = part.chars();
        chars.next().is_some_and(char::is_uppercase) && chars.next().is_none()
    })
}

/// A range, cut where it passes [`MAX_CHARS`].
fn bounded(text: &str, range: Range<usize>) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut rest = range;
    while rest.len() > MAX_CHARS {
        let part = &text[rest.clone()];
        let Some((limit, _)) = part.char_indices().nth(MAX_CHARS) else {
            break;
        };
        let cut = rest.start + cut_before(&part[..limit]);
        let first = trimmed(text, rest.start..cut);
        if !first.is_empty() {
            parts.push(first);
        }
        rest = trimmed(text, cut..rest.end);
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

/// Where a window of text is best cut: after the last semicolon, else comma, else space of its later part.
fn cut_before(window: &str) -> usize {
    let late = |at: &usize| *at > window.len() / 3;
    let after = |mark: &str| window.rfind(mark).map(|at| at + mark.len()).filter(late);
    after("; ")
        .or_else(|| after(", "))
        .or_else(|| window.rfind(char::is_whitespace).filter(late))
        .unwrap_or(window.len())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters() {
        let text = "Ça va. Très bien.";
        let places: Vec<_> = placed(text, 10).into_iter().map(|(range, place)| (&text[range], place)).collect();
        assert_eq!(places, [("Ça va.", (10, 16)), ("Très bien.", (17, 27))]);
    }
    use proptest::prelude::*;

    fn split(text: &str) -> Vec<&str> {
        sentences(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn full_stops_of_abbreviations_end_nothing() {
        for whole in [
            "Dr. Smith met Mrs. Jones at St. Mary's.",
            "Use a join, e.g. Postgres hash joins, here.",
            "See No. 5 and Fig. 3 on pp. 10 of Vol. II.",
            "J. R. R. Tolkien wrote it.",
            "It rose 3.14 percent in Jan. 2020.",
            "He waited... and then left.",
            "\"Is it over?\" she asked.",
            "Surat dikirim ke Jl. Sudirman No. 10 oleh Bpk. Ahmad.",
            "Menurut Prof. Dr. Ir. Budi Santoso, hal itu benar.",
            "1. Open the lid.",
        ] {
            assert_eq!(split(whole), [whole]);
        }
    }

    #[test]
    fn sentences_end_where_they_end() {
        assert_eq!(split("One is here. Two is \"there.\" Three!"), ["One is here.", "Two is \"there.\"", "Three!"]);
        assert_eq!(split("It failed (badly.) Then it worked."), ["It failed (badly.)", "Then it worked."]);
        assert_eq!(split("Say no. Then leave."), ["Say no.", "Then leave."]);
        assert_eq!(
            split("Barang rusak dapat dikembalikan. Pengembalian dana memakan waktu 5 hari."),
            ["Barang rusak dapat dikembalikan.", "Pengembalian dana memakan waktu 5 hari."]
        );
        assert_eq!(split("它很好。我们走吧。"), ["它很好。", "我们走吧。"]);
    }

    #[test]
    fn a_wrapped_line_goes_on_and_a_short_one_ends() {
        assert_eq!(
            split("This line was broken at the width of the page by\nPostgres. End."),
            ["This line was broken at the width of the page by\nPostgres.", "End."]
        );
        assert_eq!(split("Name\nAddress\n- first\n- second"), ["Name", "Address", "- first", "- second"]);
        assert_eq!(split("a paragraph\n\nanother"), ["a paragraph", "another"]);
    }

    #[test]
    fn a_long_sentence_is_cut_at_a_semicolon_a_comma_or_a_space() {
        let clause = "word ".repeat(50);
        let text = format!("{clause}; {clause}, {clause}{}", "x".repeat(900));
        let parts = split(&text);
        assert!(parts.iter().all(|part| part.chars().count() <= MAX_CHARS));
        assert!(parts[0].ends_with(';') && parts[1].ends_with(','), "{parts:?}");
    }

    #[test]
    fn code_is_split_by_line() {
        let text = "select 1;\n\n  -- e.g. two. three\n";
        let found: Vec<_> = lines(text).into_iter().map(|range| &text[range]).collect();
        assert_eq!(found, ["select 1;", "-- e.g. two. three"]);
    }

    proptest! {
        #[test]
        fn sentences_cover_all_but_white_space(text in "([a-zA-Z.!?\"; \n]|\\PC){0,200}") {
            for ranges in [sentences(&text), lines(&text)] {
                let mut at = 0;
                for range in ranges {
                    prop_assert!(text[at..range.start].trim().is_empty());
                    prop_assert!(!range.is_empty());
                    prop_assert_eq!(text[range.clone()].trim(), &text[range.clone()]);
                    at = range.end;
                }
                prop_assert!(text[at..].trim().is_empty());
            }
        }
    }
}
