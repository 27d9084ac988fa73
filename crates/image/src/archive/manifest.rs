//! Manifests of images whose layers are in the store, before any of them was sent anywhere.

use std::collections::BTreeMap;
use std::io::{self, Write as _};

use serde::Serialize;

use super::save::encode;
use crate::config::ImageConfig;
use crate::descriptor::{CONFIG, Descriptor, LAYER, MANIFEST, Manifest};
use crate::digest::{Digest, Hashing};
use crate::error::{Error, Result};
use crate::leases::Lease;
use crate::store::Store;

/// The manifest of an image.
#[derive(Clone, Debug)]
pub struct Described {
    /// Refers to the manifest.
    pub descriptor: Descriptor,
    pub bytes: Vec<u8>,
    pub layers: Vec<Descriptor>,
}

/// A manifest with annotations.
#[derive(Serialize)]
pub(super) struct Annotated<'a> {
    #[serde(flatten)]
    pub(super) manifest: &'a Manifest,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: &'a BTreeMap<String, String>,
}

/// Makes the manifest of the image with this configuration, whose layers `lease` holds, with annotations and the blobs that a push makes of
/// the layers. What they are is computed now, by compressing the layers, unless it is known.
///
/// # Errors
/// Returns an error if the configuration is invalid, or if a layer is missing or was changed.
pub fn describe(
    store: &Store,
    lease: &Lease,
    config: &[u8],
    annotations: &BTreeMap<String, String>,
) -> Result<Described> {
    let parsed = ImageConfig::parse(config)?;
    let mut layers = Vec::new();
    for diff_id in &parsed.rootfs.diff_ids {
        if !store.snapshots.claim(lease, diff_id) {
            return Err(Error::NotFound(format!("layer {diff_id} does not exist")));
        }
        let (digest, size) = match store.snapshots.compressed(diff_id) {
            Some(known) => known,
            None => compress(store, diff_id)?,
        };
        layers.push(Descriptor::new(format!("{LAYER}+gzip"), digest, size));
    }
    let config = Descriptor::new(CONFIG, Digest::of(config), config.len() as u64);
    let bytes = encode(&Annotated {
        manifest: &Manifest::new(config, layers.clone()),
        annotations,
    })?;
    Ok(Described {
        descriptor: Descriptor::new(MANIFEST, Digest::of(&bytes), bytes.len() as u64),
        bytes,
        layers,
    })
}

/// Returns the digest and the size of a layer's blob.
fn compress(store: &Store, diff_id: &Digest) -> Result<(Digest, u64)> {
    let mut output = Hashing::new(io::sink());
    store
        .snapshots
        .compress(diff_id, &mut |_| {}, |piece| output.write_all(&piece))?;
    let (digest, size, _) = output.finish();
    store
        .snapshots
        .remember_compressed(diff_id, &digest, size)?;
    Ok((digest, size))
}
