//! A statement that somebody else wrote, a model perhaps, run as the caller: exactly one select, which can change nothing
//! and call nothing that could.

use crate::core::error::{Error, Result};
use crate::pg::report::Reported;
use pgrx::prelude::*;
use std::ffi::{CStr, CString, c_int};
use std::fmt::Write as _;
use std::ptr;

/// Most that a statement may cost, in the planner's units: some gigabytes read from disk.
const MOST_COST: f64 = 1_000_000.0;
/// Milliseconds that it may take.
const MOST_TIME: c_int = 10_000;
/// Bytes of all rows, and of one.
const MOST_BYTES: usize = 64 * 1024;
const MOST_ROWS: i32 = 1000;

/// Postgres' name for `statement_timeout`'s timer, in its list since 9.3.
const STATEMENT_TIMEOUT: c_int = 3;

// SAFETY: as in utils/timeout.h; none of them raises.
unsafe extern "C-unwind" {
    fn enable_timeout_after(id: c_int, delay_ms: c_int);
    fn enable_timeout_at(id: c_int, at: pg_sys::TimestampTz);
    fn disable_timeout(id: c_int, keep_indicator: bool);
    fn get_timeout_active(id: c_int) -> bool;
    fn get_timeout_finish_time(id: c_int) -> pg_sys::TimestampTz;
}

/// Cancels the statement when its time is over; dropped, it gives back the caller's own timer.
struct Deadline {
    before: Option<pg_sys::TimestampTz>,
}

impl Deadline {
    fn after(ms: c_int) -> Deadline {
        // SAFETY: plain getters and setters of this process's timers; the timer is registered in every backend.
        unsafe {
            let before = get_timeout_active(STATEMENT_TIMEOUT).then(|| get_timeout_finish_time(STATEMENT_TIMEOUT));
            let ours = pg_sys::GetCurrentTimestamp() + i64::from(ms) * 1000;
            if before.is_none_or(|before| before > ours) {
                enable_timeout_after(STATEMENT_TIMEOUT, ms);
            }
            Deadline { before }
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe {
            disable_timeout(STATEMENT_TIMEOUT, false);
            if let Some(before) = self.before {
                enable_timeout_at(STATEMENT_TIMEOUT, before);
            }
        }
    }
}

/// Makes the transaction read-only until it is dropped, and has Postgres take what runs for a parallel operation: then it
/// refuses, at any depth, whatever would write or change a setting, the caller's role and claims among them. Functions
/// that run a text as SQL and are not volatile, as some extensions have, could do so otherwise.
struct ReadOnly {
    level: c_int,
}

impl ReadOnly {
    fn begin() -> ReadOnly {
        // SAFETY: a level of settings and an operation that `drop` ends, in the reverse order.
        unsafe {
            let level = pg_sys::NewGUCNestLevel();
            pg_sys::set_config_option(
                c"transaction_read_only".as_ptr(),
                c"on".as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
            pg_sys::EnterParallelMode();
            ReadOnly { level }
        }
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        // SAFETY: when an error is on its way out, the end of its transaction does this, and would find both gone.
        unsafe {
            if !std::thread::panicking() {
                pg_sys::ExitParallelMode();
                pg_sys::AtEOXact_GUC(false, self.level);
            }
        }
    }
}

fn not_a_select(why: impl Into<String>) -> Error {
    Error::bad_argument(why).hint("Write one select; helper.describe_data() tells what there is to select from.")
}

/// The one select in a text, without what stands around it. Set-returning, nested and common table expressions are
/// looked into too.
fn the_select(text: &str) -> Result<String> {
    let source = CString::new(text).map_err(|_| Error::bad_argument("query holds a NUL"))?;
    // SAFETY: the parser's own lists and nodes, which live as long as the memory of this call; `source` outlives them.
    let (from, length) = unsafe {
        let statements = pg_sys::pg_parse_query(source.as_ptr());
        let count = if statements.is_null() { 0 } else { (*statements).length };
        if count != 1 {
            return Err(not_a_select(format!("query has {count} statements, expected one select")));
        }
        let raw: *mut pg_sys::RawStmt = (*(*statements).elements).ptr_value.cast();
        let (from, length) = ((*raw).stmt_location.max(0) as usize, (*raw).stmt_len.max(0) as usize);
        if (*(*raw).stmt).type_ != pg_sys::NodeTag::T_SelectStmt {
            return Err(not_a_select("query is not a select"));
        }
        let query = pg_sys::parse_analyze_fixedparams(raw, source.as_ptr(), ptr::null(), 0, ptr::null_mut());
        if (*query).commandType != pg_sys::CmdType::CMD_SELECT || (*query).hasModifyingCTE || (*query).hasForUpdate {
            return Err(not_a_select("query is not a select that only reads"));
        }
        // A volatile function could write, ask a provider, or pass for somebody else by changing role or claims.
        if pg_sys::contain_volatile_functions(query.cast()) {
            return Err(not_a_select("query calls a volatile function")
                .detail("Functions that are stable or immutable may be called."));
        }
        (from, length)
    };
    let rest = text.get(from..).unwrap_or_default();
    Ok(if length == 0 { rest } else { rest.get(..length).unwrap_or_default() }.to_owned())
}

/// Rows of a statement as JSON, each as it is or `None` where it is too large.
fn rows(sql: &str, limit: i32) -> Result<Vec<Option<String>>> {
    let sql = CString::new(sql).map_err(|_| Error::bad_argument("query holds a NUL"))?;
    // SAFETY: SPI is connected; plan and rows are its own, and are read before it is finished.
    Spi::connect(|_| unsafe {
        let plan = pg_sys::SPI_prepare(sql.as_ptr(), 0, ptr::null_mut());
        let planned = pg_sys::SPI_plan_get_cached_plan(plan);
        if planned.is_null() {
            return Err(Error::bug("query has no plan"));
        }
        let statement: *mut pg_sys::PlannedStmt = (*(*(*planned).stmt_list).elements).ptr_value.cast();
        let cost = (*(*statement).planTree).total_cost;
        pg_sys::ReleaseCachedPlan(planned, ptr::null_mut());
        if cost > MOST_COST {
            return Err(Error::bad_argument("query would cost too much")
                .detail(format!("The planner's estimate is {cost:.0}, at most {MOST_COST:.0} is allowed."))
                .hint("Ask for less: fewer tables, a shorter time, a limit."));
        }
        pg_sys::SPI_execute_plan(plan, ptr::null_mut(), ptr::null(), true, i64::from(limit) as _);
        let table = pg_sys::SPI_tuptable;
        let read = |at: usize| {
            let value = pg_sys::SPI_getvalue(*(*table).vals.add(at), (*table).tupdesc, 1);
            (!value.is_null()).then(|| CStr::from_ptr(value).to_string_lossy().into_owned())
        };
        Ok((0..pg_sys::SPI_processed as usize).map(read).collect())
    })
}

/// `helper.query_data`. The reply is json and no jsonb, so that columns stay in their order and numbers as they are; json
/// is stored as its text.
#[pg_extern(sql = false, volatile, parallel_unsafe)]
fn query_data(query: Option<&str>, max_rows: Option<i32>) -> Reported<String> {
    let query = query.ok_or_else(|| Error::bad_argument("query is null"))?;
    let limit = max_rows.unwrap_or(100).clamp(1, MOST_ROWS);
    let select = the_select(query)?;
    let sql = format!(
        "select case when pg_catalog.octet_length(x.row) <= {MOST_BYTES} then x.row end from (\
         select pg_catalog.row_to_json(q)::text as row from (\n{select}\n) q) x limit {}",
        limit + 1
    );
    let rows = {
        let _deadline = Deadline::after(MOST_TIME);
        let _read_only = ReadOnly::begin();
        rows(&sql, limit + 1)?
    };
    let mut text = String::new();
    let mut count = 0;
    for row in rows.iter().take(limit as usize).map_while(Option::as_ref) {
        if text.len() + row.len() > MOST_BYTES {
            break;
        }
        if count > 0 {
            text.push(',');
        }
        text.push_str(row);
        count += 1;
    }
    let truncated = count < rows.len();
    let mut reply = String::new();
    let _ = write!(reply, "{{\"rows\":[{text}],\"row_count\":{count},\"truncated\":{truncated}}}");
    Ok(reply)
}
