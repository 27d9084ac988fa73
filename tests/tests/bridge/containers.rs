//! Containers of frontends (`NewContainer`, `ExecProcess`, `ReleaseContainer`).

use serde_json::{Value, json};
use whelk_buildkit::grpc::{Code, Status};
use whelk_buildkit::pb::Unused;
use whelk_buildkit::pb::control::SolveRequest;
use whelk_buildkit::pb::gateway::exec::Input;
use whelk_buildkit::pb::gateway::{
    EvaluateRequest, FdMessage, InitMessage, NewContainerRequest, ResizeMessage, SignalMessage,
};
use whelk_buildkit::pb::session::{GetSecretRequest, GetSecretResponse};
use whelk_llb::pb::file_action::Action;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{
    CacheOpt, FileAction, FileActionCopy, FileOp, HostIp, Meta, Mount, MountType, Platform,
    SecretEnv, SecretOpt, WorkerConstraints,
};
use whelk_tests::grpc::{Bridge, Ended, Grpc, Processes};
use whelk_tests::{Engine, eventually, processes};

use crate::{Made, fails, make_file, run, script};

const SECRET: &str = "moby.buildkit.secrets.v1.Secrets/GetSecret";

fn bind(dest: &str, reference: &str) -> Mount {
    Mount {
        dest: dest.into(),
        result_id: reference.into(),
        ..Mount::default()
    }
}

/// Returns a reference to busybox.
fn busybox(bridge: &Bridge) -> String {
    let mut made = Made::default();
    let base = made.busybox();
    bridge.solve(&made.definition(base)).unwrap().id
}

fn output(text: &str) -> Ended {
    Ended {
        stdout: text.into(),
        ..Ended::default()
    }
}

fn exit(code: u32) -> Ended {
    Ended {
        code,
        error: Some(format!("exit code: {code}")),
        ..Ended::default()
    }
}

fn signal(name: &str) -> Input {
    Input::Signal(SignalMessage { name: name.into() })
}

fn init(container: &str, command: &[&str]) -> InitMessage {
    let args = command.iter().map(|&word| word.to_owned());
    InitMessage {
        container_id: container.into(),
        meta: Some(Meta {
            args: args.collect(),
            ..Meta::default()
        }),
        fds: vec![1, 2],
        ..InitMessage::default()
    }
}

/// Begins a process that only waits, as the first one of a container. Nothing else has this number.
fn sleeping(call: &mut Processes, container: &str, seconds: &str) -> i32 {
    call.begin(
        container,
        &format!("{container}-first"),
        &["sleep", seconds],
        &[],
    );
    let command = ["sleep", seconds];
    eventually("the first process", || processes::with_command(&command))
}

#[test]
fn processes_have_streams_and_exit_codes() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("streams", SolveRequest::default());
    bridge
        .container("c", &[bind("/", &busybox(&bridge))])
        .unwrap();
    let mut call = bridge.processes();
    // The first process reads what the further ones write to a file.
    call.begin("c", "first", &["cat"], &[0, 1]);
    call.write("first", "one\n", false);
    call.shows("first", "one\n");
    assert_eq!(call.run("c", "a", &["echo", "text"]), output("text\n"));
    let both = call.run("c", "b", &["sh", "-c", "echo a; echo b >&2; exit 7"]);
    let expected = Ended {
        stdout: "a\n".into(),
        stderr: "b\n".into(),
        ..exit(7)
    };
    assert_eq!(both, expected);
    // Only the streams that are asked for.
    call.begin("c", "c", &["sh", "-c", "echo a; echo b >&2"], &[2]);
    let expected = Ended {
        stderr: "b\n".into(),
        ..Ended::default()
    };
    assert_eq!(call.wait("c").unwrap(), expected);
    call.begin("c", "d", &["sh", "-c", "cat; echo end"], &[0, 1]);
    call.write("d", "x", false);
    call.write("d", "y\n", true);
    assert_eq!(call.wait("d").unwrap(), output("xy\nend\n"));
    // More than any buffer holds, both ways.
    let long = "0123456789abcdef".repeat(64 << 10);
    call.begin("c", "e", &["cat"], &[0, 1]);
    for piece in long.as_bytes().chunks(64 << 10) {
        call.write("e", str::from_utf8(piece).unwrap(), false);
    }
    call.write("e", "", true);
    assert!(call.wait("e").unwrap().stdout == long);
    let absent = call.run("c", "f", &["/no/such/program"]);
    assert_eq!(absent.code, 255, "{absent:?}");
    assert!(absent.error.unwrap().contains("/no/such/program"));
    call.write("first", "two\n", true);
    assert_eq!(call.wait("first").unwrap(), output("two\n"));
    // It has ended with its first process.
    let late = call.run("c", "late", &["true"]);
    assert!(late.error.unwrap().contains("has ended"));
    bridge.release("c").unwrap();
    call.close();
    call.end().unwrap();
    bridge.finish(None).unwrap();
}

#[test]
fn files_are_those_of_references() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    grpc.session(&engine, "client", &[SECRET], |mut call| async move {
        if call.method != SECRET {
            return Err(Status::unimplemented("only secrets"));
        }
        let request: GetSecretRequest = call.request().await?;
        if request.id == "none" {
            return Err(Status::not_found("no such secret"));
        }
        let data = format!("of {}", request.id).into_bytes();
        call.responses.send(&GetSecretResponse { data }).await
    });
    let request = SolveRequest {
        session: "client".into(),
        ..SolveRequest::default()
    };
    let bridge = grpc.build("files", request);
    let root = bridge.solve(&run("echo root > /made")).unwrap().id;
    let other = run("mkdir /sub; printf other > /sub/file");
    let other = bridge.solve(&other).unwrap().id;
    let secret = |id: &str, dest: &str| Mount {
        dest: dest.into(),
        mount_type: MountType::Secret.into(),
        secret_opt: Some(SecretOpt {
            id: id.into(),
            ..SecretOpt::default()
        }),
        ..Mount::default()
    };
    let mounts = [
        bind("/", &root),
        Mount {
            selector: "/sub".into(),
            readonly: true,
            ..bind("/read", &other)
        },
        bind("/write", &other),
        Mount {
            dest: "/tmpfs".into(),
            mount_type: MountType::Tmpfs.into(),
            ..Mount::default()
        },
        Mount {
            dest: "/cache".into(),
            mount_type: MountType::Cache.into(),
            cache_opt: Some(CacheOpt {
                id: "of-containers".into(),
                sharing: 0,
            }),
            ..Mount::default()
        },
        secret("file", "/secret"),
    ];
    bridge.container("c", &mounts).unwrap();
    let mut call = bridge.processes();
    call.begin("c", "first", &["cat"], &[0]);
    let mut sh = |name: &str, text: &str| {
        let ended = call.run("c", name, &["sh", "-c", text]);
        format!("{}{}", ended.stdout, ended.stderr)
    };
    let shown = sh("a", "cat /made /read/file /write/sub/file /secret");
    assert_eq!(shown, "root\notherotherof file");
    assert!(sh("b", "echo x > /read/file").contains("Read-only"));
    sh(
        "c",
        "echo new > /write/sub/file; echo x > /made; touch /tmpfs/x /cache/x; mkdir /new",
    );
    assert_eq!(
        sh("d", "cat /write/sub/file; ls /tmpfs /cache; ls -d /new"),
        "new\n/cache:\nx\n\n/tmpfs:\nx\n/new\n"
    );
    let with_secret = InitMessage {
        secretenv: vec![SecretEnv {
            id: "variable".into(),
            name: "V".into(),
            optional: false,
        }],
        ..init("c", &["sh", "-c", "echo $V"])
    };
    call.send("e", Input::Init(with_secret.clone()));
    assert_eq!(call.wait("e").unwrap(), output("of variable\n"));
    // A further process has no variables of others.
    assert_eq!(call.run("c", "f", &["sh", "-c", "echo $V"]), output("\n"));
    let mut without = with_secret;
    without.secretenv[0].id = "none".into();
    call.send("g", Input::Init(without));
    assert!(
        call.wait("g")
            .unwrap()
            .error
            .unwrap()
            .contains("secret none")
    );
    drop(call);
    bridge.release("c").unwrap_or_default();
    // What was written is gone, but for the cache.
    bridge.container("again", &mounts).unwrap();
    let mut call = bridge.processes();
    let shown = call.run(
        "again",
        "a",
        &["sh", "-c", "cat /made /write/sub/file; ls /cache /tmpfs"],
    );
    assert_eq!(shown.stdout, "root\nother/cache:\nx\n\n/tmpfs:\n");
    assert_eq!(bridge.read(&other, "/sub/file").unwrap(), "other");
    let refused = bridge.container("none", &[bind("/", &root), secret("none", "/s")]);
    fails(refused, Code::Unknown, "secret none");
    bridge.finish(None).unwrap();
}

/// Returns the detail of an error with the operation that has failed.
#[track_caller]
fn failure(status: &Status) -> Value {
    let mut details = status.details.iter();
    let detail = details.find(|detail| detail.type_url.ends_with("errdefs.Solve+json"));
    serde_json::from_slice(&detail.expect("the operation").value).unwrap()
}

/// Returns the words of a list.
fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap().iter();
    list.map(|text| text.as_str().unwrap().to_owned()).collect()
}

#[test]
fn failed_processes_can_be_looked_at() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("failed", SolveRequest::default());
    let mut made = Made::default();
    let base = made.busybox();
    let other = made.file(make_file("/file", "other"), None);
    let text =
        "echo a > /made; echo b > /rw/made; echo c > /new/made; echo d > /tmpfs/made; exit 3";
    let failing = || {
        let mut exec = script(text);
        let tmpfs = MountType::Tmpfs.into();
        for (dest, input, readonly, mount_type) in [
            ("/ro", 1, true, 0),
            ("/rw", 1, false, 0),
            ("/new", -1, false, 0),
            ("/tmpfs", -1, false, tmpfs),
        ] {
            exec.mounts.push(Mount {
                dest: dest.into(),
                input,
                output: -1,
                readonly,
                mount_type,
                ..Mount::default()
            });
        }
        exec
    };
    let result = made.exec(failing(), &[base, other]);
    let reference = bridge.solve(&made.definition(result)).unwrap().id;
    let evaluate = EvaluateRequest {
        r#ref: reference.clone(),
    };
    let status = bridge.call::<Unused>("Evaluate", &evaluate).unwrap_err();
    assert!(status.message.contains("exit code: 3"), "{status}");
    let failed = failure(&status);
    let exec = &failed["op"]["exec"];
    assert_eq!(exec["meta"]["args"][2], text);
    assert_eq!(exec["mounts"][1]["dest"], "/ro");
    let (inputs, results) = (texts(&failed["inputIDs"]), texts(&failed["mountIDs"]));
    let is_named = |names: &[String]| {
        names
            .iter()
            .map(|name| !name.is_empty())
            .collect::<Vec<_>>()
    };
    assert_eq!(is_named(&inputs), [true, true, true, false, false]);
    assert_eq!(is_named(&results), [true, true, true, true, false]);
    // The same names another time.
    let again = bridge.read(&reference, "/made").unwrap_err();
    assert_eq!(failure(&again), failed);
    let places = ["/", "/ro", "/rw", "/new"];
    let show = |container: &str, names: &[String]| {
        let pairs = places
            .iter()
            .zip(names)
            .filter(|(_, name)| !name.is_empty());
        let mounts: Vec<Mount> = pairs.map(|(place, name)| bind(place, name)).collect();
        bridge.container(container, &mounts).unwrap();
        let text = "cat /made /ro/* /rw/* /new/* 2>/dev/null";
        bridge
            .processes()
            .run(container, "first", &["sh", "-c", text])
            .stdout
    };
    assert_eq!(show("after", &results), "a\notherotherb\nc\n");
    assert_eq!(show("before", &inputs), "otherother");
    // They cannot be read without a container, and others have none.
    fails(
        bridge.read(&results[0], "/made"),
        Code::NotFound,
        "no such ref",
    );
    let unknown = results[0].replace("-failed-0", "-failed-7");
    fails(
        bridge.container("none", &[bind("/", &unknown)]),
        Code::NotFound,
        "no such ref",
    );
    let stranger = grpc.build("stranger", SolveRequest::default());
    let refused = stranger.container("c", &[bind("/", &results[0])]);
    fails(refused, Code::NotFound, "no such ref");
    stranger.finish(None).unwrap();
    // With outputs it is the same.
    let mut exec = failing();
    for (index, mount) in exec.mounts.iter_mut().enumerate().take(4) {
        mount.output = i64::try_from(index).unwrap();
    }
    let result = made.exec(exec, &[base, other]);
    let status = bridge.evaluate(&made.definition(result)).unwrap_err();
    let results = texts(&failure(&status)["mountIDs"]);
    assert_eq!(show("outputs", &results), "a\notherotherb\nc\n");
    bridge.finish(None).unwrap();
}

#[test]
fn failed_actions_can_be_looked_at() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("actions", SolveRequest::default());
    let base = busybox(&bridge);
    let mut made = Made::default();
    let other = made.file(make_file("/file", "other"), None);
    let action = |input: i64, secondary_input: i64, action: Action| FileAction {
        input,
        secondary_input,
        output: -1,
        action: Some(action),
    };
    let copy = FileActionCopy {
        src: "/nothing".into(),
        dest: "/none/there".into(),
        mode: -1,
        timestamp: -1,
        ..FileActionCopy::default()
    };
    let mut actions = vec![
        action(-1, -1, make_file("/made", "of an action")),
        action(0, -1, make_file("/first", "first")),
        action(2, -1, make_file("/second", "second")),
        action(3, 1, Action::Copy(copy)),
    ];
    actions[3].output = 0;
    let result = made.add(Kind::File(FileOp { actions }), &[other]);
    let status = bridge.evaluate(&made.definition(result)).unwrap_err();
    let failed = failure(&status);
    assert_eq!(failed["file"]["index"], "3");
    let copy = &failed["op"]["file"]["actions"][3];
    assert_eq!(
        (&copy["copy"]["src"], &copy["secondaryInput"]),
        (&json!("/nothing"), &json!("1"))
    );
    let (inputs, results) = (texts(&failed["inputIDs"]), texts(&failed["mountIDs"]));
    assert_eq!((inputs.len(), results.len()), (1, 4));
    let mounts = [
        bind("/", &base),
        bind("/input", &results[3]),
        bind("/secondary", &results[0]),
        bind("/below", &inputs[0]),
    ];
    bridge.container("c", &mounts).unwrap();
    let text = "cat /input/file /input/first /input/second /secondary/made /below/file; ls /below";
    let shown = bridge.processes().run("c", "first", &["sh", "-c", text]);
    assert_eq!(shown, output("otherfirstsecondof an actionotherfile\n"));
    bridge.finish(None).unwrap();
}

#[test]
fn inputs_in_which_something_is_missing_can_be_looked_at() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("missing", SolveRequest::default());
    let root = busybox(&bridge);
    let mut made = Made::default();
    let (base, other) = (made.busybox(), made.file(make_file("/file", "other"), None));
    let mut exec = script("true");
    exec.mounts.push(Mount {
        dest: "/mount".into(),
        selector: "/nothing".into(),
        input: 1,
        output: -1,
        readonly: true,
        ..Mount::default()
    });
    let copy = FileActionCopy {
        src: "/nothing".into(),
        dest: "/".into(),
        mode: -1,
        timestamp: -1,
        ..FileActionCopy::default()
    };
    let action = FileAction {
        input: 0,
        secondary_input: 1,
        output: 0,
        action: Some(Action::Copy(copy)),
    };
    let actions = vec![action];
    let kinds = [Kind::Exec(exec), Kind::File(FileOp { actions })];
    for (number, kind) in kinds.into_iter().enumerate() {
        let result = made.add(kind, &[base, other]);
        let status = bridge.evaluate(&made.definition(result)).unwrap_err();
        assert!(
            status.message.contains("\"/nothing\": not found"),
            "{status}"
        );
        let failed = failure(&status);
        assert_eq!(failed["cache"]["index"], "1");
        let (inputs, results) = (texts(&failed["inputIDs"]), texts(&failed["mountIDs"]));
        assert_eq!((inputs.len(), results.len()), (1, 0));
        let name = format!("c{number}");
        let mounts = [bind("/", &root), bind("/problem", &inputs[0])];
        bridge.container(&name, &mounts).unwrap();
        let shown = bridge
            .processes()
            .run(&name, "p", &["cat", "/problem/file"]);
        assert_eq!(shown, output("other"));
    }
    bridge.finish(None).unwrap();
}

#[test]
fn settings_of_containers_and_processes_work() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("settings", SolveRequest::default());
    let base = busybox(&bridge);
    let create = |name: &str, platform: Option<Platform>| {
        let request = NewContainerRequest {
            container_id: name.into(),
            mounts: vec![bind("/", &base)],
            network: 2,
            hostname: "some-name".into(),
            extra_hosts: vec![HostIp {
                host: "other".into(),
                ip: "192.0.2.7".into(),
            }],
            platform,
            ..NewContainerRequest::default()
        };
        bridge.call::<Unused>("NewContainer", &request)
    };
    create("c", None).unwrap();
    let mut call = bridge.processes();
    call.begin("c", "first", &["cat"], &[0]);
    let shown = call.run(
        "c",
        "a",
        &[
            "sh",
            "-c",
            "hostname; grep other /etc/hosts; pwd; id -u; ls /sys/class/net",
        ],
    );
    assert_eq!(shown, output("some-name\n192.0.2.7\tother\n/\n0\nlo\n"));
    let mut other = init("c", &["sh", "-c", "pwd; id -u; echo $A; echo $PATH"]);
    other.meta.as_mut().unwrap().cwd = "/tmp".into();
    other.meta.as_mut().unwrap().user = "1000".into();
    other.meta.as_mut().unwrap().env = vec!["A=1".into()];
    call.send("b", Input::Init(other.clone()));
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(
        call.wait("b").unwrap(),
        output(&format!("/tmp\n1000\n1\n{path}\n"))
    );
    other.meta.as_mut().unwrap().cwd = "relative".into();
    call.send("c", Input::Init(other));
    let relative = call.wait("c").unwrap();
    assert!(relative.error.unwrap().contains("not an absolute path"));
    // Confined as a RUN is, the first process as the further ones.
    let status = ["grep", "-E", "CapEff|CapBnd|Seccomp:", "/proc/self/status"];
    let further = call.run("c", "d", &status).stdout;
    create("confined", None).unwrap();
    assert_eq!(call.run("confined", "e", &status).stdout, further);
    assert!(further.contains("CapEff:\t00000000a80425fb"), "{further}");
    // Another system only has another default.
    let windows = Platform {
        os: "windows".into(),
        ..Platform::default()
    };
    create("windows", Some(windows)).unwrap();
    let shown = call.run("windows", "f", &["/bin/sh", "-c", "echo \"$PATH\""]);
    assert_eq!(
        shown,
        output(
            "c:\\Windows\\System32;c:\\Windows;C:\\Windows\\System32\\WindowsPowerShell\\v1.0\n"
        )
    );
    bridge.finish(None).unwrap();
}

#[test]
fn terminals_have_a_size() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("terminals", SolveRequest::default());
    bridge
        .container("c", &[bind("/", &busybox(&bridge))])
        .unwrap();
    let mut call = bridge.processes();
    for name in ["first", "further"] {
        let terminal = InitMessage {
            tty: true,
            fds: vec![0, 1, 2],
            ..init("c", &["sh"])
        };
        call.send(name, Input::Init(terminal));
        call.write(name, "echo te''xt $TERM\n", false);
        call.shows(name, "text xterm");
        let size = ResizeMessage { rows: 33, cols: 99 };
        call.send(name, Input::Resize(size));
        call.write(name, "stty size\n", false);
        call.shows(name, "33 99");
    }
    for name in ["further", "first"] {
        call.write(name, "exit 5\n", false);
        assert_eq!(call.wait(name).unwrap().code, 5);
    }
    bridge.finish(None).unwrap();
}

#[test]
fn signals_reach_processes() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("signals", SolveRequest::default());
    bridge
        .container("c", &[bind("/", &busybox(&bridge))])
        .unwrap();
    let mut call = bridge.processes();
    let trap = |code: u32| format!("trap 'kill $!; exit {code}' HUP; sleep 60 & echo ready; wait");
    call.begin("c", "first", &["sh", "-c", &trap(99)], &[1]);
    call.shows("first", "ready");
    call.begin("c", "further", &["sh", "-c", &trap(98)], &[1]);
    call.shows("further", "ready");
    call.send("further", signal("HUP"));
    assert_eq!(call.wait("further").unwrap().code, 98);
    call.begin("c", "killed", &["sleep", "60"], &[]);
    call.send("killed", signal("KILL"));
    assert_eq!(call.wait("killed").unwrap(), exit(137));
    // It has ended.
    call.send("killed", signal("KILL"));
    call.write("killed", "", true);
    call.begin("c", "with the first one", &["sleep", "60"], &[]);
    call.send("first", signal("HUP"));
    assert_eq!(call.wait("first").unwrap().code, 99);
    assert_eq!(call.wait("with the first one").unwrap(), exit(137));
    call.send("first", signal("NONSENSE"));
    fails(call.end(), Code::InvalidArgument, "Unknown signal NONSENSE");
    bridge.finish(None).unwrap();
}

#[test]
fn nothing_is_left_of_containers() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("left", SolveRequest::default());
    let base = busybox(&bridge);
    let create = |name: &str| bridge.container(name, &[bind("/", &base)]).unwrap();
    let gone = |pid: i32| {
        eventually("the end of a process", || {
            (!processes::is_alive(pid)).then_some(())
        });
    };
    // Released.
    create("released");
    let mut call = bridge.processes();
    let first = sleeping(&mut call, "released", "4711.1");
    call.begin("released", "further", &["sleep", "4711.2"], &[]);
    let command = ["sleep", "4711.2"];
    let further = eventually("a process", || processes::with_command(&command));
    fails(
        bridge.release("released"),
        Code::Canceled,
        "context canceled",
    );
    assert!(!processes::is_alive(first) && !processes::is_alive(further));
    let killed = call.wait("further").unwrap();
    assert_eq!(killed.error.unwrap(), "exit code: 137: context canceled");
    let killed = call.wait("released-first").unwrap();
    assert_eq!(killed.error.unwrap(), "exit code: 137: context canceled");
    // The call is cancelled.
    create("cancelled");
    let first = sleeping(&mut call, "cancelled", "4711.3");
    drop(call);
    gone(first);
    // Calls are cancelled while their processes start.
    for number in 0..10 {
        let name = format!("starting-{number}");
        create(&name);
        let mut call = bridge.processes();
        call.begin(&name, "first", &["sleep", "4711.8"], &[]);
    }
    // The build ends.
    create("ended");
    let mut call = bridge.processes();
    let first = sleeping(&mut call, "ended", "4711.4");
    eventually("the processes to end", || {
        let command = ["sleep", "4711.8"];
        processes::with_command(&command).is_none().then_some(())
    });
    bridge.finish(None).unwrap();
    gone(first);
    drop(call);
    // The client is gone.
    let bridge = Grpc::connect(&engine).build("gone", SolveRequest::default());
    bridge
        .container("c", &[bind("/", &busybox(&bridge))])
        .unwrap();
    let mut call = bridge.processes();
    let first = sleeping(&mut call, "c", "4711.5");
    drop((call, bridge));
    gone(first);
    // The engine is killed.
    let bridge = Grpc::connect(&engine).build("killed", SolveRequest::default());
    bridge
        .container("c", &[bind("/", &busybox(&bridge))])
        .unwrap();
    let mut call = bridge.processes();
    let first = sleeping(&mut call, "c", "4711.6");
    call.begin("c", "further", &["sleep", "4711.7"], &[]);
    let command = ["sleep", "4711.7"];
    let further = eventually("a process", || processes::with_command(&command));
    engine.kill9();
    engine.restart();
    gone(first);
    gone(further);
    drop((call, bridge));
    engine.has_no_builds();
    let workloads = engine.run().join("workloads");
    eventually("no workloads", || {
        let left = std::fs::read_dir(&workloads).map_or(0, Iterator::count);
        (left == 0).then_some(())
    });
}

#[test]
fn rights_are_those_of_the_build() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let with_network = |name: &str, reference: &str| NewContainerRequest {
        container_id: name.into(),
        mounts: vec![bind("/", reference)],
        network: 1,
        ..NewContainerRequest::default()
    };
    let bridge = grpc.build("none", SolveRequest::default());
    let base = busybox(&bridge);
    bridge
        .call::<Unused>("NewContainer", &with_network("host", &base))
        .unwrap();
    let mut call = bridge.processes();
    let refused = call.run("host", "a", &["true"]);
    assert_eq!(refused.code, 255);
    assert!(
        refused
            .error
            .unwrap()
            .contains("network.host is not allowed")
    );
    bridge.container("c", &[bind("/", &base)]).unwrap();
    let insecure = InitMessage {
        security: 1,
        ..init("c", &["true"])
    };
    call.send("b", Input::Init(insecure.clone()));
    let refused = call.wait("b").unwrap().error.unwrap();
    assert!(
        refused.contains("security.insecure is not allowed"),
        "{refused}"
    );
    // As a further process neither; the first one is still to come.
    call.begin("c", "first", &["cat"], &[0]);
    call.send("d", Input::Init(insecure));
    let refused = call.wait("d").unwrap().error.unwrap();
    assert!(
        refused.contains("security.insecure is not allowed"),
        "{refused}"
    );
    bridge.finish(None).unwrap();
    let request = SolveRequest {
        entitlements: vec!["network.host".into()],
        ..SolveRequest::default()
    };
    let bridge = grpc.build("host", request);
    let request = with_network("host", &busybox(&bridge));
    bridge.call::<Unused>("NewContainer", &request).unwrap();
    let mut call = bridge.processes();
    let seen = call.run("host", "a", &["readlink", "/proc/self/ns/net"]);
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(seen.stdout.trim(), own.to_str().unwrap());
    bridge.finish(None).unwrap();
}

#[test]
fn malformed_messages_are_refused() {
    let engine = Engine::start();
    let grpc = Grpc::connect(&engine);
    let bridge = grpc.build("malformed", SolveRequest::default());
    let base = busybox(&bridge);
    let long = "x".repeat(300);
    for (name, mounts, code, text) in [
        (
            "",
            vec![bind("/", &base)],
            Code::InvalidArgument,
            "ContainerID required",
        ),
        (
            &*long,
            vec![bind("/", &base)],
            Code::InvalidArgument,
            "longer than",
        ),
        ("c", vec![], Code::Unknown, "without a root file system"),
        (
            "c",
            vec![bind("/", "nonsense")],
            Code::NotFound,
            "the mount /: no such ref: nonsense",
        ),
        (
            "c",
            vec![bind("/x", &base)],
            Code::Unknown,
            "without a root file system",
        ),
        (
            "c",
            vec![bind("/", &base); 257],
            Code::Unknown,
            "more than 256 mounts",
        ),
    ] {
        fails(bridge.container(name, &mounts), code, text);
    }
    let refused = |change: fn(&mut NewContainerRequest), code: Code, text: &str| {
        let mut request = NewContainerRequest {
            container_id: "c".into(),
            mounts: vec![bind("/", &base)],
            ..NewContainerRequest::default()
        };
        change(&mut request);
        fails(bridge.call::<Unused>("NewContainer", &request), code, text);
    };
    refused(
        |request| {
            let filter = vec!["some.label".into()];
            request.constraints = Some(WorkerConstraints { filter });
        },
        Code::Unimplemented,
        "the constraint some.label of a container",
    );
    refused(
        |request| {
            request.extra_hosts = vec![HostIp {
                host: "other".into(),
                ip: "nonsense".into(),
            }];
        },
        Code::InvalidArgument,
        "invalid address \"nonsense\"",
    );
    fails(
        bridge.release("c"),
        Code::Unknown,
        "container details for c not found",
    );
    bridge.container("c", &[bind("/", &base)]).unwrap();
    fails(
        bridge.container("c", &[bind("/", &base)]),
        Code::AlreadyExists,
        "Container c already exists",
    );
    // Each ends its call, and the processes of that.
    let file = |fd: u32| {
        let data = b"x".to_vec();
        Input::File(FdMessage {
            fd,
            eof: false,
            data,
        })
    };
    let size = || Input::Resize(ResizeMessage { rows: 1, cols: 1 });
    let with_fd = || {
        let fds = vec![3];
        Input::Init(InitMessage {
            fds,
            ..init("c", &["true"])
        })
    };
    let cases: [(&str, Input, Code, &str); 9] = [
        ("", size(), Code::InvalidArgument, "ProcessID required"),
        (&long, size(), Code::InvalidArgument, "longer than"),
        (
            "none",
            size(),
            Code::NotFound,
            "IO for process \"none\" not found",
        ),
        ("none", signal("HUP"), Code::NotFound, "not found"),
        ("none", file(0), Code::NotFound, "not found"),
        (
            "none",
            Input::Done(Unused {}),
            Code::InvalidArgument,
            "unexpected message",
        ),
        (
            "none",
            with_fd(),
            Code::InvalidArgument,
            "fd 3 of a process",
        ),
        (
            "none",
            Input::Init(init("nonsense", &["true"])),
            Code::NotFound,
            "container \"nonsense\" previously released or not created",
        ),
        (
            "none",
            Input::Init(InitMessage::default()),
            Code::NotFound,
            "not created",
        ),
    ];
    for (process, input, code, text) in cases {
        let mut call = bridge.processes();
        call.send(process, input);
        fails(call.end(), code, text);
    }
    let mut call = bridge.processes();
    assert!(
        call.run("c", "a", &[])
            .error
            .unwrap()
            .contains("without a command")
    );
    call.begin("c", "first", &["cat"], &[0]);
    call.begin("c", "first", &["cat"], &[0]);
    fails(
        call.end(),
        Code::AlreadyExists,
        "Process first already exists",
    );
    for fd in [1, 7] {
        bridge
            .container(&format!("fd-{fd}"), &[bind("/", &base)])
            .unwrap();
        let mut call = bridge.processes();
        call.begin(&format!("fd-{fd}"), "first", &["cat"], &[0, 1]);
        call.send("first", file(fd));
        fails(call.end(), Code::OutOfRange, "unavailable to write");
    }
    // There is a limit of containers.
    let mut created = 0;
    let refused = loop {
        match bridge.container(&format!("many-{created}"), &[bind("/", &base)]) {
            Ok(()) => created += 1,
            refused => break refused,
        }
    };
    fails(
        refused,
        Code::ResourceExhausted,
        "more than 32 containers at a time",
    );
    assert!(created > 20, "{created}");
    bridge.finish(None).unwrap();
}
