//! Reads Docker's legacy layout (before image manifests): one directory per layer with `ID/json`
//! and `ID/layer.tar`, and image names in `repositories`.
//!
//! A layer's `json` is the configuration of the image whose topmost layer it is, without `rootfs`
//! and `history`: those are computed from the chain of parents. An image is created for each layer
//! that a name in `repositories` refers to, and for each layer that is not another layer's parent.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use super::load::{Images, Origin, read_layer, tag};
use super::parts::{File, shown};
use crate::bounded::MAX_LAYERS;
use crate::config::{History, RootFs};
use crate::content::MAX_CONFIG_SIZE;
use crate::digest::Digest;
use crate::error::{Error, Result};

/// The fields that are read from a layer's `ID/json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Step {
    parent: Option<String>,
    created: Option<String>,
    author: Option<String>,
    comment: Option<String>,
    container_config: Option<Container>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Container {
    cmd: Option<Vec<String>>,
}

pub(super) fn read(images: &mut Images<'_>) -> Result<()> {
    let malformed = |error| Error::invalid(format!("invalid archive: repositories: {error}"));
    let repositories: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_slice(&images.parts.read("repositories")?).map_err(malformed)?;
    let mut steps = BTreeMap::new();
    for name in images.parts.names() {
        if let Some(id) = name.strip_suffix("/json").filter(|id| !id.contains('/')) {
            steps.insert(id.to_owned(), step(images, id)?);
        }
    }
    let mut reader = Reader {
        images,
        steps,
        layers: BTreeMap::new(),
        made: BTreeMap::new(),
    };
    let parents: BTreeSet<String> = reader
        .steps
        .values()
        .filter_map(|step| step.parent.clone())
        .collect();
    let tops: Vec<String> = reader
        .steps
        .keys()
        .filter(|id| !parents.contains(*id))
        .cloned()
        .collect();
    for top in tops {
        reader.image(&top)?;
    }
    for (repository, tags) in &repositories {
        for (name, id) in tags {
            let name = tag(&format!("{repository}:{name}"))?;
            if let Some(index) = reader.image(id)? {
                reader.images.add_names(index, [name], None)?;
            }
        }
    }
    Ok(())
}

fn step(images: &Images<'_>, id: &str) -> Result<Step> {
    let mut step: Step = serde_json::from_slice(&images.parts.read(&format!("{id}/json"))?)
        .map_err(|error| Error::invalid(format!("invalid archive: {}/json: {error}", shown(id))))?;
    step.parent = step.parent.filter(|parent| !parent.is_empty());
    Ok(step)
}

struct Reader<'a, 'b> {
    images: &'a mut Images<'b>,
    steps: BTreeMap<String, Step>,
    /// Diff IDs of the layers unpacked so far, by the digest of their `layer.tar`.
    layers: BTreeMap<Digest, Digest>,
    /// Images created so far, by the ID of their topmost layer.
    made: BTreeMap<String, Option<usize>>,
}

impl Reader<'_, '_> {
    /// Creates the image whose topmost layer is `id`. Returns its index, or `None` if it is for
    /// another platform.
    fn image(&mut self, id: &str) -> Result<Option<usize>> {
        if let Some(made) = self.made.get(id) {
            return Ok(*made);
        }
        let chain = self.chain(id)?;
        let mut rootfs = RootFs {
            kind: "layers".into(),
            diff_ids: Vec::new(),
        };
        for id in &chain {
            let file = self.images.parts.file(&format!("{id}/layer.tar"))?.clone();
            rootfs.diff_ids.push(
                self.layer(&file)
                    .map_err(|error| error.during(&format!("layer {}", shown(id))))?,
            );
        }
        let too_large = || {
            Error::invalid(format!(
                "invalid archive: the configuration of {} is larger than {MAX_CONFIG_SIZE} bytes",
                shown(id)
            ))
        };
        // Checked before the texts are copied: many layers may share one parent with long texts.
        if chain
            .iter()
            .map(|id| history_size(&self.steps[id]))
            .sum::<usize>() as u64
            > MAX_CONFIG_SIZE
        {
            return Err(too_large());
        }
        let history: Vec<History> = chain.iter().map(|id| history(&self.steps[id])).collect();
        let bytes = config(
            &self.images.parts.read(&format!("{id}/json"))?,
            &rootfs,
            &history,
        )
        .map_err(|error| Error::invalid(format!("invalid archive: {}/json: {error}", shown(id))))?;
        if bytes.len() as u64 > MAX_CONFIG_SIZE {
            return Err(too_large());
        }
        self.images.parts.charge(bytes.len() as u64)?;
        let index =
            self.images
                .add_config(Digest::of(&bytes), bytes, Vec::new(), Origin::default())?;
        self.made.insert(id.to_owned(), index);
        Ok(index)
    }

    /// Returns the chain of layers that ends with `id`, lowest first.
    fn chain(&self, id: &str) -> Result<Vec<String>> {
        let mut chain = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next {
            let step = self.steps.get(id).ok_or_else(|| {
                Error::invalid(format!("invalid archive: {}/json is missing", shown(id)))
            })?;
            if chain.len() == MAX_LAYERS {
                return Err(Error::invalid(format!(
                    "invalid archive: an image has more than {MAX_LAYERS} layers"
                )));
            }
            chain.push(id.to_owned());
            next = step.parent.as_deref();
        }
        chain.reverse();
        Ok(chain)
    }

    fn layer(&mut self, file: &File) -> Result<Digest> {
        if let Some(known) = self.layers.get(&file.digest) {
            return Ok(known.clone());
        }
        // The part may be compressed, in which case its digest is not the diff ID.
        let diff_id = if self
            .images
            .store
            .snapshots
            .claim(self.images.lease, &file.digest)
        {
            file.digest.clone()
        } else {
            let input = read_layer(self.images.progress, file, &file.digest)?;
            self.images
                .store
                .snapshots
                .apply(self.images.lease, input, None)?
                .diff_id
        };
        self.layers.insert(file.digest.clone(), diff_id.clone());
        Ok(diff_id)
    }
}

/// Returns the number of bytes of text that a layer adds to the history.
fn history_size(step: &Step) -> usize {
    let command = step
        .container_config
        .as_ref()
        .and_then(|container| container.cmd.as_deref())
        .unwrap_or_default();
    let texts = [&step.created, &step.author, &step.comment];
    texts
        .into_iter()
        .flatten()
        .chain(command)
        .map(String::len)
        .sum()
}

fn history(step: &Step) -> History {
    let command = step
        .container_config
        .as_ref()
        .and_then(|container| container.cmd.as_deref())
        .unwrap_or_default();
    History {
        created: step.created.clone(),
        author: step.author.clone().unwrap_or_default(),
        created_by: command.join(" "),
        comment: step.comment.clone().unwrap_or_default(),
        empty_layer: false,
    }
}

/// Builds an image configuration from the `json` of its topmost layer. The encoding matches
/// Docker's to the byte, because the image ID is the digest of these bytes.
fn config(json: &[u8], rootfs: &RootFs, history: &[History]) -> serde_json::Result<Vec<u8>> {
    let mut fields: BTreeMap<String, Value> = serde_json::from_slice(json)?;
    for unwanted in ["id", "parent", "Size", "parent_id", "layer_id", "throwaway"] {
        fields.remove(unwanted);
    }
    fields.insert("rootfs".into(), serde_json::to_value(rootfs)?);
    fields.insert("history".into(), serde_json::to_value(history)?);
    let mut text = serde_json::to_string(&fields)?;
    // Go's `encoding/json` escapes these. Outside of strings JSON contains none of them.
    for (letter, escaped) in [
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("&", "\\u0026"),
        ("\u{2028}", "\\u2028"),
        ("\u{2029}", "\\u2029"),
    ] {
        text = text.replace(letter, escaped);
    }
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_configuration_is_byte_identical_to_dockers() {
        let (base, top) = ("a".repeat(64), "b".repeat(64));
        let json = format!(
            r#"{{"id": "{top}", "parent": "{base}", "created": "2014-01-01T00:00:00Z", "docker_version": "1.9.1", "os": "linux", "architecture": "amd64", "author": "somebody <a@b>", "container_config": {{"Cmd": ["/bin/sh", "-c", "make b"]}}, "config": {{"Cmd": ["cat", "/etc/which"], "Env": ["A=b"]}}, "Size": 5}}"#
        );
        let diff_ids = [
            "sha256:3431d8a0c77fbda64150522d3d858e4b333a8fc480527dcc3b379905d74489dd",
            "sha256:b36837514aa8f82a51e3c85bea3c05c08202be949ba2e42e9bf62e1d5bd03666",
        ];
        let rootfs = RootFs {
            kind: "layers".into(),
            diff_ids: diff_ids.iter().map(|id| id.parse().unwrap()).collect(),
        };
        let step: Step = serde_json::from_str(&json).unwrap();
        let below: Step = serde_json::from_str(&json.replace("make b", "make a")).unwrap();
        let bytes = config(json.as_bytes(), &rootfs, &[history(&below), history(&step)]).unwrap();
        // The image ID that Docker 28 computes.
        assert_eq!(
            Digest::of(&bytes).as_str(),
            "sha256:1ad126b53ffc3c53a9b9a73bcf3aa605c1798dade5314c950fbe5c3fd816696d"
        );
    }
}
