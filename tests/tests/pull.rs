//! Pulls from registries: results, output, interruptions, mirrors, credentials, invalid content.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use whelk_tests::images::{self, Archive, WHICH, marked};
use whelk_tests::registry::{Behaviour, Pushed, Registry};
use whelk_tests::tar::Tar;
use whelk_tests::{Engine, Program, Running, eventually};

/// Adds an image of one layer, with `length` bytes that do not compress.
fn push_big(registry: &Registry, length: usize) -> Pushed {
    let layer = images::small_root()
        .file("noise", images::noise(length))
        .finish();
    registry.push("big", &Archive::new("big:1", vec![layer]))
}

/// Slows down blobs so much that a pull of 4 MiB can be interrupted.
fn slow() -> Behaviour {
    Behaviour {
        pause: Some(Duration::from_millis(100)),
        ..Behaviour::default()
    }
}

/// Starts a pull, and waits until more than 1 MiB of one of its layers is on disk. Returns the pull
/// and the layer's partial file.
fn begin_pull(engine: &Engine, pushed: &Pushed, layer: usize) -> (Running, PathBuf) {
    let pull = engine.cli(Program::Whelk).spawn(&["pull", &pushed.name]);
    let digits = &pushed.layers[layer]["sha256:".len()..];
    let partial = engine.root().join("blobs/partial").join(digits);
    let length = || std::fs::metadata(&partial).map_or(0, |file| file.len());
    eventually("a part of the layer", || (length() > 1 << 20).then_some(()));
    (pull, partial)
}

/// Inspects an image.
fn image(engine: &Engine, name: &str) -> Value {
    engine.get(&format!("/images/{name}/json"))
}

fn log(engine: &Engine) -> String {
    std::fs::read_to_string(engine.root().with_file_name("daemon.log")).unwrap()
}

#[test]
fn an_image_is_pulled_inspected_and_run() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("team/app", &marked("app:1"));
    engine.both(|cli| {
        let out = cli.run(&["pull", &pushed.name]).ok();
        let short = |layer: &String| layer["sha256:".len()..][..12].to_owned();
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(lines[0], "1: Pulling from team/app", "{out}");
        for layer in pushed.layers.iter().map(short) {
            for status in ["Pulling fs layer", "Download complete", "Pull complete"] {
                assert!(
                    lines.contains(&format!("{layer}: {status}").as_str()),
                    "{out}"
                );
            }
        }
        let end = [
            format!("Digest: {}", pushed.digest),
            format!("Status: Downloaded newer image for {}", pushed.name),
            pushed.name.clone(),
        ];
        assert_eq!(lines[lines.len() - 3..], end, "{out}");
        let again = cli.run(&["pull", &pushed.name]).ok();
        let status = format!("Status: Image is up to date for {}", pushed.name);
        assert!(
            again.contains(&status) && !again.contains(": Already exists"),
            "{again}"
        );
        assert_eq!(cli.once(&pushed.name, &WHICH).ok(), "app:1");
        let by_digest = format!("{}/team/app@{}", registry.host, pushed.digest);
        let digests = image(&engine, &pushed.name)["RepoDigests"].clone();
        assert_eq!(digests, json!([by_digest]));
        // Where it came from, whatever it is called.
        let repository = format!("{}/team/app", registry.host);
        let identity = json!({"Pull": [{"Repository": repository}]});
        assert_eq!(image(&engine, &pushed.name)["Identity"], identity);
        let listed = |query: &str| engine.get(&format!("/images/json?manifests=1{query}"));
        let first = "/0/Manifests/0/ImageData/Identity";
        assert_eq!(listed("&identity=1").pointer(first), Some(&identity));
        assert_eq!(listed("").pointer(first), None);
        // Everything was fetched once: the second pull only requested the tag's digest.
        let tag = "HEAD /v2/team/app/manifests/1".to_owned();
        let manifest = format!("GET /v2/team/app/manifests/{}", pushed.digest);
        let requests = registry.requests("/manifests/");
        assert_eq!(requests, [tag.clone(), manifest, tag]);
        assert_eq!(registry.requests("/blobs/").len(), 3);
        registry.forget_requests();
        assert_eq!(cli.run(&["pull", "-q", &by_digest]).ok(), by_digest);
        assert_eq!(registry.requests(""), [""; 0]);
        cli.run(&[
            "rmi",
            "-f",
            image(&engine, &pushed.name)["Id"].as_str().unwrap(),
        ])
        .ok();
        registry.forget_requests();
    });
}

#[test]
fn a_missing_image_is_pulled_before_its_container_is_created() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    engine.both(|cli| {
        let never = ["run", "--rm", "--pull", "never", &pushed.name, "true"];
        cli.run(&never).refuses(125, "No such image");
        let output = cli.once(&pushed.name, &WHICH);
        assert_eq!(output.ok(), "app:1");
        let errors = output.err();
        assert!(
            errors.contains(&format!("Unable to find image '{}' locally", pushed.name))
                && errors.contains("Status: Downloaded newer image"),
            "{errors}"
        );
        registry.push("app", &marked("app:1"));
        let always = [
            "run",
            "--rm",
            "-q",
            "--network",
            "none",
            "--pull",
            "always",
            &pushed.name,
        ];
        let output = cli.run(&[&always[..], &WHICH].concat());
        assert_eq!((output.ok(), output.err()), ("app:1".into(), String::new()));
        cli.run(&["rmi", "-f", &pushed.name]).ok();
    });
}

#[test]
fn the_manifest_for_the_platform_is_chosen() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let (amd, arm) = (marked("amd:1"), marked("arm:1"));
    let index = registry.push_index("app", "1", &[("arm64", &arm), ("amd64", &amd)]);
    let name = format!("{}/app:1", registry.host);
    engine.whelk(&["pull", &name]).ok();
    assert_eq!(engine.cli(Program::Whelk).once(&name, &WHICH).ok(), "amd:1");
    let digests = image(&engine, &name)["RepoDigests"].clone();
    assert_eq!(digests, json!([format!("{}/app@{index}", registry.host)]));
    engine.both(|cli| {
        let text = "no matching manifest for linux/s390x in the manifest list entries";
        cli.run(&["pull", "--platform", "linux/s390x", &name])
            .refuses(1, text);
    });
}

#[test]
fn all_tags_of_a_repository_are_pulled() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let digests =
        ["1", "2", "3"].map(|tag| registry.push("app", &marked(&format!("app:{tag}"))).digest);
    registry.behave(Behaviour {
        page: Some(2),
        ..Behaviour::default()
    });
    let name = format!("{}/app", registry.host);
    engine.both(|cli| {
        cli.run(&["pull", "-a", &format!("{name}:1")])
            .refuses(1, "tag can't be used with --all-tags/-a");
        let out = cli.run(&["pull", "-a", &name]).ok();
        let is_about_all = |line: &&str| {
            ["Pulling from", "Digest", "Status"]
                .iter()
                .any(|word| line.contains(word))
        };
        let lines: Vec<&str> = out.lines().filter(is_about_all).collect();
        let mut expected = Vec::new();
        for (tag, digest) in ["1", "2", "3"].iter().zip(&digests) {
            expected.extend([
                format!("{tag}: Pulling from app"),
                format!("Digest: {digest}"),
            ]);
        }
        expected.push(format!("Status: Downloaded newer image for {name}"));
        assert_eq!(lines, expected, "{out}");
        assert_eq!(out.lines().last(), Some(name.as_str()));
        let again = cli.run(&["pull", "-a", &name]).ok();
        assert!(
            again.contains(&format!("Status: Image is up to date for {name}")),
            "{again}"
        );
        for tag in ["1", "2", "3"] {
            let tagged = format!("{name}:{tag}");
            let run = [&["run", "--rm", "--network", "none", &tagged], &WHICH[..]].concat();
            assert_eq!(cli.run(&run).ok(), format!("app:{tag}"));
            cli.run(&["rmi", &tagged]).ok();
        }
    });
}

#[test]
fn an_image_for_another_platform_is_pulled_with_a_warning() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    engine.both(|cli| {
        let pull = ["pull", "--platform", "linux/s390x", &pushed.name];
        let out = cli.run(&pull).ok();
        let text = format!(
            "WARNING: image with reference {} was found but its platform (linux/amd64) does not match the specified platform (linux/s390x)",
            pushed.name
        );
        assert!(out.lines().any(|line| line == text), "{out}");
    });
}

#[test]
fn indexes_are_nested_up_to_a_depth() {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    let mut digest = pushed.digest;
    for depth in 1..=4 {
        let entry = json!({
            "mediaType": INDEX, "digest": digest, "size": 2,
            "platform": {"architecture": "amd64", "os": "linux"},
        });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
        digest = registry.manifest("app", &depth.to_string(), INDEX, &index);
    }
    engine
        .whelk(&["pull", &format!("{}/app:3", registry.host)])
        .ok();
    engine
        .whelk(&["pull", &format!("{}/app:4", registry.host)])
        .refuses(1, "indexes are nested more than 3 levels deep");
}

#[test]
fn a_pull_replaces_damaged_blobs() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    engine.whelk(&["pull", &pushed.name]).ok();
    let id = image(&engine, &pushed.name)["Id"].clone();
    for digest in [id.as_str().unwrap(), &pushed.digest] {
        let blob = engine
            .root()
            .join("blobs/sha256")
            .join(&digest["sha256:".len()..]);
        let content = std::fs::read(&blob).unwrap();
        std::fs::write(&blob, &content[1..]).unwrap();
        engine.whelk(&["pull", &pushed.name]).ok();
        assert_eq!(std::fs::read(&blob).unwrap(), content);
    }
    assert_eq!(registry.requests("GET /v2/app/manifests/").len(), 2);
    assert_eq!(registry.requests(&pushed.layers[0]).len(), 1);
}

#[test]
fn a_pull_of_an_unreadable_image_makes_collections_possible_again() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    engine.whelk(&["pull", &pushed.name]).ok();
    let id = image(&engine, &pushed.name)["Id"].clone();
    let digits = &id.as_str().unwrap()["sha256:".len()..];
    engine.kill9();
    std::fs::write(engine.root().join("blobs/sha256").join(digits), "{}").unwrap();
    engine.restart();
    assert_eq!(engine.whelk(&["images", "-q"]).ok(), "");
    let layers = || engine.root().join("layers").read_dir().unwrap().count();
    assert_eq!(layers(), 2);
    engine.whelk(&["pull", &pushed.name]).ok();
    engine.whelk(&["rmi", &pushed.name]).ok();
    eventually("no layer", || (layers() == 0).then_some(()));
}

#[test]
fn refusals_of_registries_have_dockers_texts() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    let repository = format!("{}/app", registry.host);
    // The statuses are those of a pull, and of the request for what the registry has.
    for (refusal, text, (of_pull, of_distribution)) in [
        (
            (
                "404 Not Found",
                "NAME_UNKNOWN",
                "repository name not known to registry",
            ),
            format!(
                "repository {repository} not found: name unknown: repository name not known to registry"
            ),
            (404, 404),
        ),
        (
            ("404 Not Found", "MANIFEST_UNKNOWN", "manifest unknown"),
            format!("manifest for {repository}:1 not found: manifest unknown: manifest unknown"),
            (404, 404),
        ),
        (
            (
                "403 Forbidden",
                "DENIED",
                "requested access to the resource is denied",
            ),
            format!(
                "pull access denied for {repository}, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"
            ),
            (404, 403),
        ),
        (
            (
                "401 Unauthorized",
                "UNAUTHORIZED",
                "authentication required",
            ),
            "Error response from daemon: unauthorized: authentication required".to_owned(),
            (401, 401),
        ),
        (
            ("429 Too Many Requests", "TOOMANYREQUESTS", "slow down"),
            "Error response from daemon: toomanyrequests: slow down".to_owned(),
            (429, 429),
        ),
    ] {
        registry.behave(Behaviour {
            refusal: Some(refusal),
            ..Behaviour::default()
        });
        engine.both(|cli| cli.run(&["pull", &pushed.name]).refuses(1, &text));
        let path = format!("/images/create?fromImage={repository}&tag=1");
        assert_eq!(engine.api("POST", &path, None).0, of_pull, "{text}");
        let path = format!("/distribution/{repository}:1/json");
        assert_eq!(engine.api("GET", &path, None).0, of_distribution, "{text}");
    }
}

#[test]
fn registries_need_not_support_head_requests() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    registry.behave(Behaviour {
        refuses_head: true,
        ..Behaviour::default()
    });
    engine.whelk(&["pull", &pushed.name]).ok();
    let methods = ["HEAD", "GET"].map(|method| format!("{method} /v2/app/manifests/1"));
    assert_eq!(registry.requests("/manifests/"), methods);
}

#[test]
fn a_layer_with_a_wrong_digest_at_a_mirror_comes_from_the_registry() {
    let engine = Engine::without_images(&[]);
    let (registry, mirror) = (Registry::start(), Registry::start());
    let pushed = push_big(&registry, 1 << 20);
    push_big(&mirror, 1 << 20);
    let mut content = images::gzip(
        &images::small_root()
            .file("noise", images::noise(1 << 20))
            .finish(),
    );
    content[1 << 19] ^= 1;
    mirror.corrupt(&pushed.layers[0], &content);
    let host = registry.host.as_str();
    engine.kill9();
    engine.configure(&json!({"mirrors": {host: [format!("http://{}", mirror.host)]}}));
    engine.restart();
    engine.whelk(&["pull", &pushed.name]).ok();
    assert_eq!(mirror.requests(&pushed.layers[0]).len(), 1);
    assert_eq!(
        registry.requests(""),
        [format!("GET /v2/big/blobs/{}", pushed.layers[0])]
    );
}

#[test]
fn a_pull_emits_an_event() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    let mut events = engine.events("");
    engine.whelk(&["pull", &pushed.name]).ok();
    let event = events.next_event().unwrap();
    assert_eq!(event["Action"], "pull");
    assert_eq!(event["Actor"]["ID"], pushed.name);
    let name = format!("{}/app", registry.host);
    assert_eq!(event["Actor"]["Attributes"]["name"], name);
}

#[test]
fn an_interrupted_download_is_resumed() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = push_big(&registry, 4 << 20);
    registry.behave(Behaviour {
        cut_after: Some(1 << 20),
        ..Behaviour::default()
    });
    engine.whelk(&["pull", &pushed.name]).ok();
    let requests = registry.requests(&pushed.layers[0]);
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert!(requests[1].ends_with("bytes=1048576-"), "{requests:?}");
}

#[test]
fn a_download_is_resumed_after_the_engine_was_killed() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = push_big(&registry, 4 << 20);
    registry.behave(slow());
    let (mut pull, partial) = begin_pull(&engine, &pushed, 0);
    engine.kill9();
    assert_ne!(pull.finish().code, 0);
    let received = std::fs::metadata(&partial).unwrap().len();
    registry.behave(Behaviour::default());
    engine.restart();
    assert_eq!(engine.whelk(&["images", "-q"]).ok(), "");
    engine.whelk(&["pull", &pushed.name]).ok();
    let requests = registry.requests(&pushed.layers[0]);
    assert!(
        requests[1].ends_with(&format!("bytes={received}-")),
        "{requests:?}"
    );
    let cli = engine.cli(Program::Whelk);
    assert_eq!(cli.once(&pushed.name, &["echo", "up"]).ok(), "up");
    assert!(!partial.exists());
}

#[test]
fn a_pull_ends_with_its_client_and_the_next_one_resumes_it() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = push_big(&registry, 4 << 20);
    registry.behave(slow());
    let (mut pull, _) = begin_pull(&engine, &pushed, 0);
    pull.signal(rustix::process::Signal::KILL);
    assert_ne!(pull.finish().code, 0);
    registry.behave(Behaviour::default());
    engine.whelk(&["pull", &pushed.name]).ok();
    let requests = registry.requests(&pushed.layers[0]);
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert!(requests[1].contains(" bytes="), "{requests:?}");
}

#[test]
fn complete_layers_of_an_interrupted_pull_are_kept() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let layers = || engine.root().join("layers").read_dir().unwrap().count();
    for is_killed in [true, false] {
        let small = images::small_root().file("killed", is_killed.to_string());
        let big = Tar::new().file("noise", images::noise(4 << 20));
        let archive = Archive::new("big:1", vec![small.finish(), big.finish()]);
        let pushed = registry.push("big", &archive);
        registry.behave(slow());
        let (mut pull, _) = begin_pull(&engine, &pushed, 1);
        eventually("the small layer", || (layers() == 1).then_some(()));
        if is_killed {
            engine.kill9();
            assert_ne!(pull.finish().code, 0);
            engine.restart();
        } else {
            pull.signal(rustix::process::Signal::KILL);
            assert_ne!(pull.finish().code, 0);
        }
        registry.behave(Behaviour::default());
        engine.whelk(&["pull", &pushed.name]).ok();
        assert_eq!(registry.requests(&pushed.layers[0]).len(), 1);
        // It belongs to the image now, and is removed with it.
        engine.whelk(&["rmi", &pushed.name]).ok();
        eventually("no layer", || (layers() == 0).then_some(()));
    }
}

#[test]
fn a_pull_is_resumed_after_a_reboot() {
    // A kernel that ends suddenly may leave files of the right length whose last part is zero.
    for is_lost in [false, true] {
        let engine = Engine::without_images(&[]);
        let registry = Registry::start();
        let big = Tar::new().file("noise", images::noise(4 << 20)).finish();
        let archive = Archive::new("big:1", vec![images::small_root().finish(), big]);
        let pushed = registry.push("big", &archive);
        registry.behave(slow());
        let (mut pull, partial) = begin_pull(&engine, &pushed, 1);
        let layers = || {
            let layers = engine.root().join("layers").read_dir().unwrap().flatten();
            layers.map(|entry| entry.path()).collect::<Vec<_>>()
        };
        let marks = || {
            layers()
                .iter()
                .map(|layer| layer.join("pending"))
                .collect::<Vec<_>>()
        };
        eventually("the small layer", || {
            (marks().iter().filter(|mark| mark.exists()).count() == 1).then_some(())
        });
        engine.kill9();
        assert_ne!(pull.finish().code, 0);
        let received = std::fs::metadata(&partial).unwrap().len();
        // The mark of another boot: the layer's files were not flushed.
        std::fs::write(&marks()[0], "another boot\n").unwrap();
        if is_lost {
            use std::os::unix::fs::FileExt as _;
            let file = std::fs::File::options().write(true).open(&partial).unwrap();
            file.write_all_at(&[0; 4096], received - 4096).unwrap();
        }
        registry.behave(Behaviour::default());
        engine.restart();
        engine.whelk(&["pull", &pushed.name]).ok();
        let requests = registry.requests(&pushed.layers[1]);
        let resumed = format!("bytes={received}-");
        assert!(requests[1].ends_with(&resumed), "{requests:?}");
        assert_eq!(requests.len(), if is_lost { 3 } else { 2 }, "{requests:?}");
        assert_eq!(
            registry.requests(&pushed.layers[0]).len(),
            2,
            "not believed"
        );
        let cli = engine.cli(Program::Whelk);
        assert_eq!(cli.once(&pushed.name, &["echo", "up"]).ok(), "up");
        engine.whelk(&["system", "check", "--layers"]).ok();
    }
}

#[test]
fn a_pull_that_filled_the_disk_is_resumed() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    // EROFS images cannot be mounted from a tmpfs.
    let engine = Engine::with_directories();
    let registry = Registry::start();
    let pushed = push_big(&registry, 4 << 20);
    engine.kill9();
    let (root, size) = (engine.root(), Some(c"size=32m"));
    mount("tmpfs", &root, "tmpfs", MountFlags::empty(), size).unwrap();
    engine.restart();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        // Blob and layer have more than 8 MiB.
        let disk = rustix::fs::statvfs(&root).unwrap();
        let free = disk.f_bavail * disk.f_frsize;
        let filler = root.join("filler");
        let length = usize::try_from(free - (5 << 20)).unwrap();
        std::fs::write(&filler, vec![1; length]).unwrap();
        let full = "no space left on device";
        engine.whelk(&["pull", &pushed.name]).refuses(1, full);
        assert_eq!(registry.requests(&pushed.layers[0]).len(), 1);
        std::fs::remove_file(&filler).unwrap();
        engine.whelk(&["pull", &pushed.name]).ok();
        let requests = registry.requests(&pushed.layers[0]);
        assert_eq!(requests.len(), 2, "{requests:?}");
        assert!(requests[1].contains(" bytes="), "{requests:?}");
    }));
    engine.kill9();
    unmount(&root, UnmountFlags::DETACH).unwrap();
    engine.restart();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn concurrent_pulls_share_a_download() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = push_big(&registry, 1 << 20);
    registry.behave(Behaviour {
        pause: Some(Duration::from_millis(20)),
        ..Behaviour::default()
    });
    let cli = engine.cli(Program::Whelk);
    let mut pulls = [(); 3].map(|()| cli.spawn(&["pull", &pushed.name]));
    for pull in &mut pulls {
        let output = pull.finish();
        assert_eq!(output.code, 0, "{}", output.err());
    }
    assert_eq!(registry.requests(&pushed.layers[0]).len(), 1);
}

#[test]
fn pull_uses_the_credentials_of_the_client_configuration() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    registry.behave(Behaviour {
        authorization: Some("Basic YWxpY2U6c2VzYW1l".into()),
        ..Behaviour::default()
    });
    let config = engine.scratch("config");
    std::fs::create_dir_all(&config).unwrap();
    let flag = format!("--config={}", config.display());
    engine.both(|cli| {
        let url = format!("http://{}/v2/app/manifests/1", registry.host);
        let text = format!("Head \"{url}\": no basic auth credentials");
        std::fs::write(config.join("config.json"), "{}").unwrap();
        cli.run(&[&flag, "pull", &pushed.name]).refuses(1, &text);
        let auths = json!({"auths": {(registry.host.as_str()): {"auth": "YWxpY2U6c2VzYW1l"}}});
        std::fs::write(config.join("config.json"), auths.to_string()).unwrap();
        cli.run(&[&flag, "pull", "-q", &pushed.name]).ok();
        cli.run(&["rmi", "-f", &pushed.name]).ok();
    });
    assert!(!log(&engine).contains("YWxpY2U6c2VzYW1l") && !log(&engine).contains("sesame"));
}

#[test]
fn invalid_images_are_refused_and_leave_nothing() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let name = |tag: &str| format!("{}/app:{tag}", registry.host);
    let good = registry.image(&marked("good:1"));
    let mut cases = Vec::new();
    let mut case = |tag: &str, change: &dyn Fn(&mut Value), text: &str| {
        let mut manifest = good.clone();
        change(&mut manifest);
        registry.pushed("app", tag, &manifest);
        cases.push((name(tag), text.to_owned()));
    };
    case(
        "media",
        &|m| m["layers"][0]["mediaType"] = json!("text/plain"),
        "the type \"text/plain\" is not supported",
    );
    case(
        "artifact",
        &|m| m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json"),
        "this is not an image, but an artifact of type",
    );
    case(
        "short",
        &|m| m["layers"] = json!([m["layers"][0]]),
        "the manifest has 1 layers, the configuration 2",
    );
    case(
        "size",
        &|m| m["layers"][1]["size"] = json!(10),
        "is longer than its 10 bytes",
    );
    case(
        "long",
        &|m| m["config"]["size"] = json!(9 << 20),
        "more than the maximum of 8388608",
    );
    case(
        "swap",
        &|m| m["layers"].as_array_mut().unwrap().reverse(),
        "invalid diffID: expected",
    );
    case(
        "missing",
        &|m| m["layers"][1]["digest"] = json!(format!("sha256:{}", "0".repeat(64))),
        "404 Not Found",
    );
    for (name, text) in cases {
        engine.whelk(&["pull", &name]).refuses(1, &text);
    }
    // Content with a wrong digest.
    let other = registry.push(
        "app",
        &Archive::new("other:lie", vec![Tar::new().file("a", "1").finish()]),
    );
    registry.corrupt(
        &other.layers[0],
        &images::gzip(&Tar::new().file("a", "2").finish()),
    );
    let output = engine.whelk(&["pull", &other.name]);
    assert!(
        output.code == 1 && output.err().contains(&other.layers[0]),
        "{}",
        output.err()
    );
    let text = format!(
        "manifest for {} not found: manifest unknown: manifest unknown",
        name("nosuch")
    );
    engine.both(|cli| cli.run(&["pull", &name("nosuch")]).refuses(1, &text));
    assert_eq!(engine.whelk(&["images", "-aq"]).ok(), "");
    // Their valid layers are kept for a day, for the next pull, unless they are pruned.
    engine.whelk(&["image", "prune", "-f"]).ok();
    for directory in ["layers", "blobs/sha256", "blobs/partial", "tmp"] {
        eventually(directory, || {
            let left = std::fs::read_dir(engine.root().join(directory))
                .unwrap()
                .count();
            (left == 0).then_some(())
        });
    }
}

#[test]
fn distribution_inspect_describes_an_image_of_a_registry() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let ask = |name: &str, status: u16| {
        let path = format!("/distribution/{}/{name}/json", registry.host);
        let (found, answer) = engine.api("GET", &path, None);
        assert_eq!(found, status, "{name}: {answer}");
        answer
    };
    let pushed = registry.push("app", &marked("app:1"));
    let found = ask("app:1", 200);
    let platform = |architecture: &str| json!({"architecture": architecture, "os": "linux"});
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let (manifest, _) = registry.manifest_of("app", "1").unwrap();
    let size = manifest.to_string().len();
    let descriptor = json!({"mediaType": media_type, "digest": pushed.digest, "size": size});
    let own = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let expected = json!({"Descriptor": descriptor, "Platforms": [platform(own)]});
    assert_eq!(found, expected);
    assert_eq!(ask(&format!("app@{}", pushed.digest), 200), expected);
    let images = [("arm64", &marked("arm:1")), ("amd64", &marked("amd:1"))];
    let index = registry.push_index("many", "latest", &images);
    let found = ask("many", 200);
    assert_eq!(found["Descriptor"]["digest"], index);
    assert_eq!(
        found["Platforms"],
        json!([platform("arm64"), platform("amd64")])
    );
    let missing = ask("nosuch", 404);
    assert_eq!(missing["message"], "manifest unknown: manifest unknown");
    assert_eq!(engine.whelk(&["images", "-q"]).ok(), "");
    registry.behave(Behaviour {
        authorization: Some("Basic YWxpY2U6c2VzYW1l".into()),
        ..Behaviour::default()
    });
    ask("app:1", 401);
}

/// Returns the bytes that a directory tree takes on disk.
fn allocated(path: &Path) -> u64 {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    let below: u64 = if metadata.is_dir() {
        let entries = std::fs::read_dir(path).unwrap();
        entries.map(|entry| allocated(&entry.unwrap().path())).sum()
    } else {
        0
    };
    // Blocks of 512 bytes, independent of the file system. Each name of a file counts its share.
    let names = if metadata.is_dir() {
        1
    } else {
        metadata.nlink()
    };
    below + metadata.blocks() * 512 / names
}

#[test]
fn a_pulled_image_is_on_disk_once() {
    let engine = Engine::with_directories();
    let registry = Registry::start();
    let mut layers = vec![images::small_root().finish()];
    // Many small files, for whose headers much is kept beside them, and content that does not compress.
    for (layer, (count, size)) in [(1500, 3000), (20, 400_000)].into_iter().enumerate() {
        let noise = images::noise(size + count);
        let mut files = Tar::new();
        for file in 0..count {
            files = files.file(&format!("layer{layer}/file{file}"), &noise[file..][..size]);
        }
        layers.push(files.finish());
    }
    let pushed = registry.push("team/app", &Archive::new("app:1", layers));
    engine.docker(&["pull", &pushed.name]).ok();
    let root = engine.root();
    let total = allocated(&root.join("blobs")) + allocated(&root.join("layers"));
    let layers = std::fs::read_dir(root.join("layers")).unwrap();
    let unpacked: u64 = layers
        .map(|layer| allocated(&layer.unwrap().path().join("fs")))
        .sum();
    assert!(unpacked > 12_000_000, "{unpacked}");
    assert!(total * 100 <= unpacked * 115, "{total} of {unpacked} bytes");
}
