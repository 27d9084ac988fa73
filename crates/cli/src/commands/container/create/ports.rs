//! Parsers for published and exposed ports (`--publish`, `--expose`).

use whelk_api_types::{Empty, PortBinding, PortMap, Set};

use crate::commands::container::create::invalid;
use crate::{Failure, Outcome};

/// An inclusive range of ports.
type Range = (u16, u16);

/// Parses a port number, with the error texts of Go's `strconv.ParseUint`.
pub(crate) fn number(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let why = if is_number {
            "value out of range"
        } else {
            "invalid syntax"
        };
        format!("strconv.ParseUint: parsing {text:?}: {why}")
    })
}

fn range(text: &str) -> Result<Range, String> {
    if text.is_empty() {
        return Err("Empty string specified for ports.".into());
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (number(first)?, number(last)?);
    if last < first {
        Err(format!("Invalid range specified for the Port: {text}"))
    } else {
        Ok((first, last))
    }
}

/// Splits `PORT[/PROTOCOL]`. Like Docker, ignores what follows a second slash.
fn protocol_of(text: &str) -> (&str, String) {
    let mut parts = text.split('/');
    let port = parts.next().unwrap_or_default();
    match parts.next() {
        None | Some("") => (port, "tcp".to_owned()),
        Some(protocol) => (port, protocol.to_lowercase()),
    }
}

/// Converts the long form `published=80,target=80,protocol=tcp` to the short form. Like Docker,
/// ignores other fields: `mode` concerns services only.
fn short_form(text: &str) -> Outcome<String> {
    if !text.contains('=') {
        return Ok(text.to_owned());
    }
    let (mut published, mut target, mut protocol) = ("", "", "tcp");
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("published", value)) => published = value,
            Some(("target", value)) => target = value,
            Some(("protocol", value)) => protocol = value,
            Some((key, _)) if !key.is_empty() => {}
            _ => {
                return Err(invalid(format!(
                    "invalid publish opts format (should be name=value but got '{field}')"
                )));
            }
        }
    }
    Ok(format!("{published}:{target}/{protocol}"))
}

/// Returns the error for a host address, with Docker's text.
fn invalid_address(address: &str) -> Failure {
    let detail = if address.starts_with('[') {
        "missing ']' in address"
    } else if address.contains(':') {
        "too many colons in address"
    } else {
        return invalid(format!("Invalid ip address: {address}"));
    };
    invalid(format!(
        "Invalid ip address {address}: address {address}:: {detail}"
    ))
}

/// Parses `--publish` and `--expose` flags: returns the exposed ports, and the bindings by
/// container port.
pub(crate) fn parse(published: &[String], exposed: &[String]) -> Outcome<(Set, PortMap)> {
    let (mut ports, mut bindings) = (Set::new(), PortMap::new());
    for text in published {
        let text = short_form(text)?;
        for (port, binding) in port_bindings(&text)? {
            ports.insert(port.clone(), Empty {});
            let list = bindings.entry(port).or_default();
            list.get_or_insert_default().push(binding);
        }
    }
    for text in exposed {
        if text.contains(':') {
            return Err(invalid(format!("invalid port format for --expose: {text}")));
        }
        // The engine checks the protocol, as Docker's does.
        let (port, protocol) = protocol_of(text);
        let (first, last) = range(port).map_err(|error| {
            invalid(format!(
                "invalid range format for --expose: {text}, error: {error}"
            ))
        })?;
        for port in first..=last {
            ports.insert(format!("{port}/{protocol}"), Empty {});
        }
    }
    Ok((ports, bindings))
}

/// Parses `[[ADDRESS:]HOST:]CONTAINER[/PROTOCOL]`; both ports may be ranges.
fn port_bindings(text: &str) -> Outcome<Vec<(String, PortBinding)>> {
    let mut parts = text.rsplitn(3, ':');
    let container = parts.next().unwrap_or_default();
    let host = parts.next().unwrap_or_default();
    let address = parts.next().unwrap_or_default();
    let (container, protocol) = protocol_of(container);
    if container.is_empty() {
        return Err(invalid(format!("No port specified: {text}<empty>")));
    }
    let plain = address
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(address);
    if !plain.is_empty() && plain.parse::<std::net::IpAddr>().is_err() {
        return Err(invalid_address(address));
    }
    let (first, last) =
        range(container).map_err(|_| invalid(format!("Invalid containerPort: {container}")))?;
    let outer = if host.is_empty() {
        None
    } else {
        Some(range(host).map_err(|_| invalid(format!("Invalid hostPort: {host}")))?)
    };
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(invalid(format!("Invalid proto: {protocol}")));
    }
    let width = |(first, last): Range| last - first;
    if first != last && outer.is_some_and(|outer| width(outer) != width((first, last))) {
        return Err(invalid(format!(
            "Invalid ranges specified for container and host Ports: {container} and {host}"
        )));
    }
    let bindings = (first..=last).map(|port| {
        let host_port = match outer {
            None => String::new(),
            // One container port, published at a free port of this range.
            Some((begin, end)) if first == last && begin != end => format!("{begin}-{end}"),
            Some((begin, _)) => (begin + (port - first)).to_string(),
        };
        (
            format!("{port}/{protocol}"),
            PortBinding {
                host_ip: plain.to_owned(),
                host_port,
            },
        )
    });
    Ok(bindings.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bindings(text: &str) -> Result<PortMap, String> {
        let parsed = parse(&[text.to_owned()], &[]);
        parsed
            .map(|(_, bindings)| bindings)
            .map_err(|failure| failure.text)
    }

    #[test]
    fn parses_published_ports() {
        let check = |text: &str, expected: &[(&str, &str, &str)]| {
            let expected = expected.iter().map(|&(port, host_ip, host_port)| {
                let binding = PortBinding {
                    host_ip: host_ip.into(),
                    host_port: host_port.into(),
                };
                (port.to_owned(), Some(vec![binding]))
            });
            assert_eq!(bindings(text), Ok(expected.collect()), "{text}");
        };
        check("80", &[("80/tcp", "", "")]);
        check("8080:80/udp", &[("80/udp", "", "8080")]);
        check("127.0.0.1::80", &[("80/tcp", "127.0.0.1", "")]);
        check("[::1]:1:80", &[("80/tcp", "::1", "1")]);
        check("::1:1:80", &[("80/tcp", "::1", "1")]);
        check("10-11:20-21", &[("20/tcp", "", "10"), ("21/tcp", "", "11")]);
        check("8000-8010:80", &[("80/tcp", "", "8000-8010")]);
        check(
            "published=1,target=2,protocol=udp,mode=host",
            &[("2/udp", "", "1")],
        );
    }

    #[test]
    fn rejects_invalid_ports() {
        for (text, error) in [
            ("", "No port specified: <empty>"),
            ("abc", "Invalid containerPort: abc"),
            ("70000:80", "Invalid hostPort: 70000"),
            (
                "1-3:5-6",
                "Invalid ranges specified for container and host Ports: 5-6 and 1-3",
            ),
            ("1.2.3.400:80:80", "Invalid ip address: 1.2.3.400"),
            (
                "[::1:80:80",
                "Invalid ip address [::1: address [::1:: missing ']' in address",
            ),
            (
                "1:2:3:4",
                "Invalid ip address 1:2: address 1:2:: too many colons in address",
            ),
            ("80:80/foo", "Invalid proto: foo"),
            ("a=b", "No port specified: :/tcp<empty>"),
            (
                "a=b,c",
                "invalid publish opts format (should be name=value but got 'c')",
            ),
            (
                "=b",
                "invalid publish opts format (should be name=value but got '=b')",
            ),
        ] {
            assert_eq!(bindings(text), Err(error.to_owned()), "{text}");
        }
        let exposed = |text: &str| parse(&[], &[text.to_owned()]).unwrap_err().text;
        assert_eq!(exposed("80:80"), "invalid port format for --expose: 80:80");
        assert_eq!(
            exposed("5-3"),
            "invalid range format for --expose: 5-3, error: Invalid range specified for the Port: 5-3"
        );
        assert_eq!(
            exposed(""),
            "invalid range format for --expose: , error: Empty string specified for ports."
        );
        assert_eq!(
            exposed("70000"),
            "invalid range format for --expose: 70000, error: strconv.ParseUint: parsing \"70000\": value out of range"
        );
    }
}
