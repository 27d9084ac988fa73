//! Containers on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use whelk_network::port::{PortMapping, Protocol};

use super::set::optional as optional_set;
use super::stored::{Stored, forms};
use super::{SCHEMA_VERSION, set, stored, text};
use crate::model::{self, mount, network};

forms! {
    Config => model::Config,
    Healthcheck => model::Healthcheck,
    Health => model::Health,
    HealthStatus => model::HealthStatus,
    HealthResult => model::HealthResult,
    Status => model::Status,
    ContainerState => model::ContainerState,
    StoredPortMapping => PortMapping,
    StoredProtocol => Protocol,
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "model::Config"
)]
struct Config {
    hostname: String,
    domainname: String,
    user: String,
    attach_stdin: bool,
    attach_stdout: bool,
    attach_stderr: bool,
    #[serde(with = "set", skip_serializing_if = "BTreeSet::is_empty")]
    exposed_ports: BTreeSet<model::ContainerPort>,
    tty: bool,
    open_stdin: bool,
    stdin_once: bool,
    env: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none", with = "stored")]
    healthcheck: Option<model::Healthcheck>,
    #[serde(skip_serializing_if = "is_default")]
    args_escaped: bool,
    image: String,
    #[serde(with = "optional_set")]
    volumes: Option<BTreeSet<String>>,
    working_dir: String,
    entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_default")]
    network_disabled: bool,
    #[serde(skip_serializing_if = "is_default")]
    mac_address: String,
    on_build: Option<Vec<String>>,
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_default")]
    stop_signal: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_timeout: Option<i64>,
    #[serde(skip_serializing_if = "is_empty_list")]
    shell: Option<Vec<String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(
    rename_all = "PascalCase",
    default = "Default::default",
    remote = "model::Healthcheck"
)]
struct Healthcheck {
    #[serde(skip_serializing_if = "is_default", with = "stored")]
    test: model::HealthTest,
    #[serde(skip_serializing_if = "is_default")]
    interval: i64,
    #[serde(skip_serializing_if = "is_default")]
    timeout: i64,
    #[serde(skip_serializing_if = "is_default")]
    start_period: i64,
    #[serde(skip_serializing_if = "is_default")]
    start_interval: i64,
    #[serde(skip_serializing_if = "is_default")]
    retries: i64,
    #[serde(skip_serializing_if = "is_default", with = "text")]
    on_failure: model::HealthAction,
}

#[derive(Serialize, Deserialize)]
#[serde(default = "Default::default", remote = "model::Health")]
struct Health {
    #[serde(with = "stored")]
    status: model::HealthStatus,
    failing_streak: u32,
    #[serde(skip_serializing_if = "Vec::is_empty", with = "stored")]
    log: Vec<Arc<model::HealthResult>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", remote = "model::HealthStatus")]
enum HealthStatus {
    Starting,
    Healthy,
    Unhealthy,
}

#[derive(Serialize, Deserialize)]
#[serde(default = "Default::default", remote = "model::HealthResult")]
struct HealthResult {
    start: i64,
    end: i64,
    exit_code: i32,
    output: String,
}

impl<T: Stored> Stored for Arc<T> {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        T::write(self, serializer)
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::read(deserializer).map(Self::new)
    }
}

impl Stored for model::HealthTest {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.words().serialize(serializer)
    }

    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let words = Option::<Vec<String>>::deserialize(deserializer)?;
        Self::parse(words.unwrap_or_default()).map_err(de::Error::custom)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", remote = "model::Status")]
enum Status {
    Created,
    Running,
    Paused,
    Restarting,
    Exited,
    Removing,
    Dead,
}

#[derive(Serialize, Deserialize)]
#[serde(default = "Default::default", remote = "model::ContainerState")]
struct ContainerState {
    #[serde(with = "stored")]
    status: model::Status,
    pid: i32,
    exit_code: i32,
    oom_killed: bool,
    error: String,
    started_at: i64,
    finished_at: i64,
    restart_count: u32,
    #[serde(skip_serializing_if = "Option::is_none", with = "stored")]
    health: Option<model::Health>,
    stopped_by_user: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    paused_by_engine: bool,
}

/// A record with the version that it is written in.
#[derive(Serialize)]
struct Versioned<'a> {
    version: u32,
    #[serde(flatten)]
    record: Content<'a>,
}

struct Content<'a>(&'a model::ContainerRecord);

impl Serialize for Content<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ContainerRecord::serialize(self.0, serializer)
    }
}

impl Stored for model::ContainerRecord {
    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (version, record) = (SCHEMA_VERSION, Content(self));
        Versioned { version, record }.serialize(serializer)
    }

    /// Reads a record of the current version.
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        ContainerRecord::deserialize(deserializer)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "model::ContainerRecord")]
struct ContainerRecord {
    id: String,
    name: String,
    created_at: i64,
    image: String,
    #[serde(with = "stored")]
    config: model::Config,
    #[serde(with = "stored")]
    host: model::HostConfig,
    #[serde(with = "stored")]
    state: model::ContainerState,
    #[serde(default, with = "stored")]
    networks: BTreeMap<String, network::Endpoint>,
    #[serde(default, with = "stored")]
    mounts: Vec<mount::MountPlan>,
    #[serde(default, with = "stored")]
    ports: Vec<PortMapping>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "PortMapping")]
struct StoredPortMapping {
    #[serde(with = "stored")]
    protocol: Protocol,
    host: SocketAddr,
    to: SocketAddr,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", remote = "Protocol")]
enum StoredProtocol {
    Tcp,
    Udp,
    Sctp,
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn is_empty_list(list: &Option<Vec<String>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn accepts_any_values_in_sets() {
        let text = r#"{"ExposedPorts":{"80":5,"8000-8010/tcp":{}},"Volumes":{"/v":null}}"#;
        let Ok(config) = Config::deserialize(&mut serde_json::Deserializer::from_str(text)) else {
            panic!("{text}");
        };
        assert_eq!(
            config.exposed_ports,
            BTreeSet::from(["80".parse().unwrap()])
        );
        assert_eq!(config.volumes, Some(BTreeSet::from(["/v".to_owned()])));
        let written = Config::serialize(&config, serde_json::value::Serializer).unwrap();
        assert_eq!(
            [&written["ExposedPorts"], &written["Volumes"]],
            [&json!({"80/tcp": {}}), &json!({"/v": {}})]
        );
    }
}
