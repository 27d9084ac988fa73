//! Lexer: splits a template into text and actions, and actions into tokens.

use crate::Error;

/// A part of a template.
#[derive(Debug)]
pub(crate) enum Part<'t> {
    Text(&'t str),
    /// The tokens between `{{` and `}}`, and the offset of `}}`.
    Action(Vec<Token<'t>>, usize),
}

#[derive(Clone, Debug)]
pub(crate) struct Token<'t> {
    pub kind: Kind,
    /// The source text.
    pub text: &'t str,
    /// Offset in the template in bytes.
    pub at: usize,
    /// Whether white space precedes it.
    pub spaced: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `.Name`
    Field,
    Dot,
    /// `$name`
    Variable,
    /// A function name, a keyword or a literal like `true`.
    Word,
    Number,
    /// `"…"`
    Quoted,
    /// `` `…` ``
    Raw,
    /// `'x'`
    Character,
    /// `|`, `(`, `)`, `,`, `=`, `:=`
    Sign,
}

/// Splits at `{{` and `}}`. `{{-` and `-}}` trim adjacent white space; comments are removed.
pub(crate) fn split(template: &str) -> Result<Vec<Part<'_>>, Error> {
    let mut parts = Vec::new();
    let (mut at, mut trim) = (0, false);
    let trimmed = |text: &'_ str, trim: bool| {
        if trim {
            text.len() - text.trim_start().len()
        } else {
            0
        }
    };
    while let Some(open) = template[at..].find("{{").map(|found| at + found) {
        let mut text = &template[at + trimmed(&template[at..open], trim)..open];
        let mut begin = open + 2;
        if is_trim_marker(&template[begin..]) {
            text = text.trim_end();
            begin += 2;
        }
        parts.push(Part::Text(text));
        if let Some(comment) = template[begin..].trim_start().strip_prefix("/*") {
            let Some(end) = comment.find("*/") else {
                return Err(Error::new(template, open, "unclosed comment"));
            };
            let behind = &comment[end + 2..];
            let rest = behind.trim_start();
            let (closed, trims) = match rest.strip_prefix("-}}") {
                Some(closed) if rest.len() < behind.len() => (Some(closed), true),
                _ => (rest.strip_prefix("}}"), false),
            };
            let Some(closed) = closed else {
                return Err(Error::new(
                    template,
                    open,
                    "comment ends before closing delimiter",
                ));
            };
            (at, trim) = (template.len() - closed.len(), trims);
            continue;
        }
        let (tokens, end, trims) = action(template, begin)?;
        let close = end - 2;
        parts.push(Part::Action(tokens, close));
        (at, trim) = (end, trims);
    }
    parts.push(Part::Text(&template[at + trimmed(&template[at..], trim)..]));
    Ok(parts)
}

fn is_trim_marker(text: &str) -> bool {
    text.starts_with('-') && text[1..].starts_with([' ', '\t', '\n', '\r'])
}

/// Returns the tokens from `begin` on, the offset after `}}`, and whether it trims the white space
/// that follows.
fn action(template: &str, begin: usize) -> Result<(Vec<Token<'_>>, usize, bool), Error> {
    let mut tokens: Vec<Token> = Vec::new();
    let (mut at, mut depth) = (begin, 0usize);
    let wrong = |at: usize, what: String| Error::new(template, at, what);
    loop {
        let rest = &template[at..];
        let spaces = rest.len() - rest.trim_start().len();
        let rest = rest.trim_start();
        at += spaces;
        if spaces > 0 && rest.starts_with("-}}") {
            return Ok((tokens, at + 3, true));
        }
        if rest.starts_with("}}") {
            return if depth == 0 {
                Ok((tokens, at + 2, false))
            } else {
                Err(wrong(at, "unclosed left paren".into()))
            };
        }
        let Some(first) = rest.chars().next() else {
            return Err(wrong(at, "unclosed action".into()));
        };
        let length_of = |part: &str| {
            part.find(|letter: char| !(letter.is_alphanumeric() || letter == '_'))
                .unwrap_or(part.len())
        };
        let (kind, length) = match first {
            '.' if rest[1..].starts_with(|next: char| next.is_ascii_digit()) => {
                (Kind::Number, number_length(rest))
            }
            '.' => match length_of(&rest[1..]) {
                0 => (Kind::Dot, 1),
                length => (Kind::Field, 1 + length),
            },
            '$' => (Kind::Variable, 1 + length_of(&rest[1..])),
            '"' => (
                Kind::Quoted,
                quoted_length(rest, '"')
                    .ok_or_else(|| wrong(at, "unterminated quoted string".into()))?,
            ),
            '\'' => (
                Kind::Character,
                quoted_length(rest, '\'')
                    .ok_or_else(|| wrong(at, "unterminated character constant".into()))?,
            ),
            '`' => match rest[1..].find('`') {
                Some(end) => (Kind::Raw, end + 2),
                None => return Err(wrong(at, "unterminated raw quoted string".into())),
            },
            ':' if rest.starts_with(":=") => (Kind::Sign, 2),
            '|' | ',' | '=' => (Kind::Sign, 1),
            '(' => {
                depth += 1;
                (Kind::Sign, 1)
            }
            ')' => match depth.checked_sub(1) {
                Some(less) => {
                    depth = less;
                    (Kind::Sign, 1)
                }
                None => return Err(wrong(at, "unexpected right paren".into())),
            },
            '+' | '-' | '0'..='9' => (Kind::Number, number_length(rest)),
            letter if letter.is_alphabetic() || letter == '_' => (Kind::Word, length_of(rest)),
            other => {
                return Err(wrong(
                    at,
                    format!(
                        "unrecognized character in action: U+{:04X} {other:?}",
                        u32::from(other)
                    ),
                ));
            }
        };
        tokens.push(Token {
            kind,
            text: &rest[..length],
            at,
            spaced: spaces > 0,
        });
        at += length;
    }
}

fn number_length(text: &str) -> usize {
    let sign = usize::from(text.starts_with(['+', '-']));
    let length = text[sign..]
        .find(|letter: char| !(letter.is_alphanumeric() || matches!(letter, '.' | '_')))
        .unwrap_or(text.len() - sign);
    (sign + length).max(1)
}

/// Returns the length of a quoted text including its quotes; a backslash escapes the next
/// character.
fn quoted_length(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (index, letter) in text.char_indices().skip(1) {
        match letter {
            '\n' => return None,
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            letter if letter == quote => return Some(index + 1),
            _ => {}
        }
    }
    None
}

/// Unquotes a string or character literal.
pub(crate) fn unquote(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut letters = text.get(1..text.len() - 1)?.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let escape = letters.next()?;
        let mut digits = |count: usize, radix: u32| {
            u32::from_str_radix(&letters.by_ref().take(count).collect::<String>(), radix).ok()
        };
        match escape {
            'a' => out.push(7),
            'b' => out.push(8),
            'f' => out.push(12),
            'n' => out.push(b'\n'),
            'r' => out.push(b'\r'),
            't' => out.push(b'\t'),
            'v' => out.push(11),
            'x' => out.push(u8::try_from(digits(2, 16)?).ok()?),
            unicode @ ('u' | 'U') => {
                let letter = char::from_u32(digits(if unicode == 'u' { 4 } else { 8 }, 16)?)?;
                out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
            }
            digit @ '0'..='7' => {
                let rest = digits(2, 8)?;
                out.push(u8::try_from(digit.to_digit(8)? * 64 + rest).ok()?);
            }
            other @ ('\\' | '"' | '\'') => out.push(other as u8),
            _ => return None,
        }
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}
