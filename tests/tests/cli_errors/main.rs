//! Error texts and exit codes of both clients.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

mod arguments;
mod engine;
mod missing;
mod output;
mod transfers;

use whelk_tests::{Engine, eventually};

/// Runs a command line that must fail through both programs. Where Docker's text names its program,
/// ours may name itself.
#[track_caller]
fn check(engine: &Engine, args: &[&str], code: i32, text: &str) {
    engine.docker(args).refuses(code, text);
    let err = engine.whelk(args).fails(code);
    let renamed = text.replace("docker ", "whelk ");
    assert!(
        err.contains(text) || err.contains(&renamed),
        "whelk {}: expected {text:?} in {err:?}",
        args.join(" ")
    );
}

#[track_caller]
fn check_nothing_left(engine: &Engine) {
    eventually("nothing to be left", || {
        (engine.get("/containers/json?all=1") == serde_json::json!([])).then_some(())
    });
}
