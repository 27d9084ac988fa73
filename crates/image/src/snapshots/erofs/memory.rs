//! Memory of the images that are being written: one budget for all of a store.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Result};

/// Maximum memory in bytes of all images that are being written.
const MAX: usize = 256 << 20;

/// The memory that images being written may still take.
#[derive(Clone, Debug)]
pub(in crate::snapshots) struct Budget(Arc<AtomicUsize>);

impl Default for Budget {
    fn default() -> Self {
        Self::of(MAX)
    }
}

impl Budget {
    pub(in crate::snapshots) fn of(bytes: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(bytes)))
    }

    #[cfg(test)]
    pub(in crate::snapshots) fn left(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one image takes of a budget, until it is dropped.
pub(super) struct Memory {
    budget: Budget,
    taken: usize,
}

impl Memory {
    pub(super) fn of(budget: &Budget) -> Self {
        Self {
            budget: budget.clone(),
            taken: 0,
        }
    }

    /// Takes more. What is removed from an image stays taken, because allocators keep its memory.
    ///
    /// # Errors
    /// Returns [`Error::TooLarge`] if the budget has less.
    pub(super) fn take(&mut self, bytes: usize) -> Result<()> {
        let less = |left: usize| left.checked_sub(bytes);
        let ordering = Ordering::Relaxed;
        match self.budget.0.fetch_update(ordering, ordering, less) {
            Ok(_) => {
                self.taken += bytes;
                Ok(())
            }
            Err(_) => Err(too_large()),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.budget.0.fetch_add(self.taken, Ordering::Relaxed);
    }
}

pub(super) fn too_large() -> Error {
    Error::TooLarge(format!(
        "the names and attributes of files in layers that are written as EROFS images would take more than {} MiB of memory: set \"layers\" to \"directories\" in daemon.json",
        MAX >> 20
    ))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::path::Path;

    use tar::{Builder, EntryType, Header};
    use whelk_sys::{Scratch, fs};

    use super::*;
    use crate::snapshots::Form;
    use crate::{Digest, Progress, Store, archive};

    const FILES: usize = 200;

    /// Returns an archive with the entries, with long targets for links.
    fn pack(names: impl Iterator<Item = String>) -> Vec<u8> {
        let mut packed = Builder::new(Vec::new());
        for name in names {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            header.set_mode(0o777);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            packed
                .append_link(&mut header, name, "target/".repeat(50))
                .unwrap();
        }
        packed.into_inner().unwrap()
    }

    fn links() -> Vec<u8> {
        pack((0..FILES).map(|number| format!("link{number}")))
    }

    /// A store that keeps layers as images, which may take little memory; `None` where the kernel mounts none.
    fn store(scratch: &Scratch) -> Option<Store> {
        let mut store = Store::open(scratch.path()).unwrap();
        store.snapshots.set_form(Some(Form::Images)).ok()?;
        store.snapshots.budget = Budget::of(50_000);
        Some(store)
    }

    fn is_directory(store: &Store, diff_id: &Digest) -> bool {
        fs::metadata(store.snapshots.files(diff_id))
            .unwrap()
            .is_dir()
    }

    #[test]
    fn a_layer_with_too_many_files_becomes_a_directory() {
        let scratch = Scratch::temporary("too-large").unwrap();
        let Some(store) = store(&scratch) else { return };
        let lease = store.leases.take();
        let large = links();
        let error = store.snapshots.apply(&lease, &large[..], None).unwrap_err();
        let Error::TooLarge(text) = error else {
            panic!("{error}");
        };
        assert!(text.contains("set \"layers\" to \"directories\""), "{text}");
        assert_eq!(store.snapshots.budget.left(), 50_000);
        assert!(fs::list(scratch.path().join("tmp")).unwrap().is_empty());
        let applied = store.snapshots.apply_to_directory(&lease, &large[..], None);
        let diff_id = applied.unwrap().diff_id;
        assert!(is_directory(&store, &diff_id));
        let mut replayed = Vec::new();
        store.snapshots.replay(&diff_id, &mut replayed).unwrap();
        assert!(replayed == large);
        // A small one still fits.
        let small = pack(["a".to_owned()].into_iter());
        let applied = store.snapshots.apply(&lease, &small[..], None).unwrap();
        assert!(!is_directory(&store, &applied.diff_id));
        assert_eq!(store.snapshots.budget.left(), 50_000);
    }

    #[test]
    fn loads_and_commits_keep_such_layers_as_directories() {
        let scratch = Scratch::temporary("too-large-loads").unwrap();
        let Some(store) = store(&scratch) else { return };
        let lease = store.leases.take();
        let (large, small) = (links(), pack(["a".to_owned()].into_iter()));
        let diff_ids = [&large, &small].map(|layer| Digest::of(layer));
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{}","{}"]}}}}"#,
            diff_ids[0], diff_ids[1]
        );
        let manifest = r#"[{"Config":"config.json","RepoTags":[],"Layers":["large","small"]}]"#;
        let mut image = Builder::new(Vec::new());
        for (name, content) in [
            ("large", &large[..]),
            ("small", &small),
            ("config.json", config.as_bytes()),
            ("manifest.json", manifest.as_bytes()),
        ] {
            let mut header = Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            image.append_data(&mut header, name, content).unwrap();
        }
        let image = image.into_inner().unwrap();
        let loaded = archive::load(&store, &lease, &image[..], &[], &Progress::none()).unwrap();
        assert_eq!(loaded.len(), 1);
        assert!(is_directory(&store, &diff_ids[0]) && !is_directory(&store, &diff_ids[1]));

        let upper = scratch.path().join("upper");
        fs::create_dir(&upper, 0o755).unwrap();
        for number in 0..FILES {
            fs::write(upper.join(format!("file{number}")), "x").unwrap();
        }
        let committed = store.snapshots.commit(&lease, Path::new(&upper)).unwrap();
        assert!(is_directory(&store, &committed.diff_id));
        assert!(fs::list(scratch.path().join("tmp")).unwrap().is_empty());
    }
}
