//! Entry points for the fuzz targets: decoders of what the kernel sends, which are private.

use crate::netlink::{Attributes, messages, outcome};
use crate::{conntrack, forward_accept, link};

/// Decodes a datagram of netlink messages with every decoder of this crate.
pub fn netlink(datagram: &[u8]) {
    for (_, reply) in messages(datagram) {
        let _ = outcome(&reply);
        let _ = link::parse_link(&reply);
        let _ = link::parse_route(&reply);
        let _ = forward_accept::comment(&reply);
        let _ = forward_accept::handle(&reply);
        if let Some((_, attributes)) = reply.split(4) {
            for (kind, value) in attributes {
                let _ = conntrack::destination(value);
                let _ = (attributes.text(kind), attributes.ip(kind));
                let _ = Attributes(value).count();
            }
        }
    }
}
