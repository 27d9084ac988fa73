//! Requests that are refused: routes, bodies, filters, and objects that do not exist.

use serde_json::json;
use whelk_tests::{Connection, Engine, Program, escape};

use super::check;

#[test]
fn unknown_routes_are_not_found() {
    let engine = Engine::without_images(&[]);
    let paths = [
        ("GET", "/nosuch"),
        ("GET", "/"),
        ("GET", "/v1.41"),
        ("GET", "/v1.41/nosuch"),
        ("PUT", "/v1.41/containers/json"),
        ("DELETE", "/info"),
        ("GET", "/containers/create"),
        ("GET", "/vbogus/info"),
        ("GET", "/info/"),
        ("GET", "/v1.41/containers/json/"),
        ("GET", "/plugins/x/enable"),
    ];
    for (method, path) in paths {
        check(&engine, method, path, None, 404, "page not found");
    }
    // Docker's router answers OPTIONS for every path, HEAD only where the API defines it, and redirects
    // paths with empty components to their clean form.
    for path in ["/info", "/nosuch", "/v1.41/containers/x/json"] {
        let response = engine.http("OPTIONS", path, &[], b"");
        assert_eq!(
            (response.status, response.text().as_str()),
            (200, ""),
            "{path}"
        );
    }
    assert_eq!(engine.http("HEAD", "/info", &[], b"").status, 404);
    for (path, location) in [
        ("//info", "/info"),
        (
            "/v1.41/containers//json?all=1",
            "/v1.41/containers/json?all=1",
        ),
    ] {
        let response = engine.http("GET", path, &[], b"");
        assert_eq!(
            (response.status, response.header("location")),
            (301, Some(location)),
            "{path}"
        );
    }
    check(
        &engine,
        "GET",
        "/containers/nosuch/json",
        None,
        404,
        "No such container: nosuch",
    );
    check(
        &engine,
        "GET",
        "/images/nosuch/json",
        None,
        404,
        "No such image: nosuch:latest",
    );
    check(
        &engine,
        "POST",
        "/containers/nosuch/start",
        None,
        404,
        "No such container: nosuch",
    );
}

#[test]
fn rejects_invalid_bodies_with_a_reason() {
    let engine = Engine::start();
    let post = |kind: Option<&str>, body: &str| {
        let headers: Vec<(&str, &str)> = kind
            .map(|kind| ("Content-Type", kind))
            .into_iter()
            .collect();
        let response = engine.http("POST", "/containers/create", &headers, body.as_bytes());
        (
            response.status,
            response.json()["message"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        )
    };
    let json_kind = Some("application/json");
    for (body, text) in [
        (
            "garbage",
            "invalid JSON: invalid character 'g' looking for beginning of value",
        ),
        ("{", "invalid JSON: unexpected EOF"),
        (
            "[]",
            "invalid JSON: json: cannot unmarshal array into Go value of type container.CreateRequest",
        ),
        (
            "{\"Image\": 5}",
            "invalid JSON: json: cannot unmarshal number into Go struct field .Image of type string",
        ),
        (
            "{\"Image\": \"busybox\", \"Env\": {\"a\": \"b\"}}",
            "invalid JSON: json: cannot unmarshal object into Go struct field .Env of type []string",
        ),
        (
            "{\"Image\": \"busybox\", \"HostConfig\": {\"Memory\": \"64m\"}}",
            "invalid JSON: json: cannot unmarshal string into Go struct field .HostConfig.Memory of type int64",
        ),
        (
            "{\"Image\": \"busybox\", \"NetworkingConfig\": {\"EndpointsConfig\": {\"x\": 5}}}",
            "invalid JSON: json: cannot unmarshal number into Go struct field .NetworkingConfig.EndpointsConfig.x of type network.EndpointSettings",
        ),
        ("", "invalid JSON: got EOF while reading request body"),
        (" ", "invalid JSON: got EOF while reading request body"),
        ("{} x", "unexpected content after JSON"),
        (
            "null",
            "config cannot be empty in order to create a container",
        ),
        (
            "{}",
            "config cannot be empty in order to create a container",
        ),
        (
            "{\"HostConfig\": {\"Memory\": 0}}",
            "config cannot be empty in order to create a container",
        ),
        ("{\"Image\": \"\"}", "no command specified"),
    ] {
        assert_eq!(post(json_kind, body), (400, text.to_owned()), "{body}");
    }
    assert_eq!(
        post(Some("text/plain"), "{}"),
        (
            400,
            "unsupported Content-Type header (text/plain): must be 'application/json'".to_owned()
        )
    );
    for (path, text) in [
        ("/networks/create", "invalid name: name is empty"),
        (
            "/networks/nosuch/connect",
            "invalid name or ID supplied: \"\"",
        ),
        (
            "/networks/nosuch/disconnect",
            "invalid name or ID supplied: \"\"",
        ),
    ] {
        check(&engine, "POST", path, Some(&json!({})), 400, text);
        check(&engine, "POST", path, None, 400, text);
    }
    // Unknown fields do no harm, names are not case-sensitive, and a command may be one string.
    let (status, answer) = post(
        json_kind,
        "{\"image\": \"busybox\", \"Nosuch\": 1, \"Cmd\": \"echo\", \"HostConfig\": {\"NetworkMode\": \"none\"}}",
    );
    assert_eq!(status, 201, "{answer}");
    assert_eq!(
        engine
            .get("/containers/json?all=1")
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn the_content_type_is_checked_before_objects_are_looked_up() {
    let engine = Engine::without_images(&[]);
    let ask = |path: &str, kind: &str, chunked: bool, body: &str| {
        let kind = if kind.is_empty() {
            String::new()
        } else {
            format!("Content-Type: {kind}\r\n")
        };
        let body = if chunked {
            format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
        } else {
            body.to_owned()
        };
        let length = if chunked {
            "Transfer-Encoding: chunked".to_owned()
        } else {
            format!("Content-Length: {}", body.len())
        };
        let mut connection = Connection::open(&engine.socket()).unwrap();
        connection
            .send_raw(
                format!("POST {path} HTTP/1.1\r\nHost: d\r\n{kind}{length}\r\n\r\n{body}")
                    .as_bytes(),
            )
            .unwrap();
        let response = connection.response().unwrap();
        (
            response.status,
            response.json()["message"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        )
    };
    let unsupported = (
        400,
        "unsupported Content-Type header (text/plain): must be 'application/json'".to_owned(),
    );
    let malformed = (
        400,
        "malformed Content-Type header (): mime: no media type".to_owned(),
    );
    for path in [
        "/containers/create",
        "/containers/nosuch/exec",
        "/containers/nosuch/update",
        "/exec/nosuch/start",
        "/networks/create",
        "/networks/nosuch/connect",
        "/networks/nosuch/disconnect",
        "/volumes/create",
        "/volumes/nosuch/clone",
    ] {
        for chunked in [false, true] {
            assert_eq!(
                ask(path, "text/plain", chunked, "{}"),
                unsupported,
                "{path}, chunked {chunked}"
            );
            assert_eq!(
                ask(path, "", chunked, "{}"),
                malformed,
                "{path}, chunked {chunked}"
            );
        }
        assert_eq!(ask(path, "text/plain", false, ""), unsupported, "{path}");
        assert_eq!(
            ask(path, "application/json; charset=utf-8", false, "x").1,
            "invalid JSON: invalid character 'x' looking for beginning of value"
        );
    }
    // Nothing at all is what the settings are without it; operations without a body do not look at
    // its type.
    assert_eq!(
        ask("/exec/nosuch/start", "", false, ""),
        (404, "No such exec instance: nosuch".into())
    );
    assert_eq!(
        ask("/containers/nosuch/stop", "text/plain", false, "x"),
        (404, "No such container: nosuch".into())
    );
    let refused = "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24";
    assert_eq!(
        ask(
            "/containers/nosuch/start",
            "application/json",
            false,
            "{\"Binds\":[]}"
        ),
        (400, refused.into())
    );
    assert_eq!(
        ask("/containers/nosuch/start", "application/json", false, "{}"),
        (404, "No such container: nosuch".into())
    );
}

#[test]
fn rejects_invalid_filters() {
    let engine = Engine::without_images(&[]);
    let list = |filters: &str| {
        engine.api(
            "GET",
            &format!("/containers/json?all=1&filters={}", escape(filters)),
            None,
        )
    };
    for (filters, message) in [
        ("garbage", "invalid filter"),
        (r#"{"foo": ["bar"]}"#, "invalid filter 'foo'"),
        (
            r#"{"status": ["bogus"]}"#,
            "invalid filter 'status=bogus': invalid value for state (bogus): must be one of created, running, paused, restarting, removing, exited, dead",
        ),
        (
            r#"{"exited": ["abc"]}"#,
            "invalid filter 'exited=abc': strconv.Atoi: parsing \"abc\": invalid syntax",
        ),
    ] {
        let (status, answer) = list(filters);
        assert_eq!(
            (status, answer["message"].as_str()),
            (400, Some(message)),
            "{filters}"
        );
    }
    assert_eq!(
        list(r#"{"status": {"exited": true}}"#),
        (200, json!([])),
        "the old form"
    );
}

#[test]
fn a_missing_image_is_reported_before_an_unknown_log_driver() {
    // Clients pull the image after this error.
    let engine = Engine::start();
    for (image, status, message) in [
        ("nosuch", 404, "No such image: nosuch:latest"),
        (
            "busybox",
            400,
            "error looking up logging plugin bogus: plugin \"bogus\" not found",
        ),
    ] {
        let body = json!({"Image": image, "HostConfig": {"LogConfig": {"Type": "bogus"}}});
        let path = "/containers/create";
        check(&engine, "POST", path, Some(&body), status, message);
    }
}

#[test]
fn json_keys_are_case_insensitive() {
    let engine = Engine::start();
    let body = json!({"image": "busybox", "cmd": ["true"], "hostConfig": {"memory": 67_108_864, "networkMode": "none"}});
    let (status, created) = engine.api("POST", "/containers/create?name=folded", Some(&body));
    assert_eq!(status, 201, "{created}");
    let shown = engine.inspect("folded");
    assert_eq!(
        (&shown["HostConfig"]["Memory"], &shown["Config"]["Cmd"]),
        (&json!(67_108_864), &json!(["true"]))
    );
}

#[test]
fn unsupported_settings_are_rejected_by_name() {
    let engine = Engine::start();
    engine.create(
        "made",
        &json!({"Image": "busybox", "HostConfig": {"NetworkMode": "none"}}),
    );
    let no_swarm = (503, "This node is not a swarm manager");
    let experimental = (501, "This experimental feature is disabled by default.");
    let missing = (501, "not available in this version of whelk");
    let no_plugin = (404, "plugin \"a/x\" not found");
    let mut operations = vec![
        ("GET /swarm".to_owned(), no_swarm),
        ("POST /swarm/update?version=1".to_owned(), no_swarm),
        ("GET /swarm/unlockkey".to_owned(), no_swarm),
        ("POST /swarm/unlock".to_owned(), no_swarm),
        (
            "POST /swarm/leave?force=1".to_owned(),
            (503, "This node is not part of a swarm"),
        ),
        ("GET /debug/pprof/heap".to_owned(), missing),
        ("GET /debug/vars".to_owned(), missing),
        (
            "POST /swarm/init".to_owned(),
            (501, "swarm mode: not available in this version of whelk"),
        ),
        ("POST /swarm/join".to_owned(), missing),
        ("POST /nodes/x/update?version=1".to_owned(), no_swarm),
        ("GET /services/x/logs?stdout=1".to_owned(), no_swarm),
        ("GET /tasks/x/logs?stderr=1".to_owned(), no_swarm),
        (
            "GET /tasks/x/logs".to_owned(),
            (400, "Bad parameters: you must choose at least one stream"),
        ),
        (
            "POST /swarm/update".to_owned(),
            (
                400,
                "invalid swarm version '': strconv.ParseUint: parsing \"\": invalid syntax",
            ),
        ),
        (
            "POST /nodes/x/update?version=a".to_owned(),
            (
                400,
                "invalid node version 'a': strconv.ParseUint: parsing \"a\": invalid syntax",
            ),
        ),
        (
            "POST /secrets/x/update".to_owned(),
            (400, "invalid secret version"),
        ),
        (
            "GET /plugins?filters=%7B%22x%22%3A%5B%22y%22%5D%7D".to_owned(),
            (400, "invalid filter 'x'"),
        ),
        (
            "PUT /volumes/x?version=1".to_owned(),
            (
                503,
                "volume update only valid for cluster volumes, but swarm is unavailable",
            ),
        ),
        ("GET /plugins/privileges?remote=x".to_owned(), missing),
        ("POST /plugins/pull?remote=x".to_owned(), missing),
        ("POST /plugins/create?name=x".to_owned(), missing),
        ("GET /plugins/a/x/json".to_owned(), no_plugin),
        ("DELETE /plugins/a/x".to_owned(), no_plugin),
        (
            "POST /build/cancel".to_owned(),
            (400, "build ID not provided"),
        ),
        (
            "POST /session".to_owned(),
            (400, "no upgrade proto in request"),
        ),
        (
            "POST /grpc".to_owned(),
            (400, "no upgrade proto in request"),
        ),
        ("GET /images/busybox/attestations".to_owned(), missing),
        (
            "GET /images/nosuch/attestations".to_owned(),
            (404, "No such image: nosuch:latest"),
        ),
        ("GET /containers/made/checkpoints".to_owned(), experimental),
        ("POST /containers/made/checkpoints".to_owned(), experimental),
        (
            "DELETE /containers/made/checkpoints/c".to_owned(),
            experimental,
        ),
        (
            "POST /containers/made/start?checkpoint=c".to_owned(),
            (400, "checkpoint is only supported in experimental mode"),
        ),
    ];
    for kind in ["nodes", "services", "tasks", "secrets", "configs"] {
        operations.extend([
            (format!("GET /{kind}"), no_swarm),
            (format!("GET /{kind}/x"), no_swarm),
        ]);
    }
    for kind in ["services", "secrets", "configs"] {
        operations.extend([
            (format!("POST /{kind}/create"), no_swarm),
            (format!("POST /{kind}/x/update?version=1"), no_swarm),
        ]);
        operations.push((format!("DELETE /{kind}/x"), no_swarm));
    }
    operations.push((
        "POST /plugins/a/x/upgrade?remote=x".to_owned(),
        (404, "plugin \"a/x:latest\" not found"),
    ));
    for operation in ["enable?timeout=0", "disable", "push", "set"] {
        operations.push((format!("POST /plugins/a/x/{operation}"), no_plugin));
    }
    for (operation, (status, text)) in operations {
        let (method, path) = operation.split_once(' ').unwrap();
        let (found, answer) = engine.api(method, &format!("/v1.55{path}"), None);
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(
            found == status && message.contains(text),
            "{operation}: {found} {answer}"
        );
    }
    assert_eq!(engine.get("/plugins"), json!([]));
}

#[test]
fn a_refused_upload_is_read_and_answered() {
    let engine = Engine::start();
    let upload = vec![0; 48 << 20];
    let tar = [("Content-Type", "application/x-tar")];
    let unused = "/containers/nosuch/archive?path=/";
    for (method, path) in [
        ("PUT", unused),
        ("POST", "/build"),
        ("POST", "/nosuch"),
        ("POST", "/containers/create"),
        ("POST", "/images/create?fromSrc=-&repo=big&changes=BOGUS"),
        ("POST", "/images/load?platform=bogus"),
    ] {
        let mut client = Connection::open(&engine.socket()).unwrap();
        client
            .send(method, path, &tar, &upload)
            .unwrap_or_else(|error| panic!("{method} {path}: cut off while sending: {error}"));
        let answer = client.response().unwrap();
        let told = answer.json()["message"]
            .as_str()
            .is_some_and(|text| !text.is_empty());
        assert!(
            answer.status >= 400 && told,
            "{method} {path}: {} {}",
            answer.status,
            answer.text()
        );
        // The connection stays usable.
        client.send("GET", "/_ping", &[], b"").unwrap();
        assert_eq!(client.response().unwrap().status, 200, "{method} {path}");
    }
    // A client that sends `Expect` gets the error without sending the body.
    let mut client = Connection::open(&engine.socket()).unwrap();
    let head = format!(
        "PUT {unused} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n"
    );
    client.send_raw(head.as_bytes()).unwrap();
    let status = client.head().unwrap().0;
    assert!(status >= 400, "{status}");
    engine.both(|cli| {
        let refused = cli.feed(&["import", "-c", "BOGUS", "-", "big"], &upload);
        refused.refuses(1, "BOGUS is not a valid change command");
    });
}

#[test]
fn operations_on_an_unknown_container_fail_with_dockers_errors() {
    let engine = Engine::without_images(&[]);
    let unknown = "No such container: nosuch";
    let empty = json!({});
    let exec = json!({"Cmd": ["true"]});
    for (method, operation, body, status, message) in [
        ("POST", "start", None, 404, unknown),
        ("POST", "stop", None, 404, unknown),
        ("POST", "stop?signal=BOGUS", None, 404, unknown),
        ("POST", "restart", None, 404, unknown),
        ("POST", "restart?signal=BOGUS", None, 404, unknown),
        // Only this operation's error names the operation.
        (
            "POST",
            "kill",
            None,
            404,
            "cannot kill container: nosuch: No such container: nosuch",
        ),
        (
            "POST",
            "kill?signal=BOGUS",
            None,
            400,
            "cannot kill container: nosuch: invalid signal: BOGUS",
        ),
        ("POST", "pause", None, 404, unknown),
        ("POST", "unpause", None, 404, unknown),
        ("POST", "wait", None, 404, unknown),
        ("POST", "wait?condition=removed", None, 404, unknown),
        (
            "POST",
            "wait?condition=bogus",
            None,
            400,
            "invalid condition: \"bogus\"",
        ),
        ("POST", "rename?name=x", None, 404, unknown),
        (
            "POST",
            "rename",
            None,
            400,
            "Neither old nor new names may be empty",
        ),
        ("POST", "update", Some(&empty), 404, unknown),
        ("POST", "resize?h=1&w=1", None, 404, unknown),
        (
            "POST",
            "resize",
            None,
            400,
            "invalid resize height \"\": invalid syntax",
        ),
        ("POST", "exec", Some(&exec), 404, unknown),
        (
            "POST",
            "exec",
            Some(&empty),
            400,
            "No exec command specified",
        ),
        ("GET", "json", None, 404, unknown),
        ("GET", "top", None, 404, unknown),
        ("GET", "top?ps_args=bogus", None, 404, unknown),
        ("GET", "export", None, 404, unknown),
        ("GET", "logs?stdout=1", None, 404, unknown),
        (
            "GET",
            "logs",
            None,
            400,
            "Bad parameters: you must choose at least one stream",
        ),
    ] {
        check(
            &engine,
            method,
            &format!("/containers/nosuch/{operation}"),
            body,
            status,
            message,
        );
    }
    for query in ["", "?force=1", "?v=1", "?link=1"] {
        check(
            &engine,
            "DELETE",
            &format!("/containers/nosuch{query}"),
            None,
            404,
            unknown,
        );
    }
}

#[test]
fn stop_and_restart_reject_unknown_signals() {
    let engine = Engine::start();
    engine.create(
        "idle",
        &json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}),
    );
    assert_eq!(
        engine
            .api("POST", "/containers/idle/stop?signal=BOGUS", None)
            .0,
        304,
        "there is nobody to send it to"
    );
    check(
        &engine,
        "POST",
        "/containers/idle/restart?signal=BOGUS",
        None,
        500,
        "Cannot restart container idle: invalid signal: BOGUS",
    );
    engine.cli(Program::Docker).up("up", &[], &["sleep", "600"]);
    check(
        &engine,
        "POST",
        "/containers/up/stop?signal=BOGUS",
        None,
        500,
        "cannot stop container: up: invalid signal: BOGUS",
    );
    assert_eq!(engine.state("up"), "running");
}
