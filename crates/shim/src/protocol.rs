//! The protocol between engine and shim.
//!
//! A shim outlives the engine that started it and may talk to a newer one: fields are only ever
//! added, with defaults.
//!
//! ```text
//! message: length (u32, little-endian) | JSON
//!
//! engine ─ContainerLaunch + fds──► shim          on the socket that the shim inherits,
//!        ◄──Launched───────────────               which then becomes a subscription
//!        ◄─ Event … ───────────────
//!
//! anyone ──Request──► shim                       on a connection to shim.sock, one request each, or
//!                                                one after another if each is an exec that tells its exit
//!        ◄──Reply────
//!        ◄─ Event … ─                            after Subscribe
//!        ◄═ bytes ══►                            after Attach, and Exec with streams: output in Docker's multiplexed
//!                                                frames (raw with a terminal), input raw and ended by half-close
//! ```

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use whelk_runtime::Rootfs;
use whelk_runtime::launch::NodeOfUser;
use whelk_runtime::spec::{Process, Resources, Spec};
use whelk_runtime::user::UserRequest;

use crate::logs::LogConfig;

/// The stream number of the frame that tells an exec's exit; Docker's are 0 to 3.
pub const EXIT_STREAM: u8 = 4;

/// Size limit of a message in bytes.
pub const MAX_MESSAGE: usize = 16 << 20;

/// Everything a shim needs to run its container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerLaunch {
    pub id: String,
    pub spec: Spec,
    pub rootfs: Rootfs,
    pub user: UserRequest,
    /// The container's run directory, in which socket and exit record are created.
    pub run_dir: PathBuf,
    /// Empty directory for the runtime to attach root file systems to.
    pub scratch: PathBuf,
    /// File with the compiled seccomp filter; `None` for an unconfined container.
    pub filter: Option<PathBuf>,
    pub log: LogConfig,
    /// Whether to keep the program's standard input open for clients to write to.
    pub stdin: bool,
    /// Whether to close it when the first client that has written to it detaches.
    pub stdin_once: bool,
    /// Clients that attached before the start; the message carries one descriptor for each.
    #[serde(default)]
    pub attached: Vec<Attach>,
    /// Whether the first descriptor of the message is the container's network namespace.
    #[serde(default)]
    pub network: bool,
    /// Number of the next descriptors, the sockets of published ports, which are only kept open
    /// until the container has ended.
    #[serde(default)]
    pub ports: usize,
    /// The indices of those lower layers of the root for which the next descriptors are mounts that
    /// are used instead of their paths.
    #[serde(default)]
    pub mounted_layers: Vec<usize>,
    /// Device nodes that belong to the program's user.
    #[serde(default)]
    pub nodes_of_user: Vec<NodeOfUser>,
    /// The runtime that creates the container; `None` for the shim's own.
    #[serde(default)]
    pub runtime: Option<OciRuntime>,
}

/// Another OCI runtime, which is called by its command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OciRuntime {
    /// The program: an absolute path. In the engine's settings also a name, which it looks up in `PATH`.
    pub path: PathBuf,
    /// Arguments before the command.
    pub args: Vec<String>,
    /// The environment of its commands; filled in at each start.
    #[serde(default)]
    pub env: Vec<(String, String)>,
}

/// The reply to a [`ContainerLaunch`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Launched {
    /// The program is running. `started_at` is in nanoseconds since the Unix epoch.
    /// `shim` is the shim's own pid.
    Running {
        pid: i32,
        started_at: i64,
        shim: i32,
    },
    Failed(whelk_runtime::Error),
}

/// The streams that a client attaches to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attach {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// Input bytes that detach the client from a terminal; empty for none.
    pub detach_keys: Vec<u8>,
    /// Whether to send output without frames; `None` means if the process has a terminal.
    pub raw: Option<bool>,
}

/// A request of a client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Subscribes to the container's events, beginning with its current state.
    Subscribe,
    Attach(Attach),
    /// Starts a further process.
    Exec(Box<ExecLaunch>),
    /// Sends a signal to the first process, or to the given exec.
    Signal {
        exec: Option<String>,
        signal: i32,
    },
    /// Sets the size of the terminal of the first process, or of the given exec.
    Resize {
        exec: Option<String>,
        height: u16,
        width: u16,
    },
    Pause,
    Resume,
    Update(Box<Resources>),
    /// Returns the pids of all processes in the host's pid namespace.
    Processes,
}

/// A further process to start in the container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecLaunch {
    pub id: String,
    pub process: Process,
    pub user: UserRequest,
    pub filter: Option<PathBuf>,
    /// The streams that the client uses on this connection; `None` for a detached exec.
    pub attach: Option<Attach>,
    /// Whether to open a pipe for the program's standard input even if no client writes to it yet.
    pub stdin: bool,
    /// Whether the process lives no longer than the connection of its client: it and the other
    /// processes of its session are killed when the client disconnects. SIGKILL is sent to the whole
    /// session, too. A shim that an earlier version has started does not know this.
    #[serde(default)]
    pub bound: bool,
    /// Whether its client is told how it ended: by a frame of [`EXIT_STREAM`] after the output, which
    /// holds the [`Exit`] as JSON. The connection then takes the next request, and no event is sent.
    /// Output must have frames. A shim that an earlier version has started does not know this: it
    /// closes the connection and sends an event, as it does after other execs.
    #[serde(default)]
    pub tells_exit: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Started { pid: i32 },
    Processes(Vec<i32>),
    Failed(whelk_runtime::Error),
}

/// An event sent to subscribers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The state at the time of the subscription.
    State {
        pid: i32,
        paused: bool,
        execs: Vec<(String, i32)>,
    },
    OutOfMemory,
    /// A client detached from the first process, or from the given exec, by its detach keys.
    Detached {
        exec: Option<String>,
    },
    /// Lines of the log were lost: on the way to the collector, or because they could not be written.
    LogLost(LostLines),
    ExecExited {
        id: String,
        exit: Exit,
    },
    Exited(Exit),
}

/// Lines that did not reach the log's collector or file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostLines {
    pub lines: u64,
    pub driver: String,
    /// Why the last of them was lost.
    pub cause: String,
}

/// Exit status of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code, or 128 plus the number of the signal that terminated it.
    pub code: i32,
    pub signal: Option<i32>,
    #[serde(default)]
    pub oom_killed: bool,
    /// Nanoseconds since the Unix epoch.
    pub at: i64,
    /// Of a container: lines of its log that were lost, and that no event has told of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_lines: Vec<LostLines>,
}

/// Encodes a message with its length in front.
pub fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length =
        u32::try_from(bytes.len() - 4).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// Returns the length of a message's body from its first four bytes.
///
/// # Errors
/// Returns `InvalidData` if it is larger than [`MAX_MESSAGE`].
pub fn body_length(head: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_le_bytes(head) as usize;
    if length > MAX_MESSAGE {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("message of {length} bytes exceeds the limit of {MAX_MESSAGE}"),
        ))
    } else {
        Ok(length)
    }
}

/// Removes a complete message from the front of `buffer` and returns it, or returns `None` if more
/// bytes are needed.
pub fn take<T: for<'de> Deserialize<'de>>(buffer: &mut Vec<u8>) -> io::Result<Option<T>> {
    let Some(head) = buffer.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = body_length(*head)?;
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
    let mut body = vec![0; body_length(head)?];
    stream.read_exact(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

/// Returns the header in front of each piece of output in Docker's multiplexed stream format:
/// stream number (1 for stdout, 2 for stderr), three zero bytes, length (u32, big-endian).
pub fn output_header(stream: u8, length: usize) -> [u8; 8] {
    let [a, b, c, d] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [stream, 0, 0, 0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn take_returns_only_complete_messages() {
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
    fn rejects_messages_over_the_size_limit() {
        let error = take::<Reply>(&mut vec![0xff; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(
            error.to_string(),
            format!("message of 4294967295 bytes exceeds the limit of {MAX_MESSAGE}")
        );
    }
}
