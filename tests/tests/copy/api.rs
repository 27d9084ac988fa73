//! `/containers/{id}/archive`: status codes, the header, and what archives may contain.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use whelk_tests::tar::{Entry, Kind, Tar};
use whelk_tests::{Engine, Program, escape, images};

#[track_caller]
pub(super) fn put(engine: &Engine, path: &str, archive: &[u8], more: &str) -> (u16, String) {
    let path = format!("/containers/box/archive?path={}{more}", escape(path));
    let answer = engine.http(
        "PUT",
        &path,
        &[("Content-Type", "application/x-tar")],
        archive,
    );
    let text = if answer.status == 200 {
        String::new()
    } else {
        answer.json()["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    (answer.status, text)
}

fn stopped(engine: &Engine, script: &str) {
    let cli = engine.cli(Program::Whelk);
    cli.run(&[
        "run",
        "--name",
        "box",
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        script,
    ])
    .ok();
}

#[test]
fn the_header_says_what_a_path_refers_to() {
    let engine = Engine::start();
    stopped(
        &engine,
        "mkdir -p /t/dir; echo x > /t/file; chmod 4751 /t/file; ln -s file /t/link; ln -s nosuch /t/broken; ln -s /t/dir /t/abs; ln -s ../../../../etc /t/dir/up; mkfifo -m 600 /t/fifo",
    );
    let directory = 2_147_484_141_u32;
    for (path, status, name, mode, target) in [
        ("/t/file", 200, "file", 8_389_097, ""),
        ("/t/dir", 200, "dir", directory, ""),
        ("/t/dir/", 200, "dir", directory, ""),
        ("/t/dir/.", 200, ".", directory, ""),
        ("/t/link", 200, "link", 134_218_239, "/t/file"),
        ("/t/broken", 200, "broken", 134_218_239, "/t/nosuch"),
        ("/t/abs", 200, "abs", 134_218_239, "/t/dir"),
        ("/t/abs/", 200, "abs", directory, ""),
        ("/t/abs/up", 200, "up", 134_218_239, "/etc"),
        ("t/file", 200, "file", 8_389_097, ""),
        ("../../t", 200, "t", directory, ""),
        ("/", 200, "/", directory, ""),
        (".", 200, ".", directory, ""),
        ("/t/fifo", 200, "fifo", 33_554_432 + 0o600, ""),
        ("/t/file/", 500, "", 0, ""),
        ("/t/file/x", 500, "", 0, ""),
        ("/t/nosuch", 404, "", 0, ""),
        ("", 400, "", 0, ""),
    ] {
        let url = format!("/containers/box/archive?path={}", escape(path));
        let answer = engine.http("HEAD", &url, &[], b"");
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.body.is_empty());
        if status == 200 {
            let header = answer.header("x-docker-container-path-stat").unwrap();
            let stat: Value = serde_json::from_slice(&STANDARD.decode(header).unwrap()).unwrap();
            assert_eq!(
                (&stat["name"], &stat["mode"], &stat["linkTarget"]),
                (&json!(name), &json!(mode), &json!(target)),
                "{path}: {stat}"
            );
            assert!(
                stat["mtime"].as_str().unwrap().starts_with("20"),
                "{path}: {stat}"
            );
        } else {
            assert_eq!(engine.http("GET", &url, &[], b"").status, status, "{path}");
        }
    }
    for (method, path, status, text) in [
        (
            "GET",
            "box/archive",
            400,
            "bad parameter: pathcannot be empty",
        ),
        (
            "PUT",
            "box/archive",
            400,
            "bad parameter: pathcannot be empty",
        ),
        ("POST", "box/archive?path=/", 404, "page not found"),
        (
            "GET",
            "nosuch/archive?path=/",
            404,
            "No such container: nosuch",
        ),
        (
            "PUT",
            "nosuch/archive?path=/",
            404,
            "No such container: nosuch",
        ),
        (
            "GET",
            "box/archive?path=/t/file/",
            500,
            "lstat /t/file/: not a directory",
        ),
    ] {
        let (found, answer) = engine.api(method, &format!("/containers/{path}"), None);
        assert_eq!(
            (found, answer["message"].as_str()),
            (status, Some(text)),
            "{method} {path}"
        );
    }
}

#[test]
fn archives_are_unpacked_inside_the_directory() {
    const CUT: &str = "unexpected EOF";
    let cut = |archive: Vec<u8>| archive[..archive.len() * 2 / 3].to_vec();
    let engine = Engine::start();
    stopped(
        &engine,
        "mkdir -p /t/dir /t/p/d; echo keep > /t/file; echo x > /t/p/f; ln -s nosuch /t/broken; ln -s /t/p /t/link",
    );
    let file = |path: &str| Tar::new().file(path, "1").finish();
    let fill = Tar::new().dir("d2").file("f2", "").finish();
    assert_eq!(put(&engine, "/t/p", &fill, "").0, 200);
    let keep = "&noOverwriteDirNonDir=true";
    let unknown = {
        let mut archive = file("z");
        archive[156] = b'Z';
        let sum: u32 = archive[..512]
            .iter()
            .enumerate()
            .map(|(at, byte)| {
                if (148..156).contains(&at) {
                    32
                } else {
                    u32::from(*byte)
                }
            })
            .sum();
        archive[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive
    };
    let cases: Vec<(&str, Vec<u8>, &str, u16, &str)> = vec![
        ("/t/p", Vec::new(), "", 200, ""),
        (
            "/t/p",
            b"garbage".repeat(200),
            "",
            500,
            "archive/tar: invalid tar header",
        ),
        ("/t/p", b"garb".to_vec(), "", 500, "unexpected EOF"),
        (
            "/t/file",
            file("a"),
            "",
            400,
            "extraction point is not a directory",
        ),
        (
            "/t/broken",
            file("a"),
            "",
            404,
            "Could not find the file /t/broken in container box",
        ),
        (
            "/t/zz",
            file("a"),
            "",
            404,
            "Could not find the file /t/zz in container box",
        ),
        (
            "/t/file/",
            file("a"),
            "",
            500,
            "lstat /t/file/: not a directory",
        ),
        (
            "/t/p",
            file("../escape"),
            "",
            500,
            "invalid entry name \"../escape\"",
        ),
        ("/t/p", file("d/../inner"), "", 200, ""),
        ("/t/p", file("/absolute"), "", 200, ""),
        ("/t/p", file("d"), "", 200, ""),
        (
            "/t/p",
            file("d2"),
            keep,
            500,
            "cannot overwrite directory \"d2\" with non-directory \"/t/p\"",
        ),
        (
            "/t/p",
            Tar::new().dir("f2").finish(),
            keep,
            500,
            "cannot overwrite non-directory \"f2\" with directory \"/t/p\"",
        ),
        ("/t/p", Tar::new().dir("f2").finish(), "", 200, ""),
        (
            "/t/p",
            Tar::new().symlink("s", "../../../etc/passwd").finish(),
            "",
            200,
            "",
        ),
        (
            "/t/p",
            Tar::new()
                .symlink("so", "/t/dir")
                .file("so/y", "1")
                .finish(),
            "",
            200,
            "",
        ),
        (
            "/t/p",
            Tar::new().hard_link("h", "../file").finish(),
            "",
            500,
            "invalid hardlink target \"../file\"",
        ),
        (
            "/t/p",
            Tar::new().hard_link("h", "/etc/passwd").finish(),
            "",
            404,
            "Could not find the file /t/p in container box",
        ),
        (
            "/t/p",
            Tar::new().file("q", "1").hard_link("h2", "q").finish(),
            "",
            200,
            "",
        ),
        (
            "/t/p",
            Tar::new()
                .symlink("hs", "/t/file")
                .hard_link("hh", "hs")
                .file("hh", "own")
                .finish(),
            "",
            200,
            "",
        ),
        ("/t/p", Tar::new().device("dev", 1, 3).finish(), "", 200, ""),
        (
            "/t/p",
            Tar::new()
                .file(".wh.q", "")
                .file(".wh..wh..opq", "")
                .finish(),
            "",
            200,
            "",
        ),
        ("/t/p", unknown, "", 500, "unhandled tar header type 90"),
        ("/t/p", file("m1/m2/f"), "", 200, ""),
        ("/t/link", file("via"), "", 200, ""),
        ("/t/p/.", file("dot"), "", 200, ""),
        (
            "/t/p",
            Tar::new().file("cut", "1".repeat(5000)).finish()[..2000].to_vec(),
            "",
            500,
            CUT,
        ),
        ("/t/p", file("noend")[..1024].to_vec(), "", 200, ""),
        ("/t/p", images::gzip(&file("gz")), "", 200, ""),
        ("/t/p", images::bzip2(&file("bz")), "", 200, ""),
        ("/t/p", images::xz(&file("xz")), "", 200, ""),
        ("/t/p", cut(images::gzip(&file("gz"))), "", 500, CUT),
        ("/t/p", cut(images::bzip2(&file("bz"))), "", 500, CUT),
        ("/t/p", cut(images::xz(&file("xz"))), "", 500, CUT),
        ("/t/p", b"\xfd7zXZ\0rest".to_vec(), "", 500, CUT),
        (
            "/t/p",
            b"BZh91AY".repeat(20),
            "",
            500,
            "archive/tar: invalid tar header",
        ),
    ];
    for (path, archive, more, status, text) in cases {
        assert_eq!(
            put(&engine, path, &archive, more),
            (status, text.to_owned()),
            "{path}"
        );
    }
    let listed = engine.whelk(&["cp", "box:/t", "-"]).stdout;
    let found = whelk_tests::tar::read(&listed);
    let names: Vec<&str> = found.iter().map(|entry| entry.path.as_str()).collect();
    for name in [
        "t/p/inner",
        "t/p/absolute",
        "t/p/t/dir/y",
        "t/p/m1/m2/f",
        "t/p/via",
        "t/p/dot",
        "t/p/noend",
        "t/p/gz",
        "t/p/.wh.q",
        "t/p/hh",
    ] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert!(
        !names
            .iter()
            .any(|name| name.contains("escape") || *name == "t/dir/y"),
        "{names:?}"
    );
    assert_eq!(whelk_tests::tar::file(&listed, "t/file"), b"keep\n");
    let device = found.iter().find(|entry| entry.path == "t/p/dev").unwrap();
    assert_eq!(device.kind, b'3');
}

#[test]
fn metadata_is_kept() {
    let engine = Engine::start();
    stopped(&engine, "true");
    let entry = |path, kind, mode| Entry {
        mode,
        owner: (12, 34),
        ..Entry::new(path, kind)
    };
    let archive = Tar::new()
        .entry(&entry("d", Kind::Directory, 0o2750))
        .entry(&Entry {
            content: b"x",
            ..entry("d/f", Kind::File, 0o4711)
        })
        .entry(&entry("d/p", Kind::Fifo, 0o666))
        .entry(&Entry {
            target: "f",
            ..entry("d/l", Kind::Symlink, 0o777)
        })
        .finish();
    assert_eq!(put(&engine, "/", &archive, "").0, 200);
    let listed = engine.whelk(&["cp", "box:/d", "-"]).stdout;
    let found = whelk_tests::tar::read(&listed);
    let shown: Vec<_> = found
        .iter()
        .map(|entry| (entry.path.as_str(), entry.mode, entry.owner, entry.mtime))
        .collect();
    let time = 1_704_067_200;
    assert_eq!(
        shown,
        [
            ("d", 0o2750, (12, 34), time),
            ("d/f", 0o4711, (12, 34), time),
            ("d/l", 0o777, (12, 34), time),
            ("d/p", 0o666, (12, 34), time),
        ]
    );
}

#[test]
fn copies_have_events() {
    let engine = Engine::start();
    stopped(&engine, "true");
    let mut events = engine.events("");
    engine.http("HEAD", "/containers/box/archive?path=/", &[], b"");
    engine.http("GET", "/containers/box/archive?path=/etc", &[], b"");
    put(&engine, "/etc", &Tar::new().file("x", "").finish(), "");
    assert_eq!(
        events.until("extract-to-dir"),
        ["container archive-path", "container extract-to-dir"]
    );
}

/// Docker refuses to replace what something is mounted at or below: the mount would be gone.
#[test]
fn mounts_are_not_replaced() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    let flags = ["-v", "data:/srv/data", "--cap-add", "SYS_ADMIN"];
    let script = "mkdir -p /own/mnt; mount -t tmpfs none /own/mnt; touch /own/mnt/x; sleep 600";
    cli.up("box", &flags, &["sh", "-c", script]);
    cli.run(&[
        "exec",
        "box",
        "sh",
        "-c",
        "until [ -e /own/mnt/x ]; do sleep .02; done",
    ])
    .ok();
    for is_running in [true, false] {
        if !is_running {
            cli.run(&["kill", "box"]).ok();
            engine.await_state("box", "exited");
        }
        for (directory, name) in [("/", "proc"), ("/", "srv"), ("/srv", "data"), ("/", "own")] {
            if is_running || directory == "/srv" || name == "srv" {
                let (status, text) =
                    put(&engine, directory, &Tar::new().file(name, "x").finish(), "");
                assert!(
                    status == 500 && text.contains("busy"),
                    "{directory}{name}: {status} {text}"
                );
            }
        }
        let archive = Tar::new().file("else", "x").dir("srv/data").finish();
        assert_eq!(put(&engine, "/", &archive, "").0, 200);
        if is_running {
            let look = "for at in /proc /srv/data /own/mnt; do grep -q \" $at \" /proc/self/mountinfo || exit 9; done; ls /else";
            cli.run(&["exec", "box", "sh", "-c", look]).ok();
        }
    }
}

/// Client libraries leave numbers of headers empty that their callers do not set: Docker reads them as 0.
#[test]
fn numbers_that_are_left_empty_are_zero() {
    /// Where a header has mode, user and group; modification time; checksum.
    const FIELDS: [std::ops::Range<usize>; 2] = [100..124, 136..148];
    const CHECKSUM: std::ops::Range<usize> = 148..156;
    let engine = Engine::start();
    stopped(&engine, "true");
    let mut archive = Tar::new().file("readme.txt", "hello").finish();
    for field in FIELDS {
        archive[field].fill(0);
    }
    archive[CHECKSUM].fill(b' ');
    let sum: u32 = archive[..512].iter().copied().map(u32::from).sum();
    archive[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(put(&engine, "/tmp", &archive, ""), (200, String::new()));
    let is_zero = |archive: &[u8]| {
        let all = whelk_tests::tar::read(archive);
        let file = all.iter().find(|found| found.path == "readme.txt").unwrap();
        assert_eq!(file.content, b"hello");
        assert_eq!((file.mode, file.owner, file.mtime), (0, (0, 0), 0));
    };
    let copied = engine.http(
        "GET",
        "/containers/box/archive?path=/tmp/readme.txt",
        &[],
        b"",
    );
    is_zero(&copied.body);
    engine.import("empty-fields", &[], &archive);
    let whelk = engine.cli(Program::Whelk);
    whelk
        .run(&["create", "--name", "imported", "empty-fields", "x"])
        .ok();
    is_zero(&whelk.run(&["export", "imported"]).stdout);
}
