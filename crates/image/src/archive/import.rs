//! An image out of one archive of files.

use std::io::Read;

use super::Loaded;
use crate::config::{ContainerConfig, History, ImageConfig, RootFs};
use crate::error::{Error, Result};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::{LARGEST_CONFIG, Store};

/// What the new image shall say of itself.
#[derive(Clone, Debug, Default)]
pub struct Import {
    pub config: ContainerConfig,
    pub comment: String,
    pub platform: Option<Platform>,
    pub name: Option<Reference>,
}

/// Makes an image with one layer from `input`, an archive that is plain or compressed.
pub fn import(store: &Store, input: impl Read + Send, import: Import) -> Result<Loaded> {
    let layer = store.put_layer(input, None)?;
    let platform = import.platform.unwrap_or_else(Platform::host);
    let created = jiff::Timestamp::now().to_string();
    let config = ImageConfig {
        created: Some(created.clone()),
        comment: import.comment.clone(),
        architecture: platform.architecture,
        variant: platform.variant,
        os: platform.os,
        config: import.config,
        rootfs: RootFs {
            kind: "layers".into(),
            diff_ids: vec![layer.diff_id],
        },
        history: vec![History {
            created: Some(created),
            comment: import.comment,
            ..History::default()
        }],
        ..ImageConfig::default()
    };
    let bytes = serde_json::to_vec(&config).map_err(|error| Error::invalid(error.to_string()))?;
    if bytes.len() as u64 > LARGEST_CONFIG {
        return Err(Error::invalid(format!(
            "the image's configuration is larger than {LARGEST_CONFIG} bytes"
        )));
    }
    let id = store.put_blob(&bytes)?;
    Ok(Loaded {
        id,
        config,
        names: import.name.into_iter().collect(),
        size: layer.size,
    })
}
