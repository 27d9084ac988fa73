//! What is scanned for a bill of materials: the arguments `BUILDKIT_SBOM_SCAN_CONTEXT` and `BUILDKIT_SBOM_SCAN_STAGE` say it,
//! before the first stage or in one.

use std::collections::BTreeSet;

use whelk_llb::pb::Definition;
use whelk_text::parse_bool;

use super::Converter;
use super::dispatch::NOT_VARIABLES;
use super::target::Target;
use crate::error::{Error, Result};

impl Converter<'_> {
    /// Returns the context and the stages that are scanned besides the target.
    ///
    /// # Errors
    /// Returns an error if there are too many.
    pub(super) fn scanned(&self, target: usize) -> Result<Vec<(String, Definition)>> {
        /// Each has all operations that it needs.
        const MAX_OPS: usize = 100_000;
        let [context, stage] = NOT_VARIABLES;
        let mut found = Vec::new();
        if self.is_enabled(&self.targets[target], context) {
            let definition = match &self.options.context {
                super::MainContext::Local { .. } => {
                    self.builder.definition(Some(self.context), None)
                }
                super::MainContext::Graph(graph) => {
                    let mut builder = whelk_llb::Builder::default();
                    let output = builder.add_graph(graph).ok().flatten();
                    builder.definition(output, None)
                }
            };
            found.push(("context".to_owned(), definition));
        }
        let mut names = BTreeSet::new();
        let mut operations = 0;
        for index in self.reachable(target) {
            let other = &self.targets[index];
            let is_new = |name: &str| !names.contains(name);
            if index != target && self.is_enabled(other, stage) && is_new(&other.name) {
                names.insert(other.name.clone());
                let definition = self.builder.definition(other.state.output, None);
                operations += definition.def.len();
                if operations > MAX_OPS {
                    let text = "the stages to scan for a bill of materials have too many steps";
                    return Err(Error::new(text.to_owned()));
                }
                found.push((other.name.clone(), definition));
            }
        }
        Ok(found)
    }

    /// Returns whether an argument is on for a stage: it is a boolean value, or lists the names of stages.
    fn is_enabled(&self, target: &Target, argument: &str) -> bool {
        let is_on = |value: &str| {
            parse_bool(value).unwrap_or_else(|| {
                let mut names = value.split(',');
                names.any(|name| name == target.stage.name)
            })
        };
        let mut own = target.build_args.iter().rev();
        let own = own.find(|arg| arg.key == argument && arg.value.is_some());
        let own = own.and_then(|arg| arg.value.as_deref());
        own.or_else(|| self.global.get(argument)).is_some_and(is_on)
    }

    /// Returns the stages that a target is made of.
    fn reachable(&self, target: usize) -> Vec<usize> {
        let mut found = vec![target];
        let mut known = vec![false; self.targets.len()];
        known[target] = true;
        let mut next = 0;
        while let Some(&index) = found.get(next) {
            next += 1;
            let target = &self.targets[index];
            let all = target.base.into_iter();
            for dependency in all.chain(target.deps.iter().map(|(index, _)| *index)) {
                let is_known = std::mem::replace(&mut known[dependency], true);
                if !is_known && !self.targets[dependency].is_external {
                    found.push(dependency);
                }
            }
        }
        found.sort_unstable();
        found
    }
}
