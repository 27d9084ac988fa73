//! Converts images to the API's JSON.

use serde_json::{Value, json};
use whelk_engine::images::{Image, ImageSummary};

use super::time;

fn created_seconds(image: &Image) -> i64 {
    image.created().map_or(0, jiff::Timestamp::as_second)
}

/// Returns a listed image. `shared` is the size in bytes of layers shared with other images, if
/// requested.
pub(crate) fn image_summary(
    listed: &ImageSummary,
    containers: usize,
    shared: Option<u64>,
) -> Value {
    let ImageSummary { image, names } = listed;
    let labels = &image.config.config.labels;
    json!({
        "Containers": containers,
        "Created": created_seconds(image),
        "Id": image.id,
        "Labels": if labels.is_empty() { Value::Null } else { json!(labels) },
        "ParentId": "",
        "RepoDigests": [],
        "RepoTags": names,
        "SharedSize": shared.map_or(-1, |shared| i64::try_from(shared).unwrap_or(i64::MAX)),
        "Size": image.size,
    })
}

pub(crate) fn image(image: &Image, names: &[String]) -> Value {
    let config = &image.config;
    let comment = match config.comment.as_str() {
        "" => config
            .history
            .last()
            .map_or("", |step| step.comment.as_str()),
        comment => comment,
    };
    let mut value = json!({
        "Id": image.id,
        "RepoTags": names,
        "RepoDigests": [],
        "Parent": "",
        "Comment": comment,
        "Created": config.created.clone().unwrap_or_default(),
        "DockerVersion": config.docker_version,
        "Author": config.author,
        "Architecture": config.architecture,
        "Os": if config.os.is_empty() { "linux" } else { config.os.as_str() },
        "Size": image.size,
        "GraphDriver": {"Data": null, "Name": "overlay2"},
        "RootFS": {"Type": "layers", "Layers": config.rootfs.diff_ids},
        "Metadata": {"LastTagTime": time(image.tagged_at)},
        "Config": container_config(image),
    });
    if !config.variant.is_empty() {
        value["Variant"] = json!(config.variant);
    }
    value
}

/// Returns an image's container configuration, including empty fields that clients expect.
fn container_config(image: &Image) -> Value {
    let mut value = serde_json::to_value(&image.config.config).unwrap_or_default();
    if let Value::Object(fields) = &mut value {
        let nulls = ["Cmd", "Entrypoint", "Env", "Labels", "OnBuild", "Volumes"]
            .map(|name| (name, Value::Null));
        let texts = ["User", "WorkingDir"].map(|name| (name, json!("")));
        for (name, default) in nulls.into_iter().chain(texts) {
            fields.entry(name).or_insert(default);
        }
    }
    value
}

/// Returns an image's history, newest first. `sizes` are the sizes of its layers, lowest first.
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
        first["Tags"] = if names.is_empty() {
            Value::Null
        } else {
            json!(names)
        };
    }
    Value::Array(steps)
}
