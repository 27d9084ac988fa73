//! Extended attributes of files (xattr(7)).

use std::os::fd::AsFd;

use rustix::fs::{fgetxattr, flistxattr};
use rustix::io::Errno;

/// Limit of the kernel for the list of a file's names, and for each value, in bytes.
const MAX_SIZE: usize = 64 << 10;

/// The prefix of the attributes in which overlayfs keeps what it knows of a file in a layer.
pub const OVERLAY: &[u8] = b"trusted.overlay.";

/// Returns the names of a file's attributes; none if its file system has no attributes. `buffer` is memory to be used.
///
/// # Errors
/// Returns an error if they cannot be read.
pub fn names(file: impl AsFd, buffer: &mut Vec<u8>) -> Result<impl Iterator<Item = &[u8]>, Errno> {
    buffer.resize(MAX_SIZE, 0);
    let length = match flistxattr(file, &mut buffer[..]) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => 0,
        result => result?,
    };
    let names = buffer[..length].split(|byte| *byte == 0);
    Ok(names.filter(|name| !name.is_empty()))
}

/// Returns the value of an attribute; `None` if the file does not have it. `buffer` is memory to be used.
///
/// # Errors
/// Returns an error if it cannot be read.
pub fn value<'a>(
    file: impl AsFd,
    name: &[u8],
    buffer: &'a mut Vec<u8>,
) -> Result<Option<&'a [u8]>, Errno> {
    buffer.resize(MAX_SIZE, 0);
    match fgetxattr(file, name, &mut buffer[..]) {
        Ok(length) => Ok(Some(&buffer[..length])),
        Err(Errno::NODATA) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use rustix::fs::XattrFlags;

    use super::*;
    use crate::{Scratch, fs};

    #[test]
    fn attributes_are_listed_and_read() {
        let scratch = Scratch::temporary("xattr").unwrap();
        let file = fs::create(scratch.path().join("file"), 0o600).unwrap();
        let (mut list, mut content) = (Vec::new(), Vec::new());
        assert_eq!(value(&file, b"user.none", &mut content), Ok(None));
        for (name, value) in [("user.a", "one"), ("user.b", "")] {
            let set = rustix::fs::fsetxattr(&file, name, value.as_bytes(), XattrFlags::empty());
            if set.is_err() {
                // This file system takes none.
                return;
            }
        }
        let found = names(&file, &mut list).unwrap();
        let mut found: Vec<&[u8]> = found.filter(|name| name.starts_with(b"user.")).collect();
        found.sort_unstable();
        assert_eq!(found, [b"user.a", b"user.b"]);
        let one = value(&file, b"user.a", &mut content).unwrap();
        assert_eq!(one, Some(&b"one"[..]));
        assert_eq!(value(&file, b"user.b", &mut content), Ok(Some(&b""[..])));
    }
}
