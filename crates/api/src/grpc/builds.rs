//! Builds that run, and those that have just ended.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, watch};
use whelk_build::provenance::{Capture, FrontendCall, Provenance};
use whelk_build::{
    Attest, Builder, CacheImport, Error, Frontend, Images, Imports, Request, Scanned, Solved,
};
use whelk_buildkit::grpc::{Code, Result, Status};
use whelk_buildkit::pb::Message as _;
use whelk_dockerfile::convert::Image;
use whelk_engine::events::now;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{Definition, SourceInfo};
use whelk_llb::{Digest, Graph};
use whelk_sys::sync::IgnorePoison as _;

use super::scope::Scope;

/// Time limit for a call to find the build that it belongs to. A client makes its calls at the same time.
const PATIENCE: Duration = Duration::from_secs(3);

/// The time that the progress of a build is kept after its end, for clients that ask late.
const KEPT: Duration = Duration::from_secs(30);

/// Maximum number of builds that run.
const MAX_RUNNING: usize = 1000;

/// Number of different sets of caches that the frontends of a build import.
const MAX_IMPORTS: usize = 16;

/// The builds.
#[derive(Debug)]
pub(super) struct Builds {
    /// By their names.
    known: watch::Sender<HashMap<String, Arc<Build>>>,
    running: Arc<Semaphore>,
}

impl Default for Builds {
    fn default() -> Self {
        Self {
            known: watch::Sender::default(),
            running: Arc::new(Semaphore::new(MAX_RUNNING)),
        }
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
    /// Results that the frontend has read from: what a client gives only once is part of some.
    held: Mutex<Vec<Arc<Solved>>>,
    /// Manifests of what was made, with their media types, by the position of the output.
    manifests: Mutex<BTreeMap<i64, (String, Vec<u8>)>>,
    /// The provenance and the attestations that the build's record in the history has.
    noted: Mutex<Noted>,
    /// The Dockerfile that warnings are about, and the step that has read it.
    pub file: Mutex<Option<(Digest, SourceInfo)>>,
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
}

impl Reference {
    /// Checks a definition.
    ///
    /// # Errors
    /// Returns an error for one that is invalid.
    pub async fn new(
        request: Request,
        definition: Definition,
        images: Images,
        origin: Option<Origin>,
    ) -> Result<Self> {
        // A large one takes its time.
        let decode = move || (Graph::new(definition.clone()), definition);
        let decoded = tokio::task::spawn_blocking(decode).await;
        let (graph, definition) = decoded.map_err(|error| Status::unknown(error.to_string()))?;
        let graph = graph.map_err(|error| Status::invalid(error.to_string()))?;
        Ok(Self {
            definition,
            graph: Arc::new(graph),
            request,
            images,
            origin,
            solved: OnceCell::new(),
        })
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
            builder.solve(&job).await.map(Arc::new)
        };
        let error = match self.solved.get_or_init(|| solving).await {
            Ok(solved) => return Ok(solved.clone()),
            Err(error) => error,
        };
        let status = super::result::status(error, self.graph.source.as_ref());
        let Error::Process {
            state: Some(failed),
            ..
        } = error.root()
        else {
            return Err(status);
        };
        Err(match builder.export_failed(failed).await {
            Ok(image) => status.with(whelk_buildkit::details::failed_image(&image.to_string())),
            Err(error) => status.context(format_args!("keep the state of the step: {error}")),
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
        for read in build.held.lock().ignore_poison().iter() {
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
            attest,
            ..Self::plain(id.clone(), session, request, Scope::of_client(&id, inputs))
        })
    }

    fn plain(id: String, session: String, request: Request, scope: Scope) -> Self {
        Self {
            id,
            session,
            request,
            scope,
            attest: Attest::default(),
            started: now(),
            is_over: watch::Sender::default(),
            held: Mutex::default(),
            manifests: Mutex::default(),
            noted: Mutex::default(),
            file: Mutex::default(),
            imports: Mutex::default(),
            programs: Mutex::default(),
        }
    }

    /// Notes for the provenance that a program was executed as a frontend.
    pub fn note_program(&self, frontend: &Frontend) {
        let mut programs = self.programs.lock().ignore_poison();
        programs.insert(frontend.name.clone(), frontend.capture().clone());
    }

    /// Keeps a result as long as the build.
    pub fn hold(&self, solved: Arc<Solved>) {
        self.held.lock().ignore_poison().push(solved);
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

    /// Returns whether it has ended: only its progress is left.
    pub fn has_ended(&self) -> bool {
        *self.is_over.borrow()
    }

    /// Waits until it has ended.
    pub async fn over(&self) {
        // The sender is a part of this.
        let _ = self.is_over.subscribe().wait_for(|is_over| *is_over).await;
    }

    /// Returns what is kept of a build that has ended: its progress.
    fn ended(&self) -> Arc<Self> {
        let scope = Scope::of_client(&self.id, BTreeMap::new());
        let (id, session) = (self.id.clone(), self.session.clone());
        let ended = Self {
            started: self.started,
            file: Mutex::new(self.file.lock().ignore_poison().clone()),
            is_over: watch::Sender::new(true),
            ..Self::plain(id, session, self.request.clone(), scope)
        };
        Arc::new(ended)
    }

    /// Returns what holds for the calls of a frontend.
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
        self.build.held.lock().ignore_poison().clear();
        let (known, id) = (self.builds.known.clone(), self.build.id.clone());
        let ended = self.build.ended();
        known.send_modify(|known| drop(known.insert(id.clone(), ended.clone())));
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            known.send_modify(|known| {
                // The name may have been taken again.
                if known.get(&id).is_some_and(|now| Arc::ptr_eq(now, &ended)) {
                    known.remove(&id);
                }
            });
        });
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
        let is_new = self.known.send_if_modified(|known| {
            // Of one that has ended only its progress is left.
            let is_new = known.get(&build.id).is_none_or(|known| known.has_ended());
            if is_new {
                known.insert(build.id.clone(), build.clone());
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

    /// Returns a build, and waits for a short time until it is there.
    ///
    /// # Errors
    /// Returns an error if there is no such build.
    pub async fn get(&self, id: &str) -> Result<Arc<Build>> {
        let mut known = self.known.subscribe();
        let found = known.wait_for(|known| known.contains_key(id));
        let found = match tokio::time::timeout(PATIENCE, found).await {
            Ok(Ok(known)) => known.get(id).cloned(),
            _ => None,
        };
        found.ok_or_else(|| Status::not_found(format!("no such job {id}")))
    }
}
