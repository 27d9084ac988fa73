//! Generates the device rules of a container's cgroup.

use whelk_runtime::cgroup::default_rules;
use whelk_runtime::spec::{DeviceKind, DeviceRule};

use super::SpecContext;
use crate::error::{Error, Result};
use crate::model::{DeviceMapping, HostConfig};

pub(super) fn device_rules(
    host: &HostConfig,
    context: &SpecContext<'_>,
) -> Result<Vec<DeviceRule>> {
    let mut rules = vec![DeviceRule {
        allow: false,
        access: "rwm".into(),
        ..DeviceRule::default()
    }];
    if host.privileged {
        rules.push(DeviceRule {
            allow: true,
            access: "rwm".into(),
            ..DeviceRule::default()
        });
        return Ok(rules);
    }
    rules.extend(default_rules());
    rules.extend(context.devices.iter().map(|(device, access)| DeviceRule {
        allow: true,
        kind: Some(device.kind),
        major: Some(device.major),
        minor: Some(device.minor),
        access: access.clone(),
    }));
    for rule in host.device_cgroup_rules.iter().flatten() {
        rules.push(parse_rule(rule)?);
    }
    Ok(rules)
}

/// Parses a device cgroup rule such as `c 1:3 rwm`; `*` stands for any number.
fn parse_rule(text: &str) -> Result<DeviceRule> {
    let invalid = || Error::invalid(format!("invalid device cgroup rule format: '{text}'"));
    let words: Vec<&str> = text.split_whitespace().collect();
    let [kind, numbers, access] = words.as_slice() else {
        return Err(invalid());
    };
    let kind = match *kind {
        "a" => DeviceKind::All,
        "b" => DeviceKind::Block,
        "c" => DeviceKind::Char,
        _ => return Err(invalid()),
    };
    let (major, minor) = numbers.split_once(':').ok_or_else(invalid)?;
    let number = |text: &str| {
        if text == "*" {
            Ok(None)
        } else {
            text.parse::<u32>()
                .map(|n| Some(n.into()))
                .map_err(|_| invalid())
        }
    };
    if access.is_empty() || access.len() > 3 || !access.chars().all(|letter| "rwm".contains(letter))
    {
        return Err(invalid());
    }
    Ok(DeviceRule {
        allow: true,
        kind: Some(kind),
        major: number(major)?,
        minor: number(minor)?,
        access: (*access).to_owned(),
    })
}

/// Returns the cgroup access of a `--device` mapping; the default is `rwm`.
pub fn device_access(mapping: &DeviceMapping) -> Result<String> {
    let access = if mapping.cgroup_permissions.is_empty() {
        "rwm"
    } else {
        &mapping.cgroup_permissions
    };
    if access.chars().all(|letter| "rwm".contains(letter)) {
        Ok(access.to_owned())
    } else {
        Err(Error::invalid(format!("invalid device mode: {access}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_malformed_device_rules() {
        assert!(parse_rule("c 1:3 rwm").is_ok() && parse_rule("b *:* r").is_ok());
        for text in ["", "c 1:3", "x 1:3 r", "c 1 r", "c 1:x r", "c 1:3 q"] {
            let error = parse_rule(text).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("invalid device cgroup rule format: '{text}'")
            );
        }
    }
}
