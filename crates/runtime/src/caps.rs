//! Capability names, and setting the capability sets of a process.

use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

use crate::error::{Error, Result, os};
use crate::spec::Capabilities;

/// Capability names in the order of their numbers (capabilities(7)).
pub const NAMES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Capabilities of a container by default: the same 14 as Docker's.
pub const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Returns the number of a capability, or `None` if the name is unknown.
pub fn number(name: &str) -> Option<u32> {
    NAMES
        .iter()
        .position(|known| *known == name)
        .and_then(|index| u32::try_from(index).ok())
}

/// Returns the capabilities in the bounding set of this process, which limits what it can pass on.
pub fn available() -> Vec<&'static str> {
    NAMES
        .iter()
        .enumerate()
        .filter(|(index, _)| {
            rustix::thread::capability_is_in_bounding_set(CapabilitySet::from_bits_retain(
                1 << index,
            ))
            .unwrap_or(false)
        })
        .map(|(_, name)| *name)
        .collect()
}

/// Capability sets of a process as bit masks, without those that are not available here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sets {
    bounding: u64,
    effective: u64,
    permitted: u64,
    inheritable: u64,
    ambient: u64,
}

impl Sets {
    /// Translates names to bits. A known capability that is not available here is left out, as the
    /// OCI specification requires.
    ///
    /// # Errors
    /// Returns an error for an unknown name.
    pub(crate) fn resolve(capabilities: &Capabilities) -> Result<Self> {
        let held = available()
            .iter()
            .filter_map(|name| number(name))
            .fold(0u64, |bits, n| bits | 1 << n);
        let bits = |names: &[String]| -> Result<u64> {
            let mut bits = 0u64;
            for name in names {
                let number = number(name)
                    .ok_or_else(|| Error::invalid(format!("unknown capability {name:?}")))?;
                bits |= 1 << number;
            }
            Ok(bits & held)
        };
        let permitted = bits(&capabilities.permitted)?;
        let inheritable = bits(&capabilities.inheritable)?;
        Ok(Self {
            bounding: bits(&capabilities.bounding)?,
            effective: bits(&capabilities.effective)? & permitted,
            permitted,
            inheritable,
            // Ambient capabilities must be both permitted and inheritable (capabilities(7)).
            ambient: bits(&capabilities.ambient)? & permitted & inheritable,
        })
    }

    /// Drops capabilities from the bounding set. Must run before the user changes, while
    /// `CAP_SETPCAP` is still effective.
    pub(crate) fn apply_bounding(&self) -> Result<()> {
        for number in 0..NAMES.len() {
            if self.bounding & (1 << number) == 0 {
                let one = CapabilitySet::from_bits_retain(1 << number);
                match remove_capability_from_bounding_set(one) {
                    // EINVAL: this kernel is older than the capability.
                    Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                    Err(error) => return Err(os("drop capability from the bounding set")(error)),
                }
            }
        }
        Ok(())
    }

    /// Sets the effective, permitted, inheritable and ambient sets. Must run after the user has
    /// changed.
    pub(crate) fn apply(&self) -> Result<()> {
        let set = CapabilitySet::from_bits_retain;
        let sets = CapabilitySets {
            effective: set(self.effective),
            permitted: set(self.permitted),
            inheritable: set(self.inheritable),
        };
        set_capabilities(None, sets).map_err(os("set capabilities"))?;
        clear_ambient_capability_set().map_err(os("clear ambient capabilities"))?;
        for number in (0..NAMES.len()).filter(|number| self.ambient & (1 << number) != 0) {
            configure_capability_in_ambient_set(set(1 << number), true)
                .map_err(os("raise ambient capability"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_kernel_numbers() {
        assert_eq!(number("CAP_SYS_ADMIN"), Some(21));
        assert_eq!(number("CAP_CHECKPOINT_RESTORE"), Some(40));
        assert_eq!(number("CAP_NOSUCH"), None);
        assert!(DEFAULT.iter().all(|name| number(name).is_some()));
    }

    #[test]
    fn rejects_unknown_names() {
        let capabilities = Capabilities {
            bounding: vec!["CAP_FLY".into()],
            ..Capabilities::default()
        };
        assert_eq!(
            Sets::resolve(&capabilities)
                .expect_err("unknown")
                .to_string(),
            "unknown capability \"CAP_FLY\""
        );
    }
}
