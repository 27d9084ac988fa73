//! What can go wrong in the engine, by what the caller does about it. `api` maps each kind to a status code.

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    NotFound(String),
    /// It exists already, or is in a state that forbids the operation.
    #[error("{0}")]
    Conflict(String),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// It is already so.
    #[error("{0}")]
    NotModified(String),
    /// This version cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// The engine or the machine failed.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    pub fn conflict(text: impl Into<String>) -> Self {
        Self::Conflict(text.into())
    }

    pub fn internal(text: impl Into<String>) -> Self {
        Self::Internal(text.into())
    }

    pub fn no_such_container(name: &str) -> Self {
        Self::NotFound(format!("No such container: {name}"))
    }

    pub fn no_such_image(name: &str) -> Self {
        Self::NotFound(format!("No such image: {name}"))
    }
}

impl From<whelk_sys::fs::PathError> for Error {
    fn from(error: whelk_sys::fs::PathError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Internal(format!("the engine's store: {error}"))
    }
}

impl From<whelk_image::Error> for Error {
    fn from(error: whelk_image::Error) -> Self {
        match error {
            whelk_image::Error::Invalid(text) => Self::Invalid(text),
            whelk_image::Error::NotFound(text) => Self::NotFound(text),
            other => Self::Internal(other.to_string()),
        }
    }
}
