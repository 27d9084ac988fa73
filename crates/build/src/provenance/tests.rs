use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{Definition, ExecOp, Meta, Mount, MountType, SecretOpt, SourceInfo, SourceOp};
use whelk_llb::{Builder, Vertex};

use super::*;

/// A build of one process on an image, with a secret.
fn provenance() -> Provenance {
    let mut builder = Builder::default();
    let source = |identifier: &str, attrs: &[(&str, &str)]| {
        let attrs = attrs.iter();
        Kind::Source(SourceOp {
            identifier: identifier.into(),
            attrs: attrs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        })
    };
    let image = source("docker-image://docker.io/library/busybox:latest", &[]);
    let image = builder.add(Vertex::new(image, Vec::new())).unwrap();
    let context = source("local://context", &[("local.session", "private")]);
    let context = builder.add(Vertex::new(context, Vec::new())).unwrap();
    let mount = |dest: &str, input: i64, mount_type: MountType| Mount {
        dest: dest.into(),
        input,
        output: if dest == "/" { 0 } else { -1 },
        mount_type: mount_type.into(),
        secret_opt: (mount_type == MountType::Secret).then(|| SecretOpt {
            id: "key".into(),
            ..SecretOpt::default()
        }),
        ..Mount::default()
    };
    let exec = ExecOp {
        meta: Some(Meta {
            args: vec!["make".into()],
            ..Meta::default()
        }),
        mounts: vec![
            mount("/", 0, MountType::Bind),
            mount("/src", 1, MountType::Bind),
            mount("/key", -1, MountType::Secret),
        ],
        ..ExecOp::default()
    };
    let result = builder.add(Vertex::new(Kind::Exec(exec), vec![image, context]));
    let file = SourceInfo {
        filename: "Dockerfile".into(),
        data: b"FROM busybox\n".to_vec(),
        language: "Dockerfile".into(),
        definition: Some(directory()),
    };
    let definition = builder.definition(Some(result.unwrap()), Some(file));
    let last = Digest::of(definition.def.last().unwrap());
    let graph = Graph::new(definition).unwrap();
    let capture = Capture::of(&graph, &crate::sources::Sources::default());
    let attributes = [
        ("filename", "Dockerfile"),
        ("build-arg:TOKEN", "x"),
        ("label:a", "b"),
        ("platform", "linux/amd64"),
        ("attest:provenance", "mode=max"),
        ("vcs:source", "https://me:secret@example.com/a.git"),
        ("vcs:revision", "abc"),
        ("target", "all"),
    ];
    let attributes = attributes.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Provenance {
        capture,
        call: FrontendCall {
            frontend: "dockerfile.v0".into(),
            attributes: attributes.into(),
            locals: vec!["dockerfile".into()],
        },
        graph: Arc::new(graph),
        last,
        invocation: "build".into(),
        started: 0,
        finished: 1_000_000_000,
    }
}

/// Returns the definition of the directory that the Dockerfile is in.
fn directory() -> Definition {
    let source = SourceOp {
        identifier: "local://dockerfile".into(),
        attrs: [("local.session".to_owned(), "hidden".to_owned())].into(),
    };
    let mut builder = Builder::default();
    let source = builder.add(Vertex::new(Kind::Source(source), Vec::new()));
    builder.definition(Some(source.unwrap()), None)
}

fn made(is_max: bool, is_v1: bool, layers: Option<&[Descriptor]>) -> Value {
    let options = Options {
        is_max,
        is_v1,
        ..Options::default()
    };
    provenance().predicate(&options, layers)
}

#[test]
fn version_0_2_has_everything() {
    let layer = |text: &[u8]| Descriptor::new("layer", whelk_image::Digest::of(text), 1);
    let layers = [layer(b"base"), layer(b"made")];
    let predicate = made(true, false, Some(&layers));
    assert_eq!(predicate["buildType"], BUILD_TYPE_02);
    let invocation = &predicate["invocation"];
    assert_eq!(invocation["configSource"]["entryPoint"], "Dockerfile");
    let parameters = &invocation["parameters"];
    assert_eq!(parameters["frontend"], "dockerfile.v0");
    let expected = json!({"build-arg:TOKEN": "x", "label:a": "b", "target": "all"});
    assert_eq!(parameters["args"], expected);
    assert_eq!(parameters["secrets"], json!([{"id": "key"}]));
    let locals = json!([{"name": "context"}, {"name": "dockerfile"}]);
    assert_eq!(parameters["locals"], locals);
    let metadata = &predicate["metadata"];
    assert_eq!(metadata["buildStartedOn"], "1970-01-01T00:00:00Z");
    assert_eq!(metadata["buildFinishedOn"], "1970-01-01T00:00:01Z");
    assert_eq!(metadata["completeness"]["parameters"], true);
    assert_eq!(metadata["completeness"]["materials"], false);
    let own = &metadata[METADATA_02];
    let vcs = json!({"revision": "abc", "source": "https://example.com/a.git"});
    assert_eq!(own["vcs"], vcs);
    let file = &own["source"]["infos"][0];
    assert_eq!(file["data"], "RlJPTSBidXN5Ym94Cg==");
    let step = &file["llbDefinition"][0];
    assert_eq!(step["id"], "step0");
    assert!(step.to_string().contains("local://dockerfile"), "{step}");
    assert!(!step.to_string().contains("hidden"), "{step}");
    let names = file["digestMapping"].as_object();
    assert_eq!(names.map(serde_json::Map::len), Some(2));
    let steps = predicate["buildConfig"]["llbDefinition"]
        .as_array()
        .unwrap();
    assert_eq!(steps.len(), 4);
    assert_eq!(steps[2]["inputs"], json!(["step0:0", "step1:0"]));
    assert_eq!(
        steps[2]["op"]["Op"]["exec"]["meta"]["args"],
        json!(["make"])
    );
    assert_eq!(steps[3]["inputs"], json!(["step2:0"]));
    // The layers of the result and of what it stands on.
    assert_eq!(own["layers"]["step2:0"][0].as_array().unwrap().len(), 2);
    assert_eq!(own["layers"]["step0:0"][0].as_array().unwrap().len(), 1);
    let text = predicate.to_string();
    assert!(
        !text.contains("secret@") && !text.contains("private"),
        "{text}"
    );
    let materials = predicate["materials"].as_array().unwrap();
    assert_eq!(materials[0]["uri"], "pkg:docker/busybox@latest");
}

#[test]
fn little_is_said_in_the_mode_min() {
    let predicate = made(false, false, None);
    assert_eq!(predicate["buildConfig"], Value::Null);
    let parameters = &predicate["invocation"]["parameters"];
    assert_eq!(parameters["args"], json!({"target": "all"}));
    assert_eq!(parameters["secrets"], Value::Null);
    assert_eq!(predicate["metadata"]["completeness"]["parameters"], false);
    assert_eq!(predicate["metadata"][METADATA_02]["source"], Value::Null);
    assert_eq!(predicate["metadata"][METADATA_02]["vcs"]["revision"], "abc");
}

#[test]
fn version_1_has_other_names() {
    let predicate = made(true, true, None);
    let definition = &predicate["buildDefinition"];
    assert_eq!(definition["buildType"], BUILD_TYPE_1);
    let request = &definition["externalParameters"]["request"];
    assert_eq!(request["frontend"], "dockerfile.v0");
    let internal = &definition["internalParameters"];
    assert!(internal["buildConfig"]["digestMapping"].is_object());
    let run = &predicate["runDetails"];
    assert_eq!(run["metadata"]["invocationID"], "build");
    assert_eq!(run["builder"]["id"], "");
    assert_eq!(
        definition["resolvedDependencies"][0]["uri"],
        "pkg:docker/busybox@latest"
    );
}
