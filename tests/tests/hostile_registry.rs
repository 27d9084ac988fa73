//! Registries that send what they should not, or not enough, and engines that are killed meanwhile.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::time::Duration;

use serde_json::{Value, json};
use whelk_tests::images::{self, Archive, marked};
use whelk_tests::registry::{Behaviour, Registry};
use whelk_tests::{Engine, Program, eventually};

/// Bytes that do not compress.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    })
    .take(length)
    .collect()
}

/// Checks that nothing of an image is left that can be seen or used.
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

/// Peak of the engine's memory, in KiB.
fn peak(engine: &Engine) -> u64 {
    let status = format!("/proc/{}/status", engine.daemon_pid());
    let status = std::fs::read_to_string(status).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

#[test]
fn answers_that_have_no_end_are_cut_off() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    let before = peak(&engine);
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
    let grown = peak(&engine) - before;
    assert!(grown < 60 << 10, "{grown} KiB");
    check_nothing(&engine);
}

#[test]
fn documents_are_bounded() {
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
fn an_engine_that_is_killed_again_and_again_continues() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let layer = images::small_root().file("noise", noise(4 << 20)).finish();
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
    let run = [
        "run",
        "--rm",
        "--network",
        "none",
        &pushed.name,
        "echo",
        "up",
    ];
    assert_eq!(engine.whelk(&run).ok(), "up");
}
