//! The Dockerfile language: lines, words with variables, and the instructions that change an
//! image's configuration.
//!
//! Pure functions of text. Applying an instruction to an image is up to the caller: `import
//! --change` and `commit --change` apply those that are supported here to an image configuration.
#![forbid(unsafe_code)]

mod expand;
mod instruction;
mod parser;

pub use expand::{Budget, Environment, Lexer, MAX_WORD};
pub use instruction::{Command, Healthcheck, Instruction, Pair};
pub use parser::{Dockerfile, Line, parse};

/// An error in a Dockerfile, with BuildKit's text where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub(crate) String);

impl Error {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl From<whelk_text::Error> for Error {
    fn from(error: whelk_text::Error) -> Self {
        Self(error.to_string())
    }
}

pub type Result<T> = std::result::Result<T, Error>;
