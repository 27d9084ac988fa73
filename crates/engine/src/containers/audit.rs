//! Comparing the store with what is on disk, at the engine's start: nothing that a container may
//! still need is deleted.

use std::io::ErrorKind;
use std::path::Path;

use whelk_sys::fs;

use super::Containers;
use crate::error::Result;
use crate::instance::{Instance, lost_and_found};
use crate::model::Record;
use crate::store::{Found, damaged, described};

/// Refuses a store that has lost containers.
///
/// One that runs has been in the store. So has one whose directory describes itself, for that is
/// written after its record, and moved away before the record is deleted; only a loss of power may
/// change that order.
///
/// # Errors
/// There is such a container.
pub(crate) async fn audit(instance: &Instance, store: &Found) -> Result<()> {
    let known = &store.containers;
    let mut lost = Vec::new();
    for (id, _) in unknown(&instance.run.join("containers"), |id| known.contains(id))? {
        if runs(instance, &id).await {
            lost.push(format!("container {id} runs, but"));
        }
    }
    if store.is_same_boot {
        for (id, path) in unknown(&instance.root.join("containers"), |id| known.contains(id))? {
            // One that was to be removed at its end may have been, for all that is known here.
            if described(&path).is_some_and(|record| !record.host.auto_remove) {
                lost.push(format!("the files of container {id} are there, but"));
            }
        }
    }
    match lost.first() {
        None => Ok(()),
        Some(first) => Err(damaged(
            &instance.root,
            &format!(
                "{first} the engine's store {} does not know it ({} such containers)",
                instance.database().display(),
                lost.len()
            ),
        )),
    }
}

/// Whether a shim serves a container that has not ended.
async fn runs(instance: &Instance, id: &str) -> bool {
    if fs::exists(instance.run_dir(id).join("exit.json")) {
        return false;
    }
    match crate::shims::connect(instance, id).await {
        Ok(_) => true,
        Err(error) => !matches!(
            error.kind(),
            ErrorKind::NotFound | ErrorKind::ConnectionRefused
        ),
    }
}

/// The entries of a directory of containers that are not known, by their names.
fn unknown(
    directory: &Path,
    is_known: impl Fn(&str) -> bool,
) -> Result<Vec<(String, std::path::PathBuf)>> {
    let entries = fs::list(directory)?;
    let named = entries.iter().map(|entry| {
        (
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        )
    });
    Ok(named.filter(|(name, _)| !is_known(name)).collect())
}

/// Whether nothing in a container's directory is worth keeping: nothing was written, or it was to
/// be removed at its end.
fn is_worthless(directory: &Path) -> bool {
    // The kernel's mark of a volatile overlay mount, as containers of `--rm` have it.
    if fs::exists(directory.join("work/work/incompat"))
        || described(directory).is_some_and(|record| record.host.auto_remove)
    {
        return true;
    }
    let Ok(entries) = fs::list(directory) else {
        return false;
    };
    entries
        .iter()
        .all(|entry| match entry.file_name().to_str() {
            // A program's output, and what it has written.
            Some(name) if name.contains(".log") => {
                entry.metadata().is_ok_and(|found| found.len() == 0)
            }
            Some("upper") => fs::list(entry.path()).is_ok_and(|found| found.is_empty()),
            // What the engine makes.
            Some(
                "work" | "empty" | "hosts" | "hostname" | "resolv.conf" | "container.json"
                | "container.json.new",
            ) => true,
            _ => false,
        })
}

impl Containers {
    /// Sees to it that a container has its directory: its removal may have been cut short, or a
    /// loss of power have taken what was never written to disk.
    pub(super) fn find_files(&self, record: &Record) -> Result<()> {
        let directory = self.instance.container_dir(&record.id);
        if fs::exists(&directory) {
            return Ok(());
        }
        let trashed = self.images.store().trashed(&record.id);
        if fs::exists(&trashed) {
            return Ok(fs::rename(trashed, directory)?);
        }
        if record.state.started_at > 0 {
            tracing::error!(
                container = record.id,
                "the container's files are gone; it begins again with those of its image"
            );
        }
        self.make_files(&record.id)
    }

    /// Clears away directories that no record names: what was being made or removed when the engine
    /// ended is thrown away, and all else set aside.
    pub(super) fn clear_unknown(&self) -> Result<()> {
        let is_known = |id: &str| self.by_id(id).is_some();
        for (_, path) in unknown(&self.instance.run.join("containers"), is_known)? {
            fs::remove_tree(path)?;
        }
        for (id, path) in unknown(&self.instance.root.join("containers"), is_known)? {
            if is_worthless(&path) {
                self.images.store().trash(&path)?;
            } else {
                self.set_aside(&id, &path)?;
            }
        }
        Ok(())
    }

    fn set_aside(&self, id: &str, path: &Path) -> Result<()> {
        let directory = lost_and_found(&self.instance.root).join("containers");
        fs::create_dir_all(&directory, 0o700)?;
        let mut target = directory.join(id);
        if fs::exists(&target) {
            target = directory.join(format!("{id}-{}", crate::events::now()));
        }
        fs::rename(path, &target)?;
        tracing::warn!(
            "no record names the container directory {id}: it is kept as {}; `whelk system repair`, while no engine runs, brings back \
             containers whose directories say what they are",
            target.display()
        );
        Ok(())
    }
}
