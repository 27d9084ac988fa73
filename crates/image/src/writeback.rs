//! Flushes the store's file system to disk, beginning while layers are still being unpacked.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::fs::{Mode, OFlags};
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::error::{Error, Result, io};

/// Flushes a file system with syncfs(2).
#[derive(Clone, Debug)]
pub(crate) struct Writeback {
    root: PathBuf,
    background: Arc<Mutex<Background>>,
}

#[derive(Debug, Default)]
struct Background {
    /// The flush that was started last.
    thread: Option<JoinHandle<Result<()>>>,
    /// The error of an earlier one. It must not be lost: the kernel reports an error of writing back
    /// only to descriptors that were open when it happened.
    failed: Option<Error>,
}

impl Writeback {
    pub(crate) fn of(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            background: Arc::default(),
        }
    }

    /// Starts a flush in the background, unless one is running.
    pub(crate) fn start(&self) {
        let mut background = self.background.lock().ignore_poison();
        if let Some(thread) = background.thread.take_if(|thread| thread.is_finished())
            && let Err(error) = thread.join().unwrap_or(Ok(()))
        {
            background.failed = Some(error);
        }
        if background.thread.is_none() {
            let root = self.root.clone();
            let thread = std::thread::Builder::new().name("whelk-writeback".into());
            // Without a thread, everything is written by `finish`.
            background.thread = thread.spawn(move || sync(&root)).ok();
        }
    }

    /// Waits until everything is on disk.
    ///
    /// # Errors
    /// Returns an error of the disk, also one that occurred in the background.
    pub(crate) fn finish(&self) -> Result<()> {
        let background = std::mem::take(&mut *self.background.lock().ignore_poison());
        if let Some(thread) = background.thread {
            thread.join().unwrap_or(Ok(()))?;
        }
        background.failed.map_or(Ok(()), Err)?;
        sync(&self.root)
    }
}

fn sync(root: &Path) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(root, flags, Mode::empty()).map_err(fs::at("open", root))?;
    rustix::fs::syncfs(&opened)
        .map_err(|error| io(format!("sync {}", root.display()))(error.into()))
}
