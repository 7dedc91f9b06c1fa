//! Replies on their way, as those see them who wait, listen or look: written step by step, told of, broadcast, fetched word by
//! word, and one at a time. What the provider says next is let go by the test, so that nothing depends on how fast anybody is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod place;
mod provider;

use cluster::{Session, until};
use place::{ANN, BEA, Place};
use provider::{Answer, Say};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::{Notify, Semaphore};

/// Words that come when the test lets them.
fn gated(place: &Place, text: &str) -> Arc<Semaphore> {
    let gate = Arc::new(Semaphore::new(0));
    let say = Say { text: text.into(), gate: Some(Arc::clone(&gate)), ..Say::default() };
    place.server.answer_by(move |_| Answer::Say(say.clone()));
    gate
}

async fn ended(session: &Session, message: &str) -> (String, String) {
    let sql = format!("select status, content from helper.messages where id = '{message}'");
    until("the reply's end", async || {
        let row = session.query_one(&sql, &[]).await.unwrap();
        let (status, content): (String, String) = (row.get(0), row.get(1));
        (!["pending", "streaming"].contains(&status.as_str())).then_some((status, content))
    })
    .await
}

#[tokio::test]
async fn each_step_of_a_reply_is_told_by_the_messages_id_and_nothing_else() {
    let place = Place::new().await;
    let gate = gated(&place, "one two three");
    // Whoever may use the database may listen, and hears no more than that.
    let listener = place.cluster.connect("postgres", "authenticator").await;
    listener.run("listen helper_messages").await;
    let id: String = place.ann.one("select helper.ask_async('Count', knowledge => false)::text", &[]).await;
    let heard = async |count: usize| {
        until("notifications", async || {
            let told = listener.notifications();
            (told.len() >= count).then_some(told)
        })
        .await
    };
    gate.add_permits(1);
    heard(1).await;
    gate.add_permits(1);
    heard(2).await;
    gate.add_permits(8);
    assert_eq!(ended(&place.ann, &id).await, ("done".into(), "one two three".into()));
    for (channel, payload) in heard(3).await {
        assert_eq!((channel.as_str(), payload.as_str()), ("helper_messages", id.as_str()));
    }
}

#[tokio::test]
async fn a_reply_is_written_every_quarter_of_a_second_or_two_hundred_characters_and_no_more_often() {
    let place = Place::new().await;
    place
        .admin
        .run(
            "create table public.writes (n serial, at timestamptz, message text, characters integer); \
             create function public.note() returns trigger language plpgsql security definer as $$ begin \
               insert into public.writes (at, message, characters) values (clock_timestamp(), new.id, char_length(new.content)); \
               return null; end $$; \
             create trigger note after update on helper.messages for each row when (new.status = 'streaming') \
               execute function public.note()",
        )
        .await;
    // Two bytes a character: the short words come to two hundred bytes, but not characters, in less than a quarter of a second.
    let long = format!("{} ", "ü".repeat(219)).repeat(8);
    let short = format!("{} ", "ü".repeat(24)).repeat(60);
    let mut soon = 0;
    for (text, delay, fewest) in [(short, 35, 3), (long, 40, 2)] {
        let say = Say { text: text.clone(), delay: Duration::from_millis(delay), ..Say::default() };
        place.server.answer_by(move |_| Answer::Say(say.clone()));
        let id: String = place.ann.one("select helper.ask_async('Talk', knowledge => false)::text", &[]).await;
        assert_eq!(ended(&place.ann, &id).await, ("done".into(), text.trim_end().to_owned()));
        let sql = format!(
            "select w.characters, w.characters - lag(w.characters) over o, extract(epoch from w.at - lag(w.at) over o)::float8 \
             from public.writes w where w.message = '{id}' window o as (order by w.n) order by w.n"
        );
        let writes = place.admin.query(&sql, &[]).await.unwrap();
        assert!(writes.len() >= fewest, "only {} writes", writes.len());
        for write in &writes[1..] {
            let (new, since): (i32, f64) = (write.get(1), write.get(2));
            assert!(new >= 200 || since >= 0.25, "{new} characters were written after {since} s");
            soon += i32::from(since < 0.25);
        }
    }
    assert!(soon > 0, "two hundred characters did not come sooner");
}

#[tokio::test]
async fn what_is_written_of_a_long_reply_is_a_few_times_its_length() {
    let place = Place::new().await;
    place
        .admin
        .run(
            "create table public.writes (characters integer); \
             create function public.note() returns trigger language plpgsql security definer as $$ begin \
               insert into public.writes values (char_length(new.content)); return null; end $$; \
             create trigger note after update on helper.messages for each row when (new.status = 'streaming') \
               execute function public.note()",
        )
        .await;
    let text =
        "a hundred characters, or somewhat less, and no more of them before the next word is begun ".replace(' ', "_");
    let say = Say { text: format!("{text} ").repeat(600), delay: Duration::from_millis(2), ..Say::default() };
    let length = say.text.trim_end().len() as i64;
    place.server.answer_by(move |_| Answer::Say(say.clone()));
    let id: String = place.ann.one("select helper.ask_async('Talk', knowledge => false)::text", &[]).await;
    assert_eq!(ended(&place.ann, &id).await.0, "done");
    let written: i64 = place.admin.one("select coalesce(sum(w.characters), 0) from public.writes w", &[]).await;
    assert!(written > length / 2 && written < 8 * length, "{written} characters were written of {length}");
}

#[tokio::test]
async fn whoever_holds_a_reply_keeps_no_other_from_being_written_and_is_not_asked_for_twice() {
    let place = Place::new().await;
    let gate = gated(&place, "one two three four five six");
    let bea = place.cluster.user(BEA).await;
    bea.run("select helper.create_workspace('Bea')").await;
    let ask = "select helper.ask_async('Talk', knowledge => false)::text";
    let (anns, beas): (String, String) = (place.ann.one(ask, &[]).await, bea.one(ask, &[]).await);
    until("both requests", async || (place.server.count() == 2).then_some(())).await;
    gate.add_permits(3);
    until("Ann's words", async || {
        let words = format!("select from helper.messages where id = '{anns}' and content <> ''");
        place.ann.query_opt(&words, &[]).await.unwrap().map(|_| ())
    })
    .await;
    place.admin.run(&format!("begin; select from helper.messages where id = '{anns}' for share")).await;
    gate.add_permits(4);
    let said = format!("select from helper.messages where id = '{beas}' and content like '%two%'");
    until("Bea's words", async || bea.query_opt(&said, &[]).await.unwrap().map(|_| ())).await;
    // Its end waits for whoever holds it, and nobody is asked again.
    assert!(place.ann.one::<bool>(&format!("select helper.cancel('{anns}')"), &[]).await);
    until("the worker to meet the lock", async || {
        place.cluster.log().contains("somebody's transaction holds the reply").then_some(())
    })
    .await;
    gate.add_permits(20);
    assert_eq!(ended(&bea, &beas).await, ("done".into(), "one two three four five six".into()));
    // Nor does the worker forget that it has it.
    let admin = place.cluster.admin().await;
    let lease = "select l.token::text from helper.job_leases l";
    let token: String = admin.one(lease, &[]).await;
    cleaned(&admin).await;
    assert_eq!(admin.one::<String>(lease, &[]).await, token);
    place.admin.run("commit").await;
    assert_eq!(ended(&place.ann, &anns).await.0, "cancelled");
    assert_eq!(place.server.count(), 2);
}

/// Has the worker look for what nobody holds any more.
async fn cleaned(admin: &Session) {
    admin
        .run(
            "insert into helper.jobs (workspace_id, kind, principal_role, status, created_at, finished_at) \
             select w.id, 'index', 'postgres', 'failed', '2020-01-01', '2020-01-01' from helper.workspaces w limit 1",
        )
        .await;
    admin.run("select pg_reload_conf()").await;
    let left = "select count(*) from helper.jobs j where j.created_at = '2020-01-01'";
    until("the cleaning", async || (admin.one::<i64>(left, &[]).await == 0).then_some(())).await;
}

#[tokio::test]
async fn a_reply_that_somebody_holds_when_its_turn_comes_is_begun_once_they_let_go() {
    let place = Place::new().await;
    let conversation: String = place.ann.one("select helper.create_conversation('Turns')::text", &[]).await;
    let ask = |text: &str| format!("select helper.ask_async('{text}', '{conversation}', knowledge => false)::text");
    let gate = Arc::new(Notify::new());
    place.server.next(Answer::Held(Arc::clone(&gate), Box::new(Answer::say("The first reply."))));
    place.ann.run(&ask("First?")).await;
    until("the first request", async || (place.server.count() == 1).then_some(())).await;
    let second: String = place.ann.one(&ask("Second?"), &[]).await;
    let holder = place.cluster.admin().await;
    holder.run(&format!("begin; select from helper.messages where id = '{second}' for update")).await;
    gate.notify_one();
    // More often than it would be tried if that were its own fault.
    let mut tries = BTreeSet::new();
    let look = format!("select started_at::text from helper.jobs where payload ->> 'message_id' = '{second}'");
    until("it to have been claimed again and again", async || {
        tries.extend(place.admin.one::<Option<String>>(&look, &[]).await);
        (tries.len() > 6).then_some(())
    })
    .await;
    holder.run("commit").await;
    assert_eq!(ended(&place.ann, &second).await, ("done".into(), "Grüße from the provider.".into()));
    assert_eq!(place.server.count(), 2);
}

#[tokio::test]
async fn a_worker_begins_although_somebody_holds_what_the_last_one_had() {
    let place = Place::new().await;
    let bea = place.cluster.user(BEA).await;
    let workspace: String = bea.one("select helper.create_workspace('Bea')::text", &[]).await;
    place.server.next(Answer::Hang);
    let ask = "select helper.ask_async('Talk', knowledge => false)::text";
    let beas: String = bea.one(ask, &[]).await;
    until("Bea's request", async || (place.server.count() == 1).then_some(())).await;
    bea.run(&format!("begin; select helper.delete_workspace('{workspace}')")).await;
    let worker = place.admin.pids().await.worker;
    assert!(place.admin.one::<bool>("select pg_terminate_backend($1, 10000)", &[&worker]).await);
    let anns: String = place.ann.one(ask, &[]).await;
    assert_eq!(ended(&place.ann, &anns).await.0, "done");
    bea.run("rollback").await;
    assert_eq!(ended(&bea, &beas).await.0, "done");
    assert_eq!(place.server.count(), 3);
}

#[tokio::test]
async fn a_reply_that_was_begun_when_the_worker_ended_is_an_error_and_keeps_its_words() {
    let place = Place::new().await;
    let gate = gated(&place, "one two three four five six");
    gate.add_permits(3);
    let id: String = place.ann.one("select helper.ask_async('Talk', knowledge => false)::text", &[]).await;
    let said = format!("select content from helper.messages where id = '{id}' and content <> ''");
    let words: String =
        until("its words", async || place.ann.query_opt(&said, &[]).await.unwrap().map(|row| row.get(0))).await;
    let worker = place.admin.pids().await.worker;
    assert!(place.admin.one::<bool>("select pg_terminate_backend($1, 10000)", &[&worker]).await);
    let (status, content) = ended(&place.ann, &id).await;
    assert!(status == "error" && content.starts_with(&words), "{status}: {content}");
    assert_eq!(place.server.count(), 1, "nobody pays for it twice");
}

#[tokio::test]
async fn realtime_is_sent_every_word_of_a_reply_on_its_conversations_topic() {
    let place = Place::new().await;
    place
        .admin
        .run(
            "create schema realtime; create table realtime.sent (n serial, payload jsonb, event text, topic text, private boolean); \
             create function realtime.send(payload jsonb, event text, topic text, private boolean default true) returns void \
             language sql as $$ insert into realtime.sent (payload, event, topic, private) values (payload, event, topic, private) $$",
        )
        .await;
    let gate = gated(&place, "Refunds are paid within 30 days [1]. The moon is made of cheese [9]. Grüße!");
    let id: String = place.ann.one("select helper.ask_async('When are refunds paid?')::text", &[]).await;
    let sent = "select count(*) from realtime.sent";
    for steps in 1..4 {
        gate.add_permits(2);
        until("a step", async || (place.admin.one::<i64>(sent, &[]).await >= steps).then_some(())).await;
    }
    gate.add_permits(30);
    let (status, content) = ended(&place.ann, &id).await;
    assert_eq!(
        (status.as_str(), content.as_str()),
        ("done", "Refunds are paid within 30 days [1]. The moon is made of cheese. Grüße!")
    );
    let conversation: String =
        place.ann.one(&format!("select conversation_id::text from helper.messages where id = '{id}'"), &[]).await;
    let rows =
        place.admin.query("select payload, event, topic, private from realtime.sent order by n", &[]).await.unwrap();
    let mut words = String::new();
    for (at, row) in rows.iter().enumerate() {
        let payload: Value = row.get(0);
        let is_last = at + 1 == rows.len();
        assert_eq!(payload["status"], if is_last { "done" } else { "streaming" }, "{payload}");
        assert_eq!(payload["message_id"], id.as_str());
        words.push_str(payload["delta"].as_str().unwrap_or_default());
        let told: (&str, &str, bool) = (row.get(1), row.get(2), row.get(3));
        assert_eq!(told, ("message", format!("helper:{conversation}").as_str(), true));
    }
    assert_eq!(words, content, "the deltas together are the reply");
}

#[tokio::test]
async fn a_second_question_of_a_conversation_waits_for_the_first_ones_reply() {
    let place = Place::new().await;
    let conversation: String = place.ann.one("select helper.create_conversation('Turns')::text", &[]).await;
    let ask = |text: &str| format!("select helper.ask('{text}', '{conversation}', knowledge => false)");
    let gate = Arc::new(Notify::new());
    place.server.next(Answer::Held(Arc::clone(&gate), Box::new(Answer::say("The first reply."))));
    let (first, second) = (place.cluster.user(ANN).await, place.cluster.user(ANN).await);
    let pid = second.pid().await;
    let (question, other) = (ask("First?"), ask("Second?"));
    let begun = Notify::new();
    let asked_second = async {
        until("the first request", async || (place.server.count() == 1).then_some(())).await;
        begun.notify_one();
        let reply: String = second.one(&other, &[]).await;
        (reply, place.server.count())
    };
    let let_go = async {
        begun.notified().await;
        let waits = format!(
            "select count(*) from pg_stat_activity where pid = {pid} and state = 'active' and wait_event is not null"
        );
        until("the second to wait", async || (place.admin.one::<i64>(&waits, &[]).await == 1).then_some(())).await;
        // Who does not want to wait is told.
        let refuse =
            ask("Third?").replace("knowledge => false", "knowledge => false, options => '{\"busy\": \"refuse\"}'");
        assert_eq!(place.ann.error(&refuse).await.code().code(), "55000");
        assert_eq!(place.server.count(), 1, "two replies at once");
        gate.notify_one();
    };
    let (reply, second, ()) = tokio::join!(first.one::<String>(&question, &[]), asked_second, let_go);
    assert_eq!((reply.as_str(), second.0.as_str(), second.1), ("The first reply.", "Grüße from the provider.", 2));
    // Each knows what was said before it.
    let messages = place.server.seen()[1].json()["messages"].clone();
    let said: Vec<&str> =
        messages.as_array().unwrap()[1..].iter().map(|message| message["content"].as_str().unwrap()).collect();
    assert_eq!(said, ["First?", "The first reply.", "Second?"]);
    let kept: String = place.ann.one("select string_agg(content, '|' order by id) from helper.messages", &[]).await;
    assert_eq!(kept, "First?|The first reply.|Second?|Grüße from the provider.");
}

#[tokio::test]
async fn a_question_that_waited_for_a_lock_waits_for_the_replies_that_it_held_back() {
    let place = Place::new().await;
    let conversation: String = place.ann.one("select helper.create_conversation('Turns')::text", &[]).await;
    let ask =
        |how: &str, text: &str| format!("select helper.{how}('{text}', '{conversation}', knowledge => false)::text");
    let gate = Arc::new(Notify::new());
    place.server.next(Answer::Held(Arc::clone(&gate), Box::new(Answer::say("The first reply."))));
    let (second, third) = (place.cluster.user(ANN).await, place.cluster.user(ANN).await);
    let pid = third.pid().await;
    let waiting = async |count: i64| {
        let locks = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
        until("sessions to wait", async || (place.admin.one::<i64>(locks, &[]).await == count).then_some(())).await;
    };
    // The worker does not know of it yet, and those who come later not either.
    place.ann.run(&format!("begin; {}", ask("ask_async", "First?"))).await;
    let (queued, asked) = (ask("ask_async", "Second?"), ask("ask", "Third?"));
    let begun = Notify::new();
    let ask_third = async {
        waiting(1).await;
        begun.notify_one();
        third.one::<String>(&asked, &[]).await
    };
    let let_go = async {
        begun.notified().await;
        waiting(2).await;
        place.ann.run("commit").await;
        until("the first request", async || (place.server.count() >= 1).then_some(())).await;
        let waits = format!("select count(*) from pg_stat_activity where pid = {pid} and wait_event = 'PgSleep'");
        until("the third to wait or to be answered", async || {
            (place.server.count() > 1 || place.admin.one::<i64>(&waits, &[]).await == 1).then_some(())
        })
        .await;
        assert_eq!(place.server.count(), 1, "two replies at once");
        gate.notify_one();
    };
    let (_, reply, ()) = tokio::join!(second.one::<String>(&queued, &[]), ask_third, let_go);
    assert_eq!(reply, "Grüße from the provider.");
    let kept: String = place.ann.one("select string_agg(content, '|' order by id) from helper.messages", &[]).await;
    assert_eq!(kept, "First?|The first reply.|Second?|Grüße from the provider.|Third?|Grüße from the provider.");
    // Who asked last knows what was said to the others.
    let last = place.server.seen()[2].json()["messages"].to_string();
    assert!(last.contains("First?") && last.contains("Second?") && last.contains("Third?"), "{last}");
}

#[tokio::test]
async fn a_reply_that_is_begun_again_comes_before_the_next_one_of_its_conversation() {
    let place = Place::new().await;
    let conversation: String = place.ann.one("select helper.create_conversation('Turns')::text", &[]).await;
    let ask = |text: &str| format!("select helper.ask_async('{text}', '{conversation}', knowledge => false)::text");
    place.server.next(Answer::Hang);
    let first: String = place.ann.one(&ask("First?"), &[]).await;
    let second: String = place.ann.one(&ask("Second?"), &[]).await;
    until("the first request", async || (place.server.count() == 1).then_some(())).await;
    cluster::signal(place.admin.pids().await.gateway, "KILL");
    for id in [&first, &second] {
        assert_eq!(ended(&place.ann, id).await, ("done".into(), "Grüße from the provider.".into()));
    }
    let asked: Vec<String> = place.server.seen().iter().map(|seen| seen.json()["messages"].to_string()).collect();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked[1].contains("First?") && !asked[1].contains("Second?"), "{asked:?}");
    assert!(asked[2].contains("Grüße from the provider.") && asked[2].contains("Second?"), "{asked:?}");
}

#[tokio::test]
async fn a_reply_whose_conversation_is_deleted_is_broken_off() {
    let place = Place::new().await;
    for (count, cancels) in [(1, true), (2, false)] {
        let conversation: String = place.ann.one("select helper.create_conversation('Gone')::text", &[]).await;
        let ask = format!("select helper.ask_async('Talk', '{conversation}', knowledge => false)::text");
        place.server.next(Answer::Hang);
        let id: String = place.ann.one(&ask, &[]).await;
        until("the request", async || (place.server.count() == count).then_some(())).await;
        let cancel = if cancels { format!("select helper.cancel('{id}'); ") } else { String::new() };
        place.ann.run(&format!("begin; {cancel}select helper.delete_conversation('{conversation}'); commit")).await;
        until("the request to be broken off", async || (place.server.gone().len() == count).then_some(())).await;
        let status = format!("select status from helper.jobs where payload ->> 'message_id' = '{id}'");
        until("the job's end", async || (place.admin.one::<String>(&status, &[]).await == "cancelled").then_some(()))
            .await;
    }
    assert_eq!(place.admin.one::<i64>("select count(*) from helper.reply_cancellations", &[]).await, 0);
}

#[tokio::test]
async fn a_cursor_gives_each_word_before_the_provider_says_the_next() {
    let place = Place::new().await;
    let gate = gated(&place, "one two three");
    place.ann.run("begin; declare c cursor for select helper.ask_stream('Count', knowledge => false)::text").await;
    let fetch = async || {
        let rows = place.ann.query("fetch 1 from c", &[]).await.unwrap();
        rows.first().map(|row| row.get::<_, String>(0))
    };
    // The provider has said nothing yet.
    assert!(fetch().await.unwrap().starts_with("(meta,"));
    for word in ["one ", "two ", "three"] {
        gate.add_permits(1);
        assert_eq!(fetch().await.unwrap(), format!("(delta,\"{{\"\"text\"\": \"\"{word}\"\"}}\")"));
    }
    assert!(fetch().await.unwrap().starts_with("(done,"));
    assert_eq!(fetch().await, None);
    place.ann.run("commit").await;
    let kept: String =
        place.ann.one("select status || ' ' || content from helper.messages where role = 'assistant'", &[]).await;
    assert_eq!(kept, "done one two three");
}

#[tokio::test]
async fn psql_shows_each_word_before_the_provider_says_the_next() {
    let place = Place::new().await;
    let gate = gated(&place, "one two three");
    let claims = json!({ "sub": ANN, "role": "authenticated" });
    let url = place.cluster.url("postgres").replace("postgres@", "authenticator@");
    let mut psql = tokio::process::Command::from(place.cluster.program("psql"));
    psql.args(["-Xqt", "-v", "FETCH_COUNT=1", "-c", "set role authenticated", "-c"])
        .arg(format!("do $$ begin perform set_config('request.jwt.claims', '{claims}', false); end $$"))
        .args(["-c", "select helper.ask_stream('Count', knowledge => false)", &url])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut psql = psql.spawn().unwrap();
    let mut lines = BufReader::new(psql.stdout.take().unwrap()).lines();
    let mut line = async || {
        tokio::time::timeout(cluster::DEADLINE, lines.next_line()).await.unwrap().unwrap().unwrap().trim().to_owned()
    };
    assert!(line().await.starts_with("(meta,"));
    for word in ["one ", "two ", "three"] {
        gate.add_permits(1);
        assert_eq!(line().await, format!("(delta,\"{{\"\"text\"\": \"\"{word}\"\"}}\")"));
    }
    assert!(line().await.starts_with("(done,"));
    assert!(psql.wait().await.unwrap().success());
}
