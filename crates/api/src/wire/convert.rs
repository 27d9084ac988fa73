//! Conversion between the engine's and the API's form of the same settings.

use std::collections::{BTreeMap, BTreeSet};

use whelk_api_types as api;
use whelk_engine::containers::{self, FixedResources, UpdateRequest};
use whelk_engine::model::{self, network};
use whelk_engine::{Error, Result};

/// A conversion to `T`. It is implemented in both directions, and for collections.
pub(crate) trait Convert<T> {
    fn convert(self) -> T;
}

macro_rules! unchanged {
    ($($type:ty),* $(,)?) => {$(
        impl Convert<$type> for $type {
            fn convert(self) -> $type {
                self
            }
        }
    )*};
}

unchanged!(String, bool, u8, u16, u32, u64, i32, i64, [u16; 2]);

impl<T, S: Convert<T>> Convert<Option<T>> for Option<S> {
    fn convert(self) -> Option<T> {
        self.map(Convert::convert)
    }
}

impl<T, S: Convert<T>> Convert<Vec<T>> for Vec<S> {
    fn convert(self) -> Vec<T> {
        self.into_iter().map(Convert::convert).collect()
    }
}

impl<T, S: Convert<T>> Convert<BTreeMap<String, T>> for BTreeMap<String, S> {
    fn convert(self) -> BTreeMap<String, T> {
        self.into_iter()
            .map(|(key, value)| (key, value.convert()))
            .collect()
    }
}

/// A list that is omitted if it is empty, but may be `null` in older versions.
impl Convert<Option<Vec<String>>> for Vec<String> {
    fn convert(self) -> Option<Vec<String>> {
        Some(self)
    }
}

impl Convert<Vec<String>> for Option<Vec<String>> {
    fn convert(self) -> Vec<String> {
        self.unwrap_or_default()
    }
}

impl Convert<api::Set> for BTreeSet<String> {
    fn convert(self) -> api::Set {
        self.into_iter().map(|key| (key, api::Empty {})).collect()
    }
}

impl Convert<BTreeSet<String>> for api::Set {
    fn convert(self) -> BTreeSet<String> {
        self.into_keys().collect()
    }
}

/// A conversion of a client's text or settings to the engine's form, which may be invalid.
pub(crate) trait Parse<T> {
    fn parse(self) -> Result<T>;
}

impl<T, S: Parse<T>> Parse<Option<T>> for Option<S> {
    fn parse(self) -> Result<Option<T>> {
        self.map(Parse::parse).transpose()
    }
}

impl<T, S: Parse<T>> Parse<Vec<T>> for Vec<S> {
    fn parse(self) -> Result<Vec<T>> {
        self.into_iter().map(Parse::parse).collect()
    }
}

macro_rules! parsed_from_text {
    ($($type:ty),* $(,)?) => {$(
        impl Convert<String> for $type {
            fn convert(self) -> String {
                self.to_string()
            }
        }

        impl Parse<$type> for String {
            fn parse(self) -> Result<$type> {
                self.as_str().parse()
            }
        }
    )*};
}

parsed_from_text! {
    model::NetworkMode, model::PidMode, model::IpcMode, model::UtsMode, model::UsernsMode,
    model::CgroupnsMode, model::Isolation, model::MountKind, model::LogDriver,
    model::ContainerPort,
}

/// An empty text means `None`.
impl Convert<String> for Option<model::LogDriver> {
    fn convert(self) -> String {
        self.map_or("", model::LogDriver::as_str).to_owned()
    }
}

impl Convert<api::LogConfig> for model::LogConfig {
    fn convert(self) -> api::LogConfig {
        api::LogConfig {
            kind: self.driver.convert(),
            config: self.options,
        }
    }
}

impl Parse<model::LogConfig> for api::LogConfig {
    fn parse(self) -> Result<model::LogConfig> {
        let given = Some(self.kind).filter(|kind| !kind.is_empty());
        Ok(model::LogConfig {
            driver: given.parse()?,
            options: self.config,
        })
    }
}

impl Convert<api::Set> for BTreeSet<model::ContainerPort> {
    fn convert(self) -> api::Set {
        let texts = self.iter().map(ToString::to_string);
        texts.map(|key| (key, api::Empty {})).collect()
    }
}

impl Parse<BTreeSet<model::ContainerPort>> for api::Set {
    /// Compose sends ranges of exposed ports (`3000-3010`) as they are written.
    fn parse(self) -> Result<BTreeSet<model::ContainerPort>> {
        let mut left = model::ContainerPort::COUNT;
        let mut ports = BTreeSet::new();
        for entry in self.into_keys() {
            if !entry.contains('-') {
                ports.insert(Parse::parse(entry)?);
                continue;
            }
            let before = left;
            for port in model::ContainerPort::exposed_by(&entry).take(left) {
                left -= 1;
                ports.insert(port);
            }
            if left == before {
                return Err(Error::invalid(format!(
                    "invalid port specification: {entry:?}"
                )));
            }
        }
        Ok(ports)
    }
}

impl Convert<api::PortMap> for model::PortBindings {
    fn convert(self) -> api::PortMap {
        self.into_iter()
            .map(|(port, bindings)| (port.to_string(), bindings.convert()))
            .collect()
    }
}

impl Parse<model::PortBindings> for api::PortMap {
    fn parse(self) -> Result<model::PortBindings> {
        let given = self
            .into_iter()
            .map(|(port, bindings)| Ok((port.parse()?, Parse::parse(bindings)?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(model::collect_bindings(given))
    }
}

impl Convert<api::PortBinding> for model::PortBinding {
    fn convert(self) -> api::PortBinding {
        let (host_ip, host_port) = self.texts();
        api::PortBinding { host_ip, host_port }
    }
}

impl Parse<model::PortBinding> for api::PortBinding {
    fn parse(self) -> Result<model::PortBinding> {
        model::PortBinding::parse(&self.host_ip, &self.host_port)
    }
}

impl Convert<Option<Vec<String>>> for model::HealthTest {
    fn convert(self) -> Option<Vec<String>> {
        Some(self.words()).filter(|words| !words.is_empty())
    }
}

impl Parse<model::HealthTest> for Option<Vec<String>> {
    fn parse(self) -> Result<model::HealthTest> {
        model::HealthTest::parse(self.unwrap_or_default())
    }
}

/// Left out by default, because Docker's clients do not know it.
impl Convert<String> for model::HealthAction {
    fn convert(self) -> String {
        match self {
            Self::None => String::new(),
            action => action.to_string(),
        }
    }
}

impl Parse<model::HealthAction> for String {
    fn parse(self) -> Result<model::HealthAction> {
        self.as_str().parse()
    }
}

impl Convert<api::RestartPolicy> for model::RestartPolicy {
    fn convert(self) -> api::RestartPolicy {
        api::RestartPolicy {
            name: self.name().to_owned(),
            maximum_retry_count: self.maximum_retry_count(),
        }
    }
}

impl Parse<model::RestartPolicy> for api::RestartPolicy {
    fn parse(self) -> Result<model::RestartPolicy> {
        model::RestartPolicy::parse(&self.name, self.maximum_retry_count)
    }
}

/// Implements the conversion, in both directions, of structs with the same fields. If some of them
/// have types that are `parsed` from a client's text, the conversion to the engine's form may fail.
macro_rules! same_fields {
    ($($engine:ty => $api:ty {
        $($field:ident),* $(,)?
        $(; parsed $($parsed:ident),* $(,)?)?
    })*) => {$(
        same_fields!(@both $engine, $api, [$($field),*] $([$($parsed),*])?);
    )*};
    (@both $engine:ty, $api:ty, [$($field:ident),*]) => {
        same_fields!(@one $engine, $api, $($field),*);
        same_fields!(@one $api, $engine, $($field),*);
    };
    (@both $engine:ty, $api:ty, [$($field:ident),*] [$($parsed:ident),*]) => {
        impl Convert<$api> for $engine {
            fn convert(self) -> $api {
                type From = $engine;
                type To = $api;
                let From { $($field,)* $($parsed),* } = self;
                To { $($field: $field.convert(),)* $($parsed: $parsed.convert()),* }
            }
        }

        impl Parse<$engine> for $api {
            fn parse(self) -> Result<$engine> {
                type From = $api;
                type To = $engine;
                let From { $($field,)* $($parsed),* } = self;
                Ok(To { $($field: $field.convert(),)* $($parsed: Parse::parse($parsed)?),* })
            }
        }
    };
    (@one $from:ty, $to:ty, $($field:ident),*) => {
        impl Convert<$to> for $from {
            fn convert(self) -> $to {
                type From = $from;
                type To = $to;
                let From { $($field),* } = self;
                To { $($field: $field.convert()),* }
            }
        }
    };
}

same_fields! {
    model::Config => api::ContainerConfig {
        hostname, domainname, user, attach_stdin, attach_stdout, attach_stderr, tty,
        open_stdin, stdin_once, env, cmd, args_escaped, image, volumes, working_dir,
        entrypoint, network_disabled, mac_address, on_build, labels, stop_signal, stop_timeout,
        shell;
        parsed exposed_ports, healthcheck,
    }
    model::Healthcheck => api::HealthConfig {
        interval, timeout, start_period, start_interval, retries;
        parsed test, on_failure,
    }
    model::HostConfig => api::HostConfig {
        binds, container_id_file, auto_remove,
        volume_driver, volumes_from, console_size, annotations, cap_add, cap_drop, dns, dns_options,
        dns_search, extra_hosts, group_add, cgroup, links, oom_score_adj, privileged,
        publish_all_ports, readonly_rootfs, security_opt, storage_opt, tmpfs, shm_size, sysctls,
        runtime, cpu_shares, memory, nano_cpus, cgroup_parent, blkio_weight, blkio_weight_device, blkio_device_read_bps,
        blkio_device_write_bps, blkio_device_read_iops, blkio_device_write_iops, cpu_period,
        cpu_quota, cpu_realtime_period, cpu_realtime_runtime, cpuset_cpus, cpuset_mems, devices,
        device_cgroup_rules, device_requests, memory_reservation, memory_swap, memory_swappiness,
        oom_kill_disable, pids_limit, ulimits, cpu_count, cpu_percent, io_maximum_iops,
        io_maximum_bandwidth, masked_paths, readonly_paths, init;
        parsed log_config, port_bindings, restart_policy, network_mode, pid_mode, ipc_mode, uts_mode,
        userns_mode, cgroupns_mode, isolation, mounts,
    }
    containers::ExecConfig => api::ExecConfig {
        user, privileged, tty, console_size, attach_stdin, attach_stderr, attach_stdout,
        detach_keys, env, working_dir, cmd,
    }
    model::DeviceRequest => api::DeviceRequest { driver, count, device_ids, capabilities, options }
    model::WeightDevice => api::WeightDevice { path, weight }
    model::ThrottleDevice => api::ThrottleDevice { path, rate }
    model::DeviceMapping => api::DeviceMapping {
        path_on_host, path_in_container, cgroup_permissions,
    }
    model::Ulimit => api::Ulimit { name, hard, soft }
    model::Mount => api::Mount {
        source, target, read_only, consistency, bind_options, volume_options, image_options,
        tmpfs_options;
        parsed kind,
    }
    model::BindOptions => api::BindOptions {
        propagation, non_recursive, create_mountpoint, read_only_non_recursive,
        read_only_force_recursive, map_user,
    }
    model::ImageOptions => api::ImageOptions { subpath }
    model::VolumeOptions => api::VolumeOptions { no_copy, labels, subpath, driver_config }
    model::DriverConfig => api::DriverConfig { name, options }
    model::TmpfsOptions => api::TmpfsOptions { size_bytes, mode, options }
    network::Ipam => api::Ipam { driver, options, config }
    network::IpamConfig => api::IpamConfig { subnet, ip_range, gateway, auxiliary_addresses }
    network::EndpointIpam => api::EndpointIpamConfig {
        ipv4_address, ipv6_address, link_local_ips,
    }
}

impl Convert<network::EndpointRequest> for api::EndpointSettings {
    /// Leaves out what an engine assigns: clients send back whole endpoints that `inspect` returned.
    fn convert(self) -> network::EndpointRequest {
        let Self {
            ipam_config,
            links,
            aliases,
            mac_address,
            driver_opts,
            gw_priority,
            network_id: _,
            endpoint_id: _,
            gateway: _,
            ip_address: _,
            ip_prefix_len: _,
            ipv6_gateway: _,
            global_ipv6_address: _,
            global_ipv6_prefix_len: _,
            dns_names: _,
        } = self;
        network::EndpointRequest {
            ipam_config: ipam_config.convert(),
            links,
            aliases,
            mac_address,
            driver_opts,
            gw_priority,
        }
    }
}

impl Parse<UpdateRequest> for api::UpdateConfig {
    /// Without a name the restart policy is left unchanged.
    fn parse(self) -> Result<UpdateRequest> {
        let policy = Some(self.restart_policy).filter(|policy| !policy.name.is_empty());
        Ok(UpdateRequest {
            cpu_shares: self.cpu_shares,
            memory: self.memory,
            nano_cpus: self.nano_cpus,
            blkio_weight: self.blkio_weight,
            blkio_weight_device: self.blkio_weight_device.convert(),
            blkio_device_read_bps: self.blkio_device_read_bps.convert(),
            blkio_device_write_bps: self.blkio_device_write_bps.convert(),
            blkio_device_read_iops: self.blkio_device_read_iops.convert(),
            blkio_device_write_iops: self.blkio_device_write_iops.convert(),
            cpu_period: self.cpu_period,
            cpu_quota: self.cpu_quota,
            cpu_realtime_period: self.cpu_realtime_period,
            cpu_realtime_runtime: self.cpu_realtime_runtime,
            cpuset_cpus: self.cpuset_cpus,
            cpuset_mems: self.cpuset_mems,
            memory_reservation: self.memory_reservation,
            memory_swap: self.memory_swap,
            pids_limit: self.pids_limit,
            restart_policy: policy.map(Parse::parse).transpose()?,
            fixed: FixedResources {
                cgroup_parent: self.cgroup_parent,
                devices: self.devices.convert(),
                device_cgroup_rules: self.device_cgroup_rules,
                device_requests: self.device_requests.convert(),
                memory_swappiness: self.memory_swappiness,
                oom_kill_disable: self.oom_kill_disable,
                ulimits: self.ulimits.convert(),
                init: self.init,
                cpu_count: self.cpu_count,
                cpu_percent: self.cpu_percent,
                io_maximum_iops: self.io_maximum_iops,
                io_maximum_bandwidth: self.io_maximum_bandwidth,
            },
        })
    }
}

impl Convert<api::EndpointSettings> for network::Endpoint {
    fn convert(self) -> api::EndpointSettings {
        let Self {
            requested,
            network_id,
            dns_names,
            assigned,
        } = self;
        let network::EndpointRequest {
            ipam_config,
            links,
            aliases,
            mac_address: requested_mac,
            driver_opts,
            gw_priority,
        } = requested;
        let mac_address = assigned
            .as_ref()
            .map(|assigned| assigned.mac_address.clone());
        let network::Assigned {
            endpoint_id,
            interface: _,
            mac_address: _,
            ipv4,
            ipv6,
            link_local: _,
        } = assigned.unwrap_or_default();
        let (ip_address, ip_prefix_len, gateway) = ipv4.convert();
        let (global_ipv6_address, global_ipv6_prefix_len, ipv6_gateway) = ipv6.convert();
        api::EndpointSettings {
            ipam_config: ipam_config.convert(),
            links,
            aliases,
            mac_address: mac_address.unwrap_or(requested_mac),
            driver_opts,
            gw_priority,
            network_id,
            endpoint_id,
            gateway,
            ip_address,
            ip_prefix_len,
            ipv6_gateway,
            global_ipv6_address,
            global_ipv6_prefix_len,
            dns_names,
        }
    }
}

impl Convert<(String, u8, String)> for Option<network::AssignedAddress> {
    /// Returns the address, its prefix length, and the gateway.
    fn convert(self) -> (String, u8, String) {
        self.map_or_else(
            Default::default,
            |network::AssignedAddress { net, gateway }| {
                let gateway = gateway.map_or_else(String::new, |gateway| gateway.to_string());
                (net.addr().to_string(), net.prefix_len(), gateway)
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    /// Checks that nothing is lost between the API's form and the engine's.
    fn check<E, A>(text: Value, parse: impl FnOnce(A) -> E)
    where
        E: Convert<A>,
        A: Serialize + DeserializeOwned,
    {
        let api: A = serde_json::from_value(text.clone()).expect("the API's form");
        let back: A = parse(api).convert();
        assert_eq!(serde_json::to_value(&back).expect("JSON"), text);
    }

    #[test]
    fn all_settings_of_a_container_are_converted() {
        check::<model::Config, api::ContainerConfig>(
            json!({
                "Hostname": "h", "Domainname": "d", "User": "u", "AttachStdin": true,
                "AttachStdout": true, "AttachStderr": true, "ExposedPorts": {"80/tcp": {}},
                "Tty": true, "OpenStdin": true, "StdinOnce": true, "Env": ["A=b"], "Cmd": ["c"],
                "Healthcheck": {
                    "Test": ["NONE"], "Interval": 1, "Timeout": 2, "StartPeriod": 3,
                    "StartInterval": 4, "Retries": 5,
                },
                "ArgsEscaped": true, "Image": "i", "Volumes": {"/v": {}}, "WorkingDir": "/",
                "Entrypoint": ["e"], "NetworkDisabled": true, "MacAddress": "02:00:00:00:00:01",
                "OnBuild": ["RUN x"], "Labels": {"a": "b"}, "StopSignal": "TERM", "StopTimeout": 5,
                "Shell": ["sh"],
            }),
            |api| Parse::parse(api).expect("valid settings"),
        );
        check::<network::EndpointIpam, api::EndpointIpamConfig>(
            json!({
                "IPv4Address": "10.0.0.2", "IPv6Address": "fd00::2", "LinkLocalIPs": ["169.254.0.2"],
            }),
            Convert::convert,
        );
        check::<network::Ipam, api::Ipam>(
            json!({
                "Driver": "default", "Options": {"a": "b"}, "Config": [{
                    "Subnet": "10.0.0.0/24", "IPRange": "10.0.0.0/25", "Gateway": "10.0.0.1",
                    "AuxiliaryAddresses": {"a": "10.0.0.9"},
                }],
            }),
            Convert::convert,
        );
    }

    #[test]
    fn a_request_for_an_endpoint_is_what_a_client_can_choose() {
        let shown = json!({
            "IPAMConfig": {"IPv4Address": "10.0.0.2"}, "Links": ["a"], "Aliases": ["b"],
            "MacAddress": "02:00:00:00:00:01", "DriverOpts": {"a": "b"}, "GwPriority": 1,
            "NetworkID": "n", "EndpointID": "e", "Gateway": "10.0.0.1",
            "IPAddress": "10.0.0.2", "IPPrefixLen": 24, "IPv6Gateway": "fd00::1",
            "GlobalIPv6Address": "fd00::2", "GlobalIPv6PrefixLen": 64, "DNSNames": ["c"],
        });
        let api: api::EndpointSettings =
            serde_json::from_value(shown.clone()).expect("an endpoint");
        let requested: network::EndpointRequest = api.convert();
        let address = |net: &str, gateway: &str| {
            Some(network::AssignedAddress {
                net: net.parse().expect("an address"),
                gateway: gateway.parse().ok(),
            })
        };
        let mut endpoint = network::Endpoint {
            network_id: "n".into(),
            dns_names: Some(vec!["c".into()]),
            assigned: Some(network::Assigned {
                endpoint_id: "e".into(),
                interface: "eth0".into(),
                mac_address: "02:00:00:00:00:01".into(),
                ipv4: address("10.0.0.2/24", "10.0.0.1"),
                ipv6: address("fd00::2/64", "fd00::1"),
                link_local: Vec::new(),
            }),
            ..requested.into()
        };
        let text = |endpoint: &network::Endpoint| {
            let api: api::EndpointSettings = endpoint.clone().convert();
            serde_json::to_value(api).expect("JSON")
        };
        assert_eq!(text(&endpoint), shown);
        // While it is not attached, the requested address is shown.
        endpoint.assigned = None;
        let shown = text(&endpoint);
        assert_eq!(shown["MacAddress"], "02:00:00:00:00:01");
        assert_eq!(shown["IPAddress"], "");
    }

    #[test]
    fn exposed_ports_may_be_ranges() {
        let ports = |entries: &[&str]| {
            let keys = entries.iter().map(|entry| (*entry).to_owned());
            let set: api::Set = keys.map(|key| (key, api::Empty {})).collect();
            let ports: Result<BTreeSet<model::ContainerPort>> = Parse::parse(set);
            ports.map_err(|error| error.to_string()).map(|ports| {
                let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
                ports.join(" ")
            })
        };
        assert_eq!(
            ports(&["3000-3002", "80/udp"]),
            Ok("80/udp 3000/tcp 3001/tcp 3002/tcp".into())
        );
        for wrong in ["2-1/tcp", "1-2/x", "-", "x"] {
            assert!(ports(&[wrong]).is_err(), "{wrong}");
        }
        // The work is bounded, however many ranges there are.
        let all: Vec<String> = (1..=100)
            .map(|first| format!("{first}-65535/tcp"))
            .collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        assert!(ports(&all).is_err());
    }

    #[test]
    fn a_port_with_two_names_has_the_bindings_of_both() {
        let given = json!({
            "80": [{"HostIp": "", "HostPort": "8080"}],
            "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8081"}],
            "80/TCP": null,
        });
        let api: api::PortMap = serde_json::from_value(given).expect("the API's form");
        let ports: model::PortBindings = Parse::parse(api).expect("valid ports");
        let back: api::PortMap = ports.convert();
        assert_eq!(
            serde_json::to_value(&back).expect("JSON"),
            json!({"80/tcp": [
                {"HostIp": "", "HostPort": "8080"},
                {"HostIp": "127.0.0.1", "HostPort": "8081"},
            ]})
        );
    }

    #[test]
    fn all_settings_of_the_host_are_converted() {
        let mount = json!({
            "Type": "bind", "Source": "/s", "Target": "/t", "ReadOnly": true,
            "Consistency": "cached",
            "BindOptions": {
                "Propagation": "shared", "NonRecursive": true, "CreateMountpoint": true,
                "ReadOnlyNonRecursive": true, "ReadOnlyForceRecursive": true, "MapUser": "auto",
            },
            "VolumeOptions": {
                "NoCopy": true, "Labels": {"a": "b"}, "Subpath": "x",
                "DriverConfig": {"Name": "local", "Options": {"a": "b"}},
            },
            "ImageOptions": {"Subpath": "x"},
            "TmpfsOptions": {"SizeBytes": 1, "Mode": 2, "Options": [["exec"]]},
        });
        let rates = json!([{"Path": "/dev/a", "Rate": 1}]);
        let mut text = serde_json::to_value(api::HostConfig::default()).expect("JSON");
        let set = json!({
            "Binds": ["/a:/b"], "ContainerIDFile": "f", "LogConfig": {"Type": "local", "Config": {"a": "b"}},
            "NetworkMode": "none", "PortBindings": {"80/tcp": [{"HostIp": "::1", "HostPort": "1"}], "81/tcp": null},
            "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 1}, "ConsoleSize": [1, 2],
            "Annotations": {"a": "b"}, "CapAdd": ["X"], "StorageOpt": {"size": "1"},
            "Tmpfs": {"/t": ""}, "UTSMode": "host", "Sysctls": {"a": "b"},
            "BlkioWeightDevice": [{"Path": "/dev/a", "Weight": 1}], "BlkioDeviceReadBps": rates,
            "BlkioDeviceWriteBps": rates, "BlkioDeviceReadIOps": rates, "BlkioDeviceWriteIOps": rates,
            "Devices": [{"PathOnHost": "/a", "PathInContainer": "/b", "CgroupPermissions": "r"}],
            "DeviceRequests": [{
                "Driver": "d", "Count": -1, "DeviceIDs": ["i"], "Capabilities": [["gpu"]],
                "Options": {"a": "b"},
            }],
            "MemorySwappiness": 1, "OomKillDisable": true, "PidsLimit": 1,
            "Ulimits": [{"Name": "nofile", "Hard": 2, "Soft": 1}], "IOMaximumIOps": 1,
            "IOMaximumBandwidth": 2, "Mounts": [mount], "MaskedPaths": [], "Init": true,
        });
        if let (Value::Object(text), Value::Object(set)) = (&mut text, set) {
            text.extend(set);
        }
        check::<model::HostConfig, api::HostConfig>(text, |api| {
            Parse::parse(api).expect("valid settings")
        });
    }
}
