//! Mistakes in HCL that are made most: where they are, and what they are. The parser knows only what it has expected where it gave up.

use std::ops::Range;

use crate::error::{Problem, place_of};

/// How deep braces and texts are followed.
const MAX_DEPTH: usize = 1000;

/// Returns the problem of a file that the parser has given up at an offset.
pub(super) fn explained(
    files: &[(String, String)],
    file: usize,
    offset: usize,
    expected: &str,
) -> Problem {
    let (name, content) = match files.get(file) {
        Some((name, content)) => (name.as_str(), content.as_str()),
        None => ("", ""),
    };
    let offset = offset.min(content.len());
    let (span, summary, detail) = mistake(name, content, offset, expected);
    Problem::new(summary, detail).at(file, Some(span))
}

fn mistake(
    name: &str,
    content: &str,
    offset: usize,
    expected: &str,
) -> (Range<usize>, &'static str, String) {
    let before = content.get(..offset).unwrap_or(content);
    let invalid = |at: usize, text: &str| (at..at, "Invalid syntax", text.to_owned());
    if expected.contains("heredoc end delimiter")
        && let Some((at, marker)) = last_heredoc(before)
    {
        let text = format!("unterminated template string: no line is its closing marker {marker}");
        return invalid(at, &text);
    }
    if expected.contains("redefined attribute") {
        let key = identifier(content, offset);
        let span = offset..offset + key.len();
        let first = Scan::new(content, Some((offset, key))).run();
        let first = match first {
            End::Again(first) => place_of(name, content, &(first..first + key.len())),
            _ => "another place".to_owned(),
        };
        let text = format!(
            "The argument {key:?} was already set at {first}. Each argument may be set only once."
        );
        return (span, "Attribute redefined", text);
    }
    let mut rest = content.get(offset..).unwrap_or_default().chars().skip(1);
    let is_last = rest.all(char::is_whitespace);
    let is_vague = expected.starts_with("invalid block body") || expected == "unexpected token";
    // The parser may have given up before a text that is in the same line.
    let is_same_line = |text: usize| {
        let between = content.get(offset.min(text)..text);
        between.is_some_and(|between| !between.contains('\n'))
    };
    match Scan::new(content, None).run() {
        End::Newline { text, newline } if is_vague || is_same_line(text) => {
            let detail = "Quoted strings may not be split over multiple lines. To produce a multi-line string, either use the \\n escape to represent a newline character or use the \"heredoc\" multi-line template syntax.";
            let span = newline..newline + 1;
            return (span, "Invalid multi-line string", detail.to_owned());
        }
        End::Unclosed(brace) if is_last => {
            let detail = "There is no closing brace for this block before the end of the file. This may be caused by incorrect brace nesting elsewhere in this file.";
            let span = brace..brace + 1;
            return (span, "Unclosed configuration block", detail.to_owned());
        }
        _ => {}
    }
    let line = before.rsplit('\n').next().unwrap_or_default();
    let detail = if expected.starts_with("invalid block body") && line.contains('{') {
        "a single-line block can have one argument only: put each argument, and the block's closing brace, on a line of its own"
    } else if expected.contains("newline") && expected.contains("eof") {
        "an argument or block must end with a newline"
    } else {
        expected
    };
    invalid(offset, detail)
}

/// Returns the identifier at an offset.
fn identifier(text: &str, offset: usize) -> &str {
    let rest = text.get(offset..).unwrap_or_default();
    let is_part = |letter: char| letter.is_alphanumeric() || matches!(letter, '_' | '-');
    let end = rest.find(|letter| !is_part(letter));
    rest.get(..end.unwrap_or(rest.len())).unwrap_or_default()
}

/// Returns the place and the marker of the last template string with a marker (`<<EOT`) that begins in a text.
fn last_heredoc(text: &str) -> Option<(usize, &str)> {
    let mut found = text.rmatch_indices("<<");
    found.find_map(|(at, _)| Some((at, heredoc(text, at)?)))
}

/// Returns the marker of a template string that begins at an offset.
fn heredoc(text: &str, at: usize) -> Option<&str> {
    let rest = text.get(at..)?.strip_prefix("<<")?;
    let rest = rest.strip_prefix('-').unwrap_or(rest);
    // Not the line: one line may have many of them.
    let marker = identifier(rest, 0);
    let rest = rest.get(marker.len()..)?;
    (!marker.is_empty() && rest.starts_with(['\n', '\r'])).then_some(marker)
}

/// What is open where a file is being read.
enum Open {
    /// A block, where its brace is, and where the attribute that is looked for is set in it.
    Block(usize, Option<usize>),
    Object,
    Text(usize),
    /// `${…}` or `%{…}` of a text.
    Template,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    /// A quoted text goes on behind the end of its line.
    Newline { text: usize, newline: usize },
    /// The innermost block that is open at the end.
    Unclosed(usize),
    /// Where the attribute is set before.
    Again(usize),
    /// None of these.
    Other,
}

struct Scan<'a> {
    content: &'a str,
    at: usize,
    /// Where an attribute is set again, and its name.
    again: Option<(usize, &'a str)>,
    /// Where it is set outside of all blocks.
    first: Option<usize>,
    open: Vec<Open>,
    /// Whether there are only blanks before, in the line.
    is_start: bool,
    /// The last byte that is no blank.
    last: u8,
}

impl<'a> Scan<'a> {
    fn new(content: &'a str, again: Option<(usize, &'a str)>) -> Self {
        Self {
            content,
            at: 0,
            again,
            first: None,
            open: Vec::new(),
            is_start: true,
            last: b'\n',
        }
    }

    /// Reads on until something is wrong.
    fn run(mut self) -> End {
        while let Some(byte) = self.content.as_bytes().get(self.at).copied() {
            if self.again.is_some_and(|(again, _)| self.at >= again) {
                let first = match self.open.last() {
                    Some(Open::Block(_, first)) => *first,
                    _ => self.first,
                };
                return first.map_or(End::Other, End::Again);
            }
            if self.open.len() > MAX_DEPTH {
                return End::Other;
            }
            let step = match self.open.last() {
                Some(Open::Text(start)) => {
                    if byte == b'\n' {
                        return End::Newline {
                            text: *start,
                            newline: self.at,
                        };
                    }
                    Some(self.text(byte))
                }
                _ => self.code(byte),
            };
            let Some(step) = step else {
                return End::Other;
            };
            self.at += step;
        }
        match self.open.last() {
            Some(Open::Block(brace, _)) => End::Unclosed(*brace),
            _ => End::Other,
        }
    }

    fn begins(&self, with: &str) -> bool {
        let rest = self.content.as_bytes().get(self.at..);
        rest.is_some_and(|rest| rest.starts_with(with.as_bytes()))
    }

    /// Reads a byte of a quoted text. Returns how many have been read.
    fn text(&mut self, byte: u8) -> usize {
        match byte {
            b'\\' => return 2,
            b'"' => {
                self.open.pop();
                self.last = byte;
            }
            _ if self.begins("$${") || self.begins("%%{") => return 3,
            _ if self.begins("${") || self.begins("%{") => {
                self.open.push(Open::Template);
                return 2;
            }
            _ => {}
        }
        1
    }

    /// Reads a byte outside of texts. Returns how many have been read; `None` if what begins there has no end.
    fn code(&mut self, byte: u8) -> Option<usize> {
        let rest = self.content.get(self.at..).unwrap_or_default();
        if byte == b'#' || rest.starts_with("//") {
            return Some(rest.find('\n').unwrap_or(rest.len()));
        }
        if rest.starts_with("/*") {
            return Some(rest.find("*/")? + 2);
        }
        if let Some(marker) = heredoc(self.content, self.at) {
            let mut length = 0;
            for (number, line) in rest.split_inclusive('\n').enumerate() {
                if number > 0 && line.trim() == marker {
                    self.last = b'"';
                    // The end of the line is read as code.
                    return Some(length + line.trim_end().len());
                }
                length += line.len();
            }
            return None;
        }
        if std::mem::take(&mut self.is_start) && !byte.is_ascii_whitespace() {
            self.attribute();
        } else if byte == b'\n' || (byte.is_ascii_whitespace() && self.last == b'\n') {
            self.is_start = true;
        }
        match byte {
            b'"' => self.open.push(Open::Text(self.at)),
            b'{' => {
                let is_block = self.last == b'"' || is_name(self.last);
                self.open.push(match is_block {
                    true => Open::Block(self.at, None),
                    false => Open::Object,
                });
            }
            b'}' => drop(self.open.pop()),
            _ => {}
        }
        if byte == b'\n' || !byte.is_ascii_whitespace() {
            self.last = byte;
        }
        Some(1)
    }

    /// Notes the attribute that is looked for, if it is set at the begin of this line.
    fn attribute(&mut self) {
        let Some((_, name)) = self.again else {
            return;
        };
        let rest = self.content.get(self.at..).unwrap_or_default();
        let Some(rest) = rest.strip_prefix(name) else {
            return;
        };
        if !rest.trim_start_matches([' ', '\t']).starts_with('=') {
            return;
        }
        let first = match self.open.last_mut() {
            Some(Open::Block(_, first)) => first,
            None => &mut self.first,
            Some(_) => return,
        };
        first.get_or_insert(self.at);
    }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-".contains(&byte) || !byte.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::super::parse;
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
            "a.hcl:1,12-13: Unclosed configuration block; There is no closing brace for this block",
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
        let told = mistake("a.hcl", "a {\n→\n}\n", 4, expected);
        assert_eq!(told, (4..4, "Invalid syntax", expected.to_owned()));
        // One line with many beginnings of template strings is looked through once.
        let many = "<<a".repeat(300_000);
        assert_eq!(last_heredoc(&many), None);
    }

    #[test]
    fn texts_end_in_their_line() {
        refused(
            "target \"a\" {\n  args = { A = \"unterminated }\n  tags = [\"x\"]\n}\n",
            "a.hcl:2,31-3,1: Invalid multi-line string; Quoted strings may not be split",
        );
        refused(
            "A = \"${\"b\"} # \n",
            "a.hcl:1,15-2,1: Invalid multi-line string; ",
        );
        // None of these is a text, or has an end of line in it.
        for before in [
            "# \"\n",
            "// \"\n",
            "/* \"\n */\n",
            "A = <<-E\n  \"\n  E\n",
            "A = \"\\\"$${ %%{ ${\"}\"}\"\n",
        ] {
            refused(
                &format!("{before}target \"a\" {{\n  tags = ?\n}}\n"),
                "a.hcl:",
            );
            assert_eq!(Scan::new(before, None).run(), End::Other, "{before}");
        }
    }

    #[test]
    fn blocks_that_are_not_closed_are_found() {
        refused(
            "target \"a\" {\n  args = { A = \"{\" }\n\ntarget \"b\" {\n}\n",
            "a.hcl:1,12-13: Unclosed configuration block; ",
        );
        let deep = "{".repeat(1_000_000);
        assert_eq!(Scan::new(&deep, None).run(), End::Other);
    }

    #[test]
    fn attributes_are_set_once() {
        refused(
            "tags = 1\ntarget \"a\" {\n  tags = [\"x\"]\n  args = {\n    tags = 1\n  }\n  tags = []\n}\n",
            "a.hcl:7,3-7: Attribute redefined; The argument \"tags\" was already set at a.hcl:3,3-7. Each argument may be set only once.",
        );
        refused(
            "# x\nA = 1\nB = { A = 2 }\nA = 3\n",
            "a.hcl:4,1-2: Attribute redefined; The argument \"A\" was already set at a.hcl:2,1-2.",
        );
    }
}
