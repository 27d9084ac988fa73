//! Secrets: their values are nowhere but in the process that they are for.

use std::fs;
use std::path::Path;

use whelk_tests::Engine;
use whelk_tests::builds::{docker, shows};

/// Returns the files below a directory that contain one of the texts.
fn found(directory: &Path, texts: &[&str], files: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        let (path, kind) = (entry.path(), entry.file_type());
        match kind {
            Ok(kind) if kind.is_dir() => found(&path, texts, files),
            Ok(kind) if kind.is_file() => {
                let content = fs::read(&path).unwrap_or_default();
                let has = |text: &&str| {
                    content
                        .windows(text.len())
                        .any(|part| part == text.as_bytes())
                };
                if texts.iter().any(has) {
                    files.push(path.display().to_string());
                }
            }
            _ => {}
        }
    }
}

#[test]
fn values_of_secrets_are_in_no_key_and_nowhere_on_the_disk() {
    let engine = Engine::start();
    let dockerfile = "FROM busybox\n\
        RUN --mount=type=secret,id=key,target=/x/key,mode=0440,uid=7,gid=8 stat -c '%a-%u-%g' /x/key; sha256sum /x/key | cut -c 1-8 > /sum\n\
        RUN --mount=type=secret,id=var,env=TOKEN echo ${#TOKEN} >> /sum; ls -l /x /run/secrets 2>/dev/null; true\n\
        RUN cat /proc/self/environ /proc/1/environ | tr '\\0' ' '\n";
    let context = engine.scratch_with("secrets", &[("Dockerfile", dockerfile)]);
    let directory = engine.scratch("values");
    let build = |first: &str, second: &str, args: &[&str]| {
        fs::write(directory.join("key"), first).unwrap();
        let key = format!("id=key,src={}", directory.join("key").display());
        let env = [whelk_tests::builds::BUILDKIT, &[("TOKEN_OF_TEST", second)]].concat();
        let cli = engine.cli(whelk_tests::Program::Docker).with_env(&env);
        let own = ["--secret", &key, "--secret", "id=var,env=TOKEN_OF_TEST"];
        cli.built(&context, &[&own[..], args].concat())
    };
    let values = ["the-first-value-of-a-key", "another-value-of-a-token"];
    let shown = build(values[0], values[1], &["-t", "secrets"]);
    shows(&shown, &["440-7-8"]);
    // Another value is no other step.
    let others = ["the-second-value-of-a-key", "one-more-value-of-a-token"];
    let shown = build(others[0], others[1], &["-t", "secrets"]);
    // The base image, and the three steps.
    assert_eq!(shown.matches(" CACHED").count(), 4, "{shown}");
    let look = ["run", "--rm", "--network", "none", "secrets", "cat", "/sum"];
    let sum = engine.docker(&look).ok();
    assert!(sum.ends_with(&values[1].len().to_string()), "{sum}");
    // With what a build can be asked to say about itself.
    let output = format!("type=oci,dest={}", directory.join("out.tar").display());
    let cache = format!(
        "type=local,dest={},mode=max",
        directory.join("cache").display()
    );
    let args = ["--provenance=mode=max", "-o", &output, "--cache-to", &cache];
    let mut all = build(
        values[0],
        values[1],
        &[&["--no-cache"][..], &args[..]].concat(),
    );
    all += &docker(&engine).run(&["buildx", "history", "logs"]).shown();
    all += &docker(&engine)
        .run(&["buildx", "history", "inspect"])
        .shown();
    let attachment = [
        "buildx",
        "history",
        "inspect",
        "attachment",
        "--type",
        "provenance",
    ];
    let attachment = docker(&engine).run(&attachment).shown();
    shows(&attachment, &["\"key\"", "\"var\""]);
    all += &attachment;
    all += &engine.docker(&["image", "inspect", "secrets"]).ok();
    all += &engine.docker(&["history", "--no-trunc", "secrets"]).ok();
    fs::remove_file(directory.join("key")).unwrap();
    let saved = directory.join("saved.tar");
    engine
        .docker(&["save", "-o", saved.to_str().unwrap(), "secrets"])
        .ok();
    let texts = [values, others].concat();
    for text in &texts {
        assert!(!all.contains(text), "{text} in {all}");
    }
    let mut files = Vec::new();
    for place in [engine.root(), engine.run(), directory] {
        found(&place, &texts, &mut files);
    }
    assert!(files.is_empty(), "{files:?}");
    engine.has_no_builds();
}
