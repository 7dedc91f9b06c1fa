//! Indexing documents, step by step, each step a short transaction: load them, have them read and cut, have what is new
//! embedded, then store all of it at once. Between the steps only the gateway works. Short documents go together.

mod storing;

use crate::core::chat::Purpose;
use crate::core::error::{Error, Kind, Result};
use crate::core::wire::{Chunk, Prepare, Prepared, Request};
use crate::pg::embedder::{Asking, Call, Embedder};
use crate::pg::jobs::Job;
use crate::pg::{settings, spi};
use pgrx::JsonB;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};

/// Texts in one request to the local model, so that a long document gives way to others between two of them.
const SLICE: usize = 64;

/// Texts in one request to a provider, which the gateway cuts into several and sends at once.
const REMOTE_SLICE: usize = 8192;

/// Documents that go together at most.
pub const TOGETHER: usize = 512;

/// Bytes of documents that go together: a few seconds' work of the local model, or a few requests to a provider.
const LOCAL_BYTES: i64 = 16 * 1024;
const REMOTE_BYTES: i64 = 512 * 1024;

/// A document that was tried this often goes alone, and whatever is wrong with it is its own.
const ALONE: i32 = 3;

/// A document is given up after a provider refused to embed it, or was too slow, this often, which takes some minutes.
const MOST_REFUSALS: i32 = 8;

/// Longest title, in characters.
const LONGEST_TITLE: usize = 1000;

/// What is to be done next with documents.
pub enum Next {
    /// Ask the gateway this.
    Ask(Request),
    /// All is known; store it.
    Store,
    /// None of them is left.
    Drop,
}

/// A document on its way into the index.
struct Document {
    job: Job,
    title: String,
    is_file: bool,
    input_hash: Vec<u8>,
    /// It was indexed before.
    is_known: bool,
    prepared: Prepared,
    /// For each chunk its hash.
    hashes: Vec<Vec<u8>>,
    /// Chunks by hash that are stored already, with their embedding: id and first character.
    known: HashMap<Vec<u8>, (pgrx::Uuid, i32)>,
}

/// A text to embed.
struct Text {
    document: usize,
    chunk: usize,
    /// The sentence in it, or `None` for the chunk itself.
    sentence: Option<usize>,
}

/// Documents of one workspace on their way into the index.
pub struct Indexing {
    pub workspace: pgrx::Uuid,
    /// Their texts on the way to the embedder, and what came of it.
    pub call: Call,
    user: Option<pgrx::Uuid>,
    documents: Vec<Document>,
    texts: Vec<Text>,
}

/// What became of jobs when they were loaded.
#[derive(Default)]
pub struct Loaded {
    /// Each with its first question.
    pub begun: Vec<(Indexing, Request)>,
    /// The document is gone, or this version of it.
    pub gone: Vec<Job>,
    /// There was no room for it.
    pub left: Vec<Job>,
}

impl Indexing {
    /// Loads documents of one workspace, to be indexed as at most `room` bundles.
    pub fn load(workspace: pgrx::Uuid, jobs: Vec<Job>, room: usize) -> Result<Loaded> {
        let embedder = Embedder::current(workspace)?;
        let most = if embedder.is_remote() { REMOTE_BYTES } else { LOCAL_BYTES };
        let ids: Vec<pgrx::Uuid> = jobs.iter().map(|job| job.key).collect();
        let sizes: HashMap<pgrx::Uuid, (i64, Option<pgrx::Uuid>)> = spi::change(
            "select s.id, i.size, s.created_by from pg_catalog.unnest($2) u (id) \
             cross join lateral ( \
               select s.id, s.created_by, s.status from helper.knowledge_sources s where s.workspace_id = $1 and s.id = u.id limit 1) s \
             cross join lateral ( \
               select pg_catalog.octet_length(i.content)::bigint as size from helper.knowledge_inputs i \
               where i.workspace_id = $1 and i.source_id = u.id limit 1) i \
             where s.status = 'pending'",
            &[workspace.into(), ids.into()],
            |row| Ok((row.get(1)?, (row.get(2)?, row.opt(3)?))),
        )?
        .into_iter()
        .collect();
        let mut loaded = Loaded::default();
        let mut bundles: Vec<(Option<pgrx::Uuid>, i64, Vec<Job>)> = Vec::new();
        for job in jobs {
            let Some((size, user)) = sizes.get(&job.key) else {
                loaded.gone.push(job);
                continue;
            };
            let joins = bundles.last().is_some_and(|(asker, bytes, members)| {
                let tried = members.iter().chain([&job]).any(|job| job.attempts > ALONE);
                !tried && asker == user && bytes + size <= most && members.len() < TOGETHER
            });
            let is_room = bundles.len() < room;
            match bundles.last_mut() {
                Some((_, bytes, members)) if joins => {
                    *bytes += size;
                    members.push(job);
                }
                _ if is_room => bundles.push((*user, *size, vec![job])),
                _ => loaded.left.push(job),
            }
        }
        for (user, _, members) in bundles {
            loaded.begun.push(Indexing::begin(workspace, user, embedder.clone(), members)?);
        }
        Ok(loaded)
    }

    /// Reads documents; the first question is to read and cut them.
    fn begin(
        workspace: pgrx::Uuid,
        user: Option<pgrx::Uuid>,
        embedder: Embedder,
        jobs: Vec<Job>,
    ) -> Result<(Indexing, Request)> {
        let ids: Vec<pgrx::Uuid> = jobs.iter().map(|job| job.key).collect();
        let mut jobs: HashMap<pgrx::Uuid, Job> = jobs.into_iter().map(|job| (job.key, job)).collect();
        let mut documents = Vec::with_capacity(jobs.len());
        let mut requests = Vec::with_capacity(jobs.len());
        spi::change(
            "select s.id, s.title, s.mime_type, s.language, s.input_hash, i.content, i.is_file, s.file_name, s.chunk_count \
             from pg_catalog.unnest($2) u (id) \
             cross join lateral ( \
               select s.* from helper.knowledge_sources s where s.workspace_id = $1 and s.id = u.id limit 1) s \
             cross join lateral ( \
               select i.* from helper.knowledge_inputs i where i.workspace_id = $1 and i.source_id = u.id limit 1) i \
             where s.status = 'pending'",
            &[workspace.into(), ids.into()],
            |row| {
                let Some(job) = jobs.remove(&row.get::<pgrx::Uuid>(1)?) else { return Ok(()) };
                requests.push(Prepare {
                    name: row.opt::<String>(8)?.unwrap_or_default(),
                    mime_type: row.opt(3)?,
                    content: row.get(6)?,
                    language: row.opt(4)?,
                    model: String::new(),
                    max_tokens: settings::CHUNK_TOKENS.get() as u32,
                    overlap_tokens: settings::CHUNK_OVERLAP.get() as u32,
                });
                documents.push(Document {
                    job,
                    title: row.get(2)?,
                    is_file: row.get(7)?,
                    input_hash: row.get(5)?,
                    is_known: row.get::<i32>(9)? > 0,
                    prepared: Prepared { title: None, text: String::new(), language: None, chunks: Vec::new() },
                    hashes: Vec::new(),
                    known: HashMap::new(),
                });
                Ok(())
            },
        )?;
        let indexing = Indexing { workspace, call: Call::new(embedder), user, documents, texts: Vec::new() };
        Ok((indexing, Request::Prepare(requests)))
    }

    /// Its jobs.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.documents.iter().map(|document| &document.job)
    }

    /// Takes the chunks, looks which of them are stored already, and plans what to embed. Returns the documents that
    /// cannot be read, which are left out.
    pub fn prepared(&mut self, prepared: Vec<Result<Prepared>>, model: &str) -> Result<Vec<(Job, Error)>> {
        if prepared.len() != self.documents.len() {
            return Err(Error::bug("the gateway read other documents"));
        }
        self.call.embedder.is_named(model)?;
        let mut unread = Vec::new();
        let documents = std::mem::take(&mut self.documents).into_iter().zip(prepared);
        self.documents = documents
            .filter_map(|(mut document, prepared)| match prepared {
                Ok(prepared) => {
                    document.take(prepared);
                    Some(document)
                }
                Err(error) => {
                    unread.push((document.job, error));
                    None
                }
            })
            .collect();
        self.look_up_known()?;
        for (at, document) in self.documents.iter().enumerate() {
            let mut planned = HashSet::new();
            for (n, (chunk, hash)) in document.prepared.chunks.iter().zip(&document.hashes).enumerate() {
                // The same text twice in one document is stored once for each place, so each place is embedded, unless
                // the one stored already can serve.
                if document.known.contains_key(hash) && planned.insert(hash) {
                    continue;
                }
                self.texts.push(Text { document: at, chunk: n, sentence: None });
                // A provider is paid for every text: it embeds chunks alone.
                if !self.call.embedder.is_remote() {
                    let sentences = 0..chunk.sentences.len();
                    self.texts.extend(sentences.map(|s| Text { document: at, chunk: n, sentence: Some(s) }));
                }
            }
        }
        Ok(unread)
    }

    fn look_up_known(&mut self) -> Result<()> {
        let known: Vec<pgrx::Uuid> =
            self.documents.iter().filter(|document| document.is_known).map(|document| document.job.key).collect();
        if known.is_empty() {
            return Ok(());
        }
        let rows = spi::change(
            "select distinct on (c.source_id, c.content_hash) c.source_id, c.content_hash, c.id, c.start_offset \
             from pg_catalog.unnest($2) u (id) \
             join helper.knowledge_chunks c on c.workspace_id = $1 and c.source_id = u.id \
             join helper.knowledge_vectors v on v.workspace_id = c.workspace_id and v.chunk_id = c.id and v.model = $3 \
             order by c.source_id, c.content_hash, c.id",
            &[self.workspace.into(), known.into(), self.call.embedder.model.as_str().into()],
            |row| Ok((row.get::<pgrx::Uuid>(1)?, row.get::<Vec<u8>>(2)?, (row.get(3)?, row.get(4)?))),
        )?;
        let places: HashMap<pgrx::Uuid, usize> =
            self.documents.iter().enumerate().map(|(at, document)| (document.job.key, at)).collect();
        for (document, hash, chunk) in rows {
            if let Some(at) = places.get(&document) {
                self.documents[*at].known.insert(hash, chunk);
            }
        }
        Ok(())
    }

    /// The next slice of texts to embed, or to store when there is none; inside a transaction.
    pub fn next(&mut self) -> Result<Next> {
        if self.documents.is_empty() {
            return Ok(Next::Drop);
        }
        let done = self.call.embeddings().len();
        if done >= self.texts.len() {
            return Ok(Next::Store);
        }
        let most = if self.call.embedder.is_remote() { REMOTE_SLICE } else { SLICE };
        let inputs = self.texts[done..self.texts.len().min(done + most)].iter().map(|text| self.text(text)).collect();
        let asking = Asking {
            workspace: self.workspace,
            user: self.user,
            why: "index",
            purpose: Purpose::Document,
            interactive: false,
            patient: true,
        };
        Ok(Next::Ask(self.call.ask(&asking, inputs)?))
    }

    fn text(&self, text: &Text) -> String {
        let document = &self.documents[text.document];
        let chunk = &document.prepared.chunks[text.chunk];
        let content = match text.sentence {
            None => chunk.content.as_str(),
            Some(sentence) => slice(chunk, chunk.sentences[sentence]),
        };
        embedded_text(&document.title, &chunk.heading, content)
    }
}

impl Document {
    fn take(&mut self, mut prepared: Prepared) {
        // What a file says of itself reads better than its name, and means more in an embedding.
        if let Some(own) = prepared.title.as_deref().map(str::trim).filter(|own| self.is_file && !own.is_empty()) {
            self.title = own.chars().take(LONGEST_TITLE).collect();
        }
        for chunk in &mut prepared.chunks {
            chunk.heading = below(&self.title, &chunk.heading).to_owned();
        }
        self.hashes = prepared.chunks.iter().map(|chunk| hash(&self.title, chunk)).collect();
        self.prepared = prepared;
    }
}

/// What became of storing a document.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    Done,
    /// The document is gone or was given anew.
    Gone,
    /// Somebody holds it, or the index has another model now; again in a moment.
    Locked,
}

/// Notes that a document cannot be indexed; an earlier version stays searchable.
pub fn fail(job: &Job, error: &Error, for_good: bool) -> Result<()> {
    let facts = facts(error);
    spi::run(
        "update helper.knowledge_sources s set error = $3, status = case when $4 then 'failed' else s.status end \
         where s.workspace_id = $1 and s.id = $2 and s.status = 'pending'",
        &[job.workspace.into(), job.key.into(), JsonB(facts).into(), for_good.into()],
    )
}

/// An error as it is stored.
pub fn facts(error: &Error) -> serde_json::Value {
    serde_json::json!({
        "sqlstate": error.kind.sqlstate(),
        "message": error.message,
        "detail": error.detail,
        "hint": error.hint,
    })
}

/// When a job is tried again.
#[derive(Clone, Copy)]
pub struct Again {
    pub seconds: f64,
    /// Whether this try counts as one.
    pub counts: bool,
}

/// When to try a job again, where that can help.
pub fn again(job: &Job, error: &Error) -> Option<Again> {
    let later = Again { seconds: f64::from(1 << job.attempts.clamp(0, 6)).min(60.0), counts: true };
    match error.kind {
        // That many ask at once is no job's fault. The gateway asks nobody while a provider is to be left alone.
        Kind::RateLimited => Some(Again { seconds: 3.0, counts: false }),
        Kind::NotReady => Some(later),
        // Each time is paid for, and so is what comes too late.
        Kind::Provider | Kind::Cancelled => (job.attempts < MOST_REFUSALS).then_some(later),
        _ => None,
    }
}

/// What is embedded for a chunk or a sentence: it means more with the title and the headings above it.
pub fn embedded_text(title: &str, heading: &str, content: &str) -> String {
    [title, heading, content].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join("\n")
}

/// A trail of headings without the document's title, where it begins with it: nothing is to be said twice.
fn below<'a>(title: &str, heading: &'a str) -> &'a str {
    const NEXT: &str = " › ";
    match heading.split_once(NEXT) {
        Some((first, rest)) if first == title => rest,
        None if heading == title => "",
        _ => heading,
    }
}

/// A sentence of a chunk.
fn slice(chunk: &Chunk, (start, end): (u32, u32)) -> &str {
    let byte = |at: u32| {
        let at = at.saturating_sub(chunk.start) as usize;
        chunk.content.char_indices().nth(at).map_or(chunk.content.len(), |(byte, _)| byte)
    };
    chunk.content.get(byte(start)..byte(end)).unwrap_or_default()
}

fn hash(title: &str, chunk: &Chunk) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in [title, &chunk.heading, &chunk.content] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize().to_vec()
}
