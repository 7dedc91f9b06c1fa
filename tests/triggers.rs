//! What starts workflows: the clock, events, rows that change, and requests from outside. On a real server, with real roles.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use cluster::{Cluster, Session, until};
use helper_ai::core::signature::{self, Kind};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio_postgres::error::SqlState;

/// A workspace of its own for each test, with an admin, a member and a workflow "w".
struct Shop {
    cluster: Arc<Cluster>,
    root: Session,
    admin: Session,
    member: Session,
    workspace: String,
    workflow: String,
}

/// A run of it goes on until somebody cancels it.
const HOLD: &str = r#"{"steps": [{"name": "hold", "type": "wait", "for": "1 day"}]}"#;

async fn person(cluster: &Cluster, root: &Session) -> (String, Session) {
    let id: String = root.one("select gen_random_uuid()::text", &[]).await;
    let session = cluster.user(&id).await;
    (id, session)
}

impl Shop {
    async fn open() -> Shop {
        Self::on(Cluster::shared().await).await
    }

    async fn on(cluster: Arc<Cluster>) -> Shop {
        let root = cluster.admin().await;
        root.run("set timezone = 'UTC'").await;
        let (_, admin) = person(&cluster, &root).await;
        let (member_id, member) = person(&cluster, &root).await;
        let workspace: String =
            admin.one("select helper.create_workspace('Shop ' || gen_random_uuid())::text", &[]).await;
        admin.run(&format!("select helper.add_member('{workspace}', '{member_id}')")).await;
        let workflow = admin.one(&format!("select helper.create_workflow('w', '{HOLD}')::text"), &[]).await;
        Shop { cluster, root, admin, member, workspace, workflow }
    }

    /// The inputs of the workflow's runs in order, once nothing waits to be delivered.
    async fn delivered(&self) -> Vec<Value> {
        let waits = "select exists (select from helper.workflow_events e where e.workspace_id = $1::text::uuid)";
        until("the delivery of events", async || {
            self.root.run("select helper._deliver_events()").await;
            (!self.root.one::<bool>(waits, &[&self.workspace]).await).then_some(())
        })
        .await;
        self.inputs().await
    }

    async fn inputs(&self) -> Vec<Value> {
        let rows = self
            .root
            .query(
                "select r.input from helper.workflow_runs r where r.workflow_id = $1::text::uuid order by r.trigger ->> 'at', r.id",
                &[&self.workflow],
            )
            .await
            .unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// The fire times that were started, as hours of the first of January 2030.
    async fn hours(&self) -> Vec<i64> {
        let rows = self
            .root
            .query(
                "select (extract(epoch from (r.trigger ->> 'at')::timestamptz - '2030-01-01 00:00Z') / 3600)::bigint
                 from helper.workflow_runs r where r.workflow_id = $1::text::uuid order by 1",
                &[&self.workflow],
            )
            .await
            .unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// An hourly schedule that is done with all up to nine o'clock on the first of January 2030.
    async fn hourly(&self, options: &str) -> String {
        let id: String = self
            .admin
            .one("select helper.schedule_workflow('w', '0 * * * *', options => $1::text::jsonb)::text", &[&options])
            .await;
        self.root
            .run(&format!(
                "update helper.workflow_schedules set done_through = '2030-01-01 09:00Z', look_at = '2030-01-01 10:00Z' where id = '{id}'"
            ))
            .await;
        id
    }

    async fn look(&self, time: &str) -> Option<String> {
        let sql = format!("select to_char(helper._fire_schedules('2030-01-01 {time}Z'), 'DD HH24:MI')");
        self.root.query_one(&sql, &[]).await.unwrap().get(0)
    }

    /// A webhook of a kind: its endpoint and its secret.
    async fn endpoint(&self, kind: &str) -> (String, String) {
        let made: Value = self.admin.one("select helper.create_webhook('w', $1, $1)", &[&kind]).await;
        (made["endpoint"].as_str().unwrap().to_owned(), made["secret"].as_str().unwrap().to_owned())
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

/// Somebody outside.
async fn stranger(cluster: &Cluster) -> Session {
    let session = cluster.connect("postgres", "authenticator").await;
    session.run("set role anon").await;
    session
}

/// Sends a request: the run or the challenge that came back, or the SQLSTATE with the message.
async fn send(session: &Session, endpoint: &str, headers: &Value, body: &str) -> Result<String, String> {
    let row = session.query_one("select helper.webhook($1, $2::jsonb::json, $3)", &[&endpoint, headers, &body]).await;
    match row {
        Ok(row) => {
            let reply: Value = row.get(0);
            Ok(reply["run"].as_str().or(reply["challenge"].as_str()).unwrap().to_owned())
        }
        Err(error) => {
            let error = error.as_db_error().unwrap();
            Err(format!("{} {}", error.code().code(), error.message()))
        }
    }
}

fn signed(secret: &str, id: &str, time: i64, body: &str) -> Value {
    let key = signature::key(Kind::Standard, secret).unwrap();
    signature::signed(Kind::Standard, &key, id, time, body.as_bytes()).unwrap()
}

const REFUSED: &str = "42501 permission denied for webhook";

#[tokio::test]
async fn an_event_is_gone_with_its_writer_and_starts_what_waits_for_it() {
    let shop = Shop::open().await;
    shop.admin.run("select helper.on_event('w', 'order_paid', '@.payload.score > 50')").await;
    shop.member.run("begin; select helper.emit_event('order_paid', '{\"score\": 99, \"n\": 0}'); rollback").await;
    shop.member
        .run(
            "select helper.emit_event('order_paid', '{\"score\": 60, \"n\": 1}'); \
             select helper.emit_event('order_paid', '{\"score\": 40, \"n\": 2}'); \
             select helper.emit_event('another', '{\"score\": 60, \"n\": 3}'); \
             select helper.emit_event('order_paid', '{\"n\": 4}')",
        )
        .await;
    assert_eq!(shop.delivered().await, [json!({ "score": 60, "n": 1 })]);
    let trigger: Value = shop
        .root
        .one("select r.trigger from helper.workflow_runs r where r.workflow_id = $1::text::uuid", &[&shop.workflow])
        .await;
    assert_eq!((&trigger["kind"], &trigger["name"]), (&json!("event"), &json!("order_paid")));
    // The condition may change; what is wrong with one is said where it is given.
    shop.admin.run("select helper.on_event('w', 'order_paid')").await;
    shop.member.run("select helper.emit_event('order_paid')").await;
    assert_eq!(shop.delivered().await.len(), 2);
    let error = shop.admin.error("select helper.on_event('w', 'order_paid', 'score >')").await;
    assert_eq!(error.code(), &SqlState::INVALID_PARAMETER_VALUE);
}

#[tokio::test]
async fn nobody_forges_an_event_of_the_extensions_own() {
    let shop = Shop::open().await;
    for event in ["contact_created", "lead_created", "tag_added", "wa_message_received"] {
        shop.admin.run(&format!("select helper.on_event('w', '{event}')")).await;
        for session in [&shop.member, &shop.admin] {
            let error = session.error(&format!("select helper.emit_event('{event}')")).await;
            assert_eq!(
                (error.code(), error.message()),
                (&SqlState::INSUFFICIENT_PRIVILEGE, format!("permission denied to emit event \"{event}\"").as_str())
            );
        }
        for name in ["_tell_event", "_own_events"] {
            let sql = format!(
                "select has_function_privilege(p.oid, 'execute') from pg_proc p where p.pronamespace = 'helper'::regnamespace and p.proname = '{name}'"
            );
            assert!(!shop.member.one::<bool>(&sql, &[]).await, "{name}");
        }
    }
    assert_eq!(shop.delivered().await, [Value::Null; 0]);
}

#[tokio::test]
async fn an_event_that_cannot_be_delivered_keeps_no_other_waiting_and_is_given_up_in_the_end() {
    let cluster = Arc::new(Cluster::start().await);
    let (shop, other) = (Shop::on(Arc::clone(&cluster)).await, Shop::on(Arc::clone(&cluster)).await);
    shop.admin.run(&format!("select helper.create_workflow('free', '{HOLD}')")).await;
    shop.admin.run("select helper.on_event('w', 'e'), helper.on_event('free', 'f')").await;
    other.admin.run("select helper.on_event('w', 'e')").await;
    // Somebody's transaction that never ends holds what a run refers to.
    let holder = cluster.admin().await;
    let hold =
        format!("begin; select from helper.workflow_versions v where v.workflow_id = '{}' for update", shop.workflow);
    holder.run(&hold).await;
    shop.member.run("select helper.emit_event('e', '{\"n\": 1}'); select helper.emit_event('f', '{\"n\": 2}')").await;
    other.member.run("select helper.emit_event('e', '{\"n\": 3}')").await;
    let started = "select array_agg((r.input ->> 'n')::integer order by r.input ->> 'n') from helper.workflow_runs r";
    until("the others to be delivered", async || {
        let started: Option<Vec<i32>> = shop.root.query_one(started, &[]).await.unwrap().get(0);
        (started? == [2, 3]).then_some(())
    })
    .await;
    // Its admins see it, and nobody else.
    let told = "select e.problem from helper.workflow_events e where e.attempts > 0";
    let problem: String =
        until("the admins to be told", async || shop.admin.query_opt(told, &[]).await.unwrap().map(|row| row.get(0)))
            .await;
    assert_eq!(problem, "canceling statement due to lock timeout");
    for session in [&shop.member, &other.admin] {
        assert!(session.query_opt(told, &[]).await.unwrap().is_none());
    }
    holder.run("rollback").await;
    until("it to be delivered", async || (shop.inputs().await == [json!({ "n": 1 })]).then_some(())).await;
    // One that is never delivered is given up.
    holder.run(&hold).await;
    shop.member.run("select helper.emit_event('e', '{\"n\": 4}')").await;
    let given_up = "select e.attempts from helper.workflow_events e where e.deliver_at = 'infinity'";
    let attempts: i32 = until("it to be given up", async || {
        shop.root.run("update helper.workflow_events set deliver_at = '-infinity' where deliver_at < 'infinity'").await;
        shop.root.run("select helper._deliver_events()").await;
        shop.admin.query_opt(given_up, &[]).await.unwrap().map(|row| row.get(0))
    })
    .await;
    assert_eq!(attempts, 20);
    holder.run("rollback").await;
    assert!(shop.root.one::<bool>("select helper._deliver_events() is null", &[]).await);
    assert_eq!(shop.inputs().await, [json!({ "n": 1 })]);
    shop.root.run("select helper._clean_runs(0, 1)").await;
    assert!(shop.admin.query_opt(given_up, &[]).await.unwrap().is_none());
}

#[tokio::test]
async fn an_input_that_does_not_fit_ends_a_run_before_its_first_step_whatever_started_it() {
    let cluster = Arc::new(Cluster::start().await);
    let shop = Shop::on(Arc::clone(&cluster)).await;
    let definition = r#"{"input": {"type": "object", "required": ["order"], "properties": {"order": {"type": "integer"}}},
        "concurrency": {"limit": 2}, "steps": [{"name": "hold", "type": "wait", "for": "1 day"}]}"#;
    shop.admin.run(&format!("select helper.create_workflow('w', '{definition}')")).await;
    let parent = r#"{"steps": [{"name": "sub", "type": "workflow", "workflow": "w", "input": {"order": "six"}}]}"#;
    shop.admin.run(&format!("select helper.create_workflow('parent', '{parent}')")).await;
    shop.admin.run("select helper.on_event('w', 'e')").await;
    let claims: String = shop.admin.one("select current_setting('request.jwt.claims')", &[]).await;
    shop.root.claims(&serde_json::from_str(&claims).unwrap()).await;
    shop.root.run("create table public.rows (n int); select helper.on_table('w', 'public.rows')").await;
    let (endpoint, secret) = shop.endpoint("standard").await;
    let body = r#"{"order": "one"}"#;
    shop.hourly(r#"{"input": {"order": "two"}, "overlap": "allow"}"#).await;
    shop.look("10:00").await;
    shop.member.run("select helper.emit_event('e', '{\"order\": \"three\"}')").await;
    shop.root.run("insert into public.rows values (4)").await;
    send(&stranger(&cluster).await, &endpoint, &signed(&secret, "one", now(), body), body).await.unwrap();
    let run: String = shop.admin.one("select helper.run_workflow('parent')::text", &[]).await;
    let wanted = json!(["event", "schedule", "table", "webhook", "workflow"]);
    let failed = "select coalesce(jsonb_agg(r.trigger ->> 'kind' order by r.trigger ->> 'kind'), '[]') \
         from helper.workflow_runs r join helper.workflow_failures f on f.run_id = r.id \
         where r.workflow_id = $1::text::uuid and r.started_at is null and f.error_code = '22023' \
           and f.message = 'input does not fit the workflow''s schema' and f.detail like 'At \"%\": %' \
           and not exists (select from helper.workflow_steps s where s.run_id = r.id)";
    until("all of them to fail", async || {
        let kinds: Value = shop.root.one(failed, &[&shop.workflow]).await;
        (kinds == wanted).then_some(())
    })
    .await;
    let places = "select array_agg(f.detail order by f.detail) from helper.workflow_failures f join helper.workflow_runs r on r.id = f.run_id \
         where r.trigger ->> 'kind' = 'event'";
    let places: Vec<String> = shop.member.one(places, &[]).await;
    assert!(places[0].starts_with("At \"/order\": "), "{places:?}");
    let parent = until("the parent to fail", async || {
        let told: Value = shop.admin.one("select helper.run_status($1::text::uuid)", &[&run]).await;
        (told["status"] == "failed").then_some(told)
    })
    .await;
    assert_eq!((&parent["error"]["sqlstate"], &parent["error"]["step"]), (&json!("22023"), &json!("sub")));
    // What fits goes on, and so does what it is repeated as; the failures took nobody's place.
    shop.member.run("select helper.emit_event('e', '{\"order\": 7}')").await;
    let going = async |count: i64| {
        until("runs to go on", async || {
            let sql = "select count(*) from helper.workflow_activity a where a.workflow = 'w' and a.status = 'waiting'";
            (shop.admin.one::<i64>(sql, &[]).await == count).then_some(())
        })
        .await;
    };
    going(1).await;
    let first: String =
        shop.root.one("select r.id::text from helper.workflow_runs r where r.status = 'waiting'", &[]).await;
    shop.admin.run(&format!("select helper.cancel_run('{first}')")).await;
    going(0).await;
    shop.admin.run(&format!("select helper.replay_run('{first}')")).await;
    going(1).await;
}

#[tokio::test]
async fn events_stay_in_their_workspace_and_in_order() {
    let (one, other) = (Shop::open().await, Shop::open().await);
    for shop in [&one, &other] {
        shop.admin.run("select helper.on_event('w', 'e')").await;
    }
    for n in 0..50 {
        one.member.run(&format!("select helper.emit_event('e', '{{\"n\": {n}}}')")).await;
    }
    let expected: Vec<Value> = (0..50).map(|n| json!({ "n": n })).collect();
    assert_eq!(one.delivered().await, expected);
    assert_eq!(other.delivered().await, [Value::Null; 0]);
    // One workspace's backlog leaves the other its turn. Nobody else delivers what is not committed.
    let sent = "insert into helper.workflow_events (workspace_id, name, payload, depth)";
    let count: i64 = {
        one.root
            .run(&format!(
                "begin; {sent} select '{}', 'e', '{{}}', 0 from generate_series(1, 500); {sent} values ('{}', 'e', '{{}}', 0); \
                 select helper._deliver_events(20)",
                one.workspace, other.workspace
            ))
            .await;
        let sql = "select count(*) from helper.workflow_runs r where r.workflow_id = $1::text::uuid";
        let count = one.root.one(sql, &[&other.workflow]).await;
        one.root.run("rollback").await;
        count
    };
    assert_eq!(count, 1);
}

#[tokio::test]
async fn contacts_and_their_tags_are_told_where_somebody_listens() {
    let shop = Shop::open().await;
    shop.member.run("select helper.create_contact('+628125555001', 'Unheard')").await;
    shop.admin
        .run("select helper.on_event('w', 'contact_created'), helper.on_event('w', 'tag_added', '@.payload.tag == \"vip\"')")
        .await;
    shop.member.run("select helper.create_contact('+628125555002', 'Ani')").await;
    let id: String = shop.member.one("select c.id::text from helper.contacts c where c.name = 'Ani'", &[]).await;
    shop.member.run(&format!("select helper.tag_contact('{id}', '{{new,vip}}')")).await;
    shop.member.run(&format!("select helper.tag_contact('{id}', '{{vip,other}}')")).await;
    let inputs = shop.delivered().await;
    assert_eq!(inputs.len(), 2);
    assert_eq!((&inputs[0]["name"], &inputs[0]["phone"]), (&json!("Ani"), &json!("+628125555002")));
    assert_eq!(
        inputs[1],
        json!({ "contact_id": id, "tag": "vip", "phone": "+628125555002", "phone_number": "+628125555002", "name": "Ani" })
    );
}

#[tokio::test]
async fn rows_that_change_start_the_workflow_of_their_workspace() {
    let (shop, other) = (Shop::open().await, Shop::open().await);
    let table = format!("public.orders_{}", shop.workflow.replace('-', ""));
    let (ours, theirs) = (&shop.workspace, &other.workspace);
    shop.root
        .run(&format!(
            "create table {table} (id int primary key, workspace_id uuid, total numeric, note text, n int, o int)"
        ))
        .await;
    let claims: String = shop.admin.one("select current_setting('request.jwt.claims')", &[]).await;
    let root = &shop.root;
    root.claims(&serde_json::from_str(&claims).unwrap()).await;
    root.run(&format!(
        "select helper.on_table('w', '{table}', condition => '@.operation == ''delete'' || @.new.total >= 10', workspace_column => 'workspace_id')"
    ))
    .await;
    root.run(&format!("begin; insert into {table} values (9, '{ours}', 99); rollback")).await;
    root.run(&format!(
        "insert into {table} values (1, '{ours}', 10, 'a'), (2, '{ours}', 9, null), (3, '{theirs}', 99, null), (4, null, 99, null)"
    ))
    .await;
    root.run(&format!("update {table} set total = total + 1 where id <= 3")).await;
    // A row that comes from another workspace leaves behind what it was there.
    root.run(&format!("update {table} set workspace_id = '{ours}' where id = 3")).await;
    root.run(&format!("delete from {table} where id in (1, 4)")).await;
    let row = |id: i32, total: i32, note: Option<&str>| json!({ "id": id, "workspace_id": ours, "total": total, "note": note, "n": null, "o": null });
    assert_eq!(
        shop.delivered().await,
        [
            json!({ "operation": "insert", "new": row(1, 10, Some("a")) }),
            json!({ "operation": "update", "new": row(1, 11, Some("a")), "old": row(1, 10, Some("a")) }),
            json!({ "operation": "update", "new": row(2, 10, None), "old": row(2, 9, None) }),
            json!({ "operation": "update", "new": row(3, 100, None), "old": null }),
            json!({ "operation": "delete", "old": row(1, 11, Some("a")) }),
        ]
    );
    // A row that is too large is told without what is in it.
    root.run(&format!(
        "begin; insert into {table} values (5, '{ours}', 10, (select string_agg(gen_random_uuid()::text, '') from generate_series(1, 10000)))"
    ))
    .await;
    let waits: Value =
        root.one("select e.payload from helper.workflow_events e where e.workspace_id = $1::text::uuid", &[ours]).await;
    root.run("rollback").await;
    assert_eq!(waits, json!({ "operation": "insert", "too_large": true }));
    // With the workflow's trigger its table's triggers go.
    root.run(&format!("select helper.remove_trigger(t.id) from helper.workflow_event_triggers t where t.relation = '{table}'::regclass")).await;
    let left: i64 =
        root.one(&format!("select count(*) from pg_trigger t where t.tgrelid = '{table}'::regclass"), &[]).await;
    assert_eq!(left, 0);
    root.run(&format!("drop table {table}")).await;
}

#[tokio::test]
async fn a_table_is_followed_by_whoever_may_and_for_all_rows_by_its_owner() {
    let shop = Shop::open().await;
    let table = format!("public.followed_{}", shop.workflow.replace('-', ""));
    shop.root.run(&format!("create table {table} (id int primary key, workspace_id uuid, other text)")).await;
    let follow = |column: &str| format!("select helper.on_table('w', '{table}', workspace_column => {column})");
    let refused = async |session: &Session, column: &str| session.error(&follow(column)).await.code().clone();
    assert_eq!(refused(&shop.admin, "'workspace_id'").await, SqlState::INSUFFICIENT_PRIVILEGE);
    shop.root.run(&format!("grant select, trigger on {table} to authenticated")).await;
    assert_eq!(refused(&shop.member, "'workspace_id'").await, SqlState::INSUFFICIENT_PRIVILEGE);
    assert_eq!(refused(&shop.admin, "null").await, SqlState::INSUFFICIENT_PRIVILEGE);
    assert_eq!(refused(&shop.admin, "'other'").await, SqlState::UNDEFINED_OBJECT);
    shop.admin.run(&follow("'workspace_id'")).await;
    shop.root.run(&format!("alter table {table} enable row level security")).await;
    assert_eq!(refused(&shop.admin, "'workspace_id'").await, SqlState::INSUFFICIENT_PRIVILEGE);
    // Its owner changes the column's type: nothing is told, no writer is kept from writing, and it says so.
    shop.root
        .run(&format!("alter table {table} alter workspace_id type text; insert into {table} values (1, 'x')"))
        .await;
    assert_eq!(shop.delivered().await, [Value::Null; 0]);
    let problem: String = shop
        .member
        .one("select t.problem from helper.workflow_event_triggers t where t.relation is not null", &[])
        .await;
    assert!(problem.ends_with("has no column \"workspace_id\" of type uuid any more"), "{problem}");
    shop.root.run(&format!("drop table {table}")).await;
    // The workflow's other triggers can still be removed.
    shop.admin.run("select helper.remove_trigger(t.id) from helper.workflow_event_triggers t").await;
}

#[tokio::test]
async fn a_chain_of_workflows_ends_at_the_eighth() {
    let shop = Shop::open().await;
    let table = format!("public.chain_{}", shop.workflow.replace('-', ""));
    let claims: String = shop.admin.one("select current_setting('request.jwt.claims')", &[]).await;
    shop.root.claims(&serde_json::from_str(&claims).unwrap()).await;
    shop.root
        .run(&format!("create table {table} (id int primary key, workspace_id uuid default '{}')", shop.workspace))
        .await;
    shop.root
        .run(&format!("select helper.on_event('w', 'e'); select helper.on_table('w', '{table}', '{{insert}}')"))
        .await;
    // As the engine does while a run's steps are done.
    shop.root.run(&format!("begin; set local helper_ai.workflow_depth = 7; select helper.emit_event('e'); insert into {table} values (1); commit")).await;
    shop.delivered().await;
    let depths: Vec<i32> = shop
        .root
        .query("select r.depth from helper.workflow_runs r where r.workflow_id = $1::text::uuid", &[&shop.workflow])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(depths, [8, 8]);
    shop.root.run("set helper_ai.workflow_depth = 8").await;
    let error = shop.root.error("select helper.emit_event('e')").await;
    assert_eq!((error.code().code(), error.message()), ("53400", "workflows start one another too deep"));
    shop.root.run(&format!("insert into {table} values (2)")).await;
    assert_eq!(shop.delivered().await.len(), 2);
    let problem: String = shop
        .root
        .one(
            &format!("select t.problem from helper.workflow_event_triggers t where t.relation = '{table}'::regclass"),
            &[],
        )
        .await;
    assert!(problem.starts_with("workflows start one another too deep"), "{problem}");
    // Nobody lowers it for themselves.
    let error = shop.member.error("set helper_ai.workflow_depth = 0").await;
    assert_eq!(error.code(), &SqlState::INSUFFICIENT_PRIVILEGE);
    shop.root.run(&format!("drop table {table}")).await;
}

#[tokio::test]
async fn a_signed_request_starts_one_run_however_often_it_comes() {
    let shop = Shop::open().await;
    let (endpoint, secret) = shop.endpoint("standard").await;
    let anon = stranger(&shop.cluster).await;
    let body = "{\"order\": 7,\n \"city\": \"Yogyakarta\"}";
    let first = signed(&secret, "msg_1", now(), body);
    let run = send(&anon, &endpoint, &first, body).await.unwrap();
    assert_eq!(send(&anon, &endpoint, &first, body).await.unwrap(), run);
    // Signed anew at another time, it is still the same delivery.
    assert_eq!(send(&anon, &endpoint, &signed(&secret, "msg_1", now() - 60, body), body).await.unwrap(), run);
    // In any order.
    let second = send(&anon, &endpoint, &signed(&secret, "msg_3", now() - 10, body), body).await.unwrap();
    let third = send(&anon, &endpoint, &signed(&secret, "msg_2", now() - 20, body), body).await.unwrap();
    assert!(run != second && second != third);
    assert_eq!(shop.inputs().await[0], json!({ "order": 7, "city": "Yogyakarta" }));
    assert_eq!(shop.inputs().await.len(), 3);
    let text = send(&anon, &endpoint, &signed(&secret, "msg_4", now(), "no json"), "no json").await;
    assert_eq!(text, Err("22023 body is not JSON".into()));
    shop.admin.run("select helper.pause_workflow('w')").await;
    let paused = send(&anon, &endpoint, &signed(&secret, "msg_5", now(), body), body).await;
    assert_eq!(paused, Err("55000 the workflow is paused".into()));
}

#[tokio::test]
async fn what_is_stale_cut_changed_or_signed_by_another_is_refused_alike() {
    let shop = Shop::open().await;
    let (endpoint, secret) = shop.endpoint("standard").await;
    let anon = stranger(&shop.cluster).await;
    let body = "{\"order\": 7}";
    let good = signed(&secret, "msg_1", now(), body);
    let wrong = [
        (&endpoint, signed(&secret, "msg_1", now() - 310, body), body),
        (&endpoint, signed(&secret, "msg_1", now() + 310, body), body),
        (&endpoint, good.clone(), "{\"order\": 7"),
        (&endpoint, good.clone(), "{\"order\": 8}"),
        (&endpoint, good.clone(), ""),
        (&endpoint, signed(&signature::secret(&[5; 32]), "msg_1", now(), body), body),
        (&endpoint, json!({}), body),
        (&endpoint, json!([]), body),
        (&endpoint, json!({ "webhook-id": 1, "webhook-timestamp": now(), "webhook-signature": null }), body),
        (&endpoint, json!({}), "hub.mode=subscribe&hub.challenge=1&hub.verify_token="),
        (&"wh_0".to_owned(), good.clone(), body),
        (&String::new(), good.clone(), body),
    ];
    for (endpoint, headers, body) in wrong {
        assert_eq!(send(&anon, endpoint, &headers, body).await, Err(REFUSED.into()), "{headers} {body}");
    }
    let huge = format!("{{\"order\": \"{}\"}}", "7".repeat(10 * 1024 * 1024));
    for endpoint in [&endpoint, "wh_0"] {
        let sent = send(&anon, endpoint, &signed(&secret, "msg_1", now(), &huge), &huge).await;
        assert_eq!(sent, Err("53400 request is too large".into()));
    }
    assert_eq!(shop.inputs().await, [Value::Null; 0]);
    send(&anon, &endpoint, &good, body).await.unwrap();
}

#[tokio::test]
async fn a_rotated_secret_is_good_for_a_while_and_the_one_before_it_no_longer() {
    let shop = Shop::open().await;
    let (endpoint, first) = shop.endpoint("standard").await;
    let anon = stranger(&shop.cluster).await;
    let mut count = 0;
    let mut good = async |secret: &str| {
        count += 1;
        send(&anon, &endpoint, &signed(secret, &format!("msg_{count}"), now(), "{}"), "{}").await.is_ok()
    };
    let second: String = shop.admin.one("select helper.rotate_webhook_secret($1)", &[&endpoint]).await;
    assert!(good(&first).await && good(&second).await);
    let third: String = shop.admin.one("select helper.rotate_webhook_secret($1)", &[&endpoint]).await;
    assert!(!good(&first).await && good(&second).await && good(&third).await);
    let last: String = shop.admin.one("select helper.rotate_webhook_secret($1, '0')", &[&endpoint]).await;
    assert!(!good(&third).await && good(&last).await);
    shop.admin.run(&format!("select helper.remove_webhook('{endpoint}')")).await;
    assert!(!good(&last).await);
}

#[tokio::test]
async fn github_and_meta_sign_with_secrets_of_their_own() {
    let shop = Shop::open().await;
    let anon = stranger(&shop.cluster).await;
    let (github, _) = shop.endpoint("github").await;
    shop.admin
        .run(&format!(
            "insert into helper.workflow_webhook_keys (endpoint, key) values ('{github}', 'chosen-at-github-1')"
        ))
        .await;
    let headers = signature::signed(Kind::Hub, b"chosen-at-github-1", "", 0, b"{\"zen\": 1}").unwrap();
    let run = send(&anon, &github, &headers, "{\"zen\": 1}").await.unwrap();
    // Another delivery's number changes nothing: it is not signed.
    let mut again = headers.clone();
    again["X-GitHub-Delivery"] = "other".into();
    assert_eq!(send(&anon, &github, &again, "{\"zen\": 1}").await.unwrap(), run);
    assert_eq!(send(&anon, &github, &headers, "{\"zen\": 2}").await, Err(REFUSED.into()));
    let made: Value = shop.admin.one("select helper.create_webhook('w', 'meta', 'meta')", &[]).await;
    let meta = made["endpoint"].as_str().unwrap();
    let question = format!(
        "hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token={}",
        made["verify_token"].as_str().unwrap()
    );
    assert_eq!(send(&anon, meta, &json!({}), &question).await.unwrap(), "1158201444");
    assert_eq!(send(&anon, meta, &json!({}), &format!("{question}0")).await, Err(REFUSED.into()));
    assert_eq!(send(&anon, &github, &json!({}), &question).await, Err(REFUSED.into()));
    let short = shop.admin.error(&format!("insert into helper.workflow_webhook_keys values ('{meta}', 'short')")).await;
    assert_eq!((short.code().code(), short.message()), ("22023", "key is not valid"));
    let not_mine = shop
        .member
        .error(&format!("insert into helper.workflow_webhook_keys values ('{meta}', 'long enough, really')"))
        .await;
    assert_eq!(not_mine.code(), &SqlState::UNDEFINED_OBJECT);
}

#[tokio::test]
async fn an_endpoint_takes_so_many_a_second_and_a_stranger_uses_none_of_them_up() {
    let shop = Shop::open().await;
    let made: Value =
        shop.admin.one("select helper.create_webhook('w', 'n', options => '{\"per_second\": 5}')", &[]).await;
    let (endpoint, secret) = (made["endpoint"].as_str().unwrap(), made["secret"].as_str().unwrap());
    let anon = stranger(&shop.cluster).await;
    // In one statement, whose second is not known: a second one may begin meanwhile.
    let (body, time) = ("{}", now());
    for _ in 0..20 {
        assert_eq!(send(&anon, endpoint, &json!({}), body).await, Err(REFUSED.into()));
    }
    let mut outcomes = Vec::new();
    for n in 0..40 {
        outcomes.push(send(&anon, endpoint, &signed(secret, &format!("m{n}"), time, body), body).await);
    }
    let refused = outcomes.iter().filter(|outcome| **outcome == Err("53400 too many requests".into())).count();
    let accepted = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(refused + accepted, 40);
    assert!(outcomes[..5].iter().all(Result::is_ok) && refused > 0, "{outcomes:?}");
}

#[tokio::test]
async fn secrets_of_webhooks_are_nowhere_to_be_read() {
    let shop = Shop::open().await;
    let (endpoint, secret) = shop.endpoint("standard").await;
    let given = signature::secret(&[77; 32]);
    shop.admin.run(&format!("insert into helper.workflow_webhook_keys values ('{endpoint}', '{given}')")).await;
    for session in [&shop.admin, &shop.member] {
        let error = session.error("select * from helper.workflow_webhook_secrets").await;
        assert_eq!(error.code(), &SqlState::INSUFFICIENT_PRIVILEGE);
    }
    let shown: i64 = shop.admin.one("select count(*) from helper.workflow_webhook_keys", &[]).await;
    let listed: i64 = shop.admin.one("select count(*) from helper.workflow_webhooks", &[]).await;
    let hidden: i64 = shop.member.one("select count(*) from helper.workflow_webhooks", &[]).await;
    assert_eq!((shown, listed, hidden), (0, 1, 0));
    let dump = shop.cluster.program("pg_dump").args(["-d", &shop.cluster.url("postgres")]).output().unwrap();
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    assert!(dump.contains(&endpoint) && !dump.contains(&secret) && !dump.contains(&given));
    // A key that is refused is in no error and in no log.
    let wrong = "wrong-but-secret-all-the-same";
    let error =
        shop.admin.error(&format!("insert into helper.workflow_webhook_keys values ('{endpoint}', '{wrong}')")).await;
    assert!(!format!("{error:?}").contains(wrong));
    assert!(!shop.cluster.log().contains(wrong) && !shop.cluster.log().contains(&secret));
}

#[tokio::test]
async fn a_server_that_was_down_makes_up_for_what_the_policy_says() {
    let cluster = Arc::new(Cluster::start().await);
    let mut shops = Vec::new();
    for (options, expected, missed) in [
        ("{}", vec![12], 2),
        (r#"{"misfire": "skip"}"#, vec![], 3),
        (r#"{"misfire": "backfill", "backfill": "2 hours", "overlap": "allow"}"#, vec![11, 12], 1),
        (r#"{"misfire": "backfill", "overlap": "allow"}"#, vec![10, 11, 12], 0),
    ] {
        let shop = Shop::on(Arc::clone(&cluster)).await;
        let id = shop.hourly(options).await;
        shops.push((shop, id, expected, missed));
    }
    cluster.restart();
    for (shop, ..) in &mut shops {
        shop.root = cluster.admin().await;
        shop.root.run("set timezone = 'UTC'").await;
    }
    assert_eq!(shops[0].0.look("12:20").await.as_deref(), Some("01 13:00"));
    for (shop, id, expected, missed) in &shops {
        assert_eq!(shop.hours().await, *expected, "{id}");
        let told: i64 =
            shop.root.one("select s.missed from helper.workflow_schedules s where s.id = $1::text::uuid", &[id]).await;
        assert_eq!(told, *missed);
    }
    // Nothing more is due, nor when the clock is set back.
    for time in ["12:30", "09:30", "12:59"] {
        shops[0].0.look(time).await;
        for (shop, _, expected, _) in &shops {
            assert_eq!(shop.hours().await, *expected);
        }
    }
}

#[tokio::test]
async fn a_fire_time_is_started_once_whoever_looks_and_whatever_was_forgotten() {
    let cluster = Arc::new(Cluster::start().await);
    let shop = Shop::on(Arc::clone(&cluster)).await;
    let id = shop.hourly(r#"{"overlap": "allow"}"#).await;
    let look = "select helper._fire_schedules('2030-01-01 10:00:01Z')";
    let (one, other) = (cluster.admin().await, cluster.admin().await);
    one.run("begin").await;
    one.run(look).await;
    // The other finds the row taken.
    other.run(look).await;
    one.run("commit").await;
    other.run(look).await;
    assert_eq!(shop.hours().await, [10]);
    // A server that took over knows less of the schedule than of the run.
    shop.root
        .run(&format!("update helper.workflow_schedules set done_through = '2030-01-01 09:00Z', look_at = '2030-01-01 10:00Z' where id = '{id}'"))
        .await;
    shop.look("10:00").await;
    assert_eq!(shop.hours().await, [10]);
    // Everything of a minute that is not one's own is not waited for: several at once.
    shop.look("11:00").await;
    assert_eq!(shop.hours().await, [10, 11]);
}

#[tokio::test]
async fn a_run_that_goes_on_is_met_as_the_overlap_policy_says() {
    let cluster = Arc::new(Cluster::start().await);
    let mut shops = Vec::new();
    for overlap in ["skip", "queue", "allow", "cancel"] {
        let shop = Shop::on(Arc::clone(&cluster)).await;
        let id = shop.hourly(&json!({ "overlap": overlap }).to_string()).await;
        shops.push((shop, id));
    }
    for time in ["10:00", "11:00", "12:00"] {
        shops[0].0.look(time).await;
    }
    let statuses = async |shop: &Shop| {
        let sql = "select r.status from helper.workflow_runs r where r.workflow_id = $1::text::uuid order by r.trigger ->> 'at'";
        let rows = shop.root.query(sql, &[&shop.workflow]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect::<Vec<String>>()
    };
    let mut seen = Vec::new();
    for (shop, id) in &shops {
        let skipped: i64 =
            shop.root.one("select s.skipped from helper.workflow_schedules s where s.id = $1::text::uuid", &[id]).await;
        seen.push((shop.hours().await, skipped));
    }
    assert_eq!(seen, [(vec![10], 2), (vec![10], 1), (vec![10, 11, 12], 0), (vec![10, 11, 12], 0)]);
    until("the former runs to be cancelled", async || {
        let statuses = statuses(&shops[3].0).await;
        (statuses[..2] == ["cancelled", "cancelled"] && statuses[2] != "cancelled").then_some(())
    })
    .await;
    // The one that waits starts when the one before it has ended.
    let queue = &shops[1].0;
    let run: String = queue
        .root
        .one("select r.id::text from helper.workflow_runs r where r.workflow_id = $1::text::uuid", &[&queue.workflow])
        .await;
    queue.admin.run(&format!("select helper.cancel_run('{run}')")).await;
    until("the run that waited", async || {
        queue.look("12:30").await;
        (queue.hours().await == [10, 11]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_schedule_that_cannot_be_read_is_refused_and_one_that_fails_keeps_no_other_waiting() {
    let cluster = Arc::new(Cluster::start().await);
    let shop = Shop::on(Arc::clone(&cluster)).await;
    for (arguments, message) in [
        ("'w', '* * * *'", "cron expression is not valid"),
        ("'w', '0 0 31 2 *'", "cron expression never fires"),
        ("'w', '0 9 * * *', 'Mars/Olympus'", "time zone \"Mars/Olympus\" is not known"),
        ("'w', '0 9 * * *', options => '{\"jitter\": \"2 days\"}'", "jitter is out of range"),
        ("'w', '0 9 * * *', options => '{\"misfire\": \"never\"}'", "misfire \"never\" is not known"),
        (
            "'w', '0 9 * * *', options => jsonb_build_object('input', jsonb_build_object('x', repeat('x', 1100000)))",
            "input of a schedule is too large",
        ),
        ("'w', '0 9 * * *', options => '{\"speed\": 1}'", "option \"speed\" of a schedule does not exist"),
        ("'other', '0 9 * * *'", "workflow \"other\" does not exist"),
    ] {
        assert_eq!(shop.admin.error(&format!("select helper.schedule_workflow({arguments})")).await.message(), message);
    }
    let other = Shop::on(Arc::clone(&cluster)).await;
    let broken = shop.hourly("{}").await;
    other.hourly("{}").await;
    shop.root.run(&format!("update helper.workflow_schedules set time_zone = 'Gone/Away' where id = '{broken}'")).await;
    shop.look("10:00").await;
    assert_eq!((shop.hours().await, other.hours().await), (vec![], vec![10]));
    let problem: String = shop
        .member
        .one("select s.problem from helper.workflow_schedules s where s.id = $1::text::uuid", &[&broken])
        .await;
    assert_eq!(problem, "time zone \"Gone/Away\" is not known");
    assert_eq!(shop.admin.one::<i64>("select helper.unschedule_workflow('w')", &[]).await, 1);
}

#[tokio::test]
async fn a_paused_workflow_lets_its_times_pass() {
    let cluster = Arc::new(Cluster::start().await);
    let shop = Shop::on(cluster).await;
    shop.hourly("{}").await;
    shop.admin.run("select helper.pause_workflow('w')").await;
    shop.look("10:00").await;
    shop.admin.run("select helper.resume_workflow('w')").await;
    shop.look("10:30").await;
    shop.look("11:00").await;
    assert_eq!(shop.hours().await, [11]);
}

#[tokio::test]
async fn pg_cron_starts_a_workflow() {
    let cluster = Cluster::with(
        "shared_preload_libraries = 'helper_ai, pg_cron'\ncron.use_background_workers = on\nmax_worker_processes = 32",
    )
    .await;
    let root = cluster.admin().await;
    root.run(&format!(
        "create extension pg_cron; select helper.create_workspace('Shop'); select helper.create_workflow('daily_report', '{HOLD}')"
    ))
    .await;
    // Not so short before the next minute, its beat, that it comes and goes meanwhile; nor so long that nobody waits for it.
    until("the first seconds of a minute to pass", async || {
        root.one::<bool>("select extract(second from clock_timestamp()) between 5 and 55", &[]).await.then_some(())
    })
    .await;
    root.run(
        "select cron.schedule('report', '* * * * *',
           $$select helper.run_workflow('daily_report', idempotency_key => current_date::text)$$)",
    )
    .await;
    let kind: String = until("the run that pg_cron starts", async || {
        let rows = root.query("select r.trigger ->> 'kind' from helper.workflow_runs r", &[]).await.unwrap();
        rows.first().map(|row| row.get(0))
    })
    .await;
    assert_eq!(kind, "manual");
}
