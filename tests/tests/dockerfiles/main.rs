//! Dockerfiles: what whelk makes of each case below `tests/dockerfiles`, compared with what Docker 28 has made of it,
//! with both protocols.
//!
//! `NAME.cases` has the cases of a subject (`case`), `NAME.expected` what came of them (`expected`), which is recorded
//! from a Docker engine:
//!
//! ```console
//! WHELK_RECORD=docker DOCKER_HOST=unix:///… cargo test -p whelk-tests --test dockerfiles
//! WHELK_RECORD=whelk cargo test -p whelk-tests --test dockerfiles      # only where a case says that whelk differs
//! WHELK_CASES=copy.chmod …                                             # only cases whose name begins so
//! ```
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]

mod case;
mod client;
mod expected;
mod image;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use case::{Case, Protocol};
use client::Client;
use expected::{Expected, Who};
use whelk_tests::Engine;

/// What a client has made of a case, as lines of text.
type Observation = Vec<String>;

/// What was observed of cases with each protocol.
type Observations = BTreeMap<(String, Protocol), Observation>;

fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/dockerfiles"))
}

#[test]
fn dockerfiles_give_what_docker_makes_of_them() {
    let wanted = std::env::var("WHELK_CASES").unwrap_or_default();
    let mut cases = case::all(&directory());
    cases.retain(|case| case.name.starts_with(&wanted));
    let mut expected = Expected::read(&directory());
    let record = std::env::var("WHELK_RECORD").unwrap_or_default();
    if record == "docker" {
        let host = std::env::var("DOCKER_HOST").expect("DOCKER_HOST of the engine to record from");
        let found = Client::of_host(&host).observe(&cases);
        for ((name, protocol), observation) in found {
            expected.set(&name, Who::Docker(protocol), observation);
        }
        expected.write(&directory());
        return;
    }
    let engine = Engine::start();
    let found = Client::of_engine(&engine).observe(&cases);
    if record == "whelk" {
        for case in &cases {
            for protocol in case.protocols() {
                let who = Who::Whelk(protocol);
                if case.differs(protocol).is_some() {
                    let observation = found[&(case.name.clone(), protocol)].clone();
                    expected.set(&case.name, who, observation);
                } else {
                    expected.remove(&case.name, who);
                }
            }
        }
        expected.write(&directory());
        return;
    }
    compare(&cases, &expected, &found);
}

/// Checks that each case gave what is recorded, and that each difference has a reason.
#[track_caller]
fn compare(cases: &[Case], expected: &Expected, found: &Observations) {
    let mut problems = String::new();
    for case in cases {
        for protocol in case.protocols() {
            let who = match case.differs(protocol) {
                None => Who::Docker(case.like(protocol)),
                Some(_) => Who::Whelk(protocol),
            };
            let got = &found[&(case.name.clone(), protocol)];
            let Some(wanted) = expected.get(&case.name, who) else {
                writeln!(problems, "=== {}: nothing is recorded for {who}", case.name).unwrap();
                continue;
            };
            let wanted = match (protocol, who) {
                (Protocol::Classic, Who::Docker(Protocol::BuildKit)) => &told_by_classic(wanted),
                _ => wanted,
            };
            if wanted != got {
                let difference = difference(wanted, got);
                let name = &case.name;
                writeln!(problems, "=== {name}: not as {who}:\n{difference}").unwrap();
            } else if let Who::Whelk(_) = who
                && expected.get(&case.name, Who::Docker(protocol)) == Some(got)
            {
                let name = &case.name;
                writeln!(problems, "=== {name}: does not differ ({protocol})").unwrap();
            }
        }
    }
    assert!(problems.is_empty(), "{problems}");
}

/// Returns what a classic build would show of what was observed with BuildKit's protocol: the error is one line, there are no warnings.
fn told_by_classic(lines: &[String]) -> Observation {
    let told = lines.iter().filter_map(|line| {
        if line.starts_with("history ") || line.starts_with("config ArgsEscaped ") {
            return None;
        }
        let Some(text) = line.strip_prefix("| ") else {
            return Some(line.clone());
        };
        let error = text.strip_prefix("ERROR: failed to build: failed to solve: ");
        error.map(|error| format!("| {error}"))
    });
    told.collect()
}

/// Returns the lines of one or the other only.
fn difference(wanted: &[String], got: &[String]) -> String {
    let only = |sign: char, all: &[String], other: &[String]| {
        let lines = all.iter().filter(|line| !other.contains(line));
        lines
            .map(|line| format!("{sign} {line}\n"))
            .collect::<String>()
    };
    let lines = only('-', wanted, got) + &only('+', got, wanted);
    if lines.is_empty() {
        return format!("another order:\n- {wanted:?}\n+ {got:?}");
    }
    lines
}
