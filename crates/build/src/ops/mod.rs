//! Execution of operations.

mod changes;
mod chmod;
mod container;
mod copy;
mod diff;
mod exec;
mod file;
mod merge;
mod mounts;
mod secrets;
mod ssh;

use std::collections::BTreeSet;
use std::sync::Arc;

use whelk_image::{Lease, Store};
use whelk_llb::pb::file_action::Action;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{FileAction, MountType};
use whelk_llb::{Graph, Node};

use crate::error::{Error, Result};
use crate::layers::{Layer, Stack, Workspace};
use crate::log::Log;
use crate::snapshot::Snapshot;
use crate::solver::{Waiting, names};
use crate::{Builder, blocking};

pub(crate) use container::MOST as MAX_CONTAINERS;
pub use container::{
    Container, ContainerRequest, Process, ProcessControl, ProcessExit, ProcessOutput,
    ProcessRequest,
};
pub use exec::Settings;
pub(crate) use exec::connect;
pub(crate) use file::is_archive_at as is_archive;
pub(crate) use secrets::remove as remove_secrets;
pub(crate) use ssh::missing as missing_agent;

/// What operations need besides their inputs.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub store: Store,
    /// Holds the layers of the results.
    pub lease: Arc<Lease>,
    /// The builds that wait for the result.
    pub waiting: Arc<Waiting>,
}

impl Context {
    /// Whether no build waits for the result any more: the future that they have waited for has the other reference.
    fn is_left(&self) -> bool {
        Arc::strong_count(&self.waiting) == 1
    }

    /// Returns the layer of what was written, which is sealed beside what comes next.
    fn seal(&self, workspace: Arc<Workspace>) -> Arc<Layer> {
        Layer::seal(&self.store, workspace, self.lease.clone())
    }

    /// Returns the layer of what a failed operation has written.
    fn remains(&self, workspace: Arc<Workspace>) -> Arc<Layer> {
        Layer::remains(&self.store, workspace, &self.lease)
    }

    fn snapshot(&self, stack: Stack) -> Snapshot {
        Snapshot::new(stack, &self.lease)
    }
}

/// Refuses what operations ask for, and would not get.
pub(crate) fn check(graph: &Graph) -> Result<()> {
    for node in &graph.nodes {
        let constraints = node.op.constraints.iter();
        if let Some(filter) = constraints.flat_map(|one| &one.filter).next() {
            let text = format!("the constraint {filter} of an operation");
            return Err(Error::Unsupported(text));
        }
        if let Some(Kind::Source(source)) = &node.op.kind {
            crate::sources::check(source)?;
        }
    }
    Ok(())
}

/// Returns the ids of the caches of processes that are executed though their results may be there.
pub(crate) fn caches_to_discard(graph: &Graph) -> BTreeSet<&str> {
    let needed = graph.needed();
    let nodes = graph.nodes.iter().zip(needed);
    let nodes = nodes.filter(|(node, is_needed)| *is_needed && node.metadata.ignore_cache);
    let mounts = nodes.flat_map(|(node, _)| match &node.op.kind {
        Some(Kind::Exec(exec)) => exec.mounts.as_slice(),
        _ => &[],
    });
    let caches = mounts.filter(|mount| mount.mount_type == i32::from(MountType::Cache));
    let options = caches.filter_map(|mount| mount.cache_opt.as_ref());
    options.map(|cache| cache.id.as_str()).collect()
}

/// Executes an operation that is no source. Returns its outputs.
pub(crate) async fn run(
    builder: &Arc<Builder>,
    context: Context,
    node: &Node,
    inputs: Vec<Stack>,
    settings: &Settings,
    log: Option<&Arc<Log>>,
) -> Result<Vec<Stack>> {
    match &node.op.kind {
        Some(Kind::File(op)) => {
            let op = op.clone();
            blocking(move || file::run(&context, &op, &inputs)).await
        }
        Some(Kind::Exec(op)) => {
            let platform = node.op.platform.as_ref();
            crate::emulation::check(platform, &names::alone(node))?;
            exec::run(builder, context, (op, platform), &inputs, settings, log).await
        }
        Some(Kind::Merge(op)) => {
            let op = op.clone();
            blocking(move || Ok(vec![merge::run(&context, &op, &inputs)?])).await
        }
        Some(Kind::Diff(op)) => Ok(vec![diff::run(context, op, &inputs).await?]),
        Some(Kind::Passthrough(op)) => {
            let outputs = op.outputs.iter();
            outputs.map(|index| input(&inputs, *index)).collect()
        }
        Some(Kind::Build(_)) => Err(Error::Unsupported("builds within builds".into())),
        Some(Kind::Source(source)) => Err(Error::Unsupported(format!(
            "the source {}",
            source.identifier
        ))),
        None => Err(Error::invalid(
            "an operation that is none of the known kinds",
        )),
    }
}

/// Returns the error of an operation, with the name of its instruction.
pub(crate) fn failed(node: &Node, error: Error) -> Error {
    Error::Step {
        op: node.digest,
        cause: Box::new(named(node, error)),
    }
}

/// Returns the error of an input without what is needed for the key. An input that has no files at all needs no digest of them: of
/// that, the copy misses something.
pub(crate) fn missing(node: &Node, error: Error, is_empty: bool) -> Error {
    match (&node.op.kind, error) {
        (Some(Kind::File(_)), Error::Missing { path, .. }) if is_empty => file::absent(&path),
        (_, error) => named(node, error),
    }
}

/// Returns an error with the name of the instruction.
fn named(node: &Node, error: Error) -> Error {
    match &node.op.kind {
        Some(Kind::File(op)) => match op.actions.iter().find(|action| is_copy(action)) {
            Some(action) => file::named(action, error),
            None => error,
        },
        _ => error,
    }
}

fn is_copy(action: &FileAction) -> bool {
    matches!(action.action, Some(Action::Copy(_)))
}

/// Returns the input of an index; an empty one for a negative index.
fn input(inputs: &[Stack], index: i64) -> Result<Stack> {
    match usize::try_from(index) {
        Err(_) => Ok(Stack::default()),
        Ok(index) => inputs
            .get(index)
            .cloned()
            .ok_or_else(|| Error::invalid(format!("input {index} is out of range"))),
    }
}
