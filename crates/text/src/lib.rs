//! Texts that Docker's clients and engine read and write in the same way: sizes, durations, times, signals, limits,
//! patterns, names of platforms, words of a command line.
//!
//! Pure functions of text: no clock, no environment, except that a time without an offset is in the
//! system's time zone.
#![forbid(unsafe_code)]

pub mod build;
pub mod device_name;
pub mod duration;
pub mod extra_host;
pub mod glob;
pub mod number;
pub mod platform;
pub mod progress;
pub mod signal;
pub mod size;
pub mod time;
pub mod ulimit;
pub mod url;
pub mod words;

/// A text that cannot be parsed. Displays the text of the function in Go that it stands for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl Error {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// Parses a boolean as Go's `strconv.ParseBool` does.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Some(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}
