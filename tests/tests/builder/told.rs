//! What clients are told: complete output, checks and descriptions of Dockerfiles, events, and sizes.

use serde_json::Value;
use whelk_tests::Engine;
use whelk_tests::builds::{classic, docker, shows, whelk};

#[test]
fn output_is_complete() {
    const LINES: usize = 40_000;
    let engine = Engine::start();
    // 8 MiB: four times what BuildKit lets through.
    let padding = "x".repeat(200);
    let script = format!(
        "awk 'BEGIN {{ for (i = 0; i < {LINES}; i++) printf \"line-%06d {padding}\\n\", i }}'"
    );
    let context = engine.dockerfile(
        "long",
        &format!("FROM busybox\nRUN --network=none {script}\n"),
    );
    let count = |text: &str| text.matches("line-0").count();
    let is_whole = |text: &str, who: &str| {
        // The instruction has one, too.
        let last = format!("line-{:06} {padding}", LINES - 1);
        assert!(text.contains(&last) && !text.contains("clipped"), "{who}");
        assert!(count(text) >= LINES, "{who}: {}", count(text));
    };
    is_whole(&docker(&engine).built(&context, &[]), "docker");
    let logs = docker(&engine).run(&["buildx", "history", "logs"]);
    is_whole(&logs.shown(), "the history");
    let shown = whelk(&engine).built(&context, &["--no-cache", "--progress", "plain"]);
    is_whole(&shown, "whelk");
    is_whole(
        &classic(&engine).built(&context, &["--no-cache"]),
        "classic",
    );
    engine.has_no_builds();
}

#[test]
fn dockers_client_checks_and_describes_dockerfiles() {
    let engine = Engine::start();
    let text = "# syntax=docker/dockerfile:1\n# one the first one\nFROM busybox AS one\nARG COLOUR=red\nRUN --mount=type=secret,id=key true\nFROM one as two\nENV a b\nMAINTAINER me\n";
    let context = engine.dockerfile("checked", text);
    let cli = docker(&engine);
    let check = cli.build(&context, &["--check"]);
    assert_eq!(check.code, 1, "{}", check.shown());
    let rules = [
        "FromAsCasing",
        "LegacyKeyValueFormat",
        "MaintainerDeprecated",
    ];
    shows(&check.shown(), &rules);
    shows(&check.shown(), &["3 warnings", ">>> MAINTAINER me"]);
    for (call, expected) in [
        ("targets", &["one", "the first one", "two (default)"][..]),
        ("outline", &["COLOUR", "red"]),
        ("outline,format=json", &["\"name\": \"COLOUR\""]),
        (
            "targets,format=json",
            &["\"description\": \"the first one\""],
        ),
        (
            "subrequests.describe",
            &[
                "outline",
                "targets",
                "lint",
                "subrequests.describe",
                "Lint a Dockerfile",
            ],
        ),
    ] {
        let args = ["--call", call, "--target", "one"];
        let args = if call.starts_with("outline") {
            &args[..]
        } else {
            &args[..2]
        };
        let shown = docker(&engine).build(&context, args);
        assert_eq!(shown.code, 0, "{call}: {}", shown.shown());
        shows(&shown.shown(), expected);
    }
    // Warnings of a build are below its output.
    let built = docker(&engine).built(&context, &[]);
    shows(&built, &["3 warnings found", "MaintainerDeprecated"]);
}

#[test]
fn sizes_add_up_and_removals_are_events() {
    let engine = Engine::start();
    let text = "FROM busybox AS made\nRUN --network=none --mount=type=cache,target=/c dd if=/dev/urandom of=/c/f bs=1M count=1; dd if=/dev/urandom of=/f bs=1M count=3\nFROM busybox\nCOPY --from=made /etc/passwd /x\n";
    let context = engine.dockerfile("sizes", text);
    docker(&engine).built(&context, &["-t", "sizes"]);
    let usage = engine.get("/system/df");
    let records = usage["BuildCache"].as_array().unwrap();
    let size = |record: &Value| record["Size"].as_u64().unwrap();
    let sum: u64 = records.iter().map(size).sum();
    assert!((4 << 20..5 << 20).contains(&sum), "{usage}");
    // Layers of images are counted with the images.
    let layers = usage["LayersSize"].as_u64().unwrap();
    assert!(layers > 1 << 20, "{usage}");
    let row = [
        "system",
        "df",
        "--format",
        "{{.Type}} {{.TotalCount}} {{.Active}}",
    ];
    let row = engine.docker(&row).ok();
    shows(&row, &[&format!("Build Cache {} 0", records.len())]);
    let du = whelk(&engine).run(&["buildx", "du"]).ok();
    let listed = du
        .lines()
        .filter(|line| line.contains(" true ") || line.contains(" false "))
        .count();
    assert_eq!(listed, records.len(), "{du}");
    let since = engine.get("/info")["SystemTime"]
        .as_str()
        .unwrap()
        .to_owned();
    let pruned = docker(&engine).run(&["builder", "prune", "-a", "-f"]).ok();
    shows(&pruned, &["Total"]);
    let until = engine.get("/info")["SystemTime"]
        .as_str()
        .unwrap()
        .to_owned();
    let events = engine.docker(&[
        "events",
        "--since",
        &since,
        "--until",
        &until,
        "--filter",
        "type=builder",
        "--format",
        "{{json .}}",
    ]);
    let events = events.ok();
    let event: Value = serde_json::from_str(events.lines().next().unwrap()).unwrap();
    assert_eq!(event["Action"], "prune", "{event}");
    let reclaimed = event["Actor"]["Attributes"]["reclaimed"].as_str().unwrap();
    let reclaimed: u64 = reclaimed.parse().unwrap();
    assert!(
        reclaimed >= sum - (1 << 20) && reclaimed <= sum + (1 << 20),
        "{event} {sum}"
    );
    let left = engine.get("/system/df?type=build-cache");
    assert_eq!(
        left["BuildCache"].as_array().map_or(0, Vec::len),
        0,
        "{left}"
    );
}
