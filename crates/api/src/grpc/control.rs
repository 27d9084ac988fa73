//! The service `Control`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use whelk_build::gc::{Condition, Policy, Record};
use whelk_build::{Progress, Request, Settings};
use whelk_buildkit::grpc::{Call, Result, Status};
use whelk_buildkit::pb::control::{
    BuildHistoryRequest, BuildkitVersion, DiskUsageRequest, DiskUsageResponse, InfoResponse,
    ListWorkersResponse, PruneRequest, SolveRequest, SolveResponse, StatusRequest,
    UpdateBuildHistoryRequest, UsageRecord, WorkerRecord,
};
use whelk_buildkit::pb::gateway::{self, result};
use whelk_buildkit::pb::{Timestamp, Unused};
use whelk_dockerfile::convert::ResolveMode;
use whelk_image::Platform;
use whelk_llb::pb;

use super::builds::{Build, Reference};
use super::client::SessionClient;
use super::{Door, progress};

/// The version of BuildKit whose protocol this is, which clients compare with what they need.
const VERSION: &str = "v0.25.1";

/// The version of the Dockerfile language.
const DOCKERFILE: &str = "1.19.0";

impl Door {
    pub(super) async fn control(self: Arc<Self>, method: &str, mut call: Call) -> Result<()> {
        match method {
            "Solve" => {
                let request = call.request().await?;
                let response = self.solve(request).await?;
                call.responses.send(&response).await
            }
            "Status" => {
                let request: StatusRequest = call.request().await?;
                let build = self.builds.get(&request.r#ref).await?;
                progress::tell(&build, &call.responses).await
            }
            "Session" => self.session(call).await,
            "Info" => {
                let buildkit_version = Some(version());
                call.responses
                    .send(&InfoResponse { buildkit_version })
                    .await
            }
            "ListWorkers" => {
                let record = vec![self.worker()];
                call.responses.send(&ListWorkersResponse { record }).await
            }
            "DiskUsage" => {
                let request: DiskUsageRequest = call.request().await?;
                let records = self.usage(request).await?;
                let record = records.iter().map(usage_record).collect();
                call.responses.send(&DiskUsageResponse { record }).await
            }
            "Prune" => {
                let request = call.request().await?;
                for record in self.prune(request).await? {
                    call.responses.send(&usage_record(&record)).await?;
                }
                Ok(())
            }
            "ListenBuildHistory" => {
                let request: BuildHistoryRequest = call.request().await?;
                // No build is recorded: there is nothing to tell of past ones, nor of new ones.
                if !request.early_exit {
                    call.responses.closed().await;
                }
                Ok(())
            }
            "UpdateBuildHistory" => {
                let request: UpdateBuildHistoryRequest = call.request().await?;
                let text = format!("build {} is not in the history", request.r#ref);
                match request.finalize {
                    true => call.responses.send(&Unused {}).await,
                    false => Err(Status::not_found(text)),
                }
            }
            _ => Err(Status::unimplemented(format!(
                "unknown method {method} of Control"
            ))),
        }
    }

    async fn solve(self: &Arc<Self>, mut request: SolveRequest) -> Result<SolveResponse> {
        check(&request)?;
        if request.exporters.is_empty() && !request.exporter.is_empty() {
            request
                .exporters
                .push(whelk_buildkit::pb::control::Exporter {
                    kind: std::mem::take(&mut request.exporter),
                    attrs: std::mem::take(&mut request.exporter_attrs),
                });
        }
        let exports = super::export::parse(&request.exporters)?;
        let client = SessionClient {
            sessions: self.sessions.clone(),
            session: request.session.clone(),
            contexts: self.contexts.clone(),
        };
        let common = Request {
            client: Arc::new(client),
            settings: Settings {
                host_network: request.entitlements.iter().any(|one| one == "network.host"),
                ..Settings::default()
            },
            resolve: ResolveMode::Default,
            progress: Progress::default(),
            project: String::new(),
            is_explained: false,
        };
        let build = Build::new(
            request.r#ref,
            request.session.clone(),
            common,
            request.frontend_inputs,
        );
        let _running = self.builds.begin(&build)?;
        let solving: BoxFuture<'_, Result<SolveResponse>> = Box::pin(async {
            let result = match (request.frontend.as_str(), request.definition) {
                ("", None) => {
                    let mut returned = build.returned.subscribe();
                    let returned = returned.wait_for(Option::is_some).await;
                    let returned = returned.ok().and_then(|returned| returned.clone());
                    returned.unwrap_or_else(|| Err(Status::canceled()))?
                }
                ("", Some(definition)) => {
                    let images = whelk_build::Images::default();
                    let common = build.request.clone();
                    let reference = Reference::new(common, definition, images, None)?;
                    self.result(&build, reference)
                }
                (frontend, _) => {
                    self.frontend(&build, frontend, &request.frontend_attrs, &build.inputs)
                        .await?
                }
            };
            self.export(&build, &result, &exports).await
        });
        // A client that is gone needs no result. Without a session, the call's own end tells.
        let session = build.session.clone();
        let left = async {
            if session.is_empty() || self.sessions.get(&session).await.is_err() {
                std::future::pending::<()>().await;
            }
            self.sessions.ended(&session).await;
        };
        tokio::select! {
            result = solving => result,
            () = left => Err(Status::unavailable("the session of the build has ended")),
        }
    }

    /// Keeps a reference as the result of a build.
    pub(super) fn result(&self, build: &Build, reference: Reference) -> gateway::Result {
        let (id, reference) = build.add(reference);
        let mut result = gateway::Result::default();
        if let Some((image, _)) = &reference.image
            && let Ok(config) = serde_json::to_vec(image)
        {
            result
                .metadata
                .insert("containerimage.config".into(), config);
        }
        result.kind = Some(result::Kind::Ref(gateway::Ref {
            id,
            def: Some(reference.definition.clone()),
        }));
        result
    }

    pub(super) fn worker(&self) -> WorkerRecord {
        let host = Platform::host();
        WorkerRecord {
            id: self.engine.id.clone(),
            platforms: vec![pb::Platform::new(
                &host.os,
                &host.architecture,
                &host.variant,
            )],
            buildkit_version: Some(version()),
            ..WorkerRecord::default()
        }
    }

    async fn usage(self: &Arc<Self>, request: DiskUsageRequest) -> Result<Vec<Record>> {
        let filters = conditions(&request.filter)?;
        let door = self.clone();
        let records = blocking(move || door.builder.usage()).await?;
        let holds = |record: &Record| {
            filters.is_empty()
                || filters
                    .iter()
                    .any(|all| all.iter().all(|condition| condition.holds(record)))
        };
        Ok(records.into_iter().filter(holds).collect())
    }

    /// Returns what was removed.
    async fn prune(self: &Arc<Self>, request: PruneRequest) -> Result<Vec<Record>> {
        let space = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
        let policy = Policy {
            all: request.all,
            keep_duration: Duration::from_nanos(space(request.keep_duration)),
            reserved_space: space(request.reserved_space),
            max_used_space: space(request.max_used_space),
            min_free_space: space(request.min_free_space),
            filters: conditions(&request.filter)?,
        };
        let door = self.clone();
        blocking(move || {
            let before = door.builder.usage()?;
            let pruned = door.builder.prune(&policy)?;
            if policy.is_everything() {
                door.clear_contexts()?;
            }
            let is_gone = |record: &Record| pruned.ids.contains(&record.id);
            Ok(before.into_iter().filter(is_gone).collect())
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> whelk_build::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| Status::unknown(error.to_string()))?;
    done.map_err(|error| Status::unknown(error.to_string()))
}

fn conditions(filters: &[String]) -> Result<Vec<Vec<Condition>>> {
    // Clients send an empty one if they have none.
    let filters = filters.iter().filter(|text| !text.is_empty());
    let parsed = filters.map(|text| Condition::parse_all(text));
    parsed
        .collect::<std::result::Result<_, _>>()
        .map_err(Status::invalid)
}

fn version() -> BuildkitVersion {
    BuildkitVersion {
        package: "github.com/moby/buildkit".into(),
        version: VERSION.into(),
        dockerfile_version: DOCKERFILE.into(),
        ..BuildkitVersion::default()
    }
}

fn usage_record(record: &Record) -> UsageRecord {
    let size = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    UsageRecord {
        id: record.id.clone(),
        in_use: record.in_use,
        size: size(record.size),
        created_at: Some(Timestamp::from_nanos(record.created)),
        last_used_at: (record.used > 0).then(|| Timestamp::from_nanos(record.used)),
        usage_count: size(record.uses),
        description: record.description.clone(),
        record_type: record.kind.name().into(),
        shared: record.shared,
        parents: record.parent.iter().cloned().collect(),
        ..UsageRecord::default()
    }
}

/// Refuses what is not supported.
fn check(request: &SolveRequest) -> Result<()> {
    let unsupported = |what: &str| {
        let text = format!("{what}: not available in this version of whelk");
        Err(Status::unimplemented(text))
    };
    if request.r#ref.is_empty() {
        return Err(Status::invalid("the build has no ref"));
    }
    if let Some(right) = request
        .entitlements
        .iter()
        .find(|one| *one != "network.host")
    {
        return unsupported(&format!("the entitlement {right}"));
    }
    if request.source_policy.is_some() || !request.source_policy_session.is_empty() {
        return unsupported("source policies");
    }
    if request.enable_session_exporter {
        return unsupported("exporters of the client's session");
    }
    if request.proxy_network {
        return unsupported("builds on a proxied network");
    }
    let cache = request.cache.clone().unwrap_or_default();
    if let Some(export) = cache.exports.first() {
        return unsupported(&format!("cache export to {}", export.kind));
    }
    if !cache.export_ref.is_empty() {
        return unsupported("cache export to a registry");
    }
    // Caches to import are only a hint: what is not found there is built.
    Ok(())
}
