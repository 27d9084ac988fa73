//! Errors and the lines of a Dockerfile that they are about.

/// A range of lines, counted from 1; both ends belong to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lines {
    pub first: u32,
    pub last: u32,
}

impl Lines {
    pub fn new(first: u32, last: u32) -> Self {
        Self {
            first,
            last: last.max(first),
        }
    }

    /// Returns the numbers of the lines.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        self.first..=self.last
    }
}

/// An error in a Dockerfile, with BuildKit's text where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Error {
    text: String,
    /// The lines that the error is about; empty if it is about the whole file, or about a text that
    /// is none.
    pub lines: Vec<Lines>,
}

impl Error {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            lines: Vec::new(),
        }
    }

    /// Adds the lines that the error is about, unless it has some.
    #[must_use]
    pub(crate) fn at(mut self, lines: Lines) -> Self {
        if self.lines.is_empty() {
            self.lines.push(lines);
        }
        self
    }

    /// Puts a text in front of the error's.
    #[must_use]
    pub(crate) fn context(mut self, text: impl std::fmt::Display) -> Self {
        self.text = format!("{text}: {}", self.text);
        self
    }

    /// Appends the one of `options` that is similar to `written`, if there is one.
    #[must_use]
    pub(crate) fn suggest<'a>(
        mut self,
        written: &str,
        options: impl IntoIterator<Item = &'a str>,
        case_sensitive: bool,
    ) -> Self {
        if let Some(similar) = crate::suggest::similar(written, options, case_sensitive) {
            self.text += &format!(" (did you mean {similar}?)");
        }
        self
    }
}

impl From<whelk_text::Error> for Error {
    fn from(error: whelk_text::Error) -> Self {
        Self::new(error.to_string())
    }
}

pub type Result<T> = std::result::Result<T, Error>;
