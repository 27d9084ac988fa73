//! DNS names of containers: the embedded resolver, hosts and resolv.conf files, and links.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use whelk_tests::serving::{SERVES, inside, resolves_not, up};
use whelk_tests::{Engine, FreeSubnet, PATIENCE, Program, eventually};

#[test]
fn containers_resolve_each_other_by_name() {
    let engine = Engine::start();
    engine.both(|cli| {
        cli.run(&["network", "create", "app"]).ok();
        up(
            cli,
            "db",
            &[
                "--network",
                "app",
                "--network-alias",
                "database",
                "--hostname",
                "host-of-db",
            ],
            SERVES,
        );
        up(cli, "client", &["--network", "app"], "sleep 600");
        for name in ["db", "database", "DB", "host-of-db", "db.app"] {
            let page = format!("until wget -qO- http://{name}/ 2>/dev/null; do sleep 0.1; done");
            assert_eq!(inside(cli, "client", &page), "db", "{name}");
        }
        let address = inside(
            cli,
            "client",
            "nslookup -type=a db | tail -n +4 | grep Address | awk '{print $2}'",
        );
        assert_eq!(
            engine.inspect("db")["NetworkSettings"]["Networks"]["app"]["IPAddress"],
            address.as_str()
        );
        assert!(inside(cli, "client", &format!("nslookup {address}")).contains("db.app"));
        assert!(inside(cli, "client", "nslookup -type=aaaa db").contains("fd"));
        let config = inside(cli, "client", "cat /etc/resolv.conf");
        assert!(
            config.contains("nameserver 127.0.0.11") && config.contains("options ndots:0"),
            "{config}"
        );
        // Containers in other networks cannot resolve the name.
        up(cli, "stranger", &[], "sleep 600");
        cli.run(&["exec", "stranger", "ping", "-c1", "-w1", "db"])
            .refuses(1, "bad address 'db'");
        // The name of a stopped container does not resolve.
        cli.run(&["stop", "-t", "0", "db"]).ok();
        resolves_not(cli, "client", "db");
        cli.run(&["rm", "-f", "db", "client", "stranger"]).ok();
        cli.run(&["network", "rm", "app"]).ok();
    });
}

/// Starts a DNS server in a container's network that answers each query for an A record with one
/// address. Returns the addresses of its clients.
fn answers(
    engine: &Engine,
    name: &str,
    at: &str,
    address: [u8; 4],
) -> std::sync::mpsc::Receiver<SocketAddr> {
    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", engine.pid(name))).unwrap();
    let socket =
        whelk_sys::net::within(namespace.as_fd(), || UdpSocket::bind(at).unwrap()).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let (asked, who) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            // The question, and for an A record the answer with the address (RFC 1035).
            let kind = packet[length - 3];
            packet[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(kind == 1)]);
            let record = [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4][..], &address].concat();
            packet[8..12].fill(0);
            let reply = if kind == 1 {
                [&packet[..length], &record].concat()
            } else {
                packet[..length].to_vec()
            };
            if socket.send_to(&reply, from).is_err() || asked.send(from).is_err() {
                return;
            }
        }
    });
    who
}

#[test]
fn external_names_are_queried_from_the_containers_network() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let subnet = FreeSubnet::new();
    let (server, client) = (subnet.v4_host(53), subnet.v4_host(7));
    cli.run(&[
        "network",
        "create",
        "--subnet",
        &subnet.v4(),
        "--ipv6=false",
        "names",
    ])
    .ok();
    cli.run(&["network", "create", "--internal", "--ipv6=false", "inner"])
        .ok();
    up(
        cli,
        "server",
        &["--network", "names", "--ip", &server],
        "sleep 300",
    );
    up(
        cli,
        "asks",
        &["--network", "names", "--ip", &client, "--dns", &server],
        "sleep 300",
    );
    up(
        cli,
        "itself",
        &["--network", "names", "--dns", "127.0.0.1"],
        "sleep 300",
    );
    up(
        cli,
        "inner",
        &["--network", "inner", "--dns", &server],
        "sleep 300",
    );
    let look_up = "nslookup -type=a far.test || true";
    let who = answers(&engine, "server", "0.0.0.0:53", [10, 1, 2, 3]);
    let answer = inside(cli, "asks", look_up);
    assert!(
        answer.contains("10.1.2.3") && answer.contains("127.0.0.11"),
        "{answer}"
    );
    assert_eq!(
        who.recv().unwrap().ip().to_string(),
        client,
        "not the host's address"
    );
    // 127.0.0.1 is the container's own loopback address, and not the host's.
    let _own = answers(&engine, "itself", "127.0.0.1:53", [10, 4, 5, 6]);
    assert!(inside(cli, "itself", look_up).contains("10.4.5.6"));
    // A container in an internal network has no server to query.
    let answer = inside(cli, "inner", look_up);
    assert!(!answer.contains("10.1.2.3"), "{answer}");
    // A client that has waited for long asks again.
    assert!(who.try_iter().all(|from| from.ip().to_string() == client));
}

/// Starts a DNS server in a container's network that answers each query with the response code
/// `code`, such as SERVFAIL.
fn answers_with_code(engine: &Engine, name: &str, at: &str, code: u8) {
    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", engine.pid(name))).unwrap();
    let socket =
        whelk_sys::net::within(namespace.as_fd(), || UdpSocket::bind(at).unwrap()).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    std::thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            packet[2..4].copy_from_slice(&[0x81, 0x80 | code]);
            let _ = socket.send_to(&packet[..length], from);
        }
    });
}

#[test]
fn the_next_server_is_queried_after_a_failure() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&["network", "create", "--ipv6=false", "names"])
        .ok();
    up(
        cli,
        "asks",
        &[
            "--network",
            "names",
            "--dns",
            "127.0.0.21",
            "--dns",
            "127.0.0.22",
            "--dns",
            "127.0.0.23",
            "--dns",
            "127.0.0.24",
        ],
        "sleep 300",
    );
    const CODES: [u8; 3] = [2, 4, 5];
    for (at, code) in ["127.0.0.21:53", "127.0.0.22:53", "127.0.0.23:53"]
        .into_iter()
        .zip(CODES)
    {
        answers_with_code(&engine, "asks", at, code);
    }
    let resolver = resolver_of(&engine, "asks");
    let ask = |id: u16| {
        resolver.send(&question(id, "far.test")).unwrap();
        let mut answer = [0; 512];
        let length = resolver.recv(&mut answer).expect("an answer");
        (answer[3] & 0xf, answer[..length].ends_with(&[10, 1, 2, 3]))
    };
    // If all servers fail, the first one's response is returned.
    assert_eq!(ask(1), (2, false));
    let _server = answers(&engine, "asks", "127.0.0.24:53", [10, 1, 2, 3]);
    assert_eq!(ask(2), (0, true));
    // The timeout for a server that does not answer is that of Docker's resolver.
    up(
        cli,
        "waits",
        &[
            "--network",
            "names",
            "--dns",
            "127.0.0.21",
            "--dns",
            "127.0.0.22",
        ],
        "sleep 300",
    );
    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", engine.pid("waits"))).unwrap();
    let _silent = whelk_sys::net::within(namespace.as_fd(), || {
        UdpSocket::bind("127.0.0.21:53").unwrap()
    })
    .unwrap();
    let _server = answers(&engine, "waits", "127.0.0.22:53", [10, 1, 2, 3]);
    let resolver = resolver_of(&engine, "waits");
    // Libraries ask again after five seconds. A machine may be busy once.
    let is_in_time = |id: u16| {
        let begin = Instant::now();
        resolver.send(&question(id, "far.test")).unwrap();
        let mut answer = [0; 512];
        let length = loop {
            match resolver.recv(&mut answer) {
                // That of an earlier question.
                Ok(_) if answer[..2] != id.to_be_bytes() => {}
                received => break received,
            }
        };
        let waited = begin.elapsed();
        let expected = Duration::from_secs(4)..Duration::from_millis(4900);
        length.is_ok_and(|length| length > 12) && expected.contains(&waited)
    };
    assert!((3..6).any(is_in_time));
}

#[test]
fn names_of_containers_are_answered_for_all_record_types() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&["network", "create", "--ipv6=false", "names"])
        .ok();
    up(
        cli,
        "asks",
        &["--network", "names", "--dns", "127.0.0.21"],
        "sleep 300",
    );
    // The external server answers NXDOMAIN.
    answers_with_code(&engine, "asks", "127.0.0.21:53", 3);
    let resolver = resolver_of(&engine, "asks");
    let ask = |kind: u16, name: &str| {
        resolver.send(&question_of(kind, name, kind)).unwrap();
        let mut answer = [0; 512];
        resolver.recv(&mut answer).expect("an answer");
        (answer[3] & 0xf, answer[7])
    };
    // AAAA, MX, TXT, SRV, SOA, HTTPS, PTR.
    for kind in [28, 15, 16, 33, 6, 65, 12] {
        assert_eq!(ask(kind, "asks"), (0, 0), "kind {kind}");
        assert_eq!(ask(kind, "elsewhere"), (3, 0), "kind {kind}");
    }
    assert_eq!(ask(1, "asks"), (0, 1));
}

#[test]
fn hosts_file_has_the_full_and_the_short_name() {
    let engine = Engine::start();
    engine.both(|cli| {
        let run = |flags: &[&str], script: &str| {
            cli.run(&[&["run", "--rm"], flags, &["busybox", "sh", "-c", script]].concat())
                .ok()
        };
        let own = |flags: &[&str]| run(flags, "tail -n 1 /etc/hosts | cut -f 2");
        assert_eq!(own(&["-h", "a.b.example"]), "a.b.example a");
        assert_eq!(own(&["-h", "a.b", "--domainname", "c.d"]), "a.b.c.d a");
        assert_eq!(own(&["-h", "a"]), "a");
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let seen = run(
            &["--network", "host"],
            "hostname; cat /etc/hostname; echo $HOSTNAME",
        );
        assert_eq!(seen, format!("{host}\n{host}\n{host}"));
        assert_eq!(
            run(&["--network", "host", "-h", "mine"], "hostname"),
            "mine"
        );
    });
}

#[test]
fn edited_hosts_and_resolv_conf_survive_network_changes() {
    let engine = Engine::start();
    engine.both(|cli| {
        cli.run(&["network", "create", "--ipv6=false", "other"])
            .ok();
        up(cli, "edited", &[], "sleep 300");
        up(cli, "plain", &[], "sleep 300");
        inside(
            cli,
            "edited",
            "echo '1.2.3.4 mine' >>/etc/hosts; echo 'nameserver 9.9.9.9 # mine' >/etc/resolv.conf",
        );
        let hosts = |name: &str| inside(cli, name, "cat /etc/hosts");
        let (edited, plain) = (hosts("edited"), hosts("plain"));
        for name in ["edited", "plain"] {
            cli.run(&["network", "connect", "other", name]).ok();
        }
        let address = engine.inspect("edited")["NetworkSettings"]["Networks"]["other"]["IPAddress"]
            .as_str()
            .unwrap()
            .to_owned();
        let connected = hosts("edited");
        assert!(
            connected.starts_with(&edited)
                && connected.contains("1.2.3.4 mine")
                && connected.contains(&address),
            "{connected}"
        );
        assert_eq!(
            inside(cli, "edited", "cat /etc/resolv.conf"),
            "nameserver 9.9.9.9 # mine"
        );
        // An unedited file is updated.
        assert!(inside(cli, "plain", "cat /etc/resolv.conf").contains("nameserver 127.0.0.11"));
        for name in ["edited", "plain"] {
            cli.run(&["network", "disconnect", "other", name]).ok();
        }
        assert_eq!((hosts("edited"), hosts("plain")), (edited, plain));
        assert_eq!(
            inside(cli, "edited", "cat /etc/resolv.conf"),
            "nameserver 9.9.9.9 # mine"
        );
        assert!(!inside(cli, "plain", "cat /etc/resolv.conf").contains("127.0.0.11"));
        // Also by an engine that has not written the files itself.
        engine.kill9();
        engine.restart();
        for name in ["edited", "plain"] {
            cli.run(&["network", "connect", "other", name]).ok();
        }
        assert!(hosts("edited").contains("1.2.3.4 mine"));
        assert_eq!(
            inside(cli, "edited", "cat /etc/resolv.conf"),
            "nameserver 9.9.9.9 # mine"
        );
        assert!(inside(cli, "plain", "cat /etc/resolv.conf").contains("nameserver 127.0.0.11"));
        cli.run(&["rm", "-f", "edited", "plain"]).ok();
        cli.run(&["network", "rm", "other"]).ok();
    });
}

#[test]
fn comments_of_resolv_conf_name_the_servers() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&["network", "create", "--ipv6=false", "app"]).ok();
    let resolv = |flags: &[&str]| {
        cli.run(
            &[
                &["run", "--rm"],
                flags,
                &["busybox", "cat", "/etc/resolv.conf"],
            ]
            .concat(),
        )
        .ok()
    };
    let text = resolv(&[
        "--network",
        "app",
        "--dns",
        "9.9.9.9",
        "--dns",
        "2001:db8::1",
        "--dns-search",
        "corp.example",
    ]);
    let (head, comments) = text.split_once("\n\n# Based").expect("comments at the end");
    assert!(
        head.ends_with("nameserver 127.0.0.11\nsearch corp.example\noptions ndots:0")
            && head.starts_with("# Generated by"),
        "{head}"
    );
    assert_eq!(
        comments,
        " on host file: '/etc/resolv.conf' (internal resolver)\n# ExtServers: [9.9.9.9 2001:db8::1]\n\
         # Overrides: [nameservers search]\n# Option ndots from: internal"
    );
    assert!(
        resolv(&["--dns", "9.9.9.9"])
            .ends_with("\nnameserver 9.9.9.9\n\n# Based on host file: '/etc/resolv.conf' (legacy)\n# Overrides: [nameservers]")
    );
}

#[test]
fn a_container_without_ipv6_has_no_ipv6_addresses() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&["network", "create", "--ipv6", "six"]).ok();
    cli.run(&["network", "create", "--ipv6", "more"]).ok();
    up(cli, "asks", &["--network", "six"], "sleep 300");
    let addresses = |name: &str, network: &str| {
        let place = engine.inspect(name)["NetworkSettings"]["Networks"][network].clone();
        ["IPv6Gateway", "GlobalIPv6Address"].map(|key| place[key].as_str().unwrap().to_owned())
    };
    for setting in [
        "net.ipv6.conf.all.disable_ipv6=1",
        "net.ipv6.conf.lo.disable_ipv6=1",
    ] {
        up(
            cli,
            "four",
            &[
                "--network",
                "six",
                "-p",
                "127.0.0.1::80",
                "-p",
                "80",
                "--sysctl",
                setting,
            ],
            SERVES,
        );
        cli.run(&["network", "connect", "more", "four"]).ok();
        assert_eq!(
            inside(cli, "four", "ip -6 address; grep : /etc/hosts; true"),
            "",
            "{setting}"
        );
        assert_eq!(addresses("four", "six"), ["", ""]);
        assert_eq!(addresses("four", "more"), ["", ""]);
        assert!(
            !inside(cli, "asks", "nslookup -type=aaaa four").contains("fd"),
            "no address is told to others"
        );
        assert!(inside(cli, "asks", "nslookup -type=a four").contains("Address"));
        cli.run(&["rm", "-f", "four"]).ok();
    }
    up(
        cli,
        "both",
        &[
            "--network",
            "six",
            "--sysctl",
            "net.ipv6.conf.default.disable_ipv6=1",
        ],
        "sleep 300",
    );
    assert!(inside(cli, "asks", "nslookup -type=aaaa both").contains(&addresses("both", "six")[1]));
    cli.run(&[
        "run",
        "--rm",
        "--network",
        "six",
        "--ip6",
        "::ffff:10.1.2.3",
        "busybox",
        "true",
    ])
    .refuses(125, "invalid IPv6 address: ::ffff:10.1.2.3");
}

#[test]
fn a_shared_alias_resolves_to_all_addresses() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&["network", "create", "--ipv6=false", "app"]).ok();
    for name in ["one", "two", "three"] {
        up(
            cli,
            name,
            &["--network", "app", "--network-alias", "all"],
            "sleep 600",
        );
    }
    let answer = inside(cli, "one", "nslookup all | tail -n +4 | grep -c Address");
    assert_eq!(answer, "3");
}

#[test]
fn hosts_and_resolv_conf_have_the_requested_entries() {
    let engine = Engine::start();
    engine.both(|cli| {
        let flags = [
            "run",
            "--rm",
            "--name",
            "named",
            "--hostname",
            "me",
            "--add-host",
            "far:10.9.8.7",
            "--add-host",
            "six:[fd00::7]",
            "--add-host",
            "seven=[fd00::8]",
            "--add-host",
            "outside:host-gateway",
        ];
        let run = |more: &[&str], command: &[&str]| {
            cli.run(&[&flags[..], more, &["busybox"], command].concat())
                .ok()
        };
        let hosts = run(&[], &["cat", "/etc/hosts"]);
        assert!(
            hosts.contains("10.9.8.7\tfar")
                && hosts.contains("fd00::7\tsix")
                && hosts.contains("fd00::8\tseven")
                && hosts.contains("\tme")
                && hosts.contains("\toutside"),
            "{hosts}"
        );
        let resolv = run(
            &[
                "--dns",
                "9.9.9.9",
                "--dns-search",
                "corp.example",
                "--dns-option",
                "ndots:3",
            ],
            &["cat", "/etc/resolv.conf"],
        );
        for line in [
            "nameserver 9.9.9.9",
            "search corp.example",
            "options ndots:3",
        ] {
            assert!(resolv.contains(line), "{resolv}");
        }
        up(cli, "target", &[], SERVES);
        let page = "until wget -qO- http://short/; do sleep 0.1; done";
        assert_eq!(
            cli.run(&[
                "run",
                "--rm",
                "--link",
                "target:short",
                "busybox",
                "sh",
                "-c",
                page
            ])
            .ok(),
            "target"
        );
        cli.run(&["rm", "-f", "target"]).ok();
    });
}

#[test]
fn the_alias_of_a_link_belongs_to_one_network() {
    let engine = Engine::start();
    engine.both(|cli| {
        for network in ["one", "two"] {
            cli.run(&["network", "create", network]).ok();
        }
        up(cli, "db", &["--network", "one"], "sleep 300");
        let linked = ["--network", "one", "--link", "db:first"];
        up(cli, "web", &linked, "sleep 300");
        let web = engine.inspect("web");
        assert_eq!(web["HostConfig"]["Links"], json!(null));
        let endpoint = &web["NetworkSettings"]["Networks"]["one"];
        assert_eq!(endpoint["Links"], json!(["db:first"]));
        cli.run(&["network", "connect", "two", "db"]).ok();
        cli.run(&["network", "connect", "--link", "db:second", "two", "web"])
            .ok();
        for alias in ["first", "second"] {
            assert!(inside(cli, "web", &format!("nslookup -type=a {alias}")).contains("Address"));
        }
        cli.run(&["network", "disconnect", "one", "db"]).ok();
        resolves_not(cli, "web", "first");
        assert!(inside(cli, "web", "nslookup -type=a second").contains("Address"));
        cli.run(&["rm", "-f", "db", "web"]).ok();
        cli.run(&["network", "rm", "one", "two"]).ok();
    });
}

#[test]
fn names_follow_renames_and_connections() {
    let engine = Engine::start();
    engine.both(|cli| {
        cli.run(&["network", "create", "app"]).ok();
        up(cli, "server", &["--network", "app"], SERVES);
        // The default network has no name resolution.
        up(cli, "late", &[], "sleep 600");
        let resolver = inside(cli, "late", "cat /etc/resolv.conf");
        assert!(!resolver.contains("127.0.0.11"), "{resolver}");
        cli.run(&["network", "connect", "app", "late"]).ok();
        assert_eq!(
            inside(
                cli,
                "late",
                "until wget -qO- http://server/ 2>/dev/null; do sleep 0.1; done"
            ),
            "server"
        );
        cli.run(&["rename", "server", "renamed"]).ok();
        assert!(inside(cli, "late", "nslookup renamed").contains("Address"));
        resolves_not(cli, "late", "server");
        // A network that was disconnected is not connected again by a restart.
        cli.run(&["network", "disconnect", "bridge", "late"]).ok();
        cli.run(&["restart", "-t", "0", "late"]).ok();
        assert_eq!(
            inside(cli, "late", "ls /sys/class/net | tr '\\n' ' '"),
            "eth0 lo ".trim_end()
        );
        cli.run(&["rm", "-f", "late", "renamed"]).ok();
        cli.run(&["network", "rm", "app"]).ok();
    });
}

#[test]
fn two_hundred_containers_resolve_each_other() {
    const COUNT: usize = 200;
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&["network", "create", "--ipv6=false", "crowd"])
        .ok();
    let start = |n: usize| {
        let body = json!({"Image": "busybox", "Cmd": ["sleep", "300"], "HostConfig": {"NetworkMode": "crowd"}});
        let id = engine.create(&format!("member{n}"), &body);
        let (status, answer) = engine.api("POST", &format!("/containers/{id}/start"), None);
        assert_eq!(status, 204, "{answer}");
    };
    std::thread::scope(|scope| {
        for part in 0..8 {
            scope.spawn(move || (0..COUNT).filter(|n| n % 8 == part).for_each(start));
        }
    });
    let members = engine.get("/networks/crowd")["Containers"]
        .as_object()
        .unwrap()
        .clone();
    assert_eq!(members.len(), COUNT);
    let mut addresses: Vec<&str> = members
        .values()
        .map(|member| member["IPv4Address"].as_str().unwrap())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), COUNT, "an address was given twice");
    let script = format!(
        "for n in $(seq 0 {}); do nslookup -type=a member$n >/dev/null || echo member$n; done",
        COUNT - 1
    );
    assert_eq!(
        inside(cli, "member7", &script),
        "",
        "names that are not found"
    );
    assert!(inside(cli, "member199", "ping -c1 -w30 member0").contains("1 packets received"));
}

/// Returns a query for the IPv4 address of a name.
fn question(id: u16, name: &str) -> Vec<u8> {
    question_of(id, name, 1)
}

fn question_of(id: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut packet = [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).unwrap());
        packet.extend(label.as_bytes());
    }
    packet.push(0);
    packet.extend(kind.to_be_bytes());
    packet.extend([0, 1]);
    packet
}

/// Returns a socket in a container's network that is connected to its resolver.
fn resolver_of(engine: &Engine, name: &str) -> UdpSocket {
    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", engine.pid(name))).unwrap();
    let socket =
        whelk_sys::net::within(namespace.as_fd(), || UdpSocket::bind("0.0.0.0:0").unwrap())
            .unwrap();
    socket.connect("127.0.0.11:53").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[test]
fn a_flood_of_queries_does_not_delay_other_containers() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&["network", "create", "--ipv6=false", "crowd"])
        .ok();
    // External names are forwarded to a server that does not answer.
    for name in ["flood", "other"] {
        up(
            cli,
            name,
            &["--network", "crowd", "--dns", "192.0.2.1"],
            "sleep 300",
        );
    }
    let (flood, other) = (resolver_of(&engine, "flood"), resolver_of(&engine, "other"));
    let done = AtomicBool::new(false);
    let mut waits = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let questions = ["nobody.example", "other"].map(|name| question(7, name));
            let begin = Instant::now();
            // Ends also if the other thread fails.
            while !done.load(Ordering::Relaxed) && begin.elapsed() < Duration::from_secs(300) {
                questions
                    .iter()
                    .for_each(|question| drop(flood.send(question)));
            }
        });
        for id in 0..400 {
            let begin = Instant::now();
            other.send(&question(id, "flood")).unwrap();
            let mut answer = [0; 512];
            let length = other.recv(&mut answer).expect("an answer");
            assert_eq!(
                (&answer[..2], answer[7]),
                (&id.to_be_bytes()[..], 1),
                "{length} bytes with one address"
            );
            waits.push(begin.elapsed());
            std::thread::sleep(Duration::from_millis(2));
        }
        done.store(true, Ordering::Relaxed);
    });
    waits.sort_unstable();
    assert!(
        waits[waits.len() * 99 / 100] < Duration::from_millis(500),
        "{:?}",
        &waits[waits.len() - 8..]
    );
}

#[test]
fn links_of_the_default_network_set_names_and_variables() {
    let engine = Engine::start();
    engine.both(|cli| {
        up(cli, "db", &["--expose", "80", "-p", "127.0.0.1::5432", "-e", "FOO=bar"], "sleep 300");
        let address = || engine.inspect("db")["NetworkSettings"]["Networks"]["bridge"]["IPAddress"].as_str().unwrap().to_owned();
        cli.run(&["run", "-d", "--name", "web", "--link", "db:database", "busybox", "sleep", "300"]).ok();
        let at = address();
        let variables = |text: String| text.lines().filter(|line| line.starts_with("DATABASE")).collect::<Vec<_>>().join(" ");
        let expected = |at: &str| {
            let port = |number: u16| {
                let key = format!("DATABASE_PORT_{number}_TCP");
                format!("{key}=tcp://{at}:{number} {key}_ADDR={at} {key}_PORT={number} {key}_PROTO=tcp")
            };
            format!("DATABASE_PORT=tcp://{at}:80 {} {} DATABASE_NAME=/web/database DATABASE_ENV_FOO=bar", port(80), port(5432))
        };
        assert_eq!(variables(cli.run(&["exec", "web", "env"]).ok()), expected(&at));
        assert!(variables(inside(cli, "web", "tr '\\0' '\\n' </proc/1/environ")).starts_with("DATABASE_PORT="));
        let id = engine.inspect("db")["Id"].as_str().unwrap()[..12].to_owned();
        assert_eq!(inside(cli, "web", "grep database /etc/hosts"), format!("{at}\tdatabase {id} db"));
        assert_eq!(engine.inspect("web")["HostConfig"]["Links"], json!(["/db:/web/database"]));
        // The link is a further name of the linked container.
        for name in ["web/database", "/web/database"] {
            assert_eq!(cli.run(&["inspect", "-f", "{{.Name}}", name]).ok(), "/db");
        }
        assert_eq!(cli.run(&["exec", "web/database", "echo", "hi"]).ok(), "hi");
        for command in ["pause", "unpause", "top"] {
            cli.run(&[command, "web/database"]).ok();
        }
        assert_eq!(cli.run(&["ps", "-f", "name=db", "--format", "{{.Names}}"]).ok(), "db");
        assert_eq!(cli.run(&["ps", "-f", "name=db", "--no-trunc", "--format", "{{.Names}}"]).ok(), "db,web/database");
        // The linked container gets another address, and then another name.
        cli.run(&["stop", "-t", "0", "db"]).ok();
        let refused = cli.run(&["exec", "web", "true"]).exits(128);
        assert!(refused.contains("Cannot link to a non running container: /db AS /web/database"), "{refused}");
        cli.run(&["restart", "-t", "0", "web"]).refuses(1, "Cannot link to a non running container: /db AS /web/database");
        up(cli, "squatter", &[], "sleep 300");
        cli.run(&["start", "db"]).ok();
        assert_ne!(address(), at);
        cli.run(&["start", "web"]).ok();
        assert_eq!(variables(cli.run(&["exec", "web", "env"]).ok()), expected(&address()));
        cli.run(&["stop", "-t", "0", "db"]).ok();
        cli.run(&["rm", "-f", "squatter"]).ok();
        cli.run(&["start", "db"]).ok();
        eventually("the hosts file to follow", || inside(cli, "web", "grep database /etc/hosts").starts_with(&address()).then_some(()));
        cli.run(&["rename", "db", "store"]).ok();
        assert_eq!(engine.inspect("web")["HostConfig"]["Links"], json!(["/store:/web/database"]));
        // A link can be removed without its containers.
        cli.run(&["rm", "--link", "web"]).refuses(1, "Conflict, cannot remove the default link name of the container");
        cli.run(&["rm", "--link", "web/nope"]).refuses(1, "No such container: web/nope");
        cli.run(&["rm", "--link", "/web/database"]).ok();
        assert_eq!(engine.inspect("web")["HostConfig"]["Links"], json!(null));
        assert_eq!(inside(cli, "web", "grep -c database /etc/hosts; env | grep -c DATABASE; true"), "0\n0");
        cli.run(&["rm", "-f", "web", "store"]).ok();
        // Containers that are restarted with the engine are started after those that they have
        // linked.
        for (name, link) in [("base", "--link=none"), ("top", "--link=base")] {
            let mut args = vec!["run", "-d", "--restart=always", "--name", name, link, "busybox", "sleep", "300"];
            args.retain(|arg| *arg != "--link=none");
            cli.run(&args).ok();
        }
        let pids = ["top", "base"].map(|name| rustix::process::Pid::from_raw(engine.pid(name)).unwrap());
        engine.kill9();
        pids.iter().for_each(|pid| rustix::process::kill_process(*pid, rustix::process::Signal::KILL).unwrap());
        engine.restart();
        ["base", "top"].iter().for_each(|name| engine.await_state(name, "running"));
        cli.run(&["rm", "-f", "top", "base"]).ok();
        cli.run(&["run", "-d", "--name", "hosted", "--network", "host", "busybox", "sleep", "300"]).ok();
        cli.run(&["create", "--link", "hosted", "busybox"]).refuses(1, "host type networking can't be used with links");
        up(cli, "owner", &[], "sleep 300");
        up(cli, "guest", &["--network", "container:owner"], "sleep 300");
        up(cli, "linker", &["--link", "guest:Some-Alias"], "sleep 300");
        let address = engine.inspect("owner")["NetworkSettings"]["Networks"]["bridge"]["IPAddress"].as_str().unwrap().to_owned();
        assert!(inside(cli, "linker", "grep Some-Alias /etc/hosts").starts_with(&format!("{address}\tSome-Alias ")));
        assert_eq!(engine.inspect("linker")["HostConfig"]["Links"], json!(["/owner:/linker/Some-Alias"]));
        cli.run(&["rm", "-f", "linker", "guest", "owner"]).ok();
        cli.run(&["create", "--link", "nosuch:x", "busybox"]).refuses(1, "could not get container for nosuch: No such container: nosuch");
        cli.run(&["rm", "-f", "hosted"]).ok();
    });
}

#[test]
fn names_resolve_immediately_after_an_engine_restart() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&["network", "create", "--ipv6=false", "app"]).ok();
    for name in ["one", "two", "three"] {
        up(cli, name, &["--network", "app"], "sleep 300");
    }
    // Connected before the restart, as a program's resolver library may be.
    let resolver = resolver_of(&engine, "one");
    resolver
        .set_read_timeout(Some(Duration::from_millis(10)))
        .unwrap();
    let answers = |id: u16| {
        drop(resolver.send(&question(id, "two")));
        let mut answer = [0; 512];
        // An answer to this query with one address.
        matches!(resolver.recv(&mut answer), Ok(length) if length > 12 && answer[..2] == id.to_be_bytes() && answer[7] == 1)
    };
    eventually("an answer", || answers(1).then_some(()));
    // Some may be late for another reason.
    let is_soon = |id: &u16| {
        engine.kill9();
        assert!(!answers(*id), "nobody is there");
        engine.restart();
        let back = Instant::now();
        eventually("an answer", || answers(*id).then_some(()));
        // Resolver libraries ask again after five seconds.
        back.elapsed() < Duration::from_secs(4)
    };
    let soon = (2..7).filter(is_soon).count();
    assert!(soon >= 3, "{soon} of 5 answers came in time");
}

#[test]
fn the_files_for_name_resolution_can_be_read_by_all_users() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let stat = "stat -c %a /etc/hosts /etc/hostname /etc/resolv.conf";
    let run = ["run", "--rm", "--user", "1000", "busybox", "sh", "-c", stat];
    assert_eq!(cli.run(&run).ok(), "644\n644\n644");
    // A restart leaves the mode as the container has set it, and the host's name.
    cli.up("one", &[], &["sleep", "600"]);
    let edit = "echo other > /etc/hostname; echo other >> /etc/hosts; chmod 640 /etc/hosts";
    cli.run(&["exec", "one", "sh", "-c", edit]).ok();
    cli.run(&["restart", "-t", "0", "one"]).ok();
    let seen = "cat /etc/hostname; grep -c other /etc/hosts; stat -c %a /etc/hosts";
    let seen = cli.run(&["exec", "one", "sh", "-c", seen]);
    assert_eq!(seen.ok(), "other\n0\n640");
}
