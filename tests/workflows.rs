//! Workflows: what a run does, as whom, once, and how it goes on when something waits, fails or ends in between.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod place;
mod provider;
mod runs;

use cluster::{signal, until};
use place::{ANN, BEA, Place};
use provider::{Answer, Break};
use runs::{Shop, create, ended, lines, reached, run, status, step, waiting_call};
use serde_json::{Value, json};

const CARL: &str = "00000000-0000-4000-8000-00000000000c";

/// A ledger that people of a workspace write, and tools over it.
const TABLES: &str = "
create table public.ledger (
  workspace_id uuid not null default helper.current_workspace(),
  run text, what text not null, who uuid not null default helper.current_user_id(), at timestamptz not null default clock_timestamp());
alter table public.ledger enable row level security;
create policy ledger_select on public.ledger for select using (workspace_id = any ((select helper.my_workspaces())::uuid[]));
create policy ledger_insert on public.ledger for insert with check (workspace_id = any ((select helper.my_workspaces('member'))::uuid[]));
grant select, insert on public.ledger to authenticated;
create sequence public.tries;
grant usage on public.tries to authenticated;
create function public.write_line(what text, workspace uuid) returns text language sql
  as 'insert into public.ledger (workspace_id, what) values (workspace, what) returning what';
create function public.third_time(workspace uuid) returns bigint language plpgsql as $$
declare v_try bigint := nextval('public.tries');
begin
  if v_try % 3 <> 0 then
    raise exception using errcode = 'APP01', message = 'not yet';
  end if;
  return v_try;
end $$;
select helper.register_function('write_line', 'write_line', 'Writes', '{\"requires_confirmation\": false}');
select helper.register_function('ask_line', 'write_line', 'Writes');
select helper.register_function('third_time', 'third_time', 'Works each third time', '{\"requires_confirmation\": false}');
";

async fn shop() -> Shop {
    let shop = runs::shop(TABLES, "member").await;
    shop.ann.run(&format!("select helper.add_member('{}', '{CARL}', 'viewer')", shop.workspace)).await;
    shop
}

fn insert(name: &str, what: &str) -> Value {
    json!({ "name": name, "type": "sql", "sql": "insert into public.ledger (workspace_id, run, what) select (w).id, $1 ->> 'run', $1 ->> 'what' from helper.workspaces w limit 1 returning what",
        "parameters": { "run": "{{ run.id }}", "what": what } })
}

#[tokio::test]
async fn steps_branch_map_wait_and_end_with_their_output() {
    let Shop { cluster: _cluster, admin, ann, workspace, .. } = shop().await;
    let definition = json!({
        "input": { "type": "object", "required": ["amount"], "properties": { "amount": { "type": "number" }, "list": { "type": "array" } } },
        "steps": [
            insert("first", "first"),
            { "name": "tool", "type": "tool", "tool": "write_line", "arguments": { "what": "tool {{ steps.first.output.rows[0].what }}" } },
            { "name": "large", "type": "condition", "if": "@.input.amount > 100", "then": "big", "else": "small" },
            insert("big", "big"),
            insert("small", "small"),
            { "name": "each", "type": "map", "needs": ["big", "small"], "over": "{{ input.list }}", "as": "one", "concurrency": 2,
              "step": { "type": "tool", "tool": "write_line", "arguments": { "what": "item {{ one }}" } } },
            { "name": "pause", "type": "wait", "for": "50 ms" },
            { "name": "last", "type": "sql", "sql": "select count(*) as n from public.ledger", "parameters": {} }
        ],
        "output": { "lines": "{{ steps.last.output.rows[0].n }}", "items": "{{ steps.each.output }}", "workspace": "{{ run.workspace_id }}" }
    });
    create(&ann, "orders", definition).await;
    let id = run(&ann, "orders", json!({ "amount": 200, "list": ["a", "b", "c"] })).await;
    let told = ended(&ann, &id).await;
    assert_eq!(told["status"], "succeeded", "{told:#}");
    let expected = json!({ "lines": 6, "items": ["item a", "item b", "item c"], "workspace": workspace });
    assert_eq!(told["output"], expected, "{told:#}");
    assert_eq!(step(&told, "small")["status"], "skipped");
    assert_eq!(lines(&admin, "tool first").await, 1);
    let error = ann.error("select helper.run_workflow('orders', '{\"amount\": \"much\"}')").await;
    assert_eq!((error.code().code(), error.message()), ("22023", "input does not fit the workflow's schema"));
    let error = ann.error("select helper.create_workflow('bad', '{\"steps\": [{\"name\": \"a\", \"type\": \"sql\", \"sql\": \"select 1\", \"needs\": [\"x\"]}]}')").await;
    assert_eq!(error.code().code(), "22023");
    assert!(error.message().contains("steps[0]"), "{error:?}");
    let text: String = ann.one("select helper.run_mermaid($1::text::uuid)", &[&id]).await;
    assert!(text.starts_with("flowchart TD") && text.contains("class s0 succeeded"), "{text}");
}

#[tokio::test]
async fn an_idempotency_key_is_one_run_and_a_version_is_kept() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    create(&ann, "once", json!({ "steps": [insert("write", "one")] })).await;
    let sql = "select helper.run_workflow('once', '{}', 'key 1')::text";
    let first: String = ann.one(sql, &[]).await;
    let again: String = ann.one(sql, &[]).await;
    assert_eq!(first, again);
    assert_eq!(ended(&ann, &first).await["version"], 1);
    create(&ann, "once", json!({ "steps": [insert("write", "two")] })).await;
    let second = run(&ann, "once", json!({})).await;
    assert_eq!(ended(&ann, &second).await["version"], 2);
    assert_eq!((lines(&admin, "one").await, lines(&admin, "two").await), (1, 1));
    let changed = ann.error("update helper.workflow_versions set definition = '{}'").await;
    assert_eq!(changed.code().code(), "42501");
}

#[tokio::test]
async fn failures_are_retried_handled_retried_by_hand_and_replayed() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    let retried = json!({ "name": "try", "type": "tool", "tool": "third_time", "arguments": {}, "retry": { "attempts": 3, "delay": "10 ms" } });
    create(&ann, "patient", json!({ "steps": [retried] })).await;
    let told = ended(&ann, &run(&ann, "patient", json!({})).await).await;
    assert_eq!((&told["status"], &step(&told, "try")["attempt"]), (&json!("succeeded"), &json!(3)), "{told:#}");

    let broken = json!({ "name": "break", "type": "sql", "sql": "select 1 / ($1 ->> 'by')::integer as n", "parameters": { "by": "{{ vars.by }}" } });
    let definition = json!({ "steps": [insert("before", "before"), broken, insert("after", "after")] });
    ann.one::<String>(
        "select helper.create_workflow('fragile', $1, options => '{\"settings\": {\"by\": 0}}')::text",
        &[&definition],
    )
    .await;
    let id = run(&ann, "fragile", json!({})).await;
    let told = ended(&ann, &id).await;
    assert_eq!(
        (&told["status"], &told["error"]["sqlstate"], &told["error"]["step"]),
        (&json!("failed"), &json!("22012"), &json!("break")),
        "{told:#}"
    );
    assert_eq!(step(&told, "after")["status"], "cancelled");
    let failures: i64 = ann.one("select count(*) from helper.workflow_failures where step = 'break'", &[]).await;
    assert_eq!(failures, 1);
    // The cause is mended, and the step is tried again where it stopped: what was done before is not done again.
    admin.run("update helper.workflows set settings = '{\"by\": 1}' where name = 'fragile'").await;
    ann.run(&format!("select helper.retry_step('{id}', 'break')")).await;
    let told = reached(&ann, &id, &["succeeded"]).await;
    assert_eq!(step(&told, "break")["attempt"], 2);
    assert_eq!((lines(&admin, "before").await, lines(&admin, "after").await), (1, 1));
    let replayed: String = ann.one("select helper.replay_run($1::text::uuid, 'after')::text", &[&id]).await;
    assert_eq!(ended(&ann, &replayed).await["status"], "succeeded");
    assert_eq!((lines(&admin, "before").await, lines(&admin, "after").await), (1, 2));

    let handled = json!({ "steps": [
        { "name": "break", "type": "sql", "sql": "select 1/0", "on_error": { "goto": "mend" } },
        insert("mend", "mended"),
        { "name": "skip", "type": "sql", "sql": "select 1/0", "needs": [], "on_error": "skip" } ] });
    create(&ann, "handled", handled).await;
    let told = ended(&ann, &run(&ann, "handled", json!({})).await).await;
    assert_eq!(told["status"], "succeeded", "{told:#}");
    assert_eq!(lines(&admin, "mended").await, 1);
}

#[tokio::test]
async fn a_run_acts_as_its_owner_and_stops_when_the_owner_may_not() {
    let Shop { cluster, admin, ann, workspace, .. } = shop().await;
    create(&ann, "mine", json!({ "steps": [insert("write", "{{ input.what }}")] })).await;
    let bea = cluster.user(BEA).await;
    let id = run(&bea, "mine", json!({ "what": "by bea'); drop table public.ledger; --" })).await;
    assert_eq!(ended(&bea, &id).await["status"], "succeeded");
    let who: String = admin.one("select who::text from public.ledger", &[]).await;
    assert_eq!(who, ANN);
    for (sub, sqlstate) in [(CARL, "42501"), ("00000000-0000-4000-8000-00000000000d", "42704")] {
        let other = cluster.user(sub).await;
        let error = other.error(&format!("select helper.run_workflow('mine', workspace => '{workspace}')")).await;
        assert_eq!(error.code().code(), sqlstate, "{error:?}");
    }
    let error = bea.error("select helper.create_workflow('hers', '{\"steps\": [{\"name\": \"a\", \"type\": \"sql\", \"sql\": \"select 1\"}]}')").await;
    assert_eq!(error.code().code(), "42501");
    // A viewer sees that it ran, and not with what.
    let carl = cluster.user(CARL).await;
    let told = status(&carl, &id).await;
    assert_eq!((&told["status"], &told["input"], &told["output"]), (&json!("succeeded"), &Value::Null, &Value::Null));
    assert_eq!(carl.one::<i64>("select count(*) from helper.workflow_runs", &[]).await, 0);
    assert_eq!(carl.one::<i64>("select count(*) from helper.workflow_activity", &[]).await, 1);
    // The owner is demoted: nothing more is done in her name.
    ann.run(&format!("select helper.add_member('{workspace}', '00000000-0000-4000-8000-00000000000e', 'owner')")).await;
    admin.run(&format!("update helper.workspace_members set role = 'member' where workspace_id = '{workspace}' and user_id = '{ANN}'")).await;
    let id = run(&bea, "mine", json!({ "what": "too late" })).await;
    let told = reached(&bea, &id, &["paused"]).await;
    assert_eq!(told["error"]["sqlstate"], "42501", "{told:#}");
    assert_eq!(lines(&admin, "too late").await, 0);
    let error = bea.error("select helper.run_workflow('mine')").await;
    assert_eq!((error.code().code(), error.message()), ("55000", "workflow \"mine\" is paused"));
}

#[tokio::test]
async fn a_run_whose_owner_is_demoted_is_cancelled_and_anything_else_is_done_later() {
    let Place { cluster, admin, ann, workspace, server } = Place::new().await;
    admin.run(TABLES).await;
    ann.run(&format!("select helper.add_member('{workspace}', '{BEA}', 'owner')")).await;
    let bea = cluster.user(BEA).await;
    create(&ann, "child", json!({ "steps": [{ "name": "never", "type": "wait", "event": "never" }] })).await;
    let busy = json!({ "steps": [
        { "name": "run", "type": "workflow", "workflow": "child", "needs": [] },
        { "name": "call", "type": "tool", "tool": "ask_line", "arguments": { "what": "asked" }, "needs": [] },
        { "name": "reply", "type": "complete", "prompt": "Say something.", "needs": [] } ] });
    create(&ann, "busy", busy).await;
    let broken = json!({ "name": "break", "type": "sql", "sql": "select 1 / ($1 ->> 'by')::integer as n", "parameters": { "by": "{{ vars.by }}" } });
    create(&ann, "fragile", json!({ "steps": [broken.clone()] })).await;
    admin.run("update helper.workflows set settings = '{\"by\": 0}' where name = 'fragile'").await;
    let fragile = run(&bea, "fragile", json!({})).await;
    assert_eq!(ended(&bea, &fragile).await["status"], "failed");
    server.next(Answer::broken(1, Break::Hang));
    let one = run(&bea, "busy", json!({})).await;
    until("all of it to wait", async || {
        let sql = "select array_agg(w.waits_for order by w.waits_for) from helper.workflow_waiting w";
        let waits: Option<Vec<String>> = bea.query_one(sql, &[]).await.unwrap().get(0);
        (waits? == ["call", "event", "reply", "run"]).then_some(())
    })
    .await;
    let demote = |role: &str| {
        format!(
            "update helper.workspace_members set role = '{role}' where workspace_id = '{workspace}' and user_id = '{ANN}'"
        )
    };
    admin.run(&demote("viewer")).await;
    assert!(bea.one::<bool>("select helper.cancel_run($1::text::uuid)", &[&one]).await);
    assert_eq!(reached(&bea, &one, &["cancelled", "paused"]).await["status"], "cancelled");
    until("what it waited for to be called off", async || {
        let sql = "select (select count(*) from helper.workflow_runs where finished_at is null) + (select count(*) from helper.workflow_waits) \
                     + (select count(*) from helper.function_calls where status <> 'cancelled') \
                     + (select count(*) from helper.messages where role = 'assistant' and status <> 'cancelled')";
        (admin.one::<i64>(sql, &[]).await == 0).then_some(())
    })
    .await;
    // A step that is to be tried again is tried again once the run goes on. What somebody else has written since is not paused.
    create(&bea, "fragile", json!({ "steps": [broken] })).await;
    // Nor are its settings those of the run, which acts as somebody else.
    admin.run("update helper.workflow_versions v set settings = '{\"by\": 1}' from helper.workflows w where w.id = v.workflow_id and w.name = 'fragile'").await;
    bea.run(&format!("select helper.retry_step('{fragile}', 'break')")).await;
    let told = reached(&bea, &fragile, &["paused"]).await;
    assert_eq!(told["error"]["sqlstate"], "42501", "{told:#}");
    assert!(bea.one::<bool>("select w.enabled from helper.workflows w where w.name = 'fragile'", &[]).await);
    admin.run(&demote("admin")).await;
    bea.run(&format!("select helper.resume_run('{fragile}')")).await;
    let told = ended(&bea, &fragile).await;
    assert_eq!(
        (&told["status"], &told["error"], &step(&told, "break")["attempt"]),
        (&json!("succeeded"), &Value::Null, &json!(2)),
        "{told:#}"
    );
}

#[tokio::test]
async fn a_run_in_whose_workspace_there_is_nobody_waits_and_can_be_cancelled() {
    let Shop { cluster: _cluster, admin, ann, workspace, .. } = shop().await;
    let never = json!({ "name": "never", "type": "wait", "event": "never" });
    create(&ann, "hold", json!({ "steps": [never, insert("after", "after")] })).await;
    let (one, other) = (run(&ann, "hold", json!({})).await, run(&ann, "hold", json!({})).await);
    reached(&ann, &one, &["waiting"]).await;
    reached(&ann, &other, &["waiting"]).await;
    // As in a restore of several transactions, whose members come last.
    admin.run("create table public.kept as select * from helper.workspace_members").await;
    admin
        .run("set session_replication_role = replica; delete from helper.workspace_members; reset session_replication_role")
        .await;
    // A command of a superuser's own: nobody is there who could give it.
    admin
        .run(&format!("select helper._cancel_run('{workspace}', '{one}'), helper._wake_run('{workspace}', '{other}', '{{\"do\": \"pause\"}}')"))
        .await;
    let state = "select r.status from helper.workflow_runs r where r.id = $1::text::uuid";
    until("the run to be cancelled", async || (admin.one::<String>(state, &[&one]).await == "cancelled").then_some(()))
        .await;
    until("the other to be put off", async || {
        let sql = "select count(*) from helper.workflow_queue q where q.run_id = $1::text::uuid and q.run_at > clock_timestamp()";
        (admin.one::<i64>(sql, &[&other]).await == 1).then_some(())
    })
    .await;
    admin.run("insert into helper.workspace_members select * from public.kept").await;
    // What was wanted of it is not forgotten, and its workflow is not blamed.
    ann.run(&format!("select helper.emit_event('never', '{{}}', '{workspace}')")).await;
    assert_eq!(reached(&ann, &other, &["succeeded", "paused"]).await["status"], "paused");
    assert!(ann.one::<bool>("select w.enabled from helper.workflows w where w.name = 'hold'", &[]).await);
    ann.run(&format!("select helper.resume_run('{other}')")).await;
    assert_eq!(ended(&ann, &other).await["status"], "succeeded");
    assert_eq!(lines(&admin, "after").await, 1);
}

#[tokio::test]
async fn a_run_whose_owners_role_is_gone_is_cancelled() {
    let Shop { cluster, admin, .. } = shop().await;
    admin.run("create role temp; grant usage on schema helper to temp; grant execute on all functions in schema helper to temp").await;
    admin.run("set role temp").await;
    let workspace: String = admin.one("select helper.create_workspace('Temp')::text", &[]).await;
    admin.run(&format!("select helper.add_member('{workspace}', '{BEA}', 'admin')")).await;
    let never = json!({ "name": "never", "type": "wait", "event": "never" });
    create(&admin, "hold", json!({ "steps": [never, insert("after", "after")] })).await;
    let held = run(&admin, "hold", json!({})).await;
    reached(&admin, &held, &["waiting"]).await;
    admin.run("reset role; drop owned by temp; drop role temp").await;
    let bea = cluster.user(BEA).await;
    bea.run(&format!("select helper.pause_run('{held}')")).await;
    let told = reached(&bea, &held, &["paused"]).await;
    assert_eq!(told["error"]["message"], "role \"temp\" does not exist any more", "{told:#}");
    bea.run(&format!("select helper.cancel_run('{held}')")).await;
    let told = ended(&bea, &held).await;
    assert_eq!((&told["status"], &step(&told, "never")["status"]), (&json!("cancelled"), &json!("cancelled")));
    assert_eq!(admin.one::<i64>("select count(*) from helper.workflow_waits", &[]).await, 0);
}

#[tokio::test]
async fn what_a_step_changes_of_who_asks_is_taken_back() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    for (name, sql) in [
        (
            "claims",
            format!(
                "select set_config('request.jwt.claims', '{{\"sub\": \"{BEA}\", \"role\": \"authenticated\"}}', true)"
            ),
        ),
        ("workspace", "select set_config('helper_ai.workspace', gen_random_uuid()::text, false)".into()),
        ("role", "select set_config('role', 'postgres', true)".into()),
        ("depth", "select set_config('helper_ai.workflow_depth', '0', false)".into()),
    ] {
        create(
            &ann,
            name,
            json!({ "steps": [{ "name": "change", "type": "sql", "sql": sql }, insert("after", "never")] }),
        )
        .await;
        let told = ended(&ann, &run(&ann, name, json!({})).await).await;
        assert_eq!(
            (&told["status"], &told["error"]["sqlstate"]),
            (&json!("failed"), &json!("42501")),
            "{name}: {told:#}"
        );
    }
    assert_eq!(lines(&admin, "never").await, 0);
    // Nor for a moment: who reads as somebody else in the middle of a statement has read.
    let loot = format!(
        "select case when query_to_xml('select set_config(''request.jwt.claims'', ''{{\"sub\": \"{BEA}\"}}'', true)', true, true, '') is not null \
         then (select jsonb_agg(w.name) from helper.workspaces w) end as loot, \
         set_config('request.jwt.claims', o.c, true) from (select current_setting('request.jwt.claims') as c offset 0) o"
    );
    create(&ann, "loot", json!({ "steps": [{ "name": "steal", "type": "sql", "sql": loot }] })).await;
    let told = ended(&ann, &run(&ann, "loot", json!({})).await).await;
    assert_eq!(told["error"]["sqlstate"], "42501", "{told:#}");
    // A step's keys are nobody else's.
    let error = ann.error("select helper.call('list_reminders', '{}', idempotency_key => 'run:x')").await;
    assert_eq!(error.code().code(), "22023");
    // What somebody else's function does in an administrator's session is not done in the administrator's name.
    admin.run("create role mallory; grant usage on schema helper to mallory; grant execute on all functions in schema helper to mallory").await;
    admin.run("create schema m authorization mallory").await;
    admin.run("set role mallory; create function m.trap() returns uuid language sql security definer \
        as $f$ select helper.create_workflow('trap', '{\"steps\": [{\"name\": \"a\", \"type\": \"sql\", \"sql\": \"select 1\"}]}') $f$; reset role").await;
    assert_eq!(admin.error("select m.trap()").await.code().code(), "42501");
    for (name, sql) in [
        ("two", "select 1; select 2"),
        ("role_2", "set role postgres"),
        ("commit", "commit"),
        ("do", "do $$ begin end $$"),
    ] {
        create(&ann, name, json!({ "steps": [{ "name": "run", "type": "sql", "sql": sql }] })).await;
        let told = ended(&ann, &run(&ann, name, json!({})).await).await;
        assert_eq!(
            (&told["status"], &told["error"]["sqlstate"]),
            (&json!("failed"), &json!("22023")),
            "{name}: {told:#}"
        );
    }
}

#[tokio::test]
async fn approvals_are_decided_by_who_may_and_the_run_goes_on() {
    let Shop { cluster, admin, ann, .. } = shop().await;
    let approval = json!({ "name": "approve", "type": "approval", "title": "Send {{ input.what }}?", "approver_role": "owner", "self_approval": true });
    create(&ann, "careful", json!({ "steps": [approval, insert("write", "{{ input.what }}")] })).await;
    let bea = cluster.user(BEA).await;
    let first = run(&bea, "careful", json!({ "what": "letters" })).await;
    reached(&bea, &first, &["waiting"]).await;
    let call = waiting_call(&ann).await;
    // Not who only started it.
    let error = bea.error(&format!("select helper.confirm('{call}')")).await;
    assert_eq!(error.code().code(), "42704");
    assert_eq!(lines(&admin, "letters").await, 0);
    ann.run(&format!("select helper.confirm('{call}')")).await;
    assert_eq!(ended(&bea, &first).await["status"], "succeeded");
    assert_eq!(lines(&admin, "letters").await, 1);
    let second = run(&bea, "careful", json!({ "what": "parcels" })).await;
    reached(&bea, &second, &["waiting"]).await;
    ann.run(&format!("select helper.reject('{}', 'Too dear')", waiting_call(&ann).await)).await;
    let told = ended(&bea, &second).await;
    assert_eq!((&told["status"], &told["error"]["detail"]), (&json!("failed"), &json!("Too dear")), "{told:#}");
    assert_eq!(lines(&admin, "parcels").await, 0);
    // A tool that needs a confirmation waits for it too.
    create(&ann, "tool", json!({ "steps": [{ "name": "ask", "type": "tool", "tool": "ask_line", "arguments": { "what": "confirmed" } }] })).await;
    let third = run(&bea, "tool", json!({})).await;
    reached(&bea, &third, &["waiting"]).await;
    ann.run(&format!("select helper.confirm('{}')", waiting_call(&ann).await)).await;
    assert_eq!(ended(&bea, &third).await["status"], "succeeded");
    assert_eq!(lines(&admin, "confirmed").await, 1);
    // One that lapses fails, or does what `on_lapse` says.
    let lapses = json!({ "name": "approve", "type": "approval", "title": "Now?", "lapse": "100 ms", "on_lapse": { "goto": "late" } });
    create(&ann, "lapse", json!({ "steps": [lapses, insert("late", "late")] })).await;
    let fourth = run(&bea, "lapse", json!({})).await;
    assert_eq!(ended(&bea, &fourth).await["status"], "succeeded");
    assert_eq!(lines(&admin, "late").await, 1);
}

#[tokio::test]
async fn runs_wait_for_events_and_for_other_runs_and_are_cancelled_with_them() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    create(
        &ann,
        "child",
        json!({ "steps": [
        { "name": "paid", "type": "wait", "event": "order_paid", "match": { "order": "{{ input.order }}" } },
        insert("write", "paid {{ steps.paid.output.by }}") ], "output": { "by": "{{ steps.paid.output.by }}" } }),
    )
    .await;
    create(
        &ann,
        "parent",
        json!({ "steps": [
        { "name": "sub", "type": "workflow", "workflow": "child", "input": { "order": "{{ input.order }}" } },
        insert("done", "parent {{ steps.sub.output.by }}") ] }),
    )
    .await;
    let one = run(&ann, "parent", json!({ "order": 7 })).await;
    let two = run(&ann, "parent", json!({ "order": 8 })).await;
    until("both to wait", async || {
        let count: i64 = ann.one("select count(*) from helper.workflow_waiting where waits_for = 'event'", &[]).await;
        (count == 2).then_some(())
    })
    .await;
    ann.run("select helper.emit_event('order_paid', '{\"order\": 7, \"by\": \"card\"}')").await;
    assert_eq!(ended(&ann, &one).await["status"], "succeeded");
    assert_eq!((lines(&admin, "paid card").await, lines(&admin, "parent card").await), (1, 1));
    assert!(ann.one::<bool>("select helper.cancel_run($1::text::uuid)", &[&two]).await);
    assert_eq!(ended(&ann, &two).await["status"], "cancelled");
    until("the other's child to be cancelled", async || {
        let left: i64 = ann.one("select count(*) from helper.workflow_activity where finished_at is null", &[]).await;
        (left == 0).then_some(())
    })
    .await;
    assert_eq!(admin.one::<i64>("select count(*) from helper.workflow_waits", &[]).await, 0);
}

#[tokio::test]
async fn a_cancel_breaks_off_the_statement_that_a_run_is_at() {
    let Shop { cluster, admin, ann, .. } = shop().await;
    admin.run("alter system set helper_ai.runners = 1").await;
    cluster.reload();
    let sleep = json!({ "name": "sleep", "type": "sql", "timeout": "60 s",
        "sql": "insert into public.ledger (what) select 'slept' from pg_sleep(($1 ->> 'seconds')::float8)",
        "parameters": { "seconds": "{{ input.seconds }}" } });
    create(&ann, "sleeper", json!({ "steps": [insert("before", "before"), sleep, insert("after", "after")] })).await;
    let sub = json!({ "name": "sub", "type": "workflow", "workflow": "sleeper", "input": { "seconds": 300 } });
    create(&ann, "parent", json!({ "steps": [sub] })).await;
    let asleep = async || {
        until("a run to sleep", async || {
            let sql =
                "select pid from pg_stat_activity where backend_type = 'helper_ai runner' and wait_event = 'PgSleep'";
            admin.query_opt(sql, &[]).await.unwrap().map(|row| row.get::<_, i32>(0))
        })
        .await
    };
    // What was not committed breaks off nothing.
    let kept = run(&ann, "sleeper", json!({ "seconds": 2 })).await;
    let pid = asleep().await;
    ann.run(&format!("begin; select helper.cancel_run('{kept}'); rollback")).await;
    assert_eq!(ended(&ann, &kept).await["status"], "succeeded");
    for name in ["sleeper", "parent"] {
        let unwanted = run(&ann, name, json!({ "seconds": 300 })).await;
        assert_eq!(asleep().await, pid, "the runner was ended");
        assert!(ann.one::<bool>("select helper.cancel_run($1::text::uuid)", &[&unwanted]).await);
        assert_eq!(ended(&ann, &unwanted).await["status"], "cancelled");
    }
    let of_sleeper =
        "select r.id::text from helper.workflow_activity r where r.workflow = 'sleeper' and r.status <> 'succeeded'";
    until("the parent's run to be cancelled", async || {
        let sql = format!("select count(*) from ({of_sleeper} and r.status = 'cancelled') r");
        (ann.one::<i64>(&sql, &[]).await == 2).then_some(())
    })
    .await;
    for row in ann.query(of_sleeper, &[]).await.unwrap() {
        let told = status(&ann, row.get(0)).await;
        // Not one that failed as its time was over.
        assert_eq!(
            (&step(&told, "before")["status"], &step(&told, "sleep")["status"]),
            (&json!("succeeded"), &json!("cancelled"))
        );
        assert_eq!(step(&told, "sleep")["error"], Value::Null);
    }
    assert_eq!((lines(&admin, "before").await, lines(&admin, "slept").await, lines(&admin, "after").await), (3, 1, 1));
    // And whoever may not cancel a run breaks nothing off.
    let kept = run(&ann, "sleeper", json!({ "seconds": 2 })).await;
    asleep().await;
    let carl = cluster.user(CARL).await;
    assert_eq!(carl.error(&format!("select helper.cancel_run('{kept}')")).await.code().code(), "42501");
    assert_eq!(carl.error(&format!("select helper._call_off('{kept}', false)")).await.code().code(), "42501");
    assert_eq!(ended(&ann, &kept).await["status"], "succeeded");
}

#[tokio::test]
async fn a_paused_run_begins_nothing_until_it_is_resumed() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    create(
        &ann,
        "slow",
        json!({ "steps": [{ "name": "wait", "type": "wait", "for": "300 ms" }, insert("write", "resumed")] }),
    )
    .await;
    let id = run(&ann, "slow", json!({})).await;
    reached(&ann, &id, &["waiting"]).await;
    ann.run(&format!("select helper.pause_run('{id}')")).await;
    reached(&ann, &id, &["paused"]).await;
    ann.run("select pg_sleep(0.4)").await;
    assert_eq!((status(&ann, &id).await["status"].clone(), lines(&admin, "resumed").await), (json!("paused"), 0));
    ann.run(&format!("select helper.resume_run('{id}')")).await;
    assert_eq!(ended(&ann, &id).await["status"], "succeeded");
    assert_eq!(lines(&admin, "resumed").await, 1);
}

#[tokio::test]
async fn a_run_that_was_paused_before_it_began_waits_for_its_turn_like_any_other() {
    let Shop { cluster: _cluster, ann, .. } = shop().await;
    let hold = json!({ "name": "hold", "type": "wait", "event": "go" });
    create(&ann, "single", json!({ "concurrency": { "limit": 1 }, "steps": [hold] })).await;
    create(&ann, "rare", json!({ "rate": { "limit": 1, "per": "1 h" }, "steps": [hold] })).await;
    for (name, then) in [("single", "waiting"), ("rare", "queued")] {
        // In one transaction, so that nobody begins it before.
        ann.run("begin").await;
        let paused = run(&ann, name, json!({})).await;
        ann.run(&format!("select helper.pause_run('{paused}'); commit")).await;
        assert_eq!(reached(&ann, &paused, &["paused"]).await["started_at"], Value::Null);
        // Nor does it count meanwhile.
        let first = run(&ann, name, json!({})).await;
        reached(&ann, &first, &["waiting"]).await;
        ann.run(&format!("select helper.resume_run('{paused}')")).await;
        let told = reached(&ann, &paused, &["queued", "waiting"]).await;
        assert_eq!((&told["status"], &told["started_at"]), (&json!("queued"), &Value::Null), "{name}");
        ann.run(&format!("select helper.cancel_run('{first}')")).await;
        ended(&ann, &first).await;
        assert_eq!(reached(&ann, &paused, &[then]).await["status"], then);
    }
}

#[tokio::test]
async fn at_most_so_many_runs_of_a_key_go_on_at_once() {
    let Shop { cluster: _cluster, ann, .. } = shop().await;
    let definition = json!({
        "concurrency": { "limit": 1, "key": "{{ input.customer }}" },
        "steps": [{ "name": "wait", "type": "wait", "for": "150 ms" }]
    });
    create(&ann, "single", definition).await;
    let sql = "select helper.run_workflow('single', jsonb_build_object('customer', n % 2))::text from generate_series(1, 8) n";
    let ids: Vec<String> = ann.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    for id in &ids {
        assert_eq!(ended(&ann, id).await["status"], "succeeded");
    }
    let together: i64 = ann
        .one(
            "select count(*) from helper.workflow_runs a join helper.workflow_runs b \
               on a.id < b.id and a.input = b.input and a.started_at < b.finished_at and b.started_at < a.finished_at",
            &[],
        )
        .await;
    assert_eq!(together, 0);
    // A key is compared by all who wait: one that could be of any length is refused.
    let told = async |customer: &str| {
        let sql = "select helper.run_workflow('single', jsonb_build_object('customer', $1::text))::text";
        let id: String = ann.one(sql, &[&customer]).await;
        ended(&ann, &id).await
    };
    assert_eq!(told(&"x".repeat(500)).await["status"], "succeeded");
    let refused = told(&"x".repeat(501)).await;
    assert_eq!((&refused["status"], &refused["error"]["sqlstate"]), (&json!("failed"), &json!("53400")), "{refused}");
}

#[tokio::test]
async fn a_run_that_is_tried_again_counts_again() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    let definition = json!({
        "concurrency": { "limit": 1, "key": "{{ input.customer }}" },
        "steps": [
            { "name": "break", "type": "sql", "sql": "select 1 / ($1 ->> 'by')::integer as n", "parameters": { "by": "{{ vars.by }}" } },
            { "name": "wait", "type": "wait", "event": "go" }
        ]
    });
    create(&ann, "single", definition).await;
    let by = |by: i32| format!("update helper.workflows set settings = '{{\"by\": {by}}}'");
    admin.run(&by(0)).await;
    let one = run(&ann, "single", json!({ "customer": "x" })).await;
    assert_eq!(ended(&ann, &one).await["status"], "failed");
    admin.run(&by(1)).await;
    ann.run(&format!("select helper.retry_step('{one}', 'break')")).await;
    reached(&ann, &one, &["waiting"]).await;
    let other = run(&ann, "single", json!({ "customer": "x" })).await;
    until("the other to wait for its turn", async || {
        let sql = "select r.status || ' ' || q.run_at from helper.workflow_runs r join helper.workflow_queue q on q.run_id = r.id \
            where r.id = $1::text::uuid";
        let found = admin.query_opt(sql, &[&other]).await.unwrap()?.get::<_, String>(0);
        (found == "queued infinity").then_some(())
    })
    .await;
    for id in [&one, &other] {
        reached(&ann, id, &["waiting"]).await;
        ann.run("select helper.emit_event('go')").await;
        assert_eq!(ended(&ann, id).await["status"], "succeeded");
    }
    let long = run(&ann, "single", json!({ "customer": "x".repeat(501) })).await;
    assert_eq!(ended(&ann, &long).await["error"]["sqlstate"], "53400");
}

#[tokio::test]
async fn a_long_run_leaves_others_their_turn_and_can_be_cancelled_in_the_middle() {
    let Shop { cluster, admin, ann, .. } = shop().await;
    admin.run("alter system set helper_ai.runners = 1").await;
    cluster.reload();
    let sleep = json!({ "type": "sql", "sql": "insert into public.ledger (what) select 'slept' from pg_sleep(0.2)" });
    let map = json!({ "name": "all", "type": "map", "over": (0..40).collect::<Vec<i32>>(), "step": sleep });
    create(&ann, "long", json!({ "steps": [map] })).await;
    create(&ann, "short", json!({ "steps": [insert("write", "short")] })).await;
    let long = run(&ann, "long", json!({})).await;
    until("it to begin", async || (lines(&admin, "slept").await > 0).then_some(())).await;
    let short = run(&ann, "short", json!({})).await;
    assert_eq!(ended(&ann, &short).await["status"], "succeeded");
    assert!(lines(&admin, "slept").await < 40, "the other waited for all of it");
    ann.run(&format!("select helper.cancel_run('{long}')")).await;
    assert_eq!(ended(&ann, &long).await["status"], "cancelled");
    let done = lines(&admin, "slept").await;
    assert!(done < 40);
    // What was done is known, and nothing was done twice.
    let told: i64 = ann
        .one("select count(*) from helper.workflow_steps s where s.run_id = $1::text::uuid and s.item >= 0 and s.status = 'succeeded'", &[&long])
        .await;
    assert_eq!(told, done);
}

#[tokio::test]
async fn runs_of_a_key_begin_in_their_order() {
    let Shop { cluster, admin, ann, .. } = shop().await;
    // Two runners may look at runs that are new at the same time.
    admin.run("alter system set helper_ai.runners = 1").await;
    cluster.reload();
    let one = "select count(*) <= 1 from pg_stat_activity where backend_type = 'helper_ai runner'";
    until("one runner", async || admin.one::<bool>(one, &[]).await.then_some(())).await;
    let wait = json!({ "name": "wait", "type": "wait", "for": "5 ms" });
    create(&ann, "single", json!({ "concurrency": { "limit": 1, "key": "{{ input.customer }}" }, "steps": [wait] }))
        .await;
    let sql = "select helper.run_workflow('single', jsonb_build_object('customer', n / 20))::text from generate_series(0, 39) n";
    let ids: Vec<String> = ann.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    for id in &ids {
        assert_eq!(ended(&ann, id).await["status"], "succeeded");
    }
    let late: i64 = ann
        .one(
            "select count(*) from helper.workflow_runs a join helper.workflow_runs b \
               on a.id < b.id and a.input = b.input and a.started_at > b.started_at",
            &[],
        )
        .await;
    assert_eq!(late, 0);
}

#[tokio::test]
async fn who_waits_for_what_is_gone_goes_on() {
    let Shop { cluster: _cluster, ann, .. } = shop().await;
    create(&ann, "child", json!({ "steps": [{ "name": "wait", "type": "wait", "event": "never" }] })).await;
    create(&ann, "parent", json!({ "steps": [{ "name": "call", "type": "workflow", "workflow": "child" }] })).await;
    let parent = run(&ann, "parent", json!({})).await;
    reached(&ann, &parent, &["waiting"]).await;
    ann.run("select helper.delete_workflow('child')").await;
    let told = ended(&ann, &parent).await;
    assert_eq!((&told["status"], &told["error"]["sqlstate"]), (&json!("failed"), &json!("22023")), "{told}");
}

#[tokio::test]
async fn what_a_statement_may_not_reach_is_refused_and_what_cannot_be_stored_is_its_own_failure() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    let sql =
        |name: &str, sql: &str| json!({ "name": name, "type": "sql", "sql": sql, "needs": [], "on_error": "skip" });
    let refused = [
        "select pg_advisory_xact_lock(1)",
        "select pg_try_advisory_lock(1, 2)",
        "select lo_from_bytea(0, 'x')",
        "select setseed(0.5)",
        "select pg_logical_emit_message(false, 'x', 'y')",
        "select query_to_xml('select pg_advisory_lock(7)', true, true, '')",
    ];
    let mut steps: Vec<Value> = refused.iter().enumerate().map(|(at, text)| sql(&format!("s{at}"), text)).collect();
    let mut nul = insert("nul", "taken back");
    nul["sql"] = json!(format!("{}, '{{\"a\": \"\\u0000\"}}'::json as x", nul["sql"].as_str().unwrap()));
    nul["needs"] = json!([]);
    nul["on_error"] = json!("skip");
    nul["retry"] = json!({ "attempts": 3, "delay": "1 s" });
    steps.push(nul);
    let mut write = insert("write", "after all");
    write["needs"] = json!([]);
    steps.push(write);
    create(&ann, "w", json!({ "steps": steps })).await;
    let id = run(&ann, "w", json!({})).await;
    assert_eq!(ended(&ann, &id).await["status"], "succeeded");
    assert_eq!((lines(&admin, "after all").await, lines(&admin, "taken back").await), (1, 0));
    let code =
        "select s.error ->> 'sqlstate' from helper.workflow_steps s where s.run_id = $1::text::uuid and s.step = $2";
    for (at, text) in refused.iter().enumerate() {
        assert_eq!(ann.one::<String>(code, &[&id, &format!("s{at}")]).await, "42501", "{text}");
    }
    assert_eq!(ann.one::<String>(code, &[&id, &"nul"]).await, "22023");
    let held: i64 = admin.one("select count(*) from pg_locks l where l.locktype = 'advisory'", &[]).await;
    assert_eq!(held, 0);
}

#[tokio::test]
async fn a_workflow_that_starts_itself_ends() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    let again = json!({ "name": "again", "type": "sql", "sql": "select helper.run_workflow('self')" });
    create(&ann, "self", json!({ "steps": [insert("write", "self"), again] })).await;
    run(&ann, "self", json!({})).await;
    let failed = until("the last of them", async || {
        ann.query_opt("select f.run_id::text, f.error_code from helper.workflow_failures f", &[]).await.unwrap()
    })
    .await;
    assert_eq!((failed.get::<_, String>(1).as_str(), lines(&admin, "self").await), ("53400", 9));
    let inner = json!({ "name": "inner", "type": "workflow", "workflow": "within" });
    create(&ann, "within", json!({ "steps": [insert("write", "within"), inner] })).await;
    let outermost = run(&ann, "within", json!({})).await;
    assert_eq!(ended(&ann, &outermost).await["error"]["sqlstate"], "53400");
    assert_eq!(lines(&admin, "within").await, 9);
    let large = "select helper.run_workflow('self', jsonb_build_object('x', repeat('x', 2000000)))";
    assert_eq!(ann.error(large).await.code().code(), "53400");
}

#[tokio::test]
async fn sql_steps_can_be_switched_off() {
    let Shop { cluster, admin, ann, .. } = shop().await;
    create(&ann, "w", json!({ "steps": [insert("write", "x")] })).await;
    admin.run("alter system set helper_ai.sql_steps = off").await;
    cluster.reload();
    until("the setting", async || (ann.one::<String>("show helper_ai.sql_steps", &[]).await == "off").then_some(()))
        .await;
    let definition = r#"{"steps": [{"name": "one", "type": "sql", "sql": "select 1"}]}"#;
    let refused = ann.error(&format!("select helper.create_workflow('v', '{definition}')")).await;
    assert_eq!(refused.code().code(), "55000");
    let id = run(&ann, "w", json!({})).await;
    assert_eq!(ended(&ann, &id).await["error"]["sqlstate"], "55000");
}

#[tokio::test]
async fn an_input_that_is_nested_too_deep_fails_its_own_run_alone() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    create(&ann, "w", json!({ "steps": [insert("write", "{{ input.x | default: \"none\" }}")] })).await;
    let sql =
        "select helper.run_workflow('w', jsonb_build_object('x', (repeat('[', 200) || repeat(']', 200))::jsonb))::text";
    let deep: String = ann.one(sql, &[]).await;
    let other = run(&ann, "w", json!({ "x": "other" })).await;
    assert_eq!(ended(&ann, &other).await["status"], "succeeded");
    let code = "select f.error_code from helper.workflow_failures f where f.run_id = $1::text::uuid";
    let code: String =
        until("the other to fail", async || ann.query_opt(code, &[&deep]).await.unwrap().map(|row| row.get(0))).await;
    assert_eq!((code.as_str(), lines(&admin, "other").await), ("53400", 1));
}

#[tokio::test]
async fn runs_that_ended_long_ago_are_deleted_and_those_that_go_on_stay() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    create(&ann, "w", json!({ "steps": [insert("write", "x")] })).await;
    create(&ann, "hold", json!({ "steps": [{ "name": "never", "type": "wait", "event": "never" }] })).await;
    let held = run(&ann, "hold", json!({})).await;
    reached(&ann, &held, &["waiting"]).await;
    for _ in 0..3 {
        let id = run(&ann, "w", json!({})).await;
        ended(&ann, &id).await;
    }
    let told = "select sum(t.runs)::bigint from helper.workflow_throughput t";
    assert_eq!(ann.one::<i64>(told, &[]).await, 4);
    let clean = "select helper._clean_runs($1, $2)";
    assert_eq!(admin.one::<i64>(clean, &[&60, &1000]).await, 0);
    assert_eq!(admin.one::<i64>(clean, &[&0, &2]).await, 2);
    assert_eq!(admin.one::<i64>(clean, &[&0, &1000]).await, 1);
    let left = "select string_agg(s.run_id::text || ' ' || s.step, ', ') from helper.workflow_steps s";
    assert_eq!(admin.one::<String>(left, &[]).await, format!("{held} never"));
    assert_eq!(ann.one::<i64>(told, &[]).await, 1);
}

#[tokio::test]
async fn models_are_asked_by_the_worker_and_json_is_checked() {
    let place = Place::new().await;
    let ann = &place.ann;
    place.server.next(Answer::say("Thirty days."));
    place.server.next(Answer::say("{\"score\": \"high\"}"));
    place.server.next(Answer::say("{\"score\": 7}"));
    create(
        ann,
        "models",
        json!({ "steps": [
        { "name": "ask", "type": "ask", "question": "How long do refunds take?" },
        { "name": "rate", "type": "complete_json", "prompt": "Rate: {{ steps.ask.output.answer }}",
          "schema": { "type": "object", "required": ["score"], "properties": { "score": { "type": "number" } } } }
    ], "output": { "score": "{{ steps.rate.output.score }}", "answer": "{{ steps.ask.output.answer }}" } }),
    )
    .await;
    let id = run(ann, "models", json!({})).await;
    let told = ended(ann, &id).await;
    assert_eq!(told["status"], "succeeded", "{told:#}");
    assert_eq!(told["output"], json!({ "score": 7, "answer": "Thirty days." }), "{told:#}");
    let records = place.records(3).await;
    assert!(records.iter().all(|record| record["user_id"] == ANN), "{records:#?}");
    place.server.next(Answer::status(400, "{\"error\": {\"message\": \"no\"}}"));
    create(ann, "refused", json!({ "steps": [{ "name": "say", "type": "complete", "prompt": "Say something." }] }))
        .await;
    let told = ended(ann, &run(ann, "refused", json!({})).await).await;
    assert_eq!((&told["status"], &told["error"]["sqlstate"]), (&json!("failed"), &json!("38000")), "{told:#}");
}

#[tokio::test]
async fn a_runner_that_is_killed_in_a_step_has_done_all_of_it_or_nothing() {
    let Shop { cluster, admin, ann, .. } = shop().await;
    let nap = json!({ "name": "nap", "type": "sql", "timeout": "1 min",
        "sql": "insert into public.ledger (workspace_id, what) select w.id, 'nap' from helper.workspaces w, pg_sleep(1) limit 1" });
    create(&ann, "sleepy", json!({ "steps": [insert("before", "before"), nap, insert("after", "after")] })).await;
    let id = run(&ann, "sleepy", json!({})).await;
    let sleeping =
        "select pid from pg_stat_activity where backend_type = 'helper_ai runner' and wait_event = 'PgSleep'";
    let pid: i32 =
        until("a runner to sleep", async || admin.query_opt(sleeping, &[]).await.unwrap().map(|row| row.get(0))).await;
    signal(pid, "KILL");
    let told = until("the run to end on the server that is back", async || {
        let session = cluster.try_connect("postgres", "postgres").await.ok()?;
        let sql = "select status from helper.workflow_runs where finished_at is not null and id = $1::text::uuid";
        let row = session.query_opt(sql, &[&id]).await.ok()??;
        Some(row.get::<_, String>(0))
    })
    .await;
    assert_eq!(told, "succeeded");
    let admin = cluster.admin().await;
    for what in ["before", "nap", "after"] {
        assert_eq!(lines(&admin, what).await, 1, "{what}");
    }
}
