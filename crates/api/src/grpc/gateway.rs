//! Frontends from images: programs that have the service `LLBBridge` on their standard input and output.
//!
//! ```text
//! # syntax=IMAGE ─► gateway ─► a process of IMAGE ─ LLBBridge.Solve, … ─► answer_frontend, with a scope of its own
//!                          ◄─ LLBBridge.Return ─┘
//! ```
//! Such a program is not trusted. It has the rights of a `RUN`, reads the client's directories and the results of its own
//! calls, and can ask for nothing that the client's own definitions cannot ask for. What it can have the engine keep is limited.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::UnixStream;
use whelk_buildkit::details;
use whelk_buildkit::grpc::{self, Call, Result, Status};
use whelk_buildkit::pb::HealthCheckResponse;
use whelk_buildkit::pb::control::WorkerRecord;
use whelk_buildkit::pb::gateway::Result as FrontendResult;
use whelk_dockerfile::Lines;
use whelk_llb::pb::SourceInfo;

use super::builds::Build;
use super::frontend::{FrontendRequest, without_cap};
use super::platforms::Platform;
use super::result::ranges;
use super::scope::Scope;
use super::{Buildkit, headers};

type Attributes = BTreeMap<String, String>;

/// The argument that replaces the line `# syntax=`.
const ARGUMENT: &str = "build-arg:BUILDKIT_SYNTAX";

/// The images whose frontend is the engine's own.
const OWN: [&str; 2] = [
    "docker.io/docker/dockerfile",
    "docker.io/docker/dockerfile-upstream",
];

/// Maximum nesting depth of frontends that call others.
const MAX_DEPTH: usize = 8;

/// What a frontend's calls may use at a time.
const LIMITS: grpc::Limits = grpc::Limits {
    calls: 16,
    bytes: Some(64 << 20),
};

/// How long a program may run on after it has returned its result, and after it has closed the connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// Another frontend that a Dockerfile, or an argument, names.
pub(super) struct Syntax {
    image: String,
    /// With the words behind the image's name.
    cmdline: String,
    /// The lines of the directive; `None` if an argument names the frontend.
    lines: Option<Lines>,
}

/// Returns whether the engine's own frontend stands for an image: it knows the language of all of its versions.
pub(super) fn is_own(image: &str) -> bool {
    let Ok(parsed) = whelk_build::parse_reference(image) else {
        return false;
    };
    let (name, digest) = match parsed.full.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (parsed.full.as_str(), None),
    };
    let name = name.rsplit_once(':').map_or(name, |(name, _)| name);
    let is_own = OWN.contains(&name);
    if is_own && let Some(digest) = digest {
        tracing::info!("the frontend {name}@{digest} of a build: the engine's own is used");
    }
    is_own
}

impl Syntax {
    /// Returns the frontend that is to be used in place of the engine's own.
    pub fn find(attributes: &Attributes, text: &str) -> Option<Self> {
        // Another frontend forwards to this one, and says so by this attribute.
        if attributes.contains_key("cmdline") {
            return None;
        }
        let (cmdline, lines) = match attributes.get(ARGUMENT) {
            Some(cmdline) => (cmdline.trim().to_owned(), None),
            None => {
                let directive = whelk_dockerfile::syntax(text)?;
                (directive.value, Some(directive.lines))
            }
        };
        let image = cmdline.split_whitespace().next().unwrap_or_default();
        let image = image.to_owned();
        (!is_own(&image)).then_some(Self {
            image,
            cmdline,
            lines,
        })
    }

    /// Adds to an error which line has named the frontend, unless it says a place itself.
    pub fn place(&self, status: Status, file: &SourceInfo) -> Status {
        let has_place = |detail: &whelk_buildkit::pb::Any| details::is_source(detail);
        if status.details.iter().any(has_place) {
            return status;
        }
        match self.lines {
            Some(lines) => status.with(details::source(file, &ranges(&[lines]))),
            None => status.context(format_args!("failed with {ARGUMENT} = {}", self.cmdline)),
        }
    }
}

impl Buildkit {
    /// Runs the frontend that a Dockerfile or an argument names.
    pub(super) async fn forward(
        self: &Arc<Self>,
        build: &Arc<Build>,
        scope: &Scope,
        syntax: &Syntax,
        called: FrontendRequest<'_>,
    ) -> Result<FrontendResult> {
        let mut attributes = called.attributes.clone();
        attributes.insert("cmdline".into(), syntax.cmdline.clone());
        attributes.insert("source".into(), syntax.image.clone());
        let called = FrontendRequest {
            frontend: called.frontend,
            attributes: &attributes,
            inputs: called.inputs,
            request: called.request,
        };
        self.gateway(build, scope, &syntax.image, called).await
    }

    /// Runs the frontend of an image for another one, which has this scope. (Boxed: it may call this again.)
    pub(super) fn gateway<'a>(
        self: &'a Arc<Self>,
        build: &'a Arc<Build>,
        scope: &'a Scope,
        image: &'a str,
        called: FrontendRequest<'a>,
    ) -> BoxFuture<'a, Result<FrontendResult>> {
        Box::pin(async move {
            let (attributes, inputs) = (called.attributes, called.inputs);
            if scope.depth >= MAX_DEPTH {
                let text = format!("more than {MAX_DEPTH} frontends that call each other: {image}");
                return Err(Status::invalid(text));
            }
            let image = replaced(image, attributes)?;
            let failed = |error: whelk_build::Error| super::result::status(&error, None);
            let frontend = self.builder.frontend(&called.request, image).await;
            let frontend = frontend.map_err(failed)?;
            let known: HashSet<&str> = frontend.caps().map(cap_name).collect();
            let wanted = attributes.get("frontend.caps");
            let wanted = wanted.map_or("", String::as_str).split(',').map(cap_name);
            let inputs_cap = (!inputs.is_empty()).then_some("moby.buildkit.frontend.inputs");
            let mut wanted = wanted.chain(inputs_cap);
            if let Some(cap) = wanted.find(|cap| !cap.is_empty() && !known.contains(cap)) {
                return Err(without_cap(cap));
            }
            let env = environment(&build.session, &self.worker(), attributes)?;
            let _turn = match scope.depth {
                0 => Some(self.builder.frontend_turn().await.map_err(failed)?),
                _ => None,
            };
            let _place = scope.place()?;
            build.note_program(&frontend);
            let inner = Arc::new(scope.inner(called.request, inputs.clone()));
            let ended = self.run_gateway(build, &inner, &frontend, env).await;
            let returned = inner.returned.borrow().clone();
            let result = match returned {
                Some(Err(status)) => return Err(status),
                Some(Ok(result)) => {
                    ended?;
                    result
                }
                None => {
                    ended?;
                    let text = format!("the frontend {} has ended without a result", frontend.name);
                    return Err(Status::unknown(text));
                }
            };
            scope.adopt(&inner, result)
        })
    }

    /// Runs a frontend, and answers its calls, until it has ended.
    async fn run_gateway(
        self: &Arc<Self>,
        build: &Arc<Build>,
        scope: &Arc<Scope>,
        frontend: &whelk_build::Frontend,
        env: Vec<String>,
    ) -> Result<()> {
        let failed = |error: std::io::Error| {
            let text = whelk_sys::errno_text(&error);
            Status::unknown(format!("connect to the frontend {}: {text}", frontend.name))
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let theirs = OwnedFd::from(theirs.into_std().map_err(failed)?);
        let answer = {
            let (buildkit, build, scope) = (self.clone(), build.clone(), scope.clone());
            move |call| {
                buildkit
                    .clone()
                    .answer_gateway(build.clone(), scope.clone(), call)
            }
        };
        let serving = grpc::serve(TokioIo::new(ours), LIMITS, headers, answer);
        let running = self
            .builder
            .run_frontend(build.request_of(scope), frontend, env, theirs);
        let mut returned = scope.returned.subscribe();
        let overdue = async {
            // It is not closed: the scope owns the sender.
            let _ = returned.wait_for(Option::is_some).await;
            tokio::time::sleep(PATIENCE).await;
        };
        tokio::pin!(serving, running, overdue);
        let ended = |ended: whelk_build::Result<()>| {
            ended.map_err(|error| super::result::status(&error, None))
        };
        let closed = tokio::select! {
            result = &mut running => return ended(result),
            // What it has returned counts, although it does not end.
            () = &mut overdue => return Ok(()),
            closed = &mut serving => closed,
        };
        if let Ok(result) = tokio::time::timeout(PATIENCE, running).await {
            return ended(result);
        }
        if matches!(*scope.returned.borrow(), Some(Ok(_))) {
            return Ok(());
        }
        let cause = closed.err().map(|error| format!(": {error}"));
        Err(Status::unknown(format!(
            "the frontend {} has closed its connection and does not end{}",
            frontend.name,
            cause.unwrap_or_default()
        )))
    }

    /// Answers a call of a frontend. (Boxed: the frontend may have another one called.)
    fn answer_gateway(
        self: Arc<Self>,
        build: Arc<Build>,
        scope: Arc<Scope>,
        mut call: Call,
    ) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            scope.count_call()?;
            let method = std::mem::take(&mut call.method);
            match method.split_once('/').unwrap_or_default() {
                ("moby.buildkit.v1.frontend.LLBBridge", name) => {
                    self.answer_frontend(&build, &scope, name, call).await
                }
                ("grpc.health.v1.Health", "Check") => {
                    let status = HealthCheckResponse::SERVING;
                    call.responses.send(&HealthCheckResponse { status }).await
                }
                _ => Err(Status::unimplemented(format!("unknown method {method}"))),
            }
        })
    }
}

fn cap_name(cap: &str) -> &str {
    cap.split('+').next().unwrap_or_default()
}

/// Returns the image that a named context has in place of a frontend's.
fn replaced<'a>(image: &'a str, attributes: &'a Attributes) -> Result<&'a str> {
    let Some(context) = attributes.get(&format!("context:{image}")) else {
        return Ok(image);
    };
    let found = context.strip_prefix("docker-image://");
    found.ok_or_else(|| Status::unsupported(format_args!("the frontend {image} from {context}")))
}

/// A worker, as frontends read it from a variable.
#[derive(Serialize)]
struct Worker<'a> {
    id: &'a str,
    labels: &'a BTreeMap<String, String>,
    platforms: Vec<Platform>,
}

/// Returns the variables by which a frontend learns what it is to do.
fn environment(
    session: &str,
    worker: &WorkerRecord,
    attributes: &Attributes,
) -> Result<Vec<String>> {
    // Bills of materials are made of what a frontend returns.
    let passed = attributes.iter().filter(|(name, _)| *name != "attest:sbom");
    let options = passed
        .enumerate()
        .map(|(number, (name, value))| format!("BUILDKIT_FRONTEND_OPT_{number}={name}={value}"));
    let platforms = worker.platforms.iter().cloned();
    let workers = [Worker {
        id: &worker.id,
        labels: &worker.labels,
        platforms: platforms.map(Platform::from).collect(),
    }];
    let workers = serde_json::to_string(&workers);
    let workers = workers.map_err(|error| Status::unknown(error.to_string()))?;
    let own = [
        format!("BUILDKIT_SESSION_ID={session}"),
        format!("BUILDKIT_WORKERS={workers}"),
        "BUILDKIT_EXPORTEDPRODUCT=whelk".to_owned(),
    ];
    let env: Vec<String> = options.chain(own).collect();
    if let Some(invalid) = env.iter().find(|variable| variable.contains('\0')) {
        let name = invalid.split('=').nth(1).unwrap_or_default();
        return Err(Status::invalid(format!(
            "the attribute {name:?} of a frontend has a null byte"
        )));
    }
    Ok(env)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_the_own_frontend_are_known() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (image, expected) in [
            ("docker/dockerfile", true),
            ("docker/dockerfile:1", true),
            ("docker/dockerfile:1.7-labs", true),
            ("docker.io/docker/dockerfile-upstream:master", true),
            (&format!("docker/dockerfile:1@{digest}"), true),
            (&format!("docker/dockerfile@{digest}"), true),
            ("dockerfile", false),
            ("docker/dockerfile-x:1", false),
            ("docker/dockerfile/x", false),
            ("localhost:5000/docker/dockerfile", false),
            ("example.com/docker/dockerfile:1", false),
            ("", false),
            ("X", false),
        ] {
            assert_eq!(is_own(image), expected, "{image}");
        }
    }

    #[test]
    fn the_frontend_is_named_by_an_argument_or_a_line() {
        let find = |attributes: &[(&str, &str)], text: &str| {
            let attributes = attributes.iter();
            let attributes = attributes.map(|(name, value)| ((*name).into(), (*value).into()));
            let found = Syntax::find(&attributes.collect(), text)?;
            Some((found.image, found.cmdline))
        };
        let both = |image: &str, cmdline: &str| Some((image.to_owned(), cmdline.to_owned()));
        let file = "# syntax=some/front:1 a b\nFROM x";
        assert_eq!(find(&[], file), both("some/front:1", "some/front:1 a b"));
        assert_eq!(find(&[], "# syntax=docker/dockerfile:1\nFROM x"), None);
        assert_eq!(find(&[], "FROM x"), None);
        assert_eq!(
            find(&[(ARGUMENT, " other x")], file),
            both("other", "other x")
        );
        assert_eq!(find(&[(ARGUMENT, "docker/dockerfile")], file), None);
        assert_eq!(find(&[("cmdline", "some/front:1")], file), None);
    }

    #[test]
    fn variables_have_the_attributes() {
        let attributes = |value: &str| {
            let pairs = [("a", value), ("attest:sbom", ""), ("b", "c=d")];
            let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
            Attributes::from(pairs)
        };
        let worker = WorkerRecord::default();
        let env = environment("s", &worker, &attributes("1")).unwrap_or_default();
        assert_eq!(
            env,
            [
                "BUILDKIT_FRONTEND_OPT_0=a=1",
                "BUILDKIT_FRONTEND_OPT_1=b=c=d",
                "BUILDKIT_SESSION_ID=s",
                "BUILDKIT_WORKERS=[{\"id\":\"\",\"labels\":{},\"platforms\":[]}]",
                "BUILDKIT_EXPORTEDPRODUCT=whelk",
            ]
        );
        assert!(environment("s", &worker, &attributes("\0")).is_err());
    }
}
