//! The init layer: what every container has on top of its image, as with Docker.
//!
//! `/.dockerenv` says to programs that they run in a container, `/etc/mtab` is where older ones
//! look for mounts, and the rest are the mount points of what each container gets. The layer lies
//! between an image's layers and a container's own, so that none of it counts as a change by the
//! container, and is made once for an image: `layers/TOP/init/STACK`, where it goes with the
//! topmost layer.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use whelk_sys::overlay::{self, Writable};
use whelk_sys::{fs, in_root};

use crate::digest::Digest;
use crate::error::{Result, io};
use crate::store::Store;

const FILES: [&str; 5] = [
    "/.dockerenv",
    "/dev/console",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
];
const DIRECTORIES: [&str; 4] = ["/dev/pts", "/dev/shm", "/proc", "/sys"];
const LINKS: [(&str, &str); 1] = [("/etc/mtab", "/proc/mounts")];
const MODE: Mode = Mode::from_raw_mode(0o755);

impl Store {
    /// The directories below a container's own layer, the topmost first: the init layer, and the
    /// image's. `own` is a directory of the container's, for what an image without layers cannot
    /// keep.
    pub fn root_layers(&self, diff_ids: &[Digest], own: &Path) -> Result<Vec<PathBuf>> {
        let lower = self.lower_layers(diff_ids);
        let place = match diff_ids.last() {
            None => own.join("init"),
            Some(top) => {
                let stack: Vec<&str> = diff_ids.iter().map(Digest::hex).collect();
                self.layer_path(top)
                    .join("init")
                    .join(Digest::of(stack.join(" ").as_bytes()).hex())
            }
        };
        if !fs::exists(&place) {
            self.make_init_layer(&lower, &place)?;
        }
        Ok(std::iter::once(place).chain(lower).collect())
    }

    fn make_init_layer(&self, lower: &[PathBuf], place: &Path) -> Result<()> {
        let scratch = self.scratch()?;
        let (upper, work) = (scratch.path().join("fs"), scratch.path().join("work"));
        fs::create_dir(&upper, 0o755)?;
        fs::create_dir(&work, 0o700)?;
        let root = if lower.is_empty() {
            rustix::fs::open(
                &upper,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        } else {
            // Through an overlay, so that directories of the image keep their owners and modes.
            overlay::writable(
                lower,
                Writable {
                    upper: &upper,
                    work: &work,
                    volatile: false,
                },
            )
        };
        let root = root.map_err(|error| io("mount the image's layers")(error.into()))?;
        fill(&root).map_err(io("make the init layer"))?;
        drop(root);
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent, 0o700)?;
        }
        // All of it is names and no data: they reach the disk in this order, or not at all.
        match fs::rename(&upper, place) {
            // Another start of the same image was faster.
            Err(_) if fs::exists(place) => Ok(()),
            renamed => Ok(renamed?),
        }
    }
}

fn fill(root: &OwnedFd) -> std::io::Result<()> {
    for path in DIRECTORIES {
        remove_links(root, path)?;
        in_root::create_dir_all(root, path, MODE)?;
    }
    for path in FILES {
        let (parent, name) = entry(root, path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&parent, name, flags, MODE) {
            Ok(file) => rustix::fs::fchmod(&file, MODE)?,
            // The image has a directory there.
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for (path, target) in LINKS {
        let (parent, name) = entry(root, path)?;
        match rustix::fs::symlinkat(target, &parent, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The directory of a path, and its last name, whose place is free unless there is a directory.
fn entry<'a>(root: &OwnedFd, path: &'a str) -> std::io::Result<(OwnedFd, &'a str)> {
    remove_links(root, path)?;
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((in_root::create_dir_all(root, parent, MODE)?, name))
}

/// Removes what stands in a path's way: on the way to it what leads to no directory, and at its end
/// what is none.
fn remove_links(root: &OwnedFd, path: &str) -> std::io::Result<()> {
    for (end, _) in path.match_indices('/').skip(1).chain([(path.len(), "")]) {
        let directory =
            |path: &str| in_root::open(root, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        let (place, is_last) = (&path[..end], end == path.len());
        if !is_last && directory(place).is_ok() {
            continue;
        }
        let (parent, name) = place.rsplit_once('/').unwrap_or(("", place));
        match rustix::fs::unlinkat(directory(parent)?.as_fd(), name, AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            // Nothing is there, or any more: nor is there below.
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn scratch(name: &str) -> (PathBuf, OwnedFd) {
        let root =
            std::env::temp_dir().join(format!("whelk-init-layer-{name}-{}", std::process::id()));
        fs::remove_tree(&root).unwrap();
        std::fs::create_dir(&root).unwrap();
        let fd = rustix::fs::open(&root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        (root, fd)
    }

    #[test]
    fn an_empty_root_gets_all() {
        let (path, root) = scratch("empty");
        fill(&root).unwrap();
        fill(&root).unwrap();
        assert_eq!(
            std::fs::metadata(path.join(".dockerenv")).unwrap().mode() & 0o7777,
            0o755
        );
        assert_eq!(
            std::fs::read_link(path.join("etc/mtab")).unwrap(),
            Path::new("/proc/mounts")
        );
        assert!(path.join("dev/shm").is_dir() && path.join("etc/hosts").is_file());
        fs::remove_tree(&path).unwrap();
    }

    #[test]
    fn links_of_an_image_lead_nowhere() {
        let (path, root) = scratch("links");
        let (outside, _) = scratch("outside");
        std::fs::write(outside.join("mine"), "mine").unwrap();
        std::fs::create_dir(path.join("etc")).unwrap();
        symlink(outside.join("mine"), path.join("etc/hosts")).unwrap();
        symlink("../../../../etc/passwd", path.join("etc/mtab")).unwrap();
        symlink(&outside, path.join("dev")).unwrap();
        std::fs::create_dir_all(path.join(".dockerenv")).unwrap();
        fill(&root).unwrap();
        assert!(path.join("etc/hosts").symlink_metadata().unwrap().is_file());
        assert_eq!(
            std::fs::read_link(path.join("etc/mtab")).unwrap(),
            Path::new("/proc/mounts")
        );
        assert!(path.join("dev").symlink_metadata().unwrap().is_dir());
        assert!(
            path.join(".dockerenv").is_dir(),
            "a directory of the image stays"
        );
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
        // One that leads to a directory inside stays.
        std::fs::rename(path.join("etc"), path.join("config")).unwrap();
        symlink("config", path.join("etc")).unwrap();
        std::fs::remove_file(path.join("config/hosts")).unwrap();
        fill(&root).unwrap();
        assert!(path.join("etc").is_symlink() && path.join("config/hosts").is_file());
        for directory in [path, outside] {
            fs::remove_tree(&directory).unwrap();
        }
    }
}
