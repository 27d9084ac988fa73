//! Images as blobs, which are written to an archive or elsewhere: the layers as manifests refer to them, the configuration
//! and the manifest; of several images, or with attestations, the index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Seek as _, Write};

use tar::Builder;
use whelk_sys::{Scratch, fs};

use super::attached::{Attached, index};
use super::manifest::Annotated;
use super::oci::blob_name;
use super::save::{self, created, encode, named, write_file, write_stream};
use super::{CREATED_ANNOTATION, DockerImage};
use crate::config::ImageConfig;
use crate::descriptor::{CONFIG, DOCKER_MANIFEST, Descriptor, Index, LAYER, MANIFEST, Manifest};
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result, io};
use crate::leases::Lease;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::snapshots::unchanged;
use crate::store::Store;

/// Docker's media types for configurations and layers.
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// How layers are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    None,
    /// On several threads.
    #[default]
    Gzip,
    /// With one of zlib's levels, on one thread.
    GzipLevel(u32),
    /// With one of zstd's levels; 0 for its default.
    Zstd(i32),
}

impl Compression {
    /// Parses the name of a compression, gzip if it is empty, and a level, which may be empty, too. Returns `None` for a name that is
    /// not known.
    ///
    /// # Errors
    /// Returns what is wrong with the level.
    pub fn parse(name: &str, level: &str) -> std::result::Result<Option<Self>, String> {
        let invalid = |error: std::num::ParseIntError| {
            format!("invalid compression-level {level:?}: {error}")
        };
        let level: Option<i32> = match level {
            "" => None,
            text => Some(text.parse().map_err(invalid)?),
        };
        let out_of_range = |level: i32, most: i32| {
            format!("compression-level {level} is not in the range from 0 to {most}")
        };
        Ok(Some(match (name, level) {
            ("uncompressed", _) => Self::None,
            ("" | "gzip", None) => Self::Gzip,
            ("" | "gzip", Some(level)) => match u32::try_from(level) {
                Ok(number @ 0..=9) => Self::GzipLevel(number),
                _ => return Err(out_of_range(level, 9)),
            },
            ("zstd", None) => Self::Zstd(0),
            ("zstd", Some(level @ 0..=22)) => Self::Zstd(level),
            ("zstd", Some(level)) => return Err(out_of_range(level, 22)),
            _ => return Ok(None),
        }))
    }
}

/// How an image is packed.
#[derive(Clone, Debug, Default)]
pub struct Packing {
    pub compression: Compression,
    /// Docker's media types are used instead of OCI's.
    pub has_docker_types: bool,
    /// Annotations of the manifest.
    pub annotations: BTreeMap<String, String>,
    /// Annotations of the entry of an index that refers to the manifest.
    pub entry_annotations: BTreeMap<String, String>,
}

/// Annotations of an index.
#[derive(Clone, Debug, Default)]
pub struct IndexAnnotations {
    pub index: BTreeMap<String, String>,
    /// Of what refers to the index.
    pub entry: BTreeMap<String, String>,
}

/// The form of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Oci,
    /// An OCI layout with Docker's `manifest.json`.
    Docker,
}

/// An image as blobs, or the images of an index. The files of compressed layers exist as long as this.
#[derive(Debug)]
pub struct Packed {
    /// Refers to the manifest, or to the index.
    pub manifest: Descriptor,
    /// That of the first image.
    pub config: Descriptor,
    /// What the manifest or the index refers to, each once, and then itself.
    pub blobs: Vec<Blob>,
    pub layers: Vec<Descriptor>,
    entry_annotations: BTreeMap<String, String>,
    /// In seconds since the epoch.
    created: u64,
    _scratch: Vec<Scratch>,
}

/// A blob of a packed image.
#[derive(Debug)]
pub struct Blob {
    pub descriptor: Descriptor,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// A layer's archive, which is made when it is needed.
    Layer(Digest),
    File(File),
    Bytes(Vec<u8>),
}

impl Packed {
    /// Packs the image with this configuration, whose layers `lease` holds. `progress` is called with the digest of each
    /// layer that is packed.
    ///
    /// # Errors
    /// Returns an error if the configuration is invalid, a layer is missing or was changed, or the disk is full.
    pub fn new(
        store: &Store,
        lease: &Lease,
        config: &[u8],
        packing: &Packing,
        mut progress: impl FnMut(&Digest),
    ) -> Result<Self> {
        let parsed = ImageConfig::parse(config)?;
        let scratch = store.staging.scratch()?;
        let (config_type, manifest_type) = match packing.has_docker_types {
            true => (DOCKER_CONFIG, DOCKER_MANIFEST),
            false => (CONFIG, MANIFEST),
        };
        let mut layers: Vec<Descriptor> = Vec::new();
        let mut blobs: Vec<Blob> = Vec::new();
        let mut packed: BTreeMap<&Digest, Descriptor> = BTreeMap::new();
        for diff_id in &parsed.rootfs.diff_ids {
            if let Some(descriptor) = packed.get(diff_id) {
                layers.push(descriptor.clone());
                continue;
            }
            if !store.snapshots.claim(lease, diff_id) {
                return Err(Error::NotFound(format!("layer {diff_id} does not exist")));
            }
            let path = scratch.path().join(packed.len().to_string());
            let blob = pack(store, diff_id, packing, &path)?;
            progress(&blob.descriptor.digest);
            packed.insert(diff_id, blob.descriptor.clone());
            layers.push(blob.descriptor.clone());
            blobs.push(blob);
        }
        let config = Blob::bytes(config_type, config.to_vec());
        let config_descriptor = config.descriptor.clone();
        blobs.push(config);
        let mut manifest = Manifest::new(config_descriptor.clone(), layers.clone());
        manifest.media_type = manifest_type.into();
        let annotated = Annotated {
            manifest: &manifest,
            annotations: &packing.annotations,
        };
        let manifest = Blob::bytes(manifest_type, encode(&annotated)?);
        let mut descriptor = manifest.descriptor.clone();
        blobs.push(manifest);
        // Compressed to the same bytes, or a layer that looks like a configuration.
        let mut known = BTreeSet::new();
        blobs.retain(|blob| known.insert(blob.descriptor.digest.clone()));
        descriptor.annotations = packing.entry_annotations.clone();
        let created_text = parsed.created.clone().unwrap_or_default();
        if !created_text.is_empty() {
            descriptor
                .annotations
                .entry(CREATED_ANNOTATION.into())
                .or_insert(created_text);
        }
        Ok(Self {
            manifest: descriptor,
            config: config_descriptor,
            blobs,
            layers,
            entry_annotations: packing.entry_annotations.clone(),
            created: created(&parsed),
            _scratch: vec![scratch],
        })
    }

    /// Joins images, `attached` to which are the manifests of attestations with their blobs, in an index.
    ///
    /// # Errors
    /// Returns an error if there are no images.
    pub fn join(
        images: Vec<(Self, Platform)>,
        attached: Vec<Attached>,
        annotations: &IndexAnnotations,
        media_type: &str,
    ) -> Result<Self> {
        let mut entries: Vec<Descriptor> = Vec::new();
        let mut joined: Option<Self> = None;
        for (image, platform) in images {
            let target = image.target(&platform);
            entries.push(target);
            match &mut joined {
                None => joined = Some(image),
                Some(joined) => {
                    joined.blobs.extend(image.blobs);
                    joined._scratch.extend(image._scratch);
                    joined.created = joined.created.max(image.created);
                }
            }
        }
        let mut joined = joined.ok_or_else(|| Error::invalid("an index without images"))?;
        for attached in attached {
            entries.push(attached.manifest);
            let blobs = attached.blobs.into_iter();
            joined.blobs.extend(blobs.map(|(descriptor, bytes)| Blob {
                descriptor,
                content: Content::Bytes(bytes),
            }));
        }
        let bytes = index(entries, &annotations.index, media_type)?;
        let blob = Blob::bytes(media_type, bytes);
        let created = joined.manifest.annotations.remove(CREATED_ANNOTATION);
        joined.manifest = blob.descriptor.clone();
        joined.manifest.annotations = annotations.entry.clone();
        if let Some(created) = created {
            let known = &mut joined.manifest.annotations;
            known.entry(CREATED_ANNOTATION.into()).or_insert(created);
        }
        joined.blobs.push(blob);
        let mut known = BTreeSet::new();
        joined
            .blobs
            .retain(|blob| known.insert(blob.descriptor.digest.clone()));
        Ok(joined)
    }

    /// Returns the entry of an index for the image.
    pub fn target(&self, platform: &Platform) -> Descriptor {
        let mut target = self.manifest.clone();
        target.platform = Some(platform.clone());
        target.annotations.clone_from(&self.entry_annotations);
        target
    }

    /// Returns the bytes of the manifest or index.
    pub fn manifest_content(&self) -> Option<&[u8]> {
        self.blobs.last()?.content()
    }

    /// Writes an archive that has the image under these names.
    ///
    /// # Errors
    /// Returns an error if a layer was changed on disk, or if `output` fails. What was written is incomplete then.
    pub fn write(
        &mut self,
        store: &Store,
        form: Form,
        names: &[Reference],
        output: impl Write,
    ) -> Result<()> {
        let mut archive = Builder::new(output);
        // As in BuildKit's archives: some programs unpack only into directories that they know.
        let algorithms = self.blobs.iter();
        let algorithms = algorithms.map(|blob| blob.descriptor.digest.algorithm().name());
        let algorithms: BTreeSet<&str> = algorithms.collect();
        save::write_directory(&mut archive, "blobs/", 0)?;
        for algorithm in algorithms {
            save::write_directory(&mut archive, &format!("blobs/{algorithm}/"), 0)?;
        }
        for blob in &mut self.blobs {
            let (name, size) = (blob_name(&blob.descriptor.digest), blob.descriptor.size);
            write_stream(&mut archive, &name, size, self.created, |output| {
                blob.write(store, output)
            })?;
        }
        let index = Index::new(named(&self.manifest, names));
        write_file(&mut archive, "index.json", &encode(&index)?, 0)?;
        if form == Form::Docker {
            let docker = DockerImage {
                config: blob_name(&self.config.digest),
                repo_tags: names.iter().map(Reference::familiar).collect(),
                layers: self
                    .layers
                    .iter()
                    .map(|layer| blob_name(&layer.digest))
                    .collect(),
                parent: None,
                layer_sources: BTreeMap::new(),
            };
            write_file(&mut archive, "manifest.json", &encode(&[docker])?, 0)?;
        }
        write_file(&mut archive, "oci-layout", save::LAYOUT, 0)?;
        archive
            .into_inner()
            .and_then(|mut output| output.flush())
            .map_err(io("write archive"))
    }
}

impl Blob {
    /// Packs a layer, which a lease holds; a compressed one is in a file at `path`, which must exist as long as this.
    ///
    /// # Errors
    /// Returns an error if the layer was changed on disk, or if the disk is full.
    pub fn of_layer(
        store: &Store,
        diff_id: &Digest,
        packing: &Packing,
        path: &std::path::Path,
    ) -> Result<Self> {
        pack(store, diff_id, packing, path)
    }

    /// Returns a blob whose content is in a file.
    pub fn of_file(descriptor: Descriptor, file: File) -> Self {
        let content = Content::File(file);
        Self {
            descriptor,
            content,
        }
    }

    /// Returns a small blob.
    pub fn bytes(media_type: &str, bytes: Vec<u8>) -> Self {
        Self {
            descriptor: Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64),
            content: Content::Bytes(bytes),
        }
    }

    /// Returns the content of a small blob; `None` for a layer.
    pub fn content(&self) -> Option<&[u8]> {
        match &self.content {
            Content::Bytes(bytes) => Some(bytes),
            Content::Layer(_) | Content::File(_) => None,
        }
    }

    /// Writes the content.
    ///
    /// # Errors
    /// Returns an error if a layer was changed on disk, or if `output` fails.
    pub fn write(&mut self, store: &Store, output: &mut dyn Write) -> Result<()> {
        match &mut self.content {
            Content::Bytes(bytes) => output.write_all(bytes).map_err(io("write a blob")),
            Content::Layer(diff_id) => {
                let mut hashing = Hashing::new(output);
                store.snapshots.replay(diff_id, &mut hashing)?;
                let (digest, ..) = hashing.finish();
                unchanged(diff_id, &digest)
            }
            Content::File(file) => {
                file.rewind().map_err(io("read a compressed layer"))?;
                let mut rest = file.take(self.descriptor.size);
                let written = std::io::copy(&mut rest, output).map_err(io("write a blob"))?;
                if written == self.descriptor.size {
                    Ok(())
                } else {
                    Err(Error::invalid("a compressed layer was cut off"))
                }
            }
        }
    }
}

/// Packs a layer; compressed, to a file at `path`.
fn pack(
    store: &Store,
    diff_id: &Digest,
    packing: &Packing,
    path: &std::path::Path,
) -> Result<Blob> {
    let suffix = match packing.compression {
        Compression::None => "",
        Compression::Gzip | Compression::GzipLevel(_) if packing.has_docker_types => ".gzip",
        Compression::Gzip | Compression::GzipLevel(_) => "+gzip",
        Compression::Zstd(_) if packing.has_docker_types => ".zstd",
        Compression::Zstd(_) => "+zstd",
    };
    let media_type = match packing.has_docker_types {
        true => format!("{DOCKER_LAYER}{suffix}"),
        false => format!("{LAYER}{suffix}"),
    };
    if packing.compression == Compression::None {
        let size = store.snapshots.archive_size(diff_id)?;
        return Ok(Blob {
            descriptor: Descriptor::new(media_type, diff_id.clone(), size),
            content: Content::Layer(diff_id.clone()),
        });
    }
    let file = fs::create(path, 0o600)?;
    let mut output = Hashing::new(file);
    let failed = || io("compress a layer");
    let mut layer = Blob {
        descriptor: Descriptor::new("", diff_id.clone(), 0),
        content: Content::Layer(diff_id.clone()),
    };
    match packing.compression {
        Compression::None => {}
        Compression::Gzip => {
            let write = |piece: Vec<u8>| output.write_all(&piece);
            store.snapshots.compress(diff_id, &mut |_| {}, write)?;
        }
        Compression::GzipLevel(level) => {
            let level = flate2::Compression::new(level);
            let mut encoder = flate2::write::GzEncoder::new(&mut output, level);
            layer.write(store, &mut encoder)?;
            encoder.finish().map_err(failed())?;
        }
        Compression::Zstd(level) => {
            let encoder = zstd::stream::write::Encoder::new(&mut output, level);
            let mut encoder = encoder.map_err(failed())?;
            layer.write(store, &mut encoder)?;
            encoder.finish().map_err(failed())?;
        }
    }
    let (digest, size, _) = output.finish();
    let file = fs::open(path)?;
    Ok(Blob {
        descriptor: Descriptor::new(media_type, digest, size),
        content: Content::File(file),
    })
}
