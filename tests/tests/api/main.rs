//! The Engine API on the socket: versions, errors, streams, and invalid HTTP.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
#![allow(
    clippy::too_many_lines,
    reason = "a case is one story, read from top to bottom"
)]

mod connections;
mod events;
mod fields;
mod requests;
mod responses;
mod streams;
mod versions;
mod websocket;

use serde_json::Value;
use whelk_tests::Engine;

#[track_caller]
fn check(
    engine: &Engine,
    method: &str,
    path: &str,
    body: Option<&Value>,
    status: u16,
    message: &str,
) {
    let (found, answer) = engine.api(method, path, body);
    assert_eq!(
        (found, answer["message"].as_str()),
        (status, Some(message)),
        "{method} {path}: {answer}"
    );
}
