//! Images for several platforms under one name.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use serde_json::{Value, json};
use whelk_tests::images::{self, OWN_ARCHITECTURE, marked_for};
use whelk_tests::registry::Registry;
use whelk_tests::{Cli, Engine, Program, escape};

/// The architecture of the second image.
const OTHER: &str = if cfg!(target_arch = "aarch64") {
    "amd64"
} else {
    "arm64"
};

/// Adds an index of two images to a registry, the one for this machine last. Returns its name and digest.
fn push(registry: &Registry) -> (String, String) {
    let (own, other) = (
        marked_for("own", OWN_ARCHITECTURE),
        marked_for("other", OTHER),
    );
    let images = [(OTHER, &other), (OWN_ARCHITECTURE, &own)];
    for image in [&own, &other] {
        registry.pushed("app", "single", &registry.image(image));
    }
    let digest = registry.push_index("app", "1", &images);
    (format!("{}/app:1", registry.host), digest)
}

fn platform(architecture: &str) -> String {
    format!("linux/{architecture}")
}

/// Pulls the image for this machine and the other one.
fn pull_both(cli: Cli<'_>, name: &str) {
    cli.run(&["pull", "-q", name]).ok();
    cli.run(&["pull", "-q", "--platform", &platform(OTHER), name])
        .ok();
}

/// Returns what the image is that a container gets.
fn which(cli: Cli<'_>, flags: &[&str], name: &str) -> String {
    let words = [
        &["run", "--rm", "--network", "none", "--pull", "never"],
        flags,
        &[name, "cat", "/etc/which"],
    ];
    cli.run(&words.concat()).ok()
}

/// Returns the time as `events` takes it.
fn now() -> String {
    let time = std::time::UNIX_EPOCH.elapsed().unwrap();
    format!("{}.{:09}", time.as_secs(), time.subsec_nanos())
}

fn inspect(engine: &Engine, name: &str, architecture: &str) -> Value {
    let platform = json!({"os": "linux", "architecture": architecture}).to_string();
    engine.get(&format!(
        "/images/{name}/json?platform={}",
        escape(&platform)
    ))
}

/// Returns the names and ids of all images.
fn listed(engine: &Engine) -> Vec<(Value, Value)> {
    let images = engine.get("/images/json");
    let images = images.as_array().unwrap().iter();
    images
        .map(|image| (image["RepoTags"].clone(), image["Id"].clone()))
        .collect()
}

/// Returns a text without the escape sequences that colour it.
fn plain(text: &str) -> String {
    let (first, coloured) = text.split_once('\u{1b}').unwrap_or((text, ""));
    let rest = coloured.split('\u{1b}');
    let rest = rest.filter_map(|part| part.split_once('m').map(|(_, rest)| rest));
    [first].into_iter().chain(rest).collect()
}

#[test]
fn create_warns_of_an_image_for_another_platform() {
    let engine = Engine::without_images(&[]);
    for architecture in [OWN_ARCHITECTURE, OTHER] {
        let tag = format!("only:{architecture}");
        engine.load(&marked_for(&tag, architecture).build());
    }
    let warnings = |architecture: &str, query: &str| {
        let body = json!({"Image": format!("only:{architecture}")});
        let path = format!("/containers/create{query}");
        let (status, answer) = engine.api("POST", &path, Some(&body));
        assert_eq!(status, 201, "{answer}");
        answer["Warnings"].to_string()
    };
    assert_eq!(warnings(OWN_ARCHITECTURE, ""), "[]");
    let expected = format!(
        "The requested image's platform ({}) does not match the detected host platform ({}",
        platform(OTHER),
        platform(OWN_ARCHITECTURE)
    );
    let warned = warnings(OTHER, "");
    assert!(warned.contains(&expected), "{warned}");
    // The user knows it.
    let query = format!("?platform={}", escape(&platform(OTHER)));
    assert_eq!(warnings(OTHER, &query), "[]");
}

#[test]
fn a_name_stands_for_the_images_of_its_index() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let (name, digest) = push(&registry);
    engine.both(|cli| {
        // In either order.
        let (first, second) = match cli.program() {
            Program::Docker => (OWN_ARCHITECTURE, OTHER),
            Program::Whelk => (OTHER, OWN_ARCHITECTURE),
        };
        cli.run(&["pull", "--platform", &platform(first), &name]).ok();
        let text = format!(
            "image with reference {name} was found but its platform ({}) does not match the specified platform ({})",
            platform(first), platform(second)
        );
        let missing = ["image", "inspect", "--platform", &platform(second), &name];
        cli.run(&missing).refuses(1, &text);
        cli.run(&["pull", "--platform", &platform(second), &name]).ok();
        let again = cli.run(&["pull", "--platform", &platform(first), &name]).ok();
        assert!(again.contains("Status: Image is up to date"), "{again}");
        engine.kill9();
        engine.restart();
        assert_eq!(which(cli, &[], &name), "own");
        assert_eq!(which(cli, &["--platform", &platform(OTHER)], &name), "other");
        assert_eq!(which(cli, &["--platform", &platform(OWN_ARCHITECTURE)], &name), "own");
        let own = inspect(&engine, &name, OWN_ARCHITECTURE);
        let other = inspect(&engine, &name, OTHER);
        assert_ne!(own["Id"], other["Id"]);
        let by_digest = format!("{}/app@{digest}", registry.host);
        for image in [&own, &other] {
            assert_eq!(image["RepoTags"], json!([name]));
            assert_eq!(image["RepoDigests"], json!([by_digest]));
        }
        assert_eq!(engine.get(&format!("/images/{by_digest}/json"))["Id"], own["Id"]);
        assert_eq!(inspect(&engine, &by_digest, OTHER)["Id"], other["Id"]);
        assert_eq!(listed(&engine), [(json!([name]), own["Id"].clone())]);
        let text = format!(
            "image with reference {name} was found but does not provide the specified platform (linux/s390x)"
        );
        for command in [&["image", "inspect"][..], &["history"], &["image", "rm"]] {
            cli.run(&[command, &["--platform", "linux/s390x", &name]].concat()).refuses(1, &text);
        }
        let run = ["create", "--pull", "never", "--platform", "linux/s390x", &name];
        cli.run(&run).refuses(1, &text);
        let history = ["history", "-q", "--no-trunc", "--platform", &platform(OTHER), &name];
        let history = cli.run(&history).ok();
        assert_eq!(history.lines().next(), other["Id"].as_str());
        // A further name stands for the same.
        cli.run(&["tag", &name, "again:1"]).ok();
        assert_eq!(inspect(&engine, "again:1", OTHER)["Id"], other["Id"]);
        cli.run(&["rmi", &name]).ok();
        assert_eq!(which(cli, &["--platform", &platform(OTHER)], "again:1"), "other");
        let removed = cli.run(&["rmi", "again:1"]).ok();
        for id in [&own["Id"], &other["Id"]] {
            let line = format!("Deleted: {}", id.as_str().unwrap());
            assert!(removed.contains(&line), "{removed}");
        }
        assert!(listed(&engine).is_empty());
        assert_eq!(images::stored(&engine), [""; 0]);
    });
}

#[test]
fn one_platform_is_removed_or_all() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let (name, _) = push(&registry);
    engine.both(|cli| {
        pull_both(cli, &name);
        let id = |architecture| {
            inspect(&engine, &name, architecture)["Id"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        let (own, other) = (id(OWN_ARCHITECTURE), id(OTHER));
        let container = cli
            .run(&["create", "--platform", &platform(OTHER), &name, "true"])
            .ok();
        let remove = ["image", "rm", "--platform", &platform(OTHER), &name];
        let text = format!(
            "image is being used by stopped container {}",
            &container[..12]
        );
        cli.run(&remove).refuses(1, &text);
        cli.run(&["rmi", &name])
            .refuses(1, "is using its referenced image");
        cli.run(&["rm", &container]).ok();
        let removed = cli
            .run(&[
                "image",
                "rm",
                "--platform",
                &platform(OWN_ARCHITECTURE),
                &name,
            ])
            .ok();
        assert!(
            removed.contains(&format!("Deleted: {own}")) && !removed.contains("Untagged"),
            "{removed}"
        );
        assert_eq!(listed(&engine), [(json!([name]), json!(other))]);
        cli.run(&["pull", "-q", &name]).ok();
        assert_eq!(listed(&engine), [(json!([name]), json!(own))]);
        cli.run(&remove).ok();
        assert_eq!(listed(&engine), [(json!([name]), json!(own))]);
        // The last one takes the name with it.
        let removed = cli
            .run(&[
                "image",
                "rm",
                "--platform",
                &platform(OWN_ARCHITECTURE),
                &name,
            ])
            .ok();
        assert!(removed.contains(&format!("Untagged: {name}")), "{removed}");
        assert!(listed(&engine).is_empty());
        // What is listed is removed by its id, and so is what is listed below it.
        pull_both(cli, &name);
        cli.run(&["rmi", &other]).ok();
        assert_eq!(listed(&engine), [(json!([name]), json!(own))]);
        pull_both(cli, &name);
        cli.run(&["rmi", &own]).ok();
        assert_eq!(images::stored(&engine), [""; 0]);
        pull_both(cli, &name);
        cli.run(&["image", "prune", "-f"]).ok();
        assert_eq!(listed(&engine).len(), 1);
        cli.run(&["image", "prune", "-af"]).ok();
        assert_eq!(images::stored(&engine), [""; 0]);
    });
}

#[test]
fn all_platforms_are_saved_and_loaded_or_some() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let (name, _) = push(&registry);
    engine.both(|cli| {
        let directory = engine.scratch("archives");
        let path = |file: &str| directory.join(file).display().to_string();
        let (both, one) = (path("both.tar"), path("one.tar"));
        pull_both(cli, &name);
        let (own, other) = (
            inspect(&engine, &name, OWN_ARCHITECTURE),
            inspect(&engine, &name, OTHER),
        );
        cli.run(&["save", "-o", &both, &name]).ok();
        cli.run(&["save", "-o", &one, "--platform", &platform(OTHER), &name])
            .ok();
        let missing = [
            "save",
            "-o",
            &path("none.tar"),
            "--platform",
            "linux/s390x",
            &name,
        ];
        cli.run(&missing).refuses(
            1,
            "no suitable export target found for platform linux/s390x",
        );
        // What is there already stays reachable.
        cli.run(&["load", "-i", &both]).ok();
        assert_eq!(inspect(&engine, &name, OTHER)["Id"], other["Id"]);
        assert_eq!(listed(&engine), [(json!([name]), own["Id"].clone())]);
        cli.run(&["image", "rm", "--platform", &platform(OTHER), &name])
            .ok();
        cli.run(&["load", "-i", &both]).ok();
        assert_eq!(
            which(cli, &["--platform", &platform(OTHER)], &name),
            "other"
        );
        cli.run(&["rmi", &name]).ok();
        let begin = now();
        cli.run(&["load", "-i", &both]).ok();
        assert_eq!(inspect(&engine, &name, OTHER)["Id"], other["Id"]);
        assert_eq!(listed(&engine), [(json!([name]), own["Id"].clone())]);
        // The one with the name is told first.
        let words = [
            "events",
            "--filter",
            "event=load",
            "--format",
            "{{.Actor.ID}}",
        ];
        let events = cli.run(&[&words[..], &["--since", &begin, "--until", &now()]].concat());
        let loaded = [own["Id"].as_str().unwrap(), other["Id"].as_str().unwrap()];
        assert_eq!(events.ok(), loaded.join("\n"));
        cli.run(&["rmi", &name]).ok();
        for (archive, flags) in [(&both, &["--platform", &platform(OTHER)][..]), (&one, &[])] {
            cli.run(&[&["load", "-i", archive], flags].concat()).ok();
            assert_eq!(listed(&engine), [(json!([name]), other["Id"].clone())]);
            cli.run(&["rmi", &name]).ok();
        }
        assert_eq!(images::stored(&engine), [""; 0]);
    });
}

#[test]
fn an_index_is_pushed_with_all_that_it_lists_or_a_part_of_it_is() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let (name, digest) = push(&registry);
    let host = &registry.host;
    engine.both(|cli| {
        let target = format!("{host}/copy{}:1", cli.program() as u8);
        let repository = format!("copy{}", cli.program() as u8);
        cli.run(&["pull", "-q", &name]).ok();
        cli.run(&["tag", &name, &target]).ok();
        let out = cli.run(&["push", &target]).ok();
        let (manifest, single) = registry.manifest_of(&repository, "1").unwrap();
        assert!(manifest["layers"].is_array(), "{manifest}");
        let note = "Not all multiplatform-content is present and only the available single-platform image was pushed";
        let out = plain(&out);
        assert!(out.contains(note) && out.contains(&format!("{digest} -> {single}")), "{out}");
        pull_both(cli, &name);
        cli.run(&["tag", &name, &target]).ok();
        let out = cli.run(&["push", &target]).ok();
        assert!(!out.contains(note) && out.contains(&format!("1: digest: {digest}")), "{out}");
        let (index, pushed) = registry.manifest_of(&repository, "1").unwrap();
        assert_eq!((index["manifests"].as_array().unwrap().len(), &pushed), (2, &digest));
        let out = cli.run(&["push", "--platform", &platform(OTHER), &target]).ok();
        assert!(!out.contains(note), "{out}");
        let (manifest, _) = registry.manifest_of(&repository, "1").unwrap();
        assert_eq!(manifest["config"]["digest"], inspect(&engine, &name, OTHER)["Id"]);
        let missing = cli.run(&["push", "--platform", "linux/s390x", &target]);
        missing.refuses(1, "was found but does not provide the specified platform (linux/s390x)");
        cli.run(&["rmi", &target, &name]).ok();
    });
}

#[test]
fn what_the_registry_has_of_an_index_stays() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let (name, digest) = push(&registry);
    // The same image under another manifest, which the engine gets to know last.
    let mut manifest = registry.image(&marked_for("own", OWN_ARCHITECTURE));
    manifest["annotations"] = json!({"a": "1"});
    let single = registry.pushed("single", "1", &manifest).name;
    let target = format!("{}/app:2", registry.host);
    let elsewhere = format!("{}/copy:2", registry.host);
    engine.both(|cli| {
        cli.run(&["pull", "-q", &name]).ok();
        cli.run(&["pull", "-q", &single]).ok();
        cli.run(&["tag", &name, &target]).ok();
        registry.forget_requests();
        let out = plain(&cli.run(&["push", &target]).ok());
        assert!(out.contains(&format!("2: digest: {digest}")), "{out}");
        assert!(out.contains(": Layer already exists"), "{out}");
        assert_eq!(registry.manifest_of("app", "2").unwrap().1, digest);
        // Only the index is sent. The registry has the other image, which the engine does not have.
        assert_eq!(
            registry.requests("PUT").len(),
            1,
            "{:?}",
            registry.requests("")
        );
        let blobs = registry.requests("/blobs/");
        assert!(
            blobs.iter().all(|blob| blob.starts_with("HEAD ")),
            "{blobs:?}"
        );
        // What the registry has lost since is sent again.
        let (_, configuration) = blobs[0].rsplit_once('/').unwrap();
        registry.unlink("app", configuration);
        cli.run(&["push", &target]).ok();
        assert!(registry.has("app", configuration));
        // What another repository lacks is pushed as the index lists it.
        pull_both(cli, &name);
        cli.run(&["tag", &name, &elsewhere]).ok();
        cli.run(&["push", &elsewhere]).ok();
        assert_eq!(registry.manifest_of("copy", "2").unwrap().1, digest);
        cli.run(&["rmi", &target, &name, &single, &elsewhere]).ok();
    });
}

#[test]
fn images_are_shown_with_their_platforms() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let (name, _) = push(&registry);
    let cli = engine.cli(Program::Whelk);
    cli.run(&["pull", "-q", &name]).ok();
    let manifests = |path: &str| engine.get(path)["Manifests"].clone();
    let inspected = manifests(&format!("/images/{name}/json?manifests=1"));
    let listed = engine.get("/images/json?manifests=1")[0]["Manifests"].clone();
    assert_eq!(inspected, listed);
    let of = |architecture: &str| {
        let all = listed.as_array().unwrap().iter();
        let mut found =
            all.filter(|one| one["ImageData"]["Platform"]["architecture"] == architecture);
        found.next().unwrap().clone()
    };
    let (own, other) = (of(OWN_ARCHITECTURE), of(OTHER));
    assert_eq!(
        (&own["Available"], &other["Available"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(other["Size"], json!({"Content": 0, "Total": 0}));
    assert_eq!(own["ID"], own["Descriptor"]["digest"]);
    assert_eq!(own["Kind"], "image");
    let unpacked = own["ImageData"]["Size"]["Unpacked"].as_u64().unwrap();
    let total = own["Size"]["Content"].as_u64().unwrap() + unpacked;
    assert_eq!(own["Size"]["Total"], total);
    let container = cli.run(&["create", &name, "true"]).ok();
    let used = engine.get("/images/json?manifests=1")[0]["Manifests"].to_string();
    assert!(used.contains(&container), "{used}");
    assert_eq!(manifests(&format!("/images/{name}/json")), Value::Null);
    // Both clients draw the same tree, apart from colours and Docker's warning.
    let drawn = |program| {
        let text = engine.cli(program).run(&["images", "--tree"]).ok();
        let text = plain(&text);
        let lines = text.lines().filter(|line| !line.starts_with("WARNING"));
        let lines: Vec<String> = lines.map(|line| line.trim().to_owned()).collect();
        lines.join("\n").trim().to_owned()
    };
    assert_eq!(drawn(Program::Whelk), drawn(Program::Docker));
    assert!(drawn(Program::Whelk).contains(&format!("─ {}", platform(OTHER))));
}

#[test]
fn attestations_are_shown_and_pushed_with_their_image() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked_for("own", OWN_ARCHITECTURE));
    let statement = json!({"predicate": {"materials": []}}).to_string();
    let blob = |media_type: &str, content: &str| {
        let digest = registry.blob(content.as_bytes());
        json!({"mediaType": media_type, "digest": digest, "size": content.len()})
    };
    let attestation = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("application/vnd.oci.image.config.v1+json", "{}"),
        "layers": [blob("application/vnd.in-toto+json", &statement)],
    });
    let about = registry.pushed("app", "attestation", &attestation).digest;
    let (manifest, _) = registry.manifest_of("app", "own").unwrap();
    let entry = |digest: &str, size: usize, architecture: &str, os: &str| {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
            "platform": {"architecture": architecture, "os": os},
        })
    };
    let mut attached = entry(&about, attestation.to_string().len(), "unknown", "unknown");
    attached["annotations"] = json!({
        "vnd.docker.reference.digest": pushed.digest,
        "vnd.docker.reference.type": "attestation-manifest",
    });
    let own = entry(
        &pushed.digest,
        manifest.to_string().len(),
        OWN_ARCHITECTURE,
        "linux",
    );
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": [own, attached]});
    let digest = registry.manifest("app", "1", kind, &index);
    let name = format!("{}/app:1", registry.host);
    engine.both(|cli| {
        cli.run(&["pull", "-q", &name]).ok();
        let missing = ["pull", "--platform", "unknown/unknown", &name];
        cli.run(&missing).fails(1);
        let images = engine.get("/images/json?manifests=1");
        let manifests = images[0]["Manifests"].as_array().unwrap();
        let kinds: Vec<&Value> = manifests.iter().map(|manifest| &manifest["Kind"]).collect();
        assert_eq!(kinds, ["image", "attestation"]);
        assert_eq!(manifests[1]["AttestationData"]["For"], pushed.digest);
        // Another repository mounts what an attestation has; another registry gets it.
        let other = Registry::start();
        for (place, host) in [(&registry, &registry.host), (&other, &other.host)] {
            let repository = format!("copy{}", cli.program() as u8);
            let copy = format!("{host}/{repository}:1");
            cli.run(&["tag", &name, &copy]).ok();
            let out = cli.run(&["push", &copy]).ok();
            assert!(out.contains(&format!("1: digest: {digest}")), "{out}");
            let (found, _) = place.manifest_of(&repository, &about).unwrap();
            assert_eq!(found, attestation);
            let layer = found["layers"][0]["digest"].as_str().unwrap();
            assert_eq!(place.content(layer).unwrap(), statement.as_bytes());
            cli.run(&["rmi", &copy]).ok();
        }
        cli.run(&["rmi", &name]).ok();
    });
}
