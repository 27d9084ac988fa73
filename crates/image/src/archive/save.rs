//! Writes image archives with an OCI layout, Docker's `manifest.json` and `repositories` in one
//! file, as Docker does.

use std::collections::BTreeMap;
use std::io::Write;

use serde::Serialize;
use tar::{Builder, EntryType, Header};

use super::oci::blob_name;
use super::{DockerImage, NAME_ANNOTATION, TAG_ANNOTATION};
use crate::config::ImageConfig;
use crate::descriptor::{CONFIG, Descriptor, INDEX, Index, LAYER, MANIFEST, Manifest};
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result, io};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::snapshots::unchanged;
use crate::store::Store;

/// Images to write under the same names: one, or one for each of several platforms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Ids, with the platforms that the images are for. The first is the default one.
    pub images: Vec<(Digest, Platform)>,
    pub names: Vec<Reference>,
    /// The image that the first one was made from. It is noted if it is saved, too.
    pub parent: Option<Digest>,
}

/// Writes images to `output`. A layer or configuration shared by several images is written once. Images
/// for several platforms are listed by an index.
///
/// # Errors
/// Returns an error if the content of a layer or configuration in the store does not match its
/// digest. The archive written so far is incomplete and must not be used.
pub fn save(store: &Store, saved: &[Saved], output: impl Write) -> Result<()> {
    let mut writer = Writer {
        store,
        archive: Builder::new(output),
        written: BTreeMap::new(),
        manifests: BTreeMap::new(),
        docker: Vec::new(),
        repositories: BTreeMap::new(),
    };
    let mut index = Index::new(Vec::new());
    for one in saved {
        let mut entries = Vec::with_capacity(one.images.len());
        for (at, (id, platform)) in one.images.iter().enumerate() {
            let names = if at == 0 { &one.names[..] } else { &[] };
            entries.push(writer.image(id, platform, names)?);
        }
        let entry = match entries.as_mut_slice() {
            [entry] => {
                // As in Docker's archives.
                if let Some(platform) = &mut entry.platform {
                    platform.variant.clear();
                }
                entry.clone()
            }
            _ => writer.index(entries)?,
        };
        index.manifests.extend(named(&entry, &one.names));
    }
    for one in saved {
        if let (Some((id, _)), Some(parent)) = (one.images.first(), &one.parent)
            && let Some((_, place)) = writer.manifests.get(id)
            && writer.manifests.contains_key(parent)
        {
            writer.docker[*place].parent = Some(parent.to_string());
        }
    }
    writer.finish(&index)
}

/// An archive that is being written.
struct Writer<'a, W: Write> {
    store: &'a Store,
    archive: Builder<W>,
    /// Sizes of the blobs that it has.
    written: BTreeMap<Digest, u64>,
    /// The manifests of the images that it has, and their places in `docker`, by id.
    manifests: BTreeMap<Digest, (Descriptor, usize)>,
    docker: Vec<DockerImage>,
    /// The legacy `repositories` file, for readers that do not know manifests: repository, tag, ID
    /// of the topmost layer.
    repositories: BTreeMap<String, BTreeMap<String, String>>,
}

impl<W: Write> Writer<'_, W> {
    /// Writes an image if the archive does not have it, and adds names. Returns its entry of an index.
    fn image(
        &mut self,
        id: &Digest,
        platform: &Platform,
        names: &[Reference],
    ) -> Result<Descriptor> {
        if !self.manifests.contains_key(id) {
            self.write(id)?;
        }
        let (entry, place) = &self.manifests[id];
        let entry = Descriptor {
            platform: Some(platform.clone()),
            ..entry.clone()
        };
        let docker = &mut self.docker[*place];
        docker
            .repo_tags
            .extend(names.iter().map(Reference::familiar));
        let topmost = docker
            .layers
            .last()
            .map(|layer| layer["blobs/sha256/".len()..].to_owned());
        for name in names {
            if let (Some(tag), Some(layer)) = (&name.tag, &topmost) {
                self.repositories
                    .entry(name.familiar_name())
                    .or_default()
                    .insert(tag.clone(), layer.clone());
            }
        }
        Ok(entry)
    }

    fn write(&mut self, id: &Digest) -> Result<()> {
        let config_bytes = self.store.content.read(id)?;
        let config = ImageConfig::parse(&config_bytes)?;
        let time = created(&config);
        let mut layers = Vec::new();
        for diff_id in &config.rootfs.diff_ids {
            let size = match self.written.get(diff_id) {
                Some(size) => *size,
                None => write_layer(self.store, diff_id, time, &mut self.archive)?,
            };
            self.written.insert(diff_id.clone(), size);
            layers.push(Descriptor::new(LAYER, diff_id.clone(), size));
        }
        self.blob(id, &config_bytes, time)?;
        let config_descriptor = Descriptor::new(CONFIG, id.clone(), config_bytes.len() as u64);
        let manifest = encode(&Manifest::new(config_descriptor, layers.clone()))?;
        let digest = Digest::of(&manifest);
        self.blob(&digest, &manifest, 0)?;
        let entry = Descriptor::new(MANIFEST, digest, manifest.len() as u64);
        self.manifests
            .insert(id.clone(), (entry, self.docker.len()));
        self.docker.push(DockerImage {
            config: blob_name(id),
            repo_tags: Vec::new(),
            layers: config.rootfs.diff_ids.iter().map(blob_name).collect(),
            parent: None,
            layer_sources: layers
                .into_iter()
                .map(|layer| (layer.digest.to_string(), layer))
                .collect(),
        });
        Ok(())
    }

    /// Writes an index. Returns the entry of an index that lists it.
    fn index(&mut self, entries: Vec<Descriptor>) -> Result<Descriptor> {
        let bytes = encode(&Index::new(entries))?;
        let digest = Digest::of(&bytes);
        self.blob(&digest, &bytes, 0)?;
        Ok(Descriptor::new(INDEX, digest, bytes.len() as u64))
    }

    fn blob(&mut self, digest: &Digest, content: &[u8], time: u64) -> Result<()> {
        let size = content.len() as u64;
        if self.written.insert(digest.clone(), size).is_none() {
            write_file(&mut self.archive, &blob_name(digest), content, time)?;
        }
        Ok(())
    }

    fn finish(mut self, index: &Index) -> Result<()> {
        let archive = &mut self.archive;
        write_file(archive, "index.json", &encode(index)?, 0)?;
        write_file(archive, "manifest.json", &encode(&self.docker)?, 0)?;
        write_file(archive, "oci-layout", LAYOUT, 0)?;
        if !self.repositories.is_empty() {
            write_file(archive, "repositories", &encode(&self.repositories)?, 0)?;
        }
        self.archive
            .into_inner()
            .and_then(|mut output| output.flush())
            .map_err(io("write archive"))
    }
}

/// The file that marks an OCI layout.
pub(super) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

pub(super) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::invalid(error.to_string()))
}

/// Returns an image's creation time in seconds since the epoch. It is the mtime of all its entries,
/// so that saving the same images gives the same archive.
pub(super) fn created(config: &ImageConfig) -> u64 {
    let time = config
        .created
        .as_deref()
        .and_then(|text| text.parse::<jiff::Timestamp>().ok());
    time.and_then(|time| u64::try_from(time.as_second()).ok())
        .unwrap_or(0)
}

/// Returns an index's entry once for each name, or once without a name.
pub(super) fn named(entry: &Descriptor, names: &[Reference]) -> Vec<Descriptor> {
    let with = |name: &Reference| {
        let mut entry = entry.clone();
        entry
            .annotations
            .insert(NAME_ANNOTATION.into(), name.to_string());
        entry
            .annotations
            .extend(name.tag.clone().map(|tag| (TAG_ANNOTATION.into(), tag)));
        entry
    };
    if names.is_empty() {
        vec![entry.clone()]
    } else {
        names.iter().map(with).collect()
    }
}

fn header(size: u64, time: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(time);
    header
}

pub(super) fn write_file(
    archive: &mut Builder<impl Write>,
    name: &str,
    content: &[u8],
    time: u64,
) -> Result<()> {
    archive
        .append_data(&mut header(content.len() as u64, time), name, content)
        .map_err(io(format!("write {name}")))
}

/// Writes a directory, whose name ends with a slash.
pub(super) fn write_directory(
    archive: &mut Builder<impl Write>,
    name: &str,
    time: u64,
) -> Result<()> {
    let mut head = header(0, time);
    head.set_entry_type(EntryType::Directory);
    head.set_mode(0o755);
    archive
        .append_data(&mut head, name, std::io::empty())
        .map_err(io(format!("write {name}")))
}

/// Writes a layer's tar archive, and returns its size.
fn write_layer(
    store: &Store,
    diff_id: &Digest,
    time: u64,
    archive: &mut Builder<impl Write>,
) -> Result<u64> {
    let size = store.snapshots.archive_size(diff_id)?;
    write_stream(archive, &blob_name(diff_id), size, time, |output| {
        let mut hashing = Hashing::new(output);
        store.snapshots.replay(diff_id, &mut hashing)?;
        let (digest, ..) = hashing.finish();
        unchanged(diff_id, &digest)
    })?;
    Ok(size)
}

/// Writes a file of `size` bytes, which `content` writes.
pub(super) fn write_stream(
    archive: &mut Builder<impl Write>,
    name: &str,
    size: u64,
    time: u64,
    content: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    const BLOCK: u64 = 512;
    let failed = || io(format!("write {name}"));
    let mut head = header(size, time);
    head.set_path(name).map_err(failed())?;
    head.set_cksum();
    let output = archive.get_mut();
    output.write_all(head.as_bytes()).map_err(failed())?;
    content(output)?;
    let padding = vec![0; usize::try_from((BLOCK - size % BLOCK) % BLOCK).unwrap_or_default()];
    output.write_all(&padding).map_err(failed())
}
