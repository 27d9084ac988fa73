//! What builds tell of themselves: a list of events, which any number of clients read at their own pace, from its
//! beginning.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use whelk_dockerfile::lint::Warning;
use whelk_engine::events::now;
use whelk_image::progress::Update;
use whelk_llb::Digest;
use whelk_llb::pb::{Range, SourceInfo};
use whelk_sys::sync::IgnorePoison as _;

use crate::error::Error;
use crate::log::{Log, SHORT};

/// Something that has happened to a vertex: an operation of a graph, or work of the builder itself.
#[derive(Clone, Debug)]
pub struct Event {
    /// In nanoseconds since the epoch.
    pub at: i64,
    pub vertex: Digest,
    pub kind: EventKind,
}

#[derive(Clone, Debug)]
pub enum EventKind {
    /// The first event of each vertex.
    Announced {
        /// The name that clients show: `[2/3] RUN make`.
        name: String,
        inputs: Vec<Digest>,
    },
    /// The work has begun. It may have output: pieces come as long as it goes on.
    Started {
        log: Option<Arc<Log>>,
    },
    /// Progress of the download of a base image.
    Pull(Update),
    /// Progress of a transfer from or to a client.
    Transfer {
        /// `transferring context:`
        name: String,
        bytes: u64,
        is_done: bool,
    },
    /// A part of the work has begun, or is done.
    Part {
        name: String,
        is_done: bool,
    },
    Warning(Warning),
    /// A warning of the client's own frontend.
    FrontendWarning(Arc<FrontendWarning>),
    /// The result was there.
    Cached,
    Done,
    Failed(Error),
    /// The work was not begun, or not ended, because the build has failed.
    Left,
}

impl EventKind {
    /// Returns what the event takes of [`MAX_BYTES`].
    fn size(&self) -> usize {
        let held = match self {
            Self::Announced { name, inputs } => name.len() + size_of_val(inputs.as_slice()),
            Self::Pull(update) => update.id.len() + update.source.len(),
            Self::Transfer { name, .. } | Self::Part { name, .. } => name.len(),
            Self::Warning(warning) => warning.detail.len(),
            Self::Failed(error) => error.held(),
            // Warnings of frontends have a limit of their own, and logs are counted by their number.
            Self::FrontendWarning(_)
            | Self::Started { .. }
            | Self::Cached
            | Self::Done
            | Self::Left => 0,
        };
        size_of::<Event>().saturating_add(held)
    }

    /// Returns whether clients can follow a build without the event.
    fn is_detail(&self) -> bool {
        matches!(
            self,
            Self::Pull(_) | Self::Transfer { .. } | Self::Part { .. } | Self::Warning(_)
        )
    }
}

/// Maximum size of the events of a build in bytes, of which details have a half. What exceeds it is left out: frontends and
/// Dockerfiles decide how many events there are, and all are kept to the end of the build.
const MAX_BYTES: usize = 256 << 20;

/// A warning of a frontend that is no part of this engine.
#[derive(Clone, Debug, Default)]
pub struct FrontendWarning {
    pub level: i64,
    pub short: Vec<u8>,
    pub detail: Vec<Vec<u8>>,
    pub url: String,
    pub info: Option<SourceInfo>,
    pub ranges: Vec<Range>,
}

impl FrontendWarning {
    /// Returns what it takes of [`MAX_WARNING_BYTES`].
    fn size(&self) -> usize {
        let lines = self
            .detail
            .iter()
            .map(|line| size_of_val(line) + line.len());
        let info = self.info.as_ref();
        let info = info.map_or(0, |info| {
            info.filename.len() + info.data.len() + info.language.len()
        });
        let ranges = size_of_val(self.ranges.as_slice());
        let texts = self.short.len() + self.url.len() + lines.sum::<usize>();
        size_of::<Self>() + texts + info + ranges
    }
}

/// Maximum number of warnings of a frontend that are kept, and their size in bytes.
const MAX_WARNINGS: usize = 1000;
const MAX_WARNING_BYTES: usize = 16 << 20;

/// The warnings of a frontend that are kept: their number and their size in bytes.
#[derive(Debug, Default)]
struct Room {
    count: usize,
    bytes: usize,
}

/// The events of a build.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Events>);

#[derive(Debug, Default)]
struct Events {
    list: Mutex<List>,
    warnings: Mutex<Room>,
    /// The number of events, and whether these are all.
    count: watch::Sender<(usize, bool)>,
}

#[derive(Debug)]
struct List {
    events: Vec<Event>,
    /// The size of the events, and its maximum.
    bytes: usize,
    most: usize,
    /// The number of logs.
    logs: usize,
}

impl Default for List {
    fn default() -> Self {
        Self {
            events: Vec::new(),
            bytes: 0,
            most: MAX_BYTES,
            logs: 0,
        }
    }
}

impl List {
    /// Adds an event, unless there are too many. Returns whether it was added.
    fn add(&mut self, event: Event) -> bool {
        let most = match event.kind.is_detail() {
            true => self.most / 2,
            false => self.most,
        };
        let bytes = self.bytes.saturating_add(event.kind.size());
        if bytes > most {
            return false;
        }
        self.bytes = bytes;
        if let EventKind::Started { log: Some(_) } = event.kind {
            self.logs += 1;
        }
        self.events.push(event);
        true
    }
}

impl Progress {
    pub(crate) fn add(&self, vertex: Digest, kind: EventKind) {
        let event = Event {
            at: now(),
            vertex,
            kind,
        };
        let mut list = self.0.list.lock().ignore_poison();
        if list.add(event) {
            let count = list.events.len();
            self.0.count.send_modify(|known| known.0 = count);
        }
    }

    /// Adds a warning of a frontend about a step. Returns whether it was kept: there may be too many.
    pub fn warn(&self, vertex: Digest, mut warning: FrontendWarning) -> bool {
        if let Some(info) = &mut warning.info {
            // How the file was made, which clients do not show.
            info.definition = None;
        }
        {
            let mut room = self.0.warnings.lock().ignore_poison();
            let bytes = room.bytes.saturating_add(warning.size());
            if room.count >= MAX_WARNINGS || bytes > MAX_WARNING_BYTES {
                return false;
            }
            room.count += 1;
            room.bytes = bytes;
        }
        self.add(vertex, EventKind::FrontendWarning(Arc::new(warning)));
        true
    }

    /// Begins work of the builder that is no operation of a graph. It has failed if it is dropped.
    pub fn begin(&self, name: impl Into<String>) -> Work {
        let name = name.into();
        let vertex = self.new_vertex(&name);
        self.begin_as(vertex, name)
    }

    /// Like [`Progress::begin`], of the source of a graph with this digest.
    pub(crate) fn begin_as(&self, vertex: Digest, name: String) -> Work {
        let name = cut(name);
        let inputs = Vec::new();
        self.add(vertex, EventKind::Announced { name, inputs });
        self.add(vertex, EventKind::Started { log: None });
        Work {
            progress: self.clone(),
            vertex,
            is_ended: false,
        }
    }

    /// Like [`Progress::begin`], of a process with this output.
    pub(crate) fn begin_logged(&self, name: &str, log: &Arc<Log>) -> Work {
        let vertex = self.new_vertex(name);
        let (name, inputs) = (cut(name.to_owned()), Vec::new());
        self.add(vertex, EventKind::Announced { name, inputs });
        let log = Some(log.clone());
        self.add(vertex, EventKind::Started { log });
        Work {
            progress: self.clone(),
            vertex,
            is_ended: false,
        }
    }

    fn new_vertex(&self, name: &str) -> Digest {
        let number = self.0.count.borrow().0;
        Digest::of(format!("{number} {} {name}", now()).as_bytes())
    }

    /// Returns the size of the events in bytes. A log counts as one that is in memory, also if it is a file.
    pub fn size(&self) -> usize {
        let list = self.0.list.lock().ignore_poison();
        let logs = list.logs.saturating_mul(SHORT);
        let bytes = list.bytes.saturating_add(logs);
        drop(list);
        bytes.saturating_add(self.0.warnings.lock().ignore_poison().bytes)
    }

    /// Ends the list: nothing follows.
    pub fn close(&self) {
        self.0.count.send_modify(|known| known.1 = true);
    }

    pub fn follow(&self) -> Follower {
        Follower {
            events: self.0.clone(),
            count: self.0.count.subscribe(),
            next: 0,
        }
    }
}

/// Maximum length of the name of the builder's own work, in bytes: some names come from frontends.
const MAX_NAME: usize = 4096;

fn cut(mut name: String) -> String {
    name.truncate(beginning(&name, MAX_NAME).len());
    name
}

/// Returns the beginning of a text, of at most so many bytes, in whole characters.
pub(crate) fn beginning(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Reads events in their order.
#[derive(Debug)]
pub struct Follower {
    events: Arc<Events>,
    count: watch::Receiver<(usize, bool)>,
    next: usize,
}

impl Follower {
    /// Waits for the next event. Returns `None` at the end of the list.
    pub async fn next(&mut self) -> Option<Event> {
        let next = self.next;
        let known = self
            .count
            .wait_for(|(count, is_closed)| *count > next || *is_closed);
        // The channel is open: `events` owns the sender.
        known.await.ok()?;
        let list = self.events.list.lock().ignore_poison();
        let event = list.events.get(next).cloned()?;
        drop(list);
        self.next += 1;
        Some(event)
    }
}

/// Work of the builder that clients are told of.
#[derive(Debug)]
pub struct Work {
    progress: Progress,
    pub vertex: Digest,
    is_ended: bool,
}

impl Work {
    pub fn add(&self, kind: EventKind) {
        self.progress.add(self.vertex, kind);
    }

    /// Ends the work, and passes its result on.
    pub fn end<T>(mut self, result: Result<T, Error>) -> Result<T, Error> {
        self.is_ended = true;
        self.add(match &result {
            Ok(_) => EventKind::Done,
            Err(error) => EventKind::Failed(error.without_state()),
        });
        result
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if !self.is_ended {
            self.add(EventKind::Left);
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use whelk_dockerfile::Lines;
    use whelk_dockerfile::lint::Rule;
    use whelk_image::progress::State;

    use super::*;

    #[test]
    fn warnings_have_a_number_and_a_size() {
        let vertex = Digest::of(b"step");
        let progress = Progress::default();
        let own = FrontendWarning::default().size();
        let warn = |progress: &Progress, bytes: usize| {
            let warning = FrontendWarning {
                short: vec![0; bytes - own],
                ..FrontendWarning::default()
            };
            progress.warn(vertex, warning)
        };
        assert!(warn(&progress, MAX_WARNING_BYTES - 1000));
        assert!(!warn(&progress, 1001));
        assert!(warn(&progress, 1000));
        let progress = Progress::default();
        let kept = (0..=MAX_WARNINGS).filter(|_| warn(&progress, 1000));
        assert_eq!(kept.count(), MAX_WARNINGS);
    }

    /// Checks that something takes about as much as the text or the list in it, which has [`LENGTH`] bytes.
    #[track_caller]
    fn is_counted(size: usize) {
        let most = LENGTH + 2000;
        assert!((LENGTH..most).contains(&size), "{size}");
    }

    const LENGTH: usize = 96_000;

    #[test]
    fn events_take_what_they_hold() {
        let text = || "x".repeat(LENGTH);
        let update = Update {
            id: String::new(),
            state: State::Waiting,
            current: 0,
            total: 0,
            source: String::new(),
        };
        let op = Digest::of(b"step");
        let inputs = vec![op; LENGTH / size_of::<Digest>()];
        let step = |cause: Error| Error::Step {
            op,
            cause: Box::new(cause),
        };
        let errors = [
            Error::invalid(text()),
            step(Error::invalid(text())),
            step(Error::internal(text())),
            Error::Unsupported(text()),
            Error::Missing {
                instruction: None,
                path: text(),
            },
            Error::Process {
                command: text(),
                code: 1,
                state: None,
            },
        ];
        let kinds = [
            EventKind::Announced {
                name: text(),
                inputs: Vec::new(),
            },
            EventKind::Announced {
                name: String::new(),
                inputs,
            },
            EventKind::Pull(Update {
                id: text(),
                ..update.clone()
            }),
            EventKind::Pull(Update {
                source: text(),
                ..update
            }),
            EventKind::Transfer {
                name: text(),
                bytes: 0,
                is_done: false,
            },
            EventKind::Part {
                name: text(),
                is_done: false,
            },
            EventKind::Warning(Warning {
                rule: Rule::StageNameCasing,
                detail: text(),
                lines: Lines::default(),
            }),
        ];
        for kind in kinds
            .into_iter()
            .chain(errors.into_iter().map(EventKind::Failed))
        {
            is_counted(kind.size());
        }
        for kind in [EventKind::Cached, EventKind::Done, EventKind::Left] {
            assert_eq!(kind.size(), size_of::<Event>());
        }
    }

    #[test]
    fn warnings_of_frontends_take_what_they_hold() {
        let text = || "x".repeat(LENGTH);
        let bytes = || vec![0; LENGTH];
        let info = |info: SourceInfo| FrontendWarning {
            info: Some(info),
            ..FrontendWarning::default()
        };
        for warning in [
            FrontendWarning {
                short: bytes(),
                ..FrontendWarning::default()
            },
            FrontendWarning {
                detail: vec![bytes()],
                ..FrontendWarning::default()
            },
            // Lines without a text are a few bytes of the request, and more here.
            FrontendWarning {
                detail: vec![Vec::new(); LENGTH / size_of::<Vec<u8>>()],
                ..FrontendWarning::default()
            },
            FrontendWarning {
                url: text(),
                ..FrontendWarning::default()
            },
            FrontendWarning {
                ranges: vec![Range::default(); LENGTH / size_of::<Range>()],
                ..FrontendWarning::default()
            },
            info(SourceInfo {
                filename: text(),
                ..SourceInfo::default()
            }),
            info(SourceInfo {
                data: bytes(),
                ..SourceInfo::default()
            }),
            info(SourceInfo {
                language: text(),
                ..SourceInfo::default()
            }),
        ] {
            is_counted(warning.size());
            let progress = Progress::default();
            assert!(progress.warn(Digest::of(b"step"), warning));
            is_counted(progress.size());
        }
    }

    #[test]
    fn events_have_a_size() {
        let mut list = List {
            most: 100 * size_of::<Event>(),
            ..List::default()
        };
        let mut add = |kind: EventKind| {
            list.add(Event {
                at: 0,
                vertex: Digest::of(b"step"),
                kind,
            })
        };
        let part = || EventKind::Part {
            name: String::new(),
            is_done: true,
        };
        assert_eq!((0..200).filter(|_| add(part())).count(), 50);
        assert_eq!((0..200).filter(|_| add(EventKind::Done)).count(), 50);
    }

    #[test]
    fn logs_count_with_the_memory_that_they_may_take() {
        let scratch = whelk_sys::Scratch::temporary("progress").unwrap();
        let store = whelk_image::Store::open(scratch.path()).unwrap();
        let progress = Progress::default();
        let log = Arc::new(Log::new(&store.staging));
        drop(progress.begin_logged("step", &log));
        assert!(progress.size() > SHORT);
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(cut("é".repeat(MAX_NAME)).len(), MAX_NAME);
        assert_eq!(
            cut(format!("x{}", "é".repeat(MAX_NAME))).len(),
            MAX_NAME - 1
        );
        assert_eq!(cut("short".to_owned()), "short");
    }

    #[tokio::test]
    async fn each_reader_gets_all_events() {
        let progress = Progress::default();
        let work = progress.begin("first");
        let mut early = progress.follow();
        let reader = tokio::spawn(async move {
            let mut kinds = Vec::new();
            while let Some(event) = early.next().await {
                kinds.push(format!("{:?}", event.kind));
            }
            kinds
        });
        tokio::task::yield_now().await;
        work.end(Ok(())).unwrap();
        drop(progress.begin("second"));
        progress.close();
        let mut late = progress.follow();
        let mut count = 0;
        while late.next().await.is_some() {
            count += 1;
        }
        let kinds = reader.await.unwrap();
        assert_eq!((count, kinds.len()), (6, 6));
        assert_eq!(kinds[2], "Done");
        assert_eq!(kinds[5], "Left");
    }
}
