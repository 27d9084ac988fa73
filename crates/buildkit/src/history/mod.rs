//! The history of builds: records of those that have ended, and what clients were told of them.
//!
//! ```text
//! PLACE/records/<digest of the name>   a record (protobuf)
//! PLACE/blobs/<sha256>                 what records refer to
//! PLACE/new/                           blobs that are being written; emptied when it is opened
//! ```
//! A record is written when its blobs are complete, and blobs that no record refers to are removed. Nothing is flushed: after
//! a power loss a record may be missing, or damaged, and is then removed. Builds that run are in memory only.

mod blobs;
mod filter;
mod keep;
mod limits;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use prost::Message as _;
use tokio::sync::broadcast;
use whelk_llb::Digest;
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::grpc::{Result, Status};
use crate::pb::control::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest, Descriptor,
};
use filter::Filters;

pub use blobs::Writer;

/// Number of events that a listener may be late by.
const WAITING: usize = 256;

/// Maximum size of a record's file in bytes: that of a request, with some room.
const MAX_RECORD: u64 = 32 << 20;

/// The history of an engine.
#[derive(Debug)]
pub struct History {
    place: PathBuf,
    /// Held by those who change what is on disk. It is taken before `state`, which is never held meanwhile: calls that
    /// only look wait for no disk.
    disk: Mutex<()>,
    state: Mutex<State>,
    events: broadcast::Sender<Arc<BuildHistoryEvent>>,
}

#[derive(Debug, Default)]
struct State {
    /// Builds that run, by their names.
    active: BTreeMap<String, BuildHistoryRecord>,
    ended: BTreeMap<String, BuildHistoryRecord>,
    /// Builds that run, and are not to be recorded.
    deleted: BTreeSet<String>,
    /// The number of the next blob that is written.
    next: u64,
    /// How many records that are not complete refer to a blob, by its digits.
    held: HashMap<String, usize>,
}

impl State {
    fn release(&mut self, record: &BuildHistoryRecord) {
        for blob in blobs::of(record) {
            let digits = blob.digest.trim_start_matches("sha256:");
            if let Some(count) = self.held.get_mut(digits) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.held.remove(digits);
                }
            }
        }
    }
}

impl History {
    /// Opens the history at a place. Records that cannot be read are removed; if the place cannot be used, there is no
    /// record of any build. Blocking.
    pub fn open(place: &Path) -> Self {
        let history = Self {
            place: place.to_owned(),
            disk: Mutex::default(),
            state: Mutex::default(),
            events: broadcast::channel(WAITING).0,
        };
        if let Err(error) = history.read().and_then(|()| history.collect()) {
            tracing::warn!("history of builds: {error}");
        }
        history
    }

    fn read(&self) -> fs::Result<()> {
        for name in ["records", "blobs"] {
            fs::create_dir_all(self.place.join(name), 0o700)?;
        }
        let new = self.place.join("new");
        if fs::exists(&new) {
            fs::remove_tree(&new)?;
        }
        fs::create_dir(&new, 0o700)?;
        let mut ended = BTreeMap::new();
        for entry in fs::list(self.place.join("records"))? {
            let path = entry.path();
            match self.load(&path) {
                Ok(record) => drop(ended.insert(record.r#ref.clone(), record)),
                Err(reason) => {
                    tracing::warn!("history of builds: {} is removed: {reason}", path.display());
                    fs::remove_file(&path)?;
                }
            }
        }
        self.state.lock().ignore_poison().ended = ended;
        Ok(())
    }

    fn load(&self, path: &Path) -> std::result::Result<BuildHistoryRecord, String> {
        let (bytes, _) = fs::read_regular(path, MAX_RECORD).map_err(|error| error.to_string())?;
        let mut record = BuildHistoryRecord::decode(&*bytes).map_err(|error| error.to_string())?;
        limits::shorten(&mut record);
        if self.path(&record.r#ref) != path {
            return Err(format!("it is the record of {:?}", record.r#ref));
        }
        for blob in blobs::of(&record) {
            let size = blobs::path(&self.place, &blob.digest)
                .and_then(|path| fs::metadata(path).ok())
                .map(|metadata| metadata.len());
            if size != u64::try_from(blob.size).ok() {
                return Err(format!("blob {} is missing", blob.digest));
            }
        }
        Ok(record)
    }

    /// Names of builds are those of clients.
    fn path(&self, name: &str) -> PathBuf {
        let digest = Digest::of(name.as_bytes()).to_string();
        let digits = digest.trim_start_matches("sha256:");
        self.place.join("records").join(digits)
    }

    /// Notes a build that has begun.
    pub fn begin(&self, mut record: BuildHistoryRecord) {
        limits::shorten(&mut record);
        let mut state = self.state.lock().ignore_poison();
        state.active.insert(record.r#ref.clone(), record.clone());
        self.tell(BuildHistoryEventType::Started, record);
    }

    /// Keeps the record of a build that has ended, whose blobs were written. Blocking.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn complete(&self, mut record: BuildHistoryRecord) -> fs::Result<()> {
        limits::shorten(&mut record);
        record.generation += 1;
        let _disk = self.disk.lock().ignore_poison();
        let is_deleted = {
            let mut state = self.state.lock().ignore_poison();
            state.release(&record);
            // It may have been pinned while it ran.
            if let Some(active) = state.active.get(&record.r#ref) {
                record.pinned |= active.pinned;
            }
            let is_deleted = state.deleted.remove(&record.r#ref);
            if is_deleted {
                state.active.remove(&record.r#ref);
            }
            is_deleted
        };
        if !is_deleted {
            fs::replace(self.path(&record.r#ref), record.encode_to_vec(), 0o600)?;
            let mut state = self.state.lock().ignore_poison();
            state.active.remove(&record.r#ref);
            state.ended.insert(record.r#ref.clone(), record.clone());
            self.tell(BuildHistoryEventType::Complete, record);
        }
        self.collect()
    }

    /// Forgets a build that runs without a record of it.
    pub fn forget(&self, name: &str) {
        let mut state = self.state.lock().ignore_poison();
        state.active.remove(name);
        state.deleted.remove(name);
    }

    /// Pins a record, so that it is kept, or not. Blocking.
    ///
    /// # Errors
    /// Returns an error if there is no such record, or if it cannot be written.
    pub fn pin(&self, name: &str, is_pinned: bool) -> Result<()> {
        let _disk = self.disk.lock().ignore_poison();
        if let Some(record) = self.state.lock().ignore_poison().active.get_mut(name) {
            record.pinned = is_pinned;
            return Ok(());
        }
        self.change(name, |record| record.pinned = is_pinned)
    }

    /// Adds the trace of a build that has ended, which was written, to its record. Blocking.
    ///
    /// # Errors
    /// Returns an error if there is no such record, or if it cannot be written.
    pub fn add_trace(&self, name: &str, trace: Descriptor) -> Result<()> {
        let added = BuildHistoryRecord {
            trace: Some(trace.clone()),
            ..BuildHistoryRecord::default()
        };
        let _disk = self.disk.lock().ignore_poison();
        let changed = self.change(name, |record| record.trace = Some(trace));
        // If that has failed, nothing refers to it, and the next collection removes it.
        self.state.lock().ignore_poison().release(&added);
        changed
    }

    /// Changes the record of a build that has ended. The caller holds `disk`.
    fn change(&self, name: &str, change: impl FnOnce(&mut BuildHistoryRecord)) -> Result<()> {
        let state = self.state.lock().ignore_poison();
        let record = state.ended.get(name).ok_or_else(|| unknown(name))?;
        let mut changed = record.clone();
        drop(state);
        change(&mut changed);
        changed.generation += 1;
        fs::replace(self.path(name), changed.encode_to_vec(), 0o600).map_err(failed)?;
        let mut state = self.state.lock().ignore_poison();
        state.ended.insert(name.to_owned(), changed.clone());
        self.tell(BuildHistoryEventType::Complete, changed);
        Ok(())
    }

    /// Removes a record, also a pinned one; that of a build that runs when it has ended. Blocking.
    ///
    /// # Errors
    /// Returns an error if there is no such record, or if it cannot be removed.
    pub fn delete(&self, name: &str) -> Result<()> {
        let _disk = self.disk.lock().ignore_poison();
        {
            let mut state = self.state.lock().ignore_poison();
            if state.active.contains_key(name) {
                state.deleted.insert(name.to_owned());
                return Ok(());
            }
            if !state.ended.contains_key(name) {
                return Err(unknown(name));
            }
        }
        self.remove(name).map_err(failed)?;
        self.collect().map_err(failed)
    }

    /// Removes a record. The caller holds `disk`.
    fn remove(&self, name: &str) -> fs::Result<()> {
        fs::remove_if_exists(self.path(name))?;
        let mut state = self.state.lock().ignore_poison();
        state.ended.remove(name);
        let record = BuildHistoryRecord {
            r#ref: name.to_owned(),
            ..BuildHistoryRecord::default()
        };
        self.tell(BuildHistoryEventType::Deleted, record);
        Ok(())
    }

    /// Whether a build has ended and is recorded.
    pub fn get(&self, name: &str) -> Option<BuildHistoryRecord> {
        self.state.lock().ignore_poison().ended.get(name).cloned()
    }

    /// Returns what a client asks for, and a source of the events that follow: of builds that run, also their ends.
    ///
    /// # Errors
    /// Returns an error for a filter that is not valid, and for a negative limit.
    pub fn listen(
        &self,
        request: &BuildHistoryRequest,
    ) -> Result<(Vec<BuildHistoryEvent>, Events)> {
        let filters = Filters::parse(&request.filter, jiff::Timestamp::now().as_second())?;
        let limit = usize::try_from(request.limit)
            .map_err(|_| Status::invalid(format!("invalid limit {}", request.limit)))?;
        let state = self.state.lock().ignore_poison();
        let is_wanted = |record: &&BuildHistoryRecord| {
            let name = &request.r#ref;
            (name.is_empty() || record.r#ref == *name)
                && !state.deleted.contains(&record.r#ref)
                && filters.hold(record)
        };
        let event = |kind: BuildHistoryEventType, record: &BuildHistoryRecord| BuildHistoryEvent {
            kind: kind.into(),
            record: Some(record.clone()),
        };
        let active = state.active.values().filter(is_wanted);
        let mut events: Vec<BuildHistoryEvent> = active
            .map(|record| event(BuildHistoryEventType::Started, record))
            .collect();
        if !request.active_only {
            let mut ended: Vec<&BuildHistoryRecord> =
                state.ended.values().filter(is_wanted).collect();
            // The newest first.
            ended.sort_by_key(|record| std::cmp::Reverse(record.created_at));
            if limit > 0 {
                ended.truncate(limit);
            }
            let ended = ended.into_iter();
            events.extend(ended.map(|record| event(BuildHistoryEventType::Complete, record)));
        }
        let events_to_come = Events {
            receiver: self.events.subscribe(),
            name: request.r#ref.clone(),
            filters,
        };
        Ok((events, events_to_come))
    }

    fn tell(&self, kind: BuildHistoryEventType, record: BuildHistoryRecord) {
        // An error: nobody listens.
        let _ = self.events.send(Arc::new(BuildHistoryEvent {
            kind: kind.into(),
            record: Some(record),
        }));
    }
}

/// Events of builds as they happen.
#[derive(Debug)]
pub struct Events {
    receiver: broadcast::Receiver<Arc<BuildHistoryEvent>>,
    name: String,
    filters: Filters,
}

impl Events {
    /// Waits for the next event that is asked for.
    ///
    /// # Errors
    /// Returns an error if it comes too late.
    pub async fn next(&mut self) -> Result<Arc<BuildHistoryEvent>> {
        loop {
            let event = self.receiver.recv().await.map_err(|_| {
                Status::unavailable("events of builds were missed: ask for them again")
            })?;
            let Some(record) = &event.record else {
                continue;
            };
            let is_deleted = event.kind == i32::from(BuildHistoryEventType::Deleted);
            let is_named = self.name.is_empty() || record.r#ref == self.name;
            if is_named && (is_deleted || self.filters.hold(record)) {
                return Ok(event);
            }
        }
    }
}

fn unknown(name: &str) -> Status {
    Status::not_found(format!("build {name} is not in the history"))
}

fn failed(error: fs::PathError) -> Status {
    Status::unknown(format!("history of builds: {error}"))
}

#[cfg(test)]
mod tests;
