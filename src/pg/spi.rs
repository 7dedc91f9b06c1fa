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

/// Has statements that only read see what is committed now, and what the transaction itself has changed.
pub fn as_of_now<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    struct Pop;
    impl Drop for Pop {
        fn drop(&mut self) {
            // An error on its way out ends the transaction, or the part of it that the snapshot is of, which takes it back.
            if !std::thread::panicking() {
                // SAFETY: pops the one that was pushed below.
                unsafe { pg_sys::PopActiveSnapshot() };
            }
        }
    }
    // SAFETY: in a transaction; popped on every way out.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
    let _pop = Pop;
    work()
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

/// A row that is only looked at while it is there: nothing of it is copied.
pub struct Glance {
    tuple: pg_sys::HeapTuple,
    shape: pg_sys::TupleDesc,
}

impl Glance {
    fn datum(&self, column: i32) -> Result<pg_sys::Datum> {
        let mut null = false;
        // SAFETY: tuple and shape belong to the rows that SPI fetched last, which `scan` frees only after this.
        let datum = unsafe { pg_sys::SPI_getbinval(self.tuple, self.shape, column, &mut null) };
        if null { Err(Error::bug(format!("column {column} is null"))) } else { Ok(datum) }
    }

    /// The bytes of a `bytea` or `text` column.
    pub fn bytes(&self, column: i32) -> Result<&[u8]> {
        // SAFETY: the caller names a column of variable length; what is stored in the row itself is not copied, and a
        // copy of what is not lives in SPI's memory, which outlives the row.
        unsafe {
            let datum = pg_sys::pg_detoast_datum_packed(self.datum(column)?.cast_mut_ptr());
            Ok(pgrx::varlena::varlena_to_byte_slice(datum))
        }
    }

    /// The bytes of a `uuid` column.
    pub fn uuid(&self, column: i32) -> Result<[u8; 16]> {
        // SAFETY: a uuid is passed as a pointer to its sixteen bytes.
        Ok(unsafe { *self.datum(column)?.cast_mut_ptr::<[u8; 16]>() })
    }

    /// An `integer` column.
    pub fn integer(&self, column: i32) -> Result<i32> {
        Ok(self.datum(column)?.value() as i32)
    }
}

/// Goes through the rows of a statement that only reads, `batch` at a time. SPI copies every row it fetches: a batch
/// well below a hundred kilobytes finds the same memory again each time.
pub fn scan(sql: &str, args: &[DatumWithOid], batch: i64, mut each: impl FnMut(&Glance) -> Result<()>) -> Result<()> {
    Spi::connect(|client| {
        let plan = plan(client, sql, args)?;
        // Owns the portal, and closes it on every way out.
        let cursor = client.try_open_cursor(plan, args)?.detach_into_name();
        let name = std::ffi::CString::new(cursor).map_err(|_| Error::bug("a cursor's name has a NUL"))?;
        // SAFETY: the portal was opened above; rows are read only between their fetch and SPI_freetuptable.
        unsafe {
            let portal = pg_sys::SPI_cursor_find(name.as_ptr());
            loop {
                pg_sys::SPI_cursor_fetch(portal, true, batch as std::ffi::c_long);
                let table = pg_sys::SPI_tuptable;
                let count = pg_sys::SPI_processed as usize;
                let outcome = (0..count)
                    .try_for_each(|at| each(&Glance { tuple: *(*table).vals.add(at), shape: (*table).tupdesc }));
                pg_sys::SPI_freetuptable(table);
                if outcome.is_err() || count < batch as usize {
                    pg_sys::SPI_cursor_close(portal);
                    return outcome;
                }
            }
        }
    })
}
