//! The platforms that `--platform` names.

use serde::Serialize;

use crate::{Failure, Outcome};

/// A platform in the JSON format of the OCI image specification, as in query parameters.
#[derive(Serialize)]
struct Platform<'t> {
    architecture: &'t str,
    os: &'t str,
    #[serde(skip_serializing_if = "str::is_empty")]
    variant: &'t str,
}

/// Encodes a platform (`os[/arch[/variant]]` or an architecture alone) as the API's JSON; empty for
/// an empty text.
///
/// # Errors
/// Returns an error if a part is empty or there are too many parts.
pub(crate) fn platform_json(text: &str) -> Outcome<String> {
    const SYSTEMS: [&str; 5] = ["darwin", "freebsd", "linux", "macos", "windows"];
    if text.is_empty() {
        return Ok(String::new());
    }
    let host = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let parts: Vec<&str> = text.split('/').collect();
    let (os, architecture, variant) = match parts.as_slice() {
        _ if parts.contains(&"") => {
            return Err(Failure::new(format!(
                "{text:?} is an invalid platform specifier"
            )));
        }
        [system] if SYSTEMS.contains(&system.to_lowercase().as_str()) => (*system, host, ""),
        [architecture] => ("linux", *architecture, ""),
        [os, architecture] => (*os, *architecture, ""),
        [os, architecture, variant] => (*os, *architecture, *variant),
        _ => {
            return Err(Failure::new(format!(
                "{text:?}: cannot parse platform specifier: invalid argument"
            )));
        }
    };
    let platform = Platform {
        architecture,
        os,
        variant,
    };
    serde_json::to_string(&platform).map_err(|error| Failure::new(error.to_string()))
}

/// Encodes several platforms, each as [`platform_json`]. Empty texts are left out.
///
/// # Errors
/// Converts the platforms of a flag that can be repeated into JSON, without empty ones.
pub(crate) fn platforms_json(texts: &[String]) -> Outcome<Vec<String>> {
    let given = texts.iter().filter(|text| !text.is_empty());
    given.map(|text| platform_json(text)).collect()
}
