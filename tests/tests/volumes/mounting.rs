//! How volumes and images are mounted: options, subpaths, ID mappings, and mounts that are refused.

use std::fs;

use serde_json::json;
use whelk_tests::tar::Tar;
use whelk_tests::{Engine, Program};

use super::{sh, volumes};

#[test]
fn subpaths_are_mounted_and_cannot_lead_outside() {
    let engine = Engine::start();
    engine.both(|cli| {
        sh(
            cli,
            &["-v", "data:/d"],
            "mkdir -p /d/in/deep; ln -s /etc /d/out; ln -s / /d/root; ln -s ../../../../etc /d/up; ln -s in/deep /d/link",
        );
        sh(
            cli,
            &["--mount", "source=data,target=/x,volume-subpath=in/deep"],
            "touch /x/f",
        );
        assert_eq!(sh(cli, &["-v", "data:/d"], "ls /d/in/deep"), "f");
        let link = ["--mount", "source=data,target=/x,volume-subpath=link"];
        assert_eq!(sh(cli, &link, "ls /x"), "f");
        let refused = |subpath: &str, text: &str| {
            // The clients take "no such file" for a missing program.
            let code = if text.contains("no such file") {
                127
            } else {
                125
            };
            cli.sh(
                &[
                    "--mount",
                    &format!("source=data,target=/x,volume-subpath={subpath}"),
                ],
                "cat /x/passwd",
            )
            .refuses(code, text);
        };
        refused("nosuch", "no such file or directory");
        refused("../..", "subpath must be a relative path within the volume");
        for link in ["out", "root", "root/in", "up"] {
            refused(link, "path concatenation escapes the base directory");
        }
        cli.run(&["volume", "rm", "data"]).ok();
    });
}

#[test]
fn a_volume_can_be_a_mounted_file_system() {
    let engine = Engine::start();
    let mounted = |engine: &Engine| {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table
            .lines()
            .filter(|line| line.contains(&format!("{}/volumes/", engine.root().display())))
            .count()
    };
    engine.both(|cli| {
        cli.run(&["volume", "create", "--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=1m,uid=1000", "memory"]).ok();
        cli.up("one", &["-v", "memory:/m"], &["sh", "-c", "echo shared >/m/f; sleep 600"]);
        assert_eq!(
            sh(cli, &["-v", "memory:/m"], "until cat /m/f 2>/dev/null; do :; done; stat -c %u /m; df -k /m | tail -1 | awk '{print $2}'"),
            "shared\n1000\n1024"
        );
        assert_eq!(mounted(&engine), 1);
        // It stays mounted while the engine does not run.
        engine.kill9();
        engine.restart();
        assert_eq!(cli.run(&["exec", "one", "cat", "/m/f"]).ok(), "shared");
        cli.run(&["rm", "-f", "one"]).ok();
        assert_eq!(mounted(&engine), 0, "and goes with its last user");
        assert_eq!(sh(cli, &["-v", "memory:/m"], "ls /m"), "");
        let host = engine.scratch("host");
        fs::write(host.join("file"), "of the host").unwrap();
        let device = format!("device={}", host.display());
        cli.run(&["volume", "create", "--opt", "type=none", "--opt", &device, "--opt", "o=bind", "bound"]).ok();
        assert_eq!(sh(cli, &["-v", "bound:/b"], "cat /b/file"), "of the host");
        cli.run(&["volume", "create", "--opt", "type=none", "--opt", "device=/nosuch", "--opt", "o=bind", "broken"]).ok();
        cli.sh(&["-v", "broken:/b"], "true").refuses(127, "failed to mount local volume");
        cli.run(&["volume", "rm", "memory", "bound", "broken"]).ok();
        assert_eq!(fs::read_to_string(host.join("file")).unwrap(), "of the host", "what was bound is not ours to delete");
    });
}

#[test]
fn mounts_of_the_host_stay_mounted() {
    use rustix::mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
    };
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    // A file system of the host's, shared as most are, with another one mounted into it while a
    // container uses it.
    let host = engine.scratch("host");
    mount("tmpfs", &host, "tmpfs", MountFlags::empty(), None).unwrap();
    mount_change(&host, MountPropagationFlags::SHARED).unwrap();
    let device = format!("device={}", host.display());
    cli.run(&[
        "volume",
        "create",
        "--opt",
        "type=none",
        "--opt",
        &device,
        "--opt",
        "o=rbind",
        "bound",
    ])
    .ok();
    cli.up("user", &["-v", "bound:/b"], &["sleep", "300"]);
    let inner = host.join("usb");
    fs::create_dir(&inner).unwrap();
    mount("tmpfs", &inner, "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write(inner.join("file"), "there").unwrap();
    cli.run(&["rm", "-f", "user"]).ok();
    cli.run(&["volume", "rm", "bound"]).ok();
    let found = fs::read_to_string(inner.join("file"));
    let _ = unmount(&inner, UnmountFlags::DETACH);
    unmount(&host, UnmountFlags::DETACH).unwrap();
    assert_eq!(found.unwrap(), "there");
}

#[test]
fn rejects_invalid_requests() {
    let engine = Engine::start();
    engine.both(|cli| {
        for (args, text) in [
            (&["create", "x"][..], "volume name is too short"),
            (
                &["create", "../xx"],
                "includes invalid characters for a local volume name",
            ),
            (
                &["create", "--opt", "type=tmpfs", "yy"],
                "missing required option: \"device\"",
            ),
            (
                &["create", "--opt", "foo=bar", "yy"],
                "invalid option: \"foo\"",
            ),
            (
                &["create", "--opt", "size=10m", "yy"],
                "quota size requested but no quota support",
            ),
            (
                &["create", "-d", "nosuch", "yy"],
                "plugin \"nosuch\" not found",
            ),
            (&["inspect", "nosuch"], "get nosuch: no such volume"),
            (&["rm", "nosuch"], "get nosuch: no such volume"),
        ] {
            cli.run(&[&["volume"], args].concat()).refuses(1, text);
        }
        for (flags, text) in [
            (&["-v", "named:/x:bogus"][..], "invalid mode: bogus"),
            (&["-v", "named:"], "empty section between colons"),
            (&["-v", "/a:/b:/c:ro"], "too many colons"),
            (&["-v", "named:rel"], "mount path must be absolute"),
            (
                &["-v", "named:/x:rprivate"],
                "field BindOptions must not be specified",
            ),
            (&["-v", "na me:/x"], "includes invalid characters"),
            (
                &["-v", "named:/a", "-v", "other:/a"],
                "Duplicate mount point: /a",
            ),
            (
                &["--mount", "type=volume,source=/abs,target=/x"],
                "includes invalid characters",
            ),
            (
                &["--mount", "type=volume,target=/x,readonly"],
                "must not set ReadOnly mode when using anonymous volumes",
            ),
            (
                &["--mount", "type=volume,target=/x,volume-subpath=a"],
                "must not set Subpath when using anonymous volumes",
            ),
            (
                &["--mount", "type=bind,source=/nosuchpath,target=/x"],
                "bind source path does not exist: /nosuchpath",
            ),
            (
                &["--volume-driver", "nosuch", "-v", "zz:/z"],
                "plugin \"nosuch\" not found",
            ),
        ] {
            cli.sh(flags, "true").refuses(125, text);
        }
        assert!(volumes(cli).is_empty(), "{:?}", volumes(cli));
    });
}

#[test]
fn an_image_can_be_mounted_in_a_container() {
    let engine = Engine::start();
    engine.import(
        "toolbox",
        &["CMD [\"sh\"]"],
        &Tar::new()
            .file("tools/hammer", "iron\n")
            .file("readme", "of tools\n")
            .finish(),
    );
    engine.both(|cli| {
        let run = |mount: &str, script: &str| cli.sh(&["--mount", mount], script);
        let whole = "type=image,src=toolbox,dst=/m";
        assert_eq!(run(whole, "cat /m/tools/hammer /m/readme; ls /m").ok(), "iron\nof tools\nreadme\ntools");
        run(whole, "echo x >/m/readme").refuses(1, "can't create /m/readme: Read-only file system");
        assert_eq!(run("type=image,src=toolbox,dst=/m,image-subpath=tools", "cat /m/hammer").ok(), "iron");
        assert_eq!(run("type=image,src=toolbox,dst=/m,image-subpath=tools/hammer", "cat /m").ok(), "iron");
        run("type=image,src=toolbox,dst=/m,image-subpath=saw", "true").refuses(127, "cannot access path saw: no such file or directory");
        run("type=image,src=toolbox,dst=/m,image-subpath=../x", "true").refuses(125, "subpath must be a relative path within the volume");
        run("type=image,dst=/m", "true").refuses(125, "field Source must not be empty");
        run("type=image,src=toolbox,dst=/m,bind-propagation=shared", "true").refuses(125, "cannot mix 'bind-*' options with mount type 'image'");
        cli.run(&["create", "--name", "reader", "--mount", whole, "busybox"]).ok();
        let reader = engine.inspect("reader");
        let mount = json!({"Type": "image", "Name": "toolbox", "Source": "", "Destination": "/m", "Mode": "", "RW": false, "Propagation": "rprivate"});
        assert_eq!(reader["Mounts"][0], mount);
        // It is in use as long as a container mounts it.
        cli.run(&["rmi", "toolbox"]).refuses(1, "is using its referenced image");
        cli.run(&["rm", "reader"]).ok();
    });
    let body = json!({"Image": "busybox", "HostConfig": {"Mounts": [{"Type": "image", "Source": "nosuch", "Target": "/m"}]}});
    let create = |version: &str| {
        engine.api(
            "POST",
            &format!("/{version}/containers/create"),
            Some(&body),
        )
    };
    assert_eq!(
        create("v1.48"),
        (404, json!({"message": "No such image: nosuch:latest"}))
    );
    assert_eq!(
        create("v1.47"),
        (
            400,
            json!({"message": "Mount type \"Image\" needs API v1.48 or newer"})
        )
    );
}

#[test]
fn files_in_an_id_mapped_mount_keep_their_owner() {
    use std::os::unix::fs::{MetadataExt, chown};
    let engine = Engine::start();
    let home = engine.scratch("home");
    fs::write(home.join("own"), "mine").unwrap();
    fs::write(home.join("roots"), "root's").unwrap();
    chown(home.join("own"), Some(1234), Some(4321)).unwrap();
    chown(&home, Some(1234), Some(4321)).unwrap();
    let cli = engine.cli(Program::Whelk);
    let mount = format!("type=bind,src={},dst=/home,map-user=auto", home.display());
    let run = |user: &str, script: &str| cli.sh(&["--user", user, "--mount", &mount], script);
    let owner = |name: &str| {
        fs::metadata(home.join(name))
            .map(|found| (found.uid(), found.gid()))
            .unwrap()
    };
    assert_eq!(
        run(
            "root",
            "stat -c '%u:%g' /home /home/own; echo new >/home/new; echo more >>/home/own"
        )
        .ok(),
        "0:0\n0:0"
    );
    assert_eq!((owner("new"), owner("own")), ((1234, 4321), (1234, 4321)));
    // A name of the image's, with a group of its own.
    assert_eq!(
        run(
            "daemon",
            "stat -c '%U' /home/own; echo x >/home/daemons; id -u"
        )
        .ok(),
        "daemon\n1"
    );
    assert_eq!(owner("daemons"), (1234, 4321));
    // Files of root outside belong to the overflow user inside and are not writable.
    assert_eq!(
        run(
            "root",
            "stat -c %u /home/roots; echo x 2>/dev/null >>/home/roots || echo no"
        )
        .ok(),
        "65534\nno"
    );
    // The owner's own id is not mapped: no file of root's can be created by it.
    run("root", "chown 1234 /home/new")
        .refuses(1, "chown: /home/new: Value too large for defined data type");
    run(
        "1234:4321",
        "echo as myself >/home/same && stat -c '%u:%g' /home/same",
    )
    .ok();
    assert_eq!(owner("same"), (1234, 4321));
    cli.run(&[
        "create",
        "--mount",
        &mount.replace("auto", "bogus"),
        "busybox",
    ])
    .refuses(1, "only \"auto\" is supported");
    cli.run(&["create", "--mount", &mount.replace("auto", ""), "busybox"])
        .refuses(125, "map-user requires a value: auto");
}

#[test]
fn mount_options_take_effect() {
    let engine = Engine::start();
    engine.both(|cli| {
        let mounted = |flags: &[&str], script: &str| sh(cli, flags, script);
        let options = mounted(
            &["--mount", "type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770"],
            "stat -c %a /t; df -k /t | tail -1",
        );
        assert!(
            options.starts_with("1770\n") && options.contains(" 1024 "),
            "{options}"
        );
        let options = mounted(
            &["--tmpfs", "/t:size=2m,mode=700"],
            "stat -c %a /t; df -k /t | tail -1",
        );
        assert!(
            options.starts_with("700\n") && options.contains(" 2048 "),
            "{options}"
        );
        let place = engine.scratch_text("place");
        // `-v` creates a missing source, `--mount` does not.
        let missing = format!("{place}/made-{:?}", cli.program());
        cli.sh(
            &["--mount", &format!("type=bind,src={missing},dst=/p")],
            "true",
        )
        .refuses(125, "bind source path does not exist");
        mounted(&["-v", &format!("{missing}:/p")], "true");
        assert!(std::path::Path::new(&missing).is_dir());
        cli.run(&["volume", "create", "plain"]).ok();
        cli.run(&["volume", "update", "plain", "--availability", "active"])
            .refuses(1, "can only update cluster volumes");
        cli.run(&["volume", "rm", "plain"]).ok();
    });
}
