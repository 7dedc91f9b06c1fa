//! Statements: planned once a session, rows read by a closure. Every statement names its objects with their schema.

use crate::core::error::{Error, Result};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::{OwnedPreparedStatement, SpiHeapTupleData};
use std::cell::RefCell;
use std::collections::HashMap;

thread_local! {
    // Plans live as long as the process; freeing them at its end would be too late for SPI.
    static PLANS: RefCell<HashMap<String, &'static OwnedPreparedStatement>> = RefCell::default();
}

/// A row, with its columns counted from 1.
pub struct Row<'a>(SpiHeapTupleData<'a>);

impl Row<'_> {
    /// A column that is never null.
    pub fn get<T: FromDatum + IntoDatum>(&self, column: usize) -> Result<T> {
        self.opt(column)?.ok_or_else(|| Error::bug(format!("column {column} is null")))
    }

    /// A column that may be null.
    pub fn opt<T: FromDatum + IntoDatum>(&self, column: usize) -> Result<Option<T>> {
        Ok(self.0.get::<T>(column)?)
    }
}

fn plan(
    client: &pgrx::spi::SpiClient<'_>,
    sql: &str,
    args: &[DatumWithOid],
) -> Result<&'static OwnedPreparedStatement> {
    if let Some(plan) = PLANS.with_borrow(|plans| plans.get(sql).copied()) {
        return Ok(plan);
    }
    let types: Vec<PgOid> = args.iter().map(|arg| PgOid::from(arg.oid())).collect();
    let plan: &'static OwnedPreparedStatement = Box::leak(Box::new(client.prepare_mut(sql, &types)?.keep()));
    PLANS.with_borrow_mut(|plans| plans.insert(sql.to_owned(), plan));
    Ok(plan)
}

/// Runs a statement that only reads, with the snapshot of the statement that called us.
pub fn select<T>(sql: &str, args: &[DatumWithOid], mut read: impl FnMut(&Row) -> Result<T>) -> Result<Vec<T>> {
    Spi::connect(|client| {
        let plan = plan(client, sql, args)?;
        let mut rows = Vec::new();
        for tuple in client.select(plan, None, args)? {
            rows.push(read(&Row(tuple))?);
        }
        Ok(rows)
    })
}

/// Runs a statement that changes something.
pub fn change<T>(sql: &str, args: &[DatumWithOid], mut read: impl FnMut(&Row) -> Result<T>) -> Result<Vec<T>> {
    Spi::connect_mut(|client| {
        let plan = plan(client, sql, args)?;
        let mut rows = Vec::new();
        for tuple in client.update(plan, None, args)? {
            rows.push(read(&Row(tuple))?);
        }
        Ok(rows)
    })
}

/// Runs a statement whose rows are of no interest.
pub fn run(sql: &str, args: &[DatumWithOid]) -> Result<()> {
    change(sql, args, |_| Ok(())).map(drop)
}

/// The first row of a statement that only reads.
pub fn first<T>(sql: &str, args: &[DatumWithOid], read: impl FnMut(&Row) -> Result<T>) -> Result<Option<T>> {
    Ok(select(sql, args, read)?.into_iter().next())
}

/// Goes through the rows of a statement that only reads, a few thousand at a time.
pub fn scan(sql: &str, args: &[DatumWithOid], mut each: impl FnMut(&Row) -> Result<()>) -> Result<()> {
    Spi::connect(|client| {
        let plan = plan(client, sql, args)?;
        let mut cursor = client.try_open_cursor(plan, args)?;
        loop {
            let rows = cursor.fetch(4096)?;
            if rows.is_empty() {
                return Ok(());
            }
            for tuple in rows {
                each(&Row(tuple))?;
            }
            // What was fetched is copied: give it back before the next fetch.
            // SAFETY: the rows were consumed above.
            unsafe { pg_sys::SPI_freetuptable(pg_sys::SPI_tuptable) };
        }
    })
}
