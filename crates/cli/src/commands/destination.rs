//! Where `export` and `save` write an archive to.

use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use http_body_util::BodyExt;
use tokio::signal::unix::{SignalKind, signal};

use crate::files::stage;
use crate::output::failed;
use crate::{Failure, Outcome, plain, terminal};

/// Standard output, or a file that is renamed into place when it is complete.
pub(super) struct Destination<'a>(Option<&'a str>);

impl<'a> Destination<'a> {
    /// Checks a destination before the request is sent. `what` is the object to write, for the
    /// error's text.
    ///
    /// # Errors
    /// Returns an error if standard output is a terminal, and if renaming a file to the path would
    /// fail or replace something other than a regular file, such as `/dev/null`.
    pub(super) fn new(path: Option<&'a str>, what: &str) -> Outcome<Self> {
        let Some(path) = path.filter(|path| !path.is_empty()) else {
            if terminal::stdout_is_terminal() {
                return Err(Failure::new(
                    "cowardly refusing to save to a terminal. Use the -o flag or redirect",
                ));
            }
            return Ok(Self(None));
        };
        let action = if what == "image" { "save" } else { "export" };
        check(Path::new(path))
            .map_err(|reason| Failure::new(format!("failed to {action} {what}: {reason}")))?;
        Ok(Self(Some(path)))
    }

    /// Writes a response's body. If SIGINT or SIGTERM ends the command meanwhile, the incomplete file
    /// is removed.
    pub(super) async fn write_body(
        self,
        response: hyper::Response<hyper::body::Incoming>,
    ) -> Outcome<()> {
        let Some(path) = self.0 else {
            return copy(response, &mut std::io::stdout(), "/dev/stdout").await;
        };
        let fail = |error: std::io::Error| Failure::new(format!("write {path}: {}", plain(&error)));
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut terminated = signal(SignalKind::terminate())?;
        let (mut file, staged) = stage(Path::new(path)).map_err(fail)?;
        let written = tokio::select! {
            written = copy(response, &mut file, path) => written,
            _ = interrupted.recv() => Err(ended_by(SignalKind::interrupt())),
            _ = terminated.recv() => Err(ended_by(SignalKind::terminate())),
        };
        // Synced first: the rename may be on the disk before the data otherwise.
        let synced = written.and_then(|()| file.sync_all().map_err(fail));
        let renamed = synced.and_then(|()| std::fs::rename(&staged, path).map_err(fail));
        if renamed.is_err() {
            let _ = std::fs::remove_file(&staged);
        }
        renamed
    }
}

/// Returns the outcome of a command that a signal has ended, with the exit code that shells report
/// for one that it has killed.
fn ended_by(signal: SignalKind) -> Failure {
    Failure::with_code(128 + u8::try_from(signal.as_raw_value()).unwrap_or(0), "")
}

pub(super) async fn copy(
    response: hyper::Response<hyper::body::Incoming>,
    output: &mut dyn Write,
    name: &str,
) -> Outcome<()> {
    let unwritten = |error: std::io::Error| failed(&error, name);
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Failure::new(format!("the engine ended the stream prematurely: {error}"))
        })?;
        if let Ok(data) = frame.into_data() {
            output.write_all(&data).map_err(unwritten)?;
        }
    }
    output.flush().map_err(unwritten)
}

/// Checks that renaming a file to `path` creates or replaces a regular file. Symbolic links are not
/// followed, as rename(2) does not.
fn check(path: &Path) -> Result<(), String> {
    let unusable = |path: &Path, error: &std::io::Error| {
        Err(format!(
            "invalid output path: stat {}: {}",
            path.display(),
            plain(error)
        ))
    };
    match path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        None => {}
        Some(parent) => match std::fs::metadata(parent) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return unusable(parent, &std::io::ErrorKind::NotADirectory.into()),
            Err(error) => return unusable(parent, &error),
        },
    }
    let kind = match std::fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return unusable(path, &error),
    };
    let what = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_symlink() => "a symbolic link directly",
        () if kind.is_fifo() => "a named pipe (FIFO)",
        () if kind.is_socket() => "a socket",
        () if kind.is_char_device() => "a character device file",
        () => "a block device file",
    };
    Err(format!("cannot write to {what}"))
}

#[cfg(test)]
mod tests {
    use whelk_sys::Scratch;

    use super::*;

    #[test]
    fn only_regular_files_are_replaced() {
        let scratch = Scratch::temporary("destination").unwrap();
        let dir = scratch.path();
        let (file, link) = (dir.join("file"), dir.join("link"));
        std::fs::write(&file, "x").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
        let checked = |path: &Path| check(path).err().unwrap_or_default();
        for path in [&file, &dir.join("new"), Path::new("relative")] {
            assert_eq!(checked(path), "", "{}", path.display());
        }
        assert_eq!(checked(dir), "cannot write to a directory");
        assert_eq!(checked(&link), "cannot write to a symbolic link directly");
        assert_eq!(checked(&dir.join("socket")), "cannot write to a socket");
        assert_eq!(
            checked(Path::new("/dev/full")),
            "cannot write to a character device file"
        );
        assert_eq!(
            checked(Path::new("/nosuch/x")),
            "invalid output path: stat /nosuch: no such file or directory"
        );
        assert_eq!(
            checked(&file.join("x")),
            format!(
                "invalid output path: stat {}: not a directory",
                file.display()
            )
        );
        let long = dir.join("n".repeat(255));
        let staged = [&file, &long, &long].map(|path| stage(path).unwrap().1);
        assert!(staged.iter().all(|path| path.parent() == Some(dir)));
        assert_ne!(staged[1], staged[2]);
        std::fs::rename(&staged[1], &long).unwrap();
    }
}
