//! Images that are packed to be pushed, and not when they are pushed: in a form that the engine's own pushes do not have, or by
//! the digest of an index alone.

use std::sync::{Arc, Mutex};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use whelk_engine::images::{BuiltImage, BuiltIndex, BuiltMember};
use whelk_image::archive::{Blob, Packed};
use whelk_image::descriptor::{DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, Descriptor, INDEX, MANIFEST};
use whelk_image::{Digest, Reference};
use whelk_registry::{Repository, Version};
use whelk_sys::sync::IgnorePoison as _;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::index::{Member, StoredIndex};
use crate::transfer::upload;
use crate::{Builder, blocking};

/// Number of blobs that are uploaded at the same time.
const UPLOADS: usize = 4;

/// A packed image, or several with their index, which can be pushed any number of times.
#[derive(Debug)]
pub struct PackedImage {
    blobs: Vec<(Descriptor, Arc<Mutex<Blob>>)>,
    /// Refers to the manifest, or to the index.
    pub descriptor: Descriptor,
    /// Has the files of the blobs.
    _packed: Packed,
}

impl PackedImage {
    pub fn new(mut packed: Packed) -> Self {
        let blobs = std::mem::take(&mut packed.blobs).into_iter();
        let blobs = blobs.map(|blob| (blob.descriptor.clone(), Arc::new(Mutex::new(blob))));
        Self {
            blobs: blobs.collect(),
            descriptor: packed.manifest.clone(),
            _packed: packed,
        }
    }
}

/// Returns whether a blob is a manifest or an index, which registries keep apart from others.
fn is_document(descriptor: &Descriptor) -> bool {
    matches!(
        descriptor.media_type.as_str(),
        MANIFEST | DOCKER_MANIFEST | INDEX | DOCKER_MANIFEST_LIST
    )
}

impl Builder {
    /// Records an image with the manifest that it was packed with, which the names stand for. Returns its id.
    ///
    /// # Errors
    /// As [`Builder::store_image`].
    pub async fn store_packed(
        self: &Arc<Self>,
        member: &Member,
        packed: &Packed,
        names: Vec<Reference>,
    ) -> Result<Digest> {
        let (builder, finished) = (self.clone(), member.finished.clone());
        let manifest = packed.manifest_content().map(<[u8]>::to_vec);
        blocking(move || {
            let built = BuiltImage {
                config: finished.config,
                manifest,
                names,
            };
            builder.add_image(&finished.lease, built)
        })
        .await
    }

    /// Records images with the index that they were packed with, which the names stand for. Returns their ids.
    ///
    /// # Errors
    /// As [`Builder::store_index`].
    pub async fn store_packed_index(
        self: &Arc<Self>,
        members: &[Member],
        packed: &Packed,
        made: &StoredIndex,
        names: Vec<Reference>,
    ) -> Result<Vec<Digest>> {
        let documents = packed.blobs.iter().filter_map(|blob| {
            let content = blob.content()?;
            Some((&blob.descriptor.digest, content))
        });
        let documents: Vec<(&Digest, &[u8])> = documents.collect();
        let mut images = Vec::with_capacity(members.len());
        for (member, digest) in members.iter().zip(&made.manifests) {
            let manifest = documents.iter().find(|(known, _)| *known == digest);
            let (_, manifest) =
                manifest.ok_or_else(|| Error::internal(format!("no manifest {digest}")))?;
            images.push(BuiltMember {
                lease: member.finished.lease.clone(),
                config: member.finished.config.clone(),
                manifest: manifest.to_vec(),
            });
        }
        let configs: Vec<Digest> = images.iter().map(|one| Digest::of(&one.config)).collect();
        let attached = documents.into_iter().filter(|(digest, _)| {
            **digest != made.descriptor.digest
                && !made.manifests.contains(digest)
                && !configs.contains(digest)
        });
        let built = BuiltIndex {
            images,
            index: made.bytes.clone(),
            attached: attached.map(|(_, content)| content.to_vec()).collect(),
            names,
        };
        let builder = self.clone();
        blocking(move || {
            let newest = builder.cache.newest();
            let added = builder.engine.images.add_built_index(built)?;
            builder.cache.flushed(newest);
            Ok(added.ids)
        })
        .await
    }

    /// Pushes a packed image to the repository of a name: under its tag, or, if it has none, by its digest alone. Images of the
    /// engine with these ids have that digest afterwards.
    ///
    /// # Errors
    /// Returns an error if the registry does not take it.
    pub async fn push_packed(
        self: &Arc<Self>,
        client: &dyn Client,
        image: &PackedImage,
        name: &Reference,
        ids: Vec<Digest>,
    ) -> Result<()> {
        let credentials = client.credentials(&name.domain).await?;
        let repository = self.engine.images.web().push(name, credentials);
        let (documents, blobs): (Vec<_>, Vec<_>) = image
            .blobs
            .iter()
            .partition(|(descriptor, _)| is_document(descriptor));
        let mut uploads = Vec::with_capacity(blobs.len());
        for (descriptor, blob) in blobs {
            uploads.push(self.bring(&repository, &descriptor.digest, blob.clone()));
        }
        let uploads = stream::iter(uploads).buffer_unordered(UPLOADS);
        uploads.try_collect::<()>().await?;
        // What a document refers to is before it.
        for (descriptor, blob) in documents {
            let digest = &descriptor.digest;
            let is_last = *digest == image.descriptor.digest;
            let version = match &name.tag {
                Some(tag) if is_last => Version::Tag(tag.clone()),
                _ => Version::Digest(digest.clone()),
            };
            let content = blob.lock().ignore_poison().content().map(<[u8]>::to_vec);
            let content = content.unwrap_or_default();
            let put = repository.put_manifest(&version, &descriptor.media_type, content);
            put.await.map_err(failed)?;
        }
        let digest = Reference {
            tag: None,
            digest: Some(image.descriptor.digest.clone()),
            ..name.clone()
        };
        let builder = self.clone();
        blocking(move || {
            for id in ids {
                builder.engine.images.add_repo_digest(&id, digest.clone())?;
            }
            Ok(())
        })
        .await
    }

    /// Uploads a blob that the repository does not have.
    async fn bring(
        &self,
        repository: &Repository,
        digest: &Digest,
        blob: Arc<Mutex<Blob>>,
    ) -> Result<()> {
        match repository.has_blob(digest).await.map_err(failed)? {
            true => Ok(()),
            false => upload(repository, self.store().clone(), blob).await,
        }
    }
}

fn failed(error: whelk_registry::Error) -> Error {
    Error::invalid(error.to_string())
}
