//! The chains of the tables and their rules.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::netlink::Message;
use crate::nft::{self, Hook, IPV4, IPV6, Rule, Table};

const RAW: i32 = -300;
const DSTNAT: i32 = -100;
pub(super) const FILTER: i32 = 0;
const SRCNAT: i32 = 100;

/// A chain of our tables, and its hook if it is a base chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) hook: Option<Hook>,
}

impl Chain {
    const fn base(name: &'static str, kind: &'static str, number: u32, priority: i32) -> Self {
        Self {
            name,
            hook: Some(Hook {
                kind,
                number,
                priority,
            }),
        }
    }

    const fn plain(name: &'static str) -> Self {
        Self { name, hook: None }
    }

    pub(super) fn add(self, table: &Table) -> Message {
        table.chain(self.name, self.hook)
    }
}

/// The chain for the administrator's own rules, evaluated first for forwarded packets.
pub(super) const USER: &str = "user";

/// Chains and sets that only tables of earlier versions have.
pub(super) const OBSOLETE_INET_CHAINS: &[&str] =
    &["spoof", "entering", "publish", "loop", "leave", "guard"];
pub(super) const OBSOLETE_INET_SETS: &[&str] = &[
    "pairs",
    "open4",
    "open6",
    "routed4",
    "routed6",
    "doors4",
    "doors6",
    "masquerade4",
    "masquerade6",
    "sources4",
    "sources6",
    "ports4",
    "ports4_at",
    "ports6",
    "ports6_at",
    "loopback6",
];
pub(super) const OBSOLETE_BRIDGE_CHAINS: &[&str] = &["ports", "checked"];
pub(super) const OBSOLETE_BRIDGE_SETS: &[&str] = &["senders4", "senders6"];

pub(super) const INET_CHAINS: &[Chain] = &[
    Chain::plain(USER),
    Chain::plain("from_bridges"),
    Chain::base("prerouting_raw", "filter", nft::PREROUTING, RAW),
    Chain::base("prerouting_nat", "nat", nft::PREROUTING, DSTNAT),
    Chain::base("output_nat", "nat", nft::OUTPUT, DSTNAT),
    Chain::base("postrouting_nat", "nat", nft::POSTROUTING, SRCNAT),
    Chain::base("forward", "filter", nft::FORWARD, FILTER),
];
pub(super) const BRIDGE_CHAINS: &[Chain] = &[
    Chain::base("prerouting", "filter", nft::PREROUTING, RAW),
    Chain::plain("from_containers"),
];

#[expect(
    clippy::too_many_lines,
    reason = "one table: the rules of every chain, in order"
)]
pub(super) fn inet_rules(table: &Table) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut rule = |chain: &str, rule: Rule| messages.push(table.rule(chain, rule));
    let new = Rule::new;
    rule(
        "prerouting_raw",
        new().input_name().among("bridges").jump("from_bridges"),
    );
    // Because of `route_localnet` (for the host's own connections to loopback addresses) the kernel
    // accepts 127.0.0.0/8 from our bridges, and with the added route ::1 too; containers must not
    // use that.
    rule(
        "from_bridges",
        new()
            .ipv4()
            .destination4()
            .in_network(Ipv4Addr::LOCALHOST.into(), 8)
            .drop(),
    );
    rule(
        "from_bridges",
        new()
            .ipv6()
            .destination6()
            .in_network(Ipv6Addr::LOCALHOST.into(), 128)
            .drop(),
    );
    rule(
        "from_bridges",
        new()
            .ipv4()
            .input_name()
            .source4()
            .not_among("sources_v4")
            .drop(),
    );
    rule(
        "from_bridges",
        new()
            .ipv6()
            .input_name()
            .source6()
            .not_among("sources_v6")
            .drop(),
    );
    // A port published on 127.0.0.1 must not be reachable from outside (CVE-2025-54388).
    rule(
        "prerouting_nat",
        new()
            .ipv4()
            .destination4()
            .in_network(Ipv4Addr::LOCALHOST.into(), 8)
            .accept(),
    );
    rule(
        "prerouting_nat",
        new()
            .ipv6()
            .destination6()
            .in_network(Ipv6Addr::LOCALHOST.into(), 128)
            .accept(),
    );
    rule(
        "output_nat",
        new()
            .ipv6()
            .destination6()
            .in_network(Ipv6Addr::LOCALHOST.into(), 128)
            .destination6()
            .not_among("loopback_v6")
            .accept(),
    );
    for chain in ["prerouting_nat", "output_nat"] {
        let to_host = || new().for_this_host();
        rule(
            chain,
            to_host()
                .ipv4()
                .destination4()
                .protocol()
                .destination_port()
                .destination_from("dnat_v4_by_address", IPV4),
        );
        rule(
            chain,
            to_host()
                .ipv4()
                .protocol()
                .destination_port()
                .destination_from("dnat_v4", IPV4),
        );
        rule(
            chain,
            to_host()
                .ipv6()
                .destination6()
                .protocol()
                .destination_port()
                .destination_from("dnat_v6_by_address", IPV6),
        );
        rule(
            chain,
            to_host()
                .ipv6()
                .protocol()
                .destination_port()
                .destination_from("dnat_v6", IPV6),
        );
    }
    // Matched by source address instead of the input interface, which is unknown in this hook where
    // bridged traffic is filtered (br_netfilter).
    rule(
        "postrouting_nat",
        new()
            .ipv4()
            .output_name()
            .source4()
            .among("sources_v4")
            .translated()
            .masquerade(),
    );
    rule(
        "postrouting_nat",
        new()
            .ipv6()
            .output_name()
            .source6()
            .among("sources_v6")
            .translated()
            .masquerade(),
    );
    let to_bridges = || new().output_name().among("bridges");
    let from_loopback4 = (to_bridges().ipv4().source4()).in_network(Ipv4Addr::LOCALHOST.into(), 8);
    rule("postrouting_nat", from_loopback4.masquerade());
    let from_loopback6 =
        (to_bridges().ipv6().source6()).in_network(Ipv6Addr::LOCALHOST.into(), 128);
    rule("postrouting_nat", from_loopback6.masquerade());
    rule(
        "postrouting_nat",
        new()
            .input_name()
            .among("masquerade_v4")
            .output_name()
            .not_among("bridges")
            .ipv4()
            .masquerade(),
    );
    rule(
        "postrouting_nat",
        new()
            .input_name()
            .among("masquerade_v6")
            .output_name()
            .not_among("bridges")
            .ipv6()
            .masquerade(),
    );
    rule(
        "postrouting_nat",
        new()
            .output_name()
            .not_among("bridges")
            .ipv4()
            .input_name()
            .source_from("snat_v4", IPV4),
    );
    rule(
        "postrouting_nat",
        new()
            .output_name()
            .not_among("bridges")
            .ipv6()
            .input_name()
            .source_from("snat_v6", IPV6),
    );
    rule("forward", new().jump(USER));
    rule("forward", new().established().accept());
    rule(
        "forward",
        new()
            .input_name()
            .output_name()
            .among("same_bridge")
            .accept(),
    );
    rule("forward", new().input_name().among("internal").drop());
    rule("forward", new().output_name().among("internal").drop());
    rule(
        "forward",
        new().output_name().among("bridges").translated().accept(),
    );
    // On routed networks, other bridges of ours may use the same published ports as the outside.
    const ICMP: u8 = 1;
    const ICMPV6: u8 = 58;
    let routed_v4 = || new().ipv4().output_name().among("routed_v4");
    rule(
        "forward",
        routed_v4()
            .destination4()
            .protocol()
            .destination_port()
            .among("published_v4")
            .accept(),
    );
    rule("forward", routed_v4().protocol_is(ICMP).accept());
    let routed_v6 = || new().ipv6().output_name().among("routed_v6");
    rule(
        "forward",
        routed_v6()
            .destination6()
            .protocol()
            .destination_port()
            .among("published_v6")
            .accept(),
    );
    rule("forward", routed_v6().protocol_is(ICMPV6).accept());
    rule(
        "forward",
        new()
            .input_name()
            .among("bridges")
            .output_name()
            .among("bridges")
            .drop(),
    );
    rule(
        "forward",
        new().ipv4().output_name().among("unprotected_v4").accept(),
    );
    rule(
        "forward",
        new().ipv6().output_name().among("unprotected_v6").accept(),
    );
    rule("forward", new().output_name().among("bridges").drop());
    messages
}

/// Returns the rules for frames from containers: only with the container's own hardware address,
/// and ARP and IP packets only with its own addresses. Frames from other bridge ports (the bridge
/// itself, ports added by others) pass.
pub(super) fn bridge_rules(table: &Table) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut rule = |chain: &str, rule: Rule| messages.push(table.rule(chain, rule));
    const ARP: u16 = 0x0806;
    const IP: u16 = 0x0800;
    const IP6: u16 = 0x86dd;
    let new = Rule::new;
    // The most frequent case takes a single lookup.
    rule(
        "prerouting",
        new()
            .ether_type(IP)
            .input_name()
            .source_mac()
            .source4()
            .among("senders_v4")
            .accept(),
    );
    rule(
        "prerouting",
        new()
            .input_name()
            .among("interfaces")
            .jump("from_containers"),
    );
    rule("from_containers", new().ether_type(IP).drop());
    rule(
        "from_containers",
        new().input_name().source_mac().not_among("senders").drop(),
    );
    rule(
        "from_containers",
        new()
            .ether_type(ARP)
            .input_name()
            .source_mac()
            .arp_source()
            .not_among("senders_v4")
            .drop(),
    );
    rule("from_containers", new().ether_type(ARP).accept());
    // Receivers remove any number of priority tags (802.1Q, 802.1ad) in front of a packet; these
    // rules do not see behind a second one, so tagged frames are dropped.
    rule("from_containers", new().ether_type_is_not(IP6).drop());
    // Neighbour advertisements may only announce the container's own addresses; containers are not
    // routers.
    const ICMPV6: u8 = 58;
    const ROUTER_ADVERTISEMENT: u8 = 134;
    const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    const REDIRECT: u8 = 137;
    let icmp = |kind: u8| new().protocol_is(ICMPV6).icmp_type_is(kind);
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
    rule("from_containers", icmp(ROUTER_ADVERTISEMENT).drop());
    rule("from_containers", icmp(REDIRECT).drop());
    rule(
        "from_containers",
        icmp(NEIGHBOUR_ADVERTISEMENT)
            .neighbour_target()
            .in_network(link_local.into(), 10)
            .accept(),
    );
    rule(
        "from_containers",
        icmp(NEIGHBOUR_ADVERTISEMENT)
            .input_name()
            .neighbour_target()
            .not_among("senders_v6")
            .drop(),
    );
    rule(
        "from_containers",
        new().source6().in_network(link_local.into(), 10).accept(),
    );
    rule(
        "from_containers",
        new()
            .source6()
            .in_network(Ipv6Addr::UNSPECIFIED.into(), 128)
            .accept(),
    );
    rule(
        "from_containers",
        new().input_name().source6().not_among("senders_v6").drop(),
    );
    messages
}
