//! Containers in the network namespace of the host or of another container.

use std::time::Duration;

use serde_json::json;
use whelk_tests::serving::{SERVES, inside, up};
use whelk_tests::{Engine, Program, eventually};

#[test]
fn a_shared_network_namespace_is_shared_completely() {
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
        // Its host name is that of the owner.
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
fn namespace_donors_are_resolved_at_start() {
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
    // The delays double: the next one is of 12.8 seconds.
    eventually("many restarts", || {
        let count = || {
            let again = engine.inspect("again");
            let waits = again["State"]["Status"] == "restarting";
            again["RestartCount"].as_i64().filter(|_| waits)
        };
        let many = count().filter(|count| *count >= 7)?;
        // The count is raised just before the container runs again: let that run pass.
        std::thread::sleep(Duration::from_millis(500));
        (count() == Some(many)).then_some(())
    });
    let [stopped, donor, again] =
        ["stopped", "donor", "again"].map(|name| engine.inspect(name)["Id"].clone());
    let (stopped, donor) = (stopped.as_str().unwrap(), donor.as_str().unwrap());
    let restarting = format!(
        "container {} is restarting, wait until the container is running",
        again.as_str().unwrap()
    );
    // Errors of a restarting donor come first.
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
    // Link-local addresses are validated.
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
    // A donor is stored by ID, so that it can be renamed.
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
    // Sharing with a guest means sharing with its owner, whose files it has.
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
fn host_and_container_networks_cannot_be_connected_later() {
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
    // An endpoint in a removed network exists only in the record, and can be disconnected.
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
