//! Merges the records that could be read into the content of the new store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use whelk_image::{Algorithm, ImageConfig, Reference};
use whelk_sys::fs;

use super::super::copies::{REST, Rest};
use super::Repaired;
use super::old::{Found, Old};
use crate::error::{Error, Result};
use crate::model::ContainerRecord;
use crate::records::{ImageRecord, encode};

/// The content of the new store.
#[derive(Debug, Default)]
pub(super) struct Rebuilt {
    pub(super) containers: Vec<ContainerRecord>,
    pub(super) rest: Rest,
}

pub(super) fn rebuild(
    mut old: Old,
    copy: Option<Rest>,
    found: &BTreeMap<String, Found>,
    images: &whelk_image::Store,
    root: &Path,
    report: &mut Repaired,
) -> Result<Rebuilt> {
    let mut containers = BTreeMap::new();
    let (mut from_store, mut from_directories) = (0, 0);
    for (id, found) in found {
        let known = old.containers.remove(id);
        // A copy is at most about a second older than the store was; records of a damaged store may
        // be of any age.
        let (first, second) = if old.is_intact {
            (&known, &found.record)
        } else {
            (&found.record, &known)
        };
        match first.as_ref().or(second.as_ref()) {
            Some(record) => {
                let is_known = if old.is_intact {
                    known.is_some()
                } else {
                    found.record.is_none()
                };
                if is_known {
                    from_store += 1
                } else {
                    from_directories += 1
                }
                containers.insert(id.clone(), record.clone());
            }
            None => report.report(format!(
                "{} has no copy of a container's record: it is left unchanged",
                found.path.display()
            )),
        }
    }
    for (id, record) in std::mem::take(&mut old.containers) {
        if old.is_intact {
            from_store += 1;
            containers.insert(id, record);
        } else {
            report.report(format!(
                "container {} ({id}) has no directory: it is left out",
                record.name
            ));
        }
    }
    report.report(format!(
        "containers: {from_directories} from their directories, {from_store} from the old store"
    ));
    let mut containers: Vec<ContainerRecord> = containers.into_values().collect();
    make_names_unique(&mut containers, report);
    let mut rest = rest(&mut old, copy, root, report);
    find_images(images, &mut rest, report)?;
    if rest.tags.is_empty() {
        name_images(&containers, &mut rest);
    }
    report_missing_networks(&containers, &rest, report);
    report.report(format!(
        "networks: {}; images: {}, with {} names",
        rest.networks.len(),
        rest.images.len(),
        rest.tags.len()
    ));
    Ok(Rebuilt { containers, rest })
}

/// Renames containers so that names are unique. Of several with one name the oldest keeps it.
fn make_names_unique(containers: &mut [ContainerRecord], report: &mut Repaired) {
    containers.sort_by_key(|record| record.created_at);
    let mut names = BTreeSet::new();
    for record in containers {
        if !names.insert(record.name.clone()) {
            let name = format!(
                "{}-{}",
                record.name,
                record.id.chars().take(12).collect::<String>()
            );
            report.report(format!(
                "container {} has the same name as another one: it is renamed to {name}",
                record.name
            ));
            names.insert(name.clone());
            record.name = name;
        }
    }
}

/// Returns the records of networks, images, names and plugins' volumes: from the old store if it is
/// intact, else from the copy [`REST`], else what can be read of the old store.
fn rest(old: &mut Old, copy: Option<Rest>, root: &Path, report: &mut Repaired) -> Rest {
    let left = std::mem::take(&mut old.rest);
    if old.is_intact {
        return left;
    }
    let mut rest = copy.unwrap_or_else(|| {
        report.report(format!(
            "{} is missing or damaged: networks and names of images are taken from the old store",
            root.join(REST).display()
        ));
        Rest::default()
    });
    if rest.networks.is_empty() {
        rest.networks = left.networks;
    }
    if rest.images.is_empty() {
        rest.images = left.images;
    }
    if rest.tags.is_empty() {
        rest.tags = left.tags;
    }
    for (key, value) in left.meta {
        rest.meta.entry(key).or_insert(value);
    }
    // Local volumes are described by their directories, so only those with a directory are added.
    let exists = |volume: &Value| {
        volume["Name"]
            .as_str()
            .is_some_and(|name| fs::exists(root.join("volumes").join(name)))
    };
    let known: BTreeSet<String> = rest
        .volumes
        .iter()
        .filter_map(|volume| volume["Name"].as_str().map(str::to_owned))
        .collect();
    let is_known = |volume: &Value| {
        volume["Name"]
            .as_str()
            .is_some_and(|name| known.contains(name))
    };
    rest.volumes.extend(
        left.volumes
            .into_iter()
            .filter(|volume| !is_known(volume) && exists(volume)),
    );
    rest
}

/// Adds images without a record whose configuration and layers exist.
fn find_images(images: &whelk_image::Store, rest: &mut Rest, report: &mut Repaired) -> Result<()> {
    let id_of = |image: &Value| image["id"].as_str().unwrap_or_default().to_owned();
    let known: BTreeSet<String> = rest.images.iter().map(id_of).collect();
    let mut found = 0;
    let ids = images.content.list()?.into_iter();
    for digest in ids.filter(|digest| digest.algorithm() == Algorithm::Sha256) {
        let config = images
            .content
            .read(&digest)
            .and_then(|content| ImageConfig::parse(&content));
        let Ok(config) = config else { continue };
        let layers = &config.rootfs.diff_ids;
        if known.contains(digest.as_str())
            || !layers.iter().all(|layer| images.snapshots.has(layer))
        {
            continue;
        }
        let size = layers
            .iter()
            .map(|layer| images.snapshots.size(layer).unwrap_or(0))
            .sum();
        let record = ImageRecord {
            id: digest,
            size,
            tagged_at: 0,
            manifest: None,
            index: None,
            other_manifests: Vec::new(),
            tag_indexes: BTreeMap::new(),
            repo_digests: Vec::new(),
            parent: None,
        };
        rest.images.push(
            serde_json::from_str(&encode(&record)?)
                .map_err(|error| Error::internal(error.to_string()))?,
        );
        found += 1;
    }
    if found > 0 {
        report.report(format!("images: {found} found by their files"));
    }
    Ok(())
}

/// Names images by the names that containers were created with, if no names are known.
fn name_images(containers: &[ContainerRecord], rest: &mut Rest) {
    for record in containers {
        let Ok(reference) = record.config.image.parse::<Reference>() else {
            continue;
        };
        let is_id = record
            .image
            .trim_start_matches("sha256:")
            .starts_with(record.config.image.trim_start_matches("sha256:"));
        if reference.digest.is_none() && !is_id && !record.image.is_empty() {
            rest.tags
                .entry(reference.with_default_tag().to_string())
                .or_insert_with(|| record.image.clone());
        }
    }
}

/// Reports networks that containers use and that have no record.
fn report_missing_networks(containers: &[ContainerRecord], rest: &Rest, report: &mut Repaired) {
    let known: BTreeSet<&str> = rest
        .networks
        .iter()
        .filter_map(|network| network["Name"].as_str())
        .chain(["bridge", "host", "none"])
        .collect();
    for record in containers {
        for network in record
            .networks
            .keys()
            .filter(|network| !known.contains(network.as_str()))
        {
            report.report(format!(
                "network {network} of container {} has no record: create it again",
                record.name
            ));
        }
    }
}
