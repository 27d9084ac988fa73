//! Listing images, and the disk usage of their layers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use whelk_image::{Digest, Reference};
use whelk_sys::sync::IgnorePoison as _;
use whelk_text::glob;

use super::manifests::{ListedManifest, Manifests};
use super::{Image, Images};
use crate::error::Result;
use crate::filters::Filters;

/// The filters of a list request.
pub const FILTERS: &[&str] = &["before", "dangling", "label", "reference", "since", "until"];

/// An image as lists show it, with those of its names that match. Those for other platforms that its
/// names stand for are part of it.
#[derive(Clone, Debug)]
pub struct ImageSummary {
    pub image: Arc<Image>,
    pub names: Vec<String>,
    /// Those of its digests in registries that match.
    pub digests: Vec<Reference>,
    /// Ids of the images, its own first.
    pub members: Vec<Digest>,
    /// Size of the file contents in all their layers, in bytes.
    pub size: u64,
    /// If they were requested.
    pub manifests: Option<Vec<ListedManifest>>,
}

impl Images {
    /// Returns all images that match, the newest first. `manifests` adds their manifests.
    ///
    /// # Errors
    /// Returns an error if a filter value is invalid.
    pub fn list(&self, filters: &Filters, manifests: bool) -> Result<Vec<ImageSummary>> {
        let bound = |key: &str| -> Result<Vec<Option<jiff::Timestamp>>> {
            filters
                .get(key)
                .into_iter()
                .flatten()
                .map(|name| self.find(name).map(|image| image.created()))
                .collect()
        };
        let until = filters.earliest_until()?.and_then(timestamp);
        let (before, since, dangling) =
            (bound("before")?, bound("since")?, filters.flag("dangling")?);
        let patterns: Vec<&String> = filters.get("reference").into_iter().flatten().collect();
        let index = self.read();
        let (mut listed, mut belonging) = (Vec::new(), Vec::new());
        for row in index.rows() {
            let Some(image) = row.variants.first().map(|first| first.image.clone()) else {
                continue;
            };
            let tags = row
                .tags
                .iter()
                .filter_map(|tag| tag.parse::<Reference>().ok());
            let all: Vec<Reference> = tags.collect();
            let created = image.created();
            let in_time = until.is_none_or(|until| image.created_before(until))
                && before.iter().all(|bound| {
                    bound.is_none_or(|bound| created.is_some_and(|created| created < bound))
                })
                && since.iter().all(|bound| {
                    bound.is_none_or(|bound| created.is_some_and(|created| created > bound))
                });
            if !in_time
                || dangling.is_some_and(|dangling| all.is_empty() != dangling)
                || !filters.labels(&image.config.config.labels)
            {
                continue;
            }
            let mut matching = Vec::new();
            for name in &all {
                if patterns.is_empty() || matches_any(&patterns, name)? {
                    matching.push(name.familiar());
                }
            }
            let mut digests = Vec::new();
            for digest in &image.repo_digests {
                if patterns.is_empty() || matches_any(&patterns, digest)? {
                    digests.push(digest.clone());
                }
            }
            if patterns.is_empty() || !matching.is_empty() || !digests.is_empty() {
                let members = row.variants.iter().map(|variant| variant.image.id.clone());
                listed.push(ImageSummary {
                    names: matching,
                    digests,
                    members: members.collect(),
                    size: 0,
                    manifests: None,
                    image: image.clone(),
                });
                let manifests = manifests.then(|| Manifests::of(&index, &row, &image));
                let images = row.variants.into_iter().map(|variant| variant.image);
                belonging.push((images.collect::<Vec<_>>(), manifests));
            }
        }
        drop(index);
        // Files are read without the lock.
        for (summary, (images, manifests)) in listed.iter_mut().zip(belonging) {
            summary.size = self.size_of_all(&images);
            summary.manifests = manifests.map(|manifests| self.described(manifests));
        }
        listed.sort_by_key(|one| (std::cmp::Reverse(one.image.created()), one.image.id.clone()));
        Ok(listed)
    }

    /// Returns the size of the file contents in the layers of several images, in bytes. A layer counts
    /// once, unless the size of one cannot be read. The sizes that were read are kept in memory.
    fn size_of_all(&self, images: &[Arc<Image>]) -> u64 {
        if let [image] = images {
            return image.size;
        }
        let layers: BTreeSet<&Digest> = images.iter().flat_map(|image| image.layers()).collect();
        let mut known = self.layer_sizes.lock().ignore_poison();
        let mut size = 0;
        for layer in layers {
            if let Some(found) = known.get(layer) {
                size += found;
                continue;
            }
            match self.files.snapshots.size(layer) {
                Ok(found) => {
                    known.insert(layer.clone(), found);
                    size += found;
                }
                Err(error) => {
                    tracing::warn!("size of layer {layer}: {error}");
                    return images.iter().map(|image| image.size).sum();
                }
            }
        }
        size
    }

    /// Returns the ids of the images that a name stands for, and of all images that have further
    /// layers on top of their layers. An image with the same layers is not included.
    pub fn built_on(&self, name: &str) -> Vec<String> {
        let index = self.read();
        let Ok(bases) = index.find(name) else {
            return Vec::new();
        };
        let is_on_top = |other: &&Arc<Image>| {
            let others = &other.config.rootfs.diff_ids;
            bases.iter().any(|base| {
                let layers = &base.image.config.rootfs.diff_ids;
                let is_more = others.len() > layers.len() && others.starts_with(layers);
                other.id == base.image.id || !layers.is_empty() && is_more
            })
        };
        let found = index.by_id.values().filter(is_on_top);
        found.map(|other| other.id.to_string()).collect()
    }

    /// Returns the total size of all layers, each counted once, and for each image the size of its
    /// layers that other images share, in bytes.
    pub fn layer_usage(&self) -> Result<(u64, BTreeMap<Digest, u64>)> {
        let images: Vec<Arc<Image>> = self.read().by_id.values().cloned().collect();
        let mut users: BTreeMap<&Digest, usize> = BTreeMap::new();
        for image in &images {
            image
                .layers()
                .into_iter()
                .for_each(|layer| *users.entry(layer).or_default() += 1);
        }
        let mut sizes = BTreeMap::new();
        for layer in users.keys() {
            sizes.insert(*layer, self.files.snapshots.size(layer)?);
        }
        let shared = images.iter().map(|image| {
            let shared = image
                .layers()
                .into_iter()
                .filter(|layer| users[layer] > 1)
                .map(|layer| sizes[layer])
                .sum();
            (image.id.clone(), shared)
        });
        Ok((sizes.values().sum(), shared.collect()))
    }
}

impl Image {
    /// Returns the creation time in its configuration.
    pub fn created(&self) -> Option<jiff::Timestamp> {
        self.config
            .created
            .as_deref()
            .and_then(|text| text.parse().ok())
    }

    /// Returns whether the image was created before `time`. An image without a creation time counts
    /// as older than any other.
    pub(super) fn created_before(&self, time: jiff::Timestamp) -> bool {
        self.config.created.is_none() || self.created().is_some_and(|created| created < time)
    }

    /// Returns its distinct layers.
    pub(super) fn layers(&self) -> BTreeSet<&Digest> {
        self.config.rootfs.diff_ids.iter().collect()
    }
}

/// Returns the `until` filter, of which there is at most one.
pub(super) fn until(filters: &Filters) -> Result<Option<jiff::Timestamp>> {
    Ok(filters.until()?.and_then(timestamp))
}

fn timestamp(nanoseconds: i64) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_nanosecond(nanoseconds.into()).ok()
}

/// Returns whether one of the patterns matches a name, with or without its tag.
fn matches_any(patterns: &[&String], name: &Reference) -> Result<bool> {
    let (full, bare) = (name.familiar(), name.familiar_name());
    for pattern in patterns {
        if glob::matches(pattern, &full)? || glob::matches(pattern, &bare)? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_references_with_and_without_tag() {
        for (pattern, name, expected) in [
            ("busybox", "busybox:latest", true),
            ("busy*", "busybox:1", true),
            ("*:latest", "a:latest", true),
            ("*", "a/b:1", false),
            ("*/*", "a/b:1", true),
            ("x", "y:1", false),
            ("a*c*e", "abcde:1", true),
            ("a*c*e", "ab/cde:1", false),
            ("*/b?", "a/bc:1", true),
            ("a?", "a:1", false),
            ("b_f", "b_f:1", true),
            ("a[0-9b]", "a7:x", true),
            ("a[^0-9]", "a7:x", false),
            ("a\\*", "ab:1", false),
        ] {
            let name: Reference = name.parse().unwrap();
            assert_eq!(
                matches_any(&[&pattern.to_owned()], &name).unwrap(),
                expected,
                "{pattern} {name}"
            );
        }
    }
}
