//! Execution of graphs.
//!
//! All keys are known first. The operations that the cache does not have are executed as soon as their inputs are
//! there, beside each other; each once for all builds that wait for it (a *flight*). When nobody waits for it any
//! more, it is dropped, which kills its process.
//!
//! When the inputs are there, their content is, too. Then an operation has another key, its *canonical* one: in it, what is
//! read of other steps is known by its content, and what it stands on by the canonical key of that. So what
//! stands on a copy from a stage does not depend on how the stage was made.

mod flights;
pub(crate) mod names;
pub(crate) mod plan;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use whelk_image::Lease;
use whelk_llb::key::{self, Identity, Use};
use whelk_llb::pb::MountType;
use whelk_llb::pb::op::Kind;
use whelk_llb::{Digest, Graph, Node};

use crate::cache::{CachedResult, Outputs, Uses};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::explain::Reasons;
use crate::failed::Remains;
use crate::layers::Stack;
use crate::log::Log;
use crate::ops::{self, Settings};
use crate::progress::{EventKind, Progress};
use crate::request::Request;
use crate::snapshot::Snapshot;
use crate::sources::{self, Sources};
use crate::transfer::{ExportedSteps, Imports, Offer, Place, Step};
use crate::{Builder, blocking};
use flights::{Joined, Operation};
use plan::{Keys, Plan, Task};

pub(crate) use flights::{Flights, Waiting};

/// Number of results that are fetched from imported caches at the same time.
const FETCHED_STEPS: usize = 4;

/// What a client is told of an operation.
#[derive(Clone, Debug, Default)]
pub(crate) enum State {
    #[default]
    Waiting,
    /// Its result was there.
    Cached,
    /// With the output of a process.
    Running(Option<Arc<Log>>),
    Done,
    Failed(Error),
    /// The build has ended before it.
    Left,
}

/// A graph to solve.
#[derive(Debug)]
pub struct Job {
    pub graph: Graph,
    pub(crate) sources: Sources,
    pub(crate) settings: Settings,
    client: Arc<dyn Client>,
    pub(crate) keys: Vec<Keys>,
    /// The operations that the cache is not looked up for by their keys alone (`plan::doubtful`).
    doubtful: Vec<bool>,
    pub(crate) reasons: Reasons,
    pub(crate) states: Vec<watch::Sender<State>>,
    pub(crate) progress: Progress,
    plan: Plan,
    /// The results that are in the cache.
    taken: HashMap<usize, CachedResult>,
    /// The results that are in imported caches, and still have to be fetched.
    offered: HashMap<usize, Offer>,
    pub(crate) imports: Arc<Imports>,
    has_inline_cache: bool,
    /// Holds the layers of all results until the build has ended.
    pub(crate) lease: Arc<Lease>,
    pub(crate) uses: Arc<Uses>,
}

impl Job {
    /// Returns what holds the layers of images, and of results that were there.
    pub fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    /// Computes the keys, and looks the results up. Blocking.
    pub(crate) fn new(
        builder: &Arc<Builder>,
        graph: Graph,
        sources: Sources,
        request: &Request,
    ) -> Result<Self> {
        let lease = Arc::new(builder.store().leases.take());
        let uses = Arc::new(builder.cache.uses().then_collect(builder));
        for image in sources.all_images() {
            for layer in &image.config.rootfs.diff_ids {
                if !builder.store().snapshots.claim(&lease, layer) {
                    let id = &image.id;
                    return Err(Error::internal(format!("layer {layer} of {id} is missing")));
                }
            }
        }
        let keys = plan::keys(
            &graph,
            |node, is_whole| sources.identity(node, is_whole),
            |source, user, selectors| {
                let content = sources.content(source, selectors);
                content.map_err(|error| ops::failed(user, error))
            },
            |op, key| request.settings.key(op, key),
        )?;
        let doubtful = plan::doubtful(&graph);
        let states = graph.nodes.iter().map(|_| watch::Sender::default());
        let mut job = Self {
            states: states.collect(),
            graph,
            sources,
            settings: request.settings.clone(),
            client: request.client.clone(),
            keys,
            doubtful,
            reasons: Reasons::of(request),
            progress: request.progress.clone(),
            plan: Plan::default(),
            taken: HashMap::new(),
            offered: HashMap::new(),
            imports: request.imports.clone(),
            has_inline_cache: request.has_inline_cache,
            lease,
            uses,
        };
        job.announce();
        job.choose(builder);
        Ok(job)
    }

    /// Decides what is executed: looks results up in the cache, and in imported ones. Blocking.
    fn choose(&mut self, builder: &Builder) {
        let (mut taken, mut offered) = (HashMap::new(), HashMap::new());
        self.plan = plan::plan(&self.graph, |index, needed| {
            let node = &self.graph.nodes[index];
            if matches!(node.op.kind, Some(Kind::Source(_))) || self.doubtful[index] {
                return false;
            }
            let key = &self.keys[index].key;
            let (lease, uses) = (&self.lease, &self.uses);
            if let Some(found) = builder.cache.find(key, needed, lease, uses) {
                taken.insert(index, found);
                return true;
            }
            let offer = self.imports.find(key, node.outputs, needed);
            let is_offered = offer.is_some();
            offered.extend(offer.map(|offer| (index, offer)));
            is_offered
        });
        (self.taken, self.offered) = (taken, offered);
    }

    /// Tells clients of the operations that the result consists of.
    fn announce(&self) {
        let needed = self.graph.needed();
        let names = names::of(&self.graph);
        for (index, (node, name)) in self.graph.nodes.iter().zip(names).enumerate() {
            if !needed[index] || is_directory(node) {
                continue;
            }
            let inputs = node.inputs.iter();
            let kind = EventKind::Announced {
                name: name.into_owned(),
                inputs: inputs
                    .map(|edge| self.graph.nodes[edge.node].digest)
                    .collect(),
            };
            self.progress.add(node.digest, kind);
        }
    }

    /// Tells clients of the operations that are not executed.
    fn announce_cached(&self) {
        let needed = self.graph.needed();
        for (index, node) in self.graph.nodes.iter().enumerate() {
            if self.plan.tasks[index] == Task::Execute {
                continue;
            }
            self.states[index].send_replace(State::Cached);
            if needed[index] && !is_directory(node) {
                self.progress.add(node.digest, EventKind::Cached);
            }
        }
    }

    /// Notes what has become of an operation.
    fn report(&self, index: usize, state: State) {
        if let Some(Kind::Source(source)) = &self.graph.nodes[index].op.kind
            && sources::is_directory(source)
        {
            self.states[index].send_replace(state);
            return;
        }
        let kind = match &state {
            State::Waiting => return,
            State::Cached => EventKind::Cached,
            State::Running(log) => EventKind::Started { log: log.clone() },
            State::Done => EventKind::Done,
            State::Failed(error) => EventKind::Failed(error.clone()),
            State::Left => EventKind::Left,
        };
        self.progress.add(self.graph.nodes[index].digest, kind);
        self.states[index].send_replace(state);
    }

    /// Returns what an export of the cache needs to know of the steps.
    fn made(&self, done: &HashMap<usize, StepResult>) -> ExportedSteps {
        let needed = self.graph.needed();
        let nodes = self.graph.nodes.iter().enumerate();
        let is_step = |node: &Node| !matches!(node.op.kind, Some(Kind::Source(_)));
        let steps = nodes.filter(|(index, node)| needed[*index] && is_step(node));
        let steps = steps.flat_map(|(index, node)| {
            let (keys, outcome) = (&self.keys[index], done.get(&index));
            let canonical = outcome.filter(|_| keys.is_lasting_by_content);
            (0..node.outputs).map(move |output| Step {
                key: keys.is_lasting.then_some(keys.key),
                canonical: canonical.map(|outcome| outcome.canonical),
                is_foreign: outcome.is_some_and(|outcome| outcome.is_foreign),
                place: Place {
                    output,
                    count: node.outputs,
                },
                stack: outcome.and_then(|outcome| outcome.outputs.get(output)?.clone()),
                name: description(node, output),
            })
        });
        ExportedSteps {
            steps: steps.collect(),
            bases: self.sources.base_layers(),
            imports: self.imports.clone(),
            has_inline_cache: self.has_inline_cache,
            progress: self.progress.clone(),
        }
    }

    /// Ends the waiting for operations that were not executed to their end.
    pub(crate) fn end(&self) {
        for (index, state) in self.states.iter().enumerate() {
            let is_open = matches!(*state.borrow(), State::Waiting | State::Running(_));
            if is_open {
                self.report(index, State::Left);
            }
        }
    }
}

/// Returns what an operation does, in BuildKit's words for the history of an image that has no entry of its own for it.
fn description(node: &Node, output: usize) -> String {
    /// Maximum length in characters.
    const MAX: usize = 1024;
    let text = match &node.op.kind {
        Some(Kind::Exec(exec)) => {
            let args = exec
                .meta
                .as_ref()
                .map_or(&[][..], |meta| meta.args.as_slice());
            let mut mounts = exec.mounts.iter();
            let mount = mounts.find(|mount| {
                usize::try_from(mount.output) == Ok(output)
                    && mount.mount_type == i32::from(MountType::Bind)
            });
            let dest = mount.map_or("/", |mount| mount.dest.as_str());
            format!("mount {dest} from exec {}", args.join(" "))
        }
        Some(Kind::File(_)) => "fileop target".to_owned(),
        Some(Kind::Merge(_)) => "merge".to_owned(),
        Some(Kind::Diff(_)) => "diff".to_owned(),
        _ => "created by buildkit".to_owned(),
    };
    text.chars().take(MAX).collect()
}

/// Returns whether clients are told of an operation when it is received.
fn is_directory(node: &Node) -> bool {
    match &node.op.kind {
        Some(Kind::Source(source)) => sources::is_directory(source),
        _ => false,
    }
}

/// An operation's result in a build.
#[derive(Clone, Debug)]
struct StepResult {
    /// `None` for one that is not needed.
    outputs: Vec<Option<Stack>>,
    canonical: Digest,
    /// Whether it was made without a look at the cache: what stands on it is made again, too.
    is_fresh: bool,
    /// Whether it may differ from the result that its key had the last time.
    is_other: bool,
    /// Whether the canonical key is what an imported cache says. Nothing is recorded under a key that is made of it, so
    /// that a cache answers only for the steps that it was asked for.
    is_foreign: bool,
}

impl StepResult {
    fn found(found: CachedResult) -> Self {
        let CachedResult {
            outputs,
            canonical,
            is_foreign,
        } = found;
        let outputs: Outputs = outputs;
        Self {
            outputs: outputs
                .into_iter()
                .map(|output| output.map(Stack::of))
                .collect(),
            canonical,
            is_fresh: false,
            is_other: false,
            is_foreign,
        }
    }
}

/// An input of an operation: one output of another one.
#[derive(Clone, Debug)]
struct Input {
    stack: Stack,
    canonical: Digest,
    is_fresh: bool,
    is_other: bool,
    is_foreign: bool,
}

/// The result of a graph.
pub(crate) struct Executed {
    pub stack: Stack,
    /// The keys under which its results are recorded.
    pub keys: Vec<Digest>,
    pub made: ExportedSteps,
}

impl Builder {
    /// Executes a graph.
    pub(crate) async fn execute(self: &Arc<Self>, job: &Arc<Job>) -> Result<Executed> {
        let graph = &job.graph;
        let Some(result) = graph.result else {
            return Ok(Executed {
                stack: Stack::default(),
                keys: Vec::new(),
                made: ExportedSteps::default(),
            });
        };
        let taken = job.taken.iter();
        let taken = taken.map(|(index, found)| (*index, StepResult::found(found.clone())));
        let mut done: HashMap<usize, StepResult> = taken.collect();
        let is_ready = |done: &HashMap<usize, StepResult>, index: usize| {
            let mut inputs = graph.nodes[index].inputs.iter();
            inputs.all(|edge| done.contains_key(&edge.node))
        };
        let mut users: Vec<Vec<usize>> = vec![Vec::new(); graph.nodes.len()];
        let mut running = FuturesUnordered::new();
        let begin = |done: &HashMap<usize, StepResult>, index: usize| {
            let inputs = inputs(graph, done, index);
            let (builder, job) = (self.clone(), job.clone());
            async move { (index, builder.step(&job, index, inputs).await) }
        };
        let mut begun = vec![false; graph.nodes.len()];
        for (index, task) in job.plan.tasks.iter().enumerate() {
            if *task != Task::Execute {
                continue;
            }
            for edge in &graph.nodes[index].inputs {
                users[edge.node].push(index);
            }
            if is_ready(&done, index) {
                begun[index] = true;
                running.push(begin(&done, index));
            }
        }
        while let Some((index, outcome)) = running.next().await {
            match outcome {
                Ok(outcome) => drop(done.insert(index, outcome)),
                Err(error) => {
                    job.report(index, State::Failed(error.without_state()));
                    return Err(Error::Step {
                        op: graph.nodes[index].digest,
                        cause: Box::new(error),
                    });
                }
            }
            for &user in &users[index] {
                if !begun[user] && is_ready(&done, user) {
                    begun[user] = true;
                    running.push(begin(&done, user));
                }
            }
        }
        let known = done.keys().map(|index| job.keys[*index].key);
        let canonical = done.values().map(|outcome| outcome.canonical);
        let keys = known.chain(canonical).collect();
        let made = job.made(&done);
        let outcome = done.remove(&result.node);
        let stack = outcome.and_then(|outcome| outcome.outputs.into_iter().nth(result.output)?);
        let stack = stack.ok_or_else(|| Error::internal("the build has no result"))?;
        Ok(Executed { stack, keys, made })
    }

    /// Returns the result of an operation whose inputs are there.
    async fn step(
        self: &Arc<Self>,
        job: &Arc<Job>,
        index: usize,
        inputs: Result<Vec<Input>>,
    ) -> Result<StepResult> {
        let (node, inputs) = (&job.graph.nodes[index], inputs?);
        let keys = &job.keys[index];
        if let Some(Kind::Source(source)) = &node.op.kind {
            let stack = job.sources.stack(self.store(), &job.lease, node, source)?;
            job.report(index, State::Done);
            return Ok(StepResult {
                outputs: vec![Some(stack)],
                canonical: keys.key,
                is_fresh: false,
                is_other: false,
                is_foreign: false,
            });
        }
        // What stands on a new base is new, too.
        let stands_on_new = key::uses(&node.op)
            .into_iter()
            .zip(&inputs)
            .any(|(used, input)| input.is_fresh && matches!(used, Use::Whole));
        let is_fresh = node.metadata.ignore_cache || stands_on_new;
        let canonical = match self.search(job, index, &inputs, is_fresh).await? {
            ControlFlow::Continue(canonical) => canonical,
            ControlFlow::Break(found) => {
                job.report(index, State::Cached);
                return Ok(found);
            }
        };
        let is_foreign = inputs.iter().any(|input| input.is_foreign);
        let lasting = [
            (keys.key, keys.is_lasting),
            (
                canonical,
                keys.is_lasting_by_content && canonical != keys.key && !is_foreign,
            ),
        ];
        let lasting = lasting.into_iter().filter(|(_, is_lasting)| *is_lasting);
        let wanted = Operation {
            index,
            key: canonical,
            keys: lasting.map(|(key, _)| key).collect(),
            inputs: inputs.into_iter().map(|input| input.stack).collect(),
            is_shared: !is_fresh && !is_foreign,
        };
        let outputs = match self.join(job, wanted).await? {
            Joined::Flight(flight, log) => {
                self.explain(job, index).await?;
                job.report(index, State::Running(log));
                let outputs = flight.await;
                job.reasons.executed(index, outputs.is_err());
                let outputs = outputs?;
                job.report(index, State::Done);
                outputs.into_iter().map(Some).collect()
            }
            Joined::Done(outputs) => {
                job.report(index, State::Cached);
                outputs.into_iter().map(Some).collect()
            }
            Joined::Cached(found) => {
                job.report(index, State::Cached);
                StepResult::found(found).outputs
            }
        };
        Ok(StepResult {
            outputs,
            canonical,
            is_fresh,
            is_other: job.doubtful[index],
            is_foreign,
        })
    }

    /// Looks an operation, whose inputs are there, up in the cache and in imported ones. If it has no result there, returns
    /// the key by the contents of the inputs.
    async fn search(
        self: &Arc<Self>,
        job: &Arc<Job>,
        index: usize,
        inputs: &[Input],
        is_fresh: bool,
    ) -> Result<ControlFlow<StepResult, Digest>> {
        let keys = &job.keys[index];
        let is_doubtful = job.doubtful[index];
        let before = match is_doubtful && !is_fresh {
            true => self.look_up_anywhere(job, index, keys.key).await?,
            // The plan has looked it up already.
            false => None,
        };
        if !inputs.iter().any(|input| input.is_other)
            && let Some(found) = &before
        {
            return Ok(ControlFlow::Break(StepResult::found(found.clone())));
        }
        let is_foreign = inputs.iter().any(|input| input.is_foreign);
        let canonical = self.canonical(job, index, inputs).await?;
        let same = match is_fresh || canonical == keys.key {
            true => None,
            // What is taken of an imported cache is recorded, and this key is made of what an imported cache says.
            false if is_foreign => self.look_up(job, index, canonical).await?,
            false => self.look_up_anywhere(job, index, canonical).await?,
        };
        let Some(found) = same else {
            return Ok(ControlFlow::Continue(canonical));
        };
        if keys.is_lasting && !is_foreign {
            let (builder, key) = (self.clone(), keys.key);
            blocking(move || builder.cache.alias(&key, &canonical)).await?;
        }
        let is_same = before.is_some_and(|before| before.outputs == found.outputs);
        Ok(ControlFlow::Break(StepResult {
            is_other: is_doubtful && !is_same,
            ..StepResult::found(found)
        }))
    }

    /// Returns the result that a key has in the cache, or in an imported one.
    async fn look_up_anywhere(
        self: &Arc<Self>,
        job: &Arc<Job>,
        index: usize,
        key: Digest,
    ) -> Result<Option<CachedResult>> {
        if let Some(found) = self.look_up(job, index, key).await? {
            return Ok(Some(found));
        }
        let (count, needed) = (job.graph.nodes[index].outputs, &job.plan.outputs[index]);
        while let Some(offer) = job.imports.find(&key, count, needed) {
            if let Some(found) = self.take_offer(job, index, offer).await {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Fetches the results that the plan takes from imported caches. Without those that cannot be had, there is another plan.
    pub(crate) async fn fetched(self: &Arc<Self>, mut job: Job) -> Result<Job> {
        while !job.offered.is_empty() {
            let offered = std::mem::take(&mut job.offered);
            let count = offered.len();
            let fetches = offered.into_iter().map(|(index, offer)| {
                let (builder, job) = (self.clone(), &job);
                async move { (index, builder.take_offer(job, index, offer).await) }
            });
            let fetches: Vec<_> = futures_util::stream::iter(fetches)
                .buffer_unordered(FETCHED_STEPS)
                .collect()
                .await;
            let found = fetches.into_iter();
            let found: Vec<_> = found
                .filter_map(|(index, found)| Some((index, found?)))
                .collect();
            let is_complete = found.len() == count;
            job.taken.extend(found);
            if is_complete {
                break;
            }
            let builder = self.clone();
            job = blocking(move || {
                job.choose(&builder);
                Ok(job)
            })
            .await?;
        }
        job.announce_cached();
        Ok(job)
    }

    /// Returns the result that a key has in the cache, with the outputs that are needed of the operation.
    async fn look_up(
        self: &Arc<Self>,
        job: &Arc<Job>,
        index: usize,
        key: Digest,
    ) -> Result<Option<CachedResult>> {
        let (builder, job) = (self.clone(), job.clone());
        blocking(move || {
            let needed = &job.plan.outputs[index];
            Ok(builder.cache.find(&key, needed, &job.lease, &job.uses))
        })
        .await
    }

    /// Returns the canonical key of an operation whose inputs are there.
    async fn canonical(
        self: &Arc<Self>,
        job: &Arc<Job>,
        index: usize,
        inputs: &[Input],
    ) -> Result<Digest> {
        let (builder, job, inputs) = (self.clone(), job.clone(), inputs.to_vec());
        blocking(move || {
            let node = &job.graph.nodes[index];
            let mut identities = job.keys[index].identities.clone();
            let uses = key::uses(&node.op);
            let all = identities.iter_mut().zip(uses).zip(&inputs);
            for (number, ((identity, used), input)) in all.enumerate() {
                match (&identity, used) {
                    (Identity::Step(_), _) => *identity = Identity::Step(input.canonical),
                    (Identity::Selection(_), Use::Selected(selectors)) => {
                        let view = input.stack.mount(builder.store())?;
                        let content = crate::select::digest(&view.root, &selectors, None);
                        let content = content.map_err(|error| {
                            let snapshot = Snapshot::new(input.stack.clone(), &job.lease);
                            let is_empty = input.stack.0.is_empty();
                            let error = ops::missing(node, error, is_empty);
                            Remains::missing(number, snapshot, error)
                        })?;
                        *identity = Identity::Content(content);
                    }
                    _ => {}
                }
            }
            Ok(job.settings.key(&node.op, key::step(&node.op, &identities)))
        })
        .await
    }
}

fn inputs(graph: &Graph, done: &HashMap<usize, StepResult>, index: usize) -> Result<Vec<Input>> {
    let edges = graph.nodes[index].inputs.iter();
    edges
        .map(|edge| {
            let missing = || Error::internal("an operation without a result");
            let outcome = done.get(&edge.node).ok_or_else(missing)?;
            let stack = outcome.outputs.get(edge.output).cloned().flatten();
            Ok(Input {
                stack: stack.ok_or_else(missing)?,
                canonical: outcome.canonical,
                is_fresh: outcome.is_fresh,
                is_other: outcome.is_other,
                is_foreign: outcome.is_foreign,
            })
        })
        .collect()
}
