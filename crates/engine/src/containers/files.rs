//! The small files that a container gets from the engine: names and resolvers.

use std::fmt::Write;
use std::path::Path;

use whelk_sys::fs;

use crate::error::Result;
use crate::model::{Config, HostConfig};

/// Host files are small; a larger one is not what it should be.
const LARGEST: u64 = 1 << 20;

/// Writes `hostname`, `hosts` and `resolv.conf` into the container's directory. Files that are there already stay as
/// they are: the container may have edited them.
pub(super) fn write(directory: &Path, config: &Config, host: &HostConfig) -> Result<()> {
    let write = |name: &str, content: String| {
        let path = directory.join(name);
        if fs::exists(&path) { Ok(()) } else { fs::write(&path, content).and_then(|()| fs::set_mode(&path, 0o644)) }
    };
    write("hostname", format!("{}\n", config.hostname))?;
    write("hosts", hosts(config, host))?;
    write("resolv.conf", resolv_conf(host))?;
    Ok(())
}

fn hosts(config: &Config, host: &HostConfig) -> String {
    let mut text = if host.network_mode == "host" {
        fs::read_at_most("/etc/hosts", LARGEST).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    } else {
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n".to_owned()
    };
    for entry in host.extra_hosts.iter().flatten() {
        // `name:address`, or `name=address`; the address itself may have colons.
        if let Some((name, address)) = entry.split_once(['=', ':']) {
            let address = if address == "host-gateway" { "127.0.0.1" } else { address.trim_matches(['[', ']']) };
            let _ = writeln!(text, "{address}\t{name}");
        }
    }
    if host.network_mode == "none" {
        let _ = writeln!(
            text,
            "127.0.1.1\t{}{}",
            config.hostname,
            if config.domainname.is_empty() { String::new() } else { format!(".{}", config.domainname) }
        );
    }
    text
}

fn resolv_conf(host: &HostConfig) -> String {
    let base = fs::read_at_most("/etc/resolv.conf", LARGEST).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let given = |list: &Option<Vec<String>>| list.clone().filter(|list| !list.is_empty());
    let (servers, search, options) = (given(&host.dns), given(&host.dns_search), given(&host.dns_options));
    if servers.is_none() && search.is_none() && options.is_none() {
        return base;
    }
    let keeps = |line: &&str| match line.split_whitespace().next() {
        Some("nameserver") => servers.is_none(),
        Some("search" | "domain") => search.is_none(),
        Some("options") => options.is_none(),
        _ => true,
    };
    let mut text: String = base.lines().filter(keeps).map(|line| format!("{line}\n")).collect();
    for server in servers.iter().flatten() {
        let _ = writeln!(text, "nameserver {server}");
    }
    // A single dot asks for no search list at all.
    if let Some(search) = search.filter(|search| search != &["."]) {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    if let Some(options) = options {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}
