//! The extension comes, moves with a dump, is updated, and goes without a trace.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use cluster::{Cluster, Session, until};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

const ANN: &str = "00000000-0000-4000-8000-00000000000a";
const VIC: &str = "00000000-0000-4000-8000-0000000000ad";

const QUESTIONS: [&str; 3] =
    ["Within how many days are refunds paid?", "When do orders ship?", "Who answers questions about gift cards?"];

async fn strings(session: &Session, sql: &str) -> Vec<String> {
    session
        .query(sql, &[])
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
        .iter()
        .map(|row| row.get(0))
        .collect()
}

/// Ann's search results and answers, without what is made anew by each call.
async fn answers(session: &Session) -> Vec<Value> {
    let mut all = Vec::new();
    for question in QUESTIONS {
        for method in ["hybrid", "vector", "text"] {
            let found: Value = session
                .one(
                    "select coalesce(jsonb_agg(jsonb_build_object('chunk', chunk_id, 'content', content, 'score', round(score::numeric, 9))), '[]') from helper.search($1, method => $2)",
                    &[&question, &method],
                )
                .await;
            assert_ne!(found, json!([]), "{question}: {method}");
            all.push(found);
        }
        let answer: Value = session
            .one("select to_jsonb(a) - 'conversation_id' - 'message_id' from helper.answer($1) a", &[&question])
            .await;
        assert_eq!(answer["grounded"], json!(true), "{answer}");
        all.push(answer);
    }
    all
}

/// A dump of a database, loaded into a new one; whatever either program says is a failure.
fn move_to(cluster: &Cluster, from: &str, to: &str) {
    let file = cluster.home().join(format!("{to}.sql"));
    let dump = cluster.program("pg_dump").arg(cluster.url(from)).stdin(Stdio::null()).output().unwrap();
    assert!(dump.status.success() && dump.stderr.is_empty(), "{dump:?}");
    // The worker that begins with the commit gives leases back, and their work is done: not before the rest was looked at.
    let aside = "drop table if exists public.leases; create table public.leases as select * from helper.job_leases; \
        delete from helper.job_leases;\n";
    std::fs::write(&file, [&dump.stdout, aside.as_bytes()].concat()).unwrap();
    let created =
        cluster.program("createdb").arg("--maintenance-db").arg(cluster.url("postgres")).arg(to).output().unwrap();
    assert!(created.status.success(), "{created:?}");
    let loaded = cluster
        .program("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "--single-transaction", "-o", "/dev/null", "-f"])
        .arg(&file)
        .arg(cluster.url(to))
        .output()
        .unwrap();
    assert!(loaded.status.success() && loaded.stderr.is_empty(), "{loaded:?}");
}

async fn session(cluster: &Cluster, database: &str, sub: &str) -> Session {
    cluster.session(database, "authenticated", &json!({ "sub": sub, "role": "authenticated" })).await
}

async fn fill(ann: &Session) {
    ann.run(
        "select helper.add_document('Policy', E'# Refunds\\n\\nRefunds are paid within 30 days to the card that was used.\\n\\n# Shipping\\n\\nOrders ship on the next working day.', 'kb_article', 'policy', '{\"a\": 1}'); \
         select helper.add_document('Kebijakan', 'Pengembalian dana dilakukan dalam tiga puluh hari setelah barang kami terima di gudang. Hubungi kami kapan saja.', 'kb_article', 'id'); \
         select helper.add_file('gift.html', '<title>Gift cards</title><p>The desk answers questions about gift cards every day.</p>'); \
         select helper.add_file('broken.txt', decode('ff00fe', 'hex'))",
    )
    .await;
    ann.run("select helper.wait_indexed()").await;
}

#[tokio::test]
async fn a_database_moves_with_all_that_is_in_it() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin().await;
    let ann = cluster.user(ANN).await;
    let workspace: String = ann.one("select helper.create_workspace('Acme')::text", &[]).await;
    // Membership is the application's, in tables whose names need quotes.
    admin
        .run(&format!(
            "create schema \"My App\"; create type \"My App\".\"Role\" as enum ('boss', 'guest', 'banned'); \
             create table \"My App\".\"Team\" (\"the team\" uuid, person uuid, \"Role\" \"My App\".\"Role\"); \
             insert into \"My App\".\"Team\" values ('{workspace}', '{ANN}', 'boss'), ('{workspace}', '{VIC}', 'guest'); \
             select helper.use_membership('\"My App\".\"Team\"', 'the team', 'person', 'Role', '{{\"boss\": \"owner\", \"guest\": \"viewer\"}}'); \
             create table \"My App\".\"Notes\" (id int primary key, \"Title\" text, body text); \
             insert into \"My App\".\"Notes\" values (1, 'Parking', 'Parking is free behind the house.'); \
             create role clerk; select helper.grant_usage('clerk'); \
             set request.jwt.claims = '{}'; \
             select helper.attach_table('\"My App\".\"Notes\"', 'Title', 'body', workspace => '{workspace}')",
            json!({ "sub": ANN })
        ))
        .await;
    fill(&ann).await;
    let conversation: String = ann.one("select helper.create_conversation('Ours')::text", &[]).await;
    ann.run(&format!("select helper.ask('When are refunds paid?', '{conversation}')")).await;
    let export: String = ann.one(&format!("select helper.export_conversation('{conversation}', 'json')"), &[]).await;

    admin
        .run(&format!(
            "select helper.set_provider('open', 'openai', options => '{{\"max_concurrent\": 3}}'); \
             insert into helper.provider_keys (provider, key) values ('open', 'sk-secret'); \
             select helper.set_model('open', 'mine', 'image', options => '{{\"input_price\": 2}}'); \
             select helper.set_default('image', 'open', 'mine'); \
             insert into helper.usage_records (workspace_id, id, user_id, purpose, provider, model, status) \
             values ('{workspace}', helper.uuid_v7(), '{ANN}', 'ask', 'open', 'mine', 'succeeded'); \
             select helper._set_summary('{workspace}', '{conversation}', 'Refunds.', max(m.id::text)::uuid, 'local') \
             from helper.messages m where m.conversation_id = '{conversation}'"
        ))
        .await;
    ann.run(&format!(
        "select helper.set_budget(500, 'requests', workspace => '{workspace}'); select helper.set_mode('brief', 'Be brief.', workspace => '{workspace}')"
    ))
    .await;
    let kept = "select md5(concat((select string_agg(t::text, '|' order by t) from helper.providers t), \
        (select string_agg(t::text, '|' order by t) from helper.models t), (select string_agg(t::text, '|' order by t) from helper.model_defaults t), \
        (select string_agg(t::text, '|' order by t) from helper.budgets t), (select string_agg(t::text, '|' order by t) from helper.usage_records t), \
        (select string_agg(t::text, '|' order by name, builtin) from (select name, builtin, instructions from helper.modes) t), \
        (select string_agg(t::text, '|' order by t) from helper.conversation_summaries t)))";
    let providers: String = admin.one(kept, &[]).await;
    let before = answers(&ann).await;
    // Pending: one that waits, and one that a worker had just claimed when the dump was made. Written by hand, so that no commit wakes the worker before the dump.
    admin
        .run(&format!(
            "begin; set local session_replication_role = replica; \
             insert into helper.knowledge_sources (workspace_id, source_type, external_id, title, input_hash, created_by) \
             select '{workspace}', 'kb_article', t, t, '', '{ANN}' from unnest(array['late', 'leased']) t; \
             insert into helper.knowledge_inputs select s.workspace_id, s.id, convert_to('The ' || s.title || case s.title when 'late' then ' document speaks of marmalade.' else ' document speaks of periwinkles.' end, 'UTF8'), false \
             from helper.knowledge_sources s where s.status = 'pending'; \
             insert into helper.jobs (workspace_id, kind, key, principal_role, status) \
             select s.workspace_id, 'index', s.id, 'authenticated', case s.title when 'late' then 'queued' else 'running' end from helper.knowledge_sources s where s.status = 'pending'; \
             insert into helper.job_queue (workspace_id, kind, run_at, job_id, key) \
             select j.workspace_id, j.kind, clock_timestamp() + interval '20 seconds', j.id, j.key from helper.jobs j where j.status = 'queued'; \
             insert into helper.job_leases (workspace_id, job_id, key) \
             select j.workspace_id, j.id, j.key from helper.jobs j where j.status = 'running'; commit"
        ))
        .await;
    let stats = "select config || ' ' || sum(chunks) || ' ' || sum(terms) from helper.knowledge_stats group by config having sum(chunks) > 0 order by 1";
    let counted = strings(&admin, stats).await;
    let seen = "select (select count(*) from helper.knowledge_chunks) || ' ' || (select count(*) from helper.conversations) || ' ' || (select count(*) from helper.messages) || ' ' || (select count(*) from helper.message_citations)";
    let rows: String = admin.one(seen, &[]).await;
    move_to(&cluster, "postgres", "moved");

    let there = cluster.connect("moved", "postgres").await;
    assert_eq!(strings(&there, stats).await, counted);
    assert_eq!(there.one::<String>(seen, &[]).await, rows);
    // Providers, budgets and what was used come along, keys do not.
    assert_eq!(there.one::<String>(kept, &[]).await, providers);
    assert_eq!(there.one::<i64>("select count(*) from helper.provider_secrets", &[]).await, 0);
    let moved = session(&cluster, "moved", ANN).await;
    // Membership, its map and the roles in it.
    assert_eq!(strings(&moved, "select helper.my_role(helper.current_workspace())").await, ["owner"]);
    let vic = session(&cluster, "moved", VIC).await;
    assert_eq!(strings(&vic, "select helper.my_role(helper.current_workspace())").await, ["viewer"]);
    assert_eq!(vic.one::<i64>("select count(*) from helper.messages", &[]).await, 0);
    assert!(there.one::<bool>("select has_function_privilege('clerk', 'helper.current_workspace(uuid)', 'execute') and has_table_privilege('clerk', 'helper.knowledge_chunks', 'select')", &[]).await);
    // What was asked before is answered the same, down to ids and scores.
    assert_eq!(
        moved.one::<String>(&format!("select helper.export_conversation('{conversation}', 'json')"), &[]).await,
        export
    );
    assert_eq!(answers(&moved).await, before);
    // What was pending is indexed: the lease that came along is given back when the worker tidies up.
    there.run("insert into helper.job_leases select * from public.leases; select helper._clean(10080, '{}')").await;
    let ready = until("the pending documents", async || {
        let pending: i64 = moved.one("select count(*) from helper.knowledge_sources where status = 'pending'", &[]).await;
        if pending == 0 { Some(strings(&moved, "select external_id from helper.knowledge_sources where title in ('late', 'leased') and status = 'ready' order by 1").await) } else { None }
    })
    .await;
    assert_eq!(ready, ["late", "leased"]);
    for (word, id) in [("marmalade", "late"), ("periwinkles", "leased")] {
        let found = strings(&moved, &format!("select title from helper.search('{word}', method => 'text')")).await;
        assert_eq!(found, [id]);
    }
    // Files are kept and can be read again, tables are followed, the same document is still the same.
    assert_eq!(moved.one::<i64>("select helper.reindex()", &[]).await, 7);
    moved.run("select helper.wait_indexed()").await;
    assert_eq!(
        strings(&moved, "select title from helper.knowledge_sources where status = 'failed'").await,
        ["broken.txt"]
    );
    there.run("insert into \"My App\".\"Notes\" values (2, 'Bikes', 'Bicycles stand in the yard.'); delete from \"My App\".\"Notes\" where id = 1").await;
    moved.run("select helper.wait_indexed()").await;
    assert_eq!(
        strings(&moved, "select title from helper.knowledge_sources where source_type = 'table_row'").await,
        ["Bikes"]
    );
    let again = "select helper.add_document('Policy 2', 'New', 'kb_article', 'policy') = (select id from helper.knowledge_sources where external_id = 'policy')";
    assert!(moved.one::<bool>(again, &[]).await);
    // And once more, from there, with nothing lost on the way.
    moved.run("select helper.wait_indexed()").await;
    move_to(&cluster, "moved", "again");
    let again = cluster.connect("again", "postgres").await;
    assert_eq!(again.one::<String>(seen, &[]).await, there.one::<String>(seen, &[]).await);
    assert_eq!(strings(&again, stats).await, strings(&there, stats).await);
}

/// Everything that the catalog and the settings hold, by kind.
async fn catalog(session: &Session) -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::new();
    for (kind, sql) in [
        ("schemas", "select nspname::text from pg_namespace where nspname !~ '^pg_(toast_)?temp_'"),
        (
            "relations",
            "select oid::regclass::text || relkind::text from pg_class where relnamespace::regnamespace::text !~ '^pg_(toast_)?temp_'",
        ),
        ("functions", "select oid::regprocedure::text from pg_proc"),
        (
            "types",
            "select oid::regtype::text from pg_type where typnamespace::regnamespace::text !~ '^pg_(toast_)?temp_'",
        ),
        ("operators", "select oid::regoperator::text from pg_operator"),
        ("casts", "select castsource::regtype || ' as ' || casttarget::regtype from pg_cast"),
        ("triggers", "select tgname || ' on ' || tgrelid::regclass from pg_trigger"),
        ("policies", "select polname || ' on ' || polrelid::regclass from pg_policy"),
        ("constraints", "select conname || ' of ' || conrelid::regclass from pg_constraint"),
        ("roles", "select rolname::text from pg_roles"),
        ("default privileges", "select defaclrole::regrole || defaclacl::text from pg_default_acl"),
        ("initial privileges", "select classoid::regclass || ' ' || objoid from pg_init_privs"),
        (
            "dependencies on what is gone",
            "select 'extension ' || d.refobjid from pg_depend d where d.refclassid = 'pg_extension'::regclass and not exists (select from pg_extension e where e.oid = d.refobjid)",
        ),
        ("event triggers", "select evtname::text from pg_event_trigger"),
        ("settings of roles", "select setrole || setconfig::text from pg_db_role_setting"),
        ("large objects", "select oid::text from pg_largeobject_metadata"),
        (
            "comments",
            "select classoid::regclass || ' ' || objoid from pg_description where classoid <> 'pg_extension'::regclass and objoid >= 16384",
        ),
        ("extensions", "select extname::text from pg_extension"),
    ] {
        all.insert(kind.to_owned(), strings(session, sql).await.into_iter().collect());
    }
    all
}

#[tokio::test]
async fn dropping_the_extension_leaves_nothing() {
    let cluster = Cluster::bare("").await;
    let admin = cluster.admin().await;
    admin.run("create extension vector").await;
    let before = catalog(&admin).await;
    let mut first = None;
    for _ in 0..2 {
        admin.run("create extension helper_ai").await;
        let created = catalog(&admin).await;
        assert_eq!(created["schemas"].difference(&before["schemas"]).collect::<Vec<_>>(), ["helper"]);
        let first = first.get_or_insert_with(|| created["functions"].clone());
        assert_eq!(*first, created["functions"]);
        let pids = cluster.pids().await;
        let ann = cluster.user(ANN).await;
        ann.run("select helper.create_workspace('Acme')").await;
        fill(&ann).await;
        answers(&ann).await;
        // An attached table is in the way, and says so.
        admin
            .run(&format!(
                "create table public.notes (id int primary key, t text, c text); set request.jwt.claims = '{}'; select helper.attach_table('public.notes', 't', 'c')",
                json!({ "sub": ANN })
            ))
            .await;
        assert_eq!(admin.error("drop extension helper_ai").await.code().code(), "2BP01");
        admin
            .run("select helper.detach_table('public.notes'); drop table public.notes; drop extension helper_ai")
            .await;
        let after = catalog(&admin).await;
        for (kind, objects) in &after {
            let left: Vec<_> = objects.difference(&before[kind]).collect();
            assert!(left.is_empty(), "{kind} that are left: {left:?}");
            let lost: Vec<_> = before[kind].difference(objects).collect();
            assert!(lost.is_empty(), "{kind} that are lost: {lost:?}");
        }
        until("the worker to leave", async || (!cluster::is_alive(pids.worker)).then_some(())).await;
        let workers: i64 = admin.one("select count(*) from pg_stat_activity where datname = current_database() and backend_type ~ 'helper_ai'", &[]).await;
        assert_eq!(workers, 0);
    }
    // With cascade, an attached table stays and is an ordinary one again.
    admin.run("create extension helper_ai").await;
    let ann = cluster.user(ANN).await;
    ann.run("select helper.create_workspace('Acme')").await;
    admin
        .run(
            "create table public.notes (id int primary key, t text, c text); select helper.attach_table('public.notes', 't', 'c'); \
             set client_min_messages = warning; drop extension helper_ai cascade; insert into public.notes values (1, 't', 'c')",
        )
        .await;
    assert_eq!(
        strings(&admin, "select tgname::text from pg_trigger where tgrelid = 'public.notes'::regclass").await,
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn a_schema_that_somebody_made_first_is_not_taken_for_ours() {
    let cluster = Cluster::bare("").await;
    let admin = cluster.admin().await;
    admin
        .run("create role mallory login; create schema helper authorization mallory; create function helper.is_member(uuid) returns boolean language sql as 'select true'")
        .await;
    assert_eq!(admin.error("create extension helper_ai cascade").await.code().code(), "42P06");
    assert_eq!(
        strings(&admin, "select extname::text from pg_extension where extname = 'helper_ai'").await,
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn versions_agree_and_every_one_has_a_path_to_the_newest() {
    let cluster = Cluster::bare("").await;
    let admin = cluster.admin().await;
    let newest: String =
        admin.one("select default_version from pg_available_extensions where name = 'helper_ai'", &[]).await;
    assert_eq!(newest, env!("CARGO_PKG_VERSION"));
    let versions =
        strings(&admin, "select version from pg_available_extension_versions where name = 'helper_ai' order by 1")
            .await;
    assert!(versions.contains(&newest), "{versions:?}");
    // What a later version must be reached from, with the extension's data in place.
    let paths = strings(&admin, "select source || ' ' || coalesce(path, '-') from pg_extension_update_paths('helper_ai') where target = (select default_version from pg_available_extensions where name = 'helper_ai')").await;
    assert!(paths.iter().all(|path| !path.ends_with(" -")), "{paths:?}");
    admin.run("create extension vector").await;
    admin.run("create extension helper_ai").await;
    let fresh = shape(&admin).await;
    admin.run("drop extension helper_ai").await;
    for version in &versions {
        admin.run(&format!("create extension helper_ai version '{version}'")).await;
        let ann = cluster.user(ANN).await;
        ann.run("select helper.create_workspace('Acme')").await;
        fill(&ann).await;
        let before = answers(&ann).await;
        admin.run("alter extension helper_ai update").await;
        assert_eq!(
            strings(&admin, "select extversion from pg_extension where extname = 'helper_ai'").await,
            [newest.as_str()]
        );
        assert_eq!(strings(&ann, "select helper.version()").await, [newest.as_str()]);
        // An updated database is no different from a new one.
        assert_eq!(shape(&admin).await, fresh, "updated from {version}");
        assert_eq!(answers(&ann).await, before);
        admin.run("drop extension helper_ai").await;
    }
}

/// What the extension consists of: objects with their definitions, privileges and comments.
async fn shape(session: &Session) -> Vec<String> {
    strings(
        session,
        "select pg_get_functiondef(p.oid) || coalesce(p.proacl::text, '') || coalesce(obj_description(p.oid, 'pg_proc'), '') from pg_proc p where p.pronamespace = 'helper'::regnamespace and p.prokind = 'f' \
         union all select c.oid::regclass || ' ' || c.relrowsecurity || coalesce(c.relacl::text, '') || coalesce(obj_description(c.oid, 'pg_class'), '') || coalesce((select string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || a.attnotnull || a.attstorage::text || coalesce(pg_get_expr(d.adbin, d.adrelid), '') || coalesce(a.attacl::text, '') || coalesce(col_description(c.oid, a.attnum), ''), ', ' order by a.attname) \
           from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped), '') from pg_class c where c.relnamespace = 'helper'::regnamespace \
         union all select pg_get_constraintdef(k.oid) || k.conname from pg_constraint k where k.connamespace = 'helper'::regnamespace \
         union all select pg_get_indexdef(i.indexrelid) from pg_index i join pg_class c on c.oid = i.indexrelid where c.relnamespace = 'helper'::regnamespace \
         union all select pg_get_triggerdef(t.oid) from pg_trigger t join pg_class c on c.oid = t.tgrelid where c.relnamespace = 'helper'::regnamespace and not t.tgisinternal \
         union all select p::text from pg_policies p where p.schemaname = 'helper' \
         union all select array_to_string(array(select c::regclass::text from unnest(e.extconfig) c), ', ') from pg_extension e where e.extname = 'helper_ai' \
         order by 1",
    )
    .await
}
