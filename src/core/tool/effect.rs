//! What a run of a tool changes, as rows before and after, and whether two runs change the same.
//!
//! Two runs of one call never write quite the same: identifiers are new and clocks go on. So a new row's key counts as
//! new wherever it stands, and a time of about now as now.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Rows of a table that are shown at most.
pub const MOST_ROWS: usize = 100;

/// Milliseconds within which a time is about now.
const ABOUT: i64 = 60_000;

/// What a run changed in one table.
#[derive(Clone, Debug, Default)]
pub struct Changed {
    /// Its name with its schema.
    pub table: String,
    /// Columns of its primary key.
    pub keys: Vec<String>,
    /// Rows that were inserted, updated and deleted, as the server counts them.
    pub counts: [i64; 3],
    /// Rows that are not there any more as they were.
    pub before: Vec<Value>,
    /// Rows that were not there before as they are.
    pub after: Vec<Value>,
    /// These are all of them.
    pub is_whole: bool,
}

/// A row before and after; one of them may be absent.
type Pair<'a> = (Option<&'a Value>, Option<&'a Value>);

impl Changed {
    fn key(&self, row: &Value) -> Option<Vec<Value>> {
        if self.keys.is_empty() {
            return None;
        }
        self.keys.iter().map(|column| row.get(column).cloned()).collect()
    }

    /// Rows by their primary key, in the order in which they are now.
    fn pairs(&self) -> Vec<Pair<'_>> {
        let mut left: Vec<&Value> = self.before.iter().collect();
        let mut pairs = Vec::new();
        for after in &self.after {
            let key = self.key(after);
            let at = left.iter().position(|before| key.is_some() && self.key(before) == key);
            pairs.push((at.map(|at| left.remove(at)), Some(after)));
        }
        pairs.extend(left.into_iter().map(|before| (Some(before), None)));
        pairs
    }
}

/// What changed, to be shown to who approves.
pub fn shown(changes: &[Changed]) -> Value {
    changes
        .iter()
        .map(|change| {
            let pairs = change.pairs();
            let rows: Vec<Value> = pairs
                .iter()
                .take(MOST_ROWS)
                .map(|(before, after)| json!({ "before": before, "after": after }))
                .collect();
            let [inserted, updated, deleted] = change.counts;
            json!({
                "table": change.table,
                "inserted": inserted,
                "updated": updated,
                "deleted": deleted,
                "rows": rows,
                "is_whole": change.is_whole && rows.len() == pairs.len(),
            })
        })
        .collect()
}

/// SHA-256 of what changed, with new keys and present times alike in every run. `now` is in milliseconds since 1970.
pub fn hash(changes: &[Changed], now: i64) -> [u8; 32] {
    let new = new_keys(changes);
    let mut tables: Vec<String> = changes
        .iter()
        .map(|change| {
            let mut rows: Vec<String> = change
                .pairs()
                .into_iter()
                .map(|(before, after)| {
                    let after = after.map(|after| normal(change, before, after, &new, now));
                    json!([before, after]).to_string()
                })
                .collect();
            rows.sort_unstable();
            json!([change.table, change.counts, rows]).to_string()
        })
        .collect();
    tables.sort_unstable();
    Sha256::digest(tables.join("\n")).into()
}

/// Keys of all rows that were inserted.
fn new_keys(changes: &[Changed]) -> Vec<Value> {
    let mut keys = Vec::new();
    for change in changes {
        for (before, after) in change.pairs() {
            if let (None, Some(after)) = (before, after) {
                // A key that was there before is a reference, to the workspace say, and no news.
                let is_known = |key: &Value| change.before.iter().any(|row| holds(row, key));
                keys.extend(
                    change.keys.last().and_then(|column| after.get(column)).filter(|key| !is_known(key)).cloned(),
                );
            }
        }
    }
    keys
}

fn holds(row: &Value, value: &Value) -> bool {
    row.as_object().is_some_and(|row| row.values().any(|other| other == value))
}

fn normal(change: &Changed, before: Option<&Value>, after: &Value, new: &[Value], now: i64) -> Value {
    let Value::Object(row) = after else { return after.clone() };
    let mut normal = Map::new();
    for (column, value) in row {
        let is_as_before = before.is_some_and(|before| before.get(column) == Some(value));
        // A number may be a key and a quantity; a column that refers to something says so.
        let may_refer = value.is_string() || change.keys.contains(column) || column.ends_with("id");
        let value = if is_as_before {
            value.clone()
        } else if may_refer && new.contains(value) {
            json!({ "new": true })
        } else if value.as_str().is_some_and(|text| is_about(text, now)) {
            json!({ "now": true })
        } else {
            value.clone()
        };
        normal.insert(column.clone(), value);
    }
    Value::Object(normal)
}

/// Whether a text is a time of about now. One without a zone is in some zone: hours apart, and quarters of them.
fn is_about(text: &str, now: i64) -> bool {
    match time(text) {
        Some((at, true)) => (at - now).abs() <= ABOUT,
        Some((at, false)) => {
            const QUARTER: i64 = 15 * 60_000;
            let apart = (at - now).rem_euclid(QUARTER);
            (at - now).abs() <= 15 * 4 * QUARTER && apart.min(QUARTER - apart) <= ABOUT
        }
        None => false,
    }
}

/// Milliseconds since 1970 of a time as `to_jsonb` writes it, and whether it says its zone.
fn time(text: &str) -> Option<(i64, bool)> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok().filter(|number| *number >= 0);
    let mark = |at: usize, wanted: u8| text.as_bytes().get(at) == Some(&wanted);
    if !(mark(4, b'-') && mark(7, b'-') && mark(10, b'T') && mark(13, b':') && mark(16, b':')) {
        return None;
    }
    let seconds = days(number(0, 4)?, number(5, 7)?, number(8, 10)?) * 86_400
        + number(11, 13)? * 3600
        + number(14, 16)? * 60
        + number(17, 19)?;
    let rest = text.get(19..)?.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    if rest.is_empty() {
        return Some((seconds * 1000, false));
    }
    let sign = match rest.as_bytes()[0] {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let mut parts = rest[1..].split(':').map(|part| part.parse::<i64>().ok());
    let (hours, minutes) = (parts.next()??, parts.next().unwrap_or(Some(0))?);
    Some(((seconds - sign * (hours * 3600 + minutes * 60)) * 1000, true))
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

    fn insert(id: Value, parent: Value, at: &str, text: &str) -> Changed {
        Changed {
            table: "public.notes".into(),
            keys: vec!["id".into()],
            counts: [1, 0, 0],
            before: Vec::new(),
            after: vec![json!({ "id": id, "parent_id": parent, "at": at, "text": text, "count": 7 })],
            is_whole: true,
        }
    }

    #[test]
    fn times_are_read_as_postgres_writes_them() {
        assert_eq!(time("2026-11-23T08:00:00+00:00"), Some((NOW, true)));
        assert_eq!(time("2026-11-23T15:00:00.123456+07:00"), Some((NOW, true)));
        assert_eq!(time("2026-11-23T02:30:00-05:30"), Some((NOW, true)));
        assert_eq!(time("2026-11-23T08:00:00.5"), Some((NOW, false)));
        assert_eq!(time("1970-01-01T00:00:00+00"), Some((0, true)));
        for other in ["2026-11-23", "yesterday", "", "2026-11-23T08:00:00Z?", "2026-1é-23T08:00:00"] {
            assert_eq!(time(other), None, "{other}");
        }
    }

    #[test]
    fn the_same_effect_has_the_same_hash_later_and_with_other_keys() {
        let first = hash(&[insert(json!(7), json!(7), "2026-11-23T08:00:01+00:00", "a")], NOW);
        let later = [insert(json!(8), json!(8), "2026-11-23T09:00:01+00:00", "a")];
        assert_eq!(first, hash(&later, NOW + 3_600_000));
        // In a zone of its own, and with a uuid for a key.
        let uuid = |text: &str, at: &str| hash(&[insert(json!(text), json!(null), at, "a")], NOW);
        assert_eq!(uuid("0a", "2026-11-23T15:00:00"), uuid("0b", "2026-11-23T15:00:30"));
    }

    #[test]
    fn another_effect_has_another_hash() {
        let one = insert(json!(7), json!(3), "2026-11-23T08:00:01+00:00", "a");
        let mut all = vec![hash(&[], NOW), hash(std::slice::from_ref(&one), NOW)];
        for other in [
            insert(json!(7), json!(4), "2026-11-23T08:00:01+00:00", "a"),
            insert(json!(7), json!(3), "2026-11-24T08:00:01+00:00", "a"),
            insert(json!(7), json!(3), "2026-11-23T08:00:01+00:00", "b"),
            Changed { table: "public.others".into(), ..one.clone() },
            Changed { counts: [2, 0, 0], ..one.clone() },
            Changed { before: vec![json!({ "id": 7, "text": "before" })], ..one.clone() },
        ] {
            let hash = hash(&[other], NOW);
            assert!(!all.contains(&hash));
            all.push(hash);
        }
    }

    #[test]
    fn rows_before_and_after_stand_together() {
        let change = Changed {
            table: "public.stock".into(),
            keys: vec!["id".into()],
            counts: [0, 1, 1],
            before: vec![json!({ "id": 1, "n": 5 }), json!({ "id": 2, "n": 3 })],
            after: vec![json!({ "id": 2, "n": 4 })],
            is_whole: true,
        };
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
            time(&text);
            time(&digits);
        }
    }
}
