//! What a run changed: rows of the tables that it wrote to, as its caller sees them, before and after.
//!
//! The server counts what a transaction writes to each table. In those, rows that the run wrote carry the numbers of its
//! subtransactions; what was there before is read with a snapshot from then.

use super::running::text_rows;
use crate::core::error::{Error, Result};
use crate::core::tool::effect::{self, Changed, MOST_ROWS};
use crate::pg::{owner, spi};
use pgrx::prelude::*;
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// Tables that are larger are not read through: 1 GB in pages of 8 kB.
const MOST_PAGES: i32 = 131_072;

/// The server's state before a run.
pub struct Before {
    snapshot: pg_sys::Snapshot,
    owner: pg_sys::ResourceOwner,
    counts: HashMap<u32, [i64; 3]>,
}

/// What a run changed.
pub struct Effect {
    pub tables: Value,
    pub hash: [u8; 32],
}

impl Before {
    pub fn take() -> Result<Before> {
        // SAFETY: a plain flag.
        if !unsafe { pg_sys::pgstat_track_counts } {
            return Err(Error::not_ready("previews need the setting track_counts to be on"));
        }
        let counts = counts()?;
        // SAFETY: the copy is of now, with all that was done before; it is registered until this is dropped.
        let (snapshot, owner) = unsafe {
            pg_sys::CommandCounterIncrement();
            pg_sys::PushCopiedSnapshot(pg_sys::GetTransactionSnapshot());
            let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetActiveSnapshot());
            pg_sys::PopActiveSnapshot();
            (snapshot, pg_sys::CurrentResourceOwner)
        };
        Ok(Before { snapshot, owner, counts })
    }

    /// What was changed since, inside the subtransaction that did it.
    pub fn effect(&self) -> Result<Effect> {
        // SAFETY: plain getters.
        let (own, now) = unsafe { (pg_sys::GetCurrentTransactionIdIfAny(), pg_sys::GetCurrentTimestamp()) };
        let own: u32 = own.into_inner();
        let mut changes = Vec::new();
        if own != 0 {
            for table in self.written()? {
                changes.push(self.read(table, own)?);
            }
        }
        let now = now / 1000 + 946_684_800_000;
        Ok(Effect { tables: effect::shown(&changes), hash: effect::hash(&changes, now) })
    }

    /// Tables that were written to, partitions as the table that they are of.
    fn written(&self) -> Result<Vec<Table>> {
        let mut tables: Vec<Table> = Vec::new();
        for (oid, now) in counts()? {
            let then = self.counts.get(&oid).copied().unwrap_or_default();
            let counts = [now[0] - then[0], now[1] - then[1], now[2] - then[2]];
            if counts == [0; 3] {
                continue;
            }
            let table = Table::find(oid, counts)?;
            match tables.iter_mut().find(|other| other.name == table.name) {
                Some(other) => (0..3).for_each(|at| other.counts[at] += counts[at]),
                None => tables.push(table),
            }
        }
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tables)
    }

    fn read(&self, table: Table, own: u32) -> Result<Changed> {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        if table.is_readable {
            owner::as_caller(|| {
                after = rows(&table.query("xmin"), own, None)?;
                before = rows(&table.query("xmax"), own, Some(self.snapshot))?;
                // A row that was locked carries the number too, and is still there.
                let left = still_there(&table, &before)?;
                before.retain(|row| !left.contains(&row.place));
                Ok(())
            })?;
        }
        let values = |rows: Vec<Row>| rows.into_iter().map(|row| row.value).collect();
        Ok(Changed {
            table: table.name,
            keys: table.keys,
            counts: table.counts,
            is_whole: table.is_readable && before.len() <= MOST_ROWS && after.len() <= MOST_ROWS,
            before: values(before),
            after: values(after),
        })
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        // At an error of the transaction its end does it.
        if !std::thread::panicking() {
            // SAFETY: registered with this owner.
            unsafe { pg_sys::UnregisterSnapshotFromOwner(self.snapshot, self.owner) };
        }
    }
}

/// Rows inserted, updated and deleted in this transaction, by table.
fn counts() -> Result<HashMap<u32, [i64; 3]>> {
    let rows = owner::as_owner(|| {
        spi::change(
            "select s.oid, s.inserted, s.updated, s.deleted from ( \
               select c.oid, pg_stat_get_xact_tuples_inserted(c.oid) as inserted, pg_stat_get_xact_tuples_updated(c.oid) as updated, \
                 pg_stat_get_xact_tuples_deleted(c.oid) as deleted \
               from pg_class c \
               where c.relkind = 'r' and c.relpersistence <> 't' and c.relnamespace <> 'pg_catalog'::regnamespace) s \
             where s.inserted + s.updated + s.deleted > 0",
            &[],
            |row| Ok((row.get::<pg_sys::Oid>(1)?.to_u32(), [row.get(2)?, row.get(3)?, row.get(4)?])),
        )
    })?;
    Ok(rows.into_iter().collect())
}

struct Table {
    name: String,
    keys: Vec<String>,
    counts: [i64; 3],
    is_partitioned: bool,
    /// The caller may read all of its columns, and it is not too large.
    is_readable: bool,
}

impl Table {
    fn find(oid: u32, counts: [i64; 3]) -> Result<Table> {
        let found = owner::as_owner(|| {
            spi::change(
                "select format('%I.%I', n.nspname, c.relname), c.relkind = 'p', \
                   array(select a.attname::text from pg_index i cross join unnest(i.indkey::int2[]) with ordinality k (number, place) \
                     join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number \
                     where i.indrelid = c.oid and i.indisprimary order by k.place), \
                   has_table_privilege(helper.caller_role(), c.oid, 'select') and has_schema_privilege(helper.caller_role(), n.oid, 'usage'), \
                   t.relpages \
                 from pg_class t join pg_class c on c.oid = coalesce(pg_partition_root(t.oid), t.oid) \
                 join pg_namespace n on n.oid = c.relnamespace where t.oid = $1",
                &[pg_sys::Oid::from(oid).into()],
                |row| {
                    Ok(Table {
                        name: row.get(1)?,
                        is_partitioned: row.get(2)?,
                        keys: row.get(3)?,
                        counts,
                        is_readable: row.get::<bool>(4)? && row.get::<i32>(5)? <= MOST_PAGES,
                    })
                },
            )
        })?;
        // A table that the run made and dropped again is none.
        found.into_iter().next().ok_or_else(|| Error::bug("a table that was written to does not exist"))
    }

    fn source(&self) -> String {
        format!("{}{} as helper_row", if self.is_partitioned { "" } else { "only " }, self.name)
    }

    /// Rows whose number in a system column is the run's or later.
    fn query(&self, column: &str) -> String {
        format!(
            "select helper_row.tableoid::text || helper_row.ctid::text, helper_row.{column}::text, to_jsonb(helper_row)::text \
             from {} where age(helper_row.{column}) <= age($1::xid)",
            self.source()
        )
    }
}

struct Row {
    /// Table and place in it.
    place: String,
    value: Value,
}

/// Rows that a query of [`Table::query`] gives and that this transaction wrote.
fn rows(sql: &str, own: u32, snapshot: Option<pg_sys::Snapshot>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for row in text_rows(sql, &own.to_string(), snapshot)? {
        let [Some(place), Some(number), Some(value)] = row.as_slice() else { continue };
        let number: u32 = number.parse().map_err(|_| Error::bug("a transaction's number is none"))?;
        // SAFETY: a look at this transaction's own state.
        if rows.len() <= MOST_ROWS && unsafe { pg_sys::TransactionIdIsCurrentTransactionId(number.into()) } {
            let value = serde_json::from_str(value).map_err(|_| Error::bug("a row is not JSON"))?;
            rows.push(Row { place: place.clone(), value });
        }
    }
    Ok(rows)
}

/// Of rows as they were, those that are still there as they were.
fn still_there(table: &Table, rows: &[Row]) -> Result<HashSet<String>> {
    let places: Vec<String> =
        rows.iter().filter_map(|row| row.place.find('(').map(|at| format!("\"{}\"", &row.place[at..]))).collect();
    let sql = format!(
        "select helper_row.tableoid::text || helper_row.ctid::text from {} where helper_row.ctid = any ($1::tid[])",
        table.source()
    );
    let found = text_rows(&sql, &format!("{{{}}}", places.join(",")), None)?;
    Ok(found.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}
