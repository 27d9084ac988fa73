//! Serves the engine while it builds: files, secrets, credentials, and places for what it makes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use whelk_buildkit::content;
use whelk_buildkit::files::{self, Files};
use whelk_buildkit::grpc::{self, Call, Result, Status};
use whelk_buildkit::pb::session::{
    CheckAgentRequest, CredentialsRequest, CredentialsResponse, GetSecretRequest, GetSecretResponse,
};
use whelk_buildkit::pb::{HealthCheckResponse, Unused};
use whelk_buildkit::session::{CREDENTIALS, DIFF_COPY, FilesRequest, SECRET, SEND};
use whelk_buildkit::ssh;

use super::agents::Agents;
use super::contexts::Source;
use super::outputs::Output;
use super::secrets::Secrets;
use super::stores::Stores;
use super::walk::{Directory, Nothing, Single};
use crate::credentials;

const HEALTH: &str = "grpc.health.v1.Health/Check";

/// The methods that the engine may call.
const METHODS: [&str; 7] = [
    DIFF_COPY,
    SEND,
    SECRET,
    CREDENTIALS,
    HEALTH,
    content::READ,
    content::WRITE,
];

/// What the engine may ask for.
#[derive(Debug)]
pub(super) struct Session {
    pub sources: BTreeMap<String, Source>,
    pub secrets: Arc<Secrets>,
    pub agents: Agents,
    pub outputs: Vec<Output>,
    pub stores: Stores,
    /// The directory of the client's configuration, which has credentials.
    pub config: Option<PathBuf>,
}

impl Session {
    /// Returns the methods that the engine may call.
    pub fn methods(&self) -> Vec<&'static str> {
        let agents: &[&str] = match self.agents.is_empty() {
            true => &[],
            false => &[ssh::CHECK, ssh::FORWARD],
        };
        [&METHODS, agents].concat()
    }

    /// Serves the calls of a connection until it ends.
    pub async fn serve(self: Arc<Self>, stream: impl grpc::Io) {
        // The engine closes the connection when a build is done, or is gone, which the build's own call tells.
        let _ = grpc::serve(
            stream,
            grpc::Limits::default(),
            Default::default,
            move |call| self.clone().answer(call),
        )
        .await;
    }

    async fn answer(self: Arc<Self>, mut call: Call) -> Result<()> {
        match call.method.as_str() {
            DIFF_COPY => {
                let wanted = FilesRequest::of_call(&call.metadata);
                files::answer(call, self.files(wanted)?).await
            }
            SEND => {
                let index = call.entry("buildkit-attachable-exporter-id").unwrap_or("0");
                let index: usize = index.parse().unwrap_or(usize::MAX);
                let output = self.outputs.get(index);
                let output = output.ok_or_else(|| Status::not_found("no such output"))?;
                output.receive(call).await
            }
            SECRET => {
                let request: GetSecretRequest = call.request().await?;
                let secrets = self.secrets.clone();
                // It may be a pipe that nobody writes to.
                let read = tokio::task::spawn_blocking(move || secrets.read(&request.id));
                let data = read.await;
                let data = data.map_err(|error| Status::unknown(error.to_string()))??;
                call.responses.send(&GetSecretResponse { data }).await
            }
            CREDENTIALS => {
                let request: CredentialsRequest = call.request().await?;
                let found = self.credentials(request.host).await?;
                call.responses.send(&found).await
            }
            content::READ | content::WRITE => self.stores.answer(call).await,
            ssh::CHECK => {
                let request: CheckAgentRequest = call.request().await?;
                self.agents.find(&request.id)?;
                call.responses.send(&Unused {}).await
            }
            ssh::FORWARD => self.agents.forward(call).await,
            HEALTH => {
                let status = HealthCheckResponse::SERVING;
                call.responses.send(&HealthCheckResponse { status }).await
            }
            other => Err(Status::unimplemented(format!("unknown method {other}"))),
        }
    }

    fn files(&self, wanted: FilesRequest) -> Result<Arc<dyn Files>> {
        let source = self.sources.get(&wanted.name);
        Ok(match source {
            None => {
                let text = format!("no access allowed to dir {:?}", wanted.name);
                return Err(Status::not_found(text));
            }
            Some(Source::Directory(root)) => Arc::new(Directory::new(root.clone(), wanted)),
            Some(Source::File { name, content }) => Arc::new(Single {
                name: name.clone(),
                content: content.clone(),
            }),
            Some(Source::Empty) => Arc::new(Nothing),
        })
    }

    async fn credentials(&self, host: String) -> Result<CredentialsResponse> {
        let Some(config) = self.config.clone() else {
            return Ok(CredentialsResponse::default());
        };
        let registry = match host.as_str() {
            "registry-1.docker.io" => credentials::HUB.to_owned(),
            _ => host,
        };
        // A credential helper may take its time.
        let found =
            tokio::task::spawn_blocking(move || credentials::find(&config, &registry)).await;
        let found = found.map_err(|error| Status::unknown(error.to_string()))?;
        let found = found.map_err(|failure| Status::unknown(failure.text))?;
        Ok(match found.identitytoken.as_str() {
            "" => CredentialsResponse {
                username: found.username,
                secret: found.password,
            },
            token => CredentialsResponse {
                username: String::new(),
                secret: token.to_owned(),
            },
        })
    }
}
