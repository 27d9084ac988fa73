//! Starting shims and talking to them.
//!
//! A few shims are always ready: loading a program, detaching from the engine and entering a cgroup
//! are done before a container needs it. Handing one a container takes a message.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use whelk_runtime::cgroup::Cgroup;
use whelk_shim::protocol::{self, ContainerLaunch, Event, Launched, Reply, Request};

use crate::error::{Error, Result};
use crate::instance::{Instance, through_descriptor};

/// How many shims wait for a container.
const READY: usize = 2;

/// How many descriptors are left to end and remove containers with, when no more can be started.
const RESERVE: u64 = 32;

#[derive(Debug)]
pub struct Shims {
    ready: Mutex<VecDeque<UnixStream>>,
    refill: tokio::sync::Notify,
    /// The engine's own program, from where nothing can be written to it ([`whelk_sys::program`]).
    executable: OwnedFd,
    cgroup: String,
}

impl Shims {
    pub fn new(instance: &Instance, executable: &Path) -> Result<Arc<Self>> {
        let fail = |error: std::io::Error| {
            Error::internal(format!(
                "prepare {} for shims: {}",
                executable.display(),
                whelk_sys::errno_text(&error)
            ))
        };
        let program = whelk_sys::program::sealed(executable).map_err(fail)?;
        // Here once, so that no two containers' starts make the instance's cgroup at the same time.
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

    /// Keeps shims ready for as long as the engine runs.
    pub async fn keep_ready(self: Arc<Self>) {
        loop {
            while self
                .ready
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .len()
                < READY
            {
                let shims = self.clone();
                match tokio::task::spawn_blocking(move || shims.spawn()).await {
                    Ok(Ok(socket)) => {
                        if let Ok(socket) = UnixStream::from_std(socket) {
                            self.ready
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .push_back(socket);
                        }
                    }
                    // A start will meet the same error and report it.
                    Ok(Err(error)) => {
                        tracing::warn!("no shim could be started ahead: {error}");
                        break;
                    }
                    Err(_) => return,
                }
            }
            time_to_refill(&self.refill, || {
                self.ready
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .is_empty()
            })
            .await;
        }
    }

    /// Starts a shim that waits on its standard input for a container.
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
            // With a directory to go to this would be a fork, which copies the engine's page
            // tables.
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(fail)?;
        // What was started only forks the shim and ends.
        child.wait().map_err(fail)?;
        ours.set_nonblocking(true).map_err(fail)?;
        Ok(ours)
    }

    /// Runs a container in a shim; `attached` are the connections of clients that attached before
    /// the start. Returns pid, start time, and the connection that carries the shim's events.
    ///
    /// # Errors
    /// What kept the container from starting.
    pub async fn launch(
        self: &Arc<Self>,
        launch: &ContainerLaunch,
        attached: Vec<OwnedFd>,
    ) -> std::result::Result<((i32, i64), UnixStream), LaunchError> {
        let message =
            protocol::encode(launch).map_err(|error| Error::internal(error.to_string()))?;
        whelk_sys::step();
        let mut socket = self.hand_over(&message, &attached).await?;
        // The shim has them: the ends of their streams must be its alone.
        drop(attached);
        let launched = read_message::<Launched>(&mut socket).await;
        whelk_sys::step();
        match launched? {
            Launched::Running { pid, started_at } => Ok(((pid, started_at), socket)),
            Launched::Failed(error) => Err(LaunchError::Runtime(error)),
        }
    }

    /// Gives a message to a shim that is ready, or to a new one. One that was ready may have been
    /// killed: what does not get the whole message starts nothing.
    async fn hand_over(
        self: &Arc<Self>,
        message: &[u8],
        descriptors: &[OwnedFd],
    ) -> Result<UnixStream> {
        loop {
            // Taken out in a statement of its own: the lock must not be held while waiting.
            let ready = self
                .ready
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            self.refill.notify_one();
            let Some(mut socket) = ready else { break };
            if !has_left(&socket) && send(&mut socket, message, descriptors).await.is_ok() {
                return Ok(socket);
            }
            tracing::warn!("a shim that was ready is gone");
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
pub(crate) fn has_left(socket: impl AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut asked = [PollFd::new(&socket, PollFlags::empty())];
    poll(
        &mut asked,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )
    .is_ok_and(|count| count > 0)
}

/// Waits until something is to be made ahead: a while after something was taken, because nothing
/// shall compete with the container that it was taken for, or at once when little is left for the
/// next.
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

/// Sends a message with descriptors on its first byte.
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

/// Reads one message of a shim.
pub async fn read_message<T: for<'de> serde::Deserialize<'de>>(
    socket: &mut UnixStream,
) -> Result<T> {
    let body = read_body(socket).await?;
    serde_json::from_slice(&body)
        .map_err(|error| Error::internal(format!("malformed message of a shim: {error}")))
}

/// Reads the next event of a shim. What another version of it tells and this one does not know is
/// passed over.
///
/// # Errors
/// The connection has ended.
pub async fn read_event(socket: &mut UnixStream) -> Result<Event> {
    loop {
        match serde_json::from_slice(&read_body(socket).await?) {
            Ok(event) => return Ok(event),
            Err(error) => tracing::warn!("an event of a shim that means nothing here: {error}"),
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

/// Whether a container of the instance has a shim, which listens for as long as the container runs.
pub(crate) fn any_runs(instance: &Instance) -> bool {
    let listens = |entry: &std::fs::DirEntry| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(entry.path(), flags, Mode::empty());
        directory.is_ok_and(|directory| {
            std::os::unix::net::UnixStream::connect(through_descriptor(&directory, "shim.sock"))
                .is_ok()
        })
    };
    whelk_sys::fs::list(instance.run.join("containers"))
        .unwrap_or_default()
        .iter()
        .any(listens)
}

/// How long a shim may take to answer what it can answer by itself.
pub const ANSWER: Duration = Duration::from_secs(10);

pub(crate) async fn connect(instance: &Instance, id: &str) -> std::io::Result<UnixStream> {
    const AGAIN: Duration = Duration::from_millis(20);
    loop {
        match connect_once(instance, id).await {
            // Others give theirs back soon; whoever asks has a limit of their own.
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::MFILE | Errno::NFILE)
                ) => {}
            connected => return connected,
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn connect_once(instance: &Instance, id: &str) -> std::io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(instance.run_dir(id), flags, Mode::empty())?;
    UnixStream::connect(through_descriptor(&directory, "shim.sock")).await
}

/// Asks a shim something and returns the connection with its answer.
///
/// # Errors
/// There is none, or it does not answer in time.
pub async fn ask(instance: &Instance, id: &str, request: &Request) -> Result<(Reply, UnixStream)> {
    let answer = tokio::time::timeout(ANSWER, ask_patiently(instance, id, request)).await;
    answer.unwrap_or_else(|_| {
        Err(Error::internal(format!(
            "the shim of container {id} does not answer"
        )))
    })
}

/// The same for what may take as long as the container likes.
pub async fn ask_patiently(
    instance: &Instance,
    id: &str,
    request: &Request,
) -> Result<(Reply, UnixStream)> {
    let fail = |error: std::io::Error| {
        Error::internal(format!(
            "connect to the shim of container {id}: {}",
            whelk_sys::errno_text(&error)
        ))
    };
    let mut socket = connect(instance, id).await.map_err(fail)?;
    let message = protocol::encode(request).map_err(|error| Error::internal(error.to_string()))?;
    let lost = |error: std::io::Error| {
        Error::internal(format!(
            "the shim of container {id} ended: {}",
            whelk_sys::errno_text(&error)
        ))
    };
    socket.write_all(&message).await.map_err(lost)?;
    let reply = read_message(&mut socket).await?;
    Ok((reply, socket))
}

/// What is known of a container's shim.
#[derive(Debug)]
pub enum Contact {
    /// It tells how the container is, and goes on to tell its events.
    Running { state: Event, events: UnixStream },
    /// There is none.
    Gone,
    /// There is one, but it cannot be talked to now.
    Silent,
}

/// Gets in touch with the shim of a container. Only when nobody listens at its socket it is taken
/// for gone: any other trouble may pass, and the container is well without us.
pub async fn contact(instance: &Instance, id: &str, patience: Duration) -> Contact {
    const AGAIN: Duration = Duration::from_millis(50);
    let attempts = async {
        loop {
            match connect(instance, id).await {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    ) =>
                {
                    return Contact::Gone;
                }
                Err(error) => tracing::debug!(container = id, "connect to the shim: {error}"),
                Ok(socket) => match subscribe(socket).await {
                    Ok(contact) => return contact,
                    Err(error) => tracing::debug!(container = id, "{error}"),
                },
            }
            tokio::time::sleep(AGAIN).await;
        }
    };
    tokio::time::timeout(patience, attempts)
        .await
        .unwrap_or(Contact::Silent)
}

async fn subscribe(mut events: UnixStream) -> Result<Contact> {
    let message = protocol::encode(&Request::Subscribe)
        .map_err(|error| Error::internal(error.to_string()))?;
    events
        .write_all(&message)
        .await
        .map_err(|error| Error::internal(error.to_string()))?;
    match read_message(&mut events).await? {
        Reply::Done => Ok(Contact::Running {
            state: read_message(&mut events).await?,
            events,
        }),
        other => Err(Error::internal(format!("a shim answered {other:?}"))),
    }
}
