//! Reading image archives: Docker's layout, OCI's, and Docker's from before images had
//! configurations of their own.
//!
//! Parts are set aside first (see [`Parts`]); then layers are unpacked side by side, since none
//! needs its parent.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use whelk_sys::fs;

use super::parts::Parts;
use super::{docker, legacy, oci};
use crate::bounded::MOST_NAMES;
use crate::compression::decompress;
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::Store;

/// An image that is in the store now, with the names its archive gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub id: Digest,
    pub config: ImageConfig,
    pub names: Vec<Reference>,
    /// Bytes of file content in all layers.
    pub size: u64,
}

/// An archive may hold this many images.
const MOST_IMAGES: usize = 1_000;
/// Layers that are unpacked at a time: each may take a decoder's window (128 MiB) of memory.
const MOST_WORKERS: usize = 8;

/// Reads an archive (plain, gzip or zstd) and puts its images into the store: all, or those that
/// are for `platform` exactly.
///
/// Nothing is kept of an archive that is refused, except layers that were whole:
/// [`Store::keep_only`] removes them.
///
/// # Errors
/// [`Error::Invalid`] saying what is wrong with the archive.
pub fn load(
    store: &Store,
    input: impl Read + Send,
    platform: Option<&Platform>,
) -> Result<Vec<Loaded>> {
    let scratch = store.scratch()?;
    let parts = Parts::set_aside(decompress(input)?, scratch.path())?;
    let mut images = Images {
        store,
        parts: &parts,
        platform,
        list: Vec::new(),
        by_id: BTreeMap::new(),
        names: Vec::new(),
    };
    if parts.has("manifest.json") {
        docker::read(&mut images)?;
    } else if parts.has("index.json") {
        oci::read(&mut images)?;
    } else if parts.has("repositories") {
        legacy::read(&mut images)?;
    } else {
        return Err(Error::invalid(
            "invalid archive: does not contain a manifest.json, an index.json or repositories",
        ));
    }
    images.unpack_layers()?;
    images.finish()
}

/// The images of an archive as they are found: each once, however often and under whatever names.
pub(super) struct Images<'a> {
    pub(super) store: &'a Store,
    pub(super) parts: &'a Parts,
    platform: Option<&'a Platform>,
    list: Vec<Image>,
    by_id: BTreeMap<Digest, usize>,
    /// In the order of the archive, each with the index of its image: of several with one name the
    /// last one gets it.
    names: Vec<(Reference, usize)>,
}

struct Image {
    id: Digest,
    config: ImageConfig,
    /// The configuration as it is stored. All of them together are bounded with the archive's
    /// metadata.
    bytes: Vec<u8>,
    /// Part names, one for each diff-id; none for layers that are in the store already.
    layers: Vec<String>,
}

impl Images<'_> {
    /// Adds the image whose configuration is the part `config`, with a part for each of its layers.
    ///
    /// # Errors
    /// What the configuration or the numbers of layers, images or names forbid.
    pub(super) fn add(
        &mut self,
        config: &str,
        layers: Vec<String>,
        names: impl IntoIterator<Item = Reference>,
    ) -> Result<()> {
        let id = self.parts.file(config)?.digest.clone();
        let index = match self.by_id.get(&id) {
            Some(index) => Some(*index),
            None => {
                let bytes = self.parts.read(config)?;
                self.add_config(id, bytes, layers.clone())?
            }
        };
        let Some(index) = index else { return Ok(()) };
        let expected = self.list[index].config.rootfs.diff_ids.len();
        if layers.len() != expected {
            return Err(Error::invalid(format!(
                "invalid manifest, layers length mismatch: expected {}, got {expected}",
                layers.len()
            )));
        }
        self.name(index, names)
    }

    /// Adds the image that `bytes` configure, and says which it is; `None` if it is for another
    /// platform.
    pub(super) fn add_config(
        &mut self,
        id: Digest,
        bytes: Vec<u8>,
        layers: Vec<String>,
    ) -> Result<Option<usize>> {
        let config = ImageConfig::parse(&bytes)?;
        if !matches!(config.os.as_str(), "" | "linux") {
            return Err(Error::invalid(format!(
                "cannot load {} image on linux",
                super::parts::shown(&config.os)
            )));
        }
        if self
            .platform
            .is_some_and(|platform| !platform.is(&Platform::of(&config)))
        {
            return Ok(None);
        }
        if self.list.len() >= MOST_IMAGES {
            return Err(Error::invalid(format!(
                "invalid archive: more than {MOST_IMAGES} images"
            )));
        }
        let index = self.list.len();
        self.by_id.insert(id.clone(), index);
        self.list.push(Image {
            id,
            config,
            bytes,
            layers,
        });
        Ok(Some(index))
    }

    pub(super) fn name(
        &mut self,
        index: usize,
        names: impl IntoIterator<Item = Reference>,
    ) -> Result<()> {
        for name in names {
            if self.names.len() >= MOST_NAMES {
                return Err(Error::invalid(format!(
                    "invalid archive: more than {MOST_NAMES} names"
                )));
            }
            self.names.push((name, index));
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Unpacks what the store lacks, as many layers at a time as there are processors.
    fn unpack_layers(&self) -> Result<()> {
        let mut work: Vec<(&Digest, &str, PathBuf, u64)> = Vec::new();
        let mut seen = BTreeSet::new();
        for image in &self.list {
            for (diff_id, part) in image.config.rootfs.diff_ids.iter().zip(&image.layers) {
                let file = self.parts.file(part)?;
                if !self.store.has_layer(diff_id) && seen.insert(diff_id) {
                    work.push((diff_id, part, file.path.clone(), file.size));
                }
            }
        }
        // The largest first, so that no long one is left for the end.
        work.sort_by_key(|(_, _, _, size)| std::cmp::Reverse(*size));
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(None);
        let workers = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(MOST_WORKERS)
            .min(work.len());
        let store = self.store;
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some((diff_id, part, path, _)) =
                        work.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let unpacked = fs::open(path)
                            .map_err(Error::from)
                            .and_then(|file| store.put_layer(file, Some(diff_id)));
                        if let Err(error) = unpacked {
                            next.store(work.len(), Ordering::Relaxed);
                            let mut failed = failed
                                .lock()
                                .unwrap_or_else(std::sync::PoisonError::into_inner);
                            failed.get_or_insert(
                                error.during(&format!("layer {}", super::parts::shown(part))),
                            );
                        }
                    }
                });
            }
        });
        failed
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .map_or(Ok(()), Err)
    }

    /// Stores the configurations, now that nothing of the archive can be refused any more.
    fn finish(self) -> Result<Vec<Loaded>> {
        let owners: BTreeMap<&Reference, usize> = self
            .names
            .iter()
            .map(|(name, index)| (name, *index))
            .collect();
        let mut names = vec![Vec::new(); self.list.len()];
        let mut given = BTreeSet::new();
        for (name, _) in &self.names {
            if given.insert(name) {
                names[owners[name]].push(name.clone());
            }
        }
        let loaded = self.list.into_iter().zip(names).map(|(image, names)| {
            let sizes = image
                .config
                .rootfs
                .diff_ids
                .iter()
                .map(|diff_id| self.store.layer_size(diff_id));
            let size = sizes.sum::<Result<u64>>()?;
            self.store.put_blob(&image.bytes)?;
            Ok(Loaded {
                id: image.id,
                config: image.config,
                names,
                size,
            })
        });
        loaded.collect()
    }
}

/// A name that an archive gives an image.
///
/// # Errors
/// One that cannot be a tag.
pub(super) fn tag(text: &str) -> Result<Reference> {
    let during = |error: Error| {
        error.during(&format!(
            "invalid archive: the name {:?}",
            super::parts::shown(text)
        ))
    };
    let reference: Reference = text.parse().map_err(during)?;
    reference.into_tag().map_err(during)
}
