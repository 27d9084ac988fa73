//! Capabilities and `--security-opt`.

use std::collections::BTreeSet;

use whelk_runtime::caps;

use crate::error::{Error, Result};
use crate::model::HostConfig;

/// Returns the names of the capabilities that a container gets.
///
/// # Errors
/// Returns an error if a name is not a capability.
pub fn capabilities(host: &HostConfig) -> Result<Vec<String>> {
    let add = normalise(host.cap_add.as_deref(), "CapAdd")?;
    let drop = normalise(host.cap_drop.as_deref(), "CapDrop")?;
    if host.privileged {
        return Ok(caps::available().into_iter().map(str::to_owned).collect());
    }
    let all = || caps::available().into_iter().map(str::to_owned);
    let has_all = |set: &BTreeSet<String>| set.contains("ALL");
    let base: Vec<String> = match (has_all(&add), has_all(&drop)) {
        (true, _) => all().collect(),
        (false, true) => Vec::new(),
        (false, false) => caps::DEFAULT.iter().map(|&name| name.to_owned()).collect(),
    };
    let mut result: Vec<String> = base
        .into_iter()
        .filter(|name| !drop.contains(name))
        .collect();
    result.extend(
        add.into_iter()
            .filter(|name| name != "ALL" && (has_all(&drop) || !drop.contains(name))),
    );
    let mut seen = BTreeSet::new();
    result.retain(|name| seen.insert(name.clone()));
    Ok(result)
}

fn normalise(names: Option<&[String]>, field: &str) -> Result<BTreeSet<String>> {
    let normal = |name: &String| {
        let upper = name.to_uppercase();
        if upper == "ALL" {
            return Ok(upper);
        }
        let name = if upper.starts_with("CAP_") {
            upper
        } else {
            format!("CAP_{upper}")
        };
        if caps::number(&name).is_some() {
            Ok(name)
        } else {
            Err(Error::invalid(format!(
                "invalid {field}: unknown capability: {name:?}"
            )))
        }
    };
    names.unwrap_or_default().iter().map(normal).collect()
}

/// The seccomp profile of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    #[default]
    Default,
    Unconfined,
    /// A profile as JSON.
    Custom(String),
}

/// Exists if SELinux is enabled.
pub(crate) const SELINUX: &str = "/sys/fs/selinux/enforce";

/// The parsed `--security-opt` options of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub no_new_privileges: bool,
    pub seccomp: Seccomp,
    /// The AppArmor profile; empty for the host's default.
    pub apparmor: String,
    /// Without the option those of privileged containers are writable.
    pub writable_cgroups: Option<bool>,
}

impl Options {
    /// Parses the options, and applies the defaults of privileged containers.
    ///
    /// # Errors
    /// Returns an error if an option does not exist or has an invalid value.
    pub fn parse(host: &HostConfig) -> Result<Self> {
        let mut options = Self::default();
        for option in host.security_opt.iter().flatten() {
            let invalid = || Error::invalid(format!("invalid --security-opt 2: {option:?}"));
            if option == "no-new-privileges" {
                options.no_new_privileges = true;
                continue;
            }
            if option == "writable-cgroups" {
                options.writable_cgroups = Some(true);
                continue;
            }
            if option == "disable" {
                // The old form of "label=disable".
                continue;
            }
            // Old clients use a colon as the separator. A seccomp profile contains colons, so "="
            // is searched first.
            let (key, value) = option
                .split_once('=')
                .or_else(|| option.split_once(':'))
                .ok_or_else(|| Error::invalid(format!("invalid --security-opt 1: {option:?}")))?;
            let flag = || whelk_text::parse_bool(value).ok_or_else(invalid);
            match key {
                "no-new-privileges" => options.no_new_privileges = flag()?,
                "writable-cgroups" => options.writable_cgroups = Some(flag()?),
                "apparmor" => options.apparmor = value.to_owned(),
                // Containers are not confined by SELinux. That is what `disable` asks for, and on a
                // host without SELinux the other options have no effect.
                "label" if value == "disable" || !whelk_sys::fs::exists(SELINUX) => {}
                "label" => {
                    return Err(Error::unsupported(format_args!("--security-opt {option}")));
                }
                "seccomp" => {
                    options.seccomp = match value {
                        "unconfined" => Seccomp::Unconfined,
                        "builtin" | "" => Seccomp::Default,
                        profile => Seccomp::Custom(profile.to_owned()),
                    }
                }
                _ => return Err(invalid()),
            }
        }
        if host.privileged && options.seccomp == Seccomp::Default {
            options.seccomp = Seccomp::Unconfined;
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps_of(add: &[&str], drop: &[&str]) -> String {
        let list = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
        let host = HostConfig {
            cap_add: list(add),
            cap_drop: list(drop),
            ..HostConfig::default()
        };
        capabilities(&host).map_or_else(|error| error.to_string(), |names| names.join(" "))
    }

    #[test]
    fn adds_and_drops_capabilities() {
        assert_eq!(
            caps_of(&["net_admin", "CAP_CHOWN"], &["all"]),
            "CAP_CHOWN CAP_NET_ADMIN"
        );
        assert!(!caps_of(&[], &["MKNOD"]).contains("MKNOD"));
        assert!(
            caps_of(&["ALL"], &["SYS_ADMIN"]).contains("SYS_PTRACE")
                && !caps_of(&["ALL"], &["SYS_ADMIN"]).contains("SYS_ADMIN")
        );
        assert_eq!(
            caps_of(&["FOO"], &[]),
            "invalid CapAdd: unknown capability: \"CAP_FOO\""
        );
        assert_eq!(
            caps_of(&[""], &[]),
            "invalid CapAdd: unknown capability: \"CAP_\""
        );
    }

    fn options(words: &[&str]) -> Result<Options> {
        Options::parse(&HostConfig {
            security_opt: Some(words.iter().map(|&word| word.to_owned()).collect()),
            ..HostConfig::default()
        })
    }

    #[test]
    fn parses_security_options() {
        assert!(
            options(&["no-new-privileges:true"])
                .unwrap()
                .no_new_privileges
        );
        for (word, expected) in [
            ("writable-cgroups", true),
            ("writable-cgroups=true", true),
            ("writable-cgroups=false", false),
        ] {
            let parsed = options(&[word]).unwrap();
            assert_eq!(parsed.writable_cgroups, Some(expected), "{word}");
        }
        assert_eq!(options(&[]).unwrap().writable_cgroups, None);
        assert_eq!(
            options(&["writable"]).unwrap_err().to_string(),
            "invalid --security-opt 1: \"writable\""
        );
        assert_eq!(
            options(&["seccomp={\"a\":1}"]).unwrap().seccomp,
            Seccomp::Custom("{\"a\":1}".into())
        );
        for word in ["foo=bar", "no-new-privileges=maybe"] {
            assert_eq!(
                options(&[word]).unwrap_err().to_string(),
                format!("invalid --security-opt 2: {word:?}")
            );
        }
    }
}
