//! Images for several platforms, and images with attestations: what an index lists.

use std::sync::Arc;

use whelk_engine::images::{BuiltIndex, BuiltMember};
use whelk_image::archive::{Attached, IndexAnnotations, Packed, Packing, attach, describe, index};
use whelk_image::descriptor::{DOCKER_MANIFEST_LIST, Descriptor, INDEX};
use whelk_image::{Digest, Platform as Target, Reference, Store};
use whelk_llb::pb::Platform;

use crate::bundle::SPDX;
use crate::error::Result;
use crate::exporter::Finished;
use crate::statement::{Encoded, Statement, of_image};
use crate::supplement::supplement;
use crate::{Builder, blocking};

/// An image of an index.
#[derive(Clone, Debug)]
pub struct Member {
    pub platform: Platform,
    pub finished: Finished,
    /// Its attestations.
    pub statements: Vec<Statement>,
    /// Its annotations, and how it is packed, if it is.
    pub packing: Packing,
}

#[derive(Clone, Debug, Default)]
pub struct IndexSettings {
    pub names: Vec<Reference>,
    /// Whether the manifests of attestations are artifacts of OCI.
    pub is_artifact: bool,
    /// Docker's media type is used instead of OCI's.
    pub has_docker_types: bool,
    pub annotations: IndexAnnotations,
}

/// An index that was made.
#[derive(Clone, Debug)]
pub struct StoredIndex {
    /// Of the images, in their order.
    pub ids: Vec<Digest>,
    /// Refers to the index.
    pub descriptor: Descriptor,
    pub bytes: Vec<u8>,
    /// Of the images.
    pub manifests: Vec<Digest>,
    /// Of attestations.
    pub attested: Vec<Digest>,
    /// What was said, with the place of the image.
    pub statements: Vec<(usize, Encoded)>,
}

/// The parts of an index that is being made.
#[derive(Default)]
struct Parts {
    entries: Vec<Descriptor>,
    attached: Vec<Attached>,
    statements: Vec<(usize, Encoded)>,
}

impl Parts {
    /// Adds an image to which `target` refers.
    fn add(
        &mut self,
        store: &Store,
        member: &Member,
        target: Descriptor,
        layers: &[Descriptor],
        settings: &IndexSettings,
    ) -> Result<()> {
        let place = self.entries.len();
        if !member.statements.is_empty() {
            let subjects = of_image(&settings.names, &member.platform, &target.digest);
            let mut encoded = Vec::with_capacity(member.statements.len());
            for statement in &member.statements {
                let statement = match statement {
                    Statement::Bill(bill) if bill.is_core && bill.kind == SPDX => {
                        let mut bill = bill.clone();
                        let config = &member.finished.config;
                        supplement(store, config, layers, &mut bill.predicate)?;
                        Statement::Bill(bill).encode(&subjects, Some(layers), false)?
                    }
                    other => other.encode(&subjects, Some(layers), false)?,
                };
                encoded.push((statement.kind.clone(), statement.bytes.clone()));
                self.statements.push((place, statement));
            }
            // Provenance is the last, as with BuildKit.
            self.attached
                .push(attach(&target, encoded, settings.is_artifact)?);
        }
        self.entries.push(target);
        Ok(())
    }
}

fn target(platform: &Platform) -> Target {
    Target {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
    }
}

impl IndexSettings {
    fn media_type(&self) -> &'static str {
        match self.has_docker_types {
            true => DOCKER_MANIFEST_LIST,
            false => INDEX,
        }
    }
}

impl Builder {
    /// Records images with the index that the names stand for. The manifests list the layers as a push compresses them.
    ///
    /// # Errors
    /// Returns an error if a layer was changed, or if the disk fails.
    pub async fn store_index(
        self: &Arc<Self>,
        members: Vec<Member>,
        settings: IndexSettings,
    ) -> Result<StoredIndex> {
        let builder = self.clone();
        blocking(move || {
            let mut parts = Parts::default();
            let mut images = Vec::with_capacity(members.len());
            for member in &members {
                let (finished, packing) = (&member.finished, &member.packing);
                let (store, lease) = (builder.store(), &finished.lease);
                let described = describe(store, lease, &finished.config, &packing.annotations)?;
                let mut entry = described.descriptor;
                entry.annotations = packing.entry_annotations.clone();
                entry.platform = Some(target(&member.platform));
                parts.add(store, member, entry, &described.layers, &settings)?;
                images.push(BuiltMember {
                    lease: finished.lease.clone(),
                    config: finished.config.clone(),
                    manifest: described.bytes,
                });
            }
            let manifests = parts.entries.iter().map(|entry| entry.digest.clone());
            let manifests = manifests.collect();
            let attested = parts.attached.iter().map(|one| one.manifest.digest.clone());
            let attested = attested.collect();
            let attached = parts.attached.iter().map(|one| one.manifest.clone());
            let entries = parts.entries.into_iter().chain(attached).collect();
            let bytes = index(entries, &settings.annotations.index, settings.media_type())?;
            let attached = parts.attached.into_iter().flat_map(|one| one.blobs);
            let newest = builder.cache.newest();
            let added = builder.engine.images.add_built_index(BuiltIndex {
                images,
                index: bytes.clone(),
                attached: attached.map(|(_, blob)| blob).collect(),
                names: settings.names.clone(),
            })?;
            builder.cache.flushed(newest);
            let size = bytes.len() as u64;
            let mut descriptor = Descriptor::new(settings.media_type(), added.index, size);
            descriptor.annotations = settings.annotations.entry;
            Ok(StoredIndex {
                ids: added.ids,
                descriptor,
                bytes,
                manifests,
                attested,
                statements: parts.statements,
            })
        })
        .await
    }

    /// Packs images with their index for an archive.
    ///
    /// # Errors
    /// Returns an error if a layer was changed, or if the disk is full.
    pub async fn pack_index(
        self: &Arc<Self>,
        members: Vec<Member>,
        settings: IndexSettings,
    ) -> Result<(Packed, StoredIndex)> {
        let builder = self.clone();
        blocking(move || {
            let mut parts = Parts::default();
            let mut images = Vec::with_capacity(members.len());
            for member in &members {
                let (finished, platform) = (&member.finished, target(&member.platform));
                let (store, lease) = (builder.store(), &finished.lease);
                let packed = Packed::new(store, lease, &finished.config, &member.packing, |_| {})?;
                let entry = packed.target(&platform);
                parts.add(store, member, entry, &packed.layers, &settings)?;
                images.push((packed, platform));
            }
            let manifests = parts.entries.iter().map(|entry| entry.digest.clone());
            let manifests = manifests.collect();
            let attested = parts.attached.iter().map(|one| one.manifest.digest.clone());
            let attested = attested.collect();
            let media_type = settings.media_type();
            let packed = Packed::join(images, parts.attached, &settings.annotations, media_type)?;
            let made = StoredIndex {
                ids: Vec::new(),
                descriptor: packed.manifest.clone(),
                bytes: packed.manifest_content().unwrap_or_default().to_vec(),
                manifests,
                attested,
                statements: parts.statements,
            };
            Ok((packed, made))
        })
        .await
    }
}
