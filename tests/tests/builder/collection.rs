//! The budget of the build cache (`builder.gc`): what goes, what stays, and what clients are told of it.

use serde_json::{Value, json};
use whelk_tests::builds::{docker, shows, whelk};
use whelk_tests::processes::with_command;
use whelk_tests::{Engine, Program, eventually};

const MEBIBYTE: u64 = 1 << 20;

/// Restarts an engine with this key `builder.gc`.
fn with_gc(engine: &Engine, gc: &Value) {
    engine.terminate();
    engine.configure(&json!({"builder": {"gc": gc}}));
    engine.restart();
}

/// Returns the sizes and descriptions of the cache's records of a type.
fn records(engine: &Engine, kind: &str) -> Vec<(u64, String)> {
    let usage = engine.get("/system/df?type=build-cache");
    let records = usage["BuildCache"].as_array().unwrap().iter();
    let records = records.filter(|record| record["Type"] == kind);
    records
        .map(|record| {
            let text = record["Description"].as_str().unwrap().to_owned();
            (record["Size"].as_u64().unwrap(), text)
        })
        .collect()
}

fn total(records: &[(u64, String)]) -> u64 {
    records.iter().map(|(size, _)| size).sum()
}

/// Returns the numbers of the large steps that are in the cache.
fn kept(engine: &Engine) -> String {
    let records = records(engine, "regular");
    let numbers = ["1", "2", "3", "4"].into_iter().filter(|number| {
        let text = format!("/large-{number}");
        records.iter().any(|(_, found)| found.contains(&text))
    });
    numbers.collect()
}

/// Builds an image that shares only a small layer with a step that is large.
fn build_large(engine: &Engine, number: u32) -> String {
    let text = format!(
        "FROM busybox AS made\nRUN --network=none dd if=/dev/urandom of=/large-{number} bs=1M count=4 2>/dev/null; echo {number} > /small\nFROM busybox\nCOPY --from=made /small /small\n"
    );
    let context = engine.dockerfile(&format!("large-{number}"), &text);
    whelk(engine).built(&context, &["--progress", "plain"])
}

fn build_small(engine: &Engine, name: &str) {
    let context = engine.dockerfile(
        name,
        &format!("FROM busybox\nRUN --network=none : {name}\n"),
    );
    whelk(engine).built(&context, &[]);
}

#[test]
fn the_cache_is_kept_to_its_budget() {
    let engine = Engine::start();
    with_gc(&engine, &json!({"enabled": false}));
    for number in 1..=4 {
        build_large(&engine, number);
    }
    // Without collection all of it stays.
    assert_eq!(kept(&engine), "1234");
    assert!(total(&records(&engine, "regular")) >= 16 * MEBIBYTE);
    let inspect = engine.whelk(&["buildx", "inspect"]).ok();
    assert!(!inspect.contains("GC Policy"), "{inspect}");

    // What was used within the time stays, however much it is.
    with_gc(
        &engine,
        &json!({"policy": [{"keepDuration": "1h", "maxUsedSpace": "1MB"}]}),
    );
    build_small(&engine, "lately");
    // The budget is kept after a build, in the background: the next one is held until that has happened.
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(kept(&engine), "1234");

    // The first two were not used for the longest time.
    with_gc(
        &engine,
        &json!({"policy": [{"maxUsedSpace": "9MB", "all": true}]}),
    );
    build_small(&engine, "first");
    eventually("the cache to be within its budget", || {
        (total(&records(&engine, "regular")) <= 9 * MEBIBYTE).then_some(())
    });
    assert_eq!(kept(&engine), "34");
    for (number, is_kept) in [(4, true), (1, false)] {
        let shown = build_large(&engine, number);
        let step = shown.lines().find(|line| line.contains("dd if")).unwrap();
        let step = step.split(' ').next().unwrap();
        assert_eq!(
            shown.contains(&format!("{step} CACHED")),
            is_kept,
            "{shown}"
        );
    }
    engine.has_no_builds();
}

#[test]
fn caches_of_steps_have_a_budget_of_their_own() {
    let engine = Engine::start();
    with_gc(&engine, &json!({"enabled": false}));
    build_large(&engine, 1);
    build_large(&engine, 2);
    for number in 1..=3 {
        let text = format!(
            "FROM busybox\nRUN --network=none --mount=type=cache,id=cache-{number},target=/c dd if=/dev/urandom of=/c/f bs=1M count=2; : {number}\n"
        );
        let context = engine.dockerfile(&format!("cache-{number}"), &text);
        whelk(&engine).built(&context, &[]);
    }
    let mounts = |engine: &Engine| {
        let found = records(engine, "exec.cachemount");
        let mut names: Vec<String> = found.into_iter().map(|(_, text)| text).collect();
        names.sort();
        names
    };
    assert_eq!(mounts(&engine).len(), 3);
    with_gc(
        &engine,
        &json!({"policy": [
            {"maxUsedSpace": "5MB", "filter": ["type==exec.cachemount"]},
            {"maxUsedSpace": "1GB", "all": true},
        ]}),
    );
    build_small(&engine, "mounts");
    eventually("a cache to be removed", || {
        (mounts(&engine).len() < 3).then_some(())
    });
    let left = mounts(&engine);
    assert!(
        left.len() == 2 && left[0].contains("cache-2") && left[1].contains("cache-3"),
        "{left:?}"
    );
    assert_eq!(kept(&engine), "12");
    // One that is larger than the budget goes whole; results are not counted.
    with_gc(
        &engine,
        &json!({"policy": [{"maxUsedSpace": "1MB", "filter": ["type==exec.cachemount"]}]}),
    );
    build_small(&engine, "again");
    eventually("all caches to be removed", || {
        mounts(&engine).is_empty().then_some(())
    });
    assert_eq!(kept(&engine), "12");
    engine.has_no_builds();
}

#[test]
fn what_a_build_uses_is_not_collected() {
    let engine = Engine::start();
    with_gc(
        &engine,
        &json!({"policy": [{"maxUsedSpace": "1KB", "all": true}]}),
    );
    let text = "FROM busybox AS made\nRUN --network=none dd if=/dev/urandom of=/large-1 bs=1M count=4; echo kept > /f\nRUN --network=none --mount=type=cache,target=/c echo cached > /c/f; exec sleep 2718\nFROM busybox\nCOPY --from=made /f /f\n";
    // A shell so that the step can be ended from here.
    let text = text.replace("exec sleep 2718", "sleep 2718; cat /c/f >> /f");
    let context = engine.dockerfile("used", &text);
    let cli = docker(&engine);
    let mut running = cli.spawn(&["build", "-t", "used", context.to_str().unwrap()]);
    let sleeping = eventually("the step to run", || with_command(&["sleep", "2718"]));
    build_small(&engine, "meanwhile");
    eventually("the rest to be removed", || {
        let found = records(&engine, "regular");
        (!found.iter().any(|(_, text)| text.contains("meanwhile"))).then_some(())
    });
    let pid = rustix::process::Pid::from_raw(sleeping).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    running.finish().ok();
    let look = ["run", "--rm", "--network", "none", "used", "cat", "/f"];
    assert_eq!(engine.docker(&look).ok(), "kept\ncached");
    engine.has_no_builds();
}

#[test]
fn filters_of_the_api_say_what_is_removed() {
    let engine = Engine::start();
    with_gc(&engine, &json!({"enabled": false}));
    let text = "FROM busybox\nRUN --network=none --mount=type=cache,target=/c echo 1 > /c/f; echo 1 > /one\nRUN --network=none echo 2 > /two\n";
    let context = engine.dockerfile("filtered", text);
    let build = || {
        docker(&engine).built(&context, &["-t", "filtered"]);
        engine.docker(&["rmi", "filtered"]).ok();
    };
    build();
    let list = || {
        let usage = engine.get("/system/df?type=build-cache");
        usage["BuildCache"].as_array().cloned().unwrap_or_default()
    };
    let found = |part: &str| {
        let is_found = |record: &Value| record["Description"].as_str().unwrap().contains(part);
        list().into_iter().find(is_found).unwrap()
    };
    let prune = |filters: &Value| {
        let filters = whelk_tests::escape(&filters.to_string());
        let path = format!("/build/prune?all=1&filters={filters}");
        engine.api("POST", &path, None)
    };
    let removed = |filters: &Value| {
        let (status, body) = prune(filters);
        assert_eq!(status, 200, "{filters}: {body}");
        body["CachesDeleted"].as_array().map_or(0, Vec::len)
    };
    let (one, two) = (found("echo 1 > /one"), found("echo 2 > /two"));
    for filters in [
        json!({"inuse": ["true"]}),
        json!({"shared": ["true"]}),
        json!({"until": ["24h"]}),
        json!({"unused-for": ["24h"]}),
        json!({"type": ["frontend"]}),
        json!({"label": ["a=b"]}),
        json!({"description": ["echo 1 > /one"]}),
        json!({"id": ["none"]}),
        json!({"id": [two["ID"]], "type": ["exec.cachemount"]}),
    ] {
        assert_eq!(removed(&filters), 0, "{filters}");
    }
    for (filters, word) in [
        (json!({"colour": ["red"]}), "colour"),
        (json!({"id": ["("]}), "id"),
        (json!({"type": ["regular", "other"]}), "type"),
        (json!({"until": ["soon"]}), "soon"),
    ] {
        let (status, body) = prune(&filters);
        let text = body["message"].as_str().unwrap_or_default();
        assert!(status == 400 && text.contains(word), "{filters}: {body}");
    }
    assert_eq!(removed(&json!({"parent": [one["ID"]]})), 1);
    assert_eq!(removed(&json!({"type": ["exec.cachemount"]})), 1);
    // Commas and quotes are part of the value.
    let description = json!({"description": [one["Description"]]});
    assert_eq!(removed(&description), 1);
    assert!(removed(&json!({"private": ["true"]})) > 0);
    assert!(list().is_empty());
    // All of it is unused.
    build();
    let shown = engine.docker(&["system", "prune", "-f"]).ok();
    shows(&shown, &["Deleted build cache objects:"]);
    assert!(list().is_empty());
}

#[test]
fn clients_are_told_of_the_policies() {
    let engine = Engine::without_images(&[]);
    // The defaults, and those of the documentation.
    let inspect = |program: Program| {
        let cli = engine.cli(program).with_env(whelk_tests::builds::BUILDKIT);
        cli.run(&["buildx", "inspect"]).ok()
    };
    for program in [Program::Docker, Program::Whelk] {
        let shown = inspect(program);
        let expected = [
            "GC Policy rule#0",
            "type==source.local",
            "type==exec.cachemount",
            "48h",
            "GC Policy rule#3",
        ];
        shows(&shown, &expected);
    }
    with_gc(
        &engine,
        &json!({"policy": [
            {"maxUsedSpace": "5GB", "filter": ["type==exec.cachemount"]},
            {"keepDuration": "720h", "maxUsedSpace": "50GB", "all": true},
        ]}),
    );
    for program in [Program::Docker, Program::Whelk] {
        let shown = inspect(program);
        shows(&shown, &["5GiB", "50GiB", "720h", "GC Policy rule#1"]);
        assert!(!shown.contains("rule#2"), "{shown}");
    }
    with_gc(
        &engine,
        &json!({"enabled": true, "defaultReservedSpace": "10GB", "defaultMaxUsedSpace": "50GB", "defaultMinFreeSpace": "20GB"}),
    );
    let shown = inspect(Program::Whelk);
    shows(&shown, &["10GiB", "50GiB", "20GiB", "GC Policy rule#3"]);
}
