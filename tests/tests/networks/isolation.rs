//! What containers can reach: other networks, the host, and addresses that are not their own.

use std::net::{SocketAddr, TcpListener, TcpStream};

use serde_json::json;
use whelk_tests::serving::{SERVES, inside, published, serves, up};
use whelk_tests::{Engine, FreeSubnet, Program, eventually, free_interface_name, free_port};

#[test]
fn networks_are_isolated_from_each_other() {
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
    up(cli, "bb", &[], "sleep 600");
    up(cli, "cc", &["--network", "inner"], SERVES);
    let address = |name: &str, network: &str| {
        engine.inspect(name)["NetworkSettings"]["Networks"][network]["IPAddress"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let (a, c) = (address("aa", "one"), address("cc", "inner"));
    up(cli, "dd", &["--network", "inner"], "sleep 600");
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
        // Not reachable through the host as a router either.
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
    // An internal network has no default route.
    assert_eq!(inside(cli, "cc", "ip route | grep -c default || true"), "0");
}

#[test]
fn containers_of_a_routed_network_are_reached_at_their_addresses() {
    const MODE: &str = "com.docker.network.bridge.gateway_mode_ipv4";
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let (subnet, port) = (FreeSubnet::new(), free_port());
    let web = subnet.v4_host(5);
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
        &subnet.v4(),
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
            &web,
            "-p",
            "80",
            "-p",
            &format!("{port}:80"),
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
            TcpListener::bind(("127.0.0.1", port)).is_ok(),
            "no host port is reserved"
        );
        serves(format!("{web}:80").parse().unwrap(), "web");
        // Another network reaches published ports only, an internal network none.
        let reaches = |from: &str, port: u16, seconds: u32| {
            let connect = format!("nc -w {seconds} {web} {port} </dev/null");
            cli.run(&["exec", from, "sh", "-c", &connect]).code == 0
        };
        assert!(reaches("bb", 80, 30) && reaches("web", 81, 30));
        assert!(!reaches("bb", 81, 1) && !reaches("inner", 80, 1));
        assert!(inside(cli, "bb", &format!("ping -c1 -w30 {web}")).contains("1 packets received"));
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
    // NAT for one address family, and routing for the other.
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
        &web,
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
    let subnet = FreeSubnet::new();
    let [own, other, third] = [10, 11, 12].map(|host| subnet.v4_host(host));
    cli.run(&[
        "network",
        "create",
        "--subnet",
        &subnet.v4(),
        "--ipv6=false",
        "flat",
    ])
    .ok();
    up(
        cli,
        "liar",
        &["--network", "flat", "--ip", &own, "--cap-add", "NET_ADMIN"],
        "sleep 600",
    );
    up(
        cli,
        "other",
        &["--network", "flat", "--ip", &other],
        "sleep 600",
    );
    assert!(inside(cli, "liar", &format!("ping -c1 -w30 {other}")).contains("1 packets received"));
    let foreign = subnet.v4_host(99);
    let lie = format!("ip addr add {foreign}/24 dev eth0; ping -c1 -w1 -I {foreign} {other}");
    let output = cli.run(&["exec", "liar", "sh", "-c", &lie]).exits(1);
    assert!(output.contains(" 0 packets received"), "{output}");
    // Nor does it announce another's address by ARP.
    up(
        cli,
        "witness",
        &["--network", "flat", "--ip", &third],
        "sleep 600",
    );
    let known = |address: &str| {
        inside(
            cli,
            "witness",
            &format!("ping -c1 -w30 {address} >/dev/null; ip neigh show {address}"),
        )
    };
    let (liar, victim) = (known(&own), known(&other));
    assert!(
        liar.contains(&subnet.mac(10)) && victim.contains(&subnet.mac(11)),
        "{liar} {victim}"
    );
    let steal = format!("ip addr add {other}/32 dev eth0; arping -c2 -w3 -U -I eth0 {other}; true");
    inside(cli, "liar", &steal);
    let after = inside(cli, "witness", &format!("ip neigh show {other}"));
    assert!(after.contains(&subnet.mac(11)), "{after}");
}

#[test]
fn ipv6_is_routed_and_filtered_like_ipv4() {
    let engine = Engine::start();
    let (six, both) = (FreeSubnet::new(), FreeSubnet::new());
    let pair = both.v6_host("20");
    let cli = engine.cli(Program::Docker);
    cli.run(&[
        "network",
        "create",
        "--ipv4=false",
        "--ipv6",
        "--subnet",
        &six.v6(),
        "six",
    ])
    .ok();
    cli.run(&[
        "network",
        "create",
        "--ipv6",
        "--subnet",
        &both.v6(),
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
            &pair,
            "--cap-add",
            "NET_ADMIN",
        ],
        SERVES,
    );
    up(cli, "peer", &["--network", "both"], "sleep 300");
    // The kernel does not use an address before duplicate address detection has ended.
    let ping = format!("until ping6 -c1 -w1 {pair} >/dev/null; do sleep 0.1; done; echo answers");
    assert_eq!(inside(cli, "peer", &ping), "answers");
    assert!(inside(cli, "peer", "nslookup -type=aaaa pair").contains(&pair));
    // Networks are isolated for IPv6 too, also through the host.
    let address = engine.inspect("web")["NetworkSettings"]["Networks"]["six"]["GlobalIPv6Address"]
        .as_str()
        .unwrap()
        .to_owned();
    // The exit status of busybox' ping6 depends on when its time is up.
    let heard = |from: &str, ping: &str| inside(cli, from, &format!("{ping} || true"));
    assert!(heard("peer", &format!("ping6 -c1 -w1 {address}")).contains(" 0 packets received"));
    // A container cannot send from an address that is not its own.
    let from = |add: &str, del: &str, seconds: u32| {
        let change = |what: &str, host: &str| {
            format!("ip -6 addr {what} {}/64 dev eth0", both.v6_host(host))
        };
        // During duplicate address detection, the kernel sends from a link-local address.
        let known = "while ip -6 addr show dev eth0 | grep -q tentative; do sleep 0.1; done";
        heard(
            "pair",
            &format!(
                "{}; {}; {known}; ping6 -c1 -w{seconds} {}",
                change("add", add),
                change("del", del),
                both.v6_host("1")
            ),
        )
    };
    assert!(from("99", "20", 2).contains(" 0 packets received"));
    assert!(
        from("20", "99", 30).contains(" 1 packets received"),
        "its own address serves again"
    );
    // Reachable from the host by the gateway's address, also after a restart of the engine.
    let port = engine.inspect("web")["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"]
        .as_str()
        .unwrap()
        .to_owned();
    let at: SocketAddr = format!("[{}]:{port}", six.v6_host("1")).parse().unwrap();
    serves(at, "web");
    // Reachable by the host's [::1] where the kernel can redirect it; otherwise refused at once, so that
    // clients try 127.0.0.1.
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
fn respect_host_adds_no_accepting_rules() {
    // A host whose firewall drops all forwarded packets.
    let rules_with = |firewall: &str| {
        let output = whelk_tests::private_host(&format!(
            r#"nft 'add table ip filter; add chain ip filter FORWARD {{ type filter hook forward priority 0; policy drop; }}' || exit 6
            echo "{{\"instance\": \"$name\"{firewall}}}" >/etc/whelk/daemon.json
            "$0" ps -q 2>/dev/null || exit 8
            nft list chain ip filter FORWARD | grep -c "comment \"$name "
            end_engine"#
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
fn a_flood_of_frames_does_not_disturb_other_containers() {
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
    let bridge = free_interface_name();
    cli.run(&[
        "network",
        "create",
        "--ipv6=false",
        "-o",
        &format!("com.docker.network.bridge.name={bridge}"),
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
    // An entry of the forwarding table has 16 bytes. No address of the flood was learned.
    let known = std::fs::read(format!("/sys/class/net/{bridge}/brforward"))
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
fn containers_cannot_connect_to_the_engine() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    // The engine listens on no network and no abstract socket, only at a path that containers do not
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
    // The host's network namespace gives no access by an abstract socket (CVE-2020-15257).
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
    // The engine's root in /proc is not accessible.
    hosted(&format!("ls /proc/{pid}/root{}", path.display())).refuses(1, "Permission denied");
}

#[test]
fn a_subnet_of_two_addresses_is_enough_for_two_containers() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let subnet = FreeSubnet::new();
    let pair = subnet.v4_part(0, 31);
    for option in ["inhibit_ipv4=true", "gateway_mode_ipv4=isolated"] {
        let option = format!("com.docker.network.bridge.{option}");
        let create = ["network", "create", "--internal", "--ipv6=false"];
        let settings = ["--subnet", &pair, "-o", &option, "pair"];
        cli.run(&[&create[..], &settings].concat()).ok();
        // No gateway is reserved where the host has no address.
        let config = engine.get("/networks/pair")["IPAM"]["Config"][0].clone();
        assert!(config["Gateway"].is_null(), "{config}");
        up(cli, "one", &["--network", "pair"], "sleep 300");
        up(cli, "two", &["--network", "pair"], "sleep 300");
        assert!(inside(cli, "two", "ping -c1 -w30 one").contains("1 packets received"));
        engine.kill9();
        engine.restart();
        let third = ["run", "--rm", "--network", "pair", "busybox", "true"];
        cli.run(&third)
            .refuses(125, "no available IPv4 addresses on this network");
        cli.run(&["rm", "-f", "one", "two"]).ok();
        cli.run(&["network", "rm", "pair"]).ok();
    }
}
