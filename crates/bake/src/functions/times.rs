//! Functions of times, and of what is around the command.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};

use super::{Returned, count, integer};
use crate::Environment;
use crate::number::Number;
use crate::value::Value;

pub(super) fn call(environment: &Environment, name: &str, arguments: &[Value]) -> Option<Returned> {
    Some(match (name, arguments) {
        ("timestamp", []) => moment(environment.now).map(|now| now.to_string().into()),
        ("homedir", []) => Ok(environment.home.clone().into()),
        ("timeadd", [time, duration]) => timeadd(time, duration),
        ("formatdate" | "formattimestamp", [form, time]) => formatdate(form, time),
        ("unixtimestampparse", [time]) => integer(time).and_then(parts),
        ("timestamp" | "homedir", _) => count("no argument", arguments),
        ("timeadd" | "formatdate" | "formattimestamp", _) => count("2 arguments", arguments),
        ("unixtimestampparse", _) => count("1 argument", arguments),
        _ => return None,
    })
}

fn moment(seconds: i64) -> Result<Timestamp, String> {
    Timestamp::from_second(seconds).map_err(|error| error.to_string())
}

/// Reads a time of RFC 3339; also a number of seconds.
fn zoned(value: &Value) -> Result<jiff::Zoned, String> {
    if let Value::Number(_) = value {
        return Ok(moment(integer(value)?)?.to_zoned(TimeZone::UTC));
    }
    let text = value.text()?;
    let wrong = || format!("not a valid RFC3339 timestamp: {text:?}");
    let moment: Timestamp = text.parse().map_err(|_| wrong())?;
    let zone = match text.get(text.len().saturating_sub(6)..) {
        Some(zone) if zone.starts_with(['+', '-']) => {
            let number = |range: std::ops::Range<usize>| {
                zone.get(range)
                    .and_then(|digits| digits.parse::<i32>().ok())
            };
            let (hours, minutes) = number(1..3).zip(number(4..6)).ok_or_else(wrong)?;
            let sign = if zone.starts_with('-') { -1 } else { 1 };
            let offset = Offset::from_seconds(sign * (hours * 3600 + minutes * 60));
            TimeZone::fixed(offset.map_err(|_| wrong())?)
        }
        _ => TimeZone::UTC,
    };
    Ok(moment.to_zoned(zone))
}

fn timeadd(time: &Value, duration: &Value) -> Returned {
    let zoned = zoned(time)?;
    let text = duration.text()?;
    let nanos = whelk_text::duration::parse(&text)
        .map_err(|_| format!("not a valid duration: {text:?}"))?;
    let moved = zoned.checked_add(jiff::SignedDuration::from_nanos(nanos));
    let moved = moved.map_err(|error| error.to_string())?;
    rfc3339(&moved).map(Value::String)
}

fn rfc3339(zoned: &jiff::Zoned) -> Result<String, String> {
    let zone = match zoned.offset().seconds() {
        0 => "Z".to_owned(),
        _ => zone_text(zoned, ":"),
    };
    let time = zoned.datetime();
    Ok(format!("{time}{zone}"))
}

/// Returns the distance from UTC.
fn zone_text(zoned: &jiff::Zoned, between: &str) -> String {
    let seconds = zoned.offset().seconds();
    let sign = if seconds < 0 { '-' } else { '+' };
    let minutes = seconds.abs() / 60;
    format!("{sign}{:02}{between}{:02}", minutes / 60, minutes % 60)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

fn month(zoned: &jiff::Zoned) -> &'static str {
    let index = usize::try_from(zoned.month() - 1).unwrap_or(0);
    MONTHS.get(index).copied().unwrap_or_default()
}

fn weekday(zoned: &jiff::Zoned) -> (i8, &'static str) {
    let number = zoned.weekday().to_sunday_zero_offset();
    let index = usize::try_from(number).unwrap_or(0);
    (number, DAYS.get(index).copied().unwrap_or_default())
}

fn formatdate(form: &Value, time: &Value) -> Returned {
    let (form, zoned) = (form.text()?, zoned(time)?);
    if form == "X" {
        return Ok(zoned.timestamp().as_second().to_string().into());
    }
    let mut out = String::new();
    let mut rest = form.as_str();
    while let Some(first) = rest.chars().next() {
        if first == '\'' {
            let (quoted, after) = rest[1..].split_once('\'').ok_or("unterminated literal '")?;
            out += if quoted.is_empty() { "'" } else { quoted };
            rest = after;
            continue;
        }
        let length = rest.len() - rest.trim_start_matches(first).len();
        let (verb, after) = rest.split_at(length);
        rest = after;
        match first.is_ascii_alphabetic() {
            true => out += &part(verb, &zoned)?,
            false => out += verb,
        }
    }
    Ok(out.into())
}

/// Returns what a sequence of equal letters stands for.
fn part(verb: &str, zoned: &jiff::Zoned) -> Result<String, String> {
    let hour = zoned.hour();
    let half = match hour % 12 {
        0 => 12,
        hour => hour,
    };
    let seconds = zoned.offset().seconds();
    Ok(match verb {
        "YYYY" => format!("{:04}", zoned.year()),
        "YY" => format!("{:02}", zoned.year() % 100),
        "MMMM" => month(zoned).to_owned(),
        "MMM" => month(zoned).get(..3).unwrap_or_default().to_owned(),
        "MM" => format!("{:02}", zoned.month()),
        "M" => zoned.month().to_string(),
        "DD" => format!("{:02}", zoned.day()),
        "D" => zoned.day().to_string(),
        "EEEE" => weekday(zoned).1.to_owned(),
        "EEE" => weekday(zoned).1.get(..3).unwrap_or_default().to_owned(),
        "hh" => format!("{hour:02}"),
        "h" => hour.to_string(),
        "HH" => format!("{half:02}"),
        "H" => half.to_string(),
        "AA" => if hour < 12 { "AM" } else { "PM" }.into(),
        "aa" => if hour < 12 { "am" } else { "pm" }.into(),
        "mm" => format!("{:02}", zoned.minute()),
        "m" => zoned.minute().to_string(),
        "ss" => format!("{:02}", zoned.second()),
        "s" => zoned.second().to_string(),
        "ZZZZZ" => zone_text(zoned, ":"),
        "ZZZZ" => zone_text(zoned, ""),
        "ZZZ" if seconds == 0 => "UTC".into(),
        "ZZZ" => zone_text(zoned, ""),
        "Z" if seconds == 0 => "Z".into(),
        "Z" => zone_text(zoned, ":"),
        other => return Err(format!("invalid date format verb {other:?}")),
    })
}

fn parts(seconds: i64) -> Returned {
    let zoned = moment(seconds)?.to_zoned(TimeZone::UTC);
    let (number, name) = weekday(&zoned);
    let week = zoned.date().iso_week_date();
    let numbers = [
        ("year", i32::from(zoned.year())),
        ("year_day", i32::from(zoned.day_of_year())),
        ("month", i32::from(zoned.month())),
        ("day", i32::from(zoned.day())),
        ("weekday", i32::from(number)),
        ("hour", i32::from(zoned.hour())),
        ("minute", i32::from(zoned.minute())),
        ("second", i32::from(zoned.second())),
        ("iso_year", i32::from(week.year())),
        ("iso_week", i32::from(week.week())),
    ];
    let numbers = numbers.map(|(key, number)| (key, Value::Number(Number::Whole(number.into()))));
    let texts = [
        ("month_name", month(&zoned).into()),
        ("weekday_name", name.into()),
        ("rfc3339", rfc3339(&zoned)?.into()),
    ];
    let all = numbers.into_iter().chain(texts);
    let all: BTreeMap<_, _> = all.map(|(key, value)| (key.to_owned(), value)).collect();
    Ok(Value::Object(all))
}
