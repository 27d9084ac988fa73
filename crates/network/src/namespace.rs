//! Creates network namespaces ahead of the processes that will use them.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};
use crate::link::Links;

/// The IPv6 configuration of interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6Mode {
    /// The kernel's default: addresses by router advertisements.
    KernelDefault,
    /// IPv6 is disabled; there is not even a link-local address.
    Disabled,
    /// Only the addresses that are added explicitly; router advertisements are ignored.
    Static,
}

/// The open sysctl files (`net.ipv6.conf.*`) of an interface, or of the namespace's default for new
/// interfaces.
#[derive(Debug)]
struct Ipv6Sysctls {
    disable: File,
    accept_ra: File,
}

impl Ipv6Sysctls {
    /// Opens the files in the calling thread's network namespace: the kernel resolves
    /// `/proc/sys/net` when a file is opened, not when it is written. Returns `None` if the kernel
    /// has no IPv6.
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

    fn set(&mut self, wanted: Ipv6Mode) -> Result<()> {
        let write = |file: &mut File, value: &str| {
            file.rewind()
                .and_then(|()| file.write_all(value.as_bytes()))
        };
        write(
            &mut self.disable,
            if wanted == Ipv6Mode::Disabled {
                "1"
            } else {
                "0"
            },
        )
        .and_then(|()| {
            write(
                &mut self.accept_ra,
                if wanted == Ipv6Mode::Static { "0" } else { "1" },
            )
        })
        .map_err(|error| Error::io("configure IPv6 in a network namespace", &error))
    }
}

/// An interface that was created with its namespace, down and with IPv6 disabled. Its peer is on
/// the host.
#[derive(Debug)]
pub struct Interface {
    pub index: u32,
    ipv6: Option<Ipv6Sysctls>,
}

impl Interface {
    /// Sets its IPv6 configuration. Must be called before it is renamed.
    pub fn set_ipv6(&mut self, wanted: Ipv6Mode) -> Result<()> {
        self.ipv6
            .as_mut()
            .filter(|_| wanted != Ipv6Mode::Disabled)
            .map_or(Ok(()), |switch| switch.set(wanted))
    }
}

/// A network namespace, with the open files and sockets to configure it from outside: entering it
/// would need a new thread each time.
#[derive(Debug)]
pub struct Namespace {
    fd: OwnedFd,
    pub links: Links,
    /// The settings for new interfaces.
    defaults: Option<Ipv6Sysctls>,
    ipv6: Ipv6Mode,
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
    /// Creates a namespace with the loopback interface up. It exists as long as this value or a
    /// process that it is given to.
    pub fn create() -> Result<Self> {
        Self::create_with(|_| Ok(())).map(|(namespace, ())| namespace)
    }

    /// Like [`Namespace::create`], with a veth pair: `name` inside and `outer` on the host, both
    /// down.
    pub fn create_with_interface(name: &str, outer: &str) -> Result<(Self, Interface)> {
        let host = own_namespace()
            .map_err(|error| Error::io("open the host's network namespace", &error.into()))?;
        Self::create_with(|namespace| {
            namespace.set_ipv6(Ipv6Mode::Disabled)?;
            let index = namespace
                .links
                .create_veth_pair(name, outer, host.as_fd())?;
            let ipv6 = Ipv6Sysctls::open(name).map_err(|error| {
                Error::io(
                    &format!("open the IPv6 settings of interface {name}"),
                    &error,
                )
            })?;
            Ok(Interface { index, ipv6 })
        })
    }

    /// Creates a namespace and runs `work` inside it.
    fn create_with<T: Send>(work: impl FnOnce(&mut Self) -> Result<T> + Send) -> Result<(Self, T)> {
        let made = whelk_sys::net::new_namespace(|| {
            whelk_sys::net::loopback_up()?;
            let (fd, defaults) = (own_namespace()?, Ipv6Sysctls::open("default")?);
            Ok(Links::open().and_then(|links| {
                let mut namespace = Self {
                    fd,
                    links,
                    defaults,
                    ipv6: Ipv6Mode::KernelDefault,
                };
                let done = work(&mut namespace)?;
                Ok((namespace, done))
            }))
        });
        made.map_err(|error| Error::io("create a network namespace", &error))?
    }

    /// Sets the IPv6 configuration of interfaces that are created from now on.
    pub fn set_ipv6(&mut self, wanted: Ipv6Mode) -> Result<()> {
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

/// Opens the calling thread's network namespace.
fn own_namespace() -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(
        "/proc/thread-self/ns/net",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}
