//! The command-line client: Docker's commands and flags, implemented with the Engine API only.
//!
//! `commands` has one file per command, in a directory per group; `client` is the HTTP client;
//! `context` is Docker's context store; `format` formats tables and executes Go templates.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "errors about files named on a command line have Docker's texts"
)]
// `output` writes instead: these macros panic on a closed pipe or a full disk.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod autostart;
mod certificates;
mod client;
mod commands;
mod config_file;
mod context;
mod credentials;
mod endpoint;
mod files;
mod flags;
mod format;
mod headers;
mod output;
mod ssh;
mod terminal;

use std::path::PathBuf;
use std::process::ExitCode;

/// Implements `system repair`, which works on files instead of the API. Takes the data root and the
/// configuration file if given, and returns lines to print.
pub type Repair = fn(Option<PathBuf>, Option<PathBuf>) -> anyhow::Result<Vec<String>>;

/// Returns the definitions of all commands, for the manual pages.
pub fn definitions() -> clap::Command {
    commands::definitions()
}

/// Normalizes the words after a program's name by the rules of Docker's CLI, so that clap can parse
/// them.
///
/// # Errors
/// Returns the error's text if the words are invalid.
pub fn read_flags(
    mut command: clap::Command,
    words: impl Iterator<Item = std::ffi::OsString>,
) -> Result<Vec<String>, String> {
    command.build();
    let words = words.map(|word| {
        word.into_string()
            .map_err(|word| format!("the argument {} is not valid UTF-8", word.display()))
    });
    match flags::read(&command, &words.collect::<Result<Vec<_>, _>>()?) {
        Ok(flags::Line::Words(words)) => Ok(words),
        Ok(flags::Line::Help { mut path, .. }) => {
            path.push("--help".into());
            Ok(path)
        }
        Err(mistake) => Err(mistake.kind.to_string()),
    }
}

/// Runs the command line of this process.
pub fn main(repair: Repair) -> ExitCode {
    // Rust ignores SIGPIPE, and so do the engine and the shim in this executable: writing to a
    // closed pipe is an error, see `output`.
    match commands::run(repair) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            if !failure.text.is_empty() {
                // It may be that of an engine, a server or a definition.
                output::warn_line!("{}", terminal::harmless(&failure.text));
            }
            ExitCode::from(failure.code)
        }
    }
}

/// A failed command: the error text and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub text: String,
    pub code: u8,
    /// Whether the command line may be the cause, so that the command's help is of use.
    pub hint: bool,
    /// Whether the command's output could not be written.
    pub is_unwritten: bool,
}

pub(crate) type Outcome<T = u8> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            code: 1,
            hint: true,
            is_unwritten: false,
        }
    }

    pub(crate) fn with_code(code: u8, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            code,
            hint: true,
            is_unwritten: false,
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(plain(&error))
    }
}

/// Returns the text of a system error as Go words it.
pub(crate) fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.chars().next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(text.chars().skip(1)).collect()
    })
}
