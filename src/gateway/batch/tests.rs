//! Claims about the queue before the model, each checked with the real model in `$HELPER_MODEL`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::core::error::Kind;
use std::time::Duration;

fn directory() -> PathBuf {
    std::env::var_os("HELPER_MODEL").map(PathBuf::from).expect("HELPER_MODEL names the model: source scripts/env")
}

fn batcher() -> Batcher {
    Batcher::start(&directory(), 2)
}

fn texts(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("text number {n} {}", "about refunds ".repeat(10 + n % 30))).collect()
}

async fn until(mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it comes to hold");
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_come_in_order_whatever_they_are_batched_with() {
    let batcher = batcher();
    let model = batcher.model().await.unwrap();
    let (left, right) = (texts(150), vec!["one".to_owned(), "zwei".to_owned()]);
    let (a, b) = tokio::join!(batcher.embed("", left.clone(), false), batcher.embed("", right.clone(), true));
    for (texts, found) in [(left, a.unwrap()), (right, b.unwrap())] {
        assert_eq!(texts.len(), found.len());
        for (text, embedding) in texts.iter().zip(&found) {
            let alone = model.embed(&[text]).unwrap().remove(0);
            let dot: f32 = alone.iter().zip(embedding).map(|(x, y)| x * y).sum();
            assert!(dot > 0.99999, "{dot} for {text}");
        }
    }
    assert_eq!(batcher.queued(), 0);
    assert!(batcher.tokens() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_request_does_not_wait_for_a_large_one() {
    for interactive in [true, false] {
        let batcher = batcher();
        let large = tokio::spawn({
            let batcher = batcher.clone();
            async move { batcher.embed("", texts(400), false).await }
        });
        until(|| batcher.queued() > 64).await;
        batcher.embed("", vec!["small".to_owned()], interactive).await.unwrap();
        assert!(!large.is_finished(), "the small one came first");
        assert!(batcher.queued() > 0);
        large.abort();
        let _ = large.await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_request_leaves_the_queue_at_once() {
    let batcher = batcher();
    let large = tokio::spawn({
        let batcher = batcher.clone();
        async move { batcher.embed("", texts(2000), false).await }
    });
    until(|| batcher.queued() > 64).await;
    large.abort();
    assert!(large.await.unwrap_err().is_cancelled());
    assert_eq!(batcher.queued(), 0);
    assert!(batcher.cancelled() > 32);
    assert_eq!(batcher.embed("", vec!["after".to_owned()], true).await.unwrap().len(), 1);
    let free: Vec<usize> = batcher.inner.room.iter().map(|room| room.available_permits()).collect();
    assert_eq!(free, [WAITING_TEXTS; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_limit_waits_for_the_model() {
    let batcher = batcher();
    batcher.model().await.unwrap();
    let mut requests = Vec::new();
    for _ in 0..WAITING_TEXTS / SLICE_TEXTS {
        let batcher = batcher.clone();
        requests.push(tokio::spawn(async move { batcher.embed("", texts(200), false).await }));
    }
    for _ in 0..100 {
        assert!(batcher.queued() <= WAITING_TEXTS);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Background work that fills its queue leaves room for those who wait.
    batcher.embed("", vec!["quick".to_owned()], true).await.unwrap();
    requests.iter().for_each(tokio::task::JoinHandle::abort);
    for request in requests {
        let _ = request.await;
    }
    assert_eq!(batcher.queued(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_loaded_is_told_to_each_caller_and_tried_again() {
    let dir = std::env::temp_dir().join(format!("helper-ai-batch-{}", std::process::id())).join("all-MiniLM-L6-v2");
    std::fs::create_dir_all(dir.parent().unwrap()).unwrap();
    let batcher = Batcher::start(&dir, 1);
    let one = || vec!["one".to_owned()];
    let (a, b) = tokio::join!(batcher.embed("", one(), true), batcher.count_tokens("", one()));
    assert_eq!(a.unwrap_err().kind, Kind::NotReady);
    assert_eq!(b.unwrap_err().kind, Kind::NotReady);
    std::os::unix::fs::symlink(directory(), &dir).unwrap();
    assert_eq!(batcher.embed("", one(), true).await.unwrap().len(), 1);
    std::fs::remove_dir_all(dir.parent().unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_text_and_another_model_are_refused() {
    let batcher = batcher();
    let error = batcher.embed("", vec!["a".to_owned(), String::new()], true).await.unwrap_err();
    assert_eq!((error.kind, error.detail.unwrap().as_str()), (Kind::BadArgument, "It is number 2 of 2."));
    let error = batcher.embed("other", vec!["a".to_owned()], true).await.unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (Kind::UnknownObject, "local model \"other\" is not installed"));
    assert_eq!(batcher.count_tokens("other", Vec::new()).await.unwrap_err().kind, Kind::UnknownObject);
    assert!(batcher.embed("", Vec::new(), true).await.unwrap().is_empty());
    assert!(batcher.loaded().is_none(), "none of these needs the model");
    let counts = batcher.count_tokens("all-MiniLM-L6-v2", vec!["hello world".to_owned(), String::new()]).await;
    assert_eq!(counts.unwrap(), [2, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_the_model_is_an_error_of_that_request_alone() {
    let batcher = batcher();
    batcher.model().await.unwrap();
    let beyond_the_vocabulary = vec![vec![u32::MAX]];
    let (_ticket, reply) = Queue::push(&batcher.inner.queue, beyond_the_vocabulary, true, None);
    let error = reply.await.unwrap().unwrap_err();
    assert_eq!(error.kind, Kind::Bug);
    assert_eq!(batcher.embed("", texts(4), true).await.unwrap().len(), 4);
    assert_eq!(batcher.queued(), 0);
}
