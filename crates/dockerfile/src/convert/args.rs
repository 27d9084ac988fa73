//! Arguments before the first stage, predefined ones, and `SOURCE_DATE_EPOCH`.

use std::collections::BTreeMap;
use std::rc::Rc;

use whelk_llb::pb::{ProxyEnv, SourceOp};
use whelk_text::time::FOUR_DIGITS;

use super::context::http_source;
use super::git::{self, Git};
use super::target::{ArgInfo, Uses};
use super::{Answer, Converter, Request};
use crate::error::{Error, Result};
use crate::expand::{Environment, Lexer};
use crate::instruction::{Add, Instruction};
use crate::lint::Rule;
use crate::stage::{Stage, Stages};

const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// Returns the proxies that are set by build arguments.
pub(super) fn proxy(args: &BTreeMap<String, String>) -> Option<ProxyEnv> {
    let mut proxy = ProxyEnv::default();
    let mut found = false;
    for (name, value) in args {
        let field = match name.to_lowercase().as_str() {
            "http_proxy" => &mut proxy.http_proxy,
            "https_proxy" => &mut proxy.https_proxy,
            "ftp_proxy" => &mut proxy.ftp_proxy,
            "no_proxy" => &mut proxy.no_proxy,
            "all_proxy" => &mut proxy.all_proxy,
            _ => continue,
        };
        field.clone_from(value);
        found = true;
    }
    found.then_some(proxy)
}

impl Converter<'_> {
    /// Sets the arguments that are visible in FROM. Returns those that are declared, for the outline.
    pub(super) fn global_args(&mut self, parsed: &Stages, target: &str) -> Result<Uses> {
        self.global = self.predefined(target);
        self.check_defaults(parsed);
        let (global, declared) = self.declare(parsed, &self.options.build_args)?;
        self.global = global;
        Ok(Uses {
            args: Rc::new(declared),
            ..Uses::default()
        })
    }

    fn predefined(&self, target: &str) -> Environment {
        let (build, wanted) = (&self.options.build_platform, &self.target_platform);
        let stage = if target.is_empty() { "default" } else { target };
        let mut environment = Environment::default();
        for (name, value) in [
            ("BUILDPLATFORM", build.short().as_str()),
            ("BUILDOS", &build.os),
            ("BUILDOSVERSION", &build.os_version),
            ("BUILDARCH", &build.architecture),
            ("BUILDVARIANT", &build.variant),
            ("TARGETPLATFORM", wanted.specifier().as_str()),
            ("TARGETOS", &wanted.os),
            ("TARGETOSVERSION", &wanted.os_version),
            ("TARGETARCH", &wanted.architecture),
            ("TARGETVARIANT", &wanted.variant),
            ("TARGETSTAGE", stage),
        ] {
            let given = self.options.build_args.get(name);
            environment.set(name, given.map_or(value, String::as_str));
        }
        environment
    }

    /// Evaluates the arguments before the first stage, with the values that were given for some.
    fn declare(
        &self,
        parsed: &Stages,
        given: &BTreeMap<String, String>,
    ) -> Result<(Environment, BTreeMap<String, ArgInfo>)> {
        let mut environment = self.global.clone();
        let mut declared: BTreeMap<String, ArgInfo> = BTreeMap::new();
        for global in &parsed.args {
            for arg in &global.args {
                let mut info = ArgInfo {
                    arg: arg.clone(),
                    lines: global.lines,
                    ..ArgInfo::default()
                };
                let value = match (given.get(&arg.key), &arg.value) {
                    (Some(given), _) => Some(given.clone()),
                    (None, Some(default)) => {
                        let expansion = Lexer::new(self.escape, &environment, &self.budget)
                            .expand(default)
                            .map_err(|error| error.at(global.lines))?;
                        info.uses = expansion.set;
                        if info.uses.remove(&arg.key)
                            && let Some(earlier) = declared.get(&arg.key)
                        {
                            info.uses.extend(earlier.uses.iter().cloned());
                        }
                        Some(expansion.text)
                    }
                    (None, None) => None,
                };
                if let Some(value) = value {
                    environment.set(arg.key.clone(), value.clone());
                    info.value = value;
                }
                declared.insert(arg.key.clone(), info);
            }
        }
        Ok((environment, declared))
    }

    /// Warns about base images whose names are only valid if arguments are given.
    fn check_defaults(&mut self, parsed: &Stages) {
        let Ok((defaults, _)) = self.declare(parsed, &BTreeMap::new()) else {
            return;
        };
        for stage in &parsed.stages {
            let Ok(base) = Lexer::new(self.escape, &defaults, &self.budget).word(&stage.base)
            else {
                return;
            };
            if (self.options.parse_reference)(&base).is_err() {
                let detail = format!(
                    "Default value for ARG {} results in empty or invalid base image name",
                    stage.base
                );
                self.linter
                    .warn(&[], Rule::InvalidDefaultArgInFrom, stage.lines, detail);
            }
        }
    }

    /// Finds the time that the files and the history of the result have.
    pub(super) fn resolve_epoch(&mut self, parsed: &Stages) -> Result<()> {
        let given = self.options.build_args.get(EPOCH).map(String::as_str);
        let declared = self.global.get(EPOCH).filter(|value| !value.is_empty());
        let Some(value) = given.or(declared).map(str::to_owned) else {
            return Ok(());
        };
        self.epoch = match value.parse::<i64>() {
            _ if value.is_empty() => None,
            Ok(seconds) => Some(seconds),
            Err(_) => self.epoch_of(&value, parsed)?,
        };
        // The image's configuration could not tell it.
        if let Some(seconds) = self.epoch.filter(|epoch| !FOUR_DIGITS.contains(epoch)) {
            return Err(Error::new(format!(
                "invalid {EPOCH}: {seconds}: year outside of range [0,9999]"
            )));
        }
        match self.epoch {
            Some(seconds) if self.global.get(EPOCH).is_some() => {
                self.global.set(EPOCH, seconds.to_string());
            }
            Some(_) => {}
            None => self.global.remove(EPOCH),
        }
        Ok(())
    }

    /// Returns the value of `SOURCE_DATE_EPOCH` for the stages that declare it.
    pub(super) fn epoch_arg(&self) -> Option<String> {
        self.epoch.map(|seconds| seconds.to_string())
    }

    /// Returns the time of the context, of a named context, or of the source of a stage.
    fn epoch_of(&mut self, value: &str, parsed: &Stages) -> Result<Option<i64>> {
        let (source, name) = if value == "context" {
            let name = "[internal] resolve main build context metadata".to_owned();
            (self.context_source(), name)
        } else if let Some(context) = self.named_context(value, None)? {
            let name = format!("[internal] resolve SOURCE_DATE_EPOCH named context {value}");
            (context.source()?, name)
        } else {
            let mut stages = parsed.stages.iter();
            let Some(stage) = stages.find(|stage| stage.name.eq_ignore_ascii_case(value)) else {
                return Err(Error::new(format!("invalid SOURCE_DATE_EPOCH: {value}")));
            };
            let name = format!(
                "[internal] resolve SOURCE_DATE_EPOCH source stage {}",
                stage.name
            );
            let source = self
                .stage_source(stage)
                .map_err(|error| error.at(stage.lines))?;
            (Some(source), name)
        };
        let Some(source) = source else {
            return Ok(None);
        };
        let source = super::Source::from(&source);
        match self.ask(Request::Time { source, name })? {
            Some(Answer::Time(time)) => Ok(*time),
            _ => Ok(None),
        }
    }

    /// Returns the source of a stage that consists of one ADD.
    fn stage_source(&self, stage: &Stage) -> Result<SourceOp> {
        let mut environment = self.global.clone();
        environment.remove(EPOCH);
        let word = |environment: &Environment, text: &str| {
            Lexer::new(self.escape, environment, &self.budget).word(text)
        };
        if word(&environment, &stage.base)? != "scratch" {
            return Err(Error::new("SOURCE_DATE_EPOCH stage must use FROM scratch"));
        }
        let mut source = None;
        for step in &stage.steps {
            match &step.instruction {
                Instruction::Arg(args) => {
                    for arg in args {
                        let value = match (self.options.build_args.get(&arg.key), &arg.value) {
                            (Some(given), _) => given.clone(),
                            (None, Some(default)) => word(&environment, default)?,
                            (None, None) => continue,
                        };
                        environment.set(arg.key.clone(), value);
                    }
                }
                Instruction::Add(add) if source.is_none() => {
                    source = Some(add_source(add, &|text| word(&environment, text))?);
                }
                Instruction::Add(_) => return Err(one_add()),
                _ => {
                    return Err(Error::new(format!(
                        "SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported {} instruction",
                        step.name
                    )));
                }
            }
        }
        source.ok_or_else(one_add)
    }
}

fn one_add() -> Error {
    Error::new("SOURCE_DATE_EPOCH stage must contain exactly one remote ADD")
}

fn add_source(add: &Add, word: &dyn Fn(&str) -> Result<String>) -> Result<SourceOp> {
    let ([written], []) = (add.files.sources.as_slice(), add.files.documents.as_slice()) else {
        return Err(Error::new(
            "SOURCE_DATE_EPOCH stage must contain exactly one remote ADD source",
        ));
    };
    let written = word(written)?;
    let checksum = word(&add.checksum)?;
    if git::is_http(&written) {
        return Ok(http_source(&written, &git::file_name(&written), &checksum));
    }
    match Git::parse(&written)? {
        Some(mut git) if !git.maybe_local => {
            git.keep_git_dir = add.keep_git_dir.filter(|keep| *keep).or(git.keep_git_dir);
            if !checksum.is_empty() {
                git.checksum = checksum;
            }
            Ok(git.source().0)
        }
        _ => Err(Error::new(
            "SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD",
        )),
    }
}
