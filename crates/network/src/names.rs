//! The sockets on which a container's questions for names arrive: at 127.0.0.11, inside its network
//! namespace.
//!
//! They have a port of their own, to which rules inside the namespace lead port 53: a name server
//! that runs in the container finds its port free.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::BorrowedFd;

use rustix::net::netlink::NETFILTER;

use crate::error::{Error, Result};
use crate::netlink::Socket;
use crate::nft::{self, Hook, Rule, Table, transaction};
use crate::port::Protocol;

/// Where containers find the resolver, as with Docker.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

const PORT: u16 = 53;
const DSTNAT: i32 = -100;

#[derive(Debug)]
pub struct NameSockets {
    pub udp: UdpSocket,
    pub tcp: TcpListener,
}

/// Where the resolver listens if it can: out of the way of what programs choose, and of what is
/// chosen for them.
const USUAL: u16 = 64_053;
/// The chain whose rules lead there, and how many they are.
const TO_USUAL: &str = "to_64053";
const RULES: usize = 2;

/// Opens the sockets in a namespace, in place of those that an earlier engine had there. They do
/// not block.
pub fn open(namespace: BorrowedFd<'_>) -> Result<NameSockets> {
    whelk_sys::net::within(namespace, open_here)
        .map_err(|error| Error::io("enter the network namespace", &error))?
}

fn open_here() -> Result<NameSockets> {
    let step = |error: std::io::Error| Error::io("listen at 127.0.0.11", &error);
    // What an earlier engine has left leads here as well, and stays: to change rules takes the
    // kernel ten milliseconds, and there may be a thousand namespaces.
    let (udp, tcp, chain) = match (
        UdpSocket::bind((RESOLVER, USUAL)),
        TcpListener::bind((RESOLVER, USUAL)),
    ) {
        (Ok(udp), Ok(tcp)) => (udp, tcp, TO_USUAL),
        // Somebody in there has it.
        _ => (
            UdpSocket::bind((RESOLVER, 0)).map_err(step)?,
            TcpListener::bind((RESOLVER, 0)).map_err(step)?,
            "output",
        ),
    };
    udp.set_nonblocking(true).map_err(step)?;
    tcp.set_nonblocking(true).map_err(step)?;
    let mut socket = Socket::open(Some(NETFILTER), 0)?;
    let table = Table {
        family: nft::INET,
        name: "whelk_names".into(),
    };
    if chain == TO_USUAL
        && socket
            .dump(table.get_rules(TO_USUAL))
            .is_ok_and(|rules| rules.len() == RULES)
    {
        return Ok(NameSockets { udp, tcp });
    }
    let mut messages = vec![table.add(), table.delete(), table.add()];
    messages.push(table.chain(
        chain,
        Some(Hook {
            kind: "nat",
            number: nft::OUTPUT,
            priority: DSTNAT,
        }),
    ));
    for (protocol, port) in [
        (Protocol::Udp, udp.local_addr().map_err(step)?.port()),
        (Protocol::Tcp, tcp.local_addr().map_err(step)?.port()),
    ] {
        let to_resolver = Rule::new()
            .ipv4()
            .destination4()
            .in_network(RESOLVER.into(), 32);
        let rule = to_resolver
            .protocol_is(protocol.number())
            .destination_port_is(PORT)
            .destination(RESOLVER, port);
        messages.push(table.rule(chain, rule));
    }
    socket
        .batch(transaction(messages))
        .map_err(|error| Error::kernel("lead questions for names to the resolver", error))?;
    Ok(NameSockets { udp, tcp })
}
