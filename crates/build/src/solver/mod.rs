//! Execution of graphs.
//!
//! All keys are known first. The operations that the cache does not have are executed as soon as their inputs are
//! there, beside each other; each once for all builds that wait for it (a *flight*). When nobody waits for it any
//! more, it is dropped, which kills its process.

pub(crate) mod plan;

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::{BoxFuture, Shared, WeakShared};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;
use whelk_image::Lease;
use whelk_llb::key::{self, Identity, Use};
use whelk_llb::pb::op::Kind;
use whelk_llb::{CUSTOM_NAME, Digest, Graph, Node};
use whelk_sys::sync::IgnorePoison as _;

use crate::cache::{Outputs, Uses};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::explain::Reasons;
use crate::layers::Stack;
use crate::log::Log;
use crate::ops::{self, Settings};
use crate::progress::{EventKind, Progress};
use crate::request::Request;
use crate::sources::{self, Sources};
use crate::{Builder, blocking};
use plan::{Keys, Task};

type Flight = BoxFuture<'static, Result<Vec<Stack>>>;

/// Operations that are being executed, and results that are not recorded yet.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    running: HashMap<Digest, Running>,
    done: HashMap<Digest, Vec<Stack>>,
}

#[derive(Debug)]
struct Running {
    flight: WeakShared<Flight>,
    log: Arc<Log>,
    /// With which it runs: others may want another network, or larger limits.
    settings: Settings,
}

/// What a client is told of an operation.
#[derive(Clone, Debug, Default)]
pub(crate) enum State {
    #[default]
    Waiting,
    /// Its result was there.
    Cached,
    Running(Arc<Log>),
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
    /// Which operations the cache is not believed for by their keys alone.
    doubtful: Vec<bool>,
    pub(crate) reasons: Reasons,
    pub(crate) states: Vec<watch::Sender<State>>,
    pub(crate) progress: Progress,
    tasks: Vec<Task>,
    /// The results that are in the cache.
    taken: HashMap<usize, Vec<Stack>>,
    /// Holds the layers of all results until the build has ended.
    pub(crate) lease: Arc<Lease>,
    uses: Uses,
}

impl Job {
    /// Computes the keys, and looks the results up. Blocking.
    pub(crate) fn new(
        builder: &Builder,
        graph: Graph,
        sources: Sources,
        request: &Request,
    ) -> Result<Self> {
        let lease = Arc::new(builder.store().leases.take());
        let uses = builder.cache.uses();
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
            |node| sources.identity(node),
            |source, user, selectors| {
                let content = sources.content(source, selectors);
                content.map_err(|error| ops::failed(user, error))
            },
            |op, key| request.settings.key(op, key),
        )?;
        let doubtful = plan::doubtful(&graph);
        let mut taken = HashMap::new();
        let tasks = plan::plan(&graph, |index| {
            let node = &graph.nodes[index];
            if matches!(node.op.kind, Some(Kind::Source(_))) || doubtful[index] {
                return false;
            }
            let found = builder.cache.find(&keys[index].key, &lease, &uses);
            let is_found = found.is_some();
            taken.extend(found.map(|outputs| (index, stacks(outputs))));
            is_found
        });
        let states = graph.nodes.iter().map(|_| watch::Sender::default());
        let job = Self {
            states: states.collect(),
            graph,
            sources,
            settings: request.settings.clone(),
            client: request.client.clone(),
            keys,
            doubtful,
            reasons: Reasons::of(request),
            progress: request.progress.clone(),
            tasks,
            taken,
            lease,
            uses,
        };
        job.announce();
        Ok(job)
    }

    /// Tells clients of the operations that the result consists of, and of those that are cached.
    fn announce(&self) {
        let needed = self.graph.needed();
        let nodes = self.graph.nodes.iter().enumerate();
        // Directories were told of when they were received.
        let is_directory = |node: &Node| match &node.op.kind {
            Some(Kind::Source(source)) => sources::is_directory(source),
            _ => false,
        };
        let told = nodes.clone();
        let told = told.filter(|(index, node)| needed[*index] && !is_directory(node));
        for (_, node) in told {
            let name = node.metadata.description.get(CUSTOM_NAME);
            let inputs = node.inputs.iter();
            let kind = EventKind::Known {
                name: name.cloned().unwrap_or_else(|| node.digest.to_string()),
                inputs: inputs
                    .map(|edge| self.graph.nodes[edge.node].digest)
                    .collect(),
            };
            self.progress.add(node.digest, kind);
        }
        for (index, _) in nodes {
            if self.tasks[index] == Task::Execute {
                continue;
            }
            self.states[index].send_replace(State::Cached);
            if needed[index] && !is_directory(&self.graph.nodes[index]) {
                self.progress
                    .add(self.graph.nodes[index].digest, EventKind::Cached);
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
            State::Running(log) => EventKind::Started {
                log: Some(log.clone()),
            },
            State::Done => EventKind::Done,
            State::Failed(error) => EventKind::Failed(error.clone()),
            State::Left => EventKind::Left,
        };
        self.progress.add(self.graph.nodes[index].digest, kind);
        self.states[index].send_replace(state);
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

fn stacks(outputs: Outputs) -> Vec<Stack> {
    outputs.into_iter().map(Stack::of).collect()
}

impl Builder {
    /// Executes a graph, and returns its result.
    pub(crate) async fn execute(self: &Arc<Self>, job: &Arc<Job>) -> Result<Stack> {
        let graph = &job.graph;
        let Some(result) = graph.result else {
            return Ok(Stack::default());
        };
        let mut done: HashMap<usize, Vec<Stack>> = job.taken.clone();
        // Those whose result may be another one than the last time, for the same key.
        let mut remade = vec![false; graph.nodes.len()];
        let is_missing = |done: &HashMap<usize, Vec<Stack>>, index: usize| {
            let inputs = graph.nodes[index].inputs.iter();
            inputs.filter(|edge| !done.contains_key(&edge.node)).count()
        };
        let mut users: Vec<Vec<usize>> = vec![Vec::new(); graph.nodes.len()];
        let mut running = FuturesUnordered::new();
        let begin = |done: &HashMap<usize, Vec<Stack>>, remade: &[bool], index: usize| {
            let edges = &graph.nodes[index].inputs;
            let remade: Vec<bool> = edges.iter().map(|edge| remade[edge.node]).collect();
            let inputs = edges.iter().map(|edge| {
                let outputs = done.get(&edge.node);
                outputs
                    .and_then(|outputs| outputs.get(edge.output))
                    .cloned()
                    .ok_or_else(|| Error::internal("an operation without a result"))
            });
            let inputs: Result<Vec<Stack>> = inputs.collect();
            let (builder, job) = (self.clone(), job.clone());
            async move { (index, builder.step(&job, index, inputs, &remade).await) }
        };
        for (index, task) in job.tasks.iter().enumerate() {
            if *task != Task::Execute {
                continue;
            }
            for edge in &graph.nodes[index].inputs {
                users[edge.node].push(index);
            }
            if is_missing(&done, index) == 0 {
                running.push(begin(&done, &remade, index));
            }
        }
        let mut begun: Vec<bool> = (0..graph.nodes.len())
            .map(|index| is_missing(&done, index) == 0)
            .collect();
        while let Some((index, outcome)) = running.next().await {
            let node = &graph.nodes[index];
            let outputs = match outcome {
                Ok((outputs, is_remade)) => {
                    remade[index] = is_remade;
                    outputs
                }
                Err(error) => {
                    job.report(index, State::Failed(error.clone()));
                    return Err(Error::Step {
                        op: node.digest,
                        cause: Box::new(error),
                    });
                }
            };
            done.insert(index, outputs);
            for &user in &users[index] {
                if !begun[user] && is_missing(&done, user) == 0 {
                    begun[user] = true;
                    running.push(begin(&done, &remade, user));
                }
            }
        }
        let outputs = done.remove(&result.node).unwrap_or_default();
        let stack = outputs.into_iter().nth(result.output);
        stack.ok_or_else(|| Error::internal("the build has no result"))
    }

    /// Returns the outputs of an operation whose inputs are there, and whether they may be others than what its
    /// key gave the last time. `remade` says so of each input.
    async fn step(
        self: &Arc<Self>,
        job: &Arc<Job>,
        index: usize,
        inputs: Result<Vec<Stack>>,
        remade: &[bool],
    ) -> Result<(Vec<Stack>, bool)> {
        let (node, inputs) = (&job.graph.nodes[index], inputs?);
        if let Some(Kind::Source(source)) = &node.op.kind {
            let stack = job.sources.stack(node, source)?;
            job.report(index, State::Done);
            return Ok((vec![stack], false));
        }
        let known = job.keys[index].key;
        // What stands on a new base is new, too.
        let on_new_base = key::uses(&node.op)
            .into_iter()
            .zip(remade)
            .any(|(used, remade)| *remade && matches!(used, Use::Whole));
        let is_new = node.metadata.ignore_cache || on_new_base;
        let mut keys = vec![known];
        if !is_new {
            let before = match job.doubtful[index] {
                true => self.by_key(job, known).await?,
                // Was not there when the build was planned.
                false => None,
            };
            if !remade.contains(&true)
                && let Some(outputs) = before
            {
                job.report(index, State::Cached);
                return Ok((stacks(outputs), false));
            }
            if job.keys[index].has_content {
                let (key, found) = self.by_content(job, index, &inputs).await?;
                if let Some(outputs) = found {
                    job.report(index, State::Cached);
                    let is_other = job.doubtful[index] && before.as_ref() != Some(&outputs);
                    return Ok((stacks(outputs), is_other));
                }
                keys.push(key);
            }
        }
        self.explain(job, index).await?;
        let (flight, log) = self.join(job, index, keys, inputs, !is_new)?;
        job.report(index, State::Running(log));
        let outputs = flight.await?;
        job.reasons.executed(index);
        job.report(index, State::Done);
        Ok((outputs, job.doubtful[index]))
    }

    async fn by_key(self: &Arc<Self>, job: &Arc<Job>, key: Digest) -> Result<Option<Outputs>> {
        let (builder, job) = (self.clone(), job.clone());
        blocking(move || Ok(builder.cache.find(&key, &job.lease, &job.uses))).await
    }

    /// Returns the key of an operation with the content of its inputs, and the result that it has.
    async fn by_content(
        self: &Arc<Self>,
        job: &Arc<Job>,
        index: usize,
        inputs: &[Stack],
    ) -> Result<(Digest, Option<Outputs>)> {
        let (builder, job, inputs) = (self.clone(), job.clone(), inputs.to_vec());
        blocking(move || builder.content_key(&job, index, &inputs)).await
    }

    /// As [`Builder::by_content`]. Blocking.
    fn content_key(
        &self,
        job: &Job,
        index: usize,
        inputs: &[Stack],
    ) -> Result<(Digest, Option<Outputs>)> {
        let node = &job.graph.nodes[index];
        let mut identities = job.keys[index].identities.clone();
        let uses = key::uses(&node.op);
        for ((identity, used), stack) in identities.iter_mut().zip(uses).zip(inputs) {
            if let (Identity::Selection(_), Use::Selected(selectors)) = (&identity, used) {
                let view = stack.mount(self.store())?;
                *identity = Identity::Content(crate::select::digest(&view.root, &selectors)?);
            }
        }
        let key = job.settings.key(&node.op, key::step(&node.op, &identities));
        let found = self.cache.find(&key, &job.lease, &job.uses);
        if found.is_some() {
            self.cache.alias(&job.keys[index].key, &key)?;
        }
        Ok((key, found))
    }

    /// Joins the execution of an operation if that may be shared, or begins it.
    fn join(
        self: &Arc<Self>,
        job: &Arc<Job>,
        index: usize,
        keys: Vec<Digest>,
        inputs: Vec<Stack>,
        is_shared: bool,
    ) -> Result<(Shared<Flight>, Arc<Log>)> {
        // With the content of the inputs, if it counts: two builds may have the same.
        let key = *keys.last().unwrap_or(&job.keys[index].key);
        let scratch = self.store().staging.scratch()?;
        let log = Arc::new(Log::create(&scratch.path().join("log"))?);
        let mut flights = self.flights.lock().ignore_poison();
        if is_shared {
            if let Some(outputs) = flights.done.get(&key) {
                log.close();
                let done: Flight = std::future::ready(Ok(outputs.clone())).boxed();
                return Ok((done.shared(), log));
            }
            if let Some(running) = flights.running.get(&key)
                && running.settings == job.settings
                && let Some(flight) = running.flight.upgrade()
            {
                return Ok((flight, running.log.clone()));
            }
            // Another build may have finished it since it was planned.
            if let Some(outputs) = self.cache.find(&key, &job.lease, &job.uses) {
                log.close();
                let done: Flight = std::future::ready(Ok(stacks(outputs))).boxed();
                return Ok((done.shared(), log));
            }
        }
        let begin = Begin {
            builder: self.clone(),
            node: job.graph.nodes[index].clone(),
            settings: job.settings.clone(),
            client: job.client.clone(),
            keys,
            inputs,
            log: log.clone(),
        };
        let flight = begin.run().boxed().shared();
        if is_shared && let Some(weak) = flight.downgrade() {
            flights
                .running
                .retain(|_, running| running.flight.upgrade().is_some());
            let running = Running {
                flight: weak,
                log: log.clone(),
                settings: job.settings.clone(),
            };
            flights.running.insert(key, running);
        }
        Ok((flight, log))
    }
}

/// An operation that is to be executed.
struct Begin {
    builder: Arc<Builder>,
    node: Node,
    settings: Settings,
    /// Of the build that has begun it.
    client: Arc<dyn Client>,
    keys: Vec<Digest>,
    inputs: Vec<Stack>,
    log: Arc<Log>,
}

/// Closes a log when the operation has ended, or is dropped.
struct Closing(Arc<Log>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Begin {
    async fn run(self) -> Result<Vec<Stack>> {
        let Self {
            builder,
            node,
            settings,
            client,
            keys,
            inputs,
            log,
        } = self;
        let _closing = Closing(log.clone());
        let lease = builder.store().leases.take();
        let context = ops::Context {
            store: builder.store().clone(),
            lease: Arc::new(lease),
            client,
        };
        let lease = context.lease.clone();
        let outputs = ops::run(&builder, context, &node, inputs, &settings, &log).await?;
        {
            let mut flights = builder.flights.lock().ignore_poison();
            for key in &keys {
                flights.done.insert(*key, outputs.clone());
            }
        }
        tokio::spawn({
            let (builder, outputs) = (builder.clone(), outputs.clone());
            async move {
                if let Err(error) = builder.record(&node, &keys, &outputs, &lease).await {
                    tracing::warn!("record the result of a step: {error}");
                }
                let mut flights = builder.flights.lock().ignore_poison();
                for key in &keys {
                    flights.done.remove(key);
                }
                drop(flights);
                builder.recorded.send_replace(());
            }
        });
        Ok(outputs)
    }
}

impl Builder {
    /// Waits until the results of these keys are recorded, or could not be.
    pub(crate) async fn recorded(&self, keys: &[Digest]) {
        let mut recorded = self.recorded.subscribe();
        loop {
            recorded.mark_unchanged();
            {
                let flights = self.flights.lock().ignore_poison();
                if keys.iter().all(|key| !flights.done.contains_key(key)) {
                    return;
                }
            }
            // Never closed: `self` owns the sender.
            let _ = recorded.changed().await;
        }
    }

    /// Records a result when its layers are sealed, while `lease` holds them.
    async fn record(
        self: &Arc<Self>,
        node: &Node,
        keys: &[Digest],
        outputs: &[Stack],
        lease: &Arc<Lease>,
    ) -> Result<()> {
        let mut sealed: Outputs = Vec::with_capacity(outputs.len());
        for stack in outputs {
            let digests = stack.digests().await?;
            let times = stack.0.iter().map(|layer| layer.created);
            sealed.push(digests.into_iter().zip(times).collect());
        }
        let text = node.metadata.description.get(CUSTOM_NAME);
        let (text, keys) = (text.cloned().unwrap_or_default(), keys.to_vec());
        let (builder, held) = (self.clone(), lease.clone());
        blocking(move || {
            let store = builder.store();
            let own = store.leases.take();
            for (layer, _) in sealed.iter().flatten() {
                if !store.snapshots.claim(&own, layer) {
                    return Err(Error::internal(format!("layer {layer} is missing")));
                }
            }
            drop(held);
            builder.cache.insert(&keys, &sealed, &text, own)
        })
        .await
    }
}
