//! Events, and waiting for the states of containers.

use serde_json::{Value, json};
use whelk_tests::{Connection, Engine, Program, escape, now_nanos};

use super::check;

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
