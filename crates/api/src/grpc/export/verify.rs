//! Warnings about results that are for other platforms than the client has asked for, in BuildKit's words.

use std::collections::BTreeSet;

use whelk_build::FrontendWarning;
use whelk_build::emulation::host;
use whelk_llb::Digest;
use whelk_llb::pb::Platform;

use super::super::builds::Build;
use super::Results;

/// Maximum number of platforms that are looked at: more cannot be built.
const MAX_WANTED: usize = 64;

/// Warns the client.
pub(super) fn warn(build: &Build, wanted: Option<&str>, results: &Results) {
    let found = results.list.iter().map(|one| &one.platform);
    let found: Vec<&Platform> = found.collect();
    for text in mismatches(wanted, &found, results.is_map) {
        let warning = FrontendWarning {
            short: text.into_bytes(),
            ..FrontendWarning::default()
        };
        let vertex = Digest::of(&warning.short);
        build.request.progress.warn(vertex, warning);
    }
}

fn mismatches(wanted: Option<&str>, found: &[&Platform], is_map: bool) -> Vec<String> {
    let host = host();
    let mut warnings = Vec::new();
    let mut asked: BTreeSet<String> = BTreeSet::new();
    let mut only = None;
    match wanted {
        None => {
            asked.insert(host.normalized().specifier());
        }
        Some(wanted) => {
            for text in wanted.split(',').take(MAX_WANTED) {
                match Platform::parse(text, &host) {
                    Ok(platform) => {
                        let platform = platform.normalized();
                        if !asked.insert(platform.specifier()) {
                            warnings.push(format!("Duplicate platform result requested {text:?}"));
                        }
                        only = Some((text, platform));
                    }
                    Err(error) => warnings.push(format!(
                        "Invalid platform result requested {text:?}: {error}"
                    )),
                }
            }
        }
    }
    if !warnings.is_empty() {
        return warnings;
    }
    let made: BTreeSet<String> = found
        .iter()
        .map(|platform| platform.normalized().specifier())
        .collect();
    if let ([one], 1) = (found, asked.len()) {
        let mut one = one.normalized();
        let specifier = one.specifier();
        // The version of the operating system is rarely asked for.
        let (text, has_version) = match &only {
            Some((text, platform)) => ((*text).to_owned(), !platform.os_version.is_empty()),
            None => (host.normalized().short(), false),
        };
        if !has_version {
            one.os_version.clear();
        }
        return match asked.contains(&specifier) || asked.contains(&one.specifier()) {
            true => Vec::new(),
            false => vec![format!(
                "Requested platform {text:?} does not match result platform {specifier:?}"
            )],
        };
    }
    let list = |platforms: &BTreeSet<String>| {
        let platforms: Vec<&str> = platforms.iter().map(String::as_str).collect();
        platforms.join(",")
    };
    if !is_map && asked.len() > 1 {
        let text = "Multiple platforms requested but result is not multi-platform";
        return vec![text.to_owned()];
    }
    match asked == made {
        true => Vec::new(),
        false => vec![format!(
            "Requested platforms {} do not match result platforms {}",
            list(&asked),
            list(&made)
        )],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(wanted: &str, found: &[&str], is_map: bool, expected: &str) {
        let host = host();
        let found = found.iter().map(|text| Platform::parse(text, &host));
        let found: Vec<Platform> = found.filter_map(Result::ok).collect();
        let found: Vec<&Platform> = found.iter().collect();
        let wanted = (!wanted.is_empty()).then_some(wanted);
        let warnings = mismatches(wanted, &found, is_map).join("; ");
        match expected {
            "" => assert_eq!(warnings, ""),
            expected => assert!(warnings.contains(expected), "{warnings}"),
        }
    }

    #[test]
    fn results_are_for_the_platforms_that_were_asked_for() {
        let (amd, arm) = ("linux/amd64", "linux/arm64");
        check(arm, &["linux/arm64/v8"], false, "");
        check("linux/arm64/v8", &[arm], false, "");
        check("linux/amd64,linux/arm64", &[amd, arm], true, "");
        check(
            "linux/amd64,linux/arm64",
            &[amd],
            false,
            "Multiple platforms requested but result is not multi-platform",
        );
        check(
            arm,
            &[amd],
            false,
            "Requested platform \"linux/arm64\" does not match result platform \"linux/amd64\"",
        );
        check(
            arm,
            &[amd, arm],
            true,
            "Requested platforms linux/arm64 do not match result platforms linux/amd64,linux/arm64",
        );
        check(
            "linux/arm64,linux/arm64/v8",
            &[arm],
            true,
            "Duplicate platform result requested \"linux/arm64/v8\"",
        );
        check("*", &[arm], false, "Invalid platform result requested");
        check("", &[host().short().as_str()], false, "");
    }
}
