//! JSON bodies of requests, read as Go reads them: clients see Go's error texts, and rely on how
//! forgiving it is.
//!
//! `parse` turns bytes into a [`Value`]; `decode` turns a value into a struct.

mod decode;
mod go_types;
mod parse;

pub(crate) use decode::{decode, decode_field};
pub(crate) use parse::{Syntax, Value, parse};
