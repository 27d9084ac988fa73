//! What a target can be given.

use std::collections::BTreeSet;

use super::Converter;
use super::target::Uses;
use crate::report::{Outline, OutlineArg, OutlineSecret};

impl Converter<'_> {
    /// Returns the arguments, secrets and SSH agents that a target and what it depends on use.
    pub(super) fn outline(&self, target: usize) -> Outline {
        let stage = &self.targets[target].stage;
        let mut outline = Outline {
            name: stage.name.clone(),
            description: stage.description.clone(),
            ..Outline::default()
        };
        let mut seen = vec![false; self.targets.len()];
        let mut names: [BTreeSet<&str>; 3] = Default::default();
        let mut open = vec![target];
        while let Some(index) = open.pop() {
            if std::mem::replace(&mut seen[index], true) {
                continue;
            }
            let target = &self.targets[index];
            let deps = target.deps.iter().map(|(dep, _)| *dep);
            open.extend(deps.rev().chain(target.base));
            let uses = &target.uses;
            for name in used_args(uses) {
                if let Some(info) = uses.args.get(name)
                    && names[0].insert(name)
                {
                    outline.args.push(OutlineArg {
                        name: name.to_owned(),
                        description: info.arg.description.clone(),
                        value: info.value.clone(),
                        lines: info.lines,
                    });
                }
            }
            let lists = [
                (&uses.secrets, &mut outline.secrets, 1),
                (&uses.ssh, &mut outline.ssh, 2),
            ];
            for (found, list, kind) in lists {
                for (name, info) in found {
                    if names[kind].insert(name) {
                        list.push(OutlineSecret {
                            name: name.clone(),
                            required: info.required,
                            lines: info.lines,
                        });
                    }
                }
            }
        }
        outline.args.sort_by_key(|arg| arg.lines);
        outline.secrets.sort_by_key(|secret| secret.lines);
        outline.ssh.sort_by_key(|secret| secret.lines);
        outline
    }
}

/// Returns the arguments that are used, also in the defaults of used ones.
fn used_args(uses: &Uses) -> BTreeSet<&str> {
    let mut used: BTreeSet<&str> = BTreeSet::new();
    let mut open: Vec<&str> = uses.used_args.iter().map(String::as_str).collect();
    while let Some(name) = open.pop() {
        if used.insert(name)
            && let Some(info) = uses.args.get(name)
        {
            open.extend(info.uses.iter().map(String::as_str));
        }
    }
    used
}
