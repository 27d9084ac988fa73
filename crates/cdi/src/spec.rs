//! A CDI specification as in its file, and what must be true of it.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::de::{DeserializeOwned, IgnoredAny, Visitor};
use serde::{Deserialize, Deserializer};
use whelk_text::device_name;

use whelk_yaml as yaml;

/// The versions of the format, in their order.
const VERSIONS: [&str; 10] = [
    "0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
];

/// Declares a struct of the format. Members that are missing or null have their default value;
/// unknown ones are rejected.
macro_rules! wire {
    ($(pub(crate) struct $name:ident { $($(#[$meta:meta])* $field:ident: $type:ty,)* })*) => {$(
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        pub(crate) struct $name {
            $($(#[$meta])* #[serde(default, deserialize_with = "or_default")] pub $field: $type,)*
        }
    )*};
}

wire! {
    pub(crate) struct Spec {
        cdi_version: Text,
        kind: Text,
        annotations: BTreeMap<String, Text>,
        devices: Vec<Device>,
        container_edits: Edits,
    }

    pub(crate) struct Device {
        name: Text,
        annotations: BTreeMap<String, Text>,
        container_edits: Edits,
    }

    pub(crate) struct Edits {
        env: Vec<Text>,
        device_nodes: Vec<DeviceNode>,
        net_devices: Vec<IgnoredAny>,
        hooks: Vec<Hook>,
        mounts: Vec<Mount>,
        intel_rdt: Option<IgnoredAny>,
        additional_gids: Vec<u32>,
    }

    pub(crate) struct DeviceNode {
        path: Text,
        host_path: Text,
        #[serde(rename = "type")]
        kind: Text,
        major: i64,
        minor: i64,
        file_mode: Option<u32>,
        permissions: Text,
        uid: Option<u32>,
        gid: Option<u32>,
    }

    pub(crate) struct Mount {
        host_path: Text,
        container_path: Text,
        options: Vec<Text>,
        #[serde(rename = "type")]
        kind: Text,
    }

    pub(crate) struct Hook {
        hook_name: Text,
        path: Text,
        args: Vec<Text>,
        env: Vec<Text>,
        timeout: Option<i64>,
    }
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A string. Numbers and truth values are accepted as well, because YAML has no quotes around most
/// strings, and null for an empty one. The library reads JSON as YAML.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Text(pub String);

impl std::ops::Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<Text, E> {
                Ok(Text(text.to_owned()))
            }

            fn visit_unit<E>(self) -> Result<Text, E> {
                Ok(Text::default())
            }

            fn visit_i64<E>(self, number: i64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Text, E> {
                Ok(Text(number.to_string()))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Text, E> {
                Ok(Text(value.to_string()))
            }
        }
        from.deserialize_any(Any)
    }
}

/// Parses and checks a specification.
///
/// # Errors
/// Returns what is wrong with it.
pub(crate) fn parse(content: &[u8], is_json: bool) -> Result<Spec, String> {
    let spec: Spec = read(content, is_json)?;
    spec.check()
        .map_err(|error| format!("invalid CDI Spec: {error}"))?;
    Ok(spec)
}

fn read<T: DeserializeOwned>(content: &[u8], is_json: bool) -> Result<T, String> {
    let wrong = |error: String| format!("failed to unmarshal CDI Spec: {error}");
    if is_json {
        return serde_json::from_slice(content).map_err(|error| wrong(error.to_string()));
    }
    let text = std::str::from_utf8(content).map_err(|error| wrong(error.to_string()))?;
    let value = yaml::parse(text.trim_start_matches('\u{feff}')).map_err(wrong)?;
    if value.is_null() {
        return Err("no Spec data".into());
    }
    serde_json::from_value(value).map_err(|error| wrong(error.to_string()))
}

impl Spec {
    fn check(&self) -> Result<(), String> {
        let version = place(&self.cdi_version)
            .ok_or_else(|| format!("invalid version {:?}", &*self.cdi_version))?;
        let least = self.least_version();
        if place(least) > Some(version) {
            return Err(format!("the spec version must be at least v{least}"));
        }
        device_name::check_kind(&self.kind)?;
        check_annotations(&self.annotations)?;
        self.container_edits.check()?;
        let mut names = HashSet::new();
        for device in &self.devices {
            device
                .check()
                .map_err(|error| format!("failed add device {:?}: {error}", &*device.name))?;
            if !names.insert(&*device.name) {
                return Err(format!("invalid spec, multiple device {:?}", &*device.name));
            }
        }
        if self.devices.is_empty() {
            return Err("invalid spec, no devices".into());
        }
        Ok(())
    }

    /// Returns the first version that has everything that the specification uses.
    fn least_version(&self) -> &'static str {
        let edits = || {
            let own = std::iter::once(&self.container_edits);
            own.chain(self.devices.iter().map(|device| &device.container_edits))
        };
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        if edits().any(|edits| !edits.net_devices.is_empty()) {
            "1.1.0"
        } else if edits()
            .any(|edits| edits.intel_rdt.is_some() || !edits.additional_gids.is_empty())
        {
            "0.7.0"
        } else if !self.annotations.is_empty()
            || self
                .devices
                .iter()
                .any(|device| !device.annotations.is_empty())
            || class.contains('.')
        {
            "0.6.0"
        } else if self.devices.iter().any(|device| {
            !device
                .name
                .starts_with(|first: char| first.is_ascii_alphabetic())
        }) || edits().any(|edits| {
            edits
                .device_nodes
                .iter()
                .any(|node| !node.host_path.is_empty())
        }) {
            "0.5.0"
        } else if edits().any(|edits| edits.mounts.iter().any(|mount| !mount.kind.is_empty())) {
            "0.4.0"
        } else {
            "0.3.0"
        }
    }
}

/// Returns a version's place in [`VERSIONS`].
fn place(version: &str) -> Option<usize> {
    let version = version.strip_prefix('v').unwrap_or(version);
    VERSIONS.iter().position(|known| *known == version)
}

/// Kubernetes' limit for all annotations of an object, in bytes.
const MAX_ANNOTATIONS: usize = 256 << 10;

fn check_annotations(annotations: &BTreeMap<String, Text>) -> Result<(), String> {
    let size: usize = annotations
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if size > MAX_ANNOTATIONS {
        return Err(format!(
            "annotations size {size} is larger than limit {MAX_ANNOTATIONS}"
        ));
    }
    Ok(())
}

impl Device {
    fn check(&self) -> Result<(), String> {
        device_name::check_name(&self.name)?;
        check_annotations(&self.annotations)?;
        if self.container_edits.is_empty() {
            return Err("invalid device, empty device edits".into());
        }
        self.container_edits
            .check()
            .map_err(|error| format!("invalid device {:?}: {error}", &*self.name))
    }
}

impl Edits {
    fn is_empty(&self) -> bool {
        self.env.is_empty()
            && self.device_nodes.is_empty()
            && self.net_devices.is_empty()
            && self.hooks.is_empty()
            && self.mounts.is_empty()
            && self.intel_rdt.is_none()
            && self.additional_gids.is_empty()
    }

    fn check(&self) -> Result<(), String> {
        check_env(&self.env).map_err(|error| format!("invalid container edits: {error}"))?;
        self.device_nodes.iter().try_for_each(DeviceNode::check)?;
        self.hooks.iter().try_for_each(Hook::check)?;
        self.mounts.iter().try_for_each(Mount::check)
    }
}

/// Checks variables, which end at the first NUL where the kernel reads them.
fn check_env(env: &[Text]) -> Result<(), String> {
    let valid = |entry: &Text| {
        entry.find('=').is_some_and(|position| position > 0) && !entry.contains('\0')
    };
    match env.iter().find(|entry| !valid(entry)) {
        Some(entry) => Err(format!("invalid environment variable {:?}", &**entry)),
        None => Ok(()),
    }
}

impl DeviceNode {
    fn check(&self) -> Result<(), String> {
        let path = &*self.path;
        if path.is_empty() {
            return Err("invalid (empty) device path".into());
        }
        if !matches!(&*self.kind, "" | "b" | "c" | "u" | "p") {
            return Err(format!("device {path:?}: invalid type {:?}", &*self.kind));
        }
        if self.major < 0 || self.minor < 0 {
            return Err(format!(
                "device {path:?}: invalid (negative) device number {}:{}",
                self.major, self.minor
            ));
        }
        if &*self.permissions != "none" && !self.permissions.chars().all(|it| "rwm".contains(it)) {
            return Err(format!(
                "device {path:?}: invalid permissions {:?}",
                &*self.permissions
            ));
        }
        Ok(())
    }
}

impl Hook {
    fn check(&self) -> Result<(), String> {
        const NAMES: [&str; 6] = [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        ];
        let name = &*self.hook_name;
        if !NAMES.contains(&name) {
            return Err(format!("invalid hook name {name:?}"));
        }
        if self.path.is_empty() {
            return Err(format!("invalid hook {name:?} with empty path"));
        }
        check_env(&self.env).map_err(|error| format!("invalid hook {name:?}: {error}"))
    }
}

impl Mount {
    fn check(&self) -> Result<(), String> {
        if self.host_path.is_empty() {
            return Err("invalid mount, empty host path".into());
        }
        if self.container_path.is_empty() {
            return Err("invalid mount, empty container path".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let found = parse(text.as_bytes(), text.starts_with('{'));
        let found = found.map_or_else(|error| error, |spec| spec.cdi_version.0);
        assert!(found.contains(expected), "{found}");
    }

    /// A specification with these members of its only device's edits.
    fn with(version: &str, edits: &str) -> String {
        format!(
            "cdiVersion: {version}\nkind: vendor.com/device\ndevices:\n- name: one\n  containerEdits:\n    {edits}\n"
        )
    }

    #[test]
    fn specifications_are_checked_as_by_the_library() {
        check(&with("0.3.0", "env: [A=1]"), "0.3.0");
        check(&with("\"1.0.0\"", "env: [A=1]\n    hooks: null"), "1.0.0");
        check(
            r#"{"cdiVersion": "0.6.0", "kind": "v/c", "devices": [{"name": 0, "containerEdits": {"env": ["A="]}}]}"#,
            "0.6.0",
        );
        check(&with("0.5", "env: [A=1]"), "invalid version \"0.5\"");
        check(&with("2.0.0", "env: [A=1]"), "invalid version \"2.0.0\"");
        check(
            &with("0.3.0", "deviceNodes: [{path: /dev/a, hostPath: /dev/b}]"),
            "the spec version must be at least v0.5.0",
        );
        check(
            &with("0.6.0", "additionalGids: [1]"),
            "must be at least v0.7.0",
        );
        check(
            &with("1.0.0", "netDevices: [{hostInterfaceName: a, name: b}]"),
            "must be at least v1.1.0",
        );
        check(
            &with(
                "0.6.0",
                "hooks: [{hookName: prestart, path: /x, args: [a, null]}]",
            ),
            "0.6.0",
        );
        check(&with("0.6.0", "{}"), "invalid device, empty device edits");
        check(
            &with("0.6.0", "env: [=1]"),
            "invalid environment variable \"=1\"",
        );
        check(&with("0.6.0", "unknown: 1"), "unknown field `unknown`");
        check(&with("0.6.0", "env: 1"), "invalid type");
        check(
            &with("0.6.0", "hooks: [{hookName: preStart, path: /x}]"),
            "invalid hook name \"preStart\"",
        );
        check(
            &with("0.6.0", "hooks: [{hookName: prestart}]"),
            "invalid hook \"prestart\" with empty path",
        );
        check(
            &with("0.6.0", "mounts: [{containerPath: /x}]"),
            "invalid mount, empty host path",
        );
        check(
            &with("0.6.0", "deviceNodes: [{path: /d, type: x}]"),
            "device \"/d\": invalid type \"x\"",
        );
        check(
            &with("0.6.0", "deviceNodes: [{path: /d, minor: -1}]"),
            "invalid (negative) device number 0:-1",
        );
        check(
            &with("0.6.0", "deviceNodes: [{path: /d, permissions: rx}]"),
            "invalid permissions \"rx\"",
        );
        check(
            "cdiVersion: 0.6.0\nkind: v/c\ndevices: []",
            "invalid spec, no devices",
        );
        check(
            "cdiVersion: 0.6.0\nkind: device\n",
            "invalid vendor. empty name",
        );
        check("", "no Spec data");
        check("{", "EOF while parsing");
    }
}
