//! Conversion of a Dockerfile's stages to a low-level build, as BuildKit's frontend does it.
//!
//! The conversion is a pure function. What it needs to know from outside (configurations of base images, ignore files of named
//! contexts, times of sources) it asks for: [`convert`] returns [`Outcome::Needs`] with all requests that are known so
//! far, and is called again with their answers. Only stages that the target needs are converted.

mod args;
mod attributes;
mod context;
mod copy;
mod dispatch;
mod expose;
mod git;
mod image;
mod lints;
mod names;
mod options;
mod outline;
mod remote;
mod request;
mod run;
mod scan;
mod stages;
mod target;

use std::collections::{BTreeSet, HashMap};

use whelk_llb::pb::{Definition, OpMetadata, Platform, Position, ProxyEnv, Range, SourceInfo};
use whelk_llb::{Builder, CUSTOM_NAME, Output, Vertex};

pub use context::file_definition;
pub use image::{Config, Health, History, Image, PATH as DEFAULT_PATH, RootFs};
pub use names::without_credentials;
pub use options::{ContextInput, MainContext, Options, ParseReference, Reference, ResolveMode};
pub use remote::{RemoteContext, subdirectory};
pub use request::{Answer, Answers, Request, Source};

use crate::error::{Error, Lines, Result};
use crate::expand::{Budget, Environment};
use crate::ignore::Matcher;
use crate::lint::{self, Linter, Rule, Warning};
use crate::parser::{Dockerfile, parse};
use crate::report::Outline;
use crate::stage::Stages;
use target::Target;

/// The result of a conversion.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The questions to answer before it can go on; not empty.
    Needs(Vec<Request>),
    Done(Box<Conversion>),
}

/// A converted Dockerfile.
#[derive(Clone, Debug)]
pub struct Conversion {
    pub definition: Definition,
    /// The configuration of the result. Its layers, and the times of steps without one, are up to the exporter.
    pub image: Image,
    /// The configuration of the base image, as far as it is known.
    pub base_image: Option<Image>,
    /// `SOURCE_DATE_EPOCH` in seconds since 1970.
    pub epoch: Option<i64>,
    /// Whether the target is built without the cache.
    pub ignore_cache: bool,
    pub outline: Outline,
    /// What is scanned besides the result for a bill of materials, if one is made: the context, and stages, by name.
    pub scanned: Vec<(String, Definition)>,
}

/// Converts a Dockerfile. Warnings are added to the linter, also if it fails; its configuration is that of the file
/// or of the options.
///
/// # Errors
/// Returns an error with BuildKit's text and the lines that it is about.
pub fn convert(
    text: &str,
    options: &Options,
    answers: &Answers,
    linter: &mut Linter,
) -> Result<Outcome> {
    *linter = Linter::new(match &options.lint {
        Some(config) => config.clone(),
        None => lint::Config::of_file(text)?,
    });
    if text.is_empty() {
        return Err(Error::new("the Dockerfile cannot be empty"));
    }
    let dockerfile = parse(text)?;
    let mut converter = Converter::new(&dockerfile, options, answers, std::mem::take(linter))?;
    let outcome = converter.run(&dockerfile, text);
    *linter = converter.linter;
    outcome
}

/// Returns the warnings and the error that `--check` shows.
///
/// # Errors
/// Returns the questions to answer before it can go on.
pub fn check(
    text: &str,
    options: &Options,
    answers: &Answers,
) -> std::result::Result<(Vec<Warning>, Option<Error>), Vec<Request>> {
    let mut options = options.clone();
    options.all_stages = options.target.is_empty();
    let mut linter = Linter::default();
    match convert(text, &options, answers, &mut linter) {
        Ok(Outcome::Needs(requests)) => Err(requests),
        Ok(Outcome::Done(_)) => Ok((linter.warnings, None)),
        Err(error) => Ok((linter.warnings, Some(error))),
    }
}

/// The limit of what is copied from stage to stage: variables and configurations.
const MAX_COPIES: usize = 64 << 20;

struct Converter<'a> {
    options: &'a Options,
    answers: &'a Answers,
    escape: char,
    builder: Builder,
    linter: Linter,
    budget: Budget,
    /// Bytes that copies of states have taken.
    copied: usize,
    /// The arguments before the first stage.
    global: Environment,
    epoch: Option<i64>,
    targets: Vec<Target>,
    by_name: HashMap<String, usize>,
    /// The paths that are read of each base.
    paths: Vec<BTreeSet<String>>,
    /// What stands for the build's context until all paths are known.
    context: Output,
    /// What stands for directories that are named contexts, and the index of their paths.
    locals: Vec<(Output, context::LocalContext, usize)>,
    ignore: Matcher,
    target_platform: Platform,
    proxy: Option<ProxyEnv>,
    missing: Vec<Request>,
}

impl<'a> Converter<'a> {
    fn new(
        dockerfile: &Dockerfile,
        options: &'a Options,
        answers: &'a Answers,
        linter: Linter,
    ) -> Result<Self> {
        let mut builder = Builder::default();
        let context = builder.add(context::placeholder(0)).map_err(graph)?;
        let patterns = match &options.context {
            MainContext::Local { ignore, .. } => ignore.as_slice(),
            MainContext::Graph(_) => &[],
        };
        let platform = options.platform.as_ref().unwrap_or(&options.build_platform);
        Ok(Self {
            options,
            answers,
            escape: dockerfile.escape,
            builder,
            linter,
            budget: Budget::default(),
            copied: 0,
            global: Environment::default(),
            epoch: None,
            targets: Vec::new(),
            by_name: HashMap::new(),
            paths: Vec::new(),
            context,
            locals: Vec::new(),
            ignore: Matcher::new(patterns.iter().map(String::as_str))?,
            target_platform: platform.clone(),
            proxy: args::proxy(&options.build_args),
            missing: Vec::new(),
        })
    }

    fn run(&mut self, dockerfile: &Dockerfile, text: &str) -> Result<Outcome> {
        for number in &dockerfile.empty_continuations {
            let here = Lines::new(*number, *number);
            let detail = "Empty continuation line".to_owned();
            self.linter
                .warn(&[], Rule::NoEmptyContinuation, here, detail);
        }
        let parsed = Stages::parse(dockerfile, &mut self.linter)?;
        let Some(last) = parsed.stages.last() else {
            return Err(Error::new("dockerfile contains no stages to build"));
        };
        lints::stage_names(&parsed.stages, &mut self.linter);
        lints::casing(&parsed.stages, &mut self.linter);
        let target_name = match self.options.target.as_str() {
            "" => last.name.clone(),
            name => name.to_owned(),
        };
        let uses = self.global_args(&parsed, &target_name)?;
        self.resolve_epoch(&parsed)?;
        if !self.missing.is_empty() {
            return Ok(self.needs());
        }
        self.add_stages(parsed.stages, &uses)?;
        let target = self.find_target()?;
        self.link_stages()?;
        let needed = self.resolve_stages(target)?;
        if !self.missing.is_empty() {
            return Ok(self.needs());
        }
        self.dispatch_stages(&needed)?;
        self.finish(target, text)
            .map(|done| Outcome::Done(Box::new(done)))
    }

    fn needs(&mut self) -> Outcome {
        Outcome::Needs(std::mem::take(&mut self.missing))
    }

    /// Returns the answer to a request, or `None` after adding it to what is missing.
    fn ask(&mut self, request: Request) -> Result<Option<&'a Answer>> {
        match self.answers.get(&request) {
            Some(Answer::Failed(cause)) => Err(Error::new(cause.clone())),
            Some(answer) => Ok(Some(answer)),
            None => {
                if !self.missing.contains(&request) {
                    self.missing.push(request);
                }
                Ok(None)
            }
        }
    }

    /// Finds the stage to build.
    fn find_target(&self) -> Result<usize> {
        let name = &self.options.target;
        if name.is_empty() {
            return Ok(self.targets.len() - 1);
        }
        self.by_name
            .get(&name.to_lowercase())
            .copied()
            .ok_or_else(|| {
                let error = Error::new(format!("target stage {name:?} could not be found"));
                let names = self.targets.iter().map(|target| target.name.as_str());
                error.suggest(
                    name,
                    names.filter(|name| !name.is_empty()).take(SUGGESTED),
                    true,
                )
            })
    }

    fn finish(&mut self, target: usize, text: &str) -> Result<Conversion> {
        self.linter.check()?;
        self.replace_contexts();
        let outline = self.outline(target);
        let scanned = match self.options.is_scanned {
            true => self.scanned(target)?,
            false => Vec::new(),
        };
        let done = &self.targets[target];
        let mut image = done.image.clone();
        let labels = self.options.labels.iter();
        image
            .config
            .labels
            .extend(labels.map(|(key, value)| (key.clone(), value.clone())));
        if self.options.platform.is_some() {
            let wanted = &self.target_platform;
            let same = wanted.os == image.os && wanted.architecture == image.architecture;
            image.os.clone_from(&wanted.os);
            image.architecture.clone_from(&wanted.architecture);
            if !wanted.variant.is_empty() || !same {
                image.variant.clone_from(&wanted.variant);
            }
            if !wanted.os_version.is_empty() || !same {
                image.os_version.clone_from(&wanted.os_version);
            }
            if !wanted.os_features.is_empty() {
                image.os_features.clone_from(&wanted.os_features);
            }
        }
        image.set_platform(image.platform().normalized());
        let file = SourceInfo {
            filename: self.options.filename.clone(),
            data: text.as_bytes().to_vec(),
            definition: self.options.file_definition.clone(),
            language: "Dockerfile".into(),
        };
        Ok(Conversion {
            definition: self.builder.definition(done.state.output, Some(file)),
            image,
            base_image: done.base_image.clone(),
            epoch: self.epoch,
            ignore_cache: done.ignore_cache,
            outline,
            scanned,
        })
    }

    /// Counts what a copy takes.
    fn count_copy(&mut self, bytes: usize) -> Result<()> {
        self.copied = self.copied.saturating_add(bytes);
        if self.copied > MAX_COPIES {
            return Err(Error::new(format!(
                "the stages copy more than {MAX_COPIES} bytes of variables and configurations"
            )));
        }
        Ok(())
    }

    fn add(&mut self, vertex: Vertex) -> Result<Output> {
        self.builder.add(vertex).map_err(graph)
    }
}

/// The number of names that are compared for a suggestion.
const SUGGESTED: usize = 200;

fn graph(error: whelk_llb::Error) -> Error {
    Error::new(error.to_string())
}

/// Returns lines in the form of a definition.
fn ranges(lines: Lines) -> Vec<Range> {
    let position = |line: u32| Position {
        line: i32::try_from(line).unwrap_or(i32::MAX),
        character: 0,
    };
    let range = |line| Range {
        start: Some(position(line)),
        end: Some(position(line)),
    };
    lines.iter().filter(|line| *line > 0).map(range).collect()
}

/// Returns metadata with the name that clients show, and the required capabilities.
fn metadata(name: &str, caps: &[&str]) -> OpMetadata {
    let mut metadata = OpMetadata::default();
    if !name.is_empty() {
        metadata.description.insert(CUSTOM_NAME.into(), name.into());
    }
    metadata.caps = caps.iter().map(|cap| ((*cap).to_owned(), true)).collect();
    metadata
}

/// The entry of a description with the instruction.
const COMMAND: &str = "com.docker.dockerfile.v1.command";

#[cfg(test)]
mod tests;
