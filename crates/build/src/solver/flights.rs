//! Executions that several builds share.
//!
//! ```text
//! running (a future that its builds wait for) ─► done (being sealed) ─► recorded in the cache
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use whelk_image::Lease;
use whelk_llb::pb::op::Kind;
use whelk_llb::{Digest, Node};
use whelk_sys::sync::IgnorePoison as _;

use super::{Job, names};
use crate::cache::{CachedResult, Outputs, Uses};
use crate::client::{Client, Clients};
use crate::error::Result;
use crate::layers::Stack;
use crate::log::Log;
use crate::ops::{self, Settings};
use crate::{Builder, blocking};

type Flight = BoxFuture<'static, Result<Vec<Stack>>>;

/// Operations that are being executed, and results that are not recorded yet.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    running: HashMap<Digest, Running>,
    /// With the number of the execution: another one may have replaced the result of a key.
    done: HashMap<Digest, (u64, Vec<Stack>)>,
    begun: u64,
    /// Number of results that were recorded.
    recorded: u64,
}

#[derive(Debug)]
struct Running {
    flight: WeakShared<Flight>,
    log: Option<Weak<Log>>,
    /// The settings that it runs with: other builds may want another network, or larger limits.
    settings: Settings,
    /// Weak, because clients must not be kept beyond the end of the execution.
    waiting: Weak<Waiting>,
}

/// What the builds that wait for an execution have in common.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub clients: Clients,
    /// The keys that the result is recorded under, the canonical one last.
    keys: Mutex<Vec<Digest>>,
    /// What they use of the cache, which the result belongs to.
    users: Mutex<Vec<Weak<Uses>>>,
}

impl Waiting {
    /// Returns what one client has, which waits for no result.
    pub fn alone(client: Arc<dyn Client>) -> Self {
        Self {
            clients: Clients::of(client),
            keys: Mutex::default(),
            users: Mutex::default(),
        }
    }

    fn join(&self, job: &Job, keys: &[Digest]) {
        self.clients.add(job.client.clone());
        let mut users = self.users.lock().ignore_poison();
        users.push(Arc::downgrade(&job.uses));
        let mut all = self.keys.lock().ignore_poison();
        for key in keys {
            if !all.contains(key) {
                all.insert(0, *key);
            }
        }
    }

    fn keys(&self) -> Vec<Digest> {
        self.keys.lock().ignore_poison().clone()
    }

    /// Returns what the builds use that have not ended.
    fn users(&self) -> Vec<Arc<Uses>> {
        let users = self.users.lock().ignore_poison();
        users.iter().filter_map(Weak::upgrade).collect()
    }
}

/// An operation whose result is wanted.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub index: usize,
    /// The canonical key, by which builds find each other's executions.
    pub key: Digest,
    /// The keys that the result is recorded under, the canonical one last. Without any it is not recorded.
    pub keys: Vec<Digest>,
    pub inputs: Vec<Stack>,
    /// Whether a result that is there is as good as a new one.
    pub is_shared: bool,
}

/// Where a result comes from.
pub(super) enum Joined {
    Flight(Shared<Flight>, Option<Arc<Log>>),
    /// It is done, but not recorded yet.
    Done(Vec<Stack>),
    Cached(CachedResult),
}

impl Flights {
    fn find(&self, job: &Job, wanted: &Operation) -> Option<Joined> {
        if !wanted.is_shared {
            return None;
        }
        if let Some((_, outputs)) = self.done.get(&wanted.key) {
            return Some(Joined::Done(outputs.clone()));
        }
        let running = self.running.get(&wanted.key)?;
        let flight = running.flight.upgrade()?;
        // It may have failed for a secret that only this client has.
        let has_failed = matches!(flight.peek(), Some(Err(_)));
        if has_failed || running.settings != job.settings {
            return None;
        }
        running.waiting.upgrade()?.join(job, &wanted.keys);
        let log = running.log.as_ref().and_then(Weak::upgrade);
        Some(Joined::Flight(flight, log))
    }
}

impl Builder {
    /// Joins the execution of an operation if that may be shared, or begins it.
    pub(super) async fn join(
        self: &Arc<Self>,
        job: &Arc<Job>,
        wanted: Operation,
    ) -> Result<Joined> {
        if !wanted.is_shared {
            return Ok(self.begin(&mut self.flights.lock().ignore_poison(), job, wanted));
        }
        loop {
            let recorded = {
                let flights = self.flights.lock().ignore_poison();
                if let Some(joined) = flights.find(job, &wanted) {
                    return Ok(joined);
                }
                flights.recorded
            };
            // Another build may have finished it since it was planned.
            if let Some(found) = self.look_up(job, wanted.index, wanted.key).await? {
                return Ok(Joined::Cached(found));
            }
            let mut flights = self.flights.lock().ignore_poison();
            if let Some(joined) = flights.find(job, &wanted) {
                return Ok(joined);
            }
            // Nothing was finished and recorded since the cache was looked at.
            if flights.recorded == recorded {
                return Ok(self.begin(&mut flights, job, wanted));
            }
        }
    }

    fn begin(self: &Arc<Self>, flights: &mut Flights, job: &Arc<Job>, wanted: Operation) -> Joined {
        let node = job.graph.nodes[wanted.index].clone();
        let has_output = matches!(node.op.kind, Some(Kind::Exec(_)));
        let log = has_output.then(|| Arc::new(Log::new(&self.store().staging)));
        let waiting = Arc::new(Waiting {
            clients: Clients::of(job.client.clone()),
            keys: Mutex::new(wanted.keys),
            users: Mutex::new(vec![Arc::downgrade(&job.uses)]),
        });
        flights.begun += 1;
        let begin = Begin {
            builder: self.clone(),
            number: flights.begun,
            node,
            settings: job.settings.clone(),
            waiting: waiting.clone(),
            inputs: wanted.inputs,
            log: log.clone(),
        };
        let flight = begin.run().boxed().shared();
        if wanted.is_shared
            && let Some(weak) = flight.downgrade()
        {
            flights
                .running
                .retain(|_, running| running.flight.upgrade().is_some());
            let running = Running {
                flight: weak,
                log: log.as_ref().map(Arc::downgrade),
                settings: job.settings.clone(),
                waiting: Arc::downgrade(&waiting),
            };
            flights.running.insert(wanted.key, running);
        }
        Joined::Flight(flight, log)
    }
}

/// An operation that is to be executed.
struct Begin {
    builder: Arc<Builder>,
    number: u64,
    node: Node,
    settings: Settings,
    waiting: Arc<Waiting>,
    inputs: Vec<Stack>,
    log: Option<Arc<Log>>,
}

/// Closes a log when the operation has ended, or is dropped.
struct Closing(Option<Arc<Log>>);

impl Drop for Closing {
    fn drop(&mut self) {
        if let Some(log) = &self.0 {
            log.close();
        }
    }
}

impl Begin {
    async fn run(self) -> Result<Vec<Stack>> {
        let Self {
            builder,
            number,
            node,
            settings,
            waiting,
            inputs,
            log,
        } = self;
        let _closing = Closing(log.clone());
        let lease = Arc::new(builder.store().leases.take());
        let context = ops::Context {
            store: builder.store().clone(),
            lease: lease.clone(),
            waiting: waiting.clone(),
        };
        let outputs = ops::run(&builder, context, &node, inputs, &settings, log.as_ref()).await?;
        // No build joins while this is locked, so that the keys and the users are complete.
        let (keys, users) = {
            let mut flights = builder.flights.lock().ignore_poison();
            let keys = waiting.keys();
            for key in &keys {
                flights.done.insert(*key, (number, outputs.clone()));
            }
            (keys, waiting.users())
        };
        if keys.is_empty() {
            return Ok(outputs);
        }
        tokio::spawn({
            let (builder, outputs) = (builder.clone(), outputs.clone());
            async move {
                let recording = builder.record(&node, &keys, &outputs, &lease, users);
                if let Err(error) = recording.await {
                    tracing::warn!("record the result of a step: {error}");
                }
                let mut flights = builder.flights.lock().ignore_poison();
                for key in &keys {
                    let is_own = |(known, _): &(u64, Vec<Stack>)| *known == number;
                    if flights.done.get(key).is_some_and(is_own) {
                        flights.done.remove(key);
                    }
                }
                flights.recorded += 1;
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

    /// Waits until the results of the steps that have ended so far are recorded, for at most five seconds: recording large results
    /// takes longer. A listing of the cache that follows contains these results.
    pub async fn results_recorded(&self) {
        /// Limit of the wait.
        const PATIENCE: Duration = Duration::from_secs(5);
        let keys: Vec<Digest> = {
            let flights = self.flights.lock().ignore_poison();
            flights.done.keys().copied().collect()
        };
        let _ = tokio::time::timeout(PATIENCE, self.recorded(&keys)).await;
    }

    /// Records a result when its layers are sealed, while `lease` holds them. The uses of the builds do not end before: the cache
    /// would be kept to its budget without it.
    async fn record(
        self: &Arc<Self>,
        node: &Node,
        keys: &[Digest],
        outputs: &[Stack],
        lease: &Arc<Lease>,
        users: Vec<Arc<Uses>>,
    ) -> Result<()> {
        // Only when all of them are sealed, so that a result has all of its outputs, or is not there.
        let mut sealed: Outputs = Vec::with_capacity(outputs.len());
        for stack in outputs {
            let digests = stack.digests().await?;
            let times = stack.0.iter().map(|layer| layer.created);
            sealed.push(Some(digests.into_iter().zip(times).collect()));
        }
        let (text, keys) = (names::alone(node), keys.to_vec());
        let (builder, held) = (self.clone(), lease.clone());
        blocking(move || {
            let store = builder.store();
            builder
                .cache
                .insert_used(store, &keys, &sealed, &text, &users)?;
            drop(held);
            if users.is_empty() {
                // The builds that wanted it have ended before.
                builder.keep_to_budget();
            }
            Ok(())
        })
        .await
    }
}
