//! Platforms: parses the specifiers of clients and compares them with those of images.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use whelk_text::platform::{is_architecture, is_system, normal_architecture, normal_os};

use crate::config::{ARCHITECTURE, ImageConfig};
use crate::error::{Error, Result};

/// An operating system, an architecture and an optional variant of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// Returns this engine's platform.
    pub fn host() -> Self {
        Self {
            os: "linux".into(),
            architecture: ARCHITECTURE.into(),
            variant: String::new(),
        }
    }

    /// Returns this engine's platform with the highest variant that its processor has.
    pub fn detected() -> Self {
        let variant = match ARCHITECTURE {
            "amd64" => Self::levels().last().copied().unwrap_or("v1"),
            "arm64" => "v8",
            _ => "",
        };
        Self {
            variant: variant.into(),
            ..Self::host()
        }
    }

    /// Returns the levels of the architecture that this processor has, above the lowest.
    #[cfg(target_arch = "x86_64")]
    pub fn levels() -> &'static [&'static str] {
        let has_v2 = is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("popcnt");
        let has_v3 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("movbe");
        let has_v4 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512cd")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match (has_v2, has_v3, has_v4) {
            (true, true, true) => &["v2", "v3", "v4"],
            (true, true, false) => &["v2", "v3"],
            (true, false, _) => &["v2"],
            _ => &[],
        }
    }

    /// Returns the levels of the architecture that this processor has, above the lowest.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn levels() -> &'static [&'static str] {
        &[]
    }

    /// Returns the platform that an image's configuration names.
    pub fn of(config: &ImageConfig) -> Self {
        let os = if config.os.is_empty() {
            "linux"
        } else {
            &config.os
        };
        Self {
            os: os.into(),
            architecture: config.architecture.clone(),
            variant: config.variant.clone(),
        }
    }

    /// Returns whether both platforms are equal after normalization.
    pub fn is(&self, other: &Self) -> bool {
        self.clone().normalized() == other.clone().normalized()
    }

    /// Returns whether an image for `other` runs on this platform: also for an older variant, the
    /// 32-bit architecture of the same family, or without a variant.
    pub fn runs(&self, other: &Self) -> bool {
        let (own, other) = (self.clone().normalized(), other.clone().normalized());
        if own.os != other.os {
            return false;
        }
        let (ours, theirs) = (own.level(), other.level());
        match (own.architecture.as_str(), other.architecture.as_str()) {
            ("amd64", "386") => other.variant.is_empty(),
            ("arm64", "arm") => theirs <= 8,
            (own, other) => own == other && theirs <= ours,
        }
    }

    /// Returns the one of `candidates` that suits this platform best: an equal one, or else the one
    /// with the highest variant of those that run on it. Of equal ones, the first.
    pub fn choose<'a, T>(&self, candidates: impl IntoIterator<Item = (&'a Self, T)>) -> Option<T> {
        let mut best: Option<((bool, bool, u32), T)> = None;
        for (platform, value) in candidates {
            if !self.runs(platform) {
                continue;
            }
            let other = platform.clone().normalized();
            let same = other.architecture == self.clone().normalized().architecture;
            let rank = (self.is(platform), same, other.level());
            if best.as_ref().is_none_or(|(known, _)| rank > *known) {
                best = Some((rank, value));
            }
        }
        best.map(|(_, value)| value)
    }

    /// Returns the number of the variant, or the architecture's default.
    fn level(&self) -> u32 {
        let named = self
            .variant
            .strip_prefix('v')
            .and_then(|variant| variant.split('.').next())
            .and_then(|level| level.parse().ok());
        named.unwrap_or(match self.architecture.as_str() {
            "arm64" => 8,
            "arm" => 7,
            "amd64" => 1,
            // A variant that is not a number counts as level 1.
            _ => u32::from(!self.variant.is_empty()),
        })
    }

    /// Returns the platform with its usual names: `arm64` for `aarch64`, `arm/v7` for `arm`.
    #[must_use]
    pub fn normalized(self) -> Self {
        let (architecture, variant) = normal_architecture(&self.architecture, &self.variant);
        Self {
            architecture,
            os: normal_os(&self.os),
            variant,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() {
            Ok(())
        } else {
            write!(f, "/{}", self.variant)
        }
    }
}

/// What the first component of a platform must match.
const OS_COMPONENT: &str = r"^([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.-]*)\))?$";

impl FromStr for Platform {
    type Err = Error;

    /// Parses `OS`, `ARCHITECTURE`, `OS/ARCHITECTURE` or `OS/ARCHITECTURE/VARIANT`, as containerd
    /// does.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = |what: &str| Error::invalid(format!("{text:?}: {what}: invalid argument"));
        if text.contains('*') {
            return Err(Error::invalid(format!(
                "{text:?}: wildcards not yet supported: invalid argument"
            )));
        }
        let mut parts: Vec<&str> = text.split('/').collect();
        let word = |part: &str, more: &[u8]| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || more.contains(&byte))
        };
        // The version of the system is not used: only images for Windows have one.
        let (os, version) = match parts[0].split_once('(') {
            Some((os, rest)) => (os, rest.strip_suffix(')')),
            None => (parts[0], Some("")),
        };
        let is_version = |version: &str| version.is_empty() || word(version, b"_.-");
        if !word(os, b"_-") || !version.is_some_and(is_version) {
            return Err(Error::invalid(format!(
                "{:?} is an invalid OS component of {text:?}: OSAndVersion specifier component must match {OS_COMPONENT:?}: invalid argument",
                parts[0]
            )));
        }
        parts[0] = os;
        if let Some(bad) = parts.iter().skip(1).find(|part| !word(part, b"_.-")) {
            return Err(Error::invalid(format!(
                "{bad:?} is an invalid component of {text:?}: platform specifier component must match \"^[A-Za-z0-9_.-]+$\": invalid argument"
            )));
        }
        let made = |os: &str, architecture: &str, variant: &str| {
            Self {
                os: os.into(),
                architecture: architecture.into(),
                variant: variant.into(),
            }
            .normalized()
        };
        match parts.as_slice() {
            [one] => {
                let system = made(one, ARCHITECTURE, "");
                if is_system(&system.os) {
                    return Ok(system);
                }
                let platform = made("linux", one, "").without_default();
                if is_architecture(&platform.architecture) {
                    Ok(platform)
                } else {
                    Err(refuse("unknown operating system or architecture"))
                }
            }
            [os, architecture] => Ok(made(os, architecture, "").without_default()),
            [os, architecture, variant] => {
                let platform = made(os, architecture, variant);
                let variant = if platform.architecture == "arm64" && platform.variant.is_empty() {
                    "v8".into()
                } else {
                    platform.variant
                };
                Ok(Self {
                    variant,
                    ..platform
                })
            }
            _ => Err(refuse("cannot parse platform specifier")),
        }
    }
}

impl Platform {
    fn without_default(mut self) -> Self {
        if self.architecture == "arm" && self.variant == "v7" {
            self.variant.clear();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_platforms_as_containerd_does() {
        for (text, expected) in [
            ("linux/arm64", "linux/arm64"),
            ("arm64", "linux/arm64"),
            ("aarch64", "linux/arm64"),
            ("linux/arm/v7", "linux/arm/v7"),
            ("linux/arm", "linux/arm"),
            ("armhf", "linux/arm"),
            ("linux/arm64/v8", "linux/arm64/v8"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/bogus", "linux/bogus"),
            ("Windows/AMD64", "windows/amd64"),
            ("windows(10.0.17763)/amd64", "windows/amd64"),
        ] {
            assert_eq!(
                text.parse::<Platform>()
                    .map(|platform| platform.to_string())
                    .unwrap(),
                expected,
                "{text}"
            );
        }
        assert_eq!("linux".parse::<Platform>().unwrap(), Platform::host());
        for (text, expected) in [
            (
                "bogus",
                "\"bogus\": unknown operating system or architecture: invalid argument",
            ),
            (
                "a/b/c/d",
                "\"a/b/c/d\": cannot parse platform specifier: invalid argument",
            ),
            (
                "linux/",
                "\"\" is an invalid component of \"linux/\": platform specifier component must match \"^[A-Za-z0-9_.-]+$\": invalid argument",
            ),
            (
                "/amd64",
                r#""" is an invalid OS component of "/amd64": OSAndVersion specifier component must match "^([A-Za-z0-9_-]+)(?:\\(([A-Za-z0-9_.-]*)\\))?$": invalid argument"#,
            ),
            ("*", "\"*\": wildcards not yet supported: invalid argument"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn runs_images_for_compatible_platforms() {
        let platform = |text: &str| text.parse::<Platform>().unwrap();
        for (own, image, runs) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64/v3", "linux/amd64/v2", true),
            ("linux/amd64", "linux/amd64/v3", false),
            ("linux/amd64", "linux/386", true),
            ("linux/amd64", "linux/arm64", false),
            ("linux/arm64", "linux/arm/v7", true),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("linux/arm/v7", "linux/arm/v5", true),
            ("windows/amd64", "linux/amd64", false),
        ] {
            assert_eq!(platform(own).runs(&platform(image)), runs, "{own} {image}");
        }
        assert!(
            platform("linux/arm64").is(&platform("linux/arm64/v8"))
                && !platform("linux/amd64").is(&platform("linux/386"))
        );
    }
}
