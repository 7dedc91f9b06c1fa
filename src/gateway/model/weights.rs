//! A model's directory, read: its configuration and its weights by name.
//!
//! In: the files as Hugging Face lays them out. Out: an [`Encoder`], every shape of it checked. Whatever is missing,
//! cut short or of another shape is an error that names the file and what is wrong with it; nothing here panics.

use super::encoder::{Encoder, Layer, Linear, Norm, Pooling};
use super::matrix::Packed;
use super::onnx::Graph;
use crate::core::error::{Error, Result};
use prost::bytes::Bytes;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::borrow::Cow;
use std::io::ErrorKind;
use std::path::Path;

/// The name a model goes by: its directory's last component.
pub fn name_of(dir: &Path) -> String {
    dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The error of a model that cannot be used, with the file and what is wrong with it.
pub fn unusable(dir: &Path, file: &str, what: impl std::fmt::Display) -> Error {
    Error::not_ready(format!("local model \"{}\" cannot be loaded", name_of(dir)))
        .detail(format!("In \"{}\", {file}: {what}.", dir.display()))
        .hint("Install the model again: its directory holds config.json, tokenizer.json, and model.safetensors or onnx/model.onnx.")
}

/// A JSON file of the directory, or `None` where there is no such file.
pub fn json(dir: &Path, file: &str) -> Result<Option<Value>> {
    match std::fs::read(dir.join(file)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| unusable(dir, file, error)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(dir, file, error)),
    }
}

/// How a family of encoders names its settings and tensors.
struct Family {
    kinds: &'static [&'static str],
    hidden: &'static str,
    inner: &'static str,
    layers: &'static str,
    heads: &'static str,
    activation: &'static str,
    layer: &'static str,
    query: [&'static str; 3],
    mixed: &'static str,
    mixed_norm: &'static str,
    widen: &'static str,
    narrow: &'static str,
    narrow_norm: &'static str,
    token_types: bool,
    /// Positions start after the padding token's id.
    padded_positions: bool,
}

const BERT: Family = Family {
    kinds: &["bert"],
    hidden: "hidden_size",
    inner: "intermediate_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    activation: "hidden_act",
    layer: "encoder.layer.",
    query: ["attention.self.query", "attention.self.key", "attention.self.value"],
    mixed: "attention.output.dense",
    mixed_norm: "attention.output.LayerNorm",
    widen: "intermediate.dense",
    narrow: "output.dense",
    narrow_norm: "output.LayerNorm",
    token_types: true,
    padded_positions: false,
};

const FAMILIES: [Family; 3] = [
    BERT,
    Family { kinds: &["roberta", "xlm-roberta", "camembert"], padded_positions: true, ..BERT },
    Family {
        kinds: &["distilbert"],
        hidden: "dim",
        inner: "hidden_dim",
        layers: "n_layers",
        heads: "n_heads",
        activation: "activation",
        layer: "transformer.layer.",
        query: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
        mixed: "attention.out_lin",
        mixed_norm: "sa_layer_norm",
        widen: "ffn.lin1",
        narrow: "ffn.lin2",
        narrow_norm: "output_layer_norm",
        token_types: false,
        padded_positions: false,
    },
];

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const EXPORT: &str = "onnx/model.onnx";
const WORDS: &str = "embeddings.word_embeddings.weight";

/// Reads configuration and weights.
pub fn read(dir: &Path) -> Result<Encoder> {
    let config = json(dir, CONFIG)?.ok_or_else(|| unusable(dir, CONFIG, "there is no such file"))?;
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("");
    let family = FAMILIES.iter().find(|family| family.kinds.contains(&kind)).ok_or_else(|| {
        unusable(dir, CONFIG, format!("model_type \"{kind}\" is not supported"))
            .hint("Use an encoder of the BERT family: bert, roberta, xlm-roberta, camembert or distilbert.")
    })?;
    let number = |key: &str| {
        let value = config.get(key).and_then(Value::as_u64).filter(|value| (1..1 << 20).contains(value));
        value
            .map(|value| value as usize)
            .ok_or_else(|| unusable(dir, CONFIG, format!("{key} is missing or impossible")))
    };
    let activation = config.get(family.activation).and_then(Value::as_str).unwrap_or("gelu");
    if activation != "gelu" {
        return Err(unusable(dir, CONFIG, format!("{} \"{activation}\" is not supported", family.activation)));
    }
    let positions_kind = config.get("position_embedding_type").and_then(Value::as_str).unwrap_or("absolute");
    if positions_kind != "absolute" {
        return Err(unusable(dir, CONFIG, format!("position_embedding_type \"{positions_kind}\" is not supported")));
    }
    let (hidden, inner, heads) = (number(family.hidden)?, number(family.inner)?, number(family.heads)?);
    if hidden % heads != 0 {
        return Err(unusable(dir, CONFIG, format!("{heads} heads do not divide {hidden} dimensions")));
    }
    let padding = config.get("pad_token_id").and_then(Value::as_u64).unwrap_or(0) as usize;
    let first_position = if family.padded_positions { padding + 1 } else { 0 };
    let epsilon = config.get("layer_norm_eps").and_then(Value::as_f64).unwrap_or(1e-12) as f32;

    let (file, bytes) = weights_file(dir)?;
    let weights = Weights::new(dir, file, &bytes)?;

    let mut positions =
        weights.read("embeddings.position_embeddings.weight", &[number("max_position_embeddings")?, hidden])?;
    if positions.len() <= first_position * hidden {
        return Err(unusable(dir, CONFIG, "max_position_embeddings leaves no position"));
    }
    positions.drain(..first_position * hidden);
    if family.token_types {
        // One segment is all an embedding has: its token type is part of each position.
        let types = weights.read("embeddings.token_type_embeddings.weight", &[number("type_vocab_size")?, hidden])?;
        positions.chunks_exact_mut(hidden).for_each(|row| row.iter_mut().zip(&types).for_each(|(x, t)| *x += t));
    }
    let words = weights.read(WORDS, &[number("vocab_size")?, hidden])?;
    let norm = |name: &str| -> Result<Norm> {
        Ok(Norm {
            scale: weights.read(&format!("{name}.weight"), &[hidden])?,
            bias: weights.read(&format!("{name}.bias"), &[hidden])?,
            epsilon,
        })
    };
    let layers = (0..number(family.layers)?).map(|index| {
        let at = |part: &str| format!("{}{index}.{part}", family.layer);
        Ok(Layer {
            attend: weights.attention(&family.query.map(at), hidden, heads)?,
            mixed: weights.linear(&at(family.mixed), hidden, hidden)?,
            mixed_norm: norm(&at(family.mixed_norm))?,
            widen: weights.linear(&at(family.widen), hidden, inner)?,
            narrow: weights.linear(&at(family.narrow), inner, hidden)?,
            narrow_norm: norm(&at(family.narrow_norm))?,
        })
    });
    let layers = layers.collect::<Result<Vec<_>>>()?;
    Ok(Encoder {
        hidden,
        inner,
        heads,
        words,
        positions,
        norm: norm("embeddings.LayerNorm")?,
        layers,
        pooling: pooling(dir)?,
    })
}

/// How token vectors become one, from `1_Pooling/config.json`; the mean where that file is absent.
fn pooling(dir: &Path) -> Result<Pooling> {
    const FILE: &str = "1_Pooling/config.json";
    let Some(config) = json(dir, FILE)? else { return Ok(Pooling::Mean) };
    let mode = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
    let named = config.get("pooling_mode").and_then(Value::as_str);
    match (mode("pooling_mode_mean_tokens"), mode("pooling_mode_cls_token"), named) {
        (true, false, None) | (false, false, Some("mean")) => Ok(Pooling::Mean),
        (false, true, None) | (false, false, Some("cls")) => Ok(Pooling::First),
        _ => Err(unusable(dir, FILE, "only mean and cls pooling are supported")),
    }
}

/// The file that holds the weights, and what is in it.
fn weights_file(dir: &Path) -> Result<(&'static str, Bytes)> {
    let read = |file: &'static str| std::fs::read(dir.join(file)).map(|bytes| (file, Bytes::from(bytes)));
    match read(WEIGHTS) {
        Err(error) if error.kind() == ErrorKind::NotFound => match read(EXPORT) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(unusable(dir, WEIGHTS, format!("there is neither this file nor {EXPORT}")))
            }
            export => export.map_err(|error| unusable(dir, EXPORT, error)),
        },
        weights => weights.map_err(|error| unusable(dir, WEIGHTS, error)),
    }
}

/// A tensor as a file holds it.
pub struct Tensor<'a> {
    /// Rows first.
    pub shape: Vec<usize>,
    /// What the numbers are.
    pub dtype: Dtype,
    /// Little-endian, as many as the shape says.
    pub data: Cow<'a, [u8]>,
    /// The numbers lie column by column; only of matrices.
    pub flipped: bool,
}

/// Where tensors come from.
enum Source<'a> {
    Tensors(SafeTensors<'a>),
    Export(Graph),
}

impl Source<'_> {
    fn tensor(&self, name: &str) -> std::result::Result<Tensor<'_>, String> {
        match self {
            Source::Tensors(tensors) => {
                let view = tensors.tensor(name).map_err(|_| format!("tensor \"{name}\" is missing"))?;
                let (shape, data) = (view.shape().to_vec(), Cow::Borrowed(view.data()));
                Ok(Tensor { shape, dtype: view.dtype(), data, flipped: false })
            }
            Source::Export(graph) => graph.tensor(name),
        }
    }

    /// What stands before every name, such as `bert.`; models of a larger one, and exports, put the path to them there.
    fn prefix(&self) -> String {
        let names: Box<dyn Iterator<Item = &str> + '_> = match self {
            Source::Tensors(tensors) => Box::new(tensors.iter().map(|(name, _)| name)),
            Source::Export(graph) => Box::new(graph.names()),
        };
        let prefixes = names.filter_map(|name| name.strip_suffix(WORDS));
        let prefixes = prefixes.filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
        prefixes.min_by_key(|prefix| (prefix.len(), *prefix)).unwrap_or("").to_owned()
    }
}

struct Weights<'a> {
    dir: &'a Path,
    file: &'static str,
    source: Source<'a>,
    prefix: String,
}

impl<'a> Weights<'a> {
    fn new(dir: &'a Path, file: &'static str, bytes: &'a Bytes) -> Result<Weights<'a>> {
        let source = if file == EXPORT {
            Source::Export(Graph::read(bytes.clone()).map_err(|what| unusable(dir, file, what))?)
        } else {
            Source::Tensors(SafeTensors::deserialize(bytes).map_err(|error| unusable(dir, file, error))?)
        };
        let prefix = source.prefix();
        Ok(Weights { dir, file, source, prefix })
    }

    /// A tensor of that shape, in single precision.
    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let wrong = |what: String| unusable(self.dir, self.file, what);
        let Tensor { shape: found, dtype, data, flipped } =
            self.source.tensor(&format!("{}{name}", self.prefix)).map_err(wrong)?;
        if found != shape {
            return Err(wrong(format!("tensor \"{name}\" has shape {found:?}, expected {shape:?}")));
        }
        let pairs = || data.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
        let mut values: Vec<f32> = match dtype {
            Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Dtype::F16 => pairs().map(|pair| half::f16::from_le_bytes(pair).to_f32()).collect(),
            Dtype::BF16 => pairs().map(|pair| half::bf16::from_le_bytes(pair).to_f32()).collect(),
            other => return Err(wrong(format!("tensor \"{name}\" holds {other:?}, expected numbers"))),
        };
        if let (true, [rows, columns]) = (flipped, shape) {
            values = (0..rows * columns).map(|at| values[at % columns * rows + at / columns]).collect();
        }
        if !values.iter().all(|value| value.is_finite()) {
            return Err(wrong(format!("tensor \"{name}\" holds a value that is not a number")));
        }
        Ok(values)
    }

    fn linear(&self, name: &str, from: usize, to: usize) -> Result<Linear> {
        let weight = self.read(&format!("{name}.weight"), &[to, from])?;
        let bias = self.read(&format!("{name}.bias"), &[to])?;
        Ok(Linear { weight: Packed::new(from, to, |row, column| weight[column * from + row]), bias })
    }

    /// Query, key and value as one product; the scale of the scores goes into the query.
    fn attention(&self, names: &[String; 3], hidden: usize, heads: usize) -> Result<Linear> {
        let scale = 1.0 / ((hidden / heads) as f32).sqrt();
        let (mut weight, mut bias) = (Vec::with_capacity(3 * hidden * hidden), Vec::with_capacity(3 * hidden));
        for (index, name) in names.iter().enumerate() {
            let factor = if index == 0 { scale } else { 1.0 };
            weight.extend(self.read(&format!("{name}.weight"), &[hidden, hidden])?.iter().map(|x| x * factor));
            bias.extend(self.read(&format!("{name}.bias"), &[hidden])?.iter().map(|x| x * factor));
        }
        Ok(Linear { weight: Packed::new(hidden, 3 * hidden, |row, column| weight[column * hidden + row]), bias })
    }
}
