//! Removes abandoned uploads, blobs that no manifest refers to, and content without a repository.

use std::path::Path;
use std::time::Duration;

use whelk_image::{Digest, Used};
use whelk_sys::fs;

use crate::error::Result;
use crate::manifests::Document;
use crate::names::{Repository, Version};
use crate::records::{Links, Registry, remove};

/// Age at which an unfinished upload, or a blob without a manifest, is removed.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

impl Registry {
    /// Removes what is older than `age` and of no use. What cannot be read is kept, with all that it
    /// may refer to.
    pub(crate) fn collect_garbage(&self, age: Duration) -> Result<()> {
        let mut used = Used::default();
        let mut outcome = Ok(());
        for repository in self.all()? {
            outcome = outcome.and(self.sweep(&repository, age));
        }
        // Links that appear from here on are of content that a lease holds until they are there.
        let trashed = self.store.gc(age, || {
            used.blobs.clear();
            if let Err(error) = self.add_used(&mut used) {
                tracing::error!("collect garbage: {error}");
                used.blobs.extend(self.all_content());
            }
            std::mem::take(&mut used)
        })?;
        for path in trashed {
            fs::remove_tree(path)?;
        }
        outcome
    }

    /// Returns all content. As long as that fails, nothing may be removed.
    fn all_content(&self) -> Vec<Digest> {
        loop {
            match self.store.content.list() {
                Ok(all) => return all,
                Err(error) => tracing::error!("collect garbage: {error}"),
            }
            std::thread::sleep(Duration::from_secs(10));
        }
    }

    fn add_used(&self, used: &mut Used) -> Result<()> {
        for repository in self.all()? {
            for links in [Links::Blobs, Links::Manifests] {
                used.blobs.extend(self.digests(&repository, links)?);
            }
        }
        Ok(())
    }

    /// Removes the links of a repository that are of no use.
    fn sweep(&self, repository: &Repository, age: Duration) -> Result<()> {
        let _lock = self.lock(repository);
        let uploads = self.directory(repository, Links::Uploads);
        for id in Self::list(&uploads)? {
            if is_older(&uploads.join(&id), age) {
                remove(&uploads.join(&id))?;
            }
        }
        let blobs = self.directory(repository, Links::Blobs);
        let mut old = self.digests(repository, Links::Blobs)?;
        old.retain(|digest| is_older(&blobs.join(digest.hex()), age));
        if old.is_empty() {
            return Ok(());
        }
        for digest in self.digests(repository, Links::Manifests)? {
            let manifest = self.get_manifest(repository, &Version::Digest(digest))?;
            let document = Document::parse(&manifest.media_type, &manifest.content)?;
            let named: std::collections::BTreeSet<_> = document.blobs().collect();
            old.retain(|digest| !named.contains(digest));
        }
        for digest in old {
            remove(&blobs.join(digest.hex()))?;
        }
        Ok(())
    }
}

fn is_older(path: &Path, age: Duration) -> bool {
    let changed = fs::metadata(path)
        .ok()
        .and_then(|found| found.modified().ok());
    changed.is_some_and(|changed| changed.elapsed().is_ok_and(|old| old >= age))
}
