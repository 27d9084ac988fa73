//! The engine: containers and images, what happens to them, and how they survive the engine itself.
//!
//! Services own their state: [`containers::Containers`], [`images::Images`],
//! [`networks::Networks`], [`volumes::Volumes`], [`events::Events`]. [`Engine`] holds them together
//! and knows nothing else. HTTP is not known here.
#![forbid(unsafe_code)]

pub mod containers;
pub mod error;
pub mod events;
mod files_of_host;
pub mod filters;
pub mod images;
pub mod instance;
mod logging;
pub mod model;
pub mod mounts;
mod names;
pub mod networks;
mod security;
mod shims;
pub mod signals;
mod spec;
mod store;
pub mod system;
mod validate;
pub mod volumes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use error::{Error, Result};
pub use store::{Repaired, repair};

use containers::{Containers, Parts};
use events::Events;
use images::Images;
use instance::Instance;
use networks::Networks;
use shims::Shims;
use store::Store;
use volumes::Volumes;
use whelk_runtime::cgroup::Cgroup;

/// One engine: its services.
#[derive(Debug)]
pub struct Engine {
    pub instance: Instance,
    pub containers: Arc<Containers>,
    pub images: Arc<Images>,
    pub networks: Arc<Networks>,
    pub volumes: Arc<Volumes>,
    pub events: Arc<Events>,
    /// A number of the engine's own, made once.
    pub id: String,
    store: Arc<Store>,
}

impl Engine {
    /// Opens an engine's state and picks up the containers that run. `executable` is this program.
    ///
    /// # Errors
    /// State that cannot be read, or another engine that has it open.
    pub async fn open(instance: Instance, executable: PathBuf) -> Result<Arc<Self>> {
        instance.prepare()?;
        let found = store::Found::look(&instance.root)?;
        containers::audit(&instance, &found).await?;
        let store = Arc::new(found.open()?);
        let events = Arc::new(Events::default());
        let images = Images::open(&instance.root, store.clone(), events.clone())?;
        let shims = Shims::new(&instance, &executable)?;
        let networks = Networks::open(&instance, store.clone(), events.clone())?;
        let volumes = Volumes::open(&instance, store.clone(), events.clone())?;
        crate::logging::config(
            &instance.default_log,
            std::path::Path::new(""),
            "",
            &Default::default(),
        )?;
        let host = files_of_host::facts(instance.default_log.clone());
        let id = store.get_or_set_meta("engine-id", names::random_id)?;
        let containers = Containers::new(Parts {
            instance: instance.clone(),
            store: store.clone(),
            images: images.clone(),
            networks: networks.clone(),
            volumes: volumes.clone(),
            events: events.clone(),
            shims: shims.clone(),
            host,
            executable,
        });
        containers.recover().await?;
        tokio::spawn(shims.keep_ready());
        tokio::spawn(networks.clone().keep());
        tokio::spawn(store.clone().keep_flushed());
        Ok(Arc::new(Self {
            instance,
            containers,
            images,
            networks,
            volumes,
            events,
            id,
            store,
        }))
    }

    /// Waits until what was done so far survives a loss of power. Whoever asked for it is answered
    /// after that.
    ///
    /// # Errors
    /// The disk's: nothing is certain then.
    pub async fn settled(&self) -> Result<()> {
        self.store.flushed().await
    }

    /// Writes out what is not yet on disk: the engine ends.
    ///
    /// # Errors
    /// The disk's.
    pub async fn close(&self) -> Result<()> {
        self.store.flush_all().await
    }

    /// Takes what an instance has on the host besides its directories away: bridges, rules,
    /// cgroups. Its next start makes them anew.
    ///
    /// # Errors
    /// Containers still run.
    pub fn uninstall(instance: &Instance) -> Result<()> {
        // Shims that were kept ready notice that the engine has ended, but take a moment to be
        // gone.
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
        }
        networks::uninstall(instance)
    }
}

/// What a container runs: the entrypoint and its arguments.
pub fn command(config: &model::Config) -> Vec<String> {
    spec::command(config).collect()
}
