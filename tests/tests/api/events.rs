//! Events, and waiting for the states of containers.

use serde_json::{Value, json};
use whelk_tests::builds::PROTOCOLS;
use whelk_tests::{Connection, Engine, Program, escape, eventually, now_nanos};

use super::check;

#[test]
fn builds_create_and_tag_images() {
    let engine = Engine::start();
    let context = engine.dockerfile("made", "FROM busybox\nRUN echo hi > /hello\n");
    for protocol in PROTOCOLS {
        let mut live = engine.events(&format!("filters={}", escape(r#"{"type": ["image"]}"#)));
        let build = || engine.cli(Program::Docker).with_env(protocol);
        build().built(&context, &["-t", "made:1"]);
        assert_eq!(live.until("create"), ["image tag", "image create"]);
        build().built(&context, &[]);
        assert_eq!(live.until("create"), ["image create"]);
    }
}

#[test]
fn events_of_a_container_are_in_order() {
    let engine = Engine::start();
    let stamp = || {
        let now = now_nanos();
        format!("{}.{:09}", now / 1_000_000_000, now % 1_000_000_000)
    };
    let since = stamp();
    for program in [Program::Docker, Program::Whelk] {
        let cli = engine.cli(program);
        let mut live = engine.events(&format!("filters={}", escape(r#"{"type": ["container"]}"#)));
        cli.run(&[
            "create",
            "--network",
            "none",
            "--name",
            "life",
            "--label",
            "k=v",
            "busybox",
            "sleep",
            "600",
        ])
        .ok();
        for command in ["start", "pause", "unpause", "kill"] {
            cli.run(&[command, "life"]).ok();
        }
        engine.await_state("life", "exited");
        cli.run(&["rename", "life", "after"]).ok();
        cli.run(&["rm", "after"]).ok();
        let expected = [
            "create", "start", "pause", "unpause", "kill", "die", "rename", "destroy",
        ]
        .map(|action| format!("container {action}"));
        assert_eq!(live.until("destroy"), expected, "{program:?}");
    }
    engine.docker(&["tag", "busybox", "other:1"]).ok();
    engine.docker(&["rmi", "other:1"]).ok();
    // Up to now: the stream ends at once.
    let query = |filters: &str| {
        engine
            .events(&format!(
                "since={since}&until={}&filters={}",
                stamp(),
                escape(filters)
            ))
            .all()
    };
    assert_eq!(query(r#"{"event": ["die"]}"#), ["container die"; 2]);
    assert_eq!(
        query(r#"{"event": ["create", "destroy"], "label": ["k=v"]}"#).len(),
        4
    );
    assert_eq!(
        query(r#"{"event": {"create": true}, "container": {"life": true}}"#).len(),
        2,
        "the old form"
    );
    assert_eq!(query(r#"{"container": ["nosuch"]}"#), Vec::<String>::new());
    assert_eq!(
        query(r#"{"type": ["image"]}"#),
        ["image tag", "image untag"]
    );
    check(
        &engine,
        "GET",
        "/events?since=20&until=10",
        None,
        400,
        "`since` time (20) cannot be after `until` time (10)",
    );
}

#[test]
fn an_event_has_all_attributes_of_its_object() {
    let engine = Engine::start();
    let mut events = engine.events(&format!("filters={}", escape(r#"{"event": ["die"]}"#)));
    let id = engine
        .cli(Program::Docker)
        .up("dies", &["--label", "k=v"], &["sh", "-c", "exit 9"]);
    let event = events.next_event().unwrap();
    let attributes = &event["Actor"]["Attributes"];
    assert_eq!(
        (
            event["Type"].as_str(),
            event["Action"].as_str(),
            event["Actor"]["ID"].as_str()
        ),
        (Some("container"), Some("die"), Some(id.as_str()))
    );
    let old = ["status", "id", "from"].map(|field| event.get(field));
    assert_eq!(old, [None, None, None], "fields of versions before 1.52");
    assert_eq!(
        (
            attributes["exitCode"].as_str(),
            attributes["name"].as_str(),
            attributes["k"].as_str()
        ),
        (Some("9"), Some("dies"), Some("v"))
    );
    assert_eq!(event["scope"], "local");
    let (seconds, nanos) = (
        event["time"].as_i64().unwrap(),
        event["timeNano"].as_i64().unwrap(),
    );
    assert_eq!(nanos / 1_000_000_000, seconds);
    let text = engine.whelk(&[
        "events",
        "--since",
        &seconds.to_string(),
        "--until",
        "0s",
        "--filter",
        "event=die",
        "--format",
        "{{.Type}} {{.Action}} {{.Actor.Attributes.exitCode}}",
    ]);
    assert_eq!(text.ok(), "container die 9");
}

#[test]
fn wait_supports_three_conditions() {
    let engine = Engine::start();
    let make = |name: &str, remove: bool| {
        engine.create(name, &json!({"Image": "busybox", "Cmd": ["sh", "-c", "read x; exit 5"], "OpenStdin": true, "HostConfig": {"NetworkMode": "none", "AutoRemove": remove}}))
    };
    let start_wait = |name: &str, condition: &str| {
        let mut connection = Connection::open(&engine.socket()).unwrap();
        connection
            .send(
                "POST",
                &format!("/containers/{name}/wait?condition={condition}"),
                &[],
                b"",
            )
            .unwrap();
        // The head comes when the wait has begun.
        assert_eq!(connection.head().unwrap().0, 200, "{condition}");
        connection
    };
    let finish = |mut connection: Connection| {
        let mut body = Vec::new();
        while let Some(piece) = connection.part().unwrap() {
            body.extend(piece);
        }
        serde_json::from_slice::<Value>(&body).unwrap()["StatusCode"].clone()
    };
    make("kept", false);
    assert_eq!(
        engine.api("POST", "/containers/kept/wait?condition=not-running", None),
        (200, json!({"StatusCode": 0})),
        "it does not run"
    );
    let (next, removed) = (
        start_wait("kept", "next-exit"),
        start_wait("kept", "removed"),
    );
    assert_eq!(engine.api("POST", "/containers/kept/start", None).0, 204);
    let running = start_wait("kept", "not-running");
    engine
        .attach("kept", "stream=1&stdin=1", true)
        .write(b"go\n");
    assert_eq!((finish(next), finish(running)), (json!(5), json!(5)));
    assert_eq!(
        engine.api("POST", "/containers/kept/wait", None),
        (200, json!({"StatusCode": 5}))
    );
    assert_eq!(engine.api("DELETE", "/containers/kept", None).0, 204);
    assert_eq!(finish(removed), 5);
    make("gone", true);
    let removed = start_wait("gone", "removed");
    assert_eq!(engine.api("POST", "/containers/gone/start", None).0, 204);
    engine
        .attach("gone", "stream=1&stdin=1", true)
        .write(b"go\n");
    assert_eq!(finish(removed), 5);
    check(
        &engine,
        "POST",
        "/containers/gone/wait",
        None,
        404,
        "No such container: gone",
    );
    make("other", false);
    check(
        &engine,
        "POST",
        "/containers/other/wait?condition=bogus",
        None,
        400,
        "invalid condition: \"bogus\"",
    );
}

#[test]
fn events_are_filtered_by_their_objects() {
    let engine = Engine::start();
    let id = engine.get("/info")["ID"].as_str().unwrap().to_owned();
    let name = engine.get("/info")["Name"].as_str().unwrap().to_owned();
    let cli = engine.cli(Program::Docker);
    cli.run(&["volume", "create", "volume-one"]).ok();
    cli.run(&["network", "create", "--ipv6=false", "network-one"])
        .ok();
    cli.run(&[
        "create",
        "--name",
        "container-one",
        "--network",
        "none",
        "busybox",
        "true",
    ])
    .ok();
    cli.run(&["tag", "busybox", "image-one:1"]).ok();
    let pid = rustix::process::Pid::from_raw(engine.daemon_pid()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    let query = |filters: Value| {
        let until = now_nanos();
        let until = format!("{}.{:09}", until / 1_000_000_000, until % 1_000_000_000);
        let filters = escape(&filters.to_string());
        engine
            .events(&format!("since=1&until={until}&filters={filters}"))
            .all()
    };
    eventually("the reload", || {
        (query(json!({"type": ["daemon"]})) == ["daemon reload"]).then_some(())
    });
    for (filters, expected) in [
        (json!({"daemon": [id]}), vec!["daemon reload"]),
        (json!({"daemon": [name]}), vec!["daemon reload"]),
        (json!({"daemon": ["nosuch"]}), vec![]),
        (json!({"volume": ["volume-one"]}), vec!["volume create"]),
        (json!({"volume": ["volume"]}), vec!["volume create"]),
        (json!({"volume": ["one"]}), vec![]),
        (json!({"network": ["network-"]}), vec!["network create"]),
        (
            json!({"container": ["container-o"]}),
            vec!["container create"],
        ),
        (json!({"container": ["volume-one"]}), vec![]),
        (json!({"image": ["image-one"]}), vec!["image tag"]),
        (json!({"image": ["image-one:1"]}), vec!["image tag"]),
        (
            json!({"scope": ["local"], "type": ["volume"]}),
            vec!["volume create"],
        ),
        (json!({"scope": ["swarm"]}), vec![]),
        (json!({"service": ["x"]}), vec![]),
    ] {
        assert_eq!(query(filters.clone()), expected, "{filters}");
    }
    cli.run(&["network", "rm", "network-one"]).ok();
}

#[test]
fn operations_have_dockers_events() {
    let engine = Engine::start();
    let cli = engine.cli(Program::Docker);
    let mut events = engine.events("");
    let directory = engine.scratch("files");
    let file = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let mut done = |what: &str, last: &str, expected: &[&str]| {
        let found = events.until(last);
        for action in expected {
            assert!(
                found.iter().any(|found| found == action),
                "{what}: no {action} in {found:?}"
            );
        }
    };
    cli.run(&["volume", "create", "data"]).ok();
    done("volume create", "create", &["volume create"]);
    cli.up("one", &["-v", "data:/d"], &["sleep", "600"]);
    done(
        "run",
        "start",
        &["container create", "volume mount", "container start"],
    );
    cli.run(&["top", "one"]).ok();
    done("top", "top", &["container top"]);
    cli.run(&["update", "--cpus", "1", "one"]).ok();
    done("update", "update", &["container update"]);
    cli.run(&["export", "-o", &file("root.tar"), "one"]).ok();
    done("export", "export", &["container export"]);
    cli.run(&["stop", "-t", "0", "one"]).ok();
    done(
        "stop",
        "stop",
        &[
            "container kill",
            "container die",
            "volume unmount",
            "container stop",
        ],
    );
    cli.run(&["rm", "one"]).ok();
    done("rm", "destroy", &["container destroy"]);
    cli.run(&["volume", "rm", "data"]).ok();
    done("volume rm", "destroy", &["volume destroy"]);
    cli.run(&["volume", "prune", "-f"]).ok();
    done("volume prune", "prune", &["volume prune"]);
    cli.run(&["save", "-o", &file("image.tar"), "busybox"]).ok();
    done("save", "save", &["image save"]);
    cli.run(&["load", "-i", &file("image.tar")]).ok();
    done("load", "load", &["image load"]);
    cli.run(&["import", &file("root.tar"), "imported:1"]).ok();
    done("import", "import", &["image import"]);
    let terminal = json!({
        "Image": "busybox", "Cmd": ["sh"], "Tty": true, "OpenStdin": true, "HostConfig": {"NetworkMode": "none"},
    });
    engine.create("terminal", &terminal);
    cli.run(&["start", "terminal"]).ok();
    done("start", "start", &["container start"]);
    assert_eq!(
        engine
            .api("POST", "/containers/terminal/resize?h=10&w=20", None)
            .0,
        200
    );
    done("resize", "resize", &["container resize"]);
    let mut attached = engine.attach("terminal", "stream=1&stdin=1&stdout=1&detachKeys=a", false);
    attached.write(b"a");
    done(
        "detach",
        "detach",
        &["container attach", "container detach"],
    );
    attached.to_end();
    let exec = json!({"Cmd": ["sh"], "Tty": true, "AttachStdin": true, "AttachStdout": true, "DetachKeys": "a"});
    let exec = engine.create_exec("terminal", &exec);
    let mut attached = engine.start_exec(&exec, true);
    attached.write(b"a");
    done(
        "exec",
        "exec_detach",
        &[
            "container exec_create: sh ",
            "container exec_start: sh ",
            "container exec_detach",
        ],
    );
    attached.to_end();
    cli.run(&["rm", "-f", "terminal"]).ok();
}
