//! Where a passage says what a statement says.

use crate::core::prompt::words;
use crate::core::sentence;
use std::collections::{HashMap, HashSet};

/// Most neighbouring sentences that support a statement together.
const RUN: usize = 3;

/// What a further sentence costs: it has to bring at least this share of the statement.
const FURTHER: f64 = 0.15;

/// Where a passage supports a statement: the characters of one to three neighbouring sentences that share its words
/// best, rare words counting more; `None` where no word is shared.
pub fn locate(statement: &str, passage: &str) -> Option<(usize, usize)> {
    let wanted: HashSet<String> = words::keys(statement).collect();
    let sentences = sentence::sentences(passage);
    let shared: Vec<HashSet<String>> = sentences
        .iter()
        .map(|range| words::keys(&passage[range.clone()]).filter(|key| wanted.contains(key)).collect())
        .collect();
    let mut with: HashMap<&str, usize> = HashMap::new();
    for key in shared.iter().flatten() {
        *with.entry(key).or_default() += 1;
    }
    let rarity = |key: &str| {
        let with = with.get(key).copied().unwrap_or_default();
        words::weight(key) * (1.0 + sentences.len() as f64 / with.max(1) as f64).ln()
    };
    // In the order of the statement's keys, as sums of the same numbers in another order may differ in the last bit.
    let mut all: Vec<&str> = with.keys().copied().collect();
    all.sort_unstable();
    let whole: f64 = all.iter().map(|key| rarity(key)).sum();
    let mut best: Option<(f64, usize, std::ops::Range<usize>)> = None;
    for first in 0..sentences.len() {
        for last in first..sentences.len().min(first + RUN) {
            // A run begins and ends with a sentence that shares something.
            if shared[first].is_empty() || shared[last].is_empty() {
                continue;
            }
            let has = |key: &&&str| shared[first..=last].iter().any(|keys| keys.contains(**key));
            let covered: f64 = all.iter().filter(has).map(|key| rarity(key)).sum();
            let score = covered / whole - FURTHER * (last - first) as f64;
            let range = sentences[first].start..sentences[last].end;
            let better = best
                .as_ref()
                .is_none_or(|(most, length, _)| score > most + 1e-9 || score > most - 1e-9 && range.len() < *length);
            if better {
                best = Some((score, range.len(), range));
            }
        }
    }
    let (_, _, range) = best?;
    let start = passage[..range.start].chars().count();
    Some((start, start + passage[range].chars().count()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSAGE: &str = "Our shop opened in 1998. Réfunds are paid within five days. Shipping to the islands costs \
        extra. Shipping is free from 50 euros. Gifts can be wrapped. We answer letters.";

    fn located<'a>(statement: &str, passage: &'a str) -> Option<&'a str> {
        let (start, end) = locate(statement, passage)?;
        let byte = |place| passage.char_indices().map(|(at, _)| at).nth(place).unwrap_or(passage.len());
        Some(&passage[byte(start)..byte(end)])
    }

    #[test]
    fn the_sentence_that_supports_is_found() {
        for (statement, sentence) in [
            ("The shop has existed since 1998 [1].", "Our shop opened in 1998."),
            ("You get a RÉFUND in five days.", "Réfunds are paid within five days."),
            ("Orders of 50 euros ship free.", "Shipping is free from 50 euros."),
            ("There is gift wrapping for gifts.", "Gifts can be wrapped."),
        ] {
            assert_eq!(located(statement, PASSAGE), Some(sentence), "{statement}");
        }
        assert_eq!(located("退款需要五天", "我们很好。退款需要五天。再见。"), Some("退款需要五天。"));
    }

    #[test]
    fn neighbours_join_where_each_brings_something() {
        assert_eq!(
            located("Shipping costs extra on islands, but is free from 50 euros.", PASSAGE),
            Some("Shipping to the islands costs extra. Shipping is free from 50 euros.")
        );
    }

    #[test]
    fn nothing_shared_is_nothing_found() {
        assert_eq!(locate("Zebras graze.", PASSAGE), None);
        assert_eq!(locate("", PASSAGE), None);
        assert_eq!(locate("Refunds", ""), None);
    }

    proptest! {
        #[test]
        fn a_sentence_of_the_passage_is_found_in_it(statement in "\\PC{0,40}", passage in "([a-z]{1,8}[ .\n]|\\PC){0,60}") {
            let length = passage.chars().count();
            if let Some((start, end)) = locate(&statement, &passage) {
                prop_assert!(start < end && end <= length);
            }
            for range in sentence::sentences(&passage) {
                let sentence = &passage[range];
                prop_assert_eq!(locate(sentence, &passage).is_some(), words::keys(sentence).next().is_some());
            }
        }
    }
}
