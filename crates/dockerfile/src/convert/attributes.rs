//! Settings from the attributes that clients give to BuildKit's frontend.

use std::collections::BTreeMap;
use std::net::IpAddr;

use whelk_llb::pb::{LinuxResources, NetMode, Platform, Ulimit};
use whelk_text::{parse_bool, ulimit};

use super::options::{Options, ParseReference, ResolveMode};
use crate::csv;
use crate::error::{Error, Result};
use crate::lint;

type Attributes = BTreeMap<String, String>;

impl Options {
    /// Reads the attributes of a build, except those of its context, and returns the platforms to build for. If
    /// there are some, each needs a conversion of its own.
    ///
    /// # Errors
    /// Returns an error with BuildKit's text for an invalid value.
    pub fn from_attributes(
        attributes: &Attributes,
        build_platform: Platform,
        parse_reference: ParseReference,
    ) -> Result<(Self, Vec<Platform>)> {
        let get = |name: &str| attributes.get(name).map_or("", String::as_str);
        let arg = |name: &str| get(&format!("build-arg:{name}"));
        let mut platforms = Vec::new();
        for specifier in get("platform").split(',').filter(|text| !text.is_empty()) {
            let platform = Platform::parse(specifier, &build_platform).map_err(|error| {
                Error::new(format!(
                    "failed to parse target platform {specifier}: {error}"
                ))
            })?;
            platforms.push(platform.normalized());
        }
        let context =
            |error: Error, what: &str| error.context(format_args!("failed to parse {what}"));
        let mut options = Self::new(build_platform, parse_reference);
        options.target = get("target").to_owned();
        options.cgroup_parent = get("cgroup-parent").to_owned();
        options.cache_namespace = arg("BUILDKIT_CACHE_MOUNT_NS").to_owned();
        options.hostname = match arg("BUILDKIT_SANDBOX_HOSTNAME") {
            "" => get("hostname").to_owned(),
            name => name.to_owned(),
        };
        options.build_args = with_prefix(attributes, "build-arg:");
        options.labels = with_prefix(attributes, "label:");
        options.contexts = with_prefix(attributes, "context:");
        options.shared_keys = with_prefix(attributes, "sharedkey:localdir:");
        options.sessions = with_prefix(attributes, "local-sessionid:");
        let mode = get("image-resolve-mode").parse::<ResolveMode>();
        options.resolve_mode = mode.map_err(Error::new)?;
        options.network = match get("force-network-mode") {
            "" | "sandbox" => NetMode::Unset,
            "none" => NetMode::None,
            "host" => NetMode::Host,
            other => return Err(Error::new(format!("invalid netmode {other}"))),
        };
        options.extra_hosts =
            hosts(get("add-hosts")).map_err(|error| context(error, "additional hosts"))?;
        options.ulimits = ulimits(get("ulimit")).map_err(|error| context(error, "ulimit"))?;
        options.resources =
            resources(attributes).map_err(|error| context(error, "resource limits"))?;
        options.shm_size = match get("shm-size") {
            "" => 0,
            text => text
                .parse()
                .map_err(|_| context(Error::new(format!("invalid size {text:?}")), "shm size"))?,
        };
        options.no_cache = attributes.get("no-cache").map(|stages| {
            let stages = stages.split(',').filter(|stage| !stage.is_empty());
            stages.map(str::to_owned).collect()
        });
        options.multi_platform = multi_platform(attributes, platforms.len() > 1)?;
        if let Some(name) = attributes.get("filename").filter(|name| !name.is_empty()) {
            options.filename.clone_from(name);
        }
        let check = "build-arg:BUILDKIT_DOCKERFILE_CHECK";
        if let Some(text) = attributes.get(check) {
            let config = lint::Config::parse(text).map_err(|error| context(error, check))?;
            options.lint = Some(config);
        }
        Ok((options, platforms))
    }
}

fn with_prefix(attributes: &Attributes, prefix: &str) -> BTreeMap<String, String> {
    let named = attributes
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix(prefix)?.to_owned(), value.clone())));
    named.collect()
}

fn multi_platform(attributes: &Attributes, several: bool) -> Result<bool> {
    let names = ["build-arg:BUILDKIT_MULTI_PLATFORM", "multi-platform"];
    let mut values = names.iter().filter_map(|name| attributes.get(*name));
    let Some(text) = values.find(|text| !text.is_empty()) else {
        return Ok(several);
    };
    match parse_bool(text) {
        None => Err(Error::new(format!(
            "invalid boolean value for multi-platform: {text}"
        ))),
        Some(false) if several => Err(Error::new(
            "conflicting config: returning multiple target platforms is not allowed",
        )),
        Some(wanted) => Ok(wanted),
    }
}

fn list(text: &str) -> Result<Vec<String>> {
    if text.is_empty() {
        Ok(Vec::new())
    } else {
        csv::fields(text)
    }
}

fn hosts(text: &str) -> Result<Vec<(String, String)>> {
    let parse = |field: String| {
        let lower = field.to_lowercase();
        let (name, address) = lower
            .split_once('=')
            .ok_or_else(|| Error::new(format!("invalid key-value pair {field}")))?;
        let address: IpAddr = address
            .parse()
            .map_err(|_| Error::new(format!("failed to parse IP {address}")))?;
        Ok((name.to_owned(), address.to_string()))
    };
    list(text)?.into_iter().map(parse).collect()
}

fn ulimits(text: &str) -> Result<Vec<Ulimit>> {
    let parse = |field: String| {
        let invalid = || Error::new(format!("invalid ulimit argument: {field}"));
        let (name, limits) = field.split_once('=').ok_or_else(invalid)?;
        if !ulimit::NAMES.contains(&name) {
            return Err(Error::new(format!("invalid ulimit type: {name}")));
        }
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let number = |text: &str| text.parse::<i64>().map_err(|_| invalid());
        let (soft, hard) = (number(soft)?, number(hard)?);
        if hard != -1 && (soft == -1 || soft > hard) {
            return Err(Error::new(format!(
                "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
            )));
        }
        Ok(Ulimit {
            name: name.to_owned(),
            soft,
            hard,
        })
    };
    list(text)?.into_iter().map(parse).collect()
}

fn resources(attributes: &Attributes) -> Result<Option<LinuxResources>> {
    let get = |name: &str| {
        attributes
            .get(name)
            .map(String::as_str)
            .filter(|text| !text.is_empty())
    };
    let number = |name: &str, unlimited: bool| match get(name) {
        None => Ok(0),
        Some(text) => match text.parse::<i64>() {
            Ok(number) if number > 0 || (unlimited && number == -1) => Ok(number),
            Ok(_) if unlimited => Err(Error::new(format!(
                "invalid {name} value: {text}: must be -1 (unlimited) or > 0"
            ))),
            Ok(_) => Err(Error::new(format!(
                "invalid {name} value: {text}: must be > 0"
            ))),
            Err(_) => Err(Error::new(format!("invalid {name} value: {text}"))),
        },
    };
    let positive = |name: &str| number(name, false).map(i64::unsigned_abs);
    let set = |name: &str| match get(name) {
        None => Ok(String::new()),
        Some(text) if text.split(',').all(is_range) => Ok(text.to_owned()),
        Some(text) => Err(Error::new(format!("invalid {name} value: {text}"))),
    };
    let found = LinuxResources {
        memory: number("memory", false)?,
        memory_swap: number("memswap", true)?,
        cpu_shares: positive("cpushares")?,
        cpu_period: positive("cpuperiod")?,
        cpu_quota: number("cpuquota", false)?,
        cpuset_cpus: set("cpusetcpus")?,
        cpuset_mems: set("cpusetmems")?,
    };
    Ok(Some(found).filter(|found| *found != LinuxResources::default()))
}

/// Returns whether a text is `N` or `N-M`.
fn is_range(text: &str) -> bool {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) => first <= last,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::Reference;

    fn read(attributes: &[(&str, &str)]) -> Result<(Options, Vec<Platform>)> {
        let attributes = attributes.iter();
        let attributes = attributes.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let host = Platform::new("linux", "amd64", "");
        Options::from_attributes(&attributes.collect(), host, |_| Ok(Reference::default()))
    }

    #[test]
    fn reads_what_clients_send() {
        let (options, platforms) = read(&[
            ("target", "t"),
            ("platform", "linux/arm64,linux/amd64"),
            ("build-arg:A", "b"),
            ("build-arg:BUILDKIT_CACHE_MOUNT_NS", "n"),
            ("label:l", "m"),
            ("context:x::linux/amd64", "local:x"),
            ("sharedkey:localdir:x", "k"),
            ("local-sessionid:context", "s"),
            ("image-resolve-mode", "local"),
            ("force-network-mode", "host"),
            ("add-hosts", "H=1.2.3.4,i=::1"),
            ("ulimit", "nofile=1:2"),
            ("shm-size", "64"),
            ("no-cache", ""),
            ("memory", "5"),
            ("memswap", "-1"),
            ("cpusetcpus", "0-1,3"),
            ("filename", "Other"),
            ("build-arg:BUILDKIT_DOCKERFILE_CHECK", "skip=all"),
        ])
        .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(platforms.len(), 2);
        assert!(options.multi_platform && options.lint.is_some_and(|lint| lint.skip_all));
        assert_eq!(options.build_args["A"], "b");
        assert_eq!(
            (options.cache_namespace.as_str(), options.target.as_str()),
            ("n", "t")
        );
        assert_eq!(options.extra_hosts[0], ("h".into(), "1.2.3.4".into()));
        assert_eq!(options.ulimits[0].hard, 2);
        assert_eq!(options.no_cache, Some(Vec::new()));
        let resources = options.resources.unwrap_or_default();
        assert_eq!((resources.memory, resources.memory_swap), (5, -1));
        assert_eq!(options.contexts["x::linux/amd64"], "local:x");
        assert_eq!((options.filename.as_str(), options.shm_size), ("Other", 64));
    }

    #[test]
    fn one_platform_may_be_several() {
        for (platforms, value, expected) in [
            ("", "", Ok(false)),
            ("linux/arm64", "", Ok(false)),
            ("linux/arm64", "1", Ok(true)),
            ("linux/arm64,linux/amd64", "", Ok(true)),
            ("linux/arm64,linux/amd64", "true", Ok(true)),
            (
                "linux/arm64,linux/amd64",
                "false",
                Err("conflicting config: returning multiple target platforms is not allowed"),
            ),
        ] {
            for name in ["multi-platform", "build-arg:BUILDKIT_MULTI_PLATFORM"] {
                let found = read(&[("platform", platforms), (name, value)]);
                let found = found.map(|(options, _)| options.multi_platform);
                let found = found.map_err(|error| error.to_string());
                assert_eq!(
                    found,
                    expected.map_err(str::to_owned),
                    "{platforms} {value}"
                );
            }
        }
    }

    #[test]
    fn rejects_invalid_values() {
        for (name, value, expected) in [
            (
                "platform",
                "x",
                "failed to parse target platform x: \"x\": unknown operating system or architecture: invalid argument",
            ),
            ("image-resolve-mode", "x", "invalid image-resolve-mode: x"),
            ("force-network-mode", "x", "invalid netmode x"),
            (
                "add-hosts",
                "x",
                "failed to parse additional hosts: invalid key-value pair x",
            ),
            (
                "ulimit",
                "x=1",
                "failed to parse ulimit: invalid ulimit type: x",
            ),
            (
                "ulimit",
                "core=2:1",
                "failed to parse ulimit: ulimit soft limit must be less than or equal to hard limit: 2 > 1",
            ),
            (
                "memory",
                "0",
                "failed to parse resource limits: invalid memory value: 0: must be > 0",
            ),
            (
                "multi-platform",
                "x",
                "invalid boolean value for multi-platform: x",
            ),
            (
                "build-arg:BUILDKIT_DOCKERFILE_CHECK",
                "x",
                "failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK: invalid check option \"x\"",
            ),
        ] {
            match read(&[(name, value)]) {
                Ok(_) => panic!("{name}={value}: no error"),
                Err(error) => assert_eq!(error.to_string(), expected),
            }
        }
    }
}
