//! The service manager's side of a start: sockets that it passes (sd_listen_fds(3)), and notice of
//! being ready (sd_notify(3)).

use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use anyhow::{Context, bail};

/// The host that stands for a socket of the service manager's, as with Docker.
pub(crate) const HOST: &str = "fd://";

/// Takes the one socket that the service manager listens on for this process, if it does.
///
/// # Errors
/// It passed several descriptors, or such as are not open.
pub(crate) fn socket() -> anyhow::Result<Option<OwnedFd>> {
    let mut sockets = whelk_sys::process::listen_fds()
        .context("take the service manager's sockets (LISTEN_FDS)")?;
    match sockets.len() {
        0 | 1 => Ok(sockets.pop()),
        count => {
            bail!("the service manager passed {count} sockets: this version listens on one only")
        }
    }
}

/// Tells the service manager, where one waits for it, that requests are served from now on.
pub(crate) fn notify_ready() {
    let Ok(place) = std::env::var("NOTIFY_SOCKET") else {
        return;
    };
    let address = match place.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&place),
    };
    let sent =
        address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address));
    if let Err(error) = sent {
        tracing::warn!(
            "notify the service manager at {place}: {}",
            whelk_sys::errno_text(&error)
        );
    }
}
