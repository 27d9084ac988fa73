//! HTTP connections: keep-alive, invalid HTTP, and the memory that requests take.

use whelk_tests::processes::peak_memory;
use whelk_tests::{Connection, Engine, Program};

#[test]
fn malformed_requests_do_not_disturb_other_clients() {
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
        // The engine may close the connection before it has read everything.
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
    // Incomplete requests and idle connections do not delay other clients.
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
fn a_connection_serves_several_requests() {
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
    // A chunked body is read too.
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
fn bodies_of_many_small_values_need_little_memory_and_do_not_delay_others() {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};
    /// Maximum size of a body, and the number of concurrent bodies.
    const LARGEST: usize = 8 << 20;
    const CLIENTS: usize = 6;
    /// Maximum of the engine's memory in MiB: all bodies, and one of them decoded. As a tree of values,
    /// one body alone would take more.
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
        (
            "mounts",
            mounts,
            r#"invalid mount config for type \"\": mount type unknown"#,
        ),
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
        // on the threads that serve requests, that would be most of the time, in each case; a busy machine
        // may hold up single requests, of which the longest does not count.
        let pings = scope.spawn(|| {
            let (mut held_up, mut longest) = (Duration::ZERO, Duration::ZERO);
            while !done.load(Ordering::Relaxed) {
                let begin = Instant::now();
                assert!(engine.answers());
                let late = begin.elapsed().saturating_sub(Duration::from_secs(1));
                held_up += late;
                longest = longest.max(late);
                std::thread::sleep(Duration::from_millis(20));
            }
            held_up.saturating_sub(longest)
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
