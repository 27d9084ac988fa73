//! File operations: copies, new files, directories and links, and removals.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use whelk_image::snapshots::{Base, Extraction, Owner, extract_until};
use whelk_llb::key::Selector;
use whelk_llb::pb::file_action::Action;
use whelk_llb::pb::user_opt::User;
use whelk_llb::pb::{
    ChownOpt, FileAction, FileActionCopy, FileActionMkDir, FileActionMkFile, FileActionRm,
    FileActionSymlink, FileOp,
};
use whelk_runtime::user::{self, UserRequest};
use whelk_sys::{fs, in_root};

use super::Context;
use super::chmod::Symbolic;
use super::copy::{Attributes, Copy, make_directories, place, set_time, write};
use crate::directory::name_cut;
use crate::error::{Error, Result, os};
use crate::failed::{FailedPart, Remains};
use crate::layers::{Stack, View};
use crate::select::{self, Selected};
use crate::tree::{self, Filter};

/// What the index of an input of an action refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Input {
    Empty,
    Of(usize),
    Action(usize),
}

/// Executes a file operation. Returns its outputs. Blocking.
pub(super) fn run(context: &Context, op: &FileOp, inputs: &[Stack]) -> Result<Vec<Stack>> {
    let count = inputs.len();
    let mut run = Run {
        context,
        inputs,
        views: HashMap::new(),
        states: HashMap::new(),
    };
    let mut outputs: Vec<Stack> = Vec::new();
    let mut uses: HashMap<usize, usize> = HashMap::new();
    for index in op
        .actions
        .iter()
        .flat_map(|action| [action.input, action.secondary_input])
    {
        if let Input::Action(number) = input(index, count) {
            *uses.entry(number).or_default() += 1;
        }
    }
    for (number, action) in op.actions.iter().enumerate() {
        let (view, base) = run.begin(input(action.input, count))?;
        if let Err(error) = run.act(&view, action, count) {
            let error = told(op, action, count, error);
            return Err(run.failed(op, number, (view, base), error));
        }
        let goes_on = {
            let uses = uses.get(&number).copied().unwrap_or(0);
            let continues = op.actions.get(number + 1);
            let continues =
                continues.is_some_and(|next| input(next.input, count) == Input::Action(number));
            action.output < 0 && uses == 1 && continues
        };
        if goes_on {
            // The next action writes to the same layer.
            run.views.insert(number, (view, base));
            continue;
        }
        let stack = run.finish(view, base)?;
        if let Ok(index) = usize::try_from(action.output) {
            if outputs.len() <= index {
                outputs.resize(index + 1, Stack::default());
            }
            outputs[index] = stack.clone();
        }
        run.states.insert(number, stack);
    }
    Ok(outputs)
}

fn input(index: i64, count: usize) -> Input {
    match usize::try_from(index) {
        Err(_) => Input::Empty,
        Ok(index) if index < count => Input::Of(index),
        Ok(index) => Input::Action(index - count),
    }
}

/// Returns the error of an action as Docker has it: what is missing in an input that is only read would have been missed for the
/// key, and elsewhere by the copy.
fn told(op: &FileOp, action: &FileAction, count: usize, error: Error) -> Error {
    let source = input(action.secondary_input, count);
    let mut bases = op.actions.iter().map(|action| input(action.input, count));
    let is_read = matches!(source, Input::Of(_)) && bases.all(|base| base != source);
    match (&action.action, error) {
        (Some(Action::Copy(_)), Error::Missing { path, .. }) if !is_read => absent(&path),
        (Some(Action::Rm(_)), Error::Missing { path, .. }) => {
            Error::os(format!("rm /{path}"), Errno::NOENT)
        }
        (_, error) => named(action, error),
    }
}

/// Returns the error of a copy of what is not there.
pub(super) fn absent(path: &str) -> Error {
    Error::os(format!("lstat /{path}"), Errno::NOENT)
}

/// Returns an error with the instruction that users know.
pub(super) fn named(action: &FileAction, error: Error) -> Error {
    let Some(Action::Copy(copy)) = &action.action else {
        return error;
    };
    let name = match copy.attempt_unpack_docker_compatibility {
        true => "ADD",
        false => "COPY",
    };
    match error {
        Error::Invalid(text) => Error::Invalid(format!("{name} failed: {text}")),
        Error::Missing { path, .. } => Error::Missing {
            instruction: Some(name),
            path,
        },
        error => error,
    }
}

struct Run<'a> {
    context: &'a Context,
    inputs: &'a [Stack],
    /// Layers that the next action goes on with, and what they stand on.
    views: HashMap<usize, (View, Input)>,
    /// The results of finished actions.
    states: HashMap<usize, Stack>,
}

impl Run<'_> {
    fn stack(&self, input: Input) -> Result<Stack> {
        match input {
            Input::Empty => Ok(Stack::default()),
            Input::Of(index) => Ok(self.inputs[index].clone()),
            Input::Action(number) => self
                .states
                .get(&number)
                .cloned()
                .ok_or_else(|| Error::internal("an action without a result")),
        }
    }

    /// Mounts what an action writes to, and returns what that stands on.
    fn begin(&mut self, base: Input) -> Result<(View, Input)> {
        if let Input::Action(number) = base
            && let Some(begun) = self.views.remove(&number)
        {
            return Ok(begun);
        }
        let view = self.stack(base)?.mount_writable(&self.context.store)?;
        Ok((view, base))
    }

    /// Unmounts what was written, and returns it with what it stands on.
    fn finish(&self, view: View, base: Input) -> Result<Stack> {
        let below = self.stack(base)?;
        let workspace = view
            .into_workspace()
            .ok_or_else(|| Error::internal("a layer that cannot be written"))?;
        Ok(below.with(self.context.seal(workspace)))
    }

    /// Returns the error of an action, with what is left of the operation.
    fn failed(&self, op: &FileOp, number: usize, left: (View, Input), error: Error) -> Error {
        let source = op.actions[number].secondary_input;
        if let (Error::Missing { .. }, Input::Of(index)) =
            (&error, input(source, self.inputs.len()))
        {
            let snapshot = self.context.snapshot(self.inputs[index].clone());
            return Remains::missing(index, snapshot, error);
        }
        Error::Part {
            part: FailedPart::Action(number),
            remains: self.remains(op, number, left).ok().map(Arc::new),
            cause: Box::new(error),
        }
    }

    /// Returns what is left when an action has failed.
    fn remains(&self, op: &FileOp, number: usize, (view, base): (View, Input)) -> Result<Remains> {
        let below = self.stack(base)?;
        let failed = match view.into_workspace() {
            Some(workspace) => below.with(self.context.remains(workspace)),
            None => below,
        };
        let made = (0..op.actions.len()).map(|action| match action == number {
            true => Some(failed.clone()),
            false => self.states.get(&action).cloned(),
        });
        let snapshot = |stack: Stack| self.context.snapshot(stack);
        let inputs = self.inputs.iter().cloned();
        Ok(Remains {
            inputs: inputs.map(|stack| Some(snapshot(stack))).collect(),
            results: made.map(|made| made.map(snapshot)).collect(),
        })
    }

    fn act(&self, view: &View, action: &FileAction, count: usize) -> Result<()> {
        let root = &view.root;
        match &action.action {
            Some(Action::Copy(copy)) => {
                let source = self.stack(input(action.secondary_input, count))?;
                self.copy(root, copy, &source)
            }
            Some(Action::Mkfile(file)) => self.make_file(root, file),
            Some(Action::Mkdir(directory)) => self.make_directory(root, directory),
            Some(Action::Symlink(link)) => self.make_link(root, link),
            Some(Action::Rm(rm)) => remove(root, rm),
            None => Err(Error::invalid("an action that is none of the known kinds")),
        }
    }

    /// Looks an owner up.
    fn owner(&self, owner: Option<&ChownOpt>) -> Result<Option<(u32, u32)>> {
        let Some(owner) = owner else { return Ok(None) };
        let mut ids = (0, 0);
        if let Some(user) = owner.user.as_ref().and_then(|user| user.user.as_ref()) {
            ids = match user {
                User::ById(id) => (*id, *id),
                User::ByName(named) => self.look_up(named.input, named.name.clone())?,
            };
        }
        if let Some(group) = owner.group.as_ref().and_then(|group| group.user.as_ref()) {
            ids.1 = match group {
                User::ById(id) => *id,
                User::ByName(named) => self.look_up(named.input, format!(":{}", named.name))?.1,
            };
        }
        Ok(Some(ids))
    }

    fn look_up(&self, index: i64, user: String) -> Result<(u32, u32)> {
        let stack = self.stack(input(index, self.inputs.len()))?;
        let view = stack.mount(&self.context.store)?;
        let request = UserRequest {
            user,
            groups: Vec::new(),
        };
        let found = user::resolve(&view.root, &request);
        let found = found.map_err(|error| Error::invalid(error.to_string()))?;
        Ok((found.uid, found.gid))
    }

    fn copy(&self, root: &OwnedFd, copy: &FileActionCopy, source: &Stack) -> Result<()> {
        let symbolic = Some(copy.mode_str.as_str()).filter(|text| !text.is_empty());
        let symbolic = symbolic.map(Symbolic::parse).transpose()?;
        let attributes = Attributes {
            owner: self.owner(copy.owner.as_ref())?,
            mode: u32::try_from(copy.mode).ok(),
            time: (copy.timestamp != -1).then_some(copy.timestamp),
        };
        let from = source.mount(&self.context.store)?;
        let selector = Selector {
            path: copy.src.clone(),
            wildcard: copy.allow_wildcard,
            follow: copy.follow_symlink,
            ..Selector::default()
        };
        for path in &copy.required_paths {
            let required = Selector {
                path: path.clone(),
                ..Selector::default()
            };
            select::find(&from.root, &required)?;
        }
        let found = select::find(&from.root, &selector)?;
        if found.is_empty() && !copy.allow_empty_wildcard {
            return Err(Error::invalid(format!("{} not found", copy.src)));
        }
        let filter = Filter::new(&copy.include_patterns, &copy.exclude_patterns)?;
        if !copy.create_dest_path {
            let above = select::clean(&copy.dest);
            let above = Path::new(&above).parent().unwrap_or(Path::new("/"));
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            in_root::open(root, above, flags, Mode::empty())
                .map_err(os(format!("open {}", above.display())))?;
        }
        let write = Copy {
            root,
            destination: &copy.dest,
            attributes,
            symbolic: symbolic.as_ref(),
            filter: &filter,
            contents: copy.dir_copy_contents,
            replaces: copy.always_replace_existing_dest_paths,
            keeps_capabilities: !source.is_directory(),
        };
        for selected in &found {
            if copy.attempt_unpack_docker_compatibility && is_archive(selected)? {
                unpack(root, &copy.dest, selected, &attributes)?;
            } else {
                write.run(selected)?;
            }
        }
        Ok(())
    }

    fn make_file(&self, root: &OwnedFd, file: &FileActionMkFile) -> Result<()> {
        let attributes = Attributes {
            owner: self.owner(file.owner.as_ref())?,
            mode: None,
            time: (file.timestamp != -1).then_some(file.timestamp),
        };
        let place = place(root, Path::new(&select::clean(&file.path)))?;
        write(&place, &file.data, mode(file.mode), &attributes)
    }

    fn make_directory(&self, root: &OwnedFd, directory: &FileActionMkDir) -> Result<()> {
        let attributes = Attributes {
            owner: self.owner(directory.owner.as_ref())?,
            mode: None,
            time: (directory.timestamp != -1).then_some(directory.timestamp),
        };
        let path = select::clean(&directory.path);
        let path = Path::new(&path);
        if !directory.make_parents {
            let above = path.parent().unwrap_or(Path::new("/"));
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            in_root::open(root, above, flags, Mode::empty())
                .map_err(os(format!("open {}", above.display())))?;
        }
        make_directories(root, path, mode(directory.mode), &attributes).map(drop)
    }

    fn make_link(&self, root: &OwnedFd, link: &FileActionSymlink) -> Result<()> {
        let failed = |error: Errno| Error::os(format!("create the link {}", link.newpath), error);
        let owner = self.owner(link.owner.as_ref())?;
        let (parent, name) = parent_of(root, &link.newpath)?;
        rustix::fs::symlinkat(link.oldpath.as_str(), &parent, &name).map_err(failed)?;
        if let Some((uid, gid)) = owner {
            rustix::fs::chownat(
                &parent,
                &name,
                Some(rustix::fs::Uid::from_raw(uid)),
                Some(rustix::fs::Gid::from_raw(gid)),
                rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(failed)?;
        }
        if link.timestamp != -1 {
            set_time(&parent, &name, link.timestamp).map_err(failed)?;
        }
        Ok(())
    }
}

/// Returns permissions that are valid.
fn mode(mode: i32) -> u32 {
    u32::try_from(mode & 0o7777).unwrap_or(0)
}

/// Opens the directory that a path is in, and returns the last name.
fn parent_of(root: &OwnedFd, path: &str) -> Result<(OwnedFd, OsString)> {
    let path = select::clean(path);
    let above = Path::new(&path).parent().unwrap_or(Path::new("/"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let parent = in_root::open(root, above, flags, Mode::empty())
        .map_err(os(format!("open {}", above.display())))?;
    match select::base(&path) {
        "/" => Err(Error::invalid("the root directory cannot be replaced")),
        name => Ok((parent, name.into())),
    }
}

fn remove(root: &OwnedFd, rm: &FileActionRm) -> Result<()> {
    let selector = Selector {
        path: rm.path.clone(),
        wildcard: rm.allow_wildcard,
        ..Selector::default()
    };
    let found = match select::find(root, &selector) {
        Err(Error::Missing { .. }) if rm.allow_not_found => return Ok(()),
        found => found?,
    };
    for selected in found {
        let (parent, name) = parent_of(root, &selected.path)?;
        tree::remove(&parent, &name).map_err(os(format!("remove {}", selected.path)))?;
    }
    Ok(())
}

/// Returns whether a file below a root is an archive that ADD unpacks.
pub(crate) fn is_archive_at(root: &OwnedFd, path: &str) -> Result<bool> {
    let selector = Selector {
        path: path.to_owned(),
        ..Selector::default()
    };
    match select::find(root, &selector)?.first() {
        Some(found) => is_archive(found),
        None => Ok(false),
    }
}

/// Returns whether a file is an archive that ADD unpacks: a tar file, plain or compressed.
fn is_archive(selected: &Selected) -> Result<bool> {
    const BLOCK: usize = 512;
    if !FileType::from_raw_mode(selected.stat.st_mode).is_file() {
        return Ok(false);
    }
    let failed = os(format!("read {}", selected.path));
    let file = fs::reopen(&selected.handle).map_err(failed)?;
    let file = std::fs::File::from(file);
    let invalid = |error: String| Error::invalid(format!("{}: {error}", selected.path));
    let plain = whelk_image::compression::decompress(file);
    let mut plain = plain.map_err(|error| invalid(error.to_string()))?;
    let mut block = [0; BLOCK];
    match std::io::Read::read_exact(&mut plain, &mut block) {
        Ok(()) => Ok(has_checksum(&block)),
        // It is an archive for Docker, too, so that it is not copied as a file.
        Err(error) if error.kind() == std::io::ErrorKind::OutOfMemory => {
            Err(invalid(error.to_string()))
        }
        Err(_) => Ok(false),
    }
}

/// Returns whether a block is a tar header: its checksum is right.
fn has_checksum(block: &[u8; 512]) -> bool {
    let field = String::from_utf8_lossy(&block[148..156]).into_owned();
    let digits = field.trim_matches(['\0', ' ']);
    let Ok(expected) = u32::from_str_radix(digits, 8) else {
        return false;
    };
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let own: u32 = block[148..156].iter().map(|byte| u32::from(*byte)).sum();
    sum - own + 8 * u32::from(b' ') == expected
}

fn unpack(
    root: &OwnedFd,
    destination: &str,
    selected: &Selected,
    attributes: &Attributes,
) -> Result<()> {
    let path = select::clean(destination);
    let path = Path::new(&path);
    let directory = make_directories(root, path, 0o755, attributes)?;
    let file = fs::reopen(&selected.handle).map_err(os(format!("read {}", selected.path)))?;
    let rules = Extraction {
        shown: destination,
        owner: match attributes.owner {
            Some((uid, gid)) => Owner::Fixed(uid, gid),
            None => Owner::Archived,
        },
        ..Extraction::default()
    };
    // Links of the image in the way are resolved in its root.
    let base = Base { root, path };
    let is_plain = in_root::open_no_links(root, path, OFlags::PATH).is_ok();
    let base = is_plain.then_some(base);
    let extracted = extract_until(std::fs::File::from(file), directory, base, rules, || false);
    Ok(extracted.map_err(|error| name_cut(&selected.path, error))?)
}
