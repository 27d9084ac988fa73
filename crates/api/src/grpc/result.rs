//! Errors of builds as clients print them.

use whelk_build::Error;
use whelk_buildkit::cut::beginning;
use whelk_buildkit::details;
use whelk_buildkit::grpc::{Code, Status};
use whelk_dockerfile::Lines;
use whelk_llb::Digest;
use whelk_llb::pb::{Position, Range, Source, SourceInfo};

/// Returns the text of an error of this step.
pub(super) fn message(error: &Error, step: Option<&Digest>) -> String {
    /// Number of digits of a step's digest that stand for what is read of it.
    const REF: usize = 25;
    let Error::Missing { path, .. } = error.root() else {
        return error.to_string();
    };
    // As BuildKit has it, where contents are compared first.
    let of = step.map_or_else(String::new, |step| {
        let digest = step.to_string();
        let digits = digest.trim_start_matches("sha256:");
        format!(" {}", beginning(digits, REF))
    });
    format!(
        "failed to compute cache key: failed to calculate checksum of ref{of}: \"/{path}\": not found"
    )
}

/// Returns the status of a failed step, with its lines.
pub(super) fn status(error: &Error, source: Option<&Source>) -> Status {
    let text = match error {
        Error::Step { op, .. } => message(error, Some(op)),
        _ => message(error, None),
    };
    let mut status = Status::new(code(error), text);
    if let Error::Process { code, .. } = error.root() {
        status = status.with(details::exit(u32::try_from(*code).unwrap_or(u32::MAX)));
    }
    let Error::Step { op, .. } = error else {
        return status;
    };
    status.at(&op.to_string(), source)
}

/// Returns the status of an error of the frontend, with the lines of the Dockerfile.
pub(super) fn of_frontend(error: &Error, file: &SourceInfo) -> Status {
    let status = Status::new(code(error), error.to_string());
    match error {
        Error::Dockerfile(place) | Error::Unavailable { place, .. } if !place.lines.is_empty() => {
            status.with(details::source(file, &ranges(&place.lines)))
        }
        _ => status,
    }
}

pub(super) fn ranges(lines: &[Lines]) -> Vec<Range> {
    let position = |line: u32| {
        let line = i32::try_from(line).unwrap_or(i32::MAX);
        Some(Position { line, character: 0 })
    };
    let lines = lines.iter().filter(|lines| lines.first > 0);
    lines
        .map(|lines| Range {
            start: position(lines.first),
            end: position(lines.last),
        })
        .collect()
}

/// Most errors are printed without a code.
fn code(error: &Error) -> Code {
    match error.root() {
        Error::Engine(error) => match **error {
            whelk_engine::Error::Denied(_) => Code::PermissionDenied,
            _ => Code::Unknown,
        },
        _ => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_as_buildkit_does() {
        let missing = Error::Missing {
            instruction: None,
            path: "a".into(),
        };
        let op = Digest::of(b"step");
        let digest = op.to_string();
        let text = format!(
            "failed to compute cache key: failed to calculate checksum of ref {}: \"/a\": not found",
            &digest[7..32]
        );
        assert_eq!(message(&missing, Some(&op)), text);
        let error = Error::Step {
            op,
            cause: Box::new(missing),
        };
        assert_eq!(status(&error, None).message, text);
    }
}
