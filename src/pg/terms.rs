//! Terms of a text, made by Postgres' own text search configurations.

use crate::core::error::Result;
use crate::core::terms;
use crate::pg::spi;
use pgrx::prelude::*;

/// Distinct terms of a text with their counts, and how many there are in all.
pub type Counted = (Vec<(i64, u32)>, u32);

/// The terms of a text.
pub fn of(workspace: &[u8; 16], config: &str, text: &str) -> Result<Counted> {
    Ok(of_many(workspace, config, vec![text.to_owned()])?.pop().unwrap_or_default())
}

/// The terms of each of some texts.
pub fn of_many(workspace: &[u8; 16], config: &str, texts: Vec<String>) -> Result<Vec<Counted>> {
    let mut counted = vec![Counted::default(); texts.len()];
    spi::select(
        "select x.n::int, t.lexeme, coalesce(pg_catalog.cardinality(t.positions), 1) \
         from pg_catalog.unnest($2) with ordinality x (text, n), \
         pg_catalog.unnest(pg_catalog.to_tsvector($1::pg_catalog.regconfig, x.text)) t",
        &[config.into(), texts.into()],
        |row| {
            let count = row.get::<i32>(3)? as u32;
            if let Some((terms, length)) = counted.get_mut(row.get::<i32>(1)? as usize - 1) {
                terms.push((terms::key(workspace, config, &row.get::<String>(2)?), count));
                *length += count;
            }
            Ok(())
        },
    )?;
    Ok(counted)
}

/// Keys of packed terms, for the index.
#[pg_extern(sql = false, immutable, parallel_safe, strict)]
fn term_keys(packed: &[u8]) -> Vec<i64> {
    terms::keys(packed).collect()
}
