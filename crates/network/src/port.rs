//! Reserves ports of the host for containers.
//!
//! A published port is reserved by a bound socket: DNAT rules redirect the traffic to the container
//! before it would reach the socket, and a program that wants to bind the port gets `EADDRINUSE`. A
//! TCP socket listens, so that tools show the port as in use, but drops all packets: if the rules
//! are missing for a moment, a client's first packet is lost and retransmitted instead of refused.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard};
use whelk_sys::sync::IgnorePoison as _;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with, sockopt,
};

use crate::error::{Error, Result};

/// A transport protocol of published ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// Parses a protocol name, ignoring case.
    pub fn parse(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            "sctp" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A published port: a port of the host that is redirected to a port of a container. A host port of
/// 0 means none: see [`PortMapping::is_direct`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub host: SocketAddr,
    /// The container's address and port.
    pub to: SocketAddr,
}

impl PortMapping {
    /// Returns whether the container's port is reached by the container's own address instead of a
    /// port of the host (gateway mode `routed`).
    pub fn is_direct(&self) -> bool {
        self.host.port() == 0
    }
}

/// A request for a port of the host: any free one of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPortRequest {
    pub protocol: Protocol,
    /// `None` for every address of the host.
    pub address: Option<IpAddr>,
    /// First and last port; 0 for one that the kernel chooses.
    pub ports: (u16, u16),
}

/// A reserved port of the host.
#[derive(Debug)]
struct Reservation {
    owner: Owner,
    /// `None` if the container's shim holds the socket.
    socket: Option<OwnedFd>,
}

/// The container that has reserved a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub id: String,
    pub name: String,
}

/// All reserved ports of the host of this engine's containers.
#[derive(Debug, Default)]
pub struct Ports(Mutex<PortTable>);

#[derive(Debug, Default)]
struct PortTable {
    held: BTreeMap<(Protocol, SocketAddr), Reservation>,
    /// Ports whose sockets are held by a container's shim, by container id: from when they were
    /// shared until the container ends, even if they are no longer published.
    shared: BTreeMap<(Protocol, SocketAddr), String>,
}

impl Ports {
    /// Reserves a port, with the same number on each of `addresses`, and returns that number.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`], naming the user of the port, if no port of the range is free, and
    /// [`Error::Invalid`] if an address is not the host's.
    pub fn take(
        &self,
        owner: &Owner,
        request: HostPortRequest,
        addresses: &[IpAddr],
    ) -> Result<u16> {
        let mut state = self.state();
        let (first, last) = request.ports;
        let mut refused = None;
        /// How often to retry when the port that the kernel chose for the first address is in use
        /// on another.
        const TRIES: u16 = 64;
        let candidates: Box<dyn Iterator<Item = u16>> = if first == 0 {
            Box::new((0..TRIES).map(|_| 0))
        } else {
            Box::new(first..=last)
        };
        for port in candidates {
            match reserve_one(&state, owner, request.protocol, addresses, port) {
                Ok((port, sockets)) => {
                    for (address, socket) in addresses.iter().zip(sockets) {
                        let holder = Reservation {
                            owner: owner.clone(),
                            socket,
                        };
                        state
                            .held
                            .insert((request.protocol, SocketAddr::new(*address, port)), holder);
                    }
                    return Ok(port);
                }
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(match refused {
            None => Error::invalid("empty range of ports"),
            // Searched once, for the reported error.
            Some(Refused::InUse(at)) => {
                let who = crate::owner::of_port(request.protocol, at)
                    .map(|who| format!(" (by {who})"))
                    .unwrap_or_default();
                Error::Conflict(format!(
                    "failed to bind host port {at}/{}: address already in use{who}",
                    request.protocol
                ))
            }
            Some(Refused::Error(error)) => error,
        })
    }

    /// Returns up to `most` sockets of a container's ports, for a process that lives as long as the
    /// container. The ports then stay reserved when the engine ends.
    pub fn share_listeners(&self, owner: &str, most: usize) -> Vec<OwnedFd> {
        let mut state = self.state();
        let PortTable { held, shared } = &mut *state;
        let own = held.iter_mut().filter(|(_, held)| held.owner.id == owner);
        let sockets =
            own.filter_map(|(port, held)| held.socket.take().map(|socket| (*port, socket)));
        sockets
            .take(most)
            .map(|(port, socket)| {
                shared.insert(port, owner.to_owned());
                socket
            })
            .collect()
    }

    /// Records a port of a running container after a restart of the engine. Binds it if possible;
    /// otherwise the container's shim is taken to hold the socket, which cannot always be verified.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] if another container has reserved the port.
    pub fn adopt(&self, owner: &Owner, protocol: Protocol, at: SocketAddr) -> Result<()> {
        let mut state = self.state();
        if let Some(other) = owner_of(&state.held, protocol, at) {
            return Err(Error::Conflict(format!(
                "port {at}/{protocol} is allocated to container {other}"
            )));
        }
        let socket = bind_port(protocol, at).ok().and_then(|(socket, _)| socket);
        if socket.is_none() {
            state.shared.insert((protocol, at), owner.id.clone());
        }
        state.held.insert(
            (protocol, at),
            Reservation {
                owner: owner.clone(),
                socket,
            },
        );
        Ok(())
    }

    /// Returns whether a port is reserved by the container `owner`.
    pub fn is_own(&self, owner: &str, protocol: Protocol, at: SocketAddr) -> bool {
        self.state()
            .held
            .get(&(protocol, at))
            .is_some_and(|held| held.owner.id == owner)
    }

    /// Releases a port that is no longer published.
    pub fn release(&self, protocol: Protocol, at: SocketAddr) {
        self.state().held.remove(&(protocol, at));
    }

    /// Forgets the sockets that were shared with a container's shim, which has ended.
    pub fn forget(&self, owner: &str) {
        self.state().shared.retain(|_, other| other != owner);
    }

    fn state(&self) -> MutexGuard<'_, PortTable> {
        self.0.lock().ignore_poison()
    }

    /// Changes the container name that errors report.
    pub fn rename(&self, owner: &str, name: &str) {
        for held in self
            .state()
            .held
            .values_mut()
            .filter(|held| held.owner.id == owner)
        {
            name.clone_into(&mut held.owner.name);
        }
    }
}

type Sockets = Vec<Option<OwnedFd>>;

/// The reason why a port could not be reserved.
enum Refused {
    /// A process uses it.
    InUse(SocketAddr),
    Error(Error),
}

fn reserve_one(
    state: &PortTable,
    owner: &Owner,
    protocol: Protocol,
    addresses: &[IpAddr],
    port: u16,
) -> std::result::Result<(u16, Sockets), Refused> {
    let mut sockets = Sockets::new();
    let mut chosen = port;
    for address in addresses {
        let at = SocketAddr::new(*address, chosen);
        if let Some(owner) = owner_of(&state.held, protocol, at) {
            let text =
                format!("Bind for {at} failed: port is already allocated (by container {owner})");
            return Err(Refused::Error(Error::Conflict(text)));
        }
        match bind_port(protocol, at) {
            Ok((socket, port)) => {
                chosen = port;
                sockets.push(socket);
            }
            // The container's shim still holds the socket from before the port was withdrawn.
            Err(Errno::ADDRINUSE) if state.shared.get(&(protocol, at)) == Some(&owner.id) => {
                sockets.push(None)
            }
            Err(Errno::ADDRINUSE) => return Err(Refused::InUse(at)),
            Err(Errno::ADDRNOTAVAIL) => {
                let text = format!(
                    "failed to bind host port {at}/{protocol}: cannot assign requested address"
                );
                return Err(Refused::Error(Error::invalid(text)));
            }
            Err(error) => {
                return Err(Refused::Error(Error::kernel(
                    &format!("failed to bind host port {at}/{protocol}"),
                    error,
                )));
            }
        }
    }
    Ok((chosen, sockets))
}

/// Returns the name of the container that has reserved a port on this address, on the unspecified
/// address or, if `at` is unspecified, on any address.
fn owner_of(
    held: &BTreeMap<(Protocol, SocketAddr), Reservation>,
    protocol: Protocol,
    at: SocketAddr,
) -> Option<&str> {
    let same_family = |other: &SocketAddr| other.is_ipv4() == at.is_ipv4();
    held.iter()
        .find(|((used, other), _)| {
            *used == protocol
                && other.port() == at.port()
                && at.port() != 0
                && same_family(other)
                && (other.ip() == at.ip()
                    || other.ip().is_unspecified()
                    || at.ip().is_unspecified())
        })
        .map(|(_, held)| held.owner.name.as_str())
}

/// Binds a socket to the port. Without `SO_REUSEADDR`, because a server that sets it too could then
/// bind the same port. It is set only if nothing but sockets in `TIME_WAIT` conflicts.
fn bind_port(
    protocol: Protocol,
    at: SocketAddr,
) -> std::result::Result<(Option<OwnedFd>, u16), Errno> {
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, None),
        Protocol::Udp => (SocketType::DGRAM, None),
        Protocol::Sctp => (SocketType::STREAM, Some(rustix::net::ipproto::SCTP)),
    };
    let family = if at.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = match socket_with(family, kind, SocketFlags::CLOEXEC, number) {
        Ok(socket) => socket,
        // A kernel without SCTP can still forward it.
        Err(Errno::PROTONOSUPPORT) if protocol == Protocol::Sctp && at.port() != 0 => {
            return Ok((None, at.port()));
        }
        Err(error) => return Err(error),
    };
    if at.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    match bind(&socket, &at) {
        Err(Errno::ADDRINUSE)
            if protocol == Protocol::Tcp && !crate::owner::is_taken(protocol, at) =>
        {
            sockopt::set_socket_reuseaddr(&socket, true)?;
            bind(&socket, &at)?;
        }
        result => result?,
    }
    // An IPv6 socket receives connections to ::1 where they cannot be redirected to the container.
    // They must be refused at once, so that clients try 127.0.0.1: the socket does not listen.
    if at.is_ipv4() {
        whelk_sys::net::drop_all_packets(socket.as_fd())
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
        if protocol == Protocol::Tcp {
            listen(&socket, 0)?;
        }
    }
    let port =
        SocketAddr::try_from(getsockname(&socket)?).map_or(at.port(), |address| address.port());
    Ok((Some(socket), port))
}

/// Returns the addresses to publish on if the request has none: the unspecified address of each
/// family.
pub fn every_address(ipv4: bool, ipv6: bool) -> Vec<IpAddr> {
    let mut all = Vec::new();
    if ipv4 {
        all.push(Ipv4Addr::UNSPECIFIED.into());
    }
    if ipv6 {
        all.push(Ipv6Addr::UNSPECIFIED.into());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(name: &str) -> Owner {
        Owner {
            id: name.into(),
            name: name.into(),
        }
    }

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn wanted(ports: (u16, u16)) -> HostPortRequest {
        HostPortRequest {
            protocol: Protocol::Tcp,
            address: Some(LOCAL),
            ports,
        }
    }

    #[test]
    fn a_reserved_port_conflicts_and_its_owner_is_named() {
        let ports = Ports::default();
        let port = ports.take(&owner("web"), wanted((0, 0)), &[LOCAL]).unwrap();
        let again = ports
            .take(&owner("other"), wanted((port, port)), &[LOCAL])
            .unwrap_err();
        assert_eq!(
            again.to_string(),
            format!(
                "Bind for 127.0.0.1:{port} failed: port is already allocated (by container web)"
            )
        );
        let everywhere = ports
            .take(
                &owner("other"),
                wanted((port, port)),
                &every_address(true, false),
            )
            .unwrap_err();
        assert!(
            everywhere.to_string().contains("by container web"),
            "{everywhere}"
        );
        assert_eq!(
            std::net::TcpListener::bind((LOCAL, port))
                .unwrap_err()
                .kind(),
            std::io::ErrorKind::AddrInUse
        );
        let at = SocketAddr::new(LOCAL, port);
        assert!(
            ports.is_own("web", Protocol::Tcp, at) && !ports.is_own("other", Protocol::Tcp, at)
        );
        ports.release(Protocol::Tcp, at);
        assert_eq!(
            ports
                .take(&owner("other"), wanted((port, port)), &[LOCAL])
                .unwrap(),
            port
        );
    }

    #[test]
    fn shared_ports_stay_reserved_until_the_container_ends() {
        let (before, web) = (Ports::default(), owner("web"));
        // For each protocol and family: whether another process's socket is detectable differs.
        for (protocol, address) in [
            (Protocol::Tcp, LOCAL),
            (Protocol::Udp, LOCAL),
            (Protocol::Tcp, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        ] {
            let any = HostPortRequest {
                protocol,
                address: Some(address),
                ports: (0, 0),
            };
            let port = before.take(&web, any, &[address]).unwrap();
            let shared = before.share_listeners("web", 10);
            assert_eq!(shared.len(), 1);
            // A second engine, after the first was killed.
            let (after, at) = (Ports::default(), SocketAddr::new(address, port));
            after.adopt(&web, protocol, at).unwrap();
            assert_eq!(
                after
                    .adopt(&owner("other"), protocol, at)
                    .unwrap_err()
                    .to_string(),
                format!("port {at}/{protocol} is allocated to container web")
            );
            let same = HostPortRequest {
                protocol,
                address: Some(address),
                ports: (port, port),
            };
            after.release(protocol, at);
            let error = after.take(&owner("other"), same, &[address]).unwrap_err();
            assert!(
                matches!(&error, Error::Conflict(text) if text.starts_with(&format!(
                    "failed to bind host port {at}/{protocol}: address already in use"
                ))),
                "{error}"
            );
            assert_eq!(
                after.take(&web, same, &[address]).unwrap(),
                port,
                "taken again while its process has it"
            );
            after.release(protocol, at);
            after.forget("web");
            drop(shared);
            assert_eq!(after.take(&owner("other"), same, &[address]).unwrap(), port);
            before.release(protocol, at);
        }
    }

    #[test]
    fn a_conflicting_process_is_named() {
        let listener = std::net::TcpListener::bind((LOCAL, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = Ports::default()
            .take(&owner("web"), wanted((port, port)), &[LOCAL])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!(
                "address already in use (by process {} ",
                std::process::id()
            )),
            "{error}"
        );
        // The next free port of the range is reserved.
        let next = Ports::default()
            .take(
                &owner("web"),
                wanted((port, port.saturating_add(20))),
                &[LOCAL],
            )
            .unwrap();
        assert!(next > port);
    }
}
