//! Network interfaces, addresses and routes, over rtnetlink(7).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::netlink::{Attributes, CREATE, EXCLUSIVE, Message, REPLACE, Reply, Socket};

// linux/rtnetlink.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RT_TABLE_MAIN: u8 = 254;
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RT_SCOPE_HOST: u8 = 254;
// linux/if_link.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const VETH_INFO_PEER: u16 = 1;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_IPVLAN_MODE: u16 = 1;
const IFLA_IPVLAN_FLAGS: u16 = 2;
const IFLA_VLAN_ID: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFF_UP: u32 = 1;
// linux/if_addr.h
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// Disables duplicate address detection: addresses are allocated uniquely, and a container must not
/// wait a second for it.
const IFA_F_NODAD: u8 = 2;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Maximum length of an interface name in bytes (`IFNAMSIZ` less the terminating zero).
pub const MAX_INTERFACE_NAME: usize = 15;

/// A network interface as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `bridge`, `veth`, …; empty for hardware.
    pub kind: String,
    pub mac: [u8; 6],
    /// The alias (`ip link show` prints it).
    pub alias: String,
    /// The index of the bridge that it is a port of; 0 for none.
    pub master: u32,
}

/// The interface to create inside a container's network namespace.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    pub name: &'a str,
    pub mac: [u8; 6],
    pub namespace: BorrowedFd<'a>,
}

/// Settings of a bridge port.
#[derive(Clone, Copy, Debug, Default)]
pub struct Port {
    /// Frames are not forwarded to other isolated ports (`icc=false`).
    pub isolated: bool,
    /// Frames may be sent back through the port they came from.
    pub hairpin: bool,
}

/// An rtnetlink socket, bound to the network namespace in which it was opened.
#[derive(Debug)]
pub struct Links(Socket);

fn ifinfo(family: u8, index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn kernel(operation: String) -> impl FnOnce(Errno) -> Error {
    move |error| Error::kernel(&operation, error)
}

impl Links {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        Socket::open(None, 0).map(Self)
    }

    /// Opens a socket inside another network namespace.
    pub fn open_in(namespace: BorrowedFd<'_>) -> Result<Self> {
        whelk_sys::net::within(namespace, Self::open)
            .map_err(|error| Error::io("enter the network namespace", &error))?
    }

    /// Returns the interface with this name, or `None`.
    pub fn find(&mut self, name: &str) -> Result<Option<Link>> {
        let message = Message::new(RTM_GETLINK, 0, &ifinfo(0, 0, 0, 0)).text(IFLA_IFNAME, name);
        match self.0.get(message) {
            Ok(reply) => Ok(reply.as_ref().and_then(parse_link)),
            Err(Errno::NODEV) => Ok(None),
            Err(error) => Err(Error::kernel(&format!("look up interface {name}"), error)),
        }
    }

    /// Returns all interfaces.
    pub fn list(&mut self) -> Result<Vec<Link>> {
        let replies = self
            .0
            .dump(Message::new(RTM_GETLINK, 0, &ifinfo(0, 0, 0, 0)))
            .map_err(kernel("list interfaces".into()))?;
        Ok(replies.iter().filter_map(parse_link).collect())
    }

    fn index(&mut self, name: &str) -> Result<u32> {
        self.find(name)?.map(|link| link.index).ok_or_else(|| {
            Error::Kernel(format!(
                "interface {name} does not exist although it was just created"
            ))
        })
    }

    /// Creates a bridge with an alias, brings it up and returns its index.
    pub fn create_bridge(
        &mut self,
        name: &str,
        mtu: u32,
        mac: [u8; 6],
        alias: &str,
    ) -> Result<u32> {
        let mut message = Message::new(
            RTM_NEWLINK,
            CREATE | EXCLUSIVE,
            &ifinfo(0, 0, IFF_UP, IFF_UP),
        )
        .text(IFLA_IFNAME, name)
        // A fixed address: otherwise the bridge takes one of its ports' addresses, it changes with
        // the ports, and neighbours have to resolve it again.
        .bytes(IFLA_ADDRESS, &mac)
        .nest(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "bridge"));
        if mtu > 0 {
            message = message.u32(IFLA_MTU, mtu);
        }
        self.0
            .request(message)
            .map_err(kernel(format!("create bridge {name}")))?;
        // The kernel accepts an alias for existing interfaces only.
        self.set_alias(name, alias)?;
        self.index(name)
    }

    /// Sets an interface's alias.
    pub fn set_alias(&mut self, name: &str, alias: &str) -> Result<()> {
        let message = Message::new(RTM_NEWLINK, 0, &ifinfo(0, 0, 0, 0))
            .text(IFLA_IFNAME, name)
            .text(IFLA_IFALIAS, alias);
        self.0
            .request(message)
            .map_err(kernel(format!("set the alias of interface {name}")))
    }

    /// Creates a veth pair with the peer directly inside the container's namespace: moving an
    /// interface there costs an RCU grace period, tens of milliseconds.
    pub fn create_veth(
        &mut self,
        name: &str,
        bridge: u32,
        mtu: u32,
        peer: Peer<'_>,
        port: Port,
    ) -> Result<()> {
        let with_mtu = move |message: Message| {
            if mtu > 0 {
                message.u32(IFLA_MTU, mtu)
            } else {
                message
            }
        };
        let message = with_mtu(Message::new(
            RTM_NEWLINK,
            CREATE | EXCLUSIVE,
            &ifinfo(0, 0, IFF_UP, IFF_UP),
        ))
        .text(IFLA_IFNAME, name)
        .u32(IFLA_MASTER, bridge)
        .nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth")
                .nest(IFLA_INFO_DATA, |data| {
                    data.nest(VETH_INFO_PEER, |inner| {
                        // Brought up later: a veth cannot be brought up before its peer exists.
                        with_mtu(inner.raw(&ifinfo(0, 0, 0, 0)))
                            .text(IFLA_IFNAME, peer.name)
                            .bytes(IFLA_ADDRESS, &peer.mac)
                            .u32(IFLA_NET_NS_FD, peer.namespace.as_raw_fd().cast_unsigned())
                    })
                })
        });
        self.0
            .request(message)
            .map_err(kernel(format!("create veth pair {name}")))?;
        self.set_port(name, port)
    }

    /// Creates a veth pair, both ends down: `name` here, and `outer` in the namespace `elsewhere`.
    /// Returns the index of the first.
    pub fn create_veth_pair(
        &mut self,
        name: &str,
        outer: &str,
        elsewhere: BorrowedFd<'_>,
    ) -> Result<u32> {
        let message = Message::new(RTM_NEWLINK, CREATE | EXCLUSIVE, &ifinfo(0, 0, 0, 0))
            .text(IFLA_IFNAME, name)
            .nest(IFLA_LINKINFO, |info| {
                info.text(IFLA_INFO_KIND, "veth")
                    .nest(IFLA_INFO_DATA, |data| {
                        data.nest(VETH_INFO_PEER, |inner| {
                            inner
                                .raw(&ifinfo(0, 0, 0, 0))
                                .text(IFLA_IFNAME, outer)
                                .u32(IFLA_NET_NS_FD, elsewhere.as_raw_fd().cast_unsigned())
                        })
                    })
            });
        self.0
            .request(message)
            .map_err(kernel(format!("create veth pair {outer}")))?;
        self.index(name)
    }

    /// Makes an existing interface a bridge port and brings it up. Clears its alias; an `mtu` of 0
    /// leaves the MTU unchanged.
    pub fn attach_to_bridge(
        &mut self,
        name: &str,
        bridge: u32,
        mtu: u32,
        port: Port,
    ) -> Result<()> {
        let message = Message::new(RTM_NEWLINK, 0, &ifinfo(0, 0, IFF_UP, IFF_UP))
            .text(IFLA_IFNAME, name)
            .u32(IFLA_MASTER, bridge)
            .bytes(IFLA_IFALIAS, &[]);
        let message = if mtu > 0 {
            message.u32(IFLA_MTU, mtu)
        } else {
            message
        };
        self.0
            .request(message)
            .map_err(kernel(format!("attach interface {name} to a bridge")))?;
        self.set_port(name, port)
    }

    /// Sets the hardware address, name and MTU of an interface that is down. A `name` of `None` and
    /// an `mtu` of 0 leave them unchanged.
    pub fn configure(
        &mut self,
        index: u32,
        name: Option<&str>,
        mac: [u8; 6],
        mtu: u32,
    ) -> Result<()> {
        let mut message =
            Message::new(RTM_NEWLINK, 0, &ifinfo(0, index, 0, 0)).bytes(IFLA_ADDRESS, &mac);
        if let Some(name) = name {
            message = message.text(IFLA_IFNAME, name);
        }
        if mtu > 0 {
            message = message.u32(IFLA_MTU, mtu);
        }
        self.0
            .request(message)
            .map_err(kernel(format!("configure interface {index}")))
    }

    fn set_port(&mut self, name: &str, port: Port) -> Result<()> {
        if port.isolated || port.hairpin {
            let message = Message::new(RTM_NEWLINK, 0, &ifinfo(0, 0, 0, 0))
                .text(IFLA_IFNAME, name)
                .nest(IFLA_LINKINFO, |info| {
                    info.text(IFLA_INFO_SLAVE_KIND, "bridge")
                        .nest(IFLA_INFO_SLAVE_DATA, |data| {
                            data.u8(IFLA_BRPORT_MODE, port.hairpin.into())
                                .u8(IFLA_BRPORT_ISOLATED, port.isolated.into())
                        })
                });
            self.0
                .request(message)
                .map_err(kernel(format!("configure bridge port {name}")))?;
        }
        Ok(())
    }

    /// Creates a macvlan interface on `parent` inside a namespace. `mode` is a `MACVLAN_MODE_*`
    /// value (`linux/if_link.h`); an `mtu` of 0 means the parent's.
    pub fn create_macvlan(
        &mut self,
        parent: u32,
        mode: u32,
        mtu: u32,
        peer: Peer<'_>,
    ) -> Result<()> {
        self.create_on(parent, "macvlan", mtu, peer, Some(peer.mac), |data| {
            data.u32(IFLA_MACVLAN_MODE, mode)
        })
    }

    /// Creates an ipvlan interface on `parent` inside a namespace; it has the parent's hardware
    /// address. `mode` and `flags` are `IPVLAN_MODE_*` and `IPVLAN_F_*` values (`linux/if_link.h`).
    pub fn create_ipvlan(
        &mut self,
        parent: u32,
        (mode, flags): (u16, u16),
        mtu: u32,
        peer: Peer<'_>,
    ) -> Result<()> {
        self.create_on(parent, "ipvlan", mtu, peer, None, |data| {
            data.u16(IFLA_IPVLAN_MODE, mode)
                .u16(IFLA_IPVLAN_FLAGS, flags)
        })
    }

    fn create_on(
        &mut self,
        parent: u32,
        kind: &str,
        mtu: u32,
        peer: Peer<'_>,
        mac: Option<[u8; 6]>,
        data: impl FnOnce(Message) -> Message,
    ) -> Result<()> {
        let message = Message::new(
            RTM_NEWLINK,
            CREATE | EXCLUSIVE,
            &ifinfo(0, 0, IFF_UP, IFF_UP),
        );
        let message = if mtu > 0 {
            message.u32(IFLA_MTU, mtu)
        } else {
            message
        };
        let message = if let Some(mac) = mac {
            message.bytes(IFLA_ADDRESS, &mac)
        } else {
            message
        }
        .text(IFLA_IFNAME, peer.name)
        .u32(IFLA_LINK, parent)
        .u32(IFLA_NET_NS_FD, peer.namespace.as_raw_fd().cast_unsigned())
        .nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, kind).nest(IFLA_INFO_DATA, data)
        });
        match self.0.request(message) {
            Err(Errno::OPNOTSUPP) => Err(Error::Unsupported(format!(
                "this kernel has no {kind} interfaces"
            ))),
            result => result.map_err(kernel(format!("create {kind} interface"))),
        }
    }

    /// Creates an 802.1Q sub-interface, brings it up and returns its index.
    pub fn create_vlan(&mut self, name: &str, parent: u32, id: u16) -> Result<u32> {
        let message = Message::new(
            RTM_NEWLINK,
            CREATE | EXCLUSIVE,
            &ifinfo(0, 0, IFF_UP, IFF_UP),
        )
        .text(IFLA_IFNAME, name)
        .u32(IFLA_LINK, parent)
        .nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "vlan")
                .nest(IFLA_INFO_DATA, |data| data.u16(IFLA_VLAN_ID, id))
        });
        self.0
            .request(message)
            .map_err(kernel(format!("create vlan interface {name}")))?;
        self.index(name)
    }

    /// Creates a dummy interface, brings it up and returns its index: the parent of macvlan
    /// networks without a configured one.
    pub fn create_dummy(&mut self, name: &str) -> Result<u32> {
        let message = Message::new(
            RTM_NEWLINK,
            CREATE | EXCLUSIVE,
            &ifinfo(0, 0, IFF_UP, IFF_UP),
        )
        .text(IFLA_IFNAME, name)
        .nest(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "dummy"));
        self.0
            .request(message)
            .map_err(kernel(format!("create interface {name}")))?;
        self.index(name)
    }

    /// Brings an interface up.
    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let message = Message::new(RTM_NEWLINK, 0, &ifinfo(0, index, IFF_UP, IFF_UP));
        self.0
            .request(message)
            .map_err(kernel(format!("bring up interface {index}")))
    }

    /// Deletes an interface. A missing one is not an error.
    pub fn delete(&mut self, name: &str) -> Result<()> {
        match self
            .0
            .request(Message::new(RTM_DELLINK, 0, &ifinfo(0, 0, 0, 0)).text(IFLA_IFNAME, name))
        {
            Err(Errno::NODEV) => Ok(()),
            result => result.map_err(kernel(format!("delete interface {name}"))),
        }
    }

    /// Adds an address to an interface. An existing one is not an error.
    pub fn add_address(&mut self, index: u32, address: IpNet) -> Result<()> {
        let mut message = address_message(RTM_NEWADDR, CREATE | REPLACE, index, address);
        if let IpNet::V4(net) = address
            && net.prefix_len() < 31
        {
            message = message.ip(IFA_BROADCAST, net.broadcast().into());
        }
        self.0
            .request(message)
            .map_err(kernel(format!("add address {address}")))
    }

    /// Removes an address from an interface. A missing one is not an error.
    pub fn remove_address(&mut self, index: u32, address: IpNet) -> Result<()> {
        match self
            .0
            .request(address_message(RTM_DELADDR, 0, index, address))
        {
            Err(Errno::ADDRNOTAVAIL) => Ok(()),
            result => result.map_err(kernel(format!("remove address {address}"))),
        }
    }

    /// Adds a route through an interface, to a gateway or on-link. A `metric` of 0 means the
    /// kernel's default.
    pub fn add_route(
        &mut self,
        index: u32,
        to: IpNet,
        gateway: Option<IpAddr>,
        metric: u32,
    ) -> Result<()> {
        let scope = if gateway.is_some() {
            RT_SCOPE_UNIVERSE
        } else {
            RT_SCOPE_LINK
        };
        let header = [
            family(to.addr()),
            to.prefix_len(),
            0,
            0,
            RT_TABLE_MAIN,
            RTPROT_STATIC,
            scope,
            RTN_UNICAST,
            0,
            0,
            0,
            0,
        ];
        let mut message = Message::new(RTM_NEWROUTE, CREATE | REPLACE, &header).u32(RTA_OIF, index);
        if to.prefix_len() > 0 {
            message = message.ip(RTA_DST, to.network());
        }
        if let Some(gateway) = gateway {
            message = message.ip(RTA_GATEWAY, gateway);
        }
        if metric > 0 {
            message = message.u32(RTA_PRIORITY, metric);
        }
        let via = gateway
            .map(|gateway| format!(" via {gateway}"))
            .unwrap_or_default();
        self.0
            .request(message)
            .map_err(kernel(format!("add route to {to}{via}")))
    }

    /// Adds a local route for ::1 on an interface, so that packets to ::1 that arrive there are
    /// delivered locally: the counterpart of `route_localnet` for IPv4. The kernel drops packets
    /// that arrive with ::1 as their destination; what remains are replies to connections from ::1
    /// that DNAT rules redirected.
    pub fn add_ipv6_loopback_route(&mut self, index: u32) -> Result<()> {
        // A lower priority than the loopback interface's own route, whose metric is 0.
        const METRIC: u32 = 4096;
        let to = Ipv6Addr::LOCALHOST;
        let header = [
            AF_INET6,
            128,
            0,
            0,
            RT_TABLE_LOCAL,
            RTPROT_STATIC,
            RT_SCOPE_HOST,
            RTN_LOCAL,
            0,
            0,
            0,
            0,
        ];
        let message = Message::new(RTM_NEWROUTE, CREATE, &header)
            .u32(RTA_OIF, index)
            .ip(RTA_DST, to.into())
            .u32(RTA_PRIORITY, METRIC);
        // Without `NLM_F_REPLACE`: the routes of other interfaces must stay.
        match self.0.request(message) {
            Err(Errno::EXIST) => Ok(()),
            result => result.map_err(kernel(format!("add route to {to}"))),
        }
    }

    /// Returns the destinations in the main routing table, without default routes.
    pub fn routes(&mut self) -> Result<Vec<IpNet>> {
        Ok(self
            .routes_by_link()?
            .into_iter()
            .map(|(to, _)| to)
            .collect())
    }

    /// Like [`Links::routes`], with the index of each route's interface, or 0 for a multipath
    /// route.
    pub fn routes_by_link(&mut self) -> Result<Vec<(IpNet, u32)>> {
        let mut found = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let header = [family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            match self.0.dump(Message::new(RTM_GETROUTE, 0, &header)) {
                Ok(replies) => found.extend(replies.iter().filter_map(parse_route)),
                // The kernel has no IPv6.
                Err(Errno::OPNOTSUPP | Errno::AFNOSUPPORT) => {}
                Err(error) => return Err(Error::kernel("list routes", error)),
            }
        }
        Ok(found)
    }
}

fn address_message(kind: u16, flags: u16, index: u32, address: IpNet) -> Message {
    let ip_flags = if address.addr().is_ipv6() {
        IFA_F_NODAD
    } else {
        0
    };
    let mut header = [0; 8];
    header[0] = family(address.addr());
    header[1] = address.prefix_len();
    header[2] = ip_flags;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    Message::new(kind, flags, &header)
        .ip(IFA_LOCAL, address.addr())
        .ip(IFA_ADDRESS, address.addr())
}

pub(crate) fn parse_link(reply: &Reply) -> Option<Link> {
    let (header, attributes) = reply.split(16)?;
    let info = attributes.find(IFLA_LINKINFO).map(Attributes);
    Some(Link {
        index: u32::from_ne_bytes(header[4..8].try_into().ok()?),
        name: attributes.text(IFLA_IFNAME)?,
        kind: info
            .and_then(|info| info.text(IFLA_INFO_KIND))
            .unwrap_or_default(),
        mac: attributes
            .find(IFLA_ADDRESS)
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or_default(),
        alias: attributes.text(IFLA_IFALIAS).unwrap_or_default(),
        master: attributes
            .find(IFLA_MASTER)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u32::from_ne_bytes)
            .unwrap_or_default(),
    })
}

pub(crate) fn parse_route(reply: &Reply) -> Option<(IpNet, u32)> {
    let (header, attributes) = reply.split(12)?;
    if header[4] != RT_TABLE_MAIN || header[1] == 0 {
        return None;
    }
    let unspecified = if header[0] == AF_INET {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let net = IpNet::new(attributes.ip(RTA_DST).unwrap_or(unspecified), header[1]).ok()?;
    // Link-local and multicast routes exist on every interface.
    let common = match net.addr() {
        IpAddr::V4(address) => address.is_multicast(),
        IpAddr::V6(address) => address.is_multicast() || address.is_unicast_link_local(),
    };
    let link = attributes
        .find(RTA_OIF)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_ne_bytes);
    (!common).then_some((net, link))
}
