//! Reads image archives in Docker's, OCI's and Docker's legacy layout.
//!
//! The parts of the archive are first extracted to files (see [`Parts`]); then layers are unpacked
//! in parallel, since unpacking a layer does not need its parent.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use whelk_sys::sync::IgnorePoison as _;

use whelk_sys::fs;

use super::parts::{File, Parts};
use super::{docker, legacy, oci};
use crate::bounded::MAX_NAMES;
use crate::compression::decompress;
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::leases::Lease;
use crate::platform::Platform;
use crate::progress::{Progress, Reader, State};
use crate::reference::Reference;
use crate::store::Store;

/// An image that was loaded into the store, with the names its archive gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub id: Digest,
    pub origin: Origin,
    /// Further manifests of it, by which other indexes list it. Blobs of the store, too.
    pub other_manifests: Vec<Digest>,
    /// Image that it was made from on this machine.
    pub parent: Option<Digest>,
    pub config: ImageConfig,
    pub names: Vec<Named>,
    /// Total size of file content in all layers, in bytes.
    pub size: u64,
}

impl Loaded {
    /// Returns the indexes that it came with, and that its names stand for.
    pub fn indexes(&self) -> impl Iterator<Item = &Digest> {
        let names = self.names.iter().filter_map(|named| named.index.as_ref());
        self.origin.index.iter().chain(names)
    }
}

/// A name of an image, which may stand for all images of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub name: Reference,
    pub index: Option<Digest>,
}

/// The manifest and index that an image came with, if any. Both are blobs of the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    pub manifest: Option<Digest>,
    /// The index that lists the manifest among those for other platforms.
    pub index: Option<Digest>,
}

impl Origin {
    /// Returns the digests of both.
    pub fn blobs(&self) -> impl Iterator<Item = &Digest> {
        self.manifest.iter().chain(&self.index)
    }
}

/// Maximum number of images in an archive.
const MAX_IMAGES: usize = 1_000;
/// Maximum number of layers unpacked in parallel. Each may need 128 MiB of memory for a window of zstd or a dictionary of xz.
const MAX_WORKERS: usize = 8;

/// Loads the images of an archive (plain or compressed) into the store: all of them, or those whose
/// platform equals one of `platforms`. Reports each layer that is unpacked to `progress`.
///
/// `lease` holds what is added; the caller drops it after recording the images. If the archive is
/// refused, nothing of it remains except layers that were unpacked completely; [`Store::gc`] removes
/// those.
///
/// # Errors
/// Returns [`Error::Invalid`] if the archive is malformed or exceeds a limit, and I/O errors.
pub fn load(
    store: &Store,
    lease: &Lease,
    input: impl Read + Send,
    platforms: &[Platform],
    progress: &Progress,
) -> Result<Vec<Loaded>> {
    let scratch = store.staging.scratch()?;
    let parts = Parts::extract(decompress(input)?, scratch.path())?;
    let mut images = Images {
        store,
        lease,
        parts: &parts,
        platforms,
        progress,
        list: Vec::new(),
        by_id: BTreeMap::new(),
        names: Vec::new(),
        parents: BTreeMap::new(),
        documents: BTreeMap::new(),
    };
    if parts.has("manifest.json") && !oci::has_index(&images) {
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

/// The images found in an archive so far. An image that the archive lists several times is kept
/// once.
pub(super) struct Images<'a> {
    pub(super) store: &'a Store,
    pub(super) lease: &'a Lease,
    pub(super) progress: &'a Progress,
    pub(super) parts: &'a Parts,
    platforms: &'a [Platform],
    list: Vec<Image>,
    by_id: BTreeMap<Digest, usize>,
    /// Names in archive order, each with the place of its image in `list`, and the image index that it
    /// stands for. If two images have the same name, the last one gets it.
    names: Vec<(Reference, usize, Option<Digest>)>,
    /// The images that images were made from, which the archive need not have.
    parents: BTreeMap<Digest, Digest>,
    /// Manifests and indexes that may be the origin of an image, as they are stored. Their total is
    /// bounded by the archive's metadata budget.
    pub(super) documents: BTreeMap<Digest, Vec<u8>>,
}

struct Image {
    id: Digest,
    origin: Origin,
    /// Of the origins that the archive gives it later.
    other_manifests: BTreeSet<Digest>,
    config: ImageConfig,
    /// The configuration as it is stored. The total of all configurations is bounded by the
    /// archive's metadata budget.
    bytes: Vec<u8>,
    /// Part names, one for each diff ID. Empty if all layers are in the store already.
    layers: Vec<String>,
}

impl Images<'_> {
    /// Adds the image whose configuration is the part `config` and whose layers are the parts
    /// `layers`.
    ///
    /// # Errors
    /// Returns an error if the configuration is invalid, the number of layers does not match it, or
    /// the archive has too many images or names.
    pub(super) fn add(
        &mut self,
        config: &str,
        layers: Vec<String>,
        names: impl IntoIterator<Item = Reference>,
        origin: Origin,
    ) -> Result<()> {
        let id = self.parts.file(config)?.digest.clone();
        let stands_for = origin.index.clone();
        let index = match self.by_id.get(&id) {
            Some(index) => {
                let known = &mut self.list[*index];
                let others = origin.manifest.into_iter();
                let is_other = |other: &Digest| known.origin.manifest.as_ref() != Some(other);
                known.other_manifests.extend(others.filter(is_other));
                Some(*index)
            }
            None => {
                let bytes = self.parts.read(config)?;
                self.add_config(id, bytes, layers.clone(), origin)?
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
        self.add_names(index, names, stands_for.as_ref())
    }

    /// Notes the image that the one with the configuration `config` was made from.
    ///
    /// # Errors
    /// Returns an error if the archive has no such configuration.
    pub(super) fn set_parent(&mut self, config: &str, parent: Digest) -> Result<()> {
        let id = self.parts.file(config)?.digest.clone();
        self.parents.insert(id, parent);
        Ok(())
    }

    /// Adds the image with the configuration `bytes` and returns its index, or `None` if it is for
    /// another platform.
    pub(super) fn add_config(
        &mut self,
        id: Digest,
        bytes: Vec<u8>,
        layers: Vec<String>,
        origin: Origin,
    ) -> Result<Option<usize>> {
        let config = ImageConfig::parse(&bytes)?;
        if !matches!(config.os.as_str(), "" | "linux") {
            return Err(Error::invalid(format!(
                "cannot load {} image on linux",
                super::parts::shown(&config.os)
            )));
        }
        if !self.are_wanted(&Platform::of(&config)) {
            return Ok(None);
        }
        if self.list.len() >= MAX_IMAGES {
            return Err(Error::invalid(format!(
                "invalid archive: more than {MAX_IMAGES} images"
            )));
        }
        let index = self.list.len();
        self.by_id.insert(id.clone(), index);
        self.list.push(Image {
            id,
            origin,
            other_manifests: BTreeSet::new(),
            config,
            bytes,
            layers,
        });
        Ok(Some(index))
    }

    /// Returns whether images for a platform are to be loaded.
    fn are_wanted(&self, own: &Platform) -> bool {
        self.platforms.is_empty() || self.platforms.iter().any(|platform| platform.is(own))
    }

    /// Returns the platforms that are to be loaded, in words.
    pub(super) fn wanted(&self) -> String {
        let names: Vec<String> = self.platforms.iter().map(ToString::to_string).collect();
        if names.is_empty() {
            "linux".to_owned()
        } else {
            names.join(", ")
        }
    }

    /// Adds names of the image at `place`, which stand for all that an index lists, if one is given.
    pub(super) fn add_names(
        &mut self,
        place: usize,
        names: impl IntoIterator<Item = Reference>,
        index: Option<&Digest>,
    ) -> Result<()> {
        for name in names {
            if self.names.len() >= MAX_NAMES {
                return Err(Error::invalid(format!(
                    "invalid archive: more than {MAX_NAMES} names"
                )));
            }
            self.names.push((name, place, index.cloned()));
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Unpacks the layers that the store does not have, one per available CPU at a time.
    fn unpack_layers(&self) -> Result<()> {
        let mut work: Vec<(&Digest, &str, &File)> = Vec::new();
        let mut seen = BTreeSet::new();
        for image in &self.list {
            for (diff_id, part) in image.config.rootfs.diff_ids.iter().zip(&image.layers) {
                let file = self.parts.file(part)?;
                if seen.insert(diff_id) && !self.store.snapshots.claim(self.lease, diff_id) {
                    work.push((diff_id, part, file));
                }
            }
        }
        // Largest first, so that no long-running layer is left for the end.
        work.sort_by_key(|(_, _, file)| std::cmp::Reverse(file.size));
        let next = AtomicUsize::new(0);
        let failed = Mutex::new(None);
        let workers = std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(MAX_WORKERS)
            .min(work.len());
        let (store, lease, progress) = (self.store, self.lease, self.progress);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some((diff_id, part, file)) =
                        work.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let unpacked = unpack_layer(store, lease, progress, file, diff_id);
                        if let Err(error) = unpacked {
                            next.store(work.len(), Ordering::Relaxed);
                            let mut failed = failed.lock().ignore_poison();
                            failed.get_or_insert(
                                error.during(&format!("layer {}", super::parts::shown(part))),
                            );
                        }
                    }
                });
            }
        });
        failed.into_inner().ignore_poison().map_or(Ok(()), Err)
    }

    /// Stores the configurations, manifests and indexes. Called last, when nothing can make the archive invalid any more.
    fn finish(self) -> Result<Vec<Loaded>> {
        let owners: BTreeMap<&Reference, (usize, &Option<Digest>)> = self
            .names
            .iter()
            .map(|(name, place, index)| (name, (*place, index)))
            .collect();
        let mut names = vec![Vec::new(); self.list.len()];
        let mut given = BTreeSet::new();
        for (name, ..) in &self.names {
            if given.insert(name) {
                let (place, index) = owners[name];
                names[place].push(Named {
                    name: name.clone(),
                    index: index.clone(),
                });
            }
        }
        let loaded = self.list.into_iter().zip(names).map(|(image, names)| {
            let other_manifests = image.other_manifests.into_iter().collect();
            let sizes = image
                .config
                .rootfs
                .diff_ids
                .iter()
                .map(|diff_id| self.store.snapshots.size(diff_id));
            let size = sizes.sum::<Result<u64>>()?;
            self.store.content.put(self.lease, &image.bytes)?;
            let parent = self.parents.get(&image.id);
            let parent = parent.filter(|parent| self.by_id.contains_key(*parent));
            let loaded = Loaded {
                id: image.id,
                origin: image.origin,
                other_manifests,
                parent: parent.cloned(),
                config: image.config,
                names,
                size,
            };
            let manifests = loaded.origin.manifest.iter();
            let manifests = manifests.chain(&loaded.other_manifests);
            for blob in manifests.chain(loaded.indexes()) {
                if let Some(bytes) = self.documents.get(blob) {
                    let content = &self.store.content;
                    content.put_as(self.lease, blob.algorithm(), bytes)?;
                }
            }
            Ok(loaded)
        });
        loaded.collect()
    }
}

/// Unpacks a layer: a second time, to a directory, if it has too many files for an image.
fn unpack_layer(
    store: &Store,
    lease: &Lease,
    progress: &Progress,
    file: &File,
    diff_id: &Digest,
) -> Result<()> {
    let snapshots = &store.snapshots;
    let input = || read_layer(progress, file, diff_id);
    let unpacked = match snapshots.apply(lease, input()?, Some(diff_id)) {
        Err(Error::TooLarge(text)) => {
            tracing::info!("{text}; layer {diff_id} is kept as a directory");
            snapshots.apply_to_directory(lease, input()?, Some(diff_id))
        }
        unpacked => unpacked,
    };
    unpacked.map(drop)
}

/// Opens a layer's archive, whose progress is reported under the first digits of `digest`.
pub(super) fn read_layer(
    progress: &Progress,
    file: &File,
    digest: &Digest,
) -> Result<Reader<std::fs::File>> {
    const SHOWN: usize = 12;
    let content = fs::open(&file.path)?;
    Ok(progress.reader(
        content,
        &digest.hex()[..SHOWN],
        State::LoadingLayer,
        file.size,
    ))
}

/// Parses an image name found in an archive.
///
/// # Errors
/// Returns an error if the name is not a valid tag.
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
