//! Generates a container's resolver configuration (resolv.conf(5)) from the host's, in Docker's
//! format. Pure.
//!
//! Programs read the comments: `ExtServers` are the servers that 127.0.0.11 forwards to, with
//! `host(…)` around those from the host's file.

use std::fmt::Write;
use std::net::IpAddr;

use whelk_network::dns_sockets::RESOLVER;

/// The content of a `resolv.conf` file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    pub(crate) servers: Vec<NameServer>,
    invalid: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
    /// Lines with other directives, unchanged.
    other: Vec<String>,
}

/// A name server; the zone is the interface of a link-local address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NameServer {
    pub(crate) address: IpAddr,
    pub(crate) zone: String,
}

impl std::fmt::Display for NameServer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { address, zone } = self;
        if zone.is_empty() {
            write!(formatter, "{address}")
        } else {
            write!(formatter, "{address}%{zone}")
        }
    }
}

impl NameServer {
    fn parse(text: &str) -> Option<Self> {
        let (address, zone) = text.split_once('%').unwrap_or((text, ""));
        let address: IpAddr = address.parse().ok()?;
        (zone.is_empty() || address.is_ipv6()).then(|| Self {
            address,
            zone: zone.to_owned(),
        })
    }
}

impl ResolvConf {
    /// Parses a file. Text after a directive's arguments is ignored, in particular comments.
    pub(crate) fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let Some(directive) = words.next().filter(|word| !word.starts_with(['#', ';'])) else {
                continue;
            };
            match (directive, words.next()) {
                ("nameserver", Some(server)) => match NameServer::parse(server) {
                    Some(server) => found.servers.push(server),
                    None => found.invalid.push(server.to_owned()),
                },
                // The last one is effective.
                ("search" | "domain", Some(first)) => {
                    found.search = std::iter::once(first)
                        .chain(words)
                        .map(str::to_owned)
                        .collect()
                }
                ("options", Some(first)) => found
                    .options
                    .extend(std::iter::once(first).chain(words).map(str::to_owned)),
                ("nameserver" | "search" | "domain" | "options", None) => {}
                _ => found.other.push(line.to_owned()),
            }
        }
        found
    }
}

/// Settings that replace the host's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) servers: Option<Vec<String>>,
    /// A single dot means no search list.
    pub(crate) search: Option<Vec<String>>,
    pub(crate) options: Option<Vec<String>>,
}

/// How a container resolves names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResolverMode {
    /// Like the host: it shares the host's network.
    AsHost,
    /// It queries the host's servers, those that can be reached from its own network.
    Directly { ipv6: bool },
    /// It queries the embedded DNS server at 127.0.0.11.
    Engine,
}

/// The source of a container's name servers.
enum Source {
    Host,
    /// The upstream servers of systemd-resolved: the host's file lists only 127.0.0.53.
    Resolved,
    /// Docker's defaults: the host names no server that a container can reach.
    Defaults,
}

/// Selects the name servers that a container can ask by itself: none on the host's loopback, and
/// IPv6 ones only if it has IPv6.
fn reachable_servers(
    servers: &[NameServer],
    resolved: impl FnOnce() -> Vec<NameServer>,
    ipv6: bool,
) -> (Vec<String>, Source) {
    const DEFAULTS: [&str; 4] = [
        "8.8.8.8",
        "8.8.4.4",
        "2001:4860:4860::8888",
        "2001:4860:4860::8844",
    ];
    let reachable = |servers: &[NameServer]| -> Vec<String> {
        let is_reachable = |server: &&NameServer| {
            !server.address.is_loopback()
                && server.zone.is_empty()
                && (ipv6 || server.address.is_ipv4())
        };
        servers
            .iter()
            .filter(is_reachable)
            .map(ToString::to_string)
            .collect()
    };
    let (found, source) = if servers.iter().all(|server| server.address.is_loopback()) {
        (reachable(&resolved()), Source::Resolved)
    } else {
        (reachable(servers), Source::Host)
    };
    if !found.is_empty() {
        return (found, source);
    }
    let defaults = DEFAULTS
        .into_iter()
        .filter(|address| ipv6 || !address.contains(':'));
    (defaults.map(str::to_owned).collect(), Source::Defaults)
}

/// Returns the content of a container's file. `resolved` returns the upstream servers of
/// systemd-resolved.
pub(crate) fn generate(
    host: ResolvConf,
    resolved: impl FnOnce() -> Vec<NameServer>,
    overrides: Overrides,
    mode: ResolverMode,
) -> String {
    let overridden: Vec<&str> = [
        ("nameservers", overrides.servers.is_some()),
        ("search", overrides.search.is_some()),
        ("options", overrides.options.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, given)| given.then_some(name))
    .collect();
    let has_ndots = |options: &[String]| options.iter().any(|option| option.starts_with("ndots:"));
    let mut ndots_from = match &overrides.options {
        Some(options) if has_ndots(options) => "override",
        None if has_ndots(&host.options) => "host",
        _ => "",
    };
    let (search, mut options) = (
        overrides.search.unwrap_or(host.search),
        overrides.options.unwrap_or(host.options),
    );
    let mut path = "/etc/resolv.conf";
    let mut notes = String::new();
    let servers: Vec<String> = match (mode, overrides.servers) {
        (ResolverMode::Engine, given) => {
            let behind = given.unwrap_or_else(|| {
                host.servers
                    .iter()
                    .map(|server| format!("host({server})"))
                    .collect()
            });
            if !behind.is_empty() {
                let _ = writeln!(notes, "# ExtServers: [{}]", behind.join(" "));
            }
            // With `ndots:0`, single-label names are queried as they are first, before the search
            // list.
            if !has_ndots(&options) {
                options.push("ndots:0".into());
                ndots_from = "internal";
            }
            vec![RESOLVER.to_string()]
        }
        (_, Some(given)) => given,
        (ResolverMode::AsHost, None) => host.servers.iter().map(ToString::to_string).collect(),
        (ResolverMode::Directly { ipv6 }, None) => {
            let (servers, source) = reachable_servers(&host.servers, resolved, ipv6);
            match source {
                Source::Host => {}
                Source::Resolved => path = "/run/systemd/resolve/resolv.conf",
                Source::Defaults => notes += "# Used default nameservers.\n",
            }
            servers
        }
    };
    if !host.invalid.is_empty() {
        let _ = writeln!(notes, "# Invalid nameservers: [{}]", host.invalid.join(" "));
    }
    let mut text = String::from(HEADER);
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !search.is_empty() && search != ["."] {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    for line in &host.other {
        let _ = writeln!(text, "{line}");
    }
    let transform = match mode {
        ResolverMode::AsHost => "",
        ResolverMode::Directly { .. } => " (legacy)",
        ResolverMode::Engine => " (internal resolver)",
    };
    let _ = writeln!(
        text,
        "\n# Based on host file: '{path}'{transform}\n{notes}# Overrides: [{}]",
        overridden.join(" ")
    );
    if !ndots_from.is_empty() {
        let _ = writeln!(text, "# Option ndots from: {ndots_from}");
    }
    text
}

/// Docker's text, which programs look for.
const HEADER: &str = "# Generated by Docker Engine.
# This file can be edited; Docker Engine will not make further changes once it
# has been modified.

";

#[cfg(test)]
mod tests {
    use super::*;

    fn check(host: &str, given: [&str; 3], mode: ResolverMode, expected: &str) {
        let list = |text: &str| {
            (!text.is_empty()).then(|| text.split(' ').map(str::to_owned).collect::<Vec<_>>())
        };
        let [servers, search, options] = given.map(list);
        let resolved = ResolvConf::parse("nameserver 10.9.9.9\nnameserver fd00::9\n").servers;
        let text = generate(
            ResolvConf::parse(host),
            || resolved,
            Overrides {
                servers,
                search,
                options,
            },
            mode,
        );
        assert_eq!(
            text.strip_prefix(HEADER).expect("a header"),
            expected,
            "{host:?} {given:?} {mode:?}"
        );
    }

    const NONE: [&str; 3] = ["", "", ""];
    const DIRECTLY: ResolverMode = ResolverMode::Directly { ipv6: false };

    #[test]
    fn text_after_a_server_is_ignored() {
        let plain = "nameserver 10.0.0.53\n\n# Based on host file: '/etc/resolv.conf' (legacy)\n# Overrides: []\n";
        for line in [
            "nameserver 10.0.0.53 # corporate",
            "nameserver\t10.0.0.53\t; x",
            "  nameserver 10.0.0.53 10.0.0.54",
            "nameserver 10.0.0.53",
        ] {
            check(line, NONE, DIRECTLY, plain);
        }
        check(
            "nameserver 10.0.0.53#\nnameserver 10.0.0.54",
            NONE,
            DIRECTLY,
            "nameserver 10.0.0.54\n\n# Based on host file: '/etc/resolv.conf' (legacy)\n# Invalid nameservers: [10.0.0.53#]\n# Overrides: []\n",
        );
    }

    #[test]
    fn generated_files_equal_dockers() {
        let host = "# mine\n;and this\ndomain old\nsearch corp.example lab\nnameserver 10.0.0.53\noptions edns0\noptions timeout:1\nsortlist 10.0.0.0\n";
        check(
            host,
            NONE,
            ResolverMode::AsHost,
            "nameserver 10.0.0.53\nsearch corp.example lab\noptions edns0 timeout:1\nsortlist 10.0.0.0\n\n\
             # Based on host file: '/etc/resolv.conf'\n# Overrides: []\n",
        );
        check(
            host,
            NONE,
            ResolverMode::Engine,
            "nameserver 127.0.0.11\nsearch corp.example lab\noptions edns0 timeout:1 ndots:0\nsortlist 10.0.0.0\n\n\
             # Based on host file: '/etc/resolv.conf' (internal resolver)\n# ExtServers: [host(10.0.0.53)]\n# Overrides: []\n\
             # Option ndots from: internal\n",
        );
        check(
            "nameserver 10.0.0.53\n",
            ["9.9.9.9 2001:db8::1", "corp.example", "ndots:3"],
            ResolverMode::Engine,
            "nameserver 127.0.0.11\nsearch corp.example\noptions ndots:3\n\n\
             # Based on host file: '/etc/resolv.conf' (internal resolver)\n# ExtServers: [9.9.9.9 2001:db8::1]\n\
             # Overrides: [nameservers search options]\n# Option ndots from: override\n",
        );
        check(
            "options ndots:2\n",
            ["9.9.9.9", ".", ""],
            DIRECTLY,
            "nameserver 9.9.9.9\noptions ndots:2\n\n# Based on host file: '/etc/resolv.conf' (legacy)\n\
             # Overrides: [nameservers search]\n# Option ndots from: host\n",
        );
    }

    #[test]
    fn unreachable_servers_are_omitted_without_the_embedded_server() {
        let servers = |host: &str, ipv6: bool| {
            let resolved = ResolvConf::parse("nameserver 10.9.9.9\n").servers;
            let text = generate(
                ResolvConf::parse(host),
                || resolved,
                Overrides::default(),
                ResolverMode::Directly { ipv6 },
            );
            text.lines()
                .filter_map(|line| line.strip_prefix("nameserver "))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            servers("nameserver 127.0.0.53\nnameserver 10.0.0.53\n", false),
            "10.0.0.53"
        );
        assert_eq!(servers("nameserver 127.0.0.53\n", false), "10.9.9.9");
        assert_eq!(
            servers("nameserver 10.0.0.53\nnameserver fd00::53\n", false),
            "10.0.0.53"
        );
        assert_eq!(servers("nameserver fd00::53\n", true), "fd00::53");
        assert_eq!(
            servers("nameserver fe80::1%eth0\nnameserver 10.0.0.53\n", true),
            "10.0.0.53"
        );
        assert_eq!(servers("nameserver fd00::53\n", false), "8.8.8.8 8.8.4.4");
    }
}
