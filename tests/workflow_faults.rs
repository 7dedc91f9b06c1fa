//! Workflows when something goes wrong in between: approvals that come late for the runner, loops by what is done later,
//! runs that are given up, and what nobody knows whether it was done.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod place;
mod provider;
mod runs;

use cluster::{Session, signal, until};
use place::{ANN, BEA, Place};
use provider::{Answer, Say};
use runs::{Shop, create, ended, reached, run, step, waiting_call};
use serde_json::{Value, json};

/// What is told by tools: an event that starts the workflow again which called them.
const TOOLS: &str = "
create function public.tell(workspace uuid) returns uuid language sql as 'select helper.emit_event(''told'', ''{}'', workspace)';
create function public.end_runner(workspace uuid) returns boolean language sql security definer as 'select pg_terminate_backend(pg_backend_pid(), 60000)';
select helper.register_function('tell', 'tell', 'Tells', '{\"requires_confirmation\": false}');
select helper.register_function('tell_confirmed', 'tell', 'Tells');
select helper.register_function('tell_approved', 'tell', 'Tells', '{\"approver_role\": \"admin\", \"self_approval\": false}');
select helper.register_function('end_runner', 'end_runner', 'Ends', '{\"requires_confirmation\": false}');
";

fn states(told: &Value, name: &str) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&told["status"]), text(&step(told, name)["status"]))
}

fn both(run: &str, step: &str) -> (String, String) {
    (run.to_owned(), step.to_owned())
}

async fn call_status(admin: &Session, call: &str) -> String {
    admin.one("select c.status from helper.function_calls c where c.id = $1::text::uuid", &[&call]).await
}

async fn runners(admin: &Session, most: i32) {
    admin.run(&format!("alter system set helper_ai.runners = {most}")).await;
    admin.run("select pg_reload_conf()").await;
    if most == 0 {
        until("the runners to leave", async || {
            let sql = "select not exists (select from pg_stat_activity where backend_type = 'helper_ai runner')";
            admin.one::<bool>(sql, &[]).await.then_some(())
        })
        .await;
    }
}

async fn shop() -> Shop {
    runs::shop(TOOLS, "admin").await
}

#[tokio::test]
async fn an_approval_that_was_given_in_time_counts_however_late_it_is_heard() {
    let Shop { cluster: _cluster, admin, ann, bea, .. } = shop().await;
    let approval =
        json!({ "name": "approve", "type": "approval", "title": "Now?", "approver_role": "admin", "lapse": "5 s" });
    create(&ann, "careful", json!({ "steps": [approval] })).await;
    let id = run(&ann, "careful", json!({})).await;
    let call = waiting_call(&ann).await;
    assert_eq!(ann.error(&format!("select helper.confirm('{call}')")).await.code().code(), "42501");
    runners(&admin, 0).await;
    let told: String = bea.one("select helper.confirm($1::text::uuid) ->> 'status'", &[&call]).await;
    assert_eq!(told, "succeeded");
    until("the time to be over", async || {
        let sql = "select c.lapses_at < clock_timestamp() from helper.function_calls c where c.id = $1::text::uuid";
        admin.one::<bool>(sql, &[&call]).await.then_some(())
    })
    .await;
    runners(&admin, 4).await;
    let told = ended(&ann, &id).await;
    assert_eq!(states(&told, "approve"), both("succeeded", "succeeded"), "{told:#}");
}

#[tokio::test]
async fn a_decision_wakes_its_run_in_its_own_transaction() {
    let Shop { cluster: _cluster, admin, ann, bea, .. } = shop().await;
    let approval = json!({ "name": "approve", "type": "approval", "title": "Now?", "approver_role": "admin" });
    create(&ann, "careful", json!({ "steps": [approval] })).await;
    let id = run(&ann, "careful", json!({})).await;
    let call = waiting_call(&ann).await;
    reached(&ann, &id, &["waiting"]).await;
    runners(&admin, 0).await;
    let queued = "select count(*) from helper.workflow_queue where run_id = $1::text::uuid and is_due";
    let before: i64 = admin.one(queued, &[&id]).await;
    // What the decision's transaction has written is looked at from inside it, which only the owner may.
    admin.run("create function public.queued(run uuid) returns bigint language sql security definer as 'select count(*) from helper.workflow_queue where run_id = run and is_due'").await;
    admin.run("grant execute on function public.queued(uuid) to authenticated").await;
    bea.run("begin").await;
    bea.run(&format!("select helper.confirm('{call}')")).await;
    let inside: i64 = bea.one("select public.queued($1::text::uuid)", &[&id]).await;
    assert_eq!((before, inside), (0, 1));
    bea.run("rollback").await;
    assert_eq!(admin.one::<i64>(queued, &[&id]).await, 0);
    assert_eq!(call_status(&admin, &call).await, "awaiting_confirmation");
    bea.run(&format!("begin; select helper.confirm('{call}'); commit")).await;
    runners(&admin, 4).await;
    assert_eq!(ended(&ann, &id).await["status"], "succeeded");
}

/// The run that a tool's event started: its depth, and the run that is said to have led to it.
async fn led(admin: &Session, by: &str) -> (i32, String) {
    let row = until("a run that an event started", async || {
        let sql = "select r.depth, r.trigger ->> 'origin' from helper.workflow_runs r where r.trigger ->> 'kind' = 'event' order by r.id desc limit 1";
        admin.query_opt(sql, &[]).await.unwrap()
    })
    .await;
    let origin: Option<String> = row.get(1);
    assert_eq!(origin.as_deref(), Some(by));
    (row.get(0), origin.unwrap())
}

#[tokio::test]
async fn what_a_step_has_done_later_is_as_deep_as_its_run() {
    let Place { cluster, admin, ann, workspace, server } = Place::new().await;
    admin.run(TOOLS).await;
    ann.run(&format!("select helper.add_member('{workspace}', '{BEA}', 'admin')")).await;
    let bea = cluster.user(BEA).await;
    create(&ann, "heard", json!({ "steps": [{ "name": "never", "type": "wait", "event": "never" }] })).await;
    ann.run("select helper.on_event('heard', 'told')").await;
    let tool = |name: &str| json!({ "steps": [{ "name": "tell", "type": "tool", "tool": name, "arguments": {} }] });
    // In the session of who confirms it, and by a runner for somebody else.
    for (name, approver) in [("tell_confirmed", &ann), ("tell_approved", &bea)] {
        create(&ann, name, tool(name)).await;
        let id = run(&ann, name, json!({})).await;
        let call = waiting_call(&ann).await;
        approver.run(&format!("select helper.confirm('{call}')")).await;
        assert_eq!(ended(&ann, &id).await["status"], "succeeded");
        assert_eq!(led(&admin, &id).await.0, 1, "{name}");
        admin.run("delete from helper.workflow_runs where trigger ->> 'kind' = 'event'").await;
    }
    let depth: String = ann.one("select current_setting('helper_ai.workflow_depth')", &[]).await;
    assert_eq!(depth, "-1");
    // By a model that a step asks.
    server.next(Answer::Say(Say { tools: vec![("tell".into(), "{}".into())], ..Say::default() }));
    let ask = json!({ "name": "ask", "type": "ask", "question": "Tell them.", "knowledge": false, "options": { "tools": ["tell"] } });
    create(&ann, "asks", json!({ "steps": [ask] })).await;
    let id = run(&ann, "asks", json!({})).await;
    let told = ended(&ann, &id).await;
    assert_eq!(told["status"], "succeeded", "{told:#}");
    assert_eq!(led(&admin, &id).await.0, 1);
}

#[tokio::test]
async fn what_led_to_a_step_is_not_forgotten_with_all_settings() {
    let Place { cluster: _cluster, admin, .. } = Place::new().await;
    let run = "018f0000-0000-7000-8000-000000000001";
    admin
        .run(&format!("begin; set local helper_ai.workflow_depth = 7; set local helper_ai.workflow_run = '{run}'"))
        .await;
    admin.run("set local role authenticated; reset all").await;
    for (name, value) in [("depth", "7"), ("run", run)] {
        let setting: String = admin.one(&format!("select current_setting('helper_ai.workflow_{name}')"), &[]).await;
        assert_eq!(setting, value, "{name}");
    }
    let error = admin.error("reset helper_ai.workflow_depth").await;
    assert_eq!(error.code().code(), "42501", "{error:?}");
}

#[tokio::test]
async fn a_workflow_that_calls_itself_by_confirmed_tools_or_replays_comes_to_an_end() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    let tell = json!({ "name": "tell", "type": "tool", "tool": "tell_confirmed", "arguments": {} });
    create(&ann, "loop", json!({ "steps": [tell] })).await;
    ann.run("select helper.on_event('loop', 'told')").await;
    run(&ann, "loop", json!({})).await;
    let failed = "select r.error ->> 'sqlstate' from helper.workflow_runs r where r.status = 'failed'";
    let sqlstate: String = until("the last run to fail", async || {
        let call = "select id::text from helper.function_calls where status = 'awaiting_confirmation'";
        if let Some(row) = ann.query_opt(call, &[]).await.unwrap() {
            ann.query("select helper.confirm($1::text::uuid)", &[&row.get::<_, String>(0)]).await.unwrap();
        }
        admin.query_opt(failed, &[]).await.unwrap().map(|row| row.get(0))
    })
    .await;
    assert_eq!(sqlstate, "53400");
    let count = "select count(*) from helper.workflow_runs";
    assert_eq!(admin.one::<i64>(count, &[]).await, 9);
    admin.run("delete from helper.workflows").await;

    let replay = json!({ "name": "replay", "type": "sql",
        "sql": "select helper.replay_run(r.id) from helper.workflow_runs r where r.finished_at is not null order by r.id limit 1" });
    create(&ann, "again", json!({ "steps": [replay] })).await;
    let first = run(&ann, "again", json!({})).await;
    assert_eq!(ended(&ann, &first).await["status"], "succeeded");
    let second = run(&ann, "again", json!({})).await;
    assert_eq!(ended(&ann, &second).await["status"], "succeeded");
    let sqlstate: String =
        until("the last replay to fail", async || admin.query_opt(failed, &[]).await.unwrap().map(|row| row.get(0)))
            .await;
    assert_eq!(sqlstate, "53400");
    assert_eq!(admin.one::<i64>(count, &[]).await, 10);
    let origin: String = admin
        .one("select r.trigger ->> 'origin' from helper.workflow_runs r where r.trigger ->> 'kind' = 'replay' order by r.id limit 1", &[])
        .await;
    assert_eq!(origin, second);
}

#[tokio::test]
async fn a_key_is_the_first_run_while_the_workflow_is_paused_too() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    create(&ann, "once", json!({ "steps": [{ "name": "read", "type": "sql", "sql": "select 1" }] })).await;
    let keyed = "select helper.run_workflow('once', '{}', 'key')::text";
    let first: String = ann.one(keyed, &[]).await;
    // As a webhook, an event or a schedule starts one.
    let started = "select helper._start_run(w.workspace_id, w.id, '{\"kind\": \"webhook\"}', '{}', 'webhook:1')::text \
        from helper.workflows w where w.name = 'once'";
    let sent: String = admin.one(started, &[]).await;
    ann.run("select helper.pause_workflow('once')").await;
    assert_eq!(ann.one::<String>(keyed, &[]).await, first);
    assert_eq!(admin.one::<String>(started, &[]).await, sent);
    for other in ["select helper.run_workflow('once', '{}', 'other')", "select helper.run_workflow('once')"] {
        assert_eq!(ann.error(other).await.code().code(), "55000");
    }
}

#[tokio::test]
async fn a_run_that_is_given_up_leaves_nothing_open_and_can_be_mended() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    let definition = json!({ "steps": [
        { "name": "approve", "type": "approval", "title": "Now?", "self_approval": true, "needs": [] },
        { "name": "pause", "type": "wait", "for": "100 ms", "needs": [] },
        { "name": "end", "type": "tool", "tool": "end_runner", "arguments": {} }] });
    create(&ann, "deadly", definition).await;
    let end = json!({ "name": "end", "type": "tool", "tool": "end_runner", "arguments": {} });
    create(&ann, "at_once", json!({ "steps": [end, { "name": "after", "type": "wait", "for": "10 ms" }] })).await;
    admin.run("listen helper_runs").await;
    let (id, at_once) = (run(&ann, "deadly", json!({})).await, run(&ann, "at_once", json!({})).await);
    let told = ended(&ann, &id).await;
    // What it was at, and what it waited for.
    assert_eq!(states(&told, "approve"), both("failed", "failed"), "{told:#}");
    assert_eq!(step(&told, "pause")["status"], "failed", "{told:#}");
    assert_eq!(step(&told, "pause")["error"]["sqlstate"], "55000", "{told:#}");
    let told = ended(&ann, &at_once).await;
    assert_eq!(states(&told, "end"), both("failed", "failed"), "{told:#}");
    let left = "select (select count(*) from helper.workflow_waits) \
        + (select count(*) from helper.function_calls where finished_at is null) \
        + (select count(*) from helper.workflow_steps where finished_at is null)";
    assert_eq!(admin.one::<i64>(left, &[]).await, 0);
    until("what was told of it", async || {
        admin.run("select 1").await;
        admin.notifications().contains(&("helper_runs".into(), format!("{id} failed"))).then_some(())
    })
    .await;
    admin.run("create or replace function public.end_runner(workspace uuid) returns boolean language sql as 'select true'").await;
    ann.run(&format!("select helper.retry_step('{at_once}', 'end')")).await;
    let told = reached(&ann, &at_once, &["succeeded"]).await;
    assert_eq!(step(&told, "end")["attempt"], 2, "{told:#}");
    ann.run(&format!("select helper.retry_step('{id}', 'pause')")).await;
    ann.run(&format!("select helper.retry_step('{id}', 'approve')")).await;
    let call = waiting_call(&ann).await;
    ann.run(&format!("select helper.confirm('{call}')")).await;
    reached(&ann, &id, &["succeeded"]).await;
}

#[tokio::test]
async fn only_a_call_that_may_have_been_done_is_uncertain() {
    let Place { cluster: _cluster, admin, ann, server, .. } = Place::new().await;
    admin.run(TOOLS).await;
    let options =
        json!({ "allow_private": true, "requires_confirmation": false, "parameters_schema": { "type": "object" } });
    let register = "select helper.register_function('post', $1, 'Posts', $2)::text";
    admin.one::<String>(register, &[&server.url("/post"), &options]).await;
    // Nobody confirmed it, so that nothing was done.
    let late =
        json!({ "name": "call", "type": "tool", "tool": "tell_confirmed", "arguments": {}, "timeout": "300 ms" });
    create(&ann, "late", json!({ "steps": [late] })).await;
    let id = run(&ann, "late", json!({})).await;
    let told = ended(&ann, &id).await;
    assert_eq!(states(&told, "call"), both("failed", "failed"), "{told:#}");
    assert_eq!(told["error"]["reason"], "timeout", "{told:#}");
    assert_eq!(ann.one::<i64>("select count(*) from helper.function_calls where status <> 'cancelled'", &[]).await, 0);
    // What was on its way is not known, and is not sent again with others.
    let post = json!({ "name": "post", "type": "http", "tool": "post", "arguments": {} });
    let each = json!({ "name": "each", "type": "map", "over": [1], "step": { "type": "http", "tool": "post", "arguments": {} }, "needs": [] });
    create(&ann, "posts", json!({ "steps": [post, each] })).await;
    server.next(Answer::Hang).next(Answer::Hang);
    let id = run(&ann, "posts", json!({})).await;
    until("both to be sent", async || (server.count() >= 2).then_some(())).await;
    let sent = server.count();
    assert!(ann.one::<bool>("select helper.cancel_run($1::text::uuid)", &[&id]).await);
    let told = reached(&ann, &id, &["cancelled"]).await;
    assert_eq!(states(&told, "post"), both("cancelled", "uncertain"), "{told:#}");
    assert_eq!(step(&told, "each")["status"], "uncertain", "{told:#}");
    assert_eq!(step(&told, "post")["error"]["sqlstate"], "57014", "{told:#}");
    server.answer_by(|_| Answer::status(200, r#"{"posted": true}"#));
    ann.run(&format!("select helper.retry_step('{id}', 'post')")).await;
    let told = reached(&ann, &id, &["failed"]).await;
    assert_eq!(step(&told, "post")["status"], "succeeded", "{told:#}");
    assert_eq!((step(&told, "each")["status"].as_str(), server.count()), (Some("uncertain"), sent + 1));
    ann.run(&format!("select helper.retry_step('{id}', 'each')")).await;
    reached(&ann, &id, &["succeeded"]).await;
}

#[tokio::test]
async fn another_admins_version_changes_nothing_of_runs_that_act_as_the_one_before() {
    let Shop { cluster: _cluster, ann, bea, .. } = shop().await;
    let definition = json!({ "steps": [{ "name": "wait", "type": "wait", "event": "go" }], "output": "{{ vars.to }}" });
    let version = async |session: &Session, to: &str| {
        let sql = "select helper.create_workflow('pays', $1, options => jsonb_build_object('settings', jsonb_build_object('to', $2::text)))::text";
        session.one::<String>(sql, &[&definition, &to]).await;
    };
    version(&ann, "ann").await;
    let mended = run(&ann, "pays", json!({})).await;
    reached(&ann, &mended, &["waiting"]).await;
    version(&ann, "ann, mended").await;
    version(&bea, "bea").await;
    let first = run(&bea, "pays", json!({})).await;
    reached(&ann, &first, &["waiting"]).await;
    ann.run("select helper.emit_event('go')").await;
    assert_eq!(ended(&ann, &mended).await["output"], "ann");
    assert_eq!(ended(&ann, &first).await["output"], "bea");
    // Who wrote it may mend it.
    let own = run(&bea, "pays", json!({})).await;
    reached(&ann, &own, &["waiting"]).await;
    version(&bea, "bea, mended").await;
    ann.run("select helper.emit_event('go')").await;
    assert_eq!(ended(&ann, &own).await["output"], "bea, mended");
}

#[tokio::test]
async fn a_model_is_asked_once_by_an_attempt_whoever_is_killed() {
    let Place { cluster, admin, ann, server, .. } = Place::new().await;
    let say = |attempts: i32| {
        json!({ "steps": [{ "name": "say", "type": "complete", "prompt": "Say something.",
            "retry": { "attempts": attempts, "delay": "10 ms" } }] })
    };
    create(&ann, "once", say(1)).await;
    create(&ann, "twice", say(2)).await;
    for (name, asked) in [("once", 1), ("twice", 2)] {
        for killed in ["gateway", "worker"] {
            let before = server.count();
            server.next(Answer::Hang);
            let admin = until("the server", async || cluster.try_connect("postgres", "postgres").await.ok()).await;
            let pids = admin.pids().await;
            let ann = cluster.user(ANN).await;
            let id = run(&ann, name, json!({})).await;
            until("the model to be asked", async || (server.count() > before).then_some(())).await;
            // Ended in order, as a worker that is killed takes the server along.
            match killed {
                "gateway" => signal(pids.gateway, "KILL"),
                _ => signal(pids.worker, "TERM"),
            }
            let told = ended(&ann, &id).await;
            let expected = if asked == 1 { both("failed", "uncertain") } else { both("succeeded", "succeeded") };
            assert_eq!(states(&told, "say"), expected, "{name} {killed}: {told:#}");
            assert_eq!(server.count() - before, asked, "{name} {killed}");
        }
    }
    // A connection that breaks off before the answer is not tried again by the gateway either.
    admin.run("update helper.providers set options = options || '{\"max_retries\": 3}'").await;
    let before = server.count();
    server.next(Answer::Close);
    let told = ended(&ann, &run(&ann, "once", json!({})).await).await;
    assert_eq!(states(&told, "say"), both("failed", "uncertain"), "{told:#}");
    assert_eq!(server.count() - before, 1);
    // What was answered, though not well, is.
    server.next(Answer::status(503, "{}"));
    let told = ended(&ann, &run(&ann, "once", json!({})).await).await;
    assert_eq!(states(&told, "say"), both("succeeded", "succeeded"), "{told:#}");
}

#[tokio::test]
async fn what_functions_raise_fills_no_log() {
    let Shop { cluster, admin, ann, .. } = shop().await;
    admin.run("create function public.fail() returns void language plpgsql as $$ begin raise exception using errcode = 'XX000', message = random()::text; end $$").await;
    admin.run("select helper.register_function('fail', 'fail', 'Fails', '{\"requires_confirmation\": false}')").await;
    ann.one::<i64>("select count(helper.call('fail')) from generate_series(1, 50)", &[]).await;
    let log = cluster.log();
    let lines = log.matches("a function failed: ").count();
    assert!((10..25).contains(&lines), "{lines} lines");
    assert!(log.contains("more errors follow"), "{log}");
}

#[tokio::test]
async fn a_statement_has_no_longer_than_it_is_told() {
    let Shop { cluster: _cluster, ann, .. } = shop().await;
    let step = json!({ "name": "long", "type": "sql", "sql": "select 1", "timeout": "61 s" });
    let each = json!({ "name": "each", "type": "map", "over": [1], "step": { "type": "search", "query": "x", "timeout": "2 min" } });
    for (step, place) in [(step, "steps[0].timeout"), (each, "steps[0].step.timeout")] {
        let definition = json!({ "steps": [step] });
        let error = ann.error(&format!("select helper.create_workflow('long', '{definition}')")).await;
        assert_eq!(error.code().code(), "22023");
        assert_eq!(error.message(), format!("{place}: is longer than the minute that a statement may take"));
    }
}

#[tokio::test]
async fn what_is_wanted_of_a_run_waits_for_no_other_run() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    let sleep = |seconds: u32| json!({ "name": "sleep", "type": "sql", "sql": format!("select pg_sleep({seconds})") });
    create(&ann, "short", json!({ "steps": [sleep(3), { "name": "go", "type": "wait", "event": "go" }] })).await;
    create(&ann, "long", json!({ "steps": [sleep(25)] })).await;
    let are_at_work = async |runners: i64| {
        until("runners to be at work", async || {
            let sql = "select count(*) from pg_stat_activity a where a.backend_type = 'helper_ai runner' and a.wait_event = 'PgSleep'";
            (admin.one::<i64>(sql, &[]).await == runners).then_some(())
        })
        .await;
    };
    let short = run(&ann, "short", json!({})).await;
    are_at_work(1).await;
    // The other runner finds both, and can do one of them.
    ann.run("begin").await;
    ann.run(&format!("select helper.pause_run('{short}')")).await;
    let long = run(&ann, "long", json!({})).await;
    ann.run("commit").await;
    are_at_work(2).await;
    reached(&ann, &short, &["paused"]).await;
    assert_eq!(runs::status(&ann, &long).await["finished_at"], Value::Null);
    ann.run(&format!("select helper.cancel_run('{long}')")).await;
    reached(&ann, &long, &["cancelled"]).await;
}
