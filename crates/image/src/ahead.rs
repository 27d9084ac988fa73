//! Reads an input on a thread of its own, ahead of the code that uses the bytes: a layer is decompressed
//! on one thread and unpacked on another.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// Size of a piece in bytes: large enough that passing it on costs nothing beside its content, and
/// small enough that it stays in a processor's cache.
const PIECE: usize = 256 << 10;
/// Number of bytes from which a piece is passed on, although it is not full.
const ENOUGH: usize = PIECE / 2;
/// Pieces that wait. This bounds the memory of one input.
const WAITING: usize = 3;

/// A piece of the input and the number of bytes in it. Without bytes it is the end.
type Piece = (Vec<u8>, usize);

/// Runs `work` with a reader of `input`, which is read ahead on another thread. Returns when that
/// thread has ended too: at the end of the input, after an error, or, if `work` does not read to the
/// end, after the next bytes that come in.
pub(crate) fn read_ahead<T>(input: impl Read + Send, work: impl FnOnce(Ahead) -> T) -> T {
    std::thread::scope(|scope| {
        let (full, pieces) = sync_channel(WAITING);
        let (used, empty) = channel();
        let unwanted = Arc::new(AtomicBool::new(false));
        let is_unwanted = unwanted.clone();
        scope.spawn(move || fill(input, &full, &empty, &is_unwanted));
        work(Ahead {
            pieces,
            used,
            piece: Vec::new(),
            at: 0,
            length: 0,
            is_over: false,
            unwanted,
        })
    })
}

fn fill(
    mut input: impl Read,
    full: &SyncSender<io::Result<Piece>>,
    empty: &Receiver<Vec<u8>>,
    unwanted: &AtomicBool,
) {
    loop {
        let mut piece = empty.try_recv().unwrap_or_else(|_| vec![0; PIECE]);
        let mut length = 0;
        let outcome = loop {
            match input.read(&mut piece[length..]) {
                Ok(0) => break Some(Ok((Vec::new(), 0))),
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(Err(error)),
            }
            if length >= ENOUGH || unwanted.load(Ordering::Relaxed) {
                break None;
            }
        };
        // This fails if the reader is gone.
        if length > 0 && full.send(Ok((piece, length))).is_err() {
            return;
        }
        if let Some(end) = outcome {
            let _ = full.send(end);
            return;
        }
    }
}

/// The reader that [`read_ahead`] gives to its caller.
#[derive(Debug)]
pub(crate) struct Ahead {
    pieces: Receiver<io::Result<Piece>>,
    /// Returns pieces to the thread, which fills them again.
    used: Sender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    length: usize,
    is_over: bool,
    /// Tells the thread to stop.
    unwanted: Arc<AtomicBool>,
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.unwanted.store(true, Ordering::Relaxed);
    }
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.length && !self.is_over {
            let used = std::mem::take(&mut self.piece);
            if !used.is_empty() {
                // This fails if the thread has ended.
                let _ = self.used.send(used);
            }
            let next = self.pieces.recv();
            let next = next.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
            (self.at, self.length) = (0, 0);
            (self.piece, self.length) = next?;
            self.is_over = self.length == 0;
        }
        let count = buffer.len().min(self.length - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives `count` bytes in pieces of `piece` bytes, and then its end or an error.
    struct Input {
        count: usize,
        given: usize,
        piece: usize,
        fails: bool,
    }

    impl Read for Input {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = (self.count - self.given).min(self.piece).min(buffer.len());
            if count == 0 && self.fails {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it is damaged"));
            }
            for byte in &mut buffer[..count] {
                *byte = u8::try_from(self.given % 251).unwrap();
                self.given += 1;
            }
            Ok(count)
        }
    }

    #[test]
    fn gives_all_bytes_and_then_the_end_or_the_error() {
        for (count, piece) in [(0, 1), (1, 1), (PIECE, PIECE), (5 * PIECE + 3, 70_001)] {
            for fails in [false, true] {
                let input = Input {
                    count,
                    given: 0,
                    piece,
                    fails,
                };
                let (content, end) = read_ahead(input, |mut ahead| {
                    let mut content = Vec::new();
                    let end = ahead.read_to_end(&mut content);
                    (content, end)
                });
                assert_eq!(content.len(), count);
                let is_same = |(at, byte): (usize, &u8)| usize::from(*byte) == at % 251;
                assert!(content.iter().enumerate().all(is_same));
                assert_eq!(
                    end.map_err(|error| error.to_string()),
                    if fails {
                        Err("it is damaged".to_owned())
                    } else {
                        Ok(count)
                    }
                );
            }
        }
    }

    #[test]
    fn ends_when_nobody_reads_on() {
        let first = read_ahead(io::repeat(7), |mut ahead| {
            let mut first = [0; 3];
            ahead.read_exact(&mut first).map(|()| first)
        });
        assert_eq!(first.unwrap(), [7; 3]);
    }
}
