//! The values of `--cpus`, `--ulimit`, `--sysctl` and `--restart`.

use std::collections::BTreeMap;

use whelk_api_types::{RestartPolicy, Ulimit};
use whelk_text::ulimit;

use crate::commands::arguments::key_values;
use crate::commands::container::create::invalid;
use crate::{Failure, Outcome};

pub(crate) fn nano_cpus(text: &str) -> Outcome<i64> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    let number = number.ok_or_else(|| {
        Failure::with_code(125, format!("invalid argument {text:?} for \"--cpus\" flag: failed to parse {text} as a rational number"))
    })?;
    Ok(whelk_text::number::saturating((number * 1e9).round()))
}

/// Parses `NAME[:COUNT]`.
pub(crate) fn restart_policy(text: &str) -> Outcome<RestartPolicy> {
    let (name, count) = text.split_once(':').unwrap_or((text, ""));
    if name.is_empty() && !text.is_empty() {
        return Err(invalid(
            "invalid restart policy format: no policy provided before colon",
        ));
    }
    let count: i64 = if count.is_empty() {
        0
    } else {
        count.parse().map_err(|_| {
            Failure::with_code(
                125,
                "invalid restart policy format: maximum retry count must be an integer",
            )
        })?
    };
    Ok(RestartPolicy {
        name: name.to_owned(),
        maximum_retry_count: count,
    })
}

/// Parses `TYPE=SOFT[:HARD]`.
pub(crate) fn parse_ulimit(text: &str) -> Outcome<Ulimit> {
    let fail = |reason: String| {
        Failure::with_code(
            125,
            format!("invalid argument {text:?} for \"--ulimit\" flag: {reason}"),
        )
    };
    let (name, values) = text
        .split_once('=')
        .ok_or_else(|| fail(format!("invalid ulimit argument: {text}")))?;
    if !ulimit::NAMES.contains(&name) {
        return Err(fail(format!("invalid ulimit type: {name}")));
    }
    if values.split(':').count() > 2 {
        return Err(fail(format!(
            "too many limit value arguments - {values}, can only have up to two, `soft[:hard]`"
        )));
    }
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |value: &str| {
        value.parse::<i64>().map_err(|_| {
            fail(format!(
                "strconv.ParseInt: parsing {value:?}: invalid syntax"
            ))
        })
    };
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(fail(format!(
            "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
        )));
    }
    Ok(Ulimit {
        name: name.to_owned(),
        hard,
        soft,
    })
}

/// Returns the kernel parameters of `--sysctl`. Only namespaced ones are allowed.
pub(super) fn sysctls(given: &[String]) -> Outcome<BTreeMap<String, String>> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    for entry in given {
        let key = entry.split('=').next().unwrap_or_default();
        if !entry.contains('=')
            || !(IPC.contains(&key)
                || key.starts_with("net.")
                || key.starts_with("fs.mqueue.")
                || key == "kernel.domainname")
        {
            return Err(Failure::with_code(
                125,
                format!(
                    "invalid argument {entry:?} for \"--sysctl\" flag: sysctl '{entry}' is not allowed"
                ),
            ));
        }
    }
    Ok(key_values(given))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_finite_numbers() {
        assert_eq!(nano_cpus("1.5").unwrap(), 1_500_000_000);
        for text in ["nan", "NaN", "inf", "-inf", "x"] {
            let text = nano_cpus(text).unwrap_err().text;
            assert!(text.contains("as a rational number"), "{text}");
        }
    }

    #[test]
    fn parses_ulimits() {
        assert_eq!(
            parse_ulimit("nofile=10:20").unwrap(),
            Ulimit {
                name: "nofile".into(),
                hard: 20,
                soft: 10
            }
        );
        assert!(
            parse_ulimit("foo=1")
                .unwrap_err()
                .text
                .ends_with("invalid ulimit type: foo")
        );
    }
}
