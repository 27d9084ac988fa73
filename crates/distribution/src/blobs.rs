//! Blobs of repositories.

use std::fs::File;

use whelk_image::Digest;
use whelk_sys::fs;

use crate::error::{Error, Kind, Result};
use crate::names::RepositoryName;
use crate::records::{Links, Registry, remove};

fn unknown(digest: &Digest) -> Error {
    Kind::BlobUnknown.error(format!("blob {digest} is not in the repository"))
}

/// Returns the error of a blob whose content was damaged.
fn lost(digest: &Digest) -> Error {
    let text = format!("blob {digest} was damaged on the registry's disk; push it again");
    Kind::BlobUnknown.error(text)
}

impl Registry {
    pub(crate) fn blob_size(&self, repository: &RepositoryName, digest: &Digest) -> Result<u64> {
        let size = self.size(repository, Links::Blobs, digest);
        size.ok_or_else(|| match self.has_link(repository, Links::Blobs, digest) {
            true => lost(digest),
            false => unknown(digest),
        })
    }

    /// Returns the size of a blob that the client may be about to refer to in a manifest: it is kept
    /// for that as if it had just been pushed.
    pub(crate) fn claim_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<u64> {
        let _lock = self.lock(repository);
        let size = self.blob_size(repository, digest)?;
        self.touch(repository, Links::Blobs, digest)?;
        Ok(size)
    }

    pub(crate) fn open_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(File, u64)> {
        let size = self.blob_size(repository, digest)?;
        Ok((fs::open(self.store.content.path(digest))?, size))
    }

    /// Links a blob of another repository. Returns whether that has it.
    pub(crate) fn mount_blob(
        &self,
        to: &RepositoryName,
        digest: &Digest,
        from: &RepositoryName,
    ) -> Result<bool> {
        let lease = self.store.leases.take();
        lease.hold(digest);
        let exists = self.size(from, Links::Blobs, digest).is_some();
        if exists {
            self.link_blob(to, digest)?;
        }
        Ok(exists)
    }

    pub(crate) fn delete_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<()> {
        let _lock = self.lock(repository);
        match remove(&self.directory(repository, Links::Blobs).join(digest.hex()))? {
            true => Ok(()),
            false => Err(unknown(digest)),
        }
    }
}
