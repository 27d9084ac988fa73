//! Which stages depend on which, their base images, and the triggers of these.

use std::collections::BTreeMap;

use whelk_llb::Vertex;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{Platform, SourceOp};

use super::context::parse_config;
use super::image::Image;
use super::target::{Command, State, Target, Uses};
use super::{Answer, COMMAND, Converter, Request, SUGGESTED, lints, metadata, names, ranges};
use crate::error::{Error, Lines, Result};
use crate::expand::{Environment, Lexer};
use crate::instruction::Instruction;
use crate::lint::Rule;
use crate::parser::parse_trigger;
use crate::stage::{Stage, Step};

const SCRATCH: &str = "scratch";

impl Converter<'_> {
    /// Adds the stages of the file.
    pub(super) fn add_stages(&mut self, stages: Vec<Stage>, uses: &Uses) -> Result<()> {
        for (number, stage) in stages.into_iter().enumerate() {
            let lines = stage.lines;
            self.add_stage(stage, number, uses)
                .map_err(|error| error.at(lines))?;
        }
        Ok(())
    }

    fn add_stage(&mut self, mut stage: Stage, number: usize, uses: &Uses) -> Result<()> {
        let expansion = Lexer::new(self.escape, &self.global, &self.budget).expand(&stage.base);
        let base = expansion?;
        lints::undeclared(&base, &self.global, uses, &stage, &mut self.linter);
        if base.text.is_empty() {
            return Err(Error::new(format!(
                "base name ({}) should not be blank",
                stage.base
            )));
        }
        stage.base = base.text;
        let mut used = base.set;
        let mut target = Target {
            name: stage.name.clone(),
            uses: uses.clone(),
            paths: self.paths.len(),
            ..Target::default()
        };
        self.paths.push(Default::default());
        if !stage.platform.is_empty() {
            target.platform = Some(self.stage_platform(&stage, uses, &mut used)?);
        }
        if !stage.name.is_empty()
            && let Some(context) = self.named_context(&stage.name, target.platform.as_ref())?
        {
            target.replaced_by = Some(context);
            target.stage = stage;
            let index = self.add_target(target);
            self.targets[index].base = None;
            return Ok(());
        }
        if stage.name.is_empty() {
            target.name = format!("stage-{number}");
        }
        target.ignore_cache = self.options.ignores_cache(&stage.name);
        let is_step = |step: &&Step| {
            matches!(
                step.instruction,
                Instruction::Add(_)
                    | Instruction::Copy(_)
                    | Instruction::Run(_)
                    | Instruction::Workdir(_)
            )
        };
        let steps = stage.steps.iter().filter(is_step).count();
        let from_image = stage.base != SCRATCH;
        target.stage = stage;
        let index = self.add_target(target);
        let target = &mut self.targets[index];
        target.uses.used_args.extend(used);
        target.step_count = steps + usize::from(from_image && target.base.is_none());
        Ok(())
    }

    fn stage_platform(
        &mut self,
        stage: &Stage,
        uses: &Uses,
        used: &mut std::collections::BTreeSet<String>,
    ) -> Result<Platform> {
        let written = &stage.platform;
        let expansion = Lexer::new(self.escape, &self.global, &self.budget)
            .expand(written)
            .map_err(|error| error.context("failed to process arguments for platform "))?;
        lints::undeclared(&expansion, &self.global, uses, stage, &mut self.linter);
        lints::platform(&expansion, &self.global, stage, &mut self.linter);
        let suggest = |error: Error| {
            let names = self.global.names();
            expansion.unset.iter().fold(error, |error, unset| {
                error.suggest(unset, names.iter().copied().take(SUGGESTED), true)
            })
        };
        if expansion.text.is_empty() {
            return Err(suggest(Error::new(format!(
                "empty platform value from expression {written}"
            ))));
        }
        let platform =
            Platform::parse(&expansion.text, &self.options.build_platform).map_err(|error| {
                suggest(Error::new(format!(
                    "failed to parse platform {written}: {error}"
                )))
            })?;
        used.extend(expansion.set);
        Ok(platform)
    }

    /// Adds a target, and finds the one that it is based on.
    fn add_target(&mut self, mut target: Target) -> usize {
        if let Some(&base) = self.by_name.get(&target.stage.base) {
            target.base = Some(base);
            target.uses = self.targets[base].uses.clone();
        }
        let index = self.targets.len();
        if !target.stage.name.is_empty() {
            self.by_name.insert(target.stage.name.to_lowercase(), index);
        }
        self.targets.push(target);
        index
    }

    /// Finds what the steps of all stages read from.
    pub(super) fn link_stages(&mut self) -> Result<()> {
        for index in 0..self.targets.len() {
            let steps = std::mem::take(&mut self.targets[index].stage.steps);
            for step in steps {
                let lines = step.lines;
                let command = self.link(step, false).map_err(|error| error.at(lines))?;
                let target = &mut self.targets[index];
                let sources = command.sources.iter().flatten();
                target.deps.extend(sources.map(|source| (*source, lines)));
                target.commands.push(command);
            }
        }
        self.refuse_cycles()?;
        if let [only] = self.targets.as_mut_slice() {
            only.name.clear();
        }
        Ok(())
    }

    fn link(&mut self, step: Step, is_trigger: bool) -> Result<Command> {
        let sources = match &step.instruction {
            Instruction::Copy(copy) if !copy.from.is_empty() => {
                let empty = Environment::default();
                if Lexer::new(self.escape, &empty, &self.budget).word(&copy.from)? != copy.from {
                    return Err(Error::new(
                        "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
                    ));
                }
                let source = match copy.from.parse::<i64>() {
                    Ok(number) => usize::try_from(number)
                        .ok()
                        .filter(|number| *number < self.targets.len())
                        .ok_or_else(|| Error::new(format!("invalid stage index {number}")))?,
                    Err(_) => self.source(&copy.from, step.lines),
                };
                vec![Some(source)]
            }
            Instruction::Run(run) => {
                let from = run.mounts.iter().map(|mount| mount.from.clone());
                let from: Vec<String> = from.collect();
                from.iter()
                    .map(|from| (!from.is_empty()).then(|| self.source(from, step.lines)))
                    .collect()
            }
            _ => Vec::new(),
        };
        Ok(Command {
            step,
            sources,
            is_trigger,
        })
    }

    /// Returns the stage with a name, or an image of that name as a target of its own.
    fn source(&mut self, name: &str, lines: Lines) -> usize {
        if let Some(&known) = self.by_name.get(&name.to_lowercase()) {
            return known;
        }
        let target = Target {
            stage: Stage {
                base: name.to_owned(),
                lines,
                ..Stage::default()
            },
            paths: self.paths.len(),
            is_external: true,
            ..Target::default()
        };
        self.paths.push(Default::default());
        self.add_target(target)
    }

    fn refuse_cycles(&self) -> Result<()> {
        let mut visited = vec![false; self.targets.len()];
        let mut open = vec![false; self.targets.len()];
        for start in 0..self.targets.len() {
            // Each entry is a target, the number of its dependencies that were visited, and how it was reached.
            let mut path: Vec<(usize, usize, Option<Lines>)> = vec![(start, 0, None)];
            if visited[start] {
                continue;
            }
            (visited[start], open[start]) = (true, true);
            while let Some((index, next, _)) = path.last_mut() {
                let Some(&(dep, lines)) = self.targets[*index].deps.get(*next) else {
                    open[*index] = false;
                    path.pop();
                    continue;
                };
                *next += 1;
                if open[dep] {
                    let mut error = Error::new(format!(
                        "circular dependency detected on stage: {}",
                        self.targets[start].name
                    ));
                    let steps = path.iter().filter_map(|(_, _, lines)| *lines);
                    error.lines = steps.chain([lines]).collect();
                    return Err(error);
                }
                if !visited[dep] {
                    (visited[dep], open[dep]) = (true, true);
                    path.push((dep, 0, Some(lines)));
                }
            }
        }
        Ok(())
    }

    /// Returns which targets are needed.
    fn needed(&self, target: usize) -> Vec<bool> {
        let mut needed = vec![self.options.all_stages; self.targets.len()];
        let mut open = vec![target];
        needed[target] = true;
        while let Some(index) = open.pop() {
            let target = &self.targets[index];
            let next = target.base.into_iter();
            for dep in next.chain(target.deps.iter().map(|(dep, _)| *dep)) {
                if !needed[dep] {
                    needed[dep] = true;
                    open.push(dep);
                }
            }
        }
        needed
    }

    /// Resolves the base images of what is needed, which may have triggers that need more. Returns what is needed
    /// in the end.
    pub(super) fn resolve_stages(&mut self, target: usize) -> Result<Vec<bool>> {
        loop {
            let needed = self.needed(target);
            for (index, needed) in needed.iter().copied().enumerate() {
                let target = &self.targets[index];
                if target.base.is_some() || target.dispatched || target.resolved {
                    continue;
                }
                let lines = target.stage.lines;
                self.resolve_base(index, needed)
                    .map_err(|error| error.at(lines))?;
            }
            if !self.missing.is_empty() {
                return Ok(needed);
            }
            let mut more = false;
            for index in (0..needed.len()).filter(|index| needed[*index]) {
                // What is only read from has no steps. Otherwise an image whose trigger reads from itself would
                // be added without end.
                if self.targets[index].dispatched {
                    continue;
                }
                let triggers = self.triggers(index);
                let lines = self.targets[index].stage.lines;
                more |= self.add_triggers(index, triggers).map_err(|mut error| {
                    error.lines = vec![lines];
                    error
                })?;
            }
            if !more {
                return Ok(needed);
            }
        }
    }

    /// Takes the triggers of the base of a target.
    fn triggers(&mut self, index: usize) -> Vec<String> {
        let target = &mut self.targets[index];
        let mut triggers = std::mem::take(&mut target.image.config.on_build);
        if let Some(base) = target.base
            && !std::mem::replace(&mut target.triggers_read, true)
        {
            let commands = self.targets[base].commands.iter();
            triggers.extend(
                commands.filter_map(|command| match &command.step.instruction {
                    Instruction::Onbuild(trigger) => Some(trigger.clone()),
                    _ => None,
                }),
            );
        }
        triggers
    }

    /// Puts triggers in front of the steps of a target. Returns whether they read from other targets.
    fn add_triggers(&mut self, index: usize, triggers: Vec<String>) -> Result<bool> {
        let mut reads = false;
        let mut commands = Vec::with_capacity(triggers.len());
        for trigger in triggers {
            let mut line = parse_trigger(&trigger)?;
            line.lines = self.targets[index].stage.lines;
            let command = self.link(Step::of(&line)?, true)?;
            let sources = command.sources.iter().flatten();
            let deps: Vec<(usize, Lines)> = sources.map(|source| (*source, line.lines)).collect();
            reads |= !deps.is_empty();
            self.targets[index].deps.extend(deps);
            commands.push(command);
        }
        if !commands.is_empty() {
            let target = &mut self.targets[index];
            target.step_count += commands.len();
            commands.append(&mut target.commands);
            target.commands = commands;
            self.refuse_cycles()?;
        }
        Ok(reads)
    }

    fn resolve_base(&mut self, index: usize, needed: bool) -> Result<()> {
        let target = &mut self.targets[index];
        target.resolved = needed;
        if target.stage.base == SCRATCH && target.replaced_by.is_none() {
            target.image = Image::empty(&self.target_platform);
            target.platform = Some(self.target_platform.clone());
            target.dispatched = target.is_external;
            return Ok(());
        }
        let written = target.stage.base.clone();
        let reference = (self.options.parse_reference)(&written).map_err(|error| {
            Error::new(format!("failed to parse stage name {written:?}: {error}"))
        })?;
        if !needed {
            return Ok(());
        }
        let found = self.resolve_needed(index, &written, &reference.full)?;
        let target = &mut self.targets[index];
        if !found {
            target.resolved = false;
        } else if target.is_external {
            target.dispatched = true;
        }
        Ok(())
    }

    /// Resolves the base of a target that is needed. Returns whether all that is needed for it is known.
    fn resolve_needed(&mut self, index: usize, written: &str, full: &str) -> Result<bool> {
        let paths = self.targets[index].paths;
        if let Some(context) = self.targets[index].replaced_by.clone() {
            let Some((state, image)) = self.load_context(&context, paths)? else {
                return Ok(false);
            };
            let target = &mut self.targets[index];
            target.dispatched = true;
            target.state = state;
            // A directory has no configuration, and stands for files of the platform that is built for.
            let platform = target.platform.as_ref().unwrap_or(&self.target_platform);
            let empty = Image::empty(platform);
            if let Some(image) = &image
                && !image.os.is_empty()
                && !image.architecture.is_empty()
            {
                target.platform = Some(image.platform());
            }
            target.image = image.unwrap_or(empty);
            return Ok(true);
        }
        let platform = self.targets[index].platform.clone();
        let wanted = platform
            .clone()
            .unwrap_or_else(|| self.target_platform.clone());
        if let Some(context) = self.named_context(full, Some(&wanted))? {
            if !self.targets[index].is_external {
                // A stage stands on all of it.
                self.paths[paths].insert("/".into());
            }
            let Some((mut state, image)) = self.load_context(&context, paths)? else {
                return Ok(false);
            };
            let image = image.unwrap_or_else(|| Image::empty(&wanted));
            state.platform = Some(wanted.normalized());
            let target = &mut self.targets[index];
            target.base_image = Some(image.clone());
            target.image = image;
            target.state = state;
            target.platform = Some(wanted);
            return Ok(true);
        }
        let mut label = String::from("[");
        if self.options.multi_platform {
            label = label + &wanted.specifier() + " ";
        }
        let request = Request::Image {
            reference: full.to_owned(),
            platform: wanted.clone(),
            name: format!("{label}internal] load metadata for {full}"),
            layout: None,
        };
        let answer = self.ask(request).map_err(|error| {
            let names = self.targets.iter().map(|target| target.name.as_str());
            let names = names.filter(|name| !name.is_empty()).take(SUGGESTED);
            error
                .context(written)
                .suggest(written, names.chain(COMMON), true)
        })?;
        if let Some(Answer::Replaced(by)) = answer {
            let text = format!("ref mutated by policy to non-image: docker-image://{full} -> {by}");
            return Err(Error::new(text).context(written));
        }
        let Some(Answer::Image {
            reference,
            digest,
            config,
        }) = answer
        else {
            return Ok(false);
        };
        let (reference, digest) = (reference.clone(), digest.clone());
        let image = parse_config(config)?;
        self.use_image(
            index,
            image,
            platform,
            wanted,
            &with_digest(&reference, &digest),
            written,
        )?;
        Ok(true)
    }

    /// Sets the base of a target to an image.
    fn use_image(
        &mut self,
        index: usize,
        image: Image,
        platform: Option<Platform>,
        wanted: Platform,
        reference: &str,
        written: &str,
    ) -> Result<()> {
        let build = &self.options.build_platform;
        let matches =
            |known: &Platform| known.os == image.os && known.architecture == image.architecture;
        let wanted = match platform {
            None if self.options.platform.is_none() && !matches(&wanted) && matches(build) => {
                build.clone()
            }
            _ => wanted,
        };
        let no_layers =
            image.rootfs.diff_ids.is_empty() && image.history.iter().all(|entry| entry.empty_layer);
        let target = &mut self.targets[index];
        target.base_image = Some(image.clone());
        let actual = image.platform();
        target.image = image;
        target.stage.base = reference.to_owned();
        target.platform = Some(wanted.clone());
        if no_layers {
            target.state = State::default();
            return Ok(());
        }
        let (code, lines) = (target.stage.code.clone(), target.stage.lines);
        let name = names::prefixed(
            target,
            &format!("FROM {reference}"),
            Some(&wanted),
            &Environment::default(),
            self.options.multi_platform,
        );
        let mut attrs = BTreeMap::new();
        let mut caps = vec!["source.image"];
        if let Some(mode) = self.options.resolve_mode.attribute() {
            attrs.insert("image.resolvemode".to_owned(), mode.to_owned());
            if mode == "pull" {
                caps.push("source.image.resolvemode");
            }
        }
        let mut metadata = metadata(&name, &caps);
        metadata.description.insert(COMMAND.into(), code);
        let output = self.add(Vertex {
            kind: Kind::Source(SourceOp {
                identifier: format!("docker-image://{reference}"),
                attrs,
            }),
            inputs: Vec::new(),
            platform: Some(wanted.clone()),
            metadata,
            lines: ranges(lines),
        })?;
        let target = &mut self.targets[index];
        target.state = State {
            output: Some(output),
            platform: Some(wanted.normalized()),
            ..State::default()
        };
        if wanted.os != actual.os || wanted.architecture != actual.architecture {
            let detail = format!(
                "Base image {written} was pulled with platform {:?}, expected {:?} for current build",
                actual.normalized().specifier(),
                wanted.normalized().specifier()
            );
            self.linter
                .warn(&[], Rule::InvalidBaseImagePlatform, lines, detail);
        }
        Ok(())
    }
}

/// Common images, for suggestions.
const COMMON: [&str; 7] = [
    "alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora",
];

fn with_digest(reference: &str, digest: &str) -> String {
    if digest.is_empty() {
        return reference.to_owned();
    }
    let name = reference.split('@').next().unwrap_or_default();
    format!("{name}@{digest}")
}
