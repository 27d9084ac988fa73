//! The small files that a container gets from the engine: names and resolvers.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use whelk_network::names::RESOLVER;
use whelk_sys::fs;

use super::Containers;
use crate::error::Result;
use crate::model::Record;
use crate::networks::{Endpoint, NetworkDefaults, has_own_networks, host_servers, resolved_servers, uses_resolver};

/// Host files are small; a larger one is not what it should be.
const LARGEST: u64 = 1 << 20;

/// Writes `hostname`, `hosts` and `resolv.conf` into the container's directory. A `hostname` that is there already stays
/// as it is: the container may have edited it. The others depend on what its networks gave it this time.
pub(super) fn write(directory: &Path, record: &Record, containers: &Containers) -> Result<()> {
    let hostname = directory.join("hostname");
    if !fs::exists(&hostname) {
        write_file(&hostname, format!("{}\n", record.config.hostname))?;
    }
    write_names(directory, record, containers)
}

/// What takes the place of layers that an image does not have.
pub(super) fn empty_directory(directory: &Path) -> Result<PathBuf> {
    let empty = directory.join("empty");
    fs::create_dir_all(&empty, 0o755)?;
    Ok(empty)
}

fn write_file(path: &Path, content: String) -> Result<()> {
    Ok(fs::write(path, content).and_then(|()| fs::set_mode(path, 0o644))?)
}

/// Writes `hosts` and `resolv.conf` anew: also into a running container, whose mounts these files are.
pub(super) fn write_names(directory: &Path, record: &Record, containers: &Containers) -> Result<()> {
    write_file(&directory.join("hosts"), hosts(record, containers))?;
    write_file(&directory.join("resolv.conf"), resolv_conf(record, &containers.instance.networks))
}

fn hosts(record: &Record, containers: &Containers) -> String {
    let (config, host) = (&record.config, &record.host);
    let mut text = if host.network_mode == "host" {
        fs::read_at_most("/etc/hosts", LARGEST).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    } else {
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n".to_owned()
    };
    for entry in host.extra_hosts.iter().flatten() {
        // `name:address`, or `name=address`; the address itself may have colons.
        if let Some((name, address)) = entry.split_once(['=', ':']) {
            let address =
                if address == "host-gateway" { containers.networks.host_gateway() } else { address.trim_matches(['[', ']']).to_owned() };
            let _ = writeln!(text, "{address}\t{name}");
        }
    }
    // On the default network links are the only names there are.
    let links = if record.networks.contains_key("bridge") { containers.links_of(record) } else { Vec::new() };
    for (target, alias) in links {
        let target = target.record();
        for address in target.networks.get("bridge").map(Endpoint::addresses).unwrap_or_default() {
            let mut names = vec![alias.as_str(), &target.config.hostname];
            names.extend(Some(target.name.as_str()).filter(|name| *name != alias));
            let _ = writeln!(text, "{address}\t{}", names.join(" "));
        }
    }
    let domain = if config.domainname.is_empty() { String::new() } else { format!("{}.{} ", config.hostname, config.domainname) };
    for address in record.networks.values().flat_map(Endpoint::addresses) {
        let _ = writeln!(text, "{address}\t{domain}{}", config.hostname);
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

fn resolv_conf(record: &Record, defaults: &NetworkDefaults) -> String {
    let host = &record.host;
    let base = fs::read_at_most("/etc/resolv.conf", LARGEST).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let given = |list: &Option<Vec<String>>, set: &[String]| {
        Some(list.clone().filter(|list| !list.is_empty()).unwrap_or_else(|| set.to_vec())).filter(|list| !list.is_empty())
    };
    let servers: Vec<String> = defaults.servers.iter().map(ToString::to_string).collect();
    let (servers, search, options) =
        (given(&host.dns, &servers), given(&host.dns_search, &defaults.search), given(&host.dns_options, &defaults.resolver_options));
    let (servers, options) = if uses_resolver(record) {
        // Ours; it asks the others. Without dots a name is one of a network's first, so no search list goes before.
        let mut options = options.unwrap_or_default();
        if !options.iter().any(|option| option.starts_with("ndots:")) {
            options.push("ndots:0".into());
        }
        (Some(vec![RESOLVER.to_string()]), Some(options))
    } else if servers.is_none() && has_own_networks(&host.network_mode) {
        (reachable(&base), options)
    } else {
        (servers, options)
    };
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

/// The host's resolvers that can be reached from a container, where not all can: one on the host's own loopback cannot.
fn reachable(base: &str) -> Option<Vec<String>> {
    let servers = host_servers();
    let (local, others): (Vec<_>, Vec<_>) = servers.into_iter().partition(std::net::IpAddr::is_loopback);
    if local.is_empty() && (!others.is_empty() || base.is_empty()) {
        return None;
    }
    if others.is_empty() {
        let behind = resolved_servers();
        if !behind.is_empty() {
            return Some(behind.iter().map(ToString::to_string).collect());
        }
        // As Docker does: somebody has to answer.
        return Some(vec!["8.8.8.8".into(), "8.8.4.4".into()]);
    }
    Some(others.iter().map(ToString::to_string).collect())
}
