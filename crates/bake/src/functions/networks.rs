//! Functions of IP networks: `cidrhost`, `cidrnetmask`, `cidrsubnet` and `cidrsubnets`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::{Returned, bounded_list, count, integer};
use crate::value::Value;

/// How many bits a prefix may be extended by.
const MAX_BITS: i64 = 32;

pub(super) fn call(name: &str, arguments: &[Value]) -> Option<Returned> {
    Some(match (name, arguments) {
        ("cidrhost", [prefix, host]) => cidrhost(prefix, host),
        ("cidrnetmask", [prefix]) => {
            Network::of(prefix).map(|network| network.address(network.mask()).to_string().into())
        }
        ("cidrsubnet", [prefix, bits, number]) => cidrsubnet(prefix, bits, number),
        ("cidrsubnets", [prefix, bits @ ..]) => cidrsubnets(prefix, bits),
        ("cidrhost", _) => count("2 arguments", arguments),
        ("cidrnetmask", _) => count("1 argument", arguments),
        ("cidrsubnet", _) => count("3 arguments", arguments),
        ("cidrsubnets", _) => count("at least 1 argument", arguments),
        _ => return None,
    })
}

/// A network whose addresses are numbers.
#[derive(Clone, Copy)]
struct Network {
    base: u128,
    prefix: u32,
    /// Bits of an address.
    width: u32,
}

impl Network {
    fn of(text: &Value) -> Result<Self, String> {
        let text = text.text()?;
        let network: IpNet = text
            .parse()
            .map_err(|_| format!("invalid CIDR expression: invalid CIDR address: {text}"))?;
        let (base, width) = match network.trunc().addr() {
            IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
            IpAddr::V6(address) => (address.to_bits(), 128),
        };
        Ok(Self {
            base,
            prefix: u32::from(network.prefix_len()),
            width,
        })
    }

    /// Returns the number of its last address, counted from the first.
    fn last(self) -> u128 {
        low_bits(self.width - self.prefix)
    }

    fn mask(self) -> u128 {
        low_bits(self.width) & !self.last()
    }

    fn address(self, number: u128) -> IpAddr {
        match u32::try_from(number) {
            Ok(number) if self.width == 32 => Ipv4Addr::from_bits(number).into(),
            _ => Ipv6Addr::from_bits(number).into(),
        }
    }

    fn text(self) -> String {
        format!("{}/{}", self.address(self.base), self.prefix)
    }
}

/// Returns a number whose lowest bits are set.
fn low_bits(count: u32) -> u128 {
    match count {
        0 => 0,
        count => u128::MAX >> (128 - count.min(128)),
    }
}

fn cidrhost(prefix: &Value, host: &Value) -> Returned {
    let network = Network::of(prefix)?;
    let number = integer(host)?;
    // A negative one is counted from the end.
    let distance = match number {
        0.. => u128::from(number.unsigned_abs()),
        _ => u128::from(number.unsigned_abs()) - 1,
    };
    if distance > network.last() {
        return Err(format!(
            "prefix of {} does not accommodate a host numbered {number}",
            network.prefix
        ));
    }
    let host = match number {
        0.. => distance,
        _ => network.last() - distance,
    };
    Ok(network.address(network.base | host).to_string().into())
}

/// Returns the number of bits that a prefix is extended by.
fn extension(bits: &Value) -> Result<u32, String> {
    let bits = integer(bits)?;
    if bits > MAX_BITS {
        return Err(format!(
            "may not extend prefix by more than {MAX_BITS} bits"
        ));
    }
    u32::try_from(bits).map_err(|_| "must extend prefix by at least one bit".into())
}

fn cidrsubnet(prefix: &Value, bits: &Value, number: &Value) -> Returned {
    let network = Network::of(prefix)?;
    let bits = extension(bits)?;
    let prefix = network.prefix + bits;
    if prefix > network.width {
        return Err(format!(
            "insufficient address space to extend prefix of {} by {bits}",
            network.prefix
        ));
    }
    let number = integer(number)?;
    let wrong =
        || format!("prefix extension of {bits} does not accommodate a subnet numbered {number}");
    let number = u128::try_from(number).map_err(|_| wrong())?;
    if number > low_bits(bits) {
        return Err(wrong());
    }
    // All addresses are those of one network.
    let number = number.checked_shl(network.width - prefix).unwrap_or(0);
    let base = network.base | number;
    let subnet = Network {
        base,
        prefix,
        ..network
    };
    Ok(subnet.text().into())
}

/// Returns networks that follow each other.
fn cidrsubnets(prefix: &Value, all: &[Value]) -> Returned {
    let network = Network::of(prefix)?;
    let mut found: Vec<Value> = Vec::new();
    // The first address that is free; `None` after the last one of all.
    let mut free = Some(network.base);
    for bits in all {
        let bits = extension(bits)?;
        if bits == 0 {
            return Err("must extend prefix by at least one bit".into());
        }
        let prefix = network.prefix + bits;
        if prefix > network.width {
            let version = if network.width == 32 { 4 } else { 6 };
            return Err(format!(
                "would extend prefix to {prefix} bits, which is too long for an IPv{version} address"
            ));
        }
        let last = low_bits(network.width - prefix);
        let base = free.and_then(|free| Some(free.checked_add(last)? & !last));
        let end = network.base | network.last();
        let Some(base) = base.filter(|base| *base <= end) else {
            return Err(format!(
                "not enough remaining address space for a subnet with a prefix of {prefix} bits"
            ));
        };
        free = base.checked_add(last).and_then(|last| last.checked_add(1));
        let subnet = Network {
            base,
            prefix,
            ..network
        };
        found.push(subnet.text().into());
    }
    bounded_list(found)
}
