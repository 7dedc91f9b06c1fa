//! HTTP tools and servers of the Model Context Protocol through SQL, as the people who use them: what reaches the other
//! end, how often, with whose key, and what is told of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod provider;

use cluster::{Cluster, Session, signal, until};
use provider::{Answer, Seen, Server};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};

const ANN: &str = "00000000-0000-4000-8000-00000000000a";
const BEA: &str = "00000000-0000-4000-8000-00000000000b";
const KEY: &str = "sk-the-secret";

/// A cluster, a workspace of Ann's, and a server at the other end.
struct Desk {
    cluster: Cluster,
    admin: Session,
    ann: Session,
    server: Server,
}

impl Desk {
    async fn new() -> Desk {
        let cluster = Cluster::start().await;
        let server = Server::start().await;
        server.answer_by(|_| json_answer(200, json!({"done": true})));
        std::fs::write(cluster.home().join("key"), format!("{KEY}\n")).unwrap();
        let (admin, ann) = (cluster.admin().await, cluster.user(ANN).await);
        ann.run("select helper.create_workspace('Ann')").await;
        Desk { cluster, admin, ann, server }
    }

    fn key(&self) -> String {
        format!("file:{}", self.cluster.home().join("key").display())
    }

    /// Registers a tool at a path of the server.
    async fn register(&self, name: &str, path: &str, options: Value) {
        let mut all = json!({
            "allow_private": true,
            "requires_confirmation": false,
            "parameters_schema": {"type": "object", "properties": {"id": {"type": "string"}, "amount": {"type": "number"}}, "required": ["id"]},
        });
        all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        self.admin
            .one::<String>(
                "select helper.register_function($1, $2, 'Does it', $3)::text",
                &[&name, &self.server.url(path), &all],
            )
            .await;
    }

    /// Calls a tool as Ann.
    async fn call(&self, name: &str, arguments: Value) -> String {
        self.ann.one("select helper.call($1, $2)::text", &[&name, &arguments]).await
    }

    async fn status(&self, call: &str) -> Value {
        self.ann.one("select helper.call_status($1::text::uuid)", &[&call]).await
    }

    /// The call, as soon as it has ended.
    async fn ended(&self, call: &str) -> Value {
        until("the call's end", async || {
            let status = self.status(call).await;
            (!status["finished_at"].is_null()).then_some(status)
        })
        .await
    }

    async fn came(&self, count: usize) {
        until("requests", async || (self.server.count() >= count).then_some(())).await;
    }
}

fn json_answer(status: u16, body: Value) -> Answer {
    Answer::with_headers(status, &[("content-type", "application/json")], &body.to_string())
}

#[tokio::test]
async fn an_endpoint_is_called_with_its_key_as_the_template_says() {
    let desk = Desk::new().await;
    let options = json!({
        "method": "PUT",
        "credential": desk.key(),
        "headers": {"x-tenant": "t-{{id}}"},
        "body": {"amount": "{{amount}}", "note": "for {{id}}"},
        "signature": {"secret": desk.key()},
    });
    desk.register("pay", "/invoices/{id}", options).await;
    let call = desk.call("pay", json!({"id": "a b", "amount": 12.5})).await;
    let ended = desk.ended(&call).await;
    assert_eq!((&ended["status"], &ended["result"]), (&json!("succeeded"), &json!({"done": true})), "{ended}");
    let seen = desk.server.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].method.as_str(), seen[0].path.as_str()), ("PUT", "/invoices/a%20b"));
    assert_eq!(seen[0].json(), json!({"amount": 12.5, "note": "for a b"}));
    for (header, value) in
        [("authorization", "Bearer sk-the-secret"), ("x-tenant", "t-a b"), ("idempotency-key", call.as_str())]
    {
        assert_eq!(seen[0].header(header), Some(value));
    }
    assert!(seen[0].header("x-signature").unwrap().starts_with("t="));
    // Where it is and with which key is not for users, nor is the key in anything that is kept or logged.
    for column in ["http", "credential"] {
        let error = desk.ann.error(&format!("select {column} from helper.functions")).await;
        assert_eq!(error.code().code(), "42501");
    }
    let kept: String = desk
        .admin
        .one("select (select string_agg(c::text, '') from helper.function_calls c) || (select string_agg(j::text, '') from helper.jobs j)", &[])
        .await;
    assert!(!kept.contains(KEY) && !desk.cluster.log().contains(KEY));
}

#[tokio::test]
async fn a_registration_that_could_go_elsewhere_is_refused() {
    let desk = Desk::new().await;
    let register = |url: &str, options: Value| {
        let mut all = json!({"parameters_schema": {"type": "object", "properties": {"id": {}}, "required": ["id"]}});
        all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        format!("select helper.register_function('f', '{url}', 'Does it', '{all}')")
    };
    for (url, options) in [
        ("https://{id}/", json!({})),
        ("https://api.{id}.example.com/", json!({})),
        ("https://u:p@api.example.com/{id}", json!({})),
        ("http://api.example.com/{id}", json!({})),
        ("https://api.example.com/{other}", json!({})),
        ("https://api.example.com/#{id}", json!({})),
        ("https://api.example.com/{id}", json!({"method": "TRACE"})),
        ("https://api.example.com/{id}", json!({"headers": {"Host": "evil.example.com"}})),
        ("https://api.example.com/{id}", json!({"headers": {"x": "1\r\nx-admin: 1"}})),
        ("https://api.example.com/{id}", json!({"credential": "sk-the-secret"})),
        ("https://api.example.com/{id}", json!({"credential_header": "a b"})),
        ("https://api.example.com/{id}", json!({"signature": {"header": "x-s"}})),
        ("https://api.example.com/{id}", json!({"signature": {"secret": "env:X", "algorithm": "md5"}})),
        ("https://api.example.com/{id}", json!({"parameters_schema": {"type": "object", "properties": {"id": {}}}})),
    ] {
        let error = desk.admin.error(&register(url, options.clone())).await;
        assert_eq!(error.code().code(), "22023", "{url} {options} {error}");
        assert!(!format!("{error:?}").contains(KEY), "{error:?}");
    }
    let good = register("https://api.example.com/{id}", json!({}));
    assert_eq!(desk.ann.error(&good).await.code().code(), "42501");
    // An administrator who is no superuser refers to no variable and no file of the server.
    desk.admin
        .run(
            "create role keeper login; alter database postgres owner to keeper; grant usage on schema helper to keeper; \
             grant execute on function helper.register_function to keeper",
        )
        .await;
    let keeper = desk.cluster.connect("postgres", "keeper").await;
    keeper.run(&good).await;
    for secret in [json!({"credential": "env:PATH"}), json!({"signature": {"secret": "file:/etc/passwd"}})] {
        let error = keeper.error(&register("https://api.example.com/{id}", secret)).await;
        assert_eq!(error.code().code(), "42501", "{error}");
    }
}

#[tokio::test]
async fn a_call_is_sent_when_it_is_committed_and_only_then() {
    let desk = Desk::new().await;
    desk.register("pay", "/pay", json!({})).await;
    desk.ann.run("begin; select helper.call('pay', '{\"id\": \"rolled back\"}'); rollback").await;
    let call = desk.call("pay", json!({"id": "committed"})).await;
    assert_eq!(desk.ended(&call).await["status"], "succeeded");
    let bodies: Vec<Value> = desk.server.seen().iter().map(Seen::json).collect();
    assert_eq!(bodies, [json!({"id": "committed"})]);
}

#[tokio::test]
async fn a_call_that_needs_approval_is_sent_once_whoever_approves_how_often() {
    let desk = Desk::new().await;
    desk.register("pay", "/pay", json!({"requires_confirmation": true})).await;
    let call = desk.call("pay", json!({"id": "1"})).await;
    let rejected = desk.call("pay", json!({"id": "2"})).await;
    desk.ann.run(&format!("select helper.reject('{rejected}')")).await;
    assert_eq!((desk.status(&call).await["status"].clone(), desk.server.count()), (json!("awaiting_confirmation"), 0));
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(desk.cluster.user(ANN).await);
    }
    let confirm = format!("select helper.confirm('{call}')");
    let mut confirming: Vec<_> = sessions.iter().map(|session| Box::pin(session.run(&confirm))).collect();
    std::future::poll_fn(|context| {
        confirming.retain_mut(|one| one.as_mut().poll(context).is_pending());
        if confirming.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    assert_eq!(desk.ended(&call).await["status"], "succeeded");
    desk.ann.run(&confirm).await;
    let bodies: Vec<Value> = desk.server.seen().iter().map(Seen::json).collect();
    assert_eq!(bodies, [json!({"id": "1"})]);
}

#[tokio::test]
async fn what_goes_wrong_is_told_and_what_may_have_been_done_is_uncertain() {
    let desk = Desk::new().await;
    for (suffix, timeout) in [("", 10_000), ("_soon", 500)] {
        let (pay, get) = (format!("pay{suffix}"), format!("get{suffix}"));
        desk.register(&pay, "/pay/{id}", json!({"timeout_ms": timeout})).await;
        desk.register(&get, "/get/{id}", json!({"timeout_ms": timeout, "idempotent": true})).await;
    }
    let call = async |name: &str, id: &str, answer: Answer| {
        desk.server.answer_by(move |_| answer.clone());
        let call = desk.call(name, json!({ "id": id })).await;
        desk.ended(&call).await
    };
    let ended = call("pay", "1", json_answer(404, json!({"why": "no such invoice"}))).await;
    assert_eq!((&ended["status"], &ended["error"]["sqlstate"]), (&json!("failed"), &json!("38000")), "{ended}");
    assert_eq!(ended["error"]["answer"], json!({"why": "no such invoice"}));
    for (name, answer, status, state) in [
        ("pay_soon", Answer::Hang, "uncertain", "57014"),
        ("get_soon", Answer::Hang, "failed", "57014"),
        ("pay", Answer::Close, "uncertain", "38000"),
        ("get", Answer::Close, "failed", "38000"),
        ("pay", Answer::status(502, ""), "uncertain", "38000"),
        ("get", Answer::status(502, ""), "failed", "38000"),
        ("pay", Answer::with_headers(307, &[("location", "http://127.0.0.1:1/")], ""), "failed", "38000"),
    ] {
        let ended = call(name, "1", answer.clone()).await;
        assert_eq!(
            (&ended["status"], &ended["error"]["sqlstate"]),
            (&json!(status), &json!(state)),
            "{answer:?} {ended}"
        );
        assert!(ended["result"].is_null());
    }
    let before = desk.server.count();
    for id in ["..", "a/../../admin", ""] {
        let ended = call("pay", id, Answer::Close).await;
        assert_eq!((&ended["status"], &ended["error"]["sqlstate"]), (&json!("failed"), &json!("22023")), "{ended}");
    }
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let schema = json!({"type": "object", "properties": {}});
    for (url, private, state) in [
        (format!("http://{closed}/"), true, "38000"),
        (desk.server.url("/").replace("http:", "https:"), false, "42501"),
    ] {
        let options = json!({"parameters_schema": schema, "requires_confirmation": false, "allow_private": private});
        desk.admin
            .one::<String>("select helper.register_function('none', $1, 'Does it', $2)::text", &[&url, &options])
            .await;
        let call = desk.call("none", json!({})).await;
        let ended = desk.ended(&call).await;
        assert_eq!((&ended["status"], &ended["error"]["sqlstate"]), (&json!("failed"), &json!(state)), "{ended}");
    }
    assert_eq!(desk.server.count(), before);
}

/// A call of each kind that the server does not answer, until it is told to.
async fn under_way(desk: &Desk) -> (String, String, std::sync::Arc<AtomicBool>) {
    desk.register("pay", "/pay", json!({"timeout_ms": 600_000})).await;
    desk.register("get", "/get", json!({"timeout_ms": 600_000, "idempotent": true})).await;
    let answers = std::sync::Arc::new(AtomicBool::new(false));
    let script = answers.clone();
    desk.server.answer_by(move |_| match script.load(Ordering::Relaxed) {
        true => json_answer(200, json!({"done": true})),
        false => Answer::Hang,
    });
    let calls = (desk.call("pay", json!({"id": "1"})).await, desk.call("get", json!({"id": "1"})).await);
    desk.came(2).await;
    (calls.0, calls.1, answers)
}

fn requests(desk: &Desk, path: &str, key: &str) -> usize {
    let seen = desk.server.seen();
    seen.iter().filter(|seen| seen.path == path && seen.header("idempotency-key") == Some(key)).count()
}

#[tokio::test]
async fn a_gateway_that_is_killed_sends_nothing_twice_but_what_may_be() {
    let desk = Desk::new().await;
    let (pay, get, answers) = under_way(&desk).await;
    assert_eq!(desk.status(&pay).await["status"], "running");
    answers.store(true, Ordering::Relaxed);
    signal(desk.cluster.pids().await.gateway, "KILL");
    let ended = desk.ended(&pay).await;
    assert_eq!((&ended["status"], &ended["error"]["sqlstate"]), (&json!("uncertain"), &json!("55000")), "{ended}");
    assert_eq!(desk.ended(&get).await["status"], "succeeded");
    assert_eq!((requests(&desk, "/pay", &pay), requests(&desk, "/get", &get)), (1, 2));
    // Nothing is left to be done again.
    desk.admin
        .run("select helper._settle_calls(array_agg(c.workspace_id), array_agg(c.id)) from helper.function_calls c")
        .await;
    let left: i64 = desk
        .admin
        .one("select (select count(*) from helper.job_queue) + (select count(*) from helper.job_leases)", &[])
        .await;
    assert_eq!(left, 0);
}

#[tokio::test]
async fn what_a_worker_was_sending_is_settled_once_nobody_holds_it() {
    let desk = Desk::new().await;
    let (pay, get, answers) = under_way(&desk).await;
    answers.store(true, Ordering::Relaxed);
    let holder = desk.cluster.admin().await;
    holder.run("begin; select from helper.function_calls where status = 'running' for update").await;
    let worker = desk.cluster.pids().await.worker;
    assert!(desk.admin.one::<bool>("select pg_terminate_backend($1, 10000)", &[&worker]).await);
    // The worker works, and what waits for its call to be settled waits on.
    let later = desk.call("get", json!({"id": "2"})).await;
    assert_eq!(desk.ended(&later).await["status"], "succeeded");
    assert_eq!(
        (desk.status(&pay).await["status"].clone(), desk.status(&get).await["status"].clone()),
        (json!("running"), json!("running"))
    );
    holder.run("commit").await;
    assert_eq!(desk.ended(&pay).await["status"], "uncertain");
    assert_eq!(desk.ended(&get).await["status"], "succeeded");
    assert_eq!((requests(&desk, "/pay", &pay), requests(&desk, "/get", &get)), (1, 2));
}

#[tokio::test]
async fn a_worker_that_is_killed_sends_nothing_twice_but_what_may_be() {
    let mut desk = Desk::new().await;
    let (pay, get, answers) = under_way(&desk).await;
    answers.store(true, Ordering::Relaxed);
    signal(desk.cluster.pids().await.worker, "KILL");
    // The whole server begins again.
    until("the end of the old server", async || desk.ann.batch_execute("select 1").await.is_err().then_some(())).await;
    desk.ann = until("the server", async || {
        let session = desk.cluster.try_connect("postgres", "authenticator").await.ok()?;
        session.batch_execute("set role authenticated").await.ok()?;
        let claims = json!({ "sub": ANN, "role": "authenticated" }).to_string();
        session.query("select set_config('request.jwt.claims', $1, false)", &[&claims]).await.ok()?;
        Some(session)
    })
    .await;
    let ended = desk.ended(&pay).await;
    assert_eq!((&ended["status"], &ended["error"]["sqlstate"]), (&json!("uncertain"), &json!("55000")), "{ended}");
    assert_eq!(desk.ended(&get).await["status"], "succeeded");
    assert_eq!((requests(&desk, "/pay", &pay), requests(&desk, "/get", &get)), (1, 2));
}

/// A server of tools that offers these.
fn offer(server: &Server, tools: &'static [&'static str]) {
    offer_as(server, tools, true);
}

/// The same, with its word on whether they only read.
fn offer_as(server: &Server, tools: &'static [&'static str], reads: bool) {
    server.answer_by(move |seen| {
        let message = seen.json();
        let result = match message["method"].as_str() {
            Some("initialize") => json!({"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "Files", "version": "1"}}),
            Some("tools/list") => {
                let schema = json!({"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]});
                let tool = |name: &&str| json!({"name": name, "description": format!("does {name}"), "inputSchema": schema, "annotations": {"readOnlyHint": reads, "idempotentHint": reads}});
                json!({ "tools": tools.iter().map(tool).collect::<Vec<_>>() })
            }
            Some("tools/call") => {
                let text = format!("{} of {}", message["params"]["name"], message["params"]["arguments"]["path"]);
                json!({"content": [{"type": "text", "text": text}]})
            }
            _ => return Answer::status(202, ""),
        };
        json_answer(200, json!({"jsonrpc": "2.0", "id": message["id"], "result": result}))
    });
}

#[tokio::test]
async fn a_servers_tool_that_comes_back_is_switched_as_it_was_and_its_annotations_are_followed() {
    let desk = Desk::new().await;
    offer(&desk.server, &["read", "write"]);
    let options = json!({"allow_private": true, "trust_annotations": true, "requires_confirmation": true});
    let add = "select helper.add_mcp_server('disk', $1, null, null, $2)";
    desk.admin.one::<Vec<String>>(add, &[&desk.server.url("/mcp"), &options]).await;
    desk.ann.run("select helper.set_function('disk_write', false)").await;
    desk.ann.run("select helper.set_function('disk_read', limits => '{\"user_per_day\": 3}')").await;
    let waits = desk.call("disk_read", json!({"path": "a"})).await;
    let refresh = "select helper.refresh_mcp_server('disk')";
    offer(&desk.server, &["move"]);
    assert_eq!(desk.admin.one::<Vec<String>>(refresh, &[]).await, ["disk_move"]);
    assert_eq!(functions(&desk.ann).await, ["disk_move"]);
    assert_eq!(desk.ann.error("select helper.call('disk_read', '{\"path\": \"a\"}')").await.code().code(), "42704");
    offer(&desk.server, &["read", "write", "move"]);
    assert_eq!(desk.admin.one::<Vec<String>>(refresh, &[]).await.len(), 3);
    // On are those that were, with their limits; what waited for approval is of a registration that is gone.
    assert_eq!(functions(&desk.ann).await, ["disk_move", "disk_read"]);
    let limit: i32 = desk
        .admin
        .one("select user_per_day from helper.function_settings where function_name = 'disk_read'", &[])
        .await;
    assert_eq!(limit, 3);
    desk.ann.run(&format!("select helper.confirm('{waits}')")).await;
    assert_eq!(desk.ended(&waits).await["status"], "failed");
    let flags = "select array[read_only, idempotent] from helper.functions where function_name = 'disk_read'";
    assert_eq!(desk.admin.one::<Vec<bool>>(flags, &[]).await, [true, true]);
    offer_as(&desk.server, &["read", "write", "move"], false);
    desk.admin.one::<Vec<String>>(refresh, &[]).await;
    assert_eq!(desk.admin.one::<Vec<bool>>(flags, &[]).await, [false, false]);
    desk.admin.run("select helper.remove_mcp_server('disk')").await;
    assert!(functions(&desk.ann).await.is_empty());
}

async fn functions(session: &Session) -> Vec<String> {
    let rows = session
        .query("select function_name from helper.available_functions() where kind = 'http' order by 1", &[])
        .await;
    rows.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn a_servers_tools_become_functions_that_need_approval() {
    let desk = Desk::new().await;
    offer(&desk.server, &["read", "files.delete", "format"]);
    let add = format!(
        "select helper.add_mcp_server('disk', '{}', '{}', array['read', 'files.delete'], '{{\"allow_private\": true}}')",
        desk.server.url("/mcp"),
        desk.key()
    );
    assert_eq!(desk.ann.error(&add).await.code().code(), "42501");
    assert_eq!(desk.server.count(), 0);
    assert_eq!(desk.admin.one::<Vec<String>>(&add, &[]).await, ["disk_read", "disk_files_delete"]);
    assert_eq!(functions(&desk.ann).await, ["disk_files_delete", "disk_read"]);
    let row: Value =
        desk.admin.one("select to_jsonb(f) from helper.functions f where f.function_name = 'disk_read'", &[]).await;
    // What the server says of its tools is not taken for the truth.
    assert_eq!(
        (&row["requires_confirmation"], &row["read_only"], &row["idempotent"]),
        (&json!(true), &json!(false), &json!(false))
    );
    assert_eq!((&row["description"], &row["parameters_schema"]["required"]), (&json!("does read"), &json!(["path"])));
    let call = desk.call("disk_read", json!({"path": "a.txt"})).await;
    assert!(!desk.server.seen().iter().any(|seen| seen.json()["method"] == "tools/call"));
    desk.ann.run(&format!("select helper.confirm('{call}')")).await;
    let ended = desk.ended(&call).await;
    assert_eq!((&ended["status"], &ended["result"]), (&json!("succeeded"), &json!("\"read\" of \"a.txt\"")), "{ended}");
    let seen = desk.server.seen();
    assert!(seen.iter().all(|seen| seen.header("authorization") == Some("Bearer sk-the-secret")));
    let error = desk.ann.error("select helper.call('disk_read', '{\"path\": 1}')").await;
    assert_eq!(error.code().code(), "22023");
    assert_eq!(desk.admin.error(&add).await.code().code(), "22023");
}

#[tokio::test]
async fn a_server_is_asked_again_and_removed_with_its_tools() {
    let desk = Desk::new().await;
    offer(&desk.server, &["read", "write"]);
    let url = desk.server.url("/mcp");
    let options =
        json!({"allow_private": true, "trust_annotations": true, "requires_confirmation": false, "tags": ["disk"]});
    let add = "select helper.add_mcp_server('disk', $1, null, null, $2)";
    let names: Vec<String> = desk.admin.one(add, &[&url, &options]).await;
    assert_eq!(names, ["disk_read", "disk_write"]);
    let row: Value =
        desk.admin.one("select to_jsonb(f) from helper.functions f where f.function_name = 'disk_read'", &[]).await;
    assert_eq!(
        (&row["requires_confirmation"], &row["read_only"], &row["idempotent"], &row["tags"]),
        (&json!(false), &json!(true), &json!(true), &json!(["disk"]))
    );
    let stays: String =
        desk.admin.one("select updated_at::text from helper.functions where function_name = 'disk_read'", &[]).await;
    offer(&desk.server, &["read", "move"]);
    let names: Vec<String> = desk.admin.one("select helper.refresh_mcp_server('disk')", &[]).await;
    assert_eq!(names, ["disk_read", "disk_move"]);
    assert_eq!(functions(&desk.ann).await, ["disk_move", "disk_read"]);
    let now: String =
        desk.admin.one("select updated_at::text from helper.functions where function_name = 'disk_read'", &[]).await;
    assert_eq!(now, stays);
    for (what, state) in [
        ("select helper.refresh_mcp_server('disk')", "42501"),
        ("select helper.remove_mcp_server('disk')", "42501"),
        ("select * from helper.mcp_servers", "42501"),
    ] {
        assert_eq!(desk.ann.error(what).await.code().code(), state, "{what}");
    }
    desk.admin.run("select helper.remove_mcp_server('disk')").await;
    assert!(functions(&desk.ann).await.is_empty());
    assert_eq!(desk.admin.error("select helper.remove_mcp_server('disk')").await.code().code(), "42704");
    for (sql, state) in [
        (
            format!("select helper.add_mcp_server('disk', '{url}', tools => array['format'], options => '{options}')"),
            "42704",
        ),
        (format!("select helper.add_mcp_server('a b', '{url}', options => '{options}')"), "22023"),
        (format!("select helper.add_mcp_server('disk', '{url}', options => '{{\"other\": 1}}')"), "22023"),
        (format!("select helper.add_mcp_server('disk', '{url}')"), "22023"),
        (format!("select helper.add_mcp_server('disk', '{}')", url.replace("http:", "https:")), "42501"),
        (format!("select helper.add_mcp_server('disk', '{url}', 'sk-the-secret', options => '{options}')"), "22023"),
    ] {
        let error = desk.admin.error(&sql).await;
        assert_eq!(error.code().code(), state, "{sql} {error}");
    }
    assert_eq!(desk.admin.one::<i64>("select count(*) from helper.mcp_servers", &[]).await, 0);
    // A name that is taken is left alone.
    desk.register("disk_read", "/read", json!({})).await;
    let error = desk.admin.query(add, &[&url, &options]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22023");
}

#[tokio::test]
async fn another_workspaces_people_neither_see_nor_approve_a_call() {
    let desk = Desk::new().await;
    desk.register("pay", "/pay", json!({"requires_confirmation": true})).await;
    let call = desk.call("pay", json!({"id": "1"})).await;
    let bea = desk.cluster.user(BEA).await;
    bea.run("select helper.create_workspace('Bea')").await;
    for sql in [format!("select helper.confirm('{call}')"), format!("select helper.call_status('{call}')")] {
        assert_eq!(bea.error(&sql).await.code().code(), "42704");
    }
    assert_eq!(desk.server.count(), 0);
}
