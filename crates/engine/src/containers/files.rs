//! The small files that a container gets from the engine: names and resolvers.
//!
//! They are the container's to edit. At a start they are written anew, but for `hostname`; while it
//! runs, the engine changes only lines of `hosts` that are its own, and a `resolv.conf` that is as
//! the engine left it.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use whelk_sys::fs;

use super::{Container, Containers};
use crate::error::Result;
use crate::model::{Config, Record};
use crate::networks::resolv_conf::{self, Asks, Overrides};
use crate::networks::{
    Endpoint, NetworkDefaults, host_resolver, lacks_ipv6, resolved_servers, uses_resolver,
};

/// Host files are small; a larger one is not what it should be.
const LARGEST: u64 = 1 << 20;

const HOSTS: &str = "hosts";
const RESOLV_CONF: &str = "resolv.conf";

/// Writes `hostname`, `hosts` and `resolv.conf` into the container's directory. A `hostname` that
/// is there already stays as it is: the container may have edited it. The others depend on what its
/// networks gave it this time.
pub(super) fn write(
    container: &Container,
    directory: &Path,
    record: &Record,
    containers: &Containers,
) -> Result<()> {
    if record.host.network_mode.starts_with("container:") {
        // It mounts those of the container whose network it shares.
        return Ok(());
    }
    let hostname = directory.join("hostname");
    if !fs::exists(&hostname) {
        write_file(&hostname, format!("{}\n", record.config.hostname))?;
    }
    write_file(
        &directory.join(HOSTS),
        hosts(record, &links(record, containers), containers),
    )?;
    let resolver = resolv_conf(record, &containers.instance.networks);
    write_file(&directory.join(RESOLV_CONF), &resolver)?;
    *container.resolver_file() = resolver;
    Ok(())
}

/// What takes the place of layers that an image does not have.
pub(super) fn empty_directory(directory: &Path) -> Result<PathBuf> {
    let empty = directory.join("empty");
    fs::create_dir_all(&empty, 0o755)?;
    Ok(empty)
}

fn write_file(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    Ok(fs::write(path, content).and_then(|()| fs::set_mode(path, 0o644))?)
}

/// Brings the files of a running container up to date, whose record was `before` and whose links
/// were `linked`: its networks have changed, its links, or where they lead.
pub(super) fn update(
    container: &Container,
    before: &Record,
    linked: &[Link],
    containers: &Containers,
) -> Result<()> {
    let record = container.record().clone();
    let directory = containers.instance.container_dir(&record.id);
    let path = directory.join(HOSTS);
    // One that is too large by now is not the engine's to understand.
    if let Ok(current) = fs::read_at_most(&path, LARGEST) {
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
        // Of an engine before this one.
        *written = resolv_conf(before, &containers.instance.networks);
    }
    if *written != resolver
        && fs::read_at_most(&path, LARGEST).is_ok_and(|current| current == written.as_bytes())
    {
        fs::write(&path, &resolver)?;
        *written = resolver;
    }
    Ok(())
}

/// A container that another one has linked, as `hosts` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    names: Vec<String>,
    addresses: Vec<IpAddr>,
}

/// The links of a container. On the default network they are the only names there are.
pub(super) fn links(record: &Record, containers: &Containers) -> Vec<Link> {
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

/// The lines of `hosts` that change while a container runs.
#[derive(Debug, Default)]
struct Lines {
    /// Of the container itself.
    own: Vec<String>,
    links: Vec<String>,
    /// Alias and host name of each link: lines with these are of links, whatever address or further
    /// name they have.
    linked: Vec<[String; 2]>,
}

impl Lines {
    fn of(record: &Record, links: &[Link]) -> Self {
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

/// Changes the engine's lines in a `hosts` that may have been edited; all others stay as they are,
/// bytes that are no text as well.
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

/// The names of a container for itself: all of it, and the part before the first dot.
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

fn hosts(record: &Record, links: &[Link], containers: &Containers) -> String {
    let host = &record.host;
    let mut text = if host.network_mode == "host" {
        fs::read_at_most("/etc/hosts", LARGEST)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    } else {
        "127.0.0.1\tlocalhost\n".to_owned()
    };
    if host.network_mode != "host" && !lacks_ipv6(host) {
        text += "::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";
    }
    for entry in host.extra_hosts.iter().flatten() {
        // `name:address`, or `name=address`; the address itself may have colons.
        if let Some((name, address)) = entry.split_once(['=', ':']) {
            let address = if address == "host-gateway" {
                containers.networks.host_gateway()
            } else {
                address.trim_matches(['[', ']']).to_owned()
            };
            let _ = writeln!(text, "{address}\t{name}");
        }
    }
    let lines = Lines::of(record, links);
    for line in lines.links.iter().chain(&lines.own) {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn resolv_conf(record: &Record, defaults: &NetworkDefaults) -> String {
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
    let asks = match host.network_mode.as_str() {
        "host" => Asks::AsHost,
        _ if uses_resolver(record) => Asks::Engine,
        _ => Asks::Directly {
            ipv6: record
                .networks
                .values()
                .any(|endpoint| !endpoint.global_ipv6_address.is_empty()),
        },
    };
    resolv_conf::generate(host_resolver(), resolved_servers, overrides, asks)
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
    fn only_own_lines_of_hosts_change() {
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
    fn links_are_followed_by_their_names() {
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
        // Its address has changed while nobody looked.
        check(
            "10.0.0.3\tdb 0123 target\n",
            &new,
            &new,
            "10.0.0.9\tdb 0123 renamed\n",
        );
    }

    #[test]
    fn a_host_name_with_dots_is_found_by_its_first_part_too() {
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
