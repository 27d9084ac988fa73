//! Checks of single operations: that nothing is missing, and that indexes are within their ranges.

use crate::pb::file_action::Action;
use crate::pb::op::Kind;
use crate::pb::user_opt::User;
use crate::pb::{
    BuildOp, CacheSharing, ChownOpt, DiffOp, ExecOp, FileOp, MergeOp, Mount, MountContentCache,
    MountType, NetMode, Op, PassthroughOp, SecurityMode,
};

type Checked<T> = std::result::Result<T, String>;

/// Checks an operation, and returns the number of its outputs.
pub(crate) fn check(op: &Op) -> Checked<usize> {
    let inputs = op.inputs.len();
    match &op.kind {
        None => Err("it is none of the known kinds".into()),
        Some(Kind::Source(source)) if source.identifier.is_empty() => {
            Err("a source without an identifier".into())
        }
        Some(Kind::Source(_)) => Ok(1),
        Some(Kind::Exec(exec)) => exec_op(exec, inputs),
        Some(Kind::File(file)) => file_op(file, inputs),
        Some(Kind::Build(build)) => build_op(build, inputs),
        Some(Kind::Merge(merge)) => merge_op(merge, inputs),
        Some(Kind::Diff(diff)) => diff_op(diff, inputs),
        Some(Kind::Passthrough(passthrough)) => passthrough_op(passthrough, inputs),
    }
}

/// Maximum number of mounts of a process.
const MAX_MOUNTS: usize = 1000;

/// Checks that an index is that of one of `count` inputs.
fn within(index: i64, count: usize, what: &str) -> Checked<()> {
    if usize::try_from(index).is_ok_and(|index| index < count) {
        Ok(())
    } else {
        Err(format!("{what} {index} is out of range: there are {count}"))
    }
}

/// Like [`within`]; -1 stands for nothing.
fn within_or_none(index: i64, count: usize, what: &str) -> Checked<()> {
    if index == -1 {
        Ok(())
    } else {
        within(index, count, what)
    }
}

fn exec_op(exec: &ExecOp, inputs: usize) -> Checked<usize> {
    let Some(meta) = &exec.meta else {
        return Err("an exec without its process".into());
    };
    if meta.args.is_empty() {
        return Err("an exec without arguments".into());
    }
    if exec.mounts.is_empty() {
        return Err("an exec without mounts".into());
    }
    if exec.mounts.len() > MAX_MOUNTS {
        return Err(format!("an exec with more than {MAX_MOUNTS} mounts"));
    }
    let roots = exec.mounts.iter().filter(|mount| mount.dest == "/");
    match roots.count() {
        0 => return Err("an exec without a root file system".into()),
        1 => {}
        _ => return Err("an exec with more than one root file system".into()),
    }
    if NetMode::try_from(exec.network).is_err() {
        return Err(format!("unknown network mode {}", exec.network));
    }
    if SecurityMode::try_from(exec.security).is_err() {
        return Err(format!("unknown security mode {}", exec.security));
    }
    let mut outputs = 0;
    for mount in &exec.mounts {
        check_mount(mount, inputs, &mut outputs)?;
    }
    Ok(outputs)
}

fn check_mount(mount: &Mount, inputs: usize, outputs: &mut usize) -> Checked<()> {
    if mount.dest.is_empty() {
        return Err("a mount without a target".into());
    }
    within_or_none(mount.input, inputs, "the input of a mount,")?;
    match MountContentCache::try_from(mount.content_cache) {
        Err(_) => {
            let kind = mount.content_cache;
            return Err(format!("unknown content cache {kind} of a mount"));
        }
        // A part of what is written to would be found, and the rest be that of another result.
        Ok(MountContentCache::On)
            if mount.output != -1 && !mount.readonly && !is_whole(&mount.selector) =>
        {
            return Err(format!(
                "invalid mount cache content: the mount at {:?} has an output, and shows only a part",
                mount.dest
            ));
        }
        Ok(_) => {}
    }
    let missing = |what: &str| {
        Err(format!(
            "a {what} mount at {:?} without its options",
            mount.dest
        ))
    };
    match MountType::try_from(mount.mount_type) {
        Err(_) => return Err(format!("unknown type of mounts {}", mount.mount_type)),
        Ok(MountType::Secret) if mount.secret_opt.is_none() => return missing("secret"),
        Ok(MountType::Ssh) if mount.ssh_opt.is_none() => return missing("ssh"),
        Ok(MountType::Cache) => match &mount.cache_opt {
            None => return missing("cache"),
            Some(cache) if CacheSharing::try_from(cache.sharing).is_err() => {
                return Err(format!("unknown sharing of caches {}", cache.sharing));
            }
            Some(_) => {}
        },
        Ok(MountType::Tmpfs) => {
            if mount.tmpfs_opt.is_some_and(|tmpfs| tmpfs.size < 0) {
                return Err("a tmpfs mount with a negative size".into());
            }
        }
        Ok(MountType::Bind) if mount.output != -1 => {
            // Other mounts have no outputs, whatever their index says.
            if usize::try_from(mount.output) != Ok(*outputs) {
                return Err(format!(
                    "output {} of the mount at {:?} should be {outputs}",
                    mount.output, mount.dest
                ));
            }
            *outputs += 1;
        }
        Ok(MountType::Bind | MountType::Secret | MountType::Ssh) => {}
    }
    Ok(())
}

/// Returns whether a path is that of the root.
fn is_whole(path: &str) -> bool {
    path.split('/').all(|part| matches!(part, "" | "."))
}

fn file_op(file: &FileOp, inputs: usize) -> Checked<usize> {
    if file.actions.is_empty() {
        return Err("a file operation without actions".into());
    }
    let mut outputs = Vec::new();
    for (position, action) in file.actions.iter().enumerate() {
        // The actions before this one can be its inputs, too.
        let known = inputs + position;
        within_or_none(action.input, known, "the input of an action,")?;
        within_or_none(
            action.secondary_input,
            known,
            "the second input of an action,",
        )?;
        if action.output < -1 {
            return Err(format!(
                "the output of an action, {}, is negative",
                action.output
            ));
        }
        if action.output >= 0 {
            outputs.push(action.output);
        }
        let owner = match &action.action {
            None => return Err("an action that is none of the known kinds".into()),
            Some(Action::Copy(copy)) => &copy.owner,
            Some(Action::Mkfile(file)) => &file.owner,
            Some(Action::Mkdir(directory)) => &directory.owner,
            Some(Action::Symlink(link)) => &link.owner,
            Some(Action::Rm(_)) => &None,
        };
        check_owner(owner.as_ref(), inputs)?;
    }
    outputs.sort_unstable();
    let count = i64::try_from(outputs.len()).unwrap_or(i64::MAX);
    if !outputs.iter().copied().eq(0..count) {
        return Err("the outputs of the actions are not numbered from 0".into());
    }
    Ok(outputs.len())
}

fn check_owner(owner: Option<&ChownOpt>, inputs: usize) -> Checked<()> {
    let ids = owner.map(|owner| [&owner.user, &owner.group]);
    for id in ids.into_iter().flatten().flatten() {
        match &id.user {
            None => return Err("an owner without a name or a number".into()),
            Some(User::ById(_)) => {}
            Some(User::ByName(name)) => {
                within_or_none(name.input, inputs, "the input of an owner,")?;
            }
        }
    }
    Ok(())
}

fn build_op(build: &BuildOp, inputs: usize) -> Checked<usize> {
    within_or_none(build.builder, inputs, "the builder")?;
    for input in build.inputs.values() {
        within(input.input, inputs, "an input of the build,")?;
    }
    Ok(1)
}

fn merge_op(merge: &MergeOp, inputs: usize) -> Checked<usize> {
    if merge.inputs.is_empty() {
        return Err("a merge of nothing".into());
    }
    for input in &merge.inputs {
        within(input.input, inputs, "an input of the merge,")?;
    }
    Ok(1)
}

fn diff_op(diff: &DiffOp, inputs: usize) -> Checked<usize> {
    let (Some(lower), Some(upper)) = (diff.lower, diff.upper) else {
        return Err("a difference without its sides".into());
    };
    within_or_none(lower.input, inputs, "the lower side")?;
    within_or_none(upper.input, inputs, "the upper side")?;
    Ok(1)
}

fn passthrough_op(passthrough: &PassthroughOp, inputs: usize) -> Checked<usize> {
    if passthrough.outputs.is_empty() {
        return Err("a passthrough without outputs".into());
    }
    for output in &passthrough.outputs {
        within(*output, inputs, "an output of the passthrough,")?;
    }
    Ok(passthrough.outputs.len())
}
