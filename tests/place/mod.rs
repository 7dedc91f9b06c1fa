//! A cluster with providers of every kind at the same server of our own, and somebody who asks them.

#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use crate::cluster::{Cluster, Session, until};
use crate::provider::Server;
use serde_json::Value;

pub const ANN: &str = "00000000-0000-4000-8000-00000000000a";
pub const BEA: &str = "00000000-0000-4000-8000-00000000000b";

const HANDBOOK: &str = "# Refunds\n\nRefunds are paid within 30 days to the card that was used. Ask support for a return label.\n\n# Shipping\n\nOrders ship on the next working day.";

/// A cluster with a workspace of Ann's, its handbook, and a provider of each kind at the same server.
pub struct Place {
    pub cluster: Cluster,
    pub admin: Session,
    pub ann: Session,
    pub workspace: String,
    pub server: Server,
}

impl Place {
    pub async fn new() -> Place {
        Place::with("").await
    }

    /// The same with more lines of `postgresql.conf`.
    pub async fn with(settings: &str) -> Place {
        let cluster = Cluster::with(settings).await;
        let server = Server::start().await;
        let admin = cluster.admin().await;
        for (name, kind, path) in [
            ("open", "openai", "/v1"),
            ("claude", "anthropic", ""),
            ("gem", "gemini", ""),
            ("llama", "ollama", ""),
            ("other", "openai_compatible", "/v1"),
        ] {
            let sql = format!(
                "select helper.set_provider('{name}', '{kind}', '{}', options => '{{\"allow_private\": true, \"max_retries\": 0}}')",
                server.url(path)
            );
            admin.run(&sql).await;
            admin.run(&format!("select helper.set_model('{name}', 'm', options => '{{\"context_window\": 8000, \"output_limit\": 1000, \"input_price\": 1, \"output_price\": 2}}')")).await;
            admin
                .run(&format!("insert into helper.provider_keys (provider, key) values ('{name}', 'sk-secret-{name}')"))
                .await;
        }
        admin.run("select helper.set_default('chat', 'open', 'm')").await;
        let ann = cluster.user(ANN).await;
        let workspace: String = ann.one("select helper.create_workspace('Ann')::text", &[]).await;
        ann.one::<i64>(&format!("select count(helper.add_document('Handbook', $h${HANDBOOK}$h$))"), &[]).await;
        ann.one::<i64>("select helper.wait_indexed()", &[]).await;
        Place { cluster, admin, ann, workspace, server }
    }

    /// Records of calls, as soon as there are so many.
    pub async fn records(&self, count: usize) -> Vec<Value> {
        until("records of calls", async || {
            let rows = self
                .admin
                .query("select to_jsonb(u) from helper.usage_records u order by u.created_at, u.id", &[])
                .await
                .unwrap();
            (rows.len() >= count).then(|| rows.iter().map(|row| row.get::<_, Value>(0)).collect())
        })
        .await
    }
}
