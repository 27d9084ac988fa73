//! What containers said, afterwards and while they say it.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a panic with its place is all the error handling that a test needs")]

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use whelk_tests::{Cli, Engine, Program};

/// Does the same with each log driver that can be read, through both command lines.
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

/// A directory that the container sees as `/b`, to tell it when to go on.
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
fn streams_are_kept_apart_and_nothing_is_added() {
    each_driver(|cli, driver| {
        say(cli, driver, "echo out; echo err >&2; printf 'tab\\tquote\"back\\\\slash <&>\\n\\n'; printf last");
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
        assert_eq!(cli.run(&["logs", "-n", "1", "-f", "said"]).ok(), "line 100", "following one that has ended ends at once");
    });
}

#[test]
fn timestamps_are_full_and_select() {
    each_driver(|cli, driver| {
        say(cli, driver, "for i in 1 2 3; do echo line $i; sleep 0.1; done");
        let text = cli.run(&["logs", "-t", "said"]).ok();
        let times: Vec<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
        assert!(times.len() == 3 && times.iter().all(|time| time.len() == 30 && time.ends_with('Z')), "nine digits of a second: {text}");
        assert!(times[0] < times[1] && times[1] < times[2], "{text}");
        let select = |flags: &[&str]| cli.run(&[&["logs"][..], flags, &["said"][..]].concat()).ok();
        assert_eq!(select(&["--since", times[1]]), "line 2\nline 3");
        assert_eq!(select(&["--until", times[1]]), "line 1\nline 2");
        assert_eq!(select(&["--since", times[1], "--until", times[1]]), "line 2");
        assert_eq!(select(&["--since", times[1], "--tail", "1"]), "line 3");
        assert_eq!(select(&["--since", "1h"]).lines().count(), 3);
        assert_eq!(select(&["--until", "1h"]), "");
        assert_eq!(select(&["--since", "2100-01-01"]), "");
        cli.run(&["logs", "--since", "bogus", "said"])
            .refuses(1, "invalid value for \"since\": failed to parse value as time or duration: \"bogus\"");
    });
}

#[test]
fn following_shows_each_line_when_it_comes() {
    each_driver(|cli, driver| {
        let gate = Gate::new(cli, "follow");
        let script = "echo first; until [ -e /b/two ]; do sleep 0.02; done; echo second; printf par; until [ -e /b/three ]; do sleep 0.02; done; echo tial";
        let volume = gate.volume();
        cli.up("said", &[driver, &["-v", volume.as_str()][..]].concat(), &["sh", "-c", script]);
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
fn long_lines_come_back_whole() {
    each_driver(|cli, driver| {
        say(cli, driver, "for n in 40000 16384 16385 1; do head -c $n /dev/zero | tr '\\0' x; echo; done");
        let lengths: Vec<usize> = cli.run(&["logs", "said"]).ok().lines().map(str::len).collect();
        assert_eq!(lengths, [40000, 16384, 16385, 1]);
        assert_eq!(cli.run(&["logs", "--tail", "1", "said"]).ok(), "x");
    });
}

#[test]
fn following_across_rotations_loses_and_repeats_nothing() {
    each_driver(|cli, driver| {
        const LINES: usize = 6000;
        let gate = Gate::new(cli, "rotate");
        let script = format!(
            "echo line 0; until [ -e /b/go ]; do sleep 0.02; done; i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i of a log that is rotated; [ $((i%50)) != 0 ] || sleep 0.01; done"
        );
        let options = ["--log-opt", "max-size=32k", "--log-opt", "max-file=6", "--log-opt", "compress=true"];
        let volume = gate.volume();
        cli.up("said", &[driver, &options[..], &["-v", volume.as_str()][..]].concat(), &["sh", "-c", &script]);
        let mut following = cli.spawn(&["logs", "-f", "said"]);
        following.expect("line 0\n");
        gate.open("go");
        let seen = following.finish().ok();
        let number = |line: &str| line.split(' ').nth(1).and_then(|word| word.parse::<usize>().ok()).unwrap();
        assert!(
            seen.lines().map(number).eq(0..=LINES),
            "{} lines; the first gap is behind {:?}",
            seen.lines().count(),
            seen.lines().map(number).zip(0..).find(|(found, wanted)| found != wanted)
        );
        // What is kept is the end, without a gap either, and not all.
        let kept: Vec<usize> = cli.run(&["logs", "said"]).ok().lines().map(number).collect();
        assert!(kept[0] > 0, "nothing was rotated away: {} lines are kept", kept.len());
        assert!(kept.iter().copied().eq(kept[0]..=LINES), "kept {} lines from {}", kept.len(), kept[0]);
    });
}

#[test]
fn a_terminals_output_is_kept_as_it_was() {
    each_driver(|cli, driver| {
        say(cli, &[driver, &["-t"][..]].concat(), "echo out; echo err >&2");
        let output = cli.run(&["logs", "said"]);
        output.exits(0);
        assert_eq!((output.out().as_str(), output.err().as_str()), ("out\r\nerr\r\n", ""));
    });
}

#[test]
fn a_restarted_container_goes_on_in_its_log() {
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
        cli.run(&[&["create", "--network", "none", "--name", "said"][..], driver, &["busybox", "true"][..]].concat()).ok();
        assert_eq!(cli.run(&["logs", "said"]).exits(0), "");
        assert_eq!(cli.run(&["logs", "-f", "said"]).exits(0), "");
    });
    Engine::start().both(|cli| cli.run(&["logs", "nosuch"]).refuses(1, "Error response from daemon: No such container: nosuch"));
}

#[test]
fn json_file_is_dockers_format() {
    Engine::start().both(|cli| {
        say(
            cli,
            &["--log-driver", "json-file", "--label", "a=1", "-e", "E=5", "--log-opt", "labels=a,b", "--log-opt", "env=E"],
            "echo hi; echo err >&2; printf part",
        );
        let inspect = cli.engine().inspect("said");
        assert_eq!(inspect["HostConfig"]["LogConfig"]["Type"], "json-file");
        let path = inspect["LogPath"].as_str().unwrap();
        assert!(path.ends_with(&format!("{}-json.log", inspect["Id"].as_str().unwrap())), "{path}");
        let lines: Vec<Value> = fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let brief: Vec<(&str, &str)> = lines.iter().map(|line| (line["stream"].as_str().unwrap(), line["log"].as_str().unwrap())).collect();
        assert!(
            brief.contains(&("stdout", "hi\n")) && brief.contains(&("stderr", "err\n")) && brief.contains(&("stdout", "part")),
            "{brief:?}"
        );
        assert!(lines.iter().all(|line| line["time"].as_str().is_some_and(|time| time.ends_with('Z'))));
        assert_eq!(cli.run(&["logs", "--details", "--tail", "3", "said"]).out().lines().next(), Some("E=5,a=1 hi"));
    });
}

#[test]
fn local_is_the_default() {
    Engine::start().both(|cli| {
        say(cli, &[], "echo hi");
        assert_eq!(cli.engine().inspect("said")["HostConfig"]["LogConfig"]["Type"], "local");
        assert_eq!(cli.run(&["logs", "said"]).ok(), "hi");
    });
}

#[test]
fn without_a_log_there_is_nothing_to_read() {
    Engine::start().both(|cli| {
        let output = cli.run(&["run", "--name", "said", "--network", "none", "--log-driver", "none", "busybox", "echo", "still seen"]);
        assert_eq!(output.ok(), "still seen");
        cli.run(&["logs", "said"]).refuses(1, "configured logging driver does not support reading");
        assert_eq!(cli.engine().api("GET", "/containers/said/logs?stdout=1", None).0, 501);
    });
}

#[test]
fn the_api_sends_frames_and_wants_a_stream() {
    let engine = Engine::start();
    say(engine.cli(whelk_tests::Program::Docker), &[], "echo out; echo err >&2");
    let response = engine.http("GET", "/containers/said/logs?stdout=1&stderr=1", &[], b"");
    assert_eq!(response.header("content-type"), Some("application/vnd.docker.multiplexed-stream"));
    let mut frames: [&[u8]; 2] = [b"\x01\0\0\0\0\0\0\x04out\n", b"\x02\0\0\0\0\0\0\x04err\n"];
    if response.body.first() == Some(&2) {
        frames.reverse();
    }
    assert_eq!(response.body, frames.concat());
    let response = engine.http("GET", "/containers/said/logs?stderr=true", &[], b"");
    assert_eq!(response.body, b"\x02\0\0\0\0\0\0\x04err\n");
    let (status, answer) = engine.api("GET", "/containers/said/logs", None);
    assert_eq!((status, answer["message"].as_str()), (400, Some("Bad parameters: you must choose at least one stream")));
}

#[test]
fn the_default_driver_is_the_configurations() {
    let engine = Engine::start();
    engine.kill9();
    engine.configure(&json!({"log-driver": "json-file", "log-opts": {"max-size": "1m"}}));
    engine.restart();
    assert_eq!(engine.get("/info")["LoggingDriver"], "json-file");
    let cli = engine.cli(Program::Docker);
    cli.run(&["run", "--name", "plain", "--network", "none", "busybox", "echo", "said"]).ok();
    cli.run(&["run", "--name", "own", "--network", "none", "--log-driver", "local", "busybox", "true"]).ok();
    let log = |name: &str| engine.inspect(name)["HostConfig"]["LogConfig"].clone();
    assert_eq!(log("plain"), json!({"Type": "json-file", "Config": {"max-size": "1m"}}));
    assert_eq!(log("own"), json!({"Type": "local", "Config": {}}));
    assert_eq!(engine.logs("plain"), "said\n");
}
