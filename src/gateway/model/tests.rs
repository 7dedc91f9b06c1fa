//! Claims about the model, each checked on the real one in `$HELPER_MODEL`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::core::error::Kind;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

pub fn directory() -> PathBuf {
    std::env::var_os("HELPER_MODEL").map(PathBuf::from).expect("HELPER_MODEL names the model: source scripts/env")
}

pub fn model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    MODEL.get_or_init(|| Arc::new(Model::load(&directory(), 2).expect("the model loads"))).clone()
}

fn reference() -> Vec<(String, Vec<f32>)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/minilm-reference.jsonl");
    let lines = std::fs::read_to_string(path).unwrap();
    let read = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        let numbers = value["embedding"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        (value["text"].as_str().unwrap().to_owned(), numbers)
    };
    lines.lines().map(read).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn embeddings_are_those_of_sentence_transformers() {
    let reference = reference();
    assert_eq!(reference.len(), 29);
    let texts: Vec<&str> = reference.iter().map(|(text, _)| text.as_str()).collect();
    let together = model().embed(&texts).unwrap();
    for ((text, expected), embedding) in reference.iter().zip(&together) {
        let alone = model().embed(&[text]).unwrap().remove(0);
        for found in [embedding, &alone] {
            let cosine = cosine(found, expected);
            assert!(cosine >= 0.9999, "{cosine} for {text:?}");
            let length = found.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!((length - 1.0).abs() < 1e-5, "{length} for {text:?}");
        }
    }
}

#[test]
fn a_product_is_right_for_every_shape() {
    use matrix::{Finish, Packed, Rows, multiply};
    let number = |seed: usize| (seed * 7919 % 201) as f32 / 100.0 - 1.0;
    for (rows, depth, width) in [(1, 1, 1), (5, 3, 17), (6, 384, 16), (7, 385, 31), (97, 769, 33), (13, 32, 130)] {
        let left: Vec<f32> = (0..rows * (depth + 2)).map(number).collect();
        let right = |row: usize, column: usize| number(row * 31 + column * 17);
        let bias: Vec<f32> = (0..width).map(|at| number(at + 5)).collect();
        let other: Vec<f32> = (0..rows * (width + 1)).map(|at| number(at + 9)).collect();
        let packed = Packed::new(depth, width, right);
        let mut out = vec![9.0; rows * (width + 1)];
        let given = Rows { data: &left, stride: depth + 2, count: rows };
        multiply(given, &packed, &bias, Finish::Add(&other), &mut out, width + 1, &mut Vec::new());
        for row in 0..rows {
            for (column, bias) in bias.iter().enumerate() {
                let product = (0..depth).map(|k| f64::from(left[row * (depth + 2) + k]) * f64::from(right(k, column)));
                let at = row * (width + 1) + column;
                let expected = product.sum::<f64>() + f64::from(*bias) + f64::from(other[at]);
                assert!((f64::from(out[at]) - expected).abs() < 1e-3, "{rows}x{depth}x{width} at {row}, {column}");
            }
            assert_eq!(out[row * (width + 1) + width], 9.0, "nothing is written beside the columns");
        }
    }
}

#[test]
fn tokens_are_counted_without_special_ones_and_without_cutting() {
    assert_eq!(model().count_tokens(""), 0);
    assert_eq!(model().count_tokens("hello world"), 2);
    assert_eq!(model().count_tokens(&"hello ".repeat(1000)), 1000);
    for words in [8_000, 12_345, 40_000] {
        assert_eq!(model().count_tokens(&"hello, ".repeat(words)), 2 * words);
    }
    assert_eq!(model().max_tokens(), 254);
    assert_eq!(model().dimensions(), 384);
    assert_eq!(model().name(), "all-MiniLM-L6-v2");
}

#[test]
fn what_lies_beyond_the_longest_text_does_not_count() {
    let long = "hello ".repeat(254);
    let longer = format!("{long} something else entirely");
    assert_eq!(model().embed(&[&long]).unwrap(), model().embed(&[&longer]).unwrap());
}

/// A copy of the model's small files and a link to its weights, with one file changed.
fn damaged(label: &str, file: &str, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> crate::core::error::Error {
    let dir = std::env::temp_dir().join(format!("helper-ai-model-{}-{label}", std::process::id()));
    std::fs::create_dir_all(dir.join("1_Pooling")).unwrap();
    for name in ["config.json", "tokenizer.json", "sentence_bert_config.json", "1_Pooling/config.json"] {
        std::fs::copy(directory().join(name), dir.join(name)).unwrap();
    }
    std::os::unix::fs::symlink(directory().join("model.safetensors"), dir.join("model.safetensors")).unwrap();
    let bytes = std::fs::read(dir.join(file)).unwrap();
    std::fs::remove_file(dir.join(file)).unwrap();
    if let Some(bytes) = change(bytes) {
        std::fs::write(dir.join(file), bytes).unwrap();
    }
    let error = Model::load(&dir, 1).err().unwrap_or_else(|| panic!("a damaged {file} was accepted: {label}"));
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(error.kind, Kind::NotReady, "{label}");
    assert!(error.detail.as_deref().unwrap().contains(file), "{label}: {error:?}");
    assert!(error.hint.is_some(), "{label}");
    error
}

fn replaced(from: &str, to: &str) -> impl FnOnce(Vec<u8>) -> Option<Vec<u8>> {
    move |bytes| {
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains(from));
        Some(text.replacen(from, to, 1).into_bytes())
    }
}

#[test]
fn a_damaged_model_is_refused_with_the_file_and_what_is_wrong() {
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        damaged("missing", file, |_| None);
        damaged("empty", file, |_| Some(Vec::new()));
        damaged("cut", file, |bytes| Some(bytes[..bytes.len() / 2].to_vec()));
        damaged("garbage", file, |bytes| Some(bytes.iter().map(|byte| byte ^ 0x5a).take(4096).collect()));
    }
    let error = damaged("family", "config.json", replaced("\"bert\"", "\"gpt2\""));
    assert!(error.detail.unwrap().contains("model_type \"gpt2\""));
    damaged("heads", "config.json", replaced("\"num_attention_heads\": 12", "\"num_attention_heads\": 7"));
    damaged("activation", "config.json", replaced("\"gelu\"", "\"relu\""));
    damaged("zero", "config.json", replaced("\"hidden_size\": 384", "\"hidden_size\": 0"));
    let pooling = replaced("\"pooling_mode_mean_tokens\": true", "\"pooling_mode_mean_tokens\": false");
    damaged("pooling", "1_Pooling/config.json", pooling);
    damaged("length", "sentence_bert_config.json", replaced("256", "2"));
}

#[test]
fn tensors_of_another_shape_are_refused() {
    let dir = std::env::temp_dir().join(format!("helper-ai-model-{}-shape", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for name in ["tokenizer.json", "model.safetensors"] {
        let _ = std::fs::remove_file(dir.join(name));
        std::os::unix::fs::symlink(directory().join(name), dir.join(name)).unwrap();
    }
    let config = std::fs::read_to_string(directory().join("config.json")).unwrap();
    std::fs::write(dir.join("config.json"), config.replace("\"hidden_size\": 384", "\"hidden_size\": 768")).unwrap();
    let error = Model::load(&dir, 1).err().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(error.detail.unwrap().contains("has shape [512, 384], expected [512, 768]"));
}
