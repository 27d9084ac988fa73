//! Platforms: their specifiers and normal form, by the rules of containerd.

use whelk_text::platform::{is_architecture, is_system, normal_architecture, normal_os};

use crate::pb::Platform;

const INVALID: &str = "invalid argument";
const COMPONENT: &str = "^[A-Za-z0-9_.-]+$";
const OS_COMPONENT: &str =
    r"^([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?$";

impl Platform {
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        Self {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.into(),
            ..Self::default()
        }
    }

    /// Parses `OS[(VERSION)][/ARCHITECTURE[/VARIANT]]`, or an architecture alone. What is missing is that of
    /// `host`.
    ///
    /// # Errors
    /// Returns an error with containerd's text.
    pub fn parse(specifier: &str, host: &Self) -> Result<Self, String> {
        if specifier.contains('*') {
            return Err(format!(
                "{specifier:?}: wildcards not yet supported: {INVALID}"
            ));
        }
        let parts: Vec<&str> = specifier.splitn(4, '/').collect();
        let word = |text: &str, extra: &str| {
            !text.is_empty()
                && text.chars().all(|c| {
                    c.is_ascii_alphanumeric() || matches!(c, '_' | '-') || extra.contains(c)
                })
        };
        let (os, version) = match parts[0].split_once('(') {
            Some((os, rest)) => (os, rest.strip_suffix(')')),
            None => (parts[0], Some("")),
        };
        let version = version.filter(|version| version.is_empty() || word(version, ".%+"));
        let (true, Some(version)) = (word(os, ""), version) else {
            return Err(format!(
                "{:?} is an invalid OS component of {specifier:?}: OSAndVersion specifier component must match {OS_COMPONENT:?}: {INVALID}",
                parts[0]
            ));
        };
        if let Some(part) = parts[1..].iter().find(|part| !word(part, ".")) {
            return Err(format!(
                "{part:?} is an invalid component of {specifier:?}: platform specifier component must match {COMPONENT:?}: {INVALID}"
            ));
        }
        let mut features = version.split('+');
        let mut platform = Self {
            os: normal_os(os),
            os_version: unescape(features.next().unwrap_or_default()),
            os_features: features.map(unescape).filter(|f| !f.is_empty()).collect(),
            ..Self::default()
        };
        let (architecture, variant) = match parts.as_slice() {
            [_] if is_system(&platform.os) => {
                platform.architecture.clone_from(&host.architecture);
                if host.architecture == "arm" && host.variant != "v7" {
                    platform.variant.clone_from(&host.variant);
                }
                return Ok(platform);
            }
            [alone] => {
                let normal = normal_architecture(alone, "");
                if !is_architecture(&normal.0) {
                    return Err(format!(
                        "{specifier:?}: unknown operating system or architecture: {INVALID}"
                    ));
                }
                platform.os.clone_from(&host.os);
                normal
            }
            [_, architecture] => normal_architecture(architecture, ""),
            [_, architecture, variant] => match normal_architecture(architecture, variant) {
                (architecture, variant) if architecture == "arm64" && variant.is_empty() => {
                    (architecture, "v8".into())
                }
                normal => normal,
            },
            _ => {
                return Err(format!(
                    "{specifier:?}: cannot parse platform specifier: {INVALID}"
                ));
            }
        };
        let is_default = parts.len() < 3 && architecture == "arm" && variant == "v7";
        platform.variant = if is_default { String::new() } else { variant };
        platform.architecture = architecture;
        Ok(platform)
    }

    #[must_use]
    pub fn normalized(&self) -> Self {
        let (architecture, variant) = normal_architecture(&self.architecture, &self.variant);
        let mut os_features = self.os_features.clone();
        os_features.sort();
        os_features.dedup();
        Self {
            os: normal_os(&self.os),
            architecture,
            variant,
            os_version: self.os_version.clone(),
            os_features,
        }
    }

    /// Returns `OS/ARCHITECTURE/VARIANT`.
    pub fn short(&self) -> String {
        self.with_os(self.os.clone())
    }

    /// Returns `OS(VERSION+FEATURE)/ARCHITECTURE/VARIANT`.
    pub fn specifier(&self) -> String {
        if self.os_version.is_empty() && self.os_features.is_empty() {
            return self.short();
        }
        let mut features: Vec<&String> = self.os_features.iter().collect();
        features.sort();
        features.dedup();
        let features = features.into_iter().filter(|feature| !feature.is_empty());
        let features: String = features.map(|text| format!("+{}", escape(text))).collect();
        self.with_os(format!(
            "{}({}{features})",
            self.os,
            escape(&self.os_version)
        ))
    }

    fn with_os(&self, os: String) -> String {
        if self.os.is_empty() {
            return "unknown".into();
        }
        let parts = [os.as_str(), &self.architecture, &self.variant];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join("/")
    }
}

const ESCAPES: [(char, &str); 5] = [
    ('%', "%25"),
    ('+', "%2B"),
    ('(', "%28"),
    (')', "%29"),
    ('/', "%2F"),
];

fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for letter in text.chars() {
        match ESCAPES.iter().find(|(special, _)| *special == letter) {
            Some((_, code)) => escaped.push_str(code),
            None => escaped.push(letter),
        }
    }
    escaped
}

fn unescape(text: &str) -> String {
    ESCAPES
        .iter()
        .rev()
        .fold(text.to_owned(), |text, (letter, code)| {
            text.replace(code, letter.encode_utf8(&mut [0; 4]))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifiers_are_containerds() {
        let host = Platform::new("linux", "amd64", "");
        for (specifier, short, normal) in [
            ("linux/amd64", "linux/amd64", "linux/amd64"),
            ("linux", "linux/amd64", "linux/amd64"),
            ("arm64", "linux/arm64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64/v8", "linux/arm64"),
            ("linux/aarch64", "linux/arm64", "linux/arm64"),
            ("linux/arm", "linux/arm", "linux/arm/v7"),
            ("linux/arm/7", "linux/arm/v7", "linux/arm/v7"),
            ("Linux/x86_64", "linux/amd64", "linux/amd64"),
            (
                "windows(10.0.1)/amd64",
                "windows/amd64",
                "windows(10.0.1)/amd64",
            ),
        ] {
            let parsed = Platform::parse(specifier, &host).unwrap_or_default();
            assert_eq!(parsed.short(), short, "{specifier}");
            assert_eq!(parsed.normalized().specifier(), normal, "{specifier}");
        }
        for specifier in ["", "*", "a/b/c/d", "linux/", "nothing", "linux(", "a b/c"] {
            assert!(Platform::parse(specifier, &host).is_err(), "{specifier}");
        }
    }
}
