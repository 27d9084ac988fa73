//! Pushes to registries: which blobs are sent, mounted or skipped, output, failures, credentials.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use whelk_tests::images::{self, Archive, WHICH, marked, sha256};
use whelk_tests::registry::{Behaviour, Pushed, Registry};
use whelk_tests::tar::Tar;
use whelk_tests::{Engine, Program, eventually};

/// Writes an image archive, loads it, and gives it a name in the registry.
fn load(engine: &Engine, registry: &Registry, image: &Archive, name: &str) -> String {
    let path = engine.scratch("images").join("image.tar");
    std::fs::write(&path, image.build()).unwrap();
    engine
        .whelk(&["load", "-q", "-i", path.to_str().unwrap()])
        .ok();
    let name = format!("{}/{name}", registry.host);
    engine.whelk(&["tag", &image.tags[0], &name]).ok();
    name
}

fn image(engine: &Engine, name: &str) -> Value {
    engine.get(&format!("/images/{name}/json"))
}

fn short(digest: &str) -> &str {
    &digest["sha256:".len()..][..12]
}

/// An image with a layer of `length` bytes that do not compress.
fn big(length: usize) -> Archive {
    let layer = images::small_root()
        .file("noise", images::noise(length))
        .finish();
    Archive::new("big:1", vec![layer])
}

fn layers(manifest: &Value) -> Vec<String> {
    let layers = manifest["layers"].as_array().unwrap();
    layers
        .iter()
        .map(|layer| layer["digest"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn an_image_is_pushed_and_pulled_by_another_engine() {
    let engine = Engine::without_images(&[]);
    let other = Engine::without_images(&[]);
    engine.both(|cli| {
        let registry = Registry::start();
        let name = load(&engine, &registry, &marked("app:1"), "team/app:1");
        let out = cli.run(&["push", &name]).ok();
        let (manifest, digest) = registry.manifest_of("team/app", "1").unwrap();
        let lines: Vec<&str> = out.lines().collect();
        let first = format!("The push refers to repository [{}/team/app]", registry.host);
        assert_eq!(lines[0], first, "{out}");
        let ids = image(&engine, &name)["RootFS"]["Layers"].clone();
        for id in ids.as_array().unwrap() {
            for status in ["Preparing", "Pushed"] {
                let line = format!("{}: {status}", short(id.as_str().unwrap()));
                assert!(lines.contains(&line.as_str()), "{line} in {out}");
            }
        }
        let size = manifest.to_string().len();
        let last = format!("1: digest: {digest} size: {size}");
        assert_eq!(lines.last().unwrap(), &last, "{out}");
        let by_digest = format!("{}/team/app@{digest}", registry.host);
        let digests = image(&engine, &name)["RepoDigests"].clone();
        assert!(
            digests.as_array().unwrap().contains(&json!(by_digest)),
            "{digests}"
        );
        // The blobs match the digests in the manifest.
        for layer in layers(&manifest) {
            let content = registry.content(&layer).unwrap();
            assert_eq!(format!("sha256:{}", sha256(&content)), layer);
        }
        other.whelk(&["pull", "-q", &name]).ok();
        let run = other.cli(Program::Whelk).once(&name, &WHICH);
        assert_eq!(run.ok(), "app:1");
        other.whelk(&["rmi", "-f", &name]).ok();
        // A second push uploads nothing.
        registry.forget_requests();
        let again = cli.run(&["push", &name]).ok();
        assert!(
            again.contains("Layer already exists") && again.contains(&last),
            "{again}"
        );
        assert_eq!(registry.requests("POST"), [""; 0]);
        assert_eq!(cli.run(&["push", "-q", &name]).ok(), name);
        // A push to another repository of the registry mounts the layers.
        let second = format!("{}/second:1", registry.host);
        cli.run(&["tag", &name, &second]).ok();
        let out = cli.run(&["push", &second]).ok();
        assert!(
            out.contains(": Mounted from team/app") && !out.contains(": Pushed"),
            "{out}"
        );
        assert_eq!(registry.manifest_of("second", "1").unwrap().1, digest);
    });
}

#[test]
fn a_push_emits_an_event() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let name = load(&engine, &registry, &marked("app:1"), "team/app:1");
    engine.both(|cli| {
        let mut events = engine.events("");
        cli.run(&["push", &name]).ok();
        let event = events.next_event().unwrap();
        assert_eq!(event["Type"], "image");
        assert_eq!(event["Action"], "push");
        assert_eq!(event["Actor"]["ID"], name);
        let repository = name.strip_suffix(":1").unwrap();
        assert_eq!(event["Actor"]["Attributes"]["name"], repository);
    });
    // One that fails has none.
    let mut events = engine.events("");
    let missing = format!("{}/none:1", registry.host);
    engine.whelk(&["push", &missing]).fails(1);
    engine.whelk(&["rmi", "app:1"]).ok();
    assert_eq!(events.next_event().unwrap()["Action"], "untag");
}

#[test]
fn a_pulled_image_is_pushed_unchanged_where_its_blobs_can_be_mounted() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pulled = registry.push("one", &marked("app:1"));
    engine.whelk(&["pull", "-q", &pulled.name]).ok();
    let name = format!("{}/two:1", registry.host);
    engine.whelk(&["tag", &pulled.name, &name]).ok();
    let out = engine.whelk(&["push", &name]).ok();
    assert!(out.contains(": Mounted from one"), "{out}");
    assert!(!out.contains("compressed again"), "{out}");
    let (_, digest) = registry.manifest_of("two", "1").unwrap();
    assert_eq!(digest, pulled.digest);
    assert_eq!(registry.requests("PATCH"), [""; 0]);

    // Another registry has none of the blobs, and the first one does not give them any more.
    registry.behave(Behaviour {
        authorization: Some("Basic none".into()),
        ..Behaviour::default()
    });
    let other = Registry::start();
    let elsewhere = format!("{}/three:1", other.host);
    engine.whelk(&["tag", &pulled.name, &elsewhere]).ok();
    let out = engine.whelk(&["push", &elsewhere]).ok();
    let (manifest, digest) = other.manifest_of("three", "1").unwrap();
    let note = format!(
        "Layers were compressed again, which gives other blobs than those of {}",
        pulled.digest
    );
    assert_eq!(out.contains(&note), digest != pulled.digest, "{out}");
    assert_ne!(layers(&manifest), pulled.layers);
    let types: Vec<&Value> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| &layer["mediaType"])
        .collect();
    assert_eq!(
        types,
        [&json!("application/vnd.oci.image.layer.v1.tar+gzip"); 2]
    );
    // The digests of the compressed layers are recorded for the next push.
    other.forget_requests();
    let out = engine.whelk(&["push", &elsewhere]).ok();
    assert!(
        out.contains("Layer already exists") && !out.contains(": Pushed"),
        "{out}"
    );
    let digests = image(&engine, &elsewhere)["RepoDigests"].clone();
    assert_eq!(digests.as_array().unwrap().len(), 3, "{digests}");
}

#[test]
fn the_original_blobs_are_used_where_a_registry_has_them_by_now() {
    let engine = Engine::without_images(&[]);
    let origin = Registry::start();
    let target = Registry::start();
    let pulled = origin.push("one", &marked("app:1"));
    engine.whelk(&["pull", "-q", &pulled.name]).ok();
    origin.behave(Behaviour {
        authorization: Some("Basic none".into()),
        ..Behaviour::default()
    });
    let name = format!("{}/three:1", target.host);
    engine.whelk(&["tag", &pulled.name, &name]).ok();
    engine.whelk(&["push", &name]).ok();
    let (manifest, digest) = target.manifest_of("three", "1").unwrap();
    assert_ne!(
        (layers(&manifest), &digest),
        (pulled.layers.clone(), &pulled.digest)
    );
    // Somebody else has pushed the original to another repository.
    let other = target.push("four", &marked("app:1"));
    assert_eq!(other.digest, pulled.digest);
    engine.whelk(&["pull", "-q", &other.name]).ok();
    let out = engine.whelk(&["push", &name]).ok();
    assert!(out.contains(": Mounted from four"), "{out}");
    let (manifest, digest) = target.manifest_of("three", "1").unwrap();
    assert_eq!((layers(&manifest), digest), (pulled.layers, pulled.digest));
}

/// Pulls an image with 4 MiB that do not compress from a registry and gives it a name in another one.
fn pulled_for(engine: &Engine, origin: &Registry, target: &Registry) -> (Pushed, String) {
    let pulled = origin.push("one", &big(4 << 20));
    engine.whelk(&["pull", "-q", &pulled.name]).ok();
    let name = format!("{}/two:1", target.host);
    engine.whelk(&["tag", &pulled.name, &name]).ok();
    origin.forget_requests();
    (pulled, name)
}

#[test]
fn blobs_are_fetched_again_for_another_registry() {
    let engine = Engine::without_images(&[]);
    engine.both(|cli| {
        let (origin, target) = (Registry::start(), Registry::start());
        let (pulled, name) = pulled_for(&engine, &origin, &target);
        let out = cli.run(&["push", &name]).ok();
        assert!(
            out.contains(": Pushed") && !out.contains("compressed again"),
            "{out}"
        );
        let (manifest, digest) = target.manifest_of("two", "1").unwrap();
        assert_eq!(
            (digest, layers(&manifest)),
            (pulled.digest, pulled.layers.clone())
        );
        for layer in &pulled.layers {
            let content = target.content(layer).unwrap();
            assert_eq!(&format!("sha256:{}", sha256(&content)), layer);
            assert_eq!(
                origin.requests(&format!("GET /v2/one/blobs/{layer}")).len(),
                1
            );
        }
        cli.run(&["rmi", &pulled.name, &name]).ok();
    });
}

#[test]
fn a_push_does_not_wait_for_a_slow_or_faulty_origin() {
    let engine = Engine::without_images(&[]);
    let slow = Behaviour {
        pause: Some(Duration::from_millis(500)),
        ..Behaviour::default()
    };
    let gone = Behaviour {
        trickles: Some("/blobs/"),
        ..Behaviour::default()
    };
    for behaviour in [Some(slow), Some(gone), None] {
        let (origin, target) = (Registry::start(), Registry::start());
        let (pulled, name) = pulled_for(&engine, &origin, &target);
        match behaviour {
            Some(behaviour) => origin.behave(behaviour),
            None => origin.corrupt(&pulled.layers[0], &images::noise(4 << 20)),
        }
        let begin = Instant::now();
        let out = engine.whelk(&["push", &name]).ok();
        assert!(begin.elapsed() < Duration::from_secs(30), "{out}");
        let note = format!(
            "Layers were compressed again, which gives other blobs than those of {}",
            pulled.digest
        );
        assert!(out.contains(&note), "{out}");
        let (manifest, _) = target.manifest_of("two", "1").unwrap();
        for layer in layers(&manifest) {
            let content = target.content(&layer).unwrap();
            assert_eq!(format!("sha256:{}", sha256(&content)), layer);
        }
        engine.whelk(&["rmi", &pulled.name, &name]).ok();
    }
}

#[test]
fn all_tags_are_pushed_and_layers_once() {
    let engine = Engine::without_images(&[]);
    engine.both(|cli| {
        let registry = Registry::start();
        let repository = format!("{}/app", registry.host);
        for tag in ["1", "2"] {
            load(
                &engine,
                &registry,
                &marked(&format!("app:{tag}")),
                &format!("app:{tag}"),
            );
        }
        let out = cli.run(&["push", "-a", &repository]).ok();
        for tag in ["1", "2"] {
            let (_, digest) = registry.manifest_of("app", tag).unwrap();
            assert!(
                out.contains(&format!("{tag}: digest: {digest} size: ")),
                "{out}"
            );
        }
        let tag = format!("{repository}:1");
        cli.run(&["push", "-a", &tag])
            .refuses(1, "tag can't be used with --all-tags/-a");
        let missing = format!("{repository}:nosuch");
        cli.run(&["push", &missing])
            .refuses(1, &format!("tag does not exist: {missing}"));
        let text = format!(
            "An image does not exist locally with the tag: {}/nosuch",
            registry.host
        );
        cli.run(&["push", &format!("{}/nosuch", registry.host)])
            .refuses(1, &text);
        cli.run(&["rmi", "-f", &tag, &format!("{repository}:2")])
            .ok();
    });
}

#[test]
fn an_interrupted_upload_is_resumed() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let name = load(&engine, &registry, &big(4 << 20), "big:1");
    let cut = Behaviour {
        cut_uploads_after: Some(2 << 20),
        ..Behaviour::default()
    };
    registry.behave(cut);
    let cli = engine.cli(Program::Whelk);
    let mut push = cli.spawn(&["push", &name]);
    eventually("the first attempt", || {
        (!registry.requests("PATCH").is_empty()).then_some(())
    });
    registry.behave(Behaviour::default());
    let output = push.finish();
    assert_eq!(output.code, 0, "{}", output.err());
    assert!(output.out().contains("Retrying in 1 second"));
    let requests = registry.requests("PATCH");
    assert_eq!(requests.len(), 2, "{requests:?}");
    let range = requests[1].rsplit(' ').next().unwrap();
    let first: usize = range.split('-').next().unwrap().parse().unwrap();
    assert!(first > 2 << 20, "{requests:?}");
    let (manifest, _) = registry.manifest_of("big", "1").unwrap();
    let content = registry.content(&layers(&manifest)[0]).unwrap();
    assert_eq!(format!("sha256:{}", sha256(&content)), layers(&manifest)[0]);
}

#[test]
fn concurrent_pushes_share_an_upload() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let name = load(&engine, &registry, &big(2 << 20), "big:1");
    registry.behave(Behaviour {
        upload_pause: Some(Duration::from_millis(500)),
        ..Behaviour::default()
    });
    let cli = engine.cli(Program::Whelk);
    let mut pushes = [(); 3].map(|()| cli.spawn(&["push", &name]));
    for push in &mut pushes {
        let output = push.finish();
        assert_eq!(output.code, 0, "{}", output.err());
    }
    assert_eq!(registry.requests("PATCH").len(), 1);
}

#[test]
fn uploads_are_limited() {
    let engine = Engine::without_images(&[]);
    let layers = (0..4).map(|at: u8| {
        let noise = images::noise(2 << 20);
        let own = images::small_root().file("own", [at; 10]);
        own.file("noise", noise).finish()
    });
    let image = Archive::new("many:1", layers.collect());
    for (limit, expected) in [(1, 1), (3, 3)] {
        engine.kill9();
        engine.configure(&json!({"max-concurrent-uploads": limit}));
        engine.restart();
        let registry = Registry::start();
        let name = load(&engine, &registry, &image, "many:1");
        registry.behave(Behaviour {
            upload_pause: Some(Duration::from_millis(300)),
            ..Behaviour::default()
        });
        engine.whelk(&["push", &name]).ok();
        assert_eq!(registry.most_uploads(), expected);
    }
}

#[test]
fn a_refused_push_and_a_changed_layer_are_errors() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let name = load(&engine, &registry, &marked("app:1"), "app:1");
    engine.both(|cli| {
        registry.behave(Behaviour {
            is_read_only: true,
            ..Behaviour::default()
        });
        cli.run(&["push", &name]).refuses(1, "denied: no pushes");
        assert_eq!(registry.manifest_of("app", "1"), None);
    });
    // The upload of a layer that was changed on disk is not completed.
    registry.behave(Behaviour::default());
    let ids = image(&engine, &name)["RootFS"]["Layers"].clone();
    let layer: PathBuf = engine
        .root()
        .join("layers")
        .join(&ids[0].as_str().unwrap()["sha256:".len()..]);
    let files = ["fs/etc/passwd", "fs.erofs"].map(|name| layer.join(name));
    let file = files.iter().find(|file| file.exists()).unwrap();
    let mut content = std::fs::read(file).unwrap();
    let at = content.windows(5).position(|part| part == b"root:");
    content[at.unwrap()..][..4].copy_from_slice(b"toor");
    std::fs::write(file, content).unwrap();
    let output = engine.whelk(&["push", &name]);
    let text = format!(
        "push layer {}: layer {} was changed on disk",
        ids[0].as_str().unwrap(),
        ids[0].as_str().unwrap()
    );
    output.refuses(1, &text);
    assert_eq!(registry.manifest_of("app", "1"), None);
}

/// What compresses a layer may change with the engine, and with the processor.
#[test]
fn the_record_of_a_blob_that_was_compressed_otherwise_is_replaced() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let name = load(&engine, &registry, &marked("app:1"), "first:1");
    engine.whelk(&["push", &name]).ok();
    let (sent, _) = registry.manifest_of("first", "1").unwrap();
    let ids = image(&engine, &name)["RootFS"]["Layers"].clone();
    let id = &ids[0].as_str().unwrap()["sha256:".len()..];
    let record = engine.root().join("layers").join(id).join("gzip");
    let right = std::fs::read_to_string(&record).unwrap();
    assert!(right.starts_with(&layers(&sent)[0]), "{right}");
    let otherwise = format!("sha256:{} 1234", sha256(b"of another compressor"));
    // A registry without that blob is sent what compression generates now.
    std::fs::write(&record, &otherwise).unwrap();
    let empty = Registry::start();
    let second = format!("{}/second:1", empty.host);
    engine.whelk(&["tag", &name, &second]).ok();
    engine.whelk(&["rmi", &name]).ok();
    engine.whelk(&["push", &second]).ok();
    assert_eq!(std::fs::read_to_string(&record).unwrap(), right);
    let (sent, _) = empty.manifest_of("second", "1").unwrap();
    for layer in layers(&sent) {
        let content = empty.content(&layer).unwrap();
        assert_eq!(format!("sha256:{}", sha256(&content)), layer);
    }
    let other = Engine::without_images(&[]);
    other.whelk(&["pull", "-q", &second]).ok();
    let run = other.cli(Program::Whelk).once(&second, &WHICH);
    assert_eq!(run.ok(), "app:1");
}

#[test]
fn a_push_needs_the_users_credentials() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let name = load(&engine, &registry, &big(2 << 20), "app:1");
    registry.behave(Behaviour {
        // alice:sesame
        authorization: Some("Basic YWxpY2U6c2VzYW1l".into()),
        tokens: true,
        ..Behaviour::default()
    });
    let config = engine.scratch("config");
    std::fs::create_dir_all(&config).unwrap();
    let flag = format!("--config={}", config.display());
    let registry = &registry;
    engine.both(|cli| {
        std::fs::write(config.join("config.json"), "{}").unwrap();
        cli.run(&[&flag, "push", &name])
            .refuses(1, "incorrect username or password");
        let tokens = registry.requests("GET /token?");
        let scope = "scope=repository%3Aapp%3Apull%2Cpush";
        assert!(tokens.iter().any(|line| line.contains(scope)), "{tokens:?}");
        let login = [
            &flag,
            "login",
            "-u",
            "alice",
            "--password-stdin",
            &registry.host,
        ];
        cli.feed(&login, b"sesame").ok();
        registry.forget_requests();
        // Uses the password, because this registry's service does not accept the identity token.
        let auths = json!({"auths": {(registry.host.as_str()): {"auth": "YWxpY2U6c2VzYW1l"}}});
        std::fs::write(config.join("config.json"), auths.to_string()).unwrap();
        cli.run(&[&flag, "push", &name]).ok();
    });
}

#[test]
fn a_foreign_layer_is_not_pushed() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let mut manifest = registry.image(&marked("app:1"));
    let foreign = &mut manifest["layers"][0];
    foreign["mediaType"] = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip".into();
    foreign["urls"] = serde_json::json!(["https://example.com/layer"]);
    let pushed = registry.pushed("app", "1", &manifest);
    engine.both(|cli| {
        cli.run(&["pull", "-q", &pushed.name]).ok();
        let target = format!("{}/foreign/{:?}:1", registry.host, cli.program()).to_lowercase();
        cli.run(&["tag", &pushed.name, &target]).ok();
        let out = cli.run(&["push", &target]).ok();
        assert!(out.contains(": Skipped foreign layer"), "{out}");
        assert!(
            out.contains(&format!("1: digest: {}", pushed.digest)),
            "{out}"
        );
        cli.run(&["rmi", &target, &pushed.name]).ok();
    });
}

#[test]
fn a_layer_that_is_foreign_in_another_image_is_pushed() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let ordinary = registry.image(&marked("app:1"));
    let mut foreign = registry.image(&marked("other:1"));
    // Both images have the same base layer.
    assert_eq!(foreign["layers"][0], ordinary["layers"][0]);
    let layer = &mut foreign["layers"][0];
    layer["mediaType"] = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip".into();
    layer["urls"] = json!(["https://example.com/layer"]);
    let pushed = [
        registry.pushed("app", "1", &foreign),
        registry.pushed("app", "2", &ordinary),
    ];
    let target = Registry::start();
    for one in &pushed {
        engine.whelk(&["pull", "-q", &one.name]).ok();
        let name = one.name.replace(&registry.host, &target.host);
        engine.whelk(&["tag", &one.name, &name]).ok();
    }
    let all = format!("{}/app", target.host);
    let out = engine.whelk(&["push", "-a", &all]).ok();
    assert!(out.contains(": Skipped foreign layer"), "{out}");
    for (tag, one) in ["1", "2"].into_iter().zip(&pushed) {
        assert_eq!(target.manifest_of("app", tag).unwrap().1, one.digest);
    }
    assert!(target.content(&pushed[1].layers[0]).is_some(), "{out}");
}

/// The engine is killed at another time of a pull, and of a push, in each round. The store is sound
/// afterwards, nothing half-made is visible, and the next try succeeds. `WHELK_KILL_ROUNDS` sets the number.
#[test]
fn an_engine_killed_while_it_pulls_or_pushes_goes_on_afterwards() {
    let rounds = std::env::var("WHELK_KILL_ROUNDS").map_or(5, |text| text.parse().unwrap());
    let engine = Engine::without_images(&[]);
    let (origin, target) = (Registry::start(), Registry::start());
    let mut image = big(2 << 20);
    image.layers.extend(marked("app:1").layers.pop());
    image
        .layers
        .push(Tar::new().file("more", images::noise(1 << 20)).finish());
    let pulled = origin.push("one", &image);
    let slow = Behaviour {
        pause: Some(Duration::from_millis(10)),
        upload_pause: Some(Duration::from_millis(10)),
        ..Behaviour::default()
    };
    target.behave(slow.clone());
    let cli = |round: u32| match round % 2 {
        0 => engine.cli(Program::Docker),
        _ => engine.cli(Program::Whelk),
    };
    // How long the operation takes at most, as far as is known; so kills come at all of its times.
    let mut longest = [Duration::ZERO; 2];
    let mut interrupted = [0; 2];
    for round in 0..rounds {
        let name = format!("{}/round/{round}:1", target.host);
        for (which, words) in [["pull", &pulled.name], ["push", &name]].iter().enumerate() {
            // A push takes blobs from a registry only if it is quick.
            origin.behave(match which {
                0 => slow.clone(),
                _ => Behaviour::default(),
            });
            let begin = Instant::now();
            let mut running = cli(round).spawn(&words[..]);
            // The golden ratio spreads them evenly, whatever their number.
            let part = (f64::from(round) * 0.618_033_988_75).fract();
            let moment = longest[which].mul_f64(part);
            while begin.elapsed() < moment && running.is_running() {
                std::thread::sleep(Duration::from_millis(1));
            }
            if !running.is_running() {
                // The first one was slower than usual.
                longest[which] = begin.elapsed();
            }
            if round > 0 {
                engine.kill9();
            }
            let is_done = running.finish().code == 0;
            if round == 0 {
                assert!(is_done, "{words:?}");
                longest[which] = begin.elapsed();
            } else {
                interrupted[which] += u32::from(!is_done);
                engine.restart();
            }
            if which == 0 {
                let shown = engine.whelk(&["images", "-q"]).ok();
                assert!(
                    !is_done || !shown.is_empty(),
                    "{round}: a confirmed pull is lost"
                );
                if !shown.is_empty() {
                    assert_eq!(
                        engine.cli(Program::Whelk).once(&pulled.name, &WHICH).ok(),
                        "app:1"
                    );
                }
                cli(round).run(&["pull", &pulled.name]).ok();
                assert_eq!(
                    engine.cli(Program::Whelk).once(&pulled.name, &WHICH).ok(),
                    "app:1"
                );
                cli(round).run(&["tag", &pulled.name, &name]).ok();
            } else {
                cli(round).run(&["push", &name]).ok();
                let repository = format!("round/{round}");
                let (_, digest) = target.manifest_of(&repository, "1").unwrap();
                assert_eq!(digest, pulled.digest, "{round}");
            }
        }
        cli(round).run(&["rmi", &name, &pulled.name]).ok();
        let left = || Some(images::stored(&engine)).filter(Vec::is_empty);
        eventually("nothing to be left", left);
    }
    println!("interrupted: {interrupted:?} of {rounds} pulls and pushes");
    assert!(
        interrupted.iter().all(|count| *count > 0),
        "{interrupted:?}"
    );
}
