//! Signals of Linux by name or number.

use crate::{Error, Result};

const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

pub const KILL: i32 = 9;
pub const TERM: i32 = 15;

const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Returns the number of a signal given as `15`, `TERM`, `SIGTERM`, `sigterm` or `RTMIN+3`.
///
/// # Errors
/// Returns an error with Docker's text if there is no such signal.
pub fn parse(text: &str) -> Result<i32> {
    let invalid = || Error::new(format!("invalid signal: {text}"));
    if let Ok(number) = text.parse::<i32>() {
        return match number {
            1..=RTMAX => Ok(number),
            number if number > RTMAX => Err(Error::new(format!(
                "the linux daemon does not support signal {number}"
            ))),
            _ => Err(invalid()),
        };
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let alias = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        other => other,
    };
    if let Some(index) = NAMES.iter().position(|known| *known == alias) {
        return i32::try_from(index + 1).map_err(|_| invalid());
    }
    let real_time = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(RTMIN),
        (Some(offset), _) => offset
            .strip_prefix('+')
            .and_then(|offset| offset.parse::<i32>().ok())
            .map(|offset| RTMIN.saturating_add(offset)),
        (_, Some("")) => Some(RTMAX),
        (_, Some(offset)) => offset
            .strip_prefix('-')
            .and_then(|offset| offset.parse::<i32>().ok())
            .map(|offset| RTMAX.saturating_sub(offset)),
        _ => None,
    };
    real_time
        .filter(|number| (RTMIN..=RTMAX).contains(number))
        .ok_or_else(invalid)
}

/// Returns the name of a signal, such as `SIGTERM` or `SIGRTMIN+3`.
pub fn name(number: i32) -> String {
    let known = usize::try_from(number - 1)
        .ok()
        .and_then(|index| NAMES.get(index));
    match (known, number) {
        (Some(name), _) => format!("SIG{name}"),
        (None, RTMIN) => "SIGRTMIN".into(),
        (None, RTMIN..=RTMAX) => format!("SIGRTMIN+{}", number - RTMIN),
        (None, _) => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_names_and_numbers() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGKILL", 9),
            ("sigusr1", 10),
            ("9", 9),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
            ("IO", 29),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
    }

    #[test]
    fn names_signals() {
        let names = [1, 15, 31, 34, 37, 64, 32].map(name);
        let expected = [
            "SIGHUP",
            "SIGTERM",
            "SIGSYS",
            "SIGRTMIN",
            "SIGRTMIN+3",
            "SIGRTMIN+30",
            "32",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn rejects_unknown_names_and_numbers() {
        for text in ["", "0", "-1", "BOGUS", "RTMIN+99", "RTMAX-99", "RTMIN-1"] {
            let error = parse(text).unwrap_err().to_string();
            assert_eq!(error, format!("invalid signal: {text}"));
        }
        assert_eq!(
            parse("65").unwrap_err().to_string(),
            "the linux daemon does not support signal 65"
        );
    }
}
