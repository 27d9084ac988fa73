//! The streams of a container at this terminal: what `run`, `start -a`, `attach` and `exec` share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use whelk_client::RawStream;

use crate::client::{ApiError, Client, escape_name};
use crate::output::{warn_line, write_err, write_out};
use crate::terminal::{self, Raw};
use crate::{Failure, Outcome};

/// Properties of an attached connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Streams {
    pub stdin: bool,
    pub tty: bool,
    pub detach_keys: String,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Output,
    Detached,
    /// The connection broke.
    Lost,
}

/// A container's processes do not depend on the engine's.
pub(crate) const KEEPS_RUNNING: &str = "; the container keeps running";

/// Returns the error of a command whose connection to the engine ended while it was `doing` something
/// with a container. `hint` follows, and should begin with [`KEEPS_RUNNING`] if the container ran.
pub(crate) fn lost(doing: &str, container: &str, hint: &str) -> Failure {
    let mut failure = Failure::new(format!(
        "connection to the engine lost while {doing} container {container}{hint}"
    ));
    failure.hint = false;
    failure
}

/// Returns the error of a command that was attached to a container's main process.
pub(crate) fn lost_attached(container: &str) -> Failure {
    let hint = format!("{KEEPS_RUNNING}, and \"whelk attach {container}\" continues with it");
    lost("attached to", container, &hint)
}

/// Converts the error of a request that was waiting for the end of a container.
pub(crate) fn unless_lost(error: ApiError, lost: impl FnOnce() -> Failure) -> Failure {
    if error.lost { lost() } else { error.into() }
}

/// Copies input and output until the output ends or the detach keys are typed.
pub(crate) async fn pump(connection: RawStream, streams: &Streams) -> Outcome<Ended> {
    let keys = terminal::detach_keys(&streams.detach_keys)?;
    let raw = if streams.tty && streams.stdin {
        Raw::enter()
    } else {
        None
    };
    let (mut read, mut write) = tokio::io::split(connection);
    let input = async {
        if !streams.stdin {
            let _ = write.shutdown().await;
            return std::future::pending().await;
        }
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; 32 << 10];
        let mut matched = 0;
        loop {
            let Ok(count) = stdin.read(&mut buffer).await else {
                return std::future::pending().await;
            };
            if count == 0 {
                let _ = write.shutdown().await;
                return std::future::pending().await;
            }
            if streams.tty && raw.is_some() {
                for &byte in &buffer[..count] {
                    matched = if byte == keys[matched] {
                        matched + 1
                    } else {
                        usize::from(byte == keys[0])
                    };
                    if matched == keys.len() {
                        return Ended::Detached;
                    }
                }
            }
            if send_input(&mut write, &buffer[..count]).await.is_err() {
                return std::future::pending().await;
            }
        }
    };
    let output = copy_output(&mut read, streams.tty);
    let ended = tokio::select! {
        ended = input => ended,
        result = output => result?,
    };
    drop(raw);
    Ok(ended)
}

/// Sends input completely: TLS keeps what the socket has no room for until it is asked again, which may
/// be never while no more input comes.
async fn send_input(write: &mut (impl AsyncWriteExt + Unpin), input: &[u8]) -> std::io::Result<()> {
    write.write_all(input).await?;
    write.flush().await
}

/// Copies output to this terminal: raw with a TTY, otherwise demultiplexed to standard output and
/// standard error. Returns whether it ended or the connection was lost.
pub(crate) async fn copy_output(
    read: &mut (impl AsyncReadExt + Unpin),
    tty: bool,
) -> Outcome<Ended> {
    let mut buffer = vec![0; 64 << 10];
    if tty {
        loop {
            let count = match read.read(&mut buffer).await {
                Ok(0) => return Ok(Ended::Output),
                Ok(count) => count,
                Err(_) => return Ok(Ended::Lost),
            };
            write_out(&buffer[..count])?;
        }
    }
    demultiplex(read).await
}

/// Demultiplexes the framed stream (8-byte header: stream, length) until it ends.
async fn demultiplex(read: &mut (impl AsyncReadExt + Unpin)) -> Outcome<Ended> {
    const STDERR: u8 = 2;
    let mut buffer = Vec::with_capacity(64 << 10);
    loop {
        match read.read_buf(&mut buffer).await {
            Ok(0) => return Ok(Ended::Output),
            Ok(_) => {}
            Err(_) => return Ok(Ended::Lost),
        }
        let mut start = 0;
        while let Some([stream, _, _, _, a, b, c, d]) = buffer[start..].first_chunk::<8>() {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            let Some(data) = buffer.get(start + 8..start + 8 + length) else {
                let needed = start + 8 + length - buffer.len();
                buffer.reserve(needed);
                break;
            };
            if *stream == STDERR {
                write_err(data)?;
            } else {
                write_out(data)?;
            }
            start += 8 + length;
        }
        buffer.drain(..start);
    }
}

/// Sends the terminal's size to the engine now and on every SIGWINCH, until the task is aborted.
pub(crate) fn follow_size(client: &Client, path: String) -> tokio::task::JoinHandle<()> {
    let client = client.clone();
    tokio::spawn(async move {
        let Ok(mut changes) = signal(SignalKind::window_change()) else {
            return;
        };
        loop {
            if let Some((height, width)) = terminal::size() {
                let _ = client
                    .post_no_content(&format!("{path}?h={height}&w={width}"))
                    .await;
            }
            if changes.recv().await.is_none() {
                return;
            }
        }
    })
}

/// Resizes a container's terminal to a different size for a moment: a program redraws its screen,
/// and a shell its prompt, only when the size changes.
pub(super) async fn redraw(client: &Client, name: &str) {
    if let Some((height, width)) = terminal::size() {
        let (height, width) = (height.saturating_add(1), width.saturating_add(1));
        // `follow_size` sets the correct size afterwards.
        let _ = client
            .post_no_content(&format!("/containers/{name}/resize?h={height}&w={width}"))
            .await;
    }
}

/// Forwards signals to the container until the task is aborted. The third SIGINT or SIGTERM ends
/// this process, whether the container stops or not.
pub(crate) fn forward_signals(client: &Client, id: &str) -> tokio::task::JoinHandle<()> {
    let (client, id) = (client.clone(), id.to_owned());
    tokio::spawn(async move {
        let kinds = [
            (SignalKind::interrupt(), "INT"),
            (SignalKind::terminate(), "TERM"),
            (SignalKind::hangup(), "HUP"),
            (SignalKind::quit(), "QUIT"),
            (SignalKind::user_defined1(), "USR1"),
            (SignalKind::user_defined2(), "USR2"),
        ];
        let (sender, mut received) = tokio::sync::mpsc::unbounded_channel();
        let mut tasks = tokio::task::JoinSet::new();
        let terminations = Arc::new(AtomicU32::new(0));
        for (kind, name) in kinds {
            let (sender, terminations) = (sender.clone(), terminations.clone());
            tasks.spawn(async move {
                let Ok(mut arrived) = signal(kind) else {
                    return;
                };
                while arrived.recv().await.is_some() {
                    if matches!(name, "INT" | "TERM")
                        && terminations.fetch_add(1, Ordering::Relaxed) + 1 == MAX_TERMINATIONS
                    {
                        exit_forcefully();
                    }
                    if sender.send(name).is_err() {
                        return;
                    }
                }
            });
        }
        // The counter above works even while the engine does not respond.
        while let Some(name) = received.recv().await {
            let _ = client
                .post_no_content(&format!("/containers/{id}/kill?signal={name}"))
                .await;
        }
    })
}

/// Number of SIGINT and SIGTERM after which this process exits.
const MAX_TERMINATIONS: u32 = 3;

fn exit_forcefully() -> ! {
    warn_line!("\ngot {MAX_TERMINATIONS} SIGTERM/SIGINTs, forcefully exiting");
    std::process::exit(1)
}

/// Returns the path and query of an attach request.
pub(crate) fn attach_path(
    id: &str,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    detach_keys: &str,
) -> String {
    let on = |flag: bool| if flag { "1" } else { "" };
    format!(
        "/containers/{}/attach{}",
        escape_name(id),
        crate::client::query(&[
            ("stream", "1"),
            ("stdin", on(stdin)),
            ("stdout", on(stdout)),
            ("stderr", on(stderr)),
            ("detachKeys", detach_keys)
        ])
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::BufWriter;

    use super::*;

    #[tokio::test]
    async fn input_is_flushed_before_more_arrives() {
        let (mut engine, connection) = tokio::io::duplex(1 << 10);
        // Like TLS, this keeps what is not flushed.
        let mut connection = BufWriter::new(connection);
        send_input(&mut connection, b"input").await.unwrap();
        let mut received = [0; 5];
        let read = engine.read_exact(&mut received);
        let read = tokio::time::timeout(Duration::from_secs(20), read).await;
        read.unwrap().unwrap();
        assert_eq!(&received, b"input");
    }
}
