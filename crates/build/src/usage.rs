//! What the build cache uses of the disk, and its removal.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use whelk_engine::events::now;
use whelk_engine::filters::Filters;
use whelk_image::Digest;
use whelk_sys::fs;
use whelk_sys::sync::IgnorePoison as _;

use crate::Builder;
use crate::cache::Row;
use crate::caches::Used;
use crate::error::Result;
use crate::gc::{self, Disk, Policy, Record, RecordKind};

/// What was removed.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    pub ids: Vec<String>,
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

/// Where a record is kept.
enum Place {
    Result(i64),
    Cache(String),
}

impl Builder {
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
    pub fn import_cache(&self, wanted: &str, input: impl Read + Send) -> Result<String> {
        let name = self.caches.import(self.store(), wanted, input)?;
        Ok(name.chars().take(ID).collect())
    }

    fn records(&self) -> Result<Vec<(Place, Record)>> {
        let rows = self.cache.rows()?;
        let mut all = self.results(&rows)?;
        for kept in self.caches.list()? {
            let id: String = kept.name.chars().take(ID).collect();
            let record = Record {
                id,
                kind: RecordKind::CacheMount,
                description: format!(
                    "cached mount {} with id {:?}",
                    kept.id.trim_start_matches('/'),
                    kept.id
                ),
                in_use: kept.is_used,
                size: kept.size,
                created: kept.created,
                used: kept.used,
                ..Record::default()
            };
            all.push((Place::Cache(kept.name), record));
        }
        Ok(all)
    }

    /// Returns the records of results. The size of each is that of the layers that it has above its parent's.
    fn results(&self, rows: &[Row]) -> Result<Vec<(Place, Record)>> {
        let of_images = self.layers_of_images()?;
        let stacks: Vec<Vec<&Digest>> = rows
            .iter()
            .map(|row| {
                row.outputs
                    .iter()
                    .take(1)
                    .flatten()
                    .map(|(layer, _)| layer)
                    .collect()
            })
            .collect();
        let mut by_stack: HashMap<&[&Digest], usize> = HashMap::new();
        for (index, stack) in stacks.iter().enumerate() {
            by_stack.entry(stack).or_insert(index);
        }
        let mut sizes: HashMap<&Digest, u64> = HashMap::new();
        let mut counted: HashSet<&Digest> = HashSet::new();
        let mut all = Vec::with_capacity(rows.len());
        for (index, row) in rows.iter().enumerate() {
            let stack = &stacks[index];
            let parent = (1..stack.len()).rev().find_map(|length| {
                let found = by_stack.get(&stack[..length]);
                found.map(|found| (*found, length))
            });
            let own = row.outputs.iter().take(1).flatten();
            // Those of a base image have no time.
            let own = own.skip(parent.map_or(0, |(_, length)| length));
            let own = own.filter(|(_, created)| *created != 0);
            let own: Vec<&Digest> = own.map(|(layer, _)| layer).collect();
            let mut size = 0;
            for layer in own.iter().copied().filter(|layer| counted.insert(*layer)) {
                let snapshots = &self.store().snapshots;
                size += *sizes
                    .entry(layer)
                    .or_insert_with(|| snapshots.size(layer).unwrap_or(0));
            }
            let record = Record {
                id: id_of(row.id),
                parent: parent.map(|(parent, _)| id_of(rows[parent].id)),
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
        let pruned = self.remove(policy)?;
        let reclaimed = pruned.freed.to_string();
        let attributes = BTreeMap::from([("reclaimed".to_owned(), reclaimed)]);
        self.engine
            .events
            .publish("builder", "prune", String::new(), attributes);
        Ok(pruned)
    }

    fn remove(&self, policy: &Policy) -> Result<Pruned> {
        let (places, records): (Vec<Place>, Vec<Record>) = self.records()?.into_iter().unzip();
        let chosen = gc::choose(&records, policy, now(), self.disk()?);
        let results = chosen.iter().filter_map(|&index| match &places[index] {
            Place::Result(id) => Some(*id),
            Place::Cache(_) => None,
        });
        let removed = self.cache.remove(&results.collect::<Vec<_>>())?;
        let removed: HashSet<i64> = removed.into_iter().collect();
        let mut pruned = Pruned::default();
        for index in chosen {
            let record = &records[index];
            let is_gone = match &places[index] {
                Place::Result(id) => removed.contains(id),
                Place::Cache(name) => self.caches.remove(self.store(), name)?,
            };
            if is_gone {
                pruned.ids.push(record.id.clone());
                // What an image has stays.
                pruned.freed += if record.shared { 0 } else { record.size };
            }
        }
        if !removed.is_empty() {
            self.engine.images.collect_unused();
        }
        Ok(pruned)
    }

    fn disk(&self) -> Result<Disk> {
        let root = self.store().staging.root();
        let found = rustix::fs::statvfs(root).map_err(fs::at("statvfs", root))?;
        Ok(Disk {
            total: found.f_blocks.saturating_mul(found.f_frsize),
            free: found.f_bavail.saturating_mul(found.f_frsize),
        })
    }

    /// Keeps the build cache to its budget, after a build. Does nothing if that was done lately.
    pub(crate) fn keep_to_budget(self: &Arc<Self>) {
        const INTERVAL: Duration = Duration::from_secs(60);
        {
            let mut last = self.collected.lock().ignore_poison();
            let is_due = last.is_none_or(|last| last.elapsed() >= INTERVAL);
            if !is_due || !self.gc.is_collected {
                return;
            }
            *last = Some(Instant::now());
        }
        let builder = self.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = builder.collect() {
                tracing::warn!("keep the build cache to its budget: {error}");
            }
        });
    }

    fn collect(&self) -> Result<()> {
        let own = &self.gc.policies;
        let policies = if own.is_empty() {
            let space = match &self.gc.space {
                Some(space) => space.clone(),
                None => gc::default_space(self.disk()?),
            };
            gc::default_policies(space)
        } else {
            own.clone()
        };
        for policy in &policies {
            let pruned = self.remove(policy)?;
            if !pruned.ids.is_empty() {
                let (count, freed) = (pruned.ids.len(), pruned.freed);
                tracing::info!("removed {count} records of the build cache, {freed} bytes");
            }
        }
        Ok(())
    }
}

/// The number of digits of a record's id.
const ID: usize = 25;

/// Returns the id of a result's record.
fn id_of(row: i64) -> String {
    let digest = whelk_llb::Digest::of(format!("record {row}").as_bytes());
    let digits = digest.to_string();
    digits
        .trim_start_matches("sha256:")
        .chars()
        .take(ID)
        .collect()
}
