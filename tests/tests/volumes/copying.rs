//! Export, import, cloning and snapshots of volumes.

use std::fs;

use serde_json::json;
use whelk_tests::tar::Tar;
use whelk_tests::{Engine, Program};

use super::sh;

#[test]
fn volumes_can_be_exported_imported_and_cloned() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    let script = "cd /d; chmod 750 .; chown 33:44 .; mkdir sub; echo hi >sub/file; ln sub/file twin; ln -s ../../etc/x link; echo no >.wh.odd; chmod 4755 twin; date -d @1 >/dev/null; touch -d @1000000000 sub";
    sh(cli, &["-v", "data:/d", "--label", "x"], script);
    let look = "cd /d; stat -c '%a %u:%g' .; find . | sort; cat sub/file .wh.odd; readlink link; stat -c '%h %a' twin; stat -c %Y sub";
    let expected = sh(cli, &["-v", "data:/d"], look);
    let file = engine.scratch("archive").join("data.tar");
    cli.run(&["volume", "export", "-o", &file.to_string_lossy(), "data"])
        .ok();
    // A new volume from a file, and another from compressed input.
    let archive = fs::read(&file).unwrap();
    assert_eq!(
        cli.run(&["volume", "import", "second", &file.to_string_lossy()])
            .ok(),
        "second"
    );
    assert_eq!(sh(cli, &["-v", "second:/d"], look), expected);
    assert_eq!(
        cli.feed(
            &["volume", "import", "third"],
            &whelk_tests::images::gzip(&archive)
        )
        .ok(),
        "third"
    );
    assert_eq!(sh(cli, &["-v", "third:/d"], look), expected);
    // Import keeps other files and replaces those of the same name.
    sh(
        cli,
        &["-v", "third:/d"],
        "cd /d; rm -r sub; echo mine >own; echo other >twin",
    );
    cli.feed(&["volume", "import", "third", "-"], &archive).ok();
    assert_eq!(
        sh(cli, &["-v", "third:/d"], "cat /d/own /d/twin"),
        "mine\nhi"
    );
    // A failed import leaves no volume.
    cli.feed(&["volume", "import", "bad"], b"this is no archive")
        .refuses(1, "import into volume bad: read archive: unexpected EOF");
    cli.feed(
        &["volume", "import", "bad"],
        &Tar::new().file("../../escape", "x").finish(),
    )
    .refuses(1, "path with \"..\"");
    cli.feed(&["volume", "import", "-bad"], &archive)
        .refuses(125, "unknown shorthand flag: 'b' in -bad");
    cli.feed(&["volume", "import", "b"], &archive)
        .refuses(1, "volume name is too short");
    let out = format!("{}/bad.tar", engine.scratch_text("exported"));
    cli.run(&["volume", "export", "-o", &out, "bad"])
        .refuses(1, "no such volume");
    assert_eq!(
        fs::read_dir(engine.root().join("volumes")).unwrap().count(),
        3
    );
    // A volume is not changed before the whole archive has arrived.
    let longer = Tar::new().file("own", vec![b'x'; 5000]).finish();
    cli.feed(&["volume", "import", "third"], &longer[..2048])
        .refuses(
            1,
            "import into volume third: entry \"own\": 1536 of 5000 bytes: the archive is truncated",
        );
    assert_eq!(
        sh(cli, &["-v", "third:/d"], "cat /d/own; ls -A /d"),
        "mine\n.wh.odd\nlink\nown\nsub\ntwin"
    );
    cli.feed(&["volume", "import", "third"], &longer).ok();
    assert_eq!(
        sh(cli, &["-v", "third:/d"], "stat -c %s /d/own; rm /d/own"),
        "5000"
    );
    // Nor by an archive that is incomplete or empty, with or without a `Content-Length`.
    cli.feed(
        &["volume", "import", "bad"],
        &archive[..archive.len() - 1024],
    )
    .refuses(1, "the archive is truncated");
    cli.feed(&["volume", "import", "bad"], b"")
        .refuses(1, "the archive is truncated");
    let sent = engine.http(
        "POST",
        "/volumes/sent/import",
        &[("Content-Type", "application/x-tar")],
        &archive,
    );
    assert_eq!(
        (sent.status, sent.json()["Name"].as_str()),
        (200, Some("sent"))
    );
    assert_eq!(sh(cli, &["-v", "sent:/d"], look), expected);
    cli.run(&["volume", "rm", "sent"]).ok();
    // A volume that is in use is not changed.
    cli.up(
        "user",
        &["-v", "data:/d"],
        &[
            "sh",
            "-c",
            "while :; do date >/d/now; mv /d/now /d/then; done",
        ],
    );
    cli.feed(&["volume", "import", "data"], &archive)
        .refuses(1, "volume data is in use");
    // Its users keep running while it is copied, or are paused.
    assert_eq!(
        cli.run(&["volume", "clone", "--label", "a=b", "data", "twin"])
            .ok(),
        "twin"
    );
    assert_eq!(
        cli.run(&["volume", "clone", "--pause", "data", "still"])
            .ok(),
        "still"
    );
    assert!(
        whelk_tests::tar::read(&cli.run(&["volume", "export", "data"]).stdout)
            .iter()
            .any(|found| found.path.ends_with("file"))
    );
    assert_eq!(engine.state("user"), "running");
    cli.run(&["rm", "-f", "user"]).ok();
    assert_eq!(
        sh(
            cli,
            &["-v", "twin:/d"],
            "cat /d/sub/file; stat -c '%a %u:%g' /d"
        ),
        "hi\n750 33:44"
    );
    assert_eq!(engine.get("/volumes/twin")["Labels"], json!({"a": "b"}));
    cli.run(&["volume", "clone", "data", "twin"])
        .refuses(1, "a volume with the name twin already exists");
    cli.run(&["volume", "clone", "nosuch", "copy"])
        .refuses(1, "no such volume");
    // A failed export leaves no partial file.
    let place = engine.scratch("place");
    let refused = cli.run(&["volume", "export", "-o", &place.to_string_lossy(), "data"]);
    refused.refuses(1, "cannot write to a directory");
    assert!(!place.with_extension("part").exists());
    cli.run(&["volume", "clone", "data"])
        .refuses(1, "'whelk volume clone' requires 2 arguments");
    // A snapshot cannot be changed.
    assert_eq!(
        cli.run(&["volume", "snapshot", "data", "saved"]).ok(),
        "saved"
    );
    let named = cli.run(&["volume", "snapshot", "data"]).ok();
    let again = cli.run(&["volume", "snapshot", "data"]).ok();
    cli.run(&["volume", "rm", &again]).ok();
    assert!(named.starts_with("data-2"), "{named}");
    cli.sh(&["-v", "saved:/d"], "echo x >/d/own")
        .refuses(1, "Read-only file system");
    cli.sh(&["-v", "saved:/d"], "mount -o remount,rw /d")
        .refuses(1, "mount: permission denied");
    cli.feed(&["volume", "import", "saved"], &archive)
        .refuses(1, "is a snapshot");
    assert_eq!(
        engine.get("/volumes/saved")["Options"],
        json!({"snapshot-of": "data"})
    );
    cli.run(&["volume", "create", "-o", "snapshot-of=data", "forged"])
        .refuses(1, "invalid option");
    cli.run(&["volume", "clone", "saved", "again"]).ok();
    sh(cli, &["-v", "again:/d"], "echo x >/d/own");
    // A volume with its own file system is mounted during the operation.
    cli.run(&[
        "volume",
        "create",
        "-o",
        "type=tmpfs",
        "-o",
        "device=tmpfs",
        "memory",
    ])
    .ok();
    assert_eq!(
        whelk_tests::tar::read(&cli.run(&["volume", "export", "memory"]).stdout).len(),
        1
    );
    cli.feed(&["volume", "import", "memory"], &archive)
        .refuses(1, "which has content only while a container uses it");
    cli.run(&["volume", "import", "dir", "/"])
        .refuses(1, "read /: is a directory");
    // Filters match names by pattern.
    let named = |pattern: &str| {
        cli.run(&["volume", "ls", "-q", "-f", &format!("name={pattern}")])
            .ok()
    };
    assert_eq!(
        (named("^thi"), named("ird$"), named("^ird"), named("[")),
        ("third".into(), "third".into(), String::new(), String::new())
    );
    engine.kill9();
    engine.restart();
    assert_eq!(sh(cli, &["-v", "second:/d"], look), expected);
}
