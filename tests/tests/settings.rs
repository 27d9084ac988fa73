//! Keys of daemon.json and flags of `whelk daemon`, and reading them again on SIGHUP.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use whelk_tests::{Engine, PATIENCE, Program, eventually};

/// Starts an engine with these keys.
fn with(keys: &Value) -> Engine {
    let engine = Engine::start();
    engine.kill9();
    engine.configure(keys);
    engine.restart();
    engine
}

fn hangup(engine: &Engine) {
    kill_process(Pid::from_raw(engine.daemon_pid()).unwrap(), Signal::HUP).unwrap();
}

/// Sends SIGHUP, and waits for a line in the engine's log.
fn reload(engine: &Engine, text: &str) {
    hangup(engine);
    eventually(text, || engine.last_words().contains(text).then_some(()));
}

const WORDS: &str = "grep NoNewPrivs /proc/self/status; grep Seccomp: /proc/self/status; ulimit -n; ulimit -Hn; ulimit -c; df -k /dev/shm | tail -n 1; cat /proc/1/comm";

#[test]
fn containers_without_settings_of_their_own_have_the_engines() {
    let engine = Engine::start();
    let parent = format!("/{}/limited", engine.name());
    engine.kill9();
    engine.configure(&json!({
        "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 4321, "Soft": 1234}, "core": {"Name": "core", "Hard": 0, "Soft": 0}},
        "default-shm-size": "8M",
        "default-ipc-mode": "shareable",
        "cgroup-parent": parent,
        "init": true,
        "no-new-privileges": true,
        "seccomp-profile": "unconfined",
        "labels": ["zone=a"],
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "storage-driver": "overlay2",
    }));
    engine.restart();
    engine.both(|cli| {
        let words = |flags: &[&str]| {
            let shown = cli.sh(flags, WORDS).ok();
            let words: Vec<String> = shown.split_whitespace().map(str::to_owned).collect();
            words.join(" ")
        };
        let plain = words(&["--rm"]);
        assert!(
            plain.starts_with("NoNewPrivs: 1 Seccomp: 0 1234 4321 0 shm 8192 "),
            "{plain}"
        );
        assert!(plain.ends_with(" docker-init"), "{plain}");
        let own = words(&[
            "--rm",
            "--init=false",
            "--shm-size=1m",
            "--ulimit=nofile=99:100",
            "--security-opt=no-new-privileges=false",
            "--security-opt=seccomp=builtin",
        ]);
        assert!(
            own.starts_with("NoNewPrivs: 0 Seccomp: 2 99 100 0 shm 1024 ")
                && !own.ends_with(" docker-init"),
            "{own}"
        );
        cli.up("up", &[], &["sleep", "600"]);
        let host = &engine.inspect("up")["HostConfig"];
        assert_eq!(host["IpcMode"], "shareable");
        assert_eq!(host["ShmSize"], 8 << 20);
        let executed = cli.run(&[
            "exec",
            "up",
            "sh",
            "-c",
            "ulimit -n; grep NoNewPrivs /proc/self/status",
        ]);
        assert_eq!(executed.ok(), "1234\nNoNewPrivs:\t1");
        let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", engine.pid("up"))).unwrap();
        assert!(cgroup.contains(&format!(":{parent}/")), "{cgroup}");
        assert_eq!(
            cli.run(&["info", "--format", "{{json .Labels}}"]).ok(),
            r#"["zone=a"]"#
        );
        let options = cli
            .run(&["info", "--format", "{{json .SecurityOptions}}"])
            .ok();
        assert!(
            options.contains("name=seccomp,profile=unconfined")
                && options.contains("name=no-new-privileges"),
            "{options}"
        );
        cli.run(&["rm", "-f", "up"]).ok();
    });
}

#[test]
fn a_seccomp_profile_is_read_from_a_file() {
    let engine = Engine::start();
    engine.kill9();
    let profile = engine.scratch("profile").join("seccomp.json");
    let content = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    });
    fs::write(&profile, content.to_string()).unwrap();
    engine.configure(&json!({"seccomp-profile": profile}));
    engine.restart();
    let mkdir = |flags: &[&str]| {
        engine
            .cli(Program::Docker)
            .sh(flags, "mkdir /x && echo made")
    };
    assert!(mkdir(&["--rm"]).err().contains("Operation not permitted"));
    assert_eq!(
        mkdir(&["--rm", "--security-opt=seccomp=builtin"]).ok(),
        "made"
    );
    assert_eq!(mkdir(&["--rm", "--privileged"]).ok(), "made");
    engine.kill9();
    fs::write(&profile, "{").unwrap();
    let log = engine.refuses_to_start();
    assert!(log.contains("daemon.json: seccomp-profile: "), "{log}");
    fs::write(&profile, content.to_string()).unwrap();
}

#[test]
fn settings_are_read_again_on_sighup() {
    let engine = Engine::start();
    engine.kill9();
    engine.configure(&json!({"labels": ["a=1"], "mtu": 1400}));
    engine.restart();
    let labels = || engine.get("/info")["Labels"].clone();
    assert_eq!(labels(), json!(["a=1"]));
    let seconds = || whelk_tests::now_nanos() / 1_000_000_000;
    let begin = seconds();
    engine.configure(&json!({
        "labels": ["b=2"], "mtu": 1300, "debug": true, "default-shm-size": "1M", "max-concurrent-downloads": 9,
        "insecure-registries": ["10.0.0.0/8"], "registry-mirrors": ["https://mirror.test"], "shutdown-timeout": 30,
        "features": {"cdi": true, "buildkit": false},
    }));
    reload(
        &engine,
        "these have changed and are only read when the engine starts: mtu",
    );
    let info = engine.get("/info");
    assert_eq!(info["Labels"], json!(["b=2"]));
    assert_eq!(info["Debug"], true);
    let ping = engine.http("GET", "/_ping", &[], b"");
    assert_eq!(ping.header("builder-version"), Some("1"));
    assert_eq!(
        info["RegistryConfig"]["Mirrors"],
        json!(["https://mirror.test/"])
    );
    let until = seconds() + 1;
    engine.both(|cli| {
        let shown = cli.run(&[
            "events",
            "--since",
            &begin.to_string(),
            "--until",
            &until.to_string(),
            "--filter",
            "type=daemon",
            "--format",
            "{{json .}}",
        ]);
        let event: Value = serde_json::from_str(shown.ok().lines().next().unwrap()).unwrap();
        assert_eq!(event["Action"], "reload");
        let attributes = &event["Actor"]["Attributes"];
        for (key, value) in [
            ("debug", "true"),
            ("default-ipc-mode", "private"),
            ("default-runtime", "runc"),
            ("runtimes", ""),
            ("default-shm-size", "1048576"),
            ("features", "map[buildkit:false cdi:true]"),
            ("insecure-registries", r#"["10.0.0.0/8"]"#),
            ("labels", r#"["b=2"]"#),
            ("live-restore", "true"),
            ("max-concurrent-downloads", "9"),
            ("max-concurrent-uploads", "5"),
            ("max-download-attempts", "5"),
            ("registry-mirrors", r#"["https://mirror.test"]"#),
            ("shutdown-timeout", "30"),
        ] {
            assert_eq!(attributes[key], value, "{key}: {event}");
        }
        assert_eq!(attributes["name"], info["Name"]);
        assert_eq!(event["Actor"]["ID"], info["ID"]);
    });
    let size = engine
        .docker(&["run", "--rm", "busybox", "df", "-k", "/dev/shm"])
        .ok();
    assert!(size.contains(" 1024 "), "{size}");
    // Nothing of a file that cannot be used is applied.
    for (content, text) in [
        (
            r#"{"labels": ["c=3"], "default-shm-size": "x"}"#,
            "daemon.json: default-shm-size: \"x\": invalid size: 'x'",
        ),
        (r#"{"labels": ["c=3"]"#, "daemon.json: EOF while parsing"),
        (
            r#"{"labels": ["c=3"], "nosuch": 1}"#,
            "daemon.json: the following directives don't match any configuration option: nosuch",
        ),
    ] {
        fs::write(engine.root().parent().unwrap().join("daemon.json"), content).unwrap();
        reload(&engine, text);
        assert_eq!(labels(), json!(["b=2"]));
    }
    assert!(
        engine
            .last_words()
            .contains("the previous settings stay in use")
    );
}

/// A unit of `Type=notify-reload` waits for these messages.
#[test]
fn systemd_is_told_of_a_reload_and_of_the_end() {
    use std::os::linux::net::SocketAddrExt as _;
    let name = format!("whelk-test-reload-{}", std::process::id());
    let engine = Engine::with_env(&[("NOTIFY_SOCKET", &format!("@{name}"))]);
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
    let notices = UnixDatagram::bind_addr(&address).unwrap();
    notices.set_read_timeout(Some(PATIENCE)).unwrap();
    hangup(&engine);
    let notice = || {
        let mut text = [0; 128];
        let length = notices.recv(&mut text).expect("a notice");
        String::from_utf8(text[..length].to_vec()).unwrap()
    };
    let first = notice();
    let time = first.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
    assert!(
        time.is_some_and(|time| time.parse::<u64>().is_ok_and(|time| time > 0)),
        "{first}"
    );
    assert_eq!(notice(), "READY=1");
    kill_process(Pid::from_raw(engine.daemon_pid()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(notice(), "STOPPING=1");
    engine.terminate();
}

#[test]
fn flags_of_dockerd_are_those_of_the_engine() {
    let engine = Engine::without_images(&[]);
    engine.kill9();
    let pidfile = engine.scratch("pid").join("whelk.pid");
    engine.set_arguments(&[
        "--pidfile",
        pidfile.to_str().unwrap(),
        "--label=a=b",
        "--label=c=d",
        "--log-format=json",
        "-l",
        "debug",
        "--log-driver=local",
        "--log-opt=max-size=1m",
        "--iptables",
        "--selinux-enabled=false",
        "-s",
        "overlay2",
        "--insecure-registry=reg.test:5000",
        "--default-ulimit=nofile=1:2",
        "--live-restore",
    ]);
    engine.restart();
    let info = engine.get("/info");
    assert_eq!(info["Labels"], json!(["a=b", "c=d"]));
    assert_eq!(info["LoggingDriver"], "local");
    assert!(info["RegistryConfig"]["IndexConfigs"]["reg.test:5000"].is_object());
    assert_eq!(
        fs::read_to_string(&pidfile).unwrap(),
        engine.daemon_pid().to_string()
    );
    let log = engine.last_words();
    let entry = log
        .lines()
        .find(|line| line.starts_with('{') && line.contains("listening at"))
        .unwrap();
    let entry: Value = serde_json::from_str(entry).unwrap();
    assert_eq!(entry["level"], "info");
    assert!(
        entry["msg"]
            .as_str()
            .unwrap()
            .starts_with("listening at unix://")
    );
    assert!(entry["time"].as_str().unwrap().ends_with('Z'));
    engine.terminate();
    assert!(!pidfile.exists());
    // The engine of another instance has written it.
    let other = Engine::without_images(&[]);
    fs::write(&pidfile, other.daemon_pid().to_string()).unwrap();
    let log = engine.refuses_to_start();
    assert!(log.contains("is still running"), "{log}");
    drop(other);
    // Another program has the id of an engine that was killed. SIGHUP does no harm from the time at which the
    // file has an engine's id.
    fs::write(&pidfile, std::process::id().to_string()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let own = std::process::id().to_string();
            let pid = eventually("an engine's id", || {
                let pid = fs::read_to_string(&pidfile).unwrap_or_default();
                Some(pid).filter(|pid| !pid.is_empty() && *pid != own)
            });
            let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
            kill_process(pid, Signal::HUP).unwrap();
        });
        engine.restart();
    });
    eventually("the settings to be read again", || {
        let log = engine.last_words();
        log.contains("the settings were read again").then_some(())
    });
    engine.terminate();
    for (words, text) in [
        (vec!["--label=a"], "labels: bad attribute format: a"),
        (
            vec!["--authorization-plugin=x"],
            "authorization-plugins is not supported: ",
        ),
        (
            vec!["--userland-proxy"],
            "userland-proxy: true is not supported: ports are published by the kernel only",
        ),
        (vec!["--nosuch"], "unknown flag: --nosuch"),
    ] {
        engine.set_arguments(&words);
        let log = engine.refuses_to_start();
        assert!(log.contains(text), "{words:?}: {log}");
    }
    engine.configure(&json!({"labels": ["x=y"], "debug": false}));
    engine.set_arguments(&["-D", "--label=a=b"]);
    let log = engine.refuses_to_start();
    assert!(
        log.contains("daemon.json: the following directives are specified both as a flag and in the configuration file: labels: (from flag: [a=b], from file: [x=y]), debug: (from flag: true, from file: false)"),
        "{log}"
    );
    // It has to run to be cleaned up after.
    engine.set_arguments(&[]);
    engine.restart();
}

#[test]
fn host_gateway_has_an_address_of_each_family() {
    let engine = with(&json!({"host-gateway-ips": ["10.9.8.7", "fd00::7"]}));
    engine.both(|cli| {
        let hosts = cli
            .sh(
                &["--rm", "--add-host=gate:host-gateway"],
                "grep gate /etc/hosts",
            )
            .ok();
        assert_eq!(hosts, "10.9.8.7\tgate\nfd00::7\tgate");
    });
}

#[test]
fn lists_have_the_formats_of_the_clients_configuration() {
    let engine = Engine::start();
    let directory = engine.root().parent().unwrap().to_owned();
    let file = directory.join("docker-config/config.json");
    let mut content: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    for (key, format) in [
        ("psFormat", "{{.Names}}!"),
        ("imagesFormat", "{{.Repository}}:{{.Tag}}!"),
        ("networksFormat", "{{.Name}}!"),
        ("volumesFormat", "{{.Name}}!"),
        ("statsFormat", "{{.Name}}!"),
    ] {
        content[key] = format.into();
    }
    fs::write(&file, content.to_string()).unwrap();
    engine.both(|cli| {
        let id = cli.up("one", &[], &["sleep", "600"]);
        cli.run(&["volume", "create", "data"]).ok();
        assert_eq!(cli.run(&["ps"]).ok(), "one!");
        assert_eq!(cli.run(&["ps", "--format", "{{.State}}"]).ok(), "running");
        assert_eq!(cli.run(&["ps", "-q"]).ok(), id[..12]);
        assert_eq!(cli.run(&["images"]).ok(), "busybox:latest!");
        assert!(!cli.run(&["images", "-q"]).ok().contains('!'));
        assert_eq!(cli.run(&["volume", "ls"]).ok(), "data!");
        let networks = cli.run(&["network", "ls"]).ok();
        assert!(networks.lines().any(|line| line == "bridge!"), "{networks}");
        assert_eq!(cli.run(&["stats", "--no-stream"]).ok(), "one!");
        cli.run(&["rm", "-f", "one"]).ok();
        cli.run(&["volume", "rm", "data"]).ok();
        // Nothing but the heading without containers.
        let table = cli.run(&["stats", "--no-stream", "--format", "table"]).ok();
        assert!(
            table.lines().count() == 1 && table.starts_with("CONTAINER ID"),
            "{table}"
        );
    });
}

#[test]
fn requests_have_the_headers_of_the_clients_configuration() {
    let engine = Engine::start();
    let file = engine
        .root()
        .parent()
        .unwrap()
        .join("docker-config/config.json");
    let mut content: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    content["HttpHeaders"] =
        json!({"X-Token": "secret", "Host": "elsewhere", "Content-Type": "text/x"});
    fs::write(&file, content.to_string()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = format!("tcp://{}", listener.local_addr().unwrap());
    const RUNS: usize = 4;
    let heads = std::thread::spawn(move || {
        let mut heads = Vec::new();
        // Docker's client pings first.
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let mut lines = BufReader::new(connection.try_clone().unwrap()).lines();
            let head: Vec<String> = lines
                .by_ref()
                .map(Result::unwrap)
                .take_while(|line| !line.is_empty())
                .collect();
            let (path, head) = (head[0].clone(), head.join("\n").to_lowercase());
            let body = if path.contains("_ping") { "OK" } else { "[]" };
            let answer = format!(
                "HTTP/1.1 200 OK\r\nApi-Version: 1.51\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            connection.write_all(answer.as_bytes()).unwrap();
            heads.push(head);
            if path.contains("/containers/json")
                && heads
                    .iter()
                    .filter(|head| head.contains("/containers/json"))
                    .count()
                    == RUNS
            {
                break;
            }
        }
        heads
    });
    engine.both(|cli| {
        assert_eq!(cli.run(&["-H", &host, "ps", "-q"]).ok(), "");
    });
    // Those of the environment replace them.
    let custom = "one=1,\"X-Token=a, b\",X-Token=other,empty=,Host=elsewhere,User-Agent=elsewhere";
    let env = [("DOCKER_CUSTOM_HEADERS", custom)];
    engine.both(|cli| {
        let out = cli.with_env(&env).run(&["-H", &host, "ps", "-q"]);
        assert_eq!(out.ok(), "");
    });
    let heads = heads.join().unwrap();
    let is_custom = |head: &&String| head.contains("one: 1");
    let custom = heads.iter().filter(is_custom).count();
    assert!(custom >= RUNS / 2 && custom < heads.len(), "{heads:?}");
    for head in heads {
        let (token, empty) = match is_custom(&&head) {
            true => ("x-token: other", true),
            false => ("x-token: secret", false),
        };
        let has_empty = head.lines().any(|line| line.trim_end() == "empty:");
        assert!(
            head.contains(token) && has_empty == empty && !head.contains("elsewhere"),
            "{head}"
        );
    }
    for (wrong, reason) in [
        ("one", "missing \"=\" in key=value pair: 'one'"),
        (
            "a=b, =x",
            "value contains a key=value pair with an empty key: ' =x'",
        ),
        (
            "a\"b",
            "value must be formatted as comma-separated key=value pairs",
        ),
    ] {
        engine.both(|cli| {
            let env = [("DOCKER_CUSTOM_HEADERS", wrong)];
            let text = cli.with_env(&env).run(&["ps"]).fails(1);
            let begins = text.trim().starts_with("Failed to initialize: failed to ");
            assert!(begins && text.trim().ends_with(reason), "{text}");
        });
    }
    content["HttpHeaders"] = json!({"X Token": "secret"});
    fs::write(&file, content.to_string()).unwrap();
    engine.both(|cli| {
        let text = cli.run(&["ps"]).fails(1);
        assert!(
            text.contains("invalid header field name") && !text.contains("secret"),
            "{text}"
        );
    });
}

#[test]
fn the_timeout_of_stops_the_oldest_api_and_the_oom_score_are_settings() {
    let engine = with(&json!({
        "default-stop-timeout": 1, "min-api-version": "1.40", "oom-score-adjust": 123, "default-cgroupns-mode": "host",
    }));
    let of_process = |file: &str| {
        let path = format!("/proc/{}/{file}", engine.daemon_pid());
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    assert_eq!(of_process("oom_score_adj"), "123");
    assert_eq!(engine.get("/version")["MinAPIVersion"], "1.40");
    let (status, answer) = engine.api("GET", "/v1.39/info", None);
    assert_eq!(status, 400, "{answer}");
    assert_eq!(engine.api("GET", "/v1.40/info", None).0, 200);
    let cli = engine.cli(Program::Docker);
    // Exits on its own before the default time of ten seconds is over. It counts, because it may have no processor for a while.
    let script = "trap 'for i in $(seq 60); do sleep 0.1; done; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    cli.up("deaf", &[], &["sh", "-c", script]);
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/cgroup")).unwrap();
    assert_eq!(
        namespace(engine.pid("deaf")),
        namespace(engine.daemon_pid())
    );
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", engine.pid("deaf"))).unwrap();
    assert_eq!(score.trim(), "0", "that of a container is its own");
    engine.await_log("deaf", "ready");
    cli.run(&["stop", "deaf"]).ok();
    assert_eq!(engine.inspect("deaf")["State"]["ExitCode"], 137);
    // The timeout is read again on SIGHUP.
    engine.configure(&json!({
        "default-stop-timeout": 20, "min-api-version": "1.40", "oom-score-adjust": 123, "default-cgroupns-mode": "private",
    }));
    reload(&engine, "SIGHUP: the settings were read again");
    cli.up("later", &["--stop-signal", "USR1"], &["sleep", "600"]);
    assert_ne!(
        namespace(engine.pid("later")),
        namespace(engine.daemon_pid())
    );
    let mut stopping = cli.spawn(&["stop", "later"]);
    std::thread::sleep(Duration::from_secs(3));
    assert!(stopping.is_running());
    cli.run(&["kill", "later"]).ok();
    stopping.finish().ok();
}
