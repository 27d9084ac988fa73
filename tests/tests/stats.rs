//! Statistics of containers.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use whelk_tests::{Connection, Engine, Program, eventually};

/// A stream of statistics.
struct Stream {
    connection: Connection,
    unread: Vec<u8>,
}

impl Stream {
    #[track_caller]
    fn open(engine: &Engine, container: &str) -> Self {
        let mut connection = Connection::open(&engine.socket()).unwrap();
        let path = format!("/containers/{container}/stats");
        connection.send("GET", &path, &[], b"").unwrap();
        assert_eq!(connection.head().unwrap().0, 200);
        Self {
            connection,
            unread: Vec::new(),
        }
    }

    /// Waits for the next element. Returns `None` at the end of the stream.
    #[track_caller]
    fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            self.unread.extend(self.connection.part().unwrap()?);
        }
    }
}

fn once(engine: &Engine, container: &str) -> Value {
    engine.get(&format!("/containers/{container}/stats?stream=false"))
}

/// Returns the use of the CPU in percent of one processor, as clients compute it.
fn cpu_percent(stats: &Value) -> f64 {
    let difference = |pointer: &str| {
        let of = |what: &str| stats[what].pointer(pointer).unwrap().as_f64().unwrap();
        of("cpu_stats") - of("precpu_stats")
    };
    let processors = stats["cpu_stats"]["online_cpus"].as_f64().unwrap();
    difference("/cpu_usage/total_usage") / difference("/system_cpu_usage") * processors * 100.0
}

/// Returns the directory of a container's cgroup with a controller.
#[track_caller]
fn cgroup(engine: &Engine, container: &str, controller: &str) -> PathBuf {
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", engine.pid(container))).unwrap();
    let found = groups.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let wanted = if is_v2() { "" } else { controller };
        let is_it = controllers.split(',').any(|one| one == wanted);
        is_it.then(|| path.trim_start_matches('/').to_owned())
    });
    let root = if is_v2() { "" } else { controller };
    PathBuf::from("/sys/fs/cgroup")
        .join(root)
        .join(found.unwrap())
}

fn is_v2() -> bool {
    fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap()
}

/// Reads a number, or the one after a word, from a file of the container's cgroup.
#[track_caller]
fn kernel(engine: &Engine, container: &str, controller: &str, file: &str, word: &str) -> u64 {
    let path = cgroup(engine, container, controller).join(file);
    let text = fs::read_to_string(&path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(word));
    line.unwrap().trim().parse().unwrap()
}

#[track_caller]
fn number(stats: &Value, pointer: &str) -> u64 {
    let found = stats.pointer(pointer).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("{pointer}: {stats}"))
}

#[test]
fn figures_are_those_of_the_kernel() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let script = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/mem/file bs=1M count=20 2>/dev/null; (sleep 600 &); ping -c 3 -i 0.2 -s 1000 $(ip route | sed -n 's/default via \\([^ ]*\\).*/\\1/p') >/dev/null; echo ready; exec sleep 600";
    let flags = [
        "-m",
        "200m",
        "--pids-limit",
        "77",
        "--cpus",
        "0.9",
        "--tmpfs",
        "/mem",
    ];
    let run = ["run", "-d", "--name", "one"];
    let command = ["busybox", "sh", "-c", script];
    cli.run(&[&run[..], &flags, &command].concat()).ok();
    engine.await_log("one", "ready");
    // The processes sleep, so the kernel's figures stay as they are.
    let read =
        |controller: &str, file: &str, word: &str| kernel(&engine, "one", controller, file, word);
    let stats = once(&engine, "one");
    let pids = read("pids", "pids.current", "");
    assert!(pids > 1);
    assert_eq!(number(&stats, "/pids_stats/current"), pids);
    assert_eq!(stats["name"], "/one");
    assert_eq!(stats["id"], engine.inspect("one")["Id"]);
    assert_eq!(number(&stats, "/pids_stats/limit"), 77);
    assert_eq!(number(&stats, "/memory_stats/limit"), 200 << 20);
    let (total, usage) = if is_v2() {
        (
            read("", "cpu.stat", "usage_usec ") * 1000,
            read("", "memory.current", ""),
        )
    } else {
        (
            read("cpuacct", "cpuacct.usage", ""),
            read("memory", "memory.usage_in_bytes", ""),
        )
    };
    let near = |pointer: &str, expected: u64, tolerance: u64| {
        let found = number(&stats, pointer);
        assert!(
            found.abs_diff(expected) <= tolerance,
            "{pointer}: {found}, kernel: {expected}"
        );
    };
    near("/cpu_stats/cpu_usage/total_usage", total, 30_000_000);
    near("/memory_stats/usage", usage, 4 << 20);
    assert!(number(&stats, "/memory_stats/usage") > 20 << 20);
    let (name, shmem) = if is_v2() {
        ("shmem", read("", "memory.stat", "shmem "))
    } else {
        ("mapped_file", read("memory", "memory.stat", "mapped_file "))
    };
    near(&format!("/memory_stats/stats/{name}"), shmem, 1 << 20);
    let device = fs::read_to_string(format!("/proc/{}/net/dev", engine.pid("one"))).unwrap();
    let line = device
        .lines()
        .find_map(|line| line.trim().strip_prefix("eth0:"));
    let counts: Vec<u64> = line
        .unwrap()
        .split_whitespace()
        .map(|count| count.parse().unwrap())
        .collect();
    for (what, index) in [
        ("rx_bytes", 0),
        ("rx_packets", 1),
        ("tx_bytes", 8),
        ("tx_packets", 9),
    ] {
        near(&format!("/networks/eth0/{what}"), counts[index], 2000);
    }
    assert!(number(&stats, "/networks/eth0/tx_bytes") > 3000);
    assert_eq!(stats["networks"].as_object().unwrap().len(), 1, "no lo");
    let processors = fs::read_to_string("/proc/stat").unwrap();
    let online = processors
        .lines()
        .filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "))
        .count();
    assert_eq!(number(&stats, "/cpu_stats/online_cpus"), online as u64);
    let all = processors.lines().next().unwrap();
    let ticks: u64 = all
        .split_whitespace()
        .skip(1)
        .take(7)
        .map(|word| word.parse::<u64>().unwrap())
        .sum();
    near(
        "/cpu_stats/system_cpu_usage",
        ticks * 10_000_000,
        20_000_000_000,
    );
    if !is_v2() {
        let per_cpu = stats["cpu_stats"]["cpu_usage"]["percpu_usage"].as_array();
        assert!(per_cpu.unwrap().len() >= online);
    }
}

#[test]
fn what_is_read_and_written_is_counted() {
    let engine = Engine::start();
    let disk = engine.scratch_text("disk");
    let cli = engine.cli(Program::Docker);
    let volume = format!("{disk}:/disk");
    let script = "dd if=/dev/zero of=/disk/file bs=64k count=64 oflag=direct 2>/dev/null; echo ready; sleep 600";
    cli.up("one", &["-v", &volume], &["sh", "-c", script]);
    engine.await_log("one", "ready");
    let stats = once(&engine, "one");
    let entries = stats["blkio_stats"]["io_service_bytes_recursive"].clone();
    let (file, is_there) = if is_v2() {
        ("io.stat", true)
    } else {
        let file = "blkio.throttle.io_service_bytes_recursive";
        (file, cgroup(&engine, "one", "blkio").join(file).exists())
    };
    if !is_there {
        return;
    }
    let text = fs::read_to_string(cgroup(&engine, "one", "blkio").join(file)).unwrap();
    let written: u64 = text
        .split_whitespace()
        .collect::<Vec<_>>()
        .windows(2)
        .filter_map(|words| match words {
            ["Write", count] => count.parse::<u64>().ok(),
            [word, _] => word.strip_prefix("wbytes=")?.parse().ok(),
            _ => None,
        })
        .sum();
    let shown: u64 = entries
        .as_array()
        .into_iter()
        .flatten()
        .filter(|entry| entry["op"].as_str().unwrap().to_lowercase() == "write")
        .map(|entry| entry["value"].as_u64().unwrap())
        .sum();
    assert_eq!(shown, written, "{entries} {text}");
}

#[test]
fn one_request_tells_the_use_of_the_cpu_at_once() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.up(
        "busy",
        // Less than it gets beside other tests, so that it is throttled.
        &["--cpus", "0.2"],
        &["sh", "-c", "while :; do :; done"],
    );
    let names = ["idle", "idle-2", "idle-3", "idle-4"];
    for name in names {
        cli.up(name, &[], &["sleep", "600"]);
    }
    std::thread::sleep(Duration::from_secs(1));
    let (busy, idle) = (once(&engine, "busy"), once(&engine, "idle"));
    // A second sample comes after a second. Single requests may be late for another reason.
    let is_quick = |name: &&str| {
        let begin = Instant::now();
        once(&engine, name);
        begin.elapsed() < Duration::from_millis(900)
    };
    assert!(names[1..].iter().any(is_quick));
    assert!(cpu_percent(&busy) > cpu_percent(&idle), "{busy} {idle}");
    assert!(cpu_percent(&idle) < 5.0, "{idle}");
    // The sample of an earlier request is the previous one now.
    std::thread::sleep(Duration::from_secs(1));
    let later = once(&engine, "busy");
    assert_eq!(later["preread"], busy["read"]);
    assert_eq!(later["precpu_stats"], busy["cpu_stats"]);
    let percent = cpu_percent(&later);
    assert!((5.0..40.0).contains(&percent), "{percent}: {later}");
    assert!(
        number(&later, "/cpu_stats/throttling_data/throttled_periods") > 0,
        "{later}"
    );
}

#[test]
fn one_shot_has_no_previous_sample() {
    let engine = Engine::start();
    engine
        .cli(Program::Docker)
        .up("one", &[], &["sleep", "600"]);
    let get = |version: &str, query: &str| {
        let path = format!("{version}/containers/one/stats?{query}");
        engine.api("GET", &path, None)
    };
    let shot = "stream=false&one-shot=true";
    let (status, stats) = get("/v1.41", shot);
    assert_eq!(status, 200);
    assert_eq!(stats["name"], "/one");
    assert_eq!(stats["preread"], "0001-01-01T00:00:00Z");
    assert_eq!(number(&stats, "/precpu_stats/cpu_usage/total_usage"), 0);
    assert_eq!(stats["precpu_stats"].get("online_cpus"), None);
    assert!(number(&stats, "/cpu_stats/cpu_usage/total_usage") > 0);
    assert_eq!(stats.get("os_type"), None);
    assert_eq!(get("/v1.52", shot).1["os_type"], "linux");
    // Earlier versions do not have the parameter.
    let (_, before) = get("/v1.40", shot);
    assert!(number(&before, "/precpu_stats/system_cpu_usage") > 0);
    let refused = (
        400,
        json!({"message": "cannot have stream=true and one-shot=true"}),
    );
    assert_eq!(get("/v1.41", "one-shot=1"), refused);
    let (status, answer) = engine.api("GET", "/containers/nosuch/stats", None);
    assert_eq!(
        (status, &answer["message"]),
        (404, &json!("No such container: nosuch"))
    );
}

#[test]
fn interfaces_are_those_of_the_containers_networks() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let up = |name: &str, network: &str| {
        let flags = ["run", "-d", "--name", name, "--network", network];
        cli.run(&[&flags[..], &["busybox", "sleep", "600"]].concat())
            .ok();
    };
    cli.run(&["network", "create", "second"]).ok();
    up("two", "bridge");
    cli.run(&["network", "connect", "second", "two"]).ok();
    up("shares", "container:two");
    up("none", "none");
    up("host", "host");
    let names = |container: &str| {
        let stats = once(&engine, container);
        let networks = stats["networks"].as_object();
        networks.map(|networks| networks.keys().cloned().collect::<Vec<_>>())
    };
    let both = Some(vec!["eth0".to_owned(), "eth1".to_owned()]);
    assert_eq!(
        [names("two"), names("shares"), names("none"), names("host")],
        [both.clone(), both, None, None]
    );
}

#[test]
fn a_stream_follows_its_container_to_its_removal() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    cli.up("one", &[], &["sleep", "600"]);
    let mut stream = Stream::open(&engine, "one");
    let first = stream.next().unwrap();
    assert!(number(&first, "/precpu_stats/system_cpu_usage") > 0);
    let second = stream.next().unwrap();
    assert_eq!(
        (&second["preread"], &second["precpu_stats"]),
        (&first["read"], &first["cpu_stats"])
    );
    cli.run(&["pause", "one"]).ok();
    assert_eq!(number(&stream.next().unwrap(), "/pids_stats/current"), 1);
    cli.run(&["unpause", "one"]).ok();
    cli.run(&["kill", "one"]).ok();
    let stopped = eventually("an element of the stopped container", || {
        let next = stream.next().unwrap();
        next["pids_stats"].get("current").is_none().then_some(next)
    });
    let zero = "0001-01-01T00:00:00Z";
    assert_eq!(
        (&stopped["name"], &stopped["read"]),
        (&json!("/one"), &json!(zero))
    );
    assert_eq!(
        stream.next().unwrap()["precpu_stats"].get("online_cpus"),
        None
    );
    assert_eq!(once(&engine, "one")["read"], zero);
    cli.run(&["start", "one"]).ok();
    eventually("an element of the next run", || {
        let next = stream.next().unwrap();
        (next["pids_stats"]["current"] == 1).then_some(())
    });
    let begin = Instant::now();
    cli.run(&["rm", "-f", "one"]).ok();
    while stream.next().is_some() {}
    assert!(begin.elapsed() < Duration::from_secs(60));
}

#[test]
fn two_hundred_streams_are_served_and_leave_nothing() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let names: Vec<String> = (0..4).map(|index| format!("c{index}")).collect();
    for name in &names {
        cli.up(name, &[], &["sleep", "600"]);
    }
    let threads = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", engine.daemon_pid()));
        tasks.unwrap().count()
    };
    let cpu_time = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", engine.daemon_pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split(' ').collect();
        fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()
    };
    let mut streams: Vec<Stream> = (0..200)
        .map(|index| Stream::open(&engine, &names[index % names.len()]))
        .collect();
    for _ in 0..3 {
        for stream in &mut streams {
            assert_eq!(number(&stream.next().unwrap(), "/pids_stats/current"), 1);
        }
    }
    assert!(threads() < 150, "{} threads", threads());
    drop(streams);
    // It takes a moment until the engine sees the end of the connections.
    eventually("at most 5 ticks in 3 s without a stream", || {
        let before = cpu_time();
        std::thread::sleep(Duration::from_secs(3));
        (cpu_time() - before <= 5).then_some(())
    });
}

#[test]
fn the_table_is_that_of_dockers_client() {
    let engine = Engine::start();
    engine
        .cli(Program::Docker)
        .up("one", &["-m", "64m"], &["sleep", "600"]);
    engine
        .cli(Program::Docker)
        .run(&["create", "--name", "off", "busybox"])
        .ok();
    for program in [Program::Docker, Program::Whelk] {
        let cli = engine.cli(program);
        // Docker's client shows no figures if it has none after two seconds.
        let figures = |args: &[&str]| {
            eventually("figures that are in time", || {
                let output = cli.run(args);
                (!output.out().contains("--")).then_some(output)
            })
        };
        let table = figures(&["stats", "--no-stream"]).ok();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 2, "{table}");
        let heading = "CONTAINER ID   NAME      CPU %     MEM USAGE / LIMIT";
        assert!(lines[0].starts_with(heading), "{table}");
        assert!(
            lines[0].ends_with("MEM %     NET I/O         BLOCK I/O   PIDS")
                || lines[0].contains("NET I/O"),
            "{table}"
        );
        assert!(lines[1].contains("/ 64MiB"), "{table}");
        let format = |format: &str, more: &[&str]| {
            let mut args = vec!["stats", "--no-stream", "--format", format];
            args.extend_from_slice(more);
            figures(&args)
        };
        assert_eq!(
            format("{{.Name}} {{.PIDs}} {{.Container}}", &["one"]).ok(),
            "one 1 one"
        );
        let id = engine.inspect("one")["Id"].as_str().unwrap().to_owned();
        assert_eq!(format("{{.ID}}", &["--no-trunc"]).ok(), id);
        assert_eq!(
            format("{{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.NetIO}}", &["off"]).ok(),
            "off 0.00% 0B / 0B 0B / 0B"
        );
        let all = format("{{.Name}}", &["--all"]).ok();
        let mut names: Vec<&str> = all.lines().collect();
        names.sort_unstable();
        assert_eq!(names, ["off", "one"]);
        let keys: Value = serde_json::from_str(&format("json", &["one"]).ok()).unwrap();
        let keys: Vec<&String> = keys.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "BlockIO",
                "CPUPerc",
                "Container",
                "ID",
                "MemPerc",
                "MemUsage",
                "Name",
                "NetIO",
                "PIDs"
            ]
        );
        cli.run(&["stats", "--no-stream", "nosuch"])
            .refuses(1, "Error response from daemon: No such container: nosuch");
    }
}

#[test]
fn the_live_table_follows_containers() {
    Engine::start().both(|cli| {
        cli.up("first", &[], &["sleep", "600"]);
        let mut live = cli.spawn(&["stats", "--format", "{{.Name}}={{.PIDs}}"]);
        live.expect("first=1");
        cli.up("second", &[], &["sleep", "600"]);
        live.expect("second=1");
        cli.run(&["kill", "first"]).ok();
        let gone = |text: &str| {
            let last = text.rsplit("\x1b[H").next().unwrap_or_default().to_owned();
            last.contains("second=1") && !last.contains("first")
        };
        eventually("the table without the first", || {
            gone(&live.so_far()).then_some(())
        });
        assert!(live.is_running());
        let mut all = cli.spawn(&["stats", "--all", "--format", "{{.Name}}={{.PIDs}}"]);
        all.expect("first=0");
        cli.run(&["rm", "first"]).ok();
        // Its line stays.
        eventually("the line of what is removed", || {
            let shown = all.so_far();
            let last = shown.rsplit("\x1b[H").next().unwrap_or_default();
            (last.contains("first=--") && last.contains("second=1")).then_some(())
        });
        all.signal(rustix::process::Signal::TERM);
        let _ = all.finish();
        // SIGINT may be ignored by what runs the tests.
        live.signal(rustix::process::Signal::TERM);
        let _ = live.finish();
    });
}
