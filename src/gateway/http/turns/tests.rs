use super::*;
use crate::core::chat::Kind;
use std::time::Duration;

fn provider(max_concurrent: u32, requests_per_minute: u32, tokens_per_minute: u64) -> Provider {
    Provider {
        own: false,
        id: [1; 16],
        name: "p".into(),
        kind: Kind::OpenAi,
        base_url: String::new(),
        credential: Default::default(),
        allow_private: false,
        max_concurrent,
        requests_per_minute,
        tokens_per_minute,
        connect_timeout_ms: 0,
        first_byte_timeout_ms: 0,
        idle_timeout_ms: 0,
        max_retries: 0,
        max_reply_bytes: 0,
        options: String::new(),
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[tokio::test]
async fn workspaces_take_turns_however_many_requests_one_has() {
    let turns = Arc::new(Turns::default());
    let one = provider(1, 0, 0);
    let held = turns.take(&one, [0; 16], 1, soon()).await.unwrap();
    let (served, mut order) = tokio::sync::mpsc::unbounded_channel();
    for (workspace, count) in [(1, 5), (2, 1), (3, 2)] {
        for _ in 0..count {
            let (turns, one, served) = (turns.clone(), one.clone(), served.clone());
            let before = turns.counts().1;
            let waiting = turns.clone();
            tokio::spawn(async move {
                let turn = turns.take(&one, [workspace; 16], 1, soon()).await.unwrap();
                served.send(workspace).unwrap();
                drop(turn);
            });
            while waiting.counts().1 == before {
                tokio::task::yield_now().await;
            }
        }
    }
    drop((held, served));
    let mut seen = Vec::new();
    while let Some(workspace) = order.recv().await {
        seen.push(workspace);
    }
    assert_eq!(seen, [1, 2, 3, 1, 3, 1, 1, 1]);
    assert_eq!(turns.counts(), (0, 0));
}

#[tokio::test]
async fn whoever_waits_too_long_is_told_by_which_limit() {
    let turns = Arc::new(Turns::default());
    let at_once = Instant::now() + Duration::from_millis(10);
    let held = turns.take(&provider(1, 0, 0), [1; 16], 1, soon()).await.unwrap();
    let refused = turns.take(&provider(1, 0, 0), [1; 16], 1, at_once).await.unwrap_err();
    assert_eq!(refused, Limit::Concurrent(1));
    drop(held);
    let turns = Arc::new(Turns::default());
    drop(turns.take(&provider(0, 1, 0), [1; 16], 1, soon()).await.unwrap());
    let at_once = Instant::now() + Duration::from_millis(10);
    assert_eq!(turns.take(&provider(0, 1, 0), [1; 16], 1, at_once).await.unwrap_err(), Limit::Requests(1));
    let turns = Arc::new(Turns::default());
    drop(turns.take(&provider(0, 0, 100), [1; 16], 1000, soon()).await.unwrap());
    assert_eq!(turns.take(&provider(0, 0, 100), [1; 16], 1, at_once).await.unwrap_err(), Limit::Tokens(100));
    assert_eq!(turns.counts(), (0, 0));
}

#[tokio::test]
async fn tokens_that_were_not_used_are_given_back() {
    let turns = Arc::new(Turns::default());
    let limited = provider(0, 0, 100);
    let mut turn = turns.take(&limited, [1; 16], 100, soon()).await.unwrap();
    let (waits, limit) = (turns.clone(), limited.clone());
    let waiting = tokio::spawn(async move { waits.take(&limit, [1; 16], 50, soon()).await.is_ok() });
    while turns.counts().1 == 0 {
        tokio::task::yield_now().await;
    }
    turn.settle(10);
    assert!(waiting.await.unwrap());
}

#[tokio::test]
async fn a_bucket_fills_while_one_waits() {
    let turns = Arc::new(Turns::default());
    let limited = provider(0, 6000, 0);
    for _ in 0..6000 {
        drop(turns.take(&limited, [1; 16], 1, soon()).await.unwrap());
    }
    // A hundred a second from here on.
    for _ in 0..5 {
        drop(turns.take(&limited, [1; 16], 1, soon()).await.unwrap());
    }
}

#[tokio::test]
async fn whoever_goes_away_leaves_the_queue_and_gives_its_turn_back() {
    let turns = Arc::new(Turns::default());
    let one = provider(1, 0, 0);
    let held = turns.take(&one, [1; 16], 1, soon()).await.unwrap();
    let task = |turns: Arc<Turns>, one: Provider| {
        tokio::spawn(async move { turns.take(&one, [2; 16], 1, soon()).await.map(drop) })
    };
    let gone = task(turns.clone(), one.clone());
    while turns.counts().1 == 0 {
        tokio::task::yield_now().await;
    }
    gone.abort();
    let _ = gone.await;
    assert_eq!(turns.counts(), (1, 0));
    let stays = task(turns.clone(), one.clone());
    while turns.counts().1 == 0 {
        tokio::task::yield_now().await;
    }
    drop(held);
    stays.await.unwrap().unwrap();
    assert_eq!(turns.counts(), (0, 0));
}
