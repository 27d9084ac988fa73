//! Reading a container's log, also while it grows.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc;
use whelk_shim::logs::{Driver, Reader, Record};

use super::Containers;
use crate::error::{Error, Result};

#[derive(Clone, Debug, Default)]
pub struct LogsRequest {
    pub stdout: bool,
    pub stderr: bool,
    pub follow: bool,
    /// Nanoseconds since the epoch.
    pub since: Option<i64>,
    pub until: Option<i64>,
    /// Only so many of the last lines.
    pub tail: Option<usize>,
}

/// Some records, or why there are no more.
pub type LogChunk = Result<Vec<Record>>;

/// How often a followed log is looked at. Files cannot be waited for across rotations without a watch per directory;
/// a look at the end of a file costs two microseconds.
const INTERVAL: Duration = Duration::from_millis(25);

impl Containers {
    /// The records asked for, in order, through a channel that ends where the log does. Also says whether the
    /// container has a terminal.
    ///
    /// # Errors
    /// No such container, or a log driver that keeps nothing.
    pub fn logs(&self, name: &str, request: LogsRequest) -> Result<(bool, mpsc::Receiver<LogChunk>)> {
        let container = self.find(name)?;
        if !request.stdout && !request.stderr {
            return Err(Error::invalid("Bad parameters: you must choose at least one stream"));
        }
        let record = container.record().clone();
        let directory = self.instance.container_dir(&record.id);
        let details = crate::logging::Details { labels: Some(&record.config.labels), env: record.config.env.as_ref() };
        let config = crate::logging::config(&record.host.log_config, &directory, &record.id, &details)?;
        if config.driver == Driver::None {
            return Err(Error::Unsupported("configured logging driver does not support reading".into()));
        }
        let mut reader = Reader::open(config)?;
        let mut progress = container.progress.subscribe();
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut tail = request.tail.map(|most| Tail { most, records: VecDeque::new() });
            let first_exits = progress.borrow_and_update().exits;
            loop {
                // Looked at before reading: what is written until then is read below, so nothing is missed.
                let over = !request.follow || {
                    let now = *progress.borrow();
                    !now.running || now.exits > first_exits || now.removed
                };
                let read = tokio::task::spawn_blocking(move || {
                    let records = reader.read();
                    (reader, records)
                })
                .await;
                let Ok((returned, records)) = read else { return };
                reader = returned;
                let records = match records {
                    Ok(records) => records,
                    Err(error) => {
                        let _ = sender.send(Err(error.into())).await;
                        return;
                    }
                };
                let exhausted = records.is_empty();
                let past_end = records.iter().any(|record| request.until.is_some_and(|until| record.time > until));
                let wanted = records.into_iter().filter(|record| wanted(record, &request)).collect::<Vec<_>>();
                let ready = match &mut tail {
                    Some(tail) => tail.take(wanted, exhausted || past_end),
                    None => wanted,
                };
                if exhausted || past_end {
                    tail = None;
                }
                if !ready.is_empty() && sender.send(Ok(ready)).await.is_err() {
                    return;
                }
                if past_end || exhausted && over {
                    return;
                }
                if exhausted {
                    tokio::select! {
                        () = tokio::time::sleep(INTERVAL) => {}
                        changed = progress.changed() => if changed.is_err() { return },
                        () = sender.closed() => return,
                    }
                    if request.until.is_some_and(|until| crate::events::now() > until) {
                        return;
                    }
                }
            }
        });
        Ok((record.config.tty, receiver))
    }
}

fn wanted(record: &Record, request: &LogsRequest) -> bool {
    let stream = match record.stream {
        whelk_shim::logs::Stream::Stdout => request.stdout,
        whelk_shim::logs::Stream::Stderr => request.stderr,
    };
    stream && request.since.is_none_or(|since| record.time >= since) && request.until.is_none_or(|until| record.time <= until)
}

/// Keeps the last records until the end of what is there has been reached.
struct Tail {
    most: usize,
    records: VecDeque<Record>,
}

impl Tail {
    fn take(&mut self, records: Vec<Record>, end: bool) -> Vec<Record> {
        for record in records {
            self.records.push_back(record);
            if self.records.len() > self.most {
                self.records.pop_front();
            }
        }
        if end { self.records.drain(..).collect() } else { Vec::new() }
    }
}
