//! The interface to systemd: socket activation (sd_listen_fds(3)) and readiness notification
//! (sd_notify(3)).

use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use anyhow::{Context, bail};

/// The host that stands for a socket passed by systemd, as with Docker.
pub(crate) const HOST: &str = "fd://";

/// Returns the socket that systemd passed to this process, if any.
///
/// # Errors
/// Returns an error if several descriptors were passed, or one that is not open.
pub(crate) fn socket() -> anyhow::Result<Option<OwnedFd>> {
    let mut sockets = whelk_sys::process::listen_fds()
        .context("take the sockets passed by systemd (LISTEN_FDS)")?;
    match sockets.len() {
        0 | 1 => Ok(sockets.pop()),
        count => {
            bail!("systemd passed {count} sockets: this version supports only one")
        }
    }
}

/// Notifies systemd, if it waits for it, that the engine serves requests.
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
            "notify systemd at {place}: {}",
            whelk_sys::errno_text(&error)
        );
    }
}
