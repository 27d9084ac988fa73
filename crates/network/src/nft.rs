//! Encodes nf_tables objects and rule expressions as netlink attributes.
//!
//! The constants are from `linux/netfilter/nf_tables.h`. A rule is a list of expressions that load
//! packet fields into registers, compare them or look them up, and end in a verdict or a
//! translation. Registers are used from [`NFT_REG32_00`] on, four bytes each.

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
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_DELRULE: u16 = 8;
const NFT_MSG_NEWSET: u16 = 9;
const NFT_MSG_GETSET: u16 = 10;
const NFT_MSG_DELSET: u16 = 11;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_GETSETELEM: u16 = 13;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFT_MSG_NEWGEN: u16 = 15;
const NFT_MSG_GETGEN: u16 = 16;

// Attributes of tables, chains, rules, sets and elements.
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
pub(crate) const NFTA_RULE_HANDLE: u16 = 3;
pub(crate) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(crate) const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_DESC: u16 = 9;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_DESC_CONCAT: u16 = 2;
const NFTA_SET_FIELD_LEN: u16 = 1;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(crate) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
pub(crate) const NFTA_GEN_ID: u16 = 1;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;

// Attributes and operands of expressions.
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFT_META_PROTOCOL: u32 = 1;
const NFT_META_IIFNAME: u32 = 6;
const NFT_META_OIFNAME: u32 = 7;
const NFT_META_NFPROTO: u32 = 15;
const NFT_META_L4PROTO: u32 = 16;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFT_PAYLOAD_LL_HEADER: u32 = 0;
const NFT_PAYLOAD_NETWORK_HEADER: u32 = 1;
const NFT_PAYLOAD_TRANSPORT_HEADER: u32 = 2;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFT_CMP_EQ: u32 = 0;
const NFT_CMP_NEQ: u32 = 1;
const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;
const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
const NFTA_FIB_F_DADDR: u32 = 2;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_DREG: u16 = 3;
const NFTA_LOOKUP_FLAGS: u16 = 5;
const NFT_LOOKUP_F_INV: u32 = 1;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFT_CT_STATE: u32 = 0;
const NFT_CT_STATUS: u32 = 2;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const NFT_NAT_SNAT: u32 = 0;
const NFT_NAT_DNAT: u32 = 1;

pub(crate) const INET: u8 = 1;
pub(crate) const BRIDGE: u8 = 7;
pub(crate) const IP: u8 = 2;
pub(crate) const IP6: u8 = 10;

/// The user data type that `nft list` prints as a rule's comment.
pub(crate) const COMMENT: u8 = 0;

const NFT_REG32_00: u32 = 8;
const NFT_REG_VERDICT: u32 = 0;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_JUMP: i32 = -3;

/// A data type (its number in nft's `datatype.h`, which `nft list` uses for printing) and its
/// length in bytes.
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

/// Returns the type and length of a concatenation: six bits per type, and each part padded to a
/// register.
fn concatenation(types: &[Type]) -> (u32, u32) {
    match types {
        [one] => (one.0, one.1),
        many => many.iter().fold((0, 0), |(kind, length), one| {
            (kind << 6 | one.0, length + padded(one.1))
        }),
    }
}

/// A key or data value: its parts, each padded to a register if there are several.
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

/// A set element: a key (or a range of keys, in interval sets), and the data in maps.
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

/// Length in bytes of `struct nfgenmsg`, the fixed header of nf_tables messages.
pub(crate) const HEADER: usize = 4;

/// `NFNLGRP_NFTABLES`, the multicast group that is notified of all changes.
pub(crate) const GROUP: u32 = 7;

/// Returns the type of the message that ends the notifications of a transaction.
pub(crate) fn new_generation() -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN
}

/// Requests the ruleset's generation number.
pub(crate) fn get_generation() -> Message {
    message(NFT_MSG_GETGEN, 0, 0)
}

/// Wraps messages in the batch messages that make them one transaction.
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

/// A table of one family. Its methods return messages about the objects inside.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) family: u8,
    pub(crate) name: String,
}

/// The hook of a base chain.
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

/// The definition of a set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Set<'a> {
    pub(crate) name: &'a str,
    pub(crate) key: &'a [Type],
    /// The data type of a map; empty for a set.
    pub(crate) data: &'a [Type],
    /// The keys are ranges.
    pub(crate) interval: bool,
}

impl Table {
    pub(crate) fn add(&self) -> Message {
        message(NFT_MSG_NEWTABLE, CREATE, self.family).text(NFTA_TABLE_NAME, &self.name)
    }

    pub(crate) fn delete(&self) -> Message {
        message(NFT_MSG_DELTABLE, 0, self.family).text(NFTA_TABLE_NAME, &self.name)
    }

    pub(crate) fn get(&self) -> Message {
        message(NFT_MSG_GETTABLE, 0, self.family).text(NFTA_TABLE_NAME, &self.name)
    }

    pub(crate) fn chain(&self, name: &str, hook: Option<Hook>) -> Message {
        let chain = message(NFT_MSG_NEWCHAIN, CREATE, self.family)
            .text(NFTA_CHAIN_TABLE, &self.name)
            .text(NFTA_CHAIN_NAME, name);
        match hook {
            None => chain,
            Some(Hook {
                kind,
                number,
                priority,
            }) => chain
                .nest(NFTA_CHAIN_HOOK, |hook| {
                    hook.be32(NFTA_HOOK_HOOKNUM, number)
                        .be32(NFTA_HOOK_PRIORITY, priority.cast_unsigned())
                })
                .be32(NFTA_CHAIN_POLICY, NF_ACCEPT)
                .text(NFTA_CHAIN_TYPE, kind),
        }
    }

    pub(crate) fn rule(&self, chain: &str, rule: Rule) -> Message {
        message(NFT_MSG_NEWRULE, CREATE | APPEND, self.family)
            .text(NFTA_RULE_TABLE, &self.name)
            .text(NFTA_RULE_CHAIN, chain)
            .nest(NFTA_RULE_EXPRESSIONS, |list| {
                rule.0
                    .into_iter()
                    .fold(list, |list, expression| expression(list))
            })
    }

    /// Inserts a rule at the head of a chain, with a comment.
    pub(crate) fn first_rule(&self, chain: &str, rule: Rule, comment: &str) -> Message {
        let mut data = vec![COMMENT, u8::try_from(comment.len() + 1).unwrap_or(u8::MAX)];
        data.extend_from_slice(comment.as_bytes());
        data.push(0);
        message(NFT_MSG_NEWRULE, CREATE, self.family)
            .text(NFTA_RULE_TABLE, &self.name)
            .text(NFTA_RULE_CHAIN, chain)
            .nest(NFTA_RULE_EXPRESSIONS, |list| {
                rule.0
                    .into_iter()
                    .fold(list, |list, expression| expression(list))
            })
            .bytes(NFTA_RULE_USERDATA, &data)
    }

    /// Appends a copy of a rule from the expressions and user data that the kernel returned.
    pub(crate) fn same_rule(
        &self,
        chain: &str,
        expressions: &[u8],
        user_data: Option<&[u8]>,
    ) -> Message {
        let message = message(NFT_MSG_NEWRULE, CREATE | APPEND, self.family)
            .text(NFTA_RULE_TABLE, &self.name)
            .text(NFTA_RULE_CHAIN, chain);
        let message = message.nest(NFTA_RULE_EXPRESSIONS, |list| list.raw(expressions));
        if let Some(data) = user_data {
            message.bytes(NFTA_RULE_USERDATA, data)
        } else {
            message
        }
    }

    pub(crate) fn delete_rule(&self, chain: &str, handle: u64) -> Message {
        message(NFT_MSG_DELRULE, 0, self.family)
            .text(NFTA_RULE_TABLE, &self.name)
            .text(NFTA_RULE_CHAIN, chain)
            .bytes(NFTA_RULE_HANDLE, &handle.to_be_bytes())
    }

    pub(crate) fn get_chain(&self, chain: &str) -> Message {
        message(NFT_MSG_GETCHAIN, 0, self.family)
            .text(NFTA_CHAIN_TABLE, &self.name)
            .text(NFTA_CHAIN_NAME, chain)
    }

    pub(crate) fn delete_chain(&self, chain: &str) -> Message {
        message(NFT_MSG_DELCHAIN, 0, self.family)
            .text(NFTA_CHAIN_TABLE, &self.name)
            .text(NFTA_CHAIN_NAME, chain)
    }

    pub(crate) fn delete_set(&self, set: &str) -> Message {
        message(NFT_MSG_DELSET, 0, self.family)
            .text(NFTA_SET_TABLE, &self.name)
            .text(NFTA_SET_NAME, set)
    }

    /// Requests one set by name.
    pub(crate) fn get_set(&self, set: &str) -> Message {
        message(NFT_MSG_GETSET, 0, self.family)
            .text(NFTA_SET_TABLE, &self.name)
            .text(NFTA_SET_NAME, set)
    }

    pub(crate) fn flush_chain(&self, chain: &str) -> Message {
        message(NFT_MSG_DELRULE, 0, self.family)
            .text(NFTA_RULE_TABLE, &self.name)
            .text(NFTA_RULE_CHAIN, chain)
    }

    pub(crate) fn flush_set(&self, set: &str) -> Message {
        message(NFT_MSG_DELSETELEM, 0, self.family)
            .text(NFTA_SET_ELEM_LIST_TABLE, &self.name)
            .text(NFTA_SET_ELEM_LIST_SET, set)
    }

    pub(crate) fn get_elements(&self, set: &str) -> Message {
        message(NFT_MSG_GETSETELEM, 0, self.family)
            .text(NFTA_SET_ELEM_LIST_TABLE, &self.name)
            .text(NFTA_SET_ELEM_LIST_SET, set)
    }

    pub(crate) fn get_rules(&self, chain: &str) -> Message {
        message(NFT_MSG_GETRULE, 0, self.family)
            .text(NFTA_RULE_TABLE, &self.name)
            .text(NFTA_RULE_CHAIN, chain)
    }

    /// Creates a set. `id` must be unique within the transaction.
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
            .text(NFTA_SET_TABLE, &self.name)
            .text(NFTA_SET_NAME, set.name)
            .be32(NFTA_SET_FLAGS, flags)
            .be32(NFTA_SET_KEY_TYPE, key_type)
            .be32(NFTA_SET_KEY_LEN, key_length)
            .be32(NFTA_SET_ID, id);
        if !set.data.is_empty() {
            let (data_type, data_length) = concatenation(set.data);
            new = new
                .be32(NFTA_SET_DATA_TYPE, data_type)
                .be32(NFTA_SET_DATA_LEN, data_length);
        }
        if set.interval && set.key.len() > 1 {
            // The kernel needs the length of each part to look up ranges in concatenations.
            new = new.nest(NFTA_SET_DESC, |description| {
                description.nest(NFTA_SET_DESC_CONCAT, |parts| {
                    set.key.iter().fold(parts, |parts, one| {
                        parts.nest(NFTA_LIST_ELEM, |part| part.be32(NFTA_SET_FIELD_LEN, one.1))
                    })
                })
            });
        }
        new
    }

    pub(crate) fn add_elements(&self, set: &str, elements: &[Element]) -> Message {
        self.elements(NFT_MSG_NEWSETELEM, CREATE, set, elements)
    }

    /// Adds elements. The kernel refuses the transaction (`EEXIST`) if one exists.
    pub(crate) fn add_new_elements(&self, set: &str, elements: &[Element]) -> Message {
        self.elements(NFT_MSG_NEWSETELEM, CREATE | EXCLUSIVE, set, elements)
    }

    pub(crate) fn delete_elements(&self, set: &str, elements: &[Element]) -> Message {
        self.elements(NFT_MSG_DELSETELEM, 0, set, elements)
    }

    fn elements(&self, kind: u16, flags: u16, set: &str, elements: &[Element]) -> Message {
        let value = |element: Message, kind: u16, value: &Value| {
            element.nest(kind, |data| data.bytes(NFTA_DATA_VALUE, &value.bytes()))
        };
        message(kind, flags, self.family)
            .text(NFTA_SET_ELEM_LIST_TABLE, &self.name)
            .text(NFTA_SET_ELEM_LIST_SET, set)
            .nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                elements.iter().fold(list, |list, one| {
                    list.nest(NFTA_LIST_ELEM, |mut element| {
                        element = value(element, NFTA_SET_ELEM_KEY, &one.key);
                        if let Some(end) = &one.end {
                            element = value(element, NFTA_SET_ELEM_KEY_END, end);
                        }
                        if let Some(data) = &one.data {
                            element = value(element, NFTA_SET_ELEM_DATA, data);
                        }
                        element
                    })
                })
            })
    }
}

type Expression = Box<dyn FnOnce(Message) -> Message>;

/// A rule under construction: its expressions, and the number of registers in use. Loads fill
/// registers one after the other; a lookup or comparison consumes them.
#[derive(Default)]
pub(crate) struct Rule(Vec<Expression>, u32);

impl Rule {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn push(mut self, name: &'static str, data: impl FnOnce(Message) -> Message + 'static) -> Self {
        self.0.push(Box::new(move |list| {
            list.nest(NFTA_LIST_ELEM, |element| {
                element
                    .text(NFTA_EXPR_NAME, name)
                    .nest(NFTA_EXPR_DATA, data)
            })
        }));
        self
    }

    /// Returns the register for the next load of `length` bytes.
    fn register(&mut self, length: u32) -> u32 {
        let register = NFT_REG32_00 + self.1;
        self.1 += padded(length) / 4;
        register
    }

    fn meta(mut self, key: u32, length: u32) -> Self {
        let register = self.register(length);
        self.push("meta", move |data| {
            data.be32(NFTA_META_DREG, register).be32(NFTA_META_KEY, key)
        })
    }

    fn payload(mut self, base: u32, offset: u32, length: u32) -> Self {
        let register = self.register(length);
        self.push("payload", move |data| {
            data.be32(NFTA_PAYLOAD_DREG, register)
                .be32(NFTA_PAYLOAD_BASE, base)
                .be32(NFTA_PAYLOAD_OFFSET, offset)
                .be32(NFTA_PAYLOAD_LEN, length)
        })
    }

    fn compare(mut self, operation: u32, value: Vec<u8>) -> Self {
        self.1 = 0;
        self.push("cmp", move |data| {
            data.be32(NFTA_CMP_SREG, NFT_REG32_00)
                .be32(NFTA_CMP_OP, operation)
                .nest(NFTA_CMP_DATA, |inner| inner.bytes(NFTA_DATA_VALUE, &value))
        })
    }

    // Loads.

    pub(crate) fn input_name(self) -> Self {
        self.meta(NFT_META_IIFNAME, 16)
    }

    pub(crate) fn output_name(self) -> Self {
        self.meta(NFT_META_OIFNAME, 16)
    }

    pub(crate) fn protocol(self) -> Self {
        self.meta(NFT_META_L4PROTO, 1)
    }

    pub(crate) fn source4(self) -> Self {
        self.payload(NFT_PAYLOAD_NETWORK_HEADER, 12, 4)
    }

    pub(crate) fn destination4(self) -> Self {
        self.payload(NFT_PAYLOAD_NETWORK_HEADER, 16, 4)
    }

    pub(crate) fn source6(self) -> Self {
        self.payload(NFT_PAYLOAD_NETWORK_HEADER, 8, 16)
    }

    pub(crate) fn destination6(self) -> Self {
        self.payload(NFT_PAYLOAD_NETWORK_HEADER, 24, 16)
    }

    pub(crate) fn destination_port(self) -> Self {
        self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2)
    }

    pub(crate) fn source_mac(self) -> Self {
        self.payload(NFT_PAYLOAD_LL_HEADER, 6, 6)
    }

    /// Loads the sender's address of an ARP packet for IPv4 over Ethernet.
    pub(crate) fn arp_source(self) -> Self {
        self.payload(NFT_PAYLOAD_NETWORK_HEADER, 14, 4)
    }

    // Matches.

    pub(crate) fn ipv4(self) -> Self {
        self.meta(NFT_META_NFPROTO, 1).compare(NFT_CMP_EQ, vec![IP])
    }

    pub(crate) fn ipv6(self) -> Self {
        self.meta(NFT_META_NFPROTO, 1)
            .compare(NFT_CMP_EQ, vec![IP6])
    }

    /// Matches the input interface by name, or by prefix if `name` ends in `*`.
    pub(crate) fn input_is(self, name: &str) -> Self {
        self.input_name().compare(NFT_CMP_EQ, pattern(name))
    }

    pub(crate) fn output_is(self, name: &str) -> Self {
        self.output_name().compare(NFT_CMP_EQ, pattern(name))
    }

    /// Matches the EtherType, in tables of the bridge family.
    pub(crate) fn ether_type(self, number: u16) -> Self {
        self.meta(NFT_META_PROTOCOL, 2)
            .compare(NFT_CMP_EQ, number.to_be_bytes().to_vec())
    }

    pub(crate) fn ether_type_is_not(self, number: u16) -> Self {
        self.meta(NFT_META_PROTOCOL, 2)
            .compare(NFT_CMP_NEQ, number.to_be_bytes().to_vec())
    }

    /// Matches packets to one of the host's own addresses.
    pub(crate) fn for_this_host(mut self) -> Self {
        let register = self.register(4);
        const RTN_LOCAL: u32 = 2;
        self.push("fib", move |data| {
            data.be32(NFTA_FIB_DREG, register)
                .be32(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE)
                .be32(NFTA_FIB_FLAGS, NFTA_FIB_F_DADDR)
        })
        .compare(NFT_CMP_EQ, RTN_LOCAL.to_ne_bytes().to_vec())
    }

    pub(crate) fn protocol_is(self, number: u8) -> Self {
        self.protocol().compare(NFT_CMP_EQ, vec![number])
    }

    pub(crate) fn destination_port_is(self, port: u16) -> Self {
        self.destination_port()
            .compare(NFT_CMP_EQ, port.to_be_bytes().to_vec())
    }

    pub(crate) fn icmp_type_is(self, number: u8) -> Self {
        self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1)
            .compare(NFT_CMP_EQ, vec![number])
    }

    /// Loads the target address of a neighbour advertisement (RFC 4861).
    pub(crate) fn neighbour_target(self) -> Self {
        self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, 8, 16)
    }

    /// Matches if the first `bits` bits of the loaded address equal those of `value`.
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
            data.be32(NFTA_BITWISE_SREG, NFT_REG32_00)
                .be32(NFTA_BITWISE_DREG, NFT_REG32_00)
                .be32(NFTA_BITWISE_LEN, length)
                .nest(NFTA_BITWISE_MASK, |inner| {
                    inner.bytes(NFTA_DATA_VALUE, &mask)
                })
                .nest(NFTA_BITWISE_XOR, |inner| {
                    inner.bytes(NFTA_DATA_VALUE, &zero)
                })
        })
        .compare(NFT_CMP_EQ, masked)
    }

    fn lookup(mut self, set: &str, inverted: bool) -> Self {
        self.1 = 0;
        let set = set.to_owned();
        self.push("lookup", move |data| {
            let data = data
                .text(NFTA_LOOKUP_SET, &set)
                .be32(NFTA_LOOKUP_SREG, NFT_REG32_00);
            if inverted {
                data.be32(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV)
            } else {
                data
            }
        })
    }

    pub(crate) fn among(self, set: &str) -> Self {
        self.lookup(set, false)
    }

    pub(crate) fn not_among(self, set: &str) -> Self {
        self.lookup(set, true)
    }

    /// Matches if the conntrack field `key` has one of these bits set.
    fn connection(self, key: u32, bits: u32) -> Self {
        let mut rule = self;
        let register = rule.register(4);
        rule.1 = 0;
        rule.push("ct", move |data| {
            data.be32(NFTA_CT_DREG, register).be32(NFTA_CT_KEY, key)
        })
        .push("bitwise", move |data| {
            data.be32(NFTA_BITWISE_SREG, NFT_REG32_00)
                .be32(NFTA_BITWISE_DREG, NFT_REG32_00)
                .be32(NFTA_BITWISE_LEN, 4)
                .nest(NFTA_BITWISE_MASK, |inner| {
                    inner.bytes(NFTA_DATA_VALUE, &bits.to_ne_bytes())
                })
                .nest(NFTA_BITWISE_XOR, |inner| {
                    inner.bytes(NFTA_DATA_VALUE, &[0; 4])
                })
        })
        .compare(NFT_CMP_NEQ, vec![0; 4])
    }

    pub(crate) fn established(self) -> Self {
        // NF_CT_STATE_BIT(IP_CT_ESTABLISHED) and NF_CT_STATE_BIT(IP_CT_RELATED).
        const ESTABLISHED: u32 = 2;
        const RELATED: u32 = 4;
        self.connection(NFT_CT_STATE, ESTABLISHED | RELATED)
    }

    /// Matches connections whose destination was translated, by a published port.
    pub(crate) fn translated(self) -> Self {
        const IPS_DST_NAT: u32 = 1 << 5;
        self.connection(NFT_CT_STATUS, IPS_DST_NAT)
    }

    // Verdicts and translations.

    fn verdict(self, code: u32) -> Self {
        self.push("immediate", move |data| {
            data.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT)
                .nest(NFTA_IMMEDIATE_DATA, |value| {
                    value.nest(NFTA_DATA_VERDICT, |verdict| {
                        verdict.be32(NFTA_VERDICT_CODE, code)
                    })
                })
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
            data.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT)
                .nest(NFTA_IMMEDIATE_DATA, |value| {
                    value.nest(NFTA_DATA_VERDICT, |verdict| {
                        verdict
                            .be32(NFTA_VERDICT_CODE, NFT_JUMP.cast_unsigned())
                            .text(NFTA_VERDICT_CHAIN, &chain)
                    })
                })
        })
    }

    pub(crate) fn masquerade(self) -> Self {
        self.push("masq", |data| data)
    }

    /// Translates the destination to the address and port that `map` has for the loaded key.
    pub(crate) fn destination_from(self, map: &str, address: Type) -> Self {
        let port = NFT_REG32_00 + padded(address.1) / 4;
        self.translated_from(map, address, NFT_NAT_DNAT, move |data| {
            data.be32(NFTA_NAT_REG_PROTO_MIN, port)
        })
    }

    /// Translates the source to the address that `map` has for the loaded key.
    pub(crate) fn source_from(self, map: &str, address: Type) -> Self {
        self.translated_from(map, address, NFT_NAT_SNAT, |data| data)
    }

    /// Translates an address to the one that `map` has for the loaded key. `more` adds attributes to the translation.
    fn translated_from(
        mut self,
        map: &str,
        address: Type,
        kind: u32,
        more: impl FnOnce(Message) -> Message + 'static,
    ) -> Self {
        self.1 = 0;
        let map = map.to_owned();
        let family = if address == IPV4 { IP } else { IP6 };
        self.push("lookup", move |data| {
            data.text(NFTA_LOOKUP_SET, &map)
                .be32(NFTA_LOOKUP_SREG, NFT_REG32_00)
                .be32(NFTA_LOOKUP_DREG, NFT_REG32_00)
        })
        .push("nat", move |data| {
            more(
                data.be32(NFTA_NAT_TYPE, kind)
                    .be32(NFTA_NAT_FAMILY, family.into())
                    .be32(NFTA_NAT_REG_ADDR_MIN, NFT_REG32_00),
            )
        })
    }

    /// Translates the destination to a fixed address and port.
    pub(crate) fn destination(self, address: std::net::Ipv4Addr, port: u16) -> Self {
        self.push("immediate", move |data| {
            data.be32(NFTA_IMMEDIATE_DREG, NFT_REG32_00)
                .nest(NFTA_IMMEDIATE_DATA, |value| {
                    value.bytes(NFTA_DATA_VALUE, &address.octets())
                })
        })
        .push("immediate", move |data| {
            data.be32(NFTA_IMMEDIATE_DREG, NFT_REG32_00 + 1)
                .nest(NFTA_IMMEDIATE_DATA, |value| {
                    value.bytes(NFTA_DATA_VALUE, &port.to_be_bytes())
                })
        })
        .push("nat", |data| {
            data.be32(NFTA_NAT_TYPE, NFT_NAT_DNAT)
                .be32(NFTA_NAT_FAMILY, IP.into())
                .be32(NFTA_NAT_REG_ADDR_MIN, NFT_REG32_00)
                .be32(NFTA_NAT_REG_PROTO_MIN, NFT_REG32_00 + 1)
        })
    }
}

/// Returns the bytes of an interface name to compare: up to the `*`, or all 16.
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
