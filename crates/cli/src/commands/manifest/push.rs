//! The `manifest push` command.

use clap::Args;
use whelk_image::descriptor::Manifest;
use whelk_image::{Digest, Reference};
use whelk_registry::{Repository, Version};

use super::list::{self, ImageManifest};
use super::remote::{self, Remote, failed};
use super::store::{ManifestStore, no_such};
use crate::output::print_line;
use crate::{Failure, Outcome};

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Allow push to an insecure registry
    #[arg(long)]
    pub(super) insecure: bool,
    /// Remove the local manifest list after push
    #[arg(short, long)]
    purge: bool,
    #[arg(value_name = "MANIFEST_LIST")]
    list: String,
}

pub(super) async fn push(store: &ManifestStore, remote: &Remote, args: &PushArgs) -> Outcome {
    let target = super::reference(&args.list)?;
    let manifests = store.list(&target)?.ok_or_else(|| no_such(&target))?;
    if manifests.is_empty() {
        return Err(Failure::new(format!("{target} not found")));
    }
    for manifest in &manifests {
        let platform = manifest.descriptor.platform.as_ref();
        if platform
            .is_none_or(|platform| platform.os.is_empty() || platform.architecture.is_empty())
        {
            return Err(Failure::new(format!(
                "manifest {} must have an OS and Architecture to be pushed to a registry",
                manifest.reference
            )));
        }
    }
    let (media_type, text) = list::list(&manifests, &target)?;
    let repository = remote.to_write(&target)?;
    // Blobs of other repositories are mounted before a manifest refers to them.
    let mut others = Vec::new();
    for manifest in &manifests {
        let source = manifest.source()?;
        if source.path != target.path {
            take_over(&repository, manifest, &source, &target).await?;
            others.push(manifest);
        }
    }
    for manifest in others {
        let digest = &manifest.descriptor.digest;
        put(&repository, Version::Digest(digest.clone()), manifest).await?;
        let shown = Reference {
            tag: None,
            digest: Some(digest.clone()),
            ..target.clone()
        };
        print_line!("Pushed ref {shown} with digest: {digest}")?;
    }
    let version = remote::version(&target);
    let algorithm = target.digest.as_ref().map(Digest::algorithm);
    let digest = algorithm.unwrap_or_default().digest(text.as_bytes());
    repository
        .put_manifest(&version, media_type, text.into_bytes())
        .await
        .map_err(|error| unaccepted(&target, &error))?;
    print_line!("{digest}")?;
    if args.purge {
        store.remove(&target)?;
    }
    Ok(0)
}

/// Mounts an image's blobs from another repository of the registry.
async fn take_over(
    repository: &Repository,
    manifest: &ImageManifest,
    source: &Reference,
    target: &Reference,
) -> Outcome<()> {
    let parsed = Manifest::parse(manifest.bytes()?)
        .map_err(|error| Failure::new(format!("{source}: {error}")))?;
    let platform = manifest.descriptor.platform.as_ref();
    let is_windows = platform.is_some_and(|platform| platform.os == "windows");
    for blob in parsed.layers.iter().chain([&parsed.config]) {
        let digest = &blob.digest;
        let is_there = repository.has_blob(digest).await.map_err(failed)?
            || repository
                .mount(digest, &source.path)
                .await
                .map_err(failed)?;
        // Layers of Windows images may be on other servers.
        if !is_there && !is_windows {
            return Err(Failure::new(format!(
                "error mounting {}@{digest} to {target}",
                source.path
            )));
        }
    }
    Ok(())
}

async fn put(repository: &Repository, version: Version, manifest: &ImageManifest) -> Outcome<()> {
    let bytes = manifest.bytes()?.to_vec();
    let put = repository.put_manifest(&version, &manifest.descriptor.media_type, bytes);
    let source = manifest.source()?;
    put.await.map_err(|error| unaccepted(&source, &error))
}

fn unaccepted(reference: &Reference, error: &whelk_registry::Error) -> Failure {
    Failure::new(format!("failed to put manifest {reference}: {error}"))
}
