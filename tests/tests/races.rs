//! Concurrent operations on one container: they take effect one after the other.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::{Value, json};
use whelk_tests::{Connection, Engine, Program, eventually};

fn body(command: &[&str]) -> Value {
    json!({"Image": "busybox", "Cmd": command, "HostConfig": {"NetworkMode": "none"}})
}

fn start(engine: &Engine, name: &str) -> u16 {
    engine
        .api("POST", &format!("/containers/{name}/start"), None)
        .0
}

fn remove(engine: &Engine, name: &str) {
    assert_eq!(
        engine
            .api("DELETE", &format!("/containers/{name}?force=1"), None)
            .0,
        204
    );
}

/// Runs two operations concurrently; the second starts `lead` later.
fn at_once<A: Send, B: Send>(
    lead: Duration,
    first: impl FnOnce() -> A + Send,
    second: impl FnOnce() -> B + Send,
) -> (A, B) {
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            barrier.wait();
            first()
        });
        barrier.wait();
        std::thread::sleep(lead);
        let second = second();
        (first.join().unwrap(), second)
    })
}

/// Returns a delay from 0 to a few milliseconds, to hit the critical moments.
fn lead(round: u32) -> Duration {
    Duration::from_micros(u64::from(round % 20) * 400)
}

#[test]
fn a_starting_container_is_not_removed() {
    let engine = Engine::start();
    let filters = whelk_tests::escape(r#"{"label":["mark=1"]}"#);
    for round in 0..40 {
        let mut wanted = body(&["sleep", "600"]);
        wanted["Labels"] = json!({"mark": "1"});
        engine.create("one", &wanted);
        let remove_it = || match round % 2 {
            0 => engine.api("DELETE", "/containers/one", None).0,
            _ => {
                engine
                    .api(
                        "POST",
                        &format!("/containers/prune?filters={filters}"),
                        None,
                    )
                    .0
            }
        };
        let (started, _) = at_once(lead(round), || start(&engine, "one"), remove_it);
        let state = engine.state("one");
        if started == 204 {
            assert_eq!(state, "running", "round {round}: what was started is there");
            remove(&engine, "one");
        } else {
            assert_eq!((started, state.as_str()), (404, ""), "round {round}");
        }
    }
}

#[test]
fn a_container_that_ends_does_not_stay_paused() {
    let engine = Engine::start();
    let mut paused = 0;
    for round in 0..100u32 {
        // Longer if no round has met the container alive yet.
        let time = if paused == 0 {
            6000 * (1 + round * round / 100)
        } else {
            6000
        };
        engine.create("one", &body(&["usleep", &time.to_string()]));
        assert_eq!(start(&engine, "one"), 204);
        std::thread::sleep(Duration::from_micros(u64::from(round % 50) * 150));
        let (status, answer) = engine.api("POST", "/containers/one/pause", None);
        if status == 204 {
            paused += 1;
            // It may have ended meanwhile.
            let (status, answer) = engine.api("POST", "/containers/one/unpause", None);
            let ended =
                |text: &str| text.contains("is not paused") || text.contains("is not running");
            assert!(
                status == 204 || answer["message"].as_str().is_some_and(ended),
                "{round}: {answer}"
            );
        } else {
            assert_eq!(status, 409, "round {round}: {answer}");
        }
        engine.await_state("one", "exited");
        remove(&engine, "one");
    }
    assert!(paused > 0, "no round met the container alive");
}

/// Ends a container in one of three ways. It may have ended already, but the request must not hang.
fn ask_to_end(engine: &Engine, name: &str, way: u32) {
    let begun = Instant::now();
    let (status, answer) = match way % 3 {
        0 => engine.api("POST", &format!("/containers/{name}/kill"), None),
        1 => engine.api("POST", &format!("/containers/{name}/stop?t=100"), None),
        _ => engine.api("DELETE", &format!("/containers/{name}?force=1"), None),
    };
    assert!(
        matches!(status, 204 | 304 | 404 | 409),
        "{name} {way}: {status} {answer}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(55),
        "{name} {way}: {:?}",
        begun.elapsed()
    );
}

#[test]
fn a_kill_during_the_exit_does_not_wait() {
    let engine = &Engine::start();
    engine.create("other", &body(&["true"]));
    let over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Stop(over);
        // Keeps the store busy, which lengthens the time between the check of a container and the wait
        // for its end.
        for _ in 0..3 {
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(
                        engine
                            .api(
                                "POST",
                                "/containers/other/update",
                                Some(&json!({"CpuShares": 512}))
                            )
                            .0,
                        200
                    );
                }
            });
        }
        // One client per container, and then several for one.
        std::thread::scope(|scope| {
            for worker in 0..6u32 {
                scope.spawn(move || {
                    let name = format!("own-{worker}");
                    for round in 0..25u32 {
                        engine.create(&name, &body(&["usleep", "5000"]));
                        assert_eq!(start(engine, &name), 204);
                        std::thread::sleep(Duration::from_micros(
                            u64::from((round + worker) % 25) * 500,
                        ));
                        ask_to_end(engine, &name, round);
                        engine.api("DELETE", &format!("/containers/{name}?force=1"), None);
                    }
                });
            }
        });
        for round in 0..40u32 {
            engine.create("one", &body(&["usleep", "5000"]));
            assert_eq!(start(engine, "one"), 204);
            std::thread::sleep(lead(round));
            std::thread::scope(|scope| {
                for client in 0..8 {
                    // Only one of them removes it.
                    scope.spawn(move || {
                        ask_to_end(engine, "one", if client == 7 { 2 } else { client % 2 })
                    });
                }
            });
            engine.api("DELETE", "/containers/one?force=1", None);
        }
    });
}

/// Stops the background threads when a test ends, also by a panic.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn concurrent_renames_keep_names_unique() {
    const NAMES: [&str; 3] = ["new-0", "new-1", "new-2"];
    let engine = &Engine::start();
    for round in 0..100u32 {
        // Removed by a request, and by its exit.
        let by_itself = round % 3 == 0;
        let mut wanted = body(if by_itself {
            &["usleep", "2000"]
        } else {
            &["true"]
        });
        wanted["HostConfig"]["AutoRemove"] = json!(by_itself);
        let id = &engine.create("old", &wanted);
        if by_itself {
            assert_eq!(start(engine, id), 204);
        }
        std::thread::scope(|scope| {
            // Renames wait for each other and for the removal, and find the container by its id.
            for (number, name) in (0..).zip(NAMES) {
                scope.spawn(move || {
                    std::thread::sleep(lead(if by_itself { round } else { number }));
                    let renamed = engine
                        .api(
                            "POST",
                            &format!("/containers/{id}/rename?name={name}"),
                            None,
                        )
                        .0;
                    assert!(matches!(renamed, 204 | 404), "round {round}: {renamed}");
                });
            }
            if !by_itself {
                std::thread::sleep(lead(round) / 8);
                let removed = engine.api("DELETE", &format!("/containers/{id}"), None).0;
                assert_eq!(removed, 204, "round {round}");
            }
        });
        eventually("it to be gone", || {
            (engine.get("/containers/json?all=1") == json!([])).then_some(())
        });
        for name in NAMES.into_iter().chain(["old"]) {
            let (status, answer) = engine.api(
                "POST",
                &format!("/containers/create?name={name}"),
                Some(&body(&["true"])),
            );
            assert_eq!(status, 201, "round {round}: {answer}");
            remove(engine, name);
        }
    }
}

/// Returns the warm shims of an engine.
fn ready_shims(engine: &Engine) -> Vec<i32> {
    let mark = format!("/{}/shims", engine.name());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/cgroup"))
                .is_ok_and(|groups| groups.contains(&mark))
        })
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|name| name.trim() == "whelk-shim")
        })
        .collect()
}

#[test]
fn killed_pooled_shims_do_not_fail_a_start() {
    let engine = Engine::start();
    for round in 0..3 {
        let shims = eventually("ready shims", || {
            Some(ready_shims(&engine)).filter(|shims| shims.len() >= 2)
        });
        for pid in shims {
            // A process that was on its way to another program may have ended.
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
        if round > 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
        for _ in 0..2 {
            assert_eq!(
                engine.cli(Program::Whelk).sh(&[], "echo started").ok(),
                "started",
                "round {round}"
            );
        }
    }
}

#[test]
fn a_kill_cancels_a_pending_restart() {
    Engine::start().both(|cli| {
        let engine = cli.engine();
        cli.up("again", &["--restart", "always"], &["false"]);
        let restarts = || engine.inspect("again")["RestartCount"].as_i64().unwrap();
        eventually("a long wait for the next restart", || {
            (restarts() >= 5 && engine.state("again") == "restarting").then_some(())
        });
        assert_eq!(cli.run(&["kill", "again"]).ok(), "again");
        assert_eq!(engine.state("again"), "exited");
        let count = restarts();
        // Longer than the wait, of 3.2 s.
        std::thread::sleep(Duration::from_millis(4500));
        assert_eq!(
            (engine.state("again").as_str(), restarts()),
            ("exited", count)
        );
        cli.run(&["kill", "again"]).refuses(1, "is not running");
        cli.run(&["rm", "again"]).ok();
    });
}

#[test]
fn the_kill_event_precedes_the_die_event() {
    let engine = Engine::start();
    for round in 0..30 {
        let command = ["kill?signal=KILL", "stop?t=0"][round % 2];
        engine.create("one", &body(&["sleep", "600"]));
        let mut events = engine.events("");
        assert_eq!(start(&engine, "one"), 204);
        assert_eq!(
            engine
                .api("POST", &format!("/containers/one/{command}"), None)
                .0,
            204
        );
        let told = events.until("die");
        assert!(
            told.iter().any(|event| event == "container kill"),
            "round {round}: {told:?}"
        );
        remove(&engine, "one");
    }
}

#[test]
fn a_huge_environment_does_not_block_others() {
    let engine = Engine::start();
    let env: Vec<String> = (0..60_000)
        .map(|number| format!("VARIABLE_{number}=value of {number}"))
        .collect();
    let mut huge = body(&["sh", "-c", "echo $VARIABLE_59999"]);
    huge["Env"] = json!(env);
    huge["HostConfig"]["Binds"] = json!(
        (0..40_000)
            .map(|number| format!("/etc:/mnt/{number}"))
            .collect::<Vec<_>>()
    );
    huge["ExposedPorts"] = (1..60_000)
        .map(|port| (format!("{port}/tcp"), json!({})))
        .collect();
    std::thread::scope(|scope| {
        let made = scope.spawn(|| {
            let begun = Instant::now();
            for number in 0..4 {
                engine.create(&format!("huge-{number}"), &huge);
            }
            begun.elapsed()
        });
        while !made.is_finished() {
            let begun = Instant::now();
            assert!(
                engine.answers() && begun.elapsed() < Duration::from_secs(30),
                "{:?}",
                begun.elapsed()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let took = made.join().unwrap();
        assert!(took < Duration::from_secs(60), "{took:?}");
    });
    for number in 0..4 {
        remove(&engine, &format!("huge-{number}"));
    }
    // Without the mounts, which the kernel is slow to create.
    huge["HostConfig"]["Binds"] = Value::Null;
    engine.create("huge", &huge);
    let begun = Instant::now();
    let (status, answer) = engine.api("POST", "/containers/huge/start", None);
    assert_eq!((status, &answer), (204, &Value::Null));
    assert!(
        begun.elapsed() < Duration::from_secs(55),
        "{:?}",
        begun.elapsed()
    );
    engine.await_state("huge", "exited");
    eventually("the error in the engine's log", || {
        engine
            .last_words()
            .contains("argument list too long")
            .then_some(())
    });
    remove(&engine, "huge");
}

#[test]
fn the_engine_works_with_few_descriptors() {
    const MOST: u64 = 256;
    let engine = Engine::start();
    let cli = engine.cli(Program::Whelk);
    cli.up("again", &["--restart", "always"], &["sleep", "600"]);
    // Containers get the other limit.
    let limit = Rlimit {
        current: Some(MOST),
        ..getrlimit(Resource::Nofile)
    };
    prlimit(Pid::from_raw(engine.daemon_pid()), Resource::Nofile, limit).unwrap();
    // Clients that connect and send nothing.
    let idle: Vec<Connection> = (0..MOST)
        .map_while(|_| Connection::open(&engine.socket()).ok())
        .collect();
    let pid = engine_pid_without_api(&engine);
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let is_back = || engine_pid_of(&engine).is_some_and(|found| found != pid);
    eventually("it to be started again", || is_back().then_some(()));
    drop(idle);
    eventually("the engine to answer", || engine.answers().then_some(()));
    // Its process may be there before its start is complete.
    engine.await_state("again", "running");
    // All containers that could be created can be removed concurrently.
    let mut names = Vec::new();
    for number in 0..70 {
        let name = format!("many-{number}");
        engine.create(&name, &body(&["sleep", "600"]));
        assert_eq!(start(&engine, &name), 204, "{name}");
        names.push(name);
    }
    for program in [Program::Docker, Program::Whelk] {
        let (some, rest) = names.split_at(if program == Program::Docker {
            50
        } else {
            names.len()
        });
        let arguments: Vec<&str> = ["rm", "-f"]
            .into_iter()
            .chain(some.iter().map(String::as_str))
            .collect();
        engine.cli(program).run(&arguments).ok();
        names = rest.to_vec();
    }
    cli.run(&["rm", "-f", "again"]).ok();
    assert_eq!(engine.get("/containers/json?all=1"), json!([]));
}

/// The container's first process, found without the engine: in the only cgroup of a container.
fn engine_pid_of(engine: &Engine) -> Option<i32> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mark = format!("/{}/", engine.name());
    numbers.find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| {
            groups
                .lines()
                .any(|line| line.contains(&mark) && !line.contains("/shims"))
        }) && fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.trim() == "sleep")
    })
}

#[track_caller]
fn engine_pid_without_api(engine: &Engine) -> i32 {
    eventually("the container's process", || engine_pid_of(engine))
}
