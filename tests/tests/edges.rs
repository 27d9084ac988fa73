//! Which crate may use which: the table of ARCHITECTURE.md, proven.
#![allow(clippy::expect_used, clippy::disallowed_methods, reason = "a test says why it fails by failing")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Each crate with the crates of this project that it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("runtime", &["sys"]),
    ("shim", &["runtime", "sys"]),
    ("image", &["sys"]),
    ("network", &["sys"]),
    ("engine", &["image", "network", "runtime", "shim", "sys"]),
    ("api", &["engine", "image", "shim", "sys"]),
    ("cli", &[]),
    ("oci", &["runtime", "sys"]),
    ("whelk", &["api", "cli", "engine", "oci", "shim", "sys"]),
];

/// Crates from outside that some of ours must do without.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("runtime", &["tokio", "hyper", "axum"]),
    ("shim", &["tokio", "hyper", "axum"]),
    ("image", &["tokio", "hyper", "axum"]),
    ("network", &["tokio", "hyper", "axum"]),
    ("engine", &["hyper", "axum"]),
];

fn dependencies(name: &str) -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates").join(name).join("Cargo.toml");
    let manifest = fs::read_to_string(&path).expect("a manifest");
    let section = manifest.split("[dependencies]").nth(1).expect("a dependencies section");
    let lines = section.lines().take_while(|line| !line.starts_with('['));
    lines.filter_map(|line| line.split(['.', ' ', '=']).next()).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[test]
fn crates_use_only_what_the_table_allows() {
    for (name, allowed) in ALLOWED {
        for used in dependencies(name).iter().filter_map(|used| used.strip_prefix("whelk-")) {
            assert!(allowed.contains(&used), "{name} uses {used}: change ARCHITECTURE.md and this table if that is meant");
        }
    }
}

#[test]
fn the_table_lists_every_crate() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let found: BTreeSet<String> =
        fs::read_dir(crates).expect("crates").map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(found, ALLOWED.iter().map(|(name, _)| (*name).to_owned()).collect());
}

#[test]
fn lower_crates_do_without_runtimes_and_http() {
    for (name, forbidden) in FORBIDDEN {
        let used = dependencies(name);
        assert!(!forbidden.iter().any(|other| used.contains(*other)), "{name} uses one of {forbidden:?}");
    }
}

#[test]
fn unsafe_code_is_in_sys_only() {
    for (name, _) in ALLOWED.iter().filter(|(name, _)| *name != "sys") {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates").join(name).join("src");
        let text = fs::read_to_string(root.join("lib.rs")).or_else(|_| fs::read_to_string(root.join("main.rs"))).expect("a crate root");
        assert!(text.contains("#![forbid(unsafe_code)]"), "{name} does not forbid unsafe code");
    }
}
