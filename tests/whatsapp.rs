//! The worker as WhatsApp's sender: what reaches the Cloud API, how often, with whose token, and what is kept of its reply.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cluster;
mod provider;

use cluster::{Cluster, Session, signal, until};
use provider::{Answer, Seen, Server};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

const ANN: &str = "00000000-0000-4000-8000-00000000000a";
const BEA: &str = "00000000-0000-4000-8000-00000000000b";
/// Whoever has none of their own is sent by this one.
const TOKEN: &str = "EAAG-for-all";
const ANNS_TOKEN: &str = "EAAG-of-ann";

/// A cluster, a server in the Cloud API's place, and two workspaces with a number each.
struct Desk {
    cluster: Cluster,
    admin: Session,
    ann: Session,
    bea: Session,
    server: Server,
}

impl Desk {
    async fn new() -> Desk {
        Desk::with("").await
    }

    /// With more lines of `postgresql.conf`.
    async fn with(settings: &str) -> Desk {
        let cluster = Cluster::with(settings).await;
        let server = Server::start().await;
        server.answer_by(taken);
        std::fs::write(cluster.home().join("all"), format!("{TOKEN}\n")).unwrap();
        std::fs::write(cluster.home().join("ann"), format!("{ANNS_TOKEN}\n")).unwrap();
        let (admin, ann, bea) = (cluster.admin().await, cluster.user(ANN).await, cluster.user(BEA).await);
        let desk = Desk { cluster, admin, ann, bea, server };
        for (session, id) in [(&desk.ann, "101"), (&desk.bea, "102")] {
            let workspace: String = session.one("select helper.create_workspace($1)::text", &[&id]).await;
            desk.number(&workspace, id, "").await;
        }
        desk
    }

    fn file(&self, name: &str) -> String {
        format!("file:{}", self.cluster.home().join(name).display())
    }

    async fn number(&self, workspace: &str, id: &str, more: &str) {
        self.admin
            .run(&format!("select helper.set_whatsapp_number('{workspace}', '{id}', '+62812000{id}', '9{id}'{more})"))
            .await;
    }

    /// Names the sender, with more options.
    async fn sender(&self, base_url: &str, options: Value) {
        let mut all = json!({ "allow_private": true });
        all.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        let set = "select helper.set_whatsapp_sender($1, $2, $3)::text";
        self.admin.one::<String>(set, &[&self.file("all"), &base_url, &all]).await;
    }

    /// A message's row.
    async fn row(&self, id: &str) -> Value {
        self.admin.one("select to_jsonb(o) from helper.wa_outbox o where o.id = $1::text::uuid", &[&id]).await
    }

    /// The row, as soon as it is in a state.
    async fn reaches(&self, id: &str, status: &str) -> Value {
        until(&format!("a message that is {status}"), async || {
            let row = self.row(id).await;
            (row["status"] == status).then_some(row)
        })
        .await
    }

    /// A row that was tried and is queued again.
    async fn comes_back(&self, id: &str) -> Value {
        until("a message that is queued again", async || {
            let row = self.row(id).await;
            (row["status"] == "queued" && row["attempts"] != 0).then_some(row)
        })
        .await
    }

    /// What waits may go now.
    async fn hurry(&self) {
        self.admin.run("update helper.wa_outbox set send_at = now() where status = 'queued'").await;
        self.wake().await;
    }

    /// The worker has looked at all there was when this began.
    async fn wake(&self) {
        for _ in 0..2 {
            self.ann.run("select helper.add_document('Note', 'A note.')").await;
            self.ann.run("select helper.wait_indexed()").await;
        }
    }
}

/// The Cloud API's reply to a message.
fn taken(seen: &Seen) -> Answer {
    let id = seen.json()["biz_opaque_callback_data"].as_str().unwrap_or("none").to_owned();
    let body = json!({ "messaging_product": "whatsapp", "messages": [{ "id": format!("wamid.{id}") }] });
    Answer::status(200, &body.to_string())
}

/// Sends a text and returns its row's id.
async fn send(session: &Session, text: &str) -> String {
    let sent: Value = session.one("select helper.send_whatsapp_message('+6281255550001', $1)", &[&text]).await;
    sent["message_id"].as_str().unwrap().to_owned()
}

fn tokens(seen: &[Seen]) -> Vec<(&str, &str)> {
    seen.iter().map(|seen| (seen.path.as_str(), seen.header("authorization").unwrap())).collect()
}

#[tokio::test]
async fn a_message_goes_out_at_once_and_once_as_the_cloud_api_documents_it() {
    let desk = Desk::new().await;
    desk.sender(&desk.server.url("/v23.0/"), json!({})).await;
    let began = Instant::now();
    let mut ids = Vec::new();
    for text in ["One", "Two", "Three", "Four"] {
        let id = send(&desk.ann, text).await;
        let row = desk.reaches(&id, "sent").await;
        assert_eq!((&row["wa_message_id"], &row["error"]), (&json!(format!("wamid.{id}")), &Value::Null), "{row}");
        assert!(!row["sent_at"].is_null() && row["attempts"] == 1, "{row}");
        ids.push(id);
    }
    // An idle worker looks every five seconds.
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}: what is added wakes the worker", began.elapsed());
    let seen = desk.server.seen();
    assert_eq!(seen.len(), 4);
    assert_eq!((seen[0].method.as_str(), seen[0].path.as_str()), ("POST", "/v23.0/101/messages"));
    assert_eq!(seen[0].header("authorization"), Some("Bearer EAAG-for-all"));
    assert_eq!(seen[0].header("content-type"), Some("application/json"));
    assert_eq!(
        seen[0].json(),
        json!({ "messaging_product": "whatsapp", "recipient_type": "individual", "to": "+6281255550001", "type": "text",
            "text": { "preview_url": false, "body": "One" }, "biz_opaque_callback_data": ids[0] })
    );
    // A template is submitted by the number's business account.
    desk.ann.run("select helper.create_template('hello', 'UTILITY', 'id', 'Halo {{name}}')").await;
    until("the submission", async || (desk.server.count() == 5).then_some(())).await;
    let submitted = &desk.server.seen()[4];
    assert_eq!(submitted.path, "/v23.0/9101/message_templates");
    assert_eq!(
        (&submitted.json()["name"], submitted.header("authorization")),
        (&json!("hello"), Some("Bearer EAAG-for-all"))
    );
    let kept: String = desk
        .admin
        .one("select (select string_agg(o::text, '') from helper.wa_outbox o) || (select string_agg(s::text, '') from helper.wa_sender s)", &[])
        .await;
    assert!(!kept.contains("EAAG") && !desk.cluster.log().contains("EAAG"));
}

#[tokio::test]
async fn a_workspaces_token_goes_with_its_own_number_and_to_its_host_alone() {
    let desk = Desk::new().await;
    let workspace: String = desk.ann.one("select id::text from helper.workspaces", &[]).await;
    let own = format!(", credential => '{}'", desk.file("ann"));
    let early = format!("select helper.set_whatsapp_number('{workspace}', '101', '+62812000101'{own})");
    assert_eq!(desk.admin.error(&early).await.code().code(), "55000", "no host that it could be for");
    desk.sender(&desk.server.url(""), json!({})).await;
    desk.number(&workspace, "101", &own).await;
    desk.reaches(&send(&desk.ann, "Hi").await, "sent").await;
    desk.reaches(&send(&desk.bea, "Hi").await, "sent").await;
    desk.ann.run("select helper.create_template('hello', 'UTILITY', 'id', 'Halo')").await;
    until("the submission", async || (desk.server.count() == 3).then_some(())).await;
    let seen = desk.server.seen();
    let expected = [
        ("/101/messages", "Bearer EAAG-of-ann"),
        ("/102/messages", "Bearer EAAG-for-all"),
        ("/9101/message_templates", "Bearer EAAG-of-ann"),
    ];
    assert_eq!(tokens(&seen), expected);
    // Bound again without a word on it, it is as it was.
    desk.number(&workspace, "101", "").await;
    // Elsewhere goes what was given for there.
    let other = Server::start().await;
    other.answer_by(taken);
    desk.sender(&other.url(""), json!({})).await;
    let (anns, beas) = (send(&desk.ann, "Again").await, send(&desk.bea, "Again").await);
    desk.reaches(&beas, "sent").await;
    let row = desk.comes_back(&anns).await;
    assert_eq!(row["error"]["message"], "the WhatsApp number's credential is for another host", "{row}");
    assert_eq!(tokens(&other.seen()), [("/102/messages", "Bearer EAAG-for-all")]);
    desk.number(&workspace, "101", ", credential => ''").await;
    desk.hurry().await;
    desk.reaches(&anns, "sent").await;
    assert_eq!(tokens(&other.seen())[1], ("/101/messages", "Bearer EAAG-for-all"));
    // A number that was given to another workspace is no longer sent by as this one.
    let later: Value = desk
        .ann
        .one(
            "select helper.queue_whatsapp(c.id, 'Late', send_at => now() + interval '1 hour') from helper.contacts c",
            &[],
        )
        .await;
    let later = later["message_id"].as_str().unwrap();
    desk.admin.run("update helper.wa_numbers set phone_number_id = '103' where phone_number_id = '101'").await;
    desk.hurry().await;
    let row = desk.comes_back(later).await;
    assert_eq!(row["error"]["message"], "the WhatsApp number is not the workspace's any more", "{row}");
    assert_eq!(other.count(), 2);
}

#[tokio::test]
async fn who_sends_and_with_which_secret_is_not_for_users_to_say_or_see() {
    let desk = Desk::new().await;
    for sql in [
        "select helper.set_whatsapp_sender()",
        "select * from helper.wa_sender",
        "select credential from helper.wa_numbers",
        "select credential_host from helper.wa_numbers",
    ] {
        assert_eq!(desk.ann.error(sql).await.code().code(), "42501", "{sql}");
    }
    for arguments in [
        "'EAAG-the-token-itself'",
        "base_url => 'http://graph.example.com'",
        "base_url => 'https://u:p@graph.example.com'",
        "base_url => 'https://graph.example.com/?a=b'",
        "base_url => 'https://graph.example.com/{x}'",
        "base_url => null",
        "options => '{\"other\": 1}'",
        "options => '{\"allow_private\": 1}'",
        "options => '{\"timeout_ms\": 300000}'",
        "options => null",
    ] {
        let error = desk.admin.error(&format!("select helper.set_whatsapp_sender({arguments})")).await;
        assert_eq!(error.code().code(), "22023", "{arguments}: {error}");
        assert!(!format!("{error:?}").contains("EAAG"), "{error:?}");
    }
    desk.sender(&desk.server.url(""), json!({})).await;
    // An administrator who is no superuser, and the application's service, refer to no variable and no file.
    desk.admin
        .run(
            "create role keeper login; alter database postgres owner to keeper; grant usage on schema helper to keeper; \
             grant execute on function helper.set_whatsapp_sender to keeper",
        )
        .await;
    let keeper = desk.cluster.connect("postgres", "keeper").await;
    let service = desk.cluster.session("postgres", "service_role", &json!({ "role": "service_role" })).await;
    let workspace: String = desk.ann.one("select id::text from helper.workspaces", &[]).await;
    for secret in ["env:PATH", "file:/etc/passwd"] {
        let error = keeper.error(&format!("select helper.set_whatsapp_sender('{secret}')")).await;
        assert_eq!(error.code().code(), "42501", "{error}");
        let number = format!(
            "select helper.set_whatsapp_number('{workspace}', '101', '+62812000101', credential => '{secret}')"
        );
        assert_eq!(service.error(&number).await.code().code(), "42501");
    }
    assert_eq!(service.error("select helper.set_whatsapp_sender()").await.code().code(), "42501");
    keeper.run("select helper.set_whatsapp_sender(enabled => false)").await;
}

#[tokio::test]
async fn a_reply_decides_and_what_may_have_arrived_is_not_sent_again() {
    let desk = Desk::new().await;
    desk.sender(&desk.server.url(""), json!({ "timeout_ms": 2000 })).await;
    let refusal = json!({ "error": { "code": 131026, "message": "Message undeliverable" } }).to_string();
    for (text, answer, status, error) in [
        (
            "400",
            Answer::status(400, &refusal),
            "failed",
            json!({ "http_status": 400, "code": 131026, "message": "Message undeliverable" }),
        ),
        ("401", Answer::status(401, "no JSON"), "failed", json!({ "http_status": 401 })),
        ("500", Answer::status(500, ""), "uncertain", json!({ "http_status": 500 })),
        ("closed", Answer::Close, "uncertain", Value::Null),
        ("no answer", Answer::Hang, "uncertain", Value::Null),
        ("elsewhere", Answer::with_headers(303, &[("location", "http://127.0.0.1:1/")], ""), "uncertain", Value::Null),
    ] {
        desk.server.next(answer);
        let id = send(&desk.ann, text).await;
        let row = desk.reaches(&id, status).await;
        assert!(if error.is_null() { row["error"]["message"].is_string() } else { row["error"] == error }, "{row}");
        assert_eq!((&row["wa_message_id"], &row["sent_at"], &row["attempts"]), (&Value::Null, &Value::Null, &json!(1)));
    }
    assert_eq!(desk.server.count(), 6, "each once");
    // Too many at once: nothing was taken, and it goes out later.
    desk.server.next(Answer::status(429, ""));
    let id = send(&desk.ann, "429").await;
    let row = desk.comes_back(&id).await;
    assert_eq!((&row["error"]["http_status"], desk.server.count()), (&json!(429), 7), "{row}");
    desk.hurry().await;
    desk.reaches(&id, "sent").await;
    assert_eq!(desk.server.count(), 8);
    // An id that another message has cannot be kept; that the message was taken can.
    let twice = json!({ "messages": [{ "id": format!("wamid.{id}") }] }).to_string();
    desk.server.next(Answer::status(200, &twice));
    let row = desk.reaches(&send(&desk.ann, "same id").await, "sent").await;
    assert_eq!(row["wa_message_id"], Value::Null);
}

#[tokio::test]
async fn what_never_went_out_is_tried_again_and_given_up_in_the_end() {
    let desk = Desk::new().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    desk.sender(&format!("http://{closed}"), json!({})).await;
    let id = send(&desk.ann, "Hi").await;
    let row = desk.comes_back(&id).await;
    assert_eq!((&row["attempts"], &row["error"]["sqlstate"]), (&json!(1), &json!("38000")), "{row}");
    let waits: bool = desk
        .admin
        .one(
            "select o.send_at > now() + interval '5 seconds' from helper.wa_outbox o where o.id = $1::text::uuid",
            &[&id],
        )
        .await;
    assert!(waits, "after a pause: {row}");
    // Nor without its token, or to where nothing may be sent.
    desk.admin
        .run(&format!(
            "select helper.set_whatsapp_sender(null, '{}', '{{\"allow_private\": true}}')",
            desk.server.url("")
        ))
        .await;
    desk.hurry().await;
    let message = async |text: &str| {
        until(text, async || (desk.row(&id).await["error"]["message"] == text).then_some(())).await;
    };
    message("the WhatsApp number has no credential").await;
    desk.admin.run(&format!("select helper.set_whatsapp_sender('{}', 'https://127.0.0.1:1')", desk.file("all"))).await;
    desk.hurry().await;
    until("a refusal", async || (desk.row(&id).await["error"]["sqlstate"] == "42501").then_some(())).await;
    desk.admin.run("update helper.wa_outbox set attempts = 9, send_at = now() where status = 'queued'").await;
    desk.hurry().await;
    let row = desk.reaches(&id, "failed").await;
    assert_eq!((&row["attempts"], desk.server.count()), (&json!(10), 0), "{row}");
    // Somebody else's message goes on.
    desk.sender(&desk.server.url(""), json!({})).await;
    desk.reaches(&send(&desk.bea, "Hi").await, "sent").await;
}

/// A message that the server has and does not answer.
async fn under_way(desk: &Desk) -> String {
    desk.sender(&desk.server.url(""), json!({ "timeout_ms": 240_000 })).await;
    desk.server.next(Answer::Hang);
    let id = send(&desk.ann, "Hi").await;
    until("the request", async || (desk.server.count() == 1).then_some(())).await;
    assert_eq!(desk.row(&id).await["status"], "sending");
    id
}

#[tokio::test]
async fn a_gateway_that_is_killed_sends_nothing_twice() {
    let desk = Desk::new().await;
    let id = under_way(&desk).await;
    signal(desk.cluster.pids().await.gateway, "KILL");
    let row = desk.reaches(&id, "uncertain").await;
    assert_eq!(row["error"]["sqlstate"], "55000", "{row}");
    desk.reaches(&send(&desk.bea, "Hi").await, "sent").await;
    assert_eq!(tokens(&desk.server.seen()).iter().filter(|(path, _)| *path == "/101/messages").count(), 1);
}

#[tokio::test]
async fn a_worker_that_is_killed_sends_nothing_twice_and_leaves_the_applications_sender_alone() {
    // What is not waited for is forgotten with the server, the claim too if it were among it.
    let mut desk = Desk::with("wal_writer_delay = 10s").await;
    let theirs = send(&desk.bea, "Theirs").await;
    desk.admin.run("select helper.claim_whatsapp()").await;
    let id = under_way(&desk).await;
    signal(desk.cluster.pids().await.worker, "KILL");
    // The whole server begins again.
    until("the end of the old server", async || desk.admin.batch_execute("select 1").await.is_err().then_some(()))
        .await;
    desk.admin = until("the server", async || desk.cluster.try_connect("postgres", "postgres").await.ok()).await;
    // At once, and not when five minutes are over.
    let row = desk.reaches(&id, "uncertain").await;
    assert_eq!(row["error"]["sqlstate"], "55000", "{row}");
    assert_eq!(desk.row(&theirs).await["status"], "sending", "whoever claimed it may be there");
    desk.bea = desk.cluster.user(BEA).await;
    desk.reaches(&send(&desk.bea, "Hi").await, "sent").await;
    let paths: Vec<String> = desk.server.seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(paths, ["/101/messages", "/102/messages"]);
}

#[tokio::test]
async fn a_message_for_later_goes_out_when_its_time_comes() {
    let desk = Desk::new().await;
    desk.sender(&desk.server.url(""), json!({})).await;
    let contact: String = desk.ann.one("select helper.contact_for('+6281255550001')::text", &[]).await;
    let at = "select helper.queue_whatsapp($1::text::uuid, 'Later', send_at => clock_timestamp() + interval '1500 ms')";
    let sent: Value = desk.ann.one(at, &[&contact]).await;
    let id = sent["message_id"].as_str().unwrap();
    desk.reaches(id, "sent").await;
    let late: f64 = desk
        .admin
        .one("select extract(epoch from o.claimed_at - o.send_at)::float8 from helper.wa_outbox o where o.id = $1::text::uuid", &[&id])
        .await;
    // Nobody wakes the worker for it, who looks every five seconds otherwise.
    assert!((0.0..2.0).contains(&late), "{late} s late");
    assert_eq!(desk.server.count(), 1);
}

#[tokio::test]
async fn a_broadcast_goes_out_a_few_at_a_time_and_keeps_nobody_waiting() {
    let desk = Desk::new().await;
    desk.sender(&desk.server.url(""), json!({})).await;
    let (open, gate) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
    let (script, held) = (open.clone(), gate.clone());
    desk.server.answer_by(move |seen| match script.load(Ordering::SeqCst) || seen.path != "/101/messages" {
        true => taken(seen),
        false => Answer::Held(held.clone(), Box::new(taken(seen))),
    });
    desk.ann
        .run("select helper.create_contact('+628125555' || to_char(n, 'FM0000')) from generate_series(1, 50) n; select helper.send_broadcast('Sale')")
        .await;
    until("a workspace's share", async || (desk.server.count() >= 16).then_some(())).await;
    desk.reaches(&send(&desk.bea, "Hi").await, "sent").await;
    desk.wake().await;
    assert_eq!(desk.server.count(), 17, "no more of one workspace at once");
    open.store(true, Ordering::SeqCst);
    gate.notify_waiters();
    until("all of them", async || {
        let left: i64 = desk.admin.one("select count(*) from helper.wa_outbox where status <> 'sent'", &[]).await;
        (left == 0).then_some(())
    })
    .await;
    let seen = desk.server.seen();
    let to: BTreeSet<String> = seen.iter().map(|seen| seen.json()["to"].as_str().unwrap().to_owned()).collect();
    assert_eq!((seen.len(), to.len()), (51, 50), "each once; Bea's contact has a number of Ann's");
}

#[tokio::test]
async fn without_a_sender_the_outbox_is_left_to_the_application() {
    let desk = Desk::new().await;
    let first = send(&desk.ann, "First").await;
    desk.wake().await;
    assert_eq!(desk.row(&first).await["status"], "queued");
    // Named, it sends also what was there already.
    desk.sender(&desk.server.url(""), json!({})).await;
    desk.reaches(&first, "sent").await;
    // Only here: a copy of the database would send what waits once more.
    let dumped: bool = desk
        .admin
        .one(
            "select 'helper.wa_sender'::regclass = any (e.extconfig) from pg_extension e where e.extname = 'helper_ai'",
            &[],
        )
        .await;
    assert!(!dumped);
    desk.admin.run("select helper.set_whatsapp_sender(enabled => false)").await;
    let second = send(&desk.ann, "Second").await;
    desk.wake().await;
    let row = desk.row(&second).await;
    assert_eq!((&row["status"], &row["attempts"], desk.server.count()), (&json!("queued"), &json!(0), 1));
    let claimed: String = desk.admin.one("select c.message_id::text from helper.claim_whatsapp() c", &[]).await;
    assert_eq!(claimed, second);
    let finished = "select helper.finish_whatsapp(o.workspace_id, o.id, 200, '{}') from helper.wa_outbox o where o.id = $1::text::uuid";
    assert_eq!(desk.admin.one::<String>(finished, &[&second]).await, "sent");
}
