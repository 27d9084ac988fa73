//! Shell patterns with the rules of Go's `path.Match`.

use crate::{Error, Result};

/// Matches like Go's `path.Match`: `*` and `?` do not match a slash, `[a-z]` and `[^a-z]` match one
/// character, and `\` escapes the next character. Takes time proportional to the product of both
/// lengths, whatever the pattern.
///
/// # Errors
/// Returns an error if the pattern is malformed.
pub fn matches(pattern: &str, text: &str) -> Result<bool> {
    let tokens = tokens(pattern)?;
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut read) = (0, 0);
    // The index of the last star's token, and the end of the text it has matched. On a mismatch the
    // star matches one character more.
    let mut star: Option<(usize, usize)> = None;
    loop {
        match (tokens.get(at), text.get(read)) {
            (None, None) => return Ok(true),
            (Some(Token::Star), _) => {
                star = Some((at, read));
                at += 1;
                continue;
            }
            (Some(token), Some(letter)) if token.matches(*letter) => {}
            _ => {
                let Some((after, taken)) =
                    star.filter(|(_, taken)| text.get(*taken).is_some_and(|letter| *letter != '/'))
                else {
                    return Ok(false);
                };
                star = Some((after, taken + 1));
                (at, read) = (after + 1, taken + 1);
                continue;
            }
        }
        at += 1;
        read += 1;
    }
}

enum Token {
    Star,
    Any,
    Letter(char),
    /// The ranges, and whether the class is negated.
    Class(Vec<(char, char)>, bool),
}

impl Token {
    fn matches(&self, letter: char) -> bool {
        match self {
            Self::Star => false,
            Self::Any => letter != '/',
            Self::Letter(wanted) => *wanted == letter,
            Self::Class(ranges, negated) => {
                ranges
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&letter))
                    != *negated
            }
        }
    }
}

/// Parses a pattern.
fn tokens(pattern: &str) -> Result<Vec<Token>> {
    let bad = || Error::new("syntax error in pattern");
    let mut letters = pattern.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(letter) = letters.next() {
        tokens.push(match letter {
            '*' => Token::Star,
            '?' => Token::Any,
            '\\' => Token::Letter(letters.next().ok_or_else(bad)?),
            '[' => {
                let negated = letters.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                while ranges.is_empty() || letters.next_if_eq(&']').is_none() {
                    let mut bound = || match letters.next() {
                        Some('\\') => letters.next().ok_or_else(bad),
                        None | Some('-' | ']') => Err(bad()),
                        Some(letter) => Ok(letter),
                    };
                    let first = bound()?;
                    let last = if letters.next_if_eq(&'-').is_some() {
                        match letters.next() {
                            Some('\\') => letters.next().ok_or_else(bad)?,
                            None | Some('-' | ']') => return Err(bad()),
                            Some(letter) => letter,
                        }
                    } else {
                        first
                    };
                    ranges.push((first, last));
                }
                Token::Class(ranges, negated)
            }
            letter => Token::Letter(letter),
        });
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_like_go() {
        for (pattern, text, expected) in [
            ("*", "abc", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "ab/cde", false),
            ("a?", "ab", true),
            ("a?", "a", false),
            ("a?", "a/", false),
            ("a[0-9b]", "a7", true),
            ("a[^0-9]", "a7", false),
            ("a[\\]]", "a]", true),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
        ] {
            assert_eq!(matches(pattern, text), Ok(expected), "{pattern} {text}");
        }
        for bad in ["[", "[]", "[a", "[-]", "a\\", "[a-]"] {
            assert_eq!(
                matches(bad, "a").unwrap_err().to_string(),
                "syntax error in pattern",
                "{bad}"
            );
        }
        // Without exponential backtracking.
        assert!(!matches(&("*a".repeat(30) + "b"), &"a".repeat(200)).unwrap());
    }
}
