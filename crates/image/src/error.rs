//! What can go wrong with images, by what the caller does about it.

use whelk_sys::fs::PathError;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What came from outside is malformed, damaged or hostile.
    #[error("{0}")]
    Invalid(String),
    /// The store does not have it.
    #[error("{0}")]
    NotFound(String),
    #[error(transparent)]
    Path(#[from] PathError),
    /// Reading a stream or writing one failed.
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

    /// Puts the step in front of the cause.
    #[must_use]
    pub fn during(self, step: &str) -> Self {
        match self {
            Self::Invalid(text) => Self::Invalid(format!("{step}: {text}")),
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

/// What a parser says, without the bytes that it may quote.
fn parser_text(error: &std::io::Error) -> String {
    let text = error.to_string();
    // The first field of a header that is looked at is its checksum: what has none that can be read
    // is something else.
    if text.contains("when getting cksum") {
        "not a tar archive".into()
    } else {
        text.escape_debug().to_string()
    }
}

/// For `map_err`: what was being done. What the kernel did not say itself, parsers said about the
/// sender's bytes; and some of what the kernel says is about names and values that the sender
/// chose.
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
