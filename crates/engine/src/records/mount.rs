//! A container's planned mounts on disk.

use serde::{Deserialize, Serialize};

use super::stored;
use super::stored::forms;
use crate::model::mount;
use crate::model::volume::CreateVolume;

forms! {
    Source => mount::Source,
    ImageUse => mount::ImageUse,
    VolumeUse => mount::VolumeUse,
    MountPlan => mount::MountPlan,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "mount::Source")]
enum Source {
    Bind {
        path: String,
        create: bool,
        #[serde(default)]
        map_user: bool,
    },
    Volume(#[serde(with = "stored")] mount::VolumeUse),
    Image(#[serde(with = "stored")] mount::ImageUse),
    Tmpfs,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "mount::ImageUse")]
struct ImageUse {
    name: String,
    id: String,
    subpath: String,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "mount::VolumeUse")]
struct VolumeUse {
    name: String,
    subpath: String,
    copy: bool,
    anonymous: bool,
    #[serde(skip)]
    make: CreateVolume,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "mount::MountPlan")]
struct MountPlan {
    #[serde(with = "stored")]
    source: mount::Source,
    target: String,
    options: Vec<String>,
    read_only: bool,
    mode: String,
    propagation: String,
}
