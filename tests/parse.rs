//! Documents read in child programs: what a child does to itself is an error of its document alone.

#![allow(clippy::unwrap_used)]

use helper_ai::core::error::{Kind, Result};
use helper_ai::core::wire::{Prepare, Prepared};
use helper_ai::document::Document;
use helper_ai::gateway::parse::{self, Given, Limits};
use std::path::PathBuf;
use std::time::{Duration, Instant};

fn limits() -> Limits {
    Limits { program: PathBuf::from(env!("CARGO_BIN_EXE_helper_ai_gateway")), ..Limits::default() }
}

/// Limits under which a shell script stands in for the child.
fn scripted(name: &str, script: &str) -> Limits {
    let path = std::env::temp_dir().join(format!("helper-ai-{}-{name}", std::process::id()));
    // Written by another process: a descriptor open for writing here, inherited by a child of another test, would make the
    // script busy.
    let write = "printf '#!/bin/sh\\n%s\\n' \"$2\" > \"$1\" && chmod 700 \"$1\"";
    let arguments = ["-c", write, "sh", path.to_str().unwrap(), script];
    assert!(std::process::Command::new("/bin/sh").args(arguments).status().unwrap().success());
    Limits { program: path, timeout: Duration::from_secs(5), ..Limits::default() }
}

fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

fn request(name: &str, content: Vec<u8>) -> Prepare {
    Prepare {
        name: name.into(),
        mime_type: None,
        content,
        language: None,
        model: String::new(),
        max_tokens: 40,
        overlap_tokens: 8,
    }
}

async fn read(name: &str, mime_type: Option<&str>, content: Vec<u8>, limits: &Limits) -> Result<Document> {
    let given = Given { name: name.into(), mime_type: mime_type.map(str::to_owned), content };
    parse::read(vec![given], limits).await.pop().unwrap()
}

async fn prepare(request: Prepare, limits: &Limits) -> Result<Prepared> {
    parse::prepare(vec![request], words, limits).await.pop().unwrap()
}

async fn failure(name: &str, content: Vec<u8>, limits: &Limits) -> String {
    let error = read(name, None, content, limits).await.unwrap_err();
    assert!(matches!(error.kind, Kind::BadArgument | Kind::OverLimit), "{error:?}");
    error.message
}

#[tokio::test]
async fn a_document_comes_back_cut_into_chunks() {
    let page =
        format!("<title>Guide</title><h1>Refunds</h1><p>{}</p>", "The money is paid back to the card. ".repeat(20));
    let prepared = prepare(request("a.html", page.into_bytes()), &limits()).await.unwrap();
    assert_eq!(prepared.title.as_deref(), Some("Guide"));
    assert_eq!(prepared.language.as_deref(), Some("en"));
    assert!(prepared.chunks.len() > 3);
    assert!(prepared.chunks.iter().all(|chunk| chunk.heading == "Refunds" && chunk.tokens <= 40));
}

#[tokio::test]
async fn documents_that_go_together_come_back_one_by_one() {
    let given =
        [("a.txt", "one\n"), ("b.pdf", "%PDF-1.4"), ("c.html", "<title>Three</title><p>three</p>"), ("d.txt", "four")];
    let requests = given.map(|(name, content)| request(name, content.into())).to_vec();
    let prepared = parse::prepare(requests, words, &limits()).await;
    let texts: Vec<_> = prepared.iter().map(|one| one.as_ref().map(|one| one.text.trim())).collect();
    assert!(matches!(texts[..], [Ok("one"), Err(_), Ok("three"), Ok("four")]), "{texts:?}");
    assert_eq!(prepared[2].as_ref().unwrap().title.as_deref(), Some("Three"));
}

#[tokio::test]
async fn one_that_ends_the_child_of_many_ends_for_itself_alone() {
    let limits = Limits { memory_bytes: 64 * 1024 * 1024, ..limits() };
    let bomb = "<p>x".repeat(2_000_000).into_bytes();
    let given = [("a.txt", b"one".to_vec()), ("b.html", bomb), ("c.txt", b"three".to_vec())];
    let given = given.map(|(name, content)| Given { name: name.into(), mime_type: None, content }).to_vec();
    let read = parse::read(given, &limits).await;
    assert_eq!(read[0].as_ref().unwrap().text, "one");
    assert_eq!(read[1].as_ref().unwrap_err().message, "document could not be read: parser ran out of memory");
    assert_eq!(read[2].as_ref().unwrap().text, "three");
}

#[tokio::test]
async fn errors_of_the_reader_arrive_whole() {
    let error = read("a.pdf", None, b"%PDF-1.4".to_vec(), &limits()).await.unwrap_err();
    assert_eq!(error.message, "files of type \"application/pdf\" are not supported");
    assert!(error.hint.is_some());
    assert_eq!(failure("a.txt", vec![b'a', 0xe9], &limits()).await, "file is not valid UTF-8");
}

#[tokio::test]
async fn a_page_nested_two_hundred_thousand_levels_deep_is_read() {
    let page = format!("{}deep", "<div>".repeat(200_000));
    assert_eq!(read("a.html", None, page.into_bytes(), &limits()).await.unwrap().text, "deep");
}

#[tokio::test]
async fn a_child_that_runs_out_of_memory_is_an_error_of_its_document() {
    let limits = Limits { memory_bytes: 64 * 1024 * 1024, ..limits() };
    let page = "<p>x".repeat(2_000_000).into_bytes();
    assert_eq!(failure("a.html", page, &limits).await, "document could not be read: parser ran out of memory");
    let big = vec![b'a'; 100 * 1024 * 1024];
    assert_eq!(failure("a.txt", big, &limits).await, "document could not be read: parser ran out of memory");
}

#[tokio::test]
async fn a_child_that_computes_for_too_long_is_ended() {
    let limits = Limits { cpu_seconds: 1, ..limits() };
    // Some ten seconds of work, so that no machine is quick enough.
    let page = "<p>x</p>".repeat(4_000_000).into_bytes();
    assert_eq!(failure("a.html", page, &limits).await, "document could not be read: parser took too long");
}

#[tokio::test]
async fn a_child_that_hangs_is_killed() {
    let mut limits = scripted("hangs", "exec sleep 60");
    limits.timeout = Duration::from_millis(200);
    let start = Instant::now();
    assert_eq!(failure("a.txt", b"x".to_vec(), &limits).await, "document could not be read: parser took too long");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_child_that_dies_lies_or_says_too_much_is_an_error_of_its_document() {
    for (name, script, message) in [
        ("exits", "exit 3", "parser crashed"),
        ("dies", "kill -SEGV $$", "parser crashed"),
        ("overflows", "echo 'thread has overflowed its stack' >&2; kill -ABRT $$", "it is nested too deeply"),
        ("lies", "cat > /dev/null; printf '\\004\\000\\000\\000\\000\\000\\000\\000abcd'", "parser crashed"),
        ("silent", "cat > /dev/null", "parser crashed"),
    ] {
        let limits = scripted(name, script);
        let text = vec![b'x'; 1 << 20];
        assert_eq!(failure("a.txt", text, &limits).await, format!("document could not be read: {message}"), "{name}");
    }
    let limits = Limits { output_bytes: 1000, ..scripted("talks", "exec cat /dev/zero") };
    assert_eq!(failure("a.txt", b"x".to_vec(), &limits).await, "document could not be read: its text is too long");
}

#[tokio::test]
async fn a_child_dies_with_its_request() {
    let mark = std::env::temp_dir().join(format!("helper-ai-{}-alive", std::process::id()));
    let _ = std::fs::remove_file(&mark);
    let limits = scripted("waits", &format!("echo $$ > {}; exec sleep 60", mark.display()));
    let reading = tokio::spawn(async move { read("a.txt", None, b"x".to_vec(), &limits).await });
    let pid = loop {
        match std::fs::read_to_string(&mark).map(|pid| pid.trim().to_owned()) {
            Ok(pid) if !pid.is_empty() => break pid,
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    reading.abort();
    let start = Instant::now();
    while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(start.elapsed() < Duration::from_secs(5), "child {pid} lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn no_more_children_run_than_there_are_slots() {
    let log = std::env::temp_dir().join(format!("helper-ai-{}-slots", std::process::id()));
    let _ = std::fs::remove_file(&log);
    let limits = scripted("slots", &format!("echo start >> {0}; sleep 0.1; echo stop >> {0}; exit 1", log.display()));
    let readings: Vec<_> = (0..6)
        .map(|_| {
            let limits = limits.clone();
            tokio::spawn(async move { read("a.txt", None, b"x".to_vec(), &limits).await })
        })
        .collect();
    for reading in readings {
        assert!(reading.await.unwrap().is_err());
    }
    let mut running = 0;
    for line in std::fs::read_to_string(&log).unwrap().lines() {
        running += if line == "start" { 1 } else { -1 };
        assert!(running <= 2);
    }
}

#[tokio::test]
async fn sizes_that_make_no_sense_are_refused() {
    let request = Prepare { overlap_tokens: 40, ..request("a.txt", b"one".to_vec()) };
    assert!(prepare(request, &limits()).await.unwrap_err().message.contains("overlap"));
}
