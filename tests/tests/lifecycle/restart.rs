//! Restarts, restart policies, and updates of containers.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use whelk_tests::{Engine, Program, eventually, stays};

use super::TRAPS;

#[test]
fn restart_runs_the_program_again_on_the_same_files() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        cli.up(
            "again",
            &[],
            &["sh", "-c", "echo x >>/runs; wc -l </runs; exec sleep 600"],
        );
        engine.await_log("again", "1\n");
        let before = engine.inspect("again")["State"].clone();
        assert_eq!(cli.run(&["restart", "-t", "0", "again"]).ok(), "again");
        engine.await_log("again", "1\n2\n");
        let after = engine.inspect("again");
        assert_ne!(after["State"]["Pid"], before["Pid"]);
        assert_ne!(after["State"]["StartedAt"], before["StartedAt"]);
        assert_eq!(
            after["RestartCount"], 0,
            "a restart by hand is none by policy"
        );
        cli.run(&["kill", "again"]).ok();
        cli.run(&["start", "again"]).ok();
        engine.await_log("again", "1\n2\n3\n");
    });
}

#[test]
fn a_restart_policy_is_limited_by_its_retry_count() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        cli.up(
            "thrice",
            &["--restart", "on-failure:2"],
            &["sh", "-c", "echo run; exit 4"],
        );
        eventually("the last try", || {
            (engine.inspect("thrice")["RestartCount"] == 2 && engine.state("thrice") == "exited")
                .then_some(())
        });
        assert_eq!(engine.logs("thrice"), "run\nrun\nrun\n");
        assert_eq!(engine.inspect("thrice")["State"]["ExitCode"], 4);
        cli.up(
            "once",
            &["--restart", "on-failure:2"],
            &["sh", "-c", "echo run"],
        );
        engine.await_state("once", "exited");
        assert_eq!(
            (
                engine.logs("once").as_str(),
                engine.inspect("once")["RestartCount"].as_i64()
            ),
            ("run\n", Some(0))
        );
        cli.up("always", &["--restart", "always"], &["sh", "-c", TRAPS]);
        engine.await_log("always", "ready\n");
        // A container that dies is restarted; a stopped one is not.
        kill_process(Pid::from_raw(engine.pid("always")).unwrap(), Signal::USR1).unwrap();
        engine.await_log("always", "ready\nready\n");
        cli.run(&["stop", "always"]).ok();
        stays("it is stopped", Duration::from_millis(500), || {
            engine.state("always") == "exited"
        });
    });
}

#[test]
fn update_changes_what_inspect_shows() {
    Engine::start().both(|cli| {
        cli.up("changed", &[], &["sleep", "600"]);
        assert_eq!(
            cli.run(&[
                "update",
                "--restart",
                "on-failure:3",
                "--cpus",
                "0.5",
                "changed"
            ])
            .ok(),
            "changed"
        );
        let config = &cli.engine().inspect("changed")["HostConfig"];
        assert_eq!(
            config["RestartPolicy"],
            json!({"Name": "on-failure", "MaximumRetryCount": 3})
        );
        assert_eq!(config["NanoCpus"], 500_000_000);
        cli.run(&["update", "-m", "1m", "changed"])
            .refuses(1, "Minimum memory limit allowed is 6MB");
        cli.run(&["update", "changed"]).refuses(
            1,
            "you must provide one or more flags when using this command",
        );
    });
}

#[test]
fn containers_with_shared_names_can_be_updated() {
    Engine::start().both(|cli| {
        cli.up("donor", &[], &["sleep", "600"]);
        cli.run(&[
            "run",
            "-d",
            "--name",
            "sharing",
            "--network",
            "container:donor",
            "busybox",
            "sleep",
            "600",
        ])
        .ok();
        cli.up("named", &["--uts", "host"], &["sleep", "600"]);
        for name in ["sharing", "named"] {
            assert_eq!(cli.run(&["update", "--cpus", "0.5", name]).ok(), name);
            assert_eq!(
                cli.engine().inspect(name)["HostConfig"]["NanoCpus"],
                500_000_000
            );
        }
    });
}

#[test]
fn a_permanently_failing_restart_is_not_repeated() {
    let engine = Engine::start();
    let device = engine.scratch("device").join("node");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &device,
        rustix::fs::FileType::CharacterDevice,
        0o600.into(),
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    let cli = engine.cli(Program::Whelk);
    cli.up(
        "lost",
        &[
            "--restart",
            "always",
            "--device",
            &format!("{}:/dev/node", device.display()),
        ],
        &["sleep", "600"],
    );
    fs::remove_file(&device).unwrap();
    kill_process(Pid::from_raw(engine.pid("lost")).unwrap(), Signal::KILL).unwrap();
    engine.await_state("lost", "exited");
    let state = engine.inspect("lost")["State"].clone();
    assert!(
        state["Error"]
            .as_str()
            .is_some_and(|error| error.contains("no such file or directory")),
        "{state}"
    );
    // A working directory that cannot be created, because the tmpfs has no free inodes.
    let options = ["type=tmpfs", "device=tmpfs", "o=nr_inodes=8"];
    let mut create = vec!["volume", "create"];
    create.extend(options.iter().flat_map(|option| ["-o", option]));
    create.push("small");
    cli.run(&create).ok();
    cli.up("keeps", &["-v", "small:/t"], &["sleep", "600"]);
    cli.up(
        "full",
        &["--restart", "always", "-v", "small:/t", "-w", "/t/x"],
        &[
            "sh",
            "-c",
            "cd /; rmdir /t/x; while touch /t/$((i+=1)); do :; done; sleep 0.2",
        ],
    );
    engine.await_state("full", "exited");
    let state = engine.inspect("full")["State"].clone();
    assert!(
        state["Error"]
            .as_str()
            .is_some_and(|error| error.contains("mkdir /t/x: no space left on device")),
        "{state}"
    );
}

#[test]
fn a_conflicting_update_is_rejected_like_docker() {
    let engine = Engine::start();
    let update = |name: &str, change: serde_json::Value| {
        let (status, answer) =
            engine.api("POST", &format!("/containers/{name}/update"), Some(&change));
        let text = answer["message"].as_str().unwrap_or_default().to_owned();
        (
            status,
            text.split_once(": ")
                .map_or(text.clone(), |(_, rest)| rest.to_owned()),
        )
    };
    let make = |name: &str, mut host: serde_json::Value| {
        host["NetworkMode"] = json!("none");
        engine.create(
            name,
            &json!({"Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": host}),
        )
    };
    // Defaults that creation has filled in do not count as requested.
    for (name, host) in [
        ("uts", json!({"NetworkMode": "none", "UTSMode": "host"})),
        ("net", json!({"NetworkMode": "container:uts"})),
    ] {
        engine.create(
            name,
            &json!({"Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": host}),
        );
        assert_eq!(update(name, json!({"Memory": 64 << 20})).0, 200, "{name}");
    }
    let conflict = |what: &str, other: &str| {
        (
            409,
            format!(
                "Conflicting options: {what} cannot be updated as {other} has already been set"
            ),
        )
    };
    make("nano", json!({"NanoCpus": 1_000_000_000}));
    assert_eq!(
        update("nano", json!({"CpuQuota": 50_000})),
        conflict("CPU Quota", "NanoCPUs")
    );
    assert_eq!(
        update("nano", json!({"CpuPeriod": 50_000})),
        conflict("CPU Period", "NanoCPUs")
    );
    let id = make("quota", json!({"CpuQuota": 50_000, "AutoRemove": true}));
    assert_eq!(
        update("quota", json!({"NanoCpus": 1_000_000_000})),
        conflict("Nano CPUs", "CPU Quota")
    );
    let (status, answer) = engine.api(
        "POST",
        "/containers/quota/update",
        Some(&json!({"RestartPolicy": {"Name": "always"}})),
    );
    let text = format!(
        "Cannot update container {id}: Restart policy cannot be updated because AutoRemove is enabled for the container"
    );
    assert_eq!(
        (status, answer["message"].as_str()),
        (409, Some(text.as_str()))
    );
    assert_eq!(
        update("quota", json!({"RestartPolicy": {"Name": "no"}})).0,
        200
    );
    let (status, text) = update("quota", json!({"RestartPolicy": {"Name": "bogus"}}));
    assert!(
        status == 400 && text.starts_with("unknown policy 'bogus'"),
        "{text}"
    );
    for (given, shown) in [(7, 7), (-1, 0), (9, 9), (-5, 0), (0, 0)] {
        assert_eq!(update("nano", json!({"PidsLimit": given})).0, 200);
        assert_eq!(
            engine.inspect("nano")["HostConfig"]["PidsLimit"],
            shown,
            "{given}"
        );
    }
    // The limit is removed in the kernel, in the running container and at its next start.
    update("nano", json!({"PidsLimit": 7}));
    let limit = |name: &str| {
        engine
            .whelk(&[
                "exec",
                name,
                "sh",
                "-c",
                "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null",
            ])
            .out()
    };
    engine.whelk(&["start", "nano"]).ok();
    assert_eq!(limit("nano").trim(), "7");
    assert_eq!(update("nano", json!({"PidsLimit": -1})).0, 200);
    assert_eq!(limit("nano").trim(), "max");
    engine.whelk(&["restart", "-t", "0", "nano"]).ok();
    assert_eq!(limit("nano").trim(), "max");
}

#[test]
fn containers_are_stopped_before_the_host_shuts_down() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    let sleeps = ["sleep", "600"];
    cli.up(
        "always",
        &["--restart", "always", "--stop-signal", "USR1"],
        &["sh", "-c", TRAPS],
    );
    cli.up(
        "unless",
        &["--restart", "unless-stopped", "--stop-timeout", "5"],
        &sleeps,
    );
    cli.up(
        "failure",
        &["--restart", "on-failure", "--stop-timeout", "5"],
        &sleeps,
    );
    cli.up("plain", &["--stop-timeout", "5"], &sleeps);
    cli.up("paused", &["--stop-timeout", "5"], &sleeps);
    cli.up("stopped", &["--restart", "unless-stopped"], &sleeps);
    cli.up("crashes", &["--restart", "always"], &["false"]);
    cli.run(&["stop", "-t", "0", "stopped"]).ok();
    cli.run(&["pause", "paused"]).ok();
    engine.await_log("always", "ready\n");
    let begin = std::time::Instant::now();
    let told = cli.run(&["system", "stop-containers"]).ok();
    // One after another they take 20 s.
    assert!(
        begin.elapsed() < Duration::from_secs(19),
        "{:?}",
        begin.elapsed()
    );
    let mut names: Vec<&str> = told.lines().filter(|name| *name != "crashes").collect();
    names.sort_unstable();
    assert_eq!(names, ["always", "failure", "paused", "plain", "unless"]);
    assert_eq!(
        engine.inspect("always")["State"]["ExitCode"],
        5,
        "its own signal"
    );
    let running = || {
        let all = [
            "always", "unless", "failure", "plain", "paused", "stopped", "crashes",
        ];
        let all = all.into_iter();
        all.filter(|name| engine.state(name) == "running")
            .collect::<Vec<_>>()
    };
    stays("nothing is started", Duration::from_millis(1500), || {
        running().is_empty()
    });
    engine.terminate();
    engine.restart();
    eventually("what the policies say", || {
        (running()
            .iter()
            .filter(|name| **name != "crashes")
            .eq(&["always", "unless", "failure"]))
        .then_some(())
    });
    for name in ["plain", "paused", "stopped"] {
        assert_eq!(engine.state(name), "exited", "{name}");
    }
}

#[test]
fn the_delay_of_restarts_is_doubled_until_a_run_is_long() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    // The seventh run takes more than ten seconds.
    let script = "echo x >>/runs; [ $(wc -l </runs) = 7 ] && sleep 10.3; exit 1";
    let mut events = engine.events("filters=%7B%22type%22%3A%5B%22container%22%5D%7D");
    cli.up("crashes", &["--restart", "always"], &["sh", "-c", script]);
    let (mut ended, mut delays) = (0, Vec::new());
    while delays.len() < 8 {
        let event = events.next_event().unwrap();
        let at = event["timeNano"].as_i64().unwrap() / 1_000_000;
        match event["Action"].as_str().unwrap() {
            "die" => ended = at,
            "start" if ended > 0 => delays.push(at - ended),
            _ => {}
        }
    }
    cli.run(&["rm", "-f", "crashes"]).ok();
    // In milliseconds. A start itself takes some time.
    for (delay, least) in delays
        .iter()
        .zip([100, 200, 400, 800, 1600, 3200, 100, 200])
    {
        assert!(*delay >= least - 5, "{delays:?}");
    }
    // Without the long run: 6400 and 12800.
    assert!(delays[6] < 6395 && delays[7] < 12795, "{delays:?}");
}
