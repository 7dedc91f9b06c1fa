//! Workflows, case by case: the application's two formats and what starts them, limits of workspaces, redriving, what steps
//! cost, every kind of step, and what those who start a run can have its owner do.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod place;
mod provider;
mod runs;

use cluster::{Cluster, Session, until};
use helper_ai::core::signature::{self, Kind};
use place::{ANN, BEA, Place};
use provider::Answer;
use runs::{Shop, create, ended, let_a_month_pass, lines, reached, receive, run, step};
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

const CARL: &str = "00000000-0000-4000-8000-00000000000c";

/// A ledger that people of a workspace write, and a tool over it.
const TABLES: &str = "
create table public.ledger (
  workspace_id uuid not null default helper.current_workspace(),
  what text not null, who uuid not null default helper.current_user_id(), at timestamptz not null default clock_timestamp());
alter table public.ledger enable row level security;
create policy ledger_select on public.ledger for select using (workspace_id = any ((select helper.my_workspaces())::uuid[]));
create policy ledger_insert on public.ledger for insert with check (workspace_id = any ((select helper.my_workspaces('member'))::uuid[]));
grant select, insert on public.ledger to authenticated;
create function public.write_line(what text, workspace uuid) returns text language sql
  as 'insert into public.ledger (workspace_id, what) values (workspace, what) returning what';
select helper.register_function('write_line', 'write_line', 'Writes', '{\"requires_confirmation\": false}');
";

async fn shop() -> Shop {
    runs::shop(TABLES, "member").await
}

/// The only run of a workflow, once it has ended or waits.
async fn only_run(session: &Session, workflow: &str, states: &[&str]) -> Value {
    let id = until(&format!("a run of {workflow}"), async || {
        let sql = "select a.id::text from helper.workflow_activity a where a.workflow = $1";
        session.query_opt(sql, &[&workflow]).await.unwrap().map(|row| row.get::<_, String>(0))
    })
    .await;
    reached(session, &id, states).await
}

fn write(name: &str, what: &str) -> Value {
    json!({ "name": name, "type": "tool", "tool": "write_line", "arguments": { "what": what } })
}

/// Sends a signed request as a stranger.
async fn send(cluster: &Cluster, kind: Kind, endpoint: &str, secret: &str, body: &str) -> Result<String, String> {
    let stranger = cluster.connect("postgres", "authenticator").await;
    stranger.run("set role anon").await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let key = signature::key(kind, secret).unwrap();
    let headers = signature::signed(kind, &key, &format!("msg_{}", body.len()), now, body.as_bytes()).unwrap();
    let sql = "select helper.webhook($1, $2::jsonb::json, $3) ->> 'run'";
    let reply = stranger.query_one(sql, &[&endpoint, &headers, &body]).await;
    reply.map(|row| row.get(0)).map_err(|error| error.as_db_error().unwrap().code().code().to_owned())
}

/// What starts the workflows of a workspace.
async fn starts(admin: &Session) -> Value {
    admin
        .one(
            "select coalesce(jsonb_agg(t.what order by t.what), '[]') from (
               select concat_ws(' ', w.name, s.cron, s.time_zone) from helper.workflow_schedules s join helper.workflows w on w.id = s.workflow_id
               union all
               select concat_ws(' ', w.name, e.event, e.condition) from helper.workflow_event_triggers e join helper.workflows w on w.id = e.workflow_id
               union all
               select concat_ws(' ', w.name, h.kind, h.name) from helper.workflow_webhooks h join helper.workflows w on w.id = h.workflow_id
             ) t (what)",
            &[],
        )
        .await
}

// The application's formats

#[tokio::test]
async fn the_applications_daily_report_runs_by_the_clock_that_it_names() {
    let Shop { cluster: _cluster, admin, ann, bea, .. } = shop().await;
    let definition = |cron: &str| {
        json!({
            "name": "Daily Engagement Report", "trigger_type": "schedule",
            "trigger_config": { "cron": cron, "timezone": "Asia/Jakarta" },
            "steps": [
                { "step": 1, "function": "generate_report", "params": { "reportType": "daily", "timezone": "Asia/Jakarta" },
                  "output_var": "report" },
                { "step": 2, "function": "create_note",
                  "params": { "title": "Engagement on {{report.end_date}}", "content": "{{report.content}}", "tags": ["report"] } }
            ]
        })
    };
    create(&ann, "daily", definition("0 9 * * *")).await;
    assert_eq!(starts(&admin).await, json!(["daily 0 9 * * * Asia/Jakarta"]));
    // The same again is the same schedule with what somebody set of it since, another time is another and no more the first.
    admin.run("update helper.workflow_schedules set misfire = 'skip'").await;
    create(&ann, "daily", definition("0 9  * * *")).await;
    assert_eq!(admin.one::<i64>("select count(*) from helper.workflow_schedules where misfire = 'skip'", &[]).await, 1);
    create(&ann, "daily", definition("0 10 * * *")).await;
    assert_eq!(starts(&admin).await, json!(["daily 0 10 * * * Asia/Jakarta"]));
    // By hand there may be others, and one that says nothing leaves all as it is.
    ann.run("select helper.schedule_workflow('daily', '0 12 * * *')").await;
    let mut silent = definition("0 9 * * *");
    silent.as_object_mut().unwrap().retain(|name, _| !name.starts_with("trigger"));
    create(&ann, "daily", silent).await;
    create(&ann, "daily", definition("0 9 * * *")).await;
    assert_eq!(starts(&admin).await, json!(["daily 0 12 * * * UTC", "daily 0 9 * * * Asia/Jakarta"]));
    ann.run(
        "select helper.unschedule_workflow('daily', s.id) from helper.workflow_schedules s where s.time_zone = 'UTC'",
    )
    .await;
    let about: String = ann.one("select w.description from helper.workflows w", &[]).await;
    assert_eq!(about, "Daily Engagement Report");
    let error = bea
        .error(
            "select helper.create_workflow('hers', '{\"trigger_type\": \"schedule\", \"trigger_config\": {\"cron\": \"* * * * *\"}, \
               \"steps\": [{\"step\": 1, \"function\": \"create_note\"}]}')",
        )
        .await;
    assert_eq!(error.code().code(), "42501");

    let_a_month_pass(&admin).await;
    let told = only_run(&ann, "daily", &["succeeded", "failed"]).await;
    assert_eq!((&told["status"], &told["trigger"]), (&json!("succeeded"), &json!("schedule")), "{told:#}");
    let note: String = ann.one("select n.content from helper.notes n where n.title ~ '^Engagement on 20'", &[]).await;
    assert!(note.starts_with("# Daily report"), "{note}");
}

#[tokio::test]
async fn the_applications_auto_tagging_takes_what_its_event_tells() {
    let Shop { cluster: _cluster, admin, ann, workspace, .. } = shop().await;
    ann.run("select helper.install_pack('meta_hub')").await;
    admin
        .run(
            "create function public.suggest_tags(message text) returns jsonb language sql
               as $$ select jsonb_build_object('suggested_tags', case when message ~ 'bags' then '{order,new}'::text[] else '{other}' end) $$;
             select helper.register_function('suggest_tags', 'suggest_tags', 'Suggests', '{\"requires_confirmation\": false}')",
        )
        .await;
    let definition = json!({
        "name": "Auto-tag New Messages", "description": "Tags who writes", "trigger_type": "event",
        "trigger_config": { "event_type": "wa_message_received", "filters": { "kind": ["text", "image"], "event.name": "Ani" } },
        "steps": [
            { "step": 1, "function": "suggest_tags", "params": { "message": "{{event.message}}" }, "output_var": "analysis" },
            { "step": 2, "function": "tag_contact",
              "params": { "contactId": "{{event.contact_id}}", "addTags": "{{analysis.suggested_tags}}" } },
            { "step": 3, "function": "create_note", "params": { "title": "{{event.phone_number}} wrote", "content": "{{event.text}}" } }
        ]
    });
    create(&ann, "auto_tag", definition.clone()).await;
    create(&ann, "auto_tag", definition).await;
    // Filters are put together in the order of their names.
    let condition = "(@.payload.kind == \"text\" || @.payload.kind == \"image\") && @.payload.name == \"Ani\"";
    assert_eq!(starts(&admin).await, json!([format!("auto_tag wa_message_received {condition}")]));
    receive(&admin, &workspace, &["Two bags, please"]).await;
    let told = only_run(&ann, "auto_tag", &["succeeded", "failed"]).await;
    assert_eq!((&told["status"], &told["trigger"]), (&json!("succeeded"), &json!("event")), "{told:#}");
    let tags: Vec<String> = ann.one("select c.tags from helper.contacts c", &[]).await;
    assert_eq!(tags, ["new", "order"]);
    let note: String = ann.one("select n.title || ': ' || n.content from helper.notes n", &[]).await;
    assert_eq!(note, "+6281255550000 wrote: Two bags, please");
}

#[tokio::test]
async fn the_applications_weekly_summary_and_its_actions_run() {
    let Shop { cluster: _cluster, admin, ann, workspace, .. } = shop().await;
    ann.run("select helper.install_pack(p.name) from unnest('{meta_hub,platform}'::text[]) p (name)").await;
    let weekly = json!({
        "trigger": { "type": "schedule", "cron": "0 9 * * 1" },
        "steps": [
            { "step": "report", "function": "generate_report", "params": { "reportType": "weekly" }, "output_var": "week" },
            { "step": "tell", "function": "create_workspace_note",
              "params": { "title": "Week to {{week.end_date}}", "content": "{{week.content}}", "pinned": true } }
        ]
    });
    create(&ann, "weekly", weekly).await;
    let actions = json!({
        "trigger": { "type": "message_received" },
        "steps": [
            { "id": "is-order", "type": "condition", "condition": { "field": "event.message", "operator": "contains", "value": "bags" } },
            { "id": "tag", "type": "action", "action": "add_tag", "params": { "tag": "order" } },
            { "id": "pause", "type": "delay", "delay_seconds": 0.01 },
            { "id": "reply", "type": "action", "action": "ai_response", "params": {} },
            { "id": "tell", "type": "action", "action": "notify_team", "params": { "user_id": BEA, "title": "An order", "message": "{{event.name}}: {{event.message}}" } },
            { "id": "send", "type": "action", "action": "send_message", "params": { "message": "Thank you, {{event.name}}." } }
        ]
    });
    create(&ann, "orders", actions).await;
    assert_eq!(starts(&admin).await, json!(["orders wa_message_received", "weekly 0 9 * * 1 UTC"]));
    let_a_month_pass(&admin).await;
    let told = only_run(&ann, "weekly", &["succeeded", "failed"]).await;
    assert_eq!(told["status"], "succeeded", "{told:#}");
    let note: String = ann.one("select n.content from helper.notes n where n.shared and n.pinned", &[]).await;
    assert!(note.starts_with("# Weekly report"), "{note}");

    receive(&admin, &workspace, &["Two bags, please"]).await;
    // What reaches others waits for its owner's confirmation, each time.
    for tool in ["send_notification", "send_whatsapp_message"] {
        let call: String = until(&format!("{tool} to await its confirmation"), async || {
            let sql = "select c.id::text from helper.function_calls c where c.status = 'awaiting_confirmation' and c.function_name = $1";
            ann.query_opt(sql, &[&tool]).await.unwrap().map(|row| row.get(0))
        })
        .await;
        let sql = "select c.arguments from helper.function_calls c where c.id = $1::text::uuid";
        let arguments: Value = ann.one(sql, &[&call]).await;
        if tool == "send_notification" {
            assert_eq!(arguments["body"], "Ani: Two bags, please");
            ann.run(&format!("select helper.confirm('{call}')")).await;
        } else {
            let expected = json!({ "phone_number": "+6281255550000", "message": "Thank you, Ani." });
            assert_eq!(arguments, expected);
        }
    }
    let told = only_run(&ann, "orders", &["waiting"]).await;
    let ask: Value = ann.one("select s.input from helper.workflow_steps s where s.step = 'reply'", &[]).await;
    assert_eq!((&step(&told, "reply")["status"], &ask["question"]), (&json!("succeeded"), &json!("Two bags, please")));
    let tags: Vec<String> = ann.one("select c.tags from helper.contacts c", &[]).await;
    assert_eq!(tags, ["order"]);
}

#[tokio::test]
async fn a_webhook_of_a_definition_has_its_secret_and_nothing_else_holds_it() {
    let Shop { cluster, admin, ann, .. } = shop().await;
    let definition = |kind: &str, config: Value| {
        let steps = json!([{ "step": 1, "function": "write_line", "params": { "what": "{{event.what}}" } }]);
        json!({ "trigger_type": kind, "trigger_config": config, "steps": steps })
    };
    let first = "a-secret-of-the-sender";
    create(&ann, "hook", definition("webhook", json!({ "secret": first, "allowed_ips": [] }))).await;
    create(&ann, "hook", definition("webhook", json!({ "secret": first }))).await;
    create(&ann, "hook", definition("webhook", json!({}))).await;
    assert_eq!(starts(&admin).await, json!(["hook github definition"]));
    let endpoint: String = ann.one("select w.endpoint from helper.workflow_webhooks w", &[]).await;
    let id = send(&cluster, Kind::Hub, &endpoint, first, "{\"what\": \"one\"}").await.unwrap();
    assert_eq!(ended(&ann, &id).await["status"], "succeeded");
    let secrets = "select count(*) from helper.workflow_webhook_secrets where valid_until > clock_timestamp()";
    assert_eq!(admin.one::<i64>(secrets, &[]).await, 1);
    // Another one is good at once, the one before for a day more.
    create(&ann, "hook", definition("webhook", json!({ "secret": "another-secret-of-it" }))).await;
    for (secret, body) in [("another-secret-of-it", "{\"what\": \"two\"}"), (first, "{\"what\": \"three\"}")] {
        let id = send(&cluster, Kind::Hub, &endpoint, secret, body).await.unwrap();
        assert_eq!(ended(&ann, &id).await["status"], "succeeded");
    }
    let sql = "select to_jsonb(v) || to_jsonb(w) from helper.workflow_versions v join helper.workflows w on w.id = v.workflow_id";
    for row in admin.query(sql, &[]).await.unwrap() {
        assert!(!row.get::<_, Value>(0).to_string().contains("secret"));
    }
    // Of the standard's kind it is known by its beginning.
    let standard = signature::secret(&[7; 32]);
    create(&ann, "hook", definition("webhook", json!({ "secret": standard }))).await;
    let id = send(&cluster, Kind::Standard, &endpoint, &standard, "{\"what\": \"four!\"}").await.unwrap();
    assert_eq!(ended(&ann, &id).await["status"], "succeeded");
    assert_eq!(send(&cluster, Kind::Hub, &endpoint, first, "{}").await, Err("42501".to_owned()));
    for (config, message) in [
        (json!({ "secret": first, "allowed_ips": ["10.0.0.0/8"] }), "trigger_config.allowed_ips: cannot be kept to"),
        (json!({ "secret": "short" }), "trigger_config.secret: is not one that requests can be signed with"),
        (json!({ "secrte": first }), "trigger_config.secrte: is not a known field"),
    ] {
        let sql = format!("select helper.create_workflow('hook', $d${}$d$)", definition("webhook", config));
        let error = ann.error(&sql).await;
        assert_eq!((error.code().code(), error.message()), ("22023", message));
        assert!(!format!("{error:?}").contains(first), "{error:?}");
    }
    // Started by hand alone, it is started by nothing else any more.
    create(&ann, "hook", definition("manual", json!({}))).await;
    assert_eq!(starts(&admin).await, json!([]));
    assert_eq!(send(&cluster, Kind::Standard, &endpoint, &standard, "{}").await, Err("42501".to_owned()));
}

#[tokio::test]
async fn what_somebody_set_up_by_hand_is_not_taken_for_a_definitions_start() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    let definition = |kind: &str, config: Value| {
        let steps = json!([{ "step": 1, "function": "write_line", "params": { "what": "one" } }]);
        json!({ "trigger_type": kind, "trigger_config": config, "steps": steps })
    };
    create(&ann, "w", definition("manual", json!({}))).await;
    ann.run(
        "select helper.on_event('w', 'told', '@.payload.n > 1'); select helper.schedule_workflow('w', '0 9 * * *')",
    )
    .await;
    let by_hand = json!(["w 0 9 * * * UTC", "w told @.payload.n > 1"]);
    for (kind, config) in
        [("event", json!({ "event_type": "told" })), ("schedule", json!({ "cron": "0 9  * * *", "timezone": "UTC" }))]
    {
        let sql = format!("select helper.create_workflow('w', $d${}$d$)", definition(kind, config));
        assert_eq!(ann.error(&sql).await.code().code(), "42710", "{kind}");
        assert_eq!(starts(&admin).await, by_hand);
    }
    // Others beside it are the definition's own, and only they go.
    create(&ann, "w", definition("event", json!({ "event_type": "heard" }))).await;
    create(&ann, "w", definition("event", json!({ "event_type": "heard" }))).await;
    create(&ann, "w", definition("schedule", json!({ "cron": "0 10 * * *", "timezone": "UTC" }))).await;
    create(&ann, "w", definition("manual", json!({}))).await;
    assert_eq!(starts(&admin).await, by_hand);
}

// Limits

#[tokio::test]
async fn so_many_runs_of_a_workspace_go_on_at_once_and_the_most_urgent_begins_next() {
    let Shop { cluster, admin, ann, bea, workspace } = shop().await;
    let hold = json!([{ "name": "hold", "type": "wait", "event": "go", "match": { "run": "{{ run.id }}" } }]);
    create(&ann, "plain", json!({ "steps": hold })).await;
    create(&ann, "urgent", json!({ "priority": 10, "steps": hold })).await;
    create(&ann, "single", json!({ "concurrency": { "limit": 1 }, "steps": hold })).await;
    for (sql, code) in [
        ("select helper.set_workflow_limit(0)", "22023"),
        ("select helper.set_workflow_limit(2, gen_random_uuid())", "42704"),
    ] {
        assert_eq!(ann.error(sql).await.code().code(), code, "{sql}");
    }
    assert_eq!(bea.error("select helper.set_workflow_limit(2)").await.code().code(), "42501");
    // One that goes on already counts.
    let first = run(&ann, "plain", json!({})).await;
    reached(&ann, &first, &["waiting"]).await;
    ann.run("select helper.set_workflow_limit(2)").await;
    let second = run(&ann, "single", json!({})).await;
    reached(&ann, &second, &["waiting"]).await;
    let in_line = async |run: &str| {
        until("a run to wait for its turn", async || {
            let sql = "select from helper.workflow_runs r join helper.workflow_queue q on q.run_id = r.id and not q.is_due \
                where r.id = $1::text::uuid and (r.in_workspace = 'waits' or q.run_at = 'infinity')";
            admin.query_opt(sql, &[&run]).await.unwrap()
        })
        .await;
    };
    let (third, behind) = (run(&ann, "plain", json!({})).await, run(&ann, "single", json!({})).await);
    let urgent = run(&ann, "urgent", json!({})).await;
    for run in [&third, &behind, &urgent] {
        in_line(run).await;
    }
    let go = async |run: &str| {
        ann.run(&format!("select helper.emit_event('go', '{{\"run\": \"{run}\"}}')")).await;
        assert_eq!(ended(&ann, run).await["status"], "succeeded");
    };
    go(&first).await;
    reached(&ann, &urgent, &["waiting"]).await;
    // A run that is cancelled, fails or is deleted makes room as well.
    ann.run(&format!("select helper.cancel_run('{urgent}')")).await;
    reached(&ann, &third, &["waiting"]).await;
    go(&second).await;
    reached(&ann, &behind, &["waiting"]).await;
    let counted = "select count(*) from helper.workflow_runs r where r.in_workspace is not null";
    assert_eq!(admin.one::<i64>(counted, &[]).await, 2);
    // Another workspace's are not kept by it, nor marked.
    let carl = cluster.user(CARL).await;
    carl.run("select helper.create_workspace('Carl')").await;
    create(&carl, "plain", json!({ "steps": hold })).await;
    let his = run(&carl, "plain", json!({})).await;
    reached(&carl, &his, &["waiting"]).await;
    assert_eq!(admin.one::<i64>(counted, &[]).await, 2);
    let late: Vec<String> = {
        let sql = "select helper.run_workflow('plain')::text from generate_series(1, 3)";
        ann.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    };
    for run in &late {
        in_line(run).await;
    }
    ann.run("select helper.delete_workflow('single')").await;
    reached(&ann, &late[0], &["waiting"]).await;
    for run in &late[1..] {
        in_line(run).await;
    }
    // Raised or lifted, those that wait go on.
    ann.run("select helper.set_workflow_limit(3)").await;
    reached(&ann, &late[1], &["waiting"]).await;
    in_line(&late[2]).await;
    let limit: i32 = bea.one("select l.runs from helper.workflow_limits l", &[]).await;
    assert_eq!(limit, 3);
    ann.run(&format!("select helper.set_workflow_limit(null, '{workspace}')")).await;
    reached(&ann, &late[2], &["waiting"]).await;
    for run in [&third, &late[0], &late[1], &late[2]] {
        go(run).await;
    }
    assert_eq!(admin.one::<i64>(counted, &[]).await, 0);
}

#[tokio::test]
async fn a_workspaces_limit_is_never_passed_while_runs_come_fail_and_are_tried_again() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    ann.run("select helper.set_workflow_limit(3)").await;
    let steps = json!([
        { "name": "look", "type": "sql", "parameters": { "n": "{{ input.n }}", "by": "{{ vars.by | default: 0 }}" },
          "sql": "select 1 / case ($1 ->> 'n')::integer % 5 when 0 then ($1 ->> 'by')::integer else 1 end as n" },
        { "name": "wait", "type": "wait", "for": "5 ms" }
    ]);
    create(&ann, "some", json!({ "steps": steps })).await;
    create(&ann, "keyed", json!({ "concurrency": { "limit": 1, "key": "{{ input.key }}" }, "steps": steps })).await;
    ann.run(
        "select helper.run_workflow('some', jsonb_build_object('n', n)), \
           helper.run_workflow('keyed', jsonb_build_object('n', n, 'key', n % 3)) from generate_series(1, 60) n",
    )
    .await;
    let all_ended = async || {
        until("all runs to end", async || {
            let sql = "select count(*) from helper.workflow_runs r where r.finished_at is null";
            (admin.one::<i64>(sql, &[]).await == 0).then_some(())
        })
        .await;
    };
    all_ended().await;
    // So many went on at each time that one began.
    let most = "select max(t.n) from (select (select count(*) from helper.workflow_runs b \
           where b.started_at <= a.started_at and b.finished_at > a.started_at) as n from helper.workflow_runs a) t";
    assert!(admin.one::<i64>(most, &[]).await <= 3);
    let states = "select jsonb_object_agg(t.status, t.n) from (select r.status, count(*) as n from helper.workflow_runs r group by 1) t";
    assert_eq!(admin.one::<Value>(states, &[]).await, json!({ "failed": 24, "succeeded": 96 }));
    admin.run("update helper.workflows set settings = '{\"by\": 1}'").await;
    let redriven: i64 = ann.one("select helper.redrive_runs('some') + helper.redrive_runs('keyed')", &[]).await;
    assert_eq!(redriven, 24);
    until("all runs to succeed", async || {
        (admin.one::<Value>(states, &[]).await == json!({ "succeeded": 120 })).then_some(())
    })
    .await;
    let left = "select count(*) from helper.workflow_runs r where r.in_workspace is not null or r.holds is not null or r.key is not null";
    assert_eq!(admin.one::<i64>(left, &[]).await, 0);
}

/// Has a run be seen to wait for others of its workspace.
async fn waits_for_its_workspace(admin: &Session, run: &str) {
    until("a run to wait for its workspace", async || {
        let sql = "select from helper.workflow_runs r join helper.workflow_queue q on q.run_id = r.id and not q.is_due \
            where r.id = $1::text::uuid and r.in_workspace = 'waits'";
        admin.query_opt(sql, &[&run]).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn who_sets_a_limit_and_stays_in_the_transaction_keeps_no_runner_waiting() {
    let Shop { cluster, admin, ann, .. } = shop().await;
    let hold = |name: &str| json!({ "name": name, "type": "wait", "event": name, "match": { "run": "{{ run.id }}" } });
    create(&ann, "plain", json!({ "steps": [hold("one"), hold("two")] })).await;
    let emit = async |event: &str, run: &str| {
        ann.run(&format!("select helper.emit_event('{event}', '{{\"run\": \"{run}\"}}')")).await;
    };
    let first = run(&ann, "plain", json!({})).await;
    reached(&ann, &first, &["waiting"]).await;
    // Nor does he wait for one who has a run: it is counted as it is gone on with.
    let other = cluster.admin().await;
    other.run("begin; select from helper.workflow_runs for no key update").await;
    ann.run("set lock_timeout = '1 s'; select helper.set_workflow_limit(1)").await;
    other.run("rollback").await;
    let counted = "select count(*) from helper.workflow_runs r where r.in_workspace = 'counts'";
    assert_eq!(admin.one::<i64>(counted, &[]).await, 0);
    emit("one", &first).await;
    until("the run to be counted", async || (admin.one::<i64>(counted, &[]).await == 1).then_some(())).await;
    let second = run(&ann, "plain", json!({})).await;
    waits_for_its_workspace(&admin, &second).await;
    let setting = cluster.user(ANN).await;
    setting.run("begin; select helper.set_workflow_limit(2); select helper.set_workflow_limit(1)").await;
    emit("two", &first).await;
    assert_eq!(ended(&ann, &first).await["status"], "succeeded");
    setting.run("commit").await;
    reached(&ann, &second, &["waiting"]).await;
    // A turn that nobody passed on is found.
    let third = run(&ann, "plain", json!({})).await;
    waits_for_its_workspace(&admin, &third).await;
    admin.run("update helper.workflow_runs set in_workspace = null where in_workspace = 'counts'").await;
    reached(&ann, &third, &["waiting"]).await;
}

#[tokio::test]
async fn a_run_that_was_given_the_turn_and_does_not_begin_passes_it_on() {
    let Shop { cluster, admin, ann, .. } = shop().await;
    let step = json!([{ "name": "hold", "type": "wait", "event": "go", "match": { "run": "{{ run.id }}" } }]);
    create(&ann, "plain", json!({ "steps": step })).await;
    ann.run("select helper.set_workflow_limit(1)").await;
    let mut going = run(&ann, "plain", json!({})).await;
    reached(&ann, &going, &["waiting"]).await;
    let gate = cluster.admin().await;
    for (what, state) in [("cancel_run", "cancelled"), ("pause_run", "paused")] {
        let (given, next) = (run(&ann, "plain", json!({})).await, run(&ann, "plain", json!({})).await);
        waits_for_its_workspace(&admin, &given).await;
        waits_for_its_workspace(&admin, &next).await;
        // It is looked at by nobody unless it is passed the turn.
        let never = format!("update helper.workflow_queue set run_at = '2100-01-01' where run_id = '{next}'");
        admin.run(&never).await;
        gate.run(&format!("begin; select from helper.workflow_runs where id = '{given}' for no key update")).await;
        ann.run(&format!("select helper.emit_event('go', '{{\"run\": \"{going}\"}}')")).await;
        until("it to have the turn", async || {
            let sql = "select from helper.workflow_queue q where q.run_id = $1::text::uuid and q.is_due";
            admin.query_opt(sql, &[&given]).await.unwrap()
        })
        .await;
        ann.run(&format!("select helper.{what}('{given}')")).await;
        gate.run("commit").await;
        reached(&ann, &given, &[state]).await;
        reached(&ann, &next, &["waiting"]).await;
        going = next;
    }
}

#[tokio::test]
async fn a_run_that_another_waits_for_has_that_ones_place() {
    let Shop { cluster: _cluster, ann, .. } = shop().await;
    ann.run("select helper.set_workflow_limit(1)").await;
    create(&ann, "inner", json!({ "steps": [write("write", "inner")] })).await;
    create(&ann, "outer", json!({ "steps": [{ "name": "call", "type": "workflow", "workflow": "inner" }] })).await;
    for _ in 0..2 {
        assert_eq!(ended(&ann, &run(&ann, "outer", json!({})).await).await["output"], "inner");
    }
}

#[tokio::test]
async fn an_urgent_run_goes_first_and_a_rate_lets_the_next_in_when_its_time_has_come() {
    let Shop { cluster, admin, ann, .. } = shop().await;
    admin.run("alter system set helper_ai.runners = 1").await;
    cluster.reload();
    let one = "select count(*) <= 1 from pg_stat_activity where backend_type = 'helper_ai runner'";
    until("one runner", async || admin.one::<bool>(one, &[]).await.then_some(())).await;
    let nothing = json!([{ "name": "nothing", "type": "sql", "sql": "select 1" }]);
    create(&ann, "plain", json!({ "steps": nothing })).await;
    create(&ann, "urgent", json!({ "priority": 100, "steps": nothing })).await;
    ann.run("begin; select helper.run_workflow('plain') from generate_series(1, 2000)").await;
    let urgent = run(&ann, "urgent", json!({})).await;
    ann.run("commit").await;
    ended(&ann, &urgent).await;
    let later = "select count(*) from helper.workflow_runs a join helper.workflow_runs u on u.priority = 100 \
        where a.priority = 0 and (a.started_at is null or a.started_at > u.started_at)";
    assert!(admin.one::<i64>(later, &[]).await > 0);

    create(&ann, "rare", json!({ "rate": { "limit": 2, "per": "1 s" }, "steps": nothing })).await;
    let sql = "select helper.run_workflow('rare')::text from generate_series(1, 3)";
    let ids: Vec<String> = ann.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    for id in &ids {
        assert_eq!(ended(&ann, id).await["status"], "succeeded");
    }
    let apart = "select max(r.started_at) - min(r.started_at) >= interval '1 s' and \
          count(*) filter (where r.started_at < t.first + interval '1 s') = 2 \
        from helper.workflow_runs r, (select min(f.started_at) as first from helper.workflow_runs f where f.admitted_at is not null) t \
        where r.admitted_at is not null";
    assert!(admin.one::<bool>(apart, &[]).await);
}

#[tokio::test]
async fn one_workspaces_backlog_does_not_keep_another_waiting() {
    let Shop { cluster, admin, ann, .. } = shop().await;
    admin.run("alter system set helper_ai.runners = 1").await;
    cluster.reload();
    let one = "select count(*) <= 1 from pg_stat_activity where backend_type = 'helper_ai runner'";
    until("one runner", async || admin.one::<bool>(one, &[]).await.then_some(())).await;
    let carl = cluster.user(CARL).await;
    carl.run("select helper.create_workspace('Carl')").await;
    let nothing = json!({ "steps": [{ "name": "nothing", "type": "sql", "sql": "select 1" }] });
    for session in [&ann, &carl] {
        create(session, "plain", nothing.clone()).await;
    }
    ann.run("select helper.run_workflow('plain') from generate_series(1, 2000)").await;
    let his = run(&carl, "plain", json!({})).await;
    assert_eq!(ended(&carl, &his).await["status"], "succeeded");
    until("the others to end", async || {
        let sql = "select count(*) from helper.workflow_runs r where r.finished_at is null";
        (admin.one::<i64>(sql, &[]).await == 0).then_some(())
    })
    .await;
    let later = "select count(*) from helper.workflow_runs a join helper.workflow_runs h on h.id = $1::text::uuid \
        where a.workspace_id <> h.workspace_id and a.started_at > h.started_at";
    assert!(admin.one::<i64>(later, &[&his]).await > 0);
}

// Failing, timing out, costing

#[tokio::test]
async fn what_failed_or_timed_out_is_redriven_in_one_call() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    let definition = json!({ "timeout": "10 min", "output": "{{ vars.told }}", "steps": [
        write("before", "before {{ input.n }}"),
        { "name": "break", "type": "sql", "sql": "select 1 / ($1 ->> 'by')::integer as n", "parameters": { "by": "{{ vars.by }}" } },
        { "name": "wait", "type": "wait", "event": "go" },
        write("after", "after {{ input.n }}")
    ] });
    create(&ann, "fragile", definition).await;
    let vars = async |vars: Value| {
        admin
            .one::<Value>(
                "update helper.workflows set settings = $1 where name = 'fragile' returning settings",
                &[&vars],
            )
            .await;
    };
    vars(json!({ "by": 0, "told": 1 })).await;
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(run(&ann, "fragile", json!({ "n": n })).await);
        assert_eq!(ended(&ann, &ids[n]).await["status"], "failed");
    }
    vars(json!({ "by": 1, "told": 1 })).await;
    ids.push(run(&ann, "fragile", json!({ "n": 3 })).await);
    reached(&ann, &ids[3], &["waiting"]).await;
    // Its time is over.
    admin.run(&format!("update helper.workflow_runs set deadline = now() where id = '{}'", ids[3])).await;
    admin
        .run(&format!(
            "select helper._wake_run(r.workspace_id, r.id) from helper.workflow_runs r where r.id = '{}'",
            ids[3]
        ))
        .await;
    let told = ended(&ann, &ids[3]).await;
    assert_eq!(
        (&told["status"], &step(&told, "wait")["status"]),
        (&json!("timed_out"), &json!("cancelled")),
        "{told:#}"
    );
    let listed: i64 = ann.one("select count(*) from helper.workflow_failures", &[]).await;
    assert_eq!(listed, 4);
    assert_eq!(ann.one::<i64>("select helper.redrive_runs('fragile', 'infinity')", &[]).await, 0);
    // Not where something may have been done already, whichever step failed the run.
    let mark = async |status: &str| {
        let id = &ids[0];
        let sql =
            format!("update helper.workflow_steps set status = '{status}' where run_id = '{id}' and step = 'after'");
        assert_eq!(admin.execute(&sql, &[]).await.unwrap(), 1);
    };
    mark("uncertain").await;
    ann.run("begin").await;
    assert_eq!(ann.one::<i64>("select helper.redrive_runs('fragile')", &[]).await, 3);
    ann.run("rollback").await;
    mark("cancelled").await;
    assert_eq!(ann.one::<i64>("select helper.redrive_runs('fragile')", &[]).await, 4);
    for id in &ids {
        reached(&ann, id, &["waiting"]).await;
    }
    // The run itself may fail, with no step that did.
    vars(json!({ "by": 1 })).await;
    ann.run("select helper.emit_event('go')").await;
    let mut failed_at = Vec::new();
    for id in &ids {
        let told = ended(&ann, id).await;
        assert_eq!(told["error"]["step"], Value::Null);
        failed_at.push(told["finished_at"].clone());
    }
    assert_eq!(ann.one::<i64>("select helper.redrive_runs('fragile')", &[]).await, 4);
    for (id, failed_at) in ids.iter().zip(&failed_at) {
        until("a run to have failed again", async || {
            let told = runs::status(&ann, id).await;
            (told["status"] == "failed" && told["finished_at"] != *failed_at).then_some(())
        })
        .await;
    }
    vars(json!({ "by": 1, "told": "told" })).await;
    ann.run("select helper.redrive_runs('fragile')").await;
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(reached(&ann, id, &["succeeded"]).await["output"], "told");
        assert_eq!(lines(&admin, &format!("before {n}")).await, 1);
        assert_eq!(lines(&admin, &format!("after {n}")).await, 1);
    }
    // What a stop ended was meant.
    create(
        &ann,
        "stopped",
        json!({ "steps": [{ "name": "no", "type": "stop", "status": "failed", "message": "no" }] }),
    )
    .await;
    ended(&ann, &run(&ann, "stopped", json!({})).await).await;
    assert_eq!(ann.one::<i64>("select helper.redrive_runs('stopped')", &[]).await, 0);
}

#[tokio::test]
async fn a_run_that_is_redriven_has_the_settings_of_that_time() {
    let Shop { cluster, admin, ann, .. } = shop().await;
    create(&ann, "set", json!({ "output": "{{ vars.told }}", "steps": [write("say", "say")] })).await;
    let id = run(&ann, "set", json!({})).await;
    assert_eq!(ended(&ann, &id).await["status"], "failed");
    // A runner that has loaded the run waits for a row of its queue that somebody has.
    let queued = "select helper._wake_run(r.workspace_id, r.id) from helper.workflow_runs r; \
        update helper.workflow_queue set run_at = now() + interval '1 hour', is_due = false";
    admin.run(&format!("begin; {queued}; commit; begin; select from helper.workflow_queue for update")).await;
    let other = cluster.admin().await;
    ann.run("select helper.redrive_runs('set')").await;
    until("a runner to wait for the row", async || {
        let sql =
            "select from pg_catalog.pg_stat_activity a where a.wait_event_type = 'Lock' and a.application_name = 'helper_ai runner'";
        other.query_opt(sql, &[]).await.unwrap()
    })
    .await;
    let told = json!({ "told": "told" });
    other.one::<Value>("update helper.workflows set settings = $1 returning settings", &[&told]).await;
    admin.run("commit").await;
    assert_eq!(reached(&ann, &id, &["succeeded"]).await["output"], "told");
}

#[tokio::test]
async fn a_step_shows_what_all_of_its_replies_and_attempts_took() {
    let Place { cluster: _cluster, admin, ann, server, .. } = &Place::new().await;
    for answer in [
        Answer::status(503, "{\"error\": {\"message\": \"busy\"}}"),
        Answer::say("{\"score\": \"high\"}"),
        Answer::say("{\"score\": 7}"),
        Answer::say("Seven."),
    ] {
        server.next(answer);
    }
    let steps = json!([
        { "name": "rate", "type": "complete_json", "prompt": "Rate it.", "retry": { "attempts": 2, "delay": "1 ms" },
          "schema": { "type": "object", "required": ["score"], "properties": { "score": { "type": "number" } } } },
        { "name": "say", "type": "complete", "prompt": "Say it: {{ steps.rate.output.score }}" }
    ]);
    create(ann, "rated", json!({ "steps": steps })).await;
    let told = ended(ann, &run(ann, "rated", json!({})).await).await;
    assert_eq!(told["status"], "succeeded", "{told:#}");
    let records = until("records of all calls", async || {
        let sql = "select jsonb_agg(u.input_tokens + u.output_tokens order by u.created_at), sum(u.input_tokens + u.output_tokens)::bigint, \
              sum(u.cost)::text, count(*) from helper.usage_records u where u.message_id is not null";
        let row = admin.query_one(sql, &[]).await.unwrap();
        (row.get::<_, i64>(3) == 4).then_some(row)
    })
    .await;
    let seen = ann
        .query(
            "select s.step, s.attempt, s.tokens::bigint, s.cost > 0, (sum(s.tokens) over ())::bigint, (sum(s.cost) over ())::text \
             from helper.workflow_step_activity s order by s.started_at",
            &[],
        )
        .await
        .unwrap();
    let (each, tokens, cost) = (records.get::<_, Value>(0), records.get::<_, i64>(1), records.get::<_, String>(2));
    assert_eq!((seen[0].get::<_, i64>(4), seen[0].get::<_, String>(5)), (tokens, cost));
    let last = each[3].as_i64().unwrap();
    for (row, (name, attempt, tokens)) in seen.iter().zip([("rate", 2, tokens - last), ("say", 1, last)]) {
        let found = (row.get::<_, String>(0), row.get::<_, i32>(1), row.get::<_, i64>(2), row.get::<_, bool>(3));
        assert_eq!(found, (name.to_owned(), attempt, tokens, true), "{each}");
    }
}

#[tokio::test]
async fn who_listens_hears_how_runs_go_on() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    admin.run("listen helper_runs").await;
    create(&ann, "held", json!({ "steps": [{ "name": "hold", "type": "wait", "event": "go" }] })).await;
    let id = run(&ann, "held", json!({})).await;
    reached(&ann, &id, &["waiting"]).await;
    ann.run("select helper.emit_event('go')").await;
    ended(&ann, &id).await;
    let expected = ["waiting", "succeeded"].map(|status| ("helper_runs".to_owned(), format!("{id} {status}")));
    until("both to be heard", async || {
        admin.run("select").await;
        (admin.notifications() == expected).then_some(())
    })
    .await;
}

// Kinds of steps

#[tokio::test]
async fn a_switch_a_search_and_a_stop_do_what_they_say() {
    let Place { cluster: _cluster, ann, .. } = &Place::new().await;
    let steps = json!([
        { "name": "found", "type": "search", "query": "{{ input.query }}", "k": 1, "method": "text" },
        { "name": "which", "type": "switch", "default": "other", "cases": [
            { "when": "@.input.n > 10", "then": ["large", "also"] }, { "when": "@.input.n > 5", "then": "middle" }] },
        { "name": "large", "type": "stop", "status": "succeeded", "output": { "size": "large", "n": "{{ input.n }}" } },
        { "name": "also", "type": "wait", "for": "1 day", "needs": ["which"] },
        { "name": "middle", "type": "stop", "status": "failed", "message": "middle: {{ input.n }}", "needs": ["which"] },
        { "name": "other", "type": "stop", "status": "succeeded", "output": "{{ steps.found.output[0].content }}", "needs": ["which"] }
    ]);
    create(ann, "sized", json!({ "steps": steps })).await;
    let told = ended(ann, &run(ann, "sized", json!({ "n": 11, "query": "refunds" })).await).await;
    assert_eq!(told["output"], json!({ "size": "large", "n": 11 }), "{told:#}");
    assert_eq!(
        (&step(&told, "middle")["status"], &step(&told, "also")["status"]),
        (&json!("cancelled"), &json!("cancelled"))
    );
    let told = ended(ann, &run(ann, "sized", json!({ "n": 6, "query": "refunds" })).await).await;
    let error = &told["error"];
    assert_eq!(
        (&told["status"], &error["message"], &error["step"]),
        (&json!("failed"), &json!("middle: 6"), &json!("middle"))
    );
    let told = ended(ann, &run(ann, "sized", json!({ "n": 1, "query": "refunds" })).await).await;
    assert!(told["output"].as_str().unwrap().contains("Refunds are paid within 30 days"), "{told:#}");
}

#[tokio::test]
async fn a_wait_lasts_until_its_time_and_too_many_elements_are_refused() {
    let Shop { cluster: _cluster, ann, .. } = shop().await;
    let wait = json!([{ "name": "wait", "type": "wait", "until": "{{ input.at }}" }]);
    create(&ann, "until", json!({ "steps": wait })).await;
    let at: String =
        ann.one("select to_char((clock_timestamp() + interval '400 ms') at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')", &[]).await;
    let told = ended(&ann, &run(&ann, "until", json!({ "at": at })).await).await;
    assert_eq!(told["status"], "succeeded", "{told:#}");
    let sql = "select s.finished_at >= $1::text::timestamptz from helper.workflow_steps s";
    assert!(ann.one::<bool>(sql, &[&at]).await);
    for (at, status) in [("2020-01-01T00:00:00+07:00", "succeeded"), ("tomorrow", "failed"), ("2020-01-01", "failed")] {
        let told = ended(&ann, &run(&ann, "until", json!({ "at": at })).await).await;
        assert_eq!(told["status"], status, "{told:#}");
    }
    let each = json!({ "type": "tool", "tool": "write_line", "arguments": { "what": "{{ item }}" } });
    let map = json!([{ "name": "each", "type": "map", "over": "{{ input.list }}", "most": 2, "step": each }]);
    create(&ann, "few", json!({ "steps": map })).await;
    let told = ended(&ann, &run(&ann, "few", json!({ "list": ["a", "b"] })).await).await;
    assert_eq!(told["output"], json!(["a", "b"]), "{told:#}");
    let told = ended(&ann, &run(&ann, "few", json!({ "list": ["a", "b", "c"] })).await).await;
    assert_eq!((&told["status"], &told["error"]["sqlstate"]), (&json!("failed"), &json!("53400")), "{told:#}");
    assert_eq!(ann.one::<i64>("select count(*) from public.ledger", &[]).await, 2);
}

#[tokio::test]
async fn steps_and_runs_time_out() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    let steps = json!([
        { "name": "slow", "type": "sql", "sql": "select pg_sleep(20)", "timeout": "50 ms", "on_error": { "goto": "instead" } },
        { "name": "instead", "type": "wait", "event": "never", "timeout": "50 ms", "on_error": "skip" },
        { "name": "last", "type": "tool", "tool": "write_line", "needs": [], "arguments": { "what": "last" } }
    ]);
    create(&ann, "slow", json!({ "steps": steps })).await;
    let told = ended(&ann, &run(&ann, "slow", json!({})).await).await;
    assert_eq!(told["status"], "succeeded", "{told:#}");
    for name in ["slow", "instead"] {
        let step = step(&told, name);
        assert_eq!((&step["status"], &step["error"]["sqlstate"]), (&json!("failed"), &json!("57014")), "{told:#}");
    }
    create(&ann, "short", json!({ "timeout": "100 ms", "steps": [{ "name": "wait", "type": "wait", "event": "never" }, write("after", "after")] }))
        .await;
    let told = ended(&ann, &run(&ann, "short", json!({})).await).await;
    assert_eq!((&told["status"], &told["error"]["sqlstate"]), (&json!("timed_out"), &json!("57014")), "{told:#}");
    assert_eq!((lines(&admin, "last").await, lines(&admin, "after").await), (1, 0));
    assert_eq!(admin.one::<i64>("select count(*) from helper.workflow_waits", &[]).await, 0);
}

// As whom

#[tokio::test]
async fn what_starts_a_run_is_data_to_it_however_it_came() {
    let Shop { cluster, admin, ann, bea, .. } = shop().await;
    admin
        .run(
            "create table public.letters (workspace_id uuid not null default helper.current_workspace(), text text, list jsonb);
             alter table public.letters enable row level security;
             create policy letters_all on public.letters using (workspace_id = any ((select helper.my_workspaces())::uuid[]));
             grant select, insert on public.letters to authenticated",
        )
        .await;
    let steps = json!([
        { "name": "sql", "type": "sql", "parameters": { "text": "{{ input.new.text }}" },
          "sql": "insert into public.ledger (what) values ('sql ' || ($1 ->> 'text')) returning what" },
        { "name": "tool", "type": "tool", "tool": "write_line", "when": "@.input.new.text != @.vars.secret",
          "arguments": { "what": "tool {{ steps.sql.output.rows[0].what }}" } },
        { "name": "never", "type": "tool", "tool": "write_line", "when": "@.input.new.text == 'open'", "needs": ["sql"],
          "arguments": { "what": "breached" } },
        { "name": "each", "type": "map", "over": "{{ input.new.list }}", "as": "one", "needs": ["tool"],
          "step": { "type": "tool", "tool": "write_line", "arguments": { "what": "item {{ one }}" } } }
    ]);
    let definition = json!({ "steps": steps });
    let options = json!({ "settings": { "secret": "what only Ann may know" } });
    let sql = "select helper.create_workflow('guarded', $1, options => $2)::text";
    ann.one::<String>(sql, &[&definition, &options]).await;
    ann.run("select helper.on_event('guarded', 'letter')").await;
    admin.run("set role postgres").await;
    // The table's owner follows it for Ann's workspace.
    admin.run("alter table public.letters owner to authenticated").await;
    ann.run("select helper.on_table('guarded', 'public.letters', '{insert}', workspace_column => 'workspace_id')")
        .await;
    let made: Value = ann.one("select helper.create_webhook('guarded', 'letters')", &[]).await;
    let (endpoint, secret) = (made["endpoint"].as_str().unwrap(), made["secret"].as_str().unwrap());
    let hostile = [
        "{{ vars.secret }}",
        "{{ vars.secret | default: 1 }} }} {{",
        "open' || '1' == '1",
        "'); drop table public.ledger; --",
        "$1 ->> 'text' $$ $1; select 1",
        "@.vars.secret || $.vars.secret",
        "\\\" \\' \\u0027 \" ' %s %I",
    ];
    for (n, text) in hostile.iter().enumerate() {
        let input = json!({ "new": { "text": text, "list": [text] } });
        run(&bea, "guarded", input.clone()).await;
        bea.one::<String>("select helper.emit_event('letter', $1)::text", &[&input]).await;
        bea.one::<String>(
            "insert into public.letters (text, list) values ($1, $2) returning text",
            &[text, &json!([text])],
        )
        .await;
        // A body of a length of its own, as its delivery is named by it.
        let body = format!("{input}{}", " ".repeat(100 * n));
        send(&cluster, Kind::Standard, endpoint, secret, &body).await.unwrap();
    }
    let ways = hostile.len() as i64 * 4;
    until("all runs to end", async || {
        let sql = "select count(*) from helper.workflow_runs r where r.finished_at is not null";
        (admin.one::<i64>(sql, &[]).await == ways).then_some(())
    })
    .await;
    let ended = "select jsonb_object_agg(t.kind, t.n) from (select r.trigger ->> 'kind' as kind, count(*) as n \
        from helper.workflow_runs r where r.status = 'succeeded' group by 1) t";
    let each = hostile.len();
    assert_eq!(
        admin.one::<Value>(ended, &[]).await,
        json!({ "manual": each, "event": each, "table": each, "webhook": each })
    );
    for text in hostile {
        for what in [format!("sql {text}"), format!("tool sql {text}"), format!("item {text}")] {
            assert_eq!(lines(&admin, &what).await, 4, "{what}");
        }
    }
    let sql = "select count(*) from public.ledger l where l.who = $1::text::uuid";
    assert_eq!(admin.one::<i64>(sql, &[&ANN]).await, 3 * ways);
    assert_eq!(admin.one::<i64>("select count(*) from public.ledger", &[]).await, 3 * ways);
    // Nor is a step of hers taken from anybody.
    for sql in [
        "insert into helper.workflow_steps (workspace_id, run_id, step, status, attempt, output) \
           select r.workspace_id, r.id, 'never', 'succeeded', 1, '{}' from helper.workflow_runs r",
        "update helper.workflow_steps set output = '{}'",
        "update helper.workflow_runs set input = '{}', status = 'running'",
        "insert into helper.workflow_queue (workspace_id, run_id) select r.workspace_id, r.id from helper.workflow_runs r",
        "update helper.workflow_versions set definition = '{}'",
        "select helper.retry_step(r.id, 'sql') from helper.workflow_runs r limit 1",
        "select helper.replay_run(r.id, 'never') from helper.workflow_runs r limit 1",
        "select helper.emit_event('wa_message_received')",
    ] {
        assert_eq!(bea.error(sql).await.code().code(), "42501", "{sql}");
    }
}

#[tokio::test]
async fn a_workflow_whose_owner_leaves_is_paused_and_says_so() {
    let Shop { cluster, admin, ann, bea, workspace } = shop().await;
    ann.run(&format!("select helper.add_member('{workspace}', '{CARL}', 'owner')")).await;
    create(
        &ann,
        "held",
        json!({ "steps": [{ "name": "hold", "type": "wait", "event": "go" }, write("after", "after")] }),
    )
    .await;
    let id = run(&bea, "held", json!({})).await;
    reached(&bea, &id, &["waiting"]).await;
    let carl = cluster.user(CARL).await;
    carl.run(&format!("select helper.remove_member('{workspace}', '{ANN}')")).await;
    bea.run("select helper.emit_event('go')").await;
    let told = reached(&bea, &id, &["paused", "succeeded", "failed"]).await;
    let error = &told["error"];
    assert_eq!((&told["status"], &error["sqlstate"]), (&json!("paused"), &json!("42501")), "{told:#}");
    let sql = "select w.enabled::text || ' ' || w.problem from helper.workflows w";
    let problem: String = bea.one(sql, &[]).await;
    assert_eq!(problem, format!("false {}", error["message"].as_str().unwrap()));
    assert_eq!(bea.error("select helper.run_workflow('held')").await.code().code(), "55000");
    assert_eq!(lines(&admin, "after").await, 0);
    // She comes back.
    carl.run(&format!(
        "select helper.add_member('{workspace}', '{ANN}', 'member'); select helper.resume_workflow('held'); select helper.resume_run('{id}')"
    ))
    .await;
    assert_eq!(ended(&bea, &id).await["status"], "succeeded");
    assert_eq!(lines(&admin, "after").await, 1);
}

#[tokio::test]
async fn an_owner_who_is_demoted_between_two_steps_has_the_second_not_done() {
    let Shop { cluster, admin, ann, bea, workspace } = shop().await;
    admin.run("create table public.gate (n int); grant select on public.gate to authenticated").await;
    let steps = json!([
        { "name": "first", "type": "sql", "sql": "insert into public.ledger (what) select 'first' from (select count(*) from public.gate) g" },
        { "name": "second", "type": "sql", "sql": "insert into public.ledger (what) values ('second')" }
    ]);
    create(&ann, "two", json!({ "steps": steps })).await;
    ann.run(&format!("select helper.add_member('{workspace}', '{CARL}', 'owner')")).await;
    // What a session sees of others stays the same in a transaction.
    let gate = cluster.admin().await;
    gate.run("begin; lock table public.gate").await;
    let id = run(&bea, "two", json!({})).await;
    until("the first step to stand at the gate", async || {
        let sql =
            "select from pg_stat_activity a where a.backend_type = 'helper_ai runner' and a.wait_event_type = 'Lock'";
        admin.query(sql, &[]).await.unwrap().pop()
    })
    .await;
    gate
        .run(&format!("update helper.workspace_members set role = 'member' where workspace_id = '{workspace}' and user_id = '{ANN}'; commit"))
        .await;
    let told = reached(&bea, &id, &["paused", "succeeded", "failed"]).await;
    assert_eq!((&told["status"], &told["error"]["sqlstate"]), (&json!("paused"), &json!("42501")), "{told:#}");
    assert_eq!(step(&told, "first")["status"], "succeeded");
    assert_eq!((lines(&admin, "first").await, lines(&admin, "second").await), (1, 0));
    let problem: Option<String> = bea.one("select w.problem from helper.workflows w where not w.enabled", &[]).await;
    assert!(problem.unwrap().contains("may not run it any more"));
}

// The clock

#[tokio::test]
async fn a_fire_time_is_put_off_within_its_jitter_and_stays_the_same_time() {
    let Shop { cluster: _cluster, admin, ann, .. } = shop().await;
    admin.run("set timezone = 'UTC'").await;
    create(&ann, "w", json!({ "steps": [{ "name": "hold", "type": "wait", "for": "1 s" }] })).await;
    ann.run("select helper.schedule_workflow('w', n || ' * * * *', options => '{\"jitter\": \"10 minutes\", \"overlap\": \"allow\"}') from generate_series(0, 9) n")
        .await;
    let next = "select bool_and(s.look_at > now() and s.look_at - f.fire >= '0' and s.look_at - f.fire < '10 minutes'), \
          count(distinct s.look_at - f.fire) > 1 \
        from helper.workflow_schedules s \
        cross join lateral (select split_part(s.cron, ' ', 1)::integer * interval '1 minute' as minute) m \
        cross join lateral (select date_trunc('hour', s.look_at - m.minute) + m.minute as fire) f";
    let row = admin.query_one(next, &[]).await.unwrap();
    assert_eq!((row.get::<_, bool>(0), row.get::<_, bool>(1)), (true, true));
    admin.run("update helper.workflow_schedules set done_through = '2030-01-01 09:59:59Z'").await;
    admin.run("update helper.workflow_schedules s set look_at = p.look_at from helper.workflow_schedules o, helper._plan_fires(o, '2030-01-01 09:59:59Z') p where o.id = s.id")
        .await;
    let before = "select count(helper._fire_schedules(s.look_at - interval '1 ms')) from helper.workflow_schedules s where s.look_at = (select min(l.look_at) from helper.workflow_schedules l)";
    admin.one::<i64>(before, &[]).await;
    assert_eq!(admin.one::<i64>("select count(*) from helper.workflow_runs", &[]).await, 0);
    admin.run("select helper._fire_schedules('2030-01-01 10:19:59Z')").await;
    let times: String = admin
        .one("select string_agg(distinct to_char((r.trigger ->> 'at')::timestamptz, 'HH24:MI:SS'), ' ') from helper.workflow_runs r", &[])
        .await;
    let expected: Vec<String> = (0..10).map(|n| format!("10:0{n}:00")).collect();
    assert_eq!(times, expected.join(" "));
}
