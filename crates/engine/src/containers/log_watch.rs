//! Notification of log growth without polling: one inotify instance for all logs that are followed.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// The inotify instance and its watches, one per container directory.
#[derive(Debug)]
pub(super) struct LogWatch {
    inotify: OwnedFd,
    /// The followers' channel by inotify watch descriptor.
    followed: Mutex<HashMap<i32, watch::Sender<()>>>,
}

impl LogWatch {
    /// Creates the inotify instance and spawns the task that reads its events for as long as the
    /// engine runs.
    ///
    /// # Errors
    /// Returns an error if the limit of inotify instances of the user is reached.
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

    /// Watches a container's directory for writes to its files and for rotation.
    pub(super) fn follow(self: &Arc<Self>, directory: &OwnedFd) -> io::Result<Follower> {
        let path = fs::descriptor_path(directory);
        // Under the lock: inotify returns the same watch descriptor for the same directory, and
        // another follower of it may just be removing the watch.
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
        self.followed.lock().ignore_poison()
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

/// A subscription to the changes of one log.
#[derive(Debug)]
pub(super) struct Follower {
    log_watch: Arc<LogWatch>,
    number: i32,
    changes: watch::Receiver<()>,
}

impl Follower {
    /// Marks the changes so far as seen. Called before the log is read.
    pub(super) fn mark_seen(&mut self) {
        self.changes.mark_unchanged();
    }

    /// Waits until something has changed since the last [`Follower::mark_seen`].
    pub(super) async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut followed = self.log_watch.followed();
        // The receiver of this follower is still counted.
        if followed
            .get(&self.number)
            .is_some_and(|sender| sender.receiver_count() <= 1)
        {
            followed.remove(&self.number);
            // The kernel removes the watch by itself when the directory is deleted.
            let _ = inotify::remove_watch(&self.log_watch.inotify, self.number);
        }
    }
}
