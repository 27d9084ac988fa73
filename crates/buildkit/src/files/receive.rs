//! Reception of files into a directory.
//!
//! ```text
//! stream ─► packets that wait ─► a thread, as long as there are some ─► directory
//!        ◄────── what is asked for ──────┘
//! ```
//! A sender may take its time, or say nothing at all: no thread waits for it. Of files that have not changed, no thread is
//! told.

mod metadata;
mod update;

use std::time::Duration;

use prost::Message as _;

use super::{Directory, Error, Result};
use crate::grpc::{Requests, Stream};
use crate::pb::files::{Packet, PacketType};
pub use metadata::Chosen;
use update::Transfer;

/// Number of packets that wait for the disk, and their bytes.
const WAITING: usize = 128;
const WAITING_BYTES: usize = 8 << 20;

/// Time limit for the end of a call whose files are complete.
const ENDING: Duration = Duration::from_secs(5);

/// What a transfer has brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Bytes of contents.
    pub bytes: u64,
    /// Number of files whose content was sent.
    pub files: u64,
    /// Whether anything is different from before.
    pub is_changed: bool,
}

impl Directory {
    /// Takes the packets of a sender, and makes the directory what the sender has. Blocking.
    ///
    /// # Errors
    /// Returns an error if a packet is not allowed, if the sender has ended too early, and if the disk fails. What is in
    /// the directory is not known then.
    pub fn receive(
        &mut self,
        mut next: impl FnMut() -> Option<Packet>,
        mut send: impl FnMut(Packet) -> Result<()>,
    ) -> Result<Received> {
        let mut transfer = Transfer::new(self);
        loop {
            let packet = next().ok_or(Error::Ended)?;
            let received = transfer.take(self, packet)?;
            for packet in transfer.answers() {
                send(packet)?;
            }
            if let Some(received) = received {
                return Ok(received);
            }
        }
    }
}

/// Receives the files of a call into a directory. `progress` gets the number of bytes so far. If it is dropped, the call
/// is cancelled, and `directory` is dropped when nothing is written to it any more.
///
/// # Errors
/// As [`Directory::receive`], and the status of the call if it has failed.
pub async fn receive<D>(
    mut stream: Stream,
    mut directory: D,
    progress: impl FnMut(u64),
) -> Result<(D, Received)>
where
    D: AsMut<Directory> + Send + 'static,
{
    let transfer = Transfer::new(directory.as_mut());
    match take_all(&mut stream, (directory, transfer), progress).await {
        Ok(received) => {
            stream.requests.close();
            // The client's side of the call ends by itself; if not, it is cancelled.
            let rest = async { while let Ok(Some(_)) = stream.next::<Packet>().await {} };
            let _ = tokio::time::timeout(ENDING, rest).await;
            Ok(received)
        }
        // The status of the call says why it has ended.
        Err(error @ (Error::Ended | Error::Call(_))) => {
            match tokio::time::timeout(ENDING, end(&mut stream)).await {
                Ok(Err(status)) => Err(status.into()),
                _ => Err(error),
            }
        }
        Err(error) => {
            // So that the client does not print that it was cut off.
            let packet = Packet {
                kind: PacketType::Err.into(),
                data: error.to_string().into(),
                ..Packet::default()
            };
            let _ = tokio::time::timeout(ENDING, stream.requests.send(&packet)).await;
            Err(error)
        }
    }
}

/// Waits for the end of a call, and returns its status.
async fn end(stream: &mut Stream) -> crate::grpc::Result<()> {
    while stream.next::<Packet>().await?.is_some() {}
    Ok(())
}

/// What a directory becomes, and how far that is.
type State<D> = (D, Transfer);

/// Takes packets until the last one, while further ones come.
async fn take_all<D>(
    stream: &mut Stream,
    state: State<D>,
    mut progress: impl FnMut(u64),
) -> Result<(D, Received)>
where
    D: AsMut<Directory> + Send + 'static,
{
    let requests = stream.requests.clone();
    let mut state = Some(state);
    let mut taking = None;
    let mut packets: Vec<Packet> = Vec::new();
    let (mut waiting, mut bytes) = (0, 0);
    let mut ended = None;
    loop {
        let is_pending = state
            .as_ref()
            .is_some_and(|(_, transfer)| transfer.is_pending());
        if packets.is_empty() && !is_pending {
            // Also if the call has failed, what has come counts.
            if state.is_some()
                && let Some(ended) = ended
            {
                return Err(ended);
            }
        } else if let Some(state) = state.take() {
            waiting = 0;
            let packets = std::mem::take(&mut packets);
            taking = Some(Box::pin(take(state, packets, requests.clone())));
        }
        let has_room = packets.len() < WAITING && waiting < WAITING_BYTES;
        let taken = async {
            match &mut taking {
                Some(taking) => taking.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            next = stream.next::<Packet>(), if has_room && ended.is_none() => match next {
                Ok(Some(packet)) => {
                    waiting += packet.encoded_len();
                    bytes += packet.data.len() as u64;
                    progress(bytes);
                    match &mut state {
                        Some((_, transfer)) => transfer.take_known(packet)?,
                        None => packets.push(packet),
                    }
                }
                Ok(None) => ended = Some(Error::Ended),
                Err(status) => ended = Some(status.into()),
            },
            taken = taken => {
                taking = None;
                let ((directory, transfer), received) = taken?;
                if let Some(received) = received {
                    return Ok((directory, received));
                }
                state = Some((directory, transfer));
            }
        }
    }
}

/// Takes packets, and sends what is asked for then. Returns what was received if the last one was among them.
async fn take<D>(
    (mut directory, mut transfer): State<D>,
    packets: Vec<Packet>,
    requests: Requests,
) -> Result<(State<D>, Option<Received>)>
where
    D: AsMut<Directory> + Send + 'static,
{
    let taken = tokio::task::spawn_blocking(move || {
        let mut received = transfer.take_pending(directory.as_mut())?;
        for packet in packets {
            if received.is_some() {
                break;
            }
            received = transfer.take(directory.as_mut(), packet)?;
        }
        Ok::<_, Error>(((directory, transfer), received))
    });
    let taken = taken.await;
    let taken = taken.map_err(|error| Error::io("receive", "")(std::io::Error::other(error)))?;
    let ((directory, mut transfer), received) = taken?;
    for packet in transfer.answers() {
        requests.send(&packet).await?;
    }
    Ok(((directory, transfer), received))
}
