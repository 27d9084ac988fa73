//! Converts `--log-driver` and `--log-opt` to a shim's log configuration.

mod attributes;

use std::collections::BTreeMap;
use std::path::Path;

use whelk_logsend::Destination;
use whelk_shim::logs::{Driver, Forwarding, LogConfig};
use whelk_text::parse_bool;
use whelk_text::size::parse_binary;

pub use attributes::attributes;

use crate::error::{Error, Result};
use crate::model::{self, ContainerRecord, LogDriver};

/// Defaults of both drivers: five files of 20 MiB, the rotated ones compressed. As in Docker, a
/// `json-file` log with a `max-size` of its own is one uncompressed file unless options say otherwise.
const DEFAULT_SIZE: u64 = 20 << 20;
const DEFAULT_FILES: u32 = 5;

/// The size that means no limit.
const NO_LIMIT: &str = "-1";

/// Returns the log configuration of container `id`, whose log files are in `directory`, without
/// [`attributes`].
///
/// # Errors
/// Returns an error if the driver has no such option, or if a value is invalid.
pub fn config(wanted: &model::LogConfig, directory: &Path, id: &str) -> Result<LogConfig> {
    let is_remote = wanted.driver.is_some_and(LogDriver::is_remote);
    let driver = match wanted.driver {
        Some(LogDriver::JsonFile) => Driver::JsonFile,
        Some(LogDriver::None) => Driver::None,
        _ if is_remote && !has_cache(&wanted.options)? => Driver::None,
        _ => Driver::Local,
    };
    let name = if driver == Driver::JsonFile {
        format!("{id}-json.log")
    } else {
        "container.log".into()
    };
    let mut config = LogConfig {
        driver,
        path: directory.join(name),
        max_size: 0,
        max_files: 1,
        compress: false,
        attributes: BTreeMap::new(),
        forwarding: None,
    };
    if driver == Driver::Local || !wanted.options.contains_key("max-size") {
        (config.max_size, config.max_files, config.compress) = (DEFAULT_SIZE, DEFAULT_FILES, true);
    }
    if wanted.driver == Some(LogDriver::None) {
        return Ok(config);
    }
    check_mode(&wanted.options)?;
    for (key, value) in &wanted.options {
        // The files of a log that is sent elsewhere are a cache, whose options have names of their own.
        let key = match key.strip_prefix("cache-") {
            Some("max-size" | "max-file" | "compress" | "disabled") if !is_remote => continue,
            Some("disabled") => continue,
            Some(key @ ("max-size" | "max-file" | "compress")) => key,
            _ if is_remote => continue,
            _ => key,
        };
        match key {
            "max-size" => config.max_size = size(value)?,
            "max-file" => {
                config.max_files = value
                    .parse()
                    .map_err(|_| Error::invalid(format!("invalid max-file: {value:?}")))?;
                if config.max_files == 0 {
                    return Err(Error::invalid("max-file cannot be less than 1"));
                }
            }
            "compress" => {
                config.compress = parse_bool(value).ok_or_else(|| {
                    Error::invalid(format!("invalid compress: {value:?}: true or false"))
                })?
            }
            "mode" | "max-buffer-size" | "labels" | "labels-regex" | "env" | "env-regex"
            | "tag" => {}
            _ if driver == Driver::Local => {
                return Err(Error::invalid(format!(
                    "unknown log opt '{key}' for log driver local"
                )));
            }
            _ => {
                return Err(Error::invalid(format!(
                    "unknown log opt '{key}' for json-file log driver"
                )));
            }
        }
    }
    Ok(config)
}

/// Whether the log of a driver that sends it elsewhere is kept in files, too.
fn has_cache(options: &BTreeMap<String, String>) -> Result<bool> {
    match options.get("cache-disabled").map(String::as_str) {
        None | Some("") => Ok(true),
        Some(text) => parse_bool(text).map(|disabled| !disabled).ok_or_else(|| {
            Error::invalid(format!("invalid value for option cache-disabled: {text}"))
        }),
    }
}

/// Returns where a log is sent; `None` for drivers that only write files.
///
/// # Errors
/// Returns an error if the driver has no such option, or if a value is invalid.
pub fn destination(wanted: &model::LogConfig) -> Result<Option<Destination>> {
    let Some(driver) = wanted.driver.filter(|driver| driver.is_remote()) else {
        return Ok(None);
    };
    let is_own = |key: &str| {
        !matches!(
            key,
            "mode"
                | "max-buffer-size"
                | "cache-disabled"
                | "cache-max-size"
                | "cache-max-file"
                | "cache-compress"
        )
    };
    let own = wanted.options.iter().filter(|(key, _)| is_own(key));
    let own = own.map(|(key, value)| (key.clone(), value.clone()));
    let parsed = Destination::parse(driver.as_str(), &own.collect());
    parsed.transpose().map_err(Error::invalid)
}

/// Checks that the socket exists that a log is sent to. Blocks.
///
/// # Errors
/// Returns Docker's text if it does not.
pub fn check_socket(wanted: &model::LogConfig) -> Result<()> {
    match destination(wanted)? {
        Some(destination) => destination.check_socket().map_err(Error::invalid),
        None => Ok(()),
    }
}

/// Returns how a container's log is sent to its collector, if it has one.
///
/// # Errors
/// As [`destination`] and [`attributes`].
pub fn forwarding(record: &ContainerRecord) -> Result<Option<Forwarding>> {
    let log = &record.host.log_config;
    let Some(destination) = destination(log)? else {
        return Ok(None);
    };
    destination.check_socket().map_err(Error::invalid)?;
    /// As with Docker.
    const DEFAULT_BUFFER: u64 = 1_000_000;
    let buffer = match (&destination, log.options.get("mode").map(String::as_str)) {
        (_, Some("non-blocking")) => {
            let given = log.options.get("max-buffer-size");
            let given = given.map(|text| buffer_size(text)).transpose()?;
            Some(given.unwrap_or(DEFAULT_BUFFER))
        }
        (Destination::Fluentd(fluentd), _) if fluentd.is_async => Some(fluentd.buffer_limit),
        _ => None,
    };
    Ok(Some(Forwarding {
        identity: attributes::identity(record)?,
        destination,
        buffer,
    }))
}

/// Checks the options on what happens while a collector takes no lines. For drivers that write files both
/// modes behave the same: the shim never waits for a reader.
fn check_mode(options: &BTreeMap<String, String>) -> Result<()> {
    let mode = options.get("mode").map_or("", String::as_str);
    if !matches!(mode, "" | "blocking" | "non-blocking") {
        return Err(Error::invalid(format!(
            "logger: logging mode not supported: {mode}"
        )));
    }
    let Some(buffer) = options.get("max-buffer-size") else {
        return Ok(());
    };
    if mode != "non-blocking" {
        return Err(Error::invalid(
            "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
        ));
    }
    buffer_size(buffer)
        .map(drop)
        .map_err(|error| error.prefixed("error parsing option max-buffer-size"))
}

/// Checks the options of a new container for values that [`config`] accepts because existing
/// containers and the engine's defaults may have them: a maximal size of 0 is no limit.
///
/// # Errors
/// Returns an error if the maximal size is 0.
pub fn check_new(wanted: &model::LogConfig) -> Result<()> {
    match wanted.options.get("max-size") {
        Some(text)
            if wanted.driver != Some(LogDriver::None) && text != NO_LIMIT && size(text)? == 0 =>
        {
            Err(Error::invalid("max-size must be a positive number"))
        }
        _ => Ok(()),
    }
}

/// Parses a size of at least 0 and returns bytes.
fn buffer_size(text: &str) -> Result<u64> {
    parse_binary(text)
        .ok()
        .and_then(|bytes| u64::try_from(bytes).ok())
        .ok_or_else(|| Error::invalid(format!("invalid size: '{text}'")))
}

/// Parses a size such as `10m` and returns bytes. `-1` is 0: no limit.
fn size(text: &str) -> Result<u64> {
    if text == NO_LIMIT {
        return Ok(0);
    }
    buffer_size(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(driver: Option<LogDriver>, options: &[(&str, &str)], expected: &str) {
        let wanted = model::LogConfig {
            driver,
            options: options
                .iter()
                .map(|&(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
        };
        let outcome = config(&wanted, Path::new("/d"), "id").map(|c| {
            format!(
                "{} {} {} {}",
                c.path.display(),
                c.max_size,
                c.max_files,
                c.compress
            )
        });
        assert_eq!(
            outcome.unwrap_or_else(|error| error.to_string()),
            expected,
            "{driver:?} {options:?}"
        );
    }

    #[test]
    fn converts_drivers_and_options() {
        check(None, &[], "/d/container.log 20971520 5 true");
        check(
            Some(LogDriver::JsonFile),
            &[("max-size", "10k"), ("max-file", "3"), ("compress", "true")],
            "/d/id-json.log 10240 3 true",
        );
        check(
            Some(LogDriver::JsonFile),
            &[],
            "/d/id-json.log 20971520 5 true",
        );
        check(
            Some(LogDriver::JsonFile),
            &[("max-file", "2"), ("compress", "false")],
            "/d/id-json.log 20971520 2 false",
        );
        check(
            Some(LogDriver::JsonFile),
            &[("max-size", "1k")],
            "/d/id-json.log 1024 1 false",
        );
        check(
            Some(LogDriver::JsonFile),
            &[("bogus", "1")],
            "unknown log opt 'bogus' for json-file log driver",
        );
        check(
            Some(LogDriver::Local),
            &[("bogus", "1")],
            "unknown log opt 'bogus' for log driver local",
        );
        check(
            Some(LogDriver::Local),
            &[("mode", "lossy")],
            "logger: logging mode not supported: lossy",
        );
        check(
            Some(LogDriver::Local),
            &[("max-buffer-size", "1m")],
            "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
        );
        check(
            Some(LogDriver::Local),
            &[("mode", "non-blocking"), ("max-buffer-size", "x")],
            "error parsing option max-buffer-size: invalid size: 'x'",
        );
        check(
            Some(LogDriver::Local),
            &[("mode", "non-blocking"), ("max-buffer-size", "-1")],
            "error parsing option max-buffer-size: invalid size: '-1'",
        );
        check(
            Some(LogDriver::Local),
            &[("mode", "non-blocking"), ("max-buffer-size", "4m")],
            "/d/container.log 20971520 5 true",
        );
        check(
            Some(LogDriver::Local),
            &[("max-size", "abc")],
            "invalid size: 'abc'",
        );
        check(
            Some(LogDriver::Local),
            &[("max-file", "0")],
            "max-file cannot be less than 1",
        );
        check(
            Some(LogDriver::Local),
            &[("max-file", "x")],
            "invalid max-file: \"x\"",
        );
        for none in ["0", "0k", "0.0001", "-1"] {
            check(
                Some(LogDriver::JsonFile),
                &[("max-size", none)],
                "/d/id-json.log 0 1 false",
            );
        }
    }

    #[test]
    fn new_containers_have_no_maximal_size_of_zero() {
        let is_fine = |driver: LogDriver, size: &str| {
            check_new(&model::LogConfig {
                driver: Some(driver),
                options: [("max-size".to_owned(), size.to_owned())].into(),
            })
            .is_ok()
        };
        for none in ["0", "0k", "0.0001", "x"] {
            assert!(!is_fine(LogDriver::JsonFile, none) && !is_fine(LogDriver::Local, none));
            assert!(is_fine(LogDriver::None, none));
        }
        assert!(is_fine(LogDriver::Local, "-1") && is_fine(LogDriver::JsonFile, "1"));
        assert!(check_new(&model::LogConfig::default()).is_ok());
    }
}
