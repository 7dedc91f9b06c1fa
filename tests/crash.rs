//! Processes killed with -9 under load: what was promised is kept, and nothing is done twice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use cluster::{Cluster, Session, is_alive, signal, until};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Every document that was promised is indexed, each once and whole, and the queue is empty.
async fn assert_each_indexed_once(session: &Session, documents: i64) {
    let ready: i64 = session.one("select helper.wait_indexed(timeout => '5 min')", &[]).await;
    assert_eq!(ready, documents);
    let checks = [
        (
            "documents that are not ready",
            "select count(*) from helper.knowledge_sources where status <> 'ready' or error is not null",
        ),
        (
            "documents with other chunks than they say",
            "select count(*) from helper.knowledge_sources s where s.chunk_count is distinct from \
               (select count(*) from helper.knowledge_chunks c where c.source_id = s.id) or s.chunk_count = 0",
        ),
        (
            "chunks twice at one place",
            "select count(*) from (select source_id, ordinal from helper.knowledge_chunks group by 1, 2 having count(*) > 1) d",
        ),
        (
            "chunks without exactly one embedding and one row of terms",
            "select count(*) from helper.knowledge_chunks c where \
               (select count(*) from helper.knowledge_vectors v where v.chunk_id = c.id) <> 1 or \
               (select count(*) from helper.knowledge_terms t where t.chunk_id = c.id) <> 1",
        ),
        (
            "documents indexed other than once",
            "select count(*) from helper.knowledge_sources s where \
               (select count(*) from helper.jobs j where j.key = s.id and j.status = 'succeeded') <> 1",
        ),
        ("jobs that did not succeed", "select count(*) from helper.jobs where status <> 'succeeded'"),
        ("jobs left", "select (select count(*) from helper.job_queue) + (select count(*) from helper.job_leases)"),
        (
            "chunks missing from the counts",
            "select (select count(*) from helper.knowledge_chunks) - (select sum(chunks)::bigint from helper.knowledge_stats)",
        ),
    ];
    for (what, sql) in checks {
        assert_eq!(session.one::<i64>(sql, &[]).await, 0, "{what}");
    }
}

/// Adds documents of some sentences each.
async fn add_documents(session: &Session, from: i32, count: i32) {
    let sql = "select count(helper.add_document('Document ' || n, \
        (select string_agg('Number ' || n || ' has a sentence about matter ' || s || '. ', '') from generate_series(1, 6) s))) \
        from generate_series($1::int, $1 + $2::int - 1) n";
    assert_eq!(session.one::<i64>(sql, &[&from, &count]).await, i64::from(count));
}

async fn started_at(session: &Session) -> String {
    session.one("select pg_postmaster_start_time()::text", &[]).await
}

/// What one busy session has seen.
#[derive(Default)]
struct Seen {
    succeeded: AtomicU64,
    failed: AtomicU64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_killed_fifty_times_loses_no_document_and_no_session() {
    const KILLS: usize = 50;
    let cluster = Arc::new(Cluster::with("helper_ai.indexing_concurrency = 4").await);
    let watcher = cluster.admin().await;
    watcher.run("select helper.create_workspace('Test')").await;
    add_documents(&watcher, 1, 40).await;
    let before = cluster.pids().await;
    let started = started_at(&watcher).await;

    let stop = Arc::new(AtomicBool::new(false));
    let added = Arc::new(AtomicU64::new(40));
    let mut busy = Vec::new();
    for number in 0..8 {
        let seen = Arc::new(Seen::default());
        let (cluster, stop, added, told) =
            (Arc::clone(&cluster), Arc::clone(&stop), Arc::clone(&added), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            let session = cluster.admin().await;
            let pid = session.pid().await;
            let mut failed_before = false;
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let sql = match number {
                    0 | 1 => "select helper.embed('a short question')",
                    2 => "select count(*) from helper.embed_many(array_fill('some text'::text, array[4]))",
                    3 => "select helper.count_tokens('some text')",
                    4 => "select count(*) from helper.chunk('# One\n\nSome text.')",
                    5 | 6 => "select count(*) from helper.search('matter')",
                    _ => "select helper.answer('What has a sentence about matter 3?')",
                };
                match session.batch_execute(sql).await {
                    Ok(()) => {
                        failed_before = false;
                        told.succeeded.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => {
                        assert_eq!(error.code().map(|code| code.code()), Some("55000"), "{sql}: {error:?}");
                        // Kills come only after everybody got through, so that the next call must.
                        assert!(!failed_before, "{sql}: failed twice in a row: {error:?}");
                        failed_before = true;
                        told.failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
                if number == 6 && round % 4 == 0 {
                    let n = 1000 + round;
                    session
                        .run(&format!("select helper.add_document('Added {n}', 'A document added in round {n}.')"))
                        .await;
                    added.fetch_add(1, Ordering::Relaxed);
                }
            }
            assert_eq!(session.pid().await, pid);
        });
        busy.push((task, seen));
    }

    let mut slowest = Duration::ZERO;
    let mut total = Duration::ZERO;
    let mut killed = 0;
    for _ in 0..KILLS {
        let gateway = cluster.pids().await.gateway;
        assert_ne!(gateway, killed);
        signal(gateway, "KILL");
        killed = gateway;
        let begin = Instant::now();
        let calls: Vec<u64> = busy.iter().map(|(_, seen)| seen.succeeded.load(Ordering::Relaxed)).collect();
        // A call in the same millisecond may still meet the old one; the next may not.
        if let Err(error) = watcher.batch_execute("select helper.embed('a call')").await {
            assert_eq!(error.code().map(|code| code.code()), Some("55000"), "{error:?}");
            watcher.run("select helper.embed('the next call')").await;
        }
        slowest = slowest.max(begin.elapsed());
        total += begin.elapsed();
        // A call that ends well may have begun before the kill, the second one did not.
        until("every busy session to get through", async || {
            for (task, _) in &busy {
                assert!(!task.is_finished(), "a busy session ended");
            }
            busy.iter()
                .zip(&calls)
                .all(|((_, seen), before)| seen.succeeded.load(Ordering::Relaxed) >= before + 2)
                .then_some(())
        })
        .await;
    }
    stop.store(true, Ordering::Relaxed);
    let (mut succeeded, mut failed) = (0, 0);
    for (task, seen) in busy {
        task.await.unwrap();
        succeeded += seen.succeeded.load(Ordering::Relaxed);
        failed += seen.failed.load(Ordering::Relaxed);
    }
    println!(
        "{KILLS} kills: {succeeded} calls succeeded, {failed} failed with 55000; next call after {:?} on average, {slowest:?} at most",
        total / KILLS as u32
    );
    assert!(failed > 0, "no call was under way at any of the kills");
    assert!(
        total / (KILLS as u32) < Duration::from_secs(2),
        "the next call took {:?} on average",
        total / KILLS as u32
    );

    let begin = Instant::now();
    assert_each_indexed_once(&watcher, added.load(Ordering::Relaxed) as i64).await;
    println!("rest of {} documents indexed after {:?}", added.load(Ordering::Relaxed), begin.elapsed());
    let after = cluster.pids().await;
    assert_eq!((after.launcher, after.worker), (before.launcher, before.worker));
    assert_eq!(started_at(&watcher).await, started, "the server restarted");
    assert!(!cluster.log().contains("terminating any other active server processes"));
}

/// A server of some hundred documents, stopped at a moment when some are indexed, some under way and some wait.
async fn in_the_middle(cluster: &Cluster) -> Session {
    let session = cluster.admin().await;
    session.run("select helper.create_workspace('Test')").await;
    add_documents(&session, 1, 200).await;
    let middle = "select (select count(*) from helper.knowledge_sources where status = 'ready') >= 5 \
        and exists (select from helper.job_leases) and exists (select from helper.job_queue)";
    until("the middle of indexing", async || session.one::<bool>(middle, &[]).await.then_some(())).await;
    session
}

#[tokio::test]
async fn a_killed_worker_loses_no_document() {
    let cluster = Cluster::start().await;
    let session = in_the_middle(&cluster).await;
    let before = session.pids().await;
    let begin = Instant::now();
    // Postgres restarts all of its processes when one of them is killed.
    signal(before.worker, "KILL");
    let session = cluster.back_after(&before).await;
    let next = cluster.pids().await;
    println!("worker killed: all processes back after {:?}", begin.elapsed());
    assert!(next.worker != before.worker && next.gateway != before.gateway);
    assert!(!is_alive(before.gateway), "the former gateway is still there");
    assert_each_indexed_once(&session, 200).await;
}

#[tokio::test]
async fn a_killed_launcher_loses_no_document() {
    let cluster = Cluster::start().await;
    let session = in_the_middle(&cluster).await;
    let before = session.pids().await;
    signal(before.launcher, "KILL");
    let session = cluster.back_after(&before).await;
    cluster.pids().await;
    until("the former gateway to end", async || (!is_alive(before.gateway)).then_some(())).await;
    assert_each_indexed_once(&session, 200).await;
}

#[tokio::test]
async fn a_killed_postmaster_takes_all_processes_with_it_and_loses_no_document() {
    let cluster = Cluster::start().await;
    let session = in_the_middle(&cluster).await;
    let before = session.pids().await;
    // Even a gateway that is stopped must go.
    signal(before.gateway, "STOP");
    let begin = Instant::now();
    signal(cluster.postmaster(), "KILL");
    for pid in [before.launcher, before.worker, before.gateway] {
        until("the extension's processes to end", async || (!is_alive(pid)).then_some(())).await;
    }
    println!("postmaster killed: launcher, worker and a stopped gateway gone after {:?}", begin.elapsed());
    drop(session);
    until("the server to start again", async || cluster.try_up().then_some(())).await;
    let session = cluster.admin().await;
    let after = cluster.pids().await;
    assert!(after.gateway != before.gateway);
    assert_each_indexed_once(&session, 200).await;
}

#[tokio::test]
async fn a_server_stopped_and_started_in_the_middle_of_indexing_loses_no_document() {
    let cluster = Cluster::start().await;
    for mode in ["fast", "immediate"] {
        let session = if mode == "fast" { in_the_middle(&cluster).await } else { cluster.admin().await };
        let before = cluster.pids().await;
        let took = cluster.stop(mode);
        println!("{mode} stop in the middle of indexing: {took:?}");
        for pid in [before.launcher, before.worker, before.gateway] {
            until("the extension's processes to end", async || (!is_alive(pid)).then_some(())).await;
        }
        drop(session);
        cluster.up();
    }
    let session = cluster.admin().await;
    assert_each_indexed_once(&session, 200).await;
}
