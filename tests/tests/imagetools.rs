//! `buildx imagetools`: images of registries, shown and combined without an engine, as by buildx.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;

use serde_json::{Value, json};
use whelk_tests::builds::whelk;
use whelk_tests::images::{marked, marked_for};
use whelk_tests::registry::{Behaviour, Registry};
use whelk_tests::{Engine, Program};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Adds attestations to an index, and returns it.
fn attested(registry: &Registry, subject: &Value) -> Value {
    let statement = |kind: &str, predicate: Value| {
        let text = json!({"predicateType": kind, "predicate": predicate}).to_string();
        let digest = registry.blob(text.as_bytes());
        json!({
            "mediaType": "application/vnd.in-toto+json", "digest": digest, "size": text.len(),
            "annotations": {"in-toto.io/predicate-type": kind},
        })
    };
    let config = registry.blob(b"{}");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
        "layers": [
            statement("https://slsa.dev/provenance/v0.2", json!({"builder": {"id": ""}, "buildType": "x"})),
            statement("https://spdx.dev/Document", json!({"spdxVersion": "SPDX-2.3", "packages": [1]})),
        ],
    });
    let digest = registry.manifest("app", "", MANIFEST, &manifest);
    json!({
        "mediaType": MANIFEST, "digest": digest, "size": manifest.to_string().len(),
        "annotations": {
            "vnd.docker.reference.digest": subject["digest"],
            "vnd.docker.reference.type": "attestation-manifest",
        },
        "platform": {"architecture": "unknown", "os": "unknown"},
    })
}

/// Fills a registry: an image, an index, one with attestations, and one of Docker's manifests.
fn fill(registry: &Registry) {
    let (amd, arm) = (marked_for("app:1", "amd64"), marked_for("arm:1", "arm64"));
    registry.push("app", &amd);
    let index = registry.push_index("app", "all", &[("amd64", &amd), ("arm64", &arm)]);
    let document = registry.document(&format!("app/{index}")).unwrap();
    let index: Value = serde_json::from_slice(&document).unwrap();
    let subject = &index["manifests"][0];
    let attestation = attested(registry, subject);
    let attested =
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [subject, attestation]});
    registry.manifest("app", "attested", INDEX, &attested);
    let mut image = registry.image(&amd);
    image["mediaType"] = json!(DOCKER_MANIFEST);
    registry.manifest("app", "docker", DOCKER_MANIFEST, &image);
}

/// Returns the lines of a text, with those of annotations sorted: buildx shows them in any order.
fn sorted_annotations(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let is_one = |line: &str| line.starts_with("    ");
    for annotations in lines.chunk_by_mut(|one, next| is_one(one) && is_one(next)) {
        annotations.sort_unstable();
    }
    lines
}

#[test]
fn images_are_shown_as_by_buildx() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    fill(&registry);
    for tag in ["1", "all", "attested", "docker"] {
        let name = format!("{}/app:{tag}", registry.host);
        for flags in [
            &[] as &[&str],
            &["--raw"],
            &["--format", "{{json .Manifest}}"],
            &["--format", "{{json .Image}}"],
            &["--format", "{{json .Provenance}} {{json .SBOM}}"],
            &["--format", "{{.Manifest.Digest}} {{.Name}}"],
        ] {
            let words = [
                &["buildx", "imagetools", "inspect"],
                flags,
                &[name.as_str()],
            ]
            .concat();
            let shown = |program| sorted_annotations(&engine.cli(program).run(&words).ok());
            assert_eq!(shown(Program::Whelk), shown(Program::Docker), "{words:?}");
        }
    }
    let inspect = |words: &[&str]| {
        whelk(&engine).run(&[&["buildx", "imagetools", "inspect"], words].concat())
    };
    let none = format!("{}/app:none", registry.host);
    inspect(&[&none]).refuses(1, &format!("ERROR: {none}: not found"));
    inspect(&["--raw", "--format", "x", &none])
        .refuses(1, "ERROR: format and raw cannot be used together");
    inspect(&["A"]).refuses(1, "ERROR: invalid reference format");
}

#[test]
fn images_are_combined_as_by_buildx() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    fill(&registry);
    registry.push("other", &marked("other:1"));
    let host = &registry.host;
    let name = |rest: &str| format!("{host}/{rest}");
    let (one, all, other) = (name("app:1"), name("app:all"), name("other:1"));
    let attested = name("app:attested");
    let create = |program: Program, words: &[&str]| {
        let begin = ["buildx", "imagetools", "create", "--progress", "plain"];
        engine.cli(program).run(&[&begin, words].concat())
    };
    for words in [
        &[one.as_str()] as &[&str],
        &["--prefer-index=false", &one],
        &[&all, &other],
        &[&all, &one],
        &["-p", "linux/arm64", &all],
        &["-p", "linux/amd64", &attested, &all],
        &["--annotation", "index:a=<b>", &all],
        &[
            "--annotation",
            "manifest-descriptor[linux/arm64]:a=b",
            &all,
            &other,
        ],
        &["--append", "-t", &all, &other],
    ] {
        let words = [&["--dry-run"], words].concat();
        let made = |program| create(program, &words).ok();
        assert_eq!(made(Program::Whelk), made(Program::Docker), "{words:?}");
    }
    // Into another repository, with what is in it.
    let target = name("new:1");
    create(Program::Whelk, &["-t", &target, &all, &other]).exits(0);
    let made = registry.document("new/1").unwrap();
    let made: Value = serde_json::from_slice(&made).unwrap();
    let entries = made["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 3);
    for entry in entries {
        let digest = entry["digest"].as_str().unwrap();
        assert!(registry.document(&format!("new/{digest}")).is_some());
    }
    engine.whelk(&["pull", &target]).ok();
    let file = engine.scratch("source").join("file");
    let digest = registry.push("app", &marked_for("app:1", "amd64"));
    let document = registry.document("app/1").unwrap();
    let source = json!({
        "digest": format!("sha256:{}", whelk_tests::images::sha256(&document)), "size": document.len(),
        "platform": {"os": "linux", "architecture": "mine"},
    });
    fs::write(&file, format!("{source}\n")).unwrap();
    let words = [
        "--dry-run",
        "-t",
        &digest.name,
        "-f",
        file.to_str().unwrap(),
    ];
    let made = create(Program::Whelk, &words).ok();
    assert!(made.contains("\"architecture\": \"mine\""), "{made}");
    for (words, expected) in [
        (&[] as &[&str], "no sources specified"),
        (
            &[&one],
            "can't push with no tags specified, please set --tag or --dry-run",
        ),
        (
            &["--dry-run", "--annotation", "a=b", &one],
            "\"\" annotations are not supported yet",
        ),
        (
            &["--dry-run", "-p", "linux/s390x", &all],
            "none of the manifests match the provided platforms",
        ),
        (
            &["--dry-run", "sha256:1"],
            "failed to parse source \"sha256:1\"",
        ),
    ] {
        create(Program::Whelk, words).refuses(1, expected);
        create(Program::Docker, words).refuses(1, expected);
    }
}

#[test]
fn credentials_and_other_registries() {
    let engine = Engine::without_images(&[]);
    let (source, target) = (Registry::start(), Registry::start());
    let image = source.push("app", &marked("app:1"));
    target.behave(Behaviour {
        authorization: Some("Basic dXNlcjpwYXNzd29yZA==".into()),
        ..Behaviour::default()
    });
    let name = format!("{}/copy:1", target.host);
    let words = ["buildx", "imagetools", "create", "-t", &name, &image.name];
    let refused = whelk(&engine).run(&words);
    assert_ne!(refused.code, 0, "{}", refused.err());
    let config = engine.scratch("config");
    let auths = json!({"auths": {&target.host: {"auth": "dXNlcjpwYXNzd29yZA=="}}});
    fs::write(config.join("config.json"), auths.to_string()).unwrap();
    let env = [("DOCKER_CONFIG", config.to_str().unwrap())];
    whelk(&engine).with_env(&env).run(&words).exits(0);
    assert!(target.document("copy/1").is_some());
    // There is no engine behind these commands.
    let env = [("DOCKER_HOST", "unix:///nonexistent.sock")];
    let inspect = ["buildx", "imagetools", "inspect", "--raw", &image.name];
    whelk(&engine).with_env(&env).run(&inspect).ok();
}
