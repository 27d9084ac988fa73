//! Files and directories that were fetched from servers, and are kept for later builds.
//!
//! ```text
//! <root>/build/KIND/KEY-CONTENT/   fs: the files   info: what is known of them   packs: of git repositories, what they were taken of
//! ```
//! A directory is complete and never changes. It is used without a flush, in the boot in which it was made.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex as Lock, OwnedMutexGuard};
use whelk_image::Staging;
use whelk_llb::Digest;
use whelk_sys::sync::IgnorePoison as _;
use whelk_sys::{Scratch, fs};

use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::usage::StoredDirectory;

/// Number of directories of a kind that are kept, and their size in bytes; the ones that were used last.
const KEPT: usize = 64;
const MAX_SIZE: u64 = 10 << 30;
/// Maximum size of an `info` in bytes.
const MAX_INFO: u64 = 64 << 10;

/// The description of a directory, in its file `info`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Info {
    /// The boot in which it was made.
    pub boot: String,
    /// The content: a digest, or a commit.
    pub content: String,
    /// The tag by which a server knows the content; empty without one.
    pub tag: String,
    /// When it was made or changed, in seconds since 1970.
    pub time: Option<i64>,
    /// The size of the files in bytes.
    pub size: u64,
    /// What it is, for people.
    #[serde(default)]
    pub description: String,
    /// The repository that `packs` has a commit of; empty without packs.
    #[serde(default)]
    pub repository: String,
}

/// The directories of a kind.
#[derive(Debug)]
pub(crate) struct FetchedDirectories {
    root: PathBuf,
    staging: Staging,
    pub boot: String,
    /// How many builds use a directory.
    used: Arc<Mutex<HashMap<PathBuf, usize>>>,
    locks: Mutex<HashMap<Digest, Weak<Lock<()>>>>,
}

/// A use of a directory, which stays as long as this exists.
#[derive(Debug)]
pub(crate) struct Use {
    path: PathBuf,
    used: Arc<Mutex<HashMap<PathBuf, usize>>>,
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut used = self.used.lock().ignore_poison();
        if let Some(count) = used.get_mut(&self.path) {
            *count -= 1;
            if *count == 0 {
                used.remove(&self.path);
            }
        }
    }
}

impl FetchedDirectories {
    /// Opens what is kept at a place, without what is of another boot. Blocking.
    pub fn new(root: PathBuf, staging: Staging, boot: &str) -> Self {
        let fetched = Self {
            root,
            staging,
            boot: boot.to_owned(),
            used: Arc::default(),
            locks: Mutex::default(),
        };
        if let Err(error) = fetched.remove_others() {
            tracing::warn!("remove what was fetched in another boot: {error}");
        }
        fetched
    }

    /// Removes directories of another boot, which are of no use.
    fn remove_others(&self) -> Result<()> {
        let mut paths = self.paths()?;
        paths.retain(|path| read(path).is_none_or(|info| info.boot != self.boot));
        self.remove_all(&paths)
    }

    /// Waits until nobody else fetches what a key stands for.
    pub async fn lock(&self, key: Digest) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().ignore_poison();
            locks.retain(|_, lock| lock.strong_count() > 0);
            let known = locks.get(&key).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::default();
                locks.insert(key, Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }

    /// Returns what there is for a key. Blocking.
    pub fn find(&self, key: &Digest) -> Result<Vec<(Directory, Info)>> {
        let mut found = Vec::new();
        for path in self.paths()? {
            if path_key(&path) != Some(hex(key).as_str()) {
                continue;
            }
            // Before it is read, so that it is not removed meanwhile.
            let held = self.hold(&path);
            if let Some(info) = self.info(&path) {
                found.push((directory(&path, held, &info), info));
            }
        }
        Ok(found)
    }

    /// Returns the place of the packs of a repository that were used last, and what is known of their directory, which stays as long
    /// as the first value exists. Blocking.
    pub fn packs(&self, repository: &str) -> Result<Option<(Use, PathBuf, Info)>> {
        let of_repository = |path: &PathBuf| {
            let info = read(path)?;
            let used = fs::metadata(path).ok()?.modified().ok()?;
            let is_meant = info.repository == repository && info.boot == self.boot;
            is_meant.then(|| (used, path.clone()))
        };
        let found = self.paths()?.iter().filter_map(of_repository).max();
        let Some((_, path)) = found else {
            return Ok(None);
        };
        // Before it is read, so that it is not removed meanwhile.
        let held = self.hold(&path);
        let info = read(&path);
        Ok(info.map(|info| (held, path.join("packs"), info)))
    }

    /// Moves the files that are at `fs` in a directory here, in place of others that nobody uses. Blocking.
    pub fn add(&self, key: &Digest, scratch: &Scratch, info: &Info) -> Result<Directory> {
        let text = serde_json::to_vec(info);
        let text = text.map_err(|error| Error::internal(error.to_string()))?;
        fs::create_dir_all(&self.root, 0o700)?;
        // What is in use does not change, not even its time.
        let what = format!("{} {:?}", info.content, info.time);
        let name = format!("{}-{}", hex(key), hex(&Digest::of(what.as_bytes())));
        let path = self.root.join(name);
        let held = self.hold(&path);
        if self.info(&path).is_some() {
            // The server may have given the same content another tag.
            fs::replace(path.join("info"), text, 0o600)?;
        } else {
            // What is there is of another boot.
            self.staging.dispose(self.staging.trash(&path)?);
            fs::write(scratch.path().join("info"), text)?;
            fs::rename(scratch.path(), &path)?;
        }
        let of_key: Vec<PathBuf> = self
            .paths()?
            .into_iter()
            .filter(|other| path_key(other) == Some(hex(key).as_str()))
            .collect();
        self.remove_all(&of_key)?;
        self.make_room()?;
        Ok(directory(&path, held, info))
    }

    /// Describes all that there is, by the names of the directories. Blocking.
    pub fn list(&self) -> Result<Vec<StoredDirectory>> {
        // What was removed since the list was read is left out.
        let listed = self.paths()?.into_iter().filter_map(|path| {
            let metadata = fs::metadata(&path).ok()?;
            let info = read(&path).unwrap_or_default();
            let name = path.file_name()?.to_str()?.to_owned();
            let is_used = self.used.lock().ignore_poison().contains_key(&path);
            let (id, size) = (info.description, info.size);
            Some(StoredDirectory::new(
                name,
                id,
                size,
                is_used,
                Some(&metadata),
            ))
        });
        Ok(listed.collect())
    }

    /// Removes a directory that no build uses. Returns whether it was removed. Blocking.
    pub fn remove(&self, name: &str) -> Result<bool> {
        let path = self.root.join(name);
        self.remove_all(std::slice::from_ref(&path))?;
        Ok(!fs::exists(&path))
    }

    fn paths(&self) -> Result<Vec<PathBuf>> {
        if !fs::exists(&self.root) {
            return Ok(Vec::new());
        }
        let entries = fs::list(&self.root)?;
        Ok(entries.iter().map(std::fs::DirEntry::path).collect())
    }

    fn hold(&self, path: &Path) -> Use {
        let path = path.to_owned();
        let mut used = self.used.lock().ignore_poison();
        *used.entry(path.clone()).or_default() += 1;
        Use {
            path,
            used: self.used.clone(),
        }
    }

    /// Returns what is known of a directory of this boot, and notes its use.
    fn info(&self, path: &Path) -> Option<Info> {
        let info = read(path)?;
        let _ = fs::touch(path);
        (info.boot == self.boot).then_some(info)
    }

    /// Removes those of `paths` that nobody uses.
    fn remove_all(&self, paths: &[PathBuf]) -> Result<()> {
        for path in paths {
            // Held, so that nobody begins to use it between.
            let used = self.used.lock().ignore_poison();
            if used.contains_key(path) {
                continue;
            }
            let trashed = self.staging.trash(path)?;
            drop(used);
            self.staging.dispose(trashed);
        }
        Ok(())
    }

    /// Removes what was not used for the longest time, if there is too much.
    fn make_room(&self) -> Result<()> {
        let paths = self.paths()?.into_iter();
        let mut all: Vec<_> = paths
            .map(|path| {
                let metadata = fs::metadata(&path).ok();
                (metadata.and_then(|metadata| metadata.modified().ok()), path)
            })
            .collect();
        all.sort();
        let (mut count, mut size) = (0, 0_u64);
        let over = all.into_iter().rev().map(|(_, path)| path).filter(|path| {
            count += 1;
            size = size.saturating_add(read(path).unwrap_or_default().size);
            count > KEPT || size > MAX_SIZE
        });
        let over: Vec<PathBuf> = over.collect();
        self.remove_all(&over)
    }
}

/// Returns what is known of a directory, of any boot.
fn read(path: &Path) -> Option<Info> {
    let text = fs::read_at_most(path.join("info"), MAX_INFO).ok()?;
    serde_json::from_slice(&text).ok()
}

fn directory(path: &Path, held: Use, info: &Info) -> Directory {
    Directory::fetched(path, Arc::new(held), &info.content)
}

fn hex(digest: &Digest) -> String {
    digest.to_string().trim_start_matches("sha256:").to_owned()
}

/// Returns the key in the name of a directory.
fn path_key(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    name.split_once('-').map(|(key, _)| key)
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use whelk_image::Store;

    use super::*;

    fn add(fetched: &FetchedDirectories, key: &Digest, content: &str) -> Directory {
        add_large(fetched, key, content, 1)
    }

    fn add_large(
        fetched: &FetchedDirectories,
        key: &Digest,
        content: &str,
        size: u64,
    ) -> Directory {
        let scratch = fetched.staging.scratch().unwrap();
        fs::create_dir(scratch.path().join("fs"), 0o755).unwrap();
        fs::write(scratch.path().join("fs/file"), content).unwrap();
        let info = Info {
            boot: fetched.boot.clone(),
            content: content.into(),
            size,
            ..Info::default()
        };
        fetched.add(key, &scratch, &info).unwrap()
    }

    #[test]
    fn what_is_used_stays() {
        let root = Scratch::temporary("fetched").unwrap();
        let store = Store::open(root.path()).unwrap();
        let fetched = FetchedDirectories::new(
            root.path().join("build/http"),
            store.staging.clone(),
            "boot",
        );
        let key = Digest::of(b"key");
        let first = add(&fetched, &key, "one");
        let second = add(&fetched, &key, "two");
        assert_eq!(first.read("file").unwrap().unwrap(), "one");
        assert_eq!(fetched.find(&key).unwrap().len(), 2);
        let clear = || {
            let listed = fetched.list().unwrap().into_iter();
            listed
                .filter(|one| fetched.remove(&one.name).unwrap())
                .count()
        };
        assert!(
            fetched
                .list()
                .unwrap()
                .iter()
                .all(|one| one.is_used && one.size == 1)
        );
        assert_eq!(clear(), 0);
        drop(first);
        // Another content replaces one that nobody uses.
        drop(add(&fetched, &key, "three"));
        let contents = fetched.find(&key).unwrap().into_iter();
        let mut contents: Vec<String> = contents.map(|(_, info)| info.content).collect();
        contents.sort();
        assert_eq!(contents, ["three", "two"]);
        drop(second);
        assert_eq!(clear(), 2);
        assert!(fetched.find(&key).unwrap().is_empty());
        // What another boot has left may not be whole.
        drop(add(&fetched, &key, "four"));
        let same = FetchedDirectories::new(fetched.root.clone(), store.staging.clone(), "boot");
        assert_eq!(same.find(&key).unwrap().len(), 1);
        let later = FetchedDirectories::new(fetched.root.clone(), store.staging.clone(), "other");
        assert!(later.paths().unwrap().is_empty());
        assert!(later.find(&key).unwrap().is_empty());
        assert_eq!(
            add(&later, &key, "four").read("file").unwrap().unwrap(),
            "four"
        );
    }

    #[test]
    fn what_was_used_last_is_kept() {
        let root = Scratch::temporary("fetched").unwrap();
        let store = Store::open(root.path()).unwrap();
        let place = root.path().join("build/http");
        let fetched = FetchedDirectories::new(place, store.staging.clone(), "boot");
        let key = |number: usize| Digest::of(number.to_string().as_bytes());
        let is_kept = |number: usize| !fetched.find(&key(number)).unwrap().is_empty();
        let count = || fetched.paths().unwrap().len();
        let used = add(&fetched, &key(0), "used");
        for number in 1..KEPT + 4 {
            drop(add(&fetched, &key(number), "not used"));
        }
        // What is used counts, and stays.
        assert!(count() <= KEPT + 2, "{}", count());
        assert!(is_kept(0) && is_kept(KEPT + 3));
        drop(used);
        // Times of files have the resolution of the kernel's clock.
        let later = || std::thread::sleep(std::time::Duration::from_millis(20));
        later();
        drop(add_large(&fetched, &key(1000), "large", MAX_SIZE));
        later();
        drop(add(&fetched, &key(1001), "next"));
        assert!(count() <= 2, "{}", count());
        assert!(is_kept(1001) && !is_kept(0));
    }
}
