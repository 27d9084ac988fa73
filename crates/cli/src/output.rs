//! Writes to standard output and standard error.
//!
//! `println!` panics if it cannot write, so nothing else in this crate prints. A command whose
//! output has no reader any more ends silently with the exit code that a shell reports for
//! Docker's CLI, which SIGPIPE kills; any other error is the command's error.

use std::io::Write;

use crate::{Failure, Outcome, plain};

/// The exit code that shells report for a process killed by SIGPIPE (128 + 13).
const CLOSED_PIPE: u8 = 141;

/// Writes a formatted line to standard output.
macro_rules! print_line {
    ($($argument:tt)*) => {
        $crate::output::print(&format!("{}\n", format_args!($($argument)*)))
    };
}

/// Writes a formatted line to standard error. Errors are ignored: there is no other place to
/// report them.
macro_rules! warn_line {
    ($($argument:tt)*) => {
        $crate::output::warn(&format!("{}\n", format_args!($($argument)*)))
    };
}

pub(crate) use {print_line, warn_line};

/// Writes text to standard output.
pub(crate) fn print(text: &str) -> Outcome<()> {
    write_out(text.as_bytes())
}

/// Writes text to standard error, ignoring errors.
pub(crate) fn warn(text: &str) {
    warn_bytes(text.as_bytes());
}

/// Writes bytes to standard error, ignoring errors.
pub(crate) fn warn_bytes(bytes: &[u8]) {
    let _ = std::io::stderr().write_all(bytes);
}

/// Writes bytes to standard output without buffering them.
pub(crate) fn write_out(bytes: &[u8]) -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|error| failed(&error, "/dev/stdout"))
}

/// Writes bytes of a container's output to standard error.
pub(crate) fn write_err(bytes: &[u8]) -> Outcome<()> {
    std::io::stderr()
        .write_all(bytes)
        .map_err(|error| failed(&error, "/dev/stderr"))
}

/// Converts an error of writing a command's output to `name`.
pub(crate) fn failed(error: &std::io::Error, name: &str) -> Failure {
    let failure = if error.kind() == std::io::ErrorKind::BrokenPipe {
        Failure::with_code(CLOSED_PIPE, "")
    } else {
        Failure::new(format!("write {name}: {}", plain(error)))
    };
    Failure {
        is_unwritten: true,
        ..failure
    }
}

impl Failure {
    /// Returns whether the output has no reader any more, so that the command must end.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        self.is_unwritten && self.code == CLOSED_PIPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_silent() {
        let closed = failed(&std::io::ErrorKind::BrokenPipe.into(), "/dev/stdout");
        assert!(closed.is_closed_pipe());
        let full = std::io::Error::from(rustix::io::Errno::NOSPC);
        let full = failed(&full, "/dev/stdout");
        assert_eq!(full.text, "write /dev/stdout: no space left on device");
        assert_eq!((full.code, full.is_closed_pipe()), (1, false));
    }
}
