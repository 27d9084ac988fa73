//! Converts `--log-driver` and `--log-opt` to a shim's log configuration.

mod attributes;

use std::collections::BTreeMap;
use std::path::Path;

use whelk_shim::logs::{Driver, LogConfig};
use whelk_text::parse_bool;
use whelk_text::size::parse_binary;

pub use attributes::attributes;

use crate::error::{Error, Result};
use crate::model::{self, LogDriver};

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
    let driver = match wanted.driver {
        None | Some(LogDriver::Local) => Driver::Local,
        Some(LogDriver::JsonFile) => Driver::JsonFile,
        Some(LogDriver::None) => Driver::None,
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
    };
    if driver == Driver::Local || !wanted.options.contains_key("max-size") {
        (config.max_size, config.max_files, config.compress) = (DEFAULT_SIZE, DEFAULT_FILES, true);
    }
    if driver == Driver::None {
        return Ok(config);
    }
    check_mode(&wanted.options)?;
    for (key, value) in &wanted.options {
        match key.as_str() {
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

/// Checks the options on what happens while the log cannot be written. Both modes behave the same:
/// the shim writes to a file and never waits for a reader.
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
    size(buffer)
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

/// Parses a size such as `10m` and returns bytes. `-1` is 0: no limit.
fn size(text: &str) -> Result<u64> {
    if text == NO_LIMIT {
        return Ok(0);
    }
    parse_binary(text)
        .ok()
        .and_then(|bytes| u64::try_from(bytes).ok())
        .ok_or_else(|| Error::invalid(format!("invalid size: '{text}'")))
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
