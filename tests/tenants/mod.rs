//! Two tenants with six roles each, their documents, conversations, attached tables, providers, budgets, contacts, leads
//! and so on, and a way to try statements as anybody.

#![allow(dead_code)]

pub mod actions;

use crate::cluster::{Cluster, Session, until};
use serde_json::json;
use std::collections::BTreeMap;
use tokio_postgres::SimpleQueryMessage;

/// Roles in the order of every list of expectations below.
pub const ROLES: [&str; 6] = ["anon", "outsider", "viewer", "member", "admin", "owner"];

/// Place of a role in it.
pub fn rank(role: &str) -> usize {
    ROLES.iter().position(|known| *known == role).unwrap()
}

/// What a statement came to: the first column of the first row, or how many rows it changed; or its SQLSTATE.
pub type Outcome = Result<String, String>;

pub async fn attempt(session: &Session, sql: &str) -> Outcome {
    match session.simple_query(sql).await {
        Ok(messages) => {
            let mut outcome = String::from("nothing");
            for message in messages {
                match message {
                    SimpleQueryMessage::Row(row) => return Ok(row.get(0).unwrap_or("null").to_owned()),
                    SimpleQueryMessage::CommandComplete(rows) => outcome = rows.to_string(),
                    _ => {}
                }
            }
            Ok(outcome)
        }
        Err(error) => Err(error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}")).code().code().to_owned()),
    }
}

/// The same in a transaction that is rolled back.
pub async fn rehearse(session: &Session, sql: &str) -> Outcome {
    session.run("begin").await;
    let outcome = attempt(session, sql).await;
    session.run("rollback").await;
    outcome
}

/// A workspace with its people and what they have.
pub struct Tenant {
    pub workspace: String,
    /// By role; anon has none.
    pub people: BTreeMap<&'static str, String>,
    /// By who holds it.
    pub conversations: BTreeMap<&'static str, String>,
    /// By who added it.
    pub documents: BTreeMap<&'static str, String>,
    pub reply: String,
    /// The member's call of a tool, which waits for approval.
    pub call: String,
    /// Rows that packs' tools work on, by what they are.
    pub things: BTreeMap<&'static str, String>,
}

/// Two tenants on a server of their own.
pub struct World {
    pub cluster: Cluster,
    pub admin: Session,
    pub tenants: Vec<Tenant>,
}

const HANDBOOK: &str = "# Refunds\n\nRefunds are paid within 30 days to the card that was used. Ask support for a return label.\n\n# Shipping\n\nOrders ship on the next working day. Parcels to islands take two days longer.";

/// Fills the tables of the packs, by their own functions where there is one.
async fn furnish(
    cluster: &Cluster,
    admin: &Session,
    tenant: &str,
    workspace: &str,
    people: &BTreeMap<&'static str, String>,
) -> BTreeMap<&'static str, String> {
    let digit = if tenant == "a" { 1 } else { 2 };
    let phone = format!("+62812555500{digit}0");
    admin
        .run(&format!(
            "select helper.set_whatsapp_number('{workspace}', '10{digit}', '+62 812 0000 000{digit}', '90{digit}', 'ID'); \
             set timezone = 'UTC'"
        ))
        .await;
    let manager = cluster.user(&people["admin"]).await;
    manager
        .run(
            "select helper.create_template('greeting', 'UTILITY', 'id', 'Halo {{name}}'); \
             select helper.create_workspace_note('Wifi', 'The password is long.'); \
             select helper.invite_team_member('invited@example.com'); \
             select helper.set_workflow_limit(1000); \
             select helper.set_function('create_note', limits => '{\"user_per_day\": 1000}')",
        )
        .await;
    let told = json!({ "object": "whatsapp_business_account", "entry": [{ "id": format!("90{digit}"), "changes": [
        { "field": "message_template_status_update", "value":
            { "event": "APPROVED", "message_template_name": "greeting", "message_template_language": "id" } },
        { "field": "messages", "value": {
            "metadata": { "phone_number_id": format!("10{digit}") },
            "contacts": [{ "wa_id": phone.trim_start_matches('+'), "profile": { "name": "Ani" } }],
            "messages": [{ "from": phone.trim_start_matches('+'), "id": format!("wamid.in{digit}"), "timestamp": "1790000000",
                "type": "text", "text": { "body": "Is it open?" } }] } }] }] });
    let taken: serde_json::Value = admin.one("select helper.whatsapp_status($1)", &[&told]).await;
    assert_eq!(taken, json!({ "deliveries": 0, "messages": 1, "templates": 1 }));
    let member = cluster.user(&people["member"]).await;
    let mut things = BTreeMap::from([("phone", phone.clone())]);
    let mut keep = async |name: &'static str, sql: &str| {
        let id: String = member.one(sql, &[]).await;
        things.insert(name, id);
    };
    keep("contact", &format!("select helper.contact_for('{phone}')::text")).await;
    let contact: String = member.one(&format!("select helper.contact_for('{phone}')::text"), &[]).await;
    keep("other_contact", &format!("select helper.create_contact('+62812555500{digit}1', 'Budi') ->> 'id'")).await;
    let other: String = member.one("select c.id::text from helper.contacts c where c.name = 'Budi'", &[]).await;
    member
        .run(&format!("select helper.tag_contact('{contact}', '{{vip}}'); select helper.create_note('Mine alone')"))
        .await;
    keep("thread", "select t.id::text from helper.wa_threads t").await;
    keep("template", "select t.id::text from helper.wa_templates t").await;
    keep("message", &format!("select helper.queue_whatsapp('{contact}', 'Yes, until six.') ->> 'message_id'")).await;
    manager.run("select helper.send_broadcast('Hello all', '{vip}')").await;
    keep("lead", &format!("select helper.add_lead('Prospect', contact_id => '{other}') ->> 'id'")).await;
    let lead: String = member.one("select l.id::text from helper.leads l", &[]).await;
    keep("follow_up", &format!("select helper.create_follow_up('{lead}', 'Call', now() - interval '1 day') ->> 'id'"))
        .await;
    keep("product", "select helper.create_product('Coffee', 'From Gayo', 50000) ->> 'id'").await;
    keep("funnel", "select helper.create_funnel('Shop', '{see,buy}') ->> 'id'").await;
    keep("report", "select helper.create_report('Figures', 'daily') ->> 'report_id'").await;
    member
        .run(&format!(
            "select helper.log_activity('{lead}', 'note', 'Likes coffee'); \
             select helper.create_recommendation(p.id, '{contact}') from helper.products p; \
             select helper.record_funnel_event(f.id, 'see', 'visitor') from helper.funnels f"
        ))
        .await;
    // One for each, viewers too, who cannot make their own.
    for role in ["viewer", "member", "admin", "owner"] {
        let person = &people[role];
        admin
            .run(&format!(
                "insert into helper.reminders (workspace_id, user_id, title, due_at) values ('{workspace}', '{person}', 'Something', '2099-01-01'); \
                 insert into helper.notifications (workspace_id, user_id, title, created_by) values ('{workspace}', '{person}', 'Hello', '{}')",
                people["owner"]
            ))
            .await;
    }
    keep("reminder", "select r.id::text from helper.reminders r").await;
    manager
        .run(
            "select helper.create_workflow('broken', '{\"steps\": [{\"name\": \"divide\", \"type\": \"sql\", \"sql\": \"select 1 / 0\"}]}')",
        )
        .await;
    for (name, sql) in [
        (
            "workflow",
            "select helper.create_workflow('w', '{\"steps\": [{\"name\": \"hold\", \"type\": \"wait\", \"for\": \"1 day\"}]}')::text",
        ),
        ("broken_run", "select helper.run_workflow('broken')::text"),
        ("schedule", "select helper.schedule_workflow('w', '0 9 1 1 *')::text"),
        ("trigger", "select helper.on_event('w', 'seen')::text"),
        ("endpoint", "select helper.create_webhook('w', 'hook', 'meta') ->> 'endpoint'"),
    ] {
        things.insert(name, manager.one(sql, &[]).await);
    }
    let held: String = member.one("select helper.run_workflow('w', '{\"for\": \"members\"}')::text", &[]).await;
    for (run, status) in [(&held, "waiting"), (&things["broken_run"], "failed")] {
        until("a run's status", async || {
            let now: String = member.one("select helper.run_status($1::text::uuid) ->> 'status'", &[run]).await;
            (now == status).then_some(())
        })
        .await;
    }
    things.insert("held_run", held);
    things
}

/// An event of each tenant that stays, as there is nobody any more who delivers it.
async fn keep_events(admin: &Session, tenants: &[Tenant]) {
    admin.run("alter system set helper_ai.runners = 0").await;
    admin.run("select pg_reload_conf()").await;
    until("the runners to leave", async || {
        let told = admin.status().await;
        told["runner_pids"].as_array().is_some_and(|pids| pids.is_empty()).then_some(())
    })
    .await;
    for tenant in tenants {
        let workspace = &tenant.workspace;
        admin
            .run(&format!(
                "insert into helper.workflow_events (workspace_id, name, payload, depth) values ('{workspace}', 'unheard', '{{}}', 0)"
            ))
            .await;
    }
}

impl World {
    pub async fn new() -> World {
        let cluster = Cluster::start().await;
        let admin = cluster.admin().await;
        admin
            .run(
                "select helper.set_provider('shared', 'openai_compatible', 'https://provider.invalid/v1'); \
                 insert into helper.provider_keys (provider, key) values ('shared', 'sk-of-all'); \
                 select helper.set_model('shared', 'model'); \
                 select helper.set_default('image', 'shared', 'picture'); \
                 select helper.set_budget(1e9); \
                 select helper.set_budget(1e6, each_user => true); \
                 create function public.shout(what text) returns text language sql immutable as $$ select upper(what) $$; \
                 select helper.register_function('shout', 'shout', 'Shouts', '{\"requires_confirmation\": false, \"minimum_role\": \"viewer\"}'); \
                 select helper.register_function('shout_later', 'shout', 'Shouts', '{\"lapse\": \"30 days\"}')",
            )
            .await;
        let mut tenants = Vec::new();
        for tenant in ["a", "b"] {
            let person = |n: usize| format!("00000000-0000-4000-8000-{tenant}{n:011}");
            let people: BTreeMap<&str, String> =
                ROLES.iter().enumerate().skip(1).map(|(n, role)| (*role, person(n))).collect();
            let owner = cluster.user(&people["owner"]).await;
            let workspace: String =
                owner.one(&format!("select helper.create_workspace('Tenant {tenant}')::text"), &[]).await;
            for role in ["viewer", "member", "admin"] {
                owner.run(&format!("select helper.add_member('{workspace}', '{}', '{role}')", people[role])).await;
            }
            let mut documents = BTreeMap::new();
            for role in ["member", "admin"] {
                let session = cluster.user(&people[role]).await;
                let id: String = session
                    .one(
                        "select helper.add_document($1, $2, 'kb_article', $3)::text",
                        &[
                            &format!("Handbook of {tenant} by {role}"),
                            &format!("{HANDBOOK}\n\nSecret of tenant {tenant}, {role}."),
                            &role,
                        ],
                    )
                    .await;
                documents.insert(role, id);
            }
            owner.run("select helper.wait_indexed()").await;
            let mut conversations = BTreeMap::new();
            let mut reply = String::new();
            for role in ["viewer", "member", "admin", "owner"] {
                let session = cluster.user(&people[role]).await;
                session.run(&format!("insert into helper.profiles (full_name) values ('{role}')")).await;
                let row = session
                    .query_one("select (a).conversation_id::text, (a).message_id::text from helper.answer('How are refunds paid?') a", &[])
                    .await
                    .unwrap();
                conversations.insert(role, row.get(0));
                if role == "member" {
                    reply = row.get(1);
                }
            }
            let outsider = cluster.user(&people["outsider"]).await;
            outsider.run("insert into helper.profiles (full_name) values ('outsider')").await;
            admin
                .run(&format!(
                    "create table public.rows_{tenant} (id int primary key, name text, body text); \
                     insert into public.rows_{tenant} values (1, 'Row', 'A row of tenant {tenant}.'); \
                     set request.jwt.claims = '{}'; \
                     select helper.attach_table('public.rows_{tenant}', 'name', 'body', workspace => '{workspace}'); \
                     reset request.jwt.claims",
                    json!({ "sub": people["owner"] })
                ))
                .await;
            owner.run("select helper.wait_indexed()").await;
            owner
                .run(&format!(
                    "select helper.set_provider('own', 'openai_compatible', 'https://provider-{tenant}.invalid/v1', workspace => '{workspace}'); \
                     insert into helper.provider_keys (workspace, provider, key) values ('{workspace}', 'own', 'sk-of-{tenant}'); \
                     select helper.set_model('own', 'model-{tenant}', workspace => '{workspace}'); \
                     select helper.set_default('image', 'own', 'picture', '{workspace}'); \
                     select helper.set_budget(1000000, workspace => '{workspace}'); \
                     select helper.set_budget(1000, user_id => '{}', workspace => '{workspace}'); \
                     select helper.set_mode('brief', 'Be brief.', workspace => '{workspace}')",
                    people["member"]
                ))
                .await;
            admin
                .run(&format!(
                    "insert into helper.knowledge_models (workspace_id, model, status, started_at) values ('{workspace}', 'other', 'stopped', now())"
                ))
                .await;
            admin.run(&format!("select helper.set_budget(1e6, user_id => '{}')", people["admin"])).await;
            owner.run("select helper.set_function('shout', true, '{\"workspace_per_day\": 1000}')").await;
            for role in ["viewer", "member", "admin", "owner"] {
                cluster.user(&people[role]).await.run("select helper.call('shout', '{\"what\": \"hello\"}')").await;
            }
            let member = cluster.user(&people["member"]).await;
            let call = member.one("select helper.call('shout_later', '{\"what\": \"hello\"}')::text", &[]).await;
            for (role, person) in people.iter().filter(|(role, _)| **role != "outsider") {
                admin
                    .run(&format!(
                        "insert into helper.usage_records (workspace_id, id, user_id, purpose, provider, model, status) \
                         values ('{workspace}', helper.uuid_v7(), '{person}', 'ask', 'own', 'model-{tenant}', 'succeeded'); \
                         select helper._set_summary('{workspace}', '{0}', 'Summary of {role}.', m.id, 'local') \
                         from helper.messages m where m.conversation_id = '{0}'; \
                         insert into helper.message_attachments (workspace_id, message_id, ordinal, name, mime_type, content) \
                         select m.workspace_id, m.id, 1, 'Picture of {role}', 'image/png', 'x' \
                         from helper.messages m where m.conversation_id = '{0}' and m.role = 'user' limit 1",
                        conversations[role]
                    ))
                    .await;
            }
            let things = furnish(&cluster, &admin, tenant, &workspace, &people).await;
            tenants.push(Tenant { workspace, people, conversations, documents, reply, call, things });
        }
        keep_events(&admin, &tenants).await;
        World { cluster, admin, tenants }
    }

    /// A real connection as somebody.
    pub async fn be(&self, tenant: usize, role: &str) -> Session {
        match self.tenants[tenant].people.get(role) {
            Some(sub) => self.cluster.user(sub).await,
            None => self.cluster.session("postgres", "anon", &json!({ "role": "anon" })).await,
        }
    }

    /// Fills in a tenant's and the other one's ids.
    pub fn fill(&self, sql: &str, tenant: usize, role: &str) -> String {
        let (own, other) = (&self.tenants[tenant], &self.tenants[1 - tenant]);
        let mut sql = sql.to_owned();
        for (name, value) in &other.things {
            sql = sql.replace(&format!("$foreign_{name}"), value);
        }
        for (name, value) in &own.things {
            sql = sql.replace(&format!("${name}"), value);
        }
        let none = String::from("00000000-0000-7000-8000-000000000000");
        let colleague = if role == "member" { "admin" } else { "member" };
        for (name, value) in [
            ("$foreign_document", &other.documents["member"]),
            ("$foreign_member_document", &other.documents["member"]),
            ("$foreign_owner", &other.people["owner"]),
            ("$foreign_viewer", &other.people["viewer"]),
            ("$foreign_conversation", &other.conversations["member"]),
            ("$foreign_person", &other.people["member"]),
            ("$foreign_reply", &other.reply),
            ("$foreign_model", &format!("model-{}", ["b", "a"][tenant])),
            ("$foreign_call", &other.call),
            ("$foreign", &other.workspace),
            ("$colleague_conversation", &own.conversations[colleague]),
            ("$conversation", own.conversations.get(role).unwrap_or(&own.conversations["member"])),
            ("$member_document", &own.documents["member"]),
            ("$admin_document", &own.documents["admin"]),
            ("$owner", &own.people["owner"]),
            ("$viewer", &own.people["viewer"]),
            ("$outsider", &own.people["outsider"]),
            ("$reply", &own.reply),
            ("$call", &own.call),
            ("$ws", &own.workspace),
            ("$me", own.people.get(role).unwrap_or(&none)),
        ] {
            sql = sql.replace(name, value);
        }
        sql
    }

    /// Everything in a table, as a superuser sees it.
    pub async fn fingerprint(&self, table: &str) -> String {
        self.admin
            .one(&format!("select count(*) || coalesce(md5(string_agg(t::text, '|' order by t::text)), '') from helper.{table} t"), &[])
            .await
    }

    pub async fn fingerprints(&self) -> BTreeMap<String, String> {
        let mut prints = BTreeMap::new();
        for (table, kind) in self.tables().await {
            // The worker folds its counts and packs vectors when it likes; the view changes with the clock.
            if kind != "v" && !["knowledge_stats", "knowledge_blocks", "knowledge_loose"].contains(&table.as_str()) {
                prints.insert(table.clone(), self.fingerprint(&table).await);
            }
        }
        prints
    }

    pub async fn tables(&self) -> Vec<(String, String)> {
        self.admin
            .query(
                "select c.relname::text, c.relkind::text from pg_class c \
                 where c.relnamespace = 'helper'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f') order by 1",
                &[],
            )
            .await
            .unwrap()
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect()
    }

    pub async fn columns(&self, table: &str) -> Vec<String> {
        self.admin
            .query(
                "select a.attname::text from pg_attribute a where a.attrelid = ('helper.' || $1)::text::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum",
                &[&table],
            )
            .await
            .unwrap()
            .iter()
            .map(|row| row.get(0))
            .collect()
    }
}
