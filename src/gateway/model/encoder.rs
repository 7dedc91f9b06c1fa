//! The forward pass of a BERT encoder, in single precision on one thread.
//!
//! In: token ids of several texts. Out: one vector of length 1 for each. The texts lie one after another in one matrix
//! without padding: the linear layers see only tokens that count, and attention is taken text by text. Many threads may
//! use one encoder, each with a [`Scratch`] of its own.

use super::matrix::{Finish, Packed, Rows, multiply};
use rten_simd::SimdOp;
use rten_vecmath::{Normalize, NormalizeOptions, Softmax, Sum, SumSquareSub};

/// Rows whose scores, or widened values, are kept in the cache at once.
const BLOCK: usize = 96;

/// A matrix and a bias.
pub struct Linear {
    /// One column for each output.
    pub weight: Packed,
    /// One number for each output.
    pub bias: Vec<f32>,
}

/// Layer normalisation.
pub struct Norm {
    /// One factor for each dimension.
    pub scale: Vec<f32>,
    /// One number for each dimension.
    pub bias: Vec<f32>,
    /// Added to the variance.
    pub epsilon: f32,
}

/// One layer: attention, then the two feed-forward products, each with its residual and norm.
pub struct Layer {
    /// Queries (scaled already), keys and values side by side.
    pub attend: Linear,
    /// After attention.
    pub mixed: Linear,
    /// After the residual of `mixed`.
    pub mixed_norm: Norm,
    /// To the inner width; GELU follows.
    pub widen: Linear,
    /// Back from the inner width.
    pub narrow: Linear,
    /// After the residual of `narrow`.
    pub narrow_norm: Norm,
}

/// How token vectors become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all tokens.
    Mean,
    /// The first token's.
    First,
}

/// All of a model's weights.
pub struct Encoder {
    /// Numbers in each vector.
    pub hidden: usize,
    /// Numbers between `widen` and `narrow`.
    pub inner: usize,
    /// Attention heads.
    pub heads: usize,
    /// `hidden` numbers for each token of the vocabulary.
    pub words: Vec<f32>,
    /// `hidden` numbers for each position, the token type's added.
    pub positions: Vec<f32>,
    /// After the embeddings.
    pub norm: Norm,
    /// In order.
    pub layers: Vec<Layer>,
    /// At the end.
    pub pooling: Pooling,
}

/// Memory that a thread keeps from one forward pass to the next.
#[derive(Default)]
pub struct Scratch {
    state: Vec<f32>,
    sums: Vec<f32>,
    attend: Vec<f32>,
    context: Vec<f32>,
    wide: Vec<f32>,
    scores: Vec<f32>,
    keys: Packed,
    values: Packed,
    tiles: Vec<f32>,
}

impl Encoder {
    /// Tokens of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.words.len() / self.hidden
    }

    /// The longest text, in tokens, special ones included.
    pub fn longest(&self) -> usize {
        self.positions.len() / self.hidden
    }

    /// One vector of length 1 for each text.
    ///
    /// Each has 1 to [`Encoder::longest`] tokens, all below [`Encoder::vocabulary`].
    pub fn forward(&self, texts: &[&[u32]], scratch: &mut Scratch) -> Vec<Vec<f32>> {
        let hidden = self.hidden;
        let count: usize = texts.iter().map(|text| text.len()).sum();
        let Scratch { state, sums, attend, context, wide, scores, keys, values, tiles } = scratch;
        for (buffer, width) in [(&mut *state, hidden), (sums, hidden), (attend, 3 * hidden), (context, hidden)] {
            buffer.resize(count * width, 0.0);
        }
        wide.resize(BLOCK * self.inner, 0.0);

        let mut rows = state.chunks_exact_mut(hidden);
        for text in texts {
            // The rows come last: a zip that ends takes one more from whatever stands before its end.
            for ((token, position), row) in text.iter().zip(self.positions.chunks_exact(hidden)).zip(&mut rows) {
                let word = &self.words[*token as usize * hidden..][..hidden];
                row.iter_mut().zip(word).zip(position).for_each(|((x, w), p)| *x = w + p);
            }
        }
        self.norm.apply(state);

        for layer in &self.layers {
            layer.attend.apply(state, hidden, Finish::Plain, attend, 3 * hidden, tiles);
            let mut start = 0;
            for text in texts {
                let own = start * 3 * hidden..(start + text.len()) * 3 * hidden;
                let out = &mut context[start * hidden..(start + text.len()) * hidden];
                self.attention(&attend[own], text.len(), keys, values, scores, tiles, out);
                start += text.len();
            }
            layer.mixed.apply(context, hidden, Finish::Add(state), sums, hidden, tiles);
            layer.mixed_norm.apply(sums);
            for (from, to) in sums.chunks(BLOCK * hidden).zip(state.chunks_mut(BLOCK * hidden)) {
                let wide = &mut wide[..from.len() / hidden * self.inner];
                layer.widen.apply(from, hidden, Finish::Gelu, wide, self.inner, tiles);
                layer.narrow.apply(wide, self.inner, Finish::Add(from), to, hidden, tiles);
                layer.narrow_norm.apply(to);
            }
        }

        let mut rest = &state[..];
        let pooled = texts.iter().map(|text| {
            let (own, after) = rest.split_at(text.len() * hidden);
            rest = after;
            self.pool(own)
        });
        pooled.collect()
    }

    #[allow(clippy::too_many_arguments)]
    /// Attention within one text: `attend` holds its queries, keys and values, `out` gets the mixed values.
    fn attention(
        &self,
        attend: &[f32],
        count: usize,
        keys: &mut Packed,
        values: &mut Packed,
        scores: &mut Vec<f32>,
        tiles: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let (hidden, stride) = (self.hidden, 3 * self.hidden);
        let size = hidden / self.heads;
        scores.resize(BLOCK * count, 0.0);
        for first in (0..hidden).step_by(size) {
            keys.fill(size, count, |row, column| attend[column * stride + hidden + first + row]);
            values.fill(count, size, |row, column| attend[row * stride + 2 * hidden + first + column]);
            for block in (0..count).step_by(BLOCK) {
                let rows = BLOCK.min(count - block);
                let scores = &mut scores[..rows * count];
                let queries = Rows { data: &attend[block * stride + first..], stride, count: rows };
                multiply(queries, keys, &[], Finish::Plain, scores, count, tiles);
                scores.chunks_exact_mut(count).for_each(|row| {
                    Softmax::new_mut(row).dispatch();
                });
                let weights = Rows { data: scores, stride: count, count: rows };
                multiply(weights, values, &[], Finish::Plain, &mut out[block * hidden + first..], hidden, tiles);
            }
        }
    }

    fn pool(&self, tokens: &[f32]) -> Vec<f32> {
        let mut pooled = tokens[..self.hidden].to_vec();
        if self.pooling == Pooling::Mean {
            for row in tokens.chunks_exact(self.hidden).skip(1) {
                pooled.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
        }
        // A mean and a sum point the same way, and only the direction is kept.
        let length = pooled.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt().max(1e-12);
        pooled.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        pooled
    }
}

impl Linear {
    fn apply(
        &self,
        rows: &[f32],
        width: usize,
        finish: Finish<'_>,
        out: &mut [f32],
        stride: usize,
        tiles: &mut Vec<f32>,
    ) {
        let rows = Rows { data: rows, stride: width, count: rows.len() / width };
        multiply(rows, &self.weight, &self.bias, finish, out, stride, tiles);
    }
}

impl Norm {
    fn apply(&self, rows: &mut [f32]) {
        let width = self.scale.len();
        for row in rows.chunks_exact_mut(width) {
            let mean = Sum::new(row).dispatch() / width as f32;
            let variance = SumSquareSub::new(row, mean).dispatch() / width as f32;
            let options = NormalizeOptions {
                pre_scale_bias: mean,
                scale: 1.0 / (variance + self.epsilon).sqrt(),
                element_scale: Some(&self.scale),
                bias: 0.0,
                element_bias: Some(&self.bias),
            };
            Normalize::new_mut(row, options).dispatch();
        }
    }
}
