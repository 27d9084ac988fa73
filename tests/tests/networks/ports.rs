//! Published ports: forwarding, conflicts, ranges, and ports of the host that are chosen.

use std::net::TcpListener;

use serde_json::json;
use whelk_tests::serving::{SERVES, fetch, published, serves, up};
use whelk_tests::{Engine, Program, free_port};

#[test]
fn a_published_port_reaches_the_container() {
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
        // Another server may have the port by now.
        assert_ne!(fetch(address).as_deref(), Some("web"));
        assert_eq!(cli.run(&["port", "web"]).ok(), "");
        cli.run(&["rm", "web"]).ok();
    });
}

#[test]
fn a_port_conflict_names_the_owner() {
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
        // The failed start has reserved nothing.
        cli.run(&["rm", "-f", "first"]).ok();
        other
            .cli(cli.program())
            .run(&["run", "--rm", "-p", &wanted, "busybox", "true"])
            .ok();
        cli.run(&["start", "second"]).ok();
    });
    // A port that a process of the host uses.
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
fn a_port_is_released_after_each_start() {
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
fn exposed_ports_and_ranges_are_published() {
    let engine = Engine::start();
    engine.both(|cli| {
        up(
            cli,
            "all",
            &["-P", "--expose", "80", "--expose", "90-91/udp"],
            "sleep 600",
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
        up(cli, "only", &["--expose", "80"], "sleep 600");
        assert_eq!(cli.run(&["ps", "--format", "{{.Ports}}"]).ok(), "80/tcp");
        cli.run(&["rm", "-f", "only"]).ok();
    });
}

#[test]
fn a_port_is_published_on_connecting_to_an_external_network() {
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
fn ports_are_listed_with_ipv4_first() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    const MODE: &str = "com.docker.network.bridge.gateway_mode_ipv6=routed";
    cli.run(&["network", "create", "--ipv6", "-o", MODE, "mixed"])
        .ok();
    let port = free_port().to_string();
    let flags = ["--network", "mixed", "-p", &format!("{port}:80")];
    up(cli, "web", &flags, SERVES);
    assert_eq!(
        engine.inspect("web")["NetworkSettings"]["Ports"],
        json!({"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": port}, {"HostIp": "::", "HostPort": ""}]})
    );
}
