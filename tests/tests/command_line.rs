//! How command lines are read, and how `--format` prints: both programs side by side.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

use std::path::PathBuf;
use std::process::Command;

use whelk_tests::{Engine, Program};

/// Our program in an environment that says nothing of engines.
fn whelk(args: &[&str]) -> Command {
    let mut command = Command::new(Program::Whelk.path());
    command.args(args);
    for name in [
        "WHELK_HOST",
        "DOCKER_HOST",
        "DOCKER_CONTEXT",
        "DOCKER_CONFIG",
        "DOCKER_TLS_VERIFY",
    ] {
        command.env_remove(name);
    }
    command
}

/// Status, standard output and standard error.
fn run(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn attached_values_and_explicit_booleans() {
    let engine = Engine::start();
    engine.both(|cli| {
        let created = cli.run(&[
            "create",
            "--name=one",
            "-it",
            "-eA=b",
            "-v/tmp:/x",
            "-m64m",
            "-u=5",
            "-p127.0.0.1::80",
            "-lk=v",
            "--rm=true",
            "--init=false",
            "--read-only=1",
            "--privileged=F",
            "-c0x10",
            "--cpu-shares",
            "0x20",
            "-hname",
            "busybox",
            "true",
            "-eX=y",
        ]);
        created.ok();
        let container = engine.inspect("one");
        let (host, config) = (&container["HostConfig"], &container["Config"]);
        assert!(
            config["Env"].as_array().unwrap().contains(&"A=b".into()),
            "{config}"
        );
        assert_eq!(
            (&config["User"], &config["Hostname"], &config["Labels"]["k"]),
            (&"5".into(), &"name".into(), &"v".into())
        );
        assert_eq!(config["Cmd"], serde_json::json!(["true", "-eX=y"]));
        assert_eq!(
            (&config["Tty"], &config["OpenStdin"]),
            (&true.into(), &true.into())
        );
        assert_eq!(host["Binds"], serde_json::json!(["/tmp:/x"]));
        assert_eq!(
            (&host["Memory"], &host["CpuShares"]),
            (&(64 << 20).into(), &32.into())
        );
        assert_eq!(
            (
                &host["AutoRemove"],
                &host["ReadonlyRootfs"],
                &host["Privileged"]
            ),
            (&true.into(), &true.into(), &false.into())
        );
        assert!(
            host["Init"].is_null() || host["Init"] == false,
            "{}",
            host["Init"]
        );
        assert!(host["PortBindings"]["80/tcp"].is_array(), "{host}");
        let listed = cli.run(&["ps", "-qa=true", "--no-trunc=false"]).ok();
        assert_eq!(listed.len(), 12, "{listed}");
        assert_eq!(
            cli.run(&["ps", "-aq", "-a=false"]).ok(),
            "",
            "the last one counts"
        );
        assert_eq!(cli.run(&["rm", "one", "-f"]).ok(), "one");
    });
    engine.both(|cli| {
        cli.up("up", &[], &["sleep", "600"]);
        assert_eq!(cli.run(&["exec", "-uroot", "up", "id", "-u"]).ok(), "0");
        assert_eq!(
            cli.run(&[
                "exec",
                "-w/tmp",
                "-eA=b",
                "-it=false",
                "up",
                "sh",
                "-c",
                "echo $A $PWD"
            ])
            .ok(),
            "b /tmp"
        );
        cli.run(&["stop", "-t0", "up"]).ok();
    });
}

#[test]
fn mistakes_come_with_usage_and_a_hint() {
    let engine = Engine::without_images(&[]);
    for (args, code, text) in [
        (
            &["run", "--nosuch"][..],
            125,
            "unknown flag: --nosuch\n\nUsage:  docker run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nRun 'docker run --help' for more information",
        ),
        (
            &["ps", "-aZ"],
            125,
            "unknown shorthand flag: 'Z' in -Z\n\nUsage:  docker ps [OPTIONS]\n\nRun 'docker ps --help'",
        ),
        (
            &["stop", "-t=abc", "x"],
            125,
            "invalid argument \"abc\" for \"-t, --timeout\" flag: strconv.ParseInt: parsing \"abc\": invalid syntax\n\nUsage:  docker stop",
        ),
        (
            &["run", "--rm=2", "x"],
            125,
            "invalid argument \"2\" for \"--rm\" flag: strconv.ParseBool: parsing \"2\": invalid syntax\n\nUsage:",
        ),
        (
            &["run", "--blkio-weight", "70000", "x"],
            125,
            "strconv.ParseUint: parsing \"70000\": value out of range",
        ),
        (
            &["run", "-m", "abc", "x"],
            125,
            "invalid argument \"abc\" for \"-m, --memory\" flag: invalid size: 'abc'\n\nUsage:  docker run",
        ),
        (
            &["ps", "--filter", "foo"],
            125,
            "bad format of filter (expected name=value)\n\nUsage:  docker ps [OPTIONS]",
        ),
        (&["ps", "---x"], 125, "bad flag syntax: ---x"),
        (&["--nosuch", "ps"], 125, "unknown flag: --nosuch"),
        (
            &["ps", "x"],
            1,
            "'docker ps' accepts no arguments\n\nUsage:  docker ps [OPTIONS]\n\nRun 'docker ps --help' for more information",
        ),
        (
            &["run", "--security-opt", "foo", "x"],
            125,
            "Invalid --security-opt: \"foo\"\n\nRun 'docker run --help' for more information",
        ),
        (
            &["create", "--security-opt", "foo", "x"],
            125,
            "Invalid --security-opt: \"foo\"\n\nRun 'docker create --help' for more information",
        ),
        (
            &["run", "--pull", "never", "nosuch"],
            125,
            "No such image: nosuch:latest\n\nRun 'docker run --help' for more information",
        ),
        (
            &["container", "nosuch"],
            1,
            "docker: unknown command: docker container nosuch\n\nUsage:  docker container",
        ),
        (
            &["--log-level", "foo", "ps"],
            1,
            "Unable to parse logging level: foo",
        ),
        (
            &["-H", "unix:///a", "-c", "b", "ps"],
            1,
            "conflicting options: cannot specify both --host and --context",
        ),
        (
            &["-c", "foo", "ps"],
            1,
            "unable to resolve docker endpoint: context \"foo\": context not found",
        ),
    ] {
        engine.docker(args).refuses(code, text);
        engine.whelk(args).refuses(
            code,
            &text
                .replace("docker ", "whelk ")
                .replace("docker: ", "whelk: ")
                .replace("whelk endpoint", "docker endpoint"),
        );
    }
}

#[test]
fn exit_codes_of_what_never_ran() {
    let engine = Engine::start();
    let file = engine.scratch("files").join("id");
    std::fs::write(&file, "x").unwrap();
    let (there, nowhere) = (file.display().to_string(), "/nosuch/id".to_owned());
    engine.both(|cli| {
        for (path, run, text) in [
            (&there, 125, "container ID file found, make sure the other container isn't running or delete"),
            (&nowhere, 127, "failed to create the container ID file: open /nosuch/id: no such file or directory"),
        ] {
            cli.run(&["run", "--cidfile", path, "busybox", "true"]).refuses(run, text);
            cli.run(&["create", "--cidfile", path, "busybox", "true"]).refuses(1, text);
        }
        cli.up("up", &[], &["sleep", "600"]);
        let said = cli.run(&["exec", "-w", "rel", "up", "true"]).exits(128);
        assert!(said.contains("OCI runtime exec failed: exec failed: Cwd must be an absolute path"), "{said}");
    });
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "x");
    // A container that cannot be made leaves no file.
    let new = engine.scratch("files").join("new");
    engine.both(|cli| {
        cli.run(&[
            "create",
            "--cidfile",
            &new.display().to_string(),
            "--pull",
            "never",
            "nosuch",
        ])
        .fails(1);
        assert!(!new.exists());
        let id = cli
            .run(&["create", "--cidfile", &new.display().to_string(), "busybox"])
            .ok();
        assert_eq!(std::fs::read_to_string(&new).unwrap(), id);
        std::fs::remove_file(&new).unwrap();
    });
}

#[test]
fn templates_over_typed_values() {
    let engine = Engine::start();
    engine.whelk(&["volume", "create", "vol"]).ok();
    engine.whelk(&["network", "create", "net"]).ok();
    engine.cli(Program::Whelk).up(
        "one",
        &[
            "--restart",
            "always",
            "--label",
            "a.b=c,d",
            "--ulimit",
            "nofile=10:20",
            "-p",
            "127.0.0.1::80",
            "-v",
            "vol:/v",
        ],
        &["sleep", "600"],
    );
    for template in [
        "{{.HostConfig.RestartPolicy}} {{.HostConfig.RestartPolicy.Name}} {{json .HostConfig.RestartPolicy}}",
        "{{.HostConfig.LogConfig}}{{.HostConfig.Ulimits}}{{.HostConfig.Binds}}{{.HostConfig.CapAdd}}{{.HostConfig.PidsLimit}}",
        "{{.Config.Labels}}{{.Config.Volumes}}{{.Config.StopTimeout}}{{.Config.Healthcheck}}{{.Config.ExposedPorts}}",
        "{{.ID}} {{.RestartCount}} {{.SizeRw}} {{.State.Health}} {{.State.Pid}} {{.State.Running}}",
        "{{.HostConfig.Memory}} {{.HostConfig.CPUShares}} {{.HostConfig.NetworkMode.IsPrivate}} {{.HostConfig.DNS}}",
        "{{.Id}} {{.Nope}}",
        "{{.State.Nope}}",
        "{{eq .State.ExitCode 0}} {{lt .State.ExitCode 1}}",
        "{{.Id}} {{eq .State.ExitCode 0}}",
        "{{index .Config.Labels 3}}",
        "{{index .Config.Labels \"a.b\"}}|{{index .Config.Labels \"no\"}}|{{.NetworkSettings.Networks.nosuch}}",
        "{{printf \"%+v|%s|%d|%T\" .HostConfig.RestartPolicy .Args .State.ExitCode .State.Pid}}",
        "{{range $k, $v := .Config.Labels}}{{$k}}={{$v}};{{end}}{{range .Mounts}}{{.Name}} {{.RW}}{{else}}none{{end}}",
        "{{with .State}}{{.Status}}{{end}}{{println .Name 1}}{{len .Args}}{{upper .Path}}",
        "{{",
        "{{foo}}",
        "{{if .State.Running}}",
        "json",
    ] {
        let docker = engine.docker(&["inspect", "-f", template, "one"]);
        let ours = engine.whelk(&["inspect", "-f", template, "one"]);
        assert_eq!(
            (docker.code, docker.out(), docker.err()),
            (ours.code, ours.out(), ours.err()),
            "{template}"
        );
    }
    for args in [
        &[
            "image",
            "inspect",
            "-f",
            "{{.Config}} {{.RootFS.Type}} {{.Metadata}} {{.Descriptor}} {{.Size}}",
            "busybox",
        ][..],
        &[
            "network",
            "inspect",
            "-f",
            "{{.Created}} {{.IPAM}} {{.Options}} {{.ConfigFrom}} {{.Peers}} {{.Containers}}",
            "net",
        ],
        &["volume", "inspect", "-f", "{{.}}", "vol"],
        &["inspect", "-f", "{{.Name}}", "one", "nosuch", "vol"],
        &[
            "info",
            "-f",
            "{{.NCPU}} {{.Swarm}} {{.Plugins.Volume}} {{.SecurityOptions}} {{.Nope}}",
        ],
        &[
            "version",
            "-f",
            "{{.Server.APIVersion}} {{.Server.Experimental}} {{.Server.Platform}} {{.Client.Os}} {{.Client.Context}}",
        ],
        &["version", "-f", "{{.Nope}}"],
        &["version", "-f", "{{"],
        &["ps", "--format", "{{.Nope}}"],
        &[
            "ps",
            "--format",
            "{{.Names}}\t{{.Label \"a.b\"}}|{{.Labels}}|{{.Mounts}}",
        ],
        &[
            "ps",
            "--format",
            "table {{.Names}}\\t{{.Label \"x.my-label\"}}\\t{{upper .Names}}\\t{{truncate .ID 3}}\\t{{json .Names}}",
        ],
        &["ps", "--format", "table{{.Names}} {{len .Names}}"],
        &["images", "--format", "{{json .}}"],
        &["images", "--format", "{{.Nope}}"],
        &["network", "ls", "--format", "{{.Name}} {{.Nope}}"],
        &["volume", "ls", "--format", "{{json .}}"],
    ] {
        let docker = engine.docker(args);
        let ours = engine.whelk(args);
        assert_eq!(
            (docker.code, docker.out(), docker.err()),
            (ours.code, ours.out(), ours.err()),
            "{args:?}"
        );
    }
}

/// A directory with Docker's configuration: one context, which is the current one.
fn with_context(engine: &Engine) -> PathBuf {
    let hash = Command::new("sh")
        .args(["-c", "printf mine | sha256sum"])
        .output()
        .unwrap();
    let config = engine.scratch("config");
    let id = String::from_utf8_lossy(&hash.stdout)[..64].to_owned();
    let meta = config.join("contexts/meta").join(id);
    std::fs::create_dir_all(&meta).unwrap();
    let host = engine.socket().display().to_string();
    let text = format!(
        r#"{{"Name": "mine", "Metadata": {{}}, "Endpoints": {{"docker": {{"Host": "unix://{host}", "SkipTLSVerify": false}}}}}}"#
    );
    std::fs::write(meta.join("meta.json"), text).unwrap();
    std::fs::write(config.join("config.json"), r#"{"currentContext": "mine"}"#).unwrap();
    config
}

#[test]
fn contexts_of_dockers_store_say_where_the_engine_is() {
    let engine = Engine::without_images(&[]);
    let config = with_context(&engine).display().to_string();
    for args in [
        &["--config", &config, "version", "-f", "{{.Client.Context}}"][..],
        &[
            "--config",
            &config,
            "-c",
            "mine",
            "version",
            "-f",
            "{{.Client.Context}}",
        ],
    ] {
        for program in [Program::Docker, Program::Whelk] {
            let mut command = whelk(args);
            let mut docker = Command::new(program.path());
            docker
                .args(args)
                .env_remove("DOCKER_HOST")
                .env_remove("DOCKER_CONTEXT");
            let said = run(if program == Program::Whelk {
                &mut command
            } else {
                &mut docker
            });
            assert_eq!(
                said,
                (0, "mine".into(), String::new()),
                "{program:?} {args:?}"
            );
        }
    }
    let (code, _, err) = run(&mut whelk(&["--config", &config, "--tlsverify", "ps"]));
    assert_eq!(
        (
            code,
            err.contains("--tlsverify: TLS connections are not available")
        ),
        (1, true),
        "{err}"
    );
    let (code, _, err) = run(&mut whelk(&[
        "-D",
        "-H",
        &format!("unix://{}", engine.socket().display()),
        "ps",
    ]));
    assert!(
        code == 0 && err.contains("GET /v1.51/containers/json"),
        "{err}"
    );
}

#[test]
fn an_engine_that_may_not_be_reached_is_no_missing_one() {
    let engine = Engine::without_images(&[]);
    let socket = engine.socket();
    // A copy that everybody may run; the socket is not everybody's.
    let program = engine.scratch("bin").join("whelk");
    std::fs::hard_link(Program::Whelk.path(), &program)
        .or_else(|_| std::fs::copy(Program::Whelk.path(), &program).map(drop))
        .unwrap();
    let host = format!("unix://{}", socket.display());
    let script = format!(
        "exec 3<{}; cd /; exec setpriv --reuid 65534 --regid 65534 --clear-groups /proc/self/fd/3 -H {host} ps",
        program.display()
    );
    let (code, _, err) = run(Command::new("sh")
        .args(["-c", &script])
        .env_remove("DOCKER_HOST")
        .env_remove("WHELK_HOST"));
    assert_eq!(
        (code, err),
        (
            1,
            format!("permission denied while trying to connect to the docker API at {host}")
        )
    );
}

#[test]
fn version_starts_no_engine() {
    let script = r#"for place in /run /var/lib /var/log; do mount -t tmpfs none $place || exit 9; done
        "$0" version; echo "code $?"; "$0" __complete 'whelk run --network '; "$0" help >/dev/null; "$0" completion bash >/dev/null
        ls /run/whelk /var/lib/whelk /var/log/whelk.log"#;
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-c", script])
        .arg(Program::Whelk.path())
        .env_remove("DOCKER_HOST")
        .env_remove("WHELK_HOST");
    let (_, out, err) = run(command.env("DOCKER_CONFIG", "/nosuch"));
    assert!(
        out.starts_with("Client:\n Version:") && out.ends_with("code 1"),
        "{out}"
    );
    assert!(err.starts_with("Cannot connect to the Docker daemon at unix:///run/whelk/whelk.sock. Is the docker daemon running?"), "{err}");
    assert_eq!(err.matches("No such file").count(), 3, "{err}");
}

#[test]
fn completions_offer_names() {
    let engine = Engine::start();
    engine.whelk(&["volume", "create", "cvol"]).ok();
    engine.whelk(&["network", "create", "cnet"]).ok();
    engine.whelk(&["create", "--name", "cdown", "busybox"]).ok();
    engine.cli(Program::Whelk).up("cup", &[], &["sleep", "600"]);
    let words = |line: &str| -> Vec<String> {
        engine
            .whelk(&["__complete", line])
            .ok()
            .lines()
            .map(|line| line.split('\t').next().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(words("whelk stop c"), ["cup"]);
    assert_eq!(words("whelk start c"), ["cdown"]);
    assert_eq!(words("whelk rm -f cup c"), ["cdown"]);
    assert_eq!(words("whelk inspect c"), ["cdown", "cnet", "cup", "cvol"]);
    assert_eq!(words("whelk run --network c"), ["cnet"]);
    assert_eq!(words("whelk run --network=c"), ["--network=cnet"]);
    assert_eq!(words("whelk run -it bus"), ["busybox:latest"]);
    assert_eq!(words("whelk run -v c"), ["cvol", ":files"]);
    assert_eq!(words("whelk network disconnect cnet c"), ["cdown", "cup"]);
    assert_eq!(words("whelk volume r"), ["rm"]);
    assert_eq!(
        words("whelk run --memory-swap"),
        ["--memory-swap", "--memory-swappiness"]
    );
    // As bash itself does it.
    let script = r#"source <("$0" completion bash)
        COMP_LINE=$1; COMP_POINT=${#1}; read -ra COMP_WORDS <<<"$1"; COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_WORDS[0]=$0; _whelk; echo "${COMPREPLY[@]}""#;
    for (line, expected) in [
        ("whelk exec cu", "cup"),
        ("whelk run busybox:la", "latest"),
        ("whelk run --pull=m", "missing"),
    ] {
        let mut command = Command::new("bash");
        command
            .args(["-c", script])
            .arg(Program::Whelk.path())
            .arg(line)
            .env(
                "DOCKER_HOST",
                format!("unix://{}", engine.socket().display()),
            );
        assert_eq!(
            run(&mut command),
            (0, expected.into(), String::new()),
            "{line}"
        );
    }
}

#[test]
fn manual_pages_for_all_programs() {
    let dir = std::env::temp_dir().join(format!("whelk-man-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let made = run(&mut whelk(&["man", &dir.display().to_string()]));
    let page = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
    let found = [
        ("whelk-run.1", "publish"),
        ("whelk-daemon.1", "uninstall"),
        ("whelk-oci.1", "systemd"),
        ("whelk-oci-create.1", "console"),
    ];
    let missing: Vec<_> = found
        .iter()
        .filter(|(name, text)| !page(name).contains(text))
        .collect();
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(
        (made, missing.len()),
        ((0, String::new(), String::new()), 0),
        "{missing:?}"
    );
}

#[test]
fn system_df_shortens_commands() {
    let engine = Engine::start();
    engine
        .whelk(&[
            "create",
            "--name",
            "one",
            "busybox",
            "sleep",
            "1000",
            "aaaaaaaaaaaaaaaaaaaaaaaa",
        ])
        .ok();
    for program in [Program::Docker, Program::Whelk] {
        let said = engine.cli(program).run(&["system", "df", "-v"]).ok();
        assert!(
            said.contains("\"sleep 1000 aaaaaaaa…\""),
            "{program:?}: {said}"
        );
    }
}
