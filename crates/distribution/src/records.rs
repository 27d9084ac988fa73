//! What the repositories have, on disk.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;
use whelk_image::{Digest, Store};
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::error::{Error, Kind, Result};
use crate::names::{self, RepositoryName, is_component};
use crate::uploads::Uploads;

/// A registry: its content, and what its repositories have of it.
#[derive(Debug)]
pub struct Registry {
    pub(crate) store: Store,
    pub(crate) uploads: Uploads,
    /// Notified when garbage is to be collected at once.
    pub(crate) collection: Notify,
    /// What it has can be fetched again.
    pub(crate) is_cache: bool,
    root: PathBuf,
    /// Held, each for some of the repositories, while their links change or must not change.
    locks: [Mutex<()>; 64],
    /// Locked with flock(2), so that no second server uses the directory.
    _lock: std::fs::File,
}

/// The kinds of links of a repository.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Links {
    Blobs,
    Manifests,
    Tags,
    Referrers,
    Uploads,
}

impl Links {
    fn directory(self) -> &'static str {
        match self {
            Self::Blobs => "_blobs",
            Self::Manifests => "_manifests",
            Self::Tags => "_tags",
            Self::Referrers => "_referrers",
            Self::Uploads => "_uploads",
        }
    }
}

/// The file with the URL of the registry that the directory is a cache of.
const CACHE_MARK: &str = "cache";

/// Maximum size of a link in bytes: of a descriptor with the annotations of its manifest.
const MAX_LINK: u64 = 8 << 20;

impl Registry {
    /// Opens the registry at `root`, creating its directories: a cache of the registry at the URL
    /// `upstream`, or one that images are pushed to.
    ///
    /// # Errors
    /// Returns an error if the directory cannot be used, is an engine's, is in use, or holds a registry
    /// of the other kind or a cache of another URL. A cache removes what is not asked for, which must not
    /// happen to what was pushed.
    pub fn open(root: &Path, upstream: Option<&str>) -> std::result::Result<Arc<Self>, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        fs::create_dir_all(root, 0o700).map_err(|error| text(&error))?;
        if fs::exists(root.join("store.db")) {
            return Err(format!("{} is an engine's data root", root.display()));
        }
        let lock = fs::append(root.join("lock"), 0o600).map_err(|error| text(&error))?;
        if !is_locked(&lock) {
            return Err(format!("{} is in use by another registry", root.display()));
        }
        let is_marked = check_kind(root, upstream)?;
        fs::create_dir_all(root.join("repositories"), 0o700).map_err(|error| text(&error))?;
        let registry = Arc::new(Self {
            store: Store::open(root).map_err(|error| text(&error))?,
            uploads: Uploads::default(),
            collection: Notify::new(),
            is_cache: upstream.is_some(),
            root: root.to_owned(),
            locks: std::array::from_fn(|_| Mutex::default()),
            _lock: lock,
        });
        if let Some(url) = upstream.filter(|_| !is_marked) {
            let marked = registry.write(&root.join(CACHE_MARK), url.as_bytes());
            marked.map_err(|error| text(&error))?;
        }
        Ok(registry)
    }

    /// Keeps the links of a repository from being changed by others.
    pub(crate) fn lock(&self, repository: &RepositoryName) -> MutexGuard<'_, ()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(repository.as_str());
        let index = usize::try_from(hash % 64).unwrap_or_default();
        self.locks[index].lock().ignore_poison()
    }

    fn repositories(&self) -> PathBuf {
        self.root.join("repositories")
    }

    pub(crate) fn directory(&self, repository: &RepositoryName, links: Links) -> PathBuf {
        let repository = self.repositories().join(repository.as_str());
        repository.join(links.directory())
    }

    /// The directory for files that do not outlive the process.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// The directory for damaged blobs, which an administrator may look at.
    pub(crate) fn damaged(&self) -> PathBuf {
        self.root.join("damaged")
    }

    /// Returns whether a repository had a blob or manifest when its link was made.
    pub(crate) fn has_link(
        &self,
        repository: &RepositoryName,
        links: Links,
        digest: &Digest,
    ) -> bool {
        fs::exists(self.directory(repository, links).join(digest.hex()))
    }

    /// Returns whether a manifest was ever pushed to the repository.
    pub(crate) fn is_known(&self, repository: &RepositoryName) -> bool {
        fs::exists(self.directory(repository, Links::Manifests))
    }

    /// Returns the size of a blob or manifest that a repository has.
    pub(crate) fn size(
        &self,
        repository: &RepositoryName,
        links: Links,
        digest: &Digest,
    ) -> Option<u64> {
        if !self.has_link(repository, links, digest) {
            return None;
        }
        Some(fs::metadata(self.store.content.path(digest)).ok()?.len())
    }

    /// Links a blob, whose content a lease holds.
    pub(crate) fn link_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<()> {
        let _lock = self.lock(repository);
        // Written again if it exists: its age says how long the blob has waited for a manifest.
        self.write(
            &self.directory(repository, Links::Blobs).join(digest.hex()),
            b"",
        )
    }

    /// Updates the access time of what a link is for.
    pub(crate) fn touch(
        &self,
        repository: &RepositoryName,
        links: Links,
        digest: &Digest,
    ) -> Result<()> {
        let link = self.directory(repository, links).join(digest.hex());
        fs::open(&link)?
            .set_modified(SystemTime::now())
            .map_err(fs::at("touch", &link))?;
        Ok(())
    }

    /// Writes a link so that it is complete, or not there, after a power failure.
    pub(crate) fn write(&self, path: &Path, content: &[u8]) -> Result<()> {
        let directory = path.parent().unwrap_or(path);
        create_directories(directory)?;
        let staged = self.temporary().join(names::random());
        let mut file = fs::create(&staged, 0o600)?;
        file.write_all(content)
            .and_then(|()| file.sync_data())
            .map_err(fs::at("write", &staged))?;
        fs::rename(&staged, path)?;
        sync_directory(directory)
    }

    /// Flushes the name of a blob that has arrived.
    pub(crate) fn sync_blob(&self, digest: &Digest) -> Result<()> {
        sync_directory(&self.store.content.directory(digest.algorithm()))
    }

    /// Returns the names in a directory of links, in order. There are none if it does not exist.
    pub(crate) fn list(directory: &Path) -> Result<Vec<String>> {
        let entries = match fs::list(directory) {
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.iter().map(|entry| entry.file_name());
        Ok(names.filter_map(|name| name.into_string().ok()).collect())
    }

    /// Returns the digests that links are named after.
    pub(crate) fn digests(&self, repository: &RepositoryName, links: Links) -> Result<Vec<Digest>> {
        let names = Self::list(&self.directory(repository, links))?;
        Ok(names
            .iter()
            .filter_map(|name| Digest::from_hex(name))
            .collect())
    }

    /// Returns all repositories, in order. Files that are among them are left out.
    pub(crate) fn all(&self) -> Result<Vec<RepositoryName>> {
        self.walk(|error| match error.kind {
            Kind::NotFound => Ok(()),
            _ => Err(error),
        })
    }

    /// Like [`Registry::all`]. `failed` is called with errors, of the kind [`Kind::NotFound`] for what is no
    /// directory, and can return them to end the walk.
    pub(crate) fn walk(
        &self,
        mut failed: impl FnMut(Error) -> Result<()>,
    ) -> Result<Vec<RepositoryName>> {
        let mut found = Vec::new();
        let mut open = vec![String::new()];
        while let Some(name) = open.pop() {
            let directory = self.repositories().join(&name);
            let components = match Self::list(&directory) {
                Ok(components) => components,
                Err(error) => {
                    let is_file = fs::metadata(&directory).is_ok_and(|found| found.is_file());
                    let text = format!("{} is not a repository", directory.display());
                    failed(if is_file {
                        Kind::NotFound.error(text)
                    } else {
                        error
                    })?;
                    found.retain(|known: &RepositoryName| known.as_str() != name);
                    continue;
                }
            };
            for component in components
                .iter()
                .filter(|component| is_component(component))
            {
                let inner = match name.as_str() {
                    "" => component.clone(),
                    outer => format!("{outer}/{component}"),
                };
                match RepositoryName::parse(&inner) {
                    Ok(name) => {
                        found.push(name);
                        open.push(inner);
                    }
                    Err(error) => failed(error)?,
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

/// Reads a link; `None` if it does not exist.
pub(crate) fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_at_most(path, MAX_LINK) {
        Err(error) if error.is_not_found() => Ok(None),
        content => String::from_utf8(content?)
            .map(Some)
            .map_err(|_| Kind::Internal.error(format!("{} is damaged", path.display()))),
    }
}

/// Removes a link. Returns whether it existed.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Err(error) if error.is_not_found() => return Ok(false),
        removed => removed?,
    }
    sync_directory(path.parent().unwrap_or(path))?;
    Ok(true)
}

/// Creates a directory and its missing parents, durably.
pub(crate) fn create_directories(path: &Path) -> Result<()> {
    let Some(parent) = path.parent().filter(|_| !fs::exists(path)) else {
        return Ok(());
    };
    create_directories(parent)?;
    match fs::create_dir(path, 0o700) {
        Err(_) if fs::exists(path) => {}
        created => created?,
    }
    sync_directory(parent)
}

fn sync_directory(path: &Path) -> Result<()> {
    Ok(fs::open(path)?.sync_all().map_err(fs::at("sync", path))?)
}

/// Returns the URL of the registry that a directory is a cache of.
pub(crate) fn cache_of(root: &Path) -> Result<Option<String>> {
    read(&root.join(CACHE_MARK))
}

/// Checks that a directory is empty, or holds a cache of the registry at `upstream`, or without that a
/// registry that images are pushed to. Returns whether it is marked as a cache.
fn check_kind(root: &Path, upstream: Option<&str>) -> std::result::Result<bool, String> {
    let shown = root.display();
    let marked = cache_of(root).map_err(|error| error.to_string())?;
    match (marked, upstream) {
        (Some(marked), Some(url)) if marked == url => Ok(true),
        (Some(marked), Some(url)) => Err(format!("{shown} is a cache of {marked}, not of {url}")),
        (Some(marked), None) => Err(format!(
            "{shown} is a cache of {marked}, and no registry to push to"
        )),
        (None, None) => Ok(false),
        (None, Some(url)) => {
            let names = Registry::list(&root.join("repositories"));
            match names.map_err(|error| error.to_string())?.is_empty() {
                true => Ok(false),
                false => Err(format!(
                    "{shown} has pushed images, which a cache of {url} would remove; use an empty directory"
                )),
            }
        }
    }
}

/// Locks a file. A process that was just killed may need a moment to release it.
fn is_locked(file: &std::fs::File) -> bool {
    const PATIENCE: Duration = Duration::from_secs(2);
    let begun = Instant::now();
    loop {
        let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        let locked = rustix::fs::flock(file, operation).is_ok();
        if locked || begun.elapsed() > PATIENCE {
            return locked;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
