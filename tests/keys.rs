//! Keys of providers: where they may be seen, which host they are sent to, and whose certificates are believed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod place;
mod provider;
mod secure;

use cluster::{Cluster, Session, until};
use place::{ANN, BEA, Place};
use provider::{Answer, Server};
use secure::{Authority, Secure};

const CAT: &str = "00000000-0000-4000-8000-00000000000c";

#[tokio::test]
async fn keys_are_shown_nowhere_and_go_to_their_own_host_alone() {
    let cluster = Cluster::with(
        "shared_preload_libraries = 'helper_ai, pg_stat_statements'\npg_stat_statements.track = all\n\
             log_statement = all\nlog_min_messages = debug5\nlog_min_error_statement = debug5",
    )
    .await;
    let server = Server::start().await;
    let admin = cluster.admin().await;
    admin.run("create extension pg_stat_statements").await;
    let set = format!(
        "select helper.set_provider('open', 'openai', '{}', options => '{{\"allow_private\": true}}')",
        server.url("/v1")
    );
    admin.run(&set).await;
    admin.run("select helper.set_model('open', 'm')").await;
    let sink = admin.copy_in("copy helper.provider_keys (provider, key) from stdin").await.unwrap();
    let mut sink = std::pin::pin!(sink);
    use futures_util::SinkExt;
    sink.send(bytes::Bytes::from_static(b"open\tsk-very-secret\n")).await.unwrap();
    sink.finish().await.unwrap();
    // An error tells nothing of the line that it is about.
    for line in ["opem\tsk-very-lost\n", "open\tsk-very lost\n", "sk-very-lost\topen\n"] {
        let sink = admin.copy_in("copy helper.provider_keys (provider, key) from stdin").await.unwrap();
        let mut sink = std::pin::pin!(sink);
        sink.send(bytes::Bytes::from_static(line.as_bytes())).await.unwrap();
        let error = sink.finish().await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert!(["42704", "22023"].contains(&error.code().code()), "{error:?}");
        assert!(!format!("{error:?}").contains("sk-very"), "{error:?}");
    }
    let ann = cluster.user(ANN).await;
    ann.run("select helper.create_workspace('Ann')").await;
    let said: String = ann.one("select helper.complete('Hello', model => 'm')", &[]).await;
    assert!(said.starts_with("Grüße"));
    assert!(server.seen()[0].headers.iter().any(|(_, value)| value == "Bearer sk-very-secret"));
    server.next(Answer::status(
        401,
        r#"{"error": {"message": "bad key sk-very-secret", "type": "invalid_request_error"}}"#,
    ));
    let error = ann.error("select helper.complete('Hello', model => 'm')").await;
    assert_eq!(error.code().code(), "38000");
    assert!(!format!("{error:?}").contains("sk-very"), "{error:?}");
    assert!(!cluster.log().contains("sk-very"), "the key is in the log");
    for sql in [
        "select count(*) from helper.provider_keys where key is not null",
        "select count(*) from pg_stat_activity where query like '%sk-very%' and pid <> pg_backend_pid()",
        "select count(*) from pg_stat_statements s where s.query like '%sk-very%'",
        "select count(*) from helper.provider_status where provider_status::text like '%sk-very%'",
    ] {
        assert_eq!(admin.one::<i64>(sql, &[]).await, 0, "{sql}");
    }
    for table in ["provider_secrets", "_routes"] {
        assert_eq!(ann.error(&format!("select * from helper.{table}")).await.code().code(), "42501");
    }
    let copies = "select count(*) from pg_stat_statements s where s.query like 'copy helper.provider_keys%'";
    assert!(admin.one::<i64>(copies, &[]).await > 0, "statements are not kept");
    let dump = cluster.program("pg_dump").arg(cluster.url("postgres")).output().unwrap();
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    assert!(dump.contains("openai") && !dump.contains("sk-very"), "the key is in a dump");
    // Nor is it in what somebody dumps who may read everything.
    admin.run("create role auditor login; grant pg_read_all_data to auditor").await;
    let auditor = cluster.connect("postgres", "auditor").await;
    for relation in ["helper.provider_secrets", "helper.provider_keys", "helper._routes"] {
        if let Ok(rows) = auditor.simple_query(&format!("select * from {relation}")).await {
            assert!(!format!("{rows:?}").contains("sk-very"), "{relation}");
        }
    }
    admin.run("create role keeper login bypassrls; grant pg_read_all_data to keeper").await;
    let dump = |who: &str, how: &[&str]| {
        let url = cluster.url("postgres").replace("postgres@", &format!("{who}@"));
        let dump = cluster.program("pg_dump").args(how).arg(url).output().unwrap();
        let said = [dump.stdout, dump.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(!said.contains("sk-very"), "{who} {how:?}: the key is in a dump");
        (dump.status.success(), said)
    };
    for how in [&[][..], &["--enable-row-security"], &["--inserts", "--schema=helper"], &["--table=helper.provider*"]] {
        dump("auditor", how);
        let (done, said) = dump("keeper", how);
        assert!(done, "{how:?}: {said}");
    }
    assert!(dump("keeper", &["--inserts"]).1.contains("INSERT INTO helper.providers"));
    // Another address has no key.
    let other = Server::start().await;
    admin.run(&set.replace(&server.address.port().to_string(), &other.address.port().to_string())).await;
    assert_eq!(ann.error("select helper.complete('Hello', model => 'm')").await.code().code(), "55000");
    admin.run(&set).await;
    assert_eq!(
        ann.error("select helper.complete('Hello', model => 'm')").await.code().code(),
        "55000",
        "it is forgotten"
    );
    assert_eq!(other.count(), 0);
    // Only a superuser refers to the server's variables and files, and no workspace to private addresses.
    admin.run("create role boss login; grant boss to authenticator; alter database postgres owner to boss; select helper.grant_usage('boss'); grant execute on function helper.set_provider to boss").await;
    let boss = cluster.connect("postgres", "boss").await;
    for credential in ["env:HOME", "file:/etc/passwd"] {
        let error =
            boss.error(&format!("select helper.set_provider('mine', 'openai', credential => '{credential}')")).await;
        assert_eq!(error.code().code(), "42501", "{credential}");
    }
    let workspace: String = ann.one("select helper.current_workspace()::text", &[]).await;
    let error = ann.error(&format!("select helper.set_provider('mine', 'openai', '{}', options => '{{\"allow_private\": true}}', workspace => '{workspace}')", server.url("/v1"))).await;
    assert_eq!(error.code().code(), "42501");
    ann.run(&format!(
        "select helper.set_provider('mine', 'openai_compatible', '{}', workspace => '{workspace}')",
        server.url("/v1")
    ))
    .await;
    ann.run(&format!("select helper.set_model('mine', 'mm', workspace => '{workspace}')")).await;
    let before = server.count();
    let error = ann.error("select helper.complete('Hello', model => 'mine/mm')").await;
    assert!(["38000", "42501", "22023", "55000"].contains(&error.code().code()), "{error:?}");
    assert_eq!(server.count(), before, "no request goes to a private address");
    // Nobody else's workspace can use or see it.
    let bea = cluster.user(BEA).await;
    bea.run("select helper.create_workspace('Bea')").await;
    assert_eq!(bea.error("select helper.complete('Hello', model => 'mine/mm')").await.code().code(), "42704");
    assert_eq!(bea.one::<i64>("select count(*) from helper.providers where name = 'mine'", &[]).await, 0);
}

/// Whether a server was ever shown a key.
fn was_shown(server: &Server, key: &str) -> bool {
    server.seen().iter().any(|seen| seen.headers.iter().any(|(_, value)| value.contains(key)))
}

/// Gives the key of the workspace's own provider, as the session's user.
async fn give(session: &Session, workspace: &str, key: &str) {
    let sql = format!("insert into helper.provider_keys (workspace, provider, key) values ('{workspace}', 'own', $1)");
    session.execute(&sql, &[&key]).await.unwrap();
}

#[tokio::test]
async fn a_workspaces_key_is_sent_to_no_other_host_whatever_anybody_changes() {
    let place = Place::new().await;
    let (ann, workspace) = (&place.ann, place.workspace.as_str());
    let other = Server::start().await;
    let set = |kind: &str, url: &str, options: &str| {
        format!(
            "select helper.set_provider('own', '{kind}', '{url}', options => '{options}', workspace => '{workspace}')"
        )
    };
    let home = set("openai", &place.server.url("/v1"), "{}");
    ann.run(&home).await;
    ann.run(&format!("select helper.set_model('own', 'mm', workspace => '{workspace}')")).await;
    // As if the servers of this test had public addresses.
    let public = "update helper.providers set options = options || '{\"allow_private\": true, \"max_retries\": 0}' where name = 'own'";
    let call = "select helper.complete('Hello', model => 'own/mm')";
    let has_key = async || {
        let sql = "select count(*) from helper.provider_secrets s join helper.providers p on p.id = s.provider_id where p.name = 'own'";
        place.admin.one::<i64>(sql, &[]).await == 1
    };
    give(ann, workspace, "sk-own-secret").await;
    place.admin.run(public).await;
    ann.one::<String>(call, &[]).await;
    assert!(was_shown(&place.server, "Bearer sk-own-secret"));
    // What leaves the host as it is leaves the key too.
    let port = place.server.address.port();
    for same in [
        set("openai", &place.server.url("/v2"), "{}"),
        set("openai", &place.server.url("/v1"), "{\"max_concurrent\": 3, \"timeout_ms\": 20000}"),
        set("openai", &place.server.url("/v1").replace("http://", "HTTP://").to_lowercase(), "{\"max_tokens\": true}"),
    ] {
        ann.run(&same).await;
        assert!(has_key().await, "{same}");
    }
    for (kind, url) in [
        ("openai", other.url("/v1")),
        ("anthropic", other.url("")),
        ("openai", format!("http://localhost:{port}/v1")),
        ("openai", format!("https://127.0.0.1:{port}/v1")),
        ("openai", "http://127.0.0.1/v1".to_owned()),
        ("openai", format!("http://127.0.0.1:{port}.example.com/v1")),
        ("openai_compatible", place.server.url("/v1")),
    ] {
        ann.run(&home).await;
        give(ann, workspace, "sk-own-moved").await;
        ann.run(&set(kind, &url, "{}")).await;
        assert!(!has_key().await, "{kind} {url}");
        place.admin.run(public).await;
        let _ = ann.batch_execute(call).await;
        // Back home it is forgotten all the same.
        ann.run(&home).await;
        assert!(!has_key().await, "{kind} {url}");
    }
    assert!(!was_shown(&other, "sk-own") && !was_shown(&place.server, "sk-own-moved"));
    // No address is one that hides another.
    for url in [
        "http://good.example@127.0.0.1/v1",
        "http://127.0.0.1/v1?to=other",
        "http://127.0.0.1/v1#x",
        "http://127.0.0.1 .example/",
    ] {
        let error = ann.error(&set("openai", url, "{}")).await;
        assert_eq!(error.code().code(), "22023", "{url}: {error:?}");
    }
    // Nor is one in the name of a model.
    ann.run(&home).await;
    give(ann, workspace, "sk-own-secret").await;
    for model in [format!("@{}/x", other.address), format!("//{}/x", other.address), "../../../x".to_owned()] {
        ann.run(&set("gemini", &place.server.url(""), "{}")).await;
        give(ann, workspace, "sk-own-secret").await;
        ann.run(&format!("select helper.set_model('own', '{model}', workspace => '{workspace}')")).await;
        place.admin.run(public).await;
        let _ = ann.batch_execute(&format!("select helper.complete('Hello', model => 'own/{model}')")).await;
    }
    assert_eq!(other.count(), 0);
    ann.run(&home).await;
    give(ann, workspace, "sk-own-secret").await;
    // Who is no admin of the workspace changes nothing, nor does whoever is none of it.
    ann.run(&format!("select helper.add_member('{workspace}', '{BEA}', 'member'); select helper.add_member('{workspace}', '{CAT}', 'viewer')")).await;
    let stranger = place.cluster.user("00000000-0000-4000-8000-00000000000d").await;
    let (bea, cat) = (place.cluster.user(BEA).await, place.cluster.user(CAT).await);
    let statements = [
        set("openai", &other.url("/v1"), "{}"),
        set("openai", &place.server.url("/v1"), "{\"max_retries\": 3}"),
        format!("select helper.set_model('own', 'other', workspace => '{workspace}')"),
        format!("select helper.set_default('chat', 'own', 'mm', workspace => '{workspace}')"),
        format!("select helper.remove_provider('own', workspace => '{workspace}')"),
        format!("insert into helper.provider_keys (workspace, provider, key) values ('{workspace}', 'own', 'sk-mine')"),
        format!("update helper.providers set base_url = '{}'", other.url("/v1")),
        "update helper.provider_keys set workspace = null".to_owned(),
        "select * from helper.provider_secrets".to_owned(),
        "update helper.provider_secrets set host = 'http://elsewhere'".to_owned(),
        "select * from helper._routes".to_owned(),
    ];
    let look = "select to_jsonb(p)::text || s.host || s.secret from helper.providers p join helper.provider_secrets s on s.provider_id = p.id where p.name = 'own'";
    let before: String = place.admin.one(look, &[]).await;
    for (who, session) in [("member", &bea), ("viewer", &cat), ("stranger", &stranger)] {
        for statement in &statements {
            let error = session.error(statement).await;
            assert!(["42501", "42704", "55000"].contains(&error.code().code()), "{who}: {statement}: {error:?}");
        }
    }
    assert_eq!(place.admin.one::<String>(look, &[]).await, before);
    assert_eq!(other.count(), 0);
}

#[tokio::test]
async fn a_secret_of_the_vault_reaches_the_provider_and_nobody_else() {
    let cluster = Cluster::with("log_statement = all\nlog_min_messages = debug1").await;
    let server = Server::start().await;
    let admin = cluster.admin().await;
    // Supabase's vault, as far as it is seen from here.
    admin
        .run(
            "create schema vault; create table vault.kept (name text, secret text); \
             create view vault.decrypted_secrets as select name, secret as decrypted_secret from vault.kept",
        )
        .await;
    let keep = async |key: &str| {
        admin
            .execute("with gone as (delete from vault.kept) insert into vault.kept values ('openai key', $1)", &[&key])
            .await
    };
    admin.run("set log_parameter_max_length = 0").await;
    keep("sk-of-the-vault").await.unwrap();
    for (name, kind, path) in [("open", "openai", "/v1"), ("claude", "anthropic", ""), ("gem", "gemini", "")] {
        let set = format!(
            "select helper.set_provider('{name}', '{kind}', '{}', credential => 'vault:openai key', options => '{{\"allow_private\": true}}'); \
             select helper.set_model('{name}', 'm')",
            server.url(path)
        );
        admin.run(&set).await;
    }
    let ann = cluster.user(ANN).await;
    ann.run("select helper.create_workspace('Ann')").await;
    assert_eq!(ann.error("select * from vault.decrypted_secrets").await.code().code(), "42501");
    for (name, header, value) in [
        ("open", "authorization", "Bearer sk-of-the-vault"),
        ("claude", "x-api-key", "sk-of-the-vault"),
        ("gem", "x-goog-api-key", "sk-of-the-vault"),
    ] {
        ann.one::<String>(&format!("select helper.complete('Hello', model => '{name}/m')"), &[]).await;
        assert_eq!(server.seen().pop().unwrap().header(header), Some(value), "{name}");
    }
    // A change is seen within seconds, in sessions and by the worker.
    keep("sk-of-today").await.unwrap();
    let call = "select helper.complete('Hello', model => 'open/m')";
    let asked = "select helper.ask_async('Hello', knowledge => false, model => 'open/m')";
    for call in [call, asked] {
        until("the new secret", async || {
            let before = server.count();
            ann.run(call).await;
            until("the request", async || (server.count() > before).then_some(())).await;
            (server.seen()[before].header("authorization") == Some("Bearer sk-of-today")).then_some(())
        })
        .await;
    }
    admin.run("delete from vault.kept").await;
    let error = until("the secret to be gone", async || ann.query_one(call, &[]).await.err()).await;
    assert_eq!(error.code().unwrap().code(), "55000", "{error:?}");
    let before = server.count();
    assert_eq!(ann.error(call).await.code().code(), "55000");
    assert_eq!(server.count(), before);
    assert!(!cluster.log().contains("sk-of-"), "the secret is in the log");
}

#[tokio::test]
async fn an_authority_of_ones_own_is_believed_once_the_server_names_it() {
    let mut cluster = Cluster::start().await;
    let authority = Authority::new("ours");
    let secure = Secure::start(authority.server(|_| {}, &["h2", "http/1.1"])).await;
    let admin = cluster.admin().await;
    let kinds = ["openai", "anthropic", "gemini", "ollama", "openai_compatible"];
    for kind in kinds {
        let path = if kind.starts_with("openai") { "/v1" } else { "" };
        admin
            .run(&format!(
                "select helper.set_provider('{kind}', '{kind}', 'https://{}{path}', options => '{{\"allow_private\": true}}'); \
                 select helper.set_model('{kind}', 'm'); \
                 insert into helper.provider_keys (provider, key) values ('{kind}', 'sk-secret')",
                secure.address
            ))
            .await;
    }
    let call = |kind: &str| format!("select helper.complete('Hello', model => '{kind}/m')");
    let ann = cluster.user(ANN).await;
    ann.run("select helper.create_workspace('Ann')").await;
    for kind in kinds {
        let error = ann.error(&call(kind)).await;
        assert_eq!(error.code().code(), "38000", "{error:?}");
        assert_eq!(error.message(), format!("certificate of provider \"{kind}\" is not valid"));
        assert!(error.hint().unwrap().contains("certificate authorities"), "{error:?}");
    }
    assert_eq!(secure.server.count(), 0, "nothing is sent to a stranger");
    let file = cluster.home().join("authorities.pem");
    std::fs::write(&file, &authority.pem).unwrap();
    cluster.configure(&format!("helper_ai.ca_file = '{}'", file.display()));
    cluster.restart();
    let ann = cluster.user(ANN).await;
    for kind in kinds {
        assert_eq!(ann.one::<String>(&call(kind), &[]).await, "Grüße from the provider.", "{kind}");
        let seen = secure.server.seen().pop().unwrap();
        assert_eq!(seen.version, "HTTP/2.0", "{kind}");
    }
}
