//! This database as a server of the Model Context Protocol: every method by SQL, as the people who call it, and the
//! official client by the HTTP front in examples/mcp.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;

use cluster::{Cluster, Session, until};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";

const TOOLS: &str = "
    create table public.notes (workspace_id uuid not null, body text not null);
    alter table public.notes enable row level security;
    create policy notes_all on public.notes using (workspace_id = any (helper.my_workspaces()))
      with check (workspace_id = any (helper.my_workspaces('member')));
    grant select, insert on public.notes to authenticated;
    create function public.add_up(a numeric, b numeric) returns jsonb language sql immutable
      as $$ select jsonb_build_object('sum', a + b) $$;
    create function public.add_note(body text, workspace uuid) returns jsonb language plpgsql as $$
    begin
      insert into public.notes values (workspace, body);
      if body = 'bad' then
        raise exception using errcode = 'P0001', message = 'the note is bad', hint = 'Write a better one.';
      end if;
      return jsonb_build_object('added', true);
    end $$;
    create function public.count_notes(workspace uuid) returns jsonb language sql stable
      as $$ select jsonb_build_object('notes', count(*)) from public.notes n where n.workspace_id = workspace $$;
    create function public.say(what text) returns text language sql immutable as $$ select what $$;
    select helper.register_function('add_up', 'public.add_up', 'Adds two numbers', '{\"requires_confirmation\": false}');
    select helper.register_function('say', 'public.say', 'Says it', '{\"requires_confirmation\": false}');
    select helper.register_function('count_notes', 'public.count_notes', 'Counts notes', '{\"requires_confirmation\": false}');
    select helper.register_function('add_note', 'public.add_note', 'Adds a note');
    select helper.register_function('note_at_once', 'public.add_note', 'Adds a note', '{\"requires_confirmation\": false}');
    select helper.register_function('note_by_two', 'public.add_note', 'Adds a note', '{\"approver_role\": \"admin\", \"self_approval\": false}');
    select helper.register_function('note_soon', 'public.add_note', 'Adds a note', '{\"lapse\": \"1 second\"}');
    select helper.register_function('for_admins', 'public.add_up', 'Adds', '{\"minimum_role\": \"admin\"}');
    select helper.register_function('confirm_call', 'public.add_up', 'Would take the place of another');
    select helper.register_function('filler_' || n, 'public.add_up', 'Adds') from generate_series(100, 219) n;
    create policy knowledge_sources_select_secret on helper.knowledge_sources as restrictive for select
      to authenticated using (title <> 'Secret');
";

/// A cluster with the tools, shared by the tests that run at the same time; each has people of its own.
struct Desk {
    cluster: Arc<Cluster>,
    admin: Session,
}

/// Somebody with a workspace of their own.
struct Person {
    id: String,
    session: Session,
    workspace: String,
}

impl Desk {
    async fn new() -> Desk {
        static SETTING_UP: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let cluster = Cluster::shared().await;
        let admin = cluster.admin().await;
        let _one = SETTING_UP.lock().await;
        if admin.one::<bool>("select to_regclass('public.notes') is null", &[]).await {
            admin.run(&format!("begin; {TOOLS} commit")).await;
        }
        Desk { cluster, admin }
    }

    async fn person(&self) -> Person {
        let id: String = self.admin.one("select gen_random_uuid()::text", &[]).await;
        let session = self.cluster.user(&id).await;
        let workspace = session.one("select helper.create_workspace('Own')::text", &[]).await;
        Person { id, session, workspace }
    }

    /// A person who has a role in somebody's workspace, and no other.
    async fn colleague(&self, of: &Person, role: &str) -> Session {
        let id: String = self.admin.one("select gen_random_uuid()::text", &[]).await;
        of.session.run(&format!("select helper.add_member('{}', '{id}', '{role}')", of.workspace)).await;
        self.cluster.user(&id).await
    }
}

async fn send(session: &Session, message: &Value) -> Option<Value> {
    session.one("select helper.mcp($1)", &[message]).await
}

/// What is said to a request.
async fn ask(session: &Session, method: &str, params: Value) -> Value {
    let message = json!({"jsonrpc": "2.0", "id": "a", "method": method, "params": params});
    let said = send(session, &message).await.expect("no answer");
    assert_eq!((&said["jsonrpc"], &said["id"]), (&json!("2.0"), &json!("a")), "{said}");
    said
}

async fn result(session: &Session, method: &str, params: Value) -> Value {
    let said = ask(session, method, params).await;
    assert!(said["result"].is_object(), "{said}");
    said["result"].clone()
}

async fn code(session: &Session, method: &str, params: Value) -> i64 {
    let said = ask(session, method, params).await;
    said["error"]["code"].as_i64().unwrap_or_else(|| panic!("{method}: {said}"))
}

async fn call(session: &Session, name: &str, arguments: Value) -> Value {
    result(session, "tools/call", json!({"name": name, "arguments": arguments})).await
}

/// Calls a tool as a client does whose user has chosen to decide by tools.
async fn decide(session: &Session, name: &str, arguments: Value) -> Value {
    let message =
        json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}});
    let said: Value = session.one("select helper.mcp($1, approvals => true)", &[&message]).await;
    assert!(said["result"].is_object(), "{said}");
    said["result"].clone()
}

/// The text of its error.
async fn undecided(session: &Session, name: &str, arguments: Value) -> String {
    let said = decide(session, name, arguments).await;
    assert_eq!(said["isError"], json!(true), "{said}");
    said["content"][0]["text"].as_str().unwrap().to_owned()
}

/// The text of an error of a tool.
async fn error(session: &Session, name: &str, arguments: Value) -> String {
    let said = call(session, name, arguments).await;
    assert_eq!((&said["isError"], said.get("structuredContent")), (&json!(true), None), "{said}");
    said["content"][0]["text"].as_str().unwrap().to_owned()
}

async fn notes(person: &Person) -> Value {
    call(&person.session, "count_notes", json!({})).await["structuredContent"]["notes"].clone()
}

/// The id of a call that waits.
fn waiting(said: &Value) -> String {
    assert_eq!(said["structuredContent"]["status"], "awaiting_confirmation", "{said}");
    said["structuredContent"]["call"].as_str().unwrap().to_owned()
}

/// All names in a list, page after page.
async fn names(session: &Session, method: &str, what: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut params = json!({});
    loop {
        let page = result(session, method, params).await;
        names.extend(page[what].as_array().unwrap().iter().map(|thing| thing["name"].as_str().unwrap().to_owned()));
        match page.get("nextCursor") {
            Some(cursor) => params = json!({"cursor": cursor}),
            None => return names,
        }
    }
}

#[tokio::test]
async fn the_handshake_settles_the_revision_and_odd_messages_get_their_codes() {
    let desk = Desk::new().await;
    let ann = desk.person().await.session;
    let hello =
        json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}});
    let said = result(&ann, "initialize", hello).await;
    assert_eq!((&said["protocolVersion"], &said["serverInfo"]["name"]), (&json!("2025-06-18"), &json!("helper_ai")));
    assert!(said["instructions"].is_string() && said["capabilities"]["tools"].is_object(), "{said}");
    assert_eq!(result(&ann, "ping", json!({})).await, json!({}));
    assert_eq!(result(&ann, "logging/setLevel", json!({"level": "debug"})).await, json!({}));
    assert_eq!(code(&ann, "logging/setLevel", json!({"level": "loud"})).await, -32602);
    assert_eq!(code(&ann, "tools/burn", json!({})).await, -32601);
    assert_eq!(code(&ann, "server/discover", json!({})).await, -32601);
    assert_eq!(code(&ann, "tools/list", json!({"cursor": "no cursor"})).await, -32602);
    assert_eq!(code(&ann, "tools/call", json!({"name": "add_up", "arguments": [1, 2]})).await, -32602);
    let reference =
        json!({"ref": {"type": "ref/prompt", "name": "chat"}, "argument": {"name": "question", "value": "W"}});
    assert_eq!(result(&ann, "completion/complete", reference).await["completion"]["values"], json!([]));
    assert_eq!(code(&ann, "completion/complete", json!({})).await, -32602);
    for (message, code) in [
        (json!([{"jsonrpc": "2.0", "id": 1, "method": "ping"}]), -32600),
        (json!({"id": 1, "method": "ping"}), -32600),
        (json!({"jsonrpc": "2.0", "id": null, "method": "ping"}), -32600),
    ] {
        assert_eq!(send(&ann, &message).await.unwrap()["error"]["code"], code, "{message}");
    }
    for silent in [
        json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        json!({"jsonrpc": "2.0", "id": 1, "result": {}}),
    ] {
        assert_eq!(send(&ann, &silent).await, None);
    }
    assert_eq!(ann.error("select helper.mcp(null)").await.code().code(), "22023");
}

#[tokio::test]
async fn who_is_nobody_gets_nothing_and_what_ends_a_statement_ends_it() {
    let desk = Desk::new().await;
    let list = "select helper.mcp('{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"tools/list\"}')";
    let anon = desk.cluster.session("postgres", "anon", &json!({"role": "anon"})).await;
    assert_eq!(anon.error(list).await.code().code(), "42501");
    let nowhere = desk.cluster.user("00000000-0000-4000-8000-0000000000ff").await;
    let said = ask(&nowhere, "tools/list", json!({})).await;
    assert_eq!(
        (&said["error"]["code"], &said["error"]["data"]["sqlstate"]),
        (&json!(-32602), &json!("42704")),
        "{said}"
    );
    let ann = desk.person().await;
    let elsewhere = desk.person().await;
    let said: Value = ann
        .session
        .one(
            "select helper.mcp('{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"resources/list\"}', $1::text::uuid)",
            &[&elsewhere.workspace],
        )
        .await;
    assert_eq!(said["error"]["data"]["sqlstate"], "42704", "{said}");
    // A definer's function is nobody's way to act as somebody else.
    desk.admin
        .run(
            "create role definer nologin; select helper.grant_usage('definer'); grant create on schema public to definer; \
             set role definer; \
             create function public.through() returns jsonb language sql volatile security definer \
               as $$ select helper.mcp('{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"ping\"}') $$; \
             reset role",
        )
        .await;
    assert_eq!(ann.session.error("select public.through()").await.code().code(), "42501");
    desk.admin
        .run(
            "create function public.dawdle() returns text language sql volatile as $$ select pg_sleep(60)::text $$; \
             select helper.register_function('dawdle', 'public.dawdle', 'Sleeps', '{\"requires_confirmation\": false}')",
        )
        .await;
    ann.session.run("set statement_timeout = 200").await;
    let dawdle = "select helper.mcp('{\"jsonrpc\": \"2.0\", \"id\": 1, \"method\": \"tools/call\", \"params\": {\"name\": \"dawdle\"}}')";
    assert_eq!(ann.session.error(dawdle).await.code().code(), "57014");
}

#[tokio::test]
async fn tools_are_listed_in_pages_as_the_caller_has_them() {
    let desk = Desk::new().await;
    let ann = desk.person().await;
    let first = result(&ann.session, "tools/list", json!({})).await;
    assert!(first["nextCursor"].is_string());
    let all = names(&ann.session, "tools/list", "tools").await;
    assert!(all.len() > 125 && all[0] == "call_status", "{all:?}");
    let unique: std::collections::BTreeSet<&String> = all.iter().collect();
    assert_eq!(unique.len(), all.len());
    let tool = first["tools"].as_array().unwrap().iter().find(|tool| tool["name"] == "add_note").unwrap();
    assert_eq!((&tool["title"], &tool["inputSchema"]["type"]), (&json!("Add note"), &json!("object")));
    assert_eq!(tool["inputSchema"]["required"], json!(["body"]));
    assert_eq!(
        tool["annotations"],
        json!({"readOnlyHint": false, "destructiveHint": true, "idempotentHint": false, "openWorldHint": false})
    );
    assert!(tool["description"].as_str().unwrap().contains("until a person approves it"));
    ann.session.run("select helper.set_function('add_up', false)").await;
    assert!(!names(&ann.session, "tools/list", "tools").await.contains(&"add_up".to_owned()));
    assert_eq!(
        code(&ann.session, "tools/call", json!({"name": "add_up", "arguments": {"a": 1, "b": 2}})).await,
        -32602
    );
    let viewer = desk.colleague(&ann, "viewer").await;
    let viewers = names(&viewer, "tools/list", "tools").await;
    assert!(viewers.contains(&"search_knowledge".to_owned()), "{viewers:?}");
    assert!(!viewers.iter().any(|name| ["say", "add_note", "create_note"].contains(&name.as_str())), "{viewers:?}");
    let member = desk.colleague(&ann, "member").await;
    let members = names(&member, "tools/list", "tools").await;
    assert!(members.contains(&"say".to_owned()) && !members.contains(&"for_admins".to_owned()));
}

#[tokio::test]
async fn tools_are_called_as_the_caller_and_what_they_say_arrives() {
    let desk = Desk::new().await;
    let ann = desk.person().await;
    let session = &ann.session;
    let said = call(session, "add_up", json!({"a": 2, "b": 3})).await;
    assert_eq!(
        said,
        json!({"content": [{"type": "text", "text": "{\"sum\": 5}"}], "isError": false, "structuredContent": {"sum": 5}})
    );
    let digits: String = session
        .one(
            "select helper.mcp('{\"jsonrpc\": \"2.0\", \"id\": 12345678901234567, \"method\": \"tools/call\", \"params\": {\"name\": \"add_up\", \
               \"arguments\": {\"a\": 12345678901234567890.0625, \"b\": 0}}}') #>> '{result,structuredContent,sum}'",
            &[],
        )
        .await;
    assert_eq!(digits, "12345678901234567890.0625");
    let said = call(session, "say", json!({"what": "it is said"})).await;
    assert_eq!(said, json!({"content": [{"type": "text", "text": "it is said"}], "isError": false}));
    assert!(error(session, "add_up", json!({"a": "x", "b": 3})).await.contains("22023"));
    assert!(error(session, "add_up", json!({"a": 1, "b": 3, "c": 4})).await.contains('c'));
    assert_eq!(code(session, "tools/call", json!({"name": "nothing_such", "arguments": {}})).await, -32602);
    assert_eq!(code(session, "tools/call", json!({"name": "pg_sleep"})).await, -32602);
    // What a tool did before it failed is taken back.
    let told = error(session, "note_at_once", json!({"body": "bad"})).await;
    assert!(
        told.contains("P0001") && told.contains("the note is bad") && told.contains("Write a better one."),
        "{told}"
    );
    assert_eq!(notes(&ann).await, json!(0));
    call(session, "note_at_once", json!({"body": "good"})).await;
    assert_eq!(notes(&ann).await, json!(1));
    session.run("select helper.set_function('say', null, '{\"user_per_hour\": 1}')").await;
    call(session, "say", json!({"what": "once"})).await;
    assert!(error(session, "say", json!({"what": "twice"})).await.contains("53400"));
    let viewer = desk.colleague(&ann, "viewer").await;
    assert!(error(&viewer, "note_at_once", json!({"body": "mine"})).await.contains("42501"));
    assert_eq!(notes(&ann).await, json!(1));
}

#[tokio::test]
async fn a_call_that_needs_an_approval_is_done_when_it_has_it_and_once() {
    let desk = Desk::new().await;
    let (ann, bea) = (desk.person().await, desk.person().await);
    let session = &ann.session;
    let said = call(session, "add_note", json!({"body": "one"})).await;
    let id = waiting(&said);
    assert_eq!((&said["isError"], &said["structuredContent"]["arguments"]), (&json!(false), &json!({"body": "one"})));
    assert_eq!(waiting(&call(session, "call_status", json!({"call": id})).await), id);
    for tool in ["call_status", "confirm_call", "reject_call"] {
        assert!(undecided(&bea.session, tool, json!({"call": id})).await.contains("does not exist"), "{tool}");
        assert!(undecided(session, tool, json!({})).await.contains("call"));
    }
    assert_eq!(notes(&ann).await, json!(0));
    for _ in 0..2 {
        assert_eq!(
            decide(session, "confirm_call", json!({"call": id})).await["structuredContent"],
            json!({"added": true})
        );
    }
    assert_eq!(notes(&ann).await, json!(1));
    let id = waiting(&call(session, "add_note", json!({"body": "two"})).await);
    assert!(undecided(session, "reject_call", json!({"call": id, "reason": "not now"})).await.contains("not now"));
    assert!(undecided(session, "confirm_call", json!({"call": id})).await.contains("55000"));
    assert!(error(session, "call_status", json!({"call": id})).await.contains("rejected"));
    let id = waiting(&call(session, "note_soon", json!({"body": "three"})).await);
    until("the approval's lapse", async || {
        let said = call(session, "call_status", json!({"call": id})).await;
        (said["isError"] == json!(true)).then_some(())
    })
    .await;
    assert!(undecided(session, "confirm_call", json!({"call": id})).await.contains("expired"));
    assert_eq!(notes(&ann).await, json!(1));
}

#[tokio::test]
async fn a_model_cannot_approve_unless_the_user_of_its_client_has_chosen_so() {
    let desk = Desk::new().await;
    let ann = desk.person().await;
    let said = call(&ann.session, "add_note", json!({"body": "one"})).await;
    let id = waiting(&said);
    let told = said["content"][0]["text"].as_str().unwrap();
    assert!(told.contains("not yours to give") && !told.contains("confirm_call"), "{told}");
    // A client that runs all that its model says finds nothing to approve with, by whatever name.
    let names = names(&ann.session, "tools/list", "tools").await;
    assert!(!names.iter().any(|name| ["confirm_call", "reject_call", "confirm", "reject"].contains(&name.as_str())));
    for name in ["confirm_call", "reject_call", "confirm", "helper.confirm"] {
        assert_eq!(code(&ann.session, "tools/call", json!({"name": name, "arguments": {"call": id}})).await, -32602);
    }
    assert_eq!(notes(&ann).await, json!(0));
    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    let page: Value = ann.session.one("select helper.mcp($1, approvals => true)", &[&list]).await;
    let first: Vec<&Value> =
        page["result"]["tools"].as_array().unwrap().iter().take(3).map(|tool| &tool["name"]).collect();
    assert_eq!(first, ["call_status", "confirm_call", "reject_call"]);
    // And then for what the user was shown.
    let preview = "select helper.preview($1::text::uuid) ->> 'effect'";
    let effect: String = ann.session.one(preview, &[&id]).await;
    let said = call(&ann.session, "call_status", json!({"call": id})).await;
    assert_eq!(said["structuredContent"]["effect"], json!(effect));
    let other = json!({"call": id, "effect": "00"});
    assert!(undecided(&ann.session, "confirm_call", other).await.contains("55000"));
    let done = decide(&ann.session, "confirm_call", json!({"call": id, "effect": effect})).await;
    assert_eq!(done["structuredContent"], json!({"added": true}));
}

#[tokio::test]
async fn an_approval_that_is_somebody_elses_is_not_had_by_asking() {
    let desk = Desk::new().await;
    let ann = desk.person().await;
    let member = desk.colleague(&ann, "member").await;
    let said = call(&member, "note_by_two", json!({"body": "by two"})).await;
    let id = waiting(&said);
    assert_eq!(said["structuredContent"]["may_approve"], json!(false));
    assert!(undecided(&member, "confirm_call", json!({"call": id})).await.contains("42501"));
    // Not by a form either: none is shown to who may not approve.
    let arguments = json!({"name": "note_by_two", "arguments": {"body": "by two"}});
    let said =
        stateless(&member, arguments.clone(), json!({"requestState": id, "inputResponses": {"approval": yes()}})).await;
    assert_eq!((&said["resultType"], &said["isError"]), (&json!("complete"), &json!(true)), "{said}");
    assert_eq!(stateless(&member, arguments, json!({})).await["resultType"], "complete");
    assert_eq!(notes(&ann).await, json!(0));
    let said = decide(&ann.session, "confirm_call", json!({"call": id})).await;
    assert_eq!(said["isError"], json!(false), "{said}");
    until("the worker", async || {
        let said = call(&member, "call_status", json!({"call": id})).await;
        (said["structuredContent"] == json!({"added": true})).then_some(())
    })
    .await;
    assert_eq!(notes(&ann).await, json!(1));
}

fn yes() -> Value {
    json!({"action": "accept", "content": {"approve": true}})
}

/// A call in the revision without a handshake, by a client that can show forms.
async fn stateless(session: &Session, mut params: Value, more: Value) -> Value {
    let meta = json!({VERSION: "2026-07-28", CAPABILITIES: {"elicitation": {"form": {}}}});
    params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    params["_meta"] = meta;
    let said = ask(session, "tools/call", params).await;
    if said["result"].is_object() { said["result"].clone() } else { said["error"].clone() }
}

#[tokio::test]
async fn without_a_handshake_the_clients_user_is_asked_by_a_form() {
    let desk = Desk::new().await;
    let (ann, bea) = (desk.person().await, desk.person().await);
    let session = &ann.session;
    let meta = |version: &str| json!({"_meta": {VERSION: version, CAPABILITIES: {}}});
    let said = result(session, "server/discover", meta("2026-07-28")).await;
    assert_eq!((&said["resultType"], &said["supportedVersions"][0]), (&json!("complete"), &json!("2026-07-28")));
    assert_eq!(said["_meta"]["io.modelcontextprotocol/serverInfo"]["name"], "helper_ai");
    let said = result(session, "tools/list", meta("2026-07-28")).await;
    assert_eq!((&said["cacheScope"], &said["ttlMs"]), (&json!("private"), &json!(0)));
    let said = ask(session, "tools/list", meta("2031-01-01")).await;
    assert_eq!((&said["error"]["code"], &said["error"]["data"]["requested"]), (&json!(-32022), &json!("2031-01-01")));
    for gone in ["initialize", "ping", "logging/setLevel"] {
        assert_eq!(code(session, gone, meta("2026-07-28")).await, -32601);
    }

    let one = json!({"name": "add_note", "arguments": {"body": "one"}});
    let asked = stateless(session, one.clone(), json!({})).await;
    let form = &asked["inputRequests"]["approval"];
    assert_eq!((&asked["resultType"], &form["method"]), (&json!("input_required"), &json!("elicitation/create")));
    assert!(form["params"]["message"].as_str().unwrap().contains("{\"body\": \"one\"}"), "{form}");
    let state = &asked["requestState"];
    let back = |response: Value| json!({"requestState": state, "inputResponses": {"approval": response}});
    // What is no answer is asked again, and nothing is done meanwhile.
    for response in [json!({}), json!({"action": "accept", "content": {"approve": "yes"}})] {
        assert_eq!(stateless(session, one.clone(), back(response)).await["resultType"], "input_required");
    }
    let later = stateless(session, one.clone(), back(json!({"action": "cancel"}))).await;
    assert_eq!((&later["resultType"], waiting(&later)), (&json!("complete"), state.as_str().unwrap().to_owned()));
    // The approval is for these arguments, of this tool, by this person.
    for other in [
        json!({"name": "add_note", "arguments": {"body": "two"}}),
        json!({"name": "note_soon", "arguments": {"body": "one"}}),
        json!({"name": "add_note"}),
    ] {
        assert_eq!(stateless(session, other, back(yes())).await["code"], -32602);
    }
    assert_eq!(stateless(&bea.session, one.clone(), back(yes())).await["code"], -32602);
    assert_eq!(stateless(session, one.clone(), json!({"requestState": "forged"})).await["code"], -32602);
    assert_eq!(notes(&ann).await, json!(0));
    for _ in 0..2 {
        assert_eq!(stateless(session, one.clone(), back(yes())).await["structuredContent"], json!({"added": true}));
    }
    assert_eq!(notes(&ann).await, json!(1));
    let asked = stateless(session, one.clone(), json!({})).await;
    // What was previewed is shown, and approved with it.
    let id = asked["requestState"].as_str().unwrap().to_owned();
    session.one::<Value>("select helper.preview($1::text::uuid)", &[&id]).await;
    let again = stateless(session, one.clone(), json!({"requestState": id, "inputResponses": {}})).await;
    let form = again["inputRequests"]["approval"]["params"]["message"].as_str().unwrap();
    assert!(form.contains("public.notes: 1 inserted"), "{form}");
    let state = again["requestState"].as_str().unwrap().to_owned();
    let other = json!({"requestState": format!("{id}/00"), "inputResponses": {"approval": yes()}});
    assert_eq!(stateless(session, one.clone(), other).await["isError"], json!(true));
    assert!(state.len() > id.len() && notes(&ann).await == json!(1));
    let no = json!({"requestState": state, "inputResponses": {"approval": {"action": "decline"}}});
    assert_eq!(stateless(session, one, no).await["isError"], json!(true));
    assert_eq!(notes(&ann).await, json!(1));
}

#[tokio::test]
async fn documents_are_resources_for_whoever_may_see_them() {
    let desk = Desk::new().await;
    let (ann, bea) = (desk.person().await, desk.person().await);
    let session = &ann.session;
    let add = "select helper.add_document($1, 'Refunds are paid within ten days.')::text";
    let open: String = session.one(add, &[&"Refunds"]).await;
    let secret: String = session.one(add, &[&"Secret"]).await;
    session
        .run("select helper.add_document('Page ' || n, 'This is page ' || n || '.') from generate_series(1, 105) n")
        .await;
    session.run("select helper.wait_indexed()").await;
    let page = result(session, "resources/list", json!({})).await;
    let first = &page["resources"][0];
    assert_eq!(first["uri"], format!("helper://documents/{open}"));
    assert_eq!((&first["name"], &first["mimeType"]), (&json!("Refunds"), &json!("text/markdown")));
    assert_eq!(first["annotations"]["lastModified"].as_str().unwrap().len(), "2025-01-12T15:00:58Z".len());
    let all = names(session, "resources/list", "resources").await;
    assert!(all.len() == 106 && !all.contains(&"Secret".to_owned()), "{}", all.len());
    let read = result(session, "resources/read", json!({"uri": first["uri"]})).await;
    let text = json!({"uri": first["uri"], "mimeType": "text/markdown", "text": "Refunds are paid within ten days."});
    assert_eq!(read, json!({"contents": [text]}));
    assert_eq!(result(&bea.session, "resources/list", json!({})).await["resources"], json!([]));
    for (who, uri) in [
        (session, format!("helper://documents/{secret}")),
        (&bea.session, format!("helper://documents/{open}")),
        (session, format!("helper://documents/{}", ann.id)),
        (session, "file:///etc/passwd".to_owned()),
    ] {
        assert_eq!(code(who, "resources/read", json!({"uri": uri})).await, -32002, "{uri}");
        let meta = json!({VERSION: "2026-07-28", CAPABILITIES: {}});
        assert_eq!(code(who, "resources/read", json!({"uri": uri, "_meta": meta})).await, -32602, "{uri}");
    }
    let templates = result(session, "resources/templates/list", json!({})).await;
    assert_eq!(templates["resourceTemplates"][0]["uriTemplate"], "helper://documents/{id}");
}

#[tokio::test]
async fn modes_are_prompts_and_a_workspaces_own_comes_first() {
    let desk = Desk::new().await;
    let (ann, bea) = (desk.person().await, desk.person().await);
    ann.session.run("select helper.set_mode('chat', 'Answer in rhyme.', '{\"description\": \"Rhymes\"}', helper.current_workspace())").await;
    ann.session.run("select helper.set_mode('own', 'Be brief.', '{}', helper.current_workspace())").await;
    assert_eq!(names(&ann.session, "prompts/list", "prompts").await, ["chat", "copy", "own", "summary"]);
    assert_eq!(names(&bea.session, "prompts/list", "prompts").await, ["chat", "copy", "summary"]);
    let params = json!({"name": "chat", "arguments": {"question": "Why?"}});
    let prompt = result(&ann.session, "prompts/get", params.clone()).await;
    let content = json!({"type": "text", "text": "Answer in rhyme.\n\nWhy?"});
    assert_eq!(prompt, json!({"description": "Rhymes", "messages": [{"role": "user", "content": content}]}));
    let other = result(&bea.session, "prompts/get", params).await;
    assert!(!other.to_string().contains("rhyme"));
    assert_eq!(
        code(&bea.session, "prompts/get", json!({"name": "own", "arguments": {"question": "Why?"}})).await,
        -32602
    );
    assert_eq!(code(&ann.session, "prompts/get", json!({"name": "own"})).await, -32602);
}

fn must(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}: {told}", output.status);
    told
}

/// The example as npm would build it, in a directory of its own with the packages that setup has installed.
fn build(home: &Path) -> PathBuf {
    let cache = std::env::var_os("HELPER_CACHE").map(PathBuf::from);
    let packages = cache.map(|cache| cache.join("mcp-example/node_modules")).filter(|packages| packages.exists());
    let packages =
        packages.unwrap_or_else(|| panic!("run \"scripts/setup test\", and this test after \". scripts/env\""));
    let example = home.join("mcp-example");
    std::fs::create_dir(&example).unwrap();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/mcp")).unwrap().flatten() {
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), example.join(entry.file_name())).unwrap();
        }
    }
    std::os::unix::fs::symlink(&packages, example.join("node_modules")).unwrap();
    must(Command::new("node").arg(packages.join("typescript/bin/tsc")).current_dir(&example));
    example
}

#[tokio::test]
async fn the_official_client_uses_the_front() {
    let desk = Desk::new().await;
    let (ann, bea) = (desk.person().await, desk.person().await);
    let document: String =
        ann.session.one("select helper.add_document('Refunds', 'Refunds are paid within ten days.')::text", &[]).await;
    ann.session.run("select helper.wait_indexed()").await;
    let home = desk.cluster.home().join("front");
    std::fs::create_dir_all(&home).unwrap();
    let told = must(
        Command::new("node")
            .arg(build(&home).join("dist/check.js"))
            .env("DATABASE_URL", desk.cluster.url("postgres").replace("postgres@", "authenticator@"))
            .envs([("ANN", &ann.id), ("BEA", &bea.id), ("DOCUMENT", &document)]),
    );
    assert_eq!(told.lines().filter(|line| line.starts_with("ok ")).count(), 10, "{told}");
}
