//! The Dockerfile language: lines, words with variables, and the instructions that change an
//! image's configuration.
//!
//! Pure functions of text. What an instruction does to an image is its caller's: `import --change`
//! and `commit --change` apply the ones that are known here to an image configuration.
#![forbid(unsafe_code)]

mod duration;
mod expand;
mod instruction;
mod parser;

pub use expand::{Environment, LONGEST_WORD, Lexer};
pub use instruction::{Command, Healthcheck, Instruction, Pair};
pub use parser::{Dockerfile, Line, parse};

/// What is wrong with a Dockerfile, in BuildKit's words where it has some.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub(crate) String);

impl Error {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

pub type Result<T> = std::result::Result<T, Error>;
