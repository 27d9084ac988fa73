//! Errors of the runtime, one variant for each kind of reaction of the caller.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use whelk_sys::errno_text;
use whelk_sys::fs::PathError;

pub type Result<T> = std::result::Result<T, Error>;

/// An error of the runtime. It is sent through a socket from the process being set up to its
/// parent, hence plain strings.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    /// The configuration is invalid, or asks for something that this host or version does not
    /// support.
    #[error("{0}")]
    Invalid(String),
    /// The configuration asks for something that would have effects outside the container. Nothing
    /// was created.
    #[error("{0}")]
    Refused(String),
    /// The program to run does not exist in the container.
    #[error("{0}")]
    CommandNotFound(String),
    /// The program to run exists but cannot be executed.
    #[error("{0}")]
    NotExecutable(String),
    /// The program to run is a directory.
    #[error("{0}")]
    ProgramIsDirectory(String),
    /// The working directory cannot be created, because a file is in its place or on its way.
    #[error("{0}")]
    NotADirectory(String),
    /// The working directory does not exist in the container.
    #[error("{0}")]
    NoWorkingDirectory(String),
    /// A user or group that is not in the container's files, or an id that is out of range.
    #[error("{0}")]
    NoSuchUser(String),
    /// The container is not in a state that allows the operation, or does not exist.
    #[error("{0}")]
    State(String),
    /// The log cannot be sent to its collector.
    #[error("{0}")]
    Logging(String),
    /// A system call failed: operation, object and cause. The second name is that of the error that
    /// shims of earlier versions send if a file does not exist.
    #[error("{0}")]
    #[serde(alias = "NoSuchFile")]
    Os(String),
    /// A system call failed because of a resource of the host that others may release
    /// ([`whelk_sys::is_exhausted`]): operation, object and cause. A resource that the container's
    /// own settings limit gives [`Error::Os`]: its memory ([`limit_memory`]), or the size of a tmpfs
    /// or volume that is mounted in it.
    #[error("{0}")]
    Exhausted(String),
}

/// Whether this process is in a cgroup that limits its memory, including the kernel's memory for
/// its system calls.
static IS_MEMORY_LIMITED: AtomicBool = AtomicBool::new(false);

/// Notes that this process, which becomes a container's, has entered a cgroup with a memory limit:
/// from now on a lack of memory (`ENOMEM`) is attributed to that limit, and waiting does not help.
///
/// The limits of processes and open files need no such note: they are set after all steps that
/// could reach them.
pub(crate) fn limit_memory() {
    IS_MEMORY_LIMITED.store(true, Ordering::Relaxed);
}

/// Whether an error means that a resource of the host is used up.
fn may_pass(error: &io::Error, is_memory_limited: bool) -> bool {
    let lacks_memory = error.raw_os_error() == Some(Errno::NOMEM.raw_os_error());
    whelk_sys::is_exhausted(error) && !(lacks_memory && is_memory_limited)
}

impl Error {
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    /// Converts a system call's error to [`Error::Exhausted`] or [`Error::Os`] with this text.
    pub fn kernel(text: String, error: &io::Error) -> Self {
        if may_pass(error, IS_MEMORY_LIMITED.load(Ordering::Relaxed)) {
            Self::Exhausted(text)
        } else {
            Self::Os(text)
        }
    }

    /// Prefixes the text with `step`, keeping the kind.
    pub fn during(self, step: &str) -> Self {
        let with = |text: String| format!("{step}: {text}");
        match self {
            Self::Invalid(text) => Self::Invalid(with(text)),
            Self::Refused(text) => Self::Refused(with(text)),
            Self::CommandNotFound(text) => Self::CommandNotFound(with(text)),
            Self::NotExecutable(text) => Self::NotExecutable(with(text)),
            Self::ProgramIsDirectory(text) => Self::ProgramIsDirectory(with(text)),
            Self::NotADirectory(text) => Self::NotADirectory(with(text)),
            Self::NoWorkingDirectory(text) => Self::NoWorkingDirectory(with(text)),
            Self::NoSuchUser(text) => Self::NoSuchUser(with(text)),
            Self::State(text) => Self::State(with(text)),
            Self::Logging(text) => Self::Logging(with(text)),
            Self::Os(text) => Self::Os(with(text)),
            Self::Exhausted(text) => Self::Exhausted(with(text)),
        }
    }
}

impl From<PathError> for Error {
    fn from(error: PathError) -> Self {
        Self::kernel(error.to_string(), &error.source)
    }
}

/// Returns a closure for `map_err` that converts an I/O error: `step` is the operation that failed.
pub(crate) fn os<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |error| {
        let error = error.into();
        Error::kernel(format!("{step}: {}", errno_text(&error)), &error)
    }
}

/// Like [`os`], with the object of the operation.
pub(crate) fn os_at<E: Into<io::Error>>(
    step: &'static str,
    object: impl AsRef<Path>,
) -> impl FnOnce(E) -> Error {
    move |error| {
        let error = error.into();
        Error::kernel(
            format!(
                "{step} {}: {}",
                object.as_ref().display(),
                errno_text(&error)
            ),
            &error,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_shims_of_earlier_versions_can_be_read() {
        let text = || "open /x: no such file or directory".to_owned();
        let sent = serde_json::json!({"NoSuchFile": text()});
        assert_eq!(
            serde_json::from_value::<Error>(sent).unwrap(),
            Error::Os(text())
        );
    }

    #[test]
    fn memory_errors_under_a_containers_own_limit_are_permanent() {
        for (errno, unlimited, limited) in [
            (Errno::NOMEM, true, false),
            (Errno::NOSPC, true, true),
            (Errno::NOENT, false, false),
        ] {
            let error = io::Error::from(errno);
            assert_eq!(
                (may_pass(&error, false), may_pass(&error, true)),
                (unlimited, limited),
                "{errno:?}"
            );
        }
    }
}
