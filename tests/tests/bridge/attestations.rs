//! Attestations that frontends return with their results.

use serde_json::{Value, json};
use whelk_buildkit::grpc::Result;
use whelk_buildkit::pb::Unused;
use whelk_buildkit::pb::control::{Exporter, SolveRequest, SolveResponse};
use whelk_buildkit::pb::gateway::{
    self, Attestation, Attestations, InTotoSubject, Ref, ReturnRequest, result,
};
use whelk_tests::Engine;
use whelk_tests::grpc::{Bridge, Grpc};
use whelk_tests::registry::Registry;

use crate::file;

const BUNDLED: &str = r#"{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://example.com/b/v1","subject":[],"predicate":{"bundled":1}}"#;

fn image(grpc: &Grpc, build: &str, name: &str) -> Bridge {
    let exporter = Exporter {
        kind: "image".into(),
        attrs: [("name".to_owned(), name.to_owned())].into(),
    };
    let request = SolveRequest {
        exporters: vec![exporter],
        ..SolveRequest::default()
    };
    grpc.build(build, request)
}

/// Returns a file with attestations as the result of a build.
fn returned(bridge: Bridge, attestation: Vec<Attestation>) -> Result<SolveResponse> {
    let reference = bridge.solve(&file("/greeting", "hello"))?;
    let result = gateway::Result {
        kind: Some(result::Kind::Ref(reference)),
        attestations: [("linux/amd64".to_owned(), Attestations { attestation })].into(),
        ..gateway::Result::default()
    };
    let request = ReturnRequest {
        result: Some(result),
        error: None,
    };
    let _: Unused = bridge.call("Return", &request)?;
    bridge.solving.wait()
}

fn predicate(reference: &Ref, kind: &str) -> Attestation {
    Attestation {
        r#ref: Some(reference.clone()),
        path: "/one.json".into(),
        in_toto_predicate_type: kind.into(),
        ..Attestation::default()
    }
}

#[test]
fn attestations_of_frontends_are_part_of_images() {
    let engine = Engine::without_images(&[]);
    let registry = Registry::start();
    let grpc = Grpc::connect(&engine);
    let name = format!("{}/a/b:1", registry.host);
    let bridge = image(&grpc, "attested", &name);
    let one = bridge.solve(&file("/one.json", r#"{"ok":true}"#)).unwrap();
    let bundle = bridge.solve(&file("/b.json", BUNDLED)).unwrap();
    let about = |kind: i32, name: &str, digest: &[&str]| InTotoSubject {
        kind,
        digest: digest.iter().map(|digest| (*digest).to_owned()).collect(),
        name: name.to_owned(),
    };
    let attestations = vec![
        Attestation {
            in_toto_subjects: vec![
                about(0, "", &[]),
                about(1, "x", &["sha256:00", "sha512:11"]),
            ],
            ..predicate(&one, "https://example.com/a/v1")
        },
        Attestation {
            kind: 1,
            r#ref: Some(bundle),
            path: "/".into(),
            ..Attestation::default()
        },
    ];
    returned(bridge, attestations).unwrap();
    engine.docker(&["push", &name]).ok();
    let (index, _) = registry.manifest_of("a/b", "1").unwrap();
    let [image, attached] = index["manifests"].as_array().unwrap().as_slice() else {
        panic!("{index}")
    };
    let annotations = &attached["annotations"];
    assert_eq!(annotations["vnd.docker.reference.digest"], image["digest"]);
    let attached = attached["digest"].as_str().unwrap();
    let (attached, _) = registry.manifest_of("a/b", attached).unwrap();
    let layers = attached["layers"].as_array().unwrap().iter();
    let statements = layers.map(|layer| {
        let content = registry.content(layer["digest"].as_str().unwrap());
        serde_json::from_slice(&content.unwrap()).unwrap()
    });
    let statements: Vec<Value> = statements.collect();
    let (_, digits) = image["digest"].as_str().unwrap().split_once(':').unwrap();
    let digits = json!({"sha256": digits});
    let other = json!({"name": "x", "digest": {"sha256": "00", "sha512": "11"}});
    assert_eq!(statements.len(), 2);
    let [own, second] = statements[0]["subject"].as_array().unwrap().as_slice() else {
        panic!("{statements:?}")
    };
    assert_eq!((&own["digest"], second), (&digits, &other));
    let own = own["name"].as_str().unwrap();
    assert!(own.ends_with("/a/b@1?platform=linux%2Famd64"), "{own}");
    assert_eq!(statements[0]["predicate"], json!({"ok": true}));
    assert_eq!(statements[0]["predicateType"], "https://example.com/a/v1");
    assert_eq!(statements[1]["predicateType"], "https://example.com/b/v1");
    assert_eq!(statements[1]["predicate"], json!({"bundled": 1}));
    assert_eq!(statements[1]["subject"][0]["digest"], digits);
}

#[test]
fn attestations_that_are_not_valid_are_refused() {
    let engine = Engine::without_images(&[]);
    let grpc = Grpc::connect(&engine);
    let check = |build: &str, change: fn(&mut Attestation), expected: &str| {
        let bridge = image(&grpc, build, "refused:1");
        let one = bridge.solve(&file("/one.json", "{}")).unwrap();
        let mut attestation = predicate(&one, "https://example.com/a/v1");
        change(&mut attestation);
        let status = returned(bridge, vec![attestation]).unwrap_err();
        assert!(status.message.contains(expected), "{build}: {status}");
    };
    check(
        "provenance",
        |one| one.in_toto_predicate_type = "https://slsa.dev/provenance/v1".into(),
        "frontend may not set provenance attestations",
    );
    check(
        "nowhere",
        |one| one.r#ref = None,
        "attestation does not have available content",
    );
    check(
        "other",
        |one| {
            one.r#ref = Some(Ref {
                id: "of-another-1".into(),
                def: None,
            })
        },
        "no such ref",
    );
    check("path", |one| one.path = "/none".into(), "cannot read");
    check("bundle", |one| one.kind = 1, "not a directory");
    check("kind", |one| one.kind = 7, "unknown attestation kind 7");
    check(
        "subject",
        |one| {
            one.in_toto_subjects = vec![InTotoSubject {
                kind: 7,
                ..InTotoSubject::default()
            }];
        },
        "unknown attestation subject type 7",
    );
    assert_ne!(engine.docker(&["image", "inspect", "refused:1"]).code, 0);
    engine.has_no_builds();
}
