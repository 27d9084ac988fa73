//! Endpoints of containers in networks: connecting and disconnecting, addresses, aliases and the default
//! route.

use serde_json::json;
use whelk_tests::serving::{SERVES, inside, published, resolves_not, serves, up};
use whelk_tests::{Engine, FreeSubnet, Program};

#[test]
fn a_running_container_is_connected_and_disconnected() {
    let engine = Engine::start();
    engine.both(|cli| {
        cli.run(&["network", "create", "front"]).ok();
        cli.run(&["network", "create", "back"]).ok();
        up(cli, "web", &["--network", "front"], "sleep 600");
        up(cli, "db", &["--network", "back"], SERVES);
        resolves_not(cli, "web", "db");
        cli.run(&["network", "connect", "--alias", "www", "back", "web"])
            .ok();
        assert_eq!(
            inside(
                cli,
                "web",
                "until wget -qO- http://db/ 2>/dev/null; do sleep 0.1; done"
            ),
            "db"
        );
        assert!(inside(cli, "db", "ping -c1 -w30 www").contains("1 packets received"));
        assert_eq!(
            inside(cli, "web", "ls /sys/class/net | tr '\\n' ' '"),
            "eth0 eth1 lo ".trim_end()
        );
        cli.run(&["network", "connect", "back", "web"])
            .refuses(1, "already exists in network back");
        cli.run(&["network", "rm", "back"])
            .refuses(1, "has active endpoints");
        cli.run(&["network", "disconnect", "back", "web"]).ok();
        resolves_not(cli, "web", "db");
        cli.run(&["network", "disconnect", "back", "web"])
            .refuses(1, "is not connected to network back");
        // The connection is kept over a restart of the container.
        cli.run(&["network", "connect", "back", "web"]).ok();
        cli.run(&["restart", "-t", "0", "web"]).ok();
        assert!(inside(cli, "web", "nslookup db").contains("Address"));
        cli.run(&["rm", "-f", "web", "db"]).ok();
        let removed = cli.run(&["network", "prune", "-f"]).ok();
        assert!(
            removed.contains("front") && removed.contains("back"),
            "{removed}"
        );
    });
}

#[test]
fn endpoint_options_take_effect() {
    let engine = Engine::start();
    engine.both(|cli| {
        cli.run(&["network", "create", "--ipv6=false", "opts"]).ok();
        let option = "name=opts,driver-opt=com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1,driver-opt=com.docker.network.endpoint.ifname=lan0";
        up(cli, "set", &["--network", option], "sleep 300");
        assert_eq!(inside(cli, "set", "cat /proc/sys/net/ipv4/conf/lan0/log_martians"), "1");
        for (option, text) in [
            ("com.docker.network.endpoint.sysctls=net.core.somaxconn=1", "unrecognised network interface sysctl"),
            ("com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.../../x=1", "unrecognised network interface sysctl"),
            ("com.docker.network.some=1", "endpoint option com.docker.network.some: not available"),
        ] {
            let network = format!("name=opts,driver-opt={option}");
            cli.run(&["run", "--rm", "--network", &network, "busybox", "true"]).refuses(125, text);
        }
        // The name of an interface that the container has already: it keeps that one.
        cli.run(&["network", "create", "--ipv6=false", "more"]).ok();
        let name = "com.docker.network.endpoint.ifname=lan0";
        cli.run(&["network", "connect", "--driver-opt", name, "more", "set"]).refuses(1, "to \"lan0\": file exists");
        assert!(inside(cli, "set", "ip addr show lan0").contains("inet "));
        assert!(engine.get("/networks/more")["Containers"].as_object().unwrap().is_empty());
        cli.run(&["rm", "-f", "set"]).ok();
        cli.run(&["network", "rm", "opts", "more"]).ok();
    });
}

#[test]
fn requested_ip_and_mac_addresses_are_assigned() {
    let engine = Engine::start();
    let subnet = FreeSubnet::new();
    let (gateway, fixed) = (subnet.v4_host(7), subnet.v4_host(20));
    engine.both(|cli| {
        let create = [
            "network",
            "create",
            "--subnet",
            &subnet.v4(),
            "--gateway",
            &gateway,
            "--ip-range",
            &subnet.v4_part(128, 25),
            "plan",
        ];
        cli.run(&create).ok();
        up(
            cli,
            "fixed",
            &[
                "--network",
                "plan",
                "--ip",
                &fixed,
                "--mac-address",
                "02:aa:bb:cc:dd:ee",
            ],
            "sleep 600",
        );
        let shown = inside(cli, "fixed", "ip addr show eth0; ip route");
        for part in [
            &format!("{fixed}/24"),
            "02:aa:bb:cc:dd:ee",
            &format!("default via {gateway}"),
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        up(cli, "ranged", &["--network", "plan"], "sleep 600");
        let address = engine.inspect("ranged")["NetworkSettings"]["Networks"]["plan"]["IPAddress"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            address.rsplit('.').next().unwrap().parse::<u8>().unwrap() >= 128,
            "{address}"
        );
        cli.run(&[
            "run",
            "--rm",
            "--network",
            "plan",
            "--ip",
            &fixed,
            "busybox",
            "true",
        ])
        .refuses(125, "Address already in use");
        cli.run(&[
            "run",
            "--rm",
            "--network",
            "plan",
            "--ip",
            "10.1.2.3",
            "busybox",
            "true",
        ])
        .refuses(125, "10.1.2.3");
        cli.run(&["run", "--rm", "--ip", "172.17.0.9", "busybox", "true"])
            .refuses(125, "user specified IP address is supported");
        cli.run(&["rm", "-f", "fixed", "ranged"]).ok();
        cli.run(&["network", "rm", "plan"]).ok();
    });
}

#[test]
fn the_default_route_is_the_network_with_the_highest_priority() {
    let engine = Engine::start();
    let (low, high) = (FreeSubnet::new(), FreeSubnet::new());
    let default = |subnet: &FreeSubnet| format!("default via {}", subnet.v4_host(1));
    engine.both(|cli| {
        cli.run(&[
            "network",
            "create",
            "--subnet",
            &low.v4(),
            "--ipv6=false",
            "low",
        ])
        .ok();
        cli.run(&[
            "network",
            "create",
            "--subnet",
            &high.v4(),
            "--ipv6=false",
            "high",
        ])
        .ok();
        let flags = [
            "--network",
            "name=low",
            "--network",
            "name=high,gw-priority=10",
        ];
        up(cli, "two", &flags, "sleep 600");
        assert!(inside(cli, "two", "ip route").contains(&default(&high)));
        cli.run(&["network", "disconnect", "high", "two"]).ok();
        assert!(inside(cli, "two", "ip route").contains(&default(&low)));
        cli.run(&["rm", "-f", "two"]).ok();
        cli.run(&["network", "rm", "low", "high"]).ok();
    });
}

#[test]
fn endpoint_state_sent_by_clients_is_ignored() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    up(cli, "first", &["-p", "127.0.0.1::80"], SERVES);
    let address = published(cli, "first");
    let endpoint = engine.inspect("first")["NetworkSettings"]["Networks"]["bridge"].clone();
    let body = json!({"Image": "busybox", "Cmd": ["true"], "NetworkingConfig": {"EndpointsConfig": {"bridge": endpoint}}});
    engine.create("copy", &body);
    let copied = engine.inspect("copy")["NetworkSettings"]["Networks"]["bridge"].clone();
    assert_eq!(
        (copied["EndpointID"].as_str(), copied["IPAddress"].as_str()),
        (Some(""), Some(""))
    );
    engine.kill9();
    engine.restart();
    serves(address, "first");
}

#[test]
fn a_container_is_connected_to_its_requested_networks() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    for name in ["one", "two"] {
        cli.run(&["network", "create", "--ipv6=false", name]).ok();
    }
    let check = |mode: &str, places: &[&str], expected: &str| {
        let places: serde_json::Map<String, serde_json::Value> = places
            .iter()
            .map(|place| ((*place).to_owned(), json!({})))
            .collect();
        let body = json!({
            "Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": mode}, "NetworkingConfig": {"EndpointsConfig": places},
        });
        engine.create("placed", &body);
        let (status, answer) = engine.api("POST", "/containers/placed/start", None);
        let found = if status == 204 {
            let networks = engine.inspect("placed")["NetworkSettings"]["Networks"]
                .as_object()
                .unwrap()
                .clone();
            let names: Vec<&str> = networks.keys().map(String::as_str).collect();
            format!(
                "{} {}",
                names.join(","),
                inside(cli, "placed", "ls /sys/class/net | tr '\\n' ' '")
            )
        } else {
            format!("{status} {}", answer["message"].as_str().unwrap())
        };
        assert_eq!(found.trim_end(), expected, "{mode:?} {places:?}");
        cli.run(&["rm", "-f", "placed"]).ok();
    };
    for mode in ["", "default", "bridge"] {
        check(mode, &["one", "two"], "one,two eth0 eth1 lo");
        check(mode, &[], "bridge eth0 lo");
        check(mode, &["default", "two"], "bridge,two eth0 eth1 lo");
    }
    check("one", &["two"], "two eth0 lo");
    check("one", &["one", "two"], "one,two eth0 eth1 lo");
    check("", &["none"], "none lo");
    const PREFIX: &str = "400 failed to set up container networking:";
    const PRIVATE: &str = "container cannot be connected to multiple networks with one of the networks in private (none) mode";
    const FOR_HOST: &str =
        "cannot connect container to host network - container must be created in host network mode";
    check("", &["none", "two"], &format!("{PREFIX} {PRIVATE}"));
    check("", &["host"], &format!("{PREFIX} {FOR_HOST}"));
    check(
        "one",
        &["nosuch"],
        "404 failed to set up container networking: network nosuch not found",
    );
}

#[test]
fn a_container_can_be_disconnected_from_none() {
    let engine = Engine::start();
    engine.both(|cli| {
        cli.up("alone", &[], &["sleep", "600"]);
        let members = || {
            engine.api("GET", "/networks/none", None).1["Containers"]
                .as_object()
                .map_or(0, serde_json::Map::len)
        };
        assert_eq!(members(), 1);
        cli.run(&["network", "disconnect", "none", "alone"]).ok();
        assert_eq!(members(), 0);
    });
}
