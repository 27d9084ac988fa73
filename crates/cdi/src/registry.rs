//! The specifications of a list of directories.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use whelk_sys::fs;

use crate::spec::{Edits, Spec, parse};
use crate::{Error, Result};

/// Limit of a file in bytes, and of files in a directory.
const MAX_SIZE: u64 = 4 << 20;
const MAX_FILES: usize = 1000;

/// The devices that the files of the directories define.
#[derive(Debug, Default)]
pub struct Registry {
    specs: Vec<Loaded>,
    /// The place of a device's specification in `specs` and of the device in that, by its qualified
    /// name.
    devices: BTreeMap<String, (usize, usize)>,
    errors: Vec<FileError>,
}

/// Why a file, or a device in it, cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    pub path: PathBuf,
    pub text: String,
}

#[derive(Debug)]
struct Loaded {
    path: PathBuf,
    /// The place of its directory in the list.
    priority: usize,
    spec: Spec,
}

impl Registry {
    /// Reads all files `*.json` and `*.yaml` of the directories. A device in a later directory replaces
    /// one of the same name in an earlier one; if two files of the same directory define it, neither
    /// does.
    pub fn read(directories: &[PathBuf]) -> Self {
        let mut registry = Self::default();
        let mut conflicts = BTreeSet::new();
        for (priority, directory) in directories.iter().enumerate() {
            let paths = registry.files(directory);
            if !paths.is_empty()
                && let Ok(found) = fs::canonicalize(directory).and_then(fs::metadata)
            {
                registry.check_writers(directory, &found);
            }
            for path in paths {
                match load(&path) {
                    Ok((spec, found)) => {
                        registry.check_writers(&path, &found);
                        let loaded = Loaded {
                            path,
                            priority,
                            spec,
                        };
                        registry.add(loaded, &mut conflicts);
                    }
                    Err(text) => registry.fail(&path, text),
                }
            }
        }
        registry
            .devices
            .retain(|name, _| !conflicts.contains(name.as_str()));
        registry
    }

    /// Returns the qualified names of all devices in alphabetical order.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(String::as_str)
    }

    pub fn has(&self, device: &str) -> bool {
        self.devices.contains_key(device)
    }

    pub fn errors(&self) -> &[FileError] {
        &self.errors
    }

    /// Returns what a container with these devices gets, in the order in which it is applied: what
    /// concerns all devices of a file comes before its first device.
    pub(crate) fn edits(&self, devices: &[String]) -> Result<Vec<&Edits>> {
        let mut edits = Vec::new();
        let mut unknown = Vec::new();
        let mut begun = BTreeSet::new();
        for name in devices {
            let Some(&(place, device)) = self.devices.get(name) else {
                unknown.push(name.clone());
                continue;
            };
            let spec = &self.specs[place].spec;
            if begun.insert(place) {
                edits.push(&spec.container_edits);
            }
            edits.push(&spec.devices[device].container_edits);
        }
        if unknown.is_empty() {
            Ok(edits)
        } else {
            Err(Error::Unresolvable(unknown))
        }
    }

    /// Returns the paths of a directory's specifications in alphabetical order; none if it does not
    /// exist.
    fn files(&mut self, directory: &Path) -> Vec<PathBuf> {
        let entries = match fs::list(directory) {
            Ok(entries) => entries,
            Err(error) => {
                if !error.is_not_found() {
                    self.fail(directory, error.to_string());
                }
                return Vec::new();
            }
        };
        let is_spec = |path: &Path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("json" | "yaml"))
        };
        let mut paths: Vec<PathBuf> = entries
            .iter()
            .filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()))
            .map(std::fs::DirEntry::path)
            .filter(|path| is_spec(path))
            .collect();
        paths.sort();
        if paths.len() > MAX_FILES {
            self.fail(
                directory,
                format!("more than {MAX_FILES} files: only the first ones are read"),
            );
            paths.truncate(MAX_FILES);
        }
        paths
    }

    /// Warns of those who could write hooks, which root runs. The devices can be used nevertheless.
    fn check_writers(&mut self, path: &Path, found: &Metadata) {
        if others_may_write(found) {
            let text = "writable by others than root, who can have root run their programs";
            self.fail(path, text.into());
        }
    }

    fn fail(&mut self, path: &Path, text: String) {
        self.errors.push(FileError {
            path: path.to_owned(),
            text,
        });
    }

    fn add(&mut self, loaded: Loaded, conflicts: &mut BTreeSet<String>) {
        let place = self.specs.len();
        for (index, device) in loaded.spec.devices.iter().enumerate() {
            let name = format!("{}={}", &*loaded.spec.kind, &*device.name);
            if let Some(&(other, _)) = self.devices.get(&name)
                && self.specs[other].priority == loaded.priority
            {
                let other = self.specs[other].path.clone();
                let text = format!(
                    "conflicting device {name:?} (specs {:?}, {other:?})",
                    loaded.path
                );
                self.errors
                    .extend([&loaded.path, &other].map(|path| FileError {
                        path: path.clone(),
                        text: text.clone(),
                    }));
                conflicts.insert(name);
                continue;
            }
            self.devices.insert(name, (place, index));
        }
        self.specs.push(loaded);
    }
}

/// Reads and parses a file. Also returns what the file is.
fn load(path: &Path) -> std::result::Result<(Spec, Metadata), String> {
    let failed = |text: String| format!("failed to load CDI Spec {text}");
    let (content, found) =
        fs::read_regular(path, MAX_SIZE).map_err(|error| failed(error.to_string()))?;
    let is_json = path
        .extension()
        .is_some_and(|extension| extension == "json");
    let spec = parse(&content, is_json)
        .map_err(|error| failed(format!("failed to parse CDI Spec {path:?}: {error}")))?;
    Ok((spec, found))
}

/// Whether others than root, or the user of the engine, may change a file or directory.
fn others_may_write(found: &Metadata) -> bool {
    let owner = found.uid();
    let is_trusted = owner == 0 || owner == rustix::process::geteuid().as_raw();
    let group = found.mode() & 0o020 != 0 && found.gid() != 0;
    !is_trusted || group || found.mode() & 0o002 != 0
}
