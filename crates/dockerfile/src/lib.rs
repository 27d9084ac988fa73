//! The Dockerfile language: lines, words with variables, instructions and stages, and the patterns of
//! `.dockerignore`.
//!
//! Pure functions of text. [`parse`] splits a file into lines, [`Stages::parse`] into typed instructions.
#![forbid(unsafe_code)]

mod arguments;
pub mod convert;
pub mod csv;
mod directive;
mod environment;
mod error;
mod expand;
pub mod heredoc;
pub mod ignore;
pub mod instruction;
pub mod lint;
mod parser;
pub mod path;
mod quote;
pub mod report;
mod stage;
mod suggest;

pub use directive::{Directive, syntax};
pub use error::{Error, Lines, Result};
pub use expand::{Budget, Environment, Expansion, Keep, Lexer, MAX_WORD};
pub use instruction::{Command, Healthcheck, Instruction, Pair};
pub use parser::{Dockerfile, Line, parse, text};
pub use stage::{GlobalArgs, Stage, Stages, Step};
pub use suggest::similar;
