//! Conversion of the steps of stages, except those that make layers of their own.

use std::rc::Rc;

use whelk_llb::Vertex;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{
    ChownOpt, FileAction, FileActionMkDir, FileOp, UserOpt, file_action, user_opt,
};

use super::expose;
use super::image::{Health, PATH};
use super::names::{self, list, quoted_list};
use super::target::{ArgInfo, Command as LinkedStep, Target};
use super::{Converter, lints, metadata, ranges};
use crate::error::{Lines, Result};
use crate::expand::{Environment, Lexer};
use crate::instruction::{Arg, Command, Instruction, Pair};
use crate::lint::Rule;
use crate::path;
use crate::stage::Step;

/// Arguments that are for the build only, and no variables of its steps.
pub(super) const NOT_VARIABLES: [&str; 2] =
    ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

impl Converter<'_> {
    /// Converts all stages that are needed.
    pub(super) fn dispatch_stages(&mut self, needed: &[bool]) -> Result<()> {
        for index in 0..self.targets.len() {
            if !needed.get(index).copied().unwrap_or_default() || self.targets[index].dispatched {
                continue;
            }
            let mut target = std::mem::take(&mut self.targets[index]);
            let result = self.dispatch_stage(&mut target);
            target.dispatched = true;
            self.targets[index] = target;
            result?;
        }
        Ok(())
    }

    fn dispatch_stage(&mut self, target: &mut Target) -> Result<()> {
        if let Some(base) = target.base {
            self.inherit(target, base)?;
        }
        let lines = target.stage.lines;
        if target.platform.is_none() {
            target.platform = Some(self.target_platform.clone());
        }
        let env = &mut target.image.config.env;
        let has_path = env
            .iter()
            .any(|entry| entry.split('=').next() == Some("PATH"));
        let windows = target
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os == "windows");
        if !has_path && !windows {
            env.push(format!("PATH={PATH}"));
        }
        for entry in env.clone() {
            let (name, value) = entry.split_once('=').unwrap_or((&entry, ""));
            self.set_variable(target, name, value)?;
        }
        if !self.options.hostname.is_empty() {
            target.state.hostname.clone_from(&self.options.hostname);
        }
        let directory = target.image.config.working_dir.clone();
        if !directory.is_empty() {
            set_workdir(target, &directory);
        }
        let user = target.image.config.user.clone();
        if !user.is_empty() {
            target.state.user = user;
        }
        for command in std::mem::take(&mut target.commands) {
            let here = command.step.lines;
            self.dispatch(target, &command)
                .map_err(|error| error.at(here))?;
            target.commands.push(command);
        }
        let copied = target.image.size();
        self.count_copy(copied).map_err(|error| error.at(lines))
    }

    /// Takes over the state of the target's base.
    fn inherit(&mut self, target: &mut Target, base: usize) -> Result<()> {
        let size = self.targets[base].image.size();
        self.count_copy(size)?;
        let base = &self.targets[base];
        target.state = base.state.clone();
        target.platform.clone_from(&base.platform);
        target.image = base.image.clone();
        target.image.config.on_build.clear();
        target.base_image.clone_from(&base.base_image);
        target.paths = base.paths;
        // A stage stands on all of it, if it is a directory.
        self.paths[base.paths].insert("/".into());
        target.workdir_set = base.workdir_set;
        target.build_args.extend(base.build_args.iter().cloned());
        Ok(())
    }

    /// Sets a variable of the steps that follow.
    fn set_variable(&mut self, target: &mut Target, name: &str, value: &str) -> Result<()> {
        if Rc::strong_count(&target.state.env) > 1 {
            self.count_copy(target.state.env.size())?;
        }
        Rc::make_mut(&mut target.state.env).set(name, value);
        Ok(())
    }

    fn dispatch(&mut self, target: &mut Target, command: &LinkedStep) -> Result<()> {
        let step = &command.step;
        target.in_trigger = command.is_trigger;
        let mut instruction = step.instruction.clone();
        let env = Rc::clone(&target.state.env);
        let mut unset = Vec::new();
        let lexer = Lexer::new(self.escape, &env, &self.budget);
        let expanded = instruction.expand(&lexer, &mut unset);
        self.warn_unset(target, step, &env, unset);
        drop(env);
        expanded?;
        match instruction {
            Instruction::Add(add) => self.add_files(target, step, add),
            Instruction::Copy(copy) => self.copy_files(target, step, copy, &command.sources),
            Instruction::Run(run) => self.exec(target, step, run, &command.sources),
            Instruction::Arg(args) => self.declare_args(target, step, args),
            Instruction::Env(pairs) => self.env(target, step, pairs),
            Instruction::Label(pairs) => {
                let mut message = String::from("LABEL");
                for pair in pairs {
                    self.warn_legacy(step, pair.legacy);
                    message = message + " " + &pair.key + "=" + &pair.value;
                    target.image.config.labels.insert(pair.key, pair.value);
                }
                self.commit(target, message);
                Ok(())
            }
            Instruction::Workdir(path) => self.workdir(target, step, &path),
            Instruction::Cmd(command) => {
                let previous = target.cmd.replace(step.lines);
                self.warn_repeated(step, previous);
                let arguments = self.command_line(target, step, command);
                self.commit(target, format!("CMD {}", quoted_list(&arguments)));
                target.image.config.cmd = arguments;
                target.image.config.args_escaped = true;
                Ok(())
            }
            Instruction::Entrypoint(command) => {
                let previous = target.entrypoint.replace(step.lines);
                self.warn_repeated(step, previous);
                let arguments = self.command_line(target, step, command);
                self.commit(target, format!("ENTRYPOINT {}", quoted_list(&arguments)));
                target.image.config.entrypoint = arguments;
                // The inherited command was meant for the previous entrypoint.
                if target.cmd.is_none() {
                    target.image.config.cmd.clear();
                }
                Ok(())
            }
            Instruction::Healthcheck(check) => {
                let previous = target.healthcheck.replace(step.lines);
                self.warn_repeated(step, previous);
                let health = Health::from(&check);
                self.commit(target, format!("HEALTHCHECK {}", health.shown()));
                target.image.config.healthcheck = Some(health);
                Ok(())
            }
            Instruction::Expose(ports) => self.expose(target, step, &ports),
            Instruction::Maintainer(author) => {
                self.commit(target, format!("MAINTAINER {author}"));
                target.image.author = author;
                Ok(())
            }
            Instruction::Onbuild(trigger) => {
                target.image.config.on_build.push(trigger);
                Ok(())
            }
            Instruction::Shell(shell) => {
                self.commit(target, format!("SHELL {}", list(&shell)));
                target.image.config.shell = shell;
                Ok(())
            }
            Instruction::StopSignal(signal) => {
                whelk_text::signal::parse(&signal)?;
                self.commit(target, format!("STOPSIGNAL {signal}"));
                target.image.config.stop_signal = signal;
                Ok(())
            }
            Instruction::User(user) => {
                self.commit(target, format!("USER {user}"));
                target.state.user.clone_from(&user);
                target.image.config.user = user;
                Ok(())
            }
            Instruction::Volume(paths) => {
                self.commit(target, format!("VOLUME {}", list(&paths)));
                let volumes = &mut target.image.config.volumes;
                volumes.extend(paths.into_iter().map(|path| (path, Default::default())));
                Ok(())
            }
        }
    }

    fn env(&mut self, target: &mut Target, step: &Step, pairs: Vec<Pair>) -> Result<()> {
        let mut message = String::from("ENV");
        for pair in pairs {
            self.warn_legacy(step, pair.legacy);
            lints::secret_key(&mut self.linter, step, "ENV", &pair.key);
            message = message + " " + &pair.key + "=" + &pair.value;
            // Variables of the image are also those of its steps.
            let is_new = target.state.env.get(&pair.key).is_none();
            target.image.set_env(&pair.key, &pair.value, is_new);
            self.set_variable(target, &pair.key, &pair.value)?;
        }
        self.commit(target, message);
        Ok(())
    }

    /// Adds a step that makes no layer to the history.
    fn commit(&self, target: &mut Target, message: String) {
        target.image.add_history(message, false, self.epoch);
    }

    fn workdir(&mut self, target: &mut Target, step: &Step, written: &str) -> Result<()> {
        if !target.workdir_set && !written.starts_with('/') {
            let detail = format!(
                "Relative workdir {written:?} can have unexpected results if the base image changes"
            );
            self.linter.warn(
                &step.comments,
                Rule::WorkdirRelativePath,
                step.lines,
                detail,
            );
        }
        target.workdir_set = true;
        set_workdir(target, written);
        let directory = target.state.dir.clone();
        let message = format!("WORKDIR {directory}");
        if directory == "/" {
            self.commit(target, message);
            return Ok(());
        }
        let env = Rc::clone(&target.state.env);
        let platform = target.platform.clone();
        let name = names::command(&step.code, &Lexer::new(self.escape, &env, &self.budget));
        let name = names::prefixed(
            target,
            &name,
            platform.as_ref(),
            &env,
            self.options.multi_platform,
        );
        let base = target.state.output;
        let user = Some(target.image.config.user.as_str()).filter(|user| !user.is_empty());
        let action = FileAction {
            input: if base.is_some() { 0 } else { -1 },
            secondary_input: -1,
            output: 0,
            action: Some(file_action::Action::Mkdir(FileActionMkDir {
                path: path::clean(&directory),
                mode: 0o755,
                make_parents: true,
                owner: user.map(|user| owner(user, if base.is_some() { 0 } else { -1 })),
                timestamp: self.timestamp(),
            })),
        };
        let actions = vec![action];
        target.state.output = Some(self.add(Vertex {
            metadata: metadata(&name, &["file.base"]),
            lines: ranges(step.lines),
            ..Vertex::new(Kind::File(FileOp { actions }), base.into_iter().collect())
        })?);
        target.image.add_history(message, true, self.epoch);
        Ok(())
    }

    /// Returns the time of files in nanoseconds; -1 means the current one.
    fn timestamp(&self) -> i64 {
        self.epoch
            .map_or(-1, |seconds| seconds.saturating_mul(1_000_000_000))
    }

    fn command_line(&mut self, target: &Target, step: &Step, command: Command) -> Vec<String> {
        match command {
            Command::Exec(arguments) => arguments,
            Command::Shell(line) => {
                if target.image.config.shell.is_empty() {
                    let detail = format!(
                        "JSON arguments recommended for {} to prevent unintended behavior related to OS signals",
                        step.name
                    );
                    self.linter.warn(
                        &step.comments,
                        Rule::JSONArgsRecommended,
                        step.lines,
                        detail,
                    );
                }
                target.image.with_shell(line.as_deref())
            }
        }
    }

    fn expose(&mut self, target: &mut Target, step: &Step, written: &[String]) -> Result<()> {
        let mut all = Vec::new();
        for port in written {
            let (expanded, oddities) = expose::ports(port)?;
            if oddities.upper_case {
                let detail =
                    format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
                self.linter
                    .warn(&step.comments, Rule::ExposeProtoCasing, step.lines, detail);
            }
            if oddities.host_part {
                let detail = format!(
                    "EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'"
                );
                self.linter.warn(
                    &step.comments,
                    Rule::ExposeInvalidFormat,
                    step.lines,
                    detail,
                );
            }
            all.extend(expanded);
            self.count_copy(all.len())?;
        }
        self.commit(target, format!("EXPOSE {}", list(&all)));
        let ports = &mut target.image.config.exposed_ports;
        ports.extend(all.into_iter().map(|port| (port, Default::default())));
        Ok(())
    }

    fn declare_args(&mut self, target: &mut Target, step: &Step, args: Vec<Arg>) -> Result<()> {
        let mut shown = Vec::with_capacity(args.len());
        for mut arg in args {
            lints::secret_key(&mut self.linter, step, "ARG", &arg.key);
            let given = match self.options.build_args.get(&arg.key) {
                Some(_) if arg.key == "SOURCE_DATE_EPOCH" => self.epoch_arg(),
                given => given.cloned(),
            };
            let mut is_global = false;
            if let Some(given) = given {
                arg.value = Some(given);
            } else if let Some(default) = &arg.value {
                let env = Rc::clone(&target.state.env);
                let mut unset = Vec::new();
                let value =
                    Lexer::new(self.escape, &env, &self.budget).word_noting(default, &mut unset);
                self.warn_unset(target, step, &env, unset);
                arg.value = Some(value?);
            } else if let Some(value) = self.global.get(&arg.key) {
                arg.value = Some(value.to_owned());
                is_global = true;
            }
            if let Some(value) = &arg.value
                && !NOT_VARIABLES.contains(&arg.key.as_str())
            {
                self.set_variable(target, &arg.key, value)?;
            }
            if !is_global {
                let info = ArgInfo {
                    arg: arg.clone(),
                    value: arg.value.clone().unwrap_or_default(),
                    lines: step.lines,
                    ..ArgInfo::default()
                };
                Rc::make_mut(&mut target.uses.args).insert(arg.key.clone(), info);
            }
            target.uses.used_args.insert(arg.key.clone());
            shown.push(match &arg.value {
                Some(value) => format!("{}={value}", arg.key),
                None => arg.key.clone(),
            });
            target.build_args.push(arg);
        }
        self.commit(target, format!("ARG {}", shown.join(" ")));
        Ok(())
    }

    /// Warns about variables that are not set.
    fn warn_unset(&mut self, target: &Target, step: &Step, env: &Environment, unset: Vec<String>) {
        for name in unset {
            let declared = target.build_args.iter().any(|arg| arg.key == name);
            if declared || NOT_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            let detail = format!("Usage of undefined variable '${name}'");
            let detail = lints::suggested(detail, &name, env.names(), "$");
            self.linter
                .warn(&step.comments, Rule::UndefinedVar, step.lines, detail);
        }
    }

    fn warn_legacy(&mut self, step: &Step, legacy: bool) {
        if legacy {
            let name = &step.name;
            let detail = format!(
                "\"{name} key=value\" should be used instead of legacy \"{name} key value\" format"
            );
            self.linter.warn(
                &step.comments,
                Rule::LegacyKeyValueFormat,
                step.lines,
                detail,
            );
        }
    }

    /// Warns about an instruction that a later one makes ineffective.
    fn warn_repeated(&mut self, step: &Step, previous: Option<Lines>) {
        if let Some(previous) = previous {
            let detail = format!(
                "Multiple {} instructions should not be used in the same stage because only the last one will be used",
                step.name
            );
            self.linter.warn(
                &step.comments,
                Rule::MultipleInstructionsDisallowed,
                previous,
                detail,
            );
        }
    }
}

/// Sets the working directory; a relative path is one in the current directory.
fn set_workdir(target: &mut Target, written: &str) {
    let current = &target.image.config.working_dir;
    let directory = if written.starts_with('/') {
        written.to_owned()
    } else {
        path::join(&["/", current, written])
    };
    target.image.config.working_dir.clone_from(&directory);
    target.state.dir = directory;
}

/// Parses `USER[:GROUP]`, by names or numbers. Names are those of the input with this index.
pub(super) fn owner(written: &str, input: i64) -> ChownOpt {
    let id = |text: &str| {
        let number = if text == "root" {
            Some(0)
        } else {
            text.parse::<i32>()
                .ok()
                .and_then(|id| u32::try_from(id).ok())
        };
        UserOpt {
            user: Some(match number {
                Some(number) => user_opt::User::ById(number),
                None => user_opt::User::ByName(whelk_llb::pb::NamedUserOpt {
                    name: text.to_owned(),
                    input,
                }),
            }),
        }
    };
    let (user, group) = match written.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (written, None),
    };
    ChownOpt {
        user: Some(id(user)),
        group: group.map(id),
    }
}
