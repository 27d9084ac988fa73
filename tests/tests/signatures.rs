//! Signature policies: `pull --verify`, and the key `signature-policy` of daemon.json.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, SigningKey as _};
use serde_json::{Value, json};
use whelk_tests::builds;
use whelk_tests::images::marked;
use whelk_tests::registry::{Pushed, Registry};
use whelk_tests::{Engine, Program};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

/// Returns a manifest with a signature of a digest, as cosign makes it. `repository` is what the
/// signature is for.
fn signature(registry: &Registry, key: &KeyPair, repository: &str, digest: &str) -> Value {
    let payload = json!({
        "critical": {
            "identity": {"docker-reference": repository},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string();
    let signature = STANDARD.encode(key.sign(payload.as_bytes()).unwrap());
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": registry.blob(b"{}"),
            "size": 2,
        },
        "layers": [{
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
            "digest": registry.blob(payload.as_bytes()),
            "size": payload.len(),
            "annotations": {"dev.cosignproject.cosign/signature": signature},
        }],
    })
}

/// Signs an image, as `cosign sign --key` does, under the tag `sha256-DIGEST.sig`.
fn sign(registry: &Registry, key: &KeyPair, repository: &str, digest: &str) {
    let name = format!("{}/{repository}", registry.host);
    let manifest = signature(registry, key, &name, digest);
    registry.pushed(
        repository,
        &format!("{}.sig", digest.replace(':', "-")),
        &manifest,
    );
}

/// Writes a key and a policy that requires it for one registry, and rejects all others.
fn policy(directory: &Path, registry: &Registry, key: &KeyPair) -> PathBuf {
    let public = directory.join("key.pub");
    std::fs::write(&public, key.public_key_pem()).unwrap();
    let requirement = json!({
        "type": "sigstoreSigned",
        "keyPath": public,
        "signedIdentity": {"type": "matchRepository"},
    });
    let policy = json!({
        "default": [{"type": "reject"}],
        "transports": {"docker": {registry.host.clone(): [requirement]}},
    });
    let path = directory.join("policy.json");
    std::fs::write(&path, policy.to_string()).unwrap();
    path
}

fn push(registry: &Registry, repository: &str) -> Pushed {
    registry.push(repository, &marked(&format!("{repository}:1")))
}

#[test]
fn only_images_with_a_valid_signature_are_pulled() {
    let engine = Engine::without_images(&[]);
    let (registry, other) = (Registry::start(), Registry::start());
    let (key, wrong) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let policy = policy(&engine.scratch("policy"), &registry, &key);
    let policy = policy.to_str().unwrap();
    let whelk = engine.cli(Program::Whelk);
    let refused = |pushed: &Pushed, expected: &str| {
        registry.forget_requests();
        let error = whelk
            .run(&["pull", "--verify", policy, &pushed.name])
            .fails(1);
        assert!(error.contains(expected), "{error}");
        // Neither the configuration nor a layer is downloaded.
        for layer in &pushed.layers {
            assert!(registry.requests(layer).is_empty());
        }
        whelk.run(&["image", "inspect", &pushed.name]).fails(1);
    };

    let unsigned = push(&registry, "unsigned");
    refused(&unsigned, "requires a signature, but the image has none");
    let forged = push(&registry, "forged");
    sign(&registry, &wrong, "forged", &forged.digest);
    refused(&forged, "it is not by one of the policy's keys");
    // The signature of one image beside another.
    let moved = push(&registry, "moved");
    let signed = push(&registry, "signed");
    let copied = signature(
        &registry,
        &key,
        &format!("{}/signed", registry.host),
        &signed.digest,
    );
    registry.pushed(
        "moved",
        &format!("{}.sig", moved.digest.replace(':', "-")),
        &copied,
    );
    refused(&moved, &format!("it is for the digest {}", signed.digest));
    let elsewhere = push(&other, "elsewhere");
    refused(&elsewhere, "the signature policy rejects it");

    sign(&registry, &key, "signed", &signed.digest);
    whelk.run(&["pull", "--verify", policy, &signed.name]).ok();
    // Without the flag nothing is required.
    whelk.run(&["pull", &unsigned.name]).ok();
}

#[test]
fn signatures_of_indexes_and_in_referrers_count() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let key = KeyPair::generate().unwrap();
    let policy = policy(&engine.scratch("policy"), &registry, &key);
    let verify = |name: &str| {
        let arguments = ["pull", "--verify", policy.to_str().unwrap(), name];
        engine.cli(Program::Whelk).run(&arguments)
    };

    let index = registry.push_index("multi", "1", &[("amd64", &marked("multi:1"))]);
    let name = format!("{}/multi:1", registry.host);
    verify(&name).fails(1);
    sign(&registry, &key, "multi", &index);
    verify(&name).ok();
    verify(&format!("{}/multi@{index}", registry.host)).ok();

    // Without the referrers API, they are listed under a tag.
    let image = push(&registry, "referred");
    let repository = format!("{}/referred", registry.host);
    let artifact = signature(&registry, &key, &repository, &image.digest);
    let pushed = registry.pushed("referred", "", &artifact);
    let list = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [{
        "mediaType": MANIFEST,
        "digest": pushed.digest,
        "size": artifact.to_string().len(),
        "artifactType": ARTIFACT,
    }]});
    verify(&image.name).fails(1);
    registry.manifest("referred", &image.digest.replace(':', "-"), INDEX, &list);
    verify(&image.name).ok();
}

#[test]
fn the_engine_requires_its_own_policy_of_every_pull() {
    let registry = Registry::start();
    let key = KeyPair::generate().unwrap();
    let engine = Engine::without_images(&[]);
    let path = policy(&engine.scratch("policy"), &registry, &key);
    engine.kill9();
    engine.configure(&json!({"signature-policy": "/nowhere"}));
    let log = engine.refuses_to_start();
    assert!(log.contains("signature-policy: "), "{log}");
    engine.configure(&json!({"signature-policy": path}));
    engine.restart();
    let (unsigned, signed) = (push(&registry, "unsigned"), push(&registry, "signed"));
    sign(&registry, &key, "signed", &signed.digest);
    engine.both(|cli| {
        let refused = cli.run(&["pull", &unsigned.name]).fails(1);
        assert!(refused.contains("the image has none"), "{refused}");
        let refused = cli.run(&["run", "--rm", &unsigned.name, "true"]).fails(125);
        assert!(refused.contains("the image has none"), "{refused}");
        cli.run(&["pull", &signed.name]).ok();
        cli.run(&["rmi", &signed.name]).ok();
    });
    // Nobody signs caches, not even those in a signed image.
    let context = engine.scratch("context");
    std::fs::write(context.join("Dockerfile"), "FROM scratch\nENV A=1\n").unwrap();
    for name in [&unsigned.name, &signed.name] {
        let shown = builds::docker(&engine).built(&context, &["--cache-from", name]);
        assert!(shown.contains("the image has none"), "{shown}");
    }
}

#[test]
fn policies_that_cannot_be_used_are_refused() {
    let engine = Engine::without_images(&[]);
    let directory = engine.scratch("policy");
    let path = directory.join("policy.json");
    let verify = |path: &Path| {
        let arguments = ["pull", "--verify", path.to_str().unwrap(), "localhost:1/a"];
        engine.cli(Program::Whelk).run(&arguments).fails(1)
    };
    assert!(verify(&directory.join("none")).contains("no such file or directory"));
    for (json, expected) in [
        (
            r#"{"default":[{"type":"signedBy"}]}"#,
            "unknown variant `signedBy`",
        ),
        (
            r#"{"default":[{"type":"sigstoreSigned","keyPath":"/nowhere"}]}"#,
            "key /nowhere: No such file",
        ),
        (
            r#"{"default":[{"type":"sigstoreSigned","keyData":"AAAA"}]}"#,
            "not a public key",
        ),
    ] {
        std::fs::write(&path, json).unwrap();
        let error = verify(&path);
        let error = error.to_lowercase();
        assert!(error.contains(&expected.to_lowercase()), "{error}");
    }
}
