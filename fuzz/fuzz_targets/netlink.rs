//! Decodes messages of the kernel: links, routes, firewall rules, conntrack entries.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| whelk_network::fuzzing::netlink(datagram));
