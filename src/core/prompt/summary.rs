//! Summaries made without a model, in any language: sentences are chosen by the words they share with the whole text
//! (the centroid of Radev et al., "Centroid-based summarization of multiple documents", 2004), never written.

use crate::core::chat::Role;
use crate::core::prompt::frame::visible;
use crate::core::prompt::words;
use crate::core::sentence;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// Two sentences that share this much of the shorter one's words say the same.
const SAME: f64 = 0.7;

/// A word in more than this share of the sentences is grammar, once there are enough sentences to tell.
const EVERYWHERE: f64 = 0.4;

/// Most sentences that are looked at: the rest of a longer text adds little and costs much.
const MOST: usize = 2000;

/// Byte ranges of the most central sentences, in order, of at most `max_chars` characters together, the spaces between
/// them included. A sentence that is longer than all the room is cut at a word's end.
pub fn extract(text: &str, max_chars: usize) -> Vec<(usize, usize)> {
    let mut sentences = sentence::sentences(text);
    sentences.truncate(MOST);
    let keys: Vec<HashSet<String>> =
        sentences.iter().map(|range| words::keys(&text[range.clone()]).collect()).collect();
    let mut with: HashMap<&str, usize> = HashMap::new();
    for key in keys.iter().flatten() {
        *with.entry(key).or_default() += 1;
    }
    let count = sentences.len() as f64;
    let weight = |key: &String| {
        let share = with.get(key.as_str()).copied().unwrap_or_default() as f64;
        if count >= 5.0 && share / count > EVERYWHERE { 0.0 } else { words::weight(key) * share.sqrt() }
    };
    let score = |at: usize| {
        // In a fixed order, as a sum depends on it in its last bit.
        let mut weights: Vec<f64> = keys[at].iter().map(weight).collect();
        weights.sort_by(f64::total_cmp);
        let length = keys[at].len() as f64;
        // Long sentences share more by length alone; the text's beginning says what it is about.
        let first = if at == 0 { 1.3 } else { 1.0 + 0.1 * (1.0 - at as f64 / count) };
        weights.iter().sum::<f64>() / (length + 4.0).powf(0.7) * first
    };
    let scores: Vec<f64> = (0..sentences.len()).map(score).collect();
    let mut order: Vec<usize> = (0..sentences.len()).filter(|at| !keys[*at].is_empty()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    let mut chosen: Vec<usize> = Vec::new();
    let mut left = max_chars;
    for at in &order {
        let length = text[sentences[*at].clone()].chars().count() + usize::from(!chosen.is_empty());
        if length <= left && chosen.iter().all(|other| !same(&keys[*other], &keys[*at])) {
            chosen.push(*at);
            left -= length;
        }
    }
    chosen.sort_unstable();
    if let (true, Some(best)) = (chosen.is_empty(), order.first()) {
        let best = &sentences[*best];
        let end = best.start + cut(&text[best.clone()], max_chars).len();
        return if end > best.start { vec![(best.start, end)] } else { Vec::new() };
    }
    chosen.into_iter().map(|at| (sentences[at].start, sentences[at].end)).collect()
}

fn same(a: &HashSet<String>, b: &HashSet<String>) -> bool {
    a.intersection(b).count() as f64 >= SAME * a.len().min(b.len()) as f64
}

/// The beginning of a text, of at most so many characters, up to a word's end where there is one in its later half.
fn cut(text: &str, max_chars: usize) -> &str {
    let Some((end, next)) = text.char_indices().nth(max_chars) else { return text.trim_end() };
    let part = &text[..end];
    if next.is_whitespace() {
        return part.trim_end();
    }
    let space = part.rfind(char::is_whitespace).filter(|at| *at >= part.len() / 2);
    part[..space.unwrap_or(end)].trim_end()
}

/// The most central sentences as one line.
fn short(text: &str, max_chars: usize) -> String {
    let line = visible(text).split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= max_chars {
        return line;
    }
    extract(&line, max_chars).into_iter().map(|(start, end)| &line[start..end]).collect::<Vec<_>>().join(" ")
}

/// Characters of a turn in a rolling summary while it is new, and when it makes room for newer ones.
const NEW: usize = 280;
const OLD: usize = 100;

/// The rolling summary: the previous one and what was said since, a line each, in at most `max_chars` characters.
///
/// Where room is short the oldest lines are shortened first, then dropped.
pub fn fold(previous: Option<&str>, turns: &[(Role, &str)], max_chars: usize) -> String {
    let previous = previous.unwrap_or_default();
    let mut lines: Vec<String> = Vec::new();
    for line in previous.lines().map(str::trim).filter(|line| !line.is_empty()) {
        // What a model wrote may be one long paragraph, of which the parts are dropped one by one.
        if line.chars().count() <= NEW + OLD {
            lines.push(line.to_owned());
        } else {
            lines.extend(sentence::sentences(line).into_iter().map(|range: Range<usize>| line[range].to_owned()));
        }
    }
    for (role, text) in turns {
        let said = short(text, NEW);
        if !said.is_empty() {
            let who = match role {
                Role::User => "User asked",
                Role::Assistant => "Assistant answered",
            };
            lines.push(format!("{who}: {said}"));
        }
    }
    let mut lengths: Vec<usize> = lines.iter().map(|line| line.chars().count()).collect();
    let mut total: usize = lengths.iter().map(|length| length + 1).sum::<usize>().saturating_sub(1);
    for (line, length) in lines.iter_mut().zip(&mut lengths) {
        if total <= max_chars {
            break;
        }
        if *length > OLD {
            *line = cut(line, OLD).to_owned();
            let shorter = line.chars().count();
            total -= *length - shorter;
            *length = shorter;
        }
    }
    let mut first = 0;
    while total > max_chars && first + 1 < lines.len() {
        total -= lengths[first] + 1;
        first += 1;
    }
    let kept = lines.get(first..).unwrap_or_default().join("\n");
    cut(&kept, max_chars).to_owned()
}

/// Most characters of a title.
const TITLE: usize = 60;

/// A conversation's title, from its first question: its first sentence on one line, without markup or a mark at its end,
/// at most 60 characters; never empty for a text that is not blank.
pub fn title(question: &str) -> String {
    let seen = visible(question);
    let plain =
        seen.lines().map(without_markup).find(|line| line.chars().any(char::is_alphanumeric)).unwrap_or_default();
    let first = sentence::sentences(&plain).into_iter().map(|range| &plain[range]);
    // `1.` or `...` alone is no title.
    let first = first.into_iter().find(|part| part.chars().any(char::is_alphabetic)).unwrap_or(&plain);
    let title = cut(first, TITLE).trim_end_matches(|c: char| {
        c.is_whitespace()
            || matches!(c, '.' | ',' | ';' | ':' | '!' | '?' | '…' | '-' | '–' | '—')
            || matches!(c, '。' | '，' | '、' | '；' | '：' | '！' | '？' | '؟' | '،' | '।')
    });
    if title.is_empty() {
        // Nothing but marks, or what nobody sees: better than nothing.
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let left = Some(words(&seen)).filter(|left| !left.is_empty()).unwrap_or_else(|| words(question));
        return left.chars().take(TITLE).collect::<String>().trim_end().to_owned();
    }
    title.to_owned()
}

/// A line of Markdown or HTML without its marks.
fn without_markup(line: &str) -> String {
    let line =
        line.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '#' | '>' | '-' | '*' | '+' | '`' | '~'));
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match c {
            '<' => match after.split_once('>') {
                Some((tag, after)) if tag.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/') => after,
                _ => {
                    plain.push(c);
                    after
                }
            },
            // Of a link its words stay.
            ']' if after.starts_with('(') => after.split_once(')').map_or(after, |(_, after)| after),
            '[' | ']' | '`' => after,
            _ => {
                plain.push(c);
                after
            }
        };
    }
    let words = plain.split_whitespace().map(|word| match word.trim_matches(['*', '_', '~']) {
        // A mark of arithmetic between its spaces is a word.
        "" if word == "*" => word,
        bare => bare,
    });
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "Postgres stores tables in pages of eight kilobytes. The weather was fine on the day. Every page \
        of a table holds rows, and a row never spans two pages. My cat likes fish. Every page of a table holds many rows, \
        and a row never spans two pages. Large rows are moved out of the table's pages into storage of their own. He left.";

    fn summary(text: &str, max: usize) -> Vec<&str> {
        extract(text, max).into_iter().map(|(start, end)| &text[start..end]).collect()
    }

    #[test]
    fn central_sentences_are_chosen_once_and_in_order() {
        assert_eq!(
            summary(TEXT, 200),
            [
                "Postgres stores tables in pages of eight kilobytes.",
                "Every page of a table holds many rows, and a row never spans two pages.",
                "Large rows are moved out of the table's pages into storage of their own."
            ]
        );
        assert_eq!(summary("一页有八千字节。一行不跨两页。猫喜欢鱼。", 9), ["一页有八千字节。"]);
        assert_eq!(summary("A sentence that is much too long for the room.", 20), ["A sentence that is"]);
        assert!(summary("", 20).is_empty() && summary("Some.", 0).is_empty());
    }

    #[test]
    fn a_rolling_summary_keeps_the_newest() {
        let turns = [(Role::User, "How do\nrefunds work?"), (Role::Assistant, "Within five days [1].")];
        let first = fold(None, &turns, 1000);
        assert_eq!(first, "User asked: How do refunds work?\nAssistant answered: Within five days [1].");
        let long = TEXT.repeat(3);
        let second = fold(Some(&first), &[(Role::User, &long), (Role::Assistant, "Yes.")], 1000);
        assert!(second.starts_with(&first) && second.ends_with("\nAssistant answered: Yes."), "{second}");
        let small = fold(Some(&second), &[(Role::User, "And shipping?")], 150);
        assert!(small.ends_with("Assistant answered: Yes.\nUser asked: And shipping?"), "{small}");
        assert!(!small.contains("refunds"));
        // A model's paragraph loses its beginning first.
        let prose = fold(Some(&long), &[(Role::User, "Last?")], 300);
        assert!(prose.ends_with("He left.\nUser asked: Last?") && prose.chars().count() <= 300, "{prose}");
        assert_eq!(fold(None, &[(Role::User, " ")], 100), "");
    }

    #[test]
    fn titles_are_short_and_plain() {
        for (question, title_) in [
            ("How do refunds work? And shipping?", "How do refunds work"),
            ("## **Bold** `my_table` [link](http://x) <b>x</b>:", "Bold my_table link x"),
            ("\n\n> - quoted...\nmore", "quoted"),
            (
                "Bagaimana cara mengembalikan barang yang sudah rusak ketika sampai di rumah saya",
                "Bagaimana cara mengembalikan barang yang sudah rusak ketika",
            ),
            ("退款需要几天？谢谢", "退款需要几天"),
            ("What is 2 * 3", "What is 2 * 3"),
            ("???", "???"),
            ("\u{200b}", "\u{200b}"),
            ("  ", ""),
        ] {
            assert_eq!(title(question), title_);
        }
    }

    proptest! {
        #[test]
        fn an_extract_is_whole_sentences_in_order_and_bounded(text in "([a-zé ]{1,12}[.!?\n] ?|\\PC){0,50}", max in 0usize..200) {
            let ranges = extract(&text, max);
            let mut at = 0;
            let mut chars = ranges.len().saturating_sub(1);
            for (start, end) in ranges {
                prop_assert!(at <= start && start < end);
                chars += text[start..end].chars().count();
                at = end;
            }
            prop_assert!(chars <= max);
        }

        #[test]
        fn a_rolling_summary_is_bounded(previous in "(\\PC|\n|[a-z. ]{20}){0,30}", turns in proptest::collection::vec("(\\PC|[a-z. ]{20}){0,40}", 0..6), max in 0usize..700) {
            let turns: Vec<_> = turns.iter().map(|turn| (Role::User, turn.as_str())).collect();
            prop_assert!(fold(Some(&previous), &turns, max).chars().count() <= max);
        }

        #[test]
        fn a_title_is_one_line_and_never_empty(question in "(\\PC|[a-z#*`<>\n.?\\[\\]() ]){0,90}") {
            let title = title(&question);
            prop_assert!(title.chars().count() <= TITLE && !title.contains('\n'));
            prop_assert_eq!(title.is_empty(), question.trim().is_empty());
        }
    }
}
