//! The `system dial-stdio` command, which `ssh://` hosts run.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::client::Client;
use crate::output::failed;
use crate::{Failure, Outcome, plain};

/// Size of the pieces that are copied, in bytes.
const PIECE: usize = 64 << 10;

/// Connects standard input and output to the engine. The end of the input is passed on; the command
/// ends with the engine's output, or when the input has ended and the output has no reader any more.
/// Neither direction waits for the other one.
pub(super) async fn dial_stdio(client: &Client) -> Outcome {
    let connection = client.connect().await.map_err(|error| {
        let text = client.unreachable(&error);
        Failure::new(format!("failed to open the raw stream connection: {text}"))
    })?;
    let (from_engine, mut to_engine) = tokio::io::split(connection);
    let input = tokio::spawn(async move {
        let mut stdin = tokio::io::stdin();
        // An engine that does not read any more ends the output as well.
        let _ = tokio::io::copy(&mut stdin, &mut to_engine).await;
        let _ = to_engine.shutdown().await;
    });
    let abort = input.abort_handle();
    let abandoned = async {
        let _ = input.await;
        // The engine may send nothing for hours, and a lost reader shows only when something is written.
        match tokio::task::spawn_blocking(|| reader_left(std::io::stdout())).await {
            Ok(Ok(())) => Error::from(ErrorKind::BrokenPipe),
            Ok(Err(_)) | Err(_) => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        copied = copy_out(from_engine) => copied,
        error = abandoned => Err(failed(&error, "/dev/stdout")),
    };
    abort.abort();
    outcome.map(|()| 0)
}

/// Copies the engine's output to standard output, on a thread that may block.
async fn copy_out(mut from_engine: impl AsyncRead + Unpin) -> Outcome<()> {
    let mut stdout = tokio::io::stdout();
    let mut piece = vec![0; PIECE];
    loop {
        let count = from_engine.read(&mut piece).await.map_err(|error| {
            Failure::new(format!("read the engine's output: {}", plain(&error)))
        })?;
        if count == 0 {
            return Ok(());
        }
        let written = async {
            stdout.write_all(&piece[..count]).await?;
            stdout.flush().await
        };
        let written = written.await;
        written.map_err(|error| failed(&error, "/dev/stdout"))?;
    }
}

/// Blocks until a pipe or socket has no reader any more; forever for other files.
fn reader_left(output: impl AsFd) -> Result<()> {
    loop {
        // Without flags, only POLLERR and POLLHUP are reported (poll(2)).
        let mut ready = [PollFd::new(&output, PollFlags::empty())];
        match poll(&mut ready, None) {
            Ok(_) | Err(Errno::INTR) if ready[0].revents().is_empty() => {}
            Ok(_) | Err(Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic with its place is all the error handling that a test needs"
)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use super::*;

    fn watch(output: impl AsFd + Send + 'static) -> Receiver<Result<()>> {
        let (sender, left) = channel();
        std::thread::spawn(move || sender.send(reader_left(output)));
        left
    }

    #[test]
    fn detects_that_the_reader_has_closed() {
        let long = Duration::from_secs(20);
        let (reader, writer) = std::io::pipe().unwrap();
        let (near, far) = UnixStream::pair().unwrap();
        let left = [watch(writer), watch(near.try_clone().unwrap())];
        // The far side still reads after it has shut down its sending direction.
        far.shutdown(std::net::Shutdown::Write).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(left.iter().all(|left| left.try_recv().is_err()));
        drop((reader, far));
        for left in left {
            left.recv_timeout(long).unwrap().unwrap();
        }
    }
}
