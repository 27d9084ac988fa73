//! The history of builds, and what builds occupy on disk, with `docker buildx`.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;

use rustix::process::Signal;
use serde_json::Value;
use whelk_tests::builds::docker;
use whelk_tests::{Engine, Output, eventually};

fn history(engine: &Engine, args: &[&str]) -> Output {
    docker(engine).run(&[&["buildx", "history"], args].concat())
}

/// Returns the builds, the newest first.
fn listed(engine: &Engine, args: &[&str]) -> Vec<Value> {
    let json = ["ls", "--no-trunc", "--format", "json"];
    let text = history(engine, &[&json, args].concat()).ok();
    let lines = text.lines().filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn name(record: &Value) -> String {
    let name = record["ref"].as_str().unwrap();
    name.rsplit('/').next().unwrap().to_owned()
}

#[test]
fn builds_are_recorded() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nRUN echo the-output-of-a-step && echo x > /x\n";
    let good = engine.dockerfile("context", dockerfile);
    let archive = engine.scratch("archive").join("out.tar");
    let output = format!("type=oci,dest={}", archive.display());
    docker(&engine)
        .build(&good, &["--label", "a=b", "-o", &output])
        .ok();
    let failing = "FROM busybox\nRUN echo before && exit 7\n";
    let bad = engine.scratch_with("bad", &[("Dockerfile", failing)]);
    assert_ne!(docker(&engine).build(&bad, &[]).code, 0);

    let check = |engine: &Engine| {
        let builds = listed(engine, &[]);
        let states: Vec<&str> = builds
            .iter()
            .map(|build| build["status"].as_str().unwrap())
            .collect();
        assert_eq!(states, ["Error", "Completed"]);
        let (failed, made) = (name(&builds[0]), name(&builds[1]));
        let logs = history(engine, &["logs", &made]);
        logs.ok();
        let shown = String::from_utf8_lossy(&logs.stderr).into_owned();
        for wanted in [
            "RUN echo the-output-of-a-step",
            " the-output-of-a-step\n",
            "exporting to oci image format",
        ] {
            assert!(shown.contains(wanted), "{wanted}: {shown}");
        }
        let inspect = ["inspect", "--format", "json", &made];
        let seen: Value = serde_json::from_str(&history(engine, &inspect).ok()).unwrap();
        assert_eq!(seen["Status"], "completed");
        assert!(seen["NumCompletedSteps"].as_i64().unwrap() >= 4, "{seen}");
        assert_eq!(seen["Labels"][0]["Value"], "b");
        let attachments = seen["Attachments"].as_array().unwrap();
        let manifests = attachments
            .iter()
            .filter(|one| one["Type"] == "application/vnd.oci.image.manifest.v1+json");
        assert_eq!(manifests.count(), 1, "{seen}");
        let attached = [
            "inspect",
            "attachment",
            &made,
            attachments[0]["Digest"].as_str().unwrap(),
        ];
        let manifest: Value = serde_json::from_str(&history(engine, &attached).ok()).unwrap();
        assert_eq!(manifest["schemaVersion"], 2);
        let shown = history(engine, &["inspect", &failed]).ok();
        for wanted in [
            "did not complete successfully: exit code: 7",
            "RUN echo before",
            "before",
        ] {
            assert!(shown.contains(wanted), "{wanted}: {shown}");
        }
        let failed_only = listed(engine, &["--filter", "status=error"]);
        assert_eq!(failed_only.len(), 1);
        assert_eq!(name(&failed_only[0]), failed);
        (made, failed)
    };
    let names = check(&engine);
    // Also in the next engine, and after a kill.
    engine.terminate();
    engine.restart();
    assert_eq!(check(&engine), names);
    engine.kill9();
    engine.restart();
    assert_eq!(check(&engine), names);

    let bundle = engine.scratch("bundle").join("out.dockerbuild");
    let export = ["export", "-o", bundle.to_str().unwrap(), &names.0];
    history(&engine, &export).ok();
    assert!(fs::metadata(&bundle).unwrap().len() > 1000);
    history(&engine, &["rm", &names.1]).ok();
    assert_eq!(listed(&engine, &[]).len(), 1);
    assert_ne!(history(&engine, &["logs", &names.1]).code, 0);
    history(&engine, &["rm", "--all"]).ok();
    assert_eq!(listed(&engine, &[]).len(), 0);
    let left = fs::read_dir(engine.root().join("build/history/blobs")).unwrap();
    assert_eq!(left.count(), 0);
    assert_ne!(history(&engine, &["rm", "none"]).code, 0);
}

#[test]
fn running_and_cancelled_builds_are_listed() {
    let engine = Engine::start();
    let waiting = engine.dockerfile(
        "context",
        "FROM busybox\nRUN echo is-running && sleep 4326\n",
    );
    let args = [
        "buildx",
        "build",
        "--progress",
        "plain",
        waiting.to_str().unwrap(),
    ];
    let mut client = docker(&engine).spawn(&args);
    eventually("it runs", || {
        client
            .errors_so_far()
            .contains(" is-running\n")
            .then_some(())
    });
    let builds = listed(&engine, &[]);
    assert_eq!(
        (builds.len(), &builds[0]["status"]),
        (1, &Value::from("Running"))
    );
    client.signal(Signal::INT);
    assert_ne!(client.finish().code, 0);
    let states = || {
        let builds = listed(&engine, &[]);
        builds[0]["status"].as_str().unwrap().to_owned()
    };
    eventually("it is cancelled", || (states() != "Running").then_some(()));
    let inspect = ["inspect", "--format", "json"];
    let seen: Value = serde_json::from_str(&history(&engine, &inspect).ok()).unwrap();
    assert_eq!(seen["Status"], "canceled");
    let shown = history(&engine, &["logs"]);
    assert!(String::from_utf8_lossy(&shown.stderr).contains("is-running"));
}

#[test]
fn usage_is_listed_and_pruned_by_all_flags() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\n\
        RUN echo step-one && dd if=/dev/urandom of=/one bs=1M count=2\n\
        RUN --mount=type=cache,target=/c dd if=/dev/urandom of=/c/two bs=1M count=3\n";
    let place = engine.dockerfile("context", dockerfile);
    docker(&engine).build(&place, &[]).ok();
    let du = |args: &[&str]| docker(&engine).run(&[&["buildx", "du"], args].concat());
    let verbose = du(&["--verbose"]).ok();
    for wanted in [
        "step-one",
        "regular",
        "exec.cachemount",
        "Last used:",
        "Usage count:",
    ] {
        assert!(verbose.contains(wanted), "{wanted}: {verbose}");
    }
    let of_kind = du(&["--verbose", "--filter", "type=exec.cachemount"]).ok();
    assert!(
        of_kind.contains("exec.cachemount") && !of_kind.contains("step-one"),
        "{of_kind}"
    );
    let prune = |args: &[&str]| docker(&engine).run(&[&["buildx", "prune", "-f"], args].concat());
    // Nothing is as old, and there is room for everything.
    for args in [
        &["--filter", "until=24h"][..],
        &["--all", "--reserved-space", "1gb"],
        &["--all", "--keep-storage", "1gb"],
        &["--all", "--max-used-space", "1gb"],
        &["--all", "--filter", "type=frontend"],
    ] {
        let shown = prune(args).ok();
        assert!(!shown.contains("MB"), "{args:?}: {shown}");
    }
    let kept = du(&["--verbose"]).ok();
    assert!(
        kept.contains("step-one") && kept.contains("exec.cachemount"),
        "{kept}"
    );
    prune(&["--filter", "type=exec.cachemount", "--all"]).ok();
    let kept = du(&["--verbose"]).ok();
    assert!(
        kept.contains("step-one") && !kept.contains("exec.cachemount"),
        "{kept}"
    );
    // No disk has as much.
    let shown = prune(&["--all", "--min-free-space", "900tb"]).ok();
    assert!(shown.contains("MB"), "{shown}");
    let kept = du(&["--verbose"]).ok();
    assert!(!kept.contains("step-one"), "{kept}");
    docker(&engine).build(&place, &[]).ok();
    prune(&["--all", "--max-used-space", "1mb"]).ok();
    let kept = du(&["--verbose"]).ok();
    assert!(!kept.contains("step-one"), "{kept}");
    assert_ne!(prune(&["--filter", "until=x"]).code, 0);
}
