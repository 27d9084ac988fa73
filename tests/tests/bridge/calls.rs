//! The calls of `LLBBridge`.

use std::collections::BTreeMap;

use whelk_buildkit::details::places;
use whelk_buildkit::grpc::Code;
use whelk_buildkit::pb::control::{Exporter, SolveRequest};
use whelk_buildkit::pb::gateway::{
    self, EvaluateRequest, FileRange, InputsResponse, PongResponse, ReadDirRequest,
    ReadDirResponse, ReadFileRequest, ReadFileResponse, ResolveImageConfigRequest,
    ResolveImageConfigResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse, ReturnRequest,
    StatFileRequest, StatFileResponse, WarnRequest,
};
use whelk_buildkit::pb::{Any, RpcStatus, Unused};
use whelk_llb::Digest;
use whelk_llb::pb::{Location, Locations, Position, Range, Source, SourceInfo, SourceOp};
use whelk_tests::Engine;
use whelk_tests::grpc::{Frontend, Grpc};

use crate::{Made, NOTHING, fails, file, run, script};

/// Go's `FileMode` of directories.
const DIRECTORY: u32 = 1 << 31;

#[test]
fn files_of_references_are_read() {
    let engine = Engine::start();
    let secret = engine.scratch_with("outside", &[("secret", "a text of the host")]);
    let outside = secret.display();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("files", SolveRequest::default());
    let tree = format!(
        "mkdir -p /d/sub; printf 0123456789 > /d/file; chmod 640 /d/file; ln -s file /d/link; \
         ln -s {outside} /out; ln -s ../../../../../../../..{outside}/secret /up; mkfifo /d/pipe; \
         dd if=/dev/zero of=/large bs=1M count=17 2>/dev/null; printf end >> /large"
    );
    let reference = bridge.evaluate(&run(&tree)).unwrap();

    let read = |path: &str, range: Option<(i64, i64)>| {
        let request = ReadFileRequest {
            r#ref: reference.clone(),
            file_path: path.into(),
            range: range.map(|(offset, length)| FileRange { offset, length }),
        };
        let answer = bridge.call::<ReadFileResponse>("ReadFile", &request)?;
        Ok(String::from_utf8(answer.data).unwrap())
    };
    for (path, range, expected) in [
        ("/d/file", None, "0123456789"),
        ("d/file", None, "0123456789"),
        ("d/link", None, "0123456789"),
        ("/../../d/./sub/../file", None, "0123456789"),
        ("d/file", Some((3, 4)), "3456"),
        ("d/file", Some((8, 100)), "89"),
        ("d/file", Some((100, 5)), ""),
        ("d/file", Some((2, 0)), ""),
        ("d/file", Some((0, i64::MAX)), "0123456789"),
        ("d/file", Some((i64::MAX, i64::MAX)), ""),
        // Only the part has to fit into a message.
        ("large", Some((17 << 20, 1000)), "end"),
    ] {
        assert_eq!(read(path, range), Ok(expected.into()), "{path} {range:?}");
    }
    for (path, range, code, text) in [
        ("d/none", None, Code::NotFound, "open d/none: no such file"),
        ("", None, Code::Unknown, "not a regular file"),
        ("d", None, Code::Unknown, "not a regular file"),
        ("d/pipe", None, Code::Unknown, "not a regular file"),
        ("out/secret", None, Code::NotFound, "no such file"),
        ("up", None, Code::NotFound, "no such file"),
        ("large", None, Code::Unknown, "larger than"),
        ("large", Some((0, 17 << 20)), Code::Unknown, "larger than"),
        ("d/file", Some((-1, 5)), Code::InvalidArgument, "range"),
        ("d/file", Some((1, -5)), Code::InvalidArgument, "range"),
    ] {
        fails(read(path, range), code, text);
    }

    let stat = |path: &str| {
        let request = StatFileRequest {
            r#ref: reference.clone(),
            path: path.into(),
        };
        let answer = bridge.call::<StatFileResponse>("StatFile", &request);
        answer.map(|answer| answer.stat.unwrap())
    };
    let found = stat("/d/file").unwrap();
    assert_eq!((&*found.path, found.size, found.mode), ("file", 10, 0o640));
    let found = stat("/d/link").unwrap();
    assert_eq!((found.size, found.mode), (10, 0o640));
    let found = stat("/").unwrap();
    assert_eq!((found.size, found.mode), (0, DIRECTORY | 0o755));
    fails(stat("/none"), Code::NotFound, "open /none: no such file");
    fails(stat("/out"), Code::NotFound, "no such file");

    let list = |path: &str, pattern: &str| {
        let request = ReadDirRequest {
            r#ref: reference.clone(),
            dir_path: path.into(),
            include_pattern: pattern.into(),
        };
        let answer = bridge.call::<ReadDirResponse>("ReadDir", &request);
        answer.map(|answer| {
            let names = answer.entries.into_iter();
            names.map(|entry| entry.path).collect::<Vec<_>>().join(" ")
        })
    };
    assert_eq!(list("/d", ""), Ok("file link pipe sub".into()));
    assert_eq!(list("d/sub/..", "*i*"), Ok("file link pipe".into()));
    assert_eq!(list("d/sub", ""), Ok(String::new()));
    fails(list("/none", ""), Code::NotFound, "no such file");
    fails(list("/out", ""), Code::NotFound, "no such file");
    fails(list("/d/file", ""), Code::Unknown, "ot a directory");
    bridge.finish(None).unwrap();
}

#[test]
fn images_and_sources_are_resolved() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("images", SolveRequest::default());
    let id = engine.image("busybox")["Id"].as_str().unwrap().to_owned();
    let resolve = |reference: &str, mode: &str, kind: i32| {
        let request = ResolveImageConfigRequest {
            r#ref: reference.into(),
            resolve_mode: mode.into(),
            resolver_type: kind,
            ..ResolveImageConfigRequest::default()
        };
        bridge.call::<ResolveImageConfigResponse>("ResolveImageConfig", &request)
    };
    let found = resolve("busybox", "local", 0).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&found.config).unwrap();
    assert_eq!(config["os"], "linux");
    assert_eq!(found.digest, id);
    fails(resolve("BUSY BOX", "", 0), Code::Unknown, "BUSY BOX");
    fails(
        resolve("busybox", "sometimes", 0),
        Code::InvalidArgument,
        "sometimes",
    );
    fails(resolve("busybox", "", 1), Code::Unimplemented, "OCI layout");

    let meta = |identifier: &str| {
        let source = SourceOp {
            identifier: identifier.into(),
            ..SourceOp::default()
        };
        let request = ResolveSourceMetaRequest {
            source: Some(source),
            ..ResolveSourceMetaRequest::default()
        };
        bridge.call::<ResolveSourceMetaResponse>("ResolveSourceMeta", &request)
    };
    let found = meta("docker-image://docker.io/library/busybox:latest").unwrap();
    assert_eq!(found.image.unwrap().digest, id);
    // Files of servers and git repositories: build_sources.
    for identifier in [
        "local://context",
        "oci-layout://a/b@sha256:0",
        "nonsense://x",
    ] {
        let status = meta(identifier).unwrap_err();
        assert!(status.message.contains(identifier), "{status}");
    }
    assert!(meta("").is_err());
    bridge.finish(None).unwrap();
}

#[test]
fn inputs_warnings_and_results_are_passed_on() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let input = file("/input", "given");
    let request = SolveRequest {
        frontend_inputs: [("base".to_owned(), input.clone())].into(),
        ..SolveRequest::default()
    };
    let bridge = grpc.build("passed", request);
    let pong: PongResponse = bridge.call("Ping", &NOTHING).unwrap();
    assert_eq!(pong.workers.len(), 1);
    let inputs: InputsResponse = bridge.call("Inputs", &NOTHING).unwrap();
    assert_eq!(inputs.definitions["base"], input);
    let reference = bridge.evaluate(&inputs.definitions["base"]).unwrap();
    assert_eq!(bridge.read(&reference, "/input"), Ok("given".into()));

    let warn = |digest: &str, text: &str| {
        let request = WarnRequest {
            digest: digest.into(),
            level: 1,
            short: text.into(),
            detail: vec![b"more".to_vec()],
            url: "https://example.com/rule".into(),
            ..WarnRequest::default()
        };
        bridge.call::<Unused>("Warn", &request)
    };
    warn("", "a warning").unwrap();
    fails(warn("sha256:1", "x"), Code::InvalidArgument, "sha256:1");
    // Its error is the error of the build, with the details.
    let detail = Any {
        type_url: "example.com/detail".into(),
        value: b"value".to_vec(),
    };
    let error = RpcStatus {
        code: Code::AlreadyExists as i32,
        message: "the frontend has failed".into(),
        details: vec![detail.clone()],
    };
    let request = ReturnRequest {
        result: None,
        error: Some(error),
    };
    let _: Unused = bridge.call("Return", &request).unwrap();
    let status = bridge.solving.wait().unwrap_err();
    assert_eq!(status.code, Code::AlreadyExists);
    assert_eq!(status.message, "the frontend has failed");
    assert!(status.details.contains(&detail), "{:?}", status.details);
    let told = grpc.status("passed").unwrap();
    let warnings: Vec<&[u8]> = told.warnings.iter().map(|told| &*told.short).collect();
    assert_eq!(warnings, [b"a warning"]);
    assert_eq!(told.warnings[0].url, "https://example.com/rule");
}

#[test]
fn references_belong_to_their_build() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let one = grpc.build("one", SolveRequest::default());
    let other = grpc.build("other", SolveRequest::default());
    let reference = one.evaluate(&file("/x", "secret of one")).unwrap();
    assert_eq!(one.read(&reference, "x"), Ok("secret of one".into()));
    for id in [reference.as_str(), "one-1", "", "../one-0"] {
        fails(other.read(id, "x"), Code::NotFound, "no such ref");
    }
    let evaluate = |frontend: &Frontend, id: &str| {
        let request = EvaluateRequest { r#ref: id.into() };
        frontend.call::<Unused>("Evaluate", &request)
    };
    fails(evaluate(&other, &reference), Code::NotFound, "no such ref");
    fails(
        other.finish(Some(&reference)),
        Code::NotFound,
        "no such ref",
    );
    // A name is taken as long as its build runs.
    let again = grpc.build("one", SolveRequest::default());
    fails(again.solving.wait(), Code::AlreadyExists, "\"one\"");
    // A step that fails is named, and the build goes on.
    let failing = one.evaluate(&run("echo said; exit 7"));
    let status = failing.unwrap_err();
    assert!(status.message.contains("exit code: 7"), "{status:?}");
    let kinds = status.details.iter().map(|detail| &*detail.type_url);
    let kinds: Vec<&str> = kinds.collect();
    assert!(
        kinds.contains(&"github.com/moby/buildkit/errdefs.Vertex+json"),
        "{kinds:?}"
    );
    let exit = "github.com/moby/buildkit/gatewayapi.ExitMessage+json";
    let mut details = status.details.iter();
    let exit = details.find(|detail| detail.type_url == exit).unwrap();
    assert_eq!(exit.value, b"{\"Code\":7}");
    let frontend = one.frontend.clone();
    one.finish(Some(&reference)).unwrap();
    // Nothing is done for a build that has ended.
    fails(
        frontend.evaluate(&file("/late", "")),
        Code::NotFound,
        "no such job one",
    );
    fails(
        frontend.read(&reference, "x"),
        Code::NotFound,
        "no such job",
    );
}

#[test]
fn nothing_is_a_result() {
    let engine = Engine::without_images(&[]);
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("nothing", SolveRequest::default());
    let request = gateway::SolveRequest {
        allow_result_return: true,
        allow_result_array_ref: true,
        evaluate: true,
        ..gateway::SolveRequest::default()
    };
    let answer: gateway::SolveResponse = bridge.call("Solve", &request).unwrap();
    let result = answer.result.unwrap();
    assert!(result.kind.is_none() && result.metadata.is_empty());
    bridge.finish(None).unwrap();
    // It becomes an image without layers.
    let image = |name: &str| {
        let exporter = Exporter {
            kind: "image".into(),
            attrs: [("name".to_owned(), name.to_owned())].into(),
        };
        SolveRequest {
            exporters: vec![exporter],
            ..SolveRequest::default()
        }
    };
    let has_no_layers = |name: &str| {
        let image = engine.image(name);
        let layers = image["RootFS"]["Layers"].as_array().cloned();
        assert!(layers.unwrap_or_default().is_empty(), "{image}");
    };
    grpc.build("image", image("one")).finish(None).unwrap();
    has_no_layers("one");
    // No process can be executed in it.
    let mut made = Made::default();
    let base = made.source("docker-image://docker.io/library/one:latest", &[]);
    let result = made.exec(script("x"), &[base]);
    let bridge = grpc.build("process", SolveRequest::default());
    let failed = bridge.evaluate(&made.definition(result));
    let text = "process \"/bin/sh -c x\" did not complete successfully: exec: ";
    fails(failed, Code::Unknown, text);
    bridge.finish(None).unwrap();
    // So it is for a platform.
    let bridge = grpc.build("platform", image("two"));
    let listing =
        r#"{"Platforms":[{"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}}]}"#;
    let refs = [("linux/amd64".to_owned(), gateway::Ref::default())].into();
    let result = gateway::Result {
        kind: Some(gateway::result::Kind::Refs(gateway::RefMap { refs })),
        metadata: [("refs.platforms".to_owned(), listing.as_bytes().to_vec())].into(),
        ..gateway::Result::default()
    };
    let request = ReturnRequest {
        result: Some(result),
        error: None,
    };
    let _: Unused = bridge.call("Return", &request).unwrap();
    bridge.solving.wait().unwrap();
    has_no_layers("two");
}

#[test]
fn errors_have_all_places_of_the_step() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("places", SolveRequest::default());
    let mut definition = run("exit 7");
    let location = |source_index: i32, line: i32| Location {
        source_index,
        ranges: vec![Range {
            start: Some(Position { line, character: 0 }),
            end: None,
        }],
    };
    let info = |filename: &str| SourceInfo {
        filename: filename.into(),
        data: b"text".to_vec(),
        ..SourceInfo::default()
    };
    // The last operation only names the result.
    let step = Digest::of(&definition.def[definition.def.len() - 2]);
    let locations = vec![location(0, 7), location(1, 8), location(0, 9)];
    definition.source = Some(Source {
        locations: BTreeMap::from([(step.to_string(), Locations { locations })]),
        infos: vec![info("foo"), info("bar")],
    });
    let status = bridge.evaluate(&definition).unwrap_err();
    let found = places(&status).into_iter();
    let found: Vec<_> = found
        .map(|place| (place.filename, place.ranges[0].0))
        .collect();
    let expected = [("foo", 9), ("bar", 8), ("foo", 7)];
    assert_eq!(found, expected.map(|(name, line)| (name.to_owned(), line)));
}
