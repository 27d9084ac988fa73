//! Reads the OCI image layout: `index.json` refers by digest to manifests, or to nested indexes
//! with a manifest per platform.

use std::collections::BTreeMap;

use super::load::{Images, tag};
use super::{INDEX, Index, Manifest, NAME_ANNOTATION, TAG_ANNOTATION};
use crate::bounded::MAX_NAMES;
use crate::config::ARCHITECTURE;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;

/// Maximum nesting depth of indexes.
const MAX_INDEX_DEPTH: usize = 4;
const MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

pub(super) fn read(images: &mut Images<'_>) -> Result<()> {
    let content = images.parts.read("index.json")?;
    let index: Index = serde_json::from_slice(&content)
        .map_err(|error| Error::invalid(format!("invalid archive: index.json: {error}")))?;
    Reader {
        images,
        manifests: BTreeMap::new(),
        visited: 0,
    }
    .index(&index, None, 0)?;
    if images.is_empty() {
        Err(Error::invalid(format!(
            "invalid archive: no image for linux/{ARCHITECTURE}"
        )))
    } else {
        Ok(())
    }
}

struct Reader<'a, 'b> {
    images: &'a mut Images<'b>,
    /// The configuration and layers (part names) of each manifest read so far.
    manifests: BTreeMap<Digest, (String, Vec<String>)>,
    visited: usize,
}

impl Reader<'_, '_> {
    fn index(&mut self, index: &Index, outer: Option<&Reference>, depth: usize) -> Result<()> {
        if depth > MAX_INDEX_DEPTH {
            return Err(Error::invalid(
                "invalid archive: indexes are nested too deeply",
            ));
        }
        for descriptor in &index.manifests {
            self.visited += 1;
            if self.visited > MAX_NAMES {
                return Err(Error::invalid(
                    "invalid archive: its indexes have too many entries",
                ));
            }
            let name = descriptor.annotations.get(NAME_ANNOTATION).or_else(|| {
                descriptor
                    .annotations
                    .get(TAG_ANNOTATION)
                    .filter(|name| name.contains([':', '/']))
            });
            let name = name.map(|name| tag(name)).transpose()?;
            let name = name.as_ref().or(outer);
            if descriptor.platform.as_ref().is_some_and(|platform| {
                platform.os != "linux" || platform.architecture != ARCHITECTURE
            }) {
                continue;
            }
            if descriptor.media_type == INDEX || descriptor.media_type == MANIFEST_LIST {
                let inner: Index = self.blob(&descriptor.digest)?;
                self.index(&inner, name, depth + 1)?;
                continue;
            }
            let (config, layers) = self.manifest(&descriptor.digest)?;
            self.images.add(&config, layers, name.cloned())?;
        }
        Ok(())
    }

    fn manifest(&mut self, digest: &Digest) -> Result<(String, Vec<String>)> {
        if let Some(known) = self.manifests.get(digest) {
            return Ok(known.clone());
        }
        let manifest: Manifest = self.blob(digest)?;
        let layers: Vec<String> = manifest
            .layers
            .iter()
            .map(|layer| blob_name(&layer.digest))
            .collect();
        let config = blob_name(&manifest.config.digest);
        layers
            .iter()
            .chain([&config])
            .try_for_each(|part| self.images.parts.check_name(part))?;
        self.manifests
            .insert(digest.clone(), (config.clone(), layers.clone()));
        Ok((config, layers))
    }

    fn blob<T: serde::de::DeserializeOwned>(&self, digest: &Digest) -> Result<T> {
        let name = blob_name(digest);
        self.images.parts.check_name(&name)?;
        serde_json::from_slice(&self.images.parts.read(&name)?)
            .map_err(|error| Error::invalid(format!("invalid archive: {digest}: {error}")))
    }
}

pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
