//! HEALTHCHECK.

use whelk_text::duration;

use super::flags::{Flags, Kind};
use crate::error::{Error, Result};
use crate::parser::Line;

/// A health check. Times are in nanoseconds; 0 means the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", LINE]`.
    pub test: Vec<String>,
    pub interval: i64,
    pub timeout: i64,
    pub start_period: i64,
    pub start_interval: i64,
    pub retries: i32,
}

pub(super) fn parse(line: &Line) -> Result<Healthcheck> {
    let Some((kind, arguments)) = line.arguments.split_first() else {
        return Err(super::needs_argument("HEALTHCHECK"));
    };
    let kind = kind.to_uppercase();
    if kind == "NONE" {
        return if arguments.is_empty() {
            Ok(Healthcheck {
                test: vec![kind],
                ..Healthcheck::default()
            })
        } else {
            Err(Error::new("HEALTHCHECK NONE takes no arguments"))
        };
    }
    let names = [
        "interval",
        "timeout",
        "start-period",
        "start-interval",
        "retries",
    ];
    let flags = Flags::read(&line.flags, &names.map(|name| (name, Kind::One)))?;
    if kind != "CMD" {
        return Err(Error::new(format!(
            "Unknown type {kind:?} in HEALTHCHECK (try CMD)"
        )));
    }
    if arguments.is_empty() {
        return Err(Error::new("Missing command after HEALTHCHECK CMD"));
    }
    let kind = if line.json { "CMD" } else { "CMD-SHELL" };
    Ok(Healthcheck {
        test: std::iter::once(kind.to_owned())
            .chain(arguments.iter().cloned())
            .collect(),
        interval: time(&flags, "interval")?,
        timeout: time(&flags, "timeout")?,
        start_period: time(&flags, "start-period")?,
        start_interval: time(&flags, "start-interval")?,
        retries: retries(flags.get("retries"))?,
    })
}

fn time(flags: &Flags<'_>, name: &str) -> Result<i64> {
    const SHORTEST: i64 = 1_000_000;
    match flags.get(name) {
        "" => Ok(0),
        text => match duration::parse(text)? {
            short if short != 0 && short < SHORTEST => Err(Error::new(format!(
                "Interval {name:?} cannot be less than 1ms"
            ))),
            duration => Ok(duration),
        },
    }
}

fn retries(text: &str) -> Result<i32> {
    if text.is_empty() {
        return Ok(0);
    }
    let retries = text.parse::<i32>().map_err(|error| {
        let cause = if matches!(
            error.kind(),
            std::num::IntErrorKind::PosOverflow | std::num::IntErrorKind::NegOverflow
        ) {
            "value out of range"
        } else {
            "invalid syntax"
        };
        Error::new(format!("strconv.ParseInt: parsing {text:?}: {cause}"))
    })?;
    if retries < 0 {
        return Err(Error::new(format!(
            "--retries cannot be negative ({retries})"
        )));
    }
    Ok(retries)
}
