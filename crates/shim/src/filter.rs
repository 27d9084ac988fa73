//! Compiled seccomp filters as files: the engine compiles each once, every shim reads its own.
//!
//! ```text
//! flags (u32 LE) | instructions (8 bytes each: code u16 LE, jump true u8, jump false u8, value u32 LE)
//! ```

use std::path::Path;

use whelk_runtime::seccomp::Filter;
use whelk_runtime::{Error, Result};
use whelk_sys::fs;
use whelk_sys::seccomp::Instruction;

/// Encodes a filter for its file.
pub fn encode(filter: &Filter) -> Vec<u8> {
    let mut bytes = filter.flags.to_le_bytes().to_vec();
    for instruction in &filter.program {
        bytes.extend(instruction.code.to_le_bytes());
        bytes.extend([instruction.jump_true, instruction.jump_false]);
        bytes.extend(instruction.value.to_le_bytes());
    }
    bytes
}

/// Reads a filter from its file.
///
/// # Errors
/// Returns an error if the file is truncated or empty: a container must not start with an
/// incomplete filter.
pub fn read(path: &Path) -> Result<Filter> {
    let bytes = fs::read(path)?;
    let damaged = || {
        Error::Os(format!(
            "{} is not a complete seccomp filter",
            path.display()
        ))
    };
    let (flags, rest) = bytes.split_first_chunk::<4>().ok_or_else(damaged)?;
    let (instructions, tail) = rest.as_chunks::<8>();
    if instructions.is_empty() || !tail.is_empty() {
        return Err(damaged());
    }
    let program = instructions
        .iter()
        .map(|&[a, b, jump_true, jump_false, w, x, y, z]| Instruction {
            code: u16::from_le_bytes([a, b]),
            jump_true,
            jump_false,
            value: u32::from_le_bytes([w, x, y, z]),
        });
    Ok(Filter {
        program: program.collect(),
        flags: u32::from_le_bytes(*flags),
        listener: None,
    })
}
