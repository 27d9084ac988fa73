//! Reading image archives.
//!
//! The archive is a stream that names its parts only at its end, so parts are set aside as files first; then layers
//! are unpacked side by side, since none needs its parent.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tar::{Archive, EntryType};
use whelk_sys::fs;

use super::{DockerImage, INDEX, Index, Manifest, NAME_ANNOTATION, TAG_ANNOTATION};
use crate::compression::decompress;
use crate::config::{ARCHITECTURE, ImageConfig};
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result, io};
use crate::reference::Reference;
use crate::store::{LARGEST_CONFIG, Store};

/// An image that is in the store now, with the names its archive gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub id: Digest,
    pub config: ImageConfig,
    pub names: Vec<Reference>,
    /// Bytes of file content in all layers.
    pub size: u64,
}

/// An archive may hold this many parts: images have at most some hundred layers.
const MOST_PARTS: usize = 20_000;
/// As many as overlay takes.
const MOST_LAYERS: usize = 500;
/// Indexes may name indexes, but not for ever.
const DEEPEST_INDEX: usize = 4;
const LARGEST_HEADERS: u64 = 4 << 20;

/// Reads an archive (plain, gzip or zstd; Docker's or OCI layout) and puts its images into the store.
///
/// Nothing is kept of an archive that is refused, except layers that were whole: [`Store::keep_only`] removes them.
///
/// # Errors
/// [`Error::Invalid`] saying what is wrong with the archive.
pub fn load(store: &Store, input: impl Read + Send) -> Result<Vec<Loaded>> {
    let scratch = store.scratch()?;
    let parts = Parts::set_aside(decompress(input)?, scratch.path())?;
    let sources = if parts.has("manifest.json") {
        parts.docker_images()?
    } else if parts.has("index.json") {
        parts.oci_images()?
    } else {
        return Err(Error::invalid("invalid archive: does not contain a manifest.json or an index.json"));
    };
    unpack_layers(store, &parts, &sources)?;
    sources.into_iter().map(|source| source.finish(store)).collect()
}

/// One image of an archive: where its parts are.
struct Source {
    config_bytes: Vec<u8>,
    config: ImageConfig,
    /// Part names, one for each diff-id.
    layers: Vec<String>,
    names: Vec<Reference>,
}

impl Source {
    fn new(config_bytes: Vec<u8>, layers: Vec<String>, names: Vec<Reference>) -> Result<Self> {
        let config = ImageConfig::parse(&config_bytes)?;
        if layers.len() != config.rootfs.diff_ids.len() {
            return Err(Error::invalid(format!(
                "invalid archive: an image has {} layers, its configuration names {}",
                layers.len(),
                config.rootfs.diff_ids.len()
            )));
        }
        if layers.len() > MOST_LAYERS {
            return Err(Error::invalid(format!(
                "invalid archive: an image has {} layers, at most {MOST_LAYERS} are possible",
                layers.len()
            )));
        }
        Ok(Self { config_bytes, config, layers, names })
    }

    fn finish(self, store: &Store) -> Result<Loaded> {
        let id = store.put_blob(&self.config_bytes)?;
        let mut size = 0;
        for diff_id in &self.config.rootfs.diff_ids {
            size += store.layer_size(diff_id)?;
        }
        Ok(Loaded { id, config: self.config, names: self.names, size })
    }
}

/// Unpacks what the store lacks, as many layers at a time as there are processors.
fn unpack_layers(store: &Store, parts: &Parts, sources: &[Source]) -> Result<()> {
    let mut work: Vec<(&Digest, &str)> = Vec::new();
    let mut seen = BTreeSet::new();
    for source in sources {
        for (diff_id, part) in source.config.rootfs.diff_ids.iter().zip(&source.layers) {
            parts.path(part)?;
            if !store.has_layer(diff_id) && seen.insert(diff_id) {
                work.push((diff_id, part));
            }
        }
    }
    // The largest first, so that no long one is left for the end.
    work.sort_by_key(|(_, part)| std::cmp::Reverse(parts.size(part)));
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(work.len());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((diff_id, part)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = parts.path(part).and_then(|path| unpack(store, &path, diff_id)) {
                        next.store(work.len(), Ordering::Relaxed);
                        failed
                            .lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner)
                            .get_or_insert(error.during(&format!("layer {part}")));
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

fn unpack(store: &Store, path: &Path, diff_id: &Digest) -> Result<()> {
    store.put_layer(fs::open(path)?, Some(diff_id)).map(drop)
}

/// The parts of an archive, set aside as files with names of ours.
struct Parts {
    parts: BTreeMap<String, Part>,
}

enum Part {
    File {
        path: PathBuf,
        size: u64,
        digest: Digest,
    },
    /// Old archives name a layer that several images share by links.
    Link(String),
}

impl Parts {
    fn set_aside(input: impl Read, directory: &Path) -> Result<Self> {
        let mut parts = BTreeMap::new();
        let mut number = 0u64;
        let headers = Rc::new(Cell::new(0));
        let mut archive = Archive::new(HeaderBound { inner: input, headers: headers.clone() });
        for entry in archive.entries().map_err(io("invalid archive"))? {
            let mut entry = entry.map_err(io("invalid archive"))?;
            let name =
                String::from_utf8(entry.path_bytes().into_owned()).map_err(|_| Error::invalid("invalid archive: a name is not UTF-8"))?;
            let key = part_name(Path::new(&name))?;
            let part = match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    // Numbered, not named: a name that comes twice must not overwrite what was checked.
                    let path = directory.join(number.to_string());
                    number += 1;
                    let mut file = Hashing::new(fs::create(&path, 0o600)?);
                    let size = entry.size();
                    headers.set(CONTENT);
                    let copied = std::io::copy(&mut entry, &mut file)
                        .and_then(|copied| file.flush().map(|()| copied))
                        .map_err(io(format!("invalid archive: {name}")))?;
                    if copied != size {
                        return Err(Error::invalid(format!("invalid archive: {name} is cut short: {copied} of {size} bytes")));
                    }
                    let (digest, _, _) = file.finish();
                    Part::File { path, size, digest }
                }
                EntryType::Symlink | EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let target =
                        String::from_utf8(target.into_owned()).map_err(|_| Error::invalid("invalid archive: a name is not UTF-8"))?;
                    let base = if entry.header().entry_type() == EntryType::Symlink {
                        Path::new(&key).parent().unwrap_or(Path::new(""))
                    } else {
                        Path::new("")
                    };
                    Part::Link(resolve(base, Path::new(&target))?)
                }
                EntryType::Directory | EntryType::XGlobalHeader => continue,
                other => return Err(Error::invalid(format!("invalid archive: {name} has unexpected type {:?}", other.as_byte() as char))),
            };
            headers.set(0);
            parts.insert(key, part);
            if parts.len() > MOST_PARTS || number > MOST_PARTS as u64 {
                return Err(Error::invalid(format!("invalid archive: more than {MOST_PARTS} entries")));
            }
        }
        Ok(Self { parts })
    }

    fn has(&self, name: &str) -> bool {
        self.parts.contains_key(name)
    }

    fn file(&self, name: &str) -> Result<(&PathBuf, u64, &Digest)> {
        let mut key = part_name(Path::new(name))?;
        // A link to a link to a link is nobody's honest work.
        for _ in 0..2 {
            match self.parts.get(&key) {
                Some(Part::File { path, size, digest }) => return Ok((path, *size, digest)),
                Some(Part::Link(target)) => key.clone_from(target),
                None => break,
            }
        }
        Err(Error::invalid(format!("invalid archive: {name} is missing")))
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        self.file(name).map(|(path, _, _)| path.clone())
    }

    fn size(&self, name: &str) -> u64 {
        self.file(name).map_or(0, |(_, size, _)| size)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let (path, size, _) = self.file(name)?;
        if size > LARGEST_CONFIG {
            return Err(Error::invalid(format!("invalid archive: {name} is larger than {LARGEST_CONFIG} bytes")));
        }
        Ok(fs::read(path)?)
    }

    fn docker_images(&self) -> Result<Vec<Source>> {
        let images: Vec<DockerImage> = serde_json::from_slice(&self.read("manifest.json")?)
            .map_err(|error| Error::invalid(format!("invalid archive: manifest.json: {error}")))?;
        images.into_iter().map(|image| self.docker_image(image)).collect()
    }

    fn docker_image(&self, image: DockerImage) -> Result<Source> {
        let layers = image.layers.unwrap_or_default();
        for part in layers.iter().chain([&image.config]) {
            self.check_name(part)?;
        }
        let names = image.repo_tags.unwrap_or_default().iter().map(|name| name.parse()).collect::<Result<Vec<Reference>>>()?;
        Source::new(self.read(&image.config)?, layers, names.into_iter().map(Reference::with_default_tag).collect())
    }

    /// A part that is named by a digest must have it.
    fn check_name(&self, part: &str) -> Result<()> {
        let stem = part.rsplit('/').next().unwrap_or(part).trim_end_matches(".json");
        let by_digest = part.trim_start_matches("./").starts_with("blobs/sha256/") || part.ends_with(".json") && stem.len() == 64;
        let (_, _, digest) = self.file(part)?;
        if by_digest && digest.hex() != stem {
            Err(Error::invalid(format!("invalid archive: {part} has the digest {digest}")))
        } else {
            Ok(())
        }
    }

    fn oci_images(&self) -> Result<Vec<Source>> {
        let index: Index = serde_json::from_slice(&self.read("index.json")?)
            .map_err(|error| Error::invalid(format!("invalid archive: index.json: {error}")))?;
        let mut sources = Vec::new();
        self.collect(&index, None, 0, &mut 0, &mut sources)?;
        if sources.is_empty() { Err(Error::invalid(format!("invalid archive: no image for linux/{ARCHITECTURE}"))) } else { Ok(sources) }
    }

    fn collect(
        &self,
        index: &Index,
        outer: Option<&Reference>,
        depth: usize,
        visited: &mut usize,
        sources: &mut Vec<Source>,
    ) -> Result<()> {
        if depth > DEEPEST_INDEX {
            return Err(Error::invalid("invalid archive: indexes are nested too deeply"));
        }
        for descriptor in &index.manifests {
            *visited += 1;
            if *visited > MOST_LAYERS {
                return Err(Error::invalid("invalid archive: its indexes name too much"));
            }
            let name = descriptor
                .annotations
                .get(NAME_ANNOTATION)
                .or_else(|| descriptor.annotations.get(TAG_ANNOTATION).filter(|name| name.contains([':', '/'])));
            let name = name.map(|name| name.parse::<Reference>().map(Reference::with_default_tag)).transpose()?;
            let name = name.as_ref().or(outer);
            if descriptor.platform.as_ref().is_some_and(|platform| platform.os != "linux" || platform.architecture != ARCHITECTURE) {
                continue;
            }
            let content = self.blob(&descriptor.digest)?;
            let malformed = |error| Error::invalid(format!("invalid archive: {}: {error}", descriptor.digest));
            if descriptor.media_type == INDEX || descriptor.media_type == "application/vnd.docker.distribution.manifest.list.v2+json" {
                self.collect(&serde_json::from_slice(&content).map_err(malformed)?, name, depth + 1, visited, sources)?;
                continue;
            }
            let manifest: Manifest = serde_json::from_slice(&content).map_err(malformed)?;
            let layers: Vec<String> = manifest.layers.iter().map(|layer| format!("blobs/sha256/{}", layer.digest.hex())).collect();
            layers.iter().try_for_each(|layer| self.check_name(layer))?;
            sources.push(Source::new(self.blob(&manifest.config.digest)?, layers, name.cloned().into_iter().collect())?);
            if sources.len() > MOST_LAYERS {
                return Err(Error::invalid("invalid archive: too many images"));
            }
        }
        Ok(())
    }

    fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let name = format!("blobs/sha256/{}", digest.hex());
        self.check_name(&name)?;
        self.read(&name)
    }
}

/// The name of a part without `./`.
///
/// # Errors
/// Absolute names and those with `..`.
fn part_name(path: &Path) -> Result<String> {
    resolve(Path::new(""), path)
}

/// A link's target as a part's name; one that leads out of the archive is refused.
fn resolve(base: &Path, target: &Path) -> Result<String> {
    let mut parts: Vec<&str> = base.components().filter_map(|part| part.as_os_str().to_str()).collect();
    for component in target.components() {
        match component {
            Component::Normal(part) => parts.extend(part.to_str()),
            Component::CurDir => {}
            Component::ParentDir if !base.as_os_str().is_empty() && parts.pop().is_some() => {}
            _ => return Err(Error::invalid(format!("invalid archive: the name {} leads outside", target.display()))),
        }
    }
    Ok(parts.join("/"))
}

/// Ends an archive whose entry headers alone would fill memory: what is read while no content is being copied counts.
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
