//! Volumes. Their form on disk is in [`crate::records`].

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::Error;

/// The driver that keeps a volume's content. Its text is its name; an empty one means the built-in
/// driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum VolumeDriverName {
    #[default]
    Local,
    Plugin(String),
}

impl VolumeDriverName {
    /// Returns the driver of a request; `None` if the name is empty, which stands for any driver.
    pub fn given(name: &str) -> Option<Self> {
        (!name.is_empty()).then(|| name.into())
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Local => LOCAL,
            Self::Plugin(name) => name,
        }
    }
}

impl From<&str> for VolumeDriverName {
    fn from(name: &str) -> Self {
        match name {
            "" | LOCAL => Self::Local,
            name => Self::Plugin(name.to_owned()),
        }
    }
}

impl FromStr for VolumeDriverName {
    type Err = Infallible;

    fn from_str(name: &str) -> Result<Self, Infallible> {
        Ok(name.into())
    }
}

impl fmt::Display for VolumeDriverName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A volume's record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeRecord {
    pub name: String,
    pub driver: VolumeDriverName,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    pub labels: Option<BTreeMap<String, String>>,
    pub options: Option<BTreeMap<String, String>>,
    /// Where its plugin last mounted its content.
    pub(crate) mountpoint: PathBuf,
    /// The users for which its plugin was asked to mount it and has not confirmed the unmount.
    pub(crate) mounts: BTreeSet<String>,
}

impl VolumeRecord {
    /// Returns whether it was created without a name, for one container.
    pub fn is_anonymous(&self) -> bool {
        self.labels
            .as_ref()
            .is_some_and(|labels| labels.contains_key(ANONYMOUS))
    }

    pub(crate) fn option(&self, key: &str) -> &str {
        self.options
            .as_ref()
            .and_then(|options| options.get(key))
            .map_or("", String::as_str)
    }

    /// Returns whether its content is in a directory of the engine, and not with a plugin.
    pub fn is_local(&self) -> bool {
        self.driver == VolumeDriverName::Local
    }

    /// Returns whether its content is somewhere else than in its directory, so that mounting,
    /// unmounting or removing it can take long.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.is_mounted() || !self.is_local()
    }

    /// Returns whether it is a snapshot of another volume, which is read-only.
    pub fn is_snapshot(&self) -> bool {
        self.is_local() && !self.option(SNAPSHOT_OF).is_empty()
    }

    /// Returns its size limit; empty for none.
    pub(crate) fn size(&self) -> &str {
        if self.is_local() {
            self.option(SIZE)
        } else {
            ""
        }
    }

    /// Returns whether something is mounted on its directory: a file system, or a bind mount of
    /// another directory.
    pub(crate) fn is_mounted(&self) -> bool {
        self.is_local() && !self.option("device").is_empty()
    }
}

/// The label of anonymous volumes.
pub(crate) const ANONYMOUS: &str = "com.docker.volume.anonymous";

/// The option of a snapshot that names the volume it was made from.
pub(crate) const SNAPSHOT_OF: &str = "snapshot-of";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateVolume {
    /// Empty for an anonymous volume.
    pub name: String,
    /// `None` for the driver that has a volume with this name, or the built-in one.
    pub driver: Option<VolumeDriverName>,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// The volume is created for a container that is removed when it ends (`--rm`), and removed
    /// with it. If it is also anonymous it is not synced to disk: a power failure may lose both.
    pub ephemeral: bool,
}

/// The built-in driver.
pub const LOCAL: &str = "local";

/// The option that limits the size of a volume in bytes.
pub(crate) const SIZE: &str = "size";

/// Rejects names that are not safe as part of a path, or that Docker would not accept.
pub(crate) fn check_name(name: &str) -> crate::error::Result<()> {
    if name.len() == 1 {
        return Err(Error::invalid(
            "volume name is too short, names should be at least two alphanumeric characters",
        ));
    }
    if name.len() > 255 {
        return Err(Error::invalid(
            "volume name is too long, names may have up to 255 characters",
        ));
    }
    let valid = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if valid {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
    )))
}
