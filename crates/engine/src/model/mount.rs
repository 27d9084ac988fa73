//! A container's mounts, as they are planned at its creation. Their form on disk is in
//! [`crate::records`].

use super::volume::CreateVolume;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A path of the host. `create` creates a missing directory; `map_user` maps the files of the
    /// path's owner to the container's user.
    Bind {
        path: String,
        create: bool,
        map_user: bool,
    },
    Volume(VolumeUse),
    Image(ImageUse),
    Tmpfs,
}

/// An image that a container mounts read-only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUse {
    /// The name in the request.
    pub name: String,
    /// The image's id. Empty in a plan: resolved when the container is created.
    pub id: String,
    /// The path in the image to mount; empty for all of it.
    pub subpath: String,
}

/// How a container uses a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeUse {
    /// The volume's name. Empty for an anonymous volume in a plan: a name is generated when the
    /// container is created.
    pub name: String,
    /// The directory in the volume to mount; empty for all of it.
    pub subpath: String,
    /// Whether the image's content at the target is copied into an empty volume.
    pub copy: bool,
    /// Whether the volume is created for this container.
    pub anonymous: bool,
    /// The request that creates the volume if it does not exist.
    pub make: CreateVolume,
}

/// A validated mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPlan {
    pub source: Source,
    pub target: String,
    /// The mount options of the OCI configuration.
    pub options: Vec<String>,
    pub read_only: bool,
    /// The mode as given in the request, for `inspect`.
    pub mode: String,
    pub propagation: String,
}

impl MountPlan {
    pub fn volume(&self) -> Option<&VolumeUse> {
        match &self.source {
            Source::Volume(volume) => Some(volume),
            _ => None,
        }
    }

    pub fn make_read_only(&mut self) {
        if !self.read_only {
            self.read_only = true;
            self.options.extend(["ro", "rro"].map(str::to_owned));
        }
    }

    pub fn image(&self) -> Option<&ImageUse> {
        match &self.source {
            Source::Image(image) => Some(image),
            _ => None,
        }
    }
}
