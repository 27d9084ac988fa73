//! Parser directives: comments of the form `# name=value` at the top of a file.

use crate::error::{Error, Lines, Result};

const KNOWN: [&str; 3] = ["syntax", "escape", "check"];

/// A parser directive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// `syntax`, `escape` or `check`.
    pub name: String,
    pub value: String,
    pub lines: Lines,
}

/// Reads directives line by line; after the first line that is none, all further ones are comments.
#[derive(Default)]
pub(crate) struct Directives {
    seen: Vec<String>,
    finished: bool,
}

impl Directives {
    /// Reads a line without white space in front, in which `comment` begins comments.
    pub fn read(&mut self, line: &str, comment: &str, number: u32) -> Result<Option<Directive>> {
        if self.finished {
            return Ok(None);
        }
        let found = line
            .strip_prefix(comment)
            .and_then(|line| line.split_once('='))
            .map(|(name, value)| (name.trim().to_lowercase(), value.trim()))
            .filter(|(name, value)| KNOWN.contains(&name.as_str()) && !value.is_empty());
        let Some((name, value)) = found else {
            self.finished = true;
            return Ok(None);
        };
        if self.seen.contains(&name) {
            return Err(
                Error::new(format!("only one {name} parser directive can be used"))
                    .at(Lines::new(number, number)),
            );
        }
        self.seen.push(name.clone());
        Ok(Some(Directive {
            name,
            value: value.to_owned(),
            lines: Lines::new(number, number),
        }))
    }

    pub fn finish(&mut self) {
        self.finished = true;
    }
}

/// Returns the frontend image that a file asks for: by the directive `syntax`, also behind a `#!` line, with
/// `//` as comments, or as a key of a JSON object, since frontends define what a comment is.
pub fn syntax(text: &str) -> Option<Directive> {
    find("syntax", text, "#")
        .or_else(|| find("syntax", text, "//"))
        .or_else(|| {
            let object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(text).ok()?;
            let value = object.get("syntax")?.as_str()?;
            Some(Directive {
                name: "syntax".into(),
                value: value.into(),
                lines: Lines::new(1, 1),
            })
        })
}

/// Returns a directive, also behind a `#!` line.
pub(crate) fn find(name: &str, text: &str, comment: &str) -> Option<Directive> {
    let mut directives = Directives::default();
    let lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines();
    for (line, number) in lines.zip(1..) {
        if number == 1 && line.starts_with("#!") {
            continue;
        }
        let directive = directives.read(line, comment, number).ok()??;
        if directive.name == name {
            return Some(directive);
        }
    }
    None
}

/// Returns the value of `check=…` in a comment without its `#`.
pub(crate) fn check_in_comment(comment: &str) -> Option<String> {
    let directive = Directives::default().read(comment, "", 0).ok()??;
    (directive.name == "check").then_some(directive.value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_frontend() {
        for (text, expected) in [
            (
                "# syntax=docker/dockerfile:1\nFROM x",
                Some("docker/dockerfile:1"),
            ),
            ("#syntax = a b\n", Some("a b")),
            ("# escape=`\n# SYNTAX=a", Some("a")),
            ("\n# syntax=a", None),
            ("# a comment\n# syntax=a", None),
            ("#!/usr/bin/env x\n# syntax=a", Some("a")),
            ("// syntax=a\n", Some("a")),
            ("{\"syntax\": \"a\"}", Some("a")),
            ("\u{feff}# syntax=a", Some("a")),
            ("", None),
        ] {
            let found = syntax(text).map(|directive| directive.value);
            assert_eq!(found.as_deref(), expected, "{text:?}");
        }
    }
}
