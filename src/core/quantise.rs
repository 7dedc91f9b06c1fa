//! One bit for each dimension of an embedding: a first pass over a large workspace that finds, among tens of thousands
//! of chunks, the few hundred worth comparing exactly.
//!
//! After RaBitQ (Gao and Long, 2024): the embedding is rotated at random, the signs are kept, and one factor makes the
//! estimate of its product with a query unbiased. The rotation is a fixed one (random signs and Walsh-Hadamard
//! transforms, twice), so that nothing has to be stored with the codes.

/// Rotates a vector in place.
fn rotate(vector: &mut [f32]) {
    let n = vector.len();
    let block = 1usize << n.trailing_zeros();
    let scale = 1.0 / (block as f32).sqrt();
    for round in 0..2u64 {
        for (at, value) in vector.iter_mut().enumerate() {
            if mix(round << 32 | at as u64) & 1 == 1 {
                *value = -*value;
            }
        }
        for part in vector.chunks_exact_mut(block) {
            hadamard(part);
            part.iter_mut().for_each(|value| *value *= scale);
        }
        // Deals the numbers of each block out over all blocks, so that the next transform mixes them.
        let blocks = n / block;
        if blocks > 1 {
            let old = vector.to_vec();
            for (at, value) in old.into_iter().enumerate() {
                vector[(at % block) * blocks + at / block] = value;
            }
        }
    }
}

/// The Walsh-Hadamard transform of a length that is a power of two.
fn hadamard(values: &mut [f32]) {
    let mut half = 1;
    while half < values.len() {
        for pair in values.chunks_exact_mut(half * 2) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// SplitMix64.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Bytes of a code: the signs, then the factor (`f32` little-endian).
pub fn code_size(dimensions: usize) -> usize {
    dimensions.div_ceil(8) + 4
}

/// Appends the code of an embedding of length 1.
pub fn encode(embedding: &[f32], codes: &mut Vec<u8>) {
    let mut rotated = embedding.to_vec();
    rotate(&mut rotated);
    let sum: f32 = rotated.iter().map(|value| value.abs()).sum();
    for eight in rotated.chunks(8) {
        codes.push(eight.iter().enumerate().fold(0, |byte, (bit, value)| byte | u8::from(*value > 0.0) << bit));
    }
    let factor = if sum > 0.0 { 1.0 / sum } else { 0.0 };
    codes.extend_from_slice(&factor.to_le_bytes());
}

/// A query, ready to be compared with codes: for each byte of a code what each of its values adds.
pub struct Probe {
    table: Vec<[i16; 256]>,
    scale: f32,
}

impl Probe {
    /// Prepares a query of length 1.
    pub fn new(query: &[f32]) -> Probe {
        let mut rotated = query.to_vec();
        rotate(&mut rotated);
        // Eight numbers add up to at most eight times the largest, which must fit in sixteen bits.
        let largest = rotated.iter().fold(f32::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
        let scale = largest / 4000.0;
        let table = rotated
            .chunks(8)
            .map(|eight| {
                let mut entries = [0; 256];
                for (byte, entry) in entries.iter_mut().enumerate() {
                    let sum: f32 = eight
                        .iter()
                        .enumerate()
                        .map(|(bit, value)| if byte >> bit & 1 == 1 { *value } else { -*value })
                        .sum();
                    *entry = (sum / scale) as i16;
                }
                entries
            })
            .collect();
        Probe { table, scale }
    }

    /// Estimated cosine similarity to each of the codes.
    pub fn estimates<'a>(&'a self, codes: &'a [u8]) -> impl Iterator<Item = f32> + 'a {
        let signs = self.table.len();
        codes.chunks_exact(signs + 4).map(move |code| {
            let sum: i32 =
                self.table.iter().zip(code).map(|(entries, byte)| i32::from(entries[usize::from(*byte)])).sum();
            let factor = f32::from_le_bytes([code[signs], code[signs + 1], code[signs + 2], code[signs + 3]]);
            sum as f32 * self.scale * factor
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(seed: u64, n: usize) -> Vec<f32> {
        let raw: Vec<f32> = (0..n as u64)
            .map(|at| (0..4).map(|k| mix(seed << 40 | at << 8 | k) as f32 / u64::MAX as f32 - 0.5).sum())
            .collect();
        let length = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
        raw.iter().map(|x| x / length).collect()
    }

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn rotation_keeps_products() {
        for n in [384, 768, 1000, 1536, 7] {
            let (mut a, mut b) = (unit(1, n), unit(2, n));
            let before = dot(&a, &b);
            rotate(&mut a);
            rotate(&mut b);
            assert!((dot(&a, &b) - before).abs() < 1e-4, "{n}");
            assert!((dot(&a, &a) - 1.0).abs() < 1e-4, "{n}");
        }
    }

    #[test]
    fn estimates_are_unbiased_and_near() {
        let query = unit(9, 384);
        let probe = Probe::new(&query);
        let mut codes = Vec::new();
        let vectors: Vec<Vec<f32>> = (0..400)
            .map(|seed| {
                let near = seed as f32 / 400.0;
                let mixed: Vec<f32> =
                    unit(seed + 10, 384).iter().zip(&query).map(|(x, q)| x * (1.0 - near) + q * near).collect();
                let length = dot(&mixed, &mixed).sqrt();
                mixed.iter().map(|x| x / length).collect()
            })
            .collect();
        vectors.iter().for_each(|vector| encode(vector, &mut codes));
        assert_eq!(codes.len(), 400 * code_size(384));
        let errors: Vec<f32> =
            probe.estimates(&codes).zip(&vectors).map(|(estimate, vector)| estimate - dot(vector, &query)).collect();
        let mean = errors.iter().sum::<f32>() / 400.0;
        let spread = (errors.iter().map(|e| e * e).sum::<f32>() / 400.0).sqrt();
        assert!(mean.abs() < 0.01, "mean {mean}");
        assert!(spread < 0.05, "spread {spread}");
    }
}
