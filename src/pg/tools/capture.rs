//! What a run changed: rows of the tables that it wrote to, as its caller sees them, before and after.
//!
//! The server counts what a transaction writes to each table. In those, rows that the run wrote carry the numbers of its
//! subtransactions; what was there before is read with a snapshot from then.

use super::reading::{self, Texts};
use super::running::quoted;
use crate::core::error::{Error, Kind, Result};
use crate::core::tool::effect::{self, Changed, Clock, NewKeys, Pair};
use crate::pg::{owner, spi};
use pgrx::prelude::*;
use serde_json::Value;
use std::collections::{HashMap, HashSet};

/// Tables that are larger are not read through: 1 GB in pages of 8 kB.
const MOST_PAGES: i32 = 131_072;

/// Rows that are compared at most; a call that changes more has no preview.
const MOST_COMPARED: usize = 1_000_000;

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
        // SAFETY: a plain getter.
        let own: u32 = unsafe { pg_sys::GetCurrentTransactionIdIfAny() }.into_inner();
        let mut changes = Vec::new();
        if own != 0 {
            let run = Run { own, then: self.snapshot, clock: clock()? };
            let tables = self.written()?;
            let new = run.new_keys(&tables)?;
            for table in &tables {
                changes.push(run.read(table, &new)?);
            }
        }
        Ok(Effect { tables: effect::shown(&changes), hash: effect::hash(&changes) })
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
}

/// The time, and the zone that the session shows it in.
fn clock() -> Result<Clock> {
    // SAFETY: a plain getter.
    let now = unsafe { pg_sys::GetCurrentTimestamp() } / 1000 + 946_684_800_000;
    let zone =
        spi::first("select extract(timezone from clock_timestamp())::int8 * 1000", &[], |row| row.get::<i64>(1))?;
    Ok(Clock { now, zone: zone.unwrap_or_default() })
}

/// A run that is being looked at.
struct Run {
    /// Number of its subtransaction; those inside have later ones.
    own: u32,
    /// What there was before.
    then: pg_sys::Snapshot,
    clock: Clock,
}

impl Run {
    /// Keys that inserted rows were given.
    fn new_keys(&self, tables: &[Table]) -> Result<NewKeys> {
        let mut new = NewKeys::default();
        let mut count = 0;
        for table in tables.iter().filter(|table| table.is_readable && table.counts[0] > 0) {
            let Some(column) = &table.own_key else { continue };
            self.written(table, |row| {
                count += 1;
                if count > MOST_COMPARED {
                    return Err(Error::new(Kind::OverLimit, "the call changes too many rows to be compared")
                        .detail(format!("More than {MOST_COMPARED} rows would be inserted."))
                        .hint("Do it in parts."));
                }
                if row.before.is_none() {
                    new.add(row.after.as_ref().and_then(|row| row.get(column)));
                }
                Ok(())
            })?;
        }
        Ok(new)
    }

    fn read(&self, table: &Table, new: &NewKeys) -> Result<Changed> {
        let mut changed = Changed::new(table.name.clone(), table.references.clone(), table.counts, table.is_readable);
        if table.is_readable {
            let mut add = |row| {
                changed.add(row, new, self.clock);
                Ok(())
            };
            self.written(table, &mut add)?;
            self.gone(table, &mut add)?;
        }
        Ok(changed)
    }

    /// Rows that the run wrote, with what was there before by the same key, as the caller sees both.
    fn written(&self, table: &Table, mut take: impl FnMut(Pair) -> Result<()>) -> Result<()> {
        owner::as_caller(|| {
            reading::batches(&table.query("xmin"), &self.own.to_string(), None, |batch| {
                let rows = self.own_rows(batch)?;
                let mut before = table.by_key(&rows, Some(self.then))?;
                rows.into_iter().try_for_each(|row| {
                    let before = table.key(&row.value).and_then(|key| before.remove(&key));
                    take(Pair { before, after: Some(row.value) })
                })
            })
        })
    }

    /// Rows that were there before the run and are not any more, nor another by the same key.
    fn gone(&self, table: &Table, mut take: impl FnMut(Pair) -> Result<()>) -> Result<()> {
        owner::as_caller(|| {
            reading::batches(&table.query("xmax"), &self.own.to_string(), Some(self.then), |batch| {
                let rows = self.own_rows(batch)?;
                // A row that was locked carries the number too, and is still there.
                let left = table.still_there(&rows)?;
                let now = table.by_key(&rows, None)?;
                rows.into_iter()
                    .filter(|row| !left.contains(&row.place))
                    .filter(|row| table.key(&row.value).is_none_or(|key| !now.contains_key(&key)))
                    .try_for_each(|row| take(Pair { before: Some(row.value), after: None }))
            })
        })
    }

    /// Of what a query of [`Table::query`] gives, the rows that this transaction wrote.
    fn own_rows(&self, batch: Vec<Texts>) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for row in batch {
            let [Some(place), Some(number), Some(value)] = row.as_slice() else { continue };
            let number: u32 = number.parse().map_err(|_| Error::bug("a transaction's number is none"))?;
            // SAFETY: a look at this transaction's own state.
            if unsafe { pg_sys::TransactionIdIsCurrentTransactionId(number.into()) } {
                rows.push(Row { place: place.clone(), value: parsed(value)? });
            }
        }
        Ok(rows)
    }
}

fn parsed(row: &str) -> Result<Value> {
    serde_json::from_str(row).map_err(|_| Error::bug("a row is not JSON"))
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
    /// The same with their types.
    typed_keys: Vec<String>,
    /// The column of the primary key that new rows get a value for which nobody chose.
    own_key: Option<String>,
    /// That, and columns that refer to other tables.
    references: Vec<String>,
    counts: [i64; 3],
    is_partitioned: bool,
    /// The caller may read all of its columns, and it is not too large.
    is_readable: bool,
}

impl Table {
    fn find(oid: u32, counts: [i64; 3]) -> Result<Table> {
        let found = owner::as_owner(|| {
            spi::change(
                "select format('%I.%I', n.nspname, c.relname), c.relkind = 'p', k.names, k.typed, k.own, \
                   has_table_privilege(helper.caller_role(), c.oid, 'select') and has_schema_privilege(helper.caller_role(), n.oid, 'usage'), \
                   t.relpages, \
                   array(select a.attname::text from pg_attribute a where a.attrelid = c.oid and exists ( \
                     select from pg_constraint f where f.contype = 'f' and f.conrelid = c.oid and a.attnum = any (f.conkey))) \
                 from pg_class t join pg_class c on c.oid = coalesce(pg_partition_root(t.oid), t.oid) \
                 join pg_namespace n on n.oid = c.relnamespace \
                 cross join lateral ( \
                   select coalesce(array_agg(a.attname::text order by p.place), '{}') as names, \
                     coalesce(array_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod)) order by p.place), '{}') as typed, \
                     (array_agg(a.attname::text order by p.place desc) filter (where p.place = i.indnkeyatts \
                       and (a.atthasdef or a.attidentity <> '' or i.indnkeyatts = 1 and a.atttypid = 'uuid'::regtype) \
                       and not exists (select from pg_constraint f where f.contype = 'f' and f.conrelid = c.oid and a.attnum = any (f.conkey))))[1] as own \
                   from pg_index i cross join unnest(i.indkey::int2[]) with ordinality p (number, place) \
                   join pg_attribute a on a.attrelid = i.indrelid and a.attnum = p.number \
                   where i.indrelid = c.oid and i.indisprimary and p.place <= i.indnkeyatts) k \
                 where t.oid = $1",
                &[pg_sys::Oid::from(oid).into()],
                |row| {
                    let own_key: Option<String> = row.opt(5)?;
                    let references: Vec<String> = row.get(8)?;
                    Ok(Table {
                        name: row.get(1)?,
                        is_partitioned: row.get(2)?,
                        keys: row.get(3)?,
                        typed_keys: row.get(4)?,
                        references: references.into_iter().chain(own_key.clone()).collect(),
                        own_key,
                        counts,
                        is_readable: row.get::<bool>(6)? && row.get::<i32>(7)? <= MOST_PAGES,
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

    /// A row's key, as text; `None` where the table has none.
    fn key(&self, row: &Value) -> Option<String> {
        if self.keys.is_empty() {
            return None;
        }
        let key: Option<Vec<&Value>> = self.keys.iter().map(|column| row.get(column)).collect();
        key.map(|key| Value::from_iter(key.into_iter().cloned()).to_string())
    }

    /// Rows that have the keys of these, by their key: as they are, or as a snapshot shows them.
    fn by_key(&self, rows: &[Row], snapshot: Option<pg_sys::Snapshot>) -> Result<HashMap<String, Value>> {
        if self.keys.is_empty() || rows.is_empty() {
            return Ok(HashMap::new());
        }
        let names =
            |of: &str| self.keys.iter().map(|key| format!("{of}.{}", quoted(key))).collect::<Vec<_>>().join(", ");
        let sql = format!(
            "select to_jsonb(helper_row)::text from {} where ({}) in (select {} from jsonb_to_recordset($1::jsonb) as helper_key ({}))",
            self.source(),
            names("helper_row"),
            names("helper_key"),
            self.typed_keys.join(", ")
        );
        let keys: Value = rows
            .iter()
            .map(|row| self.keys.iter().map(|key| (key.clone(), row.value[key].clone())).collect::<Value>())
            .collect();
        let mut found = HashMap::new();
        for row in reading::rows(&sql, &keys.to_string(), snapshot)? {
            let Some(Some(text)) = row.first() else { continue };
            let value = parsed(text)?;
            if let Some(key) = self.key(&value) {
                found.insert(key, value);
            }
        }
        Ok(found)
    }

    /// Of rows as they were, the places of those that are still there as they were.
    fn still_there(&self, rows: &[Row]) -> Result<HashSet<String>> {
        let places: Vec<String> =
            rows.iter().filter_map(|row| row.place.find('(').map(|at| format!("\"{}\"", &row.place[at..]))).collect();
        let sql = format!(
            "select helper_row.tableoid::text || helper_row.ctid::text from {} where helper_row.ctid = any ($1::tid[])",
            self.source()
        );
        let found = reading::rows(&sql, &format!("{{{}}}", places.join(",")), None)?;
        Ok(found.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
    }
}

/// A row, and where it is: its table and its place in it.
struct Row {
    place: String,
    value: Value,
}
