//! The sockets on which a container's questions for names arrive: at 127.0.0.11, inside its network namespace.
//!
//! They have ports of the kernel's choice, and a rule inside the namespace leads port 53 to them: a name server that runs
//! in the container finds its port free.

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

/// Opens the sockets in a namespace, in place of those that an earlier engine had there. They do not block.
pub fn open(namespace: BorrowedFd<'_>) -> Result<NameSockets> {
    whelk_sys::net::within(namespace, open_here).map_err(|error| Error::io("enter the network namespace", &error))?
}

fn open_here() -> Result<NameSockets> {
    let step = |error: std::io::Error| Error::io("listen at 127.0.0.11", &error);
    let udp = UdpSocket::bind((RESOLVER, 0)).map_err(step)?;
    let tcp = TcpListener::bind((RESOLVER, 0)).map_err(step)?;
    udp.set_nonblocking(true).map_err(step)?;
    tcp.set_nonblocking(true).map_err(step)?;
    let table = Table { family: nft::INET, name: "whelk_names".into() };
    let mut messages = vec![table.add(), table.delete(), table.add()];
    messages.push(table.chain("output", Some(Hook { kind: "nat", number: nft::OUTPUT, priority: DSTNAT })));
    for (protocol, port) in
        [(Protocol::Udp, udp.local_addr().map_err(step)?.port()), (Protocol::Tcp, tcp.local_addr().map_err(step)?.port())]
    {
        let to_resolver = Rule::new().ipv4().destination4().in_network(RESOLVER.into(), 32);
        let rule = to_resolver.protocol_is(protocol.number()).destination_port_is(PORT).destination(RESOLVER, port);
        messages.push(table.rule("output", rule));
    }
    Socket::open(Some(NETFILTER), 0)?
        .batch(transaction(messages))
        .map_err(|error| Error::kernel("lead questions for names to the resolver", error))?;
    Ok(NameSockets { udp, tcp })
}
