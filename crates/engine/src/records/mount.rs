//! A container's planned mounts on disk.

use serde::{Deserialize, Serialize};

use super::stored;
use super::stored::forms;
use crate::mounts;
use crate::volumes::CreateVolume;

forms! {
    Source => mounts::Source,
    ImageUse => mounts::ImageUse,
    VolumeUse => mounts::VolumeUse,
    MountPlan => mounts::MountPlan,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "mounts::Source")]
enum Source {
    Bind {
        path: String,
        create: bool,
        #[serde(default)]
        map_user: bool,
    },
    Volume(#[serde(with = "stored")] mounts::VolumeUse),
    Image(#[serde(with = "stored")] mounts::ImageUse),
    Tmpfs,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "mounts::ImageUse")]
struct ImageUse {
    name: String,
    id: String,
    subpath: String,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "mounts::VolumeUse")]
struct VolumeUse {
    name: String,
    subpath: String,
    copy: bool,
    anonymous: bool,
    #[serde(skip)]
    make: CreateVolume,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "mounts::MountPlan")]
struct MountPlan {
    #[serde(with = "stored")]
    source: mounts::Source,
    target: String,
    options: Vec<String>,
    read_only: bool,
    mode: String,
    propagation: String,
}
