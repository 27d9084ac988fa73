//! Sysctls of the container's own namespaces.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use crate::child::private_proc;
use crate::error::{Error, Result};
use crate::masks::write_proc;
use crate::namespaces;
use crate::spec::{Linux, NamespaceKind};

const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Rejects sysctls that would affect others than the container, with runc's error texts.
///
/// # Errors
/// Returns [`Error::Refused`] with the sysctl's name.
pub(crate) fn check(linux: &Linux) -> Result<()> {
    for key in linux.sysctl.keys() {
        let name = dotted(key);
        let name = name.as_str();
        if path_of(key)
            .split('/')
            .any(|part| matches!(part, "" | "." | ".."))
        {
            return Err(Error::Refused(format!("sysctl {name:?} {NOT_SEPARATE}")));
        }
        let (kind, refusal) = if IPC_SYSCTLS.contains(&name) || name.starts_with("fs.mqueue.") {
            (
                NamespaceKind::Ipc,
                "is not allowed in the hosts ipc namespace",
            )
        } else if name.starts_with("net.") {
            (
                NamespaceKind::Network,
                "not allowed in host network namespace",
            )
        } else if name == "kernel.hostname" && linux.namespace(NamespaceKind::Uts).is_some() {
            return Err(Error::Refused(format!(
                "sysctl {name:?} is not allowed as it conflicts with the OCI \"hostname\" field"
            )));
        } else if name == "kernel.domainname" {
            (NamespaceKind::Uts, NOT_SEPARATE)
        } else {
            return Err(Error::Refused(format!("sysctl {name:?} {NOT_SEPARATE}")));
        };
        if !namespaces::is_separate(linux, kind)? {
            return Err(Error::Refused(format!("sysctl {name:?} {refusal}")));
        }
    }
    Ok(())
}

const NOT_SEPARATE: &str = "is not in a separate kernel namespace";

/// Returns a key in the form with dots as separators. If the first separator of a key is a slash,
/// dots in it are part of names, as in the interface `eth0.1` (sysctl(8)).
fn dotted(key: &str) -> String {
    if key
        .find(['.', '/'])
        .is_some_and(|first| key.as_bytes()[first] == b'/')
    {
        swap_separators(key)
    } else {
        key.to_owned()
    }
}

/// Returns a key as a path below `/proc/sys`.
fn path_of(key: &str) -> String {
    swap_separators(&dotted(key))
}

fn swap_separators(key: &str) -> String {
    let exchange = |letter| match letter {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    key.chars().map(exchange).collect()
}

/// Sets the sysctls through the container's procfs, or through a private, unattached one if it has
/// none.
pub(crate) fn set(proc: Option<&OwnedFd>, values: &BTreeMap<String, String>) -> Result<()> {
    if values.is_empty() {
        return Ok(());
    }
    let private;
    let proc = match proc {
        Some(proc) => proc,
        None => {
            private = private_proc()?;
            &private
        }
    };
    for (key, value) in values {
        write_proc(proc, &format!("sys/{}", path_of(key)), value)
            .map_err(|error| error.during(&format!("sysctl {key}={value}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Namespace;

    /// Returns the error text of `check` for a container with new namespaces of these kinds, or an
    /// empty string.
    fn refusal(own: &[NamespaceKind], key: &str) -> String {
        let mut linux = Linux {
            sysctl: [(key.to_owned(), "1".to_owned())].into(),
            ..Linux::default()
        };
        linux.namespaces = own
            .iter()
            .map(|&kind| Namespace { kind, path: None })
            .collect();
        check(&linux).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn allows_only_sysctls_of_separate_namespaces() {
        let all = &[
            NamespaceKind::Ipc,
            NamespaceKind::Network,
            NamespaceKind::Uts,
        ];
        for key in [
            "kernel.msgmax",
            "fs.mqueue.msg_max",
            "net.ipv4.ip_forward",
            "net/ipv4/conf/eth0.1/x",
            "kernel.domainname",
            "kernel/sem",
        ] {
            assert_eq!(refusal(all, key), "");
        }
        assert_eq!(
            refusal(&[], "kernel.msgmax"),
            "sysctl \"kernel.msgmax\" is not allowed in the hosts ipc namespace"
        );
        assert_eq!(
            refusal(&[], "net/ipv4/ip_forward"),
            "sysctl \"net.ipv4.ip_forward\" not allowed in host network namespace"
        );
        for key in [
            "vm.swappiness",
            "kernel.panic",
            "user.max_user_namespaces",
            "",
            "net",
            "network.x",
        ] {
            assert_eq!(
                refusal(all, key),
                format!("sysctl {key:?} is not in a separate kernel namespace")
            );
        }
        assert_eq!(
            refusal(&[], "kernel.domainname"),
            "sysctl \"kernel.domainname\" is not in a separate kernel namespace"
        );
        assert!(
            refusal(all, "kernel.hostname").ends_with("conflicts with the OCI \"hostname\" field")
        );
        for key in [
            "net/../kernel/panic",
            "net.//.kernel.panic",
            "net....kernel.panic",
            "net/./ipv4",
            "net.",
            "net.ipv4.",
        ] {
            assert!(
                refusal(all, key).ends_with("is not in a separate kernel namespace"),
                "{key}"
            );
        }
    }

    #[test]
    fn a_sysctl_requires_a_namespace_other_than_the_callers() {
        let mut linux = Linux {
            sysctl: [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into(),
            ..Linux::default()
        };
        linux.namespaces = vec![Namespace {
            kind: NamespaceKind::Network,
            path: Some("/proc/thread-self/ns/net".into()),
        }];
        assert_eq!(
            check(&linux).unwrap_err().to_string(),
            "sysctl \"net.ipv4.ip_forward\" not allowed in host network namespace"
        );
    }

    #[test]
    fn converts_keys_to_paths() {
        assert_eq!(path_of("net.ipv4.conf.eth0/1.x"), "net/ipv4/conf/eth0.1/x");
        assert_eq!(path_of("net/ipv4/conf/eth0.1/x"), "net/ipv4/conf/eth0.1/x");
    }
}
