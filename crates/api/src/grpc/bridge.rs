//! The service `LLBBridge`: what a frontend, usually the client, asks for.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use whelk_build::provenance::attribute_without_credentials;
use whelk_build::{FrontendWarning, Images, Request, Resolved, ResolvedImage};
use whelk_buildkit::files::{Entry, Kind};
use whelk_buildkit::grpc::{Call, Code, Result, Status};
use whelk_buildkit::pb::files::Stat;
use whelk_buildkit::pb::gateway::{
    self, ApiCap, EvaluateRequest, FileRange, InputsResponse, PongResponse, ReadDirRequest,
    ReadDirResponse, ReadFileRequest, ReadFileResponse, ReleaseContainerRequest,
    ResolveImageConfigRequest, ResolveImageConfigResponse, ResolveSourceGitResponse,
    ResolveSourceHttpResponse, ResolveSourceImageResponse, ResolveSourceMetaRequest,
    ResolveSourceMetaResponse, ReturnRequest, SolveRequest, SolveResponse, StatFileRequest,
    StatFileResponse, WarnRequest,
};
use whelk_buildkit::pb::{Message as _, Timestamp, Unused};
use whelk_llb::Digest;
use whelk_llb::pb::{Platform, SourceOp};
use whelk_sys::in_root;

use super::builds::{Build, Reference};
use super::frontend::FrontendRequest;
use super::scope::Scope;
use super::{Buildkit, blocking, containers};

/// The capabilities of the bridge's calls, which clients ask for (`Ping`).
const FRONTEND: [&str; 22] = [
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
    "gateway.exec",
    "gateway.exec.extrahosts",
    "gateway.exec.signals",
    "gateway.exec.secretenv",
    "source.metaresolver",
    "reference.attestations",
];

/// The capabilities of definitions: the operations and attributes that the solver knows.
const OPERATIONS: [&str; 69] = [
    "source.image",
    "source.image.resolvemode",
    "source.image.layerlimit",
    "source.image.checksum",
    "source.git",
    "source.git.checksum",
    "source.git.fetchbycommit",
    "source.git.fullurl",
    "source.git.httpauth",
    "source.git.keepgitdir",
    "source.git.knownsshhosts",
    "source.git.mountsshsock",
    "source.git.mtime",
    "source.git.skipsubmodules",
    "source.git.subdir",
    "source.http",
    "source.http.auth",
    "source.http.checksum",
    "source.http.header",
    "source.http.perm",
    // With BuildKit's typing error.
    "soruce.http.uidgid",
    "source.local",
    "source.local.unique",
    "source.ocilayout",
    "source.local.sessionid",
    "source.local.includepatterns",
    "source.local.followpaths",
    "source.local.excludepatterns",
    "source.local.sharedkeyhint",
    "source.local.differ",
    "source.local.metadatatransfer",
    "meta.ignorecache",
    "meta.description",
    "exec.meta.base",
    "exec.meta.network",
    "exec.meta.proxyenv",
    "exec.meta.setsdefaultpath",
    "exec.meta.ulimit",
    "exec.mount.bind",
    "exec.mount.bind.readwrite-nooutput",
    "exec.mount.cache",
    "exec.mount.cache.sharing",
    "exec.mount.cache.content",
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
    "exec.meta.removemountstubs.recursive",
    "exporter.image.attestations",
    "exporter.multiple",
    "exporter.session",
    "gc.freespacefilter",
    "history.filter",
    "exporter.sourcedateepoch",
];

/// Maximum size of what is read of a file, or of a list, in bytes: that of a message, with some room.
const MAX_FILE: usize = 15 << 20;

impl Buildkit {
    /// Answers a call of a client, which is its build's own frontend.
    pub(super) async fn bridge(self: Arc<Self>, method: &str, call: Call) -> Result<()> {
        let id = call.entry("buildkit-controlapi-buildid");
        let id = id.ok_or_else(|| Status::invalid("no buildid found in context"))?;
        let build = self.builds.running(id).await?;
        let ended = async {
            match method {
                // This call ends the build, and is answered nevertheless.
                "Return" => std::future::pending().await,
                _ => build.over().await,
            }
        };
        tokio::select! {
            answered = self.answer_frontend(&build, &build.scope, method, call) => answered,
            () = ended => Err(Status::canceled().context("the build has ended")),
        }
    }

    /// Answers a call of a frontend.
    pub(super) async fn answer_frontend(
        self: &Arc<Self>,
        build: &Arc<Build>,
        scope: &Scope,
        method: &str,
        mut call: Call,
    ) -> Result<()> {
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
                let response = self.bridge_solve(build, scope, call.request().await?);
                let response = response.await?;
                call.responses.send(&response).await
            }
            "Evaluate" => {
                let request: EvaluateRequest = call.request().await?;
                let reference = scope.reference(&request.r#ref)?;
                scope.solve(&reference, &self.builder).await?;
                call.responses.send(&Unused {}).await
            }
            "Return" => {
                let request: ReturnRequest = call.request().await?;
                let returned = match (request.error, request.result) {
                    (Some(error), _) => Err(Status::from_message(error)),
                    (None, result) => Ok(result.unwrap_or_default()),
                };
                if !scope.set_returned(returned) {
                    return Err(Status::invalid(
                        "the frontend has returned a result already",
                    ));
                }
                call.responses.send(&Unused {}).await
            }
            "NewContainer" => {
                let request = call.request().await?;
                self.new_container(build, scope, request).await?;
                call.responses.send(&Unused {}).await
            }
            "ReleaseContainer" => {
                let request: ReleaseContainerRequest = call.request().await?;
                containers::release(scope, &request.container_id).await?;
                call.responses.send(&Unused {}).await
            }
            "ExecProcess" => containers::exec(scope, call).await,
            "Inputs" => {
                let definitions = scope.inputs.clone();
                call.responses.send(&InputsResponse { definitions }).await
            }
            "Warn" => {
                warn(build, call.request().await?)?;
                call.responses.send(&Unused {}).await
            }
            "ResolveImageConfig" => {
                let request: ResolveImageConfigRequest = call.request().await?;
                scope.charge(request.encoded_len())?;
                let response = self
                    .resolve_config(build.request_of(scope), request)
                    .await?;
                call.responses.send(&response).await
            }
            "ResolveSourceMeta" => {
                let request: ResolveSourceMetaRequest = call.request().await?;
                scope.charge(request.encoded_len())?;
                let response = self
                    .resolve_source(build.request_of(scope), request)
                    .await?;
                call.responses.send(&response).await
            }
            "ReadFile" => {
                let request: ReadFileRequest = call.request().await?;
                let data = self.read_file(scope, request).await?;
                call.responses.send(&ReadFileResponse { data }).await
            }
            "StatFile" => {
                let request: StatFileRequest = call.request().await?;
                let stat = self.stat_file(scope, request).await?;
                let stat = Some(stat);
                call.responses.send(&StatFileResponse { stat }).await
            }
            "ReadDir" => {
                let request: ReadDirRequest = call.request().await?;
                let entries = self.read_dir(scope, request).await?;
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
        scope: &Scope,
        request: SolveRequest,
    ) -> Result<SolveResponse> {
        if !request.allow_result_return || !request.allow_result_array_ref {
            return Err(Status::unimplemented("clients of BuildKit before v0.9"));
        }
        scope.charge(request.encoded_len())?;
        let imports = super::caches::imports_of_frontend(&request)?;
        let common = build.request_with(scope, imports)?;
        let known = common.policies.size();
        let common = super::policies::of_call(&common, &request.source_policies)?;
        if !request.source_policies.is_empty() {
            // The result keeps them.
            scope.charge(common.policies.size().saturating_sub(known))?;
        }
        let result = match (request.frontend.as_str(), request.definition) {
            ("", Some(definition)) => {
                let reference = Reference::new(common, definition, Images::default(), None);
                let reference = reference.await?;
                self.result(scope, reference)?
            }
            // Neither a frontend nor a definition: BuildKit answers with an empty result, too.
            ("", None) => gateway::Result::default(),
            (frontend, _) => {
                let called = FrontendRequest {
                    frontend,
                    attributes: &request.frontend_opt,
                    inputs: &request.frontend_inputs,
                    request: common,
                };
                self.frontend(build, scope, called).await?
            }
        };
        if request.evaluate
            && let Some(kind) = &result.kind
        {
            let ids = super::platforms::ids(kind).into_iter();
            for id in ids.filter(|id| !id.is_empty()) {
                let reference = scope.reference(id)?;
                scope.solve(&reference, &self.builder).await?;
            }
        }
        Ok(SolveResponse {
            result: Some(result),
            ..SolveResponse::default()
        })
    }

    async fn resolve_config(
        self: &Arc<Self>,
        common: &Request,
        request: ResolveImageConfigRequest,
    ) -> Result<ResolveImageConfigResponse> {
        if request.resolver_type != 0 {
            let text = format!("the image {} of an OCI layout", request.r#ref);
            return Err(Status::unsupported(text));
        }
        let common = super::policies::of_call(common, &request.source_policies)?;
        let resolving = Resolving {
            reference: &request.r#ref,
            platform: request.platform,
            mode: &request.resolve_mode,
            name: &request.log_name,
        };
        let found = self.resolve(common, resolving).await?;
        Ok(ResolveImageConfigResponse {
            digest: found.id,
            config: found.config,
            r#ref: found.reference,
        })
    }

    /// Returns the id and the configuration of an image.
    async fn resolve(
        self: &Arc<Self>,
        common: Request,
        resolving: Resolving<'_>,
    ) -> Result<ResolvedImage> {
        let reference = resolving.reference;
        let platform = resolving
            .platform
            .unwrap_or_else(whelk_build::emulation::host);
        let name = match resolving.name {
            "" => format!("resolve image config for {reference}"),
            name => name.to_owned(),
        };
        let resolve = match resolving.mode {
            "" => common.resolve,
            mode => mode.parse().map_err(Status::invalid)?,
        };
        let request = Request { resolve, ..common };
        self.builder
            .resolve(&request, reference, &platform, &name)
            .await
            .map_err(|error| super::result::status(&error, None))
    }

    async fn resolve_source(
        self: &Arc<Self>,
        common: &Request,
        mut request: ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse> {
        let mut source = request.source.take().unwrap_or_default();
        let asked = source.identifier.clone();
        let common = super::policies::of_call(common, &request.source_policies)?;
        let evaluated = common.policies.evaluate(&mut source);
        evaluated.map_err(|error| super::result::status(&error, None))?;
        let Some(reference) = source.identifier.strip_prefix("docker-image://") else {
            if source.identifier != asked && !whelk_build::has_metadata(&source) {
                // The frontend sees that it is none of those that have metadata.
                return Ok(ResolveSourceMetaResponse {
                    source: Some(source),
                    ..ResolveSourceMetaResponse::default()
                });
            }
            return self.resolve_fetched(&common, source, &request).await;
        };
        let attribute = source.attrs.get("image.resolvemode");
        let attribute = attribute.map_or("", String::as_str);
        let resolving = Resolving {
            reference,
            platform: request.platform,
            mode: match request.resolve_mode.as_str() {
                "" => attribute,
                mode => mode,
            },
            name: &request.log_name,
        };
        let ResolvedImage { id, config, .. } = self.resolve(common, resolving).await?;
        Ok(ResolveSourceMetaResponse {
            source: Some(source),
            image: Some(ResolveSourceImageResponse { digest: id, config }),
            ..ResolveSourceMetaResponse::default()
        })
    }

    /// Returns what a file of a server, or a reference of a git repository, is now.
    async fn resolve_fetched(
        self: &Arc<Self>,
        common: &Request,
        mut source: SourceOp,
        request: &ResolveSourceMetaRequest,
    ) -> Result<ResolveSourceMetaResponse> {
        if request.git.is_some_and(|git| git.return_object) {
            return Err(Status::unsupported("the objects of git commits and tags"));
        }
        if request
            .http
            .is_some_and(|http| http.checksum_request.is_some())
        {
            return Err(Status::unsupported("other checksums of files of servers"));
        }
        let name = match request.log_name.as_str() {
            "" => format!(
                "resolve {}",
                attribute_without_credentials("", &source.identifier)
            ),
            name => name.to_owned(),
        };
        let resolving = self.builder.resolve_source(common, &mut source, &name);
        let resolved = resolving.await;
        let resolved = resolved.map_err(|error| super::result::status(&error, None))?;
        let mut response = ResolveSourceMetaResponse {
            source: Some(source),
            ..ResolveSourceMetaResponse::default()
        };
        match resolved {
            Resolved::Git {
                reference,
                checksum,
                commit,
            } => {
                response.git = Some(ResolveSourceGitResponse {
                    checksum,
                    r#ref: reference,
                    commit_checksum: commit,
                });
            }
            Resolved::File {
                checksum,
                name,
                time,
            } => {
                response.http = Some(ResolveSourceHttpResponse {
                    checksum,
                    filename: name,
                    last_modified: time.map(|seconds| Timestamp { seconds, nanos: 0 }),
                });
            }
        }
        Ok(response)
    }

    /// Does something with the files of a reference, on a thread that may block.
    async fn with_files<T: Send + 'static>(
        self: &Arc<Self>,
        scope: &Scope,
        reference: &str,
        path: String,
        work: impl FnOnce(&OwnedFd, &Path) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let reference = scope.reference(reference)?;
        let solved = scope.solve(&reference, &self.builder).await?;
        let buildkit = self.clone();
        let done = blocking(move || {
            let view = solved.mount(&buildkit.builder);
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
    }

    async fn read_file(
        self: &Arc<Self>,
        scope: &Scope,
        request: ReadFileRequest,
    ) -> Result<Vec<u8>> {
        let (offset, length) = match request.range {
            None => (0, u64::MAX),
            Some(FileRange { offset, length }) => {
                let number = |value: i64| {
                    let invalid = || format!("invalid range of {}: {value}", request.file_path);
                    u64::try_from(value).map_err(|_| Status::invalid(invalid()))
                };
                (number(offset)?, number(length)?)
            }
        };
        let read = move |root: &OwnedFd, path: &Path| read_part(root, path, offset, length);
        self.with_files(scope, &request.r#ref, request.file_path, read)
            .await
    }

    async fn stat_file(self: &Arc<Self>, scope: &Scope, request: StatFileRequest) -> Result<Stat> {
        let stat = |root: &OwnedFd, path: &Path| {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let file = in_root::open(root, path, flags, Mode::empty())?;
            let name = path.file_name().map(|name| name.to_string_lossy());
            stat(&file, &name.unwrap_or_default())
        };
        self.with_files(scope, &request.r#ref, request.path, stat)
            .await
    }

    async fn read_dir(
        self: &Arc<Self>,
        scope: &Scope,
        request: ReadDirRequest,
    ) -> Result<Vec<Stat>> {
        let pattern = request.include_pattern;
        let list = move |root: &OwnedFd, path: &Path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = in_root::open(root, path, flags, Mode::empty())?;
            /// Of the field that a message is in, in bytes.
            const FIELD: usize = 6;
            let (mut found, mut size) = (Vec::new(), 0);
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
                let stat = stat(&file, &text)?;
                size += stat.encoded_len() + FIELD;
                if size > MAX_FILE {
                    let text = format!(
                        "a list of more than {MAX_FILE} bytes: ask for a part, by a pattern"
                    );
                    return Err(std::io::Error::other(text));
                }
                found.push(stat);
            }
            found.sort_by(|one, other| one.path.cmp(&other.path));
            Ok(found)
        };
        self.with_files(scope, &request.r#ref, request.dir_path, list)
            .await
    }
}

/// An image whose configuration is wanted.
struct Resolving<'a> {
    reference: &'a str,
    platform: Option<Platform>,
    /// When it is pulled; that of the build if it is empty.
    mode: &'a str,
    /// For the progress.
    name: &'a str,
}

/// Reads a part of a regular file, which ends where the file does. Blocking.
fn read_part(root: &OwnedFd, path: &Path, offset: u64, length: u64) -> std::io::Result<Vec<u8>> {
    let mut file = in_root::open_regular(root, path)?;
    let size = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(offset.min(size)))?;
    let mut data = Vec::new();
    file.take(length.min(MAX_FILE as u64 + 1))
        .read_to_end(&mut data)?;
    if data.len() > MAX_FILE {
        let text = format!("larger than {MAX_FILE} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, text));
    }
    Ok(data)
}

/// Adds a warning of the client's frontend to the progress.
fn warn(build: &Build, request: WarnRequest) -> Result<()> {
    let vertex = match request.digest.as_str() {
        "" => Digest::of(&request.short),
        digest => {
            let invalid = || Status::invalid(format!("invalid digest {digest:?} of a warning"));
            Digest::parse(digest).ok_or_else(invalid)?
        }
    };
    let warning = FrontendWarning {
        level: request.level,
        short: request.short,
        detail: request.detail,
        url: request.url,
        info: request.info,
        ranges: request.ranges,
    };
    match build.request.progress.warn(vertex, warning) {
        true => Ok(()),
        false => {
            let text = "too many warnings";
            Err(Status::new(Code::ResourceExhausted, text))
        }
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
    let size = match kind {
        // The size that a file system reports for a directory is not that of its content.
        Kind::Directory => 0,
        _ => u64::try_from(found.st_size).unwrap_or(0),
    };
    let entry = Entry {
        path: name.to_owned(),
        kind,
        mode: found.st_mode & 0o7777,
        size,
        mtime: found
            .st_mtime
            .saturating_mul(1_000_000_000)
            .saturating_add(i64::try_from(found.st_mtime_nsec).unwrap_or(0)),
        xattrs: std::collections::BTreeMap::new(),
    };
    Ok(Stat {
        uid: found.st_uid,
        gid: found.st_gid,
        ..entry.to_stat()
    })
}
