//! The init layer: files and mount points that every container has above its image, as with Docker.
//!
//! `/.dockerenv` tells programs that they run in a container, older programs look for mounts in
//! `/etc/mtab`, and the rest are mount points. The layer lies between the image's layers and the
//! container's writable layer, so that its files do not show up as changes of the container. It is
//! created once per image at `layers/TOP/init/STACK` (`STACK` is a digest of all diff IDs) and is
//! removed together with the topmost layer.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use whelk_sys::overlay::{self, Writable};
use whelk_sys::{fs, in_root};

use super::Snapshots;
use super::mounts::failed;
use crate::digest::Digest;
use crate::error::{Result, io};

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

impl Snapshots {
    /// Returns the lower directories of a container's overlay, topmost first: the init layer, then
    /// the image's layers. Creates the init layer if it does not exist. `own` is a directory of the
    /// container that holds the init layer if the image has no layers.
    pub fn root(&self, diff_ids: &[Digest], own: &Path) -> Result<Vec<PathBuf>> {
        let lower = self.lower(diff_ids);
        let place = match diff_ids.last() {
            None => own.join("init"),
            Some(top) => {
                let stack: Vec<&str> = diff_ids.iter().map(Digest::hex).collect();
                self.path(top)
                    .join("init")
                    .join(Digest::of(stack.join(" ").as_bytes()).hex())
            }
        };
        if !fs::exists(&place) {
            self.make_init_layer(&lower, &place)?;
        }
        Ok(std::iter::once(place).chain(lower).collect())
    }

    /// Makes an init layer above the layers `lower` (topmost first) at `place`, which does not exist, with
    /// further mount points: directories and files.
    ///
    /// # Errors
    /// Returns an error if the layers cannot be mounted, or if a mount point leads nowhere.
    pub fn make_init_layer_with(
        &self,
        lower: &[PathBuf],
        place: &Path,
        directories: &[&Path],
        files: &[&Path],
    ) -> Result<()> {
        self.make(lower, place, &|root| {
            let named = |path: &Path, error: std::io::Error| {
                let cause = whelk_sys::errno_text(&error);
                let text = format!("mount point {}: {cause}", path.display());
                std::io::Error::new(error.kind(), text)
            };
            for &path in directories {
                in_root::create_dir_all_behind_links(root, path, MODE)
                    .map_err(|error| named(path, error))?;
            }
            for &path in files {
                let above = path.parent().unwrap_or(path);
                in_root::create_dir_all_behind_links(root, above, MODE)
                    .and_then(|_| in_root::create_file(root, path))
                    .and_then(|file| {
                        let found = rustix::fs::fstat(&file)?;
                        match FileType::from_raw_mode(found.st_mode).is_dir() {
                            true => Err(Errno::ISDIR.into()),
                            false => Ok(()),
                        }
                    })
                    .map_err(|error| named(path, error))?;
            }
            Ok(())
        })
    }

    fn make_init_layer(&self, lower: &[PathBuf], place: &Path) -> Result<()> {
        self.make(lower, place, &|_| Ok(()))
    }

    fn make(
        &self,
        lower: &[PathBuf],
        place: &Path,
        add: &dyn Fn(&OwnedFd) -> std::io::Result<()>,
    ) -> Result<()> {
        let scratch = self.staging.scratch()?;
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
            // Created through an overlay, so that directories that exist in the image keep their
            // owner and mode.
            overlay::writable(
                lower,
                Writable {
                    upper: &upper,
                    work: &work,
                    volatile: false,
                },
            )
        };
        let root = root.map_err(failed(lower))?;
        fill(&root)
            .and_then(|()| add(&root))
            .map_err(io("make the init layer"))?;
        drop(root);
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent, 0o700)?;
        }
        // The layer has only metadata and no file content, so the file system's journal orders it
        // before the rename; no fsync is needed.
        match fs::rename(&upper, place) {
            // A concurrent start of the same image created it first.
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

/// Returns the parent directory and the last component of a path, after removing what is there
/// unless it is a directory.
fn entry<'a>(root: &OwnedFd, path: &'a str) -> std::io::Result<(OwnedFd, &'a str)> {
    remove_links(root, path)?;
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((in_root::create_dir_all(root, parent, MODE)?, name))
}

/// Removes what is in a path's way: intermediate components that do not resolve to a directory, and
/// a last component that is not a directory.
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
            // The name does not exist (any more), so neither does anything below it.
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

    use whelk_sys::Scratch;

    use super::*;

    fn scratch(name: &str) -> (Scratch, OwnedFd) {
        let fd = |root| rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        let scratch = Scratch::temporary(&format!("init-layer-{name}")).unwrap();
        let fd = fd(scratch.path()).unwrap();
        (scratch, fd)
    }

    #[test]
    fn fills_an_empty_root() {
        let (place, root) = scratch("empty");
        let path = place.path();
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
    }

    #[test]
    fn does_not_follow_links_of_the_image_out_of_the_root() {
        let ((place, root), (elsewhere, _)) = (scratch("links"), scratch("outside"));
        let (path, outside) = (place.path(), elsewhere.path());
        std::fs::write(outside.join("mine"), "mine").unwrap();
        std::fs::create_dir(path.join("etc")).unwrap();
        symlink(outside.join("mine"), path.join("etc/hosts")).unwrap();
        symlink("../../../../etc/passwd", path.join("etc/mtab")).unwrap();
        symlink(outside, path.join("dev")).unwrap();
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
            "a directory of the image is kept"
        );
        assert_eq!(std::fs::read_dir(outside).unwrap().count(), 1);
        // A link to a directory inside the root is kept.
        std::fs::rename(path.join("etc"), path.join("config")).unwrap();
        symlink("config", path.join("etc")).unwrap();
        std::fs::remove_file(path.join("config/hosts")).unwrap();
        fill(&root).unwrap();
        assert!(path.join("etc").is_symlink() && path.join("config/hosts").is_file());
    }
}
