//! Expansion of words: quotes, escapes, and variables with the modifiers of Dockerfiles.
//!
//! The rules are BuildKit's: `$x`, `${x}`, `${x:-word}`, `${x-word}`, `+`, `?`, `#`, `##`, `%`,
//! `%%`, `/` and `//`.

use std::cell::Cell;
use std::collections::BTreeSet;

use regex_lite::Regex;

pub use crate::environment::Environment;
use crate::{Error, Result};

/// Limit of the expansion of a word in bytes, so that nested variables cannot exhaust memory. The
/// kernel's limit for an argument or environment variable is 128 KiB (execve(2)).
pub const MAX_WORD: usize = 1 << 20;

/// The steps that the words of one file may take together: the bytes of inserted values, and for
/// each match the length of the pattern times that of its value.
const MAX_STEPS: usize = 1 << 27;

/// Limit of nested substitutions such as `${a:-${b:-…}}`.
const MAX_DEPTH: usize = 64;

/// The work that the words of one file may still cause, so that many words cannot take what a single
/// one may not.
#[derive(Debug)]
pub struct Budget(Cell<usize>);

impl Default for Budget {
    fn default() -> Self {
        Self(Cell::new(MAX_STEPS))
    }
}

impl Budget {
    /// Takes steps from the budget.
    ///
    /// # Errors
    /// Returns an error if fewer are left.
    pub fn spend(&self, steps: usize) -> Result<()> {
        let left = self.0.get().checked_sub(steps);
        self.0.set(left.unwrap_or(0));
        left.map(drop).ok_or_else(|| {
            Error::new(format!(
                "expanding variables takes more than {MAX_STEPS} steps"
            ))
        })
    }
}

/// What an expansion keeps as it is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep {
    /// Quotes, though what is quoted is not split.
    pub quotes: bool,
    /// Escape characters.
    pub escapes: bool,
    /// Variables that are not set.
    pub unset: bool,
    /// Quotes have no meaning, as in heredocs.
    pub quotes_are_text: bool,
}

/// Expands words with one set of variables.
#[derive(Clone, Copy, Debug)]
pub struct Lexer<'a> {
    pub escape: char,
    pub environment: &'a Environment,
    pub budget: &'a Budget,
    pub keep: Keep,
}

/// The result of an expansion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The whole text, with its white space.
    pub text: String,
    /// The text split at white space outside quotes.
    pub words: Vec<String>,
    /// Names of the variables that were used and are set.
    pub set: BTreeSet<String>,
    /// Names of the variables that were used and are not set.
    pub unset: BTreeSet<String>,
}

impl<'a> Lexer<'a> {
    pub fn new(escape: char, environment: &'a Environment, budget: &'a Budget) -> Self {
        Self {
            escape,
            environment,
            budget,
            keep: Keep::default(),
        }
    }

    /// Replaces variables in `text` and removes quotes and escapes; white space is kept.
    ///
    /// # Errors
    /// Returns an error for an unterminated quote, an invalid substitution, a required variable
    /// that is not set, and a result that is too long.
    pub fn word(&self, text: &str) -> Result<String> {
        self.expand(text).map(|expansion| expansion.text)
    }

    /// Like [`Lexer::word`], with the result split at white space outside quotes.
    ///
    /// # Errors
    /// Returns the same errors as [`Lexer::word`].
    pub fn words(&self, text: &str) -> Result<Vec<String>> {
        self.expand(text).map(|expansion| expansion.words)
    }

    /// Like [`Lexer::word`] and [`Lexer::words`], with the names of the variables.
    ///
    /// # Errors
    /// Returns the same errors as [`Lexer::word`].
    pub fn expand(&self, text: &str) -> Result<Expansion> {
        let mut expansion = Expansion::default();
        let result = self.scan(text, &mut expansion);
        result.map(|()| expansion)
    }

    /// Like [`Lexer::word`], and adds the names of variables that are not set, also if it fails.
    ///
    /// # Errors
    /// Returns the same errors as [`Lexer::word`].
    pub(crate) fn word_noting(&self, text: &str, unset: &mut Vec<String>) -> Result<String> {
        let mut expansion = Expansion::default();
        let result = self.scan(text, &mut expansion);
        unset.extend(expansion.unset);
        result.map(|()| expansion.text)
    }

    fn scan(&self, text: &str, expansion: &mut Expansion) -> Result<()> {
        let mut scan = Scan {
            lexer: *self,
            letters: text.chars().collect(),
            at: 0,
            depth: 0,
            expanded: 0,
            set: BTreeSet::new(),
            unset: BTreeSet::new(),
        };
        // A word can be as long as a line, so only its beginning is shown.
        const SHOWN: usize = 256;
        let shown = || text.chars().take(SHOWN).collect::<String>();
        let result = scan.until(None, self.keep.escapes);
        expansion.set = scan.set;
        expansion.unset = scan.unset;
        (expansion.text, expansion.words) = result
            .map_err(|error| Error::new(format!("failed to process {:?}: {error}", shown())))?;
        Ok(())
    }
}

/// State of expanding a word.
struct Scan<'a> {
    lexer: Lexer<'a>,
    letters: Vec<char>,
    at: usize,
    depth: usize,
    /// Number of bytes of variables' values inserted so far, including those of discarded operands.
    expanded: usize,
    set: BTreeSet<String>,
    unset: BTreeSet<String>,
}

/// The output so far, as one text and split into words.
#[derive(Default)]
struct Output {
    text: String,
    words: Vec<String>,
    word: String,
}

impl Output {
    /// Adds text whose white space does not separate words.
    fn quoted(&mut self, text: &str) {
        self.text.push_str(text);
        self.word.push_str(text);
    }

    /// Adds text whose white space separates words.
    fn plain(&mut self, text: &str) {
        self.text.push_str(text);
        for letter in text.chars() {
            if !letter.is_whitespace() {
                self.word.push(letter);
            } else if !self.word.is_empty() {
                self.words.push(std::mem::take(&mut self.word));
            }
        }
    }

    fn finish(mut self) -> (String, Vec<String>) {
        if !self.word.is_empty() {
            self.words.push(self.word);
        }
        (self.text, self.words)
    }
}

impl<'a> Scan<'a> {
    fn peek(&self) -> Option<char> {
        self.letters.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let letter = self.peek();
        self.at += usize::from(letter.is_some());
        letter
    }

    /// Expands up to `stop` or to the end. With `raw`, escape characters are kept, because patterns
    /// have escapes of their own.
    fn until(&mut self, stop: Option<char>, raw: bool) -> Result<(String, Vec<String>)> {
        let mut output = Output::default();
        let quotes = !self.lexer.keep.quotes_are_text;
        while let Some(letter) = self.next() {
            if Some(letter) == stop {
                return Ok(output.finish());
            }
            match letter {
                '\'' if quotes => output.quoted(&self.single_quotes()?),
                '"' if quotes => output.quoted(&self.double_quotes(raw)?),
                // The word of a heredoc begins with `<<`, and may have white space after it.
                '<' if self.peek() == Some('<') => {
                    self.at += 1;
                    output.quoted("<<");
                    while let Some(blank) = self.peek().filter(|c| matches!(c, ' ' | '\t' | '\r')) {
                        self.at += 1;
                        output.quoted(blank.encode_utf8(&mut [0; 4]));
                    }
                }
                '$' => output.plain(&self.variable()?),
                letter if letter == self.lexer.escape => {
                    if raw {
                        output.quoted(letter.encode_utf8(&mut [0; 4]));
                    }
                    let Some(escaped) = self.next() else { break };
                    output.quoted(escaped.encode_utf8(&mut [0; 4]));
                }
                letter => output.plain(letter.encode_utf8(&mut [0; 4])),
            }
            if output.text.len() > MAX_WORD {
                return Err(too_long());
            }
        }
        match stop {
            Some(stop) => Err(Error::new(format!(
                "unexpected end of statement while looking for matching {stop}"
            ))),
            None => Ok(output.finish()),
        }
    }

    /// Reads up to the closing single quote; nothing is expanded.
    fn single_quotes(&mut self) -> Result<String> {
        let kept = self.lexer.keep.quotes;
        let mut text = String::from(if kept { "'" } else { "" });
        loop {
            match self.next() {
                None => {
                    return Err(Error::new(
                        "unexpected end of statement while looking for matching single-quote",
                    ));
                }
                Some('\'') => {
                    text.extend(kept.then_some('\''));
                    return Ok(text);
                }
                Some(letter) => text.push(letter),
            }
        }
    }

    /// Reads up to the closing double quote. Variables are expanded, and only `"`, `$` and the
    /// escape character itself can be escaped.
    fn double_quotes(&mut self, raw: bool) -> Result<String> {
        let kept = self.lexer.keep.quotes;
        let mut text = String::from(if kept { "\"" } else { "" });
        loop {
            match self.next() {
                None => {
                    return Err(Error::new(
                        "unexpected end of statement while looking for matching double-quote",
                    ));
                }
                Some('"') => {
                    text.extend(kept.then_some('"'));
                    return Ok(text);
                }
                Some('$') => text += &self.variable()?,
                Some(letter) if letter == self.lexer.escape => {
                    if raw {
                        text.push(letter);
                    }
                    match self.peek() {
                        None => {}
                        Some(escaped)
                            if escaped == '"' || escaped == '$' || escaped == self.lexer.escape =>
                        {
                            text.extend(self.next())
                        }
                        Some(_) => text.push(letter),
                    }
                }
                Some(letter) => text.push(letter),
            }
        }
    }

    /// Expands the variable after a `$`.
    fn variable(&mut self) -> Result<String> {
        if self.peek() != Some('{') {
            let name = self.name();
            return if name.is_empty() {
                Ok("$".into())
            } else {
                match self.value(&name) {
                    None if self.lexer.keep.unset => Ok(format!("${name}")),
                    value => self.insert(value),
                }
            };
        }
        self.next();
        match self.peek() {
            None => return Err(missing_brace()),
            Some('{' | '}' | ':') => return Err(Error::new("syntax error: bad substitution")),
            Some(_) => {}
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(Error::new(format!(
                "substitutions are nested more than {MAX_DEPTH} deep"
            )));
        }
        let value = self.substitution();
        self.depth -= 1;
        value
    }

    /// Returns a variable's value, and notes that the variable was used.
    fn value(&mut self, name: &str) -> Option<&'a str> {
        let environment = self.lexer.environment;
        let value = environment.get(name);
        if value.is_some() {
            self.set.insert(name.to_owned());
        } else {
            self.unset.insert(name.to_owned());
        }
        value
    }

    /// Returns a variable's value, and counts its length.
    fn insert(&mut self, value: Option<&str>) -> Result<String> {
        let value = value.unwrap_or_default();
        self.count(value.len())?;
        Ok(value.to_owned())
    }

    fn count(&mut self, bytes: usize) -> Result<()> {
        self.expanded = self.expanded.saturating_add(bytes);
        if self.expanded > MAX_WORD {
            Err(too_long())
        } else {
            self.lexer.budget.spend(bytes)
        }
    }

    /// Counts the steps of a match, before it is run.
    fn count_steps(&self, pattern: &str, value: &str) -> Result<()> {
        let steps = pattern.len().saturating_mul(value.len());
        self.lexer.budget.spend(steps)
    }

    fn substitution(&mut self) -> Result<String> {
        let name = self.name();
        let value = self.value(&name);
        let kept = self.lexer.keep.unset && value.is_none();
        // The end of the text counts as U+FFFD, which is how BuildKit's message shows it.
        let mut modifier = self.next().unwrap_or(char::REPLACEMENT_CHARACTER);
        let mut shown = modifier.to_string();
        let empty_is_unset = modifier == ':';
        if modifier == '}' {
            return if kept {
                Ok(format!("${{{name}}}"))
            } else {
                self.insert(value)
            };
        }
        if empty_is_unset {
            modifier = self.next().unwrap_or(char::REPLACEMENT_CHARACTER);
            shown.push(modifier);
        }
        let unsupported = || Error::new(format!("unsupported modifier ({shown}) in substitution"));
        let is_set = value.is_some_and(|value| !(empty_is_unset && value.is_empty()));
        match modifier {
            '-' | '+' | '?' => {
                let word = self.operand('}', false)?;
                if kept {
                    return Ok(format!("${{{name}{shown}{word}}}"));
                }
                match modifier {
                    '-' if is_set => self.insert(value),
                    '-' => Ok(word),
                    '+' => Ok(if is_set { word } else { String::new() }),
                    _ if is_set => self.insert(value),
                    _ if word.is_empty() => {
                        let state = if value.is_some() { "empty" } else { "unset" };
                        Err(Error::new(format!("{name}: is not allowed to be {state}")))
                    }
                    _ => Err(Error::new(format!("{name}: {word}"))),
                }
            }
            '#' | '%' if !empty_is_unset => {
                let word = self.operand('}', true)?;
                if kept {
                    return Ok(format!("${{{name}{shown}{word}}}"));
                }
                let (greedy, pattern) = word
                    .strip_prefix(modifier)
                    .map_or((false, word.as_str()), |rest| (true, rest));
                let value = value.unwrap_or_default();
                self.count_steps(pattern, value)?;
                let trimmed = trim(value, pattern, greedy, modifier == '%')?;
                self.count(trimmed.len())?;
                Ok(trimmed)
            }
            '/' if !empty_is_unset => {
                let all = self.peek() == Some('/');
                self.at += usize::from(all);
                let pattern = self.operand('/', true)?;
                let replacement = self.operand('}', true)?;
                if kept {
                    return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
                }
                let value = value.unwrap_or_default();
                self.count_steps(&pattern, value)?;
                let replaced = replace(value, &pattern, &replacement, all)?;
                self.count(replaced.len())?;
                Ok(replaced)
            }
            _ => Err(unsupported()),
        }
    }

    /// Expands the operand of a modifier, up to `stop`.
    fn operand(&mut self, stop: char, raw: bool) -> Result<String> {
        match self.until(Some(stop), raw) {
            Err(_) if self.peek().is_none() && stop == '/' => {
                Err(Error::new("syntax error: missing '/' in ${}"))
            }
            Err(_) if self.peek().is_none() => Err(missing_brace()),
            result => result.map(|(word, _)| word),
        }
    }

    /// Reads a variable's name: letters, digits and `_`; digits only; or one of the shell's special
    /// parameters.
    fn name(&mut self) -> String {
        let digits = self.peek().is_some_and(|letter| letter.is_ascii_digit());
        let belongs = |letter: char| {
            if digits {
                letter.is_ascii_digit()
            } else {
                letter.is_alphanumeric() || letter == '_'
            }
        };
        let mut name = String::new();
        while let Some(letter) = self.peek().filter(|letter| belongs(*letter)) {
            name.push(letter);
            self.at += 1;
        }
        if name.is_empty() && matches!(self.peek(), Some('@' | '*' | '#' | '?' | '-' | '$' | '!')) {
            name.extend(self.next());
        }
        name
    }
}

fn too_long() -> Error {
    Error::new(format!("the expansion is longer than {MAX_WORD} bytes"))
}

fn missing_brace() -> Error {
    Error::new("syntax error: missing '}'")
}

/// Converts a shell pattern (`*` and `?`) to a regular expression.
fn expression(pattern: &str, greedy: bool, anchored: bool) -> Result<Regex> {
    let failed = |cause: String| {
        Error::new(format!(
            "invalid pattern ({pattern}) in substitution: {cause}"
        ))
    };
    let mut text = String::from(if anchored { "^" } else { "" });
    let mut letters = pattern.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '*' => text += if greedy { ".*" } else { ".*?" },
            '?' => text.push('.'),
            '\\' => match letters.peek() {
                // Escaped because of the `${}` syntax, not of the pattern.
                Some('}' | '/') => {}
                Some('*' | '?' | '\\') => text.extend(['\\'].into_iter().chain(letters.next())),
                other => {
                    return Err(failed(format!(
                        "invalid escape '\\{}'",
                        other.copied().unwrap_or(char::REPLACEMENT_CHARACTER)
                    )));
                }
            },
            letter => text += &regex_lite::escape(letter.encode_utf8(&mut [0; 4])),
        }
    }
    Regex::new(&text).map_err(|error| failed(error.to_string()))
}

/// Removes the match of a pattern at the beginning, or at the end.
fn trim(value: &str, pattern: &str, greedy: bool, at_end: bool) -> Result<String> {
    if !at_end {
        let found = expression(pattern, greedy, true)?
            .find(value)
            .map_or(0, |found| found.end());
        return Ok(value[found..].to_owned());
    }
    // Leftmost matching cannot find the shortest match at the end, so value and pattern are
    // reversed.
    let reversed_value: String = value.chars().rev().collect();
    let trimmed = trim(&reversed_value, &reversed(pattern), greedy, false)?;
    Ok(trimmed.chars().rev().collect())
}

/// Reverses a pattern, keeping escapes in front of the characters they escape.
fn reversed(pattern: &str) -> String {
    let mut pieces: Vec<String> = Vec::new();
    let mut letters = pattern.chars();
    while let Some(letter) = letters.next() {
        let mut piece = letter.to_string();
        if letter == '\\' {
            piece.extend(letters.next());
        }
        pieces.push(piece);
    }
    pieces.reverse();
    pieces.concat()
}

fn replace(value: &str, pattern: &str, replacement: &str, all: bool) -> Result<String> {
    let expression = expression(pattern, true, false)?;
    let count = if all { 0 } else { 1 };
    let pieces = expression
        .find_iter(value)
        .take(if all { usize::MAX } else { 1 })
        .count();
    if value
        .len()
        .saturating_add(pieces.saturating_mul(replacement.len()))
        > MAX_WORD
    {
        return Err(too_long());
    }
    Ok(expression
        .replacen(value, count, regex_lite::NoExpand(replacement))
        .into_owned())
}

#[cfg(test)]
mod tests;
