//! Builds that run, and those that have just ended.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, watch};
use whelk_build::provenance::{Capture, FrontendCall, Provenance};
use whelk_build::{
    Attest, Builder, CacheImport, Error, Frontend, Images, Imports, Progress, Remains, Request,
    Scanned, Solved,
};
use whelk_buildkit::cut::beginning;
use whelk_buildkit::grpc::{Code, Result, Status};
use whelk_buildkit::pb::Message as _;
use whelk_dockerfile::convert::Image;
use whelk_engine::events::now;
use whelk_image::Lease;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{Definition, Platform, SourceInfo};
use whelk_llb::{Digest, Graph, Node};
use whelk_sys::sync::IgnorePoison as _;

use super::blocking;
use super::scope::Scope;

/// Time limit for a call to find the build that it belongs to. A client makes its calls at the same time.
const PATIENCE: Duration = Duration::from_secs(3);

/// The time that the progress of a build is kept after its end, for clients that ask late, the number of such builds, and the
/// size of their progress in bytes.
const KEPT: Duration = Duration::from_secs(30);
const MAX_ENDED: usize = 1000;
const MAX_ENDED_BYTES: usize = 256 << 20;

/// Maximum number of builds that run.
const MAX_RUNNING: usize = 1000;

/// Number of different sets of caches that the frontends of a build import.
const MAX_IMPORTS: usize = 16;

/// Number of contexts from servers, and of other graphs, whose files a build reads.
const MAX_READ: usize = 1024;

/// The builds.
#[derive(Debug)]
pub(super) struct Builds {
    table: watch::Sender<BuildTable>,
    running: Arc<Semaphore>,
}

impl Default for Builds {
    fn default() -> Self {
        Self {
            table: watch::Sender::default(),
            running: Arc::new(Semaphore::new(MAX_RUNNING)),
        }
    }
}

/// The builds, by their names.
#[derive(Debug, Default)]
struct BuildTable {
    by_name: HashMap<String, State>,
    /// Reports of builds that have ended, the oldest first.
    ended: VecDeque<(String, Arc<Report>)>,
}

#[derive(Debug)]
enum State {
    Running(Arc<Build>),
    /// Only what clients are told of it is left.
    Ended(Arc<Report>),
    /// It has never begun, for this reason.
    Refused(Arc<Report>, Status),
}

impl BuildTable {
    /// Replaces a build that has ended by its report.
    fn end(&mut self, name: &str, report: &Arc<Report>) {
        self.by_name
            .insert(name.to_owned(), State::Ended(report.clone()));
        self.ended.push_back((name.to_owned(), report.clone()));
        let sizes = self.ended.iter().map(|(_, report)| report.size());
        let mut bytes = sizes.fold(0, usize::saturating_add);
        // The one that has just ended is asked for most likely.
        while self.ended.len() > 1
            && (self.ended.len() > MAX_ENDED || bytes > MAX_ENDED_BYTES)
            && let Some((name, report)) = self.ended.pop_front()
        {
            bytes = bytes.saturating_sub(report.size());
            self.remove_name(&name, &report);
        }
    }

    /// Removes a build that has ended.
    fn forget(&mut self, name: &str, report: &Arc<Report>) {
        self.ended.retain(|(_, other)| !Arc::ptr_eq(other, report));
        self.remove_name(name, report);
    }

    fn remove_name(&mut self, name: &str, report: &Arc<Report>) {
        // Another build may have the name now.
        if let Some(State::Ended(ended) | State::Refused(ended, _)) = self.by_name.get(name)
            && Arc::ptr_eq(ended, report)
        {
            self.by_name.remove(name);
        }
    }
}

/// The progress of a build, and the Dockerfile that its warnings quote: all that is kept when it has ended.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub progress: Progress,
    /// The Dockerfile that warnings are about, and the step that has read it.
    pub file: Mutex<Option<(Digest, SourceInfo)>>,
}

impl Report {
    /// Returns what it takes of [`MAX_ENDED_BYTES`].
    fn size(&self) -> usize {
        let file = self.file.lock().ignore_poison();
        let length = file.as_ref().map_or(0, |(_, file)| file.data.len());
        self.progress.size().saturating_add(length)
    }
}

/// A build.
#[derive(Debug)]
pub(super) struct Build {
    pub id: String,
    pub session: String,
    pub request: Request,
    /// The references that the client may use.
    pub scope: Scope,
    /// The attestations that the client has asked for.
    pub attest: Attest,
    /// In nanoseconds since the epoch.
    started: i64,
    is_over: watch::Sender<bool>,
    /// Results whose files the engine's own frontend has read, by their graphs: what a client gives only once is part of some.
    read: Mutex<BTreeMap<Digest, Arc<Solved>>>,
    /// Manifests of what was made, with their media types, by the position of the output.
    manifests: Mutex<BTreeMap<i64, (String, Vec<u8>)>>,
    /// The provenance and the attestations that the build's record in the history has.
    noted: Mutex<Noted>,
    pub report: Arc<Report>,
    /// The caches that frontends import, by what they ask for: each is read once.
    imports: Mutex<BTreeMap<Vec<CacheImport>, Arc<Imports>>>,
    /// The materials of frontends from images, by the names of the images.
    programs: Mutex<BTreeMap<String, Capture>>,
}

/// The provenance and the attestations of a build's results, by platform if there are several.
#[derive(Debug, Default)]
pub(super) struct Noted {
    pub provenances: Vec<(Option<String>, Provenance)>,
    /// The types of statements, and the statements.
    pub statements: Vec<(Option<String>, String, Vec<u8>)>,
}

/// The result of converting a Dockerfile, besides the definition of its operations.
#[derive(Debug)]
pub(super) struct Origin {
    pub image: Image,
    /// The platform that was built for; that of the image may be another one, if its base is.
    pub platform: Platform,
    /// The time of the image, in seconds since 1970.
    pub epoch: Option<i64>,
    pub call: FrontendCall,
    /// The stages, and the context, that a bill of materials covers besides the result, by name.
    pub scanned: Vec<(String, Definition)>,
    pub ignores_cache: bool,
}

/// A result that is solved when it is needed.
#[derive(Debug)]
pub(super) struct Reference {
    pub definition: Definition,
    graph: Arc<Graph>,
    pub request: Request,
    images: Images,
    /// If it comes from a Dockerfile.
    pub origin: Option<Origin>,
    solved: OnceCell<std::result::Result<Arc<Solved>, Error>>,
    /// The files of the step that has failed, if it has failed.
    left: OnceLock<Left>,
}

/// The files that a failed step has left. The first caller who asks for them holds them; this keeps no further reference,
/// because a build may have many failed steps.
#[derive(Debug)]
struct Left {
    fresh: Mutex<Option<Arc<Remains>>>,
    remains: Weak<Remains>,
    /// Holds what the step stands on.
    held: Arc<Lease>,
}

/// A step that has failed.
#[derive(Debug)]
pub(super) struct FailedNode<'a> {
    pub node: &'a Node,
    pub error: &'a Error,
    /// The files that the failed step has left, and the lease of the layers below them.
    pub left: Option<(Arc<Remains>, Arc<Lease>)>,
}

impl Reference {
    /// Checks a definition.
    ///
    /// # Errors
    /// Returns an error for one that is invalid, or that has a source which a policy denies.
    pub async fn new(
        request: Request,
        definition: Definition,
        images: Images,
        origin: Option<Origin>,
    ) -> Result<Self> {
        // The decoding of a large one would block a thread of the runtime.
        let policies = request.policies.clone();
        let decoded = blocking(move || {
            let graph = Graph::new(definition.clone());
            let graph = graph.map_err(|error| Status::invalid(error.to_string()))?;
            let source = definition.source.as_ref();
            let graph = policies.apply(graph);
            let graph = graph.map_err(|error| super::result::status(&error, source))?;
            Ok((graph, definition))
        });
        let (graph, definition) = decoded.await?;
        Ok(Self {
            definition,
            graph: Arc::new(graph),
            request,
            images,
            origin,
            solved: OnceCell::new(),
            left: OnceLock::new(),
        })
    }

    /// Returns a result without files.
    pub fn empty(request: Request) -> Self {
        Self {
            definition: Definition::default(),
            graph: Arc::default(),
            request,
            images: Images::default(),
            origin: None,
            solved: OnceCell::new(),
            left: OnceLock::new(),
        }
    }

    /// Returns the result.
    ///
    /// # Errors
    /// Returns why a step has failed, with its place.
    pub async fn solve(&self, builder: &Arc<Builder>) -> Result<Arc<Solved>> {
        let solving = async {
            let graph = Graph::clone(&self.graph);
            let job = builder.plan(&self.request, graph, self.images.clone());
            let job = job.await?;
            let solved = builder.solve(&job).await;
            solved
                .map(Arc::new)
                .map_err(|error| self.note(&error, job.lease()))
        };
        let error = match self.solved.get_or_init(|| solving).await {
            Ok(solved) => return Ok(solved.clone()),
            Err(error) => error,
        };
        Err(super::result::status(error, self.graph.source.as_ref()))
    }

    /// Notes what is left of a step that has failed, which `held` holds, and returns the error without that.
    fn note(&self, error: &Error, held: &Arc<Lease>) -> Error {
        // Another build may have begun the step, which wants its state.
        if self.request.settings.keeps_failed
            && let Error::Step { op, cause } = error
            && let Error::Process {
                state: Some(state), ..
            } = cause.root()
        {
            self.request.failed.add(op, state);
        }
        let remains = error.remains().cloned();
        let left = Left {
            remains: remains.as_ref().map(Arc::downgrade).unwrap_or_default(),
            fresh: Mutex::new(remains),
            held: held.clone(),
        };
        // It is the only time.
        let _ = self.left.set(left);
        error.without_state()
    }

    /// Returns the step that has failed; `None` if none has.
    pub fn failed(&self) -> Option<FailedNode<'_>> {
        let Some(Err(error @ Error::Step { op, .. })) = self.solved.get() else {
            return None;
        };
        let mut nodes = self.graph.nodes.iter();
        let left = self.left.get().and_then(|left| {
            let fresh = left.fresh.lock().ignore_poison().take();
            let remains = fresh.or_else(|| left.remains.upgrade())?;
            Some((remains, left.held.clone()))
        });
        Some(FailedNode {
            node: nodes.find(|node| node.digest == *op)?,
            error,
            left,
        })
    }
}

impl Reference {
    /// Returns the cgroup parents that processes of the definition name.
    pub fn cgroup_parents(&self) -> impl Iterator<Item = &str> {
        let parents = self
            .graph
            .nodes
            .iter()
            .filter_map(|node| match &node.op.kind {
                Some(Kind::Exec(exec)) => Some(exec.meta.as_ref()?.cgroup_parent.as_str()),
                _ => None,
            });
        parents.filter(|parent| !parent.is_empty())
    }

    /// Returns the number of operations, and the size of the definition in bytes.
    pub fn size(&self) -> (usize, usize) {
        (self.graph.nodes.len(), self.definition.encoded_len())
    }

    /// Returns how the result was made, as far as it is known now.
    pub fn provenance(&self, build: &Build, solved: &Solved) -> Provenance {
        let last = self.definition.def.last();
        let mut capture = solved.capture.clone();
        for read in build.read.lock().ignore_poison().values() {
            capture.add(&read.capture);
        }
        for program in build.programs.lock().ignore_poison().values() {
            capture.add(program);
        }
        Provenance {
            capture,
            call: self
                .origin
                .as_ref()
                .map_or_else(FrontendCall::default, |origin| origin.call.clone()),
            graph: self.graph.clone(),
            last: Digest::of(last.map_or(&[][..], Vec::as_slice)),
            invocation: build.id.clone(),
            started: build.started,
            finished: now(),
        }
    }

    /// Returns what is scanned for a bill of materials.
    ///
    /// # Errors
    /// Returns an error if a definition is not valid.
    pub fn scanned(&self, name: &str) -> Result<Scanned> {
        let mut scanned = Scanned {
            name: name.to_owned(),
            result: Graph::clone(&self.graph),
            ..Scanned::default()
        };
        let Some(origin) = &self.origin else {
            return Ok(scanned);
        };
        scanned.ignores_cache = origin.ignores_cache;
        for (name, definition) in &origin.scanned {
            let graph = Graph::new(definition.clone());
            let graph = graph.map_err(|error| Status::invalid(error.to_string()))?;
            scanned.extras.push((name.clone(), graph));
        }
        Ok(scanned)
    }
}

impl Build {
    pub fn new(
        id: String,
        session: String,
        request: Request,
        inputs: BTreeMap<String, Definition>,
        attest: Attest,
    ) -> Arc<Self> {
        Arc::new(Self {
            scope: Scope::of_client(&id, inputs),
            attest,
            started: now(),
            is_over: watch::Sender::default(),
            read: Mutex::default(),
            manifests: Mutex::default(),
            noted: Mutex::default(),
            report: Arc::new(Report {
                progress: request.progress.clone(),
                file: Mutex::default(),
            }),
            imports: Mutex::default(),
            programs: Mutex::default(),
            id,
            session,
            request,
        })
    }

    /// Notes for the provenance that a program was executed as a frontend.
    pub fn note_program(&self, frontend: &Frontend) {
        let mut programs = self.programs.lock().ignore_poison();
        programs.insert(frontend.name.clone(), frontend.capture().clone());
    }

    /// Keeps a result as long as the build, in place of an earlier one of this graph.
    ///
    /// # Errors
    /// Returns an error if the build has read too many.
    pub fn keep_read(&self, graph: Digest, solved: Arc<Solved>) -> Result<()> {
        let mut read = self.read.lock().ignore_poison();
        if read.len() >= MAX_READ && !read.contains_key(&graph) {
            let text = format!("a build reads the files of at most {MAX_READ} contexts");
            return Err(Status::new(Code::ResourceExhausted, text));
        }
        read.insert(graph, solved);
        Ok(())
    }

    /// Keeps the manifest of an output for the history.
    pub fn note_manifest(&self, output: usize, media_type: &str, content: Vec<u8>) {
        let output = i64::try_from(output).unwrap_or(i64::MAX);
        let mut manifests = self.manifests.lock().ignore_poison();
        manifests.insert(output, (media_type.to_owned(), content));
    }

    pub fn take_manifests(&self) -> BTreeMap<i64, (String, Vec<u8>)> {
        std::mem::take(&mut *self.manifests.lock().ignore_poison())
    }

    /// Keeps for the history how a result was made.
    pub fn note_provenance(&self, platform: Option<String>, provenance: Provenance) {
        let mut noted = self.noted.lock().ignore_poison();
        noted.provenances.push((platform, provenance));
    }

    /// Keeps a statement of this type for the history.
    pub fn note_statement(&self, platform: Option<String>, kind: &str, bytes: Vec<u8>) {
        let mut noted = self.noted.lock().ignore_poison();
        noted.statements.push((platform, kind.to_owned(), bytes));
    }

    pub fn take_noted(&self) -> Noted {
        std::mem::take(&mut *self.noted.lock().ignore_poison())
    }

    /// Waits until it has ended.
    pub async fn over(&self) {
        // It is not closed: `self` owns the sender.
        let _ = self.is_over.subscribe().wait_for(|is_over| *is_over).await;
    }

    /// Returns the request whose settings the calls of a frontend have.
    pub fn request_of<'a>(&'a self, scope: &'a Scope) -> &'a Request {
        scope.request.as_ref().unwrap_or(&self.request)
    }

    /// Returns the request of a frontend that imports these caches.
    ///
    /// # Errors
    /// Returns an error if the build imports too many different ones.
    pub fn request_with(&self, scope: &Scope, imports: Vec<CacheImport>) -> Result<Request> {
        let mut request = self.request_of(scope).clone();
        // Clients name theirs for the build, and once more for their frontend.
        if !request.imports.includes(&imports) {
            let mut known = self.imports.lock().ignore_poison();
            if known.len() >= MAX_IMPORTS && !known.contains_key(&imports) {
                return Err(Status::new(
                    Code::ResourceExhausted,
                    format!(
                        "the frontends of a build import more than {MAX_IMPORTS} sets of caches"
                    ),
                ));
            }
            let imports = known.entry(imports);
            let imports = imports.or_insert_with_key(|wanted| Imports::new(wanted.clone()));
            request.imports = imports.clone();
        }
        Ok(request)
    }
}

/// A build that runs as long as this exists.
#[derive(Debug)]
pub(super) struct Running<'a> {
    builds: &'a Builds,
    build: Arc<Build>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.build.request.progress.close();
        self.build.is_over.send_replace(true);
        // Dropping the references ends what waits for their results.
        self.build.scope.clear();
        self.build.read.lock().ignore_poison().clear();
        let (id, report) = (&self.build.id, &self.build.report);
        let table = &self.builds.table;
        table.send_modify(|table| table.end(id, report));
        self.builds.forget_later(id, report);
    }
}

impl Builds {
    /// Adds a build.
    ///
    /// # Errors
    /// Returns an error if there is one with this name, and if too many run.
    pub fn begin(&self, build: &Arc<Build>) -> Result<Running<'_>> {
        let permit = self.running.clone().try_acquire_owned().map_err(|_| {
            let text = format!("{MAX_RUNNING} builds run, which is the maximum: try again later");
            Status::new(Code::ResourceExhausted, text)
        })?;
        let is_new = self.table.send_if_modified(|table| {
            let is_new = !matches!(table.by_name.get(&build.id), Some(State::Running(_)));
            if is_new {
                let running = State::Running(build.clone());
                table.by_name.insert(build.id.clone(), running);
            }
            is_new
        });
        if !is_new {
            let text = format!("job ID {:?} exists already", build.id);
            return Err(Status::new(Code::AlreadyExists, text));
        }
        Ok(Running {
            builds: self,
            build: build.clone(),
            _permit: permit,
        })
    }

    /// Notes that a build was refused: callers who wait for its progress learn that there is none, and calls of its frontend
    /// fail for the same reason.
    pub fn refuse(&self, id: &str, status: &Status) {
        /// Maximum length of the reason that is kept, in bytes.
        const MAX: usize = 4096;
        let status = Status::new(status.code, beginning(&status.message, MAX));
        let report: Arc<Report> = Arc::default();
        report.progress.close();
        let is_new = self.table.send_if_modified(|table| {
            // A build that runs may have the name.
            let is_new = !table.by_name.contains_key(id);
            if is_new {
                table.end(id, &report);
                let refused = State::Refused(report.clone(), status);
                table.by_name.insert(id.to_owned(), refused);
            }
            is_new
        });
        if is_new {
            self.forget_later(id, &report);
        }
    }

    fn forget_later(&self, id: &str, report: &Arc<Report>) {
        let (table, id, report) = (self.table.clone(), id.to_owned(), report.clone());
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            table.send_modify(|table| table.forget(&id, &report));
        });
    }

    /// Returns a build that runs. Waits for a short time until it is there.
    ///
    /// # Errors
    /// Returns an error if there is no such build, if it was refused, or if it has ended.
    pub async fn running(&self, id: &str) -> Result<Arc<Build>> {
        self.get(id, |state| match state {
            State::Running(build) => Some(Ok(build.clone())),
            State::Refused(_, status) => Some(Err(status.clone())),
            State::Ended(_) => None,
        })
        .await
    }

    /// Returns what clients are told of a build, also of one that has just ended. Waits for a short time until it is there.
    ///
    /// # Errors
    /// Returns an error if there is no such build.
    pub async fn report(&self, id: &str) -> Result<Arc<Report>> {
        self.get(id, |state| match state {
            State::Running(build) => Some(Ok(build.report.clone())),
            State::Ended(report) | State::Refused(report, _) => Some(Ok(report.clone())),
        })
        .await
    }

    async fn get<T>(&self, id: &str, part: impl Fn(&State) -> Option<Result<T>>) -> Result<T> {
        let mut table = self.table.subscribe();
        // The name may be that of a build that has ended, whose caller means the next one: it is waited for.
        let is_there = |table: &BuildTable| table.by_name.get(id).and_then(&part).is_some();
        let found = table.wait_for(is_there);
        let found = match tokio::time::timeout(PATIENCE, found).await {
            Ok(Ok(table)) => table.by_name.get(id).and_then(&part),
            _ => None,
        };
        found.unwrap_or_else(|| Err(Status::not_found(format!("no such job {id}"))))
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use futures_util::future::BoxFuture;
    use whelk_build::policy::Policies;
    use whelk_build::{Client, Directory, FailedSteps, FrontendWarning, Settings, Work};
    use whelk_dockerfile::convert::ResolveMode;
    use whelk_llb::pb::SourceOp;
    use whelk_registry::Credentials;

    use super::*;

    #[derive(Debug)]
    struct NoClient;

    impl Client for NoClient {
        fn directory<'a>(
            &'a self,
            _source: &'a SourceOp,
            _work: &'a Work,
        ) -> BoxFuture<'a, whelk_build::Result<Directory>> {
            Box::pin(async { Err(Error::invalid("no directories")) })
        }

        fn credentials<'a>(
            &'a self,
            _registry: &'a str,
        ) -> BoxFuture<'a, whelk_build::Result<Credentials>> {
            Box::pin(async { Ok(Credentials::Anonymous) })
        }
    }

    fn build(id: &str, client: &Arc<NoClient>) -> Arc<Build> {
        let request = Request {
            client: client.clone(),
            settings: Settings::default(),
            resolve: ResolveMode::Default,
            progress: Progress::default(),
            project: String::new(),
            is_explained: false,
            imports: Imports::new(Vec::new()),
            has_inline_cache: false,
            failed: FailedSteps::default(),
            policies: Policies::default(),
        };
        let inputs = BTreeMap::new();
        Build::new(id.into(), String::new(), request, inputs, Attest::default())
    }

    #[tokio::test]
    async fn only_the_report_of_a_build_outlives_it() {
        let builds = Builds::default();
        let client = Arc::new(NoClient);
        let first = build("a", &client);
        let running = builds.begin(&first).unwrap();
        assert!(Arc::ptr_eq(&builds.running("a").await.unwrap(), &first));
        assert!(builds.begin(&build("a", &client)).is_err());
        drop((running, first));
        assert_eq!(Arc::strong_count(&client), 1, "it is not kept");
        builds.report("a").await.unwrap();
        // Calls of another build of this name may come before it begins.
        let second = build("a", &client);
        let begin = async { builds.begin(&second).unwrap() };
        let (found, running) = tokio::join!(builds.running("a"), begin);
        assert!(Arc::ptr_eq(&found.unwrap(), &second));
        drop(running);
        for number in 0..=MAX_ENDED {
            drop(builds.begin(&build(&number.to_string(), &client)).unwrap());
        }
        let table = builds.table.borrow();
        assert_eq!(table.by_name.len(), MAX_ENDED);
        assert_eq!(table.ended.len(), MAX_ENDED);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_build_that_is_refused() {
        let builds = Builds::default();
        let status = Status::invalid("wrong ".repeat(1000));
        let refuse = async { builds.refuse("a", &status) };
        let (report, build_of, ()) = tokio::join!(builds.report("a"), builds.running("a"), refuse);
        assert!(report.unwrap().progress.follow().next().await.is_none());
        let told = build_of.unwrap_err();
        assert_eq!((told.code, told.message.len()), (status.code, 4096));
        // A request of the same name that is refused changes nothing about a build that runs.
        let running = build("a", &Arc::new(NoClient));
        let _running = builds.begin(&running).unwrap();
        builds.refuse("a", &status);
        assert!(Arc::ptr_eq(&builds.running("a").await.unwrap(), &running));
    }

    #[tokio::test]
    async fn reports_of_builds_that_have_ended_have_a_limit_of_bytes() {
        let builds = Builds::default();
        let client = Arc::new(NoClient);
        for number in 0..25 {
            let build = build(&number.to_string(), &client);
            let warning = FrontendWarning {
                short: vec![0; MAX_ENDED_BYTES / 20],
                ..FrontendWarning::default()
            };
            let step = Digest::of(b"step");
            assert!(build.report.progress.warn(step, warning));
            drop(builds.begin(&build).unwrap());
        }
        let table = builds.table.borrow();
        assert_eq!(table.ended.len(), 19, "each takes a little more");
        assert_eq!(table.by_name.len(), 19);
        assert!(table.by_name.contains_key("24") && !table.by_name.contains_key("0"));
        drop(table);
        // Dockerfiles count, too.
        let large = build("large", &client);
        let file = SourceInfo {
            data: vec![0; MAX_ENDED_BYTES / 2],
            ..SourceInfo::default()
        };
        *large.report.file.lock().ignore_poison() = Some((Digest::of(b"step"), file));
        drop(builds.begin(&large).unwrap());
        assert!(builds.table.borrow().ended.len() <= 10);
    }
}
