//! Two tenants with six roles each, their documents, conversations, attached tables, providers and budgets, and a way to try statements as
//! anybody.

#![allow(dead_code)]

use crate::cluster::{Cluster, Session};
use serde_json::json;
use std::collections::BTreeMap;
use tokio_postgres::SimpleQueryMessage;

/// Roles in the order of every list of expectations below.
pub const ROLES: [&str; 6] = ["anon", "outsider", "viewer", "member", "admin", "owner"];

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
}

/// Two tenants on a server of their own.
pub struct World {
    pub cluster: Cluster,
    pub admin: Session,
    pub tenants: Vec<Tenant>,
}

const HANDBOOK: &str = "# Refunds\n\nRefunds are paid within 30 days to the card that was used. Ask support for a return label.\n\n# Shipping\n\nOrders ship on the next working day. Parcels to islands take two days longer.";

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
                         from helper.messages m where m.conversation_id = '{0}'",
                        conversations[role]
                    ))
                    .await;
            }
            tenants.push(Tenant { workspace, people, conversations, documents, reply, call });
        }
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
        let none = String::from("00000000-0000-7000-8000-000000000000");
        let colleague = if role == "member" { "admin" } else { "member" };
        for (name, value) in [
            ("$foreign_document", &other.documents["member"]),
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
