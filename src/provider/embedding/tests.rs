#![allow(clippy::unwrap_used)]

use crate::core::chat::{Kind, Purpose};
use crate::provider::{Cause, batch, embed, embeddings};
use proptest::prelude::*;
use serde_json::{Value, json};

fn body(kind: Kind, model: &str, dimensions: Option<u32>) -> (String, Value) {
    let call = embed(kind, model, &["a".into(), "b".into()], dimensions, Purpose::Query).unwrap();
    (call.path, serde_json::from_slice(&call.body).unwrap())
}

fn read(kind: Kind, body: Value) -> Result<Vec<Vec<f32>>, Cause> {
    embeddings(kind, body.to_string().as_bytes(), 2).map(|embedded| embedded.vectors).map_err(|failure| failure.cause)
}

#[test]
fn texts_become_requests() {
    let (path, asked) = body(Kind::OpenAi, "m", Some(3));
    assert_eq!(path, "/embeddings");
    assert_eq!(asked, json!({ "model": "m", "input": ["a", "b"], "dimensions": 3, "encoding_format": "base64" }));
    assert_eq!(body(Kind::OpenAiCompatible, "m", None).1, json!({ "model": "m", "input": ["a", "b"] }));
    let ollama = body(Kind::Ollama, "m", None);
    assert_eq!(ollama, ("/api/embed".into(), json!({ "model": "m", "input": ["a", "b"], "truncate": false })));
    let (path, asked) = body(Kind::Gemini, "m", Some(3));
    assert_eq!(path, "/v1beta/models/m:batchEmbedContents");
    assert_eq!(
        asked["requests"][1],
        json!({
            "model": "models/m",
            "content": { "parts": [{ "text": "b" }] },
            "taskType": "RETRIEVAL_QUERY",
            "outputDimensionality": 3,
        })
    );
}

#[test]
fn what_cannot_be_embedded_is_refused() {
    let refused = |kind, inputs: &[String]| embed(kind, "m", inputs, None, Purpose::Document).unwrap_err().message;
    assert_eq!(refused(Kind::Anthropic, &["a".into()]), "anthropic has no embeddings");
    assert_eq!(refused(Kind::OpenAi, &[]), "cannot embed an empty text");
    assert_eq!(refused(Kind::OpenAi, &["a".into(), String::new()]), "cannot embed an empty text");
    assert_eq!(refused(Kind::Gemini, &vec!["a".into(); 101]), "101 texts to embed, at most 100 in one request");
    assert_eq!(batch(Kind::OpenAi).tokens, 300_000);
}

#[test]
fn vectors_are_read_in_the_order_of_their_texts() {
    // 1.0 and -2.0.
    let items = json!([{ "index": 1, "embedding": [0.5, 3] }, { "index": 0, "embedding": "AACAPwAAAMA=" }]);
    let body = json!({ "data": items, "usage": { "prompt_tokens": 7 } });
    let embedded = embeddings(Kind::OpenAi, body.to_string().as_bytes(), 2).unwrap();
    assert_eq!((embedded.vectors, embedded.tokens), (vec![vec![1.0, -2.0], vec![0.5, 3.0]], Some(7)));
    let expected = Ok(vec![vec![1.0, 2.0], vec![3.0, 4.0]]);
    let unnumbered = json!({ "data": [{ "embedding": [1, 2] }, { "embedding": [3, 4] }] });
    assert_eq!(read(Kind::OpenAiCompatible, unnumbered), expected);
    assert_eq!(read(Kind::Gemini, json!({ "embeddings": [{ "values": [1, 2] }, { "values": [3, 4] }] })), expected);
    let ollama = json!({ "embeddings": [[1, 2], [3, 4]], "prompt_eval_count": 5 });
    assert_eq!(embeddings(Kind::Ollama, ollama.to_string().as_bytes(), 2).unwrap().tokens, Some(5));
    assert_eq!(read(Kind::Ollama, ollama), expected);
}

#[test]
fn impossible_vectors_are_nonsense() {
    for vectors in [
        json!([[1, 2]]),
        json!([[1, 2], [1, 2], [1, 2]]),
        json!([[1, 2], [1]]),
        json!([[], []]),
        json!([[1, 2], [1, null]]),
        json!([[1, 2], [1, 1e39]]),
        json!([[1, 2], [1, "2"]]),
        json!({ "0": [1] }),
    ] {
        assert_eq!(read(Kind::Ollama, json!({ "embeddings": vectors })), Err(Cause::Nonsense), "{vectors}");
    }
    let one = json!([1, 2]);
    for (first, second, embedding) in [
        (0, json!(0), &one),
        (0, json!(2), &one),
        (0, json!(-1), &one),
        // Not whole numbers of four bytes, not base64, and not a number.
        (0, json!(1), &json!("AACA")),
        (0, json!(1), &json!("*")),
        (0, json!(1), &json!("AADAfwAAAMA=")),
    ] {
        let body =
            json!({ "data": [{ "index": first, "embedding": one }, { "index": second, "embedding": embedding }] });
        assert_eq!(read(Kind::OpenAi, body.clone()), Err(Cause::Nonsense), "{body}");
    }
    assert_eq!(read(Kind::Ollama, json!({ "error": "input length exceeds the context length" })), Err(Cause::TooLarge));
    assert_eq!(embeddings(Kind::OpenAi, b"<html>", 1).unwrap_err().cause, Cause::Nonsense);
}

proptest! {
    #[test]
    fn numbers_come_through_base64_as_they_are(numbers in prop::collection::vec(-1e30f32..1e30, 1..64)) {
        use base64::Engine;
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let text = base64::prelude::BASE64_STANDARD.encode(bytes);
        let body = json!({ "data": [{ "index": 0, "embedding": text }] });
        let embedded = embeddings(Kind::OpenAi, body.to_string().as_bytes(), 1).unwrap();
        prop_assert_eq!(&embedded.vectors[0], &numbers);
    }
}
