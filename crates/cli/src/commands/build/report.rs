//! What is printed or written instead of a build's progress: the results of `--call`, and `--metadata-file`.

use std::collections::BTreeMap;

use serde::Deserialize;
use whelk_buildkit::pb::control::{SolveRequest, SolveResponse};

use super::options::{Call, CallFormat};
use crate::output::{print, print_line};
use crate::terminal::{harmless, harmless_json};
use crate::{Failure, Outcome};

/// Asks about the Dockerfile instead of building it.
pub(super) fn ask(request: &mut SolveRequest, call: Call) {
    let name = match call {
        Call::Check => "frontend.lint",
        Call::Outline => "frontend.outline",
        Call::Targets => "frontend.targets",
    };
    let attributes = &mut request.frontend_attrs;
    attributes.insert("requestid".into(), name.into());
    let caps = "moby.buildkit.frontend.subrequests";
    attributes.insert("frontend.caps".into(), caps.into());
}

/// The result of a check, as far as it is looked into.
#[derive(Deserialize)]
struct Check {
    #[serde(default)]
    warnings: Option<Vec<serde::de::IgnoredAny>>,
    #[serde(default, rename = "buildError")]
    error: Option<CheckError>,
}

#[derive(Deserialize)]
struct CheckError {
    #[serde(default)]
    message: String,
}

/// Prints the answer.
pub(crate) fn print_answer(response: &SolveResponse, call: Call, format: CallFormat) -> Outcome {
    let get = |name: &str| {
        response
            .exporter_response
            .get(name)
            .map_or("", String::as_str)
    };
    if format == CallFormat::Json {
        print_line!("{}", harmless_json(get("result.json").trim_end()))?;
    } else if call == Call::Check {
        let check: Check = serde_json::from_str(get("result.json")).map_err(|error| {
            Failure::new(format!("the engine has not answered the check: {error}"))
        })?;
        match check.warnings.map_or(0, |warnings| warnings.len()) {
            0 if check.error.is_some() => {}
            0 => print_line!("Check complete, no warnings found.")?,
            1 => print_line!("Check complete, 1 warning has been found!")?,
            count => print_line!("Check complete, {count} warnings have been found!")?,
        }
        print(&harmless(get("result.txt")))?;
        if let Some(error) = check.error {
            return Err(Failure {
                hint: false,
                ..Failure::new(format!("ERROR: {}", harmless(&error.message)))
            });
        }
    } else {
        print(&harmless(get("result.txt")))?;
    }
    Ok(get("result.statuscode").parse().unwrap_or(0))
}

/// Returns what `--metadata-file` says of a build. Values that are JSON in base64 are decoded.
pub(crate) fn metadata(
    builder: &str,
    name: &str,
    response: &SolveResponse,
) -> BTreeMap<String, serde_json::Value> {
    use base64::Engine as _;
    let decoded = |value: &String| {
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(value)
            .ok()?;
        let object: serde_json::Map<_, _> = serde_json::from_slice(&bytes).ok()?;
        Some(serde_json::Value::Object(object))
    };
    let values = response.exporter_response.iter().map(|(key, value)| {
        let decoded = decoded(value).unwrap_or_else(|| value.clone().into());
        (key.clone(), decoded)
    });
    let mut values: BTreeMap<String, serde_json::Value> = values.collect();
    let name = format!("{builder}/{builder}/{name}");
    values.insert("buildx.build.ref".into(), name.into());
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_is_no_good_news() {
        for json in [None, Some(""), Some("null"), Some("{")] {
            let mut response = SolveResponse::default();
            let answers = &mut response.exporter_response;
            answers.extend(json.map(|json| ("result.json".to_owned(), json.to_owned())));
            let failed = print_answer(&response, Call::Check, CallFormat::Text).unwrap_err();
            assert!(
                failed
                    .text
                    .starts_with("the engine has not answered the check")
            );
        }
    }
}
