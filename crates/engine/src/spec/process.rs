//! Generates the configuration of a container's first process: command line, environment, limits and
//! capabilities.

use std::collections::HashMap;

use whelk_runtime::spec::{Capabilities, ConsoleSize, Process, Rlimit};

use crate::error::Result;
use crate::instance::OpenFiles;
use crate::model::{Config, HostConfig};
use crate::security::{self, Options};

/// The default `PATH` of processes.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The path of the init process of `--init` in the container.
pub(super) const INIT: &str = "/sbin/docker-init";

/// Returns the resource limits of a container's processes. `RLIMIT_NOFILE` is always set: the
/// engine raises its own limit, which the container must not inherit.
pub(crate) fn rlimits(host: &HostConfig, open_files: OpenFiles) -> Vec<Rlimit> {
    const OPEN_FILES: &str = "RLIMIT_NOFILE";
    let limit = |limit: &crate::model::Ulimit| Rlimit {
        kind: format!("RLIMIT_{}", limit.name.to_uppercase()),
        soft: limit_value(limit.soft),
        hard: limit_value(limit.hard),
    };
    let mut limits: Vec<Rlimit> = host.ulimits.iter().flatten().map(limit).collect();
    if limits.iter().all(|limit| limit.kind != OPEN_FILES) {
        limits.push(Rlimit {
            kind: OPEN_FILES.into(),
            soft: open_files.soft,
            hard: open_files.hard,
        });
    }
    limits
}

pub(super) fn process(
    config: &Config,
    host: &HostConfig,
    options: &Options,
    open_files: OpenFiles,
) -> Result<Process> {
    let mut args: Vec<String> = Vec::new();
    if host.init == Some(true) {
        args.extend([INIT.to_owned(), "--".to_owned()]);
    }
    args.extend(command(config));
    Ok(Process {
        terminal: config.tty,
        console_size: (config.tty && host.console_size != [0, 0]).then_some(ConsoleSize {
            height: host.console_size[0],
            width: host.console_size[1],
        }),
        args,
        cwd: if config.working_dir.is_empty() {
            "/".into()
        } else {
            config.working_dir.clone()
        },
        capabilities: Some(capability_sets(security::capabilities(host)?)),
        rlimits: rlimits(host, open_files),
        no_new_privileges: options.no_new_privileges,
        apparmor_profile: options.apparmor.clone(),
        oom_score_adj: Some(host.oom_score_adj),
        ..Process::default()
    })
}

/// Converts an ulimit value; -1 is unlimited.
fn limit_value(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

/// Returns the command line: the entrypoint and its arguments.
pub fn command(config: &Config) -> impl Iterator<Item = String> {
    let entrypoint = config.entrypoint.clone().unwrap_or_default();
    // `--entrypoint ""` arrives as one empty word and means none.
    let entrypoint = if entrypoint == [""] {
        Vec::new()
    } else {
        entrypoint
    };
    entrypoint
        .into_iter()
        .chain(config.cmd.clone().unwrap_or_default())
}

/// Returns a process's capability sets. The inheritable and ambient sets are empty
/// (CVE-2022-24769).
pub fn capability_sets(names: Vec<String>) -> Capabilities {
    Capabilities {
        bounding: names.clone(),
        effective: names.clone(),
        permitted: names,
        ..Capabilities::default()
    }
}

/// Returns the environment of a process: defaults, then the variables of `links`, of the image and
/// the user, and `extra`. A later entry replaces an earlier one of the same name; an entry without
/// `=` removes it.
pub fn environment(
    config: &Config,
    hostname: &str,
    links: &[String],
    extra: &[String],
) -> Vec<String> {
    let mut defaults = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if config.tty {
        defaults.push("TERM=xterm".into());
    }
    let mut environment: Vec<Option<&String>> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for entry in defaults
        .iter()
        .chain(links)
        .chain(config.env.iter().flatten())
        .chain(extra)
    {
        match entry.split_once('=') {
            Some((name, _)) => match places.get(name) {
                Some(place) => environment[*place] = Some(entry),
                None => {
                    places.insert(name, environment.len());
                    environment.push(Some(entry));
                }
            },
            // An entry without a value removes the variable.
            None => {
                if let Some(place) = places.remove(entry.as_str()) {
                    environment[place] = None;
                }
            }
        }
    }
    environment.into_iter().flatten().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_has_each_variable_once() {
        let config = Config {
            env: Some(vec!["PATH=/x".into(), "A=1".into()]),
            tty: true,
            ..Config::default()
        };
        assert_eq!(
            environment(&config, "h", &[], &["A=2".into()]),
            ["PATH=/x", "HOSTNAME=h", "TERM=xterm", "A=2"]
        );
        let extra = ["A", "HOSTNAME", "B=1", "NOSUCH", "A=3"].map(str::to_owned);
        assert_eq!(
            environment(&config, "h", &[], &extra),
            ["PATH=/x", "TERM=xterm", "B=1", "A=3"]
        );
    }
}
