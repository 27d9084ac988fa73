//! Uploads and downloads of archives: rejected, interrupted, and written over other files.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use whelk_tests::{Engine, Program, eventually};

use super::check;

#[test]
fn a_rejected_upload_reports_the_reason() {
    let engine = Engine::without_images(&[]);
    let file = engine.scratch("files").join("garbage");
    std::fs::write(&file, vec![0xa7; 5_000_000]).unwrap();
    for _ in 0..10 {
        check(
            &engine,
            &["load", "-i", &file.display().to_string()],
            1,
            "invalid archive: not a tar archive",
        );
    }
    std::fs::write(&file, "no archive\n").unwrap();
    let file = file.display().to_string();
    check(
        &engine,
        &["load", "-i", &file],
        1,
        "invalid archive: unexpected EOF",
    );
    check(
        &engine,
        &["import", &file],
        1,
        "read archive: unexpected EOF",
    );
}

#[test]
fn archives_replace_nothing_but_files() {
    let engine = Engine::start();
    let dir = engine.scratch("out");
    engine.whelk(&["create", "--name", "one", "busybox"]).ok();
    engine.whelk(&["volume", "create", "vol"]).ok();
    std::os::unix::fs::symlink("target", dir.join("link")).unwrap();
    let path = |name: &str| dir.join(name).display().to_string();
    let commands: [(&[&str], &str); 3] = [
        (&["save", "busybox"], "failed to save image"),
        (&["export", "one"], "failed to export container"),
        (&["volume", "export", "vol"], "failed to export volume"),
    ];
    for (command, failed) in commands {
        let to = |place: &str| engine.whelk(&[command, &["-o", place]].concat());
        for (place, why) in [
            (path("nosuch/x"), "invalid output path: stat "),
            (path(""), "cannot write to a directory"),
            (path("link"), "cannot write to a symbolic link directly"),
            (
                "/dev/full".into(),
                "cannot write to a character device file",
            ),
        ] {
            to(&place).refuses(1, &format!("{failed}: {why}"));
        }
        to(&path("archive")).ok();
        assert!(std::fs::metadata(dir.join("archive")).unwrap().len() > 0);
    }
    let mut left: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["archive", "link"]);
}

#[test]
fn an_interrupted_save_leaves_no_file() {
    let engine = Engine::without_images(&[]);
    let dir = engine.scratch("out");
    let path = engine.scratch("slow").join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut command = Command::new(Program::Whelk.path())
            .env("DOCKER_HOST", format!("unix://{}", path.display()))
            .args(["save", "busybox", "-o"])
            .arg(dir.join("archive"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut client, _) = listener.accept().unwrap();
        let _request = client.read(&mut [0; 4096]).unwrap();
        client
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegin")
            .unwrap();
        let files = || std::fs::read_dir(&dir).unwrap().map(Result::unwrap);
        eventually("the begin to be written", || {
            let written = |file: std::fs::DirEntry| file.metadata().unwrap().len() == 5;
            files().any(written).then_some(())
        });
        kill_process(Pid::from_child(&command), signal).unwrap();
        assert_eq!(command.wait().unwrap().code(), Some(code));
        let mut said = String::new();
        command.stderr.unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((said.as_str(), files().count()), ("", 0));
    }
}
