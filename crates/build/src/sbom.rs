//! Bills of materials, which a program in an image makes (BuildKit's protocol of scanners).
//!
//! The scanner is a step of a build: it gets the files of the result at `/run/src/core/sbom` and those of others below
//! `/run/src/extras`, and writes in-toto statements to `/run/out`. What it writes is not trusted.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use serde_json::Value;
use whelk_dockerfile::convert::Image;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{
    ExecOp, FileAction, FileActionMkDir, FileOp, Meta, Mount, MountType, OpMetadata, Platform,
    SourceOp, file_action,
};
use whelk_llb::{Builder as Graphs, CUSTOM_NAME, Graph, Output, Vertex};
use whelk_sys::in_root;

use crate::attest::Sbom;
use crate::error::{Error, Result};
use crate::request::{Request, parse_reference};
use crate::sources::Images;
use crate::statement::Bill;
use crate::{Builder, blocking};

/// The type of a bill's predicate.
const SPDX: &str = "https://spdx.dev/Document";
const CORE: &str = "sbom";
const SOURCES: &str = "/run/src";
const DESTINATION: &str = "/run/out";

/// Maximum size of a statement in bytes, as with BuildKit.
const MAX_STATEMENT: usize = 40 << 20;
/// Maximum size of all statements of a scanner, in bytes.
const MAX_STATEMENTS: usize = 64 << 20;
/// Maximum number of statements of a scanner.
const MAX_FILES: usize = 1000;

/// What is scanned.
#[derive(Clone, Debug, Default)]
pub struct Scanned {
    /// The platform, or another name, for the progress.
    pub name: String,
    pub result: Graph,
    /// Others, by name.
    pub extras: Vec<(String, Graph)>,
    /// Whether the scan is made anew.
    pub ignores_cache: bool,
}

/// A statement as a scanner writes it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    predicate_type: String,
    #[serde(default)]
    subject: Option<Vec<Value>>,
    predicate: Value,
}

impl Builder {
    /// Makes bills of materials.
    ///
    /// # Errors
    /// Returns an error if the scanner cannot be had, fails, or writes something else than statements.
    pub async fn scan(
        self: &Arc<Self>,
        request: &Request,
        sbom: &Sbom,
        scanned: &Scanned,
    ) -> Result<Vec<Bill>> {
        let platform = crate::emulation::host();
        let generator = parse_reference(&sbom.generator);
        let generator = generator.map_err(|error| {
            let text = format!("the generator {:?} of sbom: {error}", sbom.generator);
            Error::invalid(text)
        })?;
        let name = format!("[internal] load metadata for {}", generator.full);
        let (_, config) = self
            .resolve(request, &generator.full, &platform, &name)
            .await?;
        let image: Image = serde_json::from_slice(&config).map_err(|error| {
            let text = format!("configuration of the image {}: {error}", generator.full);
            Error::invalid(text)
        })?;
        let graph = graph(sbom, scanned, &generator.full, &image, &platform)?;
        let job = self.plan(request, graph, Images::default()).await?;
        let solved = self.solve(&job).await?;
        let (builder, generator) = (self.clone(), generator.full);
        blocking(move || {
            let view = solved.mount(&builder)?;
            let read = read(&view.root, Path::new(DESTINATION));
            read.map_err(|error| Error::invalid(format!("sbom of {generator}: {error}")))
        })
        .await
    }
}

/// Returns the graph that executes the scanner.
fn graph(
    sbom: &Sbom,
    scanned: &Scanned,
    generator: &str,
    image: &Image,
    platform: &Platform,
) -> Result<Graph> {
    let args = [image.config.entrypoint.as_slice(), &image.config.cmd].concat();
    if args.is_empty() {
        let text = format!("scanner {generator} does not have cmd");
        return Err(Error::invalid(text));
    }
    let mut graphs = Graphs::default();
    let source = SourceOp {
        identifier: format!("docker-image://{generator}"),
        ..SourceOp::default()
    };
    let image_source = graphs.add(Vertex {
        platform: Some(platform.clone()),
        ..Vertex::new(Kind::Source(source), Vec::new())
    })?;
    let root = graphs.add(Vertex {
        platform: Some(platform.clone()),
        ..Vertex::new(Kind::File(destination()), vec![image_source])
    })?;
    let mut exec = Mounted {
        inputs: vec![root],
        mounts: vec![Mount {
            dest: "/".into(),
            ..Mount::default()
        }],
    };
    exec.mounts.push(Mount {
        input: -1,
        output: -1,
        dest: "/tmp".into(),
        mount_type: MountType::Tmpfs.into(),
        ..Mount::default()
    });
    let core = graphs.add_graph(&scanned.result)?;
    exec.show(core, format!("{SOURCES}/core/{CORE}"));
    for (name, extra) in &scanned.extras {
        let extra = graphs.add_graph(extra)?;
        exec.show(extra, format!("{SOURCES}/extras/{CORE}-{name}"));
    }
    let mut env = image.config.env.clone();
    env.push(format!("BUILDKIT_SCAN_DESTINATION={DESTINATION}/"));
    env.push(format!("BUILDKIT_SCAN_SOURCE={SOURCES}/core/{CORE}"));
    if !scanned.extras.is_empty() {
        env.push(format!("BUILDKIT_SCAN_SOURCE_EXTRAS={SOURCES}/extras/"));
    }
    let parameters = sbom.parameters.iter();
    env.extend(parameters.map(|(name, value)| format!("BUILDKIT_SCAN_{name}={value}")));
    let cwd = match image.config.working_dir.as_str() {
        "" => "/",
        directory => directory,
    };
    let meta = Meta {
        args,
        env,
        cwd: cwd.to_owned(),
        user: image.config.user.clone(),
        ..Meta::default()
    };
    let name = format!("[{}] generating sbom using {generator}", scanned.name);
    let op = ExecOp {
        meta: Some(meta),
        mounts: exec.mounts,
        ..ExecOp::default()
    };
    let result = graphs.add(Vertex {
        platform: Some(platform.clone()),
        metadata: OpMetadata {
            ignore_cache: scanned.ignores_cache,
            description: [(CUSTOM_NAME.to_owned(), name)].into(),
            ..OpMetadata::default()
        },
        ..Vertex::new(Kind::Exec(op), exec.inputs)
    })?;
    Ok(Graph::new(graphs.definition(Some(result), None))?)
}

/// The inputs and the mounts of a scanner.
struct Mounted {
    inputs: Vec<Output>,
    mounts: Vec<Mount>,
}

impl Mounted {
    /// Shows files, read-only. Of a result without files, the scanner sees an empty directory.
    fn show(&mut self, files: Option<Output>, dest: String) {
        let mount = match files {
            Some(output) => {
                self.inputs.push(output);
                Mount {
                    input: i64::try_from(self.inputs.len() - 1).unwrap_or(-1),
                    output: -1,
                    dest,
                    readonly: true,
                    ..Mount::default()
                }
            }
            None => Mount {
                input: -1,
                output: -1,
                dest,
                mount_type: MountType::Tmpfs.into(),
                ..Mount::default()
            },
        };
        self.mounts.push(mount);
    }
}

/// Makes the directory that a scanner writes to.
fn destination() -> FileOp {
    let make = FileActionMkDir {
        path: DESTINATION.into(),
        mode: 0o777,
        make_parents: true,
        timestamp: -1,
        ..FileActionMkDir::default()
    };
    FileOp {
        actions: vec![FileAction {
            input: 0,
            secondary_input: -1,
            output: 0,
            action: Some(file_action::Action::Mkdir(make)),
        }],
    }
}

/// Reads what a scanner has written, the bill of the result first.
fn read(root: &OwnedFd, place: &Path) -> Result<Vec<Bill>> {
    let failed = |what: &str, error: &std::io::Error| {
        let cause = whelk_sys::errno_text(error);
        Error::invalid(format!("read {what}: {cause}"))
    };
    let shown = place.display().to_string();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = in_root::open(root, place, flags, Mode::empty());
    let directory = directory.map_err(|error| failed(&shown, &error))?;
    let mut names = Vec::new();
    let entries = rustix::fs::Dir::read_from(&directory);
    for entry in entries.map_err(|error| failed(&shown, &error.into()))? {
        let entry = entry.map_err(|error| failed(&shown, &error.into()))?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let Ok(name) = String::from_utf8(name.to_vec()) else {
            return Err(Error::invalid("the name of a statement is not UTF-8"));
        };
        names.push(name);
        if names.len() > MAX_FILES {
            return Err(Error::invalid(format!("more than {MAX_FILES} statements")));
        }
    }
    // That of the result is the first.
    names.sort_by_key(|name| (name.split('.').next() != Some(CORE), name.clone()));
    let mut left = MAX_STATEMENTS;
    let mut bills = Vec::with_capacity(names.len());
    for name in names {
        let path = place.join(&name);
        let bytes = in_root::read_regular(root, &path, MAX_STATEMENT.min(left));
        let bytes = bytes.map_err(|error| failed(&name, &error))?;
        left = left.saturating_sub(bytes.len());
        bills.push(bill(&name, &bytes)?);
    }
    Ok(bills)
}

fn bill(name: &str, bytes: &[u8]) -> Result<Bill> {
    let written: Written = serde_json::from_slice(bytes).map_err(|error| {
        let text = format!("{name}: cannot decode in-toto statement: {error}");
        Error::invalid(text)
    })?;
    if written.predicate_type != SPDX {
        let text = format!(
            "bundle entry {} does not match required predicate type {SPDX}",
            written.predicate_type
        );
        return Err(Error::invalid(text));
    }
    Ok(Bill {
        file: name.to_owned(),
        kind: written.predicate_type,
        subjects: written.subject.unwrap_or_default(),
        predicate: written.predicate,
    })
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    const STATEMENT: &str = r#"{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://spdx.dev/Document","predicate":{"spdxVersion":"SPDX-2.3"}}"#;

    fn written(files: &[(&str, &str)]) -> (whelk_sys::Scratch, OwnedFd) {
        let scratch = whelk_sys::Scratch::temporary("sbom").unwrap();
        let out = scratch.path().join("run/out");
        whelk_sys::fs::create_dir_all(&out, 0o755).unwrap();
        for (name, text) in files {
            whelk_sys::fs::replace(out.join(name), text, 0o644).unwrap();
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let root = rustix::fs::open(scratch.path(), flags, Mode::empty()).unwrap();
        (scratch, root)
    }

    #[test]
    fn the_bill_of_the_result_is_the_first() {
        let files = [("a.spdx.json", STATEMENT), ("sbom.spdx.json", STATEMENT)];
        let (_scratch, root) = written(&files);
        let bills = read(&root, Path::new(DESTINATION)).unwrap();
        let names: Vec<&str> = bills.iter().map(|bill| bill.file.as_str()).collect();
        assert_eq!(names, ["sbom.spdx.json", "a.spdx.json"]);
        assert_eq!(bills[0].predicate["spdxVersion"], "SPDX-2.3");
    }

    #[test]
    fn what_is_no_statement_is_refused() {
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        let other = STATEMENT.replace("spdx.dev", "example.com");
        for (text, expected) in [
            ("", "cannot decode"),
            ("{}", "cannot decode"),
            ("no JSON", "cannot decode"),
            (deep.as_str(), "cannot decode"),
            (&format!("{STATEMENT}{{}}"), "cannot decode"),
            (&other, "does not match required predicate type"),
        ] {
            let (_scratch, root) = written(&[("sbom.spdx.json", text)]);
            let error = read(&root, Path::new(DESTINATION)).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let (scratch, root) = written(&[]);
        let out = scratch.path().join("run/out");
        assert_eq!(read(&root, Path::new(DESTINATION)).unwrap().len(), 0);
        whelk_sys::fs::create_dir_all(out.join("directory"), 0o755).unwrap();
        assert!(read(&root, Path::new(DESTINATION)).is_err());
        assert!(read(&root, Path::new("/nothing")).is_err());
    }

    #[test]
    fn links_lead_nowhere_else() {
        let (scratch, root) = written(&[]);
        let out = scratch.path().join("run/out");
        rustix::fs::symlink("/etc/hostname", out.join("sbom.spdx.json")).unwrap();
        let error = read(&root, Path::new(DESTINATION)).unwrap_err().to_string();
        assert!(error.contains("no such file or directory"), "{error}");
    }
}
