//! Downgrades responses to older versions.

use axum::http::{HeaderMap, header};
use whelk_api_types::{
    ContainerInspectResponse, ContainerStatsResponse, ContainerSummary, DefaultNetworkSettings,
    DiskUsage, EventMessage, ImageConfig, ImageConfigContainerFields, ImageInspect, ImageSummary,
    NetworkInspect, SystemDataUsageResponse, SystemInfo,
};

use super::ApiVersion;

/// Returns the content type of a multiplexed stream.
pub(crate) fn multiplexed_type(version: ApiVersion) -> &'static str {
    if version < ApiVersion(1, 42) {
        RAW_STREAM
    } else {
        "application/vnd.docker.multiplexed-stream"
    }
}

pub(crate) const RAW_STREAM: &str = "application/vnd.docker.raw-stream";

/// Returns whether the list of networks includes their containers.
pub(crate) fn network_list_has_containers(version: ApiVersion) -> bool {
    version < ApiVersion(1, 28)
}

/// `mac_address` is the address that was requested for the container's main network.
pub(crate) fn downgrade_container(
    version: ApiVersion,
    mac_address: String,
    shown: &mut ContainerInspectResponse,
) {
    if version < ApiVersion(1, 52) {
        shown.config.mac_address = mac_address;
        shown.config.on_build.get_or_insert_default();
        shown.network_settings.default_network = Some(default_network(shown));
    }
    if version < ApiVersion(1, 45) {
        let short = &shown.id[..shown.id.len().min(12)];
        for (_, endpoint) in shown
            .network_settings
            .networks
            .iter_mut()
            .filter(|(name, _)| !matches!(name.as_str(), "bridge" | "host" | "none"))
        {
            let aliases = endpoint.aliases.get_or_insert_default();
            for name in [short, shown.config.hostname.as_str()] {
                if !name.is_empty() && !aliases.iter().any(|known| known == name) {
                    aliases.push(name.to_owned());
                }
            }
        }
    }
}

/// Returns the settings of a container's endpoint on the default network.
fn default_network(shown: &ContainerInspectResponse) -> DefaultNetworkSettings {
    let Some(endpoint) = shown.network_settings.networks.get("bridge") else {
        return DefaultNetworkSettings::default();
    };
    DefaultNetworkSettings {
        endpoint_id: endpoint.endpoint_id.clone(),
        gateway: endpoint.gateway.clone(),
        global_ipv6_address: endpoint.global_ipv6_address.clone(),
        global_ipv6_prefix_len: endpoint.global_ipv6_prefix_len,
        ip_address: endpoint.ip_address.clone(),
        ip_prefix_len: endpoint.ip_prefix_len,
        ipv6_gateway: endpoint.ipv6_gateway.clone(),
        mac_address: endpoint.mac_address.clone(),
        ..DefaultNetworkSettings::default()
    }
}

pub(crate) fn downgrade_listed_container(version: ApiVersion, shown: &mut ContainerSummary) {
    if version < ApiVersion(1, 46) {
        shown.host_config.annotations.clear();
    }
    if version < ApiVersion(1, 52) {
        shown.health = None;
    }
}

pub(crate) fn downgrade_stats(version: ApiVersion, shown: &mut ContainerStatsResponse) {
    if version < ApiVersion(1, 52) {
        shown.os_type.clear();
    }
}

pub(crate) fn downgrade_network(version: ApiVersion, shown: &mut NetworkInspect) {
    if version < ApiVersion(1, 52) {
        shown.status = None;
    }
}

pub(crate) fn downgrade_listed_network(version: ApiVersion, shown: &mut NetworkInspect) {
    if version < ApiVersion(1, 52) {
        shown.containers.get_or_insert_default();
    }
}

/// Returns the media type of the stream of events for a client that sent the header `Accept`.
pub(crate) fn events_type(version: ApiVersion, accept: &HeaderMap) -> &'static str {
    let listed = accept
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|range| range.split(';').next().unwrap_or_default().trim());
    let mut accepted = listed.filter_map(|range| {
        [JSON_LINES, "application/x-ndjson", JSON_SEQUENCE]
            .into_iter()
            .find(|offer| offer.eq_ignore_ascii_case(range))
    });
    match accepted.next() {
        Some(offer) => offer,
        None if version < ApiVersion(1, 52) => "application/json",
        None => JSON_LINES,
    }
}

const JSON_LINES: &str = "application/jsonl";
/// A sequence of JSON texts, each after a record separator (RFC 7464).
pub(crate) const JSON_SEQUENCE: &str = "application/json-seq";

pub(crate) fn downgrade_event(version: ApiVersion, shown: &mut EventMessage) {
    if version < ApiVersion(1, 52) && matches!(shown.kind.as_str(), "container" | "image") {
        shown.status = Some(shown.action.clone());
        shown.id = Some(shown.actor.id.clone());
        shown.from = shown
            .actor
            .attributes
            .get("image")
            .filter(|_| shown.kind == "container")
            .cloned();
    }
}

/// Moves the objects to the fields where a version has them. `details` is whether they were
/// requested (`verbose`), in versions that have this parameter.
pub(crate) fn downgrade_disk_usage(
    version: ApiVersion,
    details: bool,
    shown: &mut SystemDataUsageResponse,
) {
    if version >= ApiVersion(1, 52) && details {
        return;
    }
    let layers_size = shown.image_usage.as_ref().map(|usage| usage.total_size);
    shown.layers_size = layers_size.map(|size| u64::try_from(size).unwrap_or(0));
    shown.images = shown.image_usage.as_mut().map(DiskUsage::take_items);
    shown.containers = shown.container_usage.as_mut().map(DiskUsage::take_items);
    shown.volumes = shown.volume_usage.as_mut().map(DiskUsage::take_items);
    shown.build_cache = shown.build_cache_usage.as_mut().map(DiskUsage::take_items);
    if version < ApiVersion(1, 42) {
        let records = shown.build_cache.iter().flatten();
        let size: u64 = records.map(|record| record.size).sum();
        shown.builder_size = Some(size).filter(|size| *size != 0);
    }
    if version < ApiVersion(1, 52) {
        shown.image_usage = None;
        shown.container_usage = None;
        shown.volume_usage = None;
        shown.build_cache_usage = None;
    }
}

pub(crate) fn downgrade_listed_image(version: ApiVersion, shown: &mut ImageSummary) {
    if version < ApiVersion(1, 51) {
        shown.containers = -1;
    }
    if version < ApiVersion(1, 43) {
        let unnamed = shown.repo_tags.is_empty();
        shown.repo_digests = unnamed.then(|| vec!["<none>@<none>".into()]);
        if unnamed {
            shown.repo_tags = vec!["<none>:<none>".into()];
        }
    }
    if version < ApiVersion(1, 44) {
        shown.virtual_size = Some(shown.size);
    }
}

pub(crate) fn downgrade_image(version: ApiVersion, shown: &mut ImageInspect) {
    if version < ApiVersion(1, 53) {
        shown.identity = None;
    }
    if version < ApiVersion(1, 52) {
        for text in [
            &mut shown.parent,
            &mut shown.comment,
            &mut shown.docker_version,
            &mut shown.author,
        ] {
            text.get_or_insert_default();
        }
    }
    if version < ApiVersion(1, 44) {
        if shown.created.is_empty() {
            shown.created = crate::wire::time(0);
        }
        shown.virtual_size = Some(shown.size);
    }
    if version < ApiVersion(1, 45) {
        // No image here was created from a container.
        shown.container = Some(String::new());
        shown.container_config = Some(ImageConfig::default());
    }
    for config in std::iter::once(&mut shown.config).chain(&mut shown.container_config) {
        downgrade_image_config(version, config);
    }
}

/// Adds the fields that clients read without checking whether they exist.
fn downgrade_image_config(version: ApiVersion, config: &mut ImageConfig) {
    if version < ApiVersion(1, 52) {
        for list in [
            &mut config.env,
            &mut config.entrypoint,
            &mut config.cmd,
            &mut config.on_build,
        ] {
            list.get_or_insert_default();
        }
        config.volumes.get_or_insert_default();
        config.labels.get_or_insert_default();
        config.user.get_or_insert_default();
        config.working_dir.get_or_insert_default();
    }
    if version < ApiVersion(1, 50) {
        config.container_fields = Some(ImageConfigContainerFields::default());
    }
}

/// `bridge_filter` is whether bridged packets pass iptables and ip6tables.
pub(crate) fn downgrade_info(
    version: ApiVersion,
    bridge_filter: (bool, bool),
    shown: &mut SystemInfo,
) {
    if version < ApiVersion(1, 42) {
        shown.kernel_memory = Some(shown.memory_limit);
    }
    if version < ApiVersion(1, 47) {
        let registries = &mut shown.registry_config;
        registries.allow_nondistributable_artifacts_cidrs = Some(None);
        registries.allow_nondistributable_artifacts_hostnames = Some(None);
    }
    if version < ApiVersion(1, 49) {
        shown.firewall_backend = None;
        for commit in [
            &mut shown.containerd_commit,
            &mut shown.runc_commit,
            &mut shown.init_commit,
        ] {
            commit.expected = Some(commit.id.clone());
        }
    }
    if version < ApiVersion(1, 50) {
        shown.discovered_devices.clear();
        shown.bridge_nf_iptables = Some(bridge_filter.0);
        shown.bridge_nf_ip6tables = Some(bridge_filter.1);
    }
}
