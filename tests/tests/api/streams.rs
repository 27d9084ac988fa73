//! Streams of attach and exec: upgrades, framing, and sizes of terminals.

use serde_json::{Value, json};
use whelk_tests::{Connection, Engine, Program};

use super::check;

#[test]
fn exec_output_is_framed_as_its_start_requests() {
    let engine = Engine::start();
    engine
        .cli(Program::Docker)
        .up("target", &[], &["sleep", "600"]);
    let exec = || {
        engine.create_exec("target", &json!({"Cmd": ["echo", "out"], "Tty": true, "AttachStdout": true, "AttachStderr": true}))
    };
    // Created with a terminal, started without: frames, as the client will expect them.
    let start = |id: &str, tty: bool| {
        let body = json!({"Detach": false, "Tty": tty}).to_string();
        engine
            .http(
                "POST",
                &format!("/exec/{id}/start"),
                &[("content-type", "application/json")],
                body.as_bytes(),
            )
            .body
    };
    assert_eq!(start(&exec(), false), b"\x01\0\0\0\0\0\0\x05out\r\n");
    assert_eq!(start(&exec(), true), b"out\r\n");
}

#[test]
fn exec_start_accepts_all_upgrade_requests_of_clients() {
    let engine = Engine::start();
    engine
        .cli(Program::Docker)
        .up("target", &[], &["sleep", "600"]);
    let (raw, framed) = (
        "application/vnd.docker.raw-stream",
        "application/vnd.docker.multiplexed-stream",
    );
    let ask = |version: &str, headers: &[(&str, &str)]| {
        let exec = engine.create_exec(
            "target",
            &json!({"Cmd": ["echo", "out"], "AttachStdout": true}),
        );
        let body = json!({"Detach": false}).to_string();
        let mut all = vec![("Content-Type", "application/json")];
        all.extend_from_slice(headers);
        let mut connection = Connection::open(&engine.socket()).unwrap();
        connection
            .send(
                "POST",
                &format!("{version}/exec/{exec}/start"),
                &all,
                body.as_bytes(),
            )
            .unwrap();
        let response = connection.response().unwrap();
        assert_eq!(
            response.body, b"\x01\0\0\0\0\0\0\x04out\n",
            "{version} {headers:?}"
        );
        (
            response.status,
            response
                .header("content-type")
                .unwrap_or_default()
                .to_owned(),
        )
    };
    let upgrade = [("Upgrade", "tcp"), ("Connection", "Upgrade")];
    assert_eq!(ask("", &upgrade), (101, framed.to_owned()));
    assert_eq!(
        ask("", &upgrade[..1]),
        (101, framed.to_owned()),
        "without a Connection header"
    );
    assert_eq!(
        ask("/v1.41", &upgrade),
        (101, raw.to_owned()),
        "frames have a type of their own since 1.42"
    );
    assert_eq!(ask("/v1.42", &upgrade), (101, framed.to_owned()));
    assert_eq!(ask("", &upgrade[1..]), (200, raw.to_owned()));
    let logs = |version: &str| {
        engine.http(
            "GET",
            &format!("{version}/containers/target/logs?stdout=1"),
            &[],
            b"",
        )
    };
    assert_eq!(logs("/v1.41").header("content-type"), Some(raw));
    assert_eq!(logs("/v1.42").header("content-type"), Some(framed));
}

#[test]
fn attach_errors_are_plain_text() {
    let engine = Engine::start();
    engine
        .cli(Program::Docker)
        .up("target", &[], &["sleep", "600"]);
    let ask = |path: &str| {
        let response = engine.http("POST", path, &[("Upgrade", "tcp")], b"");
        (
            response.status,
            response
                .header("content-type")
                .unwrap_or_default()
                .to_owned(),
            response.text(),
        )
    };
    let plain = |status: u16, text: &str| {
        (
            status,
            "application/vnd.docker.raw-stream".to_owned(),
            format!("{text}\r\n"),
        )
    };
    assert_eq!(
        ask("/containers/nosuch/attach?stream=1"),
        plain(404, "No such container: nosuch")
    );
    assert_eq!(
        ask("/containers/nosuch/attach?logs=1"),
        plain(404, "No such container: nosuch")
    );
    let keys = plain(400, "Invalid detach keys (ctrl-a,bogus) provided");
    assert_eq!(
        ask("/containers/target/attach?stream=1&detachKeys=ctrl-a,bogus"),
        keys
    );
    assert_eq!(
        ask("/containers/nosuch/attach?detachKeys=ctrl-a,bogus"),
        keys,
        "before the container is looked up"
    );
    check(
        &engine,
        "POST",
        "/containers/target/exec",
        Some(&json!({"Cmd": ["true"], "DetachKeys": "bogus"})),
        400,
        "Invalid escape keys (bogus) provided",
    );
}

#[test]
fn terminal_sizes_are_checked_before_objects_are_looked_up() {
    let engine = Engine::without_images(&[]);
    for object in ["/containers/nosuch", "/exec/nosuch"] {
        for (query, text) in [
            ("", "invalid resize height \"\": invalid syntax"),
            ("?h=1", "invalid resize width \"\": invalid syntax"),
            ("?h=a&w=b", "invalid resize height \"a\": invalid syntax"),
            (
                "?h=%2B5&w=1",
                "invalid resize height \"+5\": invalid syntax",
            ),
            (
                "?h=-5&w=1",
                "invalid resize height \"-5\": value out of range",
            ),
            (
                "?h=1&w=-1",
                "invalid resize width \"-1\": value out of range",
            ),
            (
                "?h=99999999999&w=1",
                "invalid resize height \"99999999999\": value out of range",
            ),
        ] {
            check(
                &engine,
                "POST",
                &format!("{object}/resize{query}"),
                None,
                400,
                text,
            );
        }
        assert_eq!(
            engine
                .api("POST", &format!("{object}/resize?h=99999&w=1"), None)
                .0,
            404
        );
    }
}

#[test]
fn execs_end_with_their_container() {
    let engine = Engine::start();
    engine
        .cli(Program::Docker)
        .up("target", &[], &["sleep", "600"]);
    for (path, body) in [
        ("target", json!({"Cmd": []})),
        ("nosuch", json!({})),
        ("nosuch", json!({"Cmd": null})),
    ] {
        check(
            &engine,
            "POST",
            &format!("/containers/{path}/exec"),
            Some(&body),
            400,
            "No exec command specified",
        );
    }
    let exec = |command: &[&str]| engine.create_exec("target", &json!({"Cmd": command}));
    let start = |id: &str| {
        engine.api(
            "POST",
            &format!("/exec/{id}/start"),
            Some(&json!({"Detach": true})),
        )
    };
    let (unstarted, running) = (exec(&["true"]), exec(&["sleep", "600"]));
    assert_eq!(start(&running).0, 200);
    check(
        &engine,
        "POST",
        &format!("/exec/{running}/start"),
        Some(&json!({"Detach": true})),
        409,
        &format!("exec command {running} is already running"),
    );
    assert_eq!(
        engine.get(&format!("/exec/{unstarted}/json"))["Running"],
        false
    );
    engine.docker(&["kill", "target"]).ok();
    engine.await_state("target", "exited");
    let gone = format!("No such exec instance: {unstarted}");
    check(
        &engine,
        "GET",
        &format!("/exec/{unstarted}/json"),
        None,
        404,
        &gone,
    );
    check(
        &engine,
        "POST",
        &format!("/exec/{unstarted}/start"),
        Some(&json!({})),
        404,
        &gone,
    );
    let ended = engine.get(&format!("/exec/{running}/json"));
    assert_eq!(
        (&ended["Running"], &ended["ExitCode"], &ended["CanRemove"]),
        (&json!(false), &json!(137), &json!(false))
    );
}

#[test]
fn an_exec_that_is_started_without_an_upgrade() {
    let engine = Engine::start();
    engine
        .cli(Program::Docker)
        .up("target", &[], &["sleep", "600"]);
    let run = |command: &str, attached: bool, tty: bool| {
        let body = json!({"Cmd": ["sh", "-c", command], "Tty": tty, "AttachStdout": attached, "AttachStderr": attached});
        let id = engine.create_exec("target", &body);
        let body = json!({"Detach": false, "Tty": tty}).to_string();
        let response = engine.http(
            "POST",
            &format!("/exec/{id}/start"),
            &[("content-type", "application/json")],
            body.as_bytes(),
        );
        let shown = engine.get(&format!("/exec/{id}/json"));
        (id, response, shown)
    };
    // With its output: the answer ends when the program has, and its exit code is known by then.
    for tty in [false, true] {
        let (_, response, shown) = run("sleep 1; echo out; exit 7", true, tty);
        assert!(
            response.status == 200 && response.text().contains("out"),
            "{}",
            response.text()
        );
        assert_eq!(
            (&shown["Running"], &shown["ExitCode"]),
            (&json!(false), &json!(7)),
            "tty {tty}"
        );
    }
    // Also if it closes its output earlier.
    let closes = "exec >/dev/null 2>&1 </dev/null; sleep 1; exit 7";
    let (_, _, shown) = run(closes, true, false);
    assert_eq!(
        (&shown["Running"], &shown["ExitCode"]),
        (&json!(false), &json!(7)),
    );
    // Without any stream there is nothing to wait for, as in Docker: the answer is out when the
    // program runs.
    for tty in [false, true] {
        let (id, response, shown) = run(
            "until [ -e /tmp/go ]; do sleep 0.1; done; exit 7",
            false,
            tty,
        );
        assert_eq!((response.status, response.text().as_str()), (200, ""));
        assert_eq!(
            (&shown["Running"], &shown["ExitCode"]),
            (&json!(true), &Value::Null),
            "tty {tty}"
        );
        engine.docker(&["exec", "target", "touch", "/tmp/go"]).ok();
        whelk_tests::eventually("its exit code", || {
            (engine.get(&format!("/exec/{id}/json"))["ExitCode"] == 7).then_some(())
        });
        engine.docker(&["exec", "target", "rm", "/tmp/go"]).ok();
    }
    // A command that cannot run reports its error too.
    let id = engine.create_exec("target", &json!({"Cmd": ["nosuch"]}));
    let response = engine.http(
        "POST",
        &format!("/exec/{id}/start"),
        &[("content-type", "application/json")],
        b"{}",
    );
    assert!(
        response.status == 200
            && response
                .text()
                .contains("executable file not found in $PATH"),
        "{}",
        response.text()
    );
    assert_eq!(engine.get(&format!("/exec/{id}/json"))["ExitCode"], 127);
}

#[test]
fn a_wait_is_cut_off_when_the_engine_stops() {
    let engine = Engine::start();
    engine
        .cli(Program::Docker)
        .up("target", &[], &["sleep", "600"]);
    for _ in 0..3 {
        let mut waits: Vec<Connection> = (0..20)
            .map(|_| {
                let mut wait = Connection::open(&engine.socket()).unwrap();
                wait.send("POST", "/containers/target/wait", &[], b"")
                    .unwrap();
                assert_eq!(wait.head().unwrap().0, 200);
                wait
            })
            .collect();
        engine.terminate();
        for wait in &mut waits {
            // Not the end of a complete response: a client would take it for an exit code.
            let rest = wait.part();
            assert!(rest.is_err(), "{rest:?}");
        }
        engine.restart();
    }
    // A wait that is asked for again goes on.
    engine.cli(Program::Docker).run(&["kill", "target"]).ok();
    let waited = engine.http("POST", "/containers/target/wait", &[], b"");
    assert_eq!(waited.json()["StatusCode"], 137);
}
