//! JSON request bodies with the semantics of Go's `encoding/json`: clients depend on its error
//! texts and leniency.
//!
//! `parse` validates bytes and returns a [`Value`]; `decode` decodes a value to a struct.

mod decode;
mod go_types;
mod parse;

pub(crate) use decode::{Error as DecodeError, decode, decode_field};
pub(crate) use parse::{Syntax, Value, parse};
