//! Text to token ids, and how many a text has.
//!
//! In: `tokenizer.json` and `sentence_bert_config.json` of a model's directory. Out: ids, truncated where asked for.
//! Truncation and padding that the file itself sets are switched off: this room decides.

use super::weights::{json, unusable};
use crate::core::error::{Error, Result};
use serde_json::Value;
use std::path::Path;
use tokenizers::Tokenizer;

const FILE: &str = "tokenizer.json";

/// Bytes of a text that are tokenized at once when it is only counted.
const PART: usize = 1 << 16;

/// A model's tokenizer, the special tokens around every text, and how long a text may be.
pub struct Tokens {
    tokenizer: Tokenizer,
    before: Vec<u32>,
    after: Vec<u32>,
    most: usize,
}

impl Tokens {
    /// Reads the tokenizer of a model that has `vocabulary` tokens and takes at most `longest` at a time.
    pub fn load(dir: &Path, vocabulary: usize, longest: usize) -> Result<Tokens> {
        let bytes = std::fs::read(dir.join(FILE)).map_err(|error| unusable(dir, FILE, error))?;
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(|error| unusable(dir, FILE, error))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| unusable(dir, FILE, error))?;
        let size = tokenizer.get_vocab(true).values().max().map_or(0, |last| *last as usize + 1);
        if size > vocabulary {
            return Err(unusable(dir, FILE, format!("it has {size} tokens and the model {vocabulary}")));
        }
        let ids = |special| {
            let encoding = tokenizer.encode_fast("a", special).map_err(|error| unusable(dir, FILE, error))?;
            Ok::<_, Error>(encoding.get_ids().to_vec())
        };
        let (bare, whole) = (ids(false)?, ids(true)?);
        let Some(at) = whole.windows(bare.len().max(1)).position(|window| window == bare) else {
            return Err(unusable(dir, FILE, "special tokens do not stand around the text"));
        };
        let (before, after) = (whole[..at].to_vec(), whole[at + bare.len()..].to_vec());
        let sentence = json(dir, "sentence_bert_config.json")?;
        let configured = sentence.as_ref().and_then(|value| value.get("max_seq_length")).and_then(Value::as_u64);
        let longest = configured.map_or(longest, |value| longest.min(value as usize));
        let most = longest.saturating_sub(before.len() + after.len());
        if most == 0 {
            return Err(unusable(dir, "sentence_bert_config.json", "max_seq_length leaves no room for a text"));
        }
        Ok(Tokens { tokenizer, before, after, most })
    }

    /// Most tokens of one text, special ones left out.
    pub fn most(&self) -> usize {
        self.most
    }

    /// How many tokens a text has, special ones left out and nothing cut.
    pub fn count(&self, text: &str) -> Result<usize> {
        let (mut rest, mut count) = (text, 0);
        // Words are tokenized one by one, so a long text is counted in parts that end before white space.
        while let Some(at) = word_end(rest, PART) {
            count += self.encode(&rest[..at])?.len();
            rest = &rest[at..];
        }
        Ok(count + self.encode(rest)?.len())
    }

    /// The ids that go through the model: cut to [`Tokens::most`], with the special tokens around them.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>> {
        let start = word_end(text, 32 * self.most).map(|at| self.encode(&text[..at])).transpose()?;
        let encoding = match start {
            Some(start) if start.len() >= self.most => start,
            _ => self.encode(text)?,
        };
        let own = encoding.get_ids();
        Ok([&self.before, &own[..own.len().min(self.most)], &self.after].concat())
    }

    fn encode(&self, text: &str) -> Result<tokenizers::Encoding> {
        let encoding = self.tokenizer.encode_fast(text, false);
        encoding.map_err(|error| Error::bug(format!("the tokenizer stopped: {error}")))
    }
}

/// Where a text longer than `most` bytes can be cut: before the last white space within them.
fn word_end(text: &str, most: usize) -> Option<usize> {
    let start = text.as_bytes().get(..most).filter(|start| start.len() < text.len())?;
    start.iter().rposition(u8::is_ascii_whitespace).filter(|at| *at > 0)
}
