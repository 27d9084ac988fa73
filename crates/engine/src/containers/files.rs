//! The files for name resolution that the engine generates for a container: `hostname`, `hosts` and
//! `resolv.conf`.
//!
//! The container may edit them. A start rewrites them, except `hostname`. While the container runs,
//! the engine changes only its own lines of `hosts`, and `resolv.conf` only if it was not edited.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use whelk_sys::fs;
use whelk_text::extra_host;

use super::sandbox::lacks_ipv6;
use super::{Container, Containers};
use crate::error::Result;
use crate::model::{Config, ContainerRecord, NetworkMode};
use crate::networks::resolv_conf::{self, Overrides, ResolverMode};
use crate::networks::{Endpoint, NetworkDefaults, host_resolver, resolved_servers, uses_resolver};

/// Maximum size of these files that the engine reads, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// The mode that they are created with: all users of the container read them. The engine sets its
/// umask, so that none of these bits is missing.
pub(super) const MODE: u32 = 0o644;

const HOSTS: &str = "hosts";
const RESOLV_CONF: &str = "resolv.conf";

/// Writes `hostname`, `hosts` and `resolv.conf` to the container's directory. An existing
/// `hostname` is kept, because the container may have edited it. The others depend on the addresses
/// of this run.
pub(super) fn write(
    container: &Container,
    directory: &Path,
    record: &ContainerRecord,
    containers: &Containers,
) -> Result<()> {
    if record.host.network_mode.container().is_some() {
        // It mounts the files of the container whose network it shares.
        return Ok(());
    }
    let hostname = format!("{}\n", record.config.hostname);
    fs::write_new(directory.join("hostname"), hostname, MODE)?;
    let hosts = hosts(record, &links(record, containers), containers);
    fs::write_with_mode(directory.join(HOSTS), hosts, MODE)?;
    let resolver = resolv_conf(record, &containers.instance.networks);
    fs::write_with_mode(directory.join(RESOLV_CONF), &resolver, MODE)?;
    *container.resolver_file() = resolver;
    Ok(())
}

/// Creates an empty directory, which is used as a layer where an image has none.
pub(super) fn empty_directory(directory: &Path) -> Result<PathBuf> {
    let empty = directory.join("empty");
    fs::create_dir_all(&empty, 0o755)?;
    Ok(empty)
}

/// Updates the files of a running container after a change of its networks or links. `before` and
/// `linked` are its record and links before the change.
pub(super) fn update(
    container: &Container,
    before: &ContainerRecord,
    linked: &[Link],
    containers: &Containers,
) -> Result<()> {
    let record = container.record().clone();
    let directory = containers.instance.container_dir(&record.id);
    let path = directory.join(HOSTS);
    // A file that the container has made too large is left unchanged.
    if let Ok(current) = fs::read_at_most(&path, MAX_SIZE) {
        let (before, after) = (
            Lines::of(before, linked),
            Lines::of(&record, &links(&record, containers)),
        );
        let changed = rewrite(&current, &before, &after);
        if changed != current {
            fs::write(&path, changed)?;
        }
    }
    let path = directory.join(RESOLV_CONF);
    let resolver = resolv_conf(&record, &containers.instance.networks);
    let mut written = container.resolver_file();
    if written.is_empty() {
        // Written by an earlier engine process.
        *written = resolv_conf(before, &containers.instance.networks);
    }
    if *written != resolver
        && fs::read_at_most(&path, MAX_SIZE).is_ok_and(|current| current == written.as_bytes())
    {
        fs::write(&path, &resolver)?;
        *written = resolver;
    }
    Ok(())
}

/// A linked container, as `hosts` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    names: Vec<String>,
    addresses: Vec<IpAddr>,
}

/// Returns a container's links on the default network, which has no other name resolution.
pub(super) fn links(record: &ContainerRecord, containers: &Containers) -> Vec<Link> {
    if !record.networks.contains_key("bridge") {
        return Vec::new();
    }
    let link = |(target, alias): (std::sync::Arc<Container>, String)| {
        let target = target.record();
        let mut names = vec![alias, target.config.hostname.clone()];
        names.extend(Some(target.name.clone()).filter(|name| *name != names[0]));
        Link {
            names,
            addresses: target
                .networks
                .get("bridge")
                .map(Endpoint::addresses)
                .unwrap_or_default(),
        }
    };
    containers.links_of(record).into_iter().map(link).collect()
}

/// The lines of `hosts` that the engine updates while a container runs.
#[derive(Debug, Default)]
struct Lines {
    /// Lines of the container's own addresses.
    own: Vec<String>,
    links: Vec<String>,
    /// Alias and host name of each link. A line whose first two names are these belongs to a link,
    /// whatever its address and further names.
    linked: Vec<[String; 2]>,
}

impl Lines {
    fn of(record: &ContainerRecord, links: &[Link]) -> Self {
        let names = own_names(&record.config);
        let lines = |link: &Link| {
            link.addresses
                .iter()
                .map(|address| format!("{address}\t{}", link.names.join(" ")))
                .collect::<Vec<_>>()
        };
        Self {
            own: record
                .networks
                .values()
                .flat_map(Endpoint::addresses)
                .map(|address| format!("{address}\t{names}"))
                .collect(),
            links: links.iter().flat_map(lines).collect(),
            linked: links
                .iter()
                .filter_map(|link| Some([link.names.first()?.clone(), link.names.get(1)?.clone()]))
                .collect(),
        }
    }
}

/// Updates the engine's lines in a `hosts` that may have been edited. All other lines are kept,
/// even if they are not UTF-8.
fn rewrite(current: &[u8], before: &Lines, after: &Lines) -> Vec<u8> {
    let is_link = |line: &[u8]| {
        let text = String::from_utf8_lossy(line);
        let names: Vec<&str> = text.split_whitespace().skip(1).take(2).collect();
        before.linked.iter().any(|link| names == *link)
    };
    let has = |lines: &[String], line: &[u8]| lines.iter().any(|known| known.as_bytes() == line);
    let mut fresh: Vec<&String> = after
        .own
        .iter()
        .filter(|line| !before.own.contains(line))
        .chain(&after.links)
        .collect();
    let mut text = Vec::with_capacity(current.len());
    for line in current.split_inclusive(|byte| *byte == b'\n') {
        let plain = line.strip_suffix(b"\n").unwrap_or(line);
        let stays = has(&after.own, plain) || has(&after.links, plain);
        if stays || !(has(&before.own, plain) || is_link(plain)) {
            text.extend_from_slice(line);
            fresh.retain(|known| known.as_bytes() != plain);
        }
    }
    if !fresh.is_empty() && text.last().is_some_and(|last| *last != b'\n') {
        text.push(b'\n');
    }
    for line in fresh {
        text.extend_from_slice(line.as_bytes());
        text.push(b'\n');
    }
    text
}

/// Returns a container's names in its own lines: the fully qualified name, and the part before the
/// first dot.
fn own_names(config: &Config) -> String {
    let full = if config.domainname.is_empty() {
        config.hostname.clone()
    } else {
        format!("{}.{}", config.hostname, config.domainname)
    };
    match full.split_once('.') {
        Some((short, _)) if !short.is_empty() => format!("{full} {short}"),
        _ => full,
    }
}

/// Generates the content of `hosts`.
pub(super) fn hosts(record: &ContainerRecord, links: &[Link], containers: &Containers) -> String {
    let host = &record.host;
    let mut text = if host.network_mode == NetworkMode::Host {
        fs::read_at_most("/etc/hosts", MAX_SIZE)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    } else {
        "127.0.0.1\tlocalhost\n".to_owned()
    };
    if host.network_mode != NetworkMode::Host && !lacks_ipv6(host) {
        text += "::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";
    }
    for entry in host.extra_hosts.iter().flatten() {
        if let Some((name, address)) = extra_host::split(entry) {
            let host = || containers.networks.host_gateway();
            for address in extra_host::addresses(address, host) {
                let _ = writeln!(text, "{address}\t{name}");
            }
        }
    }
    let lines = Lines::of(record, links);
    for line in lines.links.iter().chain(&lines.own) {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// Generates the content of `resolv.conf`.
pub(super) fn resolv_conf(record: &ContainerRecord, defaults: &NetworkDefaults) -> String {
    let host = &record.host;
    let given = |list: &Option<Vec<String>>, set: &[String]| {
        Some(
            list.clone()
                .filter(|list| !list.is_empty())
                .unwrap_or_else(|| set.to_vec()),
        )
        .filter(|list| !list.is_empty())
    };
    let servers: Vec<String> = defaults.servers.iter().map(ToString::to_string).collect();
    let overrides = Overrides {
        servers: given(&host.dns, &servers),
        search: given(&host.dns_search, &defaults.search),
        options: given(&host.dns_options, &defaults.resolver_options),
    };
    let mode = match host.network_mode {
        NetworkMode::Host => ResolverMode::AsHost,
        _ if uses_resolver(&host.network_mode, &record.networks) => ResolverMode::Engine,
        _ => ResolverMode::Directly {
            ipv6: record.networks.values().any(
                |endpoint| matches!(&endpoint.assigned, Some(assigned) if assigned.ipv6.is_some()),
            ),
        },
    };
    resolv_conf::generate(host_resolver(), resolved_servers, overrides, mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(own: &[&str], links: &[&str]) -> Lines {
        let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let key = |line: &&str| {
            let mut names = line.split_whitespace().skip(1).map(str::to_owned);
            [
                names.next().unwrap_or_default(),
                names.next().unwrap_or_default(),
            ]
        };
        Lines {
            own: texts(own),
            links: texts(links),
            linked: links.iter().map(key).collect(),
        }
    }

    fn check(current: &str, before: &Lines, after: &Lines, expected: &str) {
        assert_eq!(
            String::from_utf8_lossy(&rewrite(current.as_bytes(), before, after)),
            expected,
            "{current:?}"
        );
    }

    #[test]
    fn keeps_edited_lines_of_hosts() {
        let (one, two) = (
            lines(&["10.0.0.2\tme"], &[]),
            lines(&["10.0.0.2\tme", "10.1.0.2\tme"], &[]),
        );
        check(
            "10.0.0.2\tme\n1.2.3.4 mine",
            &one,
            &two,
            "10.0.0.2\tme\n1.2.3.4 mine\n10.1.0.2\tme\n",
        );
        check(
            "10.0.0.2\tme\n10.1.0.2\tme\n1.2.3.4 me\n",
            &two,
            &one,
            "10.0.0.2\tme\n1.2.3.4 me\n",
        );
        // A line that somebody has deleted or commented out is not added again.
        check("1.2.3.4 mine", &one, &one, "1.2.3.4 mine");
        check("# 10.1.0.2\tme\n", &two, &one, "# 10.1.0.2\tme\n");
        assert_eq!(
            rewrite(b"\xff\xfe x\n", &one, &two),
            b"\xff\xfe x\n10.1.0.2\tme\n"
        );
    }

    #[test]
    fn updates_a_links_line_by_its_names() {
        let old = lines(&["10.0.0.2\tme"], &["10.0.0.3\tdb 0123 target"]);
        let new = lines(&["10.0.0.2\tme"], &["10.0.0.9\tdb 0123 renamed"]);
        check(
            "10.0.0.3\tdb 0123 target\n5.6.7.8\tdb\n10.0.0.2\tme\n",
            &old,
            &new,
            "5.6.7.8\tdb\n10.0.0.2\tme\n10.0.0.9\tdb 0123 renamed\n",
        );
        check(
            "10.0.0.3\tdb 0123 target\nx\n",
            &old,
            &lines(&[], &[]),
            "x\n",
        );
        check(
            "10.0.0.3\tdb 0123 target\nx\n",
            &old,
            &old,
            "10.0.0.3\tdb 0123 target\nx\n",
        );
        // The address has changed while no engine ran.
        check(
            "10.0.0.3\tdb 0123 target\n",
            &new,
            &new,
            "10.0.0.9\tdb 0123 renamed\n",
        );
    }

    #[test]
    fn a_host_name_with_dots_has_its_first_label_as_alias() {
        let names = |hostname: &str, domainname: &str| {
            own_names(&Config {
                hostname: hostname.into(),
                domainname: domainname.into(),
                ..Config::default()
            })
        };
        assert_eq!(names("a", ""), "a");
        assert_eq!(names("a.b.example", ""), "a.b.example a");
        assert_eq!(names("a", "b.example"), "a.b.example a");
        assert_eq!(names("a.b", "c.d"), "a.b.c.d a");
        assert_eq!(names(".x", ""), ".x");
    }
}
