//! Putting evidence together: scores scaled and added, near-duplicates dropped, neighbours merged.
//!
//! A convex combination of scores rather than of ranks, each divided by its theoretical maximum, after Bruch, Gai and
//! Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval" (2022). Scaled so, rather than over a query's own
//! candidates, scores of different queries can be compared; measured on our own sets, see `docs/search.md`.

use std::collections::HashMap;

/// A chunk's identifier.
pub type Id = [u8; 16];

/// How candidates are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// By embedding and words together.
    Hybrid,
    /// By embedding alone.
    Vector,
    /// By words alone.
    Text,
}

/// What is known of a candidate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evidence {
    /// Cosine similarity of the chunk.
    pub chunk: f64,
    /// Cosine similarity of its best sentence.
    pub sentence: f64,
    /// BM25 score.
    pub text: f64,
    /// BM25 score as a share of the most that any chunk could have for this query.
    pub words: f64,
}

/// Weight of the best sentence in a candidate's similarity; the rest is the chunk's own.
const SENTENCE: f64 = 0.75;

impl Evidence {
    /// Similarity of the chunk and its best sentence, 0 to 1.
    fn similarity(&self) -> f64 {
        (SENTENCE * self.sentence + (1.0 - SENTENCE) * self.chunk).clamp(0.0, 1.0)
    }
}

/// A candidate with its place in each list and its score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// The chunk.
    pub id: Id,
    /// 0 to 1 for a hybrid search, else the similarity or BM25 score itself.
    pub score: f64,
    /// Place by embedding from 1, where it is among the candidates of that list.
    pub vector_rank: Option<u32>,
    /// Place by words from 1, likewise.
    pub text_rank: Option<u32>,
}

/// Ranks candidates: similarity and words, 0 to 1 each, are added with their weights.
///
/// `vector` and `text` are the two lists of candidates, best first.
pub fn fuse(
    evidence: &HashMap<Id, Evidence>,
    vector: &[Id],
    text: &[Id],
    method: Method,
    vector_weight: f64,
) -> Vec<Ranked> {
    let place = |list: &[Id]| -> HashMap<Id, u32> { list.iter().copied().zip(1..).collect() };
    let (vector_places, text_places) = (place(vector), place(text));
    let mut ranked: Vec<Ranked> = evidence
        .iter()
        .map(|(id, e)| {
            let score = match method {
                Method::Vector => e.chunk,
                Method::Text => e.text,
                Method::Hybrid => vector_weight * e.similarity() + (1.0 - vector_weight) * e.words.clamp(0.0, 1.0),
            };
            Ranked {
                id: *id,
                score,
                vector_rank: vector_places.get(id).copied(),
                text_rank: text_places.get(id).copied(),
            }
        })
        .collect();
    // The id settles ties, so that the same query gives the same order twice.
    ranked.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
    ranked
}

/// Two chunks that share this much of their terms (Jaccard) say the same.
const SAME: f64 = 0.9;

/// Whether two chunks say the same, given the keys of their terms in order. Most pairs are told apart by their first few
/// keys.
pub fn is_same(a: &[i64], b: &[i64]) -> bool {
    let all = a.len() + b.len();
    // Jaccard is (all - apart) / (all + apart), where `apart` keys are in one of the two alone.
    let most_apart = (all as f64 * (1.0 - SAME) / (1.0 + SAME)) as usize;
    if a.len().abs_diff(b.len()) > most_apart {
        return false;
    }
    let (mut i, mut j, mut apart) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        let order = a[i].cmp(&b[j]);
        i += usize::from(order.is_le());
        j += usize::from(order.is_ge());
        apart += usize::from(order.is_ne());
        if apart > most_apart {
            return false;
        }
    }
    apart + (a.len() - i) + (b.len() - j) <= most_apart
}

/// A chunk in its document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The document.
    pub source: Id,
    /// Place of the chunk in it.
    pub ordinal: i32,
}

/// Groups the best candidates into at most `k` passages: a chunk next to one that is taken joins it, up to `most`
/// chunks. Each group lists indexes into `places`, the best first.
pub fn group(places: &[Place], k: usize, most: usize) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (at, place) in places.iter().enumerate() {
        let joined = groups.iter().position(|group| {
            group.len() < most
                && group.iter().any(|member| {
                    places[*member].source == place.source && places[*member].ordinal.abs_diff(place.ordinal) == 1
                })
        });
        match joined {
            Some(joined) => groups[joined].push(at),
            None if groups.len() < k => groups.push(vec![at]),
            None => {}
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u8) -> Id {
        [n; 16]
    }

    #[test]
    fn a_chunk_that_both_find_comes_before_one_that_either_finds() {
        let evidence = HashMap::from([
            (id(1), Evidence { chunk: 0.8, sentence: 0.8, text: 0.0, words: 0.0 }),
            (id(2), Evidence { chunk: 0.7, sentence: 0.7, text: 9.0, words: 0.6 }),
            (id(3), Evidence { chunk: 0.1, sentence: 0.1, text: 10.0, words: 0.7 }),
        ]);
        let ranked = fuse(&evidence, &[id(1), id(2)], &[id(3), id(2)], Method::Hybrid, 0.5);
        assert_eq!(ranked[0].id, id(2));
        assert_eq!((ranked[0].vector_rank, ranked[0].text_rank), (Some(2), Some(2)));
    }

    #[test]
    fn no_words_found_still_ranks_by_embedding() {
        let evidence = HashMap::from([
            (id(1), Evidence { chunk: 0.3, sentence: 0.3, ..Evidence::default() }),
            (id(2), Evidence { chunk: 0.6, sentence: 0.6, ..Evidence::default() }),
        ]);
        assert_eq!(fuse(&evidence, &[id(2), id(1)], &[], Method::Hybrid, 0.5)[0].id, id(2));
    }

    #[test]
    fn neighbours_join_and_others_do_not() {
        let place = |source: u8, ordinal| Place { source: id(source), ordinal };
        let places = [place(1, 4), place(2, 4), place(1, 5), place(1, 9), place(1, 3), place(1, 6)];
        assert_eq!(group(&places, 2, 3), [vec![0, 2, 4], vec![1]]);
        assert_eq!(group(&places, 9, 3), [vec![0, 2, 4], vec![1], vec![3], vec![5]]);
    }

    proptest! {
        #[test]
        fn scores_are_between_0_and_1_and_descend(
            scores in proptest::collection::vec((-1.0f64..1.0, -1.0f64..1.0, 0.0f64..1.0), 1..40),
            weight in 0.0f64..1.0,
        ) {
            let evidence: HashMap<Id, Evidence> = scores.iter().enumerate()
                .map(|(n, (chunk, sentence, words))| (id(n as u8), Evidence { chunk: *chunk, sentence: *sentence, text: *words * 50.0, words: *words })).collect();
            let ranked = fuse(&evidence, &[], &[], Method::Hybrid, weight);
            prop_assert_eq!(ranked.len(), evidence.len());
            prop_assert!(ranked.windows(2).all(|pair| pair[0].score >= pair[1].score));
            prop_assert!(ranked.iter().all(|r| (-1e-9..=1.0 + 1e-9).contains(&r.score)));
        }

        #[test]
        fn chunks_are_the_same_by_the_share_of_common_terms(mut a in proptest::collection::vec(0i64..60, 0..60), drop in 0usize..8, more in proptest::collection::vec(60i64..70, 0..4)) {
            a.sort_unstable(); a.dedup();
            let mut b: Vec<i64> = a.iter().copied().skip(drop).chain(more).collect();
            b.sort_unstable(); b.dedup();
            let common = b.iter().filter(|key| a.contains(key)).count();
            let all = a.len() + b.len() - common;
            let share = if all == 0 { 1.0 } else { common as f64 / all as f64 };
            prop_assume!((share - SAME).abs() > 1e-9);
            prop_assert_eq!(is_same(&a, &b), share > SAME);
            prop_assert_eq!(is_same(&a, &b), is_same(&b, &a));
        }
    }
}
