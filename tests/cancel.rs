//! Leaving a call that waits for the gateway: by cancel, by timeout, by hanging up.
//!
//! The figures are printed; what is asserted is that the call ended although its work could not have been done.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use cluster::{Cluster, Session, signal, until};
use std::time::{Duration, Instant};
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

/// Texts that take the model many minutes.
const ENDLESS: &str =
    "select count(*) from helper.embed_many(array(select repeat('word ', 150) || n from generate_series(1, 20000) n))";

/// A server whose gateway has its model in memory, with the session that looks on.
async fn prepared() -> (Cluster, Session) {
    let cluster = Cluster::start().await;
    let watcher = cluster.admin().await;
    watcher.run("select helper.create_workspace('Test'); select helper.embed('warm')").await;
    (cluster, watcher)
}

async fn counted(watcher: &Session, what: &str) -> i64 {
    let status = watcher.status().await;
    status["gateway"][what].as_i64().unwrap_or_else(|| panic!("{status}"))
}

async fn until_under_way(watcher: &Session) {
    until("the request to be under way", async || {
        (counted(watcher, "in_flight").await > 0 && counted(watcher, "queued_texts").await > 0).then_some(())
    })
    .await;
}

/// Waits until the gateway has nothing to do, and sees that it was dropped rather than done.
async fn until_dropped(watcher: &Session, cancelled_before: i64, since: Instant) {
    until("the gateway to drop the work", async || {
        (counted(watcher, "in_flight").await == 0 && counted(watcher, "queued_texts").await == 0).then_some(())
    })
    .await;
    println!("  work dropped by the gateway after {:?}", since.elapsed());
    assert!(counted(watcher, "cancelled").await > cancelled_before);
    let tokens = counted(watcher, "tokens").await;
    assert!(tokens < 20_000 * 150 / 2, "{tokens} tokens went through the model");
}

#[tokio::test]
async fn a_cancelled_call_ends_and_the_gateway_drops_its_work() {
    let (cluster, watcher) = prepared().await;
    let session = cluster.admin().await;
    let cancelled = counted(&watcher, "cancelled").await;
    let token = session.cancel_token();
    let call = session.batch_execute(ENDLESS);
    let cancel = async {
        until_under_way(&watcher).await;
        let begin = Instant::now();
        token.cancel_query(NoTls).await.unwrap();
        begin
    };
    let (outcome, begin) = tokio::join!(
        async {
            let outcome = call.await;
            (outcome, Instant::now())
        },
        cancel
    );
    println!("cancel: call ended after {:?}", outcome.1 - begin);
    assert_eq!(outcome.0.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));
    until_dropped(&watcher, cancelled, begin).await;
    session.run("select helper.embed('next')").await;
}

#[tokio::test]
async fn a_statement_timeout_ends_a_call_and_the_gateway_drops_its_work() {
    let (cluster, watcher) = prepared().await;
    let session = cluster.admin().await;
    let cancelled = counted(&watcher, "cancelled").await;
    session.run("set statement_timeout = '1500ms'").await;
    let begin = Instant::now();
    let error = session.error(ENDLESS).await;
    println!("statement_timeout of 1500 ms: call ended after {:?}", begin.elapsed());
    assert_eq!(error.code(), &SqlState::QUERY_CANCELED);
    until_dropped(&watcher, cancelled, begin + Duration::from_millis(1500)).await;
    session.run("select helper.embed('next')").await;
}

#[tokio::test]
async fn a_vanished_client_ends_its_call_and_the_gateway_drops_its_work() {
    let (cluster, watcher) = prepared().await;
    let session = cluster.admin().await;
    let pid = session.pid().await;
    let cancelled = counted(&watcher, "cancelled").await;
    let call = tokio::spawn(async move { session.batch_execute(ENDLESS).await });
    until_under_way(&watcher).await;
    let begin = Instant::now();
    // The session goes with the task, and its socket with it.
    call.abort();
    let gone = async || {
        let there: bool = watcher.one("select exists (select from pg_stat_activity where pid = $1)", &[&pid]).await;
        (!there).then_some(())
    };
    until("the session of the vanished client to end", gone).await;
    println!("vanished client: session ended after {:?}", begin.elapsed());
    until_dropped(&watcher, cancelled, begin).await;
}

/// The gateway does nothing at all, so that a call can end by interrupt only.
#[tokio::test]
async fn calls_to_a_stopped_gateway_can_be_left_and_go_on_when_it_does() {
    let (cluster, watcher) = prepared().await;
    let pids = cluster.pids().await;
    watcher.run("select helper.add_document('Refunds', 'The money is paid back to the card within five days.')").await;
    watcher.one::<i64>("select helper.wait_indexed()", &[]).await;
    signal(pids.gateway, "STOP");

    for call in [
        "select helper.embed('x')",
        "select helper.count_tokens('x')",
        "select * from helper.chunk('x')",
        "select * from helper.search('refunds')",
        "select helper.ask('How do refunds work?')",
    ] {
        let session = cluster.admin().await;
        session.run("set statement_timeout = '300ms'").await;
        let begin = Instant::now();
        assert_eq!(session.error(call).await.code(), &SqlState::QUERY_CANCELED, "{call}");
        println!("{call}: ended after {:?} at a timeout of 300 ms", begin.elapsed());
    }

    // An administrator who looks what is wrong is told.
    let status = watcher.status().await;
    assert_eq!(status["error"], "the helper_ai gateway does not answer", "{status}");
    assert_eq!(status["gateway"]["pid"], pids.gateway);

    // A terminated session and a cancelled one, both in the middle of a call.
    let (terminated, cancelled) = (cluster.admin().await, cluster.admin().await);
    let pids_waiting = (terminated.pid().await, cancelled.pid().await);
    let calls = async {
        tokio::join!(
            terminated.batch_execute("select helper.embed('x')"),
            cancelled.batch_execute("select helper.embed('x')")
        )
    };
    let waiting = "select count(*) from pg_stat_activity where pid in ($1, $2) and wait_event_type = 'Extension'";
    let end = async {
        until("both calls to wait", async || {
            (watcher.one::<i64>(waiting, &[&pids_waiting.0, &pids_waiting.1]).await == 2).then_some(())
        })
        .await;
        let ended = "select pg_terminate_backend($1, 10000) and pg_cancel_backend($2)";
        assert!(watcher.one::<bool>(ended, &[&pids_waiting.0, &pids_waiting.1]).await);
    };
    let ((terminated, cancelled), ()) = tokio::join!(calls, end);
    assert_eq!(terminated.unwrap_err().code(), Some(&SqlState::ADMIN_SHUTDOWN));
    assert_eq!(cancelled.unwrap_err().code(), Some(&SqlState::QUERY_CANCELED));

    // A document added meanwhile waits, and so does its adder, as long as they like.
    watcher.run("select helper.add_document('Later', 'It was stopped.')").await;
    let waiter = cluster.admin().await;
    waiter.run("set statement_timeout = '300ms'").await;
    assert_eq!(waiter.error("select helper.wait_indexed()").await.code(), &SqlState::QUERY_CANCELED);

    signal(pids.gateway, "CONT");
    watcher.run("select helper.embed('next')").await;
    assert_eq!(watcher.one::<i64>("select helper.wait_indexed()", &[]).await, 2);
    until("nothing to be left of what was abandoned", async || {
        (counted(&watcher, "in_flight").await == 0).then_some(())
    })
    .await;
    assert_eq!(cluster.pids().await, pids);
}

/// More connections than the system lets wait, all abandoned: the next one must not block where no cancel reaches it.
#[tokio::test]
async fn a_stopped_gateway_with_a_full_queue_of_connections_cannot_trap_a_session() {
    let (cluster, watcher) = prepared().await;
    let pids = cluster.pids().await;
    signal(pids.gateway, "STOP");
    let filler = tokio::task::spawn_blocking({
        let path = cluster.data().join("helper_ai.sock");
        move || {
            // The standard library's connect blocks when the queue is full; a thread may stay there until the end.
            let (tell, told) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let mut held = Vec::new();
                while let Ok(stream) = std::os::unix::net::UnixStream::connect(&path) {
                    held.push(stream);
                    if tell.send(held.len()).is_err() {
                        return;
                    }
                }
            });
            let mut count = 0;
            while let Ok(now) = told.recv_timeout(Duration::from_secs(2)) {
                count = now;
            }
            count
        }
    });
    let count = filler.await.unwrap();
    println!("{count} connections wait for the stopped gateway");
    let session = cluster.admin().await;
    session.run("set statement_timeout = '500ms'").await;
    assert_eq!(session.error("select helper.embed('x')").await.code(), &SqlState::QUERY_CANCELED);
    session.run("set statement_timeout = 0").await;
    assert_eq!(session.error("select helper.embed('x')").await.code(), &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE);
    // As the hint says.
    signal(pids.gateway, "KILL");
    session.run("select helper.embed('x')").await;
    drop(watcher);
}
