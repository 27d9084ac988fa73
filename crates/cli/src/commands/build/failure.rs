//! Errors of builds, with the lines of the Dockerfile that they are about.

use whelk_buildkit::details::places;
use whelk_buildkit::grpc::Status;
use whelk_dockerfile::Lines;
use whelk_dockerfile::report::excerpt;
use whelk_llb::pb::Range;

use crate::Failure;
use crate::terminal::harmless;

/// Returns the failure of a command for what the engine has answered.
pub(super) fn failure(status: &Status) -> Failure {
    told("failed to build", status)
}

/// Returns the failure of a command for what the engine has answered of one of several targets.
pub(crate) fn failure_of_target(name: &str, status: &Status) -> Failure {
    told(&format!("target {name}"), status)
}

/// Returns the failure of a command for what the engine has answered before there are targets.
pub(crate) fn solve_failure(status: &Status) -> Failure {
    told("", status)
}

fn told(what: &str, status: &Status) -> Failure {
    let message = match status.message.strip_prefix("connection lost") {
        Some(rest) => format!("connection to the engine lost{rest}"),
        None => status.message.clone(),
    };
    let separator = if what.is_empty() { "" } else { ": " };
    let text = format!(
        "{}ERROR: {what}{separator}failed to solve: {message}",
        excerpts(status)
    );
    Failure {
        hint: false,
        ..Failure::new(harmless(&text))
    }
}

/// Returns the lines of files that an error is about.
pub(crate) fn excerpts(status: &Status) -> String {
    let mut text = String::new();
    for place in places(status) {
        let lines: Vec<Lines> = place
            .ranges
            .iter()
            .map(|(first, last)| lines(*first, *last))
            .collect();
        text += &excerpt(
            &place.filename,
            &String::from_utf8_lossy(&place.data),
            &lines,
        );
    }
    text
}

/// Returns the failure of a command for an error that has another cause than the build.
pub(super) fn not_built(failure: Failure) -> Failure {
    Failure {
        text: format!("ERROR: failed to build: {}", failure.text),
        hint: false,
        ..failure
    }
}

fn lines(first: usize, last: usize) -> Lines {
    let number = |line: usize| u32::try_from(line).unwrap_or(u32::MAX);
    Lines::new(number(first), number(last.max(first)))
}

/// Returns the lines of ranges.
pub(super) fn lines_of(ranges: &[Range]) -> Vec<Lines> {
    let number = |position: Option<whelk_llb::pb::Position>| {
        position
            .and_then(|position| usize::try_from(position.line).ok())
            .unwrap_or(0)
    };
    let ranges = ranges.iter();
    ranges
        .map(|range| lines(number(range.start), number(range.end)))
        .collect()
}
