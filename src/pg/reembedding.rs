//! A workspace's chunks embedded by another model, slice by slice, beside the embeddings in use. Whatever ends it in the
//! middle, it goes on with the chunks that still lack one.

use crate::core::chat::Purpose;
use crate::core::error::{Error, Result};
use crate::core::sentence;
use crate::core::sentences;
use crate::core::wire::Request;
use crate::pg::embedder::{Asking, Call, Embedder};
use crate::pg::indexing::{self, Again, embedded_text};
use crate::pg::jobs::Job;
use crate::pg::report::Reported;
use crate::pg::{embedding, owner, spi};
use pgrx::JsonB;
use pgrx::prelude::*;

/// Chunks in one slice: some seconds' work of the local model, or a few requests to a provider.
const LOCAL_SLICE: i64 = 32;
const REMOTE_SLICE: i64 = 4096;

/// What is to be done next.
pub enum Next {
    /// Ask the gateway this.
    Ask(Request),
    /// Others wait: it goes on in its turn.
    Wait,
    /// The model is in use now, or not wanted any more.
    Done,
}

struct Chunk {
    id: pgrx::Uuid,
    source: pgrx::Uuid,
    /// First and one past the last character of each sentence, where they are embedded too.
    sentences: Vec<(u32, u32)>,
}

/// A workspace on its way to another model.
pub struct Reembedding {
    pub job: Job,
    /// A slice on its way to the embedder, and what came of it.
    pub call: Call,
    user: Option<pgrx::Uuid>,
    /// The last chunk that was looked at; earlier ones that lack their embedding are found in the next round.
    after: pgrx::Uuid,
    chunks: Vec<Chunk>,
}

fn first() -> pgrx::Uuid {
    pgrx::Uuid::from_bytes([0; 16])
}

impl Reembedding {
    /// Loads what is to be done, as the owner; `None` where it is not wanted any more.
    pub fn load(job: Job) -> Result<Option<Reembedding>> {
        let found = spi::change(
            "select m.created_by, (j.payload ->> 'after')::uuid from helper.knowledge_models m \
             join helper.jobs j on j.workspace_id = m.workspace_id and j.id = $2 \
             where m.workspace_id = $1 and m.status = 'building'",
            &[job.workspace.into(), job.id.into()],
            |row| Ok((row.opt::<pgrx::Uuid>(1)?, row.opt::<pgrx::Uuid>(2)?)),
        )?
        .pop();
        let Some((user, after)) = found else { return Ok(None) };
        Ok(Embedder::building(job.workspace)?.map(|embedder| Reembedding {
            job,
            call: Call::new(embedder),
            user,
            after: after.unwrap_or_else(first),
            chunks: Vec::new(),
        }))
    }

    /// The next slice, or the switch where there is none left; as the owner, inside a transaction.
    pub fn next(&mut self) -> Result<Next> {
        let wanted = Embedder::building(self.job.workspace)?;
        if wanted.is_none_or(|wanted| wanted.model != self.call.embedder.model) {
            return Ok(Next::Done);
        }
        loop {
            let inputs = self.slice()?;
            if !inputs.is_empty() {
                let asking = Asking {
                    workspace: self.job.workspace,
                    user: self.user,
                    why: "reembed",
                    purpose: Purpose::Document,
                    interactive: false,
                    patient: true,
                };
                return Ok(Next::Ask(self.call.ask(&asking, inputs)?));
            }
            if self.after == first() {
                let switched = spi::change(
                    "select helper._switch_model($1, $2)",
                    &[self.job.workspace.into(), self.call.embedder.model.as_str().into()],
                    |row| row.get::<bool>(1),
                )?;
                if switched == [true] {
                    return Ok(Next::Done);
                }
            }
            self.after = first();
        }
    }

    /// The texts of the next chunks that lack an embedding.
    fn slice(&mut self) -> Result<Vec<String>> {
        let remote = self.call.embedder.is_remote();
        let mut texts = Vec::new();
        let mut chunks = Vec::new();
        spi::change(
            "select c.id, c.source_id, s.title, c.heading, c.content, c.start_offset \
             from helper.knowledge_chunks c \
             join helper.knowledge_sources s on s.workspace_id = c.workspace_id and s.id = c.source_id \
             where c.workspace_id = $1 and c.id > $2 and not exists (\
               select from helper.knowledge_vectors v where v.workspace_id = $1 and v.model = $3 and v.chunk_id = c.id) \
             order by c.id limit $4",
            &[
                self.job.workspace.into(),
                self.after.into(),
                self.call.embedder.model.as_str().into(),
                (if remote { REMOTE_SLICE } else { LOCAL_SLICE }).into(),
            ],
            |row| {
                let (title, heading, content) = (row.get::<String>(3)?, row.get::<String>(4)?, row.get::<String>(5)?);
                let mut chunk = Chunk { id: row.get(1)?, source: row.get(2)?, sentences: Vec::new() };
                texts.push(embedded_text(&title, &heading, &content));
                if !remote {
                    for (range, place) in sentence::placed(&content, row.get::<i32>(6)? as u32) {
                        texts.push(embedded_text(&title, &heading, &content[range]));
                        chunk.sentences.push(place);
                    }
                }
                chunks.push(chunk);
                Ok(())
            },
        )?;
        if let Some(last) = chunks.last() {
            self.after = last.id;
        }
        self.chunks = chunks;
        self.call.clear();
        Ok(texts)
    }

    /// Stores a slice, as the owner. What of it is gone since is left out, and all of it where it was given up.
    pub fn store(&mut self) -> Result<()> {
        let texts: usize = self.chunks.iter().map(|chunk| 1 + chunk.sentences.len()).sum();
        let mut embeddings = self.call.embeddings();
        if embeddings.len() != texts {
            return Err(Error::bug(format!("{} embeddings for {texts} texts", embeddings.len())));
        }
        let (mut whole, mut packed) = (Vec::with_capacity(self.chunks.len()), Vec::with_capacity(self.chunks.len()));
        for chunk in &self.chunks {
            let mut next = || embeddings.next().unwrap_or_default();
            whole.push(next().iter().flat_map(|number| number.to_ne_bytes()).collect::<Vec<u8>>());
            let mut sentences = Vec::new();
            for (start, end) in &chunk.sentences {
                sentences::push(&mut sentences, *start, *end, next());
            }
            packed.push(sentences);
        }
        let ids: Vec<pgrx::Uuid> = self.chunks.iter().map(|chunk| chunk.id).collect();
        let sources: Vec<pgrx::Uuid> = self.chunks.iter().map(|chunk| chunk.source).collect();
        spi::run(
            "with stored as (\
               insert into helper.knowledge_vectors (workspace_id, chunk_id, source_id, model, embedding, sentences) \
               select $1, u.id, u.source_id, $2, helper._halfvec_of(u.embedding), u.sentences \
               from unnest($3, $4, $5, $6) u (id, source_id, embedding, sentences) \
               join helper.knowledge_chunks c on c.workspace_id = $1 and c.id = u.id \
               join helper.knowledge_models k on k.workspace_id = $1 and k.model = $2 and k.status <> 'old' \
               on conflict do nothing returning 1) \
             update helper.knowledge_models m \
             set done = m.done + (select count(*) from stored), error = null, dimensions = coalesce(m.dimensions, $7) \
             where m.workspace_id = $1 and m.model = $2",
            &[
                self.job.workspace.into(),
                self.call.embedder.model.as_str().into(),
                ids.into(),
                sources.into(),
                whole.into(),
                packed.into(),
                self.call.dimensions().into(),
            ],
        )?;
        self.chunks.clear();
        self.call.clear();
        // What comes now is tried anew, however long the way was; and whoever goes on with the job begins there.
        self.job.attempts = 1;
        spi::run(
            "update helper.jobs j set attempts = 1, payload = jsonb_build_object('after', $3) \
             where j.workspace_id = $1 and j.id = $2",
            &[self.job.workspace.into(), self.job.id.into(), self.after.into()],
        )
    }

    /// Whether another workspace waits to be embedded anew; as the owner.
    pub fn keeps_others_waiting(&self) -> Result<bool> {
        let others = spi::change(
            "select true from helper.job_queue q \
             where q.kind = 'reembed' and q.workspace_id <> $1 and q.run_at <= (select clock_timestamp()) limit 1",
            &[self.job.workspace.into()],
            |row| row.get::<bool>(1),
        )?;
        Ok(!others.is_empty())
    }
}

/// Notes what went wrong with a workspace's model, as the owner; it is given up where there is no other try.
pub fn failed(job: &Job, error: &Error, again: Option<Again>) -> Result<()> {
    spi::run(
        "update helper.knowledge_models m set error = $2, status = case when $3 then m.status else 'failed' end \
         where m.workspace_id = $1 and m.status = 'building'",
        &[job.workspace.into(), JsonB(indexing::facts(error)).into(), again.is_some().into()],
    )
}

/// `helper._choose_embedder`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
#[allow(clippy::type_complexity)]
fn choose_embedder(
    workspace: pgrx::Uuid,
    model: Option<&str>,
) -> Reported<
    TableIterator<
        'static,
        (name!(name, String), name!(provider_id, Option<pgrx::Uuid>), name!(provider_model, Option<String>)),
    >,
> {
    let mut embedder = owner::as_owner(|| Embedder::choose(workspace, model))?;
    if !embedder.is_remote() {
        embedder.is_named(&embedding::model_name()?)?;
    }
    let (id, name) = embedder.provider().map(|(id, name)| (pgrx::Uuid::from_bytes(id), name.to_owned())).unzip();
    Ok(TableIterator::once((embedder.model, id, name)))
}
