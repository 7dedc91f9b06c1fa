//! Calls of providers through SQL, as the people who make them: a provider of our own at the other end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod place;
mod provider;

use cluster::{Cluster, until};
use place::{ANN, BEA, Place};
use provider::{Answer, Break, Say};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

#[tokio::test]
async fn every_kind_of_provider_completes_and_is_accounted_for() {
    let place = Place::new().await;
    for name in ["open", "claude", "gem", "llama", "other"] {
        let text: String = place
            .ann
            .one(&format!("select helper.complete('Say hello', system => 'Be kind', model => '{name}/m', options => '{{\"max_tokens\": 50}}')"), &[])
            .await;
        assert_eq!(text, "Grüße from the provider.", "{name}");
        let seen = place.server.seen().pop().unwrap();
        let key = format!("sk-secret-{name}");
        assert!(seen.headers.iter().any(|(_, value)| value.contains(&key)), "{name}");
        assert!(!String::from_utf8_lossy(&seen.body).contains("sk-secret"));
    }
    let records = place.records(5).await;
    for record in &records {
        assert_eq!(record["status"], "succeeded", "{record}");
        assert_eq!(record["purpose"], "complete");
        assert_eq!(record["user_id"], ANN);
        assert_eq!(record["workspace_id"], place.workspace.as_str());
        let (input, output) = (record["input_tokens"].as_f64().unwrap(), record["output_tokens"].as_f64().unwrap());
        assert!(input > 0.0 && output > 0.0, "{record}");
        assert!((record["cost"].as_f64().unwrap() - (input + 2.0 * output) / 1e6).abs() < 1e-9, "{record}");
    }
    let usage: Value = place.ann.one("select helper.usage()", &[]).await;
    assert_eq!(usage["requests"], 5);
    assert_eq!(usage["by_model"].as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn an_answer_cites_the_passages_that_it_was_given() {
    let place = Place::new().await;
    place.server.answer_by(|_| Answer::say("Refunds are paid within 30 days [1]. The moon is made of cheese [7]."));
    let reply = place
        .ann
        .query_one("select r.answer, r.citations, r.grounded, r.provider, r.model, r.usage, r.message_id::text from helper.answer('When are refunds paid?') r", &[])
        .await
        .unwrap();
    assert_eq!(reply.get::<_, &str>(0), "Refunds are paid within 30 days [1]. The moon is made of cheese.");
    let citations: Value = reply.get(1);
    assert_eq!(citations.as_array().unwrap().len(), 1, "{citations}");
    let citation = &citations[0];
    assert_eq!(citation["quote"], "Refunds are paid within 30 days to the card that was used.");
    let cut: String = place
        .ann
        .one(
            &format!(
                "select substr(content, {} + 1, {} - {}) from helper.knowledge_sources",
                citation["start_offset"], citation["end_offset"], citation["start_offset"]
            ),
            &[],
        )
        .await;
    assert_eq!(cut, citation["quote"].as_str().unwrap());
    assert_eq!((reply.get::<_, bool>(2), reply.get::<_, &str>(3), reply.get::<_, &str>(4)), (true, "open", "m"));
    let usage: Value = reply.get(5);
    assert_eq!(usage["marks_removed"], 1);
    let id: String = reply.get(6);
    let stored: String = place
        .ann
        .one(&format!("select c.quote from helper.message_citations c where c.message_id = '{id}'"), &[])
        .await;
    assert_eq!(stored, citation["quote"].as_str().unwrap());
    // The passages are in the person's turn, in a frame; the question is verbatim; no passage is told as an order.
    let body = place.server.seen().pop().unwrap().json();
    let messages = body["messages"].as_array().unwrap();
    let (system, user) = (messages[0]["content"].to_string(), messages.last().unwrap()["content"].to_string());
    assert!(user.contains("Refunds are paid") && user.contains("When are refunds paid?"), "{user}");
    assert!(!system.contains("Refunds are paid"), "{system}");
}

#[tokio::test]
async fn a_conversation_is_remembered_and_folded_when_it_grows() {
    let place = Place::new().await;
    let conversation: String = place.ann.one("select helper.create_conversation('Long')::text", &[]).await;
    let ask = |text: String| {
        let sql = format!("select helper.ask($q${text}$q$, '{conversation}', knowledge => false)");
        let ann = &place.ann;
        async move { ann.one::<String>(&sql, &[]).await }
    };
    ask("My name is Ann.".into()).await;
    ask("What is my name?".into()).await;
    let body = place.server.seen().pop().unwrap().json().to_string();
    assert!(body.contains("My name is Ann.") && body.contains("Grüße"), "{body}");
    // Each of these takes about a tenth of the window.
    for at in 0..14 {
        ask(format!("Number {at}: {}", "The parcel went over the mountain to the harbour. ".repeat(60))).await;
    }
    let summary: String = place.ann.one("select content from helper.conversation_summaries", &[]).await;
    assert!(!summary.is_empty());
    let covered: i32 = place.ann.one("select message_count from helper.conversation_summaries", &[]).await;
    assert!(covered >= 8, "{covered}");
    let body = place.server.seen().pop().unwrap().json();
    assert!(body.to_string().contains(&summary[..20]), "the summary is in the prompt");
    assert!(place.server.seen().iter().any(|seen| seen.json().to_string().contains("Summarise the conversation")));
}

#[tokio::test]
async fn a_reply_that_nobody_waits_for_has_the_model_fold_as_well() {
    let place = Place::new().await;
    place.server.answer_by(|seen| {
        let folds = seen.json().to_string().contains("Summarise the conversation");
        Answer::say(if folds { "They spoke of parcels." } else { "A parcel is on its way." })
    });
    let conversation: String = place.ann.one("select helper.create_conversation('Long')::text", &[]).await;
    let harbour = "The parcel went over the mountain to the harbour. ".repeat(60);
    let ask = async |at: usize| {
        let sql = format!(
            "select helper.ask_async($q$Number {at}: {harbour}$q$, '{conversation}', knowledge => false)::text"
        );
        let id: String = place.ann.one(&sql, &[]).await;
        let look = format!("select status || '|' || content from helper.messages where id = '{id}'");
        let seen = until("the reply", async || {
            let seen: String = place.ann.one(&look, &[]).await;
            (!seen.starts_with("pending") && !seen.starts_with("streaming")).then_some(seen)
        });
        assert_eq!(seen.await, "done|A parcel is on its way.");
    };
    for at in 0..14 {
        ask(at).await;
    }
    let row = place.ann.query_one("select content, made_by from helper.conversation_summaries", &[]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), ("They spoke of parcels.", "open/m"));
    assert!(place.server.seen().pop().unwrap().json().to_string().contains("They spoke of parcels."));
    let folds = place.server.count() - 14;
    let paid = "select count(*) from helper.usage_records u where u.purpose = 'summary' and u.status = 'succeeded'";
    until("their records", async || (place.admin.one::<i64>(paid, &[]).await == folds as i64).then_some(())).await;
    // What the model does not sum up is summed up without it.
    place.server.answer_by(|seen| {
        let folds = seen.json().to_string().contains("Summarise the conversation");
        if folds { Answer::status(500, "{}") } else { Answer::say("A parcel is on its way.") }
    });
    let made_by = "select made_by from helper.conversation_summaries";
    for at in 14..24 {
        ask(at).await;
        if place.ann.one::<String>(made_by, &[]).await == "local" {
            return;
        }
    }
    panic!("nothing was summed up any more");
}

#[tokio::test]
async fn a_model_that_knows_no_temperature_is_told_none() {
    let place = Place::new().await;
    for (name, options) in [("plain", "{}"), ("fixed", r#"{"temperature": false}"#)] {
        place.admin.run(&format!("select helper.set_model('claude', '{name}', options => '{options}')")).await;
        let call = format!(
            r#"select helper.complete('Hello', model => 'claude/{name}', options => '{{"temperature": 0.5, "top_p": 0.9, "max_tokens": 10}}')"#
        );
        place.ann.one::<String>(&call, &[]).await;
        let body = place.server.seen().pop().unwrap().json();
        let told = (body.get("temperature").is_some(), body.get("top_p").is_some());
        assert_eq!(told, (name == "plain", name == "plain"), "{body}");
        assert_eq!(body["max_tokens"], 10);
    }
    // Nor one that takes the place of another, and it alone.
    place.admin.run("select helper.set_default('chat', 'open', 'm', fallback => '{claude/fixed}')").await;
    place.server.next(Answer::status(500, "{}"));
    place.ann.one::<String>(r#"select helper.complete('Hello', options => '{"temperature": 0.5}')"#, &[]).await;
    let seen = place.server.seen();
    let told: Vec<bool> = seen[seen.len() - 2..].iter().map(|seen| seen.json().get("temperature").is_some()).collect();
    assert_eq!(told, [true, false]);
    let error =
        place.admin.error(r#"select helper.set_model('claude', 'fixed', options => '{"temperature": 0.5}')"#).await;
    assert_eq!(error.code().code(), "22023", "{error:?}");
}

#[tokio::test]
async fn words_reach_the_client_as_they_are_spoken() {
    let place = Place::new().await;
    place.server.answer_by(|_| {
        Answer::Say(Say { text: "one two three four five".into(), delay: Duration::from_millis(100), ..Say::default() })
    });
    let rows = place
        .ann
        .query_raw(
            "select (s).event, (s).data from (select helper.ask_stream('Count', knowledge => false) s) x",
            Vec::<String>::new(),
        )
        .await
        .unwrap();
    use futures_util::StreamExt;
    let mut rows = std::pin::pin!(rows);
    let begin = Instant::now();
    let (mut events, mut times, mut text) = (Vec::new(), Vec::new(), String::new());
    while let Some(row) = rows.next().await {
        let row = row.unwrap();
        let event: String = row.get(0);
        if event == "delta" {
            text.push_str(row.get::<_, Value>(1)["text"].as_str().unwrap());
            times.push(begin.elapsed());
        }
        events.push(event);
    }
    assert_eq!(text, "one two three four five");
    assert_eq!((events[0].as_str(), events.last().unwrap().as_str()), ("meta", "done"));
    assert!(times.len() >= 4, "{events:?}");
    assert!(*times.last().unwrap() - times[0] > Duration::from_millis(200), "all came at once: {times:?}");
    let status: String = place.ann.one("select status from helper.messages where role = 'assistant'", &[]).await;
    assert_eq!(status, "done");
}

#[tokio::test]
async fn a_stream_that_breaks_keeps_what_was_said() {
    let place = Place::new().await;
    place.server.next(Answer::broken(2, Break::Error));
    let rows =
        place.ann.query("select event, data from helper.ask_stream('Hello', knowledge => false)", &[]).await.unwrap();
    let events: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(&events[events.len() - 2..], ["error", "done"], "{events:?}");
    let error: Value = rows[rows.len() - 2].get(1);
    assert_eq!(error["sqlstate"], "38000", "{error}");
    let row = place
        .ann
        .query_one("select status, content, error from helper.messages where role = 'assistant'", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, &str>(0), "error");
    assert!(row.get::<_, &str>(1).starts_with("Grüße"));
    assert_eq!(row.get::<_, Value>(2)["sqlstate"], "38000");
    assert_eq!(place.records(1).await[0]["status"], "interrupted");
}

#[tokio::test]
async fn a_reply_that_nobody_waits_for_is_written_by_the_worker() {
    let place = Place::new().await;
    place.server.answer_by(|_| {
        Answer::Say(Say {
            text: "Refunds take 30 days [1].".into(),
            delay: Duration::from_millis(150),
            ..Say::default()
        })
    });
    place.ann.run("listen helper_messages").await;
    let id: String = place.ann.one("select helper.ask_async('When are refunds paid?')::text", &[]).await;
    let look = format!("select status || '|' || content from helper.messages where id = '{id}'");
    until("words on their way", async || {
        let seen: String = place.ann.one(&look, &[]).await;
        (seen.starts_with("streaming|Refunds")).then_some(())
    })
    .await;
    until("the whole reply", async || {
        let seen: String = place.ann.one(&look, &[]).await;
        (seen == "done|Refunds take 30 days [1].").then_some(())
    })
    .await;
    let quote: String =
        place.ann.one(&format!("select quote from helper.message_citations where message_id = '{id}'"), &[]).await;
    assert!(quote.contains("30 days"), "{quote}");
    // Another person sees nothing of it, and cannot cancel it.
    let bea = place.cluster.user(BEA).await;
    assert_eq!(bea.one::<i64>("select count(*) from helper.messages", &[]).await, 0);
    assert_eq!(bea.error(&format!("select helper.cancel('{id}')")).await.code().code(), "42704");
    // A failure is stored with its cause.
    place.server.next(Answer::status(500, "{}"));
    let id: String = place.ann.one("select helper.ask_async('Again', knowledge => false)::text", &[]).await;
    let error = until("the error", async || {
        let row = place
            .ann
            .query_one(&format!("select status, error from helper.messages where id = '{id}'"), &[])
            .await
            .unwrap();
        (row.get::<_, &str>(0) == "error").then(|| row.get::<_, Value>(1))
    })
    .await;
    assert_eq!(error["sqlstate"], "38000", "{error}");
}

#[tokio::test]
async fn a_reply_can_be_cancelled_before_and_while_it_is_spoken() {
    let place = Place::new().await;
    place.server.answer_by(|_| {
        Answer::Say(Say { text: "a b c d e f g h".into(), delay: Duration::from_millis(300), ..Say::default() })
    });
    let conversation: String = place.ann.one("select helper.create_conversation('C')::text", &[]).await;
    let ask = format!("select helper.ask_async('Talk', '{conversation}', knowledge => false)::text");
    let first: String = place.ann.one(&ask, &[]).await;
    let second: String = place.ann.one(&ask, &[]).await;
    let refused = place
        .ann
        .error(&format!(
            "select helper.ask('Me too', '{conversation}', knowledge => false, options => '{{\"busy\": \"refuse\"}}')"
        ))
        .await;
    assert_eq!(refused.code().code(), "55000");
    assert!(refused.message().contains("under way"), "{refused}");
    let status = async |id: &str| {
        place.ann.one::<String>(&format!("select status from helper.messages where id = '{id}'"), &[]).await
    };
    until("the first to speak", async || (status(&first).await == "streaming").then_some(())).await;
    assert_eq!(status(&second).await, "pending", "one reply at a time");
    assert!(place.ann.one::<bool>(&format!("select helper.cancel('{second}')"), &[]).await);
    assert!(place.ann.one::<bool>(&format!("select helper.cancel('{first}')"), &[]).await);
    until("both to end", async || {
        (status(&first).await == "cancelled" && status(&second).await == "cancelled").then_some(())
    })
    .await;
    assert!(!place.ann.one::<bool>(&format!("select helper.cancel('{first}')"), &[]).await);
    let kept: String = place.ann.one(&format!("select content from helper.messages where id = '{first}'"), &[]).await;
    assert!(kept.starts_with('a'), "{kept}");
    assert_eq!(place.server.count(), 1, "the second was never sent");
    assert_eq!(place.records(1).await[0]["status"], "cancelled");
}

#[tokio::test]
async fn replies_take_turns_whoever_s_documents_are_indexed_meanwhile() {
    let place = Place::new().await;
    place.admin.run("alter system set helper_ai.reply_concurrency = 1").await;
    place.cluster.restart();
    let ann = place.cluster.user(ANN).await;
    let gate = Arc::new(Notify::new());
    place.server.next(Answer::Held(Arc::clone(&gate), Box::new(Answer::say("One."))));
    let bea = place.cluster.user(BEA).await;
    bea.run("select helper.create_workspace('Bea')").await;
    // The last workspace: after its turn it is the first one's again.
    let cat = place.cluster.user("00000000-0000-4000-8000-00000000000c").await;
    cat.run("select helper.create_workspace('Cat')").await;
    cat.run("select helper.add_document('Long ' || n, repeat('word ', 500)) from generate_series(1, 120) n").await;
    let ask = |text: &str| format!("select helper.ask_async('{text}', knowledge => false)");
    ann.run(&format!("{}; {}; {}", ask("Ann, first"), ask("Ann, second"), ask("Ann, third"))).await;
    bea.run(&ask("Bea, first")).await;
    until("the first reply to be under way", async || (place.server.count() == 1).then_some(())).await;
    let begun = "select count(*) from helper.jobs j where j.kind = 'index' and j.started_at is not null";
    let before: i64 = cat.one(begun, &[]).await;
    until("another document's turn", async || (cat.one::<i64>(begun, &[]).await > before).then_some(())).await;
    gate.notify_one();
    until("the second reply", async || (place.server.count() > 1).then_some(())).await;
    let asked: Vec<String> = place.server.seen().iter().map(|seen| seen.json().to_string()).collect();
    assert!(asked[0].contains("Ann, first") && asked[1].contains("Bea, first"), "{asked:?}");
}

#[tokio::test]
async fn a_value_fits_its_schema_or_the_error_says_where_not() {
    let place = Place::new().await;
    let schema = r#"{"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": false}"#;
    let call = format!("select helper.complete_json('How old?', '{schema}')");
    place.server.next(Answer::say(r#"{"age": 7}"#));
    assert_eq!(place.ann.one::<Value>(&call, &[]).await, json!({ "age": 7 }));
    // Repaired in a further turn.
    place.server.next(Answer::say(r#"{"age": "seven"}"#)).next(Answer::say("Sorry: ```json\n{\"age\": 7}\n```"));
    assert_eq!(place.ann.one::<Value>(&call, &[]).await, json!({ "age": 7 }));
    let again = place.server.seen().pop().unwrap().json().to_string();
    assert!(again.contains("/age"), "{again}");
    // Given up after two repairs.
    let before = place.server.count();
    place.server.answer_by(|_| Answer::say(r#"{"age": "seven"}"#));
    let error = place.ann.error(&call).await;
    assert_eq!(error.code().code(), "38000");
    assert!(error.detail().unwrap().contains("/age"), "{error:?}");
    assert_eq!(place.server.count() - before, 3);
    let error = place.ann.error("select helper.complete_json('x', '{\"type\": 5}')").await;
    assert_eq!(error.code().code(), "22023", "{error:?}");
}

#[tokio::test]
async fn two_hundred_replies_wait_together_and_hold_no_transaction() {
    let place = Place::new().await;
    place
        .server
        .answer_by(|_| Answer::Say(Say { text: "Done.".into(), delay: Duration::from_secs(5), ..Say::default() }));
    place
        .ann
        .run("select count(helper.ask_async('Question ' || n, knowledge => false)) from generate_series(1, 200) n")
        .await;
    until("all of them to be asked", async || (place.server.count() == 200).then_some(())).await;
    // A short one may just be at work: one that is held would be there at every look, until the first reply comes.
    until("no transaction to be open while providers are waited for", async || {
        let open: i64 = place
            .admin
            .one(
                "select count(*) from pg_stat_activity where backend_type like 'helper_ai%' and xact_start is not null",
                &[],
            )
            .await;
        (open == 0).then_some(())
    })
    .await;
    let done = "select count(*) from helper.messages where role = 'assistant' and status = 'done'";
    assert_eq!(place.admin.one::<i64>(done, &[]).await, 0, "a transaction was held until the replies came");
    until("all replies", async || {
        let done: i64 = place
            .admin
            .one("select count(*) from helper.messages where role = 'assistant' and status = 'done'", &[])
            .await;
        (done == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn texts_are_embedded_by_a_provider_where_one_is_named() {
    let place = Place::new().await;
    for name in ["open", "gem", "llama"] {
        place.admin.run(&format!("select helper.set_model('{name}', 'e', 'embedding')")).await;
        let rows = place
            .ann
            .query(&format!("select (v::text::json ->> 0)::float8, vector_norm(v), vector_dims(v) from helper.embed_many(array['one', 'two', 'three'], '{name}/e') v"), &[])
            .await
            .unwrap();
        assert_eq!(rows.len(), 3, "{name}");
        for (row, text) in rows.iter().zip(["one", "two", "three"]) {
            let dimensions = row.get::<_, i32>(2) as usize;
            let plain = provider::embedding(text, dimensions);
            let length = plain.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!((row.get::<_, f64>(0) - f64::from(plain[0] / length)).abs() < 1e-5, "{name} {text}");
            assert!((row.get::<_, f64>(1) - 1.0).abs() < 1e-5, "{name} {text}");
        }
    }
    assert_eq!(place.records(3).await[0]["purpose"], "embed");
    assert_eq!(place.ann.error("select helper.embed('x', 'claude/m')").await.code().code(), "42704");
}

/// Whoever owns a database may create schemas in it, and is no superuser.
#[tokio::test]
async fn what_somebody_put_where_supabase_has_its_own_is_not_run() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin().await;
    admin
        .run("create role boss login; alter database postgres owner to boss; select helper.grant_usage('boss'); grant execute on function helper.set_provider to boss; create table public.caught (what text); grant insert on public.caught to public")
        .await;
    let boss = cluster.connect("postgres", "boss").await;
    boss.run(
        "create schema realtime; create schema vault; grant usage on schema realtime, vault to public; \
         create function realtime.send(jsonb, text, text, boolean) returns void language sql as $$ insert into public.caught values (current_user) $$; \
         create function vault.key() returns text language sql as $$ insert into public.caught values (current_user); select 'sk' $$; \
         create view vault.decrypted_secrets as select 'x'::text as name, vault.key() as decrypted_secret; \
         grant select on vault.decrypted_secrets to public",
    )
    .await;
    let ann = cluster.user(ANN).await;
    ann.run("select helper.create_workspace('Ann')").await;
    let id: String = ann.one("select helper.ask_async('Hello')::text", &[]).await;
    until("the reply", async || {
        let done: bool = ann.one(&format!("select status = 'done' from helper.messages where id = '{id}'"), &[]).await;
        done.then_some(())
    })
    .await;
    let error = boss.error("select helper.set_provider('mine', 'openai', credential => 'vault:x')").await;
    assert_eq!(error.code().code(), "42501");
    // As if it had been somebody else's when it was set.
    admin.run("select helper.set_provider('mine', 'openai'); update helper.providers set credential = 'vault:x'").await;
    assert_eq!(ann.error("select helper.complete('Hello', model => 'mine/gpt-5')").await.code().code(), "55000");
    assert_eq!(admin.one::<i64>("select count(*) from public.caught", &[]).await, 0);
    // A superuser's own is used.
    admin.run("alter schema realtime owner to postgres; alter function realtime.send owner to postgres").await;
    ann.one::<String>("select helper.ask('Hello')", &[]).await;
    assert!(admin.one::<i64>("select count(*) from public.caught", &[]).await > 0);
}

#[tokio::test]
async fn a_provider_of_one_workspace_cannot_tie_up_the_gateway_of_all() {
    let place = Place::new().await;
    for option in [
        r#"{"max_retries": 1000000}"#,
        r#"{"timeout_ms": 1000000000}"#,
        r#"{"max_reply_bytes": 1000000000}"#,
        r#"{"idle_timeout_ms": 1.5}"#,
        r#"{"max_retries": "2"}"#,
    ] {
        let sql = format!(
            "select helper.set_provider('mine', 'openai', options => '{option}', workspace => '{}')",
            place.workspace
        );
        assert_eq!(place.ann.error(&sql).await.code().code(), "22023", "{option}");
    }
}

#[tokio::test]
async fn a_default_that_is_disabled_gives_way_or_says_so() {
    let place = Place::new().await;
    let (claude, open) = (place.server.url(""), place.server.url("/v1"));
    let disable = async |name: &str, kind: &str, url: &str| {
        let options = r#"{"allow_private": true, "enabled": false}"#;
        place
            .admin
            .run(&format!("select helper.set_provider('{name}', '{kind}', '{url}', options => '{options}')"))
            .await;
    };
    let ask = "select r.provider from helper.answer('When are refunds paid?') r";
    place.admin.run("select helper.set_default('chat', 'open', 'm', fallback => '{claude/m}')").await;
    disable("open", "openai", &open).await;
    assert_eq!(place.ann.one::<String>(ask, &[]).await, "claude");
    // With none left nobody else answers in their place.
    disable("claude", "anthropic", &claude).await;
    for call in [ask, "select helper.complete('Hello')"] {
        let error = place.ann.error(call).await;
        assert_eq!(error.code().code(), "55000", "{error:?}");
        assert!(error.message().contains("\"open/m\"") && error.hint().unwrap().contains("set_provider"), "{error:?}");
    }
    place.ann.one::<String>("select helper.ask('When are refunds paid?', model => 'local')", &[]).await;
    place.admin.run("select helper.set_default('chat', 'local', null)").await;
    assert_eq!(place.ann.one::<String>(ask, &[]).await, "local");
}

#[tokio::test]
async fn a_model_is_the_default_for_what_it_does_alone() {
    let place = Place::new().await;
    for (purpose, provider, model) in [
        ("chat", "open", "text-embedding-3-small"),
        ("embedding", "open", "gpt-5"),
        ("embedding", "open", "m"),
        ("image", "open", "m"),
        ("speech", "gem", "gemini-2.5-pro"),
        ("transcription", "open", "text-embedding-3-small"),
    ] {
        let error =
            place.admin.error(&format!("select helper.set_default('{purpose}', '{provider}', '{model}')")).await;
        assert_eq!(error.code().code(), "22023", "{purpose} {model}: {error:?}");
    }
    let error = place
        .admin
        .error("select helper.set_default('chat', 'open', 'm', fallback => '{gem/gemini-embedding-001}')")
        .await;
    assert_eq!(error.code().code(), "22023", "{error:?}");
    // What was set before stays.
    assert_eq!(place.ann.one::<String>("select model from helper.model_defaults", &[]).await, "m");
    place.admin.run("select helper.set_default('embedding', 'open', 'text-embedding-3-small')").await;
    // Its kind may be changed afterwards, and then it does not answer.
    place.admin.run("select helper.set_model('open', 'm', 'image')").await;
    assert_eq!(place.ann.error("select helper.ask('When?')").await.code().code(), "55000");
}
