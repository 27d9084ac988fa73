//! What a request may let its processes do: the network of the host, all privileges, devices. A Dockerfile alone cannot take
//! these rights: the request asks for each of them, and the engine's configuration must allow it.

use std::collections::BTreeSet;

use whelk_llb::Graph;
use whelk_llb::pb::op::Kind;
use whelk_llb::pb::{CdiDevice, ExecOp, NetMode, SecurityMode};

use crate::error::{Error, Result};

pub(crate) const NETWORK_HOST: &str = "network.host";
const SECURITY_INSECURE: &str = "security.insecure";
const DEVICE: &str = "device";

/// How many devices a request may name.
const MAX_DEVICES: usize = 1024;

/// What requests may ask for, with Docker's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllowedEntitlements {
    pub network_host: bool,
    pub security_insecure: bool,
    pub device: bool,
}

impl Default for AllowedEntitlements {
    fn default() -> Self {
        Self {
            network_host: true,
            security_insecure: false,
            device: true,
        }
    }
}

/// What a request has asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entitlements {
    /// Whether processes may have the network of the host.
    pub network_host: bool,
    /// Whether processes may have all privileges.
    pub security_insecure: bool,
    pub devices: Devices,
}

/// Devices that processes may have, by their names in CDI specifications.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    Named(BTreeSet<String>),
    All,
}

impl Default for Devices {
    fn default() -> Self {
        Self::Named(BTreeSet::new())
    }
}

impl Entitlements {
    /// Reads what a request asks for: `network.host`, `security.insecure`, `device` and `device=NAME`.
    ///
    /// # Errors
    /// Returns an error that names what is unknown, or not allowed by the configuration.
    pub fn parse(texts: &[String], allowed: AllowedEntitlements) -> Result<Self> {
        let mut found = Self::default();
        for text in texts {
            let (name, value) = match text.split_once('=') {
                Some((name, value)) if name == DEVICE => (name, Some(value)),
                _ => (text.as_str(), None),
            };
            let is_allowed = match name {
                NETWORK_HOST => {
                    found.network_host = true;
                    allowed.network_host
                }
                SECURITY_INSECURE => {
                    found.security_insecure = true;
                    allowed.security_insecure
                }
                DEVICE => {
                    found.devices.add(value.unwrap_or_default())?;
                    allowed.device
                }
                _ => return Err(Error::invalid(format!("unknown entitlement {name}"))),
            };
            if !is_allowed {
                let text = format!(
                    "granting entitlement {name} is not allowed by build daemon configuration (key builder.entitlements.{})",
                    name.replace('.', "-")
                );
                return Err(denied(text));
            }
        }
        Ok(found)
    }

    /// Refuses processes with rights that the request does not give. `registered` returns the devices that exist.
    ///
    /// # Errors
    /// Returns [`whelk_engine::Error::Denied`], and an error for a device that is required and does not exist.
    pub(crate) fn check(&self, graph: &Graph, registered: impl Fn() -> Vec<String>) -> Result<()> {
        let mut known: Option<Vec<String>> = None;
        for node in &graph.nodes {
            if let Some(Kind::Exec(exec)) = &node.op.kind {
                let checked = self.check_process(exec, &mut known, &registered);
                checked.map_err(|cause| Error::Step {
                    op: node.digest,
                    cause: Box::new(cause),
                })?;
            }
        }
        Ok(())
    }

    /// Refuses a process of a container with rights that the request does not give. It has no devices.
    ///
    /// # Errors
    /// Returns [`whelk_engine::Error::Denied`].
    pub(crate) fn check_container(&self, exec: &ExecOp) -> Result<()> {
        self.check_process(exec, &mut None, Vec::new)
    }

    /// Checks one process. `known` has the devices that exist, if they were asked for.
    fn check_process(
        &self,
        exec: &ExecOp,
        known: &mut Option<Vec<String>>,
        registered: impl Fn() -> Vec<String>,
    ) -> Result<()> {
        let has_host = NetMode::try_from(exec.network) == Ok(NetMode::Host);
        for (name, is_wanted, is_given) in [
            (NETWORK_HOST, has_host, self.network_host),
            (SECURITY_INSECURE, is_insecure(exec), self.security_insecure),
        ] {
            if is_wanted && !is_given {
                return Err(denied(format!(
                    "{name} is not allowed: the build has to ask for it (--allow {name})"
                )));
            }
        }
        if !exec.cdi_devices.is_empty() {
            let known = known.get_or_insert_with(registered);
            self.devices.check(&resolve(&exec.cdi_devices, known)?)?;
        }
        Ok(())
    }
}

impl Devices {
    /// Adds what follows `device=`.
    fn add(&mut self, name: &str) -> Result<()> {
        if name.is_empty() {
            *self = Self::All;
            return Ok(());
        }
        if name.contains(',') {
            let text = format!("the alias of a device ({DEVICE}={name})");
            return Err(Error::Unsupported(text));
        }
        if let Self::Named(names) = self {
            if names.len() == MAX_DEVICES {
                let text = format!("a request with more than {MAX_DEVICES} devices");
                return Err(Error::invalid(text));
            }
            names.insert(name.to_owned());
        }
        Ok(())
    }

    /// Refuses devices that the request does not name.
    ///
    /// # Errors
    /// Returns [`whelk_engine::Error::Denied`].
    pub(crate) fn check(&self, wanted: &[String]) -> Result<()> {
        let Self::Named(names) = self else {
            return Ok(());
        };
        let forbidden = wanted.iter().filter(|name| !names.contains(*name));
        let forbidden: Vec<&str> = forbidden.map(String::as_str).collect();
        match forbidden.as_slice() {
            [] => Ok(()),
            [name] => Err(denied(format!(
                "device {name} is requested by the build but not allowed"
            ))),
            names => Err(denied(format!(
                "devices {} are requested by the build but not allowed",
                names.join(", ")
            ))),
        }
    }
}

/// Returns whether a process has all privileges.
pub(crate) fn is_insecure(exec: &ExecOp) -> bool {
    SecurityMode::try_from(exec.security) == Ok(SecurityMode::Insecure)
}

/// Returns the names of the devices that a process gets: of `VENDOR/CLASS` the first one, of `VENDOR/CLASS=*` all.
///
/// # Errors
/// Returns an error for one that is required and does not exist.
pub(crate) fn resolve(wanted: &[CdiDevice], registered: &[String]) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    for device in wanted {
        let (kind, name) = match device.name.split_once('=') {
            Some((kind, name)) => (kind, name),
            None => (device.name.as_str(), ""),
        };
        let of_kind = registered.iter().filter(|one| {
            let rest = one.strip_prefix(kind);
            rest.is_some_and(|rest| rest.starts_with('='))
        });
        let found: Vec<&String> = match name {
            "" => of_kind.take(1).collect(),
            "*" => of_kind.collect(),
            _ => registered
                .iter()
                .filter(|one| **one == device.name)
                .collect(),
        };
        if found.is_empty() && !device.optional {
            let text = format!("required device {:?} is not registered", device.name);
            return Err(Error::invalid(text));
        }
        for name in found {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
    }
    Ok(names)
}

fn denied(text: String) -> Error {
    whelk_engine::Error::Denied(text).into()
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Result<Entitlements> {
        let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        let allowed = AllowedEntitlements {
            security_insecure: true,
            ..AllowedEntitlements::default()
        };
        Entitlements::parse(&texts, allowed)
    }

    #[test]
    fn requests_ask_for_what_the_configuration_allows() {
        let found = parse(&["network.host", "security.insecure", "device"]).unwrap();
        assert!(found.network_host && found.security_insecure);
        assert_eq!(found.devices, Devices::All);
        let found = parse(&["device=a.com/b=c", "device=a.com/b=d"]).unwrap();
        assert!(!found.network_host && !found.security_insecure);
        found.devices.check(&["a.com/b=d".into()]).unwrap();
        let check = |texts: &[&str], expected: &str| {
            let error = parse(texts).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&["security.all"], "unknown entitlement security.all");
        check(&["network.host=1"], "unknown entitlement network.host=1");
        check(&["device=a.com/b=c,alias=d"], "alias");
        let none = AllowedEntitlements {
            network_host: false,
            security_insecure: false,
            device: false,
        };
        for name in [NETWORK_HOST, SECURITY_INSECURE, DEVICE] {
            let error = Entitlements::parse(&[name.to_owned()], none).unwrap_err();
            let text =
                format!("granting entitlement {name} is not allowed by build daemon configuration");
            assert!(error.to_string().contains(&text), "{error}");
        }
    }

    #[test]
    fn devices_are_named_alone_or_by_their_kind() {
        let registered = ["a.com/b=1", "a.com/b=2", "a.com/bb=1"].map(str::to_owned);
        let resolved = |names: &[&str]| {
            let wanted = names.iter().map(|name| CdiDevice {
                name: (*name).to_owned(),
                optional: false,
            });
            let wanted: Vec<CdiDevice> = wanted.collect();
            resolve(&wanted, &registered).map(|names| names.join(" "))
        };
        assert_eq!(resolved(&["a.com/b"]).unwrap(), "a.com/b=1");
        assert_eq!(resolved(&["a.com/b=*"]).unwrap(), "a.com/b=1 a.com/b=2");
        assert_eq!(resolved(&["a.com/b=2", "a.com/b=2"]).unwrap(), "a.com/b=2");
        for missing in ["a.com/b=3", "a.com/c", "a.com/c=*", "", "="] {
            let error = resolved(&[missing]).unwrap_err().to_string();
            assert!(error.contains("is not registered"), "{missing}: {error}");
        }
        let optional = CdiDevice {
            name: "a.com/c=1".into(),
            optional: true,
        };
        assert_eq!(resolve(&[optional], &registered).unwrap(), [""; 0]);
    }

    #[test]
    fn devices_that_are_not_allowed_are_named() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let wanted: Vec<String> = names(&["a.com/b=1", "a.com/b=2"]);
        let refused = Devices::default().check(&wanted).unwrap_err().to_string();
        let text = "devices a.com/b=1, a.com/b=2 are requested by the build but not allowed";
        assert!(refused.contains(text), "{refused}");
        let one = Devices::Named(BTreeSet::from(["a.com/b=1".to_owned()]));
        let refused = one.check(&wanted).unwrap_err().to_string();
        let text = "device a.com/b=2 is requested by the build but not allowed";
        assert!(refused.contains(text), "{refused}");
        Devices::All.check(&wanted).unwrap();
    }
}
