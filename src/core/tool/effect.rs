//! What a run of a tool changes, as rows before and after, and whether two runs change the same.
//!
//! Two runs of one call never write quite the same: identifiers are new and clocks go on. So a new row's key counts as
//! new wherever it stands, and a time of about now as now. Rows come one after the other in any order, and none is kept
//! but those that are shown.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashSet;

/// Rows of a table that are shown at most.
pub const MOST_ROWS: usize = 100;

/// Milliseconds within which a time is about now.
const ABOUT: i64 = 60_000;

/// Milliseconds by whole numbers of which zones are apart.
const QUARTER: i64 = 15 * 60_000;

/// When and where a run was, in milliseconds: since 1970, and how far the session's zone is ahead of UTC.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Now.
    pub now: i64,
    /// The session's zone.
    pub zone: i64,
}

/// A row before and after; one of them may be absent.
#[derive(Clone, Debug)]
pub struct Pair {
    /// As it was.
    pub before: Option<Value>,
    /// As it is.
    pub after: Option<Value>,
}

/// Keys of all rows that were inserted, as digests.
#[derive(Default)]
pub struct NewKeys(HashSet<u128>);

impl NewKeys {
    /// Adds a key; one that is null or absent is none.
    pub fn add(&mut self, key: Option<&Value>) {
        if let Some(key) = key.filter(|key| !key.is_null()) {
            self.0.insert(Self::digest(key));
        }
    }

    fn contains(&self, value: &Value) -> bool {
        !self.0.is_empty() && self.0.contains(&Self::digest(value))
    }

    fn digest(value: &Value) -> u128 {
        let digest: [u8; 32] = Sha256::digest(value.to_string()).into();
        digest.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte))
    }
}

/// What a run changed in one table.
pub struct Changed {
    /// Its name with its schema.
    pub table: String,
    /// Columns whose values are keys, its own or another table's.
    pub references: Vec<String>,
    /// Rows that were inserted, updated and deleted, as the server counts them.
    pub counts: [i64; 3],
    /// The first of its rows.
    rows: Vec<Pair>,
    /// These are all of them.
    is_whole: bool,
    sum: Sum,
}

impl Changed {
    /// A table of which no row is known yet; `is_readable` says that all will be.
    pub fn new(table: String, references: Vec<String>, counts: [i64; 3], is_readable: bool) -> Self {
        Changed { table, references, counts, rows: Vec::new(), is_whole: is_readable, sum: Sum::default() }
    }

    /// Takes a row that changed; the order does not matter.
    pub fn add(&mut self, row: Pair, new: &NewKeys, clock: Clock) {
        let after = row.after.as_ref().map(|after| self.normal(row.before.as_ref(), after, new, clock));
        self.sum.add(&json!([row.before, after]).to_string());
        if self.rows.len() < MOST_ROWS {
            self.rows.push(row);
        } else {
            self.is_whole = false;
        }
    }

    fn normal(&self, before: Option<&Value>, after: &Value, new: &NewKeys, clock: Clock) -> Value {
        let Value::Object(row) = after else { return after.clone() };
        let mut normal = Map::new();
        for (column, value) in row {
            let is_as_before = before.is_some_and(|before| before.get(column) == Some(value));
            // A number may be a key and a quantity; a column that refers to something says so.
            let may_refer = value.is_string() || self.references.contains(column) || column.ends_with("id");
            let value = if is_as_before {
                value.clone()
            } else if may_refer && new.contains(value) {
                json!({ "new": true })
            } else if let Some(now) = value.as_str().and_then(|text| now(text, clock)) {
                json!({ "now": now })
            } else {
                value.clone()
            };
            normal.insert(column.clone(), value);
        }
        Value::Object(normal)
    }
}

/// A sum of rows that does not depend on their order and takes the same room for any number of them: LtHash, with 1024
/// lanes of 16 bits, which nobody finds two lists of rows for.
struct Sum(Box<[u16; 1024]>);

impl Default for Sum {
    fn default() -> Self {
        Sum(Box::new([0; 1024]))
    }
}

impl Sum {
    fn add(&mut self, row: &str) {
        let seed = Sha256::digest(row);
        for (number, lanes) in (0_u32..).zip(self.0.chunks_exact_mut(16)) {
            let block = Sha256::new().chain_update(seed).chain_update(number.to_be_bytes()).finalize();
            for (lane, pair) in lanes.iter_mut().zip(block.chunks_exact(2)) {
                *lane = lane.wrapping_add(u16::from(pair[0]) << 8 | u16::from(pair[1]));
            }
        }
    }

    fn bytes(&self) -> impl Iterator<Item = u8> {
        self.0.iter().flat_map(|lane| lane.to_be_bytes())
    }
}

/// What changed, to be shown to who approves.
pub fn shown(changes: &[Changed]) -> Value {
    changes
        .iter()
        .map(|change| {
            let rows: Vec<Value> =
                change.rows.iter().map(|row| json!({ "before": row.before, "after": row.after })).collect();
            let [inserted, updated, deleted] = change.counts;
            json!({
                "table": change.table,
                "inserted": inserted,
                "updated": updated,
                "deleted": deleted,
                "rows": rows,
                "is_whole": change.is_whole,
            })
        })
        .collect()
}

/// SHA-256 of all that changed, with new keys and present times alike in every run. Each table comes once, in one order.
pub fn hash(changes: &[Changed]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for change in changes {
        hash.update(json!([change.table, change.counts]).to_string());
        hash.update(change.sum.bytes().collect::<Vec<u8>>());
    }
    hash.finalize().into()
}

/// What a text says of now, where it is a time of about now. One without a zone is in the session's or in UTC; or else
/// in another that the function chose, where it has parts of a second, as a clock gives and people do not write.
fn now(text: &str, clock: Clock) -> Option<Value> {
    let time = time(text)?;
    let apart = time.at - clock.now;
    let is_about = |apart: i64| apart.abs() <= ABOUT;
    if is_about(apart) || !time.has_zone && is_about(apart - clock.zone) {
        return Some(json!(true));
    }
    let quarters = (apart + QUARTER / 2).div_euclid(QUARTER);
    let is_elsewhere = !time.has_zone && time.has_parts && quarters.abs() <= 4 * 15;
    (is_elsewhere && is_about(apart - quarters * QUARTER)).then(|| json!(quarters))
}

/// A time as `to_jsonb` writes it.
#[derive(Debug, PartialEq)]
struct Time {
    /// Milliseconds since 1970, as if in UTC where it has no zone; without parts of a second.
    at: i64,
    has_zone: bool,
    /// It has parts of a second other than 0.
    has_parts: bool,
}

fn time(text: &str) -> Option<Time> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok().filter(|number| *number >= 0);
    let mark = |at: usize, wanted: u8| text.as_bytes().get(at) == Some(&wanted);
    if !(mark(4, b'-') && mark(7, b'-') && mark(10, b'T') && mark(13, b':') && mark(16, b':')) {
        return None;
    }
    let seconds = days(number(0, 4)?, number(5, 7)?, number(8, 10)?) * 86_400
        + number(11, 13)? * 3600
        + number(14, 16)? * 60
        + number(17, 19)?;
    let rest = text.get(19..)?;
    let zone = rest.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let has_parts = rest[..rest.len() - zone.len()].contains(|c: char| ('1'..='9').contains(&c));
    if zone.is_empty() {
        return Some(Time { at: seconds * 1000, has_zone: false, has_parts });
    }
    let sign = match zone.as_bytes()[0] {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let mut parts = zone[1..].split(':').map(|part| part.parse::<i64>().ok());
    let (hours, minutes) = (parts.next()??, parts.next().unwrap_or(Some(0))?);
    let at = (seconds - sign * (hours.checked_mul(3600)? + minutes.checked_mul(60)?)) * 1000;
    Some(Time { at, has_zone: true, has_parts })
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    // 2026-11-23T08:00:00Z
    const NOW: i64 = 1_795_420_800_000;
    const UTC: Clock = Clock { now: NOW, zone: 0 };

    /// A note that was inserted.
    fn note(id: Value, parent: Value, at: &str, text: &str) -> Pair {
        let after = json!({ "id": id, "parent_id": parent, "at": at, "text": text, "count": 7 });
        Pair { before: None, after: Some(after) }
    }

    /// The hash of these rows of one table, whose own keys are new.
    fn hashed(rows: &[Pair], clock: Clock) -> [u8; 32] {
        let mut new = NewKeys::default();
        for row in rows.iter().filter(|row| row.before.is_none()) {
            new.add(row.after.as_ref().and_then(|row| row.get("id")));
        }
        let mut changed = Changed::new("public.notes".into(), vec!["id".into()], [rows.len() as i64, 0, 0], true);
        rows.iter().for_each(|row| changed.add(row.clone(), &new, clock));
        hash(&[changed])
    }

    #[test]
    fn times_are_read_as_postgres_writes_them() {
        let read = |text: &str| time(text).map(|time| (time.at, time.has_zone, time.has_parts));
        assert_eq!(read("2026-11-23T08:00:00+00:00"), Some((NOW, true, false)));
        assert_eq!(read("2026-11-23T15:00:00.123456+07:00"), Some((NOW, true, true)));
        assert_eq!(read("2026-11-23T02:30:00-05:30"), Some((NOW, true, false)));
        assert_eq!(read("2026-11-23T08:00:00.5"), Some((NOW, false, true)));
        assert_eq!(read("2026-11-23T08:00:00.000"), Some((NOW, false, false)));
        assert_eq!(read("1970-01-01T00:00:00+00"), Some((0, true, false)));
        for other in ["2026-11-23", "yesterday", "", "2026-11-23T08:00:00Z?", "2026-1é-23T08:00:00"] {
            assert_eq!(time(other), None, "{other}");
        }
    }

    #[test]
    fn the_same_effect_has_the_same_hash_later_and_with_other_keys() {
        let first = hashed(&[note(json!(7), json!(7), "2026-11-23T08:00:01+00:00", "a")], UTC);
        let later = [note(json!(8), json!(8), "2026-11-23T09:00:01+00:00", "a")];
        assert_eq!(first, hashed(&later, Clock { now: NOW + 3_600_000, zone: 0 }));
        // In another order, and with uuids for keys.
        let uuid = |key: &str, text: &str| note(json!(key), json!(null), "2026-11-23T08:00:01+00:00", text);
        assert_eq!(hashed(&[uuid("0a", "x"), uuid("0b", "y")], UTC), hashed(&[uuid("0d", "y"), uuid("0c", "x")], UTC));
        assert_ne!(hashed(&[uuid("0a", "x"), uuid("0b", "x")], UTC), hashed(&[uuid("0a", "x"), uuid("0b", "y")], UTC));
    }

    #[test]
    fn a_time_without_a_zone_is_now_in_its_own_zone_alone() {
        let at = |text: &str, clock| hashed(&[note(json!(1), json!(null), text, "a")], clock);
        let jakarta = Clock { now: NOW, zone: 7 * 3_600_000 };
        // The session's zone, another day, and the worker's, which is UTC.
        assert_eq!(
            at("2026-11-23T15:00:00", jakarta),
            at("2026-11-24T15:00:30", Clock { now: NOW + 86_400_000, ..jakarta })
        );
        assert_eq!(at("2026-11-23T15:00:00", jakarta), at("2026-11-23T08:00:09", UTC));
        // A zone that the function chose: a clock's time, an hour apart another one, and one that somebody wrote.
        let now = at("2026-11-23T17:00:01.25", UTC);
        assert_eq!(now, at("2026-11-23T17:00:30.5", UTC));
        let others = ["2026-11-23T18:00:01.25", "2026-11-23T17:00:00", "2026-11-23T10:00:00", "2026-11-23T09:00:00"];
        let mut all = vec![now, at("2026-11-23T08:00:00", UTC)];
        for other in others {
            let hash = at(other, UTC);
            assert!(!all.contains(&hash), "{other}");
            all.push(hash);
        }
    }

    #[test]
    fn another_effect_has_another_hash() {
        let one = note(json!(7), json!(3), "2026-11-23T08:00:01+00:00", "a");
        let mut all = vec![hash(&[]), hashed(std::slice::from_ref(&one), UTC)];
        for other in [
            note(json!(7), json!(4), "2026-11-23T08:00:01+00:00", "a"),
            note(json!(7), json!(3), "2026-11-24T08:00:01+00:00", "a"),
            note(json!(7), json!(3), "2026-11-23T08:00:01+00:00", "b"),
            Pair { before: Some(json!({ "id": 7, "text": "before" })), ..one.clone() },
            Pair { before: one.after.clone(), after: None },
        ] {
            let hash = hashed(&[other], UTC);
            assert!(!all.contains(&hash));
            all.push(hash);
        }
        let empty = |table: &str, counts| hash(&[Changed::new(table.into(), Vec::new(), counts, false)]);
        assert_ne!(empty("public.a", [1, 0, 0]), empty("public.b", [1, 0, 0]));
        assert_ne!(empty("public.a", [1, 0, 0]), empty("public.a", [2, 0, 0]));
    }

    #[test]
    fn every_row_counts_and_a_hundred_are_shown() {
        let rows = |last: &str| {
            let text = |n: i32| if n == 2000 { last.to_owned() } else { n.to_string() };
            (1..=2000).map(|n| note(json!(n), json!(null), "never", &text(n))).collect::<Vec<Pair>>()
        };
        assert_ne!(hashed(&rows("a"), UTC), hashed(&rows("b"), UTC));
        let mut changed = Changed::new("public.notes".into(), vec!["id".into()], [2000, 0, 0], true);
        rows("a").into_iter().for_each(|row| changed.add(row, &NewKeys::default(), UTC));
        let shown = shown(&[changed]);
        assert_eq!((shown[0]["rows"].as_array().unwrap().len(), &shown[0]["is_whole"]), (100, &json!(false)));
    }

    #[test]
    fn rows_before_and_after_stand_together() {
        let mut change = Changed::new("public.stock".into(), vec!["id".into()], [0, 1, 1], true);
        for row in [
            Pair { before: Some(json!({ "id": 2, "n": 3 })), after: Some(json!({ "id": 2, "n": 4 })) },
            Pair { before: Some(json!({ "id": 1, "n": 5 })), after: None },
        ] {
            change.add(row, &NewKeys::default(), UTC);
        }
        assert_eq!(
            shown(&[change]),
            json!([{
                "table": "public.stock", "inserted": 0, "updated": 1, "deleted": 1, "is_whole": true,
                "rows": [
                    { "before": { "id": 2, "n": 3 }, "after": { "id": 2, "n": 4 } },
                    { "before": { "id": 1, "n": 5 }, "after": null },
                ],
            }])
        );
    }

    proptest::proptest! {
        #[test]
        fn no_text_breaks_the_clock(text in "\\PC{0,30}", digits in "[0-9T:.+-]{0,32}") {
            now(&text, UTC);
            now(&digits, UTC);
        }
    }
}
