//! Definitions of `bake` on servers.

use std::path::Path;

use whelk_tests::builds::whelk;
use whelk_tests::tar::Tar;
use whelk_tests::web::{Answer, Web};
use whelk_tests::{Engine, Output, Program};

use crate::git::Host;
use crate::{run, shows};

const HCL: &str = r#"
target "default" { tags = ["remote:1"] }
target "sub" {
  context = "./sub"
  contexts = { named = "files", here = "cwd://mine", base = "target:default" }
  tags = ["remote:2"]
}
target "local" {
  context = BAKE_CMD_CONTEXT
  dockerfile-inline = "FROM busybox\nCOPY local.txt /\n"
  tags = ["remote:3"]
}
target "own-file" {
  dockerfile = "cwd://Own.Dockerfile"
  tags = ["remote:4"]
}
target "own-beside" {
  context = "sub"
  dockerfile = "cwd://Beside.Dockerfile"
  tags = ["remote:5"]
}
target "outside" {
  context = "cwd://.."
  dockerfile-inline = "FROM busybox\n"
}
target "stolen" {
  context = BAKE_CMD_CONTEXT
  dockerfile = "Own.Dockerfile"
}
"#;

const FILES: &[(&str, &str)] = &[
    ("docker-bake.hcl", HCL),
    ("Dockerfile", "FROM busybox\nCOPY root.txt /\n"),
    ("root.txt", "root"),
    (
        "sub/Dockerfile",
        "FROM base\nCOPY file /\nCOPY --from=named x /named\nCOPY --from=here y /here\n",
    ),
    ("sub/file", "of sub"),
    ("files/x", "of files"),
    (
        "other.yaml",
        "include: [sub/more.yaml]\nservices:\n  a: {extends: {service: b, file: base.yaml}}\n",
    ),
    ("base.yaml", "services:\n  b: {build: {context: dir}}\n"),
    ("sub/more.yaml", "services:\n  c: {build: {context: ctx}}\n"),
];

/// A directory of the command.
fn directory(engine: &Engine) -> std::path::PathBuf {
    engine.scratch_with(
        "here",
        &[
            ("local.txt", "local"),
            ("mine/y", "of mine"),
            ("Own.Dockerfile", "FROM busybox\nCOPY root.txt /own\n"),
            ("Beside.Dockerfile", "FROM busybox\nCOPY file /own\n"),
            (
                "more.hcl",
                "target \"default\" { args = { MORE = \"1\" } }\n",
            ),
        ],
    )
}

fn bake(engine: &Engine, program: Program, directory: &Path, words: &[&str]) -> Output {
    let cli = engine.cli(program).in_directory(directory);
    cli.run(&[&["buildx", "bake"], words].concat())
}

#[test]
fn definitions_of_a_repository_are_built() {
    let engine = Engine::start();
    let host = Host::new();
    host.repository("app", FILES);
    host.repository("nothing", &[("x", "y")]);
    let url = host.url("app.git");
    let directory = directory(&engine);
    for words in [
        &["--print", &*url][..],
        &["--print", &url, "sub", "local", "own-file"],
        &["--print", &url, "https://example.com/other.git", "local"],
        &[
            "--print",
            "-f",
            "cwd://more.hcl",
            "-f",
            "docker-bake.hcl",
            &url,
        ],
        &["--list", "targets", &url],
    ] {
        let shown = |program| bake(&engine, program, &directory, words).ok();
        assert_eq!(shown(Program::Whelk), shown(Program::Docker), "{words:?}");
    }
    let run_whelk = |words: &[&str]| {
        let cli = whelk(&engine).in_directory(&directory);
        cli.run(&[&["bake", "--progress", "plain"], words].concat())
    };
    run_whelk(&[&url, "default", "sub", "local", "own-file", "own-beside"]).exits(0);
    let look = |image: &str, script: &str| run(&engine, image, script);
    assert_eq!(look("remote:1", "cat /root.txt"), "root");
    let look_at_sub = "cat /root.txt /file /named /here";
    assert_eq!(look("remote:2", look_at_sub), "rootof subof filesof mine");
    assert_eq!(look("remote:3", "cat /local.txt"), "local");
    assert_eq!(look("remote:4", "cat /own"), "root");
    assert_eq!(look("remote:5", "cat /own"), "of sub");
    // Files of Compose name others of the repository.
    let composed = run_whelk(&["--print", "-f", "other.yaml", &url]).ok();
    shows(
        &composed,
        &["\"context\": \"dir\"", "\"context\": \"sub/ctx\""],
    );
    let [nothing, missing] = ["nothing.git", "missing.git"].map(|name| host.url(name));
    for (words, expected) in [
        (vec![&*url, "outside"], " - Read access to path ..\n"),
        (
            vec![&*url, "stolen"],
            "ERROR: target stolen: reading a dockerfile for a remote build invocation is currently not supported; \
             to use the one here, define dockerfile = \"cwd://",
        ),
        (
            vec!["-f", "none.hcl", &*url],
            "ERROR: open none.hcl: no such file or directory",
        ),
        (vec![&*nothing], "ERROR: couldn't find a bake definition"),
        (vec![&*missing], "ERROR: failed to solve: "),
    ] {
        let refused = run_whelk(&words);
        assert_eq!(refused.code, 1, "{words:?}");
        shows(&refused.err(), &[expected]);
    }
    let env = [("BAKE_ALLOW_REMOTE_FS_ACCESS", "1")];
    let cli = whelk(&engine).with_env(&env).in_directory(&directory);
    cli.run(&["bake", &url, "outside"]).exits(0);
    engine.has_no_builds();
}

#[test]
fn private_definitions_need_a_token() {
    const HEADER: &str = "Basic eC1hY2Nlc3MtdG9rZW46c2VjcmV0LXRva2Vu";
    let engine = Engine::start();
    let host = Host::with_password(HEADER);
    host.repository("private/app", FILES);
    let url = host.url("private/app.git");
    let directory = directory(&engine);
    let run_with = |variable: &str, value: &str| {
        let env = [(variable, value)];
        let cli = whelk(&engine).with_env(&env).in_directory(&directory);
        cli.run(&["bake", &url, "sub"])
    };
    let refused = run_with("BUILDX_BAKE_GIT_AUTH_TOKEN", "wrong");
    assert_eq!(refused.code, 1);
    shows(&refused.err(), &["ERROR: failed to solve: ", "401"]);
    for (variable, value) in [
        ("BUILDX_BAKE_GIT_AUTH_TOKEN", "secret-token"),
        ("BUILDX_BAKE_GIT_AUTH_HEADER", HEADER),
    ] {
        run_with(variable, value).exits(0);
        assert_eq!(run(&engine, "remote:2", "cat /file"), "of sub");
    }
}

#[test]
fn definitions_of_urls_are_built() {
    let engine = Engine::start();
    let web = Web::start(|asked| match asked.path.as_str() {
        "/x.hcl" => Answer::new(
            200,
            "target \"default\" {\n  dockerfile-inline = \"FROM busybox\\nCOPY local.txt /\\n\"\n  tags = [\"url:1\"]\n}\n",
        ),
        "/x.tar" => {
            let files = FILES.iter();
            let archive = files.fold(Tar::new(), |archive, (name, content)| {
                archive.file(name, content)
            });
            Answer::new(200, archive.finish())
        }
        "/large.hcl" => Answer::new(200, vec![b'#'; 5 << 20]),
        _ => Answer::new(404, "no"),
    });
    let directory = directory(&engine);
    let url = web.url("/x.hcl");
    let words = ["--print", &url];
    let shown = |program| bake(&engine, program, &directory, &words).ok();
    assert_eq!(shown(Program::Whelk), shown(Program::Docker));
    // Paths of a single file are those of the command.
    bake(&engine, Program::Whelk, &directory, &[&url]).exits(0);
    assert_eq!(run(&engine, "url:1", "cat /local.txt"), "local");
    let archive = web.url("/x.tar");
    bake(
        &engine,
        Program::Whelk,
        &directory,
        &[&archive, "default", "sub"],
    )
    .exits(0);
    assert_eq!(run(&engine, "remote:1", "cat /root.txt"), "root");
    assert_eq!(
        run(&engine, "remote:2", "cat /file /named"),
        "of subof files"
    );
    for (path, expected) in [
        ("/large.hcl", "has more than 4194304 bytes"),
        ("/missing", "404"),
    ] {
        let refused = bake(&engine, Program::Whelk, &directory, &[&web.url(path)]);
        assert_eq!(refused.code, 1);
        shows(&refused.err(), &["ERROR: ", expected]);
    }
}

#[test]
fn a_dockerfile_of_this_machine_is_none_of_a_repository() {
    let engine = Engine::start();
    let host = Host::new();
    host.repository("app", &[("Dockerfile", "FROM scratch\n"), ("x", "y")]);
    let url = host.url("app.git");
    let file = engine.dockerfile("own", "FROM busybox\nCOPY x /from-file\n");
    let path = file.join("Dockerfile");
    let path = path.to_str().unwrap();
    for (program, tag) in [(Program::Whelk, "whelk:1"), (Program::Docker, "docker:1")] {
        let cli = engine.cli(program);
        cli.run(&["buildx", "build", "-t", tag, "--load", "-f", path, &url])
            .exits(0);
        assert_eq!(run(&engine, tag, "cat /from-file"), "y");
        let cli = engine.cli(program);
        let words = ["buildx", "build", "-t", tag, "--load", "-f", "-", &url];
        cli.feed(&words, b"FROM busybox\nCOPY x /from-input\n")
            .exits(0);
        assert_eq!(run(&engine, tag, "cat /from-input"), "y");
    }
}
