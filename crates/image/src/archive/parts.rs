//! The parts of an archive, set aside as files: it is a stream, and which parts matter is known at
//! its end only.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use tar::{Archive, EntryType};
use whelk_sys::fs;

use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result, io};
use crate::layer::LARGEST_HEADERS;
use crate::layer::sparse::Sparse;
use crate::store::LARGEST_CONFIG;

/// An archive may hold this many parts: images have at most some hundred layers.
const MOST_PARTS: usize = 20_000;
/// Parts are called by digests and short words; names may take this many bytes.
const LONGEST_NAME: usize = 1024;
/// Manifests, indexes and configurations of one archive may take this many bytes in all. Each is
/// read once.
const MOST_METADATA: u64 = 32 << 20;
/// What files with holes may add up to, in bytes: the holes are filled.
const MOST_SPARSE: u64 = 16 << 30;
/// Links are followed this many times, so that a cycle of links ends.
const MOST_LINKS: usize = 8;

/// The parts of an archive, as files with names of ours.
pub(super) struct Parts {
    parts: BTreeMap<String, Part>,
    /// How many bytes of metadata may still be read.
    budget: Cell<u64>,
}

enum Part {
    File(File),
    /// Old archives name a layer that several images share by links.
    Link(String),
}

/// A part that is a file.
#[derive(Clone, Debug)]
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) size: u64,
    pub(super) digest: Digest,
}

impl Parts {
    /// Reads an archive to its end and writes its files into `directory`.
    ///
    /// # Errors
    /// An archive that is malformed or too large in some way.
    pub(super) fn set_aside(input: impl Read, directory: &Path) -> Result<Self> {
        let mut parts = BTreeMap::new();
        let (mut number, mut sparse) = (0usize, 0u64);
        let headers = Rc::new(Cell::new(0));
        let mut archive = Archive::new(HeaderBound {
            inner: input,
            headers: headers.clone(),
        });
        for entry in archive.entries().map_err(io("invalid archive"))? {
            let mut entry = entry.map_err(io("invalid archive"))?;
            let kind = entry.header().entry_type();
            number += 1;
            if number > MOST_PARTS {
                return Err(Error::invalid(format!(
                    "invalid archive: more than {MOST_PARTS} entries"
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
                        if sparse > MOST_SPARSE {
                            return Err(Error::invalid(format!(
                                "invalid archive: files with holes of more than {MOST_SPARSE} bytes in all"
                            )));
                        }
                    }
                    headers.set(CONTENT);
                    // Numbered, not named: a name that comes twice must not overwrite what was
                    // checked.
                    let path = directory.join(number.to_string());
                    let stored = entry.size();
                    let file = match holes {
                        Some(holes) => write(holes.expand(entry, stored)?, path, size, &name)?,
                        None => write(entry, path, size, &name)?,
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
                // Directories, and what no image has use for.
                _ => continue,
            };
            headers.set(0);
            parts.insert(name, part);
        }
        Ok(Self {
            parts,
            budget: Cell::new(MOST_METADATA),
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.file(name).is_ok()
    }

    /// The names of all parts.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.keys().map(String::as_str)
    }

    /// A part that is a file, links followed.
    ///
    /// # Errors
    /// When it is missing.
    pub(super) fn file(&self, name: &str) -> Result<&File> {
        let mut key = resolve("", name);
        for _ in 0..MOST_LINKS {
            match self.parts.get(&key) {
                Some(Part::File(file)) => return Ok(file),
                Some(Part::Link(target)) => key.clone_from(target),
                // Some directory on the way may be a link.
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

    /// The content of a part that is metadata. Callers keep it, or what they made of it: every
    /// reading counts.
    ///
    /// # Errors
    /// A part that is missing or too large, alone or with all that was read before.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>> {
        let file = self.file(name)?;
        if file.size > LARGEST_CONFIG {
            return Err(Error::invalid(format!(
                "invalid archive: {} is larger than {LARGEST_CONFIG} bytes",
                shown(name)
            )));
        }
        self.charge(file.size)?;
        Ok(fs::read(&file.path)?)
    }

    /// Takes metadata that is kept in memory off the archive's budget.
    ///
    /// # Errors
    /// More than is left.
    pub(super) fn charge(&self, size: u64) -> Result<()> {
        let left = self.budget.get().checked_sub(size).ok_or_else(|| {
            Error::invalid(format!("invalid archive: its manifests and configurations are larger than {MOST_METADATA} bytes in all"))
        })?;
        self.budget.set(left);
        Ok(())
    }

    /// A part that is named by a digest must have it.
    pub(super) fn check_name(&self, part: &str) -> Result<()> {
        let stem = part
            .rsplit('/')
            .next()
            .unwrap_or(part)
            .trim_end_matches(".json");
        let by_digest = part.trim_start_matches("./").starts_with("blobs/sha256/")
            || part.ends_with(".json") && stem.len() == 64;
        let digest = &self.file(part)?.digest;
        if by_digest && digest.hex() != stem {
            Err(Error::invalid(format!(
                "invalid archive: {} has the digest {digest}",
                shown(part)
            )))
        } else {
            Ok(())
        }
    }
}

fn write(mut content: impl Read, path: PathBuf, size: u64, name: &str) -> Result<File> {
    let mut file = Hashing::new(fs::create(&path, 0o600)?);
    let copied = std::io::copy(&mut content, &mut file)
        .and_then(|copied| file.flush().map(|()| copied))
        .map_err(io(format!("invalid archive: {name}")))?;
    if copied != size {
        return Err(Error::invalid(format!(
            "invalid archive: {name} is cut short: {copied} of {size} bytes"
        )));
    }
    let (digest, _, _) = file.finish();
    Ok(File { path, size, digest })
}

/// The records of an entry's extended headers.
fn records(entry: &mut tar::Entry<'_, impl Read>) -> Result<Vec<(String, Vec<u8>)>> {
    let Some(extensions) = entry.pax_extensions().map_err(io("invalid archive"))? else {
        return Ok(Vec::new());
    };
    // What the parser cannot read is nothing about holes, which is all that is looked for.
    let known = extensions
        .filter_map(|record| record.ok())
        .filter_map(|record| Some((record.key().ok()?, record.value_bytes())));
    Ok(known
        .filter(|(key, _)| key.starts_with("GNU.sparse."))
        .map(|(key, value)| (key.to_owned(), value.to_vec()))
        .collect())
}

fn text(name: Vec<u8>) -> Result<String> {
    if name.len() > LONGEST_NAME {
        return Err(Error::invalid(format!(
            "invalid archive: a name is longer than {LONGEST_NAME} bytes"
        )));
    }
    String::from_utf8(name).map_err(|_| Error::invalid("invalid archive: a name is not UTF-8"))
}

/// The name of a part without `./` and `/` in front.
///
/// # Errors
/// One that climbs out of the archive, and one that is too long.
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
                "invalid archive: the name {} leads outside",
                shown(&name)
            )));
        }
    }
    Ok(resolve("", &name))
}

/// A path as a part's name: seen from `base`, or from the archive's top if it is absolute; above
/// the top is nothing.
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

/// A name of the sender's as an error shows it.
pub(super) fn shown(name: &str) -> String {
    const SHOWN: usize = 256;
    name.chars().take(SHOWN).collect()
}

/// Ends an archive whose entry headers alone would fill memory: what is read while no content is
/// being copied counts.
struct HeaderBound<R> {
    inner: R,
    headers: Rc<Cell<u64>>,
}

/// The value that says content is being copied.
const CONTENT: u64 = u64::MAX;

impl<R: Read> Read for HeaderBound<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if self.headers.get() != CONTENT {
            self.headers.set(self.headers.get() + count as u64);
            if self.headers.get() > LARGEST_HEADERS {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::InvalidData,
                    format!("an entry's headers are larger than {LARGEST_HEADERS} bytes"),
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
    fn metadata_is_bounded_in_all() {
        let parts = Parts {
            parts: BTreeMap::new(),
            budget: Cell::new(MOST_METADATA),
        };
        parts.charge(MOST_METADATA - 1).unwrap();
        assert!(parts.charge(2).is_err());
        parts.charge(1).unwrap();
    }

    #[test]
    fn names_stay_inside() {
        for (base, path, expected) in [
            ("", "./a//b", "a/b"),
            ("a/b", "../c", "a/c"),
            ("a", "/x", "x"),
            ("a", "../../../x", "x"),
            ("", "/", ""),
        ] {
            assert_eq!(resolve(base, path), expected, "{base} {path}");
        }
        assert!(
            part_name(b"a/../../b".to_vec()).is_err()
                && part_name(vec![b'a'; 2000]).is_err()
                && part_name(vec![0xff]).is_err()
        );
        assert_eq!(part_name(b"/a/../b".to_vec()).unwrap(), "b");
    }
}
