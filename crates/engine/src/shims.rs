//! Starting shims, and sending them requests.
//!
//! A pool keeps a few shims warm: they have loaded their program, detached from the engine and
//! entered their cgroup before a container needs one. Giving a container to a warm shim takes one
//! message.

#[cfg(test)]
pub(crate) mod fake;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::io::{ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use whelk_sys::sync::IgnorePoison as _;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg, socket_with,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use whelk_runtime::cgroup::Cgroup;
use whelk_shim::protocol::{self, ContainerLaunch, Event, Launched, Reply, Request};

use crate::error::{Error, Result};
use crate::instance::{Instance, through_descriptor};

/// Number of warm shims that the pool keeps.
const WARM_SHIMS: usize = 2;

/// Number of file descriptors reserved for stopping and removing containers: no container is
/// started if fewer are left.
const RESERVE: u64 = 32;

/// The pool of warm shims.
#[derive(Debug)]
pub struct WarmPool {
    ready: Mutex<VecDeque<UnixStream>>,
    refill: tokio::sync::Notify,
    /// The engine's own program, sealed so that a container cannot write to it
    /// ([`whelk_sys::program`]).
    executable: OwnedFd,
    cgroup: String,
}

impl WarmPool {
    /// Prepares the program and the cgroup of shims. [`WarmPool::maintain`] fills the pool.
    ///
    /// # Errors
    /// Returns an error if the executable cannot be sealed, or if the cgroup cannot be created.
    pub fn new(instance: &Instance, executable: &Path) -> Result<Arc<Self>> {
        let fail = |error: std::io::Error| {
            Error::internal(format!(
                "prepare {} for shims: {}",
                executable.display(),
                whelk_sys::errno_text(&error)
            ))
        };
        let program = whelk_sys::program::sealed(executable).map_err(fail)?;
        // Created here once, so that two starts never create the instance's cgroup at the same
        // time.
        Cgroup::at(&instance.shims_cgroup())
            .and_then(|mut cgroup| cgroup.create(&Default::default()))
            .map_err(|error| Error::internal(error.to_string()))?;
        Ok(Arc::new(Self {
            ready: Mutex::default(),
            refill: tokio::sync::Notify::new(),
            executable: program,
            cgroup: instance.shims_cgroup(),
        }))
    }

    /// Keeps the pool filled for as long as the engine runs.
    pub async fn maintain(self: Arc<Self>) {
        loop {
            while self.ready.lock().ignore_poison().len() < WARM_SHIMS {
                let shims = self.clone();
                match tokio::task::spawn_blocking(move || shims.spawn()).await {
                    Ok(Ok(socket)) => {
                        if let Ok(socket) = UnixStream::from_std(socket) {
                            self.ready.lock().ignore_poison().push_back(socket);
                        }
                    }
                    // A container's start will meet the same error and report it.
                    Ok(Err(error)) => {
                        tracing::warn!("fill the pool of shims: {error}");
                        break;
                    }
                    Err(_) => return,
                }
            }
            time_to_refill(&self.refill, || {
                self.ready.lock().ignore_poison().is_empty()
            })
            .await;
        }
    }

    /// Starts a shim, and returns the socket on which it waits for a container (its standard
    /// input).
    fn spawn(&self) -> Result<std::os::unix::net::UnixStream> {
        let fail = |error: std::io::Error| {
            Error::kernel(
                format!("start a shim: {}", whelk_sys::errno_text(&error)),
                &error,
            )
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(fail)?;
        let program = OsString::from(format!("/proc/self/fd/{}", self.executable.as_raw_fd()));
        let mut child = Command::new(program)
            .arg0("whelk")
            .args(["shim", "--cgroup", &self.cgroup])
            // No `current_dir`: with it the standard library uses fork, which copies the engine's
            // page tables, instead of posix_spawn.
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(fail)?;
        // The child forks the shim and exits at once.
        child.wait().map_err(fail)?;
        ours.set_nonblocking(true).map_err(fail)?;
        Ok(ours)
    }

    /// Starts a container in a shim. `attached` are the descriptors that the launch message refers
    /// to: network namespace, listening ports, connections of clients that attached before the
    /// start.
    ///
    /// # Errors
    /// Returns the reason why the container did not start.
    pub async fn launch(
        self: &Arc<Self>,
        launch: &ContainerLaunch,
        attached: Vec<OwnedFd>,
    ) -> std::result::Result<Running, LaunchError> {
        let message =
            protocol::encode(launch).map_err(|error| Error::internal(error.to_string()))?;
        whelk_sys::fallible_step().map_err(|error| {
            Error::internal(whelk_sys::errno_text(&error)).prefixed("call the shim")
        })?;
        let mut socket = self.hand_over(&message, &attached).await?;
        // The shim has duplicates. Clients see the end of a stream only when no process holds it
        // open.
        drop(attached);
        let launched = read_message::<Launched>(&mut socket).await;
        whelk_sys::step();
        match launched? {
            Launched::Running {
                pid,
                started_at,
                shim,
            } => Ok(Running {
                pid,
                started_at,
                shim: ShimProcess::at_end_of(shim, &socket),
                events: socket,
            }),
            Launched::Failed(error) => Err(LaunchError::Runtime(error)),
        }
    }

    /// Sends a launch message to a warm shim, or to a new one if there is none. A warm shim may
    /// have been killed: one that does not get the whole message starts nothing, so the next one is
    /// tried.
    async fn hand_over(
        self: &Arc<Self>,
        message: &[u8],
        descriptors: &[OwnedFd],
    ) -> Result<UnixStream> {
        loop {
            // A statement of its own, so that the lock is not held across the `await`.
            let ready = self.ready.lock().ignore_poison().pop_front();
            self.refill.notify_one();
            let Some(mut socket) = ready else { break };
            if !is_disconnected(&socket) && send(&mut socket, message, descriptors).await.is_ok() {
                return Ok(socket);
            }
            tracing::warn!("a warm shim has ended");
        }
        let shims = self.clone();
        let spawned = tokio::task::spawn_blocking(move || shims.spawn())
            .await
            .map_err(|error| Error::internal(error.to_string()))??;
        if whelk_sys::process::descriptors_are_scarce(spawned.as_fd(), RESERVE) {
            return Err(Error::Unavailable("start a shim: too many open files: raise the engine's limit (LimitNOFILE, ulimit -n)".into()));
        }
        let mut socket =
            UnixStream::from_std(spawned).map_err(|error| Error::internal(error.to_string()))?;
        send(&mut socket, message, descriptors).await?;
        Ok(socket)
    }
}

/// Returns whether the peer of a connected socket has closed it.
pub(crate) fn is_disconnected(socket: impl AsFd) -> bool {
    is_ready(socket, PollFlags::empty())
}

/// Returns whether one of `events`, an error or a hangup is reported for a descriptor now.
pub(crate) fn is_ready(descriptor: impl AsFd, events: PollFlags) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(&descriptor, events)], Some(&now)).is_ok_and(|count| count > 0)
}

/// Waits until a pool has to be refilled: a short time after something was taken, so that the
/// refill does not compete with the start of the container that took it, or at once if the pool is
/// low.
pub(crate) async fn time_to_refill(taken: &tokio::sync::Notify, is_low: impl Fn() -> bool) {
    const QUIET: Duration = Duration::from_millis(15);
    taken.notified().await;
    let until_low = async {
        while !is_low() {
            taken.notified().await;
        }
    };
    let _ = tokio::time::timeout(QUIET, until_low).await;
}

/// A container that was started.
#[derive(Debug)]
pub struct Running {
    /// The container's first process.
    pub pid: i32,
    /// In nanoseconds since the epoch.
    pub started_at: i64,
    /// `None` if it has ended.
    pub shim: Option<ShimProcess>,
    /// The connection on which the shim sends events.
    pub events: UnixStream,
}

/// What a shim runs, and where the shim is found. Displayed as in `container 3f1c…`.
#[derive(Clone, Debug)]
pub struct ShimAddress {
    pub kind: WorkloadKind,
    pub id: String,
    /// The directory of its socket and exit record.
    pub directory: PathBuf,
}

/// The kind of workload that a shim runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkloadKind {
    Container,
    /// A workload that has no record.
    Recordless,
}

impl fmt::Display for ShimAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            WorkloadKind::Container => "container",
            WorkloadKind::Recordless => "workload",
        };
        write!(formatter, "{kind} {}", self.id)
    }
}

/// A shim's process: its pid, and its start time to recognize it by. (A pidfd would cost a file
/// descriptor for each container.)
#[derive(Clone, Copy, Debug)]
pub struct ShimProcess {
    pub pid: i32,
    started: u64,
}

impl ShimProcess {
    /// Returns the shim at the other end of a connection.
    fn at_end_of(pid: i32, connection: &UnixStream) -> Option<Self> {
        let shim = Self::find(pid)?;
        // If it had ended before it was found, the kernel would have closed the connection.
        (!is_disconnected(connection)).then_some(shim)
    }

    /// Returns the process that has a pid now.
    pub(crate) fn find(pid: i32) -> Option<Self> {
        let started = start_time(pid)?;
        Some(Self { pid, started })
    }

    /// Opens a pidfd. Returns `None` if the process has ended.
    ///
    /// # Errors
    /// Returns an error if the engine lacks a descriptor.
    pub(crate) fn open(self) -> std::io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => Ok(None),
            // Compared after the pidfd was opened: the pid may be that of another process by now.
            opened => {
                let is_same = start_time(self.pid) == Some(self.started);
                Ok(Some(opened?).filter(|_| is_same))
            }
        }
    }

    /// Opens a pidfd of the process that listens on the socket that was connected to.
    pub(crate) fn of_peer(connection: &UnixStream) -> Option<Self> {
        Self::at_end_of(connection.peer_cred().ok()?.pid()?, connection)
    }
}

/// Returns when a process was started, in clock ticks since the boot (field 22 of
/// `/proc/PID/stat`).
fn start_time(pid: i32) -> Option<u64> {
    let stat = whelk_sys::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name in parentheses, may contain spaces; the third one follows it.
    const AFTER_NAME: usize = 22 - 3;
    let rest = stat.rsplit_once(") ")?.1;
    rest.split(' ').nth(AFTER_NAME)?.parse().ok()
}

/// Why a container did not start.
#[derive(Debug)]
pub enum LaunchError {
    Engine(Error),
    Runtime(whelk_runtime::Error),
}

impl From<Error> for LaunchError {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

/// Sends a message. The descriptors are attached to its first byte.
async fn send(socket: &mut UnixStream, message: &[u8], fds: &[OwnedFd]) -> Result<()> {
    let lost = |error: std::io::Error| {
        Error::internal(format!(
            "the shim ended early: {}",
            whelk_sys::errno_text(&error)
        ))
    };
    let sent = loop {
        socket.writable().await.map_err(lost)?;
        let result = socket.try_io(tokio::io::Interest::WRITABLE, || {
            const MOST: usize = 253;
            let borrowed: Vec<_> = fds.iter().take(MOST).map(AsFd::as_fd).collect();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !borrowed.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&borrowed));
            }
            sendmsg(
                socket.as_fd(),
                &[IoSlice::new(message)],
                &mut control,
                SendFlags::NOSIGNAL,
            )
            .map_err(Into::into)
        });
        match result {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            result => break result.map_err(lost)?,
        }
    };
    socket.write_all(&message[sent..]).await.map_err(lost)
}

/// Reads one message from a shim.
///
/// # Errors
/// Returns an error if the connection ends, or if the message cannot be parsed.
pub async fn read_message<T: for<'de> serde::Deserialize<'de>>(
    socket: &mut UnixStream,
) -> Result<T> {
    let body = read_body(socket).await?;
    serde_json::from_slice(&body)
        .map_err(|error| Error::internal(format!("malformed message from a shim: {error}")))
}

/// Reads the next event from a shim. Unknown events, as another version's shim may send, are logged
/// and skipped.
///
/// # Errors
/// Returns an error if the connection has ended.
pub async fn read_event(socket: &mut UnixStream) -> Result<Event> {
    loop {
        match serde_json::from_slice(&read_body(socket).await?) {
            Ok(event) => return Ok(event),
            Err(error) => tracing::warn!("skip an unknown event of a shim: {error}"),
        }
    }
}

async fn read_body(socket: &mut UnixStream) -> Result<Vec<u8>> {
    let lost = |error: std::io::Error| {
        Error::internal(format!(
            "the shim ended early: {}",
            whelk_sys::errno_text(&error)
        ))
    };
    let mut head = [0; 4];
    socket.read_exact(&mut head).await.map_err(lost)?;
    let mut body = vec![0; protocol::body_length(head).map_err(lost)?];
    socket.read_exact(&mut body).await.map_err(lost)?;
    Ok(body)
}

/// Returns whether any container or other workload of the instance has a shim. A shim listens on
/// its socket for as long as the container runs.
pub(crate) fn any_runs(instance: &Instance) -> bool {
    let connect_to = |path: &Path| -> rustix::io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty())?;
        let address = SocketAddrUnix::new(through_descriptor(&directory, "shim.sock"))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &address)
    };
    // EAGAIN: the queue of connections is full.
    let listens =
        |entry: &std::fs::DirEntry| matches!(connect_to(&entry.path()), Ok(()) | Err(Errno::AGAIN));
    ["containers", "workloads"].into_iter().any(|kind| {
        let directories = whelk_sys::fs::list(instance.run.join(kind)).unwrap_or_default();
        directories.iter().any(listens)
    })
}

/// Time limit for a shim's answer to a request that does not depend on the container's processes.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a request may take before the shim is asked whether it still answers, and the time limit
/// for that answer.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to a container's shim. Retries without limit while the engine has no free file
/// descriptor or the shim's queue of connections is full: callers that must not wait for ever set a
/// time limit.
///
/// # Errors
/// Returns `NotFound` or `ConnectionRefused` if there is no shim.
pub(crate) async fn connect(address: &ShimAddress) -> std::io::Result<UnixStream> {
    connect_noting(address, &AtomicBool::default()).await
}

/// Like [`connect`], and notes for a caller that stops waiting whether the engine had no free file
/// descriptor at the last try.
async fn connect_noting(
    address: &ShimAddress,
    lacks_descriptors: &AtomicBool,
) -> std::io::Result<UnixStream> {
    const AGAIN: Duration = Duration::from_millis(20);
    loop {
        let connected = connect_once(address).await;
        let errno = connected.as_ref().err().and_then(Errno::from_io_error);
        // Other operations will close theirs soon.
        let is_lack = matches!(errno, Some(Errno::MFILE | Errno::NFILE));
        lacks_descriptors.store(is_lack, Ordering::Relaxed);
        if !is_lack && errno != Some(Errno::AGAIN) {
            return connected;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn connect_once(address: &ShimAddress) -> std::io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(&address.directory, flags, Mode::empty())?;
    UnixStream::connect(through_descriptor(&directory, "shim.sock")).await
}

/// Sends a request to a container's shim, and returns the reply and the connection.
///
/// # Errors
/// Returns an error if there is no shim, [`Error::ShimSilent`] if it does not answer within
/// [`ANSWER_TIMEOUT`], and [`Error::Unavailable`] if the engine had no file descriptor to connect
/// to it.
pub async fn request(address: &ShimAddress, request: &Request) -> Result<(Reply, UnixStream)> {
    request_within(address, request, ANSWER_TIMEOUT).await
}

/// Like [`request`], with another time limit.
pub(crate) async fn request_within(
    address: &ShimAddress,
    request: &Request,
    limit: Duration,
) -> Result<(Reply, UnixStream)> {
    let attempt = Attempt::default();
    tokio::time::timeout(limit, exchange(address, request, &attempt))
        .await
        .unwrap_or_else(|_| Err(attempt.timed_out(address)))
}

/// How far a request to a shim has come.
#[derive(Debug, Default)]
struct Attempt {
    /// The shim's pid, once the engine has connected to it.
    shim: OnceLock<i32>,
    /// Whether the engine had no free file descriptor when it tried last to connect.
    lacks_descriptors: AtomicBool,
}

impl Attempt {
    /// Returns the error of a request that was not answered in time.
    fn timed_out(&self, address: &ShimAddress) -> Error {
        if self.lacks_descriptors.load(Ordering::Relaxed) {
            return Error::Unavailable(format!(
                "connect to the shim of {address}: too many open files: raise the engine's limit (LimitNOFILE, ulimit -n)"
            ));
        }
        let pid = self.shim.get().map_or("?".into(), ToString::to_string);
        Error::ShimSilent(format!("{address}: the shim (pid {pid}) does not answer"))
    }
}

/// Like [`request`], for a request whose duration depends on the container's processes: it may take
/// as long as it needs while the shim answers other requests.
pub async fn request_while_alive(
    address: &ShimAddress,
    request: &Request,
) -> Result<(Reply, UnixStream)> {
    let attempt = Attempt::default();
    let mut answer = std::pin::pin!(exchange(address, request, &attempt));
    loop {
        if let Ok(answer) = tokio::time::timeout(PING_TIMEOUT, &mut answer).await {
            return answer;
        }
        tokio::select! {
            answer = &mut answer => return answer,
            silent = check_alive(address) => silent?,
        }
    }
}

/// Checks that a shim's event loop runs, on a connection of its own.
///
/// # Errors
/// Returns [`Error::ShimSilent`] if the shim does not answer within [`PING_TIMEOUT`]. That there is
/// none, or that the engine cannot connect to it, is no error.
pub(crate) async fn check_alive(address: &ShimAddress) -> Result<()> {
    match request_within(address, &Request::Processes, PING_TIMEOUT).await {
        Err(error @ Error::ShimSilent(_)) => Err(error),
        _ => Ok(()),
    }
}

/// Sends a request and reads the reply.
async fn exchange(
    address: &ShimAddress,
    request: &Request,
    attempt: &Attempt,
) -> Result<(Reply, UnixStream)> {
    let fail = |error: std::io::Error| {
        let error_text = whelk_sys::errno_text(&error);
        let text = format!("connect to the shim of {address}: {error_text}");
        Error::kernel(text, &error)
    };
    let mut socket = connect_noting(address, &attempt.lacks_descriptors)
        .await
        .map_err(fail)?;
    if let Ok(Some(pid)) = socket.peer_cred().map(|peer| peer.pid()) {
        let _ = attempt.shim.set(pid);
    }
    let message = protocol::encode(request).map_err(|error| Error::internal(error.to_string()))?;
    let lost = |error: std::io::Error| {
        Error::internal(format!(
            "the shim of {address} ended: {}",
            whelk_sys::errno_text(&error)
        ))
    };
    socket.write_all(&message).await.map_err(lost)?;
    let reply = read_message(&mut socket).await?;
    Ok((reply, socket))
}

/// Returns the process that listens on a container's socket: its shim. Returns `None` if there is
/// none, or if its queue of connections is full.
pub(crate) async fn listener(address: &ShimAddress) -> Option<ShimProcess> {
    ShimProcess::of_peer(&connect_once(address).await.ok()?)
}

/// Checks that a shim has done what it was asked for; `step` is the prefix of the error's text.
///
/// # Errors
/// Returns [`Error::Conflict`] if the container's state does not allow it, else
/// [`Error::Internal`].
pub(crate) fn expect_done(reply: Reply, step: &str) -> Result<()> {
    match reply {
        Reply::Failed(whelk_runtime::Error::State(text)) => {
            Err(Error::conflict(format!("{step}: {text}")))
        }
        Reply::Failed(error) => Err(Error::internal(format!("{step}: {error}"))),
        _ => Ok(()),
    }
}

/// The result of [`probe`].
#[derive(Debug)]
pub enum ShimStatus {
    /// The shim has reported the container's state, and sends its events on the connection.
    Running { state: Event, events: UnixStream },
    /// There is no shim.
    Gone,
    /// There may be a shim, but it does not answer.
    Unresponsive,
}

/// Connects to a container's shim and subscribes to its events; tries for `patience`. Returns
/// [`ShimStatus::Gone`] only if nothing listens on its socket: any other error may be temporary,
/// and the container runs without the engine.
pub async fn probe(address: &ShimAddress, patience: Duration) -> ShimStatus {
    const AGAIN: Duration = Duration::from_millis(50);
    let attempts = async {
        loop {
            match connect(address).await {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    ) =>
                {
                    return ShimStatus::Gone;
                }
                Err(error) => tracing::debug!("connect to the shim of {address}: {error}"),
                Ok(socket) => match subscribe(socket).await {
                    Ok(status) => return status,
                    Err(error) => tracing::debug!("{address}: {error}"),
                },
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    tokio::time::timeout(patience, attempts)
        .await
        .unwrap_or(ShimStatus::Unresponsive)
}

async fn subscribe(mut events: UnixStream) -> Result<ShimStatus> {
    let message = protocol::encode(&Request::Subscribe)
        .map_err(|error| Error::internal(error.to_string()))?;
    events
        .write_all(&message)
        .await
        .map_err(|error| Error::internal(error.to_string()))?;
    match read_message(&mut events).await? {
        Reply::Done => Ok(ShimStatus::Running {
            state: read_message(&mut events).await?,
            events,
        }),
        other => Err(Error::internal(format!(
            "unexpected reply of a shim: {other:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers a ping at once, and any other request after a while.
    async fn serve(mut socket: UnixStream) -> Result<()> {
        let reply = if matches!(read_message(&mut socket).await?, Request::Processes) {
            Reply::Processes(Vec::new())
        } else {
            tokio::time::sleep(PING_TIMEOUT + Duration::from_secs(2)).await;
            Reply::Done
        };
        let message = protocol::encode(&reply).unwrap();
        socket.write_all(&message).await.unwrap();
        Ok(())
    }

    #[tokio::test]
    async fn a_slow_request_is_waited_for_while_the_shim_answers_others() {
        let path = std::env::temp_dir().join(format!("whelk-alive-{}", std::process::id()));
        let scratch = whelk_image::Scratch::at(path).unwrap();
        let address = ShimAddress {
            kind: WorkloadKind::Container,
            id: "one".into(),
            directory: scratch.path().to_owned(),
        };
        let listener = tokio::net::UnixListener::bind(address.directory.join("shim.sock")).unwrap();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket));
            }
        });
        let answer = request_while_alive(&address, &Request::Pause).await;
        assert_eq!(answer.unwrap().0, Reply::Done);
    }
}
