//! Volumes: lifetime, filling, mounting, copying, and volumes on disks of their own.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

mod copying;
mod disks;
mod filling;
mod lifetime;
mod mounting;

use std::fs;

use whelk_tests::{Cli, Engine, Program};

/// `run --rm FLAGS busybox sh -c SCRIPT`
#[track_caller]
fn sh(cli: Cli<'_>, flags: &[&str], script: &str) -> String {
    cli.sh(flags, script).ok()
}

#[track_caller]
fn volumes(cli: Cli<'_>) -> Vec<String> {
    cli.run(&["volume", "ls", "-q"])
        .ok()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// An image with content at /data, and /data and /vol declared as volumes.
fn load_image_with_volumes(engine: &Engine) {
    let cli = engine.cli(Program::Docker);
    let script = "mkdir -p /data/sub; echo hi >/data/file; ln /data/file /data/twin; ln -s file /data/link; chmod 750 /data; chown 33:44 /data";
    cli.run(&[
        "run",
        "--name",
        "maker",
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        script,
    ])
    .ok();
    let file = engine.scratch("image").join("files.tar");
    cli.run(&["export", "-o", &file.to_string_lossy(), "maker"])
        .ok();
    engine.import(
        "volimg",
        &["VOLUME /data", "VOLUME /vol", "CMD [\"sh\"]"],
        &fs::read(&file).unwrap(),
    );
    cli.run(&["rm", "maker"]).ok();
}

/// Puts an engine's volumes on a disk of `size` MiB, and restarts the engine. Returns `false` if the
/// kernel does not support the file system.
fn give_disk(engine: &Engine, size: u64, make: &[&str], options: &str) -> bool {
    let image = engine.scratch("disk").join("image");
    fs::File::create(&image)
        .unwrap()
        .set_len(size << 20)
        .unwrap();
    engine.kill9();
    let run = |program: &str, args: &[&str], more: [&std::path::Path; 2]| {
        let more = more.into_iter().filter(|path| !path.as_os_str().is_empty());
        std::process::Command::new(program)
            .args(args)
            .args(more)
            .output()
            .is_ok_and(|done| done.status.success())
    };
    let mounted = run(make[0], &make[1..], [&image, "".as_ref()])
        && run(
            "mount",
            &["-o", options],
            [&image, &engine.root().join("volumes")],
        );
    engine.restart();
    mounted
}

fn take_disk(engine: &Engine) {
    engine.kill9();
    assert!(
        std::process::Command::new("umount")
            .arg(engine.root().join("volumes"))
            .status()
            .unwrap()
            .success()
    );
    engine.restart();
}
