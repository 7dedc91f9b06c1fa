//! Workspaces that are indexed by providers' models, and moved from one model to another: a provider of our own at the
//! other end, real roles in between.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod provider;

use cluster::{Cluster, Session, signal, until};
use provider::{Answer, Say, Server};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const ANN: &str = "00000000-0000-4000-8000-00000000000a";
const BEA: &str = "00000000-0000-4000-8000-00000000000b";
const CAT: &str = "00000000-0000-4000-8000-00000000000c";

/// A cluster with a provider that embeds, and a workspace of Ann's in which Bea is a member.
struct Place {
    cluster: Cluster,
    admin: Session,
    ann: Session,
    workspace: String,
    server: Server,
}

impl Place {
    async fn new() -> Place {
        let cluster = Cluster::start().await;
        let server = Server::start().await;
        let admin = cluster.admin().await;
        let sql = format!(
            "select helper.set_provider('open', 'openai', '{}', options => '{{\"allow_private\": true, \"max_retries\": 0}}')",
            server.url("/v1")
        );
        admin.run(&sql).await;
        for model in ["small", "large"] {
            admin
                .run(&format!("select helper.set_model('open', '{model}', 'embedding', '{{\"dimensions\": 32, \"shorten\": true, \"input_price\": 1}}')"))
                .await;
        }
        admin.run("insert into helper.provider_keys (provider, key) values ('open', 'sk-secret')").await;
        let ann = cluster.user(ANN).await;
        let workspace: String = ann.one("select helper.create_workspace('Ann')::text", &[]).await;
        ann.run(&format!("select helper.add_member('{workspace}', '{BEA}', 'member')")).await;
        Place { cluster, admin, ann, workspace, server }
    }

    async fn by_default(&self, model: &str) {
        self.admin.run(&format!("select helper.set_default('embedding', 'open', '{model}')")).await;
    }

    async fn add(&self, from: i32, count: i32) {
        let sql = "select count(helper.add_document('Document ' || n, 'The matter of number ' || n || ' is settled. It was long.')) \
            from generate_series($1::int, $1 + $2::int - 1) n";
        assert_eq!(self.ann.one::<i64>(sql, &[&from, &count]).await, i64::from(count));
    }

    async fn indexed(&self) -> i64 {
        self.ann.one("select helper.wait_indexed(timeout => '1 min')", &[]).await
    }

    /// How many chunks have embeddings of each model.
    async fn vectors(&self) -> Vec<(String, i64)> {
        let sql = "select v.model, count(*) from helper.knowledge_vectors v group by v.model order by v.model";
        let rows = self.admin.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    async fn current(&self, model: &str) {
        let sql = "select count(*) from helper.knowledge_models m where m.status = 'current' and m.model = $1";
        until("the model in use", async || (self.ann.one::<i64>(sql, &[&model]).await == 1).then_some(())).await;
    }

    /// Waits until nothing but one model's embeddings are left.
    async fn only(&self, model: &str, chunks: i64) {
        let wanted = vec![(model.to_owned(), chunks)];
        until("the old embeddings to be gone", async || (self.vectors().await == wanted).then_some(())).await;
    }

    /// The document that is nearest to its own text.
    async fn nearest(&self, n: i32) -> String {
        let text = format!("Document {n}\nThe matter of number {n} is settled. It was long.");
        self.ann.one("select s.title from helper.search($1, k => 1, method => 'vector') s", &[&text]).await
    }
}

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
