//! Parsing of command lines and output of `--format`, compared between both programs.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use whelk_tests::{Engine, Program, images};

/// Returns a whelk command in an environment without variables that select an engine.
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
fn parses_attached_values_and_explicit_booleans() {
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
fn usage_errors_show_usage_and_a_hint() {
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
fn exit_codes_of_commands_that_could_not_run() {
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
    // A container that cannot be created leaves no file.
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
        .refuses(1, "No such image: nosuch:latest");
        assert!(!new.exists());
        let id = cli
            .run(&["create", "--cidfile", &new.display().to_string(), "busybox"])
            .ok();
        assert_eq!(std::fs::read_to_string(&new).unwrap(), id);
        std::fs::remove_file(&new).unwrap();
    });
}

#[test]
fn templates_access_typed_values() {
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
fn contexts_of_dockers_store_select_the_engine() {
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
            err.contains("--tlsverify: the context \"mine\" has TLS settings of its own")
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
fn permission_denied_on_the_socket_starts_no_engine() {
    let engine = Engine::without_images(&[]);
    let socket = engine.socket();
    // A copy that all users may execute; they may not connect to the socket.
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

/// Runs a shell with its completion script and the `whelk` under test, in an empty directory.
fn completed(engine: &Engine, shell: &str, args: &[&str]) -> Vec<String> {
    let place = engine.scratch(shell);
    let programs = place.join("programs");
    std::fs::create_dir_all(place.join("empty")).unwrap();
    if !programs.exists() {
        std::fs::create_dir(&programs).unwrap();
        std::os::unix::fs::symlink(Program::Whelk.path(), programs.join("whelk")).unwrap();
    }
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(shell);
    command
        .args(args)
        .env("PATH", path)
        .env("HOME", &place)
        .env("TERM", "dumb")
        .current_dir(place.join("empty"));
    let (code, out, err) = run(command.env(
        "DOCKER_HOST",
        format!("unix://{}", engine.socket().display()),
    ));
    assert_eq!((code, err.as_str()), (0, ""), "{shell}: {out}");
    out.lines().map(str::to_owned).collect()
}

#[test]
fn completions_in_zsh() {
    /// Prints each line as it is after a tab, in an interactive shell on a terminal of its own.
    const SCRIPT: &str = r#"
        zmodload zsh/zpty zsh/zselect
        out=$HOME/line
        await() { repeat 1200 { [[ -e $out ]] && return; zselect -t 5 }; print -u2 "zsh does not answer"; exit 1 }
        whelk completion zsh >$HOME/_whelk
        zpty shell zsh -f -i
        zpty -w shell "PS1= fpath=($HOME \$fpath); autoload -U compinit; compinit -u -D; bindkey '^I' complete-word"
        zpty -w shell "tell() { print -r -- \$BUFFER >$out.new; mv $out.new $out; BUFFER= }; zle -N tell; bindkey '^X^T' tell"
        zpty -w shell "zle-line-init() { : >$out }; zle -N zle-line-init"
        for line in "$@"; do
            await; rm $out
            zpty -w -n shell "$line"$'\t\x18\x14'
            await; print -r -- "$(<$out)|"
        done
        zpty -d shell"#;
    let engine = Engine::start();
    engine.whelk(&["volume", "create", "cvol"]).ok();
    engine.cli(Program::Whelk).up("cup", &[], &["sleep", "600"]);
    let cases = [
        ("whelk ru", "whelk run |"),
        ("whelk exec cu", "whelk exec cup |"),
        ("whelk run -it busybox:la", "whelk run -it busybox:latest |"),
        ("whelk run -v c", "whelk run -v cvol |"),
        ("whelk run --read-o", "whelk run --read-only |"),
        ("whelk exec nosuch", "whelk exec nosuch|"),
    ];
    let lines = cases.iter().map(|(line, _)| *line);
    let args: Vec<&str> = ["-f", "-c", SCRIPT, "zsh"]
        .into_iter()
        .chain(lines)
        .collect();
    assert_eq!(
        completed(&engine, "zsh", &args),
        cases.map(|(_, expected)| expected)
    );
}

#[test]
fn completions_in_fish() {
    let engine = Engine::start();
    engine.whelk(&["volume", "create", "cvol"]).ok();
    engine.cli(Program::Whelk).up("cup", &[], &["sleep", "600"]);
    for (line, expected) in [
        (
            "whelk ru",
            "run\tCreate and run a new container from an image",
        ),
        ("whelk exec cu", "cup\tbusybox, Up "),
        ("whelk run -it busybox:la", "busybox:latest\timage"),
        ("whelk run -v c", "cvol\tvolume, local"),
        ("whelk run --read-o", "--read-only\t"),
    ] {
        let script = "whelk completion fish | source; complete -C $argv[1]";
        let offered = completed(&engine, "fish", &["--no-config", "-c", script, line]);
        assert!(
            offered.len() == 1 && offered[0].starts_with(expected),
            "{line}: {offered:?}"
        );
    }
}

#[test]
fn unavailable_flags_are_rejected_by_name() {
    let engine = Engine::start();
    let later =
        |flag: &str, what: &str| format!("{flag}: {what} not available in this version of whelk");
    let mut cases: Vec<(Vec<&str>, i32, String)> = Vec::new();
    for command in ["run", "create"] {
        let code = if command == "run" { 125 } else { 1 };
        for (flag, value) in [
            ("--cpu-count", "1"),
            ("--cpu-percent", "1"),
            ("--io-maxbandwidth", "1m"),
            ("--io-maxiops", "1"),
        ] {
            let text = format!(
                "{flag:?} is only supported on a Docker daemon running on windows, but the Docker daemon is running on linux"
            );
            cases.push((vec![command, flag, value, "busybox"], code, text));
        }
        let trust = "--disable-content-trust=false";
        cases.push((
            vec![command, trust, "busybox"],
            125,
            later(trust, "content trust is"),
        ));
    }
    cases.push((
        vec!["network", "create", "--config-only", "made"],
        1,
        later("--config-only", "configuration networks are"),
    ));
    cases.push((
        vec!["network", "create", "--config-from", "x", "made"],
        1,
        later("--config-from", "configuration networks are"),
    ));
    cases.push((
        vec!["network", "create", "--ingress", "made"],
        1,
        later("--ingress", "networks of a swarm are"),
    ));
    for flag in [
        "--availability",
        "--group",
        "--limit-bytes",
        "--required-bytes",
        "--scope",
        "--secret",
        "--sharing",
        "--topology-preferred",
        "--topology-required",
        "--type",
    ] {
        cases.push((
            vec!["volume", "create", flag, "x", "made"],
            1,
            later(flag, "volumes of a swarm are"),
        ));
    }
    cases.push((
        vec!["volume", "ls", "--cluster"],
        1,
        later("--cluster", "volumes of a swarm are"),
    ));
    for flag in ["--tls", "--tlsverify"] {
        let text = format!("{flag}: TLS is not used on unix sockets: unix://");
        cases.push((vec![flag, "ps"], 1, text));
    }
    for (args, code, text) in &cases {
        engine.whelk(args).refuses(*code, text);
    }
    // None of the commands was executed.
    assert_eq!(engine.get("/containers/json?all=1"), serde_json::json!([]));
    assert_eq!(engine.whelk(&["volume", "ls", "-q"]).ok(), "");
    assert_eq!(
        engine
            .whelk(&["network", "ls", "-q", "--filter", "name=made"])
            .ok(),
        ""
    );
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
fn system_df_truncates_commands() {
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

/// Checks that both clients show the same, and returns it. Ages change between two commands, at another moment for each record, so that
/// the commands are repeated until both see the same ages: after a minute, ages do not change for another minute.
#[track_caller]
fn both_show(shown: impl Fn(Program) -> String, what: &str) -> String {
    let begin = Instant::now();
    loop {
        let (whelks, dockers) = (shown(Program::Whelk), shown(Program::Docker));
        if whelks == dockers {
            return dockers;
        }
        assert!(
            begin.elapsed() < Duration::from_secs(150),
            "{what}: {whelks}\n\nDocker's client:\n{dockers}"
        );
    }
}

#[test]
fn both_clients_format_disk_usage_in_detail() {
    let engine = Engine::start();
    engine.create(
        "one",
        &serde_json::json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}),
    );
    engine.whelk(&["volume", "create", "data"]).ok();
    for format in [
        "json",
        "{{json .}}",
        "{{range .Images}}{{.Repository}}:{{.Tag}} {{.ID}} {{.UniqueSize}}\\n{{end}}",
        "{{range .Containers}}{{.ID}} {{.Size}} {{.Names}}{{end}}",
        "{{range .Volumes}}{{.Name}} {{.Links}} {{.Size}}{{end}} {{len .BuildCache}}",
    ] {
        let shown = |program| {
            let words = ["system", "df", "-v", "--format", format];
            engine.cli(program).run(&words).ok()
        };
        both_show(shown, format);
    }
    engine
        .whelk(&["system", "df", "-v", "--format", "{{.Nosuch}}"])
        .refuses(1, "template");
}

#[test]
fn both_clients_show_the_records_of_the_build_cache() {
    let engine = Engine::start();
    // Without a record that has parents: docker's client does not read them.
    let dockerfile = "FROM busybox\n\
        RUN --mount=type=cache,target=/c dd if=/dev/urandom of=/c/file bs=3000 count=1\n";
    let context = engine.dockerfile("cached", dockerfile);
    engine.cli(Program::Whelk).built(&context, &[]);
    let shown = |program, more: &[&str]| {
        let words = [&["system", "df", "-v"], more].concat();
        let said = engine.cli(program).run(&words).ok();
        // Only whelk tells what is being deleted.
        let said = said.split("\n\nRemoved").next().unwrap();
        let section = said.rsplit("Build cache usage:").next().unwrap();
        section.trim().to_owned()
    };
    let fields = "{{range .BuildCache}}{{.ID}} {{.Parent}} {{.CacheType}} {{.Size}} {{.CreatedAt}} {{.LastUsedAt}} \
        {{.UsageCount}} {{.InUse}} {{.Shared}} {{.Description}}\\n{{end}}";
    let formats: [&[&str]; 3] = [
        &[],
        &["--format", "{{json .BuildCache}}"],
        &["--format", fields],
    ];
    for more in formats {
        let dockers = both_show(|program| shown(program, more), &format!("{more:?}"));
        assert!(dockers.contains("exec.cachemount"), "{dockers}");
    }
}

/// Returns the sum of the sizes of the files below a directory; one with several names counts once.
fn file_sizes(path: &std::path::Path, seen: &mut BTreeSet<u64>) -> u64 {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    if metadata.is_dir() {
        let entries = std::fs::read_dir(path).unwrap();
        let sizes = entries.map(|entry| file_sizes(&entry.unwrap().path(), seen));
        return sizes.sum();
    }
    if seen.insert(metadata.ino()) {
        metadata.len()
    } else {
        0
    }
}

#[test]
fn disk_usage_agrees_with_the_disk() {
    let engine = Engine::with_directories();
    engine.load(&std::fs::read(images::busybox()).unwrap());
    let script = "head -c 3000000 /dev/zero >/a; ln /a /b; ln -s /a /c; mkdir /d; head -c 500 /dev/zero >/d/e; head -c 2000000 /dev/zero >/v/f; ln /v/f /v/g";
    let words = [
        "run",
        "--name",
        "one",
        "--network",
        "none",
        "-v",
        "data:/v",
        "busybox",
        "sh",
        "-c",
        script,
    ];
    engine.whelk(&words).ok();
    let root = engine.root();
    let on_disk = |path: &std::path::Path| file_sizes(path, &mut BTreeSet::new());
    let usage = engine.get("/v1.51/system/df");
    let container = &usage["Containers"][0];
    let upper = root
        .join("containers")
        .join(container["Id"].as_str().unwrap())
        .join("upper");
    assert_eq!(container["SizeRw"], on_disk(&upper));
    // The third is the length of the symbolic link's target.
    assert_eq!(container["SizeRw"], 3_000_000 + 500 + 2);
    let volume = &usage["Volumes"][0];
    assert_eq!(
        volume["UsageData"]["Size"],
        on_disk(&root.join("volumes/data/_data"))
    );
    assert_eq!(volume["UsageData"]["Size"], 2_000_000);
    let layers = std::fs::read_dir(root.join("layers")).unwrap();
    let layers: u64 = layers
        .map(|layer| on_disk(&layer.unwrap().path().join("fs")))
        .sum();
    assert_eq!(usage["LayersSize"], layers);
    assert_eq!(usage["Images"][0]["Size"], layers);
}

#[test]
fn disk_usage_counts_logs() {
    let engine = Engine::start();
    let words = [
        "run",
        "--name",
        "talks",
        "--network",
        "none",
        "--log-opt",
        "max-size=50k",
        "--log-opt",
        "max-file=3",
        "busybox",
    ];
    engine
        .whelk(&[&words[..], &["seq", "10000"]].concat())
        .exits(0);
    let id = engine.inspect("talks")["Id"].as_str().unwrap().to_owned();
    let logs = || -> Vec<u64> {
        let files = std::fs::read_dir(engine.root().join("containers").join(&id)).unwrap();
        let files = files.map(Result::unwrap);
        let logs = files.filter(|file| file.file_name().to_string_lossy().contains("-json.log"));
        logs.map(|file| file.metadata().unwrap().len()).collect()
    };
    assert!(
        logs().len() >= 3 && logs().iter().sum::<u64>() > 100_000,
        "{:?}",
        logs()
    );
    let usage = engine.get("/system/df?type=logs");
    assert_eq!(usage["LogUsage"]["TotalSize"], logs().iter().sum::<u64>());
    assert_eq!(
        usage["LogUsage"]["Reclaimable"],
        usage["LogUsage"]["TotalSize"]
    );
    assert_eq!(usage["LogUsage"]["Items"][0]["Name"], "talks");
    let format = [
        "system",
        "df",
        "--format",
        "{{.Type}}={{.TotalCount}}={{.Size}}",
    ];
    let (ours, dockers) = (engine.whelk(&format).ok(), engine.docker(&format).ok());
    let (same, own) = ours.rsplit_once('\n').unwrap();
    assert_eq!(same, dockers, "Docker's rows are the same");
    assert!(own.starts_with("Logs=1=1") && own.ends_with("kB"), "{own}");
    let shown = engine.whelk(&["system", "df", "-v"]).ok();
    let section = shown.split("Logs space usage:").nth(1).unwrap();
    assert!(
        section.contains(&id[..12]) && section.contains("talks"),
        "{section}"
    );
    // The writable layer, which is what the API counts of a container, is without them.
    let writable = &engine.get("/v1.51/system/df")["Containers"][0]["SizeRw"];
    assert_eq!(writable.as_u64().unwrap_or(0), 0);
}

#[test]
fn sizes_of_containers_are_shown_on_request() {
    Engine::start().both(|cli| {
        cli.up(
            "big",
            &[],
            &["sh", "-c", "head -c 3000 /dev/zero >/f; exec sleep 600"],
        );
        whelk_tests::eventually("the file", || {
            (cli.run(&["inspect", "-s", "--format", "{{.SizeRw}}", "big"])
                .ok()
                == "3000")
                .then_some(())
        });
        let total: u64 = cli
            .run(&["inspect", "--size", "--format", "{{.SizeRootFs}}", "big"])
            .ok()
            .parse()
            .unwrap();
        assert!(total > 500_000, "{total}");
        assert!(cli.engine().inspect("big").get("SizeRw").is_none());
        let shown = cli.run(&["ps", "-s", "--format", "{{.Size}}"]).ok();
        assert!(
            shown.starts_with("3kB (virtual ") && shown.ends_with("MB)"),
            "{shown}"
        );
        assert!(
            cli.run(&["ps", "-as"])
                .ok()
                .lines()
                .next()
                .unwrap()
                .ends_with("SIZE")
        );
    });
}

#[test]
fn system_prune_removes_what_is_not_used() {
    let engine = Engine::start();
    engine.both(|cli| {
        for (tag, label) in [("labeled:1", "keep=no"), ("labeled:2", "keep=yes")] {
            let container = cli
                .run(&["create", "--network", "none", "busybox", "true"])
                .ok();
            cli.run(&["commit", "-c", &format!("LABEL {label}"), &container, tag])
                .ok();
            cli.run(&["rm", &container]).ok();
        }
        let pruned = cli
            .run(&["image", "prune", "-a", "-f", "--filter", "label=keep=no"])
            .ok();
        assert!(
            pruned.contains("labeled:1") && !pruned.contains("labeled:2"),
            "{pruned}"
        );
        let used = cli.up("used", &[], &["sleep", "600"]);
        let stopped = cli
            .run(&[
                "create",
                "--network",
                "none",
                "-v",
                "/data",
                "labeled:2",
                "true",
            ])
            .ok();
        cli.run(&["network", "create", "--ipv6=false", "unused"])
            .ok();
        let named = cli.run(&["volume", "create", "named"]).ok();
        let anonymous = cli.run(&["volume", "create"]).ok();
        let told = cli.run(&["system", "prune", "-a", "--volumes", "-f"]).ok();
        for expected in [
            format!("Deleted Containers:\n{stopped}\n"),
            "Deleted Networks:\nunused\n".into(),
            "Deleted Volumes:\n".into(),
            format!("{anonymous}\n"),
            "Deleted Images:\nuntagged: labeled:2\n".into(),
            "Total reclaimed space: ".into(),
        ] {
            assert!(told.contains(&expected), "{expected} is not in {told}");
        }
        assert_eq!(cli.run(&["ps", "-aq", "--no-trunc"]).ok(), used);
        assert_eq!(
            cli.run(&["volume", "ls", "-q"]).ok(),
            named,
            "named volumes stay"
        );
        assert_eq!(cli.run(&["images", "-q"]).ok().lines().count(), 1);
        cli.run(&["volume", "rm", "named"]).ok();
    });
}
