//! Connects to the sockets on which shims listen.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use tokio::net::UnixStream;

use super::ShimAddress;
use super::process::ShimProcess;
use crate::instance::{Instance, through_descriptor};

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
pub(super) async fn connect_noting(
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

/// Returns the process that listens on a container's socket: its shim. Returns `None` if there is
/// none, or if its queue of connections is full.
pub(crate) async fn listener(address: &ShimAddress) -> Option<ShimProcess> {
    ShimProcess::of_peer(&connect_once(address).await.ok()?)
}
