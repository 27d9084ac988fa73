//! The patterns of `.dockerignore`, by the rules of BuildKit's matcher.
//!
//! A pattern also matches what is below a directory that it matches. The last pattern that matches decides;
//! one with `!` includes again, also below a directory that is excluded.

use crate::error::{Error, Result};
use crate::path;

/// Returns the patterns of an ignore file, in normal form.
pub fn patterns(text: &str) -> Vec<String> {
    lines(text).filter_map(pattern).collect()
}

/// Returns the patterns of an ignore file with this name, in normal form.
///
/// # Errors
/// Returns an error for a malformed pattern, with its line.
pub fn checked(name: &str, text: &str) -> Result<Vec<String>> {
    let mut patterns = Vec::new();
    for (number, line) in (1_usize..).zip(lines(text)) {
        let Some(pattern) = pattern(line) else {
            continue;
        };
        let compiled = Matcher::new([pattern.as_str()]);
        compiled
            .map_err(|error| error.context(format_args!("{name}:{number}: {}", line.trim())))?;
        patterns.push(pattern);
    }
    Ok(patterns)
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.strip_prefix('\u{feff}').unwrap_or(text).lines()
}

/// Returns the pattern of a line in normal form, if it has one.
fn pattern(line: &str) -> Option<String> {
    if line.starts_with('#') || line.trim().is_empty() {
        return None;
    }
    let line = line.trim();
    let (sign, pattern) = match line.strip_prefix('!') {
        Some(rest) => ("!", rest.trim()),
        None => ("", line),
    };
    if pattern.is_empty() {
        return Some(sign.to_owned());
    }
    let cleaned = path::clean(pattern);
    let relative = match cleaned.strip_prefix('/') {
        Some(relative) if !relative.is_empty() => relative,
        _ => &cleaned,
    };
    Some(format!("{sign}{relative}"))
}

/// Decides which paths are excluded.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    patterns: Vec<Pattern>,
}

/// Which of the patterns match a directory.
#[derive(Clone, Debug, Default)]
pub struct Matched(Vec<bool>);

impl Matcher {
    /// # Errors
    /// Returns an error for a malformed pattern.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        let mut compiled = Vec::new();
        for pattern in patterns {
            let pattern = pattern.trim();
            if !pattern.is_empty() {
                compiled.push(Pattern::new(&path::clean(pattern))?);
            }
        }
        Ok(Self { patterns: compiled })
    }

    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a pattern has a `!`, so that something below an excluded directory may be included.
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.exception)
    }

    /// Whether a pattern matches everything in the root.
    pub(crate) fn excludes_all(&self) -> bool {
        self.patterns.iter().any(|pattern| {
            !pattern.exception && matches!(pattern.text.as_str(), "*" | "**" | "**/*")
        })
    }

    /// Returns whether a path, relative and in normal form, is excluded, itself or with a directory that it is in.
    pub fn excludes(&self, file: &str) -> bool {
        let mut excluded = false;
        for pattern in &self.patterns {
            if pattern.exception == excluded
                && (pattern.matches(file) || parents(file).any(|parent| pattern.matches(parent)))
            {
                excluded = !pattern.exception;
            }
        }
        excluded
    }

    /// Like [`Matcher::excludes`], for a path in a directory whose result is `parent`; the default is that of
    /// the root. Returns the path's own result, too.
    pub fn excludes_in(&self, file: &str, parent: &Matched) -> (bool, Matched) {
        let mut excluded = false;
        let mut own = vec![false; self.patterns.len()];
        for (index, pattern) in self.patterns.iter().enumerate() {
            // Each one is tried, because it may decide below here, where others match before it.
            let inherited = parent.0.get(index).copied().unwrap_or_default();
            own[index] = inherited || pattern.matches(file);
            if own[index] {
                excluded = !pattern.exception;
            }
        }
        (excluded, Matched(own))
    }
}

/// Returns the directories that a path is in, from the topmost one.
fn parents(file: &str) -> impl Iterator<Item = &str> {
    let slashes = file.match_indices('/').map(|(at, _)| at);
    slashes.filter(|at| *at > 0).filter_map(|at| file.get(..at))
}

#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    exception: bool,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Exact,
    /// `PREFIX**`
    Prefix,
    /// `**SUFFIX`, without special characters.
    Suffix,
    Tokens(Vec<Token>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Letter(char),
    /// `?`: no slash.
    One,
    /// `*`: no slash.
    Star,
    /// `**` at the end.
    Rest,
    /// `**` and a slash: nothing, or anything up to a slash.
    Directories,
    /// The ranges, and whether the class is negated.
    Class(Vec<(char, char)>, bool),
}

impl Pattern {
    fn new(cleaned: &str) -> Result<Self> {
        let (exception, text) = match cleaned.strip_prefix('!') {
            Some("") => return Err(Error::new("illegal exclusion pattern: \"!\"")),
            Some(text) => (true, text),
            None => (false, cleaned),
        };
        whelk_text::glob::matches(text, ".")?;
        Ok(Self {
            exception,
            kind: compile(text),
            text: text.to_owned(),
        })
    }

    fn matches(&self, path: &str) -> bool {
        match &self.kind {
            Kind::Exact => path == self.text,
            Kind::Prefix => self
                .text
                .strip_suffix("**")
                .is_some_and(|prefix| path.starts_with(prefix)),
            Kind::Suffix => self.text.strip_prefix("**").is_some_and(|suffix| {
                path.ends_with(suffix) || suffix.strip_prefix('/') == Some(path)
            }),
            Kind::Tokens(tokens) => matches(tokens, path),
        }
    }
}

/// Compiles a pattern that is valid. The simple kinds are BuildKit's, and not only faster: in `**a`, the stars
/// match a part of a name, but in `**a?` they do not.
fn compile(pattern: &str) -> Kind {
    let mut tokens = Vec::new();
    let mut kind = Kind::Exact;
    let mut letters = pattern.chars().peekable();
    let special = || Kind::Tokens(Vec::new());
    while let Some(letter) = letters.next() {
        let first = tokens.is_empty();
        match letter {
            '*' if letters.next_if_eq(&'*').is_some() => {
                let _ = letters.next_if_eq(&'/');
                if letters.peek().is_some() {
                    tokens.push(Token::Directories);
                    kind = special();
                } else {
                    tokens.push(Token::Rest);
                    kind = match kind {
                        Kind::Exact => Kind::Prefix,
                        _ => special(),
                    };
                }
                if first {
                    kind = Kind::Suffix;
                }
                continue;
            }
            '*' => tokens.push(Token::Star),
            '?' => tokens.push(Token::One),
            '[' => tokens.push(class(&mut letters)),
            '\\' => tokens.push(Token::Letter(letters.next().unwrap_or('\\'))),
            letter => {
                tokens.push(Token::Letter(letter));
                if letter != ']' {
                    continue;
                }
            }
        }
        kind = special();
    }
    match kind {
        Kind::Tokens(_) => Kind::Tokens(tokens),
        simple => simple,
    }
}

/// Reads a character class behind its `[`.
fn class(letters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Token {
    let negated = letters.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    while let Some(letter) = letters.next() {
        let bound = |letter: char, letters: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            if letter == '\\' {
                letters.next().unwrap_or('\\')
            } else {
                letter
            }
        };
        if letter == ']' && !ranges.is_empty() {
            break;
        }
        let first = bound(letter, letters);
        let last = match letters.next_if_eq(&'-').and_then(|_| letters.next()) {
            Some(last) => bound(last, letters),
            None => first,
        };
        ranges.push((first, last));
    }
    Token::Class(ranges, negated)
}

/// Matches a whole path, in time proportional to the product of both lengths.
fn matches(tokens: &[Token], path: &str) -> bool {
    // Which tokens may match next, and whether the pattern may be at its end. A star is passed without matching.
    let mut states = vec![false; tokens.len() + 1];
    // States inside `Directives`, where the part that is skipped does not end yet.
    let mut inside = vec![false; tokens.len() + 1];
    let skip = |states: &mut Vec<bool>, inside: &mut Vec<bool>| {
        for (index, token) in tokens.iter().enumerate() {
            if states[index] {
                match token {
                    Token::Star | Token::Rest => states[index + 1] = true,
                    Token::Directories => {
                        states[index + 1] = true;
                        inside[index] = true;
                    }
                    _ => {}
                }
            }
        }
    };
    states[0] = true;
    skip(&mut states, &mut inside);
    for letter in path.chars() {
        let mut next = vec![false; tokens.len() + 1];
        let mut next_inside = vec![false; tokens.len() + 1];
        for (index, token) in tokens.iter().enumerate() {
            if inside[index] {
                next_inside[index] = true;
                next[index + 1] |= letter == '/';
            }
            if !states[index] {
                continue;
            }
            match token {
                Token::Letter(wanted) => next[index + 1] |= *wanted == letter,
                Token::One => next[index + 1] |= letter != '/',
                Token::Star => next[index] |= letter != '/',
                Token::Rest => next[index] = true,
                Token::Directories => {}
                Token::Class(ranges, negated) => {
                    let within = ranges
                        .iter()
                        .any(|(first, last)| (*first..=*last).contains(&letter));
                    next[index + 1] |= within != *negated;
                }
            }
        }
        (states, inside) = (next, next_inside);
        skip(&mut states, &mut inside);
    }
    states[tokens.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excludes(patterns: &[&str], file: &str) -> bool {
        let matcher = Matcher::new(patterns.iter().copied())
            .unwrap_or_else(|error| panic!("{patterns:?}: {error}"));
        let excluded = matcher.excludes(file);
        // A walk from the root has the same result.
        let mut parent = Matched::default();
        for directory in parents(file).collect::<Vec<_>>() {
            parent = matcher.excludes_in(directory, &parent).1;
        }
        assert_eq!(
            matcher.excludes_in(file, &parent).0,
            excluded,
            "{patterns:?} {file}"
        );
        excluded
    }

    /// Cases of the documentation of `.dockerignore`, and of the table of moby's matcher.
    #[test]
    fn matches_like_buildkit() {
        for (pattern, file, expected) in [
            ("**", "file", true),
            ("**", "dir/file", true),
            ("**/", "file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir/dir2/file", true),
            ("dir/**", "dir", false),
            ("**/dir", "dir", true),
            ("**/dir", "dir/file", true),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/**", "dir/dir2/dir3/file", true),
            ("**file", "file", true),
            ("**file", "dir/file", true),
            ("**/file", "dir/dir/file", true),
            ("**/file*", "dir/dir/file.txt", true),
            ("**/file*txt", "dir/dir/file.txt", true),
            ("**/file*.txt*", "dir/dir/file.txt", true),
            ("**/**/*.txt", "dir/dir/file.txt", true),
            ("**/**/*.txt2", "dir/dir/file.txt", false),
            ("**/*.txt", "file.txt", true),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/dir/file.txt", true),
            ("a/*.txt", "a/dir/file.txt", false),
            ("a/*.txt", "a/file.txt", true),
            ("a/*.txt**", "a/file.txt", true),
            ("a[b-d]e", "ae", false),
            ("a[b-d]e", "ace", true),
            ("a[^b-d]e", "aze", true),
            (".*", ".foo", true),
            (".*", "foo", false),
            ("abc.def", "abcdef", false),
            ("abc?def", "abcZdef", true),
            ("a\\*b", "a*b", true),
            ("a\\\\", "a\\", true),
            ("**/foo/bar", "dir/foo/bar", true),
            ("abc/**", "abc/def/ghi", true),
            ("**/.foo", "bar.foo", false),
            ("**/.foo", "bar/.foo", true),
            ("*c", "abc", true),
            ("*c", "a/bc", false),
            ("a*c/f", "abc/f", true),
            ("a*/b", "a/c/b", false),
            ("dir", "dir/a/b", true),
            ("d?r", "dir/a/b", true),
            ("[", "x", false),
        ] {
            if pattern == "[" {
                assert!(Matcher::new([pattern]).is_err());
                continue;
            }
            assert_eq!(excludes(&[pattern], file), expected, "{pattern} {file}");
        }
    }

    #[test]
    fn the_last_match_decides() {
        for (patterns, file, expected) in [
            (&["*.md", "!README.md"][..], "README.md", false),
            (&["*.md", "!README.md"], "other.md", true),
            (&["docs", "!docs/README.md"], "docs/README.md", false),
            (&["docs", "!docs/README.md"], "docs/other", true),
            (&["!a", "a"], "a", true),
            (&["*", "!dir", "dir/secret"], "dir/secret", true),
            (&["*", "!dir", "dir/secret"], "dir/x", false),
            (&["**", "!dir/**/*.go"], "dir/a/b/x.go", false),
            (&["*", "!a", "a/b", "!a", "a/c"], "a/b/d", false),
        ] {
            assert_eq!(excludes(patterns, file), expected, "{patterns:?} {file}");
        }
        assert!(Matcher::new(["!"]).is_err());
    }

    #[test]
    fn reads_ignore_files() {
        let text = "\u{feff}# comment\n\n /a/ \n!  b/../c\n#d\r\n./e\n/\n!\n";
        assert_eq!(patterns(text), ["a", "!c", "e", "/", "!"]);
        let error = |text: &str| checked(".dockerignore", text).unwrap_err().to_string();
        assert_eq!(
            error("# x\n\n a\n  [bad \n"),
            ".dockerignore:4: [bad: syntax error in pattern"
        );
        assert_eq!(
            error(text),
            ".dockerignore:8: !: illegal exclusion pattern: \"!\""
        );
        assert_eq!(checked("x", "a\n!b\n").unwrap(), ["a", "!b"]);
    }

    #[test]
    fn takes_no_exponential_time() {
        let pattern = "**/a*".repeat(50) + "b";
        let file = "a/".repeat(500) + "c";
        assert!(!excludes(&[&pattern], &file));
    }
}
