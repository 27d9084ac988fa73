//! Resolves names to targets: groups, what targets inherit, overrides, and targets that others stand on.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use serde::Serialize;

use crate::Definitions;
use crate::entries::Output;
use crate::error::{Error, Result};
use crate::overrides::{Granted, Override, Overrides};
use crate::paths::matches;
use crate::target::{Group, Target, size_of, unique};

/// How deep targets may inherit from others, and stand on others.
const MAX_DEPTH: usize = 200;

/// Maximum size of all targets together, with what they inherit, in bytes; also of what one target inherits.
const MAX_SIZE: usize = 64 << 20;

/// Maximum number of bytes that are read to find what targets inherit and depend on.
const MAX_WORK: usize = 1 << 30;

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
    /// Returns an error if there is no such target, if an override is not valid, or if targets inherit too much.
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
        let mut resolver = Resolver::new(self, Overrides::new(self, overrides, &variable)?);
        let (targets, groups) = self.members(&wanted);
        for name in targets {
            resolver.add(name, |_| {})?;
        }
        let mut resolved = Resolved::default();
        for group in groups {
            resolved.groups.insert(group.name.clone(), group.clone());
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
        for name in resolver.targets.keys().cloned().collect::<Vec<_>>() {
            resolver.link(&name, &mut Vec::new())?;
        }
        resolved.targets = resolver.targets;
        resolved.granted = resolver.granted;
        Ok(resolved)
    }

    /// Returns the names that a pattern stands for.
    fn matching(&self, pattern: &str) -> Result<Vec<String>> {
        if !pattern.contains(['*', '?', '[', ']']) {
            return Ok(vec![pattern.to_owned()]);
        }
        let found: Vec<String> = self
            .groups
            .keys()
            .chain(self.targets.keys())
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

    /// Returns the targets and groups that names stand for, also those in groups. A name that is no group's is a target's, and so is, in
    /// a group, that of an empty one or of one that the group is in.
    fn members<'a>(&'a self, names: &'a [String]) -> (Vec<&'a str>, Vec<&'a Group>) {
        let (mut targets, mut groups) = (Vec::new(), Vec::new());
        let (mut added, mut known, mut within) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        // Groups may be nested deeply.
        let mut open: Vec<Visit<'_>> = names.iter().rev().map(|name| Visit::Named(name)).collect();
        while let Some(visit) = open.pop() {
            let (name, group) = match visit {
                Visit::Named(name) => (name, self.groups.get(name)),
                Visit::Member(name) => {
                    let group = self.groups.get(name);
                    let group = group.filter(|group| !group.targets.is_empty());
                    (name, group.filter(|_| !within.contains(name)))
                }
                Visit::End(name) => {
                    within.remove(name);
                    continue;
                }
            };
            let Some(group) = group else {
                if added.insert(name) {
                    targets.push(name);
                }
                continue;
            };
            if known.insert(name) {
                groups.push(group);
                within.insert(name);
                open.push(Visit::End(name));
                let members = group.targets.iter().rev();
                open.extend(members.map(|member| Visit::Member(member)));
            }
        }
        (targets, groups)
    }

    /// Returns the targets that an override is of.
    pub(crate) fn overridden(&self, pattern: &str) -> Result<Vec<String>> {
        if self.targets.contains_key(pattern) {
            return Ok(vec![pattern.to_owned()]);
        }
        let mut found = Vec::new();
        for name in self.targets.keys() {
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

/// What is next when groups are gone through.
#[derive(Clone, Copy)]
enum Visit<'a> {
    /// A name that the user has given.
    Named(&'a str),
    /// A name in a group.
    Member(&'a str),
    /// The end of a group.
    End(&'a str),
}

/// Finds what targets inherit and stand on. A short definition may inherit large values many times: the bytes that are kept, and those
/// that are gone through, are counted.
struct Resolver<'d> {
    definitions: &'d Definitions,
    overrides: Overrides,
    granted: Granted,
    targets: BTreeMap<String, Target>,
    /// How many levels of others each target stands on, of those whose links are known.
    linked: BTreeMap<String, usize>,
    /// The bytes of `targets`.
    size: usize,
    /// The bytes that were gone through.
    work: usize,
}

/// The targets that one target inherits from; nothing for those whose own ones are being looked for.
#[derive(Default)]
struct Inherited {
    known: BTreeMap<String, Option<Rc<Target>>>,
    /// The bytes that were copied.
    size: usize,
}

impl<'d> Resolver<'d> {
    fn new(definitions: &'d Definitions, overrides: Overrides) -> Self {
        Self {
            definitions,
            overrides,
            granted: Granted::default(),
            targets: BTreeMap::new(),
            linked: BTreeMap::new(),
            size: 0,
            work: 0,
        }
    }

    /// Counts bytes that targets have.
    fn keep(&mut self, bytes: usize) -> Result<()> {
        self.size = self.size.saturating_add(bytes);
        match self.size > MAX_SIZE {
            true => Err(Error::new(format!(
                "the targets have more than {MAX_SIZE} bytes, with what they inherit"
            ))),
            false => Ok(()),
        }
    }

    /// Counts bytes that are gone through.
    fn work(&mut self, bytes: usize) -> Result<()> {
        self.work = self.work.saturating_add(bytes);
        match self.work > MAX_WORK {
            true => Err(Error::new(
                "finding what targets inherit and stand on takes too long",
            )),
            false => Ok(()),
        }
    }

    /// Adds a target with what it inherits and with its overrides.
    fn add(&mut self, name: &str, change: impl FnOnce(&mut Target)) -> Result<()> {
        let mut inherited = Inherited::default();
        let target = self.inherited(name, &mut inherited, 0)?;
        drop(inherited);
        let mut target = target.map_or_else(Target::default, Rc::unwrap_or_clone);
        target.name = name.to_owned();
        target.context.get_or_insert_with(|| ".".into());
        if target.dockerfile.as_ref().is_none_or(String::is_empty) {
            target.dockerfile = Some("Dockerfile".into());
        }
        change(&mut target);
        self.keep(target.size())?;
        self.targets.insert(name.to_owned(), target);
        Ok(())
    }

    /// Returns `None` for a target that inherits from itself.
    fn inherited(
        &mut self,
        name: &str,
        inherited: &mut Inherited,
        depth: usize,
    ) -> Result<Option<Rc<Target>>> {
        if let Some(known) = inherited.known.get(name) {
            return Ok(known.clone());
        }
        if depth > MAX_DEPTH {
            return Err(Error::new(format!(
                "target {name} is inherited through more than {MAX_DEPTH} others"
            )));
        }
        inherited.known.insert(name.to_owned(), None);
        let own = self.definitions.targets.get(name);
        let own = own.ok_or_else(|| Error::new(format!("failed to find target {name}")))?;
        let mut target = Target {
            name: name.to_owned(),
            ..Target::default()
        };
        for parent in &own.inherits {
            let parent = self.inherited(parent, inherited, depth + 1)?;
            if let Some(parent) = parent {
                self.merge(&mut target, &parent, inherited)?;
            }
        }
        self.merge(&mut target, own, inherited)?;
        // They are in it now.
        target.inherits = Vec::new();
        self.overrides.apply(name, &mut target, &mut self.granted)?;
        target.normalize();
        let target = Rc::new(target);
        let known = Some(Rc::clone(&target));
        inherited.known.insert(name.to_owned(), known);
        Ok(Some(target))
    }

    /// Adds a definition to a target.
    fn merge(
        &mut self,
        target: &mut Target,
        other: &Target,
        inherited: &mut Inherited,
    ) -> Result<()> {
        let size = other.size();
        inherited.size = inherited.size.saturating_add(size);
        if inherited.size > MAX_SIZE {
            return Err(Error::new(format!(
                "target {} inherits more than {MAX_SIZE} bytes",
                target.name
            )));
        }
        // Lists are looked through for duplicates.
        self.work(target.size().saturating_add(size))?;
        target.merge(other);
        Ok(())
    }

    /// Adds the targets that a target's contexts name. Returns on how many levels of others it stands.
    fn link(&mut self, name: &str, visited: &mut Vec<String>) -> Result<usize> {
        let known = self.linked.get(name).copied();
        if visited.len() + known.unwrap_or(0) > MAX_DEPTH {
            return Err(Error::new(format!(
                "target {name} stands on more than {MAX_DEPTH} others"
            )));
        }
        if let Some(levels) = known {
            return Ok(levels);
        }
        visited.push(name.to_owned());
        let contexts = self.targets.get(name);
        let contexts = contexts.into_iter().flat_map(|own| own.contexts.values());
        let others = contexts.filter_map(|context| context.strip_prefix("target:"));
        let others: Vec<String> = others.map(str::to_owned).collect();
        let mut levels = 0;
        for other in &others {
            if other == name {
                return Err(Error::new(format!("target {other} cannot link to itself")));
            }
            if visited.iter().any(|name| name == other) {
                return Err(Error::new(format!("infinite loop from {name} to {other}")));
            }
            if !self.targets.contains_key(other) {
                self.add(other, |target| {
                    target.outputs = Some(vec![Output::of(&[("type", "cacheonly")])]);
                })?;
            }
            levels = levels.max(self.link(other, visited)? + 1);
            self.stand(name, other)?;
        }
        visited.pop();
        self.linked.insert(name.to_owned(), levels);
        Ok(levels)
    }

    /// Checks a target against another one that it stands on, whose rights it needs.
    fn stand(&mut self, name: &str, other: &str) -> Result<()> {
        let listed = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let Some(used) = self.targets.get(other) else {
            return Ok(());
        };
        let (rights, others) = (listed(&used.entitlements), listed(&used.platforms));
        let Some(target) = self.targets.get_mut(name) else {
            return Ok(());
        };
        let mut own = listed(&target.entitlements);
        let before = own.len();
        own.extend(rights.iter().cloned());
        let own = unique(&own);
        let platforms = listed(&target.platforms);
        let added = own.iter().skip(before);
        let added: usize = added.map(|right| size_of(right)).sum();
        let compared = [&rights, &others, &platforms, &own].into_iter().flatten();
        let compared: usize = compared.map(|text| size_of(text)).sum();
        if !rights.is_empty() {
            target.entitlements = Some(own);
        }
        self.keep(added)?;
        self.work(compared)?;
        let known: BTreeSet<&String> = others.iter().collect();
        if platforms.len() > 1
            && others.len() > 1
            && !platforms.iter().all(|own| known.contains(own))
        {
            return Err(Error::new(format!(
                "target {other} can't be used by {name} because its platforms [{}] are not a subset of [{}]",
                platforms.join(" "),
                others.join(" ")
            )));
        }
        Ok(())
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
