//! The values of the device flags: devices, rules, rates and weights.

use serde_json::{Value, json};

use crate::commands::container::create::body::list;
use crate::commands::container::create::{invalid, named};
use crate::format::units::parse_size;
use crate::{Failure, Outcome};

/// Parses `HOST[:CONTAINER[:MODE]]`.
pub(super) fn parse_device(text: &str) -> Outcome<Value> {
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
    Ok(json!({"PathOnHost": host, "PathInContainer": container, "CgroupPermissions": mode}))
}

/// Checks rules such as `c 1:3 rwm`.
pub(super) fn device_rules(given: &[String]) -> Outcome<Value> {
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
    match given.iter().find(|rule| !valid(rule)) {
        Some(rule) => {
            let wrong = Failure::new(format!("invalid device cgroup format '{rule}'"));
            named(Err(wrong), rule, "--device-cgroup-rule")
        }
        None => Ok(list(given)),
    }
}

/// Parses `DEVICE:NUMBER`; with `bytes`, the number may have a size suffix.
pub(super) fn rates(given: &[String], flag: &str, field: &str, bytes: bool) -> Outcome<Vec<Value>> {
    given
        .iter()
        .map(|entry| rate(entry, field, bytes))
        .collect::<Result<_, _>>()
        .or_else(|(entry, reason): (&String, String)| named(Err(Failure::new(reason)), entry, flag))
}

fn rate<'e>(entry: &'e String, field: &str, bytes: bool) -> Result<Value, (&'e String, String)> {
    const WEIGHTS: std::ops::RangeInclusive<u64> = 10..=1000;
    let fail = |reason: String| (entry, reason);
    let parts = entry.split_once(':').filter(|(path, _)| !path.is_empty());
    let (path, rate) = parts.ok_or_else(|| fail(format!("bad format: {entry}")))?;
    if !path.starts_with("/dev/") {
        return Err(fail(format!("bad format for device path: {entry}")));
    }
    let number = match rate.parse::<u64>() {
        _ if bytes => parse_size(rate).ok().and_then(|size| size.try_into().ok()),
        Ok(weight) if field == "Weight" && weight != 0 && !WEIGHTS.contains(&weight) => None,
        number => number.ok(),
    };
    match number {
        Some(number) => Ok(json!({"Path": path, field: number})),
        None if field == "Weight" => Err(fail(format!("invalid weight for device: {entry}"))),
        None if bytes => Err(fail(format!(
            "invalid rate for device: {entry}. The correct format is <device-path>:<number>[<unit>]. Number must be a positive integer. Unit is optional and can be kb, mb, or gb"
        ))),
        None => Err(fail(format!(
            "invalid rate for device: {entry}. The correct format is <device-path>:<number>. Number must be a positive integer"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_devices() {
        assert_eq!(
            parse_device("/dev/a:r").unwrap(),
            json!({"PathOnHost": "/dev/a", "PathInContainer": "/dev/a", "CgroupPermissions": "r"})
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
        let rate = |entry: &str, field, bytes| {
            rates(&[entry.to_owned()], "--x", field, bytes).map_err(|failure| failure.text)
        };
        assert_eq!(
            rate("/dev/sda:1k", "Rate", true),
            Ok(vec![json!({"Path": "/dev/sda", "Rate": 1024})])
        );
        for (entry, field, bytes, text) in [
            ("foo", "Rate", true, "bad format: foo"),
            (":5", "Rate", true, "bad format: :5"),
            ("foo:1", "Rate", true, "bad format for device path: foo:1"),
            (
                "/dev/a:-5",
                "Rate",
                true,
                "invalid rate for device: /dev/a:-5. The correct format is <device-path>:<number>[<unit>]. ",
            ),
            (
                "/dev/a:1k",
                "Rate",
                false,
                "invalid rate for device: /dev/a:1k. The correct format is <device-path>:<number>. ",
            ),
            (
                "/dev/a:5",
                "Weight",
                false,
                "invalid weight for device: /dev/a:5",
            ),
        ] {
            let text = format!("invalid argument {entry:?} for \"--x\" flag: {text}");
            assert!(
                rate(entry, field, bytes).unwrap_err().starts_with(&text),
                "{entry}"
            );
        }
        let rules = |rule: &str| device_rules(&[rule.to_owned()]).is_ok();
        assert!(rules("c 1:3 rwm") && rules("a *:* r"));
        assert!(!rules("foo") && !rules("c 1:3 rwmr") && !rules("c 1 r"));
    }
}
