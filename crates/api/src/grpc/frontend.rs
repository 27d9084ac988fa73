//! The Dockerfile frontend: attributes of a client in, a reference out.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use whelk_build::emulation::host;
use whelk_build::provenance::FrontendCall;
use whelk_build::{Directory, Error, Request, parse_reference};
use whelk_buildkit::grpc::{Result, Status};
use whelk_buildkit::pb::gateway::Result as FrontendResult;
use whelk_buildkit::session::FilesRequest;
use whelk_dockerfile::convert::{
    Answer, Answers, Config, ContextInput, DEFAULT_PATH, Image, MainContext, Options,
    Request as Ask, check, file_definition,
};
use whelk_dockerfile::lint::{Linter, Warning};
use whelk_dockerfile::{Stages, report};
use whelk_engine::model::NetworkMode;
use whelk_image::Platform;
use whelk_llb::Graph;
use whelk_llb::pb::{self, Definition, SourceInfo};
use whelk_sys::sync::IgnorePoison as _;

use super::builds::{Build, Origin, Reference};
use super::client::{Sent, SessionClient};
use super::gateway;
use super::result::of_frontend;
use super::scope::Scope;
use super::{Buildkit, blocking};

type Attributes = BTreeMap<String, String>;

/// What a client may demand of the frontend.
const CAPS: [&str; 4] = [
    "moby.buildkit.frontend.contexts",
    "moby.buildkit.frontend.subrequests",
    "moby.buildkit.frontend.inputs",
    "moby.buildkit.frontend.gitquerystring",
];

/// Returns the configuration of a result that has none.
pub(super) fn default_image() -> Image {
    let host = Platform::host();
    Image {
        architecture: host.architecture,
        os: host.os,
        variant: host.variant,
        config: Config {
            env: vec![format!("PATH={DEFAULT_PATH}")],
            working_dir: "/".into(),
            ..Config::default()
        },
        ..Image::default()
    }
}

/// A Dockerfile and how it is converted.
struct Prepared {
    text: String,
    options: Options,
    file: SourceInfo,
    /// The platforms to build for. There is a result for each, unless none is named.
    platforms: Vec<pb::Platform>,
    /// Directories of the client that were read for it.
    locals: Vec<String>,
}

/// What is said of a directory that a client does not have, by clients as text only, and of a client without directories.
const NO_DIRECTORY: [&str; 2] = ["no access allowed to dir", "no local sources enabled"];

/// Maximum number of platforms of a build.
const MAX_PLATFORMS: usize = 64;

/// A Dockerfile, the step that has read it, and the ignore file beside it.
struct Texts {
    vertex: whelk_llb::Digest,
    text: Option<String>,
    ignore: Option<String>,
}

/// A call of a frontend.
pub(super) struct FrontendRequest<'a> {
    /// `dockerfile.v0`, or `gateway.v0` for the one of an image.
    pub frontend: &'a str,
    pub attributes: &'a Attributes,
    pub inputs: &'a BTreeMap<String, Definition>,
    pub request: Request,
}

impl Buildkit {
    /// Runs a frontend for another one, which has this scope.
    pub(super) async fn frontend(
        self: &Arc<Self>,
        build: &Arc<Build>,
        scope: &Scope,
        called: FrontendRequest<'_>,
    ) -> Result<FrontendResult> {
        let (frontend, attributes, inputs) = (called.frontend, called.attributes, called.inputs);
        match frontend {
            "dockerfile.v0" => {}
            "gateway.v0" => {
                let source = attributes.get("source");
                let source =
                    source.ok_or_else(|| Status::invalid("no source specified for gateway"))?;
                if !gateway::is_own(source) {
                    let parsed = Options::from_attributes(attributes, host(), parse_reference);
                    let (options, _) =
                        parsed.map_err(|error| Status::unknown(error.to_string()))?;
                    let request = self.requested(build, scope, &called, &options).await?;
                    let called = FrontendRequest { request, ..called };
                    return self.gateway(build, scope, source, called).await;
                }
            }
            _ => {
                return Err(Status::invalid(format!(
                    "invalid frontend: {frontend}; the frontends are dockerfile.v0 and gateway.v0"
                )));
            }
        }
        let get = |name: &str| attributes.get(name).map_or("", String::as_str);
        let mut caps = get("frontend.caps").split(',');
        let unknown = caps.find(|cap| {
            let name = cap.split('+').next().unwrap_or_default();
            !name.is_empty() && !CAPS.contains(&name)
        });
        // The frontend that the request is forwarded to may know it.
        let is_unknown = |cap: &&str| !cap.contains("+forward");
        if let Some(cap) = unknown.filter(is_unknown) {
            return Err(without_cap(cap));
        }
        let prepared = self.prepare(build, attributes, inputs).await?;
        let request = self.requested(build, scope, &called, &prepared.options);
        let request = request.await?;
        if let Some(syntax) = gateway::Syntax::find(attributes, &prepared.text) {
            let called = FrontendRequest { request, ..called };
            let forwarded = self.forward(build, scope, &syntax, called);
            return forwarded
                .await
                .map_err(|status| syntax.place(status, &prepared.file));
        }
        if let Some(cap) = unknown {
            return Err(without_cap(cap));
        }
        if !get("requestid").is_empty() {
            return self.subrequest(build, get("requestid"), &prepared).await;
        }
        let call = FrontendCall {
            frontend: frontend.to_owned(),
            attributes: attributes.clone(),
            locals: prepared.locals.clone(),
        };
        let mut references = self.convert(build, &request, &prepared, &call).await?;
        if prepared.options.multi_platform {
            return self.results(scope, references);
        }
        match references.pop() {
            Some((_, reference)) => self.result(scope, reference),
            None => Err(Status::unknown("a Dockerfile without a result")),
        }
    }

    /// Converts a Dockerfile for each platform.
    async fn convert(
        self: &Arc<Self>,
        build: &Build,
        request: &Request,
        prepared: &Prepared,
        call: &FrontendCall,
    ) -> Result<Vec<(pb::Platform, Reference)>> {
        let wanted = match prepared.platforms.as_slice() {
            [] => vec![None],
            platforms => platforms.iter().cloned().map(Some).collect(),
        };
        let wanted = wanted.into_iter().enumerate();
        let mut converting = wanted.map(|(place, platform)| async move {
            let options = Options {
                platform: platform.clone(),
                // All platforms have the warnings of the first one.
                is_quiet: place > 0,
                is_scanned: build.attest.sbom.is_some(),
                ..prepared.options.clone()
            };
            let converted = self.builder.convert(request, &prepared.text, &options);
            let converted = converted.await;
            let converted = converted.map_err(|error| {
                let is_wrong = matches!(error, Error::Dockerfile(_));
                (is_wrong, of_frontend(&error, &prepared.file))
            })?;
            let conversion = converted.conversion;
            let platform = platform.unwrap_or_else(host);
            let origin = Origin {
                image: conversion.image,
                platform: platform.clone(),
                epoch: conversion.epoch,
                call: call.clone(),
                scanned: conversion.scanned,
                ignores_cache: conversion.ignore_cache,
            };
            let (definition, images) = (conversion.definition, converted.images);
            let reference = Reference::new(request.clone(), definition, images, Some(origin));
            let reference = reference.await.map_err(|status| (false, status))?;
            Ok::<_, (bool, Status)>((platform, reference))
        });
        let Some(first) = converting.next() else {
            return Ok(Vec::new());
        };
        let others = futures_util::future::try_join_all(converting);
        tokio::pin!(first, others);
        let (one, rest) = tokio::select! {
            biased;
            one = &mut first => match one {
                Ok(one) => (Ok(one), others.await),
                Err((_, status)) => return Err(status),
            },
            rest = &mut others => match rest {
                // Only the first one tells the warnings, also those of a Dockerfile that is wrong.
                Ok(_) | Err((true, _)) => (first.await, rest),
                Err((false, status)) => return Err(status),
            },
        };
        let mut references = vec![one.map_err(|(_, status)| status)?];
        references.extend(rest.map_err(|(_, status)| status)?);
        Ok(references)
    }

    /// Returns the request of a build with the settings of its frontend. They are the client's: a program in an image has those
    /// with which it was called.
    async fn requested(
        self: &Arc<Self>,
        build: &Build,
        scope: &Scope,
        called: &FrontendRequest<'_>,
        options: &Options,
    ) -> Result<Request> {
        let attributes = called.attributes;
        let get = |name: &str| attributes.get(name).map_or("", String::as_str);
        let mut request = Request {
            resolve: options.resolve_mode,
            project: self.project(build, options).await,
            ..called.request.clone()
        };
        if scope.depth > 0 {
            return Ok(request);
        }
        let parent = &options.cgroup_parent;
        request.settings.limits.cgroup_parent.clone_from(parent);
        request.is_explained = get("whelk.explain") == "true";
        request.settings.keeps_failed = get("whelk.keep-failed") == "true";
        if !get("whelk.network").is_empty() {
            request.settings.network = network(get("whelk.network"))?;
        }
        if let Some(resources) = &options.resources {
            let limits = &mut request.settings.limits;
            limits.memory = resources.memory;
            limits.memory_swap = resources.memory_swap;
            limits.cpu_shares = i64::try_from(resources.cpu_shares).unwrap_or(i64::MAX);
            limits.cpu_period = i64::try_from(resources.cpu_period).unwrap_or(i64::MAX);
            limits.cpu_quota = resources.cpu_quota;
            limits.cpuset_cpus.clone_from(&resources.cpuset_cpus);
            limits.cpuset_mems.clone_from(&resources.cpuset_mems);
        }
        Ok(request)
    }

    /// Returns what tells a client's Dockerfile apart from others; empty if the client does not say whose it is.
    async fn project(&self, build: &Build, options: &Options) -> String {
        if build.session.is_empty() {
            return String::new();
        }
        let session = self.sessions.get(&build.session).await;
        let key = session.map(|session| session.shared_key.clone());
        match key.unwrap_or_default().as_str() {
            "" => String::new(),
            key => format!("{key} {}", options.filename),
        }
    }

    /// Reads the Dockerfile and what is ignored.
    async fn prepare(
        self: &Arc<Self>,
        build: &Arc<Build>,
        attributes: &Attributes,
        inputs: &BTreeMap<String, Definition>,
    ) -> Result<Prepared> {
        let get = |name: &str| attributes.get(name).map_or("", String::as_str);
        let parsed = Options::from_attributes(attributes, host(), parse_reference);
        let (mut options, listed) = parsed.map_err(|error| Status::unknown(error.to_string()))?;
        let mut platforms: Vec<pb::Platform> = Vec::new();
        for platform in listed {
            if platforms.contains(&platform) {
                continue;
            }
            if platforms.len() == MAX_PLATFORMS {
                let text = format!("a build for more than {MAX_PLATFORMS} platforms");
                return Err(Status::invalid(text));
            }
            platforms.push(platform);
        }
        options.platform = platforms.first().cloned();
        let remote = self.remote_context(build, attributes, inputs).await?;
        if remote.is_none() && !get("contextsubdir").is_empty() {
            return Err(Status::unsupported(
                "a directory of the client's context (contextsubdir)",
            ));
        }
        let given = dockerfile_input(attributes, inputs)?;
        let context = match get("contextkey") {
            "" => "context",
            name => name,
        };
        // Only a context on a server has its own: beside one that is an input, the Dockerfile is an input, too, or the client's.
        let has_own = remote.is_some() && !get(context).is_empty();
        let is_of_client = given.is_none() && (!has_own || !get("dockerfilekey").is_empty());
        if let Some(filename) = remote.as_ref().and_then(|remote| remote.filename.clone())
            && !is_of_client
        {
            options.filename = filename;
        }
        let filename = options.filename.clone();
        let own = remote.as_ref().filter(|_| !is_of_client);
        let graph = given.as_ref().or(own.map(|remote| &remote.graph));
        let Texts {
            vertex,
            text,
            ignore,
        } = match graph {
            Some(graph) => self.texts_of(build, graph, &filename).await?,
            None => self.load_texts(build, attributes, &filename).await?,
        };
        let text = text.ok_or_else(|| {
            let text =
                format!("failed to read dockerfile: open {filename}: no such file or directory");
            Status::unknown(text)
        })?;
        options.session.clone_from(&build.session);
        let mut locals = Vec::new();
        if is_of_client {
            let local = match get("dockerfilekey") {
                "" => "dockerfile",
                name => name,
            };
            let definition = file_definition(&options, local);
            let definition = definition.map_err(|error| Status::unknown(error.to_string()))?;
            options.file_definition = Some(definition);
            locals.push(local.to_owned());
        }
        let file = SourceInfo {
            filename: filename.clone(),
            data: text.as_bytes().to_vec(),
            definition: options.file_definition.clone(),
            language: "Dockerfile".into(),
        };
        *build.report.file.lock().ignore_poison() = Some((vertex, file.clone()));
        options.context = match remote {
            Some(remote) => MainContext::Graph(remote.graph),
            None => {
                let own = ignore.map(|text| (format!("{filename}.dockerignore"), text));
                self.local_context(build, attributes, own).await?
            }
        };
        add_inputs(&mut options, attributes, inputs)?;
        Ok(Prepared {
            text,
            options,
            file,
            platforms,
            locals,
        })
    }

    /// Returns the context that the client sends. `ignore` is the ignore file beside the Dockerfile, with its name.
    async fn local_context(
        self: &Arc<Self>,
        build: &Build,
        attributes: &Attributes,
        ignore: Option<(String, String)>,
    ) -> Result<MainContext> {
        let key = attributes.get("contextkey").filter(|key| !key.is_empty());
        let name = key.cloned().unwrap_or_else(|| "context".into());
        let (file, text) = match ignore {
            Some((file, text)) => (file, Some(text)),
            None => {
                let text = self.load_ignore(build, attributes, &name).await?;
                (".dockerignore".to_owned(), text)
            }
        };
        let checked = text.map(|text| whelk_dockerfile::ignore::checked(&file, &text));
        let checked = checked.transpose();
        let ignore = checked.map_err(|error| Status::unknown(error.to_string()))?;
        Ok(MainContext::Local {
            name,
            ignore: ignore.unwrap_or_default(),
        })
    }

    /// Reads the Dockerfile in a result, and the ignore file beside it.
    async fn texts_of(
        self: &Arc<Self>,
        build: &Build,
        graph: &Graph,
        filename: &str,
    ) -> Result<Texts> {
        let paths = [
            filename.to_owned(),
            filename.to_lowercase(),
            format!("{filename}.dockerignore"),
        ];
        let [text, other, ignore] = self.texts(build, graph, paths).await?;
        // Of an empty result, such as that of `FROM scratch`, there is no operation.
        let of_name = || whelk_llb::Digest::of(filename.as_bytes());
        Ok(Texts {
            vertex: graph.nodes.first().map_or_else(of_name, |node| node.digest),
            text: text.or_else(|| other.filter(|_| filename == "Dockerfile")),
            ignore,
        })
    }

    /// Reads the client's Dockerfile, and the ignore file beside it.
    async fn load_texts(
        self: &Arc<Self>,
        build: &Build,
        attributes: &Attributes,
        filename: &str,
    ) -> Result<Texts> {
        let name = format!("[internal] load build definition from {filename}");
        let ignore = format!("{filename}.dockerignore");
        let key = attributes.get("dockerfilekey");
        let wanted = FilesRequest {
            name: key.cloned().unwrap_or_else(|| "dockerfile".into()),
            follow: vec![filename.to_owned(), ignore.clone(), filename.to_lowercase()],
            in_full: true,
            ..FilesRequest::default()
        };
        let (vertex, directory) = self.load(build, attributes, name, &wanted).await?;
        let text = match read(&directory, filename).await? {
            Some(text) => Some(text),
            None if filename == "Dockerfile" => read(&directory, "dockerfile").await?,
            None => None,
        };
        let ignore = read(&directory, &ignore).await?;
        Ok(Texts {
            vertex,
            text,
            ignore,
        })
    }

    /// Reads the ignore file of the client's context.
    async fn load_ignore(
        self: &Arc<Self>,
        build: &Build,
        attributes: &Attributes,
        context: &str,
    ) -> Result<Option<String>> {
        let name = "[internal] load .dockerignore".to_owned();
        let wanted = FilesRequest {
            name: context.to_owned(),
            follow: vec![".dockerignore".into()],
            in_full: true,
            ..FilesRequest::default()
        };
        let (_, directory) = match self.load(build, attributes, name, &wanted).await {
            // Of what the client does not have, a Dockerfile may use nothing.
            Err(status)
                if NO_DIRECTORY
                    .iter()
                    .any(|text| status.message.contains(text)) =>
            {
                return Ok(None);
            }
            loaded => loaded?,
        };
        read(&directory, ".dockerignore").await
    }

    /// Receives files that the frontend reads.
    async fn load(
        self: &Arc<Self>,
        build: &Build,
        attributes: &Attributes,
        name: String,
        wanted: &FilesRequest,
    ) -> Result<(whelk_llb::Digest, Directory)> {
        let client = SessionClient {
            sent: Sent::new(None),
            sessions: self.sessions.clone(),
            session: build.session.clone(),
            contexts: self.contexts.clone(),
        };
        let allowed = build.request.policies.directory(&wanted.name);
        let wanted = &FilesRequest {
            name: allowed.map_err(|error| super::result::status(&error, None))?,
            ..wanted.clone()
        };
        let work = build.request.progress.begin(name);
        let vertex = work.vertex;
        // Targets of a bake file have one session for files that several of them need.
        let session = attributes.get(&format!("local-sessionid:{}", wanted.name));
        let session = session.map_or("", String::as_str);
        let received = client.receive(session, wanted, "frontend", &work).await;
        let directory = work.end(received);
        let directory = directory.map_err(|error| Status::unknown(error.to_string()))?;
        Ok((vertex, directory))
    }
}

/// Returns the definition that has the Dockerfile, if the client has sent one that is not the context.
fn dockerfile_input(
    attributes: &Attributes,
    inputs: &BTreeMap<String, Definition>,
) -> Result<Option<Graph>> {
    let get = |name: &str| attributes.get(name).map_or("", String::as_str);
    let context = match get("contextkey") {
        "" => "context",
        name => name,
    };
    // A context on a server has its own.
    let has_own = !get(context).is_empty() || !get("dockerfilekey").is_empty();
    let input = inputs.get("dockerfile").filter(|_| !has_own);
    let graph = input.map(|definition| Graph::new(definition.clone()));
    graph
        .transpose()
        .map_err(|error| Status::invalid(error.to_string()))
}

pub(super) fn without_cap(cap: &str) -> Status {
    let text = format!("requested unsupported frontend capability {cap}");
    Status::unimplemented(text)
}

/// Returns the network of processes that a client has named.
fn network(name: &str) -> Result<NetworkMode> {
    let mode: whelk_engine::Result<NetworkMode> = name.parse();
    match mode.map_err(|error| Status::invalid(error.to_string()))? {
        mode @ (NetworkMode::Default | NetworkMode::Bridge | NetworkMode::Network(_)) => Ok(mode),
        NetworkMode::None | NetworkMode::Host | NetworkMode::Container(_) => Err(
            Status::unsupported(format_args!("the network {name} of builds")),
        ),
    }
}

/// Adds results of other builds, which are contexts.
fn add_inputs(
    options: &mut Options,
    attributes: &Attributes,
    inputs: &BTreeMap<String, Definition>,
) -> Result<()> {
    for (name, definition) in inputs {
        let graph = Graph::new(definition.clone());
        let graph = graph.map_err(|error| Status::invalid(error.to_string()))?;
        let metadata = attributes.get(&format!("input-metadata:{name}"));
        let config = input_config(metadata.map_or("", String::as_str))?;
        let input = ContextInput { graph, config };
        options.inputs.insert(name.clone(), input);
    }
    Ok(())
}

/// Returns the configuration of the image that an input is.
fn input_config(metadata: &str) -> Result<Option<Vec<u8>>> {
    if metadata.is_empty() {
        return Ok(None);
    }
    let invalid = |error: String| Status::invalid(format!("metadata of an input: {error}"));
    let metadata: BTreeMap<String, String> =
        serde_json::from_str(metadata).map_err(|error| invalid(error.to_string()))?;
    let config = metadata.get(super::platforms::CONFIG);
    let config = config.map(|config| STANDARD.decode(config));
    config
        .transpose()
        .map_err(|error| invalid(error.to_string()))
}

async fn read(directory: &Directory, path: &str) -> Result<Option<String>> {
    let (directory, path) = (directory.clone(), path.to_owned());
    let read = blocking(move || {
        let read = directory.read(&path);
        read.map_err(|error| Status::unknown(error.to_string()))
    });
    read.await
}

impl Buildkit {
    /// Answers what a client asks about a Dockerfile instead of a build.
    async fn subrequest(
        self: &Arc<Self>,
        build: &Build,
        request: &str,
        prepared: &Prepared,
    ) -> Result<FrontendResult> {
        let Prepared {
            text,
            options,
            file,
            ..
        } = prepared;
        let failed = |error: Error| of_frontend(&error, file);
        let found = match request {
            "frontend.targets" => {
                let dockerfile =
                    whelk_dockerfile::parse(text).map_err(|error| failed(error.into()))?;
                let stages = Stages::parse(&dockerfile, &mut Linter::default());
                report::targets(text, &stages.map_err(|error| failed(error.into()))?)
            }
            "frontend.outline" => {
                let converted = self.builder.convert(&build.request, text, options).await;
                report::outline(text, &converted.map_err(failed)?.conversion.outline)
            }
            "frontend.lint" => {
                let (warnings, error) = self.check(build, prepared).await;
                report::check(&file.filename, text, &warnings, error.as_ref())
            }
            "frontend.subrequests.describe" => report::describe(),
            _ => {
                return Err(Status::unimplemented(format!(
                    "unsupported request {request}; there are frontend.lint, frontend.outline, frontend.subrequests.describe and frontend.targets"
                )));
            }
        };
        let mut result = FrontendResult::default();
        let texts = [("result.json", found.json), ("result.txt", found.text)];
        for (name, text) in texts {
            result.metadata.insert(name.into(), text.into_bytes());
        }
        if let Some(status) = found.status {
            let name = "result.statuscode".into();
            result
                .metadata
                .insert(name, status.to_string().into_bytes());
        }
        Ok(result)
    }

    /// Returns the warnings and the error of a Dockerfile.
    async fn check(
        self: &Arc<Self>,
        build: &Build,
        prepared: &Prepared,
    ) -> (Vec<Warning>, Option<whelk_dockerfile::Error>) {
        let mut answers = Answers::new();
        loop {
            let asked = match check(&prepared.text, &prepared.options, &answers) {
                Ok(found) => return found,
                Err(asked) => asked,
            };
            for ask in asked {
                let answer = match &ask {
                    Ask::Ignore { .. } => Answer::Ignore(None),
                    ask => {
                        let answer = self.builder.ask(&build.request, ask).await;
                        answer.unwrap_or_else(|error| Answer::Failed(error.to_string()))
                    }
                };
                answers.insert(ask, answer);
            }
        }
    }
}
