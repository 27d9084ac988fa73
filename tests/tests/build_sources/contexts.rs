//! Contexts on standard input, and from URLs.

use serde_json::Value;
use whelk_tests::builds::json_file;
use whelk_tests::tar::Tar;
use whelk_tests::web::{Answer, Web};
use whelk_tests::{Engine, images};

use crate::{docker, run, shows};

const DOCKERFILE: &str = "FROM busybox\nCOPY x /x\n";

fn archive(content: &str) -> Vec<u8> {
    Tar::new()
        .file("Dockerfile", DOCKERFILE)
        .file("sub/Dockerfile", "FROM busybox\nCOPY x /y\n")
        .file(".dockerignore", "x\n")
        .file("x", content)
        .finish()
}

#[test]
fn standard_input_is_a_dockerfile_or_an_archive() {
    let engine = Engine::start();
    let docker = docker(&engine);
    let build = |args: &[&str], input: &[u8]| {
        let plain = ["build"];
        docker.feed(&[&plain, args].concat(), input)
    };
    build(&["-t", "in:1", "-"], b"FROM busybox\nRUN echo text > /x\n").ok();
    assert_eq!(run(&engine, "in:1", "cat /x"), "text");
    let built = build(&["-t", "in:2", "-"], &archive("of tar"));
    built.ok();
    shows(&built.err(), &["[internal] load remote build context"]);
    assert_eq!(run(&engine, "in:2", "cat /x"), "of tar");
    for compress in [images::bzip2, images::xz] {
        let content = format!("of {:?}", compress(b"").get(1..3));
        build(&["-t", "in:2", "-"], &compress(&archive(&content))).ok();
        assert_eq!(run(&engine, "in:2", "cat /x"), content);
    }
    let args = ["-t", "in:3", "-f", "sub/Dockerfile", "-"];
    build(&args, &archive("of another tar")).ok();
    assert_eq!(run(&engine, "in:3", "cat /y"), "of another tar");
    // The Dockerfile is read, and the context is a directory.
    let context = engine.scratch_with("dir", &[("x", "of dir")]);
    let args = ["-t", "in:4", "-f", "-", context.to_str().unwrap()];
    build(&args, DOCKERFILE.as_bytes()).ok();
    assert_eq!(run(&engine, "in:4", "cat /x"), "of dir");
    // The same again is in the cache, though it came in another way.
    let again = build(&["-t", "in:5", "-"], &archive("of tar"));
    again.ok();
    shows(&again.err(), &["CACHED"]);
    let broken = build(&["-"], &archive("x")[..700]);
    assert_eq!(broken.code, 1, "{}", broken.err());
    let none = build(&["-"], b"");
    assert_eq!(none.code, 1);
    shows(
        &none.err(),
        &["no local sources enabled", "must not be empty"],
    );
}

#[test]
fn contexts_come_from_urls() {
    let engine = Engine::start();
    let server = Web::start(|asked| match asked.path.as_str() {
        "/context.tar" => Answer::new(200, archive("of a URL")),
        "/context.tar.xz" => Answer::new(200, images::xz(&archive("of xz"))),
        "/lower.tar" => {
            let files = Tar::new().file("dockerfile", DOCKERFILE);
            Answer::new(200, files.file("x", "in lower case").finish())
        }
        "/Dockerfile" => Answer::new(200, "FROM busybox\nRUN echo alone > /x\n")
            .header("Content-Type", "text/plain"),
        _ => Answer::new(404, "no such file"),
    });
    let url = server.url("/context.tar");
    crate::built(&engine, &["-t", "url:1", &url]);
    assert_eq!(run(&engine, "url:1", "cat /x"), "of a URL");
    crate::built(&engine, &["-t", "url:2", "-f", "sub/Dockerfile", &url]);
    assert_eq!(run(&engine, "url:2", "cat /y"), "of a URL");
    crate::built(&engine, &["-t", "url:2", &server.url("/context.tar.xz")]);
    assert_eq!(run(&engine, "url:2", "cat /x"), "of xz");
    let dockerfile = server.url("/Dockerfile");
    let metadata = engine.scratch_text("provenance") + "/metadata";
    let flags = ["-t", "url:3", "--metadata-file", &metadata];
    crate::built(&engine, &[&flags[..], &[&dockerfile]].concat());
    // The Dockerfile is a material, though nothing else of the context is.
    let provenance = &json_file(metadata.as_ref())["buildx.build.provenance"];
    let materials = provenance["materials"].as_array().unwrap();
    let is_known = |one: &Value| one["uri"] == *dockerfile && one["digest"]["sha256"].is_string();
    assert!(materials.iter().any(is_known), "{provenance}");
    assert_eq!(run(&engine, "url:3", "cat /x"), "alone");
    let failed = crate::build(&engine, &[&server.url("/none")]);
    shows(&failed.err(), &["invalid response status 404"]);
    // The parameter of the classic API, which docker-py uses.
    for (path, file, content) in [
        ("/context.tar", "x", "of a URL"),
        ("/context.tar.xz", "x", "of xz"),
        ("/context.tar&dockerfile=sub/Dockerfile", "y", "of a URL"),
        ("/Dockerfile", "x", "alone"),
        ("/lower.tar", "x", "in lower case"),
    ] {
        let path = format!("/build?t=remote&remote={}", server.url(path));
        let answer = engine.http("POST", &path, &[], b"");
        shows(&answer.text(), &["Successfully tagged remote:latest"]);
        let found = run(&engine, "remote", &format!("cat /{file}"));
        assert_eq!(found, content, "{path}");
    }
    for (remote, error) in [
        (server.url("/none"), "invalid response status 404"),
        ("nonsense".to_owned(), "could not be recognized as URL"),
        ("client-session".to_owned(), "use builder version v2"),
    ] {
        let answer = engine.http("POST", &format!("/build?remote={remote}"), &[], b"");
        assert_eq!(answer.status, 400, "{}", answer.text());
        shows(&answer.text(), &[error]);
    }
}
