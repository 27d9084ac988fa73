//! An engine that is killed at every single step of what it does. The program under test must have been built with debug
//! assertions: `whelk_sys::step` is nothing without them.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a panic with its place is all the error handling that a test needs")]

use std::fs;
use std::path::{Path, PathBuf};

use whelk_tests::{Cli, Engine, Program, eventually};

/// Carries out `operation` again and again, and lets the engine die one step later each time, until it has done all of it.
/// `prepare` makes what the operation needs; `check` looks at what a restarted engine has made of it, and takes it away.
#[track_caller]
fn at_every_step(prepare: impl Fn(Cli<'_>), operation: &[&str], check: impl Fn(Cli<'_>)) {
    let file = steps_file();
    let engine = Engine::with_env(&[("WHELK_STEPS", &file.to_string_lossy())]);
    let cli = engine.cli(Program::Whelk);
    for steps in 0.. {
        prepare(cli);
        fs::write(&file, steps.to_string()).unwrap();
        let done = cli.run(operation);
        let _ = fs::remove_file(&file);
        let lived = engine.answers();
        if lived {
            assert!(steps > 0, "this build does not die at a step");
            done.ok();
        } else {
            engine.kill9();
            engine.restart();
        }
        check(cli);
        eventually(&format!("the interfaces to go after {steps} steps of {operation:?}"), || engine.interfaces().is_empty().then_some(()));
        if lived {
            eprintln!("{operation:?}: {steps} steps");
            return;
        }
    }
}

/// A file of one case's own.
fn steps_file() -> PathBuf {
    let name = std::thread::current().name().unwrap_or_default().replace(':', "-");
    Path::new("/tmp").join(format!("whelk-steps-{}-{name}", std::process::id()))
}

/// As small as a network can be: an address that was lost would soon be missed.
const CREATE: [&str; 5] = ["network", "create", "--subnet", "10.213.77.0/29", "net"];
const PORT: &str = "127.0.0.1:21977:80";

fn has(cli: Cli<'_>, kind: &str, name: &str) -> bool {
    let listed: &[&str] =
        if kind == "container" { &["ps", "-a", "--format", "{{.Names}}"] } else { &[kind, "ls", "--format", "{{.Name}}"] };
    cli.run(listed).ok().lines().any(|found| found == name)
}

/// Everything that the cases make can be made once more, and is taken away.
fn all_can_be_made_again(cli: Cli<'_>) {
    if has(cli, "container", "one") {
        cli.run(&["rm", "-f", "one"]).ok();
    }
    if !has(cli, "network", "net") {
        cli.run(&CREATE).ok();
    }
    // Its port, its name, its addresses.
    let again = ["run", "--rm", "--name", "one", "--network", "net", "--ip", "10.213.77.6", "-p", PORT, "-v", "kept:/v", "busybox", "true"];
    cli.run(&again).ok();
    cli.run(&["network", "rm", "net"]).ok();
    cli.run(&["volume", "rm", "kept"]).ok();
    assert!(!has(cli, "network", "net") && !has(cli, "volume", "kept") && !has(cli, "container", "one"));
}

/// What the engine says that a container has, and what it has.
fn agrees_with_itself(cli: Cli<'_>) {
    if !has(cli, "container", "one") {
        return;
    }
    let state = cli.engine().inspect("one");
    if state["State"]["Status"] != "running" {
        return;
    }
    let networks = state["NetworkSettings"]["Networks"].as_object().unwrap();
    let said = networks.values().filter(|network| network["IPAddress"].as_str().is_some_and(|address| !address.is_empty())).count();
    let found: usize = cli.run(&["exec", "one", "sh", "-c", "ls -d /sys/class/net/eth* | wc -l"]).ok().trim().parse().unwrap();
    assert_eq!(said, found, "{networks:?}");
}

fn run(cli: Cli<'_>) {
    cli.run(&CREATE).ok();
    cli.run(&["run", "-d", "--name", "one", "--network", "net", "-p", PORT, "busybox", "sleep", "300"]).ok();
}

#[test]
fn network_create() {
    at_every_step(|_| {}, &CREATE, all_can_be_made_again);
}

#[test]
fn network_remove() {
    at_every_step(|cli| drop(cli.run(&CREATE).ok()), &["network", "rm", "net"], all_can_be_made_again);
}

#[test]
fn container_with_network_port_and_volume() {
    let operation = ["run", "-d", "--name", "one", "--network", "net", "-p", PORT, "-v", "kept:/v", "busybox", "sh", "-c", "sleep 300"];
    at_every_step(
        |cli| drop(cli.run(&CREATE).ok()),
        &operation,
        |cli| {
            agrees_with_itself(cli);
            all_can_be_made_again(cli);
        },
    );
}

#[test]
fn network_connect() {
    at_every_step(
        |cli| {
            cli.run(&CREATE).ok();
            cli.run(&["run", "-d", "--name", "one", "-p", PORT, "busybox", "sleep", "300"]).ok();
        },
        &["network", "connect", "net", "one"],
        |cli| {
            agrees_with_itself(cli);
            all_can_be_made_again(cli);
        },
    );
}

#[test]
fn network_disconnect() {
    at_every_step(run, &["network", "disconnect", "net", "one"], |cli| {
        agrees_with_itself(cli);
        all_can_be_made_again(cli);
    });
}

#[test]
fn container_remove() {
    at_every_step(run, &["rm", "-f", "one"], all_can_be_made_again);
}

#[test]
fn volume_create_and_remove() {
    at_every_step(|_| {}, &["volume", "create", "kept"], all_can_be_made_again);
    at_every_step(|cli| drop(cli.run(&["volume", "create", "kept"]).ok()), &["volume", "rm", "kept"], all_can_be_made_again);
}
