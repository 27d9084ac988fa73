//! Why a build has failed: the lines of the Dockerfile, and what the step has written last.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use whelk_buildkit::details::failed_vertex;
use whelk_buildkit::grpc::{Result, Status};
use whelk_buildkit::pb::control::{BuildHistoryRecord, StatusRequest, StatusResponse};
use whelk_buildkit::pb::{Message as _, RpcStatus};

use super::super::{Builds, failed};
use super::Error;
use crate::commands::build::excerpts;
use crate::{Failure, Outcome};

/// The number of lines of output that are shown.
const LINES: usize = 16;

/// Maximum number of bytes of output that are kept to find these.
const KEPT: usize = 64 << 10;

/// Adds to an error what the record's details and its output say.
///
/// # Errors
/// Returns an error if the engine does not give them.
pub(super) async fn complete(
    builds: &Builds,
    record: &BuildHistoryRecord,
    error: &mut Error,
) -> Outcome<()> {
    let Some(descriptor) = &record.external_error else {
        return Ok(());
    };
    let bytes = builds.blob(&descriptor.digest).await?;
    let status = RpcStatus::decode(&*bytes).map_err(|cause| {
        let digest = &descriptor.digest;
        Failure::new(format!(
            "failed to unmarshal external error {digest}: {cause}"
        ))
    })?;
    let status = Status::from_message(status);
    error.excerpts = excerpts(&status);
    error.sources = STANDARD.encode(&error.excerpts);
    if let Some(vertex) = failed_vertex(&status) {
        let told = output(builds, &record.r#ref, &vertex).await;
        (error.name, error.logs) = told.map_err(failed)?;
    }
    Ok(())
}

/// Returns the name of a step, and the last lines of its output.
async fn output(builds: &Builds, build: &str, vertex: &str) -> Result<(String, Vec<String>)> {
    let method = "moby.buildkit.v1.Control/Status";
    let mut stream = builds.channel.stream(method, Default::default())?;
    let request = StatusRequest {
        r#ref: build.to_owned(),
    };
    stream.requests.send(&request).await?;
    stream.requests.close();
    let (mut name, mut text) = (String::new(), Vec::new());
    while let Some(response) = stream.next::<StatusResponse>().await? {
        if let Some(known) = response.vertexes.iter().find(|one| one.digest == vertex) {
            name.clone_from(&known.name);
        }
        for log in response.logs.iter().filter(|log| log.vertex == vertex) {
            text.extend_from_slice(&log.msg);
        }
        let surplus = text.len().saturating_sub(KEPT);
        text.drain(..surplus);
    }
    Ok((name, last_lines(&text)))
}

fn last_lines(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let surplus = lines.len().saturating_sub(LINES);
    let lines = lines.into_iter().skip(surplus);
    lines.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept() {
        let text: String = (0..40).map(|number| format!("{number}\n\n")).collect();
        let lines = last_lines(text.as_bytes());
        assert_eq!(lines.len(), LINES);
        assert_eq!(lines.last().map(String::as_str), Some("39"));
        assert_eq!(last_lines(b""), [""; 0]);
    }
}
