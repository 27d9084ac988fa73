//! Progress reports of operations on images, for each item, such as a layer.
//!
//! Reports are throttled here: the sender can report every piece that it has processed, and the receiver
//! gets at most ten reports per second and item.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Minimum time between two reports on an item, apart from its first and its last.
const INTERVAL: Duration = Duration::from_millis(100);

/// What happens to an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A layer of an image archive is unpacked.
    LoadingLayer,
    /// A layer of an image in a registry is to be downloaded.
    Pulling,
    /// A layer's download waits for other downloads.
    Waiting,
    Downloading,
    /// A layer's download has failed, and is retried after a wait.
    Retrying {
        seconds: u64,
    },
    /// A layer's download is retried after the wait that the registry has requested.
    Delayed {
        seconds: u64,
    },
    DownloadComplete,
    /// The download is complete; the rest of the layer is unpacked.
    Extracting,
    PullComplete,
    /// The store has the layer.
    AlreadyExists,
    /// A layer is to be pushed.
    Preparing,
    Pushing,
    Pushed,
    /// The registry has the layer.
    LayerExists,
    /// The layer is at URLs of its own, and is not pushed.
    SkippedForeign,
    /// The registry has mounted the layer from another repository.
    Mounted,
}

/// A report on an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Update {
    /// Identifies the item among those of the operation. For a layer, 12 digits of a digest.
    pub id: String,
    pub state: State,
    /// In bytes.
    pub current: u64,
    /// In bytes; 0 if unknown.
    pub total: u64,
    /// The repository that a layer was mounted from; empty in other states.
    pub source: String,
}

/// The receiver of an operation's reports.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<dyn Fn(Update) + Send + Sync>>);

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Progress({})", self.0.is_some())
    }
}

impl Progress {
    /// Returns a receiver that ignores reports.
    pub fn none() -> Self {
        Self(None)
    }

    /// Returns a receiver that calls `report`, on the threads that do the work; it must return quickly.
    pub fn to(report: impl Fn(Update) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(report)))
    }

    /// Returns an item of the operation, `total` bytes long. Nothing is reported yet.
    pub fn item(&self, id: &str, state: State, total: u64) -> Item {
        Item {
            progress: self.clone(),
            update: Update {
                id: id.to_owned(),
                state,
                current: 0,
                total,
                source: String::new(),
            },
            reported: None,
        }
    }

    /// Returns a reader of an item's bytes that reports how many of `total` were read.
    pub fn reader<R: Read>(&self, inner: R, id: &str, state: State, total: u64) -> Reader<R> {
        Reader {
            inner,
            item: self.item(id, state, total),
        }
    }
}

/// An item whose position is reported.
#[derive(Debug)]
pub struct Item {
    progress: Progress,
    update: Update,
    /// Time and position of the last report.
    reported: Option<(Instant, u64)>,
}

impl Item {
    /// Changes the state, and reports it.
    pub fn enter(&mut self, state: State) {
        self.update.state = state;
        self.update.current = 0;
        self.reported = None;
        self.report();
    }

    /// Reports that a layer was mounted from another repository.
    pub fn mounted(&mut self, source: &str) {
        source.clone_into(&mut self.update.source);
        self.enter(State::Mounted);
    }

    /// Adds to the position. The last position is to be marked with `is_end`.
    pub fn advance(&mut self, count: u64, is_end: bool) {
        if self.progress.0.is_none() {
            return;
        }
        self.update.current += count;
        let current = self.update.current;
        let is_due = self.reported.is_none_or(|(last, position)| {
            position != current && (is_end || last.elapsed() >= INTERVAL)
        });
        if is_due {
            self.report();
        }
    }

    fn report(&mut self) {
        if let Some(report) = &self.progress.0 {
            self.reported = Some((Instant::now(), self.update.current));
            report(self.update.clone());
        }
    }
}

/// A reader that reports its position.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    item: Item,
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let is_end = count == 0 && !buffer.is_empty();
        self.item.advance(count as u64, is_end);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Reads `pieces` pieces of 10 bytes, and waits before each. Returns the reported positions.
    fn reports(pieces: u64, wait: Duration) -> Vec<u64> {
        let list = Arc::new(Mutex::new(Vec::new()));
        let reports = list.clone();
        let progress = Progress::to(move |update| reports.lock().unwrap().push(update));
        let input = io::repeat(0).take(10 * pieces);
        let mut reader = progress.reader(input, "a", State::LoadingLayer, 10 * pieces);
        let mut buffer = [0; 10];
        while reader.read(&mut buffer).unwrap() > 0 {
            std::thread::sleep(wait);
        }
        assert_eq!(reader.read(&mut buffer).unwrap(), 0);
        let list = list.lock().unwrap();
        assert!(
            list.iter()
                .all(|update| update.id == "a" && update.total == 10 * pieces)
        );
        list.iter().map(|update| update.current).collect()
    }

    #[test]
    fn limits_the_reports_between_the_first_and_the_last() {
        let many = reports(10_000, Duration::ZERO);
        assert_eq!((many[0], many[many.len() - 1]), (10, 100_000));
        // Even if this machine stops for seconds.
        assert!(many.len() < 500, "{}", many.len());
        assert!(many.is_sorted());
        assert_eq!(reports(3, INTERVAL), [10, 20, 30]);
        assert_eq!(reports(1, Duration::ZERO), [10]);
        assert_eq!(reports(0, Duration::ZERO), [0]);
    }

    #[test]
    fn reads_without_a_receiver_of_progress() {
        let input = &b"content"[..];
        let mut reader = Progress::none().reader(input, "a", State::LoadingLayer, 7);
        assert_eq!(io::copy(&mut reader, &mut io::sink()).unwrap(), 7);
    }
}
