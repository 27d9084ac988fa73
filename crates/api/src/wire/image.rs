//! Images.

use std::collections::{BTreeSet, HashMap};

use serde::Deserialize;
use whelk_api_types::{
    DriverData, Empty, HealthConfig, ImageConfig, ImageDeleteResponseItem,
    ImageHistoryResponseItem, ImageIdentity, ImageInspect, ImageManifestAttestation,
    ImageManifestImage, ImageManifestImageSize, ImageManifestSize, ImageManifestSummary,
    ImageMetadata, ImageSummary, ManifestDescriptor, OciPlatform, PullIdentity, RootFs, Set,
};
use whelk_engine::images::{self, Image, ListedManifest, ManifestKind, Removed};
use whelk_image::descriptor::Descriptor;
use whelk_image::{Platform, Reference, config};

use super::{null_if_empty, signed, time};

fn created_seconds(image: &Image) -> i64 {
    image.created().map_or(0, jiff::Timestamp::as_second)
}

/// Returns a listed image. `users` are the containers by the id of their image, `shared` is the size in
/// bytes of layers shared with other images, if requested.
pub(crate) fn image_summary(
    listed: &images::ImageSummary,
    users: &HashMap<String, Vec<String>>,
    shared: Option<u64>,
    with_identity: bool,
) -> ImageSummary {
    let images::ImageSummary {
        image,
        names,
        digests,
        ..
    } = listed;
    let containers = listed
        .members
        .iter()
        .filter_map(|id| users.get(id.as_str()));
    let containers: usize = containers.map(Vec::len).sum();
    let manifests = listed.manifests.as_ref();
    ImageSummary {
        containers: i64::try_from(containers).unwrap_or(i64::MAX),
        created: created_seconds(image),
        id: image.id.to_string(),
        labels: Some(image.config.config.labels.clone()).filter(|labels| !labels.is_empty()),
        parent_id: image
            .parent
            .as_ref()
            .map_or_else(String::new, ToString::to_string),
        repo_digests: Some(repo_digests(digests)),
        repo_tags: names.clone(),
        shared_size: shared.map_or(-1, signed),
        size: listed.size,
        virtual_size: None,
        manifests: manifests.map(|manifests| self::manifests(manifests, users, with_identity)),
    }
}

/// Returns the manifests of a listed image.
pub(crate) fn manifests(
    manifests: &[ListedManifest],
    users: &HashMap<String, Vec<String>>,
    with_identity: bool,
) -> Vec<ImageManifestSummary> {
    let summary = |manifest: &ListedManifest| {
        let mut summary = ImageManifestSummary {
            id: manifest.descriptor.digest.to_string(),
            descriptor: descriptor(&manifest.descriptor),
            available: false,
            size: ImageManifestSize {
                content: manifest.content,
                total: manifest.content,
            },
            ..ImageManifestSummary::default()
        };
        match &manifest.kind {
            ManifestKind::Image { platform, image } => {
                let containers = image
                    .as_ref()
                    .and_then(|image| users.get(image.id.as_str()));
                let unpacked = image.as_ref().map_or(0, |image| image.size);
                summary.available = image.is_some();
                summary.size.total += unpacked;
                summary.kind = "image".into();
                summary.image_data = Some(ImageManifestImage {
                    platform: self::platform(platform),
                    identity: image
                        .as_ref()
                        .filter(|_| with_identity)
                        .and_then(|image| identity(image)),
                    containers: containers.cloned().unwrap_or_default(),
                    size: ImageManifestImageSize { unpacked },
                });
            }
            ManifestKind::Attestation(about) => {
                summary.kind = "attestation".into();
                summary.attestation_data = Some(ImageManifestAttestation {
                    about: about.to_string(),
                });
            }
            ManifestKind::Unknown => summary.kind = "unknown".into(),
        }
        summary
    };
    manifests.iter().map(summary).collect()
}

pub(crate) fn descriptor(descriptor: &Descriptor) -> ManifestDescriptor {
    ManifestDescriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: descriptor.size,
        annotations: descriptor.annotations.clone(),
        platform: descriptor.platform.as_ref().map(platform),
    }
}

pub(crate) fn platform(platform: &Platform) -> OciPlatform {
    OciPlatform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
    }
}

/// Returns the familiar names with digest (`busybox@sha256:…`). A loaded image has none: they are the
/// digests of manifests in registries.
fn repo_digests(digests: &[Reference]) -> Vec<String> {
    digests.iter().map(Reference::familiar).collect()
}

/// Returns the repositories whose registries have the image; `None` if there are none.
pub(crate) fn identity(image: &Image) -> Option<ImageIdentity> {
    let names: BTreeSet<String> = image.repo_digests.iter().map(Reference::name).collect();
    let pull = names.into_iter();
    let pull: Vec<_> = pull.map(|repository| PullIdentity { repository }).collect();
    (!pull.is_empty()).then_some(ImageIdentity { pull })
}

fn omit_if_empty(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

pub(crate) fn image(image: &Image, names: Vec<String>) -> ImageInspect {
    let config = &image.config;
    let comment = match config.comment.as_str() {
        "" => config
            .history
            .last()
            .map_or("", |step| step.comment.as_str()),
        comment => comment,
    };
    let os = if config.os.is_empty() {
        "linux"
    } else {
        &config.os
    };
    ImageInspect {
        id: image.id.to_string(),
        repo_tags: names,
        repo_digests: repo_digests(&image.repo_digests),
        parent: image.parent.as_ref().map(ToString::to_string),
        comment: omit_if_empty(comment),
        created: config.created.clone().unwrap_or_default(),
        docker_version: omit_if_empty(&config.docker_version),
        author: omit_if_empty(&config.author),
        architecture: config.architecture.clone(),
        os: os.into(),
        size: image.size,
        graph_driver: DriverData {
            data: None,
            name: "overlay2".into(),
        },
        root_fs: RootFs {
            kind: "layers".into(),
            layers: config
                .rootfs
                .diff_ids
                .iter()
                .map(ToString::to_string)
                .collect(),
        },
        metadata: ImageMetadata {
            last_tag_time: time(image.tagged_at),
        },
        config: image_config(&config.config),
        variant: config.variant.clone(),
        virtual_size: None,
        container: None,
        container_config: None,
        manifests: None,
        identity: identity(image),
    }
}

fn image_config(config: &config::ContainerConfig) -> ImageConfig {
    let list = |list: &[String]| null_if_empty(list.to_vec()).map(Some);
    let set = |keys: &std::collections::BTreeMap<String, serde_json::Value>| -> Set {
        keys.keys().map(|key| (key.clone(), Empty {})).collect()
    };
    ImageConfig {
        container_fields: None,
        user: omit_if_empty(&config.user),
        exposed_ports: set(&config.exposed_ports),
        env: list(&config.env),
        entrypoint: list(&config.entrypoint),
        cmd: list(&config.cmd),
        volumes: Some(Some(set(&config.volumes))).filter(|_| !config.volumes.is_empty()),
        working_dir: omit_if_empty(&config.working_dir),
        labels: Some(Some(config.labels.clone())).filter(|_| !config.labels.is_empty()),
        stop_signal: config.stop_signal.clone(),
        on_build: list(&config.on_build),
        shell: config.shell.clone(),
        healthcheck: config
            .healthcheck
            .as_ref()
            .and_then(|check| HealthConfig::deserialize(check).ok()),
        args_escaped: config.args_escaped,
    }
}

/// Returns an image's history, newest first. `sizes` are the sizes of its layers, lowest first.
pub(crate) fn history(
    image: &Image,
    names: Vec<String>,
    sizes: &[u64],
) -> Vec<ImageHistoryResponseItem> {
    let mut layers = sizes.iter();
    let mut steps: Vec<_> = image
        .config
        .history
        .iter()
        .map(|step| ImageHistoryResponseItem {
            comment: step.comment.clone(),
            created: step
                .created
                .as_deref()
                .and_then(|text| text.parse::<jiff::Timestamp>().ok())
                .map_or(0, jiff::Timestamp::as_second),
            created_by: step.created_by.clone(),
            id: "<missing>".into(),
            size: if step.empty_layer {
                0
            } else {
                layers.next().copied().unwrap_or(0)
            },
            tags: None,
        })
        .collect();
    steps.reverse();
    if let Some(newest) = steps.first_mut() {
        newest.id = image.id.to_string();
        newest.tags = null_if_empty(names);
    }
    steps
}

pub(crate) fn removals(removed: &[Removed]) -> Vec<ImageDeleteResponseItem> {
    let item = |removed: &Removed| match removed {
        Removed::Untagged(name) => ImageDeleteResponseItem {
            untagged: Some(name.clone()),
            deleted: None,
        },
        Removed::Deleted(id) | Removed::DeletedLayer(id) => ImageDeleteResponseItem {
            untagged: None,
            deleted: Some(id.to_string()),
        },
    };
    removed.iter().map(item).collect()
}
