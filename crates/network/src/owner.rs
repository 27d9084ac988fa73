//! Finds the process that uses a port, from `/proc/net/*`, for error messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use whelk_sys::fs;

use crate::port::Protocol;

/// Returns the process that listens on a TCP port or is bound to a UDP port, as "process PID
/// (name)". TCP sockets in other states, such as `TIME_WAIT`, do not count.
pub(crate) fn of_port(protocol: Protocol, at: SocketAddr) -> Option<String> {
    let inode = inode_of(protocol, at)?;
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let process = process_with(&inode).map(|pid| format!("process {pid} ({})", name(pid).trim()));
    Some(process.unwrap_or_else(|| "a process of another namespace".into()))
}

/// Returns whether such a socket exists, without searching for its process.
pub(crate) fn is_taken(protocol: Protocol, at: SocketAddr) -> bool {
    inode_of(protocol, at).is_some()
}

fn inode_of(protocol: Protocol, at: SocketAddr) -> Option<String> {
    let files: &[&str] = match protocol {
        Protocol::Tcp => &["/proc/net/tcp", "/proc/net/tcp6"],
        Protocol::Udp => &["/proc/net/udp", "/proc/net/udp6"],
        Protocol::Sctp => return None,
    };
    files.iter().find_map(|file| {
        let table = fs::read_to_string(file).ok()?;
        table
            .lines()
            .skip(1)
            .find_map(|line| socket_at(line, protocol, at))
    })
}

/// Returns the inode of the socket in a line of `/proc/net/tcp` or `/proc/net/udp` if that socket
/// conflicts with `at`.
fn socket_at(line: &str, protocol: Protocol, at: SocketAddr) -> Option<String> {
    const LISTEN: &str = "0A";
    let mut fields = line.split_whitespace();
    let local = parse_address(fields.nth(1)?)?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    let conflicts = local.port() == at.port()
        && (local.ip().is_unspecified() || at.ip().is_unspecified() || local.ip() == at.ip())
        && (protocol != Protocol::Tcp || state == LISTEN);
    conflicts.then(|| inode.to_owned())
}

/// Parses `0100007F:1F90`: 32-bit words in host byte order, then the port.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let words: Option<Vec<[u8; 4]>> = (0..address.len() / 8)
        .map(|index| {
            u32::from_str_radix(address.get(index * 8..index * 8 + 8)?, 16)
                .ok()
                .map(u32::to_ne_bytes)
        })
        .collect();
    let bytes = words?.concat();
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(bytes) => IpAddr::V4(Ipv4Addr::from(bytes)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?)),
    };
    Some(SocketAddr::new(ip, port))
}

fn process_with(inode: &str) -> Option<u32> {
    let wanted = format!("socket:[{inode}]");
    for process in fs::list("/proc").ok()? {
        let Some(pid) = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(descriptors) = fs::list(process.path().join("fd")) else {
            continue;
        };
        if descriptors.iter().any(|fd| {
            fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str())
        }) {
            return Some(pid);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_conflicting_sockets_in_proc_net_tcp() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0";
        let at = |text: &str| text.parse().unwrap();
        assert_eq!(
            socket_at(line, Protocol::Tcp, at("127.0.0.1:8080")).as_deref(),
            Some("4711")
        );
        assert_eq!(
            socket_at(line, Protocol::Tcp, at("0.0.0.0:8080")).as_deref(),
            Some("4711")
        );
        assert_eq!(socket_at(line, Protocol::Tcp, at("127.0.0.1:8081")), None);
        assert_eq!(socket_at(line, Protocol::Tcp, at("10.0.0.1:8080")), None);
        assert_eq!(
            socket_at("garbage", Protocol::Tcp, at("10.0.0.1:8080")),
            None
        );
    }
}
