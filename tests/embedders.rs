//! Workspaces that are indexed by providers' models, and moved from one model to another: a provider of our own at the
//! other end, real roles in between.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod embedding;
mod provider;

use cluster::{signal, until};
use embedding::{ANN, BEA, CAT, Place, workspace_of};
use provider::{Answer, Say};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[tokio::test]
async fn a_workspace_is_indexed_and_searched_by_the_model_that_is_set() {
    let place = Place::new().await;
    place.by_default("small").await;
    place.add(1, 120).await;
    assert_eq!(place.indexed().await, 120);
    assert_eq!(place.vectors().await, [("open/small@32".to_owned(), 120)]);
    let requests = place.server.count();
    assert!(requests < 30, "{requests} requests for 120 short documents");
    assert!(place.server.seen().iter().all(|seen| seen.json()["dimensions"] == 32 && seen.json()["model"] == "small"));
    assert_eq!(place.nearest(77).await, "Document 77");
    // The local provider still answers, by the document's own sentences.
    let answer: String =
        place.ann.one("select r.answer from helper.answer('What is settled? The matter of number 7?') r", &[]).await;
    assert!(answer.contains("is settled"), "{answer}");
    let reply: String =
        place.ann.one("select helper.ask_async('What is settled? The matter of number 8?')::text", &[]).await;
    let sql = format!("select m.content from helper.messages m where m.id = '{reply}' and m.status = 'done'");
    let content: String =
        until("the reply", async || place.ann.query(&sql, &[]).await.unwrap().first().map(|row| row.get(0))).await;
    assert!(content.contains("is settled"), "{content}");
    let sql = "select jsonb_object_agg(purpose, n) from (select u.purpose, count(*) n from helper.usage_records u \
        where u.model = 'small' and u.status = 'succeeded' and u.input_tokens > 0 and u.cost > 0 group by u.purpose) p";
    until("records of all calls", async || {
        let counts: Option<Value> = place.admin.query_one(sql, &[]).await.unwrap().get(0);
        let counts = counts?;
        (counts["index"].as_i64()? + 3 == place.server.count() as i64 && counts["search"] == 3).then_some(())
    })
    .await;
}

#[tokio::test]
async fn another_model_is_made_ready_beside_the_one_in_use_and_takes_its_place() {
    let place = Place::new().await;
    place.add(1, 40).await;
    place.indexed().await;
    let local = place.vectors().await[0].0.clone();
    // Held, so that the state in between can be looked at.
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    place
        .server
        .answer_by(move |_| if gate.load(Ordering::SeqCst) { Answer::Say(Say::default()) } else { Answer::Hang });
    assert_eq!(place.ann.one::<i64>("select helper.reembed('open/small')", &[]).await, 40);
    until("the first request", async || (place.server.count() > 0).then_some(())).await;
    let progress: Value = place.ann.one("select to_jsonb(p) from helper.reembed_progress p", &[]).await;
    assert_eq!(
        (&progress["status"], &progress["chunks"], &progress["done"]),
        (&"building".into(), &40.into(), &0.into())
    );
    // Searched and added to meanwhile, by the old one.
    assert_eq!(place.nearest(7).await, "Document 7");
    place.add(41, 2).await;
    assert_eq!(place.indexed().await, 42);
    assert_eq!(place.vectors().await, [(local.clone(), 42)]);
    // Another one has to wait for it.
    let error = place.ann.error("select helper.reembed('open/large')").await;
    assert_eq!(error.code().code(), "55000");
    assert!(error.hint().is_some());
    assert!(place.ann.one::<bool>("select helper.stop_reembed()", &[]).await);
    open.store(true, Ordering::SeqCst);
    place.cluster.restart();
    let place = Place { ann: place.cluster.user(ANN).await, admin: place.cluster.admin().await, ..place };
    assert_eq!(place.ann.one::<String>("select p.status from helper.reembed_progress p", &[]).await, "stopped");
    assert_eq!(place.ann.one::<i64>("select helper.reembed('open/small')", &[]).await, 42);
    place.current("open/small@32").await;
    place.only("open/small@32", 42).await;
    assert_eq!(place.ann.one::<i64>("select count(*) from helper.reembed_progress", &[]).await, 0);
    assert_eq!(place.nearest(41).await, "Document 41");
    // And back, with the sentences that only the local model embeds.
    place.ann.run("select helper.reembed('local')").await;
    place.only(&local, 42).await;
    let without: i64 = place
        .admin
        .one("select count(*) from helper.knowledge_vectors v where octet_length(v.sentences) = 0", &[])
        .await;
    assert_eq!(without, 0);
    assert_eq!(place.nearest(7).await, "Document 7");
    assert_eq!(place.ann.one::<i64>("select helper.reembed('local')", &[]).await, 0);
}

#[tokio::test]
async fn whoever_is_killed_in_the_middle_it_goes_on_with_what_is_left() {
    let place = Place::new().await;
    place.by_default("small").await;
    place.add(1, 30).await;
    place.indexed().await;
    let before = place.server.count();
    place.server.answer_by(|_| Answer::Hang);
    place.ann.run("select helper.reembed('open/large')").await;
    for round in 0..3 {
        until("a request", async || (place.server.count() > before + round).then_some(())).await;
        let pids = place.cluster.pids().await;
        let (victim, other) = if round == 1 { (pids.gateway, pids.worker) } else { (pids.worker, pids.gateway) };
        assert_ne!(victim, other);
        if round == 2 {
            place.server.answer_by(|_| Answer::Say(Say::default()));
        }
        let witness = place.cluster.admin().await;
        signal(victim, "KILL");
        if victim == pids.worker {
            // The server ends every session when a process of its own dies so, and then comes back.
            until("the end of a session", async || witness.query("select 1", &[]).await.is_err().then_some(())).await;
            until("the server", async || {
                let session = place.cluster.try_connect("postgres", "postgres").await.ok()?;
                session.query("select 1", &[]).await.ok().map(drop)
            })
            .await;
        }
    }
    let place = Place { ann: place.cluster.user(ANN).await, admin: place.cluster.admin().await, ..place };
    place.only("open/large@32", 30).await;
    assert_eq!(place.nearest(3).await, "Document 3");
}

#[tokio::test]
async fn what_a_provider_cannot_do_now_waits_and_is_lost_to_nobody() {
    let place = Place::new().await;
    place.by_default("small").await;
    place.server.next(Answer::status(503, "{}")).next(Answer::status(429, "{}"));
    place.add(1, 1).await;
    let sql = "select s.error ->> 'sqlstate' from helper.knowledge_sources s where s.error is not null";
    until("the first error", async || {
        let rows = place.ann.query(sql, &[]).await.unwrap();
        rows.first().map(|row| row.get::<_, String>(0)).filter(|state| state == "38000" || state == "53000")
    })
    .await;
    assert_eq!(place.indexed().await, 1);
    assert_eq!(place.server.count(), 3);
    let clean: i64 = place
        .ann
        .one("select count(*) from helper.knowledge_sources s where s.status = 'ready' and s.error is null", &[])
        .await;
    assert_eq!(clean, 1);
    // Over its budget the workspace's documents wait.
    place.ann.run("select helper.set_budget(1, 'tokens', 'day', workspace => helper.current_workspace())").await;
    place.add(2, 1).await;
    until("the budget's error", async || {
        let rows = place.ann.query(sql, &[]).await.unwrap();
        rows.first().map(|row| row.get::<_, String>(0)).filter(|state| state == "53400")
    })
    .await;
    assert_eq!(place.server.count(), 3);
    // A model that is not there any more is an error with advice, not a search that finds nothing.
    place.admin.run("update helper.providers set enabled = false").await;
    let error = place.ann.error("select * from helper.search('number')").await;
    assert_eq!(error.code().code(), "55000");
    assert!(error.hint().unwrap().contains("helper.reembed"), "{error:?}");
}

#[tokio::test]
async fn only_admins_choose_and_only_members_see() {
    let place = Place::new().await;
    place.add(1, 1).await;
    place.indexed().await;
    place.server.answer_by(|_| Answer::Hang);
    let bea = place.cluster.user(BEA).await;
    let cat = place.cluster.user(CAT).await;
    for (session, code) in [(&bea, "42501"), (&cat, "42704")] {
        for sql in ["select helper.reembed('open/small', $w)", "select helper.stop_reembed($w)"] {
            let sql = sql.replace("$w", &format!("'{}'", place.workspace));
            let error = session.error(&sql).await;
            assert_eq!(error.code().code(), code, "{sql}");
        }
        let error = session.error("update helper.knowledge_models set status = 'old'").await;
        assert_eq!(error.code().code(), "42501");
    }
    place.ann.run("select helper.reembed('open/small')").await;
    for (session, count) in [(&place.ann, 2), (&bea, 2), (&cat, 0)] {
        assert_eq!(session.one::<i64>("select count(*) from helper.knowledge_models", &[]).await, count);
        assert_eq!(session.one::<i64>("select count(*) from helper.reembed_progress", &[]).await, count / 2);
    }
    assert_eq!(place.ann.error("select helper.reembed('open/nothing')").await.code().code(), "42704");
    // Given up, what it has made is deleted.
    place.ann.run("select helper.stop_reembed(discard => true)").await;
    let rows = "select count(*) from helper.knowledge_models";
    until("the sweep", async || (place.ann.one::<i64>(rows, &[]).await == 1).then_some(())).await;
    assert_eq!(place.indexed().await, 1);
}

#[tokio::test]
async fn a_reembed_of_a_workspace_gives_way_to_others_after_each_slice() {
    let place = Place::new().await;
    place.by_default("small").await;
    let mut all = Vec::new();
    for (who, count) in [(ANN, 160), (BEA, 160), (CAT, 1)] {
        let session = place.cluster.user(who).await;
        let workspace = if who == ANN { place.workspace.clone() } else { workspace_of(&session, "Own").await };
        let add = "select count(helper.add_document('Document ' || n, 'The matter of number ' || n || ' is settled. It was long.', \
            workspace => $1::text::uuid)) from generate_series(1, $2::int) n";
        session.one::<i64>(add, &[&workspace, &count]).await;
        all.push((session, workspace));
    }
    for (session, workspace) in &all {
        session.run(&format!("select helper.wait_indexed('{workspace}', '1 min')")).await;
    }
    // Two go on at once; the third one waits for a slice of theirs, and not for all of them.
    for (session, workspace) in &all {
        session.run(&format!("select helper.reembed('local', '{workspace}')")).await;
    }
    let state = async |workspace: &str| {
        let sql = "select m.status from helper.knowledge_models m where m.workspace_id::text = $1 and m.model not like 'open/%'";
        place.admin.one::<String>(sql, &[&workspace]).await
    };
    until("the small workspace", async || (state(&all[2].1).await == "current").then_some(())).await;
    assert_eq!((state(&all[0].1).await.as_str(), state(&all[1].1).await.as_str()), ("building", "building"));
    for (_, workspace) in &all {
        until("the large workspaces", async || (state(workspace).await == "current").then_some(())).await;
    }
    let lacking = "select count(*) from helper.knowledge_chunks c where not exists \
        (select from helper.knowledge_vectors v where v.chunk_id = c.id and v.model not like 'open/%')";
    assert_eq!(place.admin.one::<i64>(lacking, &[]).await, 0);
}

#[tokio::test]
async fn a_reembed_that_gets_on_is_tried_anew() {
    let place = Place::new().await;
    place.add(1, 2).await;
    place.indexed().await;
    place.server.next(Answer::status(503, "{}"));
    place.ann.run("select helper.reembed('open/small')").await;
    place.current("open/small@32").await;
    let attempts = "select j.attempts from helper.jobs j where j.kind = 'reembed' and j.status = 'succeeded'";
    let attempts: i32 =
        until("the job's end", async || place.ann.query(attempts, &[]).await.unwrap().first().map(|row| row.get(0)))
            .await;
    assert_eq!((attempts, place.server.count()), (1, 2));
}

#[tokio::test]
async fn a_reembed_that_is_asked_for_in_a_long_transaction_is_not_lost() {
    let place = Place::new().await;
    place.add(1, 3).await;
    place.indexed().await;
    let worker = place.stop_worker().await;
    // The job of one that was stopped still waits, and is claimed before the transaction that asks again has ended.
    place.ann.run("select helper.reembed('open/small'); select helper.stop_reembed()").await;
    place.ann.run("begin; select helper.reembed('open/small')").await;
    place.go_on(worker);
    let dropped = "select count(*) from helper.jobs j where j.kind = 'reembed' and j.status = 'cancelled'";
    until("the former job's end", async || (place.admin.one::<i64>(dropped, &[]).await == 1).then_some(())).await;
    place.ann.run("commit").await;
    place.current("open/small@32").await;
}

#[tokio::test]
async fn a_model_that_is_stopped_at_the_last_moment_does_not_take_the_place_of_another() {
    let place = Place::new().await;
    place.add(1, 3).await;
    place.indexed().await;
    let local = place.vectors().await[0].0.clone();
    place.server.answer_by(|_| Answer::Hang);
    place.ann.run("select helper.reembed('open/small')").await;
    until("the first request", async || (place.server.count() > 0).then_some(())).await;
    // As if all of it had come.
    place
        .admin
        .run("insert into helper.knowledge_vectors (workspace_id, chunk_id, source_id, model, embedding, sentences) \
              select v.workspace_id, v.chunk_id, v.source_id, 'open/small@32', v.embedding, '' from helper.knowledge_vectors v")
        .await;
    place.ann.run("begin; select helper.stop_reembed()").await;
    let other = place.cluster.admin().await;
    let pid = other.pid().await;
    let switch = format!("select helper._switch_model('{}', 'open/small@32')", place.workspace);
    let switching = tokio::spawn(async move { other.one::<bool>(&switch, &[]).await });
    let waits = "select a.wait_event_type = 'Lock' from pg_stat_activity a where a.pid = $1";
    until("the switch to wait", async || {
        place.admin.one::<Option<bool>>(waits, &[&pid]).await.unwrap_or(false).then_some(())
    })
    .await;
    place.ann.run("commit").await;
    assert!(switching.await.unwrap());
    let sql = "select m.status from helper.knowledge_models m where m.model = $1";
    assert_eq!(place.ann.one::<String>(sql, &[&local]).await, "current");
    assert_eq!(place.ann.one::<String>(sql, &[&"open/small@32"]).await, "stopped");
}

#[tokio::test]
async fn a_model_that_is_taken_back_while_it_is_swept_is_found_by_what_is_left() {
    let place = Place::new().await;
    place.by_default("small").await;
    place.add(1, 1).await;
    place.indexed().await;
    place.make_chunks(&place.workspace, "open/small@32", 1100).await;
    assert_eq!(place.admin.one::<i64>("select helper.pack_vectors()", &[]).await, 1101);
    let worker = place.stop_worker().await;
    place.admin.run("update helper.knowledge_models set status = 'old'").await;
    let swept: i64 = place
        .admin
        .one("select helper._sweep_vectors(m.workspace_id, m.model, 100) from helper.knowledge_models m", &[])
        .await;
    assert_eq!(swept, 100);
    assert_eq!(place.ann.one::<i64>("select helper.reembed('open/small')", &[]).await, 100);
    let unseen = "select count(*) from helper.knowledge_vectors v where \
        not exists (select from helper.knowledge_loose l where l.chunk_id = v.chunk_id) \
        and not exists (select from helper.knowledge_blocks b where position(uuid_send(v.chunk_id) in b.chunk_ids) > 0)";
    assert_eq!(place.admin.one::<i64>(unseen, &[]).await, 0);
    place.go_on(worker);
    place.current("open/small@32").await;
    assert_eq!(place.vectors().await, [("open/small@32".to_owned(), 1101)]);
    assert_eq!(place.admin.one::<i64>(unseen, &[]).await, 0);
}

#[tokio::test]
async fn a_model_is_changed_with_a_look_at_what_there_is_now() {
    let place = Place::new().await;
    for level in ["repeatable read", "serializable"] {
        place.ann.run(&format!("begin isolation level {level}")).await;
        let error = place.ann.error("select helper.reembed('open/small')").await;
        assert_eq!(error.code().code(), "0A000", "{error:?}");
        assert!(error.message().contains(&level.to_uppercase()) && error.hint().is_some(), "{error:?}");
        place.ann.run("rollback").await;
    }
    assert_eq!(place.ann.one::<i64>("select helper.reembed('open/small')", &[]).await, 0);
    place.current("open/small@32").await;
}
