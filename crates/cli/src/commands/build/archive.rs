//! The archive that is a context on the standard input.

use std::cell::Cell;
use std::io::{self, Read};
use std::path::{Component, Path};
use std::rc::Rc;

use tar::EntryType;

use crate::plain;

/// Notes that its input has ended.
struct Watched<R> {
    inner: R,
    has_ended: Rc<Cell<bool>>,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if count == 0 && !buffer.is_empty() {
            self.has_ended.set(true);
        }
        Ok(count)
    }
}

/// Unpacks an archive, which may be compressed, into a directory that is there.
///
/// # Errors
/// Returns the cause, which names the entry, and not the directory.
pub(super) fn unpack(input: impl Read + Send, root: &Path) -> Result<(), String> {
    let inner = whelk_image::compression::decompress(input).map_err(|error| error.to_string())?;
    let has_ended = Rc::new(Cell::new(false));
    let mut archive = tar::Archive::new(Watched {
        inner,
        has_ended: Rc::clone(&has_ended),
    });
    archive.set_preserve_permissions(true);
    let unread = |error: io::Error| match is_cut(&error, has_ended.get()) {
        true => "unexpected EOF".to_owned(),
        false => cause(&error, root),
    };
    let unmade = |name: &str, error: &io::Error| format!("{name:?}: {}", cause(error, root));
    // Last, so that their permissions do not hinder what is in them.
    let mut directories = Vec::new();
    for entry in archive.entries().map_err(unread)? {
        let mut entry = entry.map_err(unread)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut parts = Path::new(&name).components();
        if parts.any(|part| part == Component::ParentDir) {
            return Err(format!("invalid entry name {name:?}"));
        }
        if entry.header().entry_type() == EntryType::Directory {
            directories.push((name, entry));
            continue;
        }
        entry
            .unpack_in(root)
            .map_err(|error| match is_cut(&error, has_ended.get()) {
                true => "unexpected EOF".to_owned(),
                false => unmade(&name, &error),
            })?;
    }
    // Those that are in others first.
    directories.sort_by(|(one, _), (other, _)| other.cmp(one));
    for (name, mut entry) in directories {
        let made = entry.unpack_in(root);
        made.map_err(|error| unmade(&name, &error))?;
    }
    Ok(())
}

/// Returns the innermost of the errors that the library has nested.
fn innermost(error: &io::Error) -> &(dyn std::error::Error + 'static) {
    let mut found: &(dyn std::error::Error + 'static) = error;
    while let Some(source) = found.source() {
        found = source;
    }
    found
}

/// Returns the error of the system, if it is one.
fn of_system(error: &io::Error) -> Option<&io::Error> {
    let found = innermost(error).downcast_ref::<io::Error>()?;
    found.raw_os_error().map(|_| found)
}

/// Whether an error is that the archive ends too early.
fn is_cut(error: &io::Error, has_ended: bool) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof || (has_ended && of_system(error).is_none())
}

fn cause(error: &io::Error, root: &Path) -> String {
    if let Some(error) = of_system(error) {
        let directory = root.parent().unwrap_or(root).display();
        let cause = plain(error);
        return format!("{cause}, in {directory} (TMPDIR names another directory)");
    }
    if error.to_string().starts_with("trying to unpack outside") {
        return "it is outside of the context".into();
    }
    let text = innermost(error).to_string();
    text.replace(&format!("{}/", root.display()), "")
}

#[cfg(test)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;

    fn header(name: &str, kind: EntryType, size: usize) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        // Not by the library's function, which refuses names such as `../x`.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(size as u64);
        header.set_cksum();
        header
    }

    fn archive(name: &str, content: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let directory = header("d/", EntryType::Directory, 0);
        builder.append(&directory, io::empty()).unwrap();
        let file = header(name, EntryType::Regular, content.len());
        builder.append(&file, content).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_cut_archive_says_so() {
        let place = Scratch::temporary("archive-cut").unwrap();
        let content: Vec<u8> = (0..20_000_u32).flat_map(u32::to_le_bytes).collect();
        let whole = archive("d/file", &content);
        assert_eq!(unpack(&*whole, place.path()), Ok(()));
        assert_eq!(std::fs::read(place.path().join("d/file")).unwrap(), content);
        for length in [700, 5000, 1024 + content.len()] {
            let cut = unpack(&whole[..length], place.path());
            assert_eq!(cut, Err("unexpected EOF".into()), "{length}");
        }
    }

    #[test]
    fn entries_outside_are_refused_by_name() {
        let place = Scratch::temporary("archive-outside").unwrap();
        for name in ["../Dockerfile", "d/../../x", "d/../x"] {
            let expected = format!("invalid entry name {name:?}");
            assert_eq!(unpack(&*archive(name, b"x"), place.path()), Err(expected));
        }
        std::os::unix::fs::symlink("/", place.path().join("root")).unwrap();
        let expected = Err("\"root/x\": it is outside of the context".to_owned());
        assert_eq!(unpack(&*archive("root/x", b"x"), place.path()), expected);
    }

    #[test]
    fn a_damaged_archive_is_no_cut_one() {
        let place = Scratch::temporary("archive-damaged").unwrap();
        let mut damaged = archive("d/file", &[7; 4000]);
        damaged[512] = b'x';
        let expected = Err("archive header checksum mismatch".to_owned());
        assert_eq!(unpack(&*damaged, place.path()), expected);
    }
}
