//! Converts `--log-driver` and `--log-opt` to a shim's log configuration.

use std::collections::BTreeMap;
use std::path::Path;

use whelk_shim::logs::{Driver, LogConfig};
use whelk_text::size::parse_binary;

use crate::error::{Error, Result};
use crate::model::{self, LogDriver};

/// Defaults of both drivers: five files of 20 MiB, the rotated ones compressed. As in Docker, a
/// `json-file` log with a `max-size` of its own is one uncompressed file unless options say otherwise.
const DEFAULT_SIZE: u64 = 20 << 20;
const DEFAULT_FILES: u32 = 5;

/// The size that means no limit.
const NO_LIMIT: &str = "-1";

/// Returns the log configuration of container `id`, whose log files are in `directory`.
///
/// # Errors
/// Returns an error if the driver has no such option, or if a value is invalid.
pub fn config(
    wanted: &model::LogConfig,
    directory: &Path,
    id: &str,
    details: &Details<'_>,
) -> Result<LogConfig> {
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
                config.compress = value.parse().map_err(|_| {
                    Error::invalid(format!("invalid compress: {value:?}: true or false"))
                })?
            }
            // The shim writes to a file and never waits for a reader, so both modes behave the
            // same.
            "mode" if matches!(value.as_str(), "blocking" | "non-blocking") => {}
            "mode" => {
                return Err(Error::invalid(format!(
                    "logger: logging mode not supported: {value}"
                )));
            }
            "max-buffer-size" => drop(size(value)?),
            "labels" => {
                config
                    .attributes
                    .extend(value.split(',').filter_map(|label| {
                        Some((label.to_owned(), details.labels?.get(label)?.clone()))
                    }))
            }
            "env" => config.attributes.extend(
                value
                    .split(',')
                    .filter_map(|name| Some((name.to_owned(), details.env(name)?))),
            ),
            "tag" if value.contains("{{") => {
                return Err(Error::Unsupported(
                    "log option tag with a template: not available in this version of whelk".into(),
                ));
            }
            "tag" => drop(config.attributes.insert("tag".into(), value.clone())),
            "labels-regex" | "env-regex" => {
                return Err(Error::Unsupported(format!(
                    "log option {key}: not available in this version of whelk"
                )));
            }
            _ => {
                return Err(Error::invalid(format!(
                    "unknown log opt '{key}' for {} log driver",
                    if driver == Driver::Local {
                        "local"
                    } else {
                        "json-file"
                    }
                )));
            }
        }
    }
    Ok(config)
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

/// The labels and environment that the options `labels` and `env` select from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Details<'a> {
    pub labels: Option<&'a BTreeMap<String, String>>,
    pub env: Option<&'a Vec<String>>,
}

impl Details<'_> {
    fn env(&self, name: &str) -> Option<String> {
        self.env?
            .iter()
            .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
            .map(str::to_owned)
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
        let outcome = config(&wanted, Path::new("/d"), "id", &Details::default()).map(|c| {
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
