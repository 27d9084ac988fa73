//! Containers.

use std::collections::BTreeMap;
use std::sync::Arc;

use whelk_api_types::{
    ContainerConfig, ContainerInspectResponse, ContainerState, ContainerSummary,
    ContainerSummaryHostConfig, ContainerSummaryNetworkSettings, DriverData, EndpointSettings,
    Health, HealthSummary, HealthcheckResult, MountPoint, NetworkSettings, PortBinding, PortMap,
    PortSummary,
};
use whelk_engine::containers::{self, Inspected};
use whelk_engine::model::network::Endpoint;
use whelk_engine::model::{self, ContainerRecord, Status};
use whelk_text::{duration, signal};

use super::convert::Convert;
use super::{null_if_empty, time};

pub(crate) fn container(inspected: Inspected) -> ContainerInspectResponse {
    let Inspected {
        record,
        directory,
        names,
        has_generated_files,
        log_path,
        lower,
        mounts,
        execs,
        size,
        unhandled_signal,
    } = inspected;
    let generated = |path: std::path::PathBuf| {
        if has_generated_files {
            path.to_string_lossy().into_owned()
        } else {
            String::new()
        }
    };
    let mut command = whelk_engine::command(&record.config).into_iter();
    let path = command.next().unwrap_or_default();
    let args = command.collect();
    // The root is mounted only in the container's mount namespace, which is reachable through its
    // first process.
    let merged = if record.state.pid > 0 {
        format!("/proc/{}/root", record.state.pid)
    } else {
        String::new()
    };
    let lower: Vec<_> = lower.iter().map(|path| path.to_string_lossy()).collect();
    let in_directory = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let layers = [
        ("ID".to_owned(), record.id.clone()),
        ("LowerDir".into(), lower.join(":")),
        ("MergedDir".into(), merged),
        ("UpperDir".into(), in_directory("upper")),
        ("WorkDir".into(), in_directory("work")),
    ];
    let network_settings = network_settings(&record);
    let ContainerRecord {
        id,
        name,
        created_at,
        image,
        config,
        host,
        state,
        ..
    } = record;
    ContainerInspectResponse {
        created: time(created_at),
        path,
        args,
        image,
        resolv_conf_path: generated(names.join("resolv.conf")),
        hostname_path: generated(names.join("hostname")),
        hosts_path: generated(names.join("hosts")),
        log_path: generated(log_path),
        name: format!("/{name}"),
        restart_count: state.restart_count,
        driver: "overlay2".into(),
        platform: "linux".into(),
        mount_label: String::new(),
        process_label: String::new(),
        app_armor_profile: String::new(),
        exec_ids: null_if_empty(execs),
        host_config: host.convert(),
        graph_driver: DriverData {
            data: Some(layers.into()),
            name: "overlay2".into(),
        },
        mounts: mounts.into_iter().map(mount_point).collect(),
        config: ContainerConfig {
            mac_address: String::new(),
            ..config.convert()
        },
        network_settings,
        size_rw: size.map(|(writable, _)| writable),
        size_root_fs: size.map(|(_, total)| total),
        state: ContainerState {
            unhandled_signal: unhandled_signal.map(signal::name).unwrap_or_default(),
            ..self::state(state)
        },
        id,
    }
}

/// Returns the MAC address that was requested for the endpoint on a container's main network, or
/// for the container.
pub(crate) fn requested_mac(record: &ContainerRecord) -> String {
    let mode = record.host.network_mode.network();
    let main = mode.and_then(|name| record.networks.get(name));
    main.map(|endpoint| &endpoint.requested.mac_address)
        .filter(|address| !address.is_empty())
        .unwrap_or(&record.config.mac_address)
        .clone()
}

fn state(state: model::ContainerState) -> ContainerState {
    ContainerState {
        status: state.status.as_str().into(),
        running: state.status.is_running() || state.status == Status::Restarting,
        paused: state.status == Status::Paused,
        restarting: state.status == Status::Restarting,
        oom_killed: state.oom_killed,
        dead: state.status == Status::Dead,
        pid: state.pid,
        exit_code: state.exit_code,
        error: state.error,
        started_at: time(state.started_at),
        finished_at: time(state.finished_at),
        health: state.health.map(health),
        unhandled_signal: String::new(),
    }
}

fn health(health: model::Health) -> Health {
    let result = |result: &Arc<model::HealthResult>| HealthcheckResult {
        start: time(result.start),
        end: time(result.end),
        exit_code: result.exit_code,
        output: result.output.clone(),
    };
    Health {
        status: health.status.as_str().into(),
        failing_streak: health.failing_streak,
        log: health.log.iter().map(result).collect(),
    }
}

fn mount_point(mount: containers::MountPoint) -> MountPoint {
    MountPoint {
        kind: mount.kind.into(),
        source: mount.source,
        destination: mount.destination,
        mode: mount.mode,
        rw: mount.writable,
        propagation: mount.propagation,
        name: mount.name,
        driver: mount.driver,
    }
}

/// Returns the port bindings by container port; `null` for exposed ports that are not published.
fn port_map(record: &ContainerRecord) -> PortMap {
    let exposed = record
        .config
        .exposed_ports
        .iter()
        .filter(|_| record.has_ports());
    let mut map: PortMap = exposed.map(|port| (port.to_string(), None)).collect();
    for mapping in &record.ports {
        let bindings = map
            .entry(format!("{}/{}", mapping.to.port(), mapping.protocol))
            .or_default()
            .get_or_insert_default();
        let binding = PortBinding {
            host_ip: mapping.host.ip().to_string(),
            host_port: if mapping.is_direct() {
                String::new()
            } else {
                mapping.host.port().to_string()
            },
        };
        // The same host port for both address families of the container is one binding.
        if !bindings.contains(&binding) {
            bindings.push(binding);
        }
    }
    map
}

fn network_settings(record: &ContainerRecord) -> NetworkSettings {
    NetworkSettings {
        default_network: None,
        sandbox_id: record.sandbox_id().into(),
        sandbox_key: record.sandbox_key(),
        ports: port_map(record),
        networks: record.networks.clone().convert(),
    }
}

pub(crate) fn container_summary(
    listed: containers::ContainerSummary,
    now: i64,
) -> ContainerSummary {
    let record = listed.record;
    let ports = record.listed_ports().iter().map(port_summary).collect();
    let mut names = vec![format!("/{}", record.name)];
    names.extend(listed.link_names);
    ContainerSummary {
        names,
        image: listed.image,
        command: command_text(&record.config),
        created: record.created_at / 1_000_000_000,
        ports,
        state: record.state.status.as_str().into(),
        status: status_text(&record.state, now),
        host_config: ContainerSummaryHostConfig {
            network_mode: record.host.network_mode.to_string(),
            annotations: record.host.annotations,
        },
        network_settings: ContainerSummaryNetworkSettings {
            networks: listed_endpoints(record.networks),
        },
        mounts: listed.mounts.into_iter().map(mount_point).collect(),
        health: Some(HealthSummary {
            status: record.state.health_text().into(),
            failing_streak: record
                .state
                .health
                .as_ref()
                .map_or(0, |health| health.failing_streak),
        }),
        size_rw: listed
            .size
            .map(|(writable, _)| writable)
            .filter(|size| *size > 0),
        size_root_fs: listed.size.map(|(_, total)| total),
        id: record.id,
        image_id: record.image,
        labels: record.config.labels,
    }
}

/// Returns a listed container's endpoints, which have no aliases and DNS names.
fn listed_endpoints(networks: BTreeMap<String, Endpoint>) -> BTreeMap<String, EndpointSettings> {
    let mut shown: BTreeMap<String, EndpointSettings> = networks.convert();
    for endpoint in shown.values_mut() {
        endpoint.aliases = None;
        endpoint.dns_names = None;
    }
    shown
}

fn port_summary(port: &containers::ListedPort) -> PortSummary {
    PortSummary {
        ip: port.address,
        private_port: port.private,
        public_port: port.public,
        kind: port.protocol.to_string(),
    }
}

/// Returns a container's command as one line. Arguments with spaces are quoted.
fn command_text(config: &model::Config) -> String {
    let command: Vec<String> = whelk_engine::command(config)
        .into_iter()
        .enumerate()
        .map(|(index, word)| {
            if index > 0 && word.contains(' ') {
                format!("'{word}'")
            } else {
                word
            }
        })
        .collect();
    command.join(" ")
}

/// Formats a status such as `Up 3 minutes` or `Exited (0) 2 hours ago`.
fn status_text(state: &model::ContainerState, now: i64) -> String {
    let ago = |since: i64| duration::human((now - since) / 1_000_000_000);
    match state.status {
        Status::Created => "Created".into(),
        Status::Running => {
            let health = match &state.health {
                None => String::new(),
                Some(health) if health.status == model::HealthStatus::Starting => {
                    " (health: starting)".into()
                }
                Some(health) => format!(" ({})", health.status.as_str()),
            };
            format!("Up {}{health}", ago(state.started_at))
        }
        Status::Paused => format!("Up {} (Paused)", ago(state.started_at)),
        Status::Restarting => format!(
            "Restarting ({}) {} ago",
            state.exit_code,
            ago(state.finished_at)
        ),
        Status::Exited => format!(
            "Exited ({}) {} ago",
            state.exit_code,
            ago(state.finished_at)
        ),
        Status::Removing => "Removal In Progress".into(),
        Status::Dead => "Dead".into(),
    }
}
