//! What a `RUN` may do only if the request and the engine's configuration allow it, and where it runs.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use whelk_tests::builds::{classic, docker, whelk};
use whelk_tests::processes::with_command;
use whelk_tests::{Engine, eventually};

/// Restarts an engine with a configuration.
#[track_caller]
fn configure(engine: &Engine, configuration: &serde_json::Value) {
    engine.terminate();
    engine.configure(configuration);
    engine.restart();
}

#[test]
fn a_step_has_all_privileges_if_request_and_configuration_allow_it() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\n\
        RUN --security=insecure mkdir /m && mount -t tmpfs none /m && umount /m && ls /dev/fuse /dev/kmsg | wc -l > /privileged && \
        grep CapEff /proc/self/status && grep Seccomp: /proc/self/status\n\
        RUN --security=insecure mkdir /left && mount -t tmpfs none /left && echo x > /left/x && mount --bind /bin /opt; mount --make-rshared /; true\n\
        RUN mount -t tmpfs none /m 2> /refused || true; ls /dev/kmsg || echo no device > /none\n";
    let context = engine.dockerfile("insecure", dockerfile);
    let allow = ["--allow", "security.insecure", "-t", "insecure"];
    let refused =
        "granting entitlement security.insecure is not allowed by build daemon configuration";
    for client in [docker(&engine), whelk(&engine)] {
        client.build_fails(&context, &allow, &[refused]);
    }
    let rights = json!({"builder": {"entitlements": {"security-insecure": true}}});
    configure(&engine, &rights);
    for client in [docker(&engine), whelk(&engine)] {
        client.build_fails(&context, &[], &["security.insecure is not allowed"]);
        let shown = client.built(&context, &[&allow[..], &["--no-cache"]].concat());
        assert!(shown.contains("Seccomp:\t0"), "{shown}");
        // What the machine has, as the test does.
        let own = fs::read_to_string("/proc/self/status").unwrap();
        let own = own.lines().find(|line| line.starts_with("CapEff:"));
        assert!(shown.contains(own.unwrap()), "{own:?} in {shown}");
        // Mounts that the step leaves end with it.
        let look = "cat /refused /none; find /left /opt";
        let looked = [
            "run",
            "--rm",
            "--network",
            "none",
            "insecure",
            "sh",
            "-c",
            look,
        ];
        let looked = engine.docker(&looked).ok();
        assert!(
            looked.contains("denied") && looked.ends_with("no device\n/left\n/opt"),
            "{looked}"
        );
    }
    engine.has_no_builds();
}

#[test]
fn the_network_of_the_host_can_be_denied_to_all() {
    let engine = Engine::start();
    configure(
        &engine,
        &json!({"builder": {"entitlements": {"network-host": false}}}),
    );
    let context = engine.dockerfile("host", "FROM busybox\nRUN --network=host true\n");
    let refused = "granting entitlement network.host is not allowed by build daemon configuration";
    for client in [docker(&engine), whelk(&engine)] {
        client.build_fails(&context, &["--allow", "network.host"], &[refused]);
        client.build_fails(&context, &["--network", "host"], &[refused]);
        client.build_fails(&context, &[], &["network.host is not allowed"]);
    }
    let plain = engine.dockerfile("plain", "FROM busybox\nRUN true\n");
    classic(&engine).build_fails(&plain, &["--network", "host"], &[refused]);
}

#[test]
fn a_step_gets_devices_that_the_request_allows() {
    let engine = Engine::start();
    let directory = engine.scratch("cdi");
    let specification = json!({"cdiVersion": "1.0.0", "kind": "vendor.com/toy", "devices": [
        {"name": "one", "containerEdits": {"env": ["TOY=one"], "additionalGids": [77], "deviceNodes": [{"path": "/dev/toy", "hostPath": "/dev/null"}]}},
        {"name": "two", "containerEdits": {"env": ["OTHER=two"]}}]});
    fs::write(directory.join("toys.json"), specification.to_string()).unwrap();
    let directories = json!([directory]);
    configure(&engine, &json!({"cdi-spec-dirs": directories}));
    let dockerfile = "FROM busybox\n\
        RUN --device=vendor.com/toy=one,required echo $TOY $OTHER > /one; id -G >> /one; echo x > /dev/toy\n\
        RUN --device=vendor.com/toy=* echo $TOY $OTHER > /all\n\
        RUN --device=vendor.com/toy echo $TOY $OTHER > /first\n\
        USER 5:6\n\
        RUN --device=vendor.com/toy=one stat -c %u:%g /dev/toy > /tmp/owner\n\
        RUN --device=vendor.com/none echo $TOY > /tmp/none; ls /dev/toy || true\n";
    let context = engine.dockerfile("device", dockerfile);
    let look = "cat /one /all /first /tmp/owner /tmp/none; ls -d /dev/toy";
    for client in [docker(&engine), whelk(&engine)] {
        let refused = "device vendor.com/toy=one is requested by the build but not allowed";
        client.build_fails(&context, &[], &[refused]);
        let one = ["--allow", "device=vendor.com/toy=one"];
        let refused = "device vendor.com/toy=two is requested by the build but not allowed";
        client.build_fails(&context, &one, &[refused]);
        client.built(
            &context,
            &["--allow", "device", "-t", "device", "--no-cache"],
        );
        let looked = [
            "run",
            "--rm",
            "--network",
            "none",
            "device",
            "sh",
            "-c",
            look,
        ];
        let looked = engine.docker(&looked).out();
        assert_eq!(looked, "one\n0 10 77\none two\none\n5:6\n\n");
    }
    let missing = "FROM busybox\nRUN --device=vendor.com/none=x,required true\n";
    let missing = engine.dockerfile("missing", missing);
    let text = "required device \"vendor.com/none=x\" is not registered";
    docker(&engine).build_fails(&missing, &["--allow", "device"], &[text]);
    let denied =
        json!({"cdi-spec-dirs": directories, "builder": {"entitlements": {"device": false}}});
    configure(&engine, &denied);
    let refused = "granting entitlement device is not allowed by build daemon configuration";
    docker(&engine).build_fails(&context, &["--allow", "device"], &[refused]);
}

#[test]
fn steps_are_below_the_cgroup_that_the_request_names() {
    let engine = Engine::start();
    let parent = format!("/{}/builds", engine.name());
    let sleep = ["sleep", "253.717"];
    // A shell so that the step can be ended from here.
    let context = engine.dockerfile("parent", "FROM busybox\nRUN sleep 253.717; true\n");
    let context = context.to_str().unwrap();
    let args = ["build", "--no-cache", "--cgroup-parent", &parent, context];
    let step = || eventually("the step", || with_command(&sleep));
    for client in [classic(&engine), docker(&engine), whelk(&engine)] {
        let mut building = client.spawn(&args);
        let sleeping = step();
        let cgroups = fs::read_to_string(format!("/proc/{sleeping}/cgroup")).unwrap();
        assert!(
            cgroups.contains(&format!("{parent}/workload-build-")),
            "{cgroups}"
        );
        kill_process(Pid::from_raw(sleeping).unwrap(), Signal::TERM).unwrap();
        building.finish().exits(0);
    }
    // The next engine finds what a killed one has started there.
    let _building = docker(&engine).spawn(&args);
    step();
    engine.kill9();
    engine.restart();
    eventually("the step to be killed", || {
        with_command(&sleep).is_none().then_some(())
    });
    engine.has_no_builds();
    // The engine does not remove a parent that the user named.
    let trees = fs::read_dir("/sys/fs/cgroup").unwrap();
    let trees = trees.map(|tree| tree.unwrap().path());
    for tree in trees.chain(["/sys/fs/cgroup".into()]) {
        let path = tree.join(parent.trim_start_matches('/'));
        if path.exists() {
            eventually("the cgroup to be empty", || fs::remove_dir(&path).ok());
        }
    }
}
