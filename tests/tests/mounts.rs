//! Bind mounts and tmpfs mounts.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use whelk_tests::{Engine, Program, eventually};

#[test]
fn a_bind_mount_shows_the_hosts_files_and_writes_through() {
    Engine::start().both(|cli| {
        let host = cli.engine().scratch(&format!("bind-{:?}", cli.program()));
        fs::write(host.join("in"), "from the host").unwrap();
        let path = host.display();
        assert_eq!(
            cli.sh(
                &["-v", &format!("{path}:/b")],
                "cat /b/in; echo back >/b/out"
            )
            .ok(),
            "from the host"
        );
        assert_eq!(fs::read_to_string(host.join("out")).unwrap(), "back\n");
        assert_eq!(
            cli.sh(
                &["--mount", &format!("type=bind,src={path},dst=/deep/er/b")],
                "cat /deep/er/b/in"
            )
            .ok(),
            "from the host"
        );
        assert_eq!(
            cli.sh(&["-v", &format!("{path}/in:/etc/one")], "cat /etc/one")
                .ok(),
            "from the host"
        );
        let mut entries: Vec<String> = fs::read_dir(&host)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        entries.sort();
        assert_eq!(
            entries,
            ["in", "out"],
            "mount points are made in the container, not on the host"
        );
    });
}

#[test]
fn read_only_includes_submounts() {
    let engine = Engine::start();
    let host = engine.scratch("ro");
    let below = engine.scratch("ro/below");
    mount(
        "tmpfs",
        &below,
        "tmpfs",
        MountFlags::empty(),
        None::<&std::ffi::CStr>,
    )
    .unwrap();
    let forms = [
        ("-v", format!("{}:/b:ro", host.display())),
        (
            "--mount",
            format!("type=bind,src={},dst=/b,readonly", host.display()),
        ),
    ];
    let mut outputs = Vec::new();
    for (flag, value) in &forms {
        for script in ["touch /b/x", "touch /b/below/x"] {
            for program in [Program::Docker, Program::Whelk] {
                outputs.push(engine.cli(program).sh(&[flag, value], script));
            }
        }
    }
    unmount(&below, UnmountFlags::empty()).unwrap();
    for output in outputs {
        output.refuses(1, "Read-only file system");
    }
}

#[test]
fn a_missing_source_is_created_for_v_and_rejected_for_mount() {
    Engine::start().both(|cli| {
        let missing = cli
            .engine()
            .scratch("missing")
            .join(format!("{:?}", cli.program()));
        cli.sh(
            &[
                "--mount",
                &format!("type=bind,src={},dst=/b", missing.display()),
            ],
            "true",
        )
        .refuses(
            125,
            &format!(
                "invalid mount config for type \"bind\": bind source path does not exist: {}",
                missing.display()
            ),
        );
        assert!(!missing.exists());
        cli.sh(&["-v", &format!("{}:/b", missing.display())], "touch /b/x")
            .exits(0);
        assert!(missing.join("x").exists());
    });
}

#[test]
fn rejects_invalid_mounts() {
    Engine::start().both(|cli| {
        let check = |flags: &[&str], text: &str| {
            cli.sh(flags, "true").refuses(125, text);
            eventually("nothing is left of it", || cli.run(&["ps", "-aq"]).ok().is_empty().then_some(()));
        };
        check(&["-v", "/tmp:/b:bogus"], "invalid mode: bogus");
        check(&["-v", "/tmp:/"], "invalid volume specification: '/tmp:/': invalid mount config for type \"bind\": invalid specification: destination can't be '/'");
        check(&["-v", "/tmp:/x", "-v", "/var:/x"], "Duplicate mount point: /x");
        check(&["--mount", "type=bogus,dst=/x"], "invalid mount config for type \"bogus\": mount type unknown");
        check(&["--mount", "type=bind,dst=/x"], "invalid mount config for type \"bind\": field Source must not be empty");
        check(&["--tmpfs", "rel"], "invalid mount path: 'rel' mount path must be absolute");
        check(&["--tmpfs", "/x:bogus"], "invalid tmpfs option \"bogus\"");
    });
}

#[test]
fn mounts_of_a_container_do_not_propagate_to_the_host() {
    Engine::start().both(|cli| {
        let host = cli.engine().scratch("inside");
        cli.up(
            "mounts",
            &["--privileged", "-v", &format!("{}:/b", host.display())],
            &["sh", "-c", "mkdir -p /b/m && mount -t tmpfs none /b/m && touch /b/m/x && echo done; exec sleep 600"],
        );
        cli.engine().await_log("mounts", "done");
        assert!(!host.join("m/x").exists());
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours: Vec<&str> = table.lines().filter(|line| line.contains(cli.engine().name()) && !line.contains("/netns/")).collect();
        assert!(ours.is_empty(), "nothing of a running container's files is mounted on the host: {ours:?}");
    });
}

#[test]
fn mounts_are_ordered_by_depth() {
    Engine::start().both(|cli| {
        // A volume or tmpfs on /etc does not hide the engine's own files, nor one on a directory
        // another below it.
        for flag in [["--tmpfs", "/etc"], ["-v", "/etc"]] {
            let seen = cli
                .sh(
                    &flag,
                    "grep -c localhost /etc/hosts; grep -c . /etc/resolv.conf; cat /etc/hostname",
                )
                .ok();
            let lines: Vec<&str> = seen.lines().collect();
            assert!(
                lines.len() == 3 && lines[0] != "0" && lines[1] != "0" && lines[2].len() == 12,
                "{flag:?}: {seen}"
            );
        }
        // Also in a read-only tmpfs, which is made read-only last.
        let seen = cli
            .sh(
                &["--tmpfs", "/etc:ro"],
                "grep -c localhost /etc/hosts; touch /etc/x 2>&1; true",
            )
            .ok();
        assert!(
            seen.ends_with("touch: /etc/x: Read-only file system") && !seen.starts_with('0'),
            "{seen}"
        );
        assert_eq!(
            cli.sh(&["-v", "/sbin", "--init"], "cat /proc/1/comm").ok(),
            "docker-init"
        );
        let host = cli.engine().scratch(&format!("deep-{:?}", cli.program()));
        let below = format!("{}:/a/b", host.display());
        fs::write(host.join("in"), "deep").unwrap();
        assert_eq!(
            cli.sh(&["-v", &below, "--tmpfs", "/a"], "cat /a/b/in").ok(),
            "deep"
        );
        // A mount on /dev replaces everything that the engine would create there.
        assert_eq!(
            cli.sh(
                &["-v", "/dev:/dev"],
                "stat -f -c %T /dev/pts; [ /dev/null -ef /dev/null ] && echo whole"
            )
            .ok(),
            "devpts\nwhole"
        );
    });
}

#[test]
fn a_tmpfs_has_the_mode_of_the_hidden_directory() {
    Engine::start().both(|cli| {
        let flags = [
            "--tmpfs",
            "/root",
            "--tmpfs",
            "/run",
            "--tmpfs",
            "/tmp",
            "--tmpfs",
            "/new",
            "--tmpfs",
            "/home:mode=710",
        ];
        let look = "stat -c '%a %n' /root /run /tmp /new /home";
        let expected = "700 /root\n755 /run\n1777 /tmp\n1777 /new\n710 /home";
        let create = ["create", "--name", "modes", "--network", "none"];
        cli.run(&[&create[..], &flags, &["busybox", "sh", "-c", look]].concat())
            .ok();
        for _ in 0..2 {
            assert_eq!(cli.run(&["start", "-a", "modes"]).ok(), expected);
        }
    });
}

/// A mount that is shared, or not, in the engine's mount namespace, which is the case's own.
struct HostMount(std::path::PathBuf);

impl HostMount {
    fn new(path: std::path::PathBuf, propagation: MountPropagationFlags) -> Self {
        mount(
            "tmpfs",
            &path,
            "tmpfs",
            MountFlags::empty(),
            None::<&std::ffi::CStr>,
        )
        .unwrap();
        let mount = Self(path);
        mount_change(&mount.0, propagation).unwrap();
        mount
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn shared_mounts_propagate_to_the_host() {
    let engine = Engine::start();
    engine.both(|cli| {
        let shared = HostMount::new(engine.scratch("shared"), MountPropagationFlags::SHARED);
        let alone = HostMount::new(engine.scratch("alone"), MountPropagationFlags::PRIVATE);
        let (shared, alone) = (&shared.0, &alone.0);
        for (mode, reaches) in [
            ("shared", true),
            ("rshared", true),
            ("slave", false),
            ("rslave", false),
            ("rprivate", false),
        ] {
            let source = format!("{}:/x:{mode}", shared.display());
            cli.sh(
                &["--privileged", "-v", &source],
                "mkdir -p /x/m && mount -t tmpfs inner /x/m && touch /x/m/f",
            )
            .ok();
            assert_eq!(shared.join("m/f").exists(), reaches, "{mode}");
            if reaches {
                unmount(shared.join("m"), UnmountFlags::DETACH).unwrap();
            }
        }
        // Mounts on the host propagate into the container.
        for (mode, arrives) in [("shared", true), ("slave", true), ("rprivate", false)] {
            let source = format!(
                "type=bind,src={},dst=/x,bind-propagation={mode}",
                shared.display()
            );
            cli.up("sees", &["--mount", &source], &["sleep", "600"]);
            let line = cli
                .run(&["exec", "sees", "grep", " /x ", "/proc/self/mountinfo"])
                .ok();
            assert_eq!(
                (line.contains("shared:"), line.contains("master:")),
                (mode == "shared", mode == "slave"),
                "{line}"
            );
            fs::create_dir_all(shared.join("late")).unwrap();
            let late = HostMount::new(shared.join("late"), MountPropagationFlags::PRIVATE);
            fs::write(late.0.join("f"), "").unwrap();
            assert_eq!(
                cli.run(&["exec", "sees", "ls", "/x/late"]).ok(),
                if arrives { "f" } else { "" },
                "{mode}"
            );
            drop(late);
            cli.run(&["rm", "-f", "sees"]).ok();
        }
        // No other mount of the container propagates to the host.
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!table.contains("/run/rootfs"), "{table}");
        for (mode, what) in [
            ("shared", "shared"),
            ("rshared", "shared"),
            ("slave", "shared or slave"),
            ("rslave", "shared or slave"),
        ] {
            let place = alone.display();
            // The engine's own directory is elsewhere: what is below it may always be a slave.
            let expected =
                format!("path {place} is mounted on {place} but it is not a {what} mount");
            cli.sh(&["-v", &format!("{place}:/x:{mode}")], "true")
                .refuses(125, &expected);
        }
    });
}

#[test]
fn binds_around_the_engines_directory_follow_what_it_unmounts() {
    let engine = Engine::start();
    engine.both(|cli| {
        let root = engine.root().display().to_string();
        let parent = engine.root().parent().unwrap().display().to_string();
        let binds = [format!("{root}:/a"), format!("{parent}:/b"), "/:/c".to_owned(), "/tmp:/d".to_owned()];
        let mut args = vec!["create", "--name", "looks"];
        binds.iter().for_each(|bind| args.extend(["-v", bind]));
        cli.run(&[&args[..], &["busybox", "true"]].concat()).ok();
        let mounts = engine.inspect("looks")["Mounts"].as_array().unwrap().clone();
        for mount in &mounts {
            let expected = if mount["Destination"] == "/d" { "rprivate" } else { "rslave" };
            assert_eq!(mount["Propagation"], expected, "{mount}");
        }
        cli.run(&["start", "-a", "looks"]).ok();
        cli.run(&["create", "-v", &format!("{parent}:/b:private"), "busybox"]).refuses(
            1,
            &format!("must use either propagation mode \"rslave\" or \"rshared\" when mount source is within the daemon root, daemon root: {root:?}"),
        );
    });
}

#[test]
fn mount_points_of_the_engine_are_not_changes_of_the_container() {
    let engine = Engine::start();
    let look = "stat -c '%a %s' /.dockerenv; readlink /etc/mtab; grep -c ' / overlay' /etc/mtab";
    engine.both(|cli| {
        assert_eq!(cli.sh(&[], look).ok(), "755 0\n/proc/mounts\n1");
        let id = cli.up("kept", &[], &["sleep", "600"]);
        let upper = engine.root().join("containers").join(id).join("upper");
        assert_eq!(
            fs::read_dir(&upper).unwrap().count(),
            0,
            "a start leaves nothing in the container's own layer"
        );
    });
    // Directories of an image keep their metadata.
    let cli = engine.cli(Program::Docker);
    cli.run(&[
        "run",
        "--name",
        "maker",
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        "chmod 750 /etc; chown 3:4 /etc",
    ])
    .ok();
    let file = engine.scratch("image").join("files.tar");
    cli.run(&["export", "-o", &file.to_string_lossy(), "maker"])
        .ok();
    engine.import("odd", &["CMD [\"sh\"]"], &fs::read(&file).unwrap());
    let run = |image: &str, script: &str| cli.run(&["run", "--rm", image, "sh", "-c", script]).ok();
    assert_eq!(
        run("odd", "stat -c '%a %u:%g' /etc; cat /etc/hostname | wc -c"),
        "750 3:4\n13"
    );
    assert_eq!(run("odd", look), "755 0\n/proc/mounts\n1");
    // The init layer is removed with its image.
    let layers = || fs::read_dir(engine.root().join("layers")).unwrap().count();
    let before = layers();
    cli.run(&["rm", "-f", "maker"]).ok();
    cli.run(&["rmi", "odd"]).ok();
    eventually("the layer to go", || (layers() == before - 1).then_some(()));
}
