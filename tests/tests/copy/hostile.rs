//! Containers that change their files during a copy, clients that stop, and containers that end.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use whelk_tests::tar::{self, Tar};
use whelk_tests::{Connection, Engine, Program, escape, eventually};

use super::api::put;

/// How long something may take that must not wait for a client.
const SOON: Duration = Duration::from_secs(20);

/// A process in the container replaces a directory by a link to the host's directory `outside`, again and
/// again.
fn racer(engine: &Engine, outside: &str) {
    let script = format!(
        "mkdir -p /t/a/d /t/b; ln -s {outside} /t/b/d; echo ready; while true; do mv /t/a/d /t/x; mv /t/b/d /t/a/d; mv /t/a/d /t/b/d; mv /t/x /t/a/d; done"
    );
    engine
        .cli(Program::Whelk)
        .up("box", &[], &["sh", "-c", &script]);
    engine.await_log("box", "ready");
}

#[test]
fn racing_links_never_lead_to_the_host() {
    let engine = Engine::start();
    let outside = engine.scratch("outside");
    fs::write(outside.join("secret"), "of the host").unwrap();
    racer(&engine, &outside.display().to_string());
    let archive = Tar::new()
        .file("d/escaped", "x")
        .dir("d")
        .fifo("d/pipe")
        .finish();
    let end = Instant::now() + Duration::from_secs(6);
    let (mut written, mut read) = (0, 0);
    while Instant::now() < end {
        written += i32::from(put(&engine, "/t/a", &archive, "").0 == 200);
        put(
            &engine,
            "/t/a/d",
            &Tar::new().file("escaped", "x").finish(),
            "",
        );
        for path in ["/t/a/d/secret", "/t/a/d/", "/t/a"] {
            let url = format!("/containers/box/archive?path={}", escape(path));
            // A copy is aborted if a directory that it is deep inside of was moved.
            let mut connection = Connection::open(&engine.socket()).unwrap();
            connection.send("GET", &url, &[], b"").unwrap();
            if let Ok(answer) = connection.response() {
                let text = String::from_utf8_lossy(&answer.body);
                assert!(!text.contains("of the host"), "{path}");
                read += 1;
            }
        }
    }
    assert!(written > 0 && read > 0);
    let left: Vec<_> = fs::read_dir(&outside)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["secret"]);
}

#[test]
fn files_that_change_give_a_valid_archive() {
    let engine = Engine::start();
    let script = "mkdir /t; cd /t; echo ready; while true; do echo more >> grown; dd if=/dev/zero of=cut bs=64k count=9 2>/dev/null; : > cut; mkdir -p gone/deep; echo x > gone/deep/f; rm -r gone; done";
    engine
        .cli(Program::Whelk)
        .up("box", &[], &["sh", "-c", script]);
    engine.await_log("box", "ready");
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        let answer = engine.http("GET", "/containers/box/archive?path=/t", &[], b"");
        assert_eq!(answer.status, 200);
        let found = tar::read(&answer.body);
        assert_eq!(found[0].path, "t");
        assert_eq!(answer.body[answer.body.len() - 1024..], [0; 1024]);
    }
}

/// Begins to send an archive and stops.
pub(super) fn stalled_upload(engine: &Engine, path: &str) -> Connection {
    let mut connection = Connection::open(&engine.socket()).unwrap();
    let head = format!(
        "PUT /v1.44/containers/box/archive?path={path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-tar\r\nContent-Length: 1000000\r\n\r\n"
    );
    connection.send_raw(head.as_bytes()).unwrap();
    let archive = Tar::new().file("stalled", "x".repeat(9000)).finish();
    connection.send_raw(&archive[..5000]).unwrap();
    connection
}

/// Begins to send an archive to the running container `box`, and stops when the engine has made its file `stalled`.
pub(super) fn begun_upload(engine: &Engine, path: &str) -> Connection {
    let connection = stalled_upload(engine, path);
    let file = format!("{path}/stalled");
    eventually("the upload to begin", || {
        let found = engine.whelk(&["exec", "box", "test", "-e", &file]);
        (found.code == 0).then_some(())
    });
    connection
}

/// Requests a large file and reads nothing.
pub(super) fn stalled_download(engine: &Engine) -> Connection {
    let mut connection = Connection::open(&engine.socket()).unwrap();
    connection
        .send("GET", "/containers/box/archive?path=/big", &[], b"")
        .unwrap();
    connection.head().unwrap();
    connection
}

#[test]
fn slow_clients_block_nothing() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let script = "dd if=/dev/zero of=/big bs=1M count=64 2>/dev/null; echo ready; exec sleep 600";
    cli.up("box", &["-v", "/volume"], &["sh", "-c", script]);
    engine.await_log("box", "ready");
    let timed = |args: &[&str]| {
        let begin = Instant::now();
        cli.run(args).ok();
        assert!(
            begin.elapsed() < SOON,
            "{args:?} took {:?}",
            begin.elapsed()
        );
    };
    let clients = [begun_upload(&engine, "/tmp"), stalled_download(&engine)];
    let is_there = || put(&engine, "/tmp", &Tar::new().finish(), "").0 == 200;
    assert!(is_there());
    timed(&["stop", "-t", "0", "box"]);
    // The layers can be mounted only once, so a start ends the copies of the run before.
    timed(&["start", "box"]);
    drop(clients);
    let clients = [begun_upload(&engine, "/volume"), stalled_download(&engine)];
    timed(&["kill", "box"]);
    let stopped = [
        stalled_upload(&engine, "/volume"),
        stalled_download(&engine),
    ];
    timed(&["rm", "-v", "box"]);
    drop(clients);
    drop(stopped);
    eventually("the volume to be removed", || {
        cli.run(&["volume", "ls", "-q"])
            .ok()
            .is_empty()
            .then_some(())
    });
}

#[test]
fn a_copy_ends_with_its_container() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    cli.up("box", &["--rm"], &["sleep", "600"]);
    let mut upload = begun_upload(&engine, "/tmp");
    cli.run(&["rm", "-f", "box"]).ok();
    let answer = upload.response().unwrap();
    assert_eq!(answer.status, 409, "{}", answer.text());
    assert!(
        answer
            .text()
            .contains("was started or removed during the copy"),
        "{}",
        answer.text()
    );
}

/// Copies and starts of one container at the same time.
#[test]
fn copies_race_with_starts_and_stops() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    cli.run(&[
        "create",
        "--name",
        "box",
        "--network",
        "none",
        "busybox",
        "sleep",
        "600",
    ])
    .ok();
    const COPIES: usize = 6;
    let has_ended = AtomicBool::new(false);
    let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
    std::thread::scope(|scope| {
        for (worker, copies) in counts.iter().enumerate() {
            let (engine, has_ended) = (&engine, &has_ended);
            scope.spawn(move || {
                let name = format!("file{worker}");
                while !has_ended.load(Ordering::Relaxed) {
                    let count = copies.load(Ordering::Relaxed);
                    let archive = Tar::new().file(&name, count.to_string()).finish();
                    let (status, text) = put(engine, "/tmp", &archive, "");
                    assert!(status == 200 || status == 409, "{status} {text}");
                    if status == 200 {
                        let url = format!("/containers/box/archive?path=/tmp/{name}");
                        let answer = engine.http("GET", &url, &[], b"");
                        assert_eq!(answer.status, 200, "{}", answer.text());
                        assert_eq!(tar::file(&answer.body, &name), count.to_string().as_bytes());
                    }
                    copies.store(count + 1, Ordering::Relaxed);
                }
            });
        }
        let are_enough = || {
            counts
                .iter()
                .all(|count| count.load(Ordering::Relaxed) >= COPIES)
        };
        for round in 0..100 {
            cli.run(&["start", "box"]).ok();
            cli.run(&["kill", "box"]).ok();
            if round >= 8 && are_enough() {
                break;
            }
        }
        has_ended.store(true, Ordering::Relaxed);
    });
    for count in counts {
        assert!(count.into_inner() >= COPIES);
    }
}
