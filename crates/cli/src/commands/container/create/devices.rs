//! The values of the device flags: devices, rules, rates and weights.

use whelk_api_types::{DeviceMapping, ThrottleDevice, WeightDevice};

use crate::commands::arguments::given;
use crate::commands::container::create::{invalid, named};
use crate::format::units::parse_size;
use crate::{Failure, Outcome};

/// Parses `HOST[:CONTAINER[:MODE]]`.
pub(super) fn parse_device(text: &str) -> Outcome<DeviceMapping> {
    // Each of the letters at most once.
    let is_mode = |mode: &str| {
        !mode.is_empty()
            && mode.chars().all(|letter| "rwm".contains(letter))
            && "rwm"
                .chars()
                .all(|letter| mode.matches(letter).count() <= 1)
    };
    let parts: Vec<&str> = text.split(':').collect();
    let (host, container, mode) = match parts.as_slice() {
        [host] if !host.is_empty() => (*host, *host, "rwm"),
        [host, mode] if !host.is_empty() && is_mode(mode) => (*host, *host, *mode),
        [host, container] if !host.is_empty() => (*host, *container, "rwm"),
        [host, container, mode] if !host.is_empty() => {
            if !is_mode(mode) {
                return Err(invalid(format!("bad mode specified: {mode}")));
            }
            (*host, *container, *mode)
        }
        _ => return Err(invalid(format!("bad format for path: {text}"))),
    };
    if !container.starts_with('/') {
        return Err(invalid(format!("{container} is not an absolute path")));
    }
    Ok(DeviceMapping {
        path_on_host: host.to_owned(),
        path_in_container: container.to_owned(),
        cgroup_permissions: mode.to_owned(),
    })
}

/// Checks rules such as `c 1:3 rwm`.
pub(super) fn device_rules(rules: &[String]) -> Outcome<Option<Vec<String>>> {
    let number = |text: &str| {
        text == "*" || !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    let valid = |rule: &str| match rule.split(' ').collect::<Vec<_>>()[..] {
        ["a" | "c" | "b", device, mode] => {
            device
                .split_once(':')
                .is_some_and(|(major, minor)| number(major) && number(minor))
                && (1..=3).contains(&mode.len())
                && mode.bytes().all(|letter| b"rwm".contains(&letter))
        }
        _ => false,
    };
    match rules.iter().find(|rule| !valid(rule)) {
        Some(rule) => {
            let wrong = Failure::new(format!("invalid device cgroup format '{rule}'"));
            named(Err(wrong), rule, "--device-cgroup-rule")
        }
        None => Ok(given(rules.to_vec())),
    }
}

/// What the number of a device is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rate {
    Weight,
    /// Bytes per second, which may have a size suffix.
    Bytes,
    /// Operations per second.
    Operations,
}

/// Parses `DEVICE:WEIGHT`.
pub(super) fn weights(entries: &[String], flag: &str) -> Outcome<Vec<WeightDevice>> {
    rates(entries, flag, Rate::Weight, |path, weight| WeightDevice {
        path,
        weight: u16::try_from(weight).unwrap_or(u16::MAX),
    })
}

/// Parses `DEVICE:BYTES`.
pub(super) fn byte_rates(entries: &[String], flag: &str) -> Outcome<Vec<ThrottleDevice>> {
    rates(entries, flag, Rate::Bytes, |path, rate| ThrottleDevice {
        path,
        rate,
    })
}

/// Parses `DEVICE:OPERATIONS`.
pub(super) fn operation_rates(entries: &[String], flag: &str) -> Outcome<Vec<ThrottleDevice>> {
    rates(entries, flag, Rate::Operations, |path, rate| {
        ThrottleDevice { path, rate }
    })
}

fn rates<T>(
    entries: &[String],
    flag: &str,
    kind: Rate,
    device: fn(String, u64) -> T,
) -> Outcome<Vec<T>> {
    entries
        .iter()
        .map(|entry| rate(entry, kind).map(|(path, rate)| device(path.to_owned(), rate)))
        .collect::<Result<_, _>>()
        .or_else(|(entry, reason): (&String, String)| named(Err(Failure::new(reason)), entry, flag))
}

fn rate(entry: &String, kind: Rate) -> Result<(&str, u64), (&String, String)> {
    const WEIGHTS: std::ops::RangeInclusive<u64> = 10..=1000;
    let fail = |reason: String| (entry, reason);
    let parts = entry.split_once(':').filter(|(path, _)| !path.is_empty());
    let (path, rate) = parts.ok_or_else(|| fail(format!("bad format: {entry}")))?;
    if !path.starts_with("/dev/") {
        return Err(fail(format!("bad format for device path: {entry}")));
    }
    let number = match rate.parse::<u64>() {
        _ if kind == Rate::Bytes => parse_size(rate).ok().and_then(|size| size.try_into().ok()),
        Ok(weight) if kind == Rate::Weight && weight != 0 && !WEIGHTS.contains(&weight) => None,
        number => number.ok(),
    };
    number.map(|number| (path, number)).ok_or_else(|| fail(match kind {
        Rate::Weight => format!("invalid weight for device: {entry}"),
        Rate::Bytes => format!(
            "invalid rate for device: {entry}. The correct format is <device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb"
        ),
        Rate::Operations => format!(
            "invalid rate for device: {entry}. The correct format is <device-path>:<number>. Number must be a positive integer"
        ),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_devices() {
        assert_eq!(
            parse_device("/dev/a:r").unwrap(),
            DeviceMapping {
                path_on_host: "/dev/a".into(),
                path_in_container: "/dev/a".into(),
                cgroup_permissions: "r".into(),
            }
        );
    }

    #[test]
    fn rejects_devices_with_dockers_texts() {
        for (device, text) in [
            ("x", "x is not an absolute path"),
            ("/dev/null:x", "x is not an absolute path"),
            ("/dev/null:rr", "rr is not an absolute path"),
            ("/dev/null:", " is not an absolute path"),
            ("/dev/null:/a:z", "bad mode specified: z"),
            ("/a:/b:c:d", "bad format for path: /a:/b:c:d"),
            ("", "bad format for path: "),
        ] {
            assert_eq!(parse_device(device).unwrap_err().text, text, "{device}");
        }
        assert_eq!(
            rate(&"/dev/sda:1k".to_owned(), Rate::Bytes),
            Ok(("/dev/sda", 1024))
        );
        assert_eq!(
            rate(&"/dev/sda:0".to_owned(), Rate::Weight),
            Ok(("/dev/sda", 0))
        );
        for (entry, kind, text) in [
            ("foo", Rate::Bytes, "bad format: foo"),
            (":5", Rate::Bytes, "bad format: :5"),
            ("foo:1", Rate::Bytes, "bad format for device path: foo:1"),
            (
                "/dev/a:-5",
                Rate::Bytes,
                "invalid rate for device: /dev/a:-5. The correct format is <device-path>:<number>[<unit>]. ",
            ),
            (
                "/dev/a:1k",
                Rate::Operations,
                "invalid rate for device: /dev/a:1k. The correct format is <device-path>:<number>. ",
            ),
            (
                "/dev/a:5",
                Rate::Weight,
                "invalid weight for device: /dev/a:5",
            ),
        ] {
            let text = format!("invalid argument {entry:?} for \"--x\" flag: {text}");
            let failure = rates(&[entry.to_owned()], "--x", kind, |_, _| ()).unwrap_err();
            assert!(failure.text.starts_with(&text), "{entry}");
        }
        let rules = |rule: &str| device_rules(&[rule.to_owned()]).is_ok();
        assert!(rules("c 1:3 rwm") && rules("a *:* r"));
        assert!(!rules("foo") && !rules("c 1:3 rwmr") && !rules("c 1 r"));
    }
}
