//! What every call asks for and hardly anything changes: kept by the session until somebody changes it.
//!
//! The tables it comes from have a trigger that sends an invalidation of `helper.providers` to all sessions, as a change of
//! its definition would; Postgres sends it when the transaction commits, whoever commits it. A session that reads while the
//! change is on its way does not keep what it read, and nothing is kept for longer than [`LONGEST`], so that what has no
//! trigger is seen soon too: a secret in a vault.

use crate::core::error::{self, Error};
use pgrx::prelude::*;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

const LONGEST: Duration = Duration::from_secs(5);

/// Entries of a kind; a session that needs more begins anew.
const MOST: usize = 256;

thread_local! {
    /// The relation whose invalidation tells; unknown before the first use.
    static WATCHED: Cell<pg_sys::Oid> = const { Cell::new(pg_sys::InvalidOid) };
    static LISTENS: Cell<bool> = const { Cell::new(false) };
    static GENERATION: Cell<u64> = const { Cell::new(0) };
}

#[pg_guard]
unsafe extern "C-unwind" fn forget(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    if relation == WATCHED.get() || relation == pg_sys::InvalidOid {
        GENERATION.set(GENERATION.get() + 1);
    }
}

/// The relation that stands for all of them; 42704 where the extension is not there.
fn watched() -> error::Result<pg_sys::Oid> {
    // SAFETY: lookups by name in a transaction.
    let relation = unsafe {
        let schema = pg_sys::get_namespace_oid(c"helper".as_ptr(), true);
        pg_sys::get_relname_relid(c"providers".as_ptr(), schema)
    };
    if relation == pg_sys::InvalidOid {
        return Err(Error::unknown_object("extension \"helper_ai\" does not exist in this database"));
    }
    Ok(relation)
}

/// A kind of things that are kept.
pub struct Kept<K, V>(RefCell<HashMap<K, (u64, Instant, V)>>);

impl<K: Hash + Eq, V: Clone> Kept<K, V> {
    pub fn new() -> Kept<K, V> {
        Kept(RefCell::default())
    }

    /// What is kept for a key, or what `read` finds, which is kept then.
    pub fn get(&self, key: K, read: impl FnOnce() -> error::Result<V>) -> error::Result<V> {
        let now = Instant::now();
        let found = self.0.borrow().get(&key).cloned();
        if let Some((generation, at, value)) = found
            && generation == GENERATION.get()
            && now.duration_since(at) < LONGEST
        {
            return Ok(value);
        }
        WATCHED.set(watched()?);
        if !LISTENS.replace(true) {
            // SAFETY: the function is there as long as the process.
            unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(forget), pg_sys::Datum::from(0)) };
        }
        let generation = GENERATION.get();
        let value = read()?;
        // SAFETY: plain getters. A transaction that keeps one snapshot may have read what is no longer so.
        let snapshot_is_new = unsafe { pg_sys::XactIsoLevel } <= pg_sys::XACT_READ_COMMITTED as i32;
        if snapshot_is_new && generation == GENERATION.get() {
            let mut kept = self.0.borrow_mut();
            if kept.len() >= MOST {
                kept.clear();
            }
            kept.insert(key, (generation, now, value.clone()));
        }
        Ok(value)
    }
}

/// Trigger on the tables.
#[pg_trigger(sql = false)]
fn forget_kept<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<PgHeapTuple<'a, impl WhoAllocated>>, PgHeapTupleError> {
    if let Ok(relation) = watched() {
        // SAFETY: the relation is there; the invalidation is sent when the transaction commits.
        unsafe { pg_sys::CacheInvalidateRelcacheByRelid(relation) };
    }
    Ok(trigger.new())
}
