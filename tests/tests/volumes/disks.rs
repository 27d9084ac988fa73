//! Block devices as volumes, limits of size, and disks that are full or read-only.

use std::fs;

use serde_json::json;
use whelk_tests::tar::Tar;
use whelk_tests::{Engine, Program, skipped};

use super::{give_disk, sh, take_disk, volumes};

#[test]
fn a_block_device_volume_is_mounted_while_used() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let image = engine.scratch("disk").join("image");
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let run = |program: &str, args: &[&str]| {
        let output = std::process::Command::new(program)
            .args(args)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let image = image.to_string_lossy();
    run("mkfs.ext4", &["-q", &image]);
    let device = run("losetup", &["-f", "--show", &image]);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let options = [
            "-o",
            "type=ext4",
            "-o",
            &format!("device={device}"),
            "-o",
            "o=noatime",
            "disk",
        ];
        cli.run(&[&["volume", "create"][..], &options].concat())
            .ok();
        let seen = sh(
            cli,
            &["-v", "disk:/d"],
            "echo kept >/d/file; grep ' /d ' /proc/mounts",
        );
        assert!(
            seen.starts_with(&device) && seen.contains(" ext4 ") && seen.contains("noatime"),
            "{seen}"
        );
        assert!(
            !fs::read_to_string("/proc/mounts")
                .unwrap()
                .contains(&device),
            "still mounted"
        );
        assert_eq!(
            sh(cli, &["-v", "disk:/d"], "cat /d/file; ls -d /d/lost+found"),
            "kept\n/d/lost+found"
        );
        cli.run(&["volume", "rm", "disk"]).ok();
        // The kernel gets a server's address, because it does not resolve names. No server listens here.
        cli.run(&[
            "volume",
            "create",
            "-o",
            "type=nfs",
            "-o",
            "o=addr=localhost,ro,soft",
            "-o",
            "device=:/x",
            "share",
        ])
        .ok();
        let refused = cli.sh(&["-v", "share:/d"], "true");
        refused.refuses(125, "failed to mount local volume: mount :/x:");
        let told = refused.err();
        assert!(
            ["addr=127.0.0.1,soft", "addr=::1,soft"]
                .iter()
                .any(|data| told.contains(data)),
            "{told}"
        );
        cli.run(&["volume", "rm", "share"]).ok();
    }));
    run("losetup", &["-d", &device]);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_volume_is_limited_to_its_size() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let volumes = engine.root().join("volumes");
    let mounted = give_disk(
        &engine,
        64,
        &["mkfs.ext4", "-q", "-O", "quota,project"],
        "loop,prjquota",
    );
    for wrong in ["0", "-1", "much"] {
        cli.run(&["volume", "create", "-o", &format!("size={wrong}"), "small"])
            .refuses(1, &format!("invalid size: '{wrong}'"));
    }
    let made = cli.run(&["volume", "create", "-o", "size=2m", "small"]);
    if !mounted {
        made.refuses(1, "create small: quota size requested but no quota support");
        assert_eq!(volumes.read_dir().unwrap().count(), 0);
        return skipped!("no ext4 with project quotas can be made and mounted");
    }
    assert_eq!(made.ok(), "small");
    let fill = "dd if=/dev/zero of=/d/big bs=1M count=8 2>&1 | tail -1; stat -c %s /d/big";
    // Directories count towards the limit.
    let filled = |volume: &str, script: &str| -> u64 {
        let said = sh(cli, &["-v", &format!("{volume}:/d")], script);
        said.lines()
            .last()
            .and_then(|size| size.parse().ok())
            .unwrap_or_else(|| panic!("{said}"))
    };
    let allowed = (2 << 20) - (64 << 10)..=2 << 20;
    assert!(allowed.contains(&filled("small", fill)));
    assert_eq!(filled("other", fill), 8 << 20, "another has no limit");
    assert_eq!(
        engine.get("/volumes/small")["Options"],
        json!({"size": "2m"})
    );
    // A copy has a limit of its own, and removed files do not count.
    engine
        .cli(Program::Whelk)
        .run(&["volume", "clone", "small", "copy"])
        .ok();
    assert!(allowed.contains(&filled("copy", &format!("rm /d/big; {fill}"))));
    for _ in 0..3 {
        cli.run(&["volume", "rm", "small"]).ok();
        cli.run(&["volume", "create", "-o", "size=2m", "small"])
            .ok();
        // A volume that was filled from the image is limited too.
        assert!(sh(cli, &["-v", "small:/etc"], "ls /etc").contains("passwd"));
        assert!(allowed.contains(&filled("small", fill)));
    }
    cli.run(&["volume", "rm", "small", "copy", "other"]).ok();
    take_disk(&engine);
}

#[test]
fn full_and_read_only_disks_are_reported_and_lose_nothing() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    engine.kill9();
    let disk = engine.root().join("volumes");
    let mount = |options: &str| {
        let done = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&disk)
            .status()
            .unwrap();
        assert!(done.success());
    };
    mount("size=1m,nr_inodes=40");
    engine.restart();
    sh(
        cli,
        &["-v", "full:/d"],
        "echo kept >/d/file; dd if=/dev/zero of=/d/big bs=64k 2>/dev/null; true",
    );
    // Directories can still be created, files cannot.
    let refused = cli.run(&["volume", "create", "more"]);
    refused.refuses(1, "no space left on device");
    assert_eq!(volumes(cli), ["full"]);
    assert_eq!(
        disk.read_dir().unwrap().count(),
        1,
        "something half-made is left"
    );
    assert_eq!(sh(cli, &["-v", "full:/d"], "cat /d/file"), "kept");
    cli.run(&["run", "--rm", "-v", "another:/d", "busybox", "true"])
        .refuses(125, "no space left on device");
    let whelk = engine.cli(Program::Whelk);
    whelk
        .run(&["volume", "clone", "full", "twin"])
        .refuses(1, "no space left on device");
    whelk
        .feed(
            &["volume", "import", "twin"],
            &Tar::new().file("x", vec![1; 1 << 20]).finish(),
        )
        .refuses(1, "no space left on device");
    assert_eq!(
        (volumes(cli), disk.read_dir().unwrap().count()),
        (vec!["full".to_owned()], 1)
    );
    sh(cli, &["-v", "full:/d"], "rm /d/big");
    cli.run(&["volume", "create", "more"]).ok();
    // On a read-only disk, existing data can be read and is kept.
    mount("remount,ro");
    cli.run(&["volume", "create", "third"])
        .refuses(1, "read-only file system");
    cli.run(&["volume", "rm", "more"])
        .refuses(1, "read-only file system");
    assert_eq!(volumes(cli), ["full", "more"]);
    assert_eq!(
        sh(
            cli,
            &["-v", "full:/d"],
            "cat /d/file; echo x 2>/dev/null >/d/file || echo no"
        ),
        "kept\nno"
    );
    let bind = format!("{}:/d", disk.join("made/here").display());
    cli.run(&["run", "--rm", "-v", &bind, "busybox", "true"])
        .refuses(125, "read-only file system");
    assert_eq!(engine.get("/containers/json?all=1"), json!([]));
    engine.kill9();
    engine.restart();
    assert_eq!(volumes(cli), ["full", "more"]);
    mount("remount,rw");
    cli.run(&["volume", "rm", "full", "more"]).ok();
    engine.kill9();
    assert!(
        std::process::Command::new("umount")
            .arg(&disk)
            .status()
            .unwrap()
            .success()
    );
    engine.restart();
}
