//! Volumes: data that outlives its containers, and everything that keeps it where it belongs.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

use std::fs;

use serde_json::{Value, json};
use whelk_tests::tar::Tar;
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

#[test]
fn data_outlives_its_container() {
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
        cli.up("user", &["-v", "data:/d"], &["sleep", "60"]);
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
fn an_empty_volume_gets_what_the_image_has_there() {
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
fn anonymous_volumes_go_with_whom_they_were_made_for() {
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
fn volumes_of_other_containers_can_be_used() {
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
            &["sleep", "60"],
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
        // The anonymous one lives as long as anybody uses it.
        cli.up("second", &["--volumes-from", "first"], &["sleep", "60"]);
        cli.run(&["rm", "-fv", "first"]).ok();
        assert_eq!(cli.run(&["exec", "second", "cat", "/anon/y"]).ok(), "2");
        cli.run(&["rm", "-fv", "second"]).ok();
        assert_eq!(volumes(cli), ["named"]);
        cli.run(&["volume", "rm", "named"]).ok();
    });
}

#[test]
fn an_empty_part_of_a_volume_gets_what_the_image_has_there() {
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
        look("out").refuses(127, "no such file or directory");
        cli.run(&["volume", "rm", "parts"]).ok();
    });
}

#[test]
fn what_another_container_mounts_is_not_filled() {
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
fn a_part_of_a_volume_can_be_mounted_and_nothing_outside() {
    let engine = Engine::start();
    engine.both(|cli| {
        sh(
            cli,
            &["-v", "data:/d"],
            "mkdir -p /d/in/deep; ln -s /etc /d/out; ln -s ../../../../etc /d/up",
        );
        sh(
            cli,
            &["--mount", "source=data,target=/x,volume-subpath=in/deep"],
            "touch /x/f",
        );
        assert_eq!(sh(cli, &["-v", "data:/d"], "ls /d/in/deep"), "f");
        let refused = |subpath: &str, text: &str| {
            // Command lines take "no such file" for a program that is not there.
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
        // Links are followed inside the volume only, where these lead to nothing.
        refused("out", "no such file or directory");
        refused("up", "no such file or directory");
        cli.run(&["volume", "rm", "data"]).ok();
    });
}

#[test]
fn a_volume_can_be_a_file_system_of_its_own() {
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
        cli.up("one", &["-v", "memory:/m"], &["sh", "-c", "echo shared >/m/f; sleep 60"]);
        assert_eq!(
            sh(cli, &["-v", "memory:/m"], "until cat /m/f 2>/dev/null; do :; done; stat -c %u /m; df -k /m | tail -1 | awk '{print $2}'"),
            "shared\n1000\n1024"
        );
        assert_eq!(mounted(&engine), 1);
        // It stays while the engine is away.
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
fn what_the_host_has_mounted_stays_mounted() {
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
fn a_volume_whose_record_is_lost_comes_back_as_it_was() {
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
    // And one whose directory is not there is still known.
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
fn volumes_survive_an_engine_that_is_killed() {
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
    // A directory that no record knows is data all the same.
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
        cli.up("user", &["-v", "used:/d"], &["sleep", "60"]);
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

#[test]
fn what_cannot_be_is_refused() {
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
fn many_start_with_one_empty_volume_at_once() {
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
fn files_of_an_image_are_read_by_another_container() {
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
        // It is in use as long as there is a container that reads it.
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
fn files_in_a_mapped_mount_belong_to_their_owner_outside() {
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
    // What is root's outside is nobody's inside, and nobody's to write.
    assert_eq!(
        run(
            "root",
            "stat -c %u /home/roots; echo x 2>/dev/null >>/home/roots || echo no"
        )
        .ok(),
        "65534\nno"
    );
    // The owner's own id leads nowhere inside: nothing of root's is made through it.
    run("root", "chown 1234 /home/new").fails(1);
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
fn the_content_of_volumes_goes_out_in_and_over() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    let script = "cd /d; chmod 750 .; chown 33:44 .; mkdir sub; echo hi >sub/file; ln sub/file twin; ln -s ../../etc/x link; echo no >.wh.odd; chmod 4755 twin; date -d @1 >/dev/null; touch -d @1000000000 sub";
    sh(cli, &["-v", "data:/d", "--label", "x"], script);
    let look = "cd /d; stat -c '%a %u:%g' .; find . | sort; cat sub/file .wh.odd; readlink link; stat -c '%h %a' twin; stat -c %Y sub";
    let expected = sh(cli, &["-v", "data:/d"], look);
    let file = engine.scratch("archive").join("data.tar");
    cli.run(&["volume", "export", "-o", &file.to_string_lossy(), "data"])
        .ok();
    // A new volume, from a file; another from what comes in compressed.
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
    // Beside what is there, in the place of what has its name.
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
    // What goes wrong leaves no volume.
    cli.feed(&["volume", "import", "bad"], b"this is no archive")
        .fails(1);
    cli.feed(
        &["volume", "import", "bad"],
        &Tar::new().file("../../escape", "x").finish(),
    )
    .refuses(1, "path with \"..\"");
    cli.feed(&["volume", "import", "-bad"], &archive).fails(125);
    cli.feed(&["volume", "import", "b"], &archive)
        .refuses(1, "volume name is too short");
    let out = format!("{}/bad.tar", engine.scratch_text("exported"));
    cli.run(&["volume", "export", "-o", &out, "bad"])
        .refuses(1, "no such volume");
    assert_eq!(
        fs::read_dir(engine.root().join("volumes")).unwrap().count(),
        3
    );
    // What is there stays as it is until the whole of what comes for it is there.
    let longer = Tar::new().file("own", vec![b'x'; 5000]).finish();
    cli.feed(&["volume", "import", "third"], &longer[..2048])
        .fails(1);
    assert_eq!(
        sh(cli, &["-v", "third:/d"], "cat /d/own; ls -A /d"),
        "mine\n.wh.odd\nlink\nown\nsub\ntwin"
    );
    cli.feed(&["volume", "import", "third"], &longer).ok();
    assert_eq!(
        sh(cli, &["-v", "third:/d"], "stat -c %s /d/own; rm /d/own"),
        "5000"
    );
    // Nor does what ends too early, or is nothing at all; a client may say beforehand how long it
    // is.
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
    // Not under those who use it.
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
    // They may go on while it is copied, or wait for that.
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
    // What cannot take the place of what is there leaves nothing beside it.
    let place = engine.scratch("place");
    let refused = cli.run(&["volume", "export", "-o", &place.to_string_lossy(), "data"]);
    refused.refuses(1, "cannot write to a directory");
    assert!(!place.with_extension("part").exists());
    cli.run(&["volume", "clone", "data"])
        .refuses(1, "'whelk volume clone' requires 2 arguments");
    // A snapshot stays as it was.
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
        .fails(1);
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
    // One that has its own file system is mounted for as long as it takes.
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
    // Names are found by patterns.
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

/// Gives an engine's volumes a disk of their own, of so many MiB; `false` where the kernel has no
/// such file system. Runs the engine anew.
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

#[test]
fn grammars_of_mounts_do_what_they_say() {
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
        // `-v` makes a missing source, `--mount` does not.
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
            .fails(1);
        cli.run(&["volume", "rm", "plain"]).ok();
    });
}

#[test]
fn a_block_device_is_a_volume_while_containers_run() {
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
        // Of a server's, which nobody is here, the kernel is told the address: it knows no names.
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
fn a_copy_shares_its_data_where_the_file_system_can() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    if !give_disk(&engine, 200, &["mkfs.btrfs", "-q"], "loop") {
        return;
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
    // What becomes of one is not the others' matter.
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

#[test]
fn a_volume_takes_no_more_of_the_disk_than_it_may() {
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
        return;
    }
    assert_eq!(made.ok(), "small");
    let fill = "dd if=/dev/zero of=/d/big bs=1M count=8 2>&1 | tail -1; stat -c %s /d/big";
    // Directories count as well.
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
    // A copy may take as much; each for itself, and what is removed leaves nothing that counts.
    engine
        .cli(Program::Whelk)
        .run(&["volume", "clone", "small", "copy"])
        .ok();
    assert!(allowed.contains(&filled("copy", &format!("rm /d/big; {fill}"))));
    for _ in 0..3 {
        cli.run(&["volume", "rm", "small"]).ok();
        cli.run(&["volume", "create", "-o", "size=2m", "small"])
            .ok();
        // Also one that has got what the image has there.
        assert!(sh(cli, &["-v", "small:/etc"], "ls /etc").contains("passwd"));
        assert!(allowed.contains(&filled("small", fill)));
    }
    cli.run(&["volume", "rm", "small", "copy", "other"]).ok();
    take_disk(&engine);
}

#[test]
fn a_full_disk_and_one_that_cannot_be_written_are_told_and_lose_nothing() {
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
    // Directories may still be made, files not.
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
    // Read only: what is there can be read, and stays.
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
