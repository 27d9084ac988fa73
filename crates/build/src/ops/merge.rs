//! Merges: the layers of several results above each other.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use whelk_llb::pb::MergeOp;
use whelk_sys::overlay;

use super::{Context, diff, input};
use crate::error::{Error, Result, os};
use crate::layers::{MAX_LAYERS, Stack};
use crate::tree::{self, MAX_DEPTH};

/// Merges results. Blocking.
pub(super) fn run(context: &Context, op: &MergeOp, inputs: &[Stack]) -> Result<Stack> {
    let mut layers = Vec::new();
    for (number, one) in op.inputs.iter().enumerate() {
        let stack = input(inputs, one.input)?;
        if layers.len() + stack.0.len() > MAX_LAYERS {
            let text = format!("a merge of more than {MAX_LAYERS} layers");
            return Err(Error::invalid(text));
        }
        if number == 0 {
            layers.extend(stack.0);
            continue;
        }
        for (index, layer) in stack.0.iter().enumerate() {
            // Below it are the layers of other results then, whose files must stay.
            layers.push(match has_opaque(context, &stack, index)? {
                true => diff::without_opaque(context, &stack, index)?,
                false => layer.clone(),
            });
        }
    }
    Ok(Stack(layers))
}

/// Returns whether a layer replaces a whole directory.
fn has_opaque(context: &Context, stack: &Stack, index: usize) -> Result<bool> {
    let layer = &stack.0[index];
    // The lowest one of a build stands on nothing, so that there is nothing to replace, unless it was part of a higher stack: then it
    // is sealed, and has a mark. Nothing else of a layer that may be large is read.
    let is_lowest = index == 0 && layer.created != 0;
    if is_lowest && layer.is_open() {
        return Ok(false);
    }
    let alone = layer.mount(&context.store)?;
    let root = tree::open_below(&alone.root, OsStr::new(".")).map_err(os("read a layer"))?;
    if is_lowest && !overlay::is_marked(&root).map_err(os("read a layer"))? {
        return Ok(false);
    }
    has_opaque_below(&root, 0).map_err(os("read a layer"))
}

fn has_opaque_below(directory: &OwnedFd, depth: usize) -> rustix::io::Result<bool> {
    if depth > MAX_DEPTH {
        return Err(Errno::LOOP);
    }
    if tree::is_opaque(directory) {
        return Ok(true);
    }
    for name in tree::names(directory)? {
        let stat = tree::stat(directory, &name)?;
        if stat.is_some_and(|stat| tree::is_directory(&stat)) {
            let below = tree::open_below(directory, &name)?;
            if has_opaque_below(&below, depth + 1)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use whelk_sys::{Scratch, fs};

    use super::*;

    #[test]
    fn opaque_directories_are_found() {
        let scratch = Scratch::temporary("build-merge").unwrap();
        let path = scratch.path().join("a/b");
        fs::create_dir_all(&path, 0o755).unwrap();
        fs::write(path.join("file"), "").unwrap();
        let root: OwnedFd = fs::open(scratch.path()).unwrap().into();
        assert_eq!(has_opaque_below(&root, 0), Ok(false));
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::setxattr(&path, "trusted.overlay.opaque", b"y", flags).is_ok() {
            assert_eq!(has_opaque_below(&root, 0), Ok(true));
        }
    }
}
