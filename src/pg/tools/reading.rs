//! Queries that only read, with one parameter, whose rows come as text: with an older snapshot, or with all that was done
//! until now.

use crate::core::error::{Error, Result};
use pgrx::prelude::*;
use std::ffi::{CStr, CString};

/// A row, column by column.
pub type Texts = Vec<Option<String>>;

/// Rows that are in memory at once.
pub const BATCH: usize = 1000;

/// Reads all rows, so many at a time.
pub fn batches(
    sql: &str,
    parameter: &str,
    snapshot: Option<pg_sys::Snapshot>,
    mut take: impl FnMut(Vec<Texts>) -> Result<()>,
) -> Result<()> {
    let sql = CString::new(sql).map_err(|_| Error::bug("a statement holds a NUL"))?;
    let parameter = parameter.into_datum().ok_or_else(|| Error::bug("no parameter"))?;
    Spi::connect_mut(|_| {
        // SAFETY: inside a connection of SPI; an error leaves the cursor to the end of the subtransaction.
        let cursor = unsafe { open(&sql, parameter, snapshot) };
        loop {
            // SAFETY: the rows are copied before they are freed.
            let rows = unsafe {
                pg_sys::SPI_cursor_fetch(cursor, true, BATCH as _);
                let rows = texts();
                pg_sys::SPI_freetuptable(pg_sys::SPI_tuptable);
                rows
            };
            let is_last = rows.len() < BATCH;
            take(rows)?;
            if is_last {
                break;
            }
        }
        // SAFETY: opened above.
        unsafe { pg_sys::SPI_cursor_close(cursor) };
        Ok(())
    })
}

/// All rows of a query that has not more than a batch.
pub fn rows(sql: &str, parameter: &str, snapshot: Option<pg_sys::Snapshot>) -> Result<Vec<Texts>> {
    let mut all = Vec::new();
    batches(sql, parameter, snapshot, |mut rows| {
        all.append(&mut rows);
        Ok(())
    })?;
    Ok(all)
}

/// A cursor, which keeps the snapshot that is pushed while it is opened.
///
/// # Safety
/// Inside a connection of SPI.
unsafe fn open(sql: &CStr, parameter: pg_sys::Datum, snapshot: Option<pg_sys::Snapshot>) -> pg_sys::Portal {
    // SAFETY: what is pushed is popped, at an error by the end of the subtransaction.
    unsafe {
        match snapshot {
            Some(snapshot) => pg_sys::PushActiveSnapshot(snapshot),
            None => {
                pg_sys::CommandCounterIncrement();
                pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            }
        }
        let mut kinds = [pg_sys::TEXTOID];
        let mut values = [parameter];
        let (kinds, values) = (kinds.as_mut_ptr(), values.as_mut_ptr());
        let nulls = std::ptr::null();
        let cursor =
            pg_sys::SPI_cursor_open_with_args(std::ptr::null(), sql.as_ptr(), 1, kinds, values, nulls, true, 0);
        pg_sys::PopActiveSnapshot();
        cursor
    }
}

/// What SPI fetched last, as text.
///
/// # Safety
/// Inside a connection of SPI, after a fetch.
unsafe fn texts() -> Vec<Texts> {
    // SAFETY: the table has as many rows and columns as it says; a text is freed when it is copied.
    unsafe {
        let Some(table) = pg_sys::SPI_tuptable.as_ref() else { return Vec::new() };
        let columns = (*table.tupdesc).natts;
        let text = |row: usize, column: i32| {
            let text = pg_sys::SPI_getvalue(*table.vals.add(row), table.tupdesc, column);
            let copy = (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned());
            if copy.is_some() {
                pg_sys::pfree(text.cast());
            }
            copy
        };
        (0..pg_sys::SPI_processed as usize).map(|row| (1..=columns).map(|column| text(row, column)).collect()).collect()
    }
}
