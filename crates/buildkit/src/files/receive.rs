//! Reception of files into a directory.

mod update;

use std::time::Duration;

use tokio::sync::mpsc;

use super::{Directory, Error, Result};
use crate::grpc::Stream;
use crate::pb::files::{Packet, PacketType};
use update::Update;

/// Number of packets that wait for the disk.
const WAITING: usize = 128;

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
        next: impl FnMut() -> Option<Packet>,
        send: impl FnMut(Packet) -> Result<()>,
    ) -> Result<Received> {
        Update::new(self, next, send).run()
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
    mut progress: impl FnMut(u64),
) -> Result<(D, Received)>
where
    D: AsMut<Directory> + Send + 'static,
{
    let (packets, mut queue) = mpsc::channel::<Packet>(WAITING);
    let requests = stream.requests.clone();
    let mut writing = tokio::task::spawn_blocking(move || {
        let send = |packet: Packet| Ok(requests.send_blocking(&packet)?);
        let received = directory.as_mut().receive(|| queue.blocking_recv(), send);
        if let Err(error) = &received {
            // So that the client does not print that it was cut off.
            let _ = requests.send_blocking(&Packet {
                kind: PacketType::Err.into(),
                data: error.to_string().into(),
                ..Packet::default()
            });
        }
        received.map(|received| (directory, received))
    });
    let mut bytes = 0;
    let mut status = Ok(());
    let early = loop {
        let next = tokio::select! {
            next = stream.next::<Packet>() => next,
            written = &mut writing => break Some(written),
        };
        match next {
            Ok(Some(packet)) => {
                bytes += packet.data.len() as u64;
                progress(bytes);
                // It has ended: the next turn says how.
                let _ = packets.send(packet).await;
            }
            Ok(None) => break None,
            Err(error) => {
                status = Err(error);
                break None;
            }
        }
    };
    drop(packets);
    if let Some(Ok(Err(Error::Ended | Error::Call(_)))) = &early {
        // The status of the call says why it has ended.
        let rest = async {
            loop {
                match stream.next::<Packet>().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        };
        if let Ok(ended) = tokio::time::timeout(ENDING, rest).await {
            status = ended;
        }
    }
    let written = match early {
        Some(written) => written,
        None => writing.await,
    };
    match (written, status) {
        (Ok(Err(Error::Ended | Error::Call(_))), Err(status)) => Err(status.into()),
        (Ok(Ok(received)), _) => {
            stream.requests.close();
            // The client's side of the call ends by itself; if not, it is cancelled.
            let rest = async { while let Ok(Some(_)) = stream.next::<Packet>().await {} };
            let _ = tokio::time::timeout(ENDING, rest).await;
            Ok(received)
        }
        (Ok(Err(error)), _) => Err(error),
        (Err(error), _) => Err(Error::Io {
            operation: "receive",
            path: String::new(),
            cause: std::io::Error::other(error),
        }),
    }
}
