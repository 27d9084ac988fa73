//! IP address management: allocates subnets to networks and addresses to containers. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A range from which networks get their subnets (`default-address-pools`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub base: IpNet,
    /// The prefix length of each subnet.
    pub size: u8,
}

/// Returns Docker's default pools, but with 254 addresses per network instead of 65,534, which
/// would be exhausted after 31 networks.
pub fn default_pools() -> Vec<Pool> {
    const SIZE: u8 = 24;
    let pool = |address: [u8; 4], bits: u8| Pool {
        base: Ipv4Net::new(address.into(), bits).map_or_else(|_| IpNet::default(), IpNet::V4),
        size: SIZE,
    };
    vec![
        pool([172, 18, 0, 0], 15),
        pool([172, 20, 0, 0], 14),
        pool([172, 24, 0, 0], 13),
        pool([192, 168, 0, 0], 16),
    ]
}

/// Returns whether two subnets have addresses in common.
pub fn overlaps(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// Returns the first subnet of the pools that does not overlap any of `taken`, which are the
/// subnets of other networks and the host's routes.
///
/// # Errors
/// Returns [`Error::Exhausted`] if no subnet is free.
pub fn allocate_subnet(pools: &[Pool], taken: &[IpNet]) -> Result<IpNet> {
    let mut taken: Vec<(IpAddr, IpAddr)> = taken
        .iter()
        .map(|net| (net.network(), net.broadcast()))
        .collect();
    taken.sort_unstable();
    for pool in pools {
        let begin = pool.base.network();
        let mut start = begin;
        let mut blocks = taken
            .iter()
            .filter(|(first, last)| pool.base.contains(first) || (*first < begin && *last >= begin))
            .peekable();
        while pool.base.contains(&start) {
            let Ok(candidate) = IpNet::new(start, pool.size) else {
                break;
            };
            while blocks.next_if(|(_, last)| *last < start).is_some() {}
            let blocked = blocks
                .peek()
                .filter(|(first, _)| *first <= candidate.broadcast())
                .map(|(_, last)| *last);
            let Some(last) = blocked else {
                return Ok(candidate);
            };
            // Continue behind the blocking range instead of at the next subnet: a route to
            // 10.0.0.0/8 covers many subnets.
            let Some(next) =
                last_of(last.max(candidate.broadcast()), pool.size).and_then(successor)
            else {
                break;
            };
            start = next;
        }
    }
    Err(Error::Exhausted(
        "all predefined address pools have been fully subnetted".into(),
    ))
}

/// Returns the last address of the subnet with prefix length `size` that contains `address`.
fn last_of(address: IpAddr, size: u8) -> Option<IpAddr> {
    IpNet::new(address, size).ok().map(|net| net.broadcast())
}

/// Returns a unique local subnet (RFC 4193) derived from a network id, which is hexadecimal. The
/// same id always gets the same subnet.
pub fn unique_local(id: &str) -> IpNet {
    let digits: u64 = id
        .get(..14)
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .unwrap_or_default();
    let bits = (0xfd_u128 << 120) | (u128::from(digits) << 64);
    const SIZE: u8 = 64;
    Ipv6Net::new(Ipv6Addr::from(bits), SIZE).map_or_else(|_| IpNet::default(), IpNet::V6)
}

fn successor(address: IpAddr) -> Option<IpAddr> {
    from_number(address.is_ipv4(), to_number(address).checked_add(1)?)
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn from_number(ipv4: bool, number: u128) -> Option<IpAddr> {
    if ipv4 {
        u32::try_from(number)
            .ok()
            .map(|number| Ipv4Addr::from(number).into())
    } else {
        Some(Ipv6Addr::from(number).into())
    }
}

/// The number of addresses of a subnet by their use, at most `u64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubnetUsage {
    pub subnet: IpNet,
    /// Allocated and reserved ones, with those that no host may have.
    pub in_use: u64,
    /// Those of the range that can be allocated dynamically.
    pub available: u64,
}

/// The address allocations of one subnet.
#[derive(Clone, Debug)]
pub struct Block {
    pub subnet: IpNet,
    /// The range for dynamically allocated addresses.
    range: IpNet,
    /// `None` if none is reserved.
    pub gateway: Option<IpAddr>,
    used: BTreeSet<u128>,
    /// All addresses of the range below this one are in use.
    lowest: u128,
}

impl Block {
    /// Creates a block. `reserved` are the auxiliary addresses. Without a `gateway`, the first free
    /// address of the range is the gateway.
    ///
    /// # Errors
    /// Returns an error if the range or an address is outside the subnet, or if no address is left
    /// for the gateway.
    pub fn new(
        subnet: IpNet,
        range: Option<IpNet>,
        gateway: Option<IpAddr>,
        reserved: &[IpAddr],
    ) -> Result<Self> {
        let range = range.unwrap_or(subnet);
        if !subnet.contains(&range) {
            return Err(Error::invalid(format!(
                "invalid subnet {subnet}: range {range} is not in it"
            )));
        }
        for address in gateway.iter().chain(reserved) {
            if !subnet.contains(address) {
                return Err(Error::invalid(format!(
                    "invalid address {address}: it is not in subnet {subnet}"
                )));
            }
        }
        let mut block = Self {
            subnet,
            range,
            gateway: None,
            used: BTreeSet::new(),
            lowest: 0,
        };
        block
            .used
            .extend(reserved.iter().map(|address| to_number(*address)));
        let gateway = match gateway {
            Some(gateway) => gateway,
            None => block.first_free().ok_or_else(|| {
                Error::invalid(format!("subnet {subnet} has no address for a gateway"))
            })?,
        };
        block.used.insert(to_number(gateway));
        block.gateway = Some(gateway);
        Ok(block)
    }

    /// Frees the gateway's address: the network needs none.
    pub fn without_gateway(mut self) -> Self {
        if let Some(gateway) = self.gateway.take() {
            self.release(gateway);
        }
        self
    }

    /// Returns the first and last address that a host may have. Subnets of one or two addresses use
    /// all of them (RFC 3021).
    fn hosts(&self) -> (u128, u128) {
        let (first, last) = (
            to_number(self.subnet.network()),
            to_number(self.subnet.broadcast()),
        );
        match self.subnet {
            _ if last - first < 2 => (first, last),
            IpNet::V4(_) => (first + 1, last - 1),
            IpNet::V6(_) => (first + 1, last),
        }
    }

    fn first_free(&mut self) -> Option<IpAddr> {
        let (first, last) = self.hosts();
        let first = first.max(to_number(self.range.network())).max(self.lowest);
        let last = last.min(to_number(self.range.broadcast()));
        if first > last {
            return None;
        }
        let mut candidate = first;
        for used in self.used.range(first..=last) {
            if *used != candidate {
                break;
            }
            candidate += 1;
        }
        self.lowest = candidate;
        if candidate > last {
            None
        } else {
            from_number(self.subnet.addr().is_ipv4(), candidate)
        }
    }

    /// Allocates the address `wanted`, or the lowest free one of the range.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] if the address is in use, [`Error::Invalid`] if it is not a host
    /// address of the subnet and [`Error::Exhausted`] if no address is free.
    pub fn take(&mut self, wanted: Option<IpAddr>) -> Result<IpAddr> {
        let address = match wanted {
            Some(address) => {
                let (first, last) = self.hosts();
                if !(first..=last).contains(&to_number(address))
                    || address.is_ipv4() != self.subnet.addr().is_ipv4()
                {
                    return Err(Error::invalid(format!(
                        "invalid address {address}: It does not belong to any of this network's subnets"
                    )));
                }
                if self.used.contains(&to_number(address)) {
                    return Err(Error::Conflict("Address already in use".into()));
                }
                address
            }
            None => self.first_free().ok_or_else(|| {
                Error::Exhausted(format!("no available addresses left in {}", self.range))
            })?,
        };
        self.used.insert(to_number(address));
        Ok(address)
    }

    /// Returns how many addresses are in use, and how many can be allocated dynamically.
    pub fn usage(&self) -> SubnetUsage {
        let total = |net: IpNet| {
            let (first, last) = (to_number(net.network()), to_number(net.broadcast()));
            (last - first).saturating_add(1)
        };
        let in_use = |net: IpNet| {
            let (first, last) = (to_number(net.network()), to_number(net.broadcast()));
            let (first_host, last_host) = self.hosts();
            let reserved = u128::from(first < first_host) + u128::from(last > last_host);
            let hosts = first.max(first_host)..=last.min(last_host);
            let used = if hosts.is_empty() {
                0
            } else {
                self.used.range(hosts).count()
            };
            reserved + used as u128
        };
        let saturate = |number: u128| u64::try_from(number).unwrap_or(u64::MAX);
        SubnetUsage {
            subnet: self.subnet,
            in_use: saturate(in_use(self.subnet)),
            available: saturate(total(self.range).saturating_sub(in_use(self.range))),
        }
    }

    /// Frees an address. The gateway stays allocated.
    pub fn release(&mut self, address: IpAddr) {
        if Some(address) != self.gateway && self.used.remove(&to_number(address)) {
            self.lowest = self.lowest.min(to_number(address));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn allocated_subnets_do_not_overlap_taken_ones() {
        let pools = default_pools();
        assert_eq!(allocate_subnet(&pools, &[]).unwrap(), net("172.18.0.0/24"));
        assert_eq!(
            allocate_subnet(&pools, &[net("172.18.0.0/24")]).unwrap(),
            net("172.18.1.0/24")
        );
        assert_eq!(
            allocate_subnet(&pools, &[net("172.16.0.0/14"), net("172.20.0.128/25")]).unwrap(),
            net("172.20.1.0/24")
        );
        assert_eq!(
            allocate_subnet(&pools, &[net("172.16.0.0/12")]).unwrap(),
            net("192.168.0.0/24")
        );
        assert!(matches!(
            allocate_subnet(&pools, &[net("172.16.0.0/12"), net("192.168.0.0/16")]),
            Err(Error::Exhausted(_))
        ));
    }

    #[test]
    fn thousands_of_subnets_can_be_allocated() {
        let mut taken = Vec::new();
        for _ in 0..2000 {
            let subnet = allocate_subnet(&default_pools(), &taken).unwrap();
            taken.push(subnet);
        }
        taken.sort_unstable();
        assert!(
            taken.is_sorted_by(|one, next| one.broadcast() < next.network()),
            "two overlap"
        );
    }

    #[test]
    fn unique_local_networks_differ() {
        assert_eq!(
            unique_local("0123456789abcdef").to_string(),
            "fd01:2345:6789:abcd::/64"
        );
        assert_eq!(unique_local("x").to_string(), "fd00::/64");
    }

    #[test]
    fn counts_addresses_by_their_use() {
        let check = |subnet: &str, range: Option<&str>, in_use: u64, available: u64| {
            let mut block = Block::new(net(subnet), range.map(net), None, &[]).unwrap();
            block.take(None).unwrap();
            let usage = block.usage();
            assert_eq!(
                (usage.in_use, usage.available),
                (in_use, available),
                "{subnet}"
            );
        };
        // The network and broadcast addresses, the gateway, and one container.
        check("10.0.0.0/24", None, 4, 252);
        check("10.0.0.0/24", Some("10.0.0.128/25"), 4, 125);
        check("10.0.0.0/31", None, 2, 0);
        check("fd00::/120", None, 3, 253);
        check("fd00::/64", None, 3, u64::MAX - 2);
        check("fd00::/48", None, 3, u64::MAX);
    }

    #[test]
    fn allocates_the_lowest_free_or_the_requested_address() {
        let mut block = Block::new(net("10.0.0.0/29"), None, None, &[ip("10.0.0.3")]).unwrap();
        assert_eq!(block.gateway, Some(ip("10.0.0.1")));
        assert_eq!(block.take(None).unwrap(), ip("10.0.0.2"));
        assert_eq!(block.take(None).unwrap(), ip("10.0.0.4"));
        assert_eq!(
            block.take(Some(ip("10.0.0.4"))).unwrap_err().to_string(),
            "Address already in use"
        );
        assert_eq!(block.take(Some(ip("10.0.0.6"))).unwrap(), ip("10.0.0.6"));
        assert_eq!(block.take(None).unwrap(), ip("10.0.0.5"));
        assert!(matches!(block.take(None), Err(Error::Exhausted(_))));
        block.release(ip("10.0.0.2"));
        assert_eq!(block.take(None).unwrap(), ip("10.0.0.2"));
        for outside in ["10.0.0.0", "10.0.0.7", "10.0.1.1", "::1"] {
            assert!(
                matches!(block.take(Some(ip(outside))), Err(Error::Invalid(_))),
                "{outside}"
            );
        }
    }

    #[test]
    fn gateways_and_ranges_must_be_in_the_subnet() {
        let mut block =
            Block::new(net("10.0.0.0/16"), Some(net("10.0.5.0/24")), None, &[]).unwrap();
        assert_eq!(
            (block.gateway, block.take(None).unwrap()),
            (Some(ip("10.0.5.0")), ip("10.0.5.1"))
        );
        let refused = |range, gateway| {
            let block = Block::new(net("10.0.0.0/24"), range, gateway, &[]);
            block.unwrap_err().to_string()
        };
        assert_eq!(
            refused(Some(net("10.1.0.0/24")), None),
            "invalid subnet 10.0.0.0/24: range 10.1.0.0/24 is not in it"
        );
        assert_eq!(
            refused(None, Some(ip("10.0.1.1"))),
            "invalid address 10.0.1.1: it is not in subnet 10.0.0.0/24"
        );
        let mut pair = Block::new(net("10.0.0.0/31"), None, None, &[]).unwrap();
        assert_eq!(
            (pair.gateway, pair.take(None).unwrap()),
            (Some(ip("10.0.0.0")), ip("10.0.0.1"))
        );
        let pair = Block::new(net("10.0.0.0/31"), None, None, &[]).unwrap();
        let mut pair = pair.without_gateway();
        for address in ["10.0.0.0", "10.0.0.1"] {
            assert_eq!(pair.take(None).unwrap(), ip(address));
        }
        pair.release(ip("10.0.0.0"));
        assert_eq!(pair.take(None).unwrap(), ip("10.0.0.0"));
    }

    proptest! {
        #[test]
        fn no_address_is_allocated_twice(bits in 20u8..=31, steps in prop::collection::vec((any::<bool>(), any::<u16>()), 0..300)) {
            let mut block = Block::new(IpNet::new(ip("10.4.0.0"), bits).unwrap(), None, None, &[]).unwrap();
            let mut held = BTreeSet::new();
            for (take, which) in steps {
                if take {
                    if let Ok(address) = block.take(None) {
                        prop_assert!(held.insert(address) && Some(address) != block.gateway && block.subnet.contains(&address));
                    }
                } else if let Some(address) = held.iter().nth(usize::from(which) % held.len().max(1)).copied() {
                    held.remove(&address);
                    block.release(address);
                }
            }
            // All addresses that are not held can still be allocated.
            let (first, last) = block.hosts();
            let free = (last - first) as usize - held.len();
            for _ in 0..free {
                prop_assert!(block.take(None).is_ok());
            }
            prop_assert!(matches!(block.take(None), Err(Error::Exhausted(_))));
        }
    }
}
