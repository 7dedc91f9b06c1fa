//! Indexing one document, step by step, each step a short transaction: load it, have it read and cut, have what is new
//! embedded, then store all of it at once. Between the steps only the gateway works.

use crate::core::error::{Error, Kind, Result};
use crate::core::wire::{Chunk, Prepare, Prepared, Request};
use crate::core::{sentences, terms};
use crate::pg::{settings, spi, terms as lexing};
use pgrx::JsonB;
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// Texts in one request to the model, so that a long document gives way to others between two of them.
const SLICE: usize = 64;

/// Longest title, in characters.
const LONGEST_TITLE: usize = 1000;

/// A leased job.
#[derive(Clone)]
pub struct Job {
    pub workspace: pgrx::Uuid,
    pub id: pgrx::Uuid,
    pub document: pgrx::Uuid,
    pub attempts: i32,
    pub token: pgrx::Uuid,
}

/// What is to be done next with a document.
pub enum Next {
    /// Ask the gateway this.
    Ask(Request),
    /// All is known; store it.
    Store,
    /// The document is gone, or this version of it.
    Drop,
}

/// A document on its way into the index.
pub struct Indexing {
    pub job: Job,
    model: String,
    title: String,
    is_file: bool,
    input_hash: Vec<u8>,
    prepared: Option<Prepared>,
    /// For each chunk its hash.
    hashes: Vec<Vec<u8>>,
    /// Chunks by hash that are stored already, with their embedding: id, first character, sentences.
    known: HashMap<Vec<u8>, (pgrx::Uuid, i32)>,
    /// Texts to embed: index of the chunk, and of the sentence in it, or `None` for the chunk itself.
    texts: Vec<(usize, Option<usize>)>,
    embedded: Vec<f32>,
    dimensions: usize,
}

impl Indexing {
    /// Loads a document; the first question is to read and cut it.
    pub fn load(job: Job) -> Result<(Option<Indexing>, Next)> {
        let found = spi::first(
            "select s.title, s.mime_type, s.language, s.input_hash, i.content, i.is_file, s.file_name \
             from helper.knowledge_sources s join helper.knowledge_inputs i on i.workspace_id = s.workspace_id and i.source_id = s.id \
             where s.workspace_id = $1 and s.id = $2 and s.status = 'pending'",
            &[job.workspace.into(), job.document.into()],
            |row| {
                Ok((
                    row.get::<String>(1)?,
                    row.opt::<String>(2)?,
                    row.opt::<String>(3)?,
                    row.get::<Vec<u8>>(4)?,
                    row.get::<Vec<u8>>(5)?,
                    row.get::<bool>(6)?,
                    row.opt::<String>(7)?,
                ))
            },
        )?;
        let Some((title, mime_type, language, input_hash, content, is_file, file_name)) = found else {
            return Ok((None, Next::Drop));
        };
        let request = Request::Prepare(Prepare {
            name: file_name.unwrap_or_default(),
            mime_type,
            content,
            language,
            model: String::new(),
            max_tokens: settings::CHUNK_TOKENS.get() as u32,
            overlap_tokens: settings::CHUNK_OVERLAP.get() as u32,
        });
        let indexing = Indexing {
            job,
            model: String::new(),
            title,
            is_file,
            input_hash,
            prepared: None,
            hashes: Vec::new(),
            known: HashMap::new(),
            texts: Vec::new(),
            embedded: Vec::new(),
            dimensions: 0,
        };
        Ok((Some(indexing), Next::Ask(request)))
    }

    /// Takes the chunks, looks which of them are stored already, and says what to embed.
    pub fn prepared(&mut self, mut prepared: Prepared, model: &str) -> Result<Next> {
        self.model = model.to_owned();
        // What a file says of itself reads better than its name, and means more in an embedding.
        if let Some(own) = prepared.title.as_deref().map(str::trim).filter(|own| self.is_file && !own.is_empty()) {
            self.title = own.chars().take(LONGEST_TITLE).collect();
        }
        for chunk in &mut prepared.chunks {
            chunk.heading = below(&self.title, &chunk.heading).to_owned();
        }
        self.hashes = prepared.chunks.iter().map(|chunk| hash(&self.title, chunk)).collect();
        self.known = spi::select(
            "select distinct on (c.content_hash) c.content_hash, c.id, c.start_offset \
             from helper.knowledge_chunks c \
             join helper.knowledge_vectors v on v.workspace_id = c.workspace_id and v.chunk_id = c.id and v.model = $3 \
             where c.workspace_id = $1 and c.source_id = $2 \
             order by c.content_hash, c.id",
            &[self.job.workspace.into(), self.job.document.into(), model.into()],
            |row| Ok((row.get::<Vec<u8>>(1)?, (row.get::<pgrx::Uuid>(2)?, row.get::<i32>(3)?))),
        )?
        .into_iter()
        .collect();
        let mut planned: HashMap<&[u8], ()> = HashMap::new();
        for (at, chunk) in prepared.chunks.iter().enumerate() {
            let hash = self.hashes[at].as_slice();
            // The same text twice in one document is stored once for each place, so each place is embedded, unless the
            // one stored already can serve.
            if self.known.contains_key(hash) && planned.insert(hash, ()).is_none() {
                continue;
            }
            self.texts.push((at, None));
            self.texts.extend((0..chunk.sentences.len()).map(|sentence| (at, Some(sentence))));
        }
        self.prepared = Some(prepared);
        Ok(self.ask())
    }

    /// Takes embeddings in the order of the texts.
    pub fn embeddings(&mut self, dimensions: usize, values: &[f32]) {
        self.dimensions = dimensions;
        self.embedded.extend_from_slice(values);
    }

    /// The next slice of texts to embed, or to store when there is none.
    pub fn ask(&self) -> Next {
        let Some(prepared) = &self.prepared else { return Next::Drop };
        let done = self.embedded.len() / self.dimensions.max(1);
        if done >= self.texts.len() {
            return Next::Store;
        }
        let inputs = self.texts[done..self.texts.len().min(done + SLICE)]
            .iter()
            .map(|(at, sentence)| {
                let chunk = &prepared.chunks[*at];
                match sentence {
                    None => embedded_text(&self.title, &chunk.heading, &chunk.content),
                    Some(sentence) => {
                        embedded_text(&self.title, &chunk.heading, slice(chunk, chunk.sentences[*sentence]))
                    }
                }
            })
            .collect();
        Next::Ask(Request::Embed { model: String::new(), inputs, interactive: false })
    }

    /// Stores all of it; the document is searchable as this version from this transaction on.
    pub fn store(&self) -> Result<Stored> {
        let (workspace, document) = (self.job.workspace, self.job.document);
        let Some(prepared) = &self.prepared else { return Err(Error::bug("nothing to store")) };
        // A caller's open transaction may hold the document; better to come back than to wait for it.
        let current = spi::change(
            "select s.input_hash from helper.knowledge_sources s where s.workspace_id = $1 and s.id = $2 for no key update skip locked",
            &[workspace.into(), document.into()],
            |row| row.get::<Vec<u8>>(1),
        )?;
        let Some(current) = current.into_iter().next() else {
            let exists = spi::first(
                "select true from helper.knowledge_sources s where s.workspace_id = $1 and s.id = $2",
                &[workspace.into(), document.into()],
                |row| row.get::<bool>(1),
            )?;
            return Ok(if exists.is_some() { Stored::Locked } else { Stored::Gone });
        };
        if current != self.input_hash {
            // It was given anew meanwhile, and is waiting again.
            return Ok(Stored::Gone);
        }
        let kept = self.keep(prepared)?;
        let language = prepared.language.clone();
        let config =
            spi::first("select helper._text_config($1)", &[language.clone().into()], |row| row.get::<String>(1))?
                .unwrap_or_else(|| "simple".into());
        let mut next = 0;
        for (at, chunk) in prepared.chunks.iter().enumerate() {
            let id = match kept.get(&at) {
                Some(id) => *id,
                None => self.insert(at, chunk, &mut next)?,
            };
            let text = embedded_text(&self.title, &chunk.heading, &chunk.content);
            let (counts, length) = lexing::of(workspace.as_bytes(), &config, &text)?;
            spi::run(
                "insert into helper.knowledge_terms (workspace_id, chunk_id, source_id, config, length, terms) values ($1, $2, $3, $4, $5, $6)",
                &[
                    workspace.into(),
                    id.into(),
                    document.into(),
                    config.as_str().into(),
                    (length as i32).into(),
                    terms::pack(counts).into(),
                ],
            )?;
        }
        let tokens: u32 = prepared.chunks.iter().map(|chunk| chunk.tokens).sum();
        spi::run(
            "update helper.knowledge_sources s \
             set status = 'ready', error = null, title = $7, content = $3, language = coalesce(s.language, $4), chunk_count = $5, token_count = $6, indexed_at = clock_timestamp() \
             where s.workspace_id = $1 and s.id = $2",
            &[
                workspace.into(),
                document.into(),
                prepared.text.as_str().into(),
                language.into(),
                (prepared.chunks.len() as i32).into(),
                (tokens as i32).into(),
                self.title.as_str().into(),
            ],
        )?;
        spi::run(
            "delete from helper.knowledge_inputs i where i.workspace_id = $1 and i.source_id = $2 and not i.is_file",
            &[workspace.into(), document.into()],
        )?;
        Ok(Stored::Done)
    }

    /// Keeps the chunks whose text did not change, moves them to their new place, and removes the others.
    fn keep(&self, prepared: &Prepared) -> Result<HashMap<usize, pgrx::Uuid>> {
        let (workspace, document) = (self.job.workspace, self.job.document);
        let mut free = self.known.clone();
        let mut kept = HashMap::new();
        for (at, chunk) in prepared.chunks.iter().enumerate() {
            if let Some((id, start)) = free.remove(&self.hashes[at]) {
                kept.insert(at, (id, start, chunk));
            }
        }
        let ids: Vec<pgrx::Uuid> = kept.values().map(|(id, ..)| *id).collect();
        spi::run(
            "delete from helper.knowledge_chunks c where c.workspace_id = $1 and c.source_id = $2 and c.id <> all ($3)",
            &[workspace.into(), document.into(), ids.into()],
        )?;
        spi::run(
            "delete from helper.knowledge_terms t where t.workspace_id = $1 and t.chunk_id in \
             (select c.id from helper.knowledge_chunks c where c.workspace_id = $1 and c.source_id = $2)",
            &[workspace.into(), document.into()],
        )?;
        let mut places = HashMap::new();
        for (at, (id, start, chunk)) in kept {
            places.insert(at, id);
            spi::run(
                "update helper.knowledge_chunks c set ordinal = $3, start_offset = $4, end_offset = $5 where c.workspace_id = $1 and c.id = $2",
                &[
                    workspace.into(),
                    id.into(),
                    (at as i32).into(),
                    (chunk.start as i32).into(),
                    (chunk.end as i32).into(),
                ],
            )?;
            let by = i64::from(chunk.start) - i64::from(start);
            if by == 0 {
                continue;
            }
            let vector = spi::first(
                "select v.sentences, vector_dims from helper.knowledge_vectors v, lateral helper._dimensions(v.embedding) vector_dims \
                 where v.workspace_id = $1 and v.chunk_id = $2 and v.model = $3",
                &[workspace.into(), id.into(), self.model.as_str().into()],
                |row| Ok((row.get::<Vec<u8>>(1)?, row.get::<i32>(2)?)),
            )?;
            if let Some((packed, dimensions)) = vector {
                spi::run(
                    "update helper.knowledge_vectors v set sentences = $4 where v.workspace_id = $1 and v.chunk_id = $2 and v.model = $3",
                    &[
                        workspace.into(),
                        id.into(),
                        self.model.as_str().into(),
                        sentences::moved(&packed, dimensions as usize, by).into(),
                    ],
                )?;
            }
        }
        Ok(places)
    }

    /// Inserts a chunk with its embeddings, the next ones in order.
    fn insert(&self, at: usize, chunk: &Chunk, next: &mut usize) -> Result<pgrx::Uuid> {
        let (workspace, document) = (self.job.workspace, self.job.document);
        let id = spi::change(
            "insert into helper.knowledge_chunks \
               (workspace_id, source_id, ordinal, heading, content, token_count, start_offset, end_offset, content_hash) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9) returning id",
            &[
                workspace.into(),
                document.into(),
                (at as i32).into(),
                chunk.heading.as_str().into(),
                chunk.content.as_str().into(),
                (chunk.tokens as i32).into(),
                (chunk.start as i32).into(),
                (chunk.end as i32).into(),
                self.hashes[at].clone().into(),
            ],
            |row| row.get::<pgrx::Uuid>(1),
        )?
        .into_iter()
        .next()
        .ok_or_else(|| Error::bug("no chunk was inserted"))?;
        let embedding = |n: usize| -> Result<&[f32]> {
            self.embedded
                .get(n * self.dimensions..(n + 1) * self.dimensions)
                .ok_or_else(|| Error::bug("fewer embeddings than texts"))
        };
        let whole = embedding(*next)?.to_vec();
        *next += 1;
        let mut packed = Vec::new();
        for (start, end) in &chunk.sentences {
            sentences::push(&mut packed, *start, *end, embedding(*next)?);
            *next += 1;
        }
        spi::run(
            "insert into helper.knowledge_vectors (workspace_id, chunk_id, source_id, model, embedding, sentences) \
             values ($1, $2, $3, $4, helper._halfvec($5), $6)",
            &[workspace.into(), id.into(), document.into(), self.model.as_str().into(), whole.into(), packed.into()],
        )?;
        Ok(id)
    }
}

/// What became of storing.
pub enum Stored {
    Done,
    /// The document is gone or was given anew.
    Gone,
    /// Somebody holds it; again in a moment.
    Locked,
}

/// Notes that a document cannot be indexed; an earlier version stays searchable.
pub fn fail(job: &Job, error: &Error, for_good: bool) -> Result<()> {
    let facts = facts(error);
    spi::run(
        "update helper.knowledge_sources s set error = $3, status = case when $4 then 'failed' else s.status end \
         where s.workspace_id = $1 and s.id = $2 and s.status = 'pending'",
        &[job.workspace.into(), job.document.into(), JsonB(facts).into(), for_good.into()],
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

/// Whether trying again later can help.
pub fn is_passing(error: &Error) -> bool {
    matches!(error.kind, Kind::NotReady | Kind::RateLimited | Kind::Cancelled)
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
