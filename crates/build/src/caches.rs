//! Caches of steps (`RUN --mount=type=cache`): directories that outlive builds, shared by the steps that name them.
//!
//! ```text
//! <root>/build/mounts/<digits>/{fs,id}    the files; what names it
//!                    /<digits>-N/…        further ones of a private cache that is in use
//! ```

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use whelk_image::Store;
use whelk_llb::Digest;
use whelk_llb::pb::CacheSharing;
use whelk_sys::copy;
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::error::{Error, Result};

/// The caches of an engine.
#[derive(Debug)]
pub(crate) struct Caches {
    directory: PathBuf,
    /// Those that were used since the engine has started, by their directory's name.
    locks: Mutex<HashMap<String, Arc<RwLock<()>>>>,
    sizes: Arc<Sizes>,
}

/// The sizes of caches that were measured after their last use, by name.
#[derive(Debug, Default)]
struct Sizes(Mutex<HashMap<String, u64>>);

/// The right to use a cache.
#[derive(Debug)]
pub(crate) struct Used {
    pub path: PathBuf,
    sizes: Arc<Sizes>,
    _lock: Lock,
}

impl Drop for Used {
    fn drop(&mut self) {
        let name = self.path.file_name().unwrap_or_default();
        let mut sizes = self.sizes.0.lock().ignore_poison();
        sizes.remove(&*name.to_string_lossy());
    }
}

#[derive(Debug)]
enum Lock {
    Shared(#[allow(dead_code, reason = "held until it is dropped")] OwnedRwLockReadGuard<()>),
    Own(#[allow(dead_code, reason = "held until it is dropped")] OwnedRwLockWriteGuard<()>),
}

/// A cache or a client's directory on disk.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The name of its directory.
    pub name: String,
    /// What a Dockerfile, or a client, calls it.
    pub id: String,
    /// In bytes.
    pub size: u64,
    pub is_used: bool,
    /// Nanoseconds since the epoch.
    pub created: i64,
    pub used: i64,
}

impl Caches {
    pub fn new(root: &Path) -> Self {
        Self {
            directory: root.join("build/mounts"),
            locks: Mutex::default(),
            sizes: Arc::default(),
        }
    }

    fn lock(&self, name: &str) -> Arc<RwLock<()>> {
        let mut locks = self.locks.lock().ignore_poison();
        locks.entry(name.to_owned()).or_default().clone()
    }

    /// Returns whether a step has a cache, or waits for it. Takes no lock: a step would find the cache in use.
    fn is_used(&self, name: &str) -> bool {
        let locks = self.locks.lock().ignore_poison();
        locks
            .get(name)
            .is_some_and(|lock| Arc::strong_count(lock) > 1)
    }

    /// Takes the cache of a key. Waits for one that is locked by another step.
    pub async fn take(&self, key: &Digest, sharing: CacheSharing) -> Used {
        let digits = key.to_string();
        let name = digits.trim_start_matches("sha256:").to_owned();
        let lock = self.lock(&name);
        let used = |name: &str, lock: Lock| Used {
            path: self.directory.join(name),
            sizes: self.sizes.clone(),
            _lock: lock,
        };
        match sharing {
            CacheSharing::Shared => used(&name, Lock::Shared(lock.read_owned().await)),
            CacheSharing::Locked => used(&name, Lock::Own(lock.write_owned().await)),
            CacheSharing::Private => {
                let mut number = 0;
                loop {
                    let name = match number {
                        0 => name.clone(),
                        number => format!("{name}-{number}"),
                    };
                    if let Ok(guard) = self.lock(&name).try_write_owned() {
                        return used(&name, Lock::Own(guard));
                    }
                    number += 1;
                }
            }
        }
    }

    /// Creates a cache that does not exist yet; `fill` fills it. Returns the directory of its files. Blocking.
    pub fn open(
        store: &Store,
        used: &Used,
        id: &str,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let files = used.path.join("fs");
        if fs::exists(&files) {
            // The time of the last use.
            let now = SystemTime::now();
            let _ = fs::open(used.path.join("id")).and_then(|file| {
                file.set_modified(now)
                    .map_err(fs::at("set the time of", used.path.join("id")))
            });
            return Ok(files);
        }
        let scratch = store.staging.scratch()?;
        let new = scratch.path().join("cache");
        fs::create_dir(&new, 0o700)?;
        fs::create_dir(new.join("fs"), 0o755)?;
        fill(&new.join("fs"))?;
        fs::write(new.join("id"), id)?;
        if let Some(parent) = used.path.parent() {
            fs::create_dir_all(parent, 0o700)?;
        }
        match fs::rename(&new, &used.path) {
            // Another step that shares it was faster.
            Err(_) if fs::exists(&files) => Ok(files),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(files),
        }
    }

    /// Returns the caches on disk. Blocking.
    pub fn list(&self) -> Result<Vec<Kept>> {
        if !fs::exists(&self.directory) {
            return Ok(Vec::new());
        }
        let mut all = Vec::new();
        for entry in fs::list(&self.directory)? {
            let name = entry.file_name().to_string_lossy().into_owned();
            let (path, id) = (entry.path(), entry.path().join("id"));
            let time = |time: std::io::Result<SystemTime>| {
                let since = time.ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
                i64::try_from(since.as_nanos()).ok()
            };
            let found = fs::metadata(&id).ok();
            all.push(Kept {
                id: fs::read_to_string(&id).unwrap_or_default(),
                size: self.size(&name, &path),
                is_used: self.is_used(&name),
                created: found
                    .as_ref()
                    .and_then(|found| time(found.created()))
                    .unwrap_or(0),
                used: found
                    .as_ref()
                    .and_then(|found| time(found.modified()))
                    .unwrap_or(0),
                name,
            });
        }
        Ok(all)
    }

    /// Returns the name of the directory of a cache that a user means by its id, or by the first digits of its name;
    /// `None` if there is none. Blocking.
    ///
    /// # Errors
    /// Returns an error if there are several.
    pub fn find(&self, wanted: &str) -> Result<Option<String>> {
        /// Fewer digits are an id.
        const MIN_DIGITS: usize = 6;
        let is_meant = |kept: &Kept| {
            kept.id == wanted
                || kept.id == id_of(wanted)
                || wanted.len() >= MIN_DIGITS && kept.name.starts_with(wanted)
        };
        let mut found = self.list()?.into_iter().filter(is_meant);
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(Error::invalid(format!(
                "there are several caches {wanted}: name one by its ID"
            ))),
            (found, _) => Ok(found.map(|kept| kept.name)),
        }
    }

    /// Takes a cache for its user's own purpose, while no step changes it. Does not wait.
    fn take_now(&self, name: &str, is_changed: bool) -> Result<Used> {
        let lock = self.lock(name);
        let lock = match is_changed {
            true => lock.try_write_owned().ok().map(Lock::Own),
            false => lock.try_read_owned().ok().map(Lock::Shared),
        };
        let lock = lock.ok_or_else(|| {
            let text = format!("the cache {name} is in use by a build");
            Error::from(whelk_engine::Error::conflict(text))
        })?;
        Ok(Used {
            path: self.directory.join(name),
            sizes: self.sizes.clone(),
            _lock: lock,
        })
    }

    /// Takes a cache to read it. Blocking.
    ///
    /// # Errors
    /// Returns an error if there is none, and if a step uses it alone.
    pub fn hold(&self, wanted: &str) -> Result<Used> {
        let name = self.find(wanted)?.ok_or_else(|| {
            let text = format!("no such cache of builds: {wanted}");
            Error::from(whelk_engine::Error::NotFound(text))
        })?;
        self.take_now(&name, false)
    }

    /// Unpacks an archive into a cache, which is created if there is none with this id. Returns the name of its
    /// directory. Blocking.
    ///
    /// # Errors
    /// Returns an error if a step uses it, or if the archive is invalid.
    pub fn import(&self, store: &Store, wanted: &str, input: impl Read + Send) -> Result<String> {
        if wanted.is_empty() {
            return Err(Error::invalid("a cache needs an id"));
        }
        let known = self.find(wanted)?;
        let is_new = known.is_none();
        let name = known.unwrap_or_else(|| {
            let digits = key(&id_of(wanted), "", &[]).to_string();
            digits.trim_start_matches("sha256:").to_owned()
        });
        let used = self.take_now(&name, true)?;
        let mut input = Some(input);
        let mut unpack = |path: &Path| match input.take() {
            Some(input) => Ok(whelk_image::snapshots::unpack(input, path)?),
            None => Ok(()),
        };
        let files = Self::open(store, &used, &id_of(wanted), &mut unpack)?;
        if !is_new {
            unpack(&files)?;
        }
        Ok(name)
    }

    /// Returns the size of a cache, which is measured once after each use.
    fn size(&self, name: &str, path: &Path) -> u64 {
        let known = self.sizes.0.lock().ignore_poison().get(name).copied();
        known.unwrap_or_else(|| {
            let directory = fs::open(path).ok();
            let size = directory.and_then(|directory| copy::disk_usage(directory).ok());
            let size = size.unwrap_or(0);
            if !self.is_used(name) {
                let mut sizes = self.sizes.0.lock().ignore_poison();
                sizes.insert(name.to_owned(), size);
            }
            size
        })
    }

    /// Removes a cache that no step uses. Returns whether it was removed. Blocking.
    pub fn remove(&self, store: &Store, name: &str) -> Result<bool> {
        let Ok(_guard) = self.lock(name).try_write_owned() else {
            return Ok(false);
        };
        let trashed = store.staging.trash(&self.directory.join(name))?;
        self.sizes.0.lock().ignore_poison().remove(name);
        let is_removed = trashed.is_some();
        store.staging.dispose(trashed);
        Ok(is_removed)
    }
}

/// Returns the id of a cache that a Dockerfile names. It begins with the namespace of the build, which is empty.
fn id_of(name: &str) -> String {
    format!("/{name}")
}

/// Returns the key of a cache: its id, and what it is filled with at first.
pub(crate) fn key(id: &str, selector: &str, base: &[whelk_image::Digest]) -> Digest {
    let base: Vec<String> = base.iter().map(ToString::to_string).collect();
    let base = base.iter().map(String::as_bytes);
    Digest::of_parts([id.as_bytes(), selector.as_bytes()].into_iter().chain(base))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;

    #[tokio::test]
    async fn sharing_decides_who_waits() {
        let root = Scratch::temporary("build-caches").unwrap();
        let store = Store::open(root.path()).unwrap();
        let caches = Arc::new(Caches::new(root.path()));
        let key = key("/go", "", &[]);
        let one = caches.take(&key, CacheSharing::Shared).await;
        let two = caches.take(&key, CacheSharing::Shared).await;
        assert_eq!(one.path, two.path);
        let files = Caches::open(&store, &one, "/go", |path| {
            Ok(fs::write(path.join("first"), "1")?)
        });
        let again = Caches::open(&store, &two, "/go", |_| Err(Error::invalid("again")));
        assert_eq!(files.unwrap(), again.unwrap());
        // A private one does not wait, and gets another directory.
        let other = caches.take(&key, CacheSharing::Private).await;
        assert_ne!(other.path, one.path);
        assert!(
            !caches
                .remove(&store, &caches.list().unwrap()[0].name)
                .unwrap()
        );
        let locked = tokio::spawn({
            let caches = caches.clone();
            async move { caches.take(&key, CacheSharing::Locked).await }
        });
        tokio::task::yield_now().await;
        assert!(!locked.is_finished());
        drop((one, two));
        let locked = locked.await.unwrap();
        let size = || caches.list().unwrap()[0].size;
        let before = size();
        let more = locked.path.join("fs/more");
        fs::write(&more, "12345678").unwrap();
        assert_eq!(size(), before + 8);
        drop(locked);
        // Measured once after a use.
        assert_eq!(size(), before + 8);
        fs::remove_file(&more).unwrap();
        assert_eq!(size(), before + 8);
        drop(caches.take(&key, CacheSharing::Locked).await);
        assert_eq!(size(), before);
        let kept = caches.list().unwrap();
        // To look at a cache is no use of it.
        let lock = caches.lock(&kept[0].name);
        let _writing = lock.try_write().unwrap();
        assert_eq!(caches.list().unwrap().len(), 1);
        drop(_writing);
        drop(lock);
        assert_eq!(
            (kept.len(), kept[0].id.as_str(), kept[0].is_used),
            (1, "/go", false)
        );
        // Found by its id and by its name, and not while it is in use.
        for wanted in ["/go", "go", &kept[0].name[..12]] {
            assert_eq!(caches.find(wanted).unwrap().as_ref(), Some(&kept[0].name));
        }
        assert_eq!(caches.find("other").unwrap(), None);
        let used = caches.take(&key, CacheSharing::Locked).await;
        assert!(caches.hold("/go").is_err());
        assert!(caches.import(&store, "/go", &b""[..]).is_err());
        drop(used);
        assert!(caches.hold("/go").is_ok() && caches.hold("other").is_err());
        assert!(caches.remove(&store, &kept[0].name).unwrap());
        assert!(caches.list().unwrap().is_empty());
    }
}
