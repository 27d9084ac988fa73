//! Frontends: programs in images that turn what a client has into definitions.
//!
//! A frontend is a process with a `RUN`'s confinement, whose standard input and output are a connection to whoever has started
//! it. What it writes to its files is removed when it has ended.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use whelk_dockerfile::convert::Image;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{ExecOp, Meta, Mount, NetMode, SourceOp};
use whelk_llb::{Builder as Graphs, CUSTOM_NAME, Graph, Vertex};

use crate::error::{Error, Result};
use crate::log::Log;
use crate::provenance::Capture;
use crate::request::{Request, Solved, parse_reference, replaced};
use crate::sources::Images;
use crate::{Builder, ops};

/// Number of frontends that run at the same time, apart from those that others call.
pub(crate) const MOST: usize = 64;

/// The program of an image without an entrypoint.
const PROGRAM: &str = "/run";

/// The label of an image whose frontend needs no network.
const NO_NETWORK: &str = "moby.buildkit.frontend.network.none";

/// The label with the capabilities of a frontend.
const CAPS: &str = "moby.buildkit.frontend.caps";

/// A frontend to run.
#[derive(Debug)]
pub struct Frontend {
    /// The full name of the image.
    pub name: String,
    image: Image,
    files: Arc<Solved>,
}

impl Frontend {
    /// Returns the names of the capabilities that the frontend has beyond those that all have.
    pub fn caps(&self) -> impl Iterator<Item = &str> {
        let label = self.image.config.labels.get(CAPS);
        label.map_or("", String::as_str).split(',')
    }

    /// Returns what it was made of, for the provenance.
    pub fn capture(&self) -> &Capture {
        &self.files.capture
    }

    fn op(&self, env: Vec<String>) -> ExecOp {
        let config = &self.image.config;
        let args = match config.entrypoint.as_slice() {
            [] => vec![PROGRAM.to_owned()],
            args => args.to_vec(),
        };
        let cwd = match config.working_dir.as_str() {
            "" => "/",
            directory => directory,
        };
        let needs_none = config.labels.get(NO_NETWORK);
        let needs_none = needs_none.and_then(|text| whelk_text::parse_bool(text));
        let network = match needs_none {
            Some(true) => NetMode::None,
            _ => NetMode::Unset,
        };
        ExecOp {
            meta: Some(Meta {
                args,
                env: [config.env.as_slice(), &env].concat(),
                cwd: cwd.to_owned(),
                ..Meta::default()
            }),
            mounts: vec![Mount {
                dest: "/".into(),
                output: -1,
                ..Mount::default()
            }],
            network: network.into(),
            ..ExecOp::default()
        }
    }
}

impl Builder {
    /// Returns the frontend of an image, which is pulled if it is not here.
    ///
    /// # Errors
    /// Returns an error if the image cannot be had.
    pub async fn frontend(self: &Arc<Self>, request: &Request, image: &str) -> Result<Frontend> {
        let invalid = |error: String| Error::invalid(format!("the frontend {image:?}: {error}"));
        let asked = parse_reference(image).map_err(invalid)?.full;
        let platform = crate::emulation::host();
        let mut source = SourceOp {
            identifier: format!("docker-image://{asked}"),
            ..SourceOp::default()
        };
        request.policies.evaluate(&mut source)?;
        let identifier = source.identifier.clone();
        let name = identifier.strip_prefix("docker-image://");
        let name = name
            .ok_or_else(|| replaced(&asked, &identifier))?
            .to_owned();
        let work = request
            .progress
            .begin(format!("resolve image config for {identifier}"));
        let mut images = Images::default();
        let base = images.load(self, request, &name, &platform, &work).await;
        let base = work.end(base)?;
        let config = self.configuration(&base).await?;
        images.insert(&name, Some(&platform), base);
        let image = serde_json::from_slice(&config).map_err(|error| invalid(error.to_string()))?;
        let mut graphs = Graphs::default();
        let mut vertex = Vertex::new(Kind::Source(source), Vec::new());
        vertex.platform = Some(platform);
        let description = &mut vertex.metadata.description;
        description.insert(CUSTOM_NAME.to_owned(), identifier);
        let output = graphs.add(vertex)?;
        let graph = Graph::new(graphs.definition(Some(output), None))?;
        let job = self.plan(request, graph, images).await?;
        let files = Arc::new(self.solve(&job).await?);
        Ok(Frontend { name, image, files })
    }

    /// Waits until another frontend may run. One that another frontend has called needs no turn: the other one waits for it.
    ///
    /// # Errors
    /// Returns an error if the engine ends.
    pub async fn frontend_turn(&self) -> Result<OwnedSemaphorePermit> {
        let turn = self.frontends.clone().acquire_owned().await;
        turn.map_err(|error| Error::internal(error.to_string()))
    }

    /// Runs a frontend to its end, with these variables besides those of its image. Its standard error is the output of a step.
    /// If this is dropped, it is killed.
    ///
    /// # Errors
    /// Returns an error if it cannot be started, or fails.
    pub async fn run_frontend(
        self: &Arc<Self>,
        request: &Request,
        frontend: &Frontend,
        env: Vec<String>,
        connection: OwnedFd,
    ) -> Result<()> {
        let op = frontend.op(env);
        let log = Closing(Arc::new(Log::new(&self.store().staging)));
        let name = format!("[internal] frontend {}", frontend.name);
        let work = request.progress.begin_logged(&name, &log.0);
        let (held, settings) = (frontend.files.clone(), &request.settings);
        let stack = &frontend.files.stack;
        let code = ops::connect(self, &op, stack, settings, &log.0, connection, held).await;
        drop(log);
        let ended = code.and_then(|code| match code {
            0 => Ok(()),
            code => Err(Error::Process {
                command: op.meta.unwrap_or_default().args.join(" "),
                code,
                state: None,
            }),
        });
        work.end(ended)
    }
}

/// Closes a log when it is dropped: its readers wait for more.
struct Closing(Arc<Log>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}
