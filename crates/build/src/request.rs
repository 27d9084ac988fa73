//! What a build is asked for, and its way from a Dockerfile to a result.
//!
//! ```text
//! convert (Dockerfile → definition) ─► plan (sources, keys, the cache) ─► solve ─► export
//! ```

use std::sync::Arc;

use tokio::sync::Semaphore;
use whelk_dockerfile::convert::{
    Answer, Answers, Conversion, Options, Outcome, Reference as Parsed, Request as Ask,
    ResolveMode, Source as TimeOf, convert,
};
use whelk_dockerfile::lint::Linter;
use whelk_image::{Lease, Reference};
use whelk_llb::pb::{Platform, SourceOp};
use whelk_llb::{Digest, Graph};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::failed::FailedSteps;
use crate::layers::{Stack, View};
use crate::ops::Settings;
use crate::policy::Policies;
use crate::progress::{EventKind, Progress};
use crate::provenance::Capture;
use crate::solver::Job;
use crate::sources::http::redacted;
use crate::sources::{self, Base, Images, Sources};
use crate::transfer::{ExportedSteps, Imports};
use crate::{Builder, blocking};

/// Who asks for a build, and what holds for all of it.
#[derive(Clone, Debug)]
pub struct Request {
    pub client: Arc<dyn Client>,
    pub settings: Settings,
    /// When base images are pulled.
    pub resolve: ResolveMode,
    pub progress: Progress,
    /// Tells the Dockerfiles of clients apart, to compare a build with the one before it; empty if that is not known.
    pub project: String,
    /// Whether the progress says why steps are not cached.
    pub is_explained: bool,
    /// The caches in which steps are looked up that the engine's own does not have.
    pub imports: Arc<Imports>,
    /// Whether images get what a later build needs to take their steps from them.
    pub has_inline_cache: bool,
    /// What failed steps have left, if the settings keep that.
    pub failed: FailedSteps,
    /// Which sources may be used.
    pub policies: Policies,
}

/// A Dockerfile that was converted.
#[derive(Debug)]
pub struct Converted {
    pub conversion: Conversion,
    /// The base images, which are not removed as long as this exists.
    pub images: Images,
}

/// The result of a graph. Its layers stay as long as it exists.
#[derive(Debug)]
pub struct Solved {
    pub(crate) stack: Stack,
    pub(crate) lease: Arc<Lease>,
    /// The keys under which the results of its operations are recorded.
    pub(crate) keys: Vec<Digest>,
    pub(crate) made: ExportedSteps,
    /// What it was made of.
    pub capture: Capture,
}

impl Solved {
    /// Mounts the files, read-only and in no mount namespace. Blocking.
    ///
    /// # Errors
    /// Returns an error if they cannot be mounted.
    pub fn mount(&self, builder: &Builder) -> Result<View> {
        self.stack.mount(builder.store())
    }

    /// Returns whether a file is an archive that ADD unpacks. Blocking.
    ///
    /// # Errors
    /// Returns an error if it cannot be read.
    pub fn is_archive(&self, builder: &Builder, path: &str) -> Result<bool> {
        crate::ops::is_archive(&self.mount(builder)?.root, path)
    }
}

/// An image and its configuration.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// The name that was asked for, or the one that a policy replaces it by.
    pub reference: String,
    pub id: String,
    pub config: Vec<u8>,
}

/// The beginnings of the identifiers of images.
const IMAGE: &str = "docker-image://";
const LAYOUT: &str = "oci-layout://";

/// Returns the source that an image is, in a registry or in an OCI layout of the client.
fn image_source(reference: &str, layout: Option<&str>) -> SourceOp {
    let kind = layout.map_or(IMAGE, |_| LAYOUT);
    let store = layout.map(|store| ("oci.store".to_owned(), store.to_owned()));
    SourceOp {
        identifier: format!("{kind}{reference}"),
        attrs: store.into_iter().collect(),
    }
}

/// Returns the error of an image that a policy replaces by what is none.
pub(crate) fn replaced(reference: &str, by: &str) -> Error {
    Error::invalid(format!(
        "ref mutated by policy to non-image: {IMAGE}{reference} -> {by}"
    ))
}

/// Parses the name of a base image for the conversion.
///
/// # Errors
/// Returns what is wrong with it.
pub fn parse_reference(text: &str) -> std::result::Result<Parsed, String> {
    let reference: Reference = text
        .parse()
        .map_err(|error: whelk_image::Error| error.to_string())?;
    let familiar = reference.familiar();
    Ok(Parsed {
        full: reference.with_default_tag().to_string(),
        familiar,
    })
}

/// Returns the error of a question that cannot be answered, with the lines of the Dockerfile that have asked it. `answers` has
/// the failure.
fn placed(dockerfile: &str, options: &Options, answers: &Answers, cause: Error) -> Error {
    match convert(dockerfile, options, answers, &mut Linter::default()) {
        Err(place) => Error::Unavailable {
            place,
            cause: Box::new(cause),
        },
        Ok(_) => cause,
    }
}

impl Builder {
    /// Converts a Dockerfile, and answers its questions: base images are pulled.
    ///
    /// # Errors
    /// Returns an error if the Dockerfile is wrong, or if a base image cannot be had.
    pub async fn convert(
        self: &Arc<Self>,
        request: &Request,
        dockerfile: &str,
        options: &Options,
    ) -> Result<Converted> {
        let mut answers = Answers::new();
        let mut images = Images::default();
        let is_quiet = options.is_quiet;
        loop {
            // The conversion of a large Dockerfile would block a thread of the runtime.
            let (text, given) = (dockerfile.to_owned(), options.clone());
            let converted = blocking(move || {
                let mut linter = Linter::default();
                let outcome = convert(&text, &given, &answers, &mut linter);
                Ok((outcome, linter.warnings, answers))
            });
            let (outcome, warnings, known) = converted.await?;
            answers = known;
            // Also those of a Dockerfile that is wrong.
            if !is_quiet && !matches!(outcome, Ok(Outcome::Needs(_))) {
                for warning in warnings {
                    let vertex = Digest::of(dockerfile.as_bytes());
                    request.progress.add(vertex, EventKind::Warning(warning));
                }
            }
            let asked = match outcome? {
                Outcome::Needs(asked) => asked,
                Outcome::Done(conversion) => {
                    return Ok(Converted {
                        conversion: *conversion,
                        images,
                    });
                }
            };
            // Base images are pulled beside each other, a few at a time: a Dockerfile may name any number.
            let (known, turns) = (&images, &Semaphore::new(sources::AT_ONCE));
            let found = asked.iter().map(|ask| async move {
                // It fails only for a semaphore that is closed, which this one never is.
                let _turn = turns.acquire().await;
                let answered = self.answer(request, ask, known).await;
                answered.map_err(|cause| (ask.clone(), cause))
            });
            let found = match futures_util::future::try_join_all(found).await {
                Ok(found) => found,
                Err((ask, cause)) => {
                    answers.insert(ask, Answer::Failed(cause.to_string()));
                    let (text, options) = (dockerfile.to_owned(), options.clone());
                    let place = move || Ok(placed(&text, &options, &answers, cause));
                    return Err(blocking(place).await?);
                }
            };
            for (ask, (answer, found)) in asked.into_iter().zip(found) {
                images.add(found);
                answers.insert(ask, answer);
            }
        }
    }

    /// Answers a question of the conversion.
    ///
    /// # Errors
    /// Returns an error if the answer cannot be had.
    pub async fn ask(self: &Arc<Self>, request: &Request, ask: &Ask) -> Result<Answer> {
        let answer = self.answer(request, ask, &Images::default()).await;
        answer.map(|(answer, _)| answer)
    }

    async fn answer(
        self: &Arc<Self>,
        request: &Request,
        ask: &Ask,
        known: &Images,
    ) -> Result<(Answer, Images)> {
        let mut images = Images::default();
        let answer = match ask {
            Ask::Image {
                reference,
                platform,
                name,
                layout,
            } => {
                let mut source = image_source(reference, layout.as_deref());
                request.policies.evaluate(&mut source)?;
                let Some(reference) = sources::image_of(&source) else {
                    return Ok((Answer::Replaced(source.identifier), images));
                };
                let work = request.progress.begin(name.clone());
                let store = source.attrs.get("oci.store");
                let store = store.filter(|_| source.identifier.starts_with(LAYOUT));
                let base = match store {
                    Some(store) => {
                        let client = request.client.as_ref();
                        self.layout(client, store, reference, platform).await
                    }
                    None => known.load(self, request, reference, platform, &work).await,
                };
                let base = work.end(base)?;
                let config = self.configuration(&base).await?;
                images.insert(reference, Some(platform), base);
                Answer::Image {
                    reference: reference.to_owned(),
                    digest: String::new(),
                    config,
                }
            }
            Ask::Ignore {
                local,
                session,
                name,
                ..
            } => {
                let local = local.trim_start_matches("local://");
                match request.policies.named_directory(local)? {
                    Some(local) => {
                        let work = request.progress.begin(name.clone());
                        let text = request.client.ignore_file(&local, session, &work).await;
                        Answer::Ignore(work.end(text)?)
                    }
                    None => Answer::Ignore(None),
                }
            }
            Ask::Time { source, .. } => Answer::Time(self.time(request, source).await?),
        };
        Ok((answer, images))
    }

    /// Returns the time of a source, in seconds since 1970; `None` if it has none.
    ///
    /// # Errors
    /// Returns an error if it cannot be fetched.
    async fn time(self: &Arc<Self>, request: &Request, source: &TimeOf) -> Result<Option<i64>> {
        let mut source = SourceOp {
            identifier: source.identifier.clone(),
            attrs: source.attributes.iter().cloned().collect(),
        };
        request.policies.evaluate(&mut source)?;
        if !sources::is_directory(&source) {
            return Ok(None);
        }
        let name = format!("load metadata for {}", redacted(&source.identifier));
        let work = request.progress.begin(name);
        let found = self.fetch(request.client.as_ref(), &source, &work).await;
        Ok(work.end(found)?.1)
    }

    pub(crate) async fn configuration(self: &Arc<Self>, base: &Base) -> Result<Vec<u8>> {
        let (content, id) = (self.store().content.clone(), base.image.id.clone());
        blocking(move || Ok(content.read(&id)?)).await
    }

    /// Returns the id and the configuration of an image, which is pulled if it is not here.
    ///
    /// # Errors
    /// Returns an error if it cannot be had, or if a policy replaces it by what is no image.
    pub async fn resolve(
        self: &Arc<Self>,
        request: &Request,
        reference: &str,
        platform: &Platform,
        name: &str,
    ) -> Result<ResolvedImage> {
        let mut source = image_source(reference, None);
        request.policies.evaluate(&mut source)?;
        let found = source.identifier.strip_prefix(IMAGE);
        let found = found.ok_or_else(|| replaced(reference, &source.identifier))?;
        // It is told in the form in which it was asked for, unless it is another one.
        let is_same = parse_reference(reference).is_ok_and(|parsed| parsed.full == found);
        let found = if is_same { reference } else { found };
        let work = request.progress.begin(name);
        let images = Images::default();
        let base = images.load(self, request, found, platform, &work).await;
        let base = work.end(base)?;
        let config = self.configuration(&base).await?;
        Ok(ResolvedImage {
            reference: found.to_owned(),
            id: base.image.id.to_string(),
            config,
        })
    }

    /// Receives the sources of a graph, computes the keys of its operations, and looks the results up.
    ///
    /// # Errors
    /// Returns an error if a source cannot be had.
    pub async fn plan(
        self: &Arc<Self>,
        request: &Request,
        graph: Graph,
        images: Images,
    ) -> Result<Arc<Job>> {
        let graph = self.checked(request, graph).await?;
        let gathering = Sources::gather(self, request, &graph, images);
        let (sources, ()) = tokio::join!(gathering, request.imports.load(self, request));
        let sources = sources?;
        let (builder, request) = (self.clone(), request.clone());
        let job = move || Job::new(&builder, graph, sources, &request);
        let job = self.fetched(blocking(job).await?).await?;
        Ok(Arc::new(job))
    }

    /// Refuses what the request has no right to, and what would otherwise be ignored. Empties the caches of steps that are executed
    /// again in any case.
    async fn checked(self: &Arc<Self>, request: &Request, graph: Graph) -> Result<Graph> {
        let entitlements = request.settings.entitlements.clone();
        let limits = request.settings.limits.clone();
        let policies = request.policies.clone();
        let builder = self.clone();
        let check = move || {
            let engine = &builder.engine;
            // Otherwise a mistake would only be found when a step is not cached.
            engine.containers.check_limits_of_steps(&limits)?;
            let graph = policies.apply(graph)?;
            entitlements.check(&graph, || engine.cdi_devices().names)?;
            crate::ops::check(&graph)?;
            // As with Docker, before the sources are received: by then, steps for another platform may go on with their caches.
            let ids = crate::ops::caches_to_discard(&graph);
            builder.caches.discard(builder.store(), &ids)?;
            Ok(graph)
        };
        blocking(check).await
    }

    /// Executes what the cache does not have. If this is dropped, what nobody else waits for is cancelled.
    ///
    /// # Errors
    /// Returns why an operation has failed.
    pub async fn solve(self: &Arc<Self>, job: &Arc<Job>) -> Result<Solved> {
        let ending = Ending(job);
        let executed = self.execute(job).await;
        self.note(job).await;
        drop(ending);
        let executed = executed?;
        Ok(Solved {
            stack: executed.stack,
            lease: job.lease.clone(),
            keys: executed.keys,
            made: executed.made,
            capture: Capture::of(&job.graph, &job.sources),
        })
    }
}

/// Ends the waiting for operations that were not executed, when a build fails or is cancelled.
struct Ending<'a>(&'a Job);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}
