//! What the build cache uses of the disk, and its removal.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::Metadata;
use std::io::{Read, Write};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use whelk_engine::events::now;
use whelk_engine::filters::Filters;
use whelk_image::Digest;
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::cache::Row;
use crate::caches::{self, Used};
use crate::error::Result;
use crate::gc::{self, Disk, Policy, Record, RecordKind};
use crate::{Builder, blocking};

/// What was removed.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    pub records: Vec<Record>,
    /// In bytes.
    pub freed: u64,
}

/// A cache of steps, which is not removed meanwhile.
#[derive(Debug)]
pub struct HeldCache(Used);

impl HeldCache {
    /// Writes its files as an archive. Blocking.
    ///
    /// # Errors
    /// Returns an error if they cannot be read or written.
    pub fn export(&self, output: impl Write) -> Result<()> {
        let files = self.0.path.join("fs");
        Ok(whelk_image::snapshots::export_directory(&files, output)?)
    }
}

/// A directory on disk that has an entry in the list of the cache: a cache of steps, a client's directory, or what was fetched
/// from a server.
#[derive(Clone, Debug)]
pub struct StoredDirectory {
    /// Its name on disk.
    pub name: String,
    /// What a Dockerfile, or a client, calls it.
    pub id: String,
    /// In bytes.
    pub size: u64,
    pub is_used: bool,
    /// Nanoseconds since the epoch.
    pub created: i64,
    pub used: i64,
}

impl StoredDirectory {
    /// Returns the description of a directory. `times` is the metadata of the file whose times are those of its creation and of its
    /// last use.
    pub fn new(
        name: String,
        id: String,
        size: u64,
        is_used: bool,
        times: Option<&Metadata>,
    ) -> Self {
        let nanoseconds = |time: Option<std::io::Result<SystemTime>>| {
            let since = time?.ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            i64::try_from(since.as_nanos()).ok()
        };
        Self {
            name,
            id,
            size,
            is_used,
            created: nanoseconds(times.map(Metadata::created)).unwrap_or(0),
            used: nanoseconds(times.map(Metadata::modified)).unwrap_or(0),
        }
    }
}

/// Directories of clients that are kept from one build to the next.
pub trait Locals: std::fmt::Debug + Send + Sync {
    /// Returns those on disk. Blocking.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    fn list(&self) -> Result<Vec<StoredDirectory>>;

    /// Removes one that no build uses. Returns whether it was removed. Blocking.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    fn remove(&self, name: &str) -> Result<bool>;
}

/// When the cache was kept to its budget last, and whether that will be done again.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    last: Option<Instant>,
    is_scheduled: bool,
}

/// Has the build cache kept to its budget when it is dropped.
#[derive(Debug)]
pub(crate) struct CollectionAtEnd(Weak<Builder>);

impl CollectionAtEnd {
    pub fn new(builder: &Arc<Builder>) -> Self {
        Self(Arc::downgrade(builder))
    }
}

impl Drop for CollectionAtEnd {
    fn drop(&mut self) {
        if let Some(builder) = self.0.upgrade() {
            builder.keep_to_budget();
        }
    }
}

/// Where a record is kept.
#[derive(Debug)]
enum Place {
    Result(i64),
    Cache(String),
    Local(String),
    Web(String),
    Git(String),
}

impl Builder {
    /// Sets where the directories of clients are.
    pub fn set_locals(&self, locals: &Arc<dyn Locals>) {
        *self.locals.lock().ignore_poison() = Some(Arc::downgrade(locals));
    }

    fn locals(&self) -> Option<Arc<dyn Locals>> {
        self.locals.lock().ignore_poison().as_ref()?.upgrade()
    }

    /// Returns the records of the build cache. Blocking.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub fn usage(&self) -> Result<Vec<Record>> {
        let records = self.records()?.into_iter();
        Ok(records.map(|(_, record)| record).collect())
    }

    /// Takes a cache of steps (`RUN --mount=type=cache`), to write what it has as an archive. `wanted` is its id or its
    /// record's. Blocking.
    ///
    /// # Errors
    /// Returns an error if there is no such cache, or if a build uses it alone.
    pub fn hold_cache(&self, wanted: &str) -> Result<HeldCache> {
        self.caches.hold(wanted).map(HeldCache)
    }

    /// Unpacks an archive into a cache of steps, which is created if there is none. Returns its record's id. Blocking.
    ///
    /// # Errors
    /// Returns an error if a build uses it, or if the archive is invalid.
    pub fn import_cache(self: &Arc<Self>, wanted: &str, input: impl Read + Send) -> Result<String> {
        let name = self.caches.import(self.store(), wanted, input)?;
        self.keep_to_budget();
        Ok(caches::record_id(&name))
    }

    fn records(&self) -> Result<Vec<(Place, Record)>> {
        let rows = self.cache.rows()?;
        let mut all = self.results(&rows)?;
        let record = |kept: &StoredDirectory, kind: RecordKind, description: String| Record {
            id: match kind {
                RecordKind::CacheMount => caches::record_id(&kept.name),
                // Keys may differ only at their ends.
                _ => id_of(&kept.name),
            },
            kind,
            description,
            in_use: kept.is_used,
            size: kept.size,
            created: kept.created,
            used: kept.used,
            ..Record::default()
        };
        for kept in self.caches.list()? {
            let name = kept.id.trim_start_matches('/');
            let id = serde_json::to_string(&kept.id).unwrap_or_default();
            let description = format!("cached mount {name} with id {id}");
            let record = record(&kept, RecordKind::CacheMount, description);
            all.push((Place::Cache(kept.name), record));
        }
        let locals = self.locals().map(|locals| locals.list());
        for kept in locals.transpose()?.unwrap_or_default() {
            let description = format!("local source for {}", kept.id);
            let record = record(&kept, RecordKind::Local, description);
            all.push((Place::Local(kept.name), record));
        }
        for kept in self.web.fetched.list()? {
            let record = record(&kept, RecordKind::Regular, kept.id.clone());
            all.push((Place::Web(kept.name), record));
        }
        for kept in self.git.list()? {
            let record = record(&kept, RecordKind::Git, kept.id.clone());
            all.push((Place::Git(kept.name), record));
        }
        Ok(all)
    }

    /// Returns the records of results. The size of each is that of the layers that it has above its parent's.
    fn results(&self, rows: &[Row]) -> Result<Vec<(Place, Record)>> {
        let of_images = self.layers_of_images()?;
        let stacks: Vec<Vec<Vec<&Digest>>> = rows
            .iter()
            .map(|row| {
                let outputs = row.outputs.iter().flatten();
                outputs
                    .map(|output| output.iter().map(|(layer, _)| layer).collect())
                    .collect()
            })
            .collect();
        let mut by_stack: HashMap<&[&Digest], usize> = HashMap::new();
        for (index, outputs) in stacks.iter().enumerate() {
            for stack in outputs {
                by_stack.entry(stack).or_insert(index);
            }
        }
        let mut sizes: HashMap<&Digest, u64> = HashMap::new();
        let mut counted: HashSet<&Digest> = HashSet::new();
        let mut all = Vec::with_capacity(rows.len());
        for (index, row) in rows.iter().enumerate() {
            let parents = stacks[index].iter().map(|stack| {
                (1..stack.len()).rev().find_map(|length| {
                    let found = by_stack.get(&stack[..length]).copied();
                    // The outputs of one operation may stand on each other's layers.
                    found
                        .filter(|found| *found != index)
                        .map(|found| (found, length))
                })
            });
            let parents: Vec<Option<(usize, usize)>> = parents.collect();
            let outputs = row.outputs.iter().flatten().zip(&parents);
            // Those of a base image have no time.
            let own = outputs.flat_map(|(output, parent)| {
                let own = output.iter().skip(parent.map_or(0, |(_, length)| length));
                own.filter(|(_, created)| *created != 0)
            });
            let own: Vec<&Digest> = own.map(|(layer, _)| layer).collect();
            let parent = parents.iter().flatten().next();
            let mut size = 0;
            for layer in own.iter().copied().filter(|layer| counted.insert(*layer)) {
                let snapshots = &self.store().snapshots;
                size += *sizes
                    .entry(layer)
                    .or_insert_with(|| snapshots.size(layer).unwrap_or(0));
            }
            let record = Record {
                id: id_of(row.id),
                parent: parent.map(|(parent, _)| id_of(rows[*parent].id)),
                kind: RecordKind::Regular,
                description: row.text.clone(),
                in_use: row.in_use,
                shared: !own.is_empty() && own.iter().all(|layer| of_images.contains(layer)),
                size,
                created: row.created,
                used: row.used,
                uses: row.uses,
            };
            all.push((Place::Result(row.id), record));
        }
        Ok(all)
    }

    fn layers_of_images(&self) -> Result<HashSet<Digest>> {
        let images = self.engine.images.list(&Filters::default(), true)?;
        let layers = images.iter();
        let layers = layers.flat_map(|listed| listed.image.config.rootfs.diff_ids.iter().cloned());
        Ok(layers.collect())
    }

    /// Removes what a policy says of the build cache, and publishes the event. Blocking.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub fn prune(&self, policy: &Policy) -> Result<Pruned> {
        let pruned = self.remove(&mut self.records()?, policy)?;
        if policy.is_everything() {
            // They have names of the user's files.
            self.cache.forget_ingredients()?;
            self.settled.clear();
        }
        let reclaimed = pruned.freed.to_string();
        let attributes = BTreeMap::from([("reclaimed".to_owned(), reclaimed)]);
        self.engine
            .events
            .publish("builder", "prune", String::new(), attributes);
        Ok(pruned)
    }

    /// Removes what a policy says of these records, also from the list.
    fn remove(&self, all: &mut Vec<(Place, Record)>, policy: &Policy) -> Result<Pruned> {
        let records: Vec<Record> = all.iter().map(|(_, record)| record.clone()).collect();
        let chosen = gc::choose(&records, policy, now(), self.disk()?);
        let results = chosen.iter().filter_map(|&index| match &all[index].0 {
            Place::Result(id) => Some(*id),
            _ => None,
        });
        let removed = self.cache.remove(&results.collect::<Vec<_>>())?;
        let removed: HashSet<i64> = removed.into_iter().collect();
        let locals = self.locals();
        let mut gone = HashSet::new();
        for &index in &chosen {
            let is_gone = match &all[index].0 {
                Place::Result(id) => removed.contains(id),
                Place::Cache(name) => self.caches.remove(self.store(), name)?,
                Place::Local(name) => match &locals {
                    Some(locals) => locals.remove(name)?,
                    None => false,
                },
                Place::Web(name) => self.web.fetched.remove(name)?,
                Place::Git(name) => self.git.remove(name)?,
            };
            if is_gone {
                gone.insert(index);
            }
        }
        if !removed.is_empty() {
            self.engine.images.collect_unused();
        }
        let chosen = chosen.into_iter().filter(|index| gone.contains(index));
        let records: Vec<Record> = chosen.map(|index| records[index].clone()).collect();
        let mut index = 0;
        all.retain(|_| {
            index += 1;
            !gone.contains(&(index - 1))
        });
        // Layers of images stay.
        let freed = records.iter().filter(|record| !record.shared);
        let freed = freed.map(|record| record.size);
        let freed = freed.fold(0, u64::saturating_add);
        Ok(Pruned { records, freed })
    }

    fn disk(&self) -> Result<Disk> {
        let root = self.store().staging.root();
        let found = rustix::fs::statvfs(root).map_err(fs::at("statvfs", root))?;
        Ok(Disk {
            total: found.f_blocks.saturating_mul(found.f_frsize),
            free: found.f_bavail.saturating_mul(found.f_frsize),
        })
    }

    /// Keeps the build cache to its budget, after a build: now, or later if that was done lately.
    pub(crate) fn keep_to_budget(self: &Arc<Self>) {
        const INTERVAL: Duration = Duration::from_secs(60);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if !self.gc.is_collected {
            return;
        }
        let wait = {
            let mut collected = self.collected.lock().ignore_poison();
            if collected.is_scheduled {
                return;
            }
            collected.is_scheduled = true;
            let passed = collected.last.map(|last| last.elapsed());
            passed.map_or(Duration::ZERO, |passed| INTERVAL.saturating_sub(passed))
        };
        let builder = Arc::downgrade(self);
        runtime.spawn(async move {
            tokio::time::sleep(wait).await;
            let Some(builder) = builder.upgrade() else {
                return;
            };
            *builder.collected.lock().ignore_poison() = Collected {
                last: Some(Instant::now()),
                is_scheduled: false,
            };
            if let Err(error) = blocking(move || builder.collect()).await {
                tracing::warn!("keep the build cache to its budget: {error}");
            }
        });
    }

    /// Returns the policies that the build cache is kept to; none if it is not collected.
    ///
    /// # Errors
    /// Returns an error if the size of the disk cannot be had.
    pub fn policies(&self) -> Result<Vec<Policy>> {
        let own = &self.gc.policies;
        if !self.gc.is_collected {
            return Ok(Vec::new());
        }
        if !own.is_empty() {
            return Ok(own.clone());
        }
        let space = match &self.gc.space {
            Some(space) => space.clone(),
            None => gc::default_space(self.disk()?),
        };
        Ok(gc::default_policies(space))
    }

    fn collect(&self) -> Result<()> {
        let mut records = self.records()?;
        for policy in &self.policies()? {
            let pruned = self.remove(&mut records, policy)?;
            if !pruned.records.is_empty() {
                let (count, freed) = (pruned.records.len(), pruned.freed);
                tracing::info!("removed {count} records of the build cache, {freed} bytes");
            }
        }
        Ok(())
    }
}

/// The number of digits of a record's id.
pub(crate) const ID: usize = 25;

/// Returns the id of a record.
fn id_of(record: impl std::fmt::Display) -> String {
    let digest = whelk_llb::Digest::of(format!("record {record}").as_bytes());
    let digits = digest.to_string();
    digits
        .trim_start_matches("sha256:")
        .chars()
        .take(ID)
        .collect()
}
