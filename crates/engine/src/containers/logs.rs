//! Reading a container's log, also while it grows.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;
use whelk_shim::logs::{Driver, LogRecord, Reader, Selection};

use super::log_watch::{Follower, LogWatch};
use super::{Container, Containers};
use crate::error::{Error, Result};
use crate::instance::through_descriptor;

#[derive(Clone, Debug, Default)]
pub struct LogsRequest {
    pub stdout: bool,
    pub stderr: bool,
    pub follow: bool,
    /// Nanoseconds since the epoch.
    pub since: Option<i64>,
    pub until: Option<i64>,
    /// Only so many of the last lines, before anything else is selected.
    pub tail: Option<u64>,
}

/// Some records, or why there are no more.
pub type LogChunk = Result<Vec<LogRecord>>;

/// How often a followed log is looked at where its growth is not told, and how often at the most
/// where it is.
const INTERVAL: Duration = Duration::from_millis(25);
const SHORTEST: Duration = Duration::from_millis(5);

/// Counts a reader of a container's log as long as it lives: the files of a removed container are
/// deleted after that.
struct Reading(Arc<Container>);

impl Reading {
    fn new(container: &Arc<Container>) -> Self {
        container.readers.send_modify(|readers| *readers += 1);
        Self(container.clone())
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.readers.send_modify(|readers| *readers -= 1);
    }
}

impl Containers {
    /// The records asked for, in order, through a channel that ends where the log does. Also says
    /// whether the container has a terminal.
    ///
    /// # Errors
    /// No such container, or a log driver that keeps nothing.
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
        let details = crate::logging::Details {
            labels: Some(&record.config.labels),
            env: record.config.env.as_ref(),
        };
        let mut config =
            crate::logging::config(&record.host.log_config, &directory, &record.id, &details)?;
        if config.driver == Driver::None {
            return Err(Error::Unsupported(
                "configured logging driver does not support reading".into(),
            ));
        }
        let reading = Reading::new(&container);
        // A container that is removed meanwhile has its directory moved: the log is read through a
        // descriptor.
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
        // Finding the tail of a long log takes a while.
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
            drop((directory, reading));
        });
        Ok((record.config.tty, receiver))
    }

    /// Who tells when the log in a directory grows; `None` where the kernel has no more watches to
    /// give.
    fn follow_log(&self, directory: &OwnedFd) -> Option<Follower> {
        let watch = self.log_watch.get_or_init(|| {
            LogWatch::start()
                .inspect_err(|error| tracing::warn!("watch logs: {error}"))
                .ok()
        });
        watch.as_ref()?.follow(directory).ok()
    }
}

/// Sends the records of a log that are asked for until its end, or until nobody wants them any
/// more.
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
        // Looked at before reading: what is written until then is read below, so nothing is missed.
        let over = !request.follow || {
            let now = *progress.borrow();
            !now.running || now.exits > first_exits || now.removed
        };
        if let Some(follower) = &mut follower {
            follower.look();
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
        let wanted = records
            .into_iter()
            .filter(|record| wanted(record, request))
            .collect::<Vec<_>>();
        if !wanted.is_empty() && sender.send(Ok(wanted)).await.is_err() {
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
                        tokio::time::sleep(SHORTEST).await;
                        follower.changed().await;
                    }
                    None => tokio::time::sleep(INTERVAL).await,
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

fn wanted(record: &LogRecord, request: &LogsRequest) -> bool {
    let stream = match record.stream {
        whelk_shim::logs::Stream::Stdout => request.stdout,
        whelk_shim::logs::Stream::Stderr => request.stderr,
    };
    stream
        && request.since.is_none_or(|since| record.time >= since)
        && request.until.is_none_or(|until| record.time <= until)
}
