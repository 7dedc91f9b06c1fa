//! The tools that come with the extension: each does what it says for who may, nothing for anybody else, and shows in a
//! preview what it would do; WhatsApp's outbox and webhook; a select that somebody else wrote.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod tenants;

use cluster::Session;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tenants::World;
use tenants::actions::{ACTIONS, Action};

/// The superuser as somebody of a tenant: who can be themselves again inside a transaction, and see everything.
async fn pretend(world: &World, tenant: usize, role: &str) -> Session {
    let session = world.cluster.admin().await;
    let sub = &world.tenants[tenant].people[role];
    session.run("set role authenticated").await;
    session.claims(&json!({ "sub": sub, "role": "authenticated" })).await;
    session
}

/// Every row of a tenant, in every table that has tenants' rows.
async fn rows_of(session: &Session, tables: &[String], workspace: &str) -> String {
    let each: Vec<String> = tables
        .iter()
        .map(|table| {
            format!("select '{table}' || t::text as line from helper.{table} t where t.workspace_id = '{workspace}'")
        })
        .collect();
    session
        .one(&format!("select md5(string_agg(x.line, '|' order by x.line)) from ({}) x", each.join(" union all ")), &[])
        .await
}

async fn tables_with_tenants(session: &Session) -> Vec<String> {
    session
        .query(
            // But for what the worker tidies in its own time, whoever it belongs to.
            "select c.relname::text from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'workspace_id' \
             where c.relnamespace = 'helper'::regnamespace and c.relkind = 'r' \
               and c.relname not in ('knowledge_stats', 'knowledge_blocks', 'knowledge_loose') order by 1",
            &[],
        )
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect()
}

async fn install_all(world: &World) {
    for tenant in 0..2 {
        let admin = world.be(tenant, "admin").await;
        admin.run("select helper.install_pack(p.pack) from helper.list_packs() p where p.pack <> 'builtin'").await;
    }
}

async fn call(session: &Session, action: &Action, arguments: &Value) -> Value {
    session.one("select helper.call_status(helper.call($1, $2))", &[&action.name, arguments]).await
}

#[tokio::test]
async fn every_tool_works_for_who_may_call_it_after_a_preview_and_for_nobody_else() {
    let world = World::new().await;
    install_all(&world).await;
    let registered: BTreeSet<String> = world
        .admin
        .query("select f.function_name from helper.functions f where f.pack is not null", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    let expected: BTreeSet<String> = ACTIONS.iter().map(|action| action.name.to_owned()).collect();
    assert_eq!(registered, expected, "every tool has an action that tries it");
    let asking: BTreeSet<String> = world
        .admin
        .query(
            "select f.function_name from helper.functions f where f.requires_confirmation and f.pack is not null",
            &[],
        )
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    let dangerous = [
        "change_member_role",
        "create_product",
        "create_template",
        "import_contacts",
        "invite_team_member",
        "merge_contacts",
        "schedule_message",
        "send_broadcast",
        "send_notification",
        "send_whatsapp_message",
        "send_whatsapp_template",
        "workflow_approval",
    ];
    assert_eq!(asking, dangerous.iter().map(|name| (*name).to_owned()).collect(), "what asks first");
    // So that each can be previewed.
    world.admin.run("update helper.functions set requires_confirmation = true where pack is not null").await;
    let tables = tables_with_tenants(&world.admin).await;
    let mut worked = 0;
    for action in ACTIONS {
        let name = action.name;
        let fill = |text: &str, role| world.fill(text, 0, role);
        let arguments: Value = serde_json::from_str(&fill(action.arguments, action.minimum)).unwrap();

        // Whoever may not
        let refused = pretend(&world, 0, action.refused()).await;
        let denied = refused
            .error(&format!(
                "select helper.call('{name}', '{}', '{}')",
                arguments.to_string().replace('\'', "''"),
                world.tenants[0].workspace
            ))
            .await;
        let code = if action.refused() == "outsider" { "42704" } else { "42501" };
        assert_eq!(denied.code().code(), code, "{name} as {}: {denied:?}", action.refused());

        // Whoever may
        let session = pretend(&world, 0, action.minimum).await;
        session.run("begin").await;
        let foreign = async || {
            session.run("reset role").await;
            let rows = rows_of(&session, &tables, &world.tenants[1].workspace).await;
            session.run("set role authenticated").await;
            rows
        };
        let own = async || {
            session.run("reset role").await;
            let others: Vec<String> = tables.iter().filter(|table| *table != "function_calls").cloned().collect();
            let rows = rows_of(&session, &others, &world.tenants[0].workspace).await;
            session.run("set role authenticated").await;
            rows
        };
        let foreign_before = foreign().await;
        let made = call(&session, action, &arguments).await;
        assert_eq!(made["status"], "awaiting_confirmation", "{name}: {made}");
        let id = made["id"].as_str().unwrap();
        let own_before = own().await;
        let previewed: Value = session.one(&format!("select helper.preview('{id}')"), &[]).await;
        assert_eq!(previewed["preview"]["error"], Value::Null, "{name}: {previewed}");
        let changes = previewed["preview"]["tables"].as_array().map_or(0, Vec::len);
        assert_eq!(changes > 0, action.writes, "{name}: {previewed}");
        assert_eq!(own().await, own_before, "{name}: the preview changed something");
        let ended: Value = session.one(&format!("select helper.confirm('{id}')"), &[]).await;
        assert_eq!(ended["status"], "succeeded", "{name}: {ended}");
        let shows = format!("select {} from (select $1::jsonb as r) x", fill(action.shows, action.minimum));
        let shown: bool = session.one(&shows, &[&ended["result"]]).await;
        assert!(shown, "{name}: {} is not so: {}", fill(action.shows, action.minimum), ended["result"]);
        if !action.writes {
            assert_eq!(own().await, own_before, "{name} changed something");
        }
        assert_eq!(foreign().await, foreign_before, "{name} touched another tenant");
        session.run("rollback").await;
        worked += 1;
    }
    assert!(worked >= 50, "{worked} functions work");
    println!("{worked} functions work");
}

#[tokio::test]
async fn a_pack_is_off_until_an_admin_installs_it() {
    let world = World::new().await;
    let member = world.be(0, "member").await;
    let admin = world.be(0, "admin").await;
    let refused = member.error("select helper.call('get_pipeline')").await;
    assert_eq!(refused.code().code(), "42704");
    assert_eq!(member.error("select helper.install_pack('crm')").await.code().code(), "42501");
    assert_eq!(admin.one::<i32>("select helper.install_pack('crm')", &[]).await, 11);
    let made: Value = member.one("select helper.call_status(helper.call('get_pipeline'))", &[]).await;
    assert_eq!(made["status"], "succeeded", "{made}");
    // Only there
    assert_eq!(world.be(1, "member").await.error("select helper.call('get_pipeline')").await.code().code(), "42704");
    let installed: Vec<(String, i32)> = member
        .query("select pack, installed from helper.list_packs()", &[])
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    assert!(installed.contains(&("crm".into(), 11)) && installed.contains(&("studio".into(), 0)), "{installed:?}");
    admin.run("select helper.uninstall_pack('crm')").await;
    assert_eq!(member.error("select helper.call('get_pipeline')").await.code().code(), "42704");
    // What is built in is on, unless it is switched off.
    let made: Value = member.one("select helper.call_status(helper.call('list_reminders'))", &[]).await;
    assert_eq!(made["status"], "succeeded", "{made}");
    admin.run("select helper.set_function('list_reminders', false)").await;
    assert_eq!(member.error("select helper.call('list_reminders')").await.code().code(), "42704");
}

#[tokio::test]
async fn what_waits_in_the_outbox_is_given_out_once_and_never_goes_back() {
    let world = World::new().await;
    let (one, two) = (world.cluster.admin().await, world.cluster.admin().await);
    let member = world.be(0, "member").await;
    let contact = &world.tenants[0].things["contact"];
    // Nothing of what the world was made with is left waiting.
    one.run("select helper.finish_whatsapp(c.workspace_id, c.message_id, 400) from helper.claim_whatsapp(1000) c")
        .await;
    for n in 0..20 {
        member.run(&format!("select helper.queue_whatsapp('{contact}', 'Message {n}')")).await;
    }
    member
        .run(&format!("select helper.queue_whatsapp('{contact}', 'Later', send_at => now() + interval '1 hour')"))
        .await;
    let taken = async |session: &Session| -> Vec<String> {
        let rows = session.query("select c.message_id::text from helper.claim_whatsapp(7) c", &[]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    one.run("begin").await;
    two.run("begin").await;
    let mut all = taken(&one).await;
    let other = taken(&two).await;
    one.run("commit").await;
    two.run("commit").await;
    assert_eq!((all.len(), other.len()), (7, 7));
    all.extend(other);
    all.extend(taken(&one).await);
    assert!(taken(&two).await.is_empty(), "the one for later waits");
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 20, "each once");

    // What the Cloud API replies
    let workspace = &world.tenants[0].workspace;
    let finish = async |at: usize, status: i32, reply: Value| -> Option<String> {
        one.query_one(
            "select helper.finish_whatsapp($1::text::uuid, $2::text::uuid, $3, $4)",
            &[workspace, &all[at], &status, &reply],
        )
        .await
        .unwrap()
        .get(0)
    };
    assert_eq!(finish(0, 200, json!({ "messages": [{ "id": "wamid.0" }] })).await.as_deref(), Some("sent"));
    assert_eq!(finish(0, 200, json!({ "messages": [{ "id": "wamid.0" }] })).await, None, "it has ended");
    let refusal = json!({ "error": { "code": 131026, "message": "Message undeliverable" } });
    assert_eq!(finish(1, 400, refusal).await.as_deref(), Some("failed"));
    assert_eq!(finish(2, 503, Value::Null).await.as_deref(), Some("uncertain"));
    assert_eq!(finish(3, 429, Value::Null).await.as_deref(), Some("queued"), "nothing was taken");
    assert!(taken(&one).await.is_empty(), "after a while");

    // What the webhook tells, in any order and more than once
    let number = "101";
    let tell = async |statuses: Value| -> i64 {
        let payload = json!({ "object": "whatsapp_business_account", "entry": [{ "id": "901", "changes": [{ "field": "messages",
            "value": { "metadata": { "phone_number_id": number }, "statuses": statuses } }] }] });
        let told: Value = one.one("select helper.whatsapp_status($1)", &[&payload]).await;
        told["deliveries"].as_i64().unwrap()
    };
    let report = |id: &str, status: &str| json!([{ "id": id, "status": status, "timestamp": "1790000100" }]);
    let state = async |at: usize| -> String {
        one.one(
            "select o.status || coalesce(' ' || (o.delivered_at is not null)::text, '') from helper.wa_outbox o where o.id = $1::text::uuid",
            &[&all[at]],
        )
        .await
    };
    assert_eq!(tell(report("wamid.0", "read")).await, 1);
    assert_eq!(tell(report("wamid.0", "delivered")).await, 0, "read is more");
    assert_eq!(tell(report("wamid.0", "read")).await, 0);
    assert_eq!(state(0).await, "read true");
    // A reply that never came is known by the id that went with the request.
    let late = json!([{ "id": "wamid.2", "status": "delivered", "timestamp": "1790000100", "biz_opaque_callback_data": all[2] }]);
    assert_eq!(tell(late).await, 1);
    assert_eq!(state(2).await, "delivered true");
    // Another tenant's number says nothing about it.
    let payload = json!({ "object": "whatsapp_business_account", "entry": [{ "id": "902", "changes": [{ "field": "messages",
        "value": { "metadata": { "phone_number_id": "102" }, "statuses": [{ "id": "wamid.4", "status": "read", "timestamp": "1790000100",
            "biz_opaque_callback_data": all[4] }] } }] }] });
    let told: Value = one.one("select helper.whatsapp_status($1)", &[&payload]).await;
    assert_eq!(told["deliveries"], 0);
    assert_eq!(state(4).await, "sending false");
    // A sender that was lost
    one.run("update helper.wa_outbox set claimed_at = claimed_at - interval '6 minutes' where status = 'sending'")
        .await;
    assert!(taken(&two).await.is_empty(), "what may have been sent is not sent again");
    assert_eq!(state(4).await, "uncertain false");
}

#[tokio::test]
async fn a_message_that_is_asked_for_twice_is_sent_once() {
    let world = World::new().await;
    let phone = "+62 812 7000 8000";
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let session = world.be(0, "member").await;
        tasks.push(tokio::spawn(async move {
            let sent: Value = session.one("select helper.send_whatsapp_message($1, 'Hi')", &[&phone]).await;
            (sent["message_id"].as_str().unwrap().to_owned(), sent["repeated"] == true)
        }));
    }
    let mut seen = Vec::new();
    for task in tasks {
        seen.push(task.await.unwrap());
    }
    assert_eq!(seen.iter().filter(|(_, repeated)| !repeated).count(), 1, "{seen:?}");
    assert_eq!(seen.iter().map(|(id, _)| id).collect::<BTreeSet<_>>().len(), 1, "{seen:?}");
    let threads: i64 = world
        .admin
        .one("select count(*) from helper.wa_threads t join helper.contacts c on c.id = t.contact_id where c.phone = '+6281270008000'", &[])
        .await;
    assert_eq!(threads, 1, "and one conversation was begun");
}

#[tokio::test]
async fn nobody_forges_what_is_sent_or_who_it_is_from() {
    let world = World::new().await;
    let member = world.be(0, "member").await;
    let (ws, contact) = (&world.tenants[0].workspace, &world.tenants[0].things["contact"]);
    for columns in [
        "request) values ('$ws', 'text', '$contact', 'x', '{}')",
        "status) values ('$ws', 'text', '$contact', 'x', 'sent')",
        "created_by) values ('$ws', 'text', '$contact', 'x', gen_random_uuid())",
    ] {
        let sql = format!("insert into helper.wa_outbox (workspace_id, kind, contact_id, body, {columns}");
        let refused = member.error(&sql.replace("$ws", ws).replace("$contact", contact)).await;
        assert_eq!(refused.code().code(), "42501", "{columns}");
    }
    // A broadcast, and a template to be approved, are for admins also without the function.
    let broadcast = format!(
        "insert into helper.wa_outbox (workspace_id, kind, contact_id, body, broadcast_id) select '{ws}', 'text', '{contact}', 'x', b.id from helper.wa_broadcasts b"
    );
    assert_eq!(member.error(&broadcast).await.code().code(), "42501");
    let submission = format!(
        "insert into helper.wa_outbox (workspace_id, kind, template_id) select '{ws}', 'submission', t.id from helper.wa_templates t"
    );
    assert_eq!(member.error(&submission).await.code().code(), "42501");
    // Contacts of others are none.
    let foreign = &world.tenants[1].things["contact"];
    let sql = format!(
        "insert into helper.wa_outbox (workspace_id, kind, contact_id, body) values ('{ws}', 'text', '{foreign}', 'x')"
    );
    assert_eq!(member.error(&sql).await.code().code(), "42704");
    // A number that another workspace has cannot be taken over.
    let taken = world.admin.error(&format!("select helper.set_whatsapp_number('{ws}', '102', '+6281200000099')")).await;
    assert_eq!(taken.code().code(), "55000");
}

#[tokio::test]
async fn a_query_reads_what_its_caller_sees_and_does_nothing_else() {
    let world = World::new().await;
    let member = world.be(0, "member").await;
    let run = async |query: &str| -> Result<Value, String> {
        match member.query_one("select helper.query_data($1)::jsonb", &[&query]).await {
            Ok(row) => Ok(row.get(0)),
            Err(error) => {
                Err(error.as_db_error().unwrap_or_else(|| panic!("{query}: {error}")).code().code().to_owned())
            }
        }
    };
    let mine = run("select c.phone from helper.contacts c order by 1").await.unwrap();
    assert_eq!(mine["row_count"], 2);
    let both: i64 = world.admin.one("select count(*) from helper.contacts", &[]).await;
    assert_eq!(both, 4, "the other tenant has as many");
    let before = world.fingerprints().await;
    for (query, code) in [
        ("", "22023"),
        ("select 1; select 2", "22023"),
        ("select 1; drop table helper.contacts", "22023"),
        ("insert into helper.notes (workspace_id, content) values (null, 'x')", "22023"),
        ("with x as (delete from helper.contacts returning 1) select * from x", "22023"),
        ("select * from (select 1) s, lateral (select * from helper.contacts for update) c", "0A000"),
        ("select * from helper.contacts for update", "22023"),
        ("select 1 into x", "22023"),
        ("create table public.x as select 1", "22023"),
        ("explain analyze delete from helper.contacts", "22023"),
        ("copy helper.contacts to '/tmp/x'", "22023"),
        ("set role service_role", "22023"),
        ("do $$ begin end $$", "22023"),
        ("call pg_catalog.nothing()", "22023"),
        // By functions, however deep
        ("select set_config('role', 'service_role', false)", "22023"),
        ("select set_config('request.jwt.claims', '{}', true), c.* from helper.contacts c", "22023"),
        ("select (select max(x) from (select set_config('role', 'none', false) as x) s)", "22023"),
        ("select 1 order by pg_sleep(10)::text", "22023"),
        ("select count(*) filter (where pg_sleep(1) is null) from helper.contacts", "22023"),
        ("select * from generate_series(1, 2) g where g = (select 1 where pg_notify('a', 'b') is null)", "22023"),
        ("with recursive t as (select nextval('x')) select * from t", "42P01"),
        ("select query_to_xml('delete from helper.contacts', true, true, '')", "22023"),
        ("select * from ts_stat('select set_config(''role'', ''none'', false)::tsvector')", "22023"),
        ("select helper.create_note('x')", "22023"),
        ("select helper.complete('Hello')", "22023"),
        ("select helper.confirm(null)", "22023"),
        ("select pg_read_file('/etc/passwd')", "22023"),
        ("select lo_import('/etc/passwd')", "22023"),
        ("select pg_advisory_lock(1)", "22023"),
        ("select count(*) from generate_series(1, 1000000000) a, generate_series(1, 1000) b", "22023"),
        ("select secret from helper.provider_secrets", "42501"),
        ("select * from contacts", "42P01"),
        ("select * from helper.contacts) q; delete from helper.contacts; select (1", "42601"),
    ] {
        assert_eq!(run(query).await, Err(code.to_owned()), "{query}");
    }
    assert_eq!(world.fingerprints().await, before);
    // What looks alike and is well
    assert_eq!(run("table helper.contacts;").await.unwrap()["row_count"], 2);
    assert_eq!(run("select 'a;b' as x -- ) q; delete").await.unwrap()["rows"][0]["x"], "a;b");
    assert_eq!(run("values (1), (2)").await.unwrap()["row_count"], 2);
    // A function of somebody's that runs a text, and says that it is stable
    world
        .admin
        .run(
            "create function public.run_text(statement text) returns text language plpgsql stable as \
             $$ declare v text; begin execute statement into v; return v; end $$",
        )
        .await;
    assert_eq!(run("select public.run_text('select 1')").await.unwrap()["rows"][0]["run_text"], "1");
    for (inner, code) in [
        ("select set_config(''request.jwt.claims'', ''{}'', true)", "25000"),
        ("select set_config(''role'', ''service_role'', true)", "25000"),
        ("select set_config(''transaction_read_only'', ''off'', true)", "25000"),
        ("delete from helper.notes returning 1", "0A000"),
        ("select helper.create_note(''x'')", "25000"),
    ] {
        assert_eq!(run(&format!("select public.run_text('{inner}')")).await, Err(code.to_owned()), "{inner}");
    }
    assert_eq!(world.fingerprints().await, before);
    // Sizes
    let many = run("select g, repeat('x', 1000) as filler from generate_series(1, 1000) g").await.unwrap();
    assert!(
        (60..66).contains(&many["row_count"].as_i64().unwrap()) && many["truncated"] == true,
        "{}",
        many["row_count"]
    );
    let wide = run("select repeat('x', 1000000) as x").await.unwrap();
    assert_eq!((wide["row_count"].as_i64(), wide["truncated"].as_bool()), (Some(0), Some(true)));
    // The transaction is as it was, and role and claims too.
    member.run("create temporary table t (a int); insert into t values (1)").await;
    assert_eq!(member.one::<String>("select current_user::text", &[]).await, "authenticated");
}

#[tokio::test]
async fn a_query_that_takes_too_long_ends_and_the_callers_own_timeout_stays() {
    let world = World::new().await;
    let member = world.be(0, "member").await;
    // The planner thinks nothing of it.
    let endless = "with recursive t (n) as (select 1 union all select n + 1 from t where n > 0 and n < 2000000000) select max(n) from t";
    let begin = Instant::now();
    let ended = member.error(&format!("select helper.query_data('{endless}')")).await;
    assert_eq!(ended.code().code(), "57014");
    assert!(
        begin.elapsed() > Duration::from_secs(9) && begin.elapsed() < Duration::from_secs(30),
        "{:?}",
        begin.elapsed()
    );
    // A shorter one of the caller's counts.
    member.run("set statement_timeout = '300ms'").await;
    let begin = Instant::now();
    assert_eq!(member.error(&format!("select helper.query_data('{endless}')")).await.code().code(), "57014");
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    // And goes on when the query is done.
    let begin = Instant::now();
    let ended = member.error("select helper.query_data('select 1'), pg_catalog.pg_sleep(60)").await;
    assert_eq!(ended.code().code(), "57014");
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    member.run("reset statement_timeout").await;
    // As a tool it fails, and what stands around it goes on.
    member.run("begin").await;
    let made: Value =
        member.one("select helper.call_status(helper.call('query_data', $1))", &[&json!({ "query": endless })]).await;
    assert_eq!((&made["status"], &made["error"]["sqlstate"]), (&json!("failed"), &json!("57014")), "{made}");
    member.run("select helper.create_note('still here'); commit").await;
}

#[tokio::test]
async fn an_invitation_is_for_the_address_that_it_names() {
    let world = World::new().await;
    let admin = world.be(0, "admin").await;
    let id: String = admin.one("select helper.invite_team_member('Joe@Example.com', 'viewer') ->> 'id'", &[]).await;
    let outsider = &world.tenants[0].people["outsider"];
    let accept = format!("select helper.accept_invitation('{id}')::text");
    for claims in [
        json!({ "sub": outsider }),
        json!({ "sub": outsider, "email": "jane@example.com" }),
        json!({ "sub": outsider, "user_metadata": { "email": "joe@example.com" } }),
        json!({ "email": "joe@example.com", "sub": null }),
    ] {
        let session = world.cluster.session("postgres", "authenticated", &claims).await;
        let code = session.error(&accept).await.code().code().to_owned();
        assert!(code == "42704" || code == "42501", "{claims}: {code}");
    }
    let joe = world
        .cluster
        .session("postgres", "authenticated", &json!({ "sub": outsider, "email": "joe@example.com" }))
        .await;
    assert_eq!(joe.one::<String>(&accept, &[]).await, world.tenants[0].workspace);
    assert_eq!(
        joe.one::<String>("select helper.my_role($1::text::uuid)", &[&world.tenants[0].workspace]).await,
        "viewer"
    );
    assert_eq!(joe.error(&accept).await.code().code(), "42704", "once");
}

#[tokio::test]
async fn reports_are_made_when_they_are_due_once_each() {
    let world = World::new().await;
    let member = world.be(0, "member").await;
    let report = &world.tenants[0].things["report"];
    member.run(&format!("select helper.schedule_report('{report}', '09:00', 'Asia/Jakarta')")).await;
    assert_eq!(member.one::<i32>("select helper.run_due_reports()", &[]).await, 0);
    member
        .run(&format!("update helper.reports set next_run_at = now() - interval '3 days' where id = '{report}'"))
        .await;
    assert_eq!(member.one::<i32>("select helper.run_due_reports()", &[]).await, 1);
    assert_eq!(member.one::<i32>("select helper.run_due_reports()", &[]).await, 0);
    let next: bool = member
        .one("select bool_and(r.next_run_at > now() and r.next_run_at <= now() + interval '1 day') from helper.reports r", &[])
        .await;
    assert!(next);
    // One that cannot be made holds up no other.
    member
        .run(&format!(
            "update helper.reports set next_run_at = now() - interval '1 hour' where id = '{report}'; \
             insert into helper.reports (workspace_id, title, report_type, timezone) values ('{}', 'Wrong', 'daily', 'Mars'); \
             update helper.reports set run_at = '09:00', next_run_at = now() - interval '2 hours' where title = 'Wrong'",
            world.tenants[0].workspace
        ))
        .await;
    assert_eq!(member.one::<i32>("select helper.run_due_reports()", &[]).await, 1);
    assert_eq!(member.one::<i32>("select helper.run_due_reports()", &[]).await, 0);
    // The time of day stays where clocks change.
    for (kind, zone, after, expected) in [
        ("daily", "Europe/Berlin", "2026-03-28 12:00Z", "2026-03-29 07:00Z"),
        ("daily", "Europe/Berlin", "2026-03-27 12:00Z", "2026-03-28 08:00Z"),
        ("weekly", "Asia/Jakarta", "2026-11-23 03:00Z", "2026-11-30 02:00Z"),
        ("weekly", "Asia/Jakarta", "2026-11-23 01:00Z", "2026-11-23 02:00Z"),
        ("monthly", "UTC", "2026-12-01 09:00Z", "2027-01-01 09:00Z"),
    ] {
        let fits: bool = member
            .one(&format!("select helper.next_report_at('{kind}', '09:00', '{zone}', '{after}') = '{expected}'"), &[])
            .await;
        assert!(fits, "{kind} in {zone} after {after}");
    }
}

#[tokio::test]
async fn a_phone_number_has_one_form_however_it_is_written() {
    let cluster = cluster::Cluster::shared().await;
    let admin = cluster.admin().await;
    for (written, region, expected) in [
        ("0812 3456 7890", Some("ID"), Some("+6281234567890")),
        ("62812 3456 7890", Some("ID"), Some("+6281234567890")),
        ("0062 812 3456 7890", Some("ID"), Some("+6281234567890")),
        ("+62 (0)812-3456-7890", None, Some("+6281234567890")),
        ("tel:+62-812-3456-7890", None, Some("+6281234567890")),
        ("(021) 555 1234", Some("ID"), Some("+62215551234")),
        ("020 7946 0958", Some("GB"), Some("+442079460958")),
        ("+44 20 7946 0958", Some("ID"), Some("+442079460958")),
        // A zero that belongs to the number
        ("+39 06 6982 1234", None, Some("+390669821234")),
        ("0812 3456 7890", None, None),
        ("+999999999999", None, None),
        ("123", Some("ID"), None),
        ("hello", Some("ID"), None),
        ("", Some("ID"), None),
    ] {
        let row = admin.query_one("select helper.normalize_phone($1, $2)", &[&written, &region]).await.unwrap();
        assert_eq!(row.get::<_, Option<&str>>(0), expected, "{written} in {region:?}");
    }
    assert_eq!(admin.error("select helper.normalize_phone('1', 'XX')").await.code().code(), "22023");
}

#[tokio::test]
async fn contacts_go_out_and_come_in_as_they_were() {
    let world = World::new().await;
    let (one, two) = (world.be(0, "admin").await, world.be(1, "admin").await);
    one.run("select helper.create_contact('+1 202 555 0173', E'O\\'Neil, \"Bob\"', 'bob@example.com', '{a,b}')").await;
    one.run("select helper.create_contact('+44 20 7946 0958', '=cmd()')").await;
    let csv: String = one.one("select helper.export_contacts() ->> 'content'", &[]).await;
    assert!(csv.contains("\"'=cmd()\""), "no formula goes into a spreadsheet: {csv}");
    let taken: Value = two.one("select helper.import_contacts(csv => $1)", &[&csv]).await;
    assert_eq!((&taken["added"], &taken["without_phone_number"]), (&json!(4), &json!(0)), "{taken}");
    let bob: String = two
        .one("select c.name || ' ' || c.email || ' ' || c.tags::text from helper.contacts c where c.phone = '+12025550173'", &[])
        .await;
    assert_eq!(bob, "O'Neil, \"Bob\" bob@example.com {a,b}");
    let again: Value = two.one("select helper.import_contacts(csv => $1)", &[&csv]).await;
    assert_eq!((&again["added"], &again["changed"]), (&json!(0), &json!(0)), "{again}");
    for (csv, code) in [("phone\n\"x", "22023"), ("name\nx", "22023"), ("", "22023")] {
        let sql = format!("select helper.import_contacts(csv => E'{}')", csv.replace('\n', "\\n"));
        assert_eq!(two.error(&sql).await.code().code(), code, "{csv}");
    }
    let fetched = two.error("select helper.import_contacts('https://example.com/contacts.csv')").await;
    assert_eq!(fetched.code().code(), "22023");
    // A file among the documents is read as it was given, by who may see it.
    let add = "select helper.add_file('new.csv', convert_to(E'Phone;Note,Name\nx,y\n+62 811 2222 4444,\"Citra, Ms\"\n', 'UTF8'))::text";
    let good: String = two.one(&add.replace("Phone;Note", "Phone"), &[]).await;
    let taken: Value = two.one("select helper.import_contacts(document_id => $1::text::uuid)", &[&good]).await;
    assert_eq!((&taken["added"], &taken["rows"]), (&json!(1), &json!(2)), "{taken}");
    let name: String = two.one("select c.name from helper.contacts c where c.phone = '+6281122224444'", &[]).await;
    assert_eq!(name, "Citra, Ms");
    let text: String = two.one("select helper.add_document('List', E'phone\n+62 811 2222 5555')::text", &[]).await;
    two.run("select helper.wait_indexed()").await;
    let taken: Value = two.one("select helper.import_contacts(document_id => $1::text::uuid)", &[&text]).await;
    assert_eq!(taken["added"], json!(1), "{taken}");
    let import = format!("select helper.import_contacts(document_id => '{good}')");
    assert_eq!(one.error(&import).await.code().code(), "42704");
    let bytes: String = two.one("select helper.add_file('old.txt', '\\xff41', 'text/plain')::text", &[]).await;
    let error = two.error(&format!("select helper.file_text('{bytes}')")).await;
    assert_eq!(error.code().code(), "22023");
}

#[tokio::test]
async fn no_workspaces_broadcast_keeps_anothers_message_waiting() {
    let world = World::new().await;
    let service = world.cluster.admin().await;
    service
        .run("select helper.finish_whatsapp(c.workspace_id, c.message_id, 400) from helper.claim_whatsapp(1000) c")
        .await;
    let send = async |tenant: usize, count: usize| {
        let member = world.be(tenant, "member").await;
        let contact = &world.tenants[tenant].things["contact"];
        for n in 0..count {
            member.run(&format!("select helper.queue_whatsapp('{contact}', 'Message {n}')")).await;
        }
    };
    // The first has been waiting longer, and has far more.
    send(0, 30).await;
    send(1, 3).await;
    let counts = async |limit: i32| -> [usize; 2] {
        let rows =
            service.query("select c.workspace_id::text from helper.claim_whatsapp($1) c", &[&limit]).await.unwrap();
        let of = |tenant: usize| {
            rows.iter().filter(|row| row.get::<_, String>(0) == world.tenants[tenant].workspace).count()
        };
        [of(0), of(1)]
    };
    assert_eq!(counts(4).await, [2, 2]);
    assert_eq!(counts(4).await, [2, 1]);
    assert_eq!(counts(10).await, [10, 0]);
    assert_eq!(counts(0).await, [0, 0]);
    assert_eq!(counts(1000).await, [16, 0]);
}

#[tokio::test]
async fn a_dump_keeps_all_that_the_packs_hold() {
    let world = World::new().await;
    install_all(&world).await;
    let dump = world.cluster.home().join("packs.sql");
    let dumped =
        world.cluster.program("pg_dump").arg(world.cluster.url("postgres")).stdin(Stdio::null()).output().unwrap();
    assert!(dumped.status.success() && dumped.stderr.is_empty(), "{dumped:?}");
    std::fs::write(&dump, &dumped.stdout).unwrap();
    world.admin.run("create database restored").await;
    let loaded = world
        .cluster
        .program("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f"])
        .arg(&dump)
        .arg(world.cluster.url("restored"))
        .output()
        .unwrap();
    assert!(loaded.status.success() && loaded.stderr.is_empty(), "{loaded:?}");
    let restored = world.cluster.connect("restored", "postgres").await;
    for table in [
        "notes",
        "reminders",
        "notifications",
        "wa_numbers",
        "contacts",
        "wa_threads",
        "wa_messages",
        "wa_templates",
        "wa_broadcasts",
        "wa_outbox",
        "leads",
        "lead_activities",
        "follow_ups",
        "products",
        "recommendations",
        "funnels",
        "funnel_stages",
        "funnel_events",
        "reports",
        "report_editions",
        "invitations",
        "function_settings",
    ] {
        let print = format!(
            "select count(*) || coalesce(md5(string_agg(t::text, '|' order by t::text)), '') from helper.{table} t"
        );
        let (was, is): (String, String) = (world.admin.one(&print, &[]).await, restored.one(&print, &[]).await);
        assert!(!was.starts_with('0'), "{table} is empty");
        assert_eq!(was, is, "{table}");
    }
    let tools: i64 = restored.one("select count(*) from helper.functions f where f.pack is not null", &[]).await;
    assert_eq!(tools as usize, ACTIONS.len());
}
