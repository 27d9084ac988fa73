//! Compresses a stream as gzip (RFC 1952), on several threads.
//!
//! The stream is cut into blocks, each of which is compressed on its own and becomes a member of the gzip
//! file; decoders read all members as one stream. So the output depends on the input only, not on the
//! number of threads, and memory is bounded. It is the same each time on one machine; with another version
//! or on another kind of processor it can be another one, so digests of it are good for finding a blob that
//! was sent, but say nothing on the next output.

use std::io::{self, Write};
use std::num::NonZero;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use whelk_sys::gzip::Compressor;
use whelk_sys::sync::IgnorePoison as _;

use crate::error::{Error, Result, io};

/// Size of a block in bytes before compression. Because blocks cannot refer to earlier ones, the output is
/// about 0.5 % larger than with one block.
const BLOCK: usize = 512 << 10;
/// Maximum number of threads that compress one stream.
const MAX_THREADS: usize = 4;
/// Maximum number of waiting blocks per thread.
const WAITING: usize = 2;

type Reply = io::Result<Vec<u8>>;
type Work = (Vec<u8>, SyncSender<Reply>);

/// Compresses the bytes that `produce` writes, and passes the result to `output` in pieces. After an
/// error the output is incomplete and must not be used.
///
/// # Errors
/// Returns the error of `produce` or of `output`.
pub fn compress(
    produce: impl FnOnce(&mut dyn Write) -> Result<()> + Send,
    mut output: impl FnMut(Vec<u8>) -> io::Result<()>,
) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let threads = threads.min(MAX_THREADS);
    std::thread::scope(|scope| {
        let (work, queue) = sync_channel::<Work>(threads);
        let (order, replies) = sync_channel::<Receiver<Reply>>(WAITING * threads);
        // Owned by the worker threads only: when the last of them has ended, sending to the queue fails.
        let queue = std::sync::Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let queue = queue.clone();
            scope.spawn(move || serve(&queue));
        }
        drop(queue);
        let producer = scope.spawn(move || {
            let mut blocks = Blocks {
                block: Vec::with_capacity(BLOCK),
                has_sent: false,
                work,
                order,
            };
            produce(&mut blocks)?;
            blocks.finish().map_err(io("compress"))
        });
        let mut written = Ok(());
        for reply in replies {
            if written.is_err() {
                break;
            }
            written = reply
                .recv()
                .unwrap_or_else(|_| Err(gone()))
                .and_then(&mut output);
        }
        // The producer has ended, or ends at its next block, because the queue has no receiver.
        let produced = producer
            .join()
            .unwrap_or_else(|_| Err(Error::invalid("compress: a thread has panicked")));
        written.map_err(io("compress"))?;
        produced
    })
}

fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

/// Cuts what is written into blocks.
struct Blocks {
    block: Vec<u8>,
    has_sent: bool,
    work: SyncSender<Work>,
    order: SyncSender<Receiver<Reply>>,
}

impl Blocks {
    fn send(&mut self) -> io::Result<()> {
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        self.has_sent = true;
        let (reply, compressed) = sync_channel(1);
        self.order.send(compressed).map_err(|_| gone())?;
        self.work.send((block, reply)).map_err(|_| gone())
    }

    fn finish(mut self) -> io::Result<()> {
        // A gzip file has at least one member.
        if self.block.is_empty() && self.has_sent {
            Ok(())
        } else {
            self.send()
        }
    }
}

impl Write for Blocks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..count]);
        if self.block.len() == BLOCK {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Compresses blocks until no more come.
fn serve(queue: &Mutex<Receiver<Work>>) {
    let mut compressor = Compressor::default();
    loop {
        let next = queue.lock().ignore_poison().recv();
        let Ok((block, reply)) = next else { return };
        // Without a receiver, compression has failed elsewhere.
        let _ = reply.send(compressor.compress(&block));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Compresses `content`, written in pieces of `piece` bytes.
    fn gzip(content: &[u8], piece: usize) -> Vec<u8> {
        let mut output = Vec::new();
        let produce = |sink: &mut dyn Write| {
            content
                .chunks(piece)
                .try_for_each(|piece| sink.write_all(piece))
                .map_err(io("write"))
        };
        compress(produce, |piece| {
            output.extend(piece);
            Ok(())
        })
        .unwrap();
        output
    }

    #[test]
    fn the_output_is_the_same_each_time() {
        let noise: Vec<u8> = (0_u64..3 * BLOCK as u64 + 7)
            .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect();
        let text = b"what compresses well ".repeat(100_000);
        for content in [&b""[..], b"a", &noise[..BLOCK], &noise, &text] {
            let output = gzip(content, 100_003);
            assert_eq!(gzip(content, 4096), output);
            let mut found = Vec::new();
            let mut decoder = flate2::read::MultiGzDecoder::new(&output[..]);
            decoder.read_to_end(&mut found).unwrap();
            assert!(found == content, "{} bytes", content.len());
            // One member for each block.
            let mut rest = &output[..];
            for _ in 0..content.len().div_ceil(BLOCK).max(1) {
                let mut decoder = flate2::bufread::GzDecoder::new(rest);
                decoder.read_to_end(&mut found).unwrap();
                rest = decoder.into_inner();
            }
            assert_eq!(rest, b"");
        }
        assert!(gzip(&text, 4096).len() < text.len() / 50);
    }

    #[test]
    fn errors_of_either_side_end_the_work() {
        let endless = |sink: &mut dyn Write| -> Result<()> {
            loop {
                sink.write_all(&[0; 4096]).map_err(io("write"))?;
            }
        };
        let mut pieces = 0;
        let error = compress(endless, |_| {
            pieces += 1;
            if pieces < 3 {
                Ok(())
            } else {
                Err(io::Error::other("the receiver has left"))
            }
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("the receiver has left"), "{error}");
        let failing = |sink: &mut dyn Write| {
            sink.write_all(&vec![7; 3 * BLOCK]).map_err(io("write"))?;
            Err(Error::invalid("the layer was changed"))
        };
        let mut length = 0;
        let error = compress(failing, |piece| {
            length += piece.len();
            Ok(())
        });
        assert_eq!(error.unwrap_err().to_string(), "the layer was changed");
        assert!(length > 0);
    }
}
