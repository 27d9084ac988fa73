//! Classic builds.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::time::Duration;

use serde_json::{Value, json};
use whelk_tests::builds::{classic, docker, shows};
use whelk_tests::processes::with_command;
use whelk_tests::tar::Tar;
use whelk_tests::{Engine, Program, eventually};

fn layers(image: &Value) -> usize {
    image["RootFS"]["Layers"].as_array().unwrap().len()
}

#[test]
fn a_dockerfile_becomes_an_image_and_is_cached() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox AS base\nENV A=1 B=two\nWORKDIR /srv\nCOPY --chown=5:6 data /srv/data\nRUN echo out; echo err >&2; echo $A$B > made; id -u > user\nFROM base\nCOPY --from=base /srv/made /copied\nCMD [\"cat\", \"/copied\"]\n";
    let files = [
        ("Dockerfile", dockerfile),
        ("data/x", "one"),
        ("data/y", "two"),
    ];
    let context = engine.scratch_with("first", &files);
    let shown = classic(&engine).build(&context, &["-t", "made:1"]).ok();
    for text in [
        "Step 1/8 : FROM busybox AS base",
        " ---> Running in ",
        "out\n",
        "err\n",
        "Removed intermediate container",
        "Step 8/8 : CMD [\"cat\", \"/copied\"]",
        "Successfully built ",
        "Successfully tagged made:1",
    ] {
        assert!(shown.contains(text), "{text:?} in {shown}");
    }
    let first = engine.image("made:1");
    assert_eq!(first["Config"]["Cmd"], json!(["cat", "/copied"]));
    assert_eq!(first["Config"]["WorkingDir"], "/srv");
    assert_eq!(layers(&first), layers(&engine.image("busybox")) + 4);
    assert_eq!(engine.docker(&["run", "--rm", "made:1"]).ok(), "1two");
    let look = [
        "run",
        "--rm",
        "made:1",
        "sh",
        "-c",
        "stat -c '%u %g' data/x; cat user; ls -A /etc/resolv.conf",
    ];
    assert_eq!(engine.docker(&look).ok(), "5 6\n0\n/etc/resolv.conf");
    // Nothing is executed, and the image is the same.
    let again = classic(&engine).build(&context, &["-t", "made:2"]).ok();
    assert!(
        again.contains("Using cache") && !again.contains("Running in"),
        "{again}"
    );
    assert_eq!(engine.image("made:2")["Id"], first["Id"]);
    // A change of what is copied is seen, one of a time is not.
    fs::write(context.join("data/x"), "other").unwrap();
    let third = classic(&engine).build(&context, &["-t", "made:3"]).ok();
    assert!(third.contains("Running in"), "{third}");
    fs::write(context.join("data/x"), "one").unwrap();
    let fourth = classic(&engine)
        .build(&context, &["-q", "-t", "made:4"])
        .ok();
    assert_eq!(json!(fourth), first["Id"]);
    // The cache outlives the engine, and a prune ends it.
    engine.kill9();
    engine.restart();
    let after = classic(&engine).build(&context, &[]).ok();
    assert!(!after.contains("Running in"), "{after}");
    engine.docker(&["builder", "prune", "-af"]).ok();
    let pruned = classic(&engine).build(&context, &[]).ok();
    assert!(pruned.contains("Running in"), "{pruned}");
}

#[test]
fn failures_say_what_was_wrong() {
    let engine = Engine::start();
    let check = |name: &str, dockerfile: &str, expected: &str| {
        let context = engine.scratch_with(name, &[("Dockerfile", dockerfile)]);
        let failed = classic(&engine).build(&context, &["-t", "none"]);
        let text = failed.err();
        assert!(text.contains(expected), "{expected:?} in {text}");
        assert!(failed.code != 0);
    };
    let text = "The command '/bin/sh -c exit 7' returned a non-zero code: 7";
    check("exit", "FROM busybox\nRUN exit 7\n", text);
    check("copy", "FROM busybox\nCOPY none /x\n", "none");
    let from = "FROM busybox\nCOPY --from=127.0.0.1:1/none /x /x\n";
    let text = "invalid from flag value 127.0.0.1:1/none: ";
    check("from", from, text);
    check(
        "syntax",
        "FROM busybox\nRUNS x\n",
        "unknown instruction: RUNS",
    );
    check("empty", "# nothing\n", "no instructions");
    let secret = "FROM busybox\nRUN --mount=type=secret,id=key,required=true true\n";
    check("mount", secret, "key: not found");
    let source = "FROM busybox\nADD https://example.com/x /x\n";
    check("add", source, "example.com");
    assert_eq!(engine.docker(&["images", "-q", "none"]).ok(), "");
}

#[test]
fn mounts_show_stages_the_context_and_caches() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox AS one\nRUN mkdir -p /deep/in && echo made > /deep/in/file\nFROM busybox\n\
        RUN --mount=type=bind,from=one,source=/deep,target=/seen cat /seen/in/file > /a; touch /seen/x || echo ro >> /a\n\
        RUN --mount=type=bind,source=data/x,target=/etc/one cat /etc/one > /b\n\
        RUN --mount=type=bind,target=/all,rw echo more > /all/data/more; ls /all/data > /c\n\
        RUN --mount=type=tmpfs,target=/t,size=1m df -k /t | tail -1 > /d\n\
        RUN --mount=type=cache,target=/cache ls /cache > /e; echo kept >> /cache/log\n";
    let files = [("Dockerfile", dockerfile), ("data/x", "one\n")];
    let context = engine.scratch_with("mounts", &files);
    let look = [
        "run",
        "--rm",
        "m",
        "sh",
        "-c",
        "cat /a /b /c; cut -c1-5 /d; cat /e; ls -d /seen /all /t /cache /etc/one 2>&1 | grep -c 'No such'",
    ];
    classic(&engine).build(&context, &["-t", "m"]).ok();
    assert_eq!(
        engine.docker(&look).ok(),
        "made\nro\none\nmore\nx\ntmpfs\n5",
        "mount points are no part of the image"
    );
    // What was written to a bind mount is gone, and the cache is there.
    fs::write(context.join("data/y"), "").unwrap();
    classic(&engine).build(&context, &["-t", "m"]).ok();
    let expected = "made\nro\none\nmore\nx\ny\ntmpfs\nlog\n5";
    assert_eq!(engine.docker(&look).ok(), expected);
    let list = engine.get("/system/df?type=build-cache");
    let kinds = |list: &Value, kind: &str| {
        let records = list["BuildCache"].as_array().unwrap();
        records.iter().filter(|one| one["Type"] == kind).count()
    };
    assert_eq!(kinds(&list, "exec.cachemount"), 1, "{list}");
    assert!(kinds(&list, "regular") >= 6, "{list}");
    // Only what a filter says.
    let filter = ["builder", "prune", "-f", "--filter", "type=exec.cachemount"];
    engine.docker(&filter).ok();
    let list = engine.get("/system/df?type=build-cache");
    assert_eq!(kinds(&list, "exec.cachemount"), 0, "{list}");
    assert!(kinds(&list, "regular") >= 6, "{list}");
    engine.docker(&["builder", "prune", "-af"]).ok();
    let list = engine.get("/system/df?type=build-cache");
    assert_eq!(kinds(&list, "regular"), 0, "{list}");
    // The image has its layers still.
    assert_eq!(engine.docker(&look).ok(), expected);
}

#[test]
fn a_client_that_leaves_cancels_its_build() {
    let engine = Engine::start();
    let context = engine.dockerfile(
        "left",
        "FROM busybox\nRUN echo first > /first\nRUN echo begun; sleep 301 & sleep 302\n",
    );
    let docker = engine.cli(Program::Docker);
    let mut running = docker.spawn(&["build", "-t", "left", context.to_str().unwrap()]);
    let found = || ["301", "302"].map(|time| with_command(&["sleep", time]));
    eventually("the step to run", || {
        found().iter().all(Option::is_some).then_some(())
    });
    running.signal(rustix::process::Signal::KILL);
    let _ = running.finish();
    eventually("the step to be killed", || {
        (found() == [None, None]).then_some(())
    });
    engine.has_no_builds();
}

#[test]
fn the_same_step_of_several_builds_runs_once() {
    let engine = Engine::start();
    let context = engine.dockerfile(
        "same",
        "FROM busybox\nRUN --network=none sleep 1; cat /proc/sys/kernel/random/uuid > /id\n",
    );
    let path = context.to_str().unwrap();
    let names: Vec<String> = (0..6).map(|number| format!("same:{number}")).collect();
    std::thread::scope(|threads| {
        for name in &names {
            threads.spawn(|| engine.docker(&["build", "-t", name, path]).ok());
        }
    });
    let ids: std::collections::BTreeSet<String> = names
        .iter()
        .map(|name| engine.image(name)["Id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
}

#[test]
fn a_locked_cache_is_held_until_a_cancelled_step_is_gone() {
    use rustix::process::{Pid, Signal, kill_process};
    let engine = Engine::start();
    let dockerfile = |command: &str| {
        let mount = "--mount=type=cache,id=held,sharing=locked,target=/c";
        format!("FROM busybox\nRUN {mount} {command}\n")
    };
    let first = engine.dockerfile("first", &dockerfile("exec sleep 303"));
    let second = engine.dockerfile("second", &dockerfile("ls /c"));
    let docker = engine.cli(Program::Docker);
    let mut running = docker.spawn(&["build", first.to_str().unwrap()]);
    let step = eventually("the step runs", || with_command(&["sleep", "303"]));
    let shim = whelk_tests::processes::status_field(step, "PPid").unwrap();
    let shim = Pid::from_raw(shim.parse().unwrap()).unwrap();
    // What the shim does not reap is not gone.
    kill_process(shim, Signal::STOP).unwrap();
    running.signal(Signal::KILL);
    let _ = running.finish();
    std::thread::scope(|threads| {
        let waiting = threads.spawn(|| classic(&engine).build(&second, &[]));
        std::thread::sleep(std::time::Duration::from_secs(2));
        let is_early = waiting.is_finished();
        kill_process(shim, Signal::CONT).unwrap();
        assert!(!is_early, "{}", waiting.join().unwrap().ok());
        waiting.join().unwrap().ok();
    });
}

#[test]
fn a_build_that_fails_does_not_wait_for_steps_of_others() {
    let engine = Engine::start();
    let long = "FROM busybox AS long\nRUN exec sleep 305\n";
    let other = engine.dockerfile("other", long);
    let fails = format!(
        "{long}FROM busybox AS fails\nRUN sleep 2; exit 7\nFROM busybox\n\
         COPY --from=long /etc /a\nCOPY --from=fails /etc /b\n"
    );
    let fails = engine.dockerfile("fails", &fails);
    let docker = engine.cli(Program::Docker);
    let mut running = docker.spawn(&["build", other.to_str().unwrap()]);
    eventually("the step runs", || with_command(&["sleep", "305"]));
    let begun = std::time::Instant::now();
    let text = classic(&engine).build(&fails, &[]).err();
    assert!(text.contains("returned a non-zero code: 7"), "{text}");
    assert!(begun.elapsed().as_secs() < 100);
    assert!(
        with_command(&["sleep", "305"]).is_some(),
        "it is not cancelled"
    );
    running.signal(rustix::process::Signal::KILL);
    let _ = running.finish();
    eventually("the step has ended", || {
        with_command(&["sleep", "305"]).is_none().then_some(())
    });
}

#[test]
fn a_writable_mount_of_the_context_is_known_by_content() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\n\
        RUN --mount=type=bind,target=/src,rw touch /src/new; cat /src/x /proc/sys/kernel/random/uuid > /id\n";
    let files = [("Dockerfile", dockerfile), ("x", "1")];
    let context = engine.scratch_with("rw", &files);
    let id = || classic(&engine).build(&context, &["-q"]).ok();
    let first = id();
    assert_eq!(id(), first);
    fs::write(context.join("x"), "2").unwrap();
    let second = id();
    assert_ne!(second, first);
    fs::write(context.join("x"), "1").unwrap();
    assert_eq!(id(), first);
}

#[test]
fn contexts_come_in_every_way() {
    let engine = Engine::start();
    let docker = engine.cli(Program::Docker);
    let dockerfile = b"FROM busybox\nRUN echo in > /made\n";
    docker.feed(&["build", "-t", "in:1", "-"], dockerfile).ok();
    let files = [
        ("x", "x"),
        (".dockerignore", "*.log\n"),
        ("a.log", ""),
        ("sub/Other", "FROM busybox\nCOPY . /c\n"),
    ];
    let context = engine.scratch_with("ways", &files);
    let path = context.to_str().unwrap();
    let from_input = ["build", "-t", "in:2", "-f", "-", path];
    docker.feed(&from_input, b"FROM busybox\nCOPY x /x\n").ok();
    let other = context.join("sub/Other");
    let iid = engine.scratch("iid").join("id");
    let args = [
        "build",
        "-t",
        "in:3",
        "-f",
        other.to_str().unwrap(),
        "--iidfile",
        iid.to_str().unwrap(),
        "--label",
        "from=flag",
        path,
    ];
    engine.docker(&args).ok();
    let built = engine.image("in:3");
    assert_eq!(json!(fs::read_to_string(iid).unwrap()), built["Id"]);
    assert_eq!(built["Config"]["Labels"]["from"], "flag");
    let list = ["run", "--rm", "in:3", "ls", "-A", "/c"];
    assert_eq!(engine.docker(&list).ok(), ".dockerignore\nsub\nx");
}

#[test]
fn archives_that_break_off_are_not_added_in_part() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nADD test.tar /into/\n";
    let context = engine.dockerfile("cut", dockerfile);
    let archive = Tar::new().file("one", "1").file("two", vec![b'2'; 5000]);
    let archive = archive.finish();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&archive).unwrap();
    let packed = gzip.finish().unwrap();
    let lone = [&archive[..1024], &[0; 512], &archive[1024..]].concat();
    let cut = "test.tar: unexpected EOF: the archive is cut off";
    for (broken, expected) in [
        // In the end-of-archive marker, in a file, and in the trailer of a compressed stream.
        (&archive[..archive.len() - 1], cut),
        (&archive[..3000], cut),
        (&packed[..packed.len() - 1], cut),
        (&lone[..], "archive/tar: invalid tar header"),
    ] {
        fs::write(context.join("test.tar"), broken).unwrap();
        for client in [classic(&engine), docker(&engine)] {
            client.build_fails(&context, &[], &[expected]);
        }
    }
    for whole in [&archive, &packed] {
        fs::write(context.join("test.tar"), whole).unwrap();
        classic(&engine).built(&context, &["-t", "whole"]);
        let list = ["run", "--rm", "whole", "ls", "/into"];
        assert_eq!(engine.docker(&list).ok(), "one\ntwo");
    }
}

#[test]
fn limits_and_networks_hold_for_steps() {
    let engine = Engine::start();
    let context = engine.dockerfile("limits",
        "FROM busybox\nRUN grep myhost /etc/hosts; ulimit -n; df -k /dev/shm | tail -1; ls /sys/class/net; hostname\n",
    );
    let shown = classic(&engine)
        .build(
            &context,
            &[
                "--add-host",
                "myhost:1.2.3.4",
                "--ulimit",
                "nofile=100:200",
                "--shm-size",
                "10m",
                "--network",
                "none",
                "--memory",
                "64m",
            ],
        )
        .ok();
    for text in [
        "1.2.3.4\tmyhost",
        "\n100\n",
        "10240",
        "\nlo\n",
        "buildkitsandbox",
    ] {
        assert!(shown.contains(text), "{text:?} in {shown}");
    }
    assert!(!shown.contains("eth0"), "{shown}");
    // Another network is another result, though the Dockerfile is the same.
    let of_host = || {
        let names = fs::read_dir("/sys/class/net").unwrap().flatten();
        let names = names.map(|name| name.file_name().to_string_lossy().into_owned());
        names.collect::<BTreeSet<String>>()
    };
    let before = of_host();
    let shown = classic(&engine)
        .build(&context, &["--network", "host"])
        .ok();
    assert!(!shown.contains("Using cache"), "{shown}");
    // Those of containers come and go.
    for name in before.intersection(&of_host()) {
        let line = format!("\n{name}\n");
        assert!(shown.contains(&line), "{line:?} in {shown}");
    }
}

#[test]
fn steps_share_the_network_of_a_container() {
    let engine = Engine::start();
    let run = ["run", "-d", "--name", "server", "--hostname", "foobar"];
    let httpd = ["busybox", "httpd", "-f", "-p", "127.0.0.1:80", "-h", "/etc"];
    engine.docker(&[&run[..], &httpd].concat()).ok();
    let ask = [
        "exec",
        "server",
        "wget",
        "-q",
        "-O",
        "-",
        "http://127.0.0.1/passwd",
    ];
    eventually("the server to listen", || {
        (engine.docker(&ask).code == 0).then_some(())
    });
    let dockerfile = "FROM busybox\nRUN wget -q -O /got http://127.0.0.1/hostname; hostname; cat /got /etc/hostname\n";
    let context = engine.dockerfile("shared", dockerfile);
    let build = |network: &str| {
        let args = ["--network", network, "-t", "shared"];
        classic(&engine).build(&context, &args)
    };
    let shown = build("container:server").exits(0);
    assert!(shown.contains("\nfoobar\nfoobar\nfoobar\n"), "{shown}");
    let none = build("container:nosuch").shown();
    assert!(none.contains("No such container: nosuch"), "{none}");
    engine.docker(&["rm", "-f", "server"]).ok();
    // The network of the host is a right of its own.
    let run = ["run", "-d", "--name", "host", "--network", "host"];
    engine
        .docker(&[&run[..], &["busybox", "sleep", "600"]].concat())
        .ok();
    let host = build("container:host");
    assert_ne!(host.code, 0);
    assert!(
        host.shown().contains("builds cannot share"),
        "{}",
        host.shown()
    );
    engine.docker(&["rm", "-f", "host"]).ok();
}

#[test]
fn requests_that_are_not_supported_are_refused_by_name() {
    let engine = Engine::start();
    for (query, expected) in [
        ("remote=https://example.com/x.git", "remote"),
        ("squash=1", "squash"),
        ("version=3", "invalid version \"3\""),
        ("outputs=[{\"Type\":\"tar\"}]", "outputs"),
        ("buildargs={", "error reading build args"),
        ("memory=-1", "memory"),
        ("t=UPPER", "reference"),
        ("platform=linux/none/x/y", "platform"),
    ] {
        let query = query
            .replace('"', "%22")
            .replace('{', "%7B")
            .replace('[', "%5B");
        let (status, body) = engine.api("POST", &format!("/build?{query}"), None);
        let text = body["message"].as_str().unwrap_or_default();
        assert!((400..=501).contains(&status), "{query}: {status}");
        assert!(text.contains(expected), "{query}: {body}");
    }
    let (status, body) = engine.api(
        "POST",
        "/build/prune?filters=%7B%22colour%22:%5B%22red%22%5D%7D",
        None,
    );
    assert_eq!(status, 400, "{body}");
}

#[test]
fn settings_are_cached_with_the_step_that_they_are_for() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nENV FOO=bar\nRUN touch baz\nRUN touch bax\nLABEL a=b\n";
    let context = engine.dockerfile("cached", dockerfile);
    let cached = |args: &[&str]| {
        let shown = classic(&engine).built(&context, args);
        shown.matches("Using cache").count()
    };
    assert_eq!(cached(&["-t", "first"]), 0);
    assert_eq!(cached(&[]), 4);
    // Only if one of these images is here.
    assert_eq!(cached(&["--cache-from", "first"]), 4);
    assert_eq!(cached(&["--cache-from", "none-such"]), 0);
    assert_eq!(cached(&["--no-cache"]), 0);
    // What stands before a step that has changed is as it was, and what stands behind it is not.
    let other = dockerfile.replace("touch bax", "touch other");
    fs::write(context.join("Dockerfile"), other).unwrap();
    assert_eq!(cached(&[]), 2);
    assert_eq!(cached(&[]), 4);
    // Of a step that is executed again, too.
    engine.docker(&["builder", "prune", "-af"]).ok();
    assert_eq!(cached(&[]), 0);
    fs::write(context.join("Dockerfile"), "FROM busybox\nWORKDIR /\n").unwrap();
    assert_eq!(cached(&["-q"]), 0);
    assert_eq!(cached(&[]), 1);
}

#[test]
fn triggers_are_counted_and_nothing_is_no_image() {
    let engine = Engine::start();
    let parent = engine.dockerfile("parent", "FROM busybox\nONBUILD RUN echo foo\n");
    classic(&engine).built(&parent, &["-t", "parent"]);
    let dockerfile = "FROM parent AS one\nONBUILD ENV A=1\nONBUILD ENV B=2\nFROM one\nLABEL a=b\n";
    let context = engine.dockerfile("child", dockerfile);
    let shown = classic(&engine).built(&context, &[]);
    let first = "Step 1/5 : FROM parent AS one\n# Executing 1 build trigger\n ---> Running in ";
    let second = "Step 4/5 : FROM one\n# Executing 2 build triggers\n ---> ";
    shows(&shown, &[first, second]);
    let empty = engine.dockerfile("empty", "FROM scratch\n");
    classic(&engine).build_fails(&empty, &[], &["No image was generated"]);
    classic(&engine).built(&empty, &["--label", "a=b"]);
}

#[test]
fn the_first_of_several_parameters_counts() {
    let engine = Engine::start();
    let context = Tar::new().file("own", "FROM busybox\nLABEL a=b\n").finish();
    let query = "/build?t=twice&dockerfile=own&dockerfile=FROM%20busybox";
    let answer = engine.http("POST", query, &[], &context);
    assert!(
        answer.text().contains("Successfully tagged twice:latest"),
        "{}",
        answer.text()
    );
    assert_eq!(engine.image("twice")["Config"]["Labels"]["a"], "b");
}

#[test]
fn contexts_in_the_bodies_of_requests_are_their_own() {
    let engine = Engine::start();
    let engine = &engine;
    let build = |name: &str, dockerfile: &str| {
        let archive = Tar::new().file("Dockerfile", dockerfile);
        let archive = archive.file("x", name).finish();
        let path = format!("/build?version=2&t={name}");
        engine.http("POST", &path, &[], &archive).text()
    };
    // The first one's context is in use while the second one is built. Neither reads the other's by the name of a body.
    std::thread::scope(|scope| {
        let first = scope.spawn(move || build("first", "FROM busybox\nCOPY x /\nRUN sleep 3\n"));
        std::thread::sleep(Duration::from_secs(1));
        let second = build("second", "FROM busybox\nCOPY x /\n");
        assert!(!second.contains("error"), "{second}");
        let stolen = "FROM busybox\nADD http://buildkit-session/body /\nADD http://buildkit-session/body- /\n";
        let stolen = build("third", stolen);
        assert!(stolen.contains("error"), "{stolen}");
        let first = first.join().unwrap();
        assert!(!first.contains("error"), "{first}");
    });
    for name in ["first", "second"] {
        let look = ["run", "--rm", "--network", "none", name, "cat", "/x"];
        assert_eq!(engine.docker(&look).ok(), name);
    }
}

#[test]
fn builds_with_buildkit_are_told_in_the_answer() {
    use base64::Engine as _;
    let engine = Engine::start();
    let archive = |dockerfile: &str| {
        let archive = Tar::new().file("own.Dockerfile", dockerfile);
        archive.file("x", "of-the-context\n").finish()
    };
    let build = |query: &str, dockerfile: &str| {
        let path = format!("/build?version=2&dockerfile=own.Dockerfile&{query}");
        let answer = engine.http("POST", &path, &[], &archive(dockerfile)).text();
        let lines = answer
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.collect::<Vec<_>>()
    };
    let dockerfile =
        "FROM busybox\nARG WHAT\nCOPY x /x\nRUN grep gate /etc/hosts; echo $WHAT; cat /x > /made\n";
    let query = "t=made:1&t=made:2&buildargs=%7B%22WHAT%22:%22argument%22,%22NONE%22:null%7D&labels=%7B%22a%22:%22b%22%7D&extrahosts=gate:host-gateway";
    let messages = build(query, dockerfile);
    let news: Vec<u8> = messages
        .iter()
        .filter(|message| message["id"] == "moby.buildkit.trace")
        .flat_map(|message| {
            let text = message["aux"].as_str().unwrap();
            base64::engine::general_purpose::STANDARD
                .decode(text)
                .unwrap()
        })
        .collect();
    let news = String::from_utf8_lossy(&news);
    for text in [
        "RUN grep gate",
        "argument\n",
        "\tgate\n",
        "exporting to image",
    ] {
        assert!(news.contains(text), "{text}: {news}");
    }
    let image = engine.image("made:2");
    assert_eq!(messages.last().unwrap()["aux"]["ID"], image["Id"]);
    assert_eq!(image["Config"]["Labels"]["a"], "b");
    assert_eq!(
        engine
            .docker(&["run", "--rm", "made:1", "cat", "/made"])
            .ok(),
        "of-the-context"
    );
    let quiet = build("q=1", dockerfile);
    assert_eq!(
        (quiet.len(), quiet[0]["stream"].as_str().unwrap().len()),
        (1, 72)
    );
    let failed = build("", "FROM busybox\nRUN exit 7\n");
    let error = failed.last().unwrap()["errorDetail"]["message"]
        .as_str()
        .unwrap();
    assert!(error.contains("exit code: 7"), "{error}");
    let missing = build("t=x", "FROM busybox\nCOPY none /\n");
    assert!(
        missing.last().unwrap()["error"]
            .as_str()
            .unwrap()
            .contains("none")
    );
    // Where the context is of a session that is not there, and with what is not supported.
    let none = engine.http(
        "POST",
        "/build?version=2&remote=client-session&session=none",
        &[],
        b"",
    );
    assert!(none.text().contains("error"), "{}", none.text());
    let (status, body) = engine.api("POST", "/build?version=2&squash=1", None);
    assert_eq!(status, 501, "{body}");
    engine.has_no_builds();
}
