//! Full text: which chunks of a workspace have a query's terms, ranked by BM25 with that workspace's own counts.

use crate::core::error::Result;
use crate::core::rank::Id;
use crate::core::terms;
use crate::pg::{spi, terms as lexing};
use std::collections::HashSet;

/// Chunks below which all of a workspace's terms are looked through rather than the index.
const SMALL: i64 = 2000;

/// The query's terms in each configuration that the workspace uses, and the counts that BM25 needs.
#[derive(Default)]
pub struct Corpus {
    pub parts: Vec<Part>,
}

pub struct Part {
    pub config: String,
    chunks: i64,
    average_length: f64,
    /// Distinct terms of the query: key and, once counted, weight.
    pub terms: Vec<(i64, f64)>,
}

impl Corpus {
    pub fn load(workspace: pgrx::Uuid, text: &str) -> Result<Corpus> {
        let stats = spi::select(
            "select s.config, sum(s.chunks)::bigint, sum(s.terms)::bigint from helper.knowledge_stats s \
             where s.workspace_id = $1 group by s.config having sum(s.chunks) > 0 order by s.config",
            &[workspace.into()],
            |row| Ok((row.get::<String>(1)?, row.get::<i64>(2)?, row.get::<i64>(3)?)),
        )?;
        let mut parts = Vec::new();
        for (config, chunks, terms) in stats {
            let (keys, _) = lexing::of(workspace.as_bytes(), &config, text)?;
            parts.push(Part {
                config,
                chunks,
                average_length: terms as f64 / chunks as f64,
                terms: keys.into_iter().map(|(key, _)| (key, 0.0)).collect(),
            });
        }
        Ok(Corpus { parts })
    }

    /// What no chunk's score passes.
    pub fn most(&self, config: &str) -> f64 {
        let terms = self.parts.iter().filter(|part| part.config == config).flat_map(|part| &part.terms);
        terms.map(|(_, idf)| terms::most(*idf)).sum::<f64>().max(f64::MIN_POSITIVE)
    }

    pub fn score(&self, config: &str, length: i32, count: impl Fn(i64) -> u8) -> f64 {
        let Some(part) = self.parts.iter().find(|part| part.config == config) else { return 0.0 };
        part.terms
            .iter()
            .map(|(key, idf)| terms::score(*idf, f64::from(count(*key)), f64::from(length), part.average_length))
            .sum()
    }
}

/// A chunk that has at least one of the query's terms.
struct Match {
    id: Id,
    part: usize,
    length: i32,
    /// How often each of the part's terms occurs, from here in the list of all counts.
    counts: usize,
    allowed: bool,
}

impl Corpus {
    /// The best chunks by BM25. Every chunk with one of the terms is looked at, which also counts the terms exactly.
    pub fn best(
        &mut self,
        workspace: pgrx::Uuid,
        allowed: Option<&[pgrx::Uuid]>,
        depth: usize,
    ) -> Result<Vec<(Id, f64)>> {
        let keys: Vec<i64> = self.parts.iter().flat_map(|part| part.terms.iter().map(|(key, _)| *key)).collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let allowed: Option<HashSet<Id>> = allowed.map(|ids| ids.iter().map(|id| *id.as_bytes()).collect());
        let all: i64 = self.parts.iter().map(|part| part.chunks).sum();
        // A key stands for a term of one workspace, so that the index finds this workspace's chunks and no other's.
        let sql = if all < SMALL {
            "select t.chunk_id, t.source_id, t.config, t.length, t.terms from helper.knowledge_terms t where t.workspace_id = $1 and $2 is not null"
        } else {
            "select t.chunk_id, t.source_id, t.config, t.length, t.terms from helper.knowledge_terms t \
             where helper._term_keys(t.terms) operator(pg_catalog.&&) $2 and t.workspace_id = $1"
        };
        let mut matches: Vec<Match> = Vec::new();
        let mut counts: Vec<u8> = Vec::new();
        let mut with: Vec<Vec<i64>> = self.parts.iter().map(|part| vec![0; part.terms.len()]).collect();
        spi::scan(sql, &[workspace.into(), keys.into()], 64, |row| {
            let config = row.bytes(3)?;
            let Some(at) = self.parts.iter().position(|part| part.config.as_bytes() == config) else { return Ok(()) };
            let packed = row.bytes(5)?;
            let begin = counts.len();
            for (n, (key, _)) in self.parts[at].terms.iter().enumerate() {
                let count = terms::count(packed, *key);
                with[at][n] += i64::from(count > 0);
                counts.push(count);
            }
            if counts[begin..].iter().all(|count| *count == 0) {
                counts.truncate(begin);
                return Ok(());
            }
            let source = row.uuid(2)?;
            matches.push(Match {
                id: row.uuid(1)?,
                part: at,
                length: row.integer(4)?,
                counts: begin,
                allowed: allowed.as_ref().is_none_or(|allowed| allowed.contains(&source)),
            });
            Ok(())
        })?;
        for (part, with) in self.parts.iter_mut().zip(&with) {
            for ((_, idf), with) in part.terms.iter_mut().zip(with) {
                *idf = terms::idf(part.chunks as f64, *with as f64);
            }
        }
        let mut scored: Vec<(Id, f64)> = matches
            .iter()
            .filter(|found| found.allowed)
            .map(|found| {
                let part = &self.parts[found.part];
                let score = part
                    .terms
                    .iter()
                    .zip(&counts[found.counts..])
                    .map(|((_, idf), count)| {
                        terms::score(*idf, f64::from(*count), f64::from(found.length), part.average_length)
                    })
                    .sum();
                (found.id, score)
            })
            .collect();
        let better = |a: &(Id, f64), b: &(Id, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if scored.len() > depth {
            scored.select_nth_unstable_by(depth, better);
            scored.truncate(depth);
        }
        scored.sort_by(better);
        Ok(scored)
    }
}
