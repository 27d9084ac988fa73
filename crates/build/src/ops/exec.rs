//! Processes: `RUN`.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use whelk_engine::containers::Step;
use whelk_engine::model::{Config, DeviceRequest, HostConfig, NetworkMode, Ulimit};
use whelk_image::Store;
use whelk_llb::Digest;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{ExecOp, Meta, Mount, MountType, NetMode, Op, Platform, SecurityMode};
use whelk_runtime::Overlay;

use super::mounts::{self, Mounts};
use super::secrets::Secrets;
use super::ssh::{self, Agents};
use super::{Context, input};
use crate::entitlements::{self, Entitlements};
use crate::error::{Error, Result, os};
use crate::failed::{Failed, Remains};
use crate::layers::{Files, Stack, Workspace, paths};
use crate::log::Log;
use crate::snapshot::Snapshot;
use crate::{Builder, blocking, select};

/// The name of the host that processes see, as BuildKit has it.
const HOSTNAME: &str = "buildkitsandbox";

/// The default size of `/dev/shm` in bytes.
const SHM_SIZE: i64 = 64 << 20;

/// Settings of a build that are no part of its operations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// The network of processes whose operation has no network mode.
    pub network: NetworkMode,
    /// Rights that the request has asked for: a Dockerfile alone cannot take them.
    pub entitlements: Entitlements,
    /// Limits of memory and processors, and the size of `/dev/shm`.
    pub limits: HostConfig,
    /// Whether what a failed process has left is kept for the client.
    pub keeps_failed: bool,
}

impl Settings {
    /// Returns the key of an operation with these settings. On another network a process may do something
    /// else; limits change no result.
    pub(crate) fn key(&self, op: &Op, key: Digest) -> Digest {
        let network = match (&op.kind, &self.network) {
            (Some(Kind::Exec(exec)), NetworkMode::Network(name) | NetworkMode::Container(name))
                if exec.network == i32::from(NetMode::Unset) =>
            {
                name
            }
            _ => return key,
        };
        Digest::of_parts([&b"network"[..], network.as_bytes(), key.as_bytes()])
    }
}

/// Inputs of a process that are not in its operation.
#[derive(Default)]
pub(super) struct RunInputs {
    /// Secrets.
    pub env: Vec<String>,
    pub devices: Vec<String>,
    /// The standard input and output, if they are a connection.
    pub connection: Option<OwnedFd>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether it reads what is written to [`Prepared::output`].
    pub stdin: bool,
}

/// A process that is prepared.
pub(super) struct Prepared {
    pub step: Step,
    pub mounts: Mounts,
    /// The layers that it stands on, which stay until it has ended.
    pub files: Vec<Files>,
    pub workspace: Arc<Workspace>,
    pub output: UnixStream,
}

/// A process that has ended, and what it has written.
struct Executed {
    code: i32,
    /// Below its root.
    workspace: Arc<Workspace>,
    /// Below other mounts, by the index of the mount.
    outputs: Vec<(usize, Arc<Workspace>)>,
}

impl Executed {
    /// Returns what was written below a mount; `None` if nothing could be.
    fn written(&self, index: usize, mount: &Mount) -> Option<&Arc<Workspace>> {
        if MountType::try_from(mount.mount_type) != Ok(MountType::Bind) || mount.readonly {
            return None;
        }
        if mount.dest == "/" {
            return Some(&self.workspace);
        }
        let mut outputs = self.outputs.iter();
        let found = outputs.find(|(written, _)| *written == index);
        found.map(|(_, workspace)| workspace)
    }
}

pub(super) async fn run(
    builder: &Arc<Builder>,
    context: Context,
    (op, platform): (&ExecOp, Option<&Platform>),
    inputs: &[Stack],
    settings: &Settings,
    log: Option<&Arc<Log>>,
) -> Result<Vec<Stack>> {
    let (Some(meta), Some(log)) = (&op.meta, log) else {
        return Err(Error::invalid("an exec without its process"));
    };
    let op = mounts::absolute(op);
    let op = &*op;
    check(op)?;
    let root = op.mounts.iter().find(|mount| mount.dest == "/");
    let root = root.ok_or_else(|| Error::invalid("an exec without a root file system"))?;
    let base = input(inputs, root.input)?;
    let secrets = Secrets::fetch(&context.waiting.clients, op).await?;
    let mut agents = Agents::find(&context.waiting.clients, op).await?;
    let caches = mounts::take_caches(&builder.caches, op, inputs, log).await?;
    // Behind the caches, so that no process that has a turn waits for a cache.
    let permit = builder.steps.clone().acquire_owned().await;
    let permit = permit.map_err(|error| Error::internal(error.to_string()))?;
    agents.listen(op, &builder.engine.instance.run)?;
    let prepare = {
        let (op, context, settings) = (op.clone(), context.clone(), settings.clone());
        let (stack, inputs) = (base.clone(), inputs.to_vec());
        let run = builder.engine.instance.run.clone();
        let sockets = agents.sockets();
        let engine = builder.engine.clone();
        move || {
            let devices = if op.cdi_devices.is_empty() {
                Vec::new()
            } else {
                let names = engine.cdi_devices().names;
                let devices = entitlements::resolve(&op.cdi_devices, &names)?;
                // There may be other devices than when the build was planned.
                settings.entitlements.devices.check(&devices)?;
                devices
            };
            let mut mounts = mounts::prepare(&context, &op, &inputs, &caches)?;
            secrets.mount(&op, &run, &mut mounts)?;
            ssh::mount(&sockets, &op, &mut mounts);
            let run_inputs = RunInputs {
                env: secrets.environment,
                devices,
                ..RunInputs::default()
            };
            prepare(&context.store, &op, &stack, &settings, mounts, run_inputs)
        }
    };
    let (builder, log) = (builder.clone(), log.clone());
    let held = (permit, agents);
    let executed = outlive(|left| execute(builder, prepare, held, log, left)).await?;
    let code = executed.code;
    let valid = meta.valid_exit_codes.as_slice();
    if code != 0 && !valid.contains(&code) || code == 0 && !valid.is_empty() && !valid.contains(&0)
    {
        let (remains, files) = remains(&context, op, inputs, &executed)?;
        let state = Failed {
            files: files.unwrap_or_else(|| context.snapshot(base)),
            meta: meta.clone(),
            platform: platform.cloned(),
            remains: Arc::new(remains),
        };
        return Err(Error::Process {
            command: meta.args.join(" "),
            code,
            state: Some(Arc::new(state)),
        });
    }
    results(&context, op, inputs, &executed)
}

/// Returns the outputs of a process in their order.
fn results(
    context: &Context,
    op: &ExecOp,
    inputs: &[Stack],
    executed: &Executed,
) -> Result<Vec<Stack>> {
    let is_output = |mount: &Mount| {
        mount.output >= 0 && MountType::try_from(mount.mount_type) == Ok(MountType::Bind)
    };
    let mounts = op.mounts.iter().enumerate();
    let mounts = mounts.filter(|(_, mount)| is_output(mount));
    let results = mounts.map(|(index, mount)| {
        let base = input(inputs, mount.input)?;
        Ok(match executed.written(index, mount) {
            Some(workspace) => base.with(context.seal(workspace.clone())),
            // What cannot be written to stays what it was.
            None => base,
        })
    });
    results.collect()
}

/// Returns what a failed process has left, and its root file system.
fn remains(
    context: &Context,
    op: &ExecOp,
    inputs: &[Stack],
    executed: &Executed,
) -> Result<(Remains, Option<Snapshot>)> {
    let mut remains = Remains::default();
    let mut root = None;
    for (index, mount) in op.mounts.iter().enumerate() {
        let base = (mount.input >= 0).then(|| input(inputs, mount.input));
        let base = base.transpose()?;
        let left = match executed.written(index, mount) {
            Some(workspace) => {
                let below = base.clone().unwrap_or_default();
                Some(below.with(context.remains(workspace.clone())))
            }
            None => base.clone(),
        };
        let left = left.map(|stack| context.snapshot(stack));
        if mount.dest == "/" {
            root.clone_from(&left);
        }
        remains
            .inputs
            .push(base.map(|stack| context.snapshot(stack)));
        remains.results.push(left);
    }
    Ok((remains, root))
}

/// Executes a process whose standard input and output are a connection, and whose files are removed afterwards. Returns its
/// exit code. `held` is what it uses besides.
///
/// It takes no turn of the processes: those that it asks for have to wait for theirs.
pub(crate) async fn connect(
    builder: &Arc<Builder>,
    op: &ExecOp,
    base: &Stack,
    settings: &Settings,
    log: &Arc<Log>,
    connection: OwnedFd,
    held: impl Send + 'static,
) -> Result<i32> {
    check(op)?;
    let prepare = {
        let (store, op, settings) = (builder.store().clone(), op.clone(), settings.clone());
        let stack = base.clone();
        let run_inputs = RunInputs {
            connection: Some(connection),
            ..RunInputs::default()
        };
        move || {
            prepare(
                &store,
                &op,
                &stack,
                &settings,
                Mounts::default(),
                run_inputs,
            )
        }
    };
    let (builder, log) = (builder.clone(), log.clone());
    let executed = outlive(|left| execute(builder, prepare, held, log, left)).await;
    executed.map(|executed| executed.code)
}

/// Runs work in a task of its own, which outlives this future: a channel tells it that this was dropped.
async fn outlive<T, F>(work: impl FnOnce(oneshot::Receiver<()>) -> F) -> Result<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let (_waiting, left) = oneshot::channel();
    let done = tokio::spawn(work(left)).await;
    done.map_err(|error| Error::internal(format!("a task of the build: {error}")))?
}

/// Executes a process, and returns its exit code and what it has written. When `left` is ready, it is killed. What it
/// uses is held until nothing is left of it: another step must not get a cache that it still writes to, and the files
/// below it must not change.
async fn execute(
    builder: Arc<Builder>,
    prepare: impl FnOnce() -> Result<Prepared> + Send + 'static,
    held: impl Send + 'static,
    log: Arc<Log>,
    left: oneshot::Receiver<()>,
) -> Result<Executed> {
    let Prepared {
        step,
        mut mounts,
        files,
        workspace,
        mut output,
    } = blocking(prepare).await?;
    let engine = &builder.engine;
    let command = step.config.cmd.as_deref().unwrap_or_default().join(" ");
    let starting = engine.containers.start_step(&engine.workloads, step);
    let started = starting.await.map_err(|error| {
        let what = format!("process {command:?} did not complete successfully");
        error.prefixed(&what)
    })?;
    let started = started.started;
    let followed = tokio::select! {
        followed = follow(&mut output, &log) => followed,
        _ = left => Err(Error::internal("the step was cancelled")),
    };
    if let Err(error) = followed {
        started.end().await;
        return Err(error);
    }
    let exit = started.wait().await;
    let outputs = std::mem::take(&mut mounts.outputs);
    drop((mounts, files, held));
    Ok(Executed {
        code: exit.code,
        workspace,
        outputs,
    })
}

/// Writes the output of a process to its log, to its end.
async fn follow(output: &mut UnixStream, log: &Arc<Log>) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match output.read(&mut buffer).await {
            Ok(0) => return Ok(()),
            Ok(count) => {
                let (log, bytes) = (log.clone(), buffer[..count].to_vec());
                blocking(move || log.append(&bytes)).await?;
            }
            Err(error) => return Err(Error::os("read the output of a step", error)),
        }
    }
}

/// Refuses what is not supported.
pub(super) fn check(op: &ExecOp) -> Result<()> {
    if SecurityMode::try_from(op.security).is_err() {
        let text = format!("unknown security mode {}", op.security);
        return Err(Error::invalid(text));
    }
    for root in op.mounts.iter().filter(|mount| mount.dest == "/") {
        if select::clean(&root.selector) != "/" {
            let path = &root.selector;
            return Err(Error::Unsupported(format!(
                "the root file system from {path}"
            )));
        }
        if MountType::try_from(root.mount_type) != Ok(MountType::Bind) {
            return Err(Error::invalid("a root file system that is no bind mount"));
        }
    }
    mounts::check(op)
}

/// Prepares a process. Blocking.
pub(super) fn prepare(
    store: &Store,
    op: &ExecOp,
    base: &Stack,
    settings: &Settings,
    mut mounts: Mounts,
    run_inputs: RunInputs,
) -> Result<Prepared> {
    let meta = op.meta.clone().unwrap_or_default();
    let (output, theirs) = UnixStream::pair().map_err(os("connect to a step"))?;
    let theirs = OwnedFd::from(theirs.into_std().map_err(os("connect to a step"))?);
    let workspace = Workspace::create(store)?;
    let files = base.files(store)?;
    // Mount points are in a layer of their own, so that they are not part of the result.
    let init = workspace.path().join("init");
    let directories: Vec<&Path> = mounts.directories.iter().map(PathBuf::as_path).collect();
    let others: Vec<&Path> = mounts.files.iter().map(PathBuf::as_path).collect();
    let layers = paths(&files);
    store
        .snapshots
        .make_init_layer_with(&layers, &init, &directories, &others)?;
    let name = workspace.path().file_name().unwrap_or_default();
    let root = Overlay {
        lower: std::iter::once(init).chain(layers).collect(),
        upper: workspace.upper(),
        work: workspace.work(),
        // Nothing of it is used after a crash, so that it need not be flushed.
        volatile: true,
    };
    let step = Step {
        id: format!("build-{}", name.to_string_lossy()),
        directory: workspace.path().to_owned(),
        config: config(&meta, run_inputs.env, run_inputs.tty),
        host: host(op, &meta, settings, run_inputs.devices)?,
        mounts: std::mem::take(&mut mounts.specs),
        root,
        output: theirs,
        stdin: run_inputs.stdin,
        connection: run_inputs.connection,
    };
    Ok(Prepared {
        step,
        mounts,
        files,
        workspace,
        output,
    })
}

fn config(meta: &Meta, secrets: Vec<String>, tty: bool) -> Config {
    let hostname = match meta.hostname.as_str() {
        "" => HOSTNAME,
        name => name,
    };
    Config {
        hostname: hostname.to_owned(),
        user: meta.user.clone(),
        env: Some(environment(meta).into_iter().chain(secrets).collect()),
        cmd: Some(meta.args.clone()),
        working_dir: meta.cwd.clone(),
        tty,
        ..Config::default()
    }
}

/// Returns the variables, with those of proxies, which the operation's own replace.
fn environment(meta: &Meta) -> Vec<String> {
    let proxies = meta.proxy_env.as_ref();
    let proxies = proxies.map(|proxy| {
        [
            ("HTTP_PROXY", &proxy.http_proxy),
            ("HTTPS_PROXY", &proxy.https_proxy),
            ("FTP_PROXY", &proxy.ftp_proxy),
            ("NO_PROXY", &proxy.no_proxy),
            ("ALL_PROXY", &proxy.all_proxy),
        ]
    });
    let set = proxies.into_iter().flatten();
    let set = set.filter(|(_, value)| !value.is_empty());
    let both = set.flat_map(|(name, value)| {
        [
            format!("{name}={value}"),
            format!("{}={value}", name.to_lowercase()),
        ]
    });
    both.chain(meta.env.iter().cloned()).collect()
}

fn host(op: &ExecOp, meta: &Meta, settings: &Settings, devices: Vec<String>) -> Result<HostConfig> {
    let network_mode = match NetMode::try_from(op.network) {
        Ok(NetMode::Unset) => settings.network.clone(),
        Ok(NetMode::None) => NetworkMode::None,
        // `Entitlements::check` has refused requests that do not allow it, and privileges and devices below.
        Ok(NetMode::Host) => NetworkMode::Host,
        Err(_) => {
            return Err(Error::invalid(format!(
                "unknown network mode {}",
                op.network
            )));
        }
    };
    let ulimit = |limit: &whelk_llb::pb::Ulimit| Ulimit {
        name: limit.name.clone(),
        soft: limit.soft,
        hard: limit.hard,
    };
    let hosts = meta.extra_hosts.iter();
    let shm = op.mounts.iter().find(|mount| mount.dest == "/dev/shm");
    let shm = shm.and_then(|mount| mount.tmpfs_opt).map(|one| one.size);
    let shm = shm.unwrap_or(settings.limits.shm_size);
    Ok(HostConfig {
        network_mode,
        ulimits: Some(meta.ulimit.iter().map(ulimit).collect()),
        extra_hosts: Some(
            hosts
                .map(|host| format!("{}:{}", host.host, host.ip))
                .collect(),
        ),
        shm_size: if shm > 0 { shm } else { SHM_SIZE },
        auto_remove: true,
        readonly_rootfs: op
            .mounts
            .iter()
            .any(|mount| mount.dest == "/" && mount.readonly),
        cgroup_parent: match meta.cgroup_parent.as_str() {
            "" => settings.limits.cgroup_parent.clone(),
            parent => parent.to_owned(),
        },
        privileged: entitlements::is_insecure(op),
        device_requests: (!devices.is_empty()).then(|| {
            vec![DeviceRequest {
                driver: "cdi".into(),
                device_ids: Some(devices),
                ..DeviceRequest::default()
            }]
        }),
        ..settings.limits.clone()
    })
}
