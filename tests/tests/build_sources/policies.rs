//! Source policies: which sources a build may use, and which others it uses in their place.

use serde_json::{Value, json};
use whelk_tests::builds::{BUILDKIT, docker, shows, whelk};
use whelk_tests::web::{Answer, Web};
use whelk_tests::{Cli, Engine, Output, images};

use crate::{only, run, text};

const VARIABLE: &str = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY";

/// Writes a policy, and returns its path.
fn policy(engine: &Engine, name: &str, rules: &[Value]) -> String {
    let content = json!({"version": 1, "rules": rules}).to_string();
    let place = engine.scratch_with(name, &[("policy.json", &content)]);
    text(&place.join("policy.json")).to_owned()
}

fn deny(identifier: &str) -> Value {
    json!({"action": "DENY", "selector": {"identifier": identifier}})
}

fn convert(identifier: &str, updates: &Value) -> Value {
    json!({"action": "CONVERT", "selector": {"identifier": identifier}, "updates": updates})
}

/// Builds with the policy in a file.
#[track_caller]
fn build(client: Cli<'_>, policy: &str, args: &[&str]) -> Output {
    let env = [BUILDKIT, &[(VARIABLE, policy)]].concat();
    client.with_env(&env).run(&[&["build"], args].concat())
}

#[track_caller]
fn refused(client: Cli<'_>, policy: &str, args: &[&str], expected: &[&str]) {
    shows(&build(client, policy, args).fails(1), expected);
}

#[test]
fn files_of_servers_are_denied_and_pinned() {
    let engine = Engine::start();
    let web = Web::start(|asked| Answer::new(200, format!("content of {}", asked.path)));
    let url = web.url("/file");
    let context = only(
        &engine,
        "files",
        &format!("FROM busybox\nADD {url} /added\n"),
    );
    let denies = policy(&engine, "denies", &[deny("http://*")]);
    let shown = format!("source \"{url}\" denied by policy");
    let expected = [
        "error evaluating the source policy: ",
        &*shown,
        "(rule 1: DENY \"http://*\")",
        &format!(">>> ADD {url}"),
    ];
    for client in [docker(&engine), whelk(&engine)] {
        refused(client, &denies, &[&context], &expected);
    }
    assert!(web.asked().is_empty());
    let pinned = |name: &str, content: &[u8]| {
        let sum = format!("sha256:{}", images::sha256(content));
        let updates = json!({"attrs": {"http.checksum": sum}});
        policy(&engine, name, &[convert(&url, &updates)])
    };
    let right = pinned("right", b"content of /file");
    let wrong = pinned("wrong", b"other content");
    for client in [docker(&engine), whelk(&engine)] {
        build(client, &right, &["-t", "pinned", &context]).ok();
        refused(client, &wrong, &[&context], &["digest mismatch"]);
    }
    assert_eq!(run(&engine, "pinned", "cat /added"), "content of /file");
}

#[test]
fn images_are_denied_and_replaced() {
    let engine = Engine::start();
    let context = only(
        &engine,
        "images",
        "FROM nowhere/none:1\nRUN echo x > /made\n",
    );
    let busybox = "docker-image://docker.io/library/busybox:latest";
    let all = "docker-image://docker.io/nowhere/*";
    let replaces = [
        deny("docker-image://*"),
        json!({"action": "ALLOW", "selector": {"identifier": busybox}}),
        convert(all, &json!({"identifier": busybox})),
    ];
    let replaces = policy(&engine, "replaces", &replaces);
    for (client, tag) in [(docker(&engine), "one"), (whelk(&engine), "two")] {
        build(client, &replaces, &["-t", tag, &context]).ok();
        assert_eq!(run(&engine, tag, "cat /made"), "x");
    }
    let denies = policy(&engine, "denies", &[deny(all)]);
    let expected = [
        "could not resolve image due to policy: ",
        "source \"docker-image://docker.io/nowhere/none:1\" denied by policy",
        ">>> FROM nowhere/none:1",
    ];
    let updates = json!({"identifier": "local://context"});
    let away = policy(&engine, "away", &[convert(all, &updates)]);
    for client in [docker(&engine), whelk(&engine)] {
        refused(client, &denies, &[&context], &expected);
        let expected = ["ref mutated by policy to non-image"];
        refused(client, &away, &[&context], &expected);
    }
}

#[test]
fn directories_are_denied_and_replace_images() {
    let engine = Engine::start();
    let other = engine.scratch_with("other", &[("foo", "of a directory")]);
    let dockerfile = "FROM scratch AS replace\nFROM busybox\nCOPY --from=replace /foo /foo\n";
    let context = only(&engine, "directories", dockerfile);
    let from = "docker-image://docker.io/library/none:1";
    let updates = json!({"identifier": "local://other"});
    let replaces = policy(&engine, "replaces", &[convert(from, &updates)]);
    let other = format!("other={}", other.display());
    let contexts = [
        "--build-context",
        "replace=docker-image://none:1",
        "--build-context",
        &other,
        &context,
    ];
    for (client, tag) in [(docker(&engine), "one"), (whelk(&engine), "two")] {
        let args = [&["-t", tag], &contexts[..]].concat();
        build(client, &replaces, &args).ok();
        assert_eq!(run(&engine, tag, "cat /foo"), "of a directory");
    }
    // Nothing is read of a context that is denied.
    let denies = policy(&engine, "denies-other", &[deny("local://other")]);
    let dockerfile = "FROM busybox\nCOPY --from=other foo /\n";
    let reads = only(&engine, "reads", dockerfile);
    for client in [docker(&engine), whelk(&engine)] {
        let args = ["--build-context", &*other, &*reads];
        let shown = build(client, &denies, &args).fails(1);
        shows(&shown, &["source \"local://other\" denied by policy"]);
        assert!(!shown.contains("[context other]"), "{shown}");
    }
    let expected = ["source \"local://dockerfile\" denied by policy"];
    let denies = policy(&engine, "denies", &[deny("local://*")]);
    for client in [docker(&engine), whelk(&engine)] {
        refused(client, &denies, &[&context], &expected);
    }
}

#[test]
fn files_that_are_no_policies_are_refused() {
    let engine = Engine::start();
    let context = only(&engine, "plain", "FROM busybox\n");
    let wrong = policy(&engine, "wrong", &[json!({"action": "FORBID"})]);
    let without = policy(&engine, "without", &[json!({"action": "DENY"})]);
    for client in [docker(&engine), whelk(&engine)] {
        refused(
            client,
            "/none",
            &[&context],
            &["failed to read policy file"],
        );
        refused(
            client,
            &wrong,
            &[&context],
            &["failed to parse source policy"],
        );
        let expected = ["invalid nil selector in policy"];
        refused(client, &without, &[&context], &expected);
    }
}
