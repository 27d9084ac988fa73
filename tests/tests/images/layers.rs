//! Layers: files of every kind, whiteouts, sparse files, and links that lead outside.

use std::fs;

use whelk_tests::Engine;
use whelk_tests::images::{self, Archive, sha256};
use whelk_tests::tar::{self, Entry, Kind, Tar};

#[test]
fn files_keep_their_metadata() {
    let engine = Engine::start();
    let long = format!("d/{}", "n".repeat(90));
    let root = images::small_root()
        .dir("d")
        .entry(&Entry {
            mode: 0o4755,
            owner: (1000, 1001),
            mtime: 1_000_000_000,
            content: b"suid",
            ..Entry::new("d/suid", Kind::File)
        })
        .entry(&Entry {
            mode: 0o1777,
            ..Entry::new("d/sticky", Kind::Directory)
        })
        .entry(&Entry {
            target: "d/suid",
            mode: 0o4755,
            owner: (1000, 1001),
            mtime: 1_000_000_000,
            ..Entry::new("d/second", Kind::HardLink)
        })
        .symlink("d/dangling", "/no/such/place")
        .fifo("d/pipe")
        .device("d/zero", 1, 5)
        .file(&long, "long")
        .file("d/ with space\u{e9}", "odd");
    engine.import("kinds", &[], &root.finish());
    let script = "cd /d; stat -c '%n %a %u:%g %h %Y' suid; stat -c %a sticky; readlink dangling; stat -c %F pipe; stat -c %t:%T zero; cat second n*; cat ' with space\u{e9}'";
    let output = engine.whelk(&[
        "run",
        "--rm",
        "--network",
        "none",
        "kinds",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(
        output.ok(),
        "suid 4755 1000:1001 2 1000000000\n1777\n/no/such/place\nfifo\n1:5\nsuidlongodd"
    );
}

#[test]
fn later_layers_hide_files_of_earlier_layers() {
    let engine = Engine::without_images(&[]);
    let layers = vec![
        images::small_root()
            .dir("d")
            .file("d/a", "1")
            .file("d/b", "1")
            .file("gone", "1")
            .dir("o")
            .file("o/old", "1")
            .dir("swap")
            .file("swap/x", "1")
            .finish(),
        Tar::new()
            .file("d/.wh.a", "")
            .file(".wh.gone", "")
            .dir("o")
            .file("o/.wh..wh..opq", "")
            .file("o/new", "2")
            .file("swap", "a file now")
            .finish(),
        Tar::new().file("d/a", "3").finish(),
    ];
    engine.load(&Archive::new("hides", layers).build());
    let output = engine.whelk(&[
        "run",
        "--rm",
        "--network",
        "none",
        "hides",
        "sh",
        "-c",
        "cat /d/a /d/b; ls /o /gone; cat /swap; echo; ls -a /d /o | grep wh",
    ]);
    let (out, err) = (output.out(), output.err());
    assert!(
        out.starts_with("31/o:\nnew\n") && out.contains("a file now"),
        "{out}"
    );
    assert!(
        err.contains("/gone: No such file or directory") && !out.contains(".wh."),
        "{out} {err}"
    );
}

#[test]
fn archives_with_parent_components_or_links_are_resolved_inside() {
    let engine = Engine::without_images(&[]);
    let layer = images::small_root()
        .file("/etc/absolute", "absolute")
        .hard_link("etc/linked", "/etc/absolute")
        .symlink("etc/above", "../../../../etc/absolute")
        .symlink("elsewhere", "/etc")
        .file("elsewhere/through", "through")
        .symlink("climbs", "../../etc")
        .file("climbs/up", "up")
        .hard_link("etc/linked-through", "elsewhere/through")
        .symlink("made", "/new/place")
        .file("made/deep/file", "made")
        .file("a/../b/c", "cleaned")
        .finish();
    let script = "cat /etc/absolute /etc/linked /etc/above /etc/through /etc/up /etc/linked-through /new/place/deep/file /b/c; readlink /climbs";
    let expected = "absoluteabsoluteabsolutethroughupthroughmadecleaned../../etc";
    engine.import("links", &[], &layer);
    engine.load(&Archive::new("loaded", vec![layer.clone()]).build());
    for image in ["links", "loaded"] {
        assert_eq!(
            engine
                .whelk(&[
                    "run",
                    "--rm",
                    "--network",
                    "none",
                    image,
                    "sh",
                    "-c",
                    script
                ])
                .ok(),
            expected,
            "{image}"
        );
    }
    // `save` reproduces the archive, although the store names its files differently.
    let saved = engine.http("GET", "/images/loaded/get", &[], b"").body;
    assert!(tar::file(&saved, &format!("blobs/sha256/{}", sha256(&layer))) == layer);
    for (what, layer) in [
        ("a name that climbs", Tar::new().file("../x", "x")),
        (
            "a link that climbs",
            Tar::new().file("x", "x").hard_link("y", "../x"),
        ),
        (
            "a loop",
            Tar::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/x", "x"),
        ),
        (
            "a file as a directory",
            Tar::new().file("a", "x").file("a/b", "x"),
        ),
    ] {
        let answer = engine.http(
            "POST",
            "/images/create?fromSrc=-",
            &[("Content-Type", "application/x-tar")],
            &layer.finish(),
        );
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
    }
}

#[test]
fn sparse_files_are_complete_in_every_format() {
    let engine = Engine::with_directories();
    let root = engine.scratch("root");
    let run = |program: &str, args: &[&str]| {
        let output = std::process::Command::new(program)
            .args(args)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    let archive = engine
        .scratch("archive")
        .join("root.tar")
        .display()
        .to_string();
    fs::write(&archive, images::small_root().finish()).unwrap();
    run("tar", &["-C", &root.display().to_string(), "-xf", &archive]);
    let file = fs::File::create(root.join("holes")).unwrap();
    file.set_len(5_000_001).unwrap();
    for (at, text) in [
        (0u64, "begin"),
        (1_000_000, "middle"),
        (3_000_000, "more"),
        (4_999_998, "end"),
    ] {
        std::os::unix::fs::FileExt::write_all_at(&file, text.as_bytes(), at).unwrap();
    }
    let expected = sha256(&fs::read(root.join("holes")).unwrap());
    for format in [
        "--format=gnu",
        "--sparse-version=0.0",
        "--sparse-version=0.1",
        "--sparse-version=1.0",
    ] {
        let posix = if format.starts_with("--sparse") {
            "--format=posix"
        } else {
            format
        };
        let layer = run(
            "tar",
            &[
                "-C",
                &root.display().to_string(),
                "-c",
                "-S",
                posix,
                format,
                ".",
            ],
        );
        assert!(
            layer.len() < 4_000_000,
            "{format}: the holes are not in the archive"
        );
        engine.import("imported", &[], &layer);
        engine.load(&Archive::new("loaded", vec![layer.clone()]).build());
        for image in ["imported", "loaded"] {
            let script = "busybox sha256sum /holes; stat -c '%s %b' /holes";
            let output = engine
                .whelk(&[
                    "run",
                    "--rm",
                    "--network",
                    "none",
                    image,
                    "sh",
                    "-c",
                    script,
                ])
                .ok();
            let words: Vec<&str> = output.split_whitespace().collect();
            assert_eq!(
                (words[0], words[2]),
                (expected.as_str(), "5000001"),
                "{format}, {image}"
            );
            assert!(
                words[3].parse::<u64>().unwrap() < 1000,
                "{format}, {image}: the holes are filled: {output}"
            );
        }
        let saved = engine.http("GET", "/images/loaded/get", &[], b"").body;
        assert!(
            tar::file(&saved, &format!("blobs/sha256/{}", sha256(&layer))) == layer,
            "{format}: not as it was"
        );
        // The parts of an image archive may have holes as well.
        let parts = engine.scratch("parts");
        for (name, content) in Archive::new("packed", vec![images::small_root().finish()]).parts() {
            let path = parts.join(&name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let packed = run(
            "tar",
            &[
                "-C",
                &parts.display().to_string(),
                "-c",
                "-S",
                posix,
                format,
                ".",
            ],
        );
        engine.load(&packed);
        engine.docker(&["rmi", "imported", "loaded", "packed"]).ok();
    }
}

#[test]
fn an_opaque_mark_on_the_root_of_a_layer_is_ignored() {
    let engine = Engine::without_images(&[]);
    let marked = Tar::new()
        .file(".wh..wh..opq", "")
        .file("new", "new")
        .finish();
    engine.load(&Archive::new("marked", vec![images::small_root().finish(), marked]).build());
    assert_eq!(
        engine
            .whelk(&["run", "--rm", "--network", "none", "marked", "cat", "/new"])
            .ok(),
        "new"
    );
    assert_eq!(
        engine
            .whelk(&[
                "run",
                "--rm",
                "--network",
                "none",
                "marked",
                "grep",
                "-c",
                "root",
                "/etc/passwd"
            ])
            .ok(),
        "1"
    );
}
