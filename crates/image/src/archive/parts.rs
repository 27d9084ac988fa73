//! Extracts the parts of an archive to files. The archive is a stream, and which parts are needed
//! is known only at its end.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::OnceLock;

use tar::{Archive, EntryType};
use whelk_sys::fs;

use crate::content::MAX_CONFIG_SIZE;
use crate::copy::{self, copy};
use crate::digest::{Algorithm, Digest, Hashing};
use crate::error::{Error, Result, io};
use crate::snapshots::MAX_HEADERS_SIZE;
use crate::snapshots::sparse::Sparse;

/// Maximum number of entries in an archive. Images have at most a few hundred layers.
const MAX_PARTS: usize = 20_000;
/// Maximum length of a part name in bytes. Real names are digests and short words.
const MAX_NAME_LEN: usize = 1024;
/// Maximum total size of the manifests, indexes and configurations of one archive, in bytes.
const MAX_METADATA_SIZE: u64 = 32 << 20;
/// Maximum total size of sparse files, in bytes. They are extracted with their holes filled.
const MAX_SPARSE_SIZE: u64 = 16 << 30;
/// Maximum number of links followed to find a part.
const MAX_LINKS: usize = 8;

/// The parts of an archive, extracted to files whose names do not depend on the archive.
pub(super) struct Parts {
    parts: BTreeMap<String, Part>,
    /// Remaining metadata budget in bytes.
    budget: Cell<u64>,
}

enum Part {
    File(File),
    /// Target of a symbolic or hard link. Legacy archives link a layer that several images share.
    Link(String),
}

/// A part that is a file.
#[derive(Clone, Debug)]
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) size: u64,
    pub(super) digest: Digest,
    /// By another algorithm than [`File::digest`], once it was needed.
    other_digest: OnceLock<Digest>,
}

impl File {
    /// Returns the digest by another algorithm than SHA-256. The file is read once, however many
    /// manifests name it.
    fn digest_by(&self, algorithm: Algorithm, part: &str) -> Result<Digest> {
        if let Some(digest) = self.other_digest.get()
            && digest.algorithm() == algorithm
        {
            return Ok(digest.clone());
        }
        let mut hashing = Hashing::with(algorithm, fs::open(&self.path)?);
        std::io::copy(&mut hashing, &mut std::io::sink())
            .map_err(io(format!("read {}", shown(part))))?;
        let digest = hashing.finish().0;
        // Only one other algorithm exists.
        let _ = self.other_digest.set(digest.clone());
        Ok(digest)
    }
}

impl Parts {
    /// Reads an archive to its end and extracts its files into `directory`.
    ///
    /// # Errors
    /// Returns an error if the archive is malformed or exceeds a limit.
    pub(super) fn extract(input: impl Read, directory: &Path) -> Result<Self> {
        let mut parts = BTreeMap::new();
        let (mut number, mut sparse) = (0usize, 0u64);
        let mut buffer = copy::buffer();
        let headers = Rc::new(Cell::new(0));
        let mut archive = Archive::new(HeaderBound {
            inner: input,
            headers: headers.clone(),
        });
        for entry in archive.entries().map_err(io("invalid archive"))? {
            let mut entry = entry.map_err(io("invalid archive"))?;
            let kind = entry.header().entry_type();
            number += 1;
            if number > MAX_PARTS {
                return Err(Error::invalid(format!(
                    "invalid archive: more than {MAX_PARTS} entries"
                )));
            }
            let records = records(&mut entry)?;
            let holes = Sparse::of(&records)?;
            let name = holes
                .as_ref()
                .and_then(|holes| holes.name.clone())
                .unwrap_or_else(|| entry.path_bytes().into_owned());
            let name = part_name(name)?;
            let part = match kind {
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    let size = holes.as_ref().map_or(entry.size(), |holes| holes.size);
                    if holes.is_some() || kind == EntryType::GNUSparse {
                        sparse = sparse.saturating_add(size);
                        if sparse > MAX_SPARSE_SIZE {
                            return Err(Error::invalid(format!(
                                "invalid archive: files with holes of more than {MAX_SPARSE_SIZE} bytes in all"
                            )));
                        }
                    }
                    headers.set(CONTENT);
                    // Files are numbered, not named: a second entry with the same name must not
                    // overwrite a file that was already checked.
                    let path = directory.join(number.to_string());
                    let stored = entry.size();
                    let file = match holes {
                        Some(holes) => {
                            write(holes.expand(entry, stored)?, path, size, &name, &mut buffer)?
                        }
                        None => write(entry, path, size, &name, &mut buffer)?,
                    };
                    Part::File(file)
                }
                EntryType::Symlink | EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                    let base = if kind == EntryType::Symlink {
                        name.rsplit_once('/').map_or("", |(base, _)| base)
                    } else {
                        ""
                    };
                    Part::Link(resolve(base, &text(target)?))
                }
                // Directories, and entry types that images do not use.
                _ => continue,
            };
            headers.set(0);
            parts.insert(name, part);
        }
        Ok(Self {
            parts,
            budget: Cell::new(MAX_METADATA_SIZE),
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.file(name).is_ok()
    }

    /// Returns the names of all parts.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.keys().map(String::as_str)
    }

    /// Returns the file of a part, following links.
    ///
    /// # Errors
    /// Returns an error if the part does not exist.
    pub(super) fn file(&self, name: &str) -> Result<&File> {
        let mut key = resolve("", name);
        for _ in 0..MAX_LINKS {
            match self.parts.get(&key) {
                Some(Part::File(file)) => return Ok(file),
                Some(Part::Link(target)) => key.clone_from(target),
                // One of its parent directories may be a link.
                None => match self.through_link(&key) {
                    Some(target) => key = target,
                    None => break,
                },
            }
        }
        Err(Error::invalid(format!(
            "invalid archive: {} is missing",
            shown(name)
        )))
    }

    fn through_link(&self, key: &str) -> Option<String> {
        key.match_indices('/')
            .find_map(|(end, _)| match self.parts.get(&key[..end]) {
                Some(Part::Link(target)) => Some(resolve("", &format!("{target}{}", &key[end..]))),
                _ => None,
            })
    }

    /// Reads a metadata part (manifest, index, configuration). Every call counts against the
    /// metadata budget, so callers must not read a part twice.
    ///
    /// # Errors
    /// Returns an error if the part does not exist, is larger than [`MAX_CONFIG_SIZE`] or exceeds
    /// the budget.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>> {
        let file = self.file(name)?;
        if file.size > MAX_CONFIG_SIZE {
            return Err(Error::invalid(format!(
                "invalid archive: {} is larger than {MAX_CONFIG_SIZE} bytes",
                shown(name)
            )));
        }
        self.charge(file.size)?;
        Ok(fs::read(&file.path)?)
    }

    /// Takes `bytes` from the metadata budget.
    ///
    /// # Errors
    /// Returns an error if the budget is exceeded.
    pub(super) fn charge(&self, bytes: u64) -> Result<()> {
        let left = self.budget.get().checked_sub(bytes).ok_or_else(|| {
            Error::invalid(format!("invalid archive: its manifests and configurations are larger than {MAX_METADATA_SIZE} bytes in all"))
        })?;
        self.budget.set(left);
        Ok(())
    }

    /// Checks that a part named by a digest has that digest.
    pub(super) fn check_name(&self, part: &str) -> Result<()> {
        let stem = part
            .rsplit('/')
            .next()
            .unwrap_or(part)
            .trim_end_matches(".json");
        let directory = part.trim_start_matches("./").strip_prefix("blobs/");
        let directory = directory.and_then(|rest| rest.split('/').next());
        let mut algorithms = Algorithm::ALL.into_iter();
        let algorithm = algorithms
            .find(|algorithm| directory == Some(algorithm.name()))
            .or_else(|| {
                let is_id = part.ends_with(".json") && stem.len() == 64;
                is_id.then_some(Algorithm::Sha256)
            });
        let file = self.file(part)?;
        let digest = match algorithm {
            None => return Ok(()),
            Some(Algorithm::Sha256) => file.digest.clone(),
            Some(other) => file.digest_by(other, part)?,
        };
        if digest.hex() == stem {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "invalid archive: {} has the digest {digest}",
            shown(part)
        )))
    }
}

fn write(
    mut content: impl Read,
    path: PathBuf,
    size: u64,
    name: &str,
    buffer: &mut [u8],
) -> Result<File> {
    let mut file = Hashing::new(fs::create(&path, 0o600)?);
    let copied = copy(&mut content, &mut file, buffer)
        .and_then(|copied| file.flush().map(|()| copied))
        .map_err(|error| {
            // Errors of the archive have no number of the system's.
            let operation = match error.raw_os_error() {
                Some(_) => format!("unpack {name}"),
                None => format!("invalid archive: {name}"),
            };
            io(operation)(error)
        })?;
    if copied != size {
        return Err(Error::invalid(format!(
            "invalid archive: {name} is truncated: {copied} of {size} bytes"
        )));
    }
    let (digest, _, _) = file.finish();
    Ok(File {
        path,
        size,
        digest,
        other_digest: OnceLock::new(),
    })
}

/// Returns the `GNU.sparse.*` records of an entry's pax headers.
fn records(entry: &mut tar::Entry<'_, impl Read>) -> Result<Vec<(String, Vec<u8>)>> {
    let Some(extensions) = entry.pax_extensions().map_err(io("invalid archive"))? else {
        return Ok(Vec::new());
    };
    // Records that the parser rejects cannot be sparse records, so they are skipped.
    let known = extensions
        .filter_map(|record| record.ok())
        .filter_map(|record| Some((record.key().ok()?, record.value_bytes())));
    Ok(known
        .filter(|(key, _)| key.starts_with("GNU.sparse."))
        .map(|(key, value)| (key.to_owned(), value.to_vec()))
        .collect())
}

fn text(name: Vec<u8>) -> Result<String> {
    if name.len() > MAX_NAME_LEN {
        return Err(Error::invalid(format!(
            "invalid archive: a name is longer than {MAX_NAME_LEN} bytes"
        )));
    }
    String::from_utf8(name).map_err(|_| Error::invalid("invalid archive: a name is not UTF-8"))
}

/// Normalizes a part name: removes leading `./` and `/`.
///
/// # Errors
/// Returns an error if the name leads outside the archive or is too long.
fn part_name(name: Vec<u8>) -> Result<String> {
    let name = text(name)?;
    let mut depth = 0i32;
    for component in Path::new(&name).components() {
        depth += match component {
            Component::Normal(_) => 1,
            Component::ParentDir => -1,
            _ => 0,
        };
        if depth < 0 {
            return Err(Error::invalid(format!(
                "invalid archive: the name {} leads outside the archive",
                shown(&name)
            )));
        }
    }
    Ok(resolve("", &name))
}

/// Resolves `path` relative to `base`, or to the archive's root if it is absolute. `..` at the root
/// is ignored.
fn resolve(base: &str, path: &str) -> String {
    let mut parts: Vec<&str> = if path.starts_with('/') {
        Vec::new()
    } else {
        base.split('/').filter(|part| !part.is_empty()).collect()
    };
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.extend(part.to_str()),
            Component::ParentDir => {
                parts.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    parts.join("/")
}

/// Truncates a name from the archive for use in an error text.
pub(super) fn shown(name: &str) -> String {
    const SHOWN: usize = 256;
    name.chars().take(SHOWN).collect()
}

/// Fails when an entry's headers exceed [`MAX_HEADERS_SIZE`], so that they cannot exhaust memory.
/// Bytes read while content is copied do not count.
struct HeaderBound<R> {
    inner: R,
    headers: Rc<Cell<u64>>,
}

/// Value of [`HeaderBound::headers`] while content is copied.
const CONTENT: u64 = u64::MAX;

impl<R: Read> Read for HeaderBound<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if self.headers.get() != CONTENT {
            self.headers.set(self.headers.get() + count as u64);
            if self.headers.get() > MAX_HEADERS_SIZE {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::InvalidData,
                    format!("an entry's headers are larger than {MAX_HEADERS_SIZE} bytes"),
                ));
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_hashed_once_however_often_it_is_named() {
        let scratch = whelk_sys::Scratch::temporary("part").unwrap();
        let path = scratch.path().join("part");
        let file = write(&b"x"[..], path.clone(), 1, "x", &mut [0; 16]).unwrap();
        let expected = Algorithm::Sha512.digest(b"x");
        assert_eq!(file.digest_by(Algorithm::Sha512, "x").unwrap(), expected);
        fs::remove_file(&path).unwrap();
        assert_eq!(file.digest_by(Algorithm::Sha512, "x").unwrap(), expected);
    }

    #[test]
    fn bounds_the_total_size_of_metadata() {
        let parts = Parts {
            parts: BTreeMap::new(),
            budget: Cell::new(MAX_METADATA_SIZE),
        };
        parts.charge(MAX_METADATA_SIZE - 1).unwrap();
        assert_eq!(
            parts.charge(2).unwrap_err().to_string(),
            format!(
                "invalid archive: its manifests and configurations are larger than {MAX_METADATA_SIZE} bytes in all"
            )
        );
        parts.charge(1).unwrap();
    }

    #[test]
    fn part_names_stay_inside_the_archive() {
        for (base, path, expected) in [
            ("", "./a//b", "a/b"),
            ("a/b", "../c", "a/c"),
            ("a", "/x", "x"),
            ("a", "../../../x", "x"),
            ("", "/", ""),
        ] {
            assert_eq!(resolve(base, path), expected, "{base} {path}");
        }
        for (name, expected) in [
            (
                b"a/../../b".to_vec(),
                "the name a/../../b leads outside the archive",
            ),
            (vec![b'a'; 2000], "a name is longer than 1024 bytes"),
            (vec![0xff], "a name is not UTF-8"),
        ] {
            assert_eq!(
                part_name(name).unwrap_err().to_string(),
                format!("invalid archive: {expected}")
            );
        }
        assert_eq!(part_name(b"/a/../b".to_vec()).unwrap(), "b");
    }
}
