//! Telling compressed streams apart by their first bytes, and reading them.

use std::io::{self, BufRead, BufReader, Read};

use crate::error::{Error, Result, io};

/// Reads `input` decompressed, whatever of plain, gzip and zstd it is. Members and frames that
/// follow one another are one stream.
///
/// # Errors
/// A compression that is known but not read here (bzip2, xz), by name.
pub fn decompress<'a>(input: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
    let mut input = BufReader::with_capacity(256 << 10, input);
    let start = input.fill_buf().map_err(io("read archive"))?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Box::new(Bounded::new(
            flate2::bufread::MultiGzDecoder::new(Counting {
                inner: input,
                count: Default::default(),
            }),
            |decoder| decoder.get_ref().count,
        )),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let decoder = zstd::stream::read::Decoder::with_buffer(Counting {
                inner: input,
                count: 0,
            })
            .map_err(io("read zstd stream"))?;
            Box::new(Bounded::new(decoder, |decoder| decoder.get_ref().count))
        }
        [b'B', b'Z', b'h', ..] => {
            return Err(Error::invalid(
                "bzip2 archives are not supported: use gzip, zstd or no compression",
            ));
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            return Err(Error::invalid(
                "xz archives are not supported: use gzip, zstd or no compression",
            ));
        }
        _ => Box::new(input),
    })
}

/// Counts compressed bytes on their way into a decoder.
struct Counting<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counting<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.count += amount as u64;
        self.inner.consume(amount);
    }
}

/// Ends decompression bombs: a stream that has grown past [`HARMLESS`] by more than [`MOST_GROWTH`]
/// times is no image.
struct Bounded<D> {
    decoder: D,
    consumed: fn(&D) -> u64,
    produced: u64,
}

/// Whatever its growth, this much output (in bytes) is let through: empty disk images in layers are
/// real.
const HARMLESS: u64 = 4 << 30;
const MOST_GROWTH: u64 = 300;

impl<D> Bounded<D> {
    fn new(decoder: D, consumed: fn(&D) -> u64) -> Self {
        Self {
            decoder,
            consumed,
            produced: 0,
        }
    }
}

impl<D: Read> Read for Bounded<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        self.produced += count as u64;
        if self.produced > HARMLESS && self.produced / MOST_GROWTH > (self.consumed)(&self.decoder)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "decompression bomb: more than {MOST_GROWTH} bytes for each compressed one"
                ),
            ));
        }
        Ok(count)
    }
}
