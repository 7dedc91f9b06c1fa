//! Intervals and times as texts, in milliseconds.

use super::{Span, Time};

/// Ten years.
const MOST: f64 = 3650.0 * 86_400_000.0;

/// Units with the milliseconds in each, as Postgres names them. Months and years are left out: they have no one length.
const UNITS: [(&[&str], f64); 6] = [
    (&["ms", "msec", "msecs", "millisecond", "milliseconds"], 1.0),
    (&["s", "sec", "secs", "second", "seconds"], 1000.0),
    (&["m", "min", "mins", "minute", "minutes"], 60_000.0),
    (&["h", "hr", "hrs", "hour", "hours"], 3_600_000.0),
    (&["d", "day", "days"], 86_400_000.0),
    (&["w", "week", "weeks"], 604_800_000.0),
];

/// An interval in plain words: `10 min`, `1 h 30 min`, `1.5 days`. More than nothing and at most ten years.
pub fn interval(text: &str) -> Option<Span> {
    let (mut rest, mut total) = (text.trim(), 0.0);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number = rest[..digits].parse::<f64>().ok().filter(|_| rest.starts_with(|c: char| c.is_ascii_digit()))?;
        rest = rest[digits..].trim_start();
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let unit = rest[..letters].to_ascii_lowercase();
        let (_, length) = UNITS.iter().find(|(names, _)| names.contains(&unit.as_str()))?;
        total += number * length;
        rest = rest[letters..].trim_start();
    }
    // At most ten years of milliseconds are a whole number in both.
    (1.0..=MOST).contains(&total).then(|| total.round() as Span)
}

/// A time with its zone as RFC 3339 and Postgres write it: `2026-03-01T09:00:00+07:00`, `2026-03-01 09:00+07`.
pub fn timestamp(text: &str) -> Option<Time> {
    let text = text.trim();
    let (date, rest) = text.split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let at = rest.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = rest.split_at(at);
    let offset = match zone.strip_prefix(['Z', 'z']) {
        Some(rest) => rest.is_empty().then_some(0)?,
        None => offset(zone)?,
    };
    let mut date = date.split('-');
    let (year, month, day) = (number(date.next()?, 4)?, number(date.next()?, 2)?, number(date.next()?, 2)?);
    let days = days(year, month, day).filter(|_| date.next().is_none())?;
    Some((days * 86_400 - offset) * 1000 + milliseconds(clock.trim_end())?)
}

/// Decimal digits, exactly so many.
fn number(text: &str, digits: usize) -> Option<i64> {
    (text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

/// Milliseconds since midnight.
fn milliseconds(clock: &str) -> Option<i64> {
    let (clock, fraction) = clock.split_once('.').map_or((clock, None), |(clock, fraction)| (clock, Some(fraction)));
    let mut parts = clock.split(':');
    let (hours, minutes) = (number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let seconds = parts.next().map_or(Some(0), |seconds| number(seconds, 2))?;
    if parts.next().is_some() || hours > 23 || minutes > 59 || seconds > 59 {
        return None;
    }
    let fraction = match fraction {
        None => 0,
        Some(digits) if (1..=9).contains(&digits.len()) => {
            number(&format!("{digits:0<3}")[..3], 3).filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))?
        }
        Some(_) => return None,
    };
    Some(((hours * 60 + minutes) * 60 + seconds) * 1000 + fraction)
}

/// Seconds east of UTC: `+07`, `+07:00`, `-0330`.
fn offset(zone: &str) -> Option<i64> {
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let digits: String = zone.get(1..)?.chars().filter(|c| *c != ':').collect();
    let (hours, minutes) = match digits.len() {
        2 => (number(&digits, 2)?, 0),
        4 => (number(&digits[..2], 2)?, number(&digits[2..], 2)?),
        _ => return None,
    };
    (hours <= 15 && minutes <= 59).then_some(sign * (hours * 60 + minutes) * 60)
}

/// Days since 1970-01-01 in the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if year < 1 || !(1..=length).contains(&day) {
        return None;
    }
    // Years begin in March here, so that the day that is not always there is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let since_march = (153 * month + 2) / 5 + day - 1;
    Some(year * 365 + year / 4 - year / 100 + year / 400 + since_march - 719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_plain_words() {
        for (text, expected) in [
            ("10 min", 600_000),
            ("1 h", 3_600_000),
            ("1 day", 86_400_000),
            ("90 s", 90_000),
            ("1 week", 604_800_000),
            (" 1 hour 30 minutes ", 5_400_000),
            ("1.5 Days", 129_600_000),
            ("250ms", 250),
        ] {
            assert_eq!(interval(text), Some(expected), "{text}");
        }
        for text in
            ["", " ", "10", "min", "10 parsecs", "1 month", "-1 s", "0 s", "1 s,", "1..5 s", "99999 weeks", ".5 s"]
        {
            assert_eq!(interval(text), None, "{text}");
        }
    }

    #[test]
    fn times_have_a_zone() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-11-23 11:40:00+00", 1_795_434_000_000),
            ("2026-11-23T18:40+07:00", 1_795_434_000_000),
            ("2026-11-23 08:10:00.25-0330", 1_795_434_000_250),
            ("2000-02-29T23:59:59.999999Z", 951_868_799_999),
            ("1969-12-31T23:59:59Z", -1000),
        ] {
            assert_eq!(timestamp(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "2026-11-23",
            "2026-11-23T11:40:00",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-23T24:00:00Z",
            "2026-11-23T11:40:00Zx",
            "2026-11-23T11:40:00.Z",
            "2026-11-23T11:40:00+7",
            "2026-11-2éT11:40:00Z",
        ] {
            assert_eq!(timestamp(text), None, "{text}");
        }
    }
}
