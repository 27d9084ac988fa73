//! Definitions on a server: a git repository, an archive or one file, which the engine fetches.
//!
//! ```text
//! URL ─► source ─ engine ─► definitions, and files that they name
//!           └─► contexts of targets: directories of the source
//! ```

use tokio::runtime::Handle;
use whelk_bake::paths::clean;
use whelk_bake::{DEFAULT_FILES, File, Target};
use whelk_buildkit::grpc::Status;
use whelk_buildkit::pb::control::SolveRequest;
use whelk_buildkit::pb::gateway::{self, Ref, result};
use whelk_dockerfile::convert::{RemoteContext, subdirectory};
use whelk_llb::pb::Definition;
use whelk_llb::{Builder, Graph};

use super::bridge::Bridge;
use super::files::MAX_FILE;
use super::target;
use crate::client::Client;
use crate::commands::build::display::Display;
use crate::commands::build::{connect, is_archive, open_credentials, solve_failure, watched};
use crate::{Failure, Outcome};

/// How much of a file is read to see whether it is an archive, in bytes.
const HEAD: i64 = 512;

/// Where definitions are.
pub(super) struct Remote {
    pub url: String,
    /// What is around them; `None` if they are the file of a URL.
    files: Option<Graph>,
}

/// Definitions of a server.
pub(super) struct Found {
    pub remote: Remote,
    pub files: Vec<File>,
    /// `None` if there is nothing around them.
    pub fetched: Option<Fetched>,
}

/// The result that definitions were read from.
pub(super) struct Fetched {
    bridge: Bridge,
    reference: String,
}

impl Remote {
    /// Fetches definitions: those with these names, or those with the usual ones that are there.
    ///
    /// # Errors
    /// Returns an error if the URL cannot be fetched, and for a file that is not there.
    pub async fn read(
        client: &Client,
        url: &str,
        names: &[String],
        display: Display,
    ) -> Outcome<Found> {
        let source = RemoteContext::parse(url, false);
        let source = source.map_err(|error| invalid(url, &error.to_string()))?;
        let source = source.ok_or_else(|| invalid(url, "neither a repository nor a URL"))?;
        let agents = match source.file {
            None if target::is_git_ssh(url) => target::git_agent().into_iter().collect(),
            _ => Vec::new(),
        };
        let session = open_credentials(client, &target::git_secrets(None), &agents).await?;
        let channel = connect(client).await?;
        let bridge = Bridge::open(&channel, session, Vec::new())?;
        let build = bridge.id().to_owned();
        let fetching = Self::fetch(bridge, &source, url, names);
        watched(&channel, &build, display, fetching).await
    }

    async fn fetch(
        mut bridge: Bridge,
        source: &RemoteContext,
        url: &str,
        names: &[String],
    ) -> Outcome<Found> {
        let mut files = source.graph.clone();
        let mut reference = solved(&mut bridge, &files).await?;
        if let Some(file) = source.file {
            let head = bridge.read(&reference, file, HEAD).await;
            let head = head.map_err(|status| solve_failure(&status))?;
            if !is_archive(&head.unwrap_or_default()) {
                // The name that the file has in the result says nothing.
                let name = RemoteContext::shown(url);
                let content = content(&bridge, &reference, file, &name).await?;
                let content = content.ok_or_else(|| invalid(url, "it has no content"))?;
                if is_page(&content) {
                    return Err(invalid(url, "it is no definition, but a page in HTML"));
                }
                let url = url.to_owned();
                return Ok(Found {
                    remote: Self { url, files: None },
                    files: vec![File { name, content }],
                    fetched: None,
                });
            }
            let unpacked = source.unpacked();
            files = unpacked.map_err(|error| invalid(url, &error.to_string()))?;
            reference = solved(&mut bridge, &files).await?;
        }
        let mut found = Vec::new();
        let usual = DEFAULT_FILES.map(str::to_owned);
        let wanted: &[String] = if names.is_empty() { &usual } else { names };
        for name in wanted {
            match content(&bridge, &reference, name, name).await? {
                Some(content) => found.push(File {
                    name: name.clone(),
                    content,
                }),
                None if names.is_empty() => {}
                None => {
                    return Err(Failure::new(format!(
                        "open {name}: no such file or directory in {}",
                        RemoteContext::shown(url)
                    )));
                }
            }
        }
        let remote = Self {
            url: url.to_owned(),
            files: Some(files),
        };
        Ok(Found {
            remote,
            files: found,
            fetched: Some(Fetched { bridge, reference }),
        })
    }

    /// Returns the flags of the secrets that targets have their repositories fetched with: only those of the definitions' server, as
    /// the definitions may name any other one.
    pub fn secrets(&self) -> Vec<String> {
        let host = RemoteContext::host(&self.url);
        host.map_or_else(Vec::new, |host| target::git_secrets(Some(&host)))
    }

    /// Whether relative paths of definitions are those of the server.
    pub fn has_files(&self) -> bool {
        self.files.is_some()
    }

    /// Puts directories of the server into the request of a target that has them as contexts.
    pub fn put(&self, target: &Target, request: &mut SolveRequest) -> Outcome<()> {
        let Some(files) = &self.files else {
            return Ok(());
        };
        let directory = |path: &str| {
            let failed = |error: String| Failure::new(format!("context {path}: {error}"));
            let graph = subdirectory(files, path).map_err(|error| failed(error.to_string()))?;
            definition(&graph)
        };
        if target.is_remote {
            let path = target.context.as_deref().unwrap_or(".");
            let inputs = &mut request.frontend_inputs;
            let context = directory(path)?;
            inputs.insert("dockerfile".into(), context.clone());
            inputs.insert("context".into(), context);
        }
        for (name, value) in &target.contexts {
            if !target::is_beside(value) {
                continue;
            }
            let key = format!("files:{name}");
            let value = directory(&clean(value))?;
            request.frontend_inputs.insert(key.clone(), value);
            let attribute = format!("context:{}", name.to_lowercase());
            let attributes = &mut request.frontend_attrs;
            attributes.insert(attribute, format!("input:{key}"));
        }
        Ok(())
    }
}

impl Fetched {
    /// Reads a file that a definition names. Returns `None` if there is none. Blocking.
    ///
    /// # Errors
    /// Returns a text for what cannot be read.
    pub fn read(&self, handle: &Handle, path: &str) -> Result<Option<String>, String> {
        let read = handle.block_on(content(&self.bridge, &self.reference, path, path));
        read.map_err(|failure| failure.text)
    }
}

fn invalid(url: &str, cause: &str) -> Failure {
    Failure::new(format!("{}: {cause}", RemoteContext::shown(url)))
}

/// Has the engine fetch files, and returns the reference of the result.
async fn solved(bridge: &mut Bridge, files: &Graph) -> Outcome<String> {
    let request = gateway::SolveRequest {
        definition: Some(definition(files)?),
        allow_result_return: true,
        allow_result_array_ref: true,
        evaluate: true,
        ..gateway::SolveRequest::default()
    };
    let answer = bridge.solve(&request).await;
    let answer = answer.map_err(|status| solve_failure(&status))?;
    match answer.result.and_then(|result| result.kind) {
        Some(result::Kind::Ref(Ref { id, .. })) => Ok(id),
        _ => Err(solve_failure(&Status::unknown("the result has no files"))),
    }
}

/// Whether the text of a URL is what servers answer to browsers. No definition begins like that.
fn is_page(text: &str) -> bool {
    let start = text.trim_start_matches('\u{feff}').trim_start();
    start.starts_with('<')
}

/// Reads a text of a result, which errors call `name`; `None` if there is no such file.
async fn content(
    bridge: &Bridge,
    reference: &str,
    path: &str,
    name: &str,
) -> Outcome<Option<String>> {
    let most = i64::try_from(MAX_FILE).unwrap_or(i64::MAX);
    let read = bridge.read(reference, path, most + 1).await;
    let failed = |status: Status| Failure::new(format!("read {name}: {}", status.message));
    let Some(content) = read.map_err(failed)? else {
        return Ok(None);
    };
    if content.len() as u64 > MAX_FILE {
        return Err(Failure::new(format!(
            "{name} has more than {MAX_FILE} bytes"
        )));
    }
    let text = super::files::text(name, content);
    text.map(Some).map_err(Failure::new)
}

fn definition(graph: &Graph) -> Outcome<Definition> {
    let mut builder = Builder::default();
    let output = builder
        .add_graph(graph)
        .map_err(|error| Failure::new(error.to_string()))?;
    Ok(builder.definition(output, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_no_definitions() {
        assert!(is_page("\u{feff}\n<!DOCTYPE html>") && is_page("<html>"));
        assert!(!is_page("# <b>\ntarget \"a\" {}") && !is_page("{}") && !is_page(""));
    }

    impl Remote {
        /// Returns the definitions of a repository.
        pub fn at(url: &str) -> Self {
            let source = RemoteContext::parse(url, false).unwrap().unwrap();
            Self {
                url: url.to_owned(),
                files: Some(source.graph),
            }
        }
    }

    #[test]
    fn credentials_are_not_told() {
        let failed = invalid("https://u:secret@h/a.hcl?key=secret", "it has no content");
        assert_eq!(failed.text, "https://h/a.hcl: it has no content");
    }

    #[test]
    fn directories_of_the_server_are_contexts() {
        let remote = Remote::at("https://h/a.git");
        let contexts = [
            ("Src", "./src"),
            ("local", "cwd://x"),
            ("base", "target:base"),
            ("image", "docker-image://x"),
        ];
        let contexts = contexts.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let target = Target {
            context: Some("app".into()),
            contexts: contexts.into(),
            is_remote: true,
            ..Target::default()
        };
        let mut request = SolveRequest::default();
        remote.put(&target, &mut request).unwrap();
        let inputs: Vec<&String> = request.frontend_inputs.keys().collect();
        assert_eq!(inputs, ["context", "dockerfile", "files:Src"]);
        assert_eq!(request.frontend_attrs["context:src"], "input:files:Src");
        assert_eq!(request.frontend_attrs.len(), 1);
        // The source, the copy, and the result.
        assert_eq!(request.frontend_inputs["context"].def.len(), 3);
    }
}
