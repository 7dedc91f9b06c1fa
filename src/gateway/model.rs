//! The local embedding model.
//!
//! In: texts. Out: one vector of length 1 for each, the same as sentence-transformers gives. Everything here runs on
//! the caller's thread or on threads that end with the call, and blocks: never call it from an asynchronous task.

pub mod encoder;
pub mod matrix;
pub mod onnx;
pub mod tokens;
pub mod weights;

use crate::core::error::{Error, Result};
use encoder::{Encoder, Scratch};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokens::Tokens;

/// Tokens that go through the model in one pass: enough to read the weights rarely, few enough that a pass takes
/// about a tenth of a second.
pub const PASS_TOKENS: usize = 512;

/// A model in memory, shared by all threads.
pub struct Model {
    name: String,
    encoder: Encoder,
    tokens: Tokens,
    threads: usize,
}

impl Model {
    /// Reads a model's directory, laid out as Hugging Face does; `threads` are used by [`Model::embed`].
    ///
    /// `tokenizer.json`, `config.json`, and `model.safetensors` or `onnx/model.onnx` are needed; where both are, the
    /// former is read. `sentence_bert_config.json` and `1_Pooling/config.json` are honoured where present. Fails with
    /// `NotReady`, saying which file and what.
    pub fn load(dir: &Path, threads: usize) -> Result<Model> {
        let encoder = weights::read(dir)?;
        let tokens = Tokens::load(dir, encoder.vocabulary(), encoder.longest())?;
        Ok(Model { name: weights::name_of(dir), encoder, tokens, threads: threads.max(1) })
    }

    /// The directory's last component.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Numbers in each embedding.
    pub fn dimensions(&self) -> usize {
        self.encoder.hidden
    }

    /// Most tokens of a text that are used, special ones left out.
    pub fn max_tokens(&self) -> usize {
        self.tokens.most()
    }

    /// Tokens of a text, special ones left out, nothing cut.
    ///
    /// A text that the tokenizer cannot read counts as one token for each byte.
    pub fn count_tokens(&self, text: &str) -> usize {
        self.tokens.count(text).unwrap_or(text.len())
    }

    /// The token ids of a text as [`Model::forward`] takes them: cut to the longest allowed, special tokens around them.
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>> {
        self.tokens.ids(text)
    }

    /// One pass on this thread over texts given as [`Model::tokenize`] gives them.
    pub fn forward(&self, texts: &[&[u32]], scratch: &mut Scratch) -> Vec<Vec<f32>> {
        self.encoder.forward(texts, scratch)
    }

    /// Embeds texts, in order, on as many threads as the model was loaded with.
    pub fn embed(&self, batch: &[&str]) -> Result<Vec<Vec<f32>>> {
        let ids = batch.iter().map(|text| self.tokenize(text)).collect::<Result<Vec<_>>>()?;
        let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        let share = ids.iter().map(|text| text.len()).sum::<usize>().div_ceil(self.threads);
        let passes = passes(&ids, share.min(PASS_TOKENS));
        let next = AtomicUsize::new(0);
        let run = || {
            let mut scratch = Scratch::default();
            let mut done = Vec::new();
            while let Some(pass) = passes.get(next.fetch_add(1, Ordering::Relaxed)) {
                done.push((pass.start, self.forward(&ids[pass.clone()], &mut scratch)));
            }
            done
        };
        let mut done = std::thread::scope(|scope| {
            let others: Vec<_> = (1..self.threads.min(passes.len())).map(|_| scope.spawn(run)).collect();
            let mut done = run();
            for other in others {
                done.extend(other.join().map_err(|_| Error::bug("the local model panicked"))?);
            }
            Ok::<_, Error>(done)
        })?;
        done.sort_unstable_by_key(|(start, _)| *start);
        Ok(done.into_iter().flat_map(|(_, part)| part).collect())
    }
}

/// Cuts texts into runs of at most `tokens` tokens, each of at least one text.
fn passes(texts: &[&[u32]], tokens: usize) -> Vec<std::ops::Range<usize>> {
    let (mut passes, mut start, mut sum) = (Vec::new(), 0, 0);
    for (index, text) in texts.iter().enumerate() {
        if index > start && sum + text.len() > tokens {
            passes.push(start..index);
            (start, sum) = (index, 0);
        }
        sum += text.len();
    }
    if start < texts.len() {
        passes.push(start..texts.len());
    }
    passes
}

#[cfg(test)]
mod tests;
