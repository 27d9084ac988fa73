//! Errors of the image crate, by what the caller does about them.

use whelk_sys::fs::PathError;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Input from outside is malformed, damaged or hostile.
    #[error("{0}")]
    Invalid(String),
    /// A layer has too many files to be kept as an image. It can be kept as a directory.
    #[error("{0}")]
    TooLarge(String),
    /// The object is not in the store.
    #[error("{0}")]
    NotFound(String),
    #[error(transparent)]
    Path(#[from] PathError),
    /// Reading or writing a stream failed.
    #[error("{operation}: {}", whelk_sys::errno_text(source))]
    Io {
        operation: String,
        source: std::io::Error,
    },
}

impl Error {
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    /// Prefixes the error's text with the step that failed.
    #[must_use]
    pub fn during(self, step: &str) -> Self {
        match self {
            Self::Invalid(text) => Self::Invalid(format!("{step}: {text}")),
            Self::TooLarge(text) => Self::TooLarge(format!("{step}: {text}")),
            Self::NotFound(text) => Self::NotFound(format!("{step}: {text}")),
            Self::Io { operation, source } => Self::Io {
                operation: format!("{step}: {operation}"),
                source,
            },
            Self::Path(path) => Self::Io {
                operation: format!("{step}: {} {}", path.operation, path.path.display()),
                source: path.source,
            },
        }
    }
}

/// Returns a parser's error text, with control characters from the input escaped.
fn parser_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    // The tar parser reads the checksum first: if that is not a number, the input is not a tar
    // header at all.
    if text.contains("when getting cksum") {
        "not a tar archive".into()
    } else if text == "failed to read entire block" {
        // The text of Go's `io.ErrUnexpectedEOF`, which Docker's users know.
        "unexpected EOF".into()
    } else {
        // Not quotation marks, which are part of the texts.
        let escaped = |letter: char| match letter {
            '\'' | '"' => letter.to_string(),
            other => other.escape_debug().to_string(),
        };
        text.chars().map(escaped).collect()
    }
}

/// Returns a function for `map_err` that adds the operation. Errors without an errno come from
/// parsers, and some errnos are caused by names and values in the input: both become
/// [`Error::Invalid`].
pub(crate) fn io(operation: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    use rustix::io::Errno;
    const SENDERS: [Errno; 6] = [
        Errno::INVAL,
        Errno::NAMETOOLONG,
        Errno::LOOP,
        Errno::TOOBIG,
        Errno::RANGE,
        Errno::ILSEQ,
    ];
    move |source| match source.raw_os_error() {
        None => Error::Invalid(format!("{}: {}", operation.into(), parser_text(&source))),
        Some(code) if SENDERS.iter().any(|errno| errno.raw_os_error() == code) => Error::Invalid(
            format!("{}: {}", operation.into(), whelk_sys::errno_text(&source)),
        ),
        Some(_) => Error::Io {
            operation: operation.into(),
            source,
        },
    }
}
