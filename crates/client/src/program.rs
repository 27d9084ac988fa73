//! A program whose standard input and output are a byte stream, such as `ssh`.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::oneshot;

/// Maximum number of bytes of a program's error output that an error quotes.
const MAX_ERRORS: u64 = 4096;
/// How long a program may take to exit after its output has ended.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long its error output may take to end after that.
const STDERR_PATIENCE: Duration = Duration::from_secs(1);
/// The time between two looks at whether a program has exited.
const TICK: Duration = Duration::from_millis(2);

/// A command line that connects to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program and its arguments.
    pub words: Vec<String>,
    /// The command line as errors show it.
    pub shown: String,
}

/// The program ended before it sent anything, or failed.
#[derive(Clone, Debug, thiserror::Error)]
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
    fn is_success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// Returns the exit code, if the program was not killed.
    pub fn code(&self) -> Option<i32> {
        self.status?.code()
    }
}

/// Returns why a connection ended, if its program exited before it sent anything, or failed.
pub fn program_ended(error: &io::Error) -> Option<&ProgramEnded> {
    error.get_ref()?.downcast_ref()
}

fn described(status: &Option<ExitStatus>) -> String {
    match status {
        None => "its output closed".into(),
        // The text of Go's `os/exec`, which Docker's CLI prints.
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
            state: ProgramState::Running(Box::pin(end(Running(child), errors, self.shown.clone()))),
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

impl Running {
    /// Waits until the process exits; `None` if it does not within [`PATIENCE`].
    async fn exit(&mut self) -> Option<ExitStatus> {
        let exit = async {
            loop {
                if let Ok(Some(status)) = self.0.try_wait() {
                    return status;
                }
                tokio::time::sleep(TICK).await;
            }
        };
        tokio::time::timeout(PATIENCE, exit).await.ok()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(Some(_))) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Waits until the program has exited, and returns how.
async fn end(mut child: Running, errors: oneshot::Receiver<String>, shown: String) -> ProgramEnded {
    let status = child.exit().await;
    // A process that ssh has left in the background may keep the error output open.
    let stderr = tokio::time::timeout(STDERR_PATIENCE, errors).await;
    ProgramEnded {
        shown,
        status,
        stderr: stderr.ok().and_then(Result::ok).unwrap_or_default(),
    }
}

/// The state of a stream's program.
enum ProgramState {
    /// Polled when its output has ended, or when it reads no more input. The program is killed if this
    /// is dropped.
    Running(Pin<Box<dyn Future<Output = ProgramEnded> + Send + Sync>>),
    Ended(ProgramEnded),
}

/// The byte stream of a running program.
pub struct Stream {
    stream: UnixStream,
    state: ProgramState,
    shown: String,
    has_answered: bool,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("shown", &self.shown)
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// Waits until the program has exited. Returns an error unless it has answered and succeeded.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = match &mut self.state {
            ProgramState::Running(end) => {
                let ended = ready!(end.as_mut().poll(cx));
                self.state = ProgramState::Ended(ended.clone());
                ended
            }
            ProgramState::Ended(ended) => ended.clone(),
        };
        Poll::Ready(if self.has_answered && ended.is_success() {
            Ok(())
        } else {
            Err(io::Error::other(ended))
        })
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        match ready!(Pin::new(&mut self.stream).poll_read(cx, buffer)) {
            Ok(()) if buffer.filled().len() > before => {
                self.has_answered = true;
                Poll::Ready(Ok(()))
            }
            // Also if the program exited without reading all of its input (ECONNRESET).
            Ok(()) | Err(_) => self.poll_end(cx),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match ready!(Pin::new(&mut self.stream).poll_write(cx, bytes)) {
            // It may have answered before, which is to be read.
            Err(error) if !self.has_answered => {
                Poll::Ready(Err(ready!(self.poll_end(cx)).err().unwrap_or(error)))
            }
            written => Poll::Ready(written),
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
    async fn reports_the_error_output_of_a_program_that_ended_early() {
        let mut stream = shell("echo why >&2; exit 7");
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(program_ended(&error).unwrap().code(), Some(7));
        assert_eq!(
            error.to_string(),
            "command [sh script] has exited with exit status 7, make sure the URL is valid, and Docker 18.09 or later is installed on the remote host: stderr=why\n"
        );
    }

    #[tokio::test]
    async fn a_program_that_fails_does_not_end_its_output_cleanly() {
        for (script, expected) in [
            ("printf x", None),
            ("printf x; echo why >&2; exit 255", Some("exit status 255")),
            ("printf x; kill -9 $$", Some("signal: 9")),
        ] {
            let mut stream = shell(script);
            let mut output = Vec::new();
            let read = stream.read_to_end(&mut output).await;
            assert_eq!(output, b"x");
            let told = read.err().map(|error| error.to_string());
            assert_eq!(told.is_some(), expected.is_some(), "{script}: {told:?}");
            assert!(told.unwrap_or_default().contains(expected.unwrap_or("")));
        }
        // Input that is not read is no failure.
        let mut stream = shell("printf x");
        let _ = stream.write_all(b"input").await;
        let mut output = Vec::new();
        stream.read_to_end(&mut output).await.unwrap();
        assert_eq!(output, b"x");
    }

    #[tokio::test]
    async fn waiting_for_the_exit_does_not_block_other_tasks() {
        let mut stream = shell("printf x; exec >&- <&-; sleep 1; exit 3");
        let mut ticks = 0;
        let mut output = Vec::new();
        let reading = stream.read_to_end(&mut output);
        tokio::pin!(reading);
        let read = loop {
            tokio::select! {
                biased;
                read = &mut reading => break read,
                () = tokio::time::sleep(Duration::from_millis(1)) => ticks += 1,
            }
        };
        let error = read.unwrap_err();
        assert_eq!(program_ended(&error).unwrap().code(), Some(3));
        assert!(ticks > 10, "{ticks}");
    }

    #[tokio::test]
    async fn the_program_ends_with_the_connection() {
        let mut stream = shell("printf '%s ' $$; exec sleep 600");
        let mut pid = Vec::new();
        while !pid.ends_with(b" ") {
            pid.push(stream.read_u8().await.unwrap());
        }
        let path = format!("/proc/{}", String::from_utf8_lossy(&pid).trim());
        assert!(std::path::Path::new(&path).exists());
        drop(stream);
        assert!(!std::path::Path::new(&path).exists());
    }
}
