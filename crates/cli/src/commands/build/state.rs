//! What the client notes of its builds beside the engine's history: the paths that they were asked with.
//!
//! The files are those of buildx, `buildx/refs/BUILDER/NODE/REF` in the directory of the configuration, so that each of the two
//! clients names the builds of both. The engine is not told the paths.

use std::fs::DirEntry;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use whelk_bake::paths::join;
use whelk_dockerfile::convert::RemoteContext;

use super::args::BuildArgs;
use super::contexts::is_fetched;
use crate::client::Client;
use crate::files;

/// Number of builds of an engine of which the paths are kept: that of the engine's own records.
const MOST: usize = 1000;

/// Number of further ones before the oldest are removed.
const SLACK: usize = 100;

/// Maximum size of a file in bytes.
const MAX_SIZE: u64 = 64 << 10;

/// The paths that a build was asked with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct State {
    /// `default`, as buildx has it for a build that is no target of a bake file.
    pub target: String,
    /// The context: an absolute path, `-`, or a URL without credentials; empty for a directory of a server.
    #[serde(rename = "LocalPath")]
    pub context: String,
    /// The Dockerfile: an absolute path, `-`, or the path in a context that is fetched; empty for the usual one.
    #[serde(rename = "DockerfilePath")]
    pub dockerfile: String,
}

/// The states of an engine's builds; there are none without a directory of the user's configuration.
#[derive(Clone, Debug)]
pub(crate) struct States(Option<PathBuf>);

impl State {
    fn of(args: &BuildArgs, working: &str) -> Self {
        let absolute = |path: &str| match path {
            "" | "-" => path.to_owned(),
            path if path.starts_with('/') => whelk_bake::paths::clean(path),
            path => join(working, path),
        };
        let is_fetched = is_fetched(&args.context);
        Self {
            target: "default".into(),
            context: match is_fetched {
                // A directory beside definitions on a server is none here.
                _ if args.is_input => String::new(),
                true => RemoteContext::shown(&args.context),
                false => absolute(&args.context),
            },
            dockerfile: match is_fetched || args.is_input {
                true => args.file.clone(),
                false => absolute(&args.file),
            },
        }
    }
}

impl States {
    pub fn of(client: &Client) -> Self {
        let variable = std::env::var_os("BUILDX_CONFIG").filter(|path| !path.is_empty());
        let root = match variable {
            Some(path) => Some(PathBuf::from(path)),
            None => client.config().map(|config| config.join("buildx")),
        };
        let builder = client.context();
        Self(root.map(|root| root.join("refs").join(builder).join(builder)))
    }

    /// Notes where a build comes from. A build whose paths cannot be noted has no name in lists, and is built all the same.
    pub fn save(&self, args: &BuildArgs, build: &str) {
        let working = std::env::current_dir().unwrap_or_default();
        let (Some(directory), Some(working)) = (&self.0, working.to_str()) else {
            return;
        };
        let _ = write(&State::of(args, working), directory, build);
    }

    /// Returns what is known of a build; nothing of one that another user or another machine has asked for.
    pub fn read(&self, build: &str) -> State {
        let content = self
            .path(build)
            .and_then(|path| files::read_at_most(&path, MAX_SIZE).ok());
        content
            .and_then(|content| serde_json::from_slice(&content).ok())
            .unwrap_or_default()
    }

    pub fn remove(&self, build: &str) {
        if let Some(path) = self.path(build) {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Returns the file of a build. Its name may be the engine's.
    fn path(&self, build: &str) -> Option<PathBuf> {
        let is_name = !build.is_empty() && build.chars().all(|char| char.is_ascii_alphanumeric());
        let directory = self.0.as_ref().filter(|_| is_name)?;
        Some(directory.join(build))
    }
}

fn write(state: &State, directory: &Path, build: &str) -> io::Result<()> {
    files::create_directories(directory, 0o700)?;
    let path = directory.join(build);
    let (mut file, staged) = files::stage(&path)?;
    let staged = files::Staged(staged);
    file.write_all(&serde_json::to_vec(state)?)?;
    staged.rename(&path)?;
    forget(directory, MOST, SLACK)
}

/// Removes the oldest files, if there are more than `most` and `slack` together.
fn forget(directory: &Path, most: usize, slack: usize) -> io::Result<()> {
    let entries: Vec<DirEntry> = std::fs::read_dir(directory)?.flatten().collect();
    if entries.len() <= most + slack {
        return Ok(());
    }
    let aged = entries.iter().filter_map(|entry| {
        let modified = entry.metadata().ok()?.modified().ok()?;
        Some((modified, entry.path()))
    });
    let mut aged: Vec<_> = aged.collect();
    aged.sort();
    let count = aged.len().saturating_sub(most);
    for (_, path) in aged.iter().take(count) {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use whelk_sys::Scratch;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: BuildArgs,
    }

    fn args(words: &[&str]) -> BuildArgs {
        Line::try_parse_from([&["build"], words].concat())
            .unwrap()
            .args
    }

    #[test]
    fn paths_are_absolute() {
        for (words, context, dockerfile) in [
            (&["."][..], "/w", ""),
            (&["../a/"], "/a", ""),
            (&["-f", "x/../b.Dockerfile", "a"], "/w/a", "/w/b.Dockerfile"),
            (&["-f", "/b", "/a/."], "/a", "/b"),
            (&["-f", "-", "a"], "/w/a", "-"),
            (&["-"], "-", ""),
            (
                &["-f", "b", "https://u:secret@example.com/x.git"],
                "https://example.com/x.git",
                "b",
            ),
        ] {
            let state = State::of(&args(words), "/w");
            assert_eq!((&*state.context, &*state.dockerfile), (context, dockerfile));
        }
        let beside = BuildArgs {
            is_input: true,
            ..args(&["-f", "b", "sub"])
        };
        let state = State::of(&beside, "/w");
        assert_eq!((&*state.context, &*state.dockerfile), ("", "b"));
    }

    #[test]
    fn files_are_those_of_buildx_and_bounded() {
        let scratch = Scratch::temporary("states").unwrap();
        let directory = scratch.path().join("refs/default/default");
        let states = States(Some(directory.clone()));
        states.save(&args(&["/a"]), "one");
        let text = std::fs::read_to_string(directory.join("one")).unwrap();
        assert_eq!(
            text,
            r#"{"Target":"default","LocalPath":"/a","DockerfilePath":""}"#
        );
        assert_eq!(states.read("one").context, "/a");
        for name in ["", "none", "../default/one", ".."] {
            assert_eq!(states.read(name), State::default(), "{name}");
        }
        std::fs::write(directory.join("other"), "{").unwrap();
        assert_eq!(states.read("other"), State::default());
        states.remove("one");
        assert!(!directory.join("one").exists());
        for name in ["two", "three"] {
            states.save(&args(&["/a"]), name);
        }
        // The clock of files is coarse.
        let newest = std::fs::OpenOptions::new()
            .write(true)
            .open(directory.join("three"))
            .unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(10);
        newest.set_modified(later).unwrap();
        forget(&directory, 1, 2).unwrap();
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 3);
        forget(&directory, 1, 1).unwrap();
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
        assert!(directory.join("three").exists());
    }
}
