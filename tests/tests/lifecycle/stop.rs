//! Stopping, waiting for and removing containers.

use std::time::{Duration, Instant};

use serde_json::json;
use whelk_tests::{Engine, Program, eventually, stays};

use super::TRAPS;

#[test]
fn death_by_signal_gives_128_plus_its_number() {
    Engine::start().both(|cli| {
        cli.up("killed", &[], &["sleep", "600"]);
        assert_eq!(cli.run(&["kill", "killed"]).ok(), "killed");
        assert_eq!(cli.run(&["wait", "killed"]).ok(), "137");
        let state = &cli.engine().inspect("killed")["State"];
        assert_eq!(
            (state["ExitCode"].as_i64(), state["OOMKilled"].as_bool()),
            (Some(137), Some(false))
        );
        cli.up("hup", &["--init"], &["sleep", "600"]);
        cli.run(&["kill", "-s", "HUP", "hup"]).ok();
        assert_eq!(cli.run(&["wait", "hup"]).ok(), "129");
        // A shell that is the first process of a container ends like any other.
        cli.sh(&["--init"], "kill -TERM $$").exits(143);
    });
}

#[test]
fn stop_sends_the_stop_signal() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        cli.up("own", &["--stop-signal", "USR1"], &["sh", "-c", TRAPS]);
        engine.await_log("own", "ready");
        assert_eq!(cli.run(&["stop", "own"]).ok(), "own");
        assert_eq!(engine.inspect("own")["State"]["ExitCode"], 5);
        cli.up("usual", &[], &["sh", "-c", TRAPS]);
        engine.await_log("usual", "ready");
        cli.run(&["stop", "usual"]).ok();
        assert_eq!(engine.inspect("usual")["State"]["ExitCode"], 6);
        cli.up("given", &[], &["sh", "-c", TRAPS]);
        engine.await_log("given", "ready");
        cli.run(&["stop", "-s", "USR1", "given"]).ok();
        assert_eq!(engine.inspect("given")["State"]["ExitCode"], 5);
    });
}

#[test]
fn stop_kills_only_after_the_timeout() {
    let engine = Engine::start();
    // Far from the timeouts below.
    engine.terminate();
    engine.configure(&json!({"default-stop-timeout": 100}));
    engine.restart();
    let cli = engine.cli(whelk_tests::Program::Docker);
    // Without a handler, the kernel keeps signals from the first process of a pid namespace.
    let check = |flags: &[&str], stop: &[&str], least: u64, most: u64| {
        cli.up("deaf", flags, &["sleep", "600"]);
        let begin = Instant::now();
        cli.run(&[&["stop"][..], stop, &["deaf"][..]].concat()).ok();
        let took = begin.elapsed();
        assert!(
            (Duration::from_secs(least)..Duration::from_secs(most)).contains(&took),
            "{flags:?} {stop:?} took {took:?}"
        );
        assert_eq!(engine.inspect("deaf")["State"]["ExitCode"], 137);
        cli.run(&["rm", "deaf"]).ok();
    };
    check(&["--stop-timeout", "1"], &[], 1, 50);
    check(&[], &["-t", "2"], 2, 50);
    check(&["--stop-timeout", "90"], &["-t", "0"], 0, 50);
}

#[test]
fn several_containers_are_stopped_at_the_same_time() {
    const NAMES: [&str; 4] = ["deaf1", "deaf2", "deaf3", "handles"];
    Engine::start().both(|cli| {
        let engine = cli.engine();
        for name in &NAMES[..3] {
            cli.up(name, &[], &["sleep", "600"]);
        }
        cli.up("handles", &[], &["sh", "-c", TRAPS]);
        engine.await_log("handles", "ready");
        let begin = Instant::now();
        let mut stopping = cli.spawn(&[&["stop", "-t", "10"][..], &NAMES].concat());
        if cli.program() == Program::Whelk {
            // Told at once: nothing is printed before the first container has stopped.
            eventually("the reason for the delay", || {
                let shown = stopping.errors_so_far();
                NAMES[..3]
                    .iter()
                    .all(|name| {
                        shown.contains(&format!(
                            "{name}: its main process has no handler for SIGTERM"
                        ))
                    })
                    .then_some(())
            });
            assert!(
                begin.elapsed() < Duration::from_secs(10),
                "{:?}",
                begin.elapsed()
            );
            assert_eq!(
                engine.inspect("deaf2")["State"]["UnhandledSignal"],
                "SIGTERM"
            );
        }
        let output = stopping.finish();
        // One after another they take 30 s.
        assert!(
            begin.elapsed() < Duration::from_secs(29),
            "{:?}",
            begin.elapsed()
        );
        assert_eq!(output.ok(), NAMES.join("\n"));
        assert!(!output.err().contains("handles:"), "{}", output.err());
        assert_eq!(engine.inspect("handles")["State"]["ExitCode"], 6);
        assert!(
            engine.inspect("deaf2")["State"]
                .get("UnhandledSignal")
                .is_none()
        );
        // Errors do not prevent the others, and all are reported.
        let output = cli.run(&["rm", "deaf1", "no1", "deaf2", "no2", "deaf3", "handles"]);
        assert_eq!(output.out(), "deaf1\ndeaf2\ndeaf3\nhandles\n");
        output.refuses(1, "No such container: no1");
        output.refuses(1, "No such container: no2");
    });
}

#[test]
fn rm_removes_a_container_at_its_end() {
    let engine = Engine::start();
    engine.both(|cli| {
        cli.sh(&[], "exit 3").exits(3);
        assert_eq!(cli.run(&["ps", "-aq"]).ok(), "");
        cli.up("soon", &["--rm"], &["sleep", "600"]);
        cli.run(&["kill", "soon"]).ok();
        engine.await_state("soon", "");
        let left =
            || std::fs::read_dir(engine.root().join("containers")).map_or(0, Iterator::count);
        eventually("its directory to be gone", || (left() == 0).then_some(()));
    });
}

#[test]
fn wait_prints_the_status_of_each_container() {
    Engine::start().both(|cli| {
        for (name, code) in [("five", "exit 5"), ("zero", "exit 0")] {
            cli.up(name, &[], &["sh", "-c", code]);
        }
        cli.up("later", &[], &["sh", "-c", TRAPS]);
        cli.engine().await_log("later", "ready");
        let mut waiting = cli.spawn(&["wait", "five", "zero", "later", "nosuch"]);
        waiting.expect("5\n0\n");
        assert!(waiting.is_running());
        cli.run(&["kill", "-s", "USR1", "later"]).ok();
        let output = waiting.finish();
        output.refuses(1, "Error response from daemon: No such container: nosuch");
        assert_eq!(output.out(), "5\n0\n5\n");
    });
}

#[test]
fn prune_keeps_used_and_too_recent_objects() {
    let engine = Engine::start();
    engine.both(|cli| {
        let count = |what: &str| engine.get(what).as_array().map_or(0, Vec::len);
        cli.run(&[
            "run",
            "--name",
            "over",
            "--network",
            "none",
            "--label",
            "a=1",
            "busybox",
            "true",
        ])
        .ok();
        cli.run(&["network", "create", "unused"]).ok();
        cli.up("runs", &["--label", "a=1"], &["sleep", "300"]);
        for command in ["container", "network", "image", "system"] {
            cli.run(&[command, "prune", "-f", "--filter", "until=1h"])
                .ok();
            cli.run(&[command, "prune", "-f", "--filter", "until=nonsense"])
                .refuses(1, "nonsense");
        }
        assert_eq!(
            (count("/containers/json?all=1"), count("/networks")),
            (2, 4),
            "all of it is newer than an hour"
        );
        let told = cli
            .run(&["system", "prune", "-f", "--filter", "label=a=1"])
            .ok();
        assert!(
            told.contains("Deleted Containers:") && told.contains("Total reclaimed space:"),
            "{told}"
        );
        assert_eq!(
            (count("/containers/json?all=1"), count("/networks")),
            (1, 4),
            "what runs, and what has no such label"
        );
        let told = cli
            .run(&["system", "prune", "-f", "--filter", "until=0s"])
            .ok();
        assert!(told.contains("unused"), "{told}");
        assert_eq!(count("/networks"), 3);
        assert!(
            !cli.run(&["images", "-q", "--filter", "until=1h"])
                .ok()
                .is_empty(),
            "the image was made long ago"
        );
        cli.run(&["rm", "-f", "runs"]).ok();
    });
}

#[test]
fn a_waiting_stop_does_not_block_other_requests() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.up(
        "stubborn",
        &["--restart", "always"],
        &["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"],
    );
    let begin = Instant::now();
    let mut events = engine.events("");
    let mut waits = cli.spawn(&["stop", "-t", "60", "stubborn"]);
    events.until("kill");
    assert!(waits.is_running());
    cli.run(&["start", "stubborn"]).ok();
    cli.run(&["pause", "stubborn"]).ok();
    cli.run(&["unpause", "stubborn"]).ok();
    cli.run(&["stop", "-t", "0", "stubborn"]).ok();
    waits.finish().ok();
    assert!(
        begin.elapsed() < Duration::from_secs(55),
        "{:?}",
        begin.elapsed()
    );
    assert_eq!(engine.inspect("stubborn")["State"]["ExitCode"], 137);
    stays(
        "it stays stopped, though somebody asked for its start meanwhile",
        Duration::from_millis(500),
        || engine.state("stubborn") == "exited",
    );
    // The same for a restart, and for one without a timeout.
    cli.run(&["start", "stubborn"]).ok();
    let mut events = engine.events("");
    let mut restarts = cli.spawn(&["restart", "-t", "-1", "stubborn"]);
    events.until("kill");
    assert!(restarts.is_running());
    cli.run(&["rm", "-f", "stubborn"]).ok();
    // It may have been started for a moment in between.
    let _ = restarts.finish();
    assert_eq!(engine.get("/containers/json?all=1"), json!([]));
}

#[test]
fn wait_by_id_returns_the_status_of_a_removed_container() {
    let engine = Engine::start();
    let body = json!({"Image": "busybox", "Cmd": ["sh", "-c", "exit 7"], "HostConfig": {"NetworkMode": "none", "AutoRemove": true}});
    for condition in ["", "?condition=next-exit", "?condition=removed"] {
        let id = engine.create("short", &body);
        assert_eq!(
            engine
                .api("POST", &format!("/containers/{id}/start"), None)
                .0,
            204
        );
        engine.await_state(&id, "");
        assert_eq!(
            engine.api("POST", &format!("/containers/{id}/wait{condition}"), None),
            (200, json!({"StatusCode": 7})),
            "{condition}"
        );
        assert_eq!(
            engine
                .api("POST", &format!("/containers/short/wait{condition}"), None)
                .0,
            404
        );
    }
    // A container that a client removes leaves no exit code.
    let id = engine.create("short", &body);
    assert_eq!(
        engine.api("DELETE", &format!("/containers/{id}"), None).0,
        204
    );
    assert_eq!(
        engine
            .api("POST", &format!("/containers/{id}/wait"), None)
            .0,
        404
    );
}
