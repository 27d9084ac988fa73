//! Why a step was not cached: what its key is made of, compared with what it was made of when the step was executed last.
//!
//! A step is known by its *place*: who builds, the name of the Dockerfile, and the stage and the number of the
//! instruction. What is kept of each place is small: names, digests of values, and sizes and times of files.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use whelk_llb::key::{self, Identity};
use whelk_llb::pb::Op;
use whelk_llb::pb::op::Kind;
use whelk_llb::{CUSTOM_NAME, Digest, Node};
use whelk_sys::sync::IgnorePoison as _;

use crate::error::Result;
use crate::listing::Listed;
use crate::progress::EventKind;
use crate::request::Request;
use crate::solver::Job;
use crate::{Builder, blocking};

/// Number of files that an explanation names.
const NAMED: usize = 3;

/// What the key of a step was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ingredients {
    /// `RUN make`
    instruction: String,
    /// Of the operation without its variables and inputs.
    operation: String,
    /// Names of variables, and digests of their values.
    variables: BTreeMap<String, String>,
    inputs: Vec<Ingredient>,
    #[serde(default)]
    has_failed: bool,
}

/// What was read of an input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ingredient {
    name: String,
    is_image: bool,
    identity: String,
    /// The files that were read, as far as they are known.
    files: Listed,
}

/// What explanations of a build need, and the steps that are noted for the next one.
#[derive(Debug)]
pub(crate) struct Reasons {
    project: String,
    is_explained: bool,
    /// The operations that were executed, and whether they have failed.
    executed: Mutex<Vec<(usize, bool)>>,
}

impl Reasons {
    pub fn of(request: &Request) -> Self {
        Self {
            project: request.project.clone(),
            is_explained: request.is_explained,
            executed: Mutex::default(),
        }
    }

    /// Notes that an operation was executed.
    pub fn executed(&self, index: usize, has_failed: bool) {
        let mut executed = self.executed.lock().ignore_poison();
        executed.push((index, has_failed));
    }
}

impl Job {
    /// Returns the place of an operation, and what its key is made of; `None` if that is not kept. Blocking.
    fn ingredients(&self, index: usize, salt: &[u8]) -> Option<(Digest, Ingredients)> {
        let node = &self.graph.nodes[index];
        let place = place(&self.reasons.project, node)?;
        let inputs = node.inputs.iter();
        let inputs: Vec<&Node> = inputs.map(|edge| &self.graph.nodes[edge.node]).collect();
        let identities = &self.keys[index].identities;
        let files = |content: &Digest| self.sources.listed(content);
        Some((place, ingredients(node, &inputs, identities, files, salt)))
    }
}

impl Builder {
    /// Tells why an operation is executed, if that is wanted.
    pub(crate) async fn explain(self: &Arc<Self>, job: &Arc<Job>, index: usize) -> Result<()> {
        if !job.reasons.is_explained {
            return Ok(());
        }
        let (builder, own) = (self.clone(), job.clone());
        let reason = blocking(move || {
            let is_ignored = own.graph.nodes[index].metadata.ignore_cache;
            Ok(own
                .ingredients(index, builder.cache.salt())
                .map(|(place, new)| {
                    let old = builder.cache.ingredients(&place);
                    differences(old.as_ref(), &new, is_ignored)
                }))
        });
        if let Some(reason) = reason.await? {
            let name = format!("not cached: {reason}");
            let vertex = job.graph.nodes[index].digest;
            let part = EventKind::Part {
                name,
                is_done: true,
            };
            job.progress.add(vertex, part);
        }
        Ok(())
    }

    /// Notes what the keys of the operations are made of that a build has executed.
    pub(crate) async fn note(self: &Arc<Self>, job: &Arc<Job>) {
        let executed = std::mem::take(&mut *job.reasons.executed.lock().ignore_poison());
        if executed.is_empty() || job.reasons.project.is_empty() {
            return;
        }
        let (builder, job) = (self.clone(), job.clone());
        let noted = blocking(move || {
            let steps = executed.into_iter();
            let steps = steps.filter_map(|(index, has_failed)| {
                let (place, step) = job.ingredients(index, builder.cache.salt())?;
                Some((place, Ingredients { has_failed, ..step }))
            });
            let steps: Vec<_> = steps.collect();
            builder.cache.note(&steps)
        });
        if let Err(error) = noted.await {
            tracing::warn!("note what the steps of a build were made of: {error}");
        }
    }
}

/// The place of a step whose name begins with `[STAGE 2/5]`; `None` of another one.
pub(crate) fn place(project: &str, node: &Node) -> Option<Digest> {
    let (place, _) = split(node)?;
    // Without the number of all instructions, which changes when one is added behind this.
    let place = place.rsplit_once('/').map_or(place, |(place, _)| place);
    let is_known = !project.is_empty() && place.ends_with(|letter: char| letter.is_ascii_digit());
    is_known.then(|| Digest::of_parts([b"place", project.as_bytes(), place.as_bytes()]))
}

/// Returns the place and the instruction in the name of a step.
fn split(node: &Node) -> Option<(&str, &str)> {
    let name = node.metadata.description.get(CUSTOM_NAME)?;
    name.strip_prefix('[')?.split_once("] ")
}

/// Returns what the key of an operation is made of. `inputs` are the operations that it reads from, and `files` returns
/// the files of a content.
pub(crate) fn ingredients(
    node: &Node,
    inputs: &[&Node],
    identities: &[Identity],
    files: impl Fn(&Digest) -> Option<Listed>,
    salt: &[u8],
) -> Ingredients {
    let (operation, variables) = without_variables(&node.op, salt);
    let inputs = inputs.iter().zip(identities).map(|(input, identity)| {
        let (digest, listed) = match identity {
            Identity::Step(digest) | Identity::Selection(digest) => (digest, None),
            Identity::Content(digest) => (digest, files(digest)),
        };
        let image = match &input.op.kind {
            Some(Kind::Source(source)) => source.identifier.strip_prefix("docker-image://"),
            _ => None,
        };
        let name = input.metadata.description.get(CUSTOM_NAME);
        let name = name.map_or("", String::as_str);
        Ingredient {
            name: image.unwrap_or(name).to_owned(),
            is_image: image.is_some(),
            identity: digest.to_string(),
            files: listed.unwrap_or_default(),
        }
    });
    Ingredients {
        instruction: split(node)
            .map_or("", |(_, instruction)| instruction)
            .to_owned(),
        operation: operation.to_string(),
        variables,
        inputs: inputs.collect(),
        has_failed: false,
    }
}

impl Ingredients {
    /// Returns them as JSON of a bounded size: without files if these are too many.
    pub fn encode(&self) -> String {
        /// In bytes.
        const MAX: usize = 64 << 10;
        let encoded = |step: &Self| serde_json::to_string(step).unwrap_or_default();
        let text = encoded(self);
        if text.len() <= MAX {
            return text;
        }
        let mut small = self.clone();
        for input in &mut small.inputs {
            input.files = Listed(None);
        }
        let text = encoded(&small);
        match text.len() <= MAX {
            true => text,
            // Already the instruction or the names of variables are longer.
            false => String::new(),
        }
    }
}

/// Returns the digest of an operation without its variables, and these.
fn without_variables(op: &Op, salt: &[u8]) -> (Digest, BTreeMap<String, String>) {
    let mut op = op.clone();
    let mut variables = BTreeMap::new();
    if let Some(Kind::Exec(exec)) = &mut op.kind
        && let Some(meta) = &mut exec.meta
    {
        for variable in std::mem::take(&mut meta.env) {
            let (name, value) = variable.split_once('=').unwrap_or((&variable, ""));
            // Values may be secrets: the digests of guesses would show them without the salt.
            let digest = Digest::of_parts([salt, value.as_bytes()]);
            variables.insert(name.to_owned(), short(&digest));
        }
    }
    (key::step(&op, &[]), variables)
}

/// Returns the first digits of a digest.
fn short(digest: &Digest) -> String {
    let text = digest.to_string();
    text.trim_start_matches("sha256:")
        .chars()
        .take(16)
        .collect()
}

/// Describes what differs from the last execution of a step.
pub(crate) fn differences(
    old: Option<&Ingredients>,
    new: &Ingredients,
    is_ignored: bool,
) -> String {
    if is_ignored {
        return "the build uses no cache for it".into();
    }
    let Some(old) = old else {
        return "it was not executed before by whelk build or bake".into();
    };
    let mut found = Vec::new();
    if old.instruction != new.instruction {
        found.push(format!("the instruction was {}", old.instruction));
    } else if old.operation != new.operation || old.inputs.len() != new.inputs.len() {
        found.push("its flags or mounts differ".into());
    }
    for (name, value) in &new.variables {
        match old.variables.get(name) {
            None => found.push(format!("the variable {name} is new")),
            Some(old) if old != value => {
                found.push(format!("the variable {name} has another value"))
            }
            Some(_) => {}
        }
    }
    let gone = old
        .variables
        .keys()
        .filter(|name| !new.variables.contains_key(*name));
    found.extend(gone.map(|name| format!("the variable {name} is gone")));
    for (old, new) in old.inputs.iter().zip(&new.inputs) {
        if old.identity != new.identity {
            found.push(input(old, new));
        }
    }
    match found.is_empty() {
        true if old.has_failed => "it failed the last time".into(),
        true => "its result is not in the cache any more".into(),
        false => found.join("; "),
    }
}

fn input(old: &Ingredient, new: &Ingredient) -> String {
    let name = &new.name;
    if new.is_image {
        return match &old.name == name {
            true => format!("the base image {name} is another one"),
            false => format!("the base image was {}", old.name),
        };
    }
    if let (Some(old), Some(new)) = (&old.files.0, &new.files.0) {
        let files = files(old, new);
        if !files.is_empty() {
            return files;
        }
    }
    match name.strip_prefix('[').and_then(|name| name.split_once(']')) {
        Some(("internal", " load build context")) => {
            "files of the build context have changed".into()
        }
        Some(("internal", _)) | None => format!("files of {name} have changed"),
        Some((place, _)) => match place.strip_prefix("context ") {
            Some(context) => format!("files of the context {context} have changed"),
            None => format!("the result of [{place}] is another one"),
        },
    }
}

type Files = BTreeMap<String, String>;

/// Names the files that differ.
fn files(old: &Files, new: &Files) -> String {
    let mut found = Vec::new();
    for (path, digest) in new {
        match old.get(path) {
            None => found.push(format!("{path} is new")),
            Some(old) if old != digest => found.push(format!("{path} has changed")),
            Some(_) => {}
        }
    }
    let gone = old.keys().filter(|path| !new.contains_key(*path));
    found.extend(gone.map(|path| format!("{path} is gone")));
    let more = found.len().saturating_sub(NAMED);
    found.truncate(NAMED);
    if more > 0 {
        found.push(format!("{more} more files differ"));
    }
    found.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(files: &[(&str, &str)]) -> Listed {
        let files = files.iter();
        let files = files.map(|(path, digest)| ((*path).to_owned(), (*digest).to_owned()));
        Listed(Some(files.collect()))
    }

    fn copy(identity: &str, files: &[(&str, &str)]) -> Ingredients {
        let input = |name: &str, is_image: bool, identity: &str, files: Listed| Ingredient {
            name: name.into(),
            is_image,
            identity: identity.into(),
            files,
        };
        Ingredients {
            instruction: "COPY . /app".into(),
            operation: "op".into(),
            variables: [("A".to_owned(), "1".to_owned())].into(),
            inputs: vec![
                input("node", true, "base", Listed::default()),
                input(
                    "[internal] load build context",
                    false,
                    identity,
                    listed(files),
                ),
            ],
            has_failed: false,
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Ingredients), expected: &str) {
        let old = copy("1", &[("a", "1"), ("b", "1")]);
        let mut new = old.clone();
        change(&mut new);
        assert_eq!(differences(Some(&old), &new, false), expected);
    }

    #[test]
    fn differences_have_names() {
        check(|_| {}, "its result is not in the cache any more");
        check(
            |new| *new = copy("2", &[("a", "2"), ("b", "1")]),
            "a has changed",
        );
        check(
            |new| *new = copy("2", &[("a", "1"), ("c", "1")]),
            "c is new, b is gone",
        );
        let many: Vec<String> = (0..9).map(|number| format!("x{number}")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|name| (&**name, "1")).collect();
        check(
            |new| *new = copy("2", &many),
            "x0 is new, x1 is new, x2 is new, 8 more files differ",
        );
        check(
            |new| new.inputs[0].identity = "2".into(),
            "the base image node is another one",
        );
        check(
            |new| new.instruction = "COPY x /app".into(),
            "the instruction was COPY . /app",
        );
        check(
            |new| new.operation = "2".into(),
            "its flags or mounts differ",
        );
        check(
            |new| new.variables = [("B".to_owned(), "1".to_owned())].into(),
            "the variable B is new; the variable A is gone",
        );
        check(
            |new| drop(new.variables.insert("A".into(), "2".into())),
            "the variable A has another value",
        );
        check(
            |new| {
                new.inputs[1].identity = "2".into();
                new.inputs[1].files = Listed(None);
            },
            "files of the build context have changed",
        );
        let new = copy("1", &[]);
        assert_eq!(
            differences(None, &new, false),
            "it was not executed before by whelk build or bake"
        );
        assert_eq!(
            differences(None, &new, true),
            "the build uses no cache for it"
        );
        let decoded = |text: &str| serde_json::from_str::<Ingredients>(text).ok();
        assert_eq!(decoded(&new.encode()), Some(new.clone()));
        let failed = Ingredients {
            has_failed: true,
            ..new.clone()
        };
        assert_eq!(
            differences(Some(&failed), &new, false),
            "it failed the last time"
        );
    }

    #[test]
    fn what_is_kept_of_a_step_is_small() {
        let long: Vec<String> = (0..2000).map(|number| format!("{number:0>200}")).collect();
        let long: Vec<(&str, &str)> = long.iter().map(|name| (&**name, "1")).collect();
        let many = copy("1", &long);
        let text = many.encode();
        assert!(text.len() < 1000);
        let kept: Ingredients = serde_json::from_str(&text).unwrap_or_default();
        assert_eq!(kept.inputs[1].files, Listed(None));
        let huge = Ingredients {
            instruction: "x".repeat(100_000),
            ..many
        };
        assert_eq!(huge.encode(), "");
    }

    #[test]
    fn values_of_variables_cannot_be_guessed() {
        let op = Op {
            kind: Some(Kind::Exec(whelk_llb::pb::ExecOp {
                meta: Some(whelk_llb::pb::Meta {
                    env: vec!["TOKEN=secret".into()],
                    ..whelk_llb::pb::Meta::default()
                }),
                ..whelk_llb::pb::ExecOp::default()
            })),
            ..Op::default()
        };
        let kept = |salt: &[u8]| without_variables(&op, salt).1["TOKEN"].clone();
        assert_ne!(kept(b"one"), kept(b"two"));
        assert_eq!(kept(b"one"), kept(b"one"));
    }
}
