//! The state of a step whose process has failed, for those who want to look at it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use whelk_dockerfile::convert::{Config, Image};
use whelk_image::{Digest, Lease};
use whelk_llb::pb::{self, Meta};
use whelk_sys::sync::IgnorePoison as _;

use crate::Builder;
use crate::error::Result;
use crate::layers::Stack;
use crate::provenance::Capture;
use crate::request::Solved;
use crate::transfer::ExportedSteps;

/// What a failed process has left, and how it was executed.
#[derive(Debug)]
pub struct Failed {
    pub(crate) stack: Stack,
    pub(crate) lease: Arc<Lease>,
    pub(crate) meta: Meta,
    /// That of the host without a value.
    pub(crate) platform: Option<pb::Platform>,
}

/// The ids of the last images of failed steps.
#[derive(Debug, Default)]
pub(crate) struct FailedImages(Mutex<VecDeque<String>>);

impl FailedImages {
    /// Far more than are exported while one build ends.
    const MAX: usize = 1000;

    fn add(&self, id: &Digest) {
        let mut known = self.0.lock().ignore_poison();
        if known.len() >= Self::MAX {
            known.pop_front();
        }
        known.push_back(id.to_string());
    }

    fn has(&self, id: &str) -> bool {
        let known = self.0.lock().ignore_poison();
        known.iter().any(|one| one == id)
    }
}

impl Failed {
    /// The program that was executed, if it is a shell: `SHELL -c …`.
    fn shell(&self) -> String {
        shell(&self.meta.args).to_owned()
    }
}

impl Builder {
    /// Records the state of a failed step as an image without a name, which executes its shell as its user in its directory.
    /// Secrets and mounts are not part of it. Returns its id.
    ///
    /// # Errors
    /// Returns an error if a layer cannot be stored.
    pub async fn export_failed(self: &Arc<Self>, failed: &Failed) -> Result<Digest> {
        let meta = &failed.meta;
        let platform = failed
            .platform
            .clone()
            .unwrap_or_else(crate::emulation::host);
        let image = Image {
            architecture: platform.architecture,
            os: platform.os,
            variant: platform.variant,
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
            made: ExportedSteps::default(),
            capture: Capture::default(),
        };
        let id = self.export(&solved, image, None, Vec::new()).await?;
        self.failed.add(&id);
        Ok(id)
    }

    /// Returns whether an image is one that [`export_failed`](Self::export_failed) has recorded lately.
    pub fn is_image_of_failed(&self, id: &str) -> bool {
        self.failed.has(id)
    }
}

/// Returns the shell that a command is executed by; the usual one if it is another program.
fn shell(args: &[String]) -> &str {
    const SHELLS: [&str; 7] = ["sh", "bash", "ash", "dash", "zsh", "ksh", "fish"];
    let program = args.first().map_or("", String::as_str);
    let name = program.rsplit('/').next().unwrap_or(program);
    match SHELLS.contains(&name) {
        true => program,
        false => "/bin/sh",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_images_are_known() {
        let known = FailedImages::default();
        let id = |number: usize| Digest::of(number.to_string().as_bytes());
        for number in 0..=FailedImages::MAX {
            known.add(&id(number));
        }
        assert!(!known.has(id(0).as_str()));
        assert!(known.has(id(1).as_str()));
        assert!(known.has(id(FailedImages::MAX).as_str()));
    }

    #[test]
    fn shells_are_known_by_their_names() {
        for (command, expected) in [
            ("/bin/sh -c make", "/bin/sh"),
            ("/bin/bash -o pipefail -c make", "/bin/bash"),
            ("zsh script", "zsh"),
            ("gcc -c x.c", "/bin/sh"),
            ("python3 -c pass", "/bin/sh"),
            ("tar -xc", "/bin/sh"),
            ("", "/bin/sh"),
        ] {
            let args: Vec<String> = command.split(' ').map(str::to_owned).collect();
            assert_eq!(shell(&args), expected, "{command}");
        }
    }
}
