//! Checks of stages, and of arguments in FROM.

use std::collections::HashSet;

use whelk_llb::pb::Platform;

use super::SUGGESTED;
use super::target::Uses;
use crate::error::Lines;
use crate::expand::{Environment, Expansion};
use crate::lint::{Linter, Rule};
use crate::stage::{Stage, Step};
use crate::suggest::similar;

const RESERVED: [&str; 2] = ["context", "scratch"];

/// Parts of the names of variables that contain secrets, and of those that do not.
const SECRET: [&str; 10] = [
    "apikey",
    "auth",
    "credential",
    "credentials",
    "key",
    "password",
    "pword",
    "passwd",
    "secret",
    "token",
];
const PUBLIC: [&str; 3] = ["public", "file", "version"];

/// Appends the similar one of `names`, if there is one.
pub(super) fn suggested<'a>(
    detail: String,
    written: &str,
    names: impl IntoIterator<Item = &'a str>,
    sign: &str,
) -> String {
    match similar(written, names.into_iter().take(SUGGESTED), true) {
        Some(name) => format!("{detail} (did you mean {sign}{name}?)"),
        None => detail,
    }
}

pub(super) fn stage_names(stages: &[Stage], linter: &mut Linter) {
    let mut seen = HashSet::new();
    for stage in stages.iter().filter(|stage| !stage.name.is_empty()) {
        let name = stage.name.as_str();
        if RESERVED.contains(&name) {
            let detail =
                format!("Stage name should not use the same name as reserved stage {name:?}");
            linter.warn(&[], Rule::ReservedStageName, stage.lines, detail);
        }
        if !seen.insert(name) {
            let detail = format!("Duplicate stage name {name:?}, stage names should be unique");
            linter.warn(&[], Rule::DuplicateStageName, stage.lines, detail);
        }
    }
}

/// Warns about names of instructions that are not in the case of most of them.
pub(super) fn casing(stages: &[Stage], linter: &mut Linter) {
    let names = stages.iter().flat_map(|stage| {
        let steps = stage
            .steps
            .iter()
            .map(|step| (step.name.as_str(), step.lines));
        std::iter::once((stage.keyword.as_str(), stage.lines)).chain(steps)
    });
    let names: Vec<(&str, Lines)> = names.collect();
    let is_lower = |name: &str| name == name.to_lowercase();
    let is_upper = |name: &str| name == name.to_uppercase();
    let lower = names.iter().filter(|(name, _)| is_lower(name)).count();
    let upper = names.iter().filter(|(name, _)| is_upper(name)).count();
    let (matches, majority): (&dyn Fn(&str) -> bool, _) = if lower > upper {
        (&is_lower, "lowercase")
    } else {
        (&is_upper, "uppercase")
    };
    for (name, lines) in names.into_iter().filter(|(name, _)| !matches(name)) {
        let detail =
            format!("Command '{name}' should match the case of the command majority ({majority})");
        linter.warn(&[], Rule::ConsistentInstructionCasing, lines, detail);
    }
}

/// Warns about arguments in FROM that are not declared before the first stage.
pub(super) fn undeclared(
    expansion: &Expansion,
    global: &Environment,
    uses: &Uses,
    stage: &Stage,
    linter: &mut Linter,
) {
    for name in &expansion.unset {
        if uses.args.contains_key(name) {
            continue;
        }
        let declared = uses.args.keys().map(String::as_str);
        let names = declared.chain(global.names());
        let detail = format!("FROM argument '{name}' is not declared");
        let detail = suggested(detail, name, names, "");
        linter.warn(
            &stage.comments,
            Rule::UndefinedArgInFrom,
            stage.lines,
            detail,
        );
    }
}

/// Checks `FROM --platform`.
pub(super) fn platform(
    expansion: &Expansion,
    global: &Environment,
    stage: &Stage,
    linter: &mut Linter,
) {
    let target = "TARGETPLATFORM";
    let only_target = expansion.set.len() == 1 && expansion.set.contains(target);
    let mut warn = |rule, detail| linter.warn(&stage.comments, rule, stage.lines, detail);
    if only_target
        && expansion.unset.is_empty()
        && global.get(target) == Some(expansion.text.as_str())
    {
        let written = &stage.platform;
        warn(
            Rule::RedundantTargetPlatform,
            format!(
                "Setting platform to predefined {written} in FROM is redundant as this is the default behavior"
            ),
        );
    }
    if expansion.set.is_empty()
        && expansion.unset.is_empty()
        && let Ok(platform) = Platform::parse(&expansion.text, &Platform::new("linux", "amd64", ""))
        && !stage.name.contains(&platform.os)
        && !stage.name.contains(&platform.architecture)
    {
        warn(
            Rule::FromPlatformFlagConstDisallowed,
            format!(
                "FROM --platform flag should not use constant value {:?}",
                expansion.text
            ),
        );
    }
}

/// Warns about a variable that seems to contain a secret.
pub(super) fn secret_key(linter: &mut Linter, step: &Step, instruction: &str, key: &str) {
    let lower = key.to_lowercase();
    // Names with `_` in them are no parts: `a_key_b` has the parts `a`, `key` and `b`.
    let has = |words: &[&str]| lower.split('_').any(|part| words.contains(&part));
    if has(&SECRET) && !has(&PUBLIC) {
        let detail = format!(
            "Do not use ARG or ENV instructions for sensitive data ({instruction} {key:?})"
        );
        linter.warn(
            &step.comments,
            Rule::SecretsUsedInArgOrEnv,
            step.lines,
            detail,
        );
    }
}
