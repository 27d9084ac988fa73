//! Every field of the API definition's requests to create or update an object is shown afterwards,
//! rejected by name, or one that Docker ignores. None is dropped silently.

use serde_json::{Value, json};
use whelk_tests::{Engine, FreeSubnet};

/// How the engine handles a field.
enum Fate {
    /// It is shown by `inspect`, with what the engine adds to it; or a warning says that this kernel
    /// cannot do it.
    Shown,
    /// It is shown in another form.
    ShownAs(Value),
    /// The request fails with this text.
    Refused(&'static str),
    /// Depends on the kernel.
    ShownOrRefused(&'static str),
    /// Docker ignores it, too: for the reason beside it.
    Ignored,
}

use Fate::{Ignored, Refused, Shown, ShownAs, ShownOrRefused};

/// Whether `shown` has everything that is in `given`.
fn contains(shown: &Value, given: &Value) -> bool {
    match (shown, given) {
        (Value::Object(shown), Value::Object(given)) => given.iter().all(|(key, given)| {
            let shown = shown.get(key);
            shown.is_some_and(|shown| contains(shown, given))
        }),
        (Value::Array(shown), Value::Array(given)) => given
            .iter()
            .all(|given| shown.iter().any(|shown| contains(shown, given))),
        _ => shown == given,
    }
}

/// Sends requests with one field each. `make` sends a body, and returns the status, the response, and
/// what `inspect` shows where the field is to be found.
fn check(
    fields: Vec<(&str, Value, Fate)>,
    mut make: impl FnMut(&str, &Value) -> (u16, Value, Value),
) {
    for (field, given, fate) in fields {
        let (status, answer, shown) = make(field, &given);
        let message = answer["message"].as_str().unwrap_or_default();
        let is_shown = |expected: &Value| {
            let warnings = answer["Warnings"].as_array();
            let is_warned = warnings.is_some_and(|warnings| !warnings.is_empty());
            status < 300 && (contains(&shown, expected) || is_warned)
        };
        let is_refused = |text: &str| status >= 400 && message.contains(text);
        let is_right = match &fate {
            Shown => is_shown(&given),
            ShownAs(expected) => is_shown(expected),
            Refused(text) => is_refused(text),
            ShownOrRefused(text) => is_shown(&given) || is_refused(text),
            Ignored => status < 300 && !contains(&shown, &given),
        };
        assert!(
            is_right,
            "{field}: {given}: {status} {answer}; shown: {shown}"
        );
    }
}

/// Sets the value at a path such as `/HostConfig/Binds`.
fn set(body: &mut Value, path: &str, value: &Value) {
    let mut place = body;
    for key in path.split('/').skip(1) {
        place = &mut place[key];
    }
    *place = value.clone();
}

fn config() -> Vec<(&'static str, Value, Fate)> {
    let times = json!({
        "Test": ["NONE"], "Interval": 1_000_000, "Timeout": 2_000_000, "StartPeriod": 3_000_000,
        "StartInterval": 4_000_000, "Retries": 5, "OnFailure": "kill",
    });
    vec![
        ("/Hostname", json!("h"), Shown),
        ("/Domainname", json!("d.test"), Shown),
        ("/User", json!("1:1"), Shown),
        ("/AttachStdin", json!(true), Shown),
        ("/AttachStdout", json!(true), Shown),
        ("/AttachStderr", json!(true), Shown),
        ("/ExposedPorts", json!({"80/tcp": {}}), Shown),
        ("/Tty", json!(true), Shown),
        ("/OpenStdin", json!(true), Shown),
        ("/StdinOnce", json!(true), Shown),
        ("/Env", json!(["A=b"]), Shown),
        ("/Cmd", json!(["c"]), Shown),
        ("/Healthcheck", times, Shown),
        ("/Healthcheck", json!({"Test": ["CMD", "x"]}), Shown),
        (
            "/Healthcheck",
            json!({"OnFailure": "x"}),
            Refused("unknown action for an unhealthy container 'x'"),
        ),
        ("/ArgsEscaped", json!(true), Shown),
        ("/Image", json!("busybox"), Shown),
        ("/Volumes", json!({"/v": {}}), Shown),
        ("/WorkingDir", json!("/w"), Shown),
        ("/Entrypoint", json!(["e"]), Shown),
        ("/NetworkDisabled", json!(true), Shown),
        ("/OnBuild", json!(["RUN x"]), Shown),
        ("/Labels", json!({"a": "b"}), Shown),
        ("/StopSignal", json!("SIGINT"), Shown),
        ("/StopTimeout", json!(5), Shown),
        ("/Shell", json!(["sh"]), Shown),
    ]
}

/// The settings that depend on the host, without the limits.
fn host() -> Vec<(&'static str, Value, Fate)> {
    let ports = json!({"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "21999"}]});
    let mounts = [
        json!({
            "Type": "bind", "Source": "/tmp", "Target": "/m", "ReadOnly": true,
            "Consistency": "cached",
            "BindOptions": {
                "Propagation": "rprivate", "NonRecursive": true, "CreateMountpoint": true,
                "ReadOnlyNonRecursive": true,
            },
        }),
        json!({
            "Type": "bind", "Source": "/tmp", "Target": "/m", "ReadOnly": true,
            "BindOptions": {"Propagation": "rprivate", "ReadOnlyForceRecursive": true},
        }),
        json!({
            "Type": "volume", "Source": "one", "Target": "/m",
            "VolumeOptions": {
                "NoCopy": true, "Labels": {"a": "b"}, "Subpath": "x",
                "DriverConfig": {"Name": "local", "Options": {"type": "tmpfs", "device": "x"}},
            },
        }),
        json!({
            "Type": "tmpfs", "Target": "/m",
            "TmpfsOptions": {"SizeBytes": 4096, "Mode": 448, "Options": [["noexec"]]},
        }),
        json!({
            "Type": "image", "Source": "busybox", "Target": "/m",
            "ImageOptions": {"Subpath": "bin"},
        }),
    ];
    let mut fields = vec![
        ("/Binds", json!(["/tmp:/b"]), Shown),
        ("/ContainerIDFile", json!("f"), Shown),
        (
            "/LogConfig",
            json!({"Type": "json-file", "Config": {"max-size": "1m"}}),
            Shown,
        ),
        ("/LogConfig", json!({"Type": "awslogs"}), Refused("awslogs")),
        ("/NetworkMode", json!("host"), Shown),
        ("/PortBindings", ports, Shown),
        (
            "/RestartPolicy",
            json!({"Name": "on-failure", "MaximumRetryCount": 2}),
            Shown,
        ),
        ("/AutoRemove", json!(true), Shown),
        ("/VolumeDriver", json!("local"), Shown),
        ("/VolumesFrom", json!(["donor"]), Shown),
        ("/ConsoleSize", json!([24, 80]), Shown),
        ("/Annotations", json!({"a": "b"}), Shown),
        ("/CapAdd", json!(["CAP_NET_ADMIN"]), Shown),
        ("/CapDrop", json!(["CAP_CHOWN"]), Shown),
        ("/CgroupnsMode", json!("private"), Shown),
        ("/Dns", json!(["10.0.0.1"]), Shown),
        ("/DnsOptions", json!(["ndots:1"]), Shown),
        ("/DnsSearch", json!(["d.test"]), Shown),
        ("/ExtraHosts", json!(["h:10.0.0.1"]), Shown),
        ("/GroupAdd", json!(["5"]), Shown),
        ("/IpcMode", json!("none"), Shown),
        (
            "/Cgroup",
            json!("container:x"),
            Refused("HostConfig.Cgroup"),
        ),
        (
            "/Links",
            json!(["donor:d"]),
            ShownAs(json!(["/donor:/made/d"])),
        ),
        ("/OomScoreAdj", json!(5), Shown),
        ("/PidMode", json!("host"), Shown),
        ("/Privileged", json!(true), Shown),
        ("/PublishAllPorts", json!(true), Shown),
        ("/ReadonlyRootfs", json!(true), Shown),
        ("/SecurityOpt", json!(["no-new-privileges"]), Shown),
        (
            "/StorageOpt",
            json!({"size": "1g"}),
            ShownOrRefused("--storage-opt is supported only for overlay over xfs"),
        ),
        ("/Tmpfs", json!({"/t": "size=1m"}), Shown),
        ("/UTSMode", json!("host"), Shown),
        ("/UsernsMode", json!("host"), Shown),
        ("/ShmSize", json!(1 << 20), Shown),
        ("/Sysctls", json!({"net.ipv4.ip_forward": "0"}), Shown),
        (
            "/Runtime",
            json!("io.containerd.runc.v2"),
            ShownAs(json!("runc")),
        ),
        ("/Runtime", json!("nosuch"), Refused("runtime name: nosuch")),
        ("/Isolation", json!("default"), Shown),
        ("/Isolation", json!("hyperv"), Refused("isolation")),
        ("/MaskedPaths", json!(["/proc/x"]), Shown),
        ("/ReadonlyPaths", json!(["/proc/y"]), Shown),
        ("/Init", json!(true), Shown),
    ];
    fields.extend(mounts.map(|mount| ("/Mounts", json!([mount]), Shown)));
    fields.push((
        "/Mounts",
        json!([{"Type": "cluster", "Target": "/m"}]),
        Refused("cluster"),
    ));
    fields.push((
        "/Mounts",
        json!([{"Type": "npipe", "Target": "/m"}]),
        Refused("npipe"),
    ));
    fields
}

/// The limits, and whether an update changes them.
fn limits() -> Vec<(&'static str, Value, Fate, Fate)> {
    // Docker ignores in an update what it cannot change of an existing container.
    const FIXED: Fate = Refused("cannot be changed after the container was created");
    let rates = json!([{"Path": "/dev/sda", "Rate": 1000}]);
    let device = json!([{
        "PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "r",
    }]);
    let gpu = json!([{
        "Driver": "d", "Count": -1, "DeviceIDs": ["i"], "Capabilities": [["gpu"]],
        "Options": {"a": "b"},
    }]);
    let ulimit = json!([{"Name": "nofile", "Soft": 1, "Hard": 2}]);
    vec![
        ("/CpuShares", json!(512), Shown, Shown),
        ("/Memory", json!(64 << 20), Shown, Shown),
        ("/NanoCpus", json!(500_000_000), Shown, Shown),
        ("/CgroupParent", json!("/whelk-fields"), Shown, FIXED),
        ("/BlkioWeight", json!(300), Shown, Shown),
        (
            "/BlkioWeightDevice",
            json!([{"Path": "/dev/sda", "Weight": 300}]),
            Shown,
            Shown,
        ),
        ("/BlkioDeviceReadBps", rates.clone(), Shown, Shown),
        ("/BlkioDeviceWriteBps", rates.clone(), Shown, Shown),
        ("/BlkioDeviceReadIOps", rates.clone(), Shown, Shown),
        ("/BlkioDeviceWriteIOps", rates, Shown, Shown),
        ("/CpuPeriod", json!(100_000), Shown, Shown),
        ("/CpuQuota", json!(50_000), Shown, Shown),
        (
            "/CpuRealtimePeriod",
            json!(1_000_000),
            ShownOrRefused("real-time"),
            ShownOrRefused("real-time"),
        ),
        (
            "/CpuRealtimeRuntime",
            json!(1_000),
            ShownOrRefused("real-time"),
            ShownOrRefused("real-time"),
        ),
        ("/CpusetCpus", json!("0"), Shown, Shown),
        ("/CpusetMems", json!("0"), Shown, Shown),
        ("/Devices", device, Shown, FIXED),
        ("/DeviceCgroupRules", json!(["c 1:3 r"]), Shown, FIXED),
        ("/DeviceRequests", gpu, Shown, FIXED),
        ("/MemoryReservation", json!(32 << 20), Shown, Shown),
        ("/MemorySwap", json!(-1), Shown, Shown),
        ("/MemorySwappiness", json!(10), Shown, FIXED),
        ("/OomKillDisable", json!(true), Shown, FIXED),
        ("/Init", json!(true), Shown, FIXED),
        ("/PidsLimit", json!(10), Shown, Shown),
        ("/Ulimits", ulimit, Shown, FIXED),
        // They limit containers on Windows.
        ("/CpuCount", json!(1), Refused("HostConfig.CpuCount"), FIXED),
        (
            "/CpuPercent",
            json!(1),
            Refused("HostConfig.CpuPercent"),
            FIXED,
        ),
        (
            "/IOMaximumIOps",
            json!(1),
            Refused("HostConfig.IOMaximumIOps"),
            FIXED,
        ),
        (
            "/IOMaximumBandwidth",
            json!(1),
            Refused("HostConfig.IOMaximumBandwidth"),
            FIXED,
        ),
    ]
}

/// The settings of an endpoint. The engine assigns the others, whatever the request says.
fn endpoint(subnet: &FreeSubnet) -> Vec<(&'static str, Value, Fate)> {
    let addresses = json!({
        "IPv4Address": subnet.v4_host(5), "IPv6Address": subnet.v6_host("5"),
        "LinkLocalIPs": ["169.254.7.7"],
    });
    vec![
        ("/IPAMConfig", addresses, Shown),
        ("/Links", json!(["donor:d"]), Shown),
        ("/Aliases", json!(["a"]), Shown),
        ("/MacAddress", json!("02:00:00:00:00:07"), Shown),
        ("/DriverOpts", json!({"a": "b"}), Shown),
        (
            "/DriverOpts",
            json!({"com.docker.network.x": "b"}),
            Refused("com.docker.network.x"),
        ),
        ("/GwPriority", json!(7), Shown),
        ("/NetworkID", json!("x"), Ignored),
        ("/EndpointID", json!("x"), Ignored),
        ("/Gateway", json!(subnet.v4_host(6)), Ignored),
        ("/IPAddress", json!(subnet.v4_host(6)), Ignored),
        ("/IPPrefixLen", json!(7), Ignored),
        ("/IPv6Gateway", json!("fd00::6"), Ignored),
        ("/GlobalIPv6Address", json!("fd00::6"), Ignored),
        ("/GlobalIPv6PrefixLen", json!(7), Ignored),
        ("/DNSNames", json!(["x"]), Ignored),
    ]
}

/// Sends a request, inspects the created object, and removes it.
fn made(engine: &Engine, kind: &str, body: &Value, place: &str) -> (u16, Value, Value) {
    let path = match kind {
        "containers" => "/containers/create?name=made".to_owned(),
        kind => format!("/{kind}/create"),
    };
    let (status, answer) = engine.api("POST", &path, Some(body));
    if status != 201 {
        return (status, answer, Value::Null);
    }
    let object = match kind {
        "containers" => "/containers/made".to_owned(),
        "volumes" => format!("/volumes/{}", answer["Name"].as_str().unwrap()),
        kind => format!("/{kind}/{}", answer["Id"].as_str().unwrap()),
    };
    let suffix = if kind == "containers" { "/json" } else { "" };
    let shown = engine.get(&format!("{object}{suffix}"));
    let (removed, _) = engine.api("DELETE", &format!("{object}?v=1"), None);
    assert_eq!(removed, 204, "{object}");
    let shown = shown.pointer(place).cloned().unwrap_or_default();
    (status, answer, shown)
}

fn network(subnet: &FreeSubnet) -> Value {
    json!({"Name": "net", "EnableIPv6": true, "IPAM": {"Config": [
        {"Subnet": subnet.v4_part(0, 29)}, {"Subnet": subnet.v6()},
    ]}})
}

#[test]
fn no_setting_of_a_new_container_is_dropped() {
    let engine = Engine::start();
    let subnet = FreeSubnet::new();
    engine.create("donor", &json!({"Image": "busybox"}));
    check(config(), |field, given| {
        let mut body = json!({"Image": "busybox"});
        set(&mut body, field, given);
        made(&engine, "containers", &body, &format!("/Config{field}"))
    });
    let limits = limits().into_iter();
    let limits = limits.map(|(field, given, created, _)| (field, given, created));
    check(
        host().into_iter().chain(limits).collect(),
        |field, given| {
            let mut body = json!({"Image": "busybox", "HostConfig": {}});
            set(&mut body["HostConfig"], field, given);
            made(&engine, "containers", &body, &format!("/HostConfig{field}"))
        },
    );
    assert_eq!(
        engine
            .api("POST", "/networks/create", Some(&network(&subnet)))
            .0,
        201
    );
    check(endpoint(&subnet), |field, given| {
        let mut endpoint = json!({});
        set(&mut endpoint, field, given);
        let body = json!({
            "Image": "busybox", "HostConfig": {"NetworkMode": "net"},
            "NetworkingConfig": {"EndpointsConfig": {"net": endpoint}},
        });
        let place = format!("/NetworkSettings/Networks/net{field}");
        made(&engine, "containers", &body, &place)
    });
}

#[test]
fn no_setting_of_an_endpoint_is_dropped() {
    let engine = Engine::start();
    let subnet = FreeSubnet::new();
    engine.create("donor", &json!({"Image": "busybox"}));
    assert_eq!(
        engine
            .api("POST", "/networks/create", Some(&network(&subnet)))
            .0,
        201
    );
    engine.create("made", &json!({"Image": "busybox"}));
    check(endpoint(&subnet), |field, given| {
        let mut endpoint = json!({});
        set(&mut endpoint, field, given);
        let body = json!({"Container": "made", "EndpointConfig": endpoint});
        let (status, answer) = engine.api("POST", "/networks/net/connect", Some(&body));
        let shown = engine.inspect("made");
        let place = format!("/NetworkSettings/Networks/net{field}");
        let shown = shown.pointer(&place).cloned().unwrap_or_default();
        let body = json!({"Container": "made", "Force": true});
        engine.api("POST", "/networks/net/disconnect", Some(&body));
        (status, answer, shown)
    });
}

#[test]
fn no_setting_of_an_update_is_dropped() {
    let engine = Engine::start();
    let mut fields: Vec<_> = limits()
        .into_iter()
        .map(|(field, given, _, updated)| (field, given, updated))
        .collect();
    let policy = json!({"Name": "on-failure", "MaximumRetryCount": 2});
    fields.push(("/RestartPolicy", policy, Shown));
    check(fields, |field, given| {
        engine.create("made", &json!({"Image": "busybox"}));
        let mut body = json!({});
        set(&mut body, field, given);
        let (status, answer) = engine.api("POST", "/containers/made/update", Some(&body));
        let shown = engine.inspect("made");
        let place = format!("/HostConfig{field}");
        assert_eq!(engine.api("DELETE", "/containers/made", None).0, 204);
        let shown = shown.pointer(&place).cloned().unwrap_or_default();
        (status, answer, shown)
    });
}

#[test]
fn no_setting_of_a_network_or_volume_is_dropped() {
    let engine = Engine::without_images(&[]);
    let subnet = FreeSubnet::new();
    let addresses = json!({"Driver": "default", "Options": {"a": "b"}, "Config": [{
        "Subnet": subnet.v4_part(0, 29), "IPRange": subnet.v4_part(0, 30), "Gateway": subnet.v4_host(1),
        "AuxiliaryAddresses": {"a": subnet.v4_host(3)},
    }]});
    let fields = vec![
        ("/Name", json!("other"), Shown),
        ("/Driver", json!("bridge"), Shown),
        ("/Driver", json!("overlay"), Refused("overlay")),
        ("/Scope", json!("local"), Shown),
        ("/Scope", json!("swarm"), Refused("other scopes than local")),
        ("/Internal", json!(true), Shown),
        ("/Attachable", json!(true), Shown),
        ("/Ingress", json!(true), Refused("ingress")),
        ("/ConfigOnly", json!(true), Refused("ConfigOnly")),
        (
            "/ConfigFrom",
            json!({"Network": "x"}),
            Refused("ConfigFrom"),
        ),
        ("/IPAM", addresses, Shown),
        ("/IPAM", json!({"Driver": "dhcp"}), Refused("dhcp")),
        ("/EnableIPv4", json!(false), Shown),
        ("/EnableIPv6", json!(true), Shown),
        (
            "/Options",
            json!({"com.docker.network.bridge.enable_icc": "false"}),
            Shown,
        ),
        (
            "/Options",
            json!({"com.docker.network.x": "y"}),
            Refused("com.docker.network.x"),
        ),
        ("/Labels", json!({"a": "b"}), Shown),
    ];
    check(fields, |field, given| {
        let mut body = json!({"Name": "net"});
        set(&mut body, field, given);
        made(&engine, "networks", &body, field)
    });
    let fields = vec![
        ("/Name", json!("other"), Shown),
        ("/Driver", json!("local"), Shown),
        ("/Driver", json!("nosuch"), Refused("nosuch")),
        (
            "/DriverOpts",
            json!({"type": "tmpfs", "device": "x"}),
            Shown,
        ),
        ("/DriverOpts", json!({"nosuch": "x"}), Refused("nosuch")),
        ("/Labels", json!({"a": "b"}), Shown),
        ("/ClusterVolumeSpec", json!({}), Refused("cluster volumes")),
    ];
    check(fields, |field, given| {
        let mut body = json!({});
        set(&mut body, field, given);
        let place = if field == "/DriverOpts" {
            "/Options"
        } else {
            field
        };
        made(&engine, "volumes", &body, place)
    });
}
