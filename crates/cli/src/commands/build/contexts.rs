//! The directories that a build may read: its context, the Dockerfile's, and those with names.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::args::BuildArgs;
use crate::{Failure, Outcome, plain};

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
    /// Has an unpacked archive.
    unpacked: Option<Unpacked>,
}

/// A temporary directory.
#[derive(Debug)]
struct Unpacked(PathBuf);

impl Drop for Unpacked {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const CONTEXT: &str = "context";
const DOCKERFILE: &str = "dockerfile";

/// The maximum size of a Dockerfile on the standard input. The engine reads 2 MiB at most.
const MAX_DOCKERFILE: u64 = 16 << 20;

/// The size of an archive's first block, by which it is known.
const BLOCK: usize = 512;

impl Contexts {
    /// Finds the sources that flags name. Reads the standard input if one of them is `-`.
    pub fn new(args: &BuildArgs) -> Outcome<Self> {
        let mut contexts = Self::default();
        match args.context.as_str() {
            "" => return Err(Failure::new("unable to prepare context: the path is empty")),
            "-" => contexts.standard_input(args)?,
            url if is_remote(url) => {
                contexts.attribute(CONTEXT, url);
                contexts.dockerfile(args, None)?;
            }
            path => {
                let root = Path::new(path);
                if !root.is_dir() {
                    let text = format!("unable to prepare context: path {path:?} not found");
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
        match (args.file.as_str(), root) {
            ("-", _) => {
                let content = read_dockerfile(std::io::stdin())?;
                self.dockerfile_text(content);
            }
            ("", Some(root)) => self.directory(DOCKERFILE, root)?,
            // The engine finds it in what it fetches.
            ("", None) => {}
            (file, None) => self.attribute("filename", file),
            (file, Some(_)) => {
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
            }
        }
        Ok(())
    }

    fn dockerfile_text(&mut self, content: Vec<u8>) {
        let name = "Dockerfile".to_owned();
        self.attribute("filename", &name);
        let file = Source::File { name, content };
        self.sources.insert(DOCKERFILE.into(), file);
    }

    /// Takes an archive or a Dockerfile from the standard input.
    fn standard_input(&mut self, args: &BuildArgs) -> Outcome<()> {
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
        let input = std::io::Cursor::new(head.clone()).chain(input);
        if !is_archive(&head) {
            if !args.file.is_empty() {
                return Err(Failure::new(
                    "ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles",
                ));
            }
            self.dockerfile_text(read_dockerfile(input)?);
            self.sources.insert(CONTEXT.into(), Source::Empty);
            return Ok(());
        }
        let root = unpack(input)?;
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
        let is_named = ["docker-image://", "oci-layout://", "target:"]
            .iter()
            .any(|scheme| value.starts_with(scheme));
        let attribute = format!("context:{name}");
        if is_named || is_remote(value) {
            self.attribute(&attribute, value);
            return Ok(());
        }
        let path = Path::new(value);
        if !path.is_dir() {
            let text = format!("failed to get build context {name}: {value}: not a directory");
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
    /// paths, so that nobody else's is meant. It is empty if they do not have paths.
    pub fn shared_key(&self, sources: &BTreeMap<String, Source>) -> String {
        if self.unpacked.is_some() {
            return String::new();
        }
        let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
        let user = rustix::process::getuid().as_raw();
        let mut hash = Sha256::new();
        hash.update(machine);
        hash.update(rustix::system::uname().nodename().to_bytes());
        hash.update(user.to_string());
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

/// Whether a context is fetched by the engine.
fn is_remote(text: &str) -> bool {
    let schemes = [
        "http://",
        "https://",
        "git://",
        "ssh://",
        "git@",
        "github.com/",
    ];
    schemes.iter().any(|scheme| text.starts_with(scheme))
}

fn is_archive(head: &[u8]) -> bool {
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
fn unpack(input: impl Read + Send) -> Outcome<Unpacked> {
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
    let unpacked = Unpacked(path);
    let plain_input =
        whelk_image::compression::decompress(input).map_err(|error| failed(error.to_string()))?;
    let mut archive = tar::Archive::new(plain_input);
    archive.set_preserve_permissions(true);
    let done = archive.unpack(&unpacked.0);
    done.map_err(|error| failed(error.to_string()))?;
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_known_by_their_beginning() {
        for (text, expected) in [
            ("https://example.com/x.tar", true),
            ("git@example.com:x.git", true),
            ("github.com/a/b", true),
            ("./https:", false),
            ("dir", false),
        ] {
            assert_eq!(is_remote(text), expected, "{text}");
        }
        let mut tar = vec![0; BLOCK];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(is_archive(&tar) && is_archive(&[0x1f, 0x8b, 8]));
        assert!(!is_archive(b"FROM x\n") && !is_archive(b""));
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
            "build context x: /nonexistent: not a directory",
        );
    }
}
