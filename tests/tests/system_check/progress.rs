//! Checks beside what goes on, and of clients that leave.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use whelk_tests::images::{marked, noise};
use whelk_tests::{Connection, Engine, Program, eventually, tar};

use super::Checked;

#[test]
fn what_is_in_progress_is_no_problem() {
    let checked = Checked::start();
    let engine = &checked.engine;
    let archive = marked("loaded:1").build();
    let is_over = AtomicBool::new(false);
    let again = |work: &(dyn Fn() + Sync)| {
        while !is_over.load(Ordering::Relaxed) {
            work();
        }
    };
    let whelk = |words: &[&str]| {
        engine.cli(Program::Whelk).run(words).ok();
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            again(&|| {
                whelk(&[
                    "run",
                    "--rm",
                    "--network",
                    "net",
                    "-v",
                    "/anonymous",
                    "busybox",
                    "true",
                ]);
            });
        });
        scope.spawn(|| {
            again(&|| {
                whelk(&[
                    "create",
                    "--name",
                    "made",
                    "--network",
                    "none",
                    "busybox",
                    "true",
                ]);
                whelk(&["commit", "made", "committed"]);
                whelk(&["rename", "made", "renamed"]);
                whelk(&["rm", "renamed"]);
                whelk(&["rmi", "committed"]);
            });
        });
        scope.spawn(|| {
            again(&|| {
                engine.load(&archive);
                whelk(&["rmi", "loaded:1"]);
                whelk(&["network", "create", "shortly"]);
                whelk(&["volume", "create", "shortly"]);
                whelk(&["volume", "rm", "shortly"]);
                whelk(&["network", "rm", "shortly"]);
            });
        });
        let checks: Vec<_> = (0..8)
            .map(|round| {
                let flags: &[&str] = if round % 2 == 0 {
                    &[]
                } else {
                    &["--layers", "--repair"]
                };
                let words = [&["system", "check"][..], flags].concat();
                engine.whelk(&words)
            })
            .collect();
        is_over.store(true, Ordering::Relaxed);
        for done in checks {
            done.ok();
        }
    });
    checked.is_sound();
    assert_eq!(engine.state("running"), "running");
}

#[test]
fn one_check_runs_at_a_time() {
    let checked = Checked::start();
    // Makes the check look twice, which takes a moment.
    fs::create_dir(checked.run("workloads/step")).unwrap();
    let mut first = Connection::open(&checked.engine.socket()).unwrap();
    first.send("POST", "/system/check", &[], b"").unwrap();
    assert_eq!(first.head().unwrap().0, 200);
    std::thread::sleep(std::time::Duration::from_millis(100));
    let second = checked.engine.whelk(&["system", "check"]);
    second.refuses(1, "a check of this engine is already running");
    let problem = first.part().unwrap().unwrap();
    assert!(String::from_utf8_lossy(&problem).contains("belongs to no workload"));
    assert!(first.part().unwrap().is_some() && first.part().unwrap().is_none());
    checked.problems(&["--repair"]);
    checked.is_sound();
}

/// Sends the head of a request with a body of this size, and a part of it.
fn begin(engine: &Engine, request: &str, body: &[u8], sent: usize) -> Connection {
    let mut connection = Connection::open(&engine.socket()).unwrap();
    let head = format!(
        "POST {request} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-tar\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.send_raw(head.as_bytes()).unwrap();
    connection.send_raw(&body[..sent]).unwrap();
    connection
}

/// Loads and imports whose clients are slower than the two looks of a check are apart.
#[test]
fn what_lasts_is_no_problem() {
    let checked = Checked::start();
    let engine = &checked.engine;
    let files = tar::Tar::new()
        .file("large", noise(3 << 20))
        .file("more", noise(1 << 20))
        .finish();
    let loaded = whelk_tests::images::Archive::new("slow:1", vec![files.clone()]).build();
    let half = loaded.len() / 2;
    let mut load = begin(engine, "/images/load", &loaded, half);
    let mut import = begin(
        engine,
        "/images/create?fromSrc=-&repo=imported",
        &files,
        files.len() / 2,
    );
    let mut volume = begin(engine, "/volumes/filled/import", &files, 1 << 20);
    let staged = || fs::read_dir(checked.root("tmp")).unwrap().count();
    eventually("the archives to be unpacked", || {
        (staged() >= 2).then_some(())
    });
    for flags in [&[][..], &["--layers", "--repair"]] {
        assert_eq!(checked.problems(flags), Vec::<String>::new());
    }
    assert!(staged() >= 2);
    load.send_raw(&loaded[half..]).unwrap();
    import.send_raw(&files[files.len() / 2..]).unwrap();
    volume.send_raw(&files[1 << 20..]).unwrap();
    for connection in [&mut load, &mut import, &mut volume] {
        let answer = connection.response().unwrap();
        assert!(
            answer.status < 300 && !answer.text().contains("error"),
            "{}",
            answer.text()
        );
    }
    checked.is_sound();
    let words = ["run", "--rm", "--network", "none", "-v", "filled:/v"];
    let script = ["busybox", "wc", "-c", "/v/large", "/v/more"];
    let counted = engine.whelk(&[&words[..], &script].concat()).ok();
    assert!(counted.contains("4194304"), "{counted}");
}

#[test]
fn a_check_ends_with_its_client() {
    let checked = Checked::start();
    let engine = &checked.engine;
    let script = "truncate -s 1G /large";
    let words = ["run", "--name", "large", "--network", "none", "busybox"];
    engine
        .whelk(&[&words[..], &["sh", "-c", script]].concat())
        .ok();
    engine.whelk(&["commit", "large", "large:1"]).ok();
    let begin = Instant::now();
    checked.is_sound();
    let whole = begin.elapsed();
    let mut client = Connection::open(&engine.socket()).unwrap();
    let path = "/system/check?layers=1&repair=1";
    client.send("POST", path, &[], b"").unwrap();
    assert_eq!(client.head().unwrap().0, 200);
    let again = || engine.whelk(&["system", "check"]);
    again().refuses(1, "a check of this engine is already running");
    drop(client);
    let begin = Instant::now();
    eventually("another check", || (again().code == 0).then_some(()));
    let waited = begin.elapsed();
    assert!(
        waited < whole / 2 + Duration::from_millis(200),
        "{waited:?}, where a whole check takes {whole:?}"
    );
}
