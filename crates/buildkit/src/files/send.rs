//! Sends a directory to a client (the sending side of fsutil's protocol).

use std::collections::HashMap;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::OFlags;
use tokio::sync::mpsc;
use whelk_sys::in_root;

use super::walk::walk;
use super::{Error, Result};
use crate::grpc::{Requests, Status, Stream};
use crate::pb::files::{Packet, PacketType, Stat};
use crate::turns::{STALLED, Turn};

/// Size of a piece of a file in bytes.
const PIECE: usize = 128 << 10;

/// How long a client that has given up may take to say why.
const PATIENCE: Duration = Duration::from_secs(5);

/// Files to send. Nobody changes them.
#[derive(Debug)]
pub struct Outgoing {
    pub root: OwnedFd,
    /// The directory that the client gets them in, apart from the one it has chosen.
    pub below: Option<String>,
    /// The time of all files, in nanoseconds since 1970, instead of their own.
    pub mtime: Option<i64>,
}

/// Sends files on a thread that may block, for which `turn` is the right. `progress` gets the number of bytes so far. `holder` is
/// dropped when nothing is read any more.
///
/// # Errors
/// Returns an error that names the file that cannot be read, and the client's own.
pub async fn send<H: Send + 'static>(
    mut stream: Stream,
    turn: Turn,
    outgoing: Outgoing,
    holder: H,
    mut progress: impl FnMut(u64),
) -> Result<()> {
    // The client asks for each file at most once.
    let (wanted, queue) = mpsc::unbounded_channel();
    let (sent, mut count) = tokio::sync::watch::channel(0);
    let requests = stream.requests.clone();
    let mut sending = tokio::task::spawn_blocking(move || {
        let _holder = holder;
        let mut sender = Sender {
            outgoing: &outgoing,
            requests: &requests,
            turn: &turn,
            files: HashMap::new(),
            next: 0,
            queue,
            sent,
        };
        let result = sender.run();
        if let Err(error) = &result {
            let packet = Packet {
                kind: PacketType::Err.into(),
                data: error.to_string().into(),
                ..Packet::default()
            };
            let _ = requests.send_blocking(&packet, &turn);
        }
        result
    });
    let mut wanted = Some(wanted);
    let mut is_sent = false;
    let mut received = loop {
        let next = tokio::select! {
            next = stream.next::<Packet>() => next,
            result = &mut sending, if !is_sent => {
                is_sent = true;
                match result {
                    Ok(Ok(())) => continue,
                    // The status of the call says more than that it has ended.
                    Ok(Err(Error::Call(status))) => {
                        let end = stream.next::<Packet>().await;
                        break end.map_or_else(|status| Err(status.into()), |_| Err(Error::Call(status)));
                    }
                    Ok(Err(error)) => break Err(error),
                    Err(error) => break Err(Error::io("send", "")(std::io::Error::other(error))),
                }
            }
            Ok(()) = count.changed(), if !is_sent => {
                progress(*count.borrow_and_update());
                continue;
            }
        };
        let packet = match next {
            Ok(Some(packet)) => packet,
            Ok(None) => break Err(Error::Ended),
            Err(status) => break Err(status.into()),
        };
        match PacketType::try_from(packet.kind) {
            Ok(PacketType::Req) => {
                if let Some(wanted) = &wanted {
                    let _ = wanted.send(packet.id);
                }
            }
            Ok(PacketType::Fin) => break Ok(()),
            Ok(PacketType::Err) => {
                let text = String::from_utf8_lossy(&packet.data).into_owned();
                // It is often only that the client has given up; the status of the call says why.
                let status = tokio::time::timeout(PATIENCE, stream.next::<Packet>()).await;
                break Err(match status {
                    Ok(Err(status)) => status.into(),
                    _ => Error::Receiver(text),
                });
            }
            _ => break Err(Error::refused("", "a packet that a receiver does not send")),
        }
    };
    drop(wanted.take());
    if received.is_ok() {
        let fin = Packet {
            kind: PacketType::Fin.into(),
            ..Packet::default()
        };
        if !is_sent {
            received = match sending.await {
                Ok(result) => result,
                Err(error) => Err(Error::io("send", "")(std::io::Error::other(error))),
            };
        }
        progress(*count.borrow());
        if received.is_ok() {
            let _ = stream.requests.send(&fin).await;
            stream.requests.close();
            while stream.next::<Packet>().await?.is_some() {}
        }
    }
    received
}

struct Sender<'a> {
    outgoing: &'a Outgoing,
    requests: &'a Requests,
    turn: &'a Turn,
    /// The files that the client may ask for, by their positions.
    files: HashMap<u32, String>,
    next: u32,
    queue: mpsc::UnboundedReceiver<u32>,
    sent: tokio::sync::watch::Sender<u64>,
}

impl Sender<'_> {
    fn run(&mut self) -> Result<()> {
        if let Some(below) = &self.outgoing.below {
            let stat = Stat::directory(below, self.outgoing.mtime.unwrap_or(0));
            self.stat(stat, None)?;
        }
        let outgoing = self.outgoing;
        walk(&outgoing.root, |mut stat| {
            if let Some(time) = outgoing.mtime {
                stat.mod_time = time;
            }
            let path = stat.path.clone();
            if let Some(below) = &outgoing.below {
                stat.path = format!("{below}/{path}");
                if stat.is_hard_link() {
                    stat.linkname = format!("{below}/{}", stat.linkname);
                }
            }
            self.stat(stat, Some(path))?;
            // The content of small files is on its way while the next ones are told.
            while let Ok(id) = self.queue.try_recv() {
                self.content(id)?;
            }
            Ok(())
        })?;
        self.put(&Packet::default())?;
        while let Some(id) = self.next_wanted()? {
            self.content(id)?;
        }
        Ok(())
    }

    /// Tells of a file, which is at `path` below the root.
    fn stat(&mut self, stat: Stat, path: Option<String>) -> Result<()> {
        if let Some(path) = path.filter(|_| stat.is_file()) {
            self.files.insert(self.next, path);
        }
        self.next += 1;
        let packet = Packet {
            stat: Some(stat),
            ..Packet::default()
        };
        self.put(&packet)
    }

    fn put(&self, packet: &Packet) -> Result<()> {
        Ok(self.requests.send_blocking(packet, self.turn)?)
    }

    /// Waits for the next file that the client asks for; `None` if it wants no more.
    fn next_wanted(&mut self) -> Result<Option<u32>> {
        let next = self.turn.wait(self.queue.recv());
        next.ok_or_else(|| Status::unavailable(STALLED).into())
    }

    fn content(&mut self, id: u32) -> Result<()> {
        let Some(path) = self.files.remove(&id) else {
            let text = format!("invalid file id {id}");
            return Err(Error::refused("", text));
        };
        let failed = || Error::io("read", &path);
        let file = in_root::open_no_links(&self.outgoing.root, &path, OFlags::RDONLY);
        let mut file = std::fs::File::from(file.map_err(failed())?);
        loop {
            let mut piece = vec![0; PIECE];
            let length = file.read(&mut piece).map_err(failed())?;
            piece.truncate(length);
            let packet = Packet {
                kind: PacketType::Data.into(),
                id,
                data: Bytes::from(piece),
                ..Packet::default()
            };
            self.put(&packet)?;
            if length == 0 {
                return Ok(());
            }
            self.sent.send_modify(|sent| *sent += length as u64);
        }
    }
}
