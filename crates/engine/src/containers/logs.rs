//! Reading and following a container's log.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;
use whelk_shim::logs::{Driver, LogRecord, Reader, Selection};

use super::log_watch::{Follower, LogWatch};
use super::readers::FileReader;
use super::{Container, Containers};
use crate::error::{Error, Result};
use crate::instance::through_descriptor;
use crate::workload::blocking;

/// The options of a logs request.
#[derive(Clone, Debug, Default)]
pub struct LogsRequest {
    pub stdout: bool,
    pub stderr: bool,
    pub follow: bool,
    /// Nanoseconds since the epoch.
    pub since: Option<i64>,
    pub until: Option<i64>,
    /// Number of last lines to read. Applied before the other selections.
    pub tail: Option<u64>,
}

/// Log records, or the error that ended the reading.
pub type LogChunk = Result<Vec<LogRecord>>;

/// Interval at which a followed log is polled if inotify is not available, and minimum interval
/// between two reads if it is.
const POLL_INTERVAL: Duration = Duration::from_millis(25);
const MIN_INTERVAL: Duration = Duration::from_millis(5);

impl Containers {
    /// Reads a container's log. Returns whether the container has a terminal, and a channel that
    /// yields the selected records in order and closes at the end of the log.
    ///
    /// # Errors
    /// Returns an error if there is no such container, or if its log driver is `none`.
    pub async fn logs(
        &self,
        name: &str,
        request: LogsRequest,
    ) -> Result<(bool, mpsc::Receiver<LogChunk>)> {
        let container = self.find(name)?;
        if !request.stdout && !request.stderr {
            return Err(Error::invalid(
                "Bad parameters: you must choose at least one stream",
            ));
        }
        let record = container.record().clone();
        let directory = self.instance.container_dir(&record.id);
        let mut config = crate::logging::config(&record.host.log_config, &directory, &record.id)?;
        // Files of the driver `local` do not have them. If they are invalid, nothing was written.
        let described = record.clone();
        let attributes = blocking(move || crate::logging::attributes(&described));
        config.attributes = attributes.await.unwrap_or_default();
        if config.driver == Driver::None {
            return Err(Error::Unsupported(
                "configured logging driver does not support reading".into(),
            ));
        }
        let guard = FileReader::new(&container.log_readers);
        // Read by a descriptor of the directory, because a removal moves the directory.
        let opened = rustix::fs::open(
            &directory,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let directory = opened.map_err(|_| Error::no_such_container(name))?;
        config.path = through_descriptor(
            &directory,
            &config
                .path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy(),
        );
        let selection = Selection {
            tail: request.tail,
            follow: request.follow,
        };
        // Blocking: finding the tail of a long log takes a while.
        let opened = tokio::task::spawn_blocking(move || Reader::open(config, selection)).await;
        let reader = opened.map_err(|error| Error::internal(error.to_string()))??;
        let follower = if request.follow {
            self.follow_log(&directory)
        } else {
            None
        };
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            read(reader, &container, &request, follower, sender).await;
            drop((directory, guard));
        });
        Ok((record.config.tty, receiver))
    }

    /// Subscribes to changes of a log's directory. Returns `None` if inotify is not available or
    /// its limit of watches is reached.
    fn follow_log(&self, directory: &OwnedFd) -> Option<Follower> {
        let watch = self.log_watch.get_or_init(|| {
            LogWatch::start()
                .inspect_err(|error| tracing::warn!("watch logs: {error}"))
                .ok()
        });
        watch.as_ref()?.follow(directory).ok()
    }
}

/// Sends the selected records of a log until its end, or until the receiver is dropped.
async fn read(
    mut reader: Reader,
    container: &Container,
    request: &LogsRequest,
    mut follower: Option<Follower>,
    sender: mpsc::Sender<LogChunk>,
) {
    let mut progress = container.progress.subscribe();
    let first_exits = progress.borrow_and_update().exits;
    loop {
        // Checked before the read, so that everything written before the container's end is read.
        let over = !request.follow || {
            let now = *progress.borrow();
            !now.running || now.exits > first_exits || now.removed
        };
        if let Some(follower) = &mut follower {
            follower.mark_seen();
        }
        let read = tokio::task::spawn_blocking(move || {
            let records = reader.read();
            (reader, records)
        })
        .await;
        let Ok((returned, records)) = read else {
            return;
        };
        reader = returned;
        let records = match records {
            Ok(records) => records,
            Err(error) => {
                let _ = sender.send(Err(error.into())).await;
                return;
            }
        };
        let exhausted = records.is_empty();
        let past_end = records
            .iter()
            .any(|record| request.until.is_some_and(|until| record.time > until));
        let selected = records
            .into_iter()
            .filter(|record| is_selected(record, request))
            .collect::<Vec<_>>();
        if !selected.is_empty() && sender.send(Ok(selected)).await.is_err() {
            return;
        }
        if past_end || exhausted && over {
            return;
        }
        if exhausted {
            let until = request.until.map(|until| {
                until
                    .saturating_sub(crate::events::now())
                    .max(0)
                    .cast_unsigned()
            });
            let grown = async {
                match &mut follower {
                    Some(follower) => {
                        tokio::time::sleep(MIN_INTERVAL).await;
                        follower.changed().await;
                    }
                    None => tokio::time::sleep(POLL_INTERVAL).await,
                }
            };
            let time_is_over = async {
                match until {
                    Some(until) => tokio::time::sleep(Duration::from_nanos(until)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = grown => {}
                () = time_is_over => {}
                changed = progress.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
            if request
                .until
                .is_some_and(|until| crate::events::now() > until)
            {
                return;
            }
        }
    }
}

/// Returns whether the request selects a record.
fn is_selected(record: &LogRecord, request: &LogsRequest) -> bool {
    let stream = match record.stream {
        whelk_shim::logs::Stream::Stdout => request.stdout,
        whelk_shim::logs::Stream::Stderr => request.stderr,
    };
    stream
        && request.since.is_none_or(|since| record.time >= since)
        && request.until.is_none_or(|until| record.time <= until)
}
