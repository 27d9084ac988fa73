//! Contexts that clients before version 23 send in requests of their own, and builds that clients cancel by name.

use std::thread;
use std::time::{Duration, Instant};

use whelk_tests::tar::Tar;
use whelk_tests::{Engine, eventually};

use crate::{run, shows};

fn post(engine: &Engine, query: &str, body: &[u8]) -> (u16, String) {
    let path = format!("/build?version=2&{query}");
    let answer = engine.http("POST", &path, &[], body);
    (answer.status, answer.text())
}

/// Sends both requests of a build, of which the one that comes first waits five seconds for the other one: again if that was late.
fn meet(send: impl Fn() -> ((u16, String), (u16, String))) -> ((u16, String), (u16, String)) {
    let mut tries = 5;
    loop {
        let (built, uploaded) = send();
        let is_late = uploaded.0 == 404 || built.1.contains("was not sent within");
        tries -= 1;
        if !is_late || tries == 0 {
            return (built, uploaded);
        }
    }
}

fn context(content: &str) -> Vec<u8> {
    Tar::new()
        .file("Dockerfile", "FROM busybox\nCOPY x /x\n")
        .file("x", content)
        .finish()
}

#[test]
fn a_context_comes_in_a_request_of_its_own() {
    let engine = Engine::start();
    for (id, is_first) in [("first", true), ("second", false)] {
        let build = || {
            let query = format!("buildid={id}&remote=upload-request&t={id}");
            post(&engine, &query, b"")
        };
        let upload = || {
            let query = format!("buildid=upload-request:{id}&remote=upload-request");
            post(&engine, &query, &context(id))
        };
        let wait = |waits: bool| {
            if waits {
                thread::sleep(Duration::from_millis(300));
            }
        };
        let (built, uploaded) = meet(|| {
            thread::scope(|scope| {
                let build = scope.spawn(|| {
                    wait(!is_first);
                    build()
                });
                wait(is_first);
                let uploaded = upload();
                (build.join().unwrap(), uploaded)
            })
        });
        assert_eq!(uploaded, (200, String::new()));
        shows(&built.1, &["moby.image.id"]);
        assert_eq!(run(&engine, id, "cat /x"), id);
    }
    engine.has_no_builds();
}

#[test]
fn requests_that_do_not_find_each_other_end() {
    let engine = Engine::start();
    let begun = Instant::now();
    let (alone, lost, nameless) = thread::scope(|scope| {
        let alone = scope.spawn(|| post(&engine, "buildid=a&remote=upload-request", b""));
        let lost = post(&engine, "buildid=upload-request:b", &context("x"));
        let nameless = post(&engine, "remote=upload-request", b"");
        (alone.join().unwrap(), lost, nameless)
    });
    assert!(begun.elapsed() < Duration::from_secs(50));
    assert_eq!((alone.0, lost.0, nameless.0), (400, 404, 400));
    shows(&alone.1, &["was not sent within 5 seconds"]);
    shows(&lost.1, &["waits for a context"]);
    // The name is free again, and a broken context is the build's error.
    let (built, uploaded) = meet(|| {
        thread::scope(|scope| {
            let built = scope.spawn(|| post(&engine, "buildid=a&remote=upload-request", b""));
            let uploaded = post(&engine, "buildid=upload-request:a", b"no archive");
            (built.join().unwrap(), uploaded)
        })
    });
    assert_eq!(uploaded.0, 200);
    shows(&built.1, &["errorDetail"]);
    engine.has_no_builds();
}

#[test]
fn a_build_is_canceled_by_its_name() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nRUN touch /begun; sleep 300\n";
    let archive = Tar::new().file("Dockerfile", dockerfile).finish();
    let runs = || {
        let workloads = engine.run().join("workloads").read_dir();
        workloads.is_ok_and(|mut all| all.next().is_some())
    };
    let (canceled, built) = thread::scope(|scope| {
        let built = scope.spawn(|| post(&engine, "buildid=long", &archive));
        eventually("a step to run", || runs().then_some(()));
        let again = post(&engine, "buildid=long", &archive);
        assert_eq!(again.0, 409, "{}", again.1);
        let answer = engine.http("POST", "/build/cancel?id=long", &[], b"");
        (answer.status, built.join().unwrap())
    });
    assert_eq!(canceled, 200);
    shows(&built.1, &["context canceled"]);
    engine.has_no_builds();
    let none = engine.http("POST", "/build/cancel?id=none", &[], b"");
    assert_eq!(none.status, 200);
}
