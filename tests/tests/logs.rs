//! Logs of containers: content, selection, following, rotation and drivers.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use whelk_tests::processes::peak_memory;
use whelk_tests::{Cli, Engine, Program};

/// Runs a test with each log driver whose log can be read, and with both command lines.
fn each_driver(case: impl Fn(Cli<'_>, &[&str])) {
    Engine::start().both(|cli| {
        for driver in ["json-file", "local"] {
            case(cli, &["--log-driver", driver]);
            cli.run(&["rm", "-f", "said"]).ok();
        }
    });
}

/// Runs a script to its end in a container named `said`.
#[track_caller]
fn say(cli: Cli<'_>, flags: &[&str], script: &str) {
    cli.up("said", flags, &["sh", "-c", script]);
    cli.engine().await_state("said", "exited");
}

/// A directory that is mounted at `/b`, in which files tell the container when to continue.
struct Gate(PathBuf);

impl Gate {
    fn new(cli: Cli<'_>, name: &str) -> Self {
        let directory = cli.engine().scratch(name);
        for entry in fs::read_dir(&directory).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        Self(directory)
    }

    fn volume(&self) -> String {
        format!("{}:/b", self.0.display())
    }

    fn open(&self, step: &str) {
        fs::write(self.0.join(step), "").unwrap();
    }
}

#[test]
fn stdout_and_stderr_are_logged_separately_and_unchanged() {
    each_driver(|cli, driver| {
        say(
            cli,
            driver,
            "echo out; echo err >&2; printf 'tab\\tquote\"back\\\\slash <&>\\n\\n'; printf last",
        );
        let output = cli.run(&["logs", "said"]);
        output.exits(0);
        assert_eq!(output.out(), "out\ntab\tquote\"back\\slash <&>\n\nlast");
        assert_eq!(output.err(), "err\n");
    });
}

#[test]
fn tail_counts_from_the_end() {
    each_driver(|cli, driver| {
        say(cli, driver, "for i in $(seq 100); do echo line $i; done");
        let tail = |count: &str| cli.run(&["logs", "--tail", count, "said"]).ok();
        assert_eq!(tail("2"), "line 99\nline 100");
        assert_eq!(tail("0"), "");
        assert_eq!(tail("1000").lines().count(), 100);
        assert_eq!(tail("all").lines().next(), Some("line 1"));
        assert_eq!(tail("-1").lines().count(), 100);
        assert_eq!(
            cli.run(&["logs", "-n", "1", "-f", "said"]).ok(),
            "line 100",
            "following one that has ended ends at once"
        );
    });
}

#[test]
fn timestamps_have_nanoseconds_and_select_lines() {
    each_driver(|cli, driver| {
        say(
            cli,
            driver,
            "for i in 1 2 3; do echo line $i; sleep 0.1; done",
        );
        let text = cli.run(&["logs", "-t", "said"]).ok();
        let times: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert!(
            times.len() == 3
                && times
                    .iter()
                    .all(|time| time.len() == 30 && time.ends_with('Z')),
            "nine digits of a second: {text}"
        );
        assert!(times[0] < times[1] && times[1] < times[2], "{text}");
        let select = |flags: &[&str]| {
            cli.run(&[&["logs"][..], flags, &["said"][..]].concat())
                .ok()
        };
        assert_eq!(select(&["--since", times[1]]), "line 2\nline 3");
        assert_eq!(select(&["--until", times[1]]), "line 1\nline 2");
        assert_eq!(
            select(&["--since", times[1], "--until", times[1]]),
            "line 2"
        );
        assert_eq!(select(&["--since", times[1], "--tail", "1"]), "line 3");
        assert_eq!(select(&["--since", "1h"]).lines().count(), 3);
        assert_eq!(select(&["--until", "1h"]), "");
        assert_eq!(select(&["--since", "2100-01-01"]), "");
        cli.run(&["logs", "--since", "bogus", "said"]).refuses(
            1,
            "invalid value for \"since\": failed to parse value as time or duration: \"bogus\"",
        );
    });
}

#[test]
fn follow_shows_each_line_immediately() {
    each_driver(|cli, driver| {
        let gate = Gate::new(cli, "follow");
        let script = "echo first; until [ -e /b/two ]; do sleep 0.02; done; echo second; printf par; until [ -e /b/three ]; do sleep 0.02; done; echo tial";
        let volume = gate.volume();
        cli.up(
            "said",
            &[driver, &["-v", volume.as_str()][..]].concat(),
            &["sh", "-c", script],
        );
        let mut following = cli.spawn(&["logs", "-f", "said"]);
        following.expect("first\n");
        gate.open("two");
        following.expect("second\n");
        let mut late = cli.spawn(&["logs", "-f", "--tail", "1", "said"]);
        late.expect("second\n");
        gate.open("three");
        following.expect("partial\n");
        assert_eq!(following.finish().ok(), "first\nsecond\npartial");
        assert_eq!(late.finish().ok(), "second\npartial");
    });
}

#[test]
fn long_lines_are_returned_complete() {
    each_driver(|cli, driver| {
        say(
            cli,
            driver,
            "for n in 40000 16384 16385 1; do head -c $n /dev/zero | tr '\\0' x; echo; done",
        );
        let lengths: Vec<usize> = cli
            .run(&["logs", "said"])
            .ok()
            .lines()
            .map(str::len)
            .collect();
        assert_eq!(lengths, [40000, 16384, 16385, 1]);
        assert_eq!(cli.run(&["logs", "--tail", "1", "said"]).ok(), "x");
    });
}

#[test]
fn follow_across_rotations_loses_and_repeats_nothing() {
    each_driver(|cli, driver| {
        const LINES: usize = 6000;
        // The lines by which the output is ahead of the follower at most, fewer than the files hold.
        const STEP: usize = 1000;
        let gate = Gate::new(cli, "rotate");
        let script = format!(
            "echo line 0; until [ -e /b/go ]; do sleep 0.02; done; i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i of a log that is rotated; [ $((i%50)) != 0 ] || sleep 0.01; [ $((i%{STEP})) != 0 ] || until [ -e /b/$i ]; do sleep 0.02; done; done"
        );
        let options = [
            "--log-opt",
            "max-size=32k",
            "--log-opt",
            "max-file=6",
            "--log-opt",
            "compress=true",
        ];
        let volume = gate.volume();
        cli.up(
            "said",
            &[driver, &options[..], &["-v", volume.as_str()][..]].concat(),
            &["sh", "-c", &script],
        );
        let mut following = cli.spawn(&["logs", "-f", "said"]);
        following.expect("line 0\n");
        gate.open("go");
        for number in (STEP..=LINES).step_by(STEP) {
            following.expect(&format!("line {number} of"));
            gate.open(&number.to_string());
        }
        let seen = following.finish().ok();
        let number = |line: &str| {
            line.split(' ')
                .nth(1)
                .and_then(|word| word.parse::<usize>().ok())
                .unwrap()
        };
        assert!(
            seen.lines().map(number).eq(0..=LINES),
            "{} lines; the first gap is behind {:?}",
            seen.lines().count(),
            seen.lines()
                .map(number)
                .zip(0..)
                .find(|(found, wanted)| found != wanted)
        );
        // The kept lines are the last ones, without a gap; earlier ones were rotated away.
        let kept: Vec<usize> = cli
            .run(&["logs", "said"])
            .ok()
            .lines()
            .map(number)
            .collect();
        assert!(
            kept[0] > 0,
            "nothing was rotated away: {} lines are kept",
            kept.len()
        );
        assert!(
            kept.iter().copied().eq(kept[0]..=LINES),
            "kept {} lines from {}",
            kept.len(),
            kept[0]
        );
    });
}

#[test]
fn a_terminals_output_is_logged_unchanged() {
    each_driver(|cli, driver| {
        say(
            cli,
            &[driver, &["-t"][..]].concat(),
            "echo out; echo err >&2",
        );
        let output = cli.run(&["logs", "said"]);
        output.exits(0);
        assert_eq!(
            (output.out().as_str(), output.err().as_str()),
            ("out\r\nerr\r\n", "")
        );
    });
}

#[test]
fn a_restarted_container_appends_to_its_log() {
    each_driver(|cli, driver| {
        say(cli, driver, "echo run");
        cli.run(&["start", "said"]).ok();
        cli.run(&["wait", "said"]).ok();
        assert_eq!(cli.run(&["logs", "said"]).ok(), "run\nrun");
    });
}

#[test]
fn a_container_that_never_ran_has_an_empty_log() {
    each_driver(|cli, driver| {
        cli.run(
            &[
                &["create", "--network", "none", "--name", "said"][..],
                driver,
                &["busybox", "true"][..],
            ]
            .concat(),
        )
        .ok();
        assert_eq!(cli.run(&["logs", "said"]).exits(0), "");
        assert_eq!(cli.run(&["logs", "-f", "said"]).exits(0), "");
    });
    Engine::start().both(|cli| {
        cli.run(&["logs", "nosuch"])
            .refuses(1, "Error response from daemon: No such container: nosuch")
    });
}

#[test]
fn json_file_is_dockers_format() {
    Engine::start().both(|cli| {
        say(
            cli,
            &[
                "--log-driver",
                "json-file",
                "--label",
                "a=1",
                "-e",
                "E=5",
                "--log-opt",
                "labels=a,b",
                "--log-opt",
                "env=E",
            ],
            "echo hi; echo err >&2; printf part",
        );
        let inspect = cli.engine().inspect("said");
        assert_eq!(inspect["HostConfig"]["LogConfig"]["Type"], "json-file");
        let path = inspect["LogPath"].as_str().unwrap();
        assert!(
            path.ends_with(&format!("{}-json.log", inspect["Id"].as_str().unwrap())),
            "{path}"
        );
        let lines: Vec<Value> = fs::read_to_string(path)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let brief: Vec<(&str, &str)> = lines
            .iter()
            .map(|line| {
                (
                    line["stream"].as_str().unwrap(),
                    line["log"].as_str().unwrap(),
                )
            })
            .collect();
        assert!(
            brief.contains(&("stdout", "hi\n"))
                && brief.contains(&("stderr", "err\n"))
                && brief.contains(&("stdout", "part")),
            "{brief:?}"
        );
        assert!(lines.iter().all(|line| {
            line["time"]
                .as_str()
                .is_some_and(|time| time.ends_with('Z'))
        }));
        assert_eq!(
            cli.run(&["logs", "--details", "--tail", "3", "said"])
                .out()
                .lines()
                .next(),
            Some("E=5,a=1 hi")
        );
    });
}

#[test]
fn details_are_selected_by_options() {
    each_driver(|cli, driver| {
        let mut flags = driver.to_vec();
        flags.extend(["--label", "app=shop", "--label", "app.tier=front"]);
        flags.extend(["-e", "REGION=eu", "-e", "OTHER=1"]);
        for option in [
            "labels-regex=^app",
            "env-regex=^REG",
            "tag={{.Name}}/{{.ImageName}} é",
            "mode=non-blocking",
            "max-buffer-size=2m",
        ] {
            flags.extend(["--log-opt", option]);
        }
        say(cli, &flags, "echo hi");
        assert_eq!(
            cli.run(&["logs", "--details", "said"]).ok(),
            "REGION=eu,app=shop,app.tier=front,tag=said%2Fbusybox+%C3%A9 hi"
        );
        assert_eq!(cli.run(&["logs", "said"]).ok(), "hi");
    });
}

#[test]
fn an_invalid_tag_fails_the_start() {
    Engine::start().both(|cli| {
        let create = ["create", "--name", "tagged", "--network", "none"];
        let option = ["--log-opt", "tag={{.Nope}}", "busybox"];
        cli.run(&[&create[..], &option[..]].concat()).ok();
        cli.run(&["start", "tagged"]).refuses(
            1,
            "failed to create task for container: failed to initialize logging driver: template: log-tag:1:2: \
             executing \"log-tag\" at <.Nope>: can't evaluate field Nope in type *logger.Info",
        );
        let logs = cli.run(&["logs", "tagged"]);
        assert_eq!(logs.exits(0), "");
        cli.run(&["rm", "tagged"]).ok();
    });
}

#[test]
fn json_file_is_the_default() {
    Engine::start().both(|cli| {
        say(cli, &[], "echo hi");
        let shown = cli.engine().inspect("said")["HostConfig"]["LogConfig"].clone();
        assert_eq!(shown, json!({"Type": "json-file", "Config": {}}));
        assert_eq!(cli.run(&["logs", "said"]).ok(), "hi");
    });
}

#[test]
fn logs_fail_without_a_readable_log() {
    Engine::start().both(|cli| {
        let output = cli.run(&[
            "run",
            "--name",
            "said",
            "--network",
            "none",
            "--log-driver",
            "none",
            "busybox",
            "echo",
            "still seen",
        ]);
        assert_eq!(output.ok(), "still seen");
        cli.run(&["logs", "said"])
            .refuses(1, "configured logging driver does not support reading");
        assert_eq!(
            cli.engine()
                .api("GET", "/containers/said/logs?stdout=1", None)
                .0,
            501
        );
    });
}

#[test]
fn the_api_sends_frames_and_requires_a_stream() {
    let engine = Engine::start();
    say(
        engine.cli(whelk_tests::Program::Docker),
        &[],
        "echo out; echo err >&2",
    );
    let response = engine.http("GET", "/containers/said/logs?stdout=1&stderr=1", &[], b"");
    assert_eq!(
        response.header("content-type"),
        Some("application/vnd.docker.multiplexed-stream")
    );
    let mut frames: [&[u8]; 2] = [b"\x01\0\0\0\0\0\0\x04out\n", b"\x02\0\0\0\0\0\0\x04err\n"];
    if response.body.first() == Some(&2) {
        frames.reverse();
    }
    assert_eq!(response.body, frames.concat());
    let response = engine.http("GET", "/containers/said/logs?stderr=true", &[], b"");
    assert_eq!(response.body, b"\x02\0\0\0\0\0\0\x04err\n");
    let (status, answer) = engine.api("GET", "/containers/said/logs", None);
    assert_eq!(
        (status, answer["message"].as_str()),
        (
            400,
            Some("Bad parameters: you must choose at least one stream")
        )
    );
}

#[test]
fn the_default_log_driver_is_configurable() {
    let engine = Engine::start();
    engine.kill9();
    engine.configure(&json!({"log-driver": "json-file", "log-opts": {"max-size": "1m"}}));
    engine.restart();
    assert_eq!(engine.get("/info")["LoggingDriver"], "json-file");
    let cli = engine.cli(Program::Docker);
    cli.run(&[
        "run",
        "--name",
        "plain",
        "--network",
        "none",
        "busybox",
        "echo",
        "said",
    ])
    .ok();
    cli.run(&[
        "run",
        "--name",
        "own",
        "--network",
        "none",
        "--log-driver",
        "local",
        "busybox",
        "true",
    ])
    .ok();
    let log = |name: &str| engine.inspect(name)["HostConfig"]["LogConfig"].clone();
    assert_eq!(
        log("plain"),
        json!({"Type": "json-file", "Config": {"max-size": "1m"}})
    );
    assert_eq!(log("own"), json!({"Type": "local", "Config": {}}));
    assert_eq!(engine.logs("plain"), "said\n");
}

#[test]
fn follow_reads_a_log_to_its_end_during_removal() {
    each_driver(|cli, driver| {
        let script = "echo a; until [ -e /go/now ]; do sleep .02; done; seq 1 500; echo end";
        let names: Vec<String> = (0..6).map(|number| format!("gone-{number}")).collect();
        let go = cli
            .engine()
            .scratch(&format!("go-{:?}-{}", cli.program(), driver[1]));
        let volume = format!("{}:/go", go.display());
        // Small files, so that the follower has to open further ones when the container may already
        // be removed.
        let flags = [
            &[
                "--rm",
                "-v",
                &volume,
                "--log-opt",
                "max-size=2k",
                "--log-opt",
                "max-file=20",
            ][..],
            driver,
        ]
        .concat();
        names
            .iter()
            .for_each(|name| drop(cli.up(name, &flags, &["sh", "-c", script])));
        let mut following: Vec<_> = names
            .iter()
            .map(|name| cli.spawn(&["logs", "-f", name]))
            .collect();
        following
            .iter_mut()
            .for_each(|following| following.expect("a\n"));
        fs::write(go.join("now"), "").expect("let the containers end");
        for (following, name) in following.iter_mut().zip(&names) {
            let said = following.finish();
            let said = (said.ok(), said.err());
            assert_eq!(
                (
                    said.0.lines().count(),
                    said.0.lines().last(),
                    said.1.as_str()
                ),
                (502, Some("end"), ""),
                "{name} {driver:?}"
            );
        }
        cli.up("said", &[], &["true"]);
    });
}

#[test]
fn logs_without_follow_end_at_the_current_end() {
    each_driver(|cli, driver| {
        let flags = [
            driver,
            &["--log-opt", "max-size=1m", "--log-opt", "max-file=2"][..],
        ]
        .concat();
        cli.up("said", &flags, &["yes"]);
        cli.engine().await_log("said", "y\n");
        // The number of records of the smallest size in two files, and of some that were written
        // beyond the files' size.
        let most = (2 << 20) / if driver.contains(&"local") { 15 } else { 60 } + 1000;
        for _ in 0..3 {
            let count = cli
                .run(&["logs", "said"])
                .ok()
                .lines()
                .filter(|line| *line == "y")
                .count();
            assert!(count > 0 && count <= most, "{count} lines, {most} at most");
        }
        assert_eq!(cli.run(&["logs", "--tail", "3", "said"]).ok(), "y\ny\ny");
    });
}

#[test]
fn tail_applies_before_other_selections() {
    each_driver(|cli, driver| {
        say(
            cli,
            driver,
            "for i in 1 2 3; do echo line $i; sleep 0.1; done",
        );
        let text = cli.run(&["logs", "-t", "said"]).ok();
        let second = text
            .lines()
            .nth(1)
            .and_then(|line| line.split(' ').next())
            .unwrap();
        assert_eq!(
            cli.run(&["logs", "--until", second, "--tail", "1", "said"])
                .ok(),
            ""
        );
        assert_eq!(
            cli.run(&["logs", "--until", second, "--tail", "2", "said"])
                .ok(),
            "line 2"
        );
    });
}

/// Creates a container that has not run, and writes its log. Returns the log's path.
fn with_log(
    engine: &Engine,
    options: &Value,
    lines: usize,
    line: impl Fn(usize) -> String,
) -> PathBuf {
    use std::io::Write;
    let body = json!({"Image": "busybox", "Cmd": ["sh", "-c", "echo said; sleep 600"],
        "HostConfig": {"NetworkMode": "none", "LogConfig": {"Type": "json-file", "Config": options}}});
    engine.create("said", &body);
    // The log's name contains the container's id.
    let id = engine.inspect("said")["Id"].as_str().unwrap().to_owned();
    let path = engine
        .root()
        .join("containers")
        .join(&id)
        .join(format!("{id}-json.log"));
    let mut file = std::io::BufWriter::new(fs::File::create(&path).unwrap());
    for number in 0..lines {
        let record = format!(
            "{{\"log\":\"{}\\n\",\"stream\":\"stdout\",\"time\":\"2026-01-02T03:04:05.123456789Z\"}}\n",
            line(number)
        );
        file.write_all(record.as_bytes()).unwrap();
    }
    file.flush().unwrap();
    // Otherwise the engine's next flush would wait for these bytes to be written to the disk.
    file.get_ref().sync_all().unwrap();
    path
}

#[test]
fn tails_of_large_logs_take_little_memory_and_are_read_from_the_end() {
    const LINES: usize = 400_000;
    let engine = Engine::start();
    with_log(&engine, &json!({}), LINES, |number| {
        format!("line {number}")
    });
    fs::write(format!("/proc/{}/clear_refs", engine.daemon_pid()), "5").unwrap();
    let before = peak_memory(&engine);
    let cli = engine.cli(Program::Whelk);
    assert_eq!(
        cli.run(&["logs", "--tail", "100000000", "said"])
            .out()
            .lines()
            .count(),
        LINES
    );
    let peak = peak_memory(&engine);
    assert!(peak < before + 24, "{peak} MiB after {before} MiB");
    // The number of bytes that the engine has read from any file.
    let read = || {
        let counts = fs::read_to_string(format!("/proc/{}/io", engine.daemon_pid())).unwrap();
        counts
            .lines()
            .find_map(|line| line.strip_prefix("rchar: "))
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    let before = read();
    assert_eq!(
        cli.run(&["logs", "--tail", "2", "said"]).ok(),
        format!("line {}\nline {}", LINES - 2, LINES - 1)
    );
    assert!(
        read() < before + (2 << 20),
        "read from its end: {} bytes",
        read() - before
    );
}

#[test]
fn compression_of_a_log_does_not_block_others() {
    let engine = Engine::start();
    // Lines that take long to compress. The first write of the container rotates the file.
    let mut seed = 1u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let words: Vec<String> = (0..4096)
        .map(|_| (0..8).map(|_| format!("{:016x}", random())).collect())
        .collect();
    let options = json!({"max-size": "64m", "max-file": "3", "compress": "true"});
    let path = with_log(&engine, &options, 350_000, |number| {
        words[number * 7919 % 4096].clone() + &words[number % 4095]
    });
    assert!(fs::metadata(&path).unwrap().len() > 64 << 20);
    assert_eq!(engine.api("POST", "/containers/said/start", None).0, 204);
    let packed = path.with_file_name(format!(
        "{}.1.gz",
        path.file_name().unwrap().to_str().unwrap()
    ));
    // Beside the log, as its number is not known before the end.
    let begun = path.with_extension("log.gz.new");
    whelk_tests::eventually("the compression to begin", || {
        (begun.exists() || packed.exists()).then_some(())
    });
    let mut rounds = 0;
    whelk_tests::eventually("the old file to be compressed", || {
        engine.whelk(&["exec", "said", "true"]).ok();
        engine.whelk(&["logs", "--tail", "1", "said"]).ok();
        engine.whelk(&["ps"]).ok();
        let is_packed = packed.exists();
        rounds += i32::from(!is_packed);
        is_packed.then_some(())
    });
    // If one of them waited for the compression, it would be over at the end of the first round.
    assert!(rounds > 0, "no exec, log and list meanwhile");
    let plain = packed.with_extension("");
    whelk_tests::eventually("the plain file to be gone", || {
        (!plain.exists()).then_some(())
    });
    let said = engine.logs("said");
    assert_eq!(
        (said.lines().count(), said.lines().last()),
        (350_001, Some("said"))
    );
}
