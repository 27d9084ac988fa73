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
use super::erofs::Budget;
use super::{Form, IMAGE, pax};
use crate::bounded::MAX_LAYERS;
use crate::error::{Error, Result, io};
use crate::staging::Staging;

/// The mounted images of a store.
#[derive(Clone, Debug, Default)]
pub struct Mounts(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    mounts: HashMap<PathBuf, Mounted>,
    /// The number of the last use of a mount.
    used: u64,
    /// Number of layers that were removed.
    forgotten: u64,
}

#[derive(Debug)]
struct Mounted {
    mount: OwnedFd,
    /// The number of the last use.
    used: u64,
}

impl Mounts {
    /// Maximum number of mounts that are kept for further containers. More than an image may have layers: with fewer, each step of a
    /// build that stands on more would mount all of them again, because those that are needed next are the ones that were not used
    /// for the longest time.
    const KEPT: usize = MAX_LAYERS + 12;

    /// Returns the mounts of those of an overlay's layers that are images, up to `most`, with their
    /// indices. What is left out because this process has no descriptors left, can be mounted by another.
    ///
    /// # Errors
    /// Returns an error if one cannot be mounted.
    pub fn of(&self, lower: &[PathBuf], most: usize) -> Result<Vec<(usize, OwnedFd)>> {
        let images = lower.iter().enumerate();
        let images = images.filter(|(_, layer)| is_image(layer)).take(most);
        let mut mounts = Vec::new();
        for (index, image) in images {
            match self.mount(image) {
                Ok(mount) => mounts.push((index, mount)),
                Err(Errno::MFILE | Errno::NFILE) => break,
                Err(error) => return Err(failed(&[image.to_owned()])(error)),
            }
        }
        Ok(mounts)
    }

    fn mount(&self, image: &Path) -> std::result::Result<OwnedFd, Errno> {
        let (kept, forgotten) = self.0.lock().ignore_poison().copy_of(image);
        if let Some(kept) = kept {
            return kept;
        }
        // Not under the lock: it reads the disk.
        let mount = erofs::mount(image)?;
        let copy = duplicate(&mount)?;
        let superfluous = self.0.lock().ignore_poison().keep(image, mount, forgotten);
        unmount(superfluous);
        Ok(copy)
    }

    /// Unmounts the image in the directory of a layer, which was removed: its space becomes free when no
    /// container has it any more.
    pub(crate) fn forget(&self, layer: &Path) {
        let mounted = {
            let mut kept = self.0.lock().ignore_poison();
            kept.forgotten += 1;
            kept.mounts.remove(&layer.join(IMAGE))
        };
        unmount(mounted.map(|mounted| mounted.mount));
    }
}

impl Kept {
    /// Returns a copy of an image's mount, if there is one, and the number of layers that were removed.
    fn copy_of(&mut self, image: &Path) -> (Option<std::result::Result<OwnedFd, Errno>>, u64) {
        let used = self.next_use();
        let mounted = self.mounts.get_mut(image).map(|mounted| {
            mounted.used = used;
            duplicate(&mounted.mount)
        });
        (mounted, self.forgotten)
    }

    /// Keeps a mount that was made when `forgotten` layers were removed. Returns one that is not kept:
    /// this one, if it may be that of a layer that was removed meanwhile, or one that it replaces.
    fn keep(&mut self, image: &Path, mount: OwnedFd, forgotten: u64) -> Option<OwnedFd> {
        if forgotten != self.forgotten {
            return Some(mount);
        }
        let used = self.next_use();
        let mut superfluous = None;
        if self.mounts.len() >= Mounts::KEPT && !self.mounts.contains_key(image) {
            let oldest = self.mounts.iter().min_by_key(|(_, mounted)| mounted.used);
            let oldest = oldest.map(|(path, _)| path.clone());
            superfluous = oldest.and_then(|path| self.mounts.remove(&path));
        }
        let replaced = self
            .mounts
            .insert(image.to_owned(), Mounted { mount, used });
        replaced.or(superfluous).map(|mounted| mounted.mount)
    }

    fn next_use(&mut self) -> u64 {
        self.used += 1;
        self.used
    }
}

fn duplicate(mount: &OwnedFd) -> std::result::Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(mount, 0)
}

/// Closes a mount in the background: the end of one waits for other processors, and frees all that is
/// cached of it.
fn unmount(mount: Option<OwnedFd>) {
    let Some(mount) = mount else { return };
    let thread = std::thread::Builder::new().name("whelk-unmount".into());
    if let Err(error) = thread.spawn(move || drop(mount)) {
        // It is closed nevertheless, with the function that did not run.
        tracing::warn!("unmount a layer: start a thread: {error}");
    }
}

fn is_image(layer: &Path) -> bool {
    layer.file_name().is_some_and(|name| name == IMAGE)
}

/// What a kernel needs for images.
const NEEDS: &str = "Linux 6.15 with CONFIG_EROFS_FS, CONFIG_EROFS_FS_BACKED_BY_FILE, CONFIG_EROFS_FS_XATTR, CONFIG_EROFS_FS_SECURITY and CONFIG_EROFS_FS_POSIX_ACL, and a root directory on another file system than tmpfs";

/// Returns a function for `map_err` of mounts of layers. The error names a layer whose image is damaged, and
/// says what the kernel lacks if it mounts no images.
pub(super) fn failed(layers: &[PathBuf]) -> impl Fn(Errno) -> Error {
    move |error| {
        let is_damaged = |layer: &&PathBuf| is_image(layer) && erofs::check(layer).is_err();
        let damaged = layers
            .iter()
            .find(is_damaged)
            .filter(|_| error == Errno::UCLEAN);
        let lacks = |error: &Errno| matches!(*error, Errno::NOTBLK | Errno::NODEV | Errno::INVAL);
        // An overlay can fail so too.
        let is_refused = |layer: &PathBuf| {
            is_image(layer) && erofs::mount(layer).is_err_and(|error| lacks(&error))
        };
        let operation = match damaged {
            Some(layer) => format!(
                "the layer {} is damaged; remove the images that have it, and pull or load them again",
                layer.display()
            ),
            None if lacks(&error) && layers.iter().any(is_refused) => format!(
                "layers of the image are EROFS images, which need {NEEDS}; remove the image, and pull or load it again with \"layers\": \"directories\" in daemon.json: mount a layer"
            ),
            None => "mount the image's layers".into(),
        };
        io(operation)(error.into())
    }
}

/// Checks that the kernel can mount images, and overlays of them, by doing it.
pub(super) fn check(staging: &Staging) -> Result<()> {
    check_with(staging, &sample()?)
}

/// Checks with the archive of a layer that it shows what [`sample`] has.
fn check_with(staging: &Staging, archive: &[u8]) -> Result<()> {
    let scratch = staging.scratch()?;
    let path = |name: &str| scratch.path().join(name);
    let refused = |what: &str, error: Errno| {
        Error::invalid(format!(
            "layers cannot be EROFS images here ({what}: {}); that needs {NEEDS}: set \"layers\" to \"directories\"",
            errno_text(&error.into())
        ))
    };
    apply(archive, scratch.path(), Form::Images, &Budget::default())?;
    for name in ["upper", "work"] {
        fs::create_dir(path(name), 0o700)?;
    }
    let (upper, work) = (&path("upper"), &path("work"));
    let writable = Writable {
        upper,
        work,
        volatile: false,
    };
    let mount = |error| refused("mount an image", error);
    let image = erofs::mount(&path(IMAGE)).map_err(mount)?;
    let merged = overlay::mount(&[path(IMAGE)], Some(writable)).map_err(mount)?;
    let read = |root: &OwnedFd, file: &str, name: &str, expected: &[u8]| {
        let file = format!("/proc/self/fd/{}/{file}", root.as_raw_fd());
        let mut value = [0; 256];
        match rustix::fs::lgetxattr(file, name, &mut value[..]) {
            Ok(length) if value[..length] == *expected => Ok(()),
            Ok(_) => Err(refused(&format!("{name} is wrong"), Errno::IO)),
            Err(error) => Err(refused(&format!("read {name}"), error)),
        }
    };
    read(&image, "d", "trusted.overlay.opaque", b"y")?;
    SAMPLES
        .iter()
        .try_for_each(|(name, value)| read(&merged, "f", name, value))
}

/// Attributes of the file in [`sample`]. Without support for these, rights would change: files would
/// lose their capabilities, and the group would have the rights of an ACL's mask.
const SAMPLES: [(&str, &[u8]); 2] = [
    // `struct vfs_cap_data`: version 2, CAP_NET_RAW permitted.
    (
        "security.capability",
        &[
            0, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
    ),
    // Version 2; the owner rwx, the user 1 rw, the group r, the mask rw, others nothing.
    (
        "system.posix_acl_access",
        &[
            2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 6, 0, 1, 0, 0, 0, 4, 0, 4, 0, 255,
            255, 255, 255, 16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
        ],
    ),
];

/// Returns the archive of a layer with the file `f`, which has a capability and an ACL, and the opaque
/// directory `d`.
fn sample() -> Result<Vec<u8>> {
    let records: Vec<(String, Vec<u8>)> = SAMPLES
        .iter()
        .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.to_vec()))
        .collect();
    archive_of(&pax::encode(&records))
}

/// Returns the archive of a layer with the file `f`, which has these pax records, and the opaque directory
/// `d`.
fn archive_of(records: &[u8]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mark = [b"d/", OPAQUE].concat();
    for (kind, name, content) in [
        (EntryType::XHeader, &b"x"[..], records),
        (EntryType::Regular, b"f", b""),
        (EntryType::Directory, b"d/", b""),
        (EntryType::Regular, &mark, b""),
    ] {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive
            .append(&header, content)
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
        let error = store.snapshots.set_form(Some(Form::Images)).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("layers cannot be EROFS images here (mount an image: "),
            "{text}"
        );
        assert!(fs::list(root.path().join("tmp")).unwrap().is_empty());
    }

    /// As with a kernel that does not support such attributes in images.
    #[test]
    fn attributes_that_are_not_shown_are_noticed() {
        let root = Scratch::temporary("attributes").unwrap();
        let store = Store::open(root.path()).unwrap();
        if check(&store.staging).is_err() {
            return;
        }
        for (left_out, _) in SAMPLES {
            let records = SAMPLES.iter().filter(|(name, _)| *name != left_out);
            let records: Vec<_> = records
                .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.to_vec()))
                .collect();
            let archive = archive_of(&pax::encode(&records)).unwrap();
            let error = check_with(&store.staging, &archive).unwrap_err();
            let text = error.to_string();
            let expected =
                format!("layers cannot be EROFS images here (read {left_out}: no data available)");
            assert!(text.starts_with(&expected), "{text}");
            assert!(text.contains("CONFIG_EROFS_FS_SECURITY and CONFIG_EROFS_FS_POSIX_ACL"));
        }
        assert!(fs::list(root.path().join("tmp")).unwrap().is_empty());
    }

    #[test]
    fn an_image_that_the_kernel_does_not_mount_says_what_to_do() {
        let root = Scratch::at(format!("/dev/shm/whelk-refused-{}", std::process::id()).into());
        let root = root.unwrap();
        apply(
            &*sample().unwrap(),
            root.path(),
            Form::Images,
            &Budget::default(),
        )
        .unwrap();
        let lower = [root.path().join(IMAGE)];
        let texts = [
            Mounts::default().of(&lower, 1).unwrap_err(),
            failed(&lower)(Errno::NOTBLK),
        ]
        .map(|error| error.to_string());
        for text in texts {
            assert!(
                text.starts_with(
                    "layers of the image are EROFS images, which need Linux 6.15 with "
                ) && text.contains("\"layers\": \"directories\""),
                "{text}"
            );
        }
        // An error that mounting an image does not give.
        assert_eq!(
            failed(&[root.path().to_owned()])(Errno::INVAL).to_string(),
            "mount the image's layers: invalid argument"
        );
    }

    #[test]
    fn mounts_of_removed_layers_are_not_kept() {
        let mount = || OwnedFd::from(fs::open("/").unwrap());
        let (mut kept, image) = (Kept::default(), Path::new("/layers/a/fs.erofs"));
        let (found, forgotten) = kept.copy_of(image);
        assert!(found.is_none());
        // The layer was removed while it was being mounted.
        kept.forgotten += 1;
        assert!(kept.keep(image, mount(), forgotten).is_some());
        let (found, forgotten) = kept.copy_of(image);
        assert!(found.is_none());
        assert!(kept.keep(image, mount(), forgotten).is_none());
        assert!(kept.copy_of(image).0.is_some_and(|found| found.is_ok()));
        // Two have mounted it at the same time.
        assert!(kept.keep(image, mount(), forgotten).is_some());
        for number in 1..Mounts::KEPT {
            let image = PathBuf::from(format!("/layers/{number}/fs.erofs"));
            assert!(kept.keep(&image, mount(), forgotten).is_none());
        }
        assert!(kept.copy_of(image).0.is_some());
        let more = Path::new("/layers/more/fs.erofs");
        assert!(kept.keep(more, mount(), forgotten).is_some());
        assert_eq!(kept.mounts.len(), Mounts::KEPT);
        assert!(kept.mounts.contains_key(image));
        assert!(!kept.mounts.contains_key(Path::new("/layers/1/fs.erofs")));
    }

    #[test]
    fn damaged_images_are_named() {
        let scratch = Scratch::temporary("damaged").unwrap();
        apply(
            std::io::empty(),
            scratch.path(),
            Form::Images,
            &Budget::default(),
        )
        .unwrap();
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
