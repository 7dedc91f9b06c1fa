//! What calls cost and what they may: a provider of our own at the other end, and the people who call it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod place;
mod provider;

use cluster::until;
use place::{ANN, BEA, Place};
use provider::{Answer, Say};
use serde_json::Value;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

#[tokio::test]
async fn a_budget_for_ten_calls_gives_a_hundred_sessions_exactly_ten() {
    let place = Place::with("max_connections = 200").await;
    place.ann.run("select helper.set_budget(10, 'requests', 'day', workspace => helper.current_workspace())").await;
    place.server.answer_by(|_| Answer::Say(Say { delay: Duration::from_millis(30), ..Say::default() }));
    let mut sessions = Vec::new();
    for _ in 0..100 {
        sessions.push(place.cluster.user(ANN).await);
    }
    let calls = sessions.iter().map(|session| async move {
        match session.query_one("select helper.complete('Hello')", &[]).await {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.as_db_error().unwrap().code().code().to_owned(),
        }
    });
    let outcomes = futures_join(calls).await;
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "ok").count(), 10);
    assert!(outcomes.iter().all(|outcome| outcome == "ok" || outcome == "53400"), "{outcomes:?}");
    assert_eq!(place.server.count(), 10);
    // It says what is left and when it renews.
    let renews = "select to_char(date_trunc('day', now() at time zone 'UTC') + interval '1 day', 'YYYY-MM-DD')";
    let error = place.ann.error("select helper.complete('Hello')").await;
    let (detail, day) = (error.detail().unwrap(), place.admin.one::<String>(renews, &[]).await);
    let told = format!(
        "Of 10 requests a day 0 requests are left, this call may take 1 requests. It renews at {day} 00:00 UTC."
    );
    assert_eq!(detail, told);
    assert!(error.hint().is_some(), "{error:?}");
    place.records(10).await;
    // What was used is known after a restart too.
    let Place { cluster, server, .. } = place;
    cluster.restart();
    cluster.pids().await;
    let ann = cluster.user(ANN).await;
    assert_eq!(ann.error("select helper.complete('Hello')").await.code().code(), "53400");
    assert_eq!(server.count(), 10);
}

async fn futures_join<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<T>> = pending.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, done) in pending.iter_mut().zip(&mut done) {
            if done.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *done = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[tokio::test]
async fn who_stops_listening_has_used_what_they_heard() {
    let place = Place::new().await;
    place.ann.run("select helper.set_budget(2400, workspace => helper.current_workspace())").await;
    let text = "many words of a reply ".repeat(250);
    place
        .server
        .answer_by(move |_| Answer::Say(Say { text: text.clone(), delay: Duration::from_millis(1), ..Say::default() }));
    place
        .ann
        .run("begin; declare c cursor for select helper.ask_stream('Talk', knowledge => false, options => '{\"max_tokens\": 1800}')")
        .await;
    place.ann.run("fetch 400 from c; close c; commit").await;
    let error = place.ann.error("select helper.complete('Talk', options => '{\"max_tokens\": 1800}')").await;
    assert_eq!(error.code().code(), "53400", "{error:?}");
}

#[tokio::test]
async fn whoever_is_gone_has_used_what_they_heard_and_no_more() {
    let place = Place::new().await;
    place.ann.run("select helper.set_budget(2400, workspace => helper.current_workspace())").await;
    let gate = Arc::new(Semaphore::new(2));
    let held = Arc::clone(&gate);
    place.server.answer_by(move |seen| match seen.json()["stream"].as_bool() {
        Some(true) => {
            Answer::Say(Say { text: "many words ".repeat(9), gate: Some(Arc::clone(&held)), ..Say::default() })
        }
        _ => Answer::say("Hello."),
    });
    let leaver = place.cluster.user(ANN).await;
    let pid = leaver.pid().await;
    let call = "select helper.complete('Talk', options => '{\"max_tokens\": 1800}')";
    let talk = "select helper.ask_stream('Talk', knowledge => false, options => '{\"max_tokens\": 1800}')";
    let end = async {
        until("the reply's first words", async || (gate.available_permits() == 0).then_some(())).await;
        let error = place.ann.error(call).await;
        assert_eq!(error.code().code(), "53400", "it is set aside while the reply is under way");
        // In the middle of the statement, as when the client goes away.
        assert!(place.admin.one::<bool>("select pg_terminate_backend($1, 10000)", &[&pid]).await);
    };
    let (outcome, ()) = tokio::join!(leaver.query(talk, &[]), end);
    assert!(outcome.is_err());
    assert_eq!(place.ann.one::<String>(call, &[]).await, "Hello.");
}

#[tokio::test]
async fn what_a_reply_took_is_settled_although_somebody_holds_its_row() {
    let place = Place::new().await;
    place.ann.run("select helper.set_budget(2400, workspace => helper.current_workspace())").await;
    let gate = Arc::new(Semaphore::new(1));
    let held = Arc::clone(&gate);
    place.server.answer_by(move |seen| match seen.json()["stream"].as_bool() {
        Some(true) => Answer::Say(Say { text: "few words".into(), gate: Some(Arc::clone(&held)), ..Say::default() }),
        _ => Answer::say("Hello."),
    });
    let call = "select helper.complete('Talk', options => '{\"max_tokens\": 1800}')";
    let talk = "select helper.ask_async('Talk', knowledge => false, options => '{\"max_tokens\": 1800}')::text";
    let id: String = place.ann.one(talk, &[]).await;
    until("the reply's first words", async || (gate.available_permits() == 0).then_some(())).await;
    assert_eq!(place.ann.error(call).await.code().code(), "53400", "it is set aside while the reply is under way");
    place.admin.run(&format!("begin; select from helper.messages where id = '{id}' for update")).await;
    gate.add_permits(20);
    until("its end to meet the lock", async || {
        place.cluster.log().contains("somebody's transaction holds the reply").then_some(())
    })
    .await;
    place.ann.run(call).await;
    place.admin.run("commit").await;
    let status = format!("select status from helper.messages where id = '{id}'");
    until("the reply", async || (place.ann.one::<String>(&status, &[]).await == "done").then_some(())).await;
}

#[tokio::test]
async fn what_a_workspaces_own_provider_says_it_counted_is_no_matter_of_others() {
    let place = Place::new().await;
    place.admin.run("select helper.set_budget(20000), helper.set_budget(1, 'money')").await;
    let own = format!("update helper.providers set workspace_id = '{}' where name = 'other'", place.workspace);
    place.admin.run(&own).await;
    place.server.answer_by(|_| Answer::Say(Say { prompt_times: 10_000_000, ..Say::default() }));
    place.ann.one::<String>("select helper.complete('Hello', model => 'other/m')", &[]).await;
    // Where another may take its place, who answered decides.
    let other = format!(
        "select helper.set_default('chat', 'other', 'm', workspace => '{}', fallback => '{{open/m}}')",
        place.workspace
    );
    place.ann.run(&other).await;
    place.ann.one::<String>("select helper.complete('Hello')", &[]).await;
    let record = place.records(2).await.remove(1);
    assert!(record["own_provider"] == true && record["input_tokens"].as_u64() > Some(1_000_000), "{record}");
    place.server.answer_by(|_| Answer::say("Hello."));
    let bea = place.cluster.user(BEA).await;
    bea.run("select helper.create_workspace('Bea')").await;
    let call = "select helper.complete('Hello')";
    assert_eq!(bea.one::<String>(call, &[]).await, "Hello.");
    // Nor is it by the records, from which counters begin again, or once the workspace is gone.
    place.cluster.restart();
    place.cluster.pids().await;
    let ann = place.cluster.user(ANN).await;
    ann.run(&format!("select helper.delete_workspace('{}')", place.workspace)).await;
    let bea = place.cluster.user(BEA).await;
    assert_eq!(bea.one::<String>(call, &[]).await, "Hello.");
}

#[tokio::test]
async fn records_that_could_not_be_stored_are_stored_later() {
    let place = Place::new().await;
    place.admin.run("begin; lock table helper.usage_records in share mode").await;
    place.ann.one::<String>("select helper.complete('One')", &[]).await;
    until("the worker to meet the lock", async || place.cluster.log().contains("helper_ai worker: ").then_some(()))
        .await;
    place.admin.run("commit").await;
    place.ann.one::<String>("select helper.complete('Two')", &[]).await;
    assert_eq!(place.records(2).await.len(), 2);
    // One that can never be stored keeps no others.
    place
        .admin
        .run("alter table helper.usage_records add constraint no_three check (output_tokens <> 3) not valid")
        .await;
    let count = AtomicUsize::new(0);
    place.server.answer_by(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => Answer::Say(Say { text: "one two three".into(), ..Say::default() }),
        _ => Answer::say("Hello."),
    });
    place.ann.one::<String>("select helper.complete('Three')", &[]).await;
    place.ann.one::<String>("select helper.complete('Four')", &[]).await;
    assert_eq!(place.records(3).await.len(), 3);
}

/// Sends a statement, and cancels it as soon as the provider has the request.
async fn cancelled_when_sent(place: &Place, sql: &str) -> String {
    let before = place.server.count();
    place.server.next(Answer::Hang);
    let cancel = format!("select pg_cancel_backend({})", place.ann.pid().await);
    let cancel = async {
        until("the request", async || (place.server.count() > before).then_some(())).await;
        place.admin.run(&cancel).await;
    };
    let (error, ()) = tokio::join!(place.ann.error(sql), cancel);
    error.code().code().to_owned()
}

#[tokio::test]
async fn asking_and_cancelling_again_and_again_does_not_pass_a_budget() {
    let place = Place::new().await;
    place.ann.run("select helper.set_budget(3000, workspace => helper.current_workspace())").await;
    let call = "select helper.complete('Talk', options => '{\"max_tokens\": 1000}')";
    for _ in 0..2 {
        assert_eq!(cancelled_when_sent(&place, call).await, "57014");
    }
    // Whoever asks for no more than one reply has two of them unheard.
    assert_eq!(place.ann.error(call).await.code().code(), "53400");
    for record in place.records(2).await {
        assert_eq!((record["status"].as_str(), record["estimated"].as_bool()), (Some("cancelled"), Some(true)));
        assert_eq!(record["output_tokens"], 1000, "{record}");
    }
    // Out of time is no better, and a provider that refused or could not be reached has made nothing.
    place.ann.run("select helper.set_budget(9000, workspace => helper.current_workspace())").await;
    place.server.next(Answer::Hang);
    let late = call.replace("1000}", "1000, \"timeout_ms\": 300}");
    assert_eq!(place.ann.error(&late).await.code().code(), "57014");
    place.server.next(Answer::status(500, "{}"));
    assert_eq!(place.ann.error(call).await.code().code(), "38000");
    let outputs: Vec<i64> = place.records(4).await.iter().map(|r| r["output_tokens"].as_i64().unwrap()).collect();
    assert_eq!(outputs, [1000, 1000, 1000, 0]);
    // The records say the same as what was counted.
    let left: i64 =
        place.admin.one("select 9000 - sum(input_tokens + output_tokens)::bigint from helper.usage_records", &[]).await;
    let error = place.ann.error("select helper.complete('Talk', options => '{\"max_tokens\": 9000}')").await;
    assert!(error.detail().unwrap().contains(&format!("{left} tokens are left")), "{error:?} {left}");
}

#[tokio::test]
async fn embeddings_that_nobody_waits_for_are_counted() {
    let place = Place::new().await;
    place.admin.run("select helper.set_model('open', 'e', 'embedding')").await;
    let call = format!("select helper.embed('{}', 'open/e')", "parcel ".repeat(200));
    place.ann.run("select helper.set_budget(800, workspace => helper.current_workspace())").await;
    assert_eq!(cancelled_when_sent(&place, &call).await, "57014");
    let record = &place.records(1).await[0];
    assert!(record["input_tokens"].as_i64().unwrap() > 300 && record["estimated"] == true, "{record}");
    assert_eq!(place.ann.error(&call).await.code().code(), "53400");
    place.ann.run("select helper.set_budget(null, workspace => helper.current_workspace())").await;
    // One that the provider refuses costs nothing.
    place.server.next(Answer::status(400, "{}"));
    assert_eq!(place.ann.error(&call).await.code().code(), "38000");
    assert_eq!(place.records(2).await[1]["input_tokens"], 0);
}

#[tokio::test]
async fn a_budget_for_all_workspaces_holds_for_all_of_them_together() {
    let place = Place::new().await;
    let set = "select helper.set_budget(10, 'requests', 'day')";
    assert_eq!(place.ann.error(set).await.code().code(), "42501");
    // The database's owner is an administrator, and no superuser.
    place
        .admin
        .run("create role boss login; alter database postgres owner to boss; select helper.grant_usage('boss')")
        .await;
    let boss = place.cluster.connect("postgres", "boss").await;
    boss.run(set).await;
    assert_eq!(boss.one::<i64>("select count(*) from helper.budgets", &[]).await, 1);
    assert_eq!(place.ann.one::<i64>("select count(*) from helper.budgets", &[]).await, 0);
    let bea = place.cluster.user(BEA).await;
    bea.run("select helper.create_workspace('Bea')").await;
    place.server.answer_by(|_| Answer::Say(Say { delay: Duration::from_millis(30), ..Say::default() }));
    let mut sessions = Vec::new();
    for at in 0..20 {
        sessions.push(place.cluster.user(if at % 2 == 0 { ANN } else { BEA }).await);
    }
    let calls = sessions.iter().map(|session| async move {
        match session.query_one("select helper.complete('Hello')", &[]).await {
            Ok(_) => "ok".to_owned(),
            Err(error) => error.as_db_error().unwrap().code().code().to_owned(),
        }
    });
    let outcomes = futures_join(calls).await;
    assert_eq!(outcomes.iter().filter(|outcome| *outcome == "ok").count(), 10, "{outcomes:?}");
    assert!(outcomes.iter().all(|outcome| outcome == "ok" || outcome == "53400"), "{outcomes:?}");
    assert_eq!(place.server.count(), 10);
    // What strangers use is nobody's business.
    let error = bea.error("select helper.complete('Hello')").await;
    assert!(!error.detail().unwrap().contains("left"), "{error:?}");
    place.records(10).await;
    // Nobody gets it back by deleting what was used with it.
    let workspace = &place.workspace;
    place.ann.run(&format!("select helper.delete_workspace('{workspace}')")).await;
    place.cluster.restart();
    place.cluster.pids().await;
    let bea = place.cluster.user(BEA).await;
    assert_eq!(bea.error("select helper.complete('Hello')").await.code().code(), "53400");
    assert_eq!(place.server.count(), 10);
}

#[tokio::test]
async fn a_person_has_one_budget_over_all_workspaces() {
    let place = Place::new().await;
    place.admin.run("select helper.set_budget(3, 'requests', 'day', each_user => true)").await;
    let other: String = place.ann.one("select helper.create_workspace('Another')::text", &[]).await;
    let mut ends = Vec::new();
    for workspace in [&place.workspace, &other, &place.workspace, &other] {
        let call = format!("select helper.complete('Hello', workspace => '{workspace}')");
        ends.push(place.ann.query_one(&call, &[]).await.is_ok());
    }
    assert_eq!(ends, [true, true, true, false]);
    // It binds her, so that she sees it; and it is hers alone.
    assert_eq!(place.ann.one::<i64>("select count(*) from helper.budgets", &[]).await, 1);
    let error = place.ann.error(&format!("select helper.complete('Hello', workspace => '{other}')")).await;
    assert!(error.detail().unwrap().contains("0 requests are left"), "{error:?}");
    let bea = place.cluster.user(BEA).await;
    bea.run("select helper.create_workspace('Bea')").await;
    bea.one::<String>("select helper.complete('Hello')", &[]).await;
}

#[tokio::test]
async fn whoever_makes_many_workspaces_with_budgets_stands_in_nobodys_way() {
    let place = Place::new().await;
    // Six budgets each; 128 counters are one person's at once.
    place
        .ann
        .run(
            "do $$ declare w uuid; begin for n in 1..30 loop w := helper.create_workspace('Workspace ' || n); \
             perform helper.set_budget(1000000, u, p, workspace => w) \
             from unnest(array['tokens', 'money', 'requests']) u, unnest(array['day', 'month']) p; end loop; end $$",
        )
        .await;
    let workspaces =
        place.ann.query("select w::text from unnest(helper.my_workspaces()) w order by w", &[]).await.unwrap();
    let mut refused = None;
    for (at, row) in workspaces.iter().enumerate() {
        let call = format!("select helper.complete('Hello', workspace => '{}')", row.get::<_, &str>(0));
        if let Err(error) = place.ann.query_one(&call, &[]).await {
            refused = Some((at, error.as_db_error().unwrap().clone()));
            break;
        }
    }
    let (at, error) = refused.expect("a limit");
    // The first is the one of the place, without budgets.
    assert_eq!((at, error.code().code()), (22, "53000"), "{error:?}");
    assert!(error.hint().unwrap().contains("Try again"), "{error:?}");
    let bea = place.cluster.user(BEA).await;
    bea.run("select helper.create_workspace('Bea'); select helper.set_budget(10, 'requests', workspace => helper.current_workspace())").await;
    bea.one::<String>("select helper.complete('Hello')", &[]).await;
}

#[tokio::test]
async fn tokens_that_are_written_to_a_cache_cost_their_price() {
    let place = Place::new().await;
    place
        .admin
        .run("select helper.set_model('claude', 'm', options => '{\"context_window\": 8000, \"input_price\": 4, \"cache_write_price\": 5, \"output_price\": 0}')")
        .await;
    place.server.next(Answer::Say(Say { cache_written: 1000, ..Say::default() }));
    place.ann.one::<String>("select helper.complete('Hello', model => 'claude/m')", &[]).await;
    let record = &place.records(1).await[0];
    assert_eq!(record["cache_written_tokens"], 1000, "{record}");
    let plain = record["input_tokens"].as_f64().unwrap() - 1000.0;
    assert!((record["cost"].as_f64().unwrap() - (plain * 4.0 + 5000.0) / 1e6).abs() < 1e-9, "{record}");
    assert_eq!(place.ann.one::<Value>("select helper.usage()", &[]).await["cache_written_tokens"], 1000);
    // Anthropic's list prices have it; without one they cost what others do.
    let shipped = "select count(*) from helper.model_catalog where kind = 'anthropic' and cache_write_price is distinct from input_price * 1.25";
    assert_eq!(place.ann.one::<i64>(shipped, &[]).await, 0);
    place.admin.run("select helper.set_model('claude', 'm', options => '{\"input_price\": 4}')").await;
    place.server.next(Answer::Say(Say { cache_written: 1000, ..Say::default() }));
    place.ann.one::<String>("select helper.complete('Hello', model => 'claude/m')", &[]).await;
    let record = &place.records(2).await[1];
    assert!((record["cost"].as_f64().unwrap() - record["input_tokens"].as_f64().unwrap() * 4.0 / 1e6).abs() < 1e-9);
}

#[tokio::test]
async fn a_provider_that_counts_more_tokens_than_we_guess_is_believed() {
    let place = Place::new().await;
    place.server.answer_by(|_| Answer::Say(Say { prompt_times: 2, ..Say::default() }));
    let question = "parcel ".repeat(1800);
    let ask = format!("select helper.ask('{question}', model => 'claude/m', knowledge => false)");
    // It fits, as far as we know.
    place.ann.one::<String>(&ask, &[]).await;
    place.records(1).await;
    let ratio: f32 = place.admin.one("select ratio from helper.token_ratios", &[]).await;
    assert!((1.5..2.5).contains(&ratio), "{ratio}");
    // And now we know better.
    let error = place.ann.error(&ask).await;
    assert_eq!(error.code().code(), "53400", "{error:?}");
    assert!(error.message().contains("too long"), "{error:?}");
    // The worker's own replies are planned alike, and so are budgets; another model is none of it.
    place.ann.one::<String>(&ask.replace("claude/m", "gem/m"), &[]).await;
    place.ann.run("select helper.set_budget(1, workspace => helper.current_workspace())").await;
    let need = async |model: &str| {
        let call =
            format!("select helper.complete('{question}', model => '{model}', options => '{{\"max_tokens\": 1}}')");
        let detail = place.ann.error(&call).await.detail().unwrap().to_owned();
        let tokens = detail.split("may take ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        tokens.parse::<f32>().unwrap()
    };
    let (known, unknown) = (need("claude/m").await, need("llama/m").await);
    assert!((known / unknown - ratio).abs() < 0.02, "{known} {unknown} {ratio}");
    // Nothing is learned from estimates, and no provider is believed whatever it says.
    place.ann.run("select helper.set_budget(null, workspace => helper.current_workspace())").await;
    place.server.answer_by(|_| Answer::Say(Say { prompt_times: 50, usage: false, ..Say::default() }));
    place.ann.one::<String>(&ask.replace("claude/m", "llama/m"), &[]).await;
    place.server.answer_by(|_| Answer::Say(Say { prompt_times: 50, ..Say::default() }));
    place.ann.one::<String>(&ask.replace("claude/m", "other/m"), &[]).await;
    place.records(4).await;
    let learned = "select string_agg(p.name || ' ' || round(t.ratio::numeric, 1), ', ' order by p.name) from helper.token_ratios t join helper.providers p on p.id = t.provider_id where p.name in ('llama', 'other')";
    assert_eq!(place.admin.one::<String>(learned, &[]).await, "other 2.5");
}

#[tokio::test]
async fn a_change_is_seen_by_every_session_at_once() {
    let place = Place::new().await;
    let other = place.cluster.user(ANN).await;
    let both = async || [outcome(&place.ann).await, outcome(&other).await];
    assert_eq!(both().await, ["ok", "ok"]);
    for (change, expected) in [
        ("update helper.providers set enabled = false where name = 'open'", "55000"),
        ("update helper.providers set enabled = true", "ok"),
        ("delete from helper.provider_secrets", "55000"),
        ("insert into helper.provider_keys (provider, key) values ('open', 'sk-new')", "ok"),
        ("select helper.set_budget(1, 'requests', 'day')", "53400"),
        ("delete from helper.budgets", "ok"),
        ("select helper.set_default('chat', 'local', null)", "55000"),
        ("select helper.set_default('chat', 'open', 'm')", "ok"),
        ("truncate helper.model_defaults", "55000"),
        ("select helper.set_default('chat', 'open', 'm')", "ok"),
    ] {
        place.admin.run(change).await;
        assert_eq!(both().await, [expected; 2], "after {change}");
    }
    // What is rolled back is kept by nobody, nor by the session that saw it.
    let workspace = &place.workspace;
    let own = format!("select helper.complete('Hello', workspace => '{workspace}')");
    place
        .admin
        .run(&format!(
            "insert into helper.workspace_members values ('{workspace}', helper.current_user_id(), 'member')"
        ))
        .await;
    place.admin.run("begin; select helper.set_default('chat', 'local', null); savepoint s").await;
    assert_eq!(place.admin.error(&own).await.code().code(), "55000");
    assert_eq!(both().await, ["ok", "ok"]);
    place.admin.run("rollback").await;
    place.admin.run(&own).await;
    assert_eq!(both().await, ["ok", "ok"]);
}

/// `ok`, or the SQLSTATE of a completion.
async fn outcome(session: &cluster::Session) -> String {
    match session.query_one("select helper.complete('Hello')", &[]).await {
        Ok(_) => "ok".into(),
        Err(error) => error.code().unwrap().code().into(),
    }
}
