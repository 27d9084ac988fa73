//! A client that is asked for its files: tells of them, and sends the contents that are wanted.

use std::io::Read;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use whelk_sys::sync::IgnorePoison as _;

use super::{Entry, Kind};
use crate::grpc::{Call, Messages, Responses, Result, Status};
use crate::pb::files::{Packet, PacketType};

/// Number of bytes of a message. Receivers accept 4 MiB.
const PIECE: usize = 256 << 10;

/// Files that can be sent.
pub trait Files: Send + Sync + 'static {
    /// Calls `tell` for each file, in the order of paths. Blocking.
    ///
    /// # Errors
    /// Returns the text of an error for the receiver, and errors of `tell`.
    fn list(
        &self,
        tell: &mut dyn FnMut(Entry) -> std::result::Result<(), String>,
    ) -> std::result::Result<(), String>;

    /// Opens a file that it has told of. Blocking.
    ///
    /// # Errors
    /// Returns the text of an error for the receiver.
    fn open(&self, path: &str) -> std::result::Result<Box<dyn Read>, String>;
}

/// What both threads of a transfer have.
#[derive(Clone)]
struct Transfer {
    files: Arc<dyn Files>,
    /// The paths of those that were told of; empty for what has no content.
    told: Arc<Mutex<Vec<String>>>,
    responses: Responses,
}

/// Sends files to the caller of `DiffCopy`, until it has what it wants.
///
/// # Errors
/// Returns an error if files cannot be read, after the receiver was told, or if the receiver has failed or is gone.
pub async fn answer(call: Call, files: Arc<dyn Files>) -> Result<()> {
    let Call {
        mut requests,
        responses,
        ..
    } = call;
    let transfer = Transfer {
        files,
        told: Arc::default(),
        responses: responses.clone(),
    };
    let (asked, queue) = channel();
    let listing = transfer.clone();
    let list = async { joined(tokio::task::spawn_blocking(move || listing.list())).await };
    let contents = async {
        joined(tokio::task::spawn_blocking(move || {
            transfer.contents(&queue)
        }))
        .await
    };
    let sent = async { tokio::try_join!(list, contents).map(drop) };
    let received = receive(&mut requests, asked);
    let result = async {
        tokio::pin!(sent, received);
        tokio::select! {
            sent = &mut sent => {
                sent?;
                received.await
            }
            received = &mut received => received,
        }
    };
    match result.await {
        Ok(()) => {
            let fin = packet(PacketType::Fin, 0, Bytes::new());
            responses.send(&fin).await
        }
        Err(status) => {
            let text = status.message.clone().into();
            let _ = responses.send(&packet(PacketType::Err, 0, text)).await;
            Err(status)
        }
    }
}

async fn joined(thread: tokio::task::JoinHandle<Result<()>>) -> Result<()> {
    let done = thread.await;
    done.map_err(|error| Status::unknown(format!("a thread that sends files: {error}")))?
}

/// Takes what the receiver asks for, until it has all.
async fn receive(requests: &mut Messages, asked: Sender<u32>) -> Result<()> {
    while let Some(Packet { kind, id, data, .. }) = requests.next().await? {
        match PacketType::try_from(kind) {
            // The thread that sends has failed: its error is told.
            Ok(PacketType::Req) => drop(asked.send(id)),
            Ok(PacketType::Fin) => return Ok(()),
            Ok(PacketType::Err) => {
                let text = String::from_utf8_lossy(&data);
                return Err(Status::unknown(format!("error from receiver: {text}")));
            }
            _ => {
                return Err(Status::invalid(
                    "an unexpected packet of a receiver of files",
                ));
            }
        }
    }
    Err(Status::unavailable("the receiver of files has left"))
}

fn packet(kind: PacketType, id: u32, data: Bytes) -> Packet {
    Packet {
        kind: kind.into(),
        id,
        data,
        ..Packet::default()
    }
}

impl Transfer {
    fn list(&self) -> Result<()> {
        let mut gone = None;
        let listed = self.files.list(&mut |entry| {
            let path = match entry.kind {
                Kind::File | Kind::HardLink(_) => entry.path.clone(),
                _ => String::new(),
            };
            self.told.lock().ignore_poison().push(path);
            let packet = Packet {
                stat: Some(entry.to_stat()),
                ..Packet::default()
            };
            self.responses.send_blocking(&packet).map_err(|status| {
                let text = status.message.clone();
                gone = Some(status);
                text
            })
        });
        match (gone, listed) {
            (Some(status), _) => return Err(status),
            (None, Err(text)) => return Err(Status::unknown(text)),
            (None, Ok(())) => {}
        }
        self.responses.send_blocking(&Packet::default())
    }

    /// Sends contents until nobody asks any more.
    fn contents(&self, queue: &Receiver<u32>) -> Result<()> {
        while let Ok(id) = queue.recv() {
            let path = {
                let told = self.told.lock().ignore_poison();
                let index = usize::try_from(id).unwrap_or(usize::MAX);
                told.get(index).cloned().unwrap_or_default()
            };
            if path.is_empty() {
                return Err(Status::invalid(format!("file {id} has no content")));
            }
            let mut file = self.files.open(&path).map_err(Status::unknown)?;
            loop {
                let mut piece = vec![0; PIECE];
                let count = read(&mut file, &mut piece).map_err(|error| {
                    let cause = whelk_sys::errno_text(&error);
                    Status::unknown(format!("read {path}: {cause}"))
                })?;
                piece.truncate(count);
                let data = packet(PacketType::Data, id, piece.into());
                self.responses.send_blocking(&data)?;
                if count == 0 {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Fills a buffer as far as the file goes.
fn read(file: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
