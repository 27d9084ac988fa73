//! The values of `--docker`: the endpoint of a context.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::load;
use crate::certificates::Files;
use crate::commands::USAGE;
use crate::commands::container::create::mounts::fields;
use crate::context::{ENDPOINT, TlsFiles};
use crate::endpoint::{Host, RootFlags};
use crate::{Failure, Outcome, files, flags, plain};

/// An endpoint of a context.
pub(super) struct Endpoint {
    pub host: String,
    pub skip_verify: bool,
    pub tls: TlsFiles,
}

/// Parses `key=value` pairs, separated by commas and quoted as in CSV.
pub(super) fn settings(given: &[String]) -> Outcome<BTreeMap<String, String>> {
    let mut settings = BTreeMap::new();
    for text in given {
        let wrong = |reason: &str| {
            Failure::with_code(USAGE, flags::invalid_argument(text, "--docker", reason))
        };
        let pairs = match text.matches('=').count() {
            0 => return Err(wrong(&format!("{text} must be formatted as key=value"))),
            1 => vec![text.trim_matches('"').to_owned()],
            _ => fields(text).map_err(|reason| wrong(&reason))?,
        };
        for pair in pairs {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(wrong(&format!("{pair} must be formatted as key=value")));
            };
            settings.insert(key.to_owned(), value.to_owned());
        }
    }
    Ok(settings)
}

/// Returns the endpoint that settings describe, with the content of its PEM files.
///
/// # Errors
/// Returns an error with Docker's text if a setting is unknown or cannot be used.
pub(super) fn of(flags: &RootFlags, settings: &BTreeMap<String, String>) -> Outcome<Endpoint> {
    const KEYS: [&str; 6] = ["from", "host", "ca", "cert", "key", "skip-tls-verify"];
    let failed =
        |reason: &str| Failure::new(format!("unable to create docker endpoint config: {reason}"));
    if let Some(key) = settings.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(failed(&format!("unrecognized config key: {key}")));
    }
    let setting = |key: &str| settings.get(key).map_or("", String::as_str);
    let from = setting("from");
    if !from.is_empty() {
        let (context, mut tls) = load(flags, from).map_err(|failure| failed(&failure.text))?;
        tls.retain(|endpoint, _| endpoint == ENDPOINT);
        return Ok(Endpoint {
            host: context.host().to_owned(),
            skip_verify: context.skip_verify(),
            tls,
        });
    }
    let mut pem = BTreeMap::new();
    for (key, name) in [("ca", "ca.pem"), ("cert", "cert.pem"), ("key", "key.pem")] {
        let path = setting(key);
        if !path.is_empty() {
            let content = files::read(path.as_ref())
                .map_err(|error| failed(&format!("open {path}: {}", plain(&error))))?;
            pem.insert(name.to_owned(), content);
        }
    }
    let skip_verify = match setting("skip-tls-verify") {
        "" => false,
        text => whelk_text::parse_bool(text).ok_or_else(|| {
            failed(&format!(
                "skip-tls-verify: parsing {text:?}: invalid syntax"
            ))
        })?,
    };
    let text = setting("host");
    let unparsable = || {
        failed(&format!(
            "unable to apply docker endpoint options: unable to parse docker host `{text}`"
        ))
    };
    if !text.is_empty() {
        let (_, address) = text.split_once("://").ok_or_else(unparsable)?;
        if address.is_empty() && !text.starts_with("ssh://") {
            return Err(unparsable());
        }
        let host = Host::parse(text, false)
            .map_err(|reason| failed(&format!("invalid docker endpoint options: {reason}")))?;
        if matches!(host, Host::Tcp(_)) && (skip_verify || !pem.is_empty()) {
            let path = |key: &str| settings.get(key).map(PathBuf::from);
            let certificates = Files {
                authorities: path("ca"),
                certificate: path("cert"),
                key: path("key"),
                skip_verify,
            };
            certificates.load().map_err(|failure| {
                let reason = failure.text.replacen("Failed to initialize: ", "", 1);
                failed(&format!("invalid docker endpoint options: {reason}"))
            })?;
        }
    }
    let mut tls = TlsFiles::new();
    if !pem.is_empty() {
        tls.insert(ENDPOINT.to_owned(), pem);
    }
    Ok(Endpoint {
        host: text.to_owned(),
        skip_verify,
        tls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_parsed_as_by_pflag() {
        let parsed = |given: &[&str]| {
            let given: Vec<String> = given.iter().map(|text| (*text).to_owned()).collect();
            settings(&given)
                .map(|settings| format!("{settings:?}"))
                .map_err(|failure| failure.text)
        };
        for (given, expected) in [
            (vec![], "{}"),
            (vec!["host=a,b"], r#"{"host": "a,b"}"#),
            (vec!["host=a,ca=b"], r#"{"ca": "b", "host": "a"}"#),
            (vec!["host=a", "ca=b"], r#"{"ca": "b", "host": "a"}"#),
            (vec![r#"host=a,"ca=b,c""#], r#"{"ca": "b,c", "host": "a"}"#),
        ] {
            assert_eq!(parsed(&given), Ok(expected.to_owned()));
        }
        for given in ["x", "a=b,c=d,x"] {
            let text = parsed(&[given]).unwrap_err();
            assert!(text.ends_with("x must be formatted as key=value"), "{text}");
        }
    }
}
