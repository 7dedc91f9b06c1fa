//! Every fire time of a year by the planner and by croniter, which differ only where the clock on the wall jumps:
//!
//! - In the hour that comes twice, what is written out without `*` fires once, where croniter fires twice; what has a `*`
//!   fires both times, where croniter passes over the second one if the jump is shorter than the hour before it.
//! - A time that the clock jumped over is not made up for where there is a `*`; croniter moves it to the end of the gap
//!   unless the hour is a plain `*`.

#![allow(clippy::unwrap_used, clippy::panic)]

use helper_ai::core::cron::{Time, Times};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

const EXPRESSIONS: [&str; 20] = [
    "*/30 * * * *",
    "0 9 * * *",
    "0 9 * * 1",
    "30 2 * * *",
    "30 1 * * *",
    "15 2 * * 0",
    "0,30 1-3 * * *",
    "*/15 2 * * *",
    "*/20 1 * * *",
    "7 */3 * * *",
    "0 0 1 * *",
    "0 0 29 2,3 *",
    "59 23 31 * *",
    "0 12 * JAN,JUL MON-FRI",
    "0 0 13 * 5",
    "45 1 1-7 * *",
    "5-10/2 2,14 * * *",
    "0 2 * 3,4,10,11 *",
    "30 15 9 * * *",
    "*/30 59 */6 * * 6",
];
const ZONES: [&str; 4] = ["Asia/Jakarta", "America/New_York", "Australia/Lord_Howe", "UTC"];

/// 2026 in UTC, a little more on both sides; seconds since 1970.
const BEGIN: i64 = 1_767_139_200;
const END: i64 = 1_798_848_000;

/// The jumps of 2026: when, and by how many seconds the clock is put forward.
fn jumps(zone: &str) -> &'static [(i64, i64)] {
    match zone {
        "America/New_York" => &[(1_772_953_200, 3600), (1_793_512_800, -3600)],
        "Australia/Lord_Howe" => &[(1_775_314_800, -1800), (1_791_041_400, 1800)],
        _ => &[],
    }
}

fn by_croniter(wanted: &Value) -> Vec<Vec<i64>> {
    let cache = std::env::var_os("HELPER_CACHE").map(PathBuf::from);
    let python = cache.map(|cache| cache.join("test-venv/bin/python")).filter(|python| python.exists());
    let python =
        python.unwrap_or_else(|| panic!("run \"scripts/setup test\", and these tests after \". scripts/env\""));
    let mut program = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cron/fires.py"))
        // No zone of the system's, which may be older.
        .env("PYTHONTZPATH", "")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    program.stdin.take().unwrap().write_all(wanted.to_string().as_bytes()).unwrap();
    let output = program.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn by_us(expression: &str, zone: &str) -> Vec<i64> {
    let times = Times::read(expression, zone).unwrap();
    let after = |time: Time| times.after(time);
    std::iter::successors(after(BEGIN * 1000), |fire| after(*fire))
        .map(|fire| fire / 1000)
        .take_while(|fire| *fire < END)
        .collect()
}

/// Who fires alone, by the rules above; `None` where both have to.
fn alone(expression: &str, zone: &str, fire: i64) -> Option<&'static str> {
    let fields = expression.split(' ').count();
    let fixed = !expression.split(' ').take(fields - 3).any(|field| field.contains('*'));
    jumps(zone).iter().find_map(|(jump, by)| {
        let again = *by < 0 && (*jump..*jump - *by).contains(&fire);
        match fixed {
            true => again.then_some("croniter"),
            false if *by > 0 && *jump == fire => Some("croniter"),
            false => again.then_some("we"),
        }
    })
}

#[test]
fn every_fire_time_of_a_year_is_croniters_but_where_the_clock_jumps() {
    let pairs: Vec<(&str, &str)> =
        EXPRESSIONS.iter().flat_map(|expression| ZONES.iter().map(move |zone| (*expression, *zone))).collect();
    let wanted: Vec<Value> = pairs.iter().map(|(expression, zone)| json!([expression, zone, BEGIN, END])).collect();
    let theirs = by_croniter(&wanted.into());
    let (mut compared, mut differ) = (0, Vec::new());
    for ((expression, zone), theirs) in pairs.iter().zip(theirs) {
        let ours = by_us(expression, zone);
        compared += ours.len();
        assert!(ours.is_sorted_by(|one, next| one < next), "{expression} {zone}");
        let (ours, theirs): (BTreeSet<i64>, BTreeSet<i64>) = (ours.into_iter().collect(), theirs.into_iter().collect());
        for (who, fire) in ours
            .difference(&theirs)
            .map(|fire| ("we", fire))
            .chain(theirs.difference(&ours).map(|fire| ("croniter", fire)))
        {
            assert_eq!(alone(expression, zone, *fire), Some(who), "{expression} in {zone} at {fire}");
            differ.push(format!("{who} alone: {expression} in {zone} at {fire}"));
        }
    }
    println!("{compared} fire times compared; {differ:#?}");
    assert!(compared > 100_000);
    assert_eq!(differ.len(), 9);
}
