//! What goes where, as recorded with Docker 28.5.2, with both clients.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use whelk_tests::tar::{self, Tar};
use whelk_tests::{Cli, Engine};

/// What the containers of these tests have in `/t`.
const FILES: &str = "mkdir -p /t/dir/sub /t/empty; echo x > /t/file; ln -s file /t/link; ln -s dir /t/dlink; ln -s nosuch /t/broken; ln -s /t/dir /t/adlink; mkfifo /t/fifo; echo deep > /t/dir/sub/g; echo f > /t/dir/f";

fn local_files(directory: &Path) {
    fs::create_dir_all(directory.join("dir/sub")).unwrap();
    fs::write(directory.join("file"), "a\n").unwrap();
    fs::write(directory.join("dir/f"), "b\n").unwrap();
    fs::write(directory.join("dir/sub/g"), "c\n").unwrap();
    for (link, target) in [("link", "file"), ("dlink", "dir"), ("broken", "nosuch")] {
        symlink(target, directory.join(link)).unwrap();
    }
    chown(directory.join("file"), Some(1000), Some(1001)).unwrap();
    fs::set_permissions(directory.join("file"), fs::Permissions::from_mode(0o4751)).unwrap();
}

#[track_caller]
fn check(cli: Cli<'_>, args: &[&str], expected: &str) {
    let output = cli.run(args);
    let err = output.err();
    // Docker's client sometimes logs that the engine was not interested in its archive.
    let mut lines = err.lines().filter(|line| !line.starts_with("time="));
    let text = lines.next_back().unwrap_or_default();
    let text = text
        .strip_prefix("Error response from daemon: ")
        .unwrap_or(text);
    assert_eq!(
        (text, output.code),
        (expected, i32::from(!expected.is_empty())),
        "{args:?}: {err}"
    );
}

#[test]
fn files_are_copied_into_containers() {
    let engine = Engine::start();
    let source = engine.scratch("source");
    local_files(&source);
    let source = source.display().to_string();
    let no_file = format!("lstat {source}/nosuch: no such file or directory");
    engine.both(|cli| {
        cli.up(
            "box",
            &[],
            &["sh", "-c", &format!("{FILES}; echo ready; sleep 600")],
        );
        engine.await_log("box", "ready");
        for (from, to, expected) in [
            ("file", "/t/new1", ""),
            ("file", "/t/file", ""),
            ("file", "/t/dir", ""),
            ("file", "/t/new2/", "no such directory"),
            (
                "file",
                "/t/nosuch/x",
                "Could not find the file /t/nosuch in container box",
            ),
            ("file", "/t/link", ""),
            ("file", "/t/dlink", ""),
            ("file", "/t/broken", ""),
            ("file", "/t/file/", "no such directory"),
            ("dir", "/t/new3", ""),
            ("dir", "/t/new3/", ""),
            ("dir/.", "/t/new4", ""),
            ("dir", "/t/empty", ""),
            ("dir", "/t/file", "cannot copy directory"),
            ("dir/.", "/t/file", "cannot copy directory"),
            ("link", "/t/l1", ""),
            ("dlink", "/t/l2", ""),
            ("dlink/", "/t/l3", ""),
            ("dlink/.", "/t/l4", ""),
            ("broken", "/t/l5", ""),
            ("nosuch", "/t/x", no_file.as_str()),
            ("file/", "/t/x", "not a directory"),
            ("dir", "/t/file/y", "extraction point is not a directory"),
            ("file", "/t/fifo", ""),
            ("file", "/t/adlink/q", ""),
            ("file", "", "no such directory"),
        ] {
            check(
                cli,
                &["cp", &format!("{source}/{from}"), &format!("box:{to}")],
                expected,
            );
        }
        check(
            cli,
            &["cp", "-L", &format!("{source}/link"), "box:/t/m1"],
            "",
        );
        check(
            cli,
            &["cp", "-L", &format!("{source}/dlink"), "box:/t/m2"],
            "",
        );
        check(
            cli,
            &["cp", "-L", &format!("{source}/broken"), "box:/t/m3"],
            &no_file,
        );
        let list = "cd /t; find . | sort | while read f; do stat -c '%N %a %u' $f; done";
        let listed = cli.run(&["exec", "box", "sh", "-c", list]).ok();
        for line in [
            "./new1 4751 1000",
            "./file 4751 1000",
            "./dir/file 4751 1000",
            "./dir/q 4751 1000",
            "./nosuch 4751 1000",
            "./new3/f 644 0",
            "./new3/dir/sub/g 644 0",
            "./new4/sub/g 644 0",
            "./empty/dir/f 644 0",
            "./fifo 4751 1000",
            "./l3/f 644 0",
            "./l4/f 644 0",
            "./m1 4751 1000",
            "./m2/f 644 0",
        ] {
            assert!(
                listed.replace('\'', "").lines().any(|found| found == line),
                "{line} in {listed}"
            );
        }
        for (link, target) in [
            ("link", "file"),
            ("broken", "nosuch"),
            ("l1", "file"),
            ("l2", "dir"),
            ("l5", "nosuch"),
        ] {
            let read = cli
                .run(&["exec", "box", "readlink", &format!("/t/{link}")])
                .ok();
            assert_eq!(read, target);
        }
    });
}

#[test]
fn files_are_copied_out_of_containers() {
    let engine = Engine::start();
    engine.both(|cli| {
        let place = engine.scratch(&format!("{:?}", cli.program()));
        fs::create_dir(place.join("have")).unwrap();
        fs::write(place.join("old"), "old").unwrap();
        symlink("old", place.join("l")).unwrap();
        symlink("have", place.join("dl")).unwrap();
        symlink("missing", place.join("bl")).unwrap();
        cli.run(&["run", "--name", "box", "--network", "none", "busybox", "sh", "-c", FILES]).ok();
        let shown = place.display().to_string();
        let no_directory = format!("invalid output path: directory \"{shown}/no\" does not exist");
        for (from, to, expected) in [
            ("/t/file", "n1", ""),
            ("/t/file", "have", ""),
            ("/t/file", "old", ""),
            ("/t/file", "no/x", no_directory.as_str()),
            ("/t/file", "n2/", "no such directory"),
            ("/t/dir", "n3", ""),
            ("/t/dir/.", "n4", ""),
            ("/t/dir", "have", ""),
            ("/t/dir/.", "have", ""),
            ("/t/dir", "old", "cannot copy directory"),
            ("/t/link", "n5", ""),
            ("/t/dlink/", "n7", ""),
            ("/t/dlink/.", "n8", ""),
            ("/t/broken", "n9", ""),
            ("/t/file", "dl", ""),
            ("/t/file", "bl", ""),
            ("/t/nosuch", "z", "Could not find the file /t/nosuch in container box"),
            ("/t/file/", "z", "lstat /t/file/: not a directory"),
            ("/t/file/x", "z", "lstat /t/file/x: not a directory"),
            ("/t/fifo", "ff", ""),
        ] {
            check(cli, &["cp", &format!("box:{from}"), &format!("{shown}/{to}")], expected);
        }
        check(cli, &["cp", "-L", "box:/t/link", &format!("{shown}/m1")], "");
        check(cli, &["cp", "-L", "box:/t/dlink", &format!("{shown}/m2")], "");
        check(cli, &["cp", "-a", "box:/t/file", &format!("{shown}/m3")], "");
        check(
            cli,
            &["cp", "box:/t/file", "/dev/null"],
            "invalid output path: \"/dev/null\" must be a directory or a regular file: got a device",
        );
        for (path, content) in [
            ("n1", "x\n"),
            ("have/file", "x\n"),
            ("old", "x\n"),
            ("missing", "x\n"),
            ("n3/sub/g", "deep\n"),
            ("n4/sub/g", "deep\n"),
            ("have/dir/f", "f\n"),
            ("have/f", "f\n"),
            ("n7/f", "f\n"),
            ("n8/f", "f\n"),
            ("m1", "x\n"),
            ("m2/f", "f\n"),
            ("m3", "x\n"),
        ] {
            assert_eq!(fs::read_to_string(place.join(path)).unwrap(), content, "{path}");
        }
        assert_eq!(fs::read_link(place.join("n5")).unwrap(), Path::new("file"));
        assert_eq!(fs::read_link(place.join("n9")).unwrap(), Path::new("nosuch"));
        // The whole root, without the file systems that only processes have.
        check(cli, &["cp", "box:/", &format!("{shown}/root")], "");
        assert!(place.join("root/bin/busybox").exists());
        assert_eq!(fs::read_dir(place.join("root/proc")).unwrap().count(), 0);
    });
}

#[test]
fn archives_are_streamed() {
    let engine = Engine::start();
    engine.both(|cli| {
        cli.run(&[
            "run",
            "--name",
            "box",
            "--network",
            "none",
            "busybox",
            "sh",
            "-c",
            FILES,
        ])
        .ok();
        let names = |path: &str| {
            let output = cli.run(&["cp", &format!("box:{path}"), "-"]);
            assert_eq!(output.code, 0, "{path}: {}", output.err());
            let found = tar::read(&output.stdout);
            found
                .into_iter()
                .map(|entry| entry.path)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(names("/t/file"), "file");
        assert_eq!(names("/t/dir"), "dir dir/f dir/sub dir/sub/g");
        assert_eq!(names("/t/dir/."), " f sub sub/g");
        assert_eq!(names("/t/dlink/"), "dlink dlink/f dlink/sub dlink/sub/g");
        assert_eq!(names("/t/dlink"), "dlink");
        assert_eq!(names("../t/dir/../file"), "file");
        let archive = Tar::new().dir("in").file("in/a", "1").finish();
        cli.feed(&["cp", "-", "box:/t"], &archive).ok();
        assert_eq!(names("/t/in"), "in in/a");
        cli.feed(&["cp", "-", "box:/t/file"], &archive)
            .refuses(1, "destination \"box:/t/file\" must be a directory");
    });
}

#[test]
fn arguments_are_checked() {
    let engine = Engine::start();
    engine.both(|cli| {
        for (args, expected) in [
            (["a", "b"], "must specify at least one container source"),
            (
                ["a:/x", "b:/y"],
                "copying between containers is not supported",
            ),
            (["", "b:/y"], "source can not be empty"),
            (["x", ""], "destination can not be empty"),
            (["nosuch:/x", "."], "No such container: nosuch"),
            (["/etc/passwd", "nosuch:/x"], "No such container: nosuch"),
        ] {
            check(cli, &["cp", args[0], args[1]], expected);
        }
        cli.run(&["cp", "x"]).refuses(1, "requires 2 arguments");
    });
}

/// `-a` gives the files to the container's user.
#[test]
fn owners_are_kept_or_those_of_the_container() {
    let engine = Engine::start();
    let source = engine.scratch("source");
    local_files(&source);
    let file = source.join("file").display().to_string();
    engine.both(|cli| {
        cli.run(&["create", "--name", "box", "--user", "1500:1600", "busybox"])
            .ok();
        for (flags, owner) in [(&["cp"][..], (1000, 1001)), (&["cp", "-a"], (1500, 1600))] {
            cli.run(&[flags, &[file.as_str(), "box:/x"]].concat()).ok();
            let archive = cli.run(&["cp", "box:/x", "-"]).stdout;
            let found = tar::read(&archive);
            assert_eq!((found[0].owner, found[0].mode), (owner, 0o4751));
        }
    });
}
