//! Filters of records, as clients send them: `status==error,duration>=10s`.

use crate::grpc::{Result, Status};
use crate::pb::control::BuildHistoryRecord;

/// Lists of conditions: all of one list must hold.
#[derive(Debug)]
pub(super) struct Filters(Vec<Vec<Condition>>);

#[derive(Debug)]
struct Condition {
    field: Field,
    comparison: Comparison,
    text: String,
    /// A time in seconds since 1970, or a duration in nanoseconds.
    number: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Status,
    Repository,
    Started,
    Completed,
    Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Contains,
    AtLeast,
    AtMost,
    More,
    Less,
}

/// The longer signs first.
const COMPARISONS: [(&str, Comparison); 7] = [
    ("==", Comparison::Equal),
    ("!=", Comparison::NotEqual),
    ("~=", Comparison::Contains),
    (">=", Comparison::AtLeast),
    ("<=", Comparison::AtMost),
    (">", Comparison::More),
    ("<", Comparison::Less),
];

impl Filters {
    /// # Errors
    /// Returns an error that names the filter that is not valid.
    pub fn parse(filters: &[String], now: i64) -> Result<Self> {
        let lists = filters.iter().filter(|text| !text.is_empty()).map(|text| {
            let conditions = text.split(',').map(|condition| {
                let condition = condition.trim_matches('"');
                parse(condition, now)
                    .ok_or_else(|| Status::invalid(format!("invalid filter {condition:?}")))
            });
            conditions.collect()
        });
        Ok(Self(lists.collect::<Result<_>>()?))
    }

    pub fn hold(&self, record: &BuildHistoryRecord) -> bool {
        let holds = |condition: &Condition| condition.holds(record);
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(holds))
    }
}

fn parse(text: &str, now: i64) -> Option<Condition> {
    let (at, sign, comparison) = COMPARISONS
        .iter()
        .filter_map(|(sign, comparison)| Some((text.find(sign)?, *sign, *comparison)))
        .min_by_key(|(at, sign, _)| (*at, std::cmp::Reverse(sign.len())))?;
    let (field, value) = (&text[..at], &text[at + sign.len()..]);
    let field = match field {
        "ref" => Field::Name,
        "status" => Field::Status,
        "repository" => Field::Repository,
        "startedAt" => Field::Started,
        "completedAt" => Field::Completed,
        "duration" => Field::Duration,
        _ => return None,
    };
    let is_text = matches!(field, Field::Name | Field::Status | Field::Repository);
    let compares_text = matches!(
        comparison,
        Comparison::Equal | Comparison::NotEqual | Comparison::Contains
    );
    if is_text != compares_text {
        return None;
    }
    let number = match field {
        Field::Duration => duration(value)?,
        Field::Started | Field::Completed => match duration(value) {
            Some(ago) => now.checked_sub(ago / SECOND)?,
            None => value.parse::<jiff::Timestamp>().ok()?.as_second(),
        },
        _ => 0,
    };
    Some(Condition {
        field,
        comparison,
        text: value.to_owned(),
        number,
    })
}

const SECOND: i64 = 1_000_000_000;

/// Parses a duration as Go writes it, such as `1h30m`, in nanoseconds.
fn duration(text: &str) -> Option<i64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut sum = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let units = [
            ("ns", 1.0),
            ("us", 1e3),
            ("µs", 1e3),
            ("ms", 1e6),
            ("s", 1e9),
            ("m", 60e9),
            ("h", 3600e9),
        ];
        let (unit, factor) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        sum += number * factor;
    }
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a limit is as good as more"
    )]
    (!text.is_empty()).then_some(sum as i64)
}

impl Condition {
    fn holds(&self, record: &BuildHistoryRecord) -> bool {
        let seconds = |time: Option<crate::pb::Timestamp>| time.map_or(0, |time| time.seconds);
        let number = match self.field {
            Field::Name => return self.text_holds(&record.r#ref),
            Field::Status => return self.text_holds(status(record)),
            Field::Repository => return self.text_holds(repository(record)),
            Field::Started => seconds(record.created_at),
            Field::Completed => seconds(record.completed_at),
            Field::Duration => match (record.created_at, record.completed_at) {
                (Some(from), Some(to)) => to.to_nanos().saturating_sub(from.to_nanos()),
                _ => 0,
            },
        };
        match self.comparison {
            Comparison::AtLeast => number >= self.number,
            Comparison::AtMost => number <= self.number,
            Comparison::More => number > self.number,
            Comparison::Less => number < self.number,
            _ => false,
        }
    }

    fn text_holds(&self, text: &str) -> bool {
        match self.comparison {
            Comparison::Equal => text == self.text,
            Comparison::NotEqual => text != self.text,
            _ => text.contains(&self.text),
        }
    }
}

fn status(record: &BuildHistoryRecord) -> &'static str {
    match (&record.completed_at, &record.error) {
        (None, _) => "running",
        (Some(_), None) => "completed",
        (Some(_), Some(error)) if error.message.contains("context canceled") => "canceled",
        (Some(_), Some(_)) => "error",
    }
}

fn repository(record: &BuildHistoryRecord) -> &str {
    let get = |name: &str| record.frontend_attrs.get(name);
    let found = get("vcs:source").or_else(|| get("context"));
    found.map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::{RpcStatus, Timestamp};

    #[test]
    fn records_are_filtered() {
        let record = BuildHistoryRecord {
            r#ref: "abc".into(),
            error: Some(RpcStatus {
                message: "failed".into(),
                ..RpcStatus::default()
            }),
            created_at: Some(Timestamp::from_nanos(1000 * SECOND)),
            completed_at: Some(Timestamp::from_nanos(1090 * SECOND)),
            ..BuildHistoryRecord::default()
        };
        for (text, expected) in [
            ("", Some(true)),
            ("ref~=b", Some(true)),
            ("ref==b", Some(false)),
            ("status==error", Some(true)),
            ("status!=error", Some(false)),
            ("status==error,ref~=x", Some(false)),
            ("duration>=1m30s", Some(true)),
            ("duration>1m30s", Some(false)),
            ("duration<100s", Some(true)),
            ("startedAt>=9s", Some(false)),
            ("startedAt>=1h", Some(true)),
            ("completedAt<1970-01-01T01:00:00Z", Some(true)),
            ("duration==1s", None),
            ("ref>=x", None),
            ("none==x", None),
            ("duration>=x", None),
            ("x", None),
        ] {
            let filters = Filters::parse(&[text.to_owned()], 1010);
            let found = filters.ok().map(|filters| filters.hold(&record));
            assert_eq!(found, expected, "{text}");
        }
    }
}
