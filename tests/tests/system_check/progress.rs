//! Checks beside what goes on, and of clients that leave.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

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
    /// The lines about so many do not fit into the buffers on the way to the client.
    const STRAYS: usize = 4000;
    let checked = Checked::start();
    let stray = |number: usize| checked.run(&format!("workloads/{number:0200}"));
    for number in 0..STRAYS {
        fs::create_dir(stray(number)).unwrap();
    }
    let mut first = Connection::open(&checked.engine.socket()).unwrap();
    first.send("POST", "/system/check", &[], b"").unwrap();
    assert_eq!(first.head().unwrap().0, 200);
    // It waits half a minute for the client to read the others.
    let mut told = first.part().unwrap().unwrap();
    let second = checked.engine.whelk(&["system", "check"]);
    second.refuses(1, "a check of this engine is already running");
    while let Some(part) = first.part().unwrap() {
        told.extend(part);
    }
    let told = String::from_utf8_lossy(&told);
    assert_eq!(told.matches("belongs to no workload").count(), STRAYS);
    assert_eq!(told.lines().count(), STRAYS + 1, "with the result");
    for number in 0..STRAYS {
        fs::remove_dir(stray(number)).unwrap();
    }
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

/// Returns how many bytes a process has read.
fn bytes_read(pid: i32) -> u64 {
    let counts = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let count = counts.lines().find_map(|line| line.strip_prefix("rchar: "));
    count.unwrap().parse().unwrap()
}

#[test]
fn a_check_ends_with_its_client() {
    const SIZE: u64 = 1 << 30;
    /// More than the image has that the large file is added to.
    const BEGUN: u64 = 32 << 20;
    let checked = Checked::start();
    let engine = &checked.engine;
    let script = format!("truncate -s {SIZE} /large");
    let words = ["run", "--name", "large", "--network", "none", "busybox"];
    engine
        .whelk(&[&words[..], &["sh", "-c", &script]].concat())
        .ok();
    engine.whelk(&["commit", "large", "large:1"]).ok();
    let before = bytes_read(engine.daemon_pid());
    let read = || bytes_read(engine.daemon_pid()) - before;
    let mut client = Connection::open(&engine.socket()).unwrap();
    let path = "/system/check?layers=1&repair=1";
    client.send("POST", path, &[], b"").unwrap();
    assert_eq!(client.head().unwrap().0, 200);
    eventually("the check to read the file", || {
        (read() > BEGUN).then_some(())
    });
    drop(client);
    eventually("another check", || {
        let again = engine.whelk(&["system", "check"]);
        (again.code == 0).then_some(())
    });
    let read = read();
    assert!(read < SIZE, "the file was read to its end: {read}");
}
