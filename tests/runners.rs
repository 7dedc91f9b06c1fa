//! Runners: what callers queue in SQL is run beside everything else, once, whatever ends in the middle of it, and stands in
//! nobody's way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod place;
mod provider;

use cluster::{Cluster, Session, is_alive, signal, until};
use place::{ANN, BEA, Place};
use provider::{Answer, Say};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Tools that take their time, and a table of what they did.
const TOOLS: &str = "
create table public.naps (mark text not null, at timestamptz not null default clock_timestamp(), pid integer not null default pg_backend_pid());
grant select, insert, update on public.naps to authenticated;
create function public.nap(mark text, seconds double precision) returns text language plpgsql as $$
begin
  insert into public.naps (mark) values (nap.mark);
  perform pg_sleep(seconds);
  return clock_timestamp();
end $$;
create function public.end_slowly() returns void language plpgsql as $$
begin
  perform pg_sleep(50);
exception when query_canceled then
  perform pg_advisory_xact_lock(11);
  raise;
end $$;
create function public.end_session() returns void language sql security definer as 'select pg_terminate_backend(pg_backend_pid())';
create function public.leave_things() returns void language plpgsql as $$
begin
  create temporary table left_behind as select 'secret' as word;
  perform set_config('my.secret', 'secret', false), pg_advisory_lock(7);
  execute 'declare left_open cursor with hold for select 1';
  execute 'prepare left_ready as select 1';
end $$;
create function public.find_things() returns text[] language sql as $$
  select array(
    select name from pg_cursors where name = 'left_open' union all
    select name from pg_prepared_statements where name = 'left_ready' union all
    select relname from pg_class where relname = 'left_behind' union all
    select 'a lock' from pg_locks where locktype = 'advisory' and pid = pg_backend_pid() union all
    select 'a setting' where current_setting('my.secret', true) = 'secret') $$;
select helper.register_function('nap', 'nap', 'Sleeps', '{\"requires_confirmation\": false, \"timeout_ms\": 60000}');
select helper.register_function('short_nap', 'nap', 'Sleeps', '{\"requires_confirmation\": false, \"timeout_ms\": 500}');
select helper.register_function('approved_nap', 'nap', 'Sleeps', '{\"approver_role\": \"owner\"}');
select helper.register_function('end_slowly', 'end_slowly', 'Ends', '{\"requires_confirmation\": false, \"timeout_ms\": 60000}');
select helper.register_function('end_session', 'end_session', 'Ends', '{\"requires_confirmation\": false}');
select helper.register_function('leave_things', 'leave_things', 'Leaves', '{\"requires_confirmation\": false}');
select helper.register_function('find_things', 'find_things', 'Finds', '{\"requires_confirmation\": false}');
";

async fn queue(session: &Session, tool: &str, arguments: Value) -> String {
    let sql = "select helper.call($1, $2, options => '{\"queue\": true}')::text";
    session.one(sql, &[&tool, &arguments]).await
}

async fn nap(session: &Session, mark: &str, seconds: f64) -> String {
    queue(session, "nap", json!({ "mark": mark, "seconds": seconds })).await
}

async fn status(session: &Session, call: &str) -> Value {
    session.one("select helper.call_status($1::text::uuid)", &[&call]).await
}

/// A call that has ended.
async fn ended(session: &Session, call: &str) -> Value {
    until("the call to end", async || {
        let told = status(session, call).await;
        (!told["finished_at"].is_null()).then_some(told)
    })
    .await
}

/// Process ids of the runners of a session's database.
async fn runners(session: &Session) -> Vec<i32> {
    let told = session.status().await;
    told["runner_pids"].as_array().unwrap().iter().map(|pid| pid.as_i64().unwrap() as i32).collect()
}

/// A runner that sleeps in a tool.
async fn sleeping(session: &Session) -> i32 {
    until("a runner to sleep in a tool", async || {
        let sql = "select pid from pg_stat_activity \
            where backend_type = 'helper_ai runner' and wait_event = 'PgSleep' and datname = current_database()";
        session.query_opt(sql, &[]).await.unwrap().map(|row| row.get(0))
    })
    .await
}

/// Attempts of the job of a call.
async fn attempts(session: &Session, call: &str) -> i32 {
    session.one("select attempts from helper.jobs where key = $1::text::uuid", &[&call]).await
}

async fn marks(session: &Session, mark: &str) -> i64 {
    session.one("select count(*) from public.naps where mark = $1", &[&mark]).await
}

async fn with_tools(settings: &str) -> (Cluster, Session, Session) {
    let cluster = Cluster::with(settings).await;
    let admin = cluster.admin().await;
    admin.run(TOOLS).await;
    let ann = cluster.user(ANN).await;
    ann.run("select helper.create_workspace('Ann')").await;
    (cluster, admin, ann)
}

async fn bea(cluster: &Cluster) -> Session {
    let bea = cluster.user(BEA).await;
    bea.run("select helper.create_workspace('Bea')").await;
    bea
}

#[tokio::test]
async fn what_takes_long_keeps_nobody_waiting() {
    let place = Place::new().await;
    place.admin.run(TOOLS).await;
    place.admin.run("alter system set helper_ai.runners = 3").await;
    place.cluster.reload();
    place.server.answer_by(|seen| {
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        if body.contains("Sleep, please.") && !body.contains("<tool_result seal") {
            let call = ("nap".to_owned(), r#"{"mark": "by a model", "seconds": 5}"#.to_owned());
            Answer::Say(Say { text: "Let me see.".into(), tools: vec![call], ..Say::default() })
        } else {
            Answer::say("Said.")
        }
    });
    let long = nap(&place.ann, "long", 20.0).await;
    sleeping(&place.admin).await;
    let ask = "select helper.ask_async($1, knowledge => false, options => $2)::text";
    let sleeper: String = place.ann.one(ask, &[&"Sleep, please.", &json!({ "tools": ["nap"] })]).await;
    until("the model's nap", async || {
        let busy = "select count(*) = 2 from pg_stat_activity where backend_type = 'helper_ai runner' and wait_event = 'PgSleep'";
        place.admin.one::<bool>(busy, &[]).await.then_some(())
    })
    .await;
    let begin = Instant::now();
    place.ann.run("select helper.add_document('News', 'All is well.')").await;
    assert_eq!(place.ann.one::<i64>("select helper.wait_indexed()", &[]).await, 2);
    println!("indexed after {:?}", begin.elapsed());
    let quick: String = place.ann.one(ask, &[&"Speak.", &json!({})]).await;
    let done = async |message: &str| {
        until("a reply", async || {
            let sql = "select content from helper.messages where id = $1::text::uuid and status = 'done'";
            place.admin.query_opt(sql, &[&message]).await.unwrap().map(|row| row.get::<_, String>(0))
        })
        .await
    };
    assert_eq!(done(&quick).await, "Said.");
    println!("answered after {:?}", begin.elapsed());
    let bea = bea(&place.cluster).await;
    let other = nap(&bea, "Bea's", 0.0).await;
    assert_eq!(ended(&bea, &other).await["status"], "succeeded");
    println!("another tenant's call after {:?}", begin.elapsed());
    assert_eq!(status(&place.ann, &long).await["status"], "queued", "it has ended before the others were through");
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    // The reply goes on when its tool is through.
    assert_eq!(done(&sleeper).await, "Let me see.\n\nSaid.");
    let made: Value =
        place.admin.one("select tool_calls from helper.messages where id = $1::text::uuid", &[&sleeper]).await;
    assert_eq!((&made[0]["function"], &made[0]["status"]), (&json!("nap"), &json!("done")));
    assert_eq!(marks(&place.admin, "by a model").await, 1);
    assert_eq!(ended(&place.ann, &long).await["status"], "succeeded");
}

#[tokio::test]
async fn a_reply_whose_tool_runs_is_cancelled_and_lets_its_call_wait_no_longer_than_it_may() {
    let place = Place::new().await;
    place.admin.run(TOOLS).await;
    place.admin.run("alter system set helper_ai.runners = 0").await;
    place.cluster.reload();
    place.server.answer_by(|seen| {
        let body = String::from_utf8_lossy(&seen.body).into_owned();
        if body.contains("<tool_result seal") {
            return Answer::say("So be it.");
        }
        let seconds = if body.contains("Sleep long.") { 50 } else { 0 };
        let call = ("nap".to_owned(), json!({ "mark": "never", "seconds": seconds }).to_string());
        Answer::Say(Say { text: "Let me see.".into(), tools: vec![call], ..Say::default() })
    });
    let ask = "select helper.ask_async('Sleep.', knowledge => false, options => $1)::text";
    let ended = async |message: &str, how: &str| {
        until("the reply's end", async || {
            let sql = "select true from helper.messages where id = $1::text::uuid and status = $2";
            place.admin.query_opt(sql, &[&message, &how]).await.unwrap()
        })
        .await;
        let sql = "select status from helper.function_calls where message_id = $1::text::uuid";
        assert_eq!(place.admin.one::<String>(sql, &[&message]).await, "cancelled");
    };
    // One that has taken as long as it may waits for no runner.
    let late: String = place.ann.one(ask, &[&json!({ "tools": ["nap"], "limits": { "seconds": 1 } })]).await;
    ended(&late, "done").await;
    let unwanted: String = place.ann.one(ask, &[&json!({ "tools": ["nap"] })]).await;
    let waiting = "select count(*) from helper.function_calls where status = 'queued'";
    until("a call", async || (place.admin.one::<i64>(waiting, &[]).await == 1).then_some(())).await;
    assert!(place.ann.one::<bool>("select helper.cancel($1::text::uuid)", &[&unwanted]).await);
    ended(&unwanted, "cancelled").await;
    assert_eq!(marks(&place.admin, "never").await, 0);
    // One that a runner is at is broken off.
    place.admin.run("alter system set helper_ai.runners = 1").await;
    place.cluster.reload();
    let unwanted: String = place.ann.one(&ask.replace("Sleep.", "Sleep long."), &[&json!({ "tools": ["nap"] })]).await;
    sleeping(&place.admin).await;
    assert!(place.ann.one::<bool>("select helper.cancel($1::text::uuid)", &[&unwanted]).await);
    until("the call's end", async || {
        let sql = "select true from helper.function_calls where message_id = $1::text::uuid and status = 'cancelled'";
        place.admin.query_opt(sql, &[&unwanted]).await.unwrap()
    })
    .await;
    ended(&unwanted, "cancelled").await;
    assert_eq!(marks(&place.admin, "never").await, 0);
}

#[tokio::test]
async fn a_call_that_a_runner_is_at_is_broken_off_when_it_is_cancelled() {
    let (cluster, admin, ann) = with_tools("helper_ai.runners = 2").await;
    let bea = bea(&cluster).await;
    let (unwanted, wanted) = (nap(&ann, "unwanted", 50.0).await, nap(&ann, "wanted", 3.0).await);
    until("two naps", async || {
        let sql = "select count(*) = 2 from pg_stat_activity where backend_type = 'helper_ai runner' and wait_event = 'PgSleep'";
        admin.one::<bool>(sql, &[]).await.then_some(())
    })
    .await;
    let before = runners(&admin).await;
    assert_eq!(bea.error(&format!("select helper.cancel_call('{unwanted}')")).await.code().code(), "42704");
    assert!(ann.one::<bool>("select helper.cancel_call($1::text::uuid)", &[&unwanted]).await);
    assert_eq!(status(&ann, &unwanted).await["status"], "cancelled");
    assert!(!ann.one::<bool>("select helper.cancel_call($1::text::uuid)", &[&unwanted]).await, "twice");
    assert_eq!(ended(&ann, &wanted).await["status"], "succeeded");
    assert!(!ann.one::<bool>("select helper.cancel_call($1::text::uuid)", &[&wanted]).await, "after its end");
    assert_eq!((marks(&admin, "unwanted").await, marks(&admin, "wanted").await), (0, 1));
    until("their jobs to end", async || {
        let sql = "select count(*) from helper.jobs where kind = 'call' and finished_at is null";
        (admin.one::<i64>(sql, &[]).await == 0).then_some(())
    })
    .await;
    let after = runners(&admin).await;
    assert!(before.iter().all(|pid| after.contains(pid)), "the runners are the same: {before:?}, {after:?}");
    assert!(!cluster.log().contains("helper_ai runner: "), "{}", cluster.log());
}

#[tokio::test]
async fn who_holds_all_runners_keeps_nobody_else_waiting() {
    let (cluster, admin, ann) = with_tools("helper_ai.runners = 2").await;
    let bea = bea(&cluster).await;
    let mut long = Vec::new();
    for n in 0..4 {
        long.push(nap(&ann, &format!("long {n}"), 50.0).await);
    }
    let asleep =
        "select count(*) from pg_stat_activity where backend_type = 'helper_ai runner' and wait_event = 'PgSleep'";
    until("two naps", async || (admin.one::<i64>(asleep, &[]).await == 2).then_some(())).await;
    // Bea's call, and a run of hers, are the reserve's.
    let call = nap(&bea, "short", 0.0).await;
    assert_eq!(ended(&bea, &call).await["status"], "succeeded");
    let definition = json!({ "steps": [{ "name": "one", "type": "sql", "sql": "select 1 as n" }] });
    bea.one::<String>("select helper.create_workflow('quick', $1)::text", &[&definition]).await;
    let run: String = bea.one("select helper.run_workflow('quick')::text", &[]).await;
    until("her run", async || {
        let told: Value = bea.one("select helper.run_status($1::text::uuid)", &[&run]).await;
        (told["status"] == "succeeded").then_some(())
    })
    .await;
    let all = runners(&admin).await;
    assert_eq!(all.len(), 3, "two and the reserve");
    assert_eq!(admin.one::<i64>(asleep, &[]).await, 2, "none of Ann's is for the reserve");
    let wait = "select count(*) from helper.function_calls where status = 'queued'";
    assert_eq!(ann.one::<i64>(wait, &[]).await, 4);
    // Nobody is held any more: it leaves, and the others stay.
    for call in &long {
        ann.one::<bool>("select helper.cancel_call($1::text::uuid)", &[call]).await;
    }
    let left = until("the reserve to leave", async || {
        let left = runners(&admin).await;
        (left.len() == 2).then_some(left)
    })
    .await;
    assert!(left.iter().all(|pid| all.contains(pid)), "{all:?}, {left:?}");
    let next = nap(&ann, "next", 0.0).await;
    assert_eq!(ended(&ann, &next).await["status"], "succeeded");
    assert!(!cluster.log().contains("helper_ai runner: "), "{}", cluster.log());
}

/// The runner may have noted that the call is cancelled before whoever cancels it has waited for the row.
#[tokio::test]
async fn a_cancel_that_its_runner_notes_first_is_told_as_one() {
    let (_cluster, admin, ann) = with_tools("").await;
    admin.run("select pg_advisory_lock(11)").await;
    let call = queue(&ann, "end_slowly", json!({})).await;
    sleeping(&admin).await;
    let pid = ann.pid().await;
    let stopped = async {
        until("it to wait for the row", async || {
            let sql = "select true from pg_stat_activity where pid = $1 and wait_event_type = 'Lock'";
            admin.query_opt(sql, &[&pid]).await.unwrap()
        })
        .await;
        signal(pid, "STOP");
        admin.run("select pg_advisory_unlock(11)").await;
        until("the runner to note it", async || {
            let sql = "select true from helper.function_calls where id = $1::text::uuid and status = 'cancelled'";
            admin.query_opt(sql, &[&call]).await.unwrap()
        })
        .await;
        signal(pid, "CONT");
    };
    let cancel = async { ann.one::<bool>("select helper.cancel_call($1::text::uuid)", &[&call]).await };
    let (told, ()) = tokio::join!(cancel, stopped);
    assert!(told);
}

#[tokio::test]
async fn who_approves_a_models_call_sees_what_it_would_do() {
    let place = Place::new().await;
    place.admin.run(TOOLS).await;
    place.ann.run(&format!("select helper.add_member('{}', '{BEA}', 'member')", place.workspace)).await;
    let bea = place.cluster.user(BEA).await;
    place.server.answer_by(|_| {
        let call = ("approved_nap".to_owned(), r#"{"mark": "shown", "seconds": 0}"#.to_owned());
        Answer::Say(Say { text: "Let me see.".into(), tools: vec![call], ..Say::default() })
    });
    bea.run("select helper.ask_async('Sleep.', knowledge => false, options => '{\"tools\": [\"approved_nap\"]}')")
        .await;
    let preview = until("the preview", async || {
        let sql = "select preview from helper.function_calls where preview is not null";
        place.ann.query_opt(sql, &[]).await.unwrap().map(|row| row.get::<_, Value>(0))
    })
    .await;
    assert_eq!(preview["tables"][0]["rows"][0]["after"]["mark"], "shown", "{preview}");
    assert_eq!(marks(&place.admin, "shown").await, 0);
}

#[tokio::test]
async fn a_call_whose_runner_ends_in_the_middle_has_one_effect() {
    let (cluster, admin, ann) = with_tools("").await;
    // By an administrator.
    let call = nap(&ann, "terminated", 1.0).await;
    let runner = sleeping(&admin).await;
    assert!(admin.one::<bool>("select pg_terminate_backend($1, 10000)", &[&runner]).await);
    assert_eq!(ended(&ann, &call).await["status"], "succeeded");
    assert_eq!((marks(&admin, "terminated").await, attempts(&admin, &call).await), (1, 2));
    // With the whole server.
    let call = nap(&ann, "killed", 1.0).await;
    signal(sleeping(&admin).await, "KILL");
    until("the end of the old server", async || admin.batch_execute("select 1").await.is_err().then_some(())).await;
    let admin = until("the server", async || cluster.try_connect("postgres", "postgres").await.ok()).await;
    let ann = cluster.user(ANN).await;
    assert_eq!(ended(&ann, &call).await["status"], "succeeded");
    assert_eq!((marks(&admin, "killed").await, attempts(&admin, &call).await), (1, 2));
    // One that ends its runner each time is given up, and others are run meanwhile.
    let deadly = queue(&ann, "end_session", json!({})).await;
    let call = nap(&ann, "beside", 0.0).await;
    assert_eq!(ended(&ann, &call).await["status"], "succeeded");
    let told = ended(&ann, &deadly).await;
    assert_eq!((&told["status"], &told["error"]["sqlstate"]), (&json!("failed"), &json!("55000")), "{told}");
    assert!(told["error"]["message"].as_str().unwrap().contains("never ended"), "{told}");
    assert_eq!(attempts(&admin, &deadly).await, 6);
    assert_eq!(admin.one::<i64>("select count(*) from helper.job_leases", &[]).await, 0);
}

#[tokio::test]
async fn nobody_waits_for_a_tool_that_sleeps() {
    let (cluster, admin, _) = with_tools("").await;
    let quick = async |sql: &str, session: &Session| {
        let begin = Instant::now();
        session.run(sql).await;
        println!("{sql}: {:?}", begin.elapsed());
        assert!(begin.elapsed() < Duration::from_secs(2), "{sql}: {:?}", begin.elapsed());
    };
    for name in ["dropped", "forced", "renamed", "copied", "bare"] {
        admin.run(&format!("create database {name}")).await;
        let session = cluster.connect(name, "postgres").await;
        session.run("create extension helper_ai cascade; select helper.create_workspace('Test')").await;
        session.run(TOOLS).await;
        nap(&session, "long", 50.0).await;
        sleeping(&session).await;
    }
    let session = cluster.connect("bare", "postgres").await;
    let runner = sleeping(&session).await;
    quick("begin; drop extension helper_ai; rollback", &session).await;
    until("the runner to leave", async || (!is_alive(runner)).then_some(())).await;
    sleeping(&session).await;
    quick("drop extension vector cascade", &session).await;
    session.run("create extension helper_ai cascade; select helper.create_workspace('Test')").await;
    session.run("select helper.register_function('nap', 'nap', 'Sleeps', '{\"requires_confirmation\": false}')").await;
    let call = nap(&session, "after", 0.0).await;
    assert_eq!(ended(&session, &call).await["status"], "succeeded");
    drop(session);
    quick("drop database dropped", &admin).await;
    quick("drop database forced with (force)", &admin).await;
    quick("alter database renamed rename to renewed", &admin).await;
    quick("create database copy template copied", &admin).await;
    // The calls are taken up again where the database is still there, and in its copy.
    for name in ["renewed", "copied", "copy"] {
        sleeping(&cluster.connect(name, "postgres").await).await;
    }
    let stopped = cluster.stop("fast");
    println!("fast stop: {stopped:?}");
    assert!(stopped < Duration::from_secs(2), "{stopped:?}");
}

#[tokio::test]
async fn leases_of_a_live_runner_stay_and_those_of_others_do_not() {
    let (cluster, admin, ann) = with_tools("helper_ai.runners = 1").await;
    let call = nap(&ann, "kept", 4.0).await;
    sleeping(&admin).await;
    let token = "select token::text from helper.job_leases";
    let before: String = admin.one(token, &[]).await;
    admin.run("select helper._clean(10080, '{}')").await;
    assert_eq!(admin.one::<String>(token, &[]).await, before);
    // Nor does another worker give them away when it begins.
    let worker = admin.pids().await.worker;
    assert!(admin.one::<bool>("select pg_terminate_backend($1, 10000)", &[&worker]).await);
    let again = cluster.pids().await.worker;
    assert_ne!(again, worker);
    // Which has begun once it has indexed something.
    ann.run("select helper.add_document('One', 'Text.')").await;
    assert_eq!(ann.one::<i64>("select helper.wait_indexed()", &[]).await, 1);
    assert_eq!(ended(&ann, &call).await["status"], "succeeded");
    assert_eq!((marks(&admin, "kept").await, attempts(&admin, &call).await), (1, 1));
    // Where there may be no runner any more, the worker gives back what the last one had.
    let call = nap(&ann, "given back", 60.0).await;
    let runner = sleeping(&admin).await;
    admin.run("alter system set helper_ai.runners = 0").await;
    cluster.reload();
    assert!(admin.one::<bool>("select pg_terminate_backend($1, 10000)", &[&runner]).await);
    let begin = Instant::now();
    let waits = "select count(*) from helper.job_queue where key = $1::text::uuid";
    until("the call to wait again", async || (admin.one::<i64>(waits, &[&call]).await == 1).then_some(())).await;
    println!("given back after {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    until("all runners to leave", async || runners(&admin).await.is_empty().then_some(())).await;
    // That is said once, and it goes on as soon as there may be one.
    until("the log to say so", async || cluster.log().contains("helper_ai.runners is 0").then_some(())).await;
    admin.run("update helper.function_calls set arguments = '{\"mark\": \"given back\", \"seconds\": 0}' where finished_at is null").await;
    admin.run("alter system set helper_ai.runners = 1").await;
    cluster.reload();
    assert_eq!(ended(&ann, &call).await["status"], "succeeded");
    assert_eq!(marks(&admin, "given back").await, 1);
    assert_eq!(cluster.log().matches("helper_ai.runners is 0").count(), 1);
}

#[tokio::test]
async fn a_lock_holds_a_tool_as_long_as_its_time_and_nobody_else() {
    let (cluster, admin, ann) = with_tools("helper_ai.runners = 1").await;
    let bea = bea(&cluster).await;
    let locker = cluster.admin().await;
    locker.run("begin; lock table public.naps").await;
    let held = queue(&ann, "short_nap", json!({ "mark": "held", "seconds": 0 })).await;
    let told = ended(&ann, &held).await;
    assert_eq!(
        (&told["error"]["sqlstate"], &told["error"]["message"]),
        (&json!("57014"), &json!("the function took longer than 500 ms")),
        "{told}"
    );
    locker.run("commit").await;
    // A call over which somebody's open transaction decides is left alone until that has ended.
    let most = async |count: i32| {
        admin.run(&format!("alter system set helper_ai.runners = {count}")).await;
        cluster.reload();
    };
    most(0).await;
    until("the runner to leave", async || runners(&admin).await.is_empty().then_some(())).await;
    let decided = nap(&ann, "decided", 0.0).await;
    locker.run("begin; select from helper.function_calls where finished_at is null for update").await;
    most(1).await;
    let other = nap(&bea, "other", 0.0).await;
    assert_eq!(ended(&bea, &other).await["status"], "succeeded");
    locker.run("commit").await;
    assert_eq!(ended(&ann, &decided).await["status"], "succeeded");
    assert_eq!((marks(&admin, "held").await, marks(&admin, "decided").await), (0, 1));
}

#[tokio::test]
async fn nothing_of_one_tenant_is_left_for_the_next() {
    let (cluster, admin, ann) = with_tools("helper_ai.runners = 1").await;
    let bea = bea(&cluster).await;
    let left = queue(&ann, "leave_things", json!({})).await;
    assert_eq!(ended(&ann, &left).await["status"], "succeeded", "{}", status(&ann, &left).await);
    let runner = runners(&admin).await;
    let found = queue(&bea, "find_things", json!({})).await;
    assert_eq!(ended(&bea, &found).await["result"], json!([]));
    assert_eq!(runners(&admin).await, runner, "another runner has nothing left of the first one's");
}

#[tokio::test]
async fn without_room_for_a_runner_calls_wait_and_the_log_says_what_to_raise() {
    // The server's own launcher of logical replication, ours, and the worker.
    let (cluster, admin, ann) = with_tools("max_worker_processes = 3").await;
    let call = nap(&ann, "waits", 0.0).await;
    until("the log to say so", async || cluster.log().contains("could not start a helper_ai runner").then_some(()))
        .await;
    ann.run("select helper.add_document('One', 'Text.')").await;
    assert_eq!(ann.one::<i64>("select helper.wait_indexed()", &[]).await, 1);
    assert_eq!(status(&ann, &call).await["status"], "queued");
    assert!(runners(&admin).await.is_empty());
}

#[tokio::test]
async fn an_idle_runner_takes_what_comes_and_a_second_one_comes_when_it_is_busy() {
    let (_cluster, admin, ann) = with_tools("").await;
    let first = nap(&ann, "first", 0.0).await;
    ended(&ann, &first).await;
    let idle = runners(&admin).await[0];
    for round in 0..40 {
        let call = nap(&ann, &format!("round {round}"), 0.0).await;
        ended(&ann, &call).await;
    }
    assert!(runners(&admin).await.contains(&idle), "it is there for the next one");
    let pids: i64 = admin.one("select count(distinct n.pid) from public.naps n", &[]).await;
    assert!(pids <= 2, "{pids} runners were started for 41 calls");
    let calls = [nap(&ann, "a", 3.0).await, nap(&ann, "b", 3.0).await];
    until("two at once", async || {
        let sql = "select count(*) = 2 from pg_stat_activity where backend_type = 'helper_ai runner' and wait_event = 'PgSleep'";
        admin.one::<bool>(sql, &[]).await.then_some(())
    })
    .await;
    for call in &calls {
        assert_eq!(ended(&ann, call).await["status"], "succeeded");
    }
    assert_eq!((marks(&admin, "a").await, marks(&admin, "b").await), (1, 1));
}
