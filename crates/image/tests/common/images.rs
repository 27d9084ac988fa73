//! Image fixtures, and the archives that contain them.

use serde_json::{Value, json};
use whelk_image::Digest;
use whelk_image::config::ARCHITECTURE;

use super::{Entry, dir, file, symlink};

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image: its configuration, and the archives of its layers.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Vec<u8>>,
}

impl Image {
    /// Creates an image. Images with different commands are different.
    pub(crate) fn new(command: &str, layers: &[Vec<u8>]) -> Self {
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|layer| Digest::of(layer).to_string())
            .collect();
        Self {
            config: config(command, &diff_ids),
            layers: layers.to_vec(),
        }
    }

    pub(crate) fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    fn layer_names(&self) -> Vec<String> {
        self.layers.iter().map(|layer| blob_name(layer)).collect()
    }

    fn manifest(&self) -> Vec<u8> {
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| descriptor(LAYER, layer))
            .collect();
        bytes(
            &json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor(CONFIG, &self.config), "layers": layers}),
        )
    }
}

pub(crate) fn config(command: &str, diff_ids: &[String]) -> Vec<u8> {
    bytes(&json!({
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": {"Cmd": [command], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
}

pub(crate) fn bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).unwrap()
}

pub(crate) fn blob_name(content: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(content).hex())
}

pub(crate) fn blob(content: &[u8]) -> Entry {
    file(blob_name(content), content)
}

pub(crate) fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(content).as_str(), "size": content.len()})
}

/// Returns a `manifest.json` with one image.
pub(crate) fn manifest_json(config: &str, layers: &[&str], names: &[&str]) -> Entry {
    file(
        "manifest.json",
        bytes(&json!([{"Config": config, "RepoTags": names, "Layers": layers}])),
    )
}

/// Returns an `index.json` with these descriptors.
pub(crate) fn index_json(manifests: &[Value]) -> Entry {
    file("index.json", index(manifests))
}

pub(crate) fn index(manifests: &[Value]) -> Vec<u8> {
    bytes(&json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}))
}

/// Adds an entry unless it is present: archives contain shared parts once.
fn push_once(entries: &mut Vec<Entry>, entry: Entry) {
    if !entries.iter().any(|there| there.name == entry.name) {
        entries.push(entry);
    }
}

/// Returns an archive as Docker writes it since version 25, without the OCI parts.
pub(crate) fn docker_archive(images: &[(&Image, &[&str])]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut manifest = Vec::new();
    for (image, names) in images {
        image
            .layers
            .iter()
            .for_each(|layer| push_once(&mut entries, blob(layer)));
        push_once(&mut entries, blob(&image.config));
        manifest.push(json!({"Config": blob_name(&image.config), "RepoTags": names, "Layers": image.layer_names()}));
    }
    entries.push(file("manifest.json", bytes(&Value::Array(manifest))));
    entries
}

/// Returns an archive as Docker wrote it before version 25: a directory per layer, with links for
/// shared layers.
pub(crate) fn old_docker_archive(
    images: &[(&Image, &[&str])],
    link: fn(&str, &str) -> Entry,
) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut manifest = Vec::new();
    let mut known: Vec<(Digest, String)> = Vec::new();
    for (image, names) in images {
        let mut parts = Vec::new();
        for (number, layer) in image.layers.iter().enumerate() {
            // The name of a layer's directory was a hash that includes its parents.
            let directory = Digest::of(format!("{} {number}", image.id()).as_bytes())
                .hex()
                .to_owned();
            let part = format!("{directory}/layer.tar");
            let digest = Digest::of(layer);
            entries.push(dir(format!("{directory}/")));
            entries.push(file(format!("{directory}/VERSION"), "1.0"));
            entries.push(file(format!("{directory}/json"), "{}"));
            let first = known
                .iter()
                .find(|(there, _)| *there == digest)
                .map(|(_, first)| first.clone());
            match first {
                Some(first) => entries.push(link(&part, &first)),
                None => {
                    entries.push(file(&part, layer));
                    known.push((digest, part.clone()));
                }
            }
            parts.push(part);
        }
        let config = format!("{}.json", image.id().hex());
        entries.push(file(&config, &image.config));
        manifest.push(json!({"Config": config, "RepoTags": names, "Layers": parts}));
    }
    entries.push(file("manifest.json", bytes(&Value::Array(manifest))));
    entries.push(file("repositories", "{}"));
    entries
}

/// Returns a link from one layer's directory to another's.
pub(crate) fn sideways(name: &str, target: &str) -> Entry {
    symlink(name, format!("../{target}"))
}

/// Returns an OCI layout without Docker's files.
pub(crate) fn oci_archive(images: &[(&Image, &str)]) -> Vec<Entry> {
    let mut entries = vec![
        file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
        dir("blobs/"),
        dir("blobs/sha256/"),
    ];
    let mut manifests = Vec::new();
    for (image, name) in images {
        let manifest = image.manifest();
        image
            .layers
            .iter()
            .for_each(|layer| push_once(&mut entries, blob(layer)));
        push_once(&mut entries, blob(&image.config));
        push_once(&mut entries, blob(&manifest));
        let mut descriptor = descriptor(MANIFEST, &manifest);
        descriptor["annotations"] = json!({"io.containerd.image.name": name});
        manifests.push(descriptor);
    }
    entries.push(index_json(&manifests));
    entries
}
