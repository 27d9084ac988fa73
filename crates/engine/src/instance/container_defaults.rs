//! Settings of containers that do not give their own.

use whelk_runtime::seccomp;
use whelk_text::ulimit;

use crate::error::{Error, Result};
use crate::model::{CgroupnsMode, HostConfig, IpcMode, Ulimit};

/// The size of /dev/shm in bytes, as with Docker.
const SHM_SIZE: i64 = 64 << 20;

/// Seconds between the stop signal and SIGKILL, as with Docker.
const STOP_TIMEOUT: i64 = 10;

/// Settings of containers that do not give their own. The first four are written into a container's
/// record when it is created, the others apply to each start.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerDefaults {
    /// In bytes.
    pub shm_size: i64,
    pub ipc_mode: IpcMode,
    /// [`CgroupnsMode::Default`] for the one that fits the host's cgroups.
    pub cgroupns_mode: CgroupnsMode,
    /// Empty for the instance's own.
    pub cgroup_parent: String,
    pub init: bool,
    /// Seconds between the stop signal and SIGKILL; negative for no limit.
    pub stop_timeout: i64,
    pub ulimits: Vec<Ulimit>,
    pub no_new_privileges: bool,
    /// `unconfined` or a profile as JSON; empty for the built-in one.
    pub seccomp: String,
}

impl Default for ContainerDefaults {
    fn default() -> Self {
        Self {
            shm_size: SHM_SIZE,
            ipc_mode: IpcMode::Private,
            cgroupns_mode: CgroupnsMode::Default,
            cgroup_parent: String::new(),
            init: false,
            stop_timeout: STOP_TIMEOUT,
            ulimits: Vec::new(),
            no_new_privileges: false,
            seccomp: String::new(),
        }
    }
}

impl ContainerDefaults {
    /// Checks the limits.
    ///
    /// # Errors
    /// Returns an error that names a limit which does not exist, or whose values contradict each other.
    pub fn check(&self) -> Result<()> {
        for Ulimit { name, soft, hard } in &self.ulimits {
            if !ulimit::NAMES.contains(&name.as_str()) {
                return Err(Error::invalid(format!("invalid ulimit type: {name}")));
            }
            if *hard != -1 && (*soft == -1 || soft > hard) {
                return Err(Error::invalid(format!(
                    "{name}: ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
                )));
            }
        }
        Ok(())
    }

    /// Checks the seccomp profile.
    ///
    /// # Errors
    /// Returns an error if it cannot be read, or not be compiled.
    pub fn check_seccomp(&self) -> Result<()> {
        if matches!(self.seccomp.as_str(), "" | "unconfined") {
            return Ok(());
        }
        let rules = seccomp::from_json::<&str>(&self.seccomp, &[]);
        let compiled = rules.and_then(|rules| seccomp::compile(&rules));
        let compiled = compiled.map_err(|error| Error::invalid(error.to_string()))?;
        match compiled.listener {
            Some(_) => Err(Error::invalid("SCMP_ACT_NOTIFY is not available")),
            None => Ok(()),
        }
    }

    /// Returns the settings that a start of a container with the settings `host` uses.
    pub(crate) fn complete(&self, host: &HostConfig) -> HostConfig {
        let mut host = host.clone();
        host.init = host.init.or(self.init.then_some(true));
        for limit in &self.ulimits {
            let own = host.ulimits.iter().flatten();
            if own.into_iter().all(|own| own.name != limit.name) {
                host.ulimits.get_or_insert_default().push(limit.clone());
            }
        }
        // The last option of a kind counts, so the container's own come after these.
        let mut options = Vec::new();
        if self.no_new_privileges {
            options.push("no-new-privileges".to_owned());
        }
        // As with Docker: privileged containers have no profile unless they ask for one.
        if !self.seccomp.is_empty() && !host.privileged {
            options.push(format!("seccomp={}", self.seccomp));
        }
        if !options.is_empty() {
            host.security_opt
                .get_or_insert_default()
                .splice(0..0, options);
        }
        host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(name: &str, soft: i64, hard: i64) -> Ulimit {
        Ulimit {
            name: name.into(),
            soft,
            hard,
        }
    }

    #[test]
    fn a_containers_own_settings_take_precedence() {
        let defaults = ContainerDefaults {
            init: true,
            ulimits: vec![limit("nofile", 1, 2), limit("core", 0, 0)],
            no_new_privileges: true,
            seccomp: "unconfined".into(),
            ..ContainerDefaults::default()
        };
        defaults.check().unwrap();
        let plain = defaults.complete(&HostConfig::default());
        assert_eq!(plain.init, Some(true));
        assert_eq!(plain.ulimits.unwrap().len(), 2);
        assert_eq!(
            plain.security_opt.unwrap(),
            ["no-new-privileges", "seccomp=unconfined"]
        );
        let own = HostConfig {
            init: Some(false),
            ulimits: Some(vec![limit("nofile", 5, 6)]),
            security_opt: Some(vec!["no-new-privileges=false".into()]),
            privileged: true,
            ..HostConfig::default()
        };
        let own = defaults.complete(&own);
        assert_eq!(own.init, Some(false));
        assert_eq!(
            own.ulimits.unwrap(),
            [limit("nofile", 5, 6), limit("core", 0, 0)]
        );
        assert_eq!(
            own.security_opt.unwrap(),
            ["no-new-privileges", "no-new-privileges=false"]
        );
        let none = ContainerDefaults::default();
        assert_eq!(none.complete(&HostConfig::default()), HostConfig::default());
    }

    #[test]
    fn limits_are_checked() {
        let check = |limit| {
            let defaults = ContainerDefaults {
                ulimits: vec![limit],
                ..ContainerDefaults::default()
            };
            let checked = defaults.check();
            checked.map_or_else(|error| error.to_string(), |()| String::new())
        };
        assert_eq!(check(limit("nofile", 1, -1)), "");
        assert_eq!(check(limit("files", 1, 1)), "invalid ulimit type: files");
        assert!(check(limit("core", -1, 1)).contains("-1 > 1"));
    }
}
