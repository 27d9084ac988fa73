//! The fields of responses: each field of the API definition is there, or has a reason why it is not;
//! and no other field is.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use whelk_tests::Engine;

/// The endpoints with the fields that the definition has for their responses, without those of objects
/// that are elsewhere here, or never sent. `[]` stands for the elements of a list, `*` for the names of
/// an object.
const DEFINITION: &[(&str, &str)] = &[
    (
        "/containers/json?size=1",
        "[].Id [].Names [].Image [].ImageID [].ImageManifestDescriptor [].Command [].Created [].Ports [].Ports[].IP \
         [].Ports[].PrivatePort [].Ports[].PublicPort [].Ports[].Type [].SizeRw [].SizeRootFs [].Labels [].State \
         [].Status [].HostConfig [].HostConfig.NetworkMode [].HostConfig.Annotations [].NetworkSettings \
         [].NetworkSettings.Networks [].Mounts [].Mounts[].Type [].Mounts[].Name [].Mounts[].Source \
         [].Mounts[].Destination [].Mounts[].Driver [].Mounts[].Mode [].Mounts[].RW [].Mounts[].Propagation [].Health \
         [].Health.Status [].Health.FailingStreak",
    ),
    (
        "/containers/made/json?size=1",
        "Id Created Path Args State State.Status State.Running State.Paused State.Restarting State.OOMKilled \
         State.Dead State.Pid State.ExitCode State.Error State.StartedAt State.FinishedAt State.Health \
         State.Health.Status State.Health.FailingStreak State.Health.Log State.Health.Log[].Start \
         State.Health.Log[].End State.Health.Log[].ExitCode State.Health.Log[].Output Image ResolvConfPath \
         HostnamePath HostsPath LogPath Name RestartCount Driver Platform ImageManifestDescriptor MountLabel \
         ProcessLabel AppArmorProfile ExecIDs HostConfig GraphDriver GraphDriver.Name GraphDriver.Data Storage SizeRw \
         SizeRootFs Mounts Config NetworkSettings NetworkSettings.SandboxID NetworkSettings.SandboxKey \
         NetworkSettings.Ports NetworkSettings.Ports.*[].HostIp NetworkSettings.Ports.*[].HostPort \
         NetworkSettings.Networks NetworkSettings.Networks.*.IPAMConfig NetworkSettings.Networks.*.Links \
         NetworkSettings.Networks.*.MacAddress NetworkSettings.Networks.*.Aliases \
         NetworkSettings.Networks.*.DriverOpts NetworkSettings.Networks.*.GwPriority \
         NetworkSettings.Networks.*.NetworkID NetworkSettings.Networks.*.EndpointID NetworkSettings.Networks.*.Gateway \
         NetworkSettings.Networks.*.IPAddress NetworkSettings.Networks.*.IPPrefixLen \
         NetworkSettings.Networks.*.IPv6Gateway NetworkSettings.Networks.*.GlobalIPv6Address \
         NetworkSettings.Networks.*.GlobalIPv6PrefixLen NetworkSettings.Networks.*.DNSNames",
    ),
    (
        "/images/json?manifests=1",
        "[].Id [].ParentId [].RepoTags [].RepoDigests [].Created [].Size [].SharedSize [].Labels [].Containers \
         [].Manifests [].Descriptor",
    ),
    (
        "/images/busybox/json?manifests=1",
        "Id Descriptor Manifests Identity RepoTags RepoDigests Comment Created Author Config Architecture Variant Os \
         OsVersion Size GraphDriver GraphDriver.Name GraphDriver.Data RootFS RootFS.Type RootFS.Layers Metadata \
         Metadata.LastTagTime",
    ),
    (
        "/images/busybox/history",
        "[].Id [].Created [].CreatedBy [].Tags [].Size [].Comment",
    ),
    (
        "/networks",
        "[].Name [].Id [].Created [].Scope [].Driver [].EnableIPv4 [].EnableIPv6 [].IPAM [].IPAM.Driver [].IPAM.Config \
         [].IPAM.Config[].Subnet [].IPAM.Config[].IPRange [].IPAM.Config[].Gateway \
         [].IPAM.Config[].AuxiliaryAddresses [].IPAM.Options [].Internal [].Attachable [].Ingress [].ConfigFrom \
         [].ConfigFrom.Network [].ConfigOnly [].Options [].Labels [].Peers",
    ),
    (
        "/networks/bridge",
        "Name Id Created Scope Driver EnableIPv4 EnableIPv6 IPAM IPAM.Driver IPAM.Config IPAM.Config[].Subnet \
         IPAM.Config[].IPRange IPAM.Config[].Gateway IPAM.Config[].AuxiliaryAddresses IPAM.Options Internal Attachable \
         Ingress ConfigFrom ConfigFrom.Network ConfigOnly Options Labels Peers Containers Containers.*.Name \
         Containers.*.EndpointID Containers.*.MacAddress Containers.*.IPv4Address Containers.*.IPv6Address Services \
         Status Status.IPAM Status.IPAM.Subnets Status.IPAM.Subnets.*.IPsInUse \
         Status.IPAM.Subnets.*.DynamicIPsAvailable",
    ),
    (
        "/volumes",
        "Volumes Volumes[].Name Volumes[].Driver Volumes[].Mountpoint Volumes[].CreatedAt Volumes[].Status \
         Volumes[].Labels Volumes[].Scope Volumes[].ClusterVolume Volumes[].Options Volumes[].UsageData Warnings",
    ),
    (
        "/volumes/data",
        "Name Driver Mountpoint CreatedAt Status Labels Scope ClusterVolume Options UsageData",
    ),
    (
        "/info",
        "ID Containers ContainersRunning ContainersPaused ContainersStopped Images Driver DriverStatus DockerRootDir \
         Plugins Plugins.Volume Plugins.Network Plugins.Authorization Plugins.Log MemoryLimit SwapLimit CpuCfsPeriod \
         CpuCfsQuota CPUShares CPUSet PidsLimit OomKillDisable IPv4Forwarding Debug NFd NGoroutines SystemTime \
         LoggingDriver CgroupDriver CgroupVersion NEventsListener KernelVersion OperatingSystem OSVersion OSType \
         Architecture NCPU MemTotal IndexServerAddress RegistryConfig RegistryConfig.InsecureRegistryCIDRs \
         RegistryConfig.IndexConfigs RegistryConfig.IndexConfigs.*.Name RegistryConfig.IndexConfigs.*.Mirrors \
         RegistryConfig.IndexConfigs.*.Secure RegistryConfig.IndexConfigs.*.Official RegistryConfig.Mirrors \
         GenericResources HttpProxy HttpsProxy NoProxy Name Labels ExperimentalBuild ServerVersion Runtimes \
         Runtimes.*.path Runtimes.*.runtimeArgs Runtimes.*.status DefaultRuntime Swarm Swarm.NodeID Swarm.NodeAddr \
         Swarm.LocalNodeState Swarm.ControlAvailable Swarm.Error Swarm.RemoteManagers Swarm.Nodes Swarm.Managers \
         Swarm.Cluster LiveRestoreEnabled Isolation InitBinary ContainerdCommit ContainerdCommit.ID RuncCommit \
         RuncCommit.ID InitCommit InitCommit.ID SecurityOptions ProductLicense DefaultAddressPools \
         DefaultAddressPools[].Base DefaultAddressPools[].Size FirewallBackend FirewallBackend.Driver \
         FirewallBackend.Info DiscoveredDevices DiscoveredDevices[].Source DiscoveredDevices[].ID NRI Warnings \
         CDISpecDirs Containerd",
    ),
    (
        "/version",
        "Platform Platform.Name Components Components[].Name Components[].Version Components[].Details Version \
         ApiVersion MinAPIVersion GitCommit GoVersion Os Arch KernelVersion Experimental BuildTime",
    ),
    (
        "/system/df?verbose=1",
        "ImageUsage ImageUsage.ActiveCount ImageUsage.TotalCount ImageUsage.Reclaimable ImageUsage.TotalSize \
         ImageUsage.Items ContainerUsage ContainerUsage.ActiveCount ContainerUsage.TotalCount \
         ContainerUsage.Reclaimable ContainerUsage.TotalSize ContainerUsage.Items VolumeUsage VolumeUsage.ActiveCount \
         VolumeUsage.TotalCount VolumeUsage.Reclaimable VolumeUsage.TotalSize VolumeUsage.Items BuildCacheUsage \
         BuildCacheUsage.ActiveCount BuildCacheUsage.TotalCount BuildCacheUsage.Reclaimable BuildCacheUsage.TotalSize \
         BuildCacheUsage.Items",
    ),
    (
        "/exec/{exec}/json",
        "CanRemove DetachKeys ID Running ExitCode ProcessConfig ProcessConfig.privileged ProcessConfig.user \
         ProcessConfig.tty ProcessConfig.entrypoint ProcessConfig.arguments OpenStdin OpenStderr OpenStdout \
         ContainerID Pid",
    ),
];

/// Fields that no response here has, and why.
const ABSENT: &[(&str, &str)] = &[
    ("ImageManifestDescriptor", "Docker's containerd store only"),
    ("Descriptor", "Docker's containerd store only"),
    ("Storage", "Docker's containerd store only"),
    ("Containerd", "there is no containerd"),
    ("NRI", "there are no NRI plugins"),
    ("DiscoveredDevices", "the machine has no CDI devices"),
    ("Identity", "it was not pulled"),
    ("Author", "it has none"),
    ("Comment", "it has none"),
    ("Variant", "amd64 has none"),
    ("OsVersion", "of Windows"),
    ("IPRange", "the default network has none"),
    ("AuxiliaryAddresses", "the default network has none"),
    ("Peers", "of overlay networks"),
    ("Services", "of overlay networks"),
    ("Status", "volumes of plugins only"),
    ("ClusterVolume", "of a swarm"),
    ("UsageData", "in system/df only"),
    ("runtimeArgs", "the built-in runtime has none"),
    ("status", "the built-in runtime has none"),
    ("Nodes", "of a swarm"),
    ("Managers", "of a swarm"),
    ("Cluster", "of a swarm"),
    ("ProductLicense", "of Docker's enterprise edition"),
    ("DefaultAddressPools", "none are configured"),
    ("Info", "the firewall says nothing else"),
    ("Experimental", "omitted if false"),
    ("Reclaimable", "omitted if 0"),
    ("TotalSize", "omitted if 0"),
    ("ActiveCount", "omitted if 0"),
    ("TotalCount", "omitted if 0"),
    ("Items", "omitted if there are none"),
];

/// Collects the paths of the fields of `value`. `defined` are those of the definition.
fn collect(value: &Value, path: &str, defined: &BTreeSet<String>, found: &mut BTreeSet<String>) {
    let has_below = |prefix: &str| defined.iter().any(|known| known.starts_with(prefix));
    match value {
        Value::Array(list) => {
            let path = format!("{path}[]");
            for element in list {
                collect(element, &path, defined, found);
            }
        }
        Value::Object(fields) => {
            let prefix = if path.is_empty() {
                String::new()
            } else {
                format!("{path}.")
            };
            // An object without fields of its own, or one that is described elsewhere.
            if !has_below(&prefix) {
                return;
            }
            let is_map = has_below(&format!("{path}.*"));
            for (name, value) in fields {
                let path = format!("{prefix}{}", if is_map { "*" } else { name });
                if !is_map {
                    found.insert(path.clone());
                }
                collect(value, &path, defined, found);
            }
        }
        _ => {}
    }
}

fn is_absent(path: &str) -> bool {
    let parts = path.split('.').map(|part| part.trim_end_matches("[]"));
    let is_part = |name: &str| parts.clone().any(|part| part == name);
    ABSENT.iter().any(|(name, _)| is_part(name))
}

#[test]
fn responses_have_the_fields_of_the_definition() {
    let engine = Engine::start();
    let body = json!({
        "Image": "busybox", "Cmd": ["sleep", "600"], "ExposedPorts": {"80/tcp": {}},
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 1_000_000_000},
        "HostConfig": {
            "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
            "Annotations": {"a": "b"}, "Mounts": [{"Type": "volume", "Source": "data", "Target": "/v"}],
        },
    });
    engine.create("made", &body);
    assert_eq!(engine.api("POST", "/containers/made/start", None).0, 204);
    let exec = engine.create_exec("made", &json!({"Cmd": ["sleep", "600"], "User": "1"}));
    let write = ["exec", "made", "sh", "-c", "echo text >/written"];
    engine.docker(&write).ok();
    whelk_tests::eventually("a health check", || {
        let shown = engine.inspect("made");
        let log = shown.pointer("/State/Health/Log")?.as_array()?.clone();
        (!log.is_empty()).then_some(())
    });
    for (path, defined) in DEFINITION {
        let response = engine.get(&path.replace("{exec}", &exec));
        let defined: BTreeSet<String> = defined.split_whitespace().map(str::to_owned).collect();
        let mut found = BTreeSet::new();
        collect(&response, "", &defined, &mut found);
        let unknown: Vec<_> = found.difference(&defined).collect();
        assert!(
            unknown.is_empty(),
            "{path}: not in the definition: {unknown:?}"
        );
        let missing: Vec<_> = defined
            .difference(&found)
            .filter(|field| !is_absent(field))
            .collect();
        assert!(missing.is_empty(), "{path}: missing: {missing:?}");
    }
}
