//! Images in OCI layouts of the client: named contexts `oci-layout://DIRECTORY`.
//!
//! The blobs of the image for the wanted platform are received, and loaded as an archive. As a base that was pulled, it
//! is an image of the engine then, without a name.

use std::sync::Arc;

use futures_util::StreamExt as _;
use whelk_image::descriptor::{Descriptor, Index, Manifest};
use whelk_image::{Digest, Progress as LoadProgress};
use whelk_llb::pb;
use whelk_sys::{Scratch, fs};

use super::{Base, platform_of};
use crate::client::Client;
use crate::error::{Error, Result, os};
use crate::spool::Spool;
use crate::{Builder, blocking};

/// Maximum size of an index or a manifest in bytes.
const MAX_DOCUMENT: usize = 4 << 20;

impl Builder {
    /// Receives an image, unless it is here. `reference` is `NAME@DIGEST`.
    pub(crate) async fn layout(
        self: &Arc<Self>,
        client: &dyn Client,
        store: &str,
        reference: &str,
        platform: &pb::Platform,
    ) -> Result<Base> {
        let platform = platform_of(platform);
        let digest = reference.rsplit_once('@').map_or("", |(_, digest)| digest);
        let invalid = |what: &str| Error::invalid(format!("OCI layout, {reference}: {what}"));
        let digest: Digest = digest
            .parse()
            .map_err(|error: whelk_image::Error| invalid(&error.to_string()))?;
        let mut document = document(client, store, &digest).await?;
        let mut own = digest;
        // An index may list further indexes.
        for _ in 0..4 {
            if Manifest::parse(&document).is_ok() {
                break;
            }
            let index = Index::parse(&document)?;
            let entries = index.manifests.iter();
            let known = entries
                .clone()
                .filter_map(|entry| Some((entry.platform.as_ref()?, entry)));
            let chosen = match platform.choose(known) {
                Some(entry) => entry,
                None if index.manifests.len() == 1 => &index.manifests[0],
                None => {
                    let text = format!("no image for the platform {platform}");
                    return Err(invalid(&text));
                }
            };
            own = chosen.digest.clone();
            document = self::document(client, store, &own).await?;
        }
        let manifest = Manifest::parse(&document)?;
        if let Ok(base) = self.hold(&manifest.config.digest) {
            return Ok(base);
        }
        let scratch = Arc::new(self.store().staging.scratch()?);
        fs::create_dir_all(scratch.path().join("blobs"), 0o700)?;
        let mut blobs = vec![&manifest.config];
        for layer in &manifest.layers {
            if !blobs.iter().any(|blob| blob.digest == layer.digest) {
                blobs.push(layer);
            }
        }
        for blob in &blobs {
            receive(client, store, blob, &scratch).await?;
        }
        let entry = Descriptor::new(manifest.kind(), own.clone(), document.len() as u64);
        let index = Index::new(vec![entry]);
        let blobs: Vec<Digest> = blobs.iter().map(|blob| blob.digest.clone()).collect();
        let builder = self.clone();
        let id = manifest.config.digest.clone();
        blocking(move || {
            let archive = archive(&scratch, &index, (&own, &document), &blobs)?;
            let images = &builder.engine.images;
            images.load(archive, &[], &LoadProgress::none())?;
            Ok(())
        })
        .await?;
        self.engine.durability.wait().await?;
        self.hold(&id)
    }

    fn hold(&self, id: &Digest) -> Result<Base> {
        let (image, _pin) = self.engine.images.pin(id.as_str(), None)?;
        Ok(Base::of(self.store(), image))
    }
}

/// Receives a small blob, and verifies it.
async fn document(client: &dyn Client, store: &str, digest: &Digest) -> Result<Vec<u8>> {
    let mut pieces = client.blob(store, digest.as_str()).await?;
    let mut content = Vec::new();
    while let Some(piece) = pieces.next().await {
        content.extend_from_slice(&piece?);
        if content.len() > MAX_DOCUMENT {
            let text = format!("OCI layout: {digest} is larger than {MAX_DOCUMENT} bytes");
            return Err(Error::invalid(text));
        }
    }
    match *digest == Digest::of(&content) {
        true => Ok(content),
        false => Err(other(digest)),
    }
}

fn other(digest: &Digest) -> Error {
    Error::invalid(format!("OCI layout: another content than {digest}"))
}

/// Receives a blob into a file, and verifies it.
async fn receive(
    client: &dyn Client,
    store: &str,
    blob: &Descriptor,
    scratch: &Arc<Scratch>,
) -> Result<()> {
    let path = scratch.path().join("blobs").join(blob.digest.hex());
    let file = blocking(move || Ok(fs::create(&path, 0o600)?)).await?;
    let digest = &blob.digest;
    let mut spool = Spool::new(file, digest.algorithm(), digest.as_str());
    let mut pieces = client.blob(store, digest.as_str()).await?;
    while let Some(piece) = pieces.next().await {
        spool.add(piece?).await?;
        if spool.size() > blob.size {
            return Err(other(digest));
        }
    }
    let size = spool.size();
    let (found, _) = spool.finish().await?;
    match size == blob.size && found == *digest {
        true => Ok(()),
        false => Err(other(digest)),
    }
}

/// Makes an archive of a layout in a file, and opens it.
fn archive(
    scratch: &Scratch,
    index: &Index,
    (digest, manifest): (&Digest, &[u8]),
    blobs: &[Digest],
) -> Result<std::fs::File> {
    let path = scratch.path().join("archive");
    let mut archive = tar::Builder::new(fs::create(&path, 0o600)?);
    let failed = || os::<std::io::Error>("make an archive of an OCI layout");
    let mut append = |name: String, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content)
    };
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    append("oci-layout".into(), layout).map_err(failed())?;
    let text = serde_json::to_vec(index).map_err(|error| Error::internal(error.to_string()))?;
    append("index.json".into(), &text).map_err(failed())?;
    append(format!("blobs/sha256/{}", digest.hex()), manifest).map_err(failed())?;
    for blob in blobs {
        let mut file = fs::open(scratch.path().join("blobs").join(blob.hex()))?;
        archive
            .append_file(format!("blobs/sha256/{}", blob.hex()), &mut file)
            .map_err(failed())?;
    }
    archive.finish().map_err(failed())?;
    drop(archive);
    Ok(fs::open(&path)?)
}
