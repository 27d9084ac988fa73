//! Volumes from creation to removal: anonymous volumes, prune, lists, and engines that are killed.

use std::fs;

use serde_json::json;
use whelk_tests::{Engine, Program};

use super::{load_image_with_volumes, sh, volumes};

#[test]
fn data_survives_its_container() {
    let engine = Engine::start();
    engine.both(|cli| {
        sh(cli, &["-v", "data:/d"], "echo kept >/d/file");
        assert_eq!(
            sh(
                cli,
                &["-v", "data:/e:ro"],
                "cat /e/file; touch /e/x 2>&1 || true"
            ),
            "kept\ntouch: /e/x: Read-only file system"
        );
        assert_eq!(
            sh(
                cli,
                &["--mount", "type=volume,source=data,target=/m"],
                "cat /m/file"
            ),
            "kept"
        );
        assert_eq!(
            cli.run(&[
                "volume",
                "inspect",
                "-f",
                "{{.Driver}} {{.Scope}} {{.Name}}",
                "data"
            ])
            .ok(),
            "local local data"
        );
        cli.up("user", &["-v", "data:/d"], &["sleep", "600"]);
        let id = engine.inspect("user")["Id"].as_str().unwrap().to_owned();
        cli.run(&["volume", "rm", "data"])
            .refuses(1, &format!("remove data: volume is in use - [{id}]"));
        cli.run(&["volume", "rm", "-f", "data"])
            .refuses(1, "volume is in use");
        cli.run(&["rm", "-f", "user"]).ok();
        assert_eq!(cli.run(&["volume", "rm", "data"]).ok(), "data");
        assert_eq!(sh(cli, &["-v", "data:/d"], "ls /d"), "");
        cli.run(&["volume", "rm", "data"]).ok();
    });
}

#[test]
fn anonymous_volumes_are_removed_with_their_container() {
    let engine = Engine::start();
    load_image_with_volumes(&engine);
    engine.both(|cli| {
        cli.run(&[
            "run",
            "--name",
            "keeps",
            "--network",
            "none",
            "volimg",
            "true",
        ])
        .ok();
        assert_eq!(volumes(cli).len(), 2);
        let mounts = engine.inspect("keeps")["Mounts"].clone();
        assert_eq!(mounts[0]["Type"], "volume");
        assert_eq!(
            (
                &mounts[0]["Destination"],
                &mounts[0]["Mode"],
                &mounts[0]["RW"]
            ),
            (&json!("/data"), &json!(""), &json!(true))
        );
        cli.run(&["rm", "keeps"]).ok();
        assert_eq!(volumes(cli).len(), 2, "rm without -v keeps them");
        let pruned = cli.run(&["volume", "prune", "-f"]).ok();
        assert!(
            pruned.starts_with("Deleted Volumes:") && pruned.contains("Total reclaimed space: 7B"),
            "{pruned}"
        );
        cli.run(&[
            "create", "--name", "drops", "-v", "/anon", "-v", "named:/n", "volimg",
        ])
        .ok();
        assert_eq!(volumes(cli).len(), 4);
        cli.run(&["rm", "-v", "drops"]).ok();
        assert_eq!(volumes(cli), ["named"], "those with a name stay");
        cli.run(&["volume", "prune", "-f"]).ok();
        assert_eq!(volumes(cli), ["named"]);
        cli.run(&["volume", "prune", "-f", "--all"]).ok();
        assert!(volumes(cli).is_empty());
    });
}

#[test]
fn volumes_from_mounts_the_volumes_of_another_container() {
    let engine = Engine::start();
    engine.both(|cli| {
        let host = engine.scratch_text("host");
        cli.up(
            "first",
            &[
                "-v",
                "named:/n",
                "-v",
                "/anon",
                "-v",
                &format!("{host}:/host:ro"),
                "--tmpfs",
                "/t",
            ],
            &["sleep", "600"],
        );
        sh(
            cli,
            &["--volumes-from", "first"],
            "echo 1 >/n/x; echo 2 >/anon/y; [ ! -d /t ]; ! touch /host/z 2>/dev/null",
        );
        assert_eq!(
            cli.run(&["exec", "first", "cat", "/n/x", "/anon/y"]).ok(),
            "1\n2"
        );
        cli.sh(&["--volumes-from", "first:ro"], "touch /n/z")
            .refuses(1, "Read-only file system");
        let own = engine.scratch_text("own");
        assert_eq!(
            sh(
                cli,
                &["--volumes-from", "first", "-v", &format!("{own}:/n")],
                "ls /n"
            ),
            "",
            "what is given here wins"
        );
        cli.sh(&["--volumes-from", "nosuch"], "true")
            .refuses(125, "No such container: nosuch");
        cli.sh(&["--volumes-from", "first:foo"], "true")
            .refuses(125, "invalid mode: foo");
        // The anonymous volume is kept while a container uses it.
        cli.up("second", &["--volumes-from", "first"], &["sleep", "600"]);
        cli.run(&["rm", "-fv", "first"]).ok();
        assert_eq!(cli.run(&["exec", "second", "cat", "/anon/y"]).ok(), "2");
        cli.run(&["rm", "-fv", "second"]).ok();
        assert_eq!(volumes(cli), ["named"]);
        cli.run(&["volume", "rm", "named"]).ok();
    });
}

#[test]
fn a_volume_without_a_record_is_recovered() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.run(&[
        "volume",
        "create",
        "--label",
        "a=b",
        "--opt",
        "type=tmpfs",
        "--opt",
        "device=tmpfs",
        "memory",
    ])
    .ok();
    let before = engine.get("/volumes/memory");
    engine.kill9();
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}/store.db{suffix}", engine.root().display()));
    }
    engine.repair();
    engine.restart();
    assert_eq!(engine.get("/volumes/memory"), before);
    // A volume whose directory is missing is still listed.
    fs::rename(
        engine.root().join("volumes/memory"),
        engine.root().join("away"),
    )
    .unwrap();
    engine.kill9();
    engine.restart();
    assert_eq!(engine.get("/volumes/memory"), before);
    fs::rename(
        engine.root().join("away"),
        engine.root().join("volumes/memory"),
    )
    .unwrap();
    cli.run(&["volume", "rm", "memory"]).ok();
}

#[test]
fn volumes_survive_a_killed_engine() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.up(
        "user",
        &["-v", "data:/d", "-v", "/anon"],
        &["sh", "-c", "echo kept >/d/f; sleep 300"],
    );
    let before = engine.get("/volumes");
    engine.kill9();
    engine.restart();
    assert_eq!(engine.get("/volumes"), before);
    cli.run(&["volume", "rm", "data"])
        .refuses(1, "volume is in use");
    cli.run(&["rm", "-fv", "user"]).ok();
    assert_eq!(volumes(cli), ["data"]);
    // A directory without a record is kept.
    engine.kill9();
    fs::create_dir_all(engine.root().join("volumes/found/_data")).unwrap();
    fs::write(engine.root().join("volumes/found/_data/f"), "found").unwrap();
    engine.restart();
    assert_eq!(sh(cli, &["-v", "found:/f"], "cat /f/f"), "found");
    assert_eq!(sh(cli, &["-v", "data:/d"], "cat /d/f"), "kept");
}

#[test]
fn lists_filters_and_disk_usage() {
    let engine = Engine::start();
    engine.both(|cli| {
        cli.run(&["volume", "create", "--label", "a=b", "labeled"])
            .ok();
        sh(cli, &["-v", "used:/d"], "head -c 1000 /dev/zero >/d/f");
        cli.up("user", &["-v", "used:/d"], &["sleep", "600"]);
        let listed = |filter: &str| cli.run(&["volume", "ls", "-q", "-f", filter]).ok();
        assert_eq!(listed("label=a"), "labeled");
        assert_eq!(listed("dangling=true"), "labeled");
        assert_eq!(listed("dangling=false"), "used");
        assert_eq!(listed("name=use"), "used");
        cli.run(&["volume", "ls", "-f", "foo=bar"])
            .refuses(1, "invalid filter 'foo'");
        let usage = cli.run(&["system", "df"]).ok();
        let line = usage
            .lines()
            .find(|line| line.starts_with("Local Volumes"))
            .unwrap()
            .split_whitespace()
            .collect::<Vec<_>>();
        assert_eq!(
            line,
            ["Local", "Volumes", "2", "1", "1kB", "0B", "(0%)"],
            "{usage}"
        );
        assert!(cli.run(&["system", "df", "-v"]).ok().contains("labeled"));
        assert_eq!(
            cli.run(&["ps", "--format", "{{.Mounts}} {{.LocalVolumes}}"])
                .ok(),
            "used 1"
        );
        assert!(!cli.run(&["ps", "-q", "-f", "volume=used"]).ok().is_empty());
        cli.run(&["rm", "-f", "user"]).ok();
        cli.run(&["volume", "rm", "used", "labeled"]).ok();
    });
}
