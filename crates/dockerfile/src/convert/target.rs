//! The state of a stage while it is converted.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use whelk_llb::Output;
use whelk_llb::pb::Platform;

use super::image::Image;
use crate::error::Lines;
use crate::expand::Environment;
use crate::instruction::Arg;
use crate::stage::{Stage, Step};

/// The files and the settings of processes that a stage has after a step.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// `None` has no files.
    pub output: Option<Output>,
    pub env: Rc<Environment>,
    pub dir: String,
    pub user: String,
    pub hostname: String,
    /// That of the base image; without one, that of the build.
    pub platform: Option<Platform>,
}

/// A step with the targets that it reads from.
#[derive(Clone, Debug)]
pub(super) struct Command {
    pub step: Step,
    /// Indexes of targets: one of a COPY, one for each mount of a RUN.
    pub sources: Vec<Option<usize>>,
    /// Whether it is a trigger of the base image.
    pub is_trigger: bool,
}

/// A build argument for the outline.
#[derive(Clone, Debug, Default)]
pub(super) struct ArgInfo {
    pub arg: Arg,
    pub value: String,
    /// The arguments that its default contains.
    pub uses: BTreeSet<String>,
    pub lines: Lines,
}

/// A secret or SSH agent for the outline.
#[derive(Clone, Copy, Debug)]
pub(super) struct SecretInfo {
    pub required: bool,
    pub lines: Lines,
}

/// Arguments, secrets and SSH agents that a stage uses.
#[derive(Clone, Debug, Default)]
pub(super) struct Uses {
    pub args: Rc<BTreeMap<String, ArgInfo>>,
    pub used_args: BTreeSet<String>,
    pub secrets: BTreeMap<String, SecretInfo>,
    pub ssh: BTreeMap<String, SecretInfo>,
}

/// A stage, or an image or named context that is used like one.
#[derive(Clone, Debug, Default)]
pub(super) struct Target {
    pub stage: Stage,
    /// The name in the names of steps.
    pub name: String,
    pub state: State,
    pub image: Image,
    pub base_image: Option<Image>,
    pub platform: Option<Platform>,
    /// The target that it is based on.
    pub base: Option<usize>,
    /// The value of the named context that replaces it.
    pub replaced_by: Option<super::context::NamedContext>,
    /// Whether its state is final.
    pub dispatched: bool,
    /// Whether its base image is known.
    pub resolved: bool,
    pub triggers_read: bool,
    /// The targets that its steps read from, and where.
    pub deps: Vec<(usize, Lines)>,
    pub build_args: Vec<Arg>,
    pub commands: Vec<Command>,
    /// The paths that are copied from the build's context.
    pub context_paths: BTreeSet<String>,
    /// Index of the paths that others read of its base, among those of the converter.
    pub paths: usize,
    pub ignore_cache: bool,
    /// Whether it is no stage of the file.
    pub is_external: bool,
    pub step_number: usize,
    pub step_count: usize,
    pub in_trigger: bool,
    pub uses: Uses,
    pub workdir_set: bool,
    /// Where the last instruction was of those that count once.
    pub cmd: Option<Lines>,
    pub entrypoint: Option<Lines>,
    pub healthcheck: Option<Lines>,
}
