//! Answers DNS queries about containers and decides which ones are forwarded. Pure: bytes in, bytes
//! out.

use std::net::IpAddr;

use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name, ToName, Ttl};
use domain::rdata::{A, Aaaa, Ptr};

/// TTL of answers in seconds, the same as Docker's.
const TTL: u32 = 600;

/// The result of looking up a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// The name belongs to a container; all its addresses.
    Addresses(Vec<IpAddr>),
    /// The address belongs to a container; its name.
    Name(String),
    /// Unknown here; another resolver may know it.
    Nothing,
}

/// A question of a DNS query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// A domain name in lower case, without the final dot.
    Address(String),
    /// An address, from a reverse lookup.
    Name(IpAddr),
}

/// What to do with a received packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Reply(Vec<u8>),
    /// Forward the query to the upstream resolvers.
    Forward,
    /// Not a query: send nothing.
    Ignore,
}

/// Maximum size in bytes of a UDP answer to a client without EDNS (RFC 1035 section 4.2.1).
const MAX_UDP: usize = 512;
/// Maximum size in bytes of a UDP answer to a client with EDNS: larger packets would be fragmented
/// on the way.
const MAX_EDNS: usize = 1232;

/// Answers a query with what `look_up` returns. `stream` is true for TCP, where an answer may have
/// up to 65,535 bytes.
pub fn answer(packet: &[u8], stream: bool, look_up: impl FnOnce(&Question) -> Known) -> Verdict {
    let Ok(message) = Message::from_octets(packet) else {
        return Verdict::Ignore;
    };
    if message.header().qr() {
        return Verdict::Ignore;
    }
    let Ok(asked) = message.sole_question() else {
        return Verdict::Forward;
    };
    if asked.qclass() != Class::IN {
        return Verdict::Forward;
    }
    let name = asked.qname().to_vec();
    let kind = asked.qtype();
    let known = look_up(&to_question(&name));
    let limit = if stream {
        usize::from(u16::MAX)
    } else {
        max_udp_answer(&message)
    };
    let reply = match known {
        Known::Nothing => return Verdict::Forward,
        Known::Addresses(addresses) => reply(&message, limit, |builder| {
            // A container without an address of this family gets an empty answer. Forwarding the
            // query would leak the name, and another resolver could answer it wrongly.
            for address in addresses {
                match address {
                    IpAddr::V4(address) if matches!(kind, Rtype::A | Rtype::ANY) => {
                        builder
                            .push((&name, Ttl::from_secs(TTL), A::new(address)))
                            .map_err(drop)?;
                    }
                    IpAddr::V6(address) if matches!(kind, Rtype::AAAA | Rtype::ANY) => {
                        builder
                            .push((&name, Ttl::from_secs(TTL), Aaaa::new(address)))
                            .map_err(drop)?;
                    }
                    _ => {}
                }
            }
            Ok(())
        }),
        // The same for other record types asked about a container's address.
        Known::Name(_) if !matches!(kind, Rtype::PTR | Rtype::ANY) => {
            reply(&message, limit, |_| Ok(()))
        }
        Known::Name(target) => reply(&message, limit, |builder| {
            let target: Name<Vec<u8>> = target.parse().map_err(drop)?;
            builder
                .push((&name, Ttl::from_secs(TTL), Ptr::new(target)))
                .map_err(drop)
        }),
    };
    reply.map_or(Verdict::Ignore, Verdict::Reply)
}

/// Returns a SERVFAIL answer: no upstream resolver could be reached, or none may be asked.
pub fn failure(packet: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_octets(packet).ok()?;
    let mut builder = MessageBuilder::new_vec()
        .start_answer(&message, Rcode::SERVFAIL)
        .ok()?;
    builder.header_mut().set_ra(true);
    Some(builder.finish())
}

/// Returns whether a reply is an error that makes glibc's resolver ask the next server: SERVFAIL,
/// NOTIMP or REFUSED.
pub fn is_refusal(reply: &[u8]) -> bool {
    Message::from_octets(reply).is_ok_and(|message| {
        matches!(
            message.header().rcode(),
            Rcode::SERVFAIL | Rcode::NOTIMP | Rcode::REFUSED
        )
    })
}

type Answers = domain::base::message_builder::AnswerBuilder<Vec<u8>>;

fn reply(
    message: &Message<&[u8]>,
    limit: usize,
    fill: impl FnOnce(&mut Answers) -> Result<(), ()>,
) -> Option<Vec<u8>> {
    let mut target = MessageBuilder::new_vec();
    target.set_push_limit(limit);
    let mut builder = target.start_answer(message, Rcode::NOERROR).ok()?;
    builder.header_mut().set_ra(true);
    if fill(&mut builder).is_err() {
        // Truncated: the client asks again over TCP.
        builder.header_mut().set_tc(true);
    }
    Some(builder.finish())
}

fn max_udp_answer(message: &Message<&[u8]>) -> usize {
    message.opt().map_or(MAX_UDP, |opt| {
        usize::from(opt.udp_payload_size()).clamp(MAX_UDP, MAX_EDNS)
    })
}

/// Converts a queried name. The record type does not matter: all queries about a container are
/// answered here.
fn to_question(name: &Name<Vec<u8>>) -> Question {
    let text = name.to_string().to_ascii_lowercase();
    let text = text.trim_end_matches('.');
    to_address(text).map_or_else(|| Question::Address(text.to_owned()), Question::Name)
}

/// Parses a reverse lookup name (RFC 1035 section 3.5, RFC 3596 section 2.5).
fn to_address(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".in-addr.arpa") {
        let octets: Vec<u8> = rest
            .split('.')
            .rev()
            .map(|part| part.parse().ok())
            .collect::<Option<_>>()?;
        return <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    }
    let nibbles: Vec<u8> = name
        .strip_suffix(".ip6.arpa")?
        .split('.')
        .rev()
        .map(|part| u8::from_str_radix(part, 16).ok())
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = nibbles
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |byte, nibble| byte << 4 | nibble & 0xf))
        .collect();
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: Rtype, size: Option<u16>) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec().question();
        builder.header_mut().set_id(0x1234);
        builder.header_mut().set_rd(true);
        builder
            .push((name.parse::<Name<Vec<u8>>>().unwrap(), kind))
            .unwrap();
        let mut builder = builder.additional();
        if let Some(size) = size {
            builder
                .opt(|opt| {
                    opt.set_udp_payload_size(size);
                    Ok(())
                })
                .unwrap();
        }
        builder.finish()
    }

    fn known(question: &Question) -> Known {
        match question {
            Question::Address(name) if name == "web" => Known::Addresses(vec![
                "10.0.0.2".parse().unwrap(),
                "fd00::2".parse().unwrap(),
            ]),
            Question::Address(name) if name == "many" => Known::Addresses(
                (0..100)
                    .map(|last| IpAddr::from([10, 0, 0, last]))
                    .collect(),
            ),
            Question::Name(address) if address.to_string() == "10.0.0.2" => {
                Known::Name("web.net".into())
            }
            Question::Name(address) if address.to_string() == "fd00::2" => {
                Known::Name("web.net".into())
            }
            _ => Known::Nothing,
        }
    }

    fn check(name: &str, kind: Rtype, expected: &str) {
        let text = match answer(&query(name, kind, None), false, known) {
            Verdict::Reply(bytes) => {
                let message = Message::from_octets(bytes).unwrap();
                assert!(message.header().qr() && message.header().ra() && message.header().rd());
                assert_eq!(message.header().id(), 0x1234);
                let records: Vec<String> = message
                    .answer()
                    .unwrap()
                    .map(|record| {
                        record
                            .unwrap()
                            .into_any_record::<domain::rdata::AllRecordData<_, _>>()
                            .unwrap()
                            .data()
                            .to_string()
                    })
                    .collect();
                records.join(" ")
            }
            other => format!("{other:?}"),
        };
        assert_eq!(text, expected, "{name} {kind}");
    }

    #[test]
    fn answers_names_and_addresses_of_endpoints() {
        check("web", Rtype::A, "10.0.0.2");
        check("WEB.", Rtype::A, "10.0.0.2");
        check("web", Rtype::AAAA, "fd00::2");
        check("2.0.0.10.in-addr.arpa", Rtype::PTR, "web.net.");
        check(
            "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
            Rtype::PTR,
            "web.net.",
        );
        check("example.com", Rtype::A, "Forward");
        // For other record types the answer is empty, and the query is not forwarded.
        for kind in [
            Rtype::MX,
            Rtype::TXT,
            Rtype::HTTPS,
            Rtype::SRV,
            Rtype::SOA,
            Rtype::NS,
            Rtype::PTR,
            Rtype::from_int(65_300),
        ] {
            check("web", kind, "");
            check("example.com", kind, "Forward");
        }
        check("2.0.0.10.in-addr.arpa", Rtype::TXT, "");
        check("2.0.0.10.in-addr.arpa", Rtype::ANY, "web.net.");
        check("3.0.0.10.in-addr.arpa", Rtype::TXT, "Forward");
        check("nonsense.in-addr.arpa", Rtype::PTR, "Forward");
    }

    #[test]
    fn long_answers_are_truncated_over_udp_only() {
        let truncated = |packet: &[u8], stream| match answer(packet, stream, known) {
            Verdict::Reply(bytes) => (
                bytes.len(),
                Message::from_octets(bytes).unwrap().header().tc(),
            ),
            other => panic!("{other:?}"),
        };
        let (length, cut) = truncated(&query("many", Rtype::A, None), false);
        assert!(cut && length <= 512);
        let (length, cut) = truncated(&query("many", Rtype::A, Some(4096)), false);
        assert!(cut && (513..=1232).contains(&length));
        assert!(!truncated(&query("many", Rtype::A, None), true).1);
    }

    #[test]
    fn malformed_packets_and_replies_are_ignored() {
        for length in 0..64 {
            let _ = answer(&vec![0xff; length], false, known);
            let _ = answer(&vec![0; length], false, known);
            let _ = failure(&vec![0; length]);
        }
        let mut reply = query("web", Rtype::A, None);
        reply[2] |= 0x80;
        assert_eq!(answer(&reply, false, known), Verdict::Ignore);
    }
}
