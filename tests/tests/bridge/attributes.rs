//! Attributes of the frontend of Dockerfiles that the usual clients do not send.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use whelk_buildkit::files::{self, Entry, Files, Kind};
use whelk_buildkit::grpc::{Code, Result, Status};
use whelk_buildkit::pb::control::{DiskUsageRequest, DiskUsageResponse, SolveRequest};
use whelk_buildkit::pb::gateway::{self, result};
use whelk_buildkit::session::{DIFF_COPY, FilesRequest};
use whelk_llb::pb::Definition;
use whelk_tests::grpc::{Bridge, Grpc};
use whelk_tests::{Engine, eventually, stays};

use crate::{Made, fails, run};

/// Copies a file of the context, and writes what a process sees.
const SEEN: &str = "FROM busybox
COPY x /x
RUN echo $(hostname) $(ls /sys/class/net) $(grep -c 10.9.8.7 /etc/hosts) $(df -k /dev/shm | tail -1 | tr -s ' ' | cut -d ' ' -f 2) > /made
";

/// The files of the client's directories, in order.
const DIRECTORIES: &[(&str, &[(&str, &str)])] = &[
    (
        "dockerfile",
        &[
            ("Alone", "FROM scratch\nCOPY <<end /alone\nwritten\nend\n"),
            ("Dockerfile", SEEN),
            ("Second", "FROM scratch\nCOPY x /second\n"),
        ],
    ),
    (
        "files",
        &[("Dockerfile", "FROM scratch\nCOPY x /of-files\n")],
    ),
    ("context", &[("x", "of context")]),
    ("other", &[("x", "of other")]),
];

struct Memory(&'static [(&'static str, &'static str)]);

impl Memory {
    fn of(name: &str) -> Self {
        let mut directories = DIRECTORIES.iter();
        let found = directories.find(|(known, _)| *known == name);
        Self(found.map(|(_, files)| *files).unwrap_or_default())
    }
}

impl Files for Memory {
    fn list(
        &self,
        tell: &mut dyn FnMut(Entry) -> std::result::Result<(), String>,
    ) -> std::result::Result<(), String> {
        for (path, content) in self.0 {
            tell(Entry {
                path: (*path).to_owned(),
                kind: Kind::File,
                mode: 0o644,
                size: content.len() as u64,
                mtime: 1,
                xattrs: BTreeMap::new(),
            })?;
        }
        Ok(())
    }

    fn open(&self, path: &str) -> std::result::Result<Box<dyn Read>, String> {
        let found = self.0.iter().find(|(known, _)| *known == path);
        let (_, content) = found.ok_or_else(|| format!("no file {path}"))?;
        Ok(Box::new(content.as_bytes()))
    }
}

/// Asks a frontend for a result.
fn solve(
    bridge: &Bridge,
    frontend: &str,
    attributes: &[(&str, &str)],
    context: Option<&Definition>,
) -> Result<gateway::Result> {
    let attributes = attributes.iter();
    let attributes = attributes.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let context = context.map(|context| ("context".to_owned(), context.clone()));
    let request = gateway::SolveRequest {
        frontend: frontend.to_owned(),
        frontend_opt: attributes.collect(),
        frontend_inputs: context.into_iter().collect(),
        allow_result_return: true,
        allow_result_array_ref: true,
        evaluate: true,
        ..gateway::SolveRequest::default()
    };
    let answer = bridge.call::<gateway::SolveResponse>("Solve", &request)?;
    Ok(answer.result.unwrap())
}

fn reference(result: &gateway::Result) -> &str {
    match &result.kind {
        Some(result::Kind::Ref(reference)) => &reference.id,
        other => panic!("no reference: {other:?}"),
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn attributes_of_dockerfiles_have_their_effect() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    grpc.session(&engine, "client", &[DIFF_COPY], |call| async move {
        let wanted = FilesRequest::of_call(&call.metadata);
        if wanted.name == "absent" {
            // As clients in Go say it.
            let text = "rpc error: code = NotFound desc = no access allowed to dir \"absent\"";
            return Err(Status::unknown(text));
        }
        files::answer(call, Arc::new(Memory::of(&wanted.name))).await
    });
    let request = SolveRequest {
        session: "client".into(),
        ..SolveRequest::default()
    };
    let bridge = grpc.build("attributes", request);
    // The Dockerfile beside a context that is an input is the client's.
    let below = run("mkdir /d; echo below > /d/x; echo nonsense > /d/Dockerfile");
    let lonely = ("force-network-mode", "none");
    for (attributes, context, path, expected) in [
        (&[lonely][..], None, "/made", "buildkitsandbox lo 0 65536\n"),
        (&[lonely], None, "/x", "of context"),
        (
            &[lonely, ("hostname", "named"), ("shm-size", "4194304")],
            None,
            "/made",
            "named lo 0 4096\n",
        ),
        (
            &[lonely, ("add-hosts", "one=10.9.8.7,two=10.9.8.7")],
            None,
            "/made",
            "buildkitsandbox lo 2 65536\n",
        ),
        (&[lonely, ("contextkey", "other")], None, "/x", "of other"),
        (
            &[("dockerfilekey", "files")],
            None,
            "/of-files",
            "of context",
        ),
        (&[("filename", "Second")], None, "/second", "of context"),
        // What a Dockerfile does not use, the client need not have.
        (
            &[("filename", "Alone"), ("contextkey", "absent")],
            None,
            "/alone",
            "written\n",
        ),
        (
            &[("contextsubdir", "/d"), ("filename", "Second")],
            Some(&below),
            "/second",
            "below\n",
        ),
    ] {
        let found = solve(&bridge, "dockerfile.v0", attributes, context);
        let found = found.unwrap_or_else(|status| panic!("{attributes:?}: {status}"));
        let found = bridge.read(reference(&found), path);
        assert_eq!(found.as_deref(), Ok(expected), "{attributes:?}");
    }
    for (attributes, code, text) in [
        (
            &[("force-network-mode", "host")][..],
            Code::PermissionDenied,
            "network.host is not allowed",
        ),
        (
            &[("contextsubdir", "/d")],
            Code::Unimplemented,
            "contextsubdir",
        ),
        (&[("contextkey", "none")], Code::Unknown, "x\": not found"),
        (
            &[("dockerfilekey", "none")],
            Code::Unknown,
            "open Dockerfile",
        ),
        (
            &[("context", "nonsense")],
            Code::InvalidArgument,
            "nonsense",
        ),
        (
            &[("requestid", "nonsense")],
            Code::Unimplemented,
            "nonsense",
        ),
    ] {
        let answer = solve(&bridge, "dockerfile.v0", attributes, None);
        fails(answer, code, text);
    }
    // The frontend's own image is the engine's own frontend.
    let own = [("source", "docker/dockerfile:1"), ("filename", "Second")];
    let found = solve(&bridge, "gateway.v0", &own, None).unwrap();
    let found = bridge.read(reference(&found), "/second");
    assert_eq!(found.as_deref(), Ok("of context"));
    let answer = solve(&bridge, "gateway.v0", &[], None);
    fails(answer, Code::InvalidArgument, "no source");
    // One platform in the form of several.
    let several = [("multi-platform", "true"), ("filename", "Second")];
    let found = solve(&bridge, "dockerfile.v0", &several, None).unwrap();
    assert!(found.metadata.contains_key("refs.platforms"));
    match &found.kind {
        Some(result::Kind::Refs(references)) => assert_eq!(references.refs.len(), 1),
        other => panic!("{other:?}"),
    }
    bridge.finish(None).unwrap();
    engine.has_no_builds();
}

#[test]
fn the_dockerfile_may_be_an_input() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    // A client without directories.
    grpc.session(&engine, "client", &["none.None/None"], |_| async move {
        Err(Status::unknown("not called"))
    });
    let request = SolveRequest {
        session: "client".into(),
        ..SolveRequest::default()
    };
    let bridge = grpc.build("inputs", request);
    let dockerfile = |text: &str| run(&format!("printf '{text}' > /Dockerfile"));
    let solve = |inputs: &[(&str, &Definition)]| {
        let inputs = inputs.iter();
        let inputs = inputs.map(|(name, definition)| ((*name).to_owned(), (*definition).clone()));
        let request = gateway::SolveRequest {
            frontend: "dockerfile.v0".into(),
            frontend_inputs: inputs.collect(),
            allow_result_return: true,
            allow_result_array_ref: true,
            ..gateway::SolveRequest::default()
        };
        let answer: gateway::SolveResponse = bridge.call("Solve", &request).unwrap();
        reference(&answer.result.unwrap()).to_owned()
    };
    let alone = dockerfile("FROM scratch\\nCOPY <<E /alone\\nwritten\\nE\\n");
    let found = solve(&[("dockerfile", &alone)]);
    assert_eq!(bridge.read(&found, "alone"), Ok("written\n".into()));
    // It counts more than the one of the context.
    let copies = dockerfile("FROM scratch\\nCOPY x /copied\\n");
    let context = run("echo content > /x; echo nonsense > /Dockerfile");
    let found = solve(&[("dockerfile", &copies), ("context", &context)]);
    assert_eq!(bridge.read(&found, "copied"), Ok("content\n".into()));
    bridge.finish(None).unwrap();
}

/// Those that were used last.
#[test]
fn directories_of_clients_are_kept_up_to_a_limit() {
    const KEPT: usize = 64;
    let engine = Engine::without_images(&[]);
    let grpc = Grpc::connect(&engine);
    grpc.session(&engine, "client", &[DIFF_COPY], |call| async move {
        files::answer(call, Arc::new(Memory(&[("x", "content")]))).await
    });
    for number in 0..KEPT + 6 {
        let request = SolveRequest {
            session: "client".into(),
            ..SolveRequest::default()
        };
        let bridge = grpc.build(&format!("build-{number}"), request);
        let mut made = Made::default();
        let directory = made.source(&format!("local://directory-{number}"), &[]);
        let reference = bridge.evaluate(&made.definition(directory)).unwrap();
        assert_eq!(bridge.read(&reference, "/x"), Ok("content".into()));
        bridge.finish(None).unwrap();
    }
    let request = DiskUsageRequest {
        filter: vec!["type==source.local".into()],
        age_limit: 0,
    };
    let listed = eventually("the last build to put its directory back", || {
        let listed = grpc.control::<DiskUsageResponse>("DiskUsage", &request);
        let listed = listed.unwrap().record;
        let places = std::fs::read_dir(engine.root().join("build/contexts"));
        (places.unwrap().count() == listed.len()).then_some(listed)
    });
    // One more if a build has not put its own back when the next one begins.
    assert!((KEPT..=KEPT + 1).contains(&listed.len()));
    let is_listed = |number: usize| {
        let end = format!(" directory-{number}");
        listed
            .iter()
            .any(|record| record.description.ends_with(&end))
    };
    assert!(is_listed(KEPT + 5) && is_listed(KEPT / 2) && !is_listed(0) && !is_listed(1));
}

/// Builds of a session wait for the one that receives what they need, and do not depend on it.
#[test]
fn directories_are_received_if_the_build_that_others_wait_for_is_gone() {
    let engine = Engine::without_images(&[]);
    let grpc = Grpc::connect(&engine);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    grpc.session(&engine, "client", &[DIFF_COPY], move |call| {
        let is_first = counted.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            if is_first {
                std::future::pending::<()>().await;
            }
            files::answer(call, Arc::new(Memory(&[("x", "content")]))).await
        }
    });
    let mut made = Made::default();
    let directory = made.source("local://directory", &[]);
    let definition = made.definition(directory);
    let begin = |name: &str| {
        let request = SolveRequest {
            session: "client".into(),
            ..SolveRequest::default()
        };
        let bridge = grpc.build(name, request);
        let request = gateway::SolveRequest {
            definition: Some(definition.clone()),
            allow_result_return: true,
            allow_result_array_ref: true,
            evaluate: true,
            ..gateway::SolveRequest::default()
        };
        let solving = bridge.begin::<gateway::SolveResponse>("Solve", &request);
        (bridge, solving)
    };
    let count = || calls.load(Ordering::Relaxed);
    let first = begin("first");
    eventually("the call", || (count() == 1).then_some(()));
    let others = ["second", "third"].map(begin);
    let time = Duration::from_millis(500);
    stays("the others wait", time, || count() == 1);
    drop(first);
    for (bridge, solving) in others {
        let found = solving.wait().unwrap().result.unwrap();
        let found = bridge.read(reference(&found), "/x");
        assert_eq!(found, Ok("content".into()));
        bridge.finish(None).unwrap();
    }
    engine.has_no_builds();
}
