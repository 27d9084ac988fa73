//! Options of networks, the engine's configuration of networks, and settings that are refused.

use serde_json::json;
use whelk_tests::serving::{SERVES, inside, published, serves, up};
use whelk_tests::{Engine, FreeSubnet, Program, escape, free_port};

#[test]
fn options_of_networks_and_endpoints_take_effect() {
    let engine = Engine::start();
    let (subnet, port) = (FreeSubnet::new(), free_port());
    let range = subnet.v4_part(0, 29);
    let (router, other) = (subnet.v4_host(2), subnet.v4_host(3));
    let (sctp, udp) = (format!("{port}:5000/sctp"), format!("{port}:5000/udp"));
    engine.both(|cli| {
        let create = [
            "network",
            "create",
            "--attachable",
            "--ipv6=false",
            "--subnet",
            &range,
        ];
        let aux = [
            "--aux-address",
            &format!("router={router}"),
            "--aux-address",
            &format!("other={other}"),
        ];
        let binding = [
            "-o",
            "com.docker.network.bridge.host_binding_ipv4=127.0.0.1",
            "set",
        ];
        cli.run(&[&create[..], &aux, &binding].concat()).ok();
        let shown = engine.get("/networks/set");
        assert_eq!(shown["Attachable"], true);
        assert_eq!(
            shown["IPAM"]["Config"][0]["AuxiliaryAddresses"],
            json!({"router": router, "other": other})
        );
        let flags = [
            "--network",
            "set",
            "--link-local-ip",
            "169.254.7.7",
            "-p",
            "80",
            "-p",
            &sctp,
        ];
        up(cli, "one", &flags, SERVES);
        let one = engine.inspect("one");
        // The first that is neither the gateway nor an auxiliary address.
        assert_eq!(
            one["NetworkSettings"]["Networks"]["set"]["IPAddress"],
            subnet.v4_host(4)
        );
        assert!(inside(cli, "one", "ip addr show eth0").contains("169.254.7.7/16"));
        let ports = &one["NetworkSettings"]["Ports"];
        assert_eq!(ports["80/tcp"][0]["HostIp"], "127.0.0.1");
        assert_eq!(
            ports["5000/sctp"],
            json!([{"HostIp": "127.0.0.1", "HostPort": port.to_string()}])
        );
        assert!(
            cli.run(&["port", "one"])
                .ok()
                .contains(&format!("5000/sctp -> 127.0.0.1:{port}"))
        );
        // The same port number is free for another protocol.
        cli.run(&[
            "run",
            "--rm",
            "--network",
            "set",
            "-p",
            &udp,
            "busybox",
            "true",
        ])
        .ok();
        cli.run(&[
            "run",
            "--rm",
            "--network",
            "set",
            "-p",
            &sctp,
            "busybox",
            "true",
        ])
        .refuses(125, "port is already allocated");
        cli.run(&["rm", "-f", "one"]).ok();
        cli.run(&["network", "rm", "set"]).ok();
    });
}

#[test]
fn rejects_invalid_requests() {
    let engine = Engine::start();
    let (subnet, other) = (FreeSubnet::new(), FreeSubnet::new());
    let (low, high) = (other.v4_part(0, 25), other.v4_part(128, 25));
    let (whole, half, other) = (subnet.v4(), subnet.v4_part(128, 25), other.v4());
    let several = "bridge driver doesn't support multiple subnets";
    let (six, further) = ("fd00:213:77::/64", "fd00:213:78::/64");
    engine.both(|cli| {
        cli.run(&["network", "create", "taken", "--subnet", &whole])
            .ok();
        for (args, text) in [
            (
                &["network", "create", "taken"][..],
                "network with name taken already exists",
            ),
            (
                &["network", "create", "--subnet", &half, "x"],
                "Pool overlaps",
            ),
            (
                &["network", "create", "--subnet", "1.2.3.4", "x"],
                "invalid CIDR block notation",
            ),
            (
                &["network", "create", "--subnet", &low, "--subnet", &high, "x"],
                several,
            ),
            (
                &[
                    "network", "create", "--ipv6", "--subnet", six, "--subnet", further, "x",
                ],
                several,
            ),
            (
                &[
                    "network",
                    "create",
                    "--subnet",
                    &other,
                    "--gateway",
                    "10.99.0.1",
                    "x",
                ],
                "no matching subnet for gateway",
            ),
            (
                &["network", "create", "--gateway", "10.99.0.1", "x"],
                "every ip-range or gateway must have a corresponding subnet",
            ),
            (
                &["network", "create", "-d", "nosuch", "x"],
                "plugin \"nosuch\" not found",
            ),
            (
                &["network", "create", "-d", "overlay", "x"],
                "network driver overlay: not available",
            ),
            (
                &["network", "create", "--opt", "some.thing=1", "x"],
                "network option some.thing",
            ),
            (
                &["network", "create", "bridge"],
                "predefined bridge network",
            ),
            (
                &["network", "create", "--subnet", "127.0.5.0/24", "x"],
                "it contains loopback or multicast addresses",
            ),
            (&["network", "create", "../x"], "invalid network name"),
            (
                &["network", "create", &"x".repeat(256)],
                "invalid network name: longer than 255 bytes",
            ),
            (
                &["network", "inspect", ""],
                "invalid network name or ID: value is empty",
            ),
            (
                &["network", "disconnect", "-f", "taken", "nosuch"],
                "endpoint nosuch not found",
            ),
            (
                &["network", "rm", "bridge"],
                "is a pre-defined network and cannot be removed",
            ),
            (&["network", "rm", "nosuch"], "network nosuch not found"),
            (
                &["network", "inspect", "nosuch"],
                "network nosuch not found",
            ),
            (
                &["network", "connect", "taken", "nosuch"],
                "No such container: nosuch",
            ),
            (&["network", "ls", "-f", "foo=bar"], "invalid filter 'foo'"),
            (
                &["network", "ls", "-f", "dangling=maybe"],
                r#"invalid value for filter 'dangling', must be "true" (or "1"), or "false" (or "0")"#,
            ),
        ] {
            cli.run(args).refuses(1, text);
        }
        let addresses = json!([{"Subnet": &other, "AuxiliaryAddresses": {"spare": "10.99.0.1"}}]);
        let body = json!({"Name": "x", "IPAM": {"Config": addresses}});
        let refused = format!(
            "invalid network config:\ninvalid auxiliary address spare: parent subnet {other} doesn't contain this address"
        );
        assert_eq!(
            engine.api("POST", "/networks/create", Some(&body)),
            (400, json!({"message": refused}))
        );
        cli.run(&["run", "--rm", "--network", "nosuch", "busybox", "true"])
            .refuses(125, "network nosuch not found");
        cli.run(&[
            "run",
            "--rm",
            "--network",
            "host",
            "--ip",
            "10.9.9.9",
            "busybox",
            "true",
        ])
        .refuses(
            125,
            "user specified IP address is supported on user defined networks only",
        );
        // A full ID takes precedence over a network with this name.
        let id = cli
            .run(&["network", "inspect", "-f", "{{.Id}}", "taken"])
            .ok();
        cli.run(&["network", "create", "--label", "old=1", &id])
            .ok();
        assert_eq!(
            cli.run(&["network", "inspect", "-f", "{{.Name}}", &id])
                .ok(),
            "taken"
        );
        assert!(
            cli.run(&["network", "prune", "-f", "--filter", "label=old"])
                .ok()
                .contains(&id)
        );
        cli.run(&["run", "--rm", "--network-alias", "x", "busybox", "true"])
            .refuses(125, "only supported for user-defined networks");
        // Debian's build of the docker CLI capitalizes the first letter.
        cli.run(&["run", "--rm", "-p", "abc", "busybox", "true"])
            .refuses(125, "nvalid containerPort: abc");
        cli.run(&["run", "--rm", "-p", "[::1]::80", "busybox", "true"])
            .refuses(125, "the container has no IPv6 address in network bridge");
        cli.run(&["run", "--rm", "--link", "nosuch", "busybox", "true"])
            .refuses(125, "could not get container for nosuch");
        let warned = cli.run(&[
            "run",
            "--rm",
            "--network",
            "host",
            "-p",
            "80",
            "busybox",
            "true",
        ]);
        assert!(
            warned
                .err()
                .contains("Published ports are discarded when using host network mode"),
            "{}",
            warned.err()
        );
        assert_eq!(
            cli.run(&[
                "network",
                "ls",
                "-f",
                "name=^taken$",
                "--format",
                "{{.Name}}"
            ])
            .ok(),
            "taken"
        );
        // The rejected commands have created nothing.
        assert_eq!(
            cli.run(&["network", "ls", "--format", "{{.Name}}"]).ok(),
            "bridge\nhost\nnone\ntaken"
        );
        assert_eq!(
            cli.run(&[
                "network",
                "inspect",
                "-f",
                "{{.Driver}} {{.Scope}}",
                "taken"
            ])
            .ok(),
            "bridge local"
        );
        cli.run(&["network", "rm", "taken"]).ok();
    });
}

#[test]
fn address_families_can_be_options() {
    const IPV4: &str = "com.docker.network.enable_ipv4";
    const IPV6: &str = "com.docker.network.enable_ipv6";
    let engine = Engine::start();
    engine.configure(&json!({"default-network-opts": {"bridge": {IPV6: "false"}}}));
    engine.kill9();
    engine.restart();
    let cli = engine.cli(Program::Docker);
    let created = |args: &[&str], name: &str| {
        cli.run(&[&["network", "create"][..], args, &[name]].concat())
            .ok();
        let shown = engine.get(&format!("/networks/{name}"));
        let options = [IPV4, IPV6].map(|key| shown["Options"][key].clone());
        (
            [&shown["EnableIPv4"], &shown["EnableIPv6"]].map(|enabled| enabled == true),
            options,
        )
    };
    let none = serde_json::Value::Null;
    assert_eq!(
        created(&[], "usual"),
        ([true, false], [none.clone(), json!("false")])
    );
    // What the request says itself replaces the option.
    assert_eq!(
        created(&["--ipv6"], "set"),
        ([true, true], [none.clone(), none])
    );
    let (off, on) = (format!("{IPV4}=false"), format!("{IPV6}=true"));
    assert_eq!(
        created(&["-o", &off, "-o", &on], "six"),
        ([false, true], [json!("false"), json!("true")])
    );
    // A subnet of a family that the network does not have is ignored.
    let subnet = FreeSubnet::new();
    let flags = ["--ipv6=false", "--subnet", &subnet.v6()];
    assert_eq!(created(&flags, "four").0, [true, false]);
    let config = engine.get("/networks/four")["IPAM"]["Config"].clone();
    assert_eq!(config.as_array().unwrap().len(), 1, "{config}");
    assert!(!config[0]["Subnet"].as_str().unwrap().contains(':'));
    cli.run(&["network", "create", "-o", &format!("{IPV4}=maybe"), "x"])
        .refuses(1, &format!("driver-opt {IPV4:?} is not a valid bool"));
}

#[test]
fn networks_are_listed_at_both_paths() {
    let engine = Engine::start();
    let listed = engine.get("/networks/");
    assert_eq!(listed.as_array().unwrap().len(), 3);
    assert_eq!(listed, engine.get("/networks"));
}

#[test]
fn network_operations_emit_events() {
    let engine = Engine::start();
    let mut events = engine.events(&format!("filters={}", escape(r#"{"type": ["network"]}"#)));
    let cli = engine.cli(Program::Docker);
    cli.run(&["network", "create", "seen"]).ok();
    up(cli, "brief", &["--network", "seen"], "true");
    engine.await_state("brief", "exited");
    cli.run(&["network", "rm", "seen"]).ok();
    assert_eq!(
        events.until("destroy"),
        [
            "network create",
            "network connect",
            "network disconnect",
            "network destroy"
        ]
    );
}

#[test]
fn networks_use_the_configuration_file() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    up(cli, "busy", &[], "sleep 300");
    let (default, pool) = (FreeSubnet::new(), FreeSubnet::new());
    let (server, gateway) = (default.v4_host(99), default.v4_host(77));
    let configured = json!({
        "bip": default.v4_part(1, 24), "fixed-cidr": default.v4_part(128, 25), "mtu": 1400, "ip": "127.0.0.1",
        "default-address-pools": [{"base": pool.v4(), "size": 28}],
        "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1380"}},
        "dns": [server], "dns-search": ["example.test"], "dns-opts": ["timeout:1"], "host-gateway-ip": gateway,
    });
    engine.configure(&configured);
    let subnet = |engine: &Engine| {
        engine.get("/networks/bridge")["IPAM"]["Config"][0]["Subnet"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let before = subnet(&engine);
    engine.kill9();
    engine.restart();
    assert_eq!(
        subnet(&engine),
        before,
        "a network is not changed under a container that runs"
    );
    cli.run(&["rm", "-f", "busy"]).ok();
    engine.kill9();
    engine.restart();
    assert_eq!(subnet(&engine), default.v4());
    assert_eq!(
        engine.get("/info")["DefaultAddressPools"],
        json!([{"Base": pool.v4(), "Size": 28}])
    );
    up(
        cli,
        "web",
        &["-p", "80", "--add-host", "outside:host-gateway"],
        SERVES,
    );
    assert!(published(cli, "web").ip().is_loopback());
    serves(published(cli, "web"), "web");
    let endpoint = engine.inspect("web")["NetworkSettings"]["Networks"]["bridge"].clone();
    assert_eq!(endpoint["Gateway"], default.v4_host(1));
    let address = endpoint["IPAddress"].as_str().unwrap();
    assert!(
        address.rsplit('.').next().unwrap().parse::<u8>().unwrap() >= 128,
        "{address}"
    );
    assert_eq!(inside(cli, "web", "cat /sys/class/net/eth0/mtu"), "1400");
    let files = inside(cli, "web", "cat /etc/resolv.conf /etc/hosts");
    for line in [
        &format!("nameserver {server}"),
        "search example.test",
        "options timeout:1",
        &format!("{gateway}\toutside"),
    ] {
        assert!(
            files.lines().any(|found| found == line),
            "{line} is not in {files}"
        );
    }
    cli.run(&["network", "create", "--ipv6=false", "small"])
        .ok();
    assert_eq!(
        engine.get("/networks/small")["IPAM"]["Config"][0]["Subnet"],
        pool.v4_part(0, 28)
    );
    up(cli, "member", &["--network", "small"], "sleep 300");
    assert_eq!(inside(cli, "member", "cat /sys/class/net/eth0/mtu"), "1380");
    // Without the settings, the defaults apply again.
    cli.run(&["rm", "-f", "web", "member"]).ok();
    engine.configure(&json!({}));
    engine.kill9();
    engine.restart();
    assert_eq!(
        engine.get("/networks/bridge")["Options"]["com.docker.network.driver.mtu"],
        "1500"
    );
}

/// Whether packets of the default network reach another host, with and without a route back to the network.
#[test]
fn forwarding_and_masquerading_are_settings() {
    let image = whelk_tests::images::busybox();
    let reaches = |settings: &str| {
        let output = whelk_tests::private_host(&format!(
            r#"echo 0 >/proc/sys/net/ipv4/ip_forward
            # Not the one that a shell may have built in.
            ip() {{ /bin/ip "$@"; }}
            ip netns add far && ip link add ext type veth peer name eth0 netns far || exit 6
            ip addr add 198.51.100.1/24 dev ext && ip link set ext up || exit 6
            ip -n far addr add 198.51.100.2/24 dev eth0 && ip -n far link set eth0 up || exit 6
            echo "{{\"instance\": \"$name\"{settings}}}" >/etc/whelk/daemon.json
            "$0" load -q -i {image} >/dev/null || exit 8
            "$0" run -d --name client busybox sleep 300 >/dev/null || exit 9
            far() {{ "$0" exec client ping -c 3 -W 3 198.51.100.2 >/dev/null && echo yes || echo no; }}
            far
            ip -n far route add default via 198.51.100.1
            far
            cat /proc/sys/net/ipv4/ip_forward
            "$0" rm -f client >/dev/null
            end_engine"#,
            image = image.display(),
        ));
        assert!(output.status.success(), "{settings}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().take(3).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(reaches(""), "yes yes 1");
    assert_eq!(reaches(r#", \"ip-masq\": false"#), "no yes 1");
    assert_eq!(reaches(r#", \"ip-forward\": false"#), "no no 0");
}

/// Whether another host is reached that has a route back to one of this host's addresses only.
#[test]
fn a_network_sets_the_address_of_outgoing_packets() {
    let image = whelk_tests::images::busybox();
    let output = whelk_tests::private_host(&format!(
        r#"ip() {{ /bin/ip "$@"; }}
        ip netns add far && ip link add ext type veth peer name eth0 netns far || exit 6
        ip addr add 198.51.100.1/24 dev ext && ip addr add 198.51.100.7/24 dev ext && ip link set ext up || exit 6
        ip -n far addr add 198.51.100.2/32 dev eth0 && ip -n far link set eth0 up || exit 6
        ip -n far route add 198.51.100.7/32 dev eth0 || exit 6
        echo "{{\"instance\": \"$name\"}}" >/etc/whelk/daemon.json
        "$0" load -q -i {image} >/dev/null || exit 8
        "$0" network create --ipv6=false -o com.docker.network.host_ipv4=198.51.100.7 own >/dev/null || exit 9
        "$0" network create --ipv6=false usual >/dev/null || exit 9
        for network in own usual; do
            "$0" run --rm --network $network busybox ping -c 3 -W 3 198.51.100.2 >/dev/null && echo yes || echo no
        done
        end_engine"#,
        image = image.display(),
    ));
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let reached: Vec<&str> = text.lines().take(2).collect();
    assert_eq!(reached, ["yes", "no"], "{output:?}");
}

#[test]
fn rejects_conflicting_network_settings() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&["network", "create", "--ipv6=false", "app"]).ok();
    up(cli, "donor", &["--network", "app"], "sleep 300");
    let refused = |config: serde_json::Value,
                   host: serde_json::Value,
                   places: serde_json::Value,
                   text: &str| {
        let mut body = json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": host, "NetworkingConfig": {"EndpointsConfig": places}});
        body.as_object_mut()
            .unwrap()
            .extend(config.as_object().unwrap().clone());
        let (status, answer) = engine.api("POST", "/containers/create?name=refused", Some(&body));
        assert_eq!(
            (status, answer["message"].as_str()),
            (400, Some(text)),
            "{body}"
        );
    };
    const ALIAS: &str =
        "network-scoped alias is supported only for containers in user defined networks";
    const ADDRESS: &str = "user specified IP address is supported on user defined networks only";
    let of = |name: &str, text: &str| {
        format!("invalid config for network {name}: invalid endpoint settings:\n{text}")
    };
    let none = || json!({});
    for name in ["bridge", "host", "none"] {
        refused(
            none(),
            json!({"NetworkMode": name}),
            json!({name: {"Aliases": ["x"]}}),
            &of(name, ALIAS),
        );
    }
    refused(
        none(),
        none(),
        json!({"default": {"Aliases": ["x"]}}),
        &of("bridge", ALIAS),
    );
    const MODE: &str = "container:donor";
    let conflicts = [
        (
            none(),
            json!({"NetworkMode": MODE, "Dns": ["1.1.1.1"]}),
            "conflicting options: dns and the network mode",
        ),
        (
            none(),
            json!({"NetworkMode": MODE, "ExtraHosts": ["a:1.2.3.4"]}),
            "conflicting options: custom host-to-IP mapping and the network mode",
        ),
        (
            json!({"MacAddress": "02:42:ac:11:00:09"}),
            json!({"NetworkMode": MODE}),
            "container-wide MAC address no longer supported; use endpoint-specific MAC address instead",
        ),
        (
            json!({"Hostname": "x"}),
            json!({"NetworkMode": MODE}),
            "conflicting options: hostname and the network mode",
        ),
    ];
    for (config, host, text) in conflicts {
        refused(config, host, none(), text);
    }
    let place = |settings: serde_json::Value| json!({MODE: settings});
    let shares = || json!({"NetworkMode": MODE});
    refused(
        none(),
        shares(),
        place(json!({"IPAMConfig": {"IPv4Address": "10.1.1.1"}})),
        &of(MODE, ADDRESS),
    );
    refused(
        none(),
        shares(),
        place(json!({"MacAddress": "02:42:ac:11:00:09"})),
        "conflicting options: mac-address and the network mode",
    );
    refused(
        none(),
        json!({"PidMode": "container:nosuch"}),
        none(),
        "No such container: nosuch",
    );
    refused(
        none(),
        json!({"IpcMode": "container:nosuch"}),
        none(),
        "No such container: nosuch",
    );
    refused(
        none(),
        json!({"NetworkMode": "container:nosuch"}),
        none(),
        "joining network namespace of container: No such container: nosuch",
    );
    refused(
        none(),
        json!({"NetworkMode": "container:nosuch", "Links": ["donor"]}),
        none(),
        "conflicting options: container type network can't be used with links. This would result in undefined behavior",
    );
}

#[test]
fn the_subnet_of_ipv4_is_listed_first() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let subnet = FreeSubnet::new();
    let (four, six) = (subnet.v4(), subnet.v6());
    cli.run(&[
        "network", "create", "--ipv6", "--subnet", &six, "--subnet", &four, "both",
    ])
    .ok();
    let shown = engine.get("/networks/both");
    let listed = |index: usize| shown["IPAM"]["Config"][index]["Subnet"].as_str();
    assert_eq!(listed(0), Some(four.as_str()));
    assert!(listed(1).is_some_and(|subnet| subnet.contains(':')));
    cli.run(&["network", "rm", "both"]).ok();
}

#[test]
fn containers_reach_each_other_by_link_local_addresses() {
    let engine = Engine::start();
    engine.both(|cli| {
        cli.run(&["network", "create", "near"]).ok();
        for (name, address) in [("one", "169.254.7.7"), ("two", "169.254.8.8")] {
            let flags = ["--network", "near", "--link-local-ip", address];
            up(cli, name, &flags, "sleep 300");
        }
        up(cli, "three", &[], "sleep 300");
        let flags = ["--link-local-ip", "169.254.9.9", "near", "three"];
        cli.run(&[&["network", "connect"][..], &flags].concat())
            .ok();
        let check = || {
            for (from, to) in [
                ("one", "169.254.8.8"),
                ("two", "169.254.9.9"),
                ("three", "169.254.7.7"),
            ] {
                inside(cli, from, &format!("ping -c 1 -W 30 {to}"));
            }
        };
        check();
        engine.kill9();
        engine.restart();
        check();
        cli.run(&["restart", "-t", "0", "one", "two", "three"]).ok();
        check();
        // An address that it was not given is not its own.
        let forge =
            "ip addr add 169.254.10.10/16 dev eth0; ping -c 1 -W 1 -I 169.254.10.10 169.254.8.8";
        up(
            cli,
            "forger",
            &["--network", "near", "--cap-add", "NET_ADMIN"],
            "sleep 300",
        );
        cli.run(&["exec", "forger", "sh", "-c", forge]).exits(1);
        cli.run(&["rm", "-f", "one", "two", "three", "forger"]).ok();
        cli.run(&["network", "rm", "near"]).ok();
    });
}

#[test]
fn link_local_subnets_and_small_mtus_are_supported() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&[
        "network",
        "create",
        "--ipv6",
        "--subnet",
        "fe80::/64",
        "near",
    ])
    .ok();
    let shown = cli
        .run(&[
            "run",
            "--rm",
            "--network",
            "near",
            "busybox",
            "ip",
            "-6",
            "route",
        ])
        .ok();
    assert!(shown.contains("default via fe80::1"), "{shown}");
    cli.run(&["network", "rm", "near"]).ok();
    cli.run(&[
        "network", "create", "--ipv6", "--subnet", "fe80::/9", "wide",
    ])
    .refuses(1, "clashes with the Link-Local prefix 'fe80::/64'");
    const MTU: &str = "com.docker.network.driver.mtu=1000";
    cli.run(&["network", "create", "-o", MTU, "small"]).ok();
    assert_eq!(engine.get("/networks/small")["EnableIPv6"], false);
    let shown = cli
        .run(&[
            "run",
            "--rm",
            "--network",
            "small",
            "busybox",
            "ip",
            "link",
            "show",
            "eth0",
        ])
        .ok();
    assert!(shown.contains("mtu 1000"), "{shown}");
    cli.run(&[
        "network",
        "create",
        "-o",
        "com.docker.network.driver.mtu=10",
        "tiny",
    ])
    .refuses(1, "invalid MTU of network tiny: 10: must be 68 to 65535");
    cli.run(&["network", "create", "--ipv6", "-o", MTU, "six"])
        .refuses(1, "invalid MTU: 1000: IPv6 needs at least 1280");
    engine.configure(&json!({"ipv6": true, "fixed-cidr-v6": "fe80::/64"}));
    engine.kill9();
    engine.restart();
    assert_eq!(
        engine.get("/networks/bridge")["IPAM"]["Config"][1]["Subnet"],
        "fe80::/64"
    );
    let host = ["run", "--rm", "--add-host", "outside:host-gateway"];
    let look = ["busybox", "sh", "-c", "ip -6 route; cat /etc/hosts"];
    let shown = cli.run(&[&host[..], &look].concat()).ok();
    assert!(shown.contains("default via fe80::"), "{shown}");
    // `host-gateway` stands for the host's addresses of both families.
    let addresses: Vec<&str> = shown
        .lines()
        .filter_map(|line| line.strip_suffix("\toutside"))
        .collect();
    assert!(
        matches!(addresses[..], [_, "fe80::1"]) && addresses[0].contains('.'),
        "{shown}"
    );
    // The default network has a larger subnet than other networks.
    let subnet = engine.get("/networks/bridge")["IPAM"]["Config"][0]["Subnet"]
        .as_str()
        .unwrap()
        .to_owned();
    let bits: u8 = subnet.rsplit('/').next().unwrap().parse().unwrap();
    assert!(bits <= 22, "{subnet}");
}

#[test]
fn containers_do_not_reach_each_other_without_icc() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let (default, six) = (FreeSubnet::new(), FreeSubnet::new());
    for icc in [true, false] {
        engine.configure(&json!({
            "icc": icc, "bip": default.v4_part(1, 24), "ipv6": true, "bip6": format!("{}/64", six.v6_host("1")),
        }));
        engine.kill9();
        engine.restart();
        up(cli, "web", &[], SERVES);
        up(cli, "client", &[], "sleep 300");
        let endpoint = engine.inspect("web")["NetworkSettings"]["Networks"]["bridge"].clone();
        assert_eq!(endpoint["IPv6Gateway"], six.v6_host("1"));
        let address = endpoint["IPAddress"].as_str().unwrap();
        let asked = format!("timeout 3 wget -qO- http://{address}/ || echo unreachable");
        // The server may not listen yet.
        let expected = if icc { "web" } else { "unreachable" };
        whelk_tests::eventually(expected, || {
            (inside(cli, "client", &asked) == expected).then_some(())
        });
        whelk_tests::eventually("it to serve", || {
            (inside(cli, "web", &asked) == "web").then_some(())
        });
        if !icc {
            assert_eq!(inside(cli, "client", &asked), "unreachable");
        }
        cli.run(&["rm", "-f", "web", "client"]).ok();
    }
}
