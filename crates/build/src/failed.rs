//! The state of a step that has failed, for those who want to look at it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use whelk_dockerfile::convert::{Config, Image};
use whelk_image::Digest;
use whelk_llb::Digest as OpDigest;
use whelk_llb::pb::{self, Meta};
use whelk_sys::sync::IgnorePoison as _;

use crate::Builder;
use crate::error::{Error, Result};
use crate::provenance::Capture;
use crate::request::Solved;
use crate::snapshot::Snapshot;
use crate::transfer::ExportedSteps;

/// What a failed process has left, and how it was executed.
#[derive(Debug)]
pub struct Failed {
    /// The root file system.
    pub(crate) files: Snapshot,
    pub(crate) meta: Meta,
    /// That of the host without a value.
    pub(crate) platform: Option<pb::Platform>,
    pub(crate) remains: Arc<Remains>,
}

/// What has failed of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailedPart {
    /// The action of a file operation with this index.
    Action(usize),
    /// Something is missing in the input with this index.
    Input(usize),
}

/// The files of a failed operation. There are none of what has no result.
#[derive(Debug, Default)]
pub struct Remains {
    /// What the mounts of a process have shown before, or the inputs of a file operation.
    pub inputs: Vec<Option<Snapshot>>,
    /// What the mounts of a process show now, or what the actions of a file operation have made.
    pub results: Vec<Option<Snapshot>>,
}

/// The states of the steps of one build that have failed last. Copies share them.
#[derive(Clone, Debug, Default)]
pub struct FailedSteps(Arc<Mutex<VecDeque<FailedStep>>>);

/// A step that has failed: its operation's digest, as clients are told it, and its state.
type FailedStep = (String, Arc<Failed>);

impl Remains {
    /// Returns the error of an operation that has read an input: one that does not find something there has the input.
    pub(crate) fn missing(index: usize, input: Snapshot, error: Error) -> Error {
        if !matches!(error, Error::Missing { .. }) {
            return error;
        }
        let remains = Self {
            inputs: vec![Some(input)],
            results: Vec::new(),
        };
        Error::Part {
            part: FailedPart::Input(index),
            remains: Some(Arc::new(remains)),
            cause: Box::new(error),
        }
    }
}

impl FailedSteps {
    /// Maximum number: each holds layers. More than fail at the same time, one for each platform.
    const MAX: usize = 64;

    /// Keeps the state of an operation.
    pub fn add(&self, op: &OpDigest, state: &Arc<Failed>) {
        let op = op.to_string();
        let mut kept = self.0.lock().ignore_poison();
        kept.retain(|(known, _)| *known != op);
        if kept.len() >= Self::MAX {
            kept.pop_front();
        }
        kept.push_back((op, state.clone()));
    }

    /// Takes the state of an operation.
    pub fn take(&self, op: &str) -> Option<Arc<Failed>> {
        let mut kept = self.0.lock().ignore_poison();
        let at = kept.iter().position(|(known, _)| known == op)?;
        kept.remove(at).map(|(_, state)| state)
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
            stack: failed.files.stack.clone(),
            lease: failed.files.lease.clone(),
            keys: Vec::new(),
            made: ExportedSteps::default(),
            capture: Capture::default(),
        };
        self.export(&solved, image, None, Vec::new()).await
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
