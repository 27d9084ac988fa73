//! Copies manifests with their blobs from one repository to another.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};
use whelk_image::{Digest, Reference};
use whelk_registry::{Repository, Source, Version};

use super::wire::{Descriptor, Index, Manifest, read};
use crate::commands::manifest::remote::{Remote, failed};
use crate::{Failure, Outcome};

/// How deep indexes may be in indexes.
const MAX_DEPTH: usize = 4;

/// Number of pieces of a blob that wait to be sent.
const WAITING: usize = 8;

/// A repository to copy from and one to copy to.
pub(super) struct Copy {
    from: Repository,
    to: Repository,
    /// The source's path, if both are in one registry: blobs can be mounted.
    path: Option<String>,
    is_same: bool,
}

impl Copy {
    pub fn new(remote: &Remote, from: &Reference, to: &Reference) -> Outcome<Self> {
        Ok(Self {
            from: remote.to_read(from)?,
            to: remote.to_write(to)?,
            path: (from.domain == to.domain).then(|| from.path.clone()),
            is_same: from.domain == to.domain && from.path == to.path,
        })
    }

    /// Copies a manifest or an index by its digest.
    pub async fn copy(&self, descriptor: &Descriptor) -> Outcome<()> {
        match self.is_same {
            true => Ok(()),
            false => self.manifest(descriptor.digest()?, MAX_DEPTH).await,
        }
    }

    async fn manifest(&self, digest: &Digest, depth: usize) -> Outcome<()> {
        let version = Version::Digest(digest.clone());
        let there = self.to.digest(&version).await.map_err(failed)?;
        if there.as_ref() == Some(digest) {
            return Ok(());
        }
        let found = self.from.manifest(&version).await;
        let found = found.map_err(|error| Failure::new(format!("{digest}: {error}")))?;
        if found.is_index() {
            if depth == 0 {
                let text = format!("{digest}: indexes are nested deeper than {MAX_DEPTH}");
                return Err(Failure::new(text));
            }
            for entry in Index::parse(&found.bytes)?.manifests {
                Box::pin(self.manifest(entry.digest()?, depth - 1)).await?;
            }
        } else {
            let manifest: Manifest = read(&found.bytes, "manifest")?;
            for blob in manifest.layers.iter().chain(&manifest.config) {
                self.blob(blob).await?;
            }
        }
        let put = self
            .to
            .put_manifest(&version, &found.media_type, found.bytes);
        put.await
            .map_err(|error| Failure::new(format!("failed to put manifest {digest}: {error}")))
    }

    async fn blob(&self, descriptor: &Descriptor) -> Outcome<()> {
        let digest = descriptor.digest()?;
        // Such layers are on other servers.
        let is_elsewhere = !descriptor.urls.is_empty()
            && (descriptor.media_type.contains("foreign")
                || descriptor.media_type.contains("nondistributable"));
        if is_elsewhere || self.to.has_blob(digest).await.map_err(failed)? {
            return Ok(());
        }
        if let Some(path) = &self.path
            && self.to.mount(digest, path).await.map_err(failed)?
        {
            return Ok(());
        }
        self.transfer(digest, descriptor.size).await
    }

    /// Downloads a blob and uploads it at the same time.
    async fn transfer(&self, digest: &Digest, size: u64) -> Outcome<()> {
        let problem = Arc::new(Mutex::new(None));
        let open = || {
            let (sender, pieces) = mpsc::channel(WAITING);
            let (tell, end) = oneshot::channel();
            let mut blob = self.from.blob(digest, size, 0);
            let (digest, problem) = (digest.clone(), problem.clone());
            tokio::spawn(async move {
                loop {
                    match blob.next(|_| {}).await {
                        Ok(Some(piece)) => {
                            if sender.send(piece).await.is_err() {
                                // The upload has ended.
                                return;
                            }
                        }
                        Ok(None) => {
                            let _ = tell.send((digest, size));
                            return;
                        }
                        Err(error) => {
                            let mut problem =
                                problem.lock().unwrap_or_else(PoisonError::into_inner);
                            *problem = Some(error.to_string());
                            return;
                        }
                    }
                }
            });
            Source { pieces, end }
        };
        let uploaded = self.to.upload(open, |_| {}).await;
        let problem = problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match (uploaded, problem) {
            (Ok(_), _) => Ok(()),
            (Err(_), Some(problem)) => Err(Failure::new(problem)),
            (Err(error), None) => Err(failed(error)),
        }
    }
}
