//! The Go types that Docker's client decodes responses into. Names, order and types of their fields
//! determine the output of `{{.}}`, `{{.HostConfig.RestartPolicy}}`, and errors.

use whelk_gotemplate::{Fields, Types};

use super::methods;

/// The types of Docker's client.
pub(super) static DOCKER: Types = Types {
    aliases: ALIASES,
    structs: STRUCTS,
    json_names: &[("AuxAddress", "AuxiliaryAddresses")],
    method: methods::call,
    string: methods::string,
};

/// Named types, with their underlying types.
const ALIASES: &[(&str, &str)] = &[
    ("container.CgroupSpec", "string"),
    ("container.CgroupnsMode", "string"),
    ("container.IpcMode", "string"),
    ("container.Isolation", "string"),
    ("container.NetworkMode", "string"),
    ("container.PidMode", "string"),
    ("container.RestartPolicyMode", "string"),
    ("container.UTSMode", "string"),
    ("container.UsernsMode", "string"),
    ("events.Action", "string"),
    ("events.Type", "string"),
    ("image.ManifestKind", "string"),
    ("mount.Consistency", "string"),
    ("mount.Propagation", "string"),
    ("mount.Type", "string"),
    ("nat.Port", "string"),
    ("nat.PortMap", "map[nat.Port][]nat.PortBinding"),
    ("nat.PortSet", "map[nat.Port]struct {}"),
    ("registry.NetIPNet", "string"),
    ("strslice.StrSlice", "[]string"),
    ("swarm.LocalNodeState", "string"),
];

macro_rules! structs {
    ($($name:literal { $($field:ident $ty:literal)* })*) => {
        &[$(($name, &[$((stringify!($field), $ty)),*])),*]
    };
}

#[rustfmt::skip]
const STRUCTS: &[(&str, Fields)] = structs! {
    "formatter.diskUsageContext" {
        Images "[]*formatter.imageContext" Containers "[]*formatter.ContainerContext" Volumes "[]*formatter.volumeContext"
        BuildCache "[]*formatter.buildCacheContext"
    }
    "container.InspectResponse" {
        ContainerJSONBase "+*container.ContainerJSONBase" Mounts "[]container.MountPoint" Config "*container.Config"
        NetworkSettings "*container.NetworkSettings" ImageManifestDescriptor "*v1.Descriptor"
    }
    "container.ContainerJSONBase" {
        ID "string" Created "string" Path "string" Args "[]string" State "*container.State" Image "string" ResolvConfPath "string"
        HostnamePath "string" HostsPath "string" LogPath "string" Name "string" RestartCount "int" Driver "string" Platform "string"
        MountLabel "string" ProcessLabel "string" AppArmorProfile "string" ExecIDs "[]string" HostConfig "*container.HostConfig"
        GraphDriver "storage.DriverData" SizeRw "*int64" SizeRootFs "*int64"
    }
    "container.State" {
        Status "string" Running "bool" Paused "bool" Restarting "bool" OOMKilled "bool" Dead "bool" Pid "int" ExitCode "int"
        Error "string" StartedAt "string" FinishedAt "string" Health "*container.Health"
    }
    "container.Health" { Status "string" FailingStreak "int" Log "[]*container.HealthcheckResult" }
    "container.HealthcheckResult" { Start "time.Time" End "time.Time" ExitCode "int" Output "string" }
    "container.HostConfig" {
        Binds "[]string" ContainerIDFile "string" LogConfig "container.LogConfig" NetworkMode "container.NetworkMode"
        PortBindings "nat.PortMap" RestartPolicy "container.RestartPolicy" AutoRemove "bool" VolumeDriver "string" VolumesFrom "[]string"
        ConsoleSize "[2]uint" Annotations "map[string]string" CapAdd "strslice.StrSlice" CapDrop "strslice.StrSlice"
        CgroupnsMode "container.CgroupnsMode" DNS "[]string" DNSOptions "[]string" DNSSearch "[]string" ExtraHosts "[]string"
        GroupAdd "[]string" IpcMode "container.IpcMode" Cgroup "container.CgroupSpec" Links "[]string" OomScoreAdj "int"
        PidMode "container.PidMode" Privileged "bool" PublishAllPorts "bool" ReadonlyRootfs "bool" SecurityOpt "[]string"
        StorageOpt "map[string]string" Tmpfs "map[string]string" UTSMode "container.UTSMode" UsernsMode "container.UsernsMode"
        ShmSize "int64" Sysctls "map[string]string" Runtime "string" Isolation "container.Isolation" Resources "+container.Resources"
        Mounts "[]mount.Mount" MaskedPaths "[]string" ReadonlyPaths "[]string" Init "*bool"
    }
    "container.LogConfig" { Type "string" Config "map[string]string" }
    "container.RestartPolicy" { Name "container.RestartPolicyMode" MaximumRetryCount "int" }
    "container.Resources" {
        CPUShares "int64" Memory "int64" NanoCPUs "int64" CgroupParent "string" BlkioWeight "uint16"
        BlkioWeightDevice "[]*blkiodev.WeightDevice" BlkioDeviceReadBps "[]*blkiodev.ThrottleDevice"
        BlkioDeviceWriteBps "[]*blkiodev.ThrottleDevice" BlkioDeviceReadIOps "[]*blkiodev.ThrottleDevice"
        BlkioDeviceWriteIOps "[]*blkiodev.ThrottleDevice" CPUPeriod "int64" CPUQuota "int64" CPURealtimePeriod "int64"
        CPURealtimeRuntime "int64" CpusetCpus "string" CpusetMems "string" Devices "[]container.DeviceMapping"
        DeviceCgroupRules "[]string" DeviceRequests "[]container.DeviceRequest" KernelMemory "int64" KernelMemoryTCP "int64"
        MemoryReservation "int64" MemorySwap "int64" MemorySwappiness "*int64" OomKillDisable "*bool" PidsLimit "*int64"
        Ulimits "[]*units.Ulimit" CPUCount "int64" CPUPercent "int64" IOMaximumIOps "uint64" IOMaximumBandwidth "uint64"
    }
    "blkiodev.WeightDevice" { Path "string" Weight "uint16" }
    "blkiodev.ThrottleDevice" { Path "string" Rate "uint64" }
    "container.DeviceMapping" { PathOnHost "string" PathInContainer "string" CgroupPermissions "string" }
    "container.DeviceRequest" {
        Driver "string" Count "int" DeviceIDs "[]string" Capabilities "[][]string" Options "map[string]string"
    }
    "units.Ulimit" { Name "string" Hard "int64" Soft "int64" }
    "mount.Mount" {
        Type "mount.Type" Source "string" Target "string" ReadOnly "bool" Consistency "mount.Consistency"
        BindOptions "*mount.BindOptions" VolumeOptions "*mount.VolumeOptions" ImageOptions "*mount.ImageOptions"
        TmpfsOptions "*mount.TmpfsOptions" ClusterOptions "*mount.ClusterOptions"
    }
    "mount.BindOptions" {
        Propagation "mount.Propagation" NonRecursive "bool" CreateMountpoint "bool" ReadOnlyNonRecursive "bool"
        ReadOnlyForceRecursive "bool"
    }
    "mount.VolumeOptions" { NoCopy "bool" Labels "map[string]string" Subpath "string" DriverConfig "*mount.Driver" }
    "mount.Driver" { Name "string" Options "map[string]string" }
    "mount.ImageOptions" { Subpath "string" }
    "mount.TmpfsOptions" { SizeBytes "int64" Mode "uint" Options "[][]string" }
    "mount.ClusterOptions" {}
    "container.MountPoint" {
        Type "mount.Type" Name "string" Source "string" Destination "string" Driver "string" Mode "string" RW "bool"
        Propagation "mount.Propagation"
    }
    "container.Config" {
        Hostname "string" Domainname "string" User "string" AttachStdin "bool" AttachStdout "bool" AttachStderr "bool"
        ExposedPorts "nat.PortSet" Tty "bool" OpenStdin "bool" StdinOnce "bool" Env "[]string" Cmd "strslice.StrSlice"
        Healthcheck "*v1.HealthcheckConfig" ArgsEscaped "bool" Image "string" Volumes "map[string]struct {}" WorkingDir "string"
        Entrypoint "strslice.StrSlice" NetworkDisabled "bool" MacAddress "string" OnBuild "[]string" Labels "map[string]string"
        StopSignal "string" StopTimeout "*int" Shell "strslice.StrSlice"
    }
    "v1.HealthcheckConfig" {
        Test "[]string" Interval "time.Duration" Timeout "time.Duration" StartPeriod "time.Duration" StartInterval "time.Duration"
        Retries "int"
    }
    "container.NetworkSettings" {
        NetworkSettingsBase "+container.NetworkSettingsBase" DefaultNetworkSettings "+container.DefaultNetworkSettings"
        Networks "map[string]*network.EndpointSettings"
    }
    "container.NetworkSettingsBase" {
        Bridge "string" SandboxID "string" SandboxKey "string" Ports "nat.PortMap" HairpinMode "bool" LinkLocalIPv6Address "string"
        LinkLocalIPv6PrefixLen "int" SecondaryIPAddresses "[]network.Address" SecondaryIPv6Addresses "[]network.Address"
    }
    "container.DefaultNetworkSettings" {
        EndpointID "string" Gateway "string" GlobalIPv6Address "string" GlobalIPv6PrefixLen "int" IPAddress "string" IPPrefixLen "int"
        IPv6Gateway "string" MacAddress "string"
    }
    "network.Address" { Addr "string" PrefixLen "int" }
    "nat.PortBinding" { HostIP "string" HostPort "string" }
    "network.EndpointSettings" {
        IPAMConfig "*network.EndpointIPAMConfig" Links "[]string" Aliases "[]string" MacAddress "string" DriverOpts "map[string]string"
        GwPriority "int" NetworkID "string" EndpointID "string" Gateway "string" IPAddress "string" IPPrefixLen "int"
        IPv6Gateway "string" GlobalIPv6Address "string" GlobalIPv6PrefixLen "int" DNSNames "[]string"
    }
    "network.EndpointIPAMConfig" { IPv4Address "string" IPv6Address "string" LinkLocalIPs "[]string" }
    "storage.DriverData" { Data "map[string]string" Name "string" }
    "v1.Descriptor" {
        MediaType "string" Digest "string" Size "int64" URLs "[]string" Annotations "map[string]string" Data "[]uint"
        Platform "*v1.Platform" ArtifactType "string"
    }
    "v1.Platform" { Architecture "string" OS "string" OSVersion "string" OSFeatures "[]string" Variant "string" }
    "image.InspectResponse" {
        ID "string" RepoTags "[]string" RepoDigests "[]string" Parent "string" Comment "string" Created "string" Container "string"
        ContainerConfig "*container.Config" DockerVersion "string" Author "string" Config "*v1.DockerOCIImageConfig"
        Architecture "string" Variant "string" Os "string" OsVersion "string" Size "int64" VirtualSize "int64"
        GraphDriver "storage.DriverData" RootFS "image.RootFS" Metadata "image.Metadata" Descriptor "*v1.Descriptor"
        Manifests "[]image.ManifestSummary"
    }
    "v1.DockerOCIImageConfig" { ImageConfig "+v1.ImageConfig" DockerOCIImageConfigExt "+v1.DockerOCIImageConfigExt" }
    "v1.ImageConfig" {
        User "string" ExposedPorts "map[string]struct {}" Env "[]string" Entrypoint "[]string" Cmd "[]string"
        Volumes "map[string]struct {}" WorkingDir "string" Labels "map[string]string" StopSignal "string" ArgsEscaped "bool"
    }
    "v1.DockerOCIImageConfigExt" { Healthcheck "*v1.HealthcheckConfig" OnBuild "[]string" Shell "[]string" }
    "image.RootFS" { Type "string" Layers "[]string" }
    "image.Metadata" { LastTagTime "time.Time" }
    "image.ManifestSummary" { ID "string" Descriptor "v1.Descriptor" Available "bool" Kind "image.ManifestKind" }
    "network.Inspect" {
        Name "string" ID "string" Created "time.Time" Scope "string" Driver "string" EnableIPv4 "bool" EnableIPv6 "bool"
        IPAM "network.IPAM" Internal "bool" Attachable "bool" Ingress "bool" ConfigFrom "network.ConfigReference" ConfigOnly "bool"
        Containers "map[string]network.EndpointResource" Options "map[string]string" Labels "map[string]string"
        Peers "[]network.PeerInfo" Services "map[string]network.ServiceInfo"
    }
    "network.IPAM" { Driver "string" Options "map[string]string" Config "[]network.IPAMConfig" }
    "network.IPAMConfig" { Subnet "string" IPRange "string" Gateway "string" AuxAddress "map[string]string" }
    "network.ConfigReference" { Network "string" }
    "network.EndpointResource" { Name "string" EndpointID "string" MacAddress "string" IPv4Address "string" IPv6Address "string" }
    "network.PeerInfo" { Name "string" IP "string" }
    "network.ServiceInfo" { VIP "string" Ports "[]string" LocalLBIndex "int" Tasks "[]network.Task" }
    "network.Task" { Name "string" EndpointID "string" EndpointIP "string" Info "map[string]string" }
    "context.contextWithTLSListing" {
        Metadata "+store.Metadata" TLSMaterial "map[string][]string" Storage "store.StorageInfo"
    }
    "store.Metadata" { Name "string" Metadata "command.DockerContext" Endpoints "map[string]docker.EndpointMeta" }
    "store.StorageInfo" { MetadataPath "string" TLSPath "string" }
    "command.DockerContext" { Description "string" AdditionalFields "map[string]interface {}" }
    "docker.EndpointMeta" { Host "string" SkipTLSVerify "bool" }
    "volume.Volume" {
        ClusterVolume "*volume.ClusterVolume" CreatedAt "string" Driver "string" Labels "map[string]string" Mountpoint "string"
        Name "string" Options "map[string]string" Scope "string" Status "map[string]interface {}" UsageData "*volume.UsageData"
    }
    "volume.ClusterVolume" { ID "string" }
    "volume.UsageData" { RefCount "int64" Size "int64" }
    "events.Message" {
        Status "string" ID "string" From "string" Type "events.Type" Action "events.Action" Actor "events.Actor" Scope "string"
        Time "int64" TimeNano "int64"
    }
    "events.Actor" { ID "string" Attributes "map[string]string" }
    "system.versionInfo" { Client "system.clientVersion" Server "*types.Version" }
    "system.clientVersion" {
        Platform "*system.platformInfo" Version "string" APIVersion "string" DefaultAPIVersion "string" GitCommit "string"
        GoVersion "string" Os "string" Arch "string" BuildTime "string" Context "string"
    }
    "system.platformInfo" { Name "string" }
    "types.Version" {
        Platform "system.platformInfo" Components "[]types.ComponentVersion" Version "string" APIVersion "string"
        MinAPIVersion "string" GitCommit "string" GoVersion "string" Os "string" Arch "string" KernelVersion "string"
        Experimental "bool" BuildTime "string"
    }
    "types.ComponentVersion" { Name "string" Version "string" Details "map[string]string" }
    "system.dockerInfo" {
        Info "+*system.Info" ServerErrors "[]string" UserName "string" ClientInfo "*system.clientInfo" ClientErrors "[]string"
    }
    "system.clientInfo" { Debug "bool" clientVersion "+system.clientVersion" Plugins "[]string" Warnings "[]string" }
    "system.Info" {
        ID "string" Containers "int" ContainersRunning "int" ContainersPaused "int" ContainersStopped "int" Images "int" Driver "string"
        DriverStatus "[][2]string" SystemStatus "[][2]string" Plugins "system.PluginsInfo" MemoryLimit "bool" SwapLimit "bool"
        KernelMemory "bool" KernelMemoryTCP "bool" CPUCfsPeriod "bool" CPUCfsQuota "bool" CPUShares "bool" CPUSet "bool"
        PidsLimit "bool" IPv4Forwarding "bool" Debug "bool" NFd "int" OomKillDisable "bool" NGoroutines "int" SystemTime "string"
        LoggingDriver "string" CgroupDriver "string" CgroupVersion "string" NEventsListener "int" KernelVersion "string"
        OperatingSystem "string" OSVersion "string" OSType "string" Architecture "string" IndexServerAddress "string"
        RegistryConfig "*registry.ServiceConfig" NCPU "int" MemTotal "int64" GenericResources "[]swarm.GenericResource"
        DockerRootDir "string" HTTPProxy "string" HTTPSProxy "string" NoProxy "string" Name "string" Labels "[]string"
        ExperimentalBuild "bool" ServerVersion "string" Runtimes "map[string]system.RuntimeWithStatus" DefaultRuntime "string"
        Swarm "swarm.Info" LiveRestoreEnabled "bool" Isolation "container.Isolation" InitBinary "string"
        ContainerdCommit "system.Commit" RuncCommit "system.Commit" InitCommit "system.Commit" SecurityOptions "[]string"
        ProductLicense "string" DefaultAddressPools "[]system.NetworkAddressPool" FirewallBackend "*system.FirewallInfo"
        CDISpecDirs "[]string" DiscoveredDevices "[]system.DeviceInfo" Containerd "*system.ContainerdInfo" Warnings "[]string"
    }
    "system.PluginsInfo" { Volume "[]string" Network "[]string" Authorization "[]string" Log "[]string" }
    "system.RuntimeWithStatus" { Runtime "+system.Runtime" Status "map[string]string" }
    "system.Runtime" { Path "string" Args "[]string" Type "string" Options "map[string]interface {}" }
    "system.Commit" { ID "string" Expected "string" }
    "system.NetworkAddressPool" { Base "string" Size "int" }
    "system.FirewallInfo" { Driver "string" Info "[][2]string" }
    "system.DeviceInfo" { Source "string" ID "string" }
    "system.ContainerdInfo" { Address "string" Namespaces "system.ContainerdNamespaces" }
    "system.ContainerdNamespaces" { Containers "string" Plugins "string" }
    "registry.ServiceConfig" {
        AllowNondistributableArtifactsCIDRs "[]*registry.NetIPNet" AllowNondistributableArtifactsHostnames "[]string"
        InsecureRegistryCIDRs "[]*registry.NetIPNet" IndexConfigs "map[string]*registry.IndexInfo" Mirrors "[]string"
    }
    "registry.IndexInfo" { Name "string" Mirrors "[]string" Secure "bool" Official "bool" }
    "swarm.GenericResource" {}
    "swarm.Info" {
        NodeID "string" NodeAddr "string" LocalNodeState "swarm.LocalNodeState" ControlAvailable "bool" Error "string"
        RemoteManagers "[]swarm.Peer" Nodes "int" Managers "int" Cluster "*swarm.ClusterInfo" Warnings "[]string"
    }
    "swarm.Peer" { NodeID "string" Addr "string" }
    "swarm.ClusterInfo" { ID "string" }
};

#[cfg(test)]
mod tests {
    use whelk_gotemplate::Kind;

    use super::*;

    #[test]
    fn all_referenced_types_are_defined() {
        fn check(ty: &'static str) {
            match DOCKER.kind_of(ty.trim_start_matches('+')) {
                Kind::Pointer(of) | Kind::List(of) => check(of),
                Kind::Map(key, of) => {
                    check(key);
                    check(of);
                }
                Kind::Row => assert!(ty.starts_with("*formatter."), "{ty}"),
                Kind::Nothing => assert_eq!(ty, "interface {}"),
                _ => {}
            }
        }
        STRUCTS
            .iter()
            .flat_map(|(_, fields)| *fields)
            .for_each(|(_, ty)| check(ty));
        ALIASES.iter().for_each(|(_, ty)| check(ty));
    }
}
