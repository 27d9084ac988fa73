//! Sources of builds that are not a directory of the client: standard input, URLs, git repositories, ssh agents, and
//! images of all kinds.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

mod bakes;
mod contexts;
mod git;
mod git_ssh;
mod http;
mod kept;
mod keys;
mod meta;
mod named;
mod policies;
mod ssh;
mod sshd;
mod uploads;

use std::path::Path;

use whelk_tests::builds::{classic as classic_client, docker, shows};
use whelk_tests::{Engine, Output};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Builds with buildx, and returns what was shown.
#[track_caller]
fn built(engine: &Engine, args: &[&str]) -> String {
    let output = build(engine, args);
    output.ok();
    output.err()
}

fn build(engine: &Engine, args: &[&str]) -> Output {
    docker(engine).run(&[&["build"], args].concat())
}

/// Builds without BuildKit, and returns what was shown.
#[track_caller]
fn classic(engine: &Engine, args: &[&str]) -> String {
    classic_client(engine)
        .run(&[&["build"], args].concat())
        .ok()
}

/// Makes a context that has only a Dockerfile.
fn only(engine: &Engine, name: &str, dockerfile: &str) -> String {
    text(&engine.dockerfile(name, dockerfile)).to_owned()
}

/// Returns the output of a program in an image.
#[track_caller]
fn run(engine: &Engine, image: &str, script: &str) -> String {
    engine
        .docker(&["run", "--rm", image, "sh", "-c", script])
        .ok()
}
