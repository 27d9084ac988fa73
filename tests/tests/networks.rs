//! Networks as their users see them: published ports, several networks, and what keeps them apart.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::json;
use whelk_network::{Firewall, Links};
use whelk_tests::serving::{SERVES, fetch, inside, published, serves, up};
use whelk_tests::{Engine, Program, escape, eventually};

#[test]
fn a_published_port_leads_to_the_container() {
    let engine = Engine::start();
    engine.both(|cli| {
        up(cli, "web", &["-p", "127.0.0.1::80", "-p", "80/udp"], SERVES);
        let address = published(cli, "web");
        serves(address, "web");
        assert_eq!(cli.run(&["port", "web", "80"]).ok(), address.to_string());
        cli.run(&["port", "web", "81"])
            .refuses(1, "No public port '81' published for web");
        let shown = cli.run(&["ps", "--format", "{{.Ports}}"]).ok();
        assert!(
            shown.contains(&format!("{address}->80/tcp")) && shown.contains("->80/udp"),
            "{shown}"
        );
        cli.run(&["stop", "-t", "0", "web"]).ok();
        assert_eq!(fetch(address), None);
        assert_eq!(cli.run(&["port", "web"]).ok(), "");
        cli.run(&["rm", "web"]).ok();
    });
}

#[test]
fn a_port_in_use_names_who_has_it() {
    let engine = Engine::start();
    let other = Engine::start();
    engine.both(|cli| {
        up(cli, "first", &["-p", "127.0.0.1::80"], SERVES);
        let address = published(cli, "first");
        let wanted = format!("{address}:80");
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", engine.pid("first"))).unwrap();
        let shim = status
            .lines()
            .find_map(|line| line.strip_prefix("PPid:"))
            .unwrap()
            .trim();
        cli.run(&["run", "--name", "second", "-p", &wanted, "busybox", "true"])
            .refuses(125, "by container first");
        assert_eq!(engine.inspect("second")["State"]["Status"], "created");
        other
            .cli(cli.program())
            .run(&["run", "--rm", "-p", &wanted, "busybox", "true"])
            .refuses(125, &format!("(by process {} (whelk-shim))", shim));
        // What was refused has left nothing that would be in the way now.
        cli.run(&["rm", "-f", "first"]).ok();
        other
            .cli(cli.program())
            .run(&["run", "--rm", "-p", &wanted, "busybox", "true"])
            .ok();
        cli.run(&["start", "second"]).ok();
    });
    // A process of the host.
    let cli = engine.cli(Program::Docker);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let wanted = format!("127.0.0.1:{}:80", listener.local_addr().unwrap().port());
    cli.run(&["run", "--rm", "-p", &wanted, "busybox", "true"])
        .refuses(125, &format!("process {}", std::process::id()));
    drop(listener);
    cli.run(&["run", "--rm", "-p", &wanted, "busybox", "true"])
        .ok();
}

#[test]
fn a_port_is_free_again_after_each_of_many_starts() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    up(cli, "web", &["-p", "127.0.0.1::80"], SERVES);
    let address = published(cli, "web");
    cli.run(&["rm", "-f", "web"]).ok();
    let id = engine.create(
        "again",
        &json!({
            "Image": "busybox", "Cmd": ["sh", "-c", SERVES, "again"],
            "HostConfig": {"PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": address.port().to_string()}]}},
        }),
    );
    for round in 0..1000 {
        let (status, answer) = engine.api("POST", &format!("/containers/{id}/start"), None);
        assert_eq!(status, 204, "round {round}: {answer}");
        if round % 100 == 0 {
            serves(address, "again");
        }
        let (status, answer) = engine.api("POST", &format!("/containers/{id}/stop?t=0"), None);
        assert_eq!(status, 204, "round {round}: {answer}");
    }
}

#[test]
fn exposed_ports_and_ranges_get_ports_of_the_host() {
    let engine = Engine::start();
    engine.both(|cli| {
        up(
            cli,
            "all",
            &["-P", "--expose", "80", "--expose", "90-91/udp"],
            "sleep 60",
        );
        let ports = cli.run(&["port", "all"]).ok();
        assert_eq!(
            ports
                .lines()
                .map(|line| line.split(" -> ").next().unwrap())
                .collect::<Vec<_>>(),
            ["80/tcp", "90/udp", "91/udp"]
        );
        cli.run(&["rm", "-f", "all"]).ok();
        up(cli, "only", &["--expose", "80"], "sleep 60");
        assert_eq!(cli.run(&["ps", "--format", "{{.Ports}}"]).ok(), "80/tcp");
        cli.run(&["rm", "-f", "only"]).ok();
    });
}

#[test]
fn a_running_container_joins_and_leaves_networks() {
    let engine = Engine::start();
    engine.both(|cli| {
        cli.run(&["network", "create", "front"]).ok();
        cli.run(&["network", "create", "back"]).ok();
        up(cli, "web", &["--network", "front"], "sleep 60");
        up(cli, "db", &["--network", "back"], SERVES);
        cli.run(&["exec", "web", "nslookup", "db"]).fails(1);
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
        assert!(inside(cli, "db", "ping -c1 -w2 www").contains("1 packets received"));
        assert_eq!(
            inside(cli, "web", "ls /sys/class/net | tr '\\n' ' '"),
            "eth0 eth1 lo ".trim_end()
        );
        cli.run(&["network", "connect", "back", "web"])
            .refuses(1, "already exists in network back");
        cli.run(&["network", "rm", "back"])
            .refuses(1, "has active endpoints");
        cli.run(&["network", "disconnect", "back", "web"]).ok();
        cli.run(&["exec", "web", "nslookup", "db"]).fails(1);
        cli.run(&["network", "disconnect", "back", "web"])
            .refuses(1, "is not connected to network back");
        // Connecting survives a restart of the container.
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
fn networks_are_kept_apart() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&["network", "create", "one"]).ok();
    cli.run(&["network", "create", "--internal", "inner"]).ok();
    up(
        cli,
        "aa",
        &["--network", "one", "-p", "127.0.0.1::80"],
        SERVES,
    );
    up(cli, "bb", &[], "sleep 60");
    up(cli, "cc", &["--network", "inner"], SERVES);
    let address = |name: &str, network: &str| {
        engine.inspect(name)["NetworkSettings"]["Networks"][network]["IPAddress"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let (a, c) = (address("aa", "one"), address("cc", "inner"));
    up(cli, "dd", &["--network", "inner"], "sleep 60");
    assert_eq!(
        inside(
            cli,
            "dd",
            &format!("until wget -qO- http://{c}/ 2>/dev/null; do sleep 0.1; done")
        ),
        "cc",
        "it does serve"
    );
    // Without an answer, busybox' wget ends by a signal or with an error.
    let apart = |args: &[&str]| assert_ne!(cli.run(args).code, 0, "{args:?}");
    serves(published(cli, "aa"), "aa");
    for (from, to) in [("bb", &a), ("bb", &c), ("aa", &c)] {
        apart(&[
            "exec",
            from,
            "wget",
            "-T",
            "1",
            "-qO-",
            &format!("http://{to}/"),
        ]);
        // Nor by making the host the router.
        let around = format!(
            "ip route add {to} via $(ip route | awk '/default/ {{print $3}}') 2>/dev/null; wget -T 1 -qO- http://{to}/"
        );
        apart(&["exec", "--privileged", from, "sh", "-c", &around]);
    }
    // Published on 127.0.0.1 means there: not by the host's other addresses.
    let gateway = engine.inspect("bb")["NetworkSettings"]["Networks"]["bridge"]["Gateway"]
        .as_str()
        .unwrap()
        .to_owned();
    let port = published(cli, "aa").port();
    apart(&[
        "exec",
        "bb",
        "wget",
        "-T",
        "1",
        "-qO-",
        &format!("http://{gateway}:{port}/"),
    ]);
    // An internal network leads nowhere.
    assert_eq!(inside(cli, "cc", "ip route | grep -c default || true"), "0");
}

#[test]
fn a_routed_networks_containers_are_reached_by_their_own_addresses() {
    const MODE: &str = "com.docker.network.bridge.gateway_mode_ipv4";
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&["network", "create", "-o", &format!("{MODE}=bad"), "way"])
        .refuses(
            1,
            &format!("failed to parse {MODE} value: bad (unknown gateway mode bad)"),
        );
    cli.run(&[
        "network",
        "create",
        "--ipv6=false",
        "--subnet",
        "10.213.31.0/24",
        "-o",
        &format!("{MODE}=routed"),
        "way",
    ])
    .ok();
    let serves_both = format!("httpd -p 81; {SERVES}");
    up(
        cli,
        "web",
        &[
            "--network",
            "way",
            "--ip",
            "10.213.31.5",
            "-p",
            "80",
            "-p",
            "8080:80",
            "-p",
            "53:53/udp",
        ],
        &serves_both,
    );
    let look = || {
        let ports = engine.inspect("web")["NetworkSettings"]["Ports"].clone();
        let none = json!([{"HostIp": "0.0.0.0", "HostPort": ""}]);
        assert_eq!(ports, json!({"80/tcp": none, "53/udp": none}));
        assert_eq!(cli.run(&["port", "web", "80"]).ok(), "0.0.0.0:");
        assert!(
            TcpListener::bind(("127.0.0.1", 8080)).is_ok(),
            "no port of the host's is taken"
        );
        serves("10.213.31.5:80".parse().unwrap(), "web");
        // From another network by the door only; from an internal one not at all.
        let reaches = |from: &str, port: u16| {
            let connect = format!("nc -w 1 10.213.31.5 {port} </dev/null");
            cli.run(&["exec", from, "sh", "-c", &connect]).code == 0
        };
        assert!(reaches("bb", 80) && reaches("web", 81));
        assert!(!reaches("bb", 81) && !reaches("inner", 80));
        assert!(inside(cli, "bb", "ping -c1 -w2 10.213.31.5").contains("1 packets received"));
    };
    up(cli, "bb", &[], "sleep 300");
    cli.run(&["network", "create", "--internal", "closed"]).ok();
    up(cli, "inner", &["--network", "closed"], "sleep 300");
    look();
    let rows = cli
        .run(&["ps", "-f", "name=web", "--format", "{{.Ports}}"])
        .ok();
    assert_eq!(
        rows,
        engine
            .whelk(&["ps", "-f", "name=web", "--format", "{{.Ports}}"])
            .ok()
    );
    engine.kill9();
    engine.restart();
    look();
    // Both ways at once: the host's port for one family, the own address for the other.
    cli.run(&[
        "network",
        "create",
        "--ipv6",
        "-o",
        "com.docker.network.bridge.gateway_mode_ipv6=routed",
        "mixed",
    ])
    .ok();
    up(cli, "mix", &["--network", "mixed", "-p", "80"], SERVES);
    let ports = engine.inspect("mix")["NetworkSettings"]["Ports"]["80/tcp"].clone();
    assert!(
        ports
            .as_array()
            .unwrap()
            .contains(&json!({"HostIp": "::", "HostPort": ""})),
        "{ports}"
    );
    serves(published(cli, "mix"), "mix");
    let six = engine.inspect("mix")["NetworkSettings"]["Networks"]["mixed"]["GlobalIPv6Address"]
        .as_str()
        .unwrap()
        .to_owned();
    serves(format!("[{six}]:80").parse().unwrap(), "mix");
    cli.run(&["rm", "-f", "web"]).ok();
    cli.run(&[
        "run",
        "--rm",
        "--network",
        "way",
        "--ip",
        "10.213.31.5",
        "-p",
        "80",
        "busybox",
        "true",
    ])
    .ok();
}

#[test]
fn a_container_sends_from_its_own_address_only() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    cli.run(&[
        "network",
        "create",
        "--subnet",
        "10.213.7.0/24",
        "--ipv6=false",
        "flat",
    ])
    .ok();
    up(
        cli,
        "liar",
        &[
            "--network",
            "flat",
            "--ip",
            "10.213.7.10",
            "--cap-add",
            "NET_ADMIN",
        ],
        "sleep 60",
    );
    up(
        cli,
        "other",
        &["--network", "flat", "--ip", "10.213.7.11"],
        "sleep 60",
    );
    assert!(inside(cli, "liar", "ping -c1 -w2 10.213.7.11").contains("1 packets received"));
    let lie = "ip addr add 10.213.7.99/24 dev eth0; ping -c1 -w1 -I 10.213.7.99 10.213.7.11";
    cli.run(&["exec", "liar", "sh", "-c", lie]).fails(1);
    // Nor does it speak for another's address in ARP.
    up(
        cli,
        "witness",
        &["--network", "flat", "--ip", "10.213.7.12"],
        "sleep 60",
    );
    let known = |address: &str| {
        inside(
            cli,
            "witness",
            &format!("ping -c1 -w2 {address} >/dev/null; ip neigh show {address}"),
        )
    };
    let (liar, victim) = (known("10.213.7.10"), known("10.213.7.11"));
    assert!(
        liar.contains("02:42:0a:d5:07:0a") && victim.contains("02:42:0a:d5:07:0b"),
        "{liar} {victim}"
    );
    let steal = "ip addr add 10.213.7.11/32 dev eth0; arping -c2 -w3 -U -I eth0 10.213.7.11; true";
    inside(cli, "liar", steal);
    let after = inside(cli, "witness", "ip neigh show 10.213.7.11");
    assert!(after.contains("02:42:0a:d5:07:0b"), "{after}");
}

#[test]
fn ipv6_is_led_and_kept_like_ipv4() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&[
        "network",
        "create",
        "--ipv4=false",
        "--ipv6",
        "--subnet",
        "fd00:213:1::/64",
        "six",
    ])
    .ok();
    cli.run(&[
        "network",
        "create",
        "--ipv6",
        "--subnet",
        "fd00:213:2::/64",
        "both",
    ])
    .ok();
    up(cli, "web", &["--network", "six", "-p", "80"], SERVES);
    up(
        cli,
        "pair",
        &[
            "--network",
            "both",
            "--ip6",
            "fd00:213:2::20",
            "--cap-add",
            "NET_ADMIN",
        ],
        SERVES,
    );
    up(cli, "peer", &["--network", "both"], "sleep 300");
    // An address is not used before it is known to be nobody else's.
    let ping = "until ping6 -c1 -w1 fd00:213:2::20 >/dev/null; do sleep 0.1; done; echo answers";
    assert_eq!(inside(cli, "peer", ping), "answers");
    assert!(inside(cli, "peer", "nslookup -type=aaaa pair").contains("fd00:213:2::20"));
    // Networks are apart in this family too, also by way of the host.
    let address = engine.inspect("web")["NetworkSettings"]["Networks"]["six"]["GlobalIPv6Address"]
        .as_str()
        .unwrap()
        .to_owned();
    // (Whether busybox' ping6 says so with its status depends on when its time is up.)
    let heard = |from: &str, ping: &str| inside(cli, from, &format!("{ping} || true"));
    assert!(heard("peer", &format!("ping6 -c1 -w1 {address}")).contains(" 0 packets received"));
    // And nobody sends from an address that is not its own.
    let from = |add: &str, del: &str| {
        let change =
            |what: &str, host: &str| format!("ip -6 addr {what} fd00:213:2::{host}/64 dev eth0");
        // The kernel looks for a second or two first whether somebody has the address; until then
        // it sends from a link-local one.
        let known = "while ip -6 addr show dev eth0 | grep -q tentative; do sleep 0.1; done";
        heard(
            "pair",
            &format!(
                "{}; {}; {known}; ping6 -c1 -w2 fd00:213:2::1",
                change("add", add),
                change("del", del)
            ),
        )
    };
    assert!(from("99", "20").contains(" 0 packets received"));
    assert!(
        from("20", "99").contains(" 1 packets received"),
        "its own address serves again"
    );
    // From the host, by an address of its own; and after the engine was away.
    let port = engine.inspect("web")["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"]
        .as_str()
        .unwrap()
        .to_owned();
    let at: SocketAddr = format!("[fd00:213:1::1]:{port}").parse().unwrap();
    serves(at, "web");
    // By the host's loopback where it can be led out of it; elsewhere refused at once, for clients
    // to try 127.0.0.1.
    let loopback: SocketAddr = format!("[::1]:{port}").parse().unwrap();
    let alone = [
        "run",
        "-d",
        "--rm",
        "--name",
        "alone",
        "--network",
        "six",
        "-p",
        "[::1]::80",
        "busybox",
        "sh",
        "-c",
        SERVES,
        "alone",
    ];
    if std::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-ip6tables")
        .is_ok_and(|value| value.trim() == "1")
    {
        assert_eq!(
            TcpStream::connect(loopback).unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused
        );
        cli.run(&alone).refuses(
            125,
            "::1 cannot be redirected to containers while the host filters bridged packets",
        );
    } else {
        serves(loopback, "web");
        cli.run(&alone).ok();
        serves(published(cli, "alone"), "alone");
        cli.run(&["rm", "-f", "alone"]).ok();
    }
    engine.kill9();
    engine.restart();
    serves(at, "web");
    assert_eq!(
        engine.inspect("web")["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"],
        port.as_str()
    );
    cli.run(&["network", "disconnect", "six", "web"]).ok();
    cli.run(&["network", "connect", "six", "web"]).ok();
    assert!(
        engine.inspect("web")["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"].is_string(),
        "published again"
    );
}

#[test]
fn options_of_places_in_networks() {
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
        cli.run(&["rm", "-f", "set"]).ok();
        cli.run(&["network", "rm", "opts"]).ok();
    });
}

#[test]
fn a_port_is_published_when_a_network_leads_outside_at_last() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&["network", "create", "--internal", "--ipv6=false", "inner"])
        .ok();
    cli.run(&["network", "create", "--ipv6=false", "outer"])
        .ok();
    up(
        cli,
        "late",
        &["--network", "inner", "-p", "127.0.0.1::80"],
        SERVES,
    );
    assert!(engine.inspect("late")["NetworkSettings"]["Ports"]["80/tcp"][0].is_null());
    cli.run(&["network", "connect", "outer", "late"]).ok();
    serves(published(cli, "late"), "late");
}

#[test]
fn addresses_and_hardware_addresses_are_as_asked() {
    let engine = Engine::start();
    engine.both(|cli| {
        let create = [
            "network",
            "create",
            "--subnet",
            "10.213.8.0/24",
            "--gateway",
            "10.213.8.7",
            "--ip-range",
            "10.213.8.128/25",
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
                "10.213.8.20",
                "--mac-address",
                "02:aa:bb:cc:dd:ee",
            ],
            "sleep 60",
        );
        let shown = inside(cli, "fixed", "ip addr show eth0; ip route");
        for part in [
            "10.213.8.20/24",
            "02:aa:bb:cc:dd:ee",
            "default via 10.213.8.7",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        up(cli, "ranged", &["--network", "plan"], "sleep 60");
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
            "10.213.8.20",
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
fn the_way_out_is_the_network_with_the_highest_priority() {
    let engine = Engine::start();
    engine.both(|cli| {
        cli.run(&[
            "network",
            "create",
            "--subnet",
            "10.213.9.0/24",
            "--ipv6=false",
            "low",
        ])
        .ok();
        cli.run(&[
            "network",
            "create",
            "--subnet",
            "10.213.10.0/24",
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
        up(cli, "two", &flags, "sleep 60");
        assert!(inside(cli, "two", "ip route").contains("default via 10.213.10.1"));
        cli.run(&["network", "disconnect", "high", "two"]).ok();
        assert!(inside(cli, "two", "ip route").contains("default via 10.213.9.1"));
        cli.run(&["rm", "-f", "two"]).ok();
        cli.run(&["network", "rm", "low", "high"]).ok();
    });
}

#[test]
fn another_containers_network_is_shared_whole() {
    let engine = Engine::start();
    engine.both(|cli| {
        up(cli, "owner", &[], SERVES);
        let page = "until wget -qO- http://127.0.0.1/ 2>/dev/null; do sleep 0.1; done";
        assert_eq!(
            cli.run(&[
                "run",
                "--rm",
                "--network",
                "container:owner",
                "busybox",
                "sh",
                "-c",
                page
            ])
            .ok(),
            "owner"
        );
        // Its name is the owner's as well, and stays so.
        let name = cli.run(&["exec", "owner", "hostname"]).ok();
        assert_eq!(
            cli.run(&[
                "run",
                "--rm",
                "--network",
                "container:owner",
                "busybox",
                "hostname"
            ])
            .ok(),
            name
        );
        assert_eq!(cli.run(&["exec", "owner", "hostname"]).ok(), name);
        let refused = cli.run(&[
            "run",
            "--rm",
            "--network",
            "container:owner",
            "-p",
            "80",
            "busybox",
            "true",
        ]);
        refused.refuses(
            125,
            "conflicting options: port publishing and the container type network mode",
        );
        let refused = cli.run(&[
            "run",
            "--rm",
            "--network",
            "container:owner",
            "--expose",
            "80",
            "busybox",
            "true",
        ]);
        refused.refuses(
            125,
            "conflicting options: port exposing and the container type network mode",
        );
        cli.run(&["rm", "-f", "owner"]).ok();
    });
}

#[test]
fn networks_outlive_an_engine_that_is_killed() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&["network", "create", "app"]).ok();
    up(
        cli,
        "web",
        &["--network", "app", "-p", "127.0.0.1::80"],
        SERVES,
    );
    up(cli, "client", &["--network", "app"], "sleep 300");
    let address = published(cli, "web");
    serves(address, "web");
    let before = engine.get("/networks/app");
    for _ in 0..5 {
        engine.kill9();
        // Nobody is needed for packets to flow, and nobody else gets the port.
        serves(address, "web");
        assert!(TcpListener::bind(address).is_err());
        engine.restart();
        assert!(inside(cli, "client", "nslookup web").contains("Address"));
        serves(address, "web");
    }
    assert_eq!(engine.get("/networks/app"), before);
    // What is known is known for good: the port is taken, and free afterwards.
    cli.run(&[
        "run",
        "--rm",
        "-p",
        &format!("{address}:80"),
        "busybox",
        "true",
    ])
    .refuses(125, "web");
    cli.run(&["rm", "-f", "web"]).ok();
    cli.run(&[
        "run",
        "--rm",
        "-p",
        &format!("{address}:80"),
        "busybox",
        "true",
    ])
    .ok();
}

#[test]
fn an_engine_that_was_away_gives_back_what_ended_meanwhile() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    up(cli, "web", &["-p", "127.0.0.1::80"], SERVES);
    let address = published(cli, "web");
    let pid = rustix::process::Pid::from_raw(engine.pid("web")).unwrap();
    engine.kill9();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    engine.restart();
    engine.await_state("web", "exited");
    eventually("the interface to go", || {
        engine.interfaces().is_empty().then_some(())
    });
    cli.run(&[
        "run",
        "--rm",
        "-p",
        &format!("{address}:80"),
        "busybox",
        "true",
    ])
    .ok();
}

#[test]
fn rules_and_bridges_that_others_remove_come_back() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    up(cli, "web", &["-p", "127.0.0.1::80"], SERVES);
    let address = published(cli, "web");
    serves(address, "web");
    let rules = Firewall::new(engine.name()).unwrap();
    rules.remove().unwrap();
    // A connection that was tried without them would stay as it was for a while.
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(fetch(address).as_deref(), Some("web"), "noticed late");
    cli.run(&["rm", "-f", "web"]).ok();
    let mut links = Links::open().unwrap();
    links.delete(&engine.bridge()).unwrap();
    let ahead = || {
        let all = Links::open().unwrap().list().unwrap();
        let own: Vec<_> = all
            .into_iter()
            .filter(|link| link.alias == format!("whelk {} warm pool", engine.name()))
            .collect();
        (own.len() == 3).then_some(own)
    };
    for link in eventually("interfaces of the warm pool", ahead) {
        links.delete(&link.name).unwrap();
    }
    up(cli, "web", &["-p", "127.0.0.1::80"], SERVES);
    serves(published(cli, "web"), "web");
}

#[test]
fn the_hosts_firewall_has_the_last_word_where_that_is_wanted() {
    if std::process::Command::new("nft")
        .arg("--version")
        .output()
        .is_err()
    {
        // The small machine of tests/vm has none; `make test` sets it up.
        return;
    }
    // A host whose firewall lets nothing through.
    let rules_with = |firewall: &str| {
        let output = whelk_tests::private_host(&format!(
            r#"nft 'add table ip filter; add chain ip filter FORWARD {{ type filter hook forward priority 0; policy drop; }}' || exit 6
            echo "{{\"instance\": \"$name\"{firewall}}}" >/etc/whelk/daemon.json
            "$0" ps -q 2>/dev/null || exit 8
            nft list chain ip filter FORWARD | grep -c "comment \"$name "
            kill $(pgrep -f 'daemon [-]-background')
            exec "$0" daemon --uninstall"#
        ));
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .parse::<u32>()
            .unwrap()
    };
    let (open, closed) = (
        rules_with(""),
        rules_with(r#", \"firewall\": \"respect-host\""#),
    );
    assert!(open >= 2 && closed == 0, "{open} {closed}");
}

#[test]
fn settings_of_networks_and_places_hold() {
    let engine = Engine::start();
    engine.both(|cli| {
        let create = [
            "network",
            "create",
            "--attachable",
            "--ipv6=false",
            "--subnet",
            "10.213.60.0/29",
        ];
        let aux = [
            "--aux-address",
            "router=10.213.60.2",
            "--aux-address",
            "other=10.213.60.3",
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
            json!({"router": "10.213.60.2", "other": "10.213.60.3"})
        );
        let flags = [
            "--network",
            "set",
            "--link-local-ip",
            "169.254.7.7",
            "-p",
            "80",
            "-p",
            "15999:5000/sctp",
        ];
        up(cli, "one", &flags, SERVES);
        let one = engine.inspect("one");
        // The first that is neither the gateway's nor set aside.
        assert_eq!(
            one["NetworkSettings"]["Networks"]["set"]["IPAddress"],
            "10.213.60.4"
        );
        assert!(inside(cli, "one", "ip addr show eth0").contains("169.254.7.7/16"));
        let ports = &one["NetworkSettings"]["Ports"];
        assert_eq!(ports["80/tcp"][0]["HostIp"], "127.0.0.1");
        assert_eq!(
            ports["5000/sctp"],
            json!([{"HostIp": "127.0.0.1", "HostPort": "15999"}])
        );
        assert!(
            cli.run(&["port", "one"])
                .ok()
                .contains("5000/sctp -> 127.0.0.1:15999")
        );
        // A port of another protocol is another port; the same is taken.
        cli.run(&[
            "run",
            "--rm",
            "--network",
            "set",
            "-p",
            "15999:5000/udp",
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
            "15999:5000/sctp",
            "busybox",
            "true",
        ])
        .refuses(125, "port is already allocated");
        cli.run(&["rm", "-f", "one"]).ok();
        cli.run(&["network", "rm", "set"]).ok();
    });
}

#[test]
fn what_cannot_be_is_refused() {
    let engine = Engine::start();
    engine.both(|cli| {
        cli.run(&["network", "create", "taken", "--subnet", "10.213.11.0/24"])
            .ok();
        for (args, text) in [
            (
                &["network", "create", "taken"][..],
                "network with name taken already exists",
            ),
            (
                &["network", "create", "--subnet", "10.213.11.128/25", "x"],
                "Pool overlaps",
            ),
            (
                &["network", "create", "--subnet", "1.2.3.4", "x"],
                "invalid CIDR block notation",
            ),
            (
                &[
                    "network",
                    "create",
                    "--subnet",
                    "10.213.12.0/24",
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
        ] {
            cli.run(args).refuses(1, text);
        }
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
        // An id is what it says, whatever is called like it.
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
        // Debian's build of the docker CLI writes the first letter large.
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
        // Nothing of it is there.
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
fn events_tell_of_networks() {
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
fn interfaces_of_others_are_left_alone() {
    let engine = Engine::start();
    let other = Engine::start();
    // A bridge that somebody else made.
    let foreign = format!("f{:x}br", std::process::id());
    let mut links = Links::open().unwrap();
    links
        .create_bridge(&foreign, 0, [2, 0, 0, 9, 9, 9], "of a test")
        .unwrap();
    let mut names = vec![
        foreign.clone(),
        engine.bridge(),
        other.bridge(),
        "lo".into(),
    ];
    names.push("a%d".into());
    for name in &names {
        let option = format!("com.docker.network.bridge.name={name}");
        let output = engine.docker(&["network", "create", "--opt", &option, "thief"]);
        assert_eq!(output.code, 1, "{name}: {}", output.out());
        assert_eq!(
            engine
                .docker(&["network", "ls", "-q", "-f", "name=thief"])
                .ok(),
            ""
        );
    }
    for name in &names[..3] {
        assert!(links.find(name).unwrap().is_some(), "{name} is gone");
    }
    links.delete(&foreign).unwrap();
    // One's own name is fine, and goes with the network.
    let own = format!("o{:x}br", std::process::id());
    engine
        .docker(&[
            "network",
            "create",
            "--opt",
            &format!("com.docker.network.bridge.name={own}"),
            "mine",
        ])
        .ok();
    assert!(links.find(&own).unwrap().is_some());
    engine.docker(&["network", "rm", "mine"]).ok();
    assert!(links.find(&own).unwrap().is_none());
}

#[test]
fn what_clients_send_back_of_other_containers_is_not_taken_for_their_own() {
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
fn an_engine_whose_records_are_lost_takes_its_own_bridge_again() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&["run", "--rm", "busybox", "true"]).ok();
    engine.kill9();
    std::fs::remove_dir_all(engine.root()).unwrap();
    engine.restart();
    engine.load(&std::fs::read(whelk_tests::images::busybox()).unwrap());
    up(cli, "web", &["-p", "127.0.0.1::80"], SERVES);
    serves(published(cli, "web"), "web");
}

#[test]
fn macvlan_networks_connect_their_members_and_let_go_of_them() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    // Any interface with a carrier will do as the parent; the default bridge has one with its first
    // member.
    up(cli, "two", &[], "sleep 300");
    let parent = format!("parent={}", engine.bridge());
    cli.run(&[
        "network",
        "create",
        "-d",
        "macvlan",
        "--subnet",
        "10.213.20.0/24",
        "-o",
        &parent,
        "flat",
    ])
    .ok();
    up(cli, "one", &["--network", "flat"], SERVES);
    cli.run(&["network", "connect", "flat", "two"]).ok();
    assert_eq!(
        inside(
            cli,
            "two",
            "until wget -qO- http://one/ 2>/dev/null; do sleep 0.1; done"
        ),
        "one"
    );
    cli.run(&["network", "disconnect", "flat", "two"]).ok();
    assert_eq!(
        inside(cli, "two", "ls /sys/class/net | tr '\\n' ' '"),
        "eth0 lo ".trim_end()
    );
    cli.run(&[
        "network",
        "create",
        "-d",
        "macvlan",
        "--subnet",
        "10.213.21.0/24",
        "-o",
        "parent=nosuch0",
        "lost",
    ])
    .refuses(1, "nosuch0");
    let wrong = [
        "network",
        "create",
        "-d",
        "macvlan",
        "--subnet",
        "10.213.21.0/24",
        "-o",
        &parent,
        "-o",
        "macvlan_mode=x",
        "lost",
    ];
    cli.run(&wrong)
        .refuses(1, "requested macvlan mode 'x' is not valid");
    // Every mode is the kernel's own; only "bridge" lets members talk.
    let whole = format!("{}p", engine.bridge());
    cli.run(&[
        "network",
        "create",
        "--ipv6=false",
        "-o",
        &format!("com.docker.network.bridge.name={whole}"),
        "carrier",
    ])
    .ok();
    let whole = format!("parent={whole}");
    for mode in ["private", "vepa", "passthru"] {
        let option = format!("macvlan_mode={mode}");
        // Passing through takes the whole parent.
        let parent = if mode == "passthru" { &whole } else { &parent };
        cli.run(&[
            "network",
            "create",
            "-d",
            "macvlan",
            "--subnet",
            "10.213.24.0/24",
            "-o",
            &option,
            "-o",
            parent,
            "moded",
        ])
        .ok();
        let reach = "ip addr show eth0 | grep -c 10.213.24; ping -c1 -w1 10.213.24.3 >/dev/null && echo reached || echo apart";
        let mut names = vec!["m1"];
        up(
            cli,
            "m1",
            &["--network", "moded", "--ip", "10.213.24.2"],
            "sleep 300",
        );
        if mode == "passthru" {
            let second = ["run", "--rm", "--network", "moded", "busybox", "true"];
            cli.run(&second).refuses(125, "invalid argument");
        } else {
            up(
                cli,
                "m2",
                &["--network", "moded", "--ip", "10.213.24.3"],
                "sleep 300",
            );
            names.push("m2");
        }
        assert_eq!(inside(cli, "m1", reach), "1\napart", "{mode}");
        cli.run(&[&["rm", "-f"][..], &names].concat()).ok();
        cli.run(&["network", "rm", "moded"]).ok();
    }
    // A sub-interface that was made for networks goes with the last of them.
    let (vlan, option) = (
        format!("{}.7", engine.bridge()),
        format!("parent={}.7", engine.bridge()),
    );
    let there = || std::path::Path::new("/sys/class/net").join(&vlan).exists();
    for (name, subnet) in [("first", "10.213.22.0/24"), ("second", "10.213.23.0/24")] {
        let made = cli.run(&[
            "network", "create", "-d", "macvlan", "--subnet", subnet, "-o", &option, name,
        ]);
        if made.code != 0 {
            // Not every kernel has such interfaces.
            return made.refuses(1, "operation not supported");
        }
    }
    cli.run(&["network", "rm", "first"]).ok();
    assert!(there());
    cli.run(&["network", "rm", "second"]).ok();
    assert!(!there());
}

#[test]
fn ipvlan_networks_connect_where_the_kernel_can() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    up(cli, "carrier", &[], "sleep 300");
    let parent = format!("parent={}", engine.bridge());
    for (mode, subnet) in [("l2", "10.213.24.0/24"), ("l3", "10.213.25.0/24")] {
        let option = format!("ipvlan_mode={mode}");
        cli.run(&[
            "network", "create", "-d", "ipvlan", "--subnet", subnet, "-o", &parent, "-o", &option,
            mode,
        ])
        .ok();
        let first = cli.run(&[
            "run",
            "-d",
            "--name",
            "first",
            "--network",
            mode,
            "busybox",
            "sleep",
            "300",
        ]);
        if first.code != 0 {
            first.refuses(125, "this kernel has no ipvlan interfaces");
        } else {
            up(cli, "second", &["--network", mode], "sleep 300");
            assert!(inside(cli, "second", "ping -c1 -w2 first").contains("1 packets received"));
            let way = if mode == "l3" {
                "default dev eth0"
            } else {
                "default via 10.213.24.1"
            };
            assert!(inside(cli, "second", "ip route").contains(way));
            cli.run(&["rm", "-f", "second"]).ok();
        }
        cli.run(&["rm", "-f", "first"]).ok();
        let fixed = [
            "run",
            "--rm",
            "--network",
            mode,
            "--mac-address",
            "02:aa:bb:cc:dd:ee",
            "busybox",
            "true",
        ];
        cli.run(&fixed).refuses(
            125,
            "interfaces of ipvlan networks have their parent's MAC address",
        );
        cli.run(&["network", "rm", mode]).ok();
    }
    let wrong = [
        "network",
        "create",
        "-d",
        "ipvlan",
        "--subnet",
        "10.213.24.0/24",
        "-o",
        &parent,
        "-o",
        "ipvlan_mode=l7",
        "x",
    ];
    cli.run(&wrong)
        .refuses(1, "requested ipvlan mode 'l7' is not valid");
}

#[test]
fn the_configuration_file_shapes_networks() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    up(cli, "busy", &[], "sleep 300");
    let configured = json!({
        "bip": "10.213.30.1/24", "fixed-cidr": "10.213.30.128/25", "mtu": 1400, "ip": "127.0.0.1",
        "default-address-pools": [{"base": "10.213.31.0/24", "size": 28}],
        "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": "1380"}},
        "dns": ["10.213.30.99"], "dns-search": ["example.test"], "dns-opts": ["timeout:1"], "host-gateway-ip": "10.213.30.77",
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
    assert_eq!(subnet(&engine), "10.213.30.0/24");
    up(
        cli,
        "web",
        &["-p", "80", "--add-host", "outside:host-gateway"],
        SERVES,
    );
    assert!(published(cli, "web").ip().is_loopback());
    serves(published(cli, "web"), "web");
    let endpoint = engine.inspect("web")["NetworkSettings"]["Networks"]["bridge"].clone();
    assert_eq!(endpoint["Gateway"], "10.213.30.1");
    let address = endpoint["IPAddress"].as_str().unwrap();
    assert!(
        address.rsplit('.').next().unwrap().parse::<u8>().unwrap() >= 128,
        "{address}"
    );
    assert_eq!(inside(cli, "web", "cat /sys/class/net/eth0/mtu"), "1400");
    let files = inside(cli, "web", "cat /etc/resolv.conf /etc/hosts");
    for line in [
        "nameserver 10.213.30.99",
        "search example.test",
        "options timeout:1",
        "10.213.30.77\toutside",
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
        "10.213.31.0/28"
    );
    up(cli, "member", &["--network", "small"], "sleep 300");
    assert_eq!(inside(cli, "member", "cat /sys/class/net/eth0/mtu"), "1380");
    // And back again.
    cli.run(&["rm", "-f", "web", "member"]).ok();
    engine.configure(&json!({}));
    engine.kill9();
    engine.restart();
    assert_eq!(
        engine.get("/networks/bridge")["Options"]["com.docker.network.driver.mtu"],
        "1500"
    );
}

#[test]
fn an_engine_killed_while_networks_change_leaves_nothing_behind() {
    let engine = Engine::start();
    for round in 0..10u64 {
        std::thread::scope(|scope| {
            // What these are told does not matter: the engine dies under them.
            let mut clients = Vec::new();
            for client in 0..3u16 {
                let cli = engine.cli(if client == 0 {
                    Program::Docker
                } else {
                    Program::Whelk
                });
                clients.push(scope.spawn(move || {
                    let (network, name) = (
                        format!("net-{round}-{client}"),
                        format!("half-{round}-{client}"),
                    );
                    let port = format!("127.0.0.1:{}:80", 21_000 + client);
                    for args in [
                        &["network", "create", &network][..],
                        &[
                            "run",
                            "-d",
                            "--name",
                            &name,
                            "--network",
                            &network,
                            "-p",
                            &port,
                            "busybox",
                            "sleep",
                            "300",
                        ],
                        &["network", "connect", "bridge", &name],
                        &["network", "disconnect", &network, &name],
                        &["rm", "-f", &name],
                        &["network", "rm", &network],
                    ] {
                        let _ = cli.run(args);
                    }
                }));
            }
            // Each round strikes at another moment.
            std::thread::sleep(Duration::from_millis(9 * round * round));
            engine.kill9();
            clients
                .into_iter()
                .for_each(|client| client.join().unwrap());
        });
        engine.restart();
        engine.remove_containers().unwrap();
        let (status, answer) = engine.api("POST", "/networks/prune", None);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(
            engine.get("/networks").as_array().unwrap().len(),
            3,
            "round {round}"
        );
        eventually("interfaces to be gone", || {
            engine.interfaces().is_empty().then_some(())
        });
        for client in 0..3u16 {
            let port = 21_000 + client;
            eventually("ports to be free", || {
                TcpListener::bind(("127.0.0.1", port)).ok()
            });
        }
    }
}

#[test]
fn a_flood_of_frames_is_its_senders_own_problem() {
    const FLOOD: &str = "
import os, socket
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
wire.bind(('eth0', 0))
while True:
    # To everybody, from anybody: what fills the tables of switches; and questions to all neighbours.
    for kind in (b'\\x08\\x00', b'\\x08\\x06', b'\\x86\\xdd', b'\\x88\\xb5'):
        wire.send(b'\\xff' * 6 + b'\\x02' + os.urandom(5) + kind + os.urandom(46))
";
    let engine = Engine::start();
    engine.load(&std::fs::read(whelk_tests::images::python()).unwrap());
    let cli = engine.cli(Program::Docker);
    cli.run(&[
        "network",
        "create",
        "--ipv6=false",
        "-o",
        "com.docker.network.bridge.name=wflood0",
        "crowd",
    ])
    .ok();
    up(
        cli,
        "web",
        &["--network", "crowd", "-p", "127.0.0.1::80"],
        SERVES,
    );
    up(cli, "other", &["--network", "crowd"], "sleep 300");
    cli.run(&[
        "run",
        "-d",
        "--name",
        "flood",
        "--network",
        "crowd",
        "python",
        "python3",
        "-c",
        FLOOD,
    ])
    .ok();
    let sent = || -> u64 {
        inside(
            cli,
            "flood",
            "cat /sys/class/net/eth0/statistics/tx_packets",
        )
        .parse()
        .unwrap()
    };
    eventually("the flood", || (sent() > 20_000).then_some(()));
    for _ in 0..20 {
        serves(published(cli, "web"), "web");
        assert_eq!(inside(cli, "other", "wget -qO- http://web/"), "web");
    }
    // Each known neighbour is an entry of 16 bytes; none of them was made up.
    let known = std::fs::read("/sys/class/net/wflood0/brforward")
        .unwrap()
        .len()
        / 16;
    assert!(known < 20, "the bridge believes in {known} neighbours");
    let heard: u64 = inside(
        cli,
        "other",
        "cat /sys/class/net/eth0/statistics/rx_packets",
    )
    .parse()
    .unwrap();
    assert!(
        heard < sent() / 10,
        "{heard} frames of the flood's {} came through",
        sent()
    );
}

#[test]
fn containers_have_no_way_to_the_engine() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    // By no network: whatever it listens at is a file, below a directory that containers do not
    // have.
    let pid = engine.daemon_pid();
    let own: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|link| {
            Some(
                link.to_str()?
                    .strip_prefix("socket:[")?
                    .strip_suffix(']')?
                    .to_owned(),
            )
        })
        .collect();
    assert!(!own.is_empty());
    for table in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6"] {
        let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap();
        let ours = sockets.lines().skip(1).filter(|line| {
            line.split_whitespace()
                .nth(9)
                .is_some_and(|inode| own.iter().any(|one| one == inode))
        });
        assert_eq!(ours.collect::<Vec<_>>(), Vec::<&str>::new(), "{table}");
    }
    // Nor by a name without a file, which the host's network would lead to (CVE-2020-15257).
    let hosted = |script: &str| {
        cli.run(&[
            "run",
            "--rm",
            "--network",
            "host",
            "--pid",
            "host",
            "busybox",
            "sh",
            "-c",
            script,
        ])
    };
    let names = hosted("cat /proc/net/unix").ok();
    assert!(
        names.contains(&engine.socket().to_string_lossy().into_owned()),
        "the engine's socket is known by name"
    );
    let abstract_names = names
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7))
        .filter(|name| name.starts_with('@'));
    assert!(
        !abstract_names
            .into_iter()
            .any(|name| name.contains("whelk")),
        "{names}"
    );
    let path = engine.socket();
    hosted(&format!("ls {}", path.display())).refuses(1, "No such file or directory");
    // The engine's own view of files is not open to others either.
    hosted(&format!("ls /proc/{pid}/root{}", path.display())).refuses(1, "Permission denied");
}

#[test]
fn a_container_is_in_the_networks_that_it_asks_for() {
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
            "Image": "busybox", "Cmd": ["sleep", "60"], "HostConfig": {"NetworkMode": mode}, "NetworkingConfig": {"EndpointsConfig": places},
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
fn settings_that_no_network_can_keep_are_refused() {
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
}

#[test]
fn donors_of_namespaces_are_looked_at_when_a_container_starts() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&["network", "create", "--ipv6=false", "app"]).ok();
    up(cli, "donor", &["--network", "app"], "sleep 300");
    engine.create(
        "stopped",
        &json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": {"IpcMode": "shareable"}}),
    );
    cli.up(
        "again",
        &["--restart", "always", "--ipc", "shareable"],
        &["false"],
    );
    // The delays double: the next one is of 6.4 seconds.
    eventually("many restarts", || {
        let again = engine.inspect("again");
        let waits = again["State"]["Status"] == "restarting";
        (waits && again["RestartCount"].as_i64() >= Some(6)).then_some(())
    });
    // The count is raised just before the container runs again: let that run pass.
    std::thread::sleep(Duration::from_millis(500));
    let [stopped, donor, again] =
        ["stopped", "donor", "again"].map(|name| engine.inspect(name)["Id"].clone());
    let (stopped, donor) = (stopped.as_str().unwrap(), donor.as_str().unwrap());
    let restarting = format!(
        "container {} is restarting, wait until the container is running",
        again.as_str().unwrap()
    );
    // Those of the one that will be started again come first.
    let starts = [
        ("NetworkMode", "again", 409, format!("cannot join network namespace of container: {restarting}")),
        ("PidMode", "again", 409, format!("failed to join PID namespace: {restarting}")),
        ("IpcMode", "again", 409, format!("failed to join IPC namespace: {restarting}")),
        (
            "NetworkMode",
            "stopped",
            409,
            "cannot join network namespace of a non running container: container stopped is created".to_owned(),
        ),
        ("PidMode", "stopped", 500, format!("failed to join PID namespace: container {stopped} is not running")),
        ("IpcMode", "stopped", 409, format!("failed to join IPC namespace: container {stopped} is not running")),
        (
            "IpcMode",
            "donor",
            400,
            format!(
                "failed to join IPC namespace: container {donor}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)"
            ),
        ),
    ];
    for (mode, name, code, text) in starts {
        engine.create("joins", &json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": {mode: format!("container:{name}")}}));
        let (status, answer) = engine.api("POST", "/containers/joins/start", None);
        assert_eq!(
            (status, answer["message"].as_str()),
            (code, Some(text.as_str())),
            "{mode} {name}"
        );
        cli.run(&["rm", "-f", "joins"]).ok();
    }
    // A link-local address is one.
    for (address, text) in [
        ("10.9.9.9", "invalid link local IP address: 10.9.9.9"),
        ("fd00::9", "invalid link local IP address: fd00::9"),
    ] {
        cli.run(&[
            "run",
            "--rm",
            "--network",
            "app",
            "--link-local-ip",
            address,
            "busybox",
            "true",
        ])
        .refuses(125, text);
    }
    let shown = cli
        .run(&[
            "run",
            "--rm",
            "--network",
            "app",
            "--link-local-ip",
            "169.254.3.4",
            "busybox",
            "ip",
            "address",
        ])
        .ok();
    assert!(shown.contains("169.254.3.4/16"), "{shown}");
    // A donor is known by its id, whatever it is called later.
    cli.run(&[
        "create",
        "--name",
        "guest",
        "--network",
        "container:donor",
        "busybox",
        "true",
    ])
    .ok();
    assert_eq!(
        engine.inspect("guest")["HostConfig"]["NetworkMode"],
        format!("container:{donor}")
    );
    cli.run(&["rename", "donor", "other"]).ok();
    cli.run(&["start", "-a", "guest"]).ok();
    // Through a guest to its owner, whose files it has.
    up(
        cli,
        "second",
        &["--network", "container:other"],
        "sleep 300",
    );
    let seen = cli
        .run(&[
            "run",
            "--rm",
            "--network",
            "container:second",
            "busybox",
            "cat",
            "/etc/hosts",
        ])
        .ok();
    assert_eq!(seen, inside(cli, "other", "cat /etc/hosts"));
    assert_eq!(
        engine.inspect("second")["HostsPath"],
        engine.inspect("other")["HostsPath"]
    );
}

#[test]
fn networks_of_the_host_and_of_other_containers_are_not_joined_later() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&["network", "create", "--ipv6=false", "app"]).ok();
    up(cli, "donor", &["--network", "app"], "sleep 300");
    up(cli, "hosted", &["--network", "host"], "sleep 300");
    up(cli, "guest", &["--network", "container:donor"], "sleep 300");
    up(cli, "lone", &["--network", "none"], "sleep 300");
    let check = |action: &str, network: &str, container: &str, code: u16, text: &str| {
        let (status, answer) = engine.api(
            "POST",
            &format!("/networks/{network}/{action}"),
            Some(&json!({"Container": container})),
        );
        let id = engine.inspect(container)["Id"].as_str().unwrap().to_owned();
        let text = text.replace("ID", &id);
        assert_eq!(
            (status, answer["message"].as_str()),
            (code, Some(text.as_str())),
            "{action} {network} {container}"
        );
    };
    const SHARES: &str = "container sharing network namespace with another container or host cannot be connected to any other network";
    const FOR_HOST: &str =
        "cannot connect container to host network - container must be created in host network mode";
    const PRIVATE: &str = "container cannot be connected to multiple networks with one of the networks in private (none) mode";
    check("connect", "app", "hosted", 400, SHARES);
    check(
        "connect",
        "host",
        "hosted",
        403,
        "endpoint with name hosted already exists in network host",
    );
    check(
        "disconnect",
        "host",
        "hosted",
        400,
        "cannot disconnect container from host network - container was created in host network mode",
    );
    check(
        "disconnect",
        "app",
        "hosted",
        500,
        "container ID is not connected to network app",
    );
    check("connect", "app", "guest", 400, SHARES);
    check("connect", "host", "guest", 400, SHARES);
    check(
        "disconnect",
        "app",
        "guest",
        500,
        "container ID is not connected to network app",
    );
    check("connect", "host", "donor", 400, FOR_HOST);
    check("connect", "none", "donor", 400, PRIVATE);
    check("connect", "app", "lone", 400, PRIVATE);
    check("connect", "host", "lone", 400, FOR_HOST);
    let alias = json!({"Container": "donor", "EndpointConfig": {"Aliases": ["x"]}});
    let (status, answer) = engine.api("POST", "/networks/bridge/connect", Some(&alias));
    assert_eq!(status, 400);
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("network-scoped alias is supported only"),
        "{answer}"
    );
    // The place in a network that is gone is only a note, and can be taken away.
    for force in [false, true] {
        cli.run(&["network", "create", "--ipv6=false", "gone"]).ok();
        cli.run(&[
            "create",
            "--name",
            "stopped",
            "--network",
            "app",
            "busybox",
            "true",
        ])
        .ok();
        cli.run(&["network", "connect", "gone", "stopped"]).ok();
        cli.run(&["network", "rm", "gone"]).ok();
        cli.run(&["start", "stopped"])
            .refuses(1, "network gone not found");
        let (status, answer) = engine.api(
            "POST",
            "/networks/gone/disconnect",
            Some(&json!({"Container": "stopped", "Force": force})),
        );
        assert_eq!(status, 200, "{answer}");
        cli.run(&["start", "-a", "stopped"]).ok();
        cli.run(&["rm", "stopped"]).ok();
    }
    let (status, answer) = engine.api(
        "POST",
        "/networks/gone/disconnect",
        Some(&json!({"Container": "donor", "Force": true})),
    );
    let donor = engine.inspect("donor")["Id"].as_str().unwrap().to_owned();
    assert_eq!(
        (status, answer["message"].as_str().unwrap()),
        (
            500,
            format!("container {donor} is not connected to the network gone").as_str()
        )
    );
}

#[test]
fn networks_with_link_local_subnets_and_small_packets_can_be_made() {
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
    cli.run(&["network", "create", "--ipv6", "-o", MTU, "six"])
        .refuses(1, "invalid MTU: 1000: IPv6 needs at least 1280");
    engine.configure(&json!({"ipv6": true, "fixed-cidr-v6": "fe80::/64"}));
    engine.kill9();
    engine.restart();
    assert_eq!(
        engine.get("/networks/bridge")["IPAM"]["Config"][1]["Subnet"],
        "fe80::/64"
    );
    let shown = cli
        .run(&["run", "--rm", "busybox", "ip", "-6", "route"])
        .ok();
    assert!(shown.contains("default via fe80::"), "{shown}");
    // The default network takes more containers than the small subnets of others.
    let subnet = engine.get("/networks/bridge")["IPAM"]["Config"][0]["Subnet"]
        .as_str()
        .unwrap()
        .to_owned();
    let bits: u8 = subnet.rsplit('/').next().unwrap().parse().unwrap();
    assert!(bits <= 22, "{subnet}");
}

#[test]
fn a_container_disconnected_from_none_is_no_member() {
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
