//! Answering questions for names: what is known here is answered, the rest is passed on as it came.
//! Pure: bytes in, bytes out.

use std::net::IpAddr;

use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name, ToName, Ttl};
use domain::rdata::{A, Aaaa, Ptr};

/// Seconds that an answer may be kept: as with Docker, and long enough for one page load.
const TTL: u32 = 600;

/// What is known about a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// A name of ours, with all its addresses.
    Addresses(Vec<IpAddr>),
    /// An address of ours, with its name.
    Name(String),
    /// Nothing: somebody else may know.
    Nothing,
}

/// A question that can be looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Lower case, without the final dot.
    Address(String),
    Name(IpAddr),
}

/// What to do with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Reply(Vec<u8>),
    /// Ask the resolvers of the host.
    Forward,
    /// Not a question: nothing to say.
    Ignore,
}

/// The largest answer over UDP to a client that does not say more (RFC 1035 4.2.1).
const SMALL: usize = 512;
/// What clients with EDNS get at most over UDP: larger packets are cut up on the way.
const LARGE: usize = 1232;

/// Answers a packet by what `look_up` knows. `stream` is set for TCP, where length is no matter.
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
        allowed(&message)
    };
    let reply = match known {
        Known::Nothing => return Verdict::Forward,
        Known::Addresses(addresses) => reply(&message, limit, |builder| {
            // A name of ours without an address of this kind has an answer too: none. Asking others
            // would be wrong.
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
        // Likewise for what else could be asked about an address of ours.
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

/// The answer that tells a client to ask somebody else: no resolver could be reached, or none may
/// be asked.
pub fn failure(packet: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_octets(packet).ok()?;
    let mut builder = MessageBuilder::new_vec()
        .start_answer(&message, Rcode::SERVFAIL)
        .ok()?;
    builder.header_mut().set_ra(true);
    Some(builder.finish())
}

/// Whether a reply says that its sender cannot tell: another one may. The same as for glibc's
/// resolver.
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
        // Too long for a packet: the client asks again over TCP.
        builder.header_mut().set_tc(true);
    }
    Some(builder.finish())
}

fn allowed(message: &Message<&[u8]>) -> usize {
    message.opt().map_or(SMALL, |opt| {
        usize::from(opt.udp_payload_size()).clamp(SMALL, LARGE)
    })
}

/// A name of ours is ours whole: questions of every kind about it are answered here.
fn to_question(name: &Name<Vec<u8>>) -> Question {
    let text = name.to_string().to_ascii_lowercase();
    let text = text.trim_end_matches('.');
    to_address(text).map_or_else(|| Question::Address(text.to_owned()), Question::Name)
}

/// The address behind a name for reverse lookups (RFC 1035 3.5, RFC 3596 2.5).
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
    fn answers() {
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
        // Of every other kind there is nothing, and nobody else knows better.
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
    fn long_answers_are_cut_over_udp_only() {
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
    fn garbage_is_not_answered() {
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
