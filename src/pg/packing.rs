//! Packs the embeddings of large workspaces into blocks of one-bit codes, and looks through them.
//!
//! A block is a row that fills a page, so that a workspace's codes are read at the speed of a scan. A chunk that is not
//! in a block yet is in `knowledge_loose`. A block may name chunks that are gone: they are not found when the embeddings
//! themselves are read, and the blocks are made anew when they are many.

use crate::core::error::{Error, Result};
use crate::core::quantise::{self, Probe};
use crate::core::rank::Id;
use crate::pg::report::Reported;
use crate::pg::{owner, spi};
use pgrx::prelude::*;

/// Bytes of identifiers and codes in a block: a row of this size has a page for itself.
const BLOCK: usize = 7800;

/// Loose chunks that one transaction packs at most.
const AT_ONCE: i64 = 8192;

fn pack_loose(workspace: pgrx::Uuid, model: &str) -> Result<i64> {
    let schema = owner::vector_schema()?;
    let rows = spi::change(
        &format!(
            "with taken as (\
               delete from helper.knowledge_loose l where l.ctid = any (array(\
                 select f.ctid from helper.knowledge_loose f where f.workspace_id = $1 and f.model = $2 limit $3 for update skip locked)) \
               returning l.chunk_id) \
             select v.chunk_id, (v.embedding::{schema}.vector)::real[] from taken t \
             join helper.knowledge_vectors v on v.workspace_id = $1 and v.model = $2 and v.chunk_id = t.chunk_id"
        ),
        &[workspace.into(), model.into(), AT_ONCE.into()],
        |row| Ok((*row.get::<pgrx::Uuid>(1)?.as_bytes(), row.get::<Vec<f32>>(2)?)),
    )?;
    let Some(dimensions) = rows.first().map(|(_, embedding)| embedding.len()) else { return Ok(0) };
    let each = BLOCK / (16 + quantise::code_size(dimensions));
    if each == 0 {
        return Err(Error::bug(format!("embeddings of {dimensions} dimensions do not fit in a block")));
    }
    for block in rows.chunks(each) {
        let mut ids = Vec::with_capacity(block.len() * 16);
        let mut codes = Vec::with_capacity(block.len() * quantise::code_size(dimensions));
        for (id, embedding) in block {
            ids.extend_from_slice(id);
            quantise::encode(embedding, &mut codes);
        }
        spi::run(
            "insert into helper.knowledge_blocks (workspace_id, model, chunk_count, chunk_ids, codes) values ($1, $2, $3, $4, $5)",
            &[workspace.into(), model.into(), (block.len() as i32).into(), ids.into(), codes.into()],
        )?;
    }
    Ok(rows.len() as i64)
}

/// Packs some of what waits in one workspace, as the owner; returns how many chunks.
pub fn pack(workspace: pgrx::Uuid, model: &str) -> Result<i64> {
    // Blocks in which a third of the chunks are gone are taken apart and packed anew.
    let worn = spi::first(
        "select b.named > 1.5 * greatest(0, v.live - l.loose) from \
           (select coalesce(sum(b.chunk_count), 0) as named from helper.knowledge_blocks b where b.workspace_id = $1 and b.model = $2) b, \
           (select count(*) as live from helper.knowledge_vectors v where v.workspace_id = $1 and v.model = $2) v, \
           (select count(*) as loose from helper.knowledge_loose l where l.workspace_id = $1 and l.model = $2) l \
         where b.named > 0",
        &[workspace.into(), model.into()],
        |row| row.get::<bool>(1),
    )?;
    if worn == Some(true) {
        spi::run(
            "delete from helper.knowledge_blocks b where b.workspace_id = $1 and b.model = $2",
            &[workspace.into(), model.into()],
        )?;
        spi::run(
            "insert into helper.knowledge_loose (workspace_id, model, chunk_id) \
             select v.workspace_id, v.model, v.chunk_id from helper.knowledge_vectors v where v.workspace_id = $1 and v.model = $2 \
             on conflict do nothing",
            &[workspace.into(), model.into()],
        )?;
    }
    pack_loose(workspace, model)
}

/// The chunks in a workspace's blocks with the highest estimates, at most `most`, as the owner; `None` where the
/// workspace has no blocks.
pub fn promising(workspace: pgrx::Uuid, model: &str, query: &[f32], most: usize) -> Result<Option<Vec<Id>>> {
    let probe = Probe::new(query);
    let mut best: Vec<(f32, Id)> = Vec::new();
    // Only what beats the worst of the best so far is kept; it is sorted out when twice as many have come together.
    let mut bar = f32::NEG_INFINITY;
    let mut blocks = 0;
    spi::scan(
        "select b.chunk_ids, b.codes from helper.knowledge_blocks b where b.workspace_id = $1 and b.model = $2",
        &[workspace.into(), model.into()],
        8,
        |row| {
            blocks += 1;
            let ids = row.bytes(1)?;
            let codes = row.bytes(2)?;
            for (estimate, id) in probe.estimates(codes).zip(ids.chunks_exact(16)) {
                if estimate > bar {
                    best.push((estimate, id.try_into().unwrap_or_default()));
                }
            }
            if best.len() > most * 2 {
                best.select_nth_unstable_by(most, |a, b| b.0.total_cmp(&a.0));
                best.truncate(most);
                bar = best.iter().fold(f32::INFINITY, |low, (estimate, _)| low.min(*estimate));
            }
            Ok(())
        },
    )?;
    if blocks == 0 {
        return Ok(None);
    }
    if best.len() > most {
        best.select_nth_unstable_by(most, |a, b| b.0.total_cmp(&a.0));
        best.truncate(most);
    }
    Ok(Some(best.into_iter().map(|(_, id)| id).collect()))
}

/// `helper._pack`.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn pack_some(workspace: pgrx::Uuid, model: &str) -> Reported<i64> {
    Ok(owner::as_owner(|| pack(workspace, model))?)
}
