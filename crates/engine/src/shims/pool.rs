//! Keeps a pool of warm shims, and starts containers in them.
//!
//! A warm shim has loaded its program, detached from the engine and entered its cgroup before a
//! container needs one. Giving a container to it takes one message.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UnixStream;
use whelk_runtime::cgroup::Cgroup;
use whelk_shim::protocol::{self, ContainerLaunch, Launched};
use whelk_sys::sync::IgnorePoison as _;

use super::is_disconnected;
use super::messages::{read_message, send};
use super::process::ShimProcess;
use crate::error::{Error, Result};
use crate::instance::Instance;

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

    /// Returns a pool of shims that a test serves at the other ends of the given sockets.
    #[cfg(test)]
    pub(super) fn of(ready: VecDeque<UnixStream>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            ready: Mutex::new(ready),
            refill: tokio::sync::Notify::new(),
            executable: whelk_sys::fs::open("/dev/null")?.into(),
            cgroup: "/whelk-fake".into(),
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
        /// The file of the authorities that are trusted instead of those of the distribution.
        const AUTHORITIES: &str = "SSL_CERT_FILE";
        let fail = |error: std::io::Error| {
            Error::kernel(
                format!("start a shim: {}", whelk_sys::errno_text(&error)),
                &error,
            )
        };
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().map_err(fail)?;
        let program = OsString::from(format!("/proc/self/fd/{}", self.executable.as_raw_fd()));
        let authorities = std::env::var_os(AUTHORITIES);
        let mut child = Command::new(program)
            .arg0("whelk")
            .args(["shim", "--cgroup", &self.cgroup])
            // No `current_dir`: with it the standard library uses fork, which copies the engine's
            // page tables, instead of posix_spawn.
            .env_clear()
            // For collectors of logs.
            .envs(authorities.map(|path| (AUTHORITIES, path)))
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
