//! The sentences of a chunk and their embeddings in a compact form, read for candidates only.
//!
//! Each sentence: first character and one past the last (`u32` little-endian each, counted from the document's start),
//! the scale (`f32`), then one signed byte for each dimension; a number is its byte times the scale.

/// A sentence with its similarity to a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scored {
    /// First character in the document.
    pub start: u32,
    /// One past the last.
    pub end: u32,
    /// Cosine similarity to the query.
    pub similarity: f32,
}

const HEAD: usize = 12;

/// Adds a sentence.
pub fn push(packed: &mut Vec<u8>, start: u32, end: u32, embedding: &[f32]) {
    let largest = embedding.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
    packed.extend_from_slice(&start.to_le_bytes());
    packed.extend_from_slice(&end.to_le_bytes());
    packed.extend_from_slice(&scale.to_le_bytes());
    packed.extend(embedding.iter().map(|value| (value / scale).round() as i8 as u8));
}

/// The sentences with their similarity to a query of the same dimensions; nothing where the bytes do not fit.
pub fn similarities<'a>(packed: &'a [u8], query: &'a [f32]) -> impl Iterator<Item = Scored> + 'a {
    packed.chunks_exact(HEAD + query.len().max(1)).map(move |sentence| {
        let number =
            |at: usize| u32::from_le_bytes([sentence[at], sentence[at + 1], sentence[at + 2], sentence[at + 3]]);
        let sum: f32 = sentence[HEAD..].iter().zip(query).map(|(byte, value)| f32::from(*byte as i8) * value).sum();
        Scored { start: number(0), end: number(4), similarity: sum * f32::from_bits(number(8)) }
    })
}

/// Packed sentences with their offsets moved, for a chunk whose place in the document changed.
pub fn moved(packed: &[u8], dimensions: usize, by: i64) -> Vec<u8> {
    let mut out = packed.to_vec();
    for sentence in out.chunks_exact_mut(HEAD + dimensions.max(1)) {
        for at in [0, 4] {
            let old = u32::from_le_bytes([sentence[at], sentence[at + 1], sentence[at + 2], sentence[at + 3]]);
            let new = (i64::from(old) + by).clamp(0, i64::from(u32::MAX)) as u32;
            sentence[at..at + 4].copy_from_slice(&new.to_le_bytes());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(seed: u32, n: usize) -> Vec<f32> {
        let raw: Vec<f32> = (0..n).map(|i| ((i as u32 * 7919 + seed * 104_729) % 1000) as f32 / 500.0 - 1.0).collect();
        let length = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
        raw.iter().map(|x| x / length).collect()
    }

    #[test]
    fn similarities_are_those_of_the_embeddings_to_two_digits() {
        let query = unit(1, 384);
        let mut packed = Vec::new();
        for seed in 2..6 {
            push(&mut packed, seed * 10, seed * 10 + 5, &unit(seed, 384));
        }
        for (scored, seed) in similarities(&packed, &query).zip(2..) {
            let exact: f32 = unit(seed, 384).iter().zip(&query).map(|(a, b)| a * b).sum();
            assert!((scored.similarity - exact).abs() < 0.01, "{} {exact}", scored.similarity);
            assert_eq!((scored.start, scored.end), (seed * 10, seed * 10 + 5));
        }
    }

    #[test]
    fn moving_changes_offsets_alone() {
        let mut packed = Vec::new();
        push(&mut packed, 10, 20, &unit(3, 8));
        let moved = moved(&packed, 8, -4);
        let query = unit(1, 8);
        let (old, new) = (similarities(&packed, &query).next().unwrap(), similarities(&moved, &query).next().unwrap());
        assert_eq!((new.start, new.end, new.similarity), (6, 16, old.similarity));
    }
}
