//! Copying files to and from containers (`docker cp`).
//!
//! A copy works on a view of the container's files ([`view`]), and resolves all paths inside of it by
//! descriptor. It holds no lock of the container: stopping, killing and removing one do not wait for a
//! client that reads or sends slowly.

mod paths;
pub(super) mod view;

use std::cell::Cell;
use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::fs::{AtFlags, Mode, OFlags, fstat, readlinkat};
use rustix::io::Errno;
use tokio::runtime::Handle;
use whelk_image::snapshots::{
    Base, Copied, Extraction, Owner, Replaced, export_copy, extract_until,
};
use whelk_runtime::user::UserRequest;
use whelk_sys::{errno_text, fs, in_root};

use self::view::View;
use super::{Container, Containers};
use crate::error::{Error, Result};
use crate::model::ContainerRecord;
use crate::workload::blocking;

/// What a path in a container refers to. A symbolic link at its end is not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathStat {
    /// The last component of the path.
    pub name: String,
    pub size: i64,
    /// `st_mode` of stat(2).
    pub mode: u32,
    /// Seconds and nanoseconds since the epoch.
    pub modified: (i64, i64),
    /// Where a symbolic link leads to, with all links resolved inside the container; empty for other
    /// files.
    pub link_target: String,
}

/// Files of a container that are being read.
#[derive(Debug)]
pub struct ArchivedPath {
    pub stat: PathStat,
    view: Arc<View>,
    copied: Copied,
    /// Their name in the archive.
    top: String,
}

impl ArchivedPath {
    /// Writes a tar archive. `send` gets it in pieces. Blocks.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read, or if `send` fails.
    pub fn write(self, send: impl FnMut(Vec<u8>) -> std::io::Result<()>) -> Result<()> {
        let Self {
            view, copied, top, ..
        } = self;
        let written = export_copy(copied, Path::new(&top), send);
        drop(view);
        Ok(written?)
    }

    /// Waits until the copy has to end.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        self.view.ended()
    }
}

/// A request to unpack an archive in a container.
#[derive(Clone, Debug, Default)]
pub struct ExtractRequest {
    /// The directory.
    pub path: String,
    /// Do not replace directories by other files, or the reverse.
    pub keep_kinds: bool,
    /// The files are to belong to the container's user.
    pub own: bool,
}

/// A directory of a container that an archive can be unpacked into.
#[derive(Debug)]
pub struct ExtractTarget {
    containers: Arc<Containers>,
    container: Arc<Container>,
    name: String,
    request: ExtractRequest,
    view: Arc<View>,
    directory: OwnedFd,
    /// The directory's path, with links resolved.
    shown: String,
    owner: Owner,
}

impl ExtractTarget {
    /// Unpacks the archive `input`. Blocks.
    ///
    /// # Errors
    /// Returns an error with Docker's text if the archive is malformed or leads outside of the
    /// directory. What was unpacked until then remains.
    pub fn extract(self, input: impl Read + Send) -> Result<()> {
        let mount_points = mount_points(&self.container);
        let freeing = Freeing::default();
        let free = |old: OwnedFd| freeing.begin(old, &self.view);
        let upper = self.containers.upper_of(&self.container).ok();
        let extraction = Extraction {
            shown: &self.shown,
            mount_points: &mount_points,
            upper: upper.as_ref(),
            keeps_kinds: self.request.keep_kinds,
            owner: self.owner,
            replaced: Some(Replaced(&free)),
            ..Extraction::default()
        };
        let base = Base {
            root: self.view.root(),
            path: Path::new(&self.shown),
        };
        // Also asked while a thread unpacks what it has received, such as a bomb.
        let is_over = || self.view.has_ended();
        let extracted = extract_until(input, self.directory, Some(base), extraction, is_over);
        let has_ended = self.view.has_ended();
        let is_stopped = !self.view.is_of_run();
        drop(self.view);
        match extracted {
            Ok(()) if is_stopped => self.containers.sync_layer(&self.container)?,
            Ok(()) => {}
            Err(_) if has_ended => {
                return Err(Error::conflict(format!(
                    "container {} was started or removed during the copy",
                    self.container.id
                )));
            }
            // As with Docker: the archive refers to a file that is not there.
            Err(whelk_image::Error::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                return Err(not_found(&self.request.path, &self.name));
            }
            // The status of Docker.
            Err(whelk_image::Error::Invalid(text)) => return Err(Error::Internal(text)),
            Err(error) => return Err(error.into()),
        }
        self.containers
            .publish(&self.container, "extract-to-dir", &[]);
        Ok(())
    }

    /// Waits until the copy has to end.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        self.view.ended()
    }
}

/// Frees files that were replaced, one at a time, on a thread that the copy does not wait for.
#[derive(Default)]
struct Freeing(Cell<Option<JoinHandle<()>>>);

impl Freeing {
    /// Frees a file, which is in this view: its mounts end after that. If another one is being freed, the
    /// caller does it.
    fn begin(&self, old: OwnedFd, view: &Arc<View>) {
        if let Some(earlier) = self.0.take()
            && !earlier.is_finished()
        {
            self.0.set(Some(earlier));
            return;
        }
        let view = view.clone();
        let thread = std::thread::Builder::new().name("whelk-free".into());
        let runtime = Handle::try_current().ok();
        let free = move || {
            // Layers that the view has held may have to be collected.
            let _runtime = runtime.as_ref().map(Handle::enter);
            drop(old);
            drop(view);
        };
        self.0.set(thread.spawn(free).ok());
    }
}

/// Returns the mount points in a container, also those that its view lacks: of the kernel's file systems,
/// and of what its processes have mounted.
fn mount_points(container: &Container) -> Vec<PathBuf> {
    let record = container.record().clone();
    let mut points: Vec<PathBuf> = record
        .mounts
        .iter()
        .map(|plan| plan.target.as_str().into())
        .collect();
    if let Some(_process) = view::process(record.state.pid, &record.id)
        && let Ok(text) = fs::read_to_string(format!("/proc/{}/mountinfo", record.state.pid))
    {
        points.extend(crate::mounts::mount_points(&text));
    }
    points
}

impl Containers {
    /// Writes what was copied into a container that does not run to disk, like its record. Nothing of a
    /// `--rm` container needs to survive a power failure.
    fn sync_layer(&self, container: &Container) -> Result<()> {
        if container.record().host.auto_remove {
            return Ok(());
        }
        let failed = |error: Errno| Error::internal(format!("sync the container's layer: {error}"));
        rustix::fs::syncfs(self.upper_of(container)?).map_err(failed)
    }

    /// Opens the directory of what a container has changed.
    fn upper_of(&self, container: &Container) -> Result<OwnedFd> {
        let path = self.instance.container_dir(&container.id).join("upper");
        Ok(fs::open(path)?.into())
    }

    /// Returns what a path in a container refers to.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if there is no such container or file.
    pub async fn path_stat(self: &Arc<Self>, name: &str, path: &str) -> Result<PathStat> {
        let view = self.open_view(name).await?;
        let (name, path) = (name.to_owned(), path.to_owned());
        blocking(move || stat(&view, &path, &name)).await
    }

    /// Opens a file or directory of a container to be archived.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if there is no such container or file.
    pub async fn archived_path(self: &Arc<Self>, name: &str, path: &str) -> Result<ArchivedPath> {
        let container = self.find(name)?;
        let view = self.open_view(name).await?;
        let (name, path) = (name.to_owned(), paths::absolute(path));
        let archived = blocking(move || archive(view, &path, &name)).await?;
        self.publish(&container, "archive-path", &[]);
        Ok(archived)
    }

    /// Opens a directory of a container to unpack an archive in it.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] if there is no such container or directory, and [`Error::Invalid`] if
    /// it is no directory or must not be written to.
    pub async fn extract_target(
        self: &Arc<Self>,
        name: &str,
        request: ExtractRequest,
    ) -> Result<ExtractTarget> {
        let container = self.find(name)?;
        let view = self.open_view(name).await?;
        let (containers, name) = (self.clone(), name.to_owned());
        blocking(move || {
            let path = paths::absolute(&request.path);
            let (directory, shown) = open_target(&view, &path, &request.path, &name)?;
            let record = container.record().clone();
            check_writable(&record, &shown, view.is_of_run())?;
            let owner = owner(&view, &record, request.own)?;
            Ok(ExtractTarget {
                containers,
                container,
                name,
                request,
                view,
                directory,
                shown,
                owner,
            })
        })
        .await
    }
}

fn not_found(path: &str, container: &str) -> Error {
    Error::NotFound(format!(
        "Could not find the file {path} in container {container}"
    ))
}

/// Opens what a path refers to, without access to its content. A link at the end is followed only if the
/// path demands a directory.
fn open(view: &View, path: &str, container: &str) -> Result<OwnedFd> {
    let how = if paths::demands_directory(path) {
        OFlags::DIRECTORY
    } else {
        OFlags::NOFOLLOW
    };
    in_root::open(view.root(), path, OFlags::PATH | how, Mode::empty())
        .map_err(|error| failed(&error, path, container))
}

fn failed(error: &std::io::Error, path: &str, container: &str) -> Error {
    if error.kind() == std::io::ErrorKind::NotFound {
        not_found(path, container)
    } else {
        Error::internal(format!("lstat {path}: {}", errno_text(error)))
    }
}

#[allow(
    clippy::useless_conversion,
    reason = "the field types differ between architectures"
)]
fn stat(view: &View, path: &str, container: &str) -> Result<PathStat> {
    let file = open(view, path, container)?;
    let stat = fstat(&file).map_err(|error| failed(&error.into(), path, container))?;
    let is_link = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_symlink();
    Ok(PathStat {
        name: paths::base(path).to_owned(),
        size: stat.st_size,
        mode: stat.st_mode,
        modified: (
            stat.st_mtime.into(),
            i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
        ),
        link_target: if is_link {
            paths::resolve(path, |path| link_at(view.root(), path))
        } else {
            String::new()
        },
    })
}

/// Returns the target of the symbolic link at `path`; `None` if there is none.
fn link_at(root: &OwnedFd, path: &str) -> Option<String> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let link = in_root::open(root, path, flags, Mode::empty()).ok()?;
    let target = readlinkat(&link, c"", Vec::new()).ok()?;
    Some(target.to_string_lossy().into_owned())
}

fn archive(view: Arc<View>, path: &str, container: &str) -> Result<ArchivedPath> {
    let stat = stat(&view, path, container)?;
    let open_directory = |path: &str| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        in_root::open(view.root(), path, flags, Mode::empty())
            .map_err(|error| failed(&error, path, container))
    };
    let copied = if rustix::fs::FileType::from_raw_mode(stat.mode).is_dir() {
        Copied::Directory(open_directory(path)?)
    } else {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = open_directory(parent)?;
        rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed(&error.into(), path, container))?;
        Copied::Entry {
            parent,
            name: OsStr::new(name).to_owned(),
        }
    };
    Ok(ArchivedPath {
        top: stat.name.clone(),
        stat,
        view,
        copied,
    })
}

/// Opens the directory that an archive is to be unpacked into. Links are followed. Also returns its path
/// with links resolved.
fn open_target(
    view: &View,
    path: &str,
    requested: &str,
    container: &str,
) -> Result<(OwnedFd, String)> {
    let flags = OFlags::PATH;
    let found = in_root::open(view.root(), path, flags, Mode::empty()).map_err(|error| {
        match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => not_found(requested, container),
            _ => failed(&error, path, container),
        }
    })?;
    let stat = fstat(&found).map_err(|error| failed(&error.into(), path, container))?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Err(if paths::demands_directory(path) {
            failed(&Errno::NOTDIR.into(), path, container)
        } else {
            Error::invalid("extraction point is not a directory")
        });
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let directory = in_root::open(found.as_fd(), ".", flags, Mode::empty())
        .map_err(|error| failed(&error, path, container))?;
    let shown = paths::resolve(path, |path| link_at(view.root(), path));
    Ok((directory, shown))
}

/// Checks that a container's settings allow writing to a directory.
fn check_writable(record: &ContainerRecord, directory: &str, is_running: bool) -> Result<()> {
    let innermost = record
        .mounts
        .iter()
        // A container that does not run has none.
        .filter(|plan| is_running || plan.source != crate::mounts::Source::Tmpfs)
        .filter(|plan| Path::new(directory).starts_with(&plan.target))
        .max_by_key(|plan| plan.target.len());
    let refused = match innermost {
        Some(plan) if plan.read_only => "mounted volume is marked read-only",
        None if record.host.readonly_rootfs => "container rootfs is marked read-only",
        _ => return Ok(()),
    };
    Err(Error::invalid(refused))
}

/// Returns whom unpacked files belong to; with `own` the container's user, if it has one.
fn owner(view: &View, record: &ContainerRecord, own: bool) -> Result<Owner> {
    if !own || record.config.user.is_empty() {
        return Ok(Owner::Archived);
    }
    let request = UserRequest {
        user: record.config.user.clone(),
        groups: Vec::new(),
    };
    let user = whelk_runtime::user::resolve(view.root(), &request)
        .map_err(|error| Error::invalid(error.to_string()))?;
    Ok(Owner::Fixed(user.uid, user.gid))
}
