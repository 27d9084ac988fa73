//! Published ports: who has which port of the host.
//!
//! A published port is held by a socket of ours: the kernel leads the traffic to the container
//! before it would reach the socket, and a program that wants the same port is told that it is in
//! use. For TCP the socket listens, so that everybody can see who has the port, but drops what
//! arrives: should the rules be gone for a moment, a client's first packet is lost, and sent again,
//! where otherwise it would be refused.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, getsockname, listen, socket_with, sockopt,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
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

/// A port of the host that leads to a port of a container. Port 0 stands for none: see
/// [`Publication::is_direct`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Publication {
    pub protocol: Protocol,
    pub host: SocketAddr,
    pub to: SocketAddr,
}

impl Publication {
    /// Whether the container's own address leads there, and no port of the host (gateway mode
    /// `routed`).
    pub fn is_direct(&self) -> bool {
        self.host.port() == 0
    }
}

/// A port that is asked for: a range of the host's, of which any free one will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub protocol: Protocol,
    /// `None` for every address of the host.
    pub address: Option<IpAddr>,
    /// First and last; 0 for one that the kernel chooses.
    pub ports: (u16, u16),
}

/// A port of the host, taken.
#[derive(Debug)]
struct Held {
    owner: Owner,
    /// `None` when the container's own process holds it.
    socket: Option<OwnedFd>,
}

/// Who has a port: what tells containers apart, and what people call them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    pub id: String,
    pub name: String,
}

/// All ports of the host that this engine's containers have.
#[derive(Debug, Default)]
pub struct Ports(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    held: BTreeMap<(Protocol, SocketAddr), Held>,
    /// Ports whose sockets containers' own processes have, by container, from when they were lent
    /// to the container's end: also while they are not published.
    lent: BTreeMap<(Protocol, SocketAddr), String>,
}

impl Ports {
    /// Takes a port of the host on each of `addresses` at once: the same number everywhere. Returns
    /// that number.
    ///
    /// # Errors
    /// [`Error::Conflict`], which names who has the port.
    pub fn take(&self, owner: &Owner, wanted: Wanted, addresses: &[IpAddr]) -> Result<u16> {
        let mut state = self.state();
        let (first, last) = wanted.ports;
        let mut refused = None;
        /// How often the kernel may choose a port that then is taken on another address.
        const TRIES: u16 = 64;
        let candidates: Box<dyn Iterator<Item = u16>> = if first == 0 {
            Box::new((0..TRIES).map(|_| 0))
        } else {
            Box::new(first..=last)
        };
        for port in candidates {
            match take_one(&state, owner, wanted.protocol, addresses, port) {
                Ok((port, sockets)) => {
                    for (address, socket) in addresses.iter().zip(sockets) {
                        let holder = Held {
                            owner: owner.clone(),
                            socket,
                        };
                        state
                            .held
                            .insert((wanted.protocol, SocketAddr::new(*address, port)), holder);
                    }
                    return Ok(port);
                }
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(match refused {
            None => Error::invalid("empty range of ports"),
            // Found out once, for the error that is told.
            Some(Refused::InUse(at)) => {
                let who = crate::owner::of_port(wanted.protocol, at)
                    .map(|who| format!(" (by {who})"))
                    .unwrap_or_default();
                Error::Conflict(format!(
                    "failed to bind host port {at}/{}: address already in use{who}",
                    wanted.protocol
                ))
            }
            Some(Refused::Error(error)) => error,
        })
    }

    /// The sockets of an owner's ports, for a process that lives as long as the container: what
    /// happens to the engine then cannot make the ports anybody else's.
    pub fn lend(&self, owner: &str, most: usize) -> Vec<OwnedFd> {
        let mut state = self.state();
        let State { held, lent } = &mut *state;
        let own = held.iter_mut().filter(|(_, held)| held.owner.id == owner);
        let sockets =
            own.filter_map(|(port, held)| held.socket.take().map(|socket| (*port, socket)));
        sockets
            .take(most)
            .map(|(port, socket)| {
                lent.insert(port, owner.to_owned());
                socket
            })
            .collect()
    }

    /// Takes note of a port of a container that runs. Whether its process has the socket cannot
    /// always be seen; what cannot be had is taken for that.
    ///
    /// # Errors
    /// [`Error::Conflict`] with another container.
    pub fn adopt(&self, owner: &Owner, protocol: Protocol, at: SocketAddr) -> Result<()> {
        let mut state = self.state();
        if let Some(other) = owner_of(&state.held, protocol, at) {
            return Err(Error::Conflict(format!(
                "port {at}/{protocol} is allocated to container {other}"
            )));
        }
        let socket = hold(protocol, at).ok().and_then(|(socket, _)| socket);
        if socket.is_none() {
            state.lent.insert((protocol, at), owner.id.clone());
        }
        state.held.insert(
            (protocol, at),
            Held {
                owner: owner.clone(),
                socket,
            },
        );
        Ok(())
    }

    /// Whether a port is this owner's.
    pub fn is_own(&self, owner: &str, protocol: Protocol, at: SocketAddr) -> bool {
        self.state()
            .held
            .get(&(protocol, at))
            .is_some_and(|held| held.owner.id == owner)
    }

    /// Gives a port back that is not published any more.
    pub fn release(&self, protocol: Protocol, at: SocketAddr) {
        self.state().held.remove(&(protocol, at));
    }

    /// A container has ended, and with it the process that had its sockets.
    pub fn forget(&self, owner: &str) {
        self.state().lent.retain(|_, other| other != owner);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of a container has changed.
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

/// Why a port could not be had.
enum Refused {
    /// By a process.
    InUse(SocketAddr),
    Error(Error),
}

fn take_one(
    state: &State,
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
        match hold(protocol, at) {
            Ok((socket, port)) => {
                chosen = port;
                sockets.push(socket);
            }
            // Its own process has it, from before it was withdrawn.
            Err(Errno::ADDRINUSE) if state.lent.get(&(protocol, at)) == Some(&owner.id) => {
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

/// The container that has a port on this address, on all addresses, or (for all addresses) on any.
fn owner_of(
    held: &BTreeMap<(Protocol, SocketAddr), Held>,
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

/// Binds a socket to the port. Without `SO_REUSEADDR`: with it, a server that sets it as well could
/// bind the port too. Only where nothing but finished connections (`TIME_WAIT`) is in the way it is
/// set.
fn hold(protocol: Protocol, at: SocketAddr) -> std::result::Result<(Option<OwnedFd>, u16), Errno> {
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
        // A kernel that does not speak SCTP itself still passes it on.
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
    // For IPv6 the socket is what clients on ::1 meet where they cannot be led to the container:
    // they have to be refused at once, so that they try 127.0.0.1.
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

/// The addresses that a wish without one means.
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

    fn wanted(ports: (u16, u16)) -> Wanted {
        Wanted {
            protocol: Protocol::Tcp,
            address: Some(LOCAL),
            ports,
        }
    }

    #[test]
    fn a_port_is_taken_once_and_its_owner_named() {
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
        assert!(
            std::net::TcpListener::bind((LOCAL, port)).is_err(),
            "a program could take it"
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
    fn what_a_containers_process_has_stays_its_own() {
        let (before, web) = (Ports::default(), owner("web"));
        // Of each kind: whether a socket can be seen to be somebody's differs.
        for (protocol, address) in [
            (Protocol::Tcp, LOCAL),
            (Protocol::Udp, LOCAL),
            (Protocol::Tcp, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        ] {
            let any = Wanted {
                protocol,
                address: Some(address),
                ports: (0, 0),
            };
            let port = before.take(&web, any, &[address]).unwrap();
            let lent = before.lend("web", 10);
            assert_eq!(lent.len(), 1);
            // Another engine, after this one was killed.
            let (after, at) = (Ports::default(), SocketAddr::new(address, port));
            after.adopt(&web, protocol, at).unwrap();
            after.adopt(&owner("other"), protocol, at).unwrap_err();
            let same = Wanted {
                protocol,
                address: Some(address),
                ports: (port, port),
            };
            after.release(protocol, at);
            after.take(&owner("other"), same, &[address]).unwrap_err();
            assert_eq!(
                after.take(&web, same, &[address]).unwrap(),
                port,
                "taken again while its process has it"
            );
            after.release(protocol, at);
            after.forget("web");
            drop(lent);
            assert_eq!(after.take(&owner("other"), same, &[address]).unwrap(), port);
            before.release(protocol, at);
        }
    }

    #[test]
    fn a_program_that_listens_is_named() {
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
        // Of a range, the next free one is taken.
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
