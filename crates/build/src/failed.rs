//! The state of a step whose process has failed, for those who want to look at it.

use std::sync::Arc;

use whelk_dockerfile::convert::{Config, Image};
use whelk_image::{Digest, Lease, Platform};
use whelk_llb::pb::Meta;

use crate::Builder;
use crate::error::Result;
use crate::layers::Stack;
use crate::request::Solved;
use crate::transfer::Made;

/// What a failed process has left, and how it was executed.
#[derive(Debug)]
pub struct Failed {
    pub(crate) stack: Stack,
    pub(crate) lease: Arc<Lease>,
    pub(crate) meta: Meta,
}

impl Failed {
    /// The program that was executed, if it is a shell: `SHELL -c …`.
    fn shell(&self) -> String {
        match self.meta.args.as_slice() {
            [shell, flag, ..] if flag.starts_with('-') && flag.ends_with('c') => shell.clone(),
            _ => "/bin/sh".into(),
        }
    }
}

impl Builder {
    /// Records the state of a failed step as an image without a name, which executes its shell as its user in its directory.
    /// Secrets and mounts are not part of it. Returns its id.
    ///
    /// # Errors
    /// Returns an error if a layer cannot be stored.
    pub async fn export_failed(self: &Arc<Self>, failed: &Failed) -> Result<Digest> {
        let host = Platform::host();
        let meta = &failed.meta;
        let image = Image {
            architecture: host.architecture,
            os: host.os,
            variant: host.variant,
            config: Config {
                env: meta.env.clone(),
                user: meta.user.clone(),
                working_dir: meta.cwd.clone(),
                cmd: vec![failed.shell()],
                ..Config::default()
            },
            ..Image::default()
        };
        let solved = Solved {
            stack: failed.stack.clone(),
            lease: failed.lease.clone(),
            keys: Vec::new(),
            made: Made::default(),
        };
        self.export(&solved, image, None, Vec::new()).await
    }
}
