//! Outputs of results that come from no Dockerfile: names, configurations, times, and platforms that do not match.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use whelk_buildkit::grpc::{Call, Code, Result, Status};
use whelk_buildkit::pb::Unused;
use whelk_buildkit::pb::control::{Exporter, SolveRequest, SolveResponse};
use whelk_buildkit::pb::gateway::{self, ReturnRequest, result};
use whelk_buildkit::pb::session::{FindExportersRequest, FindExportersResponse};
use whelk_buildkit::session::{EXPORTERS, SEND};
use whelk_tests::Engine;
use whelk_tests::builds::json_file;
use whelk_tests::grpc::{Bridge, Grpc};

use crate::{Made, file, make_file};

fn output(kind: &str, attributes: &[(&str, &str)]) -> SolveRequest {
    let attributes = attributes.iter();
    let exporter = Exporter {
        kind: kind.into(),
        attrs: attributes
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
    };
    SolveRequest {
        exporters: vec![exporter],
        ..SolveRequest::default()
    }
}

/// Returns a file, with metadata, as the result of a build.
fn returned(bridge: Bridge, metadata: &[(&str, &str)]) -> Result<SolveResponse> {
    let reference = bridge.solve(&file("/file", "content"))?;
    let metadata = metadata.iter();
    let result = gateway::Result {
        kind: Some(result::Kind::Ref(reference)),
        metadata: metadata
            .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
            .collect(),
        ..gateway::Result::default()
    };
    let request = ReturnRequest {
        result: Some(result),
        error: None,
    };
    let _: Unused = bridge.call("Return", &request)?;
    bridge.solving.wait()
}

#[test]
fn frontends_and_outputs_describe_the_image() {
    let engine = Engine::without_images(&[]);
    let grpc = Grpc::connect(&engine);
    // The name that the frontend returns.
    let named = output("image", &[("name", "*")]);
    let bridge = grpc.build("named", named.clone());
    let metadata = [
        ("image.name", "front:1,front:2"),
        ("annotation.of", "the frontend"),
    ];
    let answer = returned(bridge, &metadata).unwrap();
    let descriptor = &answer.exporter_response["containerimage.descriptor"];
    let descriptor = STANDARD.decode(descriptor).unwrap();
    let descriptor: Value = serde_json::from_slice(&descriptor).unwrap();
    let digest = descriptor["digest"].as_str().unwrap().replace(':', "/");
    let manifest = json_file(&engine.root().join("blobs").join(digest));
    assert_eq!(manifest["annotations"], json!({"of": "the frontend"}));
    let expected = "docker.io/library/front:1,docker.io/library/front:2";
    assert_eq!(answer.exporter_response["image.name"], expected);
    engine.image("front:2");
    let status = returned(grpc.build("unnamed", named), &[]).unwrap_err();
    assert!(status.message.contains("invalid tag \"*\""), "{status}");
    // The configuration that the output has.
    let config = json!({"os": "linux", "architecture": "amd64", "config": {"Labels": {"a": "b"}}});
    let config = config.to_string();
    let attributes = [
        ("name", "configured"),
        ("containerimage.config", config.as_str()),
    ];
    let request = SolveRequest {
        definition: Some(file("/file", "content")),
        frontend_attrs: [("build-arg:SOURCE_DATE_EPOCH".to_owned(), "1".to_owned())].into(),
        ..output("image", &attributes)
    };
    grpc.build("configured", request).solving.wait().unwrap();
    let image = engine.image("configured");
    assert_eq!(image["Config"]["Labels"], json!({"a": "b"}));
    assert_eq!(image["Created"], "1970-01-01T00:00:01Z");
    for (build, config, expected) in [
        ("null", "null", "invalid null image config for export"),
        ("none", "{}", "missing os"),
        (
            "half",
            r#"{"os":"linux"}"#,
            "os and architecture must be specified together",
        ),
    ] {
        let bridge = grpc.build(build, output("image", &[]));
        let status = returned(bridge, &[("containerimage.config", config)]).unwrap_err();
        assert!(status.message.contains(expected), "{build}: {status}");
    }
}

/// As BuildKit makes it of a definition alone.
#[test]
fn results_without_a_configuration_have_a_usual_one() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let mut made = Made::default();
    let step = made.script("echo made > /file");
    let added = made.file(make_file("/added", "x"), Some(step));
    let request = SolveRequest {
        definition: Some(made.definition(added)),
        ..output("image", &[("name", "made")])
    };
    grpc.build("made", request).solving.wait().unwrap();
    let image = engine.image("made");
    assert_eq!(image["Config"]["WorkingDir"], "/");
    let path = image["Config"]["Env"][0].as_str().unwrap();
    assert!(path.starts_with("PATH=/usr/local/sbin:"), "{path}");
    let history = engine.get("/images/made/history");
    let history = history.as_array().unwrap().iter();
    let makers: Vec<&str> = history
        .map(|entry| entry["CreatedBy"].as_str().unwrap())
        .collect();
    assert_eq!(makers[0], "fileop target");
    assert!(makers[1].starts_with("mount / from exec "), "{makers:?}");
    assert!(makers[1].ends_with("echo made > /file"), "{makers:?}");
    let run = ["run", "--rm", "--network=none", "made", "cat", "file"];
    assert_eq!(engine.docker(&run).ok(), "made");
}

#[test]
fn results_for_other_platforms_give_warnings() {
    let engine = Engine::without_images(&[]);
    let grpc = Grpc::connect(&engine);
    for (build, wanted, expected) in [
        ("same", "linux/amd64", None),
        (
            "several",
            "linux/amd64,linux/arm64",
            Some("Multiple platforms requested but result is not multi-platform"),
        ),
        (
            "other",
            "linux/arm64",
            Some(
                "Requested platform \"linux/arm64\" does not match result platform \"linux/amd64\"",
            ),
        ),
    ] {
        let request = SolveRequest {
            frontend_attrs: [("platform".to_owned(), wanted.to_owned())].into(),
            ..SolveRequest::default()
        };
        returned(grpc.build(build, request), &[]).unwrap();
        let told = grpc.status(build).unwrap();
        let warnings = told.warnings.iter();
        let warnings = warnings.map(|told| String::from_utf8_lossy(&told.short).into_owned());
        let warnings: Vec<String> = warnings.collect();
        assert_eq!(warnings, Vec::from_iter(expected), "{build}");
    }
}

/// A client may decide about the outputs when it has seen the result.
#[test]
fn sessions_name_outputs() {
    let engine = Engine::without_images(&[]);
    let grpc = Grpc::connect(&engine);
    let frontend = grpc.frontend("seen");
    // The session's task must not be the last that has the runtime.
    std::mem::forget(grpc.clone());
    let answer = move |mut call: Call| {
        let frontend = frontend.clone();
        async move {
            let request: FindExportersRequest = call.request().await?;
            let [reference] = request.refs.as_slice() else {
                return Err(Status::invalid("not one reference"));
            };
            // The call blocks.
            let reference = reference.clone();
            let read = move || frontend.read(&reference, "/file");
            let read = tokio::task::spawn_blocking(read).await.unwrap()?;
            let attrs = [("name".to_owned(), format!("named-by-{read}"))].into();
            let kind = "image".to_owned();
            let exporters = vec![Exporter { kind, attrs }];
            let response = FindExportersResponse { exporters };
            call.responses.send(&response).await
        }
    };
    grpc.session(&engine, "decides", &[EXPORTERS], answer);
    let request = SolveRequest {
        session: "decides".into(),
        enable_session_exporter: true,
        ..output("image", &[("name", "asked-for")])
    };
    returned(grpc.build("seen", request), &[]).unwrap();
    for name in ["asked-for", "named-by-content"] {
        engine.image(name);
    }
}

/// A client learns what an archive is before it takes it, and may refuse it because it has that.
#[test]
fn clients_are_told_of_an_archive_before_it_is_sent() {
    let engine = Engine::without_images(&[]);
    let grpc = Grpc::connect(&engine);
    let told = Arc::<Mutex<BTreeMap<String, String>>>::default();
    let known = told.clone();
    let answer = move |call: Call| {
        let known = known.clone();
        async move {
            for name in ["containerimage.digest", "containerimage.config.digest"] {
                let value = call.entry(&format!("exporter-md-{name}"));
                let value = value.unwrap_or_default().to_owned();
                known.lock().unwrap().insert(name.to_owned(), value);
            }
            Err(Status::new(Code::AlreadyExists, "it is here"))
        }
    };
    grpc.session(&engine, "taker", &[SEND], answer);
    let request = SolveRequest {
        definition: Some(file("/file", "content")),
        session: "taker".into(),
        ..output("oci", &[])
    };
    let answer = grpc.build("taken", request).solving.wait().unwrap();
    let told = told.lock().unwrap().clone();
    assert_eq!(told.len(), 2);
    for (name, value) in told {
        assert_eq!(answer.exporter_response[&name], value);
    }
}
