//! The engine: containers, images, networks and volumes, their state on disk, and recovery after a
//! restart of the engine.
//!
//! Services own their state: [`containers::Containers`], [`images::Images`],
//! [`networks::Networks`], [`networks::Sandboxes`], [`volumes::Volumes`], [`events::Events`]. [`Engine`] only holds them
//! together. This crate has no HTTP: that is in the crate `api`.
#![forbid(unsafe_code)]

mod check;
pub mod containers;
pub mod error;
pub mod events;
pub mod filters;
mod findings;
mod host;
pub mod images;
pub mod instance;
mod logging;
pub mod model;
pub mod mounts;
pub mod networks;
mod quota;
mod random_names;
mod records;
mod reload;
mod rollback;
mod security;
mod shims;
mod spec;
mod store;
pub mod system;
#[cfg(test)]
mod tests;
pub mod usage;
mod validate;
pub mod volumes;
pub mod workload;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use check::{CheckRequest, Checked, Problem};
pub use error::{Error, Result};
pub use store::{Repaired, repair};
pub use whelk_shim::protocol::OciRuntime;

use containers::{Containers, Parts};
use events::Events;
use host::HostInfo;
use images::Images;
use instance::Instance;
use networks::{Networks, Sandboxes};
use shims::WarmPool;
use store::RecordStore;
use tokio::sync::oneshot;
use usage::Usage;
use volumes::Volumes;
use whelk_runtime::cgroup::Cgroup;
use workload::Workloads;

/// An open engine: its services and its store.
#[derive(Debug)]
pub struct Engine {
    pub instance: Instance,
    pub containers: Arc<Containers>,
    pub images: Arc<Images>,
    pub networks: Arc<Networks>,
    pub sandboxes: Arc<Sandboxes>,
    pub volumes: Arc<Volumes>,
    pub events: Arc<Events>,
    pub usage: Arc<Usage>,
    pub workloads: Arc<Workloads>,
    pub durability: Durability,
    /// Held by the one check that runs.
    checking: Arc<tokio::sync::Mutex<()>>,
    /// The engine's id: random, generated at its first start and kept in the store.
    pub id: String,
    /// Keeps the thread of the health checks running.
    _health_checks: oneshot::Sender<Infallible>,
}

/// Waits until what was written is on disk.
#[derive(Clone, Debug)]
pub struct Durability(Arc<RecordStore>);

impl Durability {
    /// Waits until everything that was written so far would survive a power failure. The API
    /// answers a request that changes something only after that.
    ///
    /// # Errors
    /// Returns an error if the disk fails: what has reached it is unknown then.
    pub async fn wait(&self) -> Result<()> {
        self.0.flushed().await
    }
}

impl Engine {
    /// Opens an instance's state and reconnects to its running containers. `executable` is the path
    /// of this program.
    ///
    /// # Errors
    /// Returns an error if the state cannot be read, or if another engine has it open.
    pub async fn open(instance: Instance, executable: PathBuf) -> Result<Arc<Self>> {
        let (engine, ()) = Self::open_with(instance, executable, |_| ()).await?;
        Ok(engine)
    }

    /// Like [`Engine::open`]. `hold` is called before unused layers are removed, and takes leases of those that
    /// the engine's records do not name.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub async fn open_with<T>(
        instance: Instance,
        executable: PathBuf,
        hold: impl FnOnce(&whelk_image::Store) -> T,
    ) -> Result<(Arc<Self>, T)> {
        instance.prepare()?;
        let found = store::Found::check(&instance.root)?;
        containers::audit(&instance, &found).await?;
        let store = Arc::new(found.open()?);
        let events = Arc::new(Events::default());
        let mut files = whelk_image::Store::open(&instance.root)?;
        files.snapshots.set_form(instance.layers)?;
        let held = hold(&files);
        let images = Images::open(
            files,
            store.clone(),
            events.clone(),
            &instance.live.get().registries,
        )?;
        let shims = WarmPool::new(&instance, &executable)?;
        let networks = Networks::open(&instance, store.clone(), events.clone())?;
        let sandboxes = Sandboxes::new(networks.clone());
        let volumes = Volumes::open(&instance, store.clone(), events.clone())?;
        instance.check()?;
        let host = HostInfo::detect(&instance.root, instance.default_log.clone());
        let id = store.get_or_set_meta("engine-id", random_names::random_id)?;
        let containers = Containers::new(Parts {
            instance: instance.clone(),
            store: store.clone(),
            images: images.clone(),
            networks: networks.clone(),
            sandboxes: sandboxes.clone(),
            volumes: volumes.clone(),
            events: events.clone(),
            shims: shims.clone(),
            host,
            executable,
        });
        containers.recover().await?;
        let workloads = Arc::new(Workloads::new(instance.clone(), shims.clone()));
        if let Err(error) = workloads.kill_left() {
            tracing::error!("kill the workloads of an earlier engine: {error}");
        }
        let health_checks = containers::start_checks(&containers)?;
        tokio::spawn(shims.maintain());
        tokio::spawn(sandboxes.clone().maintain());
        tokio::spawn(store.clone().flush_in_background());
        tokio::spawn(images.clone().collect_regularly());
        let usage = Usage::new(containers.clone(), images.clone(), networks.clone());
        let usage = Arc::new(usage);
        if let Some(gc) = instance.image_gc {
            tokio::spawn(usage.clone().keep_images_to_budget(gc));
        }
        let engine = Arc::new(Self {
            instance,
            containers,
            images,
            networks,
            sandboxes,
            volumes,
            events,
            usage,
            workloads,
            durability: Durability(store),
            checking: Arc::default(),
            id,
            _health_checks: health_checks,
        });
        Ok((engine, held))
    }

    /// Ends the processes of builds, which nobody waits for then, and flushes everything to disk, at the engine's exit.
    /// Containers keep running.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub async fn close(&self) -> Result<()> {
        self.workloads.close().await;
        self.durability.0.flush_all().await
    }

    /// Removes what an instance has on the host besides its directories: bridges, firewall rules,
    /// cgroups. The instance's next start creates them again.
    ///
    /// # Errors
    /// Returns an error if containers of the instance are running.
    pub fn uninstall(instance: &Instance) -> Result<()> {
        // Warm shims exit when they see that the engine has ended, which takes a moment.
        const PATIENCE: Duration = Duration::from_secs(10);
        const POLL: Duration = Duration::from_millis(10);
        let begin = Instant::now();
        for path in [instance.shims_cgroup(), instance.cgroup_parent()] {
            let cgroup = Cgroup::at(&path)?;
            while !cgroup.processes()?.is_empty() {
                if shims::any_runs(instance) || begin.elapsed() > PATIENCE {
                    return Err(Error::conflict(format!(
                        "containers of instance {} still run: stop or remove them first",
                        instance.name
                    )));
                }
                std::thread::sleep(POLL);
            }
            cgroup.remove()?;
            whelk_runtime::cgroup::remove_hybrid(&path)?;
        }
        networks::uninstall(instance)
    }
}

/// Returns the command line of a container: the entrypoint and its arguments.
pub fn command(config: &model::Config) -> Vec<String> {
    spec::command(config).collect()
}
