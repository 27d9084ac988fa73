//! Detects the compression of a stream by its magic number and decompresses it.

use std::io::{self, BufRead, BufReader, Read};

use crate::error::{Result, io};

/// Maximum memory that an xz decoder may need, in KiB: a dictionary of 128 MiB, as large as a window of zstd, and 1 MiB for all else.
/// `xz -9` needs half of it.
const XZ_MEMORY: u32 = 129 << 10;

/// Returns a reader for the decompressed content of `input`, which may be plain, gzip, bzip2, xz or zstd.
/// Concatenated streams of the same kind are read as one.
///
/// # Errors
/// Returns an error if `input` cannot be read.
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
            flate2::bufread::MultiGzDecoder::new(Counting::new(input)),
            |decoder| decoder.get_ref().input,
        )),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let decoder = zstd::stream::read::Decoder::with_buffer(Counting::new(input))
                .map_err(io("read zstd stream"))?;
            Box::new(Bounded::new(decoder, |decoder| decoder.get_ref().input))
        }
        [b'B', b'Z', b'h', ..] => Box::new(Bounded::new(
            bzip2::bufread::MultiBzDecoder::new(Counting::new(input)),
            |decoder| decoder.get_ref().input,
        )),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            let input = Counting::new(input);
            Box::new(Bounded::new(
                lzma_rust2::XzReader::new_mem_limit(input, true, XZ_MEMORY),
                |decoder| decoder.inner().input,
            ))
        }
        _ => return Ok((Box::new(input), false)),
    };
    Ok((reader, true))
}

/// What a decoder has read.
#[derive(Clone, Copy, Default)]
struct Input {
    /// The number of compressed bytes.
    count: u64,
    /// There was an error, which is not the decoder's.
    has_failed: bool,
}

/// Counts what a decoder reads.
struct Counting<R> {
    inner: R,
    input: Input,
}

impl<R> Counting<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            input: Input::default(),
        }
    }
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Not all decoders can go on after an interruption.
        let read = loop {
            match self.inner.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.input.has_failed |= read.is_err();
        let count = read?;
        self.input.count += count as u64;
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counting<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let filled = self.inner.fill_buf();
        self.input.has_failed |= filled.is_err();
        filled
    }

    fn consume(&mut self, amount: usize) {
        self.input.count += amount as u64;
        self.inner.consume(amount);
    }
}

/// Fails on decompression bombs: streams that have produced more than [`HARMLESS_OUTPUT`] bytes and
/// more than [`MAX_RATIO`] times their compressed size.
struct Bounded<D> {
    decoder: D,
    input: fn(&D) -> Input,
    produced: u64,
    /// The decoder has failed, and is not used any more.
    has_failed: bool,
}

/// Output in bytes that is allowed at any compression ratio: real layers contain empty disk images.
const HARMLESS_OUTPUT: u64 = 4 << 30;
const MAX_RATIO: u64 = 300;

impl<D> Bounded<D> {
    fn new(decoder: D, input: fn(&D) -> Input) -> Self {
        Self {
            decoder,
            input,
            produced: 0,
            has_failed: false,
        }
    }
}

impl<D: Read> Bounded<D> {
    fn decode(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer).map_err(|error| {
            // Only the decoder of xz says so.
            if error.kind() == io::ErrorKind::OutOfMemory {
                let text =
                    "the xz dictionary is larger than 128 MiB: use a smaller one, as xz -9 does";
                return io::Error::new(io::ErrorKind::OutOfMemory, text);
            }
            let is_cut = error.kind() == io::ErrorKind::UnexpectedEof;
            if is_cut && !(self.input)(&self.decoder).has_failed {
                // As Go says it. Each decoder has another text.
                return io::Error::new(io::ErrorKind::UnexpectedEof, "unexpected EOF");
            }
            error
        })?;
        self.produced += count as u64;
        if self.produced > HARMLESS_OUTPUT
            && self.produced / MAX_RATIO > (self.input)(&self.decoder).count
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("decompression bomb: more than {MAX_RATIO} bytes for each compressed one"),
            ));
        }
        Ok(count)
    }
}

impl<D: Read> Read for Bounded<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.has_failed {
            return Err(io::Error::other("the stream is damaged"));
        }
        // The decoder of xz takes a read of nothing for the end of a block.
        if buffer.is_empty() {
            return Ok(0);
        }
        let result = self.decode(buffer);
        self.has_failed = result.is_err();
        result
    }
}
