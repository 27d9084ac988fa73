//! Overlay mounts with the new mount API: created detached, attached by the caller.
//!
//! A layer is a directory, or an EROFS image, which is mounted for the overlay only unless it was mounted
//! before: the mount is given as a directory then.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags as Propagation,
    OpenTreeFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    mount_change, open_tree,
};

use crate::mount::MountAttr;
use crate::process::CloneFlags;

/// The writable part of an overlay.
#[derive(Clone, Copy, Debug)]
pub struct Writable<'a> {
    pub upper: &'a Path,
    pub work: &'a Path,
    /// Whether to use overlayfs's `volatile` option, which omits all syncs to the upper layer.
    pub volatile: bool,
}

/// Options of writable overlays, whatever the defaults of the kernel's module are: otherwise a renamed directory or a
/// changed mode of a file would be a mark in the upper layer that refers to a lower one, and that layer alone would be
/// of no use, as one of an image for example.
const UPPER: [(&str, &str); 3] = [
    ("redirect_dir", "off"),
    ("metacopy", "off"),
    ("index", "off"),
];

/// The attribute of a directory of a layer in which overlayfs expects whiteouts. It lists whiteouts of a directory that no layer below
/// has, too, unless the directory has this attribute: a layer with it was an upper layer above others before. There the value says
/// where the directory was copied from; an empty one is that of an unknown place.
const ORIGIN: &str = "trusted.overlay.origin";

/// Marks a directory of a lower layer as one that has whiteouts, so that these are not listed. Where there are no such attributes, it
/// is not marked.
///
/// # Errors
/// Returns an error if the attribute cannot be written.
pub fn mark_whiteouts(directory: impl AsFd) -> Result<(), Errno> {
    match fsetxattr(directory, ORIGIN, b"", XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        result => result,
    }
}

/// Returns whether a directory is marked by [`mark_whiteouts`], or by overlayfs.
///
/// # Errors
/// Returns an error if the attribute cannot be read.
pub fn is_marked(directory: impl AsFd) -> Result<bool, Errno> {
    let mut value = [0_u8; 256];
    match fgetxattr(directory, ORIGIN, &mut value[..]) {
        Ok(_) | Err(Errno::RANGE) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The name of the attribute of [`mark_whiteouts`], for those who write file systems.
pub const WHITEOUTS: &[u8] = ORIGIN.as_bytes();

/// Mounts layers (topmost first) without attaching the mount. Each layer is an option of its own,
/// so that their number is not limited by the length of an option.
///
/// # Errors
/// Returns `EINVAL` on kernels without such options (before 6.8); use [`mount_at`] there.
pub fn mount(lower: &[PathBuf], writable: Option<Writable<'_>>) -> Result<OwnedFd, Errno> {
    let layers = Layer::all(lower)?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", "overlay")?;
    for (layer, path) in layers.iter().zip(lower) {
        match &layer.image {
            Some(image) => fsconfig_set_string(context.as_fd(), "lowerdir+", by_number(image))?,
            None => fsconfig_set_string(context.as_fd(), "lowerdir+", path)?,
        }
    }
    // Without it, files and directories of layers on several file systems have different device
    // numbers, and `find -xdev` would leave files out.
    let mut devices: Vec<u64> = layers.iter().map(|layer| layer.device).collect();
    if let Some(Writable { upper, .. }) = writable {
        devices.push(rustix::fs::stat(upper)?.st_dev);
    }
    if devices.iter().any(|device| *device != devices[0]) {
        fsconfig_set_string(context.as_fd(), "xino", "on")?;
    }
    if let Some(Writable {
        upper,
        work,
        volatile,
    }) = writable
    {
        fsconfig_set_string(context.as_fd(), "upperdir", upper)?;
        fsconfig_set_string(context.as_fd(), "workdir", work)?;
        for (name, value) in UPPER {
            fsconfig_set_string(context.as_fd(), name, value)?;
        }
        if volatile {
            fsconfig_set_flag(context.as_fd(), "volatile")?;
        }
    }
    fsconfig_create(context.as_fd())?;
    fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
}

/// Mounts layers at `target` with mount(2), for older kernels. The options are limited to a page,
/// so layers are named by descriptor. The caller needs a mount namespace of its own, since the
/// mount is attached.
pub fn mount_at(
    target: &Path,
    lower: &[PathBuf],
    writable: Option<Writable<'_>>,
) -> Result<OwnedFd, Errno> {
    let layers = lower
        .iter()
        .map(|layer| open_layer(layer))
        .collect::<Result<Vec<_>, _>>()?;
    let names: Vec<String> = layers.iter().map(by_number).collect();
    let mut options = format!("lowerdir={}", names.join(":"));
    if let Some(Writable {
        upper,
        work,
        volatile,
    }) = writable
    {
        options += &format!(",upperdir={},workdir={}", upper.display(), work.display());
        for (name, value) in UPPER {
            options += &format!(",{name}={value}");
        }
        if volatile {
            options += ",volatile";
        }
    }
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(
        "overlay",
        target,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )?;
    open(target)
}

/// Mounts layers read-only, without attaching the mount. For a single layer returns its directory,
/// because overlayfs needs at least two, unless its root is marked as that of a layer with whiteouts.
pub fn read_only(lower: &[PathBuf]) -> Result<OwnedFd, Errno> {
    if let [single] = lower {
        let layer = open_layer(single)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&layer, ".", flags, Mode::empty())?;
        if !is_marked(&root)? {
            return Ok(layer);
        }
    }
    merged(lower)
}

/// Like [`read_only`], but mounts a single layer above an empty directory also if it is not marked: whether an upper layer has
/// whiteouts is not known.
pub fn merged(lower: &[PathBuf]) -> Result<OwnedFd, Errno> {
    static EMPTY: OnceLock<OwnedFd> = OnceLock::new();
    let layers;
    let lower = match lower {
        [single] => {
            if EMPTY.get().is_none() {
                // Another thread may have been faster.
                let _ = EMPTY.set(empty_directory()?);
            }
            let empty = EMPTY.get().ok_or(Errno::NOENT)?;
            layers = [single.clone(), by_number(empty).into()];
            &layers[..]
        }
        _ => lower,
    };
    match mount(lower, None) {
        Err(Errno::INVAL | Errno::NOSYS) => mount_detached(lower, None),
        result => result,
    }
}

/// Mounts an empty file system, without attaching it.
fn empty_directory() -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let (flags, attributes) = (FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
    fsmount(context.as_fd(), flags, attributes)
}

/// Mounts layers below a writable one, without attaching the mount.
///
/// # Errors
/// Returns `EINVAL` if overlayfs does not support the file system of the upper directory, for
/// example another overlayfs.
pub fn writable(lower: &[PathBuf], writable: Writable<'_>) -> Result<OwnedFd, Errno> {
    match mount(lower, Some(writable)) {
        Err(Errno::INVAL | Errno::NOSYS) => mount_detached(lower, Some(writable)),
        result => result,
    }
}

/// Runs [`mount_at`] in a thread with a mount namespace of its own, and returns a detached clone of
/// the mount.
fn mount_detached(lower: &[PathBuf], writable: Option<Writable<'_>>) -> Result<OwnedFd, Errno> {
    let make = || {
        crate::process::unshare(CloneFlags::NEWNS)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::PERM))?;
        mount_change("/", Propagation::PRIVATE | Propagation::REC)?;
        let target = &lower[0];
        mount_at(target, lower, writable)?;
        open_tree(
            CWD,
            target,
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
    };
    std::thread::scope(|scope| scope.spawn(make).join().unwrap_or(Err(Errno::IO)))
}

/// Returns a detached clone of the root mount of a running process's mount namespace, without the
/// mounts below it. Mounting the overlay a second time instead would make overlayfs warn that its
/// directories are in use.
pub fn clone_root(process: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let copy = || {
        // setns(2): a thread that shares its root and working directory with others cannot enter a
        // mount namespace.
        crate::process::unshare(CloneFlags::NEWNS).map_err(errno)?;
        crate::process::setns(process, CloneFlags::NEWNS).map_err(errno)?;
        let clone = open_tree(
            CWD,
            "/",
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )?;
        private(clone)
    };
    std::thread::scope(|scope| scope.spawn(copy).join().unwrap_or(Err(Errno::IO)))
}

/// Takes a clone out of the peer group of the mount that it was made of: what is mounted on it would
/// be mounted there too.
fn private(clone: OwnedFd) -> Result<OwnedFd, Errno> {
    let attr = MountAttr {
        propagation: Propagation::PRIVATE.bits().into(),
        ..MountAttr::default()
    };
    crate::mount::set_attr(clone.as_fd(), attr, false)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(clone)
}

/// Returns detached clones of the tmpfs mounts at these paths of a running process's mount namespace, in
/// their order; `None` where none is mounted.
pub fn clone_tmpfs(process: BorrowedFd<'_>, paths: &[&str]) -> Result<Vec<Option<OwnedFd>>, Errno> {
    const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let is_mounted_tmpfs = |place: &OwnedFd| {
        let mask = rustix::fs::StatxFlags::empty();
        let is_root = rustix::fs::statx(place, "", rustix::fs::AtFlags::EMPTY_PATH, mask)
            .is_ok_and(|found| {
                found
                    .stx_attributes
                    .contains(rustix::fs::StatxAttributes::MOUNT_ROOT)
            });
        is_root && rustix::fs::fstatfs(place).is_ok_and(|found| found.f_type == TMPFS_MAGIC)
    };
    let copy = || {
        // As in `clone_root`.
        crate::process::unshare(CloneFlags::NEWNS).map_err(errno)?;
        crate::process::setns(process, CloneFlags::NEWNS).map_err(errno)?;
        let root = open(Path::new("/"))?;
        let clone_at = |path: &&str| {
            let place = crate::in_root::open(&root, path, OFlags::PATH, Mode::empty()).ok()?;
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH;
            is_mounted_tmpfs(&place)
                .then(|| open_tree(&place, "", flags).and_then(private))
                .transpose()
                .ok()?
        };
        Ok(paths.iter().map(clone_at).collect())
    };
    std::thread::scope(|scope| scope.spawn(copy).join().unwrap_or(Err(Errno::IO)))
}

/// A layer of an overlay that is being mounted.
struct Layer {
    /// The mount of an EROFS image.
    image: Option<OwnedFd>,
    /// The device number of its files.
    device: u64,
}

impl Layer {
    fn all(lower: &[PathBuf]) -> Result<Vec<Self>, Errno> {
        lower.iter().map(|path| Self::of(path)).collect()
    }

    fn of(path: &Path) -> Result<Self, Errno> {
        let stat = rustix::fs::stat(path)?;
        let (image, stat) = if FileType::from_raw_mode(stat.st_mode).is_file() {
            let mounted = crate::erofs::mount(path)?;
            let stat = rustix::fs::fstat(&mounted)?;
            (Some(mounted), stat)
        } else {
            (None, stat)
        };
        Ok(Self {
            image,
            device: stat.st_dev,
        })
    }
}

/// Opens a layer's root directory. Whiteouts are shown as they are stored.
pub fn open_layer(path: &Path) -> Result<OwnedFd, Errno> {
    match Layer::of(path)?.image {
        Some(image) => Ok(image),
        None => open(path),
    }
}

/// Returns a path of what a descriptor of this thread refers to.
fn by_number(descriptor: &OwnedFd) -> String {
    format!("/proc/thread-self/fd/{}", descriptor.as_raw_fd())
}

fn open(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    /// Sets options of the kernel's module, and restores them when it is dropped.
    struct Parameters(Vec<(PathBuf, String)>);

    impl Parameters {
        fn set(names: &[&str], value: &str) -> Option<Self> {
            let mut before = Self(Vec::new());
            for name in names {
                let path = Path::new("/sys/module/overlay/parameters").join(name);
                let old = std::fs::read_to_string(&path).ok()?;
                std::fs::write(&path, value).ok()?;
                before.0.push((path, old));
            }
            Some(before)
        }
    }

    impl Drop for Parameters {
        fn drop(&mut self) {
            for (path, old) in &self.0 {
                let _ = std::fs::write(path, old);
            }
        }
    }

    #[test]
    fn upper_layers_refer_to_no_lower_ones() {
        let Some(_parameters) = Parameters::set(&["redirect_dir", "metacopy"], "Y") else {
            return;
        };
        let scratch = crate::Scratch::temporary("overlay-upper").unwrap();
        let path = |name: &str| scratch.path().join(name);
        for name in ["lower", "lower/d", "upper", "work"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        std::fs::write(path("lower/d/file"), "content").unwrap();
        std::fs::write(path("lower/other"), "content").unwrap();
        let (upper, work) = (path("upper"), path("work"));
        let layers = Writable {
            upper: &upper,
            work: &work,
            volatile: true,
        };
        let Ok(merged) = writable(&[path("lower")], layers) else {
            return;
        };
        let inside =
            |name: &str| PathBuf::from(format!("/proc/self/fd/{}/{name}", merged.as_raw_fd()));
        // As mv(1) sees: it copies then.
        assert!(std::fs::rename(inside("d"), inside("e")).is_err());
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(inside("other"), mode).unwrap();
        let mut names = [0u8; 1024];
        let length = rustix::fs::listxattr(upper.join("other"), &mut names[..]).unwrap();
        let names = String::from_utf8_lossy(&names[..length]).into_owned();
        assert!(!names.contains("metacopy"), "{names}");
        assert_eq!(std::fs::read(upper.join("other")).unwrap(), b"content");
    }

    #[test]
    fn whiteouts_are_not_listed() {
        let scratch = crate::Scratch::temporary("overlay-whiteouts").unwrap();
        let layer = scratch.path().join("layer");
        std::fs::create_dir_all(layer.join("d")).unwrap();
        std::fs::write(layer.join("d/file"), "").unwrap();
        for name in ["gone", "d/gone"] {
            let (kind, device) = (FileType::CharacterDevice, rustix::fs::makedev(0, 0));
            let path = layer.join(name);
            if rustix::fs::mknodat(CWD, path, kind, Mode::empty(), device).is_err() {
                return;
            }
        }
        let directory = std::fs::File::open(layer.join("d")).unwrap();
        assert_eq!(is_marked(&directory), Ok(false));
        mark_whiteouts(&directory).unwrap();
        if is_marked(&directory) != Ok(true) {
            return;
        }
        let listed = |root: &OwnedFd, name: &str| {
            let path = format!("/proc/self/fd/{}/{name}", root.as_raw_fd());
            let names = std::fs::read_dir(path).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.collect();
            names.sort();
            names
        };
        let layers = [layer];
        let single = read_only(&layers).unwrap();
        assert_eq!(listed(&single, ""), ["d", "gone"]);
        for _ in 0..2 {
            let Ok(merged) = merged(&layers) else {
                return;
            };
            assert_eq!(listed(&merged, ""), ["d"]);
            assert_eq!(listed(&merged, "d"), ["file"]);
        }
        mark_whiteouts(std::fs::File::open(&layers[0]).unwrap()).unwrap();
        assert_eq!(listed(&read_only(&layers).unwrap(), ""), ["d"]);
        assert_eq!(listed(&open_layer(&layers[0]).unwrap(), ""), ["d", "gone"]);
    }

    /// The path for kernels without one option per layer.
    #[test]
    fn mounts_many_layers_with_the_old_mount_api() {
        let scratch = crate::Scratch::temporary("overlay").unwrap();
        let work = scratch.path();
        let layers: Vec<PathBuf> = (0..40).map(|n| work.join(format!("layer{n}"))).collect();
        for (n, layer) in layers.iter().enumerate() {
            std::fs::create_dir(layer).unwrap();
            std::fs::write(layer.join(format!("own{n}")), "").unwrap();
            std::fs::write(layer.join("shared"), n.to_string()).unwrap();
        }
        let merged = mount_detached(&layers, None).unwrap();
        let inside = |name: &str| {
            std::fs::read_to_string(format!("/proc/self/fd/{}/{name}", merged.as_raw_fd())).unwrap()
        };
        assert_eq!(inside("shared"), "0");
        assert_eq!(inside("own39"), "");
        // It is not attached.
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!mounts.contains(work.to_str().unwrap()), "{mounts}");
    }
}
