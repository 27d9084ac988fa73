//! The directories that a build may read: its context, the Dockerfile's, and those with names.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use whelk_bake::paths::is_remote;

use super::args::BuildArgs;
use super::{archive, stores};
use crate::{Failure, Outcome, files, plain};

/// What the engine may ask for by a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Directory(PathBuf),
    /// One file, in memory.
    File {
        name: String,
        content: Vec<u8>,
    },
    Empty,
}

/// The sources of a build, and the attributes that name them.
#[derive(Debug, Default)]
pub(super) struct Contexts {
    pub sources: BTreeMap<String, Source>,
    pub attributes: BTreeMap<String, String>,
    /// Directories with OCI layouts, by the names that the engine knows them by.
    pub layouts: BTreeMap<String, PathBuf>,
    /// Has an unpacked archive.
    unpacked: Option<Unpacked>,
}

/// A temporary directory.
#[derive(Debug)]
struct Unpacked(PathBuf);

impl Drop for Unpacked {
    fn drop(&mut self) {
        let _ = files::remove_directory(&self.0);
    }
}

/// How far the thread is that reads the standard input.
#[derive(Debug, Default)]
struct Progress {
    is_stopped: AtomicBool,
    has_ended: AtomicBool,
    /// The directory that it unpacks to.
    directory: Mutex<Option<PathBuf>>,
}

/// Has the thread. If this is dropped before its end, it removes what the thread has unpacked.
#[derive(Default)]
struct Reading(Arc<Progress>);

impl Drop for Reading {
    fn drop(&mut self) {
        /// How long the thread may take to end; it does not if nobody writes to the standard input.
        const PATIENCE: u32 = 10;
        const TICK: Duration = Duration::from_millis(10);
        let has_ended = || self.0.has_ended.load(Ordering::Relaxed);
        if has_ended() {
            return;
        }
        self.0.is_stopped.store(true, Ordering::Relaxed);
        for _ in 0..PATIENCE {
            if has_ended() {
                return;
            }
            std::thread::sleep(TICK);
        }
        let directory = self
            .0
            .directory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(path) = directory {
            let _ = files::remove_directory(&path);
        }
    }
}

/// Input that ends with an error when it is not wanted any more.
struct Stoppable<R>(R, Arc<Progress>);

impl<R: Read> Read for Stoppable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.1.is_stopped.load(Ordering::Relaxed) {
            true => Err(std::io::Error::other("it was interrupted")),
            false => self.0.read(buffer),
        }
    }
}

pub(super) const CONTEXT: &str = "context";
const DOCKERFILE: &str = "dockerfile";

/// The maximum size of a Dockerfile on the standard input. The engine reads 1 MiB at most.
const MAX_DOCKERFILE: u64 = 16 << 20;

/// The size of an archive's first block, by which it is known.
const BLOCK: usize = 512;

impl Contexts {
    /// Finds the sources that flags name. Reads the standard input if one of them is `-`. What was unpacked is removed when
    /// the future is dropped.
    pub async fn find(args: &BuildArgs) -> Outcome<Self> {
        let reading = Reading::default();
        let (args, own) = (args.clone(), reading.0.clone());
        let found = tokio::task::spawn_blocking(move || {
            let found = Self::new(&args, &own);
            own.has_ended.store(true, Ordering::Relaxed);
            found
        });
        let found = found.await;
        found.map_err(|error| Failure::new(error.to_string()))?
    }

    fn new(args: &BuildArgs, reading: &Arc<Progress>) -> Outcome<Self> {
        let mut contexts = Self::default();
        match args.context.as_str() {
            _ if args.is_input => contexts.dockerfile(args, None)?,
            "" => return Err(Failure::new("unable to prepare context: the path is empty")),
            "-" => contexts.standard_input(args, reading)?,
            url if is_fetched(url) => {
                contexts.attribute(CONTEXT, url);
                contexts.dockerfile(args, None)?;
            }
            path => {
                let root = Path::new(path);
                if !root.is_dir() {
                    let mut text = format!("unable to prepare context: path {path:?} not found");
                    if path == "cache" {
                        text += "; for the caches of steps, see whelk build cache ls, export, import and rm";
                    }
                    return Err(Failure::new(text));
                }
                contexts.directory(CONTEXT, root)?;
                contexts.dockerfile(args, Some(root))?;
            }
        }
        for given in &args.build_context {
            contexts.named(given)?;
        }
        Ok(contexts)
    }

    fn attribute(&mut self, name: &str, value: &str) {
        self.attributes.insert(name.to_owned(), value.to_owned());
    }

    fn directory(&mut self, name: &str, path: &Path) -> Outcome<()> {
        let found = path.canonicalize();
        let found = found.map_err(|error| {
            let cause = plain(&error);
            Failure::new(format!(
                "unable to prepare context: {}: {cause}",
                path.display()
            ))
        })?;
        self.sources
            .insert(name.to_owned(), Source::Directory(found));
        Ok(())
    }

    /// Finds the Dockerfile of a context.
    fn dockerfile(&mut self, args: &BuildArgs, root: Option<&Path>) -> Outcome<()> {
        let is_fetched = root.is_none();
        if let Some(text) = &args.inline {
            self.dockerfile_text(text.clone().into_bytes(), is_fetched);
            return Ok(());
        }
        match (args.file.as_str(), root) {
            ("-", _) => {
                let content = read_dockerfile(std::io::stdin())?;
                self.dockerfile_text(content, is_fetched);
            }
            ("", Some(root)) => {
                // As Docker's client, so that the history has it.
                self.attribute("filename", "Dockerfile");
                self.directory(DOCKERFILE, root)?;
            }
            // The engine finds it in what it fetches.
            ("", None) => {}
            (file, None) if !file.starts_with('/') => {
                self.attribute("filename", file);
            }
            (file, _) => {
                let path = Path::new(file);
                let name = path.file_name().and_then(|name| name.to_str());
                let unreadable = |cause: &str| {
                    Failure::new(format!("failed to read dockerfile: open {file}: {cause}"))
                };
                let name = name.ok_or_else(|| unreadable("is a directory"))?;
                match std::fs::metadata(path) {
                    Err(error) => return Err(unreadable(&plain(&error))),
                    Ok(found) if found.is_dir() => return Err(unreadable("is a directory")),
                    Ok(_) => {}
                }
                let directory = path.parent().filter(|parent| *parent != Path::new(""));
                self.directory(DOCKERFILE, directory.unwrap_or(Path::new(".")))?;
                self.attribute("filename", name);
                if is_fetched {
                    self.attribute("dockerfilekey", DOCKERFILE);
                }
            }
        }
        Ok(())
    }

    /// Takes a Dockerfile's text. With a context that the engine fetches, it is told that the Dockerfile is not in it.
    fn dockerfile_text(&mut self, content: Vec<u8>, is_fetched: bool) {
        let name = "Dockerfile".to_owned();
        self.attribute("filename", &name);
        if is_fetched {
            self.attribute("dockerfilekey", DOCKERFILE);
        }
        let file = Source::File { name, content };
        self.sources.insert(DOCKERFILE.into(), file);
    }

    /// Takes an archive or a Dockerfile from the standard input.
    fn standard_input(&mut self, args: &BuildArgs, reading: &Arc<Progress>) -> Outcome<()> {
        if args.file == "-" {
            return Err(Failure::new(
                "invalid argument: can't use stdin for both build context and dockerfile",
            ));
        }
        let mut input = std::io::stdin();
        let failed = |error: std::io::Error| {
            Failure::new(format!(
                "failed to read context from STDIN: {}",
                plain(&error)
            ))
        };
        let mut head = Vec::with_capacity(BLOCK);
        (&mut input)
            .take(BLOCK as u64)
            .read_to_end(&mut head)
            .map_err(failed)?;
        if head.is_empty() {
            return Err(Failure::new(
                "failed to read context from STDIN: it is empty",
            ));
        }
        if head.starts_with(b"PK\x03\x04") {
            return Err(Failure::new(
                "failed to read context from STDIN: it is a zip archive, which is not supported; tar archives are",
            ));
        }
        let input = std::io::Cursor::new(head.clone()).chain(input);
        if !is_archive(&head) {
            if !args.file.is_empty() {
                return Err(Failure::new(
                    "ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles",
                ));
            }
            self.dockerfile_text(read_dockerfile(input)?, false);
            self.sources.insert(CONTEXT.into(), Source::Empty);
            return Ok(());
        }
        let root = unpack(input, reading)?;
        for name in [CONTEXT, DOCKERFILE] {
            self.directory(name, &root.0)?;
        }
        self.unpacked = Some(root);
        if !args.file.is_empty() {
            self.attribute("filename", &args.file);
        }
        Ok(())
    }

    /// Adds a context of `--build-context`.
    fn named(&mut self, given: &str) -> Outcome<()> {
        let invalid = |text: &str| Failure::new(format!("invalid context value: {given}, {text}"));
        let (name, value) = given
            .split_once('=')
            .ok_or_else(|| invalid("expected key=value"))?;
        if name.is_empty() || value.is_empty() {
            return Err(invalid("expected key=value"));
        }
        let name = name.to_lowercase();
        let attribute = format!("context:{name}");
        if let Some((path, tag, digest)) = layout(value) {
            let path = Path::new(path);
            let failed = |why: String| {
                Failure::new(format!(
                    "oci-layout reference {value:?} could not be resolved: {why}"
                ))
            };
            let digest = match digest {
                Some(digest) => {
                    let parsed = digest.parse::<whelk_image::Digest>();
                    parsed.map_err(|error| failed(error.to_string()))?;
                    digest.to_owned()
                }
                None => stores::find_image(path, tag).map_err(failed)?,
            };
            let path = path.canonicalize().map_err(|error| failed(plain(&error)))?;
            let store = format!("layout-{}", self.layouts.len());
            let reference = format!("oci-layout://{store}:{tag}@{digest}");
            self.attribute(&attribute, &reference);
            self.layouts.insert(store, path);
            return Ok(());
        }
        let is_named = ["docker-image://", "target:"]
            .iter()
            .any(|scheme| value.starts_with(scheme));
        if is_named || is_remote(value) {
            self.attribute(&attribute, value);
            return Ok(());
        }
        let path = Path::new(value);
        let cause = match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => None,
            Ok(_) => Some("not a directory".to_owned()),
            Err(error) => Some(plain(&error)),
        };
        if let Some(cause) = cause {
            let text = format!("failed to get build context {name}: {value}: {cause}");
            return Err(Failure::new(text));
        }
        let local = match name.as_str() {
            CONTEXT | DOCKERFILE => format!("_{name}"),
            name => name.to_owned(),
        };
        self.directory(&local, path)?;
        self.attribute(&attribute, &format!("local:{local}"));
        Ok(())
    }

    /// The key by which the engine finds what it has of these directories: it is that of the machine, the user and the
    /// paths or the URL, so that nobody else's is meant. It is empty if they do not have one.
    pub fn shared_key(&self, sources: &BTreeMap<String, Source>) -> String {
        let url = self.attributes.get(CONTEXT);
        let is_directory = |source: &Source| matches!(source, Source::Directory(_));
        let has_place = url.is_some() || sources.values().any(is_directory);
        if self.unpacked.is_some() || !has_place {
            return String::new();
        }
        let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
        let user = rustix::process::getuid().as_raw();
        let mut hash = Sha256::new();
        hash.update(machine);
        hash.update(rustix::system::uname().nodename().to_bytes());
        hash.update(user.to_string());
        if let Some(url) = url {
            hash.update(format!("\0{url}"));
        }
        for (name, source) in sources {
            if let Source::Directory(path) = source {
                hash.update(format!("\0{name}\0{}", path.display()));
            }
        }
        hash.finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// Splits a reference to an image in an OCI layout: the directory, the tag, and the digest, if it has one.
pub(crate) fn layout(value: &str) -> Option<(&str, &str, Option<&str>)> {
    let rest = value.strip_prefix("oci-layout:")?.trim_start_matches("//");
    let (rest, digest) = match rest.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (rest, None),
    };
    match rest.rsplit_once(':') {
        // A colon in a directory's name is none of a tag.
        Some((path, tag)) if !tag.contains('/') => Some((path, tag, digest)),
        _ => Some((rest, "latest", digest)),
    }
}

/// Whether a context is fetched by the engine. A directory may be named like a repository.
pub(crate) fn is_fetched(text: &str) -> bool {
    is_remote(text) && !Path::new(text).is_dir()
}

/// Whether a file is an archive, by its first 512 bytes.
pub(crate) fn is_archive(head: &[u8]) -> bool {
    let magics: [&[u8]; 4] = [
        &[0x1f, 0x8b],
        b"BZh",
        &[0xfd, b'7', b'z', b'X', b'Z'],
        &[0x28, 0xb5, 0x2f, 0xfd],
    ];
    let is_tar = head.get(257..262) == Some(b"ustar");
    is_tar || magics.iter().any(|magic| head.starts_with(magic))
}

fn read_dockerfile(input: impl Read) -> Outcome<Vec<u8>> {
    let mut content = Vec::new();
    let read = input.take(MAX_DOCKERFILE + 1).read_to_end(&mut content);
    let failed =
        |cause: &str| Failure::new(format!("failed to read Dockerfile from STDIN: {cause}"));
    read.map_err(|error| failed(&plain(&error)))?;
    if content.len() as u64 > MAX_DOCKERFILE {
        return Err(failed("it is too large"));
    }
    Ok(content)
}

/// Unpacks an archive into a temporary directory.
fn unpack(input: impl Read + Send, reading: &Arc<Progress>) -> Outcome<Unpacked> {
    let failed = |cause: String| Failure::new(format!("failed to unpack the context: {cause}"));
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| failed(plain(&error.into())))?;
    let name = format!("whelk-context-{:016x}", u64::from_ne_bytes(random));
    let path = std::env::temp_dir().join(name);
    let create = || {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().mode(0o700).create(&path)
    };
    create().map_err(|error| failed(format!("create {}: {}", path.display(), plain(&error))))?;
    *reading
        .directory
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = Some(path.clone());
    let unpacked = Unpacked(path);
    let input = Stoppable(input, reading.clone());
    let done = archive::unpack(input, &unpacked.0);
    done.map_err(|cause| match cause.as_str() {
        "unexpected EOF" => failed(format!("{cause}: the archive is cut off")),
        _ => failed(cause),
    })?;
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_known_by_their_beginning() {
        let mut tar = vec![0; BLOCK];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(is_archive(&tar) && is_archive(&[0x1f, 0x8b, 8]));
        assert!(!is_archive(b"FROM x\n") && !is_archive(b""));
    }

    #[test]
    fn only_contexts_with_a_place_are_known_again() {
        let key = |source: Option<Source>, url: &str| {
            let mut contexts = Contexts::default();
            if !url.is_empty() {
                contexts.attribute(CONTEXT, url);
            }
            let sources = source.map(|source| (CONTEXT.to_owned(), source));
            contexts.shared_key(&sources.into_iter().collect())
        };
        let directory = |path: &str| Some(Source::Directory(path.into()));
        assert_eq!(key(Some(Source::Empty), ""), "");
        assert_ne!(key(directory("/a"), ""), "");
        assert_ne!(key(directory("/a"), ""), key(directory("/b"), ""));
        assert_ne!(key(None, "https://a/x.git"), key(None, "https://b/x.git"));
    }

    #[test]
    fn the_standard_input_is_one_thing_only() {
        use clap::Parser as _;
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: BuildArgs,
        }
        let args = Line::try_parse_from(["build", "-f", "-", "-"])
            .unwrap()
            .args;
        let failed = Contexts::new(&args, &Arc::default()).unwrap_err();
        assert!(
            failed.text.contains("can't use stdin for both"),
            "{}",
            failed.text
        );
    }

    #[test]
    fn wrong_contexts_are_named() {
        let check = |given: &str, expected: &str| {
            let failed = Contexts::default().named(given).unwrap_err();
            assert!(failed.text.contains(expected), "{}", failed.text);
        };
        check("x", "expected key=value");
        check("x=", "expected key=value");
        check(
            "x=/nonexistent",
            "build context x: /nonexistent: no such file or directory",
        );
        check(
            "x=/etc/passwd",
            "build context x: /etc/passwd: not a directory",
        );
        check(
            "x=oci-layout://./lay@sha256:00",
            "oci-layout reference \"oci-layout://./lay@sha256:00\" could not be resolved: invalid checksum digest length",
        );
    }
}
