//! Image content on disk: blobs and unpacked layers, the staging area, and garbage collection.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use whelk_sys::fs;

use crate::content::Content;
use crate::digest::{Algorithm, Digest};
use crate::error::Result;
use crate::leases::Leases;
use crate::snapshots::{Identity, Snapshots};
use crate::staging::Staging;

/// The image content of an engine. An object found under its name is never partial.
#[derive(Clone, Debug)]
pub struct Store {
    pub content: Content,
    pub snapshots: Snapshots,
    pub leases: Leases,
    pub staging: Staging,
}

/// The objects that an engine's records refer to.
#[derive(Debug, Default)]
pub struct Used {
    pub blobs: BTreeSet<Digest>,
    pub layers: BTreeSet<Digest>,
}

/// What has become of a damaged object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetAside {
    /// It is at this path now.
    Moved(PathBuf),
    /// It is not damaged any more.
    Sound,
    /// Something that has just begun, such as a start, a pull or a push, needs it where it is.
    Held,
    /// So does what has this name.
    Used(String),
}

impl Store {
    /// Opens the store at `root`, creating its directories, and moves incomplete objects of an
    /// earlier run to the trash, except for blobs whose writing can be resumed.
    pub fn open(root: &Path) -> Result<Self> {
        let staging = Staging::open(root)?;
        Ok(Self {
            content: Content::open(root, staging.clone())?,
            snapshots: Snapshots::open(root, staging.clone())?,
            leases: Leases::default(),
            staging,
        })
    }

    /// Moves all blobs and layers that are neither leased nor in `used` to the trash, except for those
    /// that unfinished pulls have left less than `age` ago: partial blobs and complete layers. Returns
    /// the paths there. The caller removes them, which can take long.
    ///
    /// `used` reads the records. It is called after the collection has begun. An object whose lease is
    /// dropped during the collection is kept, and checked by a second round. Objects released during
    /// that one are left to the next call, so that this ends however many leases are dropped.
    ///
    /// # Errors
    /// Returns the first error; the other objects are moved nevertheless, and are removed at the
    /// engine's next start.
    pub fn gc(&self, age: Duration, mut used: impl FnMut() -> Used) -> Result<Vec<PathBuf>> {
        // What was released until now, this one removes.
        self.leases.must_collect_again();
        let mut trashed = self.collect(age, &mut used)?;
        if self.leases.must_collect_again() {
            trashed.extend(self.collect(age, &mut used)?);
        }
        Ok(trashed)
    }

    /// Runs one round of [`Store::gc`].
    fn collect(&self, age: Duration, used: impl FnOnce() -> Used) -> Result<Vec<PathBuf>> {
        let collection = self.leases.collect();
        let used = used();
        let mut outcome = Ok(Vec::new());
        let mut take = |trashed: Result<Option<PathBuf>>| match (trashed, &mut outcome) {
            (Ok(trashed), Ok(all)) => all.extend(trashed),
            (Err(error), Ok(_)) => outcome = Err(error),
            (_, Err(_)) => {}
        };
        let layers = self.snapshots.directory();
        let blobs = Algorithm::ALL.map(|algorithm| {
            let directory = self.content.directory(algorithm);
            (directory, algorithm, &used.blobs)
        });
        let layers_kind = (layers.to_owned(), Algorithm::Sha256, &used.layers);
        for (directory, algorithm, used) in blobs.into_iter().chain([layers_kind]) {
            let is_kept =
                |digest: &Digest| directory == layers && self.snapshots.is_pending(digest, age);
            let entries = match fs::list(&directory) {
                Ok(entries) => entries,
                Err(error) => {
                    take(Err(error.into()));
                    continue;
                }
            };
            for entry in entries {
                let digest = entry.file_name().to_str().and_then(Digest::from_hex);
                let digest = digest.filter(|digest| digest.algorithm() == algorithm);
                let is_needed = |digest| used.contains(digest) || is_kept(digest);
                if digest.as_ref().is_some_and(is_needed) {
                    continue;
                }
                let trash = || self.staging.trash(&entry.path());
                if let Some(trashed) = collection.unless_held(digest.as_ref(), trash) {
                    take(trashed);
                    self.snapshots.mounts.forget(&entry.path());
                }
            }
        }
        self.content.expire_partials(age, &mut take)?;
        outcome
    }

    /// Returns the paths of the blobs and layers that [`Store::gc`] would move to the trash whatever its age,
    /// so without those that unfinished pulls have left. `used` reads the records, as there. What a load or pull
    /// that runs meanwhile has just begun to hold may be among them.
    ///
    /// # Errors
    /// Returns an error if the store cannot be read.
    pub fn unused(&self, used: impl FnOnce() -> Used) -> Result<Vec<PathBuf>> {
        let age = Duration::MAX;
        let mut candidates = Vec::new();
        let layers = self.snapshots.directory().to_owned();
        let blobs = Algorithm::ALL.map(|algorithm| (self.content.directory(algorithm), algorithm));
        let places = blobs
            .into_iter()
            .chain([(layers.clone(), Algorithm::Sha256)]);
        for (directory, algorithm) in places {
            let is_layer = directory == layers;
            for entry in fs::list(&directory)? {
                let digest = entry.file_name().to_str().and_then(Digest::from_hex);
                let digest = digest.filter(|digest| digest.algorithm() == algorithm);
                if !digest
                    .as_ref()
                    .is_some_and(|digest| self.leases.holds(digest))
                {
                    candidates.push((digest, is_layer, entry.path()));
                }
            }
        }
        // Read after the leases: what was released before is in the records.
        let used = used();
        candidates.retain(|(digest, is_layer, _)| {
            let is_needed = |digest: &Digest| match is_layer {
                true => used.layers.contains(digest) || self.snapshots.is_pending(digest, age),
                false => used.blobs.contains(digest),
            };
            !digest.as_ref().is_some_and(is_needed)
        });
        let mut unused: Vec<PathBuf> = candidates.into_iter().map(|(.., path)| path).collect();
        unused.extend(self.content.expired_partials(age)?);
        Ok(unused)
    }

    /// Moves a damaged layer to `lost+found`, so that it is missing: the next pull or load of an image with it
    /// adds it again. One that a lease holds, or of which `user` names a user, stays; users that `user` does not
    /// see yet hold the layer until it does. So does one that is not `damaged` itself, but has replaced it.
    ///
    /// # Errors
    /// Returns an error if the layer cannot be moved.
    pub fn set_layer_aside(
        &self,
        diff_id: &Digest,
        damaged: &Identity,
        user: impl FnOnce() -> Option<String>,
    ) -> Result<SetAside> {
        // What is released from here on counts as held until the end.
        let collection = self.leases.collect();
        if let Some(user) = user() {
            return Ok(SetAside::Used(user));
        }
        let moved = collection.unless_held(Some(diff_id), || {
            if self.snapshots.identity(diff_id)? != *damaged {
                return Ok(SetAside::Sound);
            }
            self.snapshots.set_aside(diff_id).map(SetAside::Moved)
        });
        moved.unwrap_or(Ok(SetAside::Held))
    }

    /// Moves a damaged blob to `lost+found`, unless a lease holds it.
    ///
    /// # Errors
    /// Returns an error if the blob cannot be moved.
    pub fn set_blob_aside(&self, digest: &Digest) -> Result<SetAside> {
        let path = self.content.path(digest);
        let moved = self.leases.collect().unless_held(Some(digest), || {
            if self.content.read(digest).is_ok() {
                return Ok(SetAside::Sound);
            }
            self.staging.set_aside(&path).map(SetAside::Moved)
        });
        moved.unwrap_or(Ok(SetAside::Held))
    }

    /// Flushes the store's file system (syncfs(2)), so that a record may refer to new objects.
    pub fn sync(&self) -> Result<()> {
        self.snapshots.writeback.finish()
    }
}
