//! JSON bodies of requests, read as Go reads them: clients see Go's error texts, and rely on how
//! forgiving it is.
//!
//! `parse` checks bytes and finds the [`Value`] in them; `decode` turns a value into a struct.

mod decode;
mod go_types;
mod parse;

pub(crate) use decode::{Error as DecodeError, decode, decode_field};
pub(crate) use parse::{Syntax, Value, parse};
