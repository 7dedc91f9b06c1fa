//! Terms of a text, made by Postgres' own text search configurations.

use crate::core::error::Result;
use crate::core::terms;
use crate::pg::spi;
use pgrx::prelude::*;

/// Distinct terms of a text with their counts, and how many there are in all.
pub fn of(workspace: &[u8; 16], config: &str, text: &str) -> Result<(Vec<(i64, u32)>, u32)> {
    let counts = spi::select(
        "select t.lexeme, coalesce(pg_catalog.cardinality(t.positions), 1) \
         from pg_catalog.unnest(pg_catalog.to_tsvector($1::pg_catalog.regconfig, $2)) t",
        &[config.into(), text.into()],
        |row| Ok((terms::key(workspace, config, &row.get::<String>(1)?), row.get::<i32>(2)? as u32)),
    )?;
    let length = counts.iter().map(|(_, count)| count).sum();
    Ok((counts, length))
}

/// Keys of packed terms, for the index.
#[pg_extern(sql = false, immutable, parallel_safe, strict)]
fn term_keys(packed: &[u8]) -> Vec<i64> {
    terms::keys(packed).collect()
}
