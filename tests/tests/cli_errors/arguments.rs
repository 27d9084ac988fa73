//! Flags, values, signals and templates that are invalid.

use whelk_tests::{Engine, Program};

use super::{check, check_nothing_left};

#[test]
fn rejects_unknown_flags_and_flags_without_value() {
    let engine = Engine::start();
    check(&engine, &["run", "--nosuch"], 125, "unknown flag: --nosuch");
    check(
        &engine,
        &["run", "-Z"],
        125,
        "unknown shorthand flag: 'Z' in -Z",
    );
    check(
        &engine,
        &["run", "--memory"],
        125,
        "flag needs an argument: --memory",
    );
    check(
        &engine,
        &["run", "-m"],
        125,
        "flag needs an argument: 'm' in -m",
    );
    check(&engine, &["ps", "--nosuch"], 125, "unknown flag: --nosuch");
    check(
        &engine,
        &["nosuchcommand"],
        1,
        "unknown command: docker nosuchcommand",
    );
    check(
        &engine,
        &["container", "nosuch"],
        1,
        "unknown command: docker container nosuch",
    );
    let counts: [(&[&str], &str); 10] = [
        (&["run"], "'docker run' requires at least 1 argument"),
        (&["create"], "'docker create' requires at least 1 argument"),
        (&["start"], "'docker start' requires at least 1 argument"),
        (&["rm"], "'docker rm' requires at least 1 argument"),
        (
            &["exec", "x"],
            "'docker exec' requires at least 2 arguments",
        ),
        (&["logs", "a", "b"], "'docker logs' requires 1 argument"),
        (&["rename", "a"], "'docker rename' requires 2 arguments"),
        (&["ps", "x"], "'docker ps' accepts no arguments"),
        (
            &["images", "a", "b"],
            "'docker images' requires at most 1 argument",
        ),
        (&["tag", "a"], "'docker tag' requires 2 arguments"),
    ];
    for (args, text) in counts {
        check(&engine, args, 1, text);
    }
    check_nothing_left(&engine);
}

#[test]
fn rejects_invalid_values_of_flags() {
    let engine = Engine::start();
    let run = |flags: &[&str], text: &str| {
        let mut args = vec!["run", "--rm", "--network", "none"];
        args.extend_from_slice(flags);
        args.extend_from_slice(&["busybox", "true"]);
        check(&engine, &args, 125, text);
    };
    run(
        &["-m", "abc"],
        "invalid argument \"abc\" for \"-m, --memory\" flag: invalid size: 'abc'",
    );
    run(&["-m", "10x"], "invalid suffix: 'x'");
    run(&["-m", "1m"], "Minimum memory limit allowed is 6MB");
    run(
        &["--cpus", "abc"],
        "invalid argument \"abc\" for \"--cpus\" flag: failed to parse abc as a rational number",
    );
    run(
        &["--pids-limit", "abc"],
        "invalid argument \"abc\" for \"--pids-limit\" flag: strconv.ParseInt: parsing \"abc\": invalid syntax",
    );
    run(&["--ulimit", "foo=1"], "invalid ulimit type: foo");
    run(
        &["--ulimit", "nofile=10:5"],
        "ulimit soft limit must be less than or equal to hard limit: 10 > 5",
    );
    run(&["-e", "=x"], "invalid environment variable: =x");
    run(
        &["--label", "=x"],
        "invalid argument \"=x\" for \"-l, --label\" flag: invalid label '=x': empty name",
    );
    run(&["--label", "a b=x"], "label 'a b' contains whitespaces");
    run(
        &["--env-file", "/nosuch"],
        "open /nosuch: no such file or directory",
    );
    run(
        &["-a", "bogus"],
        "valid streams are STDIN, STDOUT and STDERR",
    );
    run(&["--stop-signal", "BOGUS"], "invalid signal: BOGUS");
    run(
        &["--restart", "always"],
        "conflicting options: cannot specify both --restart and --rm",
    );
    run(
        &["--cap-add", "FOO"],
        "invalid CapAdd: unknown capability: \"CAP_FOO\"",
    );
    run(
        &["--security-opt", "foo"],
        "Invalid --security-opt: \"foo\"",
    );
    run(
        &["--security-opt", "seccomp=/nosuch.json"],
        "opening seccomp profile (/nosuch.json) failed: open /nosuch.json: no such file or directory",
    );
    run(
        &["--sysctl", "foo.bar=1"],
        "sysctl 'foo.bar=1' is not allowed",
    );
    run(
        &["--device", "/etc/passwd"],
        "error gathering device information while adding custom device \"/etc/passwd\": not a device node",
    );
    run(&["--device", "x"], "x is not an absolute path");
    run(&["--pid", "bogus"], "--pid: invalid PID mode");
    run(&["--ipc", "bogus"], "invalid IPC mode: bogus");
    run(&["--uts", "bogus"], "--uts: invalid UTS mode");
    run(
        &["--log-driver", "bogus"],
        "error looking up logging plugin bogus: plugin \"bogus\" not found",
    );
    run(
        &["--log-driver", "json-file", "--log-opt", "bogus=1"],
        "unknown log opt 'bogus' for json-file log driver",
    );
    run(
        &["--log-driver", "json-file", "--log-opt", "max-size=abc"],
        "invalid size: 'abc'",
    );
    run(
        &["--mount", "bogus"],
        "invalid argument \"bogus\" for \"--mount\" flag: invalid field 'bogus' must be a key=value pair",
    );
    run(
        &["-w", "relative"],
        "the working directory 'relative' is invalid, it needs to be an absolute path",
    );
    run(
        &["-u", "nosuch"],
        "unable to find user nosuch: no matching entries in passwd file",
    );
    run(
        &["--runtime", "bogus"],
        "unknown or invalid runtime name: bogus",
    );
    check_nothing_left(&engine);
}

#[test]
fn rejects_unknown_signals() {
    let engine = Engine::start();
    engine.cli(Program::Docker).up("up", &[], &["sleep", "600"]);
    check(
        &engine,
        &["kill", "-s", "BOGUS", "up"],
        1,
        "cannot kill container: up: invalid signal: BOGUS",
    );
    check(&engine, &["kill", "-s", "0", "up"], 1, "invalid signal: 0");
    check(
        &engine,
        &["kill", "-s", "65", "up"],
        1,
        "the linux daemon does not support signal 65",
    );
    check(
        &engine,
        &["stop", "-s", "BOGUS", "up"],
        1,
        "cannot stop container: up: invalid signal: BOGUS",
    );
    check(
        &engine,
        &["restart", "-s", "BOGUS", "up"],
        1,
        "Cannot restart container up: invalid signal: BOGUS",
    );
    check(
        &engine,
        &["stop", "-t", "abc", "up"],
        125,
        "invalid argument \"abc\" for \"-t, --timeout\" flag: strconv.ParseInt: parsing \"abc\": invalid syntax",
    );
    assert_eq!(engine.state("up"), "running", "none of them did anything");
}

#[test]
fn help_exits_with_success() {
    let engine = Engine::without_images(&[]);
    for program in [Program::Docker, Program::Whelk] {
        let cli = engine.cli(program);
        let cases: [(&[&str], &str); 4] = [
            (&["--help"], "run"),
            (&["run", "--help"], "--memory"),
            (&["ps", "--help"], "--filter"),
            (&["image", "--help"], "inspect"),
        ];
        for (args, text) in cases {
            let said = cli.run(args).exits(0);
            assert!(said.contains(text), "{program:?} {args:?}: {said}");
        }
    }
}

#[test]
fn unavailable_commands_are_rejected_by_name() {
    let engine = Engine::start();
    engine
        .docker(&["plugin", "install", "x"])
        .refuses(1, "installing plugins: not available");
    assert_eq!(
        engine.docker(&["plugin", "ls", "-q"]).ok(),
        "",
        "there are none"
    );
    engine.create(
        "made",
        &serde_json::json!({"Image": "busybox", "HostConfig": {"NetworkMode": "none"}}),
    );
    let disabled = "Error response from daemon: This experimental feature is disabled by default. Start the Docker daemon in experimental mode in order to enable it.";
    for args in [
        &["checkpoint", "create", "made", "one"][..],
        &["checkpoint", "ls", "made"],
        &["checkpoint", "rm", "made", "one"],
    ] {
        engine.whelk(args).refuses(1, disabled);
        // Docker's client asks the engine for its features first.
        engine.docker(args).refuses(
            1,
            "is only supported on a Docker daemon with experimental features enabled",
        );
    }
    let restore = ["start", "--checkpoint", "one", "made"];
    engine
        .whelk(&restore)
        .refuses(1, "checkpoint is only supported in experimental mode");
    engine.docker(&restore).refuses(
        1,
        "\"--checkpoint\" is only supported on a Docker daemon with experimental features enabled",
    );
    engine
        .whelk(&["start", "--checkpoint", "one", "made", "other"])
        .refuses(1, "you cannot restore multiple containers at once");
    assert_eq!(engine.state("made"), "created");
    for args in [
        &["trust", "inspect", "busybox"][..],
        &["trust", "key", "generate", "me"],
        &["trust", "signer", "add", "--key", "k", "me", "busybox"],
    ] {
        engine
            .whelk(args)
            .refuses(1, "whelk: trust: content trust is not available");
    }
    for command in ["compose", "swarm", "plugin"] {
        engine.whelk(&[command, "x"]).refuses(
            1,
            &format!("whelk: {command}: not available in this version of whelk"),
        );
    }
}

#[test]
fn templates_support_what_scripts_use() {
    let engine = Engine::start();
    engine
        .cli(Program::Docker)
        .up("one", &["--label", "a.b=c d"], &["sleep", "600"]);
    for (args, expected) in [
        (
            &[
                "inspect",
                "-f",
                "{{if .State.Health}}h{{else}}none{{end}}{{.SizeRw}}",
                "one",
            ][..],
            "none<nil>",
        ),
        (
            &[
                "ps",
                "--format",
                "{{.Label \"a.b\"}}|{{printf \"%.2s\" .Names}}",
            ],
            "c d|on",
        ),
        (
            &[
                "inspect",
                "-f",
                "{{html \"<a>\"}} {{urlquery \"a b\"}}",
                "one",
            ],
            "&lt;a&gt; a+b",
        ),
    ] {
        for program in [Program::Docker, Program::Whelk] {
            let said = engine.cli(program).run(args).ok();
            assert_eq!(
                said.replace("<no value>", "<nil>"),
                expected,
                "{program:?} {args:?}"
            );
        }
    }
}

#[test]
fn detach_keys_are_checked_before_a_container_is_created() {
    let engine = Engine::start();
    for keys in ["foo", "ctrl-", "ctrl-a,", "ctrl-1"] {
        engine
            .whelk(&["run", "--detach-keys", keys, "busybox", "true"])
            .refuses(125, &format!("Invalid detach keys ({keys}) provided"));
    }
    check_nothing_left(&engine);
    engine.whelk(&["create", "--name", "one", "busybox"]).ok();
    engine
        .whelk(&["start", "-a", "--detach-keys", "foo", "one"])
        .refuses(1, "Invalid detach keys (foo) provided");
    assert_eq!(engine.state("one"), "created");
}

/// Command lines, one per line, for which both programs print the same error.
const ALIKE: &str = "
port one 80/foo
port one foo
port one foo/udp
port one 70000
port one 80-81
port one 5-3
port one ''
rename one two
rename nosuch x
rename one ''
rename ' ' x
rename one 'a b'
inspect --type foo one
inspect --type '' one
image inspect ''
inspect ''
history ''
rmi ''
logs --until 2020-13-45 one
logs --since 2020-1-1 one
logs --since abc one
events --until 2020-13-45
rm ''
rm /
rm ' '
rm -f ''
stop ''
network connect bridge ''
network connect '' ''
network disconnect bridge ''
network connect --driver-opt x bridge one
network create bridge
network create host
network create --gateway 1.2.3.4 net
volume create --opt x vol
create --annotation '' busybox
create --log-opt x busybox
create --log-driver none --log-opt x=y busybox
create --storage-opt x busybox
create -v '' busybox
create -v ab: busybox
create -v :/b busybox
create -v /a:/b:ro:x busybox
create -p 99999:80 busybox
create -p a:80 busybox
create -p 1.2.3:80:80 busybox
create -p [::1:80:80 busybox
create -p 1:2:3:4 busybox
create -p 80/foo busybox
create -p '' busybox
create -p 80: busybox
create -p abc busybox
create -p 1-3:5-6 busybox
create -p a=b busybox
create -p a=b,c busybox
create -p target=80,published=70000 busybox
create --expose '' busybox
create --expose 80/foo busybox
create --expose 5-3 busybox
create --expose 70000 busybox
create --mount '' busybox
create --mount type=tmpfs,dst=/x,tmpfs-size=foo busybox
create --mount type=tmpfs,dst=/x,tmpfs-mode=foo busybox
create --mount type=bind,src=/tmp,dst=/x,bind-recursive=foo busybox
create --mount 'src=v,\"dst=/b' busybox
create --mount 'dst=/b,src=\"a' busybox
create --ulimit nofile=1:2:3 busybox
create --device /dev/null:x busybox
create --device /dev/null:/a:z busybox
create --device /a:/b:c:d busybox
create --device '' busybox
create --device-read-bps foo:1 busybox
create --device-read-bps /dev/sda:x busybox
create --device-read-iops /dev/sda:x busybox
create --blkio-weight-device /dev/sda:5 busybox
create --device-cgroup-rule foo busybox
create --userns foo busybox
create --cgroupns foo busybox
create --pid container: busybox
create --uts foo busybox
create --network bridge --network bridge busybox
create --network bridge --network a busybox
create --pull foo busybox
create --restart :3 busybox
create --env-file /tmp busybox
update --restart on-failure:x one
image prune --filter foo -f
container prune --filter foo -f
network prune --filter foo -f
volume prune --filter foo -f
system prune --filter foo -f
run
rm
exec one
rename one
ps x
container nosuch
network --nosuch
--nosuch
nosuch
help nosuch
help run nosuch
";

#[test]
fn errors_equal_those_of_dockers_command_line() {
    let engine = Engine::start();
    for name in ["one", "two"] {
        engine
            .whelk(&["create", "--name", name, "busybox", "true"])
            .ok();
    }
    let said = |program, args: &[&str]| {
        let output = engine.cli(program).run(args);
        (output.out(), output.err().trim().replace("docker", "whelk"))
    };
    let mut differ = Vec::new();
    for line in ALIKE.lines().filter(|line| !line.is_empty()) {
        let args = words(line);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (docker, whelk) = (said(Program::Docker, &args), said(Program::Whelk, &args));
        if docker != whelk {
            differ.push(format!("{line}\n  {docker:?}\n  {whelk:?}"));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    // The engine's text ends with a space, which the clients do not print.
    let refused = engine.whelk(&["network", "create", "bridge"]).err();
    assert!(refused.ends_with("network\n"), "{refused:?}");
}

#[test]
fn both_command_lines_accept_the_same() {
    let engine = Engine::start();
    engine.both(|cli| {
        for line in [
            "create --annotation x --annotation a=b busybox",
            "create -v /: busybox",
            "create -p target=80,mode=ingress busybox",
            "create -p 80/tcp/udp busybox",
            "create --mac-address '' busybox",
            "create --mount type=BIND,SRC=/tmp,dst=/x busybox",
            "create --network bridge --network host busybox",
            "image prune -f --filter ''",
            "network create --ipam-opt x accepted",
            "network rm accepted",
        ] {
            let args = words(line);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            cli.run(&args).ok();
        }
    });
}

/// Splits a command line at spaces. Single quotes group.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for (index, part) in line.split('\'').enumerate() {
        let mut pieces = part.split(' ');
        if index % 2 == 1 {
            words.last_mut().unwrap().push_str(part);
            continue;
        }
        words
            .last_mut()
            .unwrap()
            .push_str(pieces.next().unwrap_or_default());
        words.extend(pieces.map(str::to_owned));
    }
    words
}
