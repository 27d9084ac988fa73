//! `whelk build`: the engine's own client of builds, its progress, its errors, and the commands of the cache.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};
use whelk_tests::builds::{classic, docker, shows, whelk};
use whelk_tests::images::gzip;
use whelk_tests::registry::Registry;
use whelk_tests::tar::{self, Tar};
use whelk_tests::{Engine, Program, eventually};

#[test]
fn an_image_is_built_and_cached() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nARG WHAT\nLABEL a=b\nCOPY . /srv\nRUN echo to-out; echo to-err >&2; echo $WHAT > /made\n";
    let files = [
        ("Dockerfile", dockerfile),
        (".dockerignore", "*\n!data\n**/*.log\n"),
        ("data/x", "one"),
        ("data/y.log", "two"),
        ("other", "three"),
    ];
    let context = engine.scratch_with("first", &files);
    fs::set_permissions(context.join("data/x"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::hard_link(context.join("data/x"), context.join("data/z")).unwrap();
    std::os::unix::fs::symlink("x", context.join("data/link")).unwrap();
    let _socket = UnixListener::bind(context.join("data/socket")).unwrap();
    let out = engine.scratch("out");
    let [iidfile, metadata] = ["iid", "metadata"].map(|name| out.join(name).display().to_string());
    let args = [
        "--build-arg",
        "WHAT=this",
        "-t",
        "made:1",
        "--label",
        "c=d",
        "--iidfile",
        &iidfile,
        "--metadata-file",
        &metadata,
    ];
    let shown = whelk(&engine).built(&context, &args);
    shows(
        &shown,
        &[
            "#1 [internal] load build definition from Dockerfile\n",
            "transferring context: ",
            "[3/3] RUN echo to-out",
            " to-out\n",
            " to-err\n",
            "exporting to image",
            "naming to docker.io/library/made:1 done",
        ],
    );
    let first = engine.image("made:1");
    let id = first["Id"].as_str().unwrap();
    assert_eq!(fs::read_to_string(&iidfile).unwrap(), id);
    let metadata: Value = serde_json::from_slice(&fs::read(&metadata).unwrap()).unwrap();
    assert_eq!(metadata["containerimage.digest"], id);
    assert!(
        metadata["buildx.build.ref"]
            .as_str()
            .unwrap()
            .starts_with("default/default/")
    );
    assert_eq!(first["Config"]["Labels"], json!({"a": "b", "c": "d"}));
    let look = "cat /made; cd /srv; find . | sort; stat -c '%a %u %h' data/x; readlink data/link";
    let found = engine
        .docker(&["run", "--rm", "made:1", "sh", "-c", look])
        .ok();
    assert_eq!(
        found,
        "this\n.\n./data\n./data/link\n./data/x\n./data/z\n640 0 2\nx"
    );
    // Nothing is executed or sent again, and the image is the same.
    let same = ["--build-arg", "WHAT=this", "--label", "c=d"];
    let again = whelk(&engine).built(&context, &[&same[..], &["-t", "made:2"]].concat());
    assert!(!again.contains(" to-out\n"), "{again}");
    shows(&again, &["CACHED\n"]);
    assert_eq!(engine.image("made:2")["Id"], id);
    let quiet = whelk(&engine).build(&context, &[&same[..], &["-q"]].concat());
    assert_eq!((quiet.ok(), quiet.err()), (id.to_owned(), String::new()));
    let group = [
        &["image", "build", "-q"][..],
        &same[..],
        &[context.to_str().unwrap()],
    ]
    .concat();
    assert_eq!(engine.whelk(&group).ok(), id);
    // One file is sent, and only the steps that depend on it run.
    fs::write(context.join("data/x"), "changed").unwrap();
    let other = whelk(&engine).built(&context, &["--build-arg", "WHAT=this", "-t", "made:3"]);
    shows(&other, &[" to-out\n"]);
    assert_ne!(engine.image("made:3")["Id"], id);
    let fresh = whelk(&engine).built(&context, &["--no-cache", "-t", "made:4"]);
    shows(&fresh, &[" to-out\n"]);
}

#[test]
fn contexts_come_from_several_places() {
    let engine = Engine::start();
    let files = [
        (
            "Dockerfile",
            "FROM busybox\nCOPY x /x\nCOPY --from=more y /y\n",
        ),
        ("x", "1"),
        ("../more/y", "2"),
    ];
    let context = engine.scratch_with("main", &files);
    let more = format!("more={}", context.join("../more").display());
    let text = context.to_str().unwrap();
    let look = |name: &str| {
        engine
            .docker(&["run", "--rm", name, "cat", "/x", "/y"])
            .ok()
    };
    whelk(&engine).built(&context, &["--build-context", &more, "-t", "named"]);
    assert_eq!(look("named"), "12");
    // A Dockerfile of another name, and one on the standard input.
    fs::rename(context.join("Dockerfile"), context.join("other.dockerfile")).unwrap();
    let file = context.join("other.dockerfile");
    whelk(&engine).built(
        &context,
        &[
            "--build-context",
            &more,
            "-t",
            "other",
            "-f",
            file.to_str().unwrap(),
        ],
    );
    assert_eq!(look("other"), "12");
    let client = engine.cli(Program::Whelk);
    client
        .feed(
            &["build", "-t", "fed", "-f", "-", text],
            b"FROM busybox\nCOPY x /x\nRUN cp /x /y\n",
        )
        .ok();
    assert_eq!(look("fed"), "11");
    client
        .feed(
            &["build", "-t", "alone", "-"],
            b"FROM busybox\nRUN echo 3 > /x; echo 4 > /y\n",
        )
        .ok();
    assert_eq!(look("alone"), "3\n4");
    // An archive, whose Dockerfile is in it.
    let tar = Tar::new()
        .file("d/Dockerfile", b"FROM busybox\nCOPY x y /\n")
        .file("x", b"5")
        .file("y", b"6");
    let archive = tar.finish();
    // Other tests use the usual one.
    let temporary = engine.scratch("temporary");
    let env = [("TMPDIR", temporary.to_str().unwrap())];
    client
        .with_env(&env)
        .feed(
            &["build", "-t", "archive", "-f", "d/Dockerfile", "-"],
            &archive,
        )
        .ok();
    assert_eq!(look("archive"), "56");
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
}

#[test]
fn archives_that_cannot_be_unpacked_are_told_by_their_cause() {
    let engine = Engine::start();
    let client = whelk(&engine);
    let temporary = engine.scratch("temporary");
    let env = [("TMPDIR", temporary.to_str().unwrap())];
    let fails = |archive: &[u8], expected: &str| {
        let failed = client.with_env(&env).feed(&["build", "-"], archive);
        assert_ne!(failed.code, 0, "{expected}");
        shows(&failed.err(), &[expected]);
        assert!(!failed.err().contains("whelk-context-"), "{}", failed.err());
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0);
    };
    let dockerfile = b"FROM scratch\nCOPY x /\n";
    let tar = Tar::new().file("Dockerfile", dockerfile);
    let content: Vec<u8> = (0..50_000_u32).flat_map(u32::to_le_bytes).collect();
    let whole = tar.file("x", &content).finish();
    let cut = "failed to unpack the context: unexpected EOF: the archive is cut off";
    fails(&whole[..10_000], cut);
    let packed = gzip(&whole);
    fails(&packed[..packed.len() / 2], cut);
    let outside = Tar::new().file("../Dockerfile", dockerfile).finish();
    fails(&outside, "invalid entry name \"../Dockerfile\"");
    fails(b"PK\x03\x04 and so on", "it is a zip archive");
}

#[test]
fn mistakes_are_told_before_anything_is_built() {
    let engine = Engine::start();
    let context = engine.scratch_with(
        "wrong",
        &[
            ("Dockerfile", "FROM busybox AS a\nRUN true\n"),
            ("file", "x"),
        ],
    );
    let file = context.join("file");
    let file = file.to_str().unwrap();
    let empty = engine.scratch("empty");
    let check = |context: &Path, args: &[&str], expected: &str| {
        let failed = whelk(&engine).build(context, args);
        assert_ne!(failed.code, 0, "{args:?}");
        let text = failed.err();
        assert!(text.contains(expected), "{expected:?} in {text}");
    };
    check(
        &context.join("none"),
        &[],
        "ERROR: failed to build: unable to prepare context: path",
    );
    check(Path::new(file), &[], "not found");
    check(
        &empty,
        &[],
        "failed to read dockerfile: open Dockerfile: no such file or directory",
    );
    check(
        &context,
        &["-f", "none"],
        "failed to read dockerfile: open none: no such file or directory",
    );
    check(
        &context,
        &["-f", context.to_str().unwrap()],
        "is a directory",
    );
    check(
        &context,
        &["--target", "nosuch"],
        "target stage \"nosuch\" could not be found",
    );
    check(
        &context,
        &["--secret", "id=a,src=/nonexistent"],
        "failed to stat /nonexistent: no such file or directory",
    );
    check(&context, &["--secret", "a"], "must be a key=value pair");
    check(
        &context,
        &["--build-context", "x=/nonexistent"],
        "/nonexistent",
    );
    check(
        &context,
        &["-t", "Not/Valid"],
        "repository name (Valid) must be lowercase",
    );
    check(
        &context,
        &["--progress", "none-such"],
        "invalid progress mode none-such",
    );
    check(
        &context,
        &["--call", "nosuch"],
        "invalid print mode \"nosuch\"",
    );
    check(
        &context,
        &["--builder", "other"],
        "no builder \"other\" found",
    );
    check(&context, &["--ulimit", "x=1"], "invalid ulimit type: x");
    check(&context, &["--ssh", "x=/none"], "failed to stat /none");
    check(
        &context,
        &["--network", "container:mine"],
        "the network container:mine of builds",
    );
    check(
        &context,
        &["--allow", "security.insecure"],
        "security.insecure",
    );
    check(
        &context,
        &["--add-host", "x:y"],
        "invalid IP address in add-host",
    );
    check(
        &context,
        &["-q", "--progress", "plain"],
        "cannot be used together",
    );
    let no_path = engine.whelk(&["build"]);
    assert_ne!(no_path.code, 0);
    shows(&no_path.err(), &["build"]);
}

#[test]
fn mistakes_are_told_although_all_is_cached() {
    let engine = Engine::start();
    let context = engine.dockerfile("cached", "FROM busybox\nRUN true\n");
    // What scripts leave empty is nothing.
    whelk(&engine).built(&context, &["--secret", "", "-o", ""]);
    for (args, expected) in [
        (
            ["--iidfile", "/nonexistent/x"],
            "write /nonexistent/x: no such file or directory",
        ),
        (["--metadata-file", "/"], "write /: is a directory"),
        (
            ["-o", "type=tar,dest=/nonexistent/x"],
            "invalid destination /nonexistent/x: no such file or directory",
        ),
        (
            ["--build-arg", "=a"],
            "invalid key-value pair \"=a\": empty key",
        ),
        (["-t", "b:"], "invalid tag \"b:\": invalid reference format"),
        (
            ["-o", "type=image,name=b:"],
            "invalid tag \"b:\": invalid reference format",
        ),
        (["--memory", "1"], "Minimum memory limit allowed is 6MB"),
        (
            ["--cpuset-cpus", "8000"],
            "Requested CPUs are not available",
        ),
    ] {
        whelk(&engine).build_fails(&context, &args, &[expected]);
    }
}

#[test]
fn what_cannot_be_sent_is_named() {
    let engine = Engine::start();
    let context = engine.scratch_with("unsendable", &[("Dockerfile", "FROM busybox\nCOPY . /x\n")]);
    let device = context.join("device");
    let kind = rustix::fs::FileType::CharacterDevice;
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    let null = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(rustix::fs::CWD, &device, kind, mode, null).unwrap();
    let failed = whelk(&engine).build(&context, &[]);
    assert_eq!(failed.code, 1);
    shows(
        &failed.err(),
        &["device is a device, which a build context cannot have"],
    );
    fs::remove_file(&device).unwrap();
    // Root can read everything, unless it lacks the capabilities for that.
    let secret = context.join("secret");
    fs::write(&secret, "x").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let host = format!("unix://{}", engine.socket().display());
    let failed = std::process::Command::new("setpriv")
        .args(["--bounding-set", "-dac_override,-dac_read_search"])
        .arg(Program::Whelk.path())
        .args(["--host", &host, "build"])
        .arg(&context)
        .output()
        .unwrap();
    assert_eq!(failed.status.code(), Some(1));
    let text = String::from_utf8_lossy(&failed.stderr);
    shows(&text, &["open secret: permission denied"]);
}

#[test]
fn files_of_a_result_are_written_to_a_directory() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox AS made\nRUN mkdir /out; echo text > /out/file; ln -s file /out/link; mkfifo /out/pipe\n\
        FROM scratch AS plain\nCOPY --from=made /out /\n\
        FROM made AS device\nRUN mknod /out/null c 1 3\n\
        FROM scratch\nCOPY --from=device /out /\n";
    let context = engine.scratch_with("outputs", &[("Dockerfile", dockerfile)]);
    let out = engine.scratch("out");
    let target = out.to_str().unwrap();
    whelk(&engine)
        .build(&context, &["--target", "plain", "-o", target])
        .ok();
    assert_eq!(fs::read_to_string(out.join("link")).unwrap(), "text\n");
    let pipe = out.join("pipe").symlink_metadata().unwrap().file_type();
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&pipe));
    // What is no regular file is written to.
    let null = out.join("null");
    let kind = rustix::fs::FileType::CharacterDevice;
    let (mode, device) = (
        rustix::fs::Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    );
    rustix::fs::mknodat(rustix::fs::CWD, &null, kind, mode, device).unwrap();
    let text = null.to_str().unwrap();
    let archive = format!("type=tar,dest={text}");
    let flags = [
        "--target",
        "plain",
        "-o",
        &archive,
        "--iidfile",
        text,
        "--metadata-file",
        text,
    ];
    whelk(&engine).build(&context, &flags).ok();
    assert_eq!(rustix::fs::stat(&null).unwrap().st_rdev, device);
    fs::remove_file(&null).unwrap();
    // A client that refuses a file ends, and leaves what was there.
    let failed = whelk(&engine).build(&context, &["-o", target]);
    assert_eq!(failed.code, 1);
    shows(&failed.err(), &["null", "device"]);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 3);
}

#[test]
fn archives_without_a_destination_go_to_a_pipe() {
    let engine = Engine::start();
    let context = engine.dockerfile("piped", "FROM busybox\nRUN echo x > /made-here\n");
    for (output, member) in [("type=oci", "oci-layout"), ("type=tar", "made-here")] {
        let built = whelk(&engine).build(&context, &["-o", output]);
        assert_eq!(built.code, 0, "{}", built.err());
        assert!(built.out().contains(member), "{output}");
    }
    // No id follows an archive.
    let built = whelk(&engine).build(&context, &["-q", "-o", "type=oci"]);
    assert_eq!(built.code, 0, "{}", built.err());
    assert!(built.stdout.ends_with(&[0; 512]));
    // A layout is a directory.
    let refused = whelk(&engine).build(&context, &["-o", "type=oci,tar=false"]);
    assert_eq!(refused.code, 1);
    shows(&refused.err(), &["dest is required for oci exporter"]);
    let layout = engine.scratch("layouts").join("new/layout");
    let output = format!("type=oci,tar=false,dest={}", layout.display());
    for _ in 0..2 {
        whelk(&engine).built(&context, &["-t", "laid:1", "-o", &output]);
    }
    let index: Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let [entry] = index["manifests"].as_array().unwrap().as_slice() else {
        panic!("{index}");
    };
    let name = &entry["annotations"]["io.containerd.image.name"];
    assert_eq!(name, "docker.io/library/laid:1");
    assert!(layout.join("oci-layout").is_file());
}

#[test]
fn failures_show_lines_and_output() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nRUN for i in $(seq 1 500); do echo line $i; done; exit 7\n";
    let context = engine.scratch_with("exit", &[("Dockerfile", dockerfile)]);
    let failed = whelk(&engine).build(&context, &["-t", "none"]);
    assert_eq!(failed.code, 1);
    let text = failed.err();
    shows(
        &text,
        &[
            "line 1\n",
            "line 250\n",
            "did not complete successfully: exit code: 7",
            "------\n > [2/2] RUN for i in",
            "Dockerfile:2\n--------------------\n",
            "   2 | >>> RUN for i in $(seq 1 500)",
            "ERROR: failed to build: failed to solve: process \"/bin/sh -c for i in",
        ],
    );
    let silent = engine.dockerfile("silent", "FROM busybox\nRUN false\n");
    let expected = ["------\n > [2/2] RUN false:\n------\n"];
    whelk(&engine).build_fails(&silent, &[], &expected);
    let quiet = whelk(&engine).build(&context, &["-q"]).err();
    assert!(
        !quiet.contains("line 1\n") && quiet.contains(">>> RUN for"),
        "{quiet}"
    );
    let raw = whelk(&engine).build(&context, &["--progress", "rawjson"]);
    let messages = String::from_utf8_lossy(&raw.stderr).into_owned();
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut failed =
        messages.filter_map(|message| message["vertexes"][0]["error"].as_str().map(str::to_owned));
    assert!(failed.next_back().unwrap().contains("exit code: 7"));
    let syntax = engine.scratch_with("syntax", &[("Dockerfile", "FROM busybox\n\nRUNS x\n")]);
    shows(
        &whelk(&engine).build(&syntax, &[]).err(),
        &["unknown instruction: RUNS", ">>> RUNS x"],
    );
}

#[test]
fn what_cannot_be_had_is_shown_with_the_lines_that_name_it() {
    let engine = Engine::start();
    // It has nothing.
    let host = Registry::start().host;
    let check = |name: &str, rest: &str, line: &str| {
        let dockerfile = format!("FROM busybox AS base\nRUN true\n{rest}{line}\n");
        let context = engine.dockerfile(name, &dockerfile);
        let number = dockerfile.lines().count();
        let expected = [format!("Dockerfile:{number}\n"), format!(">>> {line}")];
        let expected = [&expected[0], &expected[1]].map(String::as_str);
        whelk(&engine).build_fails(&context, &[], &expected);
        docker(&engine).build_fails(&context, &[], &expected);
        let shown = classic(&engine).build_fails(&context, &[], &[]);
        assert!(!shown.contains(">>>"), "{shown}");
    };
    check("base", "", &format!("FROM {host}/none"));
    check("copy", "", &format!("COPY --from={host}/none f /"));
    // What it is needed for does not matter.
    let copy = format!("COPY --from={host}/none f /");
    check("stage", "FROM base\n", &copy);
    check("url", "", "ADD http://localhost:1/file /");
    check("git", "", "ADD http://localhost:1/repository.git /src");
    let mount = format!("RUN --mount=from={host}/none,target=/m true");
    check("mount", "", &mount);
    // One that is here for another platform is said to be.
    let here = format!("{host}/here");
    engine.docker(&["tag", "busybox", &here]).ok();
    let other = format!("FROM --platform=linux/s390x {here}");
    let context = engine.dockerfile("platform", &format!("{other}\n"));
    let expected = ["the image here is for linux/", &other];
    whelk(&engine).build_fails(&context, &[], &expected);
}

#[test]
fn patterns_of_ignore_files_that_are_malformed_are_shown() {
    let engine = Engine::start();
    let ignored = "# none\n*.log\n[bad\n";
    let dockerfile = ("Dockerfile", "FROM busybox\nCOPY . /x\n");
    let context = engine.scratch_with("ignored", &[dockerfile, (".dockerignore", ignored)]);
    let expected = [".dockerignore:3: [bad: syntax error in pattern"];
    whelk(&engine).build_fails(&context, &[], &expected);
    docker(&engine).build_fails(&context, &[], &expected);
    // Docker's classic client reads the file itself.
    classic(&engine).build_fails(&context, &[], &["syntax error in pattern"]);
    let files = [dockerfile, ("Dockerfile.dockerignore", "!\n")];
    let own = engine.scratch_with("own", &files);
    let expected = ["Dockerfile.dockerignore:1: !: illegal exclusion pattern"];
    whelk(&engine).build_fails(&own, &[], &expected);
    let base = engine.dockerfile("base", "FROM busybox\nCOPY --from=named . /x\n");
    let named = format!("named={}", context.display());
    let expected = [
        ".dockerignore of the context named:3: [bad: syntax error in pattern",
        "Dockerfile:2\n",
    ];
    whelk(&engine).build_fails(&base, &["--build-context", &named], &expected);
    // Contexts that no stage uses are checked, too.
    for (given, expected) in [
        ("UP=.", "invalid context name UP: "),
        ("d=target:x", "failed to find target x for context d"),
    ] {
        whelk(&engine).build_fails(&own, &["--build-context", given], &[expected]);
        docker(&engine).build_fails(&own, &["--build-context", given], &[expected]);
    }
}

#[test]
fn dockerfiles_are_checked_and_described() {
    let engine = Engine::start();
    let dockerfile =
        "# What is built first.\nFROM busybox AS base\nARG A=1\nFROM base\nCMD echo x\n";
    let context = engine.scratch_with("checked", &[("Dockerfile", dockerfile)]);
    let checked = whelk(&engine).build(&context, &["--check"]);
    assert_eq!(checked.code, 1);
    shows(
        &checked.out(),
        &[
            "1 warning has been found!",
            "JSONArgsRecommended",
            "Dockerfile:5",
        ],
    );
    let json = whelk(&engine).build(&context, &["--call", "check,format=json"]);
    let json: Value = serde_json::from_str(&json.out()).unwrap();
    assert_eq!(json["warnings"][0]["ruleName"], "JSONArgsRecommended");
    shows(
        &whelk(&engine).built(&context, &[]),
        &["1 warning found", "JSONArgsRecommended"],
    );
    shows(
        &whelk(&engine).build(&context, &["--call", "targets"]).ok(),
        &["base"],
    );
    shows(
        &whelk(&engine)
            .build(&context, &["--call", "outline", "--target", "base"])
            .ok(),
        &["A"],
    );
    fs::write(context.join("Dockerfile"), "FROM busybox\nCMD [\"x\"]\n").unwrap();
    assert_eq!(
        whelk(&engine).build(&context, &["--check"]).ok(),
        "Check complete, no warnings found."
    );
    fs::write(context.join("Dockerfile"), "FROM busybox\nCOPIE x\n").unwrap();
    let wrong = whelk(&engine).build(&context, &["--check"]);
    assert_ne!(wrong.code, 0);
    shows(&wrong.err(), &["unknown instruction: COPIE"]);
}

#[test]
fn secrets_and_settings_reach_the_steps() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nRUN --mount=type=secret,id=key,required cat /run/secrets/key; echo; df -k /dev/shm | tail -1; ulimit -n; grep -c 1.2.3.4 /etc/hosts\nRUN --mount=type=secret,id=VAR,env=TOKEN echo has-$TOKEN\n";
    let context = engine.scratch_with(
        "settings",
        &[("Dockerfile", dockerfile), ("secret", "hidden")],
    );
    let secret = format!("id=key,src={}", context.join("secret").display());
    let text = context.to_str().unwrap();
    let args = [
        "build",
        "--secret",
        &secret,
        "--secret",
        "id=VAR",
        "--shm-size",
        "1m",
        "--ulimit",
        "nofile=99",
        "--add-host",
        "x:1.2.3.4",
        text,
    ];
    let client = engine.cli(Program::Whelk).with_env(&[("VAR", "value")]);
    let output = client.run(&args);
    output.ok();
    let shown = String::from_utf8_lossy(&output.stderr).into_owned();
    shows(
        &shown,
        &[" hidden\n", " 1024 ", " 99\n", " 1\n", " has-value\n"],
    );
}

#[test]
fn steps_are_on_a_network_of_the_engine() {
    let engine = Engine::start();
    engine.serve_on_network();
    let dockerfile = "FROM busybox\nRUN wget -q -O /made http://server/passwd\n";
    let context = engine.scratch_with("network", &[("Dockerfile", dockerfile)]);
    whelk(&engine).built(&context, &["--network", "mine", "-t", "made"]);
    // On another network, the server is not there, and the result of the first does not count.
    assert_eq!(whelk(&engine).build(&context, &[]).code, 1);
    let missing = whelk(&engine).build(&context, &["--network", "none-such"]);
    shows(&missing.err(), &["none-such"]);
    engine.end_server();
}

#[test]
fn ctrl_c_ends_a_build() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nRUN echo begun; sleep 1000\n";
    let context = engine.scratch_with("long", &[("Dockerfile", dockerfile)]);
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let client = engine.cli(Program::Whelk);
        let mut running =
            client.spawn(&["build", "--progress", "plain", context.to_str().unwrap()]);
        eventually("the step runs", || {
            running.errors_so_far().contains("begun\n").then_some(())
        });
        running.signal(signal);
        let ended = running.finish();
        assert_eq!(ended.code, code);
        shows(&ended.err(), &["CANCELED", "context canceled"]);
        eventually("nothing of it is left", || {
            let output = engine.docker(&["ps", "-aq"]);
            let tmp = fs::read_dir(engine.root().join("tmp")).unwrap().count();
            (output.ok().is_empty() && tmp == 0).then_some(())
        });
    }
}

#[test]
fn progress_is_drawn_on_a_terminal() {
    let engine = Engine::start();
    // Until it is drawn.
    let dockerfile =
        "FROM busybox\nRUN for i in $(seq 1 5); do echo line $i; done; sleep 2741 || true\n";
    let context = engine.scratch_with("drawn", &[("Dockerfile", dockerfile)]);
    let mut pty = engine
        .cli(Program::Whelk)
        .pty(&["build", context.to_str().unwrap()]);
    pty.expect("[+] Building");
    pty.expect("=> => # line 2");
    let sleeping = eventually("the step to sleep", || {
        whelk_tests::processes::with_command(&["sleep", "2741"])
    });
    let sleeping = rustix::process::Pid::from_raw(sleeping).unwrap();
    rustix::process::kill_process(sleeping, Signal::TERM).unwrap();
    pty.expect("FINISHED");
    assert_eq!(pty.finish(), 0);
}

#[test]
fn the_cache_is_listed_and_pruned() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nRUN --mount=type=cache,target=/c echo x > /c/x\nRUN head -c 100000 /dev/zero > /big\n";
    let context = engine.scratch_with("cache", &[("Dockerfile", dockerfile)]);
    whelk(&engine).built(&context, &["-t", "made"]);
    let listed = engine.whelk(&["buildx", "du"]).ok();
    shows(&listed, &["ID", "RECLAIMABLE", "Total:"]);
    let format = "{{.Type}} {{.Description}}";
    let kinds = engine
        .whelk(&[
            "buildx",
            "du",
            "--format",
            format,
            "--filter",
            "type=exec.cachemount",
        ])
        .ok();
    assert!(
        kinds.starts_with("exec.cachemount") && kinds.lines().count() == 1,
        "{kinds}"
    );
    shows(
        &engine.whelk(&["buildx", "du", "--verbose"]).ok(),
        &["Usage count:", "Type:\t\tregular"],
    );
    let pruned = engine
        .whelk(&["builder", "prune", "-f", "--filter", "type=exec.cachemount"])
        .ok();
    shows(&pruned, &["Total:"]);
    assert_eq!(
        engine
            .whelk(&[
                "buildx",
                "du",
                "--format",
                format,
                "--filter",
                "type=exec.cachemount"
            ])
            .ok(),
        ""
    );
    let kept = engine
        .whelk(&["builder", "prune", "-f", "--filter", "until=24h"])
        .ok();
    assert_eq!(kept.trim(), "Total:\t0B");
    engine.whelk(&["builder", "prune", "-af"]).ok();
    assert_eq!(
        engine.whelk(&["buildx", "du", "--format", "{{.ID}}"]).ok(),
        ""
    );
    for (args, expected) in [
        (
            &["builder", "prune", "-f", "--filter", "x"][..],
            "invalid filter",
        ),
        (
            &["builder", "prune", "-f", "--filter", "nosuch=x"],
            "nosuch",
        ),
        (
            &["builder", "prune", "-f", "--keep-storage", "x"],
            "--keep-storage",
        ),
        (&["buildx", "--builder", "x", "du"], "no builder \"x\""),
        (
            &["buildx", "create"],
            "whelk: buildx create: not available in this version of whelk",
        ),
    ] {
        let failed = engine.whelk(args);
        assert_ne!(failed.code, 0, "{args:?}");
        shows(&failed.err(), &[expected]);
    }
    shows(
        &engine.whelk(&["buildx", "ls"]).ok(),
        &["default*", "running", "linux/"],
    );
    shows(
        &engine.whelk(&["buildx", "inspect"]).ok(),
        &["Driver:        docker", "BuildKit version:"],
    );
    shows(&engine.whelk(&["buildx", "version"]).ok(), &["whelk "]);
}

#[test]
fn steps_that_are_not_cached_are_explained() {
    let engine = Engine::start();
    let dockerfile =
        "FROM busybox\nARG WHAT=1\nCOPY one two /srv/\nRUN echo $WHAT > /made\nRUN true\n";
    let files = [
        ("Dockerfile", dockerfile),
        ("one", "1"),
        ("two", "2"),
        ("three", "3"),
    ];
    let context = engine.scratch_with("explained", &files);
    let explained = |args: &[&str]| {
        let shown = whelk(&engine).built(&context, &[&["--explain"], args].concat());
        let lines = shown
            .split("Not cached:\n")
            .nth(1)
            .unwrap_or_default()
            .to_owned();
        lines
            .lines()
            .map(|line| line.trim_start_matches(" - ").to_owned())
            .collect::<Vec<_>>()
    };
    let first = explained(&[]);
    assert_eq!(first.len(), 3, "{first:?}");
    assert!(
        first[0].ends_with("COPY one two /srv/: it was not executed before by whelk build or bake"),
        "{first:?}"
    );
    let again = whelk(&engine).built(&context, &["--explain"]);
    shows(&again, &["\nEverything was cached.\n"]);
    // What is not read makes no difference.
    fs::write(context.join("three"), "other").unwrap();
    assert_eq!(explained(&[]), [""; 0]);
    fs::write(context.join("two"), "other").unwrap();
    assert_eq!(
        explained(&[]),
        [
            "[2/4] COPY one two /srv/: two has changed",
            "[3/4] RUN echo 1 > /made: the result of [2/4] is another one",
            "[4/4] RUN true: the result of [3/4] is another one",
        ]
    );
    let argument = explained(&["--build-arg", "WHAT=2"]);
    assert!(
        argument[0].contains("the variable WHAT has another value"),
        "{argument:?}"
    );
    assert!(!argument.concat().contains("COPY"), "{argument:?}");
    fs::write(
        context.join("Dockerfile"),
        dockerfile.replace("RUN true", "RUN :"),
    )
    .unwrap();
    assert_eq!(
        explained(&["--build-arg", "WHAT=2"]),
        ["[4/4] RUN :: the instruction was RUN true"]
    );
    let ignored = explained(&["--build-arg", "WHAT=2", "--no-cache"]);
    assert!(
        ignored
            .iter()
            .all(|line| line.ends_with("the build uses no cache for it")),
        "{ignored:?}"
    );
    engine.whelk(&["builder", "prune", "-af"]).ok();
    let gone = explained(&["--build-arg", "WHAT=2"]);
    assert!(
        gone[0].ends_with("it was not executed before by whelk build or bake"),
        "{gone:?}"
    );
    // Another base image of the same name.
    fs::write(context.join("base"), "FROM busybox\nLABEL a=b\n").unwrap();
    let base = context.join("base");
    whelk(&engine).built(&context, &["-f", base.to_str().unwrap(), "-t", "busybox"]);
    let other = explained(&["--build-arg", "WHAT=2"]);
    assert!(
        other[0].contains("the base image docker.io/library/busybox:latest is another one"),
        "{other:?}"
    );
}

/// Waits until there are no containers and no other images. A client that finds a container in removal leaves its image to the
/// engine.
#[track_caller]
fn has_only_busybox(engine: &Engine) {
    eventually("containers and images of shells to be removed", || {
        let containers = engine.docker(&["ps", "-aq"]).ok();
        let images = engine.docker(&["images", "-aq"]).ok();
        (containers.is_empty() && images.lines().count() == 1).then_some(())
    });
}

#[test]
fn a_shell_is_opened_where_a_step_has_failed() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nENV A=b\nWORKDIR /srv\nRUN --mount=type=secret,id=s echo left > made; exit 3\n";
    let context = engine.scratch_with("shell", &[("Dockerfile", dockerfile), ("secret", "hidden")]);
    let text = context.to_str().unwrap();
    let secret = format!("id=s,src={}", context.join("secret").display());
    let args = ["build", "--on-error=shell", "--secret", &secret, text];
    let client = engine.cli(Program::Whelk);
    let output = client.feed(
        &args,
        b"pwd; cat made; echo A=$A; ls -A /run/secrets 2>/dev/null; echo more > made; exit 0\n",
    );
    assert_eq!(output.code, 1);
    shows(
        &output.err(),
        &["exit code: 3", ">>> RUN --mount=type=secret"],
    );
    assert_eq!(output.out(), "/srv\nleft\nA=b\n");
    let mut pty = client.pty(&args);
    pty.expect("A shell in the state of the failed step");
    pty.insist("cat made\n", "left");
    pty.keys("exit\n");
    assert_eq!(pty.finish(), 1);
    // Nothing of it is left, and the step is executed again.
    has_only_busybox(&engine);
    let again = whelk(&engine).build(&context, &["--secret", &secret]);
    shows(&again.err(), &["exit code: 3"]);
    let other = whelk(&engine).build(&context, &["--on-error", "other"]);
    shows(&other.err(), &["invalid value \"other\" for --on-error"]);
}

/// Steps of several platforms may fail at the same time.
#[test]
fn one_shell_is_opened_for_a_build() {
    let engine = Engine::start();
    let text = "FROM --platform=$BUILDPLATFORM busybox\nARG TARGETARCH\nRUN --network=none echo $TARGETARCH > /made; exit 3\n";
    let context = engine.dockerfile("platforms", text);
    let platforms = "--platform=linux/amd64,linux/arm64";
    let path = context.to_str().unwrap();
    let args = ["build", "--on-error=shell", platforms, path];
    let output = whelk(&engine).feed(&args, b"wc -l < /made\n");
    assert_eq!(output.code, 1);
    assert_eq!(output.out(), "1\n", "{}", output.err());
    has_only_busybox(&engine);
    engine.has_no_builds();
}

#[test]
fn why_no_shell_is_opened_is_said() {
    let engine = Engine::start();
    for (dockerfile, expected) in [
        ("FROM busybox\nFROM other AS\n", "no RUN has failed"),
        ("FROM busybox\nCOPY none /\n", "no RUN has failed"),
        ("FROM scratch\nRUN [\"/none\"]\n", "no RUN has failed"),
        // The program can be executed, but no shell.
        (
            "FROM busybox\nRUN [\"/bin/rm\", \"/bin/sh\"]\nRUN [\"/bin/false\"]\n",
            "\"/bin/sh\"",
        ),
    ] {
        let context = engine.dockerfile("none", dockerfile);
        let failed = whelk(&engine).build(&context, &["--on-error", "shell"]);
        assert_eq!(failed.code, 1, "{}", failed.err());
        shows(&failed.err(), &["No shell is opened: ", expected]);
        assert!(!failed.err().contains("No shell is opened: whelk"));
    }
    has_only_busybox(&engine);
    let context = engine.dockerfile("none", "FROM busybox\nRUN exit 3\n");
    let other = whelk(&engine).build(&context, &[]);
    assert!(!other.err().contains("No shell"), "{}", other.err());
}

/// The container of a shell on a terminal does not end with its input.
#[test]
fn the_shell_of_a_failed_step_ends_with_its_client() {
    let engine = Engine::start();
    let text = "FROM busybox\nRUN echo left > /made; exit 3\n";
    let context = engine.dockerfile("ends", text);
    let args = ["build", "--on-error=shell", context.to_str().unwrap()];
    let layers = || fs::read_dir(engine.root().join("layers")).unwrap().count();
    let before = layers();
    let opened = || {
        let mut pty = engine.cli(Program::Whelk).pty(&args);
        pty.expect("A shell in the state of the failed step");
        pty.insist("cat /made\n", "left");
        pty
    };
    let is_removed = || has_only_busybox(&engine);
    let mut killed = opened();
    killed.signal(Signal::KILL);
    assert_eq!(killed.finish(), -1);
    is_removed();
    let mut closed = opened();
    closed.hang_up();
    assert_eq!(closed.finish(), 129);
    is_removed();
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut pty = opened();
        pty.signal(signal);
        assert_eq!(pty.finish(), code);
        is_removed();
    }
    // The shell has this one.
    let mut interrupted = opened();
    interrupted.keys("sleep 1000\n");
    // The echo of the keys is another text.
    interrupted.insist("\u{3}echo inter''rupted\n", "interrupted");
    interrupted.keys("exit\n");
    assert_eq!(interrupted.finish(), 1);
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let mut piped = engine.cli(Program::Whelk).spawn(&args);
        piped.write(b"cat /made\n");
        eventually("the shell to be open", || {
            piped.so_far().contains("left\n").then_some(())
        });
        piped.signal(signal);
        eventually("the client to end", || (!piped.is_running()).then_some(()));
        piped.finish().exits(code);
        is_removed();
    }
    // The keys that leave other containers running.
    let mut detached = opened();
    detached.keys("\u{10}\u{11}");
    assert_eq!(detached.finish(), 1);
    is_removed();
    eventually("the files of the step to be removed", || {
        (layers() == before).then_some(())
    });
    engine.has_no_builds();
}

#[test]
fn what_killed_shells_and_engines_have_left_is_removed() {
    let engine = Engine::start();
    let text = "FROM busybox\nRUN echo left > /made; exit 3\n";
    let context = engine.dockerfile("killed", text);
    let args = ["build", "--on-error=shell", context.to_str().unwrap()];
    let images = || engine.docker(&["images", "-aq"]).ok().lines().count();
    let containers = || engine.docker(&["ps", "-aq"]).ok();
    for is_engine in [false, true] {
        let client = whelk(&engine);
        let mut running = client.spawn(&args);
        running.write(b"cat /made\n");
        eventually("the shell to be open", || {
            running.so_far().contains("left\n").then_some(())
        });
        assert_eq!(images(), 2);
        if is_engine {
            engine.kill9();
            let _ = running.finish();
            engine.restart();
            let left = containers();
            if !left.is_empty() {
                let _ = engine.docker(&["rm", "-f", &left]);
            }
            eventually("the container to be removed", || {
                containers().is_empty().then_some(())
            });
            // The sessions have ended with the engine. The image has no name, and belongs to nobody.
            engine.docker(&["image", "prune", "-f"]).ok();
            assert_eq!(images(), 1);
        } else {
            running.signal(Signal::KILL);
            let _ = running.finish();
            has_only_busybox(&engine);
        }
        engine.has_no_builds();
    }
}

#[test]
fn caches_of_steps_are_listed_and_moved() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nARG N\nRUN --mount=type=cache,target=/root/.cache cat /root/.cache/x; echo $N >> /root/.cache/x; ln -s x /root/.cache/link || true\n";
    let context = engine.scratch_with("moved", &[("Dockerfile", dockerfile)]);
    whelk(&engine).built(&context, &["--build-arg", "N=1"]);
    let format = ["build", "cache", "ls", "--format", "{{.Mount}} {{.InUse}}"];
    assert_eq!(engine.whelk(&format).ok(), "/root/.cache false");
    let id = engine.whelk(&["build", "cache", "ls", "-q"]).ok();
    let file = engine
        .scratch("out")
        .join("cache.tar")
        .display()
        .to_string();
    engine
        .whelk(&["build", "cache", "export", "/root/.cache", "-o", &file])
        .ok();
    assert_eq!(tar::file(&fs::read(&file).unwrap(), "x"), b"1\n");
    engine.whelk(&["builder", "prune", "-af"]).ok();
    assert_eq!(engine.whelk(&format).ok(), "");
    assert_eq!(
        engine
            .whelk(&["build", "cache", "import", "/root/.cache", &file])
            .ok(),
        id
    );
    let shown = whelk(&engine).built(&context, &["--build-arg", "N=2"]);
    shows(&shown, &[" 1\n"]);
    // By its id, and over what is there.
    let archive = fs::read(&file).unwrap();
    let imported = engine
        .cli(Program::Whelk)
        .feed(&["builder", "cache", "import", &id], &archive);
    assert_eq!(imported.ok(), id);
    let exported = engine.whelk(&["builder", "cache", "export", &id]);
    assert_eq!(tar::file(&exported.stdout, "x"), b"1\n");
    for (args, expected) in [
        (
            &["build", "cache", "export", "none"][..],
            "no such cache of builds: none",
        ),
        (
            &["build", "cache", "import", "new", "/nonexistent"],
            "open /nonexistent",
        ),
        (
            &["build", "cache", "import", "new", "/etc/passwd"],
            "archive",
        ),
    ] {
        let failed = engine.whelk(args);
        assert_ne!(failed.code, 0, "{args:?}");
        shows(&failed.err(), &[expected]);
    }
    assert_eq!(engine.whelk(&format).ok(), "/root/.cache false");
    // The second one is gone when it is its turn.
    let twice = engine.whelk(&["build", "cache", "rm", &id, &id]);
    assert_ne!(twice.code, 0);
    assert_eq!(twice.out().trim(), id);
    let gone = format!("no such cache of builds: {id}");
    shows(&twice.err(), &[&gone]);
    assert_eq!(engine.whelk(&format).ok(), "");
    whelk(&engine).built(&context, &["--build-arg", "N=3"]);
    let rm = ["build", "cache", "rm", "/root/.cache"];
    assert_eq!(engine.whelk(&rm).ok(), "/root/.cache");
    shows(
        &engine.whelk(&rm).err(),
        &["no such cache of builds: /root/.cache"],
    );
    shows(&engine.whelk(&["build", "cache", "foo"]).err(), &["foo"]);
    let help = engine.whelk(&["build", "cache", "--help"]);
    shows(&help.ok(), &["whelk builder cache COMMAND", "import", "rm"]);
    let directory = engine.whelk(&["build", "cache"]);
    shows(
        &directory.err(),
        &["path \"cache\" not found", "whelk build cache ls"],
    );
}
