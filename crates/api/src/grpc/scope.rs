//! What a frontend can refer to: the results that it was given, and no others.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use whelk_build::{Builder, Container, FailedPart, Remains, Request, Snapshot, Solved};
use whelk_buildkit::details::{self, Failure, Subject};
use whelk_buildkit::grpc::{Code, Result, Status};
use whelk_buildkit::pb::Any;
use whelk_buildkit::pb::gateway::{self, Ref, RefMap, result};
use whelk_image::Lease;
use whelk_llb::pb::Definition;
use whelk_sys::sync::IgnorePoison as _;

use super::builds::{FailedNode, Reference};
use super::platforms::{MAX_PLATFORMS, ids};

/// Limits of a build: the number of its results, and the bytes of their definitions.
const MAX_REFERENCES: usize = 4096;
const MAX_DEFINITIONS: usize = 64 << 20;

/// Limits of all programs in images that a build runs: operations in their definitions, calls, and bytes of requests. Names and
/// errors of what they ask for are in the progress of the build, which is kept.
const MAX_OPS: usize = 200_000;
const MAX_CALLS: usize = 20_000;
const MAX_SENT: usize = 128 << 20;

/// Maximum number of bytes of the requests of a client, with what the progress keeps of each besides.
const MAX_SENT_BY_CLIENT: usize = 256 << 20;
const KEPT_OF_REQUEST: usize = 512;

/// Number of programs at a time that others of the same build have called.
const MAX_CALLED: usize = 16;

/// Maximum numbers of containers of a build, and of processes in them, at a time.
const MAX_CONTAINERS: usize = 32;
const MAX_PROCESSES: usize = 256;

/// Maximum number of failed steps of which something is kept.
const MAX_FAILED: usize = 64;

/// Parts of the names of what is left of failed steps.
const FAILED: &str = "-failed-";
const INPUT: &str = "input";
const RESULT: &str = "result";

/// The inputs and the references of one frontend, which may be the client or a program in an image.
#[derive(Debug)]
pub(super) struct Scope {
    /// The beginning of the names of its references. No other scope of the build has it.
    name: String,
    /// Number of programs that have called each other to get here; 0 for the client.
    pub depth: usize,
    /// The request whose settings all calls of a program have; `None` for the client, whose calls have the build's.
    pub request: Option<Request>,
    pub inputs: BTreeMap<String, Definition>,
    references: Mutex<HashMap<String, Arc<Reference>>>,
    /// By the names that the frontend has given them.
    containers: Mutex<HashMap<String, Arc<FrontendContainer>>>,
    /// What is left of the steps that have failed.
    failed: Mutex<FailedSteps>,
    /// Shared by all scopes of a build.
    spent: Arc<Mutex<Spent>>,
    /// The result, which the frontend returns (`LLBBridge.Return`).
    pub returned: watch::Sender<Option<Result<gateway::Result>>>,
}

/// The steps that have failed last.
#[derive(Debug, Default)]
struct FailedSteps {
    /// What is left of each, and what holds that besides, by the number of the step.
    by_number: BTreeMap<usize, (Arc<Remains>, Arc<Lease>)>,
    count: usize,
}

/// What the frontends of a build have used.
#[derive(Debug, Default)]
struct Spent {
    references: usize,
    definitions: usize,
    ops: usize,
    calls: usize,
    sent: usize,
    sent_by_client: usize,
    /// Programs that were begun, and those that others have called and that run.
    begun: usize,
    called: usize,
    /// Containers that exist, and processes that run in them.
    containers: usize,
    processes: usize,
}

/// What there is a limited number of at a time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limited {
    Container,
    Process,
}

impl Limited {
    fn of(self, spent: &mut Spent) -> &mut usize {
        match self {
            Self::Container => &mut spent.containers,
            Self::Process => &mut spent.processes,
        }
    }
}

/// The place of a container or a process, as long as this exists.
#[derive(Debug)]
pub(super) struct Place(Arc<Mutex<Spent>>, Limited);

impl Drop for Place {
    fn drop(&mut self) {
        *self.1.of(&mut self.0.lock().ignore_poison()) -= 1;
    }
}

/// A container of a frontend.
#[derive(Debug)]
pub(super) struct FrontendContainer {
    pub container: Container,
    /// Number of processes that run in it.
    pub running: AtomicUsize,
    _place: Place,
}

/// The place of a program that another one has called, as long as this exists.
pub(super) struct FrontendPlace(Arc<Mutex<Spent>>);

impl Drop for FrontendPlace {
    fn drop(&mut self) {
        self.0.lock().ignore_poison().called -= 1;
    }
}

impl Scope {
    /// Returns the scope of a build's client.
    pub fn of_client(build: &str, inputs: BTreeMap<String, Definition>) -> Self {
        Self {
            name: build.to_owned(),
            depth: 0,
            request: None,
            inputs,
            references: Mutex::default(),
            containers: Mutex::default(),
            failed: Mutex::default(),
            spent: Arc::default(),
            returned: watch::Sender::default(),
        }
    }

    /// Returns the scope of a program that a frontend with this scope has called.
    pub fn inner(&self, request: Request, inputs: BTreeMap<String, Definition>) -> Self {
        let mut spent = self.spent.lock().ignore_poison();
        spent.begun += 1;
        Self {
            depth: self.depth + 1,
            request: Some(request),
            spent: self.spent.clone(),
            ..Self::of_client(&format!("{}-f{}", self.name, spent.begun), inputs)
        }
    }

    /// Takes a place for a program that is called. One that the client has called needs none.
    ///
    /// # Errors
    /// Returns an error if the build has too many of them.
    pub fn place(&self) -> Result<Option<FrontendPlace>> {
        if self.depth == 0 {
            return Ok(None);
        }
        let mut spent = self.spent.lock().ignore_poison();
        if spent.called >= MAX_CALLED {
            let text =
                format!("more than {MAX_CALLED} frontends at a time that others have called");
            return Err(exceeded(text));
        }
        spent.called += 1;
        Ok(Some(FrontendPlace(self.spent.clone())))
    }

    /// Takes a place for a container or a process.
    ///
    /// # Errors
    /// Returns an error if the build has too many of them.
    pub fn take(&self, limited: Limited) -> Result<Place> {
        let (most, name) = match limited {
            Limited::Container => (MAX_CONTAINERS, "containers"),
            Limited::Process => (MAX_PROCESSES, "processes in containers"),
        };
        let mut spent = self.spent.lock().ignore_poison();
        let count = limited.of(&mut spent);
        if *count >= most {
            return Err(exceeded(format!("more than {most} {name} at a time")));
        }
        *count += 1;
        Ok(Place(self.spent.clone(), limited))
    }

    /// Keeps a container until it is released.
    ///
    /// # Errors
    /// Returns an error if there is one with this name.
    pub fn add_container(&self, name: &str, container: Container, place: Place) -> Result<()> {
        let mut containers = self.containers.lock().ignore_poison();
        if containers.contains_key(name) {
            let text = format!("Container {name} already exists");
            return Err(Status::new(Code::AlreadyExists, text));
        }
        let container = FrontendContainer {
            container,
            running: AtomicUsize::new(0),
            _place: place,
        };
        containers.insert(name.to_owned(), Arc::new(container));
        Ok(())
    }

    pub fn container(&self, name: &str) -> Option<Arc<FrontendContainer>> {
        self.containers.lock().ignore_poison().get(name).cloned()
    }

    pub fn take_container(&self, name: &str) -> Option<Arc<FrontendContainer>> {
        self.containers.lock().ignore_poison().remove(name)
    }

    /// Counts a call of a program.
    ///
    /// # Errors
    /// Returns an error if there were too many.
    pub fn count_call(&self) -> Result<()> {
        let mut spent = self.spent.lock().ignore_poison();
        if spent.calls >= MAX_CALLS {
            return Err(exceeded(format!("more than {MAX_CALLS} calls")));
        }
        spent.calls += 1;
        Ok(())
    }

    /// Counts the bytes of a request of which something is kept until the end of the build.
    ///
    /// # Errors
    /// Returns an error if the client, or all programs together, have sent too many.
    pub fn charge(&self, bytes: usize) -> Result<()> {
        let mut spent = self.spent.lock().ignore_poison();
        let bytes = bytes.saturating_add(KEPT_OF_REQUEST);
        if self.depth == 0 {
            spent.sent_by_client = spent.sent_by_client.saturating_add(bytes);
            return match spent.sent_by_client > MAX_SENT_BY_CLIENT {
                true => {
                    let text = "the client has made too many requests during the build";
                    Err(Status::new(Code::ResourceExhausted, text))
                }
                false => Ok(()),
            };
        }
        spent.sent = spent.sent.saturating_add(bytes);
        if spent.sent > MAX_SENT {
            return Err(exceeded(format!("requests of more than {MAX_SENT} bytes")));
        }
        Ok(())
    }

    /// Keeps a reference, and returns its name.
    ///
    /// # Errors
    /// Returns an error if the build has too many, or if a program wants processes in another cgroup than the client: they would
    /// have no limits, or count for others.
    pub fn add(&self, reference: Reference) -> Result<(String, Arc<Reference>)> {
        if let Some(request) = &self.request {
            let own = &request.settings.limits.cgroup_parent;
            if let Some(other) = reference.cgroup_parents().find(|parent| parent != own) {
                let text =
                    format!("the cgroup parent {other} of a frontend is not that of the client");
                return Err(Status::new(Code::PermissionDenied, text));
            }
        }
        let reference = Arc::new(reference);
        let name = self.share(reference.clone(), reference.size())?;
        Ok((name, reference))
    }

    /// Keeps a reference, which needs this number of operations and of bytes.
    fn share(&self, reference: Arc<Reference>, (ops, bytes): (usize, usize)) -> Result<String> {
        let mut spent = self.spent.lock().ignore_poison();
        let definitions = spent.definitions.saturating_add(bytes);
        if spent.references >= MAX_REFERENCES || definitions > MAX_DEFINITIONS {
            return Err(Status::new(
                Code::ResourceExhausted,
                format!(
                    "a build has at most {MAX_REFERENCES} results, with definitions of {MAX_DEFINITIONS} bytes"
                ),
            ));
        }
        if self.depth > 0 {
            let ops = spent.ops.saturating_add(ops);
            if ops > MAX_OPS {
                return Err(exceeded(format!("more than {MAX_OPS} operations")));
            }
            spent.ops = ops;
        }
        spent.definitions = definitions;
        spent.references += 1;
        drop(spent);
        let mut references = self.references.lock().ignore_poison();
        let name = format!("{}-{}", self.name, references.len());
        references.insert(name.clone(), reference);
        Ok(name)
    }

    /// # Errors
    /// Returns an error if there is no such reference.
    pub fn reference(&self, name: &str) -> Result<Arc<Reference>> {
        let references = self.references.lock().ignore_poison();
        let found = references.get(name).cloned();
        found.ok_or_else(|| Status::not_found(format!("no such ref: {name}")))
    }

    /// Returns the result of a reference.
    ///
    /// # Errors
    /// As [`Reference::solve`]. The error of a step has the operation, and names of what is left of it, for containers.
    pub async fn solve(
        &self,
        reference: &Reference,
        builder: &Arc<Builder>,
    ) -> Result<Arc<Solved>> {
        let solved = reference.solve(builder).await;
        solved.map_err(|status| match reference.failed() {
            Some(failed) => status.with(self.detail(&failed)),
            None => status,
        })
    }

    fn detail(&self, failed: &FailedNode<'_>) -> Any {
        let left = failed.left.as_ref();
        let names = left.map(|(remains, held)| self.keep(remains, held));
        let (inputs, results) = names.unwrap_or_default();
        details::solve(&Failure {
            op: &failed.node.op,
            description: &failed.node.metadata.description,
            inputs,
            results,
            subject: failed.error.part().map(|part| match part {
                FailedPart::Action(index) => Subject::Action(index),
                FailedPart::Input(index) => Subject::Input(index),
            }),
        })
    }

    /// Keeps what is left of a step, and returns the names of its inputs and its results.
    fn keep(&self, remains: &Arc<Remains>, held: &Arc<Lease>) -> (Vec<String>, Vec<String>) {
        let mut failed = self.failed.lock().ignore_poison();
        let mut known = failed.by_number.iter();
        let known = known.find(|(_, (kept, _))| Arc::ptr_eq(kept, remains));
        let known = known.map(|(number, _)| *number);
        let number = known.unwrap_or(failed.count);
        if known.is_none() {
            failed.count += 1;
            let kept = (remains.clone(), held.clone());
            failed.by_number.insert(number, kept);
            if failed.by_number.len() > MAX_FAILED {
                failed.by_number.pop_first();
            }
        }
        let names = |kind: &str, all: &[Option<Snapshot>]| -> Vec<String> {
            let all = all.iter().enumerate();
            let name = |(index, files): (usize, &Option<Snapshot>)| match files {
                Some(_) => format!("{}{FAILED}{number}-{kind}{index}", self.name),
                None => String::new(),
            };
            all.map(name).collect()
        };
        (
            names(INPUT, &remains.inputs),
            names(RESULT, &remains.results),
        )
    }

    /// Returns what is left of a step, by its name; `None` if it is no such name.
    pub fn left(&self, name: &str) -> Option<Snapshot> {
        let rest = name.strip_prefix(&self.name)?.strip_prefix(FAILED)?;
        let (number, file) = rest.split_once('-')?;
        let failed = self.failed.lock().ignore_poison();
        let (remains, held) = failed.by_number.get(&number.parse().ok()?)?;
        let (all, index) = match (file.strip_prefix(INPUT), file.strip_prefix(RESULT)) {
            (Some(index), _) => (&remains.inputs, index),
            (None, Some(index)) => (&remains.results, index),
            (None, None) => return None,
        };
        let files = all.get(index.parse::<usize>().ok()?)?.as_ref()?;
        Some(files.held_by(held))
    }

    /// Keeps the result. Returns whether it is the first one.
    pub fn set_returned(&self, returned: Result<gateway::Result>) -> bool {
        self.returned.send_if_modified(|known| {
            let is_first = known.is_none();
            if is_first {
                *known = Some(returned);
            }
            is_first
        })
    }

    /// Makes a result of another scope one of this.
    ///
    /// # Errors
    /// Returns an error if it refers to something that the other scope does not have.
    pub fn adopt(&self, other: &Self, result: gateway::Result) -> Result<gateway::Result> {
        let count = result.kind.as_ref().map_or(0, |kind| ids(kind).len());
        if count > MAX_PLATFORMS {
            return Err(exceeded(format!("more than {MAX_PLATFORMS} results")));
        }
        let reference = |id: &str| -> Result<Ref> {
            // A result without files.
            if id.is_empty() {
                return Ok(Ref::default());
            }
            let reference = other.reference(id)?;
            let def = Some(reference.definition.clone());
            // It was counted when the other scope got it.
            let id = self.share(reference, (0, 0))?;
            Ok(Ref { id, def })
        };
        let named = |names: Vec<(&String, &str)>| -> Result<result::Kind> {
            let refs = names.into_iter();
            let refs = refs.map(|(name, id)| Ok((name.clone(), reference(id)?)));
            let refs = refs.collect::<Result<_>>()?;
            Ok(result::Kind::Refs(RefMap { refs }))
        };
        let kind = match &result.kind {
            None => None,
            Some(result::Kind::RefName(id)) => Some(result::Kind::Ref(reference(id)?)),
            Some(result::Kind::Ref(one)) => Some(result::Kind::Ref(reference(&one.id)?)),
            Some(result::Kind::RefNames(names)) => {
                let names = names.refs.iter();
                Some(named(
                    names.map(|(name, id)| (name, id.as_str())).collect(),
                )?)
            }
            Some(result::Kind::Refs(refs)) => {
                let refs = refs.refs.iter();
                Some(named(
                    refs.map(|(name, one)| (name, one.id.as_str())).collect(),
                )?)
            }
        };
        let mut attestations = result.attestations;
        for one in attestations
            .values_mut()
            .flat_map(|all| &mut all.attestation)
        {
            if let Some(own) = &mut one.r#ref {
                *own = reference(&own.id)?;
            }
        }
        Ok(gateway::Result {
            kind,
            attestations,
            metadata: result.metadata,
        })
    }

    pub fn clear(&self) {
        self.references.lock().ignore_poison().clear();
        // Which kills their processes.
        self.containers.lock().ignore_poison().clear();
        self.failed.lock().ignore_poison().by_number.clear();
    }
}

fn exceeded(what: String) -> Status {
    let text = format!("the frontends of the build exceed a limit: {what}");
    Status::new(Code::ResourceExhausted, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_a_client_are_counted() {
        let scope = Scope::of_client("build", BTreeMap::new());
        let most = MAX_SENT_BY_CLIENT / KEPT_OF_REQUEST;
        assert!((0..most).all(|_| scope.charge(0).is_ok()));
        let refused = scope.charge(0).map_err(|status| status.code);
        assert_eq!(refused, Err(Code::ResourceExhausted));
    }
}
