//! Writes image archives with an OCI layout, Docker's `manifest.json` and `repositories` in one
//! file, as Docker does.

use std::collections::BTreeMap;
use std::io::Write;

use tar::{Builder, EntryType, Header};

use super::oci::blob_name;
use super::{DockerImage, NAME_ANNOTATION, TAG_ANNOTATION};
use crate::config::ImageConfig;
use crate::descriptor::{CONFIG, Descriptor, Index, LAYER, MANIFEST, Manifest};
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result, io};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::snapshots::unchanged;
use crate::store::Store;

/// An image to write, with its names in the archive.
#[derive(Clone, Debug)]
pub struct Saved {
    pub id: Digest,
    pub names: Vec<Reference>,
}

/// Writes images to `output`. A layer or configuration shared by several images is written once.
///
/// # Errors
/// Returns an error if the content of a layer or configuration in the store does not match its
/// digest. The archive written so far is incomplete and must not be used.
pub fn save(store: &Store, images: &[Saved], output: impl Write) -> Result<()> {
    let mut archive = Builder::new(output);
    let mut written = BTreeMap::new();
    let mut index = Index::new(Vec::new());
    let mut docker = Vec::new();
    // The legacy `repositories` file, for readers that do not know manifests: repository, tag, ID
    // of the topmost layer.
    let mut repositories: BTreeMap<String, BTreeMap<&str, String>> = BTreeMap::new();
    for image in images {
        let config_bytes = store.content.read(&image.id)?;
        let config = ImageConfig::parse(&config_bytes)?;
        let time = created(&config);
        let mut layers = Vec::new();
        for diff_id in &config.rootfs.diff_ids {
            let size = match written.get(diff_id) {
                Some(size) => *size,
                None => write_layer(store, diff_id, time, &mut archive)?,
            };
            written.insert(diff_id.clone(), size);
            layers.push(Descriptor::new(LAYER, diff_id.clone(), size));
        }
        write_blob(&mut archive, &mut written, &image.id, &config_bytes, time)?;
        let config_descriptor =
            Descriptor::new(CONFIG, image.id.clone(), config_bytes.len() as u64);
        let manifest = Manifest::new(config_descriptor, layers.clone());
        let manifest_bytes =
            serde_json::to_vec(&manifest).map_err(|error| Error::invalid(error.to_string()))?;
        let manifest_digest = Digest::of(&manifest_bytes);
        write_blob(
            &mut archive,
            &mut written,
            &manifest_digest,
            &manifest_bytes,
            0,
        )?;
        index.manifests.extend(index_entries(
            image,
            &config,
            &manifest_digest,
            manifest_bytes.len() as u64,
        ));
        docker.push(DockerImage {
            config: blob_name(&image.id),
            repo_tags: image.names.iter().map(Reference::familiar).collect(),
            layers: config.rootfs.diff_ids.iter().map(blob_name).collect(),
            layer_sources: layers
                .into_iter()
                .map(|layer| (layer.digest.to_string(), layer))
                .collect(),
        });
        for name in &image.names {
            if let (Some(tag), Some(layer)) = (&name.tag, config.rootfs.diff_ids.last()) {
                repositories
                    .entry(name.familiar_name())
                    .or_default()
                    .insert(tag, layer.hex().to_owned());
            }
        }
    }
    let json = |value: serde_json::Result<Vec<u8>>| {
        value.map_err(|error| Error::invalid(error.to_string()))
    };
    write_file(
        &mut archive,
        "index.json",
        &json(serde_json::to_vec(&index))?,
        0,
    )?;
    write_file(
        &mut archive,
        "manifest.json",
        &json(serde_json::to_vec(&docker))?,
        0,
    )?;
    write_file(
        &mut archive,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#,
        0,
    )?;
    if !repositories.is_empty() {
        write_file(
            &mut archive,
            "repositories",
            &json(serde_json::to_vec(&repositories))?,
            0,
        )?;
    }
    archive
        .into_inner()
        .and_then(|mut output| output.flush())
        .map_err(io("write archive"))
}

/// Returns an image's creation time in seconds since the epoch. It is the mtime of all its entries,
/// so that saving the same images gives the same archive.
fn created(config: &ImageConfig) -> u64 {
    let time = config
        .created
        .as_deref()
        .and_then(|text| text.parse::<jiff::Timestamp>().ok());
    time.and_then(|time| u64::try_from(time.as_second()).ok())
        .unwrap_or(0)
}

/// Returns one index entry for each name, or one without a name.
fn index_entries(
    image: &Saved,
    config: &ImageConfig,
    manifest: &Digest,
    size: u64,
) -> Vec<Descriptor> {
    let entry = |name: Option<&Reference>| {
        let mut entry = Descriptor::new(MANIFEST, manifest.clone(), size);
        entry.platform = Some(Platform {
            architecture: config.architecture.clone(),
            os: config.os.clone(),
            variant: String::new(),
        });
        if let Some(name) = name {
            entry
                .annotations
                .insert(NAME_ANNOTATION.into(), name.to_string());
            entry
                .annotations
                .extend(name.tag.clone().map(|tag| (TAG_ANNOTATION.into(), tag)));
        }
        entry
    };
    if image.names.is_empty() {
        vec![entry(None)]
    } else {
        image.names.iter().map(|name| entry(Some(name))).collect()
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

fn write_file(
    archive: &mut Builder<impl Write>,
    name: &str,
    content: &[u8],
    time: u64,
) -> Result<()> {
    archive
        .append_data(&mut header(content.len() as u64, time), name, content)
        .map_err(io(format!("write {name}")))
}

fn write_blob(
    archive: &mut Builder<impl Write>,
    written: &mut BTreeMap<Digest, u64>,
    digest: &Digest,
    content: &[u8],
    time: u64,
) -> Result<()> {
    if written
        .insert(digest.clone(), content.len() as u64)
        .is_none()
    {
        write_file(archive, &blob_name(digest), content, time)?;
    }
    Ok(())
}

/// Writes a layer's tar archive, and returns its size.
fn write_layer(
    store: &Store,
    diff_id: &Digest,
    time: u64,
    archive: &mut Builder<impl Write>,
) -> Result<u64> {
    let size = store.snapshots.archive_size(diff_id)?;
    let name = blob_name(diff_id);
    let mut head = header(size, time);
    head.set_path(&name).map_err(io(format!("write {name}")))?;
    head.set_cksum();
    const BLOCK: u64 = 512;
    let output = archive.get_mut();
    output
        .write_all(head.as_bytes())
        .map_err(io(format!("write {name}")))?;
    let mut hashing = Hashing::new(&mut *output);
    store.snapshots.replay(diff_id, &mut hashing)?;
    let (digest, ..) = hashing.finish();
    unchanged(diff_id, &digest)?;
    let padding = vec![0; usize::try_from((BLOCK - size % BLOCK) % BLOCK).unwrap_or_default()];
    output
        .write_all(&padding)
        .map_err(io(format!("write {name}")))?;
    Ok(size)
}
