//! Creates an image from a single root file system archive (`import`).

use std::io::Read;

use super::{Loaded, Named, Origin};
use crate::config::{ContainerConfig, History, ImageConfig, RootFs};
use crate::content::MAX_CONFIG_SIZE;
use crate::error::{Error, Result};
use crate::leases::Lease;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::Store;

/// Settings of an imported image.
#[derive(Clone, Debug, Default)]
pub struct Import {
    pub config: ContainerConfig,
    pub comment: String,
    pub platform: Option<Platform>,
    pub name: Option<Reference>,
}

/// Creates an image with one layer from `input`, a plain or compressed tar archive. `lease`
/// holds what is added.
///
/// # Errors
/// Returns [`Error::Invalid`] if the archive is malformed or the configuration is larger than
/// [`MAX_CONFIG_SIZE`], and I/O errors.
pub fn import(
    store: &Store,
    lease: &Lease,
    input: impl Read + Send,
    import: Import,
) -> Result<Loaded> {
    // Its archive cannot be read a second time, as one with too many files for an image must be.
    let layer = store.snapshots.apply_to_directory(lease, input, None)?;
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
    if bytes.len() as u64 > MAX_CONFIG_SIZE {
        return Err(Error::invalid(format!(
            "the image's configuration is larger than {MAX_CONFIG_SIZE} bytes"
        )));
    }
    let id = store.content.put(lease, &bytes)?;
    Ok(Loaded {
        id,
        origin: Origin::default(),
        config,
        other_manifests: Vec::new(),
        parent: None,
        names: import
            .name
            .map(|name| Named { name, index: None })
            .into_iter()
            .collect(),
        size: layer.size,
    })
}
