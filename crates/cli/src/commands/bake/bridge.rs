//! Questions to the engine, in builds of their own that have no result.

use hyper::header::{HeaderMap, HeaderValue};
use tokio::task::JoinHandle;
use whelk_buildkit::grpc::{Channel, Code, Status};
use whelk_buildkit::pb::control::{SolveRequest, SolveResponse};
use whelk_buildkit::pb::gateway::{self, FileRange, ReadFileRequest, ReadFileResponse};

use crate::Outcome;
use crate::commands::build::{policy, random_id};

/// A build that is cancelled when this is dropped.
pub(super) struct Bridge {
    channel: Channel,
    id: String,
    building: JoinHandle<Result<SolveResponse, Status>>,
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.building.abort();
    }
}

impl Bridge {
    /// Begins a build with a session.
    pub fn open(channel: &Channel, session: String, entitlements: Vec<String>) -> Outcome<Self> {
        let id = random_id()?;
        let build = SolveRequest {
            r#ref: id.clone(),
            session,
            entitlements,
            internal: true,
            source_policy: policy::from_environment()?,
            ..SolveRequest::default()
        };
        let own = channel.clone();
        let building = async move {
            let method = "moby.buildkit.v1.Control/Solve";
            own.unary::<SolveResponse>(method, &build).await
        };
        Ok(Self {
            channel: channel.clone(),
            id,
            building: tokio::spawn(building),
        })
    }

    /// Returns the name of the build.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Asks for a result, which is built when it is needed.
    pub async fn solve(
        &mut self,
        request: &gateway::SolveRequest,
    ) -> Result<gateway::SolveResponse, Status> {
        let metadata = metadata(&self.id)?;
        let method = "moby.buildkit.v1.frontend.LLBBridge/Solve";
        let asking = self.channel.unary_with(method, metadata, request);
        tokio::select! {
            answer = asking => answer,
            ended = &mut self.building => Err(match ended {
                Ok(Err(status)) => status,
                _ => Status::unavailable("the build has ended before it has an answer"),
            }),
        }
    }

    /// Reads at most the first `most` bytes of a file of a result. Returns `None` if there is no such file.
    pub async fn read(
        &self,
        reference: &str,
        path: &str,
        most: i64,
    ) -> Result<Option<Vec<u8>>, Status> {
        let request = ReadFileRequest {
            r#ref: reference.to_owned(),
            file_path: path.to_owned(),
            range: Some(FileRange {
                offset: 0,
                length: most,
            }),
        };
        let method = "moby.buildkit.v1.frontend.LLBBridge/ReadFile";
        let answer =
            self.channel
                .unary_with::<ReadFileResponse>(method, metadata(&self.id)?, &request);
        match answer.await {
            Ok(answer) => Ok(Some(answer.data)),
            Err(status) if status.code == Code::NotFound => Ok(None),
            Err(status) => Err(status),
        }
    }
}

/// Returns the metadata of calls in a build.
fn metadata(build: &str) -> Result<HeaderMap, Status> {
    let mut metadata = HeaderMap::new();
    let id = HeaderValue::from_str(build).map_err(|error| Status::unknown(error.to_string()))?;
    metadata.insert("buildkit-controlapi-buildid", id);
    Ok(metadata)
}
