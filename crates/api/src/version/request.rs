//! Upgrades requests of older versions to the newest one.

use std::collections::BTreeMap;

use whelk_api_types::{ExecConfig, UpdateConfig};
use whelk_engine::containers::CreateRequest;
use whelk_engine::model::network::{EndpointRequest, option};
use whelk_engine::model::{CgroupnsMode, HostConfig, IpcMode, Mount, MountKind, NetworkMode};
use whelk_engine::networks::ConnectRequest;

use super::ApiVersion;
use crate::error::{ApiError, ApiResult};

/// Upgrades the settings of a new container to the newest version. Returns warnings for the client.
/// Clients before 1.41 expect that a container has the host's cgroup namespace on a host with
/// cgroup v1.
///
/// # Errors
/// Returns an error for settings that the client's version did not have and that must not be
/// ignored.
pub(crate) fn upgrade_container(
    version: ApiVersion,
    has_cgroup_v2: bool,
    request: &mut CreateRequest,
) -> ApiResult<Vec<String>> {
    let mut warnings = Vec::new();
    let CreateRequest {
        platform,
        config,
        host,
        networks,
        ..
    } = request;
    if version < ApiVersion(1, 25) {
        // The client removed the container.
        host.auto_remove = false;
    }
    if version < ApiVersion(1, 40) && host.ipc_mode == IpcMode::Default {
        host.ipc_mode = IpcMode::Shareable;
    }
    if version < ApiVersion(1, 41) {
        platform.clear();
        if !has_cgroup_v2 && host.cgroupns_mode == CgroupnsMode::Default {
            host.cgroupns_mode = CgroupnsMode::Host;
        }
    }
    if version < ApiVersion(1, 42) {
        host.console_size = [0, 0];
    }
    if version < ApiVersion(1, 43) {
        host.annotations.clear();
    }
    if version < ApiVersion(1, 48) {
        networks
            .values_mut()
            .for_each(|endpoint| endpoint.gw_priority = 0);
    }
    host.mounts
        .iter_mut()
        .flatten()
        .try_for_each(|mount| upgrade_mount(version, mount))?;
    if version < ApiVersion(1, 44) {
        if let Some(check) = &mut config.healthcheck {
            check.start_interval = 0;
        }
        if networks.len() > 1 {
            let names: Vec<&str> = networks.keys().map(String::as_str).collect();
            return Err(ApiError::invalid(format!(
                "Container cannot be created with multiple network endpoints: {}",
                names.join(", ")
            )));
        }
        // The MAC address was a setting of the container; endpoints had none.
        networks
            .values_mut()
            .for_each(|endpoint| endpoint.mac_address.clear());
    } else if version >= ApiVersion(1, 52) && !config.mac_address.is_empty() {
        return Err(ApiError::invalid(
            "container-wide MAC address no longer supported; use endpoint-specific MAC address instead",
        ));
    } else if !config.mac_address.is_empty() {
        let endpoint = networks
            .get(host.network_mode.network().unwrap_or_default())
            .map_or("", |endpoint| &endpoint.mac_address);
        if !endpoint.is_empty() && !endpoint.eq_ignore_ascii_case(&config.mac_address) {
            return Err(ApiError::invalid(
                "the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty",
            ));
        }
        warnings.push("The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead.".into());
    }
    if version < ApiVersion(1, 48) {
        warnings.extend(move_interface_sysctls(
            &mut host.sysctls,
            &host.network_mode,
            networks,
        ));
    }
    if version >= ApiVersion(1, 52) {
        warnings.extend(unbound_ports(host));
    }
    Ok(warnings)
}

/// Upgrades a mount.
fn upgrade_mount(version: ApiVersion, mount: &mut Mount) -> ApiResult<()> {
    if version < ApiVersion(1, 42) {
        // Options of other kinds of mounts were ignored.
        if mount.kind != MountKind::Volume {
            mount.volume_options = None;
        }
        if mount.kind != MountKind::Tmpfs {
            mount.tmpfs_options = None;
        }
    }
    if let Some(options) = &mut mount.bind_options {
        options.non_recursive &= version >= ApiVersion(1, 40);
        options.create_mountpoint &= version >= ApiVersion(1, 42);
        if version < ApiVersion(1, 44) && options.read_only_force_recursive {
            return Err(needs("BindOptions.ReadOnlyForceRecursive", "1.44"));
        }
    }
    if version < ApiVersion(1, 45)
        && mount
            .volume_options
            .as_ref()
            .is_some_and(|options| !options.subpath.is_empty())
    {
        return Err(needs("VolumeOptions.Subpath", "1.45"));
    }
    if version < ApiVersion(1, 48) && mount.kind == MountKind::Image {
        return Err(needs("Mount type \"Image\"", "1.48"));
    }
    Ok(())
}

/// Returns a warning about ports with an empty list of bindings, if there are any.
fn unbound_ports(host: &HostConfig) -> Option<String> {
    let unbound: Vec<String> = host
        .bound_ports()
        .filter(|(_, bindings)| bindings.as_ref().is_none_or(Vec::is_empty))
        .map(|(port, _)| port.to_string())
        .collect();
    (!unbound.is_empty()).then(|| {
        format!(
            "Following container port(s) have an empty list of port-bindings: {}. Such bindings will be discarded in a future version.",
            unbound.join(", ")
        )
    })
}

fn needs(what: &str, version: &str) -> ApiError {
    ApiError::invalid(format!("{what} needs API v{version} or newer"))
}

/// Moves sysctls of `eth0` from the container to its first endpoint's driver options, which is
/// where newer clients set them. Returns a warning if any were moved.
fn move_interface_sysctls(
    sysctls: &mut BTreeMap<String, String>,
    mode: &NetworkMode,
    networks: &mut BTreeMap<String, EndpointRequest>,
) -> Option<String> {
    let network = mode.network().filter(|_| mode.has_own_networks())?;
    let is_interfaces = |key: &str| {
        let mut parts = key.split('.');
        parts.next() == Some("net")
            && matches!(parts.next(), Some("ipv4" | "ipv6" | "mpls"))
            && parts.nth(1) == Some("eth0")
    };
    let keys: Vec<String> = sysctls
        .keys()
        .filter(|key| is_interfaces(key))
        .cloned()
        .collect();
    if keys.is_empty() {
        return None;
    }
    let moved: Vec<String> = keys
        .iter()
        .filter_map(|key| {
            sysctls
                .remove(key)
                .map(|value| format!("{}={value}", key.replacen(".eth0.", ".IFNAME.", 1)))
        })
        .collect();
    let options = networks
        .entry(network.to_owned())
        .or_default()
        .driver_opts
        .get_or_insert_default();
    let given = options
        .get(option::SYSCTLS)
        .map(|given| format!("{given},"))
        .unwrap_or_default();
    let settings = given + &moved.join(",");
    options.insert(option::SYSCTLS.into(), settings.clone());
    let quoted: Vec<String> = keys.iter().map(|key| format!("{key:?}")).collect();
    Some(format!(
        "Migrated sysctl {} to DriverOpts{{{:?}:{settings:?}}}.",
        quoted.join(","),
        option::SYSCTLS
    ))
}

pub(crate) fn upgrade_exec(version: ApiVersion, config: &mut ExecConfig) {
    if version < ApiVersion(1, 42) {
        config.console_size = None;
    }
}

/// Upgrades the endpoint of a request to connect a container. Endpoints had no MAC address of their
/// own before version 1.44. (Docker shows it from 1.44 on, but applies it from 1.54 on only.)
pub(crate) fn upgrade_connect(version: ApiVersion, request: &mut ConnectRequest) {
    if version < ApiVersion(1, 44) {
        request.endpoint.mac_address.clear();
    }
}

/// Upgrades the update of a container. The limit of processes was ignored before version 1.40,
/// limits for devices before 1.55.
pub(crate) fn upgrade_update(version: ApiVersion, update: &mut UpdateConfig) {
    if version < ApiVersion(1, 40) {
        update.pids_limit = None;
    }
    if version < ApiVersion(1, 55) {
        update.blkio_weight_device = None;
        update.blkio_device_read_bps = None;
        update.blkio_device_write_bps = None;
        update.blkio_device_read_iops = None;
        update.blkio_device_write_iops = None;
    }
}

/// Upgrades the flags that enable IPv4 and IPv6 on a network. Clients before 1.47 send `false` for
/// IPv6 as the default.
pub(crate) fn upgrade_address_kinds(
    version: ApiVersion,
    ipv4: Option<bool>,
    ipv6: Option<bool>,
) -> (Option<bool>, Option<bool>) {
    let ipv4 = ipv4.filter(|_| version >= ApiVersion(1, 48));
    let ipv6 = if version < ApiVersion(1, 47) {
        ipv6.filter(|enabled| *enabled)
    } else {
        ipv6
    };
    (ipv4, ipv6)
}

/// Returns whether stop and restart accept a signal.
pub(crate) fn stop_takes_signal(version: ApiVersion) -> bool {
    version >= ApiVersion(1, 42)
}

/// Returns whether a client that attaches over a WebSocket selects the streams. Before, it gets all of
/// them.
pub(crate) fn websocket_selects_streams(version: ApiVersion) -> bool {
    version >= ApiVersion(1, 42)
}

/// Returns whether output over a WebSocket is sent in binary frames. Before, they were of text.
pub(crate) fn websocket_is_binary(version: ApiVersion) -> bool {
    version >= ApiVersion(1, 28)
}

/// Returns whether statistics can be requested without a previous sample.
pub(crate) fn stats_take_one_shot(version: ApiVersion) -> bool {
    version >= ApiVersion(1, 41)
}

/// Returns whether prune removes named volumes by default.
pub(crate) fn prune_takes_named_volumes(version: ApiVersion) -> bool {
    version < ApiVersion(1, 42)
}

/// Returns whether the list of images has the parameter `filter`, a name; later versions have `filters` only.
pub(crate) fn image_list_takes_name(version: ApiVersion) -> bool {
    version < ApiVersion(1, 41)
}

/// Returns whether the list of images has the parameter `shared-size`.
pub(crate) fn image_list_takes_shared_size(version: ApiVersion) -> bool {
    version >= ApiVersion(1, 42)
}

/// Returns whether the list of images has the parameter `manifests`.
pub(crate) fn image_list_takes_manifests(version: ApiVersion) -> bool {
    version >= ApiVersion(1, 47)
}

/// Returns whether an inspection of an image has the parameter `manifests`.
pub(crate) fn image_inspect_takes_manifests(version: ApiVersion) -> bool {
    version >= ApiVersion(1, 48)
}

/// Returns whether images have attestations.
pub(crate) fn images_have_attestations(version: ApiVersion) -> bool {
    version >= ApiVersion(1, 55)
}

/// Returns whether the list of images has the parameter `identity`.
pub(crate) fn image_list_takes_identity(version: ApiVersion) -> bool {
    version >= ApiVersion(1, 54)
}

/// Returns whether an operation accepts several platforms.
pub(crate) fn takes_several_platforms(version: ApiVersion, operation: ImageOperation) -> bool {
    match operation {
        ImageOperation::Load | ImageOperation::Save => version >= ApiVersion(1, 52),
        operation => matches!(operation, ImageOperation::Remove),
    }
}

/// Image operations with a platform parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ImageOperation {
    Import,
    Push,
    Load,
    Save,
    History,
    Inspect,
    Remove,
}

/// Returns whether an operation has the platform parameter, which earlier versions ignore.
pub(crate) fn takes_platform(version: ApiVersion, operation: ImageOperation) -> bool {
    let since = match operation {
        ImageOperation::Import => ApiVersion(1, 32),
        ImageOperation::Push => ApiVersion(1, 46),
        ImageOperation::Load | ImageOperation::Save | ImageOperation::History => ApiVersion(1, 48),
        ImageOperation::Inspect => ApiVersion(1, 49),
        ImageOperation::Remove => ApiVersion(1, 50),
    };
    version >= since
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use whelk_api_types::{ContainerConfig, EndpointSettings, HostConfig};
    use whelk_engine::model::VolumeOptions;

    use super::*;
    use crate::wire::{Convert, Parse};

    fn container(version: (u32, u32), text: Value) -> Result<(CreateRequest, Vec<String>), String> {
        fn part<T: serde::de::DeserializeOwned + Default>(text: &Value, name: &str) -> T {
            let part = text.get(name).cloned();
            part.map(|part| serde_json::from_value(part).unwrap())
                .unwrap_or_default()
        }
        let host: HostConfig = part(&text, "Host");
        let config: ContainerConfig = part(&text, "Config");
        let networks: BTreeMap<String, EndpointSettings> = part(&text, "Networks");
        let mut request = CreateRequest {
            platform: "linux/arm64".into(),
            host: host.parse().unwrap(),
            config: config.parse().unwrap(),
            networks: networks.convert(),
            ..CreateRequest::default()
        };
        let warnings = upgrade_container(ApiVersion(version.0, version.1), false, &mut request)
            .map_err(|error| error.0.to_string())?;
        Ok((request, warnings))
    }

    #[test]
    fn rejects_or_ignores_settings_unknown_to_a_version() {
        let refused = |minor: u32, text: Value, expected: &str| {
            assert_eq!(
                container((1, minor), text.clone()).map(drop),
                Err(expected.to_owned())
            );
            assert!(container((1, minor + 1), text).is_ok(), "{expected}");
        };
        let mount = |mount: Value| json!({"Host": {"Mounts": [mount]}});
        refused(
            43,
            json!({"Networks": {"a": {}, "b": {}}}),
            "Container cannot be created with multiple network endpoints: a, b",
        );
        refused(
            43,
            mount(json!({"Type": "bind", "BindOptions": {"ReadOnlyForceRecursive": true}})),
            "BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer",
        );
        refused(
            44,
            mount(json!({"Type": "volume", "VolumeOptions": {"Subpath": "x"}})),
            "VolumeOptions.Subpath needs API v1.45 or newer",
        );
        refused(
            47,
            mount(json!({"Type": "image"})),
            "Mount type \"Image\" needs API v1.48 or newer",
        );
        let shown = |minor: u32| {
            let text = json!({
                "Host": {"ConsoleSize": [1, 2], "Annotations": {"a": "b"}, "Mounts": [{"Type": "bind", "BindOptions": {"CreateMountpoint": true}}]},
                "Networks": {"n": {"MacAddress": "02:00:00:00:00:01"}},
            });
            let (request, _) = container((1, minor), text).unwrap_or_default();
            let create = request.host.mounts.iter().flatten().any(|mount| {
                mount
                    .bind_options
                    .as_ref()
                    .is_some_and(|bind| bind.create_mountpoint)
            });
            (
                request.platform.is_empty(),
                request.host.console_size[0],
                create,
                request.host.annotations.len(),
                request.networks["n"].mac_address.len(),
            )
        };
        let text = json!({"Config": {"MacAddress": "02:00:00:00:00:01"}, "Networks": {"bridge": {"MacAddress": "02:00:00:00:00:02"}}});
        assert!(container((1, 43), text.clone()).is_ok());
        assert_eq!(
            container((1, 44), text).map(drop),
            Err("the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty".into())
        );
        assert_eq!(shown(40), (true, 0, false, 0, 0));
        assert_eq!(shown(41), (false, 0, false, 0, 0));
        assert_eq!(shown(42), (false, 1, true, 0, 0));
        assert_eq!(shown(43), (false, 1, true, 1, 0));
        assert_eq!(shown(44), (false, 1, true, 1, 17));
    }

    #[test]
    fn old_versions_have_their_defaults() {
        let upgraded = |minor: u32, has_cgroup_v2: bool| {
            let mount = || Mount {
                volume_options: Some(VolumeOptions::default()),
                ..Mount::default()
            };
            let volume = Mount {
                kind: MountKind::Volume,
                ..mount()
            };
            let endpoint = EndpointRequest {
                gw_priority: 1,
                ..EndpointRequest::default()
            };
            let mut request = CreateRequest {
                networks: [("n".to_owned(), endpoint)].into(),
                ..CreateRequest::default()
            };
            request.host.auto_remove = true;
            request.host.mounts = Some(vec![mount(), volume]);
            let version = ApiVersion(1, minor);
            let upgraded = upgrade_container(version, has_cgroup_v2, &mut request);
            assert!(upgraded.is_ok(), "{minor}");
            request
        };
        for (minor, removed, mode) in [
            (24, false, CgroupnsMode::Host),
            (25, true, CgroupnsMode::Host),
            (40, true, CgroupnsMode::Host),
            (41, true, CgroupnsMode::Default),
        ] {
            let host = upgraded(minor, false).host;
            assert_eq!((host.auto_remove, host.cgroupns_mode), (removed, mode));
            let mode = upgraded(minor, true).host.cgroupns_mode;
            assert_eq!(mode, CgroupnsMode::Default, "{minor}");
        }
        for (minor, kept) in [(41, [false, true]), (42, [true, true])] {
            let mounts = upgraded(minor, true).host.mounts.unwrap_or_default();
            let found: Vec<bool> = mounts
                .iter()
                .map(|mount| mount.volume_options.is_some())
                .collect();
            assert_eq!(found, kept, "{minor}");
        }
        let priority = |minor| upgraded(minor, true).networks["n"].gw_priority;
        assert_eq!((priority(47), priority(48)), (0, 1));
    }

    #[test]
    fn moves_sysctls_of_the_first_interface_to_its_endpoint() {
        let text = json!({"Host": {"Sysctls": {"net.ipv4.conf.eth0.forwarding": "1", "net.ipv4.ip_forward": "0"}, "NetworkMode": "n"}});
        let (request, warnings) = container((1, 47), text.clone()).unwrap_or_default();
        assert_eq!(
            warnings,
            [
                "Migrated sysctl \"net.ipv4.conf.eth0.forwarding\" to DriverOpts{\"com.docker.network.endpoint.sysctls\":\"net.ipv4.conf.IFNAME.forwarding=1\"}."
            ]
        );
        assert_eq!(
            request.host.sysctls.keys().collect::<Vec<_>>(),
            ["net.ipv4.ip_forward"]
        );
        let options = request.networks["n"]
            .driver_opts
            .clone()
            .unwrap_or_default();
        assert_eq!(
            options[option::SYSCTLS],
            "net.ipv4.conf.IFNAME.forwarding=1"
        );
        let (request, warnings) = container((1, 48), text).unwrap_or_default();
        assert_eq!((request.host.sysctls.len(), warnings.len()), (2, 0));
    }

    #[test]
    fn upgrades_address_family_flags() {
        let kinds = |minor: u32, ipv4: bool, ipv6: bool| {
            upgrade_address_kinds(ApiVersion(1, minor), Some(ipv4), Some(ipv6))
        };
        assert_eq!(kinds(46, false, false), (None, None));
        assert_eq!(kinds(46, false, true), (None, Some(true)));
        assert_eq!(kinds(47, false, false), (None, Some(false)));
        assert_eq!(kinds(48, false, true), (Some(false), Some(true)));
    }
}
