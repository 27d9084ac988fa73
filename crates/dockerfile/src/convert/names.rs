//! Names of steps, as clients show them.

use whelk_llb::pb::Platform;

use super::git;
use super::target::Target;
use crate::expand::{Environment, Lexer};
use crate::quote::quote;

/// Returns a list in the form that Go prints it in.
pub(super) fn list(texts: &[String]) -> String {
    format!("[{}]", texts.join(" "))
}

/// Returns a list of quoted texts in the form that Go prints it in.
pub(super) fn quoted_list(texts: &[String]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| quote(text)).collect();
    list(&quoted)
}

/// Returns a line with its first word in upper case, and variables replaced if that is possible.
pub(super) fn command(code: &str, lexer: &Lexer<'_>) -> String {
    let text = lexer.word(code).unwrap_or_else(|_| code.to_owned());
    match text.split_once(' ') {
        Some((word, rest)) => format!("{} {rest}", word.to_uppercase()),
        None => text.to_uppercase(),
    }
}

/// Returns a command without the users and passwords of the URLs among its words.
pub fn without_credentials(command: &str) -> String {
    let words = command.split_inclusive(char::is_whitespace);
    words.flat_map(urls).map(git::redacted).collect()
}

/// Splits a word before each URL in it. A list in JSON may be one word, which has lost its quotes.
fn urls(word: &str) -> Vec<&str> {
    let is_scheme = |sign: char| sign.is_ascii_alphanumeric() || "+-.".contains(sign);
    let (mut parts, mut begin) = (Vec::new(), 0);
    for (at, _) in word.match_indices("://") {
        let next = word[..at].trim_end_matches(is_scheme).len();
        parts.push(&word[begin..next]);
        begin = next;
    }
    parts.push(&word[begin..]);
    parts
}

/// Returns `[STAGE 2/3] COMMAND`, and counts the step. A stage without steps has no prefix.
pub(super) fn prefixed(
    target: &mut Target,
    command: &str,
    platform: Option<&Platform>,
    environment: &Environment,
    multi_platform: bool,
) -> String {
    if target.step_count == 0 {
        return command.to_owned();
    }
    let mut prefix = String::from("[");
    if let Some(platform) = platform.filter(|_| multi_platform) {
        prefix += &platform.specifier();
        prefix += &cross(platform, environment);
        prefix.push(' ');
    }
    if !target.name.is_empty() {
        prefix = prefix + &target.name + " ";
    }
    target.step_number += 1;
    let count = target.step_count.to_string();
    let trigger = if target.in_trigger { "ONBUILD " } else { "" };
    format!(
        "{prefix}{:width$}/{count}] {trigger}{command}",
        target.step_number,
        width = count.len()
    )
}

/// Returns `->ARCHITECTURE` if a step on `platform` builds for another one.
fn cross(platform: &Platform, environment: &Environment) -> String {
    let get = |name| environment.get(name);
    let mut target =
        match get("TARGETPLATFORM").and_then(|text| Platform::parse(text, platform).ok()) {
            Some(target) => target,
            None => {
                let names = ["TARGETOS", "TARGETARCH", "TARGETVARIANT"];
                if names.into_iter().all(|name| get(name).is_none()) {
                    return String::new();
                }
                let [os, architecture, variant] = names.map(|name| get(name).unwrap_or_default());
                Platform::new(os, architecture, variant)
            }
        };
    if target.os.is_empty() {
        target.os.clone_from(&platform.os);
    }
    if target.architecture.is_empty() {
        target.architecture.clone_from(&platform.architecture);
    }
    let target = target.normalized();
    if target.os != platform.os {
        format!("->{}", target.specifier())
    } else if target.architecture != platform.architecture {
        let variant = Some(&target.variant).filter(|variant| !variant.is_empty());
        let variant = variant.map_or_else(String::new, |variant| format!("/{variant}"));
        format!("->{}{variant}", target.architecture)
    } else {
        String::new()
    }
}

/// Returns the first line of a heredoc, with `...` if there are more.
pub(super) fn summary(document: &str) -> String {
    let document = document.trim().replace("\r\n", "\n");
    match document.split_once('\n') {
        Some((first, _)) => format!("{first}..."),
        None => document,
    }
}
