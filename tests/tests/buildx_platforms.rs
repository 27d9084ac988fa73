//! Builds for several platforms, and for platforms whose programs the host cannot execute.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use whelk_tests::builds::{docker, json_file, whelk};
use whelk_tests::images::{OWN_ARCHITECTURE, busybox_program, marked_for, noise};
use whelk_tests::registry::Registry;
use whelk_tests::{Engine, Program, escape, skipped};

/// The architecture of the second image.
const OTHER: &str = if cfg!(target_arch = "aarch64") {
    "amd64"
} else {
    "arm64"
};

/// Compiles on the host for each platform.
const CROSS: &str = "FROM --platform=$BUILDPLATFORM busybox AS build\n\
    ARG TARGETPLATFORM BUILDPLATFORM TARGETARCH\n\
    RUN mkdir /out && echo \"$BUILDPLATFORM for $TARGETPLATFORM\" > /out/made && echo $TARGETARCH > /out/$TARGETARCH\n\
    FROM scratch\n\
    COPY --from=build /out /\n";

fn context(engine: &Engine, name: &str, dockerfile: &str) -> PathBuf {
    engine.scratch_with(name, &[("Dockerfile", dockerfile), ("file", "x")])
}

fn both() -> String {
    format!("linux/{OWN_ARCHITECTURE},linux/{OTHER}")
}

fn inspect(engine: &Engine, name: &str, architecture: &str) -> Value {
    let platform = json!({"os": "linux", "architecture": architecture}).to_string();
    engine.get(&format!(
        "/images/{name}/json?platform={}",
        escape(&platform)
    ))
}

/// Returns a file of an image for a platform.
fn file(engine: &Engine, name: &str, architecture: &str, path: &str) -> String {
    let platform = format!("linux/{architecture}");
    let create = [
        "create",
        "--platform",
        &platform,
        "--pull",
        "never",
        name,
        "x",
    ];
    let id = engine.docker(&create).ok();
    let copied = engine.scratch("copied").join("file");
    let from = format!("{id}:{path}");
    engine.docker(&["cp", &from, copied.to_str().unwrap()]).ok();
    engine.docker(&["rm", &id]).ok();
    fs::read_to_string(copied).unwrap().trim().to_owned()
}

#[test]
fn an_index_is_kept_and_pushed() {
    let engine = Engine::start();
    let registry = Registry::start();
    let context = context(&engine, "context", CROSS);
    let name = format!("{}/app:1", registry.host);
    let metadata = engine.scratch("metadata").join("file");
    let args = [
        "--platform",
        &both(),
        "--push",
        "-t",
        &name,
        "--metadata-file",
        metadata.to_str().unwrap(),
    ];
    let shown = docker(&engine).built(&context, &args);
    assert!(shown.contains("exporting manifest list"), "{shown}");
    let told = json_file(&metadata);
    let digest = told["containerimage.digest"].as_str().unwrap();
    let check = |engine: &Engine| {
        for architecture in [OWN_ARCHITECTURE, OTHER] {
            let image = inspect(engine, &name, architecture);
            assert_eq!(image["Architecture"], *architecture);
            let made = format!("linux/{OWN_ARCHITECTURE} for linux/{architecture}");
            assert_eq!(file(engine, &name, architecture, "/made"), made);
        }
        let repository = name.trim_end_matches(":1");
        let digests = inspect(engine, &name, OTHER)["RepoDigests"].clone();
        assert_eq!(digests, json!([format!("{repository}@{digest}")]));
    };
    check(&engine);
    let rows = engine.docker(&["images", "-q", &name]).ok();
    assert_eq!(rows.lines().count(), 1, "{rows}");
    engine.kill9();
    engine.restart();
    check(&engine);
    let other = Engine::without_images(&[]);
    for architecture in [OWN_ARCHITECTURE, OTHER] {
        let platform = format!("linux/{architecture}");
        other.docker(&["pull", "--platform", &platform, &name]).ok();
    }
    check(&other);
    // With buildx, which reads the registry itself.
    let raw = docker(&engine).run(&["buildx", "imagetools", "inspect", "--raw", &name]);
    let index: Value = serde_json::from_str(&raw.ok()).unwrap();
    let platforms: Vec<&Value> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["platform"]["architecture"])
        .collect();
    // What buildx wants to be said about it without being told to is in an index.
    assert_eq!(platforms, [OWN_ARCHITECTURE, OTHER, "unknown", "unknown"]);
    // Everything again out of the cache, and the same images.
    let ids = [OWN_ARCHITECTURE, OTHER].map(|one| inspect(&engine, &name, one)["Id"].clone());
    docker(&engine).built(&context, &["--platform", &both(), "-t", &name]);
    let again = [OWN_ARCHITECTURE, OTHER].map(|one| inspect(&engine, &name, one)["Id"].clone());
    assert_eq!(ids, again);
    engine.docker(&["rmi", &name]).ok();
    assert_eq!(engine.docker(&["images", "-q", &name]).ok(), "");
}

#[test]
fn archives_and_directories_have_all_platforms() {
    let engine = Engine::start();
    let context = context(&engine, "context", CROSS);
    let place = engine.scratch("outputs");
    let path = |name: &str| place.join(name).to_str().unwrap().to_owned();
    let outputs = [
        format!(
            "type=oci,dest={},annotation-index.a=b,annotation[linux/{OTHER}].c=d",
            path("oci.tar")
        ),
        format!("type=local,dest={}", path("local")),
        format!("type=tar,dest={}", path("tar.tar")),
        format!("type=oci,tar=false,dest={}", path("layout")),
    ];
    let mut args = vec!["--platform".to_owned(), both()];
    args.extend(
        outputs
            .iter()
            .flat_map(|output| ["-o".to_owned(), output.clone()]),
    );
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let shown = docker(&engine).built(&context, &args);
    assert!(
        shown.contains(&format!("copying files linux/{OTHER}")),
        "{shown}"
    );
    for (archive, directory) in [("oci.tar", "oci"), ("tar.tar", "tar")] {
        fs::create_dir(place.join(directory)).unwrap();
        let status = Command::new("tar")
            .args(["-xf", &path(archive), "-C", &path(directory)])
            .status();
        assert!(status.unwrap().success());
    }
    for directory in ["local", "tar"] {
        for architecture in [OWN_ARCHITECTURE, OTHER] {
            let files = place.join(directory).join(format!("linux_{architecture}"));
            let made = fs::read_to_string(files.join("made")).unwrap();
            let expected = format!("linux/{OWN_ARCHITECTURE} for linux/{architecture}\n");
            assert_eq!(made, expected, "{directory}");
        }
    }
    let blob = |layout: &str, entry: &Value| {
        let digest = entry["digest"].as_str().unwrap().replace(':', "/");
        json_file(&place.join(layout).join("blobs").join(digest))
    };
    for layout in ["oci", "layout"] {
        let outer = json_file(&place.join(layout).join("index.json"));
        let entries = outer["manifests"].as_array().unwrap();
        assert_eq!(entries.len(), 1);
        let index = blob(layout, &entries[0]);
        let entries = index["manifests"].as_array().unwrap();
        for (entry, architecture) in entries.iter().zip([OWN_ARCHITECTURE, OTHER]) {
            assert_eq!(entry["platform"]["architecture"], *architecture);
            let manifest = blob(layout, entry);
            let config = blob(layout, &manifest["config"]);
            assert_eq!(config["architecture"], *architecture);
            if layout == "oci" {
                assert_eq!(index["annotations"]["a"], "b");
                let expected = if architecture == OTHER {
                    json!("d")
                } else {
                    Value::Null
                };
                assert_eq!(manifest["annotations"]["c"], expected);
            }
        }
    }
    // It can be loaded, as another engine's.
    let other = Engine::without_images(&[]);
    other.docker(&["load", "-i", &path("oci.tar")]).ok();

    let flat = path("flat");
    let output = format!("type=local,platform-split=false,dest={flat}");
    let refused = [
        "cannot overwrite made from",
        "when split option is disabled",
    ];
    docker(&engine).build_fails(&context, &["--platform", &both(), "-o", &output], &refused);
    let output = format!("type=docker,dest={}", path("docker.tar"));
    docker(&engine).build_fails(
        &context,
        &["--platform", &both(), "-o", &output],
        &["manifest lists"],
    );
    let output = format!(
        "type=oci,dest={},annotation[linux/s390x].a=b",
        path("x.tar")
    );
    docker(&engine).build_fails(
        &context,
        &["--platform", &both(), "-o", &output],
        &["no platform linux/s390x"],
    );
    for bad in ["linux/../..", "nothing", "linux/amd64/v2/x"] {
        docker(&engine).build_fails(&context, &["--platform", bad], &["invalid argument"]);
    }
}

#[test]
fn contexts_are_received_once() {
    let engine = Engine::start();
    let context = context(&engine, "context", "FROM scratch\nCOPY file /file\n");
    fs::write(context.join("file"), noise(8 << 20)).unwrap();
    let target = |name: &str| {
        let text = format!("FROM scratch\nCOPY file /{name}\n");
        json!({"context": context, "dockerfile-inline": text, "tags": [name]})
    };
    let bake = json!({
        "group": {"default": {"targets": ["one", "two"]}},
        "target": {"one": target("one"), "two": target("two")},
    });
    let file = engine.scratch_with("bake", &[("bake.json", &bake.to_string())]);
    let file = file.join("bake.json");
    let bake = [
        "buildx",
        "bake",
        "--allow",
        "fs=/",
        "-f",
        file.to_str().unwrap(),
    ];
    for client in [docker(&engine), whelk(&engine)] {
        client.built(&context, &["--platform", &both(), "-t", "several"]);
        client.run(&bake).exits(0);
        let places = fs::read_dir(engine.root().join("build/contexts")).unwrap();
        let places = places.map(|place| place.unwrap().path());
        let is_context = |place: &PathBuf| {
            let name = fs::read_to_string(place.join("name"));
            name.unwrap_or_default() == "context"
        };
        let places: Vec<PathBuf> = places.filter(is_context).collect();
        assert!(!places.is_empty());
        for place in places {
            // Those of several builds at a time have other numbers.
            assert!(place.to_str().unwrap().ends_with("-0"), "{place:?}");
        }
        engine.docker(&["builder", "prune", "-af"]).ok();
    }
    for name in ["one", "two"] {
        let image = engine.image(name);
        assert_eq!(image["RootFS"]["Layers"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn processes_of_other_platforms_are_refused_by_name() {
    let engine = Engine::start();
    let registry = Registry::start();
    let images = [
        (OWN_ARCHITECTURE, &marked_for("own", OWN_ARCHITECTURE)),
        (OTHER, &marked_for("other", OTHER)),
    ];
    registry.push_index("base", "1", &images);
    let base = format!("{}/base:1", registry.host);
    // Files are copied without any program.
    let copies = context(
        &engine,
        "copies",
        &format!("FROM {base}\nWORKDIR /w\nCOPY file /file\n"),
    );
    docker(&engine).built(&copies, &["--platform", &both(), "-t", "copied"]);
    assert_eq!(file(&engine, "copied", OTHER, "/etc/which"), "other");
    assert_eq!(
        file(&engine, "copied", OWN_ARCHITECTURE, "/etc/which"),
        "own"
    );
    let runs = context(
        &engine,
        "runs",
        &format!("FROM {base}\nRUN cat /etc/which > /made\n"),
    );
    let other = format!("linux/{OTHER}");
    let expected = [
        "RUN cat /etc/which",
        &format!("executes programs for {other}"),
        "no handler of binfmt_misc",
        "qemu-user-static",
    ];
    docker(&engine).build_fails(&runs, &["--platform", &both()], &expected);
    docker(&engine).built(&runs, &["--platform", &format!("linux/{OWN_ARCHITECTURE}")]);
    // Several targets of a bake file, each for its own platforms.
    let file = json!({"target": {
        "base": {"context": copies, "platforms": both().split(',').collect::<Vec<_>>()},
        "app": {
            "dockerfile-inline": "FROM base\nCOPY --from=base /file /again\n",
            "contexts": {"base": "target:base"},
            "platforms": both().split(',').collect::<Vec<_>>(),
            "tags": ["baked"],
        },
    }});
    let place = engine.scratch_with("bake", &[("bake.json", &file.to_string())]);
    let bake = place.join("bake.json");
    let bake = [
        "buildx",
        "bake",
        "--allow",
        "fs=/",
        "-f",
        bake.to_str().unwrap(),
        "app",
    ];
    docker(&engine).run(&bake).ok();
    assert_eq!(self::file(&engine, "baked", OTHER, "/etc/which"), "other");
    assert_eq!(self::file(&engine, "baked", OTHER, "/again"), "x");
    // With whelk's own client.
    let words = [
        "build",
        "--platform",
        &both(),
        "-t",
        "whelks",
        copies.to_str().unwrap(),
    ];
    engine.cli(Program::Whelk).run(&words).ok();
    assert_eq!(self::file(&engine, "whelks", OTHER, "/etc/which"), "other");
}

#[test]
fn a_base_image_for_another_platform_is_used_with_a_warning() {
    let engine = Engine::start();
    let registry = Registry::start();
    let other = registry.push("alone", &marked_for("other", OTHER));
    let name = &other.name;
    let dockerfile = format!("FROM {name}\nENV a=b\n");
    let copies = context(&engine, "mismatch", &dockerfile);
    let warning = format!(
        "InvalidBaseImagePlatform: Base image {name} was pulled with platform \"linux/{OTHER}\", expected \"linux/{OWN_ARCHITECTURE}\" for current build (line 1)"
    );
    // Also when it is here.
    for tag in ["one", "two"] {
        let shown = docker(&engine).built(&copies, &["-t", tag]);
        assert!(shown.contains(&warning), "{shown}");
        assert!(!shown.contains("does not match result"), "{shown}");
        let env = &engine.image(tag)["Config"]["Env"];
        assert!(env.to_string().contains("a=b"), "{env}");
    }
    // An index says what it has.
    registry.push_index("listed", "1", &[(OTHER, &marked_for("other", OTHER))]);
    let listed = format!("FROM {}/listed:1\n", registry.host);
    let listed = context(&engine, "listed", &listed);
    docker(&engine).build_fails(&listed, &[], &["no matching manifest"]);
}

/// A handler of binfmt_misc that shows a program instead of executing it.
struct Handler {
    name: String,
    /// Whether binfmt_misc was mounted for it.
    is_mounted: bool,
}

const PLACE: &str = "/proc/sys/fs/binfmt_misc";

impl Handler {
    /// Registers a handler of programs for s390x; `None` where that is not allowed.
    fn register(engine: &Engine) -> Option<Self> {
        let is_there = Path::new(PLACE).join("register").exists();
        let mount = |args: &[&str]| {
            let status = Command::new("mount").args(args).status();
            status.is_ok_and(|status| status.success())
        };
        let is_mounted = !is_there && mount(&["-t", "binfmt_misc", "none", PLACE]);
        if !is_there && !is_mounted {
            return None;
        }
        let handler = Self {
            name: format!("whelk-test-{}", std::process::id()),
            is_mounted,
        };
        let program = engine.scratch("handler").join("cat");
        fs::write(&program, busybox_program()).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let magic = r"\x7fELF\x02\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x16";
        let mask =
            r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff";
        let line = format!(
            ":{}:M::{magic}:{mask}:{}:F",
            handler.name,
            program.display()
        );
        fs::write(Path::new(PLACE).join("register"), line).ok()?;
        Some(handler)
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        let _ = fs::write(Path::new(PLACE).join(&self.name), "-1");
        if self.is_mounted {
            let _ = Command::new("umount").arg("-l").arg(PLACE).status();
        }
    }
}

#[test]
fn a_handler_executes_the_programs_of_its_platform() {
    let engine = Engine::start();
    // Not a program, except by its header.
    let mut program = b"\x7fELF\x02\x02\x01".to_vec();
    program.resize(16, 0);
    program.extend_from_slice(&[0, 2, 0, 22]);
    program.extend_from_slice(b"\nemulated\n");
    let place = context(
        &engine,
        "emulated",
        "FROM scratch\nCOPY --chmod=755 program /\nRUN [\"/program\"]\n",
    );
    fs::write(place.join("program"), program).unwrap();
    let args = ["--platform", "linux/s390x", "-t", "emulated", "--no-cache"];
    docker(&engine).build_fails(&place, &args, &["no handler of binfmt_misc"]);
    let Some(handler) = Handler::register(&engine) else {
        return skipped!("no handler of binfmt_misc can be registered");
    };
    let shown = docker(&engine).built(&place, &args);
    assert!(shown.contains("emulated"), "{shown}");
    let workers = docker(&engine).run(&["buildx", "inspect"]).ok();
    assert!(workers.contains("linux/s390x"), "{workers}");
    drop(handler);
    let workers = docker(&engine).run(&["buildx", "inspect"]).ok();
    assert!(!workers.contains("linux/s390x"), "{workers}");
}
