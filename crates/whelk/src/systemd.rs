//! The interface to systemd: socket activation (sd_listen_fds(3)) and readiness notification
//! (sd_notify(3)).

use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use anyhow::{Context, bail};

/// A socket that systemd passed, and the name that its unit gives it (`FileDescriptorName=`).
#[derive(Debug)]
pub(crate) struct Socket {
    name: String,
    /// `None` after it was selected.
    descriptor: Option<OwnedFd>,
}

#[cfg(test)]
impl Socket {
    pub(crate) fn new(name: &str, descriptor: OwnedFd) -> Self {
        Self {
            name: name.into(),
            descriptor: Some(descriptor),
        }
    }
}

/// Returns the sockets that systemd passed to this process.
///
/// # Errors
/// Returns an error if one of the descriptors is not open.
pub(crate) fn sockets() -> anyhow::Result<Vec<Socket>> {
    let descriptors = whelk_sys::process::listen_fds()
        .context("take the sockets passed by systemd (LISTEN_FDS)")?;
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned);
    Ok(descriptors
        .into_iter()
        .zip(names.chain(std::iter::repeat(String::new())))
        .map(|(descriptor, name)| Socket {
            name,
            descriptor: Some(descriptor),
        })
        .collect())
}

/// Returns the sockets that a host `fd://SELECTOR` stands for: all of them for `""` and `"*"`, one
/// by its descriptor's number (the first is 3), or those with a name. They are taken from `sockets`.
///
/// # Errors
/// Returns an error if there are none, or if one of them was taken before.
pub(crate) fn select(sockets: &mut [Socket], selector: &str) -> anyhow::Result<Vec<OwnedFd>> {
    if sockets.is_empty() {
        bail!(
            "host fd://{selector}: no socket was passed (LISTEN_FDS); use it with a systemd socket unit"
        );
    }
    let number = selector.parse::<usize>().ok();
    let chosen: Vec<OwnedFd> = sockets
        .iter_mut()
        .zip(3..)
        .filter(|(socket, position)| match number {
            Some(number) => number == *position,
            None => matches!(selector, "" | "*") || socket.name == selector,
        })
        .map(|(socket, position)| {
            let taken = || format!("host fd://{selector}: descriptor {position} is given twice");
            socket.descriptor.take().with_context(taken)
        })
        .collect::<anyhow::Result<_>>()?;
    if chosen.is_empty() {
        bail!("host fd://{selector}: systemd passed no socket with this name or number");
    }
    Ok(chosen)
}

/// Notifies systemd, if it waits for it, that the engine serves requests.
pub(crate) fn notify_ready() {
    notify("READY=1");
}

/// Notifies systemd that the settings are read again; [`notify_ready`] ends that.
pub(crate) fn notify_reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Required by units of `Type=notify-reload`.
    let now = now.tv_sec.saturating_mul(1_000_000) + now.tv_nsec / 1000;
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
}

pub(crate) fn notify_stopping() {
    notify("STOPPING=1");
}

fn notify(state: &str) {
    let Ok(place) = std::env::var("NOTIFY_SOCKET") else {
        return;
    };
    let address = match place.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&place),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(
            "notify systemd at {place}: {}",
            whelk_sys::errno_text(&error)
        );
    }
}
