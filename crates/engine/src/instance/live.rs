//! The settings that can be changed while the engine runs.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use whelk_sys::sync::IgnorePoison as _;

use whelk_registry::Insecure;

use super::{ContainerDefaults, RegistrySettings, Runtimes};
use crate::model::CgroupnsMode;

/// The settings that can be changed while the engine runs. Requests that have begun keep those that
/// they began with.
#[derive(Clone, Debug)]
pub struct LiveSettings {
    /// Whether the engine writes debug logs.
    pub debug: bool,
    /// The engine's labels, `KEY=VALUE`, which `info` shows.
    pub labels: Vec<String>,
    pub containers: ContainerDefaults,
    pub registries: RegistrySettings,
    pub runtimes: Runtimes,
    /// Features by name, as they were given.
    pub features: BTreeMap<String, bool>,
    /// In seconds. Only shown: containers are not stopped when the engine ends.
    pub shutdown_timeout: i64,
}

impl Default for LiveSettings {
    fn default() -> Self {
        Self {
            debug: false,
            labels: Vec::new(),
            containers: ContainerDefaults::default(),
            registries: RegistrySettings::default(),
            runtimes: Runtimes::default(),
            features: BTreeMap::new(),
            // Docker's default.
            shutdown_timeout: 15,
        }
    }
}

impl LiveSettings {
    /// Returns the attributes of the event `reload`, as Docker writes them.
    pub(crate) fn attributes(&self, cgroup_v2: bool) -> BTreeMap<String, String> {
        let cgroupns_mode = match self.containers.cgroupns_mode {
            CgroupnsMode::Default if cgroup_v2 => CgroupnsMode::Private,
            CgroupnsMode::Default => CgroupnsMode::Host,
            mode => mode,
        };
        let list = |items: Vec<String>| serde_json::Value::from(items).to_string();
        let insecure = self.registries.client.insecure.iter();
        let insecure = insecure.map(|insecure| match insecure {
            Insecure::Host(host) => host.clone(),
            Insecure::Network(network) => network.to_string(),
        });
        let mirrors = self.registries.client.mirrors_of("docker.io");
        let features = self.features.iter();
        let features: Vec<String> = features.map(|(name, on)| format!("{name}:{on}")).collect();
        [
            ("debug", self.debug.to_string()),
            ("default-cgroupns-mode", cgroupns_mode.to_string()),
            ("default-ipc-mode", self.containers.ipc_mode.to_string()),
            ("default-runtime", self.runtimes.default.clone()),
            ("default-shm-size", self.containers.shm_size.to_string()),
            ("features", format!("map[{}]", features.join(" "))),
            ("insecure-registries", list(insecure.collect())),
            ("labels", list(self.labels.clone())),
            ("live-restore", "true".to_owned()),
            (
                "max-concurrent-downloads",
                self.registries.downloads.to_string(),
            ),
            (
                "max-concurrent-uploads",
                self.registries.uploads.to_string(),
            ),
            (
                "max-download-attempts",
                self.registries.client.attempts.to_string(),
            ),
            ("registry-mirrors", list(mirrors.to_vec())),
            ("runtimes", self.runtimes.to_string()),
            ("shutdown-timeout", self.shutdown_timeout.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }
}

/// The current settings of an instance, shared by all its clones.
#[derive(Clone, Debug, Default)]
pub struct Live(Arc<RwLock<Arc<LiveSettings>>>);

impl Live {
    pub fn get(&self) -> Arc<LiveSettings> {
        self.0.read().ignore_poison().clone()
    }

    pub fn set(&self, settings: LiveSettings) {
        *self.0.write().ignore_poison() = Arc::new(settings);
    }
}
