//! Copies and exports that end with the run or the container that they began in, and what does not fit.

use std::fs;
use std::time::{Duration, Instant};

use whelk_tests::tar::{self, Tar};
use whelk_tests::{Connection, Engine, Program, eventually};

use super::api::put;
use super::hostile::{begun_upload, stalled_download, stalled_upload};

/// Runs the container `box` with a large file.
fn run_large(engine: &Engine) {
    let script = "dd if=/dev/zero of=/big bs=1M count=64 2>/dev/null; echo ready; exec sleep 600";
    engine
        .cli(Program::Whelk)
        .up("box", &[], &["sh", "-c", script]);
    engine.await_log("box", "ready");
}

/// Reads the rest of a response. Returns whether it was complete.
fn is_complete(connection: &mut Connection) -> bool {
    loop {
        match connection.part() {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// The layers of a run stay mounted while a copy of it goes on, and must not be mounted twice.
#[test]
fn copies_of_the_last_run_end_for_the_next_view() {
    let engine = Engine::start();
    run_large(&engine);
    let mut download = stalled_download(&engine);
    let mut upload = begun_upload(&engine, "/etc");
    engine.whelk(&["kill", "box"]).ok();
    engine.await_state("box", "exited");
    for _ in 0..2 {
        let answer = engine.http("HEAD", "/containers/box/archive?path=/etc", &[], b"");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert!(
        !is_complete(&mut download),
        "two views had the layers mounted"
    );
    assert_eq!(upload.response().unwrap().status, 409);
    // A view that is shared does not end the copies that use it.
    let mut download = stalled_download(&engine);
    let archive = Tar::new().file("new", "x").finish();
    assert_eq!(put(&engine, "/etc", &archive, "").0, 200);
    assert!(is_complete(&mut download));
}

#[test]
fn an_export_ends_with_its_run() {
    let engine = Engine::start();
    run_large(&engine);
    let export = || {
        let mut connection = Connection::open(&engine.socket()).unwrap();
        connection
            .send("GET", "/containers/box/export", &[], b"")
            .unwrap();
        assert_eq!(connection.head().unwrap().0, 200);
        connection
    };
    let mut of_run = export();
    engine.whelk(&["kill", "box"]).ok();
    engine.await_state("box", "exited");
    let mut of_layers = export();
    engine.whelk(&["start", "box"]).ok();
    assert!(!is_complete(&mut of_run) && !is_complete(&mut of_layers));
    // An export of a container that does not run goes on beside copies.
    engine.whelk(&["kill", "box"]).ok();
    engine.await_state("box", "exited");
    let mut of_layers = export();
    let answer = engine.http("HEAD", "/containers/box/archive?path=/etc", &[], b"");
    assert_eq!(answer.status, 200);
    assert!(is_complete(&mut of_layers));
}

#[test]
fn stalled_clients_leave_threads_to_others() {
    const CLIENTS: usize = 560;
    let engine = Engine::start();
    run_large(&engine);
    let mut clients: Vec<Connection> = (0..CLIENTS)
        .map(|_| stalled_upload(&engine, "/tmp"))
        .collect();
    let begin = Instant::now();
    assert_eq!(
        engine.cli(Program::Docker).sh(&[], "echo alive").ok(),
        "alive"
    );
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "{:?}",
        begin.elapsed()
    );
    let get = || engine.http("GET", "/containers/box/archive?path=/etc/passwd", &[], b"");
    let answer = eventually("the maximum of uploads to have begun", || {
        Some(get()).filter(|answer| answer.status != 200)
    });
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(
        answer
            .text()
            .contains("which is the maximum: try again later")
    );
    clients.clear();
    eventually("copies to be possible again", || {
        (get().status == 200).then_some(())
    });
}

/// A view must not show up in the container, whatever the container does with its mounts.
#[test]
fn views_are_not_mounted_in_the_container() {
    let engine = Engine::start();
    let script = "mount --make-rshared / && echo ready; while :; do grep -c ' /data ' /proc/self/mountinfo >> /counts; done";
    let flags = ["--privileged", "-v", "data:/data"];
    engine
        .cli(Program::Whelk)
        .up("box", &flags, &["sh", "-c", script]);
    engine.await_log("box", "ready");
    for _ in 0..100 {
        let answer = engine.http("HEAD", "/containers/box/archive?path=/data", &[], b"");
        assert_eq!(answer.status, 200);
    }
    let counts = engine.whelk(&["exec", "box", "sort", "-u", "/counts"]).ok();
    assert_eq!(
        counts, "1",
        "a view's mount of the volume was seen in the container"
    );
}

#[test]
fn links_lead_where_they_lead_in_the_container() {
    let engine = Engine::start();
    let script = "mkdir -p /srv /opt/5; ln -s /opt/5 /srv/current; ln -s ../opt/5 /srv/relative; exec sleep 600";
    engine
        .cli(Program::Whelk)
        .up("box", &[], &["sh", "-c", script]);
    eventually("the links", || {
        let words = ["exec", "box", "test", "-L", "/srv/relative"];
        (engine.whelk(&words).code == 0).then_some(())
    });
    let archive = Tar::new()
        .file("current/f", "1")
        .file("relative/g", "2")
        .finish();
    assert_eq!(put(&engine, "/srv", &archive, "").0, 200);
    let found = engine.whelk(&[
        "exec",
        "box",
        "sh",
        "-c",
        "cat /opt/5/f /opt/5/g; ls -A /srv",
    ]);
    assert_eq!(found.ok(), "12current\nrelative");
}

#[test]
fn a_copy_on_a_full_disk_keeps_the_old_file() {
    let engine = Engine::start();
    let script = "echo old > /t/f; echo ready; exec sleep 600";
    engine
        .cli(Program::Whelk)
        .up("box", &["--tmpfs", "/t:size=1m"], &["sh", "-c", script]);
    engine.await_log("box", "ready");
    let large = vec![b'x'; 2 << 20];
    for name in ["f", "new"] {
        let (status, text) = put(&engine, "/t", &Tar::new().file(name, &large).finish(), "");
        assert_eq!(status, 500);
        assert!(text.contains("no space left on device"), "{text}");
    }
    let found = engine
        .whelk(&["exec", "box", "sh", "-c", "cat /t/f; ls -A /t"])
        .ok();
    assert_eq!(found, "old\nf");
}

/// What a copy, an export, a list of changes, a commit and statistics do when the container is paused, ends
/// or is removed meanwhile: they end soon, with a complete result or an error.
#[test]
fn operations_end_with_a_container_that_changes() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    let script = "i=0; while [ $i -lt 2000 ]; do echo $i > /f$i; i=$((i+1)); done; dd if=/dev/zero of=/big bs=1M count=32 2>/dev/null; echo ready; exec sleep 600";
    let requests: [(&str, &str); 6] = [
        ("GET", "/containers/box/archive?path=/"),
        ("GET", "/containers/box/export"),
        ("GET", "/containers/box/changes"),
        ("POST", "/commit?container=box&repo=made&pause=0"),
        ("POST", "/commit?container=box&repo=made&pause=1"),
        ("GET", "/containers/box/stats?stream=0"),
    ];
    for words in [
        &["pause", "box"][..],
        &["kill", "box"],
        &["rm", "-f", "box"],
        &["restart", "-t", "0", "box"],
    ] {
        cli.up("box", &[], &["sh", "-c", script]);
        engine.await_log("box", "ready");
        std::thread::scope(|scope| {
            // What a commit that pauses does to the user's own pause has a test of its own.
            let is_wanted = |path: &str| words[0] != "pause" || !path.ends_with("pause=1");
            let wanted = requests.into_iter().filter(|(_, path)| is_wanted(path));
            let clients: Vec<_> = wanted
                .map(|(method, path)| {
                    let engine = &engine;
                    scope.spawn(move || {
                        let mut connection = Connection::open(&engine.socket()).unwrap();
                        let kind = [("Content-Type", "application/json")];
                        let body: &[u8] = if method == "POST" { b"{}" } else { b"" };
                        connection.send(method, path, &kind, body).unwrap();
                        let begin = Instant::now();
                        let answer = connection.response();
                        (path, answer, begin.elapsed())
                    })
                })
                .collect();
            std::thread::sleep(Duration::from_millis(20));
            cli.run(words).ok();
            for client in clients {
                let (path, answer, time) = client.join().unwrap();
                assert!(time < Duration::from_secs(25), "{words:?} {path}: {time:?}");
                // An archive that is cut off is not taken for a complete one.
                let Ok(answer) = answer else { continue };
                let status = answer.status;
                assert!(
                    matches!(status, 200 | 201 | 404 | 409),
                    "{words:?} {path}: {status} {}",
                    answer.text()
                );
                if status == 200 && (path.ends_with("path=/") || path.ends_with("export")) {
                    let found = tar::read(&answer.body);
                    let files = found.iter().filter(|entry| {
                        let name = entry.path.trim_start_matches('/');
                        name.starts_with('f') && entry.content.ends_with(b"\n")
                    });
                    assert_eq!(files.count(), 2000, "{words:?} {path}");
                }
            }
        });
        // The container works, or is gone.
        if words[0] == "pause" {
            eventually("it to be paused, by nobody but the user", || {
                (engine.state("box") == "paused").then_some(())
            });
            cli.run(&["unpause", "box"]).ok();
            assert_eq!(cli.run(&["exec", "box", "cat", "/f7"]).ok(), "7");
        }
        let _ = cli.run(&["rm", "-f", "box"]);
        let _ = cli.run(&["rmi", "-f", "made"]);
        // The second commit has taken the name of the first.
        cli.run(&["image", "prune", "-f"]).ok();
    }
    let image = engine.get("/images/busybox/json");
    let own = image["RootFS"]["Layers"].as_array().unwrap().len();
    let layers = || fs::read_dir(engine.root().join("layers")).unwrap().count();
    assert_eq!(layers(), own);
    cli.run(&["system", "check", "--layers"]).ok();
}
