//! Keys of Docker's daemon.json that whelk does not support, or only with some values.

use serde_json::{Map, Value};

/// A value that a key may have.
enum Accepted {
    Is(bool),
    Text(&'static str),
}

impl Accepted {
    fn is(&self, value: &Value) -> bool {
        match self {
            Self::Is(accepted) => value.as_bool() == Some(*accepted),
            Self::Text(accepted) => value.as_str() == Some(accepted),
        }
    }
}

use Accepted::{Is, Text};

/// Keys with the values that describe what whelk does in any case, and the reason why there are no
/// others.
const FIXED: &[(&str, &[Accepted], &str)] = &[
    (
        "allow-direct-routing",
        &[Is(false)],
        "networks with the gateway mode routed or nat-unprotected are reachable from outside",
    ),
    ("cri-containerd", &[Is(false)], "there is no containerd"),
    (
        "experimental",
        &[Is(false)],
        "there are no experimental features",
    ),
    (
        "firewall-backend",
        &[Text(""), Text("nftables")],
        "rules are in an nf_tables table of the engine's own",
    ),
    (
        "ip-forward-no-drop",
        &[Is(true)],
        "the engine changes no policy of the host's firewall; its own rules keep others from using the host as a router to containers",
    ),
    (
        "ip6tables",
        &[Is(true)],
        "without rules, containers would not be isolated",
    ),
    (
        "iptables",
        &[Is(true)],
        "without rules, containers would not be isolated",
    ),
    (
        "live-restore",
        &[Is(true)],
        "containers always keep running when the engine stops",
    ),
    // What is logged never has colors, and its times are complete.
    ("raw-logs", &[Is(true), Is(false)], ""),
    ("rootless", &[Is(false)], "the engine must run as root"),
    (
        "selinux-enabled",
        &[Is(false)],
        "containers have no SELinux labels",
    ),
    (
        "storage-driver",
        &[Text(""), Text("overlay2")],
        "layers are mounted with overlayfs",
    ),
    (
        "userland-proxy",
        &[Is(false)],
        "ports are published by the kernel only",
    ),
];

/// Keys that are only accepted without a value, with their flags if these are no switches, and the reason.
const REFUSED: &[(&str, Option<&str>, &str)] = &[
    (
        "allow-nondistributable-artifacts",
        Some("allow-nondistributable-artifacts"),
        "such layers are pushed like others",
    ),
    (
        "api-cors-header",
        Some("api-cors-header"),
        "use a reverse proxy",
    ),
    (
        "authorization-plugins",
        Some("authorization-plugin"),
        "whoever can connect to the engine may do everything",
    ),
    (
        "bridge",
        Some("bridge"),
        "the default network is the engine's own",
    ),
    (
        "bridge-accept-fwmark",
        Some("bridge-accept-fwmark"),
        "not available in this version",
    ),
    ("containerd", Some("containerd"), "there is no containerd"),
    (
        "containerd-namespace",
        Some("containerd-namespace"),
        "there is no containerd",
    ),
    (
        "containerd-plugins-namespace",
        Some("containerd-plugins-namespace"),
        "there is no containerd",
    ),
    (
        "cpu-rt-period",
        Some("cpu-rt-period"),
        "not available in this version",
    ),
    (
        "cpu-rt-runtime",
        Some("cpu-rt-runtime"),
        "not available in this version",
    ),
    (
        "default-gateway",
        Some("default-gateway"),
        "the bridge is the gateway of the default network",
    ),
    (
        "default-gateway-v6",
        Some("default-gateway-v6"),
        "the bridge is the gateway of the default network",
    ),
    (
        "default-init",
        None,
        "init is the key for an init process in containers",
    ),
    (
        "init-path",
        Some("init-path"),
        "the init process is the engine's own",
    ),
    (
        "metrics-addr",
        Some("metrics-addr"),
        "not available in this version",
    ),
    (
        "network-control-plane-mtu",
        Some("network-control-plane-mtu"),
        "there is no swarm",
    ),
    (
        "network-diagnostic-port",
        Some("network-diagnostic-port"),
        "not available in this version",
    ),
    (
        "node-generic-resources",
        Some("node-generic-resource"),
        "there is no swarm",
    ),
    (
        "nri-opts",
        Some("nri-opts"),
        "not available in this version",
    ),
    (
        "resolv-conf",
        None,
        "the host's resolver is that of /etc/resolv.conf; dns sets others for containers",
    ),
    (
        "storage-opts",
        Some("storage-opt"),
        "overlayfs has no options",
    ),
    (
        "swarm-default-advertise-addr",
        Some("swarm-default-advertise-addr"),
        "there is no swarm",
    ),
    ("swarm-raft-election-tick", None, "there is no swarm"),
    ("swarm-raft-heartbeat-tick", None, "there is no swarm"),
    (
        "userland-proxy-path",
        Some("userland-proxy-path"),
        "there is no proxy",
    ),
    (
        "userns-remap",
        Some("userns-remap"),
        "the ids of containers are not remapped",
    ),
];

/// Removes the keys that have no effect.
///
/// # Errors
/// Returns an error that names all keys which are not supported, or not with their value.
pub(super) fn check(members: &mut Map<String, Value>) -> anyhow::Result<()> {
    let mut problems = Vec::new();
    for (key, accepted, why) in FIXED {
        if let Some(value) = members.shift_remove(*key)
            && !accepted.iter().any(|accepted| accepted.is(&value))
        {
            problems.push(format!("{key}: {value} is not supported: {why}"));
        }
    }
    for (key, _, why) in REFUSED {
        if let Some(value) = members.shift_remove(*key)
            && !is_empty(&value)
        {
            problems.push(format!("{key} is not supported: {why}"));
        }
    }
    if !problems.is_empty() {
        anyhow::bail!("{}", problems.join("; "));
    }
    Ok(())
}

/// Whether a key changes nothing, whatever its value is.
pub(super) fn is_fixed(key: &str) -> bool {
    let fixed = FIXED.iter().map(|(key, ..)| key);
    let refused = REFUSED.iter().map(|(key, ..)| key);
    fixed.chain(refused).any(|known| *known == key)
}

/// Whether a value is one that a key has in Docker if it is not set.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(_) | Value::Null => false,
    }
}

/// The keys that are switches here, which flags set, too.
pub(super) fn switches() -> impl Iterator<Item = &'static str> {
    let switches = FIXED
        .iter()
        .filter(|(_, accepted, _)| accepted.iter().all(|accepted| matches!(accepted, Is(_))));
    switches.map(|(key, ..)| *key)
}

/// The keys that are only accepted without a value.
#[cfg(test)]
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    REFUSED.iter().map(|(key, ..)| *key)
}

/// The flags with a value that are refused, with their keys.
pub(super) fn flags() -> impl Iterator<Item = (&'static str, &'static str)> {
    let refused = REFUSED.iter();
    refused.filter_map(|(key, flag, _)| flag.map(|flag| (flag, *key)))
}
