//! Images of an archive as lines of text: what in the configuration, the files and the history is not that of the base image.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;
use whelk_tests::tar::{self, Found, Kind};

use crate::Observation;
use crate::case::{Protocol, TIME};

/// Files of this size and less are shown, others are told by a digest.
const MAX_SHOWN: usize = 200;

/// The files of an image, by their paths.
type Files = BTreeMap<String, Found>;

pub struct Image {
    config: Value,
    /// The files of the base image; none without one.
    base: Files,
    base_config: Value,
    files: Files,
}

/// Reads an archive of images, all of which are made of one base image or of none. Returns them by their names.
#[track_caller]
pub fn read(archive: &[u8]) -> BTreeMap<String, Image> {
    let parts: BTreeMap<String, Vec<u8>> = tar::read(archive)
        .into_iter()
        .map(|part| (part.path, part.content))
        .collect();
    let part = |path: &Value| -> &Vec<u8> { &parts[path.as_str().expect("a path")] };
    let manifest: Value = serde_json::from_slice(&parts["manifest.json"]).expect("a manifest");
    let base = Base::read();
    let mut images = BTreeMap::new();
    for entry in manifest.as_array().expect("images") {
        let config: Value = serde_json::from_slice(part(&entry["Config"])).expect("a config");
        let is_on_base = config["rootfs"]["diff_ids"][0] == base.config["rootfs"]["diff_ids"][0];
        let base_files = if is_on_base {
            base.files.clone()
        } else {
            Files::new()
        };
        let mut files = base_files.clone();
        let layers = entry["Layers"].as_array().expect("layers");
        for layer in layers.iter().skip(usize::from(is_on_base)) {
            apply(&mut files, tar::read(part(layer)));
        }
        for tag in entry["RepoTags"].as_array().expect("tags") {
            let image = Image {
                config: config.clone(),
                base: base_files.clone(),
                base_config: base.config["config"].clone(),
                files: files.clone(),
            };
            images.insert(tag.as_str().expect("a tag").to_owned(), image);
        }
    }
    images
}

/// The image `busybox`, which has one layer.
struct Base {
    config: Value,
    files: Files,
}

impl Base {
    #[track_caller]
    fn read() -> Self {
        let archive = std::fs::read(whelk_tests::images::busybox()).expect("read busybox.tar");
        let json = |path: &str| -> Value {
            serde_json::from_slice(&tar::file(&archive, path)).expect("JSON")
        };
        let manifest = json("manifest.json");
        let config = json(manifest[0]["Config"].as_str().expect("a path"));
        let layer = manifest[0]["Layers"][0].as_str().expect("a path");
        let mut files = Files::new();
        apply(&mut files, tar::read(&tar::file(&archive, layer)));
        Self { config, files }
    }
}

/// Applies a layer, with its whiteouts.
fn apply(files: &mut Files, layer: Vec<Found>) {
    for entry in layer {
        let (parent, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
        let below =
            |directory: &str| format!("{directory}{}", if directory.is_empty() { "" } else { "/" });
        if name == ".wh..wh..opq" {
            let inside = below(parent);
            files.retain(|path, _| !path.starts_with(&inside));
        } else if let Some(name) = name.strip_prefix(".wh.") {
            let gone = format!("{}{name}", below(parent));
            files.retain(|path, _| *path != gone && !path.starts_with(&below(&gone)));
        } else {
            if entry.kind != Kind::Directory as u8 {
                let inside = below(&entry.path);
                files.retain(|path, _| !path.starts_with(&inside));
            }
            files.insert(entry.path.clone(), entry);
        }
    }
}

impl Image {
    pub fn describe(&self, protocol: Protocol) -> Observation {
        let mut lines = Vec::new();
        if let Some(author) = self.config["author"].as_str() {
            lines.push(format!("author {author}"));
        }
        for key in ["architecture", "os", "variant"] {
            let usual = [Some("amd64"), Some("linux"), None];
            let value = self.config[key].as_str();
            if !usual.contains(&value) {
                lines.push(format!("{key} {}", self.config[key]));
            }
        }
        let config = self.config["config"].as_object();
        let mut keys: Vec<_> = config.into_iter().flatten().collect();
        keys.sort_by_key(|(key, _)| *key);
        for (key, value) in keys {
            // The classic builder leaves the fields of its containers.
            let is_empty = value.is_null() || *value == "" || *value == false;
            let is_of_base = !self.base.is_empty() && self.base_config[key] == *value;
            // What BuildKit sets with each CMD, for Windows.
            let is_classic = protocol == Protocol::Classic && key == "ArgsEscaped";
            if !is_empty && !is_of_base && !is_classic && key != "Image" {
                lines.push(format!("config {key} {value}"));
            }
        }
        if let Some(base) = self
            .base_config
            .as_object()
            .filter(|_| !self.base.is_empty())
        {
            let gone = base
                .keys()
                .filter(|key| self.config["config"][*key].is_null());
            lines.extend(gone.map(|key| format!("config {key} (none)")));
        }
        lines.extend(self.tree());
        // Docker's classic builder writes its own history; whelk writes that of BuildKit.
        if protocol == Protocol::BuildKit {
            lines.extend(self.history());
        }
        lines
    }

    /// The history without that of the base image, which has two entries.
    fn history(&self) -> Vec<String> {
        let entries = self.config["history"].as_array();
        let skipped = if self.base.is_empty() { 0 } else { 2 };
        let line = |entry: &Value| {
            let mut line = format!(
                "history {}",
                entry["created_by"].as_str().unwrap_or_default()
            );
            if entry["empty_layer"] == true {
                line.push_str(" (empty)");
            }
            let comment = entry["comment"].as_str().unwrap_or_default();
            if comment != "buildkit.dockerfile.v0" {
                write!(line, " (comment {comment:?})").unwrap();
            }
            if let Some(author) = entry["author"].as_str() {
                write!(line, " (author {author:?})").unwrap();
            }
            line.replace('\n', "\\n").replace('\t', "\\t")
        };
        entries
            .into_iter()
            .flatten()
            .skip(skipped)
            .map(line)
            .collect()
    }

    /// What was added, changed and removed.
    fn tree(&self) -> Vec<String> {
        let attributes = |file: &Found| Found {
            mtime: 0,
            ..file.clone()
        };
        let changed = self.files.iter().filter(|(path, file)| {
            let old = self.base.get(*path);
            old.is_none_or(|old| attributes(old) != attributes(file)) && !path.is_empty()
        });
        let mut lines: Vec<String> = changed.map(|(_, file)| line(file)).collect();
        let removed = self
            .base
            .keys()
            .filter(|path| !self.files.contains_key(*path));
        lines.extend(removed.map(|path| format!("removed /{path}")));
        lines
    }
}

/// `TYPE MODE UID:GID /PATH CONTENT`.
fn line(file: &Found) -> String {
    let kind = match file.kind {
        b'0' => "file",
        b'1' => "hardlink",
        b'2' => "symlink",
        b'3' | b'4' => "device",
        b'5' => "dir",
        b'6' => "fifo",
        _ => "other",
    };
    let (uid, gid) = file.owner;
    let mut line = format!(
        "{kind} {:04o} {uid}:{gid} /{}",
        file.mode & 0o7777,
        file.path
    );
    match file.kind {
        b'0' => match std::str::from_utf8(&file.content) {
            Ok(text) if text.len() <= MAX_SHOWN => write!(line, " {text:?}").unwrap(),
            _ => {
                let digest = ring::digest::digest(&ring::digest::SHA256, &file.content);
                let length = file.content.len();
                write!(line, " {length} bytes {digest:?}").unwrap();
            }
        },
        b'1' | b'2' => write!(line, " -> {}", file.target).unwrap(),
        _ => {}
    }
    if file.mtime == TIME && file.kind == b'0' {
        line.push_str(" (time of the context)");
    }
    for (name, value) in &file.xattrs {
        write!(line, " {name}={value:?}").unwrap();
    }
    line
}
