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
pub(crate) mod plan;

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use whelk_image::Lease;
use whelk_llb::key::{self, Identity, Use};
use whelk_llb::pb::op::Kind;
use whelk_llb::{CUSTOM_NAME, Digest, Graph, Node};

use crate::cache::{Found, Outputs, Uses};
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
use flights::{Joined, Wanted};
use plan::{Keys, Task};

pub(crate) use flights::{Flights, Waiting};

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
    /// Which operations the cache is not believed for by their keys alone.
    doubtful: Vec<bool>,
    pub(crate) reasons: Reasons,
    pub(crate) states: Vec<watch::Sender<State>>,
    pub(crate) progress: Progress,
    tasks: Vec<Task>,
    /// The results that are in the cache.
    taken: HashMap<usize, Found>,
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
            |node, is_whole| sources.identity(node, is_whole),
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
            taken.extend(found.map(|found| (index, found)));
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
            State::Running(log) => EventKind::Started { log: log.clone() },
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

/// An operation's result in a build.
#[derive(Clone, Debug)]
struct Outcome {
    outputs: Vec<Stack>,
    canonical: Digest,
    /// Whether it was made although there may have been one: what stands on it is made again, too.
    is_fresh: bool,
    /// Whether it may be another one than what its key gave the last time.
    is_other: bool,
}

impl Outcome {
    fn found(found: Found) -> Self {
        let Found { outputs, canonical } = found;
        let outputs: Outputs = outputs;
        Self {
            outputs: outputs.into_iter().map(Stack::of).collect(),
            canonical,
            is_fresh: false,
            is_other: false,
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
}

/// What a graph has given.
pub(crate) struct Executed {
    pub stack: Stack,
    /// The keys under which its results are recorded.
    pub keys: Vec<Digest>,
}

impl Builder {
    /// Executes a graph.
    pub(crate) async fn execute(self: &Arc<Self>, job: &Arc<Job>) -> Result<Executed> {
        let graph = &job.graph;
        let Some(result) = graph.result else {
            return Ok(Executed {
                stack: Stack::default(),
                keys: Vec::new(),
            });
        };
        let taken = job.taken.iter();
        let taken = taken.map(|(index, found)| (*index, Outcome::found(found.clone())));
        let mut done: HashMap<usize, Outcome> = taken.collect();
        let is_ready = |done: &HashMap<usize, Outcome>, index: usize| {
            let mut inputs = graph.nodes[index].inputs.iter();
            inputs.all(|edge| done.contains_key(&edge.node))
        };
        let mut users: Vec<Vec<usize>> = vec![Vec::new(); graph.nodes.len()];
        let mut running = FuturesUnordered::new();
        let begin = |done: &HashMap<usize, Outcome>, index: usize| {
            let inputs = inputs(graph, done, index);
            let (builder, job) = (self.clone(), job.clone());
            async move { (index, builder.step(&job, index, inputs).await) }
        };
        let mut begun = vec![false; graph.nodes.len()];
        for (index, task) in job.tasks.iter().enumerate() {
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
                    job.report(index, State::Failed(error.clone()));
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
        let outcome = done.remove(&result.node);
        let stack = outcome.and_then(|outcome| outcome.outputs.into_iter().nth(result.output));
        let stack = stack.ok_or_else(|| Error::internal("the build has no result"))?;
        Ok(Executed { stack, keys })
    }

    /// Returns the result of an operation whose inputs are there.
    async fn step(
        self: &Arc<Self>,
        job: &Arc<Job>,
        index: usize,
        inputs: Result<Vec<Input>>,
    ) -> Result<Outcome> {
        let (node, inputs) = (&job.graph.nodes[index], inputs?);
        let keys = &job.keys[index];
        if let Some(Kind::Source(source)) = &node.op.kind {
            let stack = job.sources.stack(self.store(), &job.lease, node, source)?;
            job.report(index, State::Done);
            return Ok(Outcome {
                outputs: vec![stack],
                canonical: keys.key,
                is_fresh: false,
                is_other: false,
            });
        }
        // What stands on a new base is new, too.
        let stands_on_new = key::uses(&node.op)
            .into_iter()
            .zip(&inputs)
            .any(|(used, input)| input.is_fresh && matches!(used, Use::Whole));
        let is_fresh = node.metadata.ignore_cache || stands_on_new;
        let is_doubtful = job.doubtful[index];
        let before = match is_doubtful && !is_fresh {
            true => self.look_up(job, keys.key).await?,
            // Was not there when the build was planned.
            false => None,
        };
        if !inputs.iter().any(|input| input.is_other)
            && let Some(found) = &before
        {
            job.report(index, State::Cached);
            return Ok(Outcome::found(found.clone()));
        }
        let canonical = self.canonical(job, index, &inputs).await?;
        if !is_fresh
            && canonical != keys.key
            && let Some(found) = self.look_up(job, canonical).await?
        {
            if keys.is_lasting {
                let (builder, key) = (self.clone(), keys.key);
                blocking(move || builder.cache.alias(&key, &canonical)).await?;
            }
            job.report(index, State::Cached);
            let is_same = before.is_some_and(|before| before.outputs == found.outputs);
            return Ok(Outcome {
                is_other: is_doubtful && !is_same,
                ..Outcome::found(found)
            });
        }
        let lasting = [
            (keys.key, keys.is_lasting),
            (
                canonical,
                keys.is_lasting_by_content && canonical != keys.key,
            ),
        ];
        let lasting = lasting.into_iter().filter(|(_, is_lasting)| *is_lasting);
        let wanted = Wanted {
            index,
            key: canonical,
            keys: lasting.map(|(key, _)| key).collect(),
            inputs: inputs.into_iter().map(|input| input.stack).collect(),
            is_shared: !is_fresh,
        };
        let outputs = match self.join(job, wanted).await? {
            Joined::Flight(flight, log) => {
                self.explain(job, index).await?;
                job.report(index, State::Running(log));
                let outputs = flight.await?;
                job.reasons.executed(index);
                job.report(index, State::Done);
                outputs
            }
            Joined::Done(outputs) => {
                job.report(index, State::Cached);
                outputs
            }
            Joined::Cached(found) => {
                job.report(index, State::Cached);
                Outcome::found(found).outputs
            }
        };
        Ok(Outcome {
            outputs,
            canonical,
            is_fresh,
            is_other: is_doubtful,
        })
    }

    /// Returns the result that a key has in the cache.
    async fn look_up(self: &Arc<Self>, job: &Arc<Job>, key: Digest) -> Result<Option<Found>> {
        let (builder, job) = (self.clone(), job.clone());
        blocking(move || Ok(builder.cache.find(&key, &job.lease, &job.uses))).await
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
            for ((identity, used), input) in identities.iter_mut().zip(uses).zip(&inputs) {
                match (&identity, used) {
                    (Identity::Step(_), _) => *identity = Identity::Step(input.canonical),
                    (Identity::Selection(_), Use::Selected(selectors)) => {
                        let view = input.stack.mount(builder.store())?;
                        let content = crate::select::digest(&view.root, &selectors, None);
                        let content = content.map_err(|error| ops::named(node, error))?;
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

fn inputs(graph: &Graph, done: &HashMap<usize, Outcome>, index: usize) -> Result<Vec<Input>> {
    let edges = graph.nodes[index].inputs.iter();
    edges
        .map(|edge| {
            let missing = || Error::internal("an operation without a result");
            let outcome = done.get(&edge.node).ok_or_else(missing)?;
            let stack = outcome.outputs.get(edge.output).cloned();
            Ok(Input {
                stack: stack.ok_or_else(missing)?,
                canonical: outcome.canonical,
                is_fresh: outcome.is_fresh,
                is_other: outcome.is_other,
            })
        })
        .collect()
}
