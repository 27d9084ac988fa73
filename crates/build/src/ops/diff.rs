//! Differences: what a result has changed of another one.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use whelk_image::Digest;
use whelk_llb::pb::{DiffOp, InputIndex};
use whelk_sys::fs;

use super::changes::{self, Form};
use super::{Context, input};
use crate::blocking;
use crate::error::Result;
use crate::layers::{Layer, Stack, Workspace};

/// Returns the layers that lead from the lower side to the upper one: those that the upper one has above the lower one, or a new
/// layer if it does not stand on it.
pub(super) async fn run(context: Context, op: &DiffOp, inputs: &[Stack]) -> Result<Stack> {
    let side = |index: Option<&InputIndex>| input(inputs, index.map_or(-1, |index| index.input));
    let (lower, upper) = (side(op.lower.as_ref())?, side(op.upper.as_ref())?);
    if lower.0.is_empty() {
        return Ok(upper);
    }
    let (below, above) = (lower.digests().await?, upper.digests().await?);
    blocking(move || {
        if !above.starts_with(&below) {
            return Ok(Stack(vec![between(&context, &lower, &upper)?]));
        }
        let indices = below.len()..above.len();
        let layers = indices.map(|index| own_changes(&context, &upper, index, &above[index]));
        Ok(Stack(layers.collect::<Result<_>>()?))
    })
    .await
}

/// Returns the changes from one result to another as a layer.
fn between(context: &Context, lower: &Stack, upper: &Stack) -> Result<Arc<Layer>> {
    let lower = lower.mount(&context.store)?;
    let upper = upper.mount(&context.store)?;
    written(context, |into| {
        changes::write(Some(&lower.root), &upper.root, Form::Tree, into, &|| {
            context.is_left()
        })
    })
}

/// Returns a layer of a result that has nothing but what it changes of the layers below it: itself, or a new one. It is sealed if
/// it is the same.
fn own_changes(
    context: &Context,
    stack: &Stack,
    index: usize,
    digest: &Digest,
) -> Result<Arc<Layer>> {
    let layer = &stack.0[index];
    let own = layer.mount(&context.store)?;
    let lower = Stack(stack.0[..index].to_vec()).mount(&context.store)?;
    if changes::is_minimal(&lower.root, &own.root, &|| context.is_left())? {
        let lease = context.lease.clone();
        return Ok(Layer::held(digest.clone(), layer.created, lease));
    }
    written(context, |into| {
        changes::write(Some(&lower.root), &own.root, Form::Layer, into, &|| {
            context.is_left()
        })
    })
}

/// Returns a layer of a result with a whiteout for each file of the layers below that its opaque directories hide.
pub(super) fn without_opaque(context: &Context, stack: &Stack, index: usize) -> Result<Arc<Layer>> {
    let own = stack.0[index].mount(&context.store)?;
    let lower = Stack(stack.0[..index].to_vec()).mount(&context.store)?;
    written(context, |into| {
        changes::write(
            Some(&lower.root),
            &own.root,
            Form::WholeLayer,
            into,
            &|| context.is_left(),
        )
    })
}

fn written(context: &Context, write: impl FnOnce(&OwnedFd) -> Result<()>) -> Result<Arc<Layer>> {
    let workspace = Workspace::create(&context.store)?;
    write(&fs::open(workspace.upper())?.into())?;
    Ok(context.seal(workspace))
}
