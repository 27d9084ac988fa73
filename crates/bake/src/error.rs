//! Errors, with their places in files.

use std::fmt;
use std::ops::Range;

use whelk_dockerfile::Lines;
use whelk_dockerfile::report::excerpt;

/// What is wrong with a definition, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Error {
    /// With the place, as Docker's bake writes it.
    pub text: String,
    /// The lines around the place; empty if it is not known.
    pub excerpt: String,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            excerpt: String::new(),
        }
    }
}

/// A problem of an expression, whose place is a range of bytes in one of the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub summary: &'static str,
    pub detail: String,
    /// The index of the file, and the range, if it is known.
    pub place: Option<(usize, Option<Range<usize>>)>,
}

impl Problem {
    pub fn new(summary: &'static str, detail: impl Into<String>) -> Self {
        Self {
            summary,
            detail: detail.into(),
            place: None,
        }
    }

    /// Sets the place, unless a more exact one is known.
    #[must_use]
    pub fn at(mut self, file: usize, span: Option<Range<usize>>) -> Self {
        match &self.place {
            Some((own, None)) if *own == file => self.place = Some((file, span)),
            Some(_) => {}
            None => self.place = Some((file, span)),
        }
        self
    }

    /// Returns the error for users. `files` are names and contents.
    pub fn error(&self, files: &[(String, String)]) -> Error {
        let what = format!("{}; {}", self.summary, self.detail);
        let place = self.place.as_ref();
        let Some((file, span)) = place.and_then(|(file, span)| Some((files.get(*file)?, span)))
        else {
            return Error::new(what);
        };
        let (name, content) = file;
        let Some(span) = span else {
            return Error::new(format!("{name}: {what}"));
        };
        let (first, last) = (position(content, span.start), position(content, span.end));
        Error {
            text: format!("{}: {what}", place_of(name, content, span)),
            excerpt: excerpt(name, content, &[Lines::new(first.line, last.line)]),
        }
    }
}

/// Writes the place of a range of bytes: the file, and the lines and columns.
pub(crate) fn place_of(name: &str, content: &str, span: &Range<usize>) -> String {
    let (first, last) = (position(content, span.start), position(content, span.end));
    match first.line == last.line {
        true => format!("{name}:{first}-{}", last.column),
        false => format!("{name}:{first}-{last}"),
    }
}

/// A line and a column, from 1 on. Columns are characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    line: u32,
    column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.line, self.column)
    }
}

fn position(content: &str, offset: usize) -> Position {
    let mut offset = offset.min(content.len());
    // Places in texts of JSON with escapes may be inside a character.
    while !content.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &content[..offset];
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    Position {
        line: u32::try_from(line).unwrap_or(u32::MAX),
        column: before[start..].chars().count() + 1,
    }
}

/// Returns the error of a syntax that could not be parsed.
pub(crate) fn syntax(
    files: &[(String, String)],
    file: usize,
    offset: usize,
    detail: impl Into<String>,
) -> Error {
    let length = files.get(file).map_or(0, |(_, content)| content.len());
    let offset = offset.min(length);
    let problem = Problem::new("Invalid syntax", detail);
    problem.at(file, Some(offset..offset)).error(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_lines_and_columns() {
        let files = [("a.hcl".to_owned(), "one\nä two\nthree".to_owned())];
        let problem = |range| Problem::new("Wrong", "it is").at(0, Some(range));
        assert_eq!(
            problem(7..10).error(&files).text,
            "a.hcl:2,3-6: Wrong; it is"
        );
        assert_eq!(
            problem(0..10).error(&files).text,
            "a.hcl:1,1-2,6: Wrong; it is"
        );
        assert!(
            problem(7..10)
                .error(&files)
                .excerpt
                .contains("2 | >>> ä two")
        );
        // Not at a character's boundary, or behind the end.
        assert!(problem(5..99).error(&files).text.starts_with("a.hcl:"));
        assert_eq!(Problem::new("Wrong", "x").error(&files).text, "Wrong; x");
    }
}
