//! Errors of builds as clients print them.

use whelk_build::Error;
use whelk_buildkit::details;
use whelk_buildkit::grpc::{Code, Status};
use whelk_dockerfile::Lines;
use whelk_llb::pb::{Position, Range, Source, SourceInfo};

/// Returns the status of a failed step, with its lines.
pub(super) fn status(error: &Error, source: Option<&Source>) -> Status {
    let text = match error.root() {
        // As BuildKit has it, where contents are compared first.
        Error::Missing { path, .. } => format!(
            "failed to compute cache key: failed to calculate checksum of ref: \"/{path}\": not found"
        ),
        _ => error.to_string(),
    };
    let mut status = Status::new(code(error), text);
    if let Error::Process { code, .. } = error.root() {
        status = status.with(details::exit(u32::try_from(*code).unwrap_or(u32::MAX)));
    }
    let Error::Step { op, .. } = error else {
        return status;
    };
    let digest = op.to_string();
    let place = source.and_then(|source| {
        let locations = source.locations.get(&digest)?;
        let location = locations.locations.first()?;
        let index = usize::try_from(location.source_index).ok()?;
        Some((source.infos.get(index)?, location.ranges.as_slice()))
    });
    status.at(&digest, place)
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
