//! What is refused, by its name.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use whelk_buildkit::grpc::Code;
use whelk_buildkit::pb::control::{CacheOptions, Exporter, SolveRequest, SolveResponse};
use whelk_buildkit::pb::gateway::PongResponse;
use whelk_buildkit::pb::{HealthCheckResponse, Unused, gateway, policy};
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{BuildOp, ExecOp, Mount, SourceOp, WorkerConstraints};
use whelk_tests::Engine;
use whelk_tests::grpc::Grpc;

use crate::{Made, NOTHING, fails, file, run, script};

#[test]
fn fields_of_requests_are_refused_by_name() {
    type Change = fn(&mut SolveRequest);
    let engine = Engine::without_images(&[]);
    let grpc = Grpc::connect(&engine);
    let cases: &[(Change, Code, &str)] = &[
        (
            |request| request.r#ref = String::new(),
            Code::InvalidArgument,
            "the build has no ref",
        ),
        (
            |request| request.entitlements = vec!["no.such.right".into()],
            Code::Unknown,
            "unknown entitlement no.such.right",
        ),
        (
            |request| request.source_policy = Some(policy_without_selector()),
            Code::InvalidArgument,
            "invalid nil selector in policy",
        ),
        (
            |request| request.source_policy_session = "session".into(),
            Code::Unimplemented,
            "source policies",
        ),
        (
            |request| request.proxy_network = true,
            Code::Unimplemented,
            "a proxied network",
        ),
        (
            |request| request.cache.get_or_insert_default().export_ref = "registry/cache".into(),
            Code::Unimplemented,
            "a cache export",
        ),
        (
            |request| {
                let cache: &mut CacheOptions = request.cache.get_or_insert_default();
                cache.import_refs = vec!["registry/cache".into()];
            },
            Code::Unimplemented,
            "registry/cache",
        ),
        (
            |request| request.frontend = "nonsense.v0".into(),
            Code::InvalidArgument,
            "invalid frontend: nonsense.v0; the frontends are",
        ),
        (
            |request| {
                request.exporters = vec![Exporter {
                    kind: "nonsense".into(),
                    ..Exporter::default()
                }];
            },
            Code::InvalidArgument,
            "exporter \"nonsense\" could not be found",
        ),
        (
            |request| request.exporter = "old-nonsense".into(),
            Code::InvalidArgument,
            "exporter \"old-nonsense\" could not be found",
        ),
        (
            |request| {
                let caps = "moby.buildkit.frontend.inputs,no.such.cap+else";
                request.frontend = "dockerfile.v0".into();
                request.frontend_attrs = [("frontend.caps".into(), caps.into())].into();
            },
            Code::Unimplemented,
            "unsupported frontend capability no.such.cap",
        ),
        (
            |request| {
                request.frontend = "dockerfile.v0".into();
                request.frontend_attrs = [("cache-imports".into(), "[{".into())].into();
            },
            Code::InvalidArgument,
            "cache-imports",
        ),
    ];
    for (change, code, text) in cases {
        let mut request = SolveRequest {
            r#ref: "refused".into(),
            definition: Some(file("/x", "")),
            ..SolveRequest::default()
        };
        change(&mut request);
        if !request.frontend.is_empty() {
            request.definition = None;
        }
        fails(
            grpc.control::<SolveResponse>("Solve", &request),
            *code,
            text,
        );
    }
}

#[test]
fn clients_may_close_their_session_when_a_request_is_refused() {
    /// On a busy machine the session may be too late for the engine, which waits for a second.
    const TRIES: usize = 5;
    let engine = Engine::without_images(&[]);
    let grpc = Grpc::connect(&engine);
    let refused = "exporter \"nonsense\" could not be found";
    let request = |name: &str, session: &str| SolveRequest {
        r#ref: name.into(),
        session: session.into(),
        exporter: "nonsense".into(),
        ..SolveRequest::default()
    };
    let is_waited_for = |number: usize| {
        let (name, session) = (format!("refused-{number}"), format!("late-{number}"));
        let method = "moby.buildkit.v1.Control/Solve";
        let solving = grpc.begin::<SolveResponse>(method, &[], &request(&name, &session));
        std::thread::sleep(Duration::from_millis(100));
        let waits = !solving.is_done();
        let asked: Arc<AtomicUsize> = Arc::default();
        let count = asked.clone();
        grpc.session(&engine, &session, &[], move |call| {
            let status = HealthCheckResponse::SERVING;
            count.fetch_add(1, Ordering::Relaxed);
            async move { call.responses.send(&HealthCheckResponse { status }).await }
        });
        fails(solving.wait(), Code::InvalidArgument, refused);
        // Nobody waits for its progress.
        assert!(grpc.status(&name).unwrap().vertexes.is_empty());
        // A client that is its frontend learns the reason, too.
        let ping = grpc.frontend(&name).call::<PongResponse>("Ping", &NOTHING);
        fails(ping, Code::InvalidArgument, refused);
        waits && asked.load(Ordering::Relaxed) == 2
    };
    assert!((0..TRIES).any(is_waited_for));
    // A session that never comes is not waited for as long as by builds.
    let is_soon = |number: usize| {
        let begun = Instant::now();
        let request = request(&format!("alone-{number}"), "never");
        let solved = grpc.control::<SolveResponse>("Solve", &request);
        fails(solved, Code::InvalidArgument, refused);
        begun.elapsed() < Duration::from_secs(4)
    };
    assert!((0..TRIES).any(is_soon));
}

/// Returns a policy of one rule with the number of its action, which may convert to another identifier.
fn policy_of(action: i32, identifier: &str, to: Option<&str>) -> policy::Policy {
    let selector = policy::Selector {
        identifier: identifier.to_owned(),
        ..policy::Selector::default()
    };
    let updates = to.map(|to| policy::Update {
        identifier: to.to_owned(),
        ..policy::Update::default()
    });
    let rule = policy::Rule {
        action,
        selector: Some(selector),
        updates,
    };
    policy::Policy {
        rules: vec![rule],
        ..policy::Policy::default()
    }
}

fn policy_without_selector() -> policy::Policy {
    let rule = policy::Rule::default();
    policy::Policy {
        rules: vec![rule],
        ..policy::Policy::default()
    }
}

#[test]
fn frontends_send_policies_too() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let none = "docker-image://docker.io/library/none:1";
    let busybox = "docker-image://docker.io/library/busybox:latest";
    let converts = |to: &str| vec![policy_of(2, none, Some(to))];
    let mut made = Made::default();
    let base = made.source(none, &[]);
    let result = made.exec(script("echo x > /made"), &[base]);
    let request = gateway::SolveRequest {
        definition: Some(made.definition(result)),
        allow_result_return: true,
        allow_result_array_ref: true,
        evaluate: true,
        source_policies: converts(busybox),
        ..gateway::SolveRequest::default()
    };
    let bridge = grpc.build("policies", SolveRequest::default());
    let answer: gateway::SolveResponse = bridge.call("Solve", &request).unwrap();
    let Some(gateway::result::Kind::Ref(found)) = answer.result.and_then(|result| result.kind)
    else {
        panic!("no reference");
    };
    assert_eq!(bridge.read(&found.id, "made"), Ok("x\n".into()));
    // What an image is replaced by is told.
    let meta = |to: &str| {
        let request = gateway::ResolveSourceMetaRequest {
            source: Some(SourceOp {
                identifier: none.into(),
                ..SourceOp::default()
            }),
            source_policies: converts(to),
            ..gateway::ResolveSourceMetaRequest::default()
        };
        let answer =
            bridge.call::<gateway::ResolveSourceMetaResponse>("ResolveSourceMeta", &request);
        let answer = answer.unwrap();
        (answer.source.unwrap().identifier, answer.image.is_some())
    };
    assert_eq!(meta(busybox), (busybox.into(), true));
    assert_eq!(meta("local://x"), ("local://x".into(), false));
    let request = gateway::ResolveImageConfigRequest {
        r#ref: "docker.io/library/none:1".into(),
        source_policies: converts(busybox),
        ..gateway::ResolveImageConfigRequest::default()
    };
    let method = "ResolveImageConfig";
    let found = bridge.call::<gateway::ResolveImageConfigResponse>(method, &request);
    assert_eq!(found.unwrap().r#ref, "docker.io/library/busybox:latest");
    bridge.finish(None).unwrap();
}

#[test]
fn calls_are_refused_by_name() {
    let engine = Engine::without_images(&[]);
    let grpc = Grpc::connect(&engine);
    for method in [
        "moby.buildkit.v1.Control/Nonsense",
        "moby.buildkit.v1.Nonsense/Solve",
        "Nonsense",
        "grpc.health.v1.Health/Watch",
    ] {
        let answer = grpc.begin::<Unused>(method, &[], &NOTHING).wait();
        fails(answer, Code::Unimplemented, "unknown method");
    }
    let ping = "moby.buildkit.v1.frontend.LLBBridge/Ping";
    let answer = grpc.begin::<Unused>(ping, &[], &NOTHING).wait();
    fails(answer, Code::InvalidArgument, "buildid");

    let bridge = grpc.build("calls", SolveRequest::default());
    let answer = bridge.call::<Unused>("Nonsense", &NOTHING);
    fails(answer, Code::Unimplemented, "Nonsense");
    let solve =
        |request: gateway::SolveRequest| bridge.call::<gateway::SolveResponse>("Solve", &request);
    let whole = gateway::SolveRequest {
        definition: Some(file("/x", "")),
        allow_result_return: true,
        allow_result_array_ref: true,
        ..gateway::SolveRequest::default()
    };
    solve(whole.clone()).unwrap();
    let cases = [
        (
            gateway::SolveRequest {
                allow_result_array_ref: false,
                ..whole.clone()
            },
            Code::Unimplemented,
            "before v0.9",
        ),
        (
            gateway::SolveRequest {
                source_policies: vec![policy_without_selector()],
                ..whole.clone()
            },
            Code::InvalidArgument,
            "invalid nil selector in policy",
        ),
        (
            gateway::SolveRequest {
                definition: Some(run("true")),
                source_policies: vec![policy_of(1, "docker-image://*", None)],
                ..whole.clone()
            },
            Code::Unknown,
            "error evaluating the source policy: source \"docker-image://docker.io/library/busybox:latest\" denied by policy",
        ),
        (
            gateway::SolveRequest {
                definition: None,
                frontend: "nonsense.v0".into(),
                ..whole.clone()
            },
            Code::InvalidArgument,
            "invalid frontend: nonsense.v0",
        ),
        (
            gateway::SolveRequest {
                definition: None,
                frontend: "dockerfile.v0".into(),
                frontend_opt: [("frontend.caps".into(), "no.such.cap".into())].into(),
                ..whole.clone()
            },
            Code::Unimplemented,
            "no.such.cap",
        ),
    ];
    for (request, code, text) in cases {
        fails(solve(request), code, text);
    }
    bridge.finish(None).unwrap();
    // The same service behind a version of the API.
    let versioned = Grpc::connect_at(&engine, "/v1.47/grpc");
    let bridge = versioned.build("versioned", SolveRequest::default());
    let _: Unused = bridge.call("Ping", &NOTHING).unwrap();
    bridge.finish(None).unwrap();
}

#[test]
fn rights_come_from_the_request() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let host = || {
        let mut made = Made::default();
        let base = made.busybox();
        let exec = ExecOp {
            network: 1,
            ..script("readlink /proc/self/ns/net > /net")
        };
        let result = made.exec(exec, &[base]);
        made.definition(result)
    };
    let insecure = || {
        let mut made = Made::default();
        let base = made.busybox();
        let exec = ExecOp {
            security: 1,
            ..script("true")
        };
        let result = made.exec(exec, &[base]);
        made.definition(result)
    };
    let bridge = grpc.build("none", SolveRequest::default());
    fails(
        bridge.evaluate(&host()),
        Code::PermissionDenied,
        "network.host is not allowed",
    );
    fails(
        bridge.evaluate(&insecure()),
        Code::PermissionDenied,
        "security.insecure is not allowed",
    );
    bridge.finish(None).unwrap();
    for definition in [host(), insecure()] {
        let request = SolveRequest {
            r#ref: "definition".into(),
            definition: Some(definition),
            ..SolveRequest::default()
        };
        let answer = grpc.control::<SolveResponse>("Solve", &request);
        fails(answer, Code::PermissionDenied, "is not allowed");
    }
    let request = SolveRequest {
        entitlements: vec!["network.host".into()],
        ..SolveRequest::default()
    };
    let bridge = grpc.build("host", request);
    let reference = bridge.evaluate(&host()).unwrap();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let seen = bridge.read(&reference, "/net").unwrap();
    assert_eq!(seen.trim(), own.to_str().unwrap());
    bridge.finish(None).unwrap();
    // What a build with the right has made is no answer for one without.
    let bridge = grpc.build("later", SolveRequest::default());
    fails(
        bridge.evaluate(&host()),
        Code::PermissionDenied,
        "network.host",
    );
    bridge.finish(None).unwrap();
}

#[test]
fn operations_that_are_not_supported_are_named() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("operations", SolveRequest::default());
    let mounted = |mount: Mount| {
        let mut made = Made::default();
        let base = made.busybox();
        let mut exec = script("true");
        exec.mounts.push(Mount {
            dest: "/m".into(),
            ..mount
        });
        let result = made.exec(exec, &[base]);
        made.definition(result)
    };
    let source = |identifier: &str, attributes: &[(&str, &str)]| {
        let mut made = Made::default();
        let result = made.source(identifier, attributes);
        made.definition(result)
    };
    let build = {
        let mut made = Made::default();
        let base = made.busybox();
        let result = made.add(Kind::Build(BuildOp::default()), &[base]);
        made.definition(result)
    };
    let root = {
        let mut made = Made::default();
        let base = made.busybox();
        let mut exec = script("true");
        exec.mounts[0].selector = "/bin".into();
        let result = made.exec(exec, &[base]);
        made.definition(result)
    };
    let worker = {
        // The builder of definitions has no constraints.
        let mut made = run("true");
        let mut op = whelk_llb::pb::Op::default();
        whelk_buildkit::pb::Message::merge(&mut op, &*made.def[1]).unwrap();
        op.constraints = Some(WorkerConstraints {
            filter: vec!["org.example.gpu==yes".into()],
        });
        let bytes = whelk_buildkit::pb::Message::encode_to_vec(&op);
        let last = whelk_llb::pb::Op {
            inputs: vec![whelk_llb::pb::Input {
                digest: whelk_llb::Digest::of(&bytes).to_string(),
                index: 0,
            }],
            ..Default::default()
        };
        made.def.truncate(1);
        made.def.push(bytes);
        made.def
            .push(whelk_buildkit::pb::Message::encode_to_vec(&last));
        made
    };
    let image = "docker-image://docker.io/library/busybox:latest";
    for (definition, text) in [
        (build, "builds within builds"),
        (root, "the root file system from /bin"),
        (worker, "org.example.gpu==yes"),
        (
            mounted(Mount {
                output: -1,
                result_id: "x".into(),
                ..Mount::default()
            }),
            "a result as the mount /m",
        ),
        (source("nonsense://x", &[]), "nonsense://x"),
        (source(image, &[("image.nonsense", "1")]), "image.nonsense"),
        (source(image, &[("nonsense", "1")]), "nonsense"),
    ] {
        let status = bridge.evaluate(&definition).unwrap_err();
        assert!(status.message.contains(text), "{status} instead of {text}");
    }
    bridge.finish(None).unwrap();
}
