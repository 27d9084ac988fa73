//! Where the blobs of an imported cache come from.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use whelk_image::Digest;
use whelk_image::descriptor::Descriptor;
use whelk_registry::{Repository, Version};

use crate::client::{Client, Pieces};
use crate::error::{Error, Result};

/// Maximum size of a manifest in bytes.
const MAX_MANIFEST: u64 = 4 << 20;

#[derive(Clone, Debug)]
pub(super) enum Source {
    /// A store of the client.
    Store {
        client: Arc<dyn Client>,
        name: String,
    },
    Registry(Repository),
    /// An image of this engine, whose layers are here.
    Engine,
}

impl Source {
    /// Reads a manifest or an index.
    pub async fn document(&self, digest: &Digest) -> Result<Vec<u8>> {
        match self {
            Self::Registry(repository) => {
                let version = Version::Digest(digest.clone());
                let document = repository.manifest(&version);
                Ok(document.await.map_err(failed)?.bytes)
            }
            Self::Store { client, name } => {
                let pieces = client.stored(name, digest.as_str()).await?;
                read(pieces, digest, MAX_MANIFEST).await
            }
            Self::Engine => Err(missing(digest)),
        }
    }

    /// Reads a blob of at most `limit` bytes.
    pub async fn small(&self, blob: &Descriptor, limit: u64) -> Result<Vec<u8>> {
        if blob.size > limit {
            let text = format!("{} has more than {limit} bytes", blob.digest);
            return Err(Error::invalid(text));
        }
        read(self.blob(blob).await?, &blob.digest, limit).await
    }

    /// Returns the bytes of a blob, which are not verified.
    pub async fn blob(&self, blob: &Descriptor) -> Result<Pieces> {
        match self {
            Self::Registry(repository) => {
                let received = repository.blob(&blob.digest, blob.size, 0);
                let pieces = stream::try_unfold(received, |mut received| async move {
                    let piece = received.next(|_| {}).await.map_err(failed)?;
                    Ok(piece.map(|piece| (piece, received)))
                });
                Ok(pieces.boxed())
            }
            Self::Store { client, name } => client.stored(name, blob.digest.as_str()).await,
            Self::Engine => Err(missing(&blob.digest)),
        }
    }
}

pub(super) fn failed(error: whelk_registry::Error) -> Error {
    Error::invalid(error.to_string())
}

fn missing(digest: &Digest) -> Error {
    Error::invalid(format!("{digest}: not found"))
}

/// Reads and verifies a small blob.
async fn read(mut pieces: Pieces, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    while let Some(piece) = pieces.next().await {
        content.extend_from_slice(&piece?);
        if content.len() as u64 > limit {
            let text = format!("{digest} has more than {limit} bytes");
            return Err(Error::invalid(text));
        }
    }
    match digest.is_of(&content) {
        true => Ok(content),
        false => Err(Error::invalid(format!("another content than {digest}"))),
    }
}
