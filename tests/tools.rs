//! Tools: what is registered, who may call it, what an approval is for, and that whatever happens at once or in between,
//! a call has its effect once or not at all.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use cluster::{Cluster, Session, signal, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

const OWNER: &str = "00000000-0000-4000-8000-000000000001";
const ADMIN: &str = "00000000-0000-4000-8000-000000000002";
const MEMBER: &str = "00000000-0000-4000-8000-000000000003";
const VIEWER: &str = "00000000-0000-4000-8000-000000000004";
const OUTSIDER: &str = "00000000-0000-4000-8000-000000000005";

/// An application with a ledger, which its users write and read under policies, and the tools of it.
const APPLICATION: &str = r#"
create table public.ledger (
  id uuid primary key default gen_random_uuid(),
  workspace_id uuid not null,
  what text not null,
  amount integer not null default 1,
  who uuid not null default helper.current_user_id(),
  written_at timestamptz not null default now()
);
alter table public.ledger enable row level security;
create policy ledger_select on public.ledger for select using (workspace_id = any ((select helper.my_workspaces())::uuid[]));
create policy ledger_insert on public.ledger for insert with check (workspace_id = any ((select helper.my_workspaces('member'))::uuid[]) and who = helper.current_user_id());
create policy ledger_update on public.ledger for update using (workspace_id = any ((select helper.my_workspaces('member'))::uuid[]));
create policy ledger_delete on public.ledger for delete using (workspace_id = any ((select helper.my_workspaces('member'))::uuid[]));
grant select, insert, update, delete on public.ledger to authenticated;

create function public.write_ledger(what text, amount integer default 1, workspace uuid default null) returns jsonb
language plpgsql as $$
declare v_id uuid;
begin
  insert into public.ledger (workspace_id, what, amount) values (workspace, write_ledger.what, write_ledger.amount) returning id into v_id;
  if what = 'too much' then
    raise exception using errcode = 'APP01', message = 'that is too much', detail = 'It is.', hint = 'Write less.';
  end if;
  return jsonb_build_object('wrote', what);
end $$;
comment on function public.write_ledger(text, integer, uuid) is 'Writes a line into the ledger
@param what the line
@param amount how much';

create function public.raise_amounts(by integer, workspace uuid) returns integer
language sql as $$ with changed as (update public.ledger l set amount = l.amount + by, written_at = now() where l.workspace_id = workspace returning 1) select count(*)::integer from changed $$;
create function public.read_ledger(workspace uuid) returns setof public.ledger
language sql stable as $$ select * from public.ledger l where l.workspace_id = workspace order by l.what $$;
create function public.wait(seconds double precision) returns void language sql as $$ select pg_sleep(seconds) $$;
create function public.long_text(count integer) returns text language sql as $$ select repeat('x', count) $$;

select helper.register_function('write', 'write_ledger', options => '{"requires_confirmation": false}');
select helper.register_function('ask_to_write', 'write_ledger');
select helper.register_function('raise', 'raise_amounts', 'Raises all amounts', '{"requires_confirmation": true}');
select helper.register_function('admin_write', 'write_ledger', options => '{"requires_confirmation": false, "minimum_role": "admin"}');
select helper.register_function('approved_write', 'write_ledger', options => '{"approver_role": "admin", "self_approval": false}');
select helper.register_function('read', 'public.read_ledger(uuid)', 'Reads the ledger', '{"requires_confirmation": false, "minimum_role": "viewer"}');
select helper.register_function('wait', 'public.wait(double precision)', 'Waits', '{"requires_confirmation": false, "timeout_ms": 300}');
select helper.register_function('long_text', 'long_text', 'Makes a text', '{"requires_confirmation": false, "max_result_bytes": 100}');
"#;

struct Application {
    cluster: Arc<Cluster>,
    admin: Session,
    workspace: String,
}

impl Application {
    async fn start() -> Application {
        Self::on(Arc::new(Cluster::start().await)).await
    }

    async fn on(cluster: Arc<Cluster>) -> Application {
        let admin = cluster.admin().await;
        admin.run(APPLICATION).await;
        let owner = cluster.user(OWNER).await;
        let workspace: String = owner.one("select helper.create_workspace('Shop')::text", &[]).await;
        for (person, role) in [(ADMIN, "admin"), (MEMBER, "member"), (VIEWER, "viewer")] {
            owner.run(&format!("select helper.add_member('{workspace}', '{person}', '{role}')")).await;
        }
        Application { cluster, admin, workspace }
    }

    async fn be(&self, person: &str) -> Session {
        self.cluster.user(person).await
    }

    /// Lines of the ledger by what they say.
    async fn ledger(&self) -> BTreeMap<String, i64> {
        let rows = self.admin.query("select what, count(*) from public.ledger group by what", &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    async fn lines(&self, what: &str) -> i64 {
        self.ledger().await.get(what).copied().unwrap_or(0)
    }
}

async fn call(session: &Session, function: &str, arguments: Value) -> String {
    session.one("select helper.call($1, $2)::text", &[&function, &arguments]).await
}

async fn status(session: &Session, call: &str) -> Value {
    session.one("select helper.call_status($1::text::uuid)", &[&call]).await
}

async fn confirm(session: &Session, call: &str) -> Value {
    session.one("select helper.confirm($1::text::uuid)", &[&call]).await
}

/// SQLSTATE and message of a statement that fails.
async fn refusal(session: &Session, sql: &str) -> (String, String) {
    let error = session.error(sql).await;
    (error.code().code().to_owned(), error.message().to_owned())
}

#[tokio::test]
async fn a_tool_runs_as_its_caller_at_once_and_its_error_is_data() {
    let app = Application::start().await;
    let member = app.be(MEMBER).await;
    let told = status(&member, &call(&member, "write", json!({ "what": "one", "amount": 2 })).await).await;
    assert_eq!((&told["status"], &told["result"]), (&json!("succeeded"), &json!({ "wrote": "one" })));
    let who: String = app.admin.one("select who::text from public.ledger", &[]).await;
    assert_eq!(who, MEMBER);
    // The caller's transaction survives, without what the tool did.
    member.run("begin; insert into public.ledger (workspace_id, what) select helper.current_workspace(), 'mine'").await;
    let failed = call(&member, "write", json!({ "what": "too much" })).await;
    member.run("commit").await;
    let told = status(&member, &failed).await;
    assert_eq!(told["status"], "failed");
    assert_eq!(
        told["error"],
        json!({ "sqlstate": "APP01", "message": "that is too much", "detail": "It is.", "hint": "Write less." })
    );
    assert_eq!(app.ledger().await, BTreeMap::from([("mine".into(), 1), ("one".into(), 1)]));
    // A viewer's tool sees what a viewer sees, and writes nothing.
    let viewer = app.be(VIEWER).await;
    let told = status(&viewer, &call(&viewer, "read", json!({})).await).await;
    assert_eq!(told["result"][0]["what"], "mine");
    let rows = told["result"].as_array().unwrap().len();
    assert_eq!(rows, 2);
    // Time and size have their ends, and a cancel is the caller's own.
    let told = status(&member, &call(&member, "wait", json!({ "seconds": 60 })).await).await;
    assert_eq!(
        (&told["error"]["sqlstate"], &told["error"]["message"]),
        (&json!("57014"), &json!("the function took longer than 300 ms"))
    );
    let told = status(&member, &call(&member, "long_text", json!({ "count": 1000 })).await).await;
    assert_eq!((&told["status"], &told["error"]["sqlstate"]), (&json!("failed"), &json!("53400")));
    member.run("set statement_timeout = '100ms'").await;
    assert_eq!(refusal(&member, "select helper.call('wait', '{\"seconds\": 60}')").await.0, "57014");
    member.run("reset statement_timeout").await;
    assert_eq!(status(&member, &call(&member, "wait", json!({ "seconds": 0 })).await).await["result"], json!(null));
}

#[tokio::test]
async fn arguments_are_checked_before_anything_is_recorded() {
    let app = Application::start().await;
    let member = app.be(MEMBER).await;
    for (arguments, said) in [
        ("{}", "what"),
        (r#"{"what": 1}"#, "/what"),
        (r#"{"what": "x", "amount": "1"}"#, "/amount"),
        (r#"{"what": "x", "amount": 2147483648}"#, "/amount"),
        (r#"{"what": "x", "more": true}"#, "more"),
        (r#"{"what": "x", "workspace": "00000000-0000-4000-8000-000000000001"}"#, "workspace"),
        ("[]", "object"),
        ("null", "object"),
    ] {
        let error = member.error(&format!("select helper.call('write', '{arguments}')")).await;
        assert_eq!(error.code().code(), "22023", "{arguments}");
        assert!(error.detail().is_some_and(|detail| detail.contains(said)), "{arguments}: {error:?}");
    }
    for (sql, code) in [
        ("select helper.call('nothing', '{}')", "42704"),
        ("select helper.call(null, '{}')", "22023"),
        ("select helper.call('write', null)", "22023"),
        ("select helper.call('write', '{\"what\": \"x\"}', options => '{\"hurry\": true}')", "22023"),
        ("select helper.call('write', '{\"what\": \"x\"}', options => '{\"queue\": 1}')", "22023"),
        ("select helper.call('write', '{\"what\": \"x\"}', idempotency_key => '')", "22023"),
        ("select helper.call('write', '{\"what\": \"x\"}', '00000000-0000-4000-8000-000000000009')", "42704"),
    ] {
        assert_eq!(refusal(&member, sql).await.0, code, "{sql}");
    }
    assert_eq!(app.admin.one::<i64>("select count(*) from helper.function_calls", &[]).await, 0);
}

#[tokio::test]
async fn the_schema_is_made_from_the_function() {
    let app = Application::start().await;
    app.admin
        .run(
            "create type public.colour as enum ('red', 'green'); \
             create domain public.percent as integer check (value between 0 and 100); \
             create domain public.phone as text check (value ~ '^[+][0-9]+$') check (char_length(value) <= 16); \
             create type public.place as (city varchar(40), colour public.colour); \
             create function public.everything(a public.colour, b public.percent, c public.phone[], d public.place, e uuid, \
               f timestamptz, g numeric default 1.5, h jsonb default null, i boolean default true, out j text, out k integer[]) \
             language sql as $$ select a::text || b || c[1] || (d).city || e || f || g || i, array[b] $$; \
             comment on function public.everything is 'Takes everything'; \
             select helper.register_function('everything', 'everything', options => '{\"requires_confirmation\": false}')",
        )
        .await;
    let member = app.be(MEMBER).await;
    let schema: Value = member
        .one("select parameters_schema from helper.available_functions() where function_name = 'everything'", &[])
        .await;
    assert_eq!(
        schema,
        json!({
            "type": "object",
            "required": ["a", "b", "c", "d", "e", "f"],
            "additionalProperties": false,
            "properties": {
                "a": { "type": "string", "enum": ["red", "green"] },
                "b": { "type": "integer", "minimum": 0, "maximum": 100 },
                "c": { "type": "array", "items": { "type": "string", "pattern": "^[+][0-9]+$", "maxLength": 16 } },
                "d": {
                    "type": "object",
                    "properties": {
                        "city": { "type": ["string", "null"], "maxLength": 40 },
                        "colour": { "type": ["string", "null"], "enum": ["red", "green", null] },
                    },
                    "additionalProperties": false,
                },
                "e": { "type": "string", "format": "uuid" },
                "f": { "type": "string", "format": "date-time" },
                "g": { "type": "number", "default": 1.5 },
                "h": {},
                "i": { "type": "boolean", "default": true },
            },
        })
    );
    let arguments = json!({
        "a": "green", "b": 7, "c": ["+62811", "+62812"], "d": { "city": "Ubud", "colour": "red" },
        "e": OWNER, "f": "2026-11-23T09:00:00Z", "g": 2.25,
    });
    let told = status(&member, &call(&member, "everything", arguments).await).await;
    assert_eq!(
        told["result"],
        json!({ "j": format!("green7+62811Ubud{OWNER}2026-11-23 09:00:00+002.25true"), "k": [7] })
    );
    for (problem, arguments) in [
        ("/b", r#"{"b": 101}"#),
        ("/c/0", r#"{"c": ["0811"]}"#),
        ("/d/colour", r#"{"d": {"colour": "blue"}}"#),
        ("/d", r#"{"d": {"street": "x"}}"#),
        ("/e", r#"{"e": "me"}"#),
        ("/f", r#"{"f": "tomorrow"}"#),
    ] {
        let detail = member.error(&format!("select helper.call('everything', '{arguments}')")).await;
        assert!(detail.detail().unwrap().contains(problem), "{problem}: {detail:?}");
    }
    for (sql, code) in [
        ("select helper.register_function('x', 'no_such_function')", "42704"),
        ("select helper.register_function('x', 'write_ledger')", "42501"),
    ] {
        assert_eq!(refusal(&member, sql).await.0, "42501", "{sql}");
        if code == "42704" {
            assert_eq!(refusal(&app.admin, sql).await.0, code, "{sql}");
        }
    }
    app.admin
        .run(
            "create function public.nameless(integer) returns void language sql as ''; \
             create function public.anything(a anyelement) returns void language sql as ''; \
             create function public.many(variadic a integer[]) returns void language sql as ''; \
             create procedure public.doing() language sql as ''; \
             create function public.guard() returns trigger language plpgsql as 'begin return new; end'",
        )
        .await;
    for (target, options) in [
        ("nameless", "{}"),
        ("anything", "{}"),
        ("many", "{}"),
        ("doing", "{}"),
        ("guard", "{}"),
        ("write_ledger", r#"{"minimum_role": "boss"}"#),
        ("write_ledger", r#"{"timeout_ms": 0}"#),
        ("write_ledger", r#"{"lapse": "soon"}"#),
        ("write_ledger", r#"{"self_approval": false}"#),
        ("write_ledger", r#"{"colour": "red"}"#),
        ("write_ledger", r#"{"tags": "a"}"#),
        ("write_ledger", r#"{"parameters_schema": {"type": "string"}}"#),
        ("write_ledger", r#"{"parameters_schema": {"type": "object", "properties": 1}}"#),
    ] {
        let sql = format!("select helper.register_function('x', '{target}', 'X', '{options}')");
        assert_eq!(refusal(&app.admin, &sql).await.0, "22023", "{sql}");
    }
}

#[tokio::test]
async fn an_approval_is_for_one_effect_once() {
    let app = Application::start().await;
    let (member, admin, viewer, outsider) =
        (app.be(MEMBER).await, app.be(ADMIN).await, app.be(VIEWER).await, app.be(OUTSIDER).await);
    let waiting = call(&member, "ask_to_write", json!({ "what": "two" })).await;
    let told = status(&member, &waiting).await;
    assert_eq!((&told["status"], &told["may_approve"]), (&json!("awaiting_confirmation"), &json!(true)));
    assert_eq!(app.lines("two").await, 0);
    // Nobody else approves it, nor learns of it who is not concerned.
    assert_eq!(refusal(&admin, &format!("select helper.confirm('{waiting}')")).await.0, "42501");
    for other in [&viewer, &outsider] {
        for function in ["confirm", "reject", "preview", "cancel_call", "call_status"] {
            assert_eq!(refusal(other, &format!("select helper.{function}('{waiting}')")).await.0, "42704");
        }
    }
    assert_eq!(confirm(&member, &waiting).await["status"], "succeeded");
    assert_eq!(confirm(&member, &waiting).await["status"], "succeeded");
    assert_eq!(refusal(&member, &format!("select helper.reject('{waiting}')")).await.0, "55000");
    assert!(!member.one::<bool>(&format!("select helper.cancel_call('{waiting}')"), &[]).await);
    assert_eq!(app.lines("two").await, 1);
    // Rejected, cancelled, lapsed: never again.
    let rejected = call(&member, "ask_to_write", json!({ "what": "three" })).await;
    member.run(&format!("select helper.reject('{rejected}', 'Not today.'), helper.reject('{rejected}')")).await;
    assert_eq!(status(&member, &rejected).await["reason"], "Not today.");
    let cancelled = call(&member, "ask_to_write", json!({ "what": "three" })).await;
    assert!(member.one::<bool>(&format!("select helper.cancel_call('{cancelled}')"), &[]).await);
    app.admin
        .run("select helper.register_function('hasty', 'write_ledger', options => '{\"lapse\": \"1 second\"}')")
        .await;
    let lapsed = call(&member, "hasty", json!({ "what": "three" })).await;
    // The worker writes it down; nobody need ask.
    until("the call to expire", async || {
        let stored: String =
            app.admin.one(&format!("select status from helper.function_calls where id = '{lapsed}'"), &[]).await;
        (stored == "expired").then_some(())
    })
    .await;
    for call in [&rejected, &cancelled, &lapsed] {
        assert_eq!(refusal(&member, &format!("select helper.confirm('{call}')")).await.0, "55000");
    }
    assert_eq!(app.lines("three").await, 0);
    // A registration that changed is another function.
    let old = call(&member, "ask_to_write", json!({ "what": "four" })).await;
    app.admin.run("select helper.register_function('ask_to_write', 'write_ledger', 'Writes otherwise')").await;
    let told = confirm(&member, &old).await;
    assert_eq!((&told["status"], &told["error"]["sqlstate"]), (&json!("failed"), &json!("55000")));
    assert_eq!(app.lines("four").await, 0);
}

#[tokio::test]
async fn somebody_else_approves_and_it_runs_as_who_made_it() {
    let app = Application::start().await;
    let (member, admin, owner) = (app.be(MEMBER).await, app.be(ADMIN).await, app.be(OWNER).await);
    let made = call(&member, "approved_write", json!({ "what": "five" })).await;
    assert_eq!(refusal(&member, &format!("select helper.confirm('{made}')")).await.0, "42501");
    // The approver sees what it would do.
    let told = status(&owner, &made).await;
    assert_eq!(told["may_approve"], true);
    assert_eq!(told["preview"]["tables"][0]["table"], "public.ledger");
    assert_eq!(told["preview"]["tables"][0]["rows"][0]["after"]["what"], "five");
    assert_eq!(refusal(&owner, &format!("select helper.preview('{made}')")).await.0, "42501");
    assert_eq!(confirm(&owner, &made).await["status"], "queued");
    until("the worker to run it", async || (status(&member, &made).await["status"] == "succeeded").then_some(())).await;
    let who: String = app.admin.one("select who::text from public.ledger where what = 'five'", &[]).await;
    assert_eq!(who, MEMBER);
    assert_eq!(status(&member, &made).await["decided_by"], OWNER);
    // Nobody approves their own.
    let own = call(&admin, "approved_write", json!({ "what": "six" })).await;
    assert_eq!(refusal(&admin, &format!("select helper.confirm('{own}')")).await.0, "42501");
    // Who lost their place before it runs has lost it.
    let late = call(&member, "approved_write", json!({ "what": "seven" })).await;
    owner
        .run(&format!(
            "begin; select helper.confirm('{late}'); select helper.remove_member('{}', '{MEMBER}'); commit",
            app.workspace
        ))
        .await;
    until("the worker to refuse it", async || (status(&owner, &late).await["status"] == "failed").then_some(())).await;
    assert_eq!(status(&owner, &late).await["error"]["sqlstate"], "42501");
    assert_eq!((app.lines("five").await, app.lines("six").await, app.lines("seven").await), (1, 0, 0));
}

#[tokio::test]
async fn a_preview_shows_rows_before_and_after_and_changes_nothing() {
    let app = Application::start().await;
    let member = app.be(MEMBER).await;
    for (what, amount) in [("a", 1), ("b", 2)] {
        call(&member, "write", json!({ "what": what, "amount": amount })).await;
    }
    let before: String = app.admin.one("select string_agg(l::text, ',' order by what) from public.ledger l", &[]).await;
    let made = call(&member, "raise", json!({ "by": 10 })).await;
    let told: Value = member.one(&format!("select helper.preview('{made}')"), &[]).await;
    let table = &told["preview"]["tables"][0];
    assert_eq!(told["status"], "awaiting_confirmation");
    assert_eq!(told["preview"]["result"], 2);
    assert_eq!(
        (&table["table"], &table["updated"], &table["inserted"]),
        (&json!("public.ledger"), &json!(2), &json!(0))
    );
    let rows = table["rows"].as_array().unwrap();
    let mut seen: Vec<(i64, i64)> = rows
        .iter()
        .map(|row| (row["before"]["amount"].as_i64().unwrap(), row["after"]["amount"].as_i64().unwrap()))
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, [(1, 11), (2, 12)]);
    let after: String = app.admin.one("select string_agg(l::text, ',' order by what) from public.ledger l", &[]).await;
    assert_eq!(before, after);
    // A preview inside a transaction that has written already shows what the tool would do, and no more.
    member.run("begin").await;
    member
        .run("insert into public.ledger (workspace_id, what, amount) select helper.current_workspace(), 'c', 3")
        .await;
    let told: Value = member.one(&format!("select helper.preview('{made}')"), &[]).await;
    assert_eq!(told["preview"]["tables"][0]["rows"].as_array().unwrap().len(), 3);
    member.run("rollback").await;
    // One that would fail says so.
    let failing = call(&member, "ask_to_write", json!({ "what": "too much" })).await;
    let told: Value = member.one(&format!("select helper.preview('{failing}')"), &[]).await;
    assert_eq!(told["preview"]["error"]["sqlstate"], "APP01");
    assert_eq!(confirm(&member, &failing).await["status"], "failed");
}

#[tokio::test]
async fn what_would_do_something_else_than_was_shown_asks_again() {
    let app = Application::start().await;
    let member = app.be(MEMBER).await;
    call(&member, "write", json!({ "what": "a", "amount": 1 })).await;
    let made = call(&member, "raise", json!({ "by": 10 })).await;
    member.run(&format!("select helper.preview('{made}')")).await;
    // Meanwhile there is another row.
    call(&member, "write", json!({ "what": "b", "amount": 2 })).await;
    let told = confirm(&member, &made).await;
    assert_eq!(told["status"], "awaiting_confirmation");
    assert_eq!(told["preview"]["is_other"], true);
    assert_eq!(told["preview"]["tables"][0]["updated"], 2);
    assert_eq!(told["decided_by"], json!(null));
    assert_eq!(app.admin.one::<i64>("select sum(amount) from public.ledger", &[]).await, 3);
    // That was seen now, and is done.
    assert_eq!(confirm(&member, &made).await["status"], "succeeded");
    assert_eq!(app.admin.one::<i64>("select sum(amount) from public.ledger", &[]).await, 23);
    // New keys and the time of day are nothing else; by the worker too.
    let made = call(&member, "ask_to_write", json!({ "what": "c" })).await;
    member.run(&format!("select helper.preview('{made}')")).await;
    assert_eq!(confirm(&member, &made).await["status"], "succeeded");
    let queued: String = member
        .one("select helper.call('ask_to_write', '{\"what\": \"d\"}', options => '{\"queue\": true}')::text", &[])
        .await;
    member.run(&format!("select helper.preview('{queued}')")).await;
    assert_eq!(confirm(&member, &queued).await["status"], "queued");
    until("the worker to run it", async || (status(&member, &queued).await["status"] == "succeeded").then_some(()))
        .await;
    let other: String =
        member.one("select helper.call('raise', '{\"by\": 1}', options => '{\"queue\": true}')::text", &[]).await;
    member.run(&format!("select helper.preview('{other}')")).await;
    call(&member, "write", json!({ "what": "e" })).await;
    assert_eq!(confirm(&member, &other).await["status"], "queued");
    until("the worker to ask again", async || {
        let told = status(&member, &other).await;
        (told["status"] == "awaiting_confirmation" && told["preview"]["is_other"] == true).then_some(())
    })
    .await;
    assert_eq!((app.lines("c").await, app.lines("d").await), (1, 1));
}

#[tokio::test]
async fn a_repeated_key_is_the_first_call() {
    let app = Application::start().await;
    let (member, admin) = (app.be(MEMBER).await, app.be(ADMIN).await);
    let keyed = "select helper.call('write', '{\"what\": \"once\"}', idempotency_key => 'k')::text";
    let first: String = member.one(keyed, &[]).await;
    assert_eq!(member.one::<String>(keyed, &[]).await, first);
    assert_eq!(refusal(&admin, keyed).await.0, "22023");
    let other = "select helper.call('write', '{\"what\": \"twice\"}', idempotency_key => 'k')";
    assert_eq!(refusal(&member, other).await.0, "22023");
    // All at once.
    let mut tasks = Vec::new();
    for _ in 0..20 {
        let session = app.be(MEMBER).await;
        tasks.push(tokio::spawn(async move {
            let sql = "select helper.call('write', '{\"what\": \"crowd\"}', idempotency_key => 'crowd')::text";
            session.one::<String>(sql, &[]).await
        }));
    }
    let mut calls = std::collections::BTreeSet::new();
    for task in tasks {
        calls.insert(task.await.unwrap());
    }
    assert_eq!((calls.len(), app.lines("once").await, app.lines("crowd").await), (1, 1, 1));
}

#[tokio::test]
async fn limits_are_counted_by_all_at_once() {
    let app = Application::start().await;
    let (member, admin, owner) = (app.be(MEMBER).await, app.be(ADMIN).await, app.be(OWNER).await);
    assert_eq!(refusal(&member, "select helper.set_function('write', false)").await.0, "42501");
    admin
        .run("select helper.set_function('write', limits => '{\"user_per_hour\": 10, \"workspace_per_day\": 12}')")
        .await;
    let mut tasks = Vec::new();
    for _ in 0..30 {
        let session = app.be(MEMBER).await;
        tasks.push(tokio::spawn(async move {
            match session.batch_execute("select helper.call('write', '{\"what\": \"limited\"}')").await {
                Ok(()) => true,
                Err(error) => {
                    assert_eq!(error.code().unwrap().code(), "53400", "{error:?}");
                    false
                }
            }
        }));
    }
    let mut made = 0;
    for task in tasks {
        made += i64::from(task.await.unwrap());
    }
    assert_eq!((made, app.lines("limited").await), (10, 10));
    // Others have some left, until the workspace has none; a call that is taken back was none.
    owner.run("begin; select helper.call('write', '{\"what\": \"limited\"}'); rollback").await;
    for _ in 0..2 {
        call(&owner, "write", json!({ "what": "limited" })).await;
    }
    let error = owner.error("select helper.call('write', '{\"what\": \"limited\"}')").await;
    assert_eq!(error.code().code(), "53400");
    assert!(error.detail().unwrap().contains("12") && error.hint().is_some(), "{error:?}");
    assert_eq!(app.lines("limited").await, 12);
    // Off is off for all, and on again takes the limits away with an empty list.
    admin.run("select helper.set_function('write', false)").await;
    assert_eq!(refusal(&owner, "select helper.call('write', '{\"what\": \"x\"}')").await.0, "42704");
    let offered: i64 =
        owner.one("select count(*) from helper.available_functions() where function_name = 'write'", &[]).await;
    assert_eq!(offered, 0);
    admin.run("select helper.set_function('write', true, '{}')").await;
    call(&owner, "write", json!({ "what": "limited" })).await;
    assert_eq!(app.lines("limited").await, 13);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_confirmations_at_once_have_one_effect() {
    let app = Application::on(Arc::new(Cluster::with("max_connections = 200").await)).await;
    let member = app.be(MEMBER).await;
    for queue in [false, true] {
        let what = if queue { "queued" } else { "at once" };
        let made: String = member
            .one(
                "select helper.call('ask_to_write', $1, options => $2)::text",
                &[&json!({ "what": what }), &json!({ "queue": queue })],
            )
            .await;
        let mut tasks = Vec::new();
        for _ in 0..100 {
            let session = app.be(MEMBER).await;
            let made = made.clone();
            tasks.push(tokio::spawn(
                async move { confirm(&session, &made).await["status"].as_str().unwrap().to_owned() },
            ));
        }
        for task in tasks {
            let status = task.await.unwrap();
            assert!(matches!(status.as_str(), "queued" | "running" | "succeeded"), "{status}");
        }
        until("the call to end", async || (status(&member, &made).await["status"] == "succeeded").then_some(())).await;
        assert_eq!(app.lines(what).await, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_confirm_reject_cancel_and_expiry_one_wins() {
    let app = Application::start().await;
    app.admin
        .run("select helper.register_function('hasty', 'write_ledger', options => '{\"lapse\": \"1 second\"}')")
        .await;
    let member = app.be(MEMBER).await;
    let mut seen: BTreeMap<String, i64> = BTreeMap::new();
    for round in 0..24 {
        let what = format!("round {round}");
        let function = if round % 3 == 2 { "hasty" } else { "ask_to_write" };
        let made = call(&member, function, json!({ "what": what })).await;
        let others: &[&str] = match round % 3 {
            0 => &["confirm", "reject"],
            1 => &["confirm", "cancel_call"],
            _ => &["confirm"],
        };
        if function == "hasty" {
            // As close to its end as can be.
            let wait = "select pg_sleep(extract(epoch from lapses_at - clock_timestamp()) - 0.0015) from helper.function_calls where id = $1::text::uuid";
            app.admin.query(wait, &[&made]).await.unwrap();
        }
        let mut tasks = Vec::new();
        for function in others.iter().cycle().take(6) {
            let session = app.be(MEMBER).await;
            let sql = format!("select helper.{function}('{made}')");
            tasks.push(tokio::spawn(async move {
                if let Err(error) = session.batch_execute(&sql).await {
                    assert_eq!(error.code().unwrap().code(), "55000", "{sql}: {error:?}");
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let end = status(&member, &made).await["status"].as_str().unwrap().to_owned();
        assert_eq!(app.lines(&what).await, i64::from(end == "succeeded"), "{end}");
        assert!(matches!(end.as_str(), "succeeded" | "rejected" | "cancelled" | "expired"), "{end}");
        *seen.entry(end).or_default() += 1;
    }
    println!("{seen:?}");
}

#[tokio::test]
async fn a_killed_worker_has_run_each_call_once() {
    let app = Application::start().await;
    let member = app.be(MEMBER).await;
    app.admin
        .run(
            "create function public.slowly(n integer, workspace uuid) returns void language plpgsql as $$ begin \
               insert into public.ledger (workspace_id, what) values (workspace, 'n' || n); perform pg_sleep(0.01); end $$; \
             select helper.register_function('slowly', 'slowly', 'Writes slowly', '{\"requires_confirmation\": false}')",
        )
        .await;
    const CALLS: i64 = 120;
    member
        .run(&format!(
            "select helper.call('slowly', jsonb_build_object('n', n), options => '{{\"queue\": true}}') from generate_series(1, {CALLS}) n"
        ))
        .await;
    drop(member);
    let mut session = app.cluster.admin().await;
    for kill in 1..=3 {
        until("some calls to be done", async || {
            let done: i64 = session.one("select count(*) from public.ledger", &[]).await;
            (done >= kill * 20).then_some(())
        })
        .await;
        let before = app.cluster.pids().await;
        signal(before.worker, "KILL");
        session = app.cluster.back_after(&before).await;
    }
    until("all calls to end", async || {
        let left: i64 = session.one("select count(*) from helper.function_calls where finished_at is null", &[]).await;
        (left == 0).then_some(())
    })
    .await;
    let statuses: String = session.one("select string_agg(distinct status, ',') from helper.function_calls", &[]).await;
    assert_eq!(statuses, "succeeded");
    let wrong: i64 = session
        .one("select count(*) from (select what from public.ledger group by what having count(*) <> 1) d", &[])
        .await;
    let lines: i64 = session.one("select count(*) from public.ledger", &[]).await;
    assert_eq!((lines, wrong), (CALLS, 0));
    let left: i64 = session
        .one("select (select count(*) from helper.job_queue where kind = 'call') + (select count(*) from helper.job_leases)", &[])
        .await;
    assert_eq!(left, 0);
}

#[tokio::test]
async fn nobody_gets_a_tool_to_do_more_than_they_may() {
    let app = Application::start().await;
    let (member, viewer) = (app.be(MEMBER).await, app.be(VIEWER).await);
    // By role in the workspace, by privilege, by row-level security.
    for function in ["write", "ask_to_write", "admin_write", "approved_write"] {
        let sql = format!("select helper.call('{function}', '{{\"what\": \"x\"}}')");
        assert_eq!(refusal(&viewer, &sql).await.0, "42501", "{sql}");
    }
    app.admin.run("select helper.register_function('anyone', 'write_ledger', options => '{\"requires_confirmation\": false, \"minimum_role\": \"viewer\"}')").await;
    let told = status(&viewer, &call(&viewer, "anyone", json!({ "what": "x" })).await).await;
    assert_eq!((&told["status"], &told["error"]["sqlstate"]), (&json!("failed"), &json!("42501")));
    assert_eq!(refusal(&member, "select helper.call('admin_write', '{\"what\": \"x\"}')").await.0, "42501");
    app.admin
        .run(
            "create function public.secret() returns void language sql as ''; revoke execute on function public.secret() from public; \
             select helper.register_function('secret', 'secret', 'Secret', '{\"requires_confirmation\": false}')",
        )
        .await;
    assert_eq!(refusal(&member, "select helper.call('secret')").await.0, "42501");
    // By a forged row, of a call or a queue entry.
    for sql in [
        "insert into helper.function_calls (workspace_id, function_id, function_name, function_version, user_id, principal_role, arguments, arguments_hash) \
           select helper.current_workspace(), f.id, f.function_name, f.updated_at, helper.current_user_id(), 'authenticated', '{\"what\": \"x\"}', sha256('') \
           from helper.functions f where f.function_name = 'admin_write'",
        "update helper.function_calls set status = 'queued'",
        "update helper.functions set minimum_role = 'viewer'",
        "insert into helper.function_settings (workspace_id, function_name, enabled) values (helper.current_workspace(), 'write', true)",
        "insert into helper.jobs (workspace_id, kind, principal_role) values (helper.current_workspace(), 'call', 'postgres')",
        "select helper._move_call(helper.current_workspace(), gen_random_uuid(), '{pending}', 'queued')",
        "select principal_claims from helper.function_calls",
        "select credential from helper.functions",
    ] {
        assert_eq!(refusal(&member, sql).await.0, "42501", "{sql}");
    }
    // By a tool that becomes somebody else, for good or for a moment.
    app.admin
        .run(
            "create function public.becomes(how text) returns text language plpgsql as $$ begin execute how; return current_user; end $$; \
             select helper.register_function('becomes', 'becomes', 'Becomes', '{\"requires_confirmation\": false}')",
        )
        .await;
    for (how, code) in [
        ("set role postgres", "42501"),
        ("set local role service_role", "42501"),
        ("reset role", "42501"),
        ("set session authorization postgres", "42501"),
        ("select set_config('role', 'none', true)", "42501"),
        (&format!("select set_config('request.jwt.claims', '{{\"sub\": \"{OWNER}\"}}', false)"), "42501"),
        (&format!("set local request.jwt.claims = '{{\"sub\": \"{OWNER}\"}}'"), "42501"),
        ("set helper_ai.workspace = '00000000-0000-4000-8000-000000000001'", "42501"),
        ("commit", "2D000"),
        ("rollback", "2D000"),
        ("select helper.confirm(gen_random_uuid())", "42501"),
    ] {
        // EXECUTE refuses transaction control by a code of its own.
        let told = status(&member, &call(&member, "becomes", json!({ "how": how })).await).await;
        let code = if code == "2D000" { "0A000" } else { code };
        assert_eq!((&told["status"], &told["error"]["sqlstate"]), (&json!("failed"), &json!(code)), "{how}: {told}");
        let now: String = member.one("select current_user::text || helper.current_user_id()", &[]).await;
        assert_eq!(now, format!("authenticated{MEMBER}"));
    }
    // By a search path, of the caller's or the tool's making.
    app.admin
        .run(
            "create schema attic; grant all on schema attic to authenticated; grant create on schema public to authenticated; \
             create function public.current_name() returns text language sql as $$ select 'true' $$; \
             create function public.own_name() returns text language sql as 'select current_name()'; \
             select helper.register_function('own_name', 'own_name', 'Name', '{\"requires_confirmation\": false}')",
        )
        .await;
    member
        .run(
            "create function attic.current_name() returns text language sql as $$ select 'false' $$; \
             create function pg_temp.current_name() returns text language sql as $$ select 'false' $$; \
             create function attic.own_name() returns text language sql as $$ select 'false' $$; \
             set search_path = attic, pg_temp, public",
        )
        .await;
    assert_eq!(status(&member, &call(&member, "own_name", json!({})).await).await["result"], "true");
    assert_eq!(member.one::<String>("show search_path", &[]).await, "attic, pg_temp, public");
    member.run("reset search_path").await;
    // By another function of the same name that fits better.
    member
        .run(
            "create function public.write_ledger(what text) returns jsonb language sql as $$ select '{\"wrote\": \"nothing\"}'::jsonb $$; \
             create function public.write_ledger(what text, workspace uuid) returns jsonb language sql as $$ select '{\"wrote\": \"nothing\"}'::jsonb $$",
        )
        .await;
    let owner = app.be(OWNER).await;
    let told = status(&owner, &call(&owner, "write", json!({ "what": "y" })).await).await;
    // Not unique: it does not run at all until somebody clears that up.
    assert_eq!((&told["status"], &told["error"]["sqlstate"]), (&json!("failed"), &json!("42725")), "{told}");
    let told = status(&owner, &call(&owner, "write", json!({ "what": "y", "amount": 1 })).await).await;
    assert_eq!(told["result"], json!({ "wrote": "y" }));
    // By a security definer function that calls as whoever looks.
    app.admin.run("create role mallory nologin; grant usage, create on schema attic to mallory; grant usage on schema helper to mallory; grant execute on all functions in schema helper to mallory").await;
    app.admin
        .run(
            "set role mallory; \
             create function attic.trap() returns uuid language sql security definer as $$ select helper.call('admin_write', '{\"what\": \"trapped\"}') $$; \
             reset role",
        )
        .await;
    assert_eq!(refusal(&owner, "select attic.trap()").await.0, "42501");
    let ledger = app.ledger().await;
    assert!(ledger.keys().all(|what| what == "y"), "{ledger:?}");
}

#[tokio::test]
async fn calls_are_seen_by_those_they_concern() {
    let app = Application::start().await;
    let (member, admin, viewer, owner) =
        (app.be(MEMBER).await, app.be(ADMIN).await, app.be(VIEWER).await, app.be(OWNER).await);
    call(&member, "write", json!({ "what": "a" })).await;
    call(&member, "approved_write", json!({ "what": "b" })).await;
    call(&viewer, "read", json!({})).await;
    app.admin.run("select helper.register_function('by_viewer', 'write_ledger', options => '{\"approver_role\": \"viewer\"}')").await;
    call(&owner, "by_viewer", json!({ "what": "c" })).await;
    let count = "select count(*) from helper.function_calls";
    for (session, seen) in [(&member, 3), (&admin, 4), (&viewer, 2), (&owner, 4)] {
        assert_eq!(session.one::<i64>(count, &[]).await, seen);
    }
    assert_eq!(app.be(OUTSIDER).await.one::<i64>(count, &[]).await, 0);
}

#[tokio::test]
async fn who_approves_sees_what_was_shown_first() {
    let app = Application::start().await;
    let (member, admin) = (app.be(MEMBER).await, app.be(ADMIN).await);
    app.admin
        .run("select helper.register_function('raise_by_two', 'raise_amounts', 'Raises', '{\"approver_role\": \"admin\"}')")
        .await;
    call(&member, "write", json!({ "what": "a" })).await;
    let made = call(&member, "raise_by_two", json!({ "by": 10 })).await;
    let first = status(&admin, &made).await;
    assert_eq!(first["preview"]["tables"][0]["updated"], 1);
    // What the caller tries meanwhile, in a transaction that is taken back say, is not what the approver sees.
    call(&member, "write", json!({ "what": "b" })).await;
    member.run(&format!("select helper.preview('{made}')")).await;
    let second = status(&admin, &made).await;
    assert_eq!((&second["preview"], &second["effect"]), (&first["preview"], &first["effect"]));
    // And the call does that or asks again.
    assert_eq!(confirm(&admin, &made).await["status"], "queued");
    until("the worker to ask again", async || {
        (status(&admin, &made).await["preview"]["is_other"] == true).then_some(())
    })
    .await;
    assert_eq!(status(&admin, &made).await["preview"]["tables"][0]["updated"], 2);
}

#[tokio::test]
async fn an_approval_is_for_the_effect_that_was_seen() {
    let app = Application::start().await;
    let member = app.be(MEMBER).await;
    call(&member, "write", json!({ "what": "a" })).await;
    let made = call(&member, "raise", json!({ "by": 10 })).await;
    let preview = format!("select helper.preview('{made}') ->> 'effect'");
    let confirm = |effect: &str| format!("select helper.confirm('{made}', '{effect}') ->> 'status'");
    // Nothing was seen yet.
    let error = member.error(&confirm("00")).await;
    assert_eq!((error.code().code(), error.hint().is_some()), ("55000", true));
    assert_eq!(refusal(&member, &confirm("what I saw")).await.0, "22023");
    let seen: String = member.one(&preview, &[]).await;
    assert_eq!(status(&member, &made).await["effect"], json!(seen));
    // Somebody else at the same desk previews it anew, when it would do something else.
    call(&member, "write", json!({ "what": "b" })).await;
    let newer: String = app.be(MEMBER).await.one(&preview, &[]).await;
    assert_ne!(seen, newer);
    let error = member.error(&confirm(&seen)).await;
    assert_eq!((error.code().code(), error.hint().is_some()), ("55000", true), "{error:?}");
    assert_eq!(app.admin.one::<i64>("select sum(amount) from public.ledger", &[]).await, 2);
    assert_eq!(member.one::<String>(&confirm(&newer), &[]).await, "succeeded");
    // Confirmed once is confirmed, whatever comes later.
    assert_eq!(member.one::<String>(&confirm(&seen), &[]).await, "succeeded");
    assert_eq!(app.admin.one::<i64>("select sum(amount) from public.ledger", &[]).await, 22);
}

#[tokio::test]
async fn every_row_counts_for_the_effect_and_a_hundred_are_shown() {
    let app = Application::start().await;
    let member = app.be(MEMBER).await;
    member
        .run("insert into public.ledger (workspace_id, what) select helper.current_workspace(), 'n' || n from generate_series(1, 3000) n")
        .await;
    let made = call(&member, "raise", json!({ "by": 10 })).await;
    let told: Value = member.one(&format!("select helper.preview('{made}')"), &[]).await;
    let table = &told["preview"]["tables"][0];
    assert_eq!((&table["updated"], &table["is_whole"]), (&json!(3000), &json!(false)));
    assert_eq!(table["rows"].as_array().unwrap().len(), 100);
    // One row of those that nobody sees.
    app.admin.run("update public.ledger set amount = 2 where what = 'n2500'").await;
    let told = confirm(&member, &made).await;
    assert_eq!((&told["status"], &told["preview"]["is_other"]), (&json!("awaiting_confirmation"), &json!(true)));
    assert_eq!(confirm(&member, &made).await["status"], "succeeded");
    // New rows have other keys every time, and children name their parents by them; the worker's zone is another.
    app.admin
        .run(
            "create table public.batches (id bigint generated always as identity primary key, at timestamp not null default localtimestamp(0)); \
             create table public.parts (batch_id bigint references public.batches, n integer, at timestamp not null default (now() at time zone 'Asia/Tokyo'), primary key (batch_id, n)); \
             grant select, insert on public.batches, public.parts to authenticated; \
             create function public.make_batches(count integer) returns void language sql as $$ \
               with made as (insert into public.batches select from generate_series(1, count) returning id) \
               insert into public.parts (batch_id, n) select id, n from made, generate_series(1, 2) n $$; \
             select helper.register_function('make_batches', 'make_batches', 'Makes batches')",
        )
        .await;
    member.run("set timezone = 'Asia/Jakarta'").await;
    let made: String = member
        .one("select helper.call('make_batches', '{\"count\": 1200}', options => '{\"queue\": true}')::text", &[])
        .await;
    member.run(&format!("select helper.preview('{made}')")).await;
    assert_eq!(confirm(&member, &made).await["status"], "queued");
    until("the worker to run it", async || {
        let told = status(&member, &made).await;
        assert_ne!(told["status"], "awaiting_confirmation", "{}", told["preview"]["tables"][1]["rows"][0]);
        (told["status"] == "succeeded").then_some(())
    })
    .await;
    assert_eq!(app.admin.one::<i64>("select count(*) from public.parts", &[]).await, 2400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_that_call_limited_tools_in_another_order_do_not_deadlock() {
    let app = Application::start().await;
    let admin = app.be(ADMIN).await;
    for function in ["write", "read", "wait"] {
        let limits =
            r#"{"user_per_hour": 1000, "user_per_day": 1000, "workspace_per_hour": 1000, "workspace_per_day": 1000}"#;
        admin.run(&format!("select helper.set_function('{function}', limits => '{limits}')")).await;
    }
    admin.run("select helper.set_function('wait', limits => '{\"user_per_hour\": 1000}')").await;
    let write = r#"select helper.call('write', '{"what": "x"}')"#;
    let (read, wait) = ("select helper.call('read')", r#"select helper.call('wait', '{"seconds": 0}')"#);
    let mut tasks = Vec::new();
    for (person, order) in [(MEMBER, [write, read, wait]), (ADMIN, [wait, read, write]), (MEMBER, [read, wait, write])]
    {
        let session = app.be(person).await;
        tasks.push(tokio::spawn(async move {
            for _ in 0..25 {
                session.run(&format!("begin; {}; commit", order.join("; "))).await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(app.lines("x").await, 75);
}

#[tokio::test]
async fn the_record_of_a_call_is_kept_for_a_time() {
    let app = Application::start().await;
    let member = app.be(MEMBER).await;
    let keyed = "select helper.call('write', '{\"what\": \"x\"}', idempotency_key => 'k')::text";
    let old: String = member.one(keyed, &[]).await;
    let (new, waits) =
        (call(&member, "read", json!({})).await, call(&member, "ask_to_write", json!({ "what": "y" })).await);
    app.admin
        .run(&format!(
            "update helper.function_calls set created_at = now() - interval '2 years', \
               finished_at = case when status = 'succeeded' then now() - interval '2 years' end where id in ('{old}', '{waits}'); \
             insert into helper.function_calls (workspace_id, function_id, function_name, function_version, user_id, principal_role, arguments, arguments_hash, status, finished_at) \
             select c.workspace_id, c.function_id, c.function_name, c.function_version, c.user_id, c.principal_role, c.arguments, c.arguments_hash, 'failed', now() - interval '2 years' \
             from helper.function_calls c cross join generate_series(1, 2500) where c.id = '{old}'"
        ))
        .await;
    app.cluster.reload();
    until("old calls to go", async || {
        let left: i64 = app.admin.one("select count(*) from helper.function_calls", &[]).await;
        (left == 2).then_some(())
    })
    .await;
    assert_eq!(status(&member, &new).await["status"], "succeeded");
    assert_eq!(status(&member, &waits).await["status"], "awaiting_confirmation");
    assert_ne!(member.one::<String>(keyed, &[]).await, old);
}
