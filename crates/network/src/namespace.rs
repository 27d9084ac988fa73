//! Network namespaces that no process lives in yet.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};
use crate::link::Links;

/// How interfaces take part in IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6 {
    /// As the kernel does by itself.
    Automatic,
    /// Not at all, not even with a link-local address.
    Off,
    /// With the addresses that they are given, whatever routers say.
    Given,
}

/// A network namespace, and what it takes to set it up from outside: entering it would need a thread each time.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    pub links: Links,
    /// `disable_ipv6` and `accept_ra` of interfaces to come; `None` where the kernel has no IPv6.
    defaults: Option<[File; 2]>,
    ipv6: Ipv6,
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Namespace> for OwnedFd {
    fn from(namespace: Namespace) -> Self {
        namespace.fd
    }
}

impl Namespace {
    /// Makes one with its loopback up. It lives as long as this, and what it is given to.
    pub fn create() -> Result<Self> {
        let made = whelk_sys::net::new_namespace(|| {
            whelk_sys::net::loopback_up()?;
            let fd = rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            // The kernel looks at whose thread opens these, not at whose writes.
            let open = |key: &str| OpenOptions::new().write(true).open(format!("/proc/sys/net/ipv6/conf/default/{key}"));
            let defaults = match (open("disable_ipv6"), open("accept_ra")) {
                (Err(error), _) if error.kind() == io::ErrorKind::NotFound => None,
                (disable, accept) => Some([disable?, accept?]),
            };
            Ok((fd, Links::open(), defaults))
        });
        let (fd, links, defaults) = made.map_err(|error| Error::io("create a network namespace", &error))?;
        Ok(Self { fd, links: links?, defaults, ipv6: Ipv6::Automatic })
    }

    /// Says how interfaces that are made from now on take part in IPv6.
    pub fn set_ipv6(&mut self, wanted: Ipv6) -> Result<()> {
        if self.ipv6 == wanted {
            return Ok(());
        }
        if let Some([disable, accept]) = &mut self.defaults {
            let write = |file: &mut File, value: &str| file.rewind().and_then(|()| file.write_all(value.as_bytes()));
            write(disable, if wanted == Ipv6::Off { "1" } else { "0" })
                .and_then(|()| write(accept, if wanted == Ipv6::Given { "0" } else { "1" }))
                .map_err(|error| Error::io("set IPv6 in a network namespace", &error))?;
        }
        self.ipv6 = wanted;
        Ok(())
    }
}
