//! Merges: the layers of several results above each other.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use whelk_llb::pb::MergeOp;

use super::{Context, input};
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
        if number > 0 {
            check(context, &stack)?;
        }
        layers.extend(stack.0);
    }
    Ok(Stack(layers))
}

/// Refuses layers that replace a whole directory: below them are the layers of other results then, whose files must
/// stay.
fn check(context: &Context, stack: &Stack) -> Result<()> {
    for (number, layer) in stack.0.iter().enumerate() {
        // The lowest one of a build stands on nothing, so that there is nothing to replace.
        if number == 0 && layer.created != 0 {
            continue;
        }
        let alone = Stack(vec![layer.clone()]).mount(&context.store)?;
        let found = replaced(&alone.root, "", 0).map_err(os("read a layer"))?;
        if let Some(path) = found {
            return Err(Error::Unsupported(format!(
                "the merge of a result that replaces the directory /{path}"
            )));
        }
    }
    Ok(())
}

/// Returns a directory that hides that of the layers below.
fn replaced(parent: &OwnedFd, path: &str, depth: usize) -> rustix::io::Result<Option<String>> {
    if depth > MAX_DEPTH {
        return Err(Errno::LOOP);
    }
    let directory = tree::open_below(parent, OsStr::new("."))?;
    let mut value = [0u8; 1];
    let mark = rustix::fs::fgetxattr(&directory, "trusted.overlay.opaque", &mut value[..]);
    // overlayfs hides what is below for this value alone.
    if mark == Ok(1) && value == *b"y" {
        return Ok(Some(path.to_owned()));
    }
    for name in tree::names(&directory)? {
        let stat = tree::stat(&directory, &name)?;
        if stat.is_some_and(|stat| tree::is_directory(&stat)) {
            let below = tree::open_below(&directory, &name)?;
            let found = replaced(&below, &tree::join(path, &name), depth + 1)?;
            if found.is_some() {
                return Ok(found);
            }
        }
    }
    Ok(None)
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
        assert_eq!(replaced(&root, "", 0), Ok(None));
        let flags = rustix::fs::XattrFlags::empty();
        if rustix::fs::setxattr(&path, "trusted.overlay.opaque", b"y", flags).is_ok() {
            assert_eq!(replaced(&root, "", 0), Ok(Some("a/b".to_owned())));
        }
    }
}
