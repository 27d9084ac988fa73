//! Reads the OCI image layout: `index.json` refers by digest to manifests, or to nested indexes
//! with a manifest per platform.

use std::collections::BTreeMap;

use super::load::{Images, Origin, tag};
use super::{NAME_ANNOTATION, TAG_ANNOTATION};
use crate::bounded::MAX_NAMES;
use crate::config::ARCHITECTURE;
use crate::descriptor::{Descriptor, Index, Manifest};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;

/// Maximum nesting depth of indexes.
const MAX_INDEX_DEPTH: usize = 4;

/// Returns whether the archive has images for several platforms under one name, which only the OCI
/// layout can tell. Such an archive may have Docker's layout, too, for readers that know no other.
pub(super) fn has_index(images: &Images<'_>) -> bool {
    let has_indexes = |index: Index| index.manifests.iter().any(Descriptor::is_index);
    images.parts.has("index.json") && layout(images).is_ok_and(has_indexes)
}

fn layout(images: &Images<'_>) -> Result<Index> {
    let content = images.parts.read("index.json")?;
    Index::parse(&content).map_err(|error| error.during("invalid archive: index.json"))
}

pub(super) fn read(images: &mut Images<'_>) -> Result<()> {
    let index = layout(images)?;
    Reader {
        images,
        manifests: BTreeMap::new(),
        visited: 0,
    }
    .index(&index, Outer::default(), 0)?;
    if images.is_empty() {
        Err(Error::invalid(format!(
            "invalid archive: no image for {}",
            images.wanted()
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

/// What an index has from the entry that refers to it.
#[derive(Clone, Copy, Default)]
struct Outer<'a> {
    name: Option<&'a Reference>,
    /// The index itself, unless it is the layout's own `index.json`, which belongs to the archive and
    /// not to an image.
    index: Option<&'a Digest>,
}

impl Reader<'_, '_> {
    fn index(&mut self, index: &Index, outer: Outer<'_>, depth: usize) -> Result<()> {
        if depth > MAX_INDEX_DEPTH {
            return Err(Error::invalid(
                "invalid archive: indexes are nested too deeply",
            ));
        }
        let is_own = |entry: &&Descriptor| {
            let platform = entry.platform.as_ref();
            platform.is_none_or(|platform| platform.architecture == ARCHITECTURE)
        };
        // Of several images with a name, the last one that is added gets it.
        let others = index.manifests.iter().filter(|entry| !is_own(entry));
        let own = index.manifests.iter().filter(is_own);
        for descriptor in others.chain(own) {
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
            let name = name.as_ref().or(outer.name);
            let platform = descriptor.platform.as_ref();
            if platform.is_some_and(|platform| platform.os != "linux") {
                continue;
            }
            if descriptor.is_index() {
                let inner = self.blob(&descriptor.digest, Index::parse)?;
                let outer = Outer {
                    name,
                    index: Some(&descriptor.digest),
                };
                self.index(&inner, outer, depth + 1)?;
                continue;
            }
            // Who saves an image need not have all that its index lists.
            if outer.index.is_some() && !self.images.parts.has(&blob_name(&descriptor.digest)) {
                continue;
            }
            let (config, layers) = self.manifest(&descriptor.digest)?;
            let has = |part: &String| self.images.parts.has(part);
            let is_complete = layers.iter().all(has) && has(&config);
            if outer.index.is_some() && !is_complete {
                continue;
            }
            let origin = Origin {
                manifest: Some(descriptor.digest.clone()),
                index: outer.index.cloned(),
            };
            self.images.add(&config, layers, name.cloned(), origin)?;
        }
        Ok(())
    }

    fn manifest(&mut self, digest: &Digest) -> Result<(String, Vec<String>)> {
        if let Some(known) = self.manifests.get(digest) {
            return Ok(known.clone());
        }
        let manifest = self.blob(digest, Manifest::parse)?;
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

    /// Reads a manifest or index, and keeps its bytes in case that an image names it.
    fn blob<T>(&mut self, digest: &Digest, parse: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        let name = blob_name(digest);
        self.images.parts.check_name(&name)?;
        let bytes = self.images.parts.read(&name)?;
        let parsed =
            parse(&bytes).map_err(|error| error.during(&format!("invalid archive: {digest}")))?;
        self.images.documents.insert(digest.clone(), bytes);
        Ok(parsed)
    }
}

pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}
