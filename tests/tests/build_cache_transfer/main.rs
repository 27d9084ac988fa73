//! Build caches that are kept elsewhere: in directories, in registries, and within images.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

mod hostile;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use whelk_tests::builds::{BUILDKIT, classic, docker, json_file, whelk};
use whelk_tests::images::sha256;
use whelk_tests::registry::{Behaviour, Registry};
use whelk_tests::{Engine, Output, Program};

/// Each RUN writes something else each time: an image with the same id was not built again.
const DOCKERFILE: &str = "FROM busybox AS tools\n\
    RUN head -c 300000 /dev/urandom > /unused\n\
    RUN head -c 200000 /dev/urandom > /tool\n\
    FROM busybox\n\
    COPY file /file\n\
    COPY --from=tools /tool /opt/tool\n\
    RUN head -c 100000 /dev/urandom > /made\n";

const STEPS: [&str; 3] = ["COPY file /file", "COPY --from=tools", "RUN head -c 100000"];

fn build(engine: &Engine, context: &Path, args: &[&str]) -> Output {
    docker(engine).build(context, args)
}

/// Builds, and returns what was shown.
#[track_caller]
fn built(engine: &Engine, context: &Path, args: &[&str]) -> String {
    docker(engine).built(context, args)
}

/// Returns whether a step was shown as cached.
fn is_cached(shown: &str, step: &str) -> bool {
    let mut lines = shown.lines();
    let number = lines.find_map(|line| {
        let (number, rest) = line.split_once(' ')?;
        (rest.starts_with('[') && rest.contains(step)).then(|| number.to_owned())
    });
    let number = number.unwrap_or_else(|| panic!("no step {step}: {shown}"));
    shown.lines().any(|line| line == format!("{number} CACHED"))
}

#[track_caller]
fn all_cached(shown: &str, steps: &[&str], is_expected: bool) {
    for step in steps {
        assert_eq!(is_cached(shown, step), is_expected, "{step}: {shown}");
    }
}

fn id(engine: &Engine, name: &str) -> String {
    let args = ["image", "inspect", "--format", "{{.Id}}", name];
    engine.docker(&args).ok()
}

fn layers(engine: &Engine, name: &str) -> String {
    let args = ["image", "inspect", "--format", "{{.RootFS.Layers}}", name];
    engine.docker(&args).ok()
}

fn context_with(engine: &Engine, name: &str, dockerfile: &str) -> std::path::PathBuf {
    engine.scratch_with(name, &[("Dockerfile", dockerfile), ("file", "content")])
}

fn context(engine: &Engine) -> std::path::PathBuf {
    context_with(engine, "context", DOCKERFILE)
}

/// The digests of the blobs that were fetched since the requests were forgotten.
fn fetched(registry: &Registry) -> Vec<String> {
    let requests = registry.requests("GET /v2/");
    let blobs = requests.iter().filter_map(|line| {
        let (_, rest) = line.split_once("/blobs/")?;
        Some(rest.split(' ').next()?.to_owned())
    });
    blobs.collect()
}

/// A document that a registry has.
fn document(registry: &Registry, path: &str) -> Value {
    let found = registry.document(path).or_else(|| registry.content(path));
    serde_json::from_slice(&found.unwrap()).unwrap()
}

/// The manifest and the records of a cache in a registry.
fn cache(registry: &Registry, repository: &str, tag: &str) -> (Value, Value) {
    let manifest = document(registry, &format!("{repository}/{tag}"));
    let config = document(registry, manifest["config"]["digest"].as_str().unwrap());
    (manifest, config)
}

#[test]
fn a_directory_serves_an_empty_engine() {
    let one = Engine::start();
    let directory = one.scratch("cache");
    let place = directory.display();
    let to = format!("type=local,dest={place},mode=max,tag=main");
    let shown = built(&one, &context(&one), &["--cache-to", &to, "-t", "made"]);
    for expected in [
        "exporting cache to client directory",
        "preparing build cache for export",
        "writing layer sha256:",
        "writing config sha256:",
        "writing cache image manifest sha256:",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    // An OCI layout, whose layers are those of the steps, without those of the base image.
    let index = json_file(&directory.join("index.json"));
    let blob = |digest: &Value| {
        let digest = digest.as_str().unwrap().replace(':', "/");
        directory.join("blobs").join(digest)
    };
    let entry = &index["manifests"][0];
    assert_eq!(
        entry["annotations"]["org.opencontainers.image.ref.name"],
        "main"
    );
    let manifest = json_file(&blob(&entry["digest"]));
    assert_eq!(
        manifest["config"]["mediaType"],
        "application/vnd.buildkit.cacheconfig.v0"
    );
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 5);
    let config = json_file(&blob(&manifest["config"]["digest"]));
    let records = config["records"].as_array().unwrap();
    assert!(
        records
            .iter()
            .all(|record| record["layers"][0]["layer"].is_u64())
    );

    let other = Engine::start();
    let from = format!("type=local,src={place},tag=main");
    let shown = built(
        &other,
        &context(&other),
        &["--cache-from", &from, "-t", "made"],
    );
    assert!(
        shown.contains("importing cache manifest from local:"),
        "{shown}"
    );
    all_cached(&shown, &STEPS, true);
    assert_eq!(id(&one, "made"), id(&other, "made"));
    let run = ["run", "--rm", "made", "cat", "/file"];
    assert_eq!(other.docker(&run).ok(), "content");
    // It is the engine's own by now.
    let shown = built(&other, &context(&other), &[]);
    all_cached(&shown, &STEPS, true);
    // A step that is new stands on what comes from the cache.
    let third = Engine::start();
    let longer = context_with(&third, "longer", &format!("{DOCKERFILE}RUN wc -c /made\n"));
    let shown = built(&third, &longer, &["--cache-from", &from]);
    all_cached(&shown, &STEPS, true);
    assert!(shown.contains("100000 /made"), "{shown}");
    third.has_no_builds();
}

#[test]
fn only_what_is_needed_is_fetched_from_a_registry() {
    let registry = Registry::start();
    let one = Engine::start();
    let name = format!("{}/caches/app:1", registry.host);
    let to = format!("type=registry,ref={name},mode=max");
    let shown = built(&one, &context(&one), &["--cache-to", &to, "-t", "made"]);
    assert!(shown.contains("exporting cache to registry"), "{shown}");
    let (manifest, config) = cache(&registry, "caches/app", "1");
    let layers = manifest["layers"].as_array().unwrap().len();
    assert_eq!(layers, 5, "two of the stage, three of the image");
    let records = config["records"].as_array().unwrap().len();

    // Of the stage only the directory that is copied is needed, which has a layer of its own.
    let other = Engine::start();
    registry.forget_requests();
    let from = format!("type=registry,ref={name}");
    let shown = built(
        &other,
        &context(&other),
        &["--cache-from", &from, "-t", "made"],
    );
    all_cached(&shown, &STEPS, true);
    assert_eq!(id(&one, "made"), id(&other, "made"));
    assert_eq!(fetched(&registry).len(), 4, "the records, and three layers");

    // Nothing but the records when nothing matches.
    let third = Engine::start();
    registry.forget_requests();
    let changed = context_with(&third, "changed", "FROM busybox\nRUN echo other\n");
    built(&third, &changed, &["--cache-from", &from]);
    assert_eq!(fetched(&registry).len(), 1);

    // A changed step in the middle: what is below comes from the cache.
    registry.forget_requests();
    let changed = DOCKERFILE.replace(
        "COPY --from=tools /tool /opt/tool",
        "COPY --from=tools /tool /t",
    );
    let shown = built(
        &third,
        &context_with(&third, "middle", &changed),
        &["--cache-from", &from],
    );
    all_cached(&shown, &["COPY file /file", "RUN head -c 200000"], true);
    all_cached(&shown, &["COPY --from=tools", "RUN head -c 100000"], false);
    assert_eq!(
        fetched(&registry).len(),
        4,
        "the records, the file, and the stage's two layers"
    );

    // A cached build into the same cache on an engine without the stage keeps all records, and sends no layer.
    registry.forget_requests();
    let fourth = Engine::start();
    let args = ["--cache-from", &from, "--cache-to", &to];
    let shown = built(&fourth, &context(&fourth), &args);
    all_cached(&shown, &STEPS, true);
    let (manifest, config) = cache(&registry, "caches/app", "1");
    assert_eq!(
        manifest["layers"].as_array().unwrap().len(),
        layers,
        "{shown}"
    );
    assert_eq!(
        config["records"].as_array().unwrap().len(),
        records,
        "{shown}"
    );
    assert_eq!(fetched(&registry).len(), 4);
    // Into another cache, they are passed on.
    let copy = format!("{}/caches/copy:1", registry.host);
    let fifth = Engine::start();
    let to = format!("type=registry,ref={copy},mode=max,compression=zstd");
    built(
        &fifth,
        &context(&fifth),
        &["--cache-from", &from, "--cache-to", &to],
    );
    let (manifest, _) = cache(&registry, "caches/copy", "1");
    let list = manifest["layers"].as_array().unwrap();
    let is_zstd = |layer: &&Value| layer["mediaType"].as_str().unwrap().ends_with("+zstd");
    assert_eq!(
        (list.len(), list.iter().filter(is_zstd).count()),
        (layers, 3)
    );
    let sixth = Engine::start();
    let from = format!("type=registry,ref={copy}");
    let shown = built(
        &sixth,
        &context_with(&sixth, "middle", &changed),
        &["--cache-from", &from],
    );
    all_cached(&shown, &["COPY file /file", "RUN head -c 200000"], true);
    sixth.has_no_builds();
}

#[test]
fn a_smaller_cache_has_the_steps_of_the_image() {
    let registry = Registry::start();
    let one = Engine::start();
    let name = format!("{}/caches/small:1", registry.host);
    let to = format!("type=registry,ref={name}");
    built(&one, &context(&one), &["--cache-to", &to]);
    let (manifest, _) = cache(&registry, "caches/small", "1");
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 3);
    let other = Engine::start();
    // The stage is executed again, because the step behind is new.
    let changed = DOCKERFILE.replace(
        "COPY --from=tools /tool /opt/tool",
        "COPY --from=tools /tool /t",
    );
    let context = context_with(&other, "middle", &changed);
    let shown = built(&other, &context, &["--cache-from", &name]);
    all_cached(&shown, &["COPY file /file"], true);
    all_cached(&shown, &["RUN head -c 200000", "COPY --from=tools"], false);
}

/// A stage whose files are the same again is worth as much as before, although its steps were executed.
#[test]
fn content_is_known_across_engines() {
    let registry = Registry::start();
    let dockerfile = |text: &str| {
        format!(
            "FROM busybox AS one\nRUN echo {text} && echo 1 > /one\n\
            FROM busybox\nCOPY --from=one /one /one\nRUN head -c 100000 /dev/urandom > /made\n"
        )
    };
    let name = format!("{}/caches/content:1", registry.host);
    let to = format!("type=registry,ref={name},mode=max");
    let engine = Engine::start();
    let first = context_with(&engine, "first", &dockerfile("first"));
    built(&engine, &first, &["--cache-to", &to, "-t", "made"]);
    let other = Engine::start();
    let second = context_with(&other, "second", &dockerfile("second"));
    let shown = built(&other, &second, &["--cache-from", &name, "-t", "made"]);
    all_cached(&shown, &["RUN echo second"], false);
    all_cached(&shown, &["COPY --from=one", "RUN head -c 100000"], true);
    assert_eq!(id(&engine, "made"), id(&other, "made"));
}

#[test]
fn images_carry_their_own_cache() {
    let registry = Registry::start();
    let one = Engine::start();
    let name = format!("{}/team/app:1", registry.host);
    let args = ["--push", "--cache-to", "type=inline", "-t", &name];
    let shown = built(&one, &context(&one), &args);
    assert!(
        shown.contains("preparing layers for inline cache"),
        "{shown}"
    );
    let manifest = document(&registry, "team/app/1");
    let config = document(&registry, manifest["config"]["digest"].as_str().unwrap());
    assert!(config["moby.buildkit.cache.v0"].is_string());

    let other = Engine::start();
    registry.forget_requests();
    let shown = built(
        &other,
        &context(&other),
        &["--cache-from", &name, "-t", "made"],
    );
    all_cached(&shown, &STEPS, true);
    assert_eq!(
        fetched(&registry).len(),
        4,
        "the configuration, and three layers"
    );
    // With the build argument that clients know.
    let third = Engine::start();
    let arg = ["--build-arg", "BUILDKIT_INLINE_CACHE=1", "-t", "made"];
    built(&third, &context(&third), &arg);
    let saved = third.docker(&["image", "history", "made"]).ok();
    assert!(saved.contains("head -c 100000"), "{saved}");
    // The same build gives the same image.
    let first = id(&third, "made");
    built(&third, &context(&third), &arg);
    assert_eq!(id(&third, "made"), first);
    // An image that is here needs no registry, and one without a cache does no harm.
    third.docker(&["builder", "prune", "-af"]).ok();
    let from = [
        "--cache-from",
        "made",
        "--cache-from",
        "busybox",
        "-t",
        "again",
    ];
    let shown = built(&third, &context(&third), &from);
    all_cached(&shown, &STEPS, true);
    assert_eq!(layers(&third, "made"), layers(&third, "again"));
    // It is an image as others are.
    let fourth = Engine::without_images(&[]);
    let run = ["run", "--rm", &name, "cat", "/file"];
    assert_eq!(fourth.docker(&run).ok(), "content");
}

#[test]
fn classic_builds_use_the_caches_of_images() {
    let registry = Registry::start();
    let one = Engine::start();
    let name = format!("{}/team/app:1", registry.host);
    let args = ["--push", "--cache-to", "type=inline", "-t", &name];
    built(&one, &context(&one), &args);
    let other = Engine::start();
    let missing = format!("{}/team/none:1", registry.host);
    let args = [
        "--cache-from",
        &name,
        "--cache-from",
        &missing,
        "-t",
        "made",
    ];
    let shown = classic(&other).built(context(&other), &args);
    let count = shown.matches("Using cache").count();
    assert!(count >= 3, "{shown}");
    assert!(shown.contains("team/none:1: not found"), "{shown}");
    assert_eq!(layers(&one, &name), layers(&other, "made"));
}

#[test]
fn caches_that_cannot_be_had_do_no_harm() {
    let engine = Engine::start();
    let registry = Registry::start();
    let context = context(&engine);
    let missing = format!("{}/none:1", registry.host);
    let directory = engine.scratch("empty");
    fs::write(
        directory.join("index.json"),
        r#"{"schemaVersion":2,"manifests":[]}"#,
    )
    .unwrap();
    let digest = format!("sha256:{}", sha256(b""));
    let local = format!("type=local,src={},digest={digest}", directory.display());
    let insecure = format!("type=registry,ref={missing},insecure=true");
    let args = [
        "--cache-from",
        &missing,
        "--cache-from",
        &local,
        "--cache-from",
        &insecure,
        "--cache-from",
        "type=azblob,name=x",
        "-t",
        "made",
    ];
    let shown = built(&engine, &context, &args);
    for expected in [
        "none:1: not found",
        "insecure of a cache import from registry: not available",
        "cache import from azblob: not available",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    // What cannot be exported fails the build, unless it may fail.
    for (to, expected) in [
        (
            "type=azblob,name=x",
            "cache export to azblob: not available",
        ),
        (
            "type=registry,ref=x,compression=estargz",
            "compression=estargz",
        ),
        ("type=registry,ref=127.0.0.1:9/x", "127.0.0.1:9"),
    ] {
        let failed = build(&engine, &context, &["--cache-to", to]);
        assert_ne!(failed.code, 0, "{to}");
        assert!(failed.err().contains(expected), "{to}: {}", failed.err());
    }
    registry.behave(Behaviour {
        is_read_only: true,
        ..Behaviour::default()
    });
    let to = format!("type=registry,ref={missing}");
    assert_ne!(build(&engine, &context, &["--cache-to", &to]).code, 0);
    let to = format!("{to},ignore-error=true");
    built(&engine, &context, &["--cache-to", &to]);
    engine.has_no_builds();
}

#[test]
fn registries_get_the_credentials_of_the_client() {
    let engine = Engine::start();
    let registry = Registry::start();
    registry.behave(Behaviour {
        authorization: Some("Basic dXNlcjpwYXNzd29yZA==".into()),
        ..Behaviour::default()
    });
    let name = format!("{}/private:1", registry.host);
    let to = format!("type=registry,ref={name}");
    let context = context(&engine);
    assert_ne!(build(&engine, &context, &["--cache-to", &to]).code, 0);
    let config = engine.scratch("config");
    let plugins = engine
        .docker(&["info", "--format", "{{json .ClientInfo.Plugins}}"])
        .ok();
    let plugins: Value = serde_json::from_str(&plugins).unwrap();
    let mut plugins = plugins.as_array().unwrap().iter();
    let buildx = plugins.find(|one| one["Name"] == "buildx").unwrap();
    let buildx = Path::new(buildx["Path"].as_str().unwrap());
    let auths = json!({"cliPluginsExtraDirs": [buildx.parent()], "auths": {&registry.host: {"auth": "dXNlcjpwYXNzd29yZA=="}}});
    fs::write(config.join("config.json"), auths.to_string()).unwrap();
    let env = [
        BUILDKIT[0],
        BUILDKIT[1],
        ("DOCKER_CONFIG", config.to_str().unwrap()),
    ];
    let place = context.to_str().unwrap();
    let args = ["build", "--cache-to", &to, place];
    engine.cli(Program::Docker).with_env(&env).run(&args).ok();
    engine.docker(&["builder", "prune", "-af"]).ok();
    let args = ["build", "--cache-from", &name, place];
    let output = engine.cli(Program::Docker).with_env(&env).run(&args);
    output.ok();
    all_cached(&output.err(), &STEPS, true);
}

#[test]
fn bake_and_compose_transfer_caches() {
    let registry = Registry::start();
    let one = Engine::start();
    let context_of_one = context(&one);
    let name = format!("{}/caches/compose:1", registry.host);
    let compose = |context: &Path| {
        format!(
            "services:\n  app:\n    image: made\n    build:\n      context: {}\n      cache_to: [\"type=registry,ref={name},mode=max\"]\n      cache_from: [\"type=registry,ref={name}\"]\n",
            context.display()
        )
    };
    let up = |engine: &Engine, context: &Path| {
        let file = context.join("compose.yaml");
        fs::write(&file, compose(context)).unwrap();
        let args = ["compose", "-f", file.to_str().unwrap(), "build"];
        docker(engine).run(&args).ok();
    };
    up(&one, &context_of_one);
    let other = Engine::start();
    up(&other, &context(&other));
    assert_eq!(id(&one, "made"), id(&other, "made"));
    let third = Engine::start();
    let context = context(&third);
    let bake = json!({"target": {"default": {
        "context": context, "tags": ["made"], "cache-from": [format!("type=registry,ref={name}")],
    }}});
    let file = context.join("bake.json");
    fs::write(&file, bake.to_string()).unwrap();
    docker(&third)
        .run(&[
            "buildx",
            "bake",
            "--allow=fs.read=*",
            "-f",
            file.to_str().unwrap(),
        ])
        .ok();
    // Compose adds labels.
    assert_eq!(layers(&one, "made"), layers(&third, "made"));
}

#[test]
fn whelk_build_keeps_caches_in_directories() {
    let one = Engine::start();
    let place = one.scratch("caches").join("cache");
    let place = place.display();
    let to = format!("type=local,dest={place},mode=max,tag=main");
    let args = ["--progress", "plain", "--cache-to", &to, "-t", "made"];
    whelk(&one).built(context(&one), &args);
    let from = format!("type=local,src={place},tag=main");
    let other = Engine::start();
    let missing = format!("type=local,src={place}/none");
    let args = [
        "--progress",
        "plain",
        "--cache-from",
        &from,
        "--cache-from",
        &missing,
        "-t",
        "made",
    ];
    let shown = whelk(&other).built(context(&other), &args);
    all_cached(&shown, &STEPS, true);
    assert!(shown.contains("WARNING: local cache import at"), "{shown}");
    assert_eq!(id(&one, "made"), id(&other, "made"));
    // Docker's client reads and writes the same directory.
    let third = Engine::start();
    let to = format!("type=local,dest={place},mode=max,tag=other,image-manifest=false");
    let args = ["--cache-from", &from, "--cache-to", &to, "-t", "made"];
    let shown = built(&third, &context(&third), &args);
    all_cached(&shown, &STEPS, true);
    let from = format!("type=local,src={place},tag=other");
    let fourth = Engine::start();
    let args = ["--progress", "plain", "--cache-from", &from, "-t", "made"];
    let shown = whelk(&fourth).built(context(&fourth), &args);
    all_cached(&shown, &STEPS, true);
    assert_eq!(id(&one, "made"), id(&fourth, "made"));
}
