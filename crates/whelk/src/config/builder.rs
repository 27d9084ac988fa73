//! The key `builder`: how the build cache is kept to a budget, and what builds may ask for.

use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;
use whelk_build::gc::{Condition, Policy};
use whelk_build::{AllowedEntitlements, GcSettings};
use whelk_text::{duration, size};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct BuilderSettings {
    gc: Option<Gc>,
    entitlements: Rights,
}

/// What requests may ask for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Rights {
    network_host: Option<bool>,
    security_insecure: Option<bool>,
    device: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Gc {
    enabled: Option<bool>,
    policy: Vec<Rule>,
    /// The former name of `defaultReservedSpace`.
    default_keep_storage: Option<String>,
    default_reserved_space: Option<String>,
    default_max_used_space: Option<String>,
    default_min_free_space: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Rule {
    all: bool,
    keep_duration: Option<String>,
    /// The former name of `reservedSpace`.
    keep_storage: Option<String>,
    reserved_space: Option<String>,
    max_used_space: Option<String>,
    min_free_space: Option<String>,
    filter: Vec<String>,
}

fn bytes(key: &'static str, text: &Option<String>) -> anyhow::Result<u64> {
    let Some(text) = text else { return Ok(0) };
    let bytes = size::parse_binary(text).map_err(|error| anyhow::anyhow!("{key}: {error}"))?;
    bytes.try_into().context(key)
}

fn time(key: &'static str, text: &str) -> anyhow::Result<Duration> {
    let time = duration::parse(text).map_err(|error| anyhow::anyhow!("{key}: {error}"))?;
    Ok(Duration::from_nanos(u64::try_from(time).context(key)?))
}

impl BuilderSettings {
    pub(super) fn settings(&self) -> anyhow::Result<GcSettings> {
        let Some(gc) = &self.gc else {
            return Ok(GcSettings::default());
        };
        let reserved = gc.default_reserved_space.as_ref();
        let space = Policy {
            reserved_space: bytes(
                "gc.defaultReservedSpace",
                &reserved.or(gc.default_keep_storage.as_ref()).cloned(),
            )?,
            max_used_space: bytes("gc.defaultMaxUsedSpace", &gc.default_max_used_space)?,
            min_free_space: bytes("gc.defaultMinFreeSpace", &gc.default_min_free_space)?,
            ..Policy::default()
        };
        let rules = gc.policy.iter().map(Rule::policy);
        Ok(GcSettings {
            is_collected: gc.enabled.unwrap_or(true),
            space: Some(space).filter(|space| *space != Policy::default()),
            policies: rules.collect::<anyhow::Result<_>>().context("gc.policy")?,
        })
    }

    pub(super) fn allowed(&self) -> AllowedEntitlements {
        let given = &self.entitlements;
        let default = AllowedEntitlements::default();
        AllowedEntitlements {
            network_host: given.network_host.unwrap_or(default.network_host),
            security_insecure: given.security_insecure.unwrap_or(default.security_insecure),
            device: given.device.unwrap_or(default.device),
        }
    }
}

impl Rule {
    fn policy(&self) -> anyhow::Result<Policy> {
        let reserved = self.reserved_space.as_ref();
        let mut policy = Policy {
            all: self.all,
            reserved_space: bytes(
                "reservedSpace",
                &reserved.or(self.keep_storage.as_ref()).cloned(),
            )?,
            max_used_space: bytes("maxUsedSpace", &self.max_used_space)?,
            min_free_space: bytes("minFreeSpace", &self.min_free_space)?,
            ..Policy::default()
        };
        if let Some(text) = &self.keep_duration {
            policy.keep_duration = time("keepDuration", text)?;
        }
        for filter in &self.filter {
            match filter.split_once('=') {
                Some(("until" | "unused-for", text)) => {
                    policy.keep_duration = time("filter", text)?;
                }
                _ => policy.filters.push(
                    Condition::parse_all(filter).map_err(|error| anyhow::anyhow!("{error}"))?,
                ),
            }
        }
        Ok(policy)
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<GcSettings> {
        let settings: BuilderSettings = serde_json::from_str(text)?;
        settings.settings()
    }

    #[test]
    fn the_keys_are_dockers() {
        let gc = parse(r#"{"gc": {"enabled": false, "defaultKeepStorage": "20GB"}}"#).unwrap();
        assert!(!gc.is_collected);
        assert_eq!(gc.space.unwrap().reserved_space, 20 << 30);
        let text = r#"{"gc": {"policy": [
            {"keepStorage": "10GB", "filter": ["unused-for=2200h"]},
            {"maxUsedSpace": "1MB", "filter": ["type==exec.cachemount"], "all": true}]}}"#;
        let gc = parse(text).unwrap();
        assert!(gc.is_collected && gc.space.is_none());
        assert_eq!(
            gc.policies[0].keep_duration,
            Duration::from_secs(2200 * 60 * 60)
        );
        assert_eq!(gc.policies[0].reserved_space, 10 << 30);
        assert!(gc.policies[1].all && gc.policies[1].filters.len() == 1);
        for (text, named) in [
            (
                r#"{"gc": {"policy": [{"keepStorage": "much"}]}}"#,
                "gc.policy",
            ),
            (r#"{"entitlements": {"all": true}}"#, "all"),
            (r#"{"gc": {"limit": 1}}"#, "limit"),
            (
                r#"{"gc": {"policy": [{"filter": ["colour==red"]}]}}"#,
                "gc.policy",
            ),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn entitlements_have_dockers_defaults() {
        let allowed = |text: &str| {
            let settings: BuilderSettings = serde_json::from_str(text).unwrap();
            let AllowedEntitlements {
                network_host,
                security_insecure,
                device,
            } = settings.allowed();
            (network_host, security_insecure, device)
        };
        assert_eq!(allowed("{}"), (true, false, true));
        let text = r#"{"entitlements": {"network-host": false, "security-insecure": true, "device": false}}"#;
        assert_eq!(allowed(text), (false, true, false));
    }
}
