//! Bills of materials, which a program in an image makes (BuildKit's protocol of scanners).
//!
//! The scanner is a step of a build: it gets the files of the result at `/run/src/core/sbom` and those of others below
//! `/run/src/extras`, and writes in-toto statements to `/run/out`. What it writes is not trusted.

use std::path::Path;
use std::sync::Arc;

use whelk_dockerfile::convert::Image;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{
    ExecOp, FileAction, FileActionMkDir, FileOp, Meta, Mount, MountType, OpMetadata, Platform,
    SourceOp, file_action,
};
use whelk_llb::{Builder as Graphs, CUSTOM_NAME, Graph, Output, Vertex};

use crate::attest::Sbom;
use crate::bundle::{Reader, SPDX, core_first};
use crate::error::{Error, Result};
use crate::request::{Request, parse_reference};
use crate::sources::Images;
use crate::statement::Bill;
use crate::{Builder, blocking};

const CORE: &str = "sbom";
const SOURCES: &str = "/run/src";
const DESTINATION: &str = "/run/out";

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
        let resolved = self
            .resolve(request, &generator.full, &platform, &name)
            .await?;
        let image: Image = serde_json::from_slice(&resolved.config).map_err(|error| {
            let text = format!("configuration of the image {}: {error}", generator.full);
            Error::invalid(text)
        })?;
        let graph = graph(sbom, scanned, &resolved.reference, &image, &platform)?;
        let job = self.plan(request, graph, Images::default()).await?;
        let solved = self.solve(&job).await?;
        let (builder, generator) = (self.clone(), generator.full);
        blocking(move || {
            let view = solved.mount(&builder)?;
            let read = Reader::default().bundle(&view.root, Path::new(DESTINATION), SPDX);
            let mut bills =
                read.map_err(|error| Error::invalid(format!("sbom of {generator}: {error}")))?;
            core_first(&mut bills, CORE);
            Ok(bills)
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
