//! API versions, and what the engine reports about itself.

use serde_json::json;
use whelk_tests::{Engine, Program};

use super::check;

/// The newest version that the engine speaks, as major and minor.
fn newest(engine: &Engine) -> (String, u32) {
    let version = engine.get("/version")["ApiVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    let minor = version.strip_prefix("1.").unwrap().parse().unwrap();
    (version, minor)
}

#[test]
fn serves_every_version_from_1_24() {
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
        // Fields for older clients that newer versions do not have.
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
fn rejects_other_versions_with_dockers_errors() {
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
fn ping_has_the_headers_that_clients_read() {
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
        assert_eq!(output.ok(), "1 json-file");
    }
}
