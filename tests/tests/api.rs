//! The Engine API as it is spoken on the socket: versions, errors, streams, and what is no HTTP at all.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a panic with its place is all the error handling that a test needs")]

use serde_json::{Value, json};
use whelk_tests::{Connection, Engine, Program, escape, now_nanos};

/// The newest version that the engine speaks, as major and minor.
fn newest(engine: &Engine) -> (String, u32) {
    let version = engine.get("/version")["ApiVersion"].as_str().unwrap().to_owned();
    let minor = version.strip_prefix("1.").unwrap().parse().unwrap();
    (version, minor)
}

#[track_caller]
fn check(engine: &Engine, method: &str, path: &str, body: Option<&Value>, status: u16, message: &str) {
    let (found, answer) = engine.api(method, path, body);
    assert_eq!((found, answer["message"].as_str()), (status, Some(message)), "{method} {path}: {answer}");
}

#[test]
fn every_version_from_1_24_on_is_spoken() {
    let engine = Engine::start();
    let (_, newest) = newest(&engine);
    assert!(newest >= 51, "clients of Docker 28 speak 1.51");
    let id = engine.create("made", &json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}));
    for minor in 24..=newest {
        let list = engine.get(&format!("/v1.{minor}/containers/json?all=1"));
        assert_eq!(list[0]["Id"], id.as_str(), "1.{minor}");
        assert_eq!(engine.get(&format!("/v1.{minor}/version"))["MinAPIVersion"], "1.24", "1.{minor}");
        // What older clients read, and newer ones do not get any more.
        let image = engine.get(&format!("/v1.{minor}/images/busybox/json"));
        assert_eq!(image.get("VirtualSize").is_some(), minor <= 43, "1.{minor}");
        assert_eq!(image.get("ContainerConfig").is_some(), minor <= 44, "1.{minor}");
    }
    let (status, answer) = engine.api(
        "POST",
        "/v1.24/containers/create?name=old",
        Some(&json!({"Image": "busybox", "Cmd": ["sh", "-c", "exit 6"], "HostConfig": {"NetworkMode": "none"}})),
    );
    assert_eq!(status, 201, "{answer}");
    assert_eq!(engine.api("POST", "/v1.24/containers/old/start", None).0, 204);
    assert_eq!(engine.api("POST", "/v1.24/containers/old/wait", None), (200, json!({"StatusCode": 6})));
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
        assert_eq!((response.status, response.text().contains(&text)), (400, true), "{}", response.text());
    }
    for new in [format!("1.{}", minor + 1), "1.999".to_owned(), "2".to_owned()] {
        check(
            &engine,
            "GET",
            &format!("/v{new}/info"),
            None,
            400,
            &format!("client version {new} is too new. Maximum supported API version is {version}"),
        );
    }
    let output = engine.docker(&["version", "--format", "{{.Server.MinAPIVersion}} {{.Server.Os}}"]);
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
        assert!(response.header("docker-experimental").is_some() && response.header("server").is_some());
    }
    let response = engine.http("HEAD", "/_ping", &[], b"");
    assert_eq!((response.status, response.header("api-version")), (200, Some(version.as_str())));
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
    ];
    for (method, path) in paths {
        check(&engine, method, path, None, 404, "page not found");
    }
    check(&engine, "GET", "/containers/nosuch/json", None, 404, "No such container: nosuch");
    check(&engine, "GET", "/images/nosuch/json", None, 404, "No such image: nosuch:latest");
    check(&engine, "POST", "/containers/nosuch/start", None, 404, "No such container: nosuch");
}

#[test]
fn bodies_that_are_wrong_are_refused_with_a_reason() {
    let engine = Engine::start();
    let post = |kind: Option<&str>, body: &str| {
        let headers: Vec<(&str, &str)> = kind.map(|kind| ("Content-Type", kind)).into_iter().collect();
        let response = engine.http("POST", "/containers/create", &headers, body.as_bytes());
        (response.status, response.json()["message"].as_str().unwrap_or_default().to_owned())
    };
    let json_kind = Some("application/json");
    for (body, text) in [
        ("garbage", "invalid JSON: "),
        ("{", "invalid JSON: "),
        ("[]", "invalid JSON: "),
        ("{\"Image\": 5}", "invalid JSON: "),
        ("{\"Image\": \"busybox\", \"Env\": {\"a\": \"b\"}}", "invalid JSON: "),
        ("", "invalid JSON: got EOF while reading request body"),
        ("{} x", "unexpected content after JSON"),
        ("null", "config cannot be empty in order to create a container"),
        ("{}", "config cannot be empty in order to create a container"),
    ] {
        let (status, message) = post(json_kind, body);
        assert!(status == 400 && message.starts_with(text), "{body}: {status} {message}");
    }
    assert_eq!(
        post(Some("text/plain"), "{}"),
        (400, "unsupported Content-Type header (text/plain): must be 'application/json'".to_owned())
    );
    // Unknown fields do no harm, names are not case-sensitive, and a command may be one string.
    let (status, answer) =
        post(json_kind, "{\"image\": \"busybox\", \"Nosuch\": 1, \"Cmd\": \"echo\", \"HostConfig\": {\"NetworkMode\": \"none\"}}");
    assert_eq!(status, 201, "{answer}");
    assert_eq!(engine.get("/containers/json?all=1").as_array().unwrap().len(), 1);
}

#[test]
fn garbage_on_the_socket_hurts_nobody() {
    let engine = Engine::start();
    let deep = format!(
        "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 200000\r\n\r\n{}",
        "[".repeat(200_000)
    );
    let long = format!("GET /_ping HTTP/1.1\r\nHost: d\r\nX-Long: {}\r\n\r\n", "x".repeat(2 << 20));
    let many = format!("GET /_ping HTTP/1.1\r\nHost: d\r\n{}\r\n", "X-Many: y\r\n".repeat(50_000));
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
            assert!((400..600).contains(&status) || shown.starts_with("GET /_ping"), "{shown:?}: {status}");
        }
        assert!(engine.answers(), "after {shown:?}");
    }
    // Requests that are never finished, and connections on which nothing is said, keep nobody else waiting.
    let idle: Vec<Connection> = (0..200).map(|_| Connection::open(&engine.socket()).unwrap()).collect();
    let mut half = Connection::open(&engine.socket()).unwrap();
    half.send_raw(
        b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"Image\":",
    )
    .unwrap();
    assert_eq!(engine.cli(Program::Docker).sh(&[], "echo served").ok(), "served");
    drop((idle, half));
}

#[test]
fn one_connection_serves_many_requests() {
    let engine = Engine::start();
    let mut connection = Connection::open(&engine.socket()).unwrap();
    for _ in 0..3 {
        connection.send("GET", "/_ping", &[], b"").unwrap();
        assert_eq!(connection.response().unwrap().text(), "OK");
        connection.send("GET", "/containers/nosuch/json", &[], b"").unwrap();
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
        cli.run(&["create", "--network", "none", "--name", "life", "--label", "k=v", "busybox", "sleep", "600"]).ok();
        for command in ["start", "pause", "unpause", "kill"] {
            cli.run(&[command, "life"]).ok();
        }
        engine.await_state("life", "exited");
        cli.run(&["rename", "life", "after"]).ok();
        cli.run(&["rm", "after"]).ok();
        let expected =
            ["create", "start", "pause", "unpause", "kill", "die", "rename", "destroy"].map(|action| format!("container {action}"));
        assert_eq!(live.until("destroy"), expected, "{program:?}");
    }
    engine.docker(&["tag", "busybox", "other:1"]).ok();
    engine.docker(&["rmi", "other:1"]).ok();
    // Up to now: the stream ends at once.
    let query = |filters: &str| engine.events(&format!("since={since}&until={}&filters={}", stamp(), escape(filters))).all();
    assert_eq!(query(r#"{"event": ["die"]}"#), ["container die"; 2]);
    assert_eq!(query(r#"{"event": ["create", "destroy"], "label": ["k=v"]}"#).len(), 4);
    assert_eq!(query(r#"{"event": {"create": true}, "container": {"life": true}}"#).len(), 2, "the old form");
    assert_eq!(query(r#"{"container": ["nosuch"]}"#), Vec::<String>::new());
    assert_eq!(query(r#"{"type": ["image"]}"#), ["image tag", "image untag"]);
    check(&engine, "GET", "/events?since=20&until=10", None, 400, "`since` time (20) cannot be after `until` time (10)");
}

#[test]
fn an_event_says_all_of_its_object() {
    let engine = Engine::start();
    let mut events = engine.events(&format!("filters={}", escape(r#"{"event": ["die"]}"#)));
    let id = engine.cli(Program::Docker).up("dies", &["--label", "k=v"], &["sh", "-c", "exit 9"]);
    let event = events.next_event().unwrap();
    let attributes = &event["Actor"]["Attributes"];
    assert_eq!(
        (event["Type"].as_str(), event["Action"].as_str(), event["Actor"]["ID"].as_str()),
        (Some("container"), Some("die"), Some(id.as_str()))
    );
    assert_eq!((event["status"].as_str(), event["id"].as_str(), event["from"].as_str()), (Some("die"), Some(id.as_str()), Some("busybox")));
    assert_eq!(
        (attributes["exitCode"].as_str(), attributes["name"].as_str(), attributes["k"].as_str()),
        (Some("9"), Some("dies"), Some("v"))
    );
    assert_eq!(event["scope"], "local");
    let (seconds, nanos) = (event["time"].as_i64().unwrap(), event["timeNano"].as_i64().unwrap());
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
        connection.send("POST", &format!("/containers/{name}/wait?condition={condition}"), &[], b"").unwrap();
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
    assert_eq!(engine.api("POST", "/containers/kept/wait?condition=not-running", None), (200, json!({"StatusCode": 0})), "it does not run");
    let (next, removed) = (start_wait("kept", "next-exit"), start_wait("kept", "removed"));
    assert_eq!(engine.api("POST", "/containers/kept/start", None).0, 204);
    let running = start_wait("kept", "not-running");
    engine.attach("kept", "stream=1&stdin=1", true).write(b"go\n");
    assert_eq!((finish(next), finish(running)), (json!(5), json!(5)));
    assert_eq!(engine.api("POST", "/containers/kept/wait", None), (200, json!({"StatusCode": 5})));
    assert_eq!(engine.api("DELETE", "/containers/kept", None).0, 204);
    assert_eq!(finish(removed), 5);
    make("gone", true);
    let removed = start_wait("gone", "removed");
    assert_eq!(engine.api("POST", "/containers/gone/start", None).0, 204);
    engine.attach("gone", "stream=1&stdin=1", true).write(b"go\n");
    assert_eq!(finish(removed), 5);
    check(&engine, "POST", "/containers/gone/wait", None, 404, "No such container: gone");
    make("other", false);
    check(&engine, "POST", "/containers/other/wait?condition=bogus", None, 400, "invalid condition: \"bogus\"");
}

#[test]
fn filters_that_are_wrong_are_refused() {
    let engine = Engine::without_images(&[]);
    let list = |filters: &str| engine.api("GET", &format!("/containers/json?all=1&filters={}", escape(filters)), None);
    for (filters, message) in [
        ("garbage", "invalid filter"),
        (r#"{"foo": ["bar"]}"#, "invalid filter 'foo'"),
        (
            r#"{"status": ["bogus"]}"#,
            "invalid filter 'status=bogus': invalid value for state (bogus): must be one of created, running, paused, restarting, removing, exited, dead",
        ),
        (r#"{"exited": ["abc"]}"#, "invalid filter 'exited=abc': strconv.Atoi: parsing \"abc\": invalid syntax"),
    ] {
        let (status, answer) = list(filters);
        assert_eq!((status, answer["message"].as_str()), (400, Some(message)), "{filters}");
    }
    assert_eq!(list(r#"{"status": {"exited": true}}"#), (200, json!([])), "the old form");
}

#[test]
fn info_and_version_describe_the_engine() {
    let engine = Engine::start();
    engine.cli(Program::Docker).up("up", &[], &["sleep", "600"]);
    engine.create("made", &json!({"Image": "busybox", "HostConfig": {"NetworkMode": "none"}}));
    let info = engine.get("/info");
    let counts =
        ["Containers", "ContainersRunning", "ContainersPaused", "ContainersStopped", "Images"].map(|key| info[key].as_i64().unwrap());
    assert_eq!(counts, [2, 1, 0, 1, 1]);
    assert_eq!(
        (info["OSType"].as_str(), info["DockerRootDir"].as_str()),
        (Some("linux"), Some(engine.root().display().to_string().as_str()))
    );
    assert!(info["NCPU"].as_i64().unwrap() >= 1 && info["MemTotal"].as_i64().unwrap() > 0);
    for output in [
        engine.docker(&["info", "--format", "{{.ContainersRunning}} {{.LoggingDriver}}"]),
        engine.whelk(&["info", "--format", "{{.ContainersRunning}} {{.LoggingDriver}}"]),
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
    assert_eq!((&shown["HostConfig"]["Memory"], &shown["Config"]["Cmd"]), (&json!(67_108_864), &json!(["true"])));
}

#[test]
fn there_is_no_swarm_and_clients_are_told_so() {
    let engine = Engine::start();
    for path in ["/swarm", "/nodes", "/services"] {
        let (status, answer) = engine.api("GET", path, None);
        assert_eq!(status, 503);
        assert!(answer["message"].as_str().unwrap().contains("This node is not a swarm manager"), "{answer}");
    }
    assert_eq!(engine.api("POST", "/swarm/leave?force=1", None).0, 503);
}

#[test]
fn what_an_exec_prints_is_framed_as_its_start_asks() {
    let engine = Engine::start();
    engine.cli(Program::Docker).up("target", &[], &["sleep", "60"]);
    let exec = || engine.create_exec("target", &json!({"Cmd": ["echo", "out"], "Tty": true, "AttachStdout": true, "AttachStderr": true}));
    // Created with a terminal, started without: frames, as the client will expect them.
    let start = |id: &str, tty: bool| {
        let body = json!({"Detach": false, "Tty": tty}).to_string();
        engine.http("POST", &format!("/exec/{id}/start"), &[("content-type", "application/json")], body.as_bytes()).body
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
        client.send(method, path, &tar, &upload).unwrap_or_else(|error| panic!("{method} {path}: cut off while sending: {error}"));
        let answer = client.response().unwrap();
        let told = answer.json()["message"].as_str().is_some_and(|text| !text.is_empty());
        assert!(answer.status >= 400 && told, "{method} {path}: {} {}", answer.status, answer.text());
        // The connection goes on.
        client.send("GET", "/_ping", &[], b"").unwrap();
        assert_eq!(client.response().unwrap().status, 200, "{method} {path}");
    }
    // Who asks before sending is answered without.
    let mut client = Connection::open(&engine.socket()).unwrap();
    let head = format!("PUT {unused} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n");
    client.send_raw(head.as_bytes()).unwrap();
    let status = client.head().unwrap().0;
    assert!(status >= 400, "{status}");
    engine.both(|cli| {
        let refused = cli.feed(&["import", "-c", "BOGUS", "-", "big"], &upload);
        refused.refuses(1, "BOGUS is not a valid change command");
    });
}
