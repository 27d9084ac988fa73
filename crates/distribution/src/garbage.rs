//! Removes abandoned uploads, blobs that no manifest refers to, and content without a repository; from
//! a cache also what no client has asked for in a while, and what exceeds its maximum size.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, SystemTime};

use whelk_image::{Digest, Used};
use whelk_sys::fs;

use crate::error::{Kind, Result};
use crate::manifests::Document;
use crate::names::{ManifestKey, RepositoryName};
use crate::records::{Links, Registry, remove};

/// The limits of a cache.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// The time after its last request at which an object is removed.
    pub time: Duration,
    /// Maximum total size in bytes; the least recently requested objects are removed first.
    pub size: Option<u64>,
}

/// When garbage is collected.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// The time between two collections.
    pub every: Duration,
    /// Age at which an unfinished upload, or a blob without a manifest, is removed.
    pub age: Duration,
}

impl Default for Schedule {
    fn default() -> Self {
        const HOUR: u64 = 60 * 60;
        Self {
            every: Duration::from_secs(HOUR),
            age: Duration::from_secs(24 * HOUR),
        }
    }
}

/// A link of a repository, and when it was last asked for.
type Link = (RepositoryName, Links, Digest, SystemTime);

/// Content of a cache.
struct Object {
    digest: Digest,
    /// When it was last asked for, or when the last of it arrived.
    time: SystemTime,
    /// In bytes.
    size: u64,
    /// The beginning of a blob.
    is_partial: bool,
}

impl Registry {
    /// Removes what is older than `age` and not needed by any image. What cannot be read is kept, with all that it
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
        let sizes = trashed.iter().filter_map(|path| fs::metadata(path).ok());
        let freed: u64 = sizes.map(|metadata| metadata.len()).sum();
        if !trashed.is_empty() {
            let count = trashed.len();
            tracing::info!("collected garbage: {count} files, {freed} bytes");
        }
        // In the background, with pauses.
        self.store.staging.dispose(trashed);
        outcome
    }

    /// Collects garbage soon, and not only when it is time to.
    pub fn collect_soon(&self) {
        self.collection.notify_one();
    }

    /// Removes expired and excess links of a cache, and then what no link names.
    pub(crate) fn collect_cache(&self, keep: Keep, age: Duration) -> Result<()> {
        let expired = self.expire(keep);
        self.collect_garbage(age).and(expired)
    }

    /// Removes links by age and size, and what has arrived of blobs that nobody asks for. What fails does
    /// not keep the rest from being removed.
    fn expire(&self, keep: Keep) -> Result<()> {
        let mut outcome = Ok(());
        let (mut links, mut objects) = self.objects(&mut outcome)?;
        objects.sort_by_key(|object| object.time);
        let mut total: u64 = objects.iter().map(|object| object.size).sum();
        let is_old = |time: SystemTime| time.elapsed().is_ok_and(|age| age >= keep.time);
        let mut gone = BTreeSet::new();
        for Object {
            digest,
            time,
            size,
            is_partial,
        } in objects
        {
            if !is_old(time) && keep.size.is_none_or(|most| total <= most) {
                break;
            }
            if !is_partial {
                total -= size;
                gone.insert(digest);
                continue;
            }
            match self.store.content.trash_partial(&digest) {
                Ok(Some(trashed)) => {
                    total -= size;
                    self.store.staging.dispose([trashed]);
                }
                // It is being written.
                Ok(None) => {}
                Err(error) => outcome = outcome.and(Err(error.into())),
            }
        }
        links.retain(|(_, _, digest, time)| gone.contains(digest) || is_old(*time));
        for (repository, kind, digest, time) in links {
            let link = self.directory(&repository, kind).join(digest.hex());
            // It may have been asked for meanwhile.
            if changed(&link) != Some(time) {
                continue;
            }
            let removed = match kind {
                Links::Manifests => self.delete_manifest(&repository, &ManifestKey::Digest(digest)),
                _ => self.delete_blob(&repository, &digest),
            };
            match removed {
                Err(error) if !matches!(error.kind, Kind::BlobUnknown | Kind::ManifestUnknown) => {
                    outcome = outcome.and(Err(error));
                }
                _ => {}
            }
        }
        outcome
    }

    /// Returns the links of all repositories, with the time of the last request, and the content that
    /// they and unfinished downloads hold. `outcome` gets the first error of a repository.
    fn objects(&self, outcome: &mut Result<()>) -> Result<(Vec<Link>, Vec<Object>)> {
        let mut links = Vec::new();
        let mut content: BTreeMap<Digest, Object> = BTreeMap::new();
        for repository in self.all()? {
            for kind in [Links::Blobs, Links::Manifests] {
                let digests = self.digests(&repository, kind).unwrap_or_else(|error| {
                    let first = std::mem::replace(outcome, Ok(()));
                    *outcome = first.and(Err(error));
                    Vec::new()
                });
                for digest in digests {
                    let link = self.directory(&repository, kind).join(digest.hex());
                    let Some(time) = changed(&link) else { continue };
                    let object = content.entry(digest.clone()).or_insert_with(|| Object {
                        digest: digest.clone(),
                        time,
                        size: self.size(&repository, kind, &digest).unwrap_or(0),
                        is_partial: false,
                    });
                    object.time = object.time.max(time);
                    links.push((repository.clone(), kind, digest, time));
                }
            }
        }
        let partials = self.store.content.partials()?.into_iter();
        let partials = partials.map(|partial| Object {
            digest: partial.digest,
            time: partial.changed,
            size: partial.size,
            is_partial: true,
        });
        Ok((links, content.into_values().chain(partials).collect()))
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

    /// Removes abandoned uploads of a repository, and its links to blobs that no manifest names.
    fn sweep(&self, repository: &RepositoryName, age: Duration) -> Result<()> {
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
            let manifest = self.get_manifest(repository, &ManifestKey::Digest(digest))?;
            let document = Document::parse(&manifest.media_type, &manifest.content)?;
            // Also those that an index lists.
            let named: BTreeSet<_> = document.references().collect();
            old.retain(|digest| !named.contains(digest));
        }
        for digest in old {
            remove(&blobs.join(digest.hex()))?;
        }
        Ok(())
    }
}

/// Returns when a file was last changed.
fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

fn is_older(path: &Path, age: Duration) -> bool {
    changed(path).is_some_and(|changed| changed.elapsed().is_ok_and(|old| old >= age))
}
