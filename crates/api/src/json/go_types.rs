//! Go types of fields, as named in Docker's errors, where they do not follow from the Rust type.

/// Returns the Go type of a struct field. `structure` is serde's name of the struct.
pub(super) fn of_field(structure: &str, field: &str) -> Option<&'static str> {
    Some(match (structure, field) {
        ("ContainerConfig", "ExposedPorts") => "nat.PortSet",
        ("ContainerConfig", "Volumes") => "map[string]struct {}",
        ("ContainerConfig", "Healthcheck") => "v1.HealthcheckConfig",
        ("ContainerConfig", "StopTimeout")
        | ("RestartPolicy", "MaximumRetryCount")
        | ("HostConfig", "OomScoreAdj") => "int",
        ("EndpointSettings", "GwPriority" | "IPPrefixLen" | "GlobalIPv6PrefixLen") => "int",
        ("HostConfig", field) => return of_host_config(field),
        ("RestartPolicy", "Name") => "container.RestartPolicyMode",
        ("UpdateConfig", field) => return of_resources(field),
        ("Mount", "Type") => "mount.Type",
        ("Mount", "Consistency") => "mount.Consistency",
        ("Mount", "BindOptions") => "mount.BindOptions",
        ("Mount", "VolumeOptions") => "mount.VolumeOptions",
        ("Mount", "ImageOptions") => "mount.ImageOptions",
        ("Mount", "TmpfsOptions") => "mount.TmpfsOptions",
        ("BindOptions", "Propagation") => "mount.Propagation",
        ("VolumeOptions", "DriverConfig") => "mount.Driver",
        ("TmpfsOptions", "Mode") => "fs.FileMode",
        ("TmpfsOptions", "Options") => "[][]string",
        ("EndpointSettings", "IPAMConfig") => "network.EndpointIPAMConfig",
        ("NetworkConnectRequest", "EndpointConfig") => "network.EndpointSettings",
        ("Ipam", "Config") => "[]network.IPAMConfig",
        ("NetworkingConfig", "EndpointsConfig") => "map[string]*network.EndpointSettings",
        ("NetworkCreateRequest", "IPAM") => "network.IPAM",
        ("NetworkCreateRequest", "ConfigFrom") => "network.ConfigReference",
        ("VolumeCreateRequest", "ClusterVolumeSpec") => "volume.ClusterVolumeSpec",
        ("ExecConfig" | "ExecStartConfig", "ConsoleSize") => "[2]uint",
        _ => return None,
    })
}

fn of_host_config(field: &str) -> Option<&'static str> {
    Some(match field {
        "LogConfig" => "container.LogConfig",
        "NetworkMode" => "container.NetworkMode",
        "PortBindings" => "nat.PortMap",
        "ConsoleSize" => "[2]uint",
        "CgroupnsMode" => "container.CgroupnsMode",
        "IpcMode" => "container.IpcMode",
        "Cgroup" => "container.CgroupSpec",
        "PidMode" => "container.PidMode",
        "UTSMode" => "container.UTSMode",
        "UsernsMode" => "container.UsernsMode",
        "Isolation" => "container.Isolation",
        "Mounts" => "[]mount.Mount",
        _ => return of_resources(field),
    })
}

/// Returns the Go type of a setting that requests to create and to update a container have.
fn of_resources(field: &str) -> Option<&'static str> {
    Some(match field {
        "RestartPolicy" => "container.RestartPolicy",
        "BlkioWeightDevice" => "[]*blkiodev.WeightDevice",
        "BlkioDeviceReadBps"
        | "BlkioDeviceWriteBps"
        | "BlkioDeviceReadIOps"
        | "BlkioDeviceWriteIOps" => "[]*blkiodev.ThrottleDevice",
        "Devices" => "[]container.DeviceMapping",
        "DeviceRequests" => "[]container.DeviceRequest",
        "Ulimits" => "[]*container.Ulimit",
        _ => return None,
    })
}

/// Returns the element type of a slice, array or map.
pub(super) fn of_element(container: &'static str) -> Option<&'static str> {
    let element = match container {
        "nat.PortMap" => "[]nat.PortBinding",
        "nat.PortSet" => "struct {}",
        _ if container.starts_with("map") || container.starts_with('[') => {
            container.split_once(']')?.1
        }
        _ => return None,
    };
    Some(element.strip_prefix('*').unwrap_or(element))
}
