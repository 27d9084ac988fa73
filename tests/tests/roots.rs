//! Roots that engines of other versions have written. `tests/roots/make` makes those of earlier
//! ones.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use whelk_tests::{Engine, Program};

/// The path of the root when `make` created it.
const MADE_AT: &str = "/var/tmp/whelk-carried-root/root";

/// An engine that opened a root of an earlier version, and what the earlier one answered about it.
struct Carried {
    engine: Engine,
    expected: PathBuf,
}

impl Carried {
    fn open(schema: u32) -> Self {
        let engine = Engine::without_images(&[]);
        engine.kill9();
        let archive =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("roots/schema-{schema}.tar.gz"));
        let unpacked = engine.scratch("carried");
        let output = Command::new("tar")
            .arg("-xzf")
            .arg(archive)
            .arg("-C")
            .arg(&unpacked)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        // The lock has the instance's name.
        let lock = engine.root().join("lock");
        fs::rename(&lock, unpacked.join("root/lock")).unwrap();
        fs::remove_dir_all(engine.root()).unwrap();
        fs::rename(unpacked.join("root"), engine.root()).unwrap();
        engine.restart();
        Self {
            engine,
            expected: unpacked.join("expected"),
        }
    }

    /// Returns the earlier engine's response, with the paths of this root.
    fn expected(&self, name: &str) -> String {
        let text = fs::read_to_string(self.expected.join(name)).unwrap();
        text.trim_end()
            .replace(MADE_AT, &self.engine.root().display().to_string())
    }

    /// Checks the parts that `of` takes of an object.
    #[track_caller]
    fn check_inspect(&self, kind: &str, name: &str, of: impl Fn(&Value) -> Value) {
        let found = self.engine.whelk(&[kind, "inspect", name]).ok();
        let file = name.split(':').next().unwrap();
        let expected = self.expected(&format!("{kind}-{file}.json"));
        let parse = |text: &str| of(&serde_json::from_str::<Value>(text).unwrap()[0]);
        assert_eq!(parse(&found), parse(&expected), "{kind} {name}");
    }
}

#[test]
fn a_root_of_schema_3_is_migrated_completely() {
    let carried = Carried::open(3);
    let engine = &carried.engine;
    let containers = [
        "plain", "ran", "linked", "shared", "hosted", "alone", "second",
    ];
    for name in containers {
        carried.check_inspect("container", name, Value::clone);
    }
    // Not the default network: its bridge's name contains that of the instance.
    for name in ["host", "none", "app", "inner"] {
        carried.check_inspect("network", name, Value::clone);
    }
    for name in ["data", "sized"] {
        carried.check_inspect("volume", name, Value::clone);
    }
    carried.check_inspect("image", "carried:1", Value::clone);
    let format = "{{.ID}} {{.Names}} {{.Image}} {{.Command}} {{.State}} {{.Labels}} {{.Mounts}} {{.Networks}}";
    let listed = engine.whelk(&["ps", "-a", "--no-trunc", "--format", format]);
    assert_eq!(listed.ok(), carried.expected("ps"));
    let networks = |text: &str| -> Vec<String> {
        let others = text.lines().filter(|line| !line.contains(" bridge "));
        others.map(str::to_owned).collect()
    };
    let format = "{{.ID}} {{.Name}} {{.Driver}}";
    let listed = engine.whelk(&["network", "ls", "--no-trunc", "--format", format]);
    assert_eq!(
        networks(&listed.ok()),
        networks(&carried.expected("networks"))
    );
    let listed = engine.whelk(&[
        "volume",
        "ls",
        "--format",
        "{{.Name}} {{.Driver}} {{.Labels}}",
    ]);
    assert_eq!(listed.ok(), carried.expected("volumes"));
    assert_eq!(engine.logs("ran"), "carried\n");
    for name in ["plain", "ran", "alone"] {
        assert_eq!(
            engine.whelk(&["start", "-a", name]).ok(),
            "carried",
            "{name}"
        );
    }
    // Changes of the new engine are read after a restart.
    engine.kill9();
    engine.restart();
    for name in containers {
        carried.check_inspect("container", name, |container| {
            json!([container["Config"], container["HostConfig"]])
        });
    }
}

/// Returns the files below a directory with their content.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            found.insert(path, Vec::new());
        } else if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().is_some_and(|name| name != "lock") {
            let content = fs::read(&path).unwrap();
            found.insert(path, content);
        }
    }
    found
}

#[test]
fn repair_rejects_records_of_a_newer_engine() {
    let carried = Carried::open(3);
    let engine = &carried.engine;
    let id = engine.inspect("plain")["Id"].as_str().unwrap().to_owned();
    engine.kill9();
    // Left unfinished by a killed engine.
    fs::write(engine.root().join("tmp/half"), "half").unwrap();
    let aside = engine.scratch("aside");
    for name in ["store.db", "store.db-wal"] {
        fs::rename(engine.root().join(name), aside.join(name)).unwrap();
    }
    for (path, old, new) in [
        (
            format!("containers/{id}/container.json"),
            "\"version\":3",
            "\"version\":99",
        ),
        (
            "store.json".to_owned(),
            "\"schema\":\"3\"",
            "\"schema\":\"99\"",
        ),
        // A record that does not have the format of its version.
        (
            "store.json".to_owned(),
            "\"schema\":\"3\"",
            "\"schema\":\"99\",\"also\":{}",
        ),
        (
            "volumes/data/volume.json".to_owned(),
            "\"Name\":",
            "\"Version\":99,\"Name\":",
        ),
    ] {
        let path = engine.root().join(path);
        let content = fs::read_to_string(&path).unwrap();
        assert!(content.contains(old), "{content}");
        fs::write(&path, content.replace(old, new)).unwrap();
        let before = files(&engine.root());
        let output = Command::new(Program::Whelk.path())
            .args(["system", "repair", "--root"])
            .arg(engine.root())
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success()
                && error.contains("schema version 99")
                && error.contains(path.to_str().unwrap()),
            "{output:?}"
        );
        assert!(files(&engine.root()) == before, "something was changed");
        fs::write(&path, content).unwrap();
    }
    let report = engine.repair();
    assert!(
        report.contains("containers: 7 from their directories"),
        "{report}"
    );
    engine.restart();
    engine.inspect("plain");
}

#[test]
fn a_volume_of_a_newer_engine_is_rejected_without_changes() {
    let engine = Engine::without_images(&[]);
    engine.kill9();
    fs::write(engine.root().join("tmp/half"), "half").unwrap();
    let volume = engine.root().join("volumes/newer");
    fs::create_dir_all(volume.join("_data")).unwrap();
    fs::write(volume.join("volume.json"), r#"{"Version":99}"#).unwrap();
    let before = files(&engine.root());
    let error = engine.refuses_to_start();
    assert!(
        error.contains("volumes/newer/volume.json has schema version 99"),
        "{error}"
    );
    assert!(files(&engine.root()) == before, "something was changed");
    fs::remove_dir_all(&volume).unwrap();
    engine.restart();
}
