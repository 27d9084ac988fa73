//! Checks the dependencies of crates, and of modules in the crate `engine`, against the tables of allowed
//! ones.
#![allow(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests fail by panics"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use serde_json::Value;

/// Each crate with the crates of this project that it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("text", &[]),
    ("tls", &[]),
    ("runtime", &["sys"]),
    ("yaml", &[]),
    ("cdi", &["runtime", "sys", "text", "yaml"]),
    ("logsend", &["sys", "text", "tls"]),
    ("shim", &["logsend", "runtime", "sys"]),
    ("llb", &["text"]),
    ("ssh", &[]),
    ("dockerfile", &["llb", "text"]),
    ("bake", &["dockerfile", "text", "yaml"]),
    ("buildkit", &["llb", "sys"]),
    ("image", &["dockerfile", "sys", "text"]),
    ("network", &["sys"]),
    ("client", &["tls"]),
    ("plugin", &["client", "sys"]),
    ("registry", &["client", "image", "sys"]),
    ("distribution", &["image", "registry", "sys"]),
    ("trust", &["image"]),
    ("gotemplate", &["text"]),
    (
        "engine",
        &[
            "cdi",
            "gotemplate",
            "image",
            "logsend",
            "network",
            "plugin",
            "registry",
            "runtime",
            "shim",
            "sys",
            "text",
            "trust",
        ],
    ),
    (
        "build",
        &[
            "dockerfile",
            "engine",
            "image",
            "llb",
            "registry",
            "runtime",
            "ssh",
            "sys",
            "text",
        ],
    ),
    ("api-types", &[]),
    (
        "api",
        &[
            "api-types",
            "build",
            "buildkit",
            "dockerfile",
            "engine",
            "image",
            "llb",
            "registry",
            "shim",
            "sys",
            "text",
            "trust",
        ],
    ),
    (
        "cli",
        &[
            "api-types",
            "bake",
            "buildkit",
            "client",
            "dockerfile",
            "gotemplate",
            "image",
            "llb",
            "registry",
            "ssh",
            "text",
            "trust",
        ],
    ),
    ("oci", &["runtime", "sys", "text"]),
    (
        "whelk",
        &[
            "api",
            "build",
            "cli",
            "distribution",
            "engine",
            "oci",
            "registry",
            "shim",
            "sys",
            "text",
            "trust",
        ],
    ),
];

/// External crates that some of the project's crates must not use.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("runtime", &["tokio", "hyper", "axum"]),
    ("logsend", &["tokio", "hyper", "axum"]),
    ("shim", &["tokio", "hyper", "axum"]),
    ("image", &["tokio", "hyper", "axum"]),
    ("network", &["tokio", "hyper", "axum"]),
    ("text", &["tokio", "hyper", "axum"]),
    ("bake", &["tokio", "hyper", "axum"]),
    ("gotemplate", &["tokio", "hyper", "axum"]),
    ("engine", &["hyper", "axum"]),
];

/// Each module of the engine with the modules that it may use. All of them are in rows above its
/// own, so that there are no circles.
const MODULES: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("events", &[]),
    ("findings", &["error"]),
    ("random_names", &["error"]),
    ("quota", &["error"]),
    ("rollback", &["error"]),
    ("filters", &["error", "events"]),
    ("model", &["error"]),
    ("host", &["model"]),
    ("logging", &["error", "model", "random_names"]),
    ("instance", &["error", "logging", "model"]),
    ("security", &["error", "model"]),
    ("mounts", &["error", "model", "security"]),
    ("shims", &["error", "instance"]),
    ("records", &["error", "model", "mounts"]),
    (
        "store",
        &[
            "error", "events", "findings", "instance", "model", "records",
        ],
    ),
    (
        "images",
        &[
            "error", "events", "filters", "findings", "instance", "records", "store",
        ],
    ),
    (
        "volumes",
        &[
            "error",
            "events",
            "filters",
            "findings",
            "instance",
            "model",
            "quota",
            "random_names",
            "records",
            "store",
        ],
    ),
    (
        "networks",
        &[
            "error",
            "events",
            "filters",
            "findings",
            "instance",
            "model",
            "random_names",
            "rollback",
            "shims",
            "store",
        ],
    ),
    (
        "workload",
        &[
            "error", "events", "findings", "instance", "mounts", "networks", "shims",
        ],
    ),
    (
        "validate",
        &[
            "error",
            "host",
            "instance",
            "logging",
            "model",
            "mounts",
            "random_names",
            "security",
        ],
    ),
    (
        "spec",
        &[
            "error", "instance", "model", "mounts", "security", "validate",
        ],
    ),
    (
        "containers",
        &[
            "error",
            "events",
            "filters",
            "findings",
            "host",
            "images",
            "instance",
            "logging",
            "model",
            "mounts",
            "networks",
            "quota",
            "random_names",
            "records",
            "rollback",
            "security",
            "shims",
            "spec",
            "store",
            "validate",
            "volumes",
            "workload",
        ],
    ),
    (
        "usage",
        &[
            "containers",
            "error",
            "filters",
            "images",
            "instance",
            "model",
            "networks",
        ],
    ),
    // A part of the crate's root: it describes the whole engine.
    ("system", &["", "host", "model"]),
    // As `system`: it verifies the whole engine.
    (
        "check",
        &["", "containers", "error", "findings", "images", "workload"],
    ),
    // The same.
    ("reload", &["", "error", "instance"]),
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
fn the_table_allows_only_what_crates_use() {
    for (name, allowed) in ALLOWED {
        let used = dependencies(name);
        for other in *allowed {
            assert!(
                used.contains(&format!("whelk-{other}")),
                "{name} does not use {other}: remove it from ARCHITECTURE.md and this table"
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
fn lower_crates_do_not_depend_on_tokio_or_http() {
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

/// Returns the directory of the engine's modules.
fn engine() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/engine/src")
}

/// Returns the names of the engine's modules, each with its files. Its tests may use all of them.
fn modules() -> BTreeMap<String, Vec<PathBuf>> {
    let mut modules: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    let mut directories = vec![engine()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("a directory of modules") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let inside = path.strip_prefix(engine()).expect("a path below src");
            let first = inside.iter().next().expect("a name").to_string_lossy();
            let module = first.strip_suffix(".rs").unwrap_or(&first).to_owned();
            modules.entry(module).or_default().push(path);
        }
    }
    for not_a_module in ["lib", "tests"] {
        modules.remove(not_a_module);
    }
    modules
}

/// Returns the first names of the paths that begin with `prefix` in a source text: of `a::b` and
/// of both in `{a, b::{c, d}}`.
fn paths_from(text: &str, prefix: &str) -> BTreeSet<String> {
    let word = |character: char| character.is_alphanumeric() || character == '_';
    let name = |text: &str| -> String { text.chars().take_while(|next| word(*next)).collect() };
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices(prefix) {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|before| word(before) || before == ':') {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(name(rest));
            continue;
        };
        let (mut depth, mut is_first) = (0, true);
        for (at, character) in group.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => is_first = true,
                character if is_first && word(character) => {
                    found.insert(name(&group[at..]));
                    is_first = false;
                }
                _ => {}
            }
        }
    }
    found
}

/// Returns what a file of the engine uses of the crate: modules, and an empty name for anything
/// that is defined in the crate's root. Tests at its end are left out, as are comments.
fn used_by(file: &Path, modules: &BTreeMap<String, Vec<PathBuf>>) -> BTreeSet<String> {
    let text = fs::read_to_string(file).expect("a source file");
    let text = text.split("#[cfg(test)]\nmod tests {").next();
    let code: Vec<&str> = text
        .expect("the part before the tests")
        .lines()
        .map(|line| line.split("//").next().unwrap_or(line))
        .collect();
    let code = code.join("\n");
    let inside = file.strip_prefix(engine()).expect("a path below src");
    let is_directory = inside.ends_with("mod.rs");
    let to_root = "super::".repeat(inside.iter().count() - usize::from(is_directory));
    let mut used = paths_from(&code, "crate::");
    used.extend(paths_from(&code, &to_root));
    used.into_iter()
        .map(|name| {
            if modules.contains_key(&name) {
                name
            } else {
                String::new()
            }
        })
        .collect()
}

#[test]
fn modules_of_the_engine_use_only_what_the_table_allows() {
    let modules = modules();
    for (module, files) in &modules {
        let (_, allowed) = MODULES
            .iter()
            .find(|(name, _)| name == module)
            .unwrap_or_else(|| panic!("the table of the engine's modules lacks {module}"));
        for file in files {
            for used in used_by(file, &modules) {
                assert!(
                    used == *module || allowed.contains(&used.as_str()),
                    "{} uses {}: change the table if that is meant",
                    file.display(),
                    if used.is_empty() {
                        "the crate's root"
                    } else {
                        &used
                    },
                );
            }
        }
    }
}

#[test]
fn the_table_allows_only_what_modules_of_the_engine_use() {
    let modules = modules();
    for (module, allowed) in MODULES {
        let files = modules.get(*module).map_or(&[][..], Vec::as_slice);
        assert!(!files.is_empty(), "there is no module {module}");
        let used: BTreeSet<String> = files
            .iter()
            .flat_map(|file| used_by(file, &modules))
            .collect();
        for other in *allowed {
            assert!(
                used.contains(*other),
                "{module} does not use {other:?}: remove it from the table"
            );
        }
    }
}

#[test]
fn modules_of_the_engine_have_no_circles() {
    let mut above = BTreeSet::from([""]);
    for (module, allowed) in MODULES {
        for used in *allowed {
            assert!(
                above.contains(used),
                "{module} uses {used}, which is not above it"
            );
        }
        above.insert(module);
    }
}

/// Sources that may look into JSON by the names of its fields: templates see the JSON as the engine
/// has sent it, and unknown parts of a context's file are kept.
const UNTYPED: &[&str] = &[
    "cli/src/context/mod.rs",
    "cli/src/format/template/methods.rs",
];

/// The lines of a source text, without its tests, that make JSON or look into it by name: a call of
/// `json!`, or an index that is a text.
fn untyped(text: &str) -> Vec<&str> {
    let text = text.split("#[cfg(test)]\nmod tests {").next();
    let text = text.expect("the part before the tests");
    let is_indexed = |line: &str| {
        line.match_indices("[\"").any(|(at, _)| {
            line[..at].ends_with(|before: char| before.is_alphanumeric() || "_)]?".contains(before))
        })
    };
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .filter(|line| line.contains("json!") || is_indexed(line))
        .collect()
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// `api` and `cli` use the types of `api-types` for the API's objects.
#[test]
fn objects_of_the_api_have_types() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
    let mut files = Vec::new();
    for name in ["api", "cli"] {
        sources(&crates.join(name).join("src"), &mut files);
    }
    let mut excepted = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("a source");
        let name = file.strip_prefix(&crates).expect("a path of a crate");
        let name = name.to_str().expect("a name in UTF-8");
        match UNTYPED.iter().find(|excepted| **excepted == name) {
            Some(_) if untyped(&text).is_empty() => {}
            Some(exception) => drop(excepted.insert(*exception)),
            None => assert_eq!(untyped(&text), [""; 0], "{name}: use a type of api-types"),
        }
    }
    assert_eq!(
        excepted,
        UNTYPED.iter().copied().collect(),
        "each exception is needed"
    );
}

#[test]
fn finds_untyped_json_in_a_source_text() {
    let check =
        |text: &str, expected: bool| assert_eq!(!untyped(text).is_empty(), expected, "{text}");
    for text in [
        "let id = object[\"Id\"].as_str();",
        "usage[\"RepoTags\"][0]",
        "client.get(path).await?[\"Id\"]",
        "    let body = json!({});",
    ] {
        check(text, true);
    }
    for text in [
        "// json!",
        "let list = [\"Id\"];",
        "f(&[\"a\"], vec![\"b\"])",
        "list[0]",
        "f();\n#[cfg(test)]\nmod tests {\n    json!({})\n}\n",
    ] {
        check(text, false);
    }
}

#[test]
fn finds_the_paths_of_a_source_text() {
    let check = |text: &str, expected: &[&str]| {
        let found = paths_from(text, "crate::");
        assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{text}");
    };
    check("use crate::store::Store;", &["store"]);
    check("x(crate::a::b(), crate::c)", &["a", "c"]);
    check("use crate::{a, b::{c, d}, e::f};", &["a", "b", "e"]);
    check("pub(in crate::volumes) fn f() {}", &["volumes"]);
    check("use other_crate::a; use whelk::crate::b;", &[]);
}
