//! Search: candidates as the owner within one workspace, the final rows as the caller, so that row-level security has
//! the last word.

use crate::core::error::{Error, Result};
use crate::core::rank::{self, Evidence, Id, Method, Place, Ranked};
use crate::core::sentences::{self, Scored};
use crate::core::terms;
use crate::pg::lexical::Corpus;
use crate::pg::report::Reported;
use crate::pg::{embedding, identity, owner, packing, settings, spi};
use pgrx::JsonB;
use pgrx::prelude::*;
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};

/// Candidates that each list gives at first.
const DEPTH: usize = 64;

/// Longest query, in characters.
pub const LONGEST: usize = 8000;

/// Most chunks that are merged into one passage.
const MERGE: usize = 3;

/// What to search for.
pub struct Query<'a> {
    pub text: &'a str,
    pub workspace: pgrx::Uuid,
    pub k: usize,
    pub source_types: Option<Vec<String>>,
    pub filter: Option<serde_json::Value>,
    pub method: Method,
}

/// A passage that the caller may see.
#[derive(Clone)]
pub struct Passage {
    pub chunk: pgrx::Uuid,
    pub source: pgrx::Uuid,
    pub source_type: String,
    pub title: String,
    pub heading: String,
    pub content: String,
    pub start: i32,
    pub end: i32,
    pub metadata: serde_json::Value,
    pub score: f64,
    pub vector_rank: Option<u32>,
    pub text_rank: Option<u32>,
    /// Its sentences with their similarity to the query; empty unless the search is hybrid and the index's model local.
    pub sentences: Vec<Scored>,
    /// The chunks it was merged from: one past the last character of each, in order.
    chunks: Vec<(i32, pgrx::Uuid)>,
    /// White space lies between two of them, which the chunks do not have.
    gaps: bool,
}

impl Passage {
    /// What of it a reply needs that goes on later, as JSON.
    pub fn kept(&self) -> Value {
        let chunks: Vec<Value> = self.chunks.iter().map(|(end, id)| json!([end, id.to_string()])).collect();
        json!({
            "chunk": self.chunk.to_string(), "source": self.source.to_string(), "source_type": self.source_type,
            "title": self.title, "heading": self.heading, "content": self.content, "start": self.start, "end": self.end,
            "score": self.score, "chunks": chunks, "gaps": self.gaps,
        })
    }

    /// One that was kept; `None` where it is not whole.
    pub fn restored(kept: &Value) -> Option<Passage> {
        let text = |name: &str| kept.get(name)?.as_str().map(str::to_owned);
        let number = |value: &Value| i32::try_from(value.as_i64()?).ok();
        let chunk = |pair: &Value| Some((number(pair.get(0)?)?, identity::uuid(pair.get(1)?.as_str()?)?));
        Some(Passage {
            chunk: identity::uuid(&text("chunk")?)?,
            source: identity::uuid(&text("source")?)?,
            source_type: text("source_type")?,
            title: text("title")?,
            heading: text("heading")?,
            content: text("content")?,
            start: number(kept.get("start")?)?,
            end: number(kept.get("end")?)?,
            metadata: Value::Null,
            score: kept.get("score")?.as_f64()?,
            vector_rank: None,
            text_rank: None,
            sentences: Vec::new(),
            chunks: kept.get("chunks")?.as_array()?.iter().map(chunk).collect::<Option<_>>()?,
            gaps: kept.get("gaps")?.as_bool()?,
        })
    }

    /// The chunk that holds a character of the document.
    pub fn chunk_at(&self, offset: u32) -> pgrx::Uuid {
        self.chunks.iter().find(|(end, _)| i64::from(offset) < i64::from(*end)).map_or(self.chunk, |(_, chunk)| *chunk)
    }
}

/// What a search found.
pub struct Found {
    /// Best first.
    pub passages: Vec<Passage>,
    /// Text search configurations that the workspace uses.
    pub configs: Vec<String>,
    /// Weight (idf) of each of the query's terms, by key.
    pub weights: HashMap<i64, f64>,
    workspace: pgrx::Uuid,
}

impl Found {
    /// Weight of a term, 0 where the query does not have it.
    pub fn weight(&self, config: &str, lexeme: &str) -> f64 {
        self.weights.get(&terms::key(self.workspace.as_bytes(), config, lexeme)).copied().unwrap_or(0.0)
    }
}

/// What the candidates' scan found.
struct Candidates {
    ranked: Vec<Ranked>,
    sentences: HashMap<Id, Vec<Scored>>,
    terms: HashMap<Id, Vec<i64>>,
    /// Whether a deeper scan would find more.
    cut: bool,
    configs: Vec<String>,
    weights: HashMap<i64, f64>,
}

/// The workspace of a call: the one given, else the caller's current one.
pub fn workspace(given: Option<pgrx::Uuid>) -> Result<pgrx::Uuid> {
    if let Some(found) = identity::plain_workspace(given)? {
        return Ok(found);
    }
    spi::first("select helper.current_workspace($1)", &[given.into()], |row| row.get::<pgrx::Uuid>(1))?
        .ok_or_else(|| Error::bug("no workspace"))
}

/// The best passages for a query, best first.
pub fn search(query: &Query) -> Result<Found> {
    check(query)?;
    let vector = match query.method {
        Method::Text => None,
        _ => Some(embedding::embed_query(query.workspace, query.text)?),
    };
    search_with(query, vector)
}

fn check(query: &Query) -> Result<()> {
    if query.text.trim().is_empty() {
        return Err(Error::bad_argument("query is empty"));
    }
    if query.text.chars().count() > LONGEST {
        return Err(Error::bad_argument(format!("query has more than {LONGEST} characters")));
    }
    if !(1..=1000).contains(&query.k) {
        return Err(Error::bad_argument(format!("k is {}, expected 1 to 1000", query.k)));
    }
    if query.filter.as_ref().is_some_and(|filter| !filter.is_object()) {
        return Err(Error::bad_argument("filter is not a JSON object"));
    }
    Ok(())
}

/// The same where the query was embedded before, by the model of that name.
pub fn search_with(query: &Query, vector: Option<(String, Vec<f32>)>) -> Result<Found> {
    let mut depth = DEPTH.max(query.k * 4);
    loop {
        let candidates = owner::as_owner(|| candidates(query, vector.as_ref(), depth))?;
        let passages = visible(query, &candidates)?;
        // Policies of the application may hide what was found: look deeper until there is enough or no more.
        if passages.len() >= query.k || !candidates.cut {
            return Ok(Found {
                passages,
                configs: candidates.configs,
                weights: candidates.weights,
                workspace: query.workspace,
            });
        }
        depth *= 8;
    }
}

fn candidates(query: &Query, vector: Option<&(String, Vec<f32>)>, depth: usize) -> Result<Candidates> {
    let workspace = query.workspace;
    let allowed = allowed_sources(query)?;
    let near = match vector {
        Some((model, vector)) => nearest(workspace, model, vector, allowed.as_deref(), depth)?,
        None => Vec::new(),
    };
    let mut corpus = match query.method {
        Method::Vector => Corpus::default(),
        _ => Corpus::load(workspace, query.text)?,
    };
    let worded = corpus.best(workspace, allowed.as_deref(), depth)?;
    let cut = near.len() >= depth || worded.len() >= depth;
    let near_ids: Vec<Id> = near.iter().map(|(id, _)| *id).collect();
    let text_ids: Vec<Id> = worded.iter().map(|(id, _)| *id).collect();
    let union: HashSet<Id> = near_ids.iter().chain(&text_ids).copied().collect();
    let mut evidence: HashMap<Id, Evidence> = union.iter().map(|id| (*id, Evidence::default())).collect();
    for (id, similarity) in &near {
        if let Some(e) = evidence.get_mut(id) {
            e.chunk = *similarity;
        }
    }
    let mut found = HashMap::new();
    let mut keys = HashMap::new();
    let ids: Vec<pgrx::Uuid> = union.iter().map(|id| pgrx::Uuid::from_bytes(*id)).collect();
    if let Some((model, vector)) = vector
        && query.method == Method::Hybrid
    {
        let schema = owner::vector_schema()?;
        let rows = spi::select(
            &format!(
                "select v.chunk_id, -(v.embedding operator({schema}.<#>) (select helper._halfvec($4))), v.sentences \
                 from pg_catalog.unnest($3) u (id) \
                 join helper.knowledge_vectors v on v.workspace_id = $1 and v.model = $2 and v.chunk_id = u.id"
            ),
            &[workspace.into(), model.as_str().into(), ids.clone().into(), vector.clone().into()],
            |row| Ok((*row.get::<pgrx::Uuid>(1)?.as_bytes(), row.get::<f64>(2)?, row.get::<Vec<u8>>(3)?)),
        )?;
        for (id, similarity, packed) in rows {
            let scored: Vec<Scored> = sentences::similarities(&packed, vector).collect();
            if let Some(e) = evidence.get_mut(&id) {
                e.chunk = similarity;
                e.sentence = scored.iter().map(|s| f64::from(s.similarity)).fold(similarity, f64::max);
            }
            found.insert(id, scored);
        }
    }
    if query.method != Method::Vector {
        for (id, config, length, packed) in terms_of(workspace, ids)? {
            if let Some(e) = evidence.get_mut(&id) {
                e.text = corpus.score(&config, length, |key| terms::count(&packed, key));
                e.words = e.text / corpus.most(&config);
            }
            keys.insert(id, terms::keys(&packed).collect());
        }
    }
    let ranked = rank::fuse(&evidence, &near_ids, &text_ids, query.method, settings::VECTOR_WEIGHT.get());
    let weights = corpus.parts.iter().flat_map(|part| part.terms.iter().copied()).collect();
    let configs = corpus.parts.into_iter().map(|part| part.config).collect();
    Ok(Candidates { ranked, sentences: found, terms: keys, cut, configs, weights })
}

/// The terms of chunks, as the owner: chunk, configuration, length and packed terms.
#[allow(clippy::type_complexity)]
fn terms_of(workspace: pgrx::Uuid, chunks: Vec<pgrx::Uuid>) -> Result<Vec<(Id, String, i32, Vec<u8>)>> {
    spi::select(
        "select t.chunk_id, t.config, t.length, t.terms from pg_catalog.unnest($2) u (id) \
         join helper.knowledge_terms t on t.workspace_id = $1 and t.chunk_id = u.id",
        &[workspace.into(), chunks.into()],
        |row| Ok((*row.get::<pgrx::Uuid>(1)?.as_bytes(), row.get(2)?, row.get(3)?, row.get(4)?)),
    )
}

/// The documents that the filters allow, or `None` where there are no filters.
fn allowed_sources(query: &Query) -> Result<Option<Vec<pgrx::Uuid>>> {
    if query.filter.is_none() && query.source_types.is_none() {
        return Ok(None);
    }
    let filter = query.filter.clone().unwrap_or_else(|| serde_json::json!({}));
    let sources = spi::select(
        "select s.id from helper.knowledge_sources s \
         where s.workspace_id = $1 and s.metadata @> $2 and ($3 is null or s.source_type = any ($3))",
        &[query.workspace.into(), JsonB(filter).into(), query.source_types.clone().into()],
        |row| row.get::<pgrx::Uuid>(1),
    )?;
    Ok(Some(sources))
}

/// Chunks that the first pass over a large workspace passes on to the exact comparison.
const PROMISING: usize = 400;

/// The nearest chunks of a workspace with their cosine similarity.
///
/// A workspace without blocks, or a search within some documents, is compared exactly; a large one after a first pass
/// over its one-bit codes.
fn nearest(
    workspace: pgrx::Uuid,
    model: &str,
    vector: &[f32],
    allowed: Option<&[pgrx::Uuid]>,
    depth: usize,
) -> Result<Vec<(Id, f64)>> {
    if let Some(allowed) = allowed {
        return compare(
            workspace,
            model,
            vector,
            depth,
            "and v.source_id in (select u.id from pg_catalog.unnest($5) u (id))",
            allowed,
        );
    }
    let mut most = PROMISING.max(depth * 2);
    loop {
        let Some(promising) = packing::promising(workspace, model, vector, most)? else {
            return compare(workspace, model, vector, depth, "and $5 is not null", &[]);
        };
        let named = promising.len();
        let ids: Vec<pgrx::Uuid> = promising.into_iter().map(pgrx::Uuid::from_bytes).collect();
        let mut near = compare(
            workspace,
            model,
            vector,
            named,
            "and v.chunk_id in (select u.id from pg_catalog.unnest($5) u (id))",
            &ids,
        )?;
        // Blocks may name chunks that are gone: where those crowd out the living, look at more.
        if named < most || near.len() * 2 >= named {
            near.extend(compare(
                workspace,
                model,
                vector,
                depth,
                "and v.chunk_id in (select l.chunk_id from helper.knowledge_loose l where l.workspace_id = $1 and l.model = $2) and $5 is not null",
                &[],
            )?);
            near.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            near.truncate(depth);
            return Ok(near);
        }
        most *= 4;
    }
}

/// The nearest chunks among those that a condition on `v` and `$5` allows, compared exactly.
fn compare(
    workspace: pgrx::Uuid,
    model: &str,
    vector: &[f32],
    depth: usize,
    condition: &'static str,
    ids: &[pgrx::Uuid],
) -> Result<Vec<(Id, f64)>> {
    let schema = owner::vector_schema()?;
    spi::select(
        &format!(
            "select v.chunk_id, -(v.embedding operator({schema}.<#>) (select helper._halfvec($3))) \
             from helper.knowledge_vectors v where v.workspace_id = $1 and v.model = $2 {condition} \
             order by v.embedding operator({schema}.<#>) (select helper._halfvec($3)) limit $4"
        ),
        &[workspace.into(), model.into(), vector.to_vec().into(), (depth as i64).into(), ids.to_vec().into()],
        |row| Ok((*row.get::<pgrx::Uuid>(1)?.as_bytes(), row.get::<f64>(2)?)),
    )
}

/// A chunk as the caller sees it.
struct Chunk {
    ranked: Ranked,
    passage: Passage,
    ordinal: i32,
}

/// Those of the candidates that the caller sees, with their places in their documents.
///
/// Here as elsewhere ids are joined rather than compared with `any`, which a plan that is kept may put to every chunk of
/// the workspace; and as the policies' conditions make the planner take workspaces for small, `limit` has it look up id
/// by id. The caller's search path is left alone, as the functions in an application's policies may need it; so this statement
/// names its operators with their schema.
fn seen(query: &Query, ranked: &[Ranked]) -> Result<HashMap<Id, (i32, Passage)>> {
    let ids: Vec<pgrx::Uuid> = ranked.iter().map(|ranked| pgrx::Uuid::from_bytes(ranked.id)).collect();
    let rows = spi::select(
        "select c.id, c.source_id, s.source_type, s.title, c.heading, c.content, c.start_offset, c.end_offset, s.metadata, c.ordinal \
         from pg_catalog.unnest($2) u (id) \
         cross join lateral (\
           select k.* from helper.knowledge_chunks k \
           where k.workspace_id operator(pg_catalog.=) $1 and k.id operator(pg_catalog.=) u.id limit 1) c \
         join helper.knowledge_sources s on s.workspace_id operator(pg_catalog.=) c.workspace_id and s.id operator(pg_catalog.=) c.source_id",
        &[query.workspace.into(), ids.into()],
        |row| {
            let chunk = row.get::<pgrx::Uuid>(1)?;
            let passage = Passage {
                chunk,
                source: row.get(2)?,
                source_type: row.get(3)?,
                title: row.get(4)?,
                heading: row.get(5)?,
                content: row.get(6)?,
                start: row.get(7)?,
                end: row.get(8)?,
                metadata: row.get::<JsonB>(9)?.0,
                score: 0.0,
                vector_rank: None,
                text_rank: None,
                sentences: Vec::new(),
                chunks: Vec::new(),
                gaps: false,
            };
            Ok((*chunk.as_bytes(), (row.get::<i32>(10)?, passage)))
        },
    )?;
    Ok(rows.into_iter().collect())
}

/// Reads the candidates again as the caller, drops what says the same, merges neighbours.
fn visible(query: &Query, candidates: &Candidates) -> Result<Vec<Passage>> {
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut shown: Vec<Vec<i64>> = Vec::new();
    // Enough to fill k passages after merging, and no more: each is compared with those before it.
    let enough = query.k * MERGE + 16;
    for slice in candidates.ranked.chunks(enough) {
        let mut rows = seen(query, slice)?;
        let mut keys: HashMap<Id, Vec<i64>> = if query.method == Method::Vector {
            let ids = rows.keys().map(|id| pgrx::Uuid::from_bytes(*id)).collect();
            let terms = owner::as_owner(|| terms_of(query.workspace, ids))?;
            terms.into_iter().map(|(id, _, _, packed)| (id, terms::keys(&packed).collect())).collect()
        } else {
            slice.iter().filter_map(|ranked| Some((ranked.id, candidates.terms.get(&ranked.id)?.clone()))).collect()
        };
        for ranked in slice {
            let Some((ordinal, mut passage)) = rows.remove(&ranked.id) else { continue };
            let keys = keys.remove(&ranked.id).unwrap_or_default();
            if !keys.is_empty() && shown.iter().any(|other| rank::is_same(other, &keys)) {
                continue;
            }
            shown.push(keys);
            passage.chunks = vec![(passage.end, passage.chunk)];
            passage.score = ranked.score;
            passage.vector_rank = ranked.vector_rank;
            passage.text_rank = ranked.text_rank;
            passage.sentences = candidates.sentences.get(&ranked.id).cloned().unwrap_or_default();
            chunks.push(Chunk { ranked: *ranked, passage, ordinal });
        }
        if chunks.len() >= enough {
            break;
        }
    }
    let places: Vec<Place> =
        chunks.iter().map(|chunk| Place { source: *chunk.passage.source.as_bytes(), ordinal: chunk.ordinal }).collect();
    let groups = rank::group(&places, query.k, MERGE);
    let mut slots: Vec<Option<Chunk>> = chunks.into_iter().map(Some).collect();
    let mut passages: Vec<Passage> = groups
        .into_iter()
        .filter_map(|group| {
            let mut members: Vec<Chunk> = group.into_iter().filter_map(|at| slots[at].take()).collect();
            // The best one gives the passage its id, score and ranks.
            let (best, ranked) = members.first().map(|chunk| (chunk.passage.chunk, chunk.ranked))?;
            members.sort_by_key(|chunk| chunk.ordinal);
            let mut members = members.into_iter();
            let mut merged = members.next()?.passage;
            for member in members {
                join(&mut merged, member.passage);
            }
            merged.chunk = best;
            merged.score = ranked.score;
            merged.vector_rank = ranked.vector_rank;
            merged.text_rank = ranked.text_rank;
            Some(merged)
        })
        .collect();
    fill(query, &mut passages)?;
    Ok(passages)
}

/// Appends the next chunk of the same document, without what it repeats.
fn join(passage: &mut Passage, next: Passage) {
    let gap = next.start - passage.end;
    if gap > 0 {
        // As many characters as there are; `fill` puts the right ones there.
        passage.content.extend(std::iter::repeat_n(' ', gap as usize));
        passage.gaps = true;
    }
    passage.content.extend(next.content.chars().skip((-gap).max(0) as usize));
    passage.end = passage.end.max(next.end);
    passage.chunks.extend(next.chunks);
    for sentence in next.sentences {
        if passage.sentences.iter().all(|known| known.end <= sentence.start) {
            passage.sentences.push(sentence);
        }
    }
}

/// Puts the document's own characters into merged passages, so that a passage is what its offsets say.
fn fill(query: &Query, passages: &mut [Passage]) -> Result<()> {
    for passage in passages.iter_mut().filter(|passage| passage.gaps) {
        let content = spi::first(
            "select pg_catalog.substr(s.content, $3, $4) from helper.knowledge_sources s \
             where s.workspace_id operator(pg_catalog.=) $1 and s.id operator(pg_catalog.=) $2",
            &[
                query.workspace.into(),
                passage.source.into(),
                (passage.start + 1).into(),
                (passage.end - passage.start).into(),
            ],
            |row| row.get::<String>(1),
        )?;
        if let Some(content) = content {
            passage.content = content;
        }
    }
    Ok(())
}

fn method(name: &str) -> Result<Method> {
    match name {
        "hybrid" => Ok(Method::Hybrid),
        "vector" => Ok(Method::Vector),
        "text" => Ok(Method::Text),
        _ => {
            Err(Error::bad_argument(format!("search method \"{name}\" does not exist"))
                .hint("Use hybrid, vector or text."))
        }
    }
}

/// `helper._visible`: whether the role that asks sees a document.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn is_visible(document: pgrx::Uuid) -> Reported<bool> {
    let found = owner::as_caller(|| {
        spi::first("select true from helper.knowledge_sources s where s.id = $1", &[document.into()], |row| {
            row.get::<bool>(1)
        })
    })?;
    Ok(found.is_some())
}

/// `helper.search`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
#[allow(clippy::type_complexity)]
fn search_chunks(
    query: Option<&str>,
    in_workspace: Option<pgrx::Uuid>,
    k: Option<i32>,
    source_types: Option<Vec<Option<String>>>,
    filter: Option<JsonB>,
    search_method: Option<&str>,
) -> Reported<
    TableIterator<
        'static,
        (
            name!(chunk_id, pgrx::Uuid),
            name!(source_id, pgrx::Uuid),
            name!(source_type, String),
            name!(title, String),
            name!(heading, String),
            name!(content, String),
            name!(score, f64),
            name!(vector_rank, Option<i32>),
            name!(text_rank, Option<i32>),
            name!(start_offset, i32),
            name!(end_offset, i32),
            name!(metadata, JsonB),
        ),
    >,
> {
    let k = k.unwrap_or(8);
    let source_types = source_types.map(|types| types.into_iter().collect::<Option<Vec<String>>>());
    if source_types == Some(None) {
        return Err(Error::bad_argument("source_types holds a null").into());
    }
    let found = search(&Query {
        text: query.ok_or_else(|| Error::bad_argument("query is null"))?,
        workspace: workspace(in_workspace)?,
        k: usize::try_from(k).map_err(|_| Error::bad_argument(format!("k is {k}, expected 1 to 1000")))?,
        source_types: source_types.flatten(),
        filter: filter.map(|filter| filter.0),
        method: method(search_method.unwrap_or("hybrid"))?,
    })?;
    Ok(TableIterator::new(found.passages.into_iter().map(|p| {
        (
            p.chunk,
            p.source,
            p.source_type,
            p.title,
            p.heading,
            p.content,
            p.score,
            p.vector_rank.map(|rank| rank as i32),
            p.text_rank.map(|rank| rank as i32),
            p.start,
            p.end,
            JsonB(p.metadata),
        )
    })))
}
