//! What becomes of a build's result: images of the engine, and files here.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{Access, access};
use rustix::io::Errno;
use tokio::sync::mpsc;
use whelk_buildkit::grpc::{Call, Result, Status};
use whelk_buildkit::pb::BytesMessage;
use whelk_buildkit::pb::control::Exporter;

use super::options::fields;
use crate::{Failure, Outcome, files, plain, terminal};

/// Why outputs are refused that would be mixed.
pub(crate) const ONE_STDOUT: &str = "only one output can be written to the standard output";

/// Attributes of images that only the builder's own pushes know.
const FORM: [&str; 7] = [
    "compression",
    "compression-level",
    "force-compression",
    "oci-mediatypes",
    "push-by-digest",
    "registry.insecure",
    "store",
];

/// An output of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Output {
    /// As in `--output`.
    pub kind: String,
    pub attributes: BTreeMap<String, String>,
    place: Place,
    /// Whether the image is pushed when it is in the engine.
    pub is_pushed: bool,
}

/// Where the files of an output go.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// It stays in the engine.
    Engine,
    StandardOutput,
    File(PathBuf),
    /// A directory with an OCI layout.
    Layout(PathBuf),
}

/// Reads `--output`, `--load` and `--push`. Without them, the result is an image of the engine; with `type=cacheonly`, none.
pub(super) fn parse(given: &[String], load: bool, push: bool) -> Outcome<Vec<Output>> {
    let mut outputs = given
        .iter()
        .filter(|text| !is_cache_only(text))
        .map(|text| Output::parse(text))
        .collect::<Outcome<Vec<_>>>()?;
    let is_image = |output: &Output| output.place == Place::Engine;
    if push {
        match outputs.iter_mut().find(|output| is_image(output)) {
            Some(output) => output.is_pushed = true,
            None => outputs.push(Output::image(true)),
        }
    }
    // An image of the engine is loaded already.
    let has_none = given.is_empty() && outputs.is_empty();
    if has_none || load && !outputs.iter().any(is_image) {
        outputs.push(Output::image(false));
    }
    let to_stdout = |output: &&Output| output.is_stdout();
    if outputs.iter().filter(to_stdout).count() > 1 {
        return Err(Failure::new(ONE_STDOUT));
    }
    Ok(outputs)
}

/// Whether an output keeps nothing but the cache.
fn is_cache_only(text: &str) -> bool {
    let kind = |fields: BTreeMap<String, String>| fields.get("type").cloned();
    // One without a type is a directory.
    let kind = fields(text, "output").ok().and_then(kind);
    kind.as_deref() == Some("cacheonly")
}

impl Output {
    /// Whether it is written to the standard output.
    pub fn is_stdout(&self) -> bool {
        self.place == Place::StandardOutput
    }

    /// Returns the directory that becomes an OCI layout.
    pub fn layout(&self) -> Option<&Path> {
        match &self.place {
            Place::Layout(directory) => Some(directory),
            _ => None,
        }
    }

    fn image(is_pushed: bool) -> Self {
        Self {
            kind: "moby".into(),
            attributes: BTreeMap::new(),
            place: Place::Engine,
            is_pushed,
        }
    }

    fn parse(text: &str) -> Outcome<Self> {
        let mut attributes = match text {
            "-" => [("type", "tar"), ("dest", "-")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            text if !text.contains(['=', ',']) => [("type", "local"), ("dest", text)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            text => fields(text, "output")?,
        };
        let kind = attributes.remove("type").unwrap_or_default();
        let destination = attributes.remove("dest").filter(|path| !path.is_empty());
        let is_pushed = match attributes.get("push") {
            None => false,
            Some(text) => whelk_text::parse_bool(text).ok_or_else(|| {
                Failure::new(format!("non-bool value specified for push: {text:?}"))
            })?,
        };
        let archives = attributes
            .get("tar")
            .and_then(|text| whelk_text::parse_bool(text));
        let is_layout = archives == Some(false) && matches!(&*kind, "oci" | "docker");
        // As Docker's client, if nobody looks at it.
        let destination = match kind.as_str() {
            "tar" | "oci"
                if destination.is_none() && !is_layout && !terminal::stdout_is_terminal() =>
            {
                Some("-".to_owned())
            }
            _ => destination,
        };
        let place = match (kind.as_str(), destination) {
            ("", _) => {
                return Err(Failure::new(format!(
                    "type is required for output {text:?}"
                )));
            }
            ("image" | "moby" | "registry" | "docker", None) if !is_layout => {
                attributes.remove("push");
                let is_pushed = is_pushed || kind == "registry";
                return Ok(Self {
                    attributes,
                    ..Self::image(is_pushed)
                });
            }
            ("image" | "moby" | "registry", Some(_)) => {
                return Err(Failure::new(format!(
                    "an output of type {kind} has no dest"
                )));
            }
            ("local" | "tar" | "oci" | "docker", None) => {
                return Err(Failure::new(format!(
                    "dest is required for {kind} exporter"
                )));
            }
            ("local" | "oci" | "docker", Some(path))
                if path == "-" && (is_layout || kind == "local") =>
            {
                let text = format!("dest cannot be stdout for {kind} exporter");
                return Err(Failure::new(text));
            }
            ("tar" | "oci" | "docker", Some(path)) if path == "-" => {
                if terminal::stdout_is_terminal() {
                    return Err(Failure::new(
                        "dest file is required for an archive: refusing to write to a terminal",
                    ));
                }
                Place::StandardOutput
            }
            ("tar" | "oci" | "docker" | "local", Some(path)) => {
                check_destination(Path::new(&path), is_layout || kind == "local")?;
                match is_layout {
                    true => Place::Layout(path.into()),
                    false => Place::File(path.into()),
                }
            }
            (other, _) => {
                return Err(Failure::new(format!(
                    "exporter {other:?} could not be found; the types are image, registry, docker, oci, tar and local"
                )));
            }
        };
        Ok(Self {
            kind,
            attributes,
            place,
            is_pushed: false,
        })
    }

    /// Refuses a push of an image without a name, before it is built.
    ///
    /// # Errors
    /// Returns Docker's error.
    pub fn check(&self, tags: &[String]) -> Outcome<()> {
        match self.is_pushed && self.names(tags).is_empty() {
            true => Err(Failure::new("tag is needed when pushing to registry")),
            false => Ok(()),
        }
    }

    /// Returns whether the builder pushes the image itself: in a form in which the engine does not keep it, or without a tag.
    pub fn is_pushed_by_builder(&self) -> bool {
        let has_form = FORM.iter().any(|name| self.attributes.contains_key(*name));
        self.is_pushed && has_form
    }

    /// Returns the names of the image, from the output itself or from `--tag`.
    pub fn names(&self, tags: &[String]) -> Vec<String> {
        match self.attributes.get("name") {
            Some(names) if tags.is_empty() => names.split(',').map(str::to_owned).collect(),
            _ => tags.to_vec(),
        }
    }

    /// Returns what the engine is asked for.
    pub fn exporter(&self, tags: &[String], annotations: &[String]) -> Outcome<Exporter> {
        let mut attrs = self.attributes.clone();
        if self.is_pushed_by_builder() {
            attrs.insert("push".into(), "true".into());
        }
        let names = self.names(tags);
        if !names.is_empty() && self.kind != "local" && self.kind != "tar" {
            attrs.insert("name".into(), names.join(","));
        }
        for text in annotations {
            let (name, value) = text.split_once('=').ok_or_else(|| {
                Failure::new(format!("invalid annotation {text:?}, expected key=value"))
            })?;
            let Some((kinds, name)) = name.split_once(':') else {
                attrs.insert(format!("annotation.{name}"), value.to_owned());
                continue;
            };
            for kind in kinds.split(',') {
                attrs.insert(format!("annotation-{kind}.{name}"), value.to_owned());
            }
        }
        Ok(Exporter {
            kind: self.kind.clone(),
            attrs,
        })
    }

    /// Takes the files of an output from the engine.
    pub async fn receive(&self, call: Call) -> Result<()> {
        match &self.place {
            Place::Engine => Err(Status::invalid("an image has no files here")),
            Place::Layout(_) => Err(Status::invalid("a layout has no archive here")),
            Place::File(path) if self.kind == "local" => super::local::receive(call, path).await,
            Place::StandardOutput => write(call, None).await,
            Place::File(path) => write(call, Some(path)).await,
        }
    }
}

/// Refuses a destination that cannot be written, before anything is built for it.
fn check_destination(path: &Path, is_directory: bool) -> Outcome<()> {
    let shown = path.display();
    let refused = match is_directory {
        true if path.is_file() => Some(format!("destination directory {shown} is a file")),
        false if path.is_dir() => Some(format!(
            "destination directory {shown} exists: an archive needs a file"
        )),
        _ => None,
    };
    if let Some(text) = refused {
        return Err(Failure::new(text));
    }
    let checked = match is_directory {
        true => check_directory(path),
        false => check_replaceable(path),
    };
    checked.map_err(|error| {
        let cause = plain(&error);
        Failure::new(format!("invalid destination {shown}: {cause}"))
    })
}

/// Refuses a directory that cannot be created, or in which nothing can be, before anything is built for it.
fn check_directory(path: &Path) -> std::io::Result<()> {
    let there = path
        .ancestors()
        .find(|part| part.symlink_metadata().is_ok());
    let there = there.unwrap_or(Path::new("."));
    if !std::fs::metadata(there)?.is_dir() {
        return Err(Errno::NOTDIR.into());
    }
    Ok(access(there, Access::WRITE_OK | Access::EXEC_OK)?)
}

/// Refuses a file that cannot be created or replaced, before anything is built for it: a new one is written beside one that is there,
/// whose own mode says nothing.
fn check_replaceable(path: &Path) -> std::io::Result<()> {
    match path.canonicalize() {
        Ok(found) if found.is_file() => check_directory(found.parent().unwrap_or(&found)),
        _ => check_writable(path),
    }
}

/// Refuses a file that cannot be created or written, before anything is built for it.
fn check_writable(path: &Path) -> std::io::Result<()> {
    match std::fs::metadata(path) {
        Ok(_) => Ok(access(path, Access::WRITE_OK)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let parent = path.parent();
            let parent = parent.filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            std::fs::metadata(parent)?;
            check_directory(parent)
        }
        Err(error) => Err(error),
    }
}

/// Refuses a file about the result that could not be written, before anything is built.
///
/// # Errors
/// Returns the text of the write that would fail.
pub(crate) fn check_file(path: &str) -> Outcome<()> {
    let checked = match path {
        "" => Ok(()),
        path if Path::new(path).is_dir() => Err(Errno::ISDIR.into()),
        path => check_writable(Path::new(path)),
    };
    checked.map_err(|error| Failure::new(format!("write {path}: {}", plain(&error))))
}

/// Writes an archive to a file, which is replaced when all of it is there, or to the standard output. A thread writes: a pipe
/// may be full for a long time.
async fn write(mut call: Call, path: Option<&PathBuf>) -> Result<()> {
    /// Number of pieces that wait to be written.
    const WAITING: usize = 16;
    let shown = path.map_or("/dev/stdout".into(), |path| path.display().to_string());
    let failed =
        |error: std::io::Error| Status::unknown(format!("write {shown}: {}", plain(&error)));
    let (pieces, mut queue) = mpsc::channel::<Bytes>(WAITING);
    let path = path.cloned();
    let writing = tokio::task::spawn_blocking(move || {
        let mut file = path.as_deref().map(files::Output::create).transpose()?;
        while let Some(data) = queue.blocking_recv() {
            match &mut file {
                Some(file) => file.write_all(&data)?,
                None => std::io::stdout().write_all(&data)?,
            }
        }
        std::io::stdout().flush()?;
        Ok::<_, std::io::Error>(file)
    });
    while let Some(BytesMessage { data }) = call.requests.next().await? {
        // The thread says why.
        if pieces.send(data).await.is_err() {
            break;
        }
    }
    drop(pieces);
    let written = writing.await;
    let written = written.map_err(|error| Status::unknown(error.to_string()))?;
    let file = written.map_err(failed)?;
    match file {
        Some(file) => file.finish().map_err(failed),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_say_what_they_are_about() {
        let annotations = ["a.b=c=d", "index,manifest[linux/arm64]:x=y"];
        let exporter = Output::image(false).exporter(&[], &annotations.map(str::to_owned));
        let attrs = exporter.map_err(|failure| failure.text).unwrap().attrs;
        assert_eq!(attrs["annotation.a.b"], "c=d");
        assert_eq!(attrs["annotation-index.x"], "y");
        assert_eq!(attrs["annotation-manifest[linux/arm64].x"], "y");
    }

    #[test]
    fn outputs_have_a_type_and_a_place() {
        let one = |text: &str| Output::parse(text).map_err(|failure| failure.text);
        for (text, kind, place) in [
            ("out", "local", Place::File("out".into())),
            ("type=local,dest=out", "local", Place::File("out".into())),
            ("type=oci,dest=x.tar", "oci", Place::File("x.tar".into())),
            ("type=docker", "moby", Place::Engine),
            ("type=image,name=x", "moby", Place::Engine),
        ] {
            let found = one(text).unwrap();
            assert_eq!((&*found.kind, found.place), (kind, place), "{text}");
        }
        assert!(one("type=registry").unwrap().is_pushed);
        assert!(one("type=image,push=true").unwrap().is_pushed);
        for (text, expected) in [
            ("dest=x", "type is required"),
            (
                "type=image,push=maybe",
                "non-bool value specified for push: \"maybe\"",
            ),
            ("/etc/passwd", "destination directory /etc/passwd is a file"),
            (
                "type=tar,dest=/none/x.tar",
                "invalid destination /none/x.tar: no such file or directory",
            ),
            (
                "type=local,dest=/etc/passwd/x/y",
                "invalid destination /etc/passwd/x/y: not a directory",
            ),
            ("type=local,dest=-", "cannot be stdout"),
            ("type=oci,tar=false", "dest is required for oci exporter"),
            ("type=docker,tar=0", "dest is required for docker exporter"),
            (
                "type=oci,tar=false,dest=-",
                "dest cannot be stdout for oci exporter",
            ),
            (
                "type=oci,tar=false,dest=/etc/passwd",
                "destination directory /etc/passwd is a file",
            ),
            (
                "type=none",
                "exporter \"none\" could not be found; the types are",
            ),
            ("type=tar,dest=/tmp", "directory /tmp exists"),
            ("type=image,dest=x", "has no dest"),
        ] {
            let failed = one(text).unwrap_err();
            assert!(failed.contains(expected), "{failed}");
        }
        assert!(one("type=local,dest=/tmp/not/there/yet").is_ok());
        let layout = one("type=oci,tar=false,dest=/tmp/not/there/yet").unwrap();
        assert_eq!(layout.layout(), Some(Path::new("/tmp/not/there/yet")));
        assert!(check_file("").is_ok() && check_file("/dev/null").is_ok());
        for (path, expected) in [
            ("/none/x", "write /none/x: no such file or directory"),
            ("/tmp", "write /tmp: is a directory"),
            ("/etc/passwd/x", "write /etc/passwd/x: not a directory"),
        ] {
            assert_eq!(check_file(path).unwrap_err().text, expected);
        }
        let pushed = one("type=registry").unwrap();
        assert!(pushed.check(&[]).is_err() && pushed.check(&["x".into()]).is_ok());
        assert!(one("type=registry,name=x").unwrap().check(&[]).is_ok());
        assert!(one("type=image").unwrap().check(&[]).is_ok());
        let both = parse(&["-".into(), "-".into()], false, false);
        assert!(both.is_err());
        assert_eq!(parse(&[], true, true).unwrap().len(), 1);
        assert_eq!(parse(&["x".into()], true, false).unwrap().len(), 2);
        for (text, load, push, count) in [
            ("type=cacheonly", false, false, 0),
            ("type=cacheonly", true, false, 1),
            ("type=cacheonly", false, true, 1),
            // A directory.
            ("cacheonly", false, false, 1),
        ] {
            assert_eq!(parse(&[text.into()], load, push).unwrap().len(), count);
        }
    }

    #[test]
    fn files_that_are_replaced_may_be_read_only() {
        use std::os::unix::fs::PermissionsExt as _;

        let scratch = whelk_sys::Scratch::temporary("outputs").unwrap();
        let file = scratch.path().join("file");
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o444)).unwrap();
        assert!(check_replaceable(&file).is_ok());
        // Root may write to all of them.
        let may_write = access(&file, Access::WRITE_OK).is_ok();
        assert_eq!(check_writable(&file).is_ok(), may_write);
        let missing = check_replaceable(&scratch.path().join("none/file"));
        assert!(missing.is_err() && check_replaceable(Path::new("/dev/null")).is_ok());
    }
}
