//! What a container uses: single samples, and streams with a sample each second.
//!
//! Clients compute the use of the CPU from two samples. A request that waits for no second one gets the
//! sample of an earlier request as the previous one or, if that is too old, one that is taken a moment
//! before.
//!
//! One task samples all containers that have a stream; it ends with the last stream.

mod sample;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use whelk_sys::sync::IgnorePoison as _;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

pub use sample::{CpuSample, InterfaceCounts, Sample};
pub use whelk_runtime::cgroup::{BlockIoCount, BlockIoUsage};

use sample::Target;

use super::{Container, Containers, Progress};
use crate::error::Result;
use crate::workload::blocking;

/// The time between the samples of a stream, as in Docker.
const INTERVAL: Duration = Duration::from_secs(1);

/// The time between two samples that are taken for one request. The kernel updates the CPU time of a
/// process that runs at each of its ticks, of 1 to 10 ms.
const MOMENT: Duration = Duration::from_millis(25);

/// The same for a container with a limit of CPU time, which may use all of it at the beginning of each of
/// the scheduler's periods.
const PERIODS: u32 = 2;

/// How old an earlier sample must be for the ticks not to matter.
const MIN_AGE: Duration = Duration::from_millis(500);

/// How old an earlier sample may be to still tell what the container does now.
const MAX_AGE: Duration = Duration::from_secs(20);

/// A container's use of the host, at one time.
#[derive(Clone, Debug)]
pub struct Stats {
    pub id: String,
    pub name: String,
    /// `None` if the container does not run.
    pub sample: Option<Arc<Sample>>,
    /// `None` if there was none, or none was requested.
    pub previous: Option<CpuSample>,
}

/// Returns the time between two samples of the CPU time.
fn moment(container: &Container) -> Duration {
    /// The kernel's default, in microseconds.
    const PERIOD: i64 = 100_000;
    let record = container.record();
    let host = &record.host;
    if host.nano_cpus <= 0 && host.cpu_quota <= 0 {
        return MOMENT;
    }
    let period = if host.cpu_period > 0 {
        host.cpu_period
    } else {
        PERIOD
    };
    PERIODS * Duration::from_micros(period.unsigned_abs())
}

impl Containers {
    /// Returns what a container uses now, without a previous sample.
    ///
    /// # Errors
    /// Returns an error if there is no such container.
    pub async fn sample(&self, name: &str) -> Result<Stats> {
        let container = self.find(name)?;
        let sample = self.sample_now(&container).await?;
        Ok(container.stats(sample, None))
    }

    /// Returns what a container uses now, with a previous sample, for which it may wait (see [`moment`]).
    ///
    /// # Errors
    /// Returns an error if there is no such container.
    pub async fn stats(&self, name: &str) -> Result<Stats> {
        let container = self.find(name)?;
        self.sample_twice(&container).await
    }

    /// Returns a stream of what a container uses, which goes on while the container does not run, and
    /// ends when it is removed.
    ///
    /// # Errors
    /// Returns an error if there is no such container.
    pub fn stats_stream(self: &Arc<Self>, name: &str) -> Result<StatsStream> {
        let container = self.find(name)?;
        Ok(StatsStream {
            samples: self.watch_samples(&container),
            progress: container.progress.subscribe(),
            containers: self.clone(),
            container,
            last: None,
            has_begun: false,
        })
    }

    async fn sample_twice(&self, container: &Arc<Container>) -> Result<Stats> {
        let Some(target) = self.target(container) else {
            return Ok(container.stats(None, None));
        };
        let kept = container
            .last_sample()
            .clone()
            .filter(|kept| kept.is_of(target.run) && kept.age() <= MAX_AGE);
        let previous = match kept.filter(|kept| kept.age() >= MIN_AGE) {
            Some(kept) => Some(kept),
            None => {
                let target = target.clone();
                let first = blocking(move || Ok(target.cpu_sample())).await?;
                tokio::time::sleep(moment(container)).await;
                first
            }
        };
        let Some(sample) = blocking(move || Ok(target.sample())).await? else {
            return Ok(container.stats(None, None));
        };
        let previous = previous.map(|previous| previous.before(&sample.cpu));
        Ok(container.stats(Some(Arc::new(sample)), previous))
    }

    async fn sample_now(&self, container: &Arc<Container>) -> Result<Option<Arc<Sample>>> {
        let Some(target) = self.target(container) else {
            return Ok(None);
        };
        let sample = blocking(move || Ok(target.sample())).await?;
        Ok(sample.map(Arc::new))
    }

    /// Returns where a container's use is read; `None` if it does not run.
    fn target(&self, container: &Container) -> Option<Target> {
        let (run, donor, mut interfaces) = {
            let record = container.record();
            let state = &record.state;
            if !state.status.is_running() || state.pid <= 0 {
                return None;
            }
            let run = (state.pid, state.started_at);
            let donor = record.host.network_mode.container().map(str::to_owned);
            (run, donor, record.interfaces())
        };
        // A container that shares the network of another one has that one's interfaces.
        if let Some(donor) = donor.and_then(|donor| self.by_id(&donor)) {
            interfaces = donor.record().interfaces();
        }
        Some(Target {
            id: container.id.clone(),
            run,
            cgroup: container.workload.cgroup().to_owned(),
            interfaces,
        })
    }

    /// Subscribes to the samples of a container, which are taken each [`INTERVAL`] from now on.
    fn watch_samples(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> watch::Receiver<Option<Arc<Sample>>> {
        let mut watched = self.watched.lock();
        let (_, sender) = watched
            .containers
            .entry(container.id.clone())
            .or_insert_with(|| (container.clone(), watch::Sender::new(None)));
        let receiver = sender.subscribe();
        if !std::mem::replace(&mut watched.is_sampling, true) {
            tokio::spawn(sample_watched(self.clone()));
        }
        receiver
    }
}

/// The containers that have a stream.
#[derive(Debug, Default)]
pub(super) struct Watched(Mutex<WatchedContainers>);

impl Watched {
    fn lock(&self) -> MutexGuard<'_, WatchedContainers> {
        self.0.lock().ignore_poison()
    }
}

type SampleSender = watch::Sender<Option<Arc<Sample>>>;

#[derive(Debug, Default)]
struct WatchedContainers {
    /// By id, with the channel of its samples: `None` while it does not run.
    containers: HashMap<String, (Arc<Container>, SampleSender)>,
    /// Whether the task that samples them runs.
    is_sampling: bool,
}

/// Notes that the task has ended, also if it panics: the next stream starts another one.
struct Ending<'c> {
    containers: &'c Containers,
    is_over: bool,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        // Another task may run already.
        if !self.is_over {
            self.containers.watched.lock().is_sampling = false;
        }
    }
}

/// Samples the watched containers each [`INTERVAL`] until there are none.
async fn sample_watched(containers: Arc<Containers>) {
    let mut ticks = tokio::time::interval_at(Instant::now() + INTERVAL, INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ending = Ending {
        containers: &containers,
        is_over: false,
    };
    loop {
        ticks.tick().await;
        let found: Vec<Arc<Container>> = {
            let mut watched = containers.watched.lock();
            watched
                .containers
                .retain(|_, (_, sender)| sender.receiver_count() > 0);
            if watched.containers.is_empty() {
                watched.is_sampling = false;
                ending.is_over = true;
                return;
            }
            let found = watched.containers.values();
            found.map(|(container, _)| container.clone()).collect()
        };
        let targets: Vec<Option<Target>> = found
            .iter()
            .map(|container| containers.target(container))
            .collect();
        let sample = |target: Option<Target>| target.and_then(|target| target.sample());
        let sampled = blocking(move || Ok(targets.into_iter().map(sample).collect::<Vec<_>>()));
        let samples = match sampled.await {
            Ok(samples) => samples,
            Err(error) => {
                tracing::error!("sample what containers use: {error}");
                continue;
            }
        };
        let watched = containers.watched.lock();
        for (container, sample) in found.iter().zip(samples) {
            if let Some((_, sender)) = watched.containers.get(&container.id) {
                sender.send_replace(sample.map(Arc::new));
            }
        }
    }
}

/// A stream of what a container uses.
pub struct StatsStream {
    containers: Arc<Containers>,
    container: Arc<Container>,
    samples: watch::Receiver<Option<Arc<Sample>>>,
    progress: watch::Receiver<Progress>,
    /// The CPU time of the last element.
    last: Option<CpuSample>,
    has_begun: bool,
}

impl StatsStream {
    /// Waits for the next element, of which the first comes at once. Returns `None` when the container was
    /// removed.
    pub async fn next(&mut self) -> Option<Stats> {
        if self.progress.borrow().removed {
            return None;
        }
        let stats = if std::mem::replace(&mut self.has_begun, true) {
            let sample = self.next_sample().await?;
            // Of another run, which has used more or less.
            let last = self.last.take();
            let is_of = |last: &CpuSample, sample: &Sample| last.is_of(sample.cpu.run);
            let last = last.filter(|last| sample.as_ref().is_some_and(|now| is_of(last, now)));
            self.container.stats(sample, last)
        } else {
            match self.containers.sample_twice(&self.container).await {
                Ok(stats) => stats,
                Err(error) => {
                    tracing::error!(container = self.container.id, "sample its use: {error}");
                    self.container.stats(None, None)
                }
            }
        };
        self.last = stats.sample.as_ref().map(|sample| sample.cpu.clone());
        Some(stats)
    }

    async fn next_sample(&mut self) -> Option<Option<Arc<Sample>>> {
        loop {
            tokio::select! {
                biased;
                removed = self.progress.wait_for(|now| now.removed) => {
                    drop(removed);
                    return None;
                }
                changed = self.samples.changed() => changed.ok()?,
            }
            let sample = self.samples.borrow_and_update().clone();
            // The first element was sent at any time between two samples of the task.
            let is_too_early = match (&sample, &self.last) {
                (Some(sample), Some(last)) => sample.cpu.since(last) < MIN_AGE,
                _ => false,
            };
            if !is_too_early {
                return Some(sample);
            }
        }
    }
}

impl Container {
    /// Returns a sample with the container's names, and keeps it as the previous one of later requests.
    fn stats(&self, sample: Option<Arc<Sample>>, previous: Option<CpuSample>) -> Stats {
        if let Some(sample) = &sample {
            let mut last = self.last_sample();
            // If each sample replaced the last, none would become old enough while requests come often.
            if last
                .as_ref()
                .is_none_or(|last| !last.is_of(sample.cpu.run) || sample.cpu.since(last) >= MIN_AGE)
            {
                *last = Some(sample.cpu.clone());
            }
        }
        Stats {
            id: self.id.clone(),
            name: self.name(),
            sample,
            previous,
        }
    }

    fn last_sample(&self) -> MutexGuard<'_, Option<CpuSample>> {
        self.last_sample.lock().ignore_poison()
    }
}
