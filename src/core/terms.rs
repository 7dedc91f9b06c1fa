//! Terms of a chunk in a compact form, and BM25 over them (Robertson and Zaragoza, "The Probabilistic Relevance
//! Framework: BM25 and Beyond", 2009; the variant of Lucene, whose idf is never negative).

/// Saturation of a term's count. This and [`B`] are what is usual for passages: whole documents, whose lengths differ
/// far more than those of chunks, ask for 1.2 and 0.75.
pub const K1: f64 = 0.9;
/// Weight of a chunk's length.
pub const B: f64 = 0.4;

/// Stands for one term of one configuration in one workspace: FNV-1a with a final mix (that of SplitMix64).
///
/// The workspace is part of it, so that an index over the keys holds a separate list for each workspace.
pub fn key(workspace: &[u8; 16], config: &str, lexeme: &str) -> i64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in workspace.iter().chain(config.as_bytes()).chain(&[0]).chain(lexeme.as_bytes()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (hash ^ (hash >> 31)) as i64
}

/// Lays terms out: the keys in order, eight bytes each, then how often each occurs, a byte each.
pub fn pack(mut terms: Vec<(i64, u32)>) -> Vec<u8> {
    terms.sort_unstable();
    terms.dedup_by_key(|term| term.0);
    let mut bytes = Vec::with_capacity(terms.len() * 9);
    for (key, _) in &terms {
        bytes.extend_from_slice(&key.to_le_bytes());
    }
    bytes.extend(terms.iter().map(|(_, count)| (*count).min(255) as u8));
    bytes
}

/// The keys in packed terms.
pub fn keys(packed: &[u8]) -> impl Iterator<Item = i64> + '_ {
    packed[..packed.len() / 9 * 8].chunks_exact(8).map(read)
}

fn read(bytes: &[u8]) -> i64 {
    i64::from_le_bytes(bytes.try_into().unwrap_or_default())
}

/// How often a key occurs in packed terms; 0 where it does not.
pub fn count(packed: &[u8], key: i64) -> u8 {
    let length = packed.len() / 9;
    let (mut low, mut high) = (0, length);
    while low < high {
        let middle = (low + high) / 2;
        match read(&packed[middle * 8..middle * 8 + 8]).cmp(&key) {
            std::cmp::Ordering::Equal => return packed[length * 8 + middle],
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    0
}

/// Weight of a term that `with` of `all` chunks contain.
pub fn idf(all: f64, with: f64) -> f64 {
    (1.0 + (all - with + 0.5) / (with + 0.5)).ln()
}

/// Score of one term in one chunk.
pub fn score(idf: f64, count: f64, length: f64, average_length: f64) -> f64 {
    idf * count * (K1 + 1.0) / (count + K1 * (1.0 - B + B * length / average_length.max(1.0)))
}

/// What the score of one term stays below, however often it occurs.
pub fn most(idf: f64) -> f64 {
    idf * (K1 + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_same_term_has_another_key_in_another_workspace_or_configuration() {
        let one = key(&[1; 16], "english", "refund");
        assert_ne!(one, key(&[2; 16], "english", "refund"));
        assert_ne!(one, key(&[1; 16], "simple", "refund"));
        assert_ne!(key(&[1; 16], "a", "bc"), key(&[1; 16], "ab", "c"));
    }

    #[test]
    fn idf_is_positive_even_for_a_term_in_every_chunk() {
        assert!(idf(10.0, 10.0) > 0.0);
        assert!(idf(10.0, 1.0) > idf(10.0, 5.0));
    }

    #[test]
    fn no_score_passes_the_most() {
        for count in [1.0, 3.0, 255.0] {
            for length in [1.0, 100.0, 10_000.0] {
                assert!(score(2.0, count, length, 100.0) < most(2.0));
            }
        }
    }

    #[test]
    fn damaged_bytes_are_read_without_a_panic() {
        for length in 0..40 {
            let bytes = vec![7; length];
            let _ = count(&bytes, 3);
            let _ = keys(&bytes).count();
        }
    }

    proptest! {
        #[test]
        fn every_packed_term_is_found_with_its_count(terms in proptest::collection::btree_map(any::<i64>(), 1u32..300, 0..60), other in any::<i64>()) {
            let packed = pack(terms.iter().map(|(key, count)| (*key, *count)).collect());
            prop_assert_eq!(keys(&packed).collect::<Vec<_>>(), terms.keys().copied().collect::<Vec<_>>());
            for (key, expected) in &terms {
                prop_assert_eq!(u32::from(count(&packed, *key)), (*expected).min(255));
            }
            if !terms.contains_key(&other) {
                prop_assert_eq!(count(&packed, other), 0);
            }
        }
    }
}
