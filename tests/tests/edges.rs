//! Which crate may use which: the table of ARCHITECTURE.md, proven.
#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test says why it fails by failing"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

/// Each crate with the crates of this project that it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("text", &[]),
    ("runtime", &["sys"]),
    ("shim", &["runtime", "sys"]),
    ("dockerfile", &["text"]),
    ("image", &["dockerfile", "sys"]),
    ("network", &["sys"]),
    ("client", &[]),
    ("plugin", &["client", "sys"]),
    (
        "engine",
        &[
            "image", "network", "plugin", "runtime", "shim", "sys", "text",
        ],
    ),
    ("api-types", &[]),
    (
        "api",
        &["api-types", "engine", "image", "shim", "sys", "text"],
    ),
    ("gotemplate", &["text"]),
    ("cli", &["client", "gotemplate", "text"]),
    ("oci", &["runtime", "sys", "text"]),
    ("whelk", &["api", "cli", "engine", "oci", "shim", "sys"]),
];

/// Crates from outside that some of ours must do without.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("runtime", &["tokio", "hyper", "axum"]),
    ("shim", &["tokio", "hyper", "axum"]),
    ("image", &["tokio", "hyper", "axum"]),
    ("network", &["tokio", "hyper", "axum"]),
    ("text", &["tokio", "hyper", "axum"]),
    ("gotemplate", &["tokio", "hyper", "axum"]),
    ("engine", &["hyper", "axum"]),
];

/// What each crate uses when it is built, for whatever machine; what only its tests use is left
/// out.
fn dependencies(name: &str) -> BTreeSet<String> {
    static METADATA: LazyLock<Value> = LazyLock::new(|| {
        let mut cargo = Command::new(env!("CARGO"));
        let cargo = cargo.args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ]);
        let output = cargo
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo metadata");
        serde_json::from_slice(&output.stdout).expect("what cargo says of this workspace")
    });
    let package = |name: &str| {
        if name == "whelk" {
            name.to_owned()
        } else {
            format!("whelk-{name}")
        }
    };
    let packages = METADATA["packages"].as_array().expect("packages");
    let found = packages
        .iter()
        .find(|found| found["name"] == package(name))
        .expect("the crate");
    let dependencies = found["dependencies"]
        .as_array()
        .expect("dependencies")
        .iter();
    let used = dependencies.filter(|dependency| dependency["kind"] != "dev");
    used.filter_map(|dependency| dependency["name"].as_str())
        .map(str::to_owned)
        .collect()
}

#[test]
fn crates_use_only_what_the_table_allows() {
    for (name, allowed) in ALLOWED {
        for used in dependencies(name)
            .iter()
            .filter_map(|used| used.strip_prefix("whelk-"))
        {
            assert!(
                allowed.contains(&used),
                "{name} uses {used}: change ARCHITECTURE.md and this table if that is meant"
            );
        }
    }
}

#[test]
fn the_table_lists_every_crate() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let found: BTreeSet<String> = fs::read_dir(crates)
        .expect("crates")
        .map(|entry| {
            entry
                .expect("entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    assert_eq!(
        found,
        ALLOWED.iter().map(|(name, _)| (*name).to_owned()).collect()
    );
}

#[test]
fn lower_crates_do_without_runtimes_and_http() {
    for (name, forbidden) in FORBIDDEN {
        let used = dependencies(name);
        assert!(
            !forbidden.iter().any(|other| used.contains(*other)),
            "{name} uses one of {forbidden:?}"
        );
    }
}

#[test]
fn unsafe_code_is_in_sys_only() {
    for (name, _) in ALLOWED.iter().filter(|(name, _)| *name != "sys") {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../crates")
            .join(name)
            .join("src");
        let text = fs::read_to_string(root.join("lib.rs"))
            .or_else(|_| fs::read_to_string(root.join("main.rs")))
            .expect("a crate root");
        assert!(
            text.contains("#![forbid(unsafe_code)]"),
            "{name} does not forbid unsafe code"
        );
    }
}
