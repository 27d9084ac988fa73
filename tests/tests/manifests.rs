//! `manifest`: lists of manifests, made by the clients themselves.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use serde_json::{Value, json};
use whelk_tests::images::{marked, marked_for};
use whelk_tests::registry::{Behaviour, Registry};
use whelk_tests::{Cli, Engine, Program};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Runs a command of `manifest` that talks to the registry. Docker's client must be told that it may use
/// it without TLS.
fn manifest(cli: Cli<'_>, words: &[&str]) -> whelk_tests::Output {
    let (command, rest) = words.split_first().unwrap();
    cli.run(&[&["manifest", command, "--insecure"], rest].concat())
}

#[test]
fn manifests_and_lists_are_shown_as_by_docker() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let (amd, arm) = (marked_for("app:1", "amd64"), marked_for("arm:1", "arm64"));
    registry.push("app", &amd);
    registry.push_index("app", "all", &[("amd64", &amd), ("arm64", &arm)]);
    let mut image = registry.image(&amd);
    image["mediaType"] = json!(DOCKER_MANIFEST);
    registry.manifest("app", "docker", DOCKER_MANIFEST, &image);
    for (tag, flags) in [
        ("1", &[] as &[&str]),
        ("1", &["-v"]),
        ("all", &[]),
        ("all", &["-v"]),
        ("docker", &[]),
        ("docker", &["--verbose"]),
    ] {
        let name = format!("{}/app:{tag}", registry.host);
        let words = [&["inspect"], flags, &[name.as_str()]].concat();
        let shown = |program| manifest(engine.cli(program), &words).ok();
        assert_eq!(shown(Program::Whelk), shown(Program::Docker), "{words:?}");
    }
    let list = registry.image(&amd)["config"].clone();
    let list = json!({"schemaVersion": 2, "manifests": vec![list; 501]});
    registry.manifest(
        "app",
        "many",
        "application/vnd.oci.image.index.v1+json",
        &list,
    );
    let name = format!("{}/app:many", registry.host);
    manifest(engine.cli(Program::Whelk), &["inspect", &name])
        .refuses(1, "app:many: a list of 501 manifests, more than 500");
    let name = format!("{}/app:none", registry.host);
    // Docker's client has the registry's words if the registry has some.
    let text = format!("no such manifest: {name}");
    engine
        .whelk(&["manifest", "inspect", &name])
        .refuses(1, &text);
}

#[test]
fn a_list_is_made_annotated_and_pushed() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let host = &registry.host;
    let amd = registry.push("app", &marked_for("app:amd", "amd64"));
    let arm = registry.push("other", &marked_for("other:arm", "arm64"));
    engine.both(|cli| {
        let list = format!("{host}/app:all");
        let created = manifest(cli, &["create", &list, &amd.name, &arm.name]).ok();
        assert_eq!(created, format!("Created manifest list {list}"));
        let again = manifest(cli, &["create", &list, &amd.name]);
        again.refuses(1, "refusing to amend an existing manifest list with no --amend flag");
        manifest(cli, &["create", "-a", &list, &amd.name]).ok();
        // The other client has the same list.
        let other = match cli.program() {
            Program::Whelk => Program::Docker,
            Program::Docker => Program::Whelk,
        };
        let local = |cli: Cli<'_>, flags: &[&str]| {
            let words = [&["manifest", "inspect"], flags, &[list.as_str()]].concat();
            cli.run(&words).ok()
        };
        for flags in [&[] as &[&str], &["-v"]] {
            let other = engine.cli(other);
            assert_eq!(local(cli, flags), local(other, flags));
        }
        let annotate = |words: &[&str]| {
            cli.run(&[&["manifest", "annotate"], words, &[list.as_str(), arm.name.as_str()]].concat())
        };
        annotate(&["--arch", "bogus"]).refuses(
            1,
            "manifest entry for image has unsupported os/arch combination: /bogus",
        );
        annotate(&["--arch", "arm", "--variant", "v7", "--os-features", "a,b", "--os-version", "1"]).ok();
        cli.run(&["manifest", "annotate", &list, &format!("{host}/none:1")])
            .refuses(1, &format!("manifest for image {host}/none:1 does not exist in {list}"));
        let one = cli.run(&["manifest", "inspect", "-v", &list, &arm.name]).ok();
        let one: Value = serde_json::from_str(&one).unwrap();
        let platform = json!({"architecture": "arm", "os": "linux", "os.version": "1", "os.features": ["a", "b"], "variant": "v7"});
        assert_eq!(one["Descriptor"]["platform"], platform);
        let pushed = manifest(cli, &["push", "-p", &list]).ok();
        let (index, digest) = registry.manifest_of("app", "all").unwrap();
        let lines: Vec<&str> = pushed.lines().collect();
        let mounted = format!("Pushed ref {host}/app@{0} with digest: {0}", arm.digest);
        assert_eq!(lines, [mounted.as_str(), digest.as_str()]);
        let listed = |at: usize| index["manifests"][at]["digest"].as_str().unwrap();
        assert_eq!([listed(0), listed(1)], [&amd.digest, &arm.digest]);
        assert_eq!(index["manifests"][1]["platform"], platform);
        // It was removed after the push.
        cli.run(&["manifest", "rm", &list]).refuses(1, &format!("No such manifest: {list}"));
        manifest(cli, &["create", &list, &amd.name]).ok();
        cli.run(&["manifest", "rm", &list]).ok();
        // Both pushed the same.
        registry.forget_requests();
        for layer in &arm.layers {
            registry.unlink("app", layer);
        }
    });
    let name = format!("{host}/app:all");
    let out = engine.whelk(&["pull", &name]).ok();
    assert!(out.contains("Status: Downloaded newer image"), "{out}");
}

#[test]
fn lists_are_made_with_the_credentials_of_the_user_and_without_an_engine() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let image = registry.push("app", &marked("app:1"));
    registry.behave(Behaviour {
        authorization: Some("Basic YWxpY2U6c2VzYW1l".into()),
        ..Behaviour::default()
    });
    let cli = engine.cli(Program::Whelk);
    let inspect = || {
        cli.run(&[
            "-H",
            "unix:///nonexistent.sock",
            "manifest",
            "inspect",
            &image.name,
        ])
    };
    inspect().refuses(1, &format!("no such manifest: {}", image.name));
    let login = ["login", "-u", "alice", "--password-stdin", &registry.host];
    cli.feed(&login, b"sesame").ok();
    let shown: Value = serde_json::from_str(&inspect().ok()).unwrap();
    assert_eq!(shown["schemaVersion"], 2);
}
