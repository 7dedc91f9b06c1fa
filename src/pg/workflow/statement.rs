//! The one statement of a step.

use super::outputs;
use crate::core::error::{Error, Kind, Result};
use crate::pg::tools::{Fault, guarded};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use serde_json::{Value, json};
use std::ffi::{CStr, CString};
use std::time::Duration;

/// Rows that are fetched together.
const FETCHED: i64 = 50;
/// Bytes of what a statement returns, at most.
const MOST: usize = 1024 * 1024;

/// Runs the one statement of a step, whose `$1` is its parameters, and returns its rows.
/// One whose rows cannot be stored beside what the run has is taken back.
pub fn rows(sql: &str, parameters: &Value, bytes: i64, time: Option<Duration>) -> std::result::Result<Value, Fault> {
    let parameters = parameters.to_string();
    guarded(time, || {
        let text = CString::new(sql).map_err(|_| Error::bad_argument("the statement holds a NUL"))?;
        let returns_rows = check_statement(&text)?;
        let rows = rows_of(sql, &parameters, returns_rows)?;
        outputs::check(&rows, bytes)?;
        Ok(rows)
    })
}

/// Refuses what is not one statement that reads or changes rows; says whether it returns some.
fn check_statement(sql: &CStr) -> Result<bool> {
    use pg_sys::NodeTag::{T_DeleteStmt, T_InsertStmt, T_MergeStmt, T_SelectStmt, T_UpdateStmt};
    // SAFETY: the parser's own list, in the memory of this call; `sql` outlives it.
    let (count, kind, returns_rows) = unsafe {
        let statements = pg_sys::pg_parse_query(sql.as_ptr());
        if statements.is_null() || (*statements).length == 0 {
            (0, pg_sys::NodeTag::T_Invalid, false)
        } else {
            let raw: *mut pg_sys::RawStmt = (*(*statements).elements).ptr_value.cast();
            let statement = (*raw).stmt;
            let returned = match (*statement).type_ {
                T_InsertStmt => (*statement.cast::<pg_sys::InsertStmt>()).returningList,
                T_UpdateStmt => (*statement.cast::<pg_sys::UpdateStmt>()).returningList,
                T_DeleteStmt => (*statement.cast::<pg_sys::DeleteStmt>()).returningList,
                _ => std::ptr::null_mut(),
            };
            ((*statements).length, (*statement).type_, (*statement).type_ == T_SelectStmt || !returned.is_null())
        }
    };
    if count != 1 || !matches!(kind, T_SelectStmt | T_InsertStmt | T_UpdateStmt | T_DeleteStmt | T_MergeStmt) {
        return Err(Error::bad_argument("a step's sql is not one select, insert, update, delete or merge"));
    }
    Ok(returns_rows)
}

/// Runs a statement and returns its rows, a few at a time, so that no more of them than may be returned are in memory.
fn rows_of(sql: &str, parameters: &str, returns_rows: bool) -> Result<Value> {
    let parameters = jsonb(parameters)?;
    Spi::connect_mut(|client| {
        let plan = client.prepare_mut(sql, &[PgBuiltInOids::JSONBOID.oid()])?;
        let (mut rows, mut bytes) = (Vec::new(), 0);
        if !returns_rows {
            client.update(&plan, None, &[parameters]).map(drop)?;
            // SAFETY: how many rows the statement before changed.
            let count = unsafe { pg_sys::SPI_processed };
            return Ok(json!({ "rows": [], "count": count }));
        }
        let mut cursor = client.try_open_cursor_mut(&plan, &[parameters])?;
        // The first rows tell how large they are.
        let mut some = 1;
        loop {
            let fetched = cursor.fetch(some)?.len();
            // SAFETY: the rows that SPI fetched last.
            for text in unsafe { json_rows() } {
                bytes += text.len();
                if bytes > MOST {
                    return Err(Error::new(Kind::OverLimit, "the statement returns too much")
                        .detail(format!("At most {MOST} bytes are allowed."))
                        .hint("Select fewer rows or columns."));
                }
                rows.push(serde_json::from_str::<Value>(&text).map_err(|_| Error::bug("a row is not JSON"))?);
            }
            if fetched < some as usize {
                break;
            }
            some = (some * 2).min(FETCHED);
        }
        let count = rows.len();
        Ok(json!({ "rows": rows, "count": count }))
    })
}

/// The rows that SPI fetched last, each as a JSON object; no more of them than are too many.
///
/// # Safety
/// Inside a connection of SPI, right after a fetch.
unsafe fn json_rows() -> Vec<String> {
    // SAFETY: the table has as many rows as SPI says; the record's shape is blessed so that row_to_json finds it.
    unsafe {
        let Some(table) = pg_sys::SPI_tuptable.as_ref() else { return Vec::new() };
        pg_sys::BlessTupleDesc(table.tupdesc);
        let (mut texts, mut bytes) = (Vec::new(), 0);
        for at in 0..pg_sys::SPI_processed as usize {
            let record = pg_sys::heap_copy_tuple_as_datum(*table.vals.add(at), table.tupdesc);
            if let Some(text) = pgrx::direct_function_call::<String>(pg_sys::row_to_json, &[Some(record)]) {
                bytes += text.len();
                texts.push(text);
            }
            if bytes > MOST {
                break;
            }
        }
        texts
    }
}

/// A `jsonb` with every digit of its numbers.
fn jsonb(text: &str) -> Result<DatumWithOid<'static>> {
    let text = CString::new(text).map_err(|_| Error::bug("JSON holds a NUL"))?;
    // SAFETY: jsonb_in reads a text that ends with NUL and returns a jsonb in this memory.
    unsafe {
        let datum = pgrx::direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(pg_sys::Datum::from(text.as_ptr()))]);
        let datum = datum.ok_or_else(|| Error::bug("JSON is no jsonb"))?;
        Ok(DatumWithOid::new(datum, pg_sys::JSONBOID))
    }
}
