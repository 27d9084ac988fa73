//! The options of the drivers, with the error texts of Docker's.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::address::{Address, Url, join, split_host_port};
use crate::{Compression, Destination, Fluentd, Format, Gelf, Syslog, Tls};

/// Options that each driver has; whoever knows the container evaluates them.
const COMMON: [&str; 5] = ["env", "env-regex", "labels", "labels-regex", "tag"];

type Options = BTreeMap<String, String>;

impl Destination {
    /// Reads the options of a driver. Returns `None` if there is no such driver.
    ///
    /// # Errors
    /// Returns the text of Docker's driver if it has no such option, or if a value is invalid.
    pub fn parse(driver: &str, options: &Options) -> Option<Result<Self, String>> {
        let known: &[&str] = match driver {
            "syslog" => &[
                "syslog-address",
                "syslog-facility",
                "syslog-format",
                "syslog-tls-ca-cert",
                "syslog-tls-cert",
                "syslog-tls-key",
                "syslog-tls-skip-verify",
            ],
            "gelf" => &[
                "gelf-address",
                "gelf-compression-level",
                "gelf-compression-type",
                "gelf-tcp-max-reconnect",
                "gelf-tcp-reconnect-delay",
            ],
            "fluentd" => &[
                "fluentd-address",
                "fluentd-async",
                "fluentd-async-reconnect-interval",
                "fluentd-buffer-limit",
                "fluentd-max-retries",
                "fluentd-request-ack",
                "fluentd-retry-wait",
                "fluentd-sub-second-precision",
            ],
            "journald" => &[],
            _ => return None,
        };
        for key in options.keys().map(String::as_str) {
            if !known.contains(&key) && !COMMON.contains(&key) {
                let quoted = if driver == "gelf" {
                    format!("{key:?}")
                } else {
                    format!("'{key}'")
                };
                return Some(Err(format!(
                    "unknown log opt {quoted} for {driver} log driver"
                )));
            }
        }
        Some(match driver {
            "syslog" => syslog(options).map(Self::Syslog),
            "gelf" => gelf(options).map(Self::Gelf),
            "fluentd" => fluentd(options).map(Self::Fluentd),
            _ => Ok(Self::Journald),
        })
    }
}

/// Returns an option that is not empty.
fn given<'a>(options: &'a Options, key: &str) -> Option<&'a str> {
    options
        .get(key)
        .map(String::as_str)
        .filter(|text| !text.is_empty())
}

fn syslog(options: &Options) -> Result<Syslog, String> {
    Ok(Syslog {
        address: syslog_address(options)?,
        facility: facility(given(options, "syslog-facility"))?,
        format: match given(options, "syslog-format") {
            None => Format::Unix,
            Some("rfc3164") => Format::Rfc3164,
            Some("rfc5424") => Format::Rfc5424,
            Some("rfc5424micro") => Format::Rfc5424Micro,
            Some(_) => return Err("Invalid syslog format".into()),
        },
    })
}

/// Returns the TLS settings. As with Docker, the value of `syslog-tls-skip-verify` does not matter.
fn syslog_tls(options: &Options) -> Result<Tls, String> {
    let file = |key: &str| given(options, key).map(PathBuf::from);
    let tls = Tls {
        authorities: file("syslog-tls-ca-cert"),
        certificate: file("syslog-tls-cert"),
        key: file("syslog-tls-key"),
        accepts_anyone: options.contains_key("syslog-tls-skip-verify"),
    };
    if tls.certificate.is_some() != tls.key.is_some() {
        return Err("syslog-tls-cert and syslog-tls-key must both be given".into());
    }
    // The program that reads them has another working directory.
    let files = [&tls.authorities, &tls.certificate, &tls.key];
    if let Some(path) = files.into_iter().flatten().find(|path| !path.is_absolute()) {
        return Err(format!("{}: must be an absolute path", path.display()));
    }
    Ok(tls)
}

fn syslog_address(options: &Options) -> Result<Address, String> {
    let Some(text) = given(options, "syslog-address") else {
        return Ok(Address::LocalSyslog);
    };
    let url = Url::split(text);
    match url.scheme {
        "unix" | "unixgram" => Ok(if url.scheme == "unix" {
            Address::Unix(url.path.into())
        } else {
            Address::UnixDatagram(url.path.into())
        }),
        "tcp" | "udp" | "tcp+tls" => {
            let (host, port) = split_host_port(url.host)?;
            let address = join(host, port.unwrap_or("514"));
            Ok(match url.scheme {
                "tcp" => Address::Tcp(address),
                "udp" => Address::Udp(address),
                _ => Address::Tls(address, syslog_tls(options)?),
            })
        }
        scheme => Err(format!("unsupported scheme: '{scheme}'")),
    }
}

/// The names of facilities; the number of each is its place.
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp", "", "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6",
    "local7",
];

fn facility(text: Option<&str>) -> Result<u8, String> {
    const DAEMON: u8 = 3;
    let Some(text) = text else { return Ok(DAEMON) };
    let named = FACILITIES.iter().position(|name| *name == text);
    named
        .and_then(|number| u8::try_from(number).ok())
        .or_else(|| text.parse().ok())
        .filter(|number| *number <= 23)
        .ok_or_else(|| "invalid syslog facility".into())
}

fn gelf(options: &Options) -> Result<Gelf, String> {
    let text = given(options, "gelf-address").ok_or("gelf-address is a required parameter")?;
    let url = Url::split(text);
    if url.scheme.is_empty() {
        return Err(format!(
            "gelf-address should be in form proto://address, got {text}"
        ));
    }
    let is_udp = match url.scheme {
        "udp" => true,
        "tcp" => false,
        _ => return Err("gelf: endpoint needs to be TCP or UDP".into()),
    };
    if !matches!(split_host_port(url.host), Ok((_, Some(_)))) {
        return Err("gelf: please provide gelf-address as proto://host:port".into());
    }
    let host = url.host.to_owned();
    let mut gelf = Gelf {
        address: if is_udp {
            Address::Udp(host)
        } else {
            Address::Tcp(host)
        },
        compression: Compression::Gzip,
        level: 1,
        reconnects: 3,
        reconnect_delay: 1,
    };
    for (key, value) in options {
        let unknown = || format!("unknown value {value:?} for log opt {key:?} for gelf log driver");
        match key.as_str() {
            "gelf-compression-level" | "gelf-compression-type" if !is_udp => {
                return Err("compression is only supported on UDP".into());
            }
            "gelf-compression-level" => {
                let level = value.parse::<i8>().ok();
                let level = level.filter(|level| (-1..=9).contains(level));
                gelf.level = level.ok_or_else(unknown)?;
            }
            "gelf-compression-type" => {
                gelf.compression = match value.as_str() {
                    "gzip" => Compression::Gzip,
                    "zlib" => Compression::Zlib,
                    "none" => Compression::None,
                    _ => return Err(unknown()),
                }
            }
            "gelf-tcp-max-reconnect" | "gelf-tcp-reconnect-delay" => {
                if is_udp {
                    return Err(format!("{key:?} is only valid for TCP"));
                }
                let number = value.parse::<u32>();
                let number = number.map_err(|_| format!("{key:?} must be a positive integer"))?;
                if key == "gelf-tcp-max-reconnect" {
                    gelf.reconnects = number;
                } else {
                    gelf.reconnect_delay = number.into();
                }
            }
            _ => {}
        }
    }
    Ok(gelf)
}

fn fluentd(options: &Options) -> Result<Fluentd, String> {
    let flag = |key: &str| match given(options, key) {
        None => Ok(false),
        Some(text) => whelk_text::parse_bool(text)
            .ok_or_else(|| format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    };
    let address = given(options, "fluentd-address").unwrap_or_default();
    let invalid = |text: String| format!("invalid fluentd-address ({address}): {text}");
    let retry_wait = given(options, "fluentd-retry-wait").map(whelk_text::duration::parse);
    let retry_wait = retry_wait.transpose().map_err(|error| error.to_string())?;
    let retries = given(options, "fluentd-max-retries").map(str::parse::<u32>);
    let buffer = given(options, "fluentd-buffer-limit").map(whelk_text::size::parse_binary);
    let buffer = buffer.transpose().map_err(|error| error.to_string())?;
    Ok(Fluentd {
        address: fluentd_address(address).map_err(invalid)?,
        is_async: flag("fluentd-async")?,
        reconnect_interval: reconnect_interval(options)?,
        buffer_limit: buffer.map_or(1 << 20, |bytes| u64::try_from(bytes).unwrap_or(0)),
        retries: retries
            .transpose()
            .map_err(|_| {
                format!(
                    "strconv.ParseUint: parsing {:?}: invalid syntax",
                    options["fluentd-max-retries"]
                )
            })?
            .unwrap_or(u32::MAX),
        retry_wait: match retry_wait {
            None => 1000,
            // The default of the client that Docker uses.
            Some(0) => 500,
            Some(wait) => u64::try_from(wait / 1_000_000)
                .map_err(|_| "fluentd-retry-wait must not be negative")?
                .max(SHORTEST_WAIT),
        },
        sub_second: flag("fluentd-sub-second-precision")?,
        wants_acknowledgement: flag("fluentd-request-ack")?,
    })
}

/// In milliseconds: the least time between two attempts to connect.
const SHORTEST_WAIT: u64 = 10;

/// Returns the time in milliseconds after which another connection is made.
fn reconnect_interval(options: &Options) -> Result<Option<u64>, String> {
    const KEY: &str = "fluentd-async-reconnect-interval";
    const LEAST: u64 = 100;
    const MOST: u64 = 10_000;
    let Some(text) = given(options, KEY) else {
        return Ok(None);
    };
    let interval = whelk_text::duration::parse(text)
        .map_err(|error| format!("invalid value for {KEY}: {error}"))?;
    match u64::try_from(interval / 1_000_000) {
        Ok(0) if interval == 0 => Ok(None),
        Ok(interval @ LEAST..=MOST) => Ok(Some(interval)),
        _ => Err(format!(
            "invalid value for {KEY}: value ({text:?}) must be between 100ms and 10s"
        )),
    }
}

fn fluentd_address(text: &str) -> Result<Address, String> {
    let url = Url::split(text);
    match url.scheme {
        "unix" if url.path.trim_matches('/').is_empty() => return Err("path is empty".into()),
        "unix" => return Ok(Address::Unix(url.path.into())),
        "" | "tcp" | "tls" => {}
        scheme => return Err(format!("unsupported scheme: '{scheme}'")),
    }
    if !url.path.is_empty() {
        return Err("should not contain a path element".into());
    }
    let (host, port) = split_host_port(url.host)?;
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    let port = port.filter(|port| !port.is_empty()).unwrap_or("24224");
    if port.parse::<u16>().is_err() {
        return Err(format!("invalid port: {port:?}"));
    }
    let address = join(host, port);
    Ok(match url.scheme {
        "tls" => Address::Tls(address, Tls::default()),
        _ => Address::Tcp(address),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(driver: &str, options: &[(&str, &str)], expected: &str) {
        let pairs = options.iter().map(|&(k, v)| (k.to_owned(), v.to_owned()));
        let parsed = Destination::parse(driver, &pairs.collect()).unwrap();
        let text = match parsed {
            Ok(Destination::Syslog(found)) => {
                format!("{:?} {} {:?}", found.address, found.facility, found.format)
            }
            Ok(Destination::Gelf(found)) => format!(
                "{:?} {:?} {} {} {}",
                found.address,
                found.compression,
                found.level,
                found.reconnects,
                found.reconnect_delay
            ),
            Ok(Destination::Fluentd(found)) => format!("{:?} {}", found.address, found.retry_wait),
            Ok(Destination::Journald) => "journald".into(),
            Err(text) => text,
        };
        assert_eq!(text, expected, "{driver} {options:?}");
    }

    #[test]
    fn options_and_errors_are_dockers() {
        check("syslog", &[], "LocalSyslog 3 Unix");
        check(
            "syslog",
            &[
                ("syslog-address", "udp://[::1]"),
                ("syslog-facility", "local3"),
                ("syslog-format", "rfc5424micro"),
            ],
            "Udp(\"[::1]:514\") 19 Rfc5424Micro",
        );
        check(
            "syslog",
            &[
                ("syslog-address", "tcp+tls://x:6514"),
                ("syslog-tls-ca-cert", "/ca"),
                ("syslog-tls-skip-verify", "false"),
            ],
            "Tls(\"x:6514\", Tls { authorities: Some(\"/ca\"), certificate: None, key: None, accepts_anyone: true }) 3 Unix",
        );
        check(
            "syslog",
            &[("syslog-address", "tcp+tls://x"), ("syslog-tls-key", "/k")],
            "syslog-tls-cert and syslog-tls-key must both be given",
        );
        check(
            "syslog",
            &[
                ("syslog-address", "tcp+tls://x"),
                ("syslog-tls-ca-cert", "ca"),
            ],
            "ca: must be an absolute path",
        );
        check(
            "syslog",
            &[("syslog-facility", "24")],
            "invalid syslog facility",
        );
        check("syslog", &[("syslog-format", "x")], "Invalid syslog format");
        check(
            "syslog",
            &[("syslog-address", "http://x")],
            "unsupported scheme: 'http'",
        );
        check(
            "syslog",
            &[("syslog-address", "unix:///no/such")],
            "Unix(\"/no/such\") 3 Unix",
        );
        check(
            "syslog",
            &[("x", "")],
            "unknown log opt 'x' for syslog log driver",
        );
    }

    #[test]
    fn options_of_the_other_drivers_are_dockers() {
        check("gelf", &[], "gelf-address is a required parameter");
        check(
            "gelf",
            &[("gelf-address", "x:1")],
            "gelf-address should be in form proto://address, got x:1",
        );
        check(
            "gelf",
            &[("gelf-address", "http://x:1")],
            "gelf: endpoint needs to be TCP or UDP",
        );
        check(
            "gelf",
            &[("gelf-address", "udp://x")],
            "gelf: please provide gelf-address as proto://host:port",
        );
        let udp = ("gelf-address", "udp://x:1");
        let tcp = ("gelf-address", "tcp://x:1");
        check(
            "gelf",
            &[udp, ("gelf-compression-type", "none")],
            "Udp(\"x:1\") None 1 3 1",
        );
        check(
            "gelf",
            &[tcp, ("gelf-compression-type", "none")],
            "compression is only supported on UDP",
        );
        check(
            "gelf",
            &[tcp, ("gelf-tcp-max-reconnect", "7")],
            "Tcp(\"x:1\") Gzip 1 7 1",
        );
        check(
            "gelf",
            &[udp, ("gelf-tcp-max-reconnect", "7")],
            "\"gelf-tcp-max-reconnect\" is only valid for TCP",
        );
        check(
            "gelf",
            &[udp, ("gelf-compression-level", "10")],
            "unknown value \"10\" for log opt \"gelf-compression-level\" for gelf log driver",
        );
        check(
            "gelf",
            &[udp, ("x", "")],
            "unknown log opt \"x\" for gelf log driver",
        );
        check("fluentd", &[], "Tcp(\"127.0.0.1:24224\") 1000");
        check(
            "fluentd",
            &[
                ("fluentd-address", "unix:///run/f"),
                ("fluentd-retry-wait", "2s"),
            ],
            "Unix(\"/run/f\") 2000",
        );
        check(
            "fluentd",
            &[("fluentd-address", "udp://x")],
            "invalid fluentd-address (udp://x): unsupported scheme: 'udp'",
        );
        check(
            "fluentd",
            &[("fluentd-max-retries", "x")],
            "strconv.ParseUint: parsing \"x\": invalid syntax",
        );
        check(
            "fluentd",
            &[("fluentd-async-reconnect-interval", "1h")],
            "invalid value for fluentd-async-reconnect-interval: value (\"1h\") must be between 100ms and 10s",
        );
        check(
            "fluentd",
            &[("fluentd-async-connect", "true")],
            "unknown log opt 'fluentd-async-connect' for fluentd log driver",
        );
        check("journald", &[("labels", "a")], "journald");
        check(
            "journald",
            &[("x", "")],
            "unknown log opt 'x' for journald log driver",
        );
    }
}
