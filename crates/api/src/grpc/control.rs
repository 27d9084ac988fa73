//! The service `Control`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use whelk_build::gc::{Condition, Policy, Record};
use whelk_build::policy::Policies;
use whelk_build::{
    Attest, CacheExport, Entitlements, FailedSteps, Imports, Pieces, Progress, Request, Settings,
};
use whelk_buildkit::cut::beginning;
use whelk_buildkit::grpc::{Call, Result, Status};
use whelk_buildkit::pb::control::{
    BuildHistoryRequest, BuildkitVersion, DiskUsageRequest, DiskUsageResponse, GcPolicy,
    InfoResponse, ListWorkersRequest, ListWorkersResponse, PruneRequest, SolveRequest,
    SolveResponse, StatusRequest, UpdateBuildHistoryRequest, UsageRecord, WorkerRecord,
};
use whelk_buildkit::pb::gateway::{self, result};
use whelk_buildkit::pb::{Message as _, Timestamp};
use whelk_dockerfile::convert::ResolveMode;
use whelk_engine::events::now;

use super::builds::{Build, Reference};
use super::client::{Sent, SessionClient};
use super::export::Export;
use super::frontend::FrontendRequest;
use super::progress::{self, Listener};
use super::scope::Scope;
use super::{Buildkit, blocking};

/// The version of BuildKit whose protocol this is, which clients compare with what they need.
const VERSION: &str = "v0.25.1";

/// The label of a worker that can do more than make images of the engine.
const SNAPSHOTTER: &str = "org.mobyproject.buildkit.worker.snapshotter";

/// The label with the address that `host-gateway` stands for in `--add-host`, which clients replace.
const HOST_GATEWAY: &str = "org.mobyproject.buildkit.worker.moby.host-gateway-ip";

/// Maximum length of a build's name in bytes.
const MAX_REF: usize = 256;

/// The version of the Dockerfile language.
const DOCKERFILE: &str = "1.19.0";

/// The outputs and the caches that a build exports its result to.
struct Outputs {
    exports: Vec<Export>,
    caches: Vec<CacheExport>,
}

impl Buildkit {
    pub(super) async fn control(self: Arc<Self>, method: &str, mut call: Call) -> Result<()> {
        match method {
            "Solve" => {
                let request: SolveRequest = call.request().await?;
                let session = request.session.clone();
                let solved = self.solve(request, None).await;
                if solved.is_err() {
                    // Clients close the session when they have the error.
                    self.sessions.settled(&session).await;
                }
                call.responses.send(&solved?).await
            }
            "Status" => {
                let request: StatusRequest = call.request().await?;
                // Clients look at builds of the past, too.
                if self.replay(&request.r#ref, &call.responses).await? {
                    return Ok(());
                }
                let report = self.builds.report(&request.r#ref).await?;
                progress::tell(&report, &Listener::Client(call.responses)).await
            }
            "Session" => self.session(call).await,
            "Info" => {
                let buildkit_version = Some(version());
                call.responses
                    .send(&InfoResponse { buildkit_version })
                    .await
            }
            "ListWorkers" => {
                let request: ListWorkersRequest = call.request().await?;
                let worker = self.worker();
                let record = match is_listed(&worker, &request.filter)? {
                    true => vec![worker],
                    false => Vec::new(),
                };
                call.responses.send(&ListWorkersResponse { record }).await
            }
            "DiskUsage" => {
                let request: DiskUsageRequest = call.request().await?;
                let records = self.usage(request).await?;
                let record = shortened(records.iter().map(usage_record).collect());
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
                self.listen(&request, &call.responses).await
            }
            "UpdateBuildHistory" => {
                let request: UpdateBuildHistoryRequest = call.request().await?;
                let answer = self.update_history(request).await?;
                call.responses.send(&answer).await
            }
            _ => Err(Status::unimplemented(format!(
                "unknown method {method} of Control"
            ))),
        }
    }

    /// Builds. The context may be an archive that came with the request, as [`BODY`](super::client::BODY).
    pub(super) async fn solve(
        self: &Arc<Self>,
        mut request: SolveRequest,
        body: Option<Pieces>,
    ) -> Result<SolveResponse> {
        let begun = self.build_of(&mut request, body);
        let begun = begun.and_then(|(build, outputs)| {
            let running = self.builds.begin(&build)?;
            Ok((build, outputs, running))
        });
        let (build, outputs, _running) = begun.inspect_err(|status| {
            if request.r#ref.len() <= MAX_REF {
                self.builds.refuse(&request.r#ref, status);
            }
        })?;
        // Internal requests, by which clients ask for capabilities, are not builds of the user: they have no record.
        let recording = (!request.internal).then(|| self.record(&build, &request));
        let result = match self.solve_recorded(&build, request, &outputs).await {
            Err(status) => Err(self.keep_failed(&build, status).await),
            solved => solved,
        };
        if let Some(recording) = recording {
            recording.end(&result).await;
        }
        result
    }

    /// Returns the build that a request is for, and where its result goes.
    fn build_of(
        &self,
        request: &mut SolveRequest,
        body: Option<Pieces>,
    ) -> Result<(Arc<Build>, Outputs)> {
        check(request)?;
        if request.exporters.is_empty() && !request.exporter.is_empty() {
            request
                .exporters
                .push(whelk_buildkit::pb::control::Exporter {
                    kind: std::mem::take(&mut request.exporter),
                    attrs: std::mem::take(&mut request.exporter_attrs),
                });
        }
        super::export::with_epoch(&mut request.exporters, &request.frontend_attrs);
        let exports = super::export::parse(&request.exporters)?;
        self.check_registries(&exports)?;
        let caches = super::caches::exports(request)?;
        let attest = Attest::parse(&request.frontend_attrs);
        let attest = attest.map_err(|error| super::result::status(&error, None))?;
        let entitlements = Entitlements::parse(&request.entitlements, self.builder.allowed);
        let entitlements = entitlements.map_err(|error| super::result::status(&error, None))?;
        let policies = request.source_policy.as_slice();
        let policies = super::policies::with(&Policies::default(), policies)?;
        let client = SessionClient {
            sent: Sent::new(body),
            sessions: self.sessions.clone(),
            session: request.session.clone(),
            contexts: self.contexts.clone(),
        };
        let common = Request {
            client: Arc::new(client),
            settings: Settings {
                entitlements,
                ..Settings::default()
            },
            resolve: ResolveMode::Default,
            progress: Progress::default(),
            project: String::new(),
            is_explained: false,
            imports: Imports::new(super::caches::imports(request)?),
            has_inline_cache: caches.iter().any(CacheExport::is_inline),
            failed: FailedSteps::default(),
            policies,
        };
        let build = Build::new(
            request.r#ref.clone(),
            request.session.clone(),
            common,
            std::mem::take(&mut request.frontend_inputs),
            attest,
        );
        Ok((build, Outputs { exports, caches }))
    }

    async fn solve_recorded(
        self: &Arc<Self>,
        build: &Arc<Build>,
        request: SolveRequest,
        outputs: &Outputs,
    ) -> Result<SolveResponse> {
        let solving: BoxFuture<'_, Result<SolveResponse>> = Box::pin(async {
            let result = match (request.frontend.as_str(), request.definition) {
                ("", None) => {
                    let mut returned = build.scope.returned.subscribe();
                    let returned = returned.wait_for(Option::is_some).await;
                    let returned = returned.ok().and_then(|returned| returned.clone());
                    returned.unwrap_or_else(|| Err(Status::canceled()))?
                }
                ("", Some(definition)) => {
                    let images = whelk_build::Images::default();
                    let common = build.request.clone();
                    let reference = Reference::new(common, definition, images, None).await?;
                    self.result(&build.scope, reference)?
                }
                (frontend, _) => {
                    let call = FrontendRequest {
                        frontend,
                        attributes: &request.frontend_attrs,
                        inputs: &build.scope.inputs,
                        request: build.request.clone(),
                    };
                    self.frontend(build, &build.scope, call).await?
                }
            };
            let wanted = request.frontend_attrs.get("platform").map(String::as_str);
            let wanted = wanted.filter(|wanted| !wanted.is_empty());
            let more = match request.enable_session_exporter {
                true => {
                    let all = self.with_exporters_of_session(build, &result, &request.exporters);
                    Some(all.await?)
                }
                false => None,
            };
            let exports = more.as_deref().unwrap_or(&outputs.exports);
            let exporting = self.export(build, &result, exports, wanted);
            let mut answer = exporting.await?;
            let caches = self.export_caches(build, &result, &outputs.caches);
            answer.exporter_response.extend(caches.await?);
            Ok(answer)
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
            () = left => Err(Status::canceled().context("the session of the build has ended")),
        }
    }

    /// Keeps a reference as the result of a call.
    ///
    /// # Errors
    /// Returns an error if the frontend has too many.
    pub(super) fn result(&self, scope: &Scope, reference: Reference) -> Result<gateway::Result> {
        let (id, reference) = scope.add(reference)?;
        let mut result = gateway::Result::default();
        if let Some(origin) = &reference.origin
            && let Ok(config) = serde_json::to_vec(&origin.image)
        {
            result
                .metadata
                .insert(super::platforms::CONFIG.into(), config);
        }
        result.kind = Some(result::Kind::Ref(gateway::Ref {
            id,
            def: Some(reference.definition.clone()),
        }));
        Ok(result)
    }

    pub(super) fn worker(&self) -> WorkerRecord {
        let gateway = self
            .host_gateway()
            .into_iter()
            .next()
            .map(|address| (HOST_GATEWAY.to_owned(), address));
        let snapshotter = (SNAPSHOTTER.to_owned(), "overlayfs".to_owned());
        WorkerRecord {
            id: self.engine.id.clone(),
            // Clients take it for the sign that outputs, pushes and caches of all kinds are available.
            labels: std::iter::once(snapshotter).chain(gateway).collect(),
            platforms: whelk_build::emulation::platforms(),
            gc_policy: self.gc_policies(),
            buildkit_version: Some(version()),
        }
    }

    fn gc_policies(&self) -> Vec<GcPolicy> {
        let policies = self.builder.policies().unwrap_or_else(|error| {
            tracing::warn!("policies of the build cache: {error}");
            Vec::new()
        });
        policies.iter().map(gc_policy).collect()
    }

    async fn usage(self: &Arc<Self>, request: DiskUsageRequest) -> Result<Vec<Record>> {
        let filters = conditions(&request.filter)?;
        self.builder.results_recorded().await;
        let buildkit = self.clone();
        let records = blocking(move || buildkit.builder.usage().map_err(failed)).await?;
        // Only what was not used since.
        let since = match request.age_limit {
            1.. => now().saturating_sub(request.age_limit),
            _ => i64::MAX,
        };
        let holds = |record: &Record| {
            if record.created.max(record.used) > since {
                return false;
            }
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
        self.builder.results_recorded().await;
        let buildkit = self.clone();
        let pruned = blocking(move || buildkit.builder.prune(&policy).map_err(failed));
        Ok(pruned.await?.records)
    }
}

fn failed(error: whelk_build::Error) -> Status {
    Status::unknown(error.to_string())
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

/// Shortens the descriptions of records if they are too long together: clients refuse a larger answer.
fn shortened(mut records: Vec<UsageRecord>) -> Vec<UsageRecord> {
    /// Clients accept 16 MiB.
    const MAX_ANSWER: usize = 12 << 20;
    /// Some of a description, and none of it.
    const LENGTHS: [usize; 2] = [200, 0];
    for length in LENGTHS {
        let sizes = records.iter().map(UsageRecord::encoded_len);
        if sizes.sum::<usize>() <= MAX_ANSWER {
            break;
        }
        for record in &mut records {
            let end = beginning(&record.description, length).len();
            if end < record.description.len() {
                record.description.truncate(end);
                record.description.push('…');
            }
        }
    }
    records
}

fn gc_policy(policy: &Policy) -> GcPolicy {
    let size = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    let filter = |all: &Vec<Condition>| {
        let all: Vec<String> = all.iter().map(ToString::to_string).collect();
        all.join(",")
    };
    GcPolicy {
        all: policy.all,
        keep_duration: i64::try_from(policy.keep_duration.as_nanos()).unwrap_or(i64::MAX),
        reserved_space: size(policy.reserved_space),
        filters: policy.filters.iter().map(filter).collect(),
        max_used_space: size(policy.max_used_space),
        min_free_space: size(policy.min_free_space),
    }
}

fn usage_record(record: &Record) -> UsageRecord {
    let size = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    UsageRecord {
        id: record.id.clone(),
        in_use: record.in_use,
        mutable: record.kind.is_mutable(),
        size: size(record.size),
        created_at: Some(Timestamp::from_nanos(record.created)),
        last_used_at: (record.used > 0).then(|| Timestamp::from_nanos(record.used)),
        usage_count: size(record.uses),
        description: record.description.clone(),
        record_type: record.kind.name().into(),
        shared: record.shared,
        parents: record.parent.iter().cloned().collect(),
    }
}

/// Returns whether filters, one of which must be true, list a worker.
fn is_listed(worker: &WorkerRecord, filters: &[String]) -> Result<bool> {
    let mut filters = filters.iter().filter(|text| !text.is_empty()).peekable();
    if filters.peek().is_none() {
        return Ok(true);
    }
    for filter in filters {
        let Some(id) = filter.strip_prefix("id==") else {
            let text = format!("the filter {filter:?} of workers");
            return Err(Status::unsupported(text));
        };
        if id.trim_matches('"') == worker.id {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Refuses what is not supported.
fn check(request: &SolveRequest) -> Result<()> {
    let unsupported = |what: &str| Err(Status::unsupported(what));
    if request.r#ref.is_empty() {
        return Err(Status::invalid("the build has no ref"));
    }
    if request.r#ref.len() > MAX_REF {
        let text = format!("the ref of the build has more than {MAX_REF} bytes");
        return Err(Status::invalid(text));
    }
    if !request.source_policy_session.is_empty() {
        return unsupported("source policies of the client's session");
    }
    if request.proxy_network {
        return unsupported("builds on a proxied network");
    }
    let cache = request.cache.clone().unwrap_or_default();
    if !cache.export_ref.is_empty() {
        return unsupported("a cache export to a registry of an old client");
    }
    if let Some(import) = cache.import_refs.first() {
        return unsupported(&format!("a cache import from {import} of an old client"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_the_cache_fit_into_an_answer() {
        let records = |count: usize, length: usize| {
            let record = UsageRecord {
                id: "x".repeat(25),
                description: "é".repeat(length),
                ..UsageRecord::default()
            };
            vec![record; count]
        };
        let few = records(10, 1000);
        assert_eq!(shortened(few.clone()), few);
        let long = shortened(records(20_000, 1000));
        assert_eq!(long[0].description, format!("{}…", "é".repeat(100)));
        let many = shortened(records(60_000, 300));
        assert_eq!(many[0].description, "…");
    }
}
