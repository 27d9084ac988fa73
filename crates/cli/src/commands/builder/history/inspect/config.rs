//! The settings that a build was asked with, as Docker's client shows them.

use std::collections::BTreeMap;

use serde::Serialize;
use whelk_text::size;

use super::Pair;
use crate::format::table::align;
use crate::terminal::one_line;

/// The settings of a build. Those without a value are not shown.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Config {
    #[serde(skip_serializing_if = "String::is_empty")]
    network: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    extra_hosts: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    hostname: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    cgroup_parent: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    image_resolve_mode: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    multi_platform: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_cache: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    no_cache_filter: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    shm_size: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    ulimit: String,
    /// In bytes.
    #[serde(skip_serializing_if = "String::is_empty")]
    memory: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    memory_swap: String,
    #[serde(rename = "CPUShares", skip_serializing_if = "String::is_empty")]
    cpu_shares: String,
    #[serde(rename = "CPUPeriod", skip_serializing_if = "String::is_empty")]
    cpu_period: String,
    #[serde(rename = "CPUQuota", skip_serializing_if = "String::is_empty")]
    cpu_quota: String,
    #[serde(rename = "CPUSetCPUs", skip_serializing_if = "String::is_empty")]
    cpuset_cpus: String,
    #[serde(rename = "CPUSetMems", skip_serializing_if = "String::is_empty")]
    cpuset_mems: String,
    #[serde(rename = "CacheMountNS", skip_serializing_if = "String::is_empty")]
    cache_mount_namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    dockerfile_check_config: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    source_date_epoch: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    sandbox_hostname: String,
    /// Attributes that have no other place.
    #[serde(rename = "RestRaw", skip_serializing_if = "Vec::is_empty")]
    rest: Vec<Pair>,
}

/// Attributes that are shown in another place.
const ELSEWHERE: [&str; 4] = ["frontend.caps", "filename", "platform", "target"];
const ELSEWHERE_PREFIXES: [&str; 5] = ["attest:", "build-arg:", "context:", "label:", "vcs:"];

impl Config {
    /// Reads the attributes of a build. The client may know better what the context was than its attribute does, which is kept then.
    pub fn of(attributes: &BTreeMap<String, String>, is_context_known: bool) -> Self {
        let mut left = attributes.clone();
        let mut take = |name: &str| left.remove(name).unwrap_or_default();
        for name in ELSEWHERE {
            take(name);
        }
        if !is_context_known {
            take("context");
        }
        let list = |text: String| match text.as_str() {
            "" => Vec::new(),
            text => text.split(',').map(str::to_owned).collect(),
        };
        let platforms = ["multi-platform", "build-arg:BUILDKIT_MULTI_PLATFORM"].map(&mut take);
        let platforms = platforms
            .iter()
            .find_map(|text| whelk_text::parse_bool(text));
        let no_cache_filter = list(take("no-cache"));
        let no_cache = attributes.get("no-cache").is_some_and(String::is_empty);
        Self {
            network: take("force-network-mode"),
            extra_hosts: list(take("add-hosts")),
            hostname: take("hostname"),
            cgroup_parent: take("cgroup-parent"),
            image_resolve_mode: take("image-resolve-mode"),
            multi_platform: platforms == Some(true),
            no_cache,
            no_cache_filter,
            shm_size: take("shm-size"),
            ulimit: take("ulimit"),
            memory: take("memory"),
            memory_swap: take("memswap"),
            cpu_shares: take("cpushares"),
            cpu_period: take("cpuperiod"),
            cpu_quota: take("cpuquota"),
            cpuset_cpus: take("cpusetcpus"),
            cpuset_mems: take("cpusetmems"),
            cache_mount_namespace: take("build-arg:BUILDKIT_CACHE_MOUNT_NS"),
            dockerfile_check_config: take("build-arg:BUILDKIT_DOCKERFILE_CHECK"),
            source_date_epoch: take("build-arg:SOURCE_DATE_EPOCH"),
            sandbox_hostname: take("build-arg:SANDBOX_HOSTNAME"),
            rest: left
                .into_iter()
                .filter(|(name, _)| !ELSEWHERE_PREFIXES.iter().any(|one| name.starts_with(one)))
                .map(|(name, value)| Pair { name, value })
                .collect(),
        }
    }

    /// Returns the settings as lines of text.
    pub fn pretty(&self) -> String {
        let flag = |is_set: bool| String::from(if is_set { "true" } else { "" });
        let bytes = |text: &String| match text.parse() {
            Ok(bytes) => size::binary(bytes),
            Err(_) => text.clone(),
        };
        let named = [
            ("Network", self.network.clone()),
            ("Hostname", self.hostname.clone()),
            ("Extra Hosts", self.extra_hosts.join(", ")),
            ("Cgroup Parent", self.cgroup_parent.clone()),
            ("Image Resolve Mode", self.image_resolve_mode.clone()),
            ("Multi-Platform", flag(self.multi_platform)),
            ("No Cache", flag(self.no_cache)),
            ("No Cache Filter", self.no_cache_filter.join(", ")),
            ("Shm Size", self.shm_size.clone()),
            ("Resource Limits", self.ulimit.clone()),
            ("Memory", bytes(&self.memory)),
            ("Memory Swap", bytes(&self.memory_swap)),
            ("CPU Shares", self.cpu_shares.clone()),
            ("CPU Period", self.cpu_period.clone()),
            ("CPU Quota", self.cpu_quota.clone()),
            ("CPUSet CPUs", self.cpuset_cpus.clone()),
            ("CPUSet Mems", self.cpuset_mems.clone()),
            ("Cache Mount Namespace", self.cache_mount_namespace.clone()),
            (
                "Dockerfile Check Config",
                self.dockerfile_check_config.clone(),
            ),
            ("Source Date Epoch", self.source_date_epoch.clone()),
            ("Sandbox Hostname", self.sandbox_hostname.clone()),
        ];
        let named = named.iter().filter(|(_, value)| !value.is_empty());
        let named = named.map(|(name, value)| format!("{name}:\t{}", one_line(value)));
        let rest = self.rest.iter();
        let rest = rest.map(|pair| format!("{}:\t{}", one_line(&pair.name), one_line(&pair.value)));
        align(&named.chain(rest).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(attributes: &[(&str, &str)], is_context_known: bool) -> Config {
        let attributes = attributes.iter();
        let attributes: BTreeMap<String, String> = attributes
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Config::of(&attributes, is_context_known)
    }

    #[test]
    fn settings_are_shown_by_their_names() {
        let attributes = [
            ("add-hosts", "a=1.1.1.1,b=2.2.2.2"),
            ("build-arg:A", "b"),
            ("build-arg:SOURCE_DATE_EPOCH", "1"),
            ("cmdline", "image\nother"),
            ("context", "https://x/y.git"),
            ("filename", "Dockerfile"),
            ("label:a", "b"),
            ("memory", "67108864"),
            ("no-cache", ""),
        ];
        let shown = config(&attributes, false).pretty();
        let lines: Vec<(&str, &str)> = shown
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name, value.trim()))
            .collect();
        let expected = [
            ("Extra Hosts", "a=1.1.1.1, b=2.2.2.2"),
            ("No Cache", "true"),
            ("Memory", "64MiB"),
            ("Source Date Epoch", "1"),
            ("cmdline", "image other"),
        ];
        assert_eq!(lines, expected);
        let rest = config(&attributes, true).rest;
        let rest: Vec<&str> = rest.iter().map(|pair| pair.name.as_str()).collect();
        assert_eq!(rest, ["cmdline", "context"]);
        let some = config(&[("no-cache", "a,b"), ("multi-platform", "1")], false);
        assert!(!some.no_cache && some.multi_platform);
        assert_eq!(some.no_cache_filter, ["a", "b"]);
        assert_eq!(config(&[], false).pretty(), "");
    }
}
