//! Learning that logs grow without looking at each again and again: one inotify instance for all
//! that are followed.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// The directories of all logs that are followed.
#[derive(Debug)]
pub(super) struct LogWatch {
    inotify: OwnedFd,
    /// By the kernel's number of a watch: who is told.
    followed: Mutex<HashMap<i32, watch::Sender<()>>>,
}

impl LogWatch {
    /// Starts to listen to the kernel, for as long as the engine runs.
    ///
    /// # Errors
    /// The user has too many inotify instances.
    #[expect(
        deprecated,
        reason = "its replacement is unsafe; the descriptor is owned and stays the same as long as it is registered"
    )]
    pub(super) fn start() -> io::Result<Arc<Self>> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let events = AsyncFd::with_interest(inotify.try_clone()?, Interest::READABLE)?;
        let log_watch = Arc::new(Self {
            inotify,
            followed: Mutex::default(),
        });
        tokio::spawn(listen(events, log_watch.clone()));
        Ok(log_watch)
    }

    /// Watches a container's directory: appending to a file of it and rotating one are noticed.
    pub(super) fn follow(self: &Arc<Self>, directory: &OwnedFd) -> io::Result<Follower> {
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        // Under the lock: another follower of the same directory, which has the same number, may be
        // just leaving.
        let mut followed = self.followed();
        let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_FROM;
        let number = inotify::add_watch(&self.inotify, path, flags)?;
        let changes = followed
            .entry(number)
            .or_insert_with(|| watch::Sender::new(()))
            .subscribe();
        Ok(Follower {
            log_watch: self.clone(),
            number,
            changes,
        })
    }

    fn followed(&self) -> MutexGuard<'_, HashMap<i32, watch::Sender<()>>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn listen(events: AsyncFd<OwnedFd>, log_watch: Arc<LogWatch>) {
    let mut space = [MaybeUninit::uninit(); 4096];
    while let Ok(mut guard) = events.readable().await {
        let mut reader = inotify::Reader::new(events.get_ref(), &mut space);
        while let Ok(event) = reader.next() {
            let followed = log_watch.followed();
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                followed.values().for_each(|sender| sender.send_replace(()));
            } else if let Some(sender) = followed.get(&event.wd()) {
                sender.send_replace(());
            }
        }
        guard.clear_ready();
    }
}

/// Somebody who follows a log.
#[derive(Debug)]
pub(super) struct Follower {
    log_watch: Arc<LogWatch>,
    number: i32,
    changes: watch::Receiver<()>,
}

impl Follower {
    /// Forgets what has changed so far: it is about to be read.
    pub(super) fn look(&mut self) {
        self.changes.mark_unchanged();
    }

    /// Returns when something has changed since the last look.
    pub(super) async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut followed = self.log_watch.followed();
        // This one is still counted.
        if followed
            .get(&self.number)
            .is_some_and(|sender| sender.receiver_count() <= 1)
        {
            followed.remove(&self.number);
            // Gone already when its directory is.
            let _ = inotify::remove_watch(&self.log_watch.inotify, self.number);
        }
    }
}
