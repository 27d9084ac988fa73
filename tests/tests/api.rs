//! The Engine API as it is spoken on the socket: versions, errors, streams, and what is no HTTP at
//! all.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

use serde_json::{Value, json};
use whelk_tests::{Connection, Engine, Program, escape, now_nanos};

/// The newest version that the engine speaks, as major and minor.
fn newest(engine: &Engine) -> (String, u32) {
    let version = engine.get("/version")["ApiVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    let minor = version.strip_prefix("1.").unwrap().parse().unwrap();
    (version, minor)
}

#[track_caller]
fn check(
    engine: &Engine,
    method: &str,
    path: &str,
    body: Option<&Value>,
    status: u16,
    message: &str,
) {
    let (found, answer) = engine.api(method, path, body);
    assert_eq!(
        (found, answer["message"].as_str()),
        (status, Some(message)),
        "{method} {path}: {answer}"
    );
}

#[test]
fn every_version_from_1_24_on_is_spoken() {
    let engine = Engine::start();
    let (_, newest) = newest(&engine);
    assert!(newest >= 55, "clients of Docker 29 speak 1.52 and later");
    let id = engine.create(
        "made",
        &json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}),
    );
    for minor in 24..=newest {
        let list = engine.get(&format!("/v1.{minor}/containers/json?all=1"));
        assert_eq!(list[0]["Id"], id.as_str(), "1.{minor}");
        assert_eq!(
            engine.get(&format!("/v1.{minor}/version"))["MinAPIVersion"],
            "1.24",
            "1.{minor}"
        );
        // What older clients read, and newer ones do not get any more.
        let image = engine.get(&format!("/v1.{minor}/images/busybox/json"));
        assert_eq!(image.get("VirtualSize").is_some(), minor <= 43, "1.{minor}");
        assert_eq!(
            image.get("ContainerConfig").is_some(),
            minor <= 44,
            "1.{minor}"
        );
    }
    let (status, answer) = engine.api(
        "POST",
        "/v1.24/containers/create?name=old",
        Some(&json!({"Image": "busybox", "Cmd": ["sh", "-c", "exit 6"], "HostConfig": {"NetworkMode": "none"}})),
    );
    assert_eq!(status, 201, "{answer}");
    assert_eq!(
        engine.api("POST", "/v1.24/containers/old/start", None).0,
        204
    );
    assert_eq!(
        engine.api("POST", "/v1.24/containers/old/wait", None),
        (200, json!({"StatusCode": 6}))
    );
}

#[test]
fn other_versions_are_refused_with_dockers_words() {
    let engine = Engine::without_images(&[]);
    let (version, minor) = newest(&engine);
    for old in ["1.23", "1.10", "1"] {
        let response = engine.http("GET", &format!("/v{old}/info"), &[], b"");
        let text = format!(
            "client version {old} is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version"
        );
        assert_eq!(
            (response.status, response.text().contains(&text)),
            (400, true),
            "{}",
            response.text()
        );
    }
    for new in [
        format!("1.{}", minor + 1),
        "1.999".to_owned(),
        "2".to_owned(),
    ] {
        check(
            &engine,
            "GET",
            &format!("/v{new}/info"),
            None,
            400,
            &format!("client version {new} is too new. Maximum supported API version is {version}"),
        );
    }
    let output = engine.docker(&[
        "version",
        "--format",
        "{{.Server.MinAPIVersion}} {{.Server.Os}}",
    ]);
    assert_eq!(output.ok(), "1.24 linux");
}

#[test]
fn ping_tells_what_clients_need_to_know() {
    let engine = Engine::without_images(&[]);
    let (version, _) = newest(&engine);
    for path in ["/_ping", "/v1.24/_ping"] {
        let response = engine.http("GET", path, &[], b"");
        assert_eq!((response.status, response.text().as_str()), (200, "OK"));
        assert_eq!(response.header("api-version"), Some(version.as_str()));
        assert_eq!(response.header("ostype"), Some("linux"));
        assert!(
            response.header("docker-experimental").is_some() && response.header("server").is_some()
        );
    }
    let response = engine.http("HEAD", "/_ping", &[], b"");
    assert_eq!(
        (response.status, response.header("api-version")),
        (200, Some(version.as_str()))
    );
}

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
    // What Docker's router does with everything: OPTIONS is answered, HEAD only where the API has
    // it, and paths with empty parts lead to where they mean.
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
fn bodies_that_are_wrong_are_refused_with_a_reason() {
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
fn bodies_have_to_be_json_by_their_type_before_anything_is_looked_up() {
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
fn garbage_on_the_socket_hurts_nobody() {
    let engine = Engine::start();
    let deep = format!(
        "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 200000\r\n\r\n{}",
        "[".repeat(200_000)
    );
    let long = format!(
        "GET /_ping HTTP/1.1\r\nHost: d\r\nX-Long: {}\r\n\r\n",
        "x".repeat(2 << 20)
    );
    let many = format!(
        "GET /_ping HTTP/1.1\r\nHost: d\r\n{}\r\n",
        "X-Many: y\r\n".repeat(50_000)
    );
    let cases: [&[u8]; 12] = [
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /_ping HTTP/9.9\r\nHost: d\r\n\r\n",
        b"GET _ping HTTP/1.1\r\nHost: d\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nHost: d\r\nBad Header: x\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nHost: d\r\nContent-Length: x\r\n\r\n",
        b"POST /containers/create HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\nffffffffffffffffffff\r\n",
        b"GET /containers/%zz/json HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n",
        b"GET /containers/\xff\xfe/json HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n",
        deep.as_bytes(),
        long.as_bytes(),
        many.as_bytes(),
    ];
    for bytes in cases {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        let mut connection = Connection::open(&engine.socket()).unwrap();
        // It may hang up before it has read everything.
        let _ = connection.send_raw(bytes);
        let _ = connection.half_close();
        if let Ok((status, _)) = connection.head() {
            assert!(
                (400..600).contains(&status) || shown.starts_with("GET /_ping"),
                "{shown:?}: {status}"
            );
        }
        assert!(engine.answers(), "after {shown:?}");
    }
    // Requests that are never finished, and connections on which nothing is said, keep nobody else
    // waiting.
    let idle: Vec<Connection> = (0..200)
        .map(|_| Connection::open(&engine.socket()).unwrap())
        .collect();
    let mut half = Connection::open(&engine.socket()).unwrap();
    half.send_raw(
        b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"Image\":",
    )
    .unwrap();
    assert_eq!(
        engine.cli(Program::Docker).sh(&[], "echo served").ok(),
        "served"
    );
    drop((idle, half));
}

#[test]
fn one_connection_serves_many_requests() {
    let engine = Engine::start();
    let mut connection = Connection::open(&engine.socket()).unwrap();
    for _ in 0..3 {
        connection.send("GET", "/_ping", &[], b"").unwrap();
        assert_eq!(connection.response().unwrap().text(), "OK");
        connection
            .send("GET", "/containers/nosuch/json", &[], b"")
            .unwrap();
        assert_eq!(connection.response().unwrap().status, 404);
    }
    // A body in chunks is a body.
    let body = "{\"Image\": \"busybox\", \"HostConfig\": {\"NetworkMode\": \"none\"}}";
    let (first, second) = body.split_at(20);
    let request = format!(
        "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len()
    );
    connection.send_raw(request.as_bytes()).unwrap();
    assert_eq!(connection.response().unwrap().status, 201);
}

#[test]
fn events_tell_a_containers_life_in_order() {
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
fn an_event_says_all_of_its_object() {
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
fn wait_has_three_conditions() {
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
fn filters_that_are_wrong_are_refused() {
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
fn info_and_version_describe_the_engine() {
    let engine = Engine::start();
    engine.cli(Program::Docker).up("up", &[], &["sleep", "600"]);
    engine.create(
        "made",
        &json!({"Image": "busybox", "HostConfig": {"NetworkMode": "none"}}),
    );
    let info = engine.get("/info");
    let counts = [
        "Containers",
        "ContainersRunning",
        "ContainersPaused",
        "ContainersStopped",
        "Images",
    ]
    .map(|key| info[key].as_i64().unwrap());
    assert_eq!(counts, [2, 1, 0, 1, 1]);
    assert_eq!(
        (info["OSType"].as_str(), info["DockerRootDir"].as_str()),
        (
            Some("linux"),
            Some(engine.root().display().to_string().as_str())
        )
    );
    assert!(info["NCPU"].as_i64().unwrap() >= 1 && info["MemTotal"].as_i64().unwrap() > 0);
    for output in [
        engine.docker(&[
            "info",
            "--format",
            "{{.ContainersRunning}} {{.LoggingDriver}}",
        ]),
        engine.whelk(&[
            "info",
            "--format",
            "{{.ContainersRunning}} {{.LoggingDriver}}",
        ]),
    ] {
        assert_eq!(output.ok(), "1 local");
    }
}

#[test]
fn keys_of_settings_match_whatever_their_case() {
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
fn what_the_engine_does_not_have_is_told_by_name() {
    let engine = Engine::start();
    engine.create(
        "made",
        &json!({"Image": "busybox", "HostConfig": {"NetworkMode": "none"}}),
    );
    let no_swarm = (503, "This node is not a swarm manager");
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
        (
            "POST /swarm/init".to_owned(),
            (501, "swarm mode: not available in this version of whelk"),
        ),
        ("POST /swarm/join".to_owned(), missing),
        ("POST /nodes/x/update?version=1".to_owned(), no_swarm),
        ("GET /services/x/logs".to_owned(), no_swarm),
        ("GET /tasks/x/logs".to_owned(), no_swarm),
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
        ("POST /build".to_owned(), missing),
        ("POST /build/cancel?id=x".to_owned(), missing),
        ("POST /session".to_owned(), missing),
        ("POST /grpc".to_owned(), missing),
        ("GET /distribution/localhost:1/x/json".to_owned(), missing),
        ("GET /images/search?term=x".to_owned(), missing),
        ("GET /images/busybox/attestations".to_owned(), missing),
        (
            "GET /images/nosuch/attestations".to_owned(),
            (404, "No such image: nosuch:latest"),
        ),
        ("POST /images/busybox/push".to_owned(), missing),
        ("POST /auth".to_owned(), missing),
        ("POST /commit?container=made".to_owned(), missing),
        ("POST /containers/made/checkpoints".to_owned(), missing),
        ("DELETE /containers/made/checkpoints/c".to_owned(), missing),
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
    for operation in ["enable", "disable", "upgrade?remote=x", "push", "set"] {
        operations.push((format!("POST /plugins/a/x/{operation}"), no_plugin));
    }
    // Of a container that is not there, this is what is told first.
    for operation in ["stats", "changes", "archive?path=/", "attach/ws"] {
        operations.push((format!("GET /containers/made/{operation}"), missing));
        operations.push((
            format!("GET /containers/nosuch/{operation}"),
            (404, "No such container: nosuch"),
        ));
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
fn what_an_exec_prints_is_framed_as_its_start_asks() {
    let engine = Engine::start();
    engine
        .cli(Program::Docker)
        .up("target", &[], &["sleep", "60"]);
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
        // The connection goes on.
        client.send("GET", "/_ping", &[], b"").unwrap();
        assert_eq!(client.response().unwrap().status, 200, "{method} {path}");
    }
    // Who asks before sending is answered without.
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
fn streams_are_asked_for_in_all_the_ways_that_clients_have() {
    let engine = Engine::start();
    engine
        .cli(Program::Docker)
        .up("target", &[], &["sleep", "60"]);
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
fn what_keeps_an_attach_from_its_stream_is_plain_text() {
    let engine = Engine::start();
    engine
        .cli(Program::Docker)
        .up("target", &[], &["sleep", "60"]);
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
fn sizes_of_terminals_are_checked_before_the_object_is_looked_up() {
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
        .up("target", &[], &["sleep", "60"]);
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
    let (unstarted, running) = (exec(&["true"]), exec(&["sleep", "60"]));
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
fn operations_on_an_unknown_container_in_dockers_words() {
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
        // The only one that tells what it was to do.
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
fn signals_that_stop_and_restart_do_not_know() {
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
    // Also where it closes its output long before.
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
    // What cannot run says so all the same.
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

/// The most memory that the engine has ever had, in MiB.
fn peak_memory(engine: &Engine) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", engine.daemon_pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[test]
fn bodies_of_many_small_values_cost_little_memory_and_hold_up_nobody() {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};
    /// What a body may be at most, and how many come at once.
    const LARGEST: usize = 8 << 20;
    const CLIENTS: usize = 6;
    /// Of the engine, in MiB: the bodies themselves, and what becomes of one of them. A tree of one
    /// alone takes more.
    const MOST: u64 = 400;
    let engine = Engine::without_images(&[]);
    let list = |value: &str, count: usize| format!("[{}]", vec![value; count].join(","));
    let fill = |value: &str| list(value, (LARGEST - 100) / (value.len() + 1));
    let keys = |count: usize| {
        format!(
            "{{{}}}",
            (0..count)
                .map(|number| format!("\"{number:x}\":\"\""))
                .collect::<Vec<_>>()
                .join(",")
        )
    };
    let rows = fill(&list("[]", 60_000));
    let unknown = format!("{{\"Image\":\"nosuch\",\"Unknown\":{rows}}}");
    let health = format!("{{\"Image\":\"nosuch\",\"Healthcheck\":{rows}}}");
    let labels = format!(
        "{{\"Image\":\"nosuch\",\"Labels\":{},\"Env\":{}}}",
        keys(250_000),
        list("\"\"", 60_000)
    );
    let mounts = format!(
        "{{\"Image\":\"nosuch\",\"HostConfig\":{{\"Mounts\":{}}}}}",
        list("{}", 60_000)
    );
    let endpoints = (0..250_000)
        .map(|number| format!("\"{number:x}\":{{}}"))
        .collect::<Vec<_>>()
        .join(",");
    let endpoints = format!(
        "{{\"Image\":\"nosuch\",\"NetworkingConfig\":{{\"EndpointsConfig\":{{{endpoints}}}}}}}"
    );
    let cases = [
        (
            "too long",
            fill("[]"),
            "invalid JSON: an array has more than 65536 elements",
        ),
        (
            "too large",
            list("[]", (16 << 20) / 3),
            "length limit exceeded",
        ),
        (
            "long rows",
            rows,
            "invalid JSON: json: cannot unmarshal array into Go value of type container.CreateRequest",
        ),
        ("unknown fields", unknown, "No such image: nosuch:latest"),
        (
            "health check",
            health,
            "invalid JSON: json: cannot unmarshal array into Go struct field",
        ),
        ("labels", labels, "No such image: nosuch:latest"),
        ("mounts", mounts, "No such image: nosuch:latest"),
        (
            "endpoints",
            endpoints,
            "invalid JSON: more than 1024 endpoints",
        ),
    ];
    let done = AtomicBool::new(false);
    let begin = Instant::now();
    let (held_up, wrong) = std::thread::scope(|scope| {
        // The time in which a request had been waiting for more than a second. If bodies were decoded
        // on the threads that serve requests, that would be most of the time; a busy machine may hold
        // up single requests.
        let pings = scope.spawn(|| {
            let mut held_up = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let begin = Instant::now();
                assert!(engine.answers());
                held_up += begin.elapsed().saturating_sub(Duration::from_secs(1));
                std::thread::sleep(Duration::from_millis(20));
            }
            held_up
        });
        let mut wrong = Vec::new();
        for (what, body, message) in &cases {
            let send = || {
                engine.http(
                    "POST",
                    "/containers/create",
                    &[("content-type", "application/json")],
                    body.as_bytes(),
                )
            };
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(send)).collect();
            for answer in clients.into_iter().map(|client| client.join()) {
                let said = answer.map_or("no answer".into(), |response| {
                    format!("{} {}", response.status, response.text())
                });
                if !(said.starts_with('4') && said.contains(message)) {
                    wrong.push(format!("{what}: {said}"));
                }
            }
            eprintln!(
                "{what}: {} KiB, {} MiB",
                body.len() >> 10,
                peak_memory(&engine)
            );
        }
        done.store(true, Ordering::Relaxed);
        (pings.join().unwrap(), wrong)
    });
    assert_eq!(wrong, Vec::<String>::new());
    let peak = peak_memory(&engine);
    assert!(peak < MOST, "{peak} MiB");
    let took = begin.elapsed();
    assert!(
        held_up * 4 < took,
        "_ping was held up for {held_up:?} of {took:?}"
    );
}
