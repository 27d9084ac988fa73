//! Empty volumes get the image's content at their target.

use std::fs;

use serde_json::{Value, json};
use whelk_tests::tar::Tar;
use whelk_tests::{Engine, Program, skipped};

use super::{give_disk, load_image_with_volumes, sh, take_disk, volumes};

#[test]
fn an_empty_volume_gets_the_content_of_the_image() {
    let engine = Engine::start();
    load_image_with_volumes(&engine);
    engine.both(|cli| {
        let look = "cd /data && cat file link && stat -c '%a %u:%g' . && stat -c %h twin && ls -A";
        let expected = "hi\nhi\n750 33:44\n2\nfile\nlink\nsub\ntwin";
        let run = |flags: &[&str], script: &str| {
            cli.run(
                &[
                    &["run", "--rm", "--network", "none"],
                    flags,
                    &["volimg", "sh", "-c", script],
                ]
                .concat(),
            )
            .ok()
        };
        assert_eq!(run(&[], look), expected);
        assert!(
            volumes(cli).is_empty(),
            "--rm takes anonymous volumes along"
        );
        assert_eq!(run(&["-v", "full:/data"], look), expected);
        assert_eq!(
            run(&["-v", "full:/data"], "rm /data/file; ls -A /data"),
            "link\nsub\ntwin"
        );
        assert_eq!(
            run(&["-v", "full:/data"], "ls -A /data"),
            "link\nsub\ntwin",
            "what is not empty stays as it is"
        );
        assert_eq!(
            run(
                &["-v", "bare:/data:nocopy"],
                "ls -A /data; stat -c '%a %u' /data"
            ),
            "755 0"
        );
        assert_eq!(
            run(
                &["--mount", "source=bare2,target=/data,volume-nocopy"],
                "ls -A /data"
            ),
            ""
        );
        cli.run(&["volume", "rm", "full", "bare", "bare2"]).ok();
    });
}

#[test]
fn an_empty_subpath_gets_the_content_of_the_image() {
    let engine = Engine::start();
    load_image_with_volumes(&engine);
    engine.both(|cli| {
        sh(
            cli,
            &["-v", "parts:/d"],
            "mkdir -p /d/empty /d/full; touch /d/full/own; ln -s ../../../../tmp /d/out",
        );
        let look = |subpath: &str| {
            let mount = format!("source=parts,target=/data,volume-subpath={subpath}");
            cli.run(&[
                "run",
                "--rm",
                "--network",
                "none",
                "--mount",
                &mount,
                "volimg",
                "ls",
                "-A",
                "/data",
            ])
        };
        assert_eq!(look("empty").ok(), "file\nlink\nsub\ntwin");
        assert_eq!(
            sh(
                cli,
                &["-v", "parts:/d"],
                "stat -c '%a %u:%g' /d/empty; ls -A /d"
            ),
            "750 33:44\nempty\nfull\nout"
        );
        assert_eq!(look("full").ok(), "own");
        look("out").refuses(125, "path concatenation escapes the base directory");
        cli.run(&["volume", "rm", "parts"]).ok();
    });
}

#[test]
fn a_volume_of_an_image_may_have_a_relative_path() {
    let engine = Engine::start();
    let files = Tar::new().file("data/file", "of the image\n").finish();
    engine.import(
        "relative",
        &["VOLUME data", "VOLUME x/../y", "CMD [\"sh\"]"],
        &files,
    );
    engine.create("holder", &json!({"Image": "relative", "Cmd": ["sh"]}));
    let holder = engine.inspect("holder");
    let mut targets: Vec<&str> = holder["Mounts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|mount| mount["Destination"].as_str())
        .collect();
    targets.sort_unstable();
    assert_eq!(targets, ["/data", "/y"]);
    let source = holder["Mounts"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|mount| mount["Destination"] == "/data")
        .and_then(|mount| mount["Source"].as_str().map(str::to_owned))
        .unwrap();
    assert_eq!(
        fs::read_to_string(format!("{source}/file")).unwrap(),
        "of the image\n"
    );
}

#[test]
fn mounted_volumes_are_not_filled() {
    let engine = Engine::start();
    load_image_with_volumes(&engine);
    engine.both(|cli| {
        cli.run(&["create", "--name", "donor", "-v", "bare:/data", "busybox"])
            .ok();
        let shown = cli
            .run(&[
                "run",
                "--rm",
                "--network",
                "none",
                "--volumes-from",
                "donor",
                "volimg",
                "ls",
                "-A",
                "/data",
            ])
            .ok();
        assert_eq!(shown, "");
        cli.run(&["rm", "-v", "donor"]).ok();
        cli.run(&["volume", "rm", "bare"]).ok();
    });
}

#[test]
fn concurrent_starts_fill_an_empty_volume_once() {
    let engine = Engine::start();
    load_image_with_volumes(&engine);
    let body = |_: usize| json!({"Image": "volimg", "Cmd": ["cat", "/data/file"], "HostConfig": {"NetworkMode": "none", "Binds": ["race:/data"]}});
    let outcomes: Vec<(u16, Value)> = std::thread::scope(|scope| {
        let engine = &engine;
        let threads: Vec<_> = (0..8)
            .map(|n| {
                scope.spawn(move || {
                    engine.api(
                        "POST",
                        &format!("/containers/create?name=racer{n}"),
                        Some(&body(n)),
                    )
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(
        outcomes.iter().all(|(status, _)| *status == 201),
        "{outcomes:?}"
    );
    for n in 0..8 {
        assert_eq!(
            engine
                .cli(Program::Docker)
                .run(&["start", "-a", &format!("racer{n}")])
                .ok(),
            "hi"
        );
    }
}

#[test]
fn a_copy_shares_extents_on_btrfs() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    if !give_disk(&engine, 200, &["mkfs.btrfs", "-q"], "loop") {
        return skipped!("no btrfs can be made and mounted");
    }
    let taken = || {
        let disk = fs::File::open(engine.root().join("volumes")).unwrap();
        rustix::fs::syncfs(&disk).unwrap();
        let found = rustix::fs::fstatvfs(&disk).unwrap();
        ((found.f_blocks - found.f_bfree) * found.f_frsize) >> 20
    };
    sh(
        cli,
        &["-v", "data:/d"],
        "head -c 50000000 /dev/urandom >/d/big; echo first >/d/small",
    );
    let before = taken();
    assert!(before > 40, "{before}");
    cli.run(&["volume", "snapshot", "data", "saved"]).ok();
    cli.run(&["volume", "clone", "data", "twin"]).ok();
    let after = taken();
    assert!(after < before + 10, "from {before} to {after} MiB");
    // The result of one does not affect the others.
    sh(
        cli,
        &["-v", "data:/d"],
        "echo second >/d/small; head -c 1000 /dev/zero | dd of=/d/big conv=notrunc 2>/dev/null",
    );
    let same = "md5sum /d/big | cut -d' ' -f1; cat /d/small";
    let (saved, twin) = (
        sh(cli, &["-v", "saved:/d"], same),
        sh(cli, &["-v", "twin:/d"], same),
    );
    assert!(
        saved == twin && saved.ends_with("first") && saved != sh(cli, &["-v", "data:/d"], same)
    );
    cli.run(&["volume", "rm", "data", "saved", "twin"]).ok();
    take_disk(&engine);
}
