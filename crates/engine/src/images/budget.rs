//! Removes images that nothing uses, the least recently used first, while images take more space than
//! they may.
//!
//! When an image was used is kept in memory: when it came, when a container was created from it, and, as
//! long as containers have it, the time of each check. Each check records what has changed, for the next
//! engine. An image of which nothing is known counts as used when the engine was started.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use whelk_image::Digest;
use whelk_sys::sync::IgnorePoison as _;

use super::index::Row;
use super::{Image, ImageUser, Images, Removed};
use crate::error::{Error, Result};
use crate::events::now;
use crate::instance::{DiskUse, ImageGc};
use crate::store::RecordStore;

/// The key of the recorded times in the store.
const KEY: &str = "image-uses";

/// When images were used last, in nanoseconds since the epoch.
#[derive(Debug)]
pub(super) struct Uses {
    times: Mutex<BTreeMap<Digest, i64>>,
    /// When the engine was started.
    since: i64,
}

impl Uses {
    /// Reads the times that an earlier engine has recorded. They are of no use if they cannot be read.
    pub(super) fn open(store: &RecordStore) -> Self {
        let recorded = store.meta(KEY).ok().flatten();
        let times = recorded.and_then(|text| serde_json::from_str(&text).ok());
        Self {
            times: Mutex::new(times.unwrap_or_default()),
            since: now(),
        }
    }

    /// Notes that an image is used now.
    pub(super) fn note(&self, id: &Digest) {
        self.times.lock().ignore_poison().insert(id.clone(), now());
    }

    fn last(&self, id: &Digest) -> i64 {
        let times = self.times.lock().ignore_poison();
        times.get(id).copied().unwrap_or(self.since)
    }
}

/// Images that are removed together: those that names stand for.
struct Candidate {
    images: Vec<Arc<Image>>,
    last_use: i64,
}

/// The layers of all images with their sizes in bytes and numbers of images.
struct Layers(BTreeMap<Digest, (u64, usize)>);

impl Layers {
    fn size(&self) -> u64 {
        self.0.values().map(|(size, _)| size).sum()
    }

    /// Returns the number of bytes that become free when an image is deleted.
    fn release(&mut self, image: &Image) -> u64 {
        let mut freed = 0;
        for layer in image.layers() {
            if let Some((size, users)) = self.0.get_mut(layer) {
                *users = users.saturating_sub(1);
                freed += if *users == 0 { *size } else { 0 };
            }
        }
        freed
    }
}

impl Images {
    /// Removes images until they keep to a budget, as far as they are unused. Returns the steps.
    ///
    /// # Errors
    /// Returns the first error of the store. Other images are removed nevertheless.
    pub(crate) fn keep_to_budget(
        &self,
        gc: &ImageGc,
        users: impl Fn(&Digest) -> Vec<ImageUser>,
    ) -> Result<Vec<Removed>> {
        let images: BTreeMap<Digest, Arc<Image>> = self.read().by_id.clone();
        self.note_users(&images, &users)?;
        let mut layers = self.layers_of(&images);
        let excess = gc.excess(layers.size(), self.disk_use());
        let (mut removed, mut freed, mut failure) = (Vec::new(), 0, None);
        if excess == 0 {
            return Ok(removed);
        }
        let age = i64::try_from(gc.minimum_age.as_nanos()).unwrap_or(i64::MAX);
        for candidate in self.unused_since(now().saturating_sub(age), &users) {
            if freed >= excess {
                break;
            }
            for image in candidate.images {
                let names = self.names_of(&image.id).join(", ");
                let (gone, error) = self.remove_unused(&image, &users);
                failure = failure.or(error);
                for gone in &gone {
                    if let Removed::Deleted(id) = gone
                        && let Some(image) = images.get(id)
                    {
                        tracing::info!("image-gc: removed image {id} ({names})");
                        freed += layers.release(image);
                    }
                }
                removed.extend(gone);
            }
        }
        if !removed.is_empty() {
            self.collect_garbage();
            self.publish_prune(freed);
            tracing::info!("image-gc: {excess} bytes were too many, {freed} were freed");
        }
        failure.map_or(Ok(removed), Err)
    }

    /// Notes which images containers have, and records the times of all.
    fn note_users(
        &self,
        images: &BTreeMap<Digest, Arc<Image>>,
        users: impl Fn(&Digest) -> Vec<ImageUser>,
    ) -> Result<()> {
        for id in images.keys().filter(|id| !users(id).is_empty()) {
            self.uses.note(id);
        }
        let text = {
            let mut times = self.uses.times.lock().ignore_poison();
            times.retain(|id, _| images.contains_key(id));
            serde_json::to_string(&*times).map_err(|error| Error::internal(error.to_string()))?
        };
        self.store.set_meta(KEY, &text)
    }

    /// Returns the layers of images. One whose size cannot be read counts as empty: its image may have been
    /// removed meanwhile, and one that is damaged must not keep the others from being removed.
    fn layers_of(&self, images: &BTreeMap<Digest, Arc<Image>>) -> Layers {
        let mut layers = BTreeMap::new();
        for layer in images.values().flat_map(|image| image.layers()) {
            let size = || self.files.snapshots.size(layer).unwrap_or(0);
            let (_, users) = layers.entry(layer.clone()).or_insert_with(|| (size(), 0));
            *users += 1;
        }
        Layers(layers)
    }

    /// Returns the use of the disk with the images, without what is reserved for root.
    fn disk_use(&self) -> Option<DiskUse> {
        let disk = rustix::fs::statvfs(&self.root).ok()?;
        let used = disk.f_blocks.saturating_sub(disk.f_bfree) * disk.f_frsize;
        Some(DiskUse {
            used,
            total: used + disk.f_bavail * disk.f_frsize,
        })
    }

    /// Returns the images that no container has and that were used last before `time`, the least recently
    /// used first.
    fn unused_since(&self, time: i64, users: impl Fn(&Digest) -> Vec<ImageUser>) -> Vec<Candidate> {
        let rows: Vec<Vec<Arc<Image>>> = {
            let index = self.read();
            let rows = index.rows().into_iter();
            let images = |row: Row<'_>| row.variants.into_iter().map(|variant| variant.image);
            rows.map(|row| images(row).collect()).collect()
        };
        let candidate = |images: Vec<Arc<Image>>| Candidate {
            last_use: images
                .iter()
                .map(|image| self.uses.last(&image.id))
                .max()
                .unwrap_or(0),
            images,
        };
        let is_unused = |candidate: &Candidate| {
            let mut images = candidate.images.iter();
            candidate.last_use < time && images.all(|image| users(&image.id).is_empty())
        };
        let mut found: Vec<Candidate> = rows.into_iter().map(candidate).filter(is_unused).collect();
        found.sort_by_key(|candidate| candidate.last_use);
        found
    }
}
