//! Mounts of layers that are images, shared by the containers that have the layers: so these share the
//! page cache, and a start does not have to mount them.
//!
//! The mounts are detached: they are not in any mount namespace, and disappear with the engine and
//! the containers.

use std::collections::HashMap;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use tar::{EntryType, Header};
use whelk_sys::overlay::{self, Writable};
use whelk_sys::sync::IgnorePoison as _;
use whelk_sys::{erofs, errno_text, fs};

use super::apply::{OPAQUE, apply};
use super::{Form, IMAGE};
use crate::error::{Error, Result, io};
use crate::staging::Staging;

/// The mounted images of a store.
#[derive(Clone, Debug, Default)]
pub struct Mounts(Arc<Mutex<HashMap<PathBuf, Mounted>>>);

#[derive(Debug)]
struct Mounted {
    mount: OwnedFd,
    /// The number of the last use.
    used: u64,
}

impl Mounts {
    /// Maximum number of mounts that are kept for further containers.
    const KEPT: usize = 256;

    /// Returns the mounts of those of an overlay's layers that are images, up to `most`, with their
    /// indices.
    ///
    /// # Errors
    /// Returns an error if one cannot be mounted.
    pub fn of(&self, lower: &[PathBuf], most: usize) -> Result<Vec<(usize, OwnedFd)>> {
        let images = lower.iter().enumerate();
        images
            .filter(|(_, layer)| is_image(layer))
            .take(most)
            .map(|(index, image)| Ok((index, self.mount(image)?)))
            .collect()
    }

    fn mount(&self, image: &Path) -> Result<OwnedFd> {
        let mut mounts = self.0.lock().ignore_poison();
        let used = mounts.values().map(|mounted| mounted.used).max();
        let used = used.unwrap_or(0) + 1;
        if let Some(mounted) = mounts.get_mut(image) {
            mounted.used = used;
            return mounted.mount.try_clone().map_err(io("mount a layer"));
        }
        let mount = erofs::mount(image).map_err(failed(&[image.to_owned()]))?;
        let copy = mount.try_clone().map_err(io("mount a layer"))?;
        if mounts.len() >= Self::KEPT {
            let oldest = mounts.iter().min_by_key(|(_, mounted)| mounted.used);
            let oldest = oldest.map(|(path, _)| path.clone());
            unmount(oldest.and_then(|path| mounts.remove(&path)));
        }
        mounts.insert(image.to_owned(), Mounted { mount, used });
        Ok(copy)
    }

    /// Unmounts the images in the directories of layers, which were removed: their space becomes free when
    /// no container has them any more.
    pub(crate) fn forget(&self, layers: &[PathBuf]) {
        let mut mounts = self.0.lock().ignore_poison();
        unmount(
            layers
                .iter()
                .filter_map(|layer| mounts.remove(&layer.join(IMAGE))),
        );
    }
}

/// Closes mounts in the background: the end of one waits for other processors, and frees all that is
/// cached of it.
fn unmount(mounts: impl IntoIterator<Item = Mounted>) {
    let mounts: Vec<Mounted> = mounts.into_iter().collect();
    if mounts.is_empty() {
        return;
    }
    let thread = std::thread::Builder::new().name("whelk-unmount".into());
    if let Err(error) = thread.spawn(move || drop(mounts)) {
        // They are closed nevertheless, with the function that did not run.
        tracing::warn!("unmount layers: start a thread: {error}");
    }
}

fn is_image(layer: &Path) -> bool {
    layer.file_name().is_some_and(|name| name == IMAGE)
}

/// Returns a function for `map_err` of mounts of layers. The error names a layer whose image is damaged.
pub(super) fn failed(layers: &[PathBuf]) -> impl Fn(Errno) -> Error {
    move |error| {
        let is_damaged = |layer: &&PathBuf| is_image(layer) && erofs::check(layer).is_err();
        let damaged = layers
            .iter()
            .find(is_damaged)
            .filter(|_| error == Errno::UCLEAN);
        let operation = match damaged {
            Some(layer) => format!(
                "the layer {} is damaged; remove the images that have it, and pull or load them again",
                layer.display()
            ),
            None => "mount the image's layers".into(),
        };
        io(operation)(error.into())
    }
}

/// Checks that the kernel can mount images, and overlays of them, by doing it.
pub(super) fn check(staging: &Staging) -> Result<()> {
    let scratch = staging.scratch()?;
    let path = |name: &str| scratch.path().join(name);
    apply(&*opaque_directory()?, scratch.path(), Form::Images)?;
    for name in ["upper", "work"] {
        fs::create_dir(path(name), 0o700)?;
    }
    let (upper, work) = (&path("upper"), &path("work"));
    let writable = Writable {
        upper,
        work,
        volatile: false,
    };
    let mounted = erofs::mount(&path(IMAGE)).and_then(|image| {
        let directory = format!("/proc/self/fd/{}/d", image.as_raw_fd());
        rustix::fs::lgetxattr(directory, "trusted.overlay.opaque", &mut [0u8; 8][..])?;
        overlay::mount(&[path(IMAGE)], Some(writable))
    });
    mounted.map(drop).map_err(|error| {
        Error::invalid(format!(
            "layers cannot be EROFS images here (mount an image: {}); that needs Linux 6.15 with CONFIG_EROFS_FS, CONFIG_EROFS_FS_BACKED_BY_FILE and CONFIG_EROFS_FS_XATTR, and a root directory on another file system than tmpfs: set \"layers\" to \"directories\"",
            errno_text(&error.into())
        ))
    })
}

/// Returns the archive of a layer with the opaque directory `d`.
fn opaque_directory() -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mark = [b"d/", OPAQUE].concat();
    for (kind, name) in [
        (EntryType::Directory, &b"d/"[..]),
        (EntryType::Regular, &mark),
    ] {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        header.set_cksum();
        archive
            .append(&header, std::io::empty())
            .map_err(io("write archive"))?;
    }
    archive.into_inner().map_err(io("write archive"))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;
    use crate::Store;

    #[test]
    fn images_are_refused_where_the_kernel_does_not_mount_them() {
        // The kernel mounts no image from a tmpfs.
        let root = Scratch::at(format!("/dev/shm/whelk-mounts-{}", std::process::id()).into());
        let root = root.unwrap();
        let mut store = Store::open(root.path()).unwrap();
        let error = store.snapshots.set_form(Form::Images).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("layers cannot be EROFS images here (mount an image: "),
            "{text}"
        );
        assert!(fs::list(root.path().join("tmp")).unwrap().is_empty());
    }

    #[test]
    fn damaged_images_are_named() {
        let scratch = Scratch::temporary("damaged").unwrap();
        apply(std::io::empty(), scratch.path(), Form::Images).unwrap();
        let image = scratch.path().join(IMAGE);
        let whole = fs::read(&image).unwrap();
        let cut = &whole[..whole.len() - 1];
        for damaged in [cut, &whole[..1030], b"", &vec![0; whole.len()]] {
            fs::write(&image, damaged).unwrap();
            let error = Mounts::default()
                .of(std::slice::from_ref(&image), 1)
                .unwrap_err();
            let expected = format!(
                "the layer {} is damaged; remove the images that have it, and pull or load them again: structure needs cleaning",
                image.display()
            );
            assert_eq!(error.to_string(), expected);
        }
    }
}
