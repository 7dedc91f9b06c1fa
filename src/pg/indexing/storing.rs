//! Storing documents whose embeddings are known: a few statements for all of them, in one transaction.
//!
//! `unnest` of several arrays is syntax, and means the one of `pg_catalog` wherever it stands. Rows are looked up by their
//! keys one by one and written by their places: a join may be planned to read all that a workspace has.

use super::{Document, Indexing, Stored, embedded_text};
use crate::core::error::{Error, Result};
use crate::core::wire::Chunk;
use crate::core::{sentences, terms};
use crate::pg::embedder::Embedder;
use crate::pg::jobs::Job;
use crate::pg::{identity, spi, terms as lexing};
use std::collections::{HashMap, HashSet};

/// Chunks that one statement inserts at most.
const ROWS: usize = 1000;

/// A chunk with where it is kept.
struct Placed<'a> {
    document: &'a Document,
    at: usize,
    chunk: &'a Chunk,
    id: pgrx::Uuid,
}

/// A new chunk's embedding, and those of its sentences packed.
struct Vectors {
    whole: Vec<u8>,
    sentences: Vec<u8>,
}

impl Indexing {
    /// Stores all of it; each document is searchable as this version from this transaction on.
    pub fn store(&self) -> Result<Vec<(&Job, Stored)>> {
        let outcomes = self.outcomes()?;
        let outcome: Vec<(&Job, Stored)> =
            self.documents.iter().map(|document| &document.job).zip(outcomes.iter().copied()).collect();
        let stored: Vec<&Document> = self
            .documents
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| **outcome == Stored::Done)
            .map(|(document, _)| document)
            .collect();
        if stored.is_empty() {
            return Ok(outcome);
        }
        let kept = self.keep(&stored)?;
        let mut vectors = self.vectors()?;
        let mut placed = Vec::new();
        let mut new = Vec::new();
        for document in &stored {
            for (at, chunk) in document.prepared.chunks.iter().enumerate() {
                let key = (document.job.key, at);
                let id = match kept.get(&key) {
                    Some(id) => *id,
                    None => {
                        let id = pgrx::Uuid::from_bytes(identity::new_id());
                        let vectors = vectors.remove(&key).ok_or_else(|| Error::bug("a chunk without an embedding"))?;
                        new.push((Placed { document, at, chunk, id }, vectors));
                        id
                    }
                };
                placed.push(Placed { document, at, chunk, id });
            }
        }
        for rows in new.chunks(ROWS) {
            self.insert(rows)?;
        }
        self.insert_terms(&placed)?;
        self.finish(&stored)?;
        Ok(outcome)
    }

    /// What becomes of each document: a caller's open transaction may hold one, and it is better to come back than to wait.
    fn outcomes(&self) -> Result<Vec<Stored>> {
        if self.index_changed()? {
            return Ok(vec![Stored::Locked; self.documents.len()]);
        }
        let ids: Vec<pgrx::Uuid> = self.jobs().map(|job| job.key).collect();
        let locked: HashMap<pgrx::Uuid, Vec<u8>> = spi::change(
            "select s.id, s.input_hash from pg_catalog.unnest($2) u (id) \
             cross join lateral ( \
               select s.id, s.input_hash from helper.knowledge_sources s where s.workspace_id = $1 and s.id = u.id \
               limit 1 for no key update skip locked) s",
            &[self.workspace.into(), ids.clone().into()],
            |row| Ok((row.get(1)?, row.get(2)?)),
        )?
        .into_iter()
        .collect();
        let there: HashSet<pgrx::Uuid> = if locked.len() == ids.len() {
            HashSet::new()
        } else {
            spi::change(
                "select s.id from pg_catalog.unnest($2) u (id) \
                 join helper.knowledge_sources s on s.workspace_id = $1 and s.id = u.id",
                &[self.workspace.into(), ids.into()],
                |row| row.get(1),
            )?
            .into_iter()
            .collect()
        };
        let outcome = |document: &Document| match locked.get(&document.job.key) {
            Some(hash) if *hash == document.input_hash => Stored::Done,
            // It was given anew meanwhile, and is waiting again.
            Some(_) => Stored::Gone,
            None if there.contains(&document.job.key) => Stored::Locked,
            None => Stored::Gone,
        };
        Ok(self.documents.iter().map(outcome).collect())
    }

    /// Notes which model the index is made with when it begins, and how many numbers its embeddings have. Another model may
    /// have taken its place since the documents were loaded, or embeddings of other dimensions may have come first.
    fn index_changed(&self) -> Result<bool> {
        let Embedder { model, .. } = &self.call.embedder;
        let provider = self.call.embedder.provider();
        let dimensions = self.call.dimensions();
        spi::run(
            "insert into helper.knowledge_models (workspace_id, model, provider_id, provider_model, status, finished_at) \
             values ($1, $2, $3, $4, 'current', clock_timestamp()) on conflict (workspace_id) where status = 'current' do nothing",
            &[
                self.workspace.into(),
                model.as_str().into(),
                provider.map(|(id, _)| pgrx::Uuid::from_bytes(id)).into(),
                provider.map(|(_, model)| model).into(),
            ],
        )?;
        spi::run(
            "update helper.knowledge_models m set dimensions = $3 \
             where m.workspace_id = $1 and m.model = $2 and m.status = 'current' and m.dimensions is null and $3 is not null",
            &[self.workspace.into(), model.as_str().into(), dimensions.into()],
        )?;
        let current = spi::change(
            "select m.model, m.dimensions from helper.knowledge_models m \
             where m.workspace_id = $1 and m.status = 'current' for share",
            &[self.workspace.into()],
            |row| Ok((row.get::<String>(1)?, row.opt::<i32>(2)?)),
        )?;
        Ok(!current.iter().any(|(current, there)| current == model && (dimensions.is_none() || dimensions == *there)))
    }

    /// Keeps the chunks whose text did not change, moves them to their new place, and removes the others. Returns the ids
    /// of those that were kept, by document and place in it.
    fn keep(&self, stored: &[&Document]) -> Result<HashMap<(pgrx::Uuid, usize), pgrx::Uuid>> {
        let mut kept = HashMap::new();
        let indexed: Vec<&&Document> = stored.iter().filter(|document| document.is_known).collect();
        if indexed.is_empty() {
            return Ok(kept);
        }
        let mut moved = Vec::new();
        let (mut ids, mut ordinals, mut starts, mut ends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for document in &indexed {
            let mut free = document.known.clone();
            for (at, chunk) in document.prepared.chunks.iter().enumerate() {
                let Some((id, start)) = free.remove(&document.hashes[at]) else { continue };
                kept.insert((document.job.key, at), id);
                ids.push(id);
                ordinals.push(at as i32);
                starts.push(chunk.start as i32);
                ends.push(chunk.end as i32);
                if start != chunk.start as i32 {
                    moved.push((id, i64::from(chunk.start) - i64::from(start)));
                }
            }
        }
        let documents: Vec<pgrx::Uuid> = indexed.iter().map(|document| document.job.key).collect();
        spi::run(
            "delete from helper.knowledge_chunks c using pg_catalog.unnest($2) u (id) \
             where c.workspace_id = $1 and c.source_id = u.id \
               and not exists (select from pg_catalog.unnest($3) k (id) where k.id = c.id)",
            &[self.workspace.into(), documents.into(), ids.clone().into()],
        )?;
        spi::run(
            "delete from helper.knowledge_terms t using pg_catalog.unnest($2) k (id) where t.workspace_id = $1 and t.chunk_id = k.id",
            &[self.workspace.into(), ids.clone().into()],
        )?;
        spi::run(
            "update helper.knowledge_chunks c set ordinal = k.ordinal, start_offset = k.start, end_offset = k.stop \
             from unnest($2, $3, $4, $5) k (id, ordinal, start, stop) where c.workspace_id = $1 and c.id = k.id",
            &[self.workspace.into(), ids.into(), ordinals.into(), starts.into(), ends.into()],
        )?;
        for (id, by) in moved {
            self.move_sentences(id, by)?;
        }
        Ok(kept)
    }

    /// The offsets of a chunk's sentences, in the embeddings of every model.
    fn move_sentences(&self, chunk: pgrx::Uuid, by: i64) -> Result<()> {
        let found = spi::change(
            "select v.model, v.sentences, helper._dimensions(v.embedding) from helper.knowledge_vectors v \
             where v.workspace_id = $1 and v.chunk_id = $2 and pg_catalog.octet_length(v.sentences) > 0",
            &[self.workspace.into(), chunk.into()],
            |row| Ok((row.get::<String>(1)?, row.get::<Vec<u8>>(2)?, row.get::<i32>(3)?)),
        )?;
        for (model, packed, dimensions) in found {
            spi::run(
                "update helper.knowledge_vectors v set sentences = $4 where v.workspace_id = $1 and v.chunk_id = $2 and v.model = $3",
                &[
                    self.workspace.into(),
                    chunk.into(),
                    model.into(),
                    sentences::moved(&packed, dimensions as usize, by).into(),
                ],
            )?;
        }
        Ok(())
    }

    /// The embeddings of the new chunks, by document and place in it.
    fn vectors(&self) -> Result<HashMap<(pgrx::Uuid, usize), Vectors>> {
        let mut vectors: HashMap<(pgrx::Uuid, usize), Vectors> = HashMap::new();
        let embeddings = self.call.embeddings();
        if embeddings.len() != self.texts.len() {
            return Err(Error::bug(format!("{} embeddings for {} texts", embeddings.len(), self.texts.len())));
        }
        for (text, embedding) in self.texts.iter().zip(embeddings) {
            let document = &self.documents[text.document];
            let key = (document.job.key, text.chunk);
            match text.sentence {
                None => {
                    let whole = embedding.iter().flat_map(|number| number.to_ne_bytes()).collect();
                    vectors.insert(key, Vectors { whole, sentences: Vec::new() });
                }
                Some(sentence) => {
                    let (start, end) = document.prepared.chunks[text.chunk].sentences[sentence];
                    if let Some(vectors) = vectors.get_mut(&key) {
                        sentences::push(&mut vectors.sentences, start, end, embedding);
                    }
                }
            }
        }
        Ok(vectors)
    }

    fn insert(&self, rows: &[(Placed, Vectors)]) -> Result<()> {
        let ids: Vec<pgrx::Uuid> = rows.iter().map(|(row, _)| row.id).collect();
        let sources: Vec<pgrx::Uuid> = rows.iter().map(|(row, _)| row.document.job.key).collect();
        let number = |of: fn(&Placed) -> u32| rows.iter().map(|(row, _)| of(row) as i32).collect::<Vec<i32>>();
        let text = |of: fn(&Chunk) -> &str| rows.iter().map(|(row, _)| of(row.chunk).to_owned()).collect::<Vec<_>>();
        spi::run(
            "insert into helper.knowledge_chunks \
               (workspace_id, id, source_id, ordinal, heading, content, token_count, start_offset, end_offset, content_hash) \
             select $1, u.* from unnest($2, $3, $4, $5, $6, $7, $8, $9, $10) u",
            &[
                self.workspace.into(),
                ids.clone().into(),
                sources.clone().into(),
                number(|row| row.at as u32).into(),
                text(|chunk| &chunk.heading).into(),
                text(|chunk| &chunk.content).into(),
                number(|row| row.chunk.tokens).into(),
                number(|row| row.chunk.start).into(),
                number(|row| row.chunk.end).into(),
                rows.iter().map(|(row, _)| row.document.hashes[row.at].clone()).collect::<Vec<_>>().into(),
            ],
        )?;
        spi::run(
            "insert into helper.knowledge_vectors (workspace_id, chunk_id, source_id, model, embedding, sentences) \
             select $1, u.id, u.source_id, $2, helper._halfvec_of(u.embedding), u.sentences \
             from unnest($3, $4, $5, $6) u (id, source_id, embedding, sentences)",
            &[
                self.workspace.into(),
                self.call.embedder.model.as_str().into(),
                ids.into(),
                sources.into(),
                rows.iter().map(|(_, vectors)| vectors.whole.clone()).collect::<Vec<_>>().into(),
                rows.iter().map(|(_, vectors)| vectors.sentences.clone()).collect::<Vec<_>>().into(),
            ],
        )
    }

    /// Terms of all chunks, made by each language's configuration.
    fn insert_terms(&self, placed: &[Placed]) -> Result<()> {
        let mut configs: HashMap<Option<&str>, Vec<&Placed>> = HashMap::new();
        for row in placed {
            configs.entry(row.document.prepared.language.as_deref()).or_default().push(row);
        }
        for (language, rows) in configs {
            let config = spi::first("select helper._text_config($1)", &[language.into()], |row| row.get::<String>(1))?
                .unwrap_or_else(|| "simple".into());
            for rows in rows.chunks(ROWS) {
                self.insert_terms_of(&config, rows)?;
            }
        }
        Ok(())
    }

    fn insert_terms_of(&self, config: &str, rows: &[&Placed]) -> Result<()> {
        let texts: Vec<String> =
            rows.iter().map(|row| embedded_text(&row.document.title, &row.chunk.heading, &row.chunk.content)).collect();
        let (mut lengths, mut packed) = (Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        for (counts, length) in lexing::of_many(self.workspace.as_bytes(), config, texts)? {
            lengths.push(length as i32);
            packed.push(terms::pack(counts));
        }
        spi::run(
            "insert into helper.knowledge_terms (workspace_id, chunk_id, source_id, config, length, terms) \
             select $1, u.id, u.source_id, $2, u.length, u.terms from unnest($3, $4, $5, $6) u (id, source_id, length, terms)",
            &[
                self.workspace.into(),
                config.into(),
                rows.iter().map(|row| row.id).collect::<Vec<_>>().into(),
                rows.iter().map(|row| row.document.job.key).collect::<Vec<_>>().into(),
                lengths.into(),
                packed.into(),
            ],
        )
    }

    /// The documents are ready; what they were made from is kept of files alone.
    fn finish(&self, stored: &[&Document]) -> Result<()> {
        let ids: Vec<pgrx::Uuid> = stored.iter().map(|document| document.job.key).collect();
        let tokens =
            |document: &&Document| document.prepared.chunks.iter().map(|chunk| chunk.tokens).sum::<u32>() as i32;
        spi::run(
            "update helper.knowledge_sources s \
             set status = 'ready', error = null, title = u.title, content = u.content, language = coalesce(s.language, u.language), \
               chunk_count = u.chunks, token_count = u.tokens, indexed_at = clock_timestamp() \
             from unnest($2, $3, $4, $5, $6, $7) u (id, title, content, language, chunks, tokens) \
             cross join lateral ( \
               select f.ctid as place from helper.knowledge_sources f where f.workspace_id = $1 and f.id = u.id limit 1) f \
             where s.ctid = f.place",
            &[
                self.workspace.into(),
                ids.clone().into(),
                stored.iter().map(|document| document.title.clone()).collect::<Vec<_>>().into(),
                stored.iter().map(|document| document.prepared.text.clone()).collect::<Vec<_>>().into(),
                stored.iter().map(|document| document.prepared.language.clone()).collect::<Vec<_>>().into(),
                stored.iter().map(|document| document.prepared.chunks.len() as i32).collect::<Vec<_>>().into(),
                stored.iter().map(tokens).collect::<Vec<_>>().into(),
            ],
        )?;
        spi::run(
            "delete from helper.knowledge_inputs i using pg_catalog.unnest($2) u (id) \
             cross join lateral ( \
               select f.ctid as place from helper.knowledge_inputs f where f.workspace_id = $1 and f.source_id = u.id limit 1) f \
             where i.ctid = f.place and not i.is_file",
            &[self.workspace.into(), ids.into()],
        )
    }
}
