//! Stores manifest lists until they are pushed, in the files of Docker's client: a directory for each
//! list below `manifests` in the configuration directory, with a file for each manifest.

use std::io;
use std::path::{Path, PathBuf};

use whelk_image::Reference;

use super::list::ImageManifest;
use crate::{Failure, Outcome, files, plain};

/// Maximum size of a file in bytes. It has a manifest, of at most 4 MiB, twice: in Base64 and as JSON, where
/// a character may be escaped.
const MAX_FILE: u64 = 64 << 20;
/// Permissions of directories.
const MODE: u32 = 0o755;

/// The local lists of a user.
#[derive(Debug)]
pub(super) struct ManifestStore(PathBuf);

impl ManifestStore {
    pub(super) fn of(config: &Path) -> Self {
        Self(config.join("manifests"))
    }

    fn directory(&self, list: &Reference) -> PathBuf {
        self.0.join(file_name(list))
    }

    /// Returns a manifest of a list; `None` if the list, or the manifest in it, does not exist.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read.
    pub(super) fn get(
        &self,
        list: &Reference,
        image: &Reference,
    ) -> Outcome<Option<ImageManifest>> {
        read(&self.directory(list).join(file_name(image)))
    }

    /// Returns the manifests of a list, in the order of their files' names; `None` if there is no such
    /// list.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read.
    pub(super) fn list(&self, list: &Reference) -> Outcome<Option<Vec<ImageManifest>>> {
        let directory = self.directory(list);
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open", &directory, &error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| failed("read", &directory, &error))?;
            // Files that another command is writing begin with a dot.
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                paths.push(entry.path());
            }
        }
        paths.sort();
        let manifests = paths.iter().filter_map(|path| read(path).transpose());
        manifests.collect::<Outcome<Vec<_>>>().map(Some)
    }

    /// Adds a manifest to a list, or replaces it.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub(super) fn save(
        &self,
        list: &Reference,
        image: &Reference,
        manifest: &ImageManifest,
    ) -> Outcome<()> {
        let directory = self.directory(list);
        files::create_directories(&directory, MODE)
            .map_err(|error| failed("create", &directory, &error))?;
        let path = directory.join(file_name(image));
        let text = serde_json::to_vec(manifest)
            .map_err(|error| Failure::new(format!("encode a manifest: {error}")))?;
        files::replace(&path, &text).map_err(|error| failed("write", &path, &error))
    }

    /// Removes a list.
    ///
    /// # Errors
    /// Returns an error if it does not exist, or cannot be removed.
    pub(super) fn remove(&self, list: &Reference) -> Outcome<()> {
        let directory = self.directory(list);
        if !directory.is_dir() {
            return Err(no_such(list));
        }
        files::remove_directory(&directory).map_err(|error| failed("remove", &directory, &error))
    }
}

/// Returns the error for a list that does not exist.
pub(super) fn no_such(list: &Reference) -> Failure {
    Failure::new(format!("No such manifest: {list}"))
}

/// Returns the name of a list's directory, or of a manifest's file. A reference has neither `..` nor a
/// dot at its beginning.
fn file_name(reference: &Reference) -> String {
    reference.to_string().replace(':', "-").replace('/', "_")
}

fn read(path: &Path) -> Outcome<Option<ImageManifest>> {
    let content = match files::read_at_most(path, MAX_FILE) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path, &error)),
    };
    let manifest = serde_json::from_slice(&content).map_err(|error| {
        Failure::new(format!("invalid manifest file {}: {error}", path.display()))
    })?;
    Ok(Some(manifest))
}

fn failed(operation: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("{operation} {}: {}", path.display(), plain(error)))
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use whelk_image::Digest;
    use whelk_image::descriptor::MANIFEST;
    use whelk_registry::Document;
    use whelk_sys::Scratch;

    use super::*;

    #[test]
    fn the_largest_manifests_are_kept() {
        let config = Scratch::temporary("manifests").unwrap();
        let store = ManifestStore::of(config.path());
        let digest = Digest::of(b"{}");
        let descriptor = format!(r#"{{"mediaType":"x","digest":"{digest}","size":2}}"#);
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{descriptor},"layers":[],"annotations":{{"a":"{}"}}}}"#,
            "\u{e9}".repeat(2_000_000)
        );
        let document = Document {
            digest: Digest::of(text.as_bytes()),
            media_type: MANIFEST.to_owned(),
            bytes: text.into_bytes(),
        };
        let image: Reference = "app:1".parse().unwrap();
        let manifest = ImageManifest::new(&image, document, None);
        let manifest = manifest.map_err(|failure| failure.text).unwrap();
        let saved = store.save(&image, &image, &manifest);
        saved.map_err(|failure| failure.text).unwrap();
        let found = store.get(&image, &image);
        let found = found.map_err(|failure| failure.text).unwrap();
        assert!(found.is_some());
        let removed = store.remove(&image);
        removed.map_err(|failure| failure.text).unwrap();
    }
}
