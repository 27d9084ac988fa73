//! Devices by name (`--device VENDOR/CLASS=NAME`) and by what they can do (`--gpus`): specifications,
//! what a container gets, and hooks.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{FileType, Mode, makedev, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use whelk_tests::processes::{is_alive, status_field};
use whelk_tests::{Engine, Program, eventually};

/// A device number that no driver has: opening it gives ENXIO if the container may, and EPERM if not.
const MAJOR: u32 = 240;

/// Starts an engine that reads specifications from two directories of its own, and writes these into
/// the first one.
#[track_caller]
fn engine_with(files: &[(&str, &str)]) -> Engine {
    let engine = Engine::start();
    let directories = ["static", "dynamic"].map(|name| engine.scratch_text(name));
    for (name, content) in files {
        fs::write(Path::new(&directories[0]).join(name), content).unwrap();
    }
    engine.configure(&json!({"cdi-spec-dirs": directories}));
    engine.terminate();
    engine.restart();
    engine
}

/// A specification of the devices `vendor.com/class=NAME` with these edits each, in YAML.
fn spec(devices: &[(&str, &str)]) -> String {
    let devices: String = devices
        .iter()
        .map(|(name, edits)| format!("- name: {name}\n  containerEdits:\n    {edits}\n"))
        .collect();
    format!("cdiVersion: \"1.1.0\"\nkind: vendor.com/class\ndevices:\n{devices}")
}

/// Writes a program that runs a script.
#[track_caller]
fn program(directory: &Path, name: &str, script: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

#[test]
fn a_device_consists_of_nodes_mounts_variables_and_groups() {
    let engine = engine_with(&[]);
    let scratch = engine.scratch("host");
    let node = scratch.join("node");
    mknodat(
        rustix::fs::CWD,
        &node,
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o600),
        makedev(MAJOR, 7),
    )
    .unwrap();
    fs::write(scratch.join("library"), "content").unwrap();
    let (node, library) = (node.display(), scratch.join("library"));
    let library = library.display();
    let content = format!(
        r#"{{"cdiVersion": "1.0.0", "kind": "vendor.com/class", "containerEdits": {{"env": ["ALL=1", "B=2"]}}, "devices": [
          {{"name": "one", "containerEdits": {{
            "env": ["A=1"], "additionalGids": [77],
            "deviceNodes": [
              {{"path": "/dev/vendor/one", "hostPath": "{node}", "fileMode": 416, "permissions": "r"}},
              {{"path": "/dev/two", "type": "c", "major": {MAJOR}, "minor": 8, "uid": 5, "gid": 6}},
              {{"path": "/dev/none", "type": "c", "major": {MAJOR}, "minor": 9, "permissions": "none"}}
            ],
            "mounts": [{{"hostPath": "{library}", "containerPath": "/usr/lib/vendor/library", "options": ["ro", "nosuid", "bind"]}}]
          }}}}]}}"#
    );
    fs::write(engine.scratch("static").join("a.json"), content).unwrap();
    let script = "echo $ALL $A $B; stat -c '%n %t:%T %a %u:%g' /dev/vendor/one /dev/two
        cat /usr/lib/vendor/library; echo; echo x >/usr/lib/vendor/library; id -G
        for file in vendor/one two none; do head -c1 /dev/$file; done
        echo 1 >/dev/vendor/one; echo 2 >/dev/two";
    let expected = "1 1 2\n/dev/vendor/one f0:7 640 0:0\n/dev/two f0:8 666 5:6\ncontent\n0 10 77\n\
        sh: can't create /usr/lib/vendor/library: Read-only file system\n\
        head: /dev/vendor/one: No such device or address\nhead: /dev/two: No such device or address\n\
        head: /dev/none: Operation not permitted\nsh: can't create /dev/vendor/one: Operation not permitted\n\
        sh: can't create /dev/two: No such device or address";
    engine.both(|cli| {
        let flags = ["--device", "vendor.com/class=one", "-e", "B=1"];
        let output = cli.sh(&flags, script);
        assert_eq!((output.out() + &output.err()).trim(), expected);
        // Nodes without an owner are the user's.
        let owned = cli.sh(
            &["--device", "vendor.com/class=one", "-u", "12:34"],
            "stat -c %u:%g /dev/vendor/one /dev/two",
        );
        assert_eq!(owned.ok(), "12:34\n5:6");
        // A path is no name, and both can be given.
        let both = cli.sh(
            &[
                "--device",
                "vendor.com/class=one",
                "--device",
                "/dev/null:/dev/x",
            ],
            "ls -d /dev/x /dev/two",
        );
        assert_eq!(both.ok(), "/dev/two\n/dev/x");
        cli.up(
            "named",
            &["--device", "vendor.com/class=one"],
            &["sleep", "600"],
        );
        assert_eq!(
            engine.inspect("named")["HostConfig"]["DeviceRequests"],
            json!([{"Driver": "cdi", "Count": 0, "DeviceIDs": ["vendor.com/class=one"], "Capabilities": null, "Options": null}])
        );
        // Found again at each start.
        engine.kill9();
        engine.restart();
        cli.run(&["restart", "-t", "0", "named"]).ok();
        assert_eq!(cli.run(&["exec", "named", "ls", "/dev/two"]).ok(), "/dev/two");
    });
}

#[test]
fn nodes_in_mounted_directories_stay_the_hosts() {
    let engine = engine_with(&[(
        "a.yaml",
        &spec(&[(
            "one",
            &format!(
                "deviceNodes: [{{path: /dev/host/old, type: c, major: {MAJOR}, minor: 8}}, {{path: /dev/host/new, type: c, major: {MAJOR}, minor: 9}}, \
                 {{path: /dev/own, type: c, major: {MAJOR}, minor: 9}}]"
            ),
        )]),
    )]);
    let scratch = engine.scratch("host");
    let (number, mode) = (makedev(MAJOR, 7), Mode::from_raw_mode(0o640));
    let node = scratch.join("old");
    mknodat(
        rustix::fs::CWD,
        &node,
        FileType::CharacterDevice,
        mode,
        number,
    )
    .unwrap();
    std::os::unix::fs::chown(&node, Some(3), Some(4)).unwrap();
    let state = || {
        let found = fs::symlink_metadata(&node).unwrap();
        (
            found.ino(),
            found.mode(),
            found.rdev(),
            found.uid(),
            found.gid(),
        )
    };
    let before = state();
    let volume = format!("{}:/dev/host", scratch.display());
    engine.both(|cli| {
        let _ = fs::remove_file(scratch.join("new"));
        let run = |volume: &str, script: &str| {
            let flags = [
                "--device",
                "vendor.com/class=one",
                "-u",
                "12:34",
                "-v",
                volume,
            ];
            cli.sh(&flags, script).ok()
        };
        let script = "cd /dev; stat -c '%n %t:%T %a %u:%g' host/old host/new own";
        let expected = "host/old f0:7 640 3:4\nhost/new f0:9 666 12:34\nown f0:9 666 12:34";
        assert_eq!(run(&volume, script), expected);
        // What is there already is not written.
        assert_eq!(run(&format!("{volume}:ro"), script), expected);
        assert_eq!(state(), before);
        // A file in the place of a device.
        let file = format!("{}:/dev/own", node.display());
        assert_eq!(
            cli.sh(
                &[
                    "--device",
                    "vendor.com/class=one",
                    "-v",
                    &volume,
                    "-v",
                    &file,
                    "-u",
                    "12"
                ],
                "stat -c '%t:%T %u' /dev/own",
            )
            .ok(),
            "f0:7 3"
        );
        assert_eq!(state(), before);
    });
}

#[test]
fn info_lists_the_devices_and_what_is_wrong_with_specifications() {
    let good = spec(&[("b", "env: [A=1]"), ("a", "env: [A=1]")]);
    let engine = engine_with(&[
        ("good.yaml", &good),
        ("wrong.yaml", "cdiVersion: 9.0.0"),
        ("ignored.txt", "{"),
    ]);
    let info = engine.get("/info");
    let directories = ["static", "dynamic"].map(|name| engine.scratch_text(name));
    assert_eq!(info["CDISpecDirs"], json!(directories));
    assert_eq!(
        info["DiscoveredDevices"],
        json!([{"Source": "cdi", "ID": "vendor.com/class=a"}, {"Source": "cdi", "ID": "vendor.com/class=b"}])
    );
    let warning = info["Warnings"][0].as_str().unwrap();
    let file = format!("{}/wrong.yaml", directories[0]);
    assert!(
        warning.starts_with(&format!(
            "CDI: Error associated with spec file {file}: failed to load CDI Spec failed to parse CDI Spec {file:?}: invalid CDI Spec: invalid version \"9.0.0\""
        )),
        "{warning}"
    );
    assert_eq!(engine.get("/v1.49/info").get("DiscoveredDevices"), None);
    let block = |program| {
        let text = engine.cli(program).run(&["info"]).out();
        let lines = text.lines().skip_while(|line| !line.contains("CDI spec"));
        lines.take(6).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(block(Program::Whelk), block(Program::Docker));
    assert_eq!(block(Program::Whelk)[4], "  cdi: vendor.com/class=a");
    let format = ["info", "--format", "{{json .DiscoveredDevices}}"];
    assert_eq!(engine.whelk(&format).ok(), engine.docker(&format).ok());

    engine.configure(&json!({"cdi-spec-dirs": directories, "features": {"cdi": false}}));
    engine.terminate();
    engine.restart();
    let info = engine.get("/info");
    assert_eq!(
        (&info["CDISpecDirs"], info.get("DiscoveredDevices")),
        (&json!([]), None)
    );
    engine.both(|cli| {
        cli.sh(&["--device", "vendor.com/class=a"], "").refuses(
            125,
            "CDI device injection failed: no CDI specification directories specified",
        );
    });
}

#[test]
fn devices_that_cannot_be_given_are_refused() {
    let content = spec(&[
        ("rdt", "intelRdt: {closID: a}"),
        ("net", "netDevices: [{hostInterfaceName: eth0, name: eth0}]"),
        (
            "gone",
            "deviceNodes: [{path: /dev/x, hostPath: /dev/no-such}]",
        ),
        ("bad", "mounts: [{hostPath: /no-such, containerPath: /x}]"),
        ("twice", "env: [A=1]"),
    ]);
    let engine = engine_with(&[
        ("a.yaml", &content),
        ("b.yaml", &spec(&[("twice", "env: [A=2]")])),
        ("huge.yaml", &"#".repeat(5 << 20)),
    ]);
    let bomb: String = (1..30)
        .map(|level| format!("a{level}: &a{level} [*a{0}, *a{0}]\n", level - 1))
        .collect();
    fs::write(
        engine.scratch("static").join("bomb.yaml"),
        format!("a0: &a0 x\n{bomb}"),
    )
    .unwrap();
    let fifo = engine.scratch("static").join("fifo.yaml");
    let mode = Mode::from_raw_mode(0o600);
    mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
    engine.both(|cli| {
        for (name, expected) in [
            ("rdt", "failed to inject devices: intelRdt is not supported"),
            ("net", "failed to inject devices: netDevices are not supported"),
            (
                "gone",
                "failed to inject devices: failed to stat CDI host device \"/dev/no-such\": no such file or directory",
            ),
            ("twice", "unresolvable CDI devices vendor.com/class=twice"),
            ("none", "unresolvable CDI devices vendor.com/class=none"),
        ] {
            let device = format!("vendor.com/class={name}");
            // The clients read this off the text.
            let code = if expected.ends_with("no such file or directory") {
                127
            } else {
                125
            };
            cli.sh(&["--device", &device], "")
                .refuses(code, &format!("CDI device injection failed: {expected}"));
        }
        let missing = cli.sh(&["--device", "vendor.com/class=bad"], "").fails(127);
        assert!(missing.contains("/no-such: no such file or directory"), "{missing}");
    });
    let warnings = engine.get("/info")["Warnings"].to_string();
    for expected in [
        "conflicting device",
        "too large, with its aliases replaced",
        "larger than 4194304 bytes",
        "fifo.yaml: not a regular file",
    ] {
        assert!(warnings.contains(expected), "{expected}: {warnings}");
    }
    let create = |request: serde_json::Value| {
        let body = json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none", "DeviceRequests": [request]}});
        let id = engine.create("requests", &body);
        let (status, error) = engine.api("POST", &format!("/containers/{id}/start"), None);
        engine.whelk(&["rm", "-f", &id]).ok();
        (status, error["message"].clone())
    };
    assert_eq!(
        create(json!({"Driver": "cdi", "Count": 1})),
        (400, json!("unexpected count in CDI device request"))
    );
    assert_eq!(
        create(json!({"Driver": "cdi", "Options": {"a": "b"}})),
        (400, json!("unexpected options in CDI device request"))
    );
    assert_eq!(
        create(json!({"Driver": "x", "Capabilities": [["a", "b"], ["c"]]})),
        (
            400,
            json!("could not select device driver \"x\" with capabilities: [[a b] [c]]")
        )
    );
}

#[test]
fn hooks_run_in_the_places_that_the_specification_says() {
    let engine = engine_with(&[]);
    let scratch = engine.scratch("host");
    let log = scratch.join("log");
    // As the hooks of NVIDIA's toolkit do, it reads the configuration of the bundle.
    let record = program(
        &scratch,
        "record",
        &format!(
            "state=$(cat); bundle=$(echo \"$state\" | sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/')
            status=$(echo \"$state\" | sed 's/.*\"status\":\"\\([^\"]*\\)\".*/\\1/')
            root=$(sed 's/.*\"root\":{{\"path\":\"\\([^\"]*\\)\".*/\\1/' $bundle/config.json 2>/dev/null)
            case $1 in createContainer) echo made >$root/made; readlink /proc/self/ns/net >$root/net;; esac
            echo $1 $status $A >>{}",
            log.display()
        ),
    );
    let names = [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ];
    let mut hooks: Vec<String> = names
        .map(|name| {
            format!("{{hookName: {name}, path: {record}, args: [record, {name}], env: [A=1]}}")
        })
        .into();
    // In the container, with its files.
    hooks.push(
        "{hookName: startContainer, path: /bin/sh, args: [sh, -c, 'echo started >/started']}"
            .into(),
    );
    let edits = format!("hooks: [{}]", hooks.join(", "));
    let slow = program(&scratch, "slow", "sleep 60 & wait");
    let failing = program(&scratch, "failing", "echo no such thing >&2; exit 3");
    let hook = |name: &str, path: &str, timeout: u32| {
        format!("hooks: [{{hookName: {name}, path: {path}, timeout: {timeout}}}]")
    };
    let content = spec(&[
        ("all", &edits),
        ("slow", &hook("createContainer", &slow, 1)),
        ("failing", &hook("createRuntime", &failing, 60)),
        ("late", &hook("poststart", &failing, 60)),
        ("last", &hook("poststop", &slow, 1)),
        ("absent", &hook("createContainer", "/no/such/hook", 60)),
    ]);
    fs::write(engine.scratch("static").join("hooks.yaml"), content).unwrap();
    engine.both(|cli| {
        let _ = fs::remove_file(&log);
        let output = cli.sh(
            &["--device", "vendor.com/class=all"],
            "cat /made /started; test \"$(cat /net)\" = \"$(readlink /proc/self/ns/net)\" && echo same",
        );
        assert_eq!(output.ok(), "made\nstarted\nsame");
        let expected = "prestart creating 1\ncreateRuntime creating 1\ncreateContainer creating 1\npoststart running 1\npoststop stopped 1\n";
        eventually("all hooks run", || {
            let text = fs::read_to_string(&log).ok();
            text.filter(|text| text == expected)
        });
        for (device, expected) in [
            ("slow", format!("hook {slow}: timed out")),
            ("failing", format!("hook {failing}: exit status: 3: no such thing")),
            ("late", format!("hook {failing}: exit status: 3: no such thing")),
            ("absent", "hook /no/such/hook: no such file or directory".into()),
        ] {
            let device = format!("vendor.com/class={device}");
            let output = cli.sh(&["--device", &device], "sleep 60");
            assert!(
                output.code > 120 && output.err().contains(&expected),
                "{device}: {} {}",
                output.code,
                output.err()
            );
        }
        // The end is reported nevertheless.
        cli.sh(&["--device", "vendor.com/class=last"], "exit 7")
            .exits(7);
    });
}

#[test]
fn a_shim_that_is_killed_during_a_hook_leaves_nothing() {
    let engine = engine_with(&[]);
    let scratch = engine.scratch("host");
    let hook = program(
        &scratch,
        "hook",
        &format!(
            "test -e {0}/fast || {{ echo $$ >{0}/hangs; exec sleep 60; }}",
            scratch.display()
        ),
    );
    let edits = format!("hooks: [{{hookName: poststart, path: {hook}}}]");
    fs::write(
        engine.scratch("static").join("hooks.yaml"),
        spec(&[("slow", &edits)]),
    )
    .unwrap();
    let cli = engine.cli(Program::Docker);
    let id = cli
        .run(&[
            "create",
            "--name",
            "held",
            "--device",
            "vendor.com/class=slow",
            "busybox",
            "sleep",
            "600",
        ])
        .ok();
    let mut starting = cli.spawn(&["start", "held"]);
    let pid: i32 = eventually("the hook runs", || {
        let text = fs::read_to_string(scratch.join("hangs")).ok()?;
        text.trim().parse().ok()
    });
    let shim = status_field(pid, "PPid").unwrap().parse().unwrap();
    kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
    assert_ne!(starting.finish().code, 0);
    eventually("the cgroup is gone", || {
        let find = ["/sys/fs/cgroup", "-maxdepth", "6", "-name", &id];
        let found = Command::new("find").args(find).output().unwrap();
        found.stdout.is_empty().then_some(())
    });
    eventually("the hook is killed", || (!is_alive(pid)).then_some(()));
    fs::write(scratch.join("fast"), "").unwrap();
    cli.run(&["start", "held"]).ok();
    assert_eq!(cli.run(&["exec", "held", "echo", "on"]).ok(), "on");
}

#[test]
fn gpus_come_from_their_specification_or_the_toolkits_hook() {
    let scratch = whelk_tests::Scratch::new("gpus");
    let programs = scratch.directory("bin");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let engine = Engine::with_env(&[("PATH", &path)]);
    let directory = engine.scratch_text("static");
    engine.configure(&json!({"cdi-spec-dirs": [directory]}));
    engine.terminate();
    engine.restart();
    engine.both(|cli| {
        for (gpus, capabilities) in [
            ("all", "[[gpu]]"),
            ("\"capabilities=compute,utility\"", "[[compute utility gpu]]"),
        ] {
            cli.sh(&["--gpus", gpus], "").refuses(
                125,
                &format!("could not select device driver \"\" with capabilities: {capabilities}"),
            );
        }
        cli.sh(&["--gpus", "driver=other"], "").refuses(
            125,
            "could not select device driver \"other\" with capabilities: [[gpu]]",
        );
        cli.sh(&["--gpus", "1025"], "").refuses(
            125,
            "device request for 1025 devices: at most 1024 are possible",
        );
        cli.sh(&["--gpus", "x"], "").refuses(
            125,
            "invalid argument \"x\" for \"--gpus\" flag: invalid count (x): value must be either \"all\" or an integer: invalid syntax",
        );
    });
    let huge = json!({"Driver": "nvidia", "Count": i64::MAX, "Capabilities": [["gpu"]]});
    let body = json!({"Image": "busybox", "HostConfig": {"DeviceRequests": [huge]}});
    let (status, error) = engine.api("POST", "/containers/create", Some(&body));
    assert_eq!(status, 400, "{error}");
    // The hook of NVIDIA's toolkit, which reads the variables of the configuration.
    symlink("toolkit", programs.join("nvidia-container-runtime-hook")).unwrap();
    program(
        &programs,
        "toolkit",
        "bundle=$(sed 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/'); grep -q NVIDIA_VISIBLE_DEVICES $bundle/config.json && test $1 = prestart",
    );
    engine.both(|cli| {
        let script = "echo $NVIDIA_VISIBLE_DEVICES $NVIDIA_DRIVER_CAPABILITIES";
        for (gpus, expected) in [
            ("all", "all"),
            ("2", "0,1"),
            ("0", "void"),
            (
                "\"device=1,GPU-x\",\"capabilities=compute,utility\"",
                "1,GPU-x compute,utility",
            ),
        ] {
            assert_eq!(cli.sh(&["--gpus", gpus], script).ok(), expected);
        }
        cli.sh(&["--gpus", "device=0,count=1"], "")
            .refuses(125, "cannot set both Count and DeviceIDs on device request");
    });
    let devices: String = ["\"0\"", "\"1\"", "all"]
        .map(|name| {
            format!(
                "- name: {name}\n  containerEdits: {{env: [GPU_{}=1]}}\n",
                name.trim_matches('"')
            )
        })
        .concat();
    let generated = scratch.join("generated");
    symlink(&generated, Path::new(&directory).join("nvidia.yaml")).unwrap();
    fs::write(
        generated,
        format!("---\ncdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n{devices}"),
    )
    .unwrap();
    engine.both(|cli| {
        let script = "env | grep -E 'GPU|NVIDIA' | sort";
        for (gpus, expected) in [
            ("all", "GPU_all=1"),
            ("2", "GPU_0=1\nGPU_1=1"),
            ("device=1", "GPU_1=1"),
            ("driver=nvidia", "GPU_0=1"),
        ] {
            assert_eq!(cli.sh(&["--gpus", gpus], script).ok(), expected);
        }
        cli.sh(&["--gpus", "device=5"], "").refuses(
            125,
            "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=5",
        );
    });
}
