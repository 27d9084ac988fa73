//! Resolves names to targets: groups, what targets inherit, overrides, and targets that others stand on.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::Definitions;
use crate::entries::Output;
use crate::error::{Error, Result};
use crate::overrides::{Granted, Override, Overrides};
use crate::paths::matches;
use crate::target::{Group, Target, unique};

/// How deep targets may inherit from others, and stand on others.
const MAX_DEPTH: usize = 200;

/// What is built.
#[derive(Debug, Default, Serialize)]
pub struct Resolved {
    #[serde(rename = "group", skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, Group>,
    #[serde(rename = "target")]
    pub targets: BTreeMap<String, Target>,
    /// What overrides may access, because the user has named it.
    #[serde(skip)]
    pub granted: Granted,
}

impl Definitions {
    /// Returns targets by names of targets and groups, which may be patterns, with overrides (`TARGET.KEY=VALUE`).
    ///
    /// # Errors
    /// Returns an error if there is no such target, or an override is not valid.
    pub fn resolve(
        &self,
        names: &[String],
        overrides: &[String],
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Resolved> {
        let mut wanted = Vec::new();
        for name in names {
            wanted.extend(self.matching(&name.replace('.', "_"))?);
        }
        let wanted = unique(&wanted);
        let overrides = Overrides::new(self, overrides, &variable)?;
        let mut resolved = Resolved::default();
        for name in &wanted {
            let (mut targets, mut groups) = (Vec::new(), Vec::new());
            self.members(name, &mut targets, &mut groups);
            for name in unique(&targets) {
                let target = self.target(&name, &overrides, &mut resolved.granted)?;
                resolved.targets.insert(name, target);
            }
            for name in groups {
                let group = self.groups.iter().find(|group| group.name == name);
                resolved
                    .groups
                    .extend(group.map(|group| (name, group.clone())));
            }
        }
        for name in &wanted {
            if name == "default" && resolved.groups.contains_key(name) {
                continue;
            }
            let default = resolved.groups.entry("default".into());
            let default = default.or_insert_with(|| Group {
                name: "default".into(),
                ..Group::default()
            });
            default.targets.push(name.clone());
        }
        if let Some(default) = resolved.groups.get_mut("default") {
            default.targets = unique(&default.targets);
            default.targets.sort();
        }
        for name in resolved.targets.keys().cloned().collect::<Vec<_>>() {
            self.link(&name, &mut resolved, &overrides, &mut Vec::new())?;
        }
        Ok(resolved)
    }

    /// Returns the names that a pattern stands for.
    fn matching(&self, pattern: &str) -> Result<Vec<String>> {
        if !pattern.contains(['*', '?', '[', ']']) {
            return Ok(vec![pattern.to_owned()]);
        }
        let groups = self.groups.iter().map(|group| &group.name);
        let all = groups.chain(self.targets.iter().map(|target| &target.name));
        let found: Vec<String> = all
            .filter(|name| matches(pattern, name).unwrap_or(false))
            .cloned()
            .collect();
        match found.is_empty() {
            true => Err(Error::new(format!(
                "could not find any target matching {pattern:?}"
            ))),
            false => Ok(found),
        }
    }

    /// Adds the targets of a group and the groups in it; a name that is no group's is a target's.
    fn members(&self, name: &str, targets: &mut Vec<String>, groups: &mut Vec<String>) {
        // Groups may contain themselves, and be nested deeply.
        let mut open = vec![name.to_owned()];
        while let Some(name) = open.pop() {
            match self.groups.iter().find(|group| group.name == name) {
                None => targets.push(name),
                Some(_) if groups.contains(&name) => {}
                Some(group) => {
                    groups.push(name);
                    open.extend(group.targets.iter().rev().cloned());
                }
            }
        }
    }

    /// Returns a target with what it inherits and with its overrides.
    fn target(&self, name: &str, overrides: &Overrides, granted: &mut Granted) -> Result<Target> {
        let mut known = BTreeMap::new();
        let target = self.inherited(name, overrides, granted, &mut known, 0)?;
        let mut target = target.unwrap_or_default();
        target.name = name.to_owned();
        target.inherits = Vec::new();
        target.context.get_or_insert_with(|| ".".into());
        if target.dockerfile.as_ref().is_none_or(String::is_empty) {
            target.dockerfile = Some("Dockerfile".into());
        }
        Ok(target)
    }

    /// Returns `None` for a target that inherits from itself.
    fn inherited(
        &self,
        name: &str,
        overrides: &Overrides,
        granted: &mut Granted,
        known: &mut BTreeMap<String, Option<Target>>,
        depth: usize,
    ) -> Result<Option<Target>> {
        if let Some(known) = known.get(name) {
            return Ok(known.clone());
        }
        if depth > MAX_DEPTH {
            return Err(Error::new(format!(
                "target {name} is inherited through more than {MAX_DEPTH} others"
            )));
        }
        known.insert(name.to_owned(), None);
        let own = self.targets.iter().find(|target| target.name == name);
        let own = own.ok_or_else(|| Error::new(format!("failed to find target {name}")))?;
        let mut target = Target::default();
        for parent in &own.inherits {
            let parent = self.inherited(parent, overrides, granted, known, depth + 1)?;
            if let Some(parent) = parent {
                target.merge(&parent);
            }
        }
        target.merge(own);
        overrides.apply(name, &mut target, granted)?;
        target.normalize();
        known.insert(name.to_owned(), Some(target.clone()));
        Ok(Some(target))
    }

    /// Adds the targets that a target's contexts name.
    fn link(
        &self,
        name: &str,
        resolved: &mut Resolved,
        overrides: &Overrides,
        visited: &mut Vec<String>,
    ) -> Result<()> {
        if visited.len() > MAX_DEPTH {
            return Err(Error::new(format!(
                "target {name} stands on more than {MAX_DEPTH} others"
            )));
        }
        visited.push(name.to_owned());
        let contexts = resolved
            .targets
            .get(name)
            .map(|target| target.contexts.clone());
        for context in contexts.unwrap_or_default().values() {
            let Some(other) = context.strip_prefix("target:") else {
                continue;
            };
            if other == name {
                return Err(Error::new(format!("target {other} cannot link to itself")));
            }
            if visited.iter().any(|name| name == other) {
                return Err(Error::new(format!("infinite loop from {name} to {other}")));
            }
            if !resolved.targets.contains_key(other) {
                let mut target = self.target(other, overrides, &mut resolved.granted)?;
                target.outputs = Some(vec![Output::of(&[("type", "cacheonly")])]);
                resolved.targets.insert(other.to_owned(), target);
            }
            self.link(other, resolved, overrides, visited)?;
            let used = resolved.targets.get(other).cloned().unwrap_or_default();
            let Some(target) = resolved.targets.get_mut(name) else {
                continue;
            };
            for right in used.entitlements.into_iter().flatten() {
                let own = target.entitlements.get_or_insert_default();
                if !own.contains(&right) {
                    own.push(right);
                }
            }
            let own = target.platforms.clone().unwrap_or_default();
            let others = used.platforms.unwrap_or_default();
            if own.len() > 1 && others.len() > 1 && !own.iter().all(|own| others.contains(own)) {
                return Err(Error::new(format!(
                    "target {other} can't be used by {name} because its platforms [{}] are not a subset of [{}]",
                    own.join(" "),
                    others.join(" ")
                )));
            }
        }
        visited.pop();
        Ok(())
    }

    /// Returns the targets that an override is of.
    pub(crate) fn overridden(&self, pattern: &str) -> Result<Vec<String>> {
        let names = || self.targets.iter().map(|target| &target.name);
        if names().any(|name| name == pattern) {
            return Ok(vec![pattern.to_owned()]);
        }
        let mut found = Vec::new();
        for name in names() {
            let is_match = matches(pattern, name).map_err(|cause| {
                Error::new(format!("could not match targets with '{pattern}': {cause}"))
            })?;
            if is_match {
                found.push(name.clone());
            }
        }
        match found.is_empty() {
            true => Err(Error::new(format!(
                "could not find any target matching '{pattern}'"
            ))),
            false => Ok(found),
        }
    }
}

impl Overrides {
    /// Changes a target.
    fn apply(&self, name: &str, target: &mut Target, granted: &mut Granted) -> Result<()> {
        let Some(own) = self.0.get(name) else {
            return Ok(());
        };
        // What is pushed and loaded depends on the outputs.
        let late = |(key, _): &(&String, &Override)| matches!(key.as_str(), "load" | "push");
        let (last, first): (Vec<_>, Vec<_>) = own.iter().partition(late);
        for (key, value) in first.into_iter().chain(last) {
            value.apply(key, target, granted)?;
        }
        Ok(())
    }
}
