//! Pulls from registries that send endless or invalid content, and with engines that are killed.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use whelk_tests::images::{self, Archive, marked};
use whelk_tests::processes::peak_memory;
use whelk_tests::registry::{Behaviour, Registry};
use whelk_tests::{Engine, Program, eventually};

/// How often the engine is killed during pulls, and as often during pushes.
const KILLS: usize = 50;

/// Checks that the engine has no image, and that the store's blobs are what their names say.
fn check_sound(engine: &Engine) {
    assert_eq!(engine.whelk(&["images", "-aq"]).ok(), "");
    check_blobs(engine);
}

fn check_blobs(engine: &Engine) {
    for entry in engine.root().join("blobs/sha256").read_dir().unwrap() {
        let path = entry.unwrap().path();
        let content = std::fs::read(&path).unwrap();
        assert_eq!(path.file_name().unwrap(), &*images::sha256(&content));
    }
}

/// Returns an engine that tries each download so often.
fn with_attempts(count: u32) -> Engine {
    let engine = Engine::without_images(&[]);
    engine.kill9();
    engine.configure(&json!({"max-download-attempts": count}));
    engine.restart();
    engine
}

/// Checks that neither an image nor, after a prune, any of its content is left.
fn check_nothing(engine: &Engine) {
    assert_eq!(engine.whelk(&["images", "-aq"]).ok(), "");
    engine.whelk(&["image", "prune", "-f"]).ok();
    for directory in ["layers", "blobs/sha256", "blobs/partial", "tmp"] {
        eventually(directory, || {
            let left = engine.root().join(directory).read_dir().unwrap().count();
            (left == 0).then_some(())
        });
    }
}

#[test]
fn endless_responses_and_redirects_are_errors() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    let before = peak_memory(&engine);
    for (behaviour, text) in [
        (
            Behaviour {
                endless: Some("/manifests/"),
                ..Behaviour::default()
            },
            "the answer is larger than 4194304 bytes",
        ),
        (
            Behaviour {
                endless: Some("/blobs/"),
                ..Behaviour::default()
            },
            "the blob is longer than its",
        ),
        (
            Behaviour {
                redirects: Some("/blobs/"),
                ..Behaviour::default()
            },
            "more than 5 redirects",
        ),
        (
            Behaviour {
                redirects: Some("/manifests/"),
                ..Behaviour::default()
            },
            "more than 5 redirects",
        ),
    ] {
        registry.behave(behaviour);
        engine.both(|cli| cli.run(&["pull", &pushed.name]).refuses(1, text));
    }
    let grown = peak_memory(&engine) - before;
    assert!(grown < 60, "{grown} MiB");
    check_nothing(&engine);
}

#[test]
fn oversized_manifests_and_wrong_sizes_are_errors() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let good = registry.image(&marked("app:1"));
    for (tag, change, text) in [
        (
            "many",
            (|m: &mut Value| m["layers"] = json!(vec![m["layers"][0].clone(); 10_000]))
                as fn(&mut Value),
            "a list of more than 500 elements",
        ),
        (
            "long",
            |m| m["annotations"] = json!({"a": " ".repeat(5 << 20)}),
            "the answer is larger than 4194304 bytes",
        ),
        (
            "less",
            |m| m["layers"][1]["size"] = json!(m["layers"][1]["size"].as_u64().unwrap() + 1),
            "the answer has",
        ),
        (
            "more",
            |m| m["layers"][1]["size"] = json!(m["layers"][1]["size"].as_u64().unwrap() - 1),
            "the blob is longer than its",
        ),
        (
            "huge",
            |m| m["layers"][1]["size"] = json!(u64::MAX),
            "the answer has",
        ),
    ] {
        let mut manifest = good.clone();
        change(&mut manifest);
        let pushed = registry.pushed("app", tag, &manifest);
        let output = engine.whelk(&["pull", &pushed.name]);
        output.refuses(1, text);
        output.refuses(1, &format!("pull {}: ", pushed.name));
    }
    // 100 MB, also as a whole with its length.
    let before = peak_memory(&engine);
    let mut manifest = good.clone();
    manifest["annotations"] = json!({"a": " ".repeat(100_000_000)});
    let pushed = registry.pushed("app", "enormous", &manifest);
    let text = format!("pull {}: GET", pushed.name);
    let output = engine.whelk(&["pull", &pushed.name]);
    output.refuses(1, &text);
    output.refuses(1, "the answer is larger than 4194304 bytes");
    let grown = peak_memory(&engine) - before;
    assert!(grown < 60, "{grown} MiB");
    check_nothing(&engine);
}

/// Checks that a pull fails with a text if content whose path has `part` comes at one byte per second.
fn check_trickle(part: &'static str, text: &str) {
    const PATIENCE: Duration = Duration::from_secs(100);
    let engine = with_attempts(1);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    registry.behave(Behaviour {
        trickles: Some(part),
        ..Behaviour::default()
    });
    let (cli, begun) = (engine.cli(Program::Whelk), Instant::now());
    let mut pull = cli.spawn(&["pull", &pushed.name]);
    while pull.is_running() && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(200));
    }
    let output = pull.finish();
    output.refuses(1, &format!("pull {}: ", pushed.name));
    output.refuses(1, text);
    check_nothing(&engine);
}

#[test]
fn a_registry_that_sends_a_byte_of_a_blob_per_second_is_given_up() {
    check_trickle("/blobs/", "bytes in 30 s");
}

#[test]
fn a_registry_that_sends_a_byte_of_a_manifest_per_second_is_given_up() {
    check_trickle("/manifests/", "the answer has not come within 60 s");
}

#[test]
fn hostile_challenges_are_errors() {
    let engine = with_attempts(1);
    let (registry, other) = (Registry::start(), Registry::start());
    let pushed = registry.push("app", &marked("app:1"));
    let cli = engine.cli(Program::Whelk);
    let log_in = |registry: &Registry| {
        let password = Behaviour {
            authorization: Some("Basic YW5uOnNlc2FtZQ==".into()),
            ..Behaviour::default()
        };
        registry.behave(password);
        let command = ["login", "-u", "ann", "--password-stdin", &registry.host];
        cli.feed(&command, b"sesame").ok();
    };
    log_in(&registry);
    let before = peak_memory(&engine);
    let many =
        |count: usize| vec!["Bearer realm=\"http://127.0.0.1:1/\",x=\"y\""; count].join(", ");
    let mut wrong = Vec::new();
    for (challenge, text) in [
        (
            format!("Bearer realm=\"{}\"", "x".repeat(1 << 20)),
            "message head is too large",
        ),
        (
            format!("Bearer realm=\"{}\"", "x".repeat(9_000)),
            "401 Unauthorized",
        ),
        (
            "Bearer realm=\"file:///etc/passwd\"".into(),
            "authorization service file:///etc/passwd: not a URL",
        ),
        (
            "Bearer realm=\"ftp://127.0.0.1/\"".into(),
            "want an https:// URL",
        ),
        (
            "Bearer realm=\"http://127.0.0.1:1\\".into(),
            "401 Unauthorized",
        ),
        (
            "Bearer realm=\"\",service=\"\u{1b}[31m\"".into(),
            "invalid HTTP header parsed",
        ),
        (
            "Digest realm=\"a\", Negotiate, NTLM".into(),
            "401 Unauthorized",
        ),
        ("=,=,\"\"\",,,Basic".into(), "401 Unauthorized"),
        (many(100), "cannot connect to 127.0.0.1:1"),
        (many(10_000), "401 Unauthorized"),
    ] {
        registry.behave(Behaviour {
            challenge: Some(challenge.clone()),
            ..Behaviour::default()
        });
        let output = engine.whelk(&["pull", &pushed.name]);
        let error = output.err();
        let is_clean = error.len() < 10_000 && !error.contains(['\u{1b}', '\0']);
        if output.code != 1 || !error.contains(text) || !is_clean || error.contains("sesame") {
            let shown: String = challenge.chars().take(60).collect();
            wrong.push(format!("{shown}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let grown = peak_memory(&engine) - before;
    assert!(grown < 60, "{grown} MiB");
    // A service that asks for ever.
    registry.behave(Behaviour {
        challenge: Some(format!("Bearer realm=\"http://{}/loop/token\"", other.host)),
        ..Behaviour::default()
    });
    other.behave(Behaviour {
        redirects: Some("/loop/"),
        ..Behaviour::default()
    });
    let output = engine.whelk(&["pull", &pushed.name]);
    output.refuses(1, "more than 5 redirects");
    let count = other.requests("/loop/").len();
    assert!((1..20).contains(&count), "{count}");
    check_nothing(&engine);
}

#[test]
fn four_layers_are_pulled_in_little_memory() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let warm = registry.push("warm", &marked("warm:1"));
    engine.whelk(&["pull", &warm.name]).ok();
    let layers = (0..4).map(|number: u8| {
        let root = images::small_root().file("own", [number; 10]);
        let noise = root.file("noise", images::noise(24 << 20));
        noise.file("zeros", vec![0; 100 << 20]).finish()
    });
    let pushed = registry.push("app", &Archive::new("app:1", layers.collect()));
    let before = peak_memory(&engine);
    engine.whelk(&["pull", &pushed.name]).ok();
    let grown = peak_memory(&engine) - before;
    assert!(grown < 60, "{grown} MiB");
}

#[test]
fn truncated_and_mislabelled_content_is_refused() {
    let engine = with_attempts(2);
    let registry = Registry::start();
    let pushed = registry.push("app", &marked("app:1"));
    for part in ["/manifests/", "/blobs/"] {
        registry.behave(Behaviour {
            truncates: Some(part),
            ..Behaviour::default()
        });
        let output = engine.whelk(&["pull", &pushed.name]);
        let text = format!("pull {}: ", pushed.name);
        output.refuses(1, &text);
        assert!(output.err().contains(part), "{}", output.err());
    }
    registry.behave(Behaviour::default());
    let good = registry.image(&marked("app:1"));
    let index = "application/vnd.oci.image.index.v1+json";
    registry.manifest("app", "index", index, &good);
    let mut cases = vec![("index".to_owned(), "and was sent as".to_owned())];
    for (tag, bad) in [
        ("path", "sha256:../../../../etc/passwd"),
        ("short", "sha256:00"),
    ] {
        let mut manifest = good.clone();
        manifest["layers"][1]["digest"] = json!(bad);
        registry.pushed("app", tag, &manifest);
        cases.push((tag.to_owned(), "invalid manifest: ".to_owned()));
    }
    for (tag, text) in cases {
        let name = format!("{}/app:{tag}", registry.host);
        let output = engine.whelk(&["pull", &name]);
        output.refuses(1, &text);
        output.refuses(1, &format!("pull {name}: "));
    }
    check_nothing(&engine);
}

#[test]
fn a_decompression_bomb_is_refused() {
    const ZEROS: usize = 64 << 20;
    const TOTAL: usize = 5 << 30;
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let zeros = images::gzip(&vec![0; ZEROS]);
    let layer = images::small_root().finish();
    let before = peak_memory(&engine);
    // 5 GiB of zeros after the archive, as further members or frames.
    let gzip = [images::gzip(&layer), zeros.repeat(TOTAL / ZEROS)].concat();
    let zstd = [images::zstd(&layer), images::zstd_zeros(TOTAL)].concat();
    for (compression, content) in [("gzip", gzip), ("zstd", zstd)] {
        let mut manifest = registry.image(&marked("app:1"));
        manifest["layers"][1] = json!({
            "mediaType": format!("application/vnd.oci.image.layer.v1.tar+{compression}"),
            "digest": registry.blob(&content),
            "size": content.len(),
        });
        let pushed = registry.pushed("app", compression, &manifest);
        let output = engine.whelk(&["pull", &pushed.name]);
        let start = format!("pull {}: layer {}: ", pushed.name, pushed.layers[1]);
        output.refuses(1, &start);
        output.refuses(1, "decompression bomb: more than 300 bytes");
    }
    let grown = peak_memory(&engine) - before;
    assert!(grown < 60, "{grown} MiB");
    check_nothing(&engine);
}

#[test]
fn a_pull_is_resumed_after_each_of_many_kills() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let layer = images::small_root()
        .file("noise", images::noise(16 << 20))
        .finish();
    let pushed = registry.push("big", &Archive::new("big:1", vec![layer]));
    registry.behave(Behaviour {
        pause: Some(Duration::from_millis(20)),
        ..Behaviour::default()
    });
    let digits = &pushed.layers[0]["sha256:".len()..];
    let partial = engine.root().join("blobs/partial").join(digits);
    let length = || std::fs::metadata(&partial).map_or(0, |file| file.len());
    let mut expected = vec![format!("GET /v2/big/blobs/{}", pushed.layers[0])];
    for _ in 0..KILLS {
        let before = length();
        let cli = engine.cli(Program::Whelk);
        let mut pull = cli.spawn(&["pull", &pushed.name]);
        eventually("some more of the layer", || {
            (length() > before).then_some(())
        });
        engine.kill9();
        assert_ne!(pull.finish().code, 0);
        expected.push(format!("{} bytes={}-", expected[0], length()));
        engine.restart();
        check_sound(&engine);
    }
    registry.behave(Behaviour::default());
    engine.whelk(&["pull", &pushed.name]).ok();
    assert_eq!(registry.requests(&pushed.layers[0]), expected);
    let cli = engine.cli(Program::Whelk);
    assert_eq!(cli.once(&pushed.name, &["echo", "up"]).ok(), "up");
}

#[test]
fn a_push_is_resumed_after_each_of_many_kills() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let layers = (0..2).map(|at: u8| {
        let root = images::small_root().file("own", [at; 10]);
        root.file("noise", images::noise(2 << 20)).finish()
    });
    let image = Archive::new("big:1", layers.collect());
    engine.load(&image.build());
    let name = format!("{}/big:1", registry.host);
    engine.whelk(&["tag", "big:1", &name]).ok();
    for kill in 0..KILLS {
        registry.behave(Behaviour {
            upload_pause: Some(Duration::from_millis(300)),
            ..Behaviour::default()
        });
        registry.forget_requests();
        let cli = engine.cli(Program::Whelk);
        let mut push = cli.spawn(&["push", &name]);
        // Later each time: before, during and after the requests.
        let moment = Duration::from_millis(5 * (kill as u64 % 25));
        eventually("a request", || {
            (!registry.requests("/v2/big/").is_empty()).then_some(())
        });
        std::thread::sleep(moment);
        engine.kill9();
        let _ = push.finish();
        engine.restart();
        assert_eq!(engine.whelk(&["images", "-q"]).ok().lines().count(), 2);
        check_blobs(&engine);
    }
    registry.behave(Behaviour::default());
    engine.whelk(&["push", &name]).ok();
    let (manifest, _) = registry.manifest_of("big", "1").unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    for layer in layers {
        let digest = layer["digest"].as_str().unwrap();
        let content = registry.content(digest).unwrap();
        assert_eq!(format!("sha256:{}", images::sha256(&content)), digest);
    }
    let out = engine.whelk(&["push", &name]).ok();
    assert!(!out.contains(": Pushed"), "{out}");
}
