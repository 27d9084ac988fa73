//! A program whose standard input and output are a byte stream, such as `ssh`.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// Maximum number of bytes of a program's error output that an error quotes.
const MAX_ERRORS: u64 = 4096;
/// How long a program may take to exit after its output has ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// A command line that connects to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program and its arguments.
    pub words: Vec<String>,
    /// The command line as errors show it.
    pub shown: String,
}

/// The program ended before it sent anything.
#[derive(Debug, thiserror::Error)]
#[error(
    "command [{shown}] has exited with {}, make sure the URL is valid, and Docker 18.09 or later is installed on the remote host: stderr={stderr}",
    described(.status)
)]
pub struct ProgramEnded {
    shown: String,
    status: Option<ExitStatus>,
    stderr: String,
}

impl ProgramEnded {
    /// Returns the exit code, if the program was not killed.
    pub fn code(&self) -> Option<i32> {
        self.status?.code()
    }
}

/// Returns why a connection ended, if its program exited before it sent anything.
pub fn program_ended(error: &io::Error) -> Option<&ProgramEnded> {
    error.get_ref()?.downcast_ref()
}

fn described(status: &Option<ExitStatus>) -> String {
    match status {
        None => "its output closed".into(),
        // In Go's words.
        Some(status) => match status.code() {
            Some(code) => format!("exit status {code}"),
            None => status.to_string(),
        },
    }
}

impl Program {
    /// Starts the program.
    ///
    /// # Errors
    /// Returns an error if it cannot be executed.
    pub(crate) fn start(&self) -> io::Result<Stream> {
        let (name, arguments) = self
            .words
            .split_first()
            .ok_or(io::ErrorKind::InvalidInput)?;
        // One socket for both directions, whose input can be closed on its own.
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let ours = UnixStream::from_std(ours)?;
        let input = OwnedFd::from(theirs.try_clone()?);
        let mut child = Command::new(name)
            .args(arguments)
            .stdin(input)
            .stdout(OwnedFd::from(theirs))
            .stderr(Stdio::piped())
            .spawn()?;
        let (sender, errors) = oneshot::channel();
        if let Some(stderr) = child.stderr.take() {
            std::thread::spawn(move || drop(sender.send(beginning_of(stderr))));
        }
        Ok(Stream {
            stream: ours,
            child: Running(child),
            errors,
            stderr: None,
            patience: None,
            shown: self.shown.clone(),
            has_answered: false,
        })
    }
}

/// Reads a program's error output to its end, so that the program is not blocked, and returns its
/// beginning.
fn beginning_of(mut stderr: impl Read) -> String {
    let mut text = Vec::new();
    let _ = (&mut stderr).take(MAX_ERRORS).read_to_end(&mut text);
    let _ = io::copy(&mut stderr, &mut io::sink());
    String::from_utf8_lossy(&text).into_owned()
}

/// A child process, which is killed on drop.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// The byte stream of a running program.
#[derive(Debug)]
pub struct Stream {
    stream: UnixStream,
    child: Running,
    errors: oneshot::Receiver<String>,
    stderr: Option<String>,
    patience: Option<Pin<Box<tokio::time::Sleep>>>,
    shown: String,
    has_answered: bool,
}

impl Stream {
    /// Waits until the program has closed its error output, and returns why it ended.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.stderr.is_none() {
            let patience = self
                .patience
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
            match Pin::new(&mut self.errors).poll(cx) {
                Poll::Ready(stderr) => self.stderr = Some(stderr.unwrap_or_default()),
                Poll::Pending if patience.as_mut().poll(cx).is_pending() => return Poll::Pending,
                Poll::Pending => self.stderr = Some(String::new()),
            }
        }
        // A program whose output has ended exits at once, if it does.
        let mut status = None;
        for _ in 0..50 {
            status = self.child.0.try_wait().ok().flatten();
            if status.is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Poll::Ready(io::Error::other(ProgramEnded {
            shown: self.shown.clone(),
            status,
            stderr: self.stderr.clone().unwrap_or_default(),
        }))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let has_room = buffer.remaining() > 0;
        match Pin::new(&mut self.stream).poll_read(cx, buffer) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(())) if buffer.filled().len() > before => self.has_answered = true,
            Poll::Ready(read) if self.has_answered || !has_room => return Poll::Ready(read),
            Poll::Ready(_) => return self.poll_end(cx).map(Err),
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(cx, bytes) {
            Poll::Ready(Err(_)) if !self.has_answered => self.poll_end(cx).map(Err),
            written => written,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn shell(script: &str) -> Stream {
        let words = ["sh", "-c", script].map(str::to_owned).to_vec();
        let shown = "sh script".to_owned();
        Program { words, shown }.start().unwrap()
    }

    #[tokio::test]
    async fn input_is_closed_before_output() {
        let mut stream = shell("cat; echo end");
        stream.write_all(b"text ").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut output = String::new();
        stream.read_to_string(&mut output).await.unwrap();
        assert_eq!(output, "text end\n");
    }

    #[tokio::test]
    async fn the_reason_of_an_early_end_is_told() {
        let mut stream = shell("echo why >&2; exit 7");
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(program_ended(&error).unwrap().code(), Some(7));
        assert_eq!(
            error.to_string(),
            "command [sh script] has exited with exit status 7, make sure the URL is valid, and Docker 18.09 or later is installed on the remote host: stderr=why\n"
        );
        // The end of the output alone is no error.
        let mut stream = shell("printf x; exit 7");
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        let end = stream.read_u8().await.unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn the_program_ends_with_the_connection() {
        let stream = shell("exec sleep 600");
        let path = format!("/proc/{}", stream.child.0.id());
        assert!(std::path::Path::new(&path).exists());
        drop(stream);
        assert!(!std::path::Path::new(&path).exists());
    }
}
