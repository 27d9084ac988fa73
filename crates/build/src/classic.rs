//! Classic builds (`POST /build`): a context in an archive, and a stream of texts.

mod words;

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use whelk_dockerfile::convert::{Conversion, MainContext, Options, RemoteContext, ResolveMode};
use whelk_dockerfile::lint::Linter;
use whelk_dockerfile::{Instruction, Stage, Stages};
use whelk_engine::model::{HostConfig, NetworkMode};
use whelk_image::{Digest, Platform, Reference};
use whelk_llb::Graph;
use whelk_llb::pb;
use whelk_registry::Credentials;
use whelk_text::extra_host;

use crate::client::Client;
use crate::directory::Directory;
use crate::entitlements::{Entitlements, NETWORK_HOST};
use crate::error::{Error, Result};
use crate::failed::FailedSteps;
use crate::ops::Settings;
use crate::policy::Policies;
use crate::progress::{EventKind, Follower, Progress, Work};
use crate::request::Request as CommonRequest;
use crate::solver::Job;
use crate::sources::http::redacted;
use crate::transfer::{Import, Imports};
use crate::{Builder, blocking};

pub use words::Message;
pub(crate) use words::Settled;

/// The source that the context is.
const CONTEXT: &str = "local://context";

/// A classic build.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The path of the Dockerfile in the context.
    pub dockerfile: String,
    /// The URL of the context, instead of what comes with the request.
    pub remote: String,
    pub names: Vec<Reference>,
    /// Without a value: that of the client's environment, which it does not have.
    pub build_args: BTreeMap<String, Option<String>>,
    pub labels: BTreeMap<String, String>,
    pub target: String,
    pub platform: Option<Platform>,
    pub no_cache: bool,
    /// Whether base images are pulled although they are here.
    pub pull: bool,
    /// Whether only the image's id is written.
    pub quiet: bool,
    /// Whether the output says that intermediate containers are removed.
    pub remove: bool,
    pub network: NetworkMode,
    /// `NAME:ADDRESS`
    pub extra_hosts: Vec<String>,
    /// Limits of memory and processors, the size of `/dev/shm`, and the limits of processes.
    pub limits: HostConfig,
    /// By the registry's name.
    pub credentials: BTreeMap<String, Credentials>,
    /// Names of images whose inline caches are used. If none of them can be had, nothing is taken from the cache, as in Docker.
    pub cache_from: Vec<String>,
}

/// A build whose context and Dockerfile were read.
#[derive(Debug)]
pub struct Prepared {
    request: Request,
    text: String,
    ignore: Vec<String>,
    context: Directory,
}

impl Builder {
    /// Receives the context of a build, and parses the Dockerfile. Nothing has been written to the client yet.
    ///
    /// # Errors
    /// Returns an error if the archive is invalid, if it has no such Dockerfile, or if that is wrong.
    pub async fn prepare(
        self: &Arc<Self>,
        request: Request,
        archive: impl Read + Send + 'static,
    ) -> Result<Prepared> {
        if !request.remote.is_empty() {
            return self.prepare_remote(request).await;
        }
        let builder = self.clone();
        blocking(move || {
            let context = Directory::unpack(builder.store(), archive)?;
            let mut path = request.dockerfile_path();
            let text = dockerfile_in(&context, &mut path)?;
            let mut ignore = Vec::new();
            for file in [format!("{path}.dockerignore"), ".dockerignore".to_owned()] {
                if let Some(text) = context.read(&file)? {
                    ignore = whelk_dockerfile::ignore::checked(&file, &text)?;
                    break;
                }
            }
            context.ignore(&ignore)?;
            check(&path, &text, &request.target)?;
            Ok(Prepared {
                request: Request {
                    dockerfile: path,
                    ..request
                },
                text,
                ignore,
                context,
            })
        })
        .await
    }

    /// Fetches the context of a build. Ignore files in it count for nothing, as in Docker.
    async fn prepare_remote(self: &Arc<Self>, request: Request) -> Result<Prepared> {
        let remote = &request.remote;
        if remote == "client-session" {
            return Err(Error::invalid(
                "experimental session with v1 builder is no longer supported, use builder version v2 (BuildKit) instead",
            ));
        }
        let context = RemoteContext::parse(remote, false)?;
        let context = context.ok_or_else(|| {
            Error::invalid(format!(
                "remoteURL ({remote}) could not be recognized as URL"
            ))
        })?;
        let client = Archive {
            directory: None,
            credentials: BTreeMap::new(),
        };
        let work = Progress::default().begin("download the context");
        let found = self.fetch_context(&client, &context.graph, &work).await;
        let found = found.map_err(|error| match error {
            Error::Invalid(text) => {
                let url = redacted(remote);
                Error::Invalid(format!("error downloading remote context {url}: {text}"))
            }
            other => other,
        });
        let fetched = work.end(found)?;
        let builder = self.clone();
        blocking(move || {
            let mut path = request.dockerfile_path();
            let context = match context.file {
                None => fetched,
                Some(file) if crate::ops::is_archive(&fetched.open()?, file)? => {
                    Directory::unpack(builder.store(), fetched.open_file(file)?)?
                }
                // What is no archive is the Dockerfile.
                Some(file) => {
                    file.clone_into(&mut path);
                    fetched
                }
            };
            let text = dockerfile_in(&context, &mut path)?;
            check(&path, &text, &request.target)?;
            Ok(Prepared {
                request: Request {
                    dockerfile: path,
                    ..request
                },
                text,
                ignore: Vec::new(),
                context,
            })
        })
        .await
    }

    /// Builds an image, and sends the texts of its steps. Returns its id. If it is dropped, the build is
    /// cancelled.
    ///
    /// # Errors
    /// Returns why a step has failed.
    pub async fn build(
        self: &Arc<Self>,
        prepared: Prepared,
        messages: mpsc::Sender<Message>,
    ) -> Result<Digest> {
        let progress = Progress::default();
        let follower = progress.follow();
        let work = async {
            let built = self.build_with(prepared, &messages, &progress).await;
            progress.close();
            built
        };
        tokio::join!(work, pulls(follower, &messages)).0
    }

    async fn build_with(
        self: &Arc<Self>,
        prepared: Prepared,
        messages: &mpsc::Sender<Message>,
        progress: &Progress,
    ) -> Result<Digest> {
        let Prepared {
            request,
            text,
            ignore,
            context,
        } = prepared;
        let mut request = self.with_own_settings(request);
        let rights = match request.network {
            NetworkMode::Host => vec![NETWORK_HOST.to_owned()],
            _ => Vec::new(),
        };
        let entitlements = Entitlements::parse(&rights, self.allowed)?;
        let options = options(&request, ignore);
        let imports = request.cache_from.iter().map(|image| Import::Registry {
            reference: image.clone(),
        });
        let common = CommonRequest {
            client: Arc::new(Archive {
                directory: Some(context),
                credentials: request.credentials.clone(),
            }),
            project: String::new(),
            is_explained: false,
            imports: Imports::new(imports),
            has_inline_cache: false,
            failed: FailedSteps::default(),
            policies: Policies::default(),
            settings: Settings {
                keeps_failed: false,
                network: request.network.clone(),
                entitlements,
                limits: request.limits.clone(),
            },
            resolve: options.resolve_mode,
            progress: progress.clone(),
        };
        let planned = self.planned(&common, &text, &options).await;
        let mut planned = planned.map_err(|error| of_copy(error, &text))?;
        if self.lacks_images(&request, &common.imports) {
            let options = Options {
                no_cache: Some(Vec::new()),
                ..options
            };
            planned = self.planned(&common, &text, &options).await?;
            request.no_cache = true;
        }
        let (conversion, job) = planned;
        let failures = common.imports.failures().iter();
        for failure in failures.filter(|_| !request.quiet) {
            let text = format!("[Warning] the build cache cannot be used: {failure}\n");
            let _ = messages.send(Message::Text(text)).await;
        }
        let script = {
            let (request, job) = (request.clone(), job.clone());
            blocking(move || words::Script::new(&text, &request, &job)).await?
        };
        // The texts follow the steps of the build, so that both end with it.
        let told = script.tell(&job, &self.settled, messages);
        let (solved, ()) = tokio::join!(self.solve(&job), told);
        let solved = solved?;
        let is_described = !conversion.image.history.is_empty() || !request.labels.is_empty();
        if !is_described && solved.stack.0.is_empty() {
            let text = "No image was generated. Is your Dockerfile empty?";
            return Err(Error::invalid(text));
        }
        let names = request.names.clone();
        self.export(&solved, conversion.image, conversion.epoch, names)
            .await
    }
}

impl Builder {
    /// Converts a Dockerfile, and looks up what the cache has.
    async fn planned(
        self: &Arc<Self>,
        common: &CommonRequest,
        text: &str,
        options: &Options,
    ) -> Result<(Conversion, Arc<Job>)> {
        let converted = self.convert(common, text, options).await?;
        let definition = converted.conversion.definition.clone();
        let graph = blocking(move || Ok(Graph::new(definition)?)).await?;
        let job = self.plan(common, graph, converted.images).await?;
        Ok((converted.conversion, job))
    }

    /// Whether a request names images for its cache, and none of them can be had.
    fn lacks_images(&self, request: &Request, imports: &Imports) -> bool {
        let names = &request.cache_from;
        let is_here = |name: &String| self.engine.images.find(name).is_ok();
        !names.is_empty() && imports.failures().len() == names.len() && !names.iter().any(is_here)
    }

    /// Replaces `host-gateway` by the addresses of this engine.
    fn with_own_settings(&self, mut request: Request) -> Request {
        let hosts = request.extra_hosts.iter().flat_map(|host| {
            let Some((name, address)) = extra_host::split(host) else {
                return vec![host.clone()];
            };
            let addresses = extra_host::addresses(address, || self.engine.networks.host_gateway());
            let hosts = addresses.iter().map(|address| format!("{name}={address}"));
            hosts.collect()
        });
        request.extra_hosts = hosts.collect();
        request
    }
}

impl Request {
    fn dockerfile_path(&self) -> String {
        match self.dockerfile.as_str() {
            "" => DEFAULT.to_owned(),
            path => path.to_owned(),
        }
    }
}

/// The name of a Dockerfile, unless the request names another.
const DEFAULT: &str = "Dockerfile";
/// In Docker, a context's file with this name stands for one with the default name.
const LOWER_CASE: &str = "dockerfile";

/// Reads the Dockerfile of a context. `path` is set to the one that was found.
fn dockerfile_in(context: &Directory, path: &mut String) -> Result<String> {
    let mut found = context.read(path)?;
    if found.is_none() && path.as_str() == DEFAULT {
        found = context.read(LOWER_CASE)?;
        if found.is_some() {
            LOWER_CASE.clone_into(path);
        }
    }
    found.ok_or_else(|| Error::invalid(format!("Cannot locate specified Dockerfile: {path}")))
}

/// Checks a Dockerfile as far as Docker does before it answers.
fn check(path: &str, text: &str, target: &str) -> Result<()> {
    if text.is_empty() {
        let text = format!("the Dockerfile ({path}) cannot be empty");
        return Err(Error::invalid(text));
    }
    let parsed = whelk_dockerfile::parse(text);
    let parsed =
        parsed.map_err(|error| Error::invalid(format!("failed to parse Dockerfile: {error}")))?;
    let stages = Stages::parse(&parsed, &mut Linter::default())?.stages;
    if stages.is_empty() {
        return Err(Error::invalid("no build stage in current context"));
    }
    let is_target = |stage: &Stage| stage.name.eq_ignore_ascii_case(target);
    let number = target.parse::<usize>().ok();
    let is_known = number.is_some_and(|number| number < stages.len());
    if !target.is_empty() && !is_known && !stages.iter().any(is_target) {
        let text = format!("target stage {target:?} could not be found");
        return Err(Error::invalid(text));
    }
    for step in stages.iter().flat_map(|stage| &stage.steps) {
        let files = match &step.instruction {
            Instruction::Add(add) => &add.files,
            Instruction::Copy(copy) => &copy.files,
            _ => continue,
        };
        let is_directory = |path: &str| path.ends_with('/') || matches!(path, "." | "..");
        let count = files.sources.len() + files.documents.len();
        // Variables are replaced later.
        if count > 1 && !is_directory(&files.destination) && !files.destination.contains('$') {
            let name = step.name.to_uppercase();
            return Err(Error::invalid(format!(
                "When using {name} with more than one source file, the destination must be a directory and end with a /"
            )));
        }
    }
    Ok(())
}

/// Returns the error of a build in Docker's words, if it is about an image that a COPY names.
fn of_copy(error: Error, text: &str) -> Error {
    let Error::Unavailable { place, cause } = &error else {
        return error;
    };
    let stages = whelk_dockerfile::parse(text)
        .and_then(|parsed| Stages::parse(&parsed, &mut Linter::default()));
    let stages = stages.map(|parsed| parsed.stages).unwrap_or_default();
    let mut steps = stages.iter().flat_map(|stage| &stage.steps);
    let name = steps.find_map(|step| match &step.instruction {
        Instruction::Copy(copy) if place.lines.contains(&step.lines) => Some(copy.from.clone()),
        _ => None,
    });
    match name {
        Some(name) => Error::invalid(format!("invalid from flag value {name}: {}", cause.root())),
        None => error,
    }
}

/// A client whose context came with the request.
#[derive(Debug)]
struct Archive {
    directory: Option<Directory>,
    credentials: BTreeMap<String, Credentials>,
}

impl Client for Archive {
    fn directory<'a>(
        &'a self,
        source: &'a pb::SourceOp,
        _work: &'a Work,
    ) -> BoxFuture<'a, Result<Directory>> {
        let is_context = source.identifier == CONTEXT;
        let directory = self.directory.clone().filter(|_| is_context);
        let missing = || Error::Unsupported(format!("the source {}", source.identifier));
        Box::pin(async move { directory.ok_or_else(missing) })
    }

    fn credentials<'a>(&'a self, registry: &'a str) -> BoxFuture<'a, Result<Credentials>> {
        let found = self.credentials.get(registry).cloned();
        Box::pin(async move { Ok(found.unwrap_or_default()) })
    }
}

/// Passes the progress of pulls on, until the build has ended.
async fn pulls(mut follower: Follower, messages: &mpsc::Sender<Message>) {
    while let Some(event) = follower.next().await {
        if let EventKind::Pull(update) = event.kind {
            // A slow client misses reports instead of delaying the build.
            let _ = messages.try_send(Message::Pull(update));
        }
    }
}

fn options(request: &Request, ignore: Vec<String>) -> Options {
    let host = crate::emulation::host();
    let args = request.build_args.iter();
    let args = args.filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
    let ulimit = |limit: &whelk_engine::model::Ulimit| pb::Ulimit {
        name: limit.name.clone(),
        soft: limit.soft,
        hard: limit.hard,
    };
    let hosts = request.extra_hosts.iter();
    let hosts = hosts.filter_map(|host| host.split_once([':', '=']));
    Options {
        target: request.target.clone(),
        build_args: args.collect(),
        labels: request.labels.clone(),
        platform: request.platform.as_ref().map(|platform| {
            pb::Platform::new(&platform.os, &platform.architecture, &platform.variant)
        }),
        // Those that are the same for all builds are part of the operations, and so of their keys.
        network: match &request.network {
            NetworkMode::Host => pb::NetMode::Host,
            NetworkMode::None => pb::NetMode::None,
            _ => pb::NetMode::Unset,
        },
        no_cache: request.no_cache.then(Vec::new),
        resolve_mode: match request.pull {
            true => ResolveMode::Pull,
            false => ResolveMode::Default,
        },
        extra_hosts: hosts
            .map(|(name, address)| (name.to_owned(), address.to_owned()))
            .collect(),
        ulimits: request
            .limits
            .ulimits
            .iter()
            .flatten()
            .map(ulimit)
            .collect(),
        context: MainContext::Local {
            name: "context".into(),
            ignore,
        },
        filename: request.dockerfile.clone(),
        ..Options::new(host, crate::parse_reference)
    }
}
