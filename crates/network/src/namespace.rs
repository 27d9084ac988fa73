//! Network namespaces that no process lives in yet.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};

/// Makes a network namespace, with its loopback up, and returns a descriptor that keeps it alive.
pub fn create() -> Result<OwnedFd> {
    whelk_sys::net::new_namespace(|| {
        whelk_sys::net::loopback_up()?;
        Ok(rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    })
    .map_err(|error| Error::io("create a network namespace", &error))
}
