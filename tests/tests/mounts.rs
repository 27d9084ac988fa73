//! Files of the host in containers.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a panic with its place is all the error handling that a test needs")]

use std::fs;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use whelk_tests::{Engine, Program, eventually};

#[test]
fn a_bind_mount_shows_the_hosts_files_and_writes_through() {
    Engine::start().both(|cli| {
        let host = cli.engine().scratch(&format!("bind-{:?}", cli.program()));
        fs::write(host.join("in"), "from the host").unwrap();
        let path = host.display();
        assert_eq!(cli.sh(&["-v", &format!("{path}:/b")], "cat /b/in; echo back >/b/out").ok(), "from the host");
        assert_eq!(fs::read_to_string(host.join("out")).unwrap(), "back\n");
        assert_eq!(cli.sh(&["--mount", &format!("type=bind,src={path},dst=/deep/er/b")], "cat /deep/er/b/in").ok(), "from the host");
        assert_eq!(cli.sh(&["-v", &format!("{path}/in:/etc/one")], "cat /etc/one").ok(), "from the host");
        let mut entries: Vec<String> =
            fs::read_dir(&host).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        entries.sort();
        assert_eq!(entries, ["in", "out"], "mount points are made in the container, not on the host");
    });
}

#[test]
fn read_only_means_what_is_mounted_below_too() {
    let engine = Engine::start();
    let host = engine.scratch("ro");
    let below = engine.scratch("ro/below");
    mount("tmpfs", &below, "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>).unwrap();
    let forms = [("-v", format!("{}:/b:ro", host.display())), ("--mount", format!("type=bind,src={},dst=/b,readonly", host.display()))];
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
fn a_missing_source_is_made_for_v_and_refused_for_mount() {
    Engine::start().both(|cli| {
        let missing = cli.engine().scratch("missing").join(format!("{:?}", cli.program()));
        cli.sh(&["--mount", &format!("type=bind,src={},dst=/b", missing.display())], "true")
            .refuses(125, &format!("invalid mount config for type \"bind\": bind source path does not exist: {}", missing.display()));
        assert!(!missing.exists());
        cli.sh(&["-v", &format!("{}:/b", missing.display())], "touch /b/x").exits(0);
        assert!(missing.join("x").exists());
    });
}

#[test]
fn bad_mounts_are_refused() {
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
fn what_is_mounted_in_a_container_stays_there() {
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
