//! Messages of syslog, in the layouts of Docker's driver.
//!
//! ```text
//! (default)     <PRI>Jan _2 15:04:05 TAG[PID]: LINE
//! rfc3164       <PRI>Jan _2 15:04:05 HOST TAG[PID]: LINE
//! rfc5424       <PRI>1 2006-01-02T15:04:05Z07:00 HOST TAG PID TAG - LINE
//! rfc5424micro  the same with microseconds
//! ```

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde::{Deserialize, Serialize};

use crate::{Address, Identity, Record};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Syslog {
    pub address: Address,
    pub facility: u8,
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    Unix,
    Rfc3164,
    Rfc5424,
    Rfc5424Micro,
}

const ERROR: u8 = 3;
const INFO: u8 = 6;

impl Syslog {
    pub(crate) fn encode(&self, identity: &Identity, record: &Record, out: &mut Vec<u8>) {
        let time = Timestamp::from_nanosecond(record.time.into()).unwrap_or_default();
        let time = time.to_zoned(TimeZone::system());
        out.extend(self.head(identity, record.is_error, &time).into_bytes());
        out.extend(&record.line);
        out.push(b'\n');
    }

    fn head(&self, identity: &Identity, is_error: bool, time: &Zoned) -> String {
        let priority = self.facility << 3 | if is_error { ERROR } else { INFO };
        let Identity { hostname, tag, .. } = identity;
        let pid = std::process::id();
        match self.format {
            Format::Unix => format!("<{priority}>{} {tag}[{pid}]: ", time.strftime("%b %e %T")),
            Format::Rfc3164 => format!(
                "<{priority}>{} {hostname} {tag}[{pid}]: ",
                time.strftime("%b %e %T")
            ),
            Format::Rfc5424 | Format::Rfc5424Micro => {
                let layout = if self.format == Format::Rfc5424 {
                    "%Y-%m-%dT%H:%M:%S"
                } else {
                    "%Y-%m-%dT%H:%M:%S.%6f"
                };
                let zone = if time.offset().is_zero() {
                    "Z".to_owned()
                } else {
                    time.strftime("%:z").to_string()
                };
                let time = time.strftime(layout);
                format!("<{priority}>1 {time}{zone} {hostname} {tag} {pid} {tag} - ")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_have_dockers_layouts() {
        let identity = Identity {
            tag: "app".into(),
            hostname: "host".into(),
            ..Identity::default()
        };
        let pid = std::process::id();
        let time: Zoned = "2024-03-05T06:07:08.123456+02:00[+02:00]".parse().unwrap();
        let utc: Zoned = "2024-03-05T06:07:08+00:00[UTC]".parse().unwrap();
        for (format, time, expected) in [
            (
                Format::Unix,
                &time,
                format!("<30>Mar  5 06:07:08 app[{pid}]: "),
            ),
            (
                Format::Rfc3164,
                &time,
                format!("<30>Mar  5 06:07:08 host app[{pid}]: "),
            ),
            (
                Format::Rfc5424,
                &utc,
                format!("<30>1 2024-03-05T06:07:08Z host app {pid} app - "),
            ),
            (
                Format::Rfc5424Micro,
                &time,
                format!("<30>1 2024-03-05T06:07:08.123456+02:00 host app {pid} app - "),
            ),
        ] {
            let syslog = Syslog {
                address: Address::LocalSyslog,
                facility: 3,
                format,
            };
            assert_eq!(syslog.head(&identity, false, time), expected);
        }
    }
}
