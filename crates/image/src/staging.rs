//! The directories for objects under construction (`tmp`) and for deleted objects (`trash`).
//!
//! ```text
//! <root>/tmp/<random>/…     incomplete objects; moved to the trash when the engine starts
//! <root>/trash/<random>     deleted objects; removed in the background, also after the engine was
//!                           killed
//! ```
//! Both are on the same file system as the objects, so that an object appears under its name, and
//! disappears from it, by one rename.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use whelk_sys::sync::IgnorePoison as _;
use whelk_sys::{Scratch, fs};

use crate::error::Result;

/// The directories for objects under construction and for deleted objects.
#[derive(Clone, Debug)]
pub struct Staging {
    root: PathBuf,
    disposal: Arc<Disposal>,
}

/// Objects in the trash that are being removed in the background.
#[derive(Debug, Default)]
struct Disposal {
    queue: Mutex<Queue>,
    ended: Condvar,
    own: Mutex<Own>,
    /// With `own`: an object of the trash was removed, or could not be.
    removed: Condvar,
}

/// What this process has put into `tmp` and `trash`.
#[derive(Debug, Default)]
struct Own {
    /// When each path was added. May have paths that do not exist any more, and has those that are about
    /// to exist.
    paths: BTreeMap<PathBuf, Instant>,
    /// Number of paths at which those that do not exist any more are left out.
    limit: usize,
    /// Why objects in the trash could not be removed.
    failures: BTreeMap<PathBuf, String>,
}

impl Own {
    fn insert(&mut self, path: PathBuf) {
        const LEAST: usize = 1024;
        /// Within this time a path exists, if it ever does.
        const SOON: Duration = Duration::from_secs(300);
        if self.paths.len() >= self.limit.max(LEAST) {
            self.paths
                .retain(|path, added| added.elapsed() < SOON || fs::exists(path));
            self.limit = 2 * self.paths.len();
        }
        self.failures.remove(&path);
        self.paths.insert(path, Instant::now());
    }
}

/// What has become of an object that was to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    Done,
    /// It waits for others, or takes long.
    Runs,
    /// Why it could not be removed.
    Failed(String),
}

/// An object in `tmp` or `trash` that nothing is going to remove.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stray {
    pub path: PathBuf,
    /// Why it could not be removed; `None` if this process has not put it there.
    pub failure: Option<String>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<PathBuf>,
    /// Whether there is a thread that removes them.
    is_running: bool,
}

impl Staging {
    /// Opens the directories below an engine's root, and moves incomplete objects of an earlier run
    /// to the trash.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        for directory in ["tmp", "trash"] {
            fs::create_dir_all(root.join(directory), 0o700)?;
        }
        let staging = Self {
            root: root.to_owned(),
            disposal: Arc::default(),
        };
        for entry in fs::list(root.join("tmp"))? {
            staging.trash(&entry.path())?;
        }
        Ok(staging)
    }

    /// Returns the root directory of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Creates a temporary directory for an object under construction.
    pub fn scratch(&self) -> Result<Scratch> {
        Ok(Scratch::at(self.path())?)
    }

    /// Returns a path for a new file or directory under construction.
    pub(crate) fn path(&self) -> PathBuf {
        let path = self.root.join("tmp").join(random_name());
        self.own().insert(path.clone());
        path
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        self.disposal.own.lock().ignore_poison()
    }

    /// Returns the objects in `tmp` and `trash` that nothing is going to remove: what another process
    /// has put there, and what could not be removed.
    ///
    /// # Errors
    /// Returns an error if the directories cannot be listed.
    pub fn strays(&self) -> Result<Vec<Stray>> {
        let mut strays = Vec::new();
        for directory in ["tmp", "trash"] {
            for entry in fs::list(self.root.join(directory))? {
                let (path, own) = (entry.path(), self.own());
                let failure = own.failures.get(&path).cloned();
                if failure.is_some() || !own.paths.contains_key(&path) {
                    strays.push(Stray { path, failure });
                }
            }
        }
        Ok(strays)
    }

    /// Removes such an object in the background, for which it waits until `patience` is over: other objects
    /// may be removed first.
    ///
    /// # Errors
    /// Returns an error if it cannot be moved to the trash.
    pub fn remove_stray(&self, path: &Path, patience: Duration) -> Result<Removal> {
        let trashed = if path.starts_with(self.root.join("trash")) {
            Some(path.to_owned())
        } else {
            self.trash(path)?
        };
        let Some(trashed) = trashed else {
            return Ok(Removal::Done);
        };
        self.dispose([trashed.clone()]);
        let own = self.own();
        let is_queued = |own: &mut Own| {
            own.paths.contains_key(&trashed) && !own.failures.contains_key(&trashed)
        };
        let waited = self
            .disposal
            .removed
            .wait_timeout_while(own, patience, is_queued);
        let (own, timeout) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(match own.failures.get(&trashed) {
            Some(failure) => Removal::Failed(failure.clone()),
            None if timeout.timed_out() => Removal::Runs,
            None => Removal::Done,
        })
    }

    /// Returns the size in bytes of what waits in the trash to be removed.
    pub fn trash_size(&self) -> u64 {
        let trash = fs::open(self.root.join("trash"));
        let size = trash.map(|trash| whelk_sys::copy::disk_usage(trash).unwrap_or(0));
        size.unwrap_or(0)
    }

    /// Moves an object of the store to the same place below `lost+found`, which is never emptied. Returns
    /// its path there.
    ///
    /// # Errors
    /// Returns an error if it cannot be moved.
    pub fn set_aside(&self, path: &Path) -> Result<PathBuf> {
        let place = path.strip_prefix(&self.root).unwrap_or(path);
        let mut target = self.root.join("lost+found").join(place);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent, 0o700)?;
        }
        if fs::exists(&target) {
            target
                .as_mut_os_string()
                .push(format!("-{}", random_name()));
        }
        fs::rename(path, &target)?;
        Ok(target)
    }

    /// Removes everything in the trash, as [`Staging::dispose`] does: what earlier runs have left.
    ///
    /// # Errors
    /// Returns an error if the trash cannot be listed.
    pub fn empty_trash(&self) -> Result<()> {
        let entries = fs::list(self.root.join("trash"))?;
        self.dispose(entries.iter().map(std::fs::DirEntry::path));
        Ok(())
    }

    /// Removes objects from the trash in the background, with pauses, so that what else uses the
    /// disk is hardly delayed. There are no pauses while the disk is nearly full or much waits to be
    /// removed. Errors are logged; the next start tries again.
    pub fn dispose(&self, trashed: impl IntoIterator<Item = PathBuf>) {
        let trashed: Vec<PathBuf> = trashed.into_iter().collect();
        for path in &trashed {
            self.own().insert(path.clone());
        }
        let mut queue = self.disposal.queue.lock().ignore_poison();
        queue.waiting.extend(trashed);
        if queue.is_running || queue.waiting.is_empty() {
            return;
        }
        let (disposal, root) = (self.disposal.clone(), self.root.clone());
        let thread = std::thread::Builder::new().name("whelk-trash".into());
        match thread.spawn(move || whelk_sys::in_background(|| disposal.run(&root))) {
            Ok(_) => queue.is_running = true,
            // The next disposal tries again.
            Err(error) => tracing::warn!("empty the trash: start a thread: {error}"),
        }
    }

    /// Like [`Staging::dispose`], and on a disk that is nearly full waits until everything in the
    /// trash is removed, because what comes next needs the space.
    pub fn dispose_and_make_room(&self, trashed: impl IntoIterator<Item = PathBuf>) {
        self.dispose(trashed);
        if is_nearly_full(&self.root) {
            self.wait_for_disposal();
        }
    }

    /// Waits until nothing is being removed in the background any more.
    pub fn wait_for_disposal(&self) {
        let mut queue = self.disposal.queue.lock().ignore_poison();
        while queue.is_running {
            queue = self.disposal.ended.wait(queue).ignore_poison();
        }
    }

    /// Moves a file or directory to the trash and removes it there. After a crash in between, the
    /// engine's next start removes it.
    pub fn discard(&self, path: &Path) -> Result<()> {
        let Some(trashed) = self.trash(path)? else {
            return Ok(());
        };
        Ok(fs::remove_tree(trashed)?)
    }

    /// Moves a file or directory to the trash, without removing it. Returns `None` if it does not
    /// exist. Takes constant time.
    pub fn trash(&self, path: &Path) -> Result<Option<PathBuf>> {
        self.trash_as(path, &random_name())
    }

    /// Moves to the trash under a given name, so that the object can be restored.
    pub fn trash_as(&self, path: &Path, name: &str) -> Result<Option<PathBuf>> {
        let trashed = self.trashed(name);
        self.own().insert(trashed.clone());
        match fs::rename(path, &trashed) {
            Ok(()) => Ok(Some(trashed)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the path of an object that was moved with [`Staging::trash_as`].
    pub fn trashed(&self, name: &str) -> PathBuf {
        self.root.join("trash").join(name)
    }
}

/// Returns whether a file was last changed less than `age` ago. A time in the future does not count:
/// the clock was wrong once.
pub(crate) fn is_younger(metadata: &std::fs::Metadata, age: Duration) -> bool {
    let changed = metadata.modified();
    changed.is_ok_and(|changed| changed.elapsed().is_ok_and(|old| old < age))
}

impl Disposal {
    /// Removes objects until none is left.
    fn run(&self, root: &Path) {
        let mut pace = Pace::new(root);
        loop {
            let next = {
                let mut queue = self.queue.lock().ignore_poison();
                let next = queue.waiting.pop_front();
                queue.is_running = next.is_some();
                next
            };
            let Some(path) = next else { break };
            let is_long = || self.queue.lock().ignore_poison().waiting.len() > Pace::LONG_QUEUE;
            let removed = fs::remove_tree_in_steps(&path, &mut || pace.keep(is_long));
            let mut own = self.own.lock().ignore_poison();
            if let Err(error) = removed {
                tracing::warn!("empty the trash: {error}");
                own.failures.insert(path, error.to_string());
            } else {
                own.paths.remove(&path);
            }
            drop(own);
            self.removed.notify_all();
        }
        self.ended.notify_all();
    }
}

/// Divides work into short slices with pauses between them, so that it runs for at most a third of
/// the time.
struct Pace<'a> {
    /// A directory of the disk that is worked on.
    root: &'a Path,
    slice: Instant,
    /// When the disk's free space was last looked at, and whether that was little.
    looked_at: Instant,
    is_urgent: bool,
}

impl<'a> Pace<'a> {
    const SLICE: Duration = Duration::from_millis(2);
    const PAUSE: Duration = Duration::from_millis(4);
    /// Interval at which it is checked whether the work is urgent.
    const LOOK: Duration = Duration::from_millis(500);
    /// Number of waiting objects at which the work is urgent.
    const LONG_QUEUE: usize = 64;

    fn new(root: &'a Path) -> Self {
        Self {
            root,
            slice: Instant::now(),
            looked_at: Instant::now(),
            is_urgent: is_nearly_full(root),
        }
    }

    /// Pauses if the slice is over and the work is not urgent.
    fn keep(&mut self, is_long: impl Fn() -> bool) {
        if self.slice.elapsed() < Self::SLICE {
            return;
        }
        if self.looked_at.elapsed() >= Self::LOOK {
            self.is_urgent = is_long() || is_nearly_full(self.root);
            self.looked_at = Instant::now();
        }
        if !self.is_urgent {
            std::thread::sleep(Self::PAUSE);
        }
        self.slice = Instant::now();
    }
}

/// Returns whether less than a tenth of a directory's disk is free, and less than 4 GiB.
fn is_nearly_full(directory: &Path) -> bool {
    const RESERVE: u64 = 4 << 30;
    rustix::fs::statvfs(directory).is_ok_and(|disk| {
        let (free, total) = (disk.f_bavail, disk.f_blocks);
        free < total / 10 && free.saturating_mul(disk.f_frsize) < RESERVE
    })
}

/// Returns a random file name of 24 hexadecimal digits.
pub(crate) fn random_name() -> String {
    let mut bytes = [0u8; 12];
    // getrandom(2) does not fail for so few bytes once the generator is seeded, which it is long
    // before the engine starts.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn objects_are_removed_in_the_background() {
        let scratch = Scratch::temporary("trash").unwrap();
        let staging = Staging::open(scratch.path()).unwrap();
        let trash = scratch.path().join("trash");
        for round in 0..2 {
            for object in ["one", "two"] {
                let place = scratch.path().join(object);
                fs::create_dir(&place, 0o700).unwrap();
                for file in 0..1000 {
                    fs::write(place.join(file.to_string()), "").unwrap();
                }
                let trashed = staging.trash(&place).unwrap();
                staging.dispose(trashed);
                assert!(!fs::exists(&place));
            }
            staging.wait_for_disposal();
            assert!(fs::list(&trash).unwrap().is_empty(), "round {round}");
        }
        fs::write(trash.join("left"), "").unwrap();
        let stray = Stray {
            path: trash.join("left"),
            failure: None,
        };
        assert_eq!(staging.strays().unwrap(), [stray]);
        staging.empty_trash().unwrap();
        staging.wait_for_disposal();
        assert!(fs::list(&trash).unwrap().is_empty());
    }

    #[test]
    fn strays_are_what_nothing_is_going_to_remove() {
        let scratch = Scratch::temporary("strays").unwrap();
        let root = scratch.path();
        let staging = Staging::open(root).unwrap();
        let under_construction = staging.scratch().unwrap();
        fs::write(root.join("object"), "").unwrap();
        let trashed = staging.trash(&root.join("object")).unwrap();
        assert_eq!(staging.strays().unwrap(), []);
        for place in ["tmp/one", "trash/two"] {
            fs::write(root.join(place), "12345").unwrap();
        }
        assert_eq!(staging.trash_size(), 5);
        let strays = staging.strays().unwrap();
        let paths: Vec<&Path> = strays.iter().map(|stray| stray.path.as_path()).collect();
        assert_eq!(paths, [root.join("tmp/one"), root.join("trash/two")]);
        for stray in &strays {
            let removal = staging.remove_stray(&stray.path, Duration::from_secs(60));
            assert_eq!(removal.unwrap(), Removal::Done);
            assert!(!fs::exists(&stray.path));
        }
        assert_eq!(staging.strays().unwrap(), []);
        assert!(fs::exists(under_construction.path()));
        assert!(trashed.is_some_and(fs::exists));
    }

    #[test]
    fn a_path_that_is_about_to_exist_is_known() {
        let scratch = Scratch::temporary("about").unwrap();
        let staging = Staging::open(scratch.path()).unwrap();
        let path = staging.path();
        for _ in 0..3000 {
            staging.path();
        }
        fs::create_dir(&path, 0o700).unwrap();
        assert_eq!(staging.strays().unwrap(), []);
    }

    #[test]
    fn a_stray_is_not_waited_for_longer_than_was_asked_for() {
        let scratch = Scratch::temporary("patience").unwrap();
        let staging = Staging::open(scratch.path()).unwrap();
        let stray = scratch.path().join("trash/stray");
        fs::write(&stray, "").unwrap();
        // As if other objects were being removed all the time.
        staging.disposal.queue.lock().unwrap().is_running = true;
        let removal = staging.remove_stray(&stray, Duration::from_millis(10));
        assert_eq!(removal.unwrap(), Removal::Runs);
        assert_eq!(staging.strays().unwrap(), []);
        staging.disposal.run(scratch.path());
        assert!(!fs::exists(&stray));
    }

    #[test]
    fn what_is_set_aside_replaces_nothing() {
        let scratch = Scratch::temporary("aside").unwrap();
        let staging = Staging::open(scratch.path()).unwrap();
        let path = scratch.path().join("blobs/one");
        fs::create_dir_all(scratch.path().join("blobs"), 0o700).unwrap();
        let mut places = BTreeSet::new();
        for content in ["first", "second"] {
            fs::write(&path, content).unwrap();
            let place = staging.set_aside(&path).unwrap();
            assert_eq!(fs::read(&place).unwrap(), content.as_bytes());
            assert!(place.starts_with(scratch.path().join("lost+found/blobs")));
            places.insert(place);
        }
        assert_eq!(places.len(), 2);
    }
}
