//! Sources of builds that are not a directory of the client: standard input, URLs, git repositories, ssh agents, and
//! images of all kinds.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

mod contexts;
mod git;
mod http;
mod named;
mod ssh;

use std::path::Path;

use whelk_tests::{Cli, Engine, Output, Program};

const BUILDKIT: &[(&str, &str)] = &[
    ("DOCKER_BUILDKIT", "1"),
    ("BUILDX_NO_DEFAULT_ATTESTATIONS", "1"),
];
const CLASSIC: &[(&str, &str)] = &[("DOCKER_BUILDKIT", "0")];

fn docker(engine: &Engine) -> Cli<'_> {
    engine.cli(Program::Docker).with_env(BUILDKIT)
}

/// Builds with buildx, and returns what was shown.
#[track_caller]
fn built(engine: &Engine, args: &[&str]) -> String {
    let output = build(engine, args);
    output.ok();
    output.err()
}

fn build(engine: &Engine, args: &[&str]) -> Output {
    docker(engine).run(&[&["build", "--progress", "plain"], args].concat())
}

/// Builds without BuildKit, and returns what was shown.
#[track_caller]
fn classic(engine: &Engine, args: &[&str]) -> String {
    let cli = engine.cli(Program::Docker).with_env(CLASSIC);
    cli.run(&[&["build"], args].concat()).ok()
}

/// Makes a context that has only a Dockerfile.
fn only(engine: &Engine, name: &str, dockerfile: &str) -> String {
    let path = engine.scratch_with(name, &[("Dockerfile", dockerfile)]);
    text(&path).to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns the output of a program in an image.
#[track_caller]
fn run(engine: &Engine, image: &str, script: &str) -> String {
    engine
        .docker(&["run", "--rm", image, "sh", "-c", script])
        .ok()
}

#[track_caller]
fn shows(text: &str, expected: &[&str]) {
    for wanted in expected {
        assert!(text.contains(wanted), "{wanted:?} in {text}");
    }
}
