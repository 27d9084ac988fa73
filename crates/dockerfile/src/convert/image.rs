//! Image configurations, as a build reads and writes them.
//!
//! Fields that are not here, such as `container_config` of old versions of Docker, describe how the base image was
//! made, and are not those of the new one.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use whelk_llb::pb::Platform;
use whelk_text::duration;

use crate::instruction::Healthcheck;
use crate::quote::quote;

/// The default search path of programs.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const COMMENT: &str = "buildkit.dockerfile.v0";

/// An image configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Image {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub author: String,
    #[serde(deserialize_with = "nullable")]
    pub architecture: String,
    #[serde(deserialize_with = "nullable")]
    pub os: String,
    #[serde(
        rename = "os.version",
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    #[serde(
        rename = "os.features",
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub variant: String,
    #[serde(deserialize_with = "nullable")]
    pub rootfs: RootFs,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
    #[serde(deserialize_with = "nullable")]
    pub config: Config,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    #[serde(deserialize_with = "nullable")]
    pub diff_ids: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub created_by: String,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub author: String,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub comment: String,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub empty_layer: bool,
}

/// Defaults of an image's containers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub user: String,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub exposed_ports: BTreeMap<String, Empty>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub volumes: BTreeMap<String, Empty>,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub stop_signal: String,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub args_escaped: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Health>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Health {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub interval: i64,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub timeout: i64,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub start_period: i64,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// The value of a port or a volume: an object without members, whatever was in it, as with Go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Empty {}

impl<'de> Deserialize<'de> for Empty {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::<BTreeMap<String, IgnoredAny>>::deserialize(deserializer).map(|_| Self {})
    }
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Reads `null`, which Go writes for empty values, as the default.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl Image {
    /// Returns the configuration of `FROM scratch`.
    pub(super) fn empty(platform: &Platform) -> Self {
        let mut image = Self {
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            os_version: platform.os_version.clone(),
            os_features: platform.os_features.clone(),
            variant: platform.variant.clone(),
            ..Self::default()
        };
        image.rootfs.kind = "layers".into();
        image.config.working_dir = "/".into();
        if platform.os != "windows" {
            image.config.env = vec![format!("PATH={PATH}")];
        }
        image
    }

    pub(super) fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            variant: self.variant.clone(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
        }
    }

    pub(super) fn set_platform(&mut self, platform: Platform) {
        self.architecture = platform.architecture;
        self.os = platform.os;
        self.variant = platform.variant;
        self.os_version = platform.os_version;
        self.os_features = platform.os_features;
    }

    /// Sets a variable, in its place unless it is new.
    pub(super) fn set_env(&mut self, key: &str, value: &str, is_new: bool) {
        let entry = format!("{key}={value}");
        if is_new {
            self.config.env.push(entry);
            return;
        }
        let known = self
            .config
            .env
            .iter_mut()
            .find(|known| known.split('=').next() == Some(key));
        match known {
            Some(known) => *known = entry,
            None => self.config.env.push(entry),
        }
    }

    /// Adds a step to the history. `epoch` is in seconds since 1970.
    pub(super) fn add_history(&mut self, created_by: String, layer: bool, epoch: Option<i64>) {
        self.history.push(History {
            created: epoch.map(rfc3339),
            created_by,
            comment: COMMENT.into(),
            empty_layer: !layer,
            ..History::default()
        });
    }

    /// Returns a line for the image's shell as a command.
    pub(super) fn with_shell(&self, line: Option<&str>) -> Vec<String> {
        let default = if self.os == "windows" {
            ["cmd", "/S", "/C"].map(str::to_owned).to_vec()
        } else {
            ["/bin/sh", "-c"].map(str::to_owned).to_vec()
        };
        let shell = if self.config.shell.is_empty() {
            default
        } else {
            self.config.shell.clone()
        };
        shell
            .into_iter()
            .chain([line.unwrap_or_default().to_owned()])
            .collect()
    }

    /// Returns the number of bytes that a copy of the configuration takes.
    pub(super) fn size(&self) -> usize {
        let config = &self.config;
        let lists = [
            &config.env,
            &config.cmd,
            &config.entrypoint,
            &config.on_build,
        ];
        let texts = lists.into_iter().flatten().map(String::len);
        let labels = config
            .labels
            .iter()
            .map(|(key, value)| key.len() + value.len());
        let paths = config
            .volumes
            .keys()
            .chain(config.exposed_ports.keys())
            .map(String::len);
        let history = self.history.iter().map(|entry| entry.created_by.len() + 64);
        texts.chain(labels).chain(paths).chain(history).sum()
    }
}

impl From<&Healthcheck> for Health {
    fn from(check: &Healthcheck) -> Self {
        Self {
            test: check.test.clone(),
            interval: check.interval,
            timeout: check.timeout,
            start_period: check.start_period,
            start_interval: check.start_interval,
            retries: i64::from(check.retries),
        }
    }
}

impl Health {
    /// Returns it in the form of Docker's history, which is that of Go's verb `%q`.
    pub(super) fn shown(&self) -> String {
        let times = [
            self.interval,
            self.timeout,
            self.start_period,
            self.start_interval,
        ];
        let times = times.map(|time| quote(&duration::format(time)));
        let retries = u32::try_from(self.retries).ok().and_then(char::from_u32);
        let retries = quote(
            retries
                .unwrap_or(char::REPLACEMENT_CHARACTER)
                .encode_utf8(&mut [0; 4]),
        );
        format!(
            "&{{{} {} '{}'}}",
            super::names::quoted_list(&self.test),
            times.join(" "),
            retries.trim_matches('"')
        )
    }
}

/// Formats seconds since 1970 as a time in UTC.
pub(super) fn rfc3339(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since March 1 of the year 0, in eras of 400 years, so that leap days come last.
    let days = days.saturating_add(719_468);
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3_600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_utc() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), expected);
        }
    }

    #[test]
    fn configurations_may_have_nulls() {
        let text = r#"{"architecture":"amd64","os":"linux","created":null,"config":{"Env":null,"Cmd":["a"],"Labels":null,"Volumes":{"/v":null,"/w":{"x":1}},"ExposedPorts":{"80/tcp":null},"Healthcheck":{"Test":["NONE"]}},
            "rootfs":{"type":"layers","diff_ids":null},"history":[{"created_by":"x","empty_layer":true}],"container_config":{"x":1}}"#;
        let image: Image = serde_json::from_str(text).unwrap_or_default();
        assert_eq!(image.config.cmd, ["a"]);
        assert_eq!(
            serde_json::to_string(&image).unwrap_or_default(),
            r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"history":[{"created_by":"x","empty_layer":true}],"config":{"ExposedPorts":{"80/tcp":{}},"Cmd":["a"],"Volumes":{"/v":{},"/w":{}},"Healthcheck":{"Test":["NONE"]}}}"#
        );
    }
}
