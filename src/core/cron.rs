//! When a schedule fires. In: a cron expression, a time zone, what is to be done about times that were missed, how far it
//! came, and what time it is. Out: the fire times to start now and when to look again. The clock is never read here.
//!
//! An expression speaks of the clock on the wall. Where that clock jumps, the rule is that of Vixie's cron:
//!
//! - An expression whose seconds, minutes and hours are all written out, without `*`, fires once for each time that it
//!   names: at the end of the gap where the clock jumps over it, and the first time round where the clock shows it twice.
//! - One with a `*` in them is about intervals, and fires whenever the wall shows what it names: not in the gap, and in
//!   both of the hours that look alike.

use crate::core::error::{Error, Result};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use sha2::{Digest, Sha256};

/// Milliseconds since 1970, UTC.
pub type Time = i64;
/// Milliseconds.
pub type Span = i64;

/// Fire times that one plan starts at most; what is left is for the next, at once.
pub const MOST: usize = 100;
/// A fire time is on time for so long.
const GRACE: Span = 60_000;
/// Characters of an expression at most.
const LONGEST: usize = 200;

/// An expression in a time zone.
pub struct Times {
    cron: Cron,
    zone: TimeZone,
    /// Seconds, minutes and hours are written out.
    fixed: bool,
}

/// What becomes of fire times that nobody was there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfire {
    /// The last of them is made up for.
    Once,
    /// They are left out; the last of them counts as on time for a minute.
    Skip,
    /// Those that are no older than this are all made up for, in order.
    Backfill(Span),
}

/// A schedule: when it fires, and how.
pub struct Schedule {
    /// Its fire times.
    pub times: Times,
    /// What becomes of those that were missed.
    pub misfire: Misfire,
    /// Each fire time is put off by a part of this, always the same for the same one.
    pub jitter: Span,
    /// Identifier, by which schedules differ in how they put off the same time.
    pub id: [u8; 16],
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Fire times to start, oldest first.
    pub fires: Vec<Time>,
    /// Fire times that are left out for good, counted up to [`MOST`].
    pub missed: u64,
    /// The last fire time that is done with, started or not.
    pub through: Time,
    /// When to look again; `None` where the expression names no other time.
    pub wake: Option<Time>,
}

fn spelled_out(expression: &str) -> &str {
    match expression {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        other => other,
    }
}

impl Times {
    /// Reads an expression of five fields, or six with seconds first, and the name of a zone in the IANA database.
    pub fn read(expression: &str, zone: &str) -> Result<Times> {
        let refused = |detail: String| {
            let hint = "Use minute, hour, day of month, month and day of week, with seconds before them if need be.";
            Err(Error::bad_argument("cron expression is not valid").detail(detail).hint(hint))
        };
        if expression.len() > LONGEST {
            return refused(format!("It has {} bytes, expected at most {LONGEST}.", expression.len()));
        }
        let text = spelled_out(expression.trim());
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        if !matches!(fields.len(), 5 | 6) {
            return refused(format!("It has {} fields, expected 5 or 6.", fields.len()));
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = match parser.parse(text) {
            Ok(cron) => cron,
            Err(error) => return refused(sentence(&error.to_string())),
        };
        let fixed = !fields[..fields.len() - 3].iter().any(|field| field.contains(['*', '?']));
        let Ok(zone) = TimeZone::get(zone) else {
            return Err(Error::bad_argument(format!("time zone \"{zone}\" is not known"))
                .hint("Use a name of the IANA database, such as Asia/Jakarta."));
        };
        let times = Times { cron, zone, fixed };
        // A leap day on a certain weekday is up to forty years away.
        let begin = DateTime::constant(2000, 1, 1, 0, 0, 0, 0);
        match times.cron.find_next_occurrence(&begin, true) {
            Ok(first) if first.year() < 2100 => Ok(times),
            _ => Err(Error::bad_argument("cron expression never fires").detail("It names a day that no month has.")),
        }
    }

    /// The first fire time after a time, to the second.
    pub fn after(&self, time: Time) -> Option<Time> {
        let time = Timestamp::from_second(time.div_euclid(1000)).ok()?;
        let next = if self.fixed { self.fixed_after(time) } else { self.shown_after(time) };
        Some(next?.as_second() * 1000)
    }

    /// What the expression names next on the wall.
    fn named(&self, from: &DateTime, inclusive: bool) -> Option<DateTime> {
        self.cron.find_next_occurrence(from, inclusive).ok()
    }

    fn fixed_after(&self, time: Timestamp) -> Option<Timestamp> {
        let mut wall = self.zone.to_datetime(time);
        loop {
            wall = self.named(&wall, false)?;
            let ambiguous = self.zone.to_ambiguous_timestamp(wall);
            let at = match ambiguous.offset() {
                // The wall as it will be shows this time before the clock jumped.
                AmbiguousOffset::Gap { after, .. } => {
                    let before = after.to_timestamp(wall).ok()?;
                    self.zone.following(before).next()?.timestamp()
                }
                _ => ambiguous.earlier().ok()?,
            };
            // In the second of two hours that look alike, what is named has been in the first.
            if at > time {
                return Some(at);
            }
        }
    }

    fn shown_after(&self, time: Timestamp) -> Option<Timestamp> {
        let (mut from, mut inclusive) = (time, false);
        // Between two jumps of the clock the wall is as far from UTC all the time.
        loop {
            let offset = self.zone.to_offset(from);
            let at = offset.to_timestamp(self.named(&offset.to_datetime(from), inclusive)?).ok()?;
            match self.zone.following(from).next() {
                Some(jump) if at >= jump.timestamp() => (from, inclusive) = (jump.timestamp(), true),
                _ => return Some(at),
            }
        }
    }
}

fn sentence(text: &str) -> String {
    let text = text.trim_end_matches('.');
    let mut letters = text.chars();
    letters.next().map(|first| format!("{}{}.", first.to_uppercase(), letters.as_str())).unwrap_or_default()
}

impl Schedule {
    /// When a fire time is started.
    fn started_at(&self, fire: Time) -> Time {
        if self.jitter <= 0 {
            return fire;
        }
        let digest = Sha256::new().chain_update(self.id).chain_update(fire.to_be_bytes()).finalize();
        let part = digest.iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        fire + ((u128::from(part) * self.jitter as u128) >> 64) as Span
    }

    /// What is to be done, where all up to `last` is done with. A clock that was set back finds nothing due until it is
    /// past `last` again, so that no time fires twice; one that was set forward has missed what lies between.
    pub fn plan(&self, last: Time, now: Time) -> Plan {
        let mut plan = match self.misfire {
            Misfire::Once => self.last_only(last, now, Span::MAX),
            Misfire::Skip => self.last_only(last, now, GRACE),
            Misfire::Backfill(window) => self.each(last, now, window.max(GRACE)),
        };
        plan.wake = self.times.after(plan.through).map(|next| self.started_at(next));
        plan
    }

    /// Fire times after a time whose turn has come.
    fn due(&self, after: Time, now: Time) -> impl Iterator<Item = Time> {
        std::iter::successors(self.times.after(after), |fire| self.times.after(*fire))
            .take_while(move |fire| self.started_at(*fire) <= now)
    }

    /// The first of the times from which on all that is due is to be looked at: not all of a year of seconds.
    fn recent(&self, last: Time, now: Time) -> Time {
        let mut back = GRACE.max(2 * self.jitter);
        while now - back > last {
            if self.due(now - back, now).next().is_some() {
                return now - back;
            }
            back = back.saturating_mul(2);
        }
        last
    }

    fn last_only(&self, last: Time, now: Time, grace: Span) -> Plan {
        let from = self.recent(last, now);
        let through = self.due(from, now).last().unwrap_or(last);
        let start = through > last && now - self.started_at(through) <= grace;
        let due = self.due(last, now).take(MOST).count() as u64;
        Plan {
            fires: if start { vec![through] } else { Vec::new() },
            missed: due - u64::from(start),
            through,
            wake: None,
        }
    }

    fn each(&self, last: Time, now: Time, window: Span) -> Plan {
        let from = last.max(now - window - self.jitter - 1);
        let missed =
            if from > last { self.due(last, now).take_while(|fire| *fire <= from).take(MOST).count() } else { 0 };
        let fires: Vec<Time> = self.due(from, now).take(MOST).collect();
        Plan {
            through: fires.last().copied().unwrap_or(from.min(now).max(last)),
            missed: missed as u64,
            fires,
            wake: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Time {
        text.parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn times(expression: &str, zone: &str) -> Times {
        Times::read(expression, zone).unwrap()
    }

    /// Fire times between two times, as the wall clock shows them with its distance from UTC.
    fn walls(expression: &str, zone: &str, from: &str, to: &str) -> Vec<String> {
        let times = times(expression, zone);
        std::iter::successors(times.after(at(from) - 1000), |fire| times.after(*fire))
            .take_while(|fire| *fire < at(to))
            .map(|fire| {
                let time = Timestamp::from_millisecond(fire).unwrap();
                let offset = times.zone.to_offset(time);
                format!("{} {offset}", offset.to_datetime(time).strftime("%d %H:%M"))
            })
            .collect()
    }

    // New York: 02:00 to 03:00 is left out on 8 March 2026, 01:00 to 02:00 comes twice on 1 November.
    const SPRING: (&str, &str) = ("2026-03-08T05:00:00Z", "2026-03-08T09:00:00Z");
    const AUTUMN: (&str, &str) = ("2026-11-01T04:30:00Z", "2026-11-01T08:00:00Z");

    fn new_york(expression: &str, (from, to): (&str, &str)) -> Vec<String> {
        walls(expression, "America/New_York", from, to)
    }

    #[test]
    fn times_in_the_gap_fire_once_at_its_end() {
        assert_eq!(new_york("30 2 * * *", SPRING), ["08 03:00 -04"]);
        assert_eq!(new_york("0,15,30 2 * * *", SPRING), ["08 03:00 -04"]);
        assert_eq!(new_york("0 1-4 * * *", SPRING), ["08 01:00 -05", "08 03:00 -04", "08 04:00 -04"]);
        // Lord Howe's clock jumps half an hour, from 02:00 to 02:30.
        let seen = walls("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T15:00:00Z", "2026-10-03T16:00:00Z");
        assert_eq!(seen, ["04 02:30 +11"]);
    }

    #[test]
    fn times_in_the_hour_that_comes_twice_fire_the_first_time() {
        assert_eq!(new_york("30 1 * * *", AUTUMN), ["01 01:30 -04"]);
        assert_eq!(
            new_york("0,30 1,2 * * *", AUTUMN),
            ["01 01:00 -04", "01 01:30 -04", "01 02:00 -05", "01 02:30 -05"]
        );
        let second = at("2026-11-01T06:10:00Z");
        assert_eq!(times("30 1 * * *", "America/New_York").after(second), Some(at("2026-11-02T06:30:00Z")));
    }

    #[test]
    fn intervals_leave_out_the_gap_and_go_on_in_the_hour_that_comes_twice() {
        assert_eq!(
            new_york("*/30 * * * *", SPRING)[1..6],
            ["08 00:30 -05", "08 01:00 -05", "08 01:30 -05", "08 03:00 -04", "08 03:30 -04"]
        );
        assert_eq!(new_york("*/30 2 * * *", SPRING), [""; 0]);
        assert_eq!(new_york("*/30 1 * * *", AUTUMN), ["01 01:00 -04", "01 01:30 -04", "01 01:00 -05", "01 01:30 -05"]);
        let seen = walls("*/15 * * * *", "Australia/Lord_Howe", "2026-04-04T14:15:00Z", "2026-04-04T15:45:00Z");
        assert_eq!(
            seen,
            ["05 01:15 +11", "05 01:30 +11", "05 01:45 +11", "05 01:30 +10:30", "05 01:45 +10:30", "05 02:00 +10:30"]
        );
    }

    #[test]
    fn a_day_that_a_zone_left_out_is_made_up_for() {
        // Samoa went from 29 to 31 December 2011.
        let seen = walls("0 12 * * *", "Pacific/Apia", "2011-12-29T00:00:00Z", "2011-12-31T12:00:00Z");
        assert_eq!(seen, ["29 12:00 -10", "31 00:00 +14", "31 12:00 +14"]);
    }

    #[test]
    fn expressions_are_refused_with_what_is_wrong() {
        for (expression, detail) in [
            ("* * * *", "It has 4 fields, expected 5 or 6."),
            ("* * * * * * *", "It has 7 fields, expected 5 or 6."),
            ("0 0 30 2 *", "It names a day that no month has."),
            ("61 * * * *", "Component error"),
            ("a * * * *", ""),
            ("", "It has 0 fields, expected 5 or 6."),
        ] {
            let error = Times::read(expression, "UTC").err().unwrap_or_else(|| panic!("{expression}"));
            assert!(error.detail.as_deref().unwrap_or_default().starts_with(detail), "{expression}: {error:?}");
        }
        assert!(Times::read(&format!("{} * * * *", "0,".repeat(100)), "UTC").is_err());
        assert!(Times::read("0 0 * * *", "Mars/Olympus").is_err());
        // A leap day that is a Monday comes, but not soon.
        assert!(Times::read("0 0 29 2 *", "UTC").is_ok());
    }

    #[test]
    fn seconds_and_nicknames_are_read() {
        let now = at("2026-01-01T00:00:05Z");
        assert_eq!(times("*/10 * * * * *", "UTC").after(now), Some(now + 5_000));
        assert_eq!(times("@daily", "Asia/Jakarta").after(now), Some(at("2026-01-01T17:00:00Z")));
        assert_eq!(times("0 9 * * 1", "Asia/Jakarta").after(now), Some(at("2026-01-05T02:00:00Z")));
    }

    fn schedule(expression: &str, misfire: Misfire, jitter: Span) -> Schedule {
        Schedule { times: times(expression, "UTC"), misfire, jitter, id: [7; 16] }
    }

    const LAST: &str = "2026-01-01T09:00:00Z";

    /// The hours of an hourly schedule that are started at a time, and the hour it looks again.
    fn hours(misfire: Misfire, now: &str) -> (Vec<i64>, u64, i64) {
        let plan = schedule("0 * * * *", misfire, 0).plan(at(LAST), at(now));
        let hour = |time: Time| (time - at("2026-01-01T00:00:00Z")) / 3_600_000;
        (plan.fires.into_iter().map(hour).collect(), plan.missed, hour(plan.wake.unwrap()))
    }

    #[test]
    fn three_missed_fire_times_under_each_policy() {
        let now = "2026-01-01T12:20:00Z";
        assert_eq!(hours(Misfire::Once, now), (vec![12], 2, 13));
        assert_eq!(hours(Misfire::Skip, now), (vec![], 3, 13));
        assert_eq!(hours(Misfire::Backfill(7_200_000), now), (vec![11, 12], 1, 13));
        assert_eq!(hours(Misfire::Backfill(86_400_000), now), (vec![10, 11, 12], 0, 13));
        // On time, or nearly, each starts the one that is due.
        for misfire in [Misfire::Once, Misfire::Skip, Misfire::Backfill(7_200_000)] {
            assert_eq!(hours(misfire, "2026-01-01T10:00:30Z"), (vec![10], 0, 11));
            assert_eq!(hours(misfire, "2026-01-01T09:59:59Z"), (vec![], 0, 10));
        }
    }

    #[test]
    fn a_clock_that_is_set_back_starts_nothing_twice_and_one_set_forward_has_missed_what_lies_between() {
        for misfire in [Misfire::Once, Misfire::Skip, Misfire::Backfill(7_200_000)] {
            assert_eq!(hours(misfire, "2026-01-01T06:30:00Z"), (vec![], 0, 10));
        }
        assert_eq!(hours(Misfire::Once, "2026-01-01T23:00:01Z"), (vec![23], 13, 24));
        assert_eq!(hours(Misfire::Skip, "2026-01-01T23:30:00Z"), (vec![], 14, 24));
    }

    #[test]
    fn a_year_of_seconds_is_not_gone_through() {
        let begin = std::time::Instant::now();
        let plan = schedule("* * * * * *", Misfire::Once, 0).plan(at(LAST), at("2027-01-01T09:00:00Z"));
        assert_eq!(plan.fires, [at("2027-01-01T09:00:00Z")]);
        let plan =
            schedule("* * * * * *", Misfire::Backfill(31_536_000_000), 0).plan(at(LAST), at("2026-06-01T09:00:00Z"));
        assert_eq!((plan.fires.len(), plan.wake), (MOST, Some(at(LAST) + 101_000)));
        assert!(begin.elapsed().as_secs() < 5);
    }

    #[test]
    fn jitter_is_always_the_same_for_a_time_and_differs_between_schedules() {
        let one = schedule("0 * * * *", Misfire::Once, 600_000);
        let two = Schedule { id: [8; 16], ..schedule("0 * * * *", Misfire::Once, 600_000) };
        let ten = at("2026-01-01T10:00:00Z");
        let put_off = one.plan(at(LAST), at(LAST)).wake.unwrap();
        assert_eq!(put_off, one.plan(at(LAST), at(LAST) + 1).wake.unwrap());
        assert!((ten..ten + 600_000).contains(&put_off));
        assert_ne!(put_off, two.plan(at(LAST), at(LAST)).wake.unwrap());
        assert!(one.plan(at(LAST), put_off - 1).fires.is_empty());
        assert_eq!(one.plan(at(LAST), put_off).fires, [ten]);
    }

    const EXPRESSIONS: [&str; 6] =
        ["*/7 * * * *", "30 2 * * *", "0 1-3 * * *", "15 */2 * * *", "0 0 1 * *", "59 59 23 * * 0"];
    const ZONES: [&str; 4] = ["UTC", "America/New_York", "Australia/Lord_Howe", "Asia/Jakarta"];

    proptest! {
        /// However often and at whatever times somebody looks, each fire time is started once at most, in order, and no
        /// later than the look at which it was due.
        #[test]
        fn no_time_fires_twice_and_none_is_passed_over(
            expression in 0usize..EXPRESSIONS.len(), zone in 0usize..ZONES.len(), jitter in 0i64..900_000,
            steps in prop::collection::vec(-3_600_000i64..90_000_000, 1..40),
        ) {
            let schedule = Schedule {
                times: times(EXPRESSIONS[expression], ZONES[zone]),
                misfire: Misfire::Backfill(Span::MAX / 4),
                jitter,
                id: [3; 16],
            };
            let begin = at("2026-02-20T00:00:00Z");
            let (mut now, mut last, mut started) = (begin, begin, Vec::<Time>::new());
            let mut latest = now;
            for step in steps {
                now += step;
                latest = latest.max(now);
                loop {
                    let plan = schedule.plan(last, now);
                    started.extend(&plan.fires);
                    prop_assert!(plan.through >= last);
                    last = plan.through;
                    if plan.fires.len() < MOST {
                        prop_assert!(plan.wake.unwrap() > now);
                        break;
                    }
                }
            }
            let expected: Vec<Time> = std::iter::successors(schedule.times.after(begin), |fire| schedule.times.after(*fire))
                .take_while(|fire| schedule.started_at(*fire) <= latest)
                .collect();
            prop_assert_eq!(started, expected);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[-*/,0-9 LW#?@A-Z]{0,30}") {
            if let Ok(times) = Times::read(&text, "America/New_York") {
                let _ = times.after(0);
            }
        }
    }
}
