//! The mounts of a process: `RUN --mount`, and those of other frontends, which may have outputs.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, openat};
use whelk_llb::key::Selector;
use whelk_llb::pb::{CacheSharing, ExecOp, Mount, MountType};
use whelk_runtime::spec;
use whelk_sys::copy::{self, Source};
use whelk_sys::fs;

use super::secrets::InMemory;
use super::{Context, input};
use crate::caches::{self, Caches, Used};
use crate::error::{Error, Result, os};
use crate::failed::Remains;
use crate::layers::{Files, Stack, Workspace, paths};
use crate::log::{Log, frame};
use crate::{blocking, select, tree};

/// The mounts of a process, and what they show, which stays until the process has ended.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub specs: Vec<spec::Mount>,
    /// Mount points that are directories, and those that are files.
    pub directories: Vec<PathBuf>,
    pub files: Vec<PathBuf>,
    layers: Vec<Files>,
    workspaces: Vec<Arc<Workspace>>,
    /// What is written to mounts, by the index of the mount.
    pub outputs: Vec<(usize, Arc<Workspace>)>,
    caches: Vec<Arc<Used>>,
    /// The files of secrets.
    pub secrets: Option<InMemory>,
}

/// A cache that a mount uses.
#[derive(Debug)]
pub(super) struct TakenCache {
    /// The index of the mount.
    mount: usize,
    used: Arc<Used>,
}

/// Returns an operation whose mount points are absolute: others are relative to the directory of the process.
pub(super) fn absolute(op: &ExecOp) -> Cow<'_, ExecOp> {
    if op.mounts.iter().all(|mount| mount.dest.starts_with('/')) {
        return Cow::Borrowed(op);
    }
    let mut op = op.clone();
    let directory = op.meta.as_ref().map_or("/", |meta| meta.cwd.as_str());
    for mount in &mut op.mounts {
        if !mount.dest.starts_with('/') {
            mount.dest = format!("/{directory}/{}", mount.dest);
        }
    }
    Cow::Owned(op)
}

/// Refuses what is not supported.
pub(super) fn check(op: &ExecOp) -> Result<()> {
    for mount in op.mounts.iter().filter(|mount| mount.dest != "/") {
        if select::clean(&mount.dest) == "/" {
            let text = format!("a mount at {}, which is the root directory", mount.dest);
            return Err(Error::invalid(text));
        }
        if !mount.result_id.is_empty() {
            let text = format!("a result as the mount {}", mount.dest);
            return Err(Error::Unsupported(text));
        }
        if MountType::try_from(mount.mount_type).is_err() {
            let kind = mount.mount_type;
            return Err(Error::invalid(format!("unknown type {kind} of a mount")));
        }
    }
    Ok(())
}

/// Takes the caches of a process, in the order of their keys, so that no two wait for each other. A wait is told in the log.
pub(super) async fn take_caches(
    all: &Caches,
    op: &ExecOp,
    inputs: &[Stack],
    log: &Arc<Log>,
) -> Result<Vec<TakenCache>> {
    let mut wanted = Vec::new();
    for (index, mount) in op.mounts.iter().enumerate() {
        if MountType::try_from(mount.mount_type) != Ok(MountType::Cache) {
            continue;
        }
        let options = mount.cache_opt.as_ref();
        let id = options.map_or("", |cache| cache.id.as_str());
        let sharing = options.map_or(0, |cache| cache.sharing);
        let sharing = CacheSharing::try_from(sharing).unwrap_or(CacheSharing::Shared);
        let base = input(inputs, mount.input)?.digests().await?;
        let key = caches::key(id, &mount.selector, &base);
        wanted.push((key, index, sharing, id));
    }
    // The strictest way of sharing first, which holds for all mounts of a cache.
    let order = |sharing: &CacheSharing| match sharing {
        CacheSharing::Locked => 0,
        CacheSharing::Private => 1,
        CacheSharing::Shared => 2,
    };
    wanted.sort_unstable_by_key(|(key, _, sharing, _)| (key.to_string(), order(sharing)));
    let mut taken: Vec<(_, TakenCache)> = Vec::new();
    for (key, mount, sharing, id) in wanted {
        // Several mounts of a process may show the same cache: they follow each other.
        let known = taken.last().filter(|(known, _)| *known == key);
        let used = match known {
            Some((_, known)) => known.used.clone(),
            None => Arc::new(told_if_late(all.take(&key, sharing), id, log).await?),
        };
        taken.push((key, TakenCache { mount, used }));
    }
    Ok(taken.into_iter().map(|(_, taken)| taken).collect())
}

/// Waits for a cache. If that takes its time, the log says so.
async fn told_if_late<T>(taking: impl Future<Output = T>, id: &str, log: &Arc<Log>) -> Result<T> {
    const PATIENCE: Duration = Duration::from_secs(1);
    tokio::pin!(taking);
    if let Ok(taken) = tokio::time::timeout(PATIENCE, &mut taking).await {
        return Ok(taken);
    }
    let name = id.strip_prefix('/').unwrap_or(id);
    let text = format!("waiting for the cache {name}, which another step or an export uses\n");
    let log = log.clone();
    blocking(move || log.append(&frame(2, text.as_bytes()))).await?;
    Ok(taking.await)
}

/// Prepares the mounts of a process. Blocking.
pub(super) fn prepare(
    context: &Context,
    op: &ExecOp,
    inputs: &[Stack],
    caches: &[TakenCache],
) -> Result<Mounts> {
    let mut mounts = Mounts::default();
    for (index, mount) in op.mounts.iter().enumerate() {
        if mount.dest == "/" {
            continue;
        }
        let destination = PathBuf::from(select::clean(&mount.dest));
        match MountType::try_from(mount.mount_type) {
            Ok(MountType::Tmpfs) => {
                // Its size is a setting of the process.
                if mount.dest != "/dev/shm" {
                    mounts.specs.push(tmpfs(mount));
                }
                mounts.directories.push(destination);
            }
            Ok(MountType::Bind) => {
                let base = input(inputs, mount.input)?;
                let bound = mounts.bind(context, (index, mount), &base);
                let is_directory = bound.map_err(|error| missing(context, mount, &base, error))?;
                let points = match is_directory {
                    true => &mut mounts.directories,
                    false => &mut mounts.files,
                };
                points.push(destination);
            }
            Ok(MountType::Cache) => {
                let taken = caches.iter().find(|taken| taken.mount == index);
                let used = taken.map(|taken| taken.used.clone());
                let used = used.ok_or_else(|| Error::internal("a cache that was not taken"))?;
                let base = input(inputs, mount.input)?;
                let id = mount
                    .cache_opt
                    .as_ref()
                    .map_or("", |cache| cache.id.as_str());
                let files = Caches::open(&context.store, &used, id, |path| {
                    fill(context, mount, &base, path)
                })?;
                mounts.specs.push(bind(mount, &files));
                mounts.caches.push(used);
                mounts.directories.push(destination);
            }
            Ok(MountType::Secret | MountType::Ssh) | Err(_) => {}
        }
    }
    Ok(mounts)
}

/// Returns the error of a mount. What it does not find is missing in its input.
fn missing(context: &Context, mount: &Mount, base: &Stack, error: Error) -> Error {
    match usize::try_from(mount.input) {
        Ok(index) => Remains::missing(index, context.snapshot(base.clone()), error),
        Err(_) => error,
    }
}

impl Mounts {
    /// Adds a mount of what is selected of a result. Returns whether that is a directory.
    fn bind(
        &mut self,
        context: &Context,
        (index, mount): (usize, &Mount),
        base: &Stack,
    ) -> Result<bool> {
        let workspace = Workspace::create(&context.store)?;
        if !mount.readonly {
            self.outputs.push((index, workspace.clone()));
        }
        let path = select::clean(&mount.selector);
        if base.0.is_empty() {
            // There is nothing below, so that no mount of layers is needed, and what is written hides nothing.
            let mut spec = bind(mount, &workspace.upper());
            if path != "/" {
                spec.options.push(format!("X-mount.subdir={path}"));
            }
            self.specs.push(spec);
            self.workspaces.push(workspace);
            return Ok(true);
        }
        // The lowest layer is a directory in any case, as the runtime wants it.
        let empty = workspace.path().join("empty");
        fs::create_dir(&empty, 0o755)?;
        let files = base.files(&context.store)?;
        let selected = path == "/" || {
            let view = base.mount(&context.store)?;
            let selector = Selector {
                path: path.clone(),
                follow: true,
                ..Selector::default()
            };
            let found = select::find(&view.root, &selector)?;
            let found = found.first().map(|found| tree::is_directory(&found.stat));
            found.unwrap_or(true)
        };
        let layers = paths(&files).into_iter().chain([empty]);
        let mut options: Vec<String> = layers
            .map(|layer| format!("lowerdir+={}", layer.display()))
            .collect();
        if mount.readonly {
            options.push("ro".into());
        } else {
            // What is written is kept if the mount has an output.
            options.push(format!("upperdir={}", workspace.upper().display()));
            options.push(format!("workdir={}", workspace.work().display()));
            options.push("volatile".into());
        }
        if path != "/" {
            options.push(format!("X-mount.subdir={path}"));
        }
        options.push("private".into());
        self.specs.push(spec::Mount {
            destination: select::clean(&mount.dest),
            kind: "overlay".into(),
            source: format!("{} of a build", mount.selector),
            options,
            ..spec::Mount::default()
        });
        self.layers.extend(files);
        self.workspaces.push(workspace);
        Ok(selected)
    }
}

/// Copies what is selected of a result into a new cache.
fn fill(context: &Context, mount: &Mount, base: &Stack, path: &Path) -> Result<()> {
    if base.0.is_empty() {
        return Ok(());
    }
    let view = base.mount(&context.store)?;
    let selector = Selector {
        path: mount.selector.clone(),
        follow: true,
        ..Selector::default()
    };
    let failed = || os(format!("fill the cache at {}", mount.dest));
    for selected in select::find(&view.root, &selector)? {
        if FileType::from_raw_mode(selected.stat.st_mode) != FileType::Directory {
            return Err(Error::invalid(format!(
                "{} is not a directory: it cannot be a cache",
                selected.path
            )));
        }
        let from = tree::open_below(&selected.handle, OsStr::new(".")).map_err(failed())?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let to = openat(rustix::fs::CWD, path, flags, Mode::empty()).map_err(failed())?;
        copy::tree(&from, &to, Source::Layers).map_err(failed())?;
        copy::directory_attributes(&from, &to).map_err(failed())?;
    }
    Ok(())
}

pub(super) fn bind(mount: &Mount, source: &Path) -> spec::Mount {
    let mut options = vec!["rbind".to_owned(), "rprivate".into()];
    if mount.readonly {
        options.push("ro".into());
    }
    spec::Mount {
        destination: select::clean(&mount.dest),
        kind: "bind".into(),
        source: source.display().to_string(),
        options,
        ..spec::Mount::default()
    }
}

fn tmpfs(mount: &Mount) -> spec::Mount {
    let size = mount.tmpfs_opt.map_or(0, |options| options.size);
    // As with BuildKit: programs in it can be executed.
    let mut options = vec!["nosuid".to_owned(), "nodev".into(), "mode=1777".into()];
    if size > 0 {
        options.push(format!("size={size}"));
    }
    if mount.readonly {
        options.push("ro".into());
    }
    spec::Mount {
        destination: select::clean(&mount.dest),
        kind: "tmpfs".into(),
        source: "tmpfs".into(),
        options,
        ..spec::Mount::default()
    }
}
