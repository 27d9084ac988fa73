//! Detects the compression of a stream by its magic number and decompresses it.

use std::io::{self, BufRead, BufReader, Read};

use crate::error::{Error, Result, io};

/// Returns a reader for the decompressed content of `input`, which may be plain, gzip or zstd.
/// Concatenated gzip members and zstd frames are read as one stream.
///
/// # Errors
/// Returns an error that names the compression if it is bzip2 or xz, which are not supported.
pub fn decompress<'a>(input: impl Read + Send + 'a) -> Result<Box<dyn Read + Send + 'a>> {
    detect(input).map(|(reader, _)| reader)
}

/// Returns the same as [`decompress`], and whether `input` is compressed.
pub(crate) fn detect<'a>(
    input: impl Read + Send + 'a,
) -> Result<(Box<dyn Read + Send + 'a>, bool)> {
    let mut input = BufReader::with_capacity(256 << 10, input);
    let start = input.fill_buf().map_err(io("read archive"))?;
    let reader: Box<dyn Read + Send + 'a> = match start {
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
        _ => return Ok((Box::new(input), false)),
    };
    Ok((reader, true))
}

/// Counts the compressed bytes that a decoder reads.
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

/// Fails on decompression bombs: streams that have produced more than [`HARMLESS_OUTPUT`] bytes and
/// more than [`MAX_RATIO`] times their compressed size.
struct Bounded<D> {
    decoder: D,
    consumed: fn(&D) -> u64,
    produced: u64,
}

/// Output in bytes that is allowed at any compression ratio: real layers contain empty disk images.
const HARMLESS_OUTPUT: u64 = 4 << 30;
const MAX_RATIO: u64 = 300;

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
        if self.produced > HARMLESS_OUTPUT
            && self.produced / MAX_RATIO > (self.consumed)(&self.decoder)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("decompression bomb: more than {MAX_RATIO} bytes for each compressed one"),
            ));
        }
        Ok(count)
    }
}
