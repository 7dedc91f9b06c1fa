//! What tests of workflows do over and over: make one, run it, wait for what comes of it.

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::panic)]

use crate::cluster::{Cluster, Session, until};
use crate::place::{ANN, BEA};
use serde_json::{Value, json};

/// A server without a language model: its superuser, Ann with her workspace, and Bea.
pub struct Shop {
    pub cluster: Cluster,
    pub admin: Session,
    pub ann: Session,
    pub bea: Session,
    pub workspace: String,
}

/// With these tables and tools, and Bea in Ann's workspace.
pub async fn shop(tables: &str, bea_is: &str) -> Shop {
    let cluster = Cluster::start().await;
    let admin = cluster.admin().await;
    admin.run(tables).await;
    let ann = cluster.user(ANN).await;
    let workspace: String = ann.one("select helper.create_workspace('Ann')::text", &[]).await;
    ann.run(&format!("select helper.add_member('{workspace}', '{BEA}', '{bea_is}')")).await;
    let bea = cluster.user(BEA).await;
    Shop { cluster, admin, ann, bea, workspace }
}

pub async fn create(session: &Session, name: &str, definition: Value) {
    session.one::<String>("select helper.create_workflow($1, $2)::text", &[&name, &definition]).await;
}

pub async fn run(session: &Session, name: &str, input: Value) -> String {
    session.one("select helper.run_workflow($1, $2)::text", &[&name, &input]).await
}

pub async fn status(session: &Session, run: &str) -> Value {
    session.one("select helper.run_status($1::text::uuid)", &[&run]).await
}

/// A run in one of some states.
pub async fn reached(session: &Session, run: &str, states: &[&str]) -> Value {
    let mut last = Value::Null;
    until(&format!("a run to be {states:?}"), async || {
        let told = status(session, run).await;
        let is_reached = states.contains(&told["status"].as_str().unwrap());
        if !is_reached && told["status"] != last {
            eprintln!("a run is {}: {}", told["status"], told["error"]);
            last = told["status"].clone();
        }
        is_reached.then_some(told)
    })
    .await
}

pub async fn ended(session: &Session, run: &str) -> Value {
    reached(session, run, &["succeeded", "failed", "cancelled", "timed_out"]).await
}

pub fn step<'a>(told: &'a Value, name: &str) -> &'a Value {
    told["steps"].as_array().unwrap().iter().find(|step| step["step"] == name && step["item"].is_null()).unwrap()
}

pub async fn lines(admin: &Session, what: &str) -> i64 {
    admin.one("select count(*) from public.ledger where what = $1", &[&what]).await
}

pub async fn waiting_call(session: &Session) -> String {
    until("a call to await its approval", async || {
        let sql = "select id::text from helper.function_calls where status = 'awaiting_confirmation' order by id desc limit 1";
        session.query_opt(sql, &[]).await.unwrap().map(|row| row.get(0))
    })
    .await
}

/// Has every schedule be due, as if the server had been down for a month.
pub async fn let_a_month_pass(root: &Session) {
    root.run(
        "update helper.workflow_schedules set done_through = now() - interval '31 days', look_at = now(); \
         select helper._fire_schedules(now())",
    )
    .await;
}

/// A contact writes.
pub async fn receive(root: &Session, workspace: &str, texts: &[&str]) {
    root.run(&format!("select helper.set_whatsapp_number('{workspace}', '101', '+62 812 0000 0001', '901', 'ID')"))
        .await;
    for (n, text) in texts.iter().enumerate() {
        let phone = format!("62812555500{n}0");
        let told = json!({ "object": "whatsapp_business_account", "entry": [{ "id": "901", "changes": [{ "field": "messages",
            "value": {
                "metadata": { "phone_number_id": "101" },
                "contacts": [{ "wa_id": phone, "profile": { "name": "Ani" } }],
                "messages": [{ "from": phone, "id": format!("wamid.in{n}"), "timestamp": "1790000000", "type": "text",
                    "text": { "body": text } }] } }] }] });
        root.one::<Value>("select helper.whatsapp_status($1)", &[&told]).await;
    }
}
