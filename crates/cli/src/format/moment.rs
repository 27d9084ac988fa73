//! Parses the times of `--since` and `--until`, with the error texts of Go's `time.Parse`.

use jiff::civil::{Date, Time};
use jiff::tz::{Offset, TimeZone};
use whelk_text::duration;

use crate::{Failure, Outcome};

/// Converts a value of `--since` or `--until` to seconds since the epoch: an RFC 3339 time or a
/// prefix of one, a number of seconds, or a duration before now.
pub(crate) fn moment(text: &str) -> Outcome<String> {
    let is_seconds = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    if is_seconds {
        return Ok(text.to_owned());
    }
    let seconds =
        |time: jiff::Timestamp| format!("{}.{:09}", time.as_second(), time.subsec_nanosecond());
    if let Ok(back) = duration::parse(text) {
        let now = jiff::Timestamp::now().as_nanosecond() - i128::from(back);
        return jiff::Timestamp::from_nanosecond(now)
            .map(seconds)
            .map_err(|error| Failure::new(error.to_string()));
    }
    if text.parse::<i64>().is_ok() {
        return Ok(text.to_owned());
    }
    parse(text).map(seconds).map_err(|reason| {
        Failure::new(if text.contains('-') {
            reason
        } else {
            format!("failed to parse value as time or duration: {text:?}")
        })
    })
}

/// Returns the layout that Docker chooses for a time by the characters in it.
fn layout(text: &str) -> &'static str {
    let has = |letters: &[char]| text.contains(letters);
    let is_local = !has(&['z', 'Z', '+']) && text.matches('-').count() != 3;
    let colons = text.matches(':').count();
    let in_offset = usize::from(!is_local && !has(&['z', 'Z']) && colons > 0);
    match (is_local, colons - in_offset) {
        (true, _) if has(&['.']) => "2006-01-02T15:04:05.999999999",
        (false, _) if has(&['.']) => "2006-01-02T15:04:05.999999999Z07:00",
        (true, _) if !has(&['T']) => "2006-01-02",
        (false, _) if !has(&['T']) => "2006-01-02Z07:00",
        (true, 0) => "2006-01-02T15",
        (true, 1) => "2006-01-02T15:04",
        (true, _) => "2006-01-02T15:04:05",
        (false, 0) => "2006-01-02T15Z07:00",
        (false, 1) => "2006-01-02T15:04Z07:00",
        (false, _) => "2006-01-02T15:04:05Z07:00",
    }
}

/// The elements of a layout that are numbers, with their greatest values. Days are checked at the
/// end, as their greatest value depends on the month.
const NUMBERS: [(&str, &str, i32); 6] = [
    ("2006", "year", i32::MAX),
    ("01", "month", 12),
    ("02", "day", i32::MAX),
    ("15", "hour", 23),
    ("04", "minute", 59),
    ("05", "second", 59),
];

fn parse(text: &str) -> Result<jiff::Timestamp, String> {
    let layout = layout(text);
    let out_of_range = |what: &str| format!("parsing time {text:?}: {what} out of range");
    let (mut numbers, mut nanoseconds, mut zone) = ([0; 6], 0, TimeZone::system());
    let (mut expected, mut rest) = (layout, text);
    while !expected.is_empty() {
        let mismatch = |element: &str| {
            format!("parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {element:?}")
        };
        let number = NUMBERS
            .iter()
            .zip(&mut numbers)
            .find(|((element, ..), _)| expected.starts_with(element));
        if let Some(((element, name, greatest), number)) = number {
            let digits = rest.get(..element.len()).unwrap_or_default();
            let is_number =
                digits.len() == element.len() && digits.bytes().all(|byte| byte.is_ascii_digit());
            *number = digits
                .parse()
                .ok()
                .filter(|_| is_number)
                .ok_or_else(|| mismatch(element))?;
            if *number > *greatest || *name == "month" && *number == 0 {
                return Err(out_of_range(name));
            }
            (expected, rest) = (&expected[element.len()..], &rest[element.len()..]);
            if *name == "second" {
                (nanoseconds, rest) = fraction(rest);
            }
        } else if let Some(behind) = expected.strip_prefix(".999999999") {
            // A fraction is optional, and was read with the seconds.
            expected = behind;
        } else if let Some(behind) = expected.strip_prefix("Z07:00") {
            let offset;
            (offset, rest) = offset_of(rest)
                .ok_or_else(|| mismatch("Z07:00"))?
                .map_err(&out_of_range)?;
            (expected, zone) = (behind, offset.to_time_zone());
        } else {
            let (literal, behind) = expected.split_at(1);
            rest = rest
                .strip_prefix(literal)
                .ok_or_else(|| mismatch(literal))?;
            expected = behind;
        }
    }
    if !rest.is_empty() {
        return Err(format!("parsing time {text:?}: extra text: {rest:?}"));
    }
    let [year, month, day, hour, minute, second] = numbers;
    let small = |number: i32| i8::try_from(number).unwrap_or_default();
    let year = i16::try_from(year).map_err(|_| out_of_range("year"))?;
    let date = Date::new(year, small(month), small(day)).map_err(|_| out_of_range("day"))?;
    let time = Time::new(small(hour), small(minute), small(second), nanoseconds)
        .map_err(|_| out_of_range("second"))?;
    let zoned = date.to_datetime(time).to_zoned(zone);
    zoned
        .map(|zoned| zoned.timestamp())
        .map_err(|_| out_of_range("year"))
}

/// Reads a fraction of a second, in nanoseconds. Returns what follows it.
fn fraction(text: &str) -> (i32, &str) {
    let Some(digits) = text.strip_prefix(['.', ',']) else {
        return (0, text);
    };
    let behind = digits.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let digits = &digits[..digits.len() - behind.len()];
    if digits.is_empty() {
        return (0, text);
    }
    let padded = format!("{digits:0<9}");
    (padded[..9].parse().unwrap_or_default(), behind)
}

/// Reads `Z` or `±HH:MM`. Returns what follows it; the name of the part that is out of range; or
/// `None` if it is neither.
fn offset_of(text: &str) -> Option<Result<(Offset, &str), &'static str>> {
    if let Some(behind) = text.strip_prefix('Z') {
        return Some(Ok((Offset::UTC, behind)));
    }
    let (offset, behind) = (text.get(..6)?, text.get(6..)?);
    let sign = match offset.as_bytes()[0] {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = offset[1..].split_once(':')?;
    let number = |text: &str| {
        let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<i32>().ok().filter(|_| is_number)
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    if minutes >= 60 {
        return Some(Err("time zone offset minute"));
    }
    let offset = Offset::from_seconds(sign * (hours * 3600 + minutes * 60));
    let offset = offset.ok().filter(|_| hours <= 24);
    Some(match offset {
        Some(offset) => Ok((offset, behind)),
        None => Err("time zone offset hour"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_times() {
        for (text, seconds) in [
            ("", ""),
            ("1700000000", "1700000000"),
            ("1700000000.5", "1700000000.5"),
            ("2020-01-02T03:04:05Z", "1577934245.000000000"),
            ("2020-01-02T03:04:05.25Z", "1577934245.250000000"),
            ("2020-01-02T03:04:05+01:00", "1577930645.000000000"),
            ("2020-01-02T03:04:05-01:00", "1577937845.000000000"),
            ("2020-01-02T03:04Z", "1577934240.000000000"),
            ("2020-01-02T03Z", "1577934000.000000000"),
            ("2020-01-02Z", "1577923200.000000000"),
        ] {
            assert_eq!(moment(text).unwrap(), seconds, "{text}");
        }
        for local in [
            "2024-01-02",
            "2024-01-02T03",
            "2024-01-02T03:04",
            "2024-01-02T03:04:05",
            "2024-01-02T03:04:05.5",
            "42m",
            "1h30m",
        ] {
            assert!(moment(local).is_ok(), "{local}");
        }
    }

    #[test]
    fn rejects_times_with_gos_texts() {
        let check = |text: &str, error: &str| {
            assert_eq!(moment(text).unwrap_err().text, error, "{text}");
        };
        for (text, what) in [
            ("2020-13-45", "month"),
            ("2020-01-45", "day"),
            ("2020-02-30", "day"),
            ("2020-01-01T25:00:00", "hour"),
            ("2020-01-01T05:70:00", "minute"),
            ("2020-01-01T05:07:70", "second"),
            ("2020-01-01T05:07:10+99:00", "time zone offset hour"),
        ] {
            check(text, &format!("parsing time {text:?}: {what} out of range"));
        }
        for (text, layout, rest, element) in [
            ("2020-1-1", "2006-01-02", "1-1", "01"),
            ("abc-def", "2006-01-02", "abc-def", "2006"),
            ("5m-3", "2006-01-02", "5m-3", "2006"),
            ("2020-01-01T", "2006-01-02T15", "", "15"),
            (
                "2020-01-01T05:07:10.5+0200",
                "2006-01-02T15:04:05.999999999Z07:00",
                "+0200",
                "Z07:00",
            ),
        ] {
            check(
                text,
                &format!(
                    "parsing time {text:?} as {layout:?}: cannot parse {rest:?} as {element:?}"
                ),
            );
        }
        for text in ["2020-01-01x", "2020-01-01T05:07:10.5Zx"] {
            check(text, &format!("parsing time {text:?}: extra text: \"x\""));
        }
        for text in ["bogus", "12:30", "1e5", "ß"] {
            check(
                text,
                &format!("failed to parse value as time or duration: {text:?}"),
            );
        }
    }
}
