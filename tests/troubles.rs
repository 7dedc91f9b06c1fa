//! Trouble of one workspace, document or process, and everybody else, who hears nothing of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod embedding;
mod provider;

use cluster::until;
use embedding::{ANN, CAT, Place, workspace_of};
use provider::{Answer, Say};
use std::time::Duration;

/// Ann's workspace alone is embedded by the provider.
async fn ann_embeds_far_away() -> Place {
    let place = Place::new().await;
    let sql = format!("select helper.set_default('embedding', 'open', 'small', workspace => '{}')", place.workspace);
    place.ann.run(&sql).await;
    place
}

#[tokio::test]
async fn whoever_waits_for_a_slow_provider_leaves_room_for_others() {
    let place = ann_embeds_far_away().await;
    place.server.answer_by(|_| Answer::Hang);
    place.add(1, 40).await;
    // While she is alone, all places are hers.
    until("her bundles", async || (place.server.count() == 4).then_some(())).await;
    let cat = place.cluster.user(CAT).await;
    workspace_of(&cat, "Cat").await;
    cat.run("select helper.add_document('One', 'Text.'), helper.add_document('Two', 'More text.')").await;
    assert_eq!(cat.one::<i64>("select helper.wait_indexed(timeout => '30 s')", &[]).await, 2);
    assert_eq!((place.server.count(), place.server.gone().len()), (4, 0));
    let waiting = "select count(*) from helper.job_leases l where l.workspace_id::text = $1";
    assert!(place.admin.one::<i64>(waiting, &[&place.workspace]).await > 0, "hers are still under way");
}

#[tokio::test]
async fn embeddings_of_other_dimensions_are_refused_and_fail_their_document_alone() {
    let place = Place::new().await;
    place.admin.run("select helper.set_model('open', 'plain', 'embedding')").await;
    place.by_default("plain").await;
    place.server.answer_by(|seen| {
        let odd = String::from_utf8_lossy(&seen.body).contains("odd");
        Answer::Say(Say { dimensions: if odd { 16 } else { 8 }, ..Say::default() })
    });
    place.add(1, 1).await;
    place.indexed().await;
    let kept = "select m.dimensions from helper.knowledge_models m where m.status = 'current'";
    assert_eq!(place.ann.one::<i32>(kept, &[]).await, 8);
    place
        .ann
        .run("select helper.add_document('Document ' || n, case when n = 12 then 'An odd one.' else 'One of many.' end) from generate_series(2, 20) n")
        .await;
    assert_eq!(place.indexed().await, 19);
    let [state, message, hint] = place.failed("Document 12").await;
    assert_eq!((state.as_str(), message.as_str()), ("55000", "embedding has 16 dimensions, expected 8"));
    assert!(hint.contains("helper.reembed"), "{hint}");
    let others = "select count(*) from helper.knowledge_vectors v where helper._dimensions(v.embedding) <> 8";
    assert_eq!(place.admin.one::<i64>(others, &[]).await, 0);
    // What is looked for is refused like what is kept.
    let error = place.ann.error("select * from helper.search('odd', method => 'vector')").await;
    assert_eq!(error.code().code(), "55000", "{error:?}");
    assert!(error.hint().unwrap().contains("helper.reembed"), "{error:?}");
    let reply: String = place.ann.one("select helper.ask_async('What is odd?')::text", &[]).await;
    let sql =
        format!("select m.error ->> 'sqlstate' from helper.messages m where m.id = '{reply}' and m.status = 'error'");
    let state: String =
        until("the reply's error", async || Some(place.ann.query(&sql, &[]).await.unwrap().first()?.get(0))).await;
    assert_eq!(state, "55000");
}

#[tokio::test]
async fn of_two_documents_that_come_first_with_other_dimensions_one_is_kept() {
    let place = Place::new().await;
    place.admin.run("select helper.set_model('open', 'plain', 'embedding')").await;
    place.by_default("plain").await;
    // Both are under way before either is stored.
    place.server.answer_by(|seen| {
        let odd = String::from_utf8_lossy(&seen.body).contains("odd");
        Answer::Say(Say { dimensions: if odd { 16 } else { 8 }, delay: Duration::from_millis(500), ..Say::default() })
    });
    place.ann.run("select helper.add_document('Odd', 'An odd one.')").await;
    until("the first request", async || (place.server.count() == 1).then_some(())).await;
    place.ann.run("select helper.add_document('Even', 'An even one.')").await;
    assert_eq!(place.indexed().await, 1);
    let kept = "select helper._dimensions(v.embedding) = m.dimensions from helper.knowledge_vectors v, helper.knowledge_models m";
    assert!(place.admin.one::<bool>(kept, &[]).await);
    let failed = "select s.error ->> 'sqlstate' from helper.knowledge_sources s where s.status = 'failed'";
    assert_eq!(place.ann.one::<String>(failed, &[]).await, "55000");
}

/// Has every change of a kind to a workspace's rows fail.
async fn spoil(place: &Place, what: &str, workspace: &str) {
    let row = if what.contains("delete") { "old" } else { "new" };
    place
        .admin
        .run(&format!(
            "create or replace function public.spoil() returns trigger language plpgsql as $$ begin raise exception 'spoilt'; end $$; \
             create trigger spoil before {what} for each row when ({row}.workspace_id = '{workspace}') execute function public.spoil()"
        ))
        .await;
}

#[tokio::test]
async fn trouble_with_the_embeddings_of_one_workspace_stays_there() {
    let place = Place::new().await;
    let cat = workspace_of(&place.cluster.user(CAT).await, "Cat").await;
    spoil(&place, "insert on helper.knowledge_blocks", &place.workspace).await;
    // The one with the most comes first.
    place.make_chunks(&place.workspace, "made", 2000).await;
    place.make_chunks(&cat, "made", 1100).await;
    let blocks = "select count(*) from helper.knowledge_blocks b where b.workspace_id::text = $1";
    until("the worker to pack", async || (place.admin.one::<i64>(blocks, &[&cat]).await > 0).then_some(())).await;
    // By hand it is the same.
    place.make_chunks(&cat, "other", 1100).await;
    place.admin.run("select helper.pack_vectors()").await;
    let notices = place.admin.notices();
    assert!(notices.iter().any(|notice| notice.contains(&place.workspace) && notice.contains("spoilt")), "{notices:?}");
    let loose = "select count(*) from helper.knowledge_loose l where l.workspace_id::text = $1";
    assert_eq!(place.admin.one::<i64>(loose, &[&cat]).await, 0);
    assert_eq!(place.admin.one::<i64>(loose, &[&place.workspace]).await, 2000);
    spoil(&place, "delete on helper.knowledge_vectors", &place.workspace).await;
    for workspace in [&place.workspace, &cat] {
        let sql =
            "insert into helper.knowledge_models (workspace_id, model, status) values ($1::text::uuid, 'made', 'old')";
        place.admin.execute(sql, &[workspace]).await.unwrap();
    }
    let left = "select count(*) from helper.knowledge_vectors v where v.workspace_id::text = $1 and v.model = 'made'";
    until("the worker to sweep", async || (place.admin.one::<i64>(left, &[&cat]).await == 0).then_some(())).await;
    assert_eq!(place.admin.one::<i64>(left, &[&place.workspace]).await, 2000);
}

#[tokio::test]
async fn a_reply_that_is_too_long_fails_the_document() {
    let place = Place::new().await;
    place.by_default("small").await;
    let sql = format!(
        "select helper.set_provider('open', 'openai', '{}', options => '{{\"allow_private\": true, \"max_reply_bytes\": 100}}')",
        place.server.url("/v1")
    );
    place.admin.run(&sql).await;
    place.add(1, 1).await;
    let [state, message, _] = place.failed("Document 1").await;
    assert_eq!((state.as_str(), message.as_str()), ("53400", "reply of provider \"open\" is too long"));
    let job = "select j.status || ' ' || j.attempts from helper.jobs j";
    assert_eq!(place.ann.one::<String>(job, &[]).await, "failed 1");
    assert_eq!(place.server.count(), 1);
}

#[tokio::test]
async fn a_provider_that_is_too_slow_again_and_again_is_not_asked_for_ever() {
    let place = Place::new().await;
    place.by_default("small").await;
    let sql = format!(
        "select helper.set_provider('open', 'openai', '{}', options => '{{\"allow_private\": true, \"timeout_ms\": 300}}')",
        place.server.url("/v1")
    );
    place.admin.run(&sql).await;
    place.server.answer_by(|_| Answer::Hang);
    place.add(1, 1).await;
    until("the first try's end", async || {
        (place.document("Document 1").await.1[0].as_deref() == Some("57014")).then_some(())
    })
    .await;
    // The seventh try is over, the eighth is the last.
    place.admin.run("update helper.jobs set attempts = 7").await;
    assert_eq!(place.failed("Document 1").await[0], "57014");
    assert!(place.server.count() < 8);
}

#[tokio::test]
async fn a_document_that_is_given_anew_in_a_long_transaction_keeps_its_job() {
    let place = Place::new().await;
    let give = |content: &str| format!("select helper.add_document('Given', '{content}', 'kb_article', 'given')");
    place.ann.run(&give("The first text.")).await;
    place.indexed().await;
    let worker = place.stop_worker().await;
    // A job that has nothing left to do, as after the same text was given twice, and that is there when the next one comes.
    place
        .admin
        .run("select helper._enqueue(s.workspace_id, 'index', '{}', s.id) from helper.knowledge_sources s")
        .await;
    place.ann.run(&format!("begin; {}", give("The second text."))).await;
    let other = place.cluster.user(ANN).await;
    other.run("select helper.add_document('Behind', 'It is claimed after the one before it.')").await;
    place.go_on(worker);
    until("the worker to pass by", async || (place.document("Behind").await.0 == "ready").then_some(())).await;
    place.ann.run("commit").await;
    assert_eq!(place.indexed().await, 2);
    let content: String =
        place.ann.one("select s.content from helper.knowledge_sources s where s.title = 'Given'", &[]).await;
    assert_eq!(content, "The second text.");
}

#[tokio::test]
async fn a_lease_that_nobody_holds_is_given_back_though_others_are_held() {
    let place = ann_embeds_far_away().await;
    place.server.answer_by(|_| Answer::Hang);
    place.add(1, 1).await;
    until("her document to be under way", async || (place.server.count() == 1).then_some(())).await;
    let lease = "select l.token::text from helper.job_leases l where l.workspace_id::text = $1";
    let held: String = place.admin.one(lease, &[&place.workspace]).await;
    let cat = place.cluster.user(CAT).await;
    workspace_of(&cat, "Cat").await;
    let worker = place.stop_worker().await;
    cat.run("select helper.add_document('Late', 'Text.')").await;
    // As if it had come with a dump.
    place
        .admin
        .run(
            "with q as (delete from helper.job_queue returning workspace_id, job_id, key) \
             insert into helper.job_leases (workspace_id, job_id, key) select q.workspace_id, q.job_id, q.key from q",
        )
        .await;
    place.go_on(worker);
    assert_eq!(cat.one::<i64>("select helper.wait_indexed(timeout => '1 min')", &[]).await, 1);
    assert_eq!(place.admin.one::<String>(lease, &[&place.workspace]).await, held);
    assert_eq!((place.server.count(), place.server.gone().len()), (1, 0));
}
