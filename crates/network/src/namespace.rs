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

/// The files that say how an interface, or those to come, take part in IPv6.
#[derive(Debug)]
struct Switch {
    disable: File,
    accept_ra: File,
}

impl Switch {
    /// Opens those of the calling thread's namespace: the kernel looks at whose thread opens them,
    /// not at whose writes. `None` where the kernel has no IPv6.
    fn open(interface: &str) -> io::Result<Option<Self>> {
        let open = |key: &str| {
            OpenOptions::new()
                .write(true)
                .open(format!("/proc/sys/net/ipv6/conf/{interface}/{key}"))
        };
        match (open("disable_ipv6"), open("accept_ra")) {
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            (disable, accept_ra) => Ok(Some(Self {
                disable: disable?,
                accept_ra: accept_ra?,
            })),
        }
    }

    fn set(&mut self, wanted: Ipv6) -> Result<()> {
        let write = |file: &mut File, value: &str| {
            file.rewind()
                .and_then(|()| file.write_all(value.as_bytes()))
        };
        write(
            &mut self.disable,
            if wanted == Ipv6::Off { "1" } else { "0" },
        )
        .and_then(|()| {
            write(
                &mut self.accept_ra,
                if wanted == Ipv6::Given { "0" } else { "1" },
            )
        })
        .map_err(|error| Error::io("set IPv6 in a network namespace", &error))
    }
}

/// An interface that was made with its namespace, down and without IPv6. Its other end is on the
/// host.
#[derive(Debug)]
pub struct Interface {
    pub index: u32,
    ipv6: Option<Switch>,
}

impl Interface {
    /// Says how it takes part in IPv6. Before it gets another name.
    pub fn set_ipv6(&mut self, wanted: Ipv6) -> Result<()> {
        self.ipv6
            .as_mut()
            .filter(|_| wanted != Ipv6::Off)
            .map_or(Ok(()), |switch| switch.set(wanted))
    }
}

/// A network namespace, and what it takes to set it up from outside: entering it would need a
/// thread each time.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    pub links: Links,
    /// Of interfaces to come.
    defaults: Option<Switch>,
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
        Self::create_and(|_| Ok(())).map(|(namespace, ())| namespace)
    }

    /// The same with an interface `name` in it, whose other end is on the host and called `outer`,
    /// down as well.
    pub fn create_with_interface(name: &str, outer: &str) -> Result<(Self, Interface)> {
        let host = own_namespace()
            .map_err(|error| Error::io("open the host's network namespace", &error.into()))?;
        Self::create_and(|namespace| {
            namespace.set_ipv6(Ipv6::Off)?;
            let index = namespace.links.create_pair(name, outer, host.as_fd())?;
            let ipv6 = Switch::open(name)
                .map_err(|error| Error::io(&format!("set up interface {name}"), &error))?;
            Ok(Interface { index, ipv6 })
        })
    }

    /// Makes one, and does something inside it.
    fn create_and<T: Send>(work: impl FnOnce(&mut Self) -> Result<T> + Send) -> Result<(Self, T)> {
        let made = whelk_sys::net::new_namespace(|| {
            whelk_sys::net::loopback_up()?;
            let (fd, defaults) = (own_namespace()?, Switch::open("default")?);
            Ok(Links::open().and_then(|links| {
                let mut namespace = Self {
                    fd,
                    links,
                    defaults,
                    ipv6: Ipv6::Automatic,
                };
                let done = work(&mut namespace)?;
                Ok((namespace, done))
            }))
        });
        made.map_err(|error| Error::io("create a network namespace", &error))?
    }

    /// Says how interfaces that are made from now on take part in IPv6.
    pub fn set_ipv6(&mut self, wanted: Ipv6) -> Result<()> {
        if self.ipv6 == wanted {
            return Ok(());
        }
        self.defaults
            .as_mut()
            .map_or(Ok(()), |switch| switch.set(wanted))?;
        self.ipv6 = wanted;
        Ok(())
    }
}

/// That of the calling thread.
fn own_namespace() -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(
        "/proc/thread-self/ns/net",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}
