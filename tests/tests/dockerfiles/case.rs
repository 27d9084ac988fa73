//! Cases: a Dockerfile, the files of its context, and flags of the client.
//!
//! ```text
//! === NAME                        the name, unique in its file
//! # TEXT                          a comment
//! flags: --build-arg A=1 'a b'    flags of `docker build`
//! env: TOKEN=x                    a variable of the client
//! prepare: ln a b                 a shell command in the context's directory, before the build
//! only: buildkit                  the protocol; both if it is missing
//! classic as buildkit: REASON     the classic result is compared with Docker's of BuildKit
//! differs PROTOCOL: REASON        whelk's result is another one, and is recorded beside Docker's
//! --- PATH [MODE]                 a file of the context; what follows is its content
//! --- PATH -> TARGET              a symbolic link
//! ```

use std::fmt;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// How a client asks for a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    BuildKit,
    Classic,
}

impl Protocol {
    pub const ALL: [Self; 2] = [Self::BuildKit, Self::Classic];

    fn parse(text: &str) -> Self {
        let found = Self::ALL.into_iter().find(|one| one.to_string() == text);
        found.unwrap_or_else(|| panic!("the protocol {text:?}"))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BuildKit => "buildkit",
            Self::Classic => "classic",
        })
    }
}

#[derive(Debug, Default)]
pub struct Case {
    /// `SUBJECT.NAME`.
    pub name: String,
    pub flags: Vec<String>,
    pub env: Vec<(String, String)>,
    prepare: Vec<String>,
    only: Option<Protocol>,
    is_classic_like_buildkit: bool,
    differs: Vec<(Protocol, String)>,
    files: Vec<ContextFile>,
}

#[derive(Debug)]
struct ContextFile {
    path: String,
    mode: u32,
    target: Option<String>,
    content: String,
}

/// Reads all cases of a directory.
#[track_caller]
pub fn all(directory: &Path) -> Vec<Case> {
    let listing = fs::read_dir(directory).expect("list the cases");
    let mut paths: Vec<_> = listing.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.retain(|path| path.extension().is_some_and(|ext| ext == "cases"));
    let mut cases: Vec<Case> = Vec::new();
    for path in paths {
        let subject = path.file_stem().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).expect("read the cases");
        for case in parse(subject, &text) {
            let known = cases.iter().any(|known| known.name == case.name);
            assert!(!known, "two cases {}", case.name);
            cases.push(case);
        }
    }
    cases
}

fn parse(subject: &str, text: &str) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in text.split_inclusive('\n') {
        if let Some(name) = line.strip_prefix("=== ") {
            cases.push(Case {
                name: format!("{subject}.{}", name.trim()),
                ..Case::default()
            });
            continue;
        }
        let Some(case) = cases.last_mut() else {
            continue;
        };
        if let Some(head) = line.strip_prefix("--- ") {
            case.files.push(ContextFile::parse(head.trim()));
        } else if let Some(file) = case.files.last_mut() {
            file.content.push_str(line);
        } else {
            case.read_setting(line.trim());
        }
    }
    for case in &mut cases {
        // A blank line between two cases.
        if let Some(file) = case.files.last_mut()
            && let Some(content) = file.content.strip_suffix("\n\n")
        {
            file.content = format!("{content}\n");
        }
    }
    cases
}

impl Case {
    fn read_setting(&mut self, line: &str) {
        if line.is_empty() || line.starts_with('#') {
            return;
        }
        let (key, value) = line.split_once(':').expect("a setting");
        let value = value.trim();
        match key {
            "flags" => self.flags.extend(words(value)),
            "env" => {
                let (name, value) = value.split_once('=').expect("NAME=VALUE");
                self.env.push((name.to_owned(), value.to_owned()));
            }
            "prepare" => self.prepare.push(value.to_owned()),
            "only" => self.only = Some(Protocol::parse(value)),
            "classic as buildkit" => self.is_classic_like_buildkit = true,
            "differs buildkit" => self.differs.push((Protocol::BuildKit, value.to_owned())),
            "differs classic" => self.differs.push((Protocol::Classic, value.to_owned())),
            _ => panic!("{}: the setting {key:?}", self.name),
        }
    }

    pub fn protocols(&self) -> Vec<Protocol> {
        self.only.map_or(Protocol::ALL.to_vec(), |only| vec![only])
    }

    /// Returns why whelk's result is another one than Docker's.
    pub fn differs(&self, protocol: Protocol) -> Option<&str> {
        let found = self.differs.iter().find(|(of, _)| *of == protocol);
        found.map(|(_, reason)| reason.as_str())
    }

    /// Returns the protocol whose result with Docker is expected.
    pub fn like(&self, protocol: Protocol) -> Protocol {
        if self.is_classic_like_buildkit {
            return Protocol::BuildKit;
        }
        protocol
    }

    /// Makes the context in a new directory. All of its files have one time.
    #[track_caller]
    pub fn write_context(&self, directory: &Path) {
        fs::create_dir_all(directory).expect("make a context");
        for file in &self.files {
            file.write(directory);
        }
        for command in &self.prepare {
            let mut shell = Command::new("sh");
            let script = format!("umask 022; {command}");
            let status = shell.args(["-ec", &script]).current_dir(directory).status();
            assert!(status.expect("start a shell").success(), "{command}");
        }
        set_times(directory);
    }
}

impl ContextFile {
    fn parse(head: &str) -> Self {
        let (path, target) = match head.split_once(" -> ") {
            Some((path, target)) => (path, Some(target.to_owned())),
            None => (head, None),
        };
        let (path, mode) = match path.rsplit_once(" [") {
            Some((path, mode)) => (path, mode.trim_end_matches(']')),
            None => (path, if path.ends_with('/') { "755" } else { "644" }),
        };
        Self {
            path: path.to_owned(),
            mode: u32::from_str_radix(mode, 8).expect("a mode"),
            target,
            content: String::new(),
        }
    }

    #[track_caller]
    fn write(&self, directory: &Path) {
        let path = directory.join(&self.path);
        let parent = path.parent().unwrap();
        fs::create_dir_all(parent).expect("make a directory");
        if let Some(target) = &self.target {
            return symlink(target, &path).expect("make a link");
        }
        if self.path.ends_with('/') {
            fs::create_dir_all(&path).expect("make a directory");
        } else {
            fs::write(&path, &self.content).expect("write a file");
        }
        fs::set_permissions(&path, PermissionsExt::from_mode(self.mode)).expect("set a mode");
    }
}

/// The time of all files of a context: 2020-01-01.
pub const TIME: u64 = 1_577_836_800;

fn set_times(path: &Path) {
    let kind = fs::symlink_metadata(path).unwrap().file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            set_times(&entry.unwrap().path());
        }
    }
    if kind.is_dir() || kind.is_file() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(TIME);
        let file = File::open(path).expect("open a file");
        file.set_modified(time).expect("set a time");
    }
}

/// Splits a line at spaces, except within single quotes.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut is_quoted = false;
    for character in line.chars() {
        match character {
            '\'' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            ' ' if !is_quoted => words.extend(word.take()),
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    words
}
