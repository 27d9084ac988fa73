//! Contexts that the client does not send: URLs, git repositories, and results of other builds.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use whelk_build::Solved;
use whelk_build::provenance::attribute_without_credentials;
use whelk_buildkit::grpc::{Result, Status};
use whelk_dockerfile::convert::{RemoteContext, subdirectory};
use whelk_llb::pb::Definition;
use whelk_llb::{Digest, Graph};
use whelk_sys::in_root;
use whelk_text::parse_bool;

use super::builds::Build;
use super::{Buildkit, blocking};

/// Maximum size of a Dockerfile or an ignore file in bytes.
const MAX_TEXT: usize = 1 << 20;

/// A context that the client does not send.
pub(super) struct Remote {
    pub graph: Graph,
    /// The name of the Dockerfile, if the context is only that.
    pub filename: Option<String>,
}

fn invalid(error: impl std::fmt::Display) -> Status {
    Status::invalid(error.to_string())
}

impl Buildkit {
    /// Returns the context that attributes and inputs of a frontend name; `None` for a directory of the client.
    pub(super) async fn remote_context(
        self: &Arc<Self>,
        build: &Build,
        attributes: &BTreeMap<String, String>,
        inputs: &BTreeMap<String, Definition>,
    ) -> Result<Option<Remote>> {
        let get = |name: &str| attributes.get(name).map_or("", String::as_str);
        let name = match get("contextkey") {
            "" => "context",
            name => name,
        };
        let keep_git_dir = parse_bool(get("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR"));
        let parsed = RemoteContext::parse(get(name), keep_git_dir == Some(true));
        let mut remote = match (parsed.map_err(invalid)?, inputs.get("context")) {
            (Some(context), _) => self.fetched(build, context).await?,
            (None, _) if !get(name).is_empty() => {
                let shown = attribute_without_credentials(name, get(name));
                return Err(Status::invalid(format!("invalid context {shown}")));
            }
            (None, Some(input)) => Remote {
                graph: Graph::new(input.clone()).map_err(invalid)?,
                filename: None,
            },
            (None, None) => return Ok(None),
        };
        if !get("contextsubdir").is_empty() {
            remote.graph = subdirectory(&remote.graph, get("contextsubdir")).map_err(invalid)?;
        }
        Ok(Some(remote))
    }

    /// Looks whether the file of a URL is an archive or a Dockerfile.
    async fn fetched(self: &Arc<Self>, build: &Build, context: RemoteContext) -> Result<Remote> {
        let Some(file) = context.file else {
            return Ok(Remote {
                graph: context.graph,
                filename: None,
            });
        };
        let solved = self.solved(build, context.graph.clone()).await?;
        let buildkit = self.clone();
        let is_archive = blocking(move || {
            let found = solved.is_archive(&buildkit.builder, file);
            found.map_err(|error| Status::unknown(error.to_string()))
        });
        if is_archive.await? {
            let graph = context.unpacked().map_err(invalid)?;
            let filename = None;
            return Ok(Remote { graph, filename });
        }
        Ok(Remote {
            graph: context.graph,
            filename: Some(file.to_owned()),
        })
    }

    /// Reads texts of a context; `None` for a file that is not there.
    pub(super) async fn texts<const N: usize>(
        self: &Arc<Self>,
        build: &Build,
        graph: &Graph,
        paths: [String; N],
    ) -> Result<[Option<String>; N]> {
        let solved = self.solved(build, graph.clone()).await?;
        let buildkit = self.clone();
        let read = blocking(move || {
            let view = solved.mount(&buildkit.builder);
            let view = view.map_err(|error| Status::unknown(error.to_string()))?;
            let mut texts = paths.map(Err::<Option<String>, _>);
            for text in &mut texts {
                let Err(path) = &text else { continue };
                let found = in_root::read_regular(&view.root, Path::new(path), MAX_TEXT);
                *text = Ok(match found {
                    Ok(bytes) => {
                        let text = String::from_utf8(bytes);
                        Some(text.map_err(|_| invalid(format!("{path} is not UTF-8")))?)
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                    Err(error) => {
                        let cause = whelk_sys::errno_text(&error);
                        let text = format!("failed to read dockerfile: open {path}: {cause}");
                        return Err(Status::unknown(text));
                    }
                });
            }
            Ok(texts.map(|text| text.ok().flatten()))
        });
        read.await
    }

    /// Solves a graph, whose result stays as long as the build.
    async fn solved(self: &Arc<Self>, build: &Build, graph: Graph) -> Result<Arc<Solved>> {
        let result = graph.result.and_then(|edge| graph.nodes.get(edge.node));
        let digest = result.map_or_else(|| Digest::of(b""), |node| node.digest);
        let solving = async {
            let images = whelk_build::Images::default();
            let job = self.builder.plan(&build.request, graph, images).await?;
            self.builder.solve(&job).await.map(Arc::new)
        };
        let solved = solving.await;
        let solved = solved.map_err(|error| super::result::status(&error, None))?;
        build.keep_read(digest, solved.clone())?;
        Ok(solved)
    }
}
