//! What engine and shim say to each other.
//!
//! A shim outlives the engine that started it and may meet a newer one: fields are only ever added,
//! with defaults.
//!
//! ```text
//! message: length (u32, little-endian) | JSON
//!
//! engine ──Launch + descriptors──► shim          on the socket the shim is born with,
//!        ◄──Launched───────────────               which is a subscription from then on
//!        ◄─ Event … ───────────────
//!
//! anyone ──Request──► shim                       on a connection to shim.sock, one request each
//!        ◄──Reply────
//!        ◄─ Event … ─                            after Subscribe
//!        ◄═ bytes ══►                            after Attach, and Exec with streams: output in Docker's multiplexed
//!                                                frames (raw with a terminal), input raw, its end by half-close
//! ```

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use whelk_runtime::Rootfs;
use whelk_runtime::spec::{Process, Resources, Spec};
use whelk_runtime::user::UserRequest;

use crate::logs::LogConfig;

/// The largest message that is accepted, in bytes. Larger ones are not ours.
pub const LARGEST_MESSAGE: usize = 16 << 20;

/// Everything a shim needs to run its container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Launch {
    pub id: String,
    pub spec: Spec,
    pub rootfs: Rootfs,
    pub user: UserRequest,
    /// The container's directory below the run directory: socket and exit record are made there.
    pub run_dir: PathBuf,
    /// An empty directory for the runtime to attach root file systems on.
    pub scratch: PathBuf,
    /// File with the compiled seccomp filter; `None` for unconfined.
    pub filter: Option<PathBuf>,
    pub log: LogConfig,
    /// Keep the program's standard input open for clients to write to.
    pub stdin: bool,
    /// Close it when the first client that wrote to it leaves.
    pub stdin_once: bool,
    /// Clients that attached before the start; one descriptor each comes with this message.
    #[serde(default)]
    pub attached: Vec<Attach>,
    /// The first descriptor that comes with this message is the container's network namespace.
    #[serde(default)]
    pub network: bool,
    /// How many descriptors come next that are only to be kept open until the container has ended:
    /// published ports.
    #[serde(default)]
    pub ports: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Launched {
    /// The program runs. Times are nanoseconds since the epoch.
    Running {
        pid: i32,
        started_at: i64,
    },
    Failed(whelk_runtime::Error),
}

/// Which streams a client wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attach {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// Bytes that end the attachment when typed at a terminal; empty for none.
    pub detach_keys: Vec<u8>,
    /// Output without frames. When it is not said: as the process has a terminal.
    pub raw: Option<bool>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// All later events of this container, from its present state on.
    Subscribe,
    Attach(Attach),
    /// Runs a further process.
    Exec(Box<Exec>),
    /// Sends a signal to the first process, or to the exec named.
    Signal {
        exec: Option<String>,
        signal: i32,
    },
    /// Sets the size of the terminal of the first process, or of the exec named.
    Resize {
        exec: Option<String>,
        height: u16,
        width: u16,
    },
    Pause,
    Resume,
    Update(Box<Resources>),
    /// The pids of all processes, as the host numbers them.
    Processes,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exec {
    pub id: String,
    pub process: Process,
    pub user: UserRequest,
    pub filter: Option<PathBuf>,
    /// The streams that the client will use on this connection; none for a detached exec.
    pub attach: Option<Attach>,
    /// Open the program's standard input even though nobody writes to it yet.
    pub stdin: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Started { pid: i32 },
    Processes(Vec<i32>),
    Failed(whelk_runtime::Error),
}

/// What a subscriber is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The state at the time of the subscription.
    State {
        pid: i32,
        paused: bool,
        execs: Vec<(String, i32)>,
    },
    OutOfMemory,
    /// A client typed its keys to detach from the first process, or from the exec named.
    Detached {
        exec: Option<String>,
    },
    ExecExited {
        id: String,
        exit: Exit,
    },
    Exited(Exit),
}

/// How a process ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, or 128 + the signal's number.
    pub code: i32,
    pub signal: Option<i32>,
    #[serde(default)]
    pub oom_killed: bool,
    /// Nanoseconds since the epoch.
    pub at: i64,
}

/// A message with its length in front.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length =
        u32::try_from(bytes.len() - 4).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// The length that the first four bytes of a message announce.
///
/// # Errors
/// `InvalidData` above [`LARGEST_MESSAGE`].
pub fn announced(head: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(head) as usize;
    if length > LARGEST_MESSAGE {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("message of {length} bytes"),
        ))
    } else {
        Ok(length)
    }
}

/// Takes a complete message off the front of `buffer`, or `None` when more bytes are needed.
pub fn take<T: for<'de> Deserialize<'de>>(buffer: &mut Vec<u8>) -> io::Result<Option<T>> {
    let Some(head) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = announced(*head)?;
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    let message = serde_json::from_slice(&buffer[4..4 + length])?;
    buffer.drain(..4 + length);
    Ok(Some(message))
}

/// Writes a message to a blocking stream.
pub fn write<T: Serialize>(mut stream: impl Write, message: &T) -> io::Result<()> {
    stream.write_all(&encode(message)?)
}

/// Reads a message from a blocking stream.
pub fn read<T: for<'de> Deserialize<'de>>(mut stream: impl Read) -> io::Result<T> {
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let mut body = vec![0; announced(head)?];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// The header that Docker's clients expect in front of each piece of output without a terminal:
/// stream number (1 out, 2 error), three zero bytes, length (u32, big-endian).
pub fn output_header(stream: u8, length: usize) -> [u8; 8] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [stream, 0, 0, 0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_or_not_at_all() {
        let bytes = encode(&Reply::Started { pid: 7 }).unwrap();
        for cut in 0..bytes.len() {
            assert_eq!(take::<Reply>(&mut bytes[..cut].to_vec()).unwrap(), None);
        }
        let mut two = [bytes.clone(), bytes].concat();
        assert_eq!(
            take::<Reply>(&mut two).unwrap(),
            Some(Reply::Started { pid: 7 })
        );
        assert_eq!(
            take::<Reply>(&mut two).unwrap(),
            Some(Reply::Started { pid: 7 })
        );
        assert!(two.is_empty());
    }

    #[test]
    fn absurd_lengths_are_refused() {
        assert!(take::<Reply>(&mut vec![0xff; 8]).is_err());
    }
}
