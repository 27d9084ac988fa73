//! Directories of clients, which are kept so that only what has changed is sent again.
//!
//! ```text
//! <root>/build/contexts/KEY-NUMBER   one of whelk_buildkit::files::Directory
//! ```
//! A build has a directory for itself. Others with the same key that run at the same time have others.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use whelk_build::{Builder, Directory, Error, EventKind, Result, Work};
use whelk_buildkit::files::{self, Directory as Received};
use whelk_buildkit::session::{Session, Wanted};
use whelk_llb::Digest;
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

/// Number of directories that are kept; the ones that were used last.
const KEPT: usize = 64;

const NOW: rustix::fs::Timespec = rustix::fs::Timespec {
    tv_sec: 0,
    tv_nsec: rustix::fs::UTIME_NOW as _,
};

/// The time between two reports of a transfer's progress.
const INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Contexts {
    builder: Arc<Builder>,
    root: PathBuf,
    used: Arc<Mutex<HashSet<PathBuf>>>,
}

/// A place in use.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    used: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.used.lock().ignore_poison().remove(&self.path);
    }
}

/// A directory that is being received.
struct Receiving {
    directory: Received,
    place: Place,
}

impl AsMut<Received> for Receiving {
    fn as_mut(&mut self) -> &mut Received {
        &mut self.directory
    }
}

impl Contexts {
    pub fn new(builder: Arc<Builder>, root: &Path) -> Arc<Self> {
        Arc::new(Self {
            builder,
            root: root.join("build/contexts"),
            used: Arc::default(),
        })
    }

    /// Receives what is wanted of a client's directory.
    pub async fn receive(
        self: &Arc<Self>,
        session: &Session,
        wanted: &Wanted,
        shared_key: &str,
        work: &Work,
    ) -> Result<Directory> {
        let lists = [&wanted.include, &wanted.exclude, &wanted.follow];
        let lists = lists.map(|list| format!("{list:?}"));
        let key = Digest::of_parts([
            session.shared_key.as_bytes(),
            shared_key.as_bytes(),
            wanted.name.as_bytes(),
            lists[0].as_bytes(),
            lists[1].as_bytes(),
            lists[2].as_bytes(),
        ]);
        let key = key.to_string().trim_start_matches("sha256:").to_owned();
        let contexts = self.clone();
        // Without a key, nobody knows whose directory it was the last time.
        let in_full = wanted.in_full || session.shared_key.is_empty();
        let receiving = blocking(move || contexts.take(&key, in_full)).await?;
        let stream = session
            .files(wanted)
            .map_err(|status| Error::invalid(status.message))?;
        let mut last = Instant::now();
        let report = |bytes, is_done| {
            let name = wanted.name.clone();
            work.add(EventKind::Transfer {
                name,
                bytes,
                is_done,
            });
        };
        let sometimes = |bytes| {
            if last.elapsed() >= INTERVAL {
                last = Instant::now();
                report(bytes, false);
            }
        };
        let (receiving, received) = files::receive(stream, receiving, sometimes)
            .await
            .map_err(|error| Error::invalid(error.to_string()))?;
        report(received.bytes, true);
        let boot = self.builder.boot().to_owned();
        blocking(move || {
            let Receiving { directory, place } = receiving;
            if received.is_changed {
                directory
                    .remember(&boot)
                    .map_err(|error| Error::internal(error.to_string()))?;
            }
            let path = place.path.clone();
            Ok(Directory::kept(&path, Arc::new(place)))
        })
        .await
    }

    /// Takes a directory that no build uses, with what was received before unless all is to be received again.
    fn take(&self, key: &str, in_full: bool) -> Result<Receiving> {
        fs::create_dir_all(&self.root, 0o700)?;
        let place = {
            let mut used = self.used.lock().ignore_poison();
            let mut places = (0..).map(|number| self.root.join(format!("{key}-{number}")));
            // There are infinitely many.
            let path = places
                .find(|path| !used.contains(path))
                .unwrap_or_else(|| self.root.join(key));
            used.insert(path.clone());
            Place {
                path,
                used: self.used.clone(),
            }
        };
        let path = &place.path;
        let failed = |error: files::Error| Error::internal(error.to_string());
        if !in_full
            && fs::exists(path)
            && let Some(directory) = Received::open(path, self.builder.boot()).map_err(failed)?
        {
            // The time of its last use.
            let now = rustix::fs::Timestamps {
                last_access: NOW,
                last_modification: NOW,
            };
            let flags = rustix::fs::AtFlags::empty();
            let _ = rustix::fs::utimensat(rustix::fs::CWD, path, &now, flags);
            return Ok(Receiving { directory, place });
        }
        self.remove(path)?;
        self.make_room()?;
        fs::create_dir(path, 0o700)?;
        let directory = Received::create(path).map_err(failed)?;
        Ok(Receiving { directory, place })
    }

    /// Removes directories that were not used for the longest time, if there are too many.
    fn make_room(&self) -> Result<()> {
        let mut all = Vec::new();
        for entry in fs::list(&self.root)? {
            let path = entry.path();
            let used = entry.metadata().and_then(|metadata| metadata.modified());
            if !self.used.lock().ignore_poison().contains(&path) {
                all.push((used.ok(), path));
            }
        }
        all.sort();
        let over = (all.len() + 1).saturating_sub(KEPT);
        for (_, path) in all.into_iter().take(over) {
            // A build may have taken it meanwhile.
            if let Some(place) = self.claim(path) {
                self.remove(&place.path)?;
            }
        }
        Ok(())
    }

    /// Takes a directory, so that no build does until what is returned is dropped. Returns `None` if one has.
    fn claim(&self, path: PathBuf) -> Option<Place> {
        let is_free = self.used.lock().ignore_poison().insert(path.clone());
        is_free.then(|| Place {
            path,
            used: self.used.clone(),
        })
    }

    /// Removes all that no build uses. Returns the size of their files.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub fn clear(&self) -> Result<u64> {
        let mut freed = 0;
        if !fs::exists(&self.root) {
            return Ok(0);
        }
        for entry in fs::list(&self.root)? {
            let Some(place) = self.claim(entry.path()) else {
                continue;
            };
            if let Ok(Some(directory)) = Received::open(&place.path, self.builder.boot()) {
                freed += directory
                    .entries()
                    .values()
                    .map(|entry| entry.size)
                    .sum::<u64>();
            }
            self.remove(&place.path)?;
        }
        Ok(freed)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        if fs::exists(path) {
            let staging = &self.builder.store().staging;
            let trashed = staging.trash(path)?;
            staging.dispose(trashed);
        }
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(format!("a thread of the build: {error}")))?
}
