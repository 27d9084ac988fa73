//! Images that were built.

use std::sync::Arc;

use whelk_image::archive::{Loaded, Named, Origin};
use whelk_image::{Digest, ImageConfig, Lease, Reference};

use super::{Images, Renamed};
use crate::error::{Error, Result};
use crate::events::now;

/// Maximum size of a manifest or an index in bytes: registries take no larger ones, and the engine does not read much larger ones.
const MAX_DOCUMENT: usize = 4 << 20;

/// An image that was built.
#[derive(Clone, Debug, Default)]
pub struct BuiltImage {
    /// The configuration, with the layers, which are in the store.
    pub config: Vec<u8>,
    /// A manifest, with annotations, that the names stand for.
    pub manifest: Option<Vec<u8>>,
    pub names: Vec<Reference>,
}

/// An image that was recorded.
#[derive(Clone, Debug)]
pub struct AddedImage {
    pub id: Digest,
    /// The names that it has taken from other images.
    pub renamed: Vec<Renamed>,
    /// Whether everything that was written before is on disk. If not, the image was there.
    pub is_flushed: bool,
}

/// Images that were built together, one for each platform, or with attestations.
#[derive(Clone, Debug, Default)]
pub struct BuiltIndex {
    pub images: Vec<BuiltMember>,
    /// Lists the manifests of the images and of the attestations.
    pub index: Vec<u8>,
    /// The blobs of the attestations, with their manifests.
    pub attached: Vec<Vec<u8>>,
    pub names: Vec<Reference>,
}

/// An image of a [`BuiltIndex`].
#[derive(Clone, Debug)]
pub struct BuiltMember {
    /// Holds its layers.
    pub lease: Arc<Lease>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

/// Images that were recorded.
#[derive(Clone, Debug)]
pub struct AddedIndex {
    pub ids: Vec<Digest>,
    pub index: Digest,
}

impl Images {
    /// Records images, and the index that the names stand for. Everything that was written before is on disk then. Blocking.
    ///
    /// # Errors
    /// As [`Images::add_built`].
    pub fn add_built_index(&self, built: BuiltIndex) -> Result<AddedIndex> {
        let lease = self.files.leases.take();
        let added = self.add_held_index(&lease, built);
        drop(lease);
        // What was stored before an error belongs to nothing, and so does an index, with its attestations, that another one has replaced.
        self.collect_garbage();
        added
    }

    fn add_held_index(&self, lease: &Lease, built: BuiltIndex) -> Result<AddedIndex> {
        check_size("index", &built.index)?;
        let mut members = Vec::with_capacity(built.images.len());
        for member in &built.images {
            check_size("manifest", &member.manifest)?;
            let (config, size) = self.checked(&member.lease, &member.config)?;
            let id = self.files.content.put(lease, &member.config)?;
            let manifest = self.files.content.put(lease, &member.manifest)?;
            members.push((id, manifest, config, size));
        }
        for blob in &built.attached {
            self.files.content.put(lease, blob)?;
        }
        let index = self.files.content.put(lease, &built.index)?;
        self.files.sync()?;
        let tagged_at = built.names.first().map(|_| now());
        let names = built.names.iter().map(|name| Named {
            name: name.clone(),
            index: Some(index.clone()),
        });
        let names: Vec<Named> = names.collect();
        let loaded = members
            .into_iter()
            .map(|(id, manifest, config, size)| Loaded {
                id,
                origin: Origin {
                    manifest: Some(manifest),
                    index: Some(index.clone()),
                },
                config,
                other_manifests: Vec::new(),
                parent: None,
                names: names.clone(),
                size,
            });
        let loaded: Vec<Loaded> = loaded.collect();
        self.record_all(&loaded, tagged_at)?;
        let ids: Vec<Digest> = loaded.into_iter().map(|loaded| loaded.id).collect();
        for name in &built.names {
            if let Some(id) = ids.first() {
                self.publish("tag", id, name.familiar());
            }
        }
        for id in &ids {
            self.publish("create", id, id.to_string());
        }
        Ok(AddedIndex { ids, index })
    }

    /// Returns a configuration, and the size of the layers, which a lease holds.
    fn checked(&self, lease: &Lease, config: &[u8]) -> Result<(ImageConfig, u64)> {
        // With its limits of layers and size.
        let config = ImageConfig::parse(config)?;
        let mut size = 0;
        for layer in &config.rootfs.diff_ids {
            if !self.files.snapshots.claim(lease, layer) {
                return Err(Error::NotFound(format!("layer {layer} does not exist")));
            }
            size += self.files.snapshots.size(layer)?;
        }
        Ok((config, size))
    }

    /// Records an image whose layers `lease` holds. They are flushed to disk before, unless the image is there
    /// already. Blocking.
    ///
    /// # Errors
    /// Returns an error if the configuration is invalid, if a layer does not exist, or if the store fails.
    pub fn add_built(&self, lease: &Lease, built: BuiltImage) -> Result<AddedImage> {
        let has_manifest = built.manifest.is_some();
        let content = self.files.leases.take();
        let added = self.add_held(lease, &content, built);
        if let Ok(added) = &added {
            lease.hold(&added.id);
        }
        drop(content);
        if added.is_err() || has_manifest {
            // The configuration belongs to nothing then, or a manifest that another one has replaced.
            self.collect_garbage();
        }
        added
    }

    /// `lease` holds the layers, and `content` the configuration and the manifest until they are recorded.
    fn add_held(&self, lease: &Lease, content: &Lease, built: BuiltImage) -> Result<AddedImage> {
        let (config, size) = self.checked(lease, &built.config)?;
        let id = self.files.content.put(content, &built.config)?;
        let manifest = built.manifest.as_ref();
        let manifest = manifest.map(|bytes| {
            check_size("manifest", bytes)?;
            Ok::<_, Error>(self.files.content.put(content, bytes)?)
        });
        let manifest = manifest.transpose()?;
        // The lease holds the content from here on: if the image is there now, its content was never removed.
        let known = self.get(&id).ok();
        let mut new_documents = manifest.iter();
        let is_flushed = known.is_none_or(|known| {
            new_documents.any(|manifest| known.manifests().all(|own| own != manifest))
        });
        if is_flushed {
            self.files.sync()?;
        } else if built.names.is_empty() && manifest.is_none() {
            // Nothing of it changes: a build that the cache answers waits for no disk.
            self.uses.note(&id);
            self.publish("create", &id, id.to_string());
            return Ok(AddedImage {
                id,
                renamed: Vec::new(),
                is_flushed,
            });
        }
        let names = built.names.into_iter();
        let loaded = Loaded {
            id: id.clone(),
            // Not the manifest of the image: other names of it have others, or none.
            origin: Origin {
                manifest: None,
                index: manifest.clone(),
            },
            config,
            other_manifests: manifest.iter().cloned().collect(),
            parent: None,
            names: names
                .map(|name| Named {
                    name,
                    index: manifest.clone(),
                })
                .collect(),
            size,
        };
        let tagged_at = loaded.names.first().map(|_| now());
        let renamed = self.record(&loaded, tagged_at, None)?;
        for named in &loaded.names {
            self.publish("tag", &id, named.name.familiar());
        }
        // As in Docker, also if all steps were cached.
        self.publish("create", &id, id.to_string());
        Ok(AddedImage {
            id,
            renamed,
            is_flushed,
        })
    }
}

/// Refuses a document that is too large: annotations are part of each manifest, and of the index for each platform.
fn check_size(what: &str, document: &[u8]) -> Result<()> {
    if document.len() > MAX_DOCUMENT {
        let text = format!("the {what} of the image has more than {MAX_DOCUMENT} bytes");
        return Err(Error::invalid(text));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use whelk_image::archive::Import;
    use whelk_image::descriptor::{CONFIG, Descriptor, Manifest};
    use whelk_sys::Scratch;

    use super::*;
    use crate::store::RecordStore;

    /// Returns the images of an engine, and one of them.
    fn imported() -> (Scratch, Arc<Images>, Digest) {
        let root = Scratch::temporary("annotated").unwrap();
        let images = Images::open(
            whelk_image::Store::open(root.path()).unwrap(),
            Arc::new(RecordStore::open(root.path()).unwrap()),
            Arc::default(),
            &Default::default(),
        )
        .unwrap();
        // An archive without entries.
        let archive = &[0_u8; 1024][..];
        let id = images.import(archive, Import::default(), &[]).unwrap();
        (root, images, id)
    }

    /// Returns a manifest of an image.
    fn manifest(id: &Digest, text: &str) -> Vec<u8> {
        let layers = vec![Descriptor::new(text, id.clone(), 1)];
        let config = Descriptor::new(CONFIG, id.clone(), 1);
        serde_json::to_vec(&Manifest::new(config, layers)).unwrap()
    }

    #[test]
    fn each_name_of_an_image_has_its_own_manifest() {
        let (_root, images, id) = imported();
        let config = images.files.content.read(&id).unwrap();
        let lease = images.files.leases.take();
        let add = |name: &str, text: Option<&str>| {
            let manifest = text.map(|text| manifest(&id, text));
            let digest = manifest.as_deref().map(Digest::of);
            let built = BuiltImage {
                config: config.clone(),
                manifest,
                names: vec![name.parse().unwrap()],
            };
            assert_eq!(images.add_built(&lease, built).unwrap().id, id);
            digest
        };
        let index_of = |name: &str| {
            let full = format!("docker.io/library/{name}");
            images.read().index_of(&full).cloned()
        };
        let manifests = || {
            let image = images.get(&id).unwrap();
            let manifests = image.manifests().cloned();
            manifests.map(Some).collect::<Vec<Option<Digest>>>()
        };
        let (one, two) = (add("a:1", Some("one")), add("b:1", Some("two")));
        assert_eq!(index_of("a:1"), one);
        assert_eq!(index_of("b:1"), two);
        assert_eq!(manifests(), [one, two]);
        // Another one instead, and none.
        let three = add("a:1", Some("three"));
        assert_eq!(index_of("a:1"), three);
        add("b:1", None);
        assert_eq!(index_of("b:1"), None);
        // What no name stands for is not kept.
        let four = add("b:1", Some("four"));
        assert_eq!(manifests(), [three, four]);
        let built = BuiltImage {
            config: config.clone(),
            manifest: Some(vec![b' '; MAX_DOCUMENT + 1]),
            names: vec!["c:1".parse().unwrap()],
        };
        let refused = images.add_built(&lease, built).unwrap_err().to_string();
        assert!(refused.contains("more than 4194304 bytes"), "{refused}");
        assert_eq!(index_of("c:1"), None);
    }

    #[test]
    fn an_image_keeps_the_manifest_that_it_was_loaded_with() {
        let (_root, images, id) = imported();
        let lease = images.files.leases.take();
        let own = manifest(&id, "own");
        let own = images.files.content.put(&lease, &own).unwrap();
        let loaded = Loaded {
            id: id.clone(),
            origin: Origin {
                manifest: Some(own.clone()),
                index: None,
            },
            other_manifests: Vec::new(),
            parent: None,
            config: images.get(&id).unwrap().config.clone(),
            names: vec![Named {
                name: "loaded:1".parse().unwrap(),
                index: None,
            }],
            size: 0,
        };
        images.record(&loaded, None, None).unwrap();
        let built = BuiltImage {
            config: images.files.content.read(&id).unwrap(),
            manifest: Some(manifest(&id, "built")),
            names: vec!["built:1".parse().unwrap()],
        };
        images.add_built(&lease, built).unwrap();
        drop(lease);
        images.collect_garbage();
        let index_of = |name: &str| images.read().index_of(name).cloned();
        let built = Digest::of(&manifest(&id, "built"));
        assert_eq!(index_of("docker.io/library/loaded:1"), None);
        assert_eq!(index_of("docker.io/library/built:1"), Some(built.clone()));
        let image = images.get(&id).unwrap();
        assert_eq!(image.origin.manifest.as_ref(), Some(&own));
        assert_eq!(image.other_manifests, [built]);
        assert!(images.files.content.read(&own).is_ok());
    }
}
