//! A cluster with a provider that embeds, people with workspaces, and looks at what came of their documents.

#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use crate::cluster::{Cluster, Session, signal, until};
use crate::provider::Server;

pub const ANN: &str = "00000000-0000-4000-8000-00000000000a";
pub const BEA: &str = "00000000-0000-4000-8000-00000000000b";
pub const CAT: &str = "00000000-0000-4000-8000-00000000000c";

/// A cluster with a provider that embeds, and a workspace of Ann's in which Bea is a member.
pub struct Place {
    pub cluster: Cluster,
    pub admin: Session,
    pub ann: Session,
    pub workspace: String,
    pub server: Server,
}

impl Place {
    pub async fn new() -> Place {
        let cluster = Cluster::start().await;
        let server = Server::start().await;
        let admin = cluster.admin().await;
        let sql = format!(
            "select helper.set_provider('open', 'openai', '{}', options => '{{\"allow_private\": true, \"max_retries\": 0}}')",
            server.url("/v1")
        );
        admin.run(&sql).await;
        for model in ["small", "large"] {
            admin
                .run(&format!("select helper.set_model('open', '{model}', 'embedding', '{{\"dimensions\": 32, \"shorten\": true, \"input_price\": 1}}')"))
                .await;
        }
        admin.run("insert into helper.provider_keys (provider, key) values ('open', 'sk-secret')").await;
        let ann = cluster.user(ANN).await;
        let workspace: String = ann.one("select helper.create_workspace('Ann')::text", &[]).await;
        ann.run(&format!("select helper.add_member('{workspace}', '{BEA}', 'member')")).await;
        Place { cluster, admin, ann, workspace, server }
    }

    pub async fn by_default(&self, model: &str) {
        self.admin.run(&format!("select helper.set_default('embedding', 'open', '{model}')")).await;
    }

    pub async fn add(&self, from: i32, count: i32) {
        let sql = "select count(helper.add_document('Document ' || n, 'The matter of number ' || n || ' is settled. It was long.')) \
            from generate_series($1::int, $1 + $2::int - 1) n";
        assert_eq!(self.ann.one::<i64>(sql, &[&from, &count]).await, i64::from(count));
    }

    pub async fn indexed(&self) -> i64 {
        self.ann.one("select helper.wait_indexed(timeout => '1 min')", &[]).await
    }

    /// How many chunks have embeddings of each model.
    pub async fn vectors(&self) -> Vec<(String, i64)> {
        let sql = "select v.model, count(*) from helper.knowledge_vectors v group by v.model order by v.model";
        let rows = self.admin.query(sql, &[]).await.unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    pub async fn current(&self, model: &str) {
        let sql = "select count(*) from helper.knowledge_models m where m.status = 'current' and m.model = $1";
        until("the model in use", async || (self.ann.one::<i64>(sql, &[&model]).await == 1).then_some(())).await;
    }

    /// Waits until nothing but one model's embeddings are left.
    pub async fn only(&self, model: &str, chunks: i64) {
        let wanted = vec![(model.to_owned(), chunks)];
        until("the old embeddings to be gone", async || (self.vectors().await == wanted).then_some(())).await;
    }

    /// The document that is nearest to its own text.
    pub async fn nearest(&self, n: i32) -> String {
        let text = format!("Document {n}\nThe matter of number {n} is settled. It was long.");
        self.ann.one("select s.title from helper.search($1, k => 1, method => 'vector') s", &[&text]).await
    }

    /// Stops the worker while it waits, so that what is asked for next stays as it is until [`Place::go_on`].
    pub async fn stop_worker(&self) -> i32 {
        let worker = self.cluster.pids().await.worker;
        let waits = "select a.wait_event_type = 'Extension' from pg_stat_activity a where a.pid = $1";
        until("an idle worker", async || self.admin.one::<Option<bool>>(waits, &[&worker]).await?.then_some(())).await;
        signal(worker, "STOP");
        worker
    }

    pub fn go_on(&self, worker: i32) {
        signal(worker, "CONT");
    }

    /// Chunks of a document that nobody wrote, as if embedded by a model.
    pub async fn make_chunks(&self, workspace: &str, model: &str, count: i32) {
        let sql = "with s as (\
               insert into helper.knowledge_sources (workspace_id, source_type, title, content, status, input_hash, chunk_count, indexed_at) \
               values ($1::text::uuid, 'kb_article', 'Made', 'x', 'ready', '\\x00', $3, now()) returning id), \
             c as (\
               insert into helper.knowledge_chunks \
                 (workspace_id, source_id, ordinal, heading, content, token_count, start_offset, end_offset, content_hash) \
               select $1::text::uuid, s.id, n, '', 'x', 1, 0, 1, '\\x00' from s, generate_series(1, $3) n returning id, source_id) \
             insert into helper.knowledge_vectors (workspace_id, chunk_id, source_id, model, embedding, sentences) \
             select $1::text::uuid, c.id, c.source_id, $2, array_fill(0.5::real, array[32])::halfvec, '' from c";
        self.admin.execute(sql, &[&workspace, &model, &count]).await.unwrap();
    }

    /// The state of the document with a title, and the SQLSTATE, message and hint of its error.
    pub async fn document(&self, title: &str) -> (String, [Option<String>; 3]) {
        let sql = "select s.status, s.error ->> 'sqlstate', s.error ->> 'message', s.error ->> 'hint' \
             from helper.knowledge_sources s where s.title = $1";
        let row = self.admin.query_one(sql, &[&title]).await.unwrap();
        (row.get(0), [row.get(1), row.get(2), row.get(3)])
    }

    /// Waits until the document with that title is failed, and gives its error.
    pub async fn failed(&self, title: &str) -> [String; 3] {
        until("the document to fail", async || {
            let (status, error) = self.document(title).await;
            (status == "failed").then(|| error.map(Option::unwrap_or_default))
        })
        .await
    }
}

/// A person's own workspace.
pub async fn workspace_of(session: &Session, name: &str) -> String {
    session.one("select helper.create_workspace($1)::text", &[&name]).await
}
