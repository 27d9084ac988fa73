//! What `whelk build` does on this side of the connection: agents, proxies, outputs, signals, and names of builders.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::process::Signal;
use serde_json::{Value, json};
use whelk_tests::builds::{classic, docker, json_file, shows, whelk};
use whelk_tests::images::noise;
use whelk_tests::tar::Tar;
use whelk_tests::{Engine, Output, Program, eventually, images};

/// An agent without keys, and the types of the requests that have reached it.
fn agent(path: &Path) -> Arc<Mutex<Vec<u8>>> {
    let listener = UnixListener::bind(path).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let requests = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 4];
            while stream.read_exact(&mut length).is_ok() {
                let mut request = vec![0; u32::from_be_bytes(length) as usize];
                stream.read_exact(&mut request).unwrap();
                requests.lock().unwrap().push(request[0]);
                // SSH_AGENT_IDENTITIES_ANSWER
                stream.write_all(&[0, 0, 0, 5, 12, 0, 0, 0, 0]).unwrap();
            }
        }
    });
    seen
}

#[test]
fn steps_ask_the_agent_for_keys_and_nothing_else() {
    let engine = Engine::start();
    engine.load(&fs::read(images::python()).unwrap());
    let place = engine.scratch("agent").join("socket");
    let seen = agent(&place);
    // Asks for the keys, removes them all, and asks again.
    let script = "import os, socket; s = socket.socket(socket.AF_UNIX); s.connect(os.environ['SSH_AUTH_SOCK']); \
        answer = lambda request, size: (s.sendall(bytes([0, 0, 0, 1, request])), s.recv(size, socket.MSG_WAITALL).hex())[1]; \
        print(answer(11, 9), answer(19, 5), answer(11, 9))";
    let dockerfile = format!("FROM python\nRUN --mount=type=ssh python3 -c \"{script}\"\n");
    let context = engine.dockerfile("ssh", &dockerfile);
    let client = engine.cli(Program::Whelk);
    let env = [("SSH_AUTH_SOCK", place.to_str().unwrap())];
    let shown = client.with_env(&env).built(&context, &["--ssh", "default"]);
    shows(
        &shown,
        &["000000050c00000000 0000000105 000000050c00000000"],
    );
    assert_eq!(*seen.lock().unwrap(), [11, 11]);
    // Without it, the step is told so.
    let required = "FROM busybox\nRUN --mount=type=ssh,required=true true\n";
    let required = engine.dockerfile("required", required);
    let other = format!("other={}", place.display());
    for (args, expected) in [
        (&[][..], "no SSH key \"default\" forwarded"),
        (&["--ssh", &other], "unset ssh forward key default"),
    ] {
        client.build_fails(&required, args, &[expected]);
    }
}

#[test]
fn the_host_has_an_address_in_steps() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\nRUN grep -w host /etc/hosts\n";
    let context = engine.dockerfile("gateway", dockerfile);
    let gateway = engine.get("/networks/bridge")["IPAM"]["Config"][0]["Gateway"].clone();
    let gateway = gateway.as_str().unwrap();
    let args = ["--no-cache", "--add-host", "host:host-gateway"];
    for client in [whelk(&engine), docker(&engine), classic(&engine)] {
        let shown = client.built(&context, &args);
        shows(&shown, &[&format!("{gateway}\thost")]);
    }
}

#[test]
fn settings_of_the_user_hold_for_builds() {
    let engine = Engine::start();
    let config = engine.scratch("config");
    let file = json!({"proxies": {"default": {"httpProxy": "http://proxy.example:1", "noProxy": "localhost"}}});
    fs::write(config.join("config.json"), file.to_string()).unwrap();
    let config = [("DOCKER_CONFIG", config.to_str().unwrap())];
    let client = engine.cli(Program::Whelk).with_env(&config);
    let dockerfile = "FROM busybox\nRUN echo $HTTP_PROXY $http_proxy $no_proxy $https_proxy.\n";
    let context = engine.dockerfile("proxies", dockerfile);
    let proxy = "http://proxy.example:1";
    let expected = format!(" {proxy} {proxy} localhost .\n");
    shows(&client.built(&context, &[]), &[&expected]);
    let own = ["--build-arg", "http_proxy=other", "--no-cache"];
    let expected = " other other localhost .\n";
    shows(&client.built(&context, &own), &[expected]);
    // They are not in the image, and containers get them, too.
    client.built(&context, &["-t", "made"]);
    let env = engine.image("made")["Config"]["Env"].to_string();
    assert!(!env.contains("proxy"), "{env}");
    let print = [
        "run",
        "--rm",
        "--network",
        "none",
        "-e",
        "NO_PROXY=own",
        "busybox",
        "env",
    ];
    let found = client.run(&print).ok();
    for line in [
        "HTTP_PROXY=http://proxy.example:1",
        "NO_PROXY=own",
        "no_proxy=localhost",
    ] {
        assert!(found.lines().any(|one| one == line), "{line}: {found}");
    }
    // The platform and the builder that the environment names.
    let plain = engine.dockerfile("plain", "FROM busybox\n");
    let env = [("DOCKER_DEFAULT_PLATFORM", "linux/none-such")];
    let client = engine.cli(Program::Whelk);
    client
        .with_env(&env)
        .build_fails(&plain, &[], &["pull busybox"]);
    let env = [("BUILDX_BUILDER", "other")];
    client
        .with_env(&env)
        .build_fails(&plain, &[], &["no builder \"other\" found"]);
    client
        .with_env(&env)
        .built(&plain, &["--builder", "default"]);
}

#[test]
fn the_platform_local_is_that_of_the_client() {
    let engine = Engine::start();
    let files = [
        ("Dockerfile", "FROM busybox\n"),
        (
            "docker-bake.hcl",
            "target \"default\" {\n  platforms = [\"local\"]\n  tags = [\"local:3\"]\n}\n",
        ),
    ];
    let context = engine.scratch_with("local", &files);
    let client = whelk(&engine);
    let env = [("DOCKER_DEFAULT_PLATFORM", "local")];
    client.with_env(&env).built(&context, &["-t", "local:1"]);
    let own = engine.image("local:1")["Architecture"].clone();
    // What is named twice is one platform.
    let named = format!("local,linux/{}", own.as_str().unwrap());
    client.built(&context, &["--platform", &named, "-t", "local:2"]);
    let bake = client.in_directory(&context);
    bake.run(&["bake"]).exits(0);
    assert_eq!(engine.image("local:2")["Architecture"], own);
    assert_eq!(engine.image("local:3")["Architecture"], own);
    let set = [
        "bake",
        "--set",
        "*.platform=local",
        "--set",
        "*.tags=local:4",
    ];
    bake.run(&set).exits(0);
    assert_eq!(engine.image("local:4")["Architecture"], own);
}

#[test]
fn limits_of_memory_hold_for_steps() {
    let engine = Engine::start();
    let context = engine.dockerfile(
        "greedy",
        "FROM busybox\nRUN x=0123456789; while :; do x=$x$x; done\n",
    );
    whelk(&engine).build_fails(&context, &["-m", "32m"], &["exit code: 137"]);
    whelk(&engine).build_fails(&context, &["--squash"], &["--squash: "]);
}

#[test]
fn a_push_without_a_name_is_refused_before_anything_is_built() {
    let engine = Engine::start();
    let context = engine.dockerfile("push", "FROM busybox\nRUN echo was-executed\n");
    let shown = whelk(&engine).build_fails(&context, &["--push"], &["tag is needed"]);
    assert!(!shown.contains("was-executed"), "{shown}");
    // Nobody listens there.
    let output = "type=image,push=1,name=127.0.0.1:9/x";
    let expected = "failed to push 127.0.0.1:9/x:latest: ";
    whelk(&engine).build_fails(&context, &["-o", output], &[expected]);
}

/// Runs `whelk build` as a user who is not root.
fn as_user(engine: &Engine, args: &[&str]) -> std::process::Output {
    let sockets = engine.socket();
    fs::set_permissions(&sockets, fs::Permissions::from_mode(0o666)).unwrap();
    let program = Program::Whelk.path();
    Command::new("setpriv")
        .args(["--reuid", "1000", "--regid", "1000", "--clear-groups"])
        .arg(program)
        .args(["--host", &format!("unix://{}", sockets.display()), "build"])
        .args(args)
        .env("DOCKER_CONFIG", "/nonexistent")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Returns what a directory has that no user wants there.
fn staged(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.contains("whelk-")).collect()
}

#[test]
fn directories_that_their_owner_may_not_write_to_are_received() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox AS made\nARG TEXT\nRUN mkdir -p /out/closed/below && echo $TEXT > /out/closed/below/file && chmod 555 /out/closed/below /out/closed\n\
        FROM scratch\nCOPY --from=made /out /\n";
    // A user can reach it.
    let place = whelk_tests::Scratch::new("outputs-of-users");
    let context = place.directory("context");
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    let out = place.directory("out");
    std::os::unix::fs::chown(&out, Some(1000), Some(1000)).unwrap();
    for text in ["one", "two"] {
        let argument = format!("TEXT={text}");
        let args = [
            "--build-arg",
            &argument,
            "-o",
            out.to_str().unwrap(),
            context.to_str().unwrap(),
        ];
        let output = as_user(&engine, &args);
        let shown = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{shown}");
        let file = out.join("closed/below/file");
        assert_eq!(fs::read_to_string(&file).unwrap().trim(), text);
        for directory in ["closed", "closed/below"] {
            let found = fs::metadata(out.join(directory)).unwrap();
            assert_eq!((found.mode() & 0o7777, found.uid()), (0o555, 1000));
        }
        assert_eq!(staged(&out), [""; 0]);
    }
    // As does an archive of the context.
    let archive = Tar::new()
        .file("Dockerfile", "FROM scratch\nCOPY closed /closed\n")
        .file("closed/file", "text")
        .finish();
    let mut client = Command::new("setpriv")
        .args(["--reuid", "1000", "--regid", "1000", "--clear-groups"])
        .arg(Program::Whelk.path())
        .args([
            "--host",
            &format!("unix://{}", engine.socket().display()),
            "build",
            "-",
        ])
        .env("TMPDIR", &*place)
        .env("DOCKER_CONFIG", "/nonexistent")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    fs::set_permissions(&*place, fs::Permissions::from_mode(0o777)).unwrap();
    client.stdin.take().unwrap().write_all(&archive).unwrap();
    let output = client.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(staged(&place), [""; 0]);
    // What is written is for others, too.
    let archive = place.join("out.tar");
    whelk(&engine).built(
        &context,
        &["-o", &format!("type=tar,dest={}", archive.display())],
    );
    assert_eq!(fs::metadata(&archive).unwrap().mode() & 0o777, 0o644);
}

#[test]
fn signals_end_a_build_in_order_wherever_it_waits() {
    let engine = Engine::start();
    let context = engine.dockerfile("large", "FROM busybox\nCOPY large /large\n");
    fs::write(context.join("large"), noise(8 << 20)).unwrap();
    let text = context.to_str().unwrap();
    let client = engine.cli(Program::Whelk);
    // A pipe that nobody reads from.
    let pipe = engine.scratch("pipe").join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let output = format!("type=tar,dest={}", pipe.display());
    let mut running = client.spawn(&["build", "-o", &output, text]);
    let reader = fs::File::options()
        .read(true)
        .write(true)
        .open(&pipe)
        .unwrap();
    eventually("the archive to be sent", || {
        running
            .errors_so_far()
            .contains("sending tarball")
            .then_some(())
    });
    running.signal(Signal::TERM);
    assert_eq!(running.finish().code, 143);
    drop(reader);
    // A secret that nobody writes.
    let secret = format!("id=s,src={}", pipe.display());
    let waits = "FROM busybox\nRUN --mount=type=secret,id=s cat /run/secrets/s\n";
    let waits = engine.dockerfile("secret", waits);
    let mut running = client.spawn(&["build", "--secret", &secret, waits.to_str().unwrap()]);
    eventually("the step to wait for the secret", || {
        running.errors_so_far().contains("[2/2] RUN").then_some(())
    });
    running.signal(Signal::INT);
    assert_eq!(running.finish().code, 130);
    // An archive that does not end.
    let temporary = engine.scratch("temporary");
    let env = [("TMPDIR", temporary.to_str().unwrap())];
    let mut running = client.with_env(&env).spawn(&["build", "-"]);
    let archive = Tar::new()
        .file("Dockerfile", "FROM busybox\n")
        .file("large", "x".repeat(1 << 20))
        .finish();
    running.write(&archive[..archive.len() / 2]);
    eventually("it is being unpacked", || {
        (!staged(&temporary).is_empty()).then_some(())
    });
    running.signal(Signal::INT);
    // Then it is closed, which is another reason to end.
    eventually("the client to end", || {
        (!running.is_running()).then_some(())
    });
    assert_eq!(running.finish().code, 130);
    assert_eq!(staged(&temporary), [""; 0]);
    // Files that are being received.
    let out = engine.scratch("out");
    let many = "FROM busybox AS made\nRUN mkdir /m; for i in $(seq 3000); do echo $i > /m/$i; done\nFROM scratch\nCOPY --from=made /m /\n";
    let many = engine.dockerfile("many", many);
    let args = ["build", "-o", out.to_str().unwrap(), many.to_str().unwrap()];
    let mut running = client.spawn(&args);
    eventually("files to be received", || {
        (!staged(&out).is_empty() || out.join("1").exists()).then_some(())
    });
    running.signal(Signal::INT);
    let _ = running.finish();
    assert_eq!(staged(&out), [""; 0]);
    engine.has_no_builds();
    let trash = engine.root().join("trash");
    eventually("the trash to be emptied", || {
        (fs::read_dir(&trash).unwrap().count() == 0).then_some(())
    });
}

fn history(engine: &Engine, args: &[&str]) -> Output {
    whelk(engine).run(&[&["buildx", "history"], args].concat())
}

/// Builds something, and something else that fails.
fn builds_for_the_history(engine: &Engine) {
    let good = "FROM busybox\nRUN echo of-the-step > /x; cat /x\n";
    let good = engine.dockerfile("good", good);
    let args = ["-t", "made", "--label", "a=b", "--build-arg", "C=d"];
    whelk(engine).built(&good, &args);
    let bad = "FROM busybox AS bad\nRUN echo before; exit 7\n";
    let bad = engine.dockerfile("bad", bad);
    whelk(engine).build_fails(&bad, &["--target", "bad"], &["exit code: 7"]);
}

/// Returns the names and the states in a list of JSON.
fn listed(text: &str) -> Vec<(String, String)> {
    let lines = text.lines();
    let lines = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    let field = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    lines
        .map(|line| (field(&line, "ref"), field(&line, "status")))
        .collect()
}

fn name(full: &str) -> &str {
    full.rsplit('/').next().unwrap()
}

#[test]
fn the_history_is_shown() {
    let engine = Engine::start();
    builds_for_the_history(&engine);
    let history = |args: &[&str]| history(&engine, args);
    let theirs = |args: &[&str]| {
        let args = [&["buildx", "history"], args].concat();
        docker(&engine).run(&args).ok()
    };
    // As Docker's client sees it.
    let own = listed(&history(&["ls", "--format", "json"]).ok());
    let json = theirs(&["ls", "--format", "json", "--no-trunc"]);
    assert_eq!(own, listed(&json));
    let states: Vec<&str> = own.iter().map(|(_, state)| &**state).collect();
    assert_eq!(states, ["Error", "Completed"]);
    let (failed, made) = (name(&own[0].0), name(&own[1].0));
    let table = history(&["ls", "--builder", "default"]).ok();
    shows(&table, &["BUILD ID", made, "Completed", "Error"]);
    let filter = ["--filter", "status=error", "--format", "{{.Ref}} {{.Name}}"];
    let found = history(&[&["ls"], &filter[..]].concat()).ok();
    assert_eq!(found, format!("{failed} bad (bad)"));
    let both = ["ls", "--filter", "status=error", "--filter"];
    let of_both = |name: &str| {
        let name = format!("ref={name}");
        let args = [&both[..], &[name.as_str(), "--format", "{{.Ref}}"]].concat();
        history(&args).ok()
    };
    assert_eq!(of_both(&failed[2..8]), failed);
    assert_eq!(of_both(made), "");
    let unknown = history(&["ls", "--filter", "foo=bar"]).err();
    shows(&unknown, &["unsupported filter \"foo=bar\""]);
    let logs = history(&["logs", "^1"]);
    logs.ok();
    let expected = [
        "RUN echo of-the-step",
        " of-the-step\n",
        "exporting to image",
    ];
    shows(&logs.err(), &expected);
    let inspected = history(&["inspect", &made[..8]]).ok();
    shows(
        &inspected,
        &["Completed", "BUILD ARG", "C ", "LABEL", "a ", made],
    );
    let of_failed = history(&["inspect"]).ok();
    let name = format!("Ref:             {failed}\n");
    shows(&of_failed, &["Error: ", "exit code: 7", &name]);
    shows(
        &of_failed,
        &["Dockerfile:2\n", ">>> RUN echo before; exit 7"],
    );
    let last = "Logs:\n> => [2/2] RUN echo before; exit 7:\n> before\n";
    shows(&of_failed, &["Name:            bad (bad)\n", last]);
    let json = ["inspect", "--format", "json", made];
    let own: Value = serde_json::from_str(&history(&json).ok()).unwrap();
    let docker: Value = serde_json::from_str(&theirs(&json)).unwrap();
    for field in [
        "Ref",
        "Name",
        "Context",
        "Dockerfile",
        "Materials",
        "Status",
        "NumTotalSteps",
        "NumCompletedSteps",
        "BuildArgs",
        "Labels",
        "Config",
        "Attachments",
    ] {
        assert_eq!(own[field], docker[field], "{field}");
    }
    let format = ["inspect", "--format", "{{.Status}}", made];
    assert_eq!(history(&format).ok(), "completed");
    let digest = own["Attachments"][0]["Digest"].as_str().unwrap();
    let attachment = history(&["inspect", "attachment", made, digest]).ok();
    shows(&attachment, &["diff_ids"]);
    let of_type = |kind: &'static str| ["inspect", "attachment", "--type", kind, made];
    let provenance = history(&of_type("provenance")).ok();
    shows(&provenance, &["buildType", "materials"]);
    assert_eq!(provenance, theirs(&of_type("provenance")));
    let none = history(&of_type("sbom"));
    assert_ne!(none.code, 0);
    shows(&none.err(), &["no matching attachment found"]);
    let none = history(&["inspect", "attachment", made]);
    shows(
        &none.err(),
        &["at least one of --type, --platform or DIGEST"],
    );
}

#[test]
fn builds_are_named_after_their_directories_by_both_clients() {
    let engine = Engine::start();
    let web = engine.dockerfile("web", "FROM busybox AS base\nFROM base\nRUN true\n");
    fs::copy(web.join("Dockerfile"), web.join("other")).unwrap();
    whelk(&engine).built(&web, &[]);
    whelk(&engine).built(&web, &["--target", "base"]);
    let other = web.join("other");
    whelk(&engine).built(&web, &["-f", other.to_str().unwrap()]);
    docker(&engine).built(&web, &[]);
    let expected = ["web", "web/other", "web (base)", "web"];
    let list = ["buildx", "history", "ls", "--format", "{{.Name}}"];
    for cli in [whelk(&engine), docker(&engine)] {
        let shown = cli.run(&list).ok();
        assert_eq!(shown.lines().collect::<Vec<_>>(), expected);
    }
    // From the directory, its paths are short. The engine itself is not told them.
    let shown = whelk(&engine)
        .in_directory(&web)
        .run(&["buildx", "history", "inspect", "^1"]);
    let paths = ["Context:         .\n", "Dockerfile:      other\n"];
    shows(&shown.ok(), &paths);
    let states = engine.docker_config().join("buildx/refs/default/default");
    assert_eq!(fs::read_dir(&states).unwrap().count(), 4);
    history(&engine, &["rm", "--all"]).ok();
    assert_eq!(fs::read_dir(&states).unwrap().count(), 0);
}

#[test]
fn the_history_keeps_no_credentials() {
    let engine = Engine::start();
    let context = engine.dockerfile("app", "FROM busybox\n");
    let proxy = "HTTP_PROXY=http://user:hidden@proxy.example:1";
    let bare = "https_proxy=user:hidden@proxy.example:2";
    whelk(&engine).built(&context, &["--build-arg", proxy, "--build-arg", bare]);
    let own = history(&engine, &["inspect", "--format", "json"]).ok();
    let args = ["buildx", "history", "inspect", "--format", "json"];
    for shown in [own, docker(&engine).run(&args).ok()] {
        assert!(!shown.contains("hidden"), "{shown}");
        shows(&shown, &["http://proxy.example:1", "proxy.example:2"]);
    }
}

#[test]
fn records_of_builds_are_exported_and_removed() {
    let engine = Engine::start();
    builds_for_the_history(&engine);
    let history = |args: &[&str]| history(&engine, args);
    let all = listed(&history(&["ls", "--format", "json"]).ok());
    let made = name(&all[1].0);
    let file = engine.scratch("export").join("out.dockerbuild");
    history(&["export", "-o", file.to_str().unwrap(), made]).ok();
    // Links, modes and pipes stay.
    let link = file.with_file_name("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    history(&["export", "-o", link.to_str().unwrap(), made]).ok();
    assert!(link.is_symlink());
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let pipe = file.with_file_name("pipe");
    let made_pipe = Command::new("mkfifo").arg(&pipe).status();
    assert!(made_pipe.unwrap().success());
    let reader = fs::File::options().read(true).write(true).open(&pipe);
    let _reader = reader.unwrap();
    history(&["export", "-o", pipe.to_str().unwrap(), made]).ok();
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());
    let unpacked = engine.scratch("unpacked");
    let mut tar = Command::new("tar");
    let tar = tar.arg("-xzf").arg(&file).arg("-C").arg(&unpacked);
    assert!(tar.status().unwrap().success());
    let blob = |descriptor: &Value| {
        let path = descriptor["digest"].as_str().unwrap().replace(':', "/");
        unpacked.join("blobs").join(path)
    };
    let index = json_file(&unpacked.join("index.json"));
    let manifest = json_file(&blob(&index["manifests"][0]));
    assert_eq!(json_file(&blob(&manifest["config"]))["Ref"], made);
    let layers = manifest["layers"].as_array().unwrap();
    assert!(layers.len() >= 2, "{manifest}");
    for layer in layers {
        let digest = images::sha256(&fs::read(blob(layer)).unwrap());
        assert_eq!(layer["digest"], format!("sha256:{digest}"));
    }
    for args in [
        &["logs", "none"][..],
        &["inspect", "^9"],
        &["rm"],
        &["rm", "--all", "x"],
        &["export", "none"],
        &["ls", "--builder", "other"],
    ] {
        assert_ne!(history(args).code, 0, "{args:?}");
    }
    let import = history(&["import"]).err();
    shows(&import, &["buildx history import: not available"]);
    assert_eq!(history(&["rm", made]).ok(), made);
    history(&["rm", "--all"]).ok();
    assert_eq!(history(&["ls", "--format", "{{.Ref}}"]).ok(), "");
}

#[test]
fn steps_that_fail_and_other_stages_are_explained() {
    let engine = Engine::start();
    let dockerfile = |text: &str| {
        format!(
            "FROM busybox AS a\nRUN echo {text} > /x\nFROM busybox\nCOPY --from=a /x /x\nRUN exit 3\n"
        )
    };
    let context = engine.dockerfile("failing", &dockerfile("one"));
    let explained = |expected: &[&str]| {
        whelk(&engine).build_fails(&context, &["--explain"], expected);
    };
    explained(&["RUN exit 3: it was not executed before by whelk build or bake"]);
    explained(&["RUN exit 3: it failed the last time"]);
    fs::write(context.join("Dockerfile"), dockerfile("two")).unwrap();
    explained(&[
        "RUN echo two > /x: the instruction was RUN echo one > /x",
        "COPY --from=a /x /x: the result of [a 2/2] is another one",
    ]);
    // What has no place is not known again.
    let client = engine.cli(Program::Whelk);
    let told = client.feed(&["build", "--explain", "-"], b"FROM busybox\nRUN true\n");
    told.ok();
    shows(
        &told.err(),
        &["WARNING: --explain: without the path of a context"],
    );
    assert!(!told.err().contains("Not cached"), "{}", told.err());
}

#[test]
fn the_shell_of_a_failed_step_has_its_network_and_limits() {
    let engine = Engine::start();
    engine.serve_on_network();
    let context = engine.dockerfile("shell", "FROM busybox\nRUN exit 3\n");
    let args = [
        "build",
        "--network",
        "mine",
        "--add-host",
        "other:1.2.3.4",
        "--memory=64m",
        "--memory-swap=64m",
        "--cpu-quota=50000",
        "--cpu-period=100000",
        "--cpuset-cpus=0",
        "--on-error=shell",
        context.to_str().unwrap(),
    ];
    // Files of cgroups of both versions.
    let files = "cpu.max cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us memory.max memory/memory.limit_in_bytes";
    let script = format!(
        "wget -q -O - http://server/passwd | head -1; grep other /etc/hosts\n\
         cd /sys/fs/cgroup; echo $(cat {files} 2>/dev/null) $(nproc)\n"
    );
    let output = whelk(&engine).feed(&args, script.as_bytes());
    assert_eq!(output.code, 1);
    let expected = ["root:", "1.2.3.4\tother", "50000 100000 67108864 1\n"];
    shows(&output.out(), &expected);
    engine.end_server();
}
