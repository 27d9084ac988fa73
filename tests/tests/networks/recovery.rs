//! Networks after the engine was killed or was away, or after others changed rules and interfaces.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use whelk_network::{Firewall, Links};
use whelk_tests::serving::{SERVES, inside, published, serves, up};
use whelk_tests::{Cli, Engine, Output, Program, eventually, free_interface_name, free_port};

/// Runs a container that publishes a port at this address of the host, and waits for its end.
fn run_at(cli: Cli<'_>, address: SocketAddr) -> Output {
    let port = format!("{address}:80");
    cli.run(&["run", "--rm", "-p", &port, "busybox", "true"])
}

#[test]
fn networks_survive_a_killed_engine() {
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
        // Without the engine, packets are forwarded and the port stays reserved.
        serves(address, "web");
        assert_eq!(
            TcpListener::bind(address).unwrap_err().kind(),
            ErrorKind::AddrInUse
        );
        engine.restart();
        assert!(inside(cli, "client", "nslookup web").contains("Address"));
        serves(address, "web");
    }
    assert_eq!(engine.get("/networks/app"), before);
    // The recovered port is still reserved, and free after the container's end.
    run_at(cli, address).refuses(125, "web");
    cli.run(&["rm", "-f", "web"]).ok();
    run_at(cli, address).ok();
}

#[test]
fn resources_of_containers_that_ended_without_an_engine_are_released() {
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
    run_at(cli, address).ok();
}

#[test]
fn removed_rules_and_bridges_are_restored() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    up(cli, "web", &["-p", "127.0.0.1::80"], SERVES);
    let address = published(cli, "web");
    serves(address, "web");
    let rules = Firewall::new(engine.name()).unwrap();
    rules.remove().unwrap();
    // A connection attempt without the rules would stay in the connection tracking table.
    std::thread::sleep(Duration::from_millis(500));
    serves(address, "web");
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
fn foreign_interfaces_are_not_changed() {
    let engine = Engine::start();
    let other = Engine::start();
    // A foreign bridge.
    let foreign = free_interface_name();
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
    // A free name is accepted, and the bridge is deleted with the network.
    let own = free_interface_name();
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
fn an_engine_without_records_reuses_its_bridge() {
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
fn an_engine_killed_during_network_changes_leaves_nothing() {
    let engine = Engine::start();
    let ports = [free_port(), free_port(), free_port()];
    for round in 0..10u64 {
        std::thread::scope(|scope| {
            // Their results do not matter, because the engine is killed.
            let mut clients = Vec::new();
            for (client, port) in ports.iter().enumerate() {
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
                    let port = format!("127.0.0.1:{port}:80");
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
            // Each round kills the engine at another time.
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
        for port in ports {
            eventually("ports to be free", || {
                TcpListener::bind(("127.0.0.1", port)).ok()
            });
        }
    }
}
