//! Pulls from registries that send endless or invalid content, and with engines that are killed.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::time::Duration;

use serde_json::{Value, json};
use whelk_tests::images::{self, Archive, marked};
use whelk_tests::processes::peak_memory;
use whelk_tests::registry::{Behaviour, Registry};
use whelk_tests::{Engine, Program, eventually};

/// Checks that neither an image nor, after a prune, any of its content is left.
fn check_nothing(engine: &Engine) {
    assert_eq!(engine.whelk(&["images", "-aq"]).ok(), "");
    engine.whelk(&["image", "prune", "-f"]).ok();
    for directory in ["layers", "blobs/sha256", "blobs/partial", "tmp"] {
        eventually(directory, || {
            let left = engine.root().join(directory).read_dir().unwrap().count();
            (left == 0).then_some(())
        });
    }
}

#[test]
fn endless_responses_and_redirects_are_errors() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    let before = peak_memory(&engine);
    for (behaviour, text) in [
        (
            Behaviour {
                endless: Some("/manifests/"),
                ..Behaviour::default()
            },
            "the answer is larger than 4194304 bytes",
        ),
        (
            Behaviour {
                endless: Some("/blobs/"),
                ..Behaviour::default()
            },
            "the blob is longer than its",
        ),
        (
            Behaviour {
                redirects: Some("/blobs/"),
                ..Behaviour::default()
            },
            "more than 5 redirects",
        ),
        (
            Behaviour {
                redirects: Some("/manifests/"),
                ..Behaviour::default()
            },
            "more than 5 redirects",
        ),
    ] {
        registry.behave(behaviour);
        engine.both(|cli| cli.run(&["pull", &pushed.name]).refuses(1, text));
    }
    let grown = peak_memory(&engine) - before;
    assert!(grown < 60, "{grown} MiB");
    check_nothing(&engine);
}

#[test]
fn oversized_manifests_and_wrong_sizes_are_errors() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let good = registry.image(&marked("app:1"));
    for (tag, change, text) in [
        (
            "many",
            (|m: &mut Value| m["layers"] = json!(vec![m["layers"][0].clone(); 10_000]))
                as fn(&mut Value),
            "a list of more than 500 elements",
        ),
        (
            "long",
            |m| m["annotations"] = json!({"a": " ".repeat(5 << 20)}),
            "the answer is larger than 4194304 bytes",
        ),
        (
            "less",
            |m| m["layers"][1]["size"] = json!(m["layers"][1]["size"].as_u64().unwrap() + 1),
            "the answer has",
        ),
        (
            "more",
            |m| m["layers"][1]["size"] = json!(m["layers"][1]["size"].as_u64().unwrap() - 1),
            "the blob is longer than its",
        ),
        (
            "huge",
            |m| m["layers"][1]["size"] = json!(u64::MAX),
            "the answer has",
        ),
    ] {
        let mut manifest = good.clone();
        change(&mut manifest);
        let pushed = registry.pushed("app", tag, &manifest);
        engine.whelk(&["pull", &pushed.name]).refuses(1, text);
    }
    check_nothing(&engine);
}

#[test]
fn a_pull_is_resumed_after_each_of_many_kills() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let layer = images::small_root()
        .file("noise", images::noise(4 << 20))
        .finish();
    let pushed = registry.push("big", &Archive::new("big:1", vec![layer]));
    registry.behave(Behaviour {
        pause: Some(Duration::from_millis(20)),
        ..Behaviour::default()
    });
    let digits = &pushed.layers[0]["sha256:".len()..];
    let partial = engine.root().join("blobs/partial").join(digits);
    let length = || std::fs::metadata(&partial).map_or(0, |file| file.len());
    let mut expected = vec![format!("GET /v2/big/blobs/{}", pushed.layers[0])];
    for _ in 0..8 {
        let before = length();
        let cli = engine.cli(Program::Whelk);
        let mut pull = cli.spawn(&["pull", &pushed.name]);
        eventually("some more of the layer", || {
            (length() > before).then_some(())
        });
        engine.kill9();
        assert_ne!(pull.finish().code, 0);
        expected.push(format!("{} bytes={}-", expected[0], length()));
        engine.restart();
        assert_eq!(engine.whelk(&["images", "-aq"]).ok(), "");
    }
    registry.behave(Behaviour::default());
    engine.whelk(&["pull", &pushed.name]).ok();
    assert_eq!(registry.requests(&pushed.layers[0]), expected);
    let cli = engine.cli(Program::Whelk);
    assert_eq!(cli.once(&pushed.name, &["echo", "up"]).ok(), "up");
}
