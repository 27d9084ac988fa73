//! Containers of frontends: processes whose files are results of a build, and whose streams the frontend has.
//!
//! ```text
//! new ──the first process──► running ──its end, or the release──► gone
//!                              ▲ further processes
//! ```
//! What a container shows is held until nothing is left of it. A process that nobody follows any more is killed: when its
//! [`ProcessControl`] and its [`ProcessOutput`] are dropped.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex, OwnedSemaphorePermit, oneshot, watch};
use whelk_engine::containers::{ExecConfig, RunningStep};
use whelk_engine::workload::ExecEnd;
use whelk_llb::pb::{ExecOp, HostIp, Meta, Mount, Platform, SecretEnv};
use whelk_sys::sync::IgnorePoison as _;
use whelk_text::signal;

use super::exec::{self, Prepared, RunInputs, Settings};
use super::mounts::{self, TakenCache};
use super::secrets::Secrets;
use super::ssh::{self, Agents};
use super::{Context, input};
use crate::error::{Error, Result};
use crate::layers::Stack;
use crate::log::{Frames, Log};
use crate::request::Request;
use crate::snapshot::Snapshot;
use crate::solver::Waiting;
use crate::{Builder, blocking};

/// Maximum number of containers of all builds at a time.
pub(crate) const MOST: usize = 128;

/// Maximum number of mounts of a container.
const MAX_MOUNTS: usize = 256;

/// Size of the buffer for the output of a process, in bytes.
const BUFFER: usize = 32 << 10;

/// The exit code of a process of which nobody knows how it has ended.
const UNKNOWN: i32 = 255;

/// How long the exit of a process may come after the end of its streams.
const PATIENCE: Duration = Duration::from_secs(10);

/// A container that is wanted.
#[derive(Clone, Debug, Default)]
pub struct ContainerRequest {
    /// The mounts, of which the one at `/` is the root file system, with the files that they show.
    pub mounts: Vec<(Mount, Option<Snapshot>)>,
    /// A [`whelk_llb::pb::NetMode`].
    pub network: i32,
    pub hostname: String,
    pub extra_hosts: Vec<HostIp>,
    pub platform: Option<Platform>,
}

/// A process that is wanted.
#[derive(Clone, Debug, Default)]
pub struct ProcessRequest {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub secrets: Vec<SecretEnv>,
    pub user: String,
    /// An absolute path; `/` if it is empty.
    pub working_dir: String,
    pub tty: bool,
    pub stdin: bool,
    /// A [`whelk_llb::pb::SecurityMode`].
    pub security: i32,
}

/// A container. When this is dropped, its processes are killed.
pub struct Container {
    builder: Arc<Builder>,
    waiting: Arc<Waiting>,
    settings: Settings,
    /// Its mounts and its network.
    op: ExecOp,
    is_windows: bool,
    stage: Mutex<Stage>,
    /// The container ends when this is dropped.
    release: StdMutex<Option<oneshot::Sender<Infallible>>>,
    is_released: Arc<AtomicBool>,
    /// Closed when nothing is left of it.
    gone: watch::Receiver<()>,
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container").finish_non_exhaustive()
    }
}

enum Stage {
    New(Box<Parts>),
    Running(Arc<RunningStep>),
    /// Its first process has not started, or it was released.
    Ended,
}

/// What a container holds until nothing is left of it.
struct Parts {
    inputs: Vec<Stack>,
    held: Vec<Snapshot>,
    secrets: Secrets,
    agents: Agents,
    caches: Vec<TakenCache>,
    released: oneshot::Receiver<Infallible>,
    permit: OwnedSemaphorePermit,
    gone: watch::Sender<()>,
}

impl Builder {
    /// Creates a container. Its caches are taken, and its secrets asked for, at once; it is mounted with the first process.
    ///
    /// # Errors
    /// Returns an error for what is not supported, for a secret or an agent that the client does not have, and if there are too
    /// many containers.
    pub async fn container(
        self: &Arc<Self>,
        request: &Request,
        wanted: ContainerRequest,
    ) -> Result<Container> {
        let permit = self.containers.clone().try_acquire_owned();
        let permit =
            permit.map_err(|_| Error::invalid(format!("more than {MOST} containers of builds")))?;
        let platform = wanted.platform.clone().unwrap_or_default();
        // As with BuildKit, another system only changes the default of PATH.
        if platform.os == "linux" && !platform.architecture.is_empty() {
            crate::emulation::check(Some(&platform), "a container")?;
        }
        let (op, inputs, held) = op(wanted)?;
        exec::check(&op)?;
        let waiting = Arc::new(Waiting::alone(request.client.clone()));
        let log = Arc::new(Log::new(&self.store().staging));
        let caches = mounts::take_caches(&self.caches, &op, &inputs, &log).await;
        log.close();
        let (release, released) = oneshot::channel();
        let (left, gone) = watch::channel(());
        let parts = Parts {
            inputs,
            held,
            secrets: Secrets::fetch(&waiting.clients, &op).await?,
            agents: Agents::find(&waiting.clients, &op).await?,
            caches: caches?,
            released,
            permit,
            gone: left,
        };
        Ok(Container {
            builder: self.clone(),
            waiting,
            settings: request.settings.clone(),
            op,
            is_windows: platform.os == "windows",
            stage: Mutex::new(Stage::New(Box::new(parts))),
            release: StdMutex::new(Some(release)),
            is_released: Arc::default(),
            gone,
        })
    }
}

/// Returns the operation of a container without its process, and its inputs.
fn op(wanted: ContainerRequest) -> Result<(ExecOp, Vec<Stack>, Vec<Snapshot>)> {
    if wanted.mounts.len() > MAX_MOUNTS {
        let text = format!("a container with more than {MAX_MOUNTS} mounts");
        return Err(Error::invalid(text));
    }
    let (mut shown, mut inputs, mut held) = (Vec::new(), Vec::new(), Vec::new());
    for (mount, snapshot) in wanted.mounts {
        let index = match snapshot {
            Some(snapshot) => {
                inputs.push(snapshot.stack.clone());
                held.push(snapshot);
                i64::try_from(inputs.len() - 1).unwrap_or(-1)
            }
            None => -1,
        };
        shown.push(Mount {
            input: index,
            output: -1,
            result_id: String::new(),
            ..mount
        });
    }
    let op = ExecOp {
        meta: Some(Meta {
            hostname: wanted.hostname,
            extra_hosts: wanted.extra_hosts,
            ..Meta::default()
        }),
        mounts: shown,
        network: wanted.network,
        ..ExecOp::default()
    };
    let op = mounts::absolute(&op).into_owned();
    match op.mounts.iter().any(|mount| mount.dest == "/") {
        true => Ok((op, inputs, held)),
        false => Err(Error::invalid("a container without a root file system")),
    }
}

impl Container {
    /// Starts a process: the first one, or one beside it.
    ///
    /// # Errors
    /// Returns an error for rights that the build does not have, for a secret that the client does not have, and the reason why
    /// it did not start.
    pub async fn start(&self, request: ProcessRequest) -> Result<Process> {
        let (op, env) = self.process(&request).await?;
        let mut stage = self.stage.lock().await;
        let running = match std::mem::replace(&mut *stage, Stage::Ended) {
            Stage::New(parts) => {
                let first = RunInputs {
                    env,
                    tty: request.tty,
                    stdin: request.stdin,
                    ..RunInputs::default()
                };
                let (control, streams) = self.start_first(*parts, op, first).await?;
                *stage = Stage::Running(control.step.clone());
                return Ok(self.started(control, None, streams));
            }
            Stage::Running(step) => step,
            Stage::Ended => {
                return Err(Error::invalid("the container has ended, or was released"));
            }
        };
        *stage = Stage::Running(running.clone());
        drop(stage);
        let meta = op.meta.unwrap_or_default();
        let config = ExecConfig {
            user: meta.user,
            tty: request.tty,
            attach_stdin: request.stdin,
            attach_stdout: true,
            attach_stderr: true,
            env: Some(meta.env.into_iter().chain(env).collect()),
            working_dir: meta.cwd,
            cmd: Some(meta.args),
            ..ExecConfig::default()
        };
        let containers = &self.builder.engine.containers;
        let exec = containers.exec_in_step(&running, &config).await?;
        let control = ProcessControl {
            step: running,
            exec: Some(exec.id),
        };
        Ok(self.started(control, Some(exec.end), exec.streams))
    }

    /// Returns the operation with a process, and the variables that are secrets.
    async fn process(&self, request: &ProcessRequest) -> Result<(ExecOp, Vec<String>)> {
        if request.args.is_empty() {
            return Err(Error::invalid("a process without a command"));
        }
        let working_dir = match request.working_dir.as_str() {
            "" => "/",
            path if path.starts_with('/') => path,
            path => {
                let text = format!("the working directory {path} is not an absolute path");
                return Err(Error::invalid(text));
            }
        };
        if let Some(secret) = request.secrets.iter().find(|secret| secret.id.is_empty()) {
            let name = &secret.name;
            let text = format!("secret ID missing for {name:?} environment variable");
            return Err(Error::invalid(text));
        }
        let mut env = request.env.clone();
        if self.is_windows && !env.iter().any(|variable| variable.starts_with("PATH=")) {
            env.push("PATH=c:\\Windows\\System32;c:\\Windows;C:\\Windows\\System32\\WindowsPowerShell\\v1.0".into());
        }
        let op = ExecOp {
            meta: Some(Meta {
                args: request.args.clone(),
                env,
                cwd: working_dir.to_owned(),
                user: request.user.clone(),
                ..self.op.meta.clone().unwrap_or_default()
            }),
            security: request.security,
            ..self.op.clone()
        };
        exec::check(&op)?;
        self.settings.entitlements.check_container(&op)?;
        let asked = ExecOp {
            secretenv: request.secrets.clone(),
            ..ExecOp::default()
        };
        let secrets = Secrets::fetch(&self.waiting.clients, &asked).await?;
        Ok((op, secrets.environment))
    }

    /// Starts the first process in a task of its own, which holds what it uses until nothing is left of it.
    async fn start_first(
        &self,
        parts: Parts,
        op: ExecOp,
        first: RunInputs,
    ) -> Result<(ProcessControl, UnixStream)> {
        let (told, started) = oneshot::channel();
        let context = Context {
            store: self.builder.store().clone(),
            lease: Arc::new(self.builder.store().leases.take()),
            waiting: self.waiting.clone(),
        };
        let (builder, settings) = (self.builder.clone(), self.settings.clone());
        tokio::spawn(run(builder, context, parts, (op, first), settings, told));
        let lost = |_| Err(Error::internal("a task of a container has ended"));
        started.await.unwrap_or_else(lost)
    }

    fn started(
        &self,
        control: ProcessControl,
        end: Option<ExecEnd>,
        streams: UnixStream,
    ) -> Process {
        let control = Arc::new(control);
        let (reader, input) = streams.into_split();
        Process {
            control: control.clone(),
            input,
            output: ProcessOutput {
                control,
                reader,
                buffer: vec![0; BUFFER],
                frames: Frames::default(),
                ready: VecDeque::new(),
                end,
                is_released: self.is_released.clone(),
            },
        }
    }

    /// Kills the processes, and waits until nothing is left of them.
    pub async fn release(&self) {
        self.is_released.store(true, Ordering::Relaxed);
        drop(self.release.lock().ignore_poison().take());
        // Its first process may be starting.
        let mut stage = self.stage.lock().await;
        *stage = Stage::Ended;
        drop(stage);
        let mut gone = self.gone.clone();
        while gone.changed().await.is_ok() {}
    }
}

/// Runs the first process of a container until it ends, or until the container is released.
async fn run(
    builder: Arc<Builder>,
    context: Context,
    parts: Parts,
    (op, first): (ExecOp, RunInputs),
    settings: Settings,
    told: oneshot::Sender<Result<(ProcessControl, UnixStream)>>,
) {
    let Parts {
        inputs,
        held,
        secrets,
        mut agents,
        caches,
        released,
        permit,
        gone,
    } = parts;
    let run = builder.engine.instance.run.clone();
    let listening = agents.listen(&op, &run);
    let sockets = agents.sockets();
    let prepare = move || {
        listening?;
        let root = op.mounts.iter().find(|mount| mount.dest == "/");
        let base = input(&inputs, root.map_or(-1, |root| root.input))?;
        let mut mounts = mounts::prepare(&context, &op, &inputs, &caches)?;
        secrets.mount(&op, &run, &mut mounts)?;
        ssh::mount(&sockets, &op, &mut mounts);
        exec::prepare(&context.store, &op, &base, &settings, mounts, first)
    };
    let starting = async {
        let Prepared {
            step,
            mounts,
            files,
            workspace,
            output,
        } = blocking(prepare).await?;
        let engine = &builder.engine;
        let step = engine
            .containers
            .start_step(&engine.workloads, step)
            .await?;
        let used = (mounts, files, workspace);
        Ok::<_, Error>((Arc::new(step), output, used))
    };
    match starting.await {
        Ok((step, output, used)) => {
            let control = ProcessControl {
                step: step.clone(),
                exec: None,
            };
            // Whoever has asked for it may be gone: then it is killed, because its control is dropped.
            let _ = told.send(Ok((control, output)));
            tokio::select! {
                _ = step.started.wait() => {}
                _ = released => step.started.end().await,
            }
            drop(used);
        }
        Err(error) => drop(told.send(Err(error))),
    }
    drop((agents, held, permit, gone));
}

/// A process that was started.
#[derive(Debug)]
pub struct Process {
    pub control: Arc<ProcessControl>,
    /// Its standard input, which ends when this is dropped.
    pub input: OwnedWriteHalf,
    pub output: ProcessOutput,
}

/// Sends signals to a process.
#[derive(Debug)]
pub struct ProcessControl {
    step: Arc<RunningStep>,
    /// The id of a further process.
    exec: Option<String>,
}

impl ProcessControl {
    /// Sends a signal. Succeeds if the process has ended.
    ///
    /// # Errors
    /// Returns an error if it cannot be sent.
    pub async fn signal(&self, number: i32) -> Result<()> {
        let started = &self.step.started;
        match &self.exec {
            None => started.kill(number).await?,
            Some(id) => started.kill_exec(id, number).await?,
        }
        Ok(())
    }

    /// Sets the size of the terminal. Does nothing if the process has none, or has ended.
    ///
    /// # Errors
    /// Returns an error if it cannot be set.
    pub async fn resize(&self, height: u16, width: u16) -> Result<()> {
        let exec = self.exec.as_deref();
        Ok(self.step.started.resize(exec, height, width).await?)
    }
}

/// Kills the first process. A further one is killed when its streams are closed.
impl Drop for ProcessControl {
    fn drop(&mut self) {
        // Without a runtime the engine ends. The next one kills what is left.
        if self.exec.is_none()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let step = self.step.clone();
            // It fails only if the process has to be killed with its container, which is done later.
            runtime.spawn(async move { step.started.kill(signal::KILL).await });
        }
    }
}

/// How a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessExit {
    pub code: i32,
    /// Whether its container was released before.
    pub is_released: bool,
}

/// The output of a process, and its end.
#[derive(Debug)]
pub struct ProcessOutput {
    control: Arc<ProcessControl>,
    reader: OwnedReadHalf,
    buffer: Vec<u8>,
    frames: Frames,
    ready: VecDeque<(u8, Vec<u8>)>,
    end: Option<ExecEnd>,
    is_released: Arc<AtomicBool>,
}

impl ProcessOutput {
    /// Returns more output, and the number of its stream: 1, also of a terminal, or 2; `None` at its end.
    pub async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(ready);
            }
            match self.reader.read(&mut self.buffer).await {
                Ok(count @ 1..) => self.ready.extend(self.frames.add(&self.buffer[..count])),
                Ok(0) | Err(_) => return None,
            }
        }
    }

    /// Waits for the end of the process, after that of its output.
    pub async fn wait(self) -> ProcessExit {
        let code = match self.end {
            None => self.control.step.started.wait().await.code,
            Some(end) => match tokio::time::timeout(PATIENCE, end.wait()).await {
                Ok(exit) => exit.code,
                Err(_) => UNKNOWN,
            },
        };
        ProcessExit {
            code,
            is_released: self.is_released.load(Ordering::Relaxed),
        }
    }
}
