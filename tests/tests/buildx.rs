//! Builds with BuildKit's protocol: `docker build`, `docker buildx` and `docker compose`, unmodified.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rustix::process::Signal;
use serde_json::json;
use whelk_tests::builds::{BUILDKIT, docker, shows};
use whelk_tests::processes::with_command;
use whelk_tests::{Engine, Program, Pty, eventually};

#[test]
fn an_image_is_built_and_cached() {
    let engine = Engine::start();
    let dockerfile = "ARG BASE=busybox\nFROM $BASE AS base\nARG WHAT=none\nWORKDIR /srv\nCOPY data data\nRUN echo to-out; echo to-err >&2; echo $WHAT > made\nFROM base\nCOPY --from=base /srv/made /copied\nCMD [\"cat\", \"/copied\"]\n";
    let files = [
        ("Dockerfile", dockerfile),
        (".dockerignore", "*.log\n"),
        ("data/x", "one"),
        ("data/y.log", "two"),
        ("y.log", "three"),
    ];
    let context = engine.scratch_with("first", &files);
    let iidfile = engine.scratch_text("iid");
    let args = [
        "--build-arg",
        "WHAT=this",
        "-t",
        "made:1",
        "--iidfile",
        &iidfile,
    ];
    let shown = docker(&engine).built(&context, &args);
    shows(
        &shown,
        &[
            "[internal] load build definition from Dockerfile",
            "[internal] load metadata for docker.io/library/busybox:latest",
            "[internal] load .dockerignore",
            "[internal] load build context",
            "RUN echo to-out; echo to-err >&2; echo this > made",
            " to-out\n",
            " to-err\n",
            "exporting to image",
            "exporting layers",
            "writing image sha256:",
            "naming to docker.io/library/made:1 done",
        ],
    );
    let first = engine.image("made:1");
    assert_eq!(json!(fs::read_to_string(&iidfile).unwrap()), first["Id"]);
    assert_eq!(first["Config"]["WorkingDir"], "/srv");
    assert_eq!(engine.docker(&["run", "--rm", "made:1"]).ok(), "this");
    let look = ["run", "--rm", "made:1", "ls", "data"];
    assert_eq!(engine.docker(&look).ok(), "x\ny.log");
    // Nothing is executed, and the image is the same.
    let args = ["--build-arg", "WHAT=this", "-t", "made:2"];
    let again = docker(&engine).built(&context, &args);
    assert!(!again.contains(" to-out\n"), "{again}");
    assert!(again.matches("CACHED").count() >= 4, "{again}");
    assert_eq!(engine.image("made:2")["Id"], first["Id"]);
    let text = context.to_str().unwrap();
    let args = ["build", "-q", "--build-arg", "WHAT=this", text];
    let quiet = docker(&engine).run(&args).ok();
    assert_eq!(json!(quiet), first["Id"]);
    // After a kill too; and without the cache it is all done again.
    engine.kill9();
    engine.restart();
    let after = docker(&engine).built(&context, &["--build-arg", "WHAT=this"]);
    assert!(!after.contains(" to-out\n"), "{after}");
    let fresh = docker(&engine).built(&context, &["--build-arg", "WHAT=this", "--no-cache"]);
    shows(&fresh, &[" to-out\n"]);
    let other = docker(&engine).built(&context, &["--build-arg", "WHAT=that"]);
    shows(&other, &[" to-out\n", "CACHED"]);
}

#[test]
fn without_the_cache_caches_of_steps_are_empty() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox AS other\n\
        RUN --mount=type=cache,target=/kept touch /kept/x\n\
        FROM busybox\nARG NAME\nCOPY --from=other /bin/true /\n\
        RUN --mount=type=cache,target=/c touch /c/$NAME; echo $(ls /c) > /listed\n\
        RUN --mount=type=cache,target=/kept ls /kept > /kept-listed\n";
    let context = engine.scratch_with("caches", &[("Dockerfile", dockerfile)]);
    let listed = |name: &str, args: &[&str]| {
        let name = format!("NAME={name}");
        let args = [args, &["-t", "made", "--build-arg", &name]].concat();
        docker(&engine).built(&context, &args);
        let look = ["run", "--rm", "made", "cat", "/listed", "/kept-listed"];
        engine.docker(&look).ok()
    };
    assert_eq!(listed("a", &[]), "a\nx");
    assert_eq!(listed("b", &[]), "a b\nx");
    assert_eq!(listed("c", &["--no-cache"]), "c\nx");
    // That of a step that is not meant stays.
    assert_eq!(listed("d", &["--no-cache-filter=other"]), "c d\nx");
}

#[test]
fn failures_show_the_lines() {
    let engine = Engine::start();
    let check = |name: &str, dockerfile: &str, expected: &[&str]| {
        let context = engine.scratch_with(name, &[("Dockerfile", dockerfile)]);
        let failed = docker(&engine).build(&context, &["-t", "none"]);
        assert_eq!(failed.code, 1);
        shows(&failed.err(), expected);
    };
    check(
        "exit",
        "FROM busybox\nRUN echo before && exit 7\n",
        &[
            "before",
            "process \"/bin/sh -c echo before && exit 7\" did not complete successfully: exit code: 7",
            "Dockerfile:2",
            ">>> RUN echo before && exit 7",
        ],
    );
    check(
        "syntax",
        "FROM busybox\n\nRUNS x\n",
        &["unknown instruction: RUNS", "Dockerfile:3", ">>> RUNS x"],
    );
    check(
        "copy",
        "FROM busybox\nCOPY none /x\n",
        &["none", "Dockerfile:2"],
    );
    let missing = engine.scratch("missing");
    let failed = docker(&engine).build(&missing, &["-f", missing.join("x").to_str().unwrap()]);
    assert_ne!(failed.code, 0);
    // What is not supported is refused by its name.
    let context = engine.scratch_with("refused", &[("Dockerfile", "FROM busybox\n")]);
    for (args, expected) in [
        (&["--output", "type=none"][..], "none"),
        (&["--allow", "security.insecure"], "security.insecure"),
    ] {
        let failed = docker(&engine).build(&context, args);
        assert_ne!(failed.code, 0, "{args:?}");
        shows(&failed.err(), &[expected]);
    }
    let host = engine.scratch_with(
        "host",
        &[("Dockerfile", "FROM busybox\nRUN --network=host true\n")],
    );
    shows(&docker(&engine).build(&host, &[]).err(), &["network.host"]);
}

#[test]
fn secrets_are_not_in_the_image() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nRUN --mount=type=secret,id=key,required=true stat -c '%a %u %s' /run/secrets/key && cat /run/secrets/key\nRUN --mount=type=secret,id=var,env=TOKEN echo has-$TOKEN\nRUN ls /run/secrets /run | grep -c secrets || true\n";
    let files = [("Dockerfile", dockerfile), ("secret", "hidden")];
    let context = engine.scratch_with("secrets", &files);
    let secret = format!("id=key,src={}", context.join("secret").display());
    let args = [
        "--secret",
        &secret,
        "--secret",
        "id=var,env=VAR",
        "-t",
        "made",
    ];
    let env = &[BUILDKIT, &[("VAR", "value")]].concat();
    let client = engine.cli(Program::Docker).with_env(env);
    let shown = client.built(&context, &args);
    shows(&shown, &["400 0 6\n", "hidden", "has-value"]);
    let look = ["run", "--rm", "made", "ls", "-A", "/run"];
    assert_eq!(engine.docker(&look).ok(), "");
    let failed = docker(&engine).build(&context, &["--no-cache"]);
    shows(&failed.err(), &["secret key: not found"]);
}

#[test]
fn what_depends_on_a_stage_without_cache_is_decided_by_content() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox AS s\nRUN cat /proc/sys/kernel/random/uuid > /new; echo same > /same\n\
        FROM busybox AS same\nCOPY --from=s /same /same\nRUN cat /proc/sys/kernel/random/uuid > /made\n\
        FROM busybox AS new\nCOPY --from=s /new /new\nRUN cp /new /made\n";
    let context = engine.scratch_with("filter", &[("Dockerfile", dockerfile)]);
    let made = |target: &str, args: &[&str]| {
        docker(&engine).built(
            &context,
            &[&["--target", target, "-t", target], args].concat(),
        );
        engine.docker(&["run", "--rm", target, "cat", "/made"]).ok()
    };
    let filter = ["--no-cache-filter=s"];
    let same = made("same", &[]);
    assert_eq!(made("same", &[]), same);
    assert_eq!(made("same", &filter), same);
    let new = made("new", &[]);
    let again = made("new", &filter);
    assert_ne!(again, new);
    assert_eq!(made("new", &[]), again);
    // Without the cache of a step, what stands on it is made again.
    let without = made("same", &["--no-cache-filter=same"]);
    assert_ne!(without, same);
    assert_eq!(made("same", &[]), without);
}

#[test]
fn what_stands_on_a_copy_depends_on_its_content_only() {
    let engine = Engine::start();
    let made = |comment: &str, content: &str, last: &str| {
        let dockerfile = format!(
            "FROM busybox AS s\nRUN : {comment}; echo {content} > /same\nFROM busybox\n\
             COPY --from=s /same /same\nRUN cat /proc/sys/kernel/random/uuid > /made\n\
             WORKDIR /w\nRUN cp /made /{last}; cat /proc/sys/kernel/random/uuid >> /{last}\n"
        );
        let context = engine.scratch_with("content", &[("Dockerfile", &dockerfile)]);
        docker(&engine).built(&context, &["-t", "made"]);
        let path = format!("/{last}");
        engine.docker(&["run", "--rm", "made", "cat", &path]).ok()
    };
    let first = made("one", "same", "last");
    assert_eq!(made("two", "same", "last"), first);
    let other = made("two", "other", "last");
    assert_ne!(other, first);
    assert_eq!(made("three", "same", "last"), first);
    // What was found by its key is known by its content to what follows.
    let more = made("three", "same", "more");
    assert_eq!(more.lines().next(), first.lines().next());
    assert_eq!(made("four", "same", "more"), more);
    assert_eq!(made("four", "other", "last"), other);
}

#[test]
fn equal_files_are_one_layer() {
    let engine = Engine::start();
    let dockerfile =
        "FROM busybox AS one\nCOPY file /f\nFROM busybox AS two\nRUN touch /other\nCOPY file /f\n";
    let files = [("Dockerfile", dockerfile), ("file", "the same")];
    let context = engine.scratch_with("equal", &files);
    let last = |target: &str| {
        docker(&engine).built(&context, &["--target", target, "-t", target]);
        let image = engine.image(target);
        let layers = image["RootFS"]["Layers"].as_array().unwrap().clone();
        layers.last().unwrap().clone()
    };
    assert_eq!(last("one"), last("two"));
}

/// A directory that is removed and made again hides what is below; one that is renamed takes what is below with it.
#[test]
fn links_are_copied_over_directories_that_were_replaced() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nRUN mkdir -p /d/e && touch /d/a /d/e/b\n\
        RUN rm -r /d && mkdir /d && touch /d/c\nCOPY --link x /d/x\n\
        RUN mv /d /moved && mkdir /d && touch /d/new\nCOPY --link x /d/y\n\
        RUN find /d /moved | sort > /seen\n";
    let files = [("Dockerfile", dockerfile), ("x", "x")];
    let context = engine.scratch_with("replaced", &files);
    docker(&engine).built(&context, &["-t", "replaced"]);
    let look = ["cat /seen", "find /d /moved | sort"].map(|script| {
        let run = ["run", "--rm", "--network", "none", "replaced"];
        engine
            .docker(&[&run[..], &["sh", "-c", script]].concat())
            .ok()
    });
    let expected = "/d\n/d/new\n/d/y\n/moved\n/moved/c\n/moved/x";
    assert_eq!(look, [expected, expected]);
}

#[test]
fn a_dockerfile_of_the_same_size_and_time_is_read_again() {
    let engine = Engine::start();
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for text in ["one", "two"] {
        let dockerfile = format!("FROM busybox\nRUN echo {text} > /made\n");
        let files = [("Dockerfile", &*dockerfile), (".dockerignore", text)];
        let context = engine.scratch_with("same", &files);
        for name in ["Dockerfile", ".dockerignore"] {
            let file = fs::File::options().write(true).open(context.join(name));
            file.unwrap().set_modified(time).unwrap();
        }
        docker(&engine).built(&context, &["-t", "made"]);
        let look = ["run", "--rm", "made", "cat", "/made"];
        assert_eq!(engine.docker(&look).ok(), text);
    }
}

#[test]
fn stages_run_beside_each_other() {
    let engine = Engine::start();
    // Each waits for the other.
    let wait = |own: &str, other: &str| {
        format!(
            "RUN --mount=type=cache,id=both,target=/c touch /c/{own} && until [ -e /c/{other} ]; do sleep 0.1; done && touch /{own}\n"
        )
    };
    let dockerfile = format!(
        "FROM busybox AS one\n{}FROM busybox AS two\n{}FROM busybox\nCOPY --from=one /a /a\nCOPY --from=two /b /b\n",
        wait("a", "b"),
        wait("b", "a")
    );
    let context = engine.scratch_with("stages", &[("Dockerfile", &dockerfile)]);
    docker(&engine).built(&context, &["-t", "made"]);
    let look = ["run", "--rm", "made", "ls", "/a", "/b"];
    assert_eq!(engine.docker(&look).ok(), "/a\n/b");
}

#[test]
fn only_files_that_have_changed_are_sent() {
    const FILES: usize = 2000;
    let engine = Engine::start();
    let context = engine.scratch_with(
        "many",
        &[(
            "Dockerfile",
            "FROM busybox\nCOPY . /all\nRUN ls /all/files | wc -l\n",
        )],
    );
    fs::create_dir(context.join("files")).unwrap();
    for number in 0..FILES {
        fs::write(context.join(format!("files/{number}")), "0123456789").unwrap();
    }
    let first = docker(&engine).built(&context, &["-t", "made"]);
    shows(&first, &["2000\n", "transferring context: 20.0"]);
    let again = docker(&engine).built(&context, &["-t", "made"]);
    assert!(!again.contains("transferring context: 20.0"), "{again}");
    fs::write(context.join("files/7"), "changed").unwrap();
    let changed = docker(&engine).built(&context, &["-t", "made"]);
    shows(&changed, &["transferring context: 7B"]);
    let look = ["run", "--rm", "made", "cat", "/all/files/7", "/all/files/8"];
    assert_eq!(engine.docker(&look).ok(), "changed0123456789");
    fs::remove_file(context.join("files/7")).unwrap();
    shows(
        &docker(&engine).built(&context, &["-t", "made"]),
        &["1999\n"],
    );
}

#[test]
fn other_files_of_a_known_directory_are_sent_alone() {
    let engine = Engine::start();
    let large = "x".repeat(300_000);
    let context = engine.scratch_with("sibling", &[("one", &*large), ("two", "2")]);
    let with = |dockerfile: &str| {
        fs::write(context.join("Dockerfile"), dockerfile).unwrap();
        docker(&engine).built(&context, &["-t", "made"])
    };
    let sent = "transferring context: 300.";
    shows(&with("FROM busybox\nCOPY one /\n"), &[sent]);
    let both = with("FROM busybox\nCOPY one two /\nRUN ls -l /one /two\n");
    assert!(!both.contains(sent), "{both}");
    shows(&both, &["transferring context: 1B", "300000"]);
    let look = ["run", "--rm", "made", "sh", "-c", "wc -c < /one; cat /two"];
    assert_eq!(engine.docker(&look).ok(), "300000\n2");
    // They are records of the cache.
    for (filter, found) in [
        ("type=source.local", true),
        ("mutable=true", true),
        ("immutable=true", false),
        ("parents=none", false),
    ] {
        let listed = engine
            .docker(&["buildx", "du", "--verbose", "--filter", filter])
            .ok();
        let is_there = listed.contains("local source for context");
        assert_eq!(is_there, found, "{filter}: {listed}");
    }
    let kept = || {
        fs::read_dir(engine.root().join("build/contexts"))
            .unwrap()
            .count()
    };
    assert!(kept() >= 2);
    let filter = ["builder", "prune", "-f", "--filter", "type=source.local"];
    engine.docker(&filter).ok();
    assert_eq!(kept(), 0);
    shows(&with("FROM busybox\nCOPY one /\n"), &[sent]);
}

#[test]
fn a_client_that_is_killed_leaves_nothing() {
    let engine = Engine::start();
    // Not a step of somebody else: a client that is killed before its plugin runs does not end that.
    let time = format!("1234.{}", std::process::id());
    let step = || with_command(&["sleep", &time]);
    let context = engine.dockerfile("killed", &format!("FROM busybox\nRUN sleep {time}\n"));
    let text = context.to_str().unwrap().to_owned();
    for signal in [Signal::KILL, Signal::INT] {
        let mut client = docker(&engine).spawn(&["buildx", "build", &text]);
        eventually("the step runs", step);
        client.signal(signal);
        assert_ne!(client.finish().code, 0);
        eventually("the step has ended", || step().is_none().then_some(()));
    }
}

#[test]
fn named_contexts_and_bake() {
    let engine = Engine::start();
    let other = engine.scratch_with("other", &[("file", "from the other")]);
    let dockerfile = "FROM base\nCOPY --from=more file /file\n";
    let files = [
        ("Dockerfile", dockerfile),
        ("base.Dockerfile", "FROM busybox\nRUN echo base > /base\n"),
    ];
    let context = engine.scratch_with("named", &files);
    let more = format!("more={}", other.display());
    let args = [
        "--build-context",
        &more,
        "--build-context",
        "base=docker-image://busybox",
        "-t",
        "made",
    ];
    docker(&engine).built(&context, &args);
    let look = ["run", "--rm", "made", "cat", "/file"];
    assert_eq!(engine.docker(&look).ok(), "from the other");
    let bake = json!({
        "group": {"default": {"targets": ["base", "top"]}},
        "target": {
            "base": {"context": context, "dockerfile": "base.Dockerfile", "tags": ["base:baked"]},
            "top": {
                "context": context,
                "contexts": {"base": "target:base", "more": other},
                "tags": ["top:baked"],
            },
        },
    });
    let file = context.join("bake.json");
    fs::write(&file, bake.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let args = [
        "buildx",
        "bake",
        "--progress",
        "plain",
        "--allow",
        "fs=/",
        "-f",
        file,
    ];
    docker(&engine).run(&args).ok();
    let look = ["run", "--rm", "top:baked", "cat", "/base", "/file"];
    assert_eq!(engine.docker(&look).ok(), "base\nfrom the other");
}

#[test]
fn compose_builds() {
    let engine = Engine::start();
    let compose = "services:\n  app:\n    build: .\n    image: composed\n    network_mode: none\n";
    let files = [
        ("compose.yaml", compose),
        (
            "Dockerfile",
            "FROM busybox\nRUN echo composed > /x\nCMD cat /x\n",
        ),
    ];
    let context = engine.scratch_with("compose", &files);
    let file = context.join("compose.yaml");
    let file = file.to_str().unwrap();
    docker(&engine).run(&["compose", "-f", file, "build"]).ok();
    let look = ["run", "--rm", "composed"];
    assert_eq!(engine.docker(&look).ok(), "composed");
}

#[test]
fn the_cache_is_listed_and_pruned() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nRUN echo step-of-this > /x\n";
    let context = engine.scratch_with("cache", &[("Dockerfile", dockerfile)]);
    docker(&engine).built(&context, &[]);
    let listed = docker(&engine).run(&["buildx", "du", "--verbose"]).ok();
    shows(&listed, &["step-of-this", "regular"]);
    docker(&engine).run(&["buildx", "prune", "-af"]).ok();
    shows(&docker(&engine).built(&context, &[]), &["DONE"]);
    let checked = docker(&engine).run(&["buildx", "ls"]).ok();
    shows(&checked, &["running", "linux/amd64"]);
}

/// The driver `remote` speaks BuildKit's protocol on a socket that has nothing else.
#[test]
fn a_remote_builder_uses_a_socket_of_its_own() {
    let engine = Engine::start();
    let socket = engine.scratch("sockets").join("buildkitd.sock");
    let host = format!("unix://{}", socket.display());
    engine.kill9();
    engine.set_arguments(&["--buildkit-host", &host]);
    engine.restart();
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let buildx = |args: &[&str]| docker(&engine).run(&[&["buildx"], args].concat());
    buildx(&["create", "--name", "far", "--driver", "remote", &host]).ok();
    let shown = buildx(&["inspect", "far"]).ok();
    shows(&shown, &["Driver:", "remote", "running", "linux/amd64"]);
    let dockerfile = "FROM busybox\nCOPY data /data\nRUN cat /data > /made; echo to-out\n";
    let files = [("Dockerfile", dockerfile), ("data", "one")];
    let context = engine.scratch_with("context", &files);
    let text = context.to_str().unwrap();
    let build = |args: &[&str]| {
        let all = [&["--builder", "far", "build"], args, &[text]].concat();
        buildx(&all)
    };
    shows(
        &build(&["-t", "made:1", "--load"]).exits(0),
        &[" to-out\n", "exporting to docker image format"],
    );
    let look = ["run", "--rm", "--network=none", "made:1", "cat", "/made"];
    assert_eq!(engine.docker(&look).ok(), "one");
    let output = "type=image,name=made:2";
    let again = build(&["--output", output]).exits(0);
    assert_eq!(again.matches(" CACHED\n").count(), 3, "{again}");
    assert_eq!(engine.image("made:2")["Id"], engine.image("made:1")["Id"]);
    shows(&buildx(&["--builder", "far", "du"]).ok(), &["RECLAIMABLE"]);
    shows(
        &buildx(&["--builder", "far", "history", "ls"]).ok(),
        &["Completed"],
    );
    buildx(&["--builder", "far", "prune", "-af"]).ok();
    // The API is elsewhere.
    let wrong = engine.docker(&["-H", &host, "version"]);
    shows(&wrong.exits(1), &["BuildKit's protocol (gRPC) only"]);
    buildx(&["rm", "far"]).ok();
    engine.terminate();
    assert!(!socket.exists());
    engine.restart();
}

/// Starts the debugger of buildx, and waits until it has shown `text`, and until its shell answers.
///
/// It loses a race on a very busy machine: a goroutine that ends earlier processes is begun before there are any, and ends the new one
/// if it runs after the container was created. Then nobody answers, with any engine, and the debugger is started again.
#[track_caller]
fn debugger(engine: &Engine, args: &[&str], text: &str) -> Pty {
    const ENV: &[(&str, &str)] = &[("BUILDX_EXPERIMENTAL", "1")];
    const TRIES: usize = 6;
    let mut problems = Vec::new();
    for _ in 0..TRIES {
        let mut pty = docker(engine).with_env(ENV).pty(args);
        pty.expect(text);
        pty.expect("Launching interactive container");
        match pty.answer("cat /srv/first /srv/ma*\n", "left") {
            Ok(()) => return pty,
            Err(problem) => problems.push(problem),
        }
        // Errors of the engine are no such race.
        let screen = pty.screen();
        for error in ["failed to create container", "exit code: 255"] {
            assert!(!screen.contains(error), "{screen:?}");
        }
        drop(pty);
        engine.has_no_steps();
    }
    panic!("no shell answers: {problems:#?}");
}

/// What the debugger of buildx needs: containers of results, and of what failed steps have left.
#[test]
fn a_shell_is_opened_in_a_failed_step_and_in_a_result() {
    let engine = Engine::start();
    let text = "FROM busybox\nWORKDIR /srv\nRUN echo first > first\nRUN --network=none echo left > made; exit $CODE\n";
    for (code, on, shown) in [("3", "error", "exit code: 3"), ("0", "always", "DONE")] {
        let text = text.replace("$CODE", code);
        let context = engine.dockerfile(&format!("debug-{on}"), &text);
        let path = context.to_str().unwrap();
        let args = ["buildx", "debug", "--on", on, "--invoke", "/bin/sh"];
        let args = [&args[..], &["build", "--progress=plain", path]].concat();
        let mut pty = debugger(&engine, &args, shown);
        pty.keys("exit\n");
        pty.expect("(buildx)");
        // It may end for the first word already: if the race has ended its shell by now.
        pty.answer("exit\n", "never shown").unwrap_err();
        pty.finish();
        engine.has_no_steps();
    }
}
