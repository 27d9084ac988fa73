//! Mounts of a container below its root.
//!
//! Every mount is created detached (`fsopen`/`open_tree`), gets its attributes, and only then is
//! attached to a target that was opened inside the root. No path is resolved twice, so a path that
//! is changed in between cannot lead outside (CVE-2021-30465), and no half-configured mount is ever
//! visible.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags as Propagation,
    MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};
use whelk_sys::mount::{MountAttr, set_attr};
use whelk_sys::{in_root, overlay};

use crate::error::{Error, Result, os, os_at};
use crate::mount_options::{Attributes, Bind, IdMap, Options, RDONLY};
use crate::spec::{IdMapping, Mount};

/// Descriptors of mounts that later steps need, so that these do not depend on paths in the
/// container.
#[derive(Debug, Default)]
pub(crate) struct KeyMounts {
    /// The container's procfs.
    pub proc: Option<OwnedFd>,
    pub devpts: Option<OwnedFd>,
    /// `/dev` is a bind mount: nothing is created in it.
    pub dev_is_bound: bool,
    /// New tmpfs mounts to be made read-only at the end, after mount points and devices have been
    /// created in them.
    read_only: Vec<OwnedFd>,
}

impl KeyMounts {
    pub(crate) fn make_read_only(&self) -> Result<()> {
        self.read_only.iter().try_for_each(|mount| {
            set_attr(
                mount.as_fd(),
                MountAttr {
                    set: RDONLY,
                    ..MountAttr::default()
                },
                false,
            )
            .map_err(os("make a mount read-only"))
        })
    }
}

/// Parameters of all mounts of a container.
pub(crate) struct Context<'a> {
    pub root: &'a OwnedFd,
    pub mount_label: &'a str,
    /// User namespace with the container's id mappings, for `idmap` mounts without mappings of
    /// their own.
    pub user_namespace: Option<&'a OwnedFd>,
}

impl Context<'_> {
    /// Creates and attaches one mount. `shared` is the source that [`clone_shared`] has cloned for
    /// it.
    pub(crate) fn mount(
        &self,
        mount: &Mount,
        shared: Option<OwnedFd>,
        keys: &mut KeyMounts,
    ) -> Result<()> {
        let is_bind = is_bind(mount);
        let options = parse_options(mount)?;
        let layers = overlay_layers(mount, &options);
        let tree = if is_bind {
            self.bind(mount, &options, shared)?
        } else if let Some(layers) = &layers {
            mount_layers(mount, &options, layers)?
        } else {
            self.file_system(mount, &options)?
        };
        self.attach(mount, &tree, is_bind || layers.is_some())?;
        // The propagation is set after attaching, because a mount takes part in propagation only in
        // a mount tree.
        for &flags in &options.propagation {
            let recursive = flags.contains(Propagation::REC);
            let propagation = u64::from((flags - Propagation::REC).bits());
            set_attr(
                tree.as_fd(),
                MountAttr {
                    propagation,
                    ..MountAttr::default()
                },
                recursive,
            )
            .map_err(os_at("set propagation of", &mount.destination))?;
        }
        match (mount.destination.trim_end_matches('/'), mount.kind.as_str()) {
            ("/proc", "proc") => keys.proc = Some(tree),
            (_, "devpts") => keys.devpts = Some(tree),
            (destination, _) => {
                if destination == "/dev" {
                    keys.dev_is_bound = is_bind;
                }
                if starts_empty(mount) && options.here.set & RDONLY != 0 {
                    keys.read_only.push(tree);
                }
            }
        }
        Ok(())
    }

    fn bind(&self, mount: &Mount, options: &Options, shared: Option<OwnedFd>) -> Result<OwnedFd> {
        let tree = match shared {
            Some(tree) => tree,
            None => clone_source(mount, options)?,
        };
        set_attributes(mount, options, &tree)?;
        self.id_map(mount, options, &tree)?;
        Ok(tree)
    }

    /// Id-maps a bind mount, if its options ask for it.
    fn id_map(&self, mount: &Mount, options: &Options, tree: &OwnedFd) -> Result<()> {
        let own = if mount.uid_mappings.is_empty() {
            None
        } else {
            Some(id_mapping_namespace(
                &mount.uid_mappings,
                &mount.gid_mappings,
            )?)
        };
        let recursive = options.id_map == IdMap::Recursive;
        let namespace = match (&own, options.id_map) {
            (Some(own), _) => own,
            (None, IdMap::No) => return Ok(()),
            (None, _) => self.user_namespace.ok_or_else(|| {
                Error::invalid(format!(
                    "mount {}: idmap needs uidMappings and gidMappings, or a container with a user namespace",
                    mount.destination
                ))
            })?,
        };
        let attr = MountAttr {
            user_namespace: Some(namespace.as_fd()),
            ..MountAttr::default()
        };
        set_attr(tree.as_fd(), attr, recursive).map_err(|error| {
            match Errno::from_io_error(&error) {
                Some(Errno::INVAL) => Error::invalid(format!(
                    "the file system of {} does not support id-mapped mounts",
                    mount.source
                )),
                _ => os_at("map ids of", &mount.destination)(error),
            }
        })
    }

    fn file_system(&self, mount: &Mount, options: &Options) -> Result<OwnedFd> {
        let step = |error: Errno| {
            os_at("mount", format!("{} at {}", mount.kind, mount.destination))(error)
        };
        let context = fsopen(mount.kind.as_str(), FsOpenFlags::FSOPEN_CLOEXEC).map_err(step)?;
        let source = if mount.source.is_empty() {
            mount.kind.as_str()
        } else {
            mount.source.as_str()
        };
        fsconfig_set_string(context.as_fd(), "source", source).map_err(step)?;
        if mount.kind == "tmpfs" && options.data.iter().all(|(key, _)| key != "mode") {
            let mode = tmpfs_mode(self.root, Path::new(&mount.destination))?;
            fsconfig_set_string(
                context.as_fd(),
                "mode",
                format!("{:o}", mode.as_raw_mode()).as_str(),
            )
            .map_err(step)?;
        }
        for (key, value) in &options.data {
            match value {
                Some(value) => fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str()),
                // Since Linux 4.7 every devpts mount is a new instance, and its option parser
                // rejects `newinstance`.
                None if key == "newinstance" => Ok(()),
                None => fsconfig_set_flag(context.as_fd(), key.as_str()),
            }
            .map_err(|error| {
                os_at(
                    "mount option",
                    format!("{key} for {} at {}", mount.kind, mount.destination),
                )(error)
            })?;
        }
        if !self.mount_label.is_empty()
            && !matches!(mount.kind.as_str(), "proc" | "sysfs" | "mqueue")
        {
            fsconfig_set_string(context.as_fd(), "context", self.mount_label).map_err(step)?;
        }
        fsconfig_create(context.as_fd()).map_err(step)?;
        let now = if starts_empty(mount) {
            options.here.set & !RDONLY
        } else {
            options.here.set
        };
        let attributes = MountAttrFlags::from_bits_retain(u32::try_from(now).unwrap_or_default());
        let tree =
            fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(step)?;
        if options.copy_up {
            copy_up(self.root, &mount.destination, &tree)?;
        }
        Ok(tree)
    }

    fn attach(&self, mount: &Mount, tree: &OwnedFd, may_be_file: bool) -> Result<()> {
        let destination = mount.destination.as_str();
        // Before the mount point is created, which procfs refuses with another error.
        if is_inside_proc(destination) {
            return Err(inside_proc(mount));
        }
        let step = os_at::<std::io::Error>("open mount point", destination);
        let target = if matches!(mount.kind.as_str(), "proc" | "sysfs") {
            // A symbolic link here would mount the real file system elsewhere and leave labels and
            // masks applied to a fake one (CVE-2019-16884).
            let not_a_directory = || {
                Error::invalid(format!(
                    "filesystem {:?} must be mounted on ordinary directory: {destination}",
                    mount.kind
                ))
            };
            in_root::create_dir_all(self.root, destination, Mode::from_raw_mode(0o755)).map_err(
                |error| {
                    if error.kind() == std::io::ErrorKind::NotADirectory {
                        not_a_directory()
                    } else {
                        step(error)
                    }
                },
            )?;
            in_root::open_no_links(self.root, destination, OFlags::PATH | OFlags::DIRECTORY)
                .map_err(|_| not_a_directory())?
        } else if may_be_file && !is_directory(tree)? {
            in_root::create_file(self.root, destination).map_err(step)?
        } else {
            in_root::create_dir_all(self.root, destination, Mode::from_raw_mode(0o755))
                .map_err(step)?
        };
        check_not_proc(mount, tree, &target)?;
        attach_at(tree, &target).map_err(os_at(
            "mount",
            format!(
                "{} at {destination}",
                if may_be_file {
                    &mount.source
                } else {
                    &mount.kind
                }
            ),
        ))
    }
}

/// Whether the mount is a new, empty tmpfs, in which mount points and devices may have to be created
/// before it becomes read-only.
fn starts_empty(mount: &Mount) -> bool {
    mount.kind == "tmpfs" && !is_bind(mount)
}

fn is_bind(mount: &Mount) -> bool {
    mount.kind == "bind"
        || mount
            .options
            .iter()
            .any(|word| word == "bind" || word == "rbind")
}

fn parse_options(mount: &Mount) -> Result<Options> {
    Options::parse(&mount.options, is_bind(mount))
        .map_err(|error| error.during(&format!("mount {}", mount.destination)))
}

/// Clones the sources of bind mounts that share propagation with the host; the keys are indices
/// into `mounts`. Must be called while the mount namespace is still a peer of the host's: what is
/// cloned after [`crate::rootfs::attach`] only receives mount events. `propagation` is the root's:
/// binds without a propagation option follow it, as with runc.
pub(crate) fn clone_shared(mounts: &[Mount], propagation: &str) -> Result<HashMap<usize, OwnedFd>> {
    let is_shared = |options: &Options| match options.propagation.as_slice() {
        [] => matches!(propagation, "shared" | "rshared"),
        flags => flags
            .iter()
            .any(|flags| flags.contains(Propagation::SHARED)),
    };
    let mut trees = HashMap::new();
    for (index, mount) in mounts
        .iter()
        .enumerate()
        .filter(|(_, mount)| is_bind(mount))
    {
        let options = parse_options(mount)?;
        if is_shared(&options) {
            trees.insert(index, clone_source(mount, &options)?);
        }
    }
    Ok(trees)
}

/// Clones the source of a bind mount.
fn clone_source(mount: &Mount, options: &Options) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if options.bind == Bind::Recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    match (&options.subdirectory, process_root_source(&mount.source)) {
        (Some(subdirectory), _) => open_inside(&mount.source, subdirectory)
            .and_then(|inside| open_tree(inside.as_fd(), "", flags | OpenTreeFlags::AT_EMPTY_PATH)),
        (None, Some((process, path))) => clone_from_process_root(process, path, flags),
        (None, None) => open_tree(CWD, mount.source.as_str(), flags),
    }
    .map_err(os_at("bind mount source", &mount.source))
}

/// Returns the mode for a tmpfs without a `mode` option: that of the directory that it covers, as
/// with runc. A missing directory is created with tmpfs's default mode, so that the mount has the
/// same mode at every start.
fn tmpfs_mode(root: &OwnedFd, path: &Path) -> Result<Mode> {
    const DEFAULT: Mode = Mode::from_raw_mode(0o1777);
    match in_root::open(root, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
        Ok(directory) => {
            let stat = rustix::fs::fstat(&directory).map_err(os_at("stat", path))?;
            return Ok(Mode::from_raw_mode(stat.st_mode & 0o7777));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(os_at("open mount point", path)(error)),
    }
    if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
        let step = |error: std::io::Error| os_at("create mount point", path)(error);
        let parent =
            in_root::create_dir_all(root, parent, Mode::from_raw_mode(0o755)).map_err(step)?;
        match rustix::fs::mkdirat(&parent, name, DEFAULT) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(step(error.into())),
        }
    }
    Ok(DEFAULT)
}

fn set_attributes(mount: &Mount, options: &Options, tree: &OwnedFd) -> Result<()> {
    let set = |attributes: Attributes, recursive| match attributes {
        Attributes { set: 0, clear: 0 } => Ok(()),
        Attributes { set, clear } => set_attr(
            tree.as_fd(),
            MountAttr {
                set,
                clear,
                ..MountAttr::default()
            },
            recursive,
        )
        .map_err(os_at("set attributes of", &mount.destination)),
    };
    set(options.here, false)?;
    set(options.recursive, true)
}

/// The layers of an overlay mount.
struct Layers {
    /// The topmost first.
    lower: Vec<PathBuf>,
    /// The upper and the work directory of a mount that can be written to.
    writable: Option<(PathBuf, PathBuf)>,
    volatile: bool,
}

/// Returns the layers of an overlay mount, if its options consist of `lowerdir+=PATH`, and of `upperdir`,
/// `workdir` and `volatile`, only. One option per layer avoids the length limits of a single `lowerdir` option.
fn overlay_layers(mount: &Mount, options: &Options) -> Option<Layers> {
    let mut lower = Vec::new();
    let (mut upper, mut work, mut volatile) = (None, None, false);
    for (key, value) in &options.data {
        if key == "volatile" && value.is_none() {
            volatile = true;
            continue;
        }
        let path = PathBuf::from(value.as_ref()?);
        match key.as_str() {
            "lowerdir+" => lower.push(path),
            "upperdir" => upper = Some(path),
            "workdir" => work = Some(path),
            _ => return None,
        }
    }
    let writable = upper.zip(work);
    let is_whole = mount.kind == "overlay" && !lower.is_empty();
    is_whole.then_some(Layers {
        lower,
        writable,
        volatile,
    })
}

/// Mounts layers as an overlay: the whole, or the subdirectory that the options name.
fn mount_layers(mount: &Mount, options: &Options, layers: &Layers) -> Result<OwnedFd> {
    let step = |error: Errno| {
        os_at(
            "mount",
            format!("{} at {}", mount.source, mount.destination),
        )(error)
    };
    let Layers {
        lower,
        writable,
        volatile,
    } = layers;
    let writable = writable.as_ref().map(|(upper, work)| overlay::Writable {
        upper,
        work,
        volatile: *volatile,
    });
    // open_tree(2) clones a part only of an attached mount, so the overlay is attached over its
    // lowest layer for a moment, which is a directory: higher ones may be EROFS images.
    let attach_point = &lower[lower.len() - 1];
    let whole = match (overlay::mount(lower, writable), &options.subdirectory) {
        (Ok(tree), None) => {
            set_attributes(mount, options, &tree)?;
            return Ok(tree);
        }
        (Ok(tree), Some(_)) => {
            move_mount(
                tree.as_fd(),
                "",
                CWD,
                attach_point,
                MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
            )
            .map_err(step)?;
            tree
        }
        (Err(Errno::INVAL | Errno::NOSYS), _) => {
            overlay::mount_at(attach_point, lower, writable).map_err(step)?
        }
        (Err(error), _) => return Err(step(error)),
    };
    let path = options.subdirectory.as_deref().unwrap_or("/");
    let part = in_root::open(&whole, path, OFlags::PATH, Mode::empty())
        .map_err(os_at("cannot access path", path))
        .and_then(|part| clone_of(part, false).map_err(step));
    unmount(attach_point, UnmountFlags::DETACH).map_err(step)?;
    let part = part?;
    set_attributes(mount, options, &part)?;
    Ok(part)
}

/// Mounts what only this runtime can mount (layers, a part of a source that is opened inside it, mapped
/// ids) at the path `at`, and returns the bind mount of it for another runtime; `None` for what every
/// runtime can mount. `root` is the container's root, `label` the SELinux label of its mounts.
///
/// # Errors
/// Returns the error of the mount.
pub fn bind_for_others(
    mount: &Mount,
    root: &OwnedFd,
    label: &str,
    at: &Path,
) -> Result<Option<Mount>> {
    let options = parse_options(mount)?;
    let layers = overlay_layers(mount, &options);
    let is_special = options.subdirectory.is_some()
        || options.id_map != IdMap::No
        || !mount.uid_mappings.is_empty();
    let tree = match layers {
        Some(layers) => mount_layers(mount, &options, &layers)?,
        None if is_special => {
            let context = Context {
                root,
                mount_label: label,
                user_namespace: None,
            };
            context.bind(mount, &options, None)?
        }
        None => return Ok(None),
    };
    if let Some(parent) = at.parent() {
        whelk_sys::fs::create_dir_all(parent, 0o700)?;
    }
    if is_directory(&tree)? {
        whelk_sys::fs::create_dir(at, 0o700)?;
    } else {
        whelk_sys::fs::write_new(at, b"", 0o600)?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree.as_fd(), "", CWD, at, flags).map_err(os_at("mount", at))?;
    let is_own = |word: &str| {
        matches!(word, "idmap" | "ridmap" | "bind" | "rbind")
            || word.starts_with("X-mount.")
            || word.starts_with("lowerdir+=")
    };
    let words = mount.options.iter().filter(|word| !is_own(word)).cloned();
    Ok(Some(Mount {
        destination: mount.destination.clone(),
        kind: "bind".into(),
        source: at.to_string_lossy().into_owned(),
        options: std::iter::once("rbind".to_owned()).chain(words).collect(),
        ..Mount::default()
    }))
}

/// Opens `path` inside the directory `source`, resolving symbolic links as if that were the root:
/// whoever can write there cannot redirect the mount.
fn open_inside(source: &str, path: &str) -> rustix::io::Result<OwnedFd> {
    let source = rustix::fs::open(
        source,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    in_root::open(&source, path, OFlags::PATH, Mode::empty())
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
}

/// Splits `/proc/PID/root/PATH` into `/proc/PID` and `PATH`.
fn process_root_source(source: &str) -> Option<(&str, &str)> {
    let (process, path) = source.split_once("/root/")?;
    process.strip_prefix("/proc/")?.parse::<u32>().ok()?;
    Some((process, path))
}

/// Clones the mount at a path in another process's root. Symbolic links are resolved inside that
/// root, because that process can change them. Its mounts can only be cloned from within its mount
/// namespace.
fn clone_from_process_root(
    process: &str,
    path: &str,
    flags: OpenTreeFlags,
) -> rustix::io::Result<OwnedFd> {
    use whelk_sys::process::{CloneFlags, setns};
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL);
    let own = rustix::fs::open(
        "/proc/self/ns/mnt",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // Open the directory once: by the next lookup the pid may belong to another process.
    let process = rustix::fs::open(
        process,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let theirs = rustix::fs::openat(
        &process,
        "ns/mnt",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let root = rustix::fs::openat(
        &process,
        "root",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    setns(theirs.as_fd(), CloneFlags::NEWNS).map_err(errno)?;
    let opened = in_root::open(&root, path, OFlags::PATH, Mode::empty()).map_err(errno);
    let tree = opened
        .and_then(|opened| open_tree(opened.as_fd(), "", flags | OpenTreeFlags::AT_EMPTY_PATH));
    setns(own.as_fd(), CloneFlags::NEWNS).map_err(errno)?;
    tree
}

/// Files of procfs that may be mounted over, for example by lxcfs. Everything else in procfs is
/// security-relevant: labels, masks and limits are written through it (CVE-2019-19921).
const COVERABLE: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

fn check_not_proc(mount: &Mount, tree: &OwnedFd, target: &OwnedFd) -> Result<()> {
    const PROC_SUPER_MAGIC: rustix::fs::FsWord = 0x9fa0;
    let on_proc =
        |fd: &OwnedFd| rustix::fs::fstatfs(fd).is_ok_and(|stat| stat.f_type == PROC_SUPER_MAGIC);
    let destination = mount.destination.trim_end_matches('/');
    if destination == "/proc" && on_proc(tree) || COVERABLE.contains(&destination) {
        return Ok(());
    }
    if destination == "/proc" || is_inside_proc(destination) || on_proc(target) {
        return Err(inside_proc(mount));
    }
    Ok(())
}

/// Returns whether a path that may not be mounted over is below `/proc`, as far as its text shows.
fn is_inside_proc(destination: &str) -> bool {
    let destination = destination.trim_end_matches('/');
    destination.starts_with("/proc/") && !COVERABLE.contains(&destination)
}

/// Returns the error of a mount on procfs, in runc's words.
fn inside_proc(mount: &Mount) -> Error {
    let (source, destination) = (&mount.source, &mount.destination);
    Error::invalid(format!(
        "error mounting {source:?} to rootfs at {destination:?}: {destination:?} cannot be mounted because it is inside /proc"
    ))
}

/// Attaches a detached mount to an opened target.
pub(crate) fn attach_at(tree: impl AsFd, target: impl AsFd) -> rustix::io::Result<()> {
    move_mount(
        tree.as_fd(),
        "",
        target.as_fd(),
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// Returns a detached clone of the mount at `fd`, with the mounts below it if `recursive`.
pub(crate) fn clone_of(fd: impl AsFd, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(fd.as_fd(), "", flags)
}

fn is_directory(fd: &OwnedFd) -> Result<bool> {
    let stat = rustix::fs::fstat(fd).map_err(os_at("stat", "bind mount source"))?;
    Ok(FileType::from_raw_mode(stat.st_mode).is_dir())
}

/// Creates a user namespace that only carries an id mapping.
fn id_mapping_namespace(uids: &[IdMapping], gids: &[IdMapping]) -> Result<OwnedFd> {
    use whelk_sys::process::{CloneFlags, Cloned, clone_process, exit_now};
    let step = os_at::<std::io::Error>("create user namespace for", "an id-mapped mount");
    match clone_process(CloneFlags::NEWUSER, None).map_err(step)? {
        Cloned::Child => {
            // The process lives until its parent has opened the namespace and kills it.
            std::thread::sleep(std::time::Duration::from_secs(60));
            exit_now(0)
        }
        Cloned::Parent { pid, pidfd } => {
            // `pid` is numbered in the container's pid namespace, so the host's procfs cannot be
            // used.
            let result = crate::child::private_proc().and_then(|proc| {
                crate::namespaces::write_id_maps(&proc, pid, uids, gids)?;
                let path = format!("{}/ns/user", pid.as_raw_nonzero());
                rustix::fs::openat(
                    &proc,
                    &path,
                    OFlags::RDONLY | OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .map_err(os_at("open", path))
            });
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            result
        }
    }
}

/// Copies the files that a new tmpfs is about to cover into it (`tmpcopyup` option).
fn copy_up(root: &OwnedFd, destination: &str, tree: &OwnedFd) -> Result<()> {
    let source = match in_root::open(
        root,
        destination,
        OFlags::RDONLY | OFlags::DIRECTORY,
        Mode::empty(),
    ) {
        Ok(source) => source,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(os_at("open", destination)(error)),
    };
    // Not `os_at`: what is used up is the size that the configuration gives the tmpfs.
    whelk_sys::copy::tree(&source, tree, whelk_sys::copy::Source::Layers).map_err(|error| {
        Error::Os(format!(
            "copy up {destination}: {}",
            whelk_sys::errno_text(&error.into())
        ))
    })
}
