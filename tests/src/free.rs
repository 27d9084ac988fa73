//! Ports, subnets and interface names that nothing else on this host uses, so that test programs can
//! run side by side.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// First of the ports to choose from: those below are often used by services.
const FIRST_PORT: u16 = 10_000;

/// Returns a host port that no TCP or UDP socket uses. No port is returned twice in a process.
///
/// The port is below the range from which the kernel chooses ports itself, so that it stays free
/// until the test uses it.
///
/// # Panics
/// Panics if no port is free.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let end = range
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse::<u16>().ok())
        .filter(|end| *end > FIRST_PORT)
        .unwrap_or(32_768);
    let count = end - FIRST_PORT;
    // Test programs that run at the same time start at different ports.
    let start = std::process::id().wrapping_mul(97) % u32::from(count);
    for _ in 0..count {
        let offset = (start + u32::from(NEXT.fetch_add(1, Ordering::Relaxed))) % u32::from(count);
        let port = FIRST_PORT + u16::try_from(offset).expect("less than the number of ports");
        let all = (Ipv6Addr::UNSPECIFIED, port);
        if TcpListener::bind(all).is_ok() && UdpSocket::bind(all).is_ok() {
            return port;
        }
    }
    panic!("no port of {FIRST_PORT} to {end} is free");
}

/// The subnets 10.213.N.0/24 and fd00:213:N::/64 of one number N. No route of the host leads to them,
/// and no other test has them until this is dropped.
#[derive(Debug)]
pub struct FreeSubnet {
    number: u8,
    /// Bound to an abstract name, which only one socket of the network namespace can have.
    _reservation: UnixListener,
}

impl FreeSubnet {
    /// Reserves the first subnet that is free.
    ///
    /// # Panics
    /// Panics if none is free.
    #[track_caller]
    #[allow(
        clippy::new_without_default,
        reason = "it takes one of few, which a default value should not"
    )]
    pub fn new() -> Self {
        let routes = routes();
        // Test programs that run at the same time start at different numbers.
        let start = std::process::id().to_le_bytes()[0];
        (0..=u8::MAX)
            .map(|offset| start.wrapping_add(offset))
            .find_map(|number| Self::reserve(number, &routes))
            .expect("a free subnet in 10.213.0.0/16")
    }

    fn reserve(number: u8, routes: &[(IpAddr, u8)]) -> Option<Self> {
        let name = SocketAddr::from_abstract_name(format!("test-subnet-{number}"));
        let reservation = UnixListener::bind_addr(&name.expect("a short name")).ok()?;
        let v4 = IpAddr::V4(Ipv4Addr::new(10, 213, number, 0));
        let v6 = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x213, hex(number), 0, 0, 0, 0, 0));
        let is_used = |(network, bits): &(IpAddr, u8)| {
            overlaps((v4, 24), (*network, *bits)) || overlaps((v6, 64), (*network, *bits))
        };
        (!routes.iter().any(is_used)).then_some(Self {
            number,
            _reservation: reservation,
        })
    }

    /// Returns the IPv4 subnet in CIDR notation.
    pub fn v4(&self) -> String {
        self.v4_part(0, 24)
    }

    /// Returns an address of the IPv4 subnet.
    pub fn v4_host(&self, host: u8) -> String {
        format!("10.213.{}.{host}", self.number)
    }

    /// Returns an address of the IPv4 subnet with a prefix length: an interface's address or a part of
    /// the subnet.
    pub fn v4_part(&self, host: u8, bits: u8) -> String {
        format!("{}/{bits}", self.v4_host(host))
    }

    /// Returns the IPv6 subnet in CIDR notation.
    pub fn v6(&self) -> String {
        format!("{}/64", self.v6_host(""))
    }

    /// Returns an address of the IPv6 subnet; `host` is its last group.
    pub fn v6_host(&self, host: &str) -> String {
        format!("fd00:213:{}::{host}", self.number)
    }

    /// Returns the MAC address that Docker derives from an address of the IPv4 subnet.
    pub fn mac(&self, host: u8) -> String {
        format!("02:42:0a:d5:{:02x}:{host:02x}", self.number)
    }
}

/// Returns the value of a decimal number read as hexadecimal digits: addresses show both families'
/// subnets with the same digits.
fn hex(number: u8) -> u16 {
    u16::from_str_radix(&number.to_string(), 16).expect("decimal digits are hexadecimal digits")
}

/// Returns whether two networks have addresses in common.
fn overlaps(one: (IpAddr, u8), other: (IpAddr, u8)) -> bool {
    let bits = one.1.min(other.1);
    let prefix = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    };
    one.0.is_ipv4() == other.0.is_ipv4()
        && (prefix(one.0) ^ prefix(other.0))
            .checked_shr(128 - u32::from(bits))
            .unwrap_or(0)
            == 0
}

/// Returns the networks that the host's routes lead to, without default routes.
fn routes() -> Vec<(IpAddr, u8)> {
    let v4 = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let v4 = v4.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // In the kernel's byte order.
        let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::to_le_bytes);
        let network = Ipv4Addr::from(number(fields.get(1)?)?);
        let mask = u32::from_be_bytes(number(fields.get(7)?)?);
        Some((IpAddr::V4(network), u8::try_from(mask.count_ones()).ok()?))
    });
    let v6 = v6.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let network = u128::from_str_radix(fields.next()?, 16).ok()?;
        let bits = u8::from_str_radix(fields.next()?, 16).ok()?;
        Some((IpAddr::V6(Ipv6Addr::from(network)), bits))
    });
    v4.chain(v6).filter(|(_, bits)| *bits > 0).collect()
}

/// Returns a name for an interface of the host that no other test has.
pub fn free_interface_name() -> String {
    static COUNT: AtomicU16 = AtomicU16::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("t{:x}i{count:x}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_overlap_if_one_contains_the_other() {
        let check = |one: &str, other: &str, expected: bool| {
            let parse = |text: &str| {
                let (address, bits) = text.split_once('/').unwrap();
                (address.parse().unwrap(), bits.parse().unwrap())
            };
            assert_eq!(overlaps(parse(one), parse(other)), expected);
            assert_eq!(overlaps(parse(other), parse(one)), expected);
        };
        check("10.213.5.0/24", "10.213.5.128/25", true);
        check("10.213.5.0/24", "10.0.0.0/8", true);
        check("10.213.5.0/24", "10.213.4.0/24", false);
        check("fd00:213:5::/64", "fd00::/8", true);
        check("fd00:213:5::/64", "fd00:213:6::/64", false);
        check("10.213.5.0/24", "ad5:500::/24", false);
    }

    #[test]
    fn subnets_ports_and_names_are_used_once() {
        let (one, other) = (FreeSubnet::new(), FreeSubnet::new());
        assert_ne!(one.v4(), other.v4());
        assert!(FreeSubnet::reserve(one.number, &[]).is_none());
        let number = one.number;
        drop(one);
        let host = (IpAddr::V4(Ipv4Addr::new(10, 213, number, 9)), 32);
        assert!(FreeSubnet::reserve(number, &[host]).is_none());
        assert!(routes().iter().all(|(_, bits)| (1..=128).contains(bits)));
        assert_ne!(free_port(), free_port());
        assert_ne!(free_interface_name(), free_interface_name());
    }
}
