//! The structure of a file, from HCL or from JSON.

mod from_json;
mod json;

use std::ops::Range;

use hcl_edit::Span;
use hcl_edit::expr::Expression;
use hcl_edit::structure::{Body as HclBody, Structure};

use crate::error::{Error, Result, syntax};

/// The maximum size of a file in bytes.
const MAX_FILE: usize = 4 << 20;

/// The maximum number of blocks and attributes of all files.
const MAX_ITEMS: usize = 50_000;

#[derive(Debug, Default)]
pub(crate) struct Body {
    pub attributes: Vec<Attribute>,
    pub blocks: Vec<Block>,
}

#[derive(Debug)]
pub(crate) struct Attribute {
    pub name: String,
    pub value: Expression,
}

#[derive(Debug)]
pub(crate) struct Block {
    pub kind: String,
    pub labels: Vec<(String, Option<Range<usize>>)>,
    pub span: Option<Range<usize>>,
    pub body: Body,
}

impl Body {
    /// Returns the last attribute of a name.
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().rev().find(|own| own.name == name)
    }
}

/// Reads a file: JSON if it begins as an object.
pub(crate) fn parse(files: &[(String, String)], number: usize) -> Result<Body> {
    let Some((name, content)) = files.get(number) else {
        return Ok(Body::default());
    };
    if content.len() > MAX_FILE {
        let text = format!("{name} has more than {MAX_FILE} bytes");
        return Err(Error::new(text));
    }
    let is_json = content.trim_start().starts_with('{') && !name.ends_with(".hcl");
    match is_json || name.ends_with(".json") {
        true => from_json::body(files, number, content),
        false => {
            let parsed = hcl_edit::parser::parse_body(content).map_err(|error| {
                let offset = error.location().offset();
                let (offset, detail) = explained(content, offset, error.message());
                syntax(files, number, offset, detail)
            })?;
            let mut count = 0;
            hcl(parsed, &mut count).map_err(|text| Error::new(format!("{name}: {text}")))
        }
    }
}

/// Returns the place of a mistake, and what it is: for those that are made most, more than what the parser has expected there.
fn explained(content: &str, offset: usize, expected: &str) -> (usize, String) {
    let before = content.get(..offset).unwrap_or(content);
    if expected.contains("heredoc end delimiter")
        && let Some((at, marker)) = last_heredoc(before)
    {
        let text = format!("unterminated template string: no line is its closing marker {marker}");
        return (at, text);
    }
    let mut rest = content.get(offset..).unwrap_or_default().chars().skip(1);
    let is_last = rest.all(char::is_whitespace);
    let line = before.rsplit('\n').next().unwrap_or_default();
    let detail = if expected.starts_with("invalid block body") && is_last {
        "unclosed configuration block: there is no closing brace for a block before the end of the file; braces elsewhere in the file may be the cause"
    } else if expected.starts_with("invalid block body") && line.contains('{') {
        "a single-line block can have one argument only: put each argument, and the block's closing brace, on a line of its own"
    } else if expected.contains("newline") && expected.contains("eof") {
        "an argument or block must end with a newline"
    } else {
        expected
    };
    (offset, detail.to_owned())
}

/// Returns the place and the marker of the last template string with a marker (`<<EOT`) that begins in a text.
fn last_heredoc(text: &str) -> Option<(usize, &str)> {
    let mut found = text.rmatch_indices("<<");
    found.find_map(|(at, _)| {
        let rest = text.get(at + 2..)?;
        let rest = rest.strip_prefix('-').unwrap_or(rest);
        let is_marker = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '-');
        // Not the line: one line may have many of them.
        let end = rest.find(|letter| !is_marker(letter))?;
        let (marker, rest) = rest.split_at(end);
        (end > 0 && rest.starts_with(['\n', '\r'])).then_some((at, marker))
    })
}

fn counted(count: &mut usize) -> std::result::Result<(), String> {
    *count += 1;
    match *count > MAX_ITEMS {
        true => Err(format!("more than {MAX_ITEMS} definitions")),
        false => Ok(()),
    }
}

fn hcl(parsed: HclBody, count: &mut usize) -> std::result::Result<Body, String> {
    let mut body = Body::default();
    for structure in parsed {
        counted(count)?;
        match structure {
            Structure::Attribute(attribute) => body.attributes.push(Attribute {
                name: attribute.key.as_str().to_owned(),
                value: attribute.value,
            }),
            Structure::Block(block) => {
                let labels = block.labels.iter();
                let labels = labels.map(|label| (label.as_str().to_owned(), label.span()));
                body.blocks.push(Block {
                    kind: block.ident.as_str().to_owned(),
                    labels: labels.collect(),
                    span: block.ident.span(),
                    body: hcl(block.body, count)?,
                });
            }
        }
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(content: &str, expected: &str) {
        let files = [("a.hcl".to_owned(), content.to_owned())];
        let text = parse(&files, 0).map_or_else(|error| error.text, |_| String::new());
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn usual_mistakes_are_explained() {
        refused(
            "target \"a\" {\n  context = \".\"\n",
            "a.hcl:2,16-16: Invalid syntax; unclosed configuration block: ",
        );
        refused(
            "target \"a\" { context = \".\" target = \"x\" }\n",
            "a.hcl:1,28-28: Invalid syntax; a single-line block can have one argument only",
        );
        refused(
            "target \"a\" {\n  context = \".\" target = \"x\"\n}\n",
            "a.hcl:2,17-17: Invalid syntax; an argument or block must end with a newline",
        );
        // Not where the text of the template ends.
        refused(
            "target \"a\" {\n  tags = [<<EOT\nx <<y z\n]\n}\n",
            "a.hcl:2,11-11: Invalid syntax; unterminated template string: no line is its closing marker EOT",
        );
        refused(
            "target \"a\" {\n  tags = ?\n}\n",
            "a.hcl:2,10-10: Invalid syntax; invalid expression; expected",
        );
        // What follows may be a letter of several bytes, which is not the end of the file.
        let expected = "invalid block body; expected `}`";
        let told = explained("a {\n→\n}\n", 4, expected);
        assert_eq!(told, (4, expected.to_owned()));
        // One line with many beginnings of template strings is looked through once.
        let many = "<<a".repeat(300_000);
        assert_eq!(last_heredoc(&many), None);
    }
}
