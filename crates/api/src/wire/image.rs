//! Images as the API's JSON.

use serde_json::{Map, Value, json};
use whelk_engine::images::{Image, Listed};

use super::time;
use crate::version::ApiVersion;

fn created_seconds(image: &Image) -> i64 {
    image.created().map_or(0, jiff::Timestamp::as_second)
}

/// An image in a list. `shared` are the bytes of its layers that others have too, if that was asked for.
pub(crate) fn image_summary(listed: &Listed, containers: usize, shared: Option<u64>, version: ApiVersion) -> Value {
    let Listed { image, names } = listed;
    let labels = &image.config.config.labels;
    let mut value = json!({
        "Containers": if version >= ApiVersion(1, 51) { i64::try_from(containers).unwrap_or(-1) } else { -1 },
        "Created": created_seconds(image),
        "Id": image.id,
        "Labels": if labels.is_empty() { Value::Null } else { json!(labels) },
        "ParentId": "",
        "RepoDigests": [],
        "RepoTags": names,
        "SharedSize": shared.map_or(-1, |shared| i64::try_from(shared).unwrap_or(i64::MAX)),
        "Size": image.size,
    });
    if version < ApiVersion(1, 43) {
        value["RepoDigests"] = Value::Null;
        if names.is_empty() {
            value["RepoTags"] = json!(["<none>:<none>"]);
            value["RepoDigests"] = json!(["<none>@<none>"]);
        }
    }
    if version < ApiVersion(1, 44) {
        value["VirtualSize"] = json!(image.size);
    }
    value
}

pub(crate) fn image(image: &Image, names: &[String], version: ApiVersion) -> Value {
    let config = &image.config;
    let comment = match config.comment.as_str() {
        "" => config.history.last().map_or("", |step| step.comment.as_str()),
        comment => comment,
    };
    let created = match &config.created {
        None if version < ApiVersion(1, 44) => time(0),
        created => created.clone().unwrap_or_default(),
    };
    let mut value = json!({
        "Id": image.id,
        "RepoTags": names,
        "RepoDigests": [],
        "Parent": "",
        "Comment": comment,
        "Created": created,
        "DockerVersion": config.docker_version,
        "Author": config.author,
        "Architecture": config.architecture,
        "Os": if config.os.is_empty() { "linux" } else { config.os.as_str() },
        "Size": image.size,
        "GraphDriver": {"Data": null, "Name": "overlay2"},
        "RootFS": {"Type": "layers", "Layers": config.rootfs.diff_ids},
        "Metadata": {"LastTagTime": time(image.tagged_at)},
        "Config": container_config(image, version),
    });
    if !config.variant.is_empty() {
        value["Variant"] = json!(config.variant);
    }
    if version < ApiVersion(1, 44) {
        value["VirtualSize"] = json!(image.size);
    }
    if version < ApiVersion(1, 45) {
        // The configuration of the container that a build once made it in; there is none.
        value["ContainerConfig"] = legacy_defaults().into();
    }
    value
}

/// What an image gives its containers. Some fields are there without a value too, since clients read them unasked; before
/// 1.50 these were all that a container's configuration had.
fn container_config(image: &Image, version: ApiVersion) -> Value {
    let mut value = serde_json::to_value(&image.config.config).unwrap_or_default();
    if let Value::Object(fields) = &mut value {
        let defaults = if version < ApiVersion(1, 50) { legacy_defaults() } else { defaults() };
        for (name, default) in defaults {
            fields.entry(name).or_insert(default);
        }
    }
    value
}

fn defaults() -> Map<String, Value> {
    let nulls = ["Cmd", "Entrypoint", "Env", "Labels", "OnBuild", "Volumes"].map(|name| (name.to_owned(), Value::Null));
    let texts = ["User", "WorkingDir"].map(|name| (name.to_owned(), json!("")));
    nulls.into_iter().chain(texts).collect()
}

fn legacy_defaults() -> Map<String, Value> {
    let flags =
        ["AttachStderr", "AttachStdin", "AttachStdout", "OpenStdin", "StdinOnce", "Tty"].map(|name| (name.to_owned(), json!(false)));
    let texts = ["Domainname", "Hostname", "Image"].map(|name| (name.to_owned(), json!("")));
    defaults().into_iter().chain(flags).chain(texts).collect()
}

/// The steps that made an image, the last one first. `sizes` are those of its layers in order.
pub(crate) fn history(image: &Image, names: &[String], sizes: &[u64]) -> Value {
    let mut layers = sizes.iter();
    let mut steps: Vec<Value> = image
        .config
        .history
        .iter()
        .map(|step| {
            let created = step.created.as_deref().and_then(|text| text.parse::<jiff::Timestamp>().ok()).map_or(0, jiff::Timestamp::as_second);
            let size = if step.empty_layer { 0 } else { layers.next().copied().unwrap_or(0) };
            json!({"Comment": step.comment, "Created": created, "CreatedBy": step.created_by, "Id": "<missing>", "Size": size, "Tags": null})
        })
        .collect();
    steps.reverse();
    if let Some(first) = steps.first_mut() {
        first["Id"] = json!(image.id);
        first["Tags"] = if names.is_empty() { Value::Null } else { json!(names) };
    }
    Value::Array(steps)
}
