//! What callers try who want more than they may have: odd claims, foreign ids, names that look like ours, code that hopes to
//! run with our rights. And what an application's own policies hide.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod tenants;

use cluster::Session;
use serde_json::{Value, json};
use tenants::{World, attempt, rehearse};

async fn set_claims(session: &Session, claims: &str) {
    session.one::<String>("select pg_catalog.set_config('request.jwt.claims', $1, false)", &[&claims]).await;
}

/// Rows that a session sees of everything that members see.
const SEEN: &str = "select (select count(*) from helper.workspaces) + (select count(*) from helper.workspace_members) \
    + (select count(*) from helper.profiles) + (select count(*) from helper.conversations) + (select count(*) from helper.messages) \
    + (select count(*) from helper.message_citations) + (select count(*) from helper.knowledge_sources) \
    + (select count(*) from helper.knowledge_chunks) + (select count(id) from helper.jobs) + (select count(*) from helper.index_progress)";

#[tokio::test]
async fn odd_claims_are_nobody_or_who_they_say_and_never_an_error_of_ours() {
    let world = World::new().await;
    let session = world.cluster.session("postgres", "authenticated", &json!({})).await;
    let member = &world.tenants[0].people["member"];
    let nobody = [
        "".to_owned(),
        " ".into(),
        "{}".into(),
        "null".into(),
        "7".into(),
        "[]".into(),
        "\"text\"".into(),
        "garbage".into(),
        "{\"sub\"".into(),
        "{\"sub\": null}".into(),
        "{\"sub\": 7}".into(),
        "{\"sub\": \"\"}".into(),
        "{\"sub\": \"admin\"}".into(),
        format!("{{\"sub\": [\"{member}\"]}}"),
        format!("{{\"sub\": {{\"id\": \"{member}\"}}}}"),
        format!("{{\"sub\": \" {member}\"}}"),
        format!("{{\"sub\": \"{member}'; drop table helper.messages; --\"}}"),
        format!("{{\"SUB\": \"{member}\"}}"),
        format!("[{{\"sub\": \"{member}\"}}]"),
        format!("{{\"role\": \"service_role\", \"user_id\": \"{member}\"}}"),
        "{\"role\": \"postgres\"}".into(),
        format!("{}1{}", "[".repeat(20000), "]".repeat(20000)),
    ];
    for path in ["on", "off"] {
        session.run(&format!("set standard_conforming_strings = {path}")).await;
        for claims in &nobody {
            set_claims(&session, claims).await;
            assert_eq!(attempt(&session, "select helper.current_user_id()").await, Ok("null".into()), "{claims:.80}");
            assert_eq!(attempt(&session, SEEN).await, Ok("0".into()), "{claims:.80}");
            assert_eq!(
                attempt(&session, "select helper.create_workspace('x')").await,
                Err("42501".into()),
                "{claims:.80}"
            );
            let asked = attempt(&session, &world.fill("select helper.ask('x', workspace => '$ws')", 0, "owner")).await;
            assert_eq!(asked, Err("42704".into()), "{claims:.80}");
        }
    }
    // A session that begins under the odd setting has no plans from before it.
    let fresh = world.cluster.session("postgres", "authenticated", &json!({})).await;
    fresh.run("set standard_conforming_strings = off").await;
    assert_eq!(attempt(&fresh, "select helper.current_user_id()").await, Ok("null".into()));
    assert_eq!(attempt(&fresh, "select helper.create_workspace('SSS')").await, Err("42501".into()));
    // Whatever role the claims name, it is the database's role that counts.
    for role in ["service_role", "postgres", "anon"] {
        set_claims(&session, &json!({ "sub": member, "role": role, "is_admin": true }).to_string()).await;
        assert_eq!(attempt(&session, "select helper.my_role(helper.current_workspace())").await, Ok("member".into()));
        assert_eq!(attempt(&session, "select helper.status()").await, Err("42501".into()));
        let deleted = rehearse(&session, &world.fill("select helper.delete_workspace('$ws')", 0, "owner")).await;
        assert_eq!(deleted, Err("42501".into()));
    }
    // PostgREST's older settings, one for each claim: the sub counts only where the claims are not set.
    set_claims(&session, "").await;
    session.run(&format!("set request.jwt.claim.sub = '{member}'")).await;
    assert_eq!(attempt(&session, "select helper.current_user_id()").await, Ok(member.clone()));
    set_claims(&session, "garbage").await;
    assert_eq!(attempt(&session, "select helper.current_user_id()").await, Ok("null".into()));
    session.run("set request.jwt.claim.sub = ''").await;

    // The workspace that a setting or a claim names must be one's own.
    let foreign = world.tenants[1].workspace.clone();
    set_claims(&session, &json!({ "sub": member }).to_string()).await;
    for (setting, code) in
        [(foreign.as_str(), "42704"), ("garbage", "22023"), ("00000000-0000-7000-8000-000000000000", "42704")]
    {
        session.run(&format!("set helper_ai.workspace = '{setting}'")).await;
        for call in [
            "count(*) from helper.search('refunds')",
            "helper.ask('refunds')",
            "helper.add_document('x', 'x')",
            "helper.create_conversation()",
            "count(*) from helper.list_conversations()",
            "count(*) from helper.search_conversations('x')",
            "helper.reindex()",
            "helper.add_file('x.txt', 'x')",
            "helper.current_workspace()",
        ] {
            assert_eq!(rehearse(&session, &format!("select {call}")).await, Err(code.into()), "{call} in {setting}");
        }
        assert_eq!(attempt(&session, "select count(*) from helper.knowledge_sources where workspace_id = current_setting('helper_ai.workspace')::uuid")
            .await.unwrap_or_else(|code| code), if setting == "garbage" { "22P02" } else { "0" });
    }
    session.run("reset helper_ai.workspace").await;
    for claims in [
        json!({ "sub": member, "workspace_id": foreign }),
        json!({ "sub": member, "app_metadata": { "workspace_id": foreign } }),
    ] {
        set_claims(&session, &claims.to_string()).await;
        assert_eq!(attempt(&session, "select helper.ask('refunds')").await, Err("42704".into()), "{claims}");
    }
    // The roles that are nobody cannot be renamed by one of them, nor can the limits be lifted.
    for set in [
        "helper_ai.api_roles = 'x'",
        "helper_ai.max_document_size = '250MB'",
        "helper_ai.model_path = '/tmp'",
        "role = 'postgres'",
        "role = 'service_role_x'",
        "session authorization postgres",
    ] {
        let code = attempt(&session, &format!("set {set}")).await.unwrap_err();
        assert!(["42501", "55P02", "22023"].contains(&code.as_str()), "{set}: {code}");
    }
}

#[tokio::test]
async fn nobody_can_tell_a_foreign_id_from_one_that_does_not_exist() {
    let world = World::new().await;
    let nothing = "00000000-0000-7000-8000-00000000ffff";
    let told = async |session: &Session, sql: &str, id: &str| {
        let error = session.error(&sql.replace("$id", id)).await;
        let text = [Some(error.code().code()), Some(error.message()), error.detail(), error.hint(), error.where_()];
        text.map(|text| text.unwrap_or_default().replace(id, "ID")).join("\n")
    };
    for role in ["outsider", "viewer", "member", "admin", "owner"] {
        let session = world.be(0, role).await;
        for (kind, calls) in [
            (
                "$foreign",
                &[
                    "select helper.current_workspace('$id')",
                    "select helper.search('x', '$id')",
                    "select helper.ask('x', workspace => '$id')",
                    "select helper.add_document('x', 'x', workspace => '$id')",
                    "select helper.add_file('x', 'x', workspace => '$id')",
                    "select helper.reindex(workspace => '$id')",
                    "select helper.wait_indexed('$id')",
                    "select helper.add_member('$id', '$id')",
                    "select helper.remove_member('$id', '$id')",
                    "select helper.delete_workspace('$id')",
                    "select helper.create_conversation('x', '$id')",
                    "select helper.list_conversations('$id')",
                    "select helper.search_conversations('x', '$id')",
                    "insert into helper.conversations (workspace_id) values ('$id')",
                    "insert into helper.workspace_members (workspace_id, user_id) values ('$id', '$id')",
                ][..],
            ),
            ("$foreign_document", &["select helper.remove_document('$id')", "select helper.reindex('$id')"][..]),
            (
                "$foreign_conversation",
                &[
                    "select helper.ask('x', '$id')",
                    "select helper.answer('x', '$id')",
                    "select helper.rename_conversation('$id', 'x')",
                    "select helper.delete_conversation('$id')",
                    "select helper.export_conversation('$id')",
                    "select helper.export_conversation('$id', 'json')",
                ][..],
            ),
        ] {
            let foreign = world.fill(kind, 0, role);
            for call in calls {
                assert_eq!(told(&session, call, &foreign).await, told(&session, call, nothing).await, "{role}: {call}");
            }
        }
    }
}

/// A role that may make objects of its own, and makes them to be taken for ours or Postgres's.
async fn mallory(world: &World) -> Session {
    world
        .admin
        .run(
            "create role mallory login; grant authenticated to mallory; grant create on database postgres to mallory; \
             create schema lair authorization mallory; grant usage, create on schema public to mallory",
        )
        .await;
    let session = world.cluster.connect("postgres", "mallory").await;
    session
        .run(
            "create table lair.log (who name, what text); grant all on lair.log to public; grant usage on schema lair to public; \
             create function lair.note(what text) returns boolean language plpgsql as $$ \
               begin insert into lair.log values (current_user, what); return true; \
               exception when others then return true; end $$; \
             create function lair.equal(uuid, uuid) returns boolean language sql as $$ select lair.note('=') $$; \
             create operator lair.= (leftarg = uuid, rightarg = uuid, function = lair.equal); \
             create function lair.equal(text, text) returns boolean language sql as $$ select lair.note('= text') $$; \
             create operator lair.= (leftarg = text, rightarg = text, function = lair.equal); \
             create function lair.format(text, variadic text[]) returns text language sql as $$ select lair.note('format')::text $$; \
             create function lair.current_setting(text, boolean) returns text language sql as $$ select lair.note('current_setting')::text $$; \
             create function lair.btrim(text, text) returns text language sql as $$ select lair.note('btrim')::text $$; \
             create function lair.octet_length(text) returns integer language sql as $$ select lair.note('octet_length')::int $$; \
             create function lair.sha256(bytea) returns bytea language sql as $$ select ''::bytea from lair.note('sha256') $$; \
             create function lair.to_jsonb(anyelement) returns jsonb language sql as $$ select '{}'::jsonb from lair.note('to_jsonb') $$; \
             create function lair.vector_dims(real[]) returns integer language sql as $$ select lair.note('vector_dims')::int $$; \
             create type lair.text as enum ('x'); create domain lair.uuid as pg_catalog.text; create domain lair.jsonb as pg_catalog.text; \
             set search_path = lair, pg_temp, pg_catalog, public",
        )
        .await;
    for table in [
        "workspaces",
        "workspace_members",
        "membership_source",
        "knowledge_sources",
        "knowledge_chunks",
        "knowledge_vectors",
        "knowledge_terms",
        "knowledge_stats",
        "conversations",
        "messages",
        "pg_class",
        "pg_depend",
        "pg_extension",
        "pg_roles",
    ] {
        session
            .run(&format!(
                "create temporary table {table} (id pg_catalog.uuid, workspace_id pg_catalog.uuid, user_id pg_catalog.uuid, role pg_catalog.text); \
                 create rule noted as on insert to {table} do also select lair.note('{table}')"
            ))
            .await;
    }
    session
}

/// Roles that ran the code of mallory.
async fn ran(world: &World) -> Vec<String> {
    let rows =
        world.admin.query("select distinct who::text || ': ' || what from lair.log order by 1", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn names_that_look_like_ours_are_not_taken_for_ours() {
    let world = World::new().await;
    let session = mallory(&world).await;
    session.run("set role authenticated").await;
    for (sub, own) in [(&world.tenants[0].people["member"], true), (&world.tenants[0].people["outsider"], false)] {
        session
            .one::<String>(
                "select pg_catalog.set_config('request.jwt.claims', $1, false)",
                &[&json!({ "sub": sub }).to_string()],
            )
            .await;
        let role = if own { "member" } else { "outsider" };
        for (call, fine) in [
            ("select helper.current_user_id()", true),
            ("select helper.current_workspace()", own),
            ("select count(*) from helper.search('refunds')", own),
            ("select helper.ask('How are refunds paid?')", own),
            ("select helper.add_document('New', 'Text', 'note', 'n')", own),
            ("select helper.add_document('New', 'Text again', 'note', 'n')", own),
            ("select helper.add_file('a.txt', 'x')", own),
            ("select helper.create_conversation('x')", own),
            ("select helper.search_conversations('refunds')", own),
            ("select count(*) from helper.embed_many(array['x'])", true),
            ("select helper.create_workspace('Mine')", true),
            ("select helper.search('refunds', '$foreign')", false),
            ("select helper.delete_workspace('$foreign')", false),
            ("select helper.add_member('$foreign', '$me', 'owner')", false),
            ("select helper.remove_document('$foreign_document')", false),
            ("select helper.ask('x', '$foreign_conversation')", false),
        ] {
            let outcome = rehearse(&session, &world.fill(call, 0, role)).await;
            assert_eq!(outcome.is_ok(), fine, "{role}: {call}: {outcome:?}");
        }
    }
    // What runs as the caller may find the caller's names, and does no more than the caller could; nothing else does.
    let others: Vec<String> = ran(&world).await.into_iter().filter(|who| !who.starts_with("authenticated: ")).collect();
    assert_eq!(others, Vec::<String>::new());
}

#[tokio::test]
async fn code_of_an_attached_tables_owner_never_runs_with_our_rights() {
    let world = World::new().await;
    let session = mallory(&world).await;
    session.run("set search_path = public").await;
    session
        .run(
            "create table lair.notes (id int primary key, name text, body text, mood text); \
             insert into lair.notes values (1, 'One', 'The first note.', 'good')",
        )
        .await;
    world
        .admin
        .run(&world.fill(
            "set request.jwt.claims = '{\"sub\": \"$owner\"}'; \
             select helper.attach_table('lair.notes', 'name', 'body', 'note', metadata => '{mood}', workspace => '$ws')",
            0,
            "owner",
        ))
        .await;
    session
        .run(
            "create type lair.mood as enum ('good', 'bad'); \
             create function lair.mood_json(lair.mood) returns json language sql as $$ select '1'::json from lair.note('cast to json') $$; \
             create cast (lair.mood as json) with function lair.mood_json(lair.mood); \
             create function lair.mood_text(lair.mood) returns text language sql as $$ select 'x'::text from lair.note('cast to text') $$; \
             create cast (lair.mood as text) with function lair.mood_text(lair.mood) as assignment; \
             create type lair.pair as (a lair.mood, b lair.mood); \
             alter table lair.notes alter column mood type lair.mood using mood::lair.mood; \
             alter table lair.notes alter column name type lair.mood[] using array['good'::lair.mood]; \
             alter table lair.notes alter column body type lair.pair using row('good', 'bad')::lair.pair; \
             truncate lair.log; \
             insert into lair.notes values (2, '{good}', '(good,bad)', 'bad'); update lair.notes set mood = 'bad'; delete from lair.notes where id = 1",
        )
        .await;
    let rows = world
        .admin
        .query("select external_id, metadata ->> 'mood' from helper.knowledge_sources where source_type = 'note' order by 1", &[])
        .await
        .unwrap();
    let rows: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(rows, [("2".to_owned(), "bad".to_owned())]);
    // The rows are followed, and none of it ran.
    assert_eq!(ran(&world).await, Vec::<String>::new());
}

#[tokio::test]
async fn attaching_a_table_needs_rights_to_all_of_its_rows() {
    let world = World::new().await;
    world
        .admin
        .run(
            "create role keeper login; select helper.grant_usage('keeper'); \
             grant execute on function helper.attach_table(regclass, text, text, text, text[], text[], uuid, text, text) to keeper; \
             grant execute on function helper.detach_table(regclass, text, boolean) to keeper; \
             create table public.private_rows (id int primary key, t text, c text); \
             create table public.plain_rows (id int primary key, t text, c text)",
        )
        .await;
    let keeper = world.cluster.connect("postgres", "keeper").await;
    set_claims(&keeper, &world.fill("{\"sub\": \"$owner\"}", 0, "owner")).await;
    let attach = |table: &str| {
        format!("select helper.attach_table('{table}', 't', 'c', workspace => '{}')", world.tenants[0].workspace)
    };
    for table in ["public.private_rows", "public.plain_rows"] {
        assert_eq!(rehearse(&keeper, &attach(table)).await, Err("42501".into()));
        assert_eq!(rehearse(&keeper, &format!("select helper.detach_table('{table}')")).await, Err("42501".into()));
    }
    world.admin.run("grant select, trigger on public.private_rows, public.plain_rows to keeper").await;
    assert_eq!(rehearse(&keeper, &attach("public.plain_rows")).await, Ok("0".into()));
    assert_eq!(rehearse(&keeper, &attach("public.private_rows")).await, Ok("0".into()));
    world.admin.run("alter table public.private_rows enable row level security").await;
    assert_eq!(rehearse(&keeper, &attach("public.private_rows")).await, Err("42501".into()));
    // Not into a workspace of others, and none of our own tables or the catalogs.
    let foreign = attach("public.plain_rows").replace(&world.tenants[0].workspace, &world.tenants[1].workspace);
    assert_eq!(rehearse(&keeper, &foreign).await, Err("42704".into()));
    for table in ["helper.messages", "helper.knowledge_inputs", "pg_catalog.pg_authid"] {
        assert_eq!(rehearse(&keeper, &attach(table)).await, Err("42501".into()), "{table}");
    }
    // A member is no admin.
    set_claims(&keeper, &world.fill("{\"sub\": \"$me\"}", 0, "member")).await;
    assert_eq!(rehearse(&keeper, &attach("public.plain_rows")).await, Err("42501".into()));
}

/// Workspace with many documents about refunds, the best of which a policy of the application hides.
async fn hide_the_best(world: &World) -> Session {
    let admin = world.be(0, "admin").await;
    admin
        .run(
            "select helper.add_document(format('Refund secret %s', n), format('Refunds are paid within %s days, says secret rule number %s of refunds.', n, n), 'kb_article', 'secret' || n, '{\"secret\": true}') \
             from generate_series(1, 300) n; \
             select helper.add_document(format('Garden %s', n), format('In garden %s somebody once asked about refunds for tulip bulbs number %s and got a long reply about soil, water and light.', n, n * 7), 'kb_article', 'open' || n) \
             from generate_series(1, 20) n",
        )
        .await;
    admin.run("select helper.wait_indexed()").await;
    admin
}

const BEST: [&str; 3] = ["hybrid", "vector", "text"];

async fn found(session: &Session, method: &str, k: i32) -> Vec<(String, String)> {
    session
        .query("select title, content from helper.search('secret rule refunds', k => $1, method => $2)", &[&k, &method])
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

async fn answer(session: &Session, question: &str) -> Value {
    session.one("select to_jsonb(a) from helper.answer($1) a", &[&question]).await
}

#[tokio::test]
async fn policies_of_the_application_are_honoured_by_search_and_ask() {
    let world = World::new().await;
    let admin = hide_the_best(&world).await;
    let member = world.be(0, "member").await;
    for method in BEST {
        let all = found(&member, method, 8).await;
        assert_eq!(all.len(), 8);
        assert!(all.iter().all(|(title, _)| title.starts_with("Refund secret")), "{method}: {all:?}");
    }
    assert!(
        answer(&member, "Within how many days are refunds paid by the secret rule?")
            .await
            .to_string()
            .contains("secret")
    );

    // The policy's function notes who runs it.
    world
        .admin
        .run(
            "create table public.witness (who name, role text); grant insert, select on public.witness to public; \
             create function public.may_see(title text) returns boolean language plpgsql as $$ begin \
               if random() < 0.05 then insert into public.witness values (current_user, current_setting('is_superuser')); end if; \
               return title !~ 'secret' or current_setting('request.jwt.claims', true)::jsonb ->> 'clearance' = 'high'; end $$",
        )
        .await;
    let person = world.tenants[0].people["member"].clone();
    for (policy, table) in [
        (
            "create policy hide on helper.knowledge_sources as restrictive for select using (public.may_see(title))",
            "knowledge_sources",
        ),
        (
            "create policy hide on helper.knowledge_chunks as restrictive for select using (public.may_see(content))",
            "knowledge_chunks",
        ),
    ] {
        world.admin.run(policy).await;
        for method in BEST {
            for k in [1, 8, 20] {
                let seen = found(&member, method, k).await;
                let leaked: Vec<_> = seen
                    .iter()
                    .filter(|(title, content)| title.contains("secret") || content.contains("secret"))
                    .collect();
                assert!(leaked.is_empty(), "{table}, {method}: {leaked:?}");
                // All that fits best is hidden: the search goes on until it has enough.
                assert_eq!(seen.len(), k as usize, "{table}, {method}");
            }
        }
        let reply = answer(&member, "Within how many days are refunds paid by the secret rule?").await;
        assert!(!reply["answer"].to_string().contains("secret"), "{table}: {reply}");
        assert!(!reply["citations"].to_string().contains("secret"), "{table}: {reply}");
        let text: String =
            member.one("select helper.ask('Which secret rule number says that refunds are paid?')", &[]).await;
        assert!(!text.contains("secret"), "{table}: {text}");
        // The policy decides for each caller anew, also in one session.
        set_claims(&member, &json!({ "sub": person, "clearance": "high" }).to_string()).await;
        for method in BEST {
            assert!(
                found(&member, method, 8).await.iter().all(|(title, _)| title.starts_with("Refund secret")),
                "{table}, {method}"
            );
        }
        set_claims(&member, &json!({ "sub": person }).to_string()).await;
        for method in BEST {
            assert!(
                found(&member, method, 8).await.iter().all(|(title, _)| !title.contains("secret")),
                "{table}, {method}"
            );
        }
        // Nor can what is hidden be told from what does not exist, changed or counted, not by an admin either.
        if table == "knowledge_sources" {
            let hidden: String = world
                .admin
                .one("select id::text from helper.knowledge_sources where external_id = 'secret1'", &[])
                .await;
            for call in ["remove_document", "reindex"] {
                let outcome = rehearse(&admin, &format!("select helper.{call}('{hidden}')")).await;
                assert_eq!(outcome, Err("42704".into()), "{call}");
            }
            assert_eq!(attempt(&admin, "select documents from helper.index_progress").await, Ok("23".into()));
            let replaced = "select helper.add_document('x', 'x', 'kb_article', 'secret1')";
            assert_eq!(rehearse(&admin, replaced).await, Err("42501".into()));
            // Citations of hidden documents go with them.
            let cited: i64 =
                member.one("select count(*) from helper.message_citations where title ~ 'secret'", &[]).await;
            assert_eq!(cited, 0);
        }
        // Turning row-level security off is an error, not a way around it.
        member.run("set row_security = off").await;
        assert_eq!(attempt(&member, "select count(*) from helper.search('refunds')").await, Err("42501".into()));
        member.run("reset row_security").await;
        world.admin.run(&format!("drop policy hide on helper.{table}")).await;
    }
    let rows = world.admin.query("select distinct who::text, role from public.witness", &[]).await.unwrap();
    let who: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(who, [("authenticated".to_owned(), "off".to_owned())], "a policy's function ran as somebody else");

    // A policy that hides everything leaves nothing, and no answer.
    world.admin.run("create policy hide on helper.knowledge_chunks as restrictive for select using (false)").await;
    for method in BEST {
        assert_eq!(found(&member, method, 8).await, []);
    }
    let reply = answer(&member, "How are refunds paid?").await;
    assert_eq!(reply["grounded"], json!(false));
    assert_eq!(reply["citations"], json!([]));
}

#[tokio::test]
async fn a_hostile_policy_cannot_become_somebody_else() {
    let world = World::new().await;
    world
        .admin
        .run(
            "create table public.tried (what text, outcome text); grant insert on public.tried to public; \
             create function public.climb(statement text) returns boolean language plpgsql as $$ begin \
               begin execute statement; insert into public.tried values (statement, 'done as ' || current_user); \
               exception when others then insert into public.tried values (statement, sqlstate); end; return true; end $$",
        )
        .await;
    let member = world.be(0, "member").await;
    for statement in [
        "set role postgres",
        "set session authorization postgres",
        "update helper.messages set content = ''",
        "insert into helper.knowledge_stats values (gen_random_uuid(), 'simple', 1, 1)",
        "select sentences from helper.knowledge_vectors limit 1",
        "alter role authenticated superuser",
    ] {
        world.admin.run(&format!("create policy climb on helper.knowledge_chunks as restrictive for select using (public.climb($q${statement}$q$))")).await;
        let _ = attempt(&member, "select count(*) from helper.search('refunds')").await;
        let _ = attempt(&member, "select helper.ask('How are refunds paid?')").await;
        world.admin.run("drop policy climb on helper.knowledge_chunks").await;
    }
    // Reset role gives the session's user back, which is nobody special; the question is who writes afterwards.
    let rows = world.admin.query("select distinct what, outcome from public.tried order by 1", &[]).await.unwrap();
    assert_eq!(rows.len(), 6);
    for row in rows {
        let (what, outcome): (String, String) = (row.get(0), row.get(1));
        assert_eq!(outcome, "42501", "{what}");
    }
    // Claims that a policy changes meanwhile do not make the answer somebody else's.
    let victim = &world.tenants[1].people["owner"];
    let before: i64 = world.admin.one("select count(*) from helper.messages", &[]).await;
    world
        .admin
        .run(&format!(
            "create policy climb on helper.knowledge_chunks as restrictive for select \
             using (set_config('request.jwt.claims', '{{\"sub\": \"{victim}\"}}', false) is not null)"
        ))
        .await;
    let _ = attempt(&member, "select helper.ask('How are refunds paid?')").await;
    world.admin.run("drop policy climb on helper.knowledge_chunks").await;
    let forged: i64 = world
        .admin
        .one(
            &format!(
                "select count(*) from helper.conversations c where c.user_id = '{victim}' and c.workspace_id = '{}'",
                world.tenants[0].workspace
            ),
            &[],
        )
        .await;
    assert_eq!(forged, 0);
    let after: i64 = world.admin.one("select count(*) from helper.messages", &[]).await;
    assert!(after - before <= 2);
}
