//! nf_tables objects and rule expressions, as netlink attributes.
//!
//! Numbers from `linux/netfilter/nf_tables.h`. A rule is a list of expressions that load from the
//! packet into registers, compare, look up, and end in a verdict or a translation. Registers are
//! used from [`FIRST`] on, four bytes each.

use std::net::IpAddr;

use crate::netlink::{APPEND, CREATE, EXCLUSIVE, Message};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_GETSETELEM: u16 = 13;
const NFT_MSG_NEWGEN: u16 = 15;
const NFT_MSG_GETGEN: u16 = 16;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_DELSETELEM: u16 = 14;

pub(crate) const INET: u8 = 1;
pub(crate) const BRIDGE: u8 = 7;
pub(crate) const IP: u8 = 2;
pub(crate) const IP6: u8 = 10;

/// The kind of user data that `nft list` shows as a rule's comment.
pub(crate) const COMMENT: u8 = 0;

/// `NFT_REG32_00`.
const FIRST: u32 = 8;
const NFT_REG_VERDICT: u32 = 0;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_JUMP: i32 = -3;

/// A datum's type, as `nft list` shows it (nft's `datatype.h`), and its length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Type(u32, u32);

pub(crate) const IPV4: Type = Type(7, 4);
pub(crate) const IPV6: Type = Type(8, 16);
pub(crate) const ETHER: Type = Type(9, 6);
pub(crate) const PROTOCOL: Type = Type(12, 1);
pub(crate) const SERVICE: Type = Type(13, 2);
pub(crate) const IFNAME: Type = Type(41, 16);

fn padded(length: u32) -> u32 {
    length.next_multiple_of(4)
}

/// Concatenated types: six bits each, and every part padded to a register.
fn concatenation(types: &[Type]) -> (u32, u32) {
    match types {
        [one] => (one.0, one.1),
        many => many.iter().fold((0, 0), |(kind, length), one| {
            (kind << 6 | one.0, length + padded(one.1))
        }),
    }
}

/// A key or value: its parts, each padded to a register where there are several.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Value(Vec<Vec<u8>>);

impl Value {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn name(mut self, name: &str) -> Self {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(16, 0);
        self.0.push(bytes);
        self
    }

    pub(crate) fn ip(mut self, address: IpAddr) -> Self {
        self.0.push(match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        });
        self
    }

    pub(crate) fn mac(mut self, mac: [u8; 6]) -> Self {
        self.0.push(mac.to_vec());
        self
    }

    pub(crate) fn protocol(mut self, number: u8) -> Self {
        self.0.push(vec![number]);
        self
    }

    pub(crate) fn port(mut self, port: u16) -> Self {
        self.0.push(port.to_be_bytes().to_vec());
        self
    }

    fn bytes(&self) -> Vec<u8> {
        match self.0.as_slice() {
            [one] => one.clone(),
            many => many
                .iter()
                .flat_map(|part| {
                    let mut part = part.clone();
                    part.resize(part.len().next_multiple_of(4), 0);
                    part
                })
                .collect(),
        }
    }
}

/// An element of a set: a key (or a range of keys, in interval sets), and in maps what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) key: Value,
    pub(crate) end: Option<Value>,
    pub(crate) data: Option<Value>,
}

impl Element {
    pub(crate) fn key(key: Value) -> Self {
        Self {
            key,
            end: None,
            data: None,
        }
    }
}

fn generic(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

fn message(kind: u16, flags: u16, family: u8) -> Message {
    Message::new(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, &generic(family))
}

/// The fixed header of nf_tables messages.
pub(crate) const HEADER: usize = 4;
pub(crate) const RULE_HANDLE: u16 = 3;
pub(crate) const RULE_EXPRESSIONS: u16 = 4;
pub(crate) const RULE_USERDATA: u16 = 7;

/// The multicast group that hears of all changes.
pub(crate) const GROUP: u32 = 7;

/// The kind of the message that ends what is told of a transaction.
pub(crate) fn new_generation() -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN
}

/// Asks for the number of the ruleset's last change.
pub(crate) fn get_generation() -> Message {
    message(NFT_MSG_GETGEN, 0, 0)
}

/// Puts messages into the frame that makes them one transaction.
pub(crate) fn transaction(messages: Vec<Message>) -> Vec<Message> {
    let frame = |kind| {
        let [high, low] = NFNL_SUBSYS_NFTABLES.to_be_bytes();
        Message::new(kind, 0, &[0, 0, high, low])
    };
    let mut all = vec![frame(NFNL_MSG_BATCH_BEGIN)];
    all.extend(messages);
    all.push(frame(NFNL_MSG_BATCH_END));
    all
}

/// A table of one family; makes the messages about everything inside.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) family: u8,
    pub(crate) name: String,
}

/// Where in the kernel a chain is called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hook {
    /// `filter` or `nat`.
    pub(crate) kind: &'static str,
    /// `NF_INET_*` or `NF_BR_*`.
    pub(crate) number: u32,
    pub(crate) priority: i32,
}

pub(crate) const PREROUTING: u32 = 0;
pub(crate) const FORWARD: u32 = 2;
pub(crate) const OUTPUT: u32 = 3;
pub(crate) const POSTROUTING: u32 = 4;

/// What a set is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set<'a> {
    pub(crate) name: &'a str,
    pub(crate) key: &'a [Type],
    /// Makes it a map.
    pub(crate) data: &'a [Type],
    /// Its keys are ranges.
    pub(crate) interval: bool,
}

impl Table {
    pub(crate) fn add(&self) -> Message {
        message(NFT_MSG_NEWTABLE, CREATE, self.family).text(1, &self.name)
    }

    pub(crate) fn delete(&self) -> Message {
        message(NFT_MSG_DELTABLE, 0, self.family).text(1, &self.name)
    }

    pub(crate) fn get(&self) -> Message {
        message(NFT_MSG_GETTABLE, 0, self.family).text(1, &self.name)
    }

    pub(crate) fn chain(&self, name: &str, hook: Option<Hook>) -> Message {
        let chain = message(NFT_MSG_NEWCHAIN, CREATE, self.family)
            .text(1, &self.name)
            .text(3, name);
        match hook {
            None => chain,
            Some(Hook {
                kind,
                number,
                priority,
            }) => chain
                .nest(4, |hook| {
                    hook.be32(1, number).be32(2, priority.cast_unsigned())
                })
                .be32(5, NF_ACCEPT)
                .text(7, kind),
        }
    }

    pub(crate) fn rule(&self, chain: &str, rule: Rule) -> Message {
        message(NFT_MSG_NEWRULE, CREATE | APPEND, self.family)
            .text(1, &self.name)
            .text(2, chain)
            .nest(RULE_EXPRESSIONS, |list| {
                rule.0
                    .into_iter()
                    .fold(list, |list, expression| expression(list))
            })
    }

    /// A rule in front of all others, with a comment.
    pub(crate) fn first_rule(&self, chain: &str, rule: Rule, comment: &str) -> Message {
        let mut data = vec![COMMENT, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
        data.extend_from_slice(comment.as_bytes());
        data.push(0);
        message(NFT_MSG_NEWRULE, CREATE, self.family)
            .text(1, &self.name)
            .text(2, chain)
            .nest(RULE_EXPRESSIONS, |list| {
                rule.0
                    .into_iter()
                    .fold(list, |list, expression| expression(list))
            })
            .bytes(RULE_USERDATA, &data)
    }

    /// A rule behind all others, of what the kernel has told of one: its expressions, and its
    /// comment or the like.
    pub(crate) fn same_rule(
        &self,
        chain: &str,
        expressions: &[u8],
        user_data: Option<&[u8]>,
    ) -> Message {
        let message = message(NFT_MSG_NEWRULE, CREATE | APPEND, self.family)
            .text(1, &self.name)
            .text(2, chain);
        let message = message.nest(RULE_EXPRESSIONS, |list| list.raw(expressions));
        if let Some(data) = user_data {
            message.bytes(RULE_USERDATA, data)
        } else {
            message
        }
    }

    pub(crate) fn delete_rule(&self, chain: &str, handle: u64) -> Message {
        message(NFT_MSG_DELRULE, 0, self.family)
            .text(1, &self.name)
            .text(2, chain)
            .bytes(RULE_HANDLE, &handle.to_be_bytes())
    }

    pub(crate) fn get_chain(&self, chain: &str) -> Message {
        message(NFT_MSG_GETCHAIN, 0, self.family)
            .text(1, &self.name)
            .text(3, chain)
    }

    pub(crate) fn flush_chain(&self, chain: &str) -> Message {
        message(NFT_MSG_DELRULE, 0, self.family)
            .text(1, &self.name)
            .text(2, chain)
    }

    pub(crate) fn flush_set(&self, set: &str) -> Message {
        message(NFT_MSG_DELSETELEM, 0, self.family)
            .text(1, &self.name)
            .text(2, set)
    }

    pub(crate) fn get_elements(&self, set: &str) -> Message {
        message(NFT_MSG_GETSETELEM, 0, self.family)
            .text(1, &self.name)
            .text(2, set)
    }

    pub(crate) fn get_rules(&self, chain: &str) -> Message {
        message(NFT_MSG_GETRULE, 0, self.family)
            .text(1, &self.name)
            .text(2, chain)
    }

    /// `id` tells sets of one transaction apart.
    pub(crate) fn set(&self, set: Set<'_>, id: u32) -> Message {
        const NFT_SET_INTERVAL: u32 = 0x4;
        const NFT_SET_MAP: u32 = 0x8;
        const NFT_SET_CONCAT: u32 = 0x80;
        let (key_type, key_length) = concatenation(set.key);
        let mut flags = 0;
        if set.interval {
            flags |= NFT_SET_INTERVAL;
            if set.key.len() > 1 {
                flags |= NFT_SET_CONCAT;
            }
        }
        if !set.data.is_empty() {
            flags |= NFT_SET_MAP;
        }
        let mut new = message(NFT_MSG_NEWSET, CREATE, self.family)
            .text(1, &self.name)
            .text(2, set.name)
            .be32(3, flags)
            .be32(4, key_type)
            .be32(5, key_length)
            .be32(10, id);
        if !set.data.is_empty() {
            let (data_type, data_length) = concatenation(set.data);
            new = new.be32(6, data_type).be32(7, data_length);
        }
        if set.interval && set.key.len() > 1 {
            // The lengths of the concatenation's parts, so that ranges can be looked up in each.
            new = new.nest(9, |description| {
                description.nest(2, |parts| {
                    set.key.iter().fold(parts, |parts, one| {
                        parts.nest(1, |part| part.be32(1, one.1))
                    })
                })
            });
        }
        new
    }

    pub(crate) fn add_elements(&self, set: &str, elements: &[Element]) -> Message {
        self.elements(NFT_MSG_NEWSETELEM, CREATE, set, elements)
    }

    /// Refused if one is there.
    pub(crate) fn add_new_elements(&self, set: &str, elements: &[Element]) -> Message {
        self.elements(NFT_MSG_NEWSETELEM, CREATE | EXCLUSIVE, set, elements)
    }

    pub(crate) fn delete_elements(&self, set: &str, elements: &[Element]) -> Message {
        self.elements(NFT_MSG_DELSETELEM, 0, set, elements)
    }

    fn elements(&self, kind: u16, flags: u16, set: &str, elements: &[Element]) -> Message {
        let value = |element: Message, kind: u16, value: &Value| {
            element.nest(kind, |data| data.bytes(1, &value.bytes()))
        };
        message(kind, flags, self.family)
            .text(1, &self.name)
            .text(2, set)
            .nest(3, |list| {
                elements.iter().fold(list, |list, one| {
                    list.nest(1, |mut element| {
                        element = value(element, 1, &one.key);
                        if let Some(end) = &one.end {
                            element = value(element, 10, end);
                        }
                        if let Some(data) = &one.data {
                            element = value(element, 2, data);
                        }
                        element
                    })
                })
            })
    }
}

type Expression = Box<dyn FnOnce(Message) -> Message>;

/// A rule under construction. Loads fill registers one after the other; a lookup or comparison uses
/// them up.
#[derive(Default)]
pub(crate) struct Rule(Vec<Expression>, u32);

impl Rule {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn push(mut self, name: &'static str, data: impl FnOnce(Message) -> Message + 'static) -> Self {
        self.0.push(Box::new(move |list| {
            list.nest(1, |element| element.text(1, name).nest(2, data))
        }));
        self
    }

    /// The register for the next load of `length` bytes.
    fn register(&mut self, length: u32) -> u32 {
        let register = FIRST + self.1;
        self.1 += padded(length) / 4;
        register
    }

    fn meta(mut self, key: u32, length: u32) -> Self {
        let register = self.register(length);
        self.push("meta", move |data| data.be32(1, register).be32(2, key))
    }

    fn payload(mut self, base: u32, offset: u32, length: u32) -> Self {
        let register = self.register(length);
        self.push("payload", move |data| {
            data.be32(1, register)
                .be32(2, base)
                .be32(3, offset)
                .be32(4, length)
        })
    }

    fn compare(mut self, operation: u32, value: Vec<u8>) -> Self {
        self.1 = 0;
        self.push("cmp", move |data| {
            data.be32(1, FIRST)
                .be32(2, operation)
                .nest(3, |inner| inner.bytes(1, &value))
        })
    }

    // Loads.

    pub(crate) fn input_name(self) -> Self {
        self.meta(6, 16)
    }

    pub(crate) fn output_name(self) -> Self {
        self.meta(7, 16)
    }

    pub(crate) fn protocol(self) -> Self {
        self.meta(16, 1)
    }

    pub(crate) fn source4(self) -> Self {
        self.payload(1, 12, 4)
    }

    pub(crate) fn destination4(self) -> Self {
        self.payload(1, 16, 4)
    }

    pub(crate) fn source6(self) -> Self {
        self.payload(1, 8, 16)
    }

    pub(crate) fn destination6(self) -> Self {
        self.payload(1, 24, 16)
    }

    pub(crate) fn destination_port(self) -> Self {
        self.payload(2, 2, 2)
    }

    pub(crate) fn source_mac(self) -> Self {
        self.payload(0, 6, 6)
    }

    /// The sender's address in an ARP packet for IPv4 over Ethernet.
    pub(crate) fn arp_source(self) -> Self {
        self.payload(1, 14, 4)
    }

    // Tests.

    pub(crate) fn ipv4(self) -> Self {
        self.meta(15, 1).compare(0, vec![IP])
    }

    pub(crate) fn ipv6(self) -> Self {
        self.meta(15, 1).compare(0, vec![IP6])
    }

    /// The input interface has this name, or begins with it where it ends in `*`.
    pub(crate) fn input_is(self, name: &str) -> Self {
        self.input_name().compare(0, pattern(name))
    }

    pub(crate) fn output_is(self, name: &str) -> Self {
        self.output_name().compare(0, pattern(name))
    }

    /// The frame's type, in tables of the bridge family.
    pub(crate) fn ether_type(self, number: u16) -> Self {
        self.meta(1, 2).compare(0, number.to_be_bytes().to_vec())
    }

    pub(crate) fn ether_type_is_not(self, number: u16) -> Self {
        self.meta(1, 2).compare(1, number.to_be_bytes().to_vec())
    }

    /// The destination is one of the host's own addresses.
    pub(crate) fn for_this_host(mut self) -> Self {
        let register = self.register(4);
        const RTN_LOCAL: u32 = 2;
        const ADDRTYPE: u32 = 3;
        const BY_DESTINATION: u32 = 2;
        self.push("fib", move |data| {
            data.be32(1, register)
                .be32(2, ADDRTYPE)
                .be32(3, BY_DESTINATION)
        })
        .compare(0, RTN_LOCAL.to_ne_bytes().to_vec())
    }

    pub(crate) fn protocol_is(self, number: u8) -> Self {
        self.protocol().compare(0, vec![number])
    }

    pub(crate) fn destination_port_is(self, port: u16) -> Self {
        self.destination_port()
            .compare(0, port.to_be_bytes().to_vec())
    }

    pub(crate) fn icmp_type_is(self, number: u8) -> Self {
        self.payload(2, 0, 1).compare(0, vec![number])
    }

    /// The address that a neighbour advertisement (RFC 4861) is about.
    pub(crate) fn neighbour_target(self) -> Self {
        self.payload(2, 8, 16)
    }

    /// What was loaded has these leading bits: `bits` of `value`.
    pub(crate) fn in_network(mut self, value: IpAddr, bits: u8) -> Self {
        let bytes = match value {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let mask: Vec<u8> = (0..bytes.len())
            .map(|index| {
                let left = usize::from(bits).saturating_sub(index * 8).min(8);
                u8::try_from((0xff00u16 >> left) & 0xff).unwrap_or(0)
            })
            .collect();
        let length = u32::try_from(bytes.len()).unwrap_or(4);
        let zero = vec![0; bytes.len()];
        let masked: Vec<u8> = bytes
            .iter()
            .zip(&mask)
            .map(|(byte, mask)| byte & mask)
            .collect();
        self.1 = padded(length) / 4;
        self.push("bitwise", move |data| {
            data.be32(1, FIRST)
                .be32(2, FIRST)
                .be32(3, length)
                .nest(4, |inner| inner.bytes(1, &mask))
                .nest(5, |inner| inner.bytes(1, &zero))
        })
        .compare(0, masked)
    }

    fn lookup(mut self, set: &str, inverted: bool) -> Self {
        self.1 = 0;
        let set = set.to_owned();
        self.push("lookup", move |data| {
            let data = data.text(1, &set).be32(2, FIRST);
            if inverted { data.be32(5, 1) } else { data }
        })
    }

    pub(crate) fn among(self, set: &str) -> Self {
        self.lookup(set, false)
    }

    pub(crate) fn not_among(self, set: &str) -> Self {
        self.lookup(set, true)
    }

    /// The connection's state has one of these `NF_CT_STATE` bits.
    fn connection(self, key: u32, bits: u32) -> Self {
        let mut rule = self;
        let register = rule.register(4);
        rule.1 = 0;
        rule.push("ct", move |data| data.be32(1, register).be32(2, key))
            .push("bitwise", move |data| {
                data.be32(1, FIRST)
                    .be32(2, FIRST)
                    .be32(3, 4)
                    .nest(4, |inner| inner.bytes(1, &bits.to_ne_bytes()))
                    .nest(5, |inner| inner.bytes(1, &[0; 4]))
            })
            .compare(1, vec![0; 4])
    }

    pub(crate) fn established(self) -> Self {
        const ESTABLISHED: u32 = 2;
        const RELATED: u32 = 4;
        self.connection(0, ESTABLISHED | RELATED)
    }

    /// The connection was led here by a published port.
    pub(crate) fn translated(self) -> Self {
        const STATUS: u32 = 2;
        const IPS_DST_NAT: u32 = 1 << 5;
        self.connection(STATUS, IPS_DST_NAT)
    }

    // Ends.

    fn verdict(self, code: u32) -> Self {
        self.push("immediate", move |data| {
            data.be32(1, NFT_REG_VERDICT)
                .nest(2, |value| value.nest(2, |verdict| verdict.be32(1, code)))
        })
    }

    pub(crate) fn accept(self) -> Self {
        self.verdict(NF_ACCEPT)
    }

    pub(crate) fn drop(self) -> Self {
        self.verdict(NF_DROP)
    }

    pub(crate) fn jump(self, chain: &str) -> Self {
        let chain = chain.to_owned();
        self.push("immediate", move |data| {
            data.be32(1, NFT_REG_VERDICT).nest(2, |value| {
                value.nest(2, |verdict| {
                    verdict.be32(1, NFT_JUMP.cast_unsigned()).text(2, &chain)
                })
            })
        })
    }

    pub(crate) fn masquerade(self) -> Self {
        self.push("masq", |data| data)
    }

    /// Translates the destination to the address and port that `map` has for what was loaded.
    pub(crate) fn destination_from(mut self, map: &str, address: Type) -> Self {
        self.1 = 0;
        let map = map.to_owned();
        let family = if address == IPV4 { IP } else { IP6 };
        let port = FIRST + padded(address.1) / 4;
        const NFT_NAT_DNAT: u32 = 1;
        self.push("lookup", move |data| {
            data.text(1, &map).be32(2, FIRST).be32(3, FIRST)
        })
        .push("nat", move |data| {
            data.be32(1, NFT_NAT_DNAT)
                .be32(2, family.into())
                .be32(3, FIRST)
                .be32(5, port)
        })
    }

    /// Translates the destination to a fixed one.
    pub(crate) fn destination(self, address: std::net::Ipv4Addr, port: u16) -> Self {
        const NFT_NAT_DNAT: u32 = 1;
        self.push("immediate", move |data| {
            data.be32(1, FIRST)
                .nest(2, |value| value.bytes(1, &address.octets()))
        })
        .push("immediate", move |data| {
            data.be32(1, FIRST + 1)
                .nest(2, |value| value.bytes(1, &port.to_be_bytes()))
        })
        .push("nat", |data| {
            data.be32(1, NFT_NAT_DNAT)
                .be32(2, IP.into())
                .be32(3, FIRST)
                .be32(5, FIRST + 1)
        })
    }
}

/// As many bytes of an interface's name as have to be the same.
fn pattern(name: &str) -> Vec<u8> {
    match name.strip_suffix('*') {
        Some(beginning) => beginning.as_bytes().to_vec(),
        None => {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(16, 0);
            bytes
        }
    }
}
