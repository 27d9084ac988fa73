//! Reads Docker's archive layout: `manifest.json` lists the configuration and the layers of each
//! image.

use super::DockerImage;
use super::load::{Images, Origin, tag};
use crate::bounded::{AtMost, MAX_NAMES};
use crate::error::{Error, Result};
use crate::reference::Reference;

pub(super) fn read(images: &mut Images<'_>) -> Result<()> {
    let manifest = images.parts.read("manifest.json")?;
    let entries: AtMost<DockerImage, MAX_NAMES> = serde_json::from_slice(&manifest)
        .map_err(|error| Error::invalid(format!("invalid archive: manifest.json: {error}")))?;
    drop(manifest);
    for entry in entries.0 {
        for part in entry.layers.iter().chain([&entry.config]) {
            images.parts.check_name(part)?;
        }
        let names = entry
            .repo_tags
            .iter()
            .map(|name| tag(name))
            .collect::<Result<Vec<Reference>>>()?;
        images.add(&entry.config, entry.layers, names, Origin::default())?;
        if let Some(parent) = entry.parent.and_then(|parent| parent.parse().ok()) {
            images.set_parent(&entry.config, parent)?;
        }
    }
    Ok(())
}
