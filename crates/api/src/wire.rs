//! Converts the engine's objects to the API's JSON, in the newest version's form.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use whelk_engine::containers::{ContainerSummary, ExecSession, Inspected, ListedPort, MountPoint};
use whelk_engine::events::Event;
use whelk_engine::model::{ContainerRecord, ContainerState, Status};
use whelk_engine::networks::{Endpoint, Member, NetworkRecord};
use whelk_engine::volumes::VolumeDetails;

mod image;

pub(crate) use image::{history, image, image_summary};

/// Formats nanoseconds since the epoch as RFC 3339; 0 becomes Go's zero time.
pub(crate) fn time(nanoseconds: i64) -> String {
    if nanoseconds == 0 {
        "0001-01-01T00:00:00Z".into()
    } else {
        jiff::Timestamp::from_nanosecond(nanoseconds.into())
            .unwrap_or_default()
            .to_string()
    }
}

fn state(state: &ContainerState) -> Value {
    json!({
        "Status": state.status.as_str(),
        "Running": state.status.is_running() || state.status == Status::Restarting,
        "Paused": state.status == Status::Paused,
        "Restarting": state.status == Status::Restarting,
        "OOMKilled": state.oom_killed,
        "Dead": state.status == Status::Dead,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": time(state.started_at),
        "FinishedAt": time(state.finished_at),
    })
}

fn mount_point(mount: &MountPoint) -> Value {
    let mut value = json!({"Type": mount.kind, "Source": mount.source, "Destination": mount.destination, "Mode": mount.mode, "RW": mount.writable, "Propagation": mount.propagation});
    if !mount.name.is_empty() {
        value["Name"] = json!(mount.name);
    }
    if !mount.driver.is_empty() {
        value["Driver"] = json!(mount.driver);
    }
    value
}

pub(crate) fn volume(shown: &VolumeDetails) -> Value {
    let record = &shown.record;
    let created = if shown.created_at.is_empty() {
        jiff::Timestamp::from_second(record.created_at / 1_000_000_000)
            .unwrap_or_default()
            .to_string()
    } else {
        shown.created_at.clone()
    };
    let mut value = json!({
        "CreatedAt": created, "Driver": record.driver, "Labels": record.labels, "Mountpoint": shown.mountpoint, "Name": record.name,
        "Options": record.options, "Scope": shown.scope,
    });
    if let Some(status) = &shown.status {
        value["Status"] = status.clone();
    }
    value
}

/// Returns a container's endpoints by network name. In lists, aliases and DNS names are null.
fn endpoints(record: &ContainerRecord, with_names: bool) -> Value {
    let shown = |endpoint: &Endpoint| {
        let mut value = serde_json::to_value(endpoint).unwrap_or_default();
        if let Value::Object(map) = &mut value {
            map.remove("Interface");
            map.remove("WantedMac");
        }
        if !with_names {
            value["Aliases"] = Value::Null;
            value["DNSNames"] = Value::Null;
        }
        value
    };
    Value::Object(
        record
            .networks
            .iter()
            .map(|(name, endpoint)| (name.clone(), shown(endpoint)))
            .collect(),
    )
}

/// Returns the port bindings by container port; `null` for exposed ports that are not published.
fn port_map(record: &ContainerRecord) -> Value {
    let exposed = record
        .config
        .exposed_ports
        .keys()
        .filter(|_| record.has_ports());
    let mut map: Map<String, Value> = exposed
        .map(|port| {
            (
                if port.contains('/') {
                    port.clone()
                } else {
                    format!("{port}/tcp")
                },
                Value::Null,
            )
        })
        .collect();
    for publication in &record.ports {
        let entry = map
            .entry(format!(
                "{}/{}",
                publication.to.port(),
                publication.protocol
            ))
            .or_insert(Value::Null);
        let host_port = if publication.is_direct() {
            String::new()
        } else {
            publication.host.port().to_string()
        };
        let binding = json!({"HostIp": publication.host.ip(), "HostPort": host_port});
        match entry {
            // The same host port for both address families of the container is one binding.
            Value::Array(list) if !list.contains(&binding) => list.push(binding),
            Value::Array(_) => {}
            other => *other = json!([binding]),
        }
    }
    map.sort_keys();
    Value::Object(map)
}

/// Returns the ports of a listed container.
fn port_list(record: &ContainerRecord) -> Value {
    let shown = |port: &ListedPort| {
        let mut shown = Map::new();
        if let Some(address) = port.address {
            shown.insert("IP".into(), json!(address));
        }
        shown.insert("PrivatePort".into(), json!(port.private));
        if let Some(public) = port.public {
            shown.insert("PublicPort".into(), json!(public));
        }
        shown.insert("Type".into(), json!(port.protocol));
        Value::Object(shown)
    };
    record.listed_ports().iter().map(shown).collect()
}

/// Returns a container's `NetworkSettings`. For compatibility, the endpoint on the default network
/// is repeated in the top-level fields.
fn network_settings(record: &ContainerRecord) -> Value {
    let top = record.networks.get("bridge").cloned().unwrap_or_default();
    json!({
        "Bridge": "", "SandboxID": record.sandbox_id(), "SandboxKey": record.sandbox_key(), "Ports": port_map(record),
        "HairpinMode": false, "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0, "SecondaryIPAddresses": null, "SecondaryIPv6Addresses": null,
        "EndpointID": top.endpoint_id, "Gateway": top.gateway, "GlobalIPv6Address": top.global_ipv6_address,
        "GlobalIPv6PrefixLen": top.global_ipv6_prefix_len, "IPAddress": top.ip_address, "IPPrefixLen": top.ip_prefix_len,
        "IPv6Gateway": top.ipv6_gateway, "MacAddress": top.mac_address,
        "Networks": endpoints(record, true),
    })
}

pub(crate) fn network(record: &NetworkRecord, members: &BTreeMap<String, Member>) -> Value {
    let containers: Map<String, Value> = members
        .iter()
        .map(|(id, member)| {
            let address = |ipv4: bool| member.addresses.iter().find(|net| net.addr().is_ipv4() == ipv4).map_or_else(String::new, ToString::to_string);
            let shown = json!({"Name": member.name, "EndpointID": member.endpoint_id, "MacAddress": member.mac, "IPv4Address": address(true), "IPv6Address": address(false)});
            (id.clone(), shown)
        })
        .collect();
    json!({
        "Name": record.name,
        "Id": record.id,
        "Created": time(record.created_at),
        "Scope": "local",
        "Driver": record.driver,
        "EnableIPv4": record.enable_ipv4,
        "EnableIPv6": record.enable_ipv6,
        "IPAM": record.ipam,
        "Internal": record.internal,
        "Attachable": record.attachable,
        "Ingress": false,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": false,
        "Containers": containers,
        "Options": record.options,
        "Labels": record.labels,
    })
}

pub(crate) fn container(inspected: &Inspected) -> Value {
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
    } = inspected;
    let file = |name: &str| {
        if *has_generated_files {
            names.join(name).to_string_lossy().into_owned()
        } else {
            String::new()
        }
    };
    let mut command = whelk_engine::command(&record.config);
    let path = if command.is_empty() {
        String::new()
    } else {
        command.remove(0)
    };
    let mut config = json!(record.config);
    // Clients read the MAC address here, although it belongs to the endpoint.
    if let Some(first) = record
        .networks
        .get(&record.host.network_mode)
        .filter(|first| !first.wanted_mac.is_empty())
    {
        config["MacAddress"] = json!(first.wanted_mac);
    }
    // The root is mounted only in the container's mount namespace, which is reachable through its
    // first process.
    let merged = if record.state.pid > 0 {
        format!("/proc/{}/root", record.state.pid)
    } else {
        String::new()
    };
    let lower: Vec<_> = lower.iter().map(|path| path.to_string_lossy()).collect();
    let mut value = json!({
        "Id": record.id,
        "Created": time(record.created_at),
        "Path": path,
        "Args": command,
        "State": state(&record.state),
        "Image": record.image,
        "ResolvConfPath": file("resolv.conf"),
        "HostnamePath": file("hostname"),
        "HostsPath": file("hosts"),
        "LogPath": if *has_generated_files { log_path.to_string_lossy().into_owned() } else { String::new() },
        "Name": format!("/{}", record.name),
        "RestartCount": record.state.restart_count,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": if execs.is_empty() { Value::Null } else { json!(execs) },
        "HostConfig": record.host,
        "GraphDriver": {"Data": {"ID": record.id, "LowerDir": lower.join(":"), "MergedDir": merged, "UpperDir": directory.join("upper"), "WorkDir": directory.join("work")}, "Name": "overlay2"},
        "Mounts": mounts.iter().map(mount_point).collect::<Vec<_>>(),
        "Config": config,
        "NetworkSettings": network_settings(record),
    });
    if let Some((writable, total)) = size {
        value["SizeRw"] = json!(writable);
        value["SizeRootFs"] = json!(total);
    }
    value
}

/// Formats a status such as `Up 3 minutes` or `Exited (0) 2 hours ago`.
fn status_text(state: &ContainerState, now: i64) -> String {
    let ago = |since: i64| duration(now - since);
    match state.status {
        Status::Created => "Created".into(),
        Status::Running => format!("Up {}", ago(state.started_at)),
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

/// Formats nanoseconds as `2 hours`, like Docker.
fn duration(nanoseconds: i64) -> String {
    let seconds = nanoseconds.max(0) / 1_000_000_000;
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

pub(crate) fn listed(listed: &ContainerSummary, now: i64) -> Value {
    let record = &listed.record;
    let command: Vec<String> = whelk_engine::command(&record.config)
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
    let command = command.join(" ");
    let mut names = vec![format!("/{}", record.name)];
    names.extend_from_slice(&listed.link_names);
    let mut host = json!({"NetworkMode": record.host.network_mode});
    if !record.host.annotations.is_empty() {
        host["Annotations"] = json!(record.host.annotations);
    }
    let mut value = json!({
        "Id": record.id,
        "Names": names,
        "Image": listed.image,
        "ImageID": record.image,
        "Command": command,
        "Created": record.created_at / 1_000_000_000,
        "Ports": port_list(record),
        "Labels": record.config.labels,
        "State": record.state.status.as_str(),
        "Status": status_text(&record.state, now),
        "HostConfig": host,
        "NetworkSettings": {"Networks": endpoints(record, false)},
        "Mounts": listed.mounts.iter().map(mount_point).collect::<Vec<_>>(),
    });
    if let Some((writable, total)) = listed.size {
        if writable > 0 {
            value["SizeRw"] = json!(writable);
        }
        value["SizeRootFs"] = json!(total);
    }
    value
}

pub(crate) fn exec(exec: &ExecSession) -> Value {
    let (config, state) = (&exec.config, exec.state());
    let (entrypoint, arguments) = config
        .cmd
        .as_deref()
        .and_then(<[String]>::split_first)
        .map_or((String::new(), Vec::new()), |(first, rest)| {
            (first.clone(), rest.to_vec())
        });
    let mut process = json!({"tty": config.tty, "entrypoint": entrypoint, "arguments": arguments, "privileged": config.privileged});
    if !config.user.is_empty() {
        process["user"] = json!(config.user);
    }
    json!({
        "ID": exec.id,
        "Running": state.running,
        "ExitCode": state.exit_code,
        "ProcessConfig": process,
        "OpenStdin": config.attach_stdin,
        "OpenStderr": config.attach_stderr,
        "OpenStdout": config.attach_stdout,
        // Execs that can be removed have been removed already.
        "CanRemove": false,
        "ContainerID": exec.container,
        "DetachKeys": "",
        "Pid": state.pid,
    })
}

pub(crate) fn event(event: &Event) -> Value {
    let mut value = Map::new();
    // Fields from before events had types, which some clients still use.
    if event.kind == "container" || event.kind == "image" {
        value.insert("status".into(), json!(event.action));
        value.insert("id".into(), json!(event.id));
        if event.kind == "container" {
            value.insert("from".into(), json!(event.attributes.get("image")));
        }
    }
    value.insert("Type".into(), json!(event.kind));
    value.insert("Action".into(), json!(event.action));
    value.insert(
        "Actor".into(),
        json!({"ID": event.id, "Attributes": event.attributes}),
    );
    value.insert("scope".into(), json!("local"));
    value.insert("time".into(), json!(event.time / 1_000_000_000));
    value.insert("timeNano".into(), json!(event.time));
    Value::Object(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_durations() {
        let second = 1_000_000_000;
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (7300, "2 hours"),
            (200_000, "2 days"),
            (1_500_000, "2 weeks"),
        ] {
            assert_eq!(duration(seconds * second), text, "{seconds}");
        }
    }

    #[test]
    fn formats_times_as_go_does() {
        assert_eq!(time(0), "0001-01-01T00:00:00Z");
        assert_eq!(time(1_700_000_000_120_000_000), "2023-11-14T22:13:20.12Z");
    }
}
