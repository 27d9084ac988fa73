//! Entries of hosts files, as clients write them: `NAME:ADDRESS` or `NAME=ADDRESS`.

/// Stands for the addresses of the host.
pub const HOST_GATEWAY: &str = "host-gateway";

/// Returns the name and the address of an entry; `None` if it has no separator. An IPv6 address has colons in it, so the first
/// separator counts, and it may be in brackets.
pub fn split(entry: &str) -> Option<(&str, &str)> {
    let (name, address) = entry.split_once([':', '='])?;
    let plain = address.strip_prefix('[');
    let plain = plain.and_then(|rest| rest.strip_suffix(']'));
    Some((name, plain.unwrap_or(address)))
}

/// Returns the addresses that an entry's address stands for: those of the host, which `host` returns, or itself.
pub fn addresses(address: &str, host: impl FnOnce() -> Vec<String>) -> Vec<String> {
    match address {
        HOST_GATEWAY => host(),
        address => vec![address.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_names_and_addresses() {
        for (entry, expected) in [
            ("a:10.0.0.1", Some(("a", "10.0.0.1"))),
            ("a=10.0.0.1", Some(("a", "10.0.0.1"))),
            ("a:fd00::1", Some(("a", "fd00::1"))),
            ("a=[fd00::1]", Some(("a", "fd00::1"))),
            ("a:host-gateway", Some(("a", HOST_GATEWAY))),
            ("a:", Some(("a", ""))),
            ("a", None),
        ] {
            assert_eq!(split(entry), expected, "{entry}");
        }
    }

    #[test]
    fn the_host_may_have_several_addresses() {
        let host = || vec!["10.0.0.1".to_owned(), "fd00::1".to_owned()];
        assert_eq!(addresses(HOST_GATEWAY, host), host());
        assert_eq!(addresses("10.9.8.7", host), ["10.9.8.7"]);
    }
}
