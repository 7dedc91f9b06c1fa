//! Embeddings of all protocols: texts in, vectors out.

#[cfg(test)]
mod tests;

use super::reply::MOST_TOKENS;
use super::request::post;
use super::{Batch, Call, Embedded, Failure, failure, gemini};
use crate::core::chat::{Kind, Purpose};
use crate::core::error::{Error, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

/// See [`super::batch`].
pub(super) fn batch(kind: Kind) -> Batch {
    match kind {
        Kind::OpenAi => Batch { inputs: 2048, tokens_each: 8192, tokens: 300_000 },
        Kind::Gemini => Batch { inputs: 100, tokens_each: 2048, tokens: 100 * 2048 },
        // How many tokens depends on the window that the model is loaded with.
        Kind::Ollama => Batch { inputs: 512, tokens_each: 8192, tokens: 300_000 },
        // Text Embeddings Inference takes 32 unless it is told otherwise.
        Kind::OpenAiCompatible => Batch { inputs: 32, tokens_each: 8192, tokens: 300_000 },
        Kind::Anthropic => Batch { inputs: 0, tokens_each: 0, tokens: 0 },
    }
}

/// See [`super::embed`].
pub(super) fn request(
    kind: Kind,
    model: &str,
    inputs: &[String],
    dimensions: Option<u32>,
    purpose: Purpose,
) -> Result<Call> {
    if kind == Kind::Anthropic {
        return Err(Error::bad_argument("anthropic has no embeddings").hint("Use a model of another provider."));
    }
    if inputs.is_empty() || inputs.iter().any(String::is_empty) {
        return Err(Error::bad_argument("cannot embed an empty text"));
    }
    let most = batch(kind).inputs;
    if inputs.len() > most {
        return Err(Error::bad_argument(format!("{} texts to embed, at most {most} in one request", inputs.len())));
    }
    if kind == Kind::Gemini {
        let path = format!("{}:batchEmbedContents", gemini::path(model)?);
        return Ok(post(path, Vec::new(), &json!({ "requests": gemini_requests(model, inputs, dimensions, purpose) })));
    }
    let mut body = Map::new();
    body.insert("model".into(), model.into());
    body.insert("input".into(), json!(inputs));
    if let Some(dimensions) = dimensions {
        body.insert("dimensions".into(), dimensions.into());
    }
    match kind {
        // A third of the bytes; not all servers that follow the protocol know it.
        Kind::OpenAi => body.insert("encoding_format".into(), "base64".into()),
        // Otherwise a text that is too long would be cut, and no one would know.
        Kind::Ollama => body.insert("truncate".into(), false.into()),
        _ => None,
    };
    let path = if kind == Kind::Ollama { "/api/embed" } else { "/embeddings" };
    Ok(post(path, Vec::new(), &Value::Object(body)))
}

fn gemini_requests(model: &str, inputs: &[String], dimensions: Option<u32>, purpose: Purpose) -> Vec<Value> {
    let task = match purpose {
        Purpose::Document => "RETRIEVAL_DOCUMENT",
        Purpose::Query => "RETRIEVAL_QUERY",
    };
    let requests = inputs.iter().map(|input| {
        let content = json!({ "parts": [{ "text": input }] });
        let mut request = json!({ "model": gemini::resource(model), "content": content, "taskType": task });
        if let Some(dimensions) = dimensions {
            request["outputDimensionality"] = dimensions.into();
        }
        request
    });
    requests.collect()
}

/// See [`super::embeddings`].
pub(super) fn reply(kind: Kind, body: &[u8], expected: usize) -> std::result::Result<Embedded, Failure> {
    let value: Value = serde_json::from_slice(body).map_err(|_| Failure::nonsense())?;
    if value.get("error").is_some_and(|error| !error.is_null()) {
        return Err(failure::of_value(kind, 200, &value));
    }
    let read = match kind {
        Kind::OpenAi | Kind::OpenAiCompatible => indexed(&value, expected),
        Kind::Gemini => list(&value, "embeddings", |item| item.get("values")),
        Kind::Ollama => list(&value, "embeddings", Some),
        Kind::Anthropic => None,
    };
    let vectors = read.ok_or_else(Failure::nonsense)?;
    let dimensions = vectors.first().map_or(0, Vec::len);
    let good = |vector: &Vec<f32>| vector.len() == dimensions && vector.iter().all(|number| number.is_finite());
    if vectors.len() != expected || !vectors.iter().all(good) || (dimensions == 0 && expected > 0) {
        return Err(Failure::nonsense());
    }
    let tokens = match kind {
        Kind::Gemini => value.pointer("/usageMetadata/promptTokenCount"),
        Kind::Ollama => value.get("prompt_eval_count"),
        _ => value.pointer("/usage/prompt_tokens").or_else(|| value.pointer("/usage/total_tokens")),
    };
    Ok(Embedded { vectors, tokens: tokens.and_then(Value::as_u64).map(|tokens| tokens.min(MOST_TOKENS)) })
}

/// Vectors that may come in another order than the texts, each with the number of its text.
fn indexed(value: &Value, expected: usize) -> Option<Vec<Vec<f32>>> {
    let mut vectors = vec![None; expected];
    for (at, item) in value.get("data")?.as_array()?.iter().enumerate() {
        let index = match item.get("index") {
            None | Some(Value::Null) => at,
            Some(index) => usize::try_from(index.as_u64()?).ok()?,
        };
        let place = vectors.get_mut(index).filter(|place| place.is_none())?;
        *place = Some(vector(item.get("embedding")?)?);
    }
    vectors.into_iter().collect()
}

/// Vectors in the order of their texts.
fn list<'a>(value: &'a Value, name: &str, of: impl Fn(&'a Value) -> Option<&'a Value>) -> Option<Vec<Vec<f32>>> {
    value.get(name)?.as_array()?.iter().map(|item| vector(of(item)?)).collect()
}

/// A vector as a list of numbers, or as little-endian `f32` in base64.
fn vector(value: &Value) -> Option<Vec<f32>> {
    match value {
        Value::Array(numbers) => numbers.iter().map(|number| number.as_f64().map(|number| number as f32)).collect(),
        Value::String(text) => {
            let bytes = BASE64_STANDARD.decode(text).ok()?;
            let (numbers, rest) = bytes.as_chunks::<4>();
            rest.is_empty().then(|| numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
        }
        _ => None,
    }
}
