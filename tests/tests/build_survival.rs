//! Builds that are cut off, lack space, run beside others, or lose what they use.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use whelk_tests::builds::{BUILDKIT, PROTOCOLS, docker, whelk};
use whelk_tests::processes::with_command;
use whelk_tests::{Engine, Output, Program, eventually};

/// Ends a `sleep` of a step, whose shell goes on.
fn end(sleeping: i32) {
    let pid = rustix::process::Pid::from_raw(sleeping).unwrap();
    // One that was found twice may have ended.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
}

/// The program under test must be built with debug assertions.
#[test]
fn an_engine_killed_at_each_step_of_a_build_leaves_a_sound_store() {
    let directory = whelk_tests::Scratch::new("build-steps");
    let file = directory.directory("count").join("steps");
    let engine = Engine::with_env(&[("WHELK_STEPS", file.to_str().unwrap())]);
    for (protocol, env) in PROTOCOLS.iter().enumerate() {
        let cli = engine.cli(Program::Docker).with_env(env);
        for steps in 0.. {
            // Nothing of it is in the cache.
            let dockerfile = format!(
                "FROM busybox AS made\nRUN --network=none --mount=type=cache,target=/cache echo {protocol} {steps} > /made; cp /made /cache/\nFROM busybox\nCOPY --link --from=made /made /copied\nCOPY Dockerfile /d/\n"
            );
            let context = engine.dockerfile(&format!("steps-{protocol}-{steps}"), &dockerfile);
            fs::write(&file, steps.to_string()).unwrap();
            let done = cli.build(&context, &["-t", "made"]);
            // Under the lock the engine is dead, or is not killed any more.
            let count = fs::File::options().write(true).open(&file).unwrap();
            count.lock().unwrap();
            count.set_len(0).unwrap();
            drop(count);
            let lived = engine.answers();
            if lived {
                assert!(steps > 0, "this program does not die at a step");
                done.ok();
            } else {
                engine.kill9();
                engine.restart();
                engine.has_no_builds();
                cli.build(&context, &["-t", "made"]).ok();
            }
            let look = ["run", "--rm", "--network", "none", "made", "cat", "/copied"];
            assert_eq!(engine.docker(&look).ok(), format!("{protocol} {steps}"));
            if lived {
                break;
            }
        }
    }
    engine.has_no_builds();
}

/// An image of several platforms with attestations is recorded by the last steps of its build.
#[test]
fn an_engine_killed_while_it_records_an_index_leaves_a_sound_store() {
    const UNLIMITED: usize = 1_000_000;
    let directory = whelk_tests::Scratch::new("index-steps");
    let file = directory.directory("count").join("steps");
    let engine = Engine::with_env(&[("WHELK_STEPS", file.to_str().unwrap())]);
    let build = |number: usize| {
        // Nothing of it is in the cache.
        let text = format!("FROM scratch\nCOPY Dockerfile /{number}\n");
        let context = engine.dockerfile(&format!("index-{number}"), &text);
        let platforms = ["--platform", "linux/amd64,linux/arm64"];
        let others = ["--provenance=mode=min", "-t", "indexed"];
        docker(&engine).build(&context, &[&platforms[..], &others].concat())
    };
    // Ends the count, and returns what is left of it. The engine is dead then, or is not killed any more.
    let end_count = || {
        let mut count = fs::File::options()
            .read(true)
            .write(true)
            .open(&file)
            .unwrap();
        count.lock().unwrap();
        let mut text = String::new();
        count.read_to_string(&mut text).unwrap();
        count.set_len(0).unwrap();
        text.trim().parse().unwrap_or(0_usize)
    };
    build(100).ok();
    fs::write(&file, UNLIMITED.to_string()).unwrap();
    build(101).ok();
    let all = UNLIMITED - end_count();
    let mut killed = 0;
    for number in (1..=24).step_by(3).filter(|number| *number < all) {
        fs::write(&file, (all - number).to_string()).unwrap();
        let done = build(number);
        end_count();
        if engine.answers() {
            done.ok();
        } else {
            killed += 1;
            engine.kill9();
            engine.restart();
            engine.has_no_builds();
            build(number).ok();
        }
        let saved = engine.scratch("saved").join("image.tar");
        let save = ["save", "-o", saved.to_str().unwrap(), "indexed"];
        engine.docker(&save).ok();
        for architecture in ["amd64", "arm64"] {
            let platform = format!("linux/{architecture}");
            let inspect = ["image", "inspect", "--platform", &platform, "indexed"];
            let format = ["--format", "{{.Architecture}}"];
            let found = engine.docker(&[&inspect[..], &format].concat()).ok();
            assert_eq!(found, architecture);
        }
    }
    assert!(killed > 0, "none of {all} steps kills it");
    engine.has_no_builds();
}

#[test]
fn a_build_after_a_kill_goes_on_from_the_last_whole_step() {
    let engine = Engine::start();
    for (number, env) in PROTOCOLS.iter().enumerate() {
        let cli = engine.cli(Program::Docker).with_env(env);
        let gate = engine.scratch("gate").join(format!("{number}"));
        let uuid = "cat /proc/sys/kernel/random/uuid";
        let dockerfile = format!(
            "FROM busybox\nRUN {uuid} > /1; echo {number}\nRUN {uuid} > /2\nCOPY gate* /c/\nRUN cat /1 /2; [ -e /c/open ] || {{ echo wait''ing; sleep 1235; }}\n"
        );
        // The context opens the gate for the second build without changing the first steps.
        let context = engine.dockerfile(&format!("gated-{number}"), &dockerfile);
        fs::write(context.join("gate"), "").unwrap();
        fs::write(&gate, "").unwrap();
        let mut running = cli.spawn(&["build", "-t", "gated", context.to_str().unwrap()]);
        eventually("the last step to run", || with_command(&["sleep", "1235"]));
        eventually("its output to be shown", || {
            let shown = running.so_far() + &running.errors_so_far();
            shown.contains("waiting").then_some(())
        });
        engine.kill9();
        let first = running.finish();
        assert_ne!(first.code, 0);
        engine.restart();
        eventually("the step's process to end", || {
            with_command(&["sleep", "1235"]).is_none().then_some(())
        });
        engine.has_no_builds();
        fs::rename(context.join("gate"), context.join("gate-open")).unwrap();
        fs::create_dir(context.join("gates")).unwrap();
        fs::write(context.join("gates/open"), "").unwrap();
        cli.built(&context, &["-t", "gated"]);
        // What the steps of the first build have made.
        let look = [
            "run",
            "--rm",
            "--network",
            "none",
            "gated",
            "cat",
            "/1",
            "/2",
        ];
        let made = engine.docker(&look).ok();
        let seen = first.shown();
        assert_eq!(made.lines().count(), 2, "{made}");
        assert!(
            made.lines().all(|uuid| seen.contains(uuid)),
            "{made} in {seen}"
        );
    }
}

#[test]
fn a_build_ends_with_an_engine_that_is_stopped() {
    let engine = Engine::start();
    engine
        .docker(&["run", "-d", "busybox", "sleep", "1238"])
        .ok();
    for (number, env) in PROTOCOLS.iter().enumerate() {
        let cli = engine.cli(Program::Docker).with_env(env);
        // The shell ignores the signals that can be ignored.
        let text = format!(
            "FROM busybox\nRUN trap '' TERM INT HUP; echo {number} > /n; sleep 1237; true\n"
        );
        let context = engine.dockerfile(&format!("stopped-{number}"), &text);
        let mut running = cli.spawn(&["build", context.to_str().unwrap()]);
        eventually("the step to run", || with_command(&["sleep", "1237"]));
        engine.terminate();
        assert_ne!(running.finish().code, 0);
        // Without another engine.
        assert_eq!(with_command(&["sleep", "1237"]), None);
        assert!(with_command(&["sleep", "1238"]).is_some());
        engine.restart();
        engine.has_no_builds();
    }
}

/// An engine whose root is a small file system of its own.
struct Small {
    engine: Engine,
}

impl Small {
    fn start() -> Self {
        let engine = Engine::start();
        engine.kill9();
        let size = Some(c"size=48m");
        mount("tmpfs", engine.root(), "tmpfs", MountFlags::empty(), size).unwrap();
        engine.restart();
        let small = Self { engine };
        let busybox = fs::read(whelk_tests::images::busybox()).unwrap();
        small.engine.load(&busybox);
        small
    }

    /// Fills the disk but for this number of bytes, as long as the result exists.
    fn filled_but(&self, left: u64) -> Filler {
        let path = self.engine.root().join("filler");
        let file = fs::File::create(&path).unwrap();
        let flags = rustix::fs::FallocateFlags::empty();
        // The engine may write meanwhile.
        eventually("the disk to be filled", || {
            let size = self.free().saturating_sub(left);
            (size == 0 || rustix::fs::fallocate(&file, flags, 0, size).is_ok()).then_some(())
        });
        Filler(path)
    }

    fn free(&self) -> u64 {
        let found = rustix::fs::statvfs(self.engine.root()).unwrap();
        found.f_bavail * found.f_frsize
    }
}

struct Filler(PathBuf);

impl Drop for Filler {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// Checks that a build has succeeded, or failed because there is no space.
#[track_caller]
fn is_built_or_full(output: &Output) -> bool {
    let text = output.shown();
    let is_full = text.contains("o space left on device") || text.contains("disk is full");
    assert!(output.code == 0 || is_full, "{text}");
    output.code == 0
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = self.engine.docker(&["rm", "-f", "bystander"]);
        self.engine.kill9();
        let _ = unmount(self.engine.root(), UnmountFlags::DETACH);
        self.engine.restart();
    }
}

#[test]
fn a_full_disk_fails_a_build_and_nothing_else() {
    let small = Small::start();
    let engine = &small.engine;
    for (number, env) in PROTOCOLS.iter().enumerate() {
        let cli = engine.cli(Program::Docker).with_env(env);
        cli.up("bystander", &[], &["sleep", "600"]);
        let before = small.free();
        let fill = "dd if=/dev/zero of=/fill bs=1M";
        let dockerfiles = [
            // In a step.
            format!("FROM busybox\nRUN {fill}; echo {number} >/dev/null; exit 3\n"),
            format!("FROM busybox\nRUN {fill} && echo {number}\n"),
            // By its output.
            format!("FROM busybox\nRUN yes {number}\n"),
        ];
        for (case, dockerfile) in dockerfiles.iter().enumerate() {
            let context = engine.dockerfile(&format!("full-{number}-{case}"), dockerfile);
            let output = cli.build(&context, &["-t", "full"]);
            let text = output.shown();
            assert_ne!(output.code, 0, "{text}");
            let last = &text[text.len().saturating_sub(600)..];
            assert!(
                last.contains("o space left on device") || last.contains("code: 3"),
                "{last}"
            );
            assert_eq!(engine.state("bystander"), "running");
            eventually(
                &format!("the space to be free again after {dockerfile}"),
                // The history keeps the output of a step.
                || (small.free() + (10 << 20) >= before).then_some(()),
            );
            engine.has_no_builds();
        }
        // A context that does not fit.
        let context = engine.dockerfile(&format!("large-{number}"), "FROM busybox\nCOPY large /\n");
        let large = fs::File::create(context.join("large")).unwrap();
        let noise = vec![0x5a_u8; 1 << 20];
        for _ in 0..60 {
            std::io::Write::write_all(&mut &large, &noise).unwrap();
        }
        let output = cli.build(&context, &[]);
        assert_ne!(output.code, 0);
        let text = output.shown();
        assert!(text.contains("o space left on device"), "{text}");
        // The next build works.
        let context = engine.dockerfile(&format!("fits-{number}"), "FROM busybox\nRUN echo fits\n");
        cli.build(&context, &["-t", "fits"]).ok();
        engine.docker(&["rm", "-f", "bystander"]).ok();
    }
}

#[test]
fn a_full_disk_fails_a_seal_or_an_export_and_nothing_else() {
    let small = Small::start();
    let engine = &small.engine;
    docker(engine).up("bystander", &[], &["sleep", "600"]);
    // The disk is full when the last step has ended, and its files become a layer.
    for (number, env) in PROTOCOLS.iter().enumerate() {
        let cli = engine.cli(Program::Docker).with_env(env);
        let files = "i=0; while [ $i -lt 500 ]; do echo $i > /d/$i; i=$((i+1)); done";
        let sleep = format!("438.{number}38");
        // Nothing is said of the end of `sleep`: the disk would be too full for it.
        let text = format!(
            "FROM busybox\nRUN --network=none mkdir /d; {files}; exec 2>/dev/null; sleep {sleep}; true\n"
        );
        let context = engine.dockerfile(&format!("seal-{number}"), &text);
        let begin = || cli.spawn(&["build", "-t", "sealed", context.to_str().unwrap()]);
        let mut running = begin();
        let sleeping = eventually("the step to run", || with_command(&["sleep", &sleep]));
        let filler = small.filled_but(0);
        end(sleeping);
        let ended = running.finish();
        assert!(!is_built_or_full(&ended), "{}", ended.shown());
        assert_eq!(engine.state("bystander"), "running");
        drop(filler);
        engine.has_no_builds();
        let mut running = begin();
        eventually("the build to end", || {
            if let Some(sleeping) = with_command(&["sleep", &sleep]) {
                end(sleeping);
            }
            (!running.is_running()).then_some(())
        });
        running.finish().ok();
        let count = ["sealed", "sh", "-c", "ls /d | wc -l"];
        let look = [&["run", "--rm", "--network", "none"], &count[..]].concat();
        assert_eq!(engine.docker(&look).ok(), "500");
    }
    // An output that does not fit on the engine's disk, in case it is made there.
    let text =
        "FROM busybox\nRUN --network=none dd if=/dev/urandom of=/noise bs=1M count=6 2>/dev/null\n";
    let context = engine.dockerfile("exports", text);
    docker(engine).built(&context, &["-t", "exported"]);
    let place = engine.scratch_text("place");
    let before = small.free();
    let cache = format!("type=local,dest={place}/cache,mode=max");
    // Compressed layers have to be somewhere; files are sent as they are.
    for (args, must_fail) in [
        (&["-o", "type=oci,dest={place}/oci.tar"][..], true),
        (&["-o", "type=docker,name=x,dest={place}/docker.tar"], true),
        (&["-o", "type=tar,dest={place}/files.tar"], false),
        (&["-o", "type=local,dest={place}/files"], false),
        (
            &["-o", "type=image,name=indexed", "--provenance=mode=max"],
            false,
        ),
        (
            &["-o", "type=image,name=cached", "--cache-to", cache.as_str()],
            true,
        ),
    ] {
        let args: Vec<String> = args
            .iter()
            .map(|arg| arg.replace("{place}", &place))
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let filler = small.filled_but(512 << 10);
        let is_built = is_built_or_full(&docker(engine).build(&context, &args));
        assert!(!must_fail || !is_built, "{args:?}");
        assert_eq!(engine.state("bystander"), "running");
        drop(filler);
        engine.has_no_steps();
        // With space, it works.
        docker(engine).built(&context, &args);
    }
    // What a full disk has refused is not there.
    let _ = engine.docker(&["rmi", "-f", "indexed", "cached"]);
    engine.has_no_builds();
    eventually("the space to be free again", || {
        // The history, and what was compressed for the index.
        (small.free() + (9 << 20) >= before).then_some(())
    });
    engine.docker(&["rm", "-f", "bystander"]).ok();
}

#[test]
fn twenty_builds_run_at_once_and_share_their_steps() {
    let engine = Engine::start();
    for (number, env) in PROTOCOLS.iter().enumerate() {
        let cli = engine.cli(Program::Docker).with_env(env);
        let uuid = "cat /proc/sys/kernel/random/uuid";
        let same = format!(
            "FROM busybox AS made\nRUN --network=none sleep 1; echo {number}; {uuid} > /id\nFROM busybox\nCOPY --from=made /id /id\nRUN --network=none {uuid} > /own\n"
        );
        let same = engine.dockerfile(&format!("same-{number}"), &same);
        let contexts: Vec<PathBuf> = (0..20)
            .map(|build| match build % 2 {
                0 => same.clone(),
                _ => {
                    let text = format!(
                        "FROM busybox\nRUN --network=none echo {build} {number} > /own\nRUN {uuid} >/id\n"
                    );
                    engine.dockerfile(&format!("own-{number}-{build}"), &text)
                }
            })
            .collect();
        thread::scope(|threads| {
            for (build_number, context) in contexts.iter().enumerate() {
                threads.spawn(move || {
                    let name = format!("at-once:{number}-{build_number}");
                    cli.build(context, &["-t", &name]).ok();
                });
            }
        });
        let id = |build: usize| {
            let image = engine.get(&format!("/images/at-once:{number}-{build}/json"));
            // Of all with the same steps, whatever each configuration says of its time.
            image["RootFS"].to_string()
        };
        let same: BTreeSet<String> = (0..20).step_by(2).map(id).collect();
        assert_eq!(same.len(), 1, "{same:?}");
        let own: BTreeSet<String> = (1..20).step_by(2).map(id).collect();
        assert_eq!(own.len(), 10, "{own:?}");
    }
    engine.has_no_builds();
}

#[test]
fn a_base_image_may_be_removed_during_a_build() {
    let engine = Engine::start();
    for (number, env) in PROTOCOLS.iter().enumerate() {
        let cli = engine.cli(Program::Docker).with_env(env);
        engine.docker(&["tag", "busybox", "base"]).ok();
        let first = format!("FROM busybox\nRUN echo {number} > /of-base\n");
        let first = engine.dockerfile(&format!("base-{number}"), &first);
        cli.build(&first, &["-t", "base"]).ok();
        // No other test sleeps as long.
        let sleep = format!("347.{number}47");
        let dockerfile = format!(
            "FROM base\nRUN echo begun; sleep {sleep}; cp /of-base /first\nRUN cat /of-base /first > /both\n"
        );
        let context = engine.dockerfile(&format!("on-base-{number}"), &dockerfile);
        let mut running = cli.spawn(&["build", "-t", "on-base", context.to_str().unwrap()]);
        let sleeping = eventually("the step to run", || with_command(&["sleep", &sleep]));
        engine.docker(&["rmi", "-f", "base"]).ok();
        let prune = ["builder", "prune", "-a", "-f"];
        engine.docker(&prune).ok();
        end(sleeping);
        running.finish().ok();
        let look = ["run", "--rm", "on-base", "cat", "/both"];
        assert_eq!(engine.docker(&look).ok(), format!("{number}\n{number}"));
    }
    engine.has_no_builds();
}

#[test]
fn a_context_may_change_while_it_is_sent() {
    let engine = Engine::start();
    for (number, env) in PROTOCOLS.iter().enumerate() {
        let cli = engine.cli(Program::Docker).with_env(env);
        let name = format!("changing-{number}");
        let context = engine.dockerfile(&name, "FROM busybox\nCOPY . /c/\nRUN ls /c | wc -l\n");
        for file in 0..200 {
            fs::write(context.join(format!("{file}")), vec![b'x'; 20_000]).unwrap();
        }
        let over = AtomicBool::new(false);
        thread::scope(|threads| {
            threads.spawn(|| {
                for round in 0_usize.. {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let path = context.join(format!("{}", round * 7 % 200));
                    let _ = fs::remove_file(&path);
                    match round % 3 {
                        0 => drop(fs::write(&path, vec![b'y'; round % 50_000])),
                        1 => {}
                        _ => drop(std::os::unix::fs::symlink("nowhere", &path)),
                    }
                    thread::sleep(Duration::from_micros(200));
                }
            });
            let outputs: Vec<Output> = (0..8)
                .map(|_| cli.build(&context, &["-t", "changing"]))
                .collect();
            over.store(true, Ordering::Relaxed);
            for output in outputs {
                // Complete, or refused by the client or by the engine, which goes on.
                let text = output.shown();
                assert!(
                    output.code <= 1 && !text.contains("internal error"),
                    "{text}"
                );
            }
            assert!(engine.answers());
        });
        for file in 0..200 {
            let path = context.join(format!("{file}"));
            let _ = fs::remove_file(&path);
            fs::write(path, format!("{file}\n")).unwrap();
        }
        cli.build(&context, &["-t", "changing"]).ok();
        let look = "cd /c; rm Dockerfile; ls | wc -l; cat * | sort -n | uniq | wc -l";
        let look = engine.docker(&["run", "--rm", "changing", "sh", "-c", look]);
        assert_eq!(look.ok(), "200\n200");
    }
    engine.has_no_builds();
}

#[test]
fn a_cache_is_pruned_while_builds_run() {
    let engine = Engine::start();
    for (number, env) in PROTOCOLS.iter().enumerate() {
        let cli = engine.cli(Program::Docker).with_env(env);
        let over = AtomicBool::new(false);
        thread::scope(|threads| {
            threads.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    engine.docker(&["builder", "prune", "-a", "-f"]).ok();
                }
            });
            let builds: Vec<_> = (0..4)
                .map(|which| {
                    let engine = &engine;
                    threads.spawn(move || {
                        for round in 0..4 {
                            let copies: String = (0..12)
                                .map(|file| format!("COPY Dockerfile /{which}-{round}-{file}\n"))
                                .collect();
                            let text = format!(
                                "FROM busybox\n{copies}RUN --network=none ls / > /list\nRUN --network=none wc -l < /list\n"
                            );
                            let context = engine.dockerfile(&format!("p-{number}-{which}-{round}"), &text);
                            let name = format!("pruned:{number}-{which}");
                            cli.build(&context, &["-t", &name]).ok();
                            let count = format!("grep -c '^{which}-' /list");
                            let look = ["run", "--rm", "--network", "none", &name, "sh", "-c", &count];
                            assert_eq!(engine.docker(&look).ok(), "12");
                        }
                    })
                })
                .collect();
            let results: Vec<_> = builds.into_iter().map(|build| build.join()).collect();
            over.store(true, Ordering::Relaxed);
            results.into_iter().for_each(|result| result.unwrap());
        });
    }
    engine.has_no_builds();
}

#[test]
fn steps_that_fork_or_fill_their_memory_end() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker).with_env(PROTOCOLS[0]);
    let forks = "FROM busybox\nRUN i=0; while [ $i -lt 400 ]; do setsid sleep 1236 & i=$((i+1)); done; echo all\n";
    let context = engine.dockerfile("forks", forks);
    cli.build(&context, &["-t", "forks"]).ok();
    assert_eq!(
        with_command(&["sleep", "1236"]),
        None,
        "a process of the step is left"
    );
    let fills = "FROM busybox\nRUN x=0123456789; while :; do x=$x$x; done\n";
    let context = engine.dockerfile("fills", fills);
    let output = cli.build(&context, &["--memory", "32m"]);
    let text = output.shown();
    assert!(
        output.code != 0 && text.contains("returned a non-zero code: 137"),
        "{text}"
    );
    engine.has_no_builds();
}

#[test]
fn a_step_goes_on_with_the_secret_of_another_client() {
    let engine = Engine::start();
    let cli = docker(&engine);
    let dockerfile =
        "FROM busybox\nRUN --mount=type=secret,id=key,required=true cat /run/secrets/key > /made\n";
    let context = engine.scratch_with("shared", &[("Dockerfile", dockerfile), ("key", "secret")]);
    let path = context.to_str().unwrap();
    let pipe = engine.scratch("pipe").join("pipe");
    let fifo = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, fifo, mode, 0).unwrap();
    // The first client never answers, and then it is killed.
    let never = format!("id=key,src={}", pipe.display());
    let mut first = cli.spawn(&["build", "--secret", &never, path]);
    eventually("the first build to begin the step", || {
        first.errors_so_far().contains("[2/2] RUN").then_some(())
    });
    let key = format!("id=key,src={}", context.join("key").display());
    let mut second = cli.spawn(&["build", "--secret", &key, "-t", "made", path]);
    eventually("the second build to wait for it", || {
        second.errors_so_far().contains("[2/2] RUN").then_some(())
    });
    let begin = Instant::now();
    first.signal(rustix::process::Signal::KILL);
    let _ = first.finish();
    second.finish().ok();
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "{:?}",
        begin.elapsed()
    );
    let look = ["run", "--rm", "--network", "none", "made", "cat", "/made"];
    assert_eq!(engine.docker(&look).ok(), "secret");
    engine.has_no_builds();
}

/// Passes connections on to an engine, and cuts all of them when clients have sent a number of bytes.
struct Cut {
    path: PathBuf,
    /// Number of bytes that are left.
    left: Arc<AtomicI64>,
}

impl Cut {
    fn new(engine: &Engine) -> Self {
        let path = engine.scratch("cut").join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let left = Arc::new(AtomicI64::new(i64::MAX));
        let (target, own) = (engine.socket(), left.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (client, left) = (stream.unwrap(), own.clone());
                let Ok(server) = UnixStream::connect(&target) else {
                    continue;
                };
                let (back, from) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || pass(&client, &server, Some(&*left)));
                thread::spawn(move || pass(&from, &back, None));
            }
        });
        Self { path, left }
    }
}

fn pass(mut from: &UnixStream, mut to: &UnixStream, left: Option<&AtomicI64>) {
    let mut buffer = [0; 512];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let sent = i64::try_from(count).unwrap();
        if left.is_some_and(|left| left.fetch_sub(sent, Ordering::Relaxed) < sent) {
            let _ = from.shutdown(Shutdown::Both);
            break;
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let end = if left.is_some() {
        Shutdown::Both
    } else {
        Shutdown::Write
    };
    let _ = to.shutdown(end);
}

#[test]
fn a_client_may_be_cut_off_at_any_byte() {
    let engine = Engine::start();
    let cut = Cut::new(&engine);
    let host = format!("unix://{}", cut.path.display());
    for (name, program, protocol, cuts) in [
        ("docker", Program::Docker, BUILDKIT, 24),
        ("classic", Program::Docker, PROTOCOLS[0], 8),
        ("whelk", Program::Whelk, BUILDKIT, 24),
    ] {
        let env = [protocol, &[("DOCKER_HOST", &*host)]].concat();
        let cli = engine.cli(program).with_env(&env);
        let context = engine.scratch(&format!("cut-{name}"));
        let build = |round: i64, bytes: i64| {
            let dockerfile = format!(
                "FROM busybox\nCOPY . /c/\nRUN --network=none echo {name} {round} > /made\n"
            );
            fs::write(context.join("Dockerfile"), dockerfile).unwrap();
            for file in 0..20 {
                let path = context.join(format!("{file}"));
                fs::write(path, format!("{round}").repeat(1000)).unwrap();
            }
            cut.left.store(bytes, Ordering::Relaxed);
            let output = cli.build(&context, &["-t", "made"]);
            let left = cut.left.load(Ordering::Relaxed);
            (output, bytes.saturating_sub(left))
        };
        let (whole, all) = build(0, i64::MAX);
        whole.ok();
        let mut failed = 0;
        for round in 1..cuts {
            let (output, _) = build(round, all * round / cuts);
            failed += i64::from(output.code != 0);
            assert!(
                !output.shown().contains("internal error"),
                "{}",
                output.shown()
            );
            assert!(engine.answers());
        }
        // What comes last is not needed any more.
        assert!(failed > cuts / 2, "{name}: {failed} of {cuts}");
        engine.has_no_builds();
        build(cuts, i64::MAX).0.ok();
        let look = "cat /made; wc -c < /c/7";
        let look = ["run", "--rm", "--network", "none", "made", "sh", "-c", look];
        let size = 1000 * cuts.to_string().len();
        let expected = format!("{name} {cuts}\n{size}");
        assert_eq!(engine.docker(&look).ok(), expected);
    }
    engine.has_no_builds();
}

/// Adds copies of a result to the cache of an engine that does not run.
const COPIES: &str = "
import os, sqlite3, sys
cache = sqlite3.connect(sys.argv[1])
row = cache.execute('SELECT outputs, boot, created, used, uses, text FROM results ORDER BY id DESC').fetchone()
for number in range(int(sys.argv[2])):
    key = os.urandom(32)
    (boot, created, used, *others) = row[1:]
    # Of each second one the last use is three days ago.
    used -= number % 2 * 3 * 86400 * 10**9
    values = (row[0], key, boot, created, used, *others)
    added = cache.execute('INSERT INTO results (outputs, canonical, boot, created, used, uses, text) VALUES (?, ?, ?, ?, ?, ?, ?)', values)
    cache.execute('INSERT INTO keys VALUES (?, ?)', (key, added.lastrowid))
cache.commit()
";

#[test]
fn ten_thousand_records_are_pruned_while_builds_run() {
    const RECORDS: usize = 10_000;
    /// How long a small build may take meanwhile, also on a busy machine.
    const LIMIT: Duration = Duration::from_secs(20);
    let engine = Engine::start();
    let first = engine.dockerfile(
        "first",
        "FROM busybox\nRUN --network=none echo first > /first\n",
    );
    whelk(&engine).built(&first, &[]);
    engine.terminate();
    let database = engine.root().join("build/build.db");
    let added = Command::new("python3")
        .args(["-c", COPIES])
        .arg(&database)
        .arg(RECORDS.to_string())
        .status();
    assert!(added.unwrap().success());
    engine.restart();
    let count = || {
        let listed = engine.get("/system/df?type=build-cache");
        listed["BuildCache"].as_array().unwrap().len()
    };
    // With those of the builds.
    let is_about = |records: usize| (records..records + RECORDS / 10).contains(&count());
    assert!(is_about(RECORDS));
    let over = AtomicBool::new(false);
    thread::scope(|threads| {
        let building = threads.spawn(|| {
            let mut slowest = Duration::ZERO;
            for round in 0.. {
                if round > 3 && over.load(Ordering::Relaxed) {
                    return slowest;
                }
                let text = format!("FROM busybox\nRUN --network=none echo {round} > /x\n");
                let context = engine.dockerfile("meanwhile", &text);
                let begin = Instant::now();
                whelk(&engine).built(&context, &[]);
                slowest = slowest.max(begin.elapsed());
            }
            slowest
        });
        // A part of them, and then all.
        whelk(&engine)
            .run(&["builder", "prune", "-f", "-a", "--filter", "until=24h"])
            .ok();
        assert!(is_about(RECORDS / 2), "{}", count());
        whelk(&engine).run(&["buildx", "du"]).ok();
        whelk(&engine).run(&["builder", "prune", "-f", "-a"]).ok();
        over.store(true, Ordering::Relaxed);
        let slowest = building.join().unwrap();
        assert!(slowest < LIMIT, "{slowest:?}");
    });
    assert!(is_about(0), "{}", count());
    engine.has_no_builds();
}
