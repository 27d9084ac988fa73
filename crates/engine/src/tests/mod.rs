//! Tests of the engine's services together, over fakes of what needs privileges or the built
//! program: the shims, the driver of the default network, and a volume driver.

mod check;
mod lifecycle;
mod rename;
mod restart;
mod rollback;
mod sandbox;
mod usage;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use whelk_sys::Scratch;
use whelk_sys::fs;
use whelk_sys::process::{CloneFlags, unshare};

use crate::containers::{Container, Containers, CreateRequest, Parts};
use crate::error::Result;
use crate::events::Events;
use crate::host::HostInfo;
use crate::images::Images;
use crate::instance::Instance;
use crate::model::{Config, HostConfig, NetworkMode, RestartPolicy, Status};
use crate::networks::{Networks, Sandboxes};
use crate::shims::fake::FakeShims;
use crate::store::RecordStore;
use crate::usage::Usage;
use crate::volumes::{FakeVolumes, Volumes};

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A host whose engine has fake shims and drivers. Engines are opened on it one after the other.
struct FakeHost {
    scratch: Scratch,
    instance: Instance,
    shims: Arc<FakeShims>,
    volumes: Arc<FakeVolumes>,
}

/// An engine's services.
struct Services {
    instance: Instance,
    containers: Arc<Containers>,
    images: Arc<Images>,
    networks: Arc<Networks>,
    sandboxes: Arc<Sandboxes>,
    volumes: Arc<Volumes>,
    events: Arc<Events>,
    usage: Usage,
}

/// Runs a test on a host of its own, and deletes its files afterwards.
fn on_fake_host(test: impl AsyncFnOnce(&FakeHost) + Send) {
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            // With the privileges to write firewall rules, these must not be the real host's.
            let is_apart = unshare(CloneFlags::NEWNET).is_ok();
            assert!(is_apart || !rustix::process::geteuid().is_root());
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async { test(&FakeHost::new()).await });
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Waits until a condition holds.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl FakeHost {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let scratch = Scratch::temporary(&format!("fake-{number}")).unwrap();
        let path = |name: &str| scratch.path().join(name);
        let instance = Instance::new(path("root"), path("run"), "fake".into()).unwrap();
        instance.make_directories().unwrap();
        let mountpoint = path("volume");
        fs::create_dir(&mountpoint, 0o755).unwrap();
        Self {
            scratch,
            instance,
            shims: Arc::default(),
            volumes: FakeVolumes::new(mountpoint),
        }
    }

    /// Opens an engine. An earlier one must have been dropped, as if it was killed.
    async fn open(&self) -> Services {
        let (instance, events) = (self.instance.clone(), Arc::new(Events::default()));
        let store = Arc::new(RecordStore::open(&instance.root).unwrap());
        let settings = instance.live.get();
        let files = whelk_image::Store::open(&instance.root).unwrap();
        let images =
            Images::open(files, store.clone(), events.clone(), &settings.registries).unwrap();
        let networks = Networks::with_fakes(&instance, store.clone(), events.clone()).unwrap();
        let sandboxes = Sandboxes::new(networks.clone());
        let volumes = Volumes::open(&instance, store.clone(), events.clone()).unwrap();
        volumes.add_fake(self.volumes.clone());
        let containers = Containers::new(Parts {
            instance: instance.clone(),
            store,
            images: images.clone(),
            networks: networks.clone(),
            sandboxes: sandboxes.clone(),
            volumes: volumes.clone(),
            events: events.clone(),
            shims: self.shims.pool().unwrap(),
            host: HostInfo::detect(&instance.root, instance.default_log.clone()),
            executable: PathBuf::from("/nonexistent"),
        });
        containers.recover().await.unwrap();
        let usage = Usage::new(containers.clone(), images.clone(), networks.clone());
        Services {
            instance,
            containers,
            images,
            networks,
            sandboxes,
            volumes,
            events,
            usage,
        }
    }
}

/// Returns the request for a container of the host's network namespace, without an image.
fn request(name: &str) -> CreateRequest {
    CreateRequest {
        name: name.into(),
        config: Config {
            cmd: Some(vec!["program".into()]),
            ..Config::default()
        },
        host: HostConfig {
            network_mode: NetworkMode::Host,
            ..HostConfig::default()
        },
        ..CreateRequest::default()
    }
}

/// Like [`request`], with a restart policy.
fn restarting(name: &str, policy: RestartPolicy) -> CreateRequest {
    let mut request = request(name);
    request.host.restart_policy = policy;
    request
}

/// Like [`request`], with a volume of the fake driver.
fn with_volume(name: &str, volume: &str) -> CreateRequest {
    let mut request = request(name);
    request.host.binds = Some(vec![format!("{volume}:/data")]);
    request.host.volume_driver = FakeVolumes::NAME.into();
    request
}

impl Services {
    async fn create(&self, request: CreateRequest) -> Result<Arc<Container>> {
        let created = self.containers.create(request).await?;
        self.containers.find(&created.id)
    }

    /// Creates and starts a container.
    async fn run(&self, request: CreateRequest) -> Arc<Container> {
        let container = self.create(request).await.unwrap();
        self.containers.start(&container.id).await.unwrap();
        container
    }

    /// Ends the engine as SIGKILL does: its containers go on.
    async fn kill(self) {
        let containers = Arc::downgrade(&self.containers);
        drop(self);
        // A task may just be ending an operation.
        eventually("the engine has ended", || containers.strong_count() == 0).await;
    }

    async fn until(&self, container: &Container, status: Status) {
        eventually(
            &format!("container {} is {status:?}", container.name()),
            || container.status() == status,
        )
        .await;
    }

    /// Returns the actions of all events of an object so far.
    fn actions(&self, id: &str) -> Vec<String> {
        let (past, _) = self.events.subscribe();
        let events = past.iter().filter(|event| event.id == id);
        events.map(|event| event.action.clone()).collect()
    }

    /// Returns whether anything is left of a container's run.
    fn has_run_directory(&self, id: &str) -> bool {
        fs::exists(self.instance.run_dir(id))
    }
}
