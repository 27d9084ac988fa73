//! Calls that come late, are large, or are many.

use std::time::{Duration, Instant};

use whelk_buildkit::grpc::Code;
use whelk_buildkit::pb::control::SolveRequest;
use whelk_buildkit::pb::gateway::{PongResponse, WarnRequest};
use whelk_buildkit::pb::session::GetSecretResponse;
use whelk_buildkit::pb::{BytesMessage, Unused};
use whelk_buildkit::session::SECRET;
use whelk_llb::pb::{Definition, SecretEnv};
use whelk_tests::Engine;
use whelk_tests::grpc::{Grpc, LATE};

use crate::{Made, NOTHING, fails, file, run, script};

/// A process that needs a secret. Builds with the same `text` share it.
fn with_secret(text: &str) -> Definition {
    let mut made = Made::default();
    let base = made.busybox();
    let mut exec = script(&format!(": {text}; echo $KEY > /made"));
    exec.secretenv = vec![SecretEnv {
        id: "key".into(),
        name: "KEY".into(),
        optional: false,
    }];
    let result = made.exec(exec, &[base]);
    made.definition(result)
}

#[test]
fn builds_and_sessions_may_be_late() {
    const DELAY: Duration = Duration::from_millis(500);
    /// On a busy machine they may be too late for the engine, which waits for seconds.
    const TRIES: usize = 5;
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let begin = Instant::now();
    // All that never come, beside those that do.
    let never = grpc
        .frontend("never")
        .begin::<PongResponse>("Ping", &NOTHING);
    let status = grpc.begin::<Unused>(
        "moby.buildkit.v1.Control/Status",
        &[],
        &whelk_buildkit::pb::control::StatusRequest {
            r#ref: "never".into(),
        },
    );
    let of = |session: &str| SolveRequest {
        session: session.into(),
        ..SolveRequest::default()
    };
    let alone = grpc.build("alone", of("nobody"));
    let waiting = alone.solve(&with_secret("alone")).unwrap();
    let waiting = alone.begin::<Unused>(
        "Evaluate",
        &whelk_buildkit::pb::gateway::EvaluateRequest { r#ref: waiting.id },
    );
    let is_waited_for = |number: usize| {
        let name = format!("late-{number}");
        let begin = Instant::now();
        let early = grpc.frontend(&name).begin::<PongResponse>("Ping", &NOTHING);
        std::thread::sleep(DELAY);
        let build_is_waited_for = !early.is_done();
        let late = grpc.build(&name, of(&name));
        let build_is_found = early.wait().is_ok();
        let reference = late.solve(&with_secret(&name)).unwrap().id;
        let solving = late.begin::<Unused>(
            "Evaluate",
            &whelk_buildkit::pb::gateway::EvaluateRequest {
                r#ref: reference.clone(),
            },
        );
        std::thread::sleep(DELAY);
        let session_is_waited_for = !solving.is_done();
        grpc.session(&engine, &name, &[SECRET], |call| async move {
            let data = b"late".to_vec();
            call.responses.send(&GetSecretResponse { data }).await
        });
        let session_is_found = solving.wait().is_ok();
        if session_is_found {
            assert_eq!(late.read(&reference, "/made"), Ok("late\n".into()));
        }
        late.finish(None).unwrap();
        build_is_waited_for
            && build_is_found
            && session_is_waited_for
            && session_is_found
            && begin.elapsed() < LATE
    };
    assert!((0..TRIES).any(is_waited_for));

    fails(never.wait(), Code::NotFound, "no such job never");
    fails(status.wait(), Code::NotFound, "no such job never");
    fails(
        waiting.wait(),
        Code::Unknown,
        "no active session for nobody",
    );
    alone.finish(None).unwrap();
    assert!(begin.elapsed() < 10 * LATE, "{:?}", begin.elapsed());
}

#[test]
fn large_messages_and_definitions_are_refused() {
    let engine = Engine::without_images(&[]);
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("large", SolveRequest::default());
    let huge = BytesMessage {
        data: vec![0; 17 << 20].into(),
    };
    for method in ["Ping", "Solve", "Warn", "Return"] {
        let answer = bridge.call::<Unused>(method, &huge);
        match method {
            // It does not read the message.
            "Ping" => drop(answer),
            _ => fails(answer, Code::ResourceExhausted, "is larger than"),
        }
    }
    let many = Definition {
        def: (0..100_002_u32)
            .map(|number| number.to_le_bytes().to_vec())
            .collect(),
        ..Definition::default()
    };
    fails(
        bridge.solve(&many),
        Code::InvalidArgument,
        "operations are more than 100000",
    );
    // A long chain takes a time that is in proportion to its length.
    let mut made = Made::default();
    let mut last = None;
    for number in 0..2000 {
        let action = crate::make_file(&format!("/{}", number % 7), &number.to_string());
        last = Some(made.file(action, last));
    }
    let begin = Instant::now();
    let chain = made.definition(last.unwrap());
    bridge.solve(&chain).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(60));
    let warn = |_| {
        let short = vec![b'x'; 1000];
        bridge.call::<Unused>(
            "Warn",
            &WarnRequest {
                short,
                ..WarnRequest::default()
            },
        )
    };
    let refused = (0..1100).map(warn).find_map(Result::err).unwrap();
    assert_eq!(refused.code, Code::ResourceExhausted, "{refused}");
    bridge.finish(None).unwrap();
}

#[test]
fn a_client_may_make_many_calls() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let greedy = grpc.build("greedy", SolveRequest::default());
    // More than a connection may have at a time are refused, and may be made again.
    let calls: Vec<_> = (0..1500)
        .map(|_| greedy.begin::<PongResponse>("Ping", &NOTHING))
        .collect();
    let mut refused = 0;
    for call in calls {
        if let Err(status) = call.wait() {
            assert_eq!(status.code, Code::Unavailable, "{status}");
            refused += 1;
        }
    }
    assert!(refused <= 500, "{refused}");
    let _: PongResponse = greedy.call("Ping", &NOTHING).unwrap();
    // Calls that say nothing, on a connection of their own.
    let rude = Grpc::connect(&engine);
    let silent = [
        "moby.buildkit.v1.Control/Solve",
        "moby.buildkit.v1.Control/Session",
        "moby.buildkit.v1.Control/Status",
    ]
    .map(|method| rude.silent_calls(method, 300));
    let idle: Vec<Grpc> = (0..50).map(|_| Grpc::connect(&engine)).collect();
    let begin = Instant::now();
    let reference = greedy.evaluate(&run("echo x > /made")).unwrap();
    assert_eq!(greedy.read(&reference, "/made"), Ok("x\n".into()));
    assert!(begin.elapsed() < Duration::from_secs(60));
    drop((silent, idle, rude));
    // A frontend may have many results, but not any number of them.
    let small = file("/x", "");
    let refused = (0..20_000).find_map(|_| greedy.solve(&small).err());
    let refused = refused.unwrap();
    assert_eq!(refused.code, Code::ResourceExhausted, "{refused}");
    greedy.finish(Some(&reference)).unwrap();
    assert!(engine.answers());
    engine.has_no_builds();
}

/// Clients open a connection to see whether that works, and close it.
#[test]
fn clients_may_hang_up_without_a_word() {
    let engine = Engine::without_images(&[]);
    let told = || {
        let words = engine.last_words();
        words.matches("WARN").count() + words.matches("ERROR").count()
    };
    let before = told();
    for path in ["/grpc", "/v1.47/grpc", "/grpc"] {
        drop(Grpc::connect_at(&engine, path));
    }
    let grpc = Grpc::connect(&engine);
    grpc.session(&engine, "gone", &[SECRET], |_| async { Ok(()) });
    drop(grpc);
    let quiet = || engine.answers() && told() == before;
    whelk_tests::stays("nothing is said", Duration::from_millis(500), quiet);
}

#[test]
fn what_a_build_has_begun_ends_with_it() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let runs = || whelk_tests::processes::with_command(&["sleep", "4321"]);
    let evaluate = |bridge: &whelk_tests::grpc::Bridge| {
        let reference = bridge.solve(&run("sleep 4321")).unwrap().id;
        bridge.begin::<Unused>(
            "Evaluate",
            &whelk_buildkit::pb::gateway::EvaluateRequest { r#ref: reference },
        )
    };
    // The frontend returns while a step runs; the client leaves.
    for leaves in [false, true] {
        let bridge = grpc.build(&format!("ends-{leaves}"), SolveRequest::default());
        let running = evaluate(&bridge);
        whelk_tests::eventually("the step to run", runs);
        if leaves {
            drop(bridge);
        } else {
            bridge.finish(None).unwrap();
        }
        whelk_tests::eventually("the step to end", || runs().is_none().then_some(()));
        let status = running.wait().unwrap_err();
        assert_eq!(status.code, Code::Canceled, "{status}");
    }
    // Several builds wait for one step: it runs as long as one of them does. The second build may come too late for that.
    let is_kept = |number: usize| {
        let build = |name: &str| grpc.build(&format!("{name}-{number}"), SolveRequest::default());
        let (one, other) = (build("one"), build("other"));
        let (first, second) = (evaluate(&one), evaluate(&other));
        let step = whelk_tests::eventually("the step to run", runs);
        std::thread::sleep(Duration::from_millis(500));
        drop((first, one));
        let is_kept = (0..6).all(|_| {
            std::thread::sleep(Duration::from_millis(50));
            runs() == Some(step)
        });
        drop((second, other));
        whelk_tests::eventually("the step to end", || runs().is_none().then_some(()));
        is_kept
    };
    assert!((0..5).any(is_kept));
    engine.has_no_builds();
}
