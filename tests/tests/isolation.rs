//! The environment of a process in a container, and its confinement.
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
use std::path::Path;

use serde_json::json;
use whelk_tests::{Cli, Engine, Program, eventually, images};

/// Runs a script in a container with these flags, through both command lines, and checks all that
/// it prints.
#[track_caller]
fn check(engine: &Engine, flags: &[&str], script: &str, expected: &str) {
    for program in [Program::Docker, Program::Whelk] {
        let output = engine.cli(program).sh(flags, script);
        assert_eq!(
            output.exits(0).trim(),
            expected,
            "{program:?} {flags:?} {script}"
        );
    }
}

/// Like `check`, for a script that must fail with `text` in its error.
#[track_caller]
fn check_refused(engine: &Engine, flags: &[&str], script: &str, text: &str) {
    for program in [Program::Docker, Program::Whelk] {
        let output = engine.cli(program).sh(flags, script);
        assert!(
            output.code != 0 && output.err().contains(text),
            "{program:?} {flags:?} {script}: {} {:?}",
            output.code,
            output.err()
        );
    }
}

/// A line of this process's own status. The engine's is the same.
fn own_status(key: &str) -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .unwrap()
        .trim_start_matches(':')
        .trim()
        .to_owned()
}

fn host_namespace(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}"))
        .unwrap()
        .display()
        .to_string()
}

/// Inheritable, permitted, effective, bounding and ambient capabilities, one a line.
const CAPABILITIES: &str = "grep ^Cap /proc/self/status | cut -f2";
const NONE: &str = "0000000000000000";

#[test]
fn capabilities_equal_dockers_and_none_is_inheritable() {
    let engine = Engine::start();
    let all = own_status("CapBnd");
    let sets =
        |permitted: &str, bounding: &str| [NONE, permitted, permitted, bounding, NONE].join("\n");
    let default = "00000000a80425fb";
    check(&engine, &[], CAPABILITIES, &sets(default, default));
    check(
        &engine,
        &["--user", "1000"],
        CAPABILITIES,
        &sets(NONE, default),
    );
    check(
        &engine,
        &["--cap-add", "SYS_ADMIN"],
        CAPABILITIES,
        &sets("00000000a82425fb", "00000000a82425fb"),
    );
    check(
        &engine,
        &["--cap-drop", "ALL"],
        CAPABILITIES,
        &sets(NONE, NONE),
    );
    check(
        &engine,
        &["--cap-drop", "all", "--cap-add", "cap_net_bind_service"],
        CAPABILITIES,
        &sets("0000000000000400", "0000000000000400"),
    );
    check(
        &engine,
        &["--cap-add", "ALL"],
        CAPABILITIES,
        &sets(&all, &all),
    );
    check(&engine, &["--privileged"], CAPABILITIES, &sets(&all, &all));
    let cli = engine.cli(Program::Whelk);
    cli.up("up", &[], &["sleep", "600"]);
    let exec = |flags: &[&str]| {
        cli.run(&[&["exec"][..], flags, &["up", "sh", "-c", CAPABILITIES][..]].concat())
            .ok()
    };
    assert_eq!(exec(&[]), sets(default, default));
    assert_eq!(exec(&["-u", "1000"]), sets(NONE, default));
    assert_eq!(exec(&["--privileged"]), sets(&all, &all));
}

#[test]
fn the_default_seccomp_profile_applies_unless_another_is_set() {
    let engine = Engine::start();
    let mode = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | cut -f2 | tr '\\n' ' '";
    check(&engine, &[], mode, "0 2");
    check(
        &engine,
        &["--security-opt", "no-new-privileges"],
        mode,
        "1 2",
    );
    check(
        &engine,
        &["--security-opt", "no-new-privileges:true", "--user", "1000"],
        mode,
        "1 2",
    );
    check(
        &engine,
        &["--security-opt", "seccomp=unconfined"],
        mode,
        "0 0",
    );
    check(
        &engine,
        &["--security-opt", "apparmor=unconfined"],
        mode,
        "0 2",
    );
    // As with Docker, a profile is ignored on a host that has no AppArmor.
    if !Path::new("/sys/module/apparmor").exists() {
        let flags = ["--security-opt", "apparmor=docker-default"];
        check(&engine, &flags, mode, "0 2");
        let cli = engine.cli(Program::Docker);
        cli.up("labelled", &flags, &["sleep", "600"]);
        let exec = cli.run(&["exec", "labelled", "echo", "here"]);
        assert_eq!(exec.ok(), "here");
        cli.run(&["rm", "-f", "labelled"]).ok();
    }
    check(&engine, &["--privileged"], mode, "0 0");
    check_refused(&engine, &[], "unshare -U true", "Operation not permitted");
    if std::process::Command::new("unshare")
        .args(["-U", "true"])
        .status()
        .unwrap()
        .success()
    {
        check(
            &engine,
            &["--security-opt", "seccomp=unconfined"],
            "unshare -U true; echo $?",
            "0",
        );
    }
    let profile = engine.scratch("seccomp").join("profile.json");
    fs::write(
        &profile,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#,
    )
    .unwrap();
    let option = format!("seccomp={}", profile.display());
    check(&engine, &["--security-opt", &option], mode, "0 2");
    check_refused(
        &engine,
        &["--security-opt", &option],
        "mkdir /new",
        "No space left on device",
    );
}

#[test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "uses the numbers of x86_64's system calls"
)]
fn kernel_crypto_sockets_are_out_of_reach() {
    // CVE-2026-31431: the page cache written through AF_ALG.
    let engine = Engine::start();
    engine.load(&fs::read(images::python()).unwrap());
    // AF_VSOCK too; also with the upper half of the register set, because the kernel reads an int.
    let program = "
import ctypes
call = ctypes.CDLL(None, use_errno=True).syscall
for family in 38, 40:
    for above in 0, 1 << 32, 0xffffffff << 32:
        ctypes.set_errno(0)
        call(ctypes.c_long(41), ctypes.c_ulong(above | family), ctypes.c_ulong(5), ctypes.c_ulong(0))
        print(ctypes.get_errno(), end='')
";
    let expected = "111111";
    let output = engine.whelk(&[
        "run",
        "--rm",
        "--network",
        "none",
        "python",
        "python3",
        "-c",
        program,
    ]);
    assert_eq!(
        output.ok(),
        expected,
        "EPERM from the filter, not EAFNOSUPPORT from a kernel that happens to lack it"
    );
    let output = engine.docker(&[
        "run",
        "--rm",
        "--network",
        "none",
        "python",
        "python3",
        "-c",
        "import socket; socket.socket(); socket.socketpair(); print('fine')",
    ]);
    assert_eq!(output.ok(), "fine");
}

#[test]
fn namespaces_are_private_by_default() {
    let engine = Engine::start();
    let links = "for kind in pid ipc uts mnt net user; do readlink /proc/self/ns/$kind; done";
    for program in [Program::Docker, Program::Whelk] {
        let text = engine.cli(program).sh(&[], links).ok();
        for (kind, link) in ["pid", "ipc", "uts", "mnt", "net"]
            .into_iter()
            .zip(text.lines())
        {
            assert_ne!(link, host_namespace(kind), "{program:?}");
        }
        assert_eq!(text.lines().last(), Some(host_namespace("user").as_str()));
        for kind in ["pid", "ipc", "uts"] {
            let text = engine
                .cli(program)
                .sh(
                    &[&format!("--{kind}"), "host"],
                    &format!("readlink /proc/self/ns/{kind}"),
                )
                .ok();
            assert_eq!(text, host_namespace(kind), "{program:?} --{kind} host");
        }
        let output = engine.cli(program).run(&[
            "run",
            "--rm",
            "--network",
            "host",
            "busybox",
            "readlink",
            "/proc/self/ns/net",
        ]);
        assert_eq!(
            output.ok(),
            host_namespace("net"),
            "{program:?} --network host"
        );
    }
    check(
        &engine,
        &["--cgroupns", "private"],
        "cut -d: -f3 /proc/1/cgroup | sort -u",
        "/",
    );
    check(
        &engine,
        &["--cgroupns", "host"],
        &format!("grep -q /{}/ /proc/1/cgroup && echo below", engine.name()),
        "below",
    );
}

#[test]
fn namespaces_of_another_container_can_be_joined() {
    Engine::start().both(|cli| {
        cli.up("donor", &["--ipc", "shareable"], &["sleep", "600"]);
        cli.up("closed", &[], &["sleep", "600"]);
        let of_donor = |kind: &str| {
            cli.run(&[
                "exec",
                "donor",
                "readlink",
                &format!("/proc/self/ns/{kind}"),
            ])
            .ok()
        };
        for kind in ["pid", "ipc"] {
            let text = cli
                .sh(
                    &[&format!("--{kind}"), "container:donor"],
                    &format!("readlink /proc/self/ns/{kind}"),
                )
                .ok();
            assert_eq!(text, of_donor(kind), "{kind}");
        }
        let output = cli.run(&[
            "run",
            "--rm",
            "--network",
            "container:donor",
            "busybox",
            "readlink",
            "/proc/self/ns/net",
        ]);
        assert_eq!(output.ok(), of_donor("net"));
        assert_eq!(
            cli.sh(
                &["--pid", "container:donor"],
                "tr '\\0' ' ' </proc/1/cmdline"
            )
            .ok(),
            "sleep 600"
        );
        cli.sh(&["--ipc", "container:closed"], "true").refuses(
            125,
            "non-shareable IPC (hint: use IpcMode:shareable for the donor container)",
        );
        cli.sh(&["--pid", "container:nosuch"], "true")
            .refuses(125, "No such container: nosuch");
        cli.run(&["stop", "-t", "0", "closed"]).ok();
        cli.sh(&["--pid", "container:closed"], "true")
            .refuses(125, "is not running");
    });
}

#[test]
fn kernel_interfaces_are_hidden_or_read_only() {
    let engine = Engine::start();
    // Files are covered by the null device, directories by an empty one; what this kernel lacks
    // needs no cover.
    let files = "for f in asound interrupts kcore keys latency_stats timer_list timer_stats sched_debug; do [ -f /proc/$f -o -c /proc/$f ] && stat -c %t:%T /proc/$f; done | sort -u";
    check(&engine, &[], files, "1:3");
    check(
        &engine,
        &[],
        "for d in /proc/acpi /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do [ -d $d ] && ls -A $d; done; true",
        "",
    );
    check_refused(
        &engine,
        &[],
        "echo 1 >/proc/sys/kernel/panic",
        "Read-only file system",
    );
    check_refused(&engine, &[], "mkdir /sys/fs/x", "Read-only file system");
    check(
        &engine,
        &[],
        "for d in bus fs irq sys; do grep -c \" /proc/$d ro,\" /proc/self/mountinfo; done | tr -d '\\n'",
        "1111",
    );
    check(
        &engine,
        &[],
        "grep ' /proc ' /proc/self/mountinfo | grep -c 'nosuid,nodev,noexec'",
        "1",
    );
    // /proc/sysrq-trigger is read-only where the kernel has it.
    check(
        &engine,
        &[],
        "[ ! -e /proc/sysrq-trigger ] || grep -q ' /proc/sysrq-trigger ro,' /proc/self/mountinfo; echo $?",
        "0",
    );
    check(
        &engine,
        &["--security-opt", "systempaths=unconfined"],
        "grep -c ' /proc/' /proc/self/mountinfo || true",
        "0",
    );
}

#[test]
fn dev_contains_only_the_default_devices() {
    let engine = Engine::start();
    // A link to /proc/kcore, where the kernel has it.
    let core = if Path::new("/proc/kcore").exists() {
        "core "
    } else {
        ""
    };
    let expected = format!(
        "{core}fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
    check(&engine, &[], "echo $(ls /dev)", &expected);
    check(
        &engine,
        &[],
        "stat -c '%n %t:%T %a' /dev/null /dev/zero /dev/tty | tr '\\n' ' '",
        "/dev/null 1:3 666 /dev/zero 1:5 666 /dev/tty 5:0 666",
    );
    check(
        &engine,
        &[],
        "readlink /dev/fd; readlink /dev/ptmx; echo x >/dev/shm/x; df -k /dev/shm | tail -1 | awk '{print $2}'",
        "/proc/self/fd\npts/ptmx\n65536",
    );
    check(
        &engine,
        &["--shm-size", "1m"],
        "df -k /dev/shm | tail -1 | awk '{print $2}'",
        "1024",
    );
    // A node can be created for any device, but not opened.
    check_refused(
        &engine,
        &[],
        "mknod /tmp/loop c 10 237 && cat </tmp/loop",
        "Operation not permitted",
    );
    let output = engine.docker(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--device-cgroup-rule",
        "c 10:237 rwm",
        "busybox",
        "sh",
        "-c",
        "mknod /tmp/loop c 10 237; : </tmp/loop",
    ]);
    assert!(
        !output.err().contains("Operation not permitted"),
        "{}",
        output.err()
    );
    check(
        &engine,
        &["--device", "/dev/zero:/dev/mine"],
        "stat -c %t:%T /dev/mine; head -c 3 /dev/mine | wc -c",
        "1:5\n3",
    );
}

#[test]
fn only_the_standard_streams_are_open() {
    // CVE-2024-21626 and its kind. The fourth is the directory that ls itself reads.
    let engine = Engine::start();
    let expected = "0 1 2 3";
    let list = "echo $(ls /proc/self/fd)";
    let variants: [&[&str]; 5] = [
        &[],
        &["-i"],
        &["--init"],
        &["--privileged"],
        &["--user", "1000"],
    ];
    for flags in variants {
        check(&engine, flags, list, expected);
    }
    engine.both(|cli| {
        assert_eq!(cli.sh(&["-t"], list).ok(), expected);
        cli.up("up", &[], &["sleep", "600"]);
        let variants: [&[&str]; 4] = [&[], &["-i"], &["-t"], &["--privileged"]];
        for flags in variants {
            assert_eq!(
                cli.run(&[&["exec"][..], flags, &["up", "sh", "-c", list][..]].concat())
                    .ok(),
                expected,
                "exec {flags:?}"
            );
        }
        assert_eq!(
            cli.run(&["exec", "up", "sh", "-c", "echo $(ls /proc/1/fd)"])
                .ok(),
            "0 1 2"
        );
    });
}

#[test]
fn privileged_removes_only_the_confinement() {
    let engine = Engine::start();
    check_refused(
        &engine,
        &[],
        "mount -t tmpfs none /mnt",
        "permission denied",
    );
    check(
        &engine,
        &["--privileged"],
        "mount -t tmpfs none /mnt && echo mounted; grep -c ' /proc/' /proc/self/mountinfo; grep -c ' /sys rw,' /proc/self/mountinfo",
        "mounted\n0\n1",
    );
    check(
        &engine,
        &["--privileged"],
        "[ -c /dev/loop-control -o -c /dev/kmsg ]; echo $?",
        if fs::exists("/dev/loop-control").unwrap() || fs::exists("/dev/kmsg").unwrap() {
            "0"
        } else {
            "1"
        },
    );
    assert_ne!(
        engine
            .whelk(&[
                "run",
                "--rm",
                "--privileged",
                "--network",
                "none",
                "busybox",
                "readlink",
                "/proc/self/ns/pid"
            ])
            .ok(),
        host_namespace("pid")
    );
}

#[test]
fn users_and_groups_are_resolved_from_the_images_files() {
    let engine = Engine::start();
    let id = |user: &str, expected: &str| check(&engine, &["-u", user], "id", expected);
    check(
        &engine,
        &[],
        "id",
        "uid=0(root) gid=0(root) groups=0(root),10(wheel)",
    );
    id("root", "uid=0(root) gid=0(root) groups=0(root),10(wheel)");
    id("1000", "uid=1000 gid=0(root) groups=0(root)");
    id("1000:1000", "uid=1000 gid=1000 groups=1000");
    id(
        "nobody",
        "uid=65534(nobody) gid=65534(nobody) groups=65534(nobody)",
    );
    id(
        "33",
        "uid=33(www-data) gid=33(www-data) groups=20(staff),33(www-data)",
    );
    id("0:5", "uid=0(root) gid=5(tty) groups=5(tty)");
    id(
        "daemon:wheel",
        "uid=1(daemon) gid=10(wheel) groups=10(wheel)",
    );
    check(
        &engine,
        &[
            "-u",
            "nobody",
            "--group-add",
            "wheel",
            "--group-add",
            "1234",
        ],
        "id",
        "uid=65534(nobody) gid=65534(nobody) groups=10(wheel),1234,65534(nobody)",
    );
    check(&engine, &["-u", "nobody"], "echo $HOME", "/home");
    check(&engine, &["-u", "4242"], "echo $HOME", "/");
    check(&engine, &["-e", "HOME=/x"], "echo $HOME", "/x");
}

#[test]
fn hostname_and_domainname_are_set() {
    let engine = Engine::start();
    let host = fs::read_to_string("/proc/sys/kernel/hostname")
        .unwrap()
        .trim()
        .to_owned();
    let script = "hostname; cat /etc/hostname; cat /proc/sys/kernel/domainname";
    check(
        &engine,
        &["--hostname", "hh.dom", "--domainname", "dd"],
        script,
        "hh.dom\nhh.dom\ndd",
    );
    check(&engine, &["--uts", "host"], "hostname", &host);
    check_refused(
        &engine,
        &["--uts", "host", "--hostname", "x"],
        "true",
        "conflicting options: hostname and the UTS mode",
    );
    engine.both(|cli: Cli<'_>| {
        let id = cli.up("named", &[], &["sleep", "600"]);
        assert_eq!(cli.run(&["exec", "named", "hostname"]).ok(), &id[..12]);
    });
}

#[test]
fn the_root_file_system_can_be_read_only() {
    let engine = Engine::start();
    for path in ["/x", "/etc/x", "/etc/hosts"] {
        check_refused(
            &engine,
            &["--read-only"],
            &format!("touch {path}"),
            "Read-only file system",
        );
    }
    check(
        &engine,
        &["--read-only", "--tmpfs", "/tmp"],
        "touch /tmp/x /dev/shm/x && ls /tmp",
        "x",
    );
    check(
        &engine,
        &["--tmpfs", "/t:size=1m,mode=700,uid=5"],
        "stat -c '%a %u' /t; df -k /t | tail -1 | awk '{print $2}'",
        "700 5\n1024",
    );
    check_refused(
        &engine,
        &["--tmpfs", "/t:size=64k"],
        "dd if=/dev/zero of=/t/x bs=100000 count=1",
        "No space left on device",
    );
    check(
        &engine,
        &["--mount", "type=tmpfs,dst=/t,tmpfs-size=65536"],
        "df -k /t | tail -1 | awk '{print $2}'",
        "64",
    );
}

#[test]
fn init_is_the_first_process_and_reaps() {
    let engine = Engine::start();
    engine.both(|cli| {
        // An orphan ends, and init must reap it.
        let script = "[ $$ != 1 ] || exit 8; (sleep 0.1 &); i=0; while cat /proc/[0-9]*/comm 2>/dev/null | grep -qx sleep; do usleep 20000; i=$((i+1)); [ $i -lt 500 ] || exit 9; done; exit 3";
        cli.sh(&["--init"], script).exits(3);
        cli.up("init", &["--init"], &["sh", "-c", "echo begun; exec sleep 600"]);
        let first = cli.run(&["exec", "init", "cat", "/proc/1/comm"]).ok();
        assert_ne!(first, "sleep");
        cli.engine().await_log("init", "begun");
        cli.run(&["stop", "-t", "20", "init"]).ok();
        assert_eq!(cli.engine().inspect("init")["State"]["ExitCode"], 143, "it passes signals on");
    });
}

#[test]
fn sysctls_and_ulimits_are_set_for_the_container_alone() {
    let engine = Engine::start();
    check(
        &engine,
        &["--sysctl", "net.ipv4.ip_unprivileged_port_start=1024"],
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
        "1024",
    );
    check(
        &engine,
        &["--sysctl", "kernel.msgmax=5000"],
        "cat /proc/sys/kernel/msgmax",
        "5000",
    );
    check(
        &engine,
        &[],
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
        "0",
    );
    assert_ne!(
        fs::read_to_string("/proc/sys/kernel/msgmax")
            .unwrap()
            .trim(),
        "5000"
    );
    check_refused(
        &engine,
        &["--sysctl", "vm.swappiness=1"],
        "true",
        "is not allowed",
    );
    check_refused(
        &engine,
        &["--ipc", "host", "--sysctl", "kernel.msgmax=5000"],
        "true",
        "runc create failed: sysctl \"kernel.msgmax\" is not allowed in the hosts ipc namespace",
    );
    check(
        &engine,
        &["--ulimit", "nofile=100:200", "--ulimit", "core=0"],
        "ulimit -n; ulimit -Hn; ulimit -c",
        "100\n200\n0",
    );
    check(
        &engine,
        &["--oom-score-adj", "300"],
        "cat /proc/self/oom_score_adj",
        "300",
    );
}

#[test]
fn the_environment_and_working_directory_are_set() {
    let engine = Engine::start();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    engine.both(|cli| {
        let output = cli.run(&[
            "run",
            "--rm",
            "--network",
            "none",
            "--hostname",
            "hh",
            "-e",
            "A=b c",
            "busybox",
            "env",
        ]);
        assert_eq!(
            output.ok(),
            format!("{path}\nHOSTNAME=hh\nA=b c\nHOME=/root")
        );
        let output = cli.run(&[
            "run",
            "--rm",
            "--network",
            "none",
            "--entrypoint",
            "/bin/echo",
            "busybox",
            "a",
            "b",
        ]);
        assert_eq!(output.ok(), "a b");
    });
    check(&engine, &[], "pwd", "/");
    check(
        &engine,
        &["-w", "/new/dir"],
        "pwd; stat -c %u /new/dir",
        "/new/dir\n0",
    );
    check(&engine, &["-w", "/a/../b"], "pwd", "/b");
    check(&engine, &["-t"], "echo $TERM; tty", "xterm\r\n/dev/pts/0");
    check_refused(
        &engine,
        &["-w", "/etc/passwd"],
        "true",
        "Cannot mkdir: /etc/passwd is not a directory",
    );
}

/// The API accepts sysctls of namespaces that are the host's, which the clients reject.
#[test]
fn sysctls_do_not_change_the_host() {
    let engine = Engine::start();
    let domain = || fs::read_to_string("/proc/sys/kernel/domainname").unwrap();
    let (before, forwards) = (
        domain(),
        fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(),
    );
    engine
        .docker(&[
            "run",
            "-d",
            "--name",
            "on-host",
            "--network",
            "host",
            "--uts",
            "host",
            "busybox",
            "sleep",
            "600",
        ])
        .ok();
    let wrong = "9";
    let cases = [
        (
            json!({"UTSMode": "host"}),
            "kernel.domainname",
            "is not in a separate kernel namespace",
        ),
        (
            json!({"NetworkMode": "container:on-host"}),
            "kernel.domainname",
            "is not in a separate kernel namespace",
        ),
        (
            json!({"NetworkMode": "container:on-host"}),
            "net.ipv4.ip_forward",
            "not allowed in host network namespace",
        ),
        (
            json!({"NetworkMode": "host"}),
            "net.ipv4.ip_forward",
            "not allowed in host network namespace",
        ),
        (
            json!({"NetworkMode": "none", "IpcMode": "host"}),
            "fs.mqueue.msg_max",
            "is not allowed in the hosts ipc namespace",
        ),
        (
            json!({"NetworkMode": "none"}),
            "kernel.hostname",
            "is not allowed as it conflicts with the OCI \"hostname\" field",
        ),
        (
            json!({"NetworkMode": "none"}),
            "vm.swappiness",
            "is not in a separate kernel namespace",
        ),
        (
            json!({"NetworkMode": "none"}),
            "net.//.kernel.domainname",
            "is not in a separate kernel namespace",
        ),
    ];
    for (index, (mut host, key, refusal)) in cases.into_iter().enumerate() {
        host["Sysctls"] = json!({key: wrong});
        let name = format!("case{index}");
        engine.create(
            &name,
            &json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": host}),
        );
        let (status, answer) = engine.api("POST", &format!("/containers/{name}/start"), None);
        let expected = format!(
            "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: sysctl {key:?} {refusal}"
        );
        assert_eq!(
            (status, answer["message"].as_str()),
            (500, Some(expected.as_str())),
            "{host}"
        );
    }
    // The domain name is a kernel parameter.
    engine.create(
        "domain",
        &json!({"Image": "busybox", "Cmd": ["true"], "Domainname": wrong, "HostConfig": {"UTSMode": "host", "NetworkMode": "none"}}),
    );
    let (status, answer) = engine.api("POST", "/containers/domain/start", None);
    assert!(
        status == 500 && answer.to_string().contains("kernel.domainname"),
        "{status} {answer}"
    );
    engine.create(
        "shared",
        &json!({"Image": "busybox", "Cmd": ["true"], "Domainname": wrong, "HostConfig": {"NetworkMode": "container:on-host"}}),
    );
    let (status, answer) = engine.api("POST", "/containers/shared/start", None);
    assert_eq!(status, 204, "{answer}");
    assert_eq!(
        (
            domain(),
            fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap()
        ),
        (before, forwards)
    );
}

#[test]
fn the_engines_limit_of_open_files_is_not_inherited() {
    let soft = 5000;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let engine = Engine::with_open_files(soft);
    let hard = limit
        .maximum
        .map_or_else(|| "unlimited".to_owned(), |number| number.to_string());
    let own = fs::read_to_string(format!("/proc/{}/limits", engine.daemon_pid())).unwrap();
    let own = own
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap()
        .split_whitespace()
        .nth(3)
        .unwrap();
    assert_eq!(own, hard, "the engine raises its own");
    let limits = "ulimit -n; ulimit -Hn";
    check(&engine, &[], limits, &format!("{soft}\n{hard}"));
    check(&engine, &["--ulimit", "nofile=100:200"], limits, "100\n200");
    engine.both(|cli| {
        cli.up("up", &[], &["sleep", "600"]);
        assert_eq!(
            cli.run(&["exec", "up", "sh", "-c", limits]).ok(),
            format!("{soft}\n{hard}")
        );
    });
}

#[test]
#[cfg_attr(
    not(target_arch = "x86_64"),
    ignore = "uses the numbers of x86_64's system calls"
)]
fn keys_are_the_containers_own() {
    let engine = Engine::start();
    engine.load(&fs::read(images::python()).unwrap());
    let cli = engine.cli(Program::Whelk);
    // The serial number and the name of the session keyring: keyctl(2) KEYCTL_GET_KEYRING_ID and
    // KEYCTL_DESCRIBE.
    let program = "
import ctypes
def keyctl(*args): return ctypes.CDLL(None).syscall(ctypes.c_long(250), *args)
text = ctypes.create_string_buffer(200)
keyctl(6, -3, text, 200)
print(keyctl(0, -3, 0), text.value.decode().split(';')[-1])
";
    let mut seen = Vec::new();
    for name in ["first", "second"] {
        let run = [
            "run",
            "-d",
            "--name",
            name,
            "--network",
            "none",
            "--security-opt",
            "seccomp=unconfined",
            "python",
            "sh",
            "-c",
        ];
        let script = format!("python3 -c \"{program}\"; sleep 600");
        let id = cli.run(&[&run[..], &[&script]].concat()).ok();
        let own = eventually("the container's keyring", || {
            Some(engine.logs(name)).filter(|text| text.ends_with('\n'))
        });
        assert_eq!(own.trim().split_once(' ').unwrap().1, format!("_ses.{id}"));
        for _ in 0..2 {
            assert_eq!(
                cli.run(&["exec", name, "python3", "-c", program]).ok(),
                own.trim(),
                "an exec has the container's"
            );
        }
        seen.push(own);
    }
    assert_ne!(seen[0], seen[1]);
    cli.run(&["restart", "-t", "0", "first"]).ok();
    assert!(
        cli.run(&["exec", "first", "python3", "-c", program])
            .ok()
            .contains("_ses.")
    );
}

#[test]
fn sharing_with_the_host_adds_label_disable() {
    Engine::start().both(|cli| {
        let cases: [(&[&str], &str); 6] = [
            (&["--privileged"], "[\"label=disable\"]"),
            (&["--pid", "host"], "[\"label=disable\"]"),
            (&["--ipc", "host"], "[\"label=disable\"]"),
            (&["--privileged", "--security-opt", "seccomp=unconfined"], "[\"seccomp=unconfined\",\"label=disable\"]"),
            (&["--uts", "host"], "null"),
            (&["--security-opt", "writable-cgroups=true"], "[\"writable-cgroups=true\"]"),
        ];
        for (flags, expected) in cases {
            let id = cli.run(&[&["create"], flags, &["busybox", "true"]].concat()).ok();
            assert_eq!(cli.run(&["inspect", "-f", "{{json .HostConfig.SecurityOpt}}", &id]).ok(), expected, "{flags:?}");
        }
        let refused = |option: &str, text: &str| cli.run(&["create", "--security-opt", option, "busybox", "true"]).refuses(1, text);
        refused("writable-cgroups=maybe", "invalid --security-opt 2: \"writable-cgroups=maybe\"");
        // The container's own cgroups are writable.
        let make = "d=/sys/fs/cgroup; [ -d $d/freezer ] && d=$d/freezer; mkdir $d/x && rmdir $d/x && echo made";
        assert_eq!(cli.sh(&["--security-opt", "writable-cgroups=true"], make).ok(), "made");
        assert_eq!(cli.sh(&["--security-opt", "writable-cgroups=0"], make).code, 1);
        assert_eq!(cli.sh(&[], make).code, 1);
        // Those of privileged containers are, unless they say otherwise.
        assert_eq!(cli.sh(&["--privileged"], make).ok(), "made");
        let refused = cli.sh(&["--privileged", "--security-opt", "writable-cgroups=false"], make);
        assert!(refused.code == 1 && refused.err().contains("Read-only file system"), "{}", refused.err());
    });
}
