//! Reads every file of the development data. `DATA` says where it is; without it the directory beside the repository is taken.

#![allow(clippy::unwrap_used, clippy::panic)]

use helper_ai::core::chunk::{Options, chunk};
use helper_ai::document;
use std::path::PathBuf;

/// Formats that the readers of documents know by now.
const READ: &[&str] = &["html", "csv", "txt", "xml"];

fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a text has the phrase; values of a table stand in one row, each behind the name of its column.
fn has(text: &str, phrase: &str, is_table: bool) -> bool {
    let phrase = squeezed(phrase);
    if squeezed(text).contains(&phrase) {
        return true;
    }
    is_table && text.lines().any(|line| phrase.split(',').all(|value| line.contains(value)))
}

#[test]
fn every_file_is_read_or_refused_as_expected() {
    let data = PathBuf::from(std::env::var("DATA").unwrap_or_else(|_| "../shared/data".into())).join("documents");
    let manifest = std::fs::read_to_string(data.join("MANIFEST.tsv"))
        .unwrap_or_else(|error| panic!("{} cannot be read: {error}", data.join("MANIFEST.tsv").display()));
    let (mut read, mut refused) = (0, 0);
    let mut wrong = Vec::new();
    for line in manifest.lines().skip(1) {
        let fields: Vec<_> = line.split('\t').collect();
        let (file, expect, phrase) = (fields[0], fields[5], fields[6]);
        let extension = file.rsplit('.').next().unwrap();
        let content = std::fs::read(data.join(file)).unwrap();
        match document::read(file, None, &content) {
            Ok(document) => {
                read += 1;
                let is_supported = READ.contains(&extension);
                let is_fine = expect == "any" || (expect == "text" && has(&document.text, phrase, extension == "csv"));
                if !is_supported || !is_fine {
                    wrong.push(format!("{file}: expected {expect} {phrase:?}"));
                }
                let words = |text: &str| text.split_whitespace().count();
                let chunks =
                    chunk(&document.text, &document.blocks, &Options { max_tokens: 120, overlap_tokens: 20 }, &words);
                let together: usize = chunks.iter().map(|chunk| words(&chunk.content)).sum();
                if together < words(&document.text) || chunks.iter().any(|chunk| chunk.tokens > 120) {
                    wrong.push(format!("{file}: chunks lose text or are too long"));
                }
            }
            Err(error) => {
                refused += 1;
                let is_expected = if READ.contains(&extension) {
                    expect == "any" || expect == "error"
                } else {
                    error.message.contains("are not supported") && error.hint.is_some()
                };
                if !is_expected {
                    wrong.push(format!("{file}: {error}"));
                }
            }
        }
    }
    println!("{read} files read, {refused} refused");
    assert!(read > 0 && refused > 0);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
