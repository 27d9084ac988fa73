//! The service `LLBBridge`: what a frontend, usually the client, asks for.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use whelk_build::Images;
use whelk_buildkit::files::{Entry, Kind};
use whelk_buildkit::grpc::{Call, Code, Result, Status};
use whelk_buildkit::pb::Unused;
use whelk_buildkit::pb::files::Stat;
use whelk_buildkit::pb::gateway::{
    ApiCap, EvaluateRequest, InputsResponse, PongResponse, ReadDirRequest, ReadDirResponse,
    ReadFileRequest, ReadFileResponse, ResolveImageConfigRequest, ResolveImageConfigResponse,
    ResolveSourceImageResponse, ResolveSourceMetaRequest, ResolveSourceMetaResponse, ReturnRequest,
    SolveRequest, SolveResponse, StatFileRequest, StatFileResponse, WarnRequest, result,
};
use whelk_llb::pb::Platform;
use whelk_sys::in_root;

use super::Door;
use super::builds::{Build, Reference};

/// The capabilities of the bridge's calls, which clients ask for (`Ping`).
const FRONTEND: [&str; 17] = [
    "solve.base",
    "solve.inlinereturn",
    "resolveimage",
    "resolveimage.resolvemode",
    "readfile",
    "return",
    "returnmap",
    "readdir",
    "statfile",
    "proto.refarray",
    "reference.output",
    "frontend.inputs",
    "gateway.solve.metadata",
    "frontend.caps",
    "gateway.solve.evaluate",
    "gateway.evaluate",
    "source.metaresolver",
];

/// The capabilities of definitions: the operations and attributes that the solver knows.
const OPERATIONS: [&str; 49] = [
    "source.image",
    "source.image.resolvemode",
    "source.http",
    "source.http.auth",
    "source.http.checksum",
    "source.http.header",
    "source.http.perm",
    // With BuildKit's typing error.
    "soruce.http.uidgid",
    "source.local",
    "source.local.unique",
    "source.local.sessionid",
    "source.local.includepatterns",
    "source.local.followpaths",
    "source.local.excludepatterns",
    "source.local.sharedkeyhint",
    "source.local.differ",
    "meta.ignorecache",
    "meta.description",
    "exec.meta.base",
    "exec.meta.cgroup.parent",
    "exec.meta.network",
    "exec.meta.proxyenv",
    "exec.meta.setsdefaultpath",
    "exec.meta.ulimit",
    "exec.mount.bind",
    "exec.mount.bind.readwrite-nooutput",
    "exec.mount.cache",
    "exec.mount.cache.sharing",
    "exec.mount.selector",
    "exec.mount.tmpfs",
    "exec.mount.tmpfs.size",
    "exec.mount.secret",
    "exec.mount.ssh",
    "exec.secretenv",
    "exec.validexitcode",
    "file.base",
    "file.copy.includeexcludepatterns",
    "file.rm.wildcard",
    "file.rm.symlink",
    "file.copy.alwaysreplaceexistingdestpaths",
    "file.symlink.create",
    "constraints",
    "platform",
    "meta.exportcache",
    "mergeop",
    "diffop",
    "source.metaresolver",
    "exec.cgroup",
    "exec.meta.removemountstubs.recursive",
];

/// Maximum size of a file that is read, in bytes: that of a message, with some room.
const MAX_FILE: usize = 15 << 20;

impl Door {
    pub(super) async fn bridge(self: Arc<Self>, method: &str, mut call: Call) -> Result<()> {
        let id = call.entry("buildkit-controlapi-buildid");
        let id = id.ok_or_else(|| Status::invalid("no buildid found in context"))?;
        let build = self.builds.get(id).await?;
        match method {
            "Ping" => {
                let caps = |names: &[&str]| {
                    let caps = names.iter().map(|id| ApiCap {
                        id: (*id).to_owned(),
                        enabled: true,
                    });
                    caps.collect()
                };
                let pong = PongResponse {
                    frontend_api_caps: caps(&FRONTEND),
                    llb_caps: caps(&OPERATIONS),
                    workers: vec![self.worker()],
                };
                call.responses.send(&pong).await
            }
            "Solve" => {
                let response = self.bridge_solve(&build, call.request().await?).await?;
                call.responses.send(&response).await
            }
            "Evaluate" => {
                let request: EvaluateRequest = call.request().await?;
                let reference = build.reference(&request.r#ref)?;
                reference.solve(&self.builder).await?;
                call.responses.send(&Unused {}).await
            }
            "Return" => {
                let request: ReturnRequest = call.request().await?;
                let returned = match (request.error, request.result) {
                    (Some(error), _) => Err(Status::from_message(error)),
                    (None, result) => Ok(result.unwrap_or_default()),
                };
                build.returned.send_replace(Some(returned));
                call.responses.send(&Unused {}).await
            }
            "Inputs" => {
                let definitions = build.inputs.clone();
                call.responses.send(&InputsResponse { definitions }).await
            }
            "Warn" => {
                // Such a warning is about a step of a definition, which this engine has none of its own for.
                let request: WarnRequest = call.request().await?;
                let text = String::from_utf8_lossy(&request.short).into_owned();
                tracing::info!("warning of a frontend: {text}");
                call.responses.send(&Unused {}).await
            }
            "ResolveImageConfig" => {
                let request: ResolveImageConfigRequest = call.request().await?;
                let (digest, config) = self
                    .resolve(&build, &request.r#ref, request.platform, &request.log_name)
                    .await?;
                let response = ResolveImageConfigResponse {
                    digest,
                    config,
                    r#ref: request.r#ref,
                };
                call.responses.send(&response).await
            }
            "ResolveSourceMeta" => {
                let request = call.request().await?;
                let response = self.resolve_source(&build, request).await?;
                call.responses.send(&response).await
            }
            "ReadFile" => {
                let request: ReadFileRequest = call.request().await?;
                let data = self.read_file(&build, request).await?;
                call.responses.send(&ReadFileResponse { data }).await
            }
            "StatFile" => {
                let request: StatFileRequest = call.request().await?;
                let stat = self.stat_file(&build, request).await?;
                let stat = Some(stat);
                call.responses.send(&StatFileResponse { stat }).await
            }
            "ReadDir" => {
                let request: ReadDirRequest = call.request().await?;
                let entries = self.read_dir(&build, request).await?;
                call.responses.send(&ReadDirResponse { entries }).await
            }
            _ => Err(Status::unimplemented(format!(
                "unknown method {method} of LLBBridge"
            ))),
        }
    }

    async fn bridge_solve(
        self: &Arc<Self>,
        build: &Arc<Build>,
        request: SolveRequest,
    ) -> Result<SolveResponse> {
        if !request.source_policies.is_empty() {
            return Err(Status::unimplemented("source policies"));
        }
        if !request.allow_result_return || !request.allow_result_array_ref {
            return Err(Status::unimplemented("clients of BuildKit before v0.9"));
        }
        let result = match (request.frontend.as_str(), request.definition) {
            ("", Some(definition)) => {
                let common = build.request.clone();
                let reference = Reference::new(common, definition, Images::default(), None)?;
                self.result(build, reference)
            }
            ("", None) => return Err(Status::invalid("neither a frontend nor a definition")),
            (frontend, _) => {
                let inputs = &request.frontend_inputs;
                self.frontend(build, frontend, &request.frontend_opt, inputs)
                    .await?
            }
        };
        if request.evaluate
            && let Some(result::Kind::Ref(reference)) = &result.kind
        {
            build.reference(&reference.id)?.solve(&self.builder).await?;
        }
        Ok(SolveResponse {
            result: Some(result),
            ..SolveResponse::default()
        })
    }

    /// Returns the id and the configuration of an image.
    async fn resolve(
        self: &Arc<Self>,
        build: &Build,
        reference: &str,
        platform: Option<Platform>,
        name: &str,
    ) -> Result<(String, Vec<u8>)> {
        let host = super::frontend::host();
        let platform = platform.unwrap_or(host);
        let name = match name {
            "" => format!("resolve image config for {reference}"),
            name => name.to_owned(),
        };
        self.builder
            .resolve(&build.request, reference, &platform, &name)
            .await
            .map_err(|error| super::result::status(&error, None))
    }

    async fn resolve_source(
        self: &Arc<Self>,
        build: &Build,
        request: ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse> {
        let source = request.source.unwrap_or_default();
        let Some(reference) = source.identifier.strip_prefix("docker-image://") else {
            let text = format!("metadata of the source {}", source.identifier);
            return Err(Status::unimplemented(text));
        };
        let (digest, config) = self
            .resolve(build, reference, request.platform, &request.log_name)
            .await?;
        Ok(ResolveSourceMetaResponse {
            source: Some(source),
            image: Some(ResolveSourceImageResponse { digest, config }),
        })
    }

    /// Does something with the files of a reference, on a thread that may block.
    async fn with_files<T: Send + 'static>(
        self: &Arc<Self>,
        build: &Build,
        reference: &str,
        path: String,
        work: impl FnOnce(&OwnedFd, &Path) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let solved = build.reference(reference)?.solve(&self.builder).await?;
        let door = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let view = solved.mount(&door.builder);
            let view = view.map_err(|error| Status::unknown(error.to_string()))?;
            work(&view.root, Path::new(&path)).map_err(|error| {
                let code = match error.kind() {
                    std::io::ErrorKind::NotFound => Code::NotFound,
                    _ => Code::Unknown,
                };
                let cause = whelk_sys::errno_text(&error);
                Status::new(code, format!("open {path}: {cause}"))
            })
        });
        done.await
            .map_err(|error| Status::unknown(error.to_string()))?
    }

    async fn read_file(
        self: &Arc<Self>,
        build: &Build,
        request: ReadFileRequest,
    ) -> Result<Vec<u8>> {
        let read = |root: &OwnedFd, path: &Path| in_root::read_regular(root, path, MAX_FILE);
        let mut data = self
            .with_files(build, &request.r#ref, request.file_path, read)
            .await?;
        if let Some(range) = request.range {
            let offset = usize::try_from(range.offset).unwrap_or(0).min(data.len());
            data.drain(..offset);
            if range.length > 0 {
                data.truncate(usize::try_from(range.length).unwrap_or(usize::MAX));
            }
        }
        Ok(data)
    }

    async fn stat_file(self: &Arc<Self>, build: &Build, request: StatFileRequest) -> Result<Stat> {
        let stat = |root: &OwnedFd, path: &Path| {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let file = in_root::open(root, path, flags, Mode::empty())?;
            let name = path.file_name().map(|name| name.to_string_lossy());
            stat(&file, &name.unwrap_or_default())
        };
        self.with_files(build, &request.r#ref, request.path, stat)
            .await
    }

    async fn read_dir(
        self: &Arc<Self>,
        build: &Build,
        request: ReadDirRequest,
    ) -> Result<Vec<Stat>> {
        let pattern = request.include_pattern;
        let list = move |root: &OwnedFd, path: &Path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = in_root::open(root, path, flags, Mode::empty())?;
            let mut found = Vec::new();
            for entry in rustix::fs::Dir::read_from(&directory)? {
                let entry = entry?;
                let name = entry.file_name().to_bytes();
                let text = String::from_utf8_lossy(name);
                let is_wanted = pattern.is_empty()
                    || whelk_text::glob::matches(&pattern, &text).unwrap_or(false);
                if name == b"." || name == b".." || !is_wanted {
                    continue;
                }
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let name = std::ffi::OsStr::from_bytes(name);
                let file = rustix::fs::openat(&directory, name, flags, Mode::empty())?;
                found.push(stat(&file, &text)?);
            }
            found.sort_by(|one, other| one.path.cmp(&other.path));
            Ok(found)
        };
        self.with_files(build, &request.r#ref, request.dir_path, list)
            .await
    }
}

/// Describes an opened file.
fn stat(file: &OwnedFd, name: &str) -> std::io::Result<Stat> {
    use rustix::fs::FileType;
    let found = rustix::fs::fstat(file)?;
    let kind = match FileType::from_raw_mode(found.st_mode) {
        FileType::Directory => Kind::Directory,
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(file, "", Vec::new())?;
            Kind::Symlink(target.to_string_lossy().into_owned())
        }
        FileType::Fifo => Kind::Fifo,
        _ => Kind::File,
    };
    let entry = Entry {
        path: name.to_owned(),
        kind,
        mode: found.st_mode & 0o7777,
        size: u64::try_from(found.st_size).unwrap_or(0),
        mtime: found.st_mtime * 1_000_000_000 + i64::try_from(found.st_mtime_nsec).unwrap_or(0),
        xattrs: std::collections::BTreeMap::new(),
    };
    Ok(Stat {
        uid: found.st_uid,
        gid: found.st_gid,
        ..entry.to_stat()
    })
}
