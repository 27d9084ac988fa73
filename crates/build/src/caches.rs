//! Caches of steps (`RUN --mount=type=cache`): directories that outlive builds, shared by the steps that name them.
//!
//! ```text
//! <root>/build/mounts/<digits>/{fs,id}    the files; what names it
//!                    /<digits>-N/…        further ones of a private cache that is in use
//!                    /<digits>/imported   a user has imported it, and no step has used it yet
//! ```
//! The digits are those of a key: the id, and what the cache is filled with at first (`from`, `uid`, `mode`). That is not known of
//! a cache that is imported before a step has used it: the first step that creates a cache with its id takes the files.

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{Gid, Uid};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use whelk_image::Store;
use whelk_llb::Digest;
use whelk_llb::pb::CacheSharing;
use whelk_sys::copy;
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::error::{Error, Result, os};
use crate::usage::StoredDirectory;

/// The caches of an engine.
#[derive(Debug)]
pub(crate) struct Caches {
    directory: PathBuf,
    state: Arc<CacheState>,
}

/// The locks and the sizes of caches, by the names of their directories.
#[derive(Debug, Default)]
struct CacheState {
    /// Those that are in use. Dockerfiles may name any number of others.
    locks: Mutex<HashMap<String, Arc<RwLock<()>>>>,
    /// The sizes that were measured after the last use.
    sizes: Mutex<HashMap<String, u64>>,
}

impl CacheState {
    fn lock(&self, name: &str) -> Arc<RwLock<()>> {
        let mut locks = self.locks.lock().ignore_poison();
        locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        locks.entry(name.to_owned()).or_default().clone()
    }
}

/// The use of a cache by a step, an export or an import, as long as this exists.
#[derive(Debug)]
pub(crate) struct Used {
    pub path: PathBuf,
    state: Arc<CacheState>,
    _lock: Lock,
}

impl Drop for Used {
    fn drop(&mut self) {
        let name = self.path.file_name().unwrap_or_default();
        let mut sizes = self.state.sizes.lock().ignore_poison();
        sizes.remove(&*name.to_string_lossy());
    }
}

#[derive(Debug)]
enum Lock {
    Shared(#[allow(dead_code, reason = "held until it is dropped")] OwnedRwLockReadGuard<()>),
    Own(#[allow(dead_code, reason = "held until it is dropped")] OwnedRwLockWriteGuard<()>),
}

impl Caches {
    pub fn new(root: &Path) -> Self {
        Self {
            directory: root.join("build/mounts"),
            state: Arc::default(),
        }
    }

    /// Returns whether a step has a cache, or waits for it. Takes no lock: a step would find the cache in use.
    fn is_used(&self, name: &str) -> bool {
        let locks = self.state.locks.lock().ignore_poison();
        locks
            .get(name)
            .is_some_and(|lock| Arc::strong_count(lock) > 1)
    }

    /// Takes the cache of a key. Waits for one that is locked by another step.
    pub async fn take(&self, key: &Digest, sharing: CacheSharing) -> Used {
        let name = name_of(key);
        let lock = self.state.lock(&name);
        let used = |name: &str, lock: Lock| self.used(name, lock);
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
                    if let Ok(guard) = self.state.lock(&name).try_write_owned() {
                        return used(&name, Lock::Own(guard));
                    }
                    number += 1;
                }
            }
        }
    }

    fn used(&self, name: &str, lock: Lock) -> Used {
        Used {
            path: self.directory.join(name),
            state: self.state.clone(),
            _lock: lock,
        }
    }

    /// Creates a cache that does not exist yet; `fill` fills it, and files that were imported with its id take the place of those.
    /// Returns the directory of its files. Blocking.
    pub fn open(
        store: &Store,
        used: &Used,
        id: &str,
        fill: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let files = used.path.join("fs");
        if fs::exists(&files) {
            // A step uses it now, so that no other one adopts it.
            if let Err(error) = fs::remove_if_exists(used.path.join(IMPORTED)) {
                tracing::warn!("note the use of a cache: {error}");
            }
            let _ = fs::touch(used.path.join("id"));
            return Ok(files);
        }
        let scratch = store.staging.scratch()?;
        let new = scratch.path().join("cache");
        fs::create_dir(&new, 0o700)?;
        fs::create_dir(new.join("fs"), 0o755)?;
        fill(&new.join("fs"))?;
        if used.adopt_imported(id, &new.join("fs"))? {
            return Ok(files);
        }
        fs::write(new.join("id"), id)?;
        if let Some(parent) = used.path.parent() {
            fs::create_dir_all(parent, 0o700)?;
        }
        match fs::rename(&new, &used.path) {
            // Another step that shares it has created it meanwhile.
            Err(_) if fs::exists(&files) => Ok(files),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(files),
        }
    }

    /// Returns the caches on disk. Blocking.
    pub fn list(&self) -> Result<Vec<StoredDirectory>> {
        if !fs::exists(&self.directory) {
            return Ok(Vec::new());
        }
        let mut all = Vec::new();
        for entry in fs::list(&self.directory)? {
            let name = entry.file_name().to_string_lossy().into_owned();
            let (path, id) = (entry.path(), entry.path().join("id"));
            let text = fs::read_to_string(&id).unwrap_or_default();
            let (size, is_used) = (self.size(&name, &path), self.is_used(&name));
            let times = fs::metadata(&id).ok();
            let stored = StoredDirectory::new(name, text, size, is_used, times.as_ref());
            all.push(stored);
        }
        Ok(all)
    }

    /// Returns the name of the directory of a cache that a user means by the id of its record, by its own id, with or
    /// without the namespace, or by the first digits of its name; `None` if there is none. Blocking.
    ///
    /// # Errors
    /// Returns an error if there are several.
    pub fn find(&self, wanted: &str) -> Result<Option<String>> {
        /// Fewer digits are an id.
        const MIN_DIGITS: usize = 6;
        /// Of a directory's name and a cache's id.
        type Rule<'a> = &'a dyn Fn(&str, &str) -> bool;
        let mut all = Vec::new();
        if fs::exists(&self.directory) {
            for entry in fs::list(&self.directory)? {
                let name = entry.file_name().to_string_lossy().into_owned();
                let id = fs::read_to_string(entry.path().join("id")).unwrap_or_default();
                all.push((name, id));
            }
        }
        let own = id_of(wanted);
        let has_namespace = wanted.get(1..).is_some_and(|rest| rest.contains('/'));
        let is_digits = wanted.len() >= MIN_DIGITS;
        let rules: [Rule<'_>; 4] = [
            &|name, _| record_id(name) == wanted,
            &|_, id| id == own,
            &|_, id| has_namespace && id == wanted,
            &|name, _| is_digits && name.starts_with(wanted),
        ];
        for is_meant in rules {
            let mut found = all.iter().filter(|(name, id)| is_meant(name, id));
            match (found.next(), found.next()) {
                (Some(_), Some(_)) => {
                    return Err(Error::invalid(format!(
                        "there are several caches {wanted}: name one by its ID"
                    )));
                }
                (Some((name, _)), None) => return Ok(Some(name.clone())),
                (None, _) => {}
            }
        }
        Ok(None)
    }

    /// Takes a cache for an export, as a step that shares it, or for an import, alone. Does not wait.
    fn take_now(&self, name: &str, is_changed: bool) -> Result<Used> {
        let lock = self.state.lock(name);
        let lock = match is_changed {
            true => lock.try_write_owned().ok().map(Lock::Own),
            false => lock.try_read_owned().ok().map(Lock::Shared),
        };
        let lock = lock.ok_or_else(|| {
            let text = format!("the cache {name} is in use by a build");
            Error::from(whelk_engine::Error::conflict(text))
        })?;
        Ok(self.used(name, lock))
    }

    /// Takes a cache to read it. Steps that share it may write to it meanwhile. Blocking.
    ///
    /// # Errors
    /// Returns an error if there is none, and if a step uses it alone.
    pub fn hold(&self, wanted: &str) -> Result<Used> {
        let missing = || {
            let text = format!("no such cache of builds: {wanted}");
            Error::from(whelk_engine::Error::NotFound(text))
        };
        let name = self.find(wanted)?.ok_or_else(missing)?;
        let used = self.take_now(&name, false)?;
        // It may have been removed before it was taken.
        match fs::exists(used.path.join("fs")) {
            true => Ok(used),
            false => Err(missing()),
        }
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
        let id = id_of(wanted);
        let known = self.find(wanted)?;
        let name = known.unwrap_or_else(|| name_of(&key(&id, "", &[])));
        self.import_as(store, &name, &id, input)?;
        Ok(name)
    }

    fn import_as(
        &self,
        store: &Store,
        name: &str,
        id: &str,
        input: impl Read + Send,
    ) -> Result<()> {
        let used = self.take_now(name, true)?;
        let mut input = Some(input);
        let mut unpack = |path: &Path| match input.take() {
            Some(input) => Ok(whelk_image::snapshots::unpack(input, path)?),
            None => Ok(()),
        };
        let is_imported = fs::exists(used.path.join(IMPORTED));
        let files = Self::open(store, &used, id, &mut unpack)?;
        let is_new = input.is_none();
        // `open` has not created it: it was there.
        if let Some(input) = input {
            whelk_image::snapshots::unpack(input, &files)?;
        }
        if is_new || is_imported {
            fs::write(used.path.join(IMPORTED), "")?;
        }
        Ok(())
    }

    /// Returns the size of a cache, which is measured once after each use.
    fn size(&self, name: &str, path: &Path) -> u64 {
        let known = self.state.sizes.lock().ignore_poison().get(name).copied();
        known.unwrap_or_else(|| {
            let directory = fs::open(path).ok();
            let size = directory.and_then(|directory| copy::disk_usage(directory).ok());
            let size = size.unwrap_or(0);
            if !self.is_used(name) {
                let mut sizes = self.state.sizes.lock().ignore_poison();
                sizes.insert(name.to_owned(), size);
            }
            size
        })
    }

    /// Removes the caches with these ids that no step uses. Blocking.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub fn discard(&self, store: &Store, ids: &BTreeSet<&str>) -> Result<()> {
        if ids.is_empty() || !fs::exists(&self.directory) {
            return Ok(());
        }
        for entry in fs::list(&self.directory)? {
            let id = fs::read_to_string(entry.path().join("id")).unwrap_or_default();
            if ids.contains(id.as_str()) {
                self.remove(store, &entry.file_name().to_string_lossy())?;
            }
        }
        Ok(())
    }

    /// Removes a cache that no step uses. Returns whether it was removed. Blocking.
    pub fn remove(&self, store: &Store, name: &str) -> Result<bool> {
        let Ok(_guard) = self.state.lock(name).try_write_owned() else {
            return Ok(false);
        };
        let trashed = store.staging.trash(&self.directory.join(name))?;
        self.state.sizes.lock().ignore_poison().remove(name);
        let is_removed = trashed.is_some();
        store.staging.dispose(trashed);
        Ok(is_removed)
    }
}

impl Used {
    /// Renames the cache that was imported with this id, if no step uses it, to this one, and adds those files of `new` that it lacks.
    /// Returns whether there is one. A kill in between loses none of its files.
    fn adopt_imported(&self, id: &str, new: &Path) -> Result<bool> {
        let name = name_of(&key(id, "", &[]));
        let imported = self.path.with_file_name(&name);
        if imported == self.path || !fs::exists(imported.join(IMPORTED)) {
            return Ok(false);
        }
        let Ok(_guard) = self.state.lock(&name).try_write_owned() else {
            return Ok(false);
        };
        let files = imported.join("fs");
        for entry in fs::list(new)? {
            let target = files.join(entry.file_name());
            if !fs::exists(&target) {
                fs::rename(entry.path(), &target)?;
            }
        }
        let wanted = fs::metadata(new)?;
        let (uid, gid) = (Uid::from_raw(wanted.uid()), Gid::from_raw(wanted.gid()));
        rustix::fs::chown(&files, Some(uid), Some(gid)).map_err(os("set the owner of a cache"))?;
        fs::set_mode(&files, wanted.mode() & 0o7777)?;
        fs::rename(&imported, &self.path)?;
        fs::remove_if_exists(self.path.join(IMPORTED))?;
        self.state.sizes.lock().ignore_poison().remove(&name);
        Ok(true)
    }
}

/// The mark of a cache that no step has used yet.
const IMPORTED: &str = "imported";

/// Returns the name of a cache's directory.
fn name_of(key: &Digest) -> String {
    let digits = key.to_string();
    digits.trim_start_matches("sha256:").to_owned()
}

/// Returns the id of the record of a cache: the first digits of its name, and the number of a further one.
pub(crate) fn record_id(name: &str) -> String {
    let (digits, number) = name.split_at(name.find('-').unwrap_or(name.len()));
    let digits: String = digits.chars().take(crate::usage::ID).collect();
    digits + number
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
        for number in 0..100 {
            let other = self::key(&number.to_string(), "", &[]);
            drop(caches.take(&other, CacheSharing::Shared).await);
        }
        // The private one is still in use, and the last one was.
        assert!(caches.state.locks.lock().unwrap().len() <= 2);
        let kept = caches.list().unwrap();
        // To look at a cache is no use of it.
        let lock = caches.state.lock(&kept[0].name);
        let _writing = lock.try_write().unwrap();
        assert_eq!(caches.list().unwrap().len(), 1);
        drop(_writing);
        drop(lock);
        assert_eq!(
            (kept.len(), kept[0].id.as_str(), kept[0].is_used),
            (1, "/go", false)
        );
        // Found by its id and by its name, and not while it is in use.
        for wanted in ["go", &kept[0].name[..12], &record_id(&kept[0].name)] {
            assert_eq!(caches.find(wanted).unwrap().as_ref(), Some(&kept[0].name));
        }
        assert_eq!(caches.find("other").unwrap(), None);
        let used = caches.take(&key, CacheSharing::Locked).await;
        assert!(caches.hold("go").is_err());
        assert!(caches.import(&store, "go", &b""[..]).is_err());
        drop(used);
        assert!(caches.hold("go").is_ok() && caches.hold("other").is_err());
        assert!(caches.remove(&store, &kept[0].name).unwrap());
        assert!(caches.list().unwrap().is_empty());
    }

    async fn create(caches: &Caches, store: &Store, id: &str, key: &Digest) -> Used {
        let used = caches.take(key, CacheSharing::Shared).await;
        Caches::open(store, &used, id, |_| Ok(())).unwrap();
        used
    }

    #[tokio::test]
    async fn caches_are_found_by_what_the_user_means() {
        let root = Scratch::temporary("build-caches-found").unwrap();
        let store = Store::open(root.path()).unwrap();
        let caches = Caches::new(root.path());
        // A mount without an id has that of its target.
        let mut names = Vec::new();
        for id in ["/go", "//go", "team/npm"] {
            drop(create(&caches, &store, id, &key(id, "", &[])).await);
            names.push(name_of(&key(id, "", &[])));
        }
        for (wanted, expected) in [
            ("go", Some(0)),
            ("/go", Some(1)),
            ("team/npm", Some(2)),
            ("npm", None),
            ("//go", Some(1)),
        ] {
            let expected = expected.map(|index: usize| &names[index]);
            assert_eq!(caches.find(wanted).unwrap().as_ref(), expected, "{wanted}");
        }
        // Private ones that are used at the same time have ids of their own.
        let own = key("/own", "", &[]);
        let one = caches.take(&own, CacheSharing::Private).await;
        let two = caches.take(&own, CacheSharing::Private).await;
        for used in [&one, &two] {
            Caches::open(&store, used, "/own", |_| Ok(())).unwrap();
        }
        let name = name_of(&own);
        let second = format!("{name}-1");
        assert_eq!(record_id(&second), format!("{}-1", &name[..25]));
        assert!(caches.find("own").is_err());
        for name in [&name, &second] {
            assert_eq!(caches.find(&record_id(name)).unwrap().as_ref(), Some(name));
        }
    }

    /// Returns an archive with one file.
    fn archive(name: &str, text: &str) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        archive
            .append_data(&mut header, name, text.as_bytes())
            .unwrap();
        archive.into_inner().unwrap()
    }

    #[tokio::test]
    async fn what_is_imported_is_in_the_cache_that_a_step_creates() {
        let root = Scratch::temporary("build-caches-import").unwrap();
        let store = Store::open(root.path()).unwrap();
        let caches = Caches::new(root.path());
        let name = caches.import(&store, "npm", &*archive("x", "1")).unwrap();
        caches.import(&store, "npm", &*archive("y", "2")).unwrap();
        // Its mount has a mode, so that it has another key.
        let other = key("/npm", "/cache", &[]);
        let used = caches.take(&other, CacheSharing::Shared).await;
        let fill = |path: &Path| {
            fs::write(path.join("x"), "of the base")?;
            Ok(fs::write(path.join("z"), "of the base")?)
        };
        let files = Caches::open(&store, &used, "/npm", fill).unwrap();
        let read = |name: &str| fs::read_to_string(files.join(name)).unwrap();
        assert_eq!(["x", "y", "z"].map(read), ["1", "2", "of the base"]);
        assert!(!fs::exists(root.path().join("build/mounts").join(&name)));
        assert_eq!(caches.find("npm").unwrap(), Some(name_of(&other)));
        // What a step has used is not taken away from it.
        caches.import(&store, "go", &*archive("x", "1")).unwrap();
        let own = caches
            .take(&key("/go", "", &[]), CacheSharing::Shared)
            .await;
        Caches::open(&store, &own, "/go", |_| Ok(())).unwrap();
        drop(own);
        let other = caches
            .take(&key("/go", "/cache", &[]), CacheSharing::Shared)
            .await;
        let files = Caches::open(&store, &other, "/go", |_| Ok(())).unwrap();
        assert_eq!(fs::list(&files).unwrap().len(), 0);
    }

    #[tokio::test]
    async fn an_import_is_unpacked_into_a_cache_that_was_created_meanwhile() {
        let root = Scratch::temporary("build-caches-raced").unwrap();
        let store = Store::open(root.path()).unwrap();
        let caches = Caches::new(root.path());
        assert_eq!(caches.find("go").unwrap(), None);
        let key = key("/go", "", &[]);
        drop(create(&caches, &store, "/go", &key).await);
        let name = name_of(&key);
        let input = archive("x", "1");
        caches.import_as(&store, &name, "/go", &*input).unwrap();
        let file = root.path().join("build/mounts").join(name).join("fs/x");
        assert_eq!(fs::read_to_string(file).unwrap(), "1");
    }
}
