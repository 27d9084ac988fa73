//! Containers of frontends, and processes in them: `LLBBridge.NewContainer`, `ExecProcess` and `ReleaseContainer`.
//!
//! ```text
//! NewContainer(name, mounts of references)
//! ExecProcess, a call for any number of processes:
//!     ─► Init(name)                    ─► File(0) … File(0, EOF), Resize, Signal
//!     ◄─ Started ◄─ File(1, 2) … File(1, EOF) File(2, EOF) ◄─ Exit ◄─ Done
//! ReleaseContainer(name)
//! ```
//! Nothing is queued: a frontend that does not read its processes' output holds them up, and a process that does not read its
//! input holds up the call.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::OwnedWriteHalf;
use tokio::task::JoinSet;
use whelk_build::{
    ContainerRequest, Process, ProcessControl, ProcessExit, ProcessOutput, ProcessRequest, Snapshot,
};
use whelk_buildkit::details;
use whelk_buildkit::grpc::{Call, Code, Responses, Result, Status};
use whelk_buildkit::pb::gateway::exec::Input;
use whelk_buildkit::pb::gateway::{
    ExecMessage, ExitMessage, FdMessage, InitMessage, NewContainerRequest, ResizeMessage,
};
use whelk_buildkit::pb::{Message as _, Unused};

use super::Buildkit;
use super::builds::Build;
use super::result;
use super::scope::{FrontendContainer, Limited, Place, Scope};

/// Maximum length of the name of a container or a process.
const MAX_NAME: usize = 256;

/// Maximum number of processes of one call, also of those that have ended.
const MAX_KNOWN: usize = 10_000;

/// Minimum time until a client has the answer that its container was created. buildx 0.29 ends the processes of its earlier
/// containers in the background meanwhile; on a busy machine, after a faster answer, it ends the first process of the new container
/// instead. BuildKit mounts the container during this call, which takes some milliseconds.
const SETTLING: Duration = Duration::from_millis(20);

/// The exit code of a process that was not started.
const NOT_STARTED: u32 = 255;

impl Buildkit {
    /// Creates a container.
    pub(super) async fn new_container(
        self: &Arc<Self>,
        build: &Build,
        scope: &Scope,
        request: NewContainerRequest,
    ) -> Result<()> {
        scope.charge(request.encoded_len())?;
        let name = checked("ContainerID", &request.container_id)?;
        let mut constraints = request.constraints.iter().flat_map(|one| &one.filter);
        if let Some(filter) = constraints.next() {
            let text = format!("the constraint {filter} of a container");
            return Err(Status::unsupported(text));
        }
        for host in &request.extra_hosts {
            if host.ip.parse::<IpAddr>().is_err() {
                let text = format!("invalid address {:?} of the host {}", host.ip, host.host);
                return Err(Status::invalid(text));
            }
        }
        let place = scope.take(Limited::Container)?;
        let mut mounts = Vec::new();
        for mount in request.mounts {
            let snapshot = match mount.result_id.as_str() {
                "" => None,
                id => {
                    let found = self.snapshot(scope, id).await;
                    let failed =
                        |status: Status| status.context(format_args!("the mount {}", mount.dest));
                    Some(found.map_err(failed)?)
                }
            };
            mounts.push((mount, snapshot));
        }
        let wanted = ContainerRequest {
            mounts,
            network: request.network,
            hostname: request.hostname,
            extra_hosts: request.extra_hosts,
            platform: request.platform,
        };
        let container = self.builder.container(build.request_of(scope), wanted);
        let container = container.await;
        let container = container.map_err(|error| result::status(&error, None))?;
        scope.add_container(&name, container, place)?;
        if scope.request.is_none() {
            tokio::time::sleep(SETTLING).await;
        }
        Ok(())
    }

    /// Returns the files of a reference, or of a failed step.
    async fn snapshot(self: &Arc<Self>, scope: &Scope, id: &str) -> Result<Snapshot> {
        if let Some(left) = scope.left(id) {
            return Ok(left);
        }
        let reference = scope.reference(id)?;
        let solved = scope.solve(&reference, &self.builder).await?;
        Ok(solved.snapshot())
    }
}

/// Checks a name that a frontend has given.
fn checked(field: &str, name: &str) -> Result<String> {
    match name.len() {
        0 => Err(Status::invalid(format!("{field} required"))),
        1..=MAX_NAME => Ok(name.to_owned()),
        _ => Err(Status::invalid(format!(
            "the {field} is longer than {MAX_NAME} bytes"
        ))),
    }
}

/// Removes a container, and kills its processes.
///
/// # Errors
/// Returns an error if there is no such container, and, as BuildKit does, if processes were killed.
pub(super) async fn release(scope: &Scope, name: &str) -> Result<()> {
    let found = scope.take_container(name);
    let found =
        found.ok_or_else(|| Status::unknown(format!("container details for {name} not found")))?;
    let killed = found.running.load(Ordering::Relaxed);
    found.container.release().await;
    match killed {
        0 => Ok(()),
        _ => Err(Status::canceled().context("processes of the container were killed")),
    }
}

/// A running process of a call, with its control and its standard input.
struct Known {
    control: Arc<ProcessControl>,
    /// Its standard input, unless that has ended.
    input: Option<OwnedWriteHalf>,
    /// Whether the frontend may still send data for the standard input: it has asked for it, and has not closed it.
    takes_input: bool,
    /// Set when the process has ended, before the frontend is told so. Input that arrives later is dropped: the call may not have
    /// removed the process yet.
    has_ended: Arc<AtomicBool>,
}

/// The processes of one call.
struct Processes<'a> {
    scope: &'a Scope,
    responses: Responses,
    /// By their names; `None` for one that has ended.
    known: HashMap<String, Option<Known>>,
    /// Sends the output of each process, and returns its name.
    tasks: JoinSet<Result<String>>,
}

/// Answers a call that starts processes, and connects their streams. A process is killed when the call is dropped.
pub(super) async fn exec(scope: &Scope, call: Call) -> Result<()> {
    let Call {
        mut requests,
        responses,
        ..
    } = call;
    let mut processes = Processes {
        scope,
        responses,
        known: HashMap::new(),
        tasks: JoinSet::new(),
    };
    loop {
        let message: Option<ExecMessage> = tokio::select! {
            message = requests.next() => message?,
            Some(ended) = processes.tasks.join_next() => {
                let name = ended.map_err(|error| Status::unknown(error.to_string()))??;
                processes.known.insert(name, None);
                continue;
            }
        };
        let Some(message) = message else { break };
        processes.take(message).await?;
    }
    // The frontend sends nothing more: the input of all processes ends. They are waited for.
    let Processes {
        known, mut tasks, ..
    } = processes;
    drop(known);
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|error| Status::unknown(error.to_string()))??;
    }
    Ok(())
}

impl Processes<'_> {
    /// Does what a message says.
    async fn take(&mut self, message: ExecMessage) -> Result<()> {
        let name = checked("ProcessID", &message.process_id)?;
        let missing = || Status::not_found(format!("IO for process {name:?} not found"));
        match message.input {
            Some(Input::Init(init)) => self.init(name, init).await,
            Some(Input::File(file)) => match self.known.get_mut(&name).ok_or_else(missing)? {
                Some(known) => known.write(file).await,
                None => Ok(()),
            },
            Some(Input::Resize(size)) => {
                if let Some(known) = self.known.get(&name).ok_or_else(missing)? {
                    known.resize(size).await;
                }
                Ok(())
            }
            Some(Input::Signal(signal)) => {
                let number = whelk_text::signal::parse(&signal.name);
                let number = number
                    .map_err(|_| Status::invalid(format!("Unknown signal {}", signal.name)))?;
                if let Some(known) = self.known.get(&name).ok_or_else(missing)?
                    && let Err(error) = known.control.signal(number).await
                {
                    tracing::warn!("signal {number} to the process {name} of a build: {error}");
                }
                Ok(())
            }
            Some(Input::Started(_) | Input::Exit(_) | Input::Done(_)) | None => {
                let text = format!("unexpected message for the process {name:?}");
                Err(Status::invalid(text))
            }
        }
    }

    /// Starts a process. That it cannot be started is told as its exit: others of the call go on.
    async fn init(&mut self, name: String, init: InitMessage) -> Result<()> {
        if self.known.contains_key(&name) {
            let text = format!("Process {name} already exists");
            return Err(Status::new(Code::AlreadyExists, text));
        }
        if self.known.len() >= MAX_KNOWN {
            let text = format!("more than {MAX_KNOWN} processes of one call");
            return Err(Status::new(Code::ResourceExhausted, text));
        }
        if let Some(fd) = init.fds.iter().find(|fd| **fd > 2) {
            let text = format!("fd {fd} of a process: there are 0, 1 and 2");
            return Err(Status::invalid(text));
        }
        let place = self.scope.take(Limited::Process)?;
        let container = self.scope.container(&init.container_id);
        let container = container.ok_or_else(|| {
            Status::not_found(format!(
                "container {:?} previously released or not created",
                init.container_id
            ))
        })?;
        let fds: BTreeSet<u32> = init.fds.iter().copied().collect();
        let takes_input = fds.contains(&0);
        let started = container.container.start(request(init, takes_input)).await;
        let sender = Sender {
            name: name.clone(),
            responses: self.responses.clone(),
            outputs: fds.into_iter().filter(|fd| *fd > 0).collect(),
        };
        sender.send(Input::Started(Unused {})).await?;
        match started {
            Ok(Process {
                control,
                input,
                output,
            }) => {
                let has_ended: Arc<AtomicBool> = Arc::default();
                let known = Known {
                    control,
                    input: takes_input.then_some(input),
                    takes_input,
                    has_ended: has_ended.clone(),
                };
                self.known.insert(name, Some(known));
                let running = Running::new(container, place);
                self.tasks.spawn(sender.follow(output, running, has_ended));
                Ok(())
            }
            Err(error) => {
                self.known.insert(name, None);
                let error = result::status(&error, None);
                sender.end(NOT_STARTED, Some(error)).await
            }
        }
    }
}

/// Returns the process that a message asks for.
fn request(init: InitMessage, stdin: bool) -> ProcessRequest {
    let meta = init.meta.unwrap_or_default();
    ProcessRequest {
        args: meta.args,
        env: meta.env,
        secrets: init.secretenv,
        user: meta.user,
        working_dir: meta.cwd,
        tty: init.tty,
        stdin,
        security: init.security,
    }
}

impl Known {
    /// Writes to the standard input. What comes after the end of the process is dropped.
    async fn write(&mut self, file: FdMessage) -> Result<()> {
        if self.has_ended.load(Ordering::Acquire) {
            return Ok(());
        }
        if file.fd != 0 || !self.takes_input {
            let text = format!("fd {} unavailable to write", file.fd);
            return Err(Status::new(Code::OutOfRange, text));
        }
        let written = match &mut self.input {
            Some(input) => input.write_all(&file.data).await,
            None => Ok(()),
        };
        self.takes_input = !file.eof;
        if file.eof || written.is_err() {
            self.input = None;
        }
        Ok(())
    }

    async fn resize(&self, size: ResizeMessage) {
        let number = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        let resized = self.control.resize(number(size.rows), number(size.cols));
        if let Err(error) = resized.await {
            tracing::warn!("resize the terminal of a process of a build: {error}");
        }
    }
}

/// A process that counts as running as long as this exists.
struct Running {
    container: Arc<FrontendContainer>,
    _place: Place,
}

impl Running {
    fn new(container: Arc<FrontendContainer>, place: Place) -> Self {
        container.running.fetch_add(1, Ordering::Relaxed);
        Self {
            container,
            _place: place,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.container.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends the frontend what there is to say of a process.
struct Sender {
    name: String,
    responses: Responses,
    /// The streams that it wants.
    outputs: Vec<u32>,
}

impl Sender {
    async fn send(&self, input: Input) -> Result<()> {
        let message = ExecMessage {
            process_id: self.name.clone(),
            input: Some(input),
        };
        self.responses.send(&message).await
    }

    /// Sends the output of a process, to its end. Returns its name.
    async fn follow(
        self,
        mut output: ProcessOutput,
        running: Running,
        has_ended: Arc<AtomicBool>,
    ) -> Result<String> {
        while let Some((stream, data)) = output.next().await {
            let fd = u32::from(stream);
            if self.outputs.contains(&fd) {
                let eof = false;
                self.send(Input::File(FdMessage { fd, eof, data })).await?;
            }
        }
        let exit = output.wait().await;
        drop(running);
        // Before the frontend learns it.
        has_ended.store(true, Ordering::Release);
        let (code, error) = ended(exit);
        self.end(code, error).await?;
        Ok(self.name)
    }

    /// Sends the end of a process.
    async fn end(&self, code: u32, error: Option<Status>) -> Result<()> {
        for fd in self.outputs.iter().copied() {
            let file = FdMessage {
                fd,
                eof: true,
                data: Vec::new(),
            };
            self.send(Input::File(file)).await?;
        }
        let error = error.map(|status| status.to_message());
        self.send(Input::Exit(ExitMessage { code, error })).await?;
        self.send(Input::Done(Unused {})).await
    }
}

/// Returns the exit code of a process, and its error if that is not 0.
fn ended(exit: ProcessExit) -> (u32, Option<Status>) {
    let code = u32::try_from(exit.code).unwrap_or(NOT_STARTED);
    let text = format!("exit code: {code}");
    let error = match (code, exit.is_released) {
        (0, _) => None,
        (_, true) => Some(Status::canceled().context(text)),
        (_, false) => Some(Status::unknown(text)),
    };
    (code, error.map(|status| status.with(details::exit(code))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_have_errors_unless_their_code_is_0() {
        let text = |code: i32, is_released: bool| {
            let (code, error) = ended(ProcessExit { code, is_released });
            (code, error.map(|status| status.message))
        };
        assert_eq!(text(0, false), (0, None));
        assert_eq!(text(3, false), (3, Some("exit code: 3".into())));
        let killed = "exit code: 137: context canceled";
        assert_eq!(text(137, true), (137, Some(killed.into())));
    }

    #[test]
    fn names_are_neither_empty_nor_long() {
        assert!(checked("ProcessID", "").is_err());
        assert_eq!(checked("ProcessID", "a").as_deref(), Ok("a"));
        assert!(checked("ProcessID", &"x".repeat(MAX_NAME + 1)).is_err());
    }
}
