//! Definitions that are malformed, and operations that try to leave their result.

use whelk_buildkit::grpc::Code;
use whelk_buildkit::pb::control::{Exporter, SolveRequest, SolveResponse};
use whelk_buildkit::pb::gateway::{self, ReturnRequest, result};
use whelk_buildkit::pb::{Message as _, Unused};
use whelk_llb::Digest;
use whelk_llb::pb::file_action::Action;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{
    Definition, DiffOp, ExecOp, FileAction, FileActionCopy, FileActionMkDir, FileActionRm,
    FileActionSymlink, FileOp, Input, MergeOp, Mount, Op, PassthroughOp, SourceOp,
};
use whelk_tests::Engine;
use whelk_tests::grpc::Grpc;

use crate::{Made, file, make_file, script};

fn op(kind: Kind, inputs: &[&Op]) -> Op {
    let inputs = inputs.iter().map(|op| input(&op.encode_to_vec(), 0));
    Op {
        inputs: inputs.collect(),
        kind: Some(kind),
        ..Op::default()
    }
}

fn input(bytes: &[u8], index: i64) -> Input {
    Input {
        digest: Digest::of(bytes).to_string(),
        index,
    }
}

/// Returns a definition of these operations whose result is the last of them.
fn raw(ops: Vec<Vec<u8>>) -> Definition {
    let result = Op {
        inputs: vec![input(ops.last().unwrap(), 0)],
        ..Op::default()
    };
    Definition {
        def: ops.into_iter().chain([result.encode_to_vec()]).collect(),
        ..Definition::default()
    }
}

fn of(ops: &[&Op]) -> Definition {
    raw(ops.iter().map(|op| op.encode_to_vec()).collect())
}

fn source() -> Op {
    let identifier = "docker-image://docker.io/library/busybox:latest".to_owned();
    let source = SourceOp {
        identifier,
        ..SourceOp::default()
    };
    op(Kind::Source(source), &[])
}

fn exec(change: impl FnOnce(&mut ExecOp)) -> Definition {
    let mut exec = script("true");
    change(&mut exec);
    of(&[&source(), &op(Kind::Exec(exec), &[&source()])])
}

fn action(change: impl FnOnce(&mut FileAction)) -> Definition {
    let mut action = FileAction {
        input: 0,
        secondary_input: -1,
        output: 0,
        action: Some(make_file("/x", "")),
    };
    change(&mut action);
    let file = FileOp {
        actions: vec![action],
    };
    of(&[&source(), &op(Kind::File(file), &[&source()])])
}

#[test]
fn malformed_definitions_are_refused() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("malformed", SolveRequest::default());
    let merge = |inputs: &[i64]| {
        let inputs = inputs.iter();
        let inputs = inputs.map(|input| whelk_llb::pb::InputIndex { input: *input });
        let merge = MergeOp {
            inputs: inputs.collect(),
        };
        of(&[&source(), &op(Kind::Merge(merge), &[&source()])])
    };
    let missing = {
        let mut missing = op(Kind::Exec(script("true")), &[]);
        missing.inputs = vec![input(b"nothing of that", 0)];
        of(&[&missing])
    };
    let no_digest = {
        let mut op = op(Kind::Exec(script("true")), &[]);
        op.inputs = vec![Input::default()];
        of(&[&op])
    };
    let beyond = {
        let mut op = op(Kind::Exec(script("true")), &[&source()]);
        op.inputs[0].index = i64::MAX;
        of(&[&source(), &op])
    };
    let negative = {
        let mut op = op(Kind::Exec(script("true")), &[&source()]);
        op.inputs[0].index = -1;
        of(&[&source(), &op])
    };
    let result = Definition {
        def: vec![source().encode_to_vec()],
        ..Definition::default()
    };
    let garbage = raw(vec![vec![0xff; 100]]);
    let pass = |outputs: &[i64]| {
        let pass = PassthroughOp {
            id: "p".into(),
            outputs: outputs.to_vec(),
        };
        of(&[&source(), &op(Kind::Passthrough(pass), &[&source()])])
    };
    // The texts are those of unit tests; here it counts that they come back, and that the engine goes on.
    let cases = [
        (missing, "missing input"),
        (no_digest, "missing input"),
        (beyond, "out of range"),
        (negative, "out of range"),
        (result, "the last one should have one input"),
        (garbage, "cannot be decoded"),
        (of(&[&Op::default()]), "none of the known kinds"),
        (
            of(&[&op(Kind::Source(SourceOp::default()), &[])]),
            "without an identifier",
        ),
        (exec(|exec| exec.meta = None), "without its process"),
        (exec(|exec| exec.mounts.clear()), "without mounts"),
        (
            exec(|exec| exec.mounts.resize(1001, Mount::default())),
            "more than 1000 mounts",
        ),
        (exec(|exec| exec.mounts[0].input = 7), "out of range"),
        (exec(|exec| exec.mounts[0].input = -7), "out of range"),
        (exec(|exec| exec.mounts[0].output = 7), "output 7"),
        (exec(|exec| exec.mounts[0].output = i64::MIN), "output -9"),
        (exec(|exec| exec.mounts[0].mount_type = 99), "unknown type"),
        (exec(|exec| exec.network = 99), "unknown network mode 99"),
        (exec(|exec| exec.security = -1), "unknown security mode -1"),
        (
            exec(|exec| exec.mounts.push(Mount::default())),
            "a mount without a target",
        ),
        (
            exec(|exec| exec.mounts.push(exec.mounts[0].clone())),
            "more than one root",
        ),
        (
            action(|action| action.action = None),
            "none of the known kinds",
        ),
        (action(|action| action.input = 9), "out of range"),
        (
            action(|action| action.secondary_input = i64::MIN),
            "out of range",
        ),
        (action(|action| action.output = i64::MAX), "not numbered"),
        (action(|action| action.output = -5), "is negative"),
        (merge(&[]), "a merge of nothing"),
        (merge(&[-1]), "out of range"),
        (merge(&[1]), "out of range"),
        (pass(&[]), "without outputs"),
        (pass(&[i64::MAX]), "out of range"),
        (
            of(&[&source(), &op(Kind::Diff(DiffOp::default()), &[&source()])]),
            "without its sides",
        ),
    ];
    for (definition, text) in cases {
        let request = SolveRequest {
            r#ref: "definition".into(),
            definition: Some(definition.clone()),
            ..SolveRequest::default()
        };
        let answers = [
            bridge.solve(&definition).map(drop).unwrap_err(),
            grpc.control::<SolveResponse>("Solve", &request)
                .map(drop)
                .unwrap_err(),
        ];
        for status in answers {
            assert!(
                status.code == Code::InvalidArgument
                    && status.message.contains(text)
                    && status.message.contains("sha256:"),
                "{:?} {status} instead of {text}",
                status.code
            );
        }
    }
    // As an input of a Dockerfile, too.
    let request = SolveRequest {
        r#ref: "input".into(),
        frontend: "dockerfile.v0".into(),
        frontend_attrs: [("context".into(), "input:base".into())].into(),
        frontend_inputs: [("base".to_owned(), raw(vec![vec![0xff; 3]]))].into(),
        ..SolveRequest::default()
    };
    let status = grpc
        .control::<SolveResponse>("Solve", &request)
        .unwrap_err();
    assert_eq!(status.code, Code::InvalidArgument, "{status}");
    // Operations may be there twice, and be of no use.
    let mut whole = file("/x", "x");
    whole.def.insert(0, source().encode_to_vec());
    whole.def.insert(0, source().encode_to_vec());
    let reference = bridge.evaluate(&whole).unwrap();
    assert_eq!(bridge.read(&reference, "x"), Ok("x".into()));
    bridge.finish(None).unwrap();
}

#[test]
fn operations_stay_in_their_result() {
    let engine = Engine::start();
    let outside = engine.scratch_with("outside", &[("secret", "a text of the host")]);
    let outside = outside.to_str().unwrap();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("inside", SolveRequest::default());
    let links = format!(
        "ln -s {outside} /out; ln -s ../../../../../../../..{outside} /up; ln -s / /root-link; \
         ln -s loop /loop; mkdir -p /d && echo kept > /d/kept"
    );
    let mkdir = |path: &str| {
        Action::Mkdir(FileActionMkDir {
            path: path.into(),
            mode: 0o777,
            make_parents: true,
            owner: None,
            timestamp: -1,
        })
    };
    let rm = |path: &str| {
        Action::Rm(FileActionRm {
            path: path.into(),
            allow_not_found: true,
            allow_wildcard: true,
        })
    };
    let link = |new: &str| {
        Action::Symlink(FileActionSymlink {
            oldpath: format!("{outside}/secret"),
            newpath: new.into(),
            owner: None,
            timestamp: 0,
        })
    };
    let deep = format!("/{}", "d/".repeat(3000));
    // The words of an error; whatever comes of it, if they are a question mark.
    let cases: Vec<(Action, Option<&str>)> = vec![
        (rm("/out/secret"), None),
        (rm("/out/*"), None),
        (rm("/up/*"), None),
        (rm("/*/secret"), None),
        (rm("/../../../../../..").clone(), Some("root directory")),
        (rm("/"), Some("root directory")),
        (rm("/d/.."), Some("root directory")),
        (rm(""), Some("root directory")),
        (rm("/root-link"), None),
        (rm("/loop/x"), Some("symbolic links")),
        (rm("/["), Some("syntax error")),
        (mkdir("/out/new"), None),
        (mkdir("/up/../up/new"), None),
        (mkdir("/loop/new"), Some("ymbolic link")),
        (mkdir(&deep), Some("ame too long")),
        (make_file("/out/new", "x"), Some("no such file")),
        (make_file("/up/new", "x"), Some("no such file")),
        (make_file("/../../../../..", "x"), Some("")),
        (make_file("", "x"), Some("")),
        (make_file("/d", "x"), Some("")),
        (make_file("/loop", "x"), Some("?")),
        (link("/out/link"), Some("no such file")),
        (link("/"), Some("root directory")),
        (link("/d/kept"), Some("exists")),
    ];
    for (action, expected) in cases {
        let mut made = Made::default();
        let base = made.script(&links);
        let changed = made.file(action.clone(), Some(base));
        let result = made.exec(
            script("cat /d/kept > /seen; find /out* -maxdepth 1 > /list"),
            &[changed],
        );
        let answer = bridge.evaluate(&made.definition(result));
        match (&answer, expected) {
            (Ok(_), None) | (_, Some("?")) => {}
            (Err(status), Some(text))
                if status.message.contains(text) && status.code == Code::Unknown => {}
            _ => panic!("{action:?}: {answer:?} instead of {expected:?}"),
        }
        let left = std::fs::read_dir(outside).unwrap().count();
        assert_eq!(left, 1, "{action:?}");
    }
    // Copies, from and into both.
    let from = |source: &str, follow: bool| {
        let mut made = Made::default();
        let base = made.script(&links);
        let op = FileOp {
            actions: vec![FileAction {
                input: -1,
                secondary_input: 0,
                output: 0,
                action: Some(Action::Copy(FileActionCopy {
                    src: source.into(),
                    dest: "/out/copy".into(),
                    mode: -1,
                    timestamp: -1,
                    create_dest_path: true,
                    follow_symlink: follow,
                    dir_copy_contents: true,
                    ..FileActionCopy::default()
                })),
            }],
        };
        let result = made.add(Kind::File(op), &[base]);
        bridge.evaluate(&made.definition(result))
    };
    for source in ["/out/secret", "/up/secret", "/../..//out/secret", "/loop"] {
        assert!(from(source, true).is_err(), "{source}");
    }
    for source in ["/out", "/up", "/d"] {
        let reference = from(source, false).unwrap();
        assert!(bridge.read(&reference, "/out/copy/secret").is_err());
    }
    bridge.finish(None).unwrap();
    assert_eq!(std::fs::read_dir(outside).unwrap().count(), 1);
    engine.has_no_builds();
}

/// Names of platforms are those of directories at the client (CVE-2026-33747).
#[test]
fn names_of_results_stay_below_the_output() {
    let engine = Engine::without_images(&[]);
    let grpc = Grpc::connect(&engine);
    let names = ["../../outside", "/outside", "linux/amd64/../..", "..", ""];
    for (kind, name) in ["local", "tar", "oci"]
        .iter()
        .flat_map(|kind| names.map(|name| (kind, name)))
    {
        let exporter = Exporter {
            kind: (*kind).to_owned(),
            ..Exporter::default()
        };
        let request = SolveRequest {
            exporters: vec![exporter],
            ..SolveRequest::default()
        };
        let bridge = grpc.build(&format!("{kind} {name}"), request);
        let reference = bridge.solve(&file("/x", "")).unwrap();
        let platform = serde_json::json!({"os": "linux", "architecture": "amd64"});
        let platforms = serde_json::json!({"Platforms": [{"ID": name, "Platform": platform}]});
        let platforms = platforms.to_string().into_bytes();
        let references = gateway::RefMap {
            refs: [(name.to_owned(), reference)].into(),
        };
        let result = gateway::Result {
            kind: Some(result::Kind::Refs(references)),
            metadata: [("refs.platforms".to_owned(), platforms)].into(),
            ..gateway::Result::default()
        };
        let request = ReturnRequest {
            result: Some(result),
            error: None,
        };
        let _ = bridge.call::<Unused>("Return", &request);
        let status = bridge.solving.wait().unwrap_err();
        let expected = match name {
            "" => "invalid empty platform key for exporter".to_owned(),
            name => format!("invalid platform {name:?} of a result"),
        };
        assert!(status.message.contains(&expected), "{kind}: {status}");
    }
    engine.has_no_builds();
}
