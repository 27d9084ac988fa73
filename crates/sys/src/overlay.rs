//! Overlay mounts through the new mount API: made detached, attached by whoever needs them at a
//! place.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags as Propagation,
    OpenTreeFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    mount_change, open_tree,
};

use crate::process::CloneFlags;

/// The writable part of an overlay.
#[derive(Clone, Copy, Debug)]
pub struct Writable<'a> {
    pub upper: &'a Path,
    pub work: &'a Path,
    /// Let the kernel drop unwritten changes at unmount.
    pub volatile: bool,
}

/// Mounts layers (the topmost first), attached nowhere: one option for each, so their number is not
/// limited by an option's length.
///
/// # Errors
/// `EINVAL` on kernels that lack such options (before 6.8), where [`mount_at`] does it.
pub fn mount(lower: &[PathBuf], writable: Option<Writable<'_>>) -> Result<OwnedFd, Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", "overlay")?;
    for layer in lower {
        fsconfig_set_string(context.as_fd(), "lowerdir+", layer)?;
    }
    if let Some(Writable {
        upper,
        work,
        volatile,
    }) = writable
    {
        fsconfig_set_string(context.as_fd(), "upperdir", upper)?;
        fsconfig_set_string(context.as_fd(), "workdir", work)?;
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

/// The same through mount(2), for any kernel. Its options may be a page long together, so layers
/// are named by descriptor. Needs a mount namespace of one's own: for a moment the mount is visible
/// in it.
pub fn mount_at(
    place: &Path,
    lower: &[PathBuf],
    writable: Option<Writable<'_>>,
) -> Result<OwnedFd, Errno> {
    let layers = lower
        .iter()
        .map(|layer| open(layer))
        .collect::<Result<Vec<_>, _>>()?;
    let names: Vec<String> = layers
        .iter()
        .map(|layer| format!("/proc/thread-self/fd/{}", layer.as_raw_fd()))
        .collect();
    let mut options = format!("lowerdir={}", names.join(":"));
    if let Some(Writable {
        upper,
        work,
        volatile,
    }) = writable
    {
        options += &format!(",upperdir={},workdir={}", upper.display(), work.display());
        if volatile {
            options += ",volatile";
        }
    }
    let options = CString::new(options).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(
        "overlay",
        place,
        "overlay",
        MountFlags::empty(),
        options.as_c_str(),
    )?;
    open(place)
}

/// Layers merged, to be read only. A single one needs no overlay, and overlay would not take it.
pub fn read_only(lower: &[PathBuf]) -> Result<OwnedFd, Errno> {
    match lower {
        [single] => open(single),
        _ => match mount(lower, None) {
            Err(Errno::INVAL | Errno::NOSYS) => aside(lower, None),
            result => result,
        },
    }
}

/// Layers merged below a writable one, attached nowhere.
///
/// # Errors
/// `EINVAL` for an upper directory that overlayfs cannot write to, as one on another overlayfs.
pub fn writable(lower: &[PathBuf], writable: Writable<'_>) -> Result<OwnedFd, Errno> {
    match mount(lower, Some(writable)) {
        Err(Errno::INVAL | Errno::NOSYS) => aside(lower, Some(writable)),
        result => result,
    }
}

/// [`mount_at`] in a thread with a mount namespace of its own, from which a detached copy is taken
/// out.
fn aside(lower: &[PathBuf], writable: Option<Writable<'_>>) -> Result<OwnedFd, Errno> {
    let make = || {
        crate::process::unshare(CloneFlags::NEWNS)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::PERM))?;
        mount_change("/", Propagation::PRIVATE | Propagation::REC)?;
        let place = &lower[0];
        mount_at(place, lower, writable)?;
        open_tree(
            CWD,
            place,
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
    };
    std::thread::scope(|scope| scope.spawn(make).join().unwrap_or(Err(Errno::IO)))
}

/// Copies the root mount of a running process's mount namespace, without the mounts below it. The
/// copy is attached nowhere. Mounting the same directories a second time while they are in use is
/// something that overlay warns about.
pub fn root_of(process: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let copy = || {
        // setns(2): only a thread that shares its root and working directory with no other may
        // enter a mount namespace.
        crate::process::unshare(CloneFlags::NEWNS).map_err(errno)?;
        crate::process::setns(process, CloneFlags::NEWNS).map_err(errno)?;
        open_tree(
            CWD,
            "/",
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
    };
    std::thread::scope(|scope| scope.spawn(copy).join().unwrap_or(Err(Errno::IO)))
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

    /// What kernels without one option for each layer go through.
    #[test]
    fn layers_merge_by_the_old_way_too() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let work = std::env::temp_dir().join(format!("whelk-overlay-{}", std::process::id()));
        std::fs::create_dir(&work).unwrap();
        let layers: Vec<PathBuf> = (0..40).map(|n| work.join(format!("layer{n}"))).collect();
        for (n, layer) in layers.iter().enumerate() {
            std::fs::create_dir(layer).unwrap();
            std::fs::write(layer.join(format!("own{n}")), "").unwrap();
            std::fs::write(layer.join("shared"), n.to_string()).unwrap();
        }
        let mounts = || std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let before = mounts();
        let merged = aside(&layers, None).unwrap();
        let inside = |name: &str| {
            std::fs::read_to_string(format!("/proc/self/fd/{}/{name}", merged.as_raw_fd())).unwrap()
        };
        assert_eq!(inside("shared"), "0");
        assert_eq!(inside("own39"), "");
        assert_eq!(mounts(), before);
        std::fs::remove_dir_all(&work).unwrap();
    }
}
