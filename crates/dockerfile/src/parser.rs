//! Splits text into logical lines: directives, comments, continuations, heredocs, and the flags in front of
//! an instruction's arguments.

use std::fmt;

use crate::arguments::{self, is_blank};
use crate::directive::{Directive, Directives};
use crate::error::{Error, Lines, Result};
use crate::heredoc::{self, Heredoc};
use crate::quote::quote;

/// Limit of a physical line in bytes, the same as BuildKit's.
const MAX_LINE: usize = 65_535;

/// The lines of a Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    pub lines: Vec<Line>,
    pub escape: char,
    pub directives: Vec<Directive>,
    /// The numbers of the last lines of instructions that have empty lines among their continuations.
    pub empty_continuations: Vec<u32>,
}

/// An instruction as written, with its continuation lines joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// The instruction's name as written.
    pub instruction: String,
    /// `--name=value`, without quotes.
    pub flags: Vec<String>,
    /// The arguments, split by the rules of the instruction. Those of ENV and LABEL are groups of a name, a
    /// value, and what separates them: `=`, or nothing.
    pub arguments: Vec<String>,
    /// Whether the arguments are written as a JSON list.
    pub json: bool,
    /// The instruction that an ONBUILD contains.
    pub trigger: Option<Box<Line>>,
    pub heredocs: Vec<Heredoc>,
    /// The whole line, without the content of heredocs.
    pub original: String,
    /// Where it is in the file.
    pub lines: Lines,
    /// The comments above it, without `#`.
    pub comments: Vec<String>,
}

/// Splits a Dockerfile into lines.
///
/// # Errors
/// Returns an error for an invalid directive, a line that is too long, arguments that cannot be split, an
/// unterminated heredoc, a NUL byte, or a file without instructions.
pub fn parse(text: &str) -> Result<Dockerfile> {
    let mut parser = Parser {
        rest: text.strip_prefix('\u{feff}').unwrap_or(text),
        number: 0,
        directives: Directives::default(),
        comments: Vec::new(),
        found: Dockerfile {
            lines: Vec::new(),
            escape: '\\',
            directives: Vec::new(),
            empty_continuations: Vec::new(),
        },
    };
    while let Some(physical) = parser.next()? {
        parser.line(physical)?;
    }
    if parser.found.lines.is_empty() {
        let error = Error::new("file with no instructions");
        return Err(error.at(Lines::new(parser.number.max(1), 0)));
    }
    Ok(parser.found)
}

/// Converts the bytes of a file to text.
///
/// # Errors
/// Returns an error that names the line which is not UTF-8.
pub fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let breaks = before.iter().filter(|byte| **byte == b'\n').count();
        let number = u32::try_from(breaks + 1).unwrap_or(u32::MAX);
        Error::new("the Dockerfile is not valid UTF-8").at(Lines::new(number, number))
    })
}

/// Parses the line of a single instruction, such as a trigger of a base image.
///
/// # Errors
/// Returns an error if there is not exactly one instruction, or that of [`parse`].
pub(crate) fn parse_trigger(text: &str) -> Result<Line> {
    match <[Line; 1]>::try_from(parse(text)?.lines) {
        Ok([line]) => Ok(line),
        Err(_) => Err(Error::new("onbuild trigger should be a single expression")),
    }
}

struct Parser<'a> {
    rest: &'a str,
    /// The number of the line that was read last.
    number: u32,
    directives: Directives,
    comments: Vec<String>,
    found: Dockerfile,
}

impl<'a> Parser<'a> {
    /// Returns the next physical line, with its line break.
    fn next(&mut self) -> Result<Option<&'a str>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let end = self.rest.find('\n').map_or(self.rest.len(), |at| at + 1);
        let (line, rest) = self.rest.split_at(end);
        self.rest = rest;
        self.number = self.number.saturating_add(1);
        let here = Lines::new(self.number, self.number);
        if line.strip_suffix('\n').unwrap_or(line).len() > MAX_LINE {
            return Err(Error::new(format!(
                "dockerfile line greater than max allowed size of {MAX_LINE}"
            ))
            .at(here));
        }
        if line.contains('\0') {
            return Err(Error::new("the Dockerfile contains a NUL byte").at(here));
        }
        Ok(Some(line))
    }

    /// Parses the logical line that begins with `physical`.
    fn line(&mut self, physical: &str) -> Result<()> {
        let first = without_break(physical).trim_start();
        let directive = self.directives.read(first, "#", self.number)?;
        if let Some(directive) = directive {
            if directive.name == "escape" {
                self.found.escape = escape(&directive)?;
            }
            self.found.directives.push(directive);
            return Ok(());
        }
        if let Some(comment) = first.strip_prefix('#') {
            match comment.trim() {
                "" => self.comments.clear(),
                comment => self.comments.push(comment.to_owned()),
            }
            return Ok(());
        }
        if first.is_empty() {
            return Ok(());
        }
        let begin = self.number;
        let original = self.join(first)?;
        let here = |parser: &Self| Lines::new(begin, parser.number);
        let mut line =
            Line::of(original, self.found.escape).map_err(|error| error.at(here(self)))?;
        if line.may_have_heredocs() && line.original.contains("<<") {
            let docs = heredoc::of_line(&line.original).map_err(|error| error.at(here(self)))?;
            for mut doc in docs {
                doc.content = self.content(&doc).map_err(|error| error.at(here(self)))?;
                line.heredocs.push(doc);
            }
        }
        line.lines = here(self);
        line.comments = std::mem::take(&mut self.comments);
        self.found.lines.push(line);
        Ok(())
    }

    /// Reads the continuations of a line, and joins them.
    fn join(&mut self, first: &str) -> Result<String> {
        let (part, mut continued) = self.without_continuation(first);
        let mut logical = part.to_owned();
        let mut empty = false;
        self.directives.finish();
        while continued && let Some(physical) = self.next()? {
            let next = without_break(physical);
            if next.trim_start().starts_with('#') {
                continue;
            }
            if next.trim().is_empty() {
                empty = true;
                continue;
            }
            let (part, more) = self.without_continuation(next);
            logical += part;
            continued = more;
        }
        if empty {
            self.found.empty_continuations.push(self.number);
        }
        Ok(logical)
    }

    /// Returns a line without its trailing continuation character, and whether it had one. An
    /// escaped escape character does not continue the line.
    fn without_continuation<'b>(&self, line: &'b str) -> (&'b str, bool) {
        let escape = self.found.escape;
        match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
            Some(before) if !before.ends_with(escape) => (before, true),
            _ => (line, false),
        }
    }

    /// Reads a heredoc up to the line that ends it.
    fn content(&mut self, doc: &Heredoc) -> Result<String> {
        let mut content = String::new();
        while let Some(physical) = self.next()? {
            let line = without_break(physical);
            let line = if doc.strip_tabs {
                line.trim_start_matches('\t')
            } else {
                line
            };
            if line == doc.name {
                return Ok(content);
            }
            content += physical;
        }
        Err(Error::new("unterminated heredoc"))
    }
}

fn without_break(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

fn escape(directive: &Directive) -> Result<char> {
    match directive.value.as_str() {
        "\\" => Ok('\\'),
        "`" => Ok('`'),
        other => Err(Error::new(format!(
            "invalid escape token '{other}' does not match ` or \\"
        ))
        .at(directive.lines)),
    }
}

impl Line {
    /// Splits a logical line.
    fn of(original: String, escape: char) -> Result<Self> {
        let trimmed = original.trim();
        let (instruction, rest) = trimmed.split_once(is_blank).unwrap_or((trimmed, ""));
        let (flags, rest) = flags(rest.trim_start_matches(is_blank), escape);
        let rest = rest.trim();
        let mut line = Self {
            instruction: instruction.to_owned(),
            flags,
            ..Self::default()
        };
        if line.is("onbuild") {
            let is_chain = rest
                .split(is_blank)
                .next()
                .is_some_and(|word| word.eq_ignore_ascii_case("onbuild"));
            // A chain is an error later on. It is not followed, because it could be a long one.
            if is_chain {
                line.arguments = vec![rest.to_owned()];
            } else if !rest.is_empty() {
                let trigger = Self::of(rest.to_owned(), escape)?;
                line.arguments = std::iter::once(trigger.instruction.clone())
                    .chain(trigger.arguments.iter().cloned())
                    .collect();
                line.trigger = Some(Box::new(trigger));
            }
        } else {
            (line.arguments, line.json) = arguments::split(instruction, rest, escape)?;
        }
        line.original = original;
        Ok(line)
    }

    /// Returns whether this is the instruction `name`, which is in lower case.
    pub fn is(&self, name: &str) -> bool {
        self.instruction.eq_ignore_ascii_case(name)
    }

    fn may_have_heredocs(&self) -> bool {
        let line = self.trigger.as_deref().unwrap_or(self);
        ["add", "copy", "run"].into_iter().any(|name| line.is(name)) && !line.json
    }
}

/// Writes the instruction as an S-expression without the outer parentheses, in the form of BuildKit's tests.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.instruction.to_lowercase())?;
        if !self.flags.is_empty() {
            let flags: Vec<String> = self.flags.iter().map(|flag| quote(flag)).collect();
            write!(f, " [{}]", flags.join(" "))?;
        }
        match &self.trigger {
            Some(trigger) => write!(f, " ({trigger})"),
            None => self
                .arguments
                .iter()
                .try_for_each(|argument| write!(f, " {}", quote(argument))),
        }
    }
}

/// Parses the leading words that begin with `--`; a `--` alone ends them. Returns them and the
/// rest.
fn flags(line: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = line.trim_start();
    while rest.starts_with("--") {
        let (mut word, mut quote) = (String::new(), None);
        let mut letters = rest.char_indices();
        let mut end = rest.len();
        while let Some((at, letter)) = letters.next() {
            match (letter, quote) {
                (letter, None) if letter.is_whitespace() => {
                    end = at;
                    break;
                }
                (letter, Some(open)) if letter == open => quote = None,
                ('\'' | '"', None) => quote = Some(letter),
                (letter, _) if letter == escape => {
                    word.extend(letters.next().map(|(_, escaped)| escaped))
                }
                (letter, _) => word.push(letter),
            }
        }
        rest = rest[end..].trim_start();
        if word == "--" {
            break;
        }
        flags.push(word);
    }
    (flags, rest)
}

#[cfg(test)]
mod tests;
