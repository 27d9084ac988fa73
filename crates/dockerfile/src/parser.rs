//! Splits text into logical lines: directives, comments, continuations, and the flags in front of
//! an instruction's arguments.

use crate::{Error, Result};

/// Limit of a physical line in bytes, the same as BuildKit's.
const MAX_LINE: usize = 65_535;

/// The lines of a Dockerfile and its escape character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    pub lines: Vec<Line>,
    pub escape: char,
}

/// An instruction as written, with its continuation lines joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The instruction's name as written.
    pub instruction: String,
    /// `--name=value`, without quotes.
    pub flags: Vec<String>,
    /// The text after the flags, without surrounding white space.
    pub rest: String,
    /// The whole line.
    pub original: String,
}

/// Splits a Dockerfile into lines. Heredocs are not supported: no instruction of
/// [`crate::Instruction`] takes one.
///
/// # Errors
/// Returns an error for an invalid directive, a line that is too long, or a file without
/// instructions.
pub fn parse(text: &str) -> Result<Dockerfile> {
    let mut directives = Directives {
        escape: '\\',
        seen: Vec::new(),
        finished: false,
    };
    let mut lines = Vec::new();
    let mut rest = text
        .strip_prefix('\u{feff}')
        .unwrap_or(text)
        .split_inclusive('\n');
    while let Some(physical) = rest.next() {
        let first = checked(physical)?.trim_start();
        directives.read(first)?;
        if first.starts_with('#') {
            continue;
        }
        let (mut logical, mut continued) = directives.without_continuation(first);
        while continued && let Some(physical) = rest.next() {
            let next = checked(physical)?;
            directives.finished = true;
            if next.trim_start().starts_with('#') || next.trim().is_empty() {
                continue;
            }
            let (part, more) = directives.without_continuation(next);
            logical += &part;
            continued = more;
        }
        if !logical.trim().is_empty() {
            lines.push(split(logical, directives.escape));
        }
    }
    if lines.is_empty() {
        Err(Error::new("file with no instructions"))
    } else {
        Ok(Dockerfile {
            lines,
            escape: directives.escape,
        })
    }
}

/// Returns a physical line without its line break.
fn checked(line: &str) -> Result<&str> {
    if line.len() > MAX_LINE {
        return Err(Error::new(format!(
            "dockerfile line greater than max allowed size of {MAX_LINE}"
        )));
    }
    Ok(line.trim_end_matches(['\r', '\n']))
}

/// Parser directives: comments of the form `# name=value` at the top of the file.
struct Directives {
    escape: char,
    seen: Vec<String>,
    /// Set after the first line that is not a directive: from then on, directives are ordinary
    /// comments.
    finished: bool,
}

impl Directives {
    fn read(&mut self, line: &str) -> Result<()> {
        if self.finished {
            return Ok(());
        }
        let known = line
            .strip_prefix('#')
            .and_then(|line| line.split_once('='))
            .map(|(name, value)| (name.trim().to_lowercase(), value.trim()));
        match known {
            Some((name, value))
                if matches!(name.as_str(), "syntax" | "escape" | "check") && !value.is_empty() =>
            {
                if self.seen.contains(&name) {
                    return Err(Error::new(format!(
                        "only one {name} parser directive can be used"
                    )));
                }
                if name == "escape" {
                    self.escape = match value {
                        "\\" => '\\',
                        "`" => '`',
                        other => {
                            return Err(Error::new(format!(
                                "invalid escape token '{other}' does not match ` or \\"
                            )));
                        }
                    };
                }
                self.seen.push(name);
            }
            _ => self.finished = true,
        }
        Ok(())
    }

    /// Returns a line without its trailing continuation character, and whether it had one. An
    /// escaped escape character does not continue the line.
    fn without_continuation(&self, line: &str) -> (String, bool) {
        match line.trim_end_matches([' ', '\t']).strip_suffix(self.escape) {
            Some(before) if !before.ends_with(self.escape) => (before.to_owned(), true),
            _ => (line.to_owned(), false),
        }
    }
}

/// White space between words, as BuildKit defines it.
fn is_blank(letter: char) -> bool {
    matches!(letter, ' ' | '\t' | '\x0b' | '\x0c' | '\r')
}

fn split(original: String, escape: char) -> Line {
    let trimmed = original.trim();
    let (instruction, arguments) = trimmed.split_once(is_blank).unwrap_or((trimmed, ""));
    let (flags, rest) = flags(arguments, escape);
    Line {
        instruction: instruction.to_owned(),
        flags,
        rest: rest.trim().to_owned(),
        original,
    }
}

/// Parses the leading words that begin with `--`; a `--` alone ends them. Returns them and the
/// rest.
fn flags(line: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = line.trim_start();
    while rest.starts_with("--") {
        let (mut word, mut quote, mut quoted) = (String::new(), None, false);
        let mut letters = rest.char_indices();
        let mut end = rest.len();
        while let Some((at, letter)) = letters.next() {
            match (letter, quote) {
                (letter, None) if letter.is_whitespace() => {
                    end = at;
                    break;
                }
                (letter, Some(open)) if letter == open => quote = None,
                ('\'' | '"', None) => (quote, quoted) = (Some(letter), true),
                (letter, _) if letter == escape => {
                    word.extend(letters.next().map(|(_, escaped)| escaped))
                }
                (letter, _) => word.push(letter),
            }
        }
        rest = rest[end..].trim_start();
        if word == "--" && !quoted {
            break;
        }
        flags.push(word);
    }
    (flags, rest)
}

/// Splits at white space outside quotes. Quotes and escapes are kept; expansion removes them.
pub(crate) fn words(text: &str, escape: char) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if quote.is_none() && letter.is_whitespace() {
            words.extend(word.take());
            continue;
        }
        let word = word.get_or_insert_default();
        match quote {
            None if matches!(letter, '\'' | '"') => quote = Some(letter),
            Some(open) if letter == open => quote = None,
            _ => {}
        }
        // There are no escapes in single quotes, and a trailing escape character is dropped.
        if letter == escape && quote != Some('\'') {
            let Some(escaped) = letters.next() else { break };
            word.push(letter);
            word.push(escaped);
        } else {
            word.push(letter);
        }
    }
    words.extend(word.filter(|word| !word.is_empty()));
    words
}

/// Splits at runs of white space.
pub(crate) fn fields(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_blank).filter(|field| !field.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<(String, Vec<String>, String)> {
        let dockerfile = parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
        dockerfile
            .lines
            .into_iter()
            .map(|line| (line.instruction, line.flags, line.rest))
            .collect()
    }

    fn check(text: &str, expected: &[(&str, &[&str], &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, flags, rest)| {
                (
                    (*name).to_owned(),
                    flags
                        .iter()
                        .map(|flag| (*flag).to_owned())
                        .collect::<Vec<_>>(),
                    (*rest).to_owned(),
                )
            })
            .collect();
        assert_eq!(lines(text), expected, "{text:?}");
    }

    #[test]
    fn joins_lines_and_skips_comments() {
        check(
            "ENV A=1 \\\n# inside\n\n  B=2\n#end\nUSER x",
            &[("ENV", &[], "A=1   B=2"), ("USER", &[], "x")],
        );
        check("# escape=`\nENV A=1 `\n B=2", &[("ENV", &[], "A=1  B=2")]);
        check("# a comment\n# escape=`\nENV A=`", &[("ENV", &[], "A=`")]);
        check(
            "ENV A=1 \\\\\nUSER x",
            &[("ENV", &[], "A=1 \\\\"), ("USER", &[], "x")],
        );
        check("\u{feff}USER x\r\n", &[("USER", &[], "x")]);
        check("USER x \\", &[("USER", &[], "x")]);
    }

    #[test]
    fn parses_leading_flags() {
        check(
            "HEALTHCHECK --a=b --c=\"d e\" CMD --x",
            &[("HEALTHCHECK", &["--a=b", "--c=d e"], "CMD --x")],
        );
        check("RUN -- --x", &[("RUN", &[], "--x")]);
        check("RUN --a", &[("RUN", &["--a"], "")]);
    }

    #[test]
    fn rejects_invalid_files() {
        for (text, expected) in [
            ("", "file with no instructions"),
            ("# nothing", "file with no instructions"),
            (
                "# escape=x\nUSER x",
                "invalid escape token 'x' does not match ` or \\",
            ),
            (
                "# escape=`\n# escape=`\nUSER x",
                "only one escape parser directive can be used",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), expected);
        }
        let long = parse(&format!("USER {}", "x".repeat(70_000)));
        assert_eq!(
            long.unwrap_err().to_string(),
            "dockerfile line greater than max allowed size of 65535"
        );
    }
}
